/* >>select on the CUDA backend: equal maps where nothing is rounded, the same rules where something is. */
#include "device.h"
#include "test.h"

/* Cases of a plain build, with AddressSanitizer, and with ThreadSanitizer, where a CUDA thread costs a millisecond. */
#ifdef __SANITIZE_THREAD__
#  define CASES(plain, asan, tsan) (tsan)
#  define IS_TSAN 1
#elif TEST_SLOW_BUILD
#  define CASES(plain, asan, tsan) (asan)
#  define IS_TSAN 0
#else
#  define CASES(plain, asan, tsan) (plain)
#  define IS_TSAN 0
#endif

typedef struct sel {
    svg2_select_desc d; /* host pointers */
    int B, H, Hk, Qb, Kb;
    int32_t *qoff, *koff;
    float *fq, *fk, *fm, *fl, *fvm, *fvv, *share; /* centroids, key mean, log mass, values */
    svg2_error err;
} sel;

/* Centroids and sizes as k-means might leave them: unequal sizes, some clusters empty, common key mean. grid > 0: multiples
   of 1 / grid, with logits that f32 holds, so that everything up to the exponential is exact. */
static sel sel_new(int B, int H, int Hk, int D, int Cq, int Ck, int text, int pad, uint64_t seed, double sharp, double grid)
{
    sel s;
    uint64_t r = seed;
    memset(&s, 0, sizeof s);
    s.B = B; s.H = H; s.Hk = Hk;
    s.Qb = Cq + (text > 0) + (pad > 0);
    s.Kb = Ck + (text > 0) + (pad > 0);
    s.fq = (float *)mem_new((size_t)(B * H * Cq * D) * 4);
    s.fk = (float *)mem_new((size_t)(B * Hk * Ck * D) * 4);
    s.fm = (float *)mem_new((size_t)(B * Hk * D) * 4);
    s.fl = (float *)mem_new((size_t)(B * H * Cq) * (size_t)Ck * 4);
    s.fvm = (float *)mem_new((size_t)(B * Hk * Ck * D) * 4);
    s.fvv = (float *)mem_new((size_t)(B * Hk * Ck) * 4);
    s.qoff = (int32_t *)mem_new((size_t)(B * H * (s.Qb + 1)) * 4);
    s.koff = (int32_t *)mem_new((size_t)(B * Hk * (s.Kb + 1)) * 4);
#define ROUND(x) (float)(grid > 0 ? rint((x) * grid) / grid : (x))
    for (int i = 0; i < B * H * Cq * D; ++i) s.fq[i] = ROUND(sharp * rnd_normal(&r));
    for (int i = 0; i < B * Hk * D; ++i) s.fm[i] = ROUND(2 * rnd_normal(&r));
    for (int i = 0; i < B * Hk * Ck * D; ++i) {
        s.fk[i] = ROUND(rnd_normal(&r)) + s.fm[i / (Ck * D) * D + i % D];
        s.fvm[i] = ROUND(rnd_normal(&r));
    }
    for (int i = 0; i < B * Hk * Ck; ++i) s.fvv[i] = (float)(0.2 + rnd_unit(&r)) * (float)D;
    for (int side = 0; side < 2; ++side) {
        int heads = B * (side ? Hk : H), C = side ? Ck : Cq, blocks = side ? s.Kb : s.Qb;
        for (int h = 0; h < heads; ++h) {
            int32_t *off = (side ? s.koff : s.qoff) + h * (blocks + 1), at = 0;
            for (int c = 0; c <= blocks; ++c) {
                off[c] = at;
                if (c < C) at += rnd_int(&r, 9) == 0 && C > 1 && c ? 0 : 1 + rnd_int(&r, 40) * rnd_int(&r, 3);
                else at += c == C && text ? text : pad;
            }
            if (side == 0) continue;
            for (int c = 0; c < C; ++c)
                if (off[c + 1] == off[c]) { /* summaries of empty clusters are zeros, their centroid is anything */
                    memset(s.fvm + (h * Ck + c) * D, 0, (size_t)D * 4);
                    s.fvv[h * Ck + c] = 0;
                }
        }
    }
    for (int h = 0; h < B * H; ++h)
        for (int I = 0; I < Cq; ++I)
            for (int j = 0; j < Ck; ++j) { /* ln n_j + half the variance of the logits */
                int k = h / H * Hk + h % H / (H / Hk), n = s.koff[k * (s.Kb + 1) + j + 1] - s.koff[k * (s.Kb + 1) + j];
                s.fl[(h * Cq + I) * Ck + j] = n ? (float)(log(n) + (n > 1 ? 0.02 + rnd_unit(&r) * rnd_unit(&r) : 0)) : -INFINITY;
            }
    s.d.batch = B; s.d.heads = H; s.d.heads_kv = Hk; s.d.head_dim = D;
    s.d.query_clusters = Cq; s.d.key_clusters = Ck; s.d.has_text = text > 0; s.d.has_padding = pad > 0;
    s.d.scale = grid > 0 ? 0.25f : (float)(1 / sqrt(D));
    s.d.route = SVG2_ROUTE_MASS; s.d.budget = SVG2_BUDGET_ROW; s.d.tail = SVG2_TAIL_NONE;
    s.d.top_p = 0.9f; s.d.min_keep = 0.1f; s.d.dense_above = 0.8f;
    s.d.query_centroid = s.fq; s.d.key_centroid = s.fk; s.d.key_mean = s.fm;
    s.d.log_mass = s.fl; s.d.value_mean = s.fvm; s.d.value_var = s.fvv;
    s.d.query_offset = s.qoff; s.d.key_offset = s.koff;
    s.d.map = (uint8_t *)mem_new((size_t)(B * H * s.Qb) * (size_t)s.Kb);
    s.d.stats = (svg2_head_stats *)mem_new(sizeof(svg2_head_stats) * (size_t)(B * H));
    return s;
}
/* Shares that have nothing to do with the centroids, up to a factor; NaN for empty query clusters, which nobody reads.
   grid > 0: multiples of 2^-20, so that sums of them are exact in any order. */
