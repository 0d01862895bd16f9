/* test.h - what the test programs share

   >>memory      allocations between guard bytes, filled with 0xff (NaN, -1), checked and freed after each test
   >>random      counter-based numbers, and tensors with the structure of video attention
   >>tensor      typed and strided storage for [B, H, S, D], read back as float64
   >>threads     runners for svg2_parallel: pthreads with dynamic pieces; reversed order with scattered worker ids
   >>reference   float64, plain, written from the formulas in svg2.h and not from its code
   >>job         one svg2_attend call with all its memory, and a check of everything that it left behind */
#ifndef SVG2_TEST_H
#define SVG2_TEST_H

#ifndef _POSIX_C_SOURCE
#  define _POSIX_C_SOURCE 200809L
#endif
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../svg2.h"

#if defined(__SANITIZE_ADDRESS__)
#  define TEST_ASAN 1
#elif defined(__has_feature)
#  if __has_feature(address_sanitizer)
#    define TEST_ASAN 1
#  endif
#endif
#ifdef TEST_ASAN
#  include <sanitizer/asan_interface.h>
#  define TEST_POISON(p, n)   __asan_poison_memory_region(p, n)
#  define TEST_UNPOISON(p, n) __asan_unpoison_memory_region(p, n)
#else
#  define TEST_POISON(p, n)   ((void)(p), (void)(n))
#  define TEST_UNPOISON(p, n) ((void)(p), (void)(n))
#endif
#if defined(TEST_ASAN) || defined(__SANITIZE_THREAD__) || defined(TEST_SMALL)
#  define TEST_SLOW_BUILD 1 /* sanitizers: smaller sizes, same cases */
#else
#  define TEST_SLOW_BUILD 0
#endif

#define FN static __attribute__((unused))

/* TEST_ONLY in the environment: only tests of these names (with * and ?) are run. */
static __attribute__((constructor)) void test_only(void)
{
    const char *pattern = getenv("TEST_ONLY");
    if (pattern && *pattern) cmocka_set_test_filter(pattern);
}
#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

/* ==== >>memory =========================================================================== */
#define TEST_GUARD 192
typedef struct test_mem {
    unsigned char *base;
    size_t bytes;
} test_mem;
static test_mem test_mems[8192];
static int test_mem_count;

/* Aligned to 64, filled with 0xff, guard bytes on both sides (unreadable under ASan). Freed by the teardown. */
FN void *mem_new(size_t bytes)
{
    test_mem *m = &test_mems[test_mem_count];
    void *base = 0;
    if (bytes > ((size_t)1 << 34) || test_mem_count == COUNT(test_mems)
        || posix_memalign(&base, 64, bytes + 2 * TEST_GUARD) != 0)
        fail_msg("cannot allocate %zu bytes", bytes);
    ++test_mem_count;
    m->base = (unsigned char *)base;
    m->bytes = bytes;
    memset(m->base, 0x5a, TEST_GUARD);
    memset(m->base + TEST_GUARD, 0xff, bytes);
    memset(m->base + TEST_GUARD + bytes, 0x5a, TEST_GUARD);
    TEST_POISON(m->base, TEST_GUARD);
    TEST_POISON(m->base + TEST_GUARD + bytes, TEST_GUARD);
    return m->base + TEST_GUARD;
}

/* How many of the guard bytes around all allocations were changed; frees everything down to keep. */
FN int mem_release(int keep)
{
    int broken = 0;
    while (test_mem_count > keep) {
        test_mem *m = &test_mems[--test_mem_count];
        TEST_UNPOISON(m->base, TEST_GUARD);
        TEST_UNPOISON(m->base + TEST_GUARD + m->bytes, TEST_GUARD);
        for (size_t i = 0; i < TEST_GUARD; ++i)
            broken += (m->base[i] != 0x5a) + (m->base[TEST_GUARD + m->bytes + i] != 0x5a);
        free(m->base);
    }
    return broken;
}

/* In the middle of a test: nothing was written outside, and everything is free again. */
FN void mem_done(void) { assert_int_equal(mem_release(0), 0); }

FN int is_fill(const void *p, size_t bytes, unsigned char value)
{
    const unsigned char *c = (const unsigned char *)p;
    for (size_t i = 0; i < bytes; ++i)
        if (c[i] != value) return 0;
    return 1;
}
#define assert_untouched(p, bytes) assert_true(is_fill(p, bytes, 0xff))

FN uint64_t mem_hash(const void *p, size_t bytes)
{
    const unsigned char *c = (const unsigned char *)p;
    uint64_t h = 1469598103934665603u;
    for (size_t i = 0; i < bytes; ++i) h = (h ^ c[i]) * 1099511628211u;
    return h;
}

FN int test_setup(void **state)
{
    (void)state;
    fflush(stdout); /* a crash then shows which test it was */
    return 0;
}
FN int test_teardown(void **state)
{
    (void)state;
    int broken = mem_release(0);
    if (broken) print_error("%d guard bytes were overwritten\n", broken);
    return broken ? -1 : 0;
}
#define TEST(fn) cmocka_unit_test_setup_teardown(fn, test_setup, test_teardown)

