/* >>attention, skip rules: beside a float64 execution of the same rules; and the promised recall, on whatever input. */
#include "test.h"
#include "skip.h"

/* Beside play(): the same tiles, the same output. */
static void check_job(job *j, const float *seed)
{
    const svg2_desc *d = &j->d;
    const svg2_plan p = svg2_plan_view(&j->backend, d, 0, j->work);
    const double *q = tensor_f64(&j->q), *k = tensor_f64(&j->k), *v = tensor_f64(&j->v), *out = tensor_f64(&j->out);
    double *lse = (double *)mem_new(sizeof(double) * (size_t)d->tokens);
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
        outcome want = play(cpu_pace, d, q + rows * d->head_dim, k + keys * d->head_dim, v + keys * d->head_dim, out + rows * d->head_dim, d->head_dim, s,
                            seed ? seed + rows : 0, lse);
        assert_int_equal(j->stats[bh].pairs_pv, want.pairs);
        assert_true(fabs((double)j->stats[bh].density_pv - (double)want.pairs / (double)j->stats[bh].pairs_total) < 1e-6);
        assert_at_most(rel_l2(want.error), d->out.dtype == SVG2_F32 ? 2e-5 : 4e-3);
        for (int i = 0; i < d->tokens; ++i) {
            const double l = (double)j->lse[rows + i];
            if (isinf(lse[i])) assert_true(isinf(l)); else assert_at_most(fabs(l - lse[i]), 2e-5);
        }
    }
}

static void rules_as_written(void **state)
{
    (void)state;
    static const struct { int heads, tokens, tokens_kv, dim; svg2_dtype dtype; tensor_order order; } shapes[] = {
        {2, 333, 333, 64, SVG2_F32, BHSD}, {1, 600, 130, 40, SVG2_BF16, BSHD}, {2, 65, 700, 96, SVG2_F16, GAPS}, {1, 1, 300, 128, SVG2_F32, BHSD}, {1, 300, 1, 8, SVG2_F32, BHSD},
        {1, 7, 63, 256, SVG2_F32, GAPS}};
    int64_t kept = 0, all = 0;
    for (int i = 0; i < COUNT(shapes); ++i)
        for (int n = 0; n < COUNT(rules); ++n)
            for (int visit = 1; visit <= 2; ++visit) {
                if (TEST_SLOW_BUILD && (i + n) % 3) continue;
                svg2_backend b = svg2_cpu_backend_simd(0, n % 2 ? SVG2_SIMD_SCALAR : SVG2_SIMD_BEST);
                svg2_desc d = desc_small(shapes[i].heads, shapes[i].tokens, shapes[i].dim);
                job j;
                d.tokens_kv = shapes[i].tokens_kv;
                d.method = SVG2_METHOD_DENSE;
                d.q.dtype = d.k.dtype = d.v.dtype = shapes[i].dtype;
                job_alloc(&j, rule(d, rules[n].skip, (svg2_visit)visit, rules[n].x), &b, shapes[i].order);
                tensor_fill_normal(&j.q, (uint64_t)(10 * i + n), 4, 0);
                tensor_fill_normal(&j.k, (uint64_t)(10 * i + n + 500), 1, 0);
                tensor_fill_normal(&j.v, (uint64_t)(10 * i + n + 700), 1, 0);
                /* neighbours alike, and long stretches that matter to nobody: something to leave out */
                for (int h = 0; h < j.k.H; ++h)
                    for (int t = 0; t < j.k.S; ++t)
                        for (int e = 0; e < j.k.D; ++e) tensor_put(&j.k, tensor_at(&j.k, 0, h, t, e), tensor_get(&j.k, tensor_at(&j.k, 0, h, t, e)) * (t % 320 < 130 ? 1 : 0.02));
                j.k.hash = mem_hash(j.k.data, j.k.bytes);
                job_run(&j, 0);
                check_job(&j, 0);
                kept += j.stats[0].pairs_pv; all += j.stats[0].pairs;
                mem_done();
            }
    assert_true(kept < all * 9 / 10);
}

