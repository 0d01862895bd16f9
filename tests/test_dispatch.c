/* >>dispatch: every inner loop of every instruction set against its scalar truth, at all lane counts and odd lengths.
   Includes the implementation: these functions are private. */
#define SVG2_IMPLEMENTATION
#include "test.h"

typedef struct level { const char *name; const svg2__loops *loops; } level;
static level levels[5];
static int level_count;

static void find_levels(void)
{
    level_count = 0;
    levels[level_count].name = "scalar";
    levels[level_count++].loops = &svg2__loops_scalar;
#if SVG2__X86
    if (svg2_cpu_backend_simd(0, SVG2_SIMD_AVX2).simd == SVG2_SIMD_AVX2) {
        levels[level_count].name = "avx2";
        levels[level_count++].loops = &svg2__loops_avx2;
    }
    if (svg2_cpu_backend_simd(0, SVG2_SIMD_AVX512).simd == SVG2_SIMD_AVX512) {
        levels[level_count].name = "avx512";
        levels[level_count++].loops = &svg2__loops_avx512;
    }
    if (svg2_cpu_backend_simd(0, SVG2_SIMD_AVX512BF16).simd == SVG2_SIMD_AVX512BF16) {
        levels[level_count].name = "avx512bf16";
        levels[level_count++].loops = &svg2__loops_avx512bf16;
    }
#endif
}
static float *random_floats(int n, uint64_t seed, double amplitude)
{
    float *x = (float *)mem_new((size_t)n * 4);
    for (int i = 0; i < n; ++i) x[i] = (float)(amplitude * rnd_normal(&seed));
    return x;
}
static float *copy_floats(const float *x, int n)
{
    float *y = (float *)mem_new((size_t)n * 4);
    memcpy(y, x, (size_t)n * 4);
    return y;
}

static void test_mk(void **state)
{
    (void)state;
    static const int lengths[] = {1, 2, 3, 7, 8, 40, 64, 127, 128, 256};
    for (int v = 0; v < level_count; ++v)
        for (int nv = 1; nv <= 4; ++nv)
            for (int i = 0; i < COUNT(lengths); ++i)
                for (int accumulate = 0; accumulate < 2; ++accumulate) {
                    int kc = lengths[i], lda = i % 2 ? 4 : 20, ldb = 64, ldc = 64;
                    float *a = random_floats((kc - 1) * lda + 4, 1, 1), *b = random_floats((kc - 1) * ldb + 16 * nv, 2, 1);
                    float *c = random_floats(3 * ldc + 16 * nv, 3, 1), *before = copy_floats(c, 3 * ldc + 16 * nv);
                    levels[v].loops->mk(nv, kc, a, lda, b, ldb, c, ldc, accumulate);
                    for (int r = 0; r < 4; ++r)
                        for (int l = 0; l < (r < 3 ? ldc : 16 * nv); ++l) {
                            double want = accumulate ? (double)before[r * ldc + l] : 0, size = fabs(want);
                            if (l >= 16 * nv) { assert_true(c[r * ldc + l] == before[r * ldc + l]); continue; }
                            for (int k = 0; k < kc; ++k) {
                                double p = (double)a[k * lda + r] * (double)b[k * ldb + l];
                                want += p;
                                size += fabs(p);
                            }
                            assert_at_most(fabs((double)c[r * ldc + l] - want), 6e-8 * sqrt(kc + 4) * size);
                        }
                    mem_done();
                }
}

static void test_load_and_pack(void **state)
{
    (void)state;
    for (int v = 0; v < level_count; ++v)
        for (int dtype = 0; dtype < 3; ++dtype)
            for (int dim = 8; dim <= 256; dim += 8) {
                tensor x = tensor_new(1, 1, 4, dim, (svg2_dtype)dtype, BHSD);
                float *shift = random_floats(dim, 5, 2), *row = (float *)mem_new((size_t)dim * 4), *rows = random_floats(4 * dim, 6, 1);
                tensor_fill_normal(&x, 4, 1, 1);
                for (int with = 0; with < 2; ++with) {
                    levels[v].loops->load(row, x.data, (svg2_dtype)dtype, with ? shift : 0, dim);
                    for (int d = 0; d < dim; ++d) assert_true(row[d] == (float)tensor_get(&x, d) - (with ? shift[d] : 0));
                }
                float *packed = (float *)mem_new((size_t)((dim - 1) * 5 + 4) * 4);
                levels[v].loops->pack4(packed, 5, rows, dim, dim);
                for (int d = 0; d < dim; ++d)
                    for (int i = 0; i < 4; ++i) assert_true(packed[d * 5 + i] == rows[i * dim + d]);
                for (int d = 0; d + 1 < dim; ++d) assert_untouched(&packed[d * 5 + 4], 4);
                mem_done();
            }
}