#define assert_ok(call)                                                                                     \
    do {                                                                                                    \
        svg2_result ok_result = (call);                                                                     \
        if (ok_result != SVG2_OK) fail_msg("%s: %s", #call, svg2_result_string(ok_result));                 \
    } while (0)
#define assert_at_most(value, bound)                                                                        \
    do {                                                                                                    \
        double am_value = (value), am_bound = (bound);                                                      \
        if (!(am_value <= am_bound)) fail_msg("%s = %g, more than %s = %g", #value, am_value, #bound, am_bound); \
    } while (0)

/* A call failed with this code, and names this field. "layout|x": either will do; "q" also matches "q.dtype". */
FN int error_names(const svg2_error *err, svg2_result result, svg2_result code, const char *field)
{
    int named = 0;
    for (const char *f = field; err->field && f && *f && !named; f = strchr(f, '|'), f += f ? 1 : 0) {
        size_t n = strcspn(f, "|");
        named = strncmp(err->field, f, n) == 0 && (err->field[n] == 0 || err->field[n] == '.' || strcmp(err->field + n, "_layout") == 0);
    }
    if (result == code && err->code == code && named && err->text && err->text[0] && err->cuda == 0) return 1;
    print_error("expected %s at %s, got %s (%s) at %s: %s\n", svg2_result_string(code), field, svg2_result_string(result),
                svg2_result_string(err->code), err->field ? err->field : "(null)", err->text ? err->text : "(null)");
    return 0;
}

/* ==== >>random =========================================================================== */
FN uint64_t rnd_bits(uint64_t *s)
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
FN double rnd_unit(uint64_t *s) { return (double)(rnd_bits(s) >> 11) * 0x1p-53; }
FN int rnd_int(uint64_t *s, int n) { return (int)(rnd_bits(s) % (uint64_t)n); }
FN double rnd_normal(uint64_t *s) /* sum of 12 uniforms: close enough, and the same everywhere */
{
    double x = -6;
    for (int i = 0; i < 12; ++i) x += rnd_unit(s);
    return x;
}

/* ==== >>tensor =========================================================================== */
FN double bf16_value(uint16_t bits)
{
    int exponent = (bits >> 7) & 255, mantissa = bits & 127;
    double x = exponent == 255 ? (mantissa ? (double)NAN : (double)INFINITY)
             : exponent ? ldexp(128 + mantissa, exponent - 127 - 7) : ldexp(mantissa, -126 - 7);
    return bits & 0x8000 ? -x : x;
}
FN double f16_value(uint16_t bits)
{
    int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    double x = exponent == 31 ? (mantissa ? (double)NAN : (double)INFINITY)
             : exponent ? ldexp(1024 + mantissa, exponent - 15 - 10) : ldexp(mantissa, -14 - 10);
    return bits & 0x8000 ? -x : x;
}
/* Nearest value of a format with this many mantissa bits and exponent range, ties to even; as bits. */
FN uint16_t small_bits(double x, int mantissa_bits, int min_exponent, int max_exponent)
{
    uint16_t sign = signbit(x) ? 0x8000 : 0, infinity = (uint16_t)((max_exponent - min_exponent + 2) << mantissa_bits);
    double a = fabs(x);
    int e;
    if (isnan(x)) return (uint16_t)(sign | infinity | (1 << (mantissa_bits - 1)));
    if (isinf(x)) return sign | infinity;
    frexp(a, &e);
    e = a == 0 || e - 1 < min_exponent ? min_exponent : e - 1;
    a = rint(ldexp(a, mantissa_bits - e)); /* in units of the last place; rint is to nearest even */
    if (a >= ldexp(2, mantissa_bits)) { a /= 2; ++e; }
    if (e > max_exponent) return sign | infinity;
    if (a < ldexp(1, mantissa_bits)) return (uint16_t)(sign | (int)a); /* subnormal */
    return (uint16_t)(sign | ((e - min_exponent + 1) << mantissa_bits) | ((int)a - (1 << mantissa_bits)));
}
FN uint16_t bf16_bits(double x) { return small_bits(x, 7, -126, 127); }
FN uint16_t f16_bits(double x) { return small_bits(x, 10, -14, 15); }

typedef enum tensor_order { BHSD, BSHD, GAPS } tensor_order; /* GAPS: strides with unused elements between */
typedef struct tensor {
    int B, H, S, D;
    svg2_layout layout;
    int64_t sb, sh, st;
    size_t bytes;
    void *data;
    uint64_t hash;
} tensor;

FN size_t dtype_bytes(svg2_dtype t) { return t == SVG2_F32 ? 4 : 2; }
FN int64_t tensor_at(const tensor *t, int b, int h, int s, int d) { return b * t->sb + h * t->sh + s * t->st + d; }
FN double tensor_get(const tensor *t, int64_t at)
{
    if (t->layout.dtype == SVG2_F32) return (double)((const float *)t->data)[at];
    uint16_t bits = ((const uint16_t *)t->data)[at];
    return t->layout.dtype == SVG2_F16 ? f16_value(bits) : bf16_value(bits);
}
FN void tensor_put(tensor *t, int64_t at, double x)
{
    if (t->layout.dtype == SVG2_F32) ((float *)t->data)[at] = (float)x;
    else ((uint16_t *)t->data)[at] = t->layout.dtype == SVG2_F16 ? f16_bits(x) : bf16_bits(x);
}
FN tensor tensor_new(int B, int H, int S, int D, svg2_dtype dtype, tensor_order order)
{
    tensor t;
    memset(&t, 0, sizeof t);
    t.B = B; t.H = H; t.S = S; t.D = D;
    t.st = D; t.sh = (int64_t)S * D; t.sb = H * t.sh;
    if (order == BSHD) { t.sh = D; t.st = (int64_t)H * D; t.sb = S * t.st; }
    if (order == GAPS) { t.st = D + 3; t.sh = S * t.st + 5; t.sb = H * t.sh + 7; }
    t.layout.dtype = dtype;
    if (order != BHSD) { t.layout.stride_batch = t.sb; t.layout.stride_head = t.sh; t.layout.stride_token = t.st; }
    t.bytes = (size_t)(tensor_at(&t, B - 1, H - 1, S - 1, D - 1) + 1) * dtype_bytes(dtype);
    t.data = mem_new(t.bytes);
    return t;
}
/* Contiguous float64 copy. */
FN double *tensor_f64(const tensor *t)
{
    double *x = (double *)mem_new(sizeof(double) * (size_t)t->B * (size_t)t->H * (size_t)t->S * (size_t)t->D), *p = x;
    for (int b = 0; b < t->B; ++b)
        for (int h = 0; h < t->H; ++h)
            for (int s = 0; s < t->S; ++s)
                for (int d = 0; d < t->D; ++d) *p++ = tensor_get(t, tensor_at(t, b, h, s, d));
    return x;
}
/* Nothing between the elements of a strided tensor was written. */
FN int tensor_gaps_untouched(const tensor *t)
{
    size_t e = dtype_bytes(t->layout.dtype), broken = 0;
    unsigned char *copy = (unsigned char *)malloc(t->bytes);
    memcpy(copy, t->data, t->bytes);
    for (int b = 0; b < t->B; ++b)
        for (int h = 0; h < t->H; ++h)
            for (int s = 0; s < t->S; ++s)
                memset(copy + (size_t)tensor_at(t, b, h, s, 0) * e, 0xff, (size_t)t->D * e);
    for (size_t i = 0; i < t->bytes; ++i) broken += copy[i] != 0xff;
    free(copy);
    return broken == 0;
}
FN void tensor_fill_normal(tensor *t, uint64_t seed, double amplitude, double mean)
{
    for (int b = 0; b < t->B; ++b)
        for (int h = 0; h < t->H; ++h) {
            uint64_t s = seed + 977u * (uint64_t)(b * t->H + h), m = seed + 31;
            double *shift = (double *)malloc(sizeof(double) * (size_t)t->D);
            for (int d = 0; d < t->D; ++d) shift[d] = rnd_unit(&m) < 0.5 ? -mean : mean;
            for (int i = 0; i < t->S; ++i)
                for (int d = 0; d < t->D; ++d)
                    tensor_put(t, tensor_at(t, b, h, i, d), amplitude * rnd_normal(&s) + shift[d]);
            free(shift);
        }
    t->hash = mem_hash(t->data, t->bytes);
}

/* Tokens that show a few moving things: queries and keys of one thing point the same way, the residual of a value is a
   linear function of the residual of its key, keys have a common mean. Head h of a batch entry has its own things. */
FN void fill_video(tensor *q, tensor *k, tensor *v, uint64_t seed, double sharp, double key_mean)
{
    int D = q->D, things = 24, group = q->H / k->H;
    double *center = (double *)malloc(sizeof(double) * (size_t)(things * D) * 2), *value = center + things * D;
    double *mix = (double *)malloc(sizeof(double) * (size_t)(D * D)), *x = (double *)malloc(sizeof(double) * (size_t)D);
    for (int b = 0; b < q->B; ++b)
        for (int h = 0; h < q->H; ++h) {
            uint64_t s = seed * 7919u + (uint64_t)(b * k->H + h / group) * 104729u + 5;
            for (int i = 0; i < 2 * things * D; ++i) center[i] = rnd_normal(&s);
            for (int i = 0; i < D * D; ++i) mix[i] = rnd_normal(&s) / sqrt(D);
            if (h % group == 0)
                for (int t = 0; t < k->S; ++t) {
                    int thing = (int)(((double)t / k->S * 8 + rnd_unit(&s) * 3)) * 7 % things;
                    for (int d = 0; d < D; ++d) x[d] = 0.35 * rnd_normal(&s);
                    for (int d = 0; d < D; ++d) {
                        double r = 0;
                        for (int e = 0; e < D; ++e) r += mix[e * D + d] * x[e];
                        tensor_put(k, tensor_at(k, b, h / group, t, d),
                                   center[thing * D + d] + x[d] + (d % 3 ? key_mean : -key_mean));
                        tensor_put(v, tensor_at(v, b, h / group, t, d),
                                   value[thing * D + d] + r + 0.2 * rnd_normal(&s));
                    }
                }
            s += (uint64_t)(h % group) * 999331u;
            for (int i = 0; i < q->S; ++i) {
                int thing = (int)(((double)i / q->S * 8 + rnd_unit(&s) * 3)) * 7 % things;
                for (int d = 0; d < D; ++d)
                    tensor_put(q, tensor_at(q, b, h, i, d), sharp * (center[thing * D + d] + 0.5 * rnd_normal(&s)));
            }
        }
    free(center); free(mix); free(x);
    q->hash = mem_hash(q->data, q->bytes);
    k->hash = mem_hash(k->data, k->bytes);
    v->hash = mem_hash(v->data, v->bytes);
}

/* ==== >>threads ========================================================================== */
typedef struct pool_job {
    svg2_task_fn *fn;
    void *task;
    int64_t count, grain, next;
    pthread_mutex_t lock;
} pool_job;
typedef struct pool_thread { pool_job *job; int32_t worker; pthread_t id; } pool_thread;

FN void *pool_main(void *p)
{
    pool_thread *t = (pool_thread *)p;
    for (;;) {
        pthread_mutex_lock(&t->job->lock);
        int64_t begin = t->job->next, end = begin + t->job->grain;
        if (end > t->job->count) end = t->job->count;
        t->job->next = end;
        pthread_mutex_unlock(&t->job->lock);
        if (begin >= end) return 0;
        t->job->fn(t->job->task, begin, end, t->worker);
    }
}
/* user: int32_t *, the number of threads. */
FN void pool_run(void *user, svg2_task_fn *fn, void *task, int64_t count, int64_t grain)
{
    int32_t n = *(int32_t *)user;
    pool_thread threads[16];
    pool_job job;
    job.fn = fn; job.task = task; job.count = count; job.grain = grain < 1 ? 1 : grain; job.next = 0;
    pthread_mutex_init(&job.lock, 0);
    for (int32_t i = 0; i < n; ++i) {
        threads[i].job = &job;
        threads[i].worker = i;
        if (i) pthread_create(&threads[i].id, 0, pool_main, &threads[i]);
    }
    pool_main(&threads[0]);
    for (int32_t i = 1; i < n; ++i) pthread_join(threads[i].id, 0);
    pthread_mutex_destroy(&job.lock);
}
/* One thread, pieces of odd sizes, last piece first, worker ids from 37 scattered. user: uint64_t *, a seed. */
FN void pool_reverse(void *user, svg2_task_fn *fn, void *task, int64_t count, int64_t grain)
{
    uint64_t *seed = (uint64_t *)user;
    int64_t end = count;
    grain = grain < 1 ? 1 : grain;
    int64_t tail = count % grain; /* only the last piece may be smaller than grain */
    while (end > 0) {
        int64_t items = tail ? tail : grain * (1 + (int64_t)(rnd_bits(seed) % 3));
        if (items > end) items = end;
        tail = 0;
        fn(task, end - items, end, (int32_t)(rnd_bits(seed) % 37));
        end -= items;
    }
}
FN svg2_parallel pool_threads(int32_t *threads)
{
    svg2_parallel p;
    p.run = pool_run; p.user = threads; p.workers = *threads;
    return p;
}
FN svg2_parallel pool_scattered(uint64_t *seed)
{
    svg2_parallel p;
    p.run = pool_reverse; p.user = seed; p.workers = 37;
    return p;
}

/* ==== >>reference ======================================================================== */
FN double dot64(const double *a, const double *b, int n)
{
    double s = 0;
    for (int d = 0; d < n; ++d) s += a[d] * b[d];
    return s;
}

/* One row of attention: softmax over the keys with use[t] (NULL = all), and over extra virtual keys with given logits and
   values. Returns the LSE; *extra_share = the virtual keys' part of the softmax. */
FN double ref_row(const double *q, const double *k, const double *v, const unsigned char *use, int keys, int D, double scale,
                  const double *extra_logit, const double *extra_value, int extra, double *out, double *extra_share)
{
    double *logit = (double *)malloc(sizeof(double) * (size_t)(keys + extra)), top = -(double)INFINITY, sum = 0, share = 0;
    for (int t = 0; t < keys; ++t) {
        logit[t] = !use || use[t] ? scale * dot64(q, k + (int64_t)t * D, D) : -(double)INFINITY;
        if (logit[t] > top) top = logit[t];
    }
    for (int j = 0; j < extra; ++j) {
        logit[keys + j] = extra_logit[j];
        if (extra_logit[j] > top) top = extra_logit[j];
    }
    for (int d = 0; d < D; ++d) out[d] = 0;
    for (int t = 0; t < keys + extra && top > -(double)INFINITY; ++t) {
        const double *value = t < keys ? v + (int64_t)t * D : extra_value + (int64_t)(t - keys) * D;
        double w = exp(logit[t] - top);
        if (w == 0) continue;
        sum += w;
        if (t >= keys) share += w;
        for (int d = 0; d < D; ++d) out[d] += w * value[d];
    }
    for (int d = 0; d < D && sum > 0; ++d) out[d] /= sum;
    if (extra_share) *extra_share = sum > 0 ? share / sum : 0;
    free(logit);
    return sum > 0 ? top + log(sum) : -(double)INFINITY;
}

/* Means of the clusters of labelled rows: mean [clusters, D], count [clusters]. */
FN void ref_means(const double *x, const int32_t *label, int rows, int D, int clusters, double *mean, int *count)
{
    memset(mean, 0, sizeof(double) * (size_t)clusters * (size_t)D);
    memset(count, 0, sizeof(int) * (size_t)clusters);
    for (int t = 0; t < rows; ++t) {
        if (label[t] < 0 || label[t] >= clusters) continue;
        ++count[label[t]];
        for (int d = 0; d < D; ++d) mean[(int64_t)label[t] * D + d] += x[(int64_t)t * D + d];
    }
    for (int c = 0; c < clusters; ++c)
        for (int d = 0; d < D && count[c]; ++d) mean[(int64_t)c * D + d] /= count[c];
}

/* What stands for the skipped clusters of one head: everything in float64 from labels and map alone. */
typedef struct ref_head {
    int Sq, Skv, D, Cq, Ck, Qb, Kb, order; /* order: -1 no tail, 0, 1 */
    int plain; /* a virtual key weighs ln n_j, not the log mass that the query centroid sees */
    double scale;
    const double *q, *k, *v;
    const int32_t *query_label, *key_label;
    const uint8_t *map; /* [Qb, Kb] */
    double *qbar, *kbar, *vbar, *lambda; /* lambda [Cq, Ck]; -INFINITY for an empty cluster */
    int *nq, *nk;
} ref_head;
FN void ref_head_prepare(ref_head *r)
{
    r->qbar = (double *)mem_new(sizeof(double) * (size_t)(r->Cq * r->D));
    r->kbar = (double *)mem_new(sizeof(double) * (size_t)(r->Ck * r->D));
    r->vbar = (double *)mem_new(sizeof(double) * (size_t)(r->Ck * r->D));
    r->nq = (int *)mem_new(sizeof(int) * (size_t)r->Cq);
    r->nk = (int *)mem_new(sizeof(int) * (size_t)r->Ck);
    ref_means(r->q, r->query_label, r->Sq, r->D, r->Cq, r->qbar, r->nq);
    ref_means(r->k, r->key_label, r->Skv, r->D, r->Ck, r->kbar, r->nk);
    ref_means(r->v, r->key_label, r->Skv, r->D, r->Ck, r->vbar, r->nk);
    r->lambda = (double *)mem_new(sizeof(double) * (size_t)(r->Cq * r->Ck));
    for (int I = 0; I < r->Cq; ++I) {
        const double *q = r->qbar + (int64_t)I * r->D;
        double *lambda = r->lambda + (int64_t)I * r->Ck;
        for (int j = 0; j < r->Ck; ++j) lambda[j] = r->plain ? r->nk[j] : 0;
        for (int t = 0; t < r->Skv && !r->plain && r->nq[I]; ++t) {
            int j = r->key_label[t];
            if (j >= r->Ck) continue;
            double far = dot64(q, r->k + (int64_t)t * r->D, r->D) - dot64(q, r->kbar + (int64_t)j * r->D, r->D);
            lambda[j] += exp(r->scale * far);
        }
        for (int j = 0; j < r->Ck; ++j) lambda[j] = log(lambda[j]);
    }
}
/* Row i: o_i = softmax over selected keys and virtual keys, + (tail share) s A_I^T q_i. Returns the LSE. */
FN double ref_head_row(const ref_head *r, int i, double *out)
{
    int D = r->D, I = r->query_label[i], extra = 0;
    const double *q = r->q + (int64_t)i * D;
    const uint8_t *row = r->map + (int64_t)I * r->Kb;
    unsigned char *use = (unsigned char *)malloc((size_t)r->Skv);
    double *logit = (double *)malloc(sizeof(double) * (size_t)r->Ck), *value = (double *)malloc(sizeof(double) * (size_t)(r->Ck * D));
    double *weight = (double *)calloc((size_t)r->Ck, sizeof(double)), share, top = -(double)INFINITY, sum = 0, lse;
    for (int t = 0; t < r->Skv; ++t) use[t] = row[r->key_label[t]];
    for (int j = 0; j < r->Ck && r->order >= 0 && I < r->Cq; ++j) {
        if (row[j] || !r->nk[j]) continue;
        logit[extra] = r->scale * dot64(q, r->kbar + (int64_t)j * D, D) + r->lambda[(int64_t)I * r->Ck + j];
        memcpy(value + (int64_t)extra++ * D, r->vbar + (int64_t)j * D, sizeof(double) * (size_t)D);
        weight[j] = r->scale * dot64(r->qbar + (int64_t)I * D, r->kbar + (int64_t)j * D, D) + r->lambda[(int64_t)I * r->Ck + j];
        if (weight[j] > top) top = weight[j];
    }
    lse = ref_row(q, r->k, r->v, use, r->Skv, D, r->scale, logit, value, extra, out, &share);
    for (int j = 0; j < r->Ck && extra; ++j) {
        weight[j] = row[j] || !r->nk[j] ? 0 : exp(weight[j] - top);
        sum += weight[j];
    }
    for (int t = 0; t < r->Skv && r->order == 1 && extra; ++t) {
        int j = r->key_label[t];
        double along = 0;
        if (j >= r->Ck || weight[j] == 0) continue;
        for (int d = 0; d < D; ++d) along += (r->k[(int64_t)t * D + d] - r->kbar[(int64_t)j * D + d]) * q[d];
        along *= share * r->scale * weight[j] / sum / r->nk[j];
        for (int d = 0; d < D; ++d) out[d] += along * (r->v[(int64_t)t * D + d] - r->vbar[(int64_t)j * D + d]);
    }
    free(use); free(logit); free(value); free(weight);
    return lse;
}

/* SVG2's rule for one query cluster. keep [Ck] gets 1 or 0, or 2 where rounding may decide either way. */
typedef struct ref_rank { double p; int j; } ref_rank;
FN int ref_rank_compare(const void *a, const void *b)
{
    const ref_rank *x = (const ref_rank *)a, *y = (const ref_rank *)b;
    return x->p > y->p ? -1 : x->p < y->p ? 1 : x->j - y->j;
}
/* P_j: share of the mass; a cluster weighs n_j, or exp(lambda_j) where lambda is given. */
FN void ref_probability(const double *qbar, const double *kbar, const int *n, const double *lambda, int Ck, int D, double scale, double *P)
{
    double top = -(double)INFINITY, sum = 0;
    for (int j = 0; j < Ck; ++j) {
        P[j] = scale * dot64(qbar, kbar + (int64_t)j * D, D) + (lambda ? lambda[j] : log(n[j]));
        if (n[j] && P[j] > top) top = P[j];
    }
    for (int j = 0; j < Ck; ++j) sum += P[j] = n[j] ? exp(P[j] - top) : 0;
    for (int j = 0; j < Ck && sum > 0; ++j) P[j] /= sum;
}
FN void ref_top_p(const double *P, int Ck, double top_p, double min_keep, unsigned char *keep)
{
    ref_rank *rank = (ref_rank *)malloc(sizeof(ref_rank) * (size_t)Ck);
    double before = 0;
    int floor_rank = min_keep > 0 ? (int)floor(min_keep * Ck + 1e-6) : 0, last = 0;
    for (int j = 0; j < Ck; ++j) { rank[j].p = P[j]; rank[j].j = j; }
    qsort(rank, (size_t)Ck, sizeof *rank, ref_rank_compare);
    for (int r = 0; r < Ck; ++r) {
        int in = r == 0 || before <= top_p || r < floor_rank;
        keep[rank[r].j] = (unsigned char)(in ? 1 : 0);
        if (r >= floor_rank && r && fabs(before - top_p) < 1e-5) keep[rank[r].j] = 2;
        if (in) last = r;
        before += rank[r].p;
    }
    for (int r = 0; r < Ck; ++r) /* equal but for rounding to the last one kept: either may be taken */
        if (last + 1 < Ck && rank[r].p > 0 && fabs(rank[r].p - rank[last].p) < 2e-6 * rank[last].p
            && fabs(rank[last + 1].p - rank[last].p) < 2e-6 * rank[last].p && rank[last].p != rank[last + 1].p)
            keep[rank[r].j] = 2;
    free(rank);
}

/* Running relative L2 error. */
typedef struct rel_error { double difference, reference; } rel_error;
FN void rel_add(rel_error *e, const double *x, const double *y, int n)
{
    for (int i = 0; i < n; ++i) {
        double d = x[i] - y[i];
        e->difference += d * d;
        e->reference += y[i] * y[i];
    }
}
FN double rel_l2(rel_error e)
{
    if (!(e.difference <= 1e300)) return (double)INFINITY;
    return e.difference == 0 ? 0 : sqrt(e.difference / e.reference);
}
FN double rel_l2_arrays(const double *x, const double *y, int64_t n)
{
    rel_error e = {0, 0};
    for (int64_t i = 0; i < n; ++i) rel_add(&e, x + i, y + i, 1);
    return rel_l2(e);
}

/* ==== >>job ============================================================================== */
typedef struct job {
    svg2_desc d; /* resolved */
    svg2_backend backend;
    tensor q, k, v, out;
    float *lse;
    svg2_head_stats *stats;
    svg2_state state;
    void *state_memory, *work;
    size_t state_bytes, work_bytes;
    svg2_error err;
} job;

typedef struct job_orders { tensor_order q, k, v, out; } job_orders;

FN void job_alloc(job *j, svg2_desc d, const svg2_backend *backend, tensor_order order)
{
    svg2_desc probe = d;
    memset(j, 0, sizeof *j);
    j->backend = *backend;
    assert_ok(svg2_resolve(&probe, &j->err));
    j->q = tensor_new(probe.batch, probe.heads, probe.tokens, probe.head_dim, d.q.dtype, order);
    j->k = tensor_new(probe.batch, probe.heads_kv, probe.tokens_kv, probe.head_dim, d.k.dtype, order);
    j->v = tensor_new(probe.batch, probe.heads_kv, probe.tokens_kv, probe.head_dim, d.v.dtype, order);
    j->out = tensor_new(probe.batch, probe.heads, probe.tokens, probe.head_dim, d.out.dtype, order);
    d.q = j->q.layout; d.k = j->k.layout; d.v = j->v.layout; d.out = j->out.layout;
    j->d = d;
    assert_ok(svg2_resolve(&j->d, &j->err));
    j->lse = (float *)mem_new(sizeof(float) * (size_t)probe.batch * (size_t)probe.heads * (size_t)probe.tokens);
    j->stats = (svg2_head_stats *)mem_new(sizeof(svg2_head_stats) * (size_t)probe.batch * (size_t)probe.heads);
    j->state_bytes = svg2_state_bytes(&d);
    j->state_memory = mem_new(j->state_bytes);
    assert_ok(svg2_state_init(&j->state, &d, j->state_memory, j->state_bytes, &j->err));
    j->work_bytes = svg2_workspace_bytes(backend, &d);
    j->work = mem_new(j->work_bytes);
}
FN void job_make(job *j, svg2_desc d, const svg2_backend *backend, tensor_order order, uint64_t seed)
{
    job_alloc(j, d, backend, order);
    fill_video(&j->q, &j->k, &j->v, seed, 1.0, 1.0);
}
FN svg2_result job_try(job *j, int32_t step)
{
    return svg2_attend(&j->backend, &j->d, &j->state, step, j->q.data, j->k.data, j->v.data, j->out.data, j->lse, j->stats,
                       j->work, j->work_bytes, &j->err);
}
FN void job_run(job *j, int32_t step)
{
    svg2_result r = job_try(j, step);
    if (r != SVG2_OK) fail_msg("svg2_attend: %s (%s: %s)", svg2_result_string(r), j->err.field, j->err.text);
}
FN uint64_t job_hash(const job *j)
{
    size_t rows = (size_t)(j->d.batch * j->d.heads) * (size_t)j->d.tokens;
    return mem_hash(j->out.data, j->out.bytes) * 31 + mem_hash(j->lse, rows * sizeof(float));
}

/* Which tokens are what. */
typedef struct token_kinds { int video_begin, video_count, text_begin, text_count, pad_begin, pad_count; } token_kinds;
FN token_kinds job_kinds(const svg2_desc *d, int tokens)
{
    token_kinds s;
    int valid = d->text_valid < 0 || !d->text_tokens ? 0 : d->text_valid;
    s.video_count = tokens - d->text_tokens;
    s.text_count = valid;
    s.pad_count = d->text_tokens - valid;
    s.video_begin = d->text_place == SVG2_TEXT_FIRST ? d->text_tokens : 0;
    s.text_begin = d->text_place == SVG2_TEXT_FIRST ? 0 : s.video_count;
    s.pad_begin = s.text_begin + valid;
    return s;
}

/* P[j] = mean over the rows i of query cluster I of softmax_j(scale q_i.kbar_j + lambda_Ij). */
FN void ref_share(const ref_head *r, int I, double *P)
{
    double *p = (double *)malloc(sizeof(double) * (size_t)r->Ck), *lambda = (double *)malloc(sizeof(double) * (size_t)r->Ck);
    int rows = 0;
    for (int j = 0; j < r->Ck; ++j) P[j] = 0, lambda[j] = (double)r->lambda[(int64_t)I * r->Ck + j];
    for (int t = 0; t < r->Sq; ++t) {
        if (r->query_label[t] != I) continue;
        ref_probability(r->q + (int64_t)t * r->D, r->kbar, r->nk, lambda, r->Ck, r->D, r->scale, p);
        for (int j = 0; j < r->Ck; ++j) P[j] += p[j];
        ++rows;
    }
    for (int j = 0; j < r->Ck && rows; ++j) P[j] /= rows;
    free(p); free(lambda);
}

/* Labels, order, offsets, centroids and mean of one side of one head are consistent with the tokens x [S, D]. */
FN void check_side(const double *x, int S, int D, int clusters, int blocks, token_kinds kind, const int32_t *label,
                   const int32_t *order, const int32_t *offset, const float *centroid, const float *mean)
{
    double *ref = (double *)malloc(sizeof(double) * (size_t)(clusters * D)), top = 0;
    int *count = (int *)calloc((size_t)(clusters + 2), sizeof(int)), has_text = kind.text_count > 0;
    assert_int_equal(blocks, clusters + has_text + (kind.pad_count > 0));
    for (int t = 0; t < S; ++t) {
        int is_text = t >= kind.text_begin && t < kind.text_begin + kind.text_count;
        int is_pad = t >= kind.pad_begin && t < kind.pad_begin + kind.pad_count;
        if (is_text) assert_int_equal(label[t], clusters);
        else if (is_pad) assert_int_equal(label[t], clusters + has_text);
        else assert_in_range(label[t], 0, clusters - 1);
        ++count[label[t]];
        for (int d = 0; d < D; ++d) top = fmax(top, fabs(x[(int64_t)t * D + d]));
    }
    assert_int_equal(offset[0], 0);
    for (int c = 0; c < blocks; ++c) assert_int_equal(offset[c + 1] - offset[c], count[c]);
    for (int c = 0; c < blocks; ++c)
        for (int n = offset[c]; n < offset[c + 1]; ++n) {
            assert_int_equal(label[order[n]], c);
            if (n > offset[c]) assert_true(order[n] > order[n - 1]);
        }
    ref_means(x, label, S, D, clusters, ref, count);
    for (int c = 0; c < clusters; ++c)
        for (int d = 0; d < D && count[c]; ++d)
            assert_at_most(fabs((double)centroid[c * D + d] - ref[c * D + d]), 2e-6 * top);
    for (int d = 0; d < D; ++d) {
        double m = 0;
        for (int t = kind.video_begin; t < kind.video_begin + kind.video_count; ++t) m += x[(int64_t)t * D + d];
        assert_at_most(fabs((double)mean[d] - m / kind.video_count), 2e-6 * top);
    }
    free(ref); free(count);
}

/* The tail in bf16 products: measured up to 1.4e-3 in the output and 1e-2 in the LSE, where nearly all is tail. */
#define BF16_TAIL_OUT 4e-3
#define BF16_TAIL_LSE 1e-2
FN int has_bf16_tail(const svg2_backend *backend) { return backend->simd == SVG2_SIMD_AVX512BF16; }

/* The CUDA backend: 16-bit operands. With u = 2^-9 (bf16) or 2^-12 (f16) the weights P err by u each, and so do rounded
   f32 queries and keys, whose logits then err by about u |logit|; what is asked for is some 3 times that. */
#define CUDA_OUT_BF16 1.2e-2
#define CUDA_OUT_F16 2e-3
FN int is_cuda(const svg2_backend *backend) { return strcmp(backend->name, "cuda") == 0; }
FN double cuda_bound(const svg2_desc *d)
{
    return d->k.dtype == SVG2_F16 && d->v.dtype == SVG2_F16 && d->out.dtype != SVG2_BF16 ? CUDA_OUT_F16 : CUDA_OUT_BF16;
}

/* Bounds for the output of a call, and for its LSE. */
FN double job_bound(const job *j)
{
    const svg2_desc *d = &j->d;
    if (is_cuda(&j->backend)) return cuda_bound(d);
    if (has_bf16_tail(&j->backend) && d->method != SVG2_METHOD_DENSE && d->tail != SVG2_TAIL_NONE) return BF16_TAIL_OUT;
    if (d->out.dtype == SVG2_BF16) return 4e-3;
    if (d->out.dtype == SVG2_F16) return 6e-4;
    return d->tail == SVG2_TAIL_NONE || d->method == SVG2_METHOD_DENSE ? 5e-6 : 2e-5;
}

/* After job_run: the plan is consistent, the map obeys the rules that do not depend on the budget (and SVG2's rule where
   that is asked for), and the rows of out and lse are the float64 attention of the plan. rows = how many are compared. */
FN void job_check(job *j, int32_t step, int rows)
{
    const svg2_desc *d = &j->d;
    int keep = test_mem_count, D = d->head_dim, group = d->heads / d->heads_kv;
    svg2_plan plan = svg2_plan_view(&j->backend, d, step, j->work);
    svg2_action action = svg2_schedule(d, step);
    token_kinds qk = job_kinds(d, d->tokens), kk = job_kinds(d, d->tokens_kv);
    double *q = tensor_f64(&j->q), *k = tensor_f64(&j->k), *v = tensor_f64(&j->v), *out = tensor_f64(&j->out);
    rel_error total = {0, 0};
    assert_true(j->q.hash == mem_hash(j->q.data, j->q.bytes) && j->k.hash == mem_hash(j->k.data, j->k.bytes)
                && j->v.hash == mem_hash(j->v.data, j->v.bytes));
    assert_true(tensor_gaps_untouched(&j->out));
    if (action == SVG2_ACTION_DENSE) assert_true(!plan.query_label && !plan.map && plan.query_blocks == 0);
    else {
        assert_int_equal(plan.query_clusters, d->query_clusters);
        assert_int_equal(plan.key_clusters, d->key_clusters);
        assert_true((plan.map != 0) == (action == SVG2_ACTION_SPARSE));
    }
    for (int b = 0; b < d->batch; ++b)
        for (int h = 0; h < d->heads; ++h) {
            int bh = b * d->heads + h, bk = b * d->heads_kv + h / group, Qb = plan.query_blocks, Kb = plan.key_blocks;
            const double *qh = q + (int64_t)bh * d->tokens * D;
            const double *kh = k + (int64_t)bk * d->tokens_kv * D, *vh = v + (int64_t)bk * d->tokens_kv * D;
            unsigned char *use = (unsigned char *)mem_new((size_t)d->tokens_kv);
            double *o = (double *)mem_new(sizeof(double) * (size_t)D);
            ref_head r;
            int64_t pairs = 0, valid_q = qk.video_count + qk.text_count, valid_k = kk.video_count + kk.text_count;
            memset(&r, 0, sizeof r);
            for (int t = 0; t < d->tokens_kv; ++t) use[t] = (unsigned char)!(t >= kk.pad_begin && t < kk.pad_begin + kk.pad_count);
            if (action != SVG2_ACTION_DENSE) {
                check_side(qh, d->tokens, D, d->query_clusters, Qb, qk, plan.query_label + (int64_t)bh * d->tokens,
                           plan.query_order + (int64_t)bh * d->tokens, plan.query_offset + (int64_t)bh * (Qb + 1),
                           plan.query_centroid + (int64_t)bh * d->query_clusters * D, plan.query_mean + (int64_t)bh * D);
                check_side(kh, d->tokens_kv, D, d->key_clusters, Kb, kk, plan.key_label + (int64_t)bk * d->tokens_kv,
                           plan.key_order + (int64_t)bk * d->tokens_kv, plan.key_offset + (int64_t)bk * (Kb + 1),
                           plan.key_centroid + (int64_t)bk * d->key_clusters * D, plan.key_mean + (int64_t)bk * D);
            }
            if (action == SVG2_ACTION_SPARSE) {
                const uint8_t *map = plan.map + (int64_t)bh * Qb * Kb;
                int text_q = qk.text_count > 0, text_k = kk.text_count > 0;
                r.Sq = d->tokens; r.Skv = d->tokens_kv; r.D = D; r.scale = (double)d->scale;
                r.Cq = d->query_clusters; r.Ck = d->key_clusters; r.Qb = Qb; r.Kb = Kb;
                r.order = d->tail == SVG2_TAIL_NONE ? -1 : d->tail == SVG2_TAIL_ORDER0 ? 0 : 1;
                r.q = qh; r.k = kh; r.v = vh; r.map = map;
                r.query_label = plan.query_label + (int64_t)bh * d->tokens;
                r.key_label = plan.key_label + (int64_t)bk * d->tokens_kv;
                ref_head_prepare(&r);
                unsigned char *want = (unsigned char *)mem_new((size_t)r.Ck);
                double *P = (double *)mem_new(sizeof(double) * (size_t)r.Ck);
                for (int I = 0; I < Qb; ++I) {
                    const uint8_t *row = map + I * Kb;
                    int is_pad = I >= r.Cq + text_q, kept = 0;
                    int nI = plan.query_offset[(int64_t)bh * (Qb + 1) + I + 1] - plan.query_offset[(int64_t)bh * (Qb + 1) + I];
                    for (int c = 0; c < Kb; ++c) {
                        int n = plan.key_offset[(int64_t)bk * (Kb + 1) + c + 1] - plan.key_offset[(int64_t)bk * (Kb + 1) + c];
                        assert_true(row[c] <= 1);
                        if (is_pad || c >= r.Ck + text_k) assert_int_equal(row[c], 0);
                        else if ((I >= r.Cq || c >= r.Ck) && n && nI) assert_int_equal(row[c], 1);
                        if (c < r.Ck && row[c] && n) kept++;
                        pairs += row[c] ? (int64_t)n * nI : 0;
                    }
                    if (I >= r.Cq || !nI) continue;
                    if (r.order < 0) assert_true(kept > 0);
                    if (d->route == SVG2_ROUTE_MASS && d->budget == SVG2_BUDGET_ROW && d->density == 0 && d->target_error == 0
                        && !(is_cuda(&j->backend) && r.order >= 0)) { /* there the share has 16-bit operands */
                        if (r.order < 0) ref_probability(r.qbar + (int64_t)I * D, r.kbar, r.nk, 0, r.Ck, D, r.scale, P);
                        else ref_share(&r, I, P);
                        ref_top_p(P, r.Ck, (double)d->top_p, (double)d->min_keep, want);
                        for (int c = 0; c < r.Ck; ++c)
                            if (want[c] != 2 && r.nk[c] && want[c] != row[c])
                                fail_msg("top-p: head %d query cluster %d key cluster %d: %d, not %d", bh, I, c, row[c], want[c]);
                    }
                }
                assert_true(j->stats[bh].pairs == pairs);
                assert_true(j->stats[bh].pairs_total == valid_q * valid_k);
            }
            if (valid_q && valid_k) /* without: 0 / 0 */
                assert_at_most(fabs((double)j->stats[bh].density - (double)j->stats[bh].pairs / (double)(valid_q * valid_k)), 1e-6);
            rel_error head = {0, 0};
            for (int n = 0; n < (rows < d->tokens ? rows : d->tokens); ++n) {
                int i = rows >= d->tokens ? n : n == 0 ? 0 : n == 1 ? d->tokens - 1 : (int)((int64_t)n * 7919 % d->tokens);
                int is_pad = i >= qk.pad_begin && i < qk.pad_begin + qk.pad_count;
                const double *got = out + ((int64_t)bh * d->tokens + i) * D;
                float got_lse = j->lse[(int64_t)bh * d->tokens + i];
                double lse;
                if (is_pad) {
                    for (int e = 0; e < D; ++e) assert_true(got[e] == 0);
                    assert_true(isinf(got_lse) && got_lse < 0);
                    continue;
                }
                if (action == SVG2_ACTION_SPARSE) lse = ref_head_row(&r, i, o);
                else lse = ref_row(qh + (int64_t)i * D, kh, vh, use, d->tokens_kv, D, (double)d->scale, 0, 0, 0, o, 0);
                if (isinf(lse)) assert_true(isinf(got_lse) && got_lse < 0);
                else assert_at_most(fabs((double)got_lse - lse), is_cuda(&j->backend) ? cuda_bound(d) * (1 + fabs(lse))
                                                                 : job_bound(j) == BF16_TAIL_OUT ? BF16_TAIL_LSE * (1 + fabs(lse))
                                                                                                 : 1e-5 + 1e-6 * fabs(lse));
                rel_add(&head, got, o, D);
            }
            total.difference += head.difference;
            total.reference += head.reference;
            assert_at_most(rel_l2(head), 1.5 * job_bound(j));
        }
    assert_at_most(rel_l2(total), job_bound(j));
    assert_int_equal(mem_release(keep), 0);
}

/* Dense attention of the same inputs, contiguous f64 [B, H, S, D]; computed by the library (which test_attention checks). */
FN double *job_dense(const job *j)
{
    svg2_desc d = j->d;
    svg2_error err;
    tensor out = tensor_new(j->q.B, j->q.H, j->q.S, j->q.D, SVG2_F32, BHSD);
    d.method = SVG2_METHOD_DENSE;
    d.out = out.layout;
    size_t bytes = svg2_workspace_bytes(&j->backend, &d);
    assert_ok(svg2_attend(&j->backend, &d, 0, 0, j->q.data, j->k.data, j->v.data, out.data, 0, 0, mem_new(bytes), bytes, &err));
    return tensor_f64(&out);
}
FN double job_error(const job *j, const double *dense)
{
    const double *out = tensor_f64(&j->out);
    return rel_l2_arrays(out, dense, (int64_t)j->q.B * j->q.H * j->q.S * j->q.D);
}

/* Descriptors hold padding bytes, so they are compared field by field. */
FN int desc_equal(const svg2_desc *a, const svg2_desc *b)
{
#define SAME(f) (a->f == b->f)
#define SAME_LAYOUT(f) (SAME(f.dtype) && SAME(f.stride_batch) && SAME(f.stride_head) && SAME(f.stride_token))
    return SAME(batch) && SAME(heads) && SAME(heads_kv) && SAME(tokens) && SAME(tokens_kv) && SAME(head_dim) && SAME(scale)
        && SAME_LAYOUT(q) && SAME_LAYOUT(k) && SAME_LAYOUT(v) && SAME_LAYOUT(out) && SAME(frames) && SAME(frame_tokens)
        && SAME(text_tokens) && SAME(text_place) && SAME(text_valid) && SAME(method) && SAME(query_clusters) && SAME(key_clusters)
        && SAME(init_iterations) && SAME(step_iterations) && SAME(keep_empty) && SAME(seed) && SAME(route) && SAME(budget)
        && SAME(tail) && SAME(top_p) && SAME(min_keep) && SAME(density) && SAME(target_error) && SAME(dense_above)
        && SAME(block) && SAME(keep) && SAME(band_width) && SAME(sample_rows) && SAME(first_frame) && SAME(sparsity) && SAME(mass_target)
        && SAME(search_count) && memcmp(a->search_steps, b->search_steps, sizeof a->search_steps) == 0 && SAME(skip) && SAME(visit) && SAME(skip_threshold) && SAME(energy_lambda) && SAME(recall) && SAME(layer)
        && SAME(dense_layers) && SAME(dense_steps) && SAME(init_on_dense) && SAME(state_dtype);
}

FN svg2_desc desc_small(int heads, int tokens, int dim)
{
    svg2_desc d = SVG2_ZERO;
    d.heads = heads;
    d.tokens = tokens;
    d.head_dim = dim;
    return d;
}

#endif
