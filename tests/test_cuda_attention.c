/* test_cuda_attention.c - >>attention on the CUDA backend: dense, block maps, tails, merging, against float64. */
#include "device.h"
#include "test.h"
#include "wgmma.h"
#include "attention.h"

/* Bounds. With u = 2^-9 (bf16) or 2^-12 (f16), rounding to nearest errs by u / sqrt(3) on average. In the output: the weights P
   and 16-bit outputs err by that each, f32 values rounded to T too. f32 queries and keys: a logit of standard deviation 1.5 (these
   tests: q 1.5, k 1) errs by 1.5 * sqrt(2) * u / sqrt(3), and the weight by as much. Together u * sqrt(1/3 + 1/3 + 1/3 + 3/2) = 1.6 u =
   3.1e-3 (bf16), 3.9e-4 (f16). Asserted: 4e-3 and 6e-4 over all rows of a case. The LSE of 16-bit queries and keys of type T
   has f32 accuracy; that of rounded ones errs like one logit, up to 4 standard deviations of it, and (1 + mean) times that where
   the keys have a mean. */
#define OUT_BF16 4e-3
#define OUT_F16  6e-4
#define LSE_EXACT 2e-5
#define LSE_BF16 1.4e-2
#define LSE_F16  2e-3

static int has_boxes;     /* the program's svg2_cuda.cu has SVG2_CUDA_TMA, and boxes are counted */

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
    d.lse = d.lse ? (float *)device_copy(d.lse, q * (size_t)d.tokens * 4) : 0;
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
    svg2_backend backend = svg2_cuda_backend_arch(0, arch);
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
    return (is_f16(a) ? LSE_F16 : LSE_BF16) * (1 + a->mean);
}
static void att_test(att *a, int rows, const char *what, int number)
{
    att_run(a);
    double e = att_check(a, rows, -1, lse_bound(a), lse_bound(a)), bound = out_bound(a);
    if (getenv("TEST_SHOW")) print_message("%s %d: %.2g of %.2g\n", what, number, e, bound);
    if (!(e <= bound)) fail_msg("%s %d: %g, more than %g", what, number, e, bound);
    mem_done();
}
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


/* Tiles of 128 keys, items of 128 rows; items of up to 64, whose keys the warpgroups share out. */
static void dense_sizes(void **state)
{
    (void)state;
    static const int sizes[] = {1, 63, 64, 65, 127, 128, 129, 130, 256, 257, 333}, dims[] = {64, 128, 96, 256, 40};
    for (int i = 0; i < COUNT(sizes); ++i)
        for (int j = 0; j < COUNT(sizes); ++j) {
            if ((i + j) % (TEST_SLOW_BUILD ? 7 : 2)) continue;
            shape s = {1, 1, 1, sizes[i], sizes[j], dims[(i + 3 * j) % COUNT(dims)]};
            att a = att_new(s, (i + j) % 3 ? bf16x4 : f16x4, BHSD, 0, (uint64_t)(i * 20 + j));
            att_test(&a, 24, "dense size", i * 20 + j);
        }
}

static void block_maps(void **state)
{
    (void)state;
    static const shape shapes[] = {{1, 1, 1, 1, 1, 8},     {2, 4, 1, 7, 65, 40},    {1, 4, 4, 63, 7, 64},     {2, 2, 2, 65, 63, 72},
                                   {1, 2, 1, 333, 130, 96}, {1, 2, 1, 130, 300, 128}, {1, 1, 1, 130, 257, 256}, {1, 2, 2, 300, 513, 64}};
    static const int grid[][2] = {{1, 1}, {3, 5}, {16, 16}, {9, 80}, {70, 31}};
    static const double filled[] = {0.3, 1, 0, 0.05, 0.8};
    for (int i = 0; i < COUNT(shapes); ++i)
        for (int j = 0; j < 5; ++j) {
            svg2_dtype types[4];
            for (int t = 0; t < 4; ++t) types[t] = j == 0 ? SVG2_F32 : j == 3 ? SVG2_F16 : j == 1 ? SVG2_BF16 : (svg2_dtype)((i + j * (t + 1)) % 3);
            if (TEST_SLOW_BUILD && (shapes[i].Sq > 100 ? j != 2 + i % 2 : (i + j) % 2)) continue;
            if (arch == 90 && (i + j) % 2) continue;
            shape s = shapes[i];
            if (TEST_SLOW_BUILD && arch == 90 && i == 2) s.H = s.Hk = 1; /* small blocks: an item for each, and head */
            att a = att_new(s, types, (tensor_order)((i + j) % 3), j >= 3 ? 4 : 0, (uint64_t)(i * 10 + j));
            att_blocks(&a, grid[j][0], grid[j][1], filled[j], (uint64_t)(i + 100 * j));
            if (j >= 3) a.d.key_mean = att_key_mean(&a);
            att_test(&a, TEST_SLOW_BUILD ? 12 : 50, "block map", i * 10 + j);
        }
}

