/* >>select: SVG2's rule, budgets by area, target error, floors, text and padding. */
#include "test.h"

typedef struct sel {
    svg2_select_desc d;
    int B, H, Hk, Qb, Kb;
    int32_t *qoff, *koff;
    float *fq, *fk, *fm, *fl, *fvm, *fvv; /* centroids, key mean, log mass, values */
    svg2_error err;
} sel;

/* Centroids and sizes as k-means might leave them: unequal sizes, some clusters empty, common key mean. */
static sel sel_new(int B, int H, int Hk, int D, int Cq, int Ck, int text, int pad, uint64_t seed, double sharp)
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
    s.fl = (float *)mem_new((size_t)(B * H * Cq * Ck) * 4);
    s.fvm = (float *)mem_new((size_t)(B * Hk * Ck * D) * 4);
    s.fvv = (float *)mem_new((size_t)(B * Hk * Ck) * 4);
    s.qoff = (int32_t *)mem_new((size_t)(B * H * (s.Qb + 1)) * 4);
    s.koff = (int32_t *)mem_new((size_t)(B * Hk * (s.Kb + 1)) * 4);
    for (int i = 0; i < B * H * Cq * D; ++i) s.fq[i] = (float)(sharp * rnd_normal(&r));
    for (int i = 0; i < B * Hk * D; ++i) s.fm[i] = (float)(2 * rnd_normal(&r));
    for (int i = 0; i < B * Hk * Ck * D; ++i) {
        s.fk[i] = (float)rnd_normal(&r) + s.fm[i / (Ck * D) * D + i % D];
        s.fvm[i] = (float)rnd_normal(&r);
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
    s.d.scale = (float)(1 / sqrt(D));
    s.d.route = SVG2_ROUTE_MASS; s.d.budget = SVG2_BUDGET_ROW; s.d.tail = SVG2_TAIL_NONE;
    s.d.top_p = 0.9f; s.d.min_keep = 0.1f; s.d.dense_above = 0.8f;
    s.d.query_centroid = s.fq; s.d.key_centroid = s.fk; s.d.key_mean = s.fm;
    s.d.log_mass = s.fl; s.d.value_mean = s.fvm; s.d.value_var = s.fvv;
    s.d.query_offset = s.qoff; s.d.key_offset = s.koff;
    s.d.map = (uint8_t *)mem_new((size_t)(B * H * s.Qb * s.Kb));
    s.d.stats = (svg2_head_stats *)mem_new(sizeof(svg2_head_stats) * (size_t)(B * H));
    return s;
}
/* Shares that have nothing to do with the centroids, up to a factor; NaN for empty query clusters, which nobody reads. */
static float *sel_share(sel *s, uint64_t seed)
{
    uint64_t r = seed + 99;
    int Cq = s->d.query_clusters, Ck = s->d.key_clusters;
    float *share = (float *)mem_new((size_t)(s->B * s->H * Cq * Ck) * 4);
    for (int h = 0; h < s->B * s->H; ++h)
        for (int I = 0; I < Cq; ++I) {
            const int32_t *rows = s->qoff + h * (s->Qb + 1) + I;
            int k = h / s->H * s->Hk + h % s->H / (s->H / s->Hk);
            double factor = I % 3 ? 1 : exp(8 * rnd_normal(&r)), sum = 0;
            float *row = share + ((int64_t)h * Cq + I) * Ck;
            for (int j = 0; j < Ck; ++j) {
                int n = s->koff[k * (s->Kb + 1) + j + 1] - s->koff[k * (s->Kb + 1) + j];
                row[j] = n ? (float)exp(1.5 * rnd_normal(&r)) : 0;
                sum += (double)row[j];
            }
            for (int j = 0; j < Ck; ++j) row[j] = rows[1] > rows[0] ? (float)((double)row[j] / sum * factor) : NAN;
        }
    s->d.share = share;
    return share;
}
static void sel_run(sel *s, const svg2_backend *backend)
{
    size_t bytes = svg2_stage_workspace_bytes(backend, SVG2_STAGE_SELECT, &s->d);
    svg2_result r = svg2_select(backend, &s->d, mem_new(bytes), bytes, &s->err);
    if (r != SVG2_OK) fail_msg("svg2_select: %s (%s: %s)", svg2_result_string(r), s->err.field, s->err.text);
}

