/* test_cuda_mass.c - >>mass on the CUDA backend: exact attention mass of every block, and recall, against float64. */
#include "device.h"
#include "test.h"
#include "wgmma.h"

/* Bounds. Queries and keys of the type of the products (f16 if k is, else bf16) enter unchanged: P then has f32 accuracy, 2e-5
   with logits up to 20. Others are rounded, so that a logit of standard deviation 1.5 errs by 1.5 sqrt(2) u / sqrt(3) (u = 2^-9 or
   2^-12), and P by as much: up to 4 standard deviations are allowed, and (1 + mean) times that where keys with a mean meet
   rounded queries. */
#define EXACT 2e-5
#define ROUNDED_BF16 1.4e-2
#define ROUNDED_F16 2e-3

typedef struct shape { int B, H, Hk, Sq, Sk, D, Qb, Kb; svg2_dtype q, k; tensor_order order; double mean; int pad; /* the last key block is padding */ } shape;


static const void *to_device(const void *host, size_t bytes) { return host ? device_copy(host, bytes) : 0; }

/* The call on the device, group heads at a time (0 = all); its results into the host's memory, where the mass of all heads is. */
static void mass_run_groups(const svg2_mass_desc *host, const tensor *q, const tensor *k, int group)
{
    svg2_backend backend = svg2_cuda_backend_arch(0, arch);
    svg2_mass_desc d = *host;
    svg2_attention_desc *a = &d.attention;
    svg2_error err;
    size_t Q = (size_t)(a->batch * a->heads), K = (size_t)(a->batch * a->heads_kv);
    size_t Qb = a->query_blocks ? (size_t)a->query_blocks : 1, Kb = a->key_blocks ? (size_t)a->key_blocks : 1, rows = Q * (size_t)a->tokens;
    a->q = to_device(q->data, q->bytes);
    a->k = to_device(k->data, k->bytes);
    a->lse = (float *)device_copy(a->lse, rows * 4);
    a->query_order = (const int32_t *)to_device(a->query_order, rows * 4);
    a->key_order = (const int32_t *)to_device(a->key_order, K * (size_t)a->tokens_kv * 4);
    a->query_offset = (const int32_t *)to_device(a->query_offset, Q * (Qb + 1) * 4);
    a->key_offset = (const int32_t *)to_device(a->key_offset, K * (Kb + 1) * 4);
    a->map = (const uint8_t *)to_device(a->map, Q * Qb * Kb);
    a->key_mean = (const float *)to_device(a->key_mean, K * (size_t)a->head_dim * 4);
    const size_t step = group ? (size_t)group : Q;
    d.mass = d.mass ? (float *)device_new(step * Qb * Kb * 4) : 0;
    d.recall = d.recall ? (float *)device_new(rows * 4) : 0;
    for (size_t h = 0; h < Q; h += step) {
        const size_t count = Q - h < step ? Q - h : step;
        if (group) a->head_begin = (int32_t)h, a->head_count = (int32_t)count;
        size_t bytes = svg2_stage_workspace_bytes(&backend, SVG2_STAGE_MASS, &d);
        svg2_result result = svg2_block_mass(&backend, &d, device_new(bytes), bytes, &err);
        if (result != SVG2_OK) fail_msg("svg2_block_mass: %s (%s: %s)", svg2_result_string(result), err.field, err.text);
        if (d.mass) device_read(host->mass + h * Qb * Kb, d.mass, count * Qb * Kb * 4);
    }
    if (d.recall) device_read(host->recall, d.recall, rows * 4);
    device_reset();
}
static void mass_run(const svg2_mass_desc *host, const tensor *q, const tensor *k) { mass_run_groups(host, q, k, 0); }

typedef struct mass_case {
    shape s;
    svg2_mass_desc d;
    tensor q, k;
    double *q64, *k64;
    int32_t *label_q, *label_k;
    uint8_t *map;
} mass_case;

