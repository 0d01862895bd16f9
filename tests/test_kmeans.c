/* >>kmeans: labels, centroids, seeding, re-seeding, ties. */
#include "test.h"

typedef struct km {
    svg2_kmeans_desc d;
    tensor x;
    int B, H, S, D, C, begin, count;
    float *start;
    size_t bytes;
    void *work;
    svg2_error err;
} km;

static km km_new(int B, int H, int S, int D, int C, svg2_dtype dtype, tensor_order order, const svg2_backend *backend)
{
    km m;
    memset(&m, 0, sizeof m);
    m.B = B; m.H = H; m.S = S; m.D = D; m.C = C; m.count = S;
    m.x = tensor_new(B, H, S, D, dtype, order);
    m.d.batch = B; m.d.heads = H; m.d.tokens = S; m.d.head_dim = D; m.d.clusters = C;
    m.d.iterations = 3;
    m.d.seed = 42;
    m.d.x = m.x.data; m.d.layout = m.x.layout;
    size_t n = (size_t)(B * H);
    m.d.centroid = (float *)mem_new(n * (size_t)(C * D) * 4);
    m.d.store = mem_new(n * (size_t)(C * D) * 4);
    m.d.mean = (float *)mem_new(n * (size_t)D * 4);
    m.d.label = (int32_t *)mem_new(n * (size_t)S * 4);
    m.d.size = (int32_t *)mem_new(n * (size_t)C * 4);
    m.start = (float *)mem_new(n * (size_t)(C * D) * 4);
    m.bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_KMEANS, &m.d);
    m.work = mem_new(m.bytes);
    return m;
}
static void km_run(km *m, const svg2_backend *backend)
{
    svg2_result r = svg2_kmeans(backend, &m->d, m->work, m->bytes, &m->err);
    if (r != SVG2_OK) fail_msg("svg2_kmeans: %s (%s: %s)", svg2_result_string(r), m->err.field, m->err.text);
}
/* Things to find: tokens around 11 centers, spread 0.3, common mean. */
static void fill_groups(tensor *x, uint64_t seed, double mean)
{
    for (int b = 0; b < x->B; ++b)
        for (int h = 0; h < x->H; ++h)
            for (int t = 0; t < x->S; ++t) {
                uint64_t s = seed + (uint64_t)(b * x->H + h) * 100003u + (uint64_t)t * 7u;
                uint64_t c = seed + (uint64_t)(b * x->H + h) * 1009u + (uint64_t)rnd_int(&s, 11);
                for (int d = 0; d < x->D; ++d)
                    tensor_put(x, tensor_at(x, b, h, t, d), rnd_normal(&c) + 0.3 * rnd_normal(&s) + (d & 1 ? mean : -mean));
            }
    x->hash = mem_hash(x->data, x->bytes);
}

