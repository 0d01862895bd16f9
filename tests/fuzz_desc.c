/* Bytes become descriptors with small extents, and every entry point gets them. Checked under ASan and UBSan: no crash, no
   byte outside the caller's memory; an error leaves the outputs alone; on SVG2_OK the output is written, and finite
   where the inputs are. Built with libFuzzer, or with fuzz_main.c. */
#define _XOPEN_SOURCE 700
#define SVG2_IMPLEMENTATION
#include "../svg2.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__has_feature)
#  if __has_feature(address_sanitizer)
#    define HAS_ASAN 1
#  endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(HAS_ASAN)
#  include <sanitizer/asan_interface.h>
#else
#  define __asan_poison_memory_region(p, n) ((void)(p), (void)(n))
#  define __asan_unpoison_memory_region(p, n) ((void)(p), (void)(n))
#endif

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);
size_t fuzz_seed(int index, uint8_t *bytes, size_t capacity);

/* ---- bytes as a source of numbers --------------------------------------------------------- */
typedef struct source { const uint8_t *at, *end; uint32_t mix; } source;
static uint32_t take8(source *s)
{
    if (s->at < s->end) return *s->at++;
    s->mix = s->mix * 1664525u + 1013904223u; /* after the end: small pseudo-random numbers */
    return s->mix >> 24;
}
static uint32_t take32(source *s)
{
    uint32_t x = 0;
    for (int i = 0; i < 4; ++i) x = x << 8 | take8(s);
    return x;
}
/* Mostly in [low, high], sometimes anything. */
static int32_t number(source *s, int32_t low, int32_t high)
{
    uint32_t b = take8(s);
    if (b >= 252) return (int32_t)take32(s);
    return low + (int32_t)(b % (uint32_t)(high - low + 1));
}
static int32_t dimension(source *s)
{
    int32_t n = number(s, 1, 4);
    return n > 0 && n < 5 ? 8 * n : n;
}
static float fraction(source *s)
{
    uint32_t b = take8(s), bits;
    float x;
    if (b < 100) return 0;
    if (b < 250) return (float)(b - 100) / 149.0f;
    bits = take32(s);
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* ---- memory ------------------------------------------------------------------------------ */
#define SLOTS 64
static void *slot[SLOTS];
static size_t slot_bytes[SLOTS];
static int slots;
static void *block(size_t bytes) /* aligned to 64, ends where it ends, filled with 0xff */
{
    void *p = 0;
    if (slots == SLOTS || posix_memalign(&p, 64, bytes + 64) != 0) abort();
    memset(p, 0xff, bytes + 64);
    __asan_poison_memory_region((char *)p + bytes, 64);
    slot_bytes[slots] = bytes;
    slot[slots++] = p;
    return p;
}
static void release(void)
{
    while (slots) {
        --slots;
        __asan_unpoison_memory_region((char *)slot[slots] + slot_bytes[slots], 64);
        free(slot[slots]);
    }
}
static void check(int ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "fuzz_desc: %s\n", what);
    abort();
}
static int untouched(const void *p, size_t n)
{
    for (size_t i = 0; i < n; ++i)
        if (((const unsigned char *)p)[i] != 0xff) return 0;
    return 1;
}

/* ---- tensors ------------------------------------------------------------------------------ */
#define BIG ((size_t)1 << 20)
static size_t element(svg2_dtype t) { return t == SVG2_F32 ? 4 : 2; }
/* Bytes that [B, H, S, D] in this layout spans; BIG if that is too much for this harness. */
static size_t span(const svg2_layout *l, int32_t B, int32_t H, int32_t S, int32_t D)
{
    int64_t sb = l->stride_batch, sh = l->stride_head, st = l->stride_token;
    if (B < 1 || H < 1 || S < 1 || D < 1 || B > 16 || H > 64 || S > 4096 || D > 4096) return BIG;
    if (!sb && !sh && !st) { st = D; sh = (int64_t)S * D; sb = H * sh; }
    if (sb < 0 || sh < 0 || st < 0 || sb > 1000000 || sh > 1000000 || st > 1000000) return BIG; /* negative: refused before it is read */
    return (size_t)((B - 1) * sb + (H - 1) * sh + (S - 1) * st + D) * element(l->dtype);
}
static void fill(void *p, svg2_dtype t, size_t bytes, source *s, int wild)
{
    uint32_t state = take32(s);
    for (size_t i = 0; i < bytes / element(t); ++i) {
        float x;
        state = state * 1664525u + 1013904223u;
        x = (float)((int32_t)(state >> 16) - 32768) / 12000.0f;
        if (wild && (state >> 8) % 61 == 0) x = (state >> 3) % 3 == 0 ? NAN : (state >> 3) % 3 == 1 ? INFINITY : -3e38f;
        if (t == SVG2_F32) ((float *)p)[i] = x;
        else svg2_convert((uint16_t *)p + i, t, &x, SVG2_F32, 1);
    }
}
static svg2_layout layout(source *s, int32_t H, int32_t S, int32_t D)
{
    svg2_layout l = SVG2_ZERO;
    int32_t kind = number(s, 0, 9);
    l.dtype = (svg2_dtype)number(s, 0, 2);
    if (kind == 1) { l.stride_token = (int64_t)H * D; l.stride_head = D; l.stride_batch = (int64_t)(S % 4096) * (H % 64) * (D % 512); }
    if (kind == 2) { l.stride_token = (int64_t)D + 1; l.stride_head = (S % 4096) * l.stride_token; l.stride_batch = (H % 64) * l.stride_head; }
    if (kind == 3) { l.stride_token = number(s, 0, 100); l.stride_head = number(s, 0, 250); l.stride_batch = number(s, 0, 250); }
    if (kind == 4) { l.stride_token = (int64_t)take32(s) << 31; l.stride_head = (int32_t)take32(s); l.stride_batch = (int64_t)take32(s) << 30; }
    return l;
}
static void check_output(const void *out, const svg2_layout *l, int32_t B, int32_t H, int32_t S, int32_t D, const char *what)
{
    int64_t sb = l->stride_batch, sh = l->stride_head, st = l->stride_token;
    if (!sb && !sh && !st) { st = D; sh = (int64_t)S * D; sb = H * sh; }
    for (int32_t b = 0; b < B; ++b)
        for (int32_t h = 0; h < H; ++h)
            for (int32_t t = 0; t < S; ++t)
                for (int32_t d = 0; d < D; ++d) {
                    int64_t at = b * sb + h * sh + t * st + d;
                    float x;
                    if (l->dtype == SVG2_F32) x = ((const float *)out)[at];
                    else svg2_convert(&x, SVG2_F32, (const uint16_t *)out + at, l->dtype, 1);
                    check(x - x == 0, what);
                }
}

