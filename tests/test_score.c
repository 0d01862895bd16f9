/* >>score: log mass of blocks as the query centroids see them; shares of attention as the rows see them. */
#include "test.h"

typedef struct sc {
    svg2_score_desc d;
    tensor k;
    int B, H, Hk, S, D, Cq, Ck, text;
    int32_t *label, *order, *offset;
    float *qc, *kc;
    tensor q; /* for the share */
    int T, Qb;
    int32_t *qlabel, *qorder, *qoffset;
    float *mean;
    svg2_error err;
} sc;

static sc sc_new(int B, int H, int Hk, int S, int D, int Cq, int Ck, int text, svg2_dtype dtype, tensor_order order, double mean)
{
    sc s;
    uint64_t r = (uint64_t)(S * 31 + Ck);
    int n = B * Hk, blocks = Ck + (text > 0);
    memset(&s, 0, sizeof s);
    s.B = B; s.H = H; s.Hk = Hk; s.S = S; s.D = D; s.Cq = Cq; s.Ck = Ck; s.text = text;
    s.k = tensor_new(B, Hk, S, D, dtype, order);
    tensor_fill_normal(&s.k, 3, 1, mean);
    s.label = (int32_t *)mem_new((size_t)(n * S) * 4);
    s.order = (int32_t *)mem_new((size_t)(n * S) * 4);
    s.offset = (int32_t *)mem_new((size_t)(n * (blocks + 1)) * 4);
    s.qc = (float *)mem_new((size_t)(B * H * Cq * D) * 4);
    s.kc = (float *)mem_new((size_t)(n * Ck * D) * 4);
    double *kbar = (double *)mem_new(sizeof(double) * (size_t)(Ck * D));
    int *size = (int *)mem_new(sizeof(int) * (size_t)Ck);
    for (int i = 0; i < B * H * Cq * D; ++i) s.qc[i] = (float)(1.5 * rnd_normal(&r));
    for (int h = 0; h < n; ++h) {
        int at = 0;
        for (int t = 0; t < S; ++t) {
            int c = rnd_int(&r, Ck);
            s.label[h * S + t] = t >= S - text ? Ck : c % 5 == 4 ? 0 : c; /* some clusters are empty */
        }
        for (int t = 0; t < S; ++t) /* clusters apart from each other */
            for (int d = 0; d < D; ++d) {
                uint64_t thing = (uint64_t)((h * (Ck + 1) + s.label[h * S + t]) * D + d);
                int64_t place = tensor_at(&s.k, h / Hk, h % Hk, t, d);
                tensor_put(&s.k, place, tensor_get(&s.k, place) + rnd_normal(&thing));
            }
        for (int c = 0; c <= blocks; ++c) {
            s.offset[h * (blocks + 1) + c] = at;
            for (int t = 0; t < S && c < blocks; ++t)
                if (s.label[h * S + t] == c) s.order[h * S + at++] = t;
        }
        const double *k = tensor_f64(&s.k);
        ref_means(k + (int64_t)h * S * D, s.label + h * S, S, D, Ck, kbar, size);
        for (int i = 0; i < Ck * D; ++i) s.kc[h * Ck * D + i] = (float)kbar[i];
    }
    s.d.batch = B; s.d.heads = H; s.d.heads_kv = Hk; s.d.tokens_kv = S; s.d.head_dim = D;
    s.d.query_clusters = Cq; s.d.key_clusters = Ck; s.d.key_blocks = blocks;
    s.d.scale = (float)(1 / sqrt(D));
    s.d.k = s.k.data; s.d.k_layout = s.k.layout; s.d.key_order = s.order; s.d.key_offset = s.offset;
    s.d.query_centroid = s.qc; s.d.key_centroid = s.kc;
    s.d.log_mass = (float *)mem_new((size_t)(B * H * Cq) * (size_t)Ck * 4);
    return s;
}
/* Queries for the share: sizes of the clusters in turn, other ones in each head; then text and padding. */
static void sc_rows(sc *s, int text, int pad, svg2_dtype dtype, tensor_order order, double sharp)
{
    static const int sizes[] = {1, 15, 16, 17, 64, 65, 200, 0};
    uint64_t r = (uint64_t)(s->Cq * 77 + s->Ck);
    int heads = s->B * s->H, Qb = s->Qb = s->Cq + (text > 0) + (pad > 0), T = 0;
    for (int h = 0; h < heads; ++h) {
        int n = text + pad;
        for (int c = 0; c < s->Cq; ++c) n += sizes[(c + h) % 8];
        if (n > T) T = n; /* a head with fewer rows has them in its last block */
    }
    s->T = T;
    s->q = tensor_new(s->B, s->H, T, s->D, dtype, order);
    tensor_fill_normal(&s->q, 17, sharp, 0);
    s->qlabel = (int32_t *)mem_new((size_t)(heads * T) * 4);
    s->qorder = (int32_t *)mem_new((size_t)(heads * T) * 4);
    s->qoffset = (int32_t *)mem_new((size_t)(heads * (Qb + 1)) * 4);
    s->mean = (float *)mem_new((size_t)(s->B * s->Hk * s->D) * 4);
    for (int h = 0; h < heads; ++h) {
        int32_t *label = s->qlabel + h * T, *offset = s->qoffset + h * (Qb + 1);
        int at = 0;
        for (int c = 0; c < Qb; ++c) {
            int n = c < s->Cq ? sizes[(c + h) % 8] : c == s->Cq && text ? text : pad;
            for (int i = 0; i < n || (c == Qb - 1 && at < T); ++i) label[at++] = c;
        }
        for (int t = T - 1; t > 0; --t) { /* shuffled */
            int other = rnd_int(&r, t + 1), c = label[t];
            label[t] = label[other];
            label[other] = c;
        }
        at = 0;
        for (int c = 0; c <= Qb; ++c) {
            offset[c] = at;
            for (int t = 0; t < T && c < Qb; ++t)
                if (label[t] == c) s->qorder[h * T + at++] = t;
        }
    }
    const double *k = tensor_f64(&s->k);
    for (int h = 0; h < s->B * s->Hk; ++h)
        for (int d = 0; d < s->D; ++d) {
            double sum = 0;
            for (int t = 0; t < s->S; ++t) sum += k[((int64_t)h * s->S + t) * s->D + d];
            s->mean[h * s->D + d] = (float)(sum / s->S);
        }
    s->d.tokens = T; s->d.query_blocks = Qb; s->d.q = s->q.data; s->d.q_layout = s->q.layout;
    s->d.query_order = s->qorder; s->d.query_offset = s->qoffset; s->d.key_mean = s->mean;
    s->d.share = (float *)mem_new((size_t)(s->B * s->H * s->Cq) * (size_t)s->Ck * 4);
}
static void sc_run(sc *s, const svg2_backend *backend)
{
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_SCORE, &s->d);
    svg2_result r = svg2_score(backend, &s->d, mem_new(bytes), bytes, &s->err);
    if (r != SVG2_OK) fail_msg("svg2_score: %s (%s: %s)", svg2_result_string(r), s->err.field, s->err.text);
}
static void sc_check(const sc *s)
{
    const double *k = tensor_f64(&s->k);
    for (int h = 0; h < s->B * s->H; ++h) {
        int hk = h / s->H * s->Hk + h % s->H / (s->H / s->Hk);
        for (int I = 0; I < s->Cq; ++I) {
            const float *got = s->d.log_mass + ((int64_t)h * s->Cq + I) * s->Ck;
            for (int j = 0; j < s->Ck; ++j) {
                double sum = 0, size = 0;
                for (int t = 0; t < s->S; ++t) {
                    double far = 0;
                    if (s->label[hk * s->S + t] != j) continue;
                    for (int d = 0; d < s->D; ++d)
                        far += (double)s->qc[((int64_t)h * s->Cq + I) * s->D + d]
                             * (k[((int64_t)hk * s->S + t) * s->D + d] - (double)s->kc[((int64_t)hk * s->Ck + j) * s->D + d]);
                    sum += exp((double)s->d.scale * far);
                    ++size;
                }
                if (size == 0) assert_true(isinf(got[j]) && got[j] < 0);
                else {
                    assert_at_most(fabs((double)got[j] - log(sum)), 2e-5);
                    if (size == 1) assert_at_most(fabs((double)got[j]), 2e-5);
                    assert_true((double)got[j] > log(size) - 2e-5); /* the mean of exp is at least exp of the mean */
                }
            }
        }
    }
}

