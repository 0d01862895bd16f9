/* >>kmeans on the CUDA backend: beside the CPU where data are exact, beside float64 with bounds of the rounding where not.

   Rounding. Products take x' = x - mean (16-bit x: as it is, the mean goes into the bias; f32 x: rounded to bf16) and c', a
   centroid rounded to bf16 (f16 for f16 x, of c/2): |c - c'| <= r |c|, r = 2^-9 (f16: 2^-12, and 2^-24 an element). Labels are
   the nearest of the rounded centroids, up to f32 sums of head_dim + 1 terms; which the first bound asserts. It follows that
   the squared distance to the f32 centroid exceeds the least one by at most 2 (B(chosen) + B(nearest)), where
   B(c) = |x - x'||c| + |x'||c - c'| + |c - c'|(|c| + |c'|)/2 is what rounding changes in x.c - |c|^2/2. */
#include "device.h"
#include "test.h"
#include "wgmma.h"


typedef struct km {
    svg2_kmeans_desc d; /* host pointers; results of the last run */
    tensor x;
    int B, H, S, D, C, begin, count, shift; /* shift: elements between an aligned address and x on the device */
    float *start;
    svg2_error err;
} km;

static km km_new(int B, int H, int S, int D, int C, svg2_dtype dtype, tensor_order order)
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
    return m;
}
static void km_range(km *m, int begin, int count) { m->d.token_begin = m->begin = begin; m->d.token_count = m->count = count; }
static size_t km_heads(const km *m) { return (size_t)(m->B * m->H); }

/* On the device; results go to the host arrays of m. */
static void km_cuda(km *m)
{
    svg2_backend cuda = svg2_cuda_backend_arch(0, arch);
    svg2_kmeans_desc g = m->d;
    size_t n = km_heads(m), elements = n * (size_t)(m->C * m->D), unit = dtype_bytes(m->d.store_dtype);
    size_t shift = (size_t)m->shift * dtype_bytes(m->x.layout.dtype), bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_KMEANS, &m->d);
    char *shifted = (char *)mem_new(m->x.bytes + shift);
    memcpy(shifted + shift, m->x.data, m->x.bytes);
    g.x = (char *)device_copy(shifted, m->x.bytes + shift) + shift;
    if (m->d.start) g.start = device_copy(m->d.start, elements * unit);
    if (m->d.store) g.store = m->d.store == m->d.start ? (void *)(uintptr_t)g.start : device_new(elements * unit);
    g.centroid = (float *)device_new(elements * 4);
    g.mean = (float *)device_new(n * (size_t)m->D * 4);
    g.label = (int32_t *)device_new(n * (size_t)m->S * 4);
    g.size = (int32_t *)device_new(n * (size_t)m->C * 4);
    svg2_result r = svg2_kmeans(&cuda, &g, device_new(bytes), bytes, &m->err);
    if (r != SVG2_OK) fail_msg("svg2_kmeans: %s (%s: %s)", svg2_result_string(r), m->err.field, m->err.text);
    device_read(m->d.centroid, g.centroid, elements * 4);
    device_read(m->d.mean, g.mean, n * (size_t)m->D * 4);
    device_read(m->d.label, g.label, n * (size_t)m->S * 4);
    device_read(m->d.size, g.size, n * (size_t)m->C * 4);
    if (m->d.store) device_read(m->d.store, g.store, elements * unit);
    device_read(shifted, (const char *)g.x - shift, m->x.bytes + shift); /* x is only read */
    assert_memory_equal(shifted + shift, m->x.data, m->x.bytes);
    device_reset();
}
/* The same on the CPU, into arrays of its own. */
static svg2_kmeans_desc km_cpu(const km *m)
{
    svg2_backend cpu = svg2_cpu_backend_simd(0, SVG2_SIMD_SCALAR);
    svg2_kmeans_desc d = m->d;
    svg2_error err;
    size_t n = km_heads(m), elements = n * (size_t)(m->C * m->D), bytes = svg2_stage_workspace_bytes(&cpu, SVG2_STAGE_KMEANS, &m->d);
    d.centroid = (float *)mem_new(elements * 4);
    if (d.store) d.store = mem_new(elements * dtype_bytes(d.store_dtype));
    d.mean = (float *)mem_new(n * (size_t)m->D * 4);
    d.label = (int32_t *)mem_new(n * (size_t)m->S * 4);
    d.size = (int32_t *)mem_new(n * (size_t)m->C * 4);
    assert_ok(svg2_kmeans(&cpu, &d, mem_new(bytes), bytes, &err));
    return d;
}
static uint64_t km_hash(const km *m)
{
    size_t n = km_heads(m), elements = n * (size_t)(m->C * m->D);
    return mem_hash(m->d.label, n * (size_t)m->S * 4) ^ 3 * mem_hash(m->d.centroid, elements * 4)
         ^ 5 * (m->d.store ? mem_hash(m->d.store, elements * dtype_bytes(m->d.store_dtype)) : 0) ^ 7 * mem_hash(m->d.mean, n * (size_t)m->D * 4)
         ^ 11 * mem_hash(m->d.size, n * (size_t)m->C * 4);
}
static void assert_same_as(const km *m, const svg2_kmeans_desc *cpu, int with_centroids)
{
    size_t n = km_heads(m), elements = n * (size_t)(m->C * m->D);
    assert_memory_equal(m->d.mean, cpu->mean, n * (size_t)m->D * 4);
    assert_memory_equal(m->d.label, cpu->label, n * (size_t)m->S * 4);
    assert_memory_equal(m->d.size, cpu->size, n * (size_t)m->C * 4);
    for (size_t c = 0; c < n * (size_t)m->C; ++c)
        if (with_centroids || cpu->size[c]) assert_memory_equal(m->d.centroid + c * (size_t)m->D, cpu->centroid + c * (size_t)m->D, (size_t)m->D * 4);
    if (with_centroids && m->d.store) assert_memory_equal(m->d.store, cpu->store, elements * dtype_bytes(m->d.store_dtype));
}