/* Tiles and units are 64, items 128: blocks of these sizes, and one more and one less. */
static void block_sizes(void **state)
{
    (void)state;
    static const int sizes[] = {1, 0, 63, 64, 65, 0, 0, 2, 128, 129, 1000}, keys[] = {129, 63, 1, 0, 1, 1, 65, 64, 0, 128, 1000};
    for (int n = 0; n < 4; ++n) {
        shape s = {1, 1, 1, 700, 610, n == 3 ? 40 : n == 2 ? 256 : 64};
        if (n && TEST_SLOW_BUILD) continue;
        att a = att_new(s, n == 1 ? f16x4 : bf16x4, BHSD, 0, 3);
        att_use(&a, blocks_sized(1, s.Sq, sizes, COUNT(sizes), 5), blocks_sized(1, s.Sk, keys, COUNT(keys), 6), n == 1 ? 1 : 0.4, 7 + (uint64_t)n);
        att_test(&a, 60, "block sizes", n);
    }
}

/* More key blocks than a list of runs holds, more query blocks than are sorted; most of them empty or of one token. */
static void many_blocks(void **state)
{
    (void)state;
    static const int grid[][2] = {{2, 1500}, {1100, 600}, {1030, 2}, {3, 512}, {3, 513}};
    for (int n = 0; n < COUNT(grid); ++n) {
        shape s = {1, n == 4 ? 2 : 1, 1, n == 1 ? 1300 : n == 2 ? 700 : 70, n == 1 ? 130 : n == 2 ? 20 : 900, 16};
        if (n == 1 && (TEST_SLOW_BUILD || arch == 90)) s.Sq = 200;
        if (n == 2 && arch == 90) s.Sq = 300;
        if ((n == 1 || n == 2) && TEST_SLOW_BUILD && arch == 90) s.Sq = 60; /* an item each */
        att a = att_new(s, bf16x4, BHSD, 0, 3 + (uint64_t)n);
        att_blocks(&a, grid[n][0], grid[n][1], n == 3 ? 1 : 0.5, 11);
        att_test(&a, 40, "many blocks", n);
    }
}

/* K and V that are read where they are: in order, of type T, aligned; beside others that are not. */
static void in_place(void **state)
{
    (void)state;
    static const int dims[] = {40, 64, 96, 128, 200};
    for (int n = 0; n < COUNT(dims); ++n)
        for (int kind = 0; kind < 4; ++kind) {
            shape s = {2, 2, 1, 70, 150, dims[n]};
            static const svg2_dtype types[4][4] = {{SVG2_BF16, SVG2_BF16, SVG2_BF16, SVG2_BF16}, {SVG2_F32, SVG2_F16, SVG2_F16, SVG2_F32},
                                                   {SVG2_BF16, SVG2_F32, SVG2_BF16, SVG2_F16},  {SVG2_F16, SVG2_BF16, SVG2_F16, SVG2_F32}};
            if (TEST_SLOW_BUILD && (n + kind) % 3) continue;
            att a = att_new(s, types[kind], n % 2 ? BSHD : BHSD, 3, 17);
            a.d.key_mean = att_key_mean(&a);
            if (kind == 0) { /* blocks in the order of memory */
                static const int sizes[] = {10, 70, 0, 1, 69};
                att_use(&a, blocks_new(4, s.Sq, 3, 5), blocks_sized(2, s.Sk, sizes, 5, 6), 0.6, 7);
                for (int h = 0; h < 2; ++h)
                    for (int i = 0; i < s.Sk; ++i)
                        for (int c = 0; c < 5; ++c)
                            if (i >= a.kb.offset[h * 6 + c] && i < a.kb.offset[h * 6 + c + 1]) a.kb.label[h * s.Sk + i] = c;
                a.d.key_order = 0;
            }
            att_test(&a, 30, "in place", 10 * n + kind);
        }
}

