/* >>attention on CUDA, skip rules: beside a float64 execution of the same rules; and the promised recall. */
#include "device.h"
#include "test.h"
#include "wgmma.h"
#include "skip.h"

static int is_cluster;    /* the program's svg2_cuda.cu has SVG2_CUDA_MULTICAST */

/* A warp decides for its rows: 32 of an item of more than 64 rows, else 16. With wgmma a warpgroup does, for its 64 rows; if
   there are no more, two share the tiles out. */
static pace gpu_pace(int dim)
{
    const int rows = is_cluster ? 256 : 128; /* of an item by wgmma: is_cluster: two blocks share it */
    const pace wide = {128, 32, 64, 16, 64, 1, 0, 0}, deep = {64, 16, 0, 16, 32, 1, 0, 0};
    const pace wide_wgmma = {rows, 64, 64, 64, 128, 2, 1, is_cluster}, deep_wgmma = {rows, 64, 64, 64, 64, 1, 1, is_cluster};
    return arch == 90 ? (dim > 128 ? deep_wgmma : wide_wgmma) : dim > 128 ? deep : wide;
}

typedef struct twin { job j; void *q, *k, *v, *out, *lse, *stats, *work; } twin;

static twin twin_new(svg2_desc d, tensor_order order)
{
    svg2_backend cuda = svg2_cuda_backend_arch(0, arch);
    twin t;
    job_alloc(&t.j, d, &cuda, order);
    return t;
}
static void twin_step(twin *t, int32_t step)
{
    job *j = &t->j;
    const size_t heads = (size_t)(j->d.batch * j->d.heads), rows = heads * (size_t)j->d.tokens;
    svg2_result r = svg2_attend(&j->backend, &j->d, &j->state, step, t->q, t->k, t->v, t->out, (float *)t->lse, (svg2_head_stats *)t->stats, t->work, j->work_bytes, &j->err);
    if (r != SVG2_OK) fail_msg("svg2_attend: %s (%s: %s)", svg2_result_string(r), j->err.field, j->err.text);
    device_read(j->out.data, t->out, j->out.bytes);
    device_read(j->lse, t->lse, rows * 4);
    device_read(j->stats, t->stats, heads * sizeof(svg2_head_stats));
    TEST_UNPOISON(j->work, j->work_bytes);
    device_read(j->work, t->work, j->work_bytes);
}
static void twin_run(twin *t)
{
    job *j = &t->j;
    const size_t heads = (size_t)(j->d.batch * j->d.heads), rows = heads * (size_t)j->d.tokens;
    void *state = device_new(j->state_bytes);
    t->q = device_copy(j->q.data, j->q.bytes); t->k = device_copy(j->k.data, j->k.bytes); t->v = device_copy(j->v.data, j->v.bytes);
    t->out = device_copy(j->out.data, j->out.bytes);
    t->lse = device_new(rows * 4); t->stats = device_new(heads * sizeof(svg2_head_stats)); t->work = device_new(j->work_bytes);
    assert_ok(svg2_state_init(&j->state, &j->d, j->state_bytes ? state : 0, j->state_bytes, &j->err));
    twin_step(t, 0);
}
static void twin_done(void) { device_reset(); mem_done(); }