/* Inside the map of another method. */
static void inside_a_map(void **state)
{
    (void)state;
    for (int n = 0; n < COUNT(rules); ++n) {
        svg2_backend b = svg2_cpu_backend(0);
        svg2_desc d = desc_small(4, 500, 32);
        job j;
        if (TEST_SLOW_BUILD && n % 2) continue;
        d.heads_kv = 2;
        d.query_clusters = 5; d.key_clusters = 12;
        d.tail = SVG2_TAIL_NONE;
        d.top_p = 0.95f;
        if (n % 2) d.text_tokens = 30, d.text_valid = 20, d.text_place = n % 4 == 1 ? SVG2_TEXT_FIRST : SVG2_TEXT_LAST;
        job_make(&j, rule(d, rules[n].skip, SVG2_VISIT_DEFAULT, rules[n].x), &b, BHSD, (uint64_t)n);
        job_run(&j, 0);
        check_job(&j, 0);
        assert_true(j.stats[0].pairs_pv <= j.stats[0].pairs && j.stats[0].pairs < j.stats[0].pairs_total);
        mem_done();
    }
}

/* With the tail: virtual keys are never left out, so a rule that leaves out nothing changes nothing. */
static void beside_a_tail(void **state)
{
    (void)state;
    for (int order = 0; order < 2; ++order) {
        svg2_backend b = svg2_cpu_backend(0);
        svg2_desc d = desc_small(2, 400, 64);
        job plain, skip;
        d.tail = order ? SVG2_TAIL_ORDER1 : SVG2_TAIL_ORDER0;
        d.density = 0.3f;
        job_make(&plain, d, &b, BHSD, 5);
        job_run(&plain, 0);
        job_make(&skip, rule(d, SVG2_SKIP_RECALL, SVG2_VISIT_DEFAULT, 1), &b, BHSD, 5);
        job_run(&skip, 0);
        assert_at_most(rel_l2_arrays(tensor_f64(&skip.out), tensor_f64(&plain.out), 2 * 400 * 64), 1e-6);
        job_make(&skip, rule(d, SVG2_SKIP_RECALL, SVG2_VISIT_DEFAULT, 0.8), &b, BHSD, 5);
        job_run(&skip, 0);
        assert_true(skip.stats[0].pairs == plain.stats[0].pairs && plain.stats[0].pairs_pv == plain.stats[0].pairs);
        assert_true(skip.stats[0].pairs_pv <= skip.stats[0].pairs);
        assert_at_most(rel_l2_arrays(tensor_f64(&skip.out), tensor_f64(&plain.out), 2 * 400 * 64), 0.25);
        mem_done();
    }
}

static void limits_are_dense(void **state)
{
    (void)state;
    static const struct { svg2_skip skip; double x; } none[] = {{SVG2_SKIP_CONSTANT, 1e-38}, {SVG2_SKIP_ENERGY, -1e30}, {SVG2_SKIP_RECALL, 1}};
    for (int n = 0; n < COUNT(none); ++n) {
        svg2_backend b = svg2_cpu_backend(0);
        svg2_desc d = desc_small(2, TEST_SLOW_BUILD ? 300 : 1000, 64);
        job j;
        d.method = SVG2_METHOD_DENSE;
        job_make(&j, rule(d, none[n].skip, SVG2_VISIT_DEFAULT, none[n].x), &b, BHSD, 9);
        job_run(&j, 0);
        assert_true(j.d.visit == SVG2_VISIT_DIAGONAL && j.stats[0].pairs_pv == j.stats[0].pairs);
        j.d.skip = SVG2_SKIP_NONE;
        assert_at_most(job_error(&j, job_dense(&j)), 5e-6);
        mem_done();
    }
}

