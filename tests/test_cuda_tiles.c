/* test_cuda_tiles.c - >>tiles and >>profile on the CUDA backend beside the CPU: labels, maps, bits and counts are the same; sums
   of masses differ by the order of doubles. */
#include "device.h"
#include "test.h"

/* Errors of a profile. With operands of the type of the products only the weights are rounded, by u = 2^-9 (bf16) or 2^-12
   (f16), each the same in all three outputs: |x - y| errs by u / sqrt(3) of |x| and of |y| at most, times what the average over
   keys leaves. Rounded queries and keys move a logit of size L by u L. */
#define PROFILE_BF16 1e-3
#define PROFILE_F16 5e-5
#define PROFILE_ROUNDED 2e-3

static void *to_device(const void *host, size_t bytes) { return host ? device_copy(host, bytes) : 0; }

static svg2_backend cpu_backend(void) { return svg2_cpu_backend_simd(0, SVG2_SIMD_SCALAR); }

static void same_stats(const svg2_head_stats *x, const svg2_head_stats *y, int n)
{
    for (int i = 0; i < n; ++i) {
        assert_true(x[i].pairs == y[i].pairs && x[i].pairs_pv == y[i].pairs_pv && x[i].pairs_total == y[i].pairs_total);
        assert_true(x[i].density == y[i].density && x[i].density_pv == y[i].density_pv && x[i].error_estimate == y[i].error_estimate);
        assert_true(x[i].is_dense == y[i].is_dense && x[i].empty_clusters == y[i].empty_clusters && x[i].pattern == y[i].pattern);
        assert_true(x[i].pattern_error[0] == y[i].pattern_error[0] && x[i].pattern_error[1] == y[i].pattern_error[1]);
        assert_true(fabs((double)x[i].recall - (double)y[i].recall) <= 1e-6);
    }
}

/* ---- place ---- */
typedef struct grid { int frames, frame_tokens, block, first; } grid;
static const grid grids[] = {{1, 64, 64, 0}, {4, 16, 8, 0},  {5, 30, 7, 1},  {3, 100, 64, 1},  {16, 9, 64, 1}, {2, 1, 1, 1},
                             {1, 1, 64, 0},  {1, 10, 4, 1}, {7, 13, 1, 0}, {6, 25, 1000, 1}, {9, 500, 64, 1}, {21, 33, 16, 0}};

static void places(void **state)
{
    svg2_backend cpu = cpu_backend(), cuda = svg2_cuda_backend(0);
    svg2_error err;
    (void)state;
    for (int i = 0; i < COUNT(grids); ++i)
        for (int n = 0; n < 3; ++n) {
            const grid *g = &grids[i];
            const int video = g->frames * g->frame_tokens, tokens = video + 5;
            const size_t bytes = (size_t)(8 * tokens) * 4;
            int32_t *want = (int32_t *)mem_new(bytes), *got = (int32_t *)mem_new(bytes), pattern[8] = {0, 1, 1, 0, 7, 1, 0, 1};
            svg2_place_desc d = SVG2_ZERO;
            memset(want, 0xff, bytes);
            d.batch = 2; d.heads = 4; d.tokens = tokens;
            d.video_begin = n; d.video_count = video;
            d.frames = g->frames; d.frame_tokens = g->frame_tokens; d.block = g->block; d.first_frame = g->first;
            d.pattern = n ? pattern : 0;
            d.pattern_heads = n == 1 ? 2 : 0;
            d.label = want;
            assert_ok(svg2_place(&cpu, &d, 0, 0, &err));
            d.pattern = (const int32_t *)to_device(d.pattern, sizeof pattern);
            d.label = (int32_t *)device_new(bytes);
            assert_ok(svg2_place(&cuda, &d, 0, 0, &err));
            device_read(got, d.label, bytes);
            assert_memory_equal(got, want, bytes);
            device_reset();
            mem_done();
        }
}

