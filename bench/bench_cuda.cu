/* bench_cuda.cu - how fast svg2_cuda.cu is on this GPU, beside what the GPU can do

       make arch=native build/gpu/bench && build/gpu/bench        (bench/gpu.sh does it, after the tests)

   Every time stands beside a floor: its useful floating point operations and the bytes that must move at
   least once, by the rates that were measured in the same run. Rows of a shape are measured in turns (A B C
   A B C ...), with CUDA events, the launches queued behind a kernel that waits so that the processor is ahead
   as it is in an inference loop; a row is the median of its samples. Rows in turn also sweep the L2: what a
   row reads was last touched gigabytes ago. Data are random, or moving objects (synth.h), never zeros: tensor
   cores on zeros run faster than on anything else.

   Every part (the rates; attention of a shape; calls of a shape) is a process of its own: what goes wrong in
   one, and an error of the GPU stays with a process for good, costs no more than the rest of that part.

   CONTENTS
     >>results    what the processes share
     >>options    what can be asked for
     >>machine    the device; mma.sync, wgmma, cuBLAS (if there) and copy rates
     >>copies     what the copies of Hopper do: L2 to shared memory, small boxes
     >>data       tensors, clusters, block maps
     >>rows       clocks; what a row is
     >>engines    the backends that are compared: kernels of another generation, other builds of svg2_cuda.cu
     >>attention  dense; sparse over made-up maps, even and skewed clusters
     >>call       svg2_attend, its stages
     >>front      norm and rotary positions
     >>report     JSON, tables
     >>parts      the processes */
#include "../svg2.h"
#include "../tests/gpu/tensor_map.h"
#include "synth.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "ops.inc" /* the section >>ptx of svg2_cuda.cu, cut out by make */

#ifndef SVG2_BENCH_COMMIT
#  define SVG2_BENCH_COMMIT "unknown"
#endif

typedef __nv_bfloat16 bf16;
enum { MAX_ROWS = 256, MAX_SAMPLES = 24, MAX_STAGE_EVENTS = 256, MAX_ENGINES = 8, MAX_PROBES = 32 };

/* ==== >>results ========================================================================== */
typedef struct row {
    char shape[48], name[64];
    double flops, bytes, executed; /* useful; least traffic; with the padding of tiles (0 = not counted) */
    double dense_ms;               /* of the same shape; 0 = none                                       */
    int is_part;                   /* of the row above                                                  */
    int engine;
    double sample[MAX_SAMPLES], mhz[MAX_SAMPLES]; /* clock right after it; 0 = not measured             */
    int count;
} row;

/* a rate of the device by itself */
typedef struct probe {
    char name[64], unit[16];
    double value;
} probe;

/* Memory that the parts, forked processes, have in common. Only they speak to CUDA. */
static struct results {
    char device[256];
    int major, minor, multiprocessors, l2_bytes, driver, runtime;
    size_t memory_bytes;
    double peak_mma, peak_wgmma, peak_blas, peak_flops, peak_copy; /* flop/s; the largest; bytes/s */
    probe probes[MAX_PROBES];
    int probe_count;
    int one_row_boxes; /* boxes of a tensor map inside the pattern of the swizzle: -1 = not known, 0, 1 */
    struct {
        char name[32];
        double agreement; /* with engine 0: the largest relative L2 of the outputs; < 0: not compared */
    } engine[MAX_ENGINES];
    int engine_count;
    double clock_mhz;
    double agreement; /* relative L2, dense attention and the same over a full map; < 0: not measured */
    double dense_ms;  /* of the last shape */
    row rows[MAX_ROWS];
    int row_count;
} *got;

static row *row_new(const char *shape, const char *name, double flops, double bytes, double executed)
{
    if (got->row_count == MAX_ROWS) {
        fprintf(stderr, "bench: too many rows\n");
        exit(1);
    }
    row *r = &got->rows[got->row_count++];
    memset(r, 0, sizeof *r);
    snprintf(r->shape, sizeof r->shape, "%s", shape);
    snprintf(r->name, sizeof r->name, "%s", name);
    r->flops = flops;
    r->bytes = bytes;
    r->executed = executed;
    return r;
}
static void probe_new(const char *name, const char *unit, double value)
{
    if (got->probe_count == MAX_PROBES) return;
    probe *p = &got->probes[got->probe_count++];
    snprintf(p->name, sizeof p->name, "%s", name);
    snprintf(p->unit, sizeof p->unit, "%s", unit);
    p->value = value;
}
static double row_floor(const row *r) /* ms */
{
    const double compute = r->flops / got->peak_flops, memory = r->bytes / got->peak_copy;
    return 1e3 * (compute > memory ? compute : memory);
}

static int is_part; /* this process is one of the parts */
static void fatal(const char *format, ...)
{
    va_list a;
    va_start(a, format);
    vfprintf(stderr, format, a);
    va_end(a);
    fputc('\n', stderr);
    if (is_part) { /* CUDA is not unloaded: after an error nothing may hang there */
        fflush(NULL);
        _exit(1);
    }
    exit(1);
}
static void must(cudaError_t e, const char *what)
{
    if (e != cudaSuccess) fatal("bench: %s: %s", what, cudaGetErrorString(e));
}
static cudaStream_t stream;
template <class... P, class... A>
static void run_smem(void (*kernel)(P...), int blocks, int threads, int smem, A... args)
{
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)blocks);
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = (size_t)smem;
    config.stream = stream;
    if (smem > 48 * 1024)
        must(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, smem),
             "shared memory");
    must(cudaLaunchKernelEx(&config, kernel, (P)args...), "launch");
}
template <class... P, class... A> static void run(void (*kernel)(P...), int blocks, int threads, A... args)
{
    run_smem(kernel, blocks, threads, 0, args...);
}
/* There when it returns: `stream` does not wait for copies of the default stream. */
static void upload(void *to, const void *from, size_t bytes)
{
    must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream), "upload");
    must(cudaStreamSynchronize(stream), "upload");
}
static void download(void *to, const void *from, size_t bytes)
{
    must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "download");
    must(cudaStreamSynchronize(stream), "download");
}
static double now()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
static int by_value(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}
static double median(const double *x, int n)
{
    double sorted[MAX_SAMPLES];
    if (n == 0) return 0;
    memcpy(sorted, x, sizeof(double) * (size_t)n);
    qsort(sorted, (size_t)n, sizeof(double), by_value);
    return n % 2 ? sorted[n / 2] : 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]);
}

/* ==== >>options ========================================================================== */
static double seconds = 200, started; /* of the whole program                        */
static const char *json_path;
static int only_shape = -1, is_quick; /* quick: a tenth of the frames */
static const char *variants[MAX_ENGINES]; /* libraries of other builds of svg2_cuda.cu */
static int variant_count;

static double left() { return seconds - (now() - started); }

/* ==== >>machine ========================================================================== */
static cudaDeviceProp device;

static void *gpu(size_t bytes)
{
    void *p = NULL;
    const cudaError_t e = cudaMalloc(&p, bytes ? bytes : 1);
    if (e == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return NULL;
    }
    must(e, "cudaMalloc");
    return p;
}

#ifdef SVG2_EMULATED /* the program itself can be tried on tests/emu: make build/emu/bench */
enum { IS_EMULATED = 1 };
static long long clock64()
{
    static long long t;
    return t += 1 << 20;
}
#  define MMA(...) (void)a, (void)b
#else
enum { IS_EMULATED = 0 };
#  define MMA asm volatile
#endif

static __global__ void wait_kernel(long long cycles)
{
    const long long begin = clock64();
    while (clock64() - begin < cycles) {}
}

/* 8 accumulators of 4 registers a thread: enough independent products to hide their latency */
static __global__ void __launch_bounds__(256) mma_kernel(const uint32_t *in, float *out, int rounds)
{
    float d[8][4];
    uint32_t a[4], b[8][2];
    for (int i = 0; i < 4; ++i) a[i] = in[(threadIdx.x * 4 + i) % 1024];
    for (int i = 0; i < 8; ++i) {
        b[i][0] = in[(threadIdx.x * 16 + 2 * i + 7) % 1024];
        b[i][1] = in[(threadIdx.x * 16 + 2 * i + 8) % 1024];
        for (int c = 0; c < 4; ++c) d[i][c] = 0;
    }
    for (int r = 0; r < rounds; ++r)
#pragma unroll
        for (int i = 0; i < 8; ++i)
            MMA("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                : "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
                : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[i][0]), "r"(b[i][1]));
    float sum = 0;
    for (int i = 0; i < 8; ++i)
        for (int c = 0; c < 4; ++c) sum += d[i][c];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

static __global__ void copy_kernel(float4 *to, const float4 *from, int64_t n)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        to[i] = from[i];
}

static __device__ uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
static __device__ float normal_of(uint64_t key)
{
    const uint64_t h = mix(key);
    return (float)((int)((h & 0xffff) + ((h >> 16) & 0xffff) + ((h >> 32) & 0xffff) + (h >> 48)) - 131070)
           * (1.0f / 37837.23f);
}

static __global__ void noise_kernel(bf16 *x, int64_t n, uint64_t seed)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x)
        x[i] = __float2bfloat16_rn(normal_of(seed + (uint64_t)i));
}
static void noise(bf16 *x, int64_t n, uint64_t seed)
{
    run(noise_kernel, n < 4096 * 256 ? (int)((n + 255) / 256) : 4096, 256, x, n, seed * 0x10000000000u);
}