/* ---- one entry point each ------------------------------------------------------------------ */
static void fuzz_attend(source *s, const svg2_backend *backend)
{
    svg2_desc d = SVG2_ZERO, r;
    svg2_error err;
    svg2_state state;
    int wild = take8(s) % 4 == 0, steps = 1 + (int)(take8(s) % 3);
    int32_t first = number(s, 0, 3);
    d.batch = number(s, 0, 2); d.heads = number(s, 1, 4); d.heads_kv = number(s, 0, 2);
    d.tokens = number(s, 1, 50); d.tokens_kv = number(s, 0, 1) ? number(s, 1, 50) : 0;
    d.head_dim = dimension(s);
    d.scale = fraction(s);
    d.q = layout(s, d.heads, d.tokens, d.head_dim);
    d.k = layout(s, d.heads, d.tokens, d.head_dim);
    d.v = layout(s, d.heads, d.tokens, d.head_dim);
    d.out = layout(s, d.heads, d.tokens, d.head_dim);
    if (number(s, 0, 2) == 2) { d.text_tokens = number(s, 0, 20); d.text_valid = number(s, -1, 20); d.text_place = (svg2_text_place)number(s, 0, 1); }
    if (number(s, 0, 5) == 5) { d.frames = number(s, 0, 5); d.frame_tokens = number(s, 0, 10); }
    static const svg2_method methods[] = {SVG2_METHOD_SVG2, SVG2_METHOD_SVG2, SVG2_METHOD_SVG1, SVG2_METHOD_SVG1, SVG2_METHOD_ADASPA,
                                          SVG2_METHOD_ADASPA, SVG2_METHOD_DENSE};
    const int32_t method = number(s, 0, 6);
    d.method = method >= 0 && method < 7 ? methods[method] : (svg2_method)method;
    d.query_clusters = number(s, 0, 20); d.key_clusters = number(s, 0, 60);
    d.init_iterations = number(s, 0, 3); d.step_iterations = number(s, -1, 3); d.keep_empty = number(s, 0, 1);
    d.seed = take8(s);
    d.route = (svg2_route)number(s, 0, 2); d.budget = (svg2_budget)number(s, 0, 2); d.tail = (svg2_tail_kind)number(s, 0, 3);
    d.top_p = fraction(s); d.min_keep = fraction(s); d.density = fraction(s); d.target_error = fraction(s); d.dense_above = fraction(s);
    d.layer = number(s, 0, 2); d.dense_layers = number(s, 0, 1); d.dense_steps = number(s, 0, 2); d.init_on_dense = number(s, 0, 1);
    d.state_dtype = number(s, 0, 3) == 3 ? SVG2_BF16 : SVG2_F32;
    d.block = number(s, 0, 20); d.keep = fraction(s); d.band_width = number(s, 0, 3) ? 0 : number(s, 0, 60);
    d.sample_rows = number(s, 0, 20); d.first_frame = number(s, -1, 1);
    d.sparsity = number(s, 0, 4) ? fraction(s) : -1.0f; d.mass_target = number(s, 0, 2) ? 0.0f : fraction(s);
    d.search_count = number(s, 0, 3);
    for (int i = 0, at = 0; i < 3; ++i) d.search_steps[i] = at += number(s, 0, 3) & 0xffff;
    d.skip = (svg2_skip)number(s, 0, 3); d.visit = (svg2_visit)number(s, 0, 2);
    d.skip_threshold = fraction(s); d.energy_lambda = -8.0f * fraction(s); d.recall = fraction(s);
    if (d.method == SVG2_METHOD_SVG1 && take8(s) % 8) { /* the one method that wants to know the frames */
        d.frames = 1 + (int32_t)(take8(s) % 5); d.frame_tokens = 1 + (int32_t)(take8(s) % 12); d.tokens_kv = 0; d.tail = SVG2_TAIL_DEFAULT;
        d.text_tokens = d.text_tokens < 0 || d.text_tokens > 20 ? 0 : d.text_tokens;
        d.tokens = d.frames * d.frame_tokens + d.text_tokens;
    }
    r = d;
    if (svg2_resolve(&r, &err) != SVG2_OK) {
        check(memcmp(&r, &d, sizeof d) == 0 && err.code != SVG2_OK && err.field && err.text, "resolve wrote on error");
        check(svg2_workspace_bytes(backend, &d) == SIZE_MAX && svg2_state_bytes(&d) == SIZE_MAX, "size of an invalid descriptor");
        return;
    }
    size_t work_bytes = svg2_workspace_bytes(backend, &d), state_bytes = svg2_state_bytes(&d);
    size_t qn = span(&r.q, r.batch, r.heads, r.tokens, r.head_dim), kn = span(&r.k, r.batch, r.heads_kv, r.tokens_kv, r.head_dim);
    size_t vn = span(&r.v, r.batch, r.heads_kv, r.tokens_kv, r.head_dim), on = span(&r.out, r.batch, r.heads, r.tokens, r.head_dim);
    if (work_bytes > 64 * BIG || state_bytes > 16 * BIG || qn >= BIG || kn >= BIG || vn >= BIG || on >= BIG) return;
    if (r.init_iterations > 10) r.init_iterations = d.init_iterations = 10;
    if (r.step_iterations > 10) r.step_iterations = d.step_iterations = 10;
    void *q = block(qn), *k = block(kn), *v = block(vn), *work = block(work_bytes), *memory = block(state_bytes);
    fill(q, r.q.dtype, qn, s, wild);
    fill(k, r.k.dtype, kn, s, wild);
    fill(v, r.v.dtype, vn, s, wild);
    size_t rows = (size_t)r.batch * (size_t)r.heads * (size_t)r.tokens, heads = (size_t)r.batch * (size_t)r.heads;
    check(svg2_state_init(&state, &d, memory, state_bytes, &err) == SVG2_OK, "state_init after resolve");
    for (int i = 0; i < steps; ++i) {
        void *out = block(on);
        float *lse = (float *)block(rows * 4);
        svg2_head_stats *stats = (svg2_head_stats *)block(heads * sizeof *stats);
        svg2_result result = svg2_attend(backend, &d, &state, first + i, q, k, v, out, lse, stats, work, work_bytes, &err);
        if (first < 0 || first + i < 0) {
            check(result == SVG2_ERR_RANGE && untouched(out, on), "negative step");
            return;
        }
        check(result == SVG2_OK, "attend after resolve");
        for (size_t h = 0; h < heads; ++h)
            check(stats[h].pairs >= 0 && stats[h].pairs <= stats[h].pairs_total && stats[h].density >= 0 && stats[h].density <= 1
                      && stats[h].pairs_pv >= 0 && stats[h].pairs_pv <= stats[h].pairs && stats[h].density_pv <= stats[h].density, "stats");
        svg2_plan plan = svg2_plan_view(backend, &d, first + i, work);
        if (plan.map)
            for (size_t n = 0; n < heads * (size_t)plan.query_blocks * (size_t)plan.key_blocks; ++n) check(plan.map[n] <= 1, "map");
        if (wild || !(r.scale < 4 && r.scale > -4)) continue;
        check_output(out, &r.out, r.batch, r.heads, r.tokens, r.head_dim, "output not finite");
        for (size_t n = 0; n < rows; ++n) check(lse[n] < 1e30f, "lse"); /* -INFINITY for padding, never NaN */
        if (r.skip == SVG2_SKIP_RECALL && (r.method == SVG2_METHOD_DENSE || r.method == SVG2_METHOD_SVG1)) { /* no state, no tail */
            float *whole = (float *)block(rows * 4);
            svg2_desc plain = d;
            plain.skip = SVG2_SKIP_NONE;
            check(svg2_attend(backend, &plain, &state, first + i, q, k, v, out, whole, 0, work, work_bytes, &err) == SVG2_OK, "no rule");
            for (size_t n = 0; n < rows; ++n) check(lse[n] >= whole[n] + logf(r.recall) - 1e-3f, "a row lost more than it may");
        }
        if (i == 0) {
            size_t n = svg2_state_save_bytes(&state);
            void *saved = block(n);
            check(svg2_state_save(backend, &state, saved, n, &err) == SVG2_OK, "save");
            check(svg2_state_load(backend, &state, saved, n, &err) == SVG2_OK, "load");
        }
    }
}

static void fuzz_state(source *s, const svg2_backend *backend)
{
    svg2_desc d = SVG2_ZERO;
    svg2_state state;
    svg2_error err;
    d.heads = 1; d.tokens = 10; d.head_dim = 8; d.query_clusters = 1; d.key_clusters = 2;
    size_t n = svg2_state_bytes(&d);
    void *memory = block(n);
    check(svg2_state_init(&state, &d, memory, n, &err) == SVG2_OK, "state_init");
    size_t count = (size_t)(s->end - s->at);
    void *bytes = block(count);
    memcpy(bytes, s->at, count);
    if (svg2_state_load(backend, &state, bytes, count, &err) != SVG2_OK) check(untouched(memory, n) && !state.is_warm, "load wrote on error");
}

