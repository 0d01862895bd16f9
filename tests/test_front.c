/* >>front: norm and rotary positions beside the formulas in float64; tables; bad input. */
#include "test.h"
#include "front.h"

static const svg2_simd levels[] = {SVG2_SIMD_SCALAR, SVG2_SIMD_AVX2, SVG2_SIMD_AVX512, SVG2_SIMD_AVX512BF16};

static void run(front *f, const svg2_backend *b)
{
    svg2_error err;
    const size_t bytes = svg2_stage_workspace_bytes(b, SVG2_STAGE_FRONT, &f->d);
    void *work = mem_new(bytes);
    assert_true(f->c.has_mean || bytes == 0);
    svg2_result r = svg2_front(b, &f->d, work, bytes, &err);
    if (r != SVG2_OK) fail_msg("svg2_front: %s (%s: %s)", svg2_result_string(r), err.field, err.text);
}

static void formulas(void **state)
{
    (void)state;
    const int step = TEST_SLOW_BUILD ? 5 : 1;
    int n = 0;
    for (int D = 8; D <= 256; D += 8)
        for (int norm = 0; norm < 3; ++norm)
            for (int pairing = 0; pairing < 2; ++pairing)
                for (int rope = 0; rope < 4; ++rope, ++n) {
                    if (n % step) continue;
                    front_case c = {1 + n % 2, 1 + n % 5, 1 + n % 5, 1 + n * 7 % 41, D, 0, 0, (svg2_norm)norm, (svg2_pairing)pairing, (front_rope)rope, SVG2_F32, SVG2_F32, BHSD, BHSD, 0, 1, n % 3 == 0, 0, 0};
                    c.in = (svg2_dtype)(n / 2 % 3); c.out = (svg2_dtype)(n / 7 % 3);
                    c.in_order = (tensor_order)(n / 3 % 3); c.out_order = (tensor_order)(n / 5 % 3);
                    c.is_weighted = n % 4 != 3;
                    if (rope != OWN) c.Hkv = 1 + n % 3; /* need not divide H */
                    if (n % 11 == 5) c.left_out = 1;
                    if (n % 11 == 7) c.left_out = 2, c.has_mean = 0;
                    if (n % 3 && c.S > 3) c.begin = n % 3 == 1 ? 2 : 0, c.count = c.S - 3; /* text on both sides, or behind */
                    if (n % 5 == 4) c.epsilon = 0.5f;
                    front f = front_new(c, (uint64_t)n);
                    const svg2_backend b = svg2_cpu_backend_simd(0, levels[n / 4 % 4]);
                    run(&f, &b);
                    front_check(&f);
                    mem_done();
                }
}

static void in_place(void **state)
{
    (void)state;
    for (int n = 0; n < 54; ++n) {
        const front_case c = {2, 3, 3, 37, n % 2 ? 40 : 64, n % 5 ? 0 : 5, n % 5 ? 0 : 30, (svg2_norm)(n % 3), (svg2_pairing)(n / 3 % 2), n % 4 ? SHARED : OWN, (svg2_dtype)(n / 6 % 3), SVG2_F32, (tensor_order)(n / 18),
                              BHSD, 1, 1, 1, 0, 0};
        front f = front_new(c, (uint64_t)n);
        const svg2_backend b = svg2_cpu_backend_simd(0, levels[n % 4]);
        run(&f, &b);
        front_check(&f);
        mem_done();
    }
}

