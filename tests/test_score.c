/* >>score: log mass of blocks as the query centroids see them. */
#include "test.h"

typedef struct sc {
    svg2_score_desc d;
    tensor k;
    int B, H, Hk, S, D, Cq, Ck, text;
    int32_t *label, *order, *offset;
    float *qc, *kc;
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
    const double *k = tensor_f64(&s.k);
    double *kbar = (double *)mem_new(sizeof(double) * (size_t)(Ck * D));
    int *size = (int *)mem_new(sizeof(int) * (size_t)Ck);
    for (int i = 0; i < B * H * Cq * D; ++i) s.qc[i] = (float)(1.5 * rnd_normal(&r));
    for (int h = 0; h < n; ++h) {
        int at = 0;
        for (int t = 0; t < S; ++t) {
            int c = rnd_int(&r, Ck);
            s.label[h * S + t] = t >= S - text ? Ck : c % 5 == 4 ? 0 : c; /* some clusters are empty */
        }
        for (int c = 0; c <= blocks; ++c) {
            s.offset[h * (blocks + 1) + c] = at;
            for (int t = 0; t < S && c < blocks; ++t)
                if (s.label[h * S + t] == c) s.order[h * S + at++] = t;
        }
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
        sc_run(&s, &backend);
        uint64_t got = mem_hash(s.d.log_mass, 4 * 30 * 60 * 4);
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
    assert_true(error_names(&s.err, svg2_score(&backend, 0, work, bytes, &s.err), SVG2_ERR_NULL, "desc"));
    if (bytes) assert_true(error_names(&s.err, svg2_score(&backend, &good, work, bytes - 1, &s.err), SVG2_ERR_WORKSPACE, "workspace_bytes|workspace"));
    assert_untouched(good.log_mass, 4 * 5 * 9 * 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_score_against_f64), TEST(test_score_threads_same_bits), TEST(test_score_extremes), TEST(test_score_rejects)};
    return cmocka_run_group_tests_name("score", tests, 0, 0);
}