static void fuzz_kmeans(source *s, const svg2_backend *backend)
{
    svg2_kmeans_desc d = SVG2_ZERO;
    svg2_error err;
    int wild = take8(s) % 4 == 0;
    d.batch = number(s, 1, 2); d.heads = number(s, 1, 3); d.tokens = number(s, 1, 60); d.head_dim = dimension(s);
    d.clusters = number(s, 1, 40); d.iterations = number(s, 0, 4); d.keep_empty = number(s, 0, 1);
    if (number(s, 0, 2) == 2) { d.token_begin = number(s, 0, 20); d.token_count = number(s, 0, 40); }
    d.seed = take8(s);
    d.layout = layout(s, d.heads, d.tokens, d.head_dim);
    d.store_dtype = (svg2_dtype)number(s, 0, 2);
    size_t n = span(&d.layout, d.batch, d.heads, d.tokens, d.head_dim);
    int small = d.batch > 0 && d.batch < 8 && d.heads > 0 && d.heads < 8 && d.tokens > 0 && d.tokens < 500 && d.head_dim > 0
             && d.head_dim <= 256 && d.clusters > 0 && d.clusters < 500 && n < BIG && d.iterations < 20;
    if (!small) {
        size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_KMEANS, &d);
        (void)bytes;
        return;
    }
    size_t heads = (size_t)d.batch * (size_t)d.heads, c = heads * (size_t)d.clusters * (size_t)d.head_dim;
    d.x = block(n);
    void *start = block(c * 4);
    fill(start, d.store_dtype == SVG2_F16 || d.store_dtype == SVG2_BF16 ? d.store_dtype : SVG2_F32, c * 4, s, wild);
    if (d.store_dtype == SVG2_F32 || d.store_dtype == SVG2_BF16 || d.store_dtype == SVG2_F16) d.store = take8(s) % 2 ? block(c * element(d.store_dtype)) : 0;
    d.start = take8(s) % 2 ? start : 0;
    if (d.start && take8(s) % 2) d.store = start;
    d.centroid = (float *)block(c * 4);
    d.mean = (float *)block(heads * (size_t)d.head_dim * 4);
    d.label = (int32_t *)block(heads * (size_t)d.tokens * 4);
    d.size = (int32_t *)block(heads * (size_t)d.clusters * 4);
    fill(slot[0], d.layout.dtype, n, s, wild);
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_KMEANS, &d);
    if (bytes == SIZE_MAX || bytes > 64 * BIG) bytes = 4096;
    if (svg2_kmeans(backend, &d, block(bytes), bytes, &err) != SVG2_OK) {
        check(untouched(d.centroid, c * 4) && untouched(d.label, heads * (size_t)d.tokens * 4), "kmeans wrote on error");
        return;
    }
    int32_t begin = d.token_begin, end = d.token_begin || d.token_count ? d.token_begin + d.token_count : d.tokens;
    for (size_t h = 0; h < heads; ++h) {
        int64_t total = 0;
        for (int32_t t = begin; t < end; ++t) {
            int32_t label = d.label[h * (size_t)d.tokens + (size_t)t];
            check(label >= 0 && label < d.clusters, "label");
        }
        for (int32_t i = 0; i < d.clusters; ++i) total += d.size[h * (size_t)d.clusters + (size_t)i];
        check(total == end - begin, "sizes");
    }
    for (size_t i = 0; i < c && !wild; ++i) check(d.centroid[i] - d.centroid[i] == 0, "centroid not finite");
}

/* Consistent random blocks of one side. */
static void make_blocks(source *s, size_t heads, int32_t S, int32_t n, int32_t **order, int32_t **offset)
{
    *order = (int32_t *)block(heads * (size_t)S * 4);
    *offset = (int32_t *)block(heads * (size_t)(n + 1) * 4);
    for (size_t h = 0; h < heads; ++h) {
        int32_t at = 0, step = S > 2 && S % 7 ? 7 : 1;
        for (int32_t t = 0; t < S; ++t) (*order)[h * (size_t)S + (size_t)t] = (int32_t)((int64_t)t * step % S);
        for (int32_t i = 0; i <= n; ++i) {
            (*offset)[h * (size_t)(n + 1) + (size_t)i] = i == n ? S : at;
            at += (int32_t)(take8(s) % (uint32_t)(2 * S / n + 2));
            if (at > S) at = S;
        }
    }
}

