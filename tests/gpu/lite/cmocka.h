/* cmocka.h - the part of cmocka that tests/test_cuda_*.c use, for machines that do not have it. Same output lines. */
#ifndef CMOCKA_LITE_H
#define CMOCKA_LITE_H
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int (*CMFixtureFunction)(void **state);
struct CMUnitTest {
    const char *name;
    void (*test_func)(void **state);
    CMFixtureFunction setup_func, teardown_func;
    void *initial_state;
};
#define cmocka_unit_test(f) {#f, f, 0, 0, 0}
#define cmocka_unit_test_setup_teardown(f, setup, teardown) {#f, f, setup, teardown, 0}

static jmp_buf lite_failed;
static int lite_code; /* of the test that runs: 0 passed, 1 failed, 2 skipped */

#define LITE_UNUSED __attribute__((unused))
static LITE_UNUSED void print_message(const char *format, ...) __attribute__((format(printf, 1, 2)));
static LITE_UNUSED void print_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
static LITE_UNUSED void print_message(const char *format, ...)
{
    va_list a;
    va_start(a, format);
    vprintf(format, a);
    va_end(a);
    fflush(stdout);
}
static LITE_UNUSED void print_error(const char *format, ...)
{
    va_list a;
    va_start(a, format);
    fflush(stdout);
    vfprintf(stderr, format, a);
    va_end(a);
}
static LITE_UNUSED __attribute__((noreturn)) void lite_fail(const char *file, int line)
{
    print_error("[   LINE   ] --- %s:%d: error: Failure!\n", file, line);
    lite_code = 1;
    longjmp(lite_failed, 1);
}
/* cmocka's own name of it: a test may call it with its caller's place */
static LITE_UNUSED __attribute__((noreturn)) void _fail(const char *file, int line) { lite_fail(file, line); }

#define fail_msg(...) (print_error("ERROR: " __VA_ARGS__), print_error("\n"), lite_fail(__FILE__, __LINE__))
#define fail()        lite_fail(__FILE__, __LINE__)
#define skip()        (lite_code = 2, longjmp(lite_failed, 1))
#define LITE_ASSERT(c, ...) ((c) ? (void)0 : (print_error(__VA_ARGS__), print_error("\n"), lite_fail(__FILE__, __LINE__)))
#define assert_true(c)      LITE_ASSERT(c, "%s", #c)
#define assert_false(c)     LITE_ASSERT(!(c), "not (%s)", #c)
#define assert_null(p)      LITE_ASSERT(!(p), "%s is not NULL", #p)
#define assert_non_null(p)  LITE_ASSERT(p, "%s is NULL", #p)
#define assert_int_equal(a, b) \
    LITE_ASSERT((long long)(a) == (long long)(b), "%s = %lld, %s = %lld", #a, (long long)(a), #b, (long long)(b))
#define assert_int_not_equal(a, b) LITE_ASSERT((long long)(a) != (long long)(b), "%s = %s = %lld", #a, #b, (long long)(b))
#define assert_in_range(x, low, high)                                                                     \
    LITE_ASSERT((long long)(x) >= (long long)(low) && (long long)(x) <= (long long)(high), "%s = %lld, not in [%s, %s]", #x, \
                (long long)(x), #low, #high)
#define assert_string_equal(a, b)     LITE_ASSERT(strcmp(a, b) == 0, "%s = \"%s\", not \"%s\"", #a, a, b)
#define assert_memory_equal(a, b, n)  LITE_ASSERT(memcmp(a, b, n) == 0, "%s and %s differ", #a, #b)
#define assert_ptr_equal(a, b)        LITE_ASSERT((const void *)(a) == (const void *)(b), "%s is not %s", #a, #b)

static LITE_UNUSED int lite_one(const struct CMUnitTest *test)
{
    void *state = test->initial_state;
    printf("[ RUN      ] %s\n", test->name);
    fflush(stdout);
    lite_code = test->setup_func && test->setup_func(&state) ? 1 : 0;
    if (lite_code == 0 && setjmp(lite_failed) == 0) test->test_func(&state);
    if (test->teardown_func && test->teardown_func(&state)) lite_code = 1;
    printf(lite_code == 0 ? "[       OK ] %s\n" : lite_code == 2 ? "[  SKIPPED ] %s\n" : "[  FAILED  ] %s\n", test->name);
    fflush(stdout);
    return lite_code;
}

static LITE_UNUSED int lite_run(const char *group, const struct CMUnitTest *tests, size_t count)
{
    static const char *failed[256];
    const char *colon = *group ? ": " : "";
    int codes[3] = {0, 0, 0}, i;
    printf("[==========] %s%sRunning %d test(s).\n", group, colon, (int)count);
    for (i = 0; i < (int)count; ++i) {
        const int code = lite_one(&tests[i]);
        if (code == 1 && codes[1] < 256) failed[codes[1]] = tests[i].name;
        ++codes[code];
    }
    printf("[==========] %s%s%d test(s) run.\n[  PASSED  ] %d test(s).\n", group, colon, (int)count, codes[0]);
    if (codes[2]) printf("[  SKIPPED ] %d test(s).\n", codes[2]);
    if (codes[1]) printf("[  FAILED  ] %d test(s), listed below:\n", codes[1]);
    for (i = 0; i < codes[1] && i < 256; ++i) printf("[  FAILED  ] %s\n", failed[i]);
    fflush(stdout);
    return codes[1];
}
#define cmocka_run_group_tests(tests, setup, teardown) \
    ((void)(setup), (void)(teardown), lite_run("", tests, sizeof(tests) / sizeof((tests)[0])))
#define cmocka_run_group_tests_name(name, tests, setup, teardown) \
    ((void)(setup), (void)(teardown), lite_run(name, tests, sizeof(tests) / sizeof((tests)[0])))
#endif
