/* >>permute: stable counting sort, text and padding blocks; statistics of key clusters. */
#include "test.h"

typedef struct sides { int tokens, clusters, text_begin, text_count, pad_begin, pad_count; } sides;

static void permute_case(sides c, const svg2_backend *backend)
{
    enum { B = 2, H = 3 };
    int has_text = c.text_count > 0, has_pad = c.pad_count > 0, blocks = c.clusters + has_text + has_pad;
    uint64_t s = (uint64_t)(c.tokens * 31 + c.clusters);
    svg2_permute_desc d = SVG2_ZERO;
    svg2_error err;
    size_t n = (size_t)(B * H) * (size_t)c.tokens;
    d.batch = B; d.heads = H; d.tokens = c.tokens; d.clusters = c.clusters;
    d.text_begin = c.text_begin; d.text_count = c.text_count; d.padding_begin = c.pad_begin; d.padding_count = c.pad_count;
    d.label = (int32_t *)mem_new(n * 4);
    d.order = (int32_t *)mem_new(n * 4);
    d.offset = (int32_t *)mem_new((size_t)(B * H) * (size_t)(blocks + 1) * 4);
    int32_t *want = (int32_t *)mem_new(n * 4);
    for (int h = 0; h < B * H; ++h)
        for (int t = 0; t < c.tokens; ++t) {
            int32_t *l = &d.label[h * c.tokens + t];
            int in_text = t >= c.text_begin && t < c.text_begin + c.text_count;
            int in_pad = t >= c.pad_begin && t < c.pad_begin + c.pad_count;
            *l = in_text || in_pad ? -1 : h == 1 ? c.clusters - 1 : rnd_int(&s, c.clusters); /* head 1: one giant cluster */
            want[h * c.tokens + t] = in_text ? c.clusters : in_pad ? c.clusters + has_text : *l;
        }
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_PERMUTE, &d);
    assert_true(bytes < ((size_t)1 << 30));
    assert_ok(svg2_permute(backend, &d, mem_new(bytes), bytes, &err));
    for (int h = 0; h < B * H; ++h) {
        const int32_t *label = d.label + h * c.tokens, *order = d.order + h * c.tokens, *offset = d.offset + h * (blocks + 1);
        int at = 0;
        assert_memory_equal(label, want + h * c.tokens, (size_t)c.tokens * 4);
        for (int block = 0; block < blocks; ++block) {
            assert_int_equal(offset[block], at);
            for (int t = 0; t < c.tokens; ++t)
                if (label[t] == block) assert_int_equal(order[at++], t);
        }
        assert_int_equal(offset[blocks], c.tokens);
    }
    mem_done();
}

static void test_permute_shapes(void **state)
{
    (void)state;
    static const sides cases[] = {
        {1, 1, 0, 0, 0, 0},       {1, 9, 0, 0, 0, 0},        {7, 3, 0, 0, 0, 0},         {65, 8, 60, 5, 0, 0},
        {65, 8, 0, 5, 0, 0},      {65, 8, 0, 0, 60, 5},      {65, 8, 50, 5, 55, 10},     {65, 8, 0, 5, 5, 10},
        {997, 40, 900, 40, 940, 57}, {4099, 231, 0, 0, 0, 0}, {4099, 5000, 0, 3, 3, 1},  {997, 1, 0, 0, 0, 0},
    };
    for (int i = 0; i < COUNT(cases); ++i) {
        svg2_backend serial = svg2_cpu_backend(0);
        int32_t two = 2;
        uint64_t seed = 3;
        svg2_parallel threads = pool_threads(&two), scattered = pool_scattered(&seed);
        svg2_backend pooled = svg2_cpu_backend(&threads), odd = svg2_cpu_backend(&scattered);
        permute_case(cases[i], &serial);
        permute_case(cases[i], &pooled);
        permute_case(cases[i], &odd);
    }
}