static void fuzz_blocks(source *s, const svg2_backend *backend)
{
    svg2_mass_desc m = SVG2_ZERO;
    svg2_attention_desc *d = &m.attention;
    svg2_error err;
    int wild = take8(s) % 4 == 0, tail = take8(s) % 3 == 0, has_map = take8(s) % 4 != 0;
    d->batch = number(s, 1, 2); d->heads = number(s, 1, 4); d->heads_kv = number(s, 0, 2) ? d->heads : 1;
    d->tokens = number(s, 1, 70); d->tokens_kv = number(s, 1, 70); d->head_dim = dimension(s);
    d->scale = fraction(s);
    d->query_blocks = number(s, 0, 12); d->key_blocks = number(s, 0, 12);
    if (number(s, 0, 3) == 3) { d->head_begin = number(s, 0, 4); d->head_count = number(s, 0, 4); }
    d->q_layout = layout(s, d->heads, d->tokens, d->head_dim);
    d->k_layout = layout(s, d->heads_kv, d->tokens_kv, d->head_dim);
    d->v_layout = layout(s, d->heads_kv, d->tokens_kv, d->head_dim);
    d->out_layout = layout(s, d->heads, d->tokens, d->head_dim);
    int small = d->batch > 0 && d->batch < 5 && d->heads > 0 && d->heads < 9 && d->heads_kv > 0 && d->heads_kv < 9 && d->tokens > 0
             && d->tokens < 300 && d->tokens_kv > 0 && d->tokens_kv < 300 && d->head_dim > 0 && d->head_dim <= 256
             && d->query_blocks >= 0 && d->query_blocks < 50 && d->key_blocks >= 0 && d->key_blocks < 50;
    if (!small) {
        check(svg2_attention(backend, d, 0, 0, &err) != SVG2_OK, "no pointers at all");
        return;
    }
    size_t qn = span(&d->q_layout, d->batch, d->heads, d->tokens, d->head_dim), on = span(&d->out_layout, d->batch, d->heads, d->tokens, d->head_dim);
    size_t kn = span(&d->k_layout, d->batch, d->heads_kv, d->tokens_kv, d->head_dim), vn = span(&d->v_layout, d->batch, d->heads_kv, d->tokens_kv, d->head_dim);
    if (qn >= BIG || kn >= BIG || vn >= BIG || on >= BIG) return;
    int32_t Qb = d->query_blocks ? d->query_blocks : 1, Kb = d->key_blocks ? d->key_blocks : 1;
    size_t heads = (size_t)d->batch * (size_t)d->heads, heads_kv = (size_t)d->batch * (size_t)d->heads_kv;
    void *q = block(qn), *k = block(kn), *v = block(vn);
    fill(q, d->q_layout.dtype, qn, s, wild);
    fill(k, d->k_layout.dtype, kn, s, wild);
    fill(v, d->v_layout.dtype, vn, s, wild);
    d->q = q; d->k = k; d->v = v; d->out = block(on);
    d->lse = (float *)block(heads * (size_t)d->tokens * 4);
    int32_t *order, *offset;
    if (d->query_blocks) { make_blocks(s, heads, d->tokens, Qb, &order, &offset); d->query_order = order; d->query_offset = offset; }
    if (d->key_blocks) { make_blocks(s, heads_kv, d->tokens_kv, Kb, &order, &offset); d->key_order = order; d->key_offset = offset; }
    uint8_t *map = (uint8_t *)block(heads * (size_t)(Qb * Kb));
    for (size_t i = 0; i < heads * (size_t)(Qb * Kb); ++i) map[i] = take8(s) & 1;
    if (has_map) d->map = map;
    float *mean = (float *)block(heads_kv * (size_t)d->head_dim * 4);
    fill(mean, SVG2_F32, heads_kv * (size_t)d->head_dim * 4, s, wild);
    if (take8(s) & 1) d->key_mean = mean;
    if (tail) {
        size_t n = heads_kv * (size_t)(Kb * d->head_dim) * 4;
        float *a = (float *)block(n), *b = (float *)block(n);
        fill(a, SVG2_F32, n, s, wild);
        fill(b, SVG2_F32, n, s, wild);
        d->tail_query_blocks = Qb; d->tail_key_blocks = Kb; d->key_centroid = a; d->value_mean = b;
        if (take8(s) & 1) {
            n = heads * (size_t)(Qb * d->head_dim) * (size_t)d->head_dim * 4;
            float *matrix = (float *)block(n);
            fill(matrix, SVG2_F32, n, s, wild);
            d->tail_matrix = matrix;
        }
        if (take8(s) & 1) {
            n = heads * (size_t)(Qb * Kb) * 4;
            float *log_mass = (float *)block(n);
            fill(log_mass, SVG2_F32, n, s, wild);
            d->log_mass = log_mass;
        }
    }
    if (take8(s) & 1) {
        d->skip = (svg2_skip)number(s, 0, 3); d->visit = (svg2_visit)number(s, 0, 2);
        d->skip_threshold = fraction(s); d->energy_lambda = -8.0f * fraction(s); d->recall = fraction(s);
        d->stats = (svg2_head_stats *)block(heads * sizeof *d->stats);
        for (size_t i = 0; i < heads; ++i) d->stats[i].pairs_total = (int64_t)d->tokens * d->tokens_kv;
        if (take8(s) & 1) {
            float *seed = (float *)block(heads * (size_t)d->tokens * 4);
            fill(seed, SVG2_F32, heads * (size_t)d->tokens * 4, s, wild);
            d->lse_seed = seed;
        }
    }
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_ATTENTION, d);
    if (bytes == SIZE_MAX || bytes > 64 * BIG) bytes = 4096;
    if (svg2_attention(backend, d, block(bytes), bytes, &err) != SVG2_OK) {
        check(untouched(d->out, on) && untouched(d->lse, heads * (size_t)d->tokens * 4), "attention wrote on error");
        return;
    }
    if (!wild && d->scale < 4 && d->scale > -4 && !d->head_count) check_output(d->out, &d->out_layout, d->batch, d->heads, d->tokens, d->head_dim, "attention not finite");
    for (size_t i = 0; i < heads && d->skip && d->stats && !d->head_count; ++i)
        check(d->stats[i].pairs_pv >= 0 && d->stats[i].pairs_pv <= d->stats[i].pairs_total, "pairs_pv");
    m.valid_key_blocks = take8(s) & 1 ? number(s, 0, 13) : 0;
    m.mass = (float *)block(heads * (size_t)(Qb * Kb) * 4);
    m.recall = (float *)block(heads * (size_t)d->tokens * 4);
    if (d->head_count) return; /* the LSE of the other heads was not written */
    bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_MASS, &m);
    if (bytes == SIZE_MAX || bytes > 64 * BIG) bytes = 4096;
    svg2_block_mass(backend, &m, block(bytes), bytes, &err);
}

static void fuzz_permute(source *s, const svg2_backend *backend)
{
    svg2_permute_desc d = SVG2_ZERO;
    svg2_error err;
    d.batch = number(s, 1, 2); d.heads = number(s, 1, 3); d.tokens = number(s, 1, 80); d.clusters = number(s, 1, 90);
    if (take8(s) & 1) { d.text_begin = number(s, 0, 60); d.text_count = number(s, 0, 20); }
    if (take8(s) & 1) { d.padding_begin = number(s, 0, 60); d.padding_count = number(s, 0, 20); }
    if (d.batch < 1 || d.batch > 8 || d.heads < 1 || d.heads > 8 || d.tokens < 1 || d.tokens > 500 || d.clusters < 1 || d.clusters > 500) {
        check(svg2_permute(backend, &d, 0, 0, &err) != SVG2_OK, "no pointers at all");
        return;
    }
    size_t n = (size_t)d.batch * (size_t)d.heads, blocks = (size_t)d.clusters + 2;
    d.label = (int32_t *)block(n * (size_t)d.tokens * 4);
    d.order = (int32_t *)block(n * (size_t)d.tokens * 4);
    d.offset = (int32_t *)block(n * (blocks + 1) * 4);
    for (size_t i = 0; i < n * (size_t)d.tokens; ++i) d.label[i] = (int32_t)(take8(s) % (uint32_t)d.clusters);
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_PERMUTE, &d);
    if (bytes == SIZE_MAX || bytes > 64 * BIG) bytes = 4096;
    if (svg2_permute(backend, &d, block(bytes), bytes, &err) != SVG2_OK) {
        check(untouched(d.order, n * (size_t)d.tokens * 4), "permute wrote on error");
        return;
    }
    for (size_t h = 0; h < n; ++h) {
        uint8_t seen[500] = {0};
        for (int32_t t = 0; t < d.tokens; ++t) {
            int32_t at = d.order[h * (size_t)d.tokens + (size_t)t];
            check(at >= 0 && at < d.tokens && !seen[at], "order is no permutation");
            seen[at] = 1;
        }
    }
}

