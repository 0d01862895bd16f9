/* >>pipeline: svg2_attend end to end: shapes, text, tails, budgets, state, NaN. Threads are in test_parallel.c. */
#include "test.h"

/* The best with f32 arithmetic throughout; test_shapes runs every level. */
static svg2_backend cpu(void) { return svg2_cpu_backend_simd(0, SVG2_SIMD_AVX512); }

/* Runs step 0 and 1 of d, checks both against float64. */
static void two_steps(svg2_desc d, tensor_order order, const svg2_backend *backend, int rows, const char *what)
{
    job j;
    (void)what;
    job_make(&j, d, backend, order, 17);
    job_run(&j, 0);
    job_check(&j, 0, rows);
    int warm = svg2_schedule(&j.d, 0) != SVG2_ACTION_DENSE;
    assert_int_equal(j.state.is_warm, warm);
    job_run(&j, 1);
    job_check(&j, 1, rows);
    mem_done();
}

static void test_shapes(void **state)
{
    (void)state;
    static const int sizes[] = {1, 7, 63, 65, 997, 4099}, dims[] = {8, 40, 64, 72, 96, 128, 256};
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int i = 0; i < COUNT(sizes); ++i)
            for (int k = 0; k < COUNT(dims); ++k) {
                svg2_desc d = desc_small(4, sizes[i], dims[k]);
                if (sizes[i] > 4000 && TEST_SLOW_BUILD) continue;
                if (sizes[i] > 900 && (TEST_SLOW_BUILD || level == SVG2_SIMD_SCALAR || dims[k] > 128) && k != 2) continue;
                if (sizes[i] > 900) d.heads = 1 + k % 2;
                d.batch = 1 + (i + k) % 2;
                d.heads_kv = (i + k) % 3 && d.heads > 1 ? 1 : 0;
                d.tokens_kv = k % 4 == 3 ? sizes[(i + 1) % 4] : 0;
                d.tail = (svg2_tail_kind)(1 + (i + k) % 3);
                if (sizes[i] < 100) { d.query_clusters = 3; d.key_clusters = 9; } /* for 1 and 7: more than tokens */
                d.q.dtype = (svg2_dtype)(k % 3);
                d.k.dtype = (svg2_dtype)((k + i) % 3);
                d.v.dtype = (svg2_dtype)((k + 2 * i) % 3);
                d.out.dtype = (svg2_dtype)(i % 2 ? 0 : (k + 1) % 3);
                d.init_iterations = 3;
                two_steps(d, (tensor_order)((i + k) % 3), &backend, sizes[i] > 900 ? 25 : 65, "shapes");
            }
    }
}

static void test_every_choice(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    for (int tail = 1; tail <= 3; ++tail)
        for (int route = 1; route <= 2; ++route)
            for (int budget = 1; budget <= 2; ++budget)
                for (int area = 0; area < 3; ++area) {
                    svg2_desc d = desc_small(2, 400, 40);
                    d.tail = (svg2_tail_kind)tail; d.route = (svg2_route)route; d.budget = (svg2_budget)budget;
                    if (area == 0) d.top_p = 0.7f;
                    if (area == 1) d.density = 0.15f;
                    if (area == 2) d.target_error = 0.15f;
                    d.query_clusters = 12; d.key_clusters = 40;
                    two_steps(d, BHSD, &backend, 60, "choice");
                }
}

static void test_text_and_padding(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    static const int valid[] = {-1, 0, 1, 20, 37};
    for (int place = 0; place < 2; ++place)
        for (int v = 0; v < COUNT(valid); ++v)
            for (int tail = 1; tail <= 3; ++tail) {
                svg2_desc d = desc_small(2, 350, 24);
                d.batch = 2;
                d.text_place = (svg2_text_place)place;
                d.text_tokens = 37;
                d.text_valid = valid[v];
                d.tail = (svg2_tail_kind)tail;
                d.density = tail == 2 ? 0.2f : 0;
                d.target_error = tail == 3 ? 0.2f : 0;
                d.tokens_kv = tail == 1 ? 290 : 0;
                two_steps(d, (tensor_order)(v % 3), &backend, 350, "text");
                d.method = SVG2_METHOD_DENSE; /* padding is nobody's in dense attention too */
                two_steps(d, (tensor_order)(v % 3), &backend, 350, "dense text");
            }
}