/* The same as the copy engine may take them: any strides but that of a broadcast, heads of several batch entries, head_dim that
   fills no slab of 64 columns. That it did is seen where boxes are counted. */
static void boxes(void **state)
{
    (void)state;
    static const int dims[] = {40, 72, 80, 128, 200};
    enum { CONTIGUOUS, TOKEN_MAJOR, WIDE, BROADCAST, HEADS, PACKED, KINDS };
    for (int n = 0; n < COUNT(dims); ++n)
        for (int kind = 0; kind < KINDS; ++kind) {
            shape s = {2, 4, 2, 20, 120 + 3 * kind, dims[n]};
            if (TEST_SLOW_BUILD && n != kind % COUNT(dims)) continue;
            att a = att_new(s, n % 2 ? f16x4 : bf16x4, kind == TOKEN_MAJOR ? BSHD : BHSD, 0, 3 + (uint64_t)n);
            tensor *const two[] = {&a.k, &a.v};
            for (int i = 0; i < 2 && (kind == WIDE || kind == BROADCAST); ++i) {
                tensor *t = two[i];
                t->st = s.Hk * s.D + 8 + 16 * i; /* rows of 16 bytes; of K and of V not the same */
                t->sh = kind == WIDE ? s.D : 0;
                t->sb = s.Sk * t->st + 24;
                t->layout.stride_batch = t->sb; t->layout.stride_head = t->sh; t->layout.stride_token = t->st;
                t->bytes = (size_t)(s.B * t->sb) * 2;
                t->data = mem_new(t->bytes);
                tensor_fill_normal(t, 50 + (uint64_t)i, 1, 0.3);
            }
            a.k64 = tensor_f64(&a.k); a.v64 = tensor_f64(&a.v);
            a.d.k = a.k.data; a.d.v = a.v.data;
            a.d.k_layout = a.k.layout; a.d.v_layout = a.v.layout;
            if (kind == PACKED) att_blocks(&a, 3, 4, 0.7, 5);
            const unsigned long long before = device_boxes();
            if (kind == HEADS) /* others than the first; parts that begin anywhere */
                for (a.d.head_count = 1; a.d.head_begin < 8; a.d.head_begin += a.d.head_count, a.d.head_count = 3 - a.d.head_count % 2) {
                    if (a.d.head_begin + a.d.head_count > 8) a.d.head_count = 8 - a.d.head_begin;
                    att_run(&a);
                }
            a.d.head_begin = a.d.head_count = 0;
            if (kind != HEADS) att_run(&a);
            const unsigned long long count = device_boxes() - before;
            const double e = att_check(&a, 20, -1, lse_bound(&a), lse_bound(&a)), bound = out_bound(&a);
            if (!(e <= bound)) fail_msg("boxes %d %d: %g, more than %g", n, kind, e, bound);
            if (arch != 90 || !has_boxes || kind == BROADCAST) assert_int_equal(count, 0);
            else if (count < 2 * 8) fail_msg("boxes %d %d: only %llu", n, kind, count);
            mem_done();
        }
}

/* Parts may be missing: order without offsets, offsets without order, no map. */
static void optional_parts(void **state)
{
    (void)state;
    shape s = {1, 2, 1, 130, 150, 32};
    for (int part = 0; part < 16; ++part) {
        if (TEST_SLOW_BUILD && part % 3) continue;
        att a = att_new(s, part % 2 ? bf16x4 : f32x4, BHSD, 0, 8);
        att_blocks(&a, 7, 9, 0.5, 4);
        att_without(&a, part);
        att_test(&a, 60, "optional parts", part);
    }
}