static float *sel_share(sel *s, uint64_t seed, double grid)
{
    uint64_t r = seed + 99;
    int Cq = s->d.query_clusters, Ck = s->d.key_clusters;
    float *share = (float *)mem_new((size_t)(s->B * s->H * Cq) * (size_t)Ck * 4);
    for (int h = 0; h < s->B * s->H; ++h)
        for (int I = 0; I < Cq; ++I) {
            const int32_t *rows = s->qoff + h * (s->Qb + 1) + I;
            int k = h / s->H * s->Hk + h % s->H / (s->H / s->Hk);
            double factor = grid > 0 ? 1 : I % 3 ? 1 : exp(8 * rnd_normal(&r)), sum = 0;
            float *row = share + ((int64_t)h * Cq + I) * Ck;
            for (int j = 0; j < Ck; ++j) {
                int n = s->koff[k * (s->Kb + 1) + j + 1] - s->koff[k * (s->Kb + 1) + j];
                row[j] = n ? (float)exp(1.5 * rnd_normal(&r)) : 0;
                sum += (double)row[j];
            }
            for (int j = 0; j < Ck; ++j) {
                double x = (double)row[j] / sum * factor;
                row[j] = rows[1] > rows[0] ? (float)(grid > 0 ? rint(x * 0x1p20) * 0x1p-20 : x) : NAN;
            }
        }
    s->d.share = share;
    return share;
}
static void sel_cpu(sel *s)
{
    svg2_backend cpu = svg2_cpu_backend_simd(0, SVG2_SIMD_SCALAR);
    int keep = test_mem_count;
    size_t bytes = svg2_stage_workspace_bytes(&cpu, SVG2_STAGE_SELECT, &s->d);
    svg2_result r = svg2_select(&cpu, &s->d, mem_new(bytes), bytes, &s->err);
    if (r != SVG2_OK) fail_msg("svg2_select: %s (%s: %s)", svg2_result_string(r), s->err.field, s->err.text);
    assert_int_equal(mem_release(keep), 0);
}
/* On the device, from copies; map and stats come back into the host's. */
static void sel_cuda(sel *s)
{
    svg2_backend cuda = svg2_cuda_backend(0);
    svg2_select_desc d = s->d;
    size_t Cq = (size_t)d.query_clusters, Ck = (size_t)d.key_clusters, D = (size_t)d.head_dim, nq = (size_t)(s->B * s->H),
           nk = (size_t)(s->B * s->Hk), map = nq * (size_t)s->Qb * (size_t)s->Kb;
#define UPLOAD(field, type, count) if (d.field) d.field = (type)device_copy(d.field, (count) * 4)
    UPLOAD(query_centroid, const float *, nq * Cq * D);
    UPLOAD(key_centroid, const float *, nk * Ck * D);
    UPLOAD(key_mean, const float *, nk * D);
    UPLOAD(log_mass, const float *, nq * Cq * Ck);
    UPLOAD(share, const float *, nq * Cq * Ck);
    UPLOAD(value_mean, const float *, nk * Ck * D);
    UPLOAD(value_var, const float *, nk * Ck);
    UPLOAD(query_offset, const int32_t *, nq * (size_t)(s->Qb + 1));
    UPLOAD(key_offset, const int32_t *, nk * (size_t)(s->Kb + 1));
    d.map = (uint8_t *)device_new(map);
    if (d.stats) d.stats = (svg2_head_stats *)device_new(nq * sizeof *d.stats);
    size_t bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_SELECT, &d);
    svg2_result r = svg2_select(&cuda, &d, device_new(bytes), bytes, &s->err);
    if (r != SVG2_OK) fail_msg("svg2_select: %s (%s: %s)", svg2_result_string(r), s->err.field, s->err.text);
    device_read(s->d.map, d.map, map);
    if (d.stats) device_read(s->d.stats, d.stats, nq * sizeof *d.stats);
    device_reset();
}