/* ---- the promise ---- */
static void recall_is_kept(void **state)
{
    (void)state;
    static const double recalls[] = {0.5, 0.9, 0.95, 0.99};
    int64_t left_out = 0, some = 0;
    for (int n = 0; n < (TEST_SLOW_BUILD ? 40 : 200); ++n) {
        const int kind = n % 10, S = 64 + n * 37 % 500, D = 8 << n % 4;
        const double R = recalls[n / 10 % 4];
        svg2_backend b = svg2_cpu_backend(0);
        svg2_desc d = desc_small(1, S, D);
        job j;
        d.method = SVG2_METHOD_DENSE;
        if (kind == 9) d.scale = 1;
        job_alloc(&j, rule(d, SVG2_SKIP_RECALL, (svg2_visit)(1 + n / 40 % 2), R), &b, BHSD);
        fill_hard(&j, kind, (uint64_t)n);
        job_run(&j, 0);
        const double *q = tensor_f64(&j.q), *k = tensor_f64(&j.k), *v = tensor_f64(&j.v), *out = tensor_f64(&j.out);
        double *o = (double *)mem_new(sizeof(double) * (size_t)D), most = 0;
        for (int64_t e = 0; e < (int64_t)S * D; ++e) most = fmax(most, fabs(v[e]));
        for (int i = 0; i < S; ++i) {
            const double lse = ref_row(q + (int64_t)i * D, k, v, 0, S, D, (double)j.d.scale, 0, 0, 0, o, 0);
            const double recall = exp((double)j.lse[i] - lse), slack = 1e-6 * fabs(lse) + 1e-6; /* of the f32 LSE */
            if (recall < R * (1 - slack)) fail_msg("problem %d, kind %d, row %d: recall %.6f below %g", n, kind, i, recall, R);
            for (int e = 0; e < D; ++e) /* what is gone weighs at most 1 - R */
                assert_at_most(fabs(out[(int64_t)i * D + e] - o[e]), 2 * (1 - R) * most + 1e-4 * most);
        }
        left_out += j.stats[0].pairs_pv < j.stats[0].pairs;
        some += j.stats[0].pairs - j.stats[0].pairs_pv;
        mem_done();
    }
    assert_true(left_out >= (TEST_SLOW_BUILD ? 8 : 40) && some > 0); /* the promise is not kept by doing everything */
}

/* An estimate of the LSE: the same rule, with more left out; and the promise holds while the estimate is not too high. */
static void seeds(void **state)
{
    (void)state;
    for (int n = 0; n < 4; ++n) {
        svg2_backend b = svg2_cpu_backend(0);
        svg2_desc d = desc_small(2, 500, 32);
        svg2_attention_desc a = SVG2_ZERO;
        job j, dense;
        int64_t without;
        d.method = SVG2_METHOD_DENSE;
        job_make(&dense, d, &b, BHSD, 31);
        job_run(&dense, 0);
        job_make(&j, rule(d, n % 2 ? SVG2_SKIP_ENERGY : SVG2_SKIP_RECALL, SVG2_VISIT_NATURAL, n % 2 ? -4 : 0.9), &b, BHSD, 31);
        job_run(&j, 0);
        without = j.stats[0].pairs_pv + j.stats[1].pairs_pv;
        a.batch = 1; a.heads = a.heads_kv = 2; a.tokens = a.tokens_kv = 500; a.head_dim = 32; a.scale = j.d.scale;
        a.q = j.q.data; a.k = j.k.data; a.v = j.v.data; a.out = j.out.data; a.lse = j.lse; a.stats = j.stats;
        a.skip = j.d.skip; a.visit = j.d.visit; a.energy_lambda = j.d.energy_lambda; a.recall = j.d.recall;
        float *estimate = (float *)mem_new(1000 * sizeof(float));
        for (int i = 0; i < 1000; ++i) estimate[i] = dense.lse[i] + (n < 2 ? 0.0f : i % 3 ? 0.2f : -INFINITY);
        a.lse_seed = estimate;
        const size_t bytes = svg2_stage_workspace_bytes(&b, SVG2_STAGE_ATTENTION, &a);
        assert_ok(svg2_attention(&b, &a, mem_new(bytes), bytes, &j.err));
        check_job(&j, estimate);
        assert_true(j.stats[0].pairs_pv + j.stats[1].pairs_pv <= without);
        if (n == 0) assert_true(j.stats[0].pairs_pv + j.stats[1].pairs_pv < without);
        for (int i = 0; i < 1000 && n % 2 == 0; ++i) assert_true(exp((double)j.lse[i] - (double)dense.lse[i]) >= 0.9 * (1 - 1e-5));
        mem_done();
    }
}

