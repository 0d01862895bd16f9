/* test_cuda_backend.c - svg2_attend on the CUDA backend: every call is taken apart in float64 (job_check of test.h), from
   the plan that it left in its workspace. */
#include "device.h"
#include "test.h"

/* A job whose tensors, state and workspace have a twin on the device. */
typedef struct twin {
    job j;
    void *q, *k, *v, *out, *lse, *stats, *work;
    size_t rows, heads;
} twin;

static void twin_make(twin *t, svg2_desc d, tensor_order order, uint64_t seed)
{
    svg2_backend cuda = svg2_cuda_backend(0);
    memset(t, 0, sizeof *t);
    job_make(&t->j, d, &cuda, order, seed);
    t->heads = (size_t)t->j.d.batch * (size_t)t->j.d.heads;
    t->rows = t->heads * (size_t)t->j.d.tokens;
    t->q = device_copy(t->j.q.data, t->j.q.bytes);
    t->k = device_copy(t->j.k.data, t->j.k.bytes);
    t->v = device_copy(t->j.v.data, t->j.v.bytes);
    t->out = device_copy(t->j.out.data, t->j.out.bytes);
    t->lse = device_new(t->rows * sizeof(float));
    t->stats = device_new(t->heads * sizeof(svg2_head_stats));
    t->work = device_new(t->j.work_bytes);
    assert_ok(svg2_state_init(&t->j.state, &t->j.d, device_new(t->j.state_bytes), t->j.state_bytes, &t->j.err));
}

/* The call on the device; then the host's twins hold what it left. */
static void twin_run(twin *t, int32_t step)
{
    job *j = &t->j;
    svg2_result r = svg2_attend(&j->backend, &j->d, &j->state, step, t->q, t->k, t->v, t->out, (float *)t->lse,
                                (svg2_head_stats *)t->stats, t->work, j->work_bytes, &j->err);
    if (r != SVG2_OK) fail_msg("svg2_attend: %s (%s: %s)", svg2_result_string(r), j->err.field, j->err.text);
    device_read(j->out.data, t->out, j->out.bytes);
    device_read(j->lse, t->lse, t->rows * sizeof(float));
    device_read(j->stats, t->stats, t->heads * sizeof(svg2_head_stats));
    TEST_UNPOISON(j->work, j->work_bytes); /* gaps of the call before */
    device_read(j->work, t->work, j->work_bytes);
}

static void twin_done(void)
{
    device_reset();
    mem_done();
}

static svg2_desc desc_of(svg2_dtype dtype, int heads, int tokens, int dim)
{
    svg2_desc d = desc_small(heads, tokens, dim);
    d.q.dtype = d.k.dtype = d.v.dtype = d.out.dtype = dtype;
    return d;
}

static void check_reports(void **state)
{
    svg2_error err;
    svg2_backend cuda = svg2_cuda_backend(0);
    (void)state;
    assert_ok(svg2_cuda_check(&err));
    assert_string_equal(cuda.name, "cuda");
    assert_int_equal(cuda.align, 256);
}

/* Dense: with text, padding, grouped heads, two batch entries, any strides. */
static void dense(void **state)
{
    (void)state;
    for (int n = 0; n < 4; ++n) {
        twin t;
        svg2_desc d = desc_of(n == 1 ? SVG2_F16 : n == 2 ? SVG2_F32 : SVG2_BF16, 2, n == 3 ? 1 : 77, n == 1 ? 40 : 64);
        d.method = SVG2_METHOD_DENSE;
        if (n == 1) d.heads_kv = 1, d.batch = 2, d.text_tokens = 13, d.text_valid = 5, d.text_place = SVG2_TEXT_FIRST;
        if (n == 2) d.tokens_kv = 50, d.text_tokens = 9, d.text_valid = -1;
        twin_make(&t, d, n == 1 ? BSHD : n == 2 ? GAPS : BHSD, 3 + (uint64_t)n);
        twin_run(&t, 0);
        job_check(&t.j, 0, t.j.d.tokens);
        twin_done();
    }
}