/* Q, K and V side by side in the output of one projection [B, S, 3, H, D]: V stays. */
static void fused_projection(void **state)
{
    (void)state;
    enum { S = 19, H = 3, D = 24 };
    const front_case c = {1, H, H, S, D, 0, 0, SVG2_NORM_TOKEN, SVG2_PAIRING_INTERLEAVED, SHARED, SVG2_BF16, SVG2_BF16, BSHD, BSHD, 1, 1, 0, 0, 0};
    front f = front_new(c, 4);
    const svg2_backend b = svg2_cpu_backend(0);
    uint16_t *qkv = (uint16_t *)mem_new(S * 3 * H * D * 2);
    for (int side = 0; side < 2; ++side) {
        for (int t = 0; t < S; ++t) memcpy(qkv + (t * 3 + side) * H * D, (uint16_t *)f.x[side].data + t * H * D, H * D * 2);
        svg2_layout *l = side ? &f.d.k_layout : &f.d.q_layout;
        l->stride_token = 3 * H * D; l->stride_batch = S * 3 * H * D;
    }
    f.d.q_out_layout = f.d.q_layout; f.d.k_out_layout = f.d.k_layout;
    f.d.q = f.d.q_out = qkv;
    f.d.k = f.d.k_out = qkv + H * D;
    run(&f, &b);
    for (int t = 0; t < S; ++t) {
        for (int side = 0; side < 2; ++side) memcpy((uint16_t *)f.x[side].data + t * H * D, qkv + (t * 3 + side) * H * D, H * D * 2);
        assert_untouched(qkv + (t * 3 + 2) * H * D, H * D * 2);
    }
    front_check(&f);
}

/* A layout of its own for text: weights and tables of a part of the tokens, by strides (HunyuanVideo's two streams). */
static void parts_of_the_tokens(void **state)
{
    (void)state;
    const front_case c = {2, 4, 4, 50, 64, 0, 41, SVG2_NORM_HEAD, SVG2_PAIRING_INTERLEAVED, SHARED, SVG2_F16, SVG2_F16, BSHD, BHSD, 0, 1, 0, 0, 0};
    front f = front_new(c, 9);
    const svg2_backend b = svg2_cpu_backend(0);
    svg2_front_desc whole = f.d;
    for (int part = 0; part < 2; ++part) {
        const int first = part ? 41 : 0;
        f.d = whole;
        f.d.tokens = part ? 9 : 41;
        f.d.video_count = 0;
        if (part) f.d.cosine = f.d.sine = 0;
        f.d.q_out_layout.stride_token = f.d.k_out_layout.stride_token = 64;
        f.d.q_out_layout.stride_head = f.d.k_out_layout.stride_head = 50 * 64;
        f.d.q_out_layout.stride_batch = f.d.k_out_layout.stride_batch = 4 * 50 * 64;
        f.d.q = (const uint16_t *)whole.q + first * f.x[0].st; f.d.k = (const uint16_t *)whole.k + first * f.x[1].st;
        f.d.q_out = (uint16_t *)whole.q_out + first * 64; f.d.k_out = (uint16_t *)whole.k_out + first * 64;
        run(&f, &b);
    }
    front_check(&f);
}