/* Sizes, means and stored centroids agree with the labels. Returns the inertia, all heads. */
static double km_check(km *m)
{
    const double *x = tensor_f64(&m->x);
    double *mean = (double *)mem_new(sizeof(double) * (size_t)(m->C * m->D)), inertia = 0;
    int *n = (int *)mem_new(sizeof(int) * (size_t)m->C);
    assert_true(m->x.hash == mem_hash(m->x.data, m->x.bytes));
    for (int h = 0; h < m->B * m->H; ++h) {
        const double *xh = x + ((int64_t)h * m->S + m->begin) * m->D;
        const int32_t *label = m->d.label + h * m->S;
        double top = 0;
        for (int t = 0; t < m->S; ++t) {
            if (t < m->begin || t >= m->begin + m->count) assert_untouched(&label[t], 4);
            else assert_in_range(label[t], 0, m->C - 1);
        }
        for (int i = 0; i < m->count * m->D; ++i) top = fmax(top, fabs(xh[i]));
        ref_means(xh, label + m->begin, m->count, m->D, m->C, mean, n);
        for (int c = 0; c < m->C; ++c) {
            assert_int_equal(m->d.size[h * m->C + c], n[c]);
            for (int d = 0; d < m->D; ++d) {
                double got = (double)m->d.centroid[(h * m->C + c) * m->D + d];
                if (n[c]) assert_at_most(fabs(got - mean[c * m->D + d]), 2e-6 * top);
                if (m->d.store && m->d.store_dtype == SVG2_F32)
                    assert_at_most(fabs((double)((float *)m->d.store)[(h * m->C + c) * m->D + d] + (double)m->d.mean[h * m->D + d] - got), 2e-6 * top);
                if (m->d.store && m->d.store_dtype == SVG2_BF16)
                    assert_at_most(fabs(bf16_value(((uint16_t *)m->d.store)[(h * m->C + c) * m->D + d]) - (got - (double)m->d.mean[h * m->D + d])),
                                   0x1p-8 * fabs(got - (double)m->d.mean[h * m->D + d]) + 2e-6 * top);
            }
        }
        for (int d = 0; d < m->D; ++d) {
            double all = 0;
            for (int t = 0; t < m->count; ++t) all += xh[t * m->D + d];
            assert_at_most(fabs((double)m->d.mean[h * m->D + d] - all / m->count), 2e-6 * top);
        }
        for (int t = 0; t < m->count; ++t)
            for (int d = 0; d < m->D; ++d) {
                double e = xh[t * m->D + d] - mean[label[m->begin + t] * m->D + d];
                inertia += e * e;
            }
    }
    return inertia;
}
/* Every label is the nearest of the start centroids (relative to the mean), unless two are equally near. */
static void km_check_argmin(const km *m, int most_close)
{
    const double *x = tensor_f64(&m->x);
    int close = 0;
    for (int h = 0; h < m->B * m->H; ++h)
        for (int t = m->begin; t < m->begin + m->count; ++t) {
            double best = 1e300, got = 0, norm = 0;
            for (int c = 0; c < m->C; ++c) {
                double dist = 0;
                for (int d = 0; d < m->D; ++d) {
                    double e = x[((int64_t)h * m->S + t) * m->D + d] - (double)m->d.mean[h * m->D + d]
                             - (double)m->start[(h * m->C + c) * m->D + d];
                    dist += e * e;
                }
                if (dist < best) best = dist;
                if (c == m->d.label[h * m->S + t]) got = dist;
                norm = fmax(norm, dist);
            }
            assert_at_most(got - best, 4e-6 * norm);
            close += got > best;
        }
    assert_true(close <= most_close);
}
static void start_from_tokens(km *m, uint64_t seed)
{
    const double *x = tensor_f64(&m->x);
    for (int h = 0; h < m->B * m->H; ++h)
        for (int d = 0; d < m->D; ++d) {
            double mean = 0;
            uint64_t s = seed + (uint64_t)h;
            for (int t = m->begin; t < m->begin + m->count; ++t) mean += x[((int64_t)h * m->S + t) * m->D + d] / m->count;
            for (int c = 0; c < m->C; ++c)
                m->start[(h * m->C + c) * m->D + d] =
                    (float)(x[((int64_t)h * m->S + m->begin + rnd_int(&s, m->count)) * m->D + d] - mean);
        }
    m->d.start = m->start;
}

static void test_assign_only_is_argmin(void **state)
{
    (void)state;
    static const int dims[] = {8, 40, 64, 72, 96, 128, 256}, sizes[] = {1, 7, 63, 65, 997};
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int i = 0; i < COUNT(dims); ++i)
            for (int n = 0; n < COUNT(sizes); ++n) {
                static const int clusters[] = {1, 3, 16, 37, 130};
                int C = clusters[(i + n + level) % 5];
                km m = km_new(1 + n % 2, 2, sizes[n], dims[i], C, (svg2_dtype)((i + n) % 3), (tensor_order)(n % 3), &backend);
                if (TEST_SLOW_BUILD && dims[i] > 128) continue;
                fill_groups(&m.x, (uint64_t)(i + 10 * n), (i & 1) ? 8 : 0);
                start_from_tokens(&m, 3);
                m.d.iterations = 0;
                km_run(&m, &backend);
                km_check_argmin(&m, 2 + m.B * m.H * m.count / 500);
                assert_memory_equal(m.d.store, m.start, (size_t)(m.B * m.H * C * m.D) * 4); /* kept */
                m.d.store = 0;
                km_check(&m);
                mem_done();
            }
    }
}