static mass_case case_new(shape s)
{
    mass_case c;
    int Q = s.B * s.H, K = s.B * s.Hk;
    uint64_t r = (uint64_t)(s.Sq * 7 + s.Sk);
    memset(&c, 0, sizeof c);
    c.s = s;
    c.q = tensor_new(s.B, s.H, s.Sq, s.D, s.q, s.order);
    c.k = tensor_new(s.B, s.Hk, s.Sk, s.D, s.k, s.order);
    tensor_fill_normal(&c.q, 1, 1.5, 0);
    tensor_fill_normal(&c.k, 2, 1, s.mean);
    c.q64 = tensor_f64(&c.q);
    c.k64 = tensor_f64(&c.k);
    svg2_attention_desc *a = &c.d.attention;
    a->batch = s.B; a->heads = s.H; a->heads_kv = s.Hk; a->tokens = s.Sq; a->tokens_kv = s.Sk; a->head_dim = s.D;
    a->scale = (float)(1 / sqrt(s.D));
    a->q = c.q.data; a->k = c.k.data;
    a->q_layout = c.q.layout; a->k_layout = c.k.layout;
    c.label_q = (int32_t *)mem_new((size_t)(Q * s.Sq) * 4); c.label_k = (int32_t *)mem_new((size_t)(K * s.Sk) * 4);
    int32_t *order_q = (int32_t *)mem_new((size_t)(Q * s.Sq) * 4), *order_k = (int32_t *)mem_new((size_t)(K * s.Sk) * 4);
    int32_t *off_q = (int32_t *)mem_new((size_t)(Q * (s.Qb + 1)) * 4), *off_k = (int32_t *)mem_new((size_t)(K * (s.Kb + 1)) * 4);
    for (int side = 0; side < 2; ++side)
        for (int h = 0; h < (side ? K : Q); ++h) {
            int S = side ? s.Sk : s.Sq, n = side ? s.Kb : s.Qb, at = 0;
            int32_t *label = (side ? c.label_k : c.label_q) + h * S, *order = (side ? order_k : order_q) + h * S;
            int32_t *off = (side ? off_k : off_q) + h * (n + 1);
            for (int t = 0; t < S; ++t) label[t] = n > 2 && !(side && s.pad) ? rnd_int(&r, n - 1) : rnd_int(&r, n); /* the last block is empty */
            for (int b = 0; b <= n; ++b) {
                off[b] = at;
                for (int t = 0; t < S && b < n; ++t)
                    if (label[t] == b) order[at++] = t;
            }
        }
    c.map = (uint8_t *)mem_new((size_t)(Q * s.Qb * s.Kb));
    for (int i = 0; i < Q * s.Qb * s.Kb; ++i) c.map[i] = rnd_unit(&r) < 0.4;
    a->query_blocks = s.Qb; a->key_blocks = s.Kb; a->map = c.map;
    a->query_order = order_q; a->query_offset = off_q;
    a->key_order = order_k; a->key_offset = off_k;
    if (s.mean != 0) {
        float *mean = (float *)mem_new((size_t)(K * s.D) * 4);
        for (int h = 0; h < K; ++h)
            for (int e = 0; e < s.D; ++e) {
                double sum = 0;
                for (int t = 0; t < s.Sk; ++t) sum += c.k64[((int64_t)h * s.Sk + t) * s.D + e];
                mean[h * s.D + e] = (float)(sum / s.Sk);
            }
        a->key_mean = mean;
    }
    c.d.valid_key_blocks = s.pad ? s.Kb - 1 : s.Kb > 9 ? s.Kb : 0; /* 0 and all are the same */
    a->lse = (float *)mem_new((size_t)(Q * s.Sq) * 4);
    c.d.mass = (float *)mem_new((size_t)(Q * s.Qb * s.Kb) * 4);
    c.d.recall = (float *)mem_new((size_t)(Q * s.Sq) * 4);
    for (int h = 0; h < Q; ++h)
        for (int i = 0; i < s.Sq; ++i) {
            int hk = h / s.H * s.Hk + h % s.H / (s.H / s.Hk);
            double sum = 0;
            for (int t = 0; t < s.Sk; ++t)
                if (!s.pad || c.label_k[hk * s.Sk + t] < s.Kb - 1)
                    sum += exp((double)a->scale * dot64(c.q64 + ((int64_t)h * s.Sq + i) * s.D, c.k64 + ((int64_t)hk * s.Sk + t) * s.D, s.D));
            a->lse[h * s.Sq + i] = (float)log(sum);
        }
    if (s.Sq > 10) a->lse[3] = -INFINITY; /* a padding row counts nothing */
    return c;
}