/* One head: where things are. */
typedef struct head { const uint8_t *map; const int32_t *qo, *ko; int nk[600]; double P[600], lambda[600]; double kbar[600 * 16]; } head;
static void head_at(const sel *s, int h, head *o)
{
    int k = h / s->H * s->Hk + h % s->H / (s->H / s->Hk), D = s->d.head_dim;
    o->map = s->d.map + (int64_t)h * s->Qb * s->Kb;
    o->qo = s->qoff + h * (s->Qb + 1);
    o->ko = s->koff + k * (s->Kb + 1);
    for (int c = 0; c < s->d.key_clusters; ++c) o->nk[c] = o->ko[c + 1] - o->ko[c];
    for (int i = 0; i < s->d.key_clusters * D; ++i) o->kbar[i] = (double)s->fk[k * s->d.key_clusters * D + i];
}
static void head_row(const sel *s, int h, int I, head *o) /* fills P */
{
    double q[16];
    for (int d = 0; d < s->d.head_dim; ++d) q[d] = (double)s->fq[(h * s->d.query_clusters + I) * s->d.head_dim + d];
    for (int j = 0; j < s->d.key_clusters && s->d.log_mass; ++j)
        o->lambda[j] = (double)s->d.log_mass[(h * s->d.query_clusters + I) * s->d.key_clusters + j];
    ref_probability(q, o->kbar, o->nk, s->d.log_mass ? o->lambda : 0, s->d.key_clusters, s->d.head_dim, (double)s->d.scale, o->P);
    if (s->d.share && o->qo[I + 1] > o->qo[I]) {
        const float *share = s->d.share + ((int64_t)h * s->d.query_clusters + I) * s->d.key_clusters;
        double sum = 0;
        for (int j = 0; j < s->d.key_clusters; ++j) sum += (double)share[j];
        for (int j = 0; j < s->d.key_clusters; ++j) o->P[j] = (double)share[j] / sum;
    }
}
static void check_borders_and_stats(const sel *s)
{
    for (int h = 0; h < s->B * s->H; ++h) {
        head o;
        int Cq = s->d.query_clusters, Ck = s->d.key_clusters, t = s->d.has_text, empty = 0;
        int64_t pairs = 0;
        head_at(s, h, &o);
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
    }
}

static void test_top_p_rule(void **state)
{
    (void)state;
    static const float ps[] = {0.9f, 0.5f, 0.01f, 0.99f, 1.0f}, floors[] = {0.1f, -1, 0.5f, 0.25f, 1.0f};
    int checked = 0, undecided = 0;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int i = 0; i < 80; ++i) { /* from 40 on with shares */
            static const int cks[] = {1, 2, 7, 16, 100, 333, 600};
            int Ck = cks[i % 7], group = i % 3 == 0 ? 4 : 1;
            sel s = sel_new(1 + i % 2, 4, 4 / group, 16, 3 + i % 40, Ck, i % 4 == 1 ? 5 : 0, i % 4 >= 2 ? 3 : 0, (uint64_t)i,
                            0.3 + 0.4 * (i % 9));
            s.d.top_p = ps[i % 5];
            s.d.min_keep = floors[(i / 5 + i) % 5];
            if (i % 2) s.d.value_mean = s.d.value_var = 0; /* not needed for this rule */
            if (i % 4 < 3) s.d.log_mass = 0;
            if (i >= 40) sel_share(&s, (uint64_t)i);
            sel_run(&s, &backend);
            check_borders_and_stats(&s);
            for (int h = 0; h < s.B * s.H; ++h) {
                head o;
                unsigned char want[600];
                head_at(&s, h, &o);
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
    }
    if (!(checked > 100000 && undecided < checked / 10)) fail_msg("%d decisions, %d of them open", checked, undecided);
}