/* Padding holds NaN: nothing of it is seen. */
static void test_padding_is_not_read(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    for (int mode = 0; mode < 8; ++mode) {
        svg2_desc d = desc_small(2, 200, 24);
        job j, clean;
        d.text_tokens = 30; d.text_valid = 11;
        d.text_place = mode & 1 ? SVG2_TEXT_FIRST : SVG2_TEXT_LAST;
        d.method = mode & 2 ? SVG2_METHOD_DENSE : SVG2_METHOD_SVG2;
        d.target_error = mode & 4 ? 0.1f : 0;
        job_make(&j, d, &backend, BHSD, 2);
        job_make(&clean, d, &backend, BHSD, 2);
        token_kinds kind = job_kinds(&j.d, 200);
        for (int h = 0; h < 2; ++h)
            for (int t = kind.pad_begin; t < kind.pad_begin + kind.pad_count; ++t)
                for (int e = 0; e < 24; ++e) {
                    tensor_put(&j.q, tensor_at(&j.q, 0, h, t, e), (double)NAN);
                    tensor_put(&j.k, tensor_at(&j.k, 0, h, t, e), e & 1 ? (double)NAN : (double)INFINITY);
                    tensor_put(&j.v, tensor_at(&j.v, 0, h, t, e), (double)NAN);
                }
        job_run(&j, 0);
        job_run(&clean, 0);
        assert_true(job_hash(&j) == job_hash(&clean));
        mem_done();
    }
}

/* Keys with a strong common mean: as exact as without. */
static void test_common_key_mean(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    for (int mode = 0; mode < 4; ++mode) {
        svg2_desc d = desc_small(1, TEST_SLOW_BUILD ? 700 : mode ? 2048 : 4096, 128);
        job j;
        d.method = mode == 0 ? SVG2_METHOD_DENSE : SVG2_METHOD_SVG2;
        d.tail = mode ? (svg2_tail_kind)mode : SVG2_TAIL_DEFAULT;
        job_alloc(&j, d, &backend, BHSD);
        fill_video(&j.q, &j.k, &j.v, 3, 1, 8);
        job_run(&j, 0);
        job_check(&j, 0, mode ? 64 : 256);
        mem_done();
    }
}

static void test_top_p_one_is_dense(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    for (int tail = 1; tail <= 3; ++tail)
        for (int budget = 0; budget <= 2; ++budget)
            for (int text = 0; text <= 20; text += 20) {
                svg2_desc d = desc_small(4, 700, 64);
                job j;
                d.heads_kv = 1;
                d.text_tokens = text; d.text_valid = text ? 9 : 0;
                d.tail = (svg2_tail_kind)tail; d.budget = (svg2_budget)budget;
                d.top_p = 1; d.min_keep = 1;
                job_make(&j, d, &backend, BHSD, 4);
                const double *dense = job_dense(&j);
                job_run(&j, 0);
                assert_at_most(job_error(&j, dense), 2e-6);
                for (int h = 0; h < 4; ++h) assert_true(j.stats[h].density == 1 && j.stats[h].pairs == j.stats[h].pairs_total);
                mem_done();
            }
}

/* At equal density the error falls from no tail to order 0 to order 1, and with the density. */
static void test_tails_reduce_error(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    static const float densities[] = {0.03f, 0.05f, 0.1f, 0.2f};
    double before[4] = {9, 9, 9, 9};
    for (int i = 0; i < COUNT(densities); ++i) {
        double error[4];
        for (int tail = 1; tail <= 3; ++tail) {
            svg2_desc d = desc_small(3, 1500, 64);
            job j;
            d.density = densities[i];
            d.tail = (svg2_tail_kind)tail;
            d.route = SVG2_ROUTE_MASS; d.budget = SVG2_BUDGET_HEAD;
            d.query_clusters = 24; d.key_clusters = 60;
            job_make(&j, d, &backend, BHSD, 9);
            fill_video(&j.q, &j.k, &j.v, 9, 0.7, 1);
            const double *dense = job_dense(&j);
            job_run(&j, 0);
            error[tail] = job_error(&j, dense);
            for (int h = 0; h < 3; ++h) assert_at_most(fabs((double)j.stats[h].density - (double)densities[i]), 0.02);
            assert_at_most(error[tail], 1.02 * before[tail]);
            before[tail] = error[tail];
            mem_done();
        }
        assert_at_most(error[2], 0.2 * error[1]);
        assert_at_most(error[3], (i < 3 ? 0.75 : 1) * error[2]);
    }
}

