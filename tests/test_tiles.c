/* >>tiles, >>profile: blocks of neighbouring tokens, and the methods made of them, beside definitions in plain loops. */
#include "test.h"

typedef struct grid { int frames, frame_tokens, block, first; } grid;
static const grid grids[] = {{1, 64, 64, 0}, {4, 16, 8, 0}, {5, 30, 7, 1}, {3, 100, 64, 1}, {16, 9, 64, 1}, {2, 1, 1, 1}, {1, 1, 64, 0}, {1, 10, 4, 1}, {7, 13, 1, 0}, {6, 25, 1000, 1}};

static int64_t position(const grid *g, int pattern, int t)
{
    const int frame = t / g->frame_tokens, place = t % g->frame_tokens;
    return pattern ? (int64_t)place * g->frames + frame : (int64_t)frame * g->frame_tokens + place;
}

/* Labels by the definition: tokens in order of position (the first frame before the others), cut into blocks. */
static int ref_labels(const grid *g, int pattern, int32_t *label)
{
    const int video = g->frames * g->frame_tokens;
    int blocks = 0, in_block = 0;
    for (int part = 0; part < 2; ++part) {
        for (int64_t p = 0; p < video; ++p) {
            const int t = pattern ? (int)(p % g->frames * g->frame_tokens + p / g->frames) : (int)p;
            if (position(g, pattern, t) != p) fail();
            if ((g->first && t < g->frame_tokens) != (part == 0)) continue;
            if (in_block == g->block) ++blocks, in_block = 0;
            label[t] = blocks;
            ++in_block;
        }
        if (in_block) ++blocks, in_block = 0;
    }
    return blocks;
}

static svg2_place_desc place_of(const grid *g, int batch, int heads, int tokens, int begin, const int32_t *pattern, int pattern_heads, int32_t *label)
{
    svg2_place_desc d = SVG2_ZERO;
    d.batch = batch; d.heads = heads; d.tokens = tokens;
    d.video_begin = begin; d.video_count = g->frames * g->frame_tokens;
    d.frames = g->frames; d.frame_tokens = g->frame_tokens; d.block = g->block; d.first_frame = g->first;
    d.pattern = pattern; d.pattern_heads = pattern_heads; d.label = label;
    return d;
}

static void places(void **state)
{
    (void)state;
    svg2_backend b = svg2_cpu_backend(0);
    svg2_error err;
    for (int i = 0; i < COUNT(grids); ++i) {
        const grid *g = &grids[i];
        const int video = g->frames * g->frame_tokens, tokens = video + 5;
        int32_t *label = (int32_t *)mem_new((size_t)(8 * tokens) * 4), *want = (int32_t *)mem_new((size_t)video * 4), pattern[4] = {0, 1, 1, 0};
        svg2_place_desc d = place_of(g, 2, 4, tokens, 3, pattern, 2, label); /* pattern [2, 2]: two heads share one */
        assert_ok(svg2_place(&b, &d, 0, 0, &err));
        for (int h = 0; h < 8; ++h) {
            assert_int_equal(svg2_place_blocks(&d), ref_labels(g, pattern[h / 2], want));
            assert_memory_equal(label + h * tokens + 3, want, (size_t)video * 4);
            assert_untouched(label + h * tokens, 12);
            assert_untouched(label + h * tokens + 3 + video, 8);
        }
        d.pattern = 0;
        assert_ok(svg2_place(&b, &d, 0, 0, &err));
        (void)ref_labels(g, 0, want);
        assert_memory_equal(label + 7 * tokens + 3, want, (size_t)video * 4);
        mem_done();
    }
}

/* Blocks see each other if their spans of positions come closer than width; spans from the labels. */
static void ref_band(const grid *g, int pattern, int width, int has_text, int has_padding, uint8_t *map)
{
    const int video = g->frames * g->frame_tokens;
    int32_t *label = (int32_t *)mem_new((size_t)video * 4);
    const int n = ref_labels(g, pattern, label), all = n + has_text + has_padding, head = g->first ? (g->frame_tokens + g->block - 1) / g->block : 0;
    int64_t *low = (int64_t *)mem_new((size_t)n * 8), *high = (int64_t *)mem_new((size_t)n * 8);
    for (int j = 0; j < n; ++j) low[j] = INT64_MAX, high[j] = -1;
    for (int t = 0; t < video; ++t) {
        const int64_t p = position(g, pattern, t);
        if (p < low[label[t]]) low[label[t]] = p;
        if (p > high[label[t]]) high[label[t]] = p;
    }
    memset(map, 0, (size_t)(all * all));
    for (int i = 0; i < n + has_text; ++i)
        for (int j = 0; j < n + has_text; ++j)
            map[i * all + j] = i == n || j == n || j < head || !(low[j] - high[i] >= width || low[i] - high[j] >= width);
}