static void same_bits(void **state)
{
    (void)state;
    for (int n = 0; n < 6; ++n) {
        front_case c = {2, 4, 2, 777, 40, 11, 700, (svg2_norm)(n % 3), (svg2_pairing)(n % 2), SHARED, SVG2_BF16, SVG2_F16, BSHD, BHSD, 0, 1, n % 2, 0, 0};
        uint64_t hash[4] = {0, 0, 0, 0};
        for (int way = 0; way < 4; ++way) {
            int32_t threads = 4;
            uint64_t seed = 5;
            svg2_parallel p = way == 2 ? pool_scattered(&seed) : pool_threads(&threads);
            front f = front_new(c, 3);
            const svg2_backend b = svg2_cpu_backend(way ? &p : 0);
            run(&f, &b);
            if (way == 0) front_check(&f);
            hash[way] = mem_hash(f.y[0].data, f.y[0].bytes) * 31 + mem_hash(f.y[1].data, f.y[1].bytes) * 17 + (c.has_mean ? mem_hash(f.mean, f.mean_count * 4) : 0);
            assert_true(hash[way] == hash[0]);
            mem_done();
        }
        /* a head has the same bits alone */
        if (c.norm != SVG2_NORM_TOKEN) {
            front f = front_new(c, 3);
            const svg2_backend b = svg2_cpu_backend(0);
            run(&f, &b);
            uint16_t *before = (uint16_t *)mem_new(777 * 40 * 2);
            memcpy(before, (uint16_t *)f.y[1].data + 777 * 40, 777 * 40 * 2); /* head 1 of batch entry 0 */
            memset(f.y[1].data, 0xff, f.y[1].bytes);
            f.d.batch = f.d.heads = f.d.heads_kv = 1;
            f.d.q = 0;
            f.d.k = (const uint16_t *)f.x[1].data + f.x[1].sh;
            f.d.k_out = (uint16_t *)f.y[1].data + 777 * 40;
            float mean[40], *all = f.mean;
            if (all) f.d.key_mean = mean;
            run(&f, &b);
            assert_memory_equal(before, f.d.k_out, 777 * 40 * 2);
            if (all) assert_memory_equal(mean, all + 40, sizeof mean);
            assert_untouched(f.y[1].data, 777 * 40 * 2);
            mem_done();
        }
    }
}

/* A NaN or Inf spoils what its mean covers, and the key mean of its head is 0. */
static void nan_and_inf(void **state)
{
    (void)state;
    for (int n = 0; n < 48; ++n) {
        const svg2_norm norm = (svg2_norm)(n % 3);
        const double bad = n / 3 % 2 ? (double)NAN : (double)INFINITY;
        const front_case c = {2, 2, 2, 21, 24, 0, 0, norm, (svg2_pairing)(n / 6 % 2), SHARED, (svg2_dtype)(n / 12 % 2 + 1), (svg2_dtype)(n / 24 + 1), BHSD, GAPS, 0, 1, 1, 0, 0};
        const svg2_backend b = svg2_cpu_backend_simd(0, levels[n % 4]);
        front good = front_new(c, 6), f = front_new(c, 6);
        tensor_put(&f.x[1], tensor_at(&f.x[1], 1, 0, 20, 3), bad);
        run(&good, &b);
        run(&f, &b);
        int spoiled = 0;
        for (int bb = 0; bb < 2; ++bb)
            for (int h = 0; h < 2; ++h) {
                for (int t = 0; t < 21; ++t)
                    for (int d = 0; d < 24; ++d) {
                        const int64_t at = tensor_at(&f.y[1], bb, h, t, d);
                        const double x = tensor_get(&f.y[1], at), y = tensor_get(&good.y[1], at);
                        if (bb == 1 && t == 20 && (h == 0 || norm == SVG2_NORM_TOKEN)) spoiled += !(fabs(x) < 1e30);
                        else assert_true(x == y);
                    }
                for (int d = 0; d < 24; ++d) {
                    const float x = f.mean[(bb * 2 + h) * 24 + d];
                    if (bb == 1 && h == 0) assert_true(x == 0);
                    else if (norm != SVG2_NORM_TOKEN || bb == 0) assert_true(x == good.mean[(bb * 2 + h) * 24 + d]);
                }
            }
        assert_true(spoiled >= 1);
        if (norm != SVG2_NORM_NONE && isnan(bad)) assert_int_equal(spoiled, norm == SVG2_NORM_TOKEN ? 48 : 24);
        mem_done();
    }
}

/* Zero rows stay zero; rows whose squares overflow become small and not NaN. */
static void zeros(void **state)
{
    (void)state;
    const front_case c = {1, 2, 2, 5, 16, 0, 0, SVG2_NORM_HEAD, SVG2_PAIRING_HALF, SHARED, SVG2_F32, SVG2_BF16, BHSD, BHSD, 0, 0, 1, 0, 0};
    front f = front_new(c, 1);
    const svg2_backend b = svg2_cpu_backend(0);
    memset(f.x[1].data, 0, f.x[1].bytes);
    for (int i = 0; i < 16; ++i) ((float *)f.x[0].data)[i] = 1e30f;
    run(&f, &b);
    for (int i = 0; i < 160; ++i) assert_true(tensor_get(&f.y[1], i) == 0);
    for (size_t i = 0; i < f.mean_count; ++i) assert_true(f.mean[i] == 0);
    for (int i = 0; i < 160; ++i) assert_true(fabs(tensor_get(&f.y[0], i)) < 10);
}