/* A rule computed by hand: no rounding anywhere. Four clusters with P = 1/2, 1/4, 1/8, 1/8 by their sizes alone. */
static void test_top_p_by_hand(void **state)
{
    (void)state;
    static const struct { float p, floor; uint8_t keep[4]; } cases[] = {
        {0.4f, -1, {0, 1, 0, 0}},     {0.5f, -1, {0, 1, 0, 1}},    {0.6f, -1, {0, 1, 0, 1}},   {0.75f, -1, {1, 1, 0, 1}},
        {0.76f, -1, {1, 1, 0, 1}},    {0.875f, -1, {1, 1, 1, 1}},  {0.9f, -1, {1, 1, 1, 1}},   {0.1f, 0.75f, {1, 1, 0, 1}},
        {0.1f, 0.74f, {0, 1, 0, 1}},  {0.1f, 0.25f, {0, 1, 0, 0}}, {0.1f, 1.0f, {1, 1, 1, 1}}, {0.6f, 0.25f, {0, 1, 0, 1}},
    };
    svg2_backend backend = svg2_cpu_backend(0);
    for (int i = 0; i < COUNT(cases); ++i) {
        sel s = sel_new(1, 1, 1, 8, 1, 4, 0, 0, 1, 1);
        static const int32_t koff[] = {0, 1, 5, 6, 8}; /* sizes 1 4 1 2; P = 1/8 1/2 1/8 1/4; the tie goes to cluster 0 */
        memcpy(s.koff, koff, sizeof koff);
        memset(s.fq, 0, 8 * 4);
        s.d.log_mass = 0;
        s.d.top_p = cases[i].p;
        s.d.min_keep = cases[i].floor;
        sel_run(&s, &backend);
        if (memcmp(s.d.map, cases[i].keep, 4) != 0)
            fail_msg("p %g floor %g: %d%d%d%d", (double)cases[i].p, (double)cases[i].floor, s.d.map[0], s.d.map[1], s.d.map[2], s.d.map[3]);
        mem_done();
    }
}

