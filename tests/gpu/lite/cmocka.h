/* cmocka.h - the part of cmocka that tests/test_cuda_*.c use, for the tests on a GPU. Same output lines.

   Unlike cmocka it can give every test a process of its own, so that one that crashes, hangs, or leaves the
   GPU in an error (which stays with a process for good) fails alone: LITE_SECONDS in the environment, the
   time a test may take. */
#ifndef CMOCKA_LITE_H
#define CMOCKA_LITE_H
#include <fnmatch.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

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
static const char *lite_filter;

#define LITE_UNUSED __attribute__((unused))
static LITE_UNUSED void cmocka_set_test_filter(const char *pattern) { lite_filter = pattern; }
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
#define LITE_ASSERT(c, ...) \
    ((c) ? (void)0 : (print_error(__VA_ARGS__), print_error("\n"), lite_fail(__FILE__, __LINE__)))
#define assert_true(c)      LITE_ASSERT(c, "%s", #c)
#define assert_false(c)     LITE_ASSERT(!(c), "not (%s)", #c)
#define assert_null(p)      LITE_ASSERT(!(p), "%s is not NULL", #p)
#define assert_non_null(p)  LITE_ASSERT(p, "%s is NULL", #p)
#define assert_int_equal(a, b) \
    LITE_ASSERT((long long)(a) == (long long)(b), "%s = %lld, %s = %lld", #a, (long long)(a), #b, \
                (long long)(b))
#define assert_int_not_equal(a, b) \
    LITE_ASSERT((long long)(a) != (long long)(b), "%s = %s = %lld", #a, #b, (long long)(b))
#define assert_in_range(x, low, high)                                                       \
    LITE_ASSERT((long long)(x) >= (long long)(low) && (long long)(x) <= (long long)(high),  \
                "%s = %lld, not in [%s, %s]", #x, (long long)(x), #low, #high)
#define assert_string_equal(a, b)     LITE_ASSERT(strcmp(a, b) == 0, "%s = \"%s\", not \"%s\"", #a, a, b)
#define assert_memory_equal(a, b, n)  LITE_ASSERT(memcmp(a, b, n) == 0, "%s and %s differ", #a, #b)
#define assert_ptr_equal(a, b) \
    LITE_ASSERT((const void *)(a) == (const void *)(b), "%s is not %s", #a, #b)

/* A test, its setup, its teardown: each can fail, and be left, by itself. */
static LITE_UNUSED void lite_guard(int (*fixture)(void **), void (*test)(void **), void **state)
{
    if (setjmp(lite_failed) == 0) {
        if (test) test(state);
        else if (fixture(state)) lite_code = 1;
    }
}
static LITE_UNUSED int lite_test(const struct CMUnitTest *test)
{
    void *state = test->initial_state;
    lite_code = 0;
    if (test->setup_func) lite_guard(test->setup_func, 0, &state);
    if (lite_code == 0) lite_guard(0, test->test_func, &state);
    if (test->teardown_func) lite_guard(test->teardown_func, 0, &state);
    return lite_code;
}

/* a test that calls exit() itself did not pass */
enum { LITE_EXIT = 64 };
static LITE_UNUSED int lite_one(const struct CMUnitTest *test)
{
    const char *seconds = getenv("LITE_SECONDS");
    int code, status = 0;
    printf("[ RUN      ] %s\n", test->name);
    fflush(stdout);
    if (seconds && atoi(seconds) > 0) {
        const pid_t child = fork();
        if (child == 0) {
            alarm((unsigned)atoi(seconds));
            code = lite_test(test);
            fflush(stdout);
            _exit(LITE_EXIT + code);
        }
        code = -100;
        if (child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status))
            code = WEXITSTATUS(status) - LITE_EXIT;
        if (code == -100 && WIFSIGNALED(status)) {
            if (WTERMSIG(status) == SIGALRM) print_error("%s: out of time after %s s\n", test->name, seconds);
            else print_error("%s: killed by signal %d\n", test->name, WTERMSIG(status));
        } else if (code < 0 || code > 2) {
            print_error("%s: ended with exit code %d\n", test->name, code + LITE_EXIT);
        }
        if (code < 0 || code > 2) code = 1;
    } else {
        code = lite_test(test);
    }
    printf("%s %s\n", code == 0 ? "[       OK ]" : code == 2 ? "[  SKIPPED ]" : "[  FAILED  ]", test->name);
    fflush(stdout);
    return code;
}

static LITE_UNUSED int lite_run(const char *group, const struct CMUnitTest *tests, size_t count,
                                CMFixtureFunction setup, CMFixtureFunction teardown)
{
    static const char *failed[256];
    const char *colon = *group ? ": " : "";
    void *state = 0;
    int codes[3] = {0, 0, 0}, i, run = 0;
    lite_code = 0;
    if (setup) lite_guard(setup, 0, &state);
    if (lite_code) {
        printf("[  FAILED  ] GROUP SETUP\n");
        return 1;
    }
    for (i = 0; i < (int)count; ++i) run += !lite_filter || fnmatch(lite_filter, tests[i].name, 0) == 0;
    printf("[==========] %s%sRunning %d test(s).\n", group, colon, run);
    for (i = 0; i < (int)count; ++i) {
        if (lite_filter && fnmatch(lite_filter, tests[i].name, 0) != 0) continue;
        const int code = lite_one(&tests[i]);
        if (code == 1 && codes[1] < 256) failed[codes[1]] = tests[i].name;
        ++codes[code];
    }
    lite_code = 0;
    if (teardown) lite_guard(teardown, 0, &state);
    printf("[==========] %s%s%d test(s) run.\n[  PASSED  ] %d test(s).\n", group, colon, run, codes[0]);
    if (codes[2]) printf("[  SKIPPED ] %d test(s).\n", codes[2]);
    if (codes[1]) printf("[  FAILED  ] %d test(s), listed below:\n", codes[1]);
    for (i = 0; i < codes[1] && i < 256; ++i) printf("[  FAILED  ] %s\n", failed[i]);
    if (lite_code) printf("[  FAILED  ] GROUP TEARDOWN\n");
    fflush(stdout);
    return codes[1] + lite_code;
}
#define cmocka_run_group_tests(tests, setup, teardown) \
    lite_run("", tests, sizeof(tests) / sizeof((tests)[0]), setup, teardown)
#define cmocka_run_group_tests_name(name, tests, setup, teardown) \
    lite_run(name, tests, sizeof(tests) / sizeof((tests)[0]), setup, teardown)
#endif