/* Beside play(): nearly the same tiles (a rule is a comparison of rounded numbers), and so nearly the same output. */
static double check_twin(twin *t, int32_t step, const float *seed)
{
    job *j = &t->j;
    const svg2_desc *d = &j->d;
    const svg2_plan p = svg2_plan_view(&j->backend, d, step, j->work);
    const double *q = tensor_f64(&j->q), *k = tensor_f64(&j->k), *v = tensor_f64(&j->v), *out = tensor_f64(&j->out);
    double *lse = (double *)mem_new(sizeof(double) * (size_t)d->tokens), kept = 0, all = 0;
    for (int bh = 0; bh < d->batch * d->heads; ++bh) {
        const int kv = bh / d->heads * d->heads_kv + bh % d->heads / (d->heads / d->heads_kv);
        const int64_t rows = (int64_t)bh * d->tokens, keys = (int64_t)kv * d->tokens_kv;
        lists s = {1, 1, 0, 0, 0, 0, 0};
        if (p.map) {
            s.blocks = p.query_blocks; s.key_blocks = p.key_blocks;
            s.query_order = p.query_order + rows; s.query_offset = p.query_offset + bh * (p.query_blocks + 1);
            s.key_order = p.key_order + keys; s.key_offset = p.key_offset + kv * (p.key_blocks + 1);
            s.map = p.map + (int64_t)bh * p.query_blocks * p.key_blocks;
        }
        const outcome want = play(gpu_pace(d->head_dim), d, q + rows * d->head_dim, k + keys * d->head_dim, v + keys * d->head_dim, out + rows * d->head_dim, d->head_dim, s,
                                  seed ? seed + rows : 0, lse);
        assert_at_most(fabs((double)(j->stats[bh].pairs_pv - want.pairs)), 0.01 * (double)j->stats[bh].pairs);
        assert_true(fabs((double)j->stats[bh].density_pv * (double)j->stats[bh].pairs_total / (double)j->stats[bh].pairs_pv - 1) < 1e-5);
        if (j->stats[bh].pairs_pv == want.pairs) {
            assert_at_most(rel_l2(want.error), cuda_bound(d));
            for (int i = 0; i < d->tokens; ++i) {
                const double l = (double)j->lse[rows + i];
                if (isinf(lse[i])) assert_true(isinf(l)); else assert_at_most(fabs(l - lse[i]), 2e-4);
            }
        }
        kept += (double)j->stats[bh].pairs_pv; all += (double)j->stats[bh].pairs;
    }
    return kept / all;
}

static void rules_as_written(void **state)
{
    (void)state;
    static const struct { int heads, tokens, tokens_kv, dim; svg2_dtype dtype; tensor_order order; } shapes[] = {
        {2, 333, 333, 64, SVG2_BF16, BHSD}, {1, 150, 700, 128, SVG2_F16, GAPS}, {1, 70, 130, 256, SVG2_BF16, BHSD}, {1, 1, 300, 96, SVG2_F16, BHSD}, {1, 130, 1, 40, SVG2_BF16, BHSD}};
    double least = 1;
    for (int i = 0; i < COUNT(shapes); ++i)
        for (int n = 0; n < COUNT(rules); ++n)
            for (int visit = 1; visit <= 2; ++visit) {
                if (TEST_SLOW_BUILD ? (i + 2 * n + visit) % 6 || i == 1 : (i + n + visit) % 2) continue;
                svg2_desc d = desc_small(shapes[i].heads, shapes[i].tokens, shapes[i].dim);
                d.tokens_kv = shapes[i].tokens_kv;
                d.method = SVG2_METHOD_DENSE;
                d.q.dtype = d.k.dtype = d.v.dtype = shapes[i].dtype;
                twin t = twin_new(rule(d, rules[n].skip, (svg2_visit)visit, rules[n].x), shapes[i].order);
                tensor_fill_normal(&t.j.q, (uint64_t)(10 * i + n), 4, 0);
                tensor_fill_normal(&t.j.k, (uint64_t)(10 * i + n + 500), 1, 0);
                tensor_fill_normal(&t.j.v, (uint64_t)(10 * i + n + 700), 1, 0);
                for (int h = 0; h < t.j.k.H; ++h)
                    for (int s = 0; s < t.j.k.S; ++s)
                        for (int e = 0; e < t.j.k.D; ++e)
                            tensor_put(&t.j.k, tensor_at(&t.j.k, 0, h, s, e), tensor_get(&t.j.k, tensor_at(&t.j.k, 0, h, s, e)) * (s % 320 < 130 ? 1 : 0.02));
                twin_run(&t);
                least = fmin(least, check_twin(&t, 0, 0));
                twin_done();
            }
    assert_true(least < 0.8);
}

static void inside_a_map(void **state)
{
    (void)state;
    for (int n = 0; n < COUNT(rules); ++n) {
        svg2_desc d = desc_small(2, TEST_SLOW_BUILD ? 200 : 400, 64);
        if (TEST_SLOW_BUILD && n % 3) continue;
        d.heads_kv = 1;
        d.q.dtype = d.k.dtype = d.v.dtype = SVG2_BF16;
        d.query_clusters = 3; d.key_clusters = 9;
        d.tail = SVG2_TAIL_NONE;
        d.top_p = 0.9f;
        if (TEST_SLOW_BUILD) d.init_iterations = 1, d.query_clusters = 2, d.key_clusters = 6;
        if (n % 2) d.text_tokens = 30, d.text_valid = 20, d.text_place = n % 4 == 1 ? SVG2_TEXT_FIRST : SVG2_TEXT_LAST;
        twin t = twin_new(rule(d, rules[n].skip, n % 3 ? SVG2_VISIT_DIAGONAL : SVG2_VISIT_NATURAL, rules[n].x), BHSD);
        fill_video(&t.j.q, &t.j.k, &t.j.v, (uint64_t)n, 1.5, 0.5);
        twin_run(&t);
        (void)check_twin(&t, 0, 0);
        twin_done();
    }
}

