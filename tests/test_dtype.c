/* >>dtype: f16 and bf16 conversion, exhaustively where 65,536 values are all there is. */
#include "test.h"

static uint32_t float_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}
static float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static void all_small_values(svg2_dtype dtype, double (*value)(uint16_t))
{
    uint16_t *in = (uint16_t *)mem_new(2 * 65536), *back = (uint16_t *)mem_new(2 * 65536);
    float *x = (float *)mem_new(4 * 65536);
    for (int i = 0; i < 65536; ++i) in[i] = (uint16_t)i;
    svg2_convert(x, SVG2_F32, in, dtype, 65536);
    svg2_convert(back, dtype, x, SVG2_F32, 65536);
    for (int i = 0; i < 65536; ++i) {
        double want = value((uint16_t)i);
        if (isnan(want)) {
            assert_true(isnan(x[i]));
            assert_true(isnan(value(back[i])));
        } else {
            assert_true((double)x[i] == want && !signbit(x[i]) == !signbit(want));
            assert_int_equal(back[i], in[i]);
        }
    }
}
static void test_f16_to_f32(void **state)
{
    (void)state;
    all_small_values(SVG2_F16, f16_value);
}
static void test_bf16_to_f32(void **state)
{
    (void)state;
    all_small_values(SVG2_BF16, bf16_value);
}

/* Around every representable value and every midpoint, and random bit patterns. */
static void rounds_to_even(svg2_dtype dtype, double (*value)(uint16_t), uint16_t (*bits)(double))
{
    int n = 0, cap = 65536 * 6 + 200000;
    float *x = (float *)mem_new(sizeof(float) * (size_t)cap);
    uint16_t *y = (uint16_t *)mem_new(sizeof(uint16_t) * (size_t)cap);
    uint64_t s = 11;
    for (int i = 0; i < 65535; ++i) {
        float a = (float)value((uint16_t)i), b = (float)value((uint16_t)(i + 1)), middle = 0.5f * a + 0.5f * b;
        if (isnan(a) || isnan(b) || isinf(a) || isinf(b)) continue;
        x[n++] = middle;
        x[n++] = nextafterf(middle, INFINITY);
        x[n++] = nextafterf(middle, -INFINITY);
        x[n++] = nextafterf(a, INFINITY);
        x[n++] = nextafterf(a, -INFINITY);
    }
    for (int i = 0; i < 200000; ++i) x[n++] = float_of((uint32_t)rnd_bits(&s));
    svg2_convert(y, dtype, x, SVG2_F32, (size_t)n);
    for (int i = 0; i < n; ++i) {
        if (isnan(x[i])) assert_true(isnan(value(y[i])));
        else if (y[i] != bits((double)x[i]))
            fail_msg("%a (bits %08x) becomes %04x, not %04x", (double)x[i], float_bits(x[i]), y[i], bits((double)x[i]));
    }
}
static void test_f32_to_f16(void **state)
{
    (void)state;
    rounds_to_even(SVG2_F16, f16_value, f16_bits);
}
static void test_f32_to_bf16(void **state)
{
    (void)state;
    rounds_to_even(SVG2_BF16, bf16_value, bf16_bits);
}

static void test_special_values(void **state)
{
    (void)state;
    static const float in[] = {0.0f, -0.0f, 1.0f, -1.0f, 65504.0f, 65519.9f, 65520.0f, -65520.0f, 1e30f, 3.4e38f, 6e-8f, 2e-8f, 3.4028235e38f};
    uint16_t h[COUNT(in)], b[COUNT(in)];
    svg2_convert(h, SVG2_F16, in, SVG2_F32, COUNT(in));
    svg2_convert(b, SVG2_BF16, in, SVG2_F32, COUNT(in));
    assert_int_equal(h[0], 0x0000);
    assert_int_equal(h[1], 0x8000);
    assert_int_equal(h[2], 0x3c00);
    assert_int_equal(h[4], 0x7bff);
    assert_int_equal(h[5], 0x7bff);
    assert_int_equal(h[6], 0x7c00);
    assert_int_equal(h[7], 0xfc00);
    assert_int_equal(h[8], 0x7c00);
    assert_int_equal(h[10], 0x0001);
    assert_int_equal(h[11], 0x0000);
    assert_int_equal(b[1], 0x8000);
    assert_int_equal(b[2], 0x3f80);
    assert_int_equal(b[12], 0x7f80);
}

/* Between the two small types, odd counts, no element beyond count, and in place. */
static void test_every_pair_and_count(void **state)
{
    (void)state;
    svg2_dtype types[] = {SVG2_F32, SVG2_F16, SVG2_BF16};
    for (int a = 0; a < 3; ++a)
        for (int b = 0; b < 3; ++b)
            for (int n = 0; n < 70; ++n) {
                tensor x = tensor_new(1, 1, 1, n + 1, types[a], BHSD), y = tensor_new(1, 1, 1, n + 1, types[b], BHSD);
                tensor_fill_normal(&x, (uint64_t)n, 3, 0);
                svg2_convert(y.data, types[b], x.data, types[a], (size_t)n);
                for (int i = 0; i < n; ++i) {
                    tensor one = y;
                    uint64_t raw = 0;
                    one.data = &raw;
                    tensor_put(&one, 0, tensor_get(&x, i));
                    assert_true(tensor_get(&y, i) == tensor_get(&one, 0));
                }
                assert_untouched((char *)y.data + (size_t)n * dtype_bytes(types[b]), dtype_bytes(types[b]));
                if (dtype_bytes(types[a]) == dtype_bytes(types[b])) {
                    svg2_convert(x.data, types[b], x.data, types[a], (size_t)n);
                    assert_memory_equal(x.data, y.data, (size_t)n * dtype_bytes(types[a]));
                }
                mem_done();
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_f16_to_f32),     TEST(test_bf16_to_f32),    TEST(test_f32_to_f16),
        TEST(test_f32_to_bf16),    TEST(test_special_values), TEST(test_every_pair_and_count),
    };
    return cmocka_run_group_tests_name("dtype", tests, 0, 0);
}
