/* bench.c - how fast svg2.h is on this CPU, beside what the CPU can do

   Build and run, from the root of the repository:

       gcc -std=c99 -O2 -ffp-contract=off -fopenmp bench/bench.c -o build/bench -lm && build/bench

   Every time stands beside a ceiling: the single-precision FMA rate of the same number of threads, measured
   just before and just after it, because clocks and neighbours change from second to second. A row is the
   median over interleaved rounds (A B C A B C ...), never the best of one. The column "busy" is the share of
   the machine that the process got while a row ran: where it is far under 100 % somebody else was computing,
   and the row should be measured again.

   The input is made here (synth.h: moving objects, 3-D positions, a strong common key mean), so that nothing
   has to be downloaded; one warm call works on the next denoising step of the tensors that its clusters were
   made from.

   CONTENTS
     >>options    what can be asked for
     >>machine    clocks, CPU name, the FMA ceiling, copy bandwidth
     >>rows       one row = samples of one piece of work
     >>data       tensors
     >>kmeans >>permute >>attention >>mass >>front     each stage alone
     >>pipeline   the whole call: sparse beside dense, 1 thread beside all, 14,850 to 118,800 tokens
     >>report     JSON, then the tables */

#define _XOPEN_SOURCE 600 /* clock_gettime, posix_memalign, getrusage */

#define SVG2_IMPLEMENTATION
#define SVG2_OPENMP
#include "../svg2.h"

#include "synth.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#ifdef _OPENMP
#  include <omp.h>
#endif
#if defined(__x86_64__) && defined(__GNUC__)
#  include <immintrin.h>
#  define BENCH_X86 1
#else
#  define BENCH_X86 0
#endif

#ifndef SVG2_BENCH_COMMIT
#  define SVG2_BENCH_COMMIT "unknown"
#endif
#ifndef SVG2_BENCH_FLAGS
#  define SVG2_BENCH_FLAGS "unknown"
#endif

enum { MAX_ROWS = 64, MAX_REPEAT = 32, MAX_SAMPLES = 8 * MAX_REPEAT, MAX_VALUES = 16 };

/* Stages of the whole call, told apart by the timing backend. Attention stands last. */
enum { T_KMEANS_Q, T_KMEANS_K, T_PERMUTE, T_SUMMARIZE, T_SCORE, T_SELECT, T_TAIL, T_ATTENTION, T_COUNT };
static const char *const stage_names[T_COUNT] = {"kmeans_q", "kmeans_k", "permute", "summarize",
                                                 "score",    "select",   "tail",    "attention"};

typedef enum row_group { GROUP_STAGE, GROUP_CALL, GROUP_SCALING, GROUP_SCALE } row_group;
static const char *const group_names[] = {"stage", "call", "scaling", "scale"};

typedef struct row {
    row_group group;
    char name[64];
    int threads;
    double flops; /* useful multiply-adds of one run, counted as two; 0 = not the measure  */
    double bytes; /* compulsory traffic of one run; 0 = not the measure                    */
    double goal;  /* least share of the FMA peak; 0 = none                                 */
    int count;    /* samples                                                               */
    double seconds[MAX_SAMPLES];
    double peak[MAX_SAMPLES]; /* flop/s around the sample                                         */
    double busy[MAX_SAMPLES]; /* share of threads * wall time in which the process ran            */
    double stage[T_COUNT][MAX_SAMPLES];
    double dense[MAX_SAMPLES]; /* dense seconds measured around the sample; 0 = none              */
    int values;                /* further numbers, for the tables and the JSON                          */
    const char *key[MAX_VALUES];
    double value[MAX_VALUES];
} row;

typedef struct bench {
    int threads, repeat, is_quick, with_scale;
    const char *filter, *json, *commit;
    double deadline; /* of now(): a round beyond the second does not begin after it */
    /* machine */
    char cpu[128], date[32];
    const char *fma_name;
    float (*fma)(float a, float b, int64_t rounds);
    double fma_flops_per_round, fma_rounds; /* rounds of about 8 ms */
    double peak_one, peak_all, copy_bytes_per_second;
    int rows;
    row row[MAX_ROWS];
} bench;

