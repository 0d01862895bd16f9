/* >>attention: dense, block maps, tails, merging of partial results, all against float64. */
#include "test.h"
#include "attention.h"

static void att_run(att *a, const svg2_backend *backend)
{
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_ATTENTION, &a->d);
    svg2_result r = svg2_attention(backend, &a->d, mem_new(bytes), bytes, &a->err);
    if (r != SVG2_OK) fail_msg("svg2_attention: %s (%s: %s)", svg2_result_string(r), a->err.field, a->err.text);
    assert_true(tensor_gaps_untouched(&a->out));
    assert_true(a->q.hash == mem_hash(a->q.data, a->q.bytes) && a->k.hash == mem_hash(a->k.data, a->k.bytes)
                && a->v.hash == mem_hash(a->v.data, a->v.bytes));
}
static double att_lse_bound = 1e-5;
static double bound_of(svg2_dtype out, double f32) { return out == SVG2_BF16 ? 4e-3 : out == SVG2_F16 && f32 < 6e-4 ? 6e-4 : f32; }

static void test_dense_large(void **state)
{
    (void)state;
    int S = TEST_SLOW_BUILD ? 512 : 4096;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int mean = 0; mean <= 8; mean += 8) {
            shape s = {1, 1, 1, 256, S, 128};
            if (level == SVG2_SIMD_AVX2 || level == SVG2_SIMD_AVX512) s.Sq = S;
            att a = att_new(s, f32x4, BHSD, mean, 3);
            a.d.key_mean = att_key_mean(&a);
            att_run(&a, &backend);
            assert_at_most(att_check(&a, 256, -1, att_lse_bound, 1e-6), 5e-6);
            mem_done();
        }
    }
}

static void test_dense_shapes(void **state)
{
    (void)state;
    static const int sizes[] = {1, 7, 63, 65, 997, 4099}, dims[] = {8, 40, 64, 72, 96, 128, 256};
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int i = 0; i < COUNT(sizes); ++i)
            for (int j = 0; j < COUNT(dims); ++j) {
                shape s = {1 + (i + j) % 2, 4, j % 2 ? 1 : 4, sizes[i], sizes[(i + j) % COUNT(sizes)], dims[j]};
                svg2_dtype types[4];
                for (int t = 0; t < 4; ++t) types[t] = (svg2_dtype)((i * 7 + j * (t + 1) + t) % 3);
                if ((double)s.Sq * s.Sk * s.D > (TEST_SLOW_BUILD ? 4e6 : level == SVG2_SIMD_SCALAR ? 3e7 : 3e8)) s.Sq = 65;
                if (s.Sk > 500 && (s.Sq > 500 || TEST_SLOW_BUILD)) s.B = s.H = s.Hk = 1;
                att a = att_new(s, types, (tensor_order)((i + j) % 3), 0, (uint64_t)(i * 10 + j));
                if (j % 3 == 0) a.d.lse = 0;
                att_run(&a, &backend);
                double e = att_check(&a, TEST_SLOW_BUILD ? 12 : 40, -1, att_lse_bound, 1e-6);
                if (!(e <= bound_of(types[3], 5e-6))) fail_msg("%g at B%d H%d/%d S%d/%d D%d level %d", e, s.B, s.H, s.Hk, s.Sq, s.Sk, s.D, level);
                mem_done();
            }
    }
}