/* ---- band ---- */
static void bands(void **state)
{
    svg2_backend cpu = cpu_backend(), cuda = svg2_cuda_backend(0);
    svg2_error err;
    uint64_t r = 1;
    (void)state;
    for (int i = 0; i < COUNT(grids); ++i)
        for (int n = 0; n < 7; ++n) {
            const grid *g = &grids[i];
            const int video = g->frames * g->frame_tokens, text = n % 2, padding = n % 3 == 0;
            svg2_place_desc p = SVG2_ZERO;
            svg2_band_desc d = SVG2_ZERO;
            int32_t pattern[4] = {n % 2, 1, 5, 1 - n % 2};
            float error[16];
            if (TEST_SLOW_BUILD && video > 600) continue;
            p.batch = p.heads = 1; p.tokens = video; p.video_count = video;
            p.frames = g->frames; p.frame_tokens = g->frame_tokens; p.block = g->block; p.first_frame = g->first;
            const int all = svg2_place_blocks(&p) + text + padding, heads = n == 5 ? 4 : 8, heads_kv = n == 5 ? 4 : 4;
            const size_t bytes = (size_t)(heads * all) * (size_t)all;
            int32_t *query_offset = (int32_t *)mem_new((size_t)(heads * (all + 1)) * 4);
            int32_t *key_offset = (int32_t *)mem_new((size_t)(heads_kv * (all + 1)) * 4);
            uint8_t *want = (uint8_t *)mem_new(bytes), *got = (uint8_t *)mem_new(bytes);
            svg2_head_stats stats[8], other[8];
            for (int k = 0; k < 16; ++k) error[k] = (float)k;
            for (int h = 0; h < heads; ++h) /* any sizes will do for the statistics */
                for (int j = 0; j <= all; ++j) query_offset[h * (all + 1) + j] = j ? query_offset[h * (all + 1) + j - 1] + rnd_int(&r, 4) : 0;
            for (int h = 0; h < heads_kv; ++h)
                for (int j = 0; j <= all; ++j) key_offset[h * (all + 1) + j] = j ? key_offset[h * (all + 1) + j - 1] + rnd_int(&r, 4) : 0;
            d.batch = heads_kv / 2; d.heads = heads / d.batch; d.heads_kv = 2;
            d.frames = g->frames; d.frame_tokens = g->frame_tokens; d.block = g->block; d.first_frame = g->first;
            d.width = n == 0 ? 1 : n == 1 ? video : n == 2 ? INT32_MAX : 1 + rnd_int(&r, video);
            d.has_text = text; d.has_padding = padding; d.pattern = pattern; d.error = n == 4 ? 0 : error;
            d.query_offset = query_offset; d.key_offset = key_offset; d.map = want; d.stats = n == 6 ? 0 : stats;
            assert_ok(svg2_band(&cpu, &d, 0, 0, &err));
            d.pattern = (const int32_t *)to_device(pattern, sizeof pattern);
            d.error = (const float *)to_device(d.error, sizeof error);
            d.query_offset = (const int32_t *)to_device(query_offset, (size_t)(heads * (all + 1)) * 4);
            d.key_offset = (const int32_t *)to_device(key_offset, (size_t)(heads_kv * (all + 1)) * 4);
            d.map = (uint8_t *)device_new(bytes);
            d.stats = d.stats ? (svg2_head_stats *)device_new(sizeof other) : 0;
            assert_ok(svg2_band(&cuda, &d, 0, 0, &err));
            device_read(got, d.map, bytes);
            assert_memory_equal(got, want, bytes);
            if (d.stats) {
                device_read(other, d.stats, sizeof other);
                same_stats(other, stats, heads);
            }
            device_reset();
            mem_done();
        }
}

/* ---- pick ---- */
typedef struct picks {
    svg2_pick_desc d; /* with the host's pointers; mass of all heads */
    float *mass;
    size_t rows, blocks, words;
} picks;