static void die(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fputs("bench: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
    va_end(list);
    exit(1);
}

static void check(svg2_result result, const svg2_error *err)
{
    if (result != SVG2_OK)
        die("%s: %s %s", svg2_result_string(result), err->field ? err->field : "", err->text ? err->text : "");
}

static void *allocate(size_t bytes)
{
    void *memory = 0;
    if (bytes == SIZE_MAX || posix_memalign(&memory, SVG2_ALIGN, bytes ? bytes : SVG2_ALIGN))
        die("out of memory");
    memset(memory, 0, bytes); /* the first touch is not what we time */
    return memory;
}

static float *allocate_floats(size_t count) { return (float *)allocate(count * sizeof(float)); }

static int32_t *allocate_ints(size_t count) { return (int32_t *)allocate(count * sizeof(int32_t)); }

/* ==== >>options ========================================================================== */
static void usage(void)
{
    puts("bench [--quick] [--scale] [--filter TEXT] [--threads N] [--repeat N] [--json FILE] [--commit ID]\n"
         "  --quick        fewer rows and rounds: under a minute\n"
         "  --scale        also one head of 14,850 to 118,800 tokens (HunyuanVideo 720p) and its memory\n"
         "  --filter TEXT  only rows whose name contains TEXT\n"
         "  --threads N    default: all that OpenMP gives\n"
         "  --repeat N     rounds, default 5 (quick: 3); fewer, but at least 2, where the machine is busy\n"
         "  --json FILE    all samples, with machine, compiler, date and commit");
}

static int number(const char *text, int low, int high)
{
    char *end;
    long value = strtol(text, &end, 10);
    if (end == text || *end || value < low || value > high)
        die("%s: expected a number from %d to %d", text, low, high);
    return (int)value;
}

static void parse(bench *b, int argc, char **argv)
{
    int i;
    b->commit = SVG2_BENCH_COMMIT;
    for (i = 1; i < argc; ++i) {
        const char *name = argv[i], *value = i + 1 < argc ? argv[i + 1] : 0;
        if (!strcmp(name, "--quick")) b->is_quick = 1;
        else if (!strcmp(name, "--scale")) b->with_scale = 1;
        else if (!strcmp(name, "--help")) {
            usage();
            exit(0);
        } else {
            if (!value) die("%s: unknown option, or its value is missing (try --help)", name);
            if (!strcmp(name, "--filter")) b->filter = value;
            else if (!strcmp(name, "--json")) b->json = value;
            else if (!strcmp(name, "--commit")) b->commit = value;
            else if (!strcmp(name, "--threads")) b->threads = number(value, 1, 1024);
            else if (!strcmp(name, "--repeat")) b->repeat = number(value, 1, MAX_REPEAT);
            else die("%s: unknown option (try --help)", name);
            ++i;
        }
    }
    if (!b->repeat) b->repeat = b->is_quick ? 3 : 5;
#ifdef _OPENMP
    if (!b->threads) b->threads = omp_get_max_threads();
#else
    b->threads = 1;
#endif
}

/* ==== >>machine ========================================================================== */
static double clock_of(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double now(void) { return clock_of(CLOCK_MONOTONIC); }

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, int count)
{
    double sorted[MAX_SAMPLES];
    if (count < 1) return 0;
    memcpy(sorted, values, (size_t)count * sizeof *values);
    qsort(sorted, (size_t)count, sizeof *sorted, compare_doubles);
    return count % 2 ? sorted[count / 2] : 0.5 * (sorted[count / 2 - 1] + sorted[count / 2]);
}

/* The ceiling: FMA chains that live in registers. An FMA takes 4 cycles and two start per cycle, so at least 8
   chains must be in flight; 12 fit the 16 registers of AVX2 beside the two factors. c = c*a + b with |a| < 1
   stays finite. */
#define BENCH_CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

static float fma_scalar(float a, float b, int64_t rounds)
{
    float c0 = a, c1 = b, c2 = a, c3 = b, c4 = a, c5 = b, c6 = a, c7 = b;
    int64_t i;
    for (i = 0; i < rounds; ++i) {
        c0 = c0 * a + b;
        c1 = c1 * a + b;
        c2 = c2 * a + b;
        c3 = c3 * a + b;
        c4 = c4 * a + b;
        c5 = c5 * a + b;
        c6 = c6 * a + b;
        c7 = c7 * a + b;
    }
    return c0 + c1 + c2 + c3 + c4 + c5 + c6 + c7;
}

#if BENCH_X86
__attribute__((target("avx2,fma"))) static float fma_avx2(float a, float b, int64_t rounds)
{
    __m256 x = _mm256_set1_ps(a), y = _mm256_set1_ps(b);
    float lanes[8];
    int64_t i;
#  define X(n) __m256 c##n = _mm256_set1_ps((float)n);
    BENCH_CHAINS(X)
#  undef X
    for (i = 0; i < rounds; ++i) {
#  define X(n) c##n = _mm256_fmadd_ps(c##n, x, y);
        BENCH_CHAINS(X)
#  undef X
    }
    x = _mm256_setzero_ps();
#  define X(n) x = _mm256_add_ps(x, c##n);
    BENCH_CHAINS(X)
#  undef X
    _mm256_storeu_ps(lanes, x);
    return lanes[0];
}

__attribute__((target("avx512f"))) static float fma_avx512(float a, float b, int64_t rounds)
{
    __m512 x = _mm512_set1_ps(a), y = _mm512_set1_ps(b);
    float lanes[16];
    int64_t i;
#  define X(n) __m512 c##n = _mm512_set1_ps((float)n);
    BENCH_CHAINS(X)
#  undef X
    for (i = 0; i < rounds; ++i) {
#  define X(n) c##n = _mm512_fmadd_ps(c##n, x, y);
        BENCH_CHAINS(X)
#  undef X
    }
    x = _mm512_setzero_ps();
#  define X(n) x = _mm512_add_ps(x, c##n);
    BENCH_CHAINS(X)
#  undef X
    _mm512_storeu_ps(lanes, x);
    return lanes[0];
}
#endif

static volatile float fma_sink; /* keeps the chains from being optimised away */

/* Flop/s of all threads together. Each thread's own rate is summed, so that one thread that waits for a core
   does not hide what the others did. */
static double fma_rate(const bench *b, int threads)
{
    double rate = 0;
#ifdef _OPENMP
#  pragma omp parallel num_threads(threads) reduction(+ : rate)
#else
    (void)threads;
#endif
    {
        double begin = now();
        fma_sink = b->fma(0.999f, 1e-3f, (int64_t)b->fma_rounds);
        rate += b->fma_rounds * b->fma_flops_per_round / (now() - begin);
    }
    return rate;
}

static void fma_choose(bench *b)
{
    double best = 0;
    int i;
    for (i = 0; i < 3; ++i) {
        bench trial;
        double rate = 0, again;
        int n;
        memset(&trial, 0, sizeof trial);
        trial.fma_rounds = 1e6;
        if (i == 0) {
            trial.fma = fma_scalar;
            trial.fma_flops_per_round = 2 * 8;
            trial.fma_name = "scalar";
#if BENCH_X86
        } else if (i == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
            trial.fma = fma_avx2;
            trial.fma_flops_per_round = 2 * 8 * 12;
            trial.fma_name = "AVX2";
        } else if (i == 2 && __builtin_cpu_supports("avx512f")) {
            trial.fma = fma_avx512;
            trial.fma_flops_per_round = 2 * 16 * 12;
            trial.fma_name = "AVX-512";
#endif
        } else continue;
        for (n = 0; n < 5; ++n)
            if ((again = fma_rate(&trial, 1)) > rate) rate = again;
        if (rate > best) {
            best = rate;
            b->fma = trial.fma;
            b->fma_name = trial.fma_name;
            b->fma_flops_per_round = trial.fma_flops_per_round;
            b->fma_rounds = 0.008 * rate / trial.fma_flops_per_round;
        }
    }
}

static double fma_best(const bench *b, int threads)
{
    double best = 0, rate;
    int i;
    for (i = 0; i < 5; ++i)
        if ((rate = fma_rate(b, threads)) > best) best = rate;
    return best;
}

/* memcpy of 64 MiB per thread; what is read and what is written both count. */
static double copy_rate(int threads)
{
    size_t bytes = (size_t)64 << 20;
    char *from = (char *)allocate(bytes * (size_t)threads), *to = (char *)allocate(bytes * (size_t)threads);
    double best = 0;
    int i, n;
    for (n = 0; n < 5; ++n) {
        double begin = now(), rate;
#ifdef _OPENMP
#  pragma omp parallel for num_threads(threads) schedule(static)
#endif
        for (i = 0; i < threads; ++i) memcpy(to + bytes * (size_t)i, from + bytes * (size_t)i, bytes);
        rate = 2.0 * (double)bytes * threads / (now() - begin);
        if (rate > best) best = rate;
    }
    free(from);
    free(to);
    return best;
}

static void machine_describe(bench *b)
{
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256];
    time_t when = time(0);
    strcpy(b->cpu, "unknown");
    while (file && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !colon) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(b->cpu, sizeof b->cpu, "%.100s", colon + 2);
        break;
    }
    if (file) fclose(file);
    strftime(b->date, sizeof b->date, "%Y-%m-%dT%H:%M:%SZ", gmtime(&when));
}

static double peak_rss_bytes(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)usage.ru_maxrss * 1024.0; /* Linux counts in KiB */
}

/* ==== >>rows ============================================================================= */
/* One run of a piece of work: returns its seconds, so that work may leave its preparation out. */
typedef double work_fn(void *context);

typedef struct work {
    row *row;
    work_fn *fn;
    void *context;
} work;

static int wanted(const bench *b, const char *name) { return !b->filter || strstr(name, b->filter) != 0; }

static row *row_new(bench *b, row_group group, int threads, const char *format, ...)
{
    row *r = &b->row[b->rows];
    va_list list;
    if (b->rows == MAX_ROWS) die("too many rows");
    memset(r, 0, sizeof *r);
    va_start(list, format);
    vsnprintf(r->name, sizeof r->name, format, list);
    va_end(list);
    if (!wanted(b, r->name)) return 0;
    r->group = group;
    r->threads = threads;
    ++b->rows;
    return r;
}

static void row_value(row *r, const char *key, double value)
{
    if (r->values == MAX_VALUES) die("too many values");
    r->key[r->values] = key;
    r->value[r->values++] = value;
}

static double row_get(const row *r, const char *key)
{
    int i;
    for (i = 0; i < r->values; ++i)
        if (!strcmp(r->key[i], key)) return r->value[i];
    return 0;
}

/* Median over the samples of the time without the stages from first on: without all of them, what validation
   and planning take; without attention, what must be linear in the tokens. */
static double row_without(const row *r, int first)
{
    double rest[MAX_SAMPLES];
    int i, j;
    for (i = 0; i < r->count; ++i)
        for (rest[i] = r->seconds[i], j = first; j < T_COUNT; ++j) rest[i] -= r->stage[j][i];
    return median(rest, r->count);
}

/* Median of the flop/s over the peak around each sample. */
static double row_share(const row *r)
{
    double share[MAX_SAMPLES];
    int i;
    for (i = 0; i < r->count; ++i) share[i] = r->flops / r->seconds[i] / r->peak[i];
    return median(share, r->count);
}

/* Short work is repeated until the clock's grain and the threads' start do not matter. Work that lost the
   processor to somebody else is measured again, twice at most; of the three the one that had most of the
   machine is kept, which says nothing about how fast it was while it ran. Long work is not repeated: it saw the
   average anyway. stages: seconds of each stage of the last run, NULL if the work has none. */
static void sample(bench *b, row *r, work_fn *fn, void *context, const double *stages)
{
    int n, at = r->count++;
    if (at == MAX_SAMPLES) die("too many samples");
    for (n = 0; n < 3; ++n) {
        double before = fma_rate(b, r->threads), total = 0, wall = now(),
               cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID);
        int runs = 0, i;
        do {
            total += fn(context);
            ++runs;
        } while (total < 0.02);
        wall = now() - wall;
        cpu = clock_of(CLOCK_PROCESS_CPUTIME_ID) - cpu;
        if (!n || cpu / (wall * r->threads) > r->busy[at]) {
            r->seconds[at] = total / runs;
            r->busy[at] = cpu / (wall * r->threads);
            r->peak[at] = 0.5 * (before + fma_rate(b, r->threads));
            for (i = 0; stages && i < T_COUNT; ++i) r->stage[i][at] = stages[i];
        }
        if (r->busy[at] > 0.9 || wall > 1.5) break;
    }
}

/* Whether round n is still to be run: on a busy machine two rounds have to do. */
static int another_round(const bench *b, int n) { return n < b->repeat && (n < 2 || now() < b->deadline); }

/* One unrecorded run of each, then rounds over all of them. */
static void run_interleaved(bench *b, work *works, int count)
{
    int i, n;
    for (i = 0; i < count; ++i) works[i].fn(works[i].context);
    for (n = 0; another_round(b, n); ++n)
        for (i = 0; i < count; ++i) {
            fprintf(stderr, "\rround %d/%d  %-60.60s", n + 1, b->repeat, works[i].row->name);
            sample(b, works[i].row, works[i].fn, works[i].context, 0);
        }
    fprintf(stderr, "\r%-78s\r", "");
}