static void test_block_maps(void **state)
{
    (void)state;
    static const shape shapes[] = {{1, 1, 1, 1, 1, 8},    {2, 4, 1, 7, 65, 40},   {1, 4, 4, 63, 7, 64},    {2, 2, 2, 65, 63, 72},
                                   {1, 4, 2, 997, 300, 96}, {1, 2, 1, 300, 997, 128}, {1, 1, 1, 130, 257, 256}, {1, 2, 2, 4099, 513, 64}};
    static const int grid[][2] = {{1, 1}, {3, 5}, {16, 16}, {9, 80}, {70, 31}};
    static const double filled[] = {0.3, 1, 0, 0.05, 0.8};
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int i = 0; i < COUNT(shapes); ++i)
            for (int j = 0; j < 5; ++j) {
                svg2_dtype types[4];
                for (int t = 0; t < 4; ++t) types[t] = j == 0 ? SVG2_F32 : (svg2_dtype)((i + j * (t + 1)) % 3);
                if (TEST_SLOW_BUILD && shapes[i].Sq > 500 && (j > 1 || shapes[i].Sq > 1000)) continue;
                att a = att_new(shapes[i], types, (tensor_order)((i + j) % 3), j == 3 ? 4 : 0, (uint64_t)(i * 10 + j));
                att_blocks(&a, grid[j][0], grid[j][1], filled[j], (uint64_t)(i + 100 * j));
                if (j == 3) a.d.key_mean = att_key_mean(&a);
                att_run(&a, &backend);
                double e = att_check(&a, TEST_SLOW_BUILD ? 12 : 50, -1, att_lse_bound, 1e-6);
                if (!(e <= bound_of(types[3], 5e-6))) fail_msg("%g at shape %d grid %d level %d", e, i, j, level);
                mem_done();
            }
    }
}

/* Parts may be missing: order without offsets, offsets without order, no map. */
static void test_optional_parts(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    shape s = {1, 2, 1, 130, 150, 32};
    for (int part = 0; part < 16; ++part) {
        att a = att_new(s, f32x4, BHSD, 0, 8);
        att_blocks(&a, 7, 9, 0.5, 4);
        att_without(&a, part);
        att_run(&a, &backend);
        assert_at_most(att_check(&a, 130, -1, att_lse_bound, 1e-6), 5e-6);
        mem_done();
    }
}

/* A range of heads writes only these heads. */
static void test_head_range(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    shape s = {2, 4, 2, 70, 90, 40};
    att whole = att_new(s, f32x4, BSHD, 0, 8);
    att_blocks(&whole, 5, 6, 0.5, 4);
    att_run(&whole, &backend);
    for (int begin = 0; begin < 8; ++begin)
        for (int count = 1; begin + count <= 8; count += 2) {
            int keep = test_mem_count;
            att a = whole;
            a.out = tensor_new(2, 4, 70, 40, SVG2_F32, BSHD);
            a.d.out = a.out.data;
            a.d.lse = (float *)mem_new(8 * 70 * 4);
            a.d.head_begin = begin;
            a.d.head_count = count;
            att_run(&a, &backend);
            for (int h = 0; h < 8; ++h)
                for (int i = 0; i < 70; ++i) {
                    size_t at = (size_t)tensor_at(&a.out, h / 4, h % 4, i, 0);
                    if (h >= begin && h < begin + count) {
                        assert_memory_equal((float *)a.out.data + at, (float *)whole.out.data + at, 40 * 4);
                        assert_memory_equal(a.d.lse + h * 70 + i, whole.d.lse + h * 70 + i, 4);
                    } else {
                        assert_untouched((float *)a.out.data + at, 40 * 4);
                        assert_untouched(a.d.lse + h * 70 + i, 4);
                    }
                }
            assert_int_equal(mem_release(keep), 0);
        }
}

/* Logits of +-1e4: no overflow, the largest wins. Scale is used as given, negative too. */
static void test_extreme_logits(void **state)
{
    (void)state;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        static const float scales[] = {100.0f, 1.0f, 1e-6f, 0.3f};
        for (int i = 0; i < COUNT(scales); ++i) {
            shape s = {1, 1, 1, 50, 333, 64};
            att a = att_new(s, f32x4, BHSD, 0, 8);
            a.d.scale = scales[i];
            att_run(&a, &backend);
            const double *out = tensor_f64(&a.out);
            for (int n = 0; n < 50 * 64; ++n) assert_true(isfinite(out[n]));
            if (scales[i] <= 1) assert_at_most(att_check(&a, 50, -1, att_lse_bound, 1e-6), scales[i] < 1 ? 5e-6 : 5e-5); /* logits to 100: f32 dot products round */
            mem_done();
        }
    }
}

