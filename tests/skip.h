/* skip.h - the skip rules of svg2_attention in float64, and problems for them; for test_skip.c and test_cuda_skip.c, after test.h */

enum { MOST = 64 };
/* Rows that share an order of tiles; rows that decide together (in a full item; in one of at most small rows); keys of a tile, and parts
   of it that are left out one by one, though judged by what was before the tile. is_split: of a small item even and odd tiles have
   accounts of their own. is_cluster: steps of 64 rows of an item go to two blocks, as evenly as that goes; small is about a block's. */
typedef struct pace { int item, unit, small, small_unit, tile, parts, is_split, is_cluster; } pace;
static const pace cpu_pace = {256, 64, 0, 64, 64, 1, 0, 0};

/* A call on one head as lists: what each query block attends to. */
typedef struct lists { int blocks, key_blocks; const int32_t *query_order, *query_offset, *key_order, *key_offset; const uint8_t *map; } lists;

typedef struct outcome { int64_t pairs; double worst; rel_error error; } outcome; /* worst recall; output against float64 */

/* The rules of svg2.h in float64, one head. lse [rows]: of what stayed; seed [rows] or NULL. */
static outcome play(pace g, const svg2_desc *d, const double *q, const double *k, const double *v, const double *out, int64_t out_step, lists s,
                    const float *seed, double *lse)
{
    const int D = d->head_dim, Sq = d->tokens, Sk = d->tokens_kv;
    const double scale = (double)d->scale, rho = (1 - (double)d->recall) / (double)d->recall * 0.999;
    outcome got = {0, 1, {0, 0}};
    int *key = (int *)mem_new(sizeof(int) * (size_t)Sk);
    double *logit = (double *)mem_new(sizeof(double) * MOST * (size_t)Sk), *o = (double *)mem_new(sizeof(double) * 2 * MOST * (size_t)D);
    for (int block = 0; block < s.blocks; ++block) {
        const int begin = s.query_offset ? s.query_offset[block] : 0, end = s.query_offset ? s.query_offset[block + 1] : Sq;
        int n = 0, tiles;
        for (int j = 0; j < s.key_blocks; ++j)
            for (int t = s.key_offset ? s.key_offset[j] : 0; t < (s.key_offset ? s.key_offset[j + 1] : Sk); ++t)
                if (!s.map || s.map[block * s.key_blocks + j]) key[n++] = s.key_order ? s.key_order[t] : t;
        tiles = (n + g.tile - 1) / g.tile;
        for (int item = begin; item < end; item += g.item)
            for (int unit = item, last = item + g.item < end ? item + g.item : end, step = last - item > g.small ? g.unit : g.small_unit; unit < last; unit += step) {
                const int rows = last - unit < step ? last - unit : step;
                int middle = d->visit == SVG2_VISIT_DIAGONAL ? (int)((int64_t)(item + (last - item) / 2) * tiles / Sq) : 0;
                const int count = last - item, first = (count / 64 + (count % 64 > 0) + 1) / 2 * 64; /* is_cluster: rows of the first block */
                const int own = !g.is_cluster || count <= first ? count : unit - item < first ? first : count - first;
                const int sides = g.is_split && own <= g.small ? 2 : 1, part_keys = g.tile / g.parts;
                const double shares = (double)(((n + part_keys - 1) / part_keys + sides - 1) / sides);
                double m[2][MOST], l[2][MOST], lost[2][MOST], all[MOST];
                int token[MOST], up = middle + 1, down = middle - 1, tile = middle;
                for (int r = 0; r < rows; ++r) {
                    token[r] = s.query_order ? s.query_order[unit + r] : unit + r;
                    for (int z = 0; z < 2; ++z) m[z][r] = -(double)INFINITY, l[z][r] = lost[z][r] = 0;
                    all[r] = 0;
                    for (int t = 0; t < n; ++t) logit[r * Sk + t] = scale * dot64(q + (int64_t)token[r] * D, k + (int64_t)key[t] * D, D);
                }
                memset(o, 0, sizeof(double) * 2 * MOST * (size_t)D);
                for (int i = 0; i < tiles; ++i) {
                    const int z = i % sides;
                    int kept = 0, from[3];
                    double top[2][MOST], u[2][MOST];
                    for (int part = 0; part <= g.parts; ++part) from[part] = tile * g.tile + part * part_keys < n ? tile * g.tile + part * part_keys : n;
                    for (int r = 0; r < rows; ++r) {
                        double next = m[z][r], gone = lost[z][r];
                        for (int part = 0; part < g.parts; ++part) {
                            top[part][r] = -(double)INFINITY; u[part][r] = 0;
                            for (int t = from[part]; t < from[part + 1]; ++t) {
                                top[part][r] = fmax(top[part][r], logit[r * Sk + t]);
                                all[r] += exp(logit[r * Sk + t]);
                            }
                            next = fmax(next, top[part][r]);
                        }
                        for (int part = 0; part < g.parts; ++part) {
                            const double before = d->skip == SVG2_SKIP_RECALL ? next : m[z][r], a = exp(m[z][r] - next);
                            const double hint = seed ? exp((double)seed[token[r]] - 0.25 - before) : 0;
                            int leaves = from[part] < from[part + 1];
                            for (int t = from[part]; t < from[part + 1]; ++t) u[part][r] += exp(logit[r * Sk + t] - m[z][r]);
                            if (!leaves) continue;
                            if (d->skip == SVG2_SKIP_CONSTANT && !(exp(top[part][r] - m[z][r]) < (double)d->skip_threshold)) leaves = 0;
                            if (d->skip == SVG2_SKIP_ENERGY && !(exp(top[part][r] - m[z][r]) < exp((double)d->energy_lambda) * fmax(l[z][r], hint))) leaves = 0;
                            if (d->skip == SVG2_SKIP_RECALL) {
                                const double limit = (seed ? 1.0 / sides : 1.0) * rho * fmax(l[z][r] * a, (double)d->recall * hint);
                                if (!(u[part][r] * a <= 16 * limit / shares && (gone + u[part][r]) * a <= limit && a > 1e-6)) leaves = 0;
                                else gone += u[part][r];
                            }
                            if (!leaves) kept |= 1 << part;
                        }
                    }
                    for (int r = 0; r < rows; ++r) {
                        double next = m[z][r];
                        for (int part = 0; part < g.parts; ++part) {
                            if (kept >> part & 1 || (kept && d->skip == SVG2_SKIP_RECALL)) next = fmax(next, top[part][r]);
                            if (!(kept >> part & 1)) lost[z][r] += u[part][r];
                        }
                        const double a = exp(m[z][r] - next);
                        l[z][r] *= a;
                        lost[z][r] = isinf(m[z][r]) ? 0 : lost[z][r] * a;
                        for (int e = 0; e < D; ++e) o[(z * MOST + r) * D + e] *= a;
                        m[z][r] = next;
                        for (int part = 0; part < g.parts; ++part)
                            for (int t = from[part]; t < from[part + 1] && kept >> part & 1; ++t) {
                                const double p = exp(logit[r * Sk + t] - next);
                                l[z][r] += p;
                                for (int e = 0; e < D; ++e) o[(z * MOST + r) * D + e] += p * v[(int64_t)key[t] * D + e];
                            }
                    }
                    for (int part = 0; part < g.parts; ++part)
                        if (kept >> part & 1) got.pairs += (int64_t)rows * (from[part + 1] - from[part]);
                    tile = down < 0 || (up < tiles && i % 2 == 0) ? up++ : down--;
                }
                for (int r = 0; r < rows; ++r) {
                    const double most = fmax(m[0][r], m[1][r]);
                    double sum = 0;
                    for (int z = 0; z < 2; ++z) {
                        const double a = isinf(m[z][r]) ? 0 : exp(m[z][r] - most);
                        sum += l[z][r] * a;
                        for (int e = 0; e < D; ++e) o[r * D + e] = z ? o[r * D + e] + o[(MOST + r) * D + e] * a : o[r * D + e] * a;
                    }
                    for (int e = 0; e < D; ++e) o[r * D + e] /= sum > 0 ? sum : 1;
                    rel_add(&got.error, out + (int64_t)token[r] * out_step, o + r * D, D);
                    lse[token[r]] = sum > 0 ? most + log(sum) : -(double)INFINITY;
                    if (all[r] > 0) got.worst = fmin(got.worst, sum * exp(most) / all[r]);
                }
            }
    }
    return got;
}