/* The estimate steers: achieved errors are near the target, smaller targets cost more, impossible ones go dense. */
static void test_target_error(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    static const float targets[] = {1e-6f, 0.02f, 0.05f, 0.1f, 0.3f};
    for (int tail = 1; tail <= 3; ++tail) {
        double last = 2;
        for (int i = 0; i < COUNT(targets); ++i) {
            svg2_desc d = desc_small(2, 1200, 64);
            job j;
            double density = 0;
            d.tail = (svg2_tail_kind)tail;
            d.target_error = targets[i];
            job_make(&j, d, &backend, BHSD, 21);
            fill_video(&j.q, &j.k, &j.v, 21, 0.6, 1);
            const double *dense = job_dense(&j);
            job_run(&j, 0);
            double error = job_error(&j, dense);
            for (int h = 0; h < 2; ++h) density += (double)j.stats[h].density / 2;
            assert_at_most(density, last + 1e-6);
            last = density;
            if (i == 0) {
                assert_true(j.stats[0].is_dense && j.stats[1].is_dense && density == 1);
                assert_at_most(error, 2e-6);
                continue;
            }
            assert_at_most(error, 1.5 * (double)targets[i]); /* an estimate, but one to rely on */
            for (int h = 0; h < 2; ++h)
                if (!j.stats[h].is_dense) assert_true(j.stats[h].error_estimate > 0 && j.stats[h].error_estimate <= targets[i] * 1.001f);
            mem_done();
        }
        assert_true(last < 0.9);
    }
}

static void test_equal_tokens_and_giants(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    for (int tail = 1; tail <= 3; ++tail)
        for (int mode = 0; mode < 3; ++mode) {
            svg2_desc d = desc_small(2, 500, 40);
            job j;
            d.tail = (svg2_tail_kind)tail;
            d.target_error = mode == 1 ? 0.1f : 0;
            d.query_clusters = 10; d.key_clusters = 30;
            job_make(&j, d, &backend, BHSD, 3);
            for (int h = 0; h < 2; ++h)
                for (int t = 0; t < 500; ++t)
                    for (int e = 0; e < 40; ++e) {
                        if (mode == 2 && t % 50 == 0) continue; /* one giant cluster and a few lone tokens */
                        tensor_put(&j.q, tensor_at(&j.q, 0, h, t, e), 0.5);
                        tensor_put(&j.k, tensor_at(&j.k, 0, h, t, e), e == 3 ? 2 : -0.25);
                    }
            j.q.hash = mem_hash(j.q.data, j.q.bytes);
            j.k.hash = mem_hash(j.k.data, j.k.bytes);
            for (int step = 0; step < 3; ++step) {
                job_run(&j, step);
                job_check(&j, step, 40);
            }
            const double *dense = job_dense(&j);
            if (tail > 1 && mode < 2) assert_at_most(job_error(&j, dense), 1e-5); /* equal keys: the expansion is exact */
            mem_done();
        }
}

/* ---- schedule and state ------------------------------------------------------------------- */
static void test_dense_steps_and_init(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    for (int init = 0; init < 2; ++init) {
        svg2_desc d = desc_small(2, 300, 40);
        job j;
        d.dense_steps = 2;
        d.init_on_dense = init;
        job_make(&j, d, &backend, BSHD, 3);
        const double *dense = job_dense(&j);
        for (int step = 0; step < 4; ++step) {
            job_run(&j, step);
            job_check(&j, step, 50);
            if (step < 2) {
                assert_at_most(job_error(&j, dense), 1e-6);
                assert_int_equal(j.state.is_warm, init);
                for (int h = 0; h < 2; ++h) assert_true(j.stats[h].density == 1);
            }
        }
        assert_int_equal(j.state.is_warm, 1);
        assert_int_equal(j.state.calls, 2);
        mem_done();
    }
}