/* A range of heads writes only these heads, and the same bits. */
static void head_range(void **state)
{
    (void)state;
    shape s = {2, 4, 2, 70, 90, 40};
    att whole = att_new(s, bf16x4, BSHD, 0, 8);
    att_blocks(&whole, 5, 6, 0.5, 4);
    att_run(&whole);
    for (int begin = 0; begin < 8; ++begin)
        for (int count = 1; begin + count <= 8; count += 2) {
            int keep = test_mem_count;
            att a = whole;
            if (TEST_SLOW_BUILD && (begin + count) % 3) continue;
            a.out = tensor_new(2, 4, 70, 40, SVG2_BF16, BSHD);
            a.d.out = a.out.data;
            a.d.lse = (float *)mem_new(8 * 70 * 4);
            a.d.head_begin = begin;
            a.d.head_count = count;
            att_run(&a);
            for (int h = 0; h < 8; ++h)
                for (int i = 0; i < 70; ++i) {
                    size_t at = (size_t)tensor_at(&a.out, h / 4, h % 4, i, 0);
                    if (h >= begin && h < begin + count) {
                        assert_memory_equal((uint16_t *)a.out.data + at, (uint16_t *)whole.out.data + at, 40 * 2);
                        assert_memory_equal(a.d.lse + h * 70 + i, whole.d.lse + h * 70 + i, 4);
                    } else {
                        assert_untouched((uint16_t *)a.out.data + at, 40 * 2);
                        assert_untouched(a.d.lse + h * 70 + i, 4);
                    }
                }
            assert_int_equal(mem_release(keep), 0);
        }
    mem_done();
}

/* Any finite scale: 0, negative, logits of +-1e4 (no overflow, the largest wins). */
static void scales(void **state)
{
    (void)state;
    static const float all[] = {100.0f, 1.0f, 1e-6f, 0.3f, 0.0f, -0.2f, -100.0f, 1e-42f, 3e38f};
    for (int i = 0; i < COUNT(all); ++i)
        for (int type = 0; type < 2; ++type) {
            shape s = {1, 1, 1, 50, 150, 64};
            att a = att_new(s, type ? f32x4 : bf16x4, BHSD, 1, 8);
            a.d.scale = all[i];
            a.d.key_mean = att_key_mean(&a);
            if (i == 8) a.d.scale = -3e38f, a.d.lse = 0;
            att_run(&a);
            const double *out = tensor_f64(&a.out);
            for (int n = 0; n < 50 * 64; ++n) assert_true(i == 8 || isfinite(out[n]));
            /* the bounds are for logits of about 1; these go to 20 with scale 1, and f32 inputs are rounded */
            if (fabsf(all[i]) <= (type ? 0.3f : 1.0f)) assert_at_most(att_check(&a, 50, -1, lse_bound(&a), lse_bound(&a)), type && all[i] != 0 ? 2 * OUT_BF16 : OUT_BF16);
            mem_done();
        }
}

/* A NaN in one query row stays there; a NaN value reaches the rows that see the key, and no other: neither those whose last tile
   ends before it (0 * NaN) nor those of other items. */
static void nan_stays(void **state)
{
    (void)state;
    for (int where = 0; where < 7; ++where)
        for (int type = 0; type < 2; ++type) {
            shape s = {1, 1, 1, 190, 200, 24};
            att a = att_new(s, type ? bf16x4 : f32x4, BHSD, 0, 3);
            att_blocks(&a, 4, 6, 0.5, 7);
            int bad_token = where == 6 ? a.kb.order[0] : 37;
            double bad = where % 2 ? (double)INFINITY : (double)NAN;
            tensor *t = where < 2 ? &a.q : where < 4 ? &a.k : &a.v;
            tensor_put(t, tensor_at(t, 0, 0, bad_token, 5), bad);
            att_run(&a);
            const double *out = tensor_f64(&a.out);
            for (int i = 0; i < s.Sq; ++i) {
                int sees = where < 2 ? i == 37 : a.map[a.qb.label[i] * 6 + a.kb.label[bad_token]], broken = 0;
                for (int d = 0; d < 24; ++d) broken += !isfinite(out[i * 24 + d]);
                if (!sees) assert_int_equal(broken, 0);
                else if (where == 0 || where == 2) { /* NaN logits */
                    int attends = 0;
                    for (int c = 0; c < 6; ++c) attends += a.map[a.qb.label[i] * 6 + c] && a.kb.offset[c + 1] > a.kb.offset[c];
                    if (attends) assert_int_equal(broken, 24);
                } else if (where >= 4) assert_int_equal(broken, 1);
            }
            mem_done();
        }
}