/* One head: where things are. */
typedef struct head { const uint8_t *map; const int32_t *qo, *ko; int *nk; double *P, *lambda, *kbar; } head;
static head head_at(const sel *s, int h)
{
    int k = h / s->H * s->Hk + h % s->H / (s->H / s->Hk), D = s->d.head_dim, Ck = s->d.key_clusters;
    head o;
    o.nk = (int *)mem_new(sizeof(int) * (size_t)Ck);
    o.P = (double *)mem_new(sizeof(double) * (size_t)Ck);
    o.lambda = (double *)mem_new(sizeof(double) * (size_t)Ck);
    o.kbar = (double *)mem_new(sizeof(double) * (size_t)(Ck * D));
    o.map = s->d.map + (int64_t)h * s->Qb * s->Kb;
    o.qo = s->qoff + h * (s->Qb + 1);
    o.ko = s->koff + k * (s->Kb + 1);
    for (int c = 0; c < Ck; ++c) o.nk[c] = o.ko[c + 1] - o.ko[c];
    for (int i = 0; i < Ck * D; ++i) o.kbar[i] = (double)s->fk[k * Ck * D + i];
    return o;
}
static void head_row(const sel *s, int h, int I, head *o) /* fills P */
{
    double q[256];
    int Ck = s->d.key_clusters;
    for (int d = 0; d < s->d.head_dim; ++d) q[d] = (double)s->fq[(h * s->d.query_clusters + I) * s->d.head_dim + d];
    for (int j = 0; j < Ck && s->d.log_mass; ++j) o->lambda[j] = (double)s->d.log_mass[((int64_t)h * s->d.query_clusters + I) * Ck + j];
    ref_probability(q, o->kbar, o->nk, s->d.log_mass ? o->lambda : 0, Ck, s->d.head_dim, (double)s->d.scale, o->P);
    if (s->d.share && o->qo[I + 1] > o->qo[I]) {
        const float *share = s->d.share + ((int64_t)h * s->d.query_clusters + I) * Ck;
        double sum = 0;
        for (int j = 0; j < Ck; ++j) sum += (double)share[j];
        for (int j = 0; j < Ck; ++j) o->P[j] = (double)share[j] / sum;
    }
}
static void check_borders_and_stats(const sel *s)
{
    int keep = test_mem_count;
    for (int h = 0; h < s->B * s->H; ++h) {
        head o = head_at(s, h);
        int Cq = s->d.query_clusters, Ck = s->d.key_clusters, t = s->d.has_text, empty = 0;
        int64_t pairs = 0;
        for (int I = 0; I < s->Qb; ++I)
            for (int c = 0; c < s->Kb; ++c) {
                uint8_t m = o.map[I * s->Kb + c];
                assert_true(m <= 1);
                if (I >= Cq + t || c >= Ck + t) assert_int_equal(m, 0);
                else if ((I >= Cq || c >= Ck) && o.qo[I + 1] > o.qo[I] && o.ko[c + 1] > o.ko[c]) assert_int_equal(m, 1);
                pairs += (int64_t)m * (o.qo[I + 1] - o.qo[I]) * (o.ko[c + 1] - o.ko[c]);
            }
        for (int c = 0; c < Cq; ++c) empty += o.qo[c + 1] == o.qo[c];
        for (int c = 0; c < Ck; ++c) empty += o.nk[c] == 0;
        assert_true(s->d.stats[h].pairs == pairs);
        assert_true(s->d.stats[h].pairs_total == (int64_t)o.qo[Cq + t] * o.ko[Ck + t]);
        assert_at_most(fabs((double)s->d.stats[h].density - (double)pairs / ((double)o.qo[Cq + t] * (double)o.ko[Ck + t])), 1e-6);
        assert_int_equal(s->d.stats[h].empty_clusters, empty);
        assert_int_equal(mem_release(keep), 0);
    }
}

/* Both backends. The maps may differ in `most` blocks (rounding at a threshold moves one, and what is taken instead); the
   statistics are those of each map, so they agree as far as the maps do. */