static double inertia(const job *j, int step)
{
    svg2_plan p = svg2_plan_view(&j->backend, &j->d, step, j->work);
    const double *x = tensor_f64(&j->k);
    double sum = 0;
    int S = j->d.tokens_kv, D = j->d.head_dim;
    for (int h = 0; h < j->d.batch * j->d.heads_kv; ++h)
        for (int t = 0; t < S; ++t)
            for (int e = 0; e < D; ++e) {
                double c = x[((int64_t)h * S + t) * D + e]
                         - (double)p.key_centroid[((int64_t)h * p.key_clusters + p.key_label[(int64_t)h * S + t]) * D + e];
                sum += c * c;
            }
    return sum;
}

/* A warm start is at least as good as a cold one with as many iterations; reset makes it cold again, bit for bit. */
static void test_warm_start(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    for (int dtype = 0; dtype < 3; dtype += 2) {
        svg2_desc d = desc_small(2, 1500, 64);
        job cold, warm;
        d.init_iterations = d.step_iterations = 2;
        d.state_dtype = (svg2_dtype)dtype;
        job_make(&cold, d, &backend, BHSD, 6);
        job_make(&warm, d, &backend, BHSD, 6);
        job_run(&cold, 0);
        double first = inertia(&cold, 0), last = first;
        uint64_t bits = job_hash(&cold);
        job_run(&warm, 0);
        assert_true(job_hash(&warm) == bits);
        for (int step = 1; step < 5; ++step) {
            job_run(&warm, step);
            job_check(&warm, step, 10);
            double now = inertia(&warm, step);
            assert_at_most(now, last * 1.0005);
            last = now;
        }
        assert_true(last < 0.999 * first);
        assert_int_equal(warm.state.calls, 5);
        svg2_state_reset(&warm.state);
        assert_true(warm.state.is_warm == 0 && warm.state.calls == 0);
        TEST_UNPOISON(warm.work, warm.work_bytes); /* SVG2_DEBUG_WORKSPACE left its gaps poisoned */
        memset(warm.work, 0xff, warm.work_bytes);
        memset(warm.state_memory, 0xff, warm.state_bytes); /* nothing old is looked at */
        job_run(&warm, 0);
        assert_true(job_hash(&warm) == bits);
        mem_done();
    }
    svg2_state_reset(0);
}

/* With step_iterations = -1 the labels are the nearest of the last step's centroids. */
static void test_assign_to_old_centroids(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    svg2_desc d = desc_small(2, 600, 40);
    job j;
    d.step_iterations = -1;
    job_make(&j, d, &backend, BHSD, 6);
    job_run(&j, 0);
    svg2_plan p = svg2_plan_view(&backend, &j.d, 0, j.work);
    size_t bytes = (size_t)(2 * p.key_clusters * 40) * 4;
    float *centroid = (float *)mem_new(bytes), *mean = (float *)mem_new(2 * 40 * 4);
    memcpy(centroid, p.key_centroid, bytes);
    memcpy(mean, p.key_mean, 2 * 40 * 4);
    fill_video(&j.q, &j.k, &j.v, 6, 1.4, 3.0); /* the next step: similar, and the mean has moved */
    job_run(&j, 1);
    job_check(&j, 1, 20);
    p = svg2_plan_view(&backend, &j.d, 1, j.work);
    const double *k = tensor_f64(&j.k);
    int close = 0;
    for (int h = 0; h < 2; ++h)
        for (int t = 0; t < 600; ++t) {
            double best = 1e300, got = 0;
            for (int c = 0; c < p.key_clusters; ++c) {
                double dist = 0;
                for (int e = 0; e < 40; ++e) {
                    double x = k[(h * 600 + t) * 40 + e] - (double)p.key_mean[h * 40 + e]
                             - ((double)centroid[(h * p.key_clusters + c) * 40 + e] - (double)mean[h * 40 + e]);
                    dist += x * x;
                }
                best = fmin(best, dist);
                if (c == p.key_label[h * 600 + t]) got = dist;
            }
            assert_at_most(got - best, 1e-4);
            close += got > best;
        }
    assert_true(close < 12);
}