/* ---- tails ------------------------------------------------------------------------------------ */
/* What a tail needs, from the CPU backend. The virtual keys err like f32 keys; the product with A_I has bf16 operands in either
   case: a part of the output (these tests: under a third) with an error of 1.5 u. */
#define TAIL_F16 1e-3
static int tail_plain; /* ln n_j instead of the log mass */
static void tail_case(shape s, int Cq, int Ck, int text, const svg2_dtype *types, tensor_order order, double filled, double mean, uint64_t seed,
                      int number)
{
    svg2_backend cpu = svg2_cpu_backend_simd(0, SVG2_SIMD_SCALAR);
    att a = att_new(s, types, order, mean, seed);
    svg2_tail_desc td = att_tail(&a, Cq, Ck, text, filled, seed, tail_plain, &cpu);
    double bound = is_f16(&a) ? TAIL_F16 : OUT_BF16, e;
    att_run(&a);
    e = att_check(&a, TEST_SLOW_BUILD ? 12 : 40, 0, lse_bound(&a), lse_bound(&a));
    if (getenv("TEST_SHOW")) print_message("order 0, %d: %.2g of %.2g\n", number, e, bound);
    if (!(e <= bound)) fail_msg("order 0, %d: %g", number, e);

    while (att_next_heads(&a, &td, &cpu)) att_run(&a);
    e = att_check(&a, TEST_SLOW_BUILD ? 12 : 40, 1, lse_bound(&a), lse_bound(&a));
    if (getenv("TEST_SHOW")) print_message("order 1, %d: %.2g of %.2g\n", number, e, bound);
    if (!(e <= bound)) fail_msg("order 1, %d: %g", number, e);
    mem_done();
}
static void tails(void **state)
{
    (void)state;
    static const svg2_dtype mixed[4] = {SVG2_F32, SVG2_F16, SVG2_BF16, SVG2_F32}, half[4] = {SVG2_BF16, SVG2_F16, SVG2_F16, SVG2_F32};
    shape a = {1, 1, 1, 7, 5, 8}, b = {2, 4, 1, 70, 137, 40}, c = {1, 2, 2, 300, 200, 64}, d = {1, 2, 1, 65, 500, 72}, e = {1, 1, 1, 130, 150, 256},
          f = {1, 2, 2, 150, 257, 128};
    if (TEST_SLOW_BUILD && arch == 90) b.B = 1, b.H = 2;
    tail_plain = 1; /* without svg2_score */
    tail_case(b, 9, 16, 1, f32x4, BSHD, 0.3, 0, 2, 0);
    tail_case(d, 7, 40, 0, bf16x4, BHSD, 0.2, 4, 6, 1); /* keys with their mean, virtual keys without */
    tail_plain = 0;
    tail_case(a, 2, 3, 0, f32x4, BHSD, 0.5, 0, 1, 2);
    tail_case(c, 12, 33, 1, bf16x4, BHSD, 0.2, 0, 4, 3);
    tail_case(e, 3, 20, 1, mixed, BSHD, 0.4, 0, 7, 4);
    tail_case(f, 6, 30, 1, half, BHSD, 0, 2, 9, 5); /* no exact block at all, but text */
    if (TEST_SLOW_BUILD) return;
    tail_case(b, 9, 16, 1, half, BSHD, 0.3, 3, 2, 6);
    tail_case(b, 5, 300, 0, mixed, GAPS, 0.1, 0, 3, 7); /* more clusters than keys */
    tail_case(b, 2, 1100, 0, f16x4, GAPS, 0.1, 0, 3, 8); /* and than a list holds */
    tail_case(c, 1, 1, 0, f32x4, BHSD, 0, 0, 5, 9); /* the tail alone */
    tail_case(d, 7, 40, 0, f32x4, BHSD, 0.2, 4, 6, 10);
    tail_case(f, 6, 30, 0, f32x4, BSHD, 1, 0, 8, 11); /* nothing skipped */
}

