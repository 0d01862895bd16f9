/* >>score on the CUDA backend: statistics of key clusters; log mass and shares on the tensor cores, against float64. */
#include "device.h"
#include "test.h"

/* How many tokens the clusters of a side have. */
typedef enum sizes { EVEN, UNEVEN, GIANT, ONE_EACH, LAST_ONLY, NONE } sizes;

typedef struct side { /* tokens of all heads of one side, by cluster */
    int heads, tokens, clusters, blocks;
    int32_t *label, *order, *offset;
} side;

static side side_new(int batch, int heads, int tokens, int clusters, int text, int pad, sizes kind, uint64_t seed)
{
    svg2_backend cpu = svg2_cpu_backend_simd(0, SVG2_SIMD_SCALAR);
    svg2_permute_desc p = SVG2_ZERO;
    svg2_error err;
    side s;
    size_t n = (size_t)batch * (size_t)heads * (size_t)tokens;
    s.heads = batch * heads; s.tokens = tokens; s.clusters = clusters;
    s.blocks = clusters + (text > 0) + (pad > 0);
    s.label = (int32_t *)mem_new(n * 4);
    s.order = (int32_t *)mem_new(n * 4);
    s.offset = (int32_t *)mem_new((size_t)s.heads * (size_t)(s.blocks + 1) * 4);
    for (size_t i = 0; i < n; ++i) {
        int c = rnd_int(&seed, clusters);
        switch (kind) {
        case EVEN: c = (int)(i % (size_t)clusters); break;
        case UNEVEN: c = rnd_int(&seed, 1 + c); c = c % 5 == 3 ? 0 : c; break; /* some are empty */
        case GIANT: c = rnd_int(&seed, 8) ? clusters / 2 : c; break;
        case ONE_EACH: c = (int)(i % (size_t)tokens) % clusters; break;
        case LAST_ONLY: c = clusters - 1; break;
        case NONE: c = 0; break;
        }
        s.label[i] = c;
    }
    p.batch = batch; p.heads = heads; p.tokens = tokens; p.clusters = clusters;
    p.text_begin = tokens - text - pad; p.text_count = text;
    p.padding_begin = tokens - pad; p.padding_count = pad;
    p.label = s.label; p.order = s.order; p.offset = s.offset;
    assert_ok(svg2_permute(&cpu, &p, 0, 0, &err));
    return s;
}

/* A tensor on the device, `skew` elements behind an aligned address. */
static const void *upload(const tensor *t, int skew)
{
    size_t shift = (size_t)skew * dtype_bytes(t->layout.dtype);
    char *p = (char *)device_new(t->bytes + shift);
    device_write(p + shift, t->data, t->bytes);
    return p + shift;
}
#define UPLOAD(array, count) device_copy(array, (size_t)(count) * sizeof *(array))

static double unit_of(svg2_dtype t) { return t == SVG2_F16 ? 0x1p-11 : 0x1p-8; } /* half of it is the rounding error */