static cudaEvent_t event_of()
{
    cudaEvent_t e;
    must(cudaEventCreate(&e), "cudaEventCreate");
    return e;
}
static double ms_between(cudaEvent_t a, cudaEvent_t b)
{
    float ms = 0;
    must(cudaEventSynchronize(b), "cudaEventSynchronize");
    must(cudaEventElapsedTime(&ms, a, b), "cudaEventElapsedTime");
    return ms;
}

/* Whether this device and this build have what only sm_90a has. */
static int has_hopper()
{
    bool is_there = false;
    if (device.major == 9 && device.minor == 0) must(svg2__has_sm90a(&is_there), "device");
    return is_there;
}

/* The rates: best of a few runs, for they are ceilings. */
static void measure_mma()
{
    const int blocks = IS_EMULATED ? 1 : device.multiProcessorCount * 4, rounds = IS_EMULATED ? 1 : 20000;
    uint32_t *in = (uint32_t *)gpu(4096);
    float *out = (float *)gpu((size_t)blocks * 256 * 4);
    if (!in || !out) fatal("bench: not enough memory for the rate of mma.sync");
    const cudaEvent_t a = event_of(), b = event_of();
    noise((bf16 *)in, 2048, 1);
    for (int i = 0; i < 4; ++i) {
        must(cudaEventRecord(a, stream), "event");
        run(mma_kernel, blocks, 256, in, out, rounds);
        must(cudaEventRecord(b, stream), "event");
        const double s = 1e-3 * ms_between(a, b), rate = (double)blocks * 8 * rounds * 8 * 4096 / s;
        if (rate > got->peak_mma) got->peak_mma = rate;
    }
    must(cudaEventRecord(a, stream), "event");
    run(wait_kernel, 1, 32, 50000000);
    must(cudaEventRecord(b, stream), "event");
    got->clock_mhz = 50000000 / (1e3 * ms_between(a, b));
    cudaFree(in), cudaFree(out);
    cudaEventDestroy(a), cudaEventDestroy(b);
}

/* Two warpgroups, each with 64 x 256 accumulators. Noise fills what they read: 16 KB as A, 32 KB as B. */
template <int IN_REGISTERS>
static __global__ void __launch_bounds__(256, 1) wgmma_kernel(const uint32_t *in, float *out, int rounds)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(slabs, 1024);
    const int t = (int)threadIdx.x;
    const uint32_t base = svg2__smem(slabs);
    for (int i = t; i < 48 * 256; i += 256) ((uint32_t *)(void *)slabs)[i] = in[i % 1024];
    svg2__fence_async();
    __syncthreads(); /* tiles written -> read by wgmma */
    const uint64_t form = (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
    const uint64_t a = form | (base + (uint32_t)(t / 128) * 8192) >> 4, b = form | (base + 16384) >> 4;
    const uint32_t fragment[4] = {in[t], in[t + 1], in[t + 2], in[t + 3]};
    float d[128];
    for (int i = 0; i < 128; ++i) d[i] = 0;
#pragma unroll 1
    for (int r = 0; r < rounds; ++r) {
        svg2__wgmma_hold(d);
        svg2__wgmma_fence();
#pragma unroll
        for (uint64_t k = 0; k < 4; ++k) {
            if (IN_REGISTERS) svg2__wgmma_rs<0>(d, fragment, b + 2 * k, 1, bf16());
            else svg2__wgmma_ss<0>(d, a + 2 * k, b + 2 * k, 1, bf16());
        }
        svg2__wgmma_commit();
        svg2__wgmma_wait<0>();
        svg2__wgmma_hold(d);
    }
    float sum = 0;
    for (int i = 0; i < 128; ++i) sum += d[i];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
#else
    (void)in, (void)out, (void)rounds;
    __trap();
#endif
}

static void measure_wgmma()
{
    const int blocks = IS_EMULATED ? 1 : device.multiProcessorCount, rounds = IS_EMULATED ? 1 : 10000;
    uint32_t *in = (uint32_t *)gpu(4096);
    float *out = (float *)gpu((size_t)blocks * 256 * 4);
    if (!in || !out) fatal("bench: not enough memory for the rate of wgmma");
    const cudaEvent_t a = event_of(), b = event_of();
    noise((bf16 *)in, 2048, 1);
    for (int form = 0; form < 2; ++form) {
        double best = 0;
        for (int i = 0; i < 4; ++i) {
            must(cudaEventRecord(a, stream), "event");
            run_smem(form ? wgmma_kernel<1> : wgmma_kernel<0>, blocks, 256, 48 * 1024, in, out, rounds);
            must(cudaEventRecord(b, stream), "event");
            const double rate = (double)blocks * 2 * rounds * 4 * (2.0 * 64 * 256 * 16)
                                / (1e-3 * ms_between(a, b));
            if (rate > best) best = rate;
        }
        probe_new(form ? "wgmma m64n256k16, A in registers" : "wgmma m64n256k16, A in shared memory",
                  "TFLOP/s", 1e-12 * best);
        if (best > got->peak_wgmma) got->peak_wgmma = best;
    }
    cudaFree(in), cudaFree(out);
    cudaEventDestroy(a), cudaEventDestroy(b);
}

static void measure_copy()
{
    const size_t bytes = (size_t)1 << (IS_EMULATED ? 16 : 30);
    void *from = gpu(bytes), *to = gpu(bytes);
    const cudaEvent_t a = event_of(), b = event_of();
    if (!from || !to) fatal("bench: not enough memory for the copy rate");
    noise((bf16 *)from, (int64_t)(bytes / 2), 2);
    for (int i = 0; i < 8; ++i) {
        must(cudaEventRecord(a, stream), "event");
        if (i % 2) must(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream), "copy");
        else
            run(copy_kernel, IS_EMULATED ? 1 : device.multiProcessorCount * 8, 512, (float4 *)to,
                (const float4 *)from, (int64_t)(bytes / 16));
        must(cudaEventRecord(b, stream), "event");
        const double rate = 2 * (double)bytes / (1e-3 * ms_between(a, b));
        if (rate > got->peak_copy) got->peak_copy = rate;
    }
    cudaFree(from), cudaFree(to);
    cudaEventDestroy(a), cudaEventDestroy(b);
}

/* cuBLAS, if the machine has it: looked up at run time, so that nothing has to be linked. */
static void measure_blas()
{
    static const char *const names[] = {"libcublas.so", "libcublas.so.13", "libcublas.so.12",
                                        "libcublas.so.11"};
    typedef int create_fn(void **), stream_fn(void *, cudaStream_t), destroy_fn(void *);
    typedef int gemm_fn(void *, int, int, int, int, int, const void *, const void *, int, int, const void *,
                        int, int, const void *, void *, int, int, int, int);
    enum { N = 8192, R_32F = 0, R_16BF = 14, COMPUTE_32F = 68, DEFAULT = -1 };
    void *library = NULL, *handle = NULL;
    for (int i = 0; i < 4 && !library; ++i) library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!library) return;
    create_fn *create = (create_fn *)dlsym(library, "cublasCreate_v2");
    stream_fn *set_stream = (stream_fn *)dlsym(library, "cublasSetStream_v2");
    destroy_fn *destroy = (destroy_fn *)dlsym(library, "cublasDestroy_v2");
    gemm_fn *gemm = (gemm_fn *)dlsym(library, "cublasGemmEx");
    bf16 *a = (bf16 *)gpu((size_t)N * N * 2), *b = (bf16 *)gpu((size_t)N * N * 2),
         *c = (bf16 *)gpu((size_t)N * N * 2);
    if (create && set_stream && destroy && gemm && a && b && c && create(&handle) == 0) {
        const float one = 1, zero = 0;
        const cudaEvent_t e0 = event_of(), e1 = event_of();
        noise(a, (int64_t)N * N, 3);
        noise(b, (int64_t)N * N, 4);
        int bad = set_stream(handle, stream);
        for (int i = 0; i < 8 && !bad; ++i) {
            must(cudaEventRecord(e0, stream), "event");
            bad = gemm(handle, 1, 0, N, N, N, &one, a, R_16BF, N, b, R_16BF, N, &zero, c, R_16BF, N,
                       COMPUTE_32F, DEFAULT);
            must(cudaEventRecord(e1, stream), "event");
            const double rate = 2.0 * N * N * N / (1e-3 * ms_between(e0, e1));
            if (!bad && i > 1 && rate > got->peak_blas) got->peak_blas = rate;
        }
        destroy(handle);
        cudaEventDestroy(e0), cudaEventDestroy(e1);
    }
    cudaFree(a), cudaFree(b), cudaFree(c);
}

/* ==== >>copies ===========================================================================
   A tensor of rows of 128 bytes that the L2 holds, read into rings of shared memory that nobody looks at:
   what copies can bring to all multiprocessors at once. Attention at 650 TFLOP/s, 128 rows at a time, reads 5
   TB/s. */
enum { STAGE_ROWS = 128, STAGE_BYTES = STAGE_ROWS * 128, STAGES = 8, RING_BYTES = STAGES * STAGE_BYTES + 64 };

