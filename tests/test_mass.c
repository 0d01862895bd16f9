/* >>mass: exact attention mass of every block, and recall. */
#include "test.h"

typedef struct shape { int B, H, Hk, Sq, Sk, D, Qb, Kb; svg2_dtype type; tensor_order order; double mean; int pad; /* the last key block is padding */ } shape;

static void mass_case(shape s, const svg2_backend *backend)
{
    int Q = s.B * s.H, K = s.B * s.Hk;
    uint64_t r = (uint64_t)(s.Sq * 7 + s.Sk);
    svg2_error err;
    tensor q = tensor_new(s.B, s.H, s.Sq, s.D, s.type, s.order), k = tensor_new(s.B, s.Hk, s.Sk, s.D, s.type, s.order);
    tensor v = tensor_new(s.B, s.Hk, s.Sk, s.D, s.type, s.order), out = tensor_new(s.B, s.H, s.Sq, s.D, SVG2_F32, BHSD);
    tensor_fill_normal(&q, 1, 1.5, 0);
    tensor_fill_normal(&k, 2, 1, s.mean);
    tensor_fill_normal(&v, 3, 1, 0);
    const double *q64 = tensor_f64(&q), *k64 = tensor_f64(&k);
    svg2_mass_desc d = SVG2_ZERO;
    d.attention.batch = s.B; d.attention.heads = s.H; d.attention.heads_kv = s.Hk;
    d.attention.tokens = s.Sq; d.attention.tokens_kv = s.Sk; d.attention.head_dim = s.D;
    d.attention.scale = (float)(1 / sqrt(s.D));
    d.attention.q = q.data; d.attention.k = k.data; d.attention.v = v.data; d.attention.out = out.data;
    d.attention.q_layout = q.layout; d.attention.k_layout = k.layout; d.attention.v_layout = v.layout; d.attention.out_layout = out.layout;
    d.attention.lse = (float *)mem_new((size_t)(Q * s.Sq) * 4);
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_ATTENTION, &d.attention);
    assert_ok(svg2_attention(backend, &d.attention, mem_new(bytes), bytes, &err)); /* dense: the LSE */
    if (s.Sq > 10) d.attention.lse[3] = -INFINITY; /* a padding row counts nothing */
    uint64_t lse = mem_hash(d.attention.lse, (size_t)(Q * s.Sq) * 4);

    int32_t *label_q = (int32_t *)mem_new((size_t)(Q * s.Sq) * 4), *label_k = (int32_t *)mem_new((size_t)(K * s.Sk) * 4);
    int32_t *order_q = (int32_t *)mem_new((size_t)(Q * s.Sq) * 4), *order_k = (int32_t *)mem_new((size_t)(K * s.Sk) * 4);
    int32_t *off_q = (int32_t *)mem_new((size_t)(Q * (s.Qb + 1)) * 4), *off_k = (int32_t *)mem_new((size_t)(K * (s.Kb + 1)) * 4);
    for (int side = 0; side < 2; ++side)
        for (int h = 0; h < (side ? K : Q); ++h) {
            int S = side ? s.Sk : s.Sq, n = side ? s.Kb : s.Qb, at = 0;
            int32_t *label = (side ? label_k : label_q) + h * S, *order = (side ? order_k : order_q) + h * S;
            int32_t *off = (side ? off_k : off_q) + h * (n + 1);
            for (int t = 0; t < S; ++t) label[t] = n > 2 && !(side && s.pad) ? rnd_int(&r, n - 1) : rnd_int(&r, n); /* the last block is empty */
            for (int c = 0; c <= n; ++c) {
                off[c] = at;
                for (int t = 0; t < S && c < n; ++t)
                    if (label[t] == c) order[at++] = t;
            }
        }
    uint8_t *map = (uint8_t *)mem_new((size_t)(Q * s.Qb * s.Kb));
    for (int i = 0; i < Q * s.Qb * s.Kb; ++i) map[i] = rnd_unit(&r) < 0.4;
    d.attention.query_blocks = s.Qb; d.attention.key_blocks = s.Kb; d.attention.map = map;
    d.attention.query_order = order_q; d.attention.query_offset = off_q;
    d.attention.key_order = order_k; d.attention.key_offset = off_k;
    d.valid_key_blocks = s.pad ? s.Kb - 1 : s.pad == 0 && s.Kb > 9 ? s.Kb : 0; /* 0 and all are the same */
    for (int h = 0; h < Q && s.pad; ++h) /* the LSE does not know padding */
        for (int i = 0; i < s.Sq; ++i) {
            int hk = h / s.H * s.Hk + h % s.H / (s.H / s.Hk);
            double sum = 0;
            for (int t = 0; t < s.Sk; ++t)
                if (label_k[hk * s.Sk + t] < s.Kb - 1)
                    sum += exp((double)d.attention.scale * dot64(q64 + ((int64_t)h * s.Sq + i) * s.D, k64 + ((int64_t)hk * s.Sk + t) * s.D, s.D));
            if (!isinf(d.attention.lse[h * s.Sq + i])) d.attention.lse[h * s.Sq + i] = (float)log(sum);
        }
    lse = mem_hash(d.attention.lse, (size_t)(Q * s.Sq) * 4);
    d.mass = (float *)mem_new((size_t)(Q * s.Qb * s.Kb) * 4);
    d.recall = (float *)mem_new((size_t)(Q * s.Sq) * 4);
    bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_MASS, &d);
    uint64_t out_before = mem_hash(out.data, out.bytes);
    svg2_result result = svg2_block_mass(backend, &d, mem_new(bytes), bytes, &err);
    if (result != SVG2_OK) fail_msg("svg2_block_mass: %s (%s: %s)", svg2_result_string(result), err.field, err.text);
    assert_true(lse == mem_hash(d.attention.lse, (size_t)(Q * s.Sq) * 4) && out_before == mem_hash(out.data, out.bytes));

    double *mass = (double *)mem_new(sizeof(double) * (size_t)(s.Qb * s.Kb)), *p = (double *)mem_new(sizeof(double) * (size_t)s.Sk);
    for (int h = 0; h < Q; ++h) {
        int hk = h / s.H * s.Hk + h % s.H / (s.H / s.Hk);
        memset(mass, 0, sizeof(double) * (size_t)(s.Qb * s.Kb));
        for (int i = 0; i < s.Sq; ++i) {
            double top = -1e300, sum = 0, recall = 0;
            int I = label_q[h * s.Sq + i];
            float got = d.recall[h * s.Sq + i];
            if (isinf(d.attention.lse[h * s.Sq + i])) { assert_true(got == 0 || isnan(got) == 0); continue; }
            for (int t = 0; t < s.Sk; ++t) {
                p[t] = (double)d.attention.scale * dot64(q64 + ((int64_t)h * s.Sq + i) * s.D, k64 + ((int64_t)hk * s.Sk + t) * s.D, s.D);
                top = fmax(top, p[t]);
            }
            for (int t = 0; t < s.Sk; ++t) {
                p[t] = s.pad && label_k[hk * s.Sk + t] == s.Kb - 1 ? 0 : exp(p[t] - top);
                sum += p[t];
            }
            for (int t = 0; t < s.Sk; ++t) {
                int c = label_k[hk * s.Sk + t];
                mass[I * s.Kb + c] += p[t] / sum;
                if (map[(h * s.Qb + I) * s.Kb + c]) recall += p[t] / sum;
            }
            assert_at_most(fabs((double)got - recall), 1e-5);
        }
        for (int I = 0; I < s.Qb; ++I) {
            double total = 0, rows = 0;
            for (int c = 0; c < s.Kb; ++c) {
                double got = (double)d.mass[(h * s.Qb + I) * s.Kb + c];
                assert_at_most(fabs(got - mass[I * s.Kb + c]), 1e-5 * (1 + mass[I * s.Kb + c]));
                total += got;
            }
            for (int i = 0; i < s.Sq; ++i) rows += label_q[h * s.Sq + i] == I && !isinf(d.attention.lse[h * s.Sq + i]);
            assert_at_most(fabs(total - rows), 1e-5 * rows);
        }
    }
    /* each output alone gives the same; no map: recall is 1 */
    float *m = d.mass, *rec = d.recall;
    d.mass = 0;
    d.recall = (float *)mem_new((size_t)(Q * s.Sq) * 4);
    assert_ok(svg2_block_mass(backend, &d, mem_new(bytes), bytes, &err));
    assert_memory_equal(d.recall, rec, (size_t)(Q * s.Sq) * 4);
    d.mass = (float *)mem_new((size_t)(Q * s.Qb * s.Kb) * 4);
    d.recall = 0;
    assert_ok(svg2_block_mass(backend, &d, mem_new(bytes), bytes, &err));
    assert_memory_equal(d.mass, m, (size_t)(Q * s.Qb * s.Kb) * 4);
    d.attention.map = 0;
    d.recall = rec;
    bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_MASS, &d);
    assert_ok(svg2_block_mass(backend, &d, mem_new(bytes), bytes, &err));
    for (int i = 0; i < Q * s.Sq; ++i)
        if (!isinf(d.attention.lse[i])) assert_at_most(fabs((double)rec[i] - 1), 1e-5);
    mem_done();
}

