/* >>front on CUDA: beside float64 and, where that says nothing, beside the CPU. */
#include "device.h"
#include "test.h"
#include "front.h"

typedef struct twin { svg2_front_desc d; void *x[2], *y[2], *mean; size_t shift; } twin;

/* The same problem in device memory; shift: bytes from an aligned address to the tensors, 4 more to tables and weights. */
static void *moved(const void *host, size_t bytes, size_t shift)
{
    char *p = host ? (char *)device_new(bytes + shift) : 0;
    if (p) device_write(p + shift, host, bytes);
    return p ? p + shift : 0;
}
static twin twin_new(const front *f, size_t shift)
{
    twin t;
    const size_t odd = shift ? 4 : 0;
    t.d = f->d;
    t.shift = shift;
    for (int side = 0; side < 2; ++side) {
        const int is_there = front_is_there(&f->c, side);
        t.x[side] = is_there ? moved(f->x[side].data, f->x[side].bytes, shift) : 0;
        t.y[side] = !is_there || f->c.is_in_place ? t.x[side] : moved(f->y[side].data, f->y[side].bytes, shift);
    }
    t.d.q = t.x[0]; t.d.k = t.x[1]; t.d.q_out = t.y[0]; t.d.k_out = t.y[1];
    t.d.q_weight = (const float *)moved(f->weight[0], f->weight_count[0] * 4, odd); t.d.k_weight = (const float *)moved(f->weight[1], f->weight_count[1] * 4, odd);
    t.d.cosine = (const float *)moved(f->table[0], f->table_count * 4, odd); t.d.sine = (const float *)moved(f->table[1], f->table_count * 4, odd);
    t.mean = f->c.has_mean ? device_new(f->mean_count * 4) : 0;
    t.d.key_mean = (float *)t.mean;
    return t;
}
static void twin_start(twin *t, const svg2_backend *b)
{
    svg2_error err;
    const size_t bytes = svg2_stage_workspace_bytes(b, SVG2_STAGE_FRONT, &t->d);
    void *work = bytes ? device_new(bytes) : 0;
    svg2_result r = svg2_front(b, &t->d, work, bytes, &err);
    if (r != SVG2_OK) fail_msg("svg2_front: %s (%s: %s)", svg2_result_string(r), err.field, err.text);
}
static void twin_read(const twin *t, front *f)
{
    for (int side = 0; side < 2; ++side)
        if (front_is_there(&f->c, side)) device_read(f->y[side].data, t->y[side], f->y[side].bytes);
    if (f->mean) device_read(f->mean, t->mean, f->mean_count * 4);
}
static void run(front *f, size_t shift)
{
    const svg2_backend b = svg2_cuda_backend(0);
    twin t = twin_new(f, shift);
    twin_start(&t, &b);
    twin_read(&t, f);
    device_reset();
}

static void formulas(void **state)
{
    (void)state;
    static const int dims[] = {8, 40, 64, 72, 96, 128, 256}, lengths[] = {1, 7, 16, 17, 33, 65}, heads[] = {1, 3, 5, 9, 12};
    int n = 0;
    for (int i = 0; i < COUNT(dims); ++i)
        for (int norm = 0; norm < 3; ++norm)
            for (int pairing = 0; pairing < 2; ++pairing)
                for (int rope = 0; rope < 4; ++rope, ++n) {
                    if (TEST_SLOW_BUILD && n % 4 != 1) continue;
                    front_case c = {1 + n % 2, heads[n % 5], heads[n % 5], lengths[n % 6], dims[i], 0, 0, (svg2_norm)norm, (svg2_pairing)pairing, (front_rope)rope, (svg2_dtype)(n / 2 % 3), (svg2_dtype)(n / 7 % 3),
                                    (tensor_order)(n / 3 % 3), (tensor_order)(n / 5 % 3), 0, n % 4 != 3, n % 3 == 0, 0, 0};
                    if (rope != OWN) c.Hkv = heads[n / 5 % 5];
                    if (n % 11 == 5) c.left_out = 1;
                    if (n % 11 == 7) c.left_out = 2, c.has_mean = 0;
                    if (n % 3 && c.S > 3) c.begin = n % 3 == 1 ? 2 : 0, c.count = c.S - 3;
                    if (n % 5 == 4) c.epsilon = 0.5f;
                    front f = front_new(c, (uint64_t)n);
                    run(&f, n % 8 == 6 ? dtype_bytes(c.in) > dtype_bytes(c.out) ? dtype_bytes(c.in) : dtype_bytes(c.out) : 0);
                    front_check(&f);
                    mem_done();
                }
}