static picks picks_new(int batch, int heads, int heads_kv, int Qb, int Kb, int text, int padding, uint64_t seed)
{
    picks p;
    uint64_t r = seed;
    const int bh = batch * heads, bk = batch * heads_kv;
    memset(&p, 0, sizeof p);
    p.rows = (size_t)(bh * Qb);
    p.blocks = p.rows * (size_t)Kb;
    p.words = p.rows * (size_t)((Kb + 31) / 32);
    p.mass = (float *)mem_new(p.blocks * 4);
    for (size_t i = 0; i < p.blocks; ++i) /* ties, zeros of both signs */
        p.mass[i] = (float)(rnd_int(&r, 4) ? exp(3 * rnd_normal(&r) * (double)(i / (size_t)(Qb * Kb) % 3)) : rnd_int(&r, 3) * (rnd_int(&r, 9) ? 1 : -0.0));
    int32_t *query_offset = (int32_t *)mem_new((size_t)(bh * (Qb + 1)) * 4), *key_offset = (int32_t *)mem_new((size_t)(bk * (Kb + 1)) * 4);
    for (int h = 0; h < bh; ++h)
        for (int i = 0; i <= Qb; ++i) query_offset[h * (Qb + 1) + i] = i ? query_offset[h * (Qb + 1) + i - 1] + rnd_int(&r, 5) : 0;
    for (int h = 0; h < bk; ++h)
        for (int i = 0; i <= Kb; ++i) key_offset[h * (Kb + 1) + i] = i ? key_offset[h * (Kb + 1) + i - 1] + rnd_int(&r, 5) : 0;
    p.d.batch = batch; p.d.heads = heads; p.d.heads_kv = heads_kv; p.d.query_blocks = Qb; p.d.key_blocks = Kb; p.d.has_text = text; p.d.has_padding = padding;
    p.d.query_offset = query_offset; p.d.key_offset = key_offset;
    p.d.map = (uint8_t *)mem_new(p.blocks);
    p.d.bits = (uint32_t *)mem_new(p.words * 4);
    p.d.recall = (float *)mem_new((size_t)(bh * 3) * 4);
    p.d.stats = (svg2_head_stats *)mem_new((size_t)bh * sizeof(svg2_head_stats));
    return p;
}

/* All heads, in groups; what is written replaces the host's arrays. mass: 0 = from bits and recall. */
static void picks_run(const svg2_backend *backend, const picks *p, int group, int with_mass)
{
    svg2_pick_desc d = p->d;
    svg2_error err;
    const int heads = d.batch * d.heads, gpu = is_cuda(backend);
    const size_t Qb = (size_t)d.query_blocks, Kb = (size_t)d.key_blocks, bh = (size_t)heads, bk = (size_t)(d.batch * d.heads_kv);
    const float *mass = p->mass;
    if (gpu) {
        mass = (const float *)device_copy(mass, p->blocks * 4);
        d.query_offset = (const int32_t *)device_copy(d.query_offset, bh * (Qb + 1) * 4);
        d.key_offset = (const int32_t *)device_copy(d.key_offset, bk * (Kb + 1) * 4);
        d.map = (uint8_t *)device_new(p->blocks);
        d.bits = with_mass ? (uint32_t *)(d.bits ? device_new(p->words * 4) : 0) : (uint32_t *)device_copy(d.bits, p->words * 4);
        d.recall = with_mass ? (float *)device_new(bh * 12) : (float *)device_copy(d.recall, bh * 12);
        d.stats = d.stats ? (svg2_head_stats *)device_new(bh * sizeof(svg2_head_stats)) : 0;
    }
    for (int h = 0; h < heads; h += group) {
        d.head_begin = h;
        d.head_count = heads - h < group ? heads - h : group;
        d.mass = with_mass ? mass + (size_t)h * Qb * Kb : 0;
        const size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_PICK, &d);
        assert_ok(svg2_pick(backend, &d, gpu ? device_new(bytes) : mem_new(bytes), bytes, &err));
        if (!with_mass) break;
    }
    if (!gpu) return;
    device_read(p->d.map, d.map, p->blocks);
    if (d.bits) device_read(p->d.bits, d.bits, p->words * 4);
    device_read(p->d.recall, d.recall, bh * 12);
    if (d.stats) device_read(p->d.stats, d.stats, bh * sizeof(svg2_head_stats));
    device_reset();
}