static void bands(void **state)
{
    (void)state;
    svg2_backend b = svg2_cpu_backend(0);
    svg2_error err;
    uint64_t r = 1;
    for (int i = 0; i < COUNT(grids); ++i)
        for (int n = 0; n < 6; ++n) {
            const grid *g = &grids[i];
            const int video = g->frames * g->frame_tokens, text = n % 2 ? 6 : 0, padding = n % 3 ? 0 : 4, tokens = video + text + padding;
            int32_t *label = (int32_t *)mem_new((size_t)(4 * tokens) * 4), *order = (int32_t *)mem_new((size_t)(4 * tokens) * 4), pattern[2] = {n % 2, 1 - n % 2};
            svg2_place_desc p = place_of(g, 1, 4, tokens, 0, pattern, 2, label);
            const int blocks = svg2_place_blocks(&p), all = blocks + (text > 0) + (padding > 0);
            int32_t *query_offset = (int32_t *)mem_new((size_t)(4 * (all + 1)) * 4), *key_offset = (int32_t *)mem_new((size_t)(2 * (all + 1)) * 4);
            uint8_t *map = (uint8_t *)mem_new((size_t)(4 * all * all)), *want = (uint8_t *)mem_new((size_t)(all * all));
            svg2_head_stats *stats = (svg2_head_stats *)mem_new(4 * sizeof *stats);
            svg2_permute_desc s = SVG2_ZERO;
            svg2_band_desc d = SVG2_ZERO;
            const float error[8] = {1, 2, 3, 4, 5, 6, 7, 8};
            assert_ok(svg2_place(&b, &p, 0, 0, &err));
            s.batch = 1; s.heads = 4; s.tokens = tokens; s.clusters = blocks; s.label = label; s.order = order; s.offset = query_offset;
            s.text_begin = video; s.text_count = text; s.padding_begin = video + text; s.padding_count = padding;
            assert_ok(svg2_permute(&b, &s, 0, 0, &err));
            for (int h = 0; h < 2; ++h) memcpy(key_offset + h * (all + 1), query_offset + 2 * h * (all + 1), (size_t)(all + 1) * 4);
            d.batch = 1; d.heads = 4; d.heads_kv = 2;
            d.frames = g->frames; d.frame_tokens = g->frame_tokens; d.block = g->block; d.first_frame = g->first;
            d.width = n == 0 ? 1 : n == 1 ? video : 1 + rnd_int(&r, video);
            d.has_text = text > 0; d.has_padding = padding > 0; d.pattern = pattern; d.error = error;
            d.query_offset = query_offset; d.key_offset = key_offset; d.map = map; d.stats = stats;
            assert_ok(svg2_band(&b, &d, 0, 0, &err));
            for (int h = 0; h < 4; ++h) {
                int64_t pairs = 0;
                ref_band(g, pattern[h / 2], d.width, text > 0, padding > 0, want);
                assert_memory_equal(map + h * all * all, want, (size_t)(all * all));
                for (int x = 0; x < all; ++x)
                    for (int y = 0; y < all; ++y)
                        pairs += want[x * all + y] * (int64_t)(query_offset[h * (all + 1) + x + 1] - query_offset[h * (all + 1) + x]) * (key_offset[h / 2 * (all + 1) + y + 1] - key_offset[h / 2 * (all + 1) + y]);
                assert_true(stats[h].pairs == pairs && stats[h].pairs_pv == pairs && stats[h].pairs_total == (int64_t)(video + text) * (video + text));
                assert_true(stats[h].pattern == pattern[h / 2] && stats[h].pattern_error[0] == error[2 * h] && stats[h].pattern_error[1] == error[2 * h + 1]);
                assert_true(fabs((double)stats[h].density - (double)pairs / (double)stats[h].pairs_total) < 1e-6 && stats[h].recall == -1.0f);
            }
            mem_done();
        }
}

/* Pairs of a band of either pattern, text included. */
static double ref_area(const grid *g, int width, int text)
{
    const int video = g->frames * g->frame_tokens;
    double most = 0;
    for (int pattern = 0; pattern < 2; ++pattern) {
        int32_t *label = (int32_t *)mem_new((size_t)video * 4);
        const int n = ref_labels(g, pattern, label);
        uint8_t *map = (uint8_t *)mem_new((size_t)(n * n));
        double area = (double)text * (2.0 * video + text);
        ref_band(g, pattern, width, 0, 0, map);
        for (int t = 0; t < video; ++t)
            for (int u = 0; u < video; ++u) area += map[label[t] * n + label[u]];
        if (area > most) most = area;
    }
    return most;
}
static void widths(void **state)
{
    (void)state;
    static const float keeps[] = {0.01f, 0.25f, 0.5f, 0.9f, 1};
    for (int i = 0; i < COUNT(grids); ++i)
        for (int n = 0; n < COUNT(keeps); ++n) {
            const grid *g = &grids[i];
            const int video = g->frames * g->frame_tokens, text = n % 2 ? 10 : 0;
            const int width = svg2_band_width(g->frames, g->frame_tokens, g->block, g->first, text, keeps[n]);
            const double budget = (double)keeps[n] * (video + text) * (video + text);
            assert_true(width >= 1 && width <= video);
            if (width > 1) assert_true(ref_area(g, width, text) <= budget);
            if (width < video) assert_true(ref_area(g, width + 1, text) > budget);
            mem_done();
        }
    assert_int_equal(svg2_band_width(0, 10, 64, 0, 0, 0.3f), 0);
    assert_int_equal(svg2_band_width(3, 10, 64, 2, 0, 0.3f), 0);
}

/* ---- pick ---- */
typedef struct picks {
    svg2_pick_desc d;
    float *mass; /* [B*H, Qb, Kb] */
    int32_t *query_offset, *key_offset;
    svg2_error err;
} picks;

static picks picks_new(int batch, int heads, int heads_kv, int Qb, int Kb, int text, int padding, uint64_t seed)
{
    picks p;
    uint64_t r = seed;
    const int bh = batch * heads;
    memset(&p, 0, sizeof p);
    p.mass = (float *)mem_new((size_t)(bh * Qb * Kb) * 4);
    for (int i = 0; i < bh * Qb * Kb; ++i) p.mass[i] = (float)(rnd_int(&r, 4) ? exp(3 * rnd_normal(&r) * (i / (Qb * Kb) % 3)) : rnd_int(&r, 3)); /* ties, zeros */
    p.query_offset = (int32_t *)mem_new((size_t)(bh * (Qb + 1)) * 4);
    p.key_offset = (int32_t *)mem_new((size_t)(batch * heads_kv * (Kb + 1)) * 4);
    for (int h = 0; h < bh; ++h)
        for (int i = 0; i <= Qb; ++i) p.query_offset[h * (Qb + 1) + i] = 3 * i;
    for (int h = 0; h < batch * heads_kv; ++h)
        for (int i = 0; i <= Kb; ++i) p.key_offset[h * (Kb + 1) + i] = 5 * i;
    p.d.batch = batch; p.d.heads = heads; p.d.heads_kv = heads_kv; p.d.query_blocks = Qb; p.d.key_blocks = Kb; p.d.has_text = text; p.d.has_padding = padding;
    p.d.query_offset = p.query_offset; p.d.key_offset = p.key_offset;
    p.d.map = (uint8_t *)mem_new((size_t)(bh * Qb * Kb));
    p.d.bits = (uint32_t *)mem_new((size_t)(bh * Qb * ((Kb + 31) / 32)) * 4);
    p.d.recall = (float *)mem_new((size_t)(bh * 3) * 4);
    p.d.stats = (svg2_head_stats *)mem_new((size_t)bh * sizeof(svg2_head_stats));
    return p;
}
static void picks_run(picks *p, int group)
{
    svg2_backend b = svg2_cpu_backend(0);
    const int heads = p->d.batch * p->d.heads;
    for (int h = 0; h < heads; h += group) {
        p->d.head_begin = h;
        p->d.head_count = heads - h < group ? heads - h : group;
        p->d.mass = p->mass + h * p->d.query_blocks * p->d.key_blocks;
        size_t bytes = svg2_stage_workspace_bytes(&b, SVG2_STAGE_PICK, &p->d);
        assert_ok(svg2_pick(&b, &p->d, mem_new(bytes), bytes, &p->err));
    }
}