/* The maps of the other methods. AdaSpa's search is dense and knows no rule; the next step searches with its LSE, the last
   one reuses what that has found. Beside the same call without a rule, which has the same map, and beside the CPU's. */
static void other_methods(void **state)
{
    (void)state;
    double least[2] = {1, 1};
    for (int n = 0; n < 2 * COUNT(rules); ++n) {
        const int is_adaspa = n % 2, frame = arch == 90 && !TEST_SLOW_BUILD ? 96 : 48;
        const double x = rules[n / 2].x;
        const svg2_backend cpu = svg2_cpu_backend(0);
        svg2_desc d = desc_small(2, 5 * frame, 64), with;
        job host;
        if (TEST_SLOW_BUILD && (arch == 90 || (n != 4 && n != 11))) continue; /* the same kernels as in the other tests */
        d.method = is_adaspa ? SVG2_METHOD_ADASPA : SVG2_METHOD_SVG1;
        d.q.dtype = d.k.dtype = d.v.dtype = SVG2_BF16;
        d.frames = 5; d.frame_tokens = frame; d.block = 16; d.keep = 0.7f; d.sparsity = 0.3f;
        d.search_count = 2; d.search_steps[1] = 1;
        if (n % 3 == 1) d.text_tokens = 30, d.tokens += 30, d.text_valid = 17, d.text_place = n % 4 == 1 ? SVG2_TEXT_FIRST : SVG2_TEXT_LAST;
        if (n % 3 == 2) d.heads_kv = 1;
        with = rule(d, rules[n / 2].skip, n / 2 % 2 ? SVG2_VISIT_DIAGONAL : SVG2_VISIT_NATURAL, x);
        twin plain = twin_new(d, BHSD), t = twin_new(with, BHSD);
        job_alloc(&host, with, &cpu, BHSD);
        fill_video(&plain.j.q, &plain.j.k, &plain.j.v, (uint64_t)n, 1.5, 0.5);
        fill_video(&t.j.q, &t.j.k, &t.j.v, (uint64_t)n, 1.5, 0.5);
        fill_video(&host.q, &host.k, &host.v, (uint64_t)n, 1.5, 0.5);
        twin_run(&plain);
        twin_run(&t);
        job_run(&host, 0);
        for (int step = 0; step < (is_adaspa ? 3 : 1); ++step) {
            if (step) twin_step(&plain, step), twin_step(&t, step), job_run(&host, step);
            const svg2_plan a = svg2_plan_view(&t.j.backend, &t.j.d, step, t.j.work), b = svg2_plan_view(&plain.j.backend, &plain.j.d, step, plain.j.work);
            if (is_adaspa && step == 0) {
                assert_true(job_hash(&t.j) == job_hash(&plain.j) && t.j.stats[1].density_pv == 1);
                continue;
            }
            assert_memory_equal(a.map, b.map, (size_t)(2 * a.query_blocks * a.key_blocks));
            least[is_adaspa] = fmin(least[is_adaspa], check_twin(&t, step, 0));
            for (int i = 0; i < 2 * d.tokens; ++i) {
                const double kept = exp((double)t.j.lse[i] - (double)plain.j.lse[i]);
                if (isinf(plain.j.lse[i])) assert_true(isinf(t.j.lse[i])); /* padding */
                else assert_true(kept < 1 + 1e-4 && (with.skip != SVG2_SKIP_RECALL || kept > x * (1 - 1e-3)));
            }
            const double *exact = job_dense(&host), gpu = job_error(&t.j, exact), error = job_error(&host, exact);
            int64_t pairs[2][2] = {{0, 0}, {0, 0}}; /* GPU and CPU: Q K and P V */
            for (int h = 0; h < 2; ++h) {
                assert_int_equal(t.j.stats[h].pattern, host.stats[h].pattern);
                pairs[0][0] += t.j.stats[h].pairs; pairs[0][1] += t.j.stats[h].pairs_pv;
                pairs[1][0] += host.stats[h].pairs; pairs[1][1] += host.stats[h].pairs_pv;
            }
            print_message("%s, rule %d of %g, step %d: error %.4f, on the CPU %.4f; of Q K %.3f, %.3f\n", is_adaspa ? "adaspa" : "svg1", (int)with.skip, x, step,
                          gpu, error, (double)pairs[0][1] / (double)pairs[0][0], (double)pairs[1][1] / (double)pairs[1][0]);
            assert_at_most(fabs((double)(pairs[0][0] - pairs[1][0])), 0.02 * (double)pairs[1][0]);
            assert_true((double)(pairs[1][1] - pairs[0][1]) < 0.02 * (double)pairs[1][0]);
            if (arch == 80) assert_at_most((double)(pairs[0][1] - pairs[1][1]), 0.02 * (double)pairs[1][0]); /* as small tiles as the CPU's */
            assert_at_most(gpu, 1.05 * error + cuda_bound(&d));
        }
        twin_done();
    }
    /* the first tile of each warpgroup stays: of so few keys that is all */
    if (arch == 80 || !TEST_SLOW_BUILD) assert_true(least[0] < 0.95 && least[1] < 0.95);
}

