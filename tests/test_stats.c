/* >>stats: error metrics. */
#include "test.h"

static void test_metrics_against_f64(void **state)
{
    (void)state;
    static const int sizes[] = {1, 2, 7, 63, 64, 65, 1000, 100003};
    for (int n = 0; n < COUNT(sizes); ++n) {
        size_t count = (size_t)sizes[n];
        float *x = (float *)mem_new(count * 4), *y = (float *)mem_new(count * 4);
        uint64_t s = (uint64_t)n;
        double d1 = 0, y1 = 0, d2 = 0, y2 = 0, x2 = 0, xy = 0, top = 0, lo = 1e9, hi = -1e9;
        svg2_metrics m;
        svg2_error err;
        for (size_t i = 0; i < count; ++i) {
            y[i] = (float)(rnd_normal(&s) * 3 + 1);
            x[i] = (float)((double)y[i] + 0.1 * rnd_normal(&s));
            double a = (double)x[i], b = (double)y[i];
            d1 += fabs(a - b); y1 += fabs(b); d2 += (a - b) * (a - b); y2 += b * b; x2 += a * a; xy += a * b;
            top = fmax(top, fabs(a - b)); lo = fmin(lo, b); hi = fmax(hi, b);
        }
        assert_ok(svg2_compare(x, y, count, 0, &m, &err));
        assert_at_most(fabs(m.rel_l1 - d1 / y1), 1e-12);
        assert_at_most(fabs(m.rel_l2 - sqrt(d2 / y2)), 1e-12);
        assert_at_most(fabs(m.cosine - xy / sqrt(x2 * y2)), 1e-12);
        assert_at_most(fabs(m.max_abs - top), 1e-12);
        assert_at_most(fabs(m.mse - d2 / (double)count), 1e-12);
        assert_int_equal(m.finite, 1);
        if (count > 1) assert_at_most(fabs(m.psnr - 10 * log10((hi - lo) * (hi - lo) / (d2 / (double)count))), 1e-9);
        assert_ok(svg2_compare(x, y, count, 255, &m, &err));
        assert_at_most(fabs(m.psnr - 10 * log10(255. * 255. / (d2 / (double)count))), 1e-9);
    }
}

static void test_special_cases(void **state)
{
    (void)state;
    float zero[4] = {0, 0, 0, 0}, one[4] = {1, 2, 3, 4}, bad[4] = {1, NAN, 3, 4}, inf[4] = {1, 2, -INFINITY, 4};
    svg2_metrics m;
    assert_ok(svg2_compare(zero, zero, 4, 0, &m, 0));
    assert_true(m.rel_l1 == 0 && m.rel_l2 == 0 && m.cosine == 1 && m.mse == 0 && isinf(m.psnr) && m.psnr > 0 && m.finite == 1);
    assert_ok(svg2_compare(one, one, 4, 0, &m, 0));
    assert_true(m.rel_l2 == 0 && fabs(m.cosine - 1) < 1e-15 && isinf(m.psnr) && m.max_abs == 0);
    assert_ok(svg2_compare(bad, one, 4, 0, &m, 0));
    assert_int_equal(m.finite, 0);
    assert_ok(svg2_compare(one, inf, 4, 0, &m, 0));
    assert_int_equal(m.finite, 0);
    float huge[2] = {3e38f, -3e38f}, other[2] = {-3e38f, 3e38f}; /* sums in f64 do not overflow */
    assert_ok(svg2_compare(huge, other, 2, 0, &m, 0));
    assert_true(m.finite == 1 && fabs(m.rel_l2 - 2) < 1e-12 && fabs(m.cosine + 1) < 1e-12);
}

static void test_stats_rejects(void **state)
{
    (void)state;
    float x[2] = {1, 2};
    svg2_metrics m;
    svg2_error err;
    memset(&m, 0xff, sizeof m);
    assert_true(error_names(&err, svg2_compare(0, x, 2, 0, &m, &err), SVG2_ERR_NULL, "x"));
    assert_true(error_names(&err, svg2_compare(x, 0, 2, 0, &m, &err), SVG2_ERR_NULL, "y"));
    assert_untouched(&m, sizeof m);
    assert_true(error_names(&err, svg2_compare(x, x, 2, 0, 0, &err), SVG2_ERR_NULL, "metrics"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_metrics_against_f64), TEST(test_special_cases), TEST(test_stats_rejects)};
    return cmocka_run_group_tests_name("stats", tests, 0, 0);
}