/* A row's blocks with the top keep of its mass, ties to the lower index. */
static void ref_row_top(const float *mass, int n, int keep, uint8_t *map)
{
    for (int j = 0; j < n; ++j) {
        int before = 0;
        for (int i = 0; i < n; ++i) before += mass[i] > mass[j] || (mass[i] == mass[j] && i < j);
        map[j] = before < keep;
    }
}

static void picks_levels(void **state)
{
    (void)state;
    static const struct { int batch, heads, heads_kv, Qb, Kb, text, padding, group; double s; } cases[] = {
        {1, 6, 3, 5, 40, 0, 0, 4, 0.8}, {2, 4, 4, 9, 33, 1, 1, 3, 0.7}, {1, 1, 1, 2, 70, 1, 0, 1, 0.9}, {1, 8, 8, 3, 21, 0, 1, 8, 0.2}, {1, 3, 3, 4, 10, 1, 0, 2, 0}, {1, 5, 5, 4, 1, 0, 0, 2, 0.8}};
    int seen[3] = {0, 0, 0};
    for (int c = 0; c < COUNT(cases); ++c) {
        const int Qb = cases[c].Qb, Kb = cases[c].Kb, bh = cases[c].batch * cases[c].heads, text = cases[c].text, pad = cases[c].padding, nq = Qb - text - pad, nk = Kb - text - pad;
        const double s = cases[c].s, e = fmin((1 - s) / 2, s);
        picks p = picks_new(cases[c].batch, cases[c].heads, cases[c].heads_kv, Qb, Kb, text, pad, (uint64_t)c);
        uint8_t *level[3];
        double *recall = (double *)mem_new((size_t)(3 * bh) * 8);
        p.d.sparsity = (float)s;
        picks_run(&p, cases[c].group);
        for (int l = 0; l < 3; ++l) {
            const int keep = (int)fmax(1, fmin(nk, ceil((1 - s + (l - 1) * e) * nk - 1e-6)));
            level[l] = (uint8_t *)mem_new((size_t)(bh * Qb * Kb));
            memset(level[l], 0, (size_t)(bh * Qb * Kb));
            for (int h = 0; h < bh; ++h) {
                double all = 0, kept = 0;
                for (int i = 0; i < nq + text; ++i) {
                    uint8_t *row = level[l] + (h * Qb + i) * Kb;
                    const float *mass = p.mass + (h * Qb + i) * Kb;
                    if (i < nq) ref_row_top(mass, nk, keep, row); else memset(row, 1, (size_t)nk);
                    if (text) row[nk] = 1;
                    for (int j = 0; j < nk + text && i < nq; ++j) all += (double)mass[j], kept += row[j] ? (double)mass[j] : 0;
                }
                recall[3 * h + l] = kept / all;
                assert_true(fabs(recall[3 * h + l] - (double)p.d.recall[3 * h + l]) < 1e-5);
            }
        }
        for (int h = 0; h < bh; ++h) { /* which level, said another way: sort by recall */
            const int first = h / cases[c].heads * cases[c].heads;
            int good = 0, rank = 0, own;
            for (int g = first; g < first + cases[c].heads; ++g) {
                const float x = p.d.recall[3 * g + 1], mine = p.d.recall[3 * h + 1];
                good += x > 0.8f;
                if (x > mine || (x == mine && g < h)) ++rank;
            }
            if (good > cases[c].heads / 2) good = cases[c].heads / 2;
            own = rank < good ? 0 : rank >= cases[c].heads - good ? 2 : 1;
            ++seen[own];
            assert_memory_equal(p.d.map + h * Qb * Kb, level[own] + h * Qb * Kb, (size_t)(Qb * Kb));
            assert_true(p.d.stats[h].recall == p.d.recall[3 * h + own]);
            int64_t pairs = 0;
            for (int i = 0; i < Qb * Kb; ++i) {
                const int bit = (int)(p.d.bits[(h * Qb + i / Kb) * ((Kb + 31) / 32) + i % Kb / 32] >> (i % Kb % 32) & 1);
                assert_int_equal(bit, p.d.map[h * Qb * Kb + i]);
                pairs += 15 * bit;
            }
            assert_true(p.d.stats[h].pairs == pairs && p.d.stats[h].pairs_total == (int64_t)15 * (Qb - pad) * (Kb - pad));
        }
        /* and back from the bits */
        svg2_backend b = svg2_cpu_backend(0);
        uint8_t *want = (uint8_t *)mem_new((size_t)(bh * Qb * Kb));
        svg2_head_stats *stats = (svg2_head_stats *)mem_new((size_t)bh * sizeof *stats);
        size_t bytes;
        memcpy(want, p.d.map, (size_t)(bh * Qb * Kb));
        memcpy(stats, p.d.stats, (size_t)bh * sizeof *stats);
        memset(p.d.map, 9, (size_t)(bh * Qb * Kb));
        p.d.mass = 0;
        bytes = svg2_stage_workspace_bytes(&b, SVG2_STAGE_PICK, &p.d);
        assert_ok(svg2_pick(&b, &p.d, mem_new(bytes), bytes, &p.err));
        assert_memory_equal(p.d.map, want, (size_t)(bh * Qb * Kb));
        for (int h = 0; h < bh; ++h) assert_true(p.d.stats[h].pairs == stats[h].pairs && p.d.stats[h].recall == stats[h].recall);
        mem_done();
    }
    assert_true(seen[0] && seen[1] && seen[2]);
}

