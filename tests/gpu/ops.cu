/* ops.cu - every device operation of svg2_cuda.cu (its section >>ptx) beside the formula in the PTX ISA, with
   random operands.

   On a GPU this tests the PTX; on the emulation the emulation. Made by both compilers from one source:
   ops.inc is section >>ptx, cut out of svg2_cuda.cu by make. The last line is "N passed, N failed". What only
   sm_90a has is left out, with a line, on other devices and in builds for others. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#include "tensor_map.h"

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

/* in clusters of so many blocks */
template <class... P, class... A>
static void run_clusters(unsigned cluster, void (*kernel)(P...), unsigned blocks, unsigned threads, size_t smem,
                         A... args)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = cluster > 1;
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = smem;
    if (smem > 48 * 1024)
        must(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)smem),
             "shared memory");
    must(cudaLaunchKernelEx(&config, kernel, (P)args...), "launch");
}
template <class... P, class... A>
static void run(void (*kernel)(P...), unsigned blocks, unsigned threads, size_t smem, A... args)
{
    run_clusters(1, kernel, blocks, threads, smem, args...);
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

/* ---- Hopper: sm_90a ----
   Waits have an end: an operation that does not work must fail here, not hang. */
#if SVG2__SM90A
#ifdef SVG2_EMULATED
static long long clock64() { return 0; } /* waits for ever are found by the emulation */
#endif
static __device__ int waited(uint32_t bar, uint32_t parity)
{
    const long long begin = clock64();
    while (!svg2__mbar_try_wait(bar, parity))
        if (clock64() - begin > 1000000000) return 0;
    return 1;
}

static __device__ int waited_cluster(uint32_t bar, uint32_t parity)
{
    const long long begin = clock64();
    while (!svg2__mbar_try_wait_cluster(bar, parity))
        if (clock64() - begin > 1000000000) return 0;
    return 1;
}

/* A slab: rows of 128 bytes from a multiple of 1024 on, under the swizzle of 128 bytes. */
static __device__ uint32_t slab_at(int row, int chunk)
{
    return (uint32_t)(row * 128 + ((chunk ^ (row & 7)) << 4));
}
/* Of a slab whose rows lie along k: leading is not used. Along n: from slab to slab. 9.7.15.5.1.2.2 */
static __device__ uint64_t descriptor(uint32_t address, uint32_t leading)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(1024 >> 4) << 32
           | (uint64_t)1 << 62;
}
/* accumulator i of thread t of the warpgroup; 9.7.15.5.1.1 */
static __device__ int row_of(int t, int i) { return t / 32 * 16 + t % 32 / 4 + 8 * (i >> 1 & 1); }
static __device__ int column_of(int t, int i) { return 8 * (i >> 2) + 2 * (t % 4) + (i & 1); }
#endif


/* ---- wgmma ----
   d[slice] = [c +] product of that slice of 16 of k, alone; d[8] of all eight. a: [64, 128]. b: [n, 128], or
   [128, n] if IS_ROWS. */
template <int COUNT, int IS_ROWS, int IN_REGISTERS, class T>
static __global__ void __launch_bounds__(128)
    wgmma_kernel(const uint16_t *a, const uint16_t *b, const float *c, float *d, int is_added)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(slabs, 1024);
    enum { N = 2 * COUNT, K = 128, A_SLAB = 64 * 128, B_ROWS = IS_ROWS ? K : N, B_SLAB = B_ROWS * 128 };
    const int t = (int)threadIdx.x, chunks = (IS_ROWS ? N : K) / 8;
    unsigned char *const tile = slabs + 2 * A_SLAB;
    const uint32_t at_a = svg2__smem(slabs), at_b = svg2__smem(tile);
    for (int i = t; i < 64 * K / 8; i += 128)
        memcpy(slabs + i % 16 / 8 * A_SLAB + slab_at(i / 16, i % 8), a + 8 * i, 16);
    for (int i = t; i < B_ROWS * chunks; i += 128)
        memcpy(tile + i % chunks / 8 * B_SLAB + slab_at(i / chunks, i % chunks % 8), b + 8 * i, 16);
    svg2__fence_async();
    __syncthreads(); /* tiles written -> read by wgmma */
    for (int run = 0; run < 9; ++run) {
        float sum[COUNT];
        for (int i = 0; i < COUNT; ++i) sum[i] = c[row_of(t, i) * N + column_of(t, i)];
#pragma unroll 1
        for (int s = run % 8; s < (run < 8 ? run + 1 : 8); ++s) {
            const uint64_t of_a = descriptor(at_a + (uint32_t)(s / 4 * A_SLAB + s % 4 * 32), 16),
                           of_b = IS_ROWS ? descriptor(at_b + (uint32_t)s * 2048, B_SLAB)
                                          : descriptor(at_b + (uint32_t)(s / 4 * B_SLAB + s % 4 * 32), 16);
            uint32_t fragment[4];
            for (int i = 0; i < 4; ++i)
                memcpy(&fragment[i], a + row_of(t, 2 * i) * K + 16 * s + 2 * (t % 4) + 8 * (i >> 1), 4);
            svg2__wgmma_hold(sum);
            svg2__wgmma_fence();
            if (IN_REGISTERS) svg2__wgmma_rs<IS_ROWS>(sum, fragment, of_b, s != run % 8 || is_added, T());
            else svg2__wgmma_ss<IS_ROWS>(sum, of_a, of_b, s != run % 8 || is_added, T());
            svg2__wgmma_commit();
            svg2__wgmma_wait<0>();
            svg2__wgmma_hold(sum);
        }
        for (int i = 0; i < COUNT; ++i) d[(run * 64 + row_of(t, i)) * N + column_of(t, i)] = sum[i];
    }
#else
    (void)a, (void)b, (void)c, (void)d, (void)is_added;
    __trap();
#endif
}