/* Area budgets: how much is taken, and that it is taken by falling score per pair. */
static void budget_case(svg2_route route, svg2_budget budget, svg2_tail_kind tail, float density, float min_keep, uint64_t seed,
                        int share, const svg2_backend *backend)
{
    int text = seed % 2 ? 6 : 0, Ck = 90, Cq = 30;
    sel s = sel_new(2, 4, seed % 3 ? 4 : 2, 16, Cq, Ck, text, seed % 5 ? 0 : 4, seed, 1.2);
    static unsigned char forced[64][128];
    s.d.route = route; s.d.budget = budget; s.d.tail = tail;
    s.d.density = density;
    s.d.min_keep = min_keep;
    if (share) sel_share(&s, seed);
    sel_run(&s, backend);
    check_borders_and_stats(&s);
    for (int h = 0; h < s.B * s.H; ++h) {
        head o;
        double area = 0, target = 0, biggest = 0, forced_area = 0, low = 1e300, high = -1e300;
        head_at(&s, h, &o);
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
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    uint64_t seed = 0;
    static const float densities[] = {0.02f, 0.1f, 0.3f, 0.7f};
    for (int route = SVG2_ROUTE_MASS; route <= SVG2_ROUTE_SPREAD; ++route)
        for (int budget = SVG2_BUDGET_ROW; budget <= SVG2_BUDGET_HEAD; ++budget)
            for (int tail = SVG2_TAIL_NONE; tail <= SVG2_TAIL_ORDER1; ++tail)
                for (int i = 0; i < COUNT(densities); ++i) {
                    for (int share = 0; share < 2; ++share)
                        for (int floors = 0; floors < 2; ++floors)
                            budget_case((svg2_route)route, (svg2_budget)budget, (svg2_tail_kind)tail, densities[i],
                                        floors ? 0.1f : -1, seed++, share, &backend);
                }
}

/* Without a density the area is that of SVG2's rule. */
static void test_area_of_top_p(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    for (uint64_t seed = 0; seed < 6; ++seed)
        for (int mode = 0; mode < 3; ++mode) { /* mode: spread/row, mass/head, spread/head */
            sel s = sel_new(1, 2, 2, 16, 25, 120, 0, 0, seed, 1.3);
            s.d.tail = SVG2_TAIL_ORDER1;
            s.d.min_keep = -1;
            sel_run(&s, &backend);
            uint8_t *rule = (uint8_t *)mem_new((size_t)(2 * s.Qb * s.Kb));
            memcpy(rule, s.d.map, (size_t)(2 * s.Qb * s.Kb));
            s.d.route = mode == 1 ? SVG2_ROUTE_MASS : SVG2_ROUTE_SPREAD;
            s.d.budget = mode == 0 ? SVG2_BUDGET_ROW : SVG2_BUDGET_HEAD;
            sel_run(&s, &backend);
            check_borders_and_stats(&s);
            for (int h = 0; h < 2; ++h) {
                head o;
                double area = 0, want = 0, biggest = 0;
                head_at(&s, h, &o);
                for (int I = 0; I < 25; ++I) {
                    double n = o.qo[I + 1] - o.qo[I];
                    if (mode == 0) area = want = biggest = 0;
                    for (int j = 0; j < 120; ++j) {
                        area += o.map[I * s.Kb + j] * n * o.nk[j];
                        want += rule[(h * s.Qb + I) * s.Kb + j] * n * o.nk[j];
                        biggest = fmax(biggest, n * o.nk[j]);
                    }
                    if (mode == 0) assert_at_most(fabs(area - want), biggest);
                }
                if (mode) assert_at_most(fabs(area - want), biggest);
            }
            mem_done();
        }
}

static void test_target_error(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    static const float targets[] = {1e-7f, 0.01f, 0.03f, 0.1f, 0.2f, 0.4f, 0.8f, 2.0f};
    for (int budget = SVG2_BUDGET_ROW; budget <= SVG2_BUDGET_HEAD; ++budget)
        for (int tail = SVG2_TAIL_NONE; tail <= SVG2_TAIL_ORDER1; ++tail)
            for (int route = SVG2_ROUTE_MASS; route <= SVG2_ROUTE_SPREAD; ++route) {
                double last[4] = {2, 2, 2, 2};
                for (int i = 0; i < COUNT(targets); ++i) {
                    sel s = sel_new(1, 4, 2, 16, 20, 80, 0, 0, 77, 1.0);
                    s.d.route = (svg2_route)route; s.d.budget = (svg2_budget)budget; s.d.tail = (svg2_tail_kind)tail;
                    s.d.target_error = targets[i];
                    s.d.min_keep = -1;
                    s.d.dense_above = 0.8f;
                    sel_run(&s, &backend);
                    check_borders_and_stats(&s);
                    for (int h = 0; h < 4; ++h) {
                        const svg2_head_stats *t = &s.d.stats[h];
                        assert_at_most((double)t->density, last[h] + 1e-6); /* a larger target never costs more */
                        last[h] = (double)t->density;
                        assert_true(t->is_dense == 0 || t->is_dense == 1);
                        if (t->is_dense) assert_true(t->pairs == t->pairs_total && t->density == 1 && t->error_estimate == 0);
                        else {
                            assert_at_most((double)t->error_estimate, (double)targets[i] * 1.001);
                            assert_true(t->error_estimate >= 0);
                            assert_at_most((double)t->density, 0.8 + 0.05);
                        }
                        if (i == 0) assert_int_equal(t->is_dense, 1);
                    }
                    mem_done();
                }
                assert_true(last[0] < 0.9); /* a loose target is sparse */
            }
}

/* NaN scores are kept; other rows follow the rule as if nothing had happened. */
static void test_nan_is_kept(void **state)
{
    (void)state;
    for (int level = SVG2_SIMD_SCALAR; level <= SVG2_SIMD_AVX512BF16; ++level) {
        svg2_backend backend = svg2_cpu_backend_simd(0, (svg2_simd)level);
        if ((int)backend.simd != level) continue;
        for (int mode = 0; mode < 8; ++mode) {
            sel s = sel_new(1, 2, 2, 16, 10, 40, 3, 0, 5, 1), clean = sel_new(1, 2, 2, 16, 10, 40, 3, 0, 5, 1);
            s.d.route = clean.d.route = mode & 1 ? SVG2_ROUTE_SPREAD : SVG2_ROUTE_MASS;
            s.d.budget = clean.d.budget = mode & 2 ? SVG2_BUDGET_HEAD : SVG2_BUDGET_ROW;
            s.d.tail = clean.d.tail = mode & 4 ? SVG2_TAIL_ORDER1 : SVG2_TAIL_NONE;
            s.fq[3 * 16 + 2] = mode & 1 ? NAN : INFINITY; /* query cluster 3 of head 0 */
            sel_run(&clean, &backend);
            sel_run(&s, &backend);
            for (int c = 0; c < 40; ++c)
                if (s.koff[c + 1] > s.koff[c] && s.qoff[4] > s.qoff[3] && mode & 1) assert_int_equal(s.d.map[3 * s.Kb + c], 1);
            assert_memory_equal(s.d.map + s.Qb * s.Kb, clean.d.map + s.Qb * s.Kb, (size_t)(s.Qb * s.Kb)); /* head 1 */
            if (!(mode & 2)) /* row budgets: the other rows of head 0 too */
                for (int I = 0; I < s.Qb; ++I)
                    if (I != 3) assert_memory_equal(s.d.map + I * s.Kb, clean.d.map + I * s.Kb, (size_t)s.Kb);
            s.fk[7 * 16] = NAN; /* key cluster 7 of head 0: NaN for every row */
            sel_run(&s, &backend);
            for (int I = 0; I < 10; ++I)
                if (s.koff[8] > s.koff[7] && s.qoff[I + 1] > s.qoff[I]) assert_int_equal(s.d.map[I * s.Kb + 7], 1);
            mem_done();
        }
    }
}

/* A share that is no probability keeps its row whole, in the other rows the rule goes on; a row of nothing likewise. */
static void test_bad_share(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY, -1e-30f, 3.3e38f, 0};
    svg2_backend backend = svg2_cpu_backend(0);
    for (int mode = 0; mode < 8; ++mode)
        for (int i = 0; i < COUNT(bad); ++i) {
            sel s = sel_new(1, 2, 2, 16, 10, 40, mode == 7 ? 3 : 0, 0, 5, 1);
            size_t map = (size_t)(s.Qb * s.Kb);
            int Ck = 40, row = 0, key = 0, ordinary = 0;
            float *share = sel_share(&s, 3);
            uint8_t *clean = (uint8_t *)mem_new(2 * map);
            s.d.budget = mode & 1 ? SVG2_BUDGET_HEAD : SVG2_BUDGET_ROW;
            s.d.tail = mode & 2 ? SVG2_TAIL_ORDER1 : SVG2_TAIL_NONE;
            s.d.density = mode & 4 ? 0.1f : 0;
            s.d.min_keep = -1;
            s.d.top_p = 0.5f;
            while (row < 4 || s.qoff[row + 1] == s.qoff[row]) ++row;
            while (key < 7 || s.koff[key + 1] == s.koff[key]) ++key;
            sel_run(&s, &backend);
            memcpy(clean, s.d.map, 2 * map);
            for (int j = 0; j < Ck; ++j) ordinary += clean[row * s.Kb + j];
            assert_true(ordinary < Ck / 2);
            if (bad[i] == 0) memset(share + row * Ck, 0, (size_t)Ck * 4);
            else share[row * Ck + key] = bad[i];
            sel_run(&s, &backend);
            check_borders_and_stats(&s);
            for (int j = 0; j < Ck; ++j)
                if (s.koff[j + 1] > s.koff[j]) assert_int_equal(s.d.map[row * s.Kb + j], 1);
            assert_memory_equal(s.d.map + map, clean + map, map); /* head 1 */
            for (int I = 0; I < s.Qb && !(mode & 1); ++I)
                if (I != row) assert_memory_equal(s.d.map + I * s.Kb, clean + I * s.Kb, (size_t)s.Kb);
            mem_done();
        }
}