static void fuzz_score(source *s, const svg2_backend *backend)
{
    svg2_score_desc d = SVG2_ZERO;
    svg2_error err;
    int wild = take8(s) % 4 == 0, missing;
    d.batch = number(s, 1, 2); d.heads = number(s, 1, 4); d.heads_kv = number(s, 0, 2) ? d.heads : 1;
    d.head_dim = dimension(s);
    d.tokens_kv = number(s, 1, 70); d.query_clusters = number(s, 1, 20); d.key_clusters = number(s, 1, 40);
    d.key_blocks = number(s, 1, 42); d.tokens = number(s, 0, 90); d.query_blocks = number(s, 1, 22);
    if (take8(s) % 4) { /* mostly blocks that fit */
        d.key_blocks = d.key_clusters < 1000 ? d.key_clusters + d.key_blocks % 3 : d.key_clusters;
        d.query_blocks = d.query_clusters < 1000 ? d.query_clusters + d.query_blocks % 3 : d.query_clusters;
    }
    d.scale = fraction(s);
    d.k_layout = layout(s, d.heads_kv, d.tokens_kv, d.head_dim);
    d.q_layout = layout(s, d.heads, d.tokens, d.head_dim);
    int small = d.batch > 0 && d.batch < 5 && d.heads > 0 && d.heads < 9 && d.heads_kv > 0 && d.heads_kv < 9
             && d.tokens_kv > 0 && d.tokens_kv < 300 && d.head_dim > 0 && d.head_dim <= 256 && d.query_clusters > 0
             && d.query_clusters < 100 && d.key_clusters > 0 && d.key_clusters < 100 && d.key_blocks < 110
             && d.query_blocks < 110 && d.tokens < 300;
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_SCORE, &d);
    if (!small) {
        check(svg2_score(backend, &d, 0, 0, &err) != SVG2_OK, "no pointers at all");
        return;
    }
    size_t H = (size_t)d.batch * (size_t)d.heads, K = (size_t)d.batch * (size_t)d.heads_kv, D = (size_t)d.head_dim;
    size_t kn = span(&d.k_layout, d.batch, d.heads_kv, d.tokens_kv, d.head_dim);
    size_t qn = d.tokens > 0 ? span(&d.q_layout, d.batch, d.heads, d.tokens, d.head_dim) : 64;
    size_t out = H * (size_t)d.query_clusters * (size_t)d.key_clusters;
    size_t n[3] = {H * (size_t)d.query_clusters * D * 4, K * (size_t)d.key_clusters * D * 4, K * D * 4};
    float *f[3];
    int32_t *order, *offset;
    if (kn >= BIG || qn >= BIG) return;
    void *k = block(kn), *q = block(qn);
    fill(k, d.k_layout.dtype, kn, s, wild);
    fill(q, d.q_layout.dtype, qn, s, wild);
    for (int i = 0; i < 3; ++i) {
        f[i] = (float *)block(n[i]);
        fill(f[i], SVG2_F32, n[i], s, wild);
    }
    d.k = k; d.q = q; d.query_centroid = f[0]; d.key_centroid = f[1]; d.key_mean = f[2];
    make_blocks(s, K, d.tokens_kv, d.key_blocks > 0 ? d.key_blocks : 1, &order, &offset);
    d.key_order = order; d.key_offset = offset;
    make_blocks(s, H, d.tokens > 0 ? d.tokens : 1, d.query_blocks > 0 ? d.query_blocks : 1, &order, &offset);
    d.query_order = order; d.query_offset = offset;
    float *log_mass = d.log_mass = (float *)block(out * 4), *share = d.share = (float *)block(out * 4);
    missing = (int)(take8(s) % 24); /* of these one at most is left out; without tokens none of them may matter */
    if (missing == 0) d.q = 0;
    if (missing == 1) d.query_order = 0;
    if (missing == 2) d.query_offset = 0;
    if (missing == 3) d.key_mean = 0;
    if (missing == 4) d.share = 0;
    if (missing == 5) d.q = (const char *)q + 1;
    if (missing > 5 && d.tokens == 0) { /* never followed */
        d.q = d.query_order = d.query_offset = (const int32_t *)64;
        d.key_mean = (const float *)128;
        d.query_blocks = (int32_t)take32(s);
    }
    if (bytes == SIZE_MAX || bytes > 64 * BIG) bytes = 4096;
    if (svg2_score(backend, &d, block(bytes), bytes, &err) != SVG2_OK) {
        check(untouched(log_mass, out * 4) && untouched(share, out * 4), "score wrote on error");
        return;
    }
    if (d.tokens == 0) check(untouched(share, out * 4), "a share without tokens");
    else check(missing > 5, "a missing pointer");
    for (size_t i = 0; i < out && !wild && d.scale < 4 && d.scale > -4; ++i) check(log_mass[i] < 1e30f, "log_mass");
    for (size_t row = 0; row < out / (size_t)d.key_clusters && d.tokens; ++row) {
        size_t h = row / (size_t)d.query_clusters, I = row % (size_t)d.query_clusters, Kb = (size_t)d.key_blocks + 1;
        const int32_t *rows = d.query_offset + h * ((size_t)d.query_blocks + 1) + I;
        const int32_t *keys = d.key_offset + (h / (size_t)d.heads * (size_t)d.heads_kv
                                              + h % (size_t)d.heads / (size_t)(d.heads / d.heads_kv)) * Kb;
        double sum = 0;
        for (size_t j = 0; j < (size_t)d.key_clusters; ++j) {
            float x = share[row * (size_t)d.key_clusters + j];
            if (rows[1] == rows[0]) check(x == 0, "share of no rows");
            if (wild || !(d.scale < 4 && d.scale > -4)) continue;
            check(x >= 0 && (x == 0 || keys[j + 1] > keys[j]), "share");
            sum += (double)x;
        }
        if (wild || !(d.scale < 4 && d.scale > -4) || rows[1] == rows[0]) continue;
        check(fabs(sum - (keys[d.key_clusters] > keys[0] ? 1 : 0)) < 1e-4, "shares do not sum to 1");
    }
}

static void fuzz_select(source *s, const svg2_backend *backend)
{
    svg2_select_desc d = SVG2_ZERO;
    svg2_error err;
    int wild = take8(s) % 4 == 0;
    d.batch = number(s, 1, 2); d.heads = number(s, 1, 4); d.heads_kv = number(s, 0, 2) ? d.heads : 1; d.head_dim = dimension(s);
    d.query_clusters = number(s, 1, 20); d.key_clusters = number(s, 1, 40); d.has_text = number(s, 0, 1); d.has_padding = number(s, 0, 1);
    d.scale = fraction(s);
    d.route = (svg2_route)number(s, 1, 2); d.budget = (svg2_budget)number(s, 1, 2); d.tail = (svg2_tail_kind)number(s, 1, 3);
    d.top_p = fraction(s); d.min_keep = fraction(s); d.density = fraction(s); d.target_error = fraction(s); d.dense_above = fraction(s);
    if (d.batch < 1 || d.batch > 4 || d.heads < 1 || d.heads > 8 || d.heads_kv < 1 || d.heads_kv > 8 || d.head_dim < 1 || d.head_dim > 256
        || d.query_clusters < 1 || d.query_clusters > 100 || d.key_clusters < 1 || d.key_clusters > 100) {
        check(svg2_select(backend, &d, 0, 0, &err) != SVG2_OK, "no pointers at all");
        return;
    }
    size_t H = (size_t)d.batch * (size_t)d.heads, K = (size_t)d.batch * (size_t)d.heads_kv, D = (size_t)d.head_dim;
    size_t q = H * (size_t)d.query_clusters * D * 4, k = K * (size_t)d.key_clusters * D * 4, v = K * (size_t)d.key_clusters * 4;
    int32_t Qb = d.query_clusters + (d.has_text != 0) + (d.has_padding != 0), Kb = d.key_clusters + (d.has_text != 0) + (d.has_padding != 0);
    float *f[7];
    size_t n[7];
    n[0] = q; n[1] = k; n[2] = K * D * 4; n[3] = H * (size_t)d.query_clusters * (size_t)d.key_clusters * 4; n[4] = k; n[5] = v;
    n[6] = n[3];
    int share = (int)(take8(s) % 4), sane = 1; /* none; anything; not negative, twice */
    for (int i = 0; i < 7; ++i) {
        f[i] = (float *)block(n[i]);
        fill(f[i], SVG2_F32, n[i], s, wild);
        for (size_t e = 0; e < n[i] / 4 && (i == 5 || (i == 6 && share > 1)); ++e) f[i][e] = fabsf(f[i][e]); /* variances */
    }
    d.share = share ? f[6] : 0;
    d.query_centroid = f[0]; d.key_centroid = f[1]; d.key_mean = f[2]; d.log_mass = take8(s) & 1 ? f[3] : 0; d.value_mean = f[4]; d.value_var = f[5];
    int32_t *order, *qo, *ko;
    make_blocks(s, H, 90, Qb, &order, &qo);
    make_blocks(s, K, 90, Kb, &order, &ko);
    d.query_offset = qo; d.key_offset = ko;
    d.map = (uint8_t *)block(H * (size_t)(Qb * Kb));
    d.stats = (svg2_head_stats *)block(H * sizeof *d.stats);
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_SELECT, &d);
    if (bytes == SIZE_MAX || bytes > 64 * BIG) bytes = 4096;
    if (svg2_select(backend, &d, block(bytes), bytes, &err) != SVG2_OK) {
        check(untouched(d.map, H * (size_t)(Qb * Kb)) && untouched(d.stats, H * sizeof *d.stats), "select wrote on error");
        return;
    }
    for (size_t i = 0; i < H * (size_t)(Qb * Kb); ++i) check(d.map[i] <= 1, "map");
    for (size_t row = 0; row < H * (size_t)d.query_clusters && d.share; ++row) {
        size_t h = row / (size_t)d.query_clusters, I = row % (size_t)d.query_clusters, C = (size_t)d.key_clusters;
        if (qo[h * (size_t)(Qb + 1) + I + 1] == qo[h * (size_t)(Qb + 1) + I]) continue;
        for (size_t j = 0; j < C; ++j) sane = (j ? sane : 1) && d.share[row * C + j] >= 0 && d.share[row * C + j] <= 3e38f;
        for (size_t j = 0; j < C && !sane; ++j)
            check(d.map[(h * (size_t)Qb + I) * (size_t)Kb + j] == 1, "row with a bad share");
    }
}