/* On both, and back from the bits. */
static void picks_compare(const picks *x, int group)
{
    const svg2_backend cpu = cpu_backend(), cuda = svg2_cuda_backend(0);
    const int heads = x->d.batch * x->d.heads;
    picks y = *x;
    y.d.map = (uint8_t *)mem_new(y.blocks);
    y.d.bits = y.d.bits ? (uint32_t *)mem_new(y.words * 4) : 0;
    y.d.recall = (float *)mem_new((size_t)(heads * 3) * 4);
    y.d.stats = y.d.stats ? (svg2_head_stats *)mem_new((size_t)heads * sizeof(svg2_head_stats)) : 0;
    picks_run(&cpu, x, group, 1);
    picks_run(&cuda, &y, group, 1);
    for (int i = 0; i < 3 * heads; ++i) assert_at_most(fabs((double)y.d.recall[i] - (double)x->d.recall[i]), 1e-6);
    assert_memory_equal(y.d.map, x->d.map, x->blocks);
    if (x->d.bits) assert_memory_equal(y.d.bits, x->d.bits, x->words * 4);
    if (x->d.stats) same_stats(y.d.stats, x->d.stats, heads);
    if (!x->d.bits) return;
    memset(y.d.map, 9, y.blocks);
    picks_run(&cuda, &y, heads, 0);
    assert_memory_equal(y.d.map, x->d.map, x->blocks);
    if (x->d.stats) same_stats(y.d.stats, x->d.stats, heads);
}

static const struct pick_case { int batch, heads, heads_kv, Qb, Kb, text, padding, group; float sparsity, target; } pick_cases[] = {
    {1, 6, 3, 5, 40, 0, 0, 4, 0.8f, 0},   {2, 4, 4, 9, 33, 1, 1, 3, 0.7f, 0},    {1, 1, 1, 2, 70, 1, 0, 1, 0.9f, 0},
    {1, 8, 8, 3, 21, 0, 1, 8, 0.2f, 0},   {1, 3, 3, 4, 10, 1, 0, 2, 0, 0},       {1, 5, 5, 4, 1, 0, 0, 2, 0.8f, 0},
    {1, 2, 1, 7, 300, 1, 1, 1, 0.85f, 0}, {1, 1, 1, 2, 4096, 0, 0, 1, 0.8f, 0},  {1, 2, 1, 3, 4200, 1, 1, 2, 0.9f, 0},
    {1, 6, 3, 5, 40, 0, 0, 4, 0, 0.5f},   {2, 4, 4, 9, 33, 1, 1, 3, 0.7f, 0.9f}, {1, 2, 1, 7, 300, 1, 0, 1, 0, 0.99f},
    {1, 3, 3, 4, 10, 0, 1, 2, 0, 1},      {1, 2, 2, 3, 1, 0, 0, 2, 0, 0.3f},     {1, 2, 1, 3, 4200, 1, 1, 2, 0, 0.8f},
    {1, 1, 1, 258, 4100, 0, 0, 1, 0, 0.7f}, /* more large rows than are sorted at one time */
};

static void picked(void **state)
{
    (void)state;
    for (int c = 0; c < COUNT(pick_cases); ++c)
        for (int n = 0; n < 3; ++n) {
            const struct pick_case *k = &pick_cases[c];
            if (k->Kb > 1000 && (n != 1 || TEST_SLOW_BUILD)) continue;
            picks p = picks_new(k->batch, k->heads, k->heads_kv, k->Qb, k->Kb, k->text, k->padding, (uint64_t)(10 * c + n));
            p.d.sparsity = k->sparsity;
            p.d.mass_target = k->target;
            if (n == 1) { /* rows with a NaN or an Inf, the last one in the text where there is some; a row of zeros; equal ones */
                const size_t row = (size_t)k->Kb;
                p.mass[0] = (float)NAN;
                p.mass[2 * row - 1 - (size_t)k->padding] = (float)INFINITY;
                if (k->Qb > 4) for (size_t i = 0; i < row; ++i) p.mass[2 * row + i] = 0, p.mass[3 * row + i] = 2.5f;
            }
            if (n == 2) p.d.bits = 0, p.d.stats = c % 2 ? 0 : p.d.stats;
            picks_compare(&p, k->group);
            mem_done();
        }
}

/* ---- profile ---- */
typedef struct profile {
    svg2_profile_desc d; /* the host's pointers */
    tensor q, k, v;
    svg2_layout layouts[3];
} profile;

typedef struct profile_case {
    int B, H, Hk, frames, frame_tokens, block, first, D, text, valid, text_first, rows, width;
    svg2_dtype q, k, v;
    tensor_order order;
    int mean;      /* of the keys; it is removed */
    double spread; /* of the queries */
} profile_case;