static double bound_of(const shape *s)
{
    svg2_dtype t = s->k == SVG2_F16 ? SVG2_F16 : SVG2_BF16;
    if (s->q == t && s->k == t) return EXACT * (1 + s->mean);
    return (t == SVG2_F16 ? ROUNDED_F16 : ROUNDED_BF16) * (1 + s->mean);
}

static void case_check(const mass_case *c)
{
    shape s = c->s;
    const svg2_attention_desc *a = &c->d.attention;
    double *mass = (double *)mem_new(sizeof(double) * (size_t)(s.Qb * s.Kb)), bound = bound_of(&s);
    for (int h = 0; h < s.B * s.H; ++h) {
        int hk = h / s.H * s.Hk + h % s.H / (s.H / s.Hk);
        memset(mass, 0, sizeof(double) * (size_t)(s.Qb * s.Kb));
        for (int i = 0; i < s.Sq; ++i) {
            double recall = 0, lse = (double)a->lse[h * s.Sq + i];
            int I = c->label_q[h * s.Sq + i];
            if (isinf(lse)) {
                assert_true(c->d.recall[h * s.Sq + i] == 0);
                continue;
            }
            for (int t = 0; t < s.Sk; ++t) {
                int b = c->label_k[hk * s.Sk + t];
                double p = s.pad && b == s.Kb - 1 ? 0
                         : exp((double)a->scale * dot64(c->q64 + ((int64_t)h * s.Sq + i) * s.D, c->k64 + ((int64_t)hk * s.Sk + t) * s.D, s.D) - lse);
                mass[I * s.Kb + b] += p;
                if (c->map[(h * s.Qb + I) * s.Kb + b]) recall += p;
            }
            assert_at_most(fabs((double)c->d.recall[h * s.Sq + i] - recall), bound);
        }
        for (int i = 0; i < s.Qb * s.Kb; ++i) assert_at_most(fabs((double)c->d.mass[h * s.Qb * s.Kb + i] - mass[i]), bound * (1e-3 + mass[i]));
    }
}

static const shape cases[] = {
    {1, 1, 1, 1, 1, 8, 1, 1, SVG2_F32, SVG2_F32, BHSD, 0, 0},         {2, 4, 1, 63, 65, 40, 5, 9, SVG2_BF16, SVG2_BF16, BSHD, 0, 0},
    {1, 4, 2, 65, 7, 64, 3, 20, SVG2_BF16, SVG2_BF16, GAPS, 0, 1},    {1, 2, 2, 300, 197, 72, 13, 40, SVG2_F16, SVG2_F16, BSHD, 0, 1},
    {1, 1, 1, 150, 200, 128, 7, 100, SVG2_F32, SVG2_F32, BHSD, 4, 0}, {1, 1, 1, 60, 90, 256, 4, 4, SVG2_F32, SVG2_F16, GAPS, 1, 1},
    {1, 2, 1, 257, 130, 96, 1, 31, SVG2_BF16, SVG2_BF16, BHSD, 2, 1}, {1, 2, 1, 257, 130, 96, 31, 1, SVG2_F32, SVG2_F32, BHSD, 0, 0},
    {1, 1, 1, 70, 1100, 64, 2, 9, SVG2_BF16, SVG2_BF16, BHSD, 0, 1}, /* more tiles than places */
};

static void against_f64(void **state)
{
    (void)state;
    for (int n = 0; n < COUNT(cases); ++n) {
        mass_case c = case_new(cases[n]);
        int Q = c.s.B * c.s.H;
        size_t blocks = (size_t)(Q * c.s.Qb * c.s.Kb), rows = (size_t)(Q * c.s.Sq);
        if (TEST_SLOW_BUILD && (n == 3 || n == 6)) { mem_done(); continue; }
        mass_run(&c.d, &c.q, &c.k);
        case_check(&c);
        /* each output alone gives the same; no map: recall is 1 */
        float *mass = c.d.mass, *recall = c.d.recall;
        c.d.mass = 0;
        c.d.recall = (float *)mem_new(rows * 4);
        mass_run(&c.d, &c.q, &c.k);
        assert_memory_equal(c.d.recall, recall, rows * 4);
        c.d.mass = (float *)mem_new(blocks * 4);
        c.d.recall = 0;
        mass_run(&c.d, &c.q, &c.k);
        assert_memory_equal(c.d.mass, mass, blocks * 4);
        if (n % 2) {
            c.d.attention.map = 0;
            c.d.recall = recall;
            mass_run(&c.d, &c.q, &c.k);
            for (size_t i = 0; i < rows; ++i)
                if (!isinf(c.d.attention.lse[i])) assert_at_most(fabs((double)recall[i] - 1), bound_of(&c.s));
        }
        mem_done();
    }
}

