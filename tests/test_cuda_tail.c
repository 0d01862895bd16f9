/* >>tail on CUDA: the matrices of the order-1 tail beside the scalar CPU code.

   W, C and the keys and values relative to their means are rounded to bf16, by up to 2^-8 each; sums are f32. The four
   roundings are independent, so a matrix is off by at most about sqrt(4) 2^-8 = 7.8e-3 of its own length. */
#include "device.h"
#include "test.h"

#define BOUND 7.8e-3

/* ThreadSanitizer takes 0.3 ms for a CUDA thread: one or two cases of each kind there */
#ifdef __SANITIZE_THREAD__
#  define TSAN 1
#else
#  define TSAN 0
#endif

typedef enum sizes { RANDOM, EMPTIES, SINGLES, GIANT, PAIRS } sizes;

typedef struct tail_case {
    int B, H, Hk, S, D, Cq, Ck, extra; /* extra: blocks behind the clusters, on both sides */
    svg2_dtype k_type, v_type;
    tensor_order order;
    sizes size;
    double kept;           /* of the blocks */
    int begin, count;      /* heads; 0, 0 = all */
    int no_log_mass, odd_matrix;
    double sharp;          /* 0 = 1: of the centroid logits */
} tail_case;

typedef struct tail_job {
    tail_case c;
    tensor k, v;
    svg2_tail_desc d;      /* with host pointers */
    float *qc, *kc, *km, *vm, *log_mass;
    int32_t *order, *offset;
    uint8_t *map;
    size_t n_qc, n_kc, n_log, n_order, n_offset, n_map, n_matrix;
} tail_job;

static int size_of(const tail_case *c, int token, uint64_t *s)
{
    switch (c->size) {
    case EMPTIES: return rnd_int(s, c->Ck) / 3 * 3;
    case SINGLES: return token < c->Ck - 1 ? token : c->Ck - 1; /* the last takes the rest */
    case GIANT: return rnd_unit(s) < 0.9 ? c->Ck / 2 : rnd_int(s, c->Ck);
    case PAIRS: return token / 2 % c->Ck;
    case RANDOM: break;
    }
    return rnd_int(s, c->Ck);
}