static void test_means_and_sizes(void **state)
{
    (void)state;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        static const int shapes[][4] = {{1, 8, 1, 1}, {1, 8, 5, 2}, {7, 40, 3, 3}, {63, 64, 63, 2}, {65, 72, 90, 4}, {997, 96, 31, 5}, {2000, 128, 100, 3}, {300, 256, 17, 1}};
        for (int i = 0; i < COUNT(shapes); ++i)
            for (int dtype = 0; dtype < 3; ++dtype) {
                km m = km_new(2, 2, shapes[i][0], shapes[i][1], shapes[i][2], (svg2_dtype)dtype, (tensor_order)(i % 3), &backend);
                fill_groups(&m.x, (uint64_t)(i + 7), dtype == 0 ? 8 : 1);
                m.d.iterations = shapes[i][3];
                m.d.store_dtype = i & 1 ? SVG2_BF16 : SVG2_F32;
                km_run(&m, &backend);
                km_check(&m);
                mem_done();
            }
    }
}

/* Tokens outside the range are neither read (NaN there) nor labelled. */
static void test_token_range(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    for (int begin = 0; begin < 100; begin += 33) {
        km m = km_new(2, 2, 300, 64, 9, SVG2_F32, BSHD, &backend);
        fill_groups(&m.x, 5, 2);
        m.d.token_begin = m.begin = begin;
        m.d.token_count = m.count = 201;
        for (int b = 0; b < 2; ++b)
            for (int h = 0; h < 2; ++h)
                for (int t = 0; t < 300; ++t)
                    if (t < begin || t >= begin + 201) tensor_put(&m.x, tensor_at(&m.x, b, h, t, t % 64), (double)NAN);
        m.x.hash = mem_hash(m.x.data, m.x.bytes);
        m.bytes = svg2_stage_workspace_bytes(&backend, SVG2_STAGE_KMEANS, &m.d);
        m.work = mem_new(m.bytes);
        km_run(&m, &backend);
        km_check(&m);
        mem_done();
    }
}

static void test_iterations_reduce_inertia(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    double last = 1e300;
    for (int n = 1; n <= 12; n = n * 3 / 2 + 1) {
        km m = km_new(1, 2, 1500, 64, 20, SVG2_F32, BHSD, &backend);
        fill_groups(&m.x, 9, 3);
        m.d.iterations = n;
        km_run(&m, &backend);
        double inertia = km_check(&m);
        assert_at_most(inertia, last * (1 + 1e-6));
        last = inertia;
        mem_done();
    }
    /* 11 true groups of spread 0.3 and 20 clusters: a good start misses one at most */
    assert_at_most(last / (2 * 1500), 64 * 0.3 * 0.3 * 1.4);
}

/* D^2 seeding spreads: with as many clusters as well separated groups, one iteration gets nearly all of them. */
static void test_seeding_spreads(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    double worst = 0;
    for (uint64_t seed = 0; seed < 5; ++seed) {
        km m = km_new(1, 1, 1100, 64, 22, SVG2_F32, BHSD, &backend);
        fill_groups(&m.x, 9, 0);
        m.d.iterations = 1;
        m.d.seed = seed;
        km_run(&m, &backend);
        worst = fmax(worst, km_check(&m) / 1100);
        mem_done();
    }
    assert_at_most(worst, 64 * 0.3 * 0.3 * 2);
}