static void test_save_and_load(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    for (int dtype = 0; dtype < 3; dtype += 2) {
        svg2_desc d = desc_small(2, 300, 40);
        job a, b;
        svg2_error err;
        d.state_dtype = (svg2_dtype)dtype;
        job_make(&a, d, &backend, BHSD, 6);
        job_make(&b, d, &backend, BHSD, 6);
        job_run(&a, 0);
        job_run(&a, 1);
        size_t n = svg2_state_save_bytes(&a.state);
        unsigned char *bytes = (unsigned char *)mem_new(n), *again = (unsigned char *)mem_new(n);
        assert_ok(svg2_state_save(&backend, &a.state, bytes, n, &err));
        assert_ok(svg2_state_load(&backend, &b.state, bytes, n, &err));
        assert_int_equal(b.state.is_warm, 1);
        assert_int_equal(b.state.calls, a.state.calls);
        assert_ok(svg2_state_save(&backend, &b.state, again, n, &err));
        assert_memory_equal(bytes, again, n);
        job_run(&a, 2);
        job_run(&b, 2);
        assert_true(job_hash(&a) == job_hash(&b));
        /* a cold state round-trips too */
        svg2_state_reset(&a.state);
        assert_ok(svg2_state_save(&backend, &a.state, bytes, n, &err));
        assert_ok(svg2_state_load(&backend, &b.state, bytes, n, &err));
        assert_int_equal(b.state.is_warm, 0);
        mem_done();
    }
}

/* Every flipped bit of every byte, every shorter length, and foreign bytes are refused; the state stays as it was. */
static void test_damaged_bytes(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    svg2_desc d = desc_small(1, 40, 8);
    job a, b;
    svg2_error err;
    d.query_clusters = 2; d.key_clusters = 3;
    job_make(&a, d, &backend, BHSD, 6);
    job_make(&b, d, &backend, BHSD, 7);
    job_run(&a, 0);
    job_run(&b, 0);
    size_t n = svg2_state_save_bytes(&a.state);
    unsigned char *bytes = (unsigned char *)mem_new(n + 1);
    memset(bytes, 0, n + 1);
    assert_ok(svg2_state_save(&backend, &a.state, bytes, n, &err));
    uint64_t memory = mem_hash(b.state_memory, b.state_bytes), fields = mem_hash(&b.state, sizeof b.state);
    for (size_t i = 0; i < n; ++i)
        for (int bit = 0; bit < 8; ++bit) {
            bytes[i] ^= (unsigned char)(1 << bit);
            svg2_result r = svg2_state_load(&backend, &b.state, bytes, n, &err);
            if (r != SVG2_ERR_DATA && r != SVG2_ERR_STATE) fail_msg("bit %d of byte %zu: %s", bit, i, svg2_result_string(r));
            assert_int_equal(err.code, r);
            bytes[i] ^= (unsigned char)(1 << bit);
        }
    for (size_t count = 0; count < n; ++count)
        assert_int_not_equal(svg2_state_load(&backend, &b.state, bytes, count, &err), SVG2_OK);
    assert_int_not_equal(svg2_state_load(&backend, &b.state, bytes, n + 1, &err), SVG2_OK);
    assert_true(memory == mem_hash(b.state_memory, b.state_bytes) && fields == mem_hash(&b.state, sizeof b.state));
    assert_ok(svg2_state_load(&backend, &b.state, bytes, n, &err));
    assert_memory_equal(a.state_memory, b.state_memory, a.state_bytes < b.state_bytes ? a.state_bytes : b.state_bytes);

    /* bytes of another shape or dtype */
    svg2_desc other[5];
    for (int i = 0; i < 5; ++i) other[i] = d;
    other[0].heads = 2;
    other[1].head_dim = 16;
    other[2].query_clusters = 3;
    other[3].key_clusters = 2;
    other[4].state_dtype = SVG2_BF16;
    for (int i = 0; i < 5; ++i) {
        job o;
        job_make(&o, other[i], &backend, BHSD, 6);
        svg2_result r = svg2_state_load(&backend, &o.state, bytes, n, &err);
        assert_true(r == SVG2_ERR_DATA || r == SVG2_ERR_STATE || r == SVG2_ERR_WORKSPACE);
        assert_int_equal(o.state.is_warm, 0);
        assert_untouched(o.state_memory, o.state_bytes);
    }
}