/* ---- data ---- */
/* Tokens around 11 centers, spread 0.3, common mean. */
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
}
static double at64(const km *m, int h, int t, int d) { return tensor_get(&m->x, tensor_at(&m->x, h / m->H, h % m->H, t, d)); }
static void put(km *m, int h, int t, int d, double v) { tensor_put(&m->x, tensor_at(&m->x, h / m->H, h % m->H, t, d), v); }

static void start_from_tokens(km *m, uint64_t seed)
{
    for (int h = 0; h < m->B * m->H; ++h)
        for (int d = 0; d < m->D; ++d) {
            double mean = 0;
            uint64_t s = seed + (uint64_t)h;
            for (int t = m->begin; t < m->begin + m->count; ++t) mean += at64(m, h, t, d) / m->count;
            for (int c = 0; c < m->C; ++c)
                m->start[(h * m->C + c) * m->D + d] = (float)(at64(m, h, m->begin + rnd_int(&s, m->count), d) - mean);
        }
    m->d.start = m->start;
}
/* Integers below 2^7 whose mean is an integer: token t and its opposite t + S/2 lie around it; S odd: the last token is it. */
static void fill_integers(km *m, uint64_t seed, int spread, int mean)
{
    uint64_t s = seed;
    for (int h = 0; h < m->B * m->H; ++h)
        for (int t = 0; t < m->count; ++t)
            for (int d = 0; d < m->D; ++d) {
                int half = m->count / 2, around = (d & 1 ? mean : -mean);
                if (t < half) put(m, h, m->begin + t, d, around + rnd_int(&s, 2 * spread + 1) - spread);
                else if (t < 2 * half) put(m, h, m->begin + t, d, 2 * around - at64(m, h, m->begin + t - half, d));
                else put(m, h, m->begin + t, d, around);
            }
    for (int i = 0; i < m->B * m->H * m->C * m->D; ++i) m->start[i] = (float)(rnd_int(&s, 2 * spread + 1) - spread);
    m->d.start = m->start;
}

/* ---- checks ---- */
static double start_at(const km *m, int h, int c, int d)
{
    size_t i = (size_t)((h * m->C + c) * m->D + d);
    if (m->d.store_dtype == SVG2_F32) return (double)((const float *)m->d.start)[i];
    uint16_t bits = ((const uint16_t *)m->d.start)[i];
    return m->d.store_dtype == SVG2_F16 ? f16_value(bits) : bf16_value(bits);
}
/* Labels of one round from given centroids: both bounds of the top of this file. */
static void check_nearest(const km *m)
{
    int is_f16 = m->x.layout.dtype == SVG2_F16, is_f32 = m->x.layout.dtype == SVG2_F32, D = m->D;
    double *c = (double *)mem_new(sizeof(double) * (size_t)(m->C * D)), *r = (double *)mem_new(sizeof(double) * (size_t)(m->C * D));
    double *x = (double *)mem_new(sizeof(double) * (size_t)D), *xr = (double *)mem_new(sizeof(double) * (size_t)D);
    for (int h = 0; h < m->B * m->H; ++h) {
        const float *mean = m->d.mean + h * D;
        for (int i = 0; i < m->C; ++i)
            for (int d = 0; d < D; ++d) {
                c[i * D + d] = start_at(m, h, i, d);
                r[i * D + d] = is_f16 ? 2 * f16_value(f16_bits(c[i * D + d] / 2)) : bf16_value(bf16_bits(c[i * D + d]));
            }
        for (int t = m->begin; t < m->begin + m->count; ++t) {
            double best = -1e300, got = -1e300, near = 1e300, chosen = 1e300, noise = 0, slack_near = 0, slack_chosen = 0, lx = 0, dx = 0;
            for (int d = 0; d < D; ++d) {
                double v = at64(m, h, t, d);
                x[d] = v - (double)mean[d];
                xr[d] = is_f32 ? bf16_value(bf16_bits((double)((float)v - mean[d]))) : x[d];
                lx += xr[d] * xr[d];
                dx += (x[d] - xr[d]) * (x[d] - xr[d]);
            }
            lx = sqrt(lx), dx = sqrt(dx);
            for (int i = 0; i < m->C; ++i) {
                double score = 0, terms = 0, dist = 0, lc = 0, lr = 0, dc = 0;
                for (int d = 0; d < D; ++d) {
                    double a = c[i * D + d], q = r[i * D + d];
                    score += xr[d] * q - q * q / 2;
                    terms += fabs((is_f32 ? xr[d] : x[d] + (double)mean[d]) * q) + (is_f32 ? 0 : fabs((double)mean[d] * q)) + q * q / 2;
                    dist += (x[d] - a) * (x[d] - a);
                    lc += a * a, lr += q * q, dc += (a - q) * (a - q);
                }
                double slack = dx * sqrt(lc) + lx * sqrt(dc) + sqrt(dc) * (sqrt(lc) + sqrt(lr)) / 2;
                if (terms > noise) noise = terms;
                if (score > best) best = score;
                if (dist < near) near = dist, slack_near = slack;
                if (i == m->d.label[h * m->S + t]) got = score, chosen = dist, slack_chosen = slack;
            }
            noise *= (D + 8) * 0x1p-23; /* f32 sums of D + 1 terms, of which the hardware may cut instead of rounding */
            assert_at_most(best - got, noise);
            assert_at_most(chosen - near, 2 * (slack_near + slack_chosen) + 2 * noise);
        }
    }
}
/* Sizes, means and stored centroids agree with the labels. Returns the inertia of all heads. */
static double check_means(const km *m)
{
    double *mean = (double *)mem_new(sizeof(double) * (size_t)(m->C * m->D)), *x = (double *)mem_new(sizeof(double) * (size_t)(m->count * m->D));
    double inertia = 0;
    int *n = (int *)mem_new(sizeof(int) * (size_t)m->C);
    for (int h = 0; h < m->B * m->H; ++h) {
        const int32_t *label = m->d.label + h * m->S;
        double top = 0;
        for (int t = 0; t < m->S; ++t) {
            if (t < m->begin || t >= m->begin + m->count) assert_untouched(&label[t], 4);
            else assert_in_range(label[t], 0, m->C - 1);
        }
        for (int t = 0; t < m->count; ++t)
            for (int d = 0; d < m->D; ++d) top = fmax(top, fabs(x[t * m->D + d] = at64(m, h, m->begin + t, d)));
        ref_means(x, label + m->begin, m->count, m->D, m->C, mean, n);
        for (int c = 0; c < m->C; ++c) {
            assert_int_equal(m->d.size[h * m->C + c], n[c]);
            for (int d = 0; d < m->D; ++d) {
                int i = (h * m->C + c) * m->D + d;
                double got = (double)m->d.centroid[i], relative = got - (double)m->d.mean[h * m->D + d];
                if (n[c]) assert_at_most(fabs(got - mean[c * m->D + d]), 2e-6 * top);
                if (!m->d.store || (m->d.start && m->d.iterations == 0)) continue;
                if (m->d.store_dtype == SVG2_F32) assert_at_most(fabs((double)((float *)m->d.store)[i] - relative), 2e-6 * top);
                else if (m->d.store_dtype == SVG2_BF16)
                    assert_at_most(fabs(bf16_value(((uint16_t *)m->d.store)[i]) - relative), 0x1p-8 * fabs(relative) + 2e-6 * top);
                else assert_at_most(fabs(f16_value(((uint16_t *)m->d.store)[i]) - relative), 0x1p-11 * fabs(relative) + 2e-6 * top);
            }
        }
        for (int d = 0; d < m->D; ++d) {
            double all = 0;
            for (int t = 0; t < m->count; ++t) all += x[t * m->D + d];
            assert_at_most(fabs((double)m->d.mean[h * m->D + d] - all / m->count), 2e-6 * top);
        }
        for (int t = 0; t < m->count; ++t)
            for (int d = 0; d < m->D; ++d) {
                double e = x[t * m->D + d] - mean[label[m->begin + t] * m->D + d];
                inertia += e * e;
            }
    }
    return inertia;
}