static void in_place(void **state)
{
    (void)state;
    for (int n = 0; n < 36; ++n) {
        const front_case c = {1, 6, 6, 37, n % 2 ? 40 : 64, n % 5 ? 0 : 5, n % 5 ? 0 : 30, (svg2_norm)(n % 3), (svg2_pairing)(n / 3 % 2), n % 4 ? SHARED : OWN, (svg2_dtype)(n / 6 % 3), SVG2_F32, (tensor_order)(n / 12),
                              BHSD, 1, 1, 1, 0, 0};
        if (TEST_SLOW_BUILD && n % 4) continue;
        front f = front_new(c, (uint64_t)n);
        run(&f, 0);
        front_check(&f);
        mem_done();
    }
}

/* More heads than a block takes: its norm comes from a kernel of its own. */
static void wide_tokens(void **state)
{
    (void)state;
    for (int n = 0; n < 8; ++n) {
        const front_case c = {1 + n % 2, 33 + n, n % 4 ? 33 + n : 5, 19, 256, 0, n % 3 ? 0 : 15, n == 5 ? SVG2_NORM_HEAD : SVG2_NORM_TOKEN, (svg2_pairing)(n / 2 % 2), n % 4 == 1 ? OWN : SHARED, (svg2_dtype)(n % 3),
                              (svg2_dtype)((n + 1) % 3), n % 2 ? BSHD : BHSD, BHSD, n > 4, 1, n % 2, n == 3, 0};
        if (TEST_SLOW_BUILD && n % 3) continue;
        front f = front_new(c, (uint64_t)n);
        run(&f, 0);
        front_check(&f);
        mem_done();
    }
}

/* q and k of different types are two launches. */
static void mixed_types(void **state)
{
    (void)state;
    for (int n = 0; n < 6; ++n) {
        front_case c = {2, 3, 2, 21, 64, 0, 18, (svg2_norm)(n % 3), (svg2_pairing)(n % 2), SHARED, (svg2_dtype)(n % 3), SVG2_F16, BSHD, BHSD, 0, 1, 0, 0, 0}, other = c;
        other.in = (svg2_dtype)((n + 1 + n / 3) % 3);
        other.has_mean = 1;
        front f = front_new(c, 3), g = front_new(other, 3);
        const svg2_backend b = svg2_cuda_backend(0);
        twin t = twin_new(&f, 0), u = twin_new(&g, 0);
        t.d.k = u.d.k; t.d.k_layout = u.d.k_layout; t.d.k_out = u.d.k_out; t.d.k_weight = u.d.k_weight; t.d.key_mean = u.d.key_mean;
        twin_start(&t, &b);
        twin_read(&t, &f);
        twin_read(&u, &g);
        f.c.left_out = 2; g.c.left_out = 1;
        front_check(&f);
        front_check(&g);
        device_reset();
        mem_done();
    }
}

/* Many tokens in a stretch: 8,500 make 512 stretches of 17. */
static void long_stretches(void **state)
{
    (void)state;
    const front_case c = {1, 1, 1, TEST_SLOW_BUILD ? 8200 : 8500, 8, 100, TEST_SLOW_BUILD ? 8000 : 8200, SVG2_NORM_TOKEN, SVG2_PAIRING_HALF, SHARED, SVG2_BF16, SVG2_BF16, BHSD, BHSD, 0, 1, 1, 0, 0};
    front f = front_new(c, 3);
    run(&f, 0);
    front_check(&f);
}

static uint64_t hash_of(const front *f) { return mem_hash(f->y[0].data, f->y[0].bytes) * 31 + mem_hash(f->y[1].data, f->y[1].bytes) * 17 + mem_hash(f->mean, f->mean_count * 4); }

static void same_bits(void **state)
{
    (void)state;
    static const char *const order[][2] = {{"rr", "late"}, {"first", "early"}, {"last", "mixed"}, {"random", "late"}, {"random", "mixed"}};
    for (int n = 0; n < 6; ++n) {
        const front_case c = {2, 7, 3, 70, n % 2 ? 72 : 128, 3, 60, (svg2_norm)(n % 3), (svg2_pairing)(n / 3), SHARED, n % 2 ? SVG2_BF16 : SVG2_F32, SVG2_BF16, BSHD, BHSD, 0, 1, 1, 0, 0};
        uint64_t hash = 0;
        if (TEST_SLOW_BUILD && n % 3 == 0) continue;
        for (int i = 0; i < COUNT(order); ++i) {
            front f = front_new(c, 3);
            device_schedule(order[i][0], order[i][1], (unsigned)(n + i));
            run(&f, 0);
            if (i == 0) hash = hash_of(&f), front_check(&f);
            assert_true(hash_of(&f) == hash);
            mem_done();
        }
        device_schedule("rr", "late", 0);
        if (c.norm == SVG2_NORM_TOKEN) continue;
        /* a head has the same bits alone */
        front f = front_new(c, 3);
        run(&f, 0);
        const svg2_backend b = svg2_cuda_backend(0);
        twin t = twin_new(&f, 0);
        uint16_t *alone = (uint16_t *)mem_new((size_t)(70 * c.D) * 2);
        float mean[128];
        t.d.q = 0;
        t.d.batch = t.d.heads = t.d.heads_kv = 1;
        t.d.k = (const char *)t.d.k + (size_t)f.x[1].sh * dtype_bytes(c.in);
        t.d.k_layout.stride_head = 0;
        twin_start(&t, &b);
        device_read(alone, t.y[1], (size_t)(70 * c.D) * 2);
        device_read(mean, t.mean, (size_t)c.D * 4);
        assert_memory_equal(alone, (uint16_t *)f.y[1].data + 70 * c.D, (size_t)(70 * c.D) * 2);
        assert_memory_equal(mean, f.mean + c.D, (size_t)c.D * 4);
        device_reset();
        mem_done();
    }
}