/* ---- tables ---- */
static void tables(void **state)
{
    (void)state;
    static const struct { int frames, height, width, dim, axes[3], wanted[3]; float theta; } grids[] = {
        {3, 5, 4, 128, {0, 0, 0}, {44, 42, 42}, 0}, {2, 3, 7, 128, {16, 56, 56}, {16, 56, 56}, 256}, {1, 1, 1, 8, {0, 0, 0}, {4, 2, 2}, 0},
        {4, 1, 6, 64, {0, 0, 0}, {24, 20, 20}, 10000}, {1, 6, 1, 40, {0, 40, 0}, {0, 40, 0}, 100}, {5, 2, 3, 72, {24, 24, 24}, {24, 24, 24}, 0}, {9, 1, 1, 256, {256, 0, 0}, {256, 0, 0}, 0}};
    svg2_error err;
    for (int n = 0; n < COUNT(grids); ++n) {
        svg2_rope_desc d = SVG2_ZERO;
        d.frames = grids[n].frames; d.height = grids[n].height; d.width = grids[n].width; d.head_dim = grids[n].dim; d.theta = grids[n].theta;
        memcpy(d.axes, grids[n].axes, sizeof d.axes);
        const int tokens = d.frames * d.height * d.width, half = d.head_dim / 2;
        const size_t count = (size_t)(tokens * half);
        float *cosine = (float *)mem_new(count * 4), *sine = (float *)mem_new(count * 4);
        assert_ok(svg2_rope_table(&d, cosine, sine, count, &err));
        for (int t = 0; t < tokens; ++t) {
            const int at[3] = {t / (d.height * d.width), t / d.width % d.height, t % d.width};
            for (int axis = 0, i = 0; axis < 3; ++axis)
                for (int p = 0; p < grids[n].wanted[axis] / 2; ++p, ++i) {
                    const double angle = at[axis] / pow(d.theta > 0 ? (double)d.theta : 10000, 2.0 * p / grids[n].wanted[axis]);
                    assert_at_most(fabs((double)cosine[t * half + i] - cos(angle)), 6.1e-8);
                    assert_at_most(fabs((double)sine[t * half + i] - sin(angle)), 6.1e-8);
                }
        }
        assert_true(error_names(&err, svg2_rope_table(&d, cosine, sine, count - 1, &err), SVG2_ERR_WORKSPACE, "count"));
        mem_done();
    }
}