/* Shares against float64 from q, k, labels and centroids alone. */
static void sc_check_share(const sc *s)
{
    int keep = test_mem_count, D = s->D, Ck = s->Ck;
    const double *k = tensor_f64(&s->k), *q = tensor_f64(&s->q);
    double *kbar = (double *)mem_new(sizeof(double) * (size_t)(Ck * D)), *p = (double *)mem_new(sizeof(double) * (size_t)Ck);
    double *lambda = (double *)mem_new(sizeof(double) * (size_t)Ck), *want = (double *)mem_new(sizeof(double) * (size_t)Ck);
    int *size = (int *)mem_new(sizeof(int) * (size_t)Ck);
    for (int h = 0; h < s->B * s->H; ++h) {
        int hk = h / s->H * s->Hk + h % s->H / (s->H / s->Hk);
        for (int i = 0; i < Ck * D; ++i) kbar[i] = (double)s->kc[(int64_t)hk * Ck * D + i];
        for (int I = 0; I < s->Cq; ++I) {
            const float *got = s->d.share + ((int64_t)h * s->Cq + I) * Ck;
            double total = 0;
            int rows = 0, keys = 0;
            for (int j = 0; j < Ck; ++j) lambda[j] = want[j] = 0, size[j] = 0;
            for (int t = 0; t < s->S; ++t) {
                int j = s->label[hk * s->S + t];
                double far = 0;
                if (j == Ck) continue;
                for (int d = 0; d < D; ++d)
                    far += (double)s->qc[((int64_t)h * s->Cq + I) * D + d]
                         * (k[((int64_t)hk * s->S + t) * D + d] - kbar[j * D + d]);
                lambda[j] += exp((double)s->d.scale * far);
                ++size[j];
                ++keys;
            }
            for (int j = 0; j < Ck; ++j) lambda[j] = log(lambda[j]);
            for (int t = 0; t < s->T; ++t) {
                if (s->qlabel[h * s->T + t] != I) continue;
                ref_probability(q + ((int64_t)h * s->T + t) * D, kbar, size, lambda, Ck, D, (double)s->d.scale, p);
                for (int j = 0; j < Ck; ++j) want[j] += p[j];
                ++rows;
            }
            for (int j = 0; j < Ck; ++j) {
                if (!rows || !size[j]) { assert_true(got[j] == 0); continue; }
                want[j] /= rows;
                if (!(fabs((double)got[j] - want[j]) <= 4e-5 * want[j] + 1e-30))
                    fail_msg("head %d, query cluster %d (%d rows), key cluster %d of %d: %g, not %g", h, I, rows, j, Ck,
                             (double)got[j], want[j]);
                total += (double)got[j];
            }
            if (rows && keys) assert_at_most(fabs(total - 1), 1e-5);
        }
    }
    assert_int_equal(mem_release(keep), 0);
}