static const int dims[] = {8, 40, 64, 72, 96, 128, 160, 256}, sizes[] = {1, 7, 63, 65, 130, 333};

/* ---- tests ---- */
static void assign_is_nearest(void **state)
{
    (void)state;
    static const int clusters[] = {2, 3, 16, 37, 65, 130};
    for (int i = 0; i < COUNT(dims); ++i)
        for (int n = 0; n < COUNT(sizes); ++n) {
            int C = clusters[(i + 2 * n) % COUNT(clusters)], S = sizes[n];
            if (TEST_SLOW_BUILD && (i + n) % 4) continue;
            km m = km_new(1 + n % 2, 1 + i % 2, S, dims[i], C, (svg2_dtype)((i + n) % 3), (tensor_order)(n % 3));
            m.shift = (i + n) % 5 == 4;
            fill_groups(&m.x, (uint64_t)(i + 10 * n), (i & 1) ? 8 : 0);
            start_from_tokens(&m, 3);
            m.d.iterations = 0;
            km_cuda(&m);
            check_nearest(&m);
            assert_memory_equal(m.d.store, m.start, km_heads(&m) * (size_t)(C * m.D) * 4); /* kept */
            check_means(&m);
            mem_done();
        }
}

/* Everything exact: the CPU's bits. Ties are frequent here, and go to the lower index. */
static void integers_have_the_bits_of_the_cpu(void **state)
{
    (void)state;
    static const int clusters[] = {2, 5, 17, 40, 100, 64};
    for (int i = 0; i < COUNT(dims); ++i)
        for (int n = 0; n < COUNT(sizes); ++n) {
            int C = clusters[(i + n) % COUNT(clusters)];
            if (TEST_SLOW_BUILD && (i + n) % 4 != 1) continue;
            km m = km_new(1 + n % 2, 1 + i % 2, sizes[n], dims[i], C, (svg2_dtype)((i + n / 2) % 3), (tensor_order)((n + i) % 3));
            m.shift = (i + n) % 4 == 3;
            fill_integers(&m, (uint64_t)(9 * i + n), n % 2 ? 3 : 1, (i % 3) * 20);
            m.d.iterations = n % 2;
            m.d.keep_empty = 1;
            m.d.store_dtype = SVG2_F32;
            km_cuda(&m);
            svg2_kmeans_desc cpu = km_cpu(&m);
            assert_same_as(&m, &cpu, 1);
            mem_done();
        }
}

/* Groups far apart, centroids near them: labels are beyond doubt, whatever the rounding. */
static void wide_gaps_have_the_labels_of_the_cpu(void **state)
{
    (void)state;
    for (int dtype = 0; dtype < 3; ++dtype) {
        km m = km_new(1, 2, TEST_SLOW_BUILD ? 150 : 700, 64, 11, (svg2_dtype)dtype, BSHD);
        fill_groups(&m.x, 3, 2);
        for (int h = 0; h < 2; ++h)
            for (int c = 0; c < 11; ++c) {
                uint64_t s = 3 + (uint64_t)h * 1009u + (uint64_t)c;
                for (int d = 0; d < 64; ++d) m.start[(h * 11 + c) * 64 + d] = (float)(rnd_normal(&s) + (d & 1 ? 2 : -2));
            }
        for (int h = 0; h < 2; ++h)
            for (int d = 0; d < 64; ++d) {
                double mean = 0;
                for (int t = 0; t < m.S; ++t) mean += at64(&m, h, t, d) / m.S;
                for (int c = 0; c < 11; ++c) m.start[(h * 11 + c) * 64 + d] -= (float)mean;
            }
        m.d.start = m.start;
        m.d.iterations = 4;
        km_cuda(&m);
        svg2_kmeans_desc cpu = km_cpu(&m);
        assert_memory_equal(m.d.label, cpu.label, 2 * (size_t)m.S * 4);
        check_means(&m);
        mem_done();
    }
}