/* ==== >>data ============================================================================= */
typedef struct video {
    synth_video shape;
    int32_t tokens, heads, dim;
    size_t count; /* elements of one tensor */
    float *q, *k, *v;
} video;

static void video_make(video *x, int32_t frames, int32_t height, int32_t width, int32_t heads, int32_t dim)
{
    memset(x, 0, sizeof *x);
    x->shape.frames = frames;
    x->shape.height = height;
    x->shape.width = width;
    x->shape.heads = x->heads = heads;
    x->shape.dim = x->dim = dim;
    x->shape.seed = 1;
    x->tokens = frames * height * width;
    x->count = (size_t)x->tokens * (size_t)heads * (size_t)dim;
    x->q = allocate_floats(x->count);
    x->k = allocate_floats(x->count);
    x->v = allocate_floats(x->count);
    synth_make(&x->shape, x->q, x->k, x->v);
}

/* The tensors one denoising step later: the same content, 5 % of its energy replaced by other noise. */
static void video_step(video *x)
{
    x->shape.drift = 0.22;
    synth_make(&x->shape, x->q, x->k, x->v);
}

static void video_free(video *x)
{
    free(x->q);
    free(x->k);
    free(x->v);
}

static svg2_backend backend_of(int threads)
{
    svg2_parallel parallel = svg2_parallel_openmp(threads);
    return svg2_cpu_backend(threads > 1 ? &parallel : 0);
}

/* ==== >>kmeans >>permute >>attention >>mass ============================================== */
/* One stage with everything that it needs, ready to be called again and again. */
typedef struct stage_context {
    svg2_backend backend;
    svg2_stage stage;
    union {
        svg2_kmeans_desc kmeans;
        svg2_permute_desc permute;
        svg2_summarize_desc summarize;
        svg2_score_desc score;
        svg2_select_desc select;
        svg2_tail_desc tail;
        svg2_attention_desc attention;
        svg2_mass_desc mass;
        svg2_front_desc front;
    } desc;
    void *workspace;
    size_t bytes;
    int low,
        high; /* k-means: iterations of the two calls whose difference is taken; low = 0: of the one call */
} stage_context;

static double stage_work(void *context)
{
    stage_context *c = (stage_context *)context;
    svg2_error err;
    svg2_result result = SVG2_OK;
    double begin = now();
    switch (c->stage) {
    case SVG2_STAGE_KMEANS:
        result = svg2_kmeans(&c->backend, &c->desc.kmeans, c->workspace, c->bytes, &err);
        break;
    case SVG2_STAGE_PERMUTE:
        result = svg2_permute(&c->backend, &c->desc.permute, c->workspace, c->bytes, &err);
        break;
    case SVG2_STAGE_SUMMARIZE:
        result = svg2_summarize(&c->backend, &c->desc.summarize, c->workspace, c->bytes, &err);
        break;
    case SVG2_STAGE_SCORE:
        result = svg2_score(&c->backend, &c->desc.score, c->workspace, c->bytes, &err);
        break;
    case SVG2_STAGE_SELECT:
        result = svg2_select(&c->backend, &c->desc.select, c->workspace, c->bytes, &err);
        break;
    case SVG2_STAGE_TAIL: result = svg2_tail(&c->backend, &c->desc.tail, c->workspace, c->bytes, &err); break;
    case SVG2_STAGE_ATTENTION:
        result = svg2_attention(&c->backend, &c->desc.attention, c->workspace, c->bytes, &err);
        break;
    case SVG2_STAGE_MASS:
        result = svg2_block_mass(&c->backend, &c->desc.mass, c->workspace, c->bytes, &err);
        break;
    case SVG2_STAGE_PLACE:
    case SVG2_STAGE_BAND:
    case SVG2_STAGE_PICK:
    case SVG2_STAGE_PROFILE: /* not timed by themselves */
    case SVG2_STAGE_COUNT: break;
    case SVG2_STAGE_FRONT: result = svg2_front(&c->backend, &c->desc.front, c->workspace, c->bytes, &err); break;
    }
    check(result, &err);
    return now() - begin;
}

/* Seconds of one iteration alone, without the mean, the set-up and the last means: the difference between two
   iteration counts. With low = 0, seconds of the whole call. */
static double kmeans_work(void *context)
{
    stage_context *c = (stage_context *)context;
    double low = 0;
    if (c->low) {
        c->desc.kmeans.iterations = c->low;
        low = stage_work(c);
    }
    c->desc.kmeans.iterations = c->high;
    return (stage_work(c) - low) / (c->low ? c->high - c->low : 1);
}

static stage_context *stage_new(const svg2_backend *backend, svg2_stage stage)
{
    stage_context *c = (stage_context *)allocate(sizeof *c);
    c->backend = *backend;
    c->stage = stage;
    return c;
}

static void stage_ready(stage_context *c)
{
    c->bytes = svg2_stage_workspace_bytes(&c->backend, c->stage, &c->desc);
    c->workspace = allocate(c->bytes);
}

static void stage_free(stage_context *c)
{
    if (!c) return;
    free(c->workspace);
    free(c);
}

/* Tokens of one head in clusters, ready for k-means and what follows. */
typedef struct grouping {
    int32_t clusters;
    float *start, *centroid, *mean;
    int32_t *label, *size, *order, *offset;
} grouping;

static void grouping_free(grouping *g)
{
    free(g->start);
    free(g->centroid);
    free(g->mean);
    free(g->label);
    free(g->size);
    free(g->order);
    free(g->offset);
}

/* x [tokens, dim]. The start for the timed runs is what one iteration after seeding leaves: as far from rest as
   a warm start ever is, so that nothing stops early. */
static stage_context *kmeans_make(int threads, grouping *g, const float *x, int32_t tokens, int32_t dim,
                                  int32_t clusters)
{
    svg2_backend backend = backend_of(threads);
    stage_context *c = stage_new(&backend, SVG2_STAGE_KMEANS);
    svg2_kmeans_desc *d = &c->desc.kmeans;
    g->clusters = clusters;
    d->batch = d->heads = 1;
    d->tokens = tokens;
    d->head_dim = dim;
    d->clusters = clusters;
    d->x = x;
    d->iterations = 1;
    d->store = g->start = allocate_floats((size_t)clusters * (size_t)dim);
    d->centroid = g->centroid = allocate_floats((size_t)clusters * (size_t)dim);
    d->mean = g->mean = allocate_floats((size_t)dim);
    d->label = g->label = allocate_ints((size_t)tokens);
    d->size = g->size = allocate_ints((size_t)clusters);
    g->order = allocate_ints((size_t)tokens);
    g->offset = allocate_ints((size_t)clusters + 1);
    stage_ready(c);
    stage_work(c);
    d->store = 0;
    d->start = g->start;
    return c;
}

static void bench_kmeans(bench *b, const video *x)
{
    static const struct {
        const char *name;
        int32_t clusters, low, high, is_cold;
        double goal;
    } cases[] = {{"kmeans iteration", 1000, 1, 4, 0, 0.5},
                 {"kmeans iteration", 300, 1, 4, 0, 0.5},
                 {"kmeans warm, 2 iterations", 1000, 0, 2, 0, 0},
                 {"kmeans cold, 10 iterations", 1000, 0, 10, 1, 0}};
    enum { CASES = sizeof cases / sizeof *cases };
    work works[CASES];
    stage_context *contexts[CASES];
    grouping groups[CASES];
    int count = 0, i;
    for (i = 0; i < CASES; ++i) {
        row *r = row_new(b, GROUP_STAGE, b->threads, "%s C=%d S=%d D=%d", cases[i].name, (int)cases[i].clusters,
                         (int)x->tokens, (int)x->dim);
        stage_context *c;
        if (!r) continue;
        c = contexts[count] =
            kmeans_make(b->threads, &groups[count], x->k, x->tokens, x->dim, cases[i].clusters);
        c->low = cases[i].low;
        c->high = cases[i].high;
        if (cases[i].is_cold) c->desc.kmeans.start = 0;
        r->flops = 2.0 * x->tokens * cases[i].clusters * x->dim * (c->low ? 1 : c->high);
        r->goal = cases[i].goal;
        works[count].row = r;
        works[count].fn = kmeans_work;
        works[count++].context = c;
    }
    run_interleaved(b, works, count);
    for (i = 0; i < count; ++i) {
        stage_free(contexts[i]);
        grouping_free(&groups[i]);
    }
}