static tail_job job_new(tail_case c, uint64_t seed)
{
    tail_job j;
    memset(&j, 0, sizeof j);
    if (!c.count) c.count = c.B * c.H - c.begin;
    j.c = c;
    const size_t heads = (size_t)(c.B * c.H), heads_kv = (size_t)(c.B * c.Hk), D = (size_t)c.D;
    const int Qb = c.Cq + c.extra, Kb = c.Ck + c.extra;
    uint64_t s = seed * 7 + 1;
    j.k = tensor_new(c.B, c.Hk, c.S, c.D, c.k_type, c.order);
    j.v = tensor_new(c.B, c.Hk, c.S, c.D, c.v_type, c.order);
    tensor_fill_normal(&j.k, seed, 1, 3);
    tensor_fill_normal(&j.v, seed + 1, 1, 0.5);
    j.n_qc = heads * (size_t)c.Cq * D;
    j.n_kc = heads_kv * (size_t)c.Ck * D;
    j.n_log = heads * (size_t)c.Cq * (size_t)c.Ck;
    j.n_order = heads_kv * (size_t)c.S;
    j.n_offset = heads_kv * (size_t)(Kb + 1);
    j.n_map = heads * (size_t)Qb * (size_t)Kb;
    j.n_matrix = (size_t)c.count * (size_t)c.Cq * D * D;
    j.qc = (float *)mem_new(4 * j.n_qc);
    j.kc = (float *)mem_new(4 * j.n_kc);
    j.km = (float *)mem_new(4 * heads_kv * D);
    j.vm = (float *)mem_new(4 * j.n_kc);
    j.log_mass = (float *)mem_new(4 * j.n_log);
    j.order = (int32_t *)mem_new(4 * j.n_order);
    j.offset = (int32_t *)mem_new(4 * j.n_offset);
    j.map = (uint8_t *)mem_new(j.n_map);
    for (size_t i = 0; i < j.n_qc; ++i) j.qc[i] = (float)(rnd_normal(&s) * (c.sharp ? c.sharp : 1));
    for (size_t i = 0; i < j.n_log; ++i) j.log_mass[i] = (float)(3 * rnd_unit(&s));
    for (size_t i = 0; i < j.n_map; ++i) j.map[i] = rnd_unit(&s) < c.kept;
    const double *k = tensor_f64(&j.k), *v = tensor_f64(&j.v);
    int *label = (int *)mem_new(sizeof(int) * (size_t)c.S);
    for (size_t h = 0; h < heads_kv; ++h) {
        int32_t *order = j.order + h * (size_t)c.S, *offset = j.offset + h * (size_t)(Kb + 1), at = 0;
        for (int t = 0; t < c.S; ++t) label[t] = size_of(&c, t, &s);
        for (int b = 0; b <= Kb; ++b) {
            offset[b] = at;
            for (int t = 0; t < c.S; ++t)
                if (label[t] == b) order[at++] = t;
        }
        for (int e = 0; e < c.D; ++e) {
            double mean = 0;
            for (int t = 0; t < c.S; ++t) mean += k[(h * (size_t)c.S + (size_t)t) * D + (size_t)e];
            j.km[h * D + (size_t)e] = (float)(mean / c.S);
            for (int b = 0; b < c.Ck; ++b) {
                double key = 0, value = 0;
                const int n = offset[b + 1] - offset[b];
                for (int i = offset[b]; i < offset[b + 1]; ++i) {
                    const size_t row = (h * (size_t)c.S + (size_t)order[i]) * D + (size_t)e;
                    key += k[row];
                    value += v[row];
                }
                j.kc[(h * (size_t)c.Ck + (size_t)b) * D + (size_t)e] = (float)(n ? key / n : 1.0);
                j.vm[(h * (size_t)c.Ck + (size_t)b) * D + (size_t)e] = (float)(n ? value / n : 0.0);
            }
        }
    }
    svg2_tail_desc *d = &j.d;
    d->batch = c.B; d->heads = c.H; d->heads_kv = c.Hk; d->tokens_kv = c.S; d->head_dim = c.D;
    d->query_clusters = c.Cq; d->key_clusters = c.Ck; d->query_blocks = Qb; d->key_blocks = Kb;
    d->head_begin = c.begin; d->head_count = c.count;
    d->scale = (float)(1 / sqrt(c.D));
    d->k = j.k.data; d->v = j.v.data; d->k_layout = j.k.layout; d->v_layout = j.v.layout;
    d->key_order = j.order; d->key_offset = j.offset;
    d->query_centroid = j.qc; d->key_centroid = j.kc; d->key_mean = j.km; d->value_mean = j.vm;
    d->log_mass = c.no_log_mass ? 0 : j.log_mass;
    d->map = j.map;
    return j;
}

static float *run_cpu(const tail_job *j)
{
    const svg2_backend cpu = svg2_cpu_backend_simd(0, SVG2_SIMD_SCALAR);
    svg2_tail_desc d = j->d;
    svg2_error err;
    d.matrix = (float *)mem_new(4 * j->n_matrix);
    const size_t bytes = svg2_stage_workspace_bytes(&cpu, SVG2_STAGE_TAIL, &d);
    const svg2_result r = svg2_tail(&cpu, &d, mem_new(bytes), bytes, &err);
    if (r != SVG2_OK) fail_msg("cpu: %s: %s", err.field, err.text);
    return d.matrix;
}

/* Nothing is written behind the matrices. */
static float *run_cuda(const tail_job *j)
{
    const svg2_backend cuda = svg2_cuda_backend(0);
    svg2_tail_desc d = j->d;
    svg2_error err;
    const size_t odd = j->c.odd_matrix ? 1 : 0, behind = 64;
    const size_t floats = odd + j->n_matrix + behind;
    float *host = (float *)mem_new(4 * floats), *device = (float *)device_new(4 * floats);
    d.k = device_copy(j->k.data, j->k.bytes);
    d.v = device_copy(j->v.data, j->v.bytes);
    d.key_order = (int32_t *)device_copy(j->order, 4 * j->n_order);
    d.key_offset = (int32_t *)device_copy(j->offset, 4 * j->n_offset);
    d.query_centroid = (float *)device_copy(j->qc, 4 * j->n_qc);
    d.key_centroid = (float *)device_copy(j->kc, 4 * j->n_kc);
    d.key_mean = (float *)device_copy(j->km, 4 * (size_t)(j->c.B * j->c.Hk * j->c.D));
    d.value_mean = (float *)device_copy(j->vm, 4 * j->n_kc);
    if (d.log_mass) d.log_mass = (float *)device_copy(j->log_mass, 4 * j->n_log);
    d.map = (uint8_t *)device_copy(j->map, j->n_map);
    d.matrix = device + odd;
    const size_t bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_TAIL, &d);
    const svg2_result r = svg2_tail(&cuda, &d, device_new(bytes), bytes, &err);
    if (r != SVG2_OK) fail_msg("cuda: %s: %s", err.field, err.text);
    device_read(host, device, 4 * floats);
    device_reset();
    assert_untouched(host, 4 * odd);
    assert_untouched(host + odd + j->n_matrix, 4 * behind);
    return host + odd;
}