/* ---- statistics ---- */
static void summarize_case(int B, int H, int S, int D, int C, int text, int pad, sizes kind, svg2_dtype dtype, tensor_order order,
                           int skew, double mean)
{
    svg2_backend cuda = svg2_cuda_backend(0);
    tensor v = tensor_new(B, H, S, D, dtype, order);
    side s = side_new(B, H, S, C, text, pad, kind, (uint64_t)(S * 7 + D));
    svg2_summarize_desc d = SVG2_ZERO;
    svg2_error err;
    size_t clusters = (size_t)(B * H * C);
    float *got_mean = (float *)mem_new(clusters * (size_t)D * 4), *got_var = (float *)mem_new(clusters * 4);
    tensor_fill_normal(&v, 5, 1, mean);
    d.batch = B; d.heads = H; d.tokens = S; d.head_dim = D; d.clusters = C; d.blocks = s.blocks;
    d.v = upload(&v, skew); d.v_layout = v.layout;
    d.order = (const int32_t *)UPLOAD(s.order, B * H * S);
    d.offset = (const int32_t *)UPLOAD(s.offset, B * H * (s.blocks + 1));
    d.value_mean = (float *)device_new(clusters * (size_t)D * 4);
    d.value_var = (float *)device_new(clusters * 4);
    size_t bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_SUMMARIZE, &d);
    assert_ok(svg2_summarize(&cuda, &d, device_new(bytes), bytes, &err));
    device_read(got_mean, d.value_mean, clusters * (size_t)D * 4);
    device_read(got_var, d.value_var, clusters * 4);
    for (int h = 0; h < B * H; ++h)
        for (int c = 0; c < C; ++c) {
            double sum[256] = {0}, square = 0;
            const float *m = got_mean + (h * C + c) * D;
            int n = 0;
            for (int t = 0; t < S; ++t) {
                if (s.label[h * S + t] != c) continue;
                ++n;
                for (int e = 0; e < D; ++e) sum[e] += tensor_get(&v, tensor_at(&v, h / H, h % H, t, e));
            }
            for (int e = 0; e < D; ++e) sum[e] = n ? sum[e] / n : 0;
            for (int t = 0; t < S; ++t)
                for (int e = 0; e < D && s.label[h * S + t] == c; ++e)
                    square += pow(tensor_get(&v, tensor_at(&v, h / H, h % H, t, e)) - sum[e], 2) / n;
            /* f32 sums of 128 rows relative to the first: 128 roundings of values of a few sigma, at most */
            for (int e = 0; e < D; ++e)
                if (!(fabs((double)m[e] - sum[e]) <= 1e-6 * (3 + fabs(sum[e]))))
                    fail_msg("head %d cluster %d (%d): mean %d is %g, not %g", h, c, n, e, (double)m[e], sum[e]);
            if (n < 2) assert_true(got_var[h * C + c] == 0);
            else assert_at_most(fabs((double)got_var[h * C + c] - square), 2e-6 * square + 1e-6 * D);
        }
    device_reset();
    mem_done();
}
static void test_summarize(void **state)
{
    (void)state;
    summarize_case(1, 1, 1, 8, 1, 0, 0, EVEN, SVG2_F32, BHSD, 0, 0);
#ifndef __SANITIZE_THREAD__
    summarize_case(2, 3, 333, 64, 7, 5, 4, UNEVEN, SVG2_BF16, BSHD, 0, 0);
    summarize_case(1, 2, 1300, 128, 5, 0, 0, GIANT, SVG2_F16, BHSD, 0, 30);
    summarize_case(1, 2, 130, 40, 200, 3, 0, UNEVEN, SVG2_F32, GAPS, 1, 3); /* more clusters than tokens */
    summarize_case(1, 1, 257, 96, 3, 0, 7, LAST_ONLY, SVG2_F16, BHSD, 1, 0);
    summarize_case(1, 2, 300, 256, 4, 0, 0, EVEN, SVG2_F32, BSHD, 0, 1000);
    summarize_case(1, 1, 129, 72, 1, 0, 0, EVEN, SVG2_BF16, GAPS, 0, 0);
    summarize_case(1, 1, 128, 8, 1, 0, 0, EVEN, SVG2_BF16, BHSD, 3, 0);
#endif
    summarize_case(1, 1, 60, 64, 40, 60, 0, NONE, SVG2_F32, BHSD, 0, 0); /* nothing but text */
}

