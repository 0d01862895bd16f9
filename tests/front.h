/* front.h - problems for svg2_front on any backend, and their answers in float64, from the formulas in svg2.h */
#ifndef SVG2_TEST_FRONT_H
#define SVG2_TEST_FRONT_H

typedef enum front_rope { FLAT, SHARED, OWN, WIDE } front_rope; /* no tables; one for all heads; one per head; with gaps */
typedef struct front_case {
    int B, H, Hkv, S, D, begin, count; /* count 0 = all tokens */
    svg2_norm norm;
    svg2_pairing pairing;
    front_rope rope;
    svg2_dtype in, out;
    tensor_order in_order, out_order;
    int is_in_place, is_weighted, has_mean, left_out; /* left_out: 1 = q, 2 = k */
    float epsilon;
} front_case;

typedef struct front {
    front_case c;
    svg2_front_desc d;
    tensor x[2], y[2]; /* of q, k; y = x in place */
    float *weight[2], *table[2], *mean;
    size_t weight_count[2], table_count, mean_count;
    double *want[2], *size[2], *want_mean, *mean_size; /* size: |a| + |b| of the pair that an element comes from */
} front;

FN int front_heads(const front_case *c, int side) { return side ? c->Hkv : c->H; }
FN int front_is_there(const front_case *c, int side) { return c->left_out != side + 1; }

FN float *front_floats(size_t count, uint64_t seed, double amplitude, double mean)
{
    float *x = (float *)mem_new(count * sizeof(float));
    for (size_t i = 0; i < count; ++i) x[i] = (float)(mean + amplitude * rnd_normal(&seed));
    return x;
}

/* What is to come, from what is in x. */
FN void front_solve(front *f)
{
    const front_case *c = &f->c;
    const int D = c->D, half = D / 2, video = c->count ? c->count : c->S;
    const double epsilon = c->epsilon > 0 ? (double)c->epsilon : 1e-6;
    for (int side = 0; side < 2; ++side) {
        const int H = front_heads(c, side);
        if (!front_is_there(c, side)) continue;
        double *x = tensor_f64(&f->x[side]), *want = f->want[side], *size = f->size[side];
        const float *w = f->weight[side];
        for (int b = 0; b < c->B; ++b)
            for (int t = 0; t < c->S; ++t) {
                double all = 0;
                for (int h = 0; h < H; ++h) {
                    const double *row = x + ((int64_t)(b * H + h) * c->S + t) * D;
                    all += dot64(row, row, D);
                }
                for (int h = 0; h < H; ++h) {
                    const int64_t at = ((int64_t)(b * H + h) * c->S + t) * D;
                    const int n = t - c->begin;
                    double y[256], inverse = 1;
                    if (c->norm == SVG2_NORM_TOKEN) inverse = 1 / sqrt(all / (H * D) + epsilon);
                    if (c->norm == SVG2_NORM_HEAD) inverse = 1 / sqrt(dot64(x + at, x + at, D) / D + epsilon);
                    for (int d = 0; d < D; ++d) {
                        y[d] = x[at + d] * inverse;
                        if (w) y[d] *= (double)w[c->norm == SVG2_NORM_TOKEN ? h * D + d : d];
                        want[at + d] = y[d];
                        size[at + d] = fabs(y[d]);
                    }
                    if (c->rope == FLAT || n < 0 || n >= video) continue;
                    for (int i = 0; i < half; ++i) {
                        const int lo = c->pairing == SVG2_PAIRING_HALF ? i : 2 * i, hi = c->pairing == SVG2_PAIRING_HALF ? i + half : 2 * i + 1;
                        const size_t row = (size_t)n * (size_t)(c->rope == OWN ? H * half : c->rope == WIDE ? D + 1 : half) + (size_t)(c->rope == OWN ? h * half : 0);
                        const double cosine = (double)f->table[0][row + (size_t)i], sine = (double)f->table[1][row + (size_t)i];
                        want[at + lo] = y[lo] * cosine - y[hi] * sine;
                        want[at + hi] = y[lo] * sine + y[hi] * cosine;
                        size[at + lo] = size[at + hi] = fabs(y[lo]) + fabs(y[hi]);
                    }
                }
            }
        for (int bh = 0; bh < c->B * H && side && c->has_mean; ++bh)
            for (int d = 0; d < D; ++d) {
                double sum = 0, sizes = 0;
                for (int t = c->begin; t < c->begin + video; ++t) {
                    sum += want[((int64_t)bh * c->S + t) * D + d];
                    sizes += size[((int64_t)bh * c->S + t) * D + d];
                }
                f->want_mean[bh * D + d] = sum / video;
                f->mean_size[bh * D + d] = sizes / video;
            }
    }
}

