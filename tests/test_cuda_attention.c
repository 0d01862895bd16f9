/* test_cuda_attention.c - >>attention on the CUDA backend: dense, block maps, tails, merging, against float64. */
#include "device.h"
#include "test.h"

/* Bounds. With u = 2^-9 (bf16) or 2^-12 (f16), rounding to nearest errs by u / sqrt(3) on average. In the output: the weights P
   and 16-bit outputs err by that each, f32 values rounded to T too. f32 queries and keys: a logit of standard deviation 1.5 (these
   tests: q 1.5, k 1) errs by 1.5 * sqrt(2) * u / sqrt(3), and the weight by as much. Together u * sqrt(1/3 + 1/3 + 1/3 + 3/2) = 1.6 u =
   3.1e-3 (bf16), 3.9e-4 (f16). Asserted: 4e-3 and 6e-4 over all rows of a case. The LSE of 16-bit queries and keys of type T
   has f32 accuracy; that of rounded ones errs like one logit, up to 4 standard deviations of it. */
#define OUT_BF16 4e-3
#define OUT_F16  6e-4
#define LSE_EXACT 2e-5
#define LSE_BF16 1.4e-2
#define LSE_F16  2e-3

typedef struct blocks { int count; int32_t *label, *order, *offset; } blocks;

/* Blocks from labels. */
static void blocks_sort(blocks *b, int heads, int S)
{
    b->order = (int32_t *)mem_new((size_t)(heads * S) * 4);
    b->offset = (int32_t *)mem_new((size_t)(heads * (b->count + 1)) * 4);
    for (int h = 0; h < heads; ++h) {
        int *n = (int *)calloc((size_t)(b->count + 1), sizeof(int));
        int32_t *offset = b->offset + h * (b->count + 1);
        for (int t = 0; t < S; ++t) ++n[b->label[h * S + t] + 1];
        for (int c = 0; c < b->count; ++c) n[c + 1] += n[c];
        for (int c = 0; c <= b->count; ++c) offset[c] = n[c];
        for (int t = 0; t < S; ++t) b->order[h * S + n[b->label[h * S + t]]++] = t;
        free(n);
    }
}
/* Random ones; some are empty, one is big. */
static blocks blocks_new(int heads, int S, int count, uint64_t seed)
{
    blocks b;
    uint64_t r = seed;
    b.count = count;
    b.label = (int32_t *)mem_new((size_t)(heads * S) * 4);
    for (int i = 0; i < heads * S; ++i) {
        int c = rnd_int(&r, count);
        b.label[i] = c % 7 == 3 && count > 4 ? 1 : c; /* blocks 3, 10, ... are empty */
    }
    blocks_sort(&b, heads, S);
    return b;
}
/* Given sizes, the tokens dealt at random; the last block takes what is left. */
static blocks blocks_sized(int heads, int S, const int *size, int count, uint64_t seed)
{
    blocks b;
    uint64_t r = seed;
    b.count = count;
    b.label = (int32_t *)mem_new((size_t)(heads * S) * 4);
    for (int h = 0; h < heads; ++h) {
        int32_t *label = b.label + h * S;
        for (int t = 0, c = 0, left = size[0]; t < S; ++t) {
            while (left == 0 && c < count - 1) left = size[++c];
            label[t] = c;
            --left;
        }
        for (int t = S - 1; t > 0; --t) {
            int other = rnd_int(&r, t + 1);
            int32_t x = label[t];
            label[t] = label[other];
            label[other] = x;
        }
    }
    blocks_sort(&b, heads, S);
    return b;
}

typedef struct shape { int B, H, Hk, Sq, Sk, D; } shape;
typedef struct att {
    svg2_attention_desc d; /* host pointers */
    shape s;
    tensor q, k, v, out;
    double *q64, *k64, *v64;
    blocks qb, kb;
    uint8_t *map;
    int misaligned; /* device tensors begin one element off */
    svg2_error err;
} att;