/* NaN and Inf as on the CPU, in their own columns and clusters. */
static void test_summarize_nan(void **state)
{
    svg2_backend backend[2] = {svg2_cpu_backend_simd(0, SVG2_SIMD_SCALAR), svg2_cuda_backend(0)};
    (void)state;
    for (int mode = 0; mode < 6; ++mode) {
        tensor v = tensor_new(1, 2, 400, 64, SVG2_F32, BHSD);
        side s = side_new(1, 2, 400, 4, 0, 0, mode & 1 ? EVEN : GIANT, 9);
        float *mean[2], *var[2];
        tensor_fill_normal(&v, 5, 1, 0);
        int c = 2, at = s.order[s.offset[c] + (mode < 2 ? 0 : mode < 4 ? 1 : s.offset[c + 1] - s.offset[c] - 1)];
        tensor_put(&v, tensor_at(&v, 0, 0, at, 17), mode & 2 ? (double)INFINITY : (double)NAN);
        for (int i = 0; i < 2; ++i) {
            svg2_summarize_desc d = SVG2_ZERO;
            svg2_error err;
            size_t bytes;
            d.batch = 1; d.heads = 2; d.tokens = 400; d.head_dim = 64; d.clusters = 4; d.blocks = s.blocks;
            d.v_layout = v.layout;
            mean[i] = (float *)mem_new(2 * 4 * 64 * 4);
            var[i] = (float *)mem_new(2 * 4 * 4);
            d.v = v.data; d.order = s.order; d.offset = s.offset; d.value_mean = mean[0]; d.value_var = var[0];
            bytes = svg2_stage_workspace_bytes(&backend[i], SVG2_STAGE_SUMMARIZE, &d);
            if (i == 0) { assert_ok(svg2_summarize(&backend[0], &d, mem_new(bytes), bytes, &err)); continue; }
            d.v = upload(&v, 0);
            d.order = (const int32_t *)UPLOAD(s.order, 2 * 400);
            d.offset = (const int32_t *)UPLOAD(s.offset, 2 * 5);
            d.value_mean = (float *)device_new(2 * 4 * 64 * 4);
            d.value_var = (float *)device_new(2 * 4 * 4);
            assert_ok(svg2_summarize(&backend[1], &d, device_new(bytes), bytes, &err));
            device_read(mean[1], d.value_mean, 2 * 4 * 64 * 4);
            device_read(var[1], d.value_var, 2 * 4 * 4);
        }
        for (int i = 0; i < 2 * 4 * 64; ++i)
            if (isnan(mean[0][i]) || isinf(mean[0][i])) assert_true(isnan(mean[1][i]) == isnan(mean[0][i]) && !isfinite(mean[1][i]));
            else assert_at_most(fabs((double)mean[0][i] - (double)mean[1][i]), 2e-6);
        for (int i = 0; i < 2 * 4; ++i)
            if (i == c) assert_true(var[1][i] == var[0][i]); /* 0: it cannot be told */
            else assert_at_most(fabs((double)var[0][i] - (double)var[1][i]), 1e-5 * (double)var[0][i]);
        device_reset();
        mem_done();
    }
}

/* ---- log mass and share ---- */
typedef struct sc {
    svg2_score_desc d; /* device pointers */
    int B, H, Hk, Sq, S, D, Cq, Ck;
    tensor q, k;
    int query_skew, key_skew;
    side queries, keys;
    float *qc, *kc, *mean, *log_mass, *share; /* host */
    svg2_error err;
} sc;

typedef struct shape {
    int B, H, Hk, Sq, S, D, Cq, Ck, text, pad; /* Sq = 0: no share */
    sizes query_sizes, key_sizes;
    svg2_dtype q, k;
    tensor_order order;
    int skew;
    double mean, sharp;
} shape;