/* ---- same bits ---------------------------------------------------------------------------------- */
/* Under every order of threads and blocks and of the completion of copies; and with 2, 3 and 4 tiles in the ring. */
static void same_bits(void **state)
{
    (void)state;
    static const char *threads[] = {"rr", "first", "last", "random"}, *copies[] = {"early", "late", "mixed"};
    static const int models[] = {80, 86, 90};
    for (int n = 0; n < (arch == 90 ? 5 : 3); ++n) {
        uint64_t want = 0;
        for (int run = 0; run < (TEST_SLOW_BUILD ? 6 : arch == 90 ? 12 : 24); ++run) {
            shape s = {1, 2, 1, n == 2 ? 60 : n == 3 ? 330 : 150, n == 3 ? 300 : 150, n == 0 ? 64 : n == 1 || n == 3 ? 128 : n == 4 ? 96 : 256};
            if (TEST_SLOW_BUILD && n && n != 3) continue;
            if (n == 3 && arch != 90) continue;
            att a = att_new(s, n ? bf16x4 : f32x4, BHSD, 1, 3);
            const int Qb = n == 3 ? 2 : 5; /* 3: items of more than 64 rows, several tiles */
            att_blocks(&a, Qb, 7, n == 3 ? 0.8 : 0.4, 6);
            float *table = (float *)mem_new((size_t)(7 * s.D) * 4), *matrix = (float *)mem_new((size_t)(2 * 5 * s.D * s.D) * 4);
            uint64_t r = 5;
            for (int i = 0; i < 7 * s.D; ++i) table[i] = (float)rnd_normal(&r);
            for (int i = 0; i < 2 * 5 * s.D * s.D; ++i) matrix[i] = 0.1f * (float)rnd_normal(&r);
            a.d.key_mean = att_key_mean(&a);
            a.d.tail_query_blocks = Qb; a.d.tail_key_blocks = 7;
            a.d.key_centroid = a.d.value_mean = table;
            a.d.tail_matrix = matrix;
            device_schedule(threads[run % 4], copies[run / 4 % 3], (unsigned)run + 1);
            device_model(arch == 90 ? 90 : models[run % 3]);
            att_run(&a);
            uint64_t got = mem_hash(a.out.data, a.out.bytes) ^ mem_hash(a.d.lse, (size_t)(2 * s.Sq) * 4);
            if (!run) want = got;
            if (got != want) fail_msg("other bits with %s, %s, model %d", threads[run % 4], copies[run / 4 % 3], arch == 90 ? 90 : models[run % 3]);
            mem_done();
        }
    }
    device_schedule("rr", "late", 1);
    device_model(90);
}

