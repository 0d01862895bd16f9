/* attention.h - problems for svg2_attention and their float64 answers; for test_attention.c and test_cuda_attention.c, after test.h */

typedef struct blocks { int count; int32_t *label, *order, *offset; } blocks;

/* Blocks from labels. */
FN void blocks_sort(blocks *b, int heads, int S)
{
    b->order = (int32_t *)mem_new((size_t)(heads * S) * 4);
    b->offset = (int32_t *)mem_new((size_t)(heads * (b->count + 1)) * 4);
    for (int h = 0; h < heads; ++h) {
        int *n = (int *)calloc((size_t)(b->count + 1), sizeof(int));
        int32_t *offset = b->offset + h * (b->count + 1);
        for (int t = 0; t < S; ++t) ++n[b->label[h * S + t] + 1];
        for (int c = 0; c < b->count; ++c) n[c + 1] += n[c];
        for (int c = 0; c <= b->count; ++c) offset[c] = n[c];
        for (int t = 0; t < S; ++t) b->order[h * S + n[b->label[h * S + t]]++] = t;
        free(n);
    }
}
/* Random ones; some are empty, one is big. */
FN blocks blocks_new(int heads, int S, int count, uint64_t seed)
{
    blocks b;
    uint64_t r = seed;
    b.count = count;
    b.label = (int32_t *)mem_new((size_t)(heads * S) * 4);
    for (int i = 0; i < heads * S; ++i) {
        int c = rnd_int(&r, count);
        b.label[i] = c % 7 == 3 && count > 4 ? 1 : c; /* blocks 3, 10, ... are empty */
    }
    blocks_sort(&b, heads, S);
    return b;
}
/* Given sizes, the tokens dealt at random; the last block takes what is left. */
FN blocks blocks_sized(int heads, int S, const int *size, int count, uint64_t seed)
{
    blocks b;
    uint64_t r = seed;
    b.count = count;
    b.label = (int32_t *)mem_new((size_t)(heads * S) * 4);
    for (int h = 0; h < heads; ++h) {
        int32_t *label = b.label + h * S;
        for (int t = 0, c = 0, left = size[0]; t < S; ++t) {
            while (left == 0 && c < count - 1) left = size[++c];
            label[t] = c;
            --left;
        }
        for (int t = S - 1; t > 0; --t) {
            int other = rnd_int(&r, t + 1);
            int32_t x = label[t];
            label[t] = label[other];
            label[other] = x;
        }
    }
    blocks_sort(&b, heads, S);
    return b;
}

typedef struct shape { int B, H, Hk, Sq, Sk, D; } shape;
typedef struct att {
    svg2_attention_desc d; /* host pointers */
    shape s;
    tensor q, k, v, out;
    double *q64, *k64, *v64;
    blocks qb, kb;
    uint8_t *map;
    double mean;    /* of the keys: their logits err by so much more where q is rounded */
    int misaligned; /* device tensors begin one element off */
    svg2_error err;
} att;

FN att att_new(shape s, const svg2_dtype *types, tensor_order order, double mean, uint64_t seed)
{
    att a;
    memset(&a, 0, sizeof a);
    a.s = s;
    a.mean = mean;
    a.q = tensor_new(s.B, s.H, s.Sq, s.D, types[0], order);
    a.k = tensor_new(s.B, s.Hk, s.Sk, s.D, types[1], order);
    a.v = tensor_new(s.B, s.Hk, s.Sk, s.D, types[2], order);
    a.out = tensor_new(s.B, s.H, s.Sq, s.D, types[3], order);
    tensor_fill_normal(&a.q, seed, 1.5, 0);
    tensor_fill_normal(&a.k, seed + 1000, 1, mean);
    tensor_fill_normal(&a.v, seed + 2000, 1, 0.3);
    a.q64 = tensor_f64(&a.q); a.k64 = tensor_f64(&a.k); a.v64 = tensor_f64(&a.v);
    a.d.batch = s.B; a.d.heads = s.H; a.d.heads_kv = s.Hk; a.d.tokens = s.Sq; a.d.tokens_kv = s.Sk; a.d.head_dim = s.D;
    a.d.scale = (float)(1 / sqrt(s.D));
    a.d.q = a.q.data; a.d.k = a.k.data; a.d.v = a.v.data; a.d.out = a.out.data;
    a.d.lse = (float *)mem_new((size_t)(s.B * s.H * s.Sq) * 4);
    a.d.q_layout = a.q.layout; a.d.k_layout = a.k.layout; a.d.v_layout = a.v.layout; a.d.out_layout = a.out.layout;
    return a;
}
FN void att_use(att *a, blocks qb, blocks kb, double filled, uint64_t seed)
{
    uint64_t r = seed;
    int Qb = qb.count, Kb = kb.count;
    a->qb = qb;
    a->kb = kb;
    a->map = (uint8_t *)mem_new((size_t)(a->s.B * a->s.H * Qb * Kb));
    for (int i = 0; i < a->s.B * a->s.H * Qb * Kb; ++i) a->map[i] = rnd_unit(&r) < filled;
    a->d.query_blocks = Qb; a->d.key_blocks = Kb;
    a->d.query_order = a->qb.order; a->d.query_offset = a->qb.offset;
    a->d.key_order = a->kb.order; a->d.key_offset = a->kb.offset;
    a->d.map = a->map;
}
FN void att_blocks(att *a, int Qb, int Kb, double filled, uint64_t seed)
{
    att_use(a, blocks_new(a->s.B * a->s.H, a->s.Sq, Qb, seed + 1), blocks_new(a->s.B * a->s.Hk, a->s.Sk, Kb, seed + 2), filled, seed);
}
FN float *att_key_mean(const att *a)
{
    int n = a->s.B * a->s.Hk;
    float *m = (float *)mem_new((size_t)(n * a->s.D) * 4);
    for (int h = 0; h < n; ++h)
        for (int d = 0; d < a->s.D; ++d) {
            double sum = 0;
            for (int t = 0; t < a->s.Sk; ++t) sum += a->k64[((int64_t)h * a->s.Sk + t) * a->s.D + d];
            m[h * a->s.D + d] = (float)(sum / a->s.Sk);
        }
    return m;
}
/* Compares up to rows rows per head with float64. order: -1 no tail, 0, 1. Returns the relative L2 error.
   The LSE is off by at most lse_bound + lse_relative * |LSE|. */