/* small integers: exact. Else sums may be cut off instead of rounded. */
template <int COUNT, int IS_ROWS, int IN_REGISTERS, class T> static void test_wgmma(const char *type)
{
    enum { N = 2 * COUNT, K = 128 };
    long long bad = 0, count = 0;
    double worst = 0;
    for (int round = 0; round < 4; ++round) {
        const int is_exact = round % 2 == 0, is_added = round / 2;
        std::vector<uint16_t> a(64 * K), b((size_t)N * K);
        std::vector<float> c((size_t)64 * N);
        for (auto &x : a) x = bits_of(is_exact ? (double)(bits() % 17) - 8 : normal(), T());
        for (auto &x : b) x = bits_of(is_exact ? (double)(bits() % 17) - 8 : normal(), T());
        for (auto &x : c) x = !is_added ? NAN : (float)(is_exact ? (double)(bits() % 1000) : normal());
        buffer<uint16_t> da(a), db(b);
        buffer<float> dc(c), dd(std::vector<float>((size_t)9 * 64 * N, -1.0f));
        run(wgmma_kernel<COUNT, IS_ROWS, IN_REGISTERS, T>, 1, 128, 2 * 64 * 128 + (N + 63) / 64 * 64 * K * 2,
            da.data, db.data, dc.data, dd.data, is_added);
        const std::vector<float> d = dd.read();
        std::vector<double> va(64 * K), vb((size_t)N * K);
        for (size_t i = 0; i < a.size(); ++i) va[i] = value_of(a[i], T());
        for (int k = 0; k < K; ++k)
            for (int j = 0; j < N; ++j)
                vb[(size_t)(j * K + k)] = value_of(b[(size_t)(IS_ROWS ? k * N + j : j * K + k)], T());
        for (int i = 0; i < 64; ++i)
            for (int j = 0; j < N; ++j) {
                const double first = is_added ? c[(size_t)(i * N + j)] : 0;
                double all = first, all_size = fabs(first);
                for (int run = 0; run < 9; ++run, ++count) {
                    double want = first, size = fabs(first);
                    if (run == 8) want = all, size = all_size;
                    else {
                        for (int k = 16 * run; k < 16 * run + 16; ++k) {
                            const double p = va[(size_t)(i * K + k)] * vb[(size_t)(j * K + k)];
                            want += p, size += fabs(p);
                        }
                        all += want - first, all_size += size - fabs(first);
                    }
                    const double got = d[(size_t)((run * 64 + i) * N + j)], e = fabs(got - want) / size;
                    if (is_exact) bad += got != want;
                    else bad += !(e <= (run == 8 ? 0x1p-17 : 0x1p-20));
                    if (!is_exact && e > worst) worst = e;
                }
            }
    }
    char text[80], note[64];
    snprintf(text, sizeof text, "svg2__wgmma_%s<%d> %s, n = %d", IN_REGISTERS ? "rs" : "ss", IS_ROWS, type,
             N);
    snprintf(note, sizeof note, "integers exact, else up to 2^%.1f of the sum of sizes", log2(worst));
    report(text, bad, count, note);
}
template <int COUNT> static void test_wgmma_of_width()
{
    test_wgmma<COUNT, 0, 0, __nv_bfloat16>("bf16");
    test_wgmma<COUNT, 1, 0, __nv_bfloat16>("bf16");
    test_wgmma<COUNT, 0, 1, __nv_bfloat16>("bf16");
    test_wgmma<COUNT, 1, 1, __nv_bfloat16>("bf16");
    test_wgmma<COUNT, 0, 0, __half>("f16");
    test_wgmma<COUNT, 1, 0, __half>("f16");
    test_wgmma<COUNT, 0, 1, __half>("f16");
    test_wgmma<COUNT, 1, 1, __half>("f16");
}

/* b in slabs of 32 columns: rows of 64 bytes from a multiple of 512 on, under the swizzle of 64 bytes. out is
   the sum over the slices of a b^T; a: [64, 64], in registers, b: [64, 64]. */
static __global__ void __launch_bounds__(128) narrow_kernel(const uint16_t *a, const uint16_t *b, float *out)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(slabs, 1024);
    const int t = (int)threadIdx.x;
    for (int i = t; i < 64 * 8; i += 128) {
        const int row = i / 8, chunk = i % 8;
        memcpy(slabs + chunk / 4 * 4096 + row * 64 + ((chunk % 4 ^ (row >> 1 & 3)) << 4), b + 8 * i, 16);
    }
    svg2__fence_async();
    __syncthreads(); /* slabs written -> read by wgmma */
    uint32_t fragment[4][4];
    float sum[32];
    for (int i = 0; i < 16; ++i)
        memcpy(&fragment[i / 4][i % 4],
               a + row_of(t, 2 * i) * 64 + 16 * (i / 4) + 2 * (t % 4) + 8 * (i >> 1 & 1), 4);
    svg2__wgmma_hold(fragment);
    svg2__wgmma_fence();
#pragma unroll
    for (int s = 0; s < 4; ++s) {
        const uint32_t at = svg2__smem(slabs) + (uint32_t)(s / 2 * 4096 + s % 2 * 32);
        svg2__wgmma_rs<0>(sum, fragment[s],
                          (uint64_t)(at >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(512 >> 4) << 32
                              | (uint64_t)2 << 62,
                          s > 0, __nv_bfloat16());
    }
    svg2__wgmma_commit();
    svg2__wgmma_wait<0>();
    svg2__wgmma_hold(sum);
    for (int i = 0; i < 32; ++i) out[row_of(t, i) * 64 + column_of(t, i)] = sum[i];
#else
    (void)a, (void)b, (void)out;
    __trap();
#endif
}

/* Two groups, of which the first is read while the second may be under way. All elements of a tile are 1, or
   all are 2. */