/* A stage is loaded by boxes of box_rows rows, issued by so many lanes of one warp. */
static __global__ void __launch_bounds__(32)
    box_kernel(const __grid_constant__ CUtensorMap map, int box_rows, int lanes, int tiles, int rounds)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(slabs, 1024);
    const int lane = (int)threadIdx.x;
    const uint32_t ring = svg2__smem(slabs), full = ring + STAGES * STAGE_BYTES;
    if (lane == 0) {
        for (uint32_t s = 0; s < STAGES; ++s) svg2__mbar_init(full + 8 * s, 1);
        svg2__fence_mbar_init();
    }
    __syncwarp(); /* barriers made -> used */
    for (int i = 0; i < rounds + STAGES; ++i) {
        const uint32_t s = (uint32_t)(i % STAGES), bar = full + 8 * s;
        if (i >= STAGES)
            while (!svg2__mbar_try_wait(bar, (uint32_t)(i / STAGES - 1) & 1)) {}
        if (i >= rounds) continue;
        const int y = (int)(((int64_t)blockIdx.x * tiles / gridDim.x + i) % tiles) * STAGE_ROWS;
        if (lane == 0) svg2__mbar_arrive_expect(bar, STAGE_BYTES);
        __syncwarp(); /* the bytes are announced -> they may come */
        if (lane < lanes)
            for (int r = lane * box_rows; r < STAGE_ROWS; r += lanes * box_rows)
                svg2__tma_load_2d(ring + s * STAGE_BYTES + (uint32_t)r * 128, &map, bar, 0, y + r);
    }
#else
    (void)box_rows, (void)lanes, (void)tiles, (void)rounds;
    __trap();
#endif
}

/* The same by cp.async: rows one by one, anywhere, 16 bytes a thread at a time. */
static __global__ void __launch_bounds__(256) gather_kernel(const bf16 *from, int rows, int rounds)
{
    SVG2_DYN_SMEM(slabs, 1024);
    const uint32_t ring = svg2__smem(slabs);
    for (int i = 0; i < rounds; ++i) {
        for (int c = (int)threadIdx.x; c < STAGE_ROWS * 8; c += (int)blockDim.x) {
            const int r = c / 8;
            const uint32_t n = (uint32_t)(blockIdx.x * 977 + (unsigned)i) * STAGE_ROWS + (uint32_t)r,
                           y = n * 40503u % (uint32_t)rows;
            svg2__cp_async16(ring + (uint32_t)(i % STAGES * STAGE_BYTES + r * 128 + ((c % 8 ^ (r & 7)) << 4)),
                             from + (int64_t)y * 64 + c % 8 * 8, 16);
        }
        svg2__cp_async_commit();
        svg2__cp_async_wait<STAGES - 1>();
    }
    svg2__cp_async_wait<0>();
}

/* Bytes that differ between a tile by boxes of one row and the same tile by one box: 0 if the swizzle goes by
   the shared address. */
static __global__ void __launch_bounds__(32)
    same_kernel(const __grid_constant__ CUtensorMap one, const __grid_constant__ CUtensorMap tile, int *count)
{
#if SVG2__SM90A
    SVG2_DYN_SMEM(slabs, 1024);
    const int lane = (int)threadIdx.x;
    const uint32_t at = svg2__smem(slabs), bar = at + 2 * STAGE_BYTES;
    if (lane == 0) {
        svg2__mbar_init(bar, 1);
        svg2__fence_mbar_init();
        svg2__mbar_arrive_expect(bar, 2 * STAGE_BYTES);
        svg2__tma_load_2d(at + STAGE_BYTES, &tile, bar, 0, 256);
        for (int r = 0; r < STAGE_ROWS; ++r)
            svg2__tma_load_2d(at + (uint32_t)r * 128, &one, bar, 0, 256 + r);
    }
    __syncwarp(); /* barrier made -> waited for */
    while (!svg2__mbar_try_wait(bar, 0)) {}
    int bad = 0;
    for (int i = lane; i < STAGE_BYTES; i += 32) bad += slabs[i] != slabs[STAGE_BYTES + i];
    atomicAdd(count, bad);
#else
    (void)count;
    __trap();
#endif
}

static void measure_copies()
{
    static const int sizes[] = {16, 40}; /* MB: well inside the L2; K and V of a head of 75,600 tokens */
    const int most = IS_EMULATED ? 1 : 40, blocks = IS_EMULATED ? 2 : device.multiProcessorCount;
    const int rounds = IS_EMULATED ? 12 : 20000;
    const int64_t rows = (int64_t)most * 8192;
    bf16 *from = (bf16 *)gpu((size_t)rows * 128);
    int *count = (int *)gpu(sizeof(int)), zero = 0;
    if (!from || !count) fatal("bench: not enough memory for the rates of copies");
    const cudaEvent_t a = event_of(), b = event_of();
    noise(from, rows * 64, 5);
    for (int part = 0; part < 4; ++part) { /* cp.async; tiles; one-row boxes: yes or no; small boxes */
        if (part > 0 && !has_hopper()) break;
        if (part == 2) {
            CUtensorMap one, tile;
            int bad = 0;
            if (tensor_map_of(&one, from, rows, 64, 64, 1) != CUDA_SUCCESS
                || tensor_map_of(&tile, from, rows, 64, 64, STAGE_ROWS) != CUDA_SUCCESS)
                fatal("bench: no tensor map");
            upload(count, &zero, sizeof zero);
            got->one_row_boxes = 0; /* should this be an error, too */
            run_smem(same_kernel, 1, 32, 2 * STAGE_BYTES + 64, one, tile, count);
            download(&bad, count, sizeof bad);
            got->one_row_boxes = bad == 0;
            continue;
        }
        static const struct {
            int part, mb, box_rows, lanes; /* part 0: lanes are threads */
        } cases[] = {{0, 0, 0, 128}, {0, 0, 0, 256}, {0, 1, 0, 128}, {1, 0, 64, 1},  {1, 0, 128, 1},
                     {1, 1, 64, 1},  {1, 1, 128, 1}, {3, 0, 1, 1},   {3, 0, 1, 32},  {3, 0, 2, 1},
                     {3, 0, 2, 32},  {3, 0, 4, 1},   {3, 0, 4, 32},  {3, 0, 8, 1},   {3, 0, 8, 16}};
        for (auto &c : cases) {
            if (c.part != part) continue;
            const int mb = sizes[c.mb] < most ? sizes[c.mb] : most;
            const int times = part == 3 ? rounds / 8 + 1 : rounds;
            CUtensorMap map;
            double best = 0;
            char name[64];
            if (part && tensor_map_of(&map, from, (int64_t)mb * 8192, 64, 64, c.box_rows) != CUDA_SUCCESS)
                fatal("bench: no tensor map");
            for (int i = 0; i < 4; ++i) {
                must(cudaEventRecord(a, stream), "event");
                if (part)
                    run_smem(box_kernel, blocks, 32, RING_BYTES, map, c.box_rows, c.lanes, mb * 64, times);
                else run_smem(gather_kernel, blocks, c.lanes, RING_BYTES, from, mb * 8192, times);
                must(cudaEventRecord(b, stream), "event");
                const double rate = (double)blocks * times * STAGE_BYTES / (1e-3 * ms_between(a, b));
                if (rate > best) best = rate;
            }
            if (part) snprintf(name, sizeof name, "L2 to shared, TMA boxes of %d rows by %d lanes, %d MB",
                               c.box_rows, c.lanes, mb);
            else snprintf(name, sizeof name, "L2 to shared, cp.async by %d threads, %d MB", c.lanes, mb);
            probe_new(name, "TB/s", 1e-12 * best);
            if (part == 3) {
                snprintf(name, sizeof name, "TMA boxes of %d rows by %d lanes, a multiprocessor", c.box_rows,
                         c.lanes);
                probe_new(name, "boxes/us", 1e-6 * best / blocks / (c.box_rows * 128));
            }
        }
    }
    cudaFree(from), cudaFree(count);
    cudaEventDestroy(a), cudaEventDestroy(b);
}

/* ==== >>data ============================================================================= */
typedef struct shape {
    const char *name;
    int frames, height, width, heads, dim, cq, ck;
} shape;
static const shape shapes[] = { /* the cheapest first */
    {"32.8K x 24 x 64, 100/500", 21, 30, 52, 24, 64, 100, 500},
    {"111.6K x 24 x 128, 100/500", 31, 45, 80, 24, 128, 100, 500},
    {"118.8K x 24 x 128, 400/1000", 33, 45, 80, 24, 128, 400, 1000},
    {"75.6K x 40 x 128, 300/1000", 21, 45, 80, 40, 128, 300, 1000},
};
enum { SHAPES = (int)(sizeof shapes / sizeof *shapes) };

typedef struct token_at {
    float dx, dy, frame, y, x;
    int object;
} token_at;

/* synth_make of synth.h, a thread an element */
static __global__ void video_kernel(bf16 *q, bf16 *k, bf16 *v, const token_at *at, int64_t tokens, int heads,
                                    int dim, uint64_t base, float drift)
{
    const int frequencies = dim / 16, content = dim - 6 * frequencies;
    const int64_t n = (int64_t)heads * tokens * dim;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const int d = (int)(i % dim), h = (int)(i / dim / tokens);
        const int64_t t = i / dim % tokens;
        const token_at p = at[t];
        const uint64_t head = mix(base + 1000003u * (uint64_t)(h + 1)),
                       key = mix(head + 7919u * (uint64_t)(t + 1)) + (uint64_t)d * 8;
        const uint64_t own = head + ((uint64_t)p.object << 20) + (uint64_t)d;
        float form;
        if (d < content) {
            form = normal_of(own) + 0.5f * p.dx * normal_of(own + 0x400000000u)
                   + 0.5f * p.dy * normal_of(own + 0x500000000u);
        } else {
            const int f = (d - content) / 2;
            const float where = f % 3 == 0 ? p.frame : f % 3 == 1 ? p.y : p.x;
            const float angle = where * powf(0.03f, (float)(f / 3) / (float)frequencies);
            form = 1.2f * ((d - content) % 2 ? sinf(angle) : cosf(angle));
        }
        q[i] = __float2bfloat16_rn(form + 0.4f * normal_of(key) + drift * normal_of(key + 3));
        k[i] = __float2bfloat16_rn(form + 0.4f * normal_of(key + 1)
                                   + 2.0f * normal_of(head + 0x700000000u + (uint64_t)d)
                                   + drift * normal_of(key + 4));
        v[i] = __float2bfloat16_rn(normal_of(own + 0x100000000u) + p.dx * normal_of(own + 0x200000000u)
                                   + p.dy * normal_of(own + 0x300000000u) + 0.4f * normal_of(key + 2)
                                   + drift * normal_of(key + 5));
    }
}