static void test_score_against_f64(void **state)
{
    (void)state;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        sc cases[8];
        int n = 0;
        cases[n++] = sc_new(1, 1, 1, 1, 8, 1, 1, 0, SVG2_F32, BHSD, 0);
        cases[n++] = sc_new(1, 1, 1, 7, 8, 3, 20, 0, SVG2_F32, BHSD, 0);
        cases[n++] = sc_new(2, 4, 1, 65, 40, 5, 9, 3, SVG2_BF16, BSHD, 0);
        cases[n++] = sc_new(1, 4, 2, 300, 72, 70, 33, 0, SVG2_F16, GAPS, 0);
        cases[n++] = sc_new(1, 2, 2, 997, 128, 13, 60, 20, SVG2_F32, BSHD, 4);
        cases[n++] = sc_new(1, 1, 1, 257, 256, 65, 4, 0, SVG2_F32, BHSD, 0);
        cases[n++] = sc_new(1, 2, 1, 513, 96, 64, 1, 0, SVG2_F32, BHSD, 1);
        cases[n++] = sc_new(1, 1, 1, 1500, 64, 40, 120, 0, SVG2_F32, BHSD, 0);
        for (int i = 0; i < n; ++i) {
            sc_run(&cases[i], &backend);
            sc_check(&cases[i]);
        }
        mem_done();
    }
}