static __global__ void __launch_bounds__(128) groups_kernel(float *out)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(slabs, 1024);
    const int t = (int)threadIdx.x;
    for (int i = t; i < 64 * 64; i += 128) {
        const __nv_bfloat16 one = __float2bfloat16_rn(1), two = __float2bfloat16_rn(2);
        memcpy(slabs + 2 * i, &one, 2);
        memcpy(slabs + 64 * 128 + 2 * i, &two, 2);
    }
    svg2__fence_async();
    __syncthreads(); /* tiles written -> read by wgmma */
    const uint64_t ones = descriptor(svg2__smem(slabs), 16),
                   twos = descriptor(svg2__smem(slabs + 64 * 128), 16);
    float first[32], second[32];
    for (int i = 0; i < 32; ++i) first[i] = second[i] = 5;
    svg2__wgmma_hold(first);
    svg2__wgmma_hold(second);
    svg2__wgmma_fence();
    svg2__wgmma_ss<0>(first, ones, ones, 0, __nv_bfloat16());
    svg2__wgmma_commit();
    svg2__wgmma_ss<0>(second, ones, twos, 1, __nv_bfloat16());
    svg2__wgmma_commit();
    svg2__wgmma_wait<1>();
    svg2__wgmma_hold(first);
    for (int i = 0; i < 32; ++i) out[t * 64 + i] = first[i];
    svg2__wgmma_wait<0>();
    svg2__wgmma_hold(second);
    for (int i = 0; i < 32; ++i) out[t * 64 + 32 + i] = second[i];
#else
    (void)out;
    __trap();
#endif
}
static void test_groups()
{
    buffer<float> out(std::vector<float>(128 * 64, -1.0f));
    run(groups_kernel, 1, 128, 2 * 64 * 128, out.data);
    const std::vector<float> got = out.read();
    long long bad = 0;
    for (size_t i = 0; i < got.size(); ++i) bad += got[i] != (i % 64 < 32 ? 16.0f : 37.0f);
    report("svg2__wgmma_commit, wait: two groups", bad, (long long)got.size(), "");
}

/* ---- mbarriers ---- */
enum { PHASES = 6 };
static __global__ void phases_kernel(int *out)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(smem, 128);
    const int t = (int)threadIdx.x;
    const uint32_t bar = svg2__smem(smem);
    int *const count = (int *)(void *)(smem + 16);
    if (t == 0) {
        svg2__mbar_init(bar, 64);
        svg2__fence_mbar_init();
        *count = 0;
    }
    __syncthreads();              /* barrier made -> used */
    int is_good = waited(bar, 1); /* the phase before the first counts as over */
    for (int phase = 0; phase < PHASES && is_good; ++phase) {
        atomicAdd(count, 1);
        svg2__mbar_arrive(bar);
        is_good = waited(bar, (uint32_t)phase & 1);
        if (t == 9 * phase) out[phase] = *count; /* 64 of each phase, and none of the next */
        __syncthreads();                         /* the count is read -> the next phase adds to it */
    }
    if (t == 63) out[PHASES] = is_good;
#else
    (void)out;
    __trap();
#endif
}
static void test_phases()
{
    buffer<int> out(std::vector<int>(PHASES + 1, -1));
    run(phases_kernel, 1, 64, 32, out.data);
    const std::vector<int> got = out.read();
    long long bad = got[PHASES] != 1;
    for (int i = 0; i < PHASES; ++i) bad += got[(size_t)i] != 64 * (i + 1);
    report("svg2__mbar_init, arrive, try_wait: phases", bad, PHASES + 1, "");
}

/* ---- named barriers ----
   Two warpgroups take turns, each of which waits for the other's arrival; what one has written the other
   sees. */
enum { TURNS = 20 };
static __global__ void __launch_bounds__(256) turns_kernel(int *out)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(smem, 128);
    volatile int *const count = (volatile int *)(void *)smem;
    const int t = (int)threadIdx.x, group = t / 128;
    if (t == 0) *count = 0;
    __syncthreads(); /* the count is set -> the turns begin */
    if (group == 1) svg2__bar_arrive(1, 256);
    for (int turn = 0; turn < TURNS; ++turn) {
        svg2__bar_sync(1 + group, 256); /* the other group's turn is over */
        const int seen = *count;
        svg2__bar_sync(3 + group, 128); /* all of this group have seen it -> it changes */
        if (t % 128 == 77) *count = seen + 1, out[2 * turn + group] = seen;
        if (group == 0 || turn + 1 < TURNS) svg2__bar_arrive(2 - group, 256);
    }
#else
    (void)out;
    __trap();
#endif
}
static void test_turns()
{
    buffer<int> out(std::vector<int>(2 * TURNS, -1));
    run(turns_kernel, 1, 256, 128, out.data);
    const std::vector<int> got = out.read();
    long long bad = 0;
    for (int i = 0; i < 2 * TURNS; ++i) bad += got[(size_t)i] != i;
    report("svg2__bar_sync, bar_arrive: turns", bad, 2 * TURNS, "");
}

/* ---- copies by tensor maps ---- */
static CUtensorMap map_of(const void *data, int64_t rows, int64_t columns, int64_t stride, int box_rows)
{
    CUtensorMap map;
    if (tensor_map_of(&map, data, rows, columns, stride, box_rows) != CUDA_SUCCESS)
        must(cudaErrorUnknown, "cuTensorMapEncodeTiled");
    return map;
}

/* One box, `offset` bytes into a place of BOX_PLACE bytes, which comes back as it is then. is_there: the
   barrier told of all its bytes. */