/* some cluster with two tokens is skipped by this row */
static int has_tail(const tail_job *j, int head, int row)
{
    const tail_case *c = &j->c;
    const int bh = c->begin + head, kv = bh / (c->H / c->Hk), Kb = c->Ck + c->extra;
    for (int b = 0; b < c->Ck; ++b)
        if (!j->map[((size_t)bh * (size_t)(c->Cq + c->extra) + (size_t)row) * (size_t)Kb + (size_t)b]
            && j->offset[kv * (Kb + 1) + b + 1] - j->offset[kv * (Kb + 1) + b] >= 2)
            return 1;
    return 0;
}

static double worst;

static void compare(const tail_job *j, const float *got, const float *want)
{
    const size_t size = (size_t)(j->c.D * j->c.D);
    for (int h = 0; h < j->c.count; ++h)
        for (int i = 0; i < j->c.Cq; ++i) {
            const float *g = got + (size_t)(h * j->c.Cq + i) * size, *w = want + (size_t)(h * j->c.Cq + i) * size;
            double error = 0, length = 0;
            for (size_t e = 0; e < size; ++e) {
                error += ((double)g[e] - (double)w[e]) * ((double)g[e] - (double)w[e]);
                length += (double)w[e] * (double)w[e];
            }
            if (!has_tail(j, h, i)) {
                for (size_t e = 0; e < size; ++e) assert_true(g[e] == 0.0f);
                continue;
            }
            if (!(error <= BOUND * BOUND * length))
                fail_msg("head %d, row %d: error %g (S %d, D %d, C %d/%d)", h, i, sqrt(error / length), j->c.S, j->c.D, j->c.Cq, j->c.Ck);
            if (length > 0 && sqrt(error / length) > worst) worst = sqrt(error / length);
        }
}

static void check(tail_case c, uint64_t seed)
{
    const tail_job j = job_new(c, seed);
    const float *want = run_cpu(&j), *got = run_cuda(&j);
    compare(&j, got, want);
    assert_true(mem_hash(j.k.data, j.k.bytes) == j.k.hash && mem_hash(j.v.data, j.v.bytes) == j.v.hash);
    mem_done();
}

#define F   SVG2_F32
#define H16 SVG2_F16
#define B16 SVG2_BF16

static void check_dims(void **state)
{
    static const int dims[] = {8, 40, 64, 72, 96, 128, 136, 192, 256};
    (void)state;
    for (int i = 0; i < COUNT(dims); ++i) {
        const tail_case c = {1, TSAN ? 1 : 2, TSAN ? 1 : 2, TEST_SLOW_BUILD ? 65 : 130, dims[i], 5, TSAN ? 3 : 7, 0, B16, B16, BHSD, RANDOM, 0.4, 0, 0, 0, 0, 0};
        if ((TEST_SLOW_BUILD && (dims[i] == 136 || dims[i] == 192)) || (TSAN && dims[i] != 40)) continue;
        check(c, (uint64_t)(i + 1));
    }
}

static void check_dtypes_and_strides(void **state)
{
    static const svg2_dtype types[] = {SVG2_F32, SVG2_F16, SVG2_BF16};
    static const tensor_order orders[] = {BHSD, BSHD, GAPS};
    (void)state;
    for (int k = 0; k < 3; ++k)
        for (int v = 0; v < 3; ++v) {
            const tail_case c = {2, 2, 2, 63, k == v ? 72 : 40, 4, 6, v, types[k], types[v], orders[(k + v) % 3], RANDOM, 0.3, 0, 0, k == 1, v == 1, 0};
            if (!TSAN || (k == 2 && v == 0)) check(c, (uint64_t)(10 + 3 * k + v));
        }
}

static void check_clusters(void **state)
{
    static const int tokens[] = {1, 2, 7, 63, 65, 333};
    (void)state;
    for (int i = 0; i < COUNT(tokens); ++i)
        for (int z = RANDOM; z <= PAIRS; ++z) {
            const tail_case c = {1, 2, 2, tokens[i], 16, 3, 12, 1, B16, F, BHSD, (sizes)z, 0.3, 0, 0, z == 2, 0, 0};
            if (!TSAN || (i == 4 && z == GIANT)) check(c, (uint64_t)(30 + 5 * i + z));
        }
}