static profile profile_new(const profile_case *c, uint64_t seed)
{
    profile p;
    const int video = c->frames * c->frame_tokens, S = video + c->text;
    memset(&p, 0, sizeof p);
    p.q = tensor_new(c->B, c->H, S, c->D, c->q, c->order);
    p.k = tensor_new(c->B, c->Hk, S, c->D, c->k, c->order);
    p.v = tensor_new(c->B, c->Hk, S, c->D, c->v, c->order);
    tensor_fill_normal(&p.q, seed, c->spread, 0);
    tensor_fill_normal(&p.k, seed + 1, 1, c->mean);
    tensor_fill_normal(&p.v, seed + 2, 1, 0);
    p.d.batch = c->B; p.d.heads = c->H; p.d.heads_kv = c->Hk; p.d.tokens = S; p.d.head_dim = c->D;
    p.d.video_begin = c->text_first ? c->text : 0;
    p.d.frames = c->frames; p.d.frame_tokens = c->frame_tokens; p.d.block = c->block; p.d.first_frame = c->first; p.d.width = c->width;
    p.d.text_begin = c->text_first ? 0 : video; p.d.text_count = c->valid;
    p.d.sample_rows = c->rows; p.d.seed = seed; p.d.scale = (float)(1 / sqrt(c->D));
    p.d.q = p.q.data; p.d.k = p.k.data; p.d.v = p.v.data;
    p.d.q_layout = p.q.layout; p.d.k_layout = p.k.layout; p.d.v_layout = p.v.layout;
    if (c->mean) {
        double *k = tensor_f64(&p.k);
        float *mean = (float *)mem_new((size_t)(c->B * c->Hk * c->D) * 4);
        for (int h = 0; h < c->B * c->Hk; ++h)
            for (int e = 0; e < c->D; ++e) {
                double sum = 0;
                for (int t = 0; t < S; ++t) sum += k[((int64_t)h * S + t) * c->D + e];
                mean[h * c->D + e] = (float)(sum / S);
            }
        p.d.key_mean = mean;
    }
    p.d.pattern = (int32_t *)mem_new((size_t)(c->B * c->Hk) * 4);
    p.d.error = (float *)mem_new((size_t)(c->B * c->H * 2) * 4);
    return p;
}

/* A head that looks at its own frame (pattern 0) or at its own place (1). */
static void profile_plant(profile *p, int b, int h, int pattern, uint64_t seed)
{
    const int group = p->d.heads / p->d.heads_kv, P = p->d.frame_tokens, F = p->d.frames;
    uint64_t r = seed;
    for (int t = 0; t < F * P; ++t) {
        const double angle = 6.2832 * (pattern ? (double)(t % P) / P : (double)(t / P) / F);
        for (int e = 0; e < p->d.head_dim; ++e) {
            const double x = e == 0 ? cos(angle) : e == 1 ? sin(angle) : 0;
            tensor_put(&p->q, tensor_at(&p->q, b, h, p->d.video_begin + t, e), sqrt(p->d.head_dim / 16.0) * 9 * x + 0.3 * rnd_normal(&r));
            if (h % group == 0) tensor_put(&p->k, tensor_at(&p->k, b, h / group, p->d.video_begin + t, e), 5 * x + 0.3 * rnd_normal(&r));
        }
    }
}

static void profile_run(const svg2_backend *backend, const profile *p, int32_t *pattern, float *error)
{
    svg2_profile_desc d = p->d;
    svg2_error err;
    const size_t heads = (size_t)(d.batch * d.heads), kv = (size_t)(d.batch * d.heads_kv);
    const int gpu = is_cuda(backend);
    if (gpu) {
        d.q = device_copy(p->q.data, p->q.bytes);
        d.k = device_copy(p->k.data, p->k.bytes);
        d.v = device_copy(p->v.data, p->v.bytes);
        d.key_mean = (const float *)to_device(d.key_mean, kv * (size_t)d.head_dim * 4);
        d.pattern = (int32_t *)device_new(kv * 4);
        d.error = error ? (float *)device_new(heads * 8) : 0;
    } else d.pattern = pattern, d.error = error;
    const size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_PROFILE, &d);
    const svg2_result result = svg2_profile(backend, &d, gpu ? device_new(bytes) : mem_new(bytes), bytes, &err);
    if (result != SVG2_OK) fail_msg("svg2_profile: %s (%s: %s)", svg2_result_string(result), err.field, err.text);
    if (!gpu) return;
    device_read(pattern, d.pattern, kv * 4);
    if (error) device_read(error, d.error, heads * 8);
    device_reset();
}

