/* test_cuda_backend.c - the CUDA backend as a whole: svg2_attend on it beside the CPU. */
#include "device.h"
#include "test.h"

static void check_reports(void **state)
{
    svg2_error err;
    (void)state;
    assert_int_equal(svg2_cuda_check(&err), SVG2_OK);
    assert_string_equal(svg2_cuda_backend(0).name, "cuda");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(check_reports)};
    return cmocka_run_group_tests(tests, 0, 0);
}