static int sel_both(sel *s, int most)
{
    size_t map = (size_t)(s->B * s->H * s->Qb) * (size_t)s->Kb, heads = (size_t)(s->B * s->H);
    uint8_t *want = (uint8_t *)mem_new(map);
    svg2_head_stats *stats = (svg2_head_stats *)mem_new(sizeof *stats * heads);
    int differ = 0;
    sel_cpu(s);
    memcpy(want, s->d.map, map);
    memcpy(stats, s->d.stats, heads * sizeof *stats);
    memset(s->d.map, 0xff, map);
    sel_cuda(s);
    for (size_t i = 0; i < map; ++i) differ += want[i] != s->d.map[i];
    if (differ > most) fail_msg("%d blocks of %zu differ", differ, map);
    for (size_t h = 0; h < heads; ++h) {
        const svg2_head_stats *a = &stats[h], *b = &s->d.stats[h];
        assert_true(a->pairs_total == b->pairs_total && a->empty_clusters == b->empty_clusters && a->is_dense == b->is_dense);
        if (!differ)
            assert_true(a->pairs == b->pairs && a->density == b->density && a->pairs_pv == b->pairs_pv && a->density_pv == b->density_pv);
        assert_at_most(fabs((double)a->error_estimate - (double)b->error_estimate), (differ ? 1e-2 : 1e-4) * fabs((double)a->error_estimate));
    }
    check_borders_and_stats(s);
    return differ;
}

/* ---- nothing is rounded: equal maps ---- */
static void test_equal_maps(void **state)
{
    (void)state;
    static const int cks[] = {1, 2, 7, 33, 100, 256, 333};
    static const float ps[] = {0.9f, 0.5f, 0.01f, 0.99f, 1.0f}, floors[] = {0.1f, -1, 0.5f, 0.25f, 1.0f};
    int cases = CASES(42, 21, 7);
    for (int i = 0; i < cases; ++i) { /* masses from shares: the same bits on both sides, and scores too */
        int Ck = cks[i % 7], Cq = IS_TSAN ? 1 + i % 3 : 1 + i * 5 % 40;
        sel s = sel_new(1 + (i % 8 == 3), 2, 2 - i % 2, i % 6 ? 16 : 72, Cq, Ck, i % 4 == 1 ? 5 : 0, i % 4 >= 2 ? 3 : 0, (uint64_t)i, 0.5 + 0.2 * (i % 9), 8);
        sel_share(&s, (uint64_t)i, 1);
        s.d.top_p = ps[i % 5];
        s.d.min_keep = floors[(i / 5 + i) % 5];
        s.d.budget = i / 3 % 2 ? SVG2_BUDGET_HEAD : SVG2_BUDGET_ROW;
        s.d.tail = (svg2_tail_kind)(SVG2_TAIL_NONE + i / 2 % 3);
        s.d.density = i % 3 ? 0 : (float)(0.05 + 0.1 * (i % 7));
        if (i % 2) s.d.log_mass = 0;
        if (i % 3 == 1) s.d.value_mean = s.d.value_var = 0; /* not needed here */
        sel_both(&s, 0);
        mem_done();
    }
}

/* P = 1/8 1/2 1/8 1/4 by their sizes alone, no rounding anywhere; the tie goes to cluster 0. */
static void test_top_p_by_hand(void **state)
{
    (void)state;
    static const struct { float p, floor; uint8_t keep[4]; } cases[] = {
        {0.4f, -1, {0, 1, 0, 0}},     {0.5f, -1, {0, 1, 0, 1}},    {0.6f, -1, {0, 1, 0, 1}},   {0.75f, -1, {1, 1, 0, 1}},
        {0.76f, -1, {1, 1, 0, 1}},    {0.875f, -1, {1, 1, 1, 1}},  {0.9f, -1, {1, 1, 1, 1}},   {0.1f, 0.75f, {1, 1, 0, 1}},
        {0.1f, 0.74f, {0, 1, 0, 1}},  {0.1f, 0.25f, {0, 1, 0, 0}}, {0.1f, 1.0f, {1, 1, 1, 1}}, {0.6f, 0.25f, {0, 1, 0, 1}},
    };
    for (int i = 0; i < COUNT(cases); ++i) {
        static const int32_t koff[] = {0, 1, 5, 6, 8}; /* sizes 1 4 1 2 */
        sel s = sel_new(1, 1, 1, 8, 1, 4, 0, 0, 1, 1, 0);
        memcpy(s.koff, koff, sizeof koff);
        memset(s.fq, 0, 8 * 4);
        s.d.log_mass = 0;
        s.d.top_p = cases[i].p;
        s.d.min_keep = cases[i].floor;
        sel_cuda(&s);
        if (memcmp(s.d.map, cases[i].keep, 4) != 0)
            fail_msg("p %g floor %g: %d%d%d%d", (double)cases[i].p, (double)cases[i].floor, s.d.map[0], s.d.map[1], s.d.map[2], s.d.map[3]);
        mem_done();
    }
}