/* One head with all that the stages hand on. */
typedef struct head {
    svg2_backend backend;
    const video *x;
    float scale;
    grouping q, k;
    float *value_mean, *value_var, *log_mass, *share, *matrix, *out, *lse, *mass;
    uint8_t *map;
    int32_t *even_q, *even_k; /* offsets of blocks of one size, for the oracle */
    svg2_head_stats stats;
} head;

static stage_context *stage_permute(head *h, grouping *g)
{
    stage_context *c = stage_new(&h->backend, SVG2_STAGE_PERMUTE);
    svg2_permute_desc *d = &c->desc.permute;
    d->batch = d->heads = 1;
    d->tokens = h->x->tokens;
    d->clusters = g->clusters;
    d->label = g->label;
    d->order = g->order;
    d->offset = g->offset;
    return c;
}

static stage_context *stage_summarize(head *h)
{
    stage_context *c = stage_new(&h->backend, SVG2_STAGE_SUMMARIZE);
    svg2_summarize_desc *d = &c->desc.summarize;
    d->batch = d->heads = 1;
    d->tokens = h->x->tokens;
    d->head_dim = h->x->dim;
    d->clusters = d->blocks = h->k.clusters;
    d->v = h->x->v;
    d->order = h->k.order;
    d->offset = h->k.offset;
    d->value_mean = h->value_mean;
    d->value_var = h->value_var;
    return c;
}

static stage_context *stage_score(head *h)
{
    stage_context *c = stage_new(&h->backend, SVG2_STAGE_SCORE);
    svg2_score_desc *d = &c->desc.score;
    d->batch = d->heads = d->heads_kv = 1;
    d->tokens_kv = h->x->tokens;
    d->head_dim = h->x->dim;
    d->query_clusters = h->q.clusters;
    d->key_clusters = d->key_blocks = h->k.clusters;
    d->scale = h->scale;
    d->k = h->x->k;
    d->key_order = h->k.order;
    d->key_offset = h->k.offset;
    d->query_centroid = h->q.centroid;
    d->key_centroid = h->k.centroid;
    d->log_mass = h->log_mass;
    d->tokens = h->x->tokens;
    d->query_blocks = h->q.clusters;
    d->q = h->x->q;
    d->query_order = h->q.order;
    d->query_offset = h->q.offset;
    d->key_mean = h->k.mean;
    d->share = h->share;
    return c;
}

static stage_context *stage_select(head *h, double density)
{
    stage_context *c = stage_new(&h->backend, SVG2_STAGE_SELECT);
    svg2_select_desc *d = &c->desc.select;
    d->batch = d->heads = d->heads_kv = 1;
    d->head_dim = h->x->dim;
    d->query_clusters = h->q.clusters;
    d->key_clusters = h->k.clusters;
    d->scale = h->scale;
    d->route = SVG2_ROUTE_MASS;
    d->budget = SVG2_BUDGET_HEAD;
    d->tail = SVG2_TAIL_ORDER1;
    d->top_p = 0.9f;
    d->min_keep = -1;
    d->density = (float)density;
    d->dense_above = 0.8f;
    d->query_centroid = h->q.centroid;
    d->key_centroid = h->k.centroid;
    d->key_mean = h->k.mean;
    d->log_mass = h->log_mass;
    d->share = h->share;
    d->value_mean = h->value_mean;
    d->value_var = h->value_var;
    d->query_offset = h->q.offset;
    d->key_offset = h->k.offset;
    d->map = h->map;
    d->stats = &h->stats;
    return c;
}

static stage_context *stage_tail(head *h)
{
    stage_context *c = stage_new(&h->backend, SVG2_STAGE_TAIL);
    svg2_tail_desc *d = &c->desc.tail;
    d->batch = d->heads = d->heads_kv = d->head_count = 1;
    d->tokens_kv = h->x->tokens;
    d->head_dim = h->x->dim;
    d->query_clusters = d->query_blocks = h->q.clusters;
    d->key_clusters = d->key_blocks = h->k.clusters;
    d->scale = h->scale;
    d->k = h->x->k;
    d->v = h->x->v;
    d->key_order = h->k.order;
    d->key_offset = h->k.offset;
    d->query_centroid = h->q.centroid;
    d->key_centroid = h->k.centroid;
    d->key_mean = h->k.mean;
    d->value_mean = h->value_mean;
    d->log_mass = h->log_mass;
    d->map = h->map;
    d->matrix = h->matrix;
    return c;
}

/* Dense attention over the first tokens of the head. */
static stage_context *stage_dense(head *h, int32_t tokens)
{
    stage_context *c = stage_new(&h->backend, SVG2_STAGE_ATTENTION);
    svg2_attention_desc *d = &c->desc.attention;
    d->batch = d->heads = d->heads_kv = 1;
    d->tokens = d->tokens_kv = tokens;
    d->head_dim = h->x->dim;
    d->scale = h->scale;
    d->q = h->x->q;
    d->k = h->x->k;
    d->v = h->x->v;
    d->out = h->out;
    d->lse = h->lse;
    return c;
}

static stage_context *stage_sparse(head *h)
{
    stage_context *c = stage_dense(h, h->x->tokens);
    svg2_attention_desc *d = &c->desc.attention;
    d->lse = 0; /* that of the dense call feeds the oracle */
    d->query_blocks = h->q.clusters;
    d->key_blocks = h->k.clusters;
    d->query_order = h->q.order;
    d->query_offset = h->q.offset;
    d->key_order = h->k.order;
    d->key_offset = h->k.offset;
    d->map = h->map;
    d->key_mean = h->k.mean;
    return c;
}

static int32_t *even_offsets(int32_t tokens, int32_t blocks)
{
    int32_t *offset = allocate_ints((size_t)blocks + 1), i;
    for (i = 0; i <= blocks; ++i) offset[i] = (int32_t)((int64_t)tokens * i / blocks);
    return offset;
}

/* What is timed is the oracle's speed on all pairs, not its answer, so blocks of one size and no permutation
 * will do. */
static stage_context *stage_mass(head *h, int32_t tokens)
{
    stage_context *dense = stage_dense(h, tokens), *c = stage_new(&h->backend, SVG2_STAGE_MASS);
    svg2_attention_desc *d = &c->desc.mass.attention;
    stage_ready(dense);
    stage_work(dense);
    *d = dense->desc.attention;
    stage_free(dense);
    d->query_blocks = h->q.clusters;
    d->key_blocks = h->k.clusters;
    d->query_offset = h->even_q = even_offsets(tokens, d->query_blocks);
    d->key_offset = h->even_k = even_offsets(tokens, d->key_blocks);
    c->desc.mass.mass = h->mass;
    return c;
}