enum { BOX_PLACE = (128 + 16) * 128 };
static __global__ void __launch_bounds__(128)
    box_kernel(const __grid_constant__ CUtensorMap map, int x, int y, uint32_t offset, uint32_t bytes,
               uint16_t *out, int *is_there)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(slabs, 1024);
    const int t = (int)threadIdx.x;
    const uint32_t bar = svg2__smem(slabs + BOX_PLACE);
    for (int i = t; i < BOX_PLACE; i += 128) slabs[i] = 0xee;
    svg2__fence_async(); /* these writes -> those of the copy */
    if (t == 0) {
        svg2__mbar_init(bar, 1);
        svg2__fence_mbar_init();
    }
    __syncthreads(); /* barrier made, place filled -> copied to */
    if (t == 0) {
        svg2__prefetch_map(&map);
        svg2__mbar_arrive_expect(bar, bytes);
        svg2__tma_load_2d(svg2__smem(slabs) + offset, &map, bar, x, y);
    }
    const int is_over = waited(bar, 0);
    for (int i = t; i < BOX_PLACE / 2; i += 128) memcpy(out + i, slabs + 2 * i, 2);
    is_there[t] = is_over;
#else
    (void)x, (void)y, (void)offset, (void)bytes, (void)out, (void)is_there;
    __trap();
#endif
}

struct boxes {
    enum { ROWS = 333, COLUMNS = 192, STRIDE = 200 };
    std::vector<uint16_t> all;
    buffer<uint16_t> tensor, out;
    buffer<int> is_there;
    static std::vector<uint16_t> random()
    {
        std::vector<uint16_t> v(ROWS * STRIDE);
        for (auto &x : v) x = (uint16_t)(bits() % 60000 + 1); /* neither 0 nor 0xeeee */
        return v;
    }
    boxes()
        : all(random()), tensor(all), out(std::vector<uint16_t>(BOX_PLACE / 2, 1)),
          is_there(std::vector<int>(128, 0))
    {
    }
    /* is_by_address: rows permute their chunks by the row of the place, else by that of the box */
    long long bad(const std::vector<uint16_t> &got, int rows, int x, int y, int row0, int is_by_address) const
    {
        long long bad = 0;
        for (int i = 0; i < BOX_PLACE / 2; ++i) {
            const int row = i / 64, r = row - row0, chunk = (i % 64 / 8) ^ ((is_by_address ? row : r) & 7);
            const int column = x + chunk * 8 + i % 8, at = y + r;
            uint16_t want = 0xeeee;
            if (r >= 0 && r < rows)
                want = column >= 0 && column < COLUMNS && at >= 0 && at < ROWS
                           ? all[(size_t)(at * STRIDE + column)]
                           : 0;
            bad += got[(size_t)i] != want;
        }
        return bad;
    }
    void load(int rows, int x, int y, int row0)
    {
        run(box_kernel, 1, 128, BOX_PLACE + 8, map_of(tensor.data, ROWS, COLUMNS, STRIDE, rows), x, y,
            (uint32_t)row0 * 128, (uint32_t)rows * 128, out.data, is_there.data);
    }
};

static void test_boxes()
{
    static const int heights[] = {1, 2, 3, 4, 5, 8, 13, 16, 32, 64, 100, 127, 128},
                     at[][2] = {{0, 0},    {64, 17}, {128, 320}, {160, 40},
                                {-32, -3}, {0, 332}, {64, 333},  {192, 5}};
    boxes b;
    long long bad = 0, count = 0, lost = 0;
    for (int rows : heights)
        for (auto &p : at) {
            const int row0 = 8 * (int)(bits() % 3);
            b.load(rows, p[0], p[1], row0);
            bad += b.bad(b.out.read(), rows, p[0], p[1], row0, 1);
            for (int x : b.is_there.read()) lost += x != 1;
            count += BOX_PLACE / 2;
        }
    report("svg2__tma_load_2d: boxes of 1 to 128 rows", bad, count, "with rows and columns outside: 0");
    report("svg2__mbar_arrive_expect: all bytes counted", lost, 128 * 13 * 8, "");
}

/* Boxes of a tensor of 4 dimensions: columns, tokens, heads, batch entries, whose strides rise or do not; columns
   and tokens beyond are 0, and of a head or a batch entry that is not there all. */
static __global__ void __launch_bounds__(128)
    box_4d_kernel(const __grid_constant__ CUtensorMap map, int x, int y, int z, int w, uint32_t bytes,
                  uint16_t *out, int *is_there)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(slabs, 1024);
    const int t = (int)threadIdx.x;
    const uint32_t bar = svg2__smem(slabs + 64 * 128);
    if (t == 0) {
        svg2__mbar_init(bar, 1);
        svg2__fence_mbar_init();
    }
    __syncthreads(); /* barrier made -> waited for */
    if (t == 0) {
        svg2__mbar_arrive_expect(bar, bytes);
        svg2__tma_load_4d(svg2__smem(slabs), &map, bar, x, y, z, w);
    }
    const int is_over = waited(bar, 0);
    for (int i = t; i < (int)bytes / 2; i += 128) memcpy(out + i, slabs + 2 * i, 2);
    is_there[t] = is_over;
#else
    (void)x, (void)y, (void)z, (void)w, (void)bytes, (void)out, (void)is_there;
    __trap();