/* An empty query cluster has no rows to ask: its decision is that without shares, whatever its share holds. And -0 is 0. */
static void test_share_of_nothing(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    int compared = 0;
    for (int mode = 0; mode < 4; ++mode) {
        sel s = sel_new(1, 4, 2, 16, 40, 50, 0, 0, 11, 1);
        size_t map = (size_t)(4 * s.Qb * s.Kb);
        uint8_t *plain = (uint8_t *)mem_new(map);
        s.d.tail = mode & 1 ? SVG2_TAIL_ORDER0 : SVG2_TAIL_NONE;
        s.d.density = mode & 2 ? 0.2f : 0;
        s.d.min_keep = mode & 1 ? 0.1f : -1;
        sel_run(&s, &backend);
        memcpy(plain, s.d.map, map);
        float *share = sel_share(&s, 4);
        sel_run(&s, &backend);
        for (int row = 0; row < 4 * 40; ++row) {
            const int32_t *offset = s.qoff + row / 40 * (s.Qb + 1) + row % 40;
            if (offset[1] > offset[0]) continue;
            assert_memory_equal(s.d.map + row * s.Kb, plain + row * s.Kb, (size_t)s.Kb);
            ++compared;
        }
        for (int i = 0; i < 4 * 40 * 50; i += 3) share[i] = 0;
        sel_run(&s, &backend);
        memcpy(plain, s.d.map, map);
        for (int i = 0; i < 4 * 40 * 50; i += 3) share[i] = -0.0f;
        sel_run(&s, &backend);
        assert_memory_equal(s.d.map, plain, map);
        mem_done();
    }
    assert_true(compared > 20);
}