static void bench_stages(bench *b, const video *x)
{
    enum { QC = 300, KC = 1000, MASS_TOKENS = 8192, STAGES = 7 };
    const size_t dim = (size_t)x->dim;
    const double s = x->tokens, d = x->dim;
    head h;
    stage_context *labels[2], *permute_q, *all[STAGES];
    work works[STAGES];
    int count = 0, i;

    if (!wanted(b, "permute") && !wanted(b, "summarize") && !wanted(b, "score") && !wanted(b, "select") &&
        !wanted(b, "tail matrices") && !wanted(b, "sparse attention") && !wanted(b, "block mass"))
        return;
    memset(&h, 0, sizeof h);
    h.backend = backend_of(b->threads);
    h.x = x;
    h.scale = 1.0f / sqrtf((float)x->dim);
    h.log_mass = allocate_floats((size_t)QC * KC);
    h.share = allocate_floats((size_t)QC * KC);
    h.value_mean = allocate_floats(KC * dim);
    h.value_var = allocate_floats(KC);
    h.matrix = allocate_floats(QC * dim * dim);
    h.out = allocate_floats((size_t)x->tokens * dim);
    h.lse = allocate_floats((size_t)x->tokens);
    h.mass = allocate_floats((size_t)QC * KC);
    h.map = (uint8_t *)allocate((size_t)QC * KC);

    labels[0] = kmeans_make(b->threads, &h.q, x->q, x->tokens, x->dim, QC);
    labels[1] = kmeans_make(b->threads, &h.k, x->k, x->tokens, x->dim, KC);
    for (i = 0; i < 2; ++i) {
        labels[i]->desc.kmeans.iterations = 4;
        stage_work(labels[i]);
    }
    permute_q = stage_permute(&h, &h.q);
    stage_ready(permute_q);
    stage_work(permute_q);

    all[0] = stage_permute(&h, &h.k);
    all[1] = stage_summarize(&h);
    all[2] = stage_score(&h);
    all[3] = stage_select(&h, 0.1);
    all[4] = stage_tail(&h);
    all[5] = stage_sparse(&h);
    all[6] = stage_mass(&h, MASS_TOKENS);
    for (i = 0; i < STAGES; ++i) { /* in this order each leaves what the next needs */
        static const char *const names[STAGES] = {"permute",       "summarize",        "score",     "select",
                                                  "tail matrices", "sparse attention", "block mass"};
        row *r;
        if (i == 6) r = row_new(b, GROUP_STAGE, b->threads, "%s S=%d D=%d", names[i], MASS_TOKENS, (int)x->dim);
        else
            r = row_new(b, GROUP_STAGE, b->threads, "%s %d/%d S=%d D=%d", names[i], QC, KC, (int)x->tokens,
                        (int)x->dim);
        stage_ready(all[i]);
        stage_work(all[i]);
        if (!r) continue;
        switch (i) {
        case 0: r->bytes = 12 * s; break;            /* label read twice, order written      */
        case 1: r->bytes = 4 * s * d + 4 * s; break; /* v and order read                     */
        case 2: r->flops = 2 * (QC + KC) * s * d; break; /* keys by query centroids, queries by key centroids */
        case 3: r->flops = 2.0 * QC * KC * d; break; /* centroid scores                      */
        case 4: r->flops = 2 * s * d * d + 2.0 * QC * KC * d * d; break;
        case 5: r->flops = 4 * (double)h.stats.pairs * d; break;
        default: r->flops = 2.0 * MASS_TOKENS * MASS_TOKENS * d; /* scores, no product with v    */
        }
        works[count].row = r;
        works[count].fn = stage_work;
        works[count++].context = all[i];
    }
    run_interleaved(b, works, count);

    for (i = 0; i < STAGES; ++i) stage_free(all[i]);
    stage_free(permute_q);
    stage_free(labels[0]);
    stage_free(labels[1]);
    grouping_free(&h.q);
    grouping_free(&h.k);
    free(h.log_mass);
    free(h.share);
    free(h.value_mean);
    free(h.value_var);
    free(h.matrix);
    free(h.out);
    free(h.lse);
    free(h.mass);
    free(h.map);
    free(h.even_q);
    free(h.even_k);
}

/* memcpy of what svg2_front reads to where it writes. */
static double copy_work(void *context)
{
    const stage_context *c = (const stage_context *)context;
    const svg2_front_desc *d = &c->desc.front;
    const int pieces = 64; /* for q and k each */
    const size_t bytes = (size_t)d->tokens * (size_t)d->heads * (size_t)d->head_dim * (d->q_layout.dtype ? 2 : 4);
    const double begin = now();
    int i;
#ifdef _OPENMP
#  pragma omp parallel for num_threads(c->backend.parallel.workers > 0 ? c->backend.parallel.workers : 1)
#endif
    for (i = 0; i < 2 * pieces; ++i) {
        const size_t piece = bytes / (size_t)pieces, at = piece * (size_t)(i % pieces);
        memcpy((char *)(i < pieces ? d->q_out : d->k_out) + at, (const char *)(i < pieces ? d->q : d->k) + at, piece);
    }
    return now() - begin;
}

/* Norm over the token and rotary positions of Wan 2.1 1.3B, beside memcpy of the same bytes. */
static void bench_front(bench *b)
{
    enum { FRAMES = 4, HEIGHT = 64, WIDTH = 64, S = FRAMES * HEIGHT * WIDTH, H = 12, D = 128, WAYS = 4 };
    static const char *const names[WAYS] = {"front", "front, key mean", "front in place", "front: memcpy of it"};
    int dtype, way, i, side;
    if (!wanted(b, "front")) return;
    for (dtype = SVG2_F32; dtype <= SVG2_BF16; dtype += SVG2_BF16) {
        const size_t count = (size_t)S * H * D, bytes = count * (dtype ? 2 : 4);
        void *memory[4]; /* q, k, q_out, k_out */
        float *cosine = allocate_floats((size_t)S * D / 2), *sine = allocate_floats((size_t)S * D / 2);
        float *weight = allocate_floats((size_t)H * D), *mean = allocate_floats((size_t)H * D);
        stage_context *all[WAYS];
        work works[WAYS];
        svg2_rope_desc rope = SVG2_ZERO;
        svg2_error err;
        int works_count = 0;
        for (side = 0; side < 4; ++side) {
            memory[side] = allocate(bytes);
            for (i = 0; i < (int)count; ++i) {
                const float x = (float)((i * 7 + side) % 31) / 15.0f - 1.0f;
                svg2_convert((char *)memory[side] + (size_t)i * (dtype ? 2 : 4), (svg2_dtype)dtype, &x, SVG2_F32, 1);
            }
        }
        for (i = 0; i < H * D; ++i) weight[i] = 1.0f + 0.001f * (float)i;
        rope.frames = FRAMES, rope.height = HEIGHT, rope.width = WIDTH, rope.head_dim = D;
        check(svg2_rope_table(&rope, cosine, sine, (size_t)S * D / 2, &err), &err);
        for (way = 0; way < WAYS; ++way) {
            svg2_backend backend = backend_of(b->threads);
            svg2_front_desc *d;
            row *r = row_new(b, GROUP_STAGE, b->threads, "%s %s S=%d H=%d D=%d", names[way], dtype ? "bf16" : "f32", S,
                             H, D);
            all[way] = stage_new(&backend, SVG2_STAGE_FRONT);
            d = &all[way]->desc.front;
            memset(d, 0, sizeof *d);
            d->batch = 1, d->heads = H, d->tokens = S, d->head_dim = D;
            d->norm = SVG2_NORM_TOKEN;
            d->cosine = cosine, d->sine = sine;
            d->q_weight = d->k_weight = weight;
            d->q_layout.dtype = (svg2_dtype)dtype;
            d->q_layout.stride_batch = (int64_t)count, d->q_layout.stride_head = D, d->q_layout.stride_token = H * D;
            d->k_layout = d->q_out_layout = d->k_out_layout = d->q_layout;
            d->q = memory[0], d->k = memory[1];
            d->q_out = memory[way == 2 ? 0 : 2], d->k_out = memory[way == 2 ? 1 : 3];
            d->key_mean = way == 1 ? mean : NULL;
            stage_ready(all[way]);
            if (!r) continue;
            r->bytes = 4 * (double)bytes + (way < 3 ? 4.0 * S * D : 0);
            works[works_count].row = r;
            works[works_count].fn = way < 3 ? stage_work : copy_work;
            works[works_count++].context = all[way];
        }
        run_interleaved(b, works, works_count);
        for (way = 0; way < WAYS; ++way) stage_free(all[way]);
        for (side = 0; side < 4; ++side) free(memory[side]);
        free(cosine), free(sine), free(weight), free(mean);
    }
}

/* Dense attention, [1, heads, tokens, dim], in the three dtypes. */
static void bench_dense(bench *b)
{
    static const struct {
        const char *dtype;
        svg2_dtype type;
        int32_t tokens, heads, dim, is_quick;
        double goal;
    } cases[] = {{"f32", SVG2_F32, 8192, 2, 128, 1, 0.65}, {"f32", SVG2_F32, 8192, 2, 64, 1, 0},
                 {"bf16", SVG2_BF16, 8192, 2, 128, 1, 0},  {"f16", SVG2_F16, 8192, 2, 128, 1, 0},
                 {"f32", SVG2_F32, 8192, 2, 256, 0, 0},    {"f32", SVG2_F32, 1024, 16, 128, 0, 0}};
    enum { CASES = sizeof cases / sizeof *cases };
    work works[CASES];
    stage_context *contexts[CASES];
    void *memory[CASES][4];
    int count = 0, i, j;
    for (i = 0; i < CASES; ++i) {
        video x;
        stage_context *c;
        svg2_backend backend = backend_of(b->threads);
        svg2_attention_desc *d;
        row *r;
        if (b->is_quick && !cases[i].is_quick) continue;
        r = row_new(b, GROUP_STAGE, b->threads, "dense attention %s S=%d H=%d D=%d", cases[i].dtype,
                    (int)cases[i].tokens, (int)cases[i].heads, (int)cases[i].dim);
        if (!r) continue;
        video_make(&x, cases[i].tokens / 256, 16, 16, cases[i].heads, cases[i].dim);
        memory[count][0] = x.q;
        memory[count][1] = x.k;
        memory[count][2] = x.v;
        if (cases[i].type != SVG2_F32)
            for (j = 0; j < 3; ++j) {
                void *narrow = allocate(2 * x.count);
                svg2_convert(narrow, cases[i].type, memory[count][j], SVG2_F32, x.count);
                free(memory[count][j]);
                memory[count][j] = narrow;
            }
        memory[count][3] = allocate(4 * x.count);
        c = contexts[count] = stage_new(&backend, SVG2_STAGE_ATTENTION);
        d = &c->desc.attention;
        d->batch = 1;
        d->heads = d->heads_kv = x.heads;
        d->tokens = d->tokens_kv = x.tokens;
        d->head_dim = x.dim;
        d->scale = 1.0f / sqrtf((float)x.dim);
        d->q = memory[count][0];
        d->k = memory[count][1];
        d->v = memory[count][2];
        d->out = memory[count][3];
        d->q_layout.dtype = d->k_layout.dtype = d->v_layout.dtype = d->out_layout.dtype = cases[i].type;
        stage_ready(c);
        r->flops = 4.0 * x.heads * (double)x.tokens * x.tokens * x.dim;
        r->goal = cases[i].goal;
        works[count].row = r;
        works[count].fn = stage_work;
        works[count++].context = c;
    }
    run_interleaved(b, works, count);
    for (i = 0; i < count; ++i) {
        stage_free(contexts[i]);
        for (j = 0; j < 4; ++j) free(memory[i][j]);
    }
}