typedef struct tensors {
    shape s;
    int64_t tokens, elements;
    bf16 *q, *k, *v, *out;
    token_at *at;
} tensors;

static int tensors_new(tensors *t, shape s)
{
    t->s = s;
    t->tokens = (int64_t)s.frames * s.height * s.width;
    t->elements = t->tokens * s.heads * s.dim;
    const size_t bytes = (size_t)t->elements * 2;
    t->q = (bf16 *)gpu(bytes);
    t->k = (bf16 *)gpu(bytes);
    t->v = (bf16 *)gpu(bytes);
    t->out = (bf16 *)gpu(bytes);
    t->at = (token_at *)gpu((size_t)t->tokens * sizeof(token_at));
    if (!t->q || !t->k || !t->v || !t->out || !t->at) return 0;
    synth_object objects[SYNTH_OBJECTS];
    for (int i = 0; i < SYNTH_OBJECTS; ++i) {
        const uint64_t key = synth_hash(7) + (uint64_t)i * 8;
        objects[i].x = synth_uniform(key);
        objects[i].y = synth_uniform(key + 1);
        objects[i].step_x = 0.02 * (synth_uniform(key + 2) - 0.5);
        objects[i].step_y = 0.02 * (synth_uniform(key + 3) - 0.5);
        objects[i].size = 0.5 + synth_uniform(key + 4);
    }
    token_at *at = (token_at *)malloc((size_t)t->tokens * sizeof(token_at)), *p = at;
    for (int f = 0; f < s.frames; ++f)
        for (int y = 0; y < s.height; ++y)
            for (int x = 0; x < s.width; ++x, ++p) {
                double dx = 0, dy = 0;
                p->object = synth_object_at(objects, f, (x + 0.5) / s.width, (y + 0.5) / s.height, &dx, &dy);
                p->dx = (float)(dx * 8), p->dy = (float)(dy * 8);
                p->frame = (float)f, p->y = (float)y, p->x = (float)x;
            }
    upload(t->at, at, (size_t)t->tokens * sizeof(token_at));
    free(at);
    return 1;
}
static void tensors_fill(const tensors *t, double drift)
{
    run(video_kernel, device.multiProcessorCount * 16, 256, t->q, t->k, t->v, t->at, t->tokens, t->s.heads,
        t->s.dim, synth_hash(11), (float)drift);
    must(cudaStreamSynchronize(stream), "video");
}
static void tensors_free(tensors *t)
{
    cudaFree(t->q), cudaFree(t->k), cudaFree(t->v), cudaFree(t->out), cudaFree(t->at);
}

/* Clusters of one side, the same for all heads but for which token is where: sizes even, or log-normal with
   sigma 1. */
typedef struct clusters {
    int count;
    int32_t *size;            /* host: [count]                                      */
    int32_t *offset, *order;  /* device: [heads, count + 1], [heads, tokens]        */
} clusters;

static clusters clusters_new(int count, int64_t tokens, int heads, int is_skewed, uint64_t seed)
{
    clusters c;
    double *weight = (double *)malloc(sizeof(double) * (size_t)count), sum = 0;
    int32_t *offset = (int32_t *)malloc(4 * (size_t)heads * (size_t)(count + 1)),
            *label = (int32_t *)malloc(4 * (size_t)tokens);
    int32_t *order = (int32_t *)malloc(4 * (size_t)heads * (size_t)tokens),
            *at = (int32_t *)malloc(4 * (size_t)count);
    c.count = count;
    c.size = (int32_t *)malloc(4 * (size_t)count);
    for (int i = 0; i < count; ++i)
        sum += weight[i] = is_skewed ? exp((double)synth_normal(seed + (uint64_t)i)) : 1.0;
    double before = 0;
    for (int i = 0; i < count; ++i) {
        const int64_t begin = (int64_t)(before / sum * (double)tokens);
        before += weight[i];
        c.size[i] = (int32_t)((i == count - 1 ? tokens : (int64_t)(before / sum * (double)tokens)) - begin);
    }
    int64_t filled = 0;
    for (int i = 0; i < count; ++i)
        for (int n = 0; n < c.size[i]; ++n) label[filled++] = i;
    for (int h = 0; h < heads; ++h) { /* shuffled, then sorted by label */
        for (int64_t i = tokens - 1; i > 0; --i) {
            const int64_t j =
                (int64_t)(synth_hash(seed + (uint64_t)h * 1000003u + (uint64_t)i) % (uint64_t)(i + 1));
            const int32_t x = label[i];
            label[i] = label[j], label[j] = x;
        }
        int32_t *o = offset + (size_t)h * (size_t)(count + 1);
        o[0] = 0;
        for (int i = 0; i < count; ++i) at[i] = o[i], o[i + 1] = o[i] + c.size[i];
        for (int64_t i = 0; i < tokens; ++i)
            order[(size_t)h * (size_t)tokens + (size_t)at[label[i]]++] = (int32_t)i;
    }
    c.offset = (int32_t *)gpu(4 * (size_t)heads * (size_t)(count + 1));
    c.order = (int32_t *)gpu(4 * (size_t)heads * (size_t)tokens);
    if (!c.offset || !c.order) fatal("bench: not enough memory");
    upload(c.offset, offset, 4 * (size_t)heads * (size_t)(count + 1));
    upload(c.order, order, 4 * (size_t)heads * (size_t)tokens);
    free(weight), free(offset), free(label), free(order), free(at);
    return c;
}
static void clusters_free(clusters *c) { free(c->size), cudaFree(c->offset), cudaFree(c->order); }

/* Key clusters of each query cluster at random until their tokens are `density` of all. */
typedef struct block_map {
    uint8_t *map;
    double pairs, executed; /* of all heads; executed: rows in 64s, keys of a row of blocks in 64s */
} block_map;

static block_map map_new(const clusters *q, const clusters *k, int heads, int64_t tokens, double density,
                         int dim, uint64_t seed)
{
    block_map m = {NULL, 0, 0};
    const size_t bytes = (size_t)heads * (size_t)q->count * (size_t)k->count;
    const int unit = dim > 128 ? 32 : 64;
    uint8_t *host = (uint8_t *)calloc(bytes, 1);
    int *pick = (int *)malloc(sizeof(int) * (size_t)k->count);
    for (int j = 0; j < k->count; ++j) pick[j] = j;
    for (int h = 0; h < heads; ++h)
        for (int i = 0; i < q->count; ++i) {
            uint8_t *at = host + ((size_t)h * (size_t)q->count + (size_t)i) * (size_t)k->count;
            int64_t keys = 0;
            for (int n = 0; n < k->count && (double)keys + 0.5 * k->size[0] < density * (double)tokens; ++n) {
                const int other = n + (int)(synth_hash(seed++) % (uint64_t)(k->count - n)), j = pick[other];
                pick[other] = pick[n], pick[n] = j;
                at[j] = 1;
                keys += k->size[j];
            }
            m.pairs += (double)q->size[i] * (double)keys;
            m.executed += (double)((q->size[i] + 63) / 64 * 64) * (double)((keys + unit - 1) / unit * unit);
        }
    m.map = (uint8_t *)gpu(bytes);
    if (!m.map) fatal("bench: not enough memory");
    upload(m.map, host, bytes);
    free(host), free(pick);
    return m;
}

/* ==== >>engines ==========================================================================
   Engine 0 is what users get. On a device of compute capability 9.0 there are also the kernels for 8.0, and
   those libraries of svg2_cuda.cu, built with other switches, that were named. All are measured in turns. */
static svg2_backend engines[MAX_ENGINES]; /* of this process; their names are in *got */

static void engine_new(const char *name, svg2_backend backend)
{
    const int i = got->engine_count++;
    engines[i] = backend;
    snprintf(got->engine[i].name, sizeof got->engine[i].name, "%s", name); /* the same in all parts */
}
static void engines_open()
{
    typedef svg2_backend open_fn(void *, int32_t);
    got->engine_count = 0;
    engine_new("", svg2_cuda_backend(stream));
    if (has_hopper()) engine_new("arch 80", svg2_cuda_backend_arch(stream, 80));
    for (int i = 0; i < variant_count && has_hopper() && got->engine_count < MAX_ENGINES; ++i) {
        char name[32];
        const char *base = strrchr(variants[i], '/');
        base = base ? base + 1 : variants[i];
        if (strncmp(base, "variant_", 8) == 0) base += 8;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(base, "."), base);
        void *library = dlopen(variants[i], RTLD_NOW | RTLD_LOCAL);
        open_fn *open = library ? (open_fn *)dlsym(library, "svg2_cuda_backend_arch") : NULL;
        if (open) engine_new(name, open(stream, 90));
        else fprintf(stderr, "bench: %s: %s\n", variants[i], dlerror());
    }
}
/* "dense" -> "dense, arch 80" */
static row *row_of_engine(row *r, int engine)
{
    r->engine = engine;
    if (engine) {
        char name[32];
        memcpy(name, got->engine[engine].name, sizeof name);
        const size_t n = strlen(r->name);
        snprintf(r->name + n, sizeof r->name - n, ", %s", name);
    }
    return r;
}