static const profile_case profile_cases[] = {
    {1, 2, 2, 6, 25, 16, 0, 64, 0, 0, 0, 64, 40, SVG2_BF16, SVG2_BF16, SVG2_BF16, BHSD, 0, 1.5},
    {2, 4, 2, 5, 30, 7, 1, 40, 9, 5, 0, 64, 33, SVG2_BF16, SVG2_BF16, SVG2_BF16, GAPS, 0, 3},
    {1, 2, 1, 4, 50, 64, 1, 128, 70, 66, 1, 100, 60, SVG2_F16, SVG2_F16, SVG2_F16, BSHD, 2, 2},
    {1, 1, 1, 3, 21, 8, 0, 8, 13, 0, 1, 1, 5, SVG2_F32, SVG2_F32, SVG2_F32, BHSD, 4, 1.5},
    {1, 1, 1, 3, 70, 64, 1, 256, 5, 5, 0, 64, 70, SVG2_BF16, SVG2_BF16, SVG2_BF16, BHSD, 0, 2},
    {1, 2, 1, 3, 40, 16, 0, 136, 0, 0, 0, 33, 30, SVG2_F16, SVG2_F16, SVG2_F16, GAPS, 0, 2},
    {1, 1, 1, 1, 130, 16, 0, 72, 0, 0, 0, 130, 20, SVG2_F32, SVG2_F16, SVG2_BF16, BSHD, 1, 2},
    {1, 1, 1, 2, 1, 1, 1, 96, 0, 0, 0, 64, 1, SVG2_BF16, SVG2_BF16, SVG2_BF16, BHSD, 0, 2},
    {3, 3, 3, 2, 9, 4, 0, 16, 2, 1, 0, 4000, 6, SVG2_BF16, SVG2_BF16, SVG2_BF16, BHSD, 0, 2}, /* 567 items: two launches */
    {1, 1, 1, 10, 500, 64, 1, 64, 0, 0, 0, 65, 700, SVG2_BF16, SVG2_BF16, SVG2_BF16, BHSD, 0, 4}, /* three splits */
};

static double profile_bound(const profile_case *c)
{
    const svg2_dtype t = c->k == SVG2_F16 && c->v == SVG2_F16 ? SVG2_F16 : SVG2_BF16;
    if (c->q != t || c->k != t) return PROFILE_ROUNDED * (1 + c->mean);
    return t == SVG2_F16 ? PROFILE_F16 : PROFILE_BF16;
}

static void profiles(void **state)
{
    const svg2_backend cpu = cpu_backend(), cuda = svg2_cuda_backend(0);
    (void)state;
    for (int n = 0; n < COUNT(profile_cases); ++n) {
        const profile_case *c = &profile_cases[n];
        profile p = profile_new(c, (uint64_t)n);
        const int heads = c->B * c->H, kv = c->B * c->Hk, group = c->H / c->Hk;
        int32_t *want = p.d.pattern, *got = (int32_t *)mem_new((size_t)kv * 4);
        float *host = p.d.error, *gpu = (float *)mem_new((size_t)heads * 8);
        double worst = 0;
        if (TEST_SLOW_BUILD && n >= 8) { mem_done(); continue; }
        profile_run(&cpu, &p, want, host);
        profile_run(&cuda, &p, got, gpu);
        for (int i = 0; i < 2 * heads; ++i) worst = fmax(worst, fabs((double)gpu[i] - (double)host[i]));
        print_message("case %d: errors up to %.3f, differ by %.2e\n", n, (double)host[0], worst);
        assert_at_most(worst, profile_bound(c));
        for (int h = 0; h < kv; ++h) {
            double both[2] = {0, 0};
            for (int i = h * group; i < (h + 1) * group; ++i)
                for (int k = 0; k < 2; ++k) both[k] += (double)host[2 * i + k] * (double)host[2 * i + k];
            if (fabs(sqrt(both[0]) - sqrt(both[1])) > 3 * profile_bound(c)) assert_int_equal(got[h], want[h]);
        }
        profile_run(&cuda, &p, want, 0); /* the same without errors */
        assert_memory_equal(got, want, (size_t)kv * 4);
        /* a band of everything: no error at all */
        p.d.width = INT32_MAX;
        profile_run(&cuda, &p, got, gpu);
        for (int i = 0; i < 2 * heads; ++i) assert_true(gpu[i] == 0);
        for (int i = 0; i < kv; ++i) assert_int_equal(got[i], 0);
        mem_done();
    }
}