/* Same seed, same bits; another seed, another start; a head's result does not depend on its place. */
static void test_seed_and_place(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    km a = km_new(2, 3, 400, 40, 12, SVG2_F32, BHSD, &backend), b = km_new(3, 2, 400, 40, 12, SVG2_F32, BHSD, &backend);
    fill_groups(&a.x, 1, 1);
    memcpy(b.x.data, a.x.data, a.x.bytes); /* the same six heads as three batch entries of two */
    km_run(&a, &backend);
    km_run(&b, &backend);
    assert_memory_equal(a.d.label, b.d.label, 6 * 400 * 4);
    assert_memory_equal(a.d.centroid, b.d.centroid, 6 * 12 * 40 * 4);
    assert_memory_equal(a.d.store, b.d.store, 6 * 12 * 40 * 4);
    uint64_t first = mem_hash(a.d.label, 6 * 400 * 4);
    km_run(&a, &backend);
    assert_true(first == mem_hash(a.d.label, 6 * 400 * 4));
    a.d.seed = 43;
    km_run(&a, &backend);
    assert_true(first != mem_hash(a.d.label, 6 * 400 * 4));
}

/* Ties go to the lower index. */
static void test_ties(void **state)
{
    (void)state;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        km m = km_new(1, 1, 200, 16, 45, SVG2_F32, BHSD, &backend);
        fill_groups(&m.x, 4, 0);
        start_from_tokens(&m, 1);
        for (int c = 0; c < 45; ++c) memcpy(m.start + c * 16, m.start + c % 9 * 16, 16 * 4); /* 9 different, 5 times */
        m.d.iterations = 0;
        m.d.keep_empty = 1;
        km_run(&m, &backend);
        for (int t = 0; t < 200; ++t) assert_in_range(m.d.label[t], 0, 8);
        km_check_argmin(&m, 2 + m.B * m.H * m.count / 500);
        for (int t = 0; t < 200; ++t) /* all tokens equal: distances tie exactly */
            for (int d = 0; d < 16; ++d) tensor_put(&m.x, tensor_at(&m.x, 0, 0, t, d), 1.5);
        m.x.hash = mem_hash(m.x.data, m.x.bytes);
        memset(m.start, 0, 45 * 16 * 4);
        km_run(&m, &backend);
        for (int t = 0; t < 200; ++t) assert_int_equal(m.d.label[t], 0);
        mem_done();
    }
}

/* Centroids that differ in the fifth digit: nothing coarser than f32 may decide between them. More of them than any
   shortcut may hold in memory, too. */
static void test_close_centroids(void **state)
{
    (void)state;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int big = 0; big < 2; ++big) {
            int C = big ? 4200 : 60, D = big ? 8 : 64;
            uint64_t s = 5;
            km m = km_new(1, 1, 500, D, C, SVG2_F32, BHSD, &backend);
            fill_groups(&m.x, 4, 0);
            start_from_tokens(&m, 1);
            for (int c = 0; c < C && !big; ++c)
                for (int d = 0; d < D; ++d) m.start[c * D + d] = (float)((double)m.start[c % 6 * D + d] + (c < 6 ? 0 : 3e-4 * rnd_normal(&s)));
            m.d.iterations = 0;
            km_run(&m, &backend);
            km_check_argmin(&m, 500);
            mem_done();
        }
    }
}

static void test_keep_empty(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    km m = km_new(1, 1, 300, 24, 12, SVG2_F32, BHSD, &backend);
    fill_groups(&m.x, 4, 2);
    start_from_tokens(&m, 1);
    for (int c = 6; c < 12; ++c) /* duplicates of lower ones get no token */
        memcpy(m.start + c * 24, m.start + (c - 6) * 24, 24 * 4);
    m.d.keep_empty = 1;
    m.d.iterations = 1;
    km_run(&m, &backend);
    for (int c = 6; c < 12; ++c) {
        assert_int_equal(m.d.size[c], 0);
        for (int d = 0; d < 24; ++d)
            assert_at_most(fabs((double)m.d.centroid[c * 24 + d] - (double)m.start[c * 24 + d] - (double)m.d.mean[d]), 1e-5);
    }
    km_check(&m);
}