/* grid > 0: numbers are multiples of 1/grid and small, so that nothing is rounded before the exponentials. */
static sc sc_new(shape c, double grid)
{
    sc s;
    uint64_t r = (uint64_t)(c.S * 31 + c.Ck);
    int nk = c.B * c.Hk, nq = c.B * c.H;
    memset(&s, 0, sizeof s);
    s.B = c.B; s.H = c.H; s.Hk = c.Hk; s.Sq = c.Sq; s.S = c.S; s.D = c.D; s.Cq = c.Cq; s.Ck = c.Ck;
    s.query_skew = s.key_skew = c.skew;
    s.k = tensor_new(c.B, c.Hk, c.S, c.D, c.k, c.order);
    s.q = tensor_new(c.B, c.H, c.Sq ? c.Sq : 1, c.D, c.q, c.order);
    s.keys = side_new(c.B, c.Hk, c.S, c.Ck, c.text, c.pad, c.key_sizes, 3);
    s.queries = side_new(c.B, c.H, s.q.S, c.Cq, c.text < s.q.S ? c.text : 0, 0, c.query_sizes, 4);
    tensor_fill_normal(&s.q, 17, c.sharp, 0);
    s.qc = (float *)mem_new((size_t)(nq * c.Cq * c.D) * 4);
    s.kc = (float *)mem_new((size_t)(nk * c.Ck * c.D) * 4);
    s.mean = (float *)mem_new((size_t)(nk * c.D) * 4);
    s.log_mass = (float *)mem_new((size_t)(nq * c.Cq) * (size_t)c.Ck * 4);
    s.share = (float *)mem_new((size_t)(nq * c.Cq) * (size_t)c.Ck * 4);
#define ROUND(x) (grid > 0 ? rint((x) * grid) / grid : (x))
    for (int i = 0; i < nq * c.Cq * c.D; ++i) s.qc[i] = (float)ROUND(1.5 * rnd_normal(&r));
    for (int i = 0; i < nk * c.D; ++i) s.mean[i] = (float)ROUND(c.mean * (rnd_unit(&r) < 0.5 ? -1 : 1));
    for (int i = 0; i < nk * c.Ck * c.D; ++i) s.kc[i] = (float)ROUND((double)s.mean[i / (c.Ck * c.D) * c.D + i % c.D] + rnd_normal(&r));
    for (int h = 0; h < nk; ++h)
        for (int t = 0; t < c.S; ++t)
            for (int e = 0; e < c.D; ++e) {
                int j = s.keys.label[h * c.S + t];
                double x = j < c.Ck ? (double)s.kc[(h * c.Ck + j) * c.D + e] : 0;
                tensor_put(&s.k, tensor_at(&s.k, h / c.Hk, h % c.Hk, t, e), x + ROUND(0.7 * rnd_normal(&r)));
            }
    if (grid > 0)
        for (int h = 0; h < nq; ++h)
            for (int t = 0; t < s.q.S; ++t)
                for (int e = 0; e < c.D; ++e) {
                    int64_t at = tensor_at(&s.q, h / c.H, h % c.H, t, e);
                    tensor_put(&s.q, at, ROUND(tensor_get(&s.q, at)));
                }
    if (!(grid > 0)) /* centroids that are the means, as the pipeline's are */
        for (int h = 0; h < nk; ++h) {
            double *kbar = (double *)mem_new(sizeof(double) * (size_t)(c.Ck * c.D)), *k = tensor_f64(&s.k);
            int *n = (int *)mem_new(sizeof(int) * (size_t)c.Ck);
            ref_means(k + (int64_t)h * c.S * c.D, s.keys.label + h * c.S, c.S, c.D, c.Ck, kbar, n);
            for (int i = 0; i < c.Ck * c.D; ++i)
                if (n[i / c.D]) s.kc[h * c.Ck * c.D + i] = (float)kbar[i];
        }
    s.d.batch = c.B; s.d.heads = c.H; s.d.heads_kv = c.Hk; s.d.tokens_kv = c.S; s.d.head_dim = c.D;
    s.d.query_clusters = c.Cq; s.d.key_clusters = c.Ck; s.d.key_blocks = s.keys.blocks;
    s.d.scale = (float)(1 / sqrt(c.D));
    s.d.k_layout = s.k.layout;
    s.d.tokens = c.Sq; s.d.query_blocks = s.queries.blocks; s.d.q_layout = s.q.layout;
    return s;
}
static void sc_run(sc *s)
{
    svg2_backend cuda = svg2_cuda_backend(0);
    size_t out = (size_t)(s->B * s->H * s->Cq) * (size_t)s->Ck * 4, bytes;
    int nk = s->B * s->Hk, nq = s->B * s->H;
    s->d.k = upload(&s->k, s->key_skew);
    s->d.key_order = (const int32_t *)UPLOAD(s->keys.order, nk * s->S);
    s->d.key_offset = (const int32_t *)UPLOAD(s->keys.offset, nk * (s->keys.blocks + 1));
    s->d.query_centroid = (const float *)UPLOAD(s->qc, nq * s->Cq * s->D);
    s->d.key_centroid = (const float *)UPLOAD(s->kc, nk * s->Ck * s->D);
    s->d.log_mass = (float *)device_new(out);
    if (s->d.tokens) {
        s->d.q = upload(&s->q, s->query_skew);
        s->d.query_order = (const int32_t *)UPLOAD(s->queries.order, nq * s->q.S);
        s->d.query_offset = (const int32_t *)UPLOAD(s->queries.offset, nq * (s->queries.blocks + 1));
        s->d.key_mean = (const float *)UPLOAD(s->mean, nk * s->D);
        s->d.share = (float *)device_new(out);
    }
    bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_SCORE, &s->d);
    svg2_result r = svg2_score(&cuda, &s->d, device_new(bytes), bytes, &s->err);
    if (r != SVG2_OK) fail_msg("svg2_score: %s (%s: %s)", svg2_result_string(r), s->err.field, s->err.text);
    device_read(s->log_mass, s->d.log_mass, out);
    if (s->d.tokens) device_read(s->share, s->d.share, out);
}

/* The type of the products: f16 where k is and q does not speak against it, else bf16. */
static svg2_dtype sc_type(const sc *s)
{
    return s->d.k_layout.dtype == SVG2_F16 && (!s->d.tokens || s->d.q_layout.dtype != SVG2_BF16) ? SVG2_F16 : SVG2_BF16;
}