/* More than one block of every kernel: rows and columns of the product, depth of several rounds through the stages, several
   tiles of logits, more than 1024 key clusters in the plan. */
static void check_many_clusters(void **state)
{
    const tail_case a = {1, 2, 2, 900, 40, TEST_SLOW_BUILD ? 70 : 140, 260, 2, B16, B16, BSHD, RANDOM, 0.2, 0, 0, 0, 0, 0};
    const tail_case b = {1, 1, 1, TSAN ? 60 : 3000, 8, TSAN ? 3 : 70, TEST_SLOW_BUILD ? 1100 : 2100, 0, F, F, BHSD, RANDOM, 0.2, 0, 0, 1, 0, 0};
    const tail_case c = {1, 1, 1, 40, 24, 3, 300, 0, F, F, BHSD, RANDOM, 0.5, 0, 0, 0, 0, 0}; /* more clusters than tokens */
    (void)state;
    if (!TSAN) check(a, 60);
    check(b, 61);
    if (!TSAN) check(c, 62);
}

/* Long clusters are worked on in pieces: one token over a piece, two long ones, one of nearly everything. */
static void check_giants(void **state)
{
    tail_case c = {1, 2, 2, 2049, 8, 3, 1, 0, B16, B16, BHSD, RANDOM, 0, 0, 0, 0, 0, 0};
    (void)state;
    check(c, 70);
    if (TSAN) return;
    c.S = 2048;
    check(c, 71);
    c.S = 5000; c.Ck = 2; c.k_type = SVG2_F32;
    check(c, 72);
    c.S = 9001; c.Ck = 9; c.size = GIANT; c.kept = 0.3; c.D = TEST_SLOW_BUILD ? 8 : 72; c.Cq = 5;
    check(c, 73);
}

static void check_head_ranges(void **state)
{
    static const int groups[] = {1, 2, 3, 6};
    (void)state;
    for (int g = 0; g < COUNT(groups); ++g)
        for (int begin = 0; begin < 12; begin += 1 + g)
            for (int count = 1; count <= 12 - begin; count += 4) {
                const tail_case c = {2, 6, 6 / groups[g], 50, 8, 5, 6, 1, F, B16, BSHD, EMPTIES, 0.4, begin, count, 0, 0, 0};
                if ((TEST_SLOW_BUILD && (begin + count + g) % 3) || (TSAN && (g != 2 || begin != 3 || count != 5))) continue;
                check(c, (uint64_t)(80 + g));
            }
    { /* heads of a group together fill several tiles of rows; the call begins inside a group */
        const tail_case c = {1, 4, 2, 100, 16, 90, 10, 0, B16, B16, BHSD, RANDOM, 0.4, 1, 3, 0, 0, 0};
        if (!TSAN) check(c, 90);
    }
}

/* Large logits: nearly all weight on one cluster. */
static void check_sharp(void **state)
{
    const tail_case c = {1, 2, 2, 120, 40, 9, 10, 0, F, F, BHSD, RANDOM, 0.4, 0, 0, 0, 0, 300};
    (void)state;
    if (!TSAN) check(c, 95);
}

static void check_nothing_skipped(void **state)
{
    tail_case c = {1, 2, 1, 100, 24, 4, 8, 1, F, H16, BHSD, RANDOM, 1.0, 0, 0, 0, 0, 0};
    (void)state;
    check(c, 96);
    tail_job j = job_new(c, 97); /* one row skips */
    j.map[2 * (size_t)(c.Ck + 1) + 3] = 0;
    compare(&j, run_cuda(&j), run_cpu(&j));
    mem_done();
}