/* Virtual keys are never left out; a rule that leaves out nothing changes next to nothing. */
static void beside_a_tail(void **state)
{
    (void)state;
    svg2_desc d = desc_small(2, TEST_SLOW_BUILD ? 150 : 300, 64);
    d.q.dtype = d.k.dtype = d.v.dtype = SVG2_BF16;
    d.density = 0.3f;
    if (TEST_SLOW_BUILD) d.init_iterations = 1;
    twin plain = twin_new(d, BHSD), skip = twin_new(rule(d, SVG2_SKIP_RECALL, SVG2_VISIT_DEFAULT, 1), BHSD);
    fill_video(&plain.j.q, &plain.j.k, &plain.j.v, 5, 1, 1);
    fill_video(&skip.j.q, &skip.j.k, &skip.j.v, 5, 1, 1);
    twin_run(&plain);
    twin_run(&skip);
    /* with wgmma the plain call has another kernel, whose weights are rounded relative to maxima of other tiles */
    assert_at_most(rel_l2_arrays(tensor_f64(&skip.j.out), tensor_f64(&plain.j.out), (int64_t)2 * d.tokens * 64), 4e-4);
    assert_true(skip.j.stats[0].pairs_pv == skip.j.stats[0].pairs && plain.j.stats[1].pairs_pv == plain.j.stats[1].pairs);
    twin_done();
}

static void recall_is_kept(void **state)
{
    (void)state;
    static const double recalls[] = {0.5, 0.9, 0.95, 0.99};
    int left_out = 0;
    for (int n = 0; n < (TEST_SLOW_BUILD ? 6 : 60); ++n) {
        const int kind = TEST_SLOW_BUILD ? 2 * n % 10 : n % 10, S = 64 + n * 37 % (TEST_SLOW_BUILD ? 100 : 300), D = 32 << n % 3;
        const double R = recalls[n / 10 % 4];
        svg2_desc d = desc_small(1, S, D);
        d.method = SVG2_METHOD_DENSE;
        d.q.dtype = d.k.dtype = d.v.dtype = SVG2_BF16;
        if (kind == 9) d.scale = 1;
        twin t = twin_new(rule(d, SVG2_SKIP_RECALL, (svg2_visit)(1 + n % 2), R), BHSD);
        fill_hard(&t.j, kind, (uint64_t)n);
        twin_run(&t);
        const double *q = tensor_f64(&t.j.q), *k = tensor_f64(&t.j.k), *v = tensor_f64(&t.j.v);
        double *o = (double *)mem_new(sizeof(double) * (size_t)D);
        for (int i = 0; i < S; ++i) {
            const double lse = ref_row(q + (int64_t)i * D, k, v, 0, S, D, (double)t.j.d.scale, 0, 0, 0, o, 0);
            const double recall = exp((double)t.j.lse[i] - lse), slack = 1e-5 * fabs(lse) + 1e-4; /* sums are f32, exp2 is the GPU's */
            if (recall < R * (1 - slack)) fail_msg("problem %d, kind %d, row %d: recall %.6f below %g", n, kind, i, recall, R);
        }
        left_out += t.j.stats[0].pairs_pv < t.j.stats[0].pairs;
        twin_done();
    }
    assert_true(left_out >= (TEST_SLOW_BUILD ? 1 : 12));
}

