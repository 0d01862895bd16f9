/* >>permute on the CUDA backend: the CPU's order, offset and label, bit by bit. */
#include "device.h"
#include "test.h"

typedef struct sides { int tokens, clusters, text_begin, text_count, pad_begin, pad_count; } sides;

/* what the labels look like */
enum { EVEN, GIANT, SORTED, REVERSED, RUNS, SPARSE, FILLS };

static int label_of(int fill, int t, int tokens, int clusters, uint64_t *s)
{
    switch (fill) {
    case GIANT: return rnd_int(s, 10) ? clusters / 2 : rnd_int(s, clusters);
    case SORTED: return (int)((int64_t)t * clusters / tokens);
    case REVERSED: return clusters - 1 - (int)((int64_t)t * clusters / tokens);
    case RUNS: return t / 7 * 31 % clusters;
    case SPARSE: return clusters - 1 - rnd_int(s, 3) * (clusters / 3);
    default: return rnd_int(s, clusters);
    }
}

static void check_case(sides c, int batch, int heads, int fill)
{
    int blocks = c.clusters + (c.text_count > 0) + (c.pad_count > 0), all = batch * heads, keep = test_mem_count;
    size_t n = (size_t)all * (size_t)c.tokens * 4, m = (size_t)all * (size_t)(blocks + 1) * 4;
    svg2_backend cpu = svg2_cpu_backend_simd(0, SVG2_SIMD_SCALAR), cuda = svg2_cuda_backend(0);
    svg2_permute_desc d = SVG2_ZERO;
    svg2_error err;
    uint64_t s = (uint64_t)(c.tokens * 31 + c.clusters + fill);
    int32_t *label = (int32_t *)mem_new(n), *order = (int32_t *)mem_new(n), *offset = (int32_t *)mem_new(m);
    int32_t *got = (int32_t *)mem_new(n > m ? n : m);
    d.batch = batch; d.heads = heads; d.tokens = c.tokens; d.clusters = c.clusters;
    d.text_begin = c.text_begin; d.text_count = c.text_count; d.padding_begin = c.pad_begin; d.padding_count = c.pad_count;
    for (int h = 0; h < all; ++h)
        for (int t = 0; t < c.tokens; ++t) {
            int in_text = t >= c.text_begin && t < c.text_begin + c.text_count;
            int in_pad = t >= c.pad_begin && t < c.pad_begin + c.pad_count;
            label[h * c.tokens + t] = in_text || in_pad ? -1 - rnd_int(&s, 1000) : label_of((fill + h) % FILLS, t, c.tokens, c.clusters, &s);
        }
    svg2_permute_desc g = d;
    size_t bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_PERMUTE, &d);
    g.label = (int32_t *)device_copy(label, n);
    g.order = (int32_t *)device_new(n);
    g.offset = (int32_t *)device_new(m);
    assert_ok(svg2_permute(&cuda, &g, device_new(bytes), bytes, &err));
    d.label = label; d.order = order; d.offset = offset;
    bytes = svg2_stage_workspace_bytes(&cpu, SVG2_STAGE_PERMUTE, &d);
    assert_ok(svg2_permute(&cpu, &d, mem_new(bytes), bytes, &err));
    device_read(got, g.label, n);
    assert_memory_equal(got, label, n);
    device_read(got, g.order, n);
    assert_memory_equal(got, order, n);
    device_read(got, g.offset, m);
    assert_memory_equal(got, offset, m);
    device_reset();
    assert_int_equal(mem_release(keep), 0);
}

static const sides cases[] = {
    {1, 1, 0, 0, 0, 0},      {1, 9, 0, 0, 0, 0},        {7, 3, 0, 0, 0, 0},      {63, 5, 0, 0, 0, 0},   {65, 8, 60, 5, 0, 0},
    {65, 8, 0, 5, 0, 0},     {65, 8, 0, 0, 60, 5},      {65, 8, 50, 5, 55, 10},  {65, 8, 0, 5, 5, 10},  {130, 8, 30, 5, 100, 7},
    {333, 100, 0, 33, 0, 0}, {997, 40, 900, 40, 940, 57}, {997, 1, 0, 0, 0, 0},  {333, 1, 0, 0, 300, 33}, {4099, 231, 0, 0, 0, 0},
    {4097, 1000, 4000, 90, 4090, 7}, {600, 1022, 3, 7, 590, 10}, {600, 1024, 3, 7, 590, 10}, {700, 2046, 0, 7, 690, 10}, {700, 2047, 0, 7, 690, 10},
    {4099, 5000, 0, 3, 3, 1}, {1500, 65536, 1400, 60, 1460, 40}, {20, 200000, 0, 0, 0, 0},
};