/* The r-th empty cluster gets the token farthest from the centroid in the cluster of r-th largest inertia. */
static void test_reseed(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    km m = km_new(1, 1, 300, 24, 8, SVG2_F32, BHSD, &backend);
    fill_groups(&m.x, 4, 2);
    start_from_tokens(&m, 1);
    memcpy(m.start + 3 * 24, m.start + 0 * 24, 24 * 4); /* 3 and 6 get nothing */
    memcpy(m.start + 6 * 24, m.start + 1 * 24, 24 * 4);
    m.d.iterations = 1;
    km_run(&m, &backend);
    km_check(&m);
    assert_int_equal(m.d.size[3], 0);
    assert_int_equal(m.d.size[6], 0);
    const double *x = tensor_f64(&m.x);
    double mean[8 * 24], inertia[8] = {0}, far[8] = {0};
    int n[8], farthest[8] = {0}, first = -1, second = -1;
    ref_means(x, m.d.label, 300, 24, 8, mean, n);
    for (int t = 0; t < 300; ++t) {
        int c = m.d.label[t];
        double dist = 0;
        for (int d = 0; d < 24; ++d) {
            double e = x[t * 24 + d] - mean[c * 24 + d];
            dist += e * e;
        }
        inertia[c] += dist;
        if (dist > far[c]) { far[c] = dist; farthest[c] = t; }
    }
    for (int c = 0; c < 8; ++c) {
        if (first < 0 || inertia[c] > inertia[first]) { second = first; first = c; }
        else if (second < 0 || inertia[c] > inertia[second]) second = c;
    }
    int token[2] = {farthest[first], farthest[second]}, empty[2] = {3, 6};
    for (int i = 0; i < 2; ++i)
        for (int d = 0; d < 24; ++d)
            assert_at_most(fabs((double)m.d.centroid[empty[i] * 24 + d] - x[token[i] * 24 + d]), 1e-4);
    /* and with more iterations none stays empty: there are more distinct tokens than clusters */
    m.d.iterations = 6;
    km_run(&m, &backend);
    km_check(&m);
    for (int c = 0; c < 8; ++c) assert_true(m.d.size[c] > 0);
}

/* start and store may be one array; the result does not change. */
static void test_store_over_start(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    for (int dtype = 0; dtype < 3; dtype += 2) {
        km m = km_new(2, 2, 300, 40, 12, SVG2_F16, GAPS, &backend);
        fill_groups(&m.x, 4, 2);
        start_from_tokens(&m, 1);
        m.d.iterations = 2;
        m.d.store_dtype = (svg2_dtype)dtype;
        size_t bytes = 4 * 12 * 40 * dtype_bytes((svg2_dtype)dtype);
        if (dtype == SVG2_BF16) svg2_convert(m.start, SVG2_BF16, m.start, SVG2_BF16, 0);
        uint16_t *small = (uint16_t *)mem_new(bytes);
        if (dtype == SVG2_BF16) {
            svg2_convert(small, SVG2_BF16, m.start, SVG2_F32, 4 * 12 * 40);
            m.d.start = small;
        }
        km_run(&m, &backend);
        km_check(&m);
        uint64_t labels = mem_hash(m.d.label, 4 * 300 * 4), store = mem_hash(m.d.store, bytes);
        void *both = mem_new(bytes);
        memcpy(both, m.d.start, bytes);
        m.d.start = m.d.store = both;
        km_run(&m, &backend);
        assert_true(labels == mem_hash(m.d.label, 4 * 300 * 4) && store == mem_hash(both, bytes));
        mem_done();
    }
}