static void test_state_rejects(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    svg2_desc d = desc_small(2, 100, 16), wrong;
    job j;
    svg2_error err;
    svg2_state s;
    job_make(&j, d, &backend, BHSD, 6);
    char *memory = (char *)mem_new(j.state_bytes + 64);
    memset(&s, 0xff, sizeof s);
    assert_true(error_names(&err, svg2_state_init(0, &d, memory, j.state_bytes, &err), SVG2_ERR_NULL, "state"));
    assert_true(error_names(&err, svg2_state_init(&s, 0, memory, j.state_bytes, &err), SVG2_ERR_NULL, "desc"));
    assert_true(error_names(&err, svg2_state_init(&s, &d, 0, j.state_bytes, &err), SVG2_ERR_NULL, "memory"));
    assert_true(error_names(&err, svg2_state_init(&s, &d, memory + 4, j.state_bytes, &err), SVG2_ERR_ALIGN, "memory"));
    assert_true(error_names(&err, svg2_state_init(&s, &d, memory, j.state_bytes - 1, &err), SVG2_ERR_WORKSPACE, "memory_bytes|memory"));
    assert_untouched(&s, sizeof s);
    assert_untouched(memory, j.state_bytes + 64);

    /* every way in which a state does not fit */
    for (int i = 0; i < 7; ++i) {
        wrong = d;
        if (i == 0) wrong.heads = 4;
        if (i == 1) wrong.head_dim = 24;
        if (i == 2) wrong.query_clusters = 5;
        if (i == 3) wrong.key_clusters = 5;
        if (i == 4) wrong.batch = 2;
        if (i == 5) wrong.state_dtype = SVG2_BF16;
        if (i == 6) wrong.heads_kv = 1;
        job o;
        job_make(&o, wrong, &backend, BHSD, 6);
        o.state = j.state;
        svg2_result r = job_try(&o, 0);
        assert_true(error_names(&o.err, r, SVG2_ERR_STATE, "state"));
        assert_untouched(o.out.data, o.out.bytes);
        assert_untouched(o.lse, 4);
        assert_untouched(o.work, o.work_bytes);
    }
    job o;
    job_make(&o, d, &backend, BHSD, 6);
    memset(&o.state, 0, sizeof o.state); /* never initialised */
    assert_true(error_names(&o.err, job_try(&o, 0), SVG2_ERR_STATE, "state"));
    memset(&o.state, 0xa5, sizeof o.state);
    assert_true(error_names(&o.err, job_try(&o, 0), SVG2_ERR_STATE, "state"));
    assert_untouched(o.out.data, o.out.bytes);

    unsigned char *bytes = (unsigned char *)mem_new(svg2_state_save_bytes(&j.state));
    size_t n = svg2_state_save_bytes(&j.state);
    assert_true(error_names(&err, svg2_state_save(&backend, 0, bytes, n, &err), SVG2_ERR_NULL, "state"));
    assert_true(error_names(&err, svg2_state_save(0, &j.state, bytes, n, &err), SVG2_ERR_NULL, "backend"));
    assert_true(error_names(&err, svg2_state_save(&backend, &j.state, 0, n, &err), SVG2_ERR_NULL, "bytes"));
    assert_true(error_names(&err, svg2_state_save(&backend, &j.state, bytes, n - 1, &err), SVG2_ERR_WORKSPACE, "count|bytes"));
    assert_untouched(bytes, n);
    assert_true(error_names(&err, svg2_state_load(&backend, 0, bytes, n, &err), SVG2_ERR_NULL, "state"));
    assert_true(error_names(&err, svg2_state_load(0, &j.state, bytes, n, &err), SVG2_ERR_NULL, "backend"));
    assert_true(error_names(&err, svg2_state_load(&backend, &j.state, 0, n, &err), SVG2_ERR_NULL, "bytes"));
}

/* A wrapped backend entry: its failure comes out, its calls can be counted. */
static int wrapped_calls;
static svg2_result failing_select(const svg2_backend *b, const svg2_select_desc *d, void *w, svg2_error *err)
{
    (void)b; (void)d; (void)w;
    ++wrapped_calls;
    if (err) { err->code = SVG2_ERR_BACKEND; err->field = "select"; err->text = "made to fail"; err->cuda = 0; }
    return SVG2_ERR_BACKEND;
}
static void test_backend_table(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    svg2_desc d = desc_small(2, 100, 16);
    job j;
    assert_string_equal(backend.name, "cpu");
    assert_true(backend.version == SVG2_VERSION && backend.desc_bytes == sizeof(svg2_desc) && backend.align == SVG2_ALIGN);
    assert_true(backend.simd != SVG2_SIMD_BEST && backend.tail_heads >= 1);
    job_make(&j, d, &backend, BHSD, 6);
    wrapped_calls = 0;
    j.backend.select = failing_select;
    assert_int_equal(job_try(&j, 0), SVG2_ERR_BACKEND);
    assert_int_equal(j.err.code, SVG2_ERR_BACKEND);
    assert_int_equal(wrapped_calls, 1);
    j.backend = backend;
    j.backend.version = SVG2_VERSION + 1;
    assert_int_equal(job_try(&j, 0), SVG2_ERR_BACKEND);
    j.backend = backend;
    j.backend.desc_bytes += 8;
    assert_int_equal(job_try(&j, 0), SVG2_ERR_BACKEND);
    assert_int_equal((int)svg2_cpu_backend_simd(0, SVG2_SIMD_SCALAR).simd, SVG2_SIMD_SCALAR);
}