/* NaN and Inf: the same elements as on the CPU are not finite, the others agree. */
static void check_nan(void **state)
{
    (void)state;
    for (int mode = 0; mode < (TSAN ? 1 : 8); ++mode) {
        const tail_case c = {1, 2, 2, 60, 16, 4, 6, 0, mode % 2 ? F : B16, F, BHSD, RANDOM, 0.4, 0, 0, 0, 0, 0};
        tail_job j = job_new(c, (uint64_t)(100 + mode));
        const double bad = mode % 4 < 2 ? (double)NAN : (double)INFINITY;
        const int token = 17, dim = 5;
        switch (mode) {
        case 0: case 2: tensor_put(&j.v, tensor_at(&j.v, 0, 0, token, dim), bad); break;
        case 1: case 3: tensor_put(&j.k, tensor_at(&j.k, 0, 0, token, dim), bad); break;
        case 4: for (int e = 0; e < c.D; ++e) j.qc[c.D + e] = NAN; break; /* a centroid that met a NaN */
        case 5: j.kc[3 * c.D + 2] = NAN; break;
        case 6: for (int b = 0; b < c.Ck; ++b) j.log_mass[b] = INFINITY; break;
        default: for (int b = 0; b < c.Ck; ++b) j.log_mass[b] = -INFINITY; break;
        }
        const float *want = run_cpu(&j), *got = run_cuda(&j);
        double error = 0, length = 0;
        for (size_t e = 0; e < j.n_matrix; ++e) {
            if (!isfinite(want[e]) != !isfinite(got[e])) fail_msg("mode %d, element %zu: %g, %g", mode, e, (double)want[e], (double)got[e]);
            if (!isfinite(want[e])) continue;
            error += ((double)got[e] - (double)want[e]) * ((double)got[e] - (double)want[e]);
            length += (double)want[e] * (double)want[e];
        }
        assert_at_most(error, BOUND * BOUND * length);
        mem_done();
    }
}

static void check_same_bits(void **state)
{
    static const char *const threads[] = {"rr", "first", "last", "random"}, *const copies[] = {"early", "late", "mixed"};
    const tail_case cases[] = {
        {1, 2, 2, 200, 72, 20, 40, 0, B16, B16, BHSD, RANDOM, 0.3, 0, 0, 0, 0, 0},
        {1, 2, 1, 4300, 8, 5, 7, 1, F, B16, BSHD, GIANT, 0.3, 0, 0, 0, 0, 0},
        {1, 1, 1, 300, 16, 6, 140, 0, F, F, BHSD, RANDOM, 0.3, 0, 0, 0, 0, 0}, /* 5 rounds through 4 stages */
    };
    (void)state;
    for (int i = TSAN ? 2 : 0; i < COUNT(cases); ++i) {
        const tail_job j = job_new(cases[i], (uint64_t)(110 + i));
        const float *want = run_cpu(&j), *first = 0;
        for (int s = 0; s < (TSAN ? 2 : TEST_SLOW_BUILD ? 4 : 12); ++s) {
            device_schedule(threads[s % 4], copies[s % 3], (unsigned)s);
            const float *got = run_cuda(&j);
            compare(&j, got, want);
            if (!first) first = got;
            assert_memory_equal(got, first, 4 * j.n_matrix);
        }
        device_schedule("rr", "early", 1);
        mem_done();
    }
}

/* The workspace asked for with the heads of the first call does for the later ones. */
static void check_workspace(void **state)
{
    const svg2_backend cuda = svg2_cuda_backend(0);
    svg2_tail_desc d = SVG2_ZERO;
    (void)state;
    d.batch = 1; d.heads = 10; d.heads_kv = 2; d.tokens_kv = 5000; d.head_dim = 64;
    d.query_clusters = 30; d.key_clusters = 50; d.query_blocks = 30; d.key_blocks = 50;
    d.head_count = 4;
    const size_t bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_TAIL, &d);
    for (d.head_begin = 0; d.head_begin <= 6; ++d.head_begin)
        assert_true(svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_TAIL, &d) == bytes);
    d.head_begin = 0;
    d.key_clusters = 1 << 24; d.key_blocks = 1 << 24; d.query_clusters = 1 << 24; d.query_blocks = 1 << 24;
    d.tokens_kv = 2000000000; d.head_dim = 256;
    d.batch = 1000000; d.heads = 2000; d.heads_kv = 2000; d.head_count = 2000000000;
    assert_true(svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_TAIL, &d) == SIZE_MAX);
    /* a query need not have a valid descriptor */
    static const int32_t heads_kv[] = {0, -1, INT32_MIN, 2001, INT32_MAX};
    for (int i = 0; i < COUNT(heads_kv); ++i) {
        d.heads_kv = heads_kv[i];
        assert_true(svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_TAIL, &d) == SIZE_MAX);
    }
}

static void print_worst(void **state)
{
    (void)state;
    print_message("largest error of a matrix: %.2e of its length\n", worst);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(check_dims),        TEST(check_dtypes_and_strides), TEST(check_clusters),        TEST(check_many_clusters),
        TEST(check_giants),      TEST(check_head_ranges),        TEST(check_sharp),           TEST(check_nothing_skipped),
        TEST(check_nan),         TEST(check_same_bits),          TEST(check_workspace),       TEST(print_worst),
    };
    return cmocka_run_group_tests(tests, 0, 0);
}