static void test_softmax(void **state)
{
    (void)state;
    static const int keys[] = {1, 3, 4, 64, 127, 128};
    for (int v = 0; v < level_count; ++v)
        for (int nv = 1; nv <= 4; ++nv)
            for (int i = 0; i < COUNT(keys); ++i)
                for (int mode = 0; mode < 6; ++mode) {
                    int n = keys[i] * 64;
                    float *p = random_floats(n, 7, mode == 2 ? 300 : 4), *bias = random_floats(keys[i], 8, 3);
                    float *m = random_floats(64, 9, 3), *l = random_floats(64, 10, 1), *alpha = random_floats(64, 11, 1);
                    for (int k = 0; k < 64; ++k) l[k] = fabsf(l[k]) + 0.5f;
                    if (mode == 3) for (int k = 0; k < 64; ++k) { m[k] = -INFINITY; l[k] = 0; } /* first tile */
                    if (mode == 4) for (int k = 0; k < 64; ++k) m[k] = 1000; /* nothing new matters */
                    if (mode == 5) bias[0] = -INFINITY;
                    float *in = copy_floats(p, n), *m0 = copy_floats(m, 64), *l0 = copy_floats(l, 64);
                    int changed = levels[v].loops->softmax(p, keys[i], nv, mode ? bias : 0, m, l, alpha), any = 0;
                    for (int lane = 0; lane < 16 * nv; ++lane) {
                        double top = (double)m0[lane], sum;
                        for (int k = 0; k < keys[i]; ++k) top = fmax(top, (double)(in[k * 64 + lane] + (mode ? bias[k] : 0)));
                        any |= m[lane] != m0[lane] && l0[lane] != 0;
                        assert_at_most(fabs((double)m[lane] - top), 1e-6 * (1 + fabs(top)));
                        double shrink = isinf(m0[lane]) ? 0 : exp2((double)m0[lane] - (double)m[lane]);
                        assert_at_most(fabs((double)alpha[lane] - shrink), (mode == 2 ? 4e-4 : 1e-5) * shrink + 2e-38 + (l0[lane] == 0 ? 1 : 0));
                        sum = (double)l0[lane] * shrink;
                        for (int k = 0; k < keys[i]; ++k) {
                            double w = exp2((double)in[k * 64 + lane] + (mode ? (double)bias[k] : 0) - (double)m[lane]);
                            /* 2^x of a rounded x: 300 * eps at most */
                            assert_at_most(fabs((double)p[k * 64 + lane] - w), w * (mode == 2 ? 4e-4 : 4e-6) + 2e-38);
                            sum += w;
                        }
                        assert_at_most(fabs((double)l[lane] - sum), sum * (mode == 2 ? 4e-4 : 4e-6));
                    }
                    if (any) assert_int_equal(changed, 1);
                    mem_done();
                }
}

/* The largest, to the bit, wherever it stands; NaN for a lane with anything that is not finite, wherever that stands. */
static void test_peak(void **state)
{
    (void)state;
    static const int keys[] = {1, 2, 3, 4, 5, 63, 64, 127, 128};
    static const uint32_t odd[] = {0x7fc00000, 0xffc12345, 0x7f800001, 0x7f800000, 0xff800000};
    for (int v = 0; v < level_count; ++v)
        for (int nv = 1; nv <= 4; ++nv)
            for (int i = 0; i < COUNT(keys); ++i)
                for (int mode = 0; mode < 6; ++mode) {
                    const int n = keys[i];
                    float *p = random_floats(n * 64, (uint64_t)(n + mode), 4), *top = random_floats(64, 2, 1), *before = copy_floats(top, 64);
                    for (int l = 0; l < 64; ++l) {
                        const int at = (l + 64 * (mode % 2)) % n; /* every key, by and by */
                        if (mode < 2) {
                            for (int k = 0; k < n; ++k) p[k * 64 + l] = -1e30f * (1 + fabsf(p[k * 64 + l]));
                            p[at * 64 + l] = -5;
                        }
                        if (mode == 3) p[at * 64 + l] = 3e38f;
                        if (mode >= 4 && l % 3) memcpy(&p[at * 64 + l], &odd[l / 3 % COUNT(odd)], 4);
                        if (mode >= 4 && l % 6 == 1) p[(at + n / 2) % n * 64 + l] = l % 4 == 1 ? -INFINITY : NAN; /* a second one */
                        if (mode >= 4 && l == 9) for (int k = 0; k < n; ++k) p[k * 64 + l] = -INFINITY;
                    }
                    levels[v].loops->peak(p, n, nv, top);
                    for (int l = 0; l < 64; ++l) {
                        float want = p[l];
                        int finite = 1;
                        for (int k = 0; k < n; ++k) { finite &= isfinite(p[k * 64 + l]) != 0; want = fmaxf(want, p[k * 64 + l]); }
                        if (l >= 16 * nv) assert_true(top[l] == before[l]);
                        else if (finite) assert_true(top[l] == want);
                        else assert_true(isnan(top[l]));
                    }
                    mem_done();
                }
}