static void planted(void **state)
{
    const svg2_backend cpu = cpu_backend(), cuda = svg2_cuda_backend(0);
    static const svg2_dtype types[3] = {SVG2_BF16, SVG2_F16, SVG2_F32};
    (void)state;
    for (int n = 0; n < 3; ++n) {
        const profile_case c = {1, TEST_SLOW_BUILD ? 4 : 8, TEST_SLOW_BUILD || n == 1 ? 4 : 8, 12, 40, 16, n == 0, n == 2 ? 128 : 64, n ? 20 : 0, n ? 15 : 0,
                                n == 2, 64, 100, types[n], types[n], types[n], n == 1 ? BSHD : BHSD, 0, 1};
        profile p = profile_new(&c, 77);
        int32_t pattern[8], want[8];
        float error[16], host[16];
        for (int h = 0; h < c.H; ++h) profile_plant(&p, 0, h, h / (c.H / c.Hk) % 2, (uint64_t)(100 * n + h));
        profile_run(&cpu, &p, want, host);
        profile_run(&cuda, &p, pattern, error);
        for (int h = 0; h < c.Hk; ++h) assert_true(pattern[h] == h % 2 && want[h] == h % 2);
        for (int i = 0; i < 2 * c.H; ++i) assert_at_most(fabs((double)error[i] - (double)host[i]), 0.02);
        for (int h = 0; h < c.H; ++h) {
            const int own = h / (c.H / c.Hk) % 2;
            assert_true(error[2 * h + own] < 0.5f * error[2 * h + 1 - own]);
        }
        mem_done();
    }
}

/* A head has the same bits whatever stands beside it. */
static void profile_alone(void **state)
{
    const svg2_backend cuda = svg2_cuda_backend(0);
    profile_case c = {1, 3, 3, 4, TEST_SLOW_BUILD ? 30 : 700, 64, 1, 16, 0, 0, 0, 64, 500, SVG2_BF16, SVG2_BF16, SVG2_BF16, BHSD, 0, 2};
    profile p = profile_new(&c, 8);
    int32_t pattern[3], own;
    float error[6], alone[2];
    (void)state;
    profile_run(&cuda, &p, pattern, error);
    for (int h = 0; h < 3; ++h) {
        profile x = p;
        const size_t bytes = p.q.bytes / 3;
        x.d.heads = x.d.heads_kv = 1;
        x.q.bytes = x.k.bytes = x.v.bytes = bytes;
        x.q.data = (char *)p.q.data + (size_t)h * bytes;
        x.k.data = (char *)p.k.data + (size_t)h * bytes;
        x.v.data = (char *)p.v.data + (size_t)h * bytes;
        memset(&x.d.q_layout, 0, sizeof x.d.q_layout);
        x.d.q_layout.dtype = SVG2_BF16;
        x.d.k_layout = x.d.v_layout = x.d.q_layout;
        profile_run(&cuda, &x, &own, alone);
        assert_int_equal(own, pattern[h]);
        assert_memory_equal(alone, error + 2 * h, sizeof alone);
    }
    mem_done();
}