/* ==== >>pipeline ========================================================================= */
/* A backend that times another: it hands every stage to inner and adds up the seconds. */
typedef struct stopwatch {
    svg2_backend inner, timed;
    int32_t query_clusters;
    double seconds[T_COUNT];
} stopwatch;

#define BENCH_WRAP(name, type, slot)                                                                           \
  static svg2_result timed_##name(const svg2_backend *backend, const type *desc, void *workspace,              \
                                  svg2_error *err)                                                             \
  {                                                                                                            \
    stopwatch *watch = (stopwatch *)backend->user;                                                             \
    double begin = now();                                                                                      \
    svg2_result result = watch->inner.name(&watch->inner, desc, workspace, err);                               \
    watch->seconds[slot] += now() - begin;                                                                     \
    return result;                                                                                             \
  }
BENCH_WRAP(kmeans, svg2_kmeans_desc, desc->clusters == watch->query_clusters ? T_KMEANS_Q : T_KMEANS_K)
BENCH_WRAP(permute, svg2_permute_desc, T_PERMUTE)
BENCH_WRAP(summarize, svg2_summarize_desc, T_SUMMARIZE)
BENCH_WRAP(score, svg2_score_desc, T_SCORE)
BENCH_WRAP(select, svg2_select_desc, T_SELECT)
BENCH_WRAP(tail, svg2_tail_desc, T_TAIL)
BENCH_WRAP(attention, svg2_attention_desc, T_ATTENTION)
#undef BENCH_WRAP

static void stopwatch_init(stopwatch *watch, int threads, int32_t query_clusters)
{
    memset(watch, 0, sizeof *watch);
    watch->inner = watch->timed = backend_of(threads);
    watch->timed.user = watch;
    watch->timed.kmeans = timed_kmeans;
    watch->timed.permute = timed_permute;
    watch->timed.summarize = timed_summarize;
    watch->timed.score = timed_score;
    watch->timed.select = timed_select;
    watch->timed.tail = timed_tail;
    watch->timed.attention = timed_attention;
    watch->query_clusters = query_clusters;
}

/* The whole call on one head. Before each timed call the state goes back to what the first call left, so that
   every sample is the same step: clusters of one denoising step, tensors of the next. */
typedef struct call_context {
    stopwatch watch;
    svg2_desc desc;
    svg2_state state, cold_state;
    void *state_memory, *cold_memory, *workspace;
    size_t state_bytes, bytes;
    const video *x;
    float *out;
    double cold_seconds;
    svg2_head_stats stats;
} call_context;

static double call_run(call_context *c, int32_t step)
{
    svg2_error err;
    double begin;
    memset(c->watch.seconds, 0, sizeof c->watch.seconds);
    begin = now();
    check(svg2_attend(&c->watch.timed, &c->desc, &c->state, step, c->x->q, c->x->k, c->x->v, c->out, 0,
                      &c->stats, c->workspace, c->bytes, &err),
          &err);
    return now() - begin;
}

static double call_work(void *context)
{
    call_context *c = (call_context *)context;
    if (c->state_bytes) {
        c->state = c->cold_state;
        memcpy(c->state_memory, c->cold_memory, c->state_bytes);
    }
    return call_run(c, 1);
}

/* density < 0: SVG2's published rule, top-p 0.9; 0: dense. */
static call_context *call_make(int threads, const video *x, float *out, double density, svg2_tail_kind tail)
{
    call_context *c = (call_context *)allocate(sizeof *c);
    svg2_error err;
    c->x = x;
    c->out = out;
    c->desc.heads = x->heads;
    c->desc.tokens = x->tokens;
    c->desc.head_dim = x->dim;
    c->desc.frames = x->shape.frames;
    c->desc.frame_tokens = x->tokens / x->shape.frames;
    c->desc.method = density == 0 ? SVG2_METHOD_DENSE : SVG2_METHOD_SVG2;
    c->desc.query_clusters = 300;
    c->desc.key_clusters = 1000;
    c->desc.tail = tail;
    if (density > 0) c->desc.density = (float)density;
    check(svg2_resolve(&c->desc, &err), &err);
    stopwatch_init(&c->watch, threads, c->desc.query_clusters);
    c->state_bytes = density == 0 ? 0 : svg2_state_bytes(&c->desc);
    c->state_memory = allocate(c->state_bytes);
    c->cold_memory = allocate(c->state_bytes);
    c->bytes = svg2_workspace_bytes(&c->watch.timed, &c->desc);
    c->workspace = allocate(c->bytes);
    check(svg2_state_init(&c->state, &c->desc, c->state_memory, c->state_bytes, &err), &err);
    return c;
}

/* The first call of a video: seeding and the many iterations. */
static void call_first(call_context *c)
{
    c->cold_seconds = call_run(c, 0);
    c->cold_state = c->state;
    memcpy(c->cold_memory, c->state_memory, c->state_bytes);
}

static void call_free(call_context *c)
{
    if (!c) return;
    free(c->state_memory);
    free(c->cold_memory);
    free(c->workspace);
    free(c);
}

static void call_sample(bench *b, row *r, call_context *c) { sample(b, r, call_work, c, c->watch.seconds); }

static void call_facts(row *r, const call_context *c, const float *reference, const float *out)
{
    svg2_metrics metrics;
    svg2_error err;
    row_value(r, "density", c->stats.density);
    row_value(r, "pairs", (double)c->stats.pairs);
    row_value(r, "cold_seconds", c->cold_seconds);
    row_value(r, "workspace_bytes", (double)c->bytes);
    row_value(r, "state_bytes", (double)c->state_bytes);
    if (!reference) return;
    check(svg2_compare(out, reference, c->x->count, 0, &metrics, &err), &err);
    row_value(r, "rel_l2", metrics.rel_l2);
}

/* Sparse beside dense: dense, three sparse, dense, three sparse, ..., dense. A sample is compared with the mean
   of the two dense times around it, because the machine's speed drifts over a minute. */