static void test_argmax_rescale_dot_moments(void **state)
{
    (void)state;
    for (int v = 0; v < level_count; ++v) {
        const svg2__loops *f = levels[v].loops;
        for (int nv = 1; nv <= 4; ++nv) {
            float *score = random_floats(4 * 64, 1, 1), bias[4] = {0.1f, -0.2f, 0, -INFINITY}, *best = random_floats(64, 2, 1);
            int32_t index[64];
            float want[64];
            int32_t at[64];
            for (int l = 0; l < 64; ++l) {
                index[l] = 1000 + l;
                if (l % 3 == 0) score[l] = score[64 + l] = score[128 + l]; /* with bias -0.2 .. 0.1 */
                if (l % 5 == 0) { score[128 + l] = best[l]; score[l] = score[64 + l] = -9; } /* a tie keeps the old one */
                want[l] = best[l];
                at[l] = index[l];
                for (int i = 0; i < 4; ++i)
                    if (score[i * 64 + l] + bias[i] > want[l]) { want[l] = score[i * 64 + l] + bias[i]; at[l] = 40 + i; }
            }
            f->argmax(score, nv, bias, 40, best, index);
            for (int l = 0; l < 16 * nv; ++l) assert_true(best[l] == want[l] && index[l] == at[l]);
            float *o = random_floats(24 * 64, 3, 1), *before = copy_floats(o, 24 * 64), *alpha = random_floats(64, 4, 1);
            f->rescale(o, 24, nv, alpha);
            for (int i = 0; i < 24 * 64; ++i) assert_true(o[i] == (i % 64 < 16 * nv ? before[i] * alpha[i % 64] : before[i]));
            mem_done();
        }
        for (int dim = 8; dim <= 256; dim += 8) {
            float *a = random_floats(dim, 1, 1), *b = random_floats(dim, 2, 1), *sum = random_floats(dim, 3, 1), *square = random_floats(dim, 4, 1);
            float *s0 = copy_floats(sum, dim), *q0 = copy_floats(square, dim);
            double want = 0, size = 0;
            for (int d = 0; d < dim; ++d) { want += (double)a[d] * (double)b[d]; size += fabs((double)a[d] * (double)b[d]); }
            assert_at_most(fabs((double)f->dot(a, b, dim) - want), 1e-6 * size);
            f->moments(sum, square, a, dim);
            for (int d = 0; d < dim; ++d) {
                assert_true(sum[d] == s0[d] + a[d]);
                assert_at_most(fabs((double)square[d] - ((double)q0[d] + (double)a[d] * (double)a[d])), 4e-7 * (1 + (double)a[d] * (double)a[d]));
            }
            mem_done();
        }
    }
}

static void test_mass_loop(void **state)
{
    (void)state;
    for (int v = 0; v < level_count; ++v)
        for (int nv = 1; nv <= 4; ++nv)
            for (int keys = 1; keys <= 128; keys += keys < 5 ? 1 : 41) {
                float *p = random_floats(keys * 64, 1, 4), *lse = random_floats(64, 2, 2), *weight = random_floats(keys, 3, 1);
                float *mass = random_floats(keys, 4, 1), *recall = random_floats(64, 5, 1), *r0 = copy_floats(recall, 64), *in = copy_floats(p, keys * 64);
                for (int k = 0; k < keys; ++k) weight[k] = k % 3 == 0;
                for (int l = 0; l < 64; ++l) lse[l] += 12;
                levels[v].loops->mass(p, keys, nv, lse, weight, mass, recall);
                for (int k = 0; k < keys; ++k) {
                    double want = 0;
                    for (int l = 0; l < 16 * nv; ++l) want += exp2((double)in[k * 64 + l] - (double)lse[l]);
                    assert_at_most(fabs((double)mass[k] - want), 4e-6 * want);
                }
                for (int l = 0; l < 16 * nv; ++l) {
                    double want = (double)r0[l];
                    for (int k = 0; k < keys; ++k) want += (double)weight[k] * exp2((double)in[k * 64 + l] - (double)lse[l]);
                    assert_at_most(fabs((double)recall[l] - want), 4e-6 * (1 + fabs(want)));
                }
                mem_done();
            }
}