/* NaN and Inf: finite and not finite where the CPU's results are. */
static void nan_and_inf(void **state)
{
    (void)state;
    for (int n = 0; n < 12; ++n) {
        const front_case c = {2, 2, 2, 21, 24, 0, 0, (svg2_norm)(n % 3), (svg2_pairing)(n / 6), SHARED, (svg2_dtype)(n / 3 % 3), (svg2_dtype)((n + 1) % 3), BHSD, BHSD, 0, 1, 1, 0, 0};
        front f = front_new(c, 6), g = front_new(c, 6);
        for (int i = 0; i < 2; ++i) {
            tensor *x = i ? &g.x[1] : &f.x[1];
            tensor_put(x, tensor_at(x, 1, 0, 20, 3), n % 2 ? (double)NAN : (double)INFINITY);
        }
        const svg2_backend cpu = svg2_cpu_backend_simd(0, SVG2_SIMD_SCALAR);
        const size_t bytes = svg2_stage_workspace_bytes(&cpu, SVG2_STAGE_FRONT, &g.d);
        assert_ok(svg2_front(&cpu, &g.d, mem_new(bytes), bytes, 0));
        run(&f, 0);
        int spoiled = 0;
        const double *x = tensor_f64(&f.y[1]), *y = tensor_f64(&g.y[1]);
        for (int i = 0; i < 2 * 2 * 21 * 24; ++i) {
            assert_int_equal(isnan(x[i]), isnan(y[i]));
            assert_int_equal(isinf(x[i]), isinf(y[i]));
            spoiled += !(fabs(x[i]) < 1e30);
        }
        assert_true(spoiled >= 1);
        for (int i = 0; i < 2 * 2 * 24; ++i) {
            assert_true((f.mean[i] == 0) == (g.mean[i] == 0));
            assert_at_most(fabs((double)f.mean[i] - (double)g.mean[i]), 1e-5);
        }
        assert_true(f.mean[2 * 24] == 0);
        mem_done();
    }
}

/* Recorded once, replayed on other contents of the same memory. */
static void as_a_graph(void **state)
{
    (void)state;
    const front_case c = {1, 4, 2, 40, 64, 0, 33, SVG2_NORM_TOKEN, SVG2_PAIRING_INTERLEAVED, SHARED, SVG2_BF16, SVG2_BF16, BSHD, BHSD, 0, 1, 1, 0, 0};
    front f = front_new(c, 3), g = front_new(c, 77);
    void *stream = device_stream();
    const svg2_backend b = svg2_cuda_backend(stream);
    twin t = twin_new(&f, 0);
    const size_t bytes = svg2_stage_workspace_bytes(&b, SVG2_STAGE_FRONT, &t.d);
    void *work = device_new(bytes);
    device_record(stream);
    svg2_error err;
    assert_ok(svg2_front(&b, &t.d, work, bytes, &err));
    void *graph = device_recorded(stream);
    device_replay(graph, stream);
    twin_read(&t, &f);
    front_check(&f);
    for (int side = 0; side < 2; ++side) device_write(t.x[side], g.x[side].data, g.x[side].bytes);
    memcpy(g.weight[0], f.weight[0], g.weight_count[0] * 4); memcpy(g.weight[1], f.weight[1], g.weight_count[1] * 4);
    memcpy(g.table[0], f.table[0], g.table_count * 4); memcpy(g.table[1], f.table[1], g.table_count * 4);
    front_solve(&g);
    device_replay(graph, stream);
    twin_read(&t, &g);
    front_check(&g);
    device_reset();
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(formulas), TEST(in_place), TEST(wide_tokens), TEST(mixed_types), TEST(long_stretches), TEST(same_bits), TEST(nan_and_inf), TEST(as_a_graph)};
    return cmocka_run_group_tests_name("cuda_front", tests, 0, 0);
}