static void picks_by_mass(void **state)
{
    (void)state;
    static const float targets[] = {0.5f, 0.9f, 0.99f, 1};
    for (int c = 0; c < COUNT(targets); ++c) {
        picks p = picks_new(1, 3, 3, 6, 50, c % 2, c % 3 == 0, (uint64_t)(50 + c));
        const int nq = 6 - c % 2 - (c % 3 == 0), nk = 50 - c % 2 - (c % 3 == 0);
        p.d.mass_target = targets[c];
        p.mass[60] = (float)NAN; /* head 0, row 1: kept whole */
        picks_run(&p, 2);
        for (int h = 0; h < 3; ++h)
            for (int i = 0; i < nq; ++i) {
                const float *mass = p.mass + (h * 6 + i) * 50;
                const uint8_t *map = p.d.map + (h * 6 + i) * 50;
                double all = 0, kept = 0;
                float least = (float)INFINITY, most = -1;
                if (h == 0 && i == 1) { for (int j = 0; j < nk; ++j) assert_int_equal(map[j], 1); continue; }
                for (int j = 0; j < nk + c % 2; ++j) {
                    all += (double)mass[j];
                    if (map[j]) kept += (double)mass[j];
                    if (j < nk && map[j] && mass[j] < least) least = mass[j];
                    if (j < nk && !map[j] && mass[j] > most) most = mass[j];
                }
                assert_true(kept >= (double)targets[c] * all * (1 - 1e-6) && most <= least);
                if (!isinf(least)) assert_true(kept - (double)least < (double)targets[c] * all * (1 + 1e-6)); /* one less would not do */
            }
        mem_done();
    }
}

/* ---- profile ---- */
/* Queries and keys of a head that looks at its own frame (pattern 0) or at its own place (1). */
static void fill_head(job *j, int h, int pattern, uint64_t seed)
{
    const int D = j->d.head_dim, P = j->d.frame_tokens, F = j->d.frames, begin = j->d.text_tokens && j->d.text_place == SVG2_TEXT_FIRST ? j->d.text_tokens : 0;
    const int group = j->d.heads / j->d.heads_kv;
    uint64_t r = seed;
    for (int t = 0; t < F * P; ++t) {
        const double angle = 6.2832 * (pattern ? (double)(t % P) / P : (double)(t / P) / F);
        for (int e = 0; e < D; ++e) {
            const double x = e == 0 ? cos(angle) : e == 1 ? sin(angle) : 0;
            tensor_put(&j->q, tensor_at(&j->q, 0, h, begin + t, e), 9 * x + 0.3 * rnd_normal(&r));
            if (h % group == 0) {
                tensor_put(&j->k, tensor_at(&j->k, 0, h / group, begin + t, e), 5 * x + 0.3 * rnd_normal(&r));
                tensor_put(&j->v, tensor_at(&j->v, 0, h / group, begin + t, e), rnd_normal(&r));
            }
        }
    }
}
static void rehash(job *j)
{
    j->q.hash = mem_hash(j->q.data, j->q.bytes); j->k.hash = mem_hash(j->k.data, j->k.bytes); j->v.hash = mem_hash(j->v.data, j->v.bytes);
}

static svg2_desc svg1_desc(int heads, int frames, int frame_tokens, int dim, double keep)
{
    svg2_desc d = desc_small(heads, frames * frame_tokens, dim);
    d.method = SVG2_METHOD_SVG1;
    d.frames = frames; d.frame_tokens = frame_tokens;
    d.keep = (float)keep;
    d.block = 16;
    return d;
}

static void planted_heads(void **state)
{
    (void)state;
    for (int n = 0; n < 3; ++n) {
        svg2_backend b = svg2_cpu_backend(0);
        svg2_desc d = svg1_desc(12, 12, 40, 16, 0.25);
        job j;
        if (n == 1) d.heads_kv = 6;
        if (n == 2) d.text_tokens = 20, d.tokens += 20, d.text_place = SVG2_TEXT_FIRST, d.text_valid = 15;
        job_make(&j, d, &b, n ? GAPS : BHSD, 3);
        for (int h = 0; h < 12; ++h) fill_head(&j, h, h / (12 / j.d.heads_kv) % 2, (uint64_t)(100 * n + h));
        rehash(&j);
        job_run(&j, 0);
        for (int h = 0; h < 12; ++h) {
            const svg2_head_stats *s = &j.stats[h];
            const int planted = h / (12 / j.d.heads_kv) % 2;
            assert_int_equal(s->pattern, planted);
            assert_true(s->pattern_error[planted] < 0.5f * s->pattern_error[1 - planted]);
            assert_true((double)s->density <= 0.25 && (double)s->density > 0.15);
        }
        mem_done();
    }
}

/* A row of whole attention with keys whose block its block sees, in float64. */
static double plan_row(const job *j, const svg2_plan *p, int bh, int i, const double *q, const double *k, const double *v, unsigned char *use, double *o)
{
    const svg2_desc *d = &j->d;
    const int kv = bh / d->heads * d->heads_kv + bh % d->heads / (d->heads / d->heads_kv), D = d->head_dim;
    const uint8_t *map = p->map + ((int64_t)bh * p->query_blocks + p->query_label[(int64_t)bh * d->tokens + i]) * p->key_blocks;
    for (int t = 0; t < d->tokens_kv; ++t) use[t] = map[p->key_label[(int64_t)kv * d->tokens_kv + t]];
    return ref_row(q + ((int64_t)bh * d->tokens + i) * D, k + (int64_t)kv * d->tokens_kv * D, v + (int64_t)kv * d->tokens_kv * D, use, d->tokens_kv, D, (double)d->scale, 0, 0, 0, o, 0);
}
static void check_plan(job *j, int rows)
{
    const svg2_desc *d = &j->d;
    const svg2_plan p = svg2_plan_view(&j->backend, d, 5, j->work);
    const double *q = tensor_f64(&j->q), *k = tensor_f64(&j->k), *v = tensor_f64(&j->v), *out = tensor_f64(&j->out);
    unsigned char *use = (unsigned char *)mem_new((size_t)d->tokens_kv);
    double *o = (double *)mem_new((size_t)d->head_dim * 8);
    rel_error e = {0, 0};
    assert_non_null(p.map);
    for (int bh = 0; bh < d->batch * d->heads; ++bh)
        for (int n = 0; n < (rows < d->tokens ? rows : d->tokens); ++n) {
            const int i = rows < d->tokens ? (int)((int64_t)n * 7919 % d->tokens) : n;
            const double lse = plan_row(j, &p, bh, i, q, k, v, use, o), got = (double)j->lse[(int64_t)bh * d->tokens + i];
            if (isinf(lse)) assert_true(isinf(got)); else assert_at_most(fabs(got - lse), 2e-5);
            rel_add(&e, out + ((int64_t)bh * d->tokens + i) * d->head_dim, o, d->head_dim);
        }
    assert_at_most(rel_l2(e), d->out.dtype == SVG2_F32 ? 1e-5 : 4e-3);
}