/* The descriptor has host pointers. */
FN front front_new(front_case c, uint64_t seed)
{
    front f;
    memset(&f, 0, sizeof f);
    f.c = c;
    const int video = c.count ? c.count : c.S;
    for (int side = 0; side < 2; ++side) {
        const int H = front_heads(&c, side);
        if (!front_is_there(&c, side)) continue;
        f.x[side] = tensor_new(c.B, H, c.S, c.D, c.in, c.in_order);
        tensor_fill_normal(&f.x[side], seed + (uint64_t)side, 1.5, 0.5);
        f.y[side] = c.is_in_place ? f.x[side] : tensor_new(c.B, H, c.S, c.D, c.out, c.out_order);
        const size_t count = (size_t)(c.B * H) * (size_t)(c.S * c.D);
        f.want[side] = (double *)mem_new(count * sizeof(double));
        f.size[side] = (double *)mem_new(count * sizeof(double));
        f.weight_count[side] = (size_t)(c.norm == SVG2_NORM_TOKEN ? H * c.D : c.D);
        if (c.is_weighted && c.norm != SVG2_NORM_NONE) f.weight[side] = front_floats(f.weight_count[side], seed + 10 + (uint64_t)side, 0.3, 1);
    }
    if (c.rope != FLAT) {
        const int heads = front_is_there(&c, 0) ? c.H : c.Hkv;
        /* the last row of a table with gaps ends where its numbers end */
        f.table_count = (size_t)(video - 1) * (size_t)(c.rope == WIDE ? c.D + 1 : (c.rope == OWN ? heads : 1) * c.D / 2) + (size_t)((c.rope == OWN ? heads : 1) * c.D / 2);
        for (int i = 0; i < 2; ++i) f.table[i] = (float *)mem_new(f.table_count * sizeof(float));
        for (size_t i = 0; i < f.table_count; ++i) {
            const double angle = 6.3 * rnd_unit(&seed);
            f.table[0][i] = (float)cos(angle); f.table[1][i] = (float)sin(angle);
        }
        f.d.rope_heads = c.rope == OWN ? heads : 0;
        f.d.rope_stride = c.rope == WIDE ? c.D + 1 : 0;
        f.d.rope_tokens = c.rope == SHARED ? video : 0;
    }
    if (c.has_mean) {
        f.mean_count = (size_t)(c.B * c.Hkv * c.D);
        f.mean = (float *)mem_new(f.mean_count * sizeof(float));
        f.want_mean = (double *)mem_new(f.mean_count * sizeof(double));
        f.mean_size = (double *)mem_new(f.mean_count * sizeof(double));
    }
    svg2_front_desc *d = &f.d;
    d->batch = c.B; d->heads = c.H; d->heads_kv = c.Hkv; d->tokens = c.S; d->head_dim = c.D;
    d->video_begin = c.begin; d->video_count = c.count;
    d->norm = c.norm; d->epsilon = c.epsilon; d->pairing = c.pairing;
    d->cosine = f.table[0]; d->sine = f.table[1];
    d->q = f.x[0].data; d->k = f.x[1].data; d->q_out = f.y[0].data; d->k_out = f.y[1].data;
    d->q_layout = f.x[0].layout; d->k_layout = f.x[1].layout; d->q_out_layout = f.y[0].layout; d->k_out_layout = f.y[1].layout;
    d->q_weight = f.weight[0]; d->k_weight = f.weight[1];
    d->key_mean = f.mean;
    front_solve(&f);
    return f;
}

/* Half a unit in the last place of the output, and a few of f32: an element has at most five roundings behind it and a sum
   of squares in 16 or more parts. */
FN void front_check(const front *f)
{
    const front_case *c = &f->c;
    for (int side = 0; side < 2; ++side) {
        const svg2_dtype out = c->is_in_place ? c->in : c->out;
        const double unit = out == SVG2_F32 ? 0 : out == SVG2_F16 ? ldexp(1, -11) : ldexp(1, -8), least = out == SVG2_F16 ? ldexp(1, -25) : 0;
        if (!front_is_there(c, side)) continue;
        const double *got = tensor_f64(&f->y[side]);
        const size_t count = (size_t)(c->B * front_heads(c, side)) * (size_t)(c->S * c->D);
        for (size_t i = 0; i < count; ++i) assert_at_most(fabs(got[i] - f->want[side][i]), unit * fabs(f->want[side][i]) + least + 2e-6 * f->size[side][i]);
        assert_true(tensor_gaps_untouched(&f->y[side]));
        if (!c->is_in_place) assert_true(mem_hash(f->x[side].data, f->x[side].bytes) == f->x[side].hash);
    }
    for (size_t i = 0; i < f->mean_count; ++i) assert_at_most(fabs((double)f->mean[i] - f->want_mean[i]), 4e-6 * f->mean_size[i]);
}
#endif