static void bench_calls(bench *b, const video *first, const video *next)
{
    static const struct {
        double density;
        svg2_tail_kind tail;
        int is_quick;
    } cases[] = {{0.05, SVG2_TAIL_NONE, 0}, {0.05, SVG2_TAIL_ORDER0, 0}, {0.05, SVG2_TAIL_ORDER1, 0},
                 {0.1, SVG2_TAIL_NONE, 1},  {0.1, SVG2_TAIL_ORDER0, 1},  {0.1, SVG2_TAIL_ORDER1, 1},
                 {0.2, SVG2_TAIL_NONE, 0},  {0.2, SVG2_TAIL_ORDER0, 0},  {0.2, SVG2_TAIL_ORDER1, 0},
                 {0.3, SVG2_TAIL_NONE, 0},  {0.3, SVG2_TAIL_ORDER0, 0},  {0.3, SVG2_TAIL_ORDER1, 0},
                 {-1, SVG2_TAIL_NONE, 0}};
    enum { CASES = sizeof cases / sizeof *cases, BLOCK = 3 };
    static const char *const tails[] = {"default", "none", "order 0", "order 1"};
    call_context *calls[CASES], *dense;
    row *rows[CASES], *dense_row = 0;
    float *out = allocate_floats(next->count), *reference = allocate_floats(next->count);
    int count = 0, i, n;

    for (i = 0; i < CASES; ++i) {
        row *r;
        char what[32];
        if (b->is_quick && !cases[i].is_quick) continue;
        if (cases[i].density < 0) strcpy(what, "top-p 0.9");
        else snprintf(what, sizeof what, "density %.2f", cases[i].density);
        r = row_new(b, GROUP_CALL, b->threads, "sparse call %s tail %s", what, tails[cases[i].tail]);
        if (!r) continue;
        rows[count] = r;
        calls[count] = call_make(b->threads, first, out, cases[i].density, cases[i].tail);
        call_first(calls[count]);
        calls[count++]->x = next;
    }
    if (!count) {
        free(out);
        free(reference);
        return;
    }
    dense = call_make(b->threads, next, reference, 0, SVG2_TAIL_DEFAULT);
    {
        const char *filter = b->filter; /* the yardstick of the rows above is wanted whatever its name */
        b->filter = 0;
        dense_row = row_new(b, GROUP_CALL, b->threads, "dense call S=%d H=%d D=%d", (int)next->tokens,
                            (int)next->heads, (int)next->dim);
        b->filter = filter;
    }
    dense_row->flops = 4.0 * next->heads * (double)next->tokens * next->tokens * next->dim;
    fprintf(stderr, "\r%-76s", "warming up");
    call_work(dense);
    for (i = 0; i < count; ++i) {
        call_work(calls[i]);
        call_facts(rows[i], calls[i], reference, out);
    }
    for (n = 0; another_round(b, n); ++n) {
        call_sample(b, dense_row, dense);
        for (i = 0; i < count; i += BLOCK) {
            double before = dense_row->seconds[dense_row->count - 1], after;
            int end = i + BLOCK < count ? i + BLOCK : count, j;
            for (j = i; j < end; ++j) {
                fprintf(stderr, "\rround %d/%d  %-60.60s", n + 1, b->repeat, rows[j]->name);
                call_sample(b, rows[j], calls[j]);
            }
            call_sample(b, dense_row, dense);
            after = dense_row->seconds[dense_row->count - 1];
            for (j = i; j < end; ++j) rows[j]->dense[n] = 0.5 * (before + after);
        }
    }
    fprintf(stderr, "\r%-78s\r", "");
    for (i = 0; i < count; ++i) call_free(calls[i]);
    call_free(dense);
    free(out);
    free(reference);
}

/* The same work on one thread and on all. */
static void bench_scaling(bench *b, const video *first, const video *next)
{
    enum { TOKENS = 8192, KINDS = 3 };
    static const char *const names[KINDS] = {"scaling dense attention", "scaling kmeans iteration",
                                             "scaling sparse call"};
    work works[2 * KINDS];
    stage_context *stages[2 * KINDS];
    call_context *calls[2 * KINDS];
    grouping groups[2 * KINDS];
    head h;
    float *out = allocate_floats(next->count);
    int count = 0, kind, i;
    if (b->threads > 1)
        for (kind = 0; kind < KINDS; ++kind)
            for (i = 0; i < 2; ++i) {
                int threads = i ? b->threads : 1;
                row *r;
                if (b->is_quick && kind == 2) continue;
                r = row_new(b, GROUP_SCALING, threads, "%s, threads %d", names[kind], threads);
                if (!r) continue;
                stages[count] = 0;
                calls[count] = 0;
                memset(&groups[count], 0, sizeof groups[count]);
                works[count].row = r;
                if (kind == 0) {
                    memset(&h, 0, sizeof h);
                    h.backend = backend_of(threads);
                    h.x = next;
                    h.scale = 1.0f / sqrtf((float)next->dim);
                    h.out = out;
                    works[count].fn = stage_work;
                    works[count].context = stages[count] = stage_dense(&h, TOKENS);
                    stage_ready(stages[count]);
                    r->flops = 4.0 * TOKENS * TOKENS * next->dim;
                } else if (kind == 1) {
                    stages[count] =
                        kmeans_make(threads, &groups[count], next->k, next->tokens, next->dim, 1000);
                    stages[count]->low = 1;
                    stages[count]->high = 4;
                    works[count].fn = kmeans_work;
                    works[count].context = stages[count];
                    r->flops = 2.0 * next->tokens * 1000 * next->dim;
                } else {
                    calls[count] = call_make(threads, first, out, 0.1, SVG2_TAIL_ORDER1);
                    call_first(calls[count]);
                    calls[count]->x = next;
                    works[count].fn = call_work;
                    works[count].context = calls[count];
                }
                ++count;
            }
    run_interleaved(b, works, count);
    for (i = 0; i < count; ++i) {
        stage_free(stages[i]);
        grouping_free(&groups[i]);
        call_free(calls[i]);
    }
    free(out);
}

/* One head of HunyuanVideo 720p (33 latent frames of 45 x 80), and its halves: everything but attention must be
   linear. This runs before all else, in growing sizes, so that the peak memory of the process is that of the
   row. */
static void bench_scale(bench *b)
{
    static const int32_t width[] = {10, 20, 40, 80};
    int i, n, repeat = b->repeat < 3 ? b->repeat : 3;
    for (i = 0; i < 4; ++i) {
        video x;
        call_context *c;
        float *out;
        row *r = row_new(b, GROUP_SCALE, b->threads, "scale sparse call S=%d", 33 * 45 * (int)width[i]);
        if (!r) continue;
        fprintf(stderr, "\r%-78.78s", r->name);
        video_make(&x, 33, 45, width[i], 1, 128);
        out = allocate_floats(x.count);
        c = call_make(b->threads, &x, out, 0.1, SVG2_TAIL_ORDER1);
        call_first(c);
        video_step(&x);
        call_work(c);
        for (n = 0; n < repeat; ++n) call_sample(b, r, c);
        call_facts(r, c, 0, 0);
        row_value(r, "tokens", x.tokens);
        row_value(r, "tensor_bytes", 4.0 * (double)x.count * sizeof(float));
        row_value(r, "peak_rss_bytes", peak_rss_bytes());
        call_free(c);
        free(out);
        video_free(&x);
    }
    fprintf(stderr, "\r%-78s\r", "");
}

/* ==== >>report =========================================================================== */
static void json_array(FILE *file, const char *key, const double *values, int count)
{
    int i;
    fprintf(file, ", \"%s\": [", key);
    for (i = 0; i < count; ++i) fprintf(file, "%s%.9g", i ? ", " : "", values[i]);
    fputc(']', file);
}

static void json_string(FILE *file, const char *key, const char *text)
{
    fprintf(file, "  \"%s\": \"", key);
    for (; *text; ++text) {
        if (*text == '"' || *text == '\\') fputc('\\', file);
        if ((unsigned char)*text >= 32) fputc(*text, file);
    }
    fputs("\",\n", file);
}