/* ---- NaN and Inf --------------------------------------------------------------------------- */
static void test_nan_in_inputs(void **state)
{
    (void)state;
    static const double bad[] = {(double)NAN, (double)INFINITY, -(double)INFINITY, 3e38};
    svg2_backend backend = cpu();
    double dense[24];
    for (int mode = 0; mode < 18; ++mode)
        for (int which = 0; which < 3; ++which)
            for (int b = 0; b < COUNT(bad); ++b) {
                svg2_desc d = desc_small(2, 150, 24);
                job j;
                d.tail = (svg2_tail_kind)(1 + mode % 3);
                d.route = (svg2_route)(1 + mode / 3 % 2);
                d.target_error = mode / 6 == 1 ? 0.1f : 0;
                d.budget = mode / 6 == 2 ? SVG2_BUDGET_ROW : SVG2_BUDGET_DEFAULT;
                d.query_clusters = 8; d.key_clusters = 20;
                job_make(&j, d, &backend, BHSD, 6);
                tensor *t = which == 0 ? &j.q : which == 1 ? &j.k : &j.v;
                tensor_put(t, tensor_at(t, 0, 0, 33, 5), bad[b]);
                const double *q = tensor_f64(&j.q), *k = tensor_f64(&j.k), *v = tensor_f64(&j.v);
                for (int step = 0; step < 2; ++step) {
                    job_run(&j, step);
                    const double *out = tensor_f64(&j.out);
                    for (int i = 0; i < 300; ++i) {
                        int h = i / 150, reached = 0;
                        ref_row(q + i * 24, k + h * 3600, v + h * 3600, 0, 150, 24, (double)j.d.scale, 0, 0, 0, dense, 0);
                        for (int e = 0; e < 24; ++e) {
                            reached += isfinite(out[i * 24 + e]) == 0;
                            /* NaN and Inf reach what they reach in dense attention; without a tail a value may be dropped */
                            if (!isfinite(dense[e]) && b < 3 && isfinite(out[i * 24 + e]) && (which < 2 || d.tail != SVG2_TAIL_NONE))
                                fail_msg("mode %d tensor %d bad %d step %d: row %d is finite", mode, which, b, step, i);
                        }
                        if (h == 1) assert_int_equal(reached, 0); /* the other head */
                    }
                }
                mem_done();
            }
    /* everywhere */
    for (int which = 0; which < 8; ++which) {
        svg2_desc d = desc_small(1, 100, 16);
        job j;
        d.target_error = which & 1 ? 0.1f : 0;
        job_make(&j, d, &backend, BHSD, 6);
        for (int i = 0; i < 1600; ++i) {
            tensor_put(which < 4 ? &j.q : &j.k, i, which & 2 ? (double)NAN : (i & 1 ? (double)INFINITY : -(double)INFINITY));
            if (which >= 6) tensor_put(&j.q, i, (double)NAN);
        }
        for (int step = 0; step < 3; ++step) job_run(&j, step);
        mem_done();
    }
}

/* The plan that a caller reads stays in range after NaN: nothing to trip over. */
/* A NaN that came and went must leave no trace: not in an empty cluster that kept a NaN centroid, at any level. */
static void test_nan_goes_away(void **state)
{
    (void)state;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level)
        for (int keep = 0; keep < 2; ++keep) {
            svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
            svg2_desc d = desc_small(1, 600, 16);
            job j;
            d.keep_empty = keep;
            job_make(&j, d, &backend, BHSD, 6);
            double clean = tensor_f64(&j.k)[5];
            for (int step = 0; step < 4; ++step) {
                tensor_put(&j.k, 5, step == 1 ? (double)NAN : clean);
                job_run(&j, step);
                const double *out = tensor_f64(&j.out);
                for (int i = 0; i < 600 * 16 && step != 1; ++i) assert_true(isfinite(out[i]));
            }
            mem_done();
        }
}