/* A grid of video tokens, mostly small. */
static int32_t small_grid(source *s, int32_t *frames, int32_t *frame_tokens, int32_t *tile, int32_t *first_frame)
{
    *frames = number(s, 1, 6);
    *frame_tokens = number(s, 1, 16);
    *tile = number(s, 1, 20);
    *first_frame = number(s, 0, 1);
    return *frames > 0 && *frames < 100 && *frame_tokens > 0 && *frame_tokens < 100 && *frames * *frame_tokens < 500;
}

static void fuzz_place(source *s, const svg2_backend *backend)
{
    svg2_place_desc d = SVG2_ZERO;
    svg2_error err;
    const int is_small = small_grid(s, &d.frames, &d.frame_tokens, &d.block, &d.first_frame);
    int32_t blocks;
    d.batch = number(s, 1, 2); d.heads = number(s, 1, 4); d.pattern_heads = number(s, 0, 4);
    d.video_begin = number(s, 0, 9);
    d.video_count = is_small && take8(s) % 8 ? d.frames * d.frame_tokens : number(s, 0, 90);
    d.tokens = is_small && d.video_begin >= 0 && d.video_begin < 100 ? d.frames * d.frame_tokens + d.video_begin + number(s, 0, 4) % 8
                                                                     : number(s, 1, 90);
    blocks = svg2_place_blocks(&d);
    check(blocks >= 0, "number of blocks");
    if (!is_small || d.batch < 1 || d.batch > 4 || d.heads < 1 || d.heads > 8 || d.tokens < 1 || d.tokens > 900) {
        check(svg2_place(backend, &d, 0, 0, &err) != SVG2_OK, "no pointers at all");
        return;
    }
    size_t heads = (size_t)d.batch * (size_t)d.heads, n = heads * (size_t)d.tokens;
    int32_t *label = d.label = (int32_t *)block(n * 4), *pattern = (int32_t *)block(heads * 4);
    for (size_t i = 0; i < heads; ++i) pattern[i] = number(s, 0, 1);
    if (take8(s) % 4) d.pattern = pattern;
    if (svg2_place(backend, &d, 0, 0, &err) != SVG2_OK) {
        check(untouched(label, n * 4), "place wrote on error");
        return;
    }
    for (size_t h = 0; h < heads; ++h) {
        int32_t count[1000] = {0};
        for (int32_t t = 0; t < d.tokens; ++t) {
            const int32_t *at = label + h * (size_t)d.tokens + (size_t)t;
            if (t < d.video_begin || t >= d.video_begin + d.video_count) check(untouched(at, 4), "a label beside the video");
            else {
                check(*at >= 0 && *at < blocks, "label of a block");
                check(++count[*at] <= d.block, "more tokens than a block has");
            }
        }
        for (int32_t i = 0; i < blocks; ++i) check(count[i] > 0, "a block without tokens");
    }
}

static void fuzz_band(source *s, const svg2_backend *backend)
{
    svg2_band_desc d = SVG2_ZERO;
    svg2_error err;
    const int is_small = small_grid(s, &d.frames, &d.frame_tokens, &d.block, &d.first_frame);
    const float keep = fraction(s);
    svg2_place_desc place = SVG2_ZERO;
    d.batch = number(s, 1, 2); d.heads = number(s, 1, 4); d.heads_kv = number(s, 0, 2) ? d.heads : 1;
    d.width = number(s, 1, 60);
    d.has_text = number(s, 0, 1); d.has_padding = number(s, 0, 1);
    if (is_small && take8(s) & 1) {
        d.width = svg2_band_width(d.frames, d.frame_tokens, d.block, d.first_frame, number(s, 0, 30), keep);
        check(d.width >= 0 && d.width <= d.frames * d.frame_tokens, "band width");
    }
    if (!is_small || d.batch < 1 || d.batch > 4 || d.heads < 1 || d.heads > 8 || d.heads_kv < 1 || d.heads_kv > 8
        || d.has_text < 0 || d.has_text > 1 || d.has_padding < 0 || d.has_padding > 1) {
        check(svg2_band(backend, &d, 0, 0, &err) != SVG2_OK, "no pointers at all");
        return;
    }
    place.frames = d.frames; place.frame_tokens = d.frame_tokens; place.block = d.block; place.first_frame = d.first_frame;
    const size_t H = (size_t)d.batch * (size_t)d.heads, K = (size_t)d.batch * (size_t)d.heads_kv;
    const size_t video = (size_t)svg2_place_blocks(&place), seen = video + (size_t)d.has_text, n = seen + (size_t)d.has_padding;
    uint8_t *map = d.map = (uint8_t *)block(H * n * n);
    int32_t *pattern = (int32_t *)block(K * 4), *order, *offset;
    float *error = (float *)block(H * 8);
    svg2_head_stats *stats = (svg2_head_stats *)block(H * sizeof *stats);
    for (size_t i = 0; i < K; ++i) pattern[i] = number(s, 0, 1);
    fill(error, SVG2_F32, H * 8, s, 0);
    d.pattern = pattern;
    if (take8(s) & 1) d.error = error;
    if (n) {
        make_blocks(s, H, 90, (int32_t)n, &order, &offset); d.query_offset = offset;
        make_blocks(s, K, 90, (int32_t)n, &order, &offset); d.key_offset = offset;
    }
    if (take8(s) % 4) d.stats = stats;
    if (svg2_band(backend, &d, 0, 0, &err) != SVG2_OK) {
        check(untouched(map, H * n * n) && untouched(stats, H * sizeof *stats), "band wrote on error");
        return;
    }
    for (size_t h = 0; h < H; ++h)
        for (size_t i = 0; i < n; ++i)
            for (size_t j = 0; j < n; ++j) {
                const uint8_t x = map[(h * n + i) * n + j];
                check(x <= 1, "map");
                if (i == j && i < seen) check(x == 1, "a block does not see itself");
                if (i >= seen || j >= seen) check(x == 0, "padding");
                else if (i >= video || j >= video) check(x == 1, "text");
            }
    for (size_t h = 0; h < H && d.stats; ++h)
        check(stats[h].density >= 0 && stats[h].density <= 1 && stats[h].pairs == stats[h].pairs_pv
                  && (stats[h].pattern == 0 || stats[h].pattern == 1), "stats");
}