/* Every row sampled: the errors are those of whole attention under the two bands. */
static void profile_is_what_is_executed(void **state)
{
    (void)state;
    for (int n = 0; n < 4; ++n) {
        svg2_backend b = svg2_cpu_backend_simd(0, n % 2 ? SVG2_SIMD_SCALAR : SVG2_SIMD_BEST);
        svg2_desc d = svg1_desc(2, n == 3 ? 3 : 6, 25, n == 1 ? 40 : 16, 0.3);
        job j;
        if (n == 2) d.text_tokens = 9, d.tokens += 9, d.text_valid = 5;
        if (n == 1) d.heads_kv = 1, d.first_frame = -1;
        d.sample_rows = d.frames * d.frame_tokens;
        job_make(&j, d, &b, BHSD, (uint64_t)n);
        tensor_fill_normal(&j.q, (uint64_t)n + 40, 3, 0);
        j.q.hash = mem_hash(j.q.data, j.q.bytes);
        job_run(&j, 0);
        check_plan(&j, 1000);
        const svg2_plan own = svg2_plan_view(&b, &j.d, 0, j.work);
        const double *q = tensor_f64(&j.q), *k = tensor_f64(&j.k), *v = tensor_f64(&j.v);
        const grid g = {j.d.frames, j.d.frame_tokens, j.d.block, j.d.first_frame == 1};
        const int D = j.d.head_dim, all = own.key_blocks, video = g.frames * g.frame_tokens, text = own.key_blocks - own.key_clusters > 0, padding = own.key_blocks - own.key_clusters > 1;
        unsigned char *use = (unsigned char *)mem_new((size_t)j.d.tokens);
        double *o = (double *)mem_new((size_t)D * 8), *dense = (double *)mem_new((size_t)D * 8), sum[2][2] = {{0, 0}, {0, 0}};
        for (int pattern = 0; pattern < 2; ++pattern) {
            int32_t *label = (int32_t *)mem_new((size_t)j.d.tokens * 4);
            uint8_t *map = (uint8_t *)mem_new((size_t)(all * all));
            (void)ref_labels(&g, pattern, label);
            for (int t = video; t < j.d.tokens; ++t) label[t] = own.key_clusters + (t - video >= j.d.text_valid);
            ref_band(&g, pattern, j.d.band_width, text, padding, map);
            for (int h = 0; h < 2; ++h) {
                double error = 0, length = 0;
                const double *kh = k + (int64_t)(h / (2 / j.d.heads_kv)) * j.d.tokens * D, *vh = v + (int64_t)(h / (2 / j.d.heads_kv)) * j.d.tokens * D;
                for (int i = 0; i < video; ++i) {
                    for (int t = 0; t < j.d.tokens; ++t) use[t] = map[label[i] * all + label[t]];
                    (void)ref_row(q + ((int64_t)h * j.d.tokens + i) * D, kh, vh, use, j.d.tokens, D, (double)j.d.scale, 0, 0, 0, o, 0);
                    for (int t = 0; t < j.d.tokens; ++t) use[t] = !padding || label[t] != all - 1;
                    (void)ref_row(q + ((int64_t)h * j.d.tokens + i) * D, kh, vh, use, j.d.tokens, D, (double)j.d.scale, 0, 0, 0, dense, 0);
                    for (int e = 0; e < D; ++e) error += (o[e] - dense[e]) * (o[e] - dense[e]), length += dense[e] * dense[e];
                }
                sum[pattern][h] = error;
                assert_true(fabs((double)j.stats[h].pattern_error[pattern] - sqrt(error / length)) < 1e-4);
            }
        }
        for (int h = 0; h < 2; ++h) {
            const double space = j.d.heads_kv == 1 ? sum[0][0] + sum[0][1] : sum[0][h], time = j.d.heads_kv == 1 ? sum[1][0] + sum[1][1] : sum[1][h];
            assert_int_equal(j.stats[h].pattern, time < space);
        }
        mem_done();
    }
}

/* ---- whole calls ---- */
static void svg1_calls(void **state)
{
    (void)state;
    for (int n = 0; n < 6; ++n) {
        svg2_backend b = svg2_cpu_backend(0);
        svg2_desc d = svg1_desc(4, 5, 30, n == 4 ? 128 : 32, 0.4);
        job j;
        if (n == 1) d.heads_kv = 2, d.batch = 2;
        if (n == 2 || n == 3) d.text_tokens = 25, d.tokens += 25, d.text_valid = n == 2 ? 12 : -1, d.text_place = n == 2 ? SVG2_TEXT_FIRST : SVG2_TEXT_LAST;
        if (n == 4) d.q.dtype = SVG2_F16, d.k.dtype = SVG2_BF16, d.v.dtype = d.out.dtype = SVG2_F16;
        if (n == 5) d.block = 1;
        job_make(&j, d, &b, n % 2 ? GAPS : BHSD, (uint64_t)(20 + n));
        job_run(&j, 0);
        check_plan(&j, 60);
        assert_true(j.state_bytes == 0 && (double)j.stats[0].density <= 0.4 && j.stats[0].pairs < j.stats[0].pairs_total);
        assert_ok(svg2_attend(&b, &j.d, 0, 3, j.q.data, j.k.data, j.v.data, j.out.data, 0, 0, j.work, j.work_bytes, &j.err)); /* no state */
        mem_done();
    }
}

static svg2_desc adaspa_desc(int heads, int tokens, int dim, double sparsity)
{
    svg2_desc d = desc_small(heads, tokens, dim);
    d.method = SVG2_METHOD_ADASPA;
    d.sparsity = (float)sparsity;
    d.block = 16;
    d.search_count = 2;
    d.search_steps[0] = 1; d.search_steps[1] = 4;
    return d;
}

static void limits_are_dense(void **state)
{
    (void)state;
    for (int n = 0; n < 4; ++n) {
        svg2_backend b = svg2_cpu_backend(0);
        svg2_desc d = n == 0 ? svg1_desc(3, 8, 50, 64, 1) : adaspa_desc(3, 400, 64, -1);
        job j;
        if (n == 2) d.sparsity = 0.9f, d.mass_target = 1;
        if (n == 3) d.tail = SVG2_TAIL_ORDER1;
        job_make(&j, d, &b, BHSD, 50);
        job_run(&j, 4);
        if (n) job_run(&j, 5);
        assert_true(n == 2 || j.stats[0].density == 1.0f);
        assert_at_most(job_error(&j, job_dense(&j)), 5e-6);
        mem_done();
    }
}