static void test_mass_against_f64(void **state)
{
    (void)state;
    static const shape cases[] = {
        {1, 1, 1, 1, 1, 8, 1, 1, SVG2_F32, BHSD, 0, 0},    {2, 4, 1, 63, 65, 40, 5, 9, SVG2_F32, BSHD, 0, 0},
        {1, 4, 2, 65, 7, 64, 3, 20, SVG2_BF16, GAPS, 0, 1},   {1, 2, 2, 300, 997, 72, 13, 40, SVG2_F16, BSHD, 0, 1},
        {1, 1, 1, 500, 600, 128, 30, 100, SVG2_F32, BHSD, 8, 0}, {1, 1, 1, 60, 90, 256, 4, 4, SVG2_F32, GAPS, 1, 1},
        {1, 2, 1, 257, 300, 96, 1, 31, SVG2_F32, BHSD, 0, 1}, {1, 2, 1, 257, 300, 96, 31, 1, SVG2_F32, BHSD, 0, 0},
    };
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int i = 0; i < COUNT(cases); ++i) mass_case(cases[i], &backend);
    }
}

static void test_mass_threads(void **state)
{
    (void)state;
    shape s = {1, 2, 1, 400, 500, 64, 12, 17, SVG2_F32, BHSD, 0, 1};
    for (int32_t threads = 2; threads <= 3; ++threads) {
        svg2_parallel p = pool_threads(&threads);
        svg2_backend backend = svg2_cpu_backend(&p);
        mass_case(s, &backend);
    }
    uint64_t seed = 1;
    svg2_parallel p = pool_scattered(&seed);
    svg2_backend backend = svg2_cpu_backend(&p);
    mass_case(s, &backend);
}