static void test_share_against_f64(void **state)
{
    (void)state;
    static const struct {
        int B, H, Hk, S, D, Cq, Ck, key_text, text, pad;
        svg2_dtype dtype;
        tensor_order order;
        double mean, sharp;
    } cases[] = {
        {1, 1, 1, 1, 8, 1, 1, 0, 0, 0, SVG2_F32, BHSD, 0, 1},
        {1, 8, 2, 40, 8, 1, 6, 0, 0, 0, SVG2_BF16, GAPS, 0, 2},
        {2, 4, 1, 65, 40, 8, 9, 3, 5, 3, SVG2_BF16, BSHD, 0, 1.5},
        {1, 4, 2, 300, 64, 9, 33, 0, 0, 7, SVG2_F16, GAPS, 0, 3},
        {1, 2, 2, 500, 128, 8, 58, 20, 70, 0, SVG2_F32, BSHD, 4, 1},
        {1, 2, 1, 500, 64, 16, 131, 0, 1, 1, SVG2_F32, GAPS, 1, 8},
        {1, 2, 1, 96, 40, 70, 7, 0, 0, 0, SVG2_F16, BHSD, 0, 1},
        {1, 1, 1, 200, 128, 8, 64, 0, 0, 0, SVG2_F32, BHSD, 500, 1},
        {1, 2, 1, 60, 8, 8, 3, 60, 4, 0, SVG2_F32, BHSD, 0, 1}, /* nothing but text among the keys */
    };
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int i = 0; i < COUNT(cases); ++i) {
            sc s = sc_new(cases[i].B, cases[i].H, cases[i].Hk, cases[i].S, cases[i].D, cases[i].Cq, cases[i].Ck,
                          cases[i].key_text, SVG2_F32, BHSD, cases[i].mean);
            sc_rows(&s, cases[i].text, cases[i].pad, cases[i].dtype, cases[i].order, cases[i].sharp);
            sc_run(&s, &backend);
            sc_check(&s);
            sc_check_share(&s);
            mem_done();
        }
    }
}

/* NaN or Inf in a row stays in the shares of that row's cluster; in text or padding it is in none. */
static void test_share_nan(void **state)
{
    (void)state;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int I = 0; I < 10; ++I) { /* 8: text, 9: padding */
            sc s = sc_new(1, 2, 1, 200, 40, 8, 13, 5, SVG2_F32, BHSD, 0);
            size_t bytes = 2 * 8 * 13 * 4;
            float *clean = (float *)mem_new(bytes);
            sc_rows(&s, 6, 5, SVG2_F32, BHSD, 1);
            sc_run(&s, &backend);
            memcpy(clean, s.d.share, bytes);
            if (s.qoffset[11 + I] == s.qoffset[11 + I + 1]) { mem_done(); continue; }
            /* the last row of cluster I of head 1 */
            int row = s.qorder[s.T + s.qoffset[11 + I + 1] - 1];
            tensor_put(&s.q, tensor_at(&s.q, 0, 1, row, 3), I % 3 ? (double)NAN : (double)INFINITY);
            sc_run(&s, &backend);
            for (int c = 0; c < 16; ++c)
                if (c != 8 + I) assert_memory_equal(s.d.share + c * 13, clean + c * 13, 13 * 4);
                else
                    for (int j = 0; j < 13; ++j)
                        if (clean[c * 13 + j] > 0 && I % 3) assert_true(isnan(s.d.share[c * 13 + j]));
            mem_done();
        }
    }
}