static void test_threads_same_bits(void **state)
{
    (void)state;
    uint64_t want = 0;
    for (int run = 0; run < 6; ++run) {
        int32_t threads = run ? run : 1;
        uint64_t seed = (uint64_t)run;
        svg2_parallel p = run >= 4 ? pool_scattered(&seed) : pool_threads(&threads);
        svg2_backend backend = svg2_cpu_backend(run ? &p : 0);
        km m = km_new(1, 2, 2500, 64, 50, SVG2_F32, BHSD, &backend);
        fill_groups(&m.x, 8, 1);
        m.d.iterations = 4;
        km_run(&m, &backend);
        uint64_t got = mem_hash(m.d.label, 2 * 2500 * 4) ^ mem_hash(m.d.centroid, 2 * 50 * 64 * 4) ^ mem_hash(m.d.store, 2 * 50 * 64 * 4);
        if (!run) want = got;
        assert_true(got == want);
        mem_done();
    }
}

/* bf16 products only propose candidates: every bit is that of f32 alone. */
static void test_bf16_same_bits(void **state)
{
    (void)state;
    static const int shapes[][3] = {{1500, 64, 40}, {700, 128, 300}, {997, 8, 21}, {400, 256, 7}};
    if (svg2_cpu_backend_simd(0, SVG2_SIMD_AVX512BF16).simd != SVG2_SIMD_AVX512BF16) skip();
    for (int i = 0; i < COUNT(shapes); ++i)
        for (int mean = 0; mean < 9; mean += 8) {
            uint64_t hash[2];
            for (int run = 0; run < 2; ++run) {
                svg2_backend backend = svg2_cpu_backend_simd(0, run ? SVG2_SIMD_AVX512BF16 : SVG2_SIMD_AVX512);
                km m = km_new(1, 2, shapes[i][0], shapes[i][1], shapes[i][2], SVG2_F32, BHSD, &backend);
                fill_groups(&m.x, 8, mean);
                m.d.iterations = 5;
                km_run(&m, &backend);
                hash[run] = mem_hash(m.d.label, (size_t)(2 * m.S) * 4) ^ mem_hash(m.d.store, (size_t)(2 * m.C * m.D) * 4);
                mem_done();
            }
            assert_true(hash[0] == hash[1]);
        }
}

static void test_bad_numbers(void **state)
{
    (void)state;
    static const double bad[] = {(double)NAN, (double)INFINITY, -(double)INFINITY, 3e38, -3e38};
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int i = 0; i < COUNT(bad); ++i)
            for (int many = 0; many < 3; ++many) {
                km m = km_new(1, 2, 150, 24, 9, SVG2_F32, BHSD, &backend);
                fill_groups(&m.x, 8, 1);
                for (int t = 0; t < 150; t += many == 0 ? 150 : many == 1 ? 7 : 1)
                    tensor_put(&m.x, tensor_at(&m.x, 0, 0, t, t % 24), bad[i]);
                km_run(&m, &backend);
                for (int h = 0; h < 2; ++h) {
                    int total = 0;
                    for (int t = 0; t < 150; ++t) assert_in_range(m.d.label[h * 150 + t], 0, 8);
                    for (int c = 0; c < 9; ++c) total += m.d.size[h * 9 + c];
                    assert_int_equal(total, 150);
                }
                for (int c = 0; c < 9 * 24; ++c) assert_true(isfinite(m.d.centroid[9 * 24 + c])); /* the other head */
                mem_done();
            }
    }
}