/* Rounding both operands changes a logit by at most (2 eps + eps^2) scale sum |q_e (k - kbar)_e|, eps = 2^-9 for bf16 and
   2^-12 for f16, and ln sum exp by at most the largest of those: that is asserted of every element. As the errors of the
   dimensions are independent, their root mean square is below that of eps scale |q * (k - kbar)|_2, which is asserted of
   all together. exact: nothing is rounded, only f32 sums and exponentials err. */
static void sc_check(const sc *s, int exact)
{
    double eps = unit_of(sc_type(s)) / 2, squares = 0, expected = 0, scale = fabs((double)s->d.scale);
    for (int h = 0; h < s->B * s->H; ++h) {
        int hk = h / s->H * s->Hk + h % s->H / (s->H / s->Hk);
        const int32_t *offset = s->keys.offset + hk * (s->keys.blocks + 1);
        for (int j = 0; j < s->Ck; ++j) {
            int n = offset[j + 1] - offset[j];
            double *x = (double *)malloc(sizeof(double) * (size_t)(n * s->D) + 1);
            for (int i = 0; i < n; ++i)
                for (int e = 0; e < s->D; ++e)
                    x[i * s->D + e] = tensor_get(&s->k, tensor_at(&s->k, hk / s->Hk, hk % s->Hk, s->keys.order[hk * s->S + offset[j] + i], e))
                                      - (double)s->kc[(hk * s->Ck + j) * s->D + e];
            for (int I = 0; I < s->Cq; ++I) {
                const float *q = s->qc + (h * s->Cq + I) * s->D;
                double got = (double)s->log_mass[(h * s->Cq + I) * s->Ck + j], top = -(double)INFINITY, sum = 0, bound = 0, rms = 0;
                for (int i = 0; i < n; ++i) {
                    double logit = 0, l1 = 0, l2 = 0;
                    for (int e = 0; e < s->D; ++e) {
                        double y = (double)q[e] * x[i * s->D + e];
                        logit += y; l1 += fabs(y); l2 += y * y;
                    }
                    logit *= (double)s->d.scale;
                    bound = fmax(bound, (exact ? 0 : (2 * eps + eps * eps) * scale * l1) + 4e-6 * (1 + fabs(logit)));
                    rms = fmax(rms, eps * scale * sqrt(l2));
                    if (logit > top) sum *= exp(top - logit), top = logit;
                    sum += exp(logit - top);
                }
                if (n == 0) assert_true(isinf(got) && got < 0);
                else if (!(fabs(got - top - log(sum)) <= bound))
                    fail_msg("head %d, query cluster %d, key cluster %d (%d keys): %g, not %g (bound %g)", h, I, j, n, got, top + log(sum), bound);
                else {
                    squares += pow(got - top - log(sum), 2);
                    expected += rms * rms + 1e-11;
                }
            }
            free(x);
        }
    }
    if (!exact && sqrt(squares) > sqrt(expected)) fail_msg("log mass: root mean square error %g of what is expected", sqrt(squares / expected));
}

/* Shares from the log mass that was returned, in float64. A logit errs by at most E = (a + b + ab) scale sum |q_e (kbar -
   mean)_e| with a = eps if the rows of q are rounded, b = eps, and a probability by a factor of at most exp(2 max E). */