static void means_and_sizes(void **state)
{
    (void)state;
    static const int shapes[][4] = {{1, 8, 1, 1},    {1, 8, 5, 2},     {7, 40, 3, 3},    {63, 64, 63, 2},   {65, 72, 90, 4},   {997, 96, 31, 5},
                                    {1500, 128, 100, 3}, {300, 256, 17, 1}, {130, 128, 300, 2}, {1200, 64, 2, 2}, {1300, 8, 12, 3}, {333, 160, 50, 2}};
    for (int i = 0; i < COUNT(shapes); ++i)
        for (int dtype = 0; dtype < 3; ++dtype) {
            int S = TEST_SLOW_BUILD && shapes[i][0] > 300 ? 260 : shapes[i][0];
            if ((i + dtype) % (TEST_SLOW_BUILD ? 3 : 2)) continue;
            km m = km_new(1 + i % 2, 2 - i % 2, S, shapes[i][1], shapes[i][2], (svg2_dtype)dtype, (tensor_order)(i % 3));
            fill_groups(&m.x, (uint64_t)(i + 7), dtype == 0 ? 8 : 1);
            m.shift = i % 5 == 1;
            m.d.iterations = shapes[i][3];
            m.d.store_dtype = (svg2_dtype)((i + dtype) % 3);
            km_cuda(&m);
            check_means(&m);
            mem_done();
        }
}

/* Lopsided sizes: one giant that takes many pieces, clusters of one token, empty ones. Integers, so to the bit. */
static void giant_and_tiny_clusters(void **state)
{
    (void)state;
    int S = TEST_SLOW_BUILD ? 400 : 1700;
    km m = km_new(1, 2, S, 40, 150, SVG2_BF16, BHSD);
    fill_integers(&m, 5, 1, 10);
    for (int i = 0; i < 2 * 150 * 40; ++i) m.start[i] = (float)(((i / 40) % 150 + 3) * (i % 2 ? 3 : -3)); /* far out */
    for (int h = 0; h < 2; ++h) {
        for (int d = 0; d < 40; ++d) m.start[(h * 150 + 77) * 40 + d] = 0; /* near all */
        for (int c = 0; c < 30; ++c) /* a token and its opposite, each with a centroid of its own */
            for (int d = 0; d < 40; ++d) {
                double v = d == c ? 90 : 0;
                put(&m, h, 3 * c + h, d, (d & 1 ? 10 : -10) + v);
                put(&m, h, 3 * c + h + S / 2, d, (d & 1 ? 10 : -10) - v);
                m.start[(h * 150 + 2 * c) * 40 + d] = (float)v;
                m.start[(h * 150 + 2 * c + 1) * 40 + d] = (float)-v;
            }
    }
    m.d.iterations = 1;
    m.d.keep_empty = 1;
    km_cuda(&m);
    svg2_kmeans_desc cpu = km_cpu(&m);
    assert_same_as(&m, &cpu, 1);
    assert_int_equal(m.d.size[77], S - 60);
    assert_int_equal(m.d.size[0], 1);
    assert_int_equal(m.d.size[149], 0);
}

/* Tokens outside of the range are neither read (NaN there) nor labelled. */
static void token_range(void **state)
{
    (void)state;
    for (int begin = 0; begin < 100; begin += 33)
        for (int dtype = 0; dtype < 3; ++dtype) {
            if (TEST_SLOW_BUILD && dtype != begin / 33 % 3) continue;
            km m = km_new(2, 2, 300, 64, 9, (svg2_dtype)dtype, dtype == 1 ? GAPS : BSHD);
            fill_groups(&m.x, 5, 2);
            km_range(&m, begin, 201);
            for (int h = 0; h < 4; ++h)
                for (int t = 0; t < 300; ++t)
                    if (t < begin || t >= begin + 201) put(&m, h, t, t % 64, (double)NAN);
            km_cuda(&m);
            check_means(&m);
            mem_done();
        }
}

/* The same head gives the same bits wherever it stands. */
static void place_of_a_head(void **state)
{
    (void)state;
    km a = km_new(2, 3, 300, 40, 12, SVG2_F32, BHSD), b = km_new(3, 2, 300, 40, 12, SVG2_F32, BHSD);
    fill_groups(&a.x, 1, 1);
    memcpy(b.x.data, a.x.data, a.x.bytes); /* the same six heads as three batch entries of two */
    km_cuda(&a);
    km_cuda(&b);
    assert_true(km_hash(&a) == km_hash(&b));
    uint64_t first = km_hash(&a);
    km_cuda(&a);
    assert_true(first == km_hash(&a));
    a.d.seed = 43;
    km_cuda(&a);
    assert_true(first != km_hash(&a));
}

/* Seeds differ from the CPU's (another order of the sums), their quality does not. */
static void seeding_is_as_good(void **state)
{
    (void)state;
    static const struct { int S, D, C; svg2_dtype dtype; double mean; } shapes[] = {
        {1500, 64, 22, SVG2_F32, 3}, {1200, 64, 40, SVG2_BF16, 4}, {900, 128, 11, SVG2_F16, 0}, {800, 8, 100, SVG2_F32, 0}, {2500, 16, 7, SVG2_BF16, 1}};
    double cuda = 0, cpu = 0;
    for (int i = 0; i < COUNT(shapes); ++i) {
        int S = TEST_SLOW_BUILD ? shapes[i].S / 4 : shapes[i].S;
        if (TEST_SLOW_BUILD && i % 2) continue;
        km m = km_new(1, 2, S, shapes[i].D, shapes[i].C, shapes[i].dtype, BHSD);
        fill_groups(&m.x, (uint64_t)i, shapes[i].mean);
        for (int seed = 0; seed < (TEST_SLOW_BUILD ? 1 : 2); ++seed) {
            m.d.seed = (uint64_t)seed;
            m.d.iterations = TEST_SLOW_BUILD ? 4 : 10;
            km_cuda(&m);
            double here = check_means(&m);
            km ref = m;
            ref.d = km_cpu(&m);
            double there = check_means(&ref);
            cuda += here / there, cpu += 1;
            assert_at_most(here, there * (TEST_SLOW_BUILD ? 1.1 : 1.05));
        }
        mem_done();
    }
    assert_at_most(cuda, cpu * (TEST_SLOW_BUILD ? 1.05 : 1.02));
}