#endif
}
static void test_boxes_4d()
{
    enum { COLUMNS = 72, TOKENS = 37, HEADS = 3, BATCH = 2 };
    static const int64_t size[4] = {COLUMNS, TOKENS, HEADS, BATCH},
                         strides[3][3] = {{COLUMNS, TOKENS * COLUMNS, HEADS * TOKENS * COLUMNS},
                                          {HEADS * COLUMNS, COLUMNS, TOKENS * HEADS * COLUMNS},
                                          {8 + COLUMNS * HEADS * BATCH, COLUMNS * BATCH, COLUMNS}};
    static const int at[][4] = {{0, 0, 0, 0}, {64, 5, 1, 1}, {0, 30, 2, 0}, {64, 36, 2, 1},
                                {0, 37, 0, 0}, {0, 3, 3, 0}, {0, 3, 0, 2}};
    std::vector<uint16_t> all((8 + COLUMNS * HEADS * BATCH) * TOKENS);
    for (auto &x : all) x = (uint16_t)(bits() % 60000 + 1);
    buffer<uint16_t> tensor(all), out(std::vector<uint16_t>(64 * 64, 1));
    buffer<int> is_there(std::vector<int>(128, 0));
    long long bad = 0, count = 0;
    for (auto &stride : strides)
        for (int rows = 1; rows <= 64; rows *= 4)
            for (auto &p : at) {
                CUtensorMap map;
                if (tensor_map_of(&map, tensor.data, 4u, size, stride, rows) != CUDA_SUCCESS)
                    must(cudaErrorUnknown, "cuTensorMapEncodeTiled, 4D");
                run(box_4d_kernel, 1, 128, 64 * 128 + 8, map, p[0], p[1], p[2], p[3], (uint32_t)rows * 128,
                    out.data, is_there.data);
                const std::vector<uint16_t> got = out.read();
                for (int i = 0; i < rows * 64; ++i, ++count) {
                    const int row = i / 64, column = p[0] + ((i % 64 / 8) ^ (row & 7)) * 8 + i % 8,
                              token = p[1] + row;
                    const int64_t from = column + token * stride[0] + p[2] * stride[1] + p[3] * stride[2];
                    const bool is_in = column < COLUMNS && token < TOKENS && p[2] < HEADS && p[3] < BATCH;
                    bad += got[(size_t)i] != (is_in ? all[(size_t)from] : 0);
                }
                for (int x : is_there.read()) bad += x != 1;
            }
    report("svg2__tma_load_4d: boxes of 1 to 64 rows", bad, count, "with rows, columns, heads outside: 0");
}

/* ---- clusters ----
   Each block sends 16 bytes to each block of its cluster, itself too, and arrives there; turn after turn, into
   one of two places. That a place has been read is told by another remote arrival. */
enum { CLUSTER_TURNS = 6, CLUSTER_MOST = 4 };
static __global__ void __launch_bounds__(64) cluster_kernel(int size, int *out, int *is_good)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(smem, 128);
    const int t = (int)threadIdx.x, rank = (int)svg2__cluster_rank(), cluster = (int)blockIdx.x / size;
    const uint32_t base = svg2__smem(smem), full = base + 2 * 16 * CLUSTER_MOST, empty = full + 16;
    int good = rank == (int)blockIdx.x % size;
    if (t == 0) {
        for (uint32_t i = 0; i < 2; ++i) {
            svg2__mbar_init(full + 8 * i, (uint32_t)size);
            svg2__mbar_init(empty + 8 * i, (uint32_t)(64 * size));
        }
        svg2__fence_mbar_init();
    }
    svg2__cluster_arrive();
    svg2__cluster_wait(); /* all barriers are there, in all blocks */
    for (int turn = 0; turn < CLUSTER_TURNS; ++turn) {
        const int place = turn % 2;
        if (t < size) { /* to the block of rank t */
            if (turn >= 2) good &= waited_cluster(empty + 8 * (uint32_t)place, (uint32_t)(turn / 2 - 1) & 1);
            const uint32_t to = svg2__mapa(base + (uint32_t)(place * CLUSTER_MOST + rank) * 16, (uint32_t)t);
            svg2__store_remote(to, 1000 * cluster + turn, rank, t, turn * turn);
            svg2__mbar_arrive_remote(svg2__mapa(full + 8 * (uint32_t)place, (uint32_t)t));
        }
        good &= waited_cluster(full + 8 * (uint32_t)place, (uint32_t)(turn / 2) & 1);
        if (t < 4 * size) {
            int x;
            memcpy(&x, smem + place * CLUSTER_MOST * 16 + 4 * t, 4);
            out[((int)blockIdx.x * CLUSTER_TURNS + turn) * 4 * size + t] = x;
        }
        for (int r = 0; r < size; ++r)
            svg2__mbar_arrive_remote(svg2__mapa(empty + 8 * (uint32_t)place, (uint32_t)r));
    }
    is_good[blockIdx.x * 64 + threadIdx.x] = good;
    svg2__cluster_arrive();
    svg2__cluster_wait(); /* the others' last stores and arrivals are over -> this block may end */
#else
    (void)size, (void)out, (void)is_good;
    __trap();
#endif
}
static void test_clusters()
{
    long long bad = 0, count = 0;
    for (int size = 1; size <= CLUSTER_MOST; size *= 2) {
        const int blocks = 3 * size;
        buffer<int> out(std::vector<int>((size_t)(blocks * CLUSTER_TURNS * 4 * size), -1)),
            is_good(std::vector<int>((size_t)blocks * 64, 0));
        run_clusters((unsigned)size, cluster_kernel, (unsigned)blocks, 64, 2 * 16 * CLUSTER_MOST + 32, size, out.data,
                     is_good.data);
        const std::vector<int> got = out.read();
        for (int b = 0; b < blocks; ++b)
            for (int turn = 0; turn < CLUSTER_TURNS; ++turn)
                for (int i = 0; i < 4 * size; ++i, ++count) {
                    const int want[4] = {1000 * (b / size) + turn, i / 4, b % size, turn * turn};
                    bad += got[(size_t)((b * CLUSTER_TURNS + turn) * 4 * size + i)] != want[i % 4];
                }
        for (int x : is_good.read()) bad += x != 1;
    }
    report("clusters: rank, mapa, store, arrive, wait", bad, count, "of 1, 2 and 4 blocks");
}

/* Each block brings its part of the rows, to all blocks of a mask: the same place there, counted by the barrier
   there. A ring of two places, overwritten when all blocks of the cluster have read them. */