/* ==== >>attention ======================================================================== */
static void *workspace;
static size_t workspace_size;
static int workspace_need(size_t bytes)
{
    if (bytes == SIZE_MAX) return 0;
    if (bytes <= workspace_size) return 1;
    cudaFree(workspace);
    workspace_size = 0;
    workspace = gpu(bytes);
    if (workspace) workspace_size = bytes;
    return workspace != NULL;
}

static void check_call(svg2_result r, const svg2_error *err, const char *what)
{
    if (r != SVG2_OK) fatal("bench: %s: %s %s", what, err->field, err->text);
}

static svg2_attention_desc attention_of(const tensors *t)
{
    svg2_attention_desc d = SVG2_ZERO;
    d.batch = 1;
    d.heads = d.heads_kv = t->s.heads;
    d.tokens = d.tokens_kv = (int32_t)t->tokens;
    d.head_dim = t->s.dim;
    d.scale = 1 / sqrtf((float)t->s.dim);
    d.q = t->q, d.k = t->k, d.v = t->v, d.out = t->out;
    d.q_layout.dtype = d.k_layout.dtype = d.v_layout.dtype = d.out_layout.dtype = SVG2_BF16;
    return d;
}

static void attend(int engine, const svg2_attention_desc *d)
{
    svg2_error err;
    check_call(svg2_attention(&engines[engine], d, workspace, workspace_size, &err), &err, "svg2_attention");
}

/* sum of squares of the difference and of the second, in a fixed number of partial sums */
static __global__ void difference_kernel(const bf16 *a, const bf16 *b, int64_t n, double *out)
{
    double e = 0, s = 0;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const double x = (double)__bfloat162float(a[i]), y = (double)__bfloat162float(b[i]);
        e += (x - y) * (x - y);
        s += y * y;
    }
    out[2 * (blockIdx.x * blockDim.x + threadIdx.x)] = e;
    out[2 * (blockIdx.x * blockDim.x + threadIdx.x) + 1] = s;
}
static double difference(const bf16 *a, const bf16 *b, int64_t n)
{
    const int threads = IS_EMULATED ? 256 : 256 * 256;
    const size_t bytes = sizeof(double) * 2 * (size_t)threads;
    double *sums = (double *)gpu(bytes), *host = (double *)malloc(bytes), e = 0, s = 0;
    if (!sums || !host) fatal("bench: not enough memory");
    run(difference_kernel, threads / 256, 256, a, b, n, sums);
    download(host, sums, bytes);
    for (int i = 0; i < threads; ++i) e += host[2 * i], s += host[2 * i + 1];
    free(host);
    cudaFree(sums);
    return sqrt(e / s);
}

/* ==== >>rows ============================================================================= */
enum { CLOCK_CYCLES = 400000 };
typedef struct timer {
    cudaEvent_t begin, end, after;
} timer;
static timer timer_new()
{
    timer t;
    t.begin = event_of();
    t.end = event_of();
    t.after = event_of();
    return t;
}
/* what is launched between the two runs without waiting for the processor */
static void timer_begin(const timer *t, int launches)
{
    run(wait_kernel, 1, 32, (long long)launches * 20000);
    must(cudaEventRecord(t->begin, stream), "event");
}
/* r NULL: no row. A known number of cycles behind the work tells the clock that it ran at. */
static void timer_end(const timer *t, row *r)
{
    must(cudaEventRecord(t->end, stream), "event");
    run(wait_kernel, 1, 32, CLOCK_CYCLES);
    must(cudaEventRecord(t->after, stream), "event");
    const double mhz = CLOCK_CYCLES / (1e3 * ms_between(t->end, t->after)), ms = ms_between(t->begin, t->end);
    if (!r || r->count == MAX_SAMPLES) return;
    r->mhz[r->count] = mhz;
    r->sample[r->count++] = ms;
}
static void timer_free(timer *t)
{
    cudaEventDestroy(t->begin), cudaEventDestroy(t->end), cudaEventDestroy(t->after);
}

static double dense_pairs(const tensors *t)
{
    return (double)t->s.heads * (double)t->tokens * (double)t->tokens;
}
static double qkvo_bytes(const tensors *t) { return 4 * 2 * (double)t->elements; }

/* one turn of all rows */
static void attend_all(timer *time, svg2_attention_desc *d, row *(*r)[MAX_ENGINES], int n)
{
    for (int i = 0; i < n; ++i)
        for (int e = 0; e < got->engine_count; ++e) {
            if (!r[i][e]) continue;
            timer_begin(time, 10);
            attend(e, &d[i]);
            timer_end(time, r[i][e]);
        }
}

static void bench_attention(const tensors *t, double budget)
{
    enum { CASES = 7, GENERATIONS = 2 };
    static const double densities[] = {0.10, 0.25, 0.50};
    /* variants are compared dense, at 25 % of even and at 10 % of skewed clusters */
    static const int is_for_variants[CASES] = {1, 0, 1, 0, 1, 0, 0};
    svg2_attention_desc d[CASES];
    row *r[CASES][MAX_ENGINES];
    clusters side[2][2];
    block_map maps[CASES];
    timer time = timer_new();
    int n = 1;
    memset(maps, 0, sizeof maps);
    memset(r, 0, sizeof r);
    d[0] = attention_of(t);
    for (int e = 0; e < got->engine_count; ++e)
        r[0][e] = row_of_engine(row_new(t->s.name, "dense", 4 * dense_pairs(t) * t->s.dim, qkvo_bytes(t),
                                        4 * dense_pairs(t) * t->s.dim),
                                e);
    for (int skew = 0; skew < 2; ++skew) {
        side[skew][0] = clusters_new(t->s.cq, t->tokens, t->s.heads, skew, 100 + (uint64_t)skew);
        side[skew][1] = clusters_new(t->s.ck, t->tokens, t->s.heads, skew, 200 + (uint64_t)skew);
        for (int i = 0; i < 3; ++i, ++n) {
            char name[64];
            maps[n] = map_new(&side[skew][0], &side[skew][1], t->s.heads, t->tokens, densities[i], t->s.dim,
                              300 + (uint64_t)n);
            snprintf(name, sizeof name, "blocks %.0f %%, %s clusters", 100 * maps[n].pairs / dense_pairs(t),
                     skew ? "skewed" : "even");
            for (int e = 0; e < got->engine_count; ++e)
                if (e < GENERATIONS || is_for_variants[n])
                    r[n][e] = row_of_engine(row_new(t->s.name, name, 4 * maps[n].pairs * t->s.dim,
                                                    qkvo_bytes(t), 4 * maps[n].executed * t->s.dim),
                                            e);
            d[n] = attention_of(t);
            d[n].query_blocks = t->s.cq, d[n].key_blocks = t->s.ck;
            d[n].query_order = side[skew][0].order, d[n].query_offset = side[skew][0].offset;
            d[n].key_order = side[skew][1].order, d[n].key_offset = side[skew][1].offset;
            d[n].map = maps[n].map;
        }
    }
    svg2_attention_desc full = d[4]; /* the same as dense, by other ways */
    full.map = NULL;
    size_t most = 0;
    for (int e = 0; e < got->engine_count; ++e)
        for (int i = 0; i <= n; ++i) {
            const size_t bytes =
                svg2_stage_workspace_bytes(&engines[e], SVG2_STAGE_ATTENTION, i < n ? &d[i] : &full);
            if (bytes > most) most = bytes;
        }
    if (!workspace_need(most)) {
        printf("  no memory for %s\n", t->s.name);
    } else {
        bf16 *other = (bf16 *)gpu((size_t)t->elements * 2);
        if (other && got->agreement < 0) { /* at full size: clusters and a full map give dense attention */
            attend(0, &d[0]);
            full.out = other;
            attend(0, &full);
            got->agreement = difference(other, t->out, t->elements);
        }
        for (int e = 1; other && e < got->engine_count; ++e) { /* and all engines the same, over a map */
            svg2_attention_desc mine = d[n - 1];
            attend(0, &d[n - 1]);
            mine.out = other;
            attend(e, &mine);
            const double x = difference(other, t->out, t->elements);
            if (!(x <= got->engine[e].agreement)) got->engine[e].agreement = x;
        }
        cudaFree(other);
        const double begin = now();
        attend_all(&time, d, r, n); /* to warm up; where there is no time for more these are the samples */
        const double round = now() - begin;
        for (int i = 0; i < n && left() > 2 * round; ++i)
            for (int e = 0; e < got->engine_count; ++e)
                if (r[i][e]) r[i][e]->count = 0;
        int rounds = (int)(budget / (round > 1e-4 ? round : 1e-4));
        rounds = rounds < 3 ? 3 : rounds > 11 ? 11 : rounds;
        for (int k = 0; k < rounds && left() > 2 * round; ++k) attend_all(&time, d, r, n);
    }
    for (int e = 0; e < got->engine_count; ++e) {
        const double dense = median(r[0][e]->sample, r[0][e]->count);
        for (int i = 0; i < n; ++i)
            if (r[i][e]) r[i][e]->dense_ms = dense;
        if (e == 0) got->dense_ms = dense;
    }
    for (int i = 1; i < n; ++i) cudaFree(maps[i].map);
    for (int i = 0; i < 4; ++i) clusters_free(&side[i / 2][i % 2]);
    timer_free(&time);
}