/* As many clusters as tokens and more, as many as samples: every sample is drawn once before any is drawn twice. */
static void seeding_finds_every_token(void **state)
{
    (void)state;
    for (int i = 0; i < 3; ++i) {
        int S = i == 0 ? 40 : i == 1 ? 9 : 1, C = 60;
        km m = km_new(1, 2, S, 16, C, (svg2_dtype)i, BHSD);
        uint64_t s = 5;
        for (int h = 0; h < 2; ++h)
            for (int t = 0; t < S; ++t)
                for (int d = 0; d < 16; ++d) put(&m, h, t, d, rnd_int(&s, 20) - 10);
        m.d.iterations = 8;
        km_cuda(&m);
        assert_at_most(check_means(&m), 1e-9);
        mem_done();
    }
}

static void iterations_reduce_inertia(void **state)
{
    (void)state;
    double last = 1e300;
    int S = TEST_SLOW_BUILD ? 300 : 1500;
    for (int n = 1; n <= 12; n = n * 3 / 2 + 1) {
        km m = km_new(1, 1, S, 64, 20, SVG2_F32, BHSD);
        fill_groups(&m.x, 9, 3);
        m.d.iterations = n;
        km_cuda(&m);
        double inertia = check_means(&m);
        assert_at_most(inertia, last * (1 + 1e-4));
        last = inertia;
        mem_done();
    }
    /* 11 true groups of spread 0.3 and 20 clusters: a good start misses one at most */
    assert_at_most(last / S, 64 * 0.3 * 0.3 * 1.4);
}

/* Rounds after the last change of a head do nothing to it, whatever the others do. */
static void done_heads_rest(void **state)
{
    (void)state;
    uint64_t hash[3];
    for (int run = 0; run < 3; ++run) {
        km m = km_new(1, 3, 200, 24, 6, SVG2_BF16, BSHD);
        fill_groups(&m.x, 4, 0);
        for (int t = 0; t < 200; ++t) /* head 1: six equal heaps, done at once */
            for (int d = 0; d < 24; ++d) put(&m, 1, t, d, d == t % 6 ? 8 : 0);
        m.d.iterations = run == 0 ? 30 : run == 1 ? 45 : 31;
        km_cuda(&m);
        check_means(&m);
        hash[run] = km_hash(&m);
        mem_done();
    }
    assert_true(hash[0] == hash[1] && hash[0] == hash[2]);
}

static void keep_empty(void **state)
{
    (void)state;
    for (int dtype = 0; dtype < 3; ++dtype) {
        km m = km_new(1, 1, 300, 24, 12, (svg2_dtype)dtype, BHSD);
        fill_groups(&m.x, 4, 2);
        start_from_tokens(&m, 1);
        for (int c = 6; c < 12; ++c) memcpy(m.start + c * 24, m.start + (c - 6) * 24, 24 * 4); /* duplicates get nothing */
        m.d.keep_empty = 1;
        m.d.iterations = 1;
        km_cuda(&m);
        for (int c = 6; c < 12; ++c) {
            assert_int_equal(m.d.size[c], 0);
            for (int d = 0; d < 24; ++d) assert_true(m.d.centroid[c * 24 + d] == m.start[c * 24 + d] + m.d.mean[d]);
        }
        check_means(&m);
        mem_done();
    }
}

/* Pairs of tokens around integer centers, so that means and distances are exact, and with them donors and farthest tokens:
   the bits of the CPU. Empty clusters in several places; clusters of equal inertia; of one token and of equal tokens, who
   cannot give; more empty clusters than donors. */
static void reseeding_has_the_bits_of_the_cpu(void **state)
{
    (void)state;
    for (int i = 0; i < 12; ++i) {
        int groups = i < 4 ? 6 : i < 8 ? 60 : 3, empty = i < 4 ? 2 : i < 8 ? 45 : 300, C = groups + empty, D = i % 2 ? 24 : 136, H = 2, S = 0;
        if (TEST_SLOW_BUILD && i % 3) continue;
        uint64_t s = (uint64_t)i + 3;
        int pairs[60];
        int mirrored = groups / 2; /* centers come in opposite pairs, of the same number of tokens: mean 0 */
        for (int g = 0; g < groups; ++g) {
            pairs[g] = g >= mirrored && g < 2 * mirrored ? pairs[g - mirrored] : g % 7 == 5 ? 1 : 1 + rnd_int(&s, i % 4 == 3 ? 40 : 4);
            S += 2 * pairs[g];
        }
        S += 4; /* at the mean: one cluster of four equal tokens */
        km m = km_new(1, H, S, D, C + 1, (svg2_dtype)(i % 3), (tensor_order)(i % 3));
        for (int h = 0; h < H; ++h) {
            int t = 0, *kind = (int *)mem_new(sizeof(int) * (size_t)(C + 1));
            for (int c = 0; c <= C; ++c) kind[c] = c <= groups ? c : -1; /* which group a cluster starts from */
            for (int c = C; c > 0; --c) { int o = rnd_int(&s, c + 1), k = kind[c]; kind[c] = kind[o], kind[o] = k; }
            for (int g = 0; g < groups; ++g) {
                int o = g % mirrored, sign = g < mirrored ? 1 : -1, center = g < 2 * mirrored ? 100 : 0;
                for (int p = 0; p < pairs[g]; ++p, t += 2)
                    for (int d = 0; d < D; ++d) {
                        int v = d == o % D ? sign * (center - 20 * (o / D)) : d == (o + 7) % D ? sign * center / 2 : 0, e = o % 5 == 4 ? 0 : rnd_int(&s, 5) - 2;
                        put(&m, h, t, d, v + e);
                        put(&m, h, t + 1, d, v - e);
                    }
            }
            for (; t < S; ++t) /* the four */
                for (int d = 0; d < D; ++d) put(&m, h, t, d, 0);
            for (int c = 0; c <= C; ++c) {
                int g = kind[c] >= 0 ? kind[c] : -1, o = g % mirrored, sign = g < mirrored ? 1 : -1, center = g < 2 * mirrored ? 100 : 0;
                for (int d = 0; d < D; ++d)
                    m.start[(h * (C + 1) + c) * D + d] = g < 0          ? 120 /* nobody's */
                                                         : g == groups  ? 0
                                                         : d == o % D   ? (float)(sign * (center - 20 * (o / D)))
                                                         : d == (o + 7) % D ? (float)(sign * center / 2)
                                                                        : 0;
            }
        }
        m.d.start = m.start;
        m.d.iterations = i % 4 == 2 ? 0 : 1;
        km_cuda(&m);
        svg2_kmeans_desc cpu = km_cpu(&m);
        for (int d = 0; d < D; ++d) assert_true(m.d.mean[d] == 0);
        assert_same_as(&m, &cpu, 1);
        mem_done();
    }
}