enum { CAST_ROWS = 16, CAST_TURNS = 5, CAST_PLACE = CAST_ROWS * CLUSTER_MOST * 128 };
static __global__ void __launch_bounds__(128)
    cast_kernel(const __grid_constant__ CUtensorMap map, int size, int mask, uint16_t *out, int *is_good)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(slabs, 1024);
    const int t = (int)threadIdx.x, rank = (int)svg2__cluster_rank();
    const uint32_t base = svg2__smem(slabs), full = base + 2 * CAST_PLACE, empty = full + 16;
    int good = 1;
    if (t == 0) {
        for (uint32_t i = 0; i < 2; ++i) {
            svg2__mbar_init(full + 8 * i, 1);
            svg2__mbar_init(empty + 8 * i, (uint32_t)size);
        }
        svg2__fence_mbar_init();
    }
    svg2__cluster_arrive();
    svg2__cluster_wait(); /* all barriers are there, in all blocks */
    for (int turn = 0; turn < CAST_TURNS; ++turn) {
        const uint32_t place = (uint32_t)turn % 2;
        if (t == 0) {
            if (turn >= 2) good &= waited_cluster(empty + 8 * place, (uint32_t)(turn / 2 - 1) & 1);
            if (mask >> rank & 1) svg2__mbar_arrive_expect(full + 8 * place, (uint32_t)(size * CAST_ROWS * 128));
            svg2__tma_load_4d_multicast(base + place * CAST_PLACE + (uint32_t)(rank * CAST_ROWS * 128), &map,
                                        full + 8 * place, 0, (turn * size + rank) * CAST_ROWS, 0, 0,
                                        (uint16_t)mask);
        }
        if (mask >> rank & 1) good &= waited(full + 8 * place, (uint32_t)(turn / 2) & 1);
        for (int i = t; i < size * CAST_ROWS * 64 && (mask >> rank & 1); i += 128)
            memcpy(out + ((int)blockIdx.x * CAST_TURNS + turn) * CAST_PLACE / 2 + i,
                   slabs + place * CAST_PLACE + 2 * i, 2);
        __syncthreads(); /* all have read -> the place may be overwritten */
        if (t < size) svg2__mbar_arrive_remote(svg2__mapa(empty + 8 * place, (uint32_t)t));
    }
    is_good[blockIdx.x * 128 + threadIdx.x] = good;
    svg2__cluster_arrive();
    svg2__cluster_wait(); /* what others bring here has come -> this block may end */
#else
    (void)size, (void)mask, (void)out, (void)is_good;
    __trap();
#endif
}
static void test_multicast()
{
    static const int sizes[] = {1, 2, 2, 2, 4, 4}, masks[] = {1, 3, 1, 2, 15, 10};
    long long bad = 0, count = 0;
    for (int n = 0; n < 6; ++n) {
        const int size = sizes[n], blocks = 2 * size, rows = CAST_TURNS * size * CAST_ROWS - 5;
        const int64_t extent[4] = {64, rows, 1, 1}, stride[3] = {64, 64, 64};
        std::vector<uint16_t> all((size_t)rows * 64);
        for (auto &x : all) x = (uint16_t)(bits() % 60000 + 1);
        buffer<uint16_t> tensor(all),
            out(std::vector<uint16_t>((size_t)(blocks * CAST_TURNS * CAST_PLACE / 2), 1));
        buffer<int> is_good(std::vector<int>((size_t)blocks * 128, 0));
        CUtensorMap map;
        if (tensor_map_of(&map, tensor.data, 4u, extent, stride, CAST_ROWS) != CUDA_SUCCESS)
            must(cudaErrorUnknown, "cuTensorMapEncodeTiled, 4D");
        run_clusters((unsigned)size, cast_kernel, (unsigned)blocks, 128, 2 * CAST_PLACE + 32, map, size, masks[n],
                     out.data, is_good.data);
        const std::vector<uint16_t> got = out.read();
        for (int b = 0; b < blocks; ++b)
            for (int turn = 0; turn < CAST_TURNS && (masks[n] >> b % size & 1); ++turn)
                for (int i = 0; i < size * CAST_ROWS * 64; ++i, ++count) {
                    const int place = i / 64, row = turn * size * CAST_ROWS + place,
                              column = ((i % 64 / 8) ^ (place & 7)) * 8 + i % 8;
                    bad += got[(size_t)((b * CAST_TURNS + turn) * CAST_PLACE / 2 + i)]
                           != (row < rows ? all[(size_t)(row * 64 + column)] : 0);
                }
        for (int x : is_good.read()) bad += x != 1;
    }
    report("svg2__tma_load_4d_multicast", bad, count, "each block's part to all blocks of a mask");
}

/* Does a box have to begin where the pattern of the swizzle does? Documents can be read either way; this
   asks. Last, for it may leave an error behind, and no failure: kernels that need it are chosen by the
   answer. */
static void ask_boxes()
{
    long long by_address = 0, by_box = 0, none = 0;
    boxes b;
    for (int rows = 1; rows <= 8; rows *= 2)
        for (int row0 = 0; row0 < 16; ++row0) {
            b.load(rows, 64, 100, row0);
            const cudaError_t e = cudaDeviceSynchronize();
            if (e != cudaSuccess) {
                printf("answer: one-row boxes: NO, %d rows at row %d of the pattern: %s\n", rows, row0,
                       cudaGetErrorString(e));
                return;
            }
            if (row0 % 8 == 0) continue;
            const std::vector<uint16_t> got = b.out.read();
            if (b.bad(got, rows, 64, 100, row0, 1) == 0) ++by_address;
            else if (b.bad(got, rows, 64, 100, row0, 0) == 0) ++by_box;
            else ++none;
        }
    printf("answer: one-row boxes: %s: of %lld boxes inside the pattern %lld swizzled by the shared address, "
           "%lld by the row of the box, %lld neither\n",
           by_box + none == 0 ? "YES" : "NO", by_address + by_box + none, by_address, by_box, none);
}

/* ---- copies of single threads for wgmma ----
   A warp copies tiles of b, 64 rows of 64 elements, into a ring of two; a warpgroup multiplies: out = sum
   over the tiles of a tile^T. Of the last tile only `last` rows are read, the others being 0. The fence
   stands where the tile is used: it is about what this thread has seen. */