static att att_new(shape s, const svg2_dtype *types, tensor_order order, double mean, uint64_t seed)
{
    att a;
    memset(&a, 0, sizeof a);
    a.s = s;
    a.q = tensor_new(s.B, s.H, s.Sq, s.D, types[0], order);
    a.k = tensor_new(s.B, s.Hk, s.Sk, s.D, types[1], order);
    a.v = tensor_new(s.B, s.Hk, s.Sk, s.D, types[2], order);
    a.out = tensor_new(s.B, s.H, s.Sq, s.D, types[3], order);
    tensor_fill_normal(&a.q, seed, 1.5, 0);
    tensor_fill_normal(&a.k, seed + 1000, 1, mean);
    tensor_fill_normal(&a.v, seed + 2000, 1, 0.3);
    a.q64 = tensor_f64(&a.q); a.k64 = tensor_f64(&a.k); a.v64 = tensor_f64(&a.v);
    a.d.batch = s.B; a.d.heads = s.H; a.d.heads_kv = s.Hk; a.d.tokens = s.Sq; a.d.tokens_kv = s.Sk; a.d.head_dim = s.D;
    a.d.scale = (float)(1 / sqrt(s.D));
    a.d.q = a.q.data; a.d.k = a.k.data; a.d.v = a.v.data; a.d.out = a.out.data;
    a.d.lse = (float *)mem_new((size_t)(s.B * s.H * s.Sq) * 4);
    a.d.q_layout = a.q.layout; a.d.k_layout = a.k.layout; a.d.v_layout = a.v.layout; a.d.out_layout = a.out.layout;
    return a;
}
static void att_use(att *a, blocks qb, blocks kb, double filled, uint64_t seed)
{
    uint64_t r = seed;
    int Qb = qb.count, Kb = kb.count;
    a->qb = qb;
    a->kb = kb;
    a->map = (uint8_t *)mem_new((size_t)(a->s.B * a->s.H * Qb * Kb));
    for (int i = 0; i < a->s.B * a->s.H * Qb * Kb; ++i) a->map[i] = rnd_unit(&r) < filled;
    a->d.query_blocks = Qb; a->d.key_blocks = Kb;
    a->d.query_order = a->qb.order; a->d.query_offset = a->qb.offset;
    a->d.key_order = a->kb.order; a->d.key_offset = a->kb.offset;
    a->d.map = a->map;
}
static void att_blocks(att *a, int Qb, int Kb, double filled, uint64_t seed)
{
    att_use(a, blocks_new(a->s.B * a->s.H, a->s.Sq, Qb, seed + 1), blocks_new(a->s.B * a->s.Hk, a->s.Sk, Kb, seed + 2), filled, seed);
}
static float *att_key_mean(const att *a)
{
    int n = a->s.B * a->s.Hk;
    float *m = (float *)mem_new((size_t)(n * a->s.D) * 4);
    for (int h = 0; h < n; ++h)
        for (int d = 0; d < a->s.D; ++d) {
            double sum = 0;
            for (int t = 0; t < a->s.Sk; ++t) sum += a->k64[((int64_t)h * a->s.Sk + t) * a->s.D + d];
            m[h * a->s.D + d] = (float)(sum / a->s.Sk);
        }
    return m;
}