/* What RoPE is for: the logit of two tokens depends on where they stand to each other, not on where they stand. */
static void logits_know_distances_alone(void **state)
{
    (void)state;
    enum { F = 4, Y = 5, X = 6, S = F * Y * X, D = 48 };
    for (int pairing = 0; pairing < 2; ++pairing) {
        const front_case c = {1, 1, 1, S, D, 0, 0, SVG2_NORM_HEAD, (svg2_pairing)pairing, SHARED, SVG2_F32, SVG2_F32, BHSD, BHSD, 0, 1, 0, 0, 0};
        front f = front_new(c, 2);
        const svg2_backend b = svg2_cpu_backend(0);
        svg2_rope_desc r = SVG2_ZERO;
        svg2_error err;
        r.frames = F; r.height = Y; r.width = X; r.head_dim = D;
        assert_ok(svg2_rope_table(&r, f.table[0], f.table[1], f.table_count, &err));
        for (int side = 0; side < 2; ++side) /* the same query, and the same key, everywhere */
            for (int t = 1; t < S; ++t) memcpy((float *)f.x[side].data + t * D, f.x[side].data, D * 4);
        run(&f, &b);
        double least = INFINITY, most = -INFINITY;
        for (int i = 0; i < S; ++i)
            for (int j = 0; j < S; ++j) {
                const float *q = (float *)f.y[0].data + i * D, *k = (float *)f.y[1].data + j * D;
                const int step = (1 * Y + 1) * X + 1; /* one further on each axis */
                double here = 0, there = 0;
                for (int d = 0; d < D; ++d) here += (double)q[d] * (double)k[d];
                least = fmin(least, here);
                most = fmax(most, here);
                if (i % X == X - 1 || j % X == X - 1 || i / X % Y == Y - 1 || j / X % Y == Y - 1 || i / X / Y == F - 1 || j / X / Y == F - 1) continue;
                for (int d = 0; d < D; ++d) there += (double)q[step * D + d] * (double)k[step * D + d];
                assert_at_most(fabs(here - there), 1e-4);
            }
        assert_true(most - least > 5);
        mem_done();
    }
}