FN double att_check(const att *a, int rows, int order, double lse_bound, double lse_relative)
{
    const double *out = tensor_f64(&a->out);
    double *o = (double *)mem_new(sizeof(double) * (size_t)a->s.D);
    rel_error e = {0, 0};
    shape s = a->s;
    for (int h = 0; h < s.B * s.H; ++h) {
        int hk = h / s.H * s.Hk + h % s.H / (s.H / s.Hk);
        const double *qh = a->q64 + (int64_t)h * s.Sq * s.D, *kh = a->k64 + (int64_t)hk * s.Sk * s.D, *vh = a->v64 + (int64_t)hk * s.Sk * s.D;
        ref_head r;
        memset(&r, 0, sizeof r);
        if (a->map) {
            r.Sq = s.Sq; r.Skv = s.Sk; r.D = s.D; r.Qb = a->qb.count; r.Kb = a->kb.count; r.order = order; r.scale = (double)a->d.scale;
            r.Cq = order < 0 ? r.Qb : a->d.tail_query_blocks;
            r.Ck = order < 0 ? r.Kb : a->d.tail_key_blocks;
            r.plain = a->d.log_mass == 0;
            r.q = qh; r.k = kh; r.v = vh; r.map = a->map + (int64_t)h * r.Qb * r.Kb;
            r.query_label = a->qb.label + h * s.Sq; r.key_label = a->kb.label + hk * s.Sk;
            ref_head_prepare(&r);
        }
        for (int n = 0; n < (rows < s.Sq ? rows : s.Sq); ++n) {
            int i = rows >= s.Sq ? n : (int)((int64_t)n * 7919 % s.Sq);
            float got = a->d.lse ? a->d.lse[(int64_t)h * s.Sq + i] : 0;
            double lse = a->map ? ref_head_row(&r, i, o) : ref_row(qh + (int64_t)i * s.D, kh, vh, 0, s.Sk, s.D, (double)a->d.scale, 0, 0, 0, o, 0);
            rel_add(&e, out + ((int64_t)h * s.Sq + i) * s.D, o, s.D);
            if (!a->d.lse) continue;
            if (isinf(lse)) assert_true(isinf(got) && got < 0);
            else assert_at_most(fabs((double)got - lse), lse_bound + lse_relative * fabs(lse));
        }
    }
    return rel_l2(e);
}
/* Blocks, centroids and log mass of a problem with a tail; what is given to svg2_tail. Text keys are always exact. is_plain: ln n_j
   in place of the log mass. Of empty clusters nobody reads a centroid. */