/* All scores equal, or a few values of them: ties in index order, over rows, until the budget is used; with weights of
   zero between. The same on both sides, to the block. */
static void test_ties(void **state)
{
    (void)state;
    for (int i = 0; i < CASES(12, 6, 2); ++i) {
        int Cq = IS_TSAN ? 3 : 5 + i * 7, Ck = i % 2 ? 40 : 150, values = 1 + i % 4;
        sel s = sel_new(1, 2, 1, 8, Cq, Ck, 0, 0, (uint64_t)i, 1, 8);
        float *share = sel_share(&s, 1, 1);
        for (int h = 0; h < 2; ++h)
            for (int I = 0; I < Cq; ++I)
                for (int j = 0; j < Ck; ++j) { /* mass in proportion to the keys: equal scores */
                    int n = s.koff[j + 1] - s.koff[j];
                    share[(h * Cq + I) * Ck + j] = (float)(n << (I * 3 + j) % values);
                }
        for (int I = 0; I < Cq; ++I) { /* rows of equal sums, to have equal masses */
            double sum[2] = {0, 0};
            for (int h = 0; h < 2; ++h) {
                for (int j = 0; j < Ck; ++j) sum[h] += (double)share[(h * Cq + I) * Ck + j];
                for (int j = 0; j < Ck; ++j) share[(h * Cq + I) * Ck + j] *= (float)(i % 3 ? 1 : exp2(-rint(log2(sum[h]))));
            }
        }
        s.d.budget = i % 6 == 5 ? SVG2_BUDGET_ROW : SVG2_BUDGET_HEAD;
        s.d.tail = SVG2_TAIL_ORDER1;
        s.d.min_keep = -1;
        s.d.density = (float)(0.03 + 0.07 * i);
        sel_both(&s, 0);
        mem_done();
    }
}

/* ---- rounding: the rules hold against float64 ---- */
static void test_top_p_rule(void **state)
{
    (void)state;
    static const float ps[] = {0.9f, 0.5f, 0.01f, 0.99f, 1.0f}, floors[] = {0.1f, -1, 0.5f, 0.25f, 1.0f};
    int checked = 0, undecided = 0;
    for (int i = 0; i < CASES(21, 7, 0); ++i) { /* the second half with shares */
        static const int cks[] = {1, 2, 7, 16, 100, 333, 600};
        int Ck = cks[i % 7], group = i % 3 == 0 ? 4 : 1;
        sel s = sel_new(1 + i % 2, 4, 4 / group, 16, 3 + i % 20, Ck, i % 4 == 1 ? 5 : 0, i % 4 >= 2 ? 3 : 0, (uint64_t)i, 0.3 + 0.4 * (i % 9), 0);
        unsigned char want[600];
        s.d.top_p = ps[i % 5];
        s.d.min_keep = floors[(i / 5 + i) % 5];
        if (i % 4 < 3) s.d.log_mass = 0;
        if (i % 2) sel_share(&s, (uint64_t)i, 0);
        sel_cuda(&s);
        check_borders_and_stats(&s);
        for (int h = 0; h < s.B * s.H; ++h) {
            head o = head_at(&s, h);
            for (int I = 0; I < s.d.query_clusters; ++I) {
                if (o.qo[I] == o.qo[I + 1]) continue;
                head_row(&s, h, I, &o);
                ref_top_p(o.P, Ck, (double)s.d.top_p, (double)s.d.min_keep, want);
                for (int c = 0; c < Ck; ++c) {
                    ++checked;
                    if (want[c] == 2) ++undecided;
                    else if (o.nk[c] && o.map[I * s.Kb + c] != want[c])
                        fail_msg("case %d head %d row %d cluster %d: %d, not %d", i, h, I, c, o.map[I * s.Kb + c], want[c]);
                }
            }
        }
        mem_done();
    }
    if (!(checked >= CASES(5000, 2000, 0) && undecided <= checked / 10)) fail_msg("%d decisions, %d of them open", checked, undecided);
}