static void test_kmeans_rejects(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    km m = km_new(1, 2, 100, 24, 5, SVG2_F32, BHSD, &backend);
    fill_groups(&m.x, 8, 1);
    svg2_kmeans_desc good = m.d;
    char *work = (char *)mem_new(m.bytes + 64);
#define REJECT(change, code, name)                                                                           \
    do {                                                                                                     \
        m.d = good;                                                                                          \
        change;                                                                                              \
        if (!error_names(&m.err, svg2_kmeans(&backend, &m.d, work, m.bytes, &m.err), code, name)) fail_msg("%s", #change); \
    } while (0)
    REJECT(m.d.batch = 0, SVG2_ERR_RANGE, "batch");
    REJECT(m.d.heads = -3, SVG2_ERR_RANGE, "heads");
    REJECT(m.d.tokens = 0, SVG2_ERR_RANGE, "tokens");
    REJECT(m.d.head_dim = 23, SVG2_ERR_RANGE, "head_dim");
    REJECT(m.d.head_dim = 264, SVG2_ERR_RANGE, "head_dim");
    REJECT(m.d.head_dim = 0, SVG2_ERR_RANGE, "head_dim");
    REJECT(m.d.clusters = 0, SVG2_ERR_RANGE, "clusters");
    REJECT(m.d.clusters = -1, SVG2_ERR_RANGE, "clusters");
    REJECT(m.d.token_begin = -1, SVG2_ERR_RANGE, "token_begin|token_count");
    REJECT(m.d.token_count = 101, SVG2_ERR_RANGE, "token_count");
    REJECT(m.d.iterations = -1, SVG2_ERR_RANGE, "iterations");
    REJECT(m.d.iterations = 0, SVG2_ERR_RANGE, "iterations"); /* no start: nothing to assign to */
    REJECT(m.d.x = 0, SVG2_ERR_NULL, "x");
    REJECT(m.d.centroid = 0, SVG2_ERR_NULL, "centroid");
    REJECT(m.d.mean = 0, SVG2_ERR_NULL, "mean");
    REJECT(m.d.label = 0, SVG2_ERR_NULL, "label");
    REJECT(m.d.size = 0, SVG2_ERR_NULL, "size");
    REJECT(m.d.layout.dtype = (svg2_dtype)3, SVG2_ERR_DTYPE, "layout|x");
    REJECT(m.d.store_dtype = (svg2_dtype)9, SVG2_ERR_DTYPE, "store_dtype");
    REJECT(m.d.layout.stride_token = -24, SVG2_ERR_STRIDE, "layout|x");
    assert_true(error_names(&m.err, svg2_kmeans(&backend, 0, work, m.bytes, &m.err), SVG2_ERR_NULL, "desc"));
    assert_true(error_names(&m.err, svg2_kmeans(0, &good, work, m.bytes, &m.err), SVG2_ERR_NULL, "backend"));
    assert_true(error_names(&m.err, svg2_kmeans(&backend, &good, 0, m.bytes, &m.err), SVG2_ERR_NULL, "workspace"));
    assert_true(error_names(&m.err, svg2_kmeans(&backend, &good, work, m.bytes - 1, &m.err), SVG2_ERR_WORKSPACE, "workspace_bytes|workspace"));
    assert_true(error_names(&m.err, svg2_kmeans(&backend, &good, work + 32, m.bytes, &m.err), SVG2_ERR_ALIGN, "workspace"));
    assert_untouched(good.label, 2 * 100 * 4);
    assert_untouched(good.centroid, 2 * 5 * 24 * 4);
    assert_untouched(good.store, 2 * 5 * 24 * 4);
    assert_untouched(good.mean, 2 * 24 * 4);
    assert_untouched(good.size, 2 * 5 * 4);
    assert_untouched(work, m.bytes + 64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_assign_only_is_argmin), TEST(test_means_and_sizes), TEST(test_token_range), TEST(test_iterations_reduce_inertia),
        TEST(test_seeding_spreads),       TEST(test_seed_and_place),  TEST(test_ties),        TEST(test_close_centroids), TEST(test_keep_empty),
        TEST(test_reseed),                TEST(test_store_over_start), TEST(test_threads_same_bits), TEST(test_bf16_same_bits), TEST(test_bad_numbers),
        TEST(test_kmeans_rejects),
    };
    return cmocka_run_group_tests_name("kmeans", tests, 0, 0);
}