static void sc_check_share(const sc *s, int exact)
{
    double eps = exact ? 0 : unit_of(sc_type(s)) / 2, q_eps = s->d.q_layout.dtype == sc_type(s) ? 0 : eps;
    double *p = (double *)malloc(sizeof(double) * (size_t)s->Ck), *want = (double *)malloc(sizeof(double) * (size_t)s->Ck);
    double worst = 0;
    for (int h = 0; h < s->B * s->H; ++h) {
        int hk = h / s->H * s->Hk + h % s->H / (s->H / s->Hk), keys = s->keys.offset[hk * (s->keys.blocks + 1) + s->Ck];
        const int32_t *offset = s->queries.offset + h * (s->queries.blocks + 1);
        for (int I = 0; I < s->Cq; ++I) {
            const float *lambda = s->log_mass + (h * s->Cq + I) * s->Ck, *got = s->share + (h * s->Cq + I) * s->Ck;
            double bound = 0, total = 0;
            int n = offset[I + 1] - offset[I];
            for (int j = 0; j < s->Ck; ++j) want[j] = 0;
            for (int i = 0; i < n; ++i) {
                int64_t row = tensor_at(&s->q, h / s->H, h % s->H, s->queries.order[h * s->q.S + offset[I] + i], 0);
                double top = -(double)INFINITY, sum = 0;
                for (int j = 0; j < s->Ck; ++j) {
                    double logit = 0, l1 = 0;
                    for (int e = 0; e < s->D; ++e) {
                        double y = tensor_get(&s->q, row + e) * ((double)s->kc[(hk * s->Ck + j) * s->D + e] - (double)s->mean[hk * s->D + e]);
                        logit += y; l1 += fabs(y);
                    }
                    p[j] = (double)s->d.scale * logit + (double)lambda[j];
                    bound = fmax(bound, (eps + q_eps + eps * q_eps) * fabs((double)s->d.scale) * l1 + 4e-6 * (1 + fabs(p[j] > -1e30 ? p[j] : 0)));
                    if (p[j] > top) top = p[j];
                }
                for (int j = 0; j < s->Ck; ++j) sum += p[j] = exp(p[j] - top);
                for (int j = 0; j < s->Ck && keys; ++j) want[j] += p[j] / sum / n;
            }
            for (int j = 0; j < s->Ck; ++j) {
                int size = s->keys.offset[hk * (s->keys.blocks + 1) + j + 1] - s->keys.offset[hk * (s->keys.blocks + 1) + j];
                if (n == 0 || size == 0) { assert_true(got[j] == 0); continue; }
                if (!(fabs((double)got[j] - want[j]) <= expm1(2 * bound) * want[j] + 1e-30))
                    fail_msg("head %d, query cluster %d (%d rows), key cluster %d: share %g, not %g (bound %g)", h, I, n, j, (double)got[j], want[j], expm1(2 * bound));
                if (want[j] > 1e-12) worst = fmax(worst, fabs((double)got[j] / want[j] - 1));
                total += (double)got[j];
            }
            if (n && keys) assert_at_most(fabs(total - 1), 2e-5);
        }
    }
    if (getenv("TEST_VERBOSE")) print_message("share: largest relative error %g\n", worst);
    free(p); free(want);
}

static void sc_case(shape c, double grid)
{
    sc s = sc_new(c, grid);
    sc_run(&s);
    sc_check(&s, grid > 0);
    if (c.Sq) sc_check_share(&s, grid > 0);
    device_reset();
    mem_done();
}

/* More than one tile and unit on both sides, tails of every size, clusters that cross tiles. */
static const shape shapes[] = {
#ifdef __SANITIZE_THREAD__ /* a CUDA thread costs a millisecond */
    {1, 1, 1, 40, 300, 64, 3, 4, 7, 3, UNEVEN, GIANT, SVG2_BF16, SVG2_BF16, BSHD, 0, 1, 1.5},
    {1, 1, 1, 40, 130, 256, 2, 70, 0, 0, EVEN, UNEVEN, SVG2_F32, SVG2_F16, BHSD, 0, 0, 1},
    {1, 1, 1, 300, 80, 128, 1, 33, 0, 0, EVEN, UNEVEN, SVG2_F16, SVG2_F16, BHSD, 0, 0, 1},
#else
    {1, 1, 1, 1, 1, 8, 1, 1, 0, 0, EVEN, EVEN, SVG2_F32, SVG2_F32, BHSD, 0, 0, 1},
    {1, 2, 1, 7, 63, 40, 3, 20, 0, 0, EVEN, UNEVEN, SVG2_BF16, SVG2_BF16, BSHD, 0, 1, 1.5},
    {2, 4, 2, 65, 130, 64, 5, 9, 7, 3, UNEVEN, UNEVEN, SVG2_BF16, SVG2_BF16, BSHD, 0, 2, 2},
    {1, 2, 2, 333, 333, 64, 2, 3, 0, 0, GIANT, GIANT, SVG2_F16, SVG2_F16, BHSD, 0, 0, 2},
    {1, 2, 1, 130, 500, 72, 34, 33, 9, 0, UNEVEN, UNEVEN, SVG2_F32, SVG2_F16, GAPS, 0, 1, 1},
    {1, 1, 1, 150, 333, 96, 9, 70, 0, 5, EVEN, GIANT, SVG2_F16, SVG2_BF16, BHSD, 1, 0, 1},
    {1, 2, 1, 333, 700, 128, 3, 5, 0, 0, GIANT, EVEN, SVG2_BF16, SVG2_BF16, BHSD, 0, 3, 1},
    {1, 1, 1, 65, 130, 128, 70, 131, 0, 0, UNEVEN, ONE_EACH, SVG2_F32, SVG2_F32, BSHD, 1, 1, 1},
    {1, 1, 1, 140, 300, 256, 2, 4, 0, 0, LAST_ONLY, UNEVEN, SVG2_F32, SVG2_F16, BHSD, 0, 0, 1},
    {1, 1, 1, 0, 130, 256, 33, 3, 4, 0, EVEN, LAST_ONLY, SVG2_F32, SVG2_BF16, GAPS, 0, 0, 1},
    {1, 1, 1, 60, 40, 64, 4, 300, 0, 0, ONE_EACH, UNEVEN, SVG2_F16, SVG2_F16, BHSD, 0, 0, 1},
    {1, 2, 1, 30, 20, 64, 40, 3, 20, 0, NONE, NONE, SVG2_F32, SVG2_F32, BHSD, 0, 0, 1}, /* nothing but text among the keys */
#endif
};
enum { SEVERAL = COUNT(shapes) > 3 ? 2 : 0, GIANTS = COUNT(shapes) > 3 ? 3 : 1, TYPES = COUNT(shapes) > 3 ? 4 : 2, MANY = COUNT(shapes) > 3 ? 7 : 2 };
static void test_score_against_f64(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT(shapes); ++i) sc_case(shapes[i], 0);
}
/* Data that 8 bits hold: what is left are errors of 1e-5, so that a key too few or in the wrong place shows. */
static void test_score_exact(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT(shapes); ++i) sc_case(shapes[i], 8);
}