/* Without tokens: no share, whatever the other fields hold; log_mass is the same. */
static void test_share_none(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    sc s = sc_new(1, 4, 2, 100, 16, 8, 9, 0, SVG2_F32, BHSD, 0);
    size_t bytes = 4 * 8 * 9 * 4;
    sc_rows(&s, 3, 3, SVG2_F32, BHSD, 1);
    sc_run(&s, &backend);
    uint64_t want = mem_hash(s.d.log_mass, bytes);
    float *share = s.d.share;
    for (int i = 0; i < 2; ++i) {
        memset(s.d.log_mass, 0xff, bytes);
        memset(share, 0xff, bytes);
        s.d.tokens = 0;
        s.d.query_blocks = -7;
        s.d.q_layout.dtype = (svg2_dtype)9;
        s.d.q_layout.stride_token = -1;
        s.d.q = (const char *)s.q.data + 1;
        s.d.query_order = s.d.query_offset = 0;
        s.d.key_mean = 0;
        s.d.share = i ? 0 : share;
        sc_run(&s, &backend);
        assert_true(mem_hash(s.d.log_mass, bytes) == want);
        assert_untouched(share, bytes);
    }
}

static void test_score_threads_same_bits(void **state)
{
    (void)state;
    uint64_t want = 0;
    for (int run = 0; run < 6; ++run) {
        int32_t threads = run ? run : 1;
        uint64_t seed = (uint64_t)run;
        svg2_parallel p = run >= 4 ? pool_scattered(&seed) : pool_threads(&threads);
        svg2_backend backend = svg2_cpu_backend(run ? &p : 0);
        sc s = sc_new(1, 4, 2, 700, 64, 30, 60, 0, SVG2_F32, BHSD, 1);
        sc_rows(&s, 10, 3, SVG2_BF16, BSHD, 2);
        sc_run(&s, &backend);
        uint64_t got = mem_hash(s.d.log_mass, 4 * 30 * 60 * 4) * 31 + mem_hash(s.d.share, 4 * 30 * 60 * 4);
        if (!run) want = got;
        assert_true(got == want);
        mem_done();
    }
}

/* Logits of hundreds inside one cluster: no overflow. NaN stays in its own block. */
static void test_score_extremes(void **state)
{
    (void)state;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        sc s = sc_new(1, 1, 1, 200, 16, 10, 12, 0, SVG2_F32, BHSD, 0);
        s.d.scale = 100;
        sc_run(&s, &backend);
        for (int i = 0; i < 120; ++i) assert_true(isfinite(s.d.log_mass[i]) || i % 12 % 5 == 4);
        s.d.scale = 0.25f;
        tensor_put(&s.k, tensor_at(&s.k, 0, 0, 33, 5), (double)NAN);
        s.qc[2 * 16 + 3] = NAN;
        sc_run(&s, &backend);
        for (int I = 0; I < 10; ++I)
            for (int j = 0; j < 12; ++j)
                if (I != 2 && j != s.label[33] && j % 5 != 4) assert_true(isfinite(s.d.log_mass[I * 12 + j]));
        mem_done();
    }
}