/* Order 0 and order 1, stage by stage: score, tail in groups of heads, attention. */
static int tail_plain; /* ln n_j instead of the log mass */
static void tail_case(shape s, int Cq, int Ck, int text, const svg2_dtype *types, tensor_order order, double filled, double mean,
                      uint64_t seed, const svg2_backend *backend)
{
    att a = att_new(s, types, order, mean, seed);
    svg2_tail_desc td = att_tail(&a, Cq, Ck, text, filled, seed, tail_plain, backend);
    att_run(&a, backend);
    double bound = has_bf16_tail(backend) ? BF16_TAIL_OUT : 2e-5;
    att_lse_bound = has_bf16_tail(backend) ? BF16_TAIL_LSE : 1e-5;
    double e = att_check(&a, 40, 0, att_lse_bound, 1e-6);
    if (!(e <= bound_of(types[3], bound))) fail_msg("order 0: %g at S%d/%d D%d C%d/%d", e, s.Sq, s.Sk, s.D, Cq, Ck);

    while (att_next_heads(&a, &td, backend)) {
        const int begin = td.head_begin;
        for (int h = 0; h < td.head_count; ++h) /* nothing skipped: zero */
            for (int I = 0; I < Cq; ++I) {
                int skipped = 0, hk = (begin + h) / s.H * s.Hk + (begin + h) % s.H / (s.H / s.Hk);
                for (int c = 0; c < Ck; ++c)
                    skipped += !a.map[((begin + h) * (Cq + text) + I) * (Ck + text) + c] && a.kb.offset[hk * (Ck + text + 1) + c + 1] > a.kb.offset[hk * (Ck + text + 1) + c];
                if (!skipped) assert_true(is_fill(td.matrix + ((int64_t)h * Cq + I) * s.D * s.D, (size_t)(s.D * s.D) * 4, 0));
            }
        att_run(&a, backend);
    }
    e = att_check(&a, 40, 1, att_lse_bound, 1e-6);
    if (!(e <= bound_of(types[3], bound))) fail_msg("order 1: %g at S%d/%d D%d C%d/%d", e, s.Sq, s.Sk, s.D, Cq, Ck);
    att_lse_bound = 1e-5;
    mem_done();
}
static void test_tails(void **state)
{
    (void)state;
    static const svg2_dtype mixed[4] = {SVG2_F32, SVG2_F16, SVG2_BF16, SVG2_F32}, bf16[4] = {SVG2_BF16, SVG2_BF16, SVG2_BF16, SVG2_BF16};
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        shape a = {1, 1, 1, 7, 5, 8}, b = {2, 4, 1, 130, 257, 40}, c = {1, 2, 2, 300, 300, 64}, d = {1, 2, 1, 65, 997, 72}, e = {1, 1, 1, 200, 150, 256}, f = {1, 2, 2, 150, 513, 128};
        tail_plain = 1; /* without svg2_score */
        tail_case(b, 9, 16, 1, f32x4, BSHD, 0.3, 0, 2, &backend);
        tail_case(d, 7, 40, 0, mixed, BHSD, 0.2, 8, 6, &backend);
        tail_plain = 0;
        tail_case(a, 2, 3, 0, f32x4, BHSD, 0.5, 0, 1, &backend);
        tail_case(b, 9, 16, 1, f32x4, BSHD, 0.3, 0, 2, &backend);
        tail_case(b, 5, 300, 0, mixed, GAPS, 0.1, 0, 3, &backend); /* more clusters than keys */
        tail_case(c, 12, 33, 1, bf16, BHSD, 0.2, 0, 4, &backend);
        tail_case(c, 1, 1, 0, f32x4, BHSD, 0, 0, 5, &backend); /* no exact block at all */
        tail_case(d, 7, 40, 0, f32x4, BHSD, 0.2, 8, 6, &backend);
        tail_case(e, 3, 20, 1, mixed, BSHD, 0.4, 0, 7, &backend);
        tail_case(f, 6, 30, 0, f32x4, BSHD, 1, 0, 8, &backend); /* nothing skipped */
        tail_case(f, 6, 30, 1, f32x4, BHSD, 0, 2, 9, &backend);
    }
}