FN svg2_tail_desc att_tail(att *a, int Cq, int Ck, int text, double filled, uint64_t seed, int is_plain, const svg2_backend *cpu)
{
    const shape s = a->s;
    const int heads = s.B * s.H, most = Cq > Ck ? Cq : Ck;
    const size_t keys = (size_t)(s.B * s.Hk * Ck * s.D), D = (size_t)s.D;
    float *qc = (float *)mem_new((size_t)(heads * Cq) * D * 4), *kc = (float *)mem_new(keys * 4), *vc = (float *)mem_new(keys * 4);
    double *mean = (double *)mem_new(sizeof(double) * (size_t)most * D);
    int *n = (int *)mem_new(sizeof(int) * (size_t)most);
    svg2_tail_desc t = SVG2_ZERO;
    svg2_score_desc l = SVG2_ZERO;
    att_blocks(a, Cq + text, Ck + text, filled, seed);
    for (int i = 0; i < heads * (Cq + 1) && text; ++i) a->map[i * (Ck + 1) + Ck] = 1;
    for (int h = 0; h < heads; ++h) {
        ref_means(a->q64 + (int64_t)h * s.Sq * s.D, a->qb.label + h * s.Sq, s.Sq, s.D, Cq, mean, n);
        for (int i = 0; i < Cq * s.D; ++i) qc[h * Cq * s.D + i] = (float)mean[i];
    }
    for (int h = 0; h < s.B * s.Hk; ++h)
        for (int side = 0; side < 2; ++side) {
            ref_means((side ? a->v64 : a->k64) + (int64_t)h * s.Sk * s.D, a->kb.label + h * s.Sk, s.Sk, s.D, Ck, mean, n);
            for (int i = 0; i < Ck * s.D; ++i) (side ? vc : kc)[h * Ck * s.D + i] = n[i / s.D] ? (float)mean[i] : NAN;
        }
    l.batch = s.B; l.heads = s.H; l.heads_kv = s.Hk; l.tokens_kv = s.Sk; l.head_dim = s.D;
    l.query_clusters = Cq; l.key_clusters = Ck; l.key_blocks = Ck + text; l.scale = a->d.scale;
    l.k = a->d.k; l.k_layout = a->k.layout; l.key_order = a->kb.order; l.key_offset = a->kb.offset;
    l.query_centroid = qc; l.key_centroid = kc;
    l.log_mass = (float *)mem_new((size_t)(heads * Cq) * (size_t)Ck * 4);
    size_t bytes = svg2_stage_workspace_bytes(cpu, SVG2_STAGE_SCORE, &l);
    assert_ok(svg2_score(cpu, &l, mem_new(bytes), bytes, &a->err));
    a->d.key_mean = att_key_mean(a);
    a->d.log_mass = is_plain ? 0 : l.log_mass;
    a->d.tail_query_blocks = Cq; a->d.tail_key_blocks = Ck;
    a->d.key_centroid = kc; a->d.value_mean = vc;
    t.batch = s.B; t.heads = s.H; t.heads_kv = s.Hk; t.tokens_kv = s.Sk; t.head_dim = s.D;
    t.query_clusters = Cq; t.key_clusters = Ck; t.query_blocks = Cq + text; t.key_blocks = Ck + text;
    t.scale = a->d.scale;
    t.k = a->d.k; t.v = a->d.v; t.k_layout = a->k.layout; t.v_layout = a->v.layout;
    t.key_order = a->kb.order; t.key_offset = a->kb.offset;
    t.query_centroid = qc; t.key_centroid = kc; t.key_mean = a->d.key_mean; t.value_mean = vc; t.map = a->map;
    t.log_mass = a->d.log_mass;
    return t;
}
/* Order 1 for the next group of heads, of 1, 2, 3, 1, ... from head 0 on; 0 after the last. */
FN int att_next_heads(att *a, svg2_tail_desc *t, const svg2_backend *cpu)
{
    const int begin = t->head_begin + t->head_count, left = a->s.B * a->s.H - begin, count = begin % 3 + 1;
    if (left == 0) return 0;
    t->head_begin = begin; t->head_count = count < left ? count : left;
    t->matrix = (float *)mem_new((size_t)(t->head_count * t->query_clusters * a->s.D) * (size_t)a->s.D * 4);
    size_t bytes = svg2_stage_workspace_bytes(cpu, SVG2_STAGE_TAIL, t);
    assert_ok(svg2_tail(cpu, t, mem_new(bytes), bytes, &a->err));
    a->d.head_begin = t->head_begin; a->d.head_count = t->head_count; a->d.tail_matrix = t->matrix;
    return 1;
}
static const svg2_dtype f32x4[4] = {SVG2_F32, SVG2_F32, SVG2_F32, SVG2_F32};

/* Parts may be missing: 1 query_order, 2 key_order, 4 the map, 8 the offsets. Of a shape with one batch entry, 2 and 1 heads, 130 and
   150 tokens in 7 and 9 blocks. */
FN void att_without(att *a, int part)
{
    if (part & 1) { /* blocks in the order of memory */
        for (int h = 0; h < 2; ++h)
            for (int i = 0; i < 130; ++i)
                for (int c = 0; c < 7; ++c)
                    if (i >= a->qb.offset[h * 8 + c] && i < a->qb.offset[h * 8 + c + 1]) a->qb.label[h * 130 + i] = c;
        a->d.query_order = 0;
    }
    if (part & 2) {
        for (int i = 0; i < 150; ++i)
            for (int c = 0; c < 9; ++c)
                if (i >= a->kb.offset[c] && i < a->kb.offset[c + 1]) a->kb.label[i] = c;
        a->d.key_order = 0;
    }
    if (part & 4) {
        memset(a->map, 1, 2 * 7 * 9);
        a->d.map = 0;
    }
    if (part & 8) {
        a->d.query_offset = a->d.key_offset = 0;
        a->d.query_blocks = a->d.key_blocks = part & 4 ? 0 : 1;
        memset(a->map, 1, 2 * 7 * 9);
        a->d.map = part == 8 ? a->map : 0;
    }
}