/* Sparse, cold and warm, every budget and tail. */
static void sparse(void **state)
{
    static const svg2_dtype dtypes[3] = {SVG2_BF16, SVG2_F16, SVG2_F32};
    (void)state;
    for (int n = 0; n < 7; ++n) {
        twin t;
        svg2_desc d = desc_of(dtypes[n % 3], 2, TEST_SLOW_BUILD ? 150 : 300, n == 4 ? 72 : 64);
        d.query_clusters = 5, d.key_clusters = 17, d.init_iterations = 3;
        if (n == 0) d.tail = SVG2_TAIL_NONE;
        if (n == 1) d.tail = SVG2_TAIL_ORDER0, d.density = 0.3f, d.heads_kv = 1;
        if (n == 2) d.density = 0.25f, d.batch = 2, d.heads = 1;
        if (n == 3) d.target_error = 0.1f, d.text_tokens = 20, d.text_valid = 11;
        if (n == 4) d.budget = SVG2_BUDGET_ROW, d.top_p = 0.6f, d.text_tokens = 20, d.text_place = SVG2_TEXT_FIRST;
        if (n == 5) d.route = SVG2_ROUTE_SPREAD, d.density = 0.2f, d.tokens_kv = 190;
        if (n == 6) d.tail = SVG2_TAIL_NONE, d.density = 0.2f, d.state_dtype = SVG2_BF16, d.init_on_dense = 1, d.dense_steps = 1;
        twin_make(&t, d, n % 2 ? GAPS : BHSD, 20 + (uint64_t)n);
        for (int step = 0; step < 2; ++step) {
            twin_run(&t, step);
            job_check(&t.j, step, 60);
        }
        assert_int_equal(t.j.state.is_warm, 1);
        twin_done();
    }
}

/* The picture is that of the CPU: as near to dense attention at the same density, up to 16-bit rounding. */
static void as_good_as_the_cpu(void **state)
{
    (void)state;
    for (int n = 0; n < 2; ++n) {
        twin t;
        job c;
        svg2_backend cpu = svg2_cpu_backend(0);
        svg2_desc d = desc_of(SVG2_BF16, 2, TEST_SLOW_BUILD ? 256 : 512, 64);
        d.query_clusters = 4, d.key_clusters = 16, d.density = 0.06f, d.out.dtype = SVG2_F32;
        if (n) d.tail = SVG2_TAIL_ORDER0;
        twin_make(&t, d, BHSD, 77);
        job_make(&c, d, &cpu, BHSD, 77);
        for (int step = 0; step < 2; ++step) {
            twin_run(&t, step);
            job_run(&c, step);
        }
        double *exact = job_dense(&c), gpu = job_error(&t.j, exact), host = job_error(&c, exact);
        print_message("error of %s: GPU %.4f, CPU %.4f\n", n ? "order 0" : "order 1", gpu, host);
        assert_true(host > 0.004); /* or the comparison says nothing */
        assert_at_most(gpu, 1.1 * host + CUDA_OUT_BF16 / 6);
        twin_done();
    }
}

/* The same bits whatever the order of blocks, threads and copies; and on a second call. */
static void same_bits(void **state)
{
    static const char *const threads[4] = {"rr", "first", "last", "random"}, *const copies[3] = {"late", "early", "mixed"};
    uint64_t first = 0;
    (void)state;
    for (int n = 0; n < (TEST_SLOW_BUILD ? 3 : 6); ++n) {
        twin t;
        svg2_desc d = desc_of(SVG2_BF16, 2, 140, 64);
        d.query_clusters = 4, d.key_clusters = 12, d.density = 0.3f, d.init_iterations = 2;
        device_schedule(threads[n % 4], copies[n % 3], 1 + (unsigned)n);
        twin_make(&t, d, BHSD, 5);
        twin_run(&t, 0);
        twin_run(&t, 1);
        if (n == 0) first = job_hash(&t.j);
        else assert_true(first == job_hash(&t.j));
        twin_done();
    }
    device_schedule("rr", "late", 1);
}