/* On other data: no cluster stays empty where there are more distinct tokens than clusters. */
static void reseeding_fills(void **state)
{
    (void)state;
    km m = km_new(1, 1, 300, 24, 8, SVG2_F32, BHSD);
    fill_groups(&m.x, 4, 2);
    start_from_tokens(&m, 1);
    memcpy(m.start + 3 * 24, m.start + 0 * 24, 24 * 4);
    memcpy(m.start + 6 * 24, m.start + 1 * 24, 24 * 4);
    m.d.iterations = 6;
    km_cuda(&m);
    check_means(&m);
    for (int c = 0; c < 8; ++c) assert_true(m.d.size[c] > 0);
}

/* start and store may be one array; 0 iterations keep it, or copy it. */
static void store_and_start(void **state)
{
    (void)state;
    for (int dtype = 0; dtype < 3; ++dtype)
        for (int iterations = 0; iterations < 3; ++iterations) {
            km m = km_new(1, 2, 200, 40, 12, SVG2_F16, GAPS);
            size_t elements = 2 * 12 * 40, bytes = elements * dtype_bytes((svg2_dtype)dtype);
            fill_groups(&m.x, 4, 2);
            start_from_tokens(&m, 1);
            void *start = mem_new(bytes), *both = mem_new(bytes);
            svg2_convert(start, (svg2_dtype)dtype, m.start, SVG2_F32, elements);
            memcpy(both, start, bytes);
            m.d.start = start;
            m.d.iterations = iterations;
            m.d.store_dtype = (svg2_dtype)dtype;
            km_cuda(&m);
            check_means(&m);
            if (iterations == 0) assert_memory_equal(m.d.store, start, bytes);
            if (iterations < 2) check_nearest(&m);
            uint64_t labels = mem_hash(m.d.label, 2 * 200 * 4), store = mem_hash(m.d.store, bytes);
            m.d.start = m.d.store = both;
            km_cuda(&m);
            assert_true(labels == mem_hash(m.d.label, 2 * 200 * 4) && store == mem_hash(both, bytes));
            m.d.store = 0;
            m.d.start = start;
            km_cuda(&m);
            assert_true(labels == mem_hash(m.d.label, 2 * 200 * 4));
            mem_done();
        }
}

/* What dense calls ask for. */
static void one_cluster(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT(dims); ++i)
        for (int dtype = 0; dtype < 3; ++dtype) {
            km m = km_new(1, 2, sizes[(i + dtype) % 6] + 20, dims[i], 1, (svg2_dtype)dtype, (tensor_order)(i % 3));
            fill_groups(&m.x, 4, 2);
            km_range(&m, i, sizes[(i + dtype) % 6]);
            m.d.start = i % 2 ? m.start : 0;
            memset(m.start, 0, km_heads(&m) * (size_t)m.D * 4);
            m.d.iterations = i % 2 ? 0 : 2;
            km_cuda(&m);
            check_means(&m);
            put(&m, 1, i, 3, (double)INFINITY);
            km_cuda(&m);
            for (int t = i; t < i + m.count; ++t) assert_int_equal(m.d.label[m.S + t], 0);
            for (int d = 0; d < m.D; ++d) assert_true(m.d.mean[m.D + d] == 0 && (d == 3 ? !isfinite(m.d.centroid[m.D + d]) : isfinite(m.d.centroid[d])));
            mem_done();
        }
}

static void ties_go_to_the_lower_index(void **state)
{
    (void)state;
    for (int dtype = 0; dtype < 3; ++dtype) {
        km m = km_new(1, 1, 200, 16, 145, (svg2_dtype)dtype, BHSD);
        fill_groups(&m.x, 4, 0);
        start_from_tokens(&m, 1);
        for (int c = 0; c < 145; ++c) memcpy(m.start + c * 16, m.start + c % 9 * 16, 16 * 4); /* 9 different, 16 times */
        m.d.iterations = 0;
        m.d.keep_empty = 1;
        km_cuda(&m);
        for (int t = 0; t < 200; ++t) assert_in_range(m.d.label[t], 0, 8);
        for (int t = 0; t < 200; ++t) /* all tokens equal: distances tie exactly */
            for (int d = 0; d < 16; ++d) put(&m, 0, t, d, 1.5);
        memset(m.start, 0, 145 * 16 * 4);
        km_cuda(&m);
        for (int t = 0; t < 200; ++t) assert_int_equal(m.d.label[t], 0);
        mem_done();
    }
}

/* The whole range of f16: relative to the mean a centroid may be out of it. */
static void large_f16(void **state)
{
    (void)state;
    km m = km_new(1, 1, 130, 16, 8, SVG2_F16, BHSD);
    uint64_t s = 3;
    for (int t = 0; t < 130; ++t)
        for (int d = 0; d < 16; ++d) put(&m, 0, t, d, (t == 7 ? -65504 : 65504) * (1 - 0.001 * rnd_int(&s, 10)));
    start_from_tokens(&m, 1);
    for (int d = 0; d < 16; ++d) m.start[5 * 16 + d] = (float)(-65504 - 64000);
    m.d.iterations = 0;
    km_cuda(&m);
    check_nearest(&m);
    assert_int_equal(m.d.label[7], 5);
}