/* An estimate of the LSE, with keys whose mean is removed (f32) and without. */
static void seeds(void **state)
{
    (void)state;
    for (int n = 0; n < 4; ++n) {
        const int S = TEST_SLOW_BUILD ? 150 : 300;
        svg2_desc d = desc_small(2, S, 32);
        svg2_attention_desc a = SVG2_ZERO;
        d.method = SVG2_METHOD_DENSE;
        d.q.dtype = SVG2_BF16; d.k.dtype = d.v.dtype = n < 2 ? SVG2_BF16 : SVG2_F32;
        twin t = twin_new(rule(d, n % 2 ? SVG2_SKIP_ENERGY : SVG2_SKIP_RECALL, SVG2_VISIT_NATURAL, n % 2 ? -3 : 0.8), BHSD);
        job *j = &t.j;
        fill_video(&j->q, &j->k, &j->v, 31, 2, 1);
        if (n >= 2) /* what bf16 holds, so that only the mean rounds */
            for (int64_t e = 0; e < (int64_t)2 * S * 32; ++e) ((float *)j->k.data)[e] = (float)bf16_value(bf16_bits((double)((float *)j->k.data)[e]));
        j->k.hash = mem_hash(j->k.data, j->k.bytes);
        twin_run(&t);
        const double *q = tensor_f64(&j->q), *k = tensor_f64(&j->k), *v = tensor_f64(&j->v);
        double o[32], *lse = (double *)mem_new(sizeof(double) * 2 * (size_t)S);
        float *estimate = (float *)mem_new(2 * (size_t)S * 4), *mean = (float *)mem_new(64 * 4);
        const int64_t without = j->stats[0].pairs_pv + j->stats[1].pairs_pv;
        for (int i = 0; i < 2 * S; ++i) {
            lse[i] = ref_row(q + (int64_t)i * 32, k + (int64_t)(i / S) * S * 32, v + (int64_t)(i / S) * S * 32, 0, S, 32, (double)j->d.scale, 0, 0, 0, o, 0);
            estimate[i] = (float)lse[i];
        }
        for (int e = 0; e < 64; ++e) {
            double sum = 0;
            for (int s = 0; s < S; ++s) sum += k[((int64_t)(e / 32) * S + s) * 32 + e % 32];
            mean[e] = (float)(sum / S);
        }
        a.batch = 1; a.heads = a.heads_kv = 2; a.tokens = a.tokens_kv = S; a.head_dim = 32; a.scale = j->d.scale;
        a.q = t.q; a.k = t.k; a.v = t.v; a.out = t.out; a.lse = (float *)t.lse; a.stats = (svg2_head_stats *)t.stats;
        a.q_layout = j->d.q; a.k_layout = j->d.k; a.v_layout = j->d.v; a.out_layout = j->d.out;
        a.key_mean = (const float *)device_copy(mean, 256);
        a.skip = j->d.skip; a.visit = j->d.visit; a.energy_lambda = j->d.energy_lambda; a.recall = j->d.recall;
        a.lse_seed = (const float *)device_copy(estimate, 2 * (size_t)S * 4);
        const size_t bytes = svg2_stage_workspace_bytes(&j->backend, SVG2_STAGE_ATTENTION, &a);
        assert_ok(svg2_attention(&j->backend, &a, device_new(bytes), bytes, &j->err));
        device_read(j->out.data, t.out, j->out.bytes);
        device_read(j->lse, t.lse, 2 * (size_t)S * 4);
        device_read(j->stats, t.stats, 2 * sizeof(svg2_head_stats));
        if (n < 2) (void)check_twin(&t, 0, estimate); /* the mean, rounded, moves logits a little */
        assert_true(j->stats[0].pairs_pv + j->stats[1].pairs_pv <= without);
        for (int i = 0; i < 2 * S && n % 2 == 0; ++i) assert_true(exp((double)j->lse[i] - lse[i]) >= 0.8 * (1 - (n ? 2e-2 : 1e-3)));
        twin_done();
    }
}