/* What cannot be estimated is computed: NaN, Inf or overflow in v under a target error makes the head dense. */
static void test_target_error_of_nan(void **state)
{
    (void)state;
    static const double bad[] = {(double)NAN, (double)INFINITY, 3e19};
    svg2_backend backend = cpu();
    for (int tail = SVG2_TAIL_NONE; tail <= SVG2_TAIL_ORDER1; ++tail)
        for (int b = 0; b < COUNT(bad); ++b) {
            svg2_desc d = desc_small(1, 1024, 16);
            job j;
            d.tail = (svg2_tail_kind)tail;
            d.target_error = 0.05f;
            job_make(&j, d, &backend, BHSD, 6);
            tensor_put(&j.v, 5, bad[b]);
            job_run(&j, 0);
            if (b < 2) assert_true(j.stats[0].is_dense == 1 && j.stats[0].density == 1.0f);
            assert_true(j.stats[0].density > 0.01f);
            mem_done();
        }
}

/* A state made for dense calls owns no memory and must not serve a sparse one. */
static void test_dense_state_is_refused(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    svg2_desc d = desc_small(1, 256, 16), dense = d;
    svg2_state s;
    svg2_error err;
    job j;
    dense.method = SVG2_METHOD_DENSE;
    job_make(&j, d, &backend, BHSD, 6);
    assert_int_equal(svg2_state_init(&s, &dense, j.work, 64, &err), SVG2_OK);
    assert_int_equal(svg2_attend(&backend, &d, &s, 0, j.q.data, j.k.data, j.v.data, j.out.data, 0, 0, j.work,
                                 svg2_workspace_bytes(&backend, &d), &err), SVG2_ERR_STATE);
    assert_string_equal(err.field, "state");
    d.dense_steps = 2; /* a dense step asks for the state too: the mistake shows at once */
    assert_int_equal(svg2_attend(&backend, &d, 0, 0, j.q.data, j.k.data, j.v.data, j.out.data, 0, 0, j.work,
                                 svg2_workspace_bytes(&backend, &d), &err), SVG2_ERR_NULL);
    mem_done();
}

static void test_nan_plan_in_range(void **state)
{
    (void)state;
    svg2_backend backend = cpu();
    svg2_desc d = desc_small(1, 150, 24);
    job j;
    job_make(&j, d, &backend, BHSD, 6);
    for (int t = 0; t < 150; t += 3) {
        tensor_put(&j.q, tensor_at(&j.q, 0, 0, t, t % 24), (double)NAN);
        tensor_put(&j.k, tensor_at(&j.k, 0, 0, t + 1, t % 24), (double)INFINITY);
    }
    job_run(&j, 0);
    svg2_plan p = svg2_plan_view(&backend, &j.d, 0, j.work);
    unsigned char seen[150] = {0};
    for (int t = 0; t < 150; ++t) {
        assert_in_range(p.query_label[t], 0, p.query_blocks - 1);
        assert_in_range(p.key_label[t], 0, p.key_blocks - 1);
        assert_in_range(p.query_order[t], 0, 149);
        seen[p.query_order[t]]++;
    }
    for (int t = 0; t < 150; ++t) assert_int_equal(seen[t], 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_shapes),          TEST(test_every_choice),      TEST(test_text_and_padding),        TEST(test_padding_is_not_read),
        TEST(test_common_key_mean), TEST(test_top_p_one_is_dense), TEST(test_tails_reduce_error),     TEST(test_target_error),
        TEST(test_equal_tokens_and_giants), TEST(test_dense_steps_and_init), TEST(test_warm_start),   TEST(test_assign_to_old_centroids),
        TEST(test_save_and_load),   TEST(test_damaged_bytes),     TEST(test_state_rejects),           TEST(test_backend_table),
        TEST(test_nan_in_inputs),   TEST(test_nan_plan_in_range), TEST(test_nan_goes_away),        TEST(test_target_error_of_nan),
        TEST(test_dense_state_is_refused),
    };
    return cmocka_run_group_tests_name("pipeline", tests, 0, 0);
}