static void test_select_threads_same_bits(void **state)
{
    (void)state;
    for (int mode = 0; mode < 4; ++mode) {
        uint64_t want = 0;
        for (int run = 0; run < 6; ++run) {
            int32_t threads = run ? run : 1;
            uint64_t seed = (uint64_t)run;
            svg2_parallel p = run >= 4 ? pool_scattered(&seed) : pool_threads(&threads);
            svg2_backend backend = svg2_cpu_backend(run ? &p : 0);
            sel s = sel_new(2, 4, 2, 16, 60, 200, 3, 2, 5, 1);
            s.d.budget = mode & 1 ? SVG2_BUDGET_HEAD : SVG2_BUDGET_ROW;
            s.d.route = mode & 2 ? SVG2_ROUTE_SPREAD : SVG2_ROUTE_MASS;
            if (mode == 3) s.d.target_error = 0.2f;
            s.d.tail = mode ? SVG2_TAIL_ORDER1 : SVG2_TAIL_NONE;
            if (mode & 1) sel_share(&s, 6);
            sel_run(&s, &backend);
            uint64_t got = mem_hash(s.d.map, (size_t)(8 * s.Qb * s.Kb));
            for (int h = 0; h < 8; ++h) got = got * 31 + (uint64_t)s.d.stats[h].pairs + mem_hash(&s.d.stats[h].error_estimate, 4);
            if (!run) want = got;
            assert_true(got == want);
            mem_done();
        }
    }
}