/* Any scale: negative, 0, and logits of hundreds inside one cluster. */
static void test_scales(void **state)
{
    static const float scales[] = {-0.3f, 0, -0.0f, 40, -25};
    (void)state;
    for (int i = 0; i < COUNT(scales); i += COUNT(shapes) > 3 ? 1 : 3) {
        sc s = sc_new(shapes[i & 1 ? SEVERAL : TYPES], 8);
        s.d.scale = scales[i];
        sc_run(&s);
        sc_check(&s, 1);
        sc_check_share(&s, 1);
        device_reset();
        mem_done();
    }
}

/* A share is not asked for: log mass has the same bits, and the other fields may hold anything. */
static void test_share_none(void **state)
{
    (void)state;
    sc s = sc_new(shapes[SEVERAL], 0);
    size_t bytes = (size_t)(s.B * s.H * s.Cq * s.Ck) * 4;
    sc_run(&s);
    uint64_t want = mem_hash(s.log_mass, bytes);
    float *share = s.d.share;
    memset(s.share, 0xff, bytes);
    device_write(share, s.share, bytes);
    s.d.tokens = 0;
    s.d.query_blocks = -7;
    s.d.q_layout.stride_token = -1;
    s.d.q_layout.dtype = (svg2_dtype)9;
    s.d.q = (const char *)0 + 1;
    s.d.query_order = s.d.query_offset = 0;
    s.d.key_mean = 0;
    sc_run(&s);
    assert_true(mem_hash(s.log_mass, bytes) == want);
    device_read(s.share, share, bytes);
    assert_untouched(s.share, bytes);
    device_reset();
}