/* Area budgets: how much is taken, and that it is taken by falling score per pair. */
static void budget_case(svg2_route route, svg2_budget budget, svg2_tail_kind tail, float density, float min_keep, uint64_t seed, int share)
{
    int text = seed % 2 ? 6 : 0, Ck = 90, Cq = 30;
    sel s = sel_new(1, 4, seed % 3 ? 4 : 2, 16, Cq, Ck, text, seed % 5 ? 0 : 4, seed, 1.2, 0);
    static unsigned char forced[64][128];
    s.d.route = route; s.d.budget = budget; s.d.tail = tail;
    s.d.density = density;
    s.d.min_keep = min_keep;
    if (share) sel_share(&s, seed, 0);
    sel_cuda(&s);
    check_borders_and_stats(&s);
    for (int h = 0; h < s.B * s.H; ++h) {
        head o = head_at(&s, h);
        double area = 0, target = 0, biggest = 0, forced_area = 0, low = 1e300, high = -1e300;
        int keys = o.ko[Ck], queries = o.qo[Cq], floor_rank = min_keep > 0 ? (int)floor((double)min_keep * Ck + 1e-6) : 0;
        if (floor_rank == 0 && tail == SVG2_TAIL_NONE) floor_rank = 1;
        for (int I = 0; I < Cq; ++I) {
            int n = o.qo[I + 1] - o.qo[I];
            if (budget == SVG2_BUDGET_ROW) { area = biggest = forced_area = 0; low = 1e300; high = -1e300; }
            head_row(&s, h, I, &o);
            for (int j = 0; j < Ck; ++j) { /* forced = among the heaviest floor_rank */
                int heavier = 0;
                for (int c = 0; c < Ck; ++c) heavier += o.P[c] > o.P[j] || (o.P[c] == o.P[j] && c < j);
                forced[I][j] = heavier < floor_rank;
            }
            for (int j = 0; j < Ck && n; ++j) {
                double score, block = (double)n * o.nk[j];
                int in = o.map[I * s.Kb + j];
                if (!o.nk[j]) continue;
                if (forced[I][j]) { assert_int_equal(in, 1); area += block; forced_area += block; continue; }
                score = log(o.P[j] / o.nk[j]);
                if (route == SVG2_ROUTE_SPREAD) score += o.nk[j] > 1 ? log(2 * (o.lambda[j] - log(o.nk[j]))) : -1e6; /* one key: no spread */
                biggest = fmax(biggest, block);
                if (in) { area += block; low = fmin(low, score); }
                else high = fmax(high, score);
            }
            target = (double)density * keys * (budget == SVG2_BUDGET_ROW ? n : queries);
            if (n && (budget == SVG2_BUDGET_ROW || I == Cq - 1)) {
                if (forced_area < target) assert_at_most(fabs(area - target), biggest * 1.0001);
                else assert_at_most(area - forced_area, biggest * 1.0001);
                assert_at_most(high - low, 1e-4); /* nothing left out scores higher than something taken */
            }
        }
        if (budget == SVG2_BUDGET_HEAD && o.qo[Cq] == o.qo[Cq - 1]) { /* the last query cluster is empty: not judged above */
            if (forced_area < target) assert_at_most(fabs(area - target), biggest * 1.0001);
            assert_at_most(high - low, 1e-4);
        }
    }
    mem_done();
}
static void test_density_budgets(void **state)
{
    static const float densities[] = {0.02f, 0.1f, 0.3f, 0.7f};
    uint64_t seed = 0;
    (void)state;
    for (int route = SVG2_ROUTE_MASS; route <= SVG2_ROUTE_SPREAD; ++route)
        for (int budget = SVG2_BUDGET_ROW; budget <= SVG2_BUDGET_HEAD; ++budget)
            for (int tail = SVG2_TAIL_NONE; tail <= SVG2_TAIL_ORDER1; ++tail, ++seed)
                for (int i = (int)(seed % 4); i < CASES(COUNT(densities), COUNT(densities), 0); i += 4)
                    budget_case((svg2_route)route, (svg2_budget)budget, (svg2_tail_kind)tail, densities[i],
                                (seed + (uint64_t)i) % 3 ? 0.1f : -1, seed * 4 + (uint64_t)i, (int)(seed / 2 % 2));
}