static void bad_input(void **state)
{
    (void)state;
    const front_case c = {2, 2, 2, 20, 16, 2, 10, SVG2_NORM_HEAD, SVG2_PAIRING_HALF, SHARED, SVG2_F32, SVG2_F32, BHSD, BHSD, 0, 1, 1, 0, 0};
    front f = front_new(c, 2);
    const svg2_backend b = svg2_cpu_backend(0);
    svg2_error err;
    const size_t bytes = svg2_stage_workspace_bytes(&b, SVG2_STAGE_FRONT, &f.d);
    void *work = mem_new(bytes);
#define BAD(change, code, name)                                                                       \
    do {                                                                                              \
        svg2_front_desc x = f.d;                                                                      \
        change;                                                                                       \
        if (!error_names(&err, svg2_front(&b, &x, work, bytes, &err), code, name)) fail_msg("%s", #change); \
        assert_untouched(f.y[0].data, f.y[0].bytes);                                                  \
        assert_untouched(f.y[1].data, f.y[1].bytes);                                                  \
        assert_untouched(f.mean, f.mean_count * 4);                                                   \
    } while (0)
    BAD(x.batch = 0, SVG2_ERR_RANGE, "batch");
    BAD(x.batch = INT32_MAX, SVG2_ERR_OVERFLOW, "batch");
    BAD(x.heads = 0, SVG2_ERR_RANGE, "heads");
    BAD(x.heads_kv = -1, SVG2_ERR_RANGE, "heads_kv");
    BAD(x.heads_kv = INT32_MAX, SVG2_ERR_OVERFLOW, "heads_kv");
    BAD(x.tokens = 0, SVG2_ERR_RANGE, "tokens");
    BAD(x.head_dim = 15, SVG2_ERR_RANGE, "head_dim");
    BAD(x.head_dim = 12, SVG2_ERR_RANGE, "head_dim");
    BAD(x.head_dim = 264, SVG2_ERR_RANGE, "head_dim");
    BAD(x.video_begin = -1, SVG2_ERR_RANGE, "video_count");
    BAD(x.video_begin = 11, SVG2_ERR_RANGE, "video_count");
    BAD(x.video_count = -1, SVG2_ERR_RANGE, "video_count");
    BAD(x.video_count = 19, SVG2_ERR_RANGE, "video_count");
    BAD(x.video_count = 0, SVG2_ERR_RANGE, "video_count"); /* all tokens begin at 0 */
    BAD(x.norm = (svg2_norm)3, SVG2_ERR_RANGE, "norm");
    BAD(x.norm = (svg2_norm)-1, SVG2_ERR_RANGE, "norm");
    BAD(x.epsilon = -1e-6f, SVG2_ERR_RANGE, "epsilon");
    BAD(x.epsilon = (float)NAN, SVG2_ERR_RANGE, "epsilon");
    BAD(x.epsilon = INFINITY, SVG2_ERR_RANGE, "epsilon");
    BAD(x.pairing = (svg2_pairing)2, SVG2_ERR_RANGE, "pairing");
    BAD(x.rope_tokens = 9, SVG2_ERR_SHAPE, "rope_tokens");
    BAD(x.rope_tokens = -1, SVG2_ERR_SHAPE, "rope_tokens");
    BAD(x.rope_heads = 3, SVG2_ERR_SHAPE, "rope_heads");
    BAD(x.rope_heads = -1, SVG2_ERR_SHAPE, "rope_heads");
    BAD((x.rope_heads = 2, x.heads_kv = 1), SVG2_ERR_SHAPE, "rope_heads");
    BAD(x.rope_stride = 7, SVG2_ERR_STRIDE, "rope_stride");
    BAD(x.rope_stride = -8, SVG2_ERR_STRIDE, "rope_stride");
    BAD(x.rope_stride = INT64_MAX / 4, SVG2_ERR_OVERFLOW, "rope_stride");
    BAD(x.cosine = 0, SVG2_ERR_NULL, "cosine");
    BAD(x.sine = 0, SVG2_ERR_NULL, "sine");
    BAD((x.norm = SVG2_NORM_NONE, x.k_weight = 0), SVG2_ERR_RANGE, "q_weight");
    BAD((x.norm = SVG2_NORM_NONE, x.q_weight = 0), SVG2_ERR_RANGE, "k_weight");
    BAD((x.q = 0, x.k = 0, x.key_mean = 0), SVG2_ERR_NULL, "q");
    BAD(x.k = 0, SVG2_ERR_NULL, "k");
    BAD(x.q_out = 0, SVG2_ERR_NULL, "q_out");
    BAD(x.k_out = 0, SVG2_ERR_NULL, "k_out");
    BAD(x.q_layout.dtype = (svg2_dtype)3, SVG2_ERR_DTYPE, "q");
    BAD(x.k_layout.dtype = (svg2_dtype)-1, SVG2_ERR_DTYPE, "k");
    BAD(x.q_out_layout.dtype = (svg2_dtype)7, SVG2_ERR_DTYPE, "q_out");
    BAD(x.k_out_layout.dtype = (svg2_dtype)3, SVG2_ERR_DTYPE, "k_out");
    BAD(x.q_layout.stride_token = -1, SVG2_ERR_STRIDE, "q");
    BAD(x.q_out_layout.stride_token = 4, SVG2_ERR_STRIDE, "q_out");
    BAD(x.k_out_layout.stride_head = 16, SVG2_ERR_STRIDE, "k_out");
    BAD(x.k_layout.stride_batch = INT64_MAX / 2, SVG2_ERR_OVERFLOW, "k");
    BAD(x.q = (const char *)x.q + 2, SVG2_ERR_ALIGN, "q");
    BAD(x.k_out = (char *)x.k_out + 1, SVG2_ERR_ALIGN, "k_out");
    /* an output that shares bytes with its input and is not the same */
    BAD((x.q_out = (float *)x.q_out + 4, x.q = f.d.q_out), SVG2_ERR_STRIDE, "q_out");
    BAD((x.k = (float *)f.d.k_out + 639, x.key_mean = 0), SVG2_ERR_STRIDE, "k_out");
    BAD((x.q = f.d.q_out, x.q_layout.dtype = SVG2_BF16), SVG2_ERR_STRIDE, "q_out");
    BAD((x.q = f.d.q_out, x.q_layout.stride_token = 32, x.q_layout.stride_head = 16, x.q_layout.stride_batch = 640), SVG2_ERR_STRIDE, "q_out");
#undef BAD
    assert_true(error_names(&err, svg2_front(&b, 0, work, bytes, &err), SVG2_ERR_NULL, "desc"));
    assert_true(error_names(&err, svg2_front(0, &f.d, work, bytes, &err), SVG2_ERR_NULL, "backend"));
    assert_true(error_names(&err, svg2_front(&b, &f.d, 0, bytes, &err), SVG2_ERR_NULL, "workspace"));
    assert_true(error_names(&err, svg2_front(&b, &f.d, work, bytes - 1, &err), SVG2_ERR_WORKSPACE, "workspace"));
    assert_true(error_names(&err, svg2_front(&b, &f.d, (char *)work + 4, bytes, &err), SVG2_ERR_ALIGN, "workspace"));
    assert_untouched(f.y[1].data, f.y[1].bytes);
    svg2_front_desc beside = f.d; /* right behind each other is not an overlap */
    float *both = (float *)mem_new(2 * f.x[0].bytes);
    memcpy(both, f.x[0].data, f.x[0].bytes);
    beside.q = both; beside.q_out = (char *)both + f.x[0].bytes;
    assert_ok(svg2_front(&b, &beside, work, bytes, &err));
    assert_ok(svg2_front(&b, &f.d, work, bytes, 0));
    assert_memory_equal(beside.q_out, f.y[0].data, f.y[0].bytes);
    front_check(&f);

    svg2_rope_desc r = SVG2_ZERO;
    float cosine[64], sine[64];
    r.frames = r.height = r.width = 2; r.head_dim = 16;
    memset(cosine, 0xff, sizeof cosine);
#define BAD(change, code, name)                                                                       \
    do {                                                                                              \
        svg2_rope_desc x = r;                                                                         \
        change;                                                                                       \
        if (!error_names(&err, svg2_rope_table(&x, cosine, sine, 64, &err), code, name)) fail_msg("%s", #change); \
        assert_untouched(cosine, sizeof cosine);                                                      \
    } while (0)
    BAD(x.frames = 0, SVG2_ERR_RANGE, "frames");
    BAD(x.height = -1, SVG2_ERR_RANGE, "frames");
    BAD(x.width = 0, SVG2_ERR_RANGE, "frames");
    BAD(x.frames = x.height = x.width = 65536, SVG2_ERR_OVERFLOW, "frames");
    BAD(x.head_dim = 15, SVG2_ERR_RANGE, "head_dim");
    BAD(x.axes[0] = 14, SVG2_ERR_SHAPE, "axes");
    BAD((x.axes[0] = 15, x.axes[1] = 1), SVG2_ERR_RANGE, "axes");
    BAD((x.axes[0] = 18, x.axes[1] = -2), SVG2_ERR_RANGE, "axes");
    BAD(x.theta = -1, SVG2_ERR_RANGE, "theta");
    BAD(x.theta = (float)NAN, SVG2_ERR_RANGE, "theta");
    BAD(x.theta = INFINITY, SVG2_ERR_RANGE, "theta");
    BAD(x.width = 3, SVG2_ERR_WORKSPACE, "count");
#undef BAD
    assert_true(error_names(&err, svg2_rope_table(&r, 0, sine, 64, &err), SVG2_ERR_NULL, "cosine"));
    assert_true(error_names(&err, svg2_rope_table(&r, cosine, 0, 64, &err), SVG2_ERR_NULL, "sine"));
    assert_true(error_names(&err, svg2_rope_table(0, cosine, sine, 64, &err), SVG2_ERR_NULL, "desc"));
    assert_ok(svg2_rope_table(&r, cosine, sine, 64, 0));
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(formulas), TEST(in_place), TEST(fused_projection), TEST(parts_of_the_tokens), TEST(same_bits), TEST(nan_and_inf), TEST(zeros),
                                       TEST(tables), TEST(logits_know_distances_alone), TEST(bad_input)};
    return cmocka_run_group_tests_name("front", tests, 0, 0);
}