static void fuzz_pick(source *s, const svg2_backend *backend)
{
    svg2_pick_desc d = SVG2_ZERO;
    svg2_error err;
    const int wild = take8(s) % 4 == 0;
    d.batch = number(s, 1, 2); d.heads = number(s, 1, 4); d.heads_kv = number(s, 0, 2) ? d.heads : 1;
    d.has_text = number(s, 0, 1); d.has_padding = number(s, 0, 1);
    d.query_blocks = number(s, 1, 20); d.key_blocks = number(s, 1, 70);
    d.sparsity = fraction(s);
    if (take8(s) % 3 == 0) d.mass_target = fraction(s);
    const int32_t group = number(s, 1, 4), all = d.batch > 0 && d.batch < 9 && d.heads > 0 && d.heads < 9 ? d.batch * d.heads : 0;
    d.head_count = group;
    if (!all || d.heads_kv < 1 || d.heads_kv > 8 || d.query_blocks < 1 || d.query_blocks > 90 || d.key_blocks < 1
        || d.key_blocks > 200 || group < 1 || d.has_text < 0 || d.has_text > 1 || d.has_padding < 0 || d.has_padding > 1) {
        check(svg2_pick(backend, &d, 0, 0, &err) != SVG2_OK, "no pointers at all");
        (void)svg2_stage_workspace_bytes(backend, SVG2_STAGE_PICK, &d);
        return;
    }
    const size_t H = (size_t)all, K = (size_t)d.batch * (size_t)d.heads_kv, Qb = (size_t)d.query_blocks, Kb = (size_t)d.key_blocks;
    const size_t words = (Kb + 31) / 32;
    uint8_t *map = d.map = (uint8_t *)block(H * Qb * Kb), *again = (uint8_t *)block(H * Qb * Kb);
    uint32_t *bits = (uint32_t *)block(H * Qb * words * 4);
    float *mass = (float *)block(H * Qb * Kb * 4), *recall = d.recall = (float *)block(H * 12);
    svg2_head_stats *stats = (svg2_head_stats *)block(H * sizeof *stats), *stats_again = (svg2_head_stats *)block(H * sizeof *stats);
    int32_t *order, *offset;
    fill(mass, SVG2_F32, H * Qb * Kb * 4, s, wild);
    for (size_t i = 0; i < H * Qb * Kb; ++i) mass[i] = fabsf(mass[i]);
    make_blocks(s, H, 90, d.query_blocks, &order, &offset); d.query_offset = offset;
    make_blocks(s, K, 90, d.key_blocks, &order, &offset); d.key_offset = offset;
    if (take8(s) % 4) d.stats = stats;
    if (take8(s) % 4) d.bits = bits;
    for (; d.head_begin < all; d.head_begin += group) {
        if (take8(s) % 32) d.head_count = group < all - d.head_begin ? group : all - d.head_begin;
        d.mass = mass + (size_t)d.head_begin * Qb * Kb;
        size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_PICK, &d);
        if (bytes == SIZE_MAX || bytes > 64 * BIG) bytes = 4096;
        if (svg2_pick(backend, &d, block(bytes), bytes, &err) != SVG2_OK) {
            check(d.head_begin || (untouched(map, H * Qb * Kb) && untouched(recall, H * 12)), "pick wrote on error");
            check(untouched(stats, H * sizeof *stats), "pick wrote stats on error");
            return;
        }
    }
    const size_t rows = Qb - (size_t)(d.has_text + d.has_padding), keys = Kb - (size_t)(d.has_text + d.has_padding);
    for (size_t row = 0; row < H * Qb; ++row) {
        const uint8_t *m = map + row * Kb;
        size_t kept = 0;
        for (size_t j = 0; j < Kb; ++j) {
            check(m[j] <= 1 && (!d.bits || (bits[row * words + j / 32] >> j % 32 & 1) == m[j]), "map and bits");
            kept += m[j];
        }
        if (d.has_padding) check(m[Kb - 1] == 0, "padding is seen");
        if (row % Qb < rows) check(kept > 0 || d.mass_target > 0, "a row without a block");
        if (row % Qb < rows && d.has_text) check(m[keys] == 1, "text is not seen");
        if (row % Qb >= rows) check(kept == (row % Qb == rows && d.has_text ? keys + 1 : 0), "row of text or padding");
    }
    for (size_t i = 0; i < 3 * H; ++i) check(recall[i] >= 0 && recall[i] <= 1.0001f, "recall");
    if (!d.bits) return;
    d.mass = 0; d.head_begin = 0; d.head_count = all; d.map = again; /* the same from what was kept */
    d.stats = d.stats ? stats_again : 0;
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_PICK, &d);
    check(svg2_pick(backend, &d, block(bytes), bytes, &err) == SVG2_OK && memcmp(map, again, H * Qb * Kb) == 0, "map from bits");
    for (size_t h = 0; h < H && d.stats; ++h)
        check(stats[h].pairs == stats_again[h].pairs && stats[h].recall == stats_again[h].recall, "stats from bits");
}

static void fuzz_profile(source *s, const svg2_backend *backend)
{
    svg2_profile_desc d = SVG2_ZERO;
    svg2_error err;
    const int wild = take8(s) % 4 == 0, is_small = small_grid(s, &d.frames, &d.frame_tokens, &d.block, &d.first_frame);
    d.batch = number(s, 1, 2); d.heads = number(s, 1, 4); d.heads_kv = number(s, 0, 2) ? d.heads : 1;
    d.head_dim = dimension(s);
    d.video_begin = number(s, 0, 9);
    d.tokens = is_small && d.video_begin >= 0 && d.video_begin < 100 ? d.frames * d.frame_tokens + d.video_begin + number(s, 0, 9) % 99
                                                                     : number(s, 1, 90);
    d.text_begin = take8(s) & 1 ? 0 : number(s, 0, 90); d.text_count = number(s, 0, 9);
    d.width = number(s, 1, 60); d.sample_rows = number(s, 1, 90);
    d.seed = take8(s); d.scale = fraction(s);
    d.q_layout = layout(s, d.heads, d.tokens, d.head_dim);
    d.k_layout = layout(s, d.heads_kv, d.tokens, d.head_dim);
    d.v_layout = layout(s, d.heads_kv, d.tokens, d.head_dim);
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_PROFILE, &d);
    const size_t qn = span(&d.q_layout, d.batch, d.heads, d.tokens, d.head_dim), kn = span(&d.k_layout, d.batch, d.heads_kv, d.tokens, d.head_dim);
    const size_t vn = span(&d.v_layout, d.batch, d.heads_kv, d.tokens, d.head_dim);
    if (!is_small || d.batch < 1 || d.batch > 4 || d.heads < 1 || d.heads > 8 || d.heads_kv < 1 || d.heads_kv > 8
        || d.tokens < 1 || d.tokens > 900 || d.head_dim < 1 || d.head_dim > 256 || d.sample_rows > 300 || qn >= BIG || kn >= BIG || vn >= BIG) {
        check(svg2_profile(backend, &d, 0, 0, &err) != SVG2_OK, "no pointers at all");
        return;
    }
    const size_t H = (size_t)d.batch * (size_t)d.heads, K = (size_t)d.batch * (size_t)d.heads_kv;
    void *q = block(qn), *k = block(kn), *v = block(vn);
    float *mean = (float *)block(K * (size_t)d.head_dim * 4), *error = (float *)block(H * 8);
    int32_t *pattern = d.pattern = (int32_t *)block(K * 4);
    fill(q, d.q_layout.dtype, qn, s, wild);
    fill(k, d.k_layout.dtype, kn, s, wild);
    fill(v, d.v_layout.dtype, vn, s, wild);
    fill(mean, SVG2_F32, K * (size_t)d.head_dim * 4, s, wild);
    d.q = q; d.k = k; d.v = v;
    if (take8(s) & 1) d.key_mean = mean;
    if (take8(s) % 4) d.error = error;
    if (bytes == SIZE_MAX || bytes > 64 * BIG) bytes = 4096;
    if (svg2_profile(backend, &d, block(bytes), bytes, &err) != SVG2_OK) {
        check(untouched(pattern, K * 4) && untouched(error, H * 8), "profile wrote on error");
        return;
    }
    for (size_t i = 0; i < K; ++i) check(pattern[i] == 0 || pattern[i] == 1, "pattern");
    for (size_t i = 0; i < 2 * H && d.error && !wild && d.scale < 4 && d.scale > -4; ++i) check(error[i] >= 0 && error[i] < 1e30f, "error");
}