static svg2_desc rule(svg2_desc d, svg2_skip skip, svg2_visit visit, double x)
{
    d.skip = skip;
    d.visit = visit;
    if (skip == SVG2_SKIP_CONSTANT) d.skip_threshold = (float)x;
    if (skip == SVG2_SKIP_ENERGY) d.energy_lambda = (float)x;
    if (skip == SVG2_SKIP_RECALL) d.recall = (float)x;
    return d;
}
static const struct { svg2_skip skip; double x; } rules[] = {
    {SVG2_SKIP_CONSTANT, 0.1}, {SVG2_SKIP_CONSTANT, 0.6}, {SVG2_SKIP_ENERGY, -2}, {SVG2_SKIP_ENERGY, -5}, {SVG2_SKIP_RECALL, 0.5}, {SVG2_SKIP_RECALL, 0.9}};

/* Logits of all kinds: what one row does to the account, for every row of a unit another one. */
static void fill_hard(job *j, int kind, uint64_t seed)
{
    const int S = j->d.tokens, D = j->d.head_dim;
    uint64_t r = seed;
    tensor_fill_normal(&j->q, seed, kind == 0 ? 0.3 : kind == 1 ? 4 : 2, 0);
    tensor_fill_normal(&j->k, seed + 1, 1, kind == 2 ? 3 : 0);
    tensor_fill_normal(&j->v, seed + 2, 1, 0);
    for (int t = 0; t < S && kind >= 3; ++t)
        for (int e = 0; e < D; ++e) {
            double x = tensor_get(&j->k, tensor_at(&j->k, 0, 0, t, e)), y = tensor_get(&j->q, tensor_at(&j->q, 0, 0, t, e));
            if (kind == 3) x = 0; /* all alike */
            if (kind == 4) x = 0.1 * x + (e == 0 ? 8.0 * t / S : 0), y = e == 0 ? 4 : 0.3 * y; /* ever heavier: an order that is always wrong */
            if (kind == 5) x = 0.1 * x + (e == 0 ? -8.0 * t / S : 0), y = e == 0 ? 4 : 0.3 * y; /* ever lighter */
            if (kind == 6) x = t == S - 1 && e == 0 ? 30 : 0.2 * x, y = e == 0 ? 1 : y; /* one giant, last */
            if (kind == 7) x *= t / 64 % 2 ? 3 : 0.1; /* heavy and light tiles take turns */
            if (kind == 8) x = e == 0 ? (double)rnd_int(&r, 2) * 6 - 3 : 0.1 * x, y = e == 0 ? (double)rnd_int(&r, 2) * 4 - 2 : y; /* rows disagree */
            if (kind == 9) x *= 40, y *= 40; /* all but one weight vanish */
            tensor_put(&j->k, tensor_at(&j->k, 0, 0, t, e), x);
            tensor_put(&j->q, tensor_at(&j->q, 0, 0, t, e), y);
        }
    j->q.hash = mem_hash(j->q.data, j->q.bytes);
    j->k.hash = mem_hash(j->k.data, j->k.bytes);
}