static void permute_as_the_cpu(void **state)
{
    (void)state;
    for (int i = 0; i < COUNT(cases); ++i) {
        sides c = cases[i];
        if (TEST_SLOW_BUILD && (c.tokens > 1000 || c.clusters > 70000 || i % 4 != 2)) continue;
        check_case(c, TEST_SLOW_BUILD ? 1 : 1 + i % 2, 1 + i % 3, i % FILLS);
        if (!TEST_SLOW_BUILD) check_case(c, 1, 2, (i + 3) % FILLS);
    }
}

/* More tokens than one thread block sorts, in both a single pass and several. */
static void permute_chunks(void **state)
{
    (void)state;
    sides one = {13000, 50, 12000, 500, 12500, 500}, several = {9000, 3000, 0, 500, 500, 20};
    if (TEST_SLOW_BUILD) one.tokens = 4500, one.text_begin = 4100, one.text_count = 300, one.pad_begin = 4400, one.pad_count = 100, several.tokens = 4400;
    for (int fill = 0; fill < (TEST_SLOW_BUILD ? 1 : FILLS); ++fill) check_case(one, 1, 1, fill);
    check_case(several, 1, 1, EVEN);
}

/* Whatever the order in which threads and blocks run. */
static void permute_schedules(void **state)
{
    (void)state;
    static const char *const threads[] = {"rr", "first", "last", "random"}, *const copies[] = {"early", "late", "mixed"};
    sides small = {333, 40, 300, 20, 320, 13}, wide = {100, 2500, 0, 0, 0, 0};
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 3; ++j) {
            if (TEST_SLOW_BUILD && j != i % 3) continue;
            device_schedule(threads[i], copies[j], (unsigned)(3 * i + j));
            check_case(small, 1, 2, GIANT);
            if (j == 0 && !(TEST_SLOW_BUILD && i)) check_case(wide, 1, 2, EVEN);
        }
    device_schedule("rr", "late", 1);
}

/* Labels that are an error on the CPU, which the host cannot see on a GPU: still a permutation, nothing out of bounds. */
static void permute_wild_labels(void **state)
{
    (void)state;
    enum { S = 300, C = 7 };
    static const int32_t wild[] = {-1, C, INT32_MIN, INT32_MAX, C + 1, -2147483};
    svg2_backend cuda = svg2_cuda_backend(0);
    svg2_permute_desc d = SVG2_ZERO;
    svg2_error err;
    int32_t label[S], order[S], offset[C + 2], seen[S] = {0};
    for (int t = 0; t < S; ++t) label[t] = t % 3 ? t % C : wild[t / 3 % COUNT(wild)];
    d.batch = d.heads = 1; d.tokens = S; d.clusters = C; d.text_begin = 290; d.text_count = 10;
    size_t bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_PERMUTE, &d);
    d.label = (int32_t *)device_copy(label, sizeof label);
    d.order = (int32_t *)device_new(sizeof order);
    d.offset = (int32_t *)device_new(sizeof offset);
    assert_ok(svg2_permute(&cuda, &d, device_new(bytes), bytes, &err));
    device_read(label, d.label, sizeof label);
    device_read(order, d.order, sizeof order);
    device_read(offset, d.offset, sizeof offset);
    assert_int_equal(offset[0], 0);
    assert_int_equal(offset[C + 1], S);
    for (int c = 0; c <= C; ++c) assert_true(offset[c] <= offset[c + 1]);
    for (int i = 0; i < S; ++i) {
        assert_in_range(order[i], 0, S - 1);
        assert_int_equal(seen[order[i]]++, 0);
        assert_in_range(label[i], 0, C);
    }
    device_reset();
}

static void permute_memory(void **state)
{
    (void)state;
    svg2_backend cuda = svg2_cuda_backend(0);
    svg2_permute_desc d = SVG2_ZERO;
    d.batch = 1; d.heads = 24; d.tokens = 118800 + 256; d.clusters = 1000; d.text_begin = 118800; d.text_count = 200;
    d.padding_begin = 119000; d.padding_count = 56;
    assert_true(svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_PERMUTE, &d) < ((size_t)4 << 20));
    d.clusters = 65536;
    assert_true(svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_PERMUTE, &d) < ((size_t)32 << 20));
    d.heads = 1; d.tokens = 0x7ffffc00; d.clusters = 1 << 24;
    assert_true(svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_PERMUTE, &d) < ((size_t)9 << 30));
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(permute_as_the_cpu), TEST(permute_chunks), TEST(permute_schedules), TEST(permute_wild_labels),
                                       TEST(permute_memory)};
    return cmocka_run_group_tests_name("cuda_permute", tests, 0, 0);
}