static void many_clusters(void **state)
{
    (void)state;
    int C = 4200, S = TEST_SLOW_BUILD ? 70 : 500;
    km m = km_new(1, 1, S, 8, C, SVG2_F32, BHSD);
    fill_groups(&m.x, 4, 0);
    start_from_tokens(&m, 1);
    m.d.iterations = 0;
    m.d.keep_empty = 1;
    km_cuda(&m);
    check_nearest(&m);
    check_means(&m);
    m.d.iterations = 2; /* and with reseeding: more empty clusters than donors */
    m.d.keep_empty = 0;
    km_cuda(&m);
    check_means(&m);
    if (TEST_SLOW_BUILD) return;
    fill_integers(&m, 4, 9, 0);
    m.d.iterations = 1;
    m.d.keep_empty = 1;
    km_cuda(&m);
    svg2_kmeans_desc cpu = km_cpu(&m);
    assert_same_as(&m, &cpu, 1);
}

static void bad_numbers(void **state)
{
    (void)state;
    static const double bad[] = {(double)NAN, (double)INFINITY, -(double)INFINITY, 3e38, -3e38};
    for (int i = 0; i < COUNT(bad); ++i)
        for (int many = 0; many < 3; ++many)
            for (int dtype = 0; dtype < 3; ++dtype) {
                if (TEST_SLOW_BUILD && (i + many + dtype) % 3) continue;
                km m = km_new(1, 2, 150, 24, 9, (svg2_dtype)dtype, dtype == 1 ? GAPS : BHSD);
                fill_groups(&m.x, 8, 1);
                m.d.store_dtype = (svg2_dtype)((dtype + i) % 3);
                m.d.iterations = 2;
                km_cuda(&m);
                uint64_t other = mem_hash(m.d.label + 150, 150 * 4) ^ mem_hash(m.d.centroid + 9 * 24, 9 * 24 * 4);
                for (int t = 0; t < 150; t += many == 0 ? 150 : many == 1 ? 7 : 1) put(&m, 0, t, t % 24, bad[i]);
                for (int start = 0; start < 2; ++start) {
                    if (start) { /* centroids to start from may be bad as well */
                        m.d.start = m.start;
                        m.d.store_dtype = SVG2_F32;
                        for (int c = 0; c < 2 * 9 * 24; ++c) m.start[c] = (float)(c % 5 - 2);
                        m.start[3 * 24 + 2] = (float)bad[i];
                    }
                    km_cuda(&m);
                    for (int h = 0; h < 2; ++h) {
                        int total = 0;
                        for (int t = 0; t < 150; ++t) assert_in_range(m.d.label[h * 150 + t], 0, 8);
                        for (int c = 0; c < 9; ++c) total += m.d.size[h * 9 + c];
                        assert_int_equal(total, 150);
                    }
                    for (int t = 0; t < 150 && isnan(bad[i]); t += many == 0 ? 150 : many == 1 ? 7 : 1) assert_int_equal(m.d.label[t], 0);
                    for (int c = 0; c < 9 * 24; ++c) assert_true(isfinite(m.d.centroid[9 * 24 + c])); /* the other head */
                    if (!start) assert_true(other == (mem_hash(m.d.label + 150, 150 * 4) ^ mem_hash(m.d.centroid + 9 * 24, 9 * 24 * 4)));
                    /* a bad token spoils the centroid that it went to, and so is noticed */
                    if (dtype != SVG2_BF16 && fabs(bad[i]) < 1e38) continue;
                    if (!isfinite(bad[i])) {
                        int noticed = 0;
                        for (int d = 0; d < 24; ++d) noticed += !isfinite(m.d.centroid[m.d.label[0] * 24 + d]);
                        assert_true(noticed > 0);
                    }
                }
                mem_done();
            }
}

static void same_bits_under_every_schedule(void **state)
{
    (void)state;
    static const char *const threads[] = {"rr", "first", "last", "random"}, *const copies[] = {"early", "late", "mixed"};
    uint64_t want[3] = {0, 0, 0};
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 3; ++j)
            for (int k = 0; k < 3; ++k) {
                if (TEST_SLOW_BUILD && ((4 * j + i) % 3 != 0 || k == 2)) continue;
                km m = km_new(1, 2, k == 0 ? 333 : k == 1 ? 130 : 65, k == 0 ? 64 : k == 1 ? 96 : 256, k == 0 ? 150 : 20, (svg2_dtype)k, BSHD);
                device_schedule(threads[i], copies[j], (unsigned)(10 * i + j + 1));
                fill_groups(&m.x, 8, 1);
                if (k == 1) { /* empty clusters from the start */
                    start_from_tokens(&m, 1);
                    for (int c = 10; c < 20; ++c) memcpy(m.start + c * m.D, m.start + (c - 10) * m.D, (size_t)m.D * 4);
                }
                m.d.iterations = 2;
                km_cuda(&m);
                if (!want[k]) want[k] = km_hash(&m);
                assert_true(km_hash(&m) == want[k]);
                mem_done();
            }
    device_schedule("rr", "late", 1);
}

/* Each kernel, several blocks of it, on little: all that ThreadSanitizer has time for. */
static void every_kernel(void **state)
{
    (void)state;
    static const int shapes[][3] = {
        {270, 40, 7}, /* several blocks that assign, several pieces of a cluster, several empty ones */
        {30, 8, 66},  /* centroids through both buffers */
        {40, 72, 5},  /* seeds, two rounds of them; unaligned */
        {530, 8, 130} /* wgmma: several tiles of a block, three turns of centroids, rows ahead */
    };
    for (int i = 0; i < COUNT(shapes); ++i) {
        km m = km_new(1, 1, shapes[i][0], shapes[i][1], shapes[i][2], (svg2_dtype)(i % 3 + i / 3), i == 2 ? GAPS : BSHD);
        svg2_kmeans_desc cpu;
        m.d.keep_empty = i % 2;
        m.d.iterations = 1;
        fill_integers(&m, 3, 2, 10);
        if (i == 0) memcpy(m.start + 4 * m.D, m.start, (size_t)(3 * m.D) * 4);
        if (i == 2) m.d.start = 0;
        km_cuda(&m);
        check_means(&m);
        cpu = km_cpu(&m);
        if (i != 2) assert_same_as(&m, &cpu, 0);
        mem_done();
    }
    km m = km_new(1, 1, 20, 8, 1, SVG2_F32, BHSD);
    fill_groups(&m.x, 8, 1);
    km_cuda(&m);
    check_means(&m);
}