enum { TILES = 5 };
static __global__ void __launch_bounds__(160)
    chain_kernel(const uint16_t *a, const uint16_t *b, int last, float *out, int *is_good)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(slabs, 1024);
    enum { SLAB = 64 * 128 };
    const int t = (int)threadIdx.x;
    const uint32_t base = svg2__smem(slabs), full = base + 3 * SLAB, empty = full + 16;
    int good = 1;
    if (t == 0) {
        for (uint32_t s = 0; s < 2; ++s) {
            svg2__mbar_init(full + 8 * s, 32);
            svg2__mbar_init(empty + 8 * s, 128);
        }
        svg2__fence_mbar_init();
    }
    __syncthreads(); /* barriers made -> used */
    if (t >= 128) {
        const int lane = t - 128;
        for (int tile = 0; tile < TILES; ++tile) {
            const uint32_t s = (uint32_t)tile % 2;
            /* read -> overwritten */
            if (tile >= 2) good &= waited(empty + 8 * s, (uint32_t)(tile / 2 - 1) & 1);
            for (int i = lane; i < 64 * 8; i += 32) {
                if (tile == 0) svg2__cp_async16(base + slab_at(i / 8, i % 8), a + 8 * i, 16);
                svg2__cp_async16(base + (1 + s) * SLAB + slab_at(i / 8, i % 8), b + tile * 4096 + 8 * i,
                                 tile < TILES - 1 || i / 8 < last ? 16 : 0);
            }
            svg2__cp_async_mbar_arrive(full + 8 * s);
        }
    } else {
        float sum[32];
        for (int i = 0; i < 32; ++i) sum[i] = 0;
        for (int tile = 0; tile < TILES; ++tile) {
            const uint32_t s = (uint32_t)tile % 2;
            good &= waited(full + 8 * s, (uint32_t)(tile / 2) & 1); /* copied -> read */
            svg2__fence_async();
            svg2__wgmma_hold(sum);
            svg2__wgmma_fence();
#pragma unroll
            for (uint32_t k = 0; k < 4; ++k)
                svg2__wgmma_ss<0>(sum, descriptor(base + 32 * k, 16),
                                  descriptor(base + (1 + s) * SLAB + 32 * k, 16), 1, __nv_bfloat16());
            svg2__wgmma_commit();
            svg2__wgmma_wait<0>();
            svg2__wgmma_hold(sum);
            svg2__mbar_arrive(empty + 8 * s);
        }
        for (int i = 0; i < 32; ++i) out[row_of(t, i) * 64 + column_of(t, i)] = sum[i];
    }
    is_good[t] = good;
#else
    (void)a, (void)b, (void)last, (void)out, (void)is_good;
    __trap();
#endif
}
static std::vector<uint16_t> integers(size_t count, int most)
{
    std::vector<uint16_t> v(count);
    for (auto &x : v) x = bits_of((double)(bits() % (uint64_t)(2 * most + 1)) - most, __nv_bfloat16());
    return v;
}
static double number(const std::vector<uint16_t> &v, int at)
{
    return value_of(v[(size_t)at], __nv_bfloat16());
}

static void test_narrow()
{
    const std::vector<uint16_t> a = integers(64 * 64, 8), b = integers(64 * 64, 8);
    buffer<uint16_t> da(a), db(b);
    buffer<float> out(std::vector<float>(64 * 64, -1.0f));
    run(narrow_kernel, 1, 128, 8192, da.data, db.data, out.data);
    const std::vector<float> got = out.read();
    long long bad = 0;
    for (int i = 0; i < 64; ++i)
        for (int j = 0; j < 64; ++j) {
            double want = 0;
            for (int k = 0; k < 64; ++k) want += number(a, i * 64 + k) * number(b, j * 64 + k);
            bad += got[(size_t)(i * 64 + j)] != want;
        }
    report("wgmma, swizzle of 64 bytes", bad, 64 * 64, "");
}

static void test_chain()
{
    const int last = 37;
    const std::vector<uint16_t> a = integers(64 * 64, 8), b = integers(TILES * 64 * 64, 8);
    buffer<uint16_t> da(a), db(b);
    buffer<float> out(std::vector<float>(64 * 64, -1.0f));
    buffer<int> is_good(std::vector<int>(160, 0));
    run(chain_kernel, 1, 160, 3 * 64 * 128 + 32, da.data, db.data, last, out.data, is_good.data);
    const std::vector<float> got = out.read();
    long long bad = 0;
    for (int i = 0; i < 64; ++i)
        for (int j = 0; j < 64; ++j) {
            double want = 0;
            for (int tile = 0; tile < TILES; ++tile)
                for (int k = 0; k < 64 && (tile < TILES - 1 || j < last); ++k)
                    want += number(a, i * 64 + k) * number(b, (tile * 64 + j) * 64 + k);
            bad += got[(size_t)(i * 64 + j)] != want;
        }
    for (int x : is_good.read()) bad += x != 1;
    report("svg2__cp_async_mbar_arrive, fence_async, wgmma", bad, 64 * 64 + 160, "");
}

/* ---- all of it together ----
   out (128 x 256) = (q k^T) v over tiles of 128 keys that a thread of a third warpgroup loads by tensor maps
   into a ring of two, while two warpgroups multiply, with the accumulators of the first product as fragments
   of the second, and more registers than they were launched with: 65536 / 384 = 170. All numbers are small
   integers: exact. */