/* svg2_attend with seed_lse: the rule with the LSE that the call before left; where that is unknown, without. */
static void seeded_calls(void **state)
{
    (void)state;
    for (int n = 0; n < 2; ++n) {
        svg2_backend b = svg2_cpu_backend(0);
        svg2_desc d = desc_small(2, 500, 32);
        job j, plain;
        float *last = (float *)mem_new(1000 * sizeof(float));
        int64_t pairs[2];
        d.method = n ? SVG2_METHOD_ADASPA : SVG2_METHOD_DENSE; /* which searches at step 0 */
        d.sparsity = 0.3f;
        d = rule(d, SVG2_SKIP_ENERGY, SVG2_VISIT_NATURAL, -4);
        job_make(&plain, d, &b, BHSD, 31);
        d.seed_lse = 1;
        job_make(&j, d, &b, BHSD, 31);
        for (int i = 0; i < 1000; ++i) j.lse[i] = -INFINITY;
        for (int step = 0; step < 2; ++step) {
            memcpy(last, j.lse, 1000 * sizeof(float));
            job_run(&plain, step);
            job_run(&j, step);
            if (n == 0) check_job(&j, last);
            pairs[step] = j.stats[0].pairs_pv + j.stats[1].pairs_pv;
            if (step == 0) assert_true(job_hash(&j) == job_hash(&plain) && pairs[0] == plain.stats[0].pairs_pv + plain.stats[1].pairs_pv);
            else assert_true(pairs[1] < plain.stats[0].pairs_pv + plain.stats[1].pairs_pv);
        }
        assert_int_equal(svg2_attend(&b, &j.d, &j.state, 2, j.q.data, j.k.data, j.v.data, j.out.data, 0, j.stats, j.work, j.work_bytes, &j.err), SVG2_ERR_NULL);
        assert_string_equal(j.err.field, "lse");
        d.seed_lse = 2;
        assert_true(error_names(&j.err, svg2_resolve(&d, &j.err), SVG2_ERR_RANGE, "seed_lse"));
        d.seed_lse = 1;
        d = rule(d, SVG2_SKIP_RECALL, SVG2_VISIT_NATURAL, 0.9);
        assert_true(error_names(&j.err, svg2_resolve(&d, &j.err), SVG2_ERR_SHAPE, "seed_lse"));
        mem_done();
    }
}

static void same_bits(void **state)
{
    (void)state;
    svg2_backend b = svg2_cpu_backend(0);
    int32_t threads = 4;
    uint64_t scatter = 7;
    const svg2_parallel pools[] = {pool_threads(&threads), pool_scattered(&scatter)};
    svg2_desc d = desc_small(3, 700, 64);
    job j;
    uint64_t want;
    d.method = SVG2_METHOD_DENSE;
    d = rule(d, SVG2_SKIP_RECALL, SVG2_VISIT_DIAGONAL, 0.9);
    job_make(&j, d, &b, BHSD, 77);
    job_run(&j, 0);
    want = job_hash(&j) + (uint64_t)j.stats[2].pairs_pv;
    for (int i = 0; i < 2; ++i) {
        svg2_backend p = svg2_cpu_backend(&pools[i]);
        job other;
        job_make(&other, d, &p, BHSD, 77);
        job_run(&other, 0);
        assert_true(job_hash(&other) + (uint64_t)other.stats[2].pairs_pv == want);
    }
}