static void adaspa_calls(void **state)
{
    (void)state;
    for (int n = 0; n < 7; ++n) {
        svg2_backend b = svg2_cpu_backend(0);
        svg2_desc d = adaspa_desc(4, 300, n == 4 ? 96 : 32, 0.7);
        job j, dense;
        size_t bytes;
        if (n == 1) d.heads_kv = 2, d.batch = 2;
        if (n == 2 || n == 3) d.text_tokens = 25, d.text_valid = n == 2 ? 12 : -1, d.text_place = n == 2 ? SVG2_TEXT_FIRST : SVG2_TEXT_LAST;
        if (n == 4) d.q.dtype = SVG2_F16, d.k.dtype = SVG2_BF16, d.v.dtype = d.out.dtype = SVG2_F16;
        if (n == 5) d.tokens_kv = 170;
        if (n == 6) d.mass_target = 0.8f;
        job_make(&j, d, &b, n % 2 ? GAPS : BHSD, (uint64_t)(70 + n));
        d.method = SVG2_METHOD_DENSE;
        job_make(&dense, d, &b, n % 2 ? GAPS : BHSD, (uint64_t)(70 + n));
        job_run(&dense, 0);
        bytes = (size_t)(j.d.batch * j.d.heads * j.d.tokens) * sizeof(float);
        /* step 0: dense; 1: dense, and a search; 2: reuse; 4: a search with the LSE of step 1; each on the same input */
        static const svg2_action actions[] = {SVG2_ACTION_DENSE, SVG2_ACTION_SEARCH, SVG2_ACTION_SPARSE, SVG2_ACTION_SPARSE, SVG2_ACTION_SEARCH_CACHED, SVG2_ACTION_SPARSE};
        uint64_t sparse = 0;
        for (int step = 0; step < 6; ++step) {
            assert_int_equal(svg2_schedule(&j.d, step), actions[step]);
            job_run(&j, step);
            assert_int_equal(j.state.is_warm, step > 0);
            if (step < 2) {
                assert_true(job_hash(&j) == job_hash(&dense) && memcmp(j.lse, dense.lse, bytes) == 0 && j.stats[0].density == 1.0f);
            } else {
                check_plan(&j, 60);
                assert_true(j.stats[0].density < 0.8f && j.stats[0].recall > 0.3f && j.stats[0].recall <= 1.0f);
                if (sparse) assert_true(job_hash(&j) == sparse); /* the LSE is the same, so the search finds the same */
                sparse = job_hash(&j);
            }
        }
        assert_int_equal(j.state.calls, 4);
        svg2_state_reset(&j.state);
        job_run(&j, 3); /* without a search so far: this step makes one */
        assert_true(job_hash(&j) == job_hash(&dense) && j.state.is_warm);
        job_run(&j, 3);
        assert_true(job_hash(&j) == sparse);
        mem_done();
    }
}

/* The map holds the blocks of the largest mass, and of an older LSE the same ones. */
static void searched_map(void **state)
{
    (void)state;
    svg2_backend b = svg2_cpu_backend(0);
    job j;
    svg2_error err;
    job_make(&j, adaspa_desc(2, 320, 32, 0.75), &b, BHSD, 5);
    job_run(&j, 1);
    job_run(&j, 2);
    const svg2_plan p = svg2_plan_view(&b, &j.d, 2, j.work);
    const int n = p.key_blocks;
    svg2_mass_desc m = SVG2_ZERO;
    float *lse = (float *)mem_new(640 * 4), *mass = (float *)mem_new((size_t)(2 * n * n) * 4);
    job dense = j;
    dense.d.method = SVG2_METHOD_DENSE;
    size_t bytes = svg2_workspace_bytes(&b, &dense.d);
    assert_ok(svg2_attend(&b, &dense.d, 0, 0, j.q.data, j.k.data, j.v.data, j.out.data, lse, 0, mem_new(bytes), bytes, &err));
    for (int i = 0; i < 640; ++i) lse[i] += 0.001f * (float)(i % 7); /* stale */
    m.attention.batch = 1; m.attention.heads = m.attention.heads_kv = 2; m.attention.tokens = m.attention.tokens_kv = 320; m.attention.head_dim = 32;
    m.attention.scale = j.d.scale; m.attention.q = j.q.data; m.attention.k = j.k.data; m.attention.lse = lse;
    m.attention.query_blocks = m.attention.key_blocks = n;
    m.attention.query_order = p.query_order; m.attention.query_offset = p.query_offset; m.attention.key_order = p.key_order; m.attention.key_offset = p.key_offset;
    m.mass = mass;
    bytes = svg2_stage_workspace_bytes(&b, SVG2_STAGE_MASS, &m);
    assert_ok(svg2_block_mass(&b, &m, mem_new(bytes), bytes, &err));
    for (int i = 0; i < 2 * n; ++i) {
        float least = (float)INFINITY, most = 0;
        int kept = 0;
        for (int k = 0; k < n; ++k) {
            if (p.map[i * n + k]) { ++kept; if (mass[i * n + k] < least) least = mass[i * n + k]; }
            else if (mass[i * n + k] > most) most = mass[i * n + k];
        }
        assert_true(kept == 3 || kept == 5 || kept == 8); /* of 20 blocks at 0.875, 0.75, 0.625 */
        assert_true(most <= least * 1.02f);
    }
}

static void tail_of_adaspa(void **state)
{
    (void)state;
    svg2_backend b = svg2_cpu_backend(0);
    double error[3];
    for (int n = 0; n < 3; ++n) {
        svg2_desc d = adaspa_desc(2, 512, 32, 0.8);
        job j;
        d.tail = n == 0 ? SVG2_TAIL_NONE : n == 1 ? SVG2_TAIL_ORDER0 : SVG2_TAIL_ORDER1;
        job_make(&j, d, &b, BHSD, 11);
        /* neighbours are alike: a block is worth a mean */
        for (int h = 0; h < 2; ++h)
            for (int t = 0; t < 512; ++t)
                for (int e = 0; e < 32; ++e) {
                    const int from = t / 16 * 16;
                    tensor_put(&j.k, tensor_at(&j.k, 0, h, t, e), 0.8 * tensor_get(&j.k, tensor_at(&j.k, 0, h, from, e)) + 0.2 * tensor_get(&j.k, tensor_at(&j.k, 0, h, t, e)));
                    tensor_put(&j.v, tensor_at(&j.v, 0, h, t, e), 0.8 * tensor_get(&j.v, tensor_at(&j.v, 0, h, from, e)) + 0.2 * tensor_get(&j.v, tensor_at(&j.v, 0, h, t, e)));
                }
        rehash(&j);
        job_run(&j, 1);
        job_run(&j, 2);
        error[n] = job_error(&j, job_dense(&j));
    }
    assert_true(error[1] < 0.5 * error[0] && error[2] < error[1]);
}