/* NaN and Inf go where they go on the CPU; everything else has the bits of the clean run. */
static void sc_cpu(const sc *s, float *log_mass, float *share)
{
    svg2_backend cpu = svg2_cpu_backend_simd(0, SVG2_SIMD_SCALAR);
    svg2_score_desc d = s->d;
    svg2_error err;
    d.k = s->k.data; d.key_order = s->keys.order; d.key_offset = s->keys.offset;
    d.query_centroid = s->qc; d.key_centroid = s->kc; d.log_mass = log_mass;
    d.q = s->q.data; d.query_order = s->queries.order; d.query_offset = s->queries.offset;
    d.key_mean = s->mean; d.share = share;
    size_t bytes = svg2_stage_workspace_bytes(&cpu, SVG2_STAGE_SCORE, &d);
    assert_ok(svg2_score(&cpu, &d, mem_new(bytes), bytes, &err));
}
static void test_score_nan(void **state)
{
    (void)state;
    int touched = 0;
    for (int mode = 0; mode < 12; mode += COUNT(shapes) > 3 ? 1 : 12) {
        static const shape c = {1, 2, 2, 300, 400, 64, 6, 11, 5, 4, UNEVEN, UNEVEN, SVG2_F32, SVG2_F32, BHSD, 0, 0, 1};
        sc s = sc_new(c, 8);
        size_t count = (size_t)(2 * 6 * 11);
        float *clean[2], *cpu[2];
        double bad = mode % 2 ? (double)NAN : mode % 4 ? -(double)INFINITY : (double)INFINITY;
        for (int i = 0; i < 2; ++i) clean[i] = (float *)mem_new(count * 4), cpu[i] = (float *)mem_new(count * 4);
        sc_run(&s);
        memcpy(clean[0], s.log_mass, count * 4);
        memcpy(clean[1], s.share, count * 4);
        switch (mode / 2) { /* head 1: the last key of cluster 2, its first key, text; a row of query cluster 0, text; centroids */
        case 0: tensor_put(&s.k, tensor_at(&s.k, 0, 1, s.keys.order[400 + s.keys.offset[14 + 3] - 1], 5), bad); break;
        case 1: tensor_put(&s.k, tensor_at(&s.k, 0, 1, s.keys.order[400 + s.keys.offset[14]], 60), bad); break;
        case 2: tensor_put(&s.k, tensor_at(&s.k, 0, 1, 400 - 2, 5), bad); break;
        case 3: tensor_put(&s.q, tensor_at(&s.q, 0, 1, s.queries.order[300 + 33], 7), bad); break;
        case 4: s.qc[(6 + 2) * 64 + 3] = (float)bad; break;
        default: s.kc[(11 + 4) * 64 + 9] = (float)bad; break;
        }
        sc_run(&s);
        sc_cpu(&s, cpu[0], cpu[1]);
        for (size_t i = 0; i < 2 * count; ++i) {
            float got = i < count ? s.log_mass[i] : s.share[i - count], want = i < count ? cpu[0][i] : cpu[1][i - count];
            float before = i < count ? clean[0][i] : clean[1][i - count];
            if (isnan(want) != isnan(got)) fail_msg("mode %d, %s %zu: %g, on the CPU %g", mode, i < count ? "log mass" : "share", i % count, (double)got, (double)want);
            if (isnan(want)) { ++touched; continue; }
            if (isinf(want)) assert_true(got == want);
            else if (!(fabs((double)got - (double)want) <= 1e-4 * (1 + fabs((double)want)))) fail_msg("mode %d %zu: %g, not %g", mode, i, (double)got, (double)want);
            if (i % count < count / 2) assert_memory_equal(&got, &before, 4); /* head 0 */
        }
        device_reset();
        mem_done();
    }
    assert_true(touched > (COUNT(shapes) > 3 ? 100 : 0));
}

/* The same bits whatever the order of threads and blocks and the time of copies. */
static void test_same_bits(void **state)
{
    static const char *threads[] = {"rr", "first", "last", "random", "random"}, *copies[] = {"late", "early", "mixed", "late", "mixed"};
    static const int which[] = {SEVERAL, GIANTS, MANY};
    (void)state;
    for (int i = 0; i < COUNT(which); ++i) {
        uint64_t want = 0;
        for (int run = 0; run < (COUNT(shapes) > 3 ? COUNT(threads) : 3); ++run) {
            sc s = sc_new(shapes[which[i]], 0);
            size_t bytes = (size_t)(s.B * s.H * s.Cq * s.Ck) * 4;
            device_schedule(threads[run], copies[run], (unsigned)run);
            sc_run(&s);
            uint64_t got = mem_hash(s.log_mass, bytes) * 31 + mem_hash(s.share, bytes);
            if (!run) want = got;
            assert_true(got == want);
            device_reset();
            mem_done();
        }
    }
    device_schedule("rr", "late", 1);
}

/* What the documentation says about memory. */
static void test_memory(void **state)
{
    svg2_backend cuda = svg2_cuda_backend(0);
    svg2_score_desc d = SVG2_ZERO;
    (void)state;
    d.batch = 1; d.heads = d.heads_kv = 24; d.head_dim = 128;
    d.tokens = d.tokens_kv = 118800;
    d.query_clusters = d.query_blocks = 400; d.key_clusters = d.key_blocks = 1000;
    assert_at_most((double)svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_SCORE, &d), 93e6);
    d.batch = 1 << 26; d.query_clusters = d.key_clusters = d.query_blocks = d.key_blocks = 1 << 24;
    assert_true(svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_SCORE, &d) == SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_summarize),  TEST(test_summarize_nan), TEST(test_score_against_f64), TEST(test_score_exact), TEST(test_scales),
        TEST(test_share_none), TEST(test_score_nan),     TEST(test_same_bits),         TEST(test_memory),
    };
    return cmocka_run_group_tests_name("cuda_score", tests, 0, 0);
}