/* Everything else beside the CPU: all routes, budgets, tails, floors, targets; a few blocks may differ. */
static void test_beside_the_cpu(void **state)
{
    static const float targets[] = {0, 0.01f, 0.03f, 0.1f, 0.3f, 0.8f, 2.0f, 0.2f}, ps[] = {0.9f, 0.6f, 0.99f};
    int differ = 0, blocks = 0, dense = 0, sparse = 0;
    (void)state;
    for (int i = 0; i < CASES(32, 16, 6); ++i) {
        int Ck = i % 5 == 4 ? 300 : 80, D = i % 7 == 3 ? 136 : i % 7 == 5 ? 256 : 16;
        sel s = sel_new(1, 2, 1 + i % 2, D, IS_TSAN ? 2 + i % 3 : 20 + i % 30, Ck, i % 4 == 1 ? 4 : 0, i % 8 >= 6 ? 3 : 0, (uint64_t)(77 + i), 1.0, 0);
        s.d.route = i & 1 ? SVG2_ROUTE_SPREAD : SVG2_ROUTE_MASS;
        s.d.budget = i & 2 ? SVG2_BUDGET_HEAD : SVG2_BUDGET_ROW;
        s.d.tail = (svg2_tail_kind)(SVG2_TAIL_NONE + i % 3);
        s.d.target_error = targets[i % 8];
        s.d.top_p = ps[i % 3];
        s.d.min_keep = i % 5 ? -1 : 0.07f;
        s.d.dense_above = i % 9 == 8 ? 0.2f : 0.8f;
        if (i % 3 == 0) sel_share(&s, (uint64_t)i, 0);
        differ += sel_both(&s, 8);
        blocks += 2 * s.Qb * s.Kb;
        for (int h = 0; h < 2; ++h) {
            const svg2_head_stats *t = &s.d.stats[h];
            if (!(s.d.target_error > 0)) continue;
            *(t->is_dense ? &dense : &sparse) += 1;
            if (t->is_dense) assert_true(t->pairs == t->pairs_total && t->density == 1 && t->error_estimate == 0);
            else assert_at_most((double)t->error_estimate, (double)s.d.target_error * 1.001);
        }
        mem_done();
    }
    if (getenv("TEST_VERBOSE")) print_message("%d of %d blocks differ; %d heads dense, %d sparse\n", differ, blocks, dense, sparse);
    assert_true(differ <= blocks / 1000 && dense >= CASES(3, 3, 0) && sparse > CASES(8, 8, 1));
}

/* More key clusters than shared memory sorts: the path through the workspace. */
static void test_many_clusters(void **state)
{
    (void)state;
    for (int i = 0; i < CASES(6, 2, 1); ++i) {
        int Ck = i < 2 ? 4097 : i == 2 ? 1025 : i == 3 ? 4096 : 8200;
        sel s = sel_new(1, 1, 1, 8, CASES(5, 3, 1), Ck, 0, i & 1 ? 2 : 0, (uint64_t)i, 1.0, 8);
        sel_share(&s, 3, 1);
        s.d.tail = i & 1 ? SVG2_TAIL_ORDER1 : SVG2_TAIL_NONE;
        s.d.density = i % 3 == 1 ? 0.1f : 0;
        s.d.budget = i == 4 ? SVG2_BUDGET_HEAD : SVG2_BUDGET_ROW;
        s.d.min_keep = i % 2 ? 0.01f : -1;
        sel_both(&s, 0);
        mem_done();
    }
    if (!IS_TSAN) { /* more rows than blocks work on at once: each block takes several */
        sel s = sel_new(1, 1, 1, 8, CASES(300, 260, 1), 4100, 0, 0, 5, 1.0, 8);
        sel_share(&s, 3, 1);
        s.d.min_keep = -1;
        s.d.tail = SVG2_TAIL_ORDER1;
        s.d.density = 0.05f;
        s.d.budget = SVG2_BUDGET_HEAD; /* no sort */
        sel_both(&s, 0);
    }
}