static void summarize_case(int S, int D, int clusters, int text, svg2_dtype type, tensor_order layout, double mean, const svg2_backend *backend)
{
    enum { B = 2, H = 2 };
    int blocks = clusters + (text > 0), keep = test_mem_count;
    uint64_t s = (uint64_t)(S + D + clusters);
    svg2_error err;
    tensor v = tensor_new(B, H, S, D, type, layout);
    tensor_fill_normal(&v, 6, 2, mean);
    int32_t *label = (int32_t *)mem_new((size_t)(B * H * S) * 4), *order = (int32_t *)mem_new((size_t)(B * H * S) * 4);
    int32_t *offset = (int32_t *)mem_new((size_t)(B * H * (blocks + 1)) * 4);
    const double *vd = tensor_f64(&v);
    double *vbar = (double *)mem_new(sizeof(double) * (size_t)(clusters * D));
    int *n = (int *)mem_new(sizeof(int) * (size_t)clusters);
    for (int h = 0; h < B * H; ++h) {
        int at = 0;
        for (int t = 0; t < S; ++t) /* the last cluster stays empty if there are several */
            label[h * S + t] = t >= S - text ? clusters : rnd_int(&s, clusters > 1 ? clusters - 1 : 1);
        for (int c = 0; c < blocks; ++c) {
            offset[h * (blocks + 1) + c] = at;
            for (int t = 0; t < S; ++t)
                if (label[h * S + t] == c) order[h * S + at++] = t;
        }
        offset[h * (blocks + 1) + blocks] = at;
    }
    svg2_summarize_desc d = SVG2_ZERO;
    d.batch = B; d.heads = H; d.tokens = S; d.head_dim = D; d.clusters = clusters; d.blocks = blocks;
    d.v = v.data; d.v_layout = v.layout;
    d.order = order; d.offset = offset;
    d.value_mean = (float *)mem_new((size_t)(B * H * clusters * D) * 4);
    d.value_var = (float *)mem_new((size_t)(B * H * clusters) * 4);
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_SUMMARIZE, &d);
    assert_ok(svg2_summarize(backend, &d, mem_new(bytes), bytes, &err));
    for (int h = 0; h < B * H; ++h) {
        const double *vh = vd + (int64_t)h * S * D;
        ref_means(vh, label + h * S, S, D, clusters, vbar, n);
        for (int c = 0; c < clusters; ++c) {
            double value_var = 0;
            for (int e = 0; e < D; ++e) {
                for (int t = 0; t < S; ++t) {
                    double dv = vh[t * D + e] - vbar[c * D + e];
                    if (label[h * S + t] == c) value_var += dv * dv / n[c];
                }
                assert_at_most(fabs((double)d.value_mean[(h * clusters + c) * D + e] - vbar[c * D + e]), 2e-6 * (8 + mean));
            }
            assert_at_most(fabs((double)d.value_var[h * clusters + c] - value_var), 1e-5 * D * (4 + mean));
        }
    }
    mem_release(keep);
}

static void test_summarize(void **state)
{
    (void)state;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        summarize_case(1, 8, 1, 0, SVG2_F32, BHSD, 0, &backend);
        summarize_case(1, 8, 5, 0, SVG2_F32, BHSD, 0, &backend);
        summarize_case(65, 40, 7, 3, SVG2_BF16, BSHD, 0, &backend);
        summarize_case(300, 72, 13, 0, SVG2_F32, GAPS, 0, &backend);
        summarize_case(997, 128, 20, 11, SVG2_F16, BSHD, 8, &backend);
        summarize_case(257, 256, 4, 0, SVG2_F32, BHSD, 8, &backend);
    }
}

static void test_permute_rejects(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    svg2_permute_desc good = SVG2_ZERO, d;
    svg2_error err;
    good.batch = 1; good.heads = 2; good.tokens = 50; good.clusters = 4;
    good.label = (int32_t *)mem_new(400);
    good.order = (int32_t *)mem_new(400);
    good.offset = (int32_t *)mem_new(40);
    memset(good.label, 0, 400);
    size_t bytes = svg2_stage_workspace_bytes(&backend, SVG2_STAGE_PERMUTE, &good);
    char *work = (char *)mem_new(bytes + 64);
#define REJECT(change, code, name)                                                                               \
    do {                                                                                                         \
        d = good;                                                                                                \
        change;                                                                                                  \
        assert_true(error_names(&err, svg2_permute(&backend, &d, work, bytes, &err), code, name));               \
        assert_untouched(good.order, 400);                                                                       \
        assert_untouched(good.offset, 40);                                                                       \
    } while (0)
    REJECT(d.batch = 0, SVG2_ERR_RANGE, "batch");
    REJECT(d.heads = -1, SVG2_ERR_RANGE, "heads");
    REJECT(d.tokens = 0, SVG2_ERR_RANGE, "tokens");
    REJECT(d.clusters = 0, SVG2_ERR_RANGE, "clusters");
    REJECT(d.label = 0, SVG2_ERR_NULL, "label");
    REJECT(d.order = 0, SVG2_ERR_NULL, "order");
    REJECT(d.offset = 0, SVG2_ERR_NULL, "offset");
    d = good;
    assert_true(error_names(&err, svg2_permute(&backend, 0, work, bytes, &err), SVG2_ERR_NULL, "desc"));
    assert_true(error_names(&err, svg2_permute(0, &d, work, bytes, &err), SVG2_ERR_NULL, "backend"));
    if (bytes) {
        assert_true(error_names(&err, svg2_permute(&backend, &d, 0, bytes, &err), SVG2_ERR_NULL, "workspace"));
        assert_true(error_names(&err, svg2_permute(&backend, &d, work, bytes - 1, &err), SVG2_ERR_WORKSPACE, "workspace_bytes|workspace"));
        assert_true(error_names(&err, svg2_permute(&backend, &d, work + 4, bytes, &err), SVG2_ERR_ALIGN, "workspace"));
    }
    assert_untouched(good.order, 400);
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_permute_shapes), TEST(test_summarize), TEST(test_permute_rejects)};
    return cmocka_run_group_tests_name("permute", tests, 0, 0);
}