static void test_attention_threads_same_bits(void **state)
{
    (void)state;
    uint64_t want = 0;
    for (int run = 0; run < 6; ++run) {
        int32_t threads = run ? run : 1;
        uint64_t seed = (uint64_t)run;
        svg2_parallel p = run >= 4 ? pool_scattered(&seed) : pool_threads(&threads);
        svg2_backend backend = svg2_cpu_backend(run ? &p : 0);
        shape s = {1, 2, 1, 700, 300, 64};
        att a = att_new(s, f32x4, BHSD, 1, 3);
        att_blocks(&a, 11, 17, 0.4, 6);
        att_run(&a, &backend);
        uint64_t got = mem_hash(a.out.data, a.out.bytes) ^ mem_hash(a.d.lse, 1400 * 4);
        if (!run) want = got;
        assert_true(got == want);
        mem_done();
    }
}

/* A NaN in one query row stays there; a NaN value reaches the rows that see the key, and no other. */
static void test_nan_stays(void **state)
{
    (void)state;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int where = 0; where < 6; ++where) {
            shape s = {1, 1, 1, 90, 100, 24};
            att a = att_new(s, f32x4, BHSD, 0, 3);
            att_blocks(&a, 4, 6, 0.5, 7);
            double bad = where % 2 ? (double)INFINITY : (double)NAN;
            tensor *t = where < 2 ? &a.q : where < 4 ? &a.k : &a.v;
            tensor_put(t, tensor_at(t, 0, 0, 37, 5), bad);
            t->hash = mem_hash(t->data, t->bytes);
            att_run(&a, &backend);
            const double *out = tensor_f64(&a.out);
            for (int i = 0; i < 90; ++i) {
                int sees = where < 2 ? i == 37 : a.map[a.qb.label[i] * 6 + a.kb.label[37]], broken = 0;
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
}

/* ---- merge -------------------------------------------------------------------------------- */
static void test_merge_is_whole(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    shape s = {1, 2, 2, 60, 200, 40};
    att whole = att_new(s, f32x4, BHSD, 0, 5);
    att_run(&whole, &backend);
    for (int cut = 0; cut <= 200; cut += 40) {
        att part[2];
        float *o = (float *)mem_new(2 * 60 * 40 * 4), *l = (float *)mem_new(2 * 60 * 4);
        for (int i = 0; i < 2; ++i) {
            int32_t *offset = (int32_t *)mem_new(2 * 3 * 4), *order = (int32_t *)mem_new(2 * 200 * 4);
            uint8_t *map = (uint8_t *)mem_new(2 * 2);
            for (int h = 0; h < 2; ++h) {
                offset[h * 3] = 0; offset[h * 3 + 1] = cut; offset[h * 3 + 2] = 200;
                for (int t = 0; t < 200; ++t) order[h * 200 + t] = (t * 37 + 11) % 200; /* any 2 disjoint sets */
                map[h * 2 + i] = 1;
                map[h * 2 + 1 - i] = 0;
            }
            part[i] = att_new(s, f32x4, BHSD, 0, 5);
            part[i].d.key_blocks = 2; part[i].d.key_offset = offset; part[i].d.key_order = order; part[i].d.map = map;
            part[i].d.query_blocks = 1;
            att_run(&part[i], &backend);
        }
        const float *a = (const float *)part[0].out.data, *b = (const float *)part[1].out.data;
        float *la = part[0].d.lse, *lb = part[1].d.lse;
        assert_ok(svg2_merge(a, la, b, lb, o, l, 120, 40, 0));
        rel_error e = {0, 0};
        for (int i = 0; i < 120 * 40; ++i) {
            double x = (double)o[i], y = (double)((float *)whole.out.data)[i];
            rel_add(&e, &x, &y, 1);
        }
        assert_at_most(rel_l2(e), 1e-6);
        for (int i = 0; i < 120; ++i) assert_at_most(fabs((double)l[i] - (double)whole.d.lse[i]), 2e-6);
        /* in place on either side: the same bits */
        float *x = (float *)mem_new(120 * 40 * 4), *y = (float *)mem_new(120 * 4);
        memcpy(x, a, 120 * 40 * 4);
        memcpy(y, la, 120 * 4);
        assert_ok(svg2_merge(x, y, b, lb, x, y, 120, 40, 0));
        assert_memory_equal(x, o, 120 * 40 * 4);
        assert_memory_equal(y, l, 120 * 4);
        memcpy(x, b, 120 * 40 * 4);
        memcpy(y, lb, 120 * 4);
        assert_ok(svg2_merge(a, la, x, y, x, y, 120, 40, 0));
        assert_memory_equal(x, o, 120 * 40 * 4);
        assert_memory_equal(y, l, 120 * 4);
    }
}

static void test_merge_empty(void **state)
{
    (void)state;
    enum { D = 3 };
    float full[D] = {1, 2, 3}, zero[D] = {0, 0, 0}, poison[D] = {NAN, NAN, NAN}, out[D];
    float lse = 0.7f, none = -INFINITY, huge = 1e30f, l;
    svg2_error err;
    assert_ok(svg2_merge(full, &lse, zero, &none, out, &l, 1, D, &err));
    assert_memory_equal(out, full, sizeof out);
    assert_true(l == lse);
    assert_ok(svg2_merge(poison, &none, full, &lse, out, &l, 1, D, &err)); /* contributes nothing, whatever it holds */
    assert_memory_equal(out, full, sizeof out);
    assert_true(l == lse);
    assert_ok(svg2_merge(poison, &none, poison, &none, out, &l, 1, D, &err));
    assert_memory_equal(out, zero, sizeof out);
    assert_true(isinf(l) && l < 0);
    assert_ok(svg2_merge(full, &huge, zero, &lse, out, &l, 1, D, &err)); /* no overflow */
    assert_memory_equal(out, full, sizeof out);
    assert_true(l == huge);
    assert_ok(svg2_merge(full, &lse, full, &lse, out, &l, 1, D, &err));
    assert_at_most(fabs((double)l - (double)lse - log(2)), 1e-6);
}

static void test_merge_rejects(void **state)
{
    (void)state;
    float o[4] = {0}, l[1] = {0}, x[4], y[1];
    svg2_error err;
    memset(x, 0xff, sizeof x);
    memset(y, 0xff, sizeof y);
    assert_true(error_names(&err, svg2_merge(0, l, o, l, x, y, 1, 4, &err), SVG2_ERR_NULL, "out_a"));
    assert_true(error_names(&err, svg2_merge(o, 0, o, l, x, y, 1, 4, &err), SVG2_ERR_NULL, "lse_a"));
    assert_true(error_names(&err, svg2_merge(o, l, 0, l, x, y, 1, 4, &err), SVG2_ERR_NULL, "out_b"));
    assert_true(error_names(&err, svg2_merge(o, l, o, 0, x, y, 1, 4, &err), SVG2_ERR_NULL, "lse_b"));
    assert_true(error_names(&err, svg2_merge(o, l, o, l, 0, y, 1, 4, &err), SVG2_ERR_NULL, "out"));
    assert_true(error_names(&err, svg2_merge(o, l, o, l, x, 0, 1, 4, &err), SVG2_ERR_NULL, "lse"));
    assert_true(error_names(&err, svg2_merge(o, l, o, l, x, y, -1, 4, &err), SVG2_ERR_RANGE, "rows"));
    assert_true(error_names(&err, svg2_merge(o, l, o, l, x, y, 1, 0, &err), SVG2_ERR_RANGE, "dim"));
    assert_untouched(x, sizeof x);
    assert_untouched(y, sizeof y);
}

static void test_attention_rejects(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    shape s = {1, 4, 2, 50, 60, 24};
    att a = att_new(s, f32x4, BHSD, 0, 5);
    att_blocks(&a, 4, 5, 0.5, 1);
    svg2_attention_desc good = a.d;
    size_t bytes = svg2_stage_workspace_bytes(&backend, SVG2_STAGE_ATTENTION, &good);
    char *work = (char *)mem_new(bytes + 64);
    float *some = (float *)mem_new(4096 * 4);
#define REJECT(change, code, name)                                                                                   \
    do {                                                                                                             \
        a.d = good;                                                                                                  \
        change;                                                                                                      \
        if (!error_names(&a.err, svg2_attention(&backend, &a.d, work, bytes, &a.err), code, name)) fail_msg("%s", #change); \
    } while (0)
    REJECT(a.d.batch = 0, SVG2_ERR_RANGE, "batch");
    REJECT(a.d.heads = 0, SVG2_ERR_RANGE, "heads");
    REJECT(a.d.heads_kv = -2, SVG2_ERR_RANGE, "heads_kv");
    REJECT(a.d.heads_kv = 3, SVG2_ERR_SHAPE, "heads_kv");
    REJECT(a.d.tokens = 0, SVG2_ERR_RANGE, "tokens");
    REJECT(a.d.tokens_kv = -1, SVG2_ERR_RANGE, "tokens_kv");
    REJECT(a.d.head_dim = 20, SVG2_ERR_RANGE, "head_dim");
    REJECT(a.d.head_begin = -1, SVG2_ERR_RANGE, "head_begin|head_count");
    REJECT((a.d.head_begin = 3, a.d.head_count = 2), SVG2_ERR_RANGE, "head_count");
    REJECT(a.d.scale = INFINITY, SVG2_ERR_RANGE, "scale");
    REJECT(a.d.q = 0, SVG2_ERR_NULL, "q");
    REJECT(a.d.k = 0, SVG2_ERR_NULL, "k");
    REJECT(a.d.v = 0, SVG2_ERR_NULL, "v");
    REJECT(a.d.out = 0, SVG2_ERR_NULL, "out");
    REJECT(a.d.q_layout.dtype = (svg2_dtype)-1, SVG2_ERR_DTYPE, "q");
    REJECT(a.d.out_layout.stride_token = 1, SVG2_ERR_STRIDE, "out");
    REJECT(a.d.k_layout.stride_head = -1, SVG2_ERR_STRIDE, "k");
    REJECT(a.d.query_blocks = -1, SVG2_ERR_RANGE, "query_blocks");
    REJECT(a.d.key_blocks = -1, SVG2_ERR_RANGE, "key_blocks");
    REJECT(a.d.query_offset = 0, SVG2_ERR_NULL, "query_offset");
    REJECT(a.d.key_offset = 0, SVG2_ERR_NULL, "key_offset");
    REJECT((a.d.tail_query_blocks = 4, a.d.tail_key_blocks = 5, a.d.value_mean = some), SVG2_ERR_NULL, "key_centroid");
    REJECT((a.d.tail_query_blocks = 4, a.d.tail_key_blocks = 5, a.d.key_centroid = some), SVG2_ERR_NULL, "value_mean");
    REJECT((a.d.tail_query_blocks = 5, a.d.tail_key_blocks = 5, a.d.key_centroid = a.d.value_mean = some), SVG2_ERR_RANGE, "tail_query_blocks");
    REJECT((a.d.tail_query_blocks = 4, a.d.tail_key_blocks = 6, a.d.key_centroid = a.d.value_mean = some), SVG2_ERR_RANGE, "tail_key_blocks");
    assert_true(error_names(&a.err, svg2_attention(&backend, &good, 0, bytes, &a.err), SVG2_ERR_NULL, "workspace"));
    assert_true(error_names(&a.err, svg2_attention(&backend, &good, work, bytes - 1, &a.err), SVG2_ERR_WORKSPACE, "workspace_bytes|workspace"));
    assert_true(error_names(&a.err, svg2_attention(&backend, &good, work + 16, bytes, &a.err), SVG2_ERR_ALIGN, "workspace"));
    assert_untouched(a.out.data, a.out.bytes);
    assert_untouched(good.lse, 4 * 50 * 4);
    assert_untouched(work, bytes + 64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_dense_large),     TEST(test_dense_shapes), TEST(test_block_maps),  TEST(test_optional_parts),
        TEST(test_head_range),      TEST(test_extreme_logits), TEST(test_tails),     TEST(test_attention_threads_same_bits),
        TEST(test_nan_stays),       TEST(test_merge_is_whole), TEST(test_merge_empty), TEST(test_merge_rejects),
        TEST(test_attention_rejects),
    };
    return cmocka_run_group_tests_name("attention", tests, 0, 0);
}