/* ==== >>call ============================================================================= */
enum { T_KMEANS_Q, T_KMEANS_K, T_PERMUTE, T_SUMMARIZE, T_SCORE, T_SELECT, T_TAIL, T_ATTENTION, T_COUNT };
static const char *const stage_names[T_COUNT] = {
    "k-means of the queries", "k-means of the keys", "permute", "summarize", "score", "select", "tail",
    "attention"};

/* A backend whose stages stand between events. */
static svg2_backend inner;
static struct {
    cudaEvent_t begin[MAX_STAGE_EVENTS], end[MAX_STAGE_EVENTS];
    int stage[MAX_STAGE_EVENTS], count, kmeans_calls, made;
} mark;

static int mark_begin(int stage)
{
    if (mark.count == MAX_STAGE_EVENTS) fatal("bench: too many stages");
    if (mark.count == mark.made) {
        mark.begin[mark.made] = event_of();
        mark.end[mark.made++] = event_of();
    }
    mark.stage[mark.count] = stage;
    must(cudaEventRecord(mark.begin[mark.count], stream), "event");
    return mark.count++;
}
#define TIMED(member, type, which)                                                                       \
    static svg2_result timed_##member(const svg2_backend *b, const type *d, void *work, svg2_error *err) \
    {                                                                                                    \
        const int at = mark_begin(which);                                                                \
        const svg2_result r = inner.member(b, d, work, err);                                             \
        must(cudaEventRecord(mark.end[at], stream), "event");                                            \
        return r;                                                                                        \
    }
TIMED(kmeans, svg2_kmeans_desc, mark.kmeans_calls++ ? T_KMEANS_K : T_KMEANS_Q)
TIMED(permute, svg2_permute_desc, T_PERMUTE)
TIMED(summarize, svg2_summarize_desc, T_SUMMARIZE)
TIMED(score, svg2_score_desc, T_SCORE)
TIMED(select, svg2_select_desc, T_SELECT)
TIMED(tail, svg2_tail_desc, T_TAIL)
TIMED(attention, svg2_attention_desc, T_ATTENTION)

static svg2_backend timed_backend(svg2_backend plain)
{
    svg2_backend b = inner = plain;
    b.kmeans = timed_kmeans;
    b.permute = timed_permute;
    b.summarize = timed_summarize;
    b.score = timed_score;
    b.select = timed_select;
    b.tail = timed_tail;
    b.attention = timed_attention;
    return b;
}

typedef struct call {
    svg2_desc d;
    svg2_state state;
    void *memory;
    svg2_head_stats *stats;
    row *total, *graph, *stage[T_COUNT];
    cudaGraphExec_t exec;
    int engine, has_stages;
} call;

static void run_call(call *c, const svg2_backend *b, const tensors *t, int32_t step)
{
    svg2_error err;
    check_call(svg2_attend(b, &c->d, &c->state, step, t->q, t->k, t->v, t->out, NULL, c->stats, workspace,
                           workspace_size, &err),
               &err, "svg2_attend");
}

/* flops and least bytes of every stage, when `density` of the pairs is exact */
static void stage_work(const call *c, const tensors *t, double density, double *flops, double *bytes)
{
    const double h = t->s.heads, s = (double)t->tokens, dim = t->s.dim, cq = t->s.cq, ck = t->s.ck,
                 x = 2 * (double)t->elements;
    const int has_tail = c->d.tail != SVG2_TAIL_NONE, order1 = c->d.tail == SVG2_TAIL_ORDER1;
    for (int i = 0; i < T_COUNT; ++i) flops[i] = bytes[i] = 0;
    flops[T_KMEANS_Q] = c->d.step_iterations * 2 * h * s * cq * dim;
    flops[T_KMEANS_K] = c->d.step_iterations * 2 * h * s * ck * dim;
    bytes[T_KMEANS_Q] = bytes[T_KMEANS_K] = c->d.step_iterations * x;
    bytes[T_PERMUTE] = 2 * 8 * h * s;
    bytes[T_SUMMARIZE] = x;
    flops[T_SCORE] = 2 * h * (cq * s + s * ck) * dim;
    bytes[T_SCORE] = 2 * x;
    flops[T_SELECT] = 2 * h * cq * ck * dim;
    bytes[T_SELECT] = 9 * h * cq * ck;
    flops[T_TAIL] = order1 ? 2 * h * (s + cq * ck) * dim * dim : 0;
    bytes[T_TAIL] = order1 ? 2 * x + 4 * h * cq * dim * dim : 0;
    flops[T_ATTENTION] = 4 * h * s * s * density * dim + (has_tail ? 4 * h * s * ck * (1 - density) * dim : 0)
                         + (order1 ? 2 * h * s * dim * dim : 0);
    bytes[T_ATTENTION] = 4 * x + (order1 ? 4 * h * cq * dim * dim : 0);
}

static void bench_calls(const tensors *t, double budget)
{
    enum { MAX_CALLS = 4 };
    call c[MAX_CALLS];
    svg2_error err;
    const int count = got->engine_count > 1 ? 4 : 3; /* the last is the first by the kernels for 8.0 */
    timer time = timer_new();
    size_t most = 0;
    memset(c, 0, sizeof c);
    for (int i = 0; i < count; ++i) {
        svg2_desc *d = &c[i].d;
        c[i].engine = i == 3;
        c[i].has_stages = i == 0 || i == 3;
        d->heads = t->s.heads, d->tokens = (int32_t)t->tokens, d->head_dim = t->s.dim;
        d->q.dtype = d->k.dtype = d->v.dtype = d->out.dtype = SVG2_BF16;
        d->frames = t->s.frames, d->frame_tokens = t->s.height * t->s.width;
        d->query_clusters = t->s.cq, d->key_clusters = t->s.ck;
        d->density = c[i].has_stages ? 0.10f : 0.25f;
        d->tail = i == 2 ? SVG2_TAIL_NONE : SVG2_TAIL_ORDER1;
        check_call(svg2_resolve(d, &err), &err, "svg2_resolve");
        const size_t bytes = svg2_workspace_bytes(&engines[c[i].engine], d);
        if (bytes > most) most = bytes;
        c[i].memory = gpu(svg2_state_bytes(d));
        c[i].stats = (svg2_head_stats *)gpu(sizeof(svg2_head_stats) * (size_t)t->s.heads);
        if (!c[i].memory || !c[i].stats) fatal("bench: not enough memory");
        check_call(svg2_state_init(&c[i].state, d, c[i].memory, svg2_state_bytes(d), &err), &err,
                   "svg2_state_init");
    }
    if (!workspace_need(most)) {
        printf("  no memory for svg2_attend of %s (%.1f GB of workspace)\n", t->s.name, 1e-9 * (double)most);
        return;
    }
    const double begin = now();
    for (int i = 0; i < count; ++i) {
        const svg2_backend plain = engines[c[i].engine];
        svg2_head_stats *stats = (svg2_head_stats *)malloc(sizeof(svg2_head_stats) * (size_t)t->s.heads);
        double density = 0, flops[T_COUNT], bytes[T_COUNT], all_flops = 0;
        char name[64];
        tensors_fill(t, 0);
        run_call(&c[i], &plain, t, 0); /* cold: the clusters are made */
        tensors_fill(t, 0.1);          /* the next denoising step     */
        run_call(&c[i], &plain, t, 1);
        must(cudaStreamSynchronize(stream), "svg2_attend");
        download(stats, c[i].stats, sizeof(svg2_head_stats) * (size_t)t->s.heads);
        for (int h = 0; h < t->s.heads; ++h) density += (double)stats[h].density / t->s.heads;
        free(stats);
        stage_work(&c[i], t, density, flops, bytes);
        for (int s = 0; s < T_COUNT; ++s) all_flops += flops[s];
        snprintf(name, sizeof name, "svg2_attend %.0f %%, %s", 100 * density, i == 2 ? "no tail" : "order 1");
        c[i].total = row_of_engine(row_new(t->s.name, name, all_flops, qkvo_bytes(t), 0), c[i].engine);
        c[i].graph = row_new(t->s.name, "  as a CUDA graph", all_flops, qkvo_bytes(t), 0);
        c[i].graph->engine = c[i].engine;
        c[i].total->dense_ms = c[i].graph->dense_ms = got->dense_ms;
        for (int s = 0; s < T_COUNT && c[i].has_stages; ++s) { /* the parts of one call will do */
            snprintf(name, sizeof name, "  %s", stage_names[s]);
            c[i].stage[s] = row_new(t->s.name, name, flops[s], bytes[s], 0);
            c[i].stage[s]->is_part = 1;
            c[i].stage[s]->engine = c[i].engine;
        }
        cudaGraph_t graph;
        must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
        run_call(&c[i], &plain, t, 2);
        must(cudaStreamEndCapture(stream, &graph), "capture");
        must(cudaGraphInstantiate(&c[i].exec, graph, 0), "graph");
        size_t nodes = 0;
        must(cudaGraphGetNodes(graph, NULL, &nodes), "graph");
        snprintf(c[i].graph->name, sizeof c[i].graph->name, "  as a CUDA graph of %d nodes", (int)nodes);
        cudaGraphDestroy(graph);
    }
    const double setup = now() - begin;
    double round = setup;
    for (int k = 0; k < 11 && left() > 2 * round && (k < 3 || now() - begin - setup < budget); ++k) {
        const double round_begin = now();
        for (int i = 0; i < count; ++i) {
            timer_begin(&time, 300);
            run_call(&c[i], &engines[c[i].engine], t, 2 + k);
            timer_end(&time, c[i].total);
            timer_begin(&time, 10);
            must(cudaGraphLaunch(c[i].exec, stream), "graph");
            timer_end(&time, c[i].graph);
            if (!c[i].has_stages) continue;
            double ms[T_COUNT] = {0};
            const svg2_backend timed = timed_backend(engines[c[i].engine]);
            mark.count = mark.kmeans_calls = 0;
            timer_begin(&time, 300);
            run_call(&c[i], &timed, t, 2 + k);
            timer_end(&time, NULL);
            for (int n = 0; n < mark.count; ++n) ms[mark.stage[n]] += ms_between(mark.begin[n], mark.end[n]);
            for (int s = 0; s < T_COUNT; ++s) {
                row *r = c[i].stage[s];
                if (r->count < MAX_SAMPLES) r->sample[r->count++] = ms[s];
            }
        }
        round = now() - round_begin;
    }
    for (int i = 0; i < count; ++i) {
        cudaGraphExecDestroy(c[i].exec);
        cudaFree(c[i].memory), cudaFree(c[i].stats);
    }
    timer_free(&time);
}