/* NaN: pattern 0, as on the CPU; padding is not looked at. */
static void profile_nan(void **state)
{
    const svg2_backend cpu = cpu_backend(), cuda = svg2_cuda_backend(0);
    (void)state;
    for (int n = 0; n < 4; ++n) {
        const profile_case c = {1, 2, 2, 4, 30, 16, 0, 64, 20, 12, 0, 64, 40, SVG2_BF16, SVG2_BF16, SVG2_BF16, BHSD, 0, 1.5};
        profile p = profile_new(&c, 5);
        int32_t got[2], want[2];
        float error[4], host[4];
        profile_plant(&p, 0, 0, 1, 3);
        profile_plant(&p, 0, 1, 1, 4);
        for (int t = 132; t < 140; ++t) /* padding */
            for (int h = 0; h < 2; ++h) {
                tensor_put(&p.q, tensor_at(&p.q, 0, h, t, 0), (double)NAN);
                tensor_put(&p.k, tensor_at(&p.k, 0, h, t, 1), (double)INFINITY);
                tensor_put(&p.v, tensor_at(&p.v, 0, h, t, 2), (double)NAN);
            }
        if (n == 1) tensor_put(&p.k, tensor_at(&p.k, 0, 0, 55, 7), (double)NAN);
        if (n == 2) tensor_put(&p.v, tensor_at(&p.v, 0, 0, 55, 7), (double)INFINITY);
        if (n == 3) tensor_put(&p.k, tensor_at(&p.k, 0, 0, 125, 7), -(double)INFINITY); /* in the text */
        profile_run(&cpu, &p, want, host);
        profile_run(&cuda, &p, got, error);
        assert_int_equal(got[0], n == 0);
        assert_int_equal(got[1], 1);
        assert_true(want[0] == got[0] && want[1] == 1);
        assert_at_most(fabs((double)error[2] - (double)host[2]), 0.02);
        mem_done();
    }
}

/* The same bits whatever the order of threads, blocks and copies. */
static void same_bits(void **state)
{
    static const char *const threads[4] = {"rr", "first", "last", "random"}, *const copies[3] = {"late", "early", "mixed"};
    const svg2_backend cuda = svg2_cuda_backend(0);
    uint64_t want = 0;
    (void)state;
    for (int n = 0; n < (TEST_SLOW_BUILD ? 3 : 8); ++n) {
        const profile_case c = {1, 2, 1, 4, 60, 16, 1, n % 2 ? 64 : 64, 20, 12, 0, 70, 50, SVG2_BF16, SVG2_BF16, SVG2_BF16, BHSD, 0, 2};
        profile p;
        float error[4];
        int32_t pattern[1];
        uint64_t got = 0;
        device_schedule(threads[n % 4], copies[n % 3], 1 + (unsigned)n);
        p = profile_new(&c, 9);
        profile_run(&cuda, &p, pattern, error);
        got = mem_hash(error, sizeof error);
        for (int target = 0; target < 2; ++target) {
            picks x = picks_new(1, 4, 2, 5, 150, 1, 1, 6);
            x.d.sparsity = 0.8f;
            x.d.mass_target = target ? 0.7f : 0;
            picks_run(&cuda, &x, 3, 1);
            got = got * 31 + mem_hash(x.d.map, x.blocks) + 7 * mem_hash(x.d.recall, 48) + 11 * mem_hash(x.d.bits, x.words * 4);
        }
        if (n == 0) want = got;
        if (got != want) fail_msg("other bits with %s, %s", threads[n % 4], copies[n % 3]);
        mem_done();
    }
    device_schedule("rr", "late", 1);
}

/* Sizes without touching a device: HunyuanVideo 720p. */
static void memory(void **state)
{
    svg2_backend cuda = svg2_cuda_backend(0);
    svg2_profile_desc p = SVG2_ZERO;
    svg2_pick_desc k = SVG2_ZERO;
    (void)state;
    p.batch = 1; p.heads = p.heads_kv = 24; p.tokens = 119056; p.head_dim = 128; p.sample_rows = 64;
    k.batch = 1; k.heads = k.heads_kv = 24; k.query_blocks = k.key_blocks = 1859; k.head_count = 4; k.sparsity = 0.8f;
    const size_t profile_bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_PROFILE, &p), pick_bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_PICK, &k);
    print_message("workspace of profile: %.1f MB, of pick: %.2f MB\n", (double)profile_bytes * 1e-6, (double)pick_bytes * 1e-6);
    assert_in_range(profile_bytes, 1, 60000000);
    assert_in_range(pick_bytes, 1, 1000000);
    p.sample_rows = 65536;
    assert_in_range(svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_PROFILE, &p), 1, 60000000);
    k.mass_target = 0.9f;
    k.key_blocks = INT32_MAX;
    assert_true(svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_PICK, &k) == SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(places),  TEST(bands),       TEST(picked),    TEST(profiles),
                                       TEST(planted), TEST(profile_alone), TEST(profile_nan), TEST(same_bits), TEST(memory)};
    return cmocka_run_group_tests_name("cuda_tiles", tests, 0, 0);
}