/* The LSE that the call before left, in place. device_new fills it with NaN, which is no estimate either. */
static void seeded_calls(void **state)
{
    (void)state;
    svg2_desc d = desc_small(2, TEST_SLOW_BUILD && arch == 80 ? 200 : 400, 32);
    const size_t rows = 2 * (size_t)d.tokens;
    float *last = (float *)mem_new(rows * sizeof(float));
    double kept;
    d.method = SVG2_METHOD_DENSE;
    d.q.dtype = d.k.dtype = d.v.dtype = SVG2_BF16;
    d = rule(d, SVG2_SKIP_ENERGY, SVG2_VISIT_NATURAL, -3);
    d.seed_lse = 1;
    twin t = twin_new(d, BHSD);
    fill_video(&t.j.q, &t.j.k, &t.j.v, 31, 1, 1);
    twin_run(&t);
    kept = check_twin(&t, 0, 0);
    memcpy(last, t.j.lse, rows * sizeof(float));
    twin_step(&t, 1);
    const double seeded = check_twin(&t, 1, last);
    if (!(seeded < kept)) fail_msg("with an estimate %.4f of the pairs, without %.4f", seeded, kept);
    twin_done();
}

static void same_bits(void **state)
{
    (void)state;
    static const char *const threads[] = {"rr", "first", "last", "random"}, *const copies[] = {"early", "late", "mixed"};
    uint64_t want = 0;
    for (int i = 0; i < 4; ++i)
        for (int c = 0; c < 3; ++c) {
            svg2_desc d = desc_small(1, is_cluster ? 330 : 200, 64); /* so that there is something to be skipped */
            if (TEST_SLOW_BUILD && i != c) continue;
            d.method = SVG2_METHOD_DENSE;
            d.q.dtype = d.k.dtype = d.v.dtype = SVG2_BF16;
            device_schedule(threads[i], copies[c], (unsigned)(3 * i + c + 1));
            twin t = twin_new(rule(d, SVG2_SKIP_RECALL, SVG2_VISIT_DIAGONAL, 0.8), BHSD);
            fill_hard(&t.j, 7, 3);
            twin_run(&t);
            const uint64_t hash = job_hash(&t.j) + (uint64_t)t.j.stats[0].pairs_pv;
            if (!want) want = hash;
            assert_true(hash == want && t.j.stats[0].pairs_pv < t.j.stats[0].pairs);
            twin_done();
        }
    device_schedule("rr", "late", 1);
}

static void nan_stays(void **state)
{
    (void)state;
    for (int n = 0; n < COUNT(rules); n += 2) {
        svg2_desc d = desc_small(1, 150, 64);
        d.method = SVG2_METHOD_DENSE;
        d.q.dtype = d.k.dtype = d.v.dtype = SVG2_BF16;
        twin t = twin_new(rule(d, rules[n].skip, SVG2_VISIT_DEFAULT, rules[n].x), BHSD);
        fill_hard(&t.j, 7, 8);
        tensor_put(&t.j.k, tensor_at(&t.j.k, 0, 0, 133, 5), (double)NAN);
        t.j.k.hash = mem_hash(t.j.k.data, t.j.k.bytes);
        twin_run(&t);
        const double *out = tensor_f64(&t.j.out);
        for (int i = 0; i < 150; ++i) assert_true(isnan(out[i * 64]));
        twin_done();
    }
}

#define ALL \
    TEST(rules_as_written), TEST(inside_a_map), TEST(other_methods), TEST(beside_a_tail), TEST(recall_is_kept), \
    TEST(seeds), TEST(seeded_calls), TEST(same_bits), TEST(nan_stays)
int main(int argc, char **argv)
{
    const char *name = argc > 0 ? argv[0] : "", *last = strrchr(name, '/');
    is_cluster = strncmp(last ? last + 1 : name, "multicast_", 10) == 0;
    const struct CMUnitTest tests[] = {ALL}, all[] = {
        ALL, WGMMA(rules_as_written), WGMMA(inside_a_map), WGMMA(other_methods), WGMMA(beside_a_tail),
        WGMMA(recall_is_kept), WGMMA(seeds), WGMMA(seeded_calls), WGMMA(same_bits), WGMMA(nan_stays)};
    return has_wgmma() ? cmocka_run_group_tests_name("cuda_skip", all, 0, 0) : cmocka_run_group_tests_name("cuda_skip", tests, 0, 0);
}