static void fuzz_front(source *s, const svg2_backend *backend)
{
    svg2_front_desc d = SVG2_ZERO;
    svg2_error err;
    const int wild = take8(s) % 4 == 0, is_in_place = take8(s) % 4 == 0;
    d.batch = number(s, 1, 2); d.heads = number(s, 1, 4); d.heads_kv = number(s, 0, 3);
    d.tokens = number(s, 1, 60); d.head_dim = dimension(s);
    if (take8(s) % 2) { d.video_begin = number(s, 0, 5); d.video_count = number(s, 0, 50); }
    d.norm = (svg2_norm)number(s, 0, 2); d.pairing = (svg2_pairing)number(s, 0, 1); d.epsilon = fraction(s);
    if (take8(s) % 4 == 0) { d.rope_tokens = number(s, 0, 60); d.rope_stride = number(s, 0, 100); d.rope_heads = number(s, 0, 4); }
    d.q_layout = layout(s, d.heads, d.tokens, d.head_dim);
    d.k_layout = layout(s, d.heads_kv, d.tokens, d.head_dim);
    d.q_out_layout = is_in_place ? d.q_layout : layout(s, d.heads, d.tokens, d.head_dim);
    d.k_out_layout = is_in_place ? d.k_layout : layout(s, d.heads_kv, d.tokens, d.head_dim);
    const int32_t kv = d.heads_kv ? d.heads_kv : d.heads;
    const int small = d.batch > 0 && d.batch < 5 && d.heads > 0 && d.heads < 9 && kv > 0 && kv < 9 && d.tokens > 0 && d.tokens < 300 && d.head_dim > 0 && d.head_dim <= 256;
    if (!small) {
        check(svg2_front(backend, &d, 0, 0, &err) != SVG2_OK, "no pointers at all");
        return;
    }
    const size_t q = span(&d.q_layout, d.batch, d.heads, d.tokens, d.head_dim), k = span(&d.k_layout, d.batch, kv, d.tokens, d.head_dim),
                 qo = span(&d.q_out_layout, d.batch, d.heads, d.tokens, d.head_dim), ko = span(&d.k_out_layout, d.batch, kv, d.tokens, d.head_dim);
    if (q >= BIG || k >= BIG || qo >= BIG || ko >= BIG || d.rope_stride > 1000) return;
    void *qp = block(q), *kp = block(k);
    fill(qp, d.q_layout.dtype, q, s, wild);
    fill(kp, d.k_layout.dtype, k, s, wild);
    const uint32_t parts = take8(s);
    if (parts % 8 != 1) { d.q = qp; d.q_out = is_in_place ? qp : block(qo); }
    if (parts % 8 != 2) { d.k = kp; d.k_out = is_in_place ? kp : block(ko); }
    const int32_t video = d.video_count > 0 ? d.video_count : d.tokens, heads = d.rope_heads > 1 ? d.rope_heads : 1;
    const size_t stride = d.rope_stride > 0 ? (size_t)d.rope_stride : (size_t)(heads * d.head_dim / 2);
    if (parts / 8 % 4 && video < 300 && heads < 9) { /* to the last number that may be read */
        const size_t n = ((size_t)(video - 1) * stride + (size_t)(heads * d.head_dim / 2)) * 4;
        float *cosine = (float *)block(n), *sine = (float *)block(n);
        fill(cosine, SVG2_F32, n, s, 0);
        fill(sine, SVG2_F32, n, s, 0);
        d.cosine = cosine; d.sine = sine;
    }
    if (parts / 32 % 2 && d.norm != SVG2_NORM_NONE) {
        const size_t n = (size_t)(d.norm == SVG2_NORM_TOKEN ? (d.heads > kv ? d.heads : kv) : 1) * (size_t)d.head_dim * 4;
        float *weight = (float *)block(n);
        fill(weight, SVG2_F32, n, s, 0);
        d.q_weight = d.k_weight = weight;
    }
    const size_t mean = (size_t)(d.batch * kv * d.head_dim) * 4;
    if (parts / 64 % 2) d.key_mean = (float *)block(mean);
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_FRONT, &d);
    if (bytes == SIZE_MAX || bytes > 64 * BIG) bytes = 4096;
    if (svg2_front(backend, &d, block(bytes), bytes, &err) != SVG2_OK) {
        check(is_in_place || ((!d.q_out || untouched(d.q_out, qo)) && (!d.k_out || untouched(d.k_out, ko))), "front wrote on error");
        check(!d.key_mean || untouched(d.key_mean, mean), "front wrote a mean on error");
        return;
    }
    if (!wild && d.q) check_output(d.q_out, &d.q_out_layout, d.batch, d.heads, d.tokens, d.head_dim, "front of q not finite");
    if (!wild && d.k) check_output(d.k_out, &d.k_out_layout, d.batch, kv, d.tokens, d.head_dim, "front of k not finite");
    for (size_t i = 0; i < mean / 4 && d.key_mean; ++i) check(d.key_mean[i] - d.key_mean[i] == 0, "key_mean not finite");
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    source s;
    svg2_simd simd;
    if (count < 2) return 0;
    s.at = bytes + 2;
    s.end = bytes + count;
    s.mix = (uint32_t)count * 2654435761u;
    simd = (svg2_simd)(bytes[1] % 5);
    svg2_backend backend = svg2_cpu_backend_simd(0, simd);
    switch (bytes[0] % 14) {
    case 0: case 1: case 2: fuzz_attend(&s, &backend); break;
    case 3: fuzz_kmeans(&s, &backend); break;
    case 4: fuzz_blocks(&s, &backend); break;
    case 5: fuzz_permute(&s, &backend); break;
    case 6: fuzz_select(&s, &backend); break;
    case 8: fuzz_score(&s, &backend); break;
    case 9: fuzz_place(&s, &backend); break;
    case 10: fuzz_band(&s, &backend); break;
    case 11: fuzz_pick(&s, &backend); break;
    case 12: fuzz_profile(&s, &backend); break;
    case 13: fuzz_front(&s, &backend); break;
    default: fuzz_state(&s, &backend);
    }
    release();
    return 0;
}

/* Seeds: each entry point with plain numbers; the last is a valid saved state. */
size_t fuzz_seed(int index, uint8_t *bytes, size_t capacity)
{
    uint32_t x = (uint32_t)index * 747796405u + 1u;
    if (index >= 52) return 0;
    if (index == 51) {
        svg2_backend backend = svg2_cpu_backend(0);
        svg2_desc d = SVG2_ZERO;
        svg2_state state;
        static union { double align; unsigned char bytes[8192]; } memory;
        unsigned char *aligned = memory.bytes + (64 - (uintptr_t)memory.bytes % 64) % 64;
        d.heads = 1; d.tokens = 10; d.head_dim = 8; d.query_clusters = 1; d.key_clusters = 2;
        memset(&memory, 0, sizeof memory);
        if (svg2_state_init(&state, &d, aligned, svg2_state_bytes(&d), 0) != SVG2_OK) return 0;
        size_t n = svg2_state_save_bytes(&state);
        if (n + 2 > capacity || svg2_state_save(&backend, &state, bytes + 2, n, 0) != SVG2_OK) return 0;
        bytes[0] = 7;
        bytes[1] = 0;
        return n + 2;
    }
    for (size_t i = 0; i < 96 && i < capacity; ++i) {
        x = x * 1664525u + 1013904223u;
        bytes[i] = (uint8_t)((x >> 24) % 240);
    }
    bytes[0] = (uint8_t)(index % 14);
    return 96;
}