/* The emulation adds up the products of both kernels in one order: the bits are the same. Tiles of 256 (D > 128: 128) tokens, by
   2 blocks there: every block has several, of heads that are done, too, with one turn of 64 centroids and with many. A GPU has
   more blocks, so 60 times the tokens; integers have the same bits there as well. */
FN void both_kernels_agree(void **state)
{
    (void)state;
    static const int shapes[][5] = {/* heads, tokens, D, clusters, iterations */
                                    {2, 600, 128, 40, 1}, {3, 300, 64, 130, 3},  {1, 1100, 128, 100, 1}, {2, 520, 96, 200, 2}, {2, 513, 72, 64, 2},
                                    {2, 520, 128, 333, 1}, {1, 500, 256, 140, 1}, {1, 300, 160, 65, 2},   {5, 257, 40, 450, 1}, {2, 520, 64, 400, 1},
                                    {40, 20, 8, 3, 4},     {2, 300, 256, 30, 1}};
    int emulated = device_is_emulated();
    for (int i = 0; i < COUNT(shapes); ++i)
        for (int dtype = 0; dtype < 3; ++dtype) {
            const int *n = shapes[i];
            int S = !emulated ? 60 * n[1] : TEST_SLOW_BUILD ? n[1] / 2 : n[1];
            uint64_t hash[2];
            if (TEST_SLOW_BUILD ? dtype || i % 3 : (i + dtype) % 2) continue;
            km m = km_new(1, n[0], S, n[2], n[3], (svg2_dtype)((dtype + i) % 3), (tensor_order)(i / 2 % 3));
            m.shift = (i + dtype) % 5 == 4;
            m.d.iterations = n[4];
            if (!emulated) {
                fill_integers(&m, (uint64_t)(i + 3), 3, 20);
                m.d.keep_empty = m.d.iterations = 1;
            } else {
                fill_groups(&m.x, (uint64_t)(i + 3), 1);
                if (i % 2) {
                    start_from_tokens(&m, 3);
                    for (int c = 0; c < n[3]; ++c) /* the last head has one start: it is done after a round */
                        memcpy(m.start + ((n[0] - 1) * n[3] + c) * n[2], m.start + (n[0] - 1) * n[3] * n[2], (size_t)n[2] * 4);
                    m.d.keep_empty = 1;
                }
            }
            device_schedule(i % 2 ? "random" : "first", i % 3 ? "late" : "mixed", (unsigned)(i + 1));
            for (int run = 0; run < 2; ++run) {
                arch = run ? 90 : 80;
                km_cuda(&m);
                hash[run] = km_hash(&m);
            }
            assert_true(hash[0] == hash[1]);
            mem_done();
        }
    device_schedule("rr", "late", 1);
}

static void memory(void **state)
{
    (void)state;
    svg2_backend cuda = svg2_cuda_backend(0);
    svg2_kmeans_desc d = SVG2_ZERO;
    d.batch = 1; d.heads = 24; d.tokens = 118800; d.head_dim = 128; d.clusters = 1000;
    assert_at_most((double)svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_KMEANS, &d), 80e6);
    d.clusters = 400;
    assert_at_most((double)svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_KMEANS, &d), 60e6);
    d.clusters = 1;
    assert_at_most((double)svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_KMEANS, &d), 4e6);
    d.batch = d.heads = d.tokens = 0x7fffffff / 1024;
    d.clusters = 1 << 24; /* saturates or not, it must not wrap around */
    assert_true(svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_KMEANS, &d) > ((size_t)1 << 50));
}

int main(void)
{
#define ALL                                                                                                                                        \
    TEST(every_kernel), TEST(assign_is_nearest), TEST(integers_have_the_bits_of_the_cpu), TEST(wide_gaps_have_the_labels_of_the_cpu),              \
        TEST(means_and_sizes), TEST(giant_and_tiny_clusters), TEST(token_range), TEST(place_of_a_head), TEST(seeding_is_as_good),                  \
        TEST(seeding_finds_every_token), TEST(iterations_reduce_inertia), TEST(done_heads_rest), TEST(keep_empty),                                 \
        TEST(reseeding_has_the_bits_of_the_cpu), TEST(reseeding_fills), TEST(store_and_start), TEST(one_cluster),                                  \
        TEST(ties_go_to_the_lower_index), TEST(large_f16), TEST(many_clusters), TEST(bad_numbers), TEST(same_bits_under_every_schedule), TEST(memory)
    const struct CMUnitTest tests[] = {ALL}, all[] = {
        ALL, WGMMA(every_kernel),
#ifndef __SANITIZE_THREAD__ /* blocks of 512 threads: no time for more */
        WGMMA(assign_is_nearest), WGMMA(integers_have_the_bits_of_the_cpu), WGMMA(wide_gaps_have_the_labels_of_the_cpu), WGMMA(giant_and_tiny_clusters),
        WGMMA(token_range), WGMMA(done_heads_rest), WGMMA(store_and_start), WGMMA(ties_go_to_the_lower_index), WGMMA(large_f16), WGMMA(many_clusters),
        WGMMA(bad_numbers), WGMMA(same_bits_under_every_schedule), WGMMA(both_kernels_agree),
#endif
    };
    return has_wgmma() ? cmocka_run_group_tests_name("cuda_kmeans", all, 0, 0) : cmocka_run_group_tests_name("cuda_kmeans", tests, 0, 0);
}