/* A state saved on one backend goes on on the other. */
static void state_travels(void **state)
{
    twin t;
    job c;
    svg2_backend cpu = svg2_cpu_backend(0);
    svg2_desc d = desc_of(SVG2_BF16, 1, 130, 64);
    (void)state;
    d.query_clusters = 4, d.key_clusters = 9, d.density = 0.4f;
    twin_make(&t, d, BHSD, 9);
    job_make(&c, d, &cpu, BHSD, 9);
    twin_run(&t, 0);
    size_t bytes = svg2_state_save_bytes(&t.j.state);
    void *saved = mem_new(bytes);
    assert_ok(svg2_state_save(&t.j.backend, &t.j.state, saved, bytes, &t.j.err));
    assert_ok(svg2_state_load(&cpu, &c.state, saved, bytes, &c.err));
    assert_int_equal(c.state.is_warm, 1);
    job_run(&c, 1);
    job_check(&c, 1, 40);
    assert_ok(svg2_state_load(&t.j.backend, &t.j.state, saved, bytes, &t.j.err));
    twin_run(&t, 1);
    job_check(&t.j, 1, 40);
    twin_done();
}

/* Memory without touching a device: HunyuanVideo 720p, one layer. */
static void memory(void **state)
{
    svg2_backend cuda = svg2_cuda_backend(0);
    svg2_desc d = desc_of(SVG2_BF16, 24, 118800 + 256, 128);
    (void)state;
    d.text_tokens = 256, d.text_valid = 77, d.query_clusters = 400, d.key_clusters = 1000;
    for (int n = 0; n < 3; ++n) {
        d.tail = (svg2_tail_kind)(SVG2_TAIL_NONE + n);
        double gb = (double)svg2_workspace_bytes(&cuda, &d) * 1e-9;
        print_message("workspace with tail %d: %.2f GB\n", n - 1, gb);
        assert_true(gb > 0.05);
        assert_at_most(gb, 3.2);
    }
}

/* NaN and Inf: no hang, no damage; rows that dense attention would spoil are spoilt, padding stays 0. */
static void nan_and_inf(void **state)
{
    (void)state;
    for (int n = 0; n < 4; ++n) {
        twin t;
        svg2_desc d = desc_of(SVG2_BF16, 1, 100, 64);
        d.query_clusters = 3, d.key_clusters = 8, d.density = 0.3f, d.text_tokens = 10, d.text_valid = 4;
        twin_make(&t, d, BHSD, 31);
        tensor *x = n == 0 ? &t.j.q : n == 1 ? &t.j.k : &t.j.v;
        tensor_put(x, tensor_at(x, 0, 0, 17, 3), n == 3 ? (double)INFINITY : (double)NAN);
        device_write(n == 0 ? t.q : n == 1 ? t.k : t.v, x->data, x->bytes);
        twin_run(&t, 0);
        for (int r = 0; r < 100; ++r) {
            double y = tensor_get(&t.j.out, tensor_at(&t.j.out, 0, 0, r, 3));
            if (r >= 94) assert_true(y == 0);
            if (n == 0 && r == 17) assert_true(isnan(y));
            if (n == 1 && r < 94) assert_true(isnan(y)); /* every row sees that key */
        }
        twin_done();
    }
}