/* Layers and steps that the schedule wants dense are dense. */
static void warm_up_is_dense(void **state)
{
    (void)state;
    svg2_backend b = svg2_cpu_backend(0);
    svg2_desc d = desc_small(1, 500, 32);
    job j;
    d.method = SVG2_METHOD_DENSE;
    d.dense_steps = 2;
    job_make(&j, rule(d, SVG2_SKIP_CONSTANT, SVG2_VISIT_DEFAULT, 1), &b, BHSD, 3);
    job_run(&j, 1);
    assert_true(j.stats[0].pairs_pv == j.stats[0].pairs);
    job_run(&j, 2);
    assert_true(j.stats[0].pairs_pv < j.stats[0].pairs);
    d.dense_steps = 0;
    d.dense_layers = 3;
    d.layer = 2;
    job_make(&j, rule(d, SVG2_SKIP_CONSTANT, SVG2_VISIT_DEFAULT, 1), &b, BHSD, 3);
    job_run(&j, 5);
    assert_true(j.stats[0].pairs_pv == j.stats[0].pairs);
}

/* A NaN is never left out, and harms nobody's memory. */
static void nan_stays(void **state)
{
    (void)state;
    for (int n = 0; n < COUNT(rules); ++n) {
        svg2_backend b = svg2_cpu_backend(0);
        svg2_desc d = desc_small(1, 400, 32);
        job j;
        d.method = SVG2_METHOD_DENSE;
        job_make(&j, rule(d, rules[n].skip, SVG2_VISIT_DEFAULT, rules[n].x), &b, BHSD, 8);
        tensor_put(&j.k, tensor_at(&j.k, 0, 0, 333, 5), (double)NAN);
        j.k.hash = mem_hash(j.k.data, j.k.bytes);
        job_run(&j, 0);
        const double *out = tensor_f64(&j.out);
        for (int i = 0; i < 400; ++i) assert_true(isnan(out[i * 32]));
        mem_done();
    }
}

static void errors(void **state)
{
    (void)state;
    svg2_error err;
    static const struct { svg2_skip skip; double x; const char *field; } bad[] = {
        {SVG2_SKIP_CONSTANT, 1.5, "skip_threshold"}, {SVG2_SKIP_CONSTANT, -0.1, "skip_threshold"}, {SVG2_SKIP_CONSTANT, (double)NAN, "skip_threshold"},
        {SVG2_SKIP_ENERGY, 0.5, "energy_lambda"}, {SVG2_SKIP_ENERGY, -(double)INFINITY, "energy_lambda"}, {SVG2_SKIP_ENERGY, (double)NAN, "energy_lambda"},
        {SVG2_SKIP_RECALL, 1.01, "recall"}, {SVG2_SKIP_RECALL, -1, "recall"}, {SVG2_SKIP_RECALL, (double)NAN, "recall"}, {(svg2_skip)9, 0, "skip"}};
    for (int i = 0; i < COUNT(bad); ++i) {
        svg2_desc d = rule(desc_small(1, 64, 8), bad[i].skip, SVG2_VISIT_DEFAULT, bad[i].x);
        assert_true(error_names(&err, svg2_resolve(&d, &err), SVG2_ERR_RANGE, bad[i].field));
    }
    svg2_desc d = rule(desc_small(1, 64, 8), SVG2_SKIP_RECALL, (svg2_visit)5, 0);
    assert_true(error_names(&err, svg2_resolve(&d, &err), SVG2_ERR_RANGE, "visit"));
    d = rule(desc_small(1, 75600, 128), SVG2_SKIP_ENERGY, SVG2_VISIT_DEFAULT, 0); /* defaults */
    assert_ok(svg2_resolve(&d, &err));
    assert_true(fabs((double)d.energy_lambda - log(1.464 * 64 / 75600)) < 1e-5 && d.recall == 0.95f && d.skip_threshold == 0.1f && d.visit == SVG2_VISIT_NATURAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(rules_as_written), TEST(inside_a_map), TEST(beside_a_tail), TEST(limits_are_dense), TEST(recall_is_kept), TEST(seeds), TEST(seeded_calls),
                                       TEST(same_bits), TEST(warm_up_is_dense), TEST(nan_stays), TEST(errors)};
    return cmocka_run_group_tests_name("skip", tests, 0, 0);
}
