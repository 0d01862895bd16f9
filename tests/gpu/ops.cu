/* ops.cu - every device operation of svg2_cuda.cu (its section >>ptx) beside the formula in the PTX ISA, with
   random operands.

   On a GPU this tests the PTX; on the emulation the emulation. Made by both compilers from one source:
   ops.inc is section >>ptx, cut out of svg2_cuda.cu by make. The last line is "N passed, N failed". */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#include "ops.inc"

static int passed, failed;

static void report(const char *name, long long bad, long long of, const char *note)
{
    printf("%s %-40s %lld of %lld wrong%s%s\n", bad ? "FAILED" : "ok    ", name, bad, of, *note ? "; " : "",
           note);
    fflush(stdout);
    ++*(bad ? &failed : &passed);
}

static void must(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return;
    printf("%s: %s\n%d passed, %d failed\n", what, cudaGetErrorString(e), passed, failed + 1);
    exit(1);
}

static uint64_t seed = 20240607;
static uint64_t bits()
{
    uint64_t z = (seed += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}
static double unit() { return (double)(bits() >> 11) * 0x1p-53; }
static double normal()
{
    double x = -6;
    for (int i = 0; i < 12; ++i) x += unit();
    return x;
}

/* Memory of the device with the contents of a vector; read() fetches them back. */
template <class T> struct buffer {
    T *data;
    size_t count;
    explicit buffer(const std::vector<T> &v) : count(v.size())
    {
        must(cudaMalloc((void **)&data, count * sizeof(T)), "cudaMalloc");
        must(cudaMemcpy(data, v.data(), count * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
    }
    ~buffer() { cudaFree(data); }
    std::vector<T> read() const
    {
        std::vector<T> v(count);
        must(cudaDeviceSynchronize(), "kernel");
        must(cudaMemcpy(v.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
        return v;
    }
};

template <class... P, class... A>
static void run(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t smem, A... args)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = smem;
    must(cudaLaunchKernelEx(&config, kernel, (P)args...), "launch");
}

/* ---- ex2 ---- */
static __global__ void exp2_kernel(const float *x, float *y, int n)
{
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) y[i] = svg2__exp2(x[i]);
}

static void test_exp2()
{
    std::vector<float> x = {0.0f,      -0.0f,    1.0f, -1.0f,   127.0f,   -126.0f,
                            -INFINITY, INFINITY, NAN,  -149.0f, -1000.0f, 128.0f};
    while (x.size() < 100000) x.push_back((float)((unit() * 2 - 1) * (x.size() % 2 ? 1 : 140)));
    buffer<float> in(x), out(std::vector<float>(x.size(), 7.0f));
    run(exp2_kernel, (unsigned)(x.size() / 256 + 1), 256, 0, in.data, out.data, (int)x.size());
    const std::vector<float> y = out.read();
    long long bad = 0;
    double worst = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        const double want = exp2((double)x[i]);
        if (isnan(x[i])) bad += !isnan(y[i]);
        else if (want > 3.4028234663852886e38) bad += y[i] != INFINITY;
        else if (want < 0x1p-126) bad += !(y[i] >= 0 && y[i] <= 0x1p-126f); /* .ftz */
        else {
            const double e = fabs(y[i] / want - 1);
            if (e > worst) worst = e;
            bad += !(e <= 0x1p-22);
        }
    }
    char note[64];
    snprintf(note, sizeof note, "relative error up to 2^%.1f", log2(worst));
    report("svg2__exp2", bad, (long long)x.size(), note);
}

/* ---- cp.async ----
   Thread i: chunk i with a size of its own, one group; then chunk i + 32, another group. The first is read
   while the second may be under way. */
static __global__ void copy_kernel(const unsigned char *src, const int *size, unsigned char *out)
{
    SVG2_DYN_SMEM(smem, 128);
    const int i = (int)threadIdx.x;
    for (int b = 0; b < 64 * 16; b += 32) smem[b + i] = 0xee;
    __syncwarp();
    svg2__cp_async16(svg2__smem(smem) + 16 * (uint32_t)i, src + 16 * i, size[i]);
    svg2__cp_async_commit();
    svg2__cp_async16(svg2__smem(smem + 16 * (i + 32)), src + 16 * (i + 32), size[i + 32]);
    svg2__cp_async_commit();
    svg2__cp_async_wait<1>();
    for (int b = 0; b < 16; ++b) out[16 * i + b] = smem[16 * i + b];
    svg2__cp_async_wait<0>();
    for (int b = 0; b < 16; ++b) out[16 * (i + 32) + b] = smem[16 * (i + 32) + b];
}

static void test_copy()
{
    long long bad = 0, count = 0;
    for (int round = 0; round < 20; ++round) {
        std::vector<unsigned char> s(64 * 16);
        std::vector<int> n(64);
        for (auto &c : s) c = (unsigned char)(bits() % 200 + 1);
        for (auto &c : n) c = round == 0 ? 16 : round == 1 ? 0 : (int)(bits() % 9) * 2;
        buffer<unsigned char> src(s), out(std::vector<unsigned char>(64 * 16, 0xaa));
        buffer<int> size(n);
        run(copy_kernel, 1, 32, 64 * 16, src.data, size.data, out.data);
        const std::vector<unsigned char> got = out.read();
        for (int i = 0; i < 64 * 16; ++i, ++count)
            bad += got[(size_t)i] != (i % 16 < n[(size_t)i / 16] ? s[(size_t)i] : 0);
    }
    report("svg2__cp_async16, commit, wait", bad, count, "");
}

/* ---- ldmatrix ---- */
static __global__ void matrix_kernel(const uint32_t *words, const int *row_of_lane, uint32_t *out,
                                     int is_transposed)
{
    SVG2_DYN_SMEM(smem, 128);
    const int lane = (int)threadIdx.x;
    for (int i = lane; i < 64 * 4; i += 32) ((uint32_t *)(void *)smem)[i] = words[i];
    __syncwarp();
    uint32_t r[4] = {0xdeadbeefu, 0xdeadbeefu, 0xdeadbeefu, 0xdeadbeefu};
    const uint32_t a = svg2__smem(smem) + 16 * (uint32_t)row_of_lane[lane];
    if (is_transposed) svg2__ldmatrix_x4_trans(r, a);
    else svg2__ldmatrix_x4(r, a);
    for (int m = 0; m < 4; ++m) out[lane * 4 + m] = r[m];
}

static void test_matrix(int is_transposed)
{
    long long bad = 0, count = 0;
    for (int round = 0; round < 50; ++round) {
        std::vector<uint32_t> words(64 * 4);
        std::vector<int> rows(32);
        for (auto &w : words) w = (uint32_t)bits();
        for (auto &r : rows) r = (int)(bits() % 64); /* 16-byte rows anywhere */
        buffer<uint32_t> in(words), out(std::vector<uint32_t>(128, 0));
        buffer<int> row(rows);
        run(matrix_kernel, 1, 32, 64 * 16, in.data, row.data, out.data, is_transposed);
        const std::vector<uint32_t> got = out.read();
        for (int lane = 0; lane < 32; ++lane)
            for (int m = 0; m < 4; ++m, ++count) {
                uint16_t e[2];
                for (int i = 0; i < 2; ++i) {
                    const int r = is_transposed ? 2 * (lane % 4) + i : lane / 4,
                              c = is_transposed ? lane / 4 : 2 * (lane % 4) + i;
                    const uint32_t word = words[(size_t)rows[(size_t)(8 * m + r)] * 4 + (size_t)c / 2];
                    e[i] = (uint16_t)(c % 2 ? word >> 16 : word);
                }
                bad += got[(size_t)(lane * 4 + m)] != ((uint32_t)e[0] | (uint32_t)e[1] << 16);
            }
    }
    report(is_transposed ? "svg2__ldmatrix_x4_trans" : "svg2__ldmatrix_x4", bad, count, "");
}

/* ---- mma ---- */
template <class T>
static __global__ void mma_kernel(const uint32_t *a, const uint32_t *b, const float *c, float *d)
{
    const int lane = (int)threadIdx.x;
    uint32_t fa[4];
    float fd[4];
    for (int i = 0; i < 4; ++i) fa[i] = a[lane * 4 + i], fd[i] = c[lane * 4 + i];
    svg2__mma_m16n8k16(fd, fa, b[lane * 2], b[lane * 2 + 1], T());
    for (int i = 0; i < 4; ++i) d[lane * 4 + i] = fd[i];
}

static uint16_t bits_of(double x, __nv_bfloat16)
{
    const __nv_bfloat16 h = __float2bfloat16_rn((float)x);
    uint16_t u;
    memcpy(&u, &h, 2);
    return u;
}
static uint16_t bits_of(double x, __half)
{
    const __half h = __float2half_rn((float)x);
    uint16_t u;
    memcpy(&u, &h, 2);
    return u;
}
static double value_of(uint16_t u, __nv_bfloat16)
{
    __nv_bfloat16_raw raw;
    raw.x = u;
    return __bfloat162float(__nv_bfloat16(raw));
}
static double value_of(uint16_t u, __half)
{
    __half_raw raw;
    raw.x = u;
    return __half2float(__half(raw));
}

/* kind 0: small integers, exact. 1: normal. 2: the smallest numbers of T. 3: a NaN, an Inf. */
template <class T> static void test_mma(const char *name, int kind)
{
    long long bad = 0, count = 0;
    double worst = 0;
    for (int round = 0; round < 50; ++round) {
        uint16_t A[16][16], B[16][8];
        float C[16][8];
        for (int i = 0; i < 16; ++i)
            for (int k = 0; k < 16; ++k) {
                const double x = kind == 0 ? (double)(bits() % 17) - 8 : normal() * (kind == 2 ? 0x1p-15 : 1);
                A[i][k] = bits_of(x, T());
                if (kind == 2) A[i][k] &= (uint16_t)(sizeof(T) && bits() % 2 ? 0x83ff : 0xffff);
            }
        for (int k = 0; k < 16; ++k)
            for (int j = 0; j < 8; ++j)
                B[k][j] = bits_of(kind == 0 ? (double)(bits() % 17) - 8 : normal(), T());
        for (int i = 0; i < 16; ++i)
            for (int j = 0; j < 8; ++j)
                C[i][j] = (float)(kind == 0 ? (double)(bits() % 1000) : kind == 2 ? 0 : normal());
        if (kind == 3) A[round % 16][3] = bits_of(NAN, T()), B[5][round % 8] = bits_of(INFINITY, T());
        std::vector<uint32_t> a(128), b(64);
        std::vector<float> c(128);
        for (int lane = 0; lane < 32; ++lane) {
            const int g = lane / 4, t = lane % 4;
            for (int i = 0; i < 4; ++i) {
                const int row = g + 8 * (i & 1), col = 2 * t + 8 * (i >> 1);
                a[(size_t)(lane * 4 + i)] = (uint32_t)A[row][col] | (uint32_t)A[row][col + 1] << 16;
                c[(size_t)(lane * 4 + i)] = C[g + 8 * (i >> 1)][2 * t + (i & 1)];
            }
            for (int i = 0; i < 2; ++i)
                b[(size_t)(lane * 2 + i)] =
                    (uint32_t)B[2 * t + 8 * i][g] | (uint32_t)B[2 * t + 8 * i + 1][g] << 16;
        }
        buffer<uint32_t> da(a), db(b);
        buffer<float> dc(c), dd(std::vector<float>(128, -1.0f));
        run(mma_kernel<T>, 1, 32, 0, da.data, db.data, dc.data, dd.data);
        const std::vector<float> d = dd.read();
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i, ++count) {
                const int row = lane / 4 + 8 * (i >> 1), col = 2 * (lane % 4) + (i & 1);
                double want = C[row][col], size = fabs(want);
                for (int k = 0; k < 16; ++k) {
                    const double p = value_of(A[row][k], T()) * value_of(B[k][col], T());
                    want += p;
                    size += fabs(p);
                }
                const double got = d[(size_t)(lane * 4 + i)];
                if (kind == 0) bad += got != want;
                else if (!isfinite(want)) bad += isnan(want) ? !isnan(got) : got != want;
                else { /* products are exact; sums may be cut off instead of rounded */
                    const double e = size > 0 ? fabs(got - want) / size : fabs(got);
                    if (e > worst) worst = e;
                    bad += !(e <= 0x1p-20);
                }
            }
    }
    static const char *const kinds[] = {"integers", "normal", "subnormal", "NaN and Inf"};
    char text[80], note[64] = "";
    snprintf(text, sizeof text, "%s, %s", name, kinds[kind]);
    if (kind) snprintf(note, sizeof note, "error up to 2^%.1f of the sum of sizes", log2(worst));
    report(text, bad, count, note);
}

/* ---- the rest ---- */
static __global__ void rest_kernel(int *out)
{
    SVG2_DYN_SMEM(smem, 128);
    const uint32_t base = svg2__smem(smem);
    const int lane = (int)threadIdx.x;
    out[lane] = svg2__smem(smem + 3 * lane) == base + 3 * (uint32_t)lane && base % 128 == 0
                && svg2__fresh(lane * 7) == lane * 7;
}

static void test_rest()
{
    buffer<int> out(std::vector<int>(32, 0));
    run(rest_kernel, 1, 32, 128, out.data);
    long long bad = 0;
    for (int x : out.read()) bad += x != 1;
    report("svg2__smem, svg2__fresh", bad, 32, "");
}

int main()
{
    int count = 0;
    const cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || count == 0) {
        printf("no GPU: %s\n", e == cudaSuccess ? "none is visible" : cudaGetErrorString(e));
        return 2;
    }
    test_exp2();
    test_copy();
    test_matrix(0);
    test_matrix(1);
    for (int kind = 0; kind < 4; ++kind) {
        test_mma<__nv_bfloat16>("svg2__mma_m16n8k16 bf16", kind);
        test_mma<__half>("svg2__mma_m16n8k16 f16", kind);
    }
    test_rest();
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