static const char *compiler_name(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

static const char *simd_name(void)
{
    static const char *const names[] = {"best", "scalar", "AVX2", "AVX-512"};
    return names[svg2_cpu_backend(0).simd];
}

static void report_json(const bench *b)
{
    FILE *file = fopen(b->json, "w");
    int i, j;
    if (!file) die("%s: cannot be written", b->json);
    fputs("{\n", file);
    json_string(file, "cpu", b->cpu);
    json_string(file, "compiler", compiler_name());
    json_string(file, "flags", SVG2_BENCH_FLAGS);
    json_string(file, "commit", b->commit);
    json_string(file, "date", b->date);
    json_string(file, "simd", simd_name());
    json_string(file, "peak_simd", b->fma_name);
    fprintf(file, "  \"version\": %d,\n  \"threads\": %d,\n  \"peak_flops_one_thread\": %.6g,\n", SVG2_VERSION,
            b->threads, b->peak_one);
    fprintf(file, "  \"peak_flops\": %.6g,\n  \"copy_bytes_per_second\": %.6g,\n  \"rows\": [\n", b->peak_all,
            b->copy_bytes_per_second);
    for (i = 0; i < b->rows; ++i) {
        const row *r = &b->row[i];
        fprintf(file, "    {\"group\": \"%s\", \"name\": \"%s\", \"threads\": %d, \"median_seconds\": %.9g",
                group_names[r->group], r->name, r->threads, median(r->seconds, r->count));
        if (r->flops > 0) fprintf(file, ", \"flops\": %.9g, \"peak_share\": %.4f", r->flops, row_share(r));
        if (r->bytes > 0) fprintf(file, ", \"bytes\": %.9g", r->bytes);
        if (r->goal > 0) fprintf(file, ", \"goal_peak_share\": %.2f", r->goal);
        for (j = 0; j < r->values; ++j) fprintf(file, ", \"%s\": %.9g", r->key[j], r->value[j]);
        json_array(file, "seconds", r->seconds, r->count);
        json_array(file, "peak_around", r->peak, r->count);
        json_array(file, "busy", r->busy, r->count);
        if (r->dense[0] > 0) json_array(file, "dense_seconds_around", r->dense, r->count);
        if (r->group == GROUP_CALL || r->group == GROUP_SCALE)
            for (j = 0; j < T_COUNT; ++j) {
                char key[32];
                snprintf(key, sizeof key, "seconds_%s", stage_names[j]);
                json_array(file, key, r->stage[j], r->count);
            }
        fprintf(file, "}%s\n", i + 1 < b->rows ? "," : "");
    }
    fputs("  ]\n}\n", file);
    if (fclose(file)) die("%s: cannot be written", b->json);
}

static const char *verdict(int is_met) { return is_met ? "met" : "MISSED"; }

static void report_stages(const bench *b)
{
    int i, any = 0;
    for (i = 0; i < b->rows; ++i) {
        const row *r = &b->row[i];
        if (r->group != GROUP_STAGE) continue;
        if (!any++)
            printf("\nStages, %d thread%s: median of interleaved rounds; %% of the FMA peak measured around "
                   "each sample\n"
                   "%-46s %10s %9s %8s %7s %6s  goal\n",
                   b->threads, b->threads > 1 ? "s" : "", "", "ms", "GFLOP/s", "GB/s", "% peak", "busy");
        printf("%-46s %10.3f", r->name, 1e3 * median(r->seconds, r->count));
        if (r->flops > 0) printf(" %9.1f", 1e-9 * r->flops / median(r->seconds, r->count));
        else printf(" %9s", "");
        if (r->bytes > 0) printf(" %8.1f", 1e-9 * r->bytes / median(r->seconds, r->count));
        else printf(" %8s", "");
        if (r->flops > 0) printf(" %6.1f%%", 100 * row_share(r));
        else printf(" %7s", "");
        printf(" %5.0f%%", 100 * median(r->busy, r->count));
        if (r->goal > 0) printf("  >= %.0f%% %s", 100 * r->goal, verdict(row_share(r) >= r->goal));
        putchar('\n');
    }
}

static void report_calls(const bench *b)
{
    int i, j, n, any = 0;
    for (i = 0; i < b->rows; ++i) {
        const row *r = &b->row[i];
        double of_dense[MAX_SAMPLES], density = row_get(r, "density"), ratio;
        if (r->group != GROUP_CALL || !(r->dense[0] > 0)) continue;
        if (!any++)
            printf("\nThe whole call, warm, 2 iterations, 300/1000 clusters, S=32768 H=1 D=128 (goal: overhead "
                   "<= 0.08)\n"
                   "%-38s %8s %8s %8s %8s %8s %8s %9s\n",
                   "", "density", "ms", "dense ms", "speedup", "t/(d*D)", "overhead", "rel L2");
        for (n = 0; n < r->count; ++n) of_dense[n] = r->seconds[n] / r->dense[n];
        ratio = median(of_dense, r->count);
        printf("%-38s %8.4f %8.1f %8.1f %7.2fx %8.3f %8.3f %9.2e  %s\n", r->name, density,
               1e3 * median(r->seconds, r->count), 1e3 * median(r->dense, r->count), 1 / ratio, ratio / density,
               ratio - density, row_get(r, "rel_l2"), verdict(ratio - density <= 0.08));
    }
    for (i = 0, any = 0; i < b->rows; ++i) {
        const row *r = &b->row[i];
        double rate;
        if (r->group != GROUP_CALL) continue;
        if (!any++) {
            printf(
                "\nIts stages, ms (exact pairs per second of the attention stage as %% of the FMA peak)\n%-38s",
                "");
            for (j = 0; j < T_COUNT; ++j) printf(" %9s", stage_names[j]);
            printf(" %9s %7s\n", "rest", "% peak");
        }
        printf("%-38s", r->name);
        for (j = 0; j < T_COUNT; ++j) printf(" %9.2f", 1e3 * median(r->stage[j], r->count));
        rate = (r->flops > 0 ? r->flops : 4.0 * row_get(r, "pairs") * 128) /
               median(r->stage[T_ATTENTION], r->count);
        printf(" %9.2f %6.1f%%\n", 1e3 * row_without(r, 0), 100 * rate / median(r->peak, r->count));
    }
}

static void report_scaling(const bench *b)
{
    int i, n, any = 0;
    for (i = 0; i + 1 < b->rows; ++i) {
        const row *one = &b->row[i], *all = &b->row[i + 1];
        double speedup[MAX_SAMPLES], ceiling[MAX_SAMPLES];
        if (one->group != GROUP_SCALING || all->group != GROUP_SCALING || one->threads != 1 ||
            all->threads == 1)
            continue;
        if (!any++)
            printf("\nOne thread beside %d\n%-46s %10s %10s %8s %8s\n", all->threads, "", "1, ms", "all, ms",
                   "speedup", "FMA's");
        for (n = 0; n < one->count; ++n) {
            speedup[n] = one->seconds[n] / all->seconds[n];
            ceiling[n] = all->peak[n] / one->peak[n];
        }
        printf("%-46.*s %10.1f %10.1f %7.2fx %7.2fx\n", (int)strcspn(one->name, ","), one->name,
               1e3 * median(one->seconds, one->count), 1e3 * median(all->seconds, all->count),
               median(speedup, one->count), median(ceiling, one->count));
    }
}

static void report_scale(const bench *b)
{
    int i, j, any = 0;
    for (i = 0; i < b->rows; ++i) {
        const row *r = &b->row[i];
        double tokens = row_get(r, "tokens"), seconds = median(r->seconds, r->count);
        if (r->group != GROUP_SCALE) continue;
        if (!any++) {
            printf("\nScale: one head, D=128, density 0.1, tail order 1, 300/1000 clusters; ns per token of "
                   "each stage, warm\n"
                   "%8s %9s %9s",
                   "tokens", "cold s", "warm s");
            for (j = 0; j < T_COUNT; ++j) printf(" %9s", stage_names[j]);
            printf(" %9s %10s %10s %9s %9s\n", "rest", "not attn", "tensors MB", "work MB", "peak MB");
        }
        printf("%8.0f %9.2f %9.3f", tokens, row_get(r, "cold_seconds"), seconds);
        for (j = 0; j < T_COUNT; ++j) printf(" %9.1f", 1e9 * median(r->stage[j], r->count) / tokens);
        printf(" %9.1f %10.1f %10.1f %9.1f %9.1f\n", 1e9 * row_without(r, 0) / tokens,
               1e9 * row_without(r, T_ATTENTION) / tokens, 1e-6 * row_get(r, "tensor_bytes"),
               1e-6 * row_get(r, "workspace_bytes"), 1e-6 * row_get(r, "peak_rss_bytes"));
    }
    if (any) puts("\"not attn\" per token must not grow: everything but attention is linear in the tokens.");
}

static void report(const bench *b)
{
    printf("svg2 %d.%d.%d, commit %s, %s\n", SVG2_VERSION / 10000, SVG2_VERSION / 100 % 100, SVG2_VERSION % 100,
           b->commit, b->date);
    printf("CPU       %s; svg2 runs its %s variant\n", b->cpu, simd_name());
    printf("compiler  %s, flags %s\n", compiler_name(), SVG2_BENCH_FLAGS);
    printf("threads   %d\n", b->threads);
    printf("FMA peak  %.1f GFLOP/s on 1 thread, %.1f on %d (%s chains in registers)\n", 1e-9 * b->peak_one,
           1e-9 * b->peak_all, b->threads, b->fma_name);
    printf("memory    %.1f GB/s copied, read and write counted\n", 1e-9 * b->copy_bytes_per_second);
    report_stages(b);
    report_calls(b);
    report_scaling(b);
    report_scale(b);
}

int main(int argc, char **argv)
{
    bench *b = (bench *)allocate(sizeof *b);
    video first, next;
    double begin = now();
    parse(b, argc, argv);
    machine_describe(b);
    fma_choose(b);
    if (b->with_scale) bench_scale(b);
    b->deadline = now() + (b->is_quick ? 40 : 240);
    b->peak_one = fma_best(b, 1);
    b->peak_all = fma_best(b, b->threads);
    b->copy_bytes_per_second = copy_rate(b->threads);
    video_make(&first, 32, 32, 32, 1, 128);
    video_make(&next, 32, 32, 32, 1, 128);
    video_step(&next);
    bench_dense(b);
    bench_kmeans(b, &next);
    bench_stages(b, &next);
    bench_front(b);
    bench_calls(b, &first, &next);
    bench_scaling(b, &first, &next);
    video_free(&first);
    video_free(&next);
    if (b->json) report_json(b);
    report(b);
    printf("\n%d rows in %.0f s\n", b->rows, now() - begin);
    free(b);
    return 0;
}