static void states(void **state)
{
    (void)state;
    svg2_backend b = svg2_cpu_backend(0);
    svg2_error err;
    job j, other;
    job_make(&j, adaspa_desc(2, 200, 32, 0.6), &b, BHSD, 9);
    job_run(&j, 1);
    size_t n = svg2_state_save_bytes(&j.state);
    void *bytes = mem_new(n);
    assert_ok(svg2_state_save(&b, &j.state, bytes, n, &err));
    job_make(&other, adaspa_desc(2, 200, 32, 0.6), &b, BHSD, 9);
    assert_ok(svg2_state_load(&b, &other.state, bytes, n, &err));
    job_run(&j, 2);
    job_run(&other, 2);
    assert_true(job_hash(&j) == job_hash(&other));
    /* another method's, another shape's */
    svg2_desc d = adaspa_desc(2, 200, 32, 0.6);
    job svg2;
    d.method = SVG2_METHOD_SVG2;
    job_make(&svg2, d, &b, BHSD, 9);
    svg2.state = j.state;
    assert_true(error_names(&svg2.err, job_try(&svg2, 2), SVG2_ERR_STATE, "state"));
    assert_true(error_names(&err, svg2_state_load(&b, &svg2.state, bytes, n - 1, &err), SVG2_ERR_DATA, "bytes"));
    job_make(&other, adaspa_desc(2, 216, 32, 0.6), &b, BHSD, 9);
    other.state = j.state;
    assert_true(error_names(&other.err, job_try(&other, 2), SVG2_ERR_STATE, "state"));
    assert_true(error_names(&other.err, svg2_attend(&b, &other.d, 0, 2, other.q.data, other.k.data, other.v.data, other.out.data, 0, 0, other.work, other.work_bytes, &other.err), SVG2_ERR_NULL, "state"));
}

static void same_bits(void **state)
{
    (void)state;
    svg2_backend one = svg2_cpu_backend(0);
    int32_t threads = 4;
    uint64_t scatter = 3;
    const svg2_parallel pools[] = {pool_threads(&threads), pool_scattered(&scatter)};
    for (int method = 0; method < 2; ++method) {
        svg2_desc d = method ? adaspa_desc(3, 400, 32, 0.7) : svg1_desc(3, 8, 50, 32, 0.3);
        job j;
        job_make(&j, d, &one, BHSD, 15);
        job_run(&j, 1);
        job_run(&j, 2);
        for (int i = 0; i < 2; ++i) {
            svg2_backend p = svg2_cpu_backend(&pools[i]);
            job other;
            job_make(&other, d, &p, BHSD, 15);
            job_run(&other, 1);
            job_run(&other, 2);
            assert_true(job_hash(&other) == job_hash(&j) && memcmp(other.stats, j.stats, 3 * sizeof *j.stats) == 0);
        }
    }
}

/* With a skip rule inside the map: never more, and the promise holds inside it. */
static void with_a_skip_rule(void **state)
{
    (void)state;
    for (int method = 0; method < 2; ++method) {
        svg2_backend b = svg2_cpu_backend(0);
        svg2_desc d = method ? adaspa_desc(2, 600, 32, 0.5) : svg1_desc(2, 10, 60, 32, 0.5);
        job plain, skip;
        d.block = 64;
        job_make(&plain, d, &b, BHSD, 21);
        d.skip = SVG2_SKIP_RECALL;
        d.recall = 0.5f;
        job_make(&skip, d, &b, BHSD, 21);
        for (int step = 1; step < 3; ++step) job_run(&plain, step), job_run(&skip, step);
        assert_true(skip.stats[0].pairs == plain.stats[0].pairs && skip.stats[0].pairs_pv < skip.stats[0].pairs);
        for (int i = 0; i < 1200; ++i) assert_true(exp((double)skip.lse[i] - (double)plain.lse[i]) >= 0.5 * (1 - 1e-5));
        mem_done();
    }
}

static void not_a_number(void **state)
{
    (void)state;
    for (int method = 0; method < 2; ++method)
        for (int which = 0; which < 3; ++which) {
            svg2_backend b = svg2_cpu_backend(0);
            job j;
            job_make(&j, method ? adaspa_desc(2, 300, 32, 0.7) : svg1_desc(2, 6, 50, 32, 0.3), &b, BHSD, 4);
            tensor *t = which == 0 ? &j.q : which == 1 ? &j.k : &j.v;
            tensor_put(t, tensor_at(t, 0, 0, 100, 3), (double)NAN);
            t->hash = mem_hash(t->data, t->bytes);
            job_run(&j, 1);
            job_run(&j, 2);
            const double *out = tensor_f64(&j.out);
            if (which == 0) assert_true(isnan(out[100 * 32]));
            for (int i = 0; i < 300 * 32; ++i) assert_true(isfinite(out[300 * 32 + i])); /* the other head */
            if (method && which == 1) for (int i = 0; i < 300; ++i) assert_true(isnan(out[i * 32])); /* searched: it reaches everyone */
            mem_done();
        }
}