/* ---- merging ------------------------------------------------------------------------------------ */
static void merge(void **state)
{
    (void)state;
    static const struct { int64_t rows; int32_t dim; } cases[] = {{0, 4}, {1, 1}, {7, 3}, {65, 40}, {300, 128}};
    svg2_error err;
    for (int n = 0; n < COUNT(cases); ++n)
        for (int alias = 0; alias < 3; ++alias) {
            size_t rows = (size_t)cases[n].rows, count = rows * (size_t)cases[n].dim;
            float *x[4] = {(float *)mem_new(count * 4), (float *)mem_new(rows * 4), (float *)mem_new(count * 4), (float *)mem_new(rows * 4)};
            float *want = (float *)mem_new(count * 4), *want_lse = (float *)mem_new(rows * 4), *got = (float *)mem_new(count * 4), *got_lse = (float *)mem_new(rows * 4);
            uint64_t r = (uint64_t)n;
            for (size_t i = 0; i < count; ++i) x[0][i] = (float)rnd_normal(&r), x[2][i] = (float)rnd_normal(&r);
            for (size_t i = 0; i < rows; ++i) {
                x[1][i] = i % 5 == 3 ? -INFINITY : (float)(3 * rnd_normal(&r));
                x[3][i] = i % 7 == 3 ? -INFINITY : (float)(3 * rnd_normal(&r));
                for (int d = 0; d < cases[n].dim && i % 5 == 3; ++d) x[0][i * (size_t)cases[n].dim + (size_t)d] = NAN; /* an empty side counts nothing */
            }
            assert_ok(svg2_merge(x[0], x[1], x[2], x[3], want, want_lse, cases[n].rows, cases[n].dim, &err));
            float *d[4] = {(float *)device_copy(x[0], count * 4), (float *)device_copy(x[1], rows * 4), (float *)device_copy(x[2], count * 4), (float *)device_copy(x[3], rows * 4)};
            float *out = alias == 1 ? d[0] : alias == 2 ? d[2] : (float *)device_new(count * 4), *lse = alias == 1 ? d[1] : alias == 2 ? d[3] : (float *)device_new(rows * 4);
            svg2_result result = svg2_cuda_merge(0, d[0], d[1], d[2], d[3], out, lse, cases[n].rows, cases[n].dim, &err);
            if (result != SVG2_OK) fail_msg("svg2_cuda_merge: %s", err.text);
            device_read(got, out, count * 4);
            device_read(got_lse, lse, rows * 4);
            for (size_t i = 0; i < count; ++i) assert_true(fabsf(got[i] - want[i]) <= 1e-6f * fabsf(want[i]));
            for (size_t i = 0; i < rows; ++i) assert_true(got_lse[i] == want_lse[i] || fabsf(got_lse[i] - want_lse[i]) <= 1e-6f * (1 + fabsf(want_lse[i])));
            device_reset();
            mem_done();
        }
    float o[4] = {0}, l[1] = {0};
    assert_true(error_names(&err, svg2_cuda_merge(0, 0, l, o, l, o, l, 1, 4, &err), SVG2_ERR_NULL, "out_a"));
    assert_true(error_names(&err, svg2_cuda_merge(0, o, 0, o, l, o, l, 1, 4, &err), SVG2_ERR_NULL, "lse_a"));
    assert_true(error_names(&err, svg2_cuda_merge(0, o, l, 0, l, o, l, 1, 4, &err), SVG2_ERR_NULL, "out_b"));
    assert_true(error_names(&err, svg2_cuda_merge(0, o, l, o, 0, o, l, 1, 4, &err), SVG2_ERR_NULL, "lse_b"));
    assert_true(error_names(&err, svg2_cuda_merge(0, o, l, o, l, 0, l, 1, 4, &err), SVG2_ERR_NULL, "out"));
    assert_true(error_names(&err, svg2_cuda_merge(0, o, l, o, l, o, 0, 1, 4, &err), SVG2_ERR_NULL, "lse"));
    assert_true(error_names(&err, svg2_cuda_merge(0, o, l, o, l, o, l, -1, 4, &err), SVG2_ERR_RANGE, "rows"));
    assert_true(error_names(&err, svg2_cuda_merge(0, o, l, o, l, o, l, 1, 0, &err), SVG2_ERR_RANGE, "dim"));
}

#define ALL \
    TEST(dense), TEST(block_maps), TEST(block_sizes), TEST(many_blocks), TEST(in_place), TEST(boxes), \
    TEST(optional_parts), TEST(head_range), TEST(scales), TEST(nan_stays), TEST(tails), TEST(same_bits), TEST(merge)
int main(int argc, char **argv)
{
    const char *name = argc > 0 ? argv[0] : "", *last = strrchr(name, '/');
    if (last) name = last + 1;
    has_boxes = device_is_emulated() && (strncmp(name, "tma_", 4) == 0 || strncmp(name, "multicast_", 10) == 0);
    const struct CMUnitTest tests[] = {ALL}, all[] = {
        ALL, WGMMA(dense), WGMMA(dense_sizes), WGMMA(block_maps), WGMMA(block_sizes), WGMMA(many_blocks),
        WGMMA(in_place), WGMMA(boxes), WGMMA(optional_parts), WGMMA(head_range), WGMMA(scales), WGMMA(nan_stays),
        WGMMA(tails), WGMMA(same_bits)};
    return has_wgmma() ? cmocka_run_group_tests_name("cuda_attention", all, 0, 0) : cmocka_run_group_tests_name("cuda_attention", tests, 0, 0);
}