/* One block of everything: order, offsets and map left out. */
static void one_block(void **state)
{
    (void)state;
    shape s = {1, 2, 1, 70, 100, 64, 1, 1, SVG2_BF16, SVG2_BF16, BHSD, 0, 0};
    mass_case c = case_new(s);
    svg2_attention_desc *a = &c.d.attention;
    a->query_order = a->query_offset = a->key_order = a->key_offset = 0;
    a->map = 0;
    a->query_blocks = a->key_blocks = 0;
    memset(c.map, 1, 2);
    mass_run(&c.d, &c.q, &c.k);
    case_check(&c);
    /* NaN in a key spoils what it meets, but not the rows that count nothing */
    tensor_put(&c.k, tensor_at(&c.k, 0, 0, 50, 3), (double)NAN);
    for (int i = 0; i < 2 * 70; ++i) a->lse[i] = -INFINITY;
    mass_run(&c.d, &c.q, &c.k);
    for (int i = 0; i < 2 * 70; ++i) assert_true(c.d.recall[i] == 0);
    assert_true(c.d.mass[0] == 0 && c.d.mass[1] == 0);
}

/* Heads in groups: mass is that of the call's heads, recall that of all; the same bits. */
static void head_groups(void **state)
{
    (void)state;
    shape s = {2, 4, 2, 63, 65, 40, 5, 9, SVG2_BF16, SVG2_F32, BSHD, 1, 1};
    mass_case c = case_new(s);
    size_t blocks = (size_t)(8 * s.Qb * s.Kb), rows = (size_t)(8 * s.Sq);
    float *mass = c.d.mass, *recall = c.d.recall;
    mass_run(&c.d, &c.q, &c.k);
    case_check(&c);
    for (int group = 1; group < 8; group += 2) {
        c.d.mass = (float *)mem_new(blocks * 4);
        c.d.recall = (float *)mem_new(rows * 4);
        mass_run_groups(&c.d, &c.q, &c.k, group);
        assert_memory_equal(c.d.mass, mass, blocks * 4);
        assert_memory_equal(c.d.recall, recall, rows * 4);
    }
}

static void same_bits(void **state)
{
    (void)state;
    static const char *threads[] = {"rr", "first", "last", "random"}, *copies[] = {"early", "late", "mixed"};
    uint64_t want = 0;
    for (int run = 0; run < (TEST_SLOW_BUILD ? 6 : 12); ++run) {
        shape s = {1, 2, 1, 150, 200, 64, 3, 17, SVG2_F32, SVG2_F32, BHSD, 0, 1};
        mass_case c = case_new(s);
        device_schedule(threads[run % 4], copies[run / 4 % 3], (unsigned)run + 1);
        mass_run(&c.d, &c.q, &c.k);
        uint64_t got = mem_hash(c.d.mass, 2 * 3 * 17 * 4) ^ mem_hash(c.d.recall, 2 * 150 * 4);
        if (!run) want = got;
        if (got != want) fail_msg("other bits with %s, %s", threads[run % 4], copies[run / 4 % 3]);
        mem_done();
    }
    device_schedule("rr", "late", 1);
}

#define ALL \
    TEST(against_f64), TEST(one_block), TEST(head_groups), TEST(same_bits)
int main(void)
{
    const struct CMUnitTest tests[] = {ALL}, all[] = {
        ALL, WGMMA(against_f64), WGMMA(one_block), WGMMA(head_groups), WGMMA(same_bits)};
    return has_wgmma() ? cmocka_run_group_tests_name("cuda_mass", all, 0, 0) : cmocka_run_group_tests_name("cuda_mass", tests, 0, 0);
}