enum { FLASH_TILES = 5, FLASH_STAGE = 128 * 128 * 5, FLASH_SMEM = 128 * 128 + 2 * FLASH_STAGE + 64 };
static __global__ void __launch_bounds__(384, 1)
    flash_kernel(const __grid_constant__ CUtensorMap q, const __grid_constant__ CUtensorMap k,
                 const __grid_constant__ CUtensorMap v, float *out, int *is_good)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(slabs, 1024);
    const int t = (int)threadIdx.x % 128, group = (int)threadIdx.x / 128;
    const uint32_t base = svg2__smem(slabs), ring = base + 128 * 128, full = ring + 2 * FLASH_STAGE,
                   empty = full + 16, query = full + 32;
    int good = 1;
    if (threadIdx.x == 0) {
        for (uint32_t s = 0; s < 2; ++s) {
            svg2__mbar_init(full + 8 * s, 1);
            svg2__mbar_init(empty + 8 * s, 8);
        }
        svg2__mbar_init(query, 1);
        svg2__fence_mbar_init();
    }
    __syncthreads(); /* barriers made -> used */
    if (group == 2) {
        svg2__registers_less<24>();
        if (t == 0) {
            svg2__mbar_arrive_expect(query, 128 * 128);
            svg2__tma_load_2d(base, &q, query, 0, 0);
            for (int tile = 0; tile < FLASH_TILES; ++tile) {
                const uint32_t s = (uint32_t)tile % 2, at = ring + s * FLASH_STAGE;
                if (tile >= 2) good &= waited(empty + 8 * s, (uint32_t)(tile / 2 - 1) & 1);
                svg2__mbar_arrive_expect(full + 8 * s, FLASH_STAGE);
                svg2__tma_load_2d(at, &k, full + 8 * s, 0, 128 * tile);
                for (int slab = 0; slab < 4; ++slab)
                    svg2__tma_load_2d(at + (uint32_t)(1 + slab) * 128 * 128, &v, full + 8 * s, 64 * slab,
                                      128 * tile);
            }
        }
    } else {
        svg2__registers_more<240>();
        float sum[128], score[64];
        for (int i = 0; i < 128; ++i) sum[i] = 0;
        good &= waited(query, 0);
        for (int tile = 0; tile < FLASH_TILES; ++tile) {
            const uint32_t s = (uint32_t)tile % 2, at = ring + s * FLASH_STAGE;
            good &= waited(full + 8 * s, (uint32_t)(tile / 2) & 1);
            svg2__wgmma_fence();
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i)
                svg2__wgmma_ss<0>(score, descriptor(base + (uint32_t)group * 64 * 128 + 32 * i, 16),
                                  descriptor(at + 32 * i, 16), i > 0, __nv_bfloat16());
            svg2__wgmma_commit();
            svg2__wgmma_wait<0>();
            svg2__wgmma_hold(score);
            uint32_t p[8][4];
            for (int i = 0; i < 32; ++i) {
                const __nv_bfloat162 pair = __floats2bfloat162_rn(score[2 * i], score[2 * i + 1]);
                memcpy(&p[i / 4][i % 4], &pair, 4);
            }
            svg2__wgmma_hold(sum);
            svg2__wgmma_fence();
#pragma unroll
            for (int i = 0; i < 8; ++i)
                svg2__wgmma_rs<1>(sum, p[i], descriptor(at + 128 * 128 + 2048 * (uint32_t)i, 128 * 128), 1,
                                  __nv_bfloat16());
            svg2__wgmma_commit();
            svg2__wgmma_wait<0>();
            svg2__wgmma_hold(sum);
            if (t % 32 == 0) svg2__mbar_arrive(empty + 8 * s); /* read -> overwritten */
        }
        for (int i = 0; i < 128; ++i) out[(group * 64 + row_of(t, i)) * 256 + column_of(t, i)] = sum[i];
    }
    is_good[threadIdx.x] = good;
#else
    (void)out, (void)is_good;
    __trap();
#endif
}
static void test_flash()
{
    const int keys = FLASH_TILES * 128 - 19; /* the last tile goes beyond */
    const std::vector<uint16_t> q = integers(128 * 64, 1), k = integers((size_t)keys * 64, 1),
                                v = integers((size_t)keys * 256, 2);
    buffer<uint16_t> dq(q), dk(k), dv(v);
    buffer<float> out(std::vector<float>(128 * 256, -1.0f));
    buffer<int> is_good(std::vector<int>(384, 0));
    run(flash_kernel, 1, 384, FLASH_SMEM, map_of(dq.data, 128, 64, 64, 128),
        map_of(dk.data, keys, 64, 64, 128), map_of(dv.data, keys, 256, 256, 128), out.data, is_good.data);
    const std::vector<float> got = out.read();
    long long bad = 0;
    std::vector<double> want(256);
    for (int i = 0; i < 128; ++i) {
        for (auto &x : want) x = 0;
        for (int j = 0; j < keys; ++j) {
            double score = 0;
            for (int d = 0; d < 64; ++d) score += number(q, i * 64 + d) * number(k, j * 64 + d);
            for (int d = 0; d < 256; ++d) want[(size_t)d] += score * number(v, j * 256 + d);
        }
        for (int d = 0; d < 256; ++d) bad += got[(size_t)(i * 256 + d)] != want[(size_t)d];
    }
    for (int x : is_good.read()) bad += x != 1;
    report("registers_more, _less: a ring by tensor maps", bad, 128 * 256 + 384, "two products in a chain");
}

/* NULL, or why there are no tests of what only sm_90a has */
static const char *without_hopper()
{
    int device = 0, major = 0, minor = 0;
    bool is_there = false;
    must(cudaGetDevice(&device), "device");
    must(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
    must(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device");
    if (major != 9 || minor != 0) return "this device is not of compute capability 9.0";
    must(svg2__has_sm90a(&is_there), "device");
    return is_there ? NULL : "this build has no code for sm_90a";
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
    const char *const why = without_hopper();
    if (why) printf("skipped: wgmma, mbarriers, TMA, named barriers, setmaxnreg: %s\n", why);
    else {
        test_phases();
        test_turns();
        test_wgmma_of_width<32>();
        test_wgmma_of_width<40>();
        test_wgmma_of_width<48>();
        test_wgmma_of_width<64>();
        test_wgmma_of_width<88>();
        test_wgmma_of_width<128>();
        test_groups();
        test_narrow();
        test_boxes();
        test_boxes_4d();
        test_clusters();
        test_multicast();
        test_chain();
        test_flash();
        ask_boxes();
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