static void errors(void **state)
{
    (void)state;
    svg2_backend b = svg2_cpu_backend(0);
    svg2_error err;
#define BAD(base, change, code, name)                                                                       \
    do {                                                                                                    \
        svg2_desc d = base;                                                                                 \
        change;                                                                                             \
        if (!error_names(&err, svg2_resolve(&d, &err), code, name)) fail_msg("svg2_resolve: %s", #change);   \
    } while (0)
#define SVG1 svg1_desc(2, 6, 50, 32, 0.3)
#define ADASPA adaspa_desc(2, 300, 32, 0.7)
    BAD(SVG1, d.frame_tokens = 49, SVG2_ERR_SHAPE, "frame_tokens");
    BAD(SVG1, (d.frames = 0, d.frame_tokens = 0), SVG2_ERR_SHAPE, "frames");
    BAD(SVG1, d.keep = 1.1f, SVG2_ERR_RANGE, "keep");
    BAD(SVG1, d.keep = -0.1f, SVG2_ERR_RANGE, "keep");
    BAD(SVG1, d.keep = (float)NAN, SVG2_ERR_RANGE, "keep");
    BAD(SVG1, d.sample_rows = -1, SVG2_ERR_RANGE, "sample_rows");
    BAD(SVG1, d.sample_rows = 70000, SVG2_ERR_RANGE, "sample_rows");
    BAD(SVG1, d.block = -1, SVG2_ERR_RANGE, "block");
    BAD(SVG1, d.first_frame = 2, SVG2_ERR_RANGE, "first_frame");
    BAD(SVG1, d.band_width = -1, SVG2_ERR_RANGE, "band_width");
    BAD(SVG1, d.tail = SVG2_TAIL_ORDER0, SVG2_ERR_SHAPE, "tail");
    BAD(SVG1, (d.tokens_kv = 350, d.frames = 7), SVG2_ERR_SHAPE, "tokens_kv");
    BAD(ADASPA, d.sparsity = 1, SVG2_ERR_RANGE, "sparsity");
    BAD(ADASPA, d.sparsity = -0.5f, SVG2_ERR_RANGE, "sparsity");
    BAD(ADASPA, d.sparsity = (float)NAN, SVG2_ERR_RANGE, "sparsity");
    BAD(ADASPA, d.mass_target = 1.01f, SVG2_ERR_RANGE, "mass_target");
    BAD(ADASPA, d.search_count = 9, SVG2_ERR_RANGE, "search_count");
    BAD(ADASPA, d.search_count = -1, SVG2_ERR_RANGE, "search_count");
    BAD(ADASPA, d.search_steps[1] = 1, SVG2_ERR_RANGE, "search_steps");
    BAD(ADASPA, d.search_steps[0] = -1, SVG2_ERR_RANGE, "search_steps");
    BAD(ADASPA, (d.block = 1, d.tokens = 70000), SVG2_ERR_RANGE, "block");
    /* the stages */
    int32_t label[300], pattern[2] = {0, 1};
    uint8_t map[4096];
    float recall[6], mass[4096];
    const grid g = {6, 50, 64, 0};
    svg2_place_desc p = place_of(&g, 1, 1, 300, 0, 0, 0, label);
#define BAD_STAGE(stage, d, change, code, name)                                                            \
    do {                                                                                                    \
        svg2_##stage##_desc x = d;                                                                          \
        change;                                                                                             \
        if (!error_names(&err, svg2_##stage(&b, &x, 0, 0, &err), code, name)) fail_msg("%s", #change);       \
    } while (0)
    BAD_STAGE(place, p, x.frames = 5, SVG2_ERR_SHAPE, "frame_tokens");
    BAD_STAGE(place, p, x.video_begin = 1, SVG2_ERR_RANGE, "video_count");
    BAD_STAGE(place, p, x.block = 0, SVG2_ERR_RANGE, "block");
    BAD_STAGE(place, p, x.label = 0, SVG2_ERR_NULL, "label");
    BAD_STAGE(place, p, x.pattern_heads = 2, SVG2_ERR_SHAPE, "pattern_heads");
    svg2_band_desc band = SVG2_ZERO;
    band.batch = 1; band.heads = band.heads_kv = 2; band.frames = 6; band.frame_tokens = 50; band.block = 64; band.width = 3; band.pattern = pattern; band.map = map;
    assert_ok(svg2_band(&b, &band, 0, 0, &err));
    BAD_STAGE(band, band, x.width = 0, SVG2_ERR_RANGE, "width");
    BAD_STAGE(band, band, x.pattern = 0, SVG2_ERR_NULL, "pattern");
    BAD_STAGE(band, band, x.map = 0, SVG2_ERR_NULL, "map");
    BAD_STAGE(band, band, x.has_text = 2, SVG2_ERR_RANGE, "has_text");
    svg2_head_stats stats[2];
    BAD_STAGE(band, band, x.stats = stats, SVG2_ERR_NULL, "query_offset");
    svg2_pick_desc pick = SVG2_ZERO;
    pick.batch = 1; pick.heads = pick.heads_kv = 2; pick.query_blocks = pick.key_blocks = 5; pick.head_count = 2; pick.mass = mass; pick.map = map; pick.recall = recall; pick.sparsity = 0.5f;
    BAD_STAGE(pick, pick, x.sparsity = 1, SVG2_ERR_RANGE, "sparsity");
    BAD_STAGE(pick, pick, x.mass_target = 2, SVG2_ERR_RANGE, "mass_target");
    BAD_STAGE(pick, pick, x.head_count = 3, SVG2_ERR_RANGE, "head_count");
    BAD_STAGE(pick, pick, x.mass = 0, SVG2_ERR_NULL, "mass");
    BAD_STAGE(pick, pick, x.recall = 0, SVG2_ERR_NULL, "recall");
    BAD_STAGE(pick, pick, x.query_blocks = 0, SVG2_ERR_RANGE, "query_blocks");
    BAD_STAGE(pick, pick, (void)x, SVG2_ERR_NULL, "workspace");
    svg2_profile_desc f = SVG2_ZERO;
    f.batch = 1; f.heads = f.heads_kv = 1; f.tokens = 300; f.head_dim = 8; f.frames = 6; f.frame_tokens = 50; f.block = 64; f.width = 9; f.sample_rows = 4; f.scale = 1;
    f.q = f.k = f.v = mass; f.pattern = pattern;
    BAD_STAGE(profile, f, x.sample_rows = 0, SVG2_ERR_RANGE, "sample_rows");
    BAD_STAGE(profile, f, x.frames = 7, SVG2_ERR_SHAPE, "frame_tokens");
    BAD_STAGE(profile, f, x.pattern = 0, SVG2_ERR_NULL, "pattern");
    BAD_STAGE(profile, f, x.text_count = 400, SVG2_ERR_RANGE, "text_count");
    BAD_STAGE(profile, f, x.v = 0, SVG2_ERR_NULL, "v");
    BAD_STAGE(profile, f, (void)x, SVG2_ERR_NULL, "workspace");
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(places), TEST(bands), TEST(widths), TEST(picks_levels), TEST(picks_by_mass), TEST(planted_heads), TEST(profile_is_what_is_executed),
                                       TEST(svg1_calls), TEST(limits_are_dense), TEST(adaspa_calls), TEST(searched_map), TEST(tail_of_adaspa), TEST(states), TEST(same_bits),
                                       TEST(with_a_skip_rule), TEST(not_a_number), TEST(errors)};
    return cmocka_run_group_tests_name("tiles", tests, 0, 0);
}