/* ---- methods with blocks of neighbours ---- */
/* Rows of whole attention under the map of the call's plan, in float64; its statistics. */
static void check_tiled(twin *t, int32_t step, int rows)
{
    job *j = &t->j;
    const svg2_desc *d = &j->d;
    const svg2_plan p = svg2_plan_view(&j->backend, d, step, j->work);
    const int D = d->head_dim, Qb = p.query_blocks, Kb = p.key_blocks;
    const double *q = tensor_f64(&j->q), *k = tensor_f64(&j->k), *v = tensor_f64(&j->v), *out = tensor_f64(&j->out);
    unsigned char *use = (unsigned char *)mem_new((size_t)d->tokens_kv);
    double *o = (double *)mem_new((size_t)D * 8);
    rel_error e = {0, 0};
    assert_non_null(p.map);
    assert_true(tensor_gaps_untouched(&j->out));
    for (int bh = 0; bh < d->batch * d->heads; ++bh) {
        const int64_t kv = bh / d->heads * d->heads_kv + bh % d->heads / (d->heads / d->heads_kv);
        const uint8_t *map = p.map + (int64_t)bh * Qb * Kb;
        const int32_t *from = p.query_offset + (int64_t)bh * (Qb + 1), *to = p.key_offset + kv * (Kb + 1);
        int64_t pairs = 0;
        for (int x = 0; x < Qb; ++x)
            for (int y = 0; y < Kb; ++y) pairs += map[x * Kb + y] ? (int64_t)(from[x + 1] - from[x]) * (to[y + 1] - to[y]) : 0;
        assert_true(j->stats[bh].pairs == pairs && j->stats[bh].pairs_pv == pairs);
        for (int n = 0; n < (rows < d->tokens ? rows : d->tokens); ++n) {
            const int i = rows < d->tokens ? (int)((int64_t)n * 7919 % d->tokens) : n;
            const uint8_t *line = map + p.query_label[(int64_t)bh * d->tokens + i] * Kb;
            for (int key = 0; key < d->tokens_kv; ++key) use[key] = line[p.key_label[kv * d->tokens_kv + key]];
            const double lse = ref_row(q + ((int64_t)bh * d->tokens + i) * D, k + kv * d->tokens_kv * D, v + kv * d->tokens_kv * D, use,
                                       d->tokens_kv, D, (double)d->scale, 0, 0, 0, o, 0);
            const double got = (double)j->lse[(int64_t)bh * d->tokens + i];
            if (isinf(lse)) assert_true(isinf(got) && got < 0);
            else assert_at_most(fabs(got - lse), cuda_bound(d) * (1 + fabs(lse)));
            rel_add(&e, out + ((int64_t)bh * d->tokens + i) * D, o, D);
        }
    }
    assert_at_most(rel_l2(e), cuda_bound(d));
}

static void svg1(void **state)
{
    (void)state;
    for (int n = 0; n < 6; ++n) {
        const svg2_backend cpu = svg2_cpu_backend(0);
        twin t;
        job c;
        svg2_desc d = desc_of(n == 4 ? SVG2_F16 : n == 5 ? SVG2_F32 : SVG2_BF16, 4, 5 * 30, n == 4 ? 128 : n == 5 ? 40 : 64);
        d.method = SVG2_METHOD_SVG1, d.frames = 5, d.frame_tokens = 30, d.keep = 0.4f, d.block = 16;
        if (n == 1) d.heads_kv = 2, d.batch = 2;
        if (n == 2 || n == 3) d.text_tokens = 25, d.tokens += 25, d.text_valid = n == 2 ? 12 : -1, d.text_place = n == 2 ? SVG2_TEXT_FIRST : SVG2_TEXT_LAST;
        if (n == 4) d.frames = 1, d.frame_tokens = 150, d.sample_rows = 70;
        if (n == 5) d.block = 1, d.band_width = 9, d.first_frame = -1;
        twin_make(&t, d, n % 2 ? GAPS : BHSD, 20 + (uint64_t)n);
        job_make(&c, d, &cpu, n % 2 ? GAPS : BHSD, 20 + (uint64_t)n);
        twin_run(&t, 0);
        check_tiled(&t, 0, 60);
        job_run(&c, 0);
        for (size_t h = 0; h < t.heads; ++h) { /* inputs without a pattern: the errors may be nearly the same */
            const svg2_head_stats *x = &t.j.stats[h], *y = &c.stats[h];
            for (int k = 0; k < 2; ++k) assert_at_most(fabs((double)x->pattern_error[k] - (double)y->pattern_error[k]), 1e-2);
            if (x->pattern == y->pattern) assert_true(x->pairs == y->pairs && x->pairs_total == y->pairs_total && x->density == y->density);
            else assert_at_most(fabs((double)y->pattern_error[0] - (double)y->pattern_error[1]), 2e-2);
        }
        twin_done();
    }
}