static void test_score_rejects(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    sc s = sc_new(1, 4, 2, 100, 16, 5, 9, 0, SVG2_F32, BHSD, 0);
    sc_rows(&s, 3, 2, SVG2_F16, GAPS, 1);
    svg2_score_desc good = s.d;
    size_t bytes = svg2_stage_workspace_bytes(&backend, SVG2_STAGE_SCORE, &good);
    char *work = (char *)mem_new(bytes + 64);
#define REJECT(change, code, name)                                                                               \
    do {                                                                                                         \
        s.d = good;                                                                                              \
        change;                                                                                                  \
        if (!error_names(&s.err, svg2_score(&backend, &s.d, work, bytes, &s.err), code, name)) fail_msg("%s", #change); \
    } while (0)
    REJECT(s.d.batch = 0, SVG2_ERR_RANGE, "batch");
    REJECT(s.d.heads = 0, SVG2_ERR_RANGE, "heads");
    REJECT(s.d.heads_kv = 3, SVG2_ERR_SHAPE, "heads_kv");
    REJECT(s.d.tokens_kv = 0, SVG2_ERR_RANGE, "tokens_kv|tokens");
    REJECT(s.d.head_dim = 10, SVG2_ERR_RANGE, "head_dim");
    REJECT(s.d.query_clusters = 0, SVG2_ERR_RANGE, "query_clusters");
    REJECT(s.d.key_clusters = 0, SVG2_ERR_RANGE, "key_clusters");
    REJECT(s.d.key_blocks = 8, SVG2_ERR_RANGE, "key_blocks");
    REJECT(s.d.scale = NAN, SVG2_ERR_RANGE, "scale");
    REJECT(s.d.k = 0, SVG2_ERR_NULL, "k");
    REJECT(s.d.k_layout.dtype = (svg2_dtype)3, SVG2_ERR_DTYPE, "k");
    REJECT(s.d.key_order = 0, SVG2_ERR_NULL, "key_order");
    REJECT(s.d.key_offset = 0, SVG2_ERR_NULL, "key_offset");
    REJECT(s.d.query_centroid = 0, SVG2_ERR_NULL, "query_centroid");
    REJECT(s.d.key_centroid = 0, SVG2_ERR_NULL, "key_centroid");
    REJECT(s.d.log_mass = 0, SVG2_ERR_NULL, "log_mass");
    REJECT(s.d.tokens = -1, SVG2_ERR_RANGE, "tokens");
    REJECT(s.d.tokens = INT32_MIN, SVG2_ERR_RANGE, "tokens");
    REJECT(s.d.query_blocks = 4, SVG2_ERR_RANGE, "query_blocks");
    REJECT(s.d.query_blocks = -1, SVG2_ERR_RANGE, "query_blocks");
    REJECT(s.d.q = 0, SVG2_ERR_NULL, "q");
    REJECT(s.d.q = (const char *)s.q.data + 1, SVG2_ERR_ALIGN, "q");
    REJECT(s.d.q_layout.dtype = (svg2_dtype)3, SVG2_ERR_DTYPE, "q");
    REJECT(s.d.q_layout.stride_token = -1, SVG2_ERR_STRIDE, "q");
    REJECT(s.d.q_layout.stride_head = INT64_MAX / 4, SVG2_ERR_OVERFLOW, "q");
    REJECT(s.d.query_order = 0, SVG2_ERR_NULL, "query_order");
    REJECT(s.d.query_offset = 0, SVG2_ERR_NULL, "query_offset");
    REJECT(s.d.key_mean = 0, SVG2_ERR_NULL, "key_mean");
    REJECT(s.d.share = 0, SVG2_ERR_NULL, "share");
    assert_true(error_names(&s.err, svg2_score(&backend, 0, work, bytes, &s.err), SVG2_ERR_NULL, "desc"));
    if (bytes) assert_true(error_names(&s.err, svg2_score(&backend, &good, work, bytes - 1, &s.err), SVG2_ERR_WORKSPACE, "workspace_bytes|workspace"));
    assert_untouched(good.log_mass, 4 * 5 * 9 * 4);
    assert_untouched(good.share, 4 * 5 * 9 * 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_score_against_f64), TEST(test_share_against_f64),       TEST(test_share_nan),
        TEST(test_share_none),        TEST(test_score_threads_same_bits), TEST(test_score_extremes),
        TEST(test_score_rejects),
    };
    return cmocka_run_group_tests_name("score", tests, 0, 0);
}