/* ==== >>front ============================================================================ */
/* No flops to speak of: the floor is the copy rate. Afterwards the tensors are no longer what they were. */
static void bench_front(const tensors *t)
{
    enum { WAYS = 4 };
    static const char *const names[WAYS] = {"front, over the token, to [H, S, D]", "front, the same in place",
                                            "front, per head, in place", "front, in place, key mean"};
    const svg2_backend cuda = svg2_cuda_backend(stream);
    const int width = t->s.heads * t->s.dim;
    const size_t floats = (size_t)t->tokens * (size_t)t->s.dim / 2;
    svg2_rope_desc grid = SVG2_ZERO;
    svg2_error err;
    timer time = timer_new();
    row *r[WAYS];
    float *host = (float *)malloc((2 * floats + (size_t)width) * sizeof(float)); /* tables, weights */
    float *table = (float *)gpu((2 * floats + (size_t)width) * sizeof(float)), *weight = table + 2 * floats;
    float *mean = (float *)gpu((size_t)width * sizeof(float));
    grid.frames = t->s.frames, grid.height = t->s.height, grid.width = t->s.width, grid.head_dim = t->s.dim;
    if (!host || !table || !mean) fatal("bench: not enough memory");
    check_call(svg2_rope_table(&grid, host, host + floats, floats, &err), &err, "svg2_rope_table");
    for (int i = 0; i < width; ++i) host[2 * floats + (size_t)i] = 1;
    upload(table, host, (2 * floats + (size_t)width) * sizeof(float));
    free(host);
    for (int way = 0; way < WAYS; ++way) /* q and k in and out, and the angles */
        r[way] = row_new(t->s.name, names[way], 0, 4.0 * 2 * (double)t->elements + 8.0 * (double)floats, 0);
    for (int round = 0; round < 12 && (round < 2 || left() > 5); ++round)
        for (int way = 0; way < WAYS; ++way) {
            svg2_front_desc d;
            memset(&d, 0, sizeof d);
            d.batch = 1, d.heads = t->s.heads, d.tokens = (int32_t)t->tokens, d.head_dim = t->s.dim;
            d.norm = way == 2 ? SVG2_NORM_HEAD : SVG2_NORM_TOKEN;
            d.cosine = table, d.sine = table + floats;
            d.q_weight = d.k_weight = weight;
            d.q_layout.dtype = SVG2_BF16;
            d.q_layout.stride_token = width, d.q_layout.stride_head = t->s.dim;
            d.q_layout.stride_batch = t->elements;
            d.k_layout = d.q_out_layout = d.k_out_layout = d.q_layout;
            d.q = t->q, d.k = t->k, d.q_out = t->q, d.k_out = t->k;
            if (way == 0) {
                memset(&d.q_out_layout, 0, sizeof d.q_out_layout);
                d.q_out_layout.dtype = SVG2_BF16;
                d.k_out_layout = d.q_out_layout;
                d.q_out = t->v, d.k_out = t->out;
            }
            d.key_mean = way == 3 ? mean : NULL;
            const size_t bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_FRONT, &d);
            if (!workspace_need(bytes)) continue;
            timer_begin(&time, 10);
            check_call(svg2_front(&cuda, &d, workspace, bytes, &err), &err, "svg2_front");
            timer_end(&time, round ? r[way] : NULL); /* the first to warm up */
        }
    cudaFree(table), cudaFree(mean);
    timer_free(&time);
}

/* ==== >>report =========================================================================== */
static double least_clock(const row *r)
{
    double least = 0;
    for (int n = 0; n < r->count; ++n)
        if (r->mhz[n] > 0 && (least == 0 || r->mhz[n] < least)) least = r->mhz[n];
    return least;
}

/* Written anew after every part: whatever happens later, this is kept. */
static void write_json()
{
    if (!json_path) return;
    FILE *f = fopen(json_path, "w");
    if (!f) fatal("bench: cannot write %s", json_path);
    fprintf(f, "{\n  \"device\": \"%s\", \"compute_capability\": %d.%d, \"multiprocessors\": %d,\n",
            got->device, got->major, got->minor, got->multiprocessors);
    fprintf(f, "  \"memory_bytes\": %zu, \"l2_bytes\": %d, \"driver\": %d, \"runtime\": %d,\n",
            got->memory_bytes, got->l2_bytes, got->driver, got->runtime);
    fprintf(f, "  \"commit\": \"%s\", \"quick\": %d, \"seconds\": %.1f,\n", SVG2_BENCH_COMMIT, is_quick,
            now() - started);
    fprintf(f, "  \"mma_sync_tflops\": %.1f, \"wgmma_tflops\": %.1f, ", 1e-12 * got->peak_mma,
            1e-12 * got->peak_wgmma);
    fprintf(f, "\"cublas_tflops\": %.1f, ", 1e-12 * got->peak_blas);
    fprintf(f, "\"copy_gbytes_per_s\": %.1f, \"clock_mhz\": %.0f,\n", 1e-9 * got->peak_copy, got->clock_mhz);
    if (got->agreement >= 0) fprintf(f, "  \"full_map_against_dense\": %.3e,\n", got->agreement);
    if (got->one_row_boxes >= 0) fprintf(f, "  \"one_row_boxes\": %d,\n", got->one_row_boxes);
    fprintf(f, "  \"probes\": [");
    for (int i = 0; i < got->probe_count; ++i)
        fprintf(f, "%s\n    {\"name\": \"%s\", \"value\": %.4g, \"unit\": \"%s\"}", i ? "," : "",
                got->probes[i].name, got->probes[i].value, got->probes[i].unit);
    fprintf(f, "\n  ],\n  \"engines\": [");
    for (int i = 0; i < got->engine_count; ++i) {
        fprintf(f, "%s{\"name\": \"%s\"", i ? ", " : "", got->engine[i].name);
        if (got->engine[i].agreement >= 0) fprintf(f, ", \"against_first\": %.3e", got->engine[i].agreement);
        fprintf(f, "}");
    }
    fprintf(f, "],\n");
    fprintf(f, "  \"rows\": [");
    for (int i = 0; i < got->row_count; ++i) {
        const row *r = &got->rows[i];
        fprintf(f, "%s\n    {\"shape\": \"%s\", \"name\": \"%s\", \"engine\": \"%s\", \"is_part\": %d, ",
                i ? "," : "", r->shape, r->name + strspn(r->name, " "), got->engine[r->engine].name,
                r->is_part);
        fprintf(f, "\"ms\": %.4f, \"floor_ms\": %.4f, \"dense_ms\": %.4f, \"mhz\": %.0f, ",
                median(r->sample, r->count), row_floor(r), r->dense_ms, median(r->mhz, r->count));
        fprintf(f, "\"flops\": %.4e, \"executed_flops\": %.4e, \"bytes\": %.4e, \"samples\": [", r->flops,
                r->executed, r->bytes);
        for (int n = 0; n < r->count; ++n) fprintf(f, "%s%.4f", n ? ", " : "", r->sample[n]);
        fprintf(f, "]}");
    }
    fprintf(f, "\n  ]\n}\n");
    fclose(f);
}

static void write_rates()
{
    printf("%s, %d multiprocessors at %.0f MHz: mma.sync %.0f TFLOP/s, ", got->device, got->multiprocessors,
           got->clock_mhz, 1e-12 * got->peak_mma);
    if (got->peak_wgmma > 0) printf("wgmma %.0f TFLOP/s, ", 1e-12 * got->peak_wgmma);
    printf("cuBLAS bf16 8192^3 ");
    if (got->peak_blas > 0) printf("%.0f TFLOP/s", 1e-12 * got->peak_blas);
    else printf("not there");
    printf(", copy %.2f TB/s\n", 1e-12 * got->peak_copy);
    printf("useful, executed: TFLOP/s, without and with the padding of tiles. floor: useful work at the\n"
           "rates above. dense/t: times faster than the dense row. Rows that are indented are parts of the\n"
           "call over them, warm. MHz: the lowest clock right after a sample.\n");
    fflush(stdout);
}