static void test_turn_and_square(void **state)
{
    (void)state;
    static const uint32_t odd[] = {0x7f800001, 0xffc12345, 0x7f800000, 0xff800000, 0x477ff000, 0x477fefff, 0x3f808000, 0x3f818000, 0x33000001, 0x80000001, 0x7f7fffff, 0x387fffff};
    for (int v = 0; v < level_count; ++v)
        for (int dim = 8, n = 0; dim <= 256; dim += 8)
            for (int way = 0; way < 8; ++way, ++n) {
                const svg2__loops *f = levels[v].loops;
                float *weight = random_floats(dim, 2, 1), *cosine = random_floats(dim / 2, 3, 1), *sine = random_floats(dim / 2, 4, 1), *sum = random_floats(dim, 5, 1), *before = copy_floats(sum, dim);
                tensor x = tensor_new(1, 1, 1, dim, (svg2_dtype)(n % 3), BHSD), y = tensor_new(1, 1, 1, dim, (svg2_dtype)(n / 3 % 3), BHSD);
                svg2__turn t;
                double size = 0;
                tensor_fill_normal(&x, (uint64_t)n, 2, 0);
                memset(&t, 0, sizeof t);
                t.src = x.data; t.dst = y.data; t.src_dtype = x.layout.dtype; t.dst_dtype = y.layout.dtype;
                t.sum = n % 5 ? sum : 0; t.inverse = 0.3f; t.dim = dim; t.is_half = way / 4;
                if (way % 2) t.weight = weight;
                if (way / 2 % 2) t.cosine = cosine, t.sine = sine;
                f->turn(&t);
                for (int i = 0; i < dim / 2; ++i) {
                    const int at[2] = {t.is_half ? i : 2 * i, t.is_half ? i + dim / 2 : 2 * i + 1};
                    const double a = tensor_get(&x, at[0]) * (double)0.3f * (way % 2 ? (double)weight[at[0]] : 1), b = tensor_get(&x, at[1]) * (double)0.3f * (way % 2 ? (double)weight[at[1]] : 1);
                    const double c = t.cosine ? (double)cosine[i] : 1, s = t.cosine ? (double)sine[i] : 0, most = (fabs(a) + fabs(b)) * (fabs(c) + fabs(s));
                    const double want[2] = {a * c - b * s, a * s + b * c}, unit = y.layout.dtype == SVG2_F32 ? 0 : y.layout.dtype == SVG2_F16 ? ldexp(1, -11) : ldexp(1, -8);
                    for (int e = 0; e < 2; ++e) {
                        assert_at_most(fabs(tensor_get(&y, at[e]) - want[e]), unit * fabs(want[e]) + (y.layout.dtype == SVG2_F16 ? ldexp(1, -25) : 0) + 4e-7 * most);
                        assert_at_most(fabs((double)sum[at[e]] - (double)before[at[e]] - (t.sum ? want[e] : 0)), 4e-7 * (most + fabs((double)before[at[e]])));
                    }
                }
                for (int d = 0; d < dim; ++d) size += tensor_get(&x, d) * tensor_get(&x, d);
                assert_at_most(fabs((double)f->square(x.data, x.layout.dtype, dim) - size), 1e-6 * size);
                /* rounding, to the bit, NaN and Inf as well */
                float *z = random_floats(dim, 6, 1);
                for (int i = 0; i < dim; i += 2) memcpy(&z[i], &odd[(i / 2 + dim / 8) % COUNT(odd)], 4);
                tensor want = tensor_new(1, 1, 1, dim, y.layout.dtype, BHSD);
                svg2_convert(want.data, want.layout.dtype, z, SVG2_F32, (size_t)dim);
                t.src = z; t.src_dtype = SVG2_F32; t.inverse = 1; t.weight = t.cosine = t.sine = 0;
                f->turn(&t);
                for (int d = 0; d < dim; ++d) { /* a signalling NaN may have become a quiet one */
                    const double a = tensor_get(&y, d), b = tensor_get(&want, d);
                    assert_true(memcmp((char *)y.data + (size_t)d * dtype_bytes(y.layout.dtype), (char *)want.data + (size_t)d * dtype_bytes(y.layout.dtype), dtype_bytes(y.layout.dtype)) == 0 || (isnan(a) && isnan(b)));
                }
                mem_done();
            }
}