static const void *to_device(const void *host, size_t bytes) { return host ? device_copy(host, bytes) : 0; }
static void *tensor_to_device(const tensor *t, int misaligned)
{
    size_t off = misaligned ? dtype_bytes(t->layout.dtype) : 0;
    char *p = (char *)device_new(t->bytes + off);
    device_write(p + off, t->data, t->bytes);
    return p + off;
}
/* The call on the device, and its results into the host's tensors. */
static svg2_result att_try(att *a, const svg2_backend *backend)
{
    svg2_attention_desc d = a->d;
    size_t q = (size_t)(d.batch * d.heads), kv = (size_t)(d.batch * d.heads_kv), dim = (size_t)d.head_dim;
    size_t qb = d.query_blocks ? (size_t)d.query_blocks : 1, kb = d.key_blocks ? (size_t)d.key_blocks : 1;
    size_t tq = (size_t)d.tail_query_blocks, tk = (size_t)d.tail_key_blocks, bytes;
    d.q = tensor_to_device(&a->q, a->misaligned);
    d.k = tensor_to_device(&a->k, a->misaligned);
    d.v = tensor_to_device(&a->v, a->misaligned);
    d.out = tensor_to_device(&a->out, a->misaligned);
    d.lse = d.lse ? (float *)device_new(q * (size_t)d.tokens * 4) : 0;
    d.query_order = (const int32_t *)to_device(d.query_order, q * (size_t)d.tokens * 4);
    d.query_offset = (const int32_t *)to_device(d.query_offset, q * (qb + 1) * 4);
    d.key_order = (const int32_t *)to_device(d.key_order, kv * (size_t)d.tokens_kv * 4);
    d.key_offset = (const int32_t *)to_device(d.key_offset, kv * (kb + 1) * 4);
    d.map = (const uint8_t *)to_device(d.map, q * qb * kb);
    d.key_mean = (const float *)to_device(d.key_mean, kv * dim * 4);
    d.key_centroid = (const float *)to_device(d.key_centroid, kv * tk * dim * 4);
    d.value_mean = (const float *)to_device(d.value_mean, kv * tk * dim * 4);
    d.log_mass = (const float *)to_device(d.log_mass, q * tq * tk * 4);
    d.tail_matrix = (const float *)to_device(d.tail_matrix, (d.head_count ? (size_t)d.head_count : q) * tq * dim * dim * 4);
    bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_ATTENTION, &d);
    svg2_result r = svg2_attention(backend, &d, device_new(bytes), bytes, &a->err);
    if (r == SVG2_OK) {
        device_read(a->out.data, d.out, a->out.bytes);
        if (d.lse) device_read(a->d.lse, d.lse, q * (size_t)d.tokens * 4);
    }
    device_reset();
    return r;
}
static void att_run(att *a)
{
    svg2_backend backend = svg2_cuda_backend(0);
    svg2_result r = att_try(a, &backend);
    if (r != SVG2_OK) fail_msg("svg2_attention: %s (%s: %s)", svg2_result_string(r), a->err.field, a->err.text);
    assert_true(tensor_gaps_untouched(&a->out));
}
static int is_f16(const att *a) { return a->d.k_layout.dtype == SVG2_F16 && a->d.v_layout.dtype == SVG2_F16; }
static double out_bound(const att *a) { return is_f16(a) && a->d.out_layout.dtype != SVG2_BF16 ? OUT_F16 : OUT_BF16; }
static double lse_bound(const att *a)
{
    svg2_dtype t = is_f16(a) ? SVG2_F16 : SVG2_BF16;
    if (a->d.q_layout.dtype == t && a->d.k_layout.dtype == t && !a->d.tail_key_blocks) return LSE_EXACT;
    return is_f16(a) ? LSE_F16 : LSE_BF16;
}
/* Compares up to rows rows per head with float64. order: -1 no tail, 0, 1. Returns the relative L2 error. */
static double att_check(const att *a, int rows, int order)
{
    const double *out = tensor_f64(&a->out);
    double *o = (double *)mem_new(sizeof(double) * (size_t)a->s.D);
    rel_error e = {0, 0};
    shape s = a->s;
    for (int h = 0; h < s.B * s.H; ++h) {
        int hk = h / s.H * s.Hk + h % s.H / (s.H / s.Hk);
        const double *qh = a->q64 + (int64_t)h * s.Sq * s.D, *kh = a->k64 + (int64_t)hk * s.Sk * s.D, *vh = a->v64 + (int64_t)hk * s.Sk * s.D;
        ref_head r;
        memset(&r, 0, sizeof r);
        if (a->map) {
            r.Sq = s.Sq; r.Skv = s.Sk; r.D = s.D; r.Qb = a->qb.count; r.Kb = a->kb.count; r.order = order; r.scale = (double)a->d.scale;
            r.Cq = order < 0 ? r.Qb : a->d.tail_query_blocks;
            r.Ck = order < 0 ? r.Kb : a->d.tail_key_blocks;
            r.plain = a->d.log_mass == 0;
            r.q = qh; r.k = kh; r.v = vh; r.map = a->map + (int64_t)h * r.Qb * r.Kb;
            r.query_label = a->qb.label + h * s.Sq; r.key_label = a->kb.label + hk * s.Sk;
            ref_head_prepare(&r);
        }
        for (int n = 0; n < (rows < s.Sq ? rows : s.Sq); ++n) {
            int i = rows >= s.Sq ? n : (int)((int64_t)n * 7919 % s.Sq);
            float got = a->d.lse ? a->d.lse[(int64_t)h * s.Sq + i] : 0;
            double lse = a->map ? ref_head_row(&r, i, o) : ref_row(qh + (int64_t)i * s.D, kh, vh, 0, s.Sk, s.D, (double)a->d.scale, 0, 0, 0, o, 0);
            rel_add(&e, out + ((int64_t)h * s.Sq + i) * s.D, o, s.D);
            if (!a->d.lse) continue;
            if (isinf(lse)) assert_true(isinf(got) && got < 0);
            else assert_at_most(fabs((double)got - lse), lse_bound(a) * (1 + fabs(lse)));
        }
    }
    return rel_l2(e);
}
static void att_test(att *a, int rows, const char *what, int number)
{
    att_run(a);
    double e = att_check(a, rows, -1), bound = out_bound(a);
    if (getenv("TEST_SHOW")) print_message("%s %d: %.2g of %.2g\n", what, number, e, bound);
    if (!(e <= bound)) fail_msg("%s %d: %g, more than %g", what, number, e, bound);
    mem_done();
}
static const svg2_dtype f32x4[4] = {SVG2_F32, SVG2_F32, SVG2_F32, SVG2_F32};
static const svg2_dtype bf16x4[4] = {SVG2_BF16, SVG2_BF16, SVG2_BF16, SVG2_BF16};
static const svg2_dtype f16x4[4] = {SVG2_F16, SVG2_F16, SVG2_F16, SVG2_F16};

static void dense(void **state)
{
    (void)state;
    static const int sizes[] = {1, 7, 63, 65, 130, 333}, dims[] = {8, 40, 64, 72, 96, 128, 256};
    for (int i = 0; i < COUNT(sizes); ++i)
        for (int j = 0; j < COUNT(dims); ++j) {
            if (TEST_SLOW_BUILD && (i + j) % 3) continue;
            shape s = {1 + (i + j) % 2, 2, j % 2 ? 1 : 2, sizes[i], sizes[(i + j) % COUNT(sizes)], dims[j]};
            svg2_dtype types[4];
            for (int t = 0; t < 4; ++t) types[t] = i % 2 ? (svg2_dtype)(1 + (i + j) % 2) : (svg2_dtype)((i * 7 + j * (t + 1) + t) % 3);
            if (s.Sq * s.Sk > 20000) s.B = s.H = s.Hk = 1;
            att a = att_new(s, types, (tensor_order)((i + j) % 3), 0, (uint64_t)(i * 10 + j));
            if (j % 3 == 0) a.d.lse = 0;
            a.misaligned = (i + 2 * j) % 5 == 0;
            att_test(&a, 40, "dense", i * 10 + j);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(dense)};
    return cmocka_run_group_tests_name("cuda_attention", tests, 0, 0);
}