/* NaN and Inf: the rows that they touch are kept whole; the others, and other heads, go on. */
static void test_nan_is_kept(void **state)
{
    (void)state;
    for (int mode = CASES(0, 0, 9); mode < CASES(12, 12, 10); ++mode) {
        sel s = sel_new(1, 2, 2, 16, 10, 40, 3, 0, 5, 1, 8);
        s.d.route = mode & 1 ? SVG2_ROUTE_SPREAD : SVG2_ROUTE_MASS;
        s.d.budget = mode & 2 ? SVG2_BUDGET_HEAD : SVG2_BUDGET_ROW;
        s.d.tail = mode & 4 ? SVG2_TAIL_ORDER1 : SVG2_TAIL_NONE;
        if (mode >= 8) s.d.target_error = 0.2f;
        s.fq[3 * 16 + 2] = mode & 1 ? NAN : INFINITY; /* query cluster 3 of head 0 */
        sel_both(&s, 4);
        for (int c = 0; c < 40; ++c)
            if (s.koff[c + 1] > s.koff[c] && s.qoff[4] > s.qoff[3]) assert_int_equal(s.d.map[3 * s.Kb + c], 1);
        s.fk[7 * 16] = NAN; /* key cluster 7 of head 0: NaN for every row */
        sel_both(&s, 4);
        for (int I = 0; I < 10; ++I)
            if (s.koff[8] > s.koff[7] && s.qoff[I + 1] > s.qoff[I]) assert_int_equal(s.d.map[I * s.Kb + 7], 1);
        s.fvm[(40 + 11) * 16 + 3] = mode & 1 ? INFINITY : NAN; /* a value of head 1: nothing can be estimated */
        sel_both(&s, 4);
        if (mode >= 8) assert_true(s.d.stats[1].is_dense);
        s.fvv[12] = NAN;
        sel_both(&s, 4);
        mem_done();
    }
}
static void test_bad_share(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY, -1e-30f, 3.3e38f, 0, -0.0f};
    (void)state;
    for (int mode = 0; mode < CASES(4, 4, 1); ++mode)
        for (int i = 0; i < COUNT(bad); i += CASES(1, 2, 4)) {
            sel s = sel_new(1, 2, 2, 16, 10, 40, mode == 3 ? 3 : 0, 0, 5, 1, 8);
            float *share = sel_share(&s, 3, 1);
            s.d.budget = mode & 1 ? SVG2_BUDGET_HEAD : SVG2_BUDGET_ROW;
            s.d.tail = mode & 2 ? SVG2_TAIL_ORDER1 : SVG2_TAIL_NONE;
            s.d.density = mode & 2 ? 0.1f : 0;
            s.d.min_keep = -1;
            if (bad[i] == 0) for (int j = 0; j < 40; ++j) share[4 * 40 + j] = bad[i];
            else share[4 * 40 + 7] = bad[i];
            sel_both(&s, 0);
            mem_done();
        }
}

/* The same bits whatever the order of threads and blocks. */
static void test_same_bits(void **state)
{
    static const char *threads[] = {"rr", "first", "last", "random", "random"}, *copies[] = {"late", "early", "mixed", "late", "mixed"};
    (void)state;
    for (int mode = CASES(0, 0, 3); mode < 4; ++mode) {
        uint64_t want = 0;
        for (int run = 0; run < CASES(COUNT(threads), COUNT(threads), 3); ++run) {
            sel s = sel_new(1, CASES(4, 4, 2), 2, 16, CASES(20, 20, 3), 130, 3, 2, 5, 1, 0);
            s.d.budget = mode & 1 ? SVG2_BUDGET_HEAD : SVG2_BUDGET_ROW;
            s.d.route = mode & 2 ? SVG2_ROUTE_SPREAD : SVG2_ROUTE_MASS;
            if (mode == 3) s.d.target_error = 0.2f;
            s.d.tail = mode ? SVG2_TAIL_ORDER1 : SVG2_TAIL_NONE;
            if (mode & 1) sel_share(&s, 6, 0);
            device_schedule(threads[run], copies[run], (unsigned)run);
            sel_cuda(&s);
            uint64_t got = mem_hash(s.d.map, (size_t)(s.H * s.Qb * s.Kb));
            for (int h = 0; h < s.H; ++h) got = got * 31 + (uint64_t)s.d.stats[h].pairs + mem_hash(&s.d.stats[h].error_estimate, 4);
            if (!run) want = got;
            assert_true(got == want);
            mem_done();
        }
    }
    device_schedule("rr", "late", 1);
}

/* Nothing but what the descriptor gives: no stats; the workspace holds for the largest case of the documentation. */
static void test_memory(void **state)
{
    svg2_backend cuda = svg2_cuda_backend(0);
    svg2_select_desc d = SVG2_ZERO;
    sel s = sel_new(1, 2, 1, 16, 10, 40, 3, 3, 5, 1, 8);
    (void)state;
    s.d.stats = 0;
    sel_cuda(&s);
    d.batch = 1; d.heads = d.heads_kv = 24; d.head_dim = 128; d.query_clusters = 400; d.key_clusters = 1000;
    d.target_error = 0.02f;
    assert_at_most((double)svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_SELECT, &d), 250e6);
    d.batch = 1 << 10; d.query_clusters = d.key_clusters = 1 << 24; /* 2^64 bytes and more */
    assert_true(svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_SELECT, &d) == SIZE_MAX);
    d.batch = 1; d.query_clusters = 1; d.key_clusters = INT32_MAX; /* not valid: the query ends nevertheless */
    assert_true(svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_SELECT, &d) == SIZE_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_equal_maps),      TEST(test_top_p_by_hand),  TEST(test_ties),        TEST(test_top_p_rule),
        TEST(test_density_budgets), TEST(test_beside_the_cpu), TEST(test_many_clusters), TEST(test_nan_is_kept),
        TEST(test_bad_share),       TEST(test_same_bits),      TEST(test_memory),
    };
    return cmocka_run_group_tests_name("cuda_select", tests, 0, 0);
}