static void test_select_rejects(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    sel s = sel_new(1, 4, 2, 16, 10, 40, 3, 0, 5, 1);
    svg2_select_desc good = s.d;
    size_t bytes = svg2_stage_workspace_bytes(&backend, SVG2_STAGE_SELECT, &good);
    char *work = (char *)mem_new(bytes + 64);
#undef REJECT
#define REJECT(change, code, name)                                                                                \
    do {                                                                                                          \
        s.d = good;                                                                                               \
        change;                                                                                                   \
        if (!error_names(&s.err, svg2_select(&backend, &s.d, work, bytes, &s.err), code, name)) fail_msg("%s", #change); \
    } while (0)
    REJECT(s.d.batch = 0, SVG2_ERR_RANGE, "batch");
    REJECT(s.d.heads = 0, SVG2_ERR_RANGE, "heads");
    REJECT(s.d.heads_kv = 0, SVG2_ERR_RANGE, "heads_kv");
    REJECT(s.d.heads_kv = 3, SVG2_ERR_SHAPE, "heads_kv");
    REJECT(s.d.head_dim = 12, SVG2_ERR_RANGE, "head_dim");
    REJECT(s.d.query_clusters = 0, SVG2_ERR_RANGE, "query_clusters");
    REJECT(s.d.key_clusters = -1, SVG2_ERR_RANGE, "key_clusters");
    REJECT(s.d.scale = NAN, SVG2_ERR_RANGE, "scale");
    REJECT(s.d.route = SVG2_ROUTE_DEFAULT, SVG2_ERR_RANGE, "route");
    REJECT(s.d.route = (svg2_route)3, SVG2_ERR_RANGE, "route");
    REJECT(s.d.budget = (svg2_budget)-1, SVG2_ERR_RANGE, "budget");
    REJECT(s.d.tail = (svg2_tail_kind)4, SVG2_ERR_RANGE, "tail");
    REJECT(s.d.top_p = 1.5f, SVG2_ERR_RANGE, "top_p");
    REJECT(s.d.top_p = NAN, SVG2_ERR_RANGE, "top_p");
    REJECT(s.d.min_keep = 1.5f, SVG2_ERR_RANGE, "min_keep");
    REJECT(s.d.density = -0.5f, SVG2_ERR_RANGE, "density");
    REJECT(s.d.target_error = -1, SVG2_ERR_RANGE, "target_error");
    REJECT(s.d.query_centroid = 0, SVG2_ERR_NULL, "query_centroid");
    REJECT(s.d.key_centroid = 0, SVG2_ERR_NULL, "key_centroid");
    REJECT(s.d.query_offset = 0, SVG2_ERR_NULL, "query_offset");
    REJECT(s.d.key_offset = 0, SVG2_ERR_NULL, "key_offset");
    REJECT(s.d.map = 0, SVG2_ERR_NULL, "map");
    REJECT((s.d.route = SVG2_ROUTE_SPREAD, s.d.log_mass = 0), SVG2_ERR_NULL, "log_mass");
    REJECT((s.d.target_error = 0.1f, s.d.log_mass = 0), SVG2_ERR_NULL, "log_mass");
    REJECT((s.d.target_error = 0.1f, s.d.value_mean = 0), SVG2_ERR_NULL, "value_mean");
    REJECT((s.d.target_error = 0.1f, s.d.value_var = 0), SVG2_ERR_NULL, "value_var");
    if (bytes) REJECT(work += 4, SVG2_ERR_ALIGN, "workspace");
    assert_untouched(good.map, (size_t)(4 * s.Qb * s.Kb));
    assert_untouched(good.stats, 4 * sizeof *good.stats);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_top_p_rule),    TEST(test_top_p_by_hand), TEST(test_density_budgets),          TEST(test_area_of_top_p),
        TEST(test_target_error),  TEST(test_nan_is_kept),   TEST(test_select_threads_same_bits), TEST(test_select_rejects),
        TEST(test_bad_share),     TEST(test_share_of_nothing),
    };
    return cmocka_run_group_tests_name("select", tests, 0, 0);
}