static void write_probes()
{
    printf("\n");
    for (int i = 0; i < got->probe_count; ++i)
        printf("%-62s %9.3g %s\n", got->probes[i].name, got->probes[i].value, got->probes[i].unit);
    if (got->one_row_boxes >= 0)
        printf("TMA boxes of one row at any row of a swizzled tile: %s\n",
               got->one_row_boxes ? "YES, the swizzle goes by the shared address" : "NO");
    fflush(stdout);
}

/* rows [from, got->row_count), under a head of their own if it is a new shape */
static void write_rows(int from)
{
    for (int i = from; i < got->row_count; ++i) {
        const row *r = &got->rows[i];
        const double ms = median(r->sample, r->count), floor = row_floor(r), clock = least_clock(r);
        if (i == 0 || strcmp(got->rows[i - 1].shape, r->shape) != 0)
            printf("\n%-44s %9s %9s %7s %8s %8s %7s %5s\n", r->shape, "ms", "floor ms", "floor/t", "useful",
                   "executed", "dense/t", "MHz");
        if (r->count == 0) {
            printf("%-44s %9s\n", r->name, "-");
            continue;
        }
        printf("%-44s %9.3f %9.3f %6.0f%%", r->name, ms, floor, ms > 0 ? 100 * floor / ms : 0);
        if (r->flops > 0 && ms > 0) printf(" %8.1f", 1e-9 * r->flops / ms);
        else printf(" %8s", "");
        if (r->executed > 0) printf(" %8.1f", 1e-9 * r->executed / ms);
        else printf(" %8s", "");
        if (r->dense_ms > 0) printf(" %7.2f", r->dense_ms / ms);
        else printf(" %7s", "");
        if (clock > 0) printf(" %5.0f", clock);
        printf("\n");
    }
    fflush(stdout);
}

/* ==== >>parts ============================================================================ */
enum { PART_RATES, PART_COPIES, PART_ATTENTION, PART_CALLS };

/* in a process of its own; the exit code */
static int part_run(int part, shape s, double budget)
{
    int count = 0;
    svg2_error err;
    tensors t;
    const cudaError_t e = cudaGetDeviceCount(&count);
    if (e != cudaSuccess || count == 0) {
        fprintf(stderr, "bench: no GPU: %s\n", e == cudaSuccess ? "none is visible" : cudaGetErrorString(e));
        return 2;
    }
    if (svg2_cuda_check(&err) != SVG2_OK) {
        fprintf(stderr, "bench: the GPU %s\n", err.text);
        return 2;
    }
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    must(cudaGetDeviceProperties(&device, 0), "device");
    if (part == PART_RATES) {
        snprintf(got->device, sizeof got->device, "%s", device.name);
        got->major = device.major, got->minor = device.minor;
        got->multiprocessors = device.multiProcessorCount;
        got->memory_bytes = device.totalGlobalMem, got->l2_bytes = device.l2CacheSize;
        cudaDriverGetVersion(&got->driver);
        cudaRuntimeGetVersion(&got->runtime);
        measure_blas();
        measure_copy();
        measure_mma();
        if (has_hopper()) measure_wgmma();
        /* Floors are by cuBLAS: the same operands over and over make no matmul. */
        got->peak_flops = got->peak_blas > 0 ? got->peak_blas : got->peak_wgmma;
        if (got->peak_mma > got->peak_flops) got->peak_flops = got->peak_mma;
        return 0;
    }
    if (part == PART_COPIES) {
        measure_copies();
        return 0;
    }
    engines_open();
    memset(&t, 0, sizeof t);
    if (!tensors_new(&t, s)) fatal("bench: %s: not enough memory", s.name);
    tensors_fill(&t, 0);
    if (part == PART_ATTENTION) bench_attention(&t, budget);
    else bench_calls(&t, budget), bench_front(&t);
    tensors_free(&t);
    return 0;
}

/* exit code of the part; 1 also if it was killed. It may run limit seconds. */
static int part_do(int part, shape s, double budget, double limit)
{
    static const char *const names[] = {"rates", "copies", "attention", "calls"};
    const char *const of = s.name ? s.name : "this GPU";
    const double begin = now();
    int status = 0;
    fflush(stdout);
    const pid_t child = fork();
    if (child < 0) fatal("bench: fork failed");
    if (child == 0) {
        is_part = 1;
        alarm((unsigned)(limit < 1 ? 1 : limit));
        const int code = part_run(part, s, budget);
        fflush(NULL);
        _exit(code);
    }
    if (waitpid(child, &status, 0) != child) fatal("bench: waitpid failed");
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    if (code == 0)
        fprintf(stderr, "bench: %s: %s: %.1f s, %.0f s left\n", of, names[part], now() - begin, left());
    else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        printf("FAILED: %s, %s: out of time after %.0f s\n", of, names[part], now() - begin);
    else if (WIFSIGNALED(status))
        printf("FAILED: %s, %s: signal %d\n", of, names[part], WTERMSIG(status));
    else if (code != 2)
        printf("FAILED: %s, %s: exit code %d, see the error output\n", of, names[part], code);
    return code;
}

static const char usage[] = "bench [--quick] [--seconds N] [--shape SHAPE] [--json FILE] "
                            "[--variant LIBRARY]...\n"
                            "SHAPE: 0 .. 3, or frames,height,width,heads,dim,query clusters,key clusters";

/* "1,10,16,2,64,4,11" */
static int shape_parse(const char *text, shape *s)
{
    static char name[48];
    char end;
    if (sscanf(text, "%d,%d,%d,%d,%d,%d,%d%c", &s->frames, &s->height, &s->width, &s->heads, &s->dim, &s->cq,
               &s->ck, &end)
        != 7)
        return 0;
    const double tokens = (double)s->frames * s->height * s->width;
    if (s->frames < 1 || s->height < 1 || s->width < 1 || s->heads < 1 || s->heads > 1024 || s->dim < 8
        || s->dim > 256 || s->dim % 8 || s->cq < 1 || s->ck < 1 || tokens > 1 << 24 || s->cq > tokens
        || s->ck > tokens)
        return 0;
    snprintf(name, sizeof name, "%.0f x %d x %d, %d/%d", tokens, s->heads, s->dim, s->cq, s->ck);
    s->name = name;
    return 1;
}

int main(int argc, char **argv)
{
    shape own = {};
    int failures = 0;
    started = now();
    for (int i = 1; i < argc; ++i) {
        if (strcmp(argv[i], "--quick") == 0) is_quick = 1;
        else if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc) seconds = atof(argv[++i]);
        else if (strcmp(argv[i], "--json") == 0 && i + 1 < argc) json_path = argv[++i];
        else if (strcmp(argv[i], "--variant") == 0 && i + 1 < argc && variant_count < MAX_ENGINES)
            variants[variant_count++] = argv[++i];
        else if (strcmp(argv[i], "--shape") == 0 && i + 1 < argc) {
            const char *text = argv[++i];
            if (!strchr(text, ',')) only_shape = atoi(text);
            if (strchr(text, ',') ? !shape_parse(text, &own) : only_shape < 0 || only_shape >= SHAPES)
                fatal(usage);
        } else fatal(usage);
    }
    void *shared = mmap(NULL, sizeof *got, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED) fatal("bench: out of memory");
    got = (struct results *)shared;
    got->agreement = got->one_row_boxes = -1;
    for (int i = 0; i < MAX_ENGINES; ++i) got->engine[i].agreement = -1;
    const shape none = {};
    const int code = part_do(PART_RATES, none, 0, 60);
    if (code == 2) return 2;
    if (got->peak_flops == 0 || got->peak_copy == 0) return 1;
    failures += code != 0;
    write_rates();
    failures += part_do(PART_COPIES, none, 0, 40) != 0;
    write_probes();
    write_json();
    int first = 0, last = SHAPES;
    if (own.name) last = 1;
    else if (only_shape >= 0) first = only_shape, last = first + 1;
    for (int i = first; i < last; ++i) {
        shape s = own.name ? own : shapes[i];
        if (is_quick) s.frames = (s.frames + 9) / 10;
        got->dense_ms = 0;
        for (int part = PART_ATTENTION; part <= PART_CALLS; ++part) {
            const double share = left() / (2 * (last - i) - (part == PART_CALLS));
            const int from = got->row_count;
            if (left() < 10) {
                printf("%s, %s: no time left\n", s.name, part == PART_CALLS ? "calls" : "attention");
                continue;
            }
            const int failed = part_do(part, s, 0.7 * share, 2 * share > left() ? left() : 2 * share);
            failures += failed != 0;
            write_rows(from);
            write_json();
        }
    }
    printf("\n");
    if (got->agreement >= 0)
        printf("dense attention and the same over a full map of clusters differ by %.1e (relative L2)\n",
               got->agreement);
    if (!(got->agreement <= 0.01)) {
        printf("FAILED: that is too much\n");
        ++failures;
    }
    for (int i = 1; i < got->engine_count; ++i) {
        const double x = got->engine[i].agreement;
        printf("%s and what is used otherwise differ by %.1e over a map\n", got->engine[i].name, x);
        if (x >= 0 && x <= 0.01) continue;
        printf("FAILED: that is too much\n");
        ++failures;
    }
    return failures != 0;
}