static void test_mass_rejects(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    svg2_mass_desc good = SVG2_ZERO, d;
    svg2_error err;
    float *x = (float *)mem_new(20 * 8 * 4), *m = (float *)mem_new(4), *rec = (float *)mem_new(20 * 4), *lse = (float *)mem_new(20 * 4);
    memset(x, 0, 20 * 8 * 4);
    memset(lse, 0, 20 * 4);
    good.attention.batch = good.attention.heads = good.attention.heads_kv = 1;
    good.attention.tokens = good.attention.tokens_kv = 20;
    good.attention.head_dim = 8;
    good.attention.scale = 1;
    good.attention.q = good.attention.k = x;
    good.attention.lse = lse;
    good.mass = m;
    good.recall = rec;
    size_t bytes = svg2_stage_workspace_bytes(&backend, SVG2_STAGE_MASS, &good);
    void *work = mem_new(bytes);
#define REJECT(change, code, name)                                                                                    \
    do {                                                                                                              \
        d = good;                                                                                                     \
        change;                                                                                                       \
        if (!error_names(&err, svg2_block_mass(&backend, &d, work, bytes, &err), code, name)) fail_msg("%s", #change); \
    } while (0)
    REJECT(d.attention.lse = 0, SVG2_ERR_NULL, "lse");
    REJECT(d.attention.q = 0, SVG2_ERR_NULL, "q");
    REJECT(d.attention.k = 0, SVG2_ERR_NULL, "k");
    REJECT(d.attention.head_dim = 3, SVG2_ERR_RANGE, "head_dim");
    REJECT(d.attention.tokens = 0, SVG2_ERR_RANGE, "tokens");
    REJECT(d.valid_key_blocks = -1, SVG2_ERR_RANGE, "valid_key_blocks");
    REJECT(d.valid_key_blocks = 2, SVG2_ERR_RANGE, "valid_key_blocks");
    assert_untouched(m, 4);
    assert_untouched(rec, 20 * 4);
    d = good; /* v and out are ignored: NULL is fine */
    assert_ok(svg2_block_mass(&backend, &d, work, bytes, &err));
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_mass_against_f64), TEST(test_mass_threads), TEST(test_mass_rejects)};
    return cmocka_run_group_tests_name("mass", tests, 0, 0);
}