/* Step 0 is dense, 1 searches, 2 and 3 reuse, 4 searches with the LSE of step 1, 5 reuses: all on the same input. */
static void adaspa(void **state)
{
    (void)state;
    for (int n = 0; n < 9; ++n) {
        const svg2_backend cpu = svg2_cpu_backend(0);
        twin t;
        job c;
        svg2_desc d = desc_of(n == 4 ? SVG2_F16 : n == 5 ? SVG2_F32 : SVG2_BF16, n == 3 ? 7 : 3, TEST_SLOW_BUILD ? 130 : 250, n == 4 ? 96 : 64);
        uint64_t dense = 0, sparse = 0;
        if (TEST_SLOW_BUILD && n != 1 && n != 3 && n != 7) continue;
        d.method = SVG2_METHOD_ADASPA, d.sparsity = 0.7f, d.block = 16;
        d.search_count = 2, d.search_steps[0] = 1, d.search_steps[1] = 4;
        if (n == 1) d.heads = 4, d.heads_kv = 2, d.batch = 2;
        if (n == 2 || n == 3) d.text_tokens = 25, d.text_valid = n == 2 ? 12 : -1, d.text_place = n == 2 ? SVG2_TEXT_FIRST : SVG2_TEXT_LAST;
        if (n == 5) d.tokens_kv = 170;
        if (n == 6) d.mass_target = 0.8f;
        if (n >= 7) d.tail = n == 7 ? SVG2_TAIL_ORDER1 : SVG2_TAIL_ORDER0;
        twin_make(&t, d, n % 2 ? GAPS : BHSD, 70 + (uint64_t)n);
        job_make(&c, d, &cpu, n % 2 ? GAPS : BHSD, 70 + (uint64_t)n);
        for (int step = 0; step < 6; ++step) {
            twin_run(&t, step);
            assert_int_equal(t.j.state.is_warm, step > 0);
            const uint64_t hash = job_hash(&t.j);
            if (step == 0) dense = hash;
            else if (step == 1) assert_true(hash == dense && t.j.stats[0].density == 1.0f);
            else if (step == 2) sparse = hash;
            else assert_true(hash == sparse); /* the LSE is the same, so the search finds the same */
            if ((step == 2 || step == 4) && n < 7) check_tiled(&t, step, 60);
            for (size_t h = 0; h < t.heads && step > 1; ++h)
                assert_true(t.j.stats[h].density < 0.85f && t.j.stats[h].recall > 0.3f && t.j.stats[h].recall <= 1.0f);
        }
        for (int step = 0; step < 3; ++step) job_run(&c, step);
        double *exact = job_dense(&c), gpu = job_error(&t.j, exact), host = job_error(&c, exact), density[2] = {0, 0};
        for (size_t h = 0; h < t.heads; ++h) density[0] += (double)t.j.stats[h].density, density[1] += (double)c.stats[h].density;
        print_message("case %d: error %.4f, on the CPU %.4f; density %.3f, %.3f\n", n, gpu, host, density[0] / (double)t.heads, density[1] / (double)t.heads);
        assert_at_most(gpu, 1.1 * host + cuda_bound(&d));
        assert_at_most(fabs(density[0] - density[1]), 0.02 * density[1]);
        svg2_state_reset(&t.j.state);
        twin_run(&t, 3); /* without a search so far: this step makes one */
        assert_true(job_hash(&t.j) == dense);
        twin_done();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(check_reports), TEST(dense), TEST(sparse), TEST(as_good_as_the_cpu),
                                       TEST(same_bits), TEST(state_travels), TEST(memory), TEST(nan_and_inf),
                                       TEST(svg1), TEST(adaspa)};
    return cmocka_run_group_tests(tests, 0, 0);
}