/* Products of bf16 pairs, with a bias and a running maximum, or added to what is there. */
static void test_mk16(void **state)
{
    (void)state;
    for (int v = 0; v < level_count; ++v)
        for (int kc = 1; levels[v].loops->mk16 && kc <= 128; kc += 1 + kc / 3)
            for (int nv = 1; nv <= 4; ++nv)
                for (int sum = 0; sum < 2; ++sum) {
                    uint32_t *a = (uint32_t *)mem_new((size_t)(4 * kc) * 4), *b = (uint32_t *)mem_new((size_t)(64 * kc) * 4);
                    float *c = random_floats(256, 3, 1), *before = copy_floats(c, 256), *best = random_floats(64, 4, 1), *best0 = copy_floats(best, 64);
                    float bias[4] = {0.5f, -1, 2, 0};
                    uint64_t s = (uint64_t)kc;
                    for (int i = 0; i < 4 * kc; ++i) a[i] = (uint32_t)bf16_bits(rnd_normal(&s)) << 16 | bf16_bits(rnd_normal(&s));
                    for (int i = 0; i < 64 * kc; ++i) b[i] = (uint32_t)bf16_bits(rnd_normal(&s)) << 16 | bf16_bits(rnd_normal(&s));
                    levels[v].loops->mk16(nv, kc, a, b, sum ? 0 : bias, c, sum ? 0 : best);
                    for (int l = 0; l < 16 * nv; ++l) {
                        float top = best0[l];
                        for (int i = 0; i < 4; ++i) {
                            double want = sum ? (double)before[i * 64 + l] : (double)bias[i], size = fabs(want);
                            for (int k = 0; k < kc; ++k) {
                                uint32_t x = a[4 * k + i], y = b[64 * k + l];
                                double p = bf16_value((uint16_t)x) * bf16_value((uint16_t)y), q = bf16_value((uint16_t)(x >> 16)) * bf16_value((uint16_t)(y >> 16));
                                want += p + q;
                                size += fabs(p) + fabs(q);
                            }
                            assert_at_most(fabs((double)c[i * 64 + l] - want), 1.2e-7 * sqrt(2 * kc + 4) * size);
                            top = fmaxf(top, c[i * 64 + l]);
                        }
                        if (!sum) assert_true(best[l] == top);
                    }
                    mem_done();
                }
}

/* The bf16 loops of k-means only find candidates; their errors must stay inside the bound that >>kmeans computes. */
static void test_bf16_candidates(void **state)
{
    (void)state;
    for (int v = 0; v < level_count; ++v) {
        const svg2__loops *f = levels[v].loops;
        if (!f->mk16) continue;
        for (int dim = 8; dim <= 256; dim += 56)
            for (int nv = 1; nv <= 4; ++nv) {
                float *x = random_floats(dim * 64, 1, 1), *length = random_floats(64, 2, 1), *rounded = random_floats(64, 3, 1), *residual = random_floats(64, 4, 1);
                uint32_t *xb = (uint32_t *)mem_new((size_t)(dim / 2 * 64) * 4);
                float *threshold = random_floats(64, 5, 1), *score = random_floats(64, 6, 1);
                f->pairs(xb, x, dim, nv, length, rounded, residual);
                for (int l = 0; l < 16 * nv; ++l) {
                    double n = 0, r = 0, e = 0;
                    for (int d = 0; d < dim; ++d) {
                        uint32_t pair = xb[d / 2 * 64 + l];
                        double got = bf16_value((uint16_t)(d & 1 ? pair >> 16 : pair)), want = (double)x[d * 64 + l];
                        assert_true(got == bf16_value(bf16_bits(want)));
                        n += want * want; r += got * got; e += (want - got) * (want - got);
                    }
                    assert_at_most(fabs((double)length[l] - sqrt(n)), 2e-6 * sqrt(n));
                    assert_at_most(fabs((double)rounded[l] - sqrt(r)), 2e-6 * sqrt(r));
                    assert_at_most(fabs((double)residual[l] - sqrt(e)), 2e-6 * sqrt(e) + 1e-12);
                }
                score[3] = NAN;
                threshold[5] = NAN;
                score[7] = threshold[7];
                uint64_t want = 0, got = f->reach(score, nv, threshold);
                for (int l = 0; l < 16 * nv; ++l)
                    if (!(score[l] < threshold[l])) want |= (uint64_t)1 << l;
                assert_true(got == want);
                mem_done();
            }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_mk), TEST(test_load_and_pack), TEST(test_softmax), TEST(test_peak), TEST(test_argmax_rescale_dot_moments),
                                       TEST(test_mass_loop), TEST(test_turn_and_square), TEST(test_mk16), TEST(test_bf16_candidates)};
    find_levels();
    return cmocka_run_group_tests_name("dispatch", tests, 0, 0);
}
