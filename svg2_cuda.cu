/* svg2_cuda.cu - the stages of svg2.h on NVIDIA GPUs of compute capability 8.0 and newer - MIT licence

   Add it to a build that has svg2.h implemented somewhere, link, and pass svg2_cuda_backend(stream) where
   svg2_cpu_backend() was; every pointer of a call is then device memory:

       nvcc -std=c++17 -O3 -gencode arch=compute_80,code=sm_80 -gencode arch=compute_80,code=compute_80 \
           -gencode arch=compute_90a,code=sm_90a -c svg2_cuda.cu

   That is for devices of 8.x, of 9.0, and by PTX for newer ones; for 9.0 alone the last -gencode will do.
   There the kernels for wgmma are in code for sm_90a only, not in that for sm_90. CUDA Toolkit 12.0 or newer.
   Nothing here allocates, synchronises, or reads device data on the host: a call is a fixed sequence of
   launches, so it can be captured in a CUDA graph and replayed on new contents of the same buffers. Results
   have the same bits from run to run on one device: sums of floats go in a fixed order, atomics work on
   integers only.

TABLE OF CONTENTS   (the tags are those of svg2.h)
  >>base        launching, errors, carving workspaces
  >>ptx         device operations: one instruction each
  >>common      loads of any dtype, tiles in shared memory, reductions
  >>kmeans      assignment, update, seeding
  >>permute     counting sort
  >>score       statistics of key clusters, log mass, share
  >>select      which blocks are computed exactly
  >>tail        matrices of the order-1 tail
  >>attention   packing of keys and values, attention over a block map, merging
  >>mass        exact attention mass of every block
  >>tiles       blocks of neighbouring tokens: where they lie, bands of them, choosing them by exact mass
  >>profile     spatial or temporal: sampled rows under both bands
  >>front       RMSNorm of queries and keys and rotary positions, in one pass
  >>pipeline    the backend

   Arithmetic. Products run on the tensor cores with 16-bit operands and f32 accumulation: f16 if k and v are
   f16, else bf16. 16-bit inputs of that type enter unchanged. f32 inputs are rounded, keys after removal of
   their mean. Softmax, statistics, selection and centroids are f32 (sums of many terms f64). */
#include "svg2.h"

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <string.h>

/* ==== >>base ============================================================================= */
/* Deliberate faults, to see that the tests find them (tests/emu/faults.txt); 0 in any real build. */
#ifndef SVG2_FAULT
#  define SVG2_FAULT 0
#endif
#define SVG2__FAULT(number) (SVG2_FAULT == (number))

namespace svg2__cuda {

enum {
    ALIGN = 256,          /* of workspaces and state memory, bytes                                 */
    WARP = 32,
    MAX_DIM = 256
};

static inline size_t mul(size_t a, size_t b)
{
    return (a && b > SIZE_MAX / a) ? SIZE_MAX : a * b;
}

static inline size_t add(size_t a, size_t b)
{
    return b > SIZE_MAX - a ? SIZE_MAX : a + b;
}

/* Product of extents as a count, saturating. Extents are not negative. */
static inline size_t count_of(int64_t a, int64_t b = 1, int64_t c = 1, int64_t d = 1)
{
    return mul(mul((size_t)a, (size_t)b), mul((size_t)c, (size_t)d));
}

/* Carves a workspace. With base = NULL it only counts, so the function that lays out memory also tells its
   size. */
struct arena {
    char  *base;
    size_t used;

    template <class T> T *take(size_t count)
    {
        const size_t at = used, bytes = mul(sizeof(T), count);
        used = add(at, bytes > SIZE_MAX - (ALIGN - 1) ? SIZE_MAX : (bytes + ALIGN - 1) / ALIGN * ALIGN);
        return base ? (T *)(void *)(base + at) : NULL;
    }
};

static svg2_result set_error(svg2_error *err, svg2_result code, const char *field, const char *text,
                             cudaError_t cuda)
{
    if (err) {
        err->code = code;
        err->field = field;
        err->text = text;
        err->cuda = (int32_t)cuda;
    }
    return code;
}

static svg2_result ok(svg2_error *err)
{
    return set_error(err, SVG2_OK, "", svg2_result_string(SVG2_OK), cudaSuccess);
}

/* field: the kernel or call that failed */
static svg2_result cuda_failed(svg2_error *err, cudaError_t cuda, const char *field)
{
    return set_error(err, SVG2_ERR_BACKEND, field, cudaGetErrorString(cuda), cuda);
}

#define SVG2__CUDA(call, field)                                                  \
    do {                                                                         \
        const cudaError_t svg2__e = (call);                                      \
        if (svg2__e != cudaSuccess) return svg2__cuda::cuda_failed(err, svg2__e, field); \
    } while (0)

static inline cudaStream_t stream_of(const svg2_backend *backend)
{
    return (cudaStream_t)backend->user;
}

/* Launch on the backend's stream, in clusters of so many blocks along x. The return value is that of the
   launch alone: errors of the caller's earlier work stay where they are. Nothing to do (an empty grid) is no
   error. */
template <class... P, class... A>
static svg2_result launch_clusters(const svg2_backend *backend, svg2_error *err, const char *name,
                                   void (*kernel)(P...), unsigned cluster, dim3 grid, unsigned threads,
                                   size_t smem_bytes, A... args)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute = {};
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return SVG2_OK;
    if (cluster > 1) {
        attribute.id = cudaLaunchAttributeClusterDimension;
        attribute.val.clusterDim.x = cluster;
        attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
        config.attrs = &attribute;
        config.numAttrs = 1;
    }
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = smem_bytes;
    config.stream = stream_of(backend);
    if (smem_bytes > 48 * 1024)
        SVG2__CUDA(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        (int)smem_bytes),
                   name);
    SVG2__CUDA(cudaLaunchKernelEx(&config, kernel, (P)args...), name);
    return SVG2_OK;
}
template <class... P, class... A>
static svg2_result launch(const svg2_backend *backend, svg2_error *err, const char *name,
                          void (*kernel)(P...), dim3 grid, unsigned threads, size_t smem_bytes, A... args)
{
    return launch_clusters(backend, err, name, kernel, 1, grid, threads, smem_bytes, args...);
}

/* Grids have 2^31 - 1 blocks in x. Work items are counted in 64 bits and folded by grid-stride loops where
   more are possible. */
static inline unsigned grid_of(int64_t items)
{
    return (unsigned)(items > 0x7fffffff ? 0x7fffffff : items);
}

/* One block per item instead of a loop: beyond 2^30 they go on in y. Kernels ask item_index, and leave behind
   the last. */
static inline dim3 grid_items(int64_t items)
{
    const int64_t row = (int64_t)1 << 30;
    return items <= row ? dim3((unsigned)items) : dim3((unsigned)row, (unsigned)((items + row - 1) / row));
}

#define SVG2__RUN(call)                                \
    do {                                               \
        const svg2_result svg2__r = (call);            \
        if (svg2__r != SVG2_OK) return svg2__r;        \
    } while (0)

/* ---- tensors ---- */
static inline size_t dtype_bytes(svg2_dtype dtype)
{
    return dtype == SVG2_F32 ? 4u : 2u;
}

/* A [B, H, S, D] tensor as kernels see it. */
struct tensor {
    const void *data;
    int64_t     stride_batch, stride_head, stride_token; /* elements */
    int32_t     dtype, is_vector; /* is_vector: every row is aligned to 16 bytes: 8 elements at a time  */
};

static tensor tensor_of(const void *data, svg2_layout l, int32_t heads, int32_t tokens, int32_t dim)
{
    tensor t;
    const size_t unit = dtype_bytes(l.dtype);
    if (l.stride_batch == 0 && l.stride_head == 0 && l.stride_token == 0) {
        l.stride_token = dim;
        l.stride_head = (int64_t)tokens * dim;
        l.stride_batch = l.stride_head * heads;
    }
    t.data = data;
    t.stride_batch = l.stride_batch;
    t.stride_head = l.stride_head;
    t.stride_token = l.stride_token;
    t.dtype = l.dtype;
    t.is_vector = (((uintptr_t)data | (uintptr_t)((size_t)l.stride_batch * unit)
                    | (uintptr_t)((size_t)l.stride_head * unit) | (uintptr_t)((size_t)l.stride_token * unit))
                   % 16)
                  == 0;
    return t;
}

} /* namespace svg2__cuda */

/* ==== >>ptx ==============================================================================
   All PTX of the file, one instruction a function, named by the section of the PTX ISA. A build that brings
   its own (the emulation in tests/emu) defines SVG2_DEVICE_OPS_PROVIDED. */
#ifndef SVG2_DEVICE_OPS_PROVIDED
#define SVG2_DYN_SMEM(name, align) extern __shared__ __align__(align) unsigned char name[]
#define SVG2__OP [[maybe_unused]] static __device__ __forceinline__

/* generic address -> address in the shared window */
SVG2__OP uint32_t svg2__smem(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* 2^x; 9.7.3 ex2 */
SVG2__OP float svg2__exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 16 bytes global -> shared, of which src_bytes are read and the others set to 0; 9.7.9.25 cp.async */
SVG2__OP void svg2__cp_async16(uint32_t dst, const void *src, int src_bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(src_bytes)
                 : "memory");
}
SVG2__OP void svg2__cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* until at most N groups of this thread are under way */
template <int N> SVG2__OP void svg2__cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

/* four 8x8 matrices of 16-bit elements; lanes 8m..8m+7 address the rows of matrix m; 9.7.14 ldmatrix */
SVG2__OP void svg2__ldmatrix_x4(uint32_t (&r)[4], uint32_t a)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}
SVG2__OP void svg2__ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t a)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a) : "memory");
}

/* d (16x8, f32) += a (16x16) b (16x8); 9.7.14 mma.m16n8k16 */
SVG2__OP void svg2__mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                 __nv_bfloat16)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
SVG2__OP void svg2__mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* x, which the compiler then takes for a value that it has not seen: what is made from it inside a loop is
   made there, and not held in registers all the time. No instruction. */
SVG2__OP int svg2__fresh(int x)
{
    asm volatile("" : "+r"(x));
    return x;
}
/* ---- Hopper ----
   For sm_90a alone, not even for sm_90: in code for anything else the kernels that use these are a __trap. The
   host's pass has to know them, too. */
#if (defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)) && CUDART_VERSION >= 12000
#  define SVG2__SM90A 1
#else
#  define SVG2__SM90A 0
#endif
#if SVG2__SM90A
/* mbarriers, 8 bytes in shared memory; 9.7.13.15. A phase ends when `count` arrivals and all announced bytes
   are there. */
SVG2__OP void svg2__mbar_init(uint32_t bar, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
SVG2__OP void svg2__mbar_arrive(uint32_t bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
/* one arrival, and bytes that copies will bring */
SVG2__OP void svg2__mbar_arrive_expect(uint32_t bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
/* not 0 once the phase of that parity is over; waits for a while, not for ever */
SVG2__OP uint32_t svg2__mbar_try_wait(uint32_t bar, uint32_t parity)
{
    uint32_t is_over;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                 : "=r"(is_over) : "r"(bar), "r"(parity) : "memory");
    return is_over;
}
/* an arrival, one of those of mbarrier.init, when all cp.async of this thread so far are done; 9.7.13.15.17 */
SVG2__OP void svg2__cp_async_mbar_arrive(uint32_t bar)
{
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(bar) : "memory");
}
/* mbarrier.init before all others and the copy engine; 9.7.13.4 */
SVG2__OP void svg2__fence_mbar_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
/* this thread's accesses to shared memory, and those it has seen, before what wgmma and the copy engine do
   there afterwards; 9.7.13.4 */
SVG2__OP void svg2__fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
/* barrier `id` (1 to 15; 0 is __syncthreads) of `threads` threads; 9.7.13.1 */
SVG2__OP void svg2__bar_sync(int id, int threads)
{
    asm volatile("barrier.sync.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/* counted there, without waiting */
SVG2__OP void svg2__bar_arrive(int id, int threads)
{
    asm volatile("barrier.arrive.aligned %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/* a box at column x, row y of a 2D tensor map -> shared; rows beyond the tensor are 0, and count; 9.7.9.27 */
SVG2__OP void svg2__tma_load_2d(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x, int y)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];"
                 ::"r"(dst), "l"(map), "r"(bar), "r"(x), "r"(y) : "memory");
}
/* the same of a 4D one: column, row, and which matrix */
SVG2__OP void svg2__tma_load_4d(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x, int y, int z,
                                int w)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4, %5, %6}], [%2];"
                 ::"r"(dst), "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}
/* The same to this place of all blocks of the cluster whose bit is set; each one's own barrier there counts
   the bytes. */
SVG2__OP void svg2__tma_load_4d_multicast(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x, int y,
                                          int z, int w, uint16_t blocks)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes."
                 "multicast::cluster [%0], [%1, {%3, %4, %5, %6}], [%2], %7;"
                 ::"r"(dst), "l"(map), "r"(bar), "r"(x), "r"(y), "r"(z), "r"(w), "h"(blocks) : "memory");
}
/* ---- clusters: blocks that run at the same time and reach each other's shared memory ---- */
/* of this block in its cluster */
SVG2__OP uint32_t svg2__cluster_rank()
{
    uint32_t rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank)); /* read anew, not held in a register */
    return rank;
}
/* the address, for operations on a cluster, of the same place in the block of that rank; 9.7.9.23 */
SVG2__OP uint32_t svg2__mapa(uint32_t address, uint32_t rank)
{
    uint32_t there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
    return there;
}
/* All threads of the cluster that have not ended: what one did before it arrives the others see after their
   wait. 9.7.13.3 */
SVG2__OP void svg2__cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
SVG2__OP void svg2__cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
/* an arrival at an mbarrier of any block of the cluster, by its address from mapa; who waits there sees what
   was before if it waits at cluster scope, too */
SVG2__OP void svg2__mbar_arrive_remote(uint32_t bar)
{
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}
SVG2__OP uint32_t svg2__mbar_try_wait_cluster(uint32_t bar, uint32_t parity)
{
    uint32_t is_over;
    asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; "
                 "selp.u32 %0, 1, 0, p; }"
                 : "=r"(is_over) : "r"(bar), "r"(parity) : "memory");
    return is_over;
}
/* 16 bytes to shared memory of any block of the cluster, by its address from mapa; 9.7.9.11 */
SVG2__OP void svg2__store_remote(uint32_t dst, int x, int y, int z, int w)
{
    asm volatile("st.shared::cluster.v4.b32 [%0], {%1, %2, %3, %4};"
                 ::"r"(dst), "r"(x), "r"(y), "r"(z), "r"(w) : "memory");
}
SVG2__OP void svg2__prefetch_map(const CUtensorMap *map)
{
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
/* registers of each thread of the warpgroup, from now on; 9.7.19.5 setmaxnreg */
template <int N> SVG2__OP void svg2__registers_more()
{
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N) : "memory");
}
template <int N> SVG2__OP void svg2__registers_less()
{
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N) : "memory");
}

/* Registers before the first wgmma, and after the last one that was waited for; 9.7.15.7 */
SVG2__OP void svg2__wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
SVG2__OP void svg2__wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/* until at most N groups of this warpgroup are under way */
template <int N> SVG2__OP void svg2__wgmma_wait()
{
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
/* accumulators that the compiler must not move past here; no instruction */
template <int COUNT> SVG2__OP void svg2__wgmma_hold(float (&d)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");
}
/* the same for fragments of a that are in registers */
template <int COUNT> SVG2__OP void svg2__wgmma_hold(uint32_t (&a)[COUNT][4])
{
#pragma unroll
    for (int i = 0; i < 4 * COUNT; ++i) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

/* d (64 x 2*COUNT, f32) = [d +] a b; 9.7.15.5 wgmma.mma_async.m64nNk16.
   a: 64 x 16, descriptor of rows along k in shared memory (_ss), or the fragment of mma.m16n8k16 for the 16 rows
   of the warp (_rs). b: descriptor of 16 x 2*COUNT; IS_ROWS 0: it lies along k (K in Q K^T), 1: along n (V in
   P V). */
#define SVG2__S10(t) \
    "%" #t "0, %" #t "1, %" #t "2, %" #t "3, %" #t "4, %" #t "5, %" #t "6, %" #t "7, %" #t "8, %" #t "9"
#define SVG2__D8(d, i) \
    "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]),                \
        "+f"(d[i + 6]), "+f"(d[i + 7])
#define SVG2__D32(d, i) SVG2__D8(d, i), SVG2__D8(d, i + 8), SVG2__D8(d, i + 16), SVG2__D8(d, i + 24)
/* lists of COUNT registers: in the text, and as operands */
#define SVG2__R32 SVG2__S10() ", " SVG2__S10(1) ", " SVG2__S10(2) ", %30, %31"
#define SVG2__R40 SVG2__S10() ", " SVG2__S10(1) ", " SVG2__S10(2) ", " SVG2__S10(3)
#define SVG2__R48 SVG2__R40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define SVG2__R64 SVG2__R40 ", " SVG2__S10(4) ", " SVG2__S10(5) ", %60, %61, %62, %63"
#define SVG2__R80 SVG2__R40 ", " SVG2__S10(4) ", " SVG2__S10(5) ", " SVG2__S10(6) ", " SVG2__S10(7)
#define SVG2__R88 SVG2__R80 ", %80, %81, %82, %83, %84, %85, %86, %87"
#define SVG2__R128 \
    SVG2__R80 ", " SVG2__S10(8) ", " SVG2__S10(9) ", " SVG2__S10(10) ", " SVG2__S10(11) \
        ", %120, %121, %122, %123, %124, %125, %126, %127"
#define SVG2__O32 SVG2__D32(d, 0)
#define SVG2__O40 SVG2__D32(d, 0), SVG2__D8(d, 32)
#define SVG2__O48 SVG2__O40, SVG2__D8(d, 40)
#define SVG2__O64 SVG2__D32(d, 0), SVG2__D32(d, 32)
#define SVG2__O88 SVG2__O64, SVG2__D8(d, 64), SVG2__D8(d, 72), SVG2__D8(d, 80)
#define SVG2__O128 SVG2__O64, SVG2__D32(d, 64), SVG2__D32(d, 96)
/* I0 to I6: the numbers of the operands behind d */
#define SVG2__WGMMA(COUNT, WIDTH, TYPE, NAME, I0, I1, I2, I3, I4, I5, I6)                                    \
    template <int IS_ROWS>                                                                                   \
    SVG2__OP void svg2__wgmma_ss(float (&d)[COUNT], uint64_t a, uint64_t b, int is_added, TYPE)              \
    {                                                                                                        \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #I2 ", 0; wgmma.mma_async.sync.aligned.m64n" #WIDTH  \
                     "k16.f32." NAME "." NAME " {" SVG2__R##COUNT "}, %" #I0 ", %" #I1                       \
                     ", p, 1, 1, 0, %" #I3 "; }"                                                             \
                     : SVG2__O##COUNT : "l"(a), "l"(b), "r"(is_added), "n"(IS_ROWS) : "memory");             \
    }                                                                                                        \
    template <int IS_ROWS>                                                                                   \
    SVG2__OP void svg2__wgmma_rs(float (&d)[COUNT], const uint32_t (&a)[4], uint64_t b, int is_added, TYPE)  \
    {                                                                                                        \
        asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #I5 ", 0; wgmma.mma_async.sync.aligned.m64n" #WIDTH  \
                     "k16.f32." NAME "." NAME " {" SVG2__R##COUNT "}, {%" #I0 ", %" #I1 ", %" #I2 ", %" #I3  \
                     "}, %" #I4 ", p, 1, 1, %" #I6 "; }"                                                     \
                     : SVG2__O##COUNT                                                                        \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(is_added), "n"(IS_ROWS)       \
                     : "memory");                                                                            \
    }
#define SVG2__WGMMA_TYPES(COUNT, WIDTH, I0, I1, I2, I3, I4, I5, I6)                       \
    SVG2__WGMMA(COUNT, WIDTH, __nv_bfloat16, "bf16", I0, I1, I2, I3, I4, I5, I6)          \
    SVG2__WGMMA(COUNT, WIDTH, __half, "f16", I0, I1, I2, I3, I4, I5, I6)
SVG2__WGMMA_TYPES(32, 64, 32, 33, 34, 35, 36, 37, 38)
SVG2__WGMMA_TYPES(40, 80, 40, 41, 42, 43, 44, 45, 46)
SVG2__WGMMA_TYPES(48, 96, 48, 49, 50, 51, 52, 53, 54)
SVG2__WGMMA_TYPES(64, 128, 64, 65, 66, 67, 68, 69, 70)
SVG2__WGMMA_TYPES(88, 176, 88, 89, 90, 91, 92, 93, 94)
SVG2__WGMMA_TYPES(128, 256, 128, 129, 130, 131, 132, 133, 134)
#endif /* SVG2__SM90A */

/* Whether the code that this device runs is that for sm_90a: sm_90 and sm_90a are one to the host, but not the
   largest block of threads that this kernel may have. */
static __global__ void __launch_bounds__(SVG2__SM90A ? 64 : 32) svg2__sm90a_mark() {}
static inline cudaError_t svg2__has_sm90a(bool *is_there)
{
    cudaFuncAttributes of = {};
    const cudaError_t e = cudaFuncGetAttributes(&of, (const void *)svg2__sm90a_mark);
    *is_there = e == cudaSuccess && of.maxThreadsPerBlock == 64;
    return e;
}
#endif /* SVG2_DEVICE_OPS_PROVIDED */

/* ==== >>common =========================================================================== */
namespace svg2__cuda {

#define SVG2__DEVICE static __device__ __forceinline__

/* Whether a call takes the kernels for wgmma. */
static svg2_result takes_wgmma(const svg2_backend *backend, bool *is_wgmma, svg2_error *err)
{
    int device = 0, major = 0, minor = 0;
    *is_wgmma = false;
    if (backend->arch != 0 && backend->arch != 80 && backend->arch != 90)
        return set_error(err, SVG2_ERR_BACKEND, "arch", "must be 0, 80 or 90", cudaSuccess);
    if (backend->arch == 80) return SVG2_OK;
    SVG2__CUDA(cudaGetDevice(&device), "device");
    SVG2__CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
    SVG2__CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device");
    if (major == 9 && minor == 0) SVG2__CUDA(svg2__has_sm90a(is_wgmma), "device");
    if (backend->arch == 90 && !*is_wgmma)
        return set_error(err, SVG2_ERR_BACKEND, "arch",
                         "90 needs a device of compute capability 9.0 and code for sm_90a", cudaSuccess);
    return SVG2_OK;
}

/* the item of this block in a grid of grid_items */
SVG2__DEVICE int64_t item_index() { return (int64_t)blockIdx.y * gridDim.x + blockIdx.x; }

/* ---- 16-bit types ---- */
SVG2__DEVICE __nv_bfloat16 round_to(float x, __nv_bfloat16) { return __float2bfloat16_rn(x); }
SVG2__DEVICE __half round_to(float x, __half) { return __float2half_rn(x); }
SVG2__DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
SVG2__DEVICE float to_float(__half x) { return __half2float(x); }
SVG2__DEVICE int32_t dtype_of(__nv_bfloat16) { return SVG2_BF16; }
SVG2__DEVICE int32_t dtype_of(__half) { return SVG2_F16; }

/* two values as the lower and upper half of a register */
SVG2__DEVICE uint32_t pack2(float lo, float hi, __nv_bfloat16)
{
    const __nv_bfloat162 v = __floats2bfloat162_rn(lo, hi);
    uint32_t u;
    memcpy(&u, &v, 4);
    return u;
}
SVG2__DEVICE uint32_t pack2(float lo, float hi, __half)
{
    const __half2 v = __floats2half2_rn(lo, hi);
    uint32_t u;
    memcpy(&u, &v, 4);
    return u;
}

/* ---- rows of a tensor ---- */
SVG2__DEVICE int64_t row_at(const tensor &t, int64_t batch, int64_t head, int64_t token)
{
    return batch * t.stride_batch + head * t.stride_head + token * t.stride_token;
}

/* elements [e, e + 8) of the row that begins at element `row` */
SVG2__DEVICE void load8(float (&x)[8], const tensor &t, int64_t row, int e)
{
    if (t.dtype == SVG2_F32) {
        const float *p = (const float *)t.data + row + e;
        if (t.is_vector) {
            const float4 a = *(const float4 *)(const void *)p, b = *(const float4 *)(const void *)(p + 4);
            x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
        } else {
            for (int i = 0; i < 8; ++i) x[i] = p[i];
        }
        return;
    }
    const uint16_t *p = (const uint16_t *)t.data + row + e;
    uint16_t h[8];
    if (t.is_vector) {
        const uint4 v = *(const uint4 *)(const void *)p;
        memcpy(h, &v, 16);
    } else {
        for (int i = 0; i < 8; ++i) h[i] = p[i];
    }
    for (int i = 0; i < 8; ++i) {
        if (t.dtype == SVG2_BF16) {
            x[i] = __uint_as_float((uint32_t)h[i] << 16);
        } else {
            __half_raw raw;
            raw.x = h[i];
            x[i] = __half2float(__half(raw));
        }
    }
}

/* The same, where E, the type of the elements, is known: raw first, numbers later, so that the loads of
   several rows are under way at once. load8 looks at the type between load and use, and waits for every
   load. */
template <class E> struct raw8 {
    uint4 v[sizeof(E) / 2];
};

template <class E, bool IS_VECTOR>
SVG2__DEVICE void load_raw8(raw8<E> &raw, const tensor &t, int64_t row, int e)
{
    const E *p = (const E *)t.data + row + e;
    if (IS_VECTOR) {
#pragma unroll
        for (int i = 0; i < (int)(sizeof(E) / 2); ++i) raw.v[i] = ((const uint4 *)(const void *)p)[i];
    } else {
        E x[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = p[i];
        memcpy(&raw, x, sizeof raw);
    }
}

SVG2__DEVICE void unpack2(float &lo, float &hi, uint32_t u, __nv_bfloat16)
{
    lo = __uint_as_float(u << 16);
    hi = __uint_as_float(u & 0xffff0000u);
}
SVG2__DEVICE void unpack2(float &lo, float &hi, uint32_t u, __half)
{
    __half2 h;
    memcpy((void *)&h, &u, 4);
    const float2 f = __half22float2(h);
    lo = f.x;
    hi = f.y;
}
template <class E> SVG2__DEVICE void numbers(float (&x)[8], const raw8<E> &raw)
{
    const uint32_t w[4] = {raw.v[0].x, raw.v[0].y, raw.v[0].z, raw.v[0].w};
#pragma unroll
    for (int i = 0; i < 4; ++i) unpack2(x[2 * i], x[2 * i + 1], w[i], E());
}
SVG2__DEVICE void numbers(float (&x)[8], const raw8<float> &raw)
{
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        x[4 * i] = __uint_as_float(raw.v[i].x);
        x[4 * i + 1] = __uint_as_float(raw.v[i].y);
        x[4 * i + 2] = __uint_as_float(raw.v[i].z);
        x[4 * i + 3] = __uint_as_float(raw.v[i].w);
    }
}

/* ---- a tile of 16-bit rows in shared memory ----
   Rows of DIM elements (a multiple of 32), no padding; the 16-byte chunks of a row are permuted within groups
   of 8 (of 4 where DIM is no multiple of 64) by the row number, so that the 8 rows of a matrix of ldmatrix
   lie in different banks. */
template <int DIM> SVG2__DEVICE uint32_t tile_at(int row, int chunk)
{
    static_assert(DIM % 32 == 0, "tiles have rows of whole groups of chunks");
    if (DIM % 64 == 0) return (uint32_t)(row * DIM * 2 + ((chunk ^ (row & 7)) << 4));
    return (uint32_t)(row * DIM * 2 + ((chunk ^ (row >> 1 & 3)) << 4));
}

/* The matrix descriptor of 16 columns, along k, of a tile_at<DIM> tile in shared memory: DIM = 64 (rows of
   128 bytes) at a multiple of 1024, or 32 (of 64 bytes) at one of 512. The next 16 columns begin 32 bytes on.
   9.7.15.5.1.2.2 */
template <int DIM> SVG2__DEVICE uint64_t tile_desc(uint32_t at)
{
    static_assert(DIM == 64 || DIM == 32, "the swizzles of 128 and of 64 bytes");
    return (uint64_t)((at & 0x3ffffu) >> 4) | (uint64_t)1 << 16 | (uint64_t)DIM << 32
         | (uint64_t)(DIM == 64 ? 1 : 2) << 62;
}

/* ---- reductions ---- */
SVG2__DEVICE float warp_max(float x)
{
    for (int o = 16; o; o >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, o));
    return x;
}
template <class T> SVG2__DEVICE T warp_sum(T x)
{
    for (int o = 16; o; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
    return x;
}

} /* namespace svg2__cuda */

/* ==== >>kmeans =============================================================================
   One sequence of launches for all heads:

       sum, start             mean over the tokens
       draw, pack, assign     seeding, if there are no centroids to start from; up to 32 times
     per round:
       pack                   centroids rounded to 16 bits, and their bias
       assign                 label of every token: tensor cores
       sort (>>permute)       tokens by label
       pieces, update         means of the clusters
       donors, reseed         points for empty clusters
     and then
       finish                 results in the caller's terms

   A head where no label changed is done: from then on its blocks leave at once.

   Workspace of a head in bytes, S tokens clustered, C64 = C rounded up to 64, D' = D rounded up to 64, 96,
   128 or 256: 8 D S/1024 (sums for the mean) + 4 C D (centroids) + (2 D' + 4) C64 (packed) + 4 S (order) + 4
   C S/4096 (histograms) + 4.5 D (S/128 + C) (pieces) + 4 min(S, 32 C) (seeding) + 20 C; beyond 2048 clusters
   another 4 S. 24 heads of 118,800 tokens, D = 128, C = 1000: 67 MB. */
namespace svg2__cuda {

/* ---- the counting sort of >>permute ---- */
struct sort_job {
    int32_t       *label;          /* [heads, stride]; written where text and padding stand           */
    int32_t       *order;          /* [heads, pitch]                                                  */
    int32_t       *offset;         /* [heads, blocks + 1]                                             */
    const int32_t *moved;          /* [heads], heads with 0 are left alone; NULL = all are sorted     */
    int32_t       *swap;           /* [heads, pitch]          where more than one pass is needed      */
    int32_t       *histogram;      /* [heads, chunks, bins]                                           */
    int64_t        heads, stride, pitch;
    int32_t        count, blocks, clusters;
    int32_t        text_begin, text_count, padding_begin, padding_count;
    int32_t        chunk, chunks;  /* tokens that one thread block sorts; such pieces of a head       */
    int32_t        digit, bins, passes; /* bits of a label that a pass looks at; their values; passes */
};
static void sort_shape(sort_job *j);
static svg2_result sort_run(const svg2_backend *backend, const sort_job *j, svg2_error *err);

enum {
    KM_MEAN_ROWS = 1024,  /* rows that one thread block sums for the mean                           */
    KM_TILE = 256,        /* tokens of one thread block that assigns labels: 8 warps of 32          */
    KM_STAGE = 64,        /* centroids that such a block has in shared memory at a time, twice      */
    KM_PIECE = 128,       /* sorted rows summed in f32 by one group of lanes                        */
    KM_SEED_ROUNDS = 32,  /* of D^2 sampling                                                        */
    KM_RUNS = 512,        /* pieces into which drawing cuts the samples                             */
    KM_RESEED_BLOCKS = 32 /* thread blocks of a head that look for points for its empty clusters    */
};

struct kmeans_memory {
    double  *partial;   /* [heads, chunks, D]       sums for the mean                                       */
    float   *centre;    /* [heads, C, D]            centroids relative to the mean                          */
    void    *packed;    /* [heads, C64, D']         the same in 16 bits, columns in the order of kmeans_at  */
    float   *bias;      /* [heads, C64]                                                                     */
    int32_t *order;     /* [heads, pitch]                                                                   */
    int32_t *swap;      /* [heads, pitch]           beyond 2048 clusters                                    */
    int32_t *histogram; /* [heads, sort chunks, bins]                                                       */
    int32_t *offset;    /* [heads, C + 1]                                                                   */
    float   *piece;     /* [heads, pieces + C, slot]                                                        */
    double  *inertia;   /* [heads, C]               sums of squared distances                               */
    int32_t *moved;     /* [2, heads]               labels that changed in this round and in the one before */
    int32_t *empty;     /* [heads, C]               the empty clusters ...                                  */
    int32_t *donor;     /* [heads, C]               ... and who gives each a point                          */
    int32_t *pairs;     /* [heads]                  how many of these                                       */
    float   *distance;  /* [heads, samples]         squared distance to the nearest seed                    */
};

/* Extents that follow from the descriptor. */
struct kmeans_shape {
    int64_t heads, pitch, chunks;
    int32_t count, samples, pieces, slot, clusters64, padded;
};

static int32_t round_up(int32_t a, int32_t unit)
{
    return (int32_t)(((int64_t)a + unit - 1) / unit * unit);
}

static kmeans_shape kmeans_shape_of(const svg2_kmeans_desc *d)
{
    kmeans_shape s;
    const int64_t most = (int64_t)KM_SEED_ROUNDS * d->clusters;
    s.heads = (int64_t)d->batch * d->heads;
    s.count = d->token_count ? d->token_count : d->tokens;
    s.pitch = ((int64_t)s.count + 7) / 8 * 8;
    s.chunks = ((int64_t)s.count + KM_MEAN_ROWS - 1) / KM_MEAN_ROWS;
    s.samples = (int32_t)(s.count < most ? s.count : most);
    s.pieces = (int32_t)(((int64_t)s.count + KM_PIECE - 1) / KM_PIECE);
    s.slot = round_up(d->head_dim + d->head_dim / 8, 4);
    s.clusters64 = round_up(d->clusters, KM_STAGE);
    s.padded = d->head_dim <= 64 ? 64 : d->head_dim <= 96 ? 96 : d->head_dim <= 128 ? 128 : 256;
    return s;
}

static sort_job kmeans_sort_job(const svg2_kmeans_desc *d, const kmeans_shape *s)
{
    sort_job j;
    memset(&j, 0, sizeof j);
    j.heads = s->heads;
    j.stride = d->tokens;
    j.pitch = s->pitch;
    j.count = s->count;
    j.blocks = j.clusters = d->clusters;
    sort_shape(&j);
    return j;
}

static size_t kmeans_layout(const svg2_kmeans_desc *d, void *base, kmeans_memory *memory = NULL)
{
    const kmeans_shape s = kmeans_shape_of(d);
    const sort_job j = kmeans_sort_job(d, &s);
    const int is_single = d->clusters == 1; /* nothing to look for: only the mean */
    const int64_t heads = is_single ? 0 : s.heads;
    arena a = {(char *)base, 0};
    kmeans_memory m;
    m.partial = a.take<double>(count_of(s.heads, s.chunks, d->head_dim));
    m.centre = a.take<float>(count_of(s.heads, d->clusters, d->head_dim));
    m.packed = a.take<uint16_t>(count_of(heads, s.clusters64, s.padded));
    m.bias = a.take<float>(count_of(heads, s.clusters64));
    m.order = a.take<int32_t>(count_of(heads, s.pitch));
    m.swap = a.take<int32_t>(count_of(j.passes > 1 ? heads : 0, s.pitch));
    m.histogram = a.take<int32_t>(count_of(heads, j.chunks, j.bins));
    m.offset = a.take<int32_t>(count_of(heads, (int64_t)d->clusters + 1));
    m.piece = a.take<float>(count_of(heads, (int64_t)s.pieces + d->clusters, s.slot));
    m.inertia = a.take<double>(count_of(heads, d->clusters));
    m.moved = a.take<int32_t>(count_of(heads, 2));
    m.empty = a.take<int32_t>(count_of(heads, d->clusters));
    m.donor = a.take<int32_t>(count_of(heads, d->clusters));
    m.pairs = a.take<int32_t>(count_of(heads));
    m.distance = a.take<float>(count_of(heads, s.samples));
    if (memory) *memory = m;
    return a.used;
}

/* ---- one element of the state ---- */
SVG2__DEVICE float load1(const void *p, int dtype, int64_t i)
{
    if (dtype == SVG2_F32) return ((const float *)p)[i];
    if (dtype == SVG2_F16) return __half2float(((const __half *)p)[i]);
    return __bfloat162float(((const __nv_bfloat16 *)p)[i]);
}
SVG2__DEVICE void store1(void *p, int dtype, int64_t i, float x)
{
    if (dtype == SVG2_F32) ((float *)p)[i] = x;
    else if (dtype == SVG2_F16) ((__half *)p)[i] = __float2half_rn(x);
    else ((__nv_bfloat16 *)p)[i] = __float2bfloat16_rn(x);
}

/* ---- mean ----
   Block = (head, 1024 rows), 256 threads: groups of D/8 lanes, each takes every groups-th row, so that
   neighbouring groups read neighbouring rows. Sums in f32 over the 1024 / groups (4 to 128) rows of a group,
   f64 above, always in the same order. 8 KB of shared memory. Limiter: DRAM, one pass over x; 8 loads of 16
   bytes (f32: 4 of 32) under way a lane. */
template <class E, bool IS_VECTOR>
SVG2__DEVICE void kmeans_add_rows(float (&sum)[8], const tensor &x, int64_t row, int e, int group, int groups,
                                  int rows)
{
    constexpr int U = IS_VECTOR ? 16 / (int)sizeof(E) : 2;
    for (int r = group; r < rows; r += U * groups) {
        raw8<E> raw[U];
#pragma unroll
        for (int k = 0; k < U; ++k)
            load_raw8<E, IS_VECTOR>(raw[k], x, row + (int64_t)min(r + k * groups, rows - 1) * x.stride_token,
                                    e);
#pragma unroll
        for (int k = 0; k < U; ++k) {
            float v[8];
            numbers(v, raw[k]);
            if (k > 0 && r + k * groups >= rows) continue;
#pragma unroll
            for (int i = 0; i < 8; ++i) sum[i] += v[i];
        }
    }
}

template <class E>
static __global__ void __launch_bounds__(256)
    kmeans_sum(const __grid_constant__ tensor x, int32_t heads, int32_t dim, int32_t count, int64_t chunks,
               int64_t items, double *partial)
{
    SVG2_DYN_SMEM(kmeans_smem, 512);
    float *sums = (float *)(void *)kmeans_smem; /* [groups][dim] */
    const int64_t item = item_index();
    if (item >= items) return;
    const int64_t head = item / chunks, first = item % chunks * KM_MEAN_ROWS;
    const int tid = (int)threadIdx.x, lanes = dim / 8, groups = 256 / lanes, group = tid / lanes,
              e = tid % lanes * 8;
    const int rows = (int)min((int64_t)KM_MEAN_ROWS, count - first);
    if (group < groups) {
        const int64_t row = row_at(x, head / heads, head % heads, first);
        float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (x.is_vector) kmeans_add_rows<E, true>(sum, x, row, e, group, groups, rows);
        else kmeans_add_rows<E, false>(sum, x, row, e, group, groups, rows);
        for (int i = 0; i < 8; ++i) sums[group * dim + e + i] = sum[i];
    }
    if (!SVG2__FAULT(10)) __syncthreads(); /* sums are read by columns below */
    for (int d = tid; d < dim; d += 256) {
        double sum = 0.0;
        for (int g = 0; g < groups; ++g) sum += (double)sums[g * dim + d];
        partial[item * dim + d] = sum;
    }
}

/* Block = head: adds up the chunks. 4 KB of shared memory, latency of a few dependent loads. centre: the one
   centroid where there is a single cluster, else NULL; it is what rounding the mean leaves. */
static __global__ void __launch_bounds__(512)
    kmeans_start(const double *partial, int32_t dim, int32_t count, int64_t chunks, int64_t heads,
                 float *mean, float *centre, int32_t *moved)
{
    SVG2_DYN_SMEM(kmeans_smem, 512);
    double *sums = (double *)(void *)kmeans_smem;
    const int64_t head = item_index();
    if (head >= heads) return;
    const int tid = (int)threadIdx.x, groups = 512 / dim, group = tid / dim, e = tid % dim;
    double total = 0.0;
    if (group < groups)
        for (int64_t chunk = group; chunk < chunks; chunk += groups)
            total += partial[(head * chunks + chunk) * dim + e];
    sums[tid] = total;
    __syncthreads(); /* all groups have written before the first one adds them up */
    float rounded = 0.0f;
    if (tid < dim) {
        total = 0.0;
        for (int g = 0; g < groups; ++g) total += sums[g * dim + e];
        total /= count;
        rounded = (float)total;
    }
    /* a NaN or Inf token must not spoil the labels of all others */
    const int is_bad = __syncthreads_or(tid < dim && !(fabsf(rounded) <= 3.0e38f));
    if (tid < dim) {
        if (is_bad) rounded = 0.0f;
        mean[head * dim + e] = rounded;
        if (centre) centre[head * dim + e] = (float)(total - (double)rounded);
    }
    if (moved && tid == 0) moved[head] = 1; /* no round has found this head done */
}

/* ---- centroids as operands ----
   A fragment of A wants elements 2t, 2t+1, 2t+8, 2t+9 of 16 columns from lane t of a quad; memory gives a
   lane 8 consecutive ones. The products do not care which column is which as long as both operands agree, so
   within each 32 columns lane t's 8 elements count as its share of two steps of 16: element e stands at
   column kmeans_at(e) of the packed centroids.

       element  0 1 | 2 3 | 4 5  | 6 7      of the 8 elements of lane t
       column   2t  | 2t+8| 2t+16| 2t+24                                      */
SVG2__DEVICE int kmeans_at(int e)
{
    return (e & ~31) + (e & 1) + ((e >> 1 & 3) << 3) + ((e >> 3 & 3) << 1);
}

/* Scores are formed of q = scale * c. f16 covers +-65504, and a centroid relative to the mean of such numbers
   twice that. */
SVG2__DEVICE float kmeans_scale(__half) { return 0.5f; }
SVG2__DEVICE float kmeans_scale(__nv_bfloat16) { return 1.0f; }

struct kmeans_pack_args {
    float         *centre;
    const void    *start;  /* first round: centroids come from here, if not NULL */
    const float   *mean;
    void          *packed;
    float         *bias;
    const int32_t *before; /* [heads] labels that changed in the last round; NULL while seeding */
    int32_t       *moved;  /* [heads] the same of the round that begins                         */
    int64_t        items;
    int32_t        clusters, clusters64, dim, padded, start_dtype;
    int32_t        begin, end; /* clusters; multiples of 16 */
    int32_t        known;      /* clusters from here on must never win */
    int32_t        is_shifted; /* x enters the products with its mean  */
};

/* Warp = cluster. bias = what is added to x.q to make it scale * (x'.c - |c|^2/2), x' = x - mean, c as
   rounded: the nearest of the rounded centroids wins. */
template <class T>
static __global__ void __launch_bounds__(256) kmeans_pack(const __grid_constant__ kmeans_pack_args p)
{
    const int64_t item = item_index();
    if (item >= p.items) return;
    const int groups = (p.end - p.begin) / 8, warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    const int64_t head = item / groups;
    const int cluster = p.begin + (int)(item % groups) * 8 + warp;
    if (p.moved && item % groups == 0 && threadIdx.x == 0) p.moved[head] = 0;
    if (p.before && p.before[head] == 0) return;
    const float scale = kmeans_scale(T()), *mean = p.mean + head * p.dim;
    T *packed = (T *)p.packed + (head * p.clusters64 + cluster) * p.padded;
    const int64_t row = (head * p.clusters + cluster) * p.dim;
    double square = 0.0, shift = 0.0;
    for (int e = lane; e < p.padded; e += WARP) {
        const bool is_there = cluster < p.known && e < p.dim;
        float c = 0.0f;
        if (is_there && p.start) p.centre[row + e] = c = load1(p.start, p.start_dtype, row + e);
        else if (is_there) c = p.centre[row + e];
        const T q = round_to(c * scale, T());
        const double value = (double)to_float(q);
        packed[kmeans_at(e)] = q;
        square += value * value;
        if (p.is_shifted && e < p.dim) shift += value * (double)mean[e];
    }
    square = warp_sum(square);
    shift = warp_sum(shift);
    if (lane == 0)
        p.bias[head * p.clusters64 + cluster] =
            cluster < p.known ? (float)(-0.5 * square / (double)scale - shift) : -INFINITY;
}

/* ---- assign ----
   Block = (head, 256 tokens), 8 warps of 32 tokens.

                   64 centroids x D     warp w: rows 32w .. 32w+31
                 +------------------+   A  2 x D/16 fragments, all of its rows, in registers (D = 128: 64)
     buffer i&1  | packed  | bias   |   B  ldmatrix from the buffer: 16 centroids x 16 columns an instruction,
                 +------------------+      used by both halves of the rows, so that shared memory delivers
     the other one is being filled         512 bytes per 4 mma
                                        C  2 x 2 fragments, begun with the bias

   Running maximum and index of 4 rows stay in registers (strictly greater, columns in rising order: ties go
   to the lower index); one exchange inside the quad at the end. No score is stored. 33 KB of shared memory at
   D = 128, up to 128 registers, 2 blocks an SM (D = 256: 66 KB, one). x goes from memory to registers,
   without a detour and without a barrier: see kmeans_at. Limiter: the tensor cores from about 200 clusters
   on, below that DRAM (16 loads of 16 bytes a lane under way). Centroids come from L2, D bytes per token and
   cluster / 128: 256 rows a block halve what 128 would read.

   IS_SEED: rows are samples of the tokens, clusters are seeds; instead of a label the squared distance is
   kept. */
struct kmeans_assign_args {
    tensor         x;
    const float   *mean;
    const void    *packed;
    const float   *bias;
    const int32_t *before;
    int32_t       *moved;
    int32_t       *label;
    float         *distance;
    int64_t        items, label_stride;
    int32_t        heads, dim, clusters64, tiles, begin, end; /* clusters begin .. end, multiples of 16  */
    int32_t        count, rows;                               /* tokens; samples of them                  */
    int32_t        is_first;                                  /* what label or distance hold is no result */
};

/* the 8 elements from e of a row as they enter the products */
enum { KM_F32, KM_VECTOR16, KM_SCALAR16 };
template <int KIND, class T>
SVG2__DEVICE void kmeans_load_operand(uint32_t (&w)[4], const tensor &x, int64_t row, int e,
                                      const float *mean)
{
    if (KIND == KM_F32) {
        float v[8];
        load8(v, x, row, e);
#pragma unroll
        for (int i = 0; i < 4; ++i)
            w[i] = pack2(v[2 * i] - mean[e + 2 * i], v[2 * i + 1] - mean[e + 2 * i + 1], T());
    } else {
        raw8<T> raw;
        load_raw8<T, KIND == KM_VECTOR16>(raw, x, row, e);
        w[0] = raw.v[0].x, w[1] = raw.v[0].y, w[2] = raw.v[0].z, w[3] = raw.v[0].w;
    }
}

/* All fragments of the 16 M rows of a warp; square: per row what this lane holds of |x - mean|^2, for
   seeding. */
template <int KIND, int DIM, class T, bool IS_SEED, int M>
SVG2__DEVICE void kmeans_load_rows(uint32_t (&a)[M][DIM / 16][4], float (&square)[2 * M], const tensor &x,
                                   const int64_t (&row)[2 * M], int dim, const float *mean)
{
    const int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int g = 0; g < DIM / 32; ++g) {
        const int e = 32 * g + 8 * t;
#pragma unroll
        for (int r = 0; r < 2 * M; ++r) { /* rows r*8 + lane/4: half r%2 of fragment r/2 */
            uint32_t w[4] = {0, 0, 0, 0};
            if (e < dim) kmeans_load_operand<KIND, T>(w, x, row[r], e, mean);
            a[r / 2][2 * g][r % 2] = w[0];
            a[r / 2][2 * g][r % 2 + 2] = w[1];
            a[r / 2][2 * g + 1][r % 2] = w[2];
            a[r / 2][2 * g + 1][r % 2 + 2] = w[3];
            if (IS_SEED && e < dim) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    float lo, hi;
                    unpack2(lo, hi, w[i], T());
                    if (KIND != KM_F32) lo -= mean[e + 2 * i], hi -= mean[e + 2 * i + 1];
                    square[r] += lo * lo + hi * hi;
                }
            }
        }
    }
}

/* Begins the copy of centroids [first, last) into a buffer. */
template <int DIM>
SVG2__DEVICE void kmeans_fetch(uint32_t buffer, const uint16_t *packed, const float *bias, int first,
                               int last)
{
    const int tid = (int)threadIdx.x, chunks = (last - first) * (DIM / 8);
    for (int i = tid; i < chunks; i += 256) {
        const int r = i / (DIM / 8), c = i % (DIM / 8);
        svg2__cp_async16(buffer + tile_at<DIM>(r, c), packed + (int64_t)(first + r) * DIM + c * 8, 16);
    }
    if (tid < (last - first) / 4)
        svg2__cp_async16(buffer + KM_STAGE * DIM * 2 + tid * 16, bias + first + tid * 4, 16);
    svg2__cp_async_commit();
}

template <int DIM> struct kmeans_stage {
    enum { BYTES = KM_STAGE * DIM * 2 + 512 }; /* a multiple of the longest row, for the ^ in kmeans_assign */
};

template <int DIM, class T, bool IS_SEED>
static __global__ void __launch_bounds__(256, DIM <= 128 ? 2 : 1)
    kmeans_assign(const __grid_constant__ kmeans_assign_args p)
{
    SVG2_DYN_SMEM(kmeans_smem, 512);
    const int64_t item = item_index();
    if (item >= p.items) return;
    const int64_t head = item / p.tiles;
    if (!IS_SEED && p.before[head] == 0) return;
    const int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, quad = lane / 4, t = lane % 4;
    const int32_t first = (int32_t)(item % p.tiles) * KM_TILE + warp * 32;
    const bool is_idle = first >= p.rows; /* the whole warp: it only helps with the copies */
    const uint16_t *packed = (const uint16_t *)p.packed + head * p.clusters64 * DIM;
    const float *bias = p.bias + head * p.clusters64, *mean = p.mean + head * p.dim;
    const uint32_t smem = svg2__smem(kmeans_smem);

    kmeans_fetch<DIM>(smem, packed, bias, p.begin, min(p.begin + KM_STAGE, p.end));

    uint32_t a[2][DIM / 16][4];
    float square[4] = {0, 0, 0, 0};
    if (!is_idle) {
        int64_t row[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) { /* rows behind the last one repeat it */
            const int32_t at = min(first + 8 * r + quad, p.rows - 1);
            row[r] =
                row_at(p.x, head / p.heads, head % p.heads, IS_SEED ? (int64_t)at * p.count / p.rows : at);
        }
        if (p.x.dtype == SVG2_F32)
            kmeans_load_rows<KM_F32, DIM, T, IS_SEED>(a, square, p.x, row, p.dim, mean);
        else if (p.x.is_vector)
            kmeans_load_rows<KM_VECTOR16, DIM, T, IS_SEED>(a, square, p.x, row, p.dim, mean);
        else kmeans_load_rows<KM_SCALAR16, DIM, T, IS_SEED>(a, square, p.x, row, p.dim, mean);
    }

    float best[4];
    int32_t index[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) best[r] = -INFINITY, index[r] = 0;
    int buffer = 0;
    for (int begin = p.begin; begin < p.end; begin += KM_STAGE, buffer ^= 1) {
        const int groups = min(KM_STAGE, p.end - begin) / 16;
        if (!SVG2__FAULT(11)) svg2__cp_async_wait<0>();
        /* what every thread has copied is there for all; all have read the other buffer, which is filled
           next */
        if (!SVG2__FAULT(12)) __syncthreads();
        if (begin + KM_STAGE < p.end)
            kmeans_fetch<DIM>(smem + (uint32_t)((buffer ^ 1) * kmeans_stage<DIM>::BYTES), packed, bias,
                              begin + KM_STAGE, min(begin + 2 * KM_STAGE, p.end));
        if (is_idle) continue;
        const unsigned char *stage = kmeans_smem + buffer * kmeans_stage<DIM>::BYTES;
        const float *stage_bias = (const float *)(const void *)(stage + KM_STAGE * DIM * 2);
        const uint32_t stage_at = smem + (uint32_t)(buffer * kmeans_stage<DIM>::BYTES);
        /* the row of B that this lane addresses */
        const int r = (lane & 7) + (lane >> 4 << 3), half = lane >> 3 & 1;
#pragma unroll 1
        for (int g = 0; g < groups; ++g) {
            /* tile_at(r, 2k + half) = tile_at(r, half) ^ 32k where rows are powers of two: no register per
               k */
            const uint32_t row_begin =
                stage_at + (uint32_t)(g * 16 * DIM * 2) + (DIM % 64 ? 0u : tile_at<DIM>(r, half));
            float c[2][2][4];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
                const float2 b = *(const float2 *)(const void *)(stage_bias + 16 * g + 8 * j + 2 * t);
#pragma unroll
                for (int i = 0; i < 2; ++i) c[i][j][0] = c[i][j][2] = b.x, c[i][j][1] = c[i][j][3] = b.y;
            }
#pragma unroll
            for (int k = 0; k < DIM / 16; ++k) {
                uint32_t b[4];
                svg2__ldmatrix_x4(b, DIM % 64 ? row_begin + tile_at<DIM>(r, 2 * k + half)
                                              : row_begin ^ (uint32_t)(k * 32));
#pragma unroll
                for (int j = 0; j < 2; ++j)
#pragma unroll
                    for (int i = 0; i < 2; ++i)
                        svg2__mma_m16n8k16(c[i][j], a[i][k], b[2 * j], b[2 * j + 1], T());
            }
            const int32_t column = begin + 16 * g + 2 * t;
#pragma unroll
            for (int j = 0; j < 2; ++j)
#pragma unroll
                for (int i = 0; i < 2; ++i)
#pragma unroll
                    for (int n = 0; n < 4; ++n) { /* rows 16i + 8(n/2) + quad; NaN never wins */
                        const bool is_better = c[i][j][n] > best[2 * i + n / 2];
                        best[2 * i + n / 2] = is_better ? c[i][j][n] : best[2 * i + n / 2];
                        if (!IS_SEED)
                            index[2 * i + n / 2] = is_better ? column + 8 * j + n % 2 : index[2 * i + n / 2];
                    }
        }
    }
    if (is_idle) return;

#pragma unroll
    for (int r = 0; r < 4; ++r)
        for (int o = 1; o < 4; o *= 2) {
            const float other = __shfl_xor_sync(0xffffffffu, best[r], o);
            if (IS_SEED) {
                best[r] = fmaxf(best[r], other);
                square[r] += __shfl_xor_sync(0xffffffffu, square[r], o);
            } else {
                const int32_t other_index = __shfl_xor_sync(0xffffffffu, index[r], o);
                const bool is_better = other > best[r] || (other == best[r] && other_index < index[r]);
                best[r] = is_better ? other : best[r];
                index[r] = is_better ? other_index : index[r];
            }
        }
    /* lane t of a quad writes row 8t + quad: a warp writes 32 consecutive results */
    const int32_t at = first + 8 * t + quad;
    const bool is_row = at < p.rows;
    if (IS_SEED) {
        const float score = t == 0 ? best[0] : t == 1 ? best[1] : t == 2 ? best[2] : best[3];
        const float length = t == 0 ? square[0] : t == 1 ? square[1] : t == 2 ? square[2] : square[3];
        float away = length - 2.0f * score / kmeans_scale(T());
        if (!(away > 0.0f) || away > 3.0e38f) away = 0.0f; /* rounding, NaN or Inf: never a seed */
        float *distance = p.distance + head * p.rows + at;
        if (is_row && (p.is_first || away < *distance)) *distance = away;
    } else {
        const int32_t mine = t == 0 ? index[0] : t == 1 ? index[1] : t == 2 ? index[2] : index[3];
        int32_t *label = p.label + head * p.label_stride + at;
        const bool is_changed = is_row && (p.is_first || *label != mine);
        if (is_changed) *label = mine;
        const int changed = __popc(__ballot_sync(0xffffffffu, is_changed));
        if (lane == 0 && changed) atomicAdd(p.moved + head, changed);
    }
}

/* ---- assign by wgmma ----
   The same labels: the same fragments of x in registers, the same products in the same order, begun with the
   same bias, the same comparisons. One block an SM; it takes tiles of 256 tokens (128 at D > 128), one grid
   apart, and for each of them turns of 64 centroids:

       warpgroup 0   | products n |  look n    | products n+1 |  look n+1    |
       warpgroup 1   |  look n-1  | products n |  look n      | products n+1 |
       copies          centroids of turn n + STAGES - 2, a part of the next tile

   A pair of warpgroups takes turns at the tensor cores, where a second pair fills the gaps. A warpgroup holds
   64 rows of x in registers; those of the next tile come piece by piece to where the same thread takes them
   from when the tile ends. `done`: all warps are through with the products of a turn, and their copies for
   the turn after next have arrived. It is that turn which waits for it, so the pairs can drift apart.

   Cycles of an SM for a turn of 256 tokens x 64 centroids     D = 64   D = 128
       tensor cores    4 x D/16 wgmma m64n64k16 of 32             512      1024
       look            16384 x 2.25 instructions, of which
                       (compare, select) 64 a cycle               576       576
       shared memory   2 KB of B a wgmma, bias, copies, rows      480       830
       L2              bytes of centroids a cycle                  14        16

   Limiter: the tensor cores from D = 96 on, the look at D = 64, DRAM below about 200 clusters (64 KB of the
   next tile are under way while one is worked on, so there is a gap between their arrival and the next
   request). A from shared memory would be another 2 KB a wgmma: all of the 128 bytes a cycle. Tiles of 128
   would ask L2 for 32 bytes of centroids a cycle and SM, and published measurements end at 24 to 30; D = 256
   has to, for want of registers. With two accumulators a warpgroup could look at one turn during the products
   of the next, but ptxas 13.0 cannot follow them around the loop and waits for each wgmma (C7514). To look
   costs one instruction an element for the maximum of 8 columns and one to keep the 8 if that is the best;
   which column it was is found out at the end. Compare, value and index would be three.

   Shared memory at D = 128: 6 stages of 16 KB, 64 KB for the next tile, 10 KB: 170 KB; 127 registers, 512
   threads. f32 rows and such that are not aligned go to registers without a detour, and are waited for.
   Labels are not counted here for the sort: to read them again is 4 bytes a token, 11 MB beside the 730 MB of
   x at 24 heads of 118,800 tokens, D = 128. Seeding has the kernel above: some 32 clusters a round. */
template <int DIM> struct kmeans_wide {
    enum {
        GROUPS = DIM > 128 ? 2 : 4, /* warpgroups; in pairs */
        ROWS = 64 * GROUPS,
        THREADS = 128 * GROUPS,
        STAGES = DIM > 128 ? 4 : 6, /* at least 4 */
        WIDTH = DIM % 64 ? 32 : 64, /* columns of a slab: rows of 128 bytes with their swizzle, or of 64 */
        SLAB = KM_STAGE * WIDTH * 2,
        STAGE = KM_STAGE * DIM * 2,
        CHUNKS = DIM / 16, /* of 16 bytes, that a thread has of its two rows */
        BIAS_AT = STAGES * STAGE,
        X_AT = BIAS_AT + STAGES * KM_STAGE * 4, /* [CHUNKS][THREADS] */
        ROW_AT = X_AT + CHUNKS * THREADS * 16,  /* [THREADS] two rows of x, as their first elements */
        BAR_AT = ROW_AT + THREADS * 16,         /* [2] */
        BYTES = BAR_AT + 16,
        KEPT = 8
    };
};

/* c += products of the rows of the warpgroup with 64 centroids; waits for them */
template <int DIM, class T>
SVG2__DEVICE void kmeans_product(float (&c)[32], const uint32_t (&a)[1][DIM / 16][4], uint32_t stage)
{
    enum { WIDTH = kmeans_wide<DIM>::WIDTH, STEPS = WIDTH / 16, SLAB = kmeans_wide<DIM>::SLAB };
    svg2__wgmma_hold(c);
    svg2__wgmma_fence();
#pragma unroll
    for (int k = 0; k < DIM / 16; ++k)
        svg2__wgmma_rs<0>(
            c, a[0][k], tile_desc<WIDTH>(stage + (uint32_t)(k / STEPS * SLAB + k % STEPS * 32)), 1, T());
    svg2__wgmma_commit();
    if (!SVG2__FAULT(123)) svg2__wgmma_wait<0>();
    svg2__wgmma_hold(c);
}

/* The best so far of the two rows of a lane: the columns of the best group of KEPT, and where it begins. */
template <int KEPT> struct kmeans_best {
    float   value[2], kept[2][KEPT];
    int32_t at[2];
};
template <int KEPT> SVG2__DEVICE void kmeans_clear(kmeans_best<KEPT> &best)
{
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        best.value[r] = -INFINITY, best.at[r] = 0;
#pragma unroll
        for (int k = 0; k < KEPT; ++k) best.kept[r][k] = -INFINITY;
    }
}
template <int KEPT>
SVG2__DEVICE void kmeans_look(kmeans_best<KEPT> &best, const float (&c)[32], int32_t column)
{
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int g = 0; g < 16 / KEPT; ++g) {
            float x[KEPT], top;
#pragma unroll
            for (int k = 0; k < KEPT; ++k) x[k] = c[4 * (g * KEPT / 2 + k / 2) + 2 * r + k % 2];
            top = x[0];
#pragma unroll
            for (int k = 1; k < KEPT; ++k) top = fmaxf(top, x[k]);
            const bool is_better = top > best.value[r]; /* NaN never wins */
            best.value[r] = is_better ? top : best.value[r];
            best.at[r] = is_better ? column + g * KEPT * 4 : best.at[r];
#pragma unroll
            for (int k = 0; k < KEPT; ++k) best.kept[r][k] = is_better ? x[k] : best.kept[r][k];
        }
}
template <int KEPT> SVG2__DEVICE int32_t kmeans_index(const kmeans_best<KEPT> &best, int r)
{
    int32_t index = 0;
#pragma unroll
    for (int k = KEPT - 1; k >= 0; --k)
        if (best.kept[r][k] == best.value[r]) index = 8 * (k / 2) + k % 2; /* the first one */
    return best.at[r] + index + 2 * ((int)threadIdx.x % 4);
}

template <int DIM, class T>
static __global__ void __launch_bounds__(kmeans_wide<DIM>::THREADS, 1)
    kmeans_assign_wgmma(const __grid_constant__ kmeans_assign_args p)
{
#if SVG2__SM90A
    typedef kmeans_wide<DIM> w;
    enum { STAGES = w::STAGES, THREADS = w::THREADS, CHUNKS = w::CHUNKS };
    SVG2_DYN_SMEM(kmeans_stages, 1024);
    const uint32_t smem = svg2__smem(kmeans_stages);
    const int tid = (int)threadIdx.x, warp = tid / WARP, lane = tid % WARP, quad = lane / 4, t = lane % 4;
    const int group = warp / 4, items = (int)p.items, grid = (int)gridDim.x, stages = p.end / KM_STAGE;
    const uint32_t mine = smem + (uint32_t)(w::X_AT + tid * 16), done = smem + (uint32_t)w::BAR_AT;
    const bool is_vector = p.x.dtype != SVG2_F32 && p.x.is_vector;
    int64_t *const row = (int64_t *)(void *)(kmeans_stages + w::ROW_AT + tid * 16);

    /* the first item of this block from `item` on whose head is not done */
    const auto live = [&](int item) {
        while (item < items && p.before[item / p.tiles] == 0) {
            const int left = (item / p.tiles + 1) * p.tiles - item; /* of the head */
            item += (left + grid - 1) / grid * grid;
        }
        return item;
    };
    const auto locate = [&](int item) { /* rows behind the last one repeat it */
        const int head = item / p.tiles, first = item % p.tiles * w::ROWS + warp * 16 + quad;
        for (int r = 0; r < 2; ++r)
            row[r] = row_at(p.x, head / p.heads, head % p.heads, min(first + 8 * r, p.rows - 1));
    };
    const auto prefetch = [&](int begin, int end) { /* chunks: 2 g + r = columns 32 g + 8 t of row r */
        for (int i = begin; i < end; ++i) {
            const int e = 32 * (i / 2) + 8 * t;
            svg2__cp_async16(mine + (uint32_t)(i * THREADS * 16),
                             (const T *)p.x.data + row[i & 1] + (e < p.dim ? e : 0), e < p.dim ? 16 : 0);
        }
    };
    uint32_t a[1][DIM / 16][4];
    const auto take = [&](int item) { /* the rows of the item */
        if (is_vector) {
#pragma unroll
            for (int i = 0; i < CHUNKS; ++i) {
                const int g = i / 2, r = i % 2, at = w::X_AT + (i * THREADS + tid) * 16;
                const uint4 v = *(const uint4 *)(const void *)(kmeans_stages + at);
                a[0][2 * g][r] = v.x, a[0][2 * g][r + 2] = v.y;
                a[0][2 * g + 1][r] = v.z, a[0][2 * g + 1][r + 2] = v.w;
            }
            return;
        }
        const int64_t rows[2] = {row[0], row[1]};
        const float *mean = p.mean + (int64_t)(item / p.tiles) * p.dim;
        float square[2] = {0, 0};
        if (p.x.dtype == SVG2_F32)
            kmeans_load_rows<KM_F32, DIM, T, false, 1>(a, square, p.x, rows, p.dim, mean);
        else kmeans_load_rows<KM_SCALAR16, DIM, T, false, 1>(a, square, p.x, rows, p.dim, mean);
    };

    /* Centroids, STAGES - 2 turns ahead; one group of copies a turn, empty behind the last. */
    int item = live((int)blockIdx.x);
    int ahead = item, head_ahead = item / p.tiles, ahead_stage = 0, ahead_buffer = 0;
    const auto fetch = [&]() {
        if (ahead >= items) return;
        const int64_t from = (int64_t)head_ahead * p.clusters64 + ahead_stage * KM_STAGE;
        const uint16_t *packed = (const uint16_t *)p.packed + from * DIM;
        const uint32_t to = smem + (uint32_t)(ahead_buffer * w::STAGE);
        for (int i = tid; i < KM_STAGE * DIM / 8; i += THREADS) {
            const int c = i % (DIM / 8), slab = c / (w::WIDTH / 8);
            svg2__cp_async16(to + (uint32_t)(slab * w::SLAB)
                                 + tile_at<w::WIDTH>(i / (DIM / 8), c % (w::WIDTH / 8)),
                             packed + i * 8, 16);
        }
        if (tid < KM_STAGE / 4)
            svg2__cp_async16(smem + (uint32_t)(w::BIAS_AT + ahead_buffer * KM_STAGE * 4 + tid * 16),
                             p.bias + from + tid * 4, 16);
        ahead_buffer = ahead_buffer + 1 < STAGES ? ahead_buffer + 1 : 0;
        if (++ahead_stage < stages) return;
        ahead_stage = 0;
        ahead = live(ahead + grid);
        head_ahead = ahead / p.tiles;
    };
    if (item >= items) return;

    locate(item);
    if (tid == 0) {
        svg2__mbar_init(done, THREADS / WARP);
        svg2__mbar_init(done + 8, THREADS / WARP);
        svg2__fence_mbar_init();
    }
    if (is_vector) prefetch(0, CHUNKS);
    for (int i = 0; i < STAGES - 2; ++i) {
        fetch();
        svg2__cp_async_commit();
    }
    svg2__cp_async_wait<STAGES - 4>();
    svg2__fence_async();
    __syncthreads(); /* the centroids of two turns are there, for wgmma, too; and the barriers */
    take(item);

    /* Tokens are spread over the turns of a tile, if it has enough of them that the last one has waited for
       all. */
    const int spread = stages + 4 - STAGES, part = spread > 1 ? (CHUNKS + spread - 1) / spread : CHUNKS;
    int stage = 0, buffer = 0, next_item = live(item + grid), sent = 0;
    kmeans_best<w::KEPT> best;
    kmeans_clear(best);
    if (next_item < items) locate(next_item);
    if (group & 1) svg2__bar_arrive(1 + (group ^ 1), 256); /* the other one of the pair begins */
    for (uint32_t n = 0;; ++n) {
        /* what every thread has copied for this turn is there for all; all are done with the buffer of two
           turns ago, which is filled next */
        if (n >= 2 && !SVG2__FAULT(120))
            while (!svg2__mbar_try_wait(done + n % 2 * 8, (n / 2 - 1) & 1)) {}
        fetch();
        if (is_vector && next_item < items && sent < CHUNKS) {
            prefetch(sent, min(sent + part, (int)CHUNKS));
            sent += part;
        }
        svg2__cp_async_commit();

        const bool is_last = stage + 1 == stages, is_end = is_last && next_item >= items;
        const float *bias = (const float *)(const void *)(kmeans_stages + w::BIAS_AT) + buffer * KM_STAGE;
        float c[32];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            const float2 b = *(const float2 *)(const void *)(bias + 8 * j + 2 * t);
            c[4 * j] = c[4 * j + 2] = b.x;
            c[4 * j + 1] = c[4 * j + 3] = b.y;
        }
        svg2__bar_sync(1 + group, 256); /* the other one's products are done; no memory depends on it */
        kmeans_product<DIM, T>(c, a, smem + (uint32_t)(buffer * w::STAGE));
        if (!is_end || !(group & 1)) svg2__bar_arrive(1 + (group ^ 1), 256);
        if (!SVG2__FAULT(121)) svg2__cp_async_wait<STAGES - 4>();
        if (!SVG2__FAULT(122)) svg2__fence_async();
        __syncwarp(); /* all lanes have read the bias, and their copies for the turn after next are there */
        if (lane == 0) svg2__mbar_arrive(done + n % 2 * 8);
        kmeans_look(best, c, stage * KM_STAGE);
        buffer = buffer + 1 < STAGES ? buffer + 1 : 0;
        ++stage;
        if (!is_last) continue;

        int32_t index[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float value = best.value[r];
            index[r] = kmeans_index(best, r);
            for (int o = 1; o < 4; o *= 2) {
                const float other = __shfl_xor_sync(0xffffffffu, value, o);
                const int32_t other_index = __shfl_xor_sync(0xffffffffu, index[r], o);
                const bool is_better = other > value || (other == value && other_index < index[r]);
                value = is_better ? other : value;
                index[r] = is_better ? other_index : index[r];
            }
        }
        /* lanes 0 and 1 of a quad write rows quad and 8 + quad: a warp writes 16 consecutive labels */
        const int head = item / p.tiles, at = item % p.tiles * w::ROWS + warp * 16 + 8 * t + quad;
        const int32_t found = t == 0 ? index[0] : index[1];
        int32_t *label = p.label + head * p.label_stride + at;
        const bool is_changed = t < 2 && at < p.rows && (p.is_first || *label != found);
        if (is_changed) *label = found;
        const int changed = __popc(__ballot_sync(0xffffffffu, is_changed));
        if (lane == 0 && changed) atomicAdd(p.moved + head, changed);
        if (is_end) break;
        /* a short tile: its tokens were sent in its first turn, one group of copies before the last, or with
           it */
        if (stages == 1) svg2__cp_async_wait<0>();
        else if (stages < STAGES - 3 && !SVG2__FAULT(124)) svg2__cp_async_wait<1>();
        item = next_item;
        take(item);
        next_item = live(item + grid);
        if (next_item < items) locate(next_item);
        stage = sent = 0;
        kmeans_clear(best);
    }
#else
    (void)p;
    __trap();
#endif
}

/* ---- seeding ----
   The counter-based numbers of >>rng. */
SVG2__DEVICE uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
SVG2__DEVICE double uniform(uint64_t seed, uint64_t stream, uint64_t counter)
{
    return (double)(mix(mix(seed ^ mix(stream)) ^ counter) >> 11) * (1.0 / 9007199254740992.0);
}

/* inclusive prefix sum over the lanes of a warp */
template <class V> SVG2__DEVICE V warp_prefix(V x)
{
    const int lane = (int)threadIdx.x % WARP;
    for (int o = 1; o < WARP; o *= 2) {
        const V y = __shfl_up_sync(0xffffffffu, x, o);
        if (lane >= o) x += y;
    }
    return x;
}

struct kmeans_draw_args {
    tensor       x;
    const float *mean, *distance;
    float       *centre;
    uint64_t     seed;
    int64_t      total; /* heads of all batch entries */
    int32_t      heads, dim, clusters, count, samples, first, batch;
    int32_t      run_length; /* a multiple of 32; at most KM_RUNS runs */
};

/* Block = head, 512 threads: draws seeds first .. first + batch by systematic sampling of the squared
   distances, see svg2__kmeans_seed_draw. The samples are cut into at most 512 runs; sums of the runs (a warp
   each) and their prefix sums in f64, then a warp per seed looks up its run and walks through it. 4 KB of
   shared memory; latency. */
static __global__ void __launch_bounds__(512) kmeans_draw(const __grid_constant__ kmeans_draw_args p)
{
    SVG2_DYN_SMEM(kmeans_smem, 512);
    double *prefix = (double *)(void *)kmeans_smem; /* [KM_RUNS], then a sum per warp */
    double *warp_total = prefix + KM_RUNS;
    const int64_t head = item_index();
    if (head >= p.total) return;
    const int tid = (int)threadIdx.x, warp = tid / WARP, lane = tid % WARP, warps = 512 / WARP;
    const float *distance = p.distance + head * p.samples, *mean = p.mean + head * p.dim;
    double total = 0.0;
    if (p.first > 0) {
        for (int run = warp; run < KM_RUNS; run += warps) {
            const int64_t begin = (int64_t)run * p.run_length,
                          end = min(begin + p.run_length, (int64_t)p.samples);
            double sum = 0.0;
            for (int64_t i = begin + lane; i < end; i += WARP) sum += (double)distance[i];
            if (begin < end) sum = warp_sum(sum);
            if (lane == 0) prefix[run] = sum;
        }
        __syncthreads(); /* sums of the runs, written by all warps */
        const double mine = prefix[tid], upto = warp_prefix(mine);
        if (lane == WARP - 1) warp_total[warp] = upto;
        __syncthreads(); /* totals of the warps; and nobody reads sums any more, they become prefix sums */
        double below = 0.0;
        for (int w = 0; w < warps; ++w) {
            if (w == warp) below = total;
            total += warp_total[w];
        }
        prefix[tid] = below + upto - mine;
        if (!SVG2__FAULT(13)) __syncthreads(); /* prefix sums of other warps are looked up */
    }
    const double offset = uniform(p.seed, 1, (uint64_t)p.first);
    for (int i = warp; i < p.batch; i += warps) {
        const double quantile = ((double)i + offset) / (double)p.batch;
        /* evenly over the samples */
        int32_t pick = min((int32_t)(quantile * (double)p.samples), p.samples - 1);
        if (total > 0.0) { /* else all are seeds already, or these are the first */
            const double target = quantile * total;
            int lo = 0, hi = KM_RUNS; /* the last run that begins at or below the target */
            while (hi - lo > 1) {
                const int mid = (lo + hi) / 2;
                if (prefix[mid] <= target) lo = mid;
                else hi = mid;
            }
            const int64_t begin = (int64_t)lo * p.run_length,
                          end = min(begin + p.run_length, (int64_t)p.samples);
            double sum = prefix[lo];
            for (int64_t at = begin; at < end; at += WARP) {
                const double share = at + lane < end ? (double)distance[at + lane] : 0.0,
                             upto = warp_prefix(share);
                const unsigned over = __ballot_sync(0xffffffffu, sum + upto > target);
                const unsigned some = __ballot_sync(0xffffffffu, share > 0.0);
                if (some)
                    pick =
                        (int32_t)at + (over & some ? __ffs((int)(over & some)) - 1 : 31 - __clz((int)some));
                if (over & some) break;
                sum += __shfl_sync(0xffffffffu, upto, WARP - 1);
            }
        }
        const int64_t row = row_at(p.x, head / p.heads, head % p.heads, (int64_t)pick * p.count / p.samples);
        float *centre = p.centre + (head * p.clusters + p.first + i) * p.dim;
        for (int e = 8 * lane; e < p.dim; e += 8 * WARP) {
            float x[8];
            load8(x, p.x, row, e);
            for (int k = 0; k < 8; ++k) centre[e + k] = x[k] - mean[e + k];
        }
    }
}

/* ---- update ----
   The sorted order is cut every 128 rows and at the borders of clusters. Piece w of cluster c, w counting the
   cuts every 128 rows, has slot w + c: from one piece to the next w or c grows, so no two share a slot, and
   nobody has to count. A giant cluster is spread over many workers, and 128 clusters of one token are one
   worker's.

   Worker = D/8 lanes, 8 columns each; it walks through its 128 rows in order and writes its sums at the end
   of each cluster. No barrier, no exchange between lanes: the square sums of the columns are added up by the
   next kernel. Rows are gathered, 8 loads of 16 bytes (f32: 4 of 32) under way a lane. Limiter: DRAM, one
   pass over x. */
struct kmeans_pieces_args {
    tensor         x;
    const float   *mean;
    const int32_t *order, *offset, *label, *moved;
    float         *piece;
    int64_t        items, pitch, label_stride;
    int32_t        heads, dim, clusters, count, pieces, slot, blocks; /* blocks: of a head */
};

SVG2__DEVICE void kmeans_write_piece(const kmeans_pieces_args &p, int64_t head, int32_t worker,
                                     int32_t cluster, int lane, const float (&sum)[8], float square)
{
    float *slot = p.piece + (head * ((int64_t)p.pieces + p.clusters) + worker + cluster) * p.slot;
    *(float4 *)(void *)(slot + 8 * lane) = make_float4(sum[0], sum[1], sum[2], sum[3]);
    *(float4 *)(void *)(slot + 8 * lane + 4) = make_float4(sum[4], sum[5], sum[6], sum[7]);
    slot[p.dim + lane] = square;
}

template <class E, bool IS_VECTOR>
static __global__ void __launch_bounds__(128, 5) kmeans_pieces(const __grid_constant__ kmeans_pieces_args p)
{
    const int64_t item = item_index();
    if (item >= p.items) return;
    const int64_t head = item / p.blocks;
    if (p.moved[head] == 0) return;
    const int lanes = p.dim / 8, groups = 128 / lanes, group = (int)threadIdx.x / lanes,
              lane = (int)threadIdx.x % lanes;
    const int64_t worker64 = item % p.blocks * groups + group;
    if (group >= groups || worker64 >= p.pieces) return;
    const int32_t worker = (int32_t)worker64;
    constexpr int U = IS_VECTOR ? 16 / (int)sizeof(E) : 2;
    const int32_t *order = p.order + head * p.pitch, *offset = p.offset + head * ((int64_t)p.clusters + 1);
    const int32_t *label = p.label + head * p.label_stride;
    const int64_t base = row_at(p.x, head / p.heads, head % p.heads, 0);
    const int32_t last = worker * KM_PIECE + min((int32_t)KM_PIECE, p.count - worker * KM_PIECE);
    float mean[8];
    int32_t cluster = -1;
#pragma unroll
    for (int i = 0; i < 8; ++i) mean[i] = p.mean[head * p.dim + 8 * lane + i];
    for (int32_t at = worker * KM_PIECE; at < last;) {
        float sum[8] = {0, 0, 0, 0, 0, 0, 0, 0}, square = 0.0f;
        /* mostly the next cluster; after empty ones, and at first, look it up */
        if (cluster >= 0 && offset[cluster + 2] > at) ++cluster;
        else cluster = label[order[at]];
        const int32_t end = min(offset[cluster + 1], last);
        for (; at < end; at += U) {
            raw8<E> raw[U];
#pragma unroll
            for (int k = 0; k < U; ++k)
                load_raw8<E, IS_VECTOR>(raw[k], p.x, base + order[min(at + k, end - 1)] * p.x.stride_token,
                                        8 * lane);
#pragma unroll
            for (int k = 0; k < U; ++k) {
                float v[8];
                numbers(v, raw[k]);
                if (k == 0 || at + k < end) {
#pragma unroll
                    for (int i = 0; i < 8; ++i) {
                        v[i] -= mean[i];
                        sum[i] += v[i];
                        square += v[i] * v[i];
                    }
                }
            }
        }
        at = end;
        kmeans_write_piece(p, head, worker, cluster, lane, sum, square);
    }
}

/* Block = (head, cluster), 128 threads: groups of slot/4 threads, four columns each, every group takes every
   groups-th piece; f64, always in the same order. Inertia = sum |x - mean of all|^2 - n |centroid|^2. 4 KB of
   shared memory; latency. */
static __global__ void __launch_bounds__(128)
    kmeans_update(const float *piece, const int32_t *offset, const int32_t *moved, int64_t items,
                  int32_t clusters, int32_t pieces, int32_t slot, int32_t dim, float *centre, double *inertia)
{
    SVG2_DYN_SMEM(kmeans_smem, 512);
    double *sums = (double *)(void *)kmeans_smem; /* [128][4], then 4 more */
    const int64_t item = item_index();
    if (item >= items) return;
    const int64_t head = item / clusters;
    const int32_t cluster = (int32_t)(item % clusters), tid = (int32_t)threadIdx.x;
    const int32_t *range = offset + head * ((int64_t)clusters + 1) + cluster;
    const int32_t begin = range[0], n = range[1] - begin;
    if (moved[head] == 0) return;
    if (n == 0) { /* keeps its centroid */
        if (tid == 0) inertia[item] = 0.0;
        return;
    }
    const int columns = slot / 4, groups = 128 / columns, group = tid / columns, column = tid % columns * 4;
    const int32_t last = (begin + (n - 1)) / KM_PIECE;
    const float *from = piece + (head * ((int64_t)pieces + clusters) + cluster) * slot + column;
    double sum[4] = {0.0, 0.0, 0.0, 0.0};
    if (group < groups)
        for (int32_t w = begin / KM_PIECE + group; w <= last; w += groups) {
            const float4 v = *(const float4 *)(const void *)(from + (int64_t)w * slot);
            sum[0] += (double)v.x, sum[1] += (double)v.y, sum[2] += (double)v.z, sum[3] += (double)v.w;
        }
    for (int i = 0; i < 4; ++i) sums[4 * tid + i] = sum[i];
    if (!SVG2__FAULT(14)) __syncthreads(); /* the first group reads what the others have summed */
    double away = 0.0;
    if (group == 0)
        for (int i = 0; i < 4; ++i) {
            double total = 0.0;
            for (int g = 0; g < groups; ++g) total += sums[4 * (g * columns) + column + i];
            if (column + i < dim) {
                const double mean = total / n;
                centre[item * dim + column + i] = (float)mean;
                away -= mean * total;
            } else if (column + i < dim + dim / 8) {
                away += total;
            } /* else: what fills the slot up */
        }
    away = warp_sum(away);
    if (tid % WARP == 0) sums[4 * 128 + tid / WARP] = away;
    __syncthreads(); /* sums of the warps */
    if (tid == 0) inertia[item] = sums[512] + sums[513] + sums[514] + sums[515];
}

/* ---- empty clusters ----
   The r-th empty cluster takes the farthest token of the cluster with the r-th largest inertia. First who
   gives to whom, then the points: mostly there is nothing to do, and both kernels leave at once. */

/* true where (a, i) is a larger inertia than (b, j), or the same of a lower index; i < 0: none */
SVG2__DEVICE bool kmeans_gives_first(double a, int32_t i, double b, int32_t j)
{
    return i >= 0 && (j < 0 || a > b || (a == b && i < j));
}

/* the first donor among the clusters of this thread */
SVG2__DEVICE int32_t kmeans_own_donor(const double *inertia, const int32_t *offset, int32_t clusters,
                                      double *most)
{
    int32_t donor = -1;
    *most = 0.0;
    for (int32_t c = (int32_t)threadIdx.x; c < clusters; c += (int32_t)blockDim.x)
        if (inertia[c] > *most && offset[c + 1] - offset[c] > 1) *most = inertia[c], donor = c;
    return donor;
}

/* Block = head, 256 threads; thread i owns clusters i, i + 256, ... and knows the best donor among them, so
   that a choice costs one reduction over the block. */
static __global__ void __launch_bounds__(256)
    kmeans_donors(const int32_t *moved, const int32_t *all_offset, double *all_inertia, int64_t heads,
                  int32_t clusters, int32_t *all_empty, int32_t *all_donor, int32_t *pairs)
{
    SVG2_DYN_SMEM(kmeans_smem, 512);
    double *warp_most = (double *)(void *)kmeans_smem; /* [8] */
    int32_t *warp_donor = (int32_t *)(void *)(warp_most + 8), *warp_empty = warp_donor + 8; /* [8] each */
    const int64_t head = item_index();
    if (head >= heads) return;
    const int tid = (int)threadIdx.x, warp = tid / WARP, lane = tid % WARP;
    const int32_t *offset = all_offset + head * ((int64_t)clusters + 1);
    double *inertia = all_inertia + head * clusters;
    int32_t *empty = all_empty + head * clusters, *donor = all_donor + head * clusters;
    int32_t empties = 0, given = 0;
    if (moved[head] != 0)
        for (int32_t c = tid; c < clusters; c += 256) empties += offset[c] == offset[c + 1];
    if (!__syncthreads_or(empties)) {
        if (tid == 0) pairs[head] = 0;
        return;
    }
    empties = 0;
    for (int64_t base = 0; base < clusters; base += 256) { /* the empty ones in rising order */
        const int64_t c = base + tid;
        const bool is_empty = c < clusters && offset[c] == offset[c + 1];
        const unsigned lanes = __ballot_sync(0xffffffffu, is_empty);
        if (lane == 0) warp_empty[warp] = __popc(lanes);
        __syncthreads(); /* counts of the warps */
        int32_t at = empties + __popc(lanes & ((1u << lane) - 1));
        for (int w = 0; w < 8; ++w) {
            if (w < warp) at += warp_empty[w];
            empties += warp_empty[w];
        }
        if (is_empty) empty[at] = (int32_t)c;
        __syncthreads(); /* the counts have been read and may change */
    }
    double most;
    int32_t mine = kmeans_own_donor(inertia, offset, clusters, &most);
    for (; given < empties; ++given) {
        double top = most;
        int32_t who = mine;
        for (int o = 16; o; o >>= 1) {
            const double other = __shfl_xor_sync(0xffffffffu, top, o);
            const int32_t other_who = __shfl_xor_sync(0xffffffffu, who, o);
            if (kmeans_gives_first(other, other_who, top, who)) top = other, who = other_who;
        }
        if (lane == 0) warp_most[warp] = top, warp_donor[warp] = who;
        __syncthreads(); /* the warps' candidates */
        top = 0.0, who = -1;
        for (int w = 0; w < 8; ++w)
            if (kmeans_gives_first(warp_most[w], warp_donor[w], top, who))
                top = warp_most[w], who = warp_donor[w];
        if (!SVG2__FAULT(15)) __syncthreads(); /* all have read them: the next choice may overwrite them */
        if (who < 0) break;
        if (tid == 0) donor[given] = who;
        if (who == mine) { /* gives once */
            inertia[who] = 0.0;
            mine = kmeans_own_donor(inertia, offset, clusters, &most);
        }
    }
    if (tid == 0) pairs[head] = given;
}

struct kmeans_reseed_args {
    tensor         x;
    const float   *mean;
    float         *centre;
    const int32_t *order, *offset, *empty, *donor, *pairs;
    int64_t        items, pitch;
    int32_t        heads, dim, clusters;
};

/* Block = (head, every 32nd pair), 8 warps: a warp looks at every 8th row of the donor, 4 rows under way. The
   farthest row wins, the first of equals. */
template <class E, bool IS_VECTOR>
static __global__ void __launch_bounds__(256) kmeans_reseed(const __grid_constant__ kmeans_reseed_args p)
{
    SVG2_DYN_SMEM(kmeans_smem, 512);
    float *warp_away = (float *)(void *)kmeans_smem; /* [8] */
    int32_t *warp_at = (int32_t *)(void *)(warp_away + 8);
    const int64_t item = item_index();
    if (item >= p.items) return;
    const int64_t head = item / KM_RESEED_BLOCKS, base = row_at(p.x, head / p.heads, head % p.heads, 0);
    const int tid = (int)threadIdx.x, warp = tid / WARP, lane = tid % WARP, e = 8 * lane;
    const int column = e < p.dim ? e : 0; /* lanes without columns read those of lane 0, to no effect */
    constexpr int U = 4;
    const int32_t *order = p.order + head * p.pitch, *offset = p.offset + head * ((int64_t)p.clusters + 1);
    const float *mean = p.mean + head * p.dim;
    float *centre = p.centre + head * p.clusters * p.dim;
    for (int32_t r = (int32_t)(item % KM_RESEED_BLOCKS); r < p.pairs[head]; r += KM_RESEED_BLOCKS) {
        const int32_t donor = p.donor[head * p.clusters + r], end = offset[donor + 1];
        float *target = centre + (int64_t)p.empty[head * p.clusters + r] * p.dim, shift[8], origin[8], x[8],
              farthest = 0.0f;
        int32_t at = -1;
        for (int i = 0; i < 8; ++i) {
            shift[i] = mean[column + i];
            origin[i] = centre[(int64_t)donor * p.dim + column + i];
        }
        raw8<E> next[U];
        const auto fetch = [&](int64_t j) { /* rows behind the last repeat it */
#pragma unroll
            for (int k = 0; k < U; ++k)
                load_raw8<E, IS_VECTOR>(
                    next[k], p.x, base + order[min(j + 8 * k, (int64_t)end - 1)] * p.x.stride_token, column);
        };
        fetch(offset[donor] + warp);
        for (int64_t j = offset[donor] + warp; j < end; j += 8 * U) {
            raw8<E> raw[U];
            float away[U];
#pragma unroll
            for (int k = 0; k < U; ++k) raw[k] = next[k];
            fetch(j + 8 * U); /* a round ahead: else the compiler lets every row wait for the one before */
#pragma unroll
            for (int k = 0; k < U; ++k) {
                numbers(x, raw[k]);
                away[k] = 0.0f;
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const float d = x[i] - shift[i] - origin[i];
                    away[k] += d * d;
                }
                away[k] = warp_sum(e < p.dim ? away[k] : 0.0f);
            }
#pragma unroll
            for (int k = 0; k < U; ++k)
                if (j + 8 * k < end && away[k] > farthest) farthest = away[k], at = (int32_t)(j + 8 * k);
        }
        if (lane == 0) warp_away[warp] = farthest, warp_at[warp] = at;
        __syncthreads(); /* the warps' candidates */
        farthest = 0.0f, at = -1;
        for (int w = 0; w < 8; ++w)
            if (warp_at[w] >= 0 && (warp_away[w] > farthest || (warp_away[w] == farthest && warp_at[w] < at)))
                farthest = warp_away[w], at = warp_at[w];
        if (!SVG2__FAULT(16)) __syncthreads(); /* all have read them: the next pair may overwrite them */
        if (at < 0 || warp > 0 || e >= p.dim) continue;
        load8(x, p.x, base + order[at] * p.x.stride_token, e);
        for (int i = 0; i < 8; ++i) target[e + i] = x[i] - mean[e + i];
    }
}

/* ---- results ---- */
struct kmeans_finish_args {
    const float   *centre, *mean;
    const int32_t *offset; /* NULL: one cluster */
    const void    *start;
    void          *store;
    float         *centroid;
    int32_t       *size;
    int64_t        items; /* 8 clusters each */
    int64_t        total; /* clusters of all heads */
    int32_t        clusters, dim, count, store_dtype;
    int32_t        is_kept; /* store gets start, not the new centroids */
};

/* Warp = cluster. */
static __global__ void __launch_bounds__(256) kmeans_finish(const __grid_constant__ kmeans_finish_args p)
{
    const int64_t item = item_index(), c = item * 8 + threadIdx.x / WARP;
    if (item >= p.items || c >= p.total) return;
    const int64_t head = c / p.clusters;
    const int lane = (int)threadIdx.x % WARP;
    for (int e = lane; e < p.dim; e += WARP) {
        const float x = p.centre[c * p.dim + e];
        p.centroid[c * p.dim + e] = x + p.mean[head * p.dim + e];
        if (!p.store) continue;
        if (!p.is_kept) store1(p.store, p.store_dtype, c * p.dim + e, x);
        else if (p.store_dtype == SVG2_F32)
            ((uint32_t *)p.store)[c * p.dim + e] = ((const uint32_t *)p.start)[c * p.dim + e];
        else ((uint16_t *)p.store)[c * p.dim + e] = ((const uint16_t *)p.start)[c * p.dim + e];
    }
    if (lane != 0) return;
    const int32_t *offset = p.offset ? p.offset + head * ((int64_t)p.clusters + 1) + c % p.clusters : NULL;
    p.size[c] = offset ? offset[1] - offset[0] : p.count;
}

/* One cluster. Block = 4096 tokens of a head. */
static __global__ void __launch_bounds__(256)
    kmeans_label_all(int32_t *label, int64_t stride, int32_t count, int64_t blocks, int64_t items)
{
    const int64_t item = item_index();
    if (item >= items) return;
    const int64_t first = item % blocks * 4096, last = min(first + 4096, (int64_t)count);
    for (int64_t i = first + threadIdx.x; i < last; i += 256) label[item / blocks * stride + i] = 0;
}

/* ---- host ---- */
static svg2_result kmeans_pack_run(const svg2_backend *backend, kmeans_pack_args p, int64_t heads,
                                   svg2_dtype dtype, svg2_error *err)
{
    p.items = heads * ((p.end - p.begin) / 8);
    return launch(backend, err, "kmeans_pack",
                  dtype == SVG2_F16 ? kmeans_pack<__half> : kmeans_pack<__nv_bfloat16>, grid_items(p.items),
                  256, 0, p);
}

template <int DIM>
static svg2_result kmeans_assign_dim(const svg2_backend *backend, kmeans_assign_args p, int64_t heads,
                                     bool is_seed, bool is_wgmma, svg2_error *err)
{
    const bool is_f16 = p.x.dtype == SVG2_F16;
    const int rows = is_wgmma ? (int)kmeans_wide<DIM>::ROWS : (int)KM_TILE;
    p.tiles = (int32_t)(((int64_t)p.rows + rows - 1) / rows);
    p.items = heads * p.tiles; /* below 2^30: a label has 4 bytes */
    if (is_wgmma) {
        int device = 0, blocks = 0;
        SVG2__CUDA(cudaGetDevice(&device), "device");
        SVG2__CUDA(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, device), "device");
        return launch(backend, err, "kmeans_assign_wgmma",
                      is_f16 ? kmeans_assign_wgmma<DIM, __half> : kmeans_assign_wgmma<DIM, __nv_bfloat16>,
                      dim3((unsigned)(p.items < blocks ? p.items : blocks)), kmeans_wide<DIM>::THREADS,
                      kmeans_wide<DIM>::BYTES, p);
    }
    void (*kernel)(kmeans_assign_args);
    if (is_seed) kernel = is_f16 ? kmeans_assign<DIM, __half, true> : kmeans_assign<DIM, __nv_bfloat16, true>;
    else kernel = is_f16 ? kmeans_assign<DIM, __half, false> : kmeans_assign<DIM, __nv_bfloat16, false>;
    return launch(backend, err, is_seed ? "kmeans_seed_distance" : "kmeans_assign", kernel,
                  grid_items(p.items), 256, 2 * kmeans_stage<DIM>::BYTES, p);
}

static svg2_result kmeans_assign_run(const svg2_backend *backend, const kmeans_assign_args &p, int64_t heads,
                                     int32_t padded, bool is_seed, bool is_wgmma, svg2_error *err)
{
    switch (padded) {
    case 64: return kmeans_assign_dim<64>(backend, p, heads, is_seed, is_wgmma, err);
    case 96: return kmeans_assign_dim<96>(backend, p, heads, is_seed, is_wgmma, err);
    case 128: return kmeans_assign_dim<128>(backend, p, heads, is_seed, is_wgmma, err);
    default: return kmeans_assign_dim<256>(backend, p, heads, is_seed, is_wgmma, err);
    }
}

template <class E> static auto kmeans_pieces_for(const tensor &x)
{
    return x.is_vector ? kmeans_pieces<E, true> : kmeans_pieces<E, false>;
}

template <class E> static auto kmeans_reseed_for(const tensor &x)
{
    return x.is_vector ? kmeans_reseed<E, true> : kmeans_reseed<E, false>;
}

static svg2_result run_kmeans(const svg2_backend *backend, const svg2_kmeans_desc *d, void *workspace,
                              svg2_error *err)
{
    const kmeans_shape s = kmeans_shape_of(d);
    const int32_t dim = d->head_dim, rounds = d->iterations > 0 ? d->iterations : 1;
    const svg2_dtype dtype = d->layout.dtype;
    const bool is_single = d->clusters == 1;
    bool is_wgmma;
    kmeans_memory m;
    tensor x = tensor_of(d->x, d->layout, d->heads, d->tokens, dim);
    int32_t *label = d->label + d->token_begin;
    SVG2__RUN(takes_wgmma(backend, &is_wgmma, err));
    (void)kmeans_layout(d, workspace, &m);
    x.data = (const char *)x.data + (size_t)d->token_begin * (size_t)x.stride_token * dtype_bytes(dtype);

    SVG2__RUN(launch(backend, err, "kmeans_sum",
                     dtype == SVG2_F32   ? kmeans_sum<float>
                     : dtype == SVG2_F16 ? kmeans_sum<__half>
                                         : kmeans_sum<__nv_bfloat16>,
                     grid_items(s.heads * s.chunks), 256, 256 * 8 * sizeof(float), x, d->heads, dim, s.count,
                     s.chunks, s.heads * s.chunks, m.partial));
    SVG2__RUN(launch(backend, err, "kmeans_start", kmeans_start, grid_items(s.heads), 512,
                     512 * sizeof(double), m.partial, dim, s.count, s.chunks, s.heads, d->mean,
                     is_single ? m.centre : NULL, is_single ? NULL : m.moved + s.heads));
    if (is_single) {
        const int64_t blocks = ((int64_t)s.count + 4095) / 4096;
        SVG2__RUN(launch(backend, err, "kmeans_label_all", kmeans_label_all, grid_items(s.heads * blocks),
                         256, 0, label, (int64_t)d->tokens, s.count, blocks, s.heads * blocks));
    } else {
        kmeans_pack_args pack;
        kmeans_assign_args assign;
        sort_job sort = kmeans_sort_job(d, &s);

        memset(&pack, 0, sizeof pack);
        pack.centre = m.centre;
        pack.mean = d->mean;
        pack.packed = m.packed;
        pack.bias = m.bias;
        pack.clusters = d->clusters;
        pack.clusters64 = s.clusters64;
        pack.dim = dim;
        pack.padded = s.padded;
        pack.start_dtype = d->store_dtype;
        pack.is_shifted = dtype != SVG2_F32;

        memset(&assign, 0, sizeof assign);
        assign.x = x;
        assign.mean = d->mean;
        assign.packed = m.packed;
        assign.bias = m.bias;
        assign.label = label;
        assign.label_stride = d->tokens;
        assign.distance = m.distance;
        assign.heads = d->heads;
        assign.dim = dim;
        assign.clusters64 = s.clusters64;
        assign.count = s.count;

        if (!d->start) {
            const int32_t batch = round_up((d->clusters + KM_SEED_ROUNDS - 1) / KM_SEED_ROUNDS, 4);
            kmeans_draw_args draw;
            memset(&draw, 0, sizeof draw);
            draw.x = x;
            draw.mean = d->mean;
            draw.distance = m.distance;
            draw.centre = m.centre;
            draw.seed = d->seed;
            draw.total = s.heads;
            draw.heads = d->heads;
            draw.dim = dim;
            draw.clusters = d->clusters;
            draw.count = s.count;
            draw.samples = s.samples;
            draw.run_length = round_up(s.samples, KM_RUNS * WARP) / KM_RUNS;
            while (draw.first < d->clusters) {
                draw.batch = d->clusters - draw.first < batch ? d->clusters - draw.first : batch;
                SVG2__RUN(launch(backend, err, "kmeans_draw", kmeans_draw, grid_items(s.heads), 512,
                                 (KM_RUNS + 512 / WARP) * sizeof(double), draw));
                pack.known = draw.first + draw.batch;
                if (pack.known == d->clusters) break; /* nobody asks for the last distances */
                pack.begin = assign.begin = draw.first / 16 * 16;
                pack.end = assign.end = round_up(pack.known, 16);
                assign.rows = s.samples;
                assign.is_first = draw.first == 0;
                SVG2__RUN(kmeans_pack_run(backend, pack, s.heads, dtype, err));
                SVG2__RUN(kmeans_assign_run(backend, assign, s.heads, s.padded, true, false, err));
                draw.first = pack.known;
            }
        }

        sort.label = label;
        sort.order = m.order;
        sort.offset = m.offset;
        sort.swap = m.swap;
        sort.histogram = m.histogram;
        pack.begin = assign.begin = 0;
        pack.end = s.clusters64;
        assign.end = is_wgmma ? s.clusters64 : round_up(d->clusters, 16);
        pack.known = d->clusters;
        assign.rows = s.count;
        for (int32_t round = 0; round < rounds; ++round) {
            const int32_t *before = m.moved + (round % 2 ? 0 : s.heads);
            int32_t *moved = m.moved + (round % 2 ? s.heads : 0);
            kmeans_pieces_args pieces;
            pack.before = assign.before = before;
            pack.moved = assign.moved = moved;
            sort.moved = moved;
            pack.start = round == 0 ? d->start : NULL;
            assign.is_first = round == 0;
            SVG2__RUN(kmeans_pack_run(backend, pack, s.heads, dtype, err));
            SVG2__RUN(kmeans_assign_run(backend, assign, s.heads, s.padded, false, is_wgmma, err));
            SVG2__RUN(sort_run(backend, &sort, err));

            memset(&pieces, 0, sizeof pieces);
            pieces.x = x;
            pieces.mean = d->mean;
            pieces.order = m.order;
            pieces.offset = m.offset;
            pieces.label = label;
            pieces.moved = moved;
            pieces.piece = m.piece;
            pieces.pitch = s.pitch;
            pieces.label_stride = d->tokens;
            pieces.heads = d->heads;
            pieces.dim = dim;
            pieces.clusters = d->clusters;
            pieces.count = s.count;
            pieces.pieces = s.pieces;
            pieces.slot = s.slot;
            pieces.blocks = (int32_t)(((int64_t)s.pieces + 128 / (dim / 8) - 1) / (128 / (dim / 8)));
            pieces.items = s.heads * pieces.blocks;
            SVG2__RUN(launch(backend, err, "kmeans_pieces",
                             dtype == SVG2_F32   ? kmeans_pieces_for<float>(x)
                             : dtype == SVG2_F16 ? kmeans_pieces_for<__half>(x)
                                                 : kmeans_pieces_for<__nv_bfloat16>(x),
                             grid_items(pieces.items), 128, 0, pieces));
            SVG2__RUN(launch(backend, err, "kmeans_update", kmeans_update, grid_items(s.heads * d->clusters),
                             128, (4 * 128 + 4) * sizeof(double), m.piece, m.offset, moved,
                             s.heads * d->clusters, d->clusters, s.pieces, s.slot, dim, m.centre, m.inertia));
            if (!d->keep_empty) {
                kmeans_reseed_args reseed;
                memset(&reseed, 0, sizeof reseed);
                reseed.x = x;
                reseed.mean = d->mean;
                reseed.centre = m.centre;
                reseed.order = m.order;
                reseed.offset = m.offset;
                reseed.empty = m.empty;
                reseed.donor = m.donor;
                reseed.pairs = m.pairs;
                reseed.items = s.heads * KM_RESEED_BLOCKS;
                reseed.pitch = s.pitch;
                reseed.heads = d->heads;
                reseed.dim = dim;
                reseed.clusters = d->clusters;
                SVG2__RUN(launch(backend, err, "kmeans_donors", kmeans_donors, grid_items(s.heads), 256,
                                 128 + 64, moved, m.offset, m.inertia, s.heads, d->clusters, m.empty, m.donor,
                                 m.pairs));
                SVG2__RUN(launch(backend, err, "kmeans_reseed",
                                 dtype == SVG2_F32   ? kmeans_reseed_for<float>(x)
                                 : dtype == SVG2_F16 ? kmeans_reseed_for<__half>(x)
                                                     : kmeans_reseed_for<__nv_bfloat16>(x),
                                 grid_items(reseed.items), 256, 64, reseed));
            }
        }
    }

    kmeans_finish_args finish;
    memset(&finish, 0, sizeof finish);
    finish.centre = m.centre;
    finish.mean = d->mean;
    finish.offset = is_single ? NULL : m.offset;
    finish.is_kept = d->start && d->iterations == 0; /* 0 iterations keep the centroids */
    finish.start = d->start;
    finish.store = finish.is_kept && d->store == d->start ? NULL : d->store;
    finish.centroid = d->centroid;
    finish.size = d->size;
    finish.total = s.heads * d->clusters;
    finish.items = (finish.total + 7) / 8;
    finish.clusters = d->clusters;
    finish.dim = dim;
    finish.count = s.count;
    finish.store_dtype = d->store_dtype;
    SVG2__RUN(launch(backend, err, "kmeans_finish", kmeans_finish, grid_items(finish.items), 256, 0, finish));
    return ok(err);
}

} /* namespace svg2__cuda */

/* ==== >>permute ============================================================================
   A stable counting sort, of labels up to 2048 in one pass, else one pass per digit of them:

       count   block = (head, chunk of 4096 tokens): how often each label occurs    histogram [chunks][bins]
       scan    block = head: where the tokens of (label, chunk) begin               the same, and offset
       rank    block = (head, chunk): warp by warp, 32 tokens at a time, each token's place

   Workspace of a head in bytes: 4 chunks * bins (24 heads of 118,800 tokens, 1002 blocks: 2.8 MB), and 4 S
   beyond 2048 blocks. */
namespace svg2__cuda {

enum {
    SORT_CHUNK = 4096,  /* tokens of a chunk, or more where there would be over SORT_CHUNKS */
    SORT_CHUNKS = 1024,
    SORT_DIGIT = 11     /* bits */
};

static void sort_shape(sort_job *j)
{
    int bits = 1;
    while (bits < 31 && (int64_t)1 << bits < j->blocks) ++bits;
    j->passes = (bits + SORT_DIGIT - 1) / SORT_DIGIT;
    j->digit = (bits + j->passes - 1) / j->passes;
    j->bins = j->passes == 1 ? j->blocks : 1 << j->digit;
    const int64_t even = ((int64_t)j->count + SORT_CHUNKS - 1) / SORT_CHUNKS;
    j->chunk = even <= SORT_CHUNK ? SORT_CHUNK : round_up((int32_t)even, SORT_CHUNK);
    j->chunks = (int32_t)(((int64_t)j->count + j->chunk - 1) / j->chunk);
}

/* A label outside of its range, an error on the CPU, counts as the last cluster: nothing may leave the
   histogram. */
SVG2__DEVICE int32_t sort_label(const sort_job &j, const int32_t *label, int32_t token)
{
    if ((uint32_t)(token - j.text_begin) < (uint32_t)j.text_count) return j.clusters;
    if ((uint32_t)(token - j.padding_begin) < (uint32_t)j.padding_count) return j.blocks - 1;
    return (int32_t)min((uint32_t)label[token], (uint32_t)j.clusters - 1);
}

/* the digit of the i-th token in the order that the last pass left; source NULL: in their own order */
SVG2__DEVICE int32_t sort_digit(const sort_job &j, const int32_t *label, const int32_t *source, int32_t i,
                                int32_t shift, int32_t *token)
{
    *token = source ? source[i] : i;
    const int32_t l = sort_label(j, label, *token) >> shift;
    return j.passes == 1 ? l : l & ((1 << j.digit) - 1);
}

/* 4 bins bytes of shared memory. Limiter: DRAM, one pass over the labels. */
static __global__ void __launch_bounds__(256)
    sort_count(const __grid_constant__ sort_job j, const int32_t *all_source, int32_t shift)
{
    SVG2_DYN_SMEM(kmeans_smem, 512);
    int32_t *bin = (int32_t *)(void *)kmeans_smem;
    const int64_t item = item_index();
    if (item >= j.heads * j.chunks) return;
    const int64_t head = item / j.chunks, first = item % j.chunks * j.chunk;
    const int64_t last = min(first + j.chunk, (int64_t)j.count);
    if (j.moved && j.moved[head] == 0) return;
    int32_t *label = j.label + head * j.stride;
    const int32_t *source = all_source ? all_source + head * j.pitch : NULL;
    for (int b = (int)threadIdx.x; b < j.bins; b += 256) bin[b] = 0;
    if (!SVG2__FAULT(20)) __syncthreads(); /* zeros before counts */
    for (int64_t i = first + threadIdx.x; i < last; i += 256) {
        int32_t token;
        atomicAdd(&bin[sort_digit(j, label, source, (int32_t)i, shift, &token)], 1);
        if (source) continue;
        const int32_t l = sort_label(j, label, token);
        if (l != label[token]) label[token] = l; /* text and padding */
    }
    __syncthreads(); /* all counts before they are read */
    for (int b = (int)threadIdx.x; b < j.bins; b += 256) j.histogram[item * j.bins + b] = bin[b];
}

/* Thread = bin: its count over all chunks, a prefix sum over the bins, then the beginning of each chunk's
   share. Up to 1024 threads, neighbours read neighbouring bins; 128 bytes of shared memory; latency of 2 *
   chunks / 8 loads. */
static __global__ void __launch_bounds__(1024) sort_scan(const __grid_constant__ sort_job j)
{
    SVG2_DYN_SMEM(kmeans_smem, 512);
    int32_t *warp_total = (int32_t *)(void *)kmeans_smem; /* [32] */
    const int64_t head = item_index();
    if (head >= j.heads) return;
    if (j.moved && j.moved[head] == 0) return;
    const int tid = (int)threadIdx.x, threads = (int)blockDim.x, warp = tid / WARP, lane = tid % WARP;
    int32_t *histogram = j.histogram + head * j.chunks * j.bins;
    int32_t below = 0; /* tokens in lower bins */
    for (int base = 0; base < j.bins; base += threads) {
        const int b = base + tid;
        int32_t mine = 0;
        if (b < j.bins) {
#pragma unroll 8
            for (int32_t c = 0; c < j.chunks; ++c) mine += histogram[(int64_t)c * j.bins + b];
        }
        const int32_t upto = warp_prefix(mine);
        if (lane == WARP - 1) warp_total[warp] = upto;
        __syncthreads(); /* totals of the warps */
        int32_t at = below + upto - mine;
        for (int w = 0; w < threads / WARP; ++w) {
            if (w < warp) at += warp_total[w];
            below += warp_total[w];
        }
        if (!SVG2__FAULT(21)) __syncthreads(); /* they have been read: the next bins may overwrite them */
        if (b >= j.bins) continue;
        if (j.passes == 1) j.offset[head * ((int64_t)j.blocks + 1) + b] = at;
#pragma unroll 8
        for (int32_t c = 0; c < j.chunks; ++c) {
            const int32_t n = histogram[(int64_t)c * j.bins + b];
            histogram[(int64_t)c * j.bins + b] = at;
            at += n;
        }
    }
    if (j.passes == 1 && tid == 0) j.offset[head * ((int64_t)j.blocks + 1) + j.blocks] = j.count;
}

/* 8 warps, each with an eighth of the chunk in order and with its own counters: 32 bins bytes of shared
   memory (1002 bins: 32 KB). First the warps count, which tells where each one's tokens of a bin begin; then
   lanes with the same bin find each other by match, and the rank among them is a popcount. Limiter: latency
   of shared memory; writes of order are scattered, but stay in L2. */
static __global__ void __launch_bounds__(256)
    sort_rank(const __grid_constant__ sort_job j, const int32_t *all_source, int32_t *all_target,
              int32_t shift)
{
    SVG2_DYN_SMEM(kmeans_smem, 512);
    int32_t *counter = (int32_t *)(void *)kmeans_smem; /* [8][bins] */
    const int64_t item = item_index();
    if (item >= j.heads * j.chunks) return;
    const int64_t head = item / j.chunks, chunk_first = item % j.chunks * j.chunk;
    if (j.moved && j.moved[head] == 0) return;
    const int tid = (int)threadIdx.x, warp = tid / WARP, lane = tid % WARP;
    const int32_t *label = j.label + head * j.stride,
                  *source = all_source ? all_source + head * j.pitch : NULL;
    int32_t *target = all_target + head * j.pitch, *own = counter + (int64_t)warp * j.bins;
    const int64_t first = chunk_first + (int64_t)warp * (j.chunk / 8),
                  last = min(first + j.chunk / 8, (int64_t)j.count);
    for (int b = tid; b < 8 * j.bins; b += 256) counter[b] = 0;
    __syncthreads(); /* zeros before counts */
    for (int64_t i = first + lane; i < last; i += WARP) {
        int32_t token;
        atomicAdd(&own[sort_digit(j, label, source, (int32_t)i, shift, &token)], 1);
    }
    if (!SVG2__FAULT(22)) __syncthreads(); /* all counts before they become places */
    for (int b = tid; b < j.bins; b += 256) {
        int32_t at = j.histogram[item * j.bins + b];
        for (int w = 0; w < 8; ++w) {
            const int32_t n = counter[w * j.bins + b];
            counter[w * j.bins + b] = at;
            at += n;
        }
    }
    __syncthreads(); /* the places of all bins, before they are handed out */
    for (int64_t base = first; base < last; base += WARP) {
        const bool is_there = base + lane < last;
        int32_t token = 0, bin = j.bins; /* lanes without a token have a bin of their own */
        if (is_there) bin = sort_digit(j, label, source, (int32_t)(base + lane), shift, &token);
        const unsigned same = __match_any_sync(0xffffffffu, bin);
        if (is_there) target[own[bin] + __popc(same & ((1u << lane) - 1))] = token;
        if (!SVG2__FAULT(23)) __syncwarp(); /* all have read the counters, one of the lanes moves each on */
        if (is_there && lane == __ffs((int)same) - 1) own[bin] += __popc(same);
        if (!SVG2__FAULT(24)) __syncwarp(); /* moved on before the next 32 tokens read them */
    }
}

/* Several passes: offset by bisection of the sorted labels. Thread = (head, block). */
static __global__ void __launch_bounds__(256) sort_offset(const __grid_constant__ sort_job j)
{
    const int64_t i = item_index() * 256 + threadIdx.x, extent = (int64_t)j.blocks + 1;
    if (i >= j.heads * extent) return;
    const int64_t head = i / extent;
    if (j.moved && j.moved[head] == 0) return;
    const int32_t *label = j.label + head * j.stride, *order = j.order + head * j.pitch,
                  block = (int32_t)(i % extent);
    int32_t lo = 0, hi = j.count; /* the first token of this block or a later one is in [lo, hi] */
    while (lo < hi) {
        const int32_t mid = lo + (hi - lo) / 2;
        if (sort_label(j, label, order[mid]) < block) lo = mid + 1;
        else hi = mid;
    }
    j.offset[i] = lo;
}

static svg2_result sort_run(const svg2_backend *backend, const sort_job *j, svg2_error *err)
{
    const int64_t items = j->heads * j->chunks;
    const unsigned threads = j->bins < 1024 ? (unsigned)round_up(j->bins, WARP) : 1024u;
    const int32_t *source = NULL;
    for (int32_t pass = 0; pass < j->passes; ++pass) {
        int32_t *target = (j->passes - 1 - pass) % 2 ? j->swap : j->order; /* the last pass writes order */
        const int32_t shift = pass * j->digit;
        SVG2__RUN(launch(backend, err, "sort_count", sort_count, grid_items(items), 256, (size_t)j->bins * 4,
                         *j, source, shift));
        SVG2__RUN(launch(backend, err, "sort_scan", sort_scan, grid_items(j->heads), threads, 32 * 4, *j));
        SVG2__RUN(launch(backend, err, "sort_rank", sort_rank, grid_items(items), 256, (size_t)j->bins * 32,
                         *j, source, target, shift));
        source = target;
    }
    if (j->passes > 1)
        SVG2__RUN(launch(backend, err, "sort_offset", sort_offset,
                         grid_items((j->heads * ((int64_t)j->blocks + 1) + 255) / 256), 256, 0, *j));
    return SVG2_OK;
}

static size_t permute_layout(const svg2_permute_desc *d, void *base, sort_job *job = NULL)
{
    arena a = {(char *)base, 0};
    sort_job j;
    memset(&j, 0, sizeof j);
    j.label = d->label;
    j.order = d->order;
    j.offset = d->offset;
    j.heads = (int64_t)d->batch * d->heads;
    j.stride = j.pitch = j.count = d->tokens;
    j.clusters = d->clusters;
    j.blocks = d->clusters + (d->text_count > 0) + (d->padding_count > 0);
    j.text_begin = d->text_begin;
    j.text_count = d->text_count;
    j.padding_begin = d->padding_begin;
    j.padding_count = d->padding_count;
    sort_shape(&j);
    j.histogram = a.take<int32_t>(count_of(j.heads, j.chunks, j.bins));
    j.swap = a.take<int32_t>(count_of(j.passes > 1 ? j.heads : 0, j.pitch));
    if (job) *job = j;
    return a.used;
}

static svg2_result run_permute(const svg2_backend *backend, const svg2_permute_desc *d, void *workspace,
                               svg2_error *err)
{
    sort_job j;
    (void)permute_layout(d, workspace, &j);
    SVG2__RUN(sort_run(backend, &j, err));
    return ok(err);
}

} /* namespace svg2__cuda */

/* ==== >>score ==============================================================================
   The rows of a head, sorted by cluster, are worked on in units: up to R rows of one cluster. Cluster j has
   the units from (offset[j] + (R - 1) j) / R on; as many as it needs fit before those of cluster j + 1. So a
   block knows its rows after a search among the offsets, without a list that a scan would have to make; the
   price is one empty unit or none per cluster. A cluster of one unit is finished where it is read. The units
   of a larger one leave partial results, which a second kernel adds in order: a giant cluster spreads over
   the machine, and the bits do not depend on who was first. The number of units is below 2^31 because the
   orders, 4 bytes a row, have to fit into memory. */
namespace svg2__cuda {

static inline int units_of(int64_t rows, int64_t clusters, int shift) /* R = 2^shift */
{
    return (int)((rows + (((int64_t)1 << shift) - 1) * clusters) >> shift);
}

SVG2__DEVICE int64_t first_unit(const int32_t *offset, int64_t cluster, int shift)
{
    return (offset[cluster] + (((int64_t)1 << shift) - 1) * cluster) >> shift;
}

/* The last cluster whose first unit is not behind this one. A search by the whole warp, 32 candidates a
   round. */
SVG2__DEVICE int cluster_of_unit(const int32_t *offset, int clusters, int shift, int64_t unit)
{
    const int lane = threadIdx.x & 31;
    int at = 0, left = clusters; /* it is in [at, at + left) */
    while (left > 1) {
        const int step = (left + 31) / 32, more = lane * step;
        const unsigned before =
            __ballot_sync(0xffffffffu, more < left && first_unit(offset, at + more, shift) <= unit);
        const int last = (31 - __clz((int)before)) * step; /* before is a run of ones from lane 0 on */
        at += last;
        left = min(step, left - last);
    }
    return at;
}

struct unit_rows {
    int cluster, size; /* and how many rows that has                              */
    int piece;         /* the unit is this one of the cluster's                   */
    int first, count;  /* its rows, as positions in the order; count may be 0     */
};

SVG2__DEVICE unit_rows rows_of_unit(const int32_t *offset, int clusters, int shift, int64_t unit)
{
    unit_rows u;
    int64_t skipped;
    u.cluster = cluster_of_unit(offset, clusters, shift, unit);
    u.size = offset[u.cluster + 1] - offset[u.cluster];
    u.piece = (int)(unit - first_unit(offset, u.cluster, shift));
    skipped = (int64_t)u.piece << shift;
    u.count = (int)min((int64_t)1 << shift, max((int64_t)0, u.size - skipped));
    u.first = u.count ? offset[u.cluster] + (int)skipped : 0;
    return u;
}

/* the key head that serves query head bh; there are less than 2^31 */
SVG2__DEVICE int64_t kv_head(int64_t bh, int heads, int heads_kv)
{
    return (int)bh / heads * heads_kv + (int)bh % heads / (heads / heads_kv);
}

/* ---- statistics of a key cluster ---- */
enum { SUMMARY_SHIFT = 7, SUMMARY_AHEAD = 4 }; /* rows of a unit: 2^7; loads a lane has under way */

struct summarize_args {
    tensor v;
    const int32_t *order, *offset;
    float *value_mean, *value_var;
    float *sum, *square; /* [heads, units, D], [heads, units]: relative to the first row of the cluster */
    int heads, tokens, dim, clusters, blocks;
    int units;     /* of a head */
    int64_t count; /* of all    */
};

/* 8 columns of the first row of a cluster; 0 for lanes without columns */
SVG2__DEVICE void summarize_shift(float (&shift)[8], const summarize_args &a, int64_t head, int first,
                                  int column)
{
    for (int i = 0; i < 8; ++i) shift[i] = 0.0f;
    if (column < a.dim)
        load8(shift, a.v, row_at(a.v, head / a.heads, head % a.heads, a.order[head * a.tokens + first]),
              column);
}

/* Lanes below D / 8 hold the sums of 8 columns each; square is that of the row. */
SVG2__DEVICE void summarize_write(const summarize_args &a, int64_t at, int n, const float (&shift)[8],
                                  const double (&sum)[8], double square)
{
    const int lane = threadIdx.x & 31;
    const double scale = n ? 1.0 / n : 0.0;
    double twice = 0.0;
    if (lane < a.dim / 8) {
        float *mean = a.value_mean + at * a.dim + 8 * lane;
        for (int i = 0; i < 8; ++i) {
            mean[i] = (float)((double)shift[i] + sum[i] * scale);
            twice += sum[i] * sum[i] * scale;
        }
    }
    square -= warp_sum(twice);
    if (lane == 0) a.value_var[at] = square > 0.0 ? (float)(square * scale) : 0.0f;
}

/* One warp = one unit: D / 8 lanes side by side on a row, 32 / (D / 8) rows at once, 4 such steps under way.

       D = 128, bf16:   lanes  0..15   row r      16 bytes each
                        lanes 16..31   row r + 1

   Sums relative to the cluster's first row keep the variance of values with a large mean accurate; f32 inside
   a unit (128 rows over 32 / (D / 8) groups), f64 across units. No shared memory, no barrier; 64 registers:
   32 warps in an SM with 2 KB of rows (bf16) under way each. Limiter: reading V once; the partial sums of
   clusters of more than 128 rows add 4 bytes per column of a unit, 3 % at 128 rows each. */
template <class E, bool IS_VECTOR>
static __global__ void __launch_bounds__(256) summarize_units(const __grid_constant__ summarize_args a)
{
    const int64_t item = (int64_t)blockIdx.x * 8 + (threadIdx.x >> 5); /* below 2^31 + 8 */
    if (item >= a.count) return;
    const int lane = threadIdx.x & 31, lanes = a.dim / 8, groups = 32 / lanes;
    const int group = lane / lanes, column = lane % lanes * 8;
    const int64_t head = (int)item / a.units, unit = (int)item % a.units;
    const int32_t *offset = a.offset + head * ((int64_t)a.blocks + 1), *order = a.order + head * a.tokens;
    const unit_rows u = rows_of_unit(offset, a.clusters, SUMMARY_SHIFT, unit);
    if (u.count == 0) return;
    float shift[8], sum[8] = {0}, square = 0.0f;
    summarize_shift(shift, a, head, offset[u.cluster], column);
    const int64_t base = row_at(a.v, head / a.heads, head % a.heads, 0);
    for (int begin = 0; begin < u.count; begin += SUMMARY_AHEAD * groups) {
        const int row = group < groups ? begin + group : u.count;
        raw8<E> raw[SUMMARY_AHEAD];
#pragma unroll
        for (int i = 0; i < SUMMARY_AHEAD; ++i) /* rows behind the last repeat it, and count nothing */
            load_raw8<E, IS_VECTOR>(
                raw[i], a.v, base + order[u.first + min(row + i * groups, u.count - 1)] * a.v.stride_token,
                column);
        __syncwarp(); /* all loads before the first use: else the compiler waits for each */
#pragma unroll
        for (int i = 0; i < SUMMARY_AHEAD; ++i) {
            float x[8];
            numbers(x, raw[i]);
#pragma unroll
            for (int e = 0; e < 8; ++e) {
                const float y = row + i * groups < u.count ? x[e] - shift[e] : 0.0f;
                sum[e] += y;
                square += y * y;
            }
        }
    }
    for (int i = 0; i < 8; ++i) { /* the groups one after the other, into the lanes of the first */
        float all = sum[i];
        for (int g = 1; g < groups; ++g)
            all += __shfl_sync(0xffffffffu, sum[i], (lane % lanes + g * lanes) & 31);
        sum[i] = all;
    }
    square = warp_sum(square);
    if (u.size == u.count) {
        double wide[8];
        for (int i = 0; i < 8; ++i) wide[i] = (double)sum[i];
        summarize_write(a, head * a.clusters + u.cluster, u.size, shift, wide, (double)square);
        return;
    }
    if (lane < lanes)
        for (int i = 0; i < 8; ++i) a.sum[item * a.dim + column + i] = sum[i];
    if (lane == 0) a.square[item] = square;
}

/* One warp = one cluster: adds its units, if they were several; zeros if there was none. */
static __global__ void __launch_bounds__(256) summarize_merge(summarize_args a, int64_t clusters)
{
    const int64_t at = (int64_t)blockIdx.x * 8 + (threadIdx.x >> 5);
    if (at >= clusters) return;
    const int lane = threadIdx.x & 31;
    const int64_t head = at / a.clusters, cluster = at % a.clusters;
    const int32_t *offset = a.offset + head * ((int64_t)a.blocks + 1) + cluster;
    const int n = offset[1] - offset[0];
    const int64_t pieces = ((int64_t)n + (1 << SUMMARY_SHIFT) - 1) >> SUMMARY_SHIFT;
    double sum[8] = {0}, square = 0.0;
    float shift[8] = {0};
    if (pieces == 1) return;
    if (n) summarize_shift(shift, a, head, offset[0], lane * 8);
    const int64_t first = head * a.units + first_unit(offset - cluster, cluster, SUMMARY_SHIFT);
#pragma unroll 4
    for (int64_t i = 0; i < pieces; ++i) {
        if (lane < a.dim / 8)
            for (int e = 0; e < 8; ++e) sum[e] += (double)a.sum[(first + i) * a.dim + lane * 8 + e];
        square += (double)a.square[first + i];
    }
    summarize_write(a, at, n, shift, sum, square);
}

/* (S + 127 C) / 128 units of D + 1 floats per head: 24 heads of 119,000 tokens, 1000 clusters, D = 128: 24
   MB. */
static size_t summarize_layout(const svg2_summarize_desc *d, void *base, summarize_args *out = NULL)
{
    arena a = {(char *)base, 0};
    summarize_args w;
    memset(&w, 0, sizeof w);
    w.units = units_of(d->tokens, d->clusters, SUMMARY_SHIFT);
    w.sum = a.take<float>(count_of(d->batch, d->heads, w.units, d->head_dim));
    w.square = a.take<float>(count_of(d->batch, d->heads, w.units));
    if (out) *out = w;
    return a.used;
}

template <class E> static auto summarize_units_for(const tensor &v)
{
    return v.is_vector ? summarize_units<E, true> : summarize_units<E, false>;
}

static svg2_result run_summarize(const svg2_backend *backend, const svg2_summarize_desc *d, void *workspace,
                                 svg2_error *err)
{
    const int64_t heads = (int64_t)d->batch * d->heads, clusters = heads * d->clusters;
    summarize_args a;
    (void)summarize_layout(d, workspace, &a);
    a.v = tensor_of(d->v, d->v_layout, d->heads, d->tokens, d->head_dim);
    a.order = d->order;
    a.offset = d->offset;
    a.value_mean = d->value_mean;
    a.value_var = d->value_var;
    a.heads = d->heads;
    a.tokens = d->tokens;
    a.dim = d->head_dim;
    a.clusters = d->clusters;
    a.blocks = d->blocks;
    a.count = heads * a.units;
    SVG2__RUN(launch(backend, err, "summarize_units",
                     a.v.dtype == SVG2_F32   ? summarize_units_for<float>(a.v)
                     : a.v.dtype == SVG2_F16 ? summarize_units_for<__half>(a.v)
                                             : summarize_units_for<__nv_bfloat16>(a.v),
                     dim3(grid_of((a.count + 7) / 8)), 256, 0, a));
    SVG2__RUN(launch(backend, err, "summarize_merge", summarize_merge, dim3(grid_of((clusters + 7) / 8)), 256,
                     0, a, clusters));
    return ok(err);
}

/* ---- log mass and share ----
   Both are products with a sum of exponentials behind, on the tensor cores with f32 accumulation:

       log mass   query centroids (A) x keys relative to their centroid (B), reduced over the keys
       share      key centroids relative to the mean (A) x query rows (B), reduced over both

   scale * log2(e) enters in f32 after the product, where it costs nothing (one fused multiply-add per logit)
   and rounds nothing. The A operands are packed once in the order of the fragments of mma.m16n8k16, 16 bytes
   per lane: a fragment is then one load, from global memory or from a copy in shared memory, without bank
   conflicts. */
enum { SCORE_TILE = 64 }; /* key centroids that the blocks of the share take through shared memory at once */

template <int DP> struct score_shape {
    enum {
        STEPS = DP / 16,              /* of 16 dimensions                                              */
        FRAGMENTS = DP > 128 ? 1 : 2, /* of 16 query centroids, that a warp holds in registers         */
        UNITS = DP > 128 ? 2 : 4,     /* of 64 keys, in the tile of a block                            */
        COLUMNS = DP > 128 ? 2 : 4,   /* fragments of 8 query rows, that a warp holds in registers     */
        ROW_SHIFT = DP > 128 ? 7 : 8, /* log2 of the query rows of a unit: 8 warps x COLUMNS x 8       */
        STAGES = DP > 128 ? 2 : 3,    /* tiles of key centroids in shared memory                       */
        TILE_BYTES = SCORE_TILE * DP * 2,
        LOG_MASS_SMEM = UNITS * 64 * DP * 2 + UNITS * 32,
        SHARE_SMEM = STAGES * TILE_BYTES + 2 * SCORE_TILE * 4 + 2 * 8 * SCORE_TILE * 4
    };
};
enum { KEY_SHIFT = 6 }; /* log2 of the keys of a unit */

struct score_args {
    tensor q, k, key_centroid;
    const int32_t *query_order, *query_offset, *key_order, *key_offset;
    uint4 *query_pack, *key_pack; /* fragments: [BH, tiles of 16, steps, 32], [BHkv, ..] */
    float *log_mass, *share;
    float *partial;               /* log mass: [BH, tiles, 2, Cq]; then share: [BH, units, Ck] */
    int heads, heads_kv, tokens, tokens_kv, dim;
    int cq, ck, query_blocks, key_blocks;
    int query_tiles, key_tiles;   /* of 16 centroids, in a pack */
    int tiles, units;             /* blocks of a head: log mass, share */
    float factor;                 /* scale * log2(e); for the log mass |that|, the sign is in the pack */
};

/* One thread = one lane's 16 bytes of a fragment of 16 rows x 16 dimensions of factor * (x - shift). Rows
   behind the last repeat it: they meet what it meets, a NaN too, and are never written. is_wide: the
   dimensions in the order in which lanes that load 16 bytes of a row at once hold them (score_share): lane t
   of a quad has 32s + 8t .. 32s + 8t + 7, two steps at once. The order does not matter to the product as long
   as both operands have it. */
template <class T>
static __global__ void __launch_bounds__(256)
    score_pack(const float *x, const float *shift, float factor, int rows, int dim, int tiles, int steps,
               int is_wide, uint4 *out, int64_t count)
{
    const int64_t at = (int64_t)blockIdx.x * 256 + threadIdx.x;
    if (at >= count) return;
    const int lane = (int)(at & 31), step = (int)(at / 32 % steps), tile = (int)(at / 32 / steps % tiles);
    const int64_t head = at / 32 / steps / tiles;
    const int t = lane & 3, low = is_wide ? step / 2 * 32 + 8 * t + step % 2 * 4 : step * 16 + 2 * t,
              high = low + (is_wide ? 2 : 8);
    uint32_t r[4];
    for (int i = 0; i < 4; ++i) { /* rows g and g + 8; then the same of the other dimensions */
        const int row = min(tile * 16 + (lane >> 2) + (i & 1) * 8, rows - 1), e = i & 2 ? high : low;
        float v[2] = {0.0f, 0.0f};
        for (int c = 0; c < 2; ++c)
            if (e + c < dim)
                v[c] = factor
                       * (x[(head * rows + row) * dim + e + c] - (shift ? shift[head * dim + e + c] : 0.0f));
        r[i] = pack2(v[0], v[1], T());
    }
    out[at] = make_uint4(r[0], r[1], r[2], r[3]);
}

/* How the rows of a tensor are read: f32, or elements of type T, on 16 bytes; or in any way, one row after
   the other. */
enum { SCORE_F32, SCORE_16, SCORE_ANY };
template <int KIND, class T> struct score_element { typedef float type; };
template <class T> struct score_element<SCORE_16, T> { typedef T type; };

template <int KIND, class E> SVG2__DEVICE void score_load(raw8<E> &raw, const tensor &t, int64_t row, int e)
{
    if (KIND == SCORE_ANY) {
        float x[8];
        load8(x, t, row, e);
        memcpy(&raw, x, sizeof raw);
    } else {
        load_raw8<E, true>(raw, t, row, e);
    }
}

/* The keys of a tile, less the centroid, into shared memory; zeros up to a multiple of 16. A thread stays in
   its 8 columns, and has up to 8 rows under way: all that it has of a unit at D = 128. */
template <int KIND, class T, int DP>
SVG2__DEVICE void score_gather(unsigned char *tile, const unit_rows *unit, const score_args &a, int64_t kv)
{
    typedef typename score_element<KIND, T>::type E;
    enum {
        CHUNKS = DP / 8,
        GROUPS = 128 / CHUNKS,
        AHEAD = KIND == SCORE_16 && GROUPS < 16 ? 8 : 4
    };
    const int chunk = (int)threadIdx.x % CHUNKS, group = (int)threadIdx.x / CHUNKS;
    const bool is_inside = 8 * chunk < a.dim; /* else zeros; what is read then is of no account */
    const int column = is_inside ? 8 * chunk : 0;
    const int64_t base = row_at(a.k, (int)kv / a.heads_kv, (int)kv % a.heads_kv, 0);
    const int32_t *order = a.key_order + kv * a.tokens_kv;
    if (group >= GROUPS) return;
#pragma unroll 1
    for (int i = 0; i < score_shape<DP>::UNITS; ++i) {
        const int n = unit[i].count, n16 = (n + 15) & ~15;
        float centroid[8];
        if (n == 0) continue;
        load8(centroid, a.key_centroid, row_at(a.key_centroid, 0, kv, unit[i].cluster), column);
#pragma unroll 1
        for (int row = group; row < n16; row += AHEAD * GROUPS) {
            raw8<E> raw[AHEAD];
#pragma unroll
            for (int r = 0; r < AHEAD; ++r) /* rows behind the last repeat it */
                score_load<KIND>(
                    raw[r], a.k,
                    base + order[unit[i].first + min(row + r * GROUPS, n - 1)] * a.k.stride_token, column);
#pragma unroll
            for (int r = 0; r < AHEAD; ++r) {
                const bool is_key = is_inside && row + r * GROUPS < n;
                float x[8];
                uint4 h;
                numbers(x, raw[r]);
#pragma unroll
                for (int e = 0; e < 8; ++e) x[e] = is_key ? x[e] - centroid[e] : 0.0f;
                h.x = pack2(x[0], x[1], T());
                h.y = pack2(x[2], x[3], T());
                h.z = pack2(x[4], x[5], T());
                h.w = pack2(x[6], x[7], T());
                if (row + r * GROUPS < n16)
                    *(uint4 *)(void *)(tile + tile_at<DP>(64 * i + row + r * GROUPS, chunk)) = h;
            }
        }
    }
}

/* 16 PAIRS keys, of which min(n, 32) are some, against FRAGMENTS x 16 query centroids: the products, and the
   running maximum m (of products) and sum l of this lane's columns. */
template <class T, int DP, int PAIRS>
SVG2__DEVICE void score_keys(const uint32_t (&a)[score_shape<DP>::FRAGMENTS][score_shape<DP>::STEPS][4],
                             uint32_t keys, int n, float factor, float (&m)[score_shape<DP>::FRAGMENTS][2],
                             float (&l)[score_shape<DP>::FRAGMENTS][2])
{
    enum { F = score_shape<DP>::FRAGMENTS, STEPS = score_shape<DP>::STEPS, GROUP = DP % 64 == 0 ? 4 : 2 };
    const int lane = threadIdx.x & 31;
    /* tile_at by hand, for few registers: inside a group of steps only the swizzled bits of the address
       differ */
    const uint32_t first = keys + tile_at<DP>((lane & 7) + (lane >> 4) * 8, lane >> 3 & 1);
    float s[F][2 * PAIRS][4];
#pragma unroll
    for (int f = 0; f < F; ++f)
#pragma unroll
        for (int c = 0; c < 2 * PAIRS; ++c) s[f][c][0] = s[f][c][1] = s[f][c][2] = s[f][c][3] = 0.0f;
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
        for (int p = 0; p < PAIRS; ++p) {
            uint32_t b[4];
            svg2__ldmatrix_x4(b, (first ^ step % GROUP * 32) + step / GROUP * GROUP * 32 + p * 16 * DP * 2);
#pragma unroll
            for (int f = 0; f < F; ++f) {
                svg2__mma_m16n8k16(s[f][2 * p], a[f][step], b[0], b[1], T());
                svg2__mma_m16n8k16(s[f][2 * p + 1], a[f][step], b[2], b[3], T());
            }
        }
#pragma unroll
    for (int f = 0; f < F; ++f)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float top = m[f][half], sum = 0.0f;
#pragma unroll
            for (int c = 0; c < 2 * PAIRS; ++c)
#pragma unroll
                for (int e = 0; e < 2; ++e) {
                    float &x = s[f][c][2 * half + e];
                    if (c >= 2 * PAIRS - 2 && 8 * c + 2 * (lane & 3) + e >= n) x = -INFINITY; /* no key */
                    top = fmaxf(top, x);
                }
            /* nothing but -Inf so far: keep exp2 away from Inf - Inf */
            const float shift = top == -INFINITY ? 0.0f : top * factor;
#pragma unroll
            for (int c = 0; c < 2 * PAIRS; ++c)
#pragma unroll
                for (int e = 0; e < 2; ++e) sum += svg2__exp2(fmaf(s[f][c][2 * half + e], factor, -shift));
            l[f][half] = l[f][half] * svg2__exp2(fmaf(m[f][half], factor, -shift)) + sum;
            m[f][half] = top;
        }
}

/* One block = one tile: 4 units of 64 keys (2 for D > 128), of any clusters, against all query centroids of
   the head.

       key tile [256][D]    gathered by the order, less the centroid, rounded: in shared memory, once
       warp w               query centroids 32 w .., 32 (w + 4) .., ...: fragments from global memory into
                            registers, then 32 keys at a time: 2 x 4 accumulators of 16x8, maximum and sum
                            per row and lane

   After the gather the warps meet at no barrier. A unit costs what its keys fill, rounded up to 16, so that
   clusters of 60 to 120 keys waste 8 of them on average. A cluster that ends in its tile is reduced over the
   quad and written; one that goes on in another tile leaves its log mass in partial: [0] of a tile for a
   cluster from before, [1] for one that goes on behind it. Shared memory 64 KB at D = 128 (3 blocks an SM on
   sm_90, 2 on sm_80), registers below 168. Limiter: the tensor cores, at mma.sync rate: per unit and 32
   centroids 2 x 64 x D x 32 flop against 8 KB of fragments from L2 per 256 keys and 16 KB of keys from shared
   memory per warp, 2 to 3 exponentials per 2 D products. Tiles of 128 keys would ask L2 for 4 TB/s. */
template <class T, int DP>
static __global__ void __launch_bounds__(128, DP > 128 ? 2 : 3)
    score_log_mass(const __grid_constant__ score_args a)
{
    enum { F = score_shape<DP>::FRAGMENTS, STEPS = score_shape<DP>::STEPS, UNITS = score_shape<DP>::UNITS };
    SVG2_DYN_SMEM(smem, 128);
    unit_rows *unit = (unit_rows *)(smem + UNITS * 64 * DP * 2);
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const int64_t bh = (int)blockIdx.x / a.tiles, tile = (int)blockIdx.x % a.tiles;
    const int64_t kv = kv_head(bh, a.heads, a.heads_kv);
    const int32_t *offset = a.key_offset + kv * ((int64_t)a.key_blocks + 1);
    int any = 0;
    if (warp < UNITS) {
        const unit_rows u = rows_of_unit(offset, a.ck, KEY_SHIFT, tile * UNITS + warp);
        if (lane == 0) unit[warp] = u;
    }
    if (!SVG2__FAULT(30)) __syncthreads(); /* unit is complete */
    for (int i = 0; i < UNITS; ++i) any += unit[i].count;
    if (any == 0) return;

    if (a.k.is_vector && a.k.dtype == SVG2_F32) score_gather<SCORE_F32, T, DP>(smem, unit, a, kv);
    else if (a.k.is_vector && a.k.dtype == dtype_of(T())) score_gather<SCORE_16, T, DP>(smem, unit, a, kv);
    else score_gather<SCORE_ANY, T, DP>(smem, unit, a, kv);
    if (!SVG2__FAULT(31)) __syncthreads(); /* the key tile is complete */

    const uint32_t keys = svg2__smem(smem);
    const int blocks = (a.cq + 16 * F - 1) / (16 * F);
    /* the rotation spreads the warps with one more to do over the quarters of the SM */
    for (int block = (warp + (int)tile) & 3; block < blocks; block += 4) {
        const uint4 *pack = a.query_pack + ((bh * a.query_tiles + block * F) * STEPS) * 32 + lane;
        uint32_t q[F][STEPS][4];
        float m[F][2], l[F][2];
#pragma unroll
        for (int f = 0; f < F; ++f)
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                const uint4 v = pack[(f * STEPS + step) * 32];
                q[f][step][0] = v.x, q[f][step][1] = v.y, q[f][step][2] = v.z, q[f][step][3] = v.w;
            }
#pragma unroll 1
        for (int i = 0; i < UNITS; ++i) {
            const int n = unit[i].count, cluster = unit[i].cluster;
            const int pieces = (unit[i].size + 63) >> KEY_SHIFT, piece = unit[i].piece;
            if (n == 0) continue;
            if (i == 0 || piece == 0)
                for (int f = 0; f < F; ++f) m[f][0] = m[f][1] = -INFINITY, l[f][0] = l[f][1] = 0.0f;
#pragma unroll 1
            for (int key = 0; key < n; key += 32) {
                const uint32_t at = keys + (i * 64 + key) * DP * 2;
                if (n - key > 16) score_keys<T, DP, 2>(q, at, n - key, a.factor, m, l);
                else score_keys<T, DP, 1>(q, at, n - key, a.factor, m, l);
            }
            if (piece + 1 < pieces && i + 1 < UNITS) continue; /* the cluster goes on in this tile */
            const int is_before = piece > i, is_behind = piece + 1 < pieces;
#pragma unroll
            for (int f = 0; f < F; ++f)
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    float top = m[f][half], sum, log2_mass;
                    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
                    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
                    const float shift = top == -INFINITY ? 0.0f : top * a.factor;
                    sum = l[f][half] * svg2__exp2(fmaf(m[f][half], a.factor, -shift));
                    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
                    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
                    log2_mass = sum == 0.0f ? -INFINITY : shift + log2f(sum);
                    const int row = (block * F + f) * 16 + half * 8 + (lane >> 2);
                    if ((lane & 3) != 0 || (row >= a.cq && !SVG2__FAULT(35))) continue;
                    if (is_before || is_behind)
                        a.partial[((bh * a.tiles + tile) * 2 + !is_before) * a.cq + row] = log2_mass;
                    else
                        a.log_mass[(bh * a.cq + row) * a.ck + cluster] = log2_mass * 0.69314718f;
                }
        }
    }
}

/* One block = one key cluster: joins the tiles of a large one; -INFINITY for an empty one. */
static __global__ void __launch_bounds__(128) score_merge(score_args a, int units)
{
    const int64_t bh = (int)blockIdx.x / a.ck, j = (int)blockIdx.x % a.ck,
                  kv = kv_head(bh, a.heads, a.heads_kv);
    const int32_t *offset = a.key_offset + kv * ((int64_t)a.key_blocks + 1);
    const int64_t first = first_unit(offset, j, KEY_SHIFT);
    const int64_t pieces = ((int64_t)offset[j + 1] - offset[j] + 63) >> KEY_SHIFT;
    const int64_t begin = first / units, end = (first + pieces - 1) / units;
    if (pieces && begin == end) return;
    for (int row = threadIdx.x; row < a.cq; row += 128) {
        float m = -INFINITY, l = 0.0f;
#pragma unroll 4
        for (int64_t tile = begin; pieces && tile <= end; ++tile) {
            const float x = a.partial[((bh * a.tiles + tile) * 2 + (tile == begin)) * a.cq + row],
                        top = fmaxf(m, x), shift = top == -INFINITY ? 0.0f : top;
            l = l * svg2__exp2(m - shift) + svg2__exp2(x - shift);
            m = top;
        }
        a.log_mass[(bh * a.cq + row) * a.ck + j] = l == 0.0f ? -INFINITY : (m + log2f(l)) * 0.69314718f;
    }
}

/* The rows of a warp as fragments of B, see score_pack for the order of the dimensions. Columns behind the
   last row repeat it, and get no weight. */
template <int KIND, class T, int DP>
SVG2__DEVICE void score_rows(uint32_t (&b)[score_shape<DP>::COLUMNS][score_shape<DP>::STEPS][2],
                             const score_args &a, int64_t bh, const unit_rows &u, int warp)
{
    typedef typename score_element<KIND, T>::type E;
    enum { C = score_shape<DP>::COLUMNS };
    const int lane = (int)threadIdx.x & 31, t = lane & 3;
    const int32_t *order = a.query_order + bh * a.tokens + u.first;
    const int64_t base = row_at(a.q, (int)bh / a.heads, (int)bh % a.heads, 0);
    int32_t token[C];
#pragma unroll
    for (int c = 0; c < C; ++c) token[c] = order[min(warp * 8 * C + c * 8 + (lane >> 2), u.count - 1)];
#pragma unroll
    for (int c = 0; c < C; ++c) {
        const int64_t row = base + token[c] * a.q.stride_token;
#pragma unroll
        for (int s = 0; s < score_shape<DP>::STEPS / 2; ++s) {
            uint32_t w[4] = {0, 0, 0, 0};
            if (32 * s + 8 * t < a.dim) {
                raw8<E> raw;
                score_load<KIND>(raw, a.q, row, 32 * s + 8 * t);
                if (KIND == SCORE_16) {
                    memcpy(w, &raw, 16);
                } else {
                    float x[8];
                    numbers(x, raw);
#pragma unroll
                    for (int i = 0; i < 4; ++i) w[i] = pack2(x[2 * i], x[2 * i + 1], T());
                }
            }
            b[c][2 * s][0] = w[0], b[c][2 * s][1] = w[1];
            b[c][2 * s + 1][0] = w[2], b[c][2 * s + 1][1] = w[3];
        }
    }
}

/* One block = one unit of query rows, 256 of one cluster (128 for D > 128), against all key centroids, twice.

       warp w       rows 32 w .. 32 w + 31 as B fragments in registers: 64 of them at D = 128
       tile         64 key centroids as A fragments, through shared memory with cp.async, 3 stages
       pass 1       running maximum and sum per row: both live in the lane that owns the row's products, no
                    shuffles
       pass 2       the same products and exponentials, weighted; sums over the rows by fragment, quad, warp,
                    in order

   Keys as A and rows as B: then the sum over keys (pass 1) runs down the accumulators of a lane and the sum
   over rows (pass 2) along them. Why products twice: the weights of 64 rows and 1000 clusters would fill 128
   KB as f16, units would be a quarter as large, and streaming the key centroids, Ck D 2 bytes a unit, would
   ask L2 for more than it has; and any Ck works on any device. Shared memory 3 x 16 KB + 5 KB at D = 128, 128
   registers: 2 blocks an SM. Limiter: tensor cores at mma.sync rate, then the 2 exponentials per 4 D flop.

   Why not wgmma, by count, at 24 heads of 118,800 rows, D = 128, 400 x 1000 clusters, where attention takes
   some 50 ms: both passes are 1.46 TFLOP, 1.8 ms at 790 TFLOP/s against 2.4 at the 610 that others have seen
   of mma.sync, and the 5.7 G exponentials 1.5 ms at 16 a cycle and SM: 0.6 ms to gain if the overlap were as
   good, but of blocks of four warpgroups one fits an SM, and half the units are not full. In one pass wgmma
   would have 64 rows and their 128 KB of weights an SM, and 256 KB of centroids to stream for 4000 cycles of
   products: 64 bytes a cycle, twice what L2 has been seen to give. The log mass is 0.29 TFLOP: 0.1 ms. */
template <class T, int DP>
static __global__ void __launch_bounds__(256, 2) score_share(const __grid_constant__ score_args a)
{
    enum {
        C = score_shape<DP>::COLUMNS, STEPS = score_shape<DP>::STEPS, STAGES = score_shape<DP>::STAGES,
        SHIFT = score_shape<DP>::ROW_SHIFT, BYTES = score_shape<DP>::TILE_BYTES
    };
    SVG2_DYN_SMEM(smem, 128);
    float *bias = (float *)(void *)(smem + STAGES * BYTES); /* [2][64] */
    float *column = bias + 2 * SCORE_TILE;                  /* [2][8 warps][64]: sums over the warp's rows */
    const int lane = threadIdx.x & 31, t = lane & 3;
    const int64_t bh = (int)blockIdx.x / a.units, unit = (int)blockIdx.x % a.units;
    /* whose rows: the rotation spreads the busy warps of units of few rows over the quarters of the SM */
    const int warp = ((int)threadIdx.x / 32 + (int)unit) & 7;
    const int64_t kv = kv_head(bh, a.heads, a.heads_kv);
    const unit_rows u = rows_of_unit(a.query_offset + bh * ((int64_t)a.query_blocks + 1), a.cq, SHIFT, unit);
    if (u.count == 0) return; /* every warp has found the same */
    const int is_busy = warp * 8 * C < u.count, tiles = (a.ck + SCORE_TILE - 1) / SCORE_TILE;
    const char *pack = (const char *)(a.key_pack + kv * a.key_tiles * STEPS * 32);
    const int64_t at = (bh * a.cq + u.cluster) * a.ck; /* of log_mass and share */
    const uint32_t stage = svg2__smem(smem);

    /* log mass of a tile's clusters, in base 2; thread j asks for key j of it */
    const auto bias_of = [&](int tile) {
        const int j = tile * SCORE_TILE + (int)threadIdx.x;
        return threadIdx.x < SCORE_TILE && j < a.ck ? a.log_mass[at + j] * 1.44269504f : -INFINITY;
    };
    const auto fetch = [&](int it) { /* tile it of both passes; one group a tile, empty behind the last */
        if (it < 2 * tiles) {
            const char *from = pack + (int64_t)(it % tiles) * BYTES;
            for (int i = threadIdx.x * 16; i < BYTES; i += 256 * 16)
                svg2__cp_async16(stage + it % STAGES * BYTES + i, from + i, 16);
        }
        svg2__cp_async_commit();
    };
    for (int it = 0; it < STAGES - 1; ++it) fetch(it);
    float next = bias_of(0);
    if (threadIdx.x < SCORE_TILE) bias[threadIdx.x] = next;
    next = bias_of(1 % tiles);

    uint32_t b[C][STEPS][2];
    float m[C][2], l[C][2]; /* reference of the exponents, and sum; in pass 2 l is the weight of the row */
    if (is_busy) {
        if (a.q.is_vector && a.q.dtype == dtype_of(T())) score_rows<SCORE_16, T, DP>(b, a, bh, u, warp);
        else score_rows<SCORE_ANY, T, DP>(b, a, bh, u, warp);
    }
#pragma unroll
    for (int c = 0; c < C; ++c) {
        /* not -Inf: x - m must be -Inf, not NaN, for the x = -Inf of an empty cluster */
        m[c][0] = m[c][1] = -3.0e38f;
        l[c][0] = l[c][1] = 0.0f;
    }
    const auto store = [&](int it) { /* tile it, of pass 2: the share, or this unit's part of it */
        const int j = (it - tiles) * SCORE_TILE + (int)threadIdx.x;
        float sum = 0.0f;
        if (threadIdx.x >= SCORE_TILE || j >= a.ck) return;
        for (int w = 0; w < 8; ++w) sum += column[((it & 1) * 8 + w) * SCORE_TILE + threadIdx.x];
        if (u.size == u.count) a.share[at + j] = sum / (float)u.size;
        else a.partial[(int64_t)blockIdx.x * a.ck + j] = sum;
    };

    for (int it = 0; it < 2 * tiles; ++it) {
        if (!SVG2__FAULT(32)) svg2__cp_async_wait<STAGES - 2>();
        /* tile it, its bias and the columns of tile it - 1 are complete; all are done with the stage that
           fetch fills, the bias and the columns that are written below */
        if (!SVG2__FAULT(33)) __syncthreads();
        fetch(it + STAGES - 1);
        if (threadIdx.x < SCORE_TILE) bias[((it + 1) & 1) * SCORE_TILE + threadIdx.x] = next;
        next = bias_of((it + 2) % tiles);
        if (it > tiles) store(it - 1);
        if (it == tiles)
#pragma unroll
            for (int c = 0; c < C; ++c)
#pragma unroll
                for (int e = 0; e < 2; ++e) { /* rows: columns 2t, 2t + 1 of fragment c, over 8 lanes */
                    float top = m[c][e], sum;
                    for (int o = 4; o < 32; o <<= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, o));
                    sum = l[c][e] * svg2__exp2(m[c][e] - top);
                    for (int o = 4; o < 32; o <<= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
                    m[c][e] = top;
                    l[c][e] = sum == 0.0f || warp * 8 * C + c * 8 + 2 * t + e >= u.count ? 0.0f : 1.0f / sum;
                }
        if (!is_busy) {
            if (it >= tiles)
                for (int i = lane; i < SCORE_TILE; i += 32)
                    column[((it & 1) * 8 + warp) * SCORE_TILE + i] = 0.0f;
            continue;
        }
        const unsigned char *tile = smem + it % STAGES * BYTES;
#pragma unroll 1
        for (int part = 0; part < SCORE_TILE / 16; ++part) { /* 16 key centroids */
            float s[C][4];
#pragma unroll
            for (int c = 0; c < C; ++c) s[c][0] = s[c][1] = s[c][2] = s[c][3] = 0.0f;
#pragma unroll
            for (int step = 0; step < STEPS; ++step) {
                const uint4 v =
                    *(const uint4 *)(const void *)(tile + ((part * STEPS + step) * 32 + lane) * 16);
                const uint32_t k[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int c = 0; c < C; ++c) svg2__mma_m16n8k16(s[c], k, b[c][step][0], b[c][step][1], T());
            }
            const float low = bias[(it & 1) * SCORE_TILE + part * 16 + (lane >> 2)],
                        high = bias[(it & 1) * SCORE_TILE + part * 16 + 8 + (lane >> 2)];
#pragma unroll
            for (int c = 0; c < C; ++c)
#pragma unroll
                for (int e = 0; e < 4; ++e) s[c][e] = fmaf(s[c][e], a.factor, e < 2 ? low : high);
            if (it < tiles) {
                /* The reference follows the maximum only when it is 2^32 behind: exponents up to 32 are as
                   exact as those up to 0, and a vote is cheaper than an exponential per row and step. */
                int is_behind = 0;
#pragma unroll
                for (int c = 0; c < C; ++c)
#pragma unroll
                    for (int e = 0; e < 2; ++e) is_behind |= fmaxf(s[c][e], s[c][2 + e]) > m[c][e] + 32.0f;
                if (__any_sync(0xffffffffu, is_behind)) {
#pragma unroll
                    for (int c = 0; c < C; ++c)
#pragma unroll
                        for (int e = 0; e < 2; ++e) {
                            const float top = fmaxf(m[c][e], fmaxf(s[c][e], s[c][2 + e]));
                            l[c][e] *= svg2__exp2(m[c][e] - top);
                            m[c][e] = top;
                        }
                }
#pragma unroll
                for (int c = 0; c < C; ++c)
#pragma unroll
                    for (int e = 0; e < 2; ++e)
                        l[c][e] += svg2__exp2(s[c][e] - m[c][e]) + svg2__exp2(s[c][2 + e] - m[c][e]);
            } else {
                float sum[2] = {0.0f, 0.0f};
#pragma unroll
                for (int c = 0; c < C; ++c)
#pragma unroll
                    for (int e = 0; e < 4; ++e)
                        sum[e >> 1] = fmaf(svg2__exp2(s[c][e] - m[c][e & 1]), l[c][e & 1], sum[e >> 1]);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
                    sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
                    if (t == 0)
                        column[((it & 1) * 8 + warp) * SCORE_TILE + part * 16 + half * 8 + (lane >> 2)] =
                            sum[half];
                }
            }
        }
    }
    if (!SVG2__FAULT(34)) __syncthreads(); /* the columns of the last tile are complete */
    store(2 * tiles - 1);
}

/* One block = one query cluster: adds the units of a large one; zeros for an empty one. */
static __global__ void __launch_bounds__(256) score_share_merge(score_args a, int shift)
{
    const int64_t bh = (int)blockIdx.x / a.cq, cluster = (int)blockIdx.x % a.cq;
    const int32_t *offset = a.query_offset + bh * ((int64_t)a.query_blocks + 1);
    const int n = offset[cluster + 1] - offset[cluster];
    const int64_t first = bh * a.units + first_unit(offset, cluster, shift);
    const int64_t pieces = ((int64_t)n + (1 << shift) - 1) >> shift;
    if (pieces == 1) return;
    for (int j = threadIdx.x; j < a.ck; j += 256) {
        double sum = 0.0;
#pragma unroll 4
        for (int64_t i = 0; i < pieces; ++i) sum += (double)a.partial[(first + i) * a.ck + j];
        a.share[(bh * a.cq + cluster) * a.ck + j] = n ? (float)(sum / n) : 0.0f;
    }
}

/* head dims are padded with zeros to one of these */
static inline int score_dim(int dim)
{
    return dim <= 64 ? 64 : dim <= 96 ? 96 : dim <= 128 ? 128 : 256;
}

/* Per head (Cq + Ck) DP 2 bytes of packed centroids, and the larger of
     log mass   (Skv + 63 Ck) / 256 tiles x 2 Cq x 4 bytes
     share      (Sq + 255 Cq) / 256 units x Ck x 4 bytes
   (tiles and units are of half the size for D > 128). 24 heads of 119,000 tokens, D = 128, 400 x 1000
   clusters: 92 MB. */
static size_t score_layout(const svg2_score_desc *d, void *base, score_args *out = NULL)
{
    arena a = {(char *)base, 0};
    score_args w;
    const int64_t dp = score_dim(d->head_dim), bh = (int64_t)d->batch * d->heads,
                  bkv = (int64_t)d->batch * d->heads_kv;
    const int unit_shift = dp > 128 ? 7 : 8;
    size_t log_mass, share;
    memset(&w, 0, sizeof w);
    w.query_tiles = (int)(((int64_t)d->query_clusters + 31) / 32 * 2);
    w.key_tiles = (int)(((int64_t)d->key_clusters + SCORE_TILE - 1) / SCORE_TILE * (SCORE_TILE / 16));
    w.tiles = units_of((int64_t)d->tokens_kv, d->key_clusters, KEY_SHIFT);
    w.tiles = (w.tiles + (dp > 128 ? 1 : 3)) / (dp > 128 ? 2 : 4);
    w.units = units_of(d->tokens, d->query_clusters, unit_shift);
    w.query_pack = a.take<uint4>(count_of(bh, w.query_tiles, dp / 16, WARP));
    w.key_pack = a.take<uint4>(d->tokens ? count_of(bkv, w.key_tiles, dp / 16, WARP) : 0);
    log_mass = count_of(bh, w.tiles, 2, d->query_clusters);
    share = d->tokens ? count_of(bh, w.units, d->key_clusters) : 0;
    w.partial = a.take<float>(log_mass > share ? log_mass : share);
    if (out) *out = w;
    return a.used;
}

template <class T, int DP>
static svg2_result run_score_typed(const svg2_backend *backend, const svg2_score_desc *d, score_args a,
                                   svg2_error *err)
{
    typedef score_shape<DP> shape;
    const int64_t bh = (int64_t)d->batch * d->heads, bkv = (int64_t)d->batch * d->heads_kv;
    const int64_t queries = bh * a.query_tiles * shape::STEPS * WARP,
                  keys = bkv * a.key_tiles * shape::STEPS * WARP;
    /* maxima of products need a factor > 0 */
    const float sign = d->scale > 0.0f ? 1.0f : d->scale < 0.0f ? -1.0f : 0.0f;
    a.factor = d->scale == 0.0f ? 1.0f : fabsf(d->scale) * 1.44269504f;
    SVG2__RUN(launch(backend, err, "score_pack", score_pack<T>, dim3(grid_of((queries + 255) / 256)), 256, 0,
                     d->query_centroid, (const float *)NULL, sign, a.cq, a.dim, a.query_tiles,
                     (int)shape::STEPS, 0, a.query_pack, queries));
    SVG2__RUN(launch(backend, err, "score_log_mass", score_log_mass<T, DP>, dim3(grid_of(bh * a.tiles)), 128,
                     (size_t)shape::LOG_MASS_SMEM, a));
    SVG2__RUN(launch(backend, err, "score_merge", score_merge, dim3(grid_of(bh * a.ck)), 128, 0, a,
                     (int)shape::UNITS));
    if (d->tokens == 0) return ok(err);
    a.factor = d->scale * 1.44269504f;
    SVG2__RUN(launch(backend, err, "score_pack", score_pack<T>, dim3(grid_of((keys + 255) / 256)), 256, 0,
                     d->key_centroid, d->key_mean, 1.0f, a.ck, a.dim, a.key_tiles, (int)shape::STEPS, 1,
                     a.key_pack, keys));
    SVG2__RUN(launch(backend, err, "score_share", score_share<T, DP>, dim3(grid_of(bh * a.units)), 256,
                     (size_t)shape::SHARE_SMEM, a));
    SVG2__RUN(launch(backend, err, "score_share_merge", score_share_merge, dim3(grid_of(bh * a.cq)), 256, 0,
                     a, (int)shape::ROW_SHIFT));
    return ok(err);
}

template <class T>
static svg2_result run_score_dim(const svg2_backend *backend, const svg2_score_desc *d, const score_args &a,
                                 svg2_error *err)
{
    switch (score_dim(d->head_dim)) {
    case 64: return run_score_typed<T, 64>(backend, d, a, err);
    case 96: return run_score_typed<T, 96>(backend, d, a, err);
    case 128: return run_score_typed<T, 128>(backend, d, a, err);
    default: return run_score_typed<T, 256>(backend, d, a, err);
    }
}

static svg2_result run_score(const svg2_backend *backend, const svg2_score_desc *d, void *workspace,
                             svg2_error *err)
{
    const svg2_layout f32 = SVG2_ZERO;
    score_args a;
    (void)score_layout(d, workspace, &a);
    a.k = tensor_of(d->k, d->k_layout, d->heads_kv, d->tokens_kv, d->head_dim);
    a.q = tensor_of(d->q, d->tokens ? d->q_layout : f32, d->heads, d->tokens, d->head_dim);
    a.key_centroid = tensor_of(d->key_centroid, f32, d->batch * d->heads_kv, d->key_clusters, d->head_dim);
    a.key_order = d->key_order;
    a.key_offset = d->key_offset;
    a.query_order = d->query_order;
    a.query_offset = d->query_offset;
    a.log_mass = d->log_mass;
    a.share = d->share;
    a.heads = d->heads;
    a.heads_kv = d->heads_kv;
    a.tokens = d->tokens;
    a.tokens_kv = d->tokens_kv;
    a.dim = d->head_dim;
    a.cq = d->query_clusters;
    a.ck = d->key_clusters;
    a.query_blocks = d->query_blocks;
    a.key_blocks = d->key_blocks;
    if (d->k_layout.dtype == SVG2_F16 && (d->tokens == 0 || d->q_layout.dtype != SVG2_BF16))
        return run_score_dim<__half>(backend, d, a, err);
    return run_score_dim<__nv_bfloat16>(backend, d, a, err);
}

} /* namespace svg2__cuda */

/* ==== >>select =============================================================================
   As on the CPU, with a launch for each phase in which the rows of a head have to agree:

       select_logits          S [BH, Cq, Ck], f32
       select_rows            a block per query cluster: mass, SVG2's rule, row budgets; scores of what is
                              left
     with a target error
       select_values          |value mean|^2
       select_loss            output of each query cluster, what skipping a block costs, sums of both
     with a target error or a budget of the head
       select_begin           that budget
       select_count, _digit   three times: weights by a digit of the score's bits, in int64, so exact in any
                              order; the digit where the budget runs out
       select_ties, _settle   weight on the threshold by row; of all rows before
       select_finish          map; what was kept and lost by row
     always
       select_end, _border    statistics; dense heads, text, padding

   Sums of floats have a fixed order. The products are f32 on the CUDA cores: a decision hangs on the logits,
   and 2 Cq Ck D flop are a thousandth of those of the attention that is decided about. */
namespace svg2__cuda {

enum {
    SELECT_SORTED = 4096,     /* key clusters of a row that shared memory holds beside their sorting keys */
    SELECT_SCRATCH = 1 << 24, /* sorting keys of the blocks that work on larger rows at one time, about   */
    SELECT_BINS = 2048,
    SELECT_COUNT_ROWS = 16,   /* rows that share a histogram in shared memory                             */
    SELECT_LOSS_ROWS = 32,
    SELECT_LOSS_KEYS = 32
};

struct select_state { /* of a head */
    double  unit, allowed, signal; /* fixed-point units per loss; loss that may stay; length of the output  */
    int64_t left;                  /* budget below the digits found so far                                  */
    uint32_t prefix;               /* those digits                                                          */
    int32_t is_open, is_dense;     /* is_open: there is a threshold to find                                 */
};

struct select_args {
    tensor query, key, value; /* centroids, value means: contiguous f32 */
    const float *key_mean, *log_mass, *share, *value_var;
    const int32_t *query_offset, *key_offset;
    uint8_t *map;
    svg2_head_stats *stats;
    float   *score;      /* [BH, Cq, Ck]  logits, then scores; < 0 = not for the taking              */
    float   *loss;       /* [BH, Cq, Ck]  mass, then contribution to the squared error if skipped    */
    float   *value_square; /* [BHkv, Ck]                                                             */
    double  *row_signal, *row_all, *row_lost; /* [BH, Cq]  output; loss of what is for the taking; of what
                                                           stays out                                       */
    int64_t *row_area, *row_kept, *row_tie;   /* [BH, Cq]  key tokens of SVG2's rule; kept; weight on the
                                                           threshold                                       */
    unsigned long long *histogram; /* [BH, 2048]                                                     */
    select_state *state;           /* [BH]                                                           */
    uint64_t *sort_key;  /* [blocks, sort_size]  where shared memory is too small                    */
    float   *sort_mass;  /* [blocks, Ck]                                                             */
    int      sort_size;  /* power of two                                                             */
    int heads, heads_kv, dim, cq, ck, qb, kb, has_text, has_padding;
    int floor;           /* clusters that every row keeps                                            */
    int is_literal, need_loss, is_row, is_spread, tail; /* is_literal: SVG2's own rule; is_row: rows decide
                                                           alone                                           */
    int64_t blocks;      /* of select_rows                                                           */
    float scale, top_p, density, target_error, dense_above;
};

/* ---- reductions over a block; scratch: 8 bytes per warp ---- */
/* The same sum in every thread, in a fixed order. */
template <class T> SVG2__DEVICE T block_sum(T x, void *scratch)
{
    T *part = (T *)scratch;
    x = warp_sum(x);
    __syncthreads(); /* the readers of the last reduction are done */
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = x;
    __syncthreads(); /* part is complete */
    x = part[0];
    for (int w = 1; w < (int)blockDim.x >> 5; ++w) x += part[w];
    return x;
}
SVG2__DEVICE float block_max(float x, void *scratch)
{
    float *part = (float *)scratch;
    x = warp_max(x);
    __syncthreads(); /* the readers of the last reduction are done */
    if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = x;
    __syncthreads(); /* part is complete */
    for (int w = 0; w < (int)blockDim.x >> 5; ++w) x = fmaxf(x, part[w]);
    return x;
}
SVG2__DEVICE int64_t warp_scan(int64_t x) /* sum up to and with this lane */
{
    for (int o = 1; o < 32; o <<= 1) {
        const int64_t y = __shfl_up_sync(0xffffffffu, x, o);
        if ((int)(threadIdx.x & 31) >= o) x += y;
    }
    return x;
}
/* Sum over the threads before this one; total is that of the block. */
SVG2__DEVICE int64_t block_scan(int64_t x, int64_t *total, void *scratch)
{
    int64_t *part = (int64_t *)scratch, before = warp_scan(x) - x, sum = 0;
    __syncthreads(); /* the readers of the last reduction are done */
    if ((threadIdx.x & 31) == 31) part[threadIdx.x >> 5] = before + x;
    __syncthreads(); /* part is complete */
    for (int w = 0; w < (int)blockDim.x >> 5; ++w) {
        if (w == (int)threadIdx.x >> 5) before += sum;
        sum += part[w];
    }
    *total = sum;
    return before;
}

/* Where a row of the map and the offsets of its two sides lie. There are less than 2^31 rows: each takes 48
   bytes of workspace. */
struct select_row {
    int64_t bh, kv, at; /* at: first element of the row in [BH, Cq, Ck] */
    const int32_t *query_offset, *key_offset;
    uint8_t *map;
    int queries; /* tokens of the row's cluster */
};
SVG2__DEVICE select_row select_row_of(const select_args &a, int64_t bh, int64_t row)
{
    select_row r;
    r.bh = bh;
    r.kv = kv_head(bh, a.heads, a.heads_kv);
    r.at = (bh * a.cq + row) * a.ck;
    r.query_offset = a.query_offset + bh * ((int64_t)a.qb + 1) + row;
    r.key_offset = a.key_offset + r.kv * ((int64_t)a.kb + 1);
    r.map = a.map + (bh * a.qb + row) * a.kb;
    r.queries = r.query_offset[1] - r.query_offset[0];
    return r;
}
SVG2__DEVICE int keys_of(const select_row &r, int j) { return r.key_offset[j + 1] - r.key_offset[j]; }

/* spread = 2 (log_mass - ln n): 0 by Jensen at least, but for rounding */
SVG2__DEVICE float select_spread(float log_mass, int n)
{
    const float x = 2.0f * (log_mass - logf((float)n));
    return x < 0.0f ? 0.0f : x;
}

/* ---- logits ---- One block = 64 query clusters x 128 key clusters, 4 x 8 of them a thread, 16 dimensions at
   a time through shared memory, transposed, so that 3 loads of 16 bytes feed 32 multiply-adds. Limiter: FMA
   issue. */
static __global__ void __launch_bounds__(256) select_logits(select_args a, int row_tiles, int column_tiles)
{
    enum { M = 64, N = 128, K = 16, LD_M = M + 4, LD_N = N + 4 };
    SVG2_DYN_SMEM(smem, 128);
    float *q = (float *)(void *)smem, *k = q + K * LD_M;
    const int tile = (int)blockIdx.x % (row_tiles * column_tiles);
    const int64_t bh = (int)blockIdx.x / (row_tiles * column_tiles), kv = kv_head(bh, a.heads, a.heads_kv);
    const int row0 = tile / column_tiles * M, column0 = tile % column_tiles * N;
    const int y = threadIdx.x >> 4, x = threadIdx.x & 15;
    float s[4][8] = {{0.0f}};
    for (int e0 = 0; e0 < a.dim; e0 += K) {
        __syncthreads(); /* all are done with the last dimensions */
        for (int i = threadIdx.x; i < (M + N) * K / 8; i += 256) {
            const int is_key = i >= M * K / 8, at = is_key ? i - M * K / 8 : i;
            const int row = is_key ? at % N : at % M;
            const int e = (is_key ? at / N : at / M) * 8;
            float v[8] = {0.0f};
            if (e0 + e < a.dim) {
                if (is_key) {
                    load8(v, a.key, row_at(a.key, 0, kv, min(column0 + row, a.ck - 1)), e0 + e);
                    for (int c = 0; c < 8; ++c) v[c] -= a.key_mean[kv * a.dim + e0 + e + c];
                } else {
                    load8(v, a.query, row_at(a.query, 0, bh, min(row0 + row, a.cq - 1)), e0 + e);
                    for (int c = 0; c < 8; ++c) v[c] *= a.scale;
                }
            }
            for (int c = 0; c < 8; ++c)
                *(is_key ? &k[(e + c) * LD_N + row] : &q[(e + c) * LD_M + row]) = v[c];
        }
        __syncthreads(); /* q and k are complete */
#pragma unroll
        for (int e = 0; e < K; ++e) {
            const float4 u = *(const float4 *)(const void *)(q + e * LD_M + 4 * y);
            const float4 v = *(const float4 *)(const void *)(k + e * LD_N + 4 * x),
                         w = *(const float4 *)(const void *)(k + e * LD_N + 64 + 4 * x);
            const float rows[4] = {u.x, u.y, u.z, u.w}, columns[8] = {v.x, v.y, v.z, v.w, w.x, w.y, w.z, w.w};
#pragma unroll
            for (int i = 0; i < 4; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) s[i][j] += rows[i] * columns[j];
        }
    }
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 8; ++j) {
            const int row = row0 + 4 * y + i, column = column0 + j / 4 * 64 + 4 * x + j % 4;
            if (row < a.cq && column < a.ck) a.score[(bh * a.cq + row) * a.ck + column] = s[i][j];
        }
}

/* ---- decisions of a row ---- */
/* What sorts as the index j behind those of higher score >= 0, and of equal score and lower index. */
SVG2__DEVICE uint64_t falling_key(float score, int j)
{
    return (uint64_t)~__float_as_uint(score) << 32 | (uint32_t)j;
}
SVG2__DEVICE int index_of(uint64_t key) { return (int)(uint32_t)key; }
SVG2__DEVICE float score_of(uint64_t key) { return __uint_as_float(~(uint32_t)(key >> 32)); }

/* Bitonic sort of n keys (a power of two), ascending, by the whole block. Pair p of a step belongs to thread
   p modulo the block, so at distances of up to 32 a warp stays among its own 64 keys and needs no barrier of
   the block. */
SVG2__DEVICE void sort_keys(uint64_t *key, int n)
{
    int last = 64;
    for (int run = 2; run <= n; run <<= 1)
        for (int distance = run >> 1; distance; distance >>= 1) {
            /* the keys of the step before are in place (of the caller, before the first) */
            if (distance > 32 || last > 32) {
                if (!SVG2__FAULT(40)) __syncthreads();
            } else if (!SVG2__FAULT(41)) {
                __syncwarp();
            }
            for (int p = threadIdx.x; p < n / 2; p += blockDim.x) {
                const int i = 2 * p - (p & (distance - 1)), j = i + distance;
                const uint64_t x = key[i], y = key[j];
                if ((x > y) == ((i & run) == 0)) key[i] = y, key[j] = x;
            }
            last = distance;
        }
    __syncthreads(); /* the keys are sorted for everybody (and written, if there was one) */
}

/* One block = one query cluster (blocks of large rows take several, one after the other). Mass from the
   shares or from the logits; SVG2's rule on the masses in falling order, its running sum in f32 and in that
   order, as on the CPU: by one warp, whose lanes all add the same, up to where it ends; row budgets by the
   score. Row decisions are written to the map here; otherwise the map gets what every row keeps, and score
   and mass go on. Shared memory: 8 bytes a key, rounded up to a power of two, and 5 a key cluster: 13 KB at
   1000, 52 KB at 4096; larger rows sort in the workspace. Limiter: the 55 steps of the sort at 1000 clusters,
   10 of them with a barrier; the 3 blocks an SM for which there are registers hide each other's. */
template <int IS_LARGE>
static __global__ void __launch_bounds__(256, 3) select_rows(select_args a, int64_t rows)
{
    SVG2_DYN_SMEM(smem, 128);
    void *scratch = smem; /* 64 bytes */
    int *length = (int *)(void *)(smem + 64);
    uint64_t *key =
        IS_LARGE ? a.sort_key + (int64_t)blockIdx.x * a.sort_size : (uint64_t *)(void *)(smem + 80);
    float *mass = IS_LARGE ? a.sort_mass + (int64_t)blockIdx.x * a.ck : (float *)(void *)(key + a.sort_size);
    const int t = threadIdx.x, ck = a.ck;
    /* a floor, SVG2's rule itself and its area need the order; only the heaviest does not */
    const int need_area = a.is_literal || (!(a.density > 0.0f) && !a.need_loss);
    const int need_sort = need_area || a.floor > 0;
    for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
        const select_row r = select_row_of(a, (int)row / a.cq, (int)row % a.cq);
        const float *log_mass = a.log_mass ? a.log_mass + r.at : NULL;
        /* no rows to ask in an empty cluster */
        const float *share = a.share && r.queries > 0 ? a.share + r.at : NULL;
        float *score = a.score + r.at, *loss = a.need_loss ? a.loss + r.at : NULL;
        uint8_t *kept = IS_LARGE ? r.map : (uint8_t *)(mass + ck);
        float top = -INFINITY;
        double sum = 0.0;
        int64_t keys = 0, area = 0, taken = 0;
        int bad = 0;
        for (int j = t; j < ck; j += 256) { /* threads keep to their own j until the sort */
            const int n = keys_of(r, j);
            keys += n;
            if (n) {
                const float x = score[j] + (log_mass ? log_mass[j] : 0.0f);
                if (!(fabsf(x) <= 3.0e38f)) bad = 1; /* NaN, or Inf of either sign */
                top = fmaxf(top, x);
                mass[j] = x;
            }
            if (share && !(share[j] >= 0.0f && share[j] <= 3.0e38f)) bad = 1;
        }
        bad = block_sum(bad, scratch);
        top = block_max(top, scratch);
        keys = block_sum(keys, scratch);
        for (int j = t; j < ck; j += 256) {
            const int n = keys_of(r, j);
            float x = 0.0f;
            if (n && !bad) /* a share of -0 becomes 0: it is sorted by its bits */
                x = share ? share[j] + 0.0f : (log_mass ? 1.0f : (float)n) * expf(mass[j] - top);
            mass[j] = x;
            sum += (double)x;
        }
        sum = block_sum(sum, scratch);
        /* NaN: keep what it touches; and top_p = 1 means all */
        if (bad || !(sum > 0.0) || (a.top_p >= 1.0f && a.is_literal)) {
            for (int j = t; j < ck; j += 256) {
                r.map[j] = 1;
                score[j] = -1.0f;
                if (loss) loss[j] = 0.0f;
            }
            if (t == 0) a.row_area[row] = a.row_kept[row] = keys;
            continue; /* the next row begins with barriers */
        }
        for (int j = t; j < a.sort_size; j += 256) {
            if (j < ck) {
                mass[j] = (float)((double)mass[j] / sum);
                kept[j] = 0;
                if (loss) loss[j] = mass[j];
            }
            key[j] = j < ck ? falling_key(mass[j], j) : ~(uint64_t)0;
        }
        if (need_sort) {
            int end = a.floor;
            sort_keys(key, a.sort_size);
            if (need_area) {
                if (t < 32) { /* a rank is kept if it is the first, or the mass before it is at most top_p */
                    float running = 0.0f;
                    int ranks = 0;
                    for (int first = 0; first < ck && running <= a.top_p; first += 32) {
                        const float x = first + t < ck ? score_of(key[first + t]) : 0.0f;
#pragma unroll
                        for (int i = 0; i < 32; ++i) {
                            ranks += running <= a.top_p; /* top_p > 0: true of the first */
                            running += __shfl_sync(0xffffffffu, x, i);
                        }
                    }
                    if (t == 0) *length = min(ranks, ck);
                }
                __syncthreads(); /* length is there */
                end = max(end, *length);
                for (int i = t; i < end; i += 256) area += keys_of(r, index_of(key[i]));
                area = block_sum(area, scratch);
            }
            if (!a.is_literal) end = max(a.floor, (int)(a.tail == SVG2_TAIL_NONE));
            for (int i = t; i < end; i += 256) kept[index_of(key[i])] = 1;
        } else if (a.tail == SVG2_TAIL_NONE) { /* the heaviest */
            uint64_t best = ~(uint64_t)0;
            __syncthreads(); /* key is complete, and kept is 0 */
            for (int j = t; j < ck; j += 256) best = min(best, key[j]);
            for (int o = 16; o; o >>= 1) best = min(best, __shfl_xor_sync(0xffffffffu, best, o));
            if ((t & 31) == 0) ((uint64_t *)scratch)[t >> 5] = best;
            __syncthreads(); /* the warps' best are there; before, block_sum's barriers kept scratch for its
                                readers */
            for (int w = 0; w < 8; ++w) best = min(best, ((uint64_t *)scratch)[w]);
            if (t == 0) kept[index_of(best)] = 1;
        }
        __syncthreads(); /* kept is complete; key is free */
        if (!a.is_literal)
            for (int j = t; j < ck; j += 256) { /* score per pair of what is left for the taking */
                const int n = keys_of(r, j);
                const float x = kept[j] || n == 0 || r.queries == 0
                    ? -1.0f
                    : mass[j] / (float)n * (a.is_spread ? select_spread(log_mass[j], n) : 1.0f);
                mass[j] = score[j] = x;
                if (kept[j]) taken += n;
                key[j] = falling_key(x < 0.0f ? 0.0f : x, j);
            }
        if (!a.is_literal && a.is_row) {
            const int64_t budget =
                (a.density > 0.0f ? (int64_t)((double)a.density * (double)keys + 0.5) : area)
                - block_sum(taken, scratch);
            int64_t before = 0; /* area of what was taken by the score */
            for (int j = ck + t; j < a.sort_size; j += 256) key[j] = ~(uint64_t)0;
            sort_keys(key, a.sort_size);
            for (int i0 = 0; i0 < ck && before < budget; i0 += 256) {
                const int i = i0 + t, j = i < ck ? index_of(key[i]) : 0;
                const int is_free = i < ck && !(mass[j] < 0.0f);
                int64_t here;
                const int64_t at = before + block_scan(is_free ? keys_of(r, j) : 0, &here, scratch);
                if (is_free && at < budget) kept[j] = 1;
                before += here;
            }
            __syncthreads(); /* kept is complete */
        }
        taken = 0;
        for (int j = t; j < ck; j += 256) {
            if (kept[j]) taken += keys_of(r, j);
            if (!IS_LARGE) r.map[j] = kept[j];
        }
        taken = block_sum(taken, scratch);
        if (t == 0) a.row_area[row] = area, a.row_kept[row] = taken;
        __syncthreads(); /* all are done with kept and key, before the next row */
    }
}

/* ---- the loss ---- What skipping a block costs, per query row, from its share of the mass P, the variance
   of its logits (spread), its mean value and the variance of its values, and the row's output.
     no tail   the block's mean value is missing. Dropped blocks err together, as the rest is scaled up:
               amplitudes add.
     order 0   values that follow the key inside the block: first order. Blocks err independently: squares
               add.
     order 1   second order, of the values and of the weight: squares add. */
SVG2__DEVICE float block_loss(int tail, float mass, float spread, float value_square, float value_var,
                              float output_square)
{
    const float m2 = mass * mass;
    if (tail == SVG2_TAIL_NONE) return mass * sqrtf(value_square + output_square);
    if (tail == SVG2_TAIL_ORDER0) return m2 * spread * value_var;
    return m2 * spread * spread * 0.5f * (value_var + 0.5f * (value_square + output_square));
}

/* One warp = one key cluster: the squared length of its mean value. */
static __global__ void __launch_bounds__(256) select_values(select_args a, int64_t count)
{
    const int64_t at = (int64_t)blockIdx.x * 8 + (threadIdx.x >> 5);
    const float *v = (const float *)a.value.data + at * a.dim;
    float sum = 0.0f;
    if (at >= count) return;
    for (int e = threadIdx.x & 31; e < a.dim; e += 32) sum += v[e] * v[e];
    sum = warp_sum(sum);
    if ((threadIdx.x & 31) == 0) a.value_square[at] = sum;
}

/* One block = 32 query clusters: their outputs, mass [32, Ck] x value means [Ck, D], of which only the
   lengths are needed; then the losses, in place of the masses. Warp w has rows 4w .. 4w + 3, lane l columns
   4l .. 4l + 3 and 128 + the same; 32 key clusters at a time through shared memory (37 KB at D = 256). A zero
   mass is not skipped: a NaN among the values must arrive. Limiter: FMA issue and loads from shared memory
   alike. */
static __global__ void __launch_bounds__(256) select_loss(select_args a, int row_tiles)
{
    enum { M = SELECT_LOSS_ROWS, K = SELECT_LOSS_KEYS, LD = M + 4 };
    SVG2_DYN_SMEM(smem, 128);
    float *mass = (float *)(void *)smem, *value = mass + K * LD; /* [K][LD], [K][DP] */
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, dp = a.dim <= 128 ? 128 : 256;
    const int64_t bh = (int)blockIdx.x / row_tiles, kv = kv_head(bh, a.heads, a.heads_kv);
    const int row0 = (int)blockIdx.x % row_tiles * M;
    float s[4][8] = {{0.0f}};
    for (int j0 = 0; j0 < a.ck; j0 += K) {
        __syncthreads(); /* all are done with the last key clusters */
        for (int i = warp; i < M; i += 8) {
            const int row = row0 + i;
            mass[lane * LD + i] =
                row < a.cq && j0 + lane < a.ck ? a.loss[(bh * a.cq + row) * a.ck + j0 + lane] : 0.0f;
        }
        for (int i = threadIdx.x; i < K * dp / 8; i += 256) {
            const int j = i / (dp / 8), e = i % (dp / 8) * 8;
            float v[8] = {0.0f};
            if (j0 + j < a.ck && e < a.dim) load8(v, a.value, row_at(a.value, 0, kv, j0 + j), e);
            for (int c = 0; c < 8; c += 4)
                *(float4 *)(void *)(value + j * dp + e + c) = make_float4(v[c], v[c + 1], v[c + 2], v[c + 3]);
        }
        __syncthreads(); /* mass and value are complete */
        for (int j = 0; j < K; ++j) {
            const float4 u = *(const float4 *)(const void *)(mass + j * LD + 4 * warp);
            const float rows[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (half * 128 >= dp) break;
                const float4 v = *(const float4 *)(const void *)(value + j * dp + half * 128 + 4 * lane);
                const float columns[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (int i = 0; i < 4; ++i)
#pragma unroll
                    for (int c = 0; c < 4; ++c) s[i][half * 4 + c] += rows[i] * columns[c];
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const int row = row0 + 4 * warp + i;
        float output_square = 0.0f;
        double all = 0.0;
        for (int c = 0; c < 8; ++c) output_square += s[i][c] * s[i][c];
        output_square = warp_sum(output_square);
        if (row >= a.cq) break;
        const select_row r = select_row_of(a, bh, row);
        for (int j = lane; j < a.ck; j += 32) {
            const int n = keys_of(r, j);
            float loss = 0.0f;
            if (n)
                loss = (float)r.queries
                       * block_loss(a.tail, a.loss[r.at + j], select_spread(a.log_mass[r.at + j], n),
                                    a.value_square[kv * a.ck + j], a.value_var[kv * a.ck + j], output_square);
            a.loss[r.at + j] = loss;
            if (a.score[r.at + j] >= 0.0f) all += (double)loss;
        }
        all = warp_sum(all);
        if (lane == 0) {
            a.row_all[bh * a.cq + row] = all;
            a.row_signal[bh * a.cq + row] =
                (double)r.queries
                * (a.tail == SVG2_TAIL_NONE ? sqrt((double)output_square) : (double)output_square);
        }
    }
}

/* ---- the threshold of a head ---- Blocks are taken by falling score (ties in index order) until their
   weights reach the budget. The weight of a block is its area, or its loss in fixed point, so that sums are
   exact in any order. */
SVG2__DEVICE int64_t select_weight(const select_args &a, const select_row &r, int j, double unit)
{
    if (a.need_loss) {
        const double w = (double)a.loss[r.at + j] * unit;
        return w > 0.0 ? (int64_t)w : 0; /* NaN counts nothing */
    }
    return (int64_t)r.queries * keys_of(r, j);
}

/* One block = one head. */
static __global__ void __launch_bounds__(256) select_begin(select_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    const int64_t bh = blockIdx.x, kv = kv_head(bh, a.heads, a.heads_kv);
    const int32_t *query_offset = a.query_offset + bh * ((int64_t)a.qb + 1);
    const int32_t *key_offset = a.key_offset + kv * ((int64_t)a.kb + 1);
    double signal = 0.0, all = 0.0;
    int64_t budget = 0;
    for (int row = threadIdx.x; row < a.cq; row += 256) {
        const int64_t n = query_offset[row + 1] - query_offset[row], at = bh * a.cq + row;
        if (a.need_loss) signal += a.row_signal[at], all += a.row_all[at];
        else budget += n * ((a.density > 0.0f ? 0 : a.row_area[at]) - a.row_kept[at]);
    }
    signal = block_sum(signal, smem);
    all = block_sum(all, smem);
    budget = block_sum(budget, smem);
    for (int i = threadIdx.x; i < SELECT_BINS; i += 256) a.histogram[bh * SELECT_BINS + i] = 0;
    if (threadIdx.x) return;
    select_state s;
    s.unit = s.allowed = 0.0;
    s.signal = signal;
    s.left = 0;
    s.prefix = 0;
    s.is_open = s.is_dense = 0;
    if (a.need_loss) {
        const double target = (double)a.target_error;
        s.allowed = (a.tail == SVG2_TAIL_NONE ? target : target * target) * signal;
        if (!(all <= 1.0e300 && signal <= 1.0e300)) /* NaN or Inf in v: nothing can be estimated */
            s.is_dense = 1;
        else if (all > 0.0) /* 2^60: fixed point */
            s.unit = 1152921504606846976.0 / all, s.is_open = all > s.allowed;
    } else {
        const int64_t video_pairs = (int64_t)query_offset[a.cq] * key_offset[a.ck];
        if (a.density > 0.0f) budget += (int64_t)((double)a.density * (double)video_pairs + 0.5);
        s.left = budget;
        s.is_open = budget > 0;
    }
    a.state[bh] = s;
}

/* digits of the score's bits: 11, 11 and 10 of them */
SVG2__DEVICE int digit_shift(int pass) { return pass == 0 ? 21 : pass == 1 ? 10 : 0; }
SVG2__DEVICE int digit_bins(int pass) { return pass == 2 ? 1024 : 2048; }

/* One block = 16 rows of one head: the weights of the scores that have the digits found so far, by their next
   digit. Lanes of one digit would take turns at its counter: where a whole warp has one (all scores equal),
   it adds up first. */
static __global__ void __launch_bounds__(256, 5) select_count(select_args a, int pass, int row_tiles)
{
    SVG2_DYN_SMEM(smem, 128);
    unsigned long long *count = (unsigned long long *)(void *)smem;
    const int64_t bh = (int)blockIdx.x / row_tiles;
    const int row0 = (int)blockIdx.x % row_tiles * SELECT_COUNT_ROWS;
    const int lane = threadIdx.x & 31, bins = digit_bins(pass);
    const select_state state = a.state[bh];
    const uint32_t above = pass == 0 ? 0u : pass == 1 ? ~0u << 21 : ~0u << 10;
    if (!state.is_open) return;
    for (int i = threadIdx.x; i < bins; i += 256) count[i] = 0;
    if (!SVG2__FAULT(42)) __syncthreads(); /* all counters are 0 */
    for (int row = row0; row < min(row0 + SELECT_COUNT_ROWS, a.cq); ++row) {
        const select_row r = select_row_of(a, bh, row);
        for (int j0 = threadIdx.x & ~31; j0 < a.ck; j0 += 256) {
            const int j = j0 + lane;
            const float score = j < a.ck ? a.score[r.at + j] : -1.0f;
            const uint32_t bits = __float_as_uint(score + 0.0f); /* -0 becomes 0 */
            const int is_in = !(score < 0.0f) && (bits & above) == state.prefix;
            const int digit = (int)(bits >> digit_shift(pass)) & (bins - 1);
            const unsigned in = __ballot_sync(0xffffffffu, is_in);
            if (in == 0) continue;
            int64_t weight = is_in ? select_weight(a, r, j, state.unit) : 0;
            const int first = __shfl_sync(0xffffffffu, digit, __ffs((int)in) - 1);
            if (__all_sync(0xffffffffu, !is_in || digit == first)) {
                weight = warp_sum(weight);
                if (lane == 0) atomicAdd(&count[first], (unsigned long long)weight);
            } else if (is_in) {
                atomicAdd(&count[digit], (unsigned long long)weight);
            }
        }
    }
    __syncthreads(); /* the counts are complete */
    for (int i = threadIdx.x; i < bins; i += 256)
        if (count[i]) atomicAdd(&a.histogram[bh * SELECT_BINS + i], count[i]);
}

/* One block = one head: the digit, from the highest on, where the weights reach what is left of the
   budget. */
static __global__ void __launch_bounds__(256) select_digit(select_args a, int pass)
{
    SVG2_DYN_SMEM(smem, 128);
    const int64_t bh = blockIdx.x;
    unsigned long long *histogram = a.histogram + bh * SELECT_BINS;
    select_state state = a.state[bh];
    const int bins = digit_bins(pass), each = bins / 256, high = bins - 1 - (int)threadIdx.x * each;
    int64_t sum = 0, total, before;
    if (!state.is_open) return;
    for (int i = 0; i < each; ++i) sum += (int64_t)histogram[high - i];
    before = block_scan(sum, &total, smem); /* its barriers: all have read the state */
    if (pass == 0 && a.need_loss)
        state.left = (int64_t)(((double)total - state.allowed * state.unit) * (1.0 + 1e-12)) + 1;
    if (state.left <= 0) {
        if (threadIdx.x == 0) a.state[bh].is_open = 0;
    } else if ((before < state.left && state.left <= before + sum)
               || (threadIdx.x == 255 && total < state.left)) {
        int digit = high;
        while (digit > high - each + 1 && before + (int64_t)histogram[digit] < state.left)
            before += (int64_t)histogram[digit--];
        state.left -= before;
        state.prefix |= (uint32_t)digit << digit_shift(pass);
        a.state[bh] = state;
    }
    __syncthreads(); /* the finder is done with the histogram */
    for (int i = threadIdx.x; i < SELECT_BINS; i += 256) histogram[i] = 0;
}

/* One warp = one row: the weights on the threshold. */
static __global__ void __launch_bounds__(256, 6) select_ties(select_args a, int64_t rows)
{
    const int64_t row = (int64_t)blockIdx.x * 8 + (threadIdx.x >> 5);
    if (row >= rows) return;
    const select_row r = select_row_of(a, (int)row / a.cq, (int)row % a.cq);
    const select_state state = a.state[r.bh];
    int64_t sum = 0;
    if (!state.is_open) return;
    for (int j = threadIdx.x & 31; j < a.ck; j += 32) {
        const float score = a.score[r.at + j];
        if (!(score < 0.0f) && __float_as_uint(score + 0.0f) == state.prefix)
            sum += select_weight(a, r, j, state.unit);
    }
    sum = warp_sum(sum);
    if ((threadIdx.x & 31) == 0) a.row_tie[row] = sum;
}

/* One block = one head: row_tie becomes the sum over the rows before. */
static __global__ void __launch_bounds__(256) select_settle(select_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    int64_t *tie = a.row_tie + (int64_t)blockIdx.x * a.cq, carry = 0;
    if (!a.state[blockIdx.x].is_open) return;
    for (int row0 = 0; row0 < a.cq; row0 += 256) {
        const int row = row0 + (int)threadIdx.x;
        int64_t total;
        const int64_t before = block_scan(row < a.cq ? tie[row] : 0, &total, smem);
        if (row < a.cq) tie[row] = carry + before;
        carry += total;
    }
}

/* One warp = one row: what is above the threshold, and on it in index order while something is left. */
static __global__ void __launch_bounds__(256) select_finish(select_args a, int64_t rows)
{
    const int64_t row = (int64_t)blockIdx.x * 8 + (threadIdx.x >> 5);
    if (row >= rows) return;
    const int lane = threadIdx.x & 31;
    const select_row r = select_row_of(a, (int)row / a.cq, (int)row % a.cq);
    const select_state state = a.state[r.bh];
    int64_t left = state.is_open ? state.left - a.row_tie[row] : 0, kept = 0;
    double lost = 0.0;
    for (int j0 = 0; j0 < a.ck; j0 += 32) {
        const int j = j0 + lane;
        const float score = j < a.ck ? a.score[r.at + j] : -1.0f;
        const uint32_t bits = __float_as_uint(score + 0.0f);
        const int is_free = state.is_open && !(score < 0.0f), is_tie = is_free && bits == state.prefix;
        int is_kept = j < a.ck && r.map[j];
        if (is_free && bits > state.prefix) is_kept = 1;
        if (__any_sync(0xffffffffu, is_tie)) {
            const int64_t weight = is_tie ? select_weight(a, r, j, state.unit) : 0, sum = warp_scan(weight);
            if (is_tie && sum - weight < left) is_kept = 1;
            left -= __shfl_sync(0xffffffffu, sum, 31);
        }
        if (j >= a.ck) continue;
        r.map[j] = (uint8_t)is_kept;
        if (is_kept) kept += keys_of(r, j);
        else if (a.need_loss && score >= 0.0f) lost += (double)a.loss[r.at + j];
    }
    kept = warp_sum(kept);
    lost = warp_sum(lost);
    if (lane == 0) a.row_kept[row] = kept, a.row_lost[row] = lost;
}

/* One block = one head. */
static __global__ void __launch_bounds__(256) select_end(select_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    const int64_t bh = blockIdx.x, kv = kv_head(bh, a.heads, a.heads_kv);
    const int32_t *query_offset = a.query_offset + bh * ((int64_t)a.qb + 1);
    const int32_t *key_offset = a.key_offset + kv * ((int64_t)a.kb + 1);
    const int64_t video_pairs = (int64_t)query_offset[a.cq] * key_offset[a.ck];
    int64_t pairs = 0, total = video_pairs;
    double lost = 0.0, signal;
    int empty = 0, is_dense;
    for (int row = threadIdx.x; row < a.cq; row += 256) {
        const int64_t n = query_offset[row + 1] - query_offset[row];
        pairs += n * a.row_kept[bh * a.cq + row];
        if (a.need_loss) lost += a.row_lost[bh * a.cq + row];
        empty += n == 0;
    }
    for (int j = threadIdx.x; j < a.ck; j += 256) empty += key_offset[j + 1] == key_offset[j];
    pairs = block_sum(pairs, smem);
    lost = block_sum(lost, smem);
    empty = block_sum(empty, smem);
    if (threadIdx.x) return;
    is_dense = a.need_loss /* where sparse would not pay */
               && (a.state[bh].is_dense || (double)pairs > (double)a.dense_above * (double)video_pairs);
    signal = a.need_loss ? a.state[bh].signal : 0.0;
    if (a.need_loss) a.state[bh].is_dense = is_dense;
    if (is_dense) pairs = video_pairs;
    if (a.has_text) {
        const int64_t text_q = query_offset[a.cq + 1] - query_offset[a.cq];
        const int64_t text_k = key_offset[a.ck + 1] - key_offset[a.ck];
        const int64_t more = text_q * key_offset[a.ck] + text_k * query_offset[a.cq] + text_q * text_k;
        pairs += more;
        total += more;
    }
    if (!a.stats) return;
    svg2_head_stats *s = a.stats + bh;
    s->pairs = s->pairs_pv = pairs;
    s->pairs_total = total;
    s->density = s->density_pv = total ? (float)((double)pairs / (double)total) : 0.0f;
    if (!a.need_loss) s->error_estimate = pairs == total ? 0.0f : -1.0f;
    else if (is_dense || !(signal > 0.0)) s->error_estimate = 0.0f;
    else s->error_estimate = (float)(a.tail == SVG2_TAIL_NONE ? lost / signal : sqrt(lost / signal));
    s->is_dense = is_dense;
    s->empty_clusters = empty;
    s->pattern = 0;
    s->pattern_error[0] = s->pattern_error[1] = 0.0f;
    s->recall = -1.0f;
}

/* One warp = one row of the map: text sees and is seen by all that is valid, padding by nobody; heads that
   became dense. */
static __global__ void __launch_bounds__(256) select_border(select_args a, int64_t rows)
{
    const int64_t at = (int64_t)blockIdx.x * 8 + (threadIdx.x >> 5);
    if (at >= rows) return;
    const int64_t bh = (int)at / a.qb;
    const int row = (int)at % a.qb, lane = threadIdx.x & 31;
    const int is_text = a.has_text && row == a.cq, is_padding = a.has_padding && row == a.qb - 1;
    uint8_t *line = a.map + at * a.kb;
    if (is_text || is_padding || (a.need_loss && a.state[bh].is_dense))
        for (int j = lane; j < a.ck; j += 32) line[j] = !is_padding;
    if (lane == 0 && a.has_text) line[a.ck] = !is_padding;
    if (lane == 0 && a.has_padding) line[a.kb - 1] = 0;
}

/* Per head Cq Ck 4 bytes of scores, as many again with a target error, 48 Cq + 16 KB; above 4096 key clusters
   up to 256 times 12 bytes a key cluster for sorting. 24 heads, 400 x 1000 clusters: 39 MB, 78 MB with a
   target error. */
static size_t select_layout(const svg2_select_desc *d, void *base, select_args *out = NULL)
{
    arena a = {(char *)base, 0};
    select_args w;
    const int64_t bh = (int64_t)d->batch * d->heads, bkv = (int64_t)d->batch * d->heads_kv;
    const size_t rows = count_of(bh, d->query_clusters), pairs = mul(rows, (size_t)d->key_clusters);
    const int need_loss = d->target_error > 0.0f, is_large = d->key_clusters > SELECT_SORTED;
    if (d->key_clusters > 1 << 24) return SIZE_MAX; /* a query need not have a valid desc */
    memset(&w, 0, sizeof w);
    for (w.sort_size = 1; w.sort_size < d->key_clusters; w.sort_size *= 2) {}
    w.blocks = SELECT_SCRATCH / w.sort_size;
    w.blocks = w.blocks > 256 ? 256 : w.blocks < 1 ? 1 : w.blocks;
    w.score = a.take<float>(pairs);
    w.loss = a.take<float>(need_loss ? pairs : 0);
    w.value_square = a.take<float>(need_loss ? count_of(bkv, d->key_clusters) : 0);
    w.row_signal = a.take<double>(rows);
    w.row_all = a.take<double>(rows);
    w.row_lost = a.take<double>(rows);
    w.row_area = a.take<int64_t>(rows);
    w.row_kept = a.take<int64_t>(rows);
    w.row_tie = a.take<int64_t>(rows);
    w.histogram = a.take<unsigned long long>(count_of(bh, SELECT_BINS));
    w.state = a.take<select_state>((size_t)bh);
    w.sort_key = a.take<uint64_t>(is_large ? count_of(w.blocks, w.sort_size) : 0);
    w.sort_mass = a.take<float>(is_large ? count_of(w.blocks, d->key_clusters) : 0);
    if (!is_large) w.blocks = bh * d->query_clusters;
    if (out) *out = w;
    return a.used;
}

static svg2_result run_select(const svg2_backend *backend, const svg2_select_desc *d, void *workspace,
                              svg2_error *err)
{
    const svg2_layout f32 = SVG2_ZERO;
    const int64_t bh = (int64_t)d->batch * d->heads, bkv = (int64_t)d->batch * d->heads_kv;
    const int64_t rows = bh * d->query_clusters;
    const unsigned heads = grid_of(bh), warps = grid_of((rows + 7) / 8);
    const size_t scratch = 64;
    select_args a;
    (void)select_layout(d, workspace, &a);
    a.query = tensor_of(d->query_centroid, f32, (int32_t)bh, d->query_clusters, d->head_dim);
    a.key = tensor_of(d->key_centroid, f32, (int32_t)bkv, d->key_clusters, d->head_dim);
    a.value = tensor_of(d->value_mean, f32, (int32_t)bkv, d->key_clusters, d->head_dim);
    a.key_mean = d->key_mean;
    a.log_mass = d->log_mass;
    a.share = d->share;
    a.value_var = d->value_var;
    a.query_offset = d->query_offset;
    a.key_offset = d->key_offset;
    a.map = d->map;
    a.stats = d->stats;
    a.heads = d->heads;
    a.heads_kv = d->heads_kv;
    a.dim = d->head_dim;
    a.cq = d->query_clusters;
    a.ck = d->key_clusters;
    a.has_text = d->has_text != 0;
    a.has_padding = d->has_padding != 0;
    a.qb = a.cq + a.has_text + a.has_padding;
    a.kb = a.ck + a.has_text + a.has_padding;
    /* 1e-4: 0.7f * 10 must be 7 */
    a.floor = d->min_keep > 0.0f ? (int)floor((double)d->min_keep * (double)a.ck + 1e-4) : 0;
    a.need_loss = d->target_error > 0.0f;
    a.is_row = d->budget == SVG2_BUDGET_ROW && !a.need_loss;
    a.is_literal = d->route == SVG2_ROUTE_MASS && a.is_row && !(d->density > 0.0f);
    a.is_spread = d->route == SVG2_ROUTE_SPREAD;
    a.tail = d->tail;
    a.scale = d->scale;
    a.top_p = d->top_p;
    a.density = d->density;
    a.target_error = d->target_error;
    a.dense_above = d->dense_above;

    const int row_tiles = (a.cq + 63) / 64, column_tiles = (a.ck + 127) / 128;
    SVG2__RUN(launch(backend, err, "select_logits", select_logits,
                     dim3(grid_of(bh * row_tiles * column_tiles)), 256, (size_t)16 * (68 + 132) * 4, a,
                     row_tiles, column_tiles));
    if (a.ck > SELECT_SORTED)
        SVG2__RUN(launch(backend, err, "select_rows", select_rows<1>,
                         dim3(grid_of(a.blocks < rows ? a.blocks : rows)), 256, (size_t)80, a, rows));
    else
        SVG2__RUN(launch(backend, err, "select_rows", select_rows<0>, dim3(grid_of(rows)), 256,
                         (size_t)(80 + a.sort_size * 8 + a.ck * 5), a, rows));
    if (a.need_loss) {
        const int loss_tiles = (a.cq + SELECT_LOSS_ROWS - 1) / SELECT_LOSS_ROWS;
        const size_t bytes =
            (size_t)SELECT_LOSS_KEYS * (SELECT_LOSS_ROWS + 4 + (a.dim <= 128 ? 128 : 256)) * 4;
        SVG2__RUN(launch(backend, err, "select_values", select_values, dim3(grid_of((bkv * a.ck + 7) / 8)),
                         256, 0, a, bkv * a.ck));
        SVG2__RUN(launch(backend, err, "select_loss", select_loss, dim3(grid_of(bh * loss_tiles)), 256, bytes,
                         a, loss_tiles));
    }
    if (!a.is_row) {
        const int count_tiles = (a.cq + SELECT_COUNT_ROWS - 1) / SELECT_COUNT_ROWS;
        SVG2__RUN(launch(backend, err, "select_begin", select_begin, dim3(heads), 256, scratch, a));
        for (int pass = 0; pass < 3; ++pass) {
            SVG2__RUN(launch(backend, err, "select_count", select_count, dim3(grid_of(bh * count_tiles)), 256,
                             (size_t)SELECT_BINS * 8, a, pass, count_tiles));
            SVG2__RUN(launch(backend, err, "select_digit", select_digit, dim3(heads), 256, scratch, a, pass));
        }
        SVG2__RUN(launch(backend, err, "select_ties", select_ties, dim3(warps), 256, 0, a, rows));
        SVG2__RUN(launch(backend, err, "select_settle", select_settle, dim3(heads), 256, scratch, a));
        SVG2__RUN(launch(backend, err, "select_finish", select_finish, dim3(warps), 256, 0, a, rows));
    }
    SVG2__RUN(launch(backend, err, "select_end", select_end, dim3(heads), 256, scratch, a));
    if (a.need_loss || a.has_text || a.has_padding)
        SVG2__RUN(launch(backend, err, "select_border", select_border, dim3(grid_of((bh * a.qb + 7) / 8)),
                         256, 0, a, bh * a.qb));
    return ok(err);
}

} /* namespace svg2__cuda */

/* ==== >>tail ===============================================================================
   The matrices A_I = sum_j w_Ij C_j are a product W [Cq, Ck] x C [Ck, D*D] on the tensor cores. Both factors
   are bf16 whatever the inputs are: 8 bits of a difference from a mean do for a correction of second order.

     tail_plan      which key clusters count; pieces of those that are too long for one block
     tail_logits    S_Ij + lambda_Ij of the blocks that are skipped
     tail_weights   W: their softmax
     tail_moments   C_j from the keys and values of cluster j
     tail_merge     C_j of the clusters in several pieces
     tail_product   A = W C

   Only key clusters with two tokens that somebody skips have a row of C and a column of W, without holes
   between them. Heads of the call that share a kv head share its C and are one product, their W on top of
   each other.

   Workspace, in bytes, for n heads of the call on m kv heads (nearly all of it is C):
     2 m min(Ck, Skv/2) D^2 + 4 m (Skv/1024) D^2 + 6 n Cq Ck
   33 + 7 + 2 MB a head for 110K tokens, 400/1000 clusters, D = 128. A is written (26 MB a head then) and C
   written and read: 0.1 GB a head, which is what limits short clusters; 2 (Skv + Cq Ck) D^2 flop are 17 GFLOP
   a head, under 1 % of its attention. */
namespace svg2__cuda {

enum {
    TAIL_PIECE = 2048,  /* tokens of a cluster that one block of tail_moments takes */
    TAIL_TOKENS = 64,   /* of them in shared memory at once                         */
    TAIL_TILE = 64,     /* clusters of either side of a block of tail_logits        */
    TAIL_ROWS = 128,    /* of A, in a block of tail_product                         */
    TAIL_COLUMNS = 256,
    TAIL_DEPTH = 32,    /* key clusters in a stage of its shared memory             */
    TAIL_STAGES = 4,
    TAIL_STAGE_BYTES = (TAIL_ROWS + TAIL_COLUMNS) * TAIL_DEPTH * 2
};

struct tail_ws {
    float         *logit;   /* [heads, Cq, Ck]         -INFINITY: computed, or empty       */
    __nv_bfloat16 *weight;  /* [heads, Cq, stride]     columns are rows of C               */
    __nv_bfloat16 *moment;  /* [slots, actives, D, D]  C, row = key dimension              */
    float         *partial; /* [slots, pieces, D, D]   sums over pieces of long clusters   */
    int32_t       *active;  /* [slots, actives]        key cluster of a row of C           */
    int32_t       *first;   /* [slots, actives]        its first piece, if it has several  */
    int32_t       *owner;   /* [slots, pieces]         row of C of a piece                 */
    int32_t       *count;   /* [slots, 2]              rows of C, pieces                   */
};

/* A slot is a kv head of the call. */
struct tail_args {
    tail_ws ws;
    tensor  k, v;
    const int32_t *key_order, *key_offset;
    const float   *query_centroid, *key_centroid, *key_mean, *value_mean, *log_mass;
    const uint8_t *map;
    float         *matrix;
    float          scale;
    int32_t        heads_kv, group, tokens_kv, dim;
    int32_t        query_clusters, key_clusters, query_blocks, key_blocks;
    int32_t        head_begin, head_count, kv_begin, slots;
    int32_t        actives, pieces; /* at most, in a slot                                */
    int32_t        stride;          /* of a row of weight: whole 16-byte chunks          */
    int32_t        panels;          /* of tail_moments, along either dimension           */
    int32_t        is_pair;         /* matrix may be written two floats at a time        */
};

/* heads of the call that belong to a slot, counted from head_begin */
struct tail_heads {
    int32_t begin, count;
};

SVG2__DEVICE tail_heads tail_heads_of(const tail_args &a, int32_t slot)
{
    const int64_t first = (int64_t)(a.kv_begin + slot) * a.group - a.head_begin;
    const int64_t begin = first < 0 ? 0 : first;
    const int64_t end = first + a.group < a.head_count ? first + a.group : a.head_count;
    tail_heads h;
    h.begin = (int32_t)begin;
    h.count = (int32_t)(end - begin);
    return h;
}

SVG2__DEVICE int32_t tail_pieces_of(int32_t tokens)
{
    return tokens / TAIL_PIECE + (tokens % TAIL_PIECE != 0);
}

/* tail_plan - one block a slot, a thread a key cluster at a time. The search for a row that skips the cluster
   nearly always ends with the first eight; a cluster that everybody computes costs one load a query cluster,
   eight at a time. Limiter: latency (three dependent loads); shared memory 256 bytes. */
static __global__ void __launch_bounds__(1024) tail_plan(const __grid_constant__ tail_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    int32_t *warp_actives = (int32_t *)(void *)smem, *warp_pieces = warp_actives + 32;
    const int32_t slot = (int32_t)blockIdx.x;
    const int32_t lane = (int32_t)threadIdx.x % WARP, warp = (int32_t)threadIdx.x / WARP;
    const tail_heads heads = tail_heads_of(a, slot);
    const int32_t *offset = a.key_offset + (int64_t)(a.kv_begin + slot) * ((int64_t)a.key_blocks + 1);
    int32_t actives = 0, pieces = 0; /* of the clusters before `from` */
    for (int32_t from = 0; from < a.key_clusters; from += (int32_t)blockDim.x) {
        const int32_t j = from + (int32_t)threadIdx.x;
        int32_t is_active = 0, n = 0;
        if (j < a.key_clusters) {
            n = offset[j + 1] - offset[j];
            for (int32_t h = 0; h < heads.count && n >= 2 && !is_active; ++h) { /* one token has no spread */
                const uint8_t *map =
                    a.map + (int64_t)(a.head_begin + heads.begin + h) * a.query_blocks * a.key_blocks + j;
                for (int32_t row = 0; row < a.query_clusters && !is_active; row += 8)
#pragma unroll
                    for (int32_t i = 0; i < 8; ++i)
                        is_active |= map[(int64_t)min(row + i, a.query_clusters - 1) * a.key_blocks] == 0;
            }
        }
        const int32_t own = is_active && n > TAIL_PIECE ? tail_pieces_of(n) : 0;
        int32_t at = is_active, piece = own; /* inclusive sums over the warp */
        for (int o = 1; o < WARP; o *= 2) {
            const int32_t x = __shfl_up_sync(0xffffffffu, at, (unsigned)o);
            const int32_t y = __shfl_up_sync(0xffffffffu, piece, (unsigned)o);
            if (lane >= o) at += x, piece += y;
        }
        if (lane == WARP - 1) {
            warp_actives[warp] = at;
            warp_pieces[warp] = piece;
        }
        __syncthreads(); /* the sums of all warps are there */
        at += actives - is_active;
        piece += pieces - own;
        for (int32_t w = 0; w < (int32_t)blockDim.x / WARP; ++w) {
            const int32_t x = warp_actives[w], y = warp_pieces[w];
            if (w < warp) at += x, piece += y;
            actives += x;
            pieces += y;
        }
        if (is_active) {
            a.ws.active[(int64_t)slot * a.actives + at] = j;
            a.ws.first[(int64_t)slot * a.actives + at] = piece;
            for (int32_t i = 0; i < own; ++i) a.ws.owner[(int64_t)slot * a.pieces + piece + i] = at;
        }
        __syncthreads(); /* everybody has read the sums; the next round writes its own */
    }
    if (threadIdx.x == 0) {
        a.ws.count[2 * slot] = actives;
        a.ws.count[2 * slot + 1] = pieces;
    }
}

/* tail_logits - one block: 64 query clusters x 64 key clusters of a head, 4 x 4 a thread, in f32 as weights
   are exponentials of these. Rows of both sides go through shared memory transposed, 32 dimensions at a time;
   leading dimension 65 keeps the transposed stores and the loads free of bank conflicts (a thread owns every
   16th row and column). Limiter: shared memory loads, 8 for 16 FMA; the whole is 2 Cq Ck D flop a head.
   Shared memory 16.6 KB. */
static __global__ void __launch_bounds__(256) tail_logits(const __grid_constant__ tail_args a)
{
    enum { LEAD = TAIL_TILE + 1 };
    SVG2_DYN_SMEM(smem, 128);
    float *query = (float *)(void *)smem, *key = query + 32 * LEAD;
    const int32_t lane = (int32_t)threadIdx.x % WARP, warp = (int32_t)threadIdx.x / WARP;
    const int32_t tx = (int32_t)threadIdx.x % 16, ty = (int32_t)threadIdx.x / 16;
    const int64_t across = ((int64_t)a.key_clusters + TAIL_TILE - 1) / TAIL_TILE,
                  down = ((int64_t)a.query_clusters + TAIL_TILE - 1) / TAIL_TILE;
    const int32_t head = (int32_t)((int64_t)blockIdx.x / (across * down)),
                  row0 = (int32_t)((int64_t)blockIdx.x / across % down) * TAIL_TILE,
                  col0 = (int32_t)((int64_t)blockIdx.x % across) * TAIL_TILE;
    const int64_t bh = (int64_t)a.head_begin + head, kv = bh / a.group;
    const float *qc = a.query_centroid + bh * a.query_clusters * a.dim;
    const float *kc = a.key_centroid + kv * a.key_clusters * a.dim;
    const int32_t *offset = a.key_offset + kv * ((int64_t)a.key_blocks + 1);
    float sum[4][4] = {};
    for (int32_t e0 = 0; e0 < a.dim; e0 += 32) {
        const int32_t e = e0 + lane;
        const float mean = e < a.dim ? a.key_mean[kv * a.dim + e] : 0.0f;
        for (int32_t r = warp; r < TAIL_TILE; r += 8) {
            const bool is_row = e < a.dim && row0 + r < a.query_clusters;
            const bool is_column = e < a.dim && col0 + r < a.key_clusters;
            query[lane * LEAD + r] = is_row ? qc[(int64_t)(row0 + r) * a.dim + e] * a.scale : 0.0f;
            key[lane * LEAD + r] = is_column ? kc[(int64_t)(col0 + r) * a.dim + e] - mean : 0.0f;
        }
        __syncthreads(); /* both tiles are complete */
        for (int32_t i = 0; i < 32; ++i) {
            float x[4], y[4];
            for (int c = 0; c < 4; ++c) {
                x[c] = query[i * LEAD + ty + 16 * c];
                y[c] = key[i * LEAD + tx + 16 * c];
            }
            for (int r = 0; r < 4; ++r)
                for (int c = 0; c < 4; ++c) sum[r][c] = fmaf(x[r], y[c], sum[r][c]);
        }
        __syncthreads(); /* everybody is through with the tiles before they are overwritten */
    }
    for (int c = 0; c < 4; ++c) {
        const int32_t j = col0 + tx + 16 * c;
        if (j >= a.key_clusters) continue;
        const int32_t n = offset[j + 1] - offset[j];
        for (int r = 0; r < 4; ++r) {
            const int32_t row = row0 + ty + 16 * r;
            if (row >= a.query_clusters) continue;
            const int64_t at = (bh * a.query_clusters + row) * a.key_clusters + j;
            const bool is_skipped = n > 0 && !a.map[(bh * a.query_blocks + row) * a.key_blocks + j];
            a.ws.logit[at - (int64_t)a.head_begin * a.query_clusters * a.key_clusters] =
                is_skipped ? sum[r][c] + (a.log_mass ? a.log_mass[at] : logf((float)n)) : -INFINITY;
        }
    }
}

/* tail_weights - one warp: one row of W. Single tokens count in the sum though they have no column. A row
   that skips nothing, or whose sum is NaN, is 0. Three passes over Ck logits, the last two from the cache.
   Limiter: latency; 4 Cq Ck bytes a head. */
static __global__ void __launch_bounds__(256) tail_weights(const __grid_constant__ tail_args a)
{
    const float log2e = 1.4426950408889634f;
    const int64_t row = (int64_t)blockIdx.x * 8 + threadIdx.x / WARP;
    const int64_t rows = (int64_t)a.head_count * a.query_clusters;
    const int32_t lane = (int32_t)threadIdx.x % WARP;
    if (row >= rows) return; /* the whole warp */
    const int32_t slot = (int32_t)((a.head_begin + row / a.query_clusters) / a.group - a.kv_begin);
    const int32_t actives = a.ws.count[2 * slot], *active = a.ws.active + (int64_t)slot * a.actives;
    const float *logit = a.ws.logit + row * a.key_clusters;
    __nv_bfloat16 *weight = a.ws.weight + row * a.stride;
    float top = -INFINITY, sum = 0.0f;
    for (int32_t j = lane; j < a.key_clusters; j += WARP) top = fmaxf(top, logit[j]); /* passes over NaN */
    top = warp_max(top);
    if (top > -INFINITY)
        for (int32_t j = lane; j < a.key_clusters; j += WARP) sum += svg2__exp2((logit[j] - top) * log2e);
    sum = warp_sum(sum);
    const float scale = sum > 0.0f ? 1.0f / sum : 0.0f;
    for (int32_t i = lane; i < actives; i += WARP)
        weight[i] =
            __float2bfloat16_rn(scale > 0.0f ? svg2__exp2((logit[active[i]] - top) * log2e) * scale : 0.0f);
}

/* 8 elements of a 16-bit tensor as floats */
SVG2__DEVICE void tail_unpack8(float (&x)[8], uint4 v, int32_t dtype)
{
    uint32_t u[4];
    memcpy(u, &v, 16);
    for (int i = 0; i < 4; ++i) {
        if (dtype == SVG2_BF16) {
            x[2 * i] = __uint_as_float(u[i] << 16);
            x[2 * i + 1] = __uint_as_float(u[i] & 0xffff0000u);
        } else {
            __half_raw lo, hi;
            lo.x = (unsigned short)u[i];
            hi.x = (unsigned short)(u[i] >> 16);
            x[2 * i] = __half2float(__half(lo));
            x[2 * i + 1] = __half2float(__half(hi));
        }
    }
}

/* 8 elements of rows token[r] and token[r + 16] from element `origin` of row 0 on, less shift, as bf16 into
   these rows of a tile; zeros from row n on. IS_RAW: 16-bit rows that may be read 16 bytes at a time; then
   the loads go out together. */
template <int PANEL, bool IS_RAW>
SVG2__DEVICE void tail_load(unsigned char *tile, const tensor &t, int64_t origin, const int32_t *token, int n,
                            const float *shift, int r, int chunk)
{
    uint4 raw[2];
    if (IS_RAW) {
#pragma unroll
        for (int i = 0; i < 2; ++i)
            if (r + 16 * i < n)
                raw[i] = *(const uint4 *)(const void *)((const uint16_t *)t.data + origin
                                                        + token[r + 16 * i] * t.stride_token);
    }
    const float4 s0 = *(const float4 *)(const void *)shift, s1 = *(const float4 *)(const void *)(shift + 4);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        uint4 v = make_uint4(0, 0, 0, 0);
        if (r + 16 * i < n) {
            float x[8];
            if (IS_RAW) tail_unpack8(x, raw[i], t.dtype);
            else load8(x, t, origin + token[r + 16 * i] * t.stride_token, 0);
            v.x = pack2(x[0] - s0.x, x[1] - s0.y, __nv_bfloat16());
            v.y = pack2(x[2] - s0.z, x[3] - s0.w, __nv_bfloat16());
            v.z = pack2(x[4] - s1.x, x[5] - s1.y, __nv_bfloat16());
            v.w = pack2(x[6] - s1.z, x[7] - s1.w, __nv_bfloat16());
        }
        if (!SVG2__FAULT(50) || r + 16 * i < n)
            *(uint4 *)(void *)(tile + tile_at<PANEL>(r + 16 * i, chunk)) = v;
    }
}

/* tail_moments - one block: one PANEL x PANEL piece of C_j (all of it up to D = 128), or of the sum over a
   piece of 2048 tokens of a long cluster; pieces are the first blocks of a slot, for they last longest.

       tokens 64 at a time -> registers -> less centroid / value mean, bf16 -> shared memory
       C += key tile^T value tile, warps WARPS_M x WARPS_N, both operands by ldmatrix.trans

   A thread keeps its 8 dimensions and takes every 16th token. Tokens behind the end are zeros. Limiter:
   gathered rows, 4 D bytes a token in 16-bit, and 2 D^2 bytes a cluster written (through shared memory, so
   that rows leave whole); two blocks an SM overlap the loads of one with the products of the other.
   Registers: 64 of C a thread.
   Shared memory 264 PANEL + 8192 bytes. */
template <int PANEL> struct tail_shape;
template <> struct tail_shape<64> { enum { WARPS_M = 2, WARPS_N = 2 }; };
template <> struct tail_shape<96> { enum { WARPS_M = 3, WARPS_N = 2 }; };
template <> struct tail_shape<128> { enum { WARPS_M = 2, WARPS_N = 4 }; };

template <int PANEL, bool IS_RAW>
static __global__ void __launch_bounds__(2 * PANEL, 2) tail_moments(const __grid_constant__ tail_args a)
{
    enum {
        WARPS_M = tail_shape<PANEL>::WARPS_M,
        WARPS_N = tail_shape<PANEL>::WARPS_N,
        THREADS = WARPS_M * WARPS_N * WARP,
        WM = PANEL / WARPS_M,
        WN = PANEL / WARPS_N,
        CHUNKS = PANEL / 8
    };
    static_assert(THREADS == 2 * PANEL && THREADS / CHUNKS == 16,
                  "a thread keeps its chunk and takes every 16th row");
    SVG2_DYN_SMEM(smem, 128);
    unsigned char *key_tile = smem, *value_tile = smem + TAIL_TOKENS * PANEL * 2;
    float *key_shift = (float *)(void *)(smem + 4 * TAIL_TOKENS * PANEL), *value_shift = key_shift + PANEL;
    int32_t *token = (int32_t *)(void *)(value_shift + PANEL);
    const int32_t tid = (int32_t)threadIdx.x, lane = tid % WARP, warp = tid / WARP;
    const int32_t wm = warp / WARPS_N * WM, wn = warp % WARPS_N * WN;

    int64_t x = (int64_t)blockIdx.x;
    const int32_t value_panel = (int32_t)(x % a.panels) * PANEL;
    const int32_t key_panel = (int32_t)(x / a.panels % a.panels) * PANEL;
    x /= (int64_t)a.panels * a.panels;
    const int32_t item = (int32_t)(x % (a.pieces + a.actives)), slot = (int32_t)(x / (a.pieces + a.actives));
    int32_t row = item - a.pieces;
    if (item < a.pieces) {
        if (item >= a.ws.count[2 * slot + 1]) return;
        row = a.ws.owner[(int64_t)slot * a.pieces + item];
    } else if (row >= a.ws.count[2 * slot]) {
        return;
    }
    const int64_t kv = (int64_t)a.kv_begin + slot, batch = kv / a.heads_kv, head = kv % a.heads_kv;
    const int32_t j = a.ws.active[(int64_t)slot * a.actives + row];
    const int32_t *offset = a.key_offset + kv * ((int64_t)a.key_blocks + 1);
    int32_t begin = offset[j], n = offset[j + 1] - begin;
    const int32_t pieces = tail_pieces_of(n);
    const float scale = 1.0f / (float)n;
    const int64_t size = (int64_t)a.dim * a.dim;
    void *out = a.ws.moment + ((int64_t)slot * a.actives + row) * size;
    if (pieces > 1) { /* equal pieces, multiples of 16 tokens */
        if (item >= a.pieces) return;
        out = a.ws.partial + ((int64_t)slot * a.pieces + item) * size;
        const int32_t piece = item - a.ws.first[(int64_t)slot * a.actives + row];
        const int32_t each = (n / pieces + (n % pieces != 0) + 15) / 16 * 16;
        const int64_t left = n - (int64_t)piece * each;
        begin += left > 0 ? piece * each : 0;
        n = left < 0 ? 0 : left < each ? (int32_t)left : each;
    }
    const int32_t *order = a.key_order + kv * a.tokens_kv + begin;

    const int32_t chunk = tid % CHUNKS, r = tid / CHUNKS;
    const int32_t key_e = key_panel + chunk * 8, value_e = value_panel + chunk * 8;
    {
        const bool is_key = tid < PANEL;
        const int32_t e = is_key ? key_panel + tid : value_panel + tid - PANEL;
        const float *mean = (is_key ? a.key_centroid : a.value_mean) + (kv * a.key_clusters + j) * a.dim;
        key_shift[tid] = e < a.dim ? mean[e] : 0.0f; /* value_shift follows */
    }
    for (int32_t i = tid; i < n; i += THREADS) token[i] = order[i];
    __syncthreads(); /* the means and the indices are there */

    const int64_t key_origin = row_at(a.k, batch, head, 0) + key_e;
    const int64_t value_origin = row_at(a.v, batch, head, 0) + value_e;
    float sum[WM / 16][WN / 8][4] = {};
    for (int32_t t = 0; t < n; t += TAIL_TOKENS) {
#pragma unroll 1 /* registers; 32 KB of loads under way in two blocks */
        for (int32_t half = r; half < TAIL_TOKENS; half += TAIL_TOKENS / 2) {
            tail_load<PANEL, IS_RAW>(key_tile, a.k, key_origin, token + t, key_e < a.dim ? n - t : 0,
                                     key_shift + 8 * chunk, half, chunk);
            tail_load<PANEL, IS_RAW>(value_tile, a.v, value_origin, token + t, value_e < a.dim ? n - t : 0,
                                     value_shift + 8 * chunk, half, chunk);
        }
        if (!SVG2__FAULT(51)) __syncthreads(); /* both tiles are complete */
        const int32_t steps = ((n - t < TAIL_TOKENS ? n - t : TAIL_TOKENS) + 15) / 16;
#pragma unroll 1 /* registers */
        for (int32_t s = 0; s < steps; ++s) {
            uint32_t ka[WM / 16][4];
#pragma unroll
            for (int m = 0; m < WM / 16; ++m)
                svg2__ldmatrix_x4_trans(ka[m], svg2__smem(key_tile)
                    + tile_at<PANEL>(16 * s + lane / 16 * 8 + lane % 8, (wm + 16 * m) / 8 + lane / 8 % 2));
#pragma unroll
            for (int c = 0; c < WN / 16; ++c) {
                uint32_t vb[4];
                svg2__ldmatrix_x4_trans(vb, svg2__smem(value_tile)
                    + tile_at<PANEL>(16 * s + lane % 16, (wn + 16 * c) / 8 + lane / 16));
#pragma unroll
                for (int m = 0; m < WM / 16; ++m) {
                    svg2__mma_m16n8k16(sum[m][2 * c], ka[m], vb[0], vb[1], __nv_bfloat16());
                    svg2__mma_m16n8k16(sum[m][2 * c + 1], ka[m], vb[2], vb[3], __nv_bfloat16());
                }
            }
        }
        if (!SVG2__FAULT(52)) __syncthreads(); /* everybody is through with the tiles before they are
                                                  overwritten */
    }

    const int32_t g = lane / 4, c2 = lane % 4 * 2;
    if (pieces > 1) {
#pragma unroll
        for (int m = 0; m < WM / 16; ++m)
#pragma unroll
            for (int c = 0; c < WN / 8; ++c)
                for (int i = 0; i < 2; ++i) {
                    const int32_t e = key_panel + wm + 16 * m + 8 * i + g, f = value_panel + wn + 8 * c + c2;
                    if (e < a.dim && f < a.dim)
                        *(float2 *)(void *)((float *)out + e * a.dim + f) =
                            make_float2(sum[m][c][2 * i], sum[m][c][2 * i + 1]);
                }
        return;
    }
#pragma unroll
    for (int m = 0; m < WM / 16; ++m)
#pragma unroll
        for (int c = 0; c < WN / 8; ++c)
            for (int i = 0; i < 2; ++i)
                *(uint32_t *)(void *)(smem + tile_at<PANEL>(wm + 16 * m + 8 * i + g, (wn + 8 * c) / 8)
                                      + c2 * 2) =
                    pack2(sum[m][c][2 * i] * scale, sum[m][c][2 * i + 1] * scale, __nv_bfloat16());
    __syncthreads(); /* C is complete */
    for (int32_t i = tid; i < PANEL * CHUNKS; i += THREADS) {
        const int32_t e = key_panel + i / CHUNKS, f = value_panel + i % CHUNKS * 8;
        if (e < a.dim && f < a.dim)
            *(uint4 *)(void *)((__nv_bfloat16 *)out + e * a.dim + f) =
                *(const uint4 *)(const void *)(smem + tile_at<PANEL>(i / CHUNKS, i % CHUNKS));
    }
}

/* tail_merge - C of the clusters in several pieces, added in order: one block 1024 elements of the piece that
   comes first. Limiter: memory, 4 bytes an element and piece. */
static __global__ void __launch_bounds__(256) tail_merge(const __grid_constant__ tail_args a)
{
    const int64_t elements = (int64_t)a.dim * a.dim, parts = (elements + 1023) / 1024;
    const int64_t e = ((int64_t)blockIdx.x % parts * 256 + threadIdx.x) * 4;
    const int32_t piece = (int32_t)((int64_t)blockIdx.x / parts % a.pieces),
                  slot = (int32_t)((int64_t)blockIdx.x / parts / a.pieces);
    if (piece >= a.ws.count[2 * slot + 1] || e >= elements) return;
    const int32_t row = a.ws.owner[(int64_t)slot * a.pieces + piece];
    if (a.ws.first[(int64_t)slot * a.actives + row] != piece) return;
    const int32_t *offset = a.key_offset + ((int64_t)a.kv_begin + slot) * ((int64_t)a.key_blocks + 1)
                            + a.ws.active[(int64_t)slot * a.actives + row];
    const int32_t n = offset[1] - offset[0], pieces = tail_pieces_of(n);
    const float *from = a.ws.partial + ((int64_t)slot * a.pieces + piece) * elements + e;
    const float scale = 1.0f / (float)n;
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    for (int32_t i = 0; i < pieces; ++i) {
        const float4 x = *(const float4 *)(const void *)(from + i * elements);
        sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    }
    const uint2 v = make_uint2(pack2(sum.x * scale, sum.y * scale, __nv_bfloat16()),
                               pack2(sum.z * scale, sum.w * scale, __nv_bfloat16()));
    *(uint2 *)(void *)(a.ws.moment + ((int64_t)slot * a.actives + row) * elements + e) = v;
}

/* One stage of tail_product on its way into shared memory: rows of W 64 bytes long, rows of C 512. What lies
   outside is 0. */
SVG2__DEVICE void tail_stage(uint32_t stage, const tail_args &a, const __nv_bfloat16 *weight,
                             const __nv_bfloat16 *moment, int64_t rows, int64_t columns, int32_t depth,
                             int32_t k0)
{
    const int32_t tid = (int32_t)threadIdx.x;
#pragma unroll
    for (int i = 0; i < TAIL_ROWS / 64; ++i) {
        const int32_t r = tid / 4 + 64 * i, k = k0 + tid % 4 * 8, left = r < rows ? (depth - k) * 2 : 0;
        const int32_t bytes = left < 0 ? 0 : left > 16 ? 16 : left;
        svg2__cp_async16(stage + tile_at<TAIL_DEPTH>(r, tid % 4),
                         bytes ? weight + (int64_t)r * a.stride + k : weight, bytes);
    }
    const uint32_t stage_b = stage + TAIL_ROWS * TAIL_DEPTH * 2;
#pragma unroll
    for (int i = 0; i < TAIL_DEPTH / 8; ++i) {
        const int32_t r = tid / 32 + 8 * i, column = tid % 32 * 8;
        const int32_t bytes = k0 + r < depth && column < columns ? 16 : 0;
        svg2__cp_async16(stage_b + tile_at<TAIL_COLUMNS>(r, tid % 32),
                         bytes ? moment + (k0 + r) * (int64_t)(a.dim * a.dim) + column : moment, bytes);
    }
}

/* tail_product - one block: 128 rows x 256 columns of A. 8 warps of 64 x 64; key clusters come 32 at a time
   through 4 stages of shared memory, three of them under way. Blocks of the same columns follow each other,
   so C is read from memory once.

       W  [128 rows][32 clusters]   A operand, ldmatrix
       C  [32 clusters][256]        B operand, ldmatrix.trans

   Limiter: the tensor cores by mma.sync; 85 flop a byte from L2. A warp whose 64 rows are all behind the end
   leaves the tensor cores to the other. Registers: 128 of A a thread. Shared memory 96 KB, one block an SM,
   on every device from 8.0 on. */
static __global__ void __launch_bounds__(256) tail_product(const __grid_constant__ tail_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    const uint32_t base = svg2__smem(smem);
    const int32_t lane = (int32_t)threadIdx.x % WARP, warp = (int32_t)threadIdx.x / WARP;
    const int32_t wm = warp / 4 * 64, wn = warp % 4 * 64;
    const int32_t most = a.group < a.head_count ? a.group : a.head_count;
    const int64_t size = (int64_t)a.dim * a.dim;
    const int64_t down = ((int64_t)most * a.query_clusters + TAIL_ROWS - 1) / TAIL_ROWS,
                  across = (size + TAIL_COLUMNS - 1) / TAIL_COLUMNS;
    const int64_t row0 = (int64_t)blockIdx.x % down * TAIL_ROWS;
    const int64_t col0 = (int64_t)blockIdx.x / down % across * TAIL_COLUMNS;
    const int32_t slot = (int32_t)((int64_t)blockIdx.x / down / across);
    const tail_heads heads = tail_heads_of(a, slot);
    const int64_t first = (int64_t)heads.begin * a.query_clusters + row0; /* row of W and of A */
    /* left from here on */
    const int64_t rows = (int64_t)heads.count * a.query_clusters - row0, columns = size - col0;
    if (rows <= 0) return;
    const __nv_bfloat16 *weight = a.ws.weight + first * a.stride;
    const __nv_bfloat16 *moment = a.ws.moment + (int64_t)slot * a.actives * size + col0;
    const int32_t depth = a.ws.count[2 * slot], steps = (depth + TAIL_DEPTH - 1) / TAIL_DEPTH;

    float sum[4][8][4] = {};
    for (int s = 0; s < TAIL_STAGES - 1; ++s) {
        if (s < steps)
            tail_stage(base + s * TAIL_STAGE_BYTES, a, weight, moment, rows, columns, depth, s * TAIL_DEPTH);
        svg2__cp_async_commit();
    }
    for (int32_t step = 0; step < steps; ++step) {
        /* this thread's copies of this stage have arrived */
        if (!SVG2__FAULT(53)) svg2__cp_async_wait<TAIL_STAGES - 2>();
        if (!SVG2__FAULT(54)) __syncthreads(); /* so have the others'; and everybody is through with the stage
                                                  before, which the next copies overwrite */
        const int32_t ahead = step + TAIL_STAGES - 1;
        if (ahead < steps)
            tail_stage(base + ahead % TAIL_STAGES * TAIL_STAGE_BYTES, a, weight, moment, rows, columns, depth,
                       ahead * TAIL_DEPTH);
        svg2__cp_async_commit();
        if (wm >= rows) continue;
        const uint32_t stage_a = base + step % TAIL_STAGES * TAIL_STAGE_BYTES;
        const uint32_t stage_b = stage_a + TAIL_ROWS * TAIL_DEPTH * 2;
#pragma unroll
        for (int k = 0; k < TAIL_DEPTH / 16; ++k) {
            uint32_t wa[4][4];
#pragma unroll
            for (int m = 0; m < 4; ++m)
                svg2__ldmatrix_x4(wa[m],
                                  stage_a + tile_at<TAIL_DEPTH>(wm + 16 * m + lane % 16, 2 * k + lane / 16));
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                uint32_t cb[4];
                svg2__ldmatrix_x4_trans(
                    cb, stage_b + tile_at<TAIL_COLUMNS>(16 * k + lane % 16, wn / 8 + 2 * c + lane / 16));
#pragma unroll
                for (int m = 0; m < 4; ++m) {
                    svg2__mma_m16n8k16(sum[m][2 * c], wa[m], cb[0], cb[1], __nv_bfloat16());
                    svg2__mma_m16n8k16(sum[m][2 * c + 1], wa[m], cb[2], cb[3], __nv_bfloat16());
                }
            }
        }
    }
    if (wm >= rows) return;
    float *out = a.matrix + first * size + col0;
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
        for (int c = 0; c < 8; ++c)
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int32_t row = wm + 16 * m + 8 * i + lane / 4, column = wn + 8 * c + lane % 4 * 2;
                if (row >= rows + (SVG2__FAULT(55) ? 1 : 0) || column >= columns) continue;
                float *at = out + row * size + column;
                if (a.is_pair) {
                    *(float2 *)(void *)at = make_float2(sum[m][c][2 * i], sum[m][c][2 * i + 1]);
                } else {
                    at[0] = sum[m][c][2 * i];
                    at[1] = sum[m][c][2 * i + 1];
                }
            }
}

/* How many kv heads the call can touch, wherever it begins. */
static int64_t tail_slots(const svg2_tail_desc *d)
{
    const int64_t group = d->heads / d->heads_kv, all = (int64_t)d->batch * d->heads_kv,
                  most = ((int64_t)d->head_count + group - 2) / group + 1;
    return most < all ? most : all;
}

static size_t tail_layout(const svg2_tail_desc *d, void *base, tail_args *args)
{
    arena m = {(char *)base, 0};
    tail_args a;
    if (d->heads_kv < 1 || d->heads_kv > d->heads) return SIZE_MAX; /* a query need not have a valid desc */
    memset(&a, 0, sizeof a);
    const int64_t slots = tail_slots(d), rows = (int64_t)d->head_count * d->query_clusters;
    const int64_t skv = d->tokens_kv, size = (int64_t)d->head_dim * d->head_dim;
    a.actives = (int32_t)(d->key_clusters < skv / 2 ? d->key_clusters : skv > 1 ? skv / 2 : 1);
    /* n tokens are (n + 2047)/2048 pieces, where they are more than 2048 */
    a.pieces = (int32_t)((skv + skv / (TAIL_PIECE + 1) * (TAIL_PIECE - 1)) / TAIL_PIECE);
    if (skv <= TAIL_PIECE) a.pieces = 0;
    a.stride = (a.actives + 7) / 8 * 8;
    a.ws.count = m.take<int32_t>(count_of(slots, 2));
    a.ws.active = m.take<int32_t>(count_of(slots, a.actives));
    a.ws.first = m.take<int32_t>(count_of(slots, a.actives));
    a.ws.owner = m.take<int32_t>(count_of(slots, a.pieces));
    a.ws.logit = m.take<float>(count_of(rows, d->key_clusters));
    a.ws.weight = m.take<__nv_bfloat16>(count_of(rows, a.stride));
    a.ws.moment = m.take<__nv_bfloat16>(count_of(slots, a.actives, size));
    a.ws.partial = m.take<float>(count_of(slots, a.pieces, size));
    if (args) *args = a;
    return m.used;
}

template <int PANEL>
static svg2_result tail_run_moments(const svg2_backend *backend, const tail_args &a, int64_t blocks,
                                    svg2_error *err)
{
    const bool is_raw = a.k.dtype != SVG2_F32 && a.v.dtype != SVG2_F32 && a.k.is_vector && a.v.is_vector;
    return launch(backend, err, "tail_moments",
                  is_raw ? tail_moments<PANEL, true> : tail_moments<PANEL, false>, dim3(grid_of(blocks)),
                  2 * PANEL, 4 * TAIL_TOKENS * PANEL + 8 * PANEL + 4 * TAIL_PIECE, a);
}

static svg2_result run_tail(const svg2_backend *backend, const svg2_tail_desc *d, void *workspace,
                            svg2_error *err)
{
    tail_args a;
    (void)tail_layout(d, workspace, &a);
    a.k = tensor_of(d->k, d->k_layout, d->heads_kv, d->tokens_kv, d->head_dim);
    a.v = tensor_of(d->v, d->v_layout, d->heads_kv, d->tokens_kv, d->head_dim);
    a.key_order = d->key_order;
    a.key_offset = d->key_offset;
    a.query_centroid = d->query_centroid;
    a.key_centroid = d->key_centroid;
    a.key_mean = d->key_mean;
    a.value_mean = d->value_mean;
    a.log_mass = d->log_mass;
    a.map = d->map;
    a.matrix = d->matrix;
    a.scale = d->scale;
    a.heads_kv = d->heads_kv;
    a.group = d->heads / d->heads_kv;
    a.tokens_kv = d->tokens_kv;
    a.dim = d->head_dim;
    a.query_clusters = d->query_clusters;
    a.key_clusters = d->key_clusters;
    a.query_blocks = d->query_blocks;
    a.key_blocks = d->key_blocks;
    a.head_begin = d->head_begin;
    a.head_count = d->head_count;
    a.kv_begin = d->head_begin / a.group;
    a.slots = (d->head_begin + (d->head_count - 1)) / a.group - a.kv_begin + 1;
    a.is_pair = (uintptr_t)d->matrix % sizeof(float2) == 0;
    const int32_t panel = a.dim <= 64 ? 64 : a.dim <= 96 || (a.dim > 128 && a.dim <= 192) ? 96 : 128;
    a.panels = (a.dim + panel - 1) / panel;

    /* A block owns at least 256 bytes of workspace or matrix, so their number stays below 2^31. */
    const int64_t rows = (int64_t)d->head_count * d->query_clusters, size = (int64_t)a.dim * a.dim;
    const int64_t most = (int64_t)(a.group < a.head_count ? a.group : a.head_count) * a.query_clusters;
    const int64_t tiles = ((int64_t)d->query_clusters + TAIL_TILE - 1) / TAIL_TILE
                          * (((int64_t)d->key_clusters + TAIL_TILE - 1) / TAIL_TILE);
    const int64_t merges = (int64_t)a.slots * a.pieces * ((size + 1023) / 1024);
    const int64_t products =
        (most + TAIL_ROWS - 1) / TAIL_ROWS * ((size + TAIL_COLUMNS - 1) / TAIL_COLUMNS) * a.slots;
    const int64_t moments = (int64_t)a.slots * (a.pieces + a.actives) * a.panels * a.panels;
    SVG2__RUN(launch(backend, err, "tail_plan", tail_plan, dim3(grid_of(a.slots)),
                     a.key_clusters < 1024 ? (unsigned)(a.key_clusters + WARP - 1) / WARP * WARP : 1024u,
                     64 * sizeof(int32_t), a));
    SVG2__RUN(launch(backend, err, "tail_logits", tail_logits, dim3(grid_of(d->head_count * tiles)), 256,
                     2 * 32 * (TAIL_TILE + 1) * sizeof(float), a));
    SVG2__RUN(launch(backend, err, "tail_weights", tail_weights, dim3(grid_of((rows + 7) / 8)), 256, 0, a));
    if (panel == 64) SVG2__RUN(tail_run_moments<64>(backend, a, moments, err));
    else if (panel == 96) SVG2__RUN(tail_run_moments<96>(backend, a, moments, err));
    else SVG2__RUN(tail_run_moments<128>(backend, a, moments, err));
    SVG2__RUN(launch(backend, err, "tail_merge", tail_merge, dim3(grid_of(merges)), 256, 0, a));
    SVG2__RUN(launch(backend, err, "tail_product", tail_product, dim3(grid_of(products)), 256,
                     TAIL_STAGES * TAIL_STAGE_BYTES, a));
    return ok(err);
}

} /* namespace svg2__cuda */

/* ==== >>attention ==========================================================================
   pack      K, V (and the tail's virtual keys) as 16-bit rows in block order
   count     keys that each query block sees, to sort by
   plan      work items: 128 rows of one query block (64 for wide heads without wgmma), heads in order, long
             ones first
   forward   one item a block of threads; Hopper: a block takes one item after the other
   merge     joining two partial results */
namespace svg2__cuda {

enum {
    ATTENTION_THREADS = 128,
    LIST_BLOCKS = 512,  /* key blocks of one list of runs: 4 a thread                                     */
    SLOTS = 4,          /* tiles whose row numbers are held: of the ring, and the one whose bias is used  */
    PACK_ROWS = 64,
    PACK_THREADS = 256,
    PLAN_BLOCKS = 1024, /* query blocks that are sorted; beyond that they stay in order                   */
    PLAN_THREADS = 256,
    COUNT_THREADS = 128,
    MERGE_THREADS = 256
};

/* head_dim as the tiles have it */
static inline int32_t padded_dim(int32_t dim)
{
    return dim <= 64 ? 64 : dim <= 96 ? 96 : dim <= 128 ? 128 : 256;
}
/* rows of an item: one warp of four then owns 32 rows, or 16 where a row of the output takes 128 registers */
static inline int32_t item_rows(int32_t padded) { return padded > 128 ? 64 : 128; }

SVG2__DEVICE int32_t kv_head(int32_t bh, int32_t heads, int32_t heads_kv)
{
    return bh / heads * heads_kv + bh % heads / (heads / heads_kv);
}

static inline int64_t kv_head_host(int64_t bh, int32_t heads, int32_t heads_kv)
{
    return bh / heads * heads_kv + bh % heads / (heads / heads_kv);
}

/* ---- packing ----
   One block of threads: 64 rows of K, of V, of the virtual keys or of their values, of one kv head.
   A row comes from order[row] (a gather of whole rows: 256 bytes and more, full sectors) or from where it is,
   gets zeros up to the padded head_dim, and goes out as T, 16 bytes a lane. T rows are copied bit for bit;
   others are rounded, after removal of the mean where one is given. Bound by DRAM: 2 to 8 chunks of 16 bytes
   (f32: 32) are asked for per thread before the first one is used, 48 KB under way in a multiprocessor at
   head_dim 128. No shared memory; 46 to 112 registers. */
struct pack_job {
    tensor         from;
    const int32_t *order; /* [kv heads, tokens], NULL = identity */
    const float   *mean;  /* [kv heads, dim], NULL = 0            */
    void          *to;    /* [kv_count, tokens, padded dim]       */
    int32_t        tokens, groups; /* groups of 64 rows           */
    int64_t        first; /* block of threads                     */
};

struct pack_args {
    pack_job job[4];
    int32_t  jobs, heads_kv, dim;
    int64_t  kv_begin;
};

SVG2__DEVICE void unpack2(uint32_t u, float &lo, float &hi, __nv_bfloat16)
{
    lo = __uint_as_float(u << 16);
    hi = __uint_as_float(u & 0xffff0000u);
}
SVG2__DEVICE void unpack2(uint32_t u, float &lo, float &hi, __half)
{
    __half_raw x, y;
    x.x = (unsigned short)(u & 0xffffu);
    y.x = (unsigned short)(u >> 16);
    lo = __half2float(__half(x));
    hi = __half2float(__half(y));
}

template <class T> SVG2__DEVICE uint4 pack8(const float (&x)[8])
{
    uint4 v;
    v.x = pack2(x[0], x[1], T());
    v.y = pack2(x[2], x[3], T());
    v.z = pack2(x[4], x[5], T());
    v.w = pack2(x[6], x[7], T());
    return v;
}

template <class T, int DP>
static __global__ void __launch_bounds__(PACK_THREADS) attention_pack(const __grid_constant__ pack_args a)
{
    enum { CHUNKS = DP / 8, PER_THREAD = PACK_ROWS * CHUNKS / PACK_THREADS };
    static_assert(PER_THREAD * PACK_THREADS == PACK_ROWS * CHUNKS, "all threads have as many chunks");
    const int tid = (int)threadIdx.x;
    int which = 0;
    while (which + 1 < a.jobs && (int64_t)blockIdx.x >= a.job[which + 1].first) ++which;
    const pack_job &job = a.job[which];
    const int64_t block = (int64_t)blockIdx.x - job.first, local = block / job.groups;
    const int64_t kv = a.kv_begin + local;
    const int first = (int)(block % job.groups) * PACK_ROWS;
    uint4 *to = (uint4 *)job.to + (local * job.tokens + first) * CHUNKS;
    const int32_t *order = job.order ? job.order + kv * job.tokens : NULL;
    int64_t at[PER_THREAD];
    int i;
#pragma unroll
    for (i = 0; i < PER_THREAD; ++i) {
        const int index = tid + i * PACK_THREADS, row = first + index / CHUNKS, e = index % CHUNKS * 8;
        at[i] = -1;
        if (row < job.tokens && e < a.dim)
            at[i] = row_at(job.from, kv / a.heads_kv, kv % a.heads_kv, order ? order[row] : row) + e;
    }
    uint4 v[PER_THREAD];
    if (job.from.dtype == dtype_of(T()) && job.from.is_vector) {
#pragma unroll
        for (i = 0; i < PER_THREAD; ++i)
            v[i] = at[i] < 0 ? make_uint4(0, 0, 0, 0)
                             : *(const uint4 *)(const void *)((const uint16_t *)job.from.data + at[i]);
    } else if (job.from.dtype == dtype_of(T())) {
        for (i = 0; i < PER_THREAD; ++i) {
            uint16_t h[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            for (int n = 0; n < 8 && at[i] >= 0; ++n) h[n] = ((const uint16_t *)job.from.data)[at[i] + n];
            memcpy(&v[i], h, 16);
        }
    } else {
        const float *mean = job.mean ? job.mean + kv * a.dim : NULL;
        const bool is_f32 = job.from.dtype == SVG2_F32 && job.from.is_vector;
        float4 x0[PER_THREAD], x1[PER_THREAD];
        if (is_f32) { /* all loads before the first use */
#pragma unroll
            for (i = 0; i < PER_THREAD; ++i) {
                const float4 *p =
                    (const float4 *)(const void *)((const float *)job.from.data + (at[i] < 0 ? 0 : at[i]));
                x0[i] = at[i] < 0 ? make_float4(0, 0, 0, 0) : p[0];
                x1[i] = at[i] < 0 ? make_float4(0, 0, 0, 0) : p[1];
            }
        }
#pragma unroll
        for (i = 0; i < PER_THREAD; ++i) {
            const int e = (tid + i * PACK_THREADS) % CHUNKS * 8;
            float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (at[i] >= 0) {
                if (is_f32) {
                    x[0] = x0[i].x, x[1] = x0[i].y, x[2] = x0[i].z, x[3] = x0[i].w;
                    x[4] = x1[i].x, x[5] = x1[i].y, x[6] = x1[i].z, x[7] = x1[i].w;
                } else {
                    load8(x, job.from, at[i], 0);
                }
                for (int n = 0; n < 8 && mean; ++n) x[n] -= mean[e + n];
            }
            v[i] = pack8<T>(x);
        }
    }
#pragma unroll
    for (i = 0; i < PER_THREAD; ++i) {
        const int index = tid + i * PACK_THREADS;
        if (first + index / CHUNKS < job.tokens) to[index] = v[i];
    }
}

/* ---- planning ---- */
/* Rows [first, first + count) of the order of one query block. 0 rows: nothing to do. */
struct attention_item {
    int32_t head, block, first, count; /* head: of the call */
};

struct plan_args {
    const int32_t *query_offset, *key_offset;
    const uint8_t *map;
    int32_t *cost;           /* [heads, query_blocks]: keys that the block sees; NULL = all alike */
    attention_item *item;    /* [heads, most]                                                      */
    int32_t *first_item;     /* [heads, query_blocks], unless NULL: items of a block are neighbours */
    uint32_t *next;          /* set to 0, unless NULL                                              */
    int32_t heads, heads_kv, tokens, query_blocks, key_blocks, tail_query_blocks, tail_key_blocks, rows, most,
        head_begin;
    int64_t blocks; /* blocks: heads of the call * query_blocks */
};

/* One warp: one query block. Reads a row of the map and the offsets, 1 + 4 bytes a key block; latency-bound,
   but thousands of warps do it side by side. */
static __global__ void __launch_bounds__(COUNT_THREADS) attention_count(const __grid_constant__ plan_args a)
{
    const int lane = (int)threadIdx.x % WARP;
    const int64_t at = (int64_t)blockIdx.x * (COUNT_THREADS / WARP) + threadIdx.x / WARP;
    if (at >= a.blocks) return; /* the whole warp */
    const int64_t bh = a.head_begin + at / a.query_blocks, kv = kv_head((int32_t)bh, a.heads, a.heads_kv);
    const int block = (int)(at % a.query_blocks);
    const uint8_t *map = a.map + (bh * a.query_blocks + block) * a.key_blocks;
    const int32_t *offset = a.key_offset + kv * ((int64_t)a.key_blocks + 1);
    const int virtuals = block < a.tail_query_blocks ? a.tail_key_blocks : 0;
    int n = 0;
    for (int j = lane; j < a.key_blocks; j += WARP) {
        const int size = offset[j + 1] - offset[j];
        n += map[j] ? size : j < virtuals && size > 0;
    }
    n = warp_sum(n);
    if (lane == 0) a.cost[at] = n;
}

/* Who waits for each other in a function: all threads of the block, unless a layout says otherwise. */
struct whole_block {
    static __device__ __forceinline__ void wait() { __syncthreads(); }
};

/* Sum of x over the threads before this one, and over all of them. scan: one value a warp; it may be used
   again after the next barrier. */
template <int THREADS, class GROUP = whole_block, class T> SVG2__DEVICE T scan_threads(T x, T *scan, T &total)
{
    const int tid = svg2__fresh((int)threadIdx.x), lane = tid % WARP, warp = tid / WARP;
    T sum = x, before = 0;
    for (int o = 1; o < WARP; o <<= 1) {
        const T y = __shfl_up_sync(0xffffffffu, sum, o);
        if (lane >= o) sum += y;
    }
    if (lane == WARP - 1) scan[warp] = sum;
    if (!SVG2__FAULT(60)) GROUP::wait(); /* the sums of the warps are there */
    total = 0;
    for (int w = 0; w < THREADS / WARP; ++w) {
        if (w == warp) before = total;
        total += scan[w];
    }
    return before + sum - x;
}

/* One block of threads: the items of one head. Up to 1024 query blocks are sorted by falling cost (ties to
   the lower one) by counting, for each, those that go before it: 1024 reads a thread, broadcast; 10 us at
   most, once a call and head, beside milliseconds of attention. Items of one head follow each other, so that
   its keys and values stay in L2. 12 KB of shared memory, 32 registers; latency-bound. */
static __global__ void __launch_bounds__(PLAN_THREADS) attention_plan(const __grid_constant__ plan_args a)
{
    SVG2_DYN_SMEM(attention_shared, 128);
    int32_t *cost = (int32_t *)(void *)attention_shared, *block = cost + PLAN_BLOCKS;
    int32_t *items = block + PLAN_BLOCKS, *scan = items + PLAN_BLOCKS;
    const int tid = (int)threadIdx.x;
    const int64_t head = blockIdx.x, bh = a.head_begin + head;
    const int32_t *offset = a.query_offset ? a.query_offset + bh * ((int64_t)a.query_blocks + 1) : NULL;
    attention_item *item = a.item + head * a.most;
    const bool sorted = a.cost && a.query_blocks <= PLAN_BLOCKS;
    int done = 0, i, k;
    if (a.next && blockIdx.x == 0 && tid == 0) *a.next = 0;
    for (int chunk = 0; chunk < a.query_blocks; chunk += PLAN_BLOCKS) {
        const int n = min(a.query_blocks - chunk, (int)PLAN_BLOCKS);
        for (i = tid; i < n && sorted; i += PLAN_THREADS) cost[i] = a.cost[head * a.query_blocks + i];
        __syncthreads(); /* all costs are there; and items[] of the chunk before is not read any more */
        for (i = tid; i < n; i += PLAN_THREADS) {
            const int q = chunk + i, rows = offset ? offset[q + 1] - offset[q] : a.tokens;
            int rank = i;
            if (sorted) {
                rank = 0;
                for (k = 0; k < n; ++k) rank += cost[k] > cost[i] || (cost[k] == cost[i] && k < i);
            }
            block[rank] = q;
            items[rank] = (rows + a.rows - 1) / a.rows;
        }
        if (!SVG2__FAULT(61)) __syncthreads(); /* every rank is filled */
        int own[PLAN_BLOCKS / PLAN_THREADS], sum = 0, total;
        for (k = 0; k < PLAN_BLOCKS / PLAN_THREADS; ++k) {
            i = tid * (PLAN_BLOCKS / PLAN_THREADS) + k;
            own[k] = i < n ? items[i] : 0;
            sum += own[k];
        }
        /* the scan's barrier also stands between the reads above and the writes below */
        sum = scan_threads<PLAN_THREADS>(sum, scan, total);
        for (k = 0; k < PLAN_BLOCKS / PLAN_THREADS; ++k) {
            i = tid * (PLAN_BLOCKS / PLAN_THREADS) + k;
            if (i < n) {
                items[i] = sum;
                if (a.first_item) a.first_item[head * a.query_blocks + block[i]] = done + sum;
            }
            sum += own[k];
        }
        __syncthreads(); /* items[] holds the sums */
        for (i = tid; i < total; i += PLAN_THREADS) {
            int lo = 0, hi = n - 1;
            /* the last block that begins at or before item i: blocks without rows are passed over */
            while (lo < hi) {
                const int mid = (lo + hi + 1) / 2;
                if (items[mid] <= i) lo = mid;
                else hi = mid - 1;
            }
            const int q = block[lo], begin = offset ? offset[q] : 0, end = offset ? offset[q + 1] : a.tokens;
            attention_item x;
            x.head = (int32_t)head;
            x.block = q;
            x.first = begin + (i - items[lo]) * a.rows;
            x.count = min(a.rows, end - x.first);
            if (done + i < a.most) item[done + i] = x;
        }
        done += total;
    }
    for (i = done + tid; i < a.most; i += PLAN_THREADS) {
        attention_item x;
        x.head = x.block = x.first = x.count = 0;
        item[i] = x;
    }
}

/* ---- forward ---- */
/* 16-bit rows as the kernels read them: row t of kv head (b, h) at data + b*stride_batch + h*stride_head -
   begin + t*stride_token. A row has chunks of 8 elements; the tile holds zeros behind them. */
struct operand {
    const void *data;
    int64_t     stride_batch, stride_head, stride_token, begin;
    int32_t     chunks;
};

struct attention_args {
    const attention_item *item;
    int64_t   items; /* (Hopper) of all heads, those without rows included */
    uint32_t *next;  /* (Hopper) items taken so far, beyond one a block    */
    tensor  q, out;
    operand key, value, virtual_key, virtual_value;
    const int32_t *query_order, *key_offset;
    const uint8_t *map;
    const float *key_mean, *log_mass, *tail_matrix;
    float *lse;
    int32_t heads, heads_kv, tokens, tokens_kv, dim, query_blocks, key_blocks;
    int32_t tail_query_blocks, tail_key_blocks;
    int32_t stages;           /* K or V tiles in the ring: 2 to 4                                        */
    int32_t is_relative;      /* the keys lack their mean                                                */
    int32_t is_matrix_vector; /* tail_matrix is aligned to 16 bytes                                      */
    int32_t head_begin;
    float scale2, sign;       /* |scale| * log2(e), not 0; the queries are multiplied by sign            */
    int32_t skip, is_diagonal; /* svg2_skip; svg2_visit                                                  */
    float limit, rho, recall; /* of the largest weight; (1 - recall) / recall, a little less             */
    const float *lse_seed;
    svg2_head_stats *stats;
};

/* Shared memory of a block, as byte offsets; the ring of tiles stands last. Of a list: 1 run = up to 4
   neighbouring blocks. */
template <int DP, bool SKIP = false> struct attention_smem : whole_block {
    enum {
        LISTED = LIST_BLOCKS,
        HELD = SLOTS,
        IS_BIAS_LATE = 0, /* find_rows has the biases, too */
        LANES = DP % 64 == 0 ? 8 : 4, /* that take a row in load_tile */
        ROWS_AT_ONCE = 8, /* of a lane there: all */
        ROWS = DP > 128 ? 64 : 128, /* of an item */
        KEYS = DP > 128 ? 32 : 64,  /* of a tile  */
        TILE = KEYS * DP * 2,
        SCAN = 0,                                     /* u64 [4] */
        INFO = 32,                                    /* i32 [SLOTS], keys of a tile */
        ITEM = 48,                                    /* attention_item */
        SOURCE = 64,                                  /* key_source */
        STREAM = 128,                                 /* tile_rows [2] */
        LIST = 176,                                   /* key_list */
        RUN_START = 192,                              /* i32 [LIST_BLOCKS], row */
        RUN_FIRST = RUN_START + 4 * LIST_BLOCKS,      /* i32 [LIST_BLOCKS + 4], its number among the keys */
        HINT = RUN_FIRST + 4 * (LIST_BLOCKS + 4),     /* i32 [KEYS] */
        ROW = HINT + 4 * KEYS,                        /* i32 [SLOTS][KEYS] */
        BIAS = ROW + 4 * SLOTS * KEYS,                /* f32 [SLOTS][KEYS] */
        TOKEN = BIAS + 4 * SLOTS * KEYS,              /* i32 [ROWS] */
        SHIFT = TOKEN + 4 * ROWS,                     /* f32 [ROWS] */
        EXACT = SHIFT + 4 * ROWS,                     /* f32 [2][ROWS] */
        STATE = (EXACT + 8 * ROWS + 127) / 128 * 128, /* f32x4 [ROWS / 64][threads]: m, m, l, l */
        NEXT = STATE + 16 * ATTENTION_THREADS * (ROWS / 64), /* (skip) f32x4, alike: m, m, sums of the tile */
        LOST = NEXT + (SKIP ? 16 * ATTENTION_THREADS * (ROWS / 64) : 0), /* (skip) f32 [ROWS] */
        SEED = LOST + (SKIP ? 4 * ROWS : 0),          /* (skip) f32 [ROWS], base 2 */
        TOTAL = SEED + (SKIP ? 4 * ROWS : 0),         /* (skip) i32, keys of the item; i32 [4] keys of a warp */
        QUERY = TOTAL + (SKIP ? 128 : 0),             /* [ROWS] rows of QUERY_ROW bytes */
        /* 16 bytes further into the banks from row to row; the matrices of a row then lie at constant
           distances, unlike with tile_at, which saves 3 registers */
        QUERY_ROW = DP * 2 + 16,
        RING = QUERY + ROWS * QUERY_ROW               /* tiles [stages][KEYS][DP] */
    };
    static __device__ __forceinline__ uint32_t at(int row, int chunk) { return tile_at<DP>(row, chunk); }
    static __device__ __forceinline__ int query_at(int row, int chunk)
    {
        return row * QUERY_ROW + chunk * 16;
    }
};

/* Two blocks a multiprocessor, which have 228 KB (9.0, 10.0) or 164 KB (8.0), less 1 KB a block; one block
   where they have 100 KB. */
static_assert(2 * (attention_smem<128>::RING + 4 * attention_smem<128>::TILE + 1024) <= 228 * 1024,
              "head_dim 128, 4 stages");
static_assert(2 * (attention_smem<128>::RING + 2 * attention_smem<128>::TILE + 1024) <= 164 * 1024,
              "head_dim 128, 2 stages");
static_assert(2 * (attention_smem<256>::RING + 4 * attention_smem<256>::TILE + 1024) <= 228 * 1024,
              "head_dim 256, 4 stages");
static_assert(attention_smem<128>::RING + 3 * attention_smem<128>::TILE + 1024 <= 100 * 1024,
              "head_dim 128, 3 stages");
static_assert(attention_smem<64>::RING % 128 == 0 && attention_smem<96>::RING % 128 == 0
                  && attention_smem<128>::RING % 128 == 0 && attention_smem<256>::RING % 128 == 0
                  && attention_smem<64, true>::RING % 128 == 0 && attention_smem<256, true>::RING % 128 == 0,
              "a tile begins at bank 0");

template <bool SKIP> static size_t attention_smem_bytes(int32_t padded, int32_t stages)
{
    switch (padded) {
    case 64: return (size_t)attention_smem<64, SKIP>::RING + (size_t)(stages * attention_smem<64>::TILE);
    case 96: return (size_t)attention_smem<96, SKIP>::RING + (size_t)(stages * attention_smem<96>::TILE);
    case 128: return (size_t)attention_smem<128, SKIP>::RING + (size_t)(stages * attention_smem<128>::TILE);
    default: return (size_t)attention_smem<256, SKIP>::RING + (size_t)(stages * attention_smem<256>::TILE);
    }
}

/* An array of a layout in shared memory. */
template <class X> SVG2__DEVICE X *shared_at(unsigned char *smem, int offset)
{
    return (X *)(void *)(smem + offset);
}

/* Where the keys of an item come from. */
struct key_source {
    const uint8_t *map;      /* the query block's row; NULL = all keys          */
    const int32_t *offset;   /* of the kv head; NULL = one block of all tokens  */
    const float   *log_mass; /* virtual keys: the query block's row; NULL = ln n */
    int32_t blocks, last;    /* blocks to look at; without a map 1, which ends where block last ends */
    int32_t tokens, is_tail; /* is_tail: the virtual keys of the blocks that are not exact */
    int32_t is_diagonal, place, rows; /* tiles from that near place / rows of the list on, outwards */
};

/* Rows of K or V of one kv head. */
struct tile_rows {
    const void *data;
    int64_t     stride; /* elements */
    int32_t     chunks, kv; /* kv: which head, of all batch entries */
};
static_assert(sizeof(key_source) <= 64 && sizeof(tile_rows) == 24, "they have these places in shared memory");

/* Rows that block j brings: how many, and the first. */
SVG2__DEVICE int source_rows(const key_source &s, int j, int &first)
{
    const bool is_exact = s.map ? s.map[j] != 0 : true;
    const int begin = s.offset ? s.offset[j] : 0;
    const int size = (s.offset ? s.offset[s.map ? j + 1 : s.last] : s.tokens) - begin;
    first = s.is_tail ? j : begin;
    return is_exact == (s.is_tail != 0) ? 0 : s.is_tail ? size > 0 : size;
}

/* The keys of an item one after the other, as runs of rows; a window of at most 512 key blocks at a time. */
struct key_list {
    int32_t end;        /* keys below this number are in the list, or were before */
    int32_t next_block; /* the list goes on from here                             */
    int32_t runs, unused;
};

/* The next list: all threads of the group together. */
template <class L> SVG2__DEVICE void next_list(const key_source &s, unsigned char *smem)
{
    int32_t *run_start = shared_at<int32_t>(smem, L::RUN_START);
    int32_t *run_first = shared_at<int32_t>(smem, L::RUN_FIRST);
    key_list *list = shared_at<key_list>(smem, L::LIST);
    enum { EACH = L::LISTED / ATTENTION_THREADS };
    unsigned long long own = 0, total; /* runs << 32 | keys */
    const key_list old = *list; /* the scan's barrier parts this, and searches of the old list, from the new
                                   one */
    const int tid = svg2__fresh((int)threadIdx.x), begin = old.next_block + tid * EACH;
    int rows[EACH], first[EACH], i, after = -1;
#pragma unroll
    for (i = 0; i < EACH; ++i) { /* all loads before the first use: a round trip to memory, not EACH */
        rows[i] = source_rows(s, min(begin + i, s.blocks - 1), first[i]);
        if (begin + i >= s.blocks) rows[i] = 0;
    }
#pragma unroll
    for (i = 0; i < EACH; ++i) {
        if (rows[i] <= 0) continue;
        own += (unsigned long long)rows[i] + (first[i] == after ? 0 : 1ull << 32);
        after = first[i] + rows[i];
    }
    const unsigned long long before =
        scan_threads<ATTENTION_THREADS, L>(own, shared_at<unsigned long long>(smem, L::SCAN), total);
    int run = (int)(before >> 32) - 1, key = old.end + (int)(before & 0xffffffffu);
    after = -1;
#pragma unroll 1
    for (i = begin; i < begin + EACH && i < s.blocks; ++i) { /* again, from the cache: registers */
        int start;
        const int size = source_rows(s, i, start);
        if (size <= 0) continue;
        if (start != after) {
            ++run;
            run_start[run] = start;
            run_first[run] = key;
        }
        key += size;
        after = start + size;
    }
#pragma unroll
    for (i = tid; i < L::KEYS; i += ATTENTION_THREADS) shared_at<int32_t>(smem, L::HINT)[i] = 0;
    if (tid == 0) {
        list->end = run_first[total >> 32] = old.end + (int)(total & 0xffffffffu);
        list->next_block = old.next_block + L::LISTED;
        list->runs = (int)(total >> 32);
    }
    if (!SVG2__FAULT(63)) L::wait(); /* the list is complete */
}

/* Number i of the tiles from the middle one outwards: middle, middle + 1, middle - 1, ...; the rest of the
   longer side at the end. */
SVG2__DEVICE int tile_outwards(int i, int tiles, int middle)
{
    const int above = tiles - 1 - middle, near_ones = 2 * min(above, middle);
    if (i > near_ones) return above > middle ? i : middle - (i - above);
    return i & 1 ? middle + (i + 1) / 2 : middle - i / 2;
}

/* What is added to the logits of a virtual key, base 2. */
SVG2__DEVICE float key_bias(const key_source &s, int row)
{
    return row < 0      ? 0.0f
           : s.log_mass ? s.log_mass[row] * 1.44269504f
                        : log2f((float)(s.offset[row + 1] - s.offset[row]));
}

/* The rows of a tile, for the loads of the half steps to come: -1 behind the last key. All threads of the
   group together. */
template <class L, bool SKIP> SVG2__DEVICE void find_rows(const key_source &s, unsigned char *smem, int tile)
{
    enum { EACH = (L::KEYS + ATTENTION_THREADS - 1) / ATTENTION_THREADS };
    const int tid = svg2__fresh((int)threadIdx.x), slot = tile & (L::HELD - 1);
    const key_list *list = shared_at<key_list>(smem, L::LIST);
    const int32_t *run_start = shared_at<int32_t>(smem, L::RUN_START);
    const int32_t *run_first = shared_at<int32_t>(smem, L::RUN_FIRST);
    int filled = 0, row[EACH], e;
#pragma unroll
    for (e = 0; e < EACH; ++e) row[e] = -1;
    if (SKIP && s.is_diagonal) { /* all of the list is there from the first tile on */
        if (tile == 0) next_list<L>(s, smem);
        const int tiles = (list->end + L::KEYS - 1) / L::KEYS;
        if (tile < tiles) {
            const int middle = (int)((int64_t)s.place * tiles / s.rows);
            const int at = tile_outwards(tile, tiles, middle) * L::KEYS;
            filled = min(list->end - at, (int)L::KEYS);
            if (tid < filled) {
                int lo = 0, hi = list->runs - 1;
                while (lo < hi) {
                    const int mid = (lo + hi + 1) / 2;
                    if (run_first[mid] <= at + tid) lo = mid;
                    else hi = mid - 1;
                }
                row[0] = run_start[lo] + (at + tid - run_first[lo]);
            }
        }
    }
    while (!SKIP || !s.is_diagonal) {
        const int end = min(list->end - tile * L::KEYS, (int)L::KEYS);
#pragma unroll
        for (e = 0; e < EACH; ++e) {
            const int own = tid + e * ATTENTION_THREADS, key = tile * L::KEYS + own;
            if (own < filled || own >= end) continue;
            /* the run of the last key of this thread */
            int32_t *hint = shared_at<int32_t>(smem, L::HINT) + own;
            int lo = *hint;
            if (key >= run_first[lo + 1]) { /* no run is empty, and the last look was at most two tiles ago */
                int hi = min(lo + 2 * L::KEYS, list->runs - 1);
                ++lo; /* mostly this is it */
                while (lo < hi && run_first[lo + 1] <= key) {
                    const int mid = (lo + hi + 1) / 2;
                    if (run_first[mid] <= key) lo = mid;
                    else hi = mid - 1;
                }
                *hint = lo;
            }
            row[e] = run_start[lo] + (key - run_first[lo]);
        }
        filled = max(end, filled);
        if (filled == L::KEYS || list->next_block >= s.blocks) break;
        next_list<L>(s, smem);
    }
#pragma unroll
    for (e = 0; e < EACH; ++e) {
        const int own = tid + e * ATTENTION_THREADS;
        if (own >= L::KEYS) continue;
        shared_at<int32_t>(smem, L::ROW)[slot * L::KEYS + own] = row[e];
        if (s.is_tail && !L::IS_BIAS_LATE)
            shared_at<float>(smem, L::BIAS)[slot * L::KEYS + own] = key_bias(s, row[e]);
    }
    if (tid == 0) shared_at<int32_t>(smem, L::INFO)[slot] = filled;
}

/* Copies of the rows of a tile into the ring, 16 bytes each. 8 lanes (4 where rows are no multiple of 128
   bytes) take a row, so that a thread needs few row numbers and a request of a warp is 4 full lines. */
template <class T, int DP, class L = attention_smem<DP>>
SVG2__DEVICE void load_tile(const T *rows, int64_t stride, int chunks, const int32_t *row, uint32_t tile)
{
    enum { LANES = L::LANES, STEP = ATTENTION_THREADS / LANES };
    const int tid = svg2__fresh((int)threadIdx.x), c = tid % LANES;
#pragma unroll L::ROWS_AT_ONCE
    for (int i = 0; i < L::KEYS / STEP; ++i) {
        const int r = tid / LANES + i * STEP, from = row[r];
        const T *p = rows + (int64_t)max(from, 0) * stride;
#pragma unroll
        for (int k = 0; k < DP / 8; k += LANES) {
            if (DP / 8 % LANES && c + k >= DP / 8) continue;
            const bool is_there = (from >= 0 || SVG2__FAULT(64)) && c + k < chunks;
            svg2__cp_async16(tile + L::at(r, c + k), p + (c + k < chunks ? c + k : 0) * 8,
                             is_there ? 16 : 0);
        }
    }
}

/* Asks for number `half` of the tiles K0 V0 K1 V1 ..., if there is one, into that place of the ring; one
   group of copies either way. What is needed once a tile stands in shared memory, not in registers. */
template <class T, int DP>
SVG2__DEVICE void load_half(int half, int place, unsigned char *smem, uint32_t ring)
{
    typedef attention_smem<DP> L;
    const int slot = half / 2 % SLOTS;
    if (shared_at<int32_t>(smem, L::INFO)[slot] > 0) {
        const tile_rows from = shared_at<tile_rows>(smem, L::STREAM)[half % 2];
        load_tile<T, DP>((const T *)from.data, from.stride, from.chunks,
                         shared_at<int32_t>(smem, L::ROW) + slot * L::KEYS,
                         ring + (uint32_t)(place * L::TILE));
    }
    svg2__cp_async_commit();
}

template <class T> SVG2__DEVICE const T *operand_head(const operand &o, int32_t kv, int32_t heads_kv)
{
    return (const T *)o.data + (kv / heads_kv * o.stride_batch + kv % heads_kv * o.stride_head - o.begin);
}

/* Rows of the item into the query tile; rows behind the last one, and dimensions behind head_dim, are 0. A
   lane looks up the token of one row of its warp; then 8 lanes take a row. */
template <class T, int DP, int ROWS, class L = attention_smem<DP>>
SVG2__DEVICE void load_queries(const tensor &q, const int32_t *order, int64_t batch, int64_t head, int first,
                               int count, int dim, float sign, unsigned char *tile)
{
    enum { EACH = ROWS / (ATTENTION_THREADS / WARP), LANES = 8 };
    const bool is_copy = q.dtype == dtype_of(T()) && q.is_vector && sign > 0.0f;
    const int tid = svg2__fresh((int)threadIdx.x), lane = tid % WARP, mine = tid / WARP * EACH + lane;
    int token = -1;
    if (lane < EACH && mine < count) token = order ? order[first + mine] : first + mine;
#pragma unroll 1
    for (int i = lane / LANES; i < EACH; i += WARP / LANES) {
        const int r = tid / WARP * EACH + i, from = __shfl_sync(0xffffffffu, token, i);
        const int64_t row = from < 0 ? 0 : row_at(q, batch, head, from);
#pragma unroll
        for (int k = 0; k < DP / 8; k += LANES) {
            const int c = lane % LANES + k;
            const bool is_there = from >= 0 && c * 8 < dim;
            if (DP / 8 % LANES && c >= DP / 8) continue;
            unsigned char *to = tile + L::query_at(r, c);
            if (is_copy) {
                svg2__cp_async16(svg2__smem(to), (const T *)q.data + (is_there ? row + c * 8 : 0),
                                 is_there ? 16 : 0);
                continue;
            }
            float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (is_there) load8(x, q, row + c * 8, 0);
            for (int n = 0; n < 8; ++n) x[n] *= sign;
            *(uint4 *)(void *)to = pack8<T>(x);
        }
    }
}

/* q.key_mean of one row: what its logits lack where the keys lack their mean. Of the rounded query where the
   product with the keys has it, too. Each load is a round trip to memory, and a thread has a row: four at a
   time where rows are of type T (and rounding changes nothing). */
template <class T>
SVG2__DEVICE float mean_logit(const tensor &q, int64_t row, int dim, const float *mean, bool is_rounded)
{
    float sum = 0.0f, x[8];
    if (q.dtype == dtype_of(T()) && q.is_vector) {
        const uint4 *from = (const uint4 *)(const void *)((const uint16_t *)q.data + row);
#pragma unroll 1
        for (int c = 0; c < dim / 8; c += 4) {
            uint4 v[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = from[min(c + i, dim / 8 - 1)];
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                if (c + i >= dim / 8) continue;
                unpack2(v[i].x, x[0], x[1], T());
                unpack2(v[i].y, x[2], x[3], T());
                unpack2(v[i].z, x[4], x[5], T());
                unpack2(v[i].w, x[6], x[7], T());
                for (int n = 0; n < 8; ++n) sum = fmaf(x[n], mean[8 * (c + i) + n], sum);
            }
        }
        return sum;
    }
#pragma unroll 1
    for (int e = 0; e < dim; e += 8) {
        load8(x, q, row, e);
        for (int n = 0; n < 8; ++n)
            sum = fmaf(is_rounded ? to_float(round_to(x[n], T())) : x[n], mean[e + n], sum);
    }
    return sum;
}

/* Chunk 2*e + (the lane's 0 or 1) of the row that a lane addresses, given the address of the lane's chunk 0
   or 1: what tile_at gives, as an exclusive or of a constant. It is made from an address that changes from
   tile to tile, so that it takes one instruction where it is used and not a register all the time. */
template <int DP> SVG2__DEVICE uint32_t tile_step(uint32_t lane_chunk, int e)
{
    if (DP % 64 == 0) return (lane_chunk ^ (uint32_t)((e & 3) << 5)) + (uint32_t)(e / 4 * 128);
    return (lane_chunk ^ (uint32_t)((e & 1) << 5)) + (uint32_t)(e / 2 * 64);
}

/* s (16*MT rows of the warp x KEYS) = Q K^T; q, k: tiles in shared memory */
template <class T, int DP, int MT, int KEYS>
SVG2__DEVICE void logits(float (&s)[MT][KEYS / 8][4], uint32_t q, uint32_t k)
{
    enum { ROW = attention_smem<DP>::QUERY_ROW };
    const int tid = svg2__fresh((int)threadIdx.x), lane = tid % WARP;
    /* The four matrices: rows 0-7, rows 8-15, both of the next 8 dimensions; keys 0-7, their next 8
       dimensions, both of keys 8-15. */
    q += (uint32_t)((tid / WARP * 16 * MT + lane % 16) * ROW + lane / 16 * 16);
    k += tile_at<DP>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int n = 0; n < KEYS / 8; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
#pragma unroll
    for (int e = 0; e < DP / 16; ++e) {
        uint32_t a[MT][4], b[4];
#pragma unroll
        for (int m = 0; m < MT; ++m) svg2__ldmatrix_x4(a[m], q + (uint32_t)(16 * m * ROW + 32 * e));
#pragma unroll
        for (int n = 0; n < KEYS / 16; ++n) {
            svg2__ldmatrix_x4(b, tile_step<DP>(k, e) + (uint32_t)(16 * n * DP * 2));
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                svg2__mma_m16n8k16(s[m][2 * n], a[m], b[0], b[1], T());
                svg2__mma_m16n8k16(s[m][2 * n + 1], a[m], b[2], b[3], T());
            }
        }
    }
}

/* What a lane addresses of 16 rows and 16 columns, transposed: rows 0-7, rows 8-15, both of the next 8
   columns. */
template <int DP> SVG2__DEVICE uint32_t value_lane(uint32_t tile)
{
    const int lane = svg2__fresh((int)threadIdx.x) % WARP;
    return tile + tile_at<DP>(lane % 16, lane / 16);
}

/* o (16*MT rows x DP) += a (16*MT rows x 16) times the 16 rows at v, the lane's address */
template <class T, int DP, int MT>
SVG2__DEVICE void accumulate(float (&o)[MT][DP / 8][4], const uint32_t (&a)[MT][4], uint32_t v)
{
#pragma unroll
    for (int d = 0; d < DP / 16; ++d) {
        uint32_t b[4];
        svg2__ldmatrix_x4_trans(b, tile_step<DP>(v, d));
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            svg2__mma_m16n8k16(o[m][2 * d], a[m], b[0], b[1], T());
            svg2__mma_m16n8k16(o[m][2 * d + 1], a[m], b[2], b[3], T());
        }
    }
}

/* Until the oldest of the tiles under way is there; all threads then still need a barrier to see it. */
SVG2__DEVICE void wait_for_tile(int stages)
{
    if (stages == 2) svg2__cp_async_wait<0>();
    else if (stages == 3) svg2__cp_async_wait<1>();
    else svg2__cp_async_wait<2>();
}

SVG2__DEVICE float quad_max(float x)
{
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
SVG2__DEVICE float quad_sum(float x)
{
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/* 4 registers of the 4 lanes of a quad, transposed: lane t gets register t of all lanes. */
SVG2__DEVICE void quad_transpose(uint32_t (&r)[4])
{
    const int t = (int)threadIdx.x % 4;
    for (int i = 0; i < 4; i += 2) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, t & 1 ? r[i] : r[i + 1], 1);
        if (t & 1) r[i] = got;
        else r[i + 1] = got;
    }
    for (int i = 0; i < 2; ++i) {
        const uint32_t got = __shfl_xor_sync(0xffffffffu, t & 2 ? r[i] : r[i + 2], 2);
        if (t & 2) r[i] = got;
        else r[i + 2] = got;
    }
}

/* The head of an item, in the ways it is needed. */
struct item_head {
    int64_t bh, kv;
    int32_t batch, head;
};

SVG2__DEVICE item_head head_of(const attention_args &a, const attention_item &item)
{
    item_head x;
    const int32_t bh = a.head_begin + item.head;
    x.bh = bh;
    x.batch = bh / a.heads;
    x.head = bh % a.heads;
    x.kv = kv_head(bh, a.heads, a.heads_kv);
    return x;
}

/* What the loads of a phase need, by one thread. */
template <class T, class L>
SVG2__DEVICE void begin_phase(const attention_args &a, const attention_item item, unsigned char *smem,
                              bool is_tail)
{
    const item_head x = head_of(a, item);
    const operand &key = is_tail ? a.virtual_key : a.key, &value = is_tail ? a.virtual_value : a.value;
    key_source *source = shared_at<key_source>(smem, L::SOURCE);
    tile_rows *stream = shared_at<tile_rows>(smem, L::STREAM);
    key_list *list = shared_at<key_list>(smem, L::LIST);
    source->map = a.map ? a.map + (x.bh * a.query_blocks + item.block) * a.key_blocks : NULL;
    source->offset = a.key_offset ? a.key_offset + x.kv * ((int64_t)a.key_blocks + 1) : NULL;
    source->log_mass = a.log_mass && is_tail
                           ? a.log_mass + (x.bh * a.tail_query_blocks + item.block) * a.tail_key_blocks
                           : NULL;
    source->blocks = is_tail ? a.tail_key_blocks : a.map ? a.key_blocks : 1;
    source->last = a.key_blocks;
    source->tokens = a.tokens_kv;
    source->is_tail = is_tail;
    source->is_diagonal = a.is_diagonal && !is_tail && source->blocks <= L::LISTED;
    source->place = item.first + item.count / 2;
    source->rows = a.tokens;
    list->end = list->next_block = list->runs = 0;
    stream[0].data = operand_head<T>(key, (int32_t)x.kv, a.heads_kv);
    stream[0].stride = key.stride_token;
    stream[0].chunks = key.chunks;
    stream[0].kv = (int32_t)x.kv;
    stream[1].data = operand_head<T>(value, (int32_t)x.kv, a.heads_kv);
    stream[1].stride = value.stride_token;
    stream[1].chunks = value.chunks;
    stream[1].kv = (int32_t)x.kv;
}

/* The queries of the item, where each row is from, and the mean's part of its logits. */
template <class T, int DP, int ROWS, bool SKIP>
SVG2__DEVICE void begin_rows(const attention_args &a, unsigned char *smem)
{
    typedef attention_smem<DP, SKIP> L;
    const int tid = (int)threadIdx.x;
    const attention_item item = *shared_at<attention_item>(smem, L::ITEM);
    const item_head x = head_of(a, item);
    const int32_t *order = a.query_order ? a.query_order + x.bh * a.tokens : NULL;
    load_queries<T, DP, ROWS>(a.q, order, x.batch, x.head, item.first, item.count, a.dim, a.sign,
                              smem + L::QUERY);
    svg2__cp_async_commit();
    if (tid < item.count) {
        const int token = order ? order[item.first + tid] : item.first + tid;
        shared_at<int32_t>(smem, L::TOKEN)[tid] = token;
        if (a.key_mean && (a.is_relative ? a.lse || a.lse_seed : item.block < a.tail_query_blocks))
            shared_at<float>(smem, L::SHIFT)[tid] =
                a.sign * a.scale2
                * mean_logit<T>(a.q, row_at(a.q, x.batch, x.head, token), a.dim, a.key_mean + x.kv * a.dim,
                                !a.is_relative);
        if (SKIP) {
            const float mean =
                a.lse_seed && a.key_mean && a.is_relative ? shared_at<float>(smem, L::SHIFT)[tid] : 0.0f;
            shared_at<float>(smem, L::LOST)[tid] = 0.0f;
            shared_at<float>(smem, L::SEED)[tid] =
                a.lse_seed ? (a.lse_seed[x.bh * a.tokens + token] - 0.25f) * 1.44269504f - mean : -INFINITY;
        }
    }
}

SVG2__DEVICE void load_matrix8(float (&x)[8], const float *p, bool is_vector)
{
    if (is_vector) {
        const float4 x0 = *(const float4 *)(const void *)p, x1 = *(const float4 *)(const void *)(p + 4);
        x[0] = x0.x, x[1] = x0.y, x[2] = x0.z, x[3] = x0.w;
        x[4] = x1.x, x[5] = x1.y, x[6] = x1.z, x[7] = x1.w;
    } else {
        for (int n = 0; n < 8; ++n) x[n] = p[n];
    }
}

/* ---- the softmax of 16 rows of a warp; [h]: of rows g and g + 8 ---- */
/* Largest logit of a row in a tile, base 2. */
template <int N> SVG2__DEVICE float tile_top(const float (&s)[N][4], int h, float factor)
{
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < N; ++n) top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
    return quad_max(top) * factor;
}
/* o *= alpha. After the first tiles a maximum seldom rises. */
template <int N> SVG2__DEVICE void rescale_output(float (&o)[N][4], const float (&alpha)[2])
{
    if (!__any_sync(0xffffffffu, !(alpha[0] == 1.0f && alpha[1] == 1.0f))) return;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) o[n][e] *= alpha[e / 2];
}
/* Logits become weights, and are added up. */
template <int N> SVG2__DEVICE void weigh(float (&s)[N][4], float factor, const float (&top)[2], float (&sum)[2])
{
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            s[n][e] = svg2__exp2(fmaf(s[n][e], factor, -top[e / 2]));
            sum[e / 2] += s[n][e];
        }
}
/* Weights of 16 keys: the C fragment is the A fragment, once it is 16-bit. */
template <class T, int N> SVG2__DEVICE void pack_weights(uint32_t (&p)[4], const float (&s)[N][4], int n)
{
    p[0] = pack2(s[2 * n][0], s[2 * n][1], T());
    p[1] = pack2(s[2 * n][2], s[2 * n][3], T());
    p[2] = pack2(s[2 * n + 1][0], s[2 * n + 1][1], T());
    p[3] = pack2(s[2 * n + 1][2], s[2 * n + 1][3], T());
}

/* Row g (h = 0) or g + 8 of o times inverse, to element `at` of the output. f32: 8 bytes a lane are whole
   sectors of 32 a quad. 16-bit: the quad trades registers so that a lane has 8 columns. */
template <int N>
SVG2__DEVICE void store_row(const attention_args &a, int64_t at, bool is_there, const float (&o)[N][4], int h,
                            float inverse, int quad)
{
    int n, e;
    if (a.out.dtype == SVG2_F32) {
        float *out = (float *)const_cast<void *>(a.out.data) + at;
#pragma unroll
        for (n = 0; n < N; ++n) {
            const float lo = o[n][2 * h] * inverse, hi = o[n][2 * h + 1] * inverse;
            const int d = 8 * n + 2 * quad;
            if (!is_there || d >= a.dim) continue;
            if (a.out.is_vector) *(float2 *)(void *)(out + d) = make_float2(lo, hi);
            else out[d] = lo, out[d + 1] = hi;
        }
        return;
    }
    uint16_t *out = (uint16_t *)const_cast<void *>(a.out.data) + at;
#pragma unroll
    for (n = 0; n < N; n += 4) {
        uint32_t word[4];
#pragma unroll
        for (e = 0; e < 4; ++e) {
            const float lo = o[n + e][2 * h] * inverse, hi = o[n + e][2 * h + 1] * inverse;
            word[e] = a.out.dtype == SVG2_F16 ? pack2(lo, hi, __half()) : pack2(lo, hi, __nv_bfloat16());
        }
        quad_transpose(word);
        const int d = 8 * (n + quad);
        if (!is_there || d >= a.dim) continue;
        if (a.out.is_vector)
            *(uint4 *)(void *)(out + d) = make_uint4(word[0], word[1], word[2], word[3]);
        else
            for (e = 0; e < 8; ++e) out[d + e] = (uint16_t)(word[e / 2] >> e % 2 * 16);
    }
}

/* ---- skip rules (>>attention of svg2.h), of row g (h = 0) or g + 8 of a thread; logits and maxima are base 2 ---- */
/* NaN if there is a NaN or an Inf, which a maximum passes over; else 0. */
template <int N> SVG2__DEVICE float tile_odd(const float (&s)[N][4], int h)
{
    float odd = 0.0f;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e) odd = fmaf(s[n][e] == -INFINITY ? 0.0f : s[n][e], 0.0f, odd);
    return quad_sum(odd);
}
/* The sum that a row is known to have by an estimate of its LSE (base 2), in units of 2^m. */
SVG2__DEVICE float seed_sum(float seed, float m) { return seed == -INFINITY ? 0.0f : svg2__exp2(seed - m); }

/* Constant and energy: whether the row, with maximum m and this lane's part l of its sum, does without the
   tile. */
SVG2__DEVICE bool does_without(const attention_args &a, float top, float odd, float m, float l, float seed)
{
    float limit = a.limit;
    if (a.skip == SVG2_SKIP_ENERGY) limit *= fmaxf(quad_sum(l), seed_sum(seed, m));
    return svg2__exp2(top - m) + odd < limit;
}
/* Recall: what a row may lose; l times alpha and the seed's sum are in units of 2^top. */
SVG2__DEVICE float recall_limit(const attention_args &a, float l, float alpha, float seed, float top)
{
    return a.rho * fmaxf(quad_sum(l) * alpha, a.recall * seed_sum(seed, top));
}
/* Whether it may lose u, too. Not the negation: a NaN stays. */
SVG2__DEVICE bool may_lose(float u, float lost, float limit, float most, float alpha)
{
    return u <= most * limit && lost + u <= limit && alpha > 1e-6f;
}

/* The weights of a tile into p and its sums into the state; or, if all rows of the warp agree, nothing of that.
   count rows are there, tiles in all. */
template <class T, int DP, int MT, int KEYS>
SVG2__DEVICE bool weigh_or_leave(const attention_args &a, unsigned char *smem, float (&s)[MT][KEYS / 8][4],
                                 float (&o)[MT][DP / 8][4], uint32_t (&p)[KEYS / 16][MT][4], int count,
                                 int tiles)
{
    typedef attention_smem<DP, true> L;
    const bool is_recall = a.skip == SVG2_SKIP_RECALL;
    const float factor = a.scale2, most = 16.0f / (float)tiles;
    float4 *const state = shared_at<float4>(smem, L::STATE), *const next = shared_at<float4>(smem, L::NEXT);
    float *const lost = shared_at<float>(smem, L::LOST);
    const float *seeds = shared_at<float>(smem, L::SEED);
    bool leaves = true;
    int i, h, n;
#pragma unroll
    for (i = 0; i < MT; ++i) {
        const int t = svg2__fresh((int)threadIdx.x), mine = i * ATTENTION_THREADS + t;
        const float4 before = state[mine];
        const float m[2] = {before.x, before.y}, l[2] = {before.z, before.w};
        float top[2], zero[2], sum[2] = {0.0f, 0.0f};
#pragma unroll
        for (h = 0; h < 2; ++h) {
            top[h] = tile_top(s[i], h, factor);
            if (is_recall) top[h] = fmaxf(m[h], top[h]);
            zero[h] = top[h] == -INFINITY ? 0.0f : top[h];
        }
        if (is_recall) weigh(s[i], factor, zero, sum);
#pragma unroll
        for (h = 0; h < 2; ++h) {
            const int r = t / WARP * 16 * MT + 16 * i + t % WARP / 4 + 8 * h;
            const bool is_there = r < count;
            const float seed = is_there ? seeds[r] : -INFINITY;
            bool does_leave;
            if (is_recall) {
                const float alpha = svg2__exp2(m[h] - zero[h]);
                does_leave = may_lose(quad_sum(sum[h]), is_there ? lost[r] * alpha : 0.0f,
                                      recall_limit(a, l[h], alpha, seed, top[h]), most, alpha);
            } else {
                does_leave = does_without(a, top[h], tile_odd(s[i], h), m[h], l[h], seed);
                top[h] = fmaxf(m[h], top[h]);
            }
            if (is_there && !does_leave) leaves = false;
        }
        next[mine] = make_float4(top[0], top[1], sum[0], sum[1]);
    }
    leaves = __all_sync(0xffffffffu, leaves);
    __syncwarp(); /* lost[] of the warp's rows has been read */
#pragma unroll
    for (i = 0; i < MT; ++i) {
        const int t = svg2__fresh((int)threadIdx.x), mine = i * ATTENTION_THREADS + t;
        const float4 before = state[mine], after = next[mine];
        const float m[2] = {before.x, before.y}, l[2] = {before.z, before.w}, top[2] = {after.x, after.y};
        float alpha[2], sum[2] = {after.z, after.w}, zero[2];
#pragma unroll
        for (h = 0; h < 2; ++h) {
            const int r = t / WARP * 16 * MT + 16 * i + t % WARP / 4 + 8 * h;
            zero[h] = top[h] == -INFINITY ? 0.0f : top[h];
            alpha[h] = svg2__exp2(m[h] - zero[h]);
            const float u = quad_sum(sum[h]);
            if (is_recall && r < count && t % 4 == 0)
                lost[r] = leaves ? lost[r] + u / alpha[h] : lost[r] * alpha[h];
        }
        if (leaves) continue;
        rescale_output(o[i], alpha);
        if (!is_recall) weigh(s[i], factor, zero, sum);
#pragma unroll
        for (n = 0; n < KEYS / 16; ++n) pack_weights<T>(p[n][i], s[i], n);
        state[mine] = make_float4(top[0], top[1], fmaf(l[0], alpha[0], sum[0]), fmaf(l[1], alpha[1], sum[1]));
    }
    return leaves;
}

/* One item; warp w owns its rows 16*MT*w .. 16*MT*(w+1). */
template <class T, int DP, int MT, bool SKIP>
SVG2__DEVICE void attend_rows(const attention_args &a, unsigned char *smem)
{
    typedef attention_smem<DP, SKIP> L;
    enum { KEYS = L::KEYS, ROWS = 64 * MT };
    const int32_t *info = shared_at<int32_t>(smem, L::INFO);
    const attention_item &item = *shared_at<attention_item>(smem, L::ITEM);
    const float *shift = shared_at<float>(smem, L::SHIFT);
    float *exact = shared_at<float>(smem, L::EXACT);
    const uint32_t ring = svg2__smem(smem + L::RING);
    const int stages = a.stages, ahead = stages > 2 ? 2 : 1;
    const key_source &source = *shared_at<key_source>(smem, L::SOURCE);
    bool had_tail;
    /* Running maximum m and this lane's part of the sum l, of rows g and g + 8: the registers are taken by o
       and s, and they are touched once a tile. */
    float4 *const state = shared_at<float4>(smem, L::STATE);
    float o[MT][DP / 8][4];
    int i, h, n, e;

#pragma unroll
    for (i = 0; i < MT; ++i) {
        state[i * ATTENTION_THREADS + (int)threadIdx.x] = make_float4(-INFINITY, -INFINITY, 0.0f, 0.0f);
#pragma unroll
        for (n = 0; n < DP / 8; ++n) o[i][n][0] = o[i][n][1] = o[i][n][2] = o[i][n][3] = 0.0f;
    }
    begin_rows<T, DP, ROWS, SKIP>(a, smem);
    if (threadIdx.x == 0) begin_phase<T, L>(a, *shared_at<attention_item>(smem, L::ITEM), smem, false);
    if (SKIP) { /* how many tiles there are */
        int32_t *total = shared_at<int32_t>(smem, L::TOTAL), mine = 0, all, first;
        __syncthreads(); /* source is there */
        for (i = (int)threadIdx.x; i < source.blocks; i += ATTENTION_THREADS)
            mine += max(source_rows(source, i, first), 0);
        (void)scan_threads<ATTENTION_THREADS>(mine, shared_at<int32_t>(smem, L::SCAN), all);
        if (threadIdx.x < 5) total[threadIdx.x] = threadIdx.x ? 0 : all;
    }

    /* First the exact keys, then the virtual ones.

       A tile of keys is two half steps: A computes P from its K, B adds P V. Tiles K0 V0 K1 V1 ... go round a
       ring of `stages` places; half step j loads tile j + stages - 1 into the place that half step j - 1 has
       just left. Row numbers of tile i + ahead are found in A of tile i. */
#pragma unroll 1
    for (;;) {
        __syncthreads(); /* source, stream and list are there */
        int tile, now = 0; /* now: the place of the tile to be computed */
#pragma unroll 1
        for (tile = -ahead;; ++tile) {
            find_rows<L, SKIP>(source, smem, tile + ahead);
            if (tile < 0) {
                if (tile < -1) continue;
                if (!SVG2__FAULT(65)) __syncthreads(); /* row numbers are there */
                for (i = 0; i < stages - 1; ++i) load_half<T, DP>(i, i, smem, ring);
                continue;
            }
            const int keys = info[tile & (SLOTS - 1)];
            if (keys == 0) break;
            const float factor = source.is_tail ? 1.0f : a.scale2;
            uint32_t p[KEYS / 16][MT][4];
            bool is_left_out = false;
            /* this thread's copies into K (and at first Q) have landed */
            if (!SVG2__FAULT(66)) wait_for_tile(stages);
            if (!SVG2__FAULT(67)) __syncthreads(); /* those of all others, too; nobody reads V of the tile
                                                      before */
            load_half<T, DP>(2 * tile + stages - 1, now == 0 ? stages - 1 : now - 1, smem, ring);
            /* Warps behind the last row only load and wait. */
            if ((int)threadIdx.x / WARP * 16 * MT < item.count) {
                float s[MT][KEYS / 8][4];
                logits<T, DP, MT, KEYS>(s, svg2__smem(smem + L::QUERY), ring + (uint32_t)(now * L::TILE));
                if (source.is_tail) {
                    const int t = svg2__fresh((int)threadIdx.x), quad = t % 4;
                    const float *bias =
                        shared_at<float>(smem, L::BIAS) + (tile & (SLOTS - 1)) * KEYS + 2 * quad;
#pragma unroll
                    for (i = 0; i < MT; ++i)
#pragma unroll
                        for (h = 0; h < 2; ++h) {
                            const int r = t / WARP * 16 * MT + 16 * i + t % WARP / 4 + 8 * h;
                            const float more =
                                a.key_mean && !a.is_relative && r < item.count ? shift[r] : 0.0f;
#pragma unroll
                            for (n = 0; n < KEYS / 8; ++n)
#pragma unroll
                                for (e = 2 * h; e < 2 * h + 2; ++e)
                                    s[i][n][e] = fmaf(s[i][n][e], a.scale2, bias[8 * n + e % 2] + more);
                        }
                }
                if (keys < KEYS && !SVG2__FAULT(62)) { /* the last tile */
                    const int left = keys - 2 * (svg2__fresh((int)threadIdx.x) % 4);
#pragma unroll
                    for (i = 0; i < MT; ++i)
#pragma unroll
                        for (n = 0; n < KEYS / 8; ++n)
#pragma unroll
                            for (e = 0; e < 4; ++e)
                                if (8 * n + e % 2 >= left) s[i][n][e] = -INFINITY;
                }
                if (SKIP && !source.is_tail) {
                    int32_t *total = shared_at<int32_t>(smem, L::TOTAL);
                    is_left_out = weigh_or_leave<T, DP, MT, KEYS>(a, smem, s, o, p, item.count,
                                                                  (total[0] + KEYS - 1) / KEYS);
                    if (!is_left_out && threadIdx.x % WARP == 0) total[1 + threadIdx.x / WARP] += keys;
                }
#pragma unroll
                for (i = 0; i < MT && !(SKIP && !source.is_tail); ++i) {
                    const int mine = i * ATTENTION_THREADS + svg2__fresh((int)threadIdx.x);
                    const float4 before = state[mine];
                    const float m[2] = {before.x, before.y}, l[2] = {before.z, before.w};
                    float after[4], top[2], alpha[2], sum[2] = {0.0f, 0.0f};
#pragma unroll
                    for (h = 0; h < 2; ++h) {
                        top[h] = fmaxf(m[h], tile_top(s[i], h, factor));
                        after[h] = top[h];
                        if (top[h] == -INFINITY)
                            top[h] = 0.0f; /* nothing but -Inf so far: keep exp2 away from Inf - Inf */
                        alpha[h] = svg2__exp2(m[h] - top[h]);
                    }
                    rescale_output(o[i], alpha);
                    weigh(s[i], factor, top, sum);
#pragma unroll
                    for (n = 0; n < KEYS / 16; ++n) pack_weights<T>(p[n][i], s[i], n);
#pragma unroll
                    for (h = 0; h < 2; ++h) after[2 + h] = fmaf(l[h], alpha[h], sum[h]);
                    state[mine] = make_float4(after[0], after[1], after[2], after[3]);
                }
            }
            now = now + 1 == stages ? 0 : now + 1;

            if (!SVG2__FAULT(68)) wait_for_tile(stages); /* this thread's copies into V have landed */
            if (!SVG2__FAULT(69)) __syncthreads(); /* those of all others, too; row numbers are there; nobody
                                                      reads K */
            load_half<T, DP>(2 * tile + stages, now == 0 ? stages - 1 : now - 1, smem, ring);
            if ((int)threadIdx.x / WARP * 16 * MT < item.count && !is_left_out) {
                const uint32_t v = value_lane<DP>(ring + (uint32_t)(now * L::TILE));
#pragma unroll
                for (n = 0; n < KEYS / 16; ++n)
                    accumulate<T, DP, MT>(o, p[n], v + (uint32_t)(16 * n * DP * 2));
            }
            now = now + 1 == stages ? 0 : now + 1;
        }
        had_tail = source.is_tail && tile > 0;
        if (source.is_tail || item.block >= a.tail_query_blocks) break;
        if (a.tail_matrix) { /* sum and maximum of the exact keys, to tell the tail's part later */
#pragma unroll
            for (i = 0; i < MT; ++i) {
                const int t = svg2__fresh((int)threadIdx.x), r = t / WARP * 16 * MT + 16 * i + t % WARP / 4;
                const float4 x = state[i * ATTENTION_THREADS + t];
                const float sum[2] = {quad_sum(x.z), quad_sum(x.w)};
                if (t % 4 == 0) {
                    exact[r] = sum[0], exact[L::ROWS + r] = x.x;
                    exact[r + 8] = sum[1], exact[L::ROWS + r + 8] = x.y;
                }
            }
        }
        if (!SVG2__FAULT(73)) __syncthreads(); /* nobody reads source, stream and list of the exact keys any
                                                  more */
        if (threadIdx.x == 0) begin_phase<T, L>(a, *shared_at<attention_item>(smem, L::ITEM), smem, true);
    }
    svg2__cp_async_wait<0>(); /* where there was no tile, the queries may still be under way */
    if (SKIP && a.stats && threadIdx.x % WARP == 0) { /* integers: the order does not matter */
        const int warp = (int)threadIdx.x / WARP, rows = max(min(item.count - warp * 16 * MT, 16 * MT), 0);
        atomicAdd((unsigned long long *)(void *)&a.stats[a.head_begin + item.head].pairs_pv,
                  (unsigned long long)rows * (unsigned long long)shared_at<int32_t>(smem, L::TOTAL)[1 + warp]);
    }
    const int t = svg2__fresh((int)threadIdx.x), lane = t % WARP, quad = lane % 4,
              first_row = t / WARP * 16 * MT + lane / 4;

    /* out = o / l, and with a first order out += (tail's part of l) * scale * A^T q */
    float m[MT][2], l[MT][2], inverse[MT][2], weight[MT][2];
#pragma unroll
    for (i = 0; i < MT; ++i) {
        const float4 last = state[i * ATTENTION_THREADS + t];
        m[i][0] = last.x, m[i][1] = last.y;
        l[i][0] = quad_sum(last.z), l[i][1] = quad_sum(last.w);
#pragma unroll
        for (h = 0; h < 2; ++h) {
            inverse[i][h] = l[i][h] == 0.0f ? 0.0f : 1.0f / l[i][h];
            weight[i][h] = 0.0f;
        }
    }
    if (had_tail && a.tail_matrix) {
        const float *matrix =
            a.tail_matrix + ((int64_t)item.head * a.tail_query_blocks + item.block) * a.dim * a.dim;
        __syncwarp(); /* exact[] of this warp's rows is there */
#pragma unroll
        for (i = 0; i < MT; ++i)
#pragma unroll
            for (h = 0; h < 2; ++h) {
                const int r = first_row + 16 * i + 8 * h;
                const float part =
                    exact[r] == 0.0f ? 0.0f
                                     : exact[r] * svg2__exp2(exact[L::ROWS + r] - m[i][h]) * inverse[i][h];
                weight[i][h] = fmaxf(1.0f - part, 0.0f) * a.scale2 * 0.693147181f;
#pragma unroll
                for (n = 0; n < DP / 8; ++n) {
                    o[i][n][2 * h] *= inverse[i][h];
                    o[i][n][2 * h + 1] *= inverse[i][h];
                }
                inverse[i][h] = 1.0f;
            }
        /* The matrix in strips of KEYS rows (of the key's dimensions); bf16 whatever T is: its range holds
           any covariance. */
#pragma unroll 1
        for (int strip = 0; strip < DP; strip += KEYS) {
            if (!SVG2__FAULT(70)) __syncthreads(); /* nobody reads this place of the ring any more */
#pragma unroll 2
            for (i = t; i < KEYS * (DP / 8); i += ATTENTION_THREADS) {
                const int r = i / (DP / 8), c = i % (DP / 8);
                float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
                if (strip + r < a.dim && c * 8 < a.dim)
                    load_matrix8(x, matrix + (int64_t)(strip + r) * a.dim + c * 8, a.is_matrix_vector != 0);
                *(uint4 *)(void *)(smem + L::RING + tile_at<DP>(r, c)) = pack8<__nv_bfloat16>(x);
            }
            if (!SVG2__FAULT(71)) __syncthreads(); /* the strip is complete */
#pragma unroll
            for (n = 0; n < KEYS / 16; ++n) {
                if (strip + 16 * n >= DP) continue;
                uint32_t q[MT][4];
#pragma unroll
                for (i = 0; i < MT; ++i) {
                    const int row = t / WARP * 16 * MT + 16 * i + lane % 16;
                    svg2__ldmatrix_x4(q[i], svg2__smem(smem + L::QUERY)
                                            + (uint32_t)(row * L::QUERY_ROW + 2 * strip + 32 * n
                                                         + lane / 16 * 16));
#pragma unroll
                    for (e = 0; e < 4; ++e) {
                        float lo, hi;
                        unpack2(q[i][e], lo, hi, T());
                        q[i][e] = pack2(lo * weight[i][e % 2], hi * weight[i][e % 2], __nv_bfloat16());
                    }
                }
                accumulate<__nv_bfloat16, DP, MT>(o, q, value_lane<DP>(ring) + (uint32_t)(16 * n * DP * 2));
            }
        }
    }

    const item_head x = head_of(a, item);
    const int32_t *token = shared_at<int32_t>(smem, L::TOKEN);
#pragma unroll
    for (i = 0; i < MT; ++i)
#pragma unroll
        for (h = 0; h < 2; ++h) {
            const int r = first_row + 16 * i + 8 * h;
            const bool is_there = r < item.count;
            const int64_t at = is_there ? row_at(a.out, x.batch, x.head, token[r]) : 0;
            store_row<DP / 8>(a, at, is_there, o[i], h, inverse[i][h], quad);
            if (a.lse && is_there && quad == 0) {
                float lse = l[i][h] == 0.0f ? -INFINITY : (m[i][h] + log2f(l[i][h])) * 0.693147181f;
                if (l[i][h] != 0.0f && a.key_mean && a.is_relative) lse += shift[r] * 0.693147181f;
                a.lse[x.bh * a.tokens + token[r]] = lse;
            }
        }
}

/* One block of 128 threads: one item, that is up to 128 rows of one query block (64 where head_dim > 128)
   against all keys that the query block sees, FlashAttention-2's way:

       keys of the selected blocks, one after the other            virtual keys of the others (tail)
       K0 V0 | K1 V1 | K2 V2 | ...                  | Kn Vn 0 0 |  C0 W0 | ... | Cm Wm 0 |      A (order 1)
       64 keys (32 where head_dim > 128), across the borders of blocks; only the last one is masked

       Q  128 x D in shared memory, read by ldmatrix at every tile     warp w: rows 32w .. 32w+31, or 16 of 64
       S  = Q K^T                       32 x 64 a warp, f32 registers      mma m16n8k16
       P  = exp2(scale2 S - m), T       its C fragment is the A fragment of the next product
       O += P V                         32 x D a warp, f32 registers
       m, l in shared memory: a float4 per thread and tile of 16 rows, touched once a key tile

   No padding of key blocks and no list of tokens: a list of the runs of selected blocks (512 blocks at a
   time, made by a scan) stands in shared memory, and the 64 row numbers of a tile are looked up in it one to
   two tiles ahead. V rows behind the last key are zeros, not what lies there: 0 * NaN is NaN. K and V tiles
   go round a ring of 2, 3 or 4 places, filled by cp.async; which of the three is the host's choice
   (attention_stages) and changes no bit of the result.

   head_dim   shared memory, bytes        registers   blocks and stages a multiprocessor
   up to        2 / 3 / 4 stages          8.0 / 9.0   8.0: 164 KB   8.6, 8.9, 12.0: 100 KB   9.0, 10.0: 228 KB
       64     47,616 / 55,808 / 64,000    216 / 218   2 of 4        2 of 2                   2 of 4
       96     64,000 / 76,288 / 88,576    247 / 250   2 of 3        1 of 4                   2 of 4
      128     80,384 / 96,768 / 113,152   255 / 255   2 of 2        1 of 3                   2 of 4
      256     75,136 / 91,520 / 107,904   227 / 229   2 of 2        1 of 3                   2 of 4

   Limiter, by counting at head_dim 128 (a tile of 64 keys, 128 rows): 1,024 products m16n8k16 take the tensor
   cores of an 8.0 2,048 cycles, those of an 8.6, 8.9 or 12.0 twice to four times as many; 320 ldmatrix.x4 and
   the copies move 192 KB through shared memory, 1,536 cycles; 8,192 exp2 take 512. So the tensor cores limit
   there, while on 9.0, where they could need half the cycles, shared memory does, as far as mma.sync itself
   is not the limit: wgmma, which reads its operands once for the 64 rows of four warps, would be the remedy.
   32 rows a warp, not 16 (8 warps), halve the reads of K and V. The two blocks of a multiprocessor cover each
   other's softmax.

   Executed beyond what is useful: rows in steps of 32 a warp (a warp without rows only loads), 5.4 % with 400
   query blocks in 118,800 tokens, where items of 128 rows alone would be 21 %; half a tile of keys an item,
   0.3 % of the 11,880 keys of 10 % density. The tail then adds a virtual key for each of 900 blocks, 7.6 %,
   and the matrix as much as one tile, 0.5 %. */
template <class T, int DP, bool SKIP>
static __global__ void __launch_bounds__(ATTENTION_THREADS, 2)
    attention_forward(const __grid_constant__ attention_args a)
{
    SVG2_DYN_SMEM(attention_shared, 128);
    const attention_item item = a.item[blockIdx.x];
    if (item.count == 0) return; /* the whole block */
    if (threadIdx.x == 0) *shared_at<attention_item>(attention_shared, attention_smem<DP>::ITEM) = item;
    __syncthreads(); /* the item is there */
    if (DP <= 128 && item.count > 64) attend_rows<T, DP, DP <= 128 ? 2 : 1, SKIP>(a, attention_shared);
    else attend_rows<T, DP, 1, SKIP>(a, attention_shared);
}

/* ---- forward, Hopper ---- */
/* Variants that bench/gpu.sh may compare; all of them are right. */
#ifndef SVG2_CUDA_KEYS_128
#  define SVG2_CUDA_KEYS_128 128 /* of a tile where head_dim is 65 to 128: 128 or 176 */
#endif
#ifndef SVG2_CUDA_OVERLAP
#  define SVG2_CUDA_OVERLAP 1 /* the softmax of a tile beside P V of the tile before */
#endif
#ifndef SVG2_CUDA_TMA
#  define SVG2_CUDA_TMA 0 /* K and V come as boxes of the copy engine, not by cp.async */
#endif
#ifndef SVG2_CUDA_MULTICAST
#  define SVG2_CUDA_MULTICAST 0 /* (with TMA) two blocks share an item; each brings half of K, V to both */
#endif
#ifndef SVG2_CUDA_PINGPONG
#  define SVG2_CUDA_PINGPONG 1 /* the two warpgroups take turns at the tensor cores */
#endif

#if SVG2_CUDA_MULTICAST && !SVG2_CUDA_TMA
#  error "SVG2_CUDA_MULTICAST needs SVG2_CUDA_TMA"
#endif

enum {
    HOPPER_GROUP = 128,                                        /* threads of a warpgroup                   */
    HOPPER_THREADS = 3 * HOPPER_GROUP,                         /* it loads; two compute                    */
    HOPPER_ARRIVALS = HOPPER_GROUP + HOPPER_GROUP / WARP,      /* on a full barrier: publish               */
    HOPPER_RELEASES = 2 * HOPPER_GROUP / WARP,                 /* on an empty barrier: warps that compute  */
    HOPPER_CLUSTER = SVG2_CUDA_MULTICAST ? 2 : 1,              /* blocks that share an item                */
    HOPPER_ROWS = 128,                                         /* of an item, of a block                   */
    HOPPER_NO_ROWS = -1,                                       /* an item of the other block's rows alone  */
    HOPPER_TAIL = 1 << 16,                                     /* in a message: the keys are virtual       */
    HOPPER_BOXES = 8,                                          /* 1, 2, 4, ..., 128 rows                   */
    BARRIER_LOAD = 1, BARRIER_TURN = 2, BARRIER_MERGE = 4,     /* named; TURN + warpgroup                  */
    BARRIER_VOTE = 5                                           /* VOTE + warpgroup                         */
};
static_assert((int)ATTENTION_THREADS == (int)HOPPER_GROUP, "so many threads have the functions that load");

/* Keys of a tile, parts of it that a skip rule looks at, places of the rings of K and of V. */
template <int DP, bool SKIP = false> struct hopper_tiles {
    enum {
        PART = 64,
        KEYS = DP > 128 ? (SKIP ? 64 : 80) : DP > 64 && !SKIP ? SVG2_CUDA_KEYS_128 : 128,
        PARTS = SKIP ? KEYS / PART : 1,
        STAGES = DP > 64 ? 2 : 4
    };
};

/* Shared memory of a block, as byte offsets. The tiles are slabs of 64 columns: 128 bytes a row, the chunks
   of 16 bytes swizzled over 8 rows, 1,024 bytes, as the descriptors of wgmma have it (9.7.15.5.1: 128-byte
   swizzle). Of 96 columns the second slab is half empty. */
template <int DP, bool SKIP = false> struct hopper_smem {
    enum {
        DIM = DP,
        KEYS = hopper_tiles<DP, SKIP>::KEYS, STAGES = hopper_tiles<DP, SKIP>::STAGES,
        PARTS = hopper_tiles<DP, SKIP>::PARTS, SKIPS = SKIP,
        ROWS = HOPPER_ROWS,
        LISTED = DP > 128 && !SKIP ? 128 : LIST_BLOCKS, /* key blocks of a list */
        HELD = 2,                                     /* tiles whose row numbers are held */
        IS_BIAS_LATE = 1,
        LANES = 8, ROWS_AT_ONCE = 2,                  /* for few registers */
        SLABS = (DP + 63) / 64,
        TILE = KEYS * 128 * SLABS,
        QUERY = 0,                                    /* [2][SLABS][64] rows of 128 bytes */
        HALF = 64 * 128 * SLABS,                      /* a warpgroup's rows of it */
        KEY = QUERY + 2 * HALF,                       /* [STAGES] tiles */
        VALUE = KEY + STAGES * TILE,                  /* [STAGES] tiles; strips of the matrix, too */
        /* mbarriers: u64 each */
        KEY_FULL = VALUE + STAGES * TILE, KEY_EMPTY = KEY_FULL + 8 * STAGES,
        VALUE_FULL = KEY_EMPTY + 8 * STAGES, VALUE_EMPTY = VALUE_FULL + 8 * STAGES,
        QUERY_FULL = VALUE_EMPTY + 8 * STAGES, QUERY_EMPTY = QUERY_FULL + 8,
        ITEM_FULL = QUERY_EMPTY + 8, ITEM_EMPTY = ITEM_FULL + 16, /* [2] */
        BARS_END = ITEM_EMPTY + 16,
        ITEM = (BARS_END + 15) / 16 * 16,             /* attention_item [2] */
        PLACE = ITEM + 32,                            /* (skip, clusters) i32x4 [2], the middle row */
        MESSAGE = PLACE + (SKIP && SVG2_CUDA_MULTICAST ? 32 : 0), /* i32 [STAGES]: keys, HOPPER_TAIL */
        INFO = MESSAGE + 16,                          /* i32 [HELD] */
        LIST = INFO + 16,                             /* key_list */
        SCAN = LIST + 16,                             /* u64 [4] */
        SOURCE = SCAN + 32,                           /* key_source */
        STREAM = SOURCE + 64,                         /* tile_rows [2] */
        RUN_START = STREAM + 48,                      /* i32 [LISTED] */
        RUN_FIRST = RUN_START + 4 * LISTED,           /* i32 [LISTED + 4] */
        HINT = RUN_FIRST + 4 * (LISTED + 4),          /* i32 [KEYS] */
        ROW = HINT + 4 * KEYS,                        /* i32 [HELD][KEYS] */
        BIAS = ROW + 4 * HELD * KEYS,                 /* f32 [STAGES][KEYS] */
        TOTAL = BIAS + 4 * STAGES * KEYS,             /* (skip) i32 [2], keys of the item */
        VOTE = TOTAL + 8,                             /* (skip) u8 [warpgroup][turn][warp] */
        BYTES = SKIP ? VOTE + 16 : TOTAL
    };
    static_assert(KEYS % 16 == 0 && TILE % 1024 == 0 && KEY % 1024 == 0, "tiles begin where swizzles do");
    static_assert(STAGES <= 4 && BYTES <= 227 * 1024, "what a block may have");
    static_assert(HALF >= 128 * DP && HALF >= 6 * 4 * HOPPER_GROUP, "what merge_groups stores at a time");
#if SVG2__SM90A
    static __device__ __forceinline__ void wait()
    {
        __syncwarp(); /* a lane that was on its own is back: the barrier is for whole warps */
        svg2__bar_sync(BARRIER_LOAD, HOPPER_GROUP);
    }
#endif
    static __device__ __forceinline__ uint32_t at(int row, int chunk)
    {
        return (uint32_t)(chunk / 8 * KEYS * 128 + row * 128 + ((chunk % 8 ^ (row & 7)) << 4));
    }
    static __device__ __forceinline__ int query_at(int row, int chunk)
    {
        return row / 64 * HALF + chunk / 8 * 64 * 128 + row % 64 * 128 + ((chunk % 8 ^ (row & 7)) << 4);
    }
};

/* Tensor maps of K and V, packed or where they are, for boxes of 64 columns and 2^i rows: column, token,
   head, batch entry. Of packed ones the heads of the call, from begin on, are as many heads of one batch
   entry. */
template <bool TMA> struct hopper_maps {
    int32_t unused;
};
#if SVG2_CUDA_TMA
template <> struct hopper_maps<true> {
    CUtensorMap box[2][HOPPER_BOXES];
    int32_t     is_there[2], begin[2], heads[2];
};
#endif

#if SVG2__SM90A
/* Until the phase of that parity is over; of a new barrier, the one before its first (parity 1) is. */
SVG2__DEVICE void wait_phase(uint32_t bar, int parity)
{
    while (!svg2__mbar_try_wait(bar, (uint32_t)parity)) {}
}
/* The same where other blocks of a cluster arrive, too: what they did before is seen. */
SVG2__DEVICE void wait_blocks(uint32_t bar, int parity)
{
    if (HOPPER_CLUSTER == 1 || SVG2__FAULT(133)) wait_phase(bar, parity);
    else
        while (!svg2__mbar_try_wait_cluster(bar, (uint32_t)parity)) {}
}
/* Place `use` of a ring, and the parity of its phase: of full ones by number, of empty ones by that before */
template <int STAGES> SVG2__DEVICE void wait_full(uint32_t bars, int use)
{
    wait_phase(bars + (uint32_t)(use % STAGES * 8), use / STAGES & 1);
}
template <int STAGES> SVG2__DEVICE void wait_empty(uint32_t bars, int use)
{
    wait_blocks(bars + (uint32_t)(use % STAGES * 8), (use / STAGES & 1) ^ 1);
}
/* What the loading warpgroup has copied and stored is there when all of its threads have come here: each
   arrives when its cp.async are done, and each warp for its ordinary stores; and when the copy engine has
   brought so many bytes. */
SVG2__DEVICE void publish(uint32_t bar, uint32_t bytes = 0)
{
    const int tid = svg2__fresh((int)threadIdx.x);
    if (!SVG2__FAULT(116)) svg2__cp_async_mbar_arrive(bar);
    else svg2__mbar_arrive(bar); /* before the copies are done */
    __syncwarp(); /* the stores of the warp, before its arrival */
    if (bytes && tid == 0) svg2__mbar_arrive_expect(bar, bytes);
    else if (tid % WARP == 0) svg2__mbar_arrive(bar);
}
/* This warp has read what it is to read there, which only its own block brings. */
SVG2__DEVICE void release_own(uint32_t bar)
{
    __syncwarp(); /* the reads of the warp, before its arrival */
    if (svg2__fresh((int)threadIdx.x) % WARP == 0) svg2__mbar_arrive(bar);
}
/* The same of a ring's place, to all blocks that bring something there; and of an item, to the block that
   hands them out. */
SVG2__DEVICE void release(uint32_t bar)
{
    if (HOPPER_CLUSTER == 1 || SVG2__FAULT(130)) {
        release_own(bar);
    } else {
        const uint32_t lane = (uint32_t)svg2__fresh((int)threadIdx.x) % WARP;
        __syncwarp(); /* the reads of the warp, before its arrival */
        if (lane < HOPPER_CLUSTER) svg2__mbar_arrive_remote(svg2__mapa(bar, lane));
    }
}
SVG2__DEVICE void release_item(uint32_t bar)
{
    __syncwarp(); /* the reads of the warp, before its arrival */
    if (svg2__fresh((int)threadIdx.x) % WARP) return;
    if (HOPPER_CLUSTER == 1) svg2__mbar_arrive(bar);
    else svg2__mbar_arrive_remote(svg2__mapa(bar, 0));
}
/* What other threads have written by cp.async or st, and this thread has seen by waiting, before the wgmma
   that follow read it: writing was the generic proxy's, wgmma reads by the asynchronous one. The memory model
   asks for a proxy fence between the two on the way from one to the other; here, behind the mbarrier, it is
   one place for all that a full barrier brings. */
SVG2__DEVICE void fence_tile()
{
    if (!SVG2__FAULT(103)) svg2__fence_async();
}

/* The descriptor of 16 rows of V, or of the matrix, whose 64-column slabs are slab_bytes apart: as tile_desc<64>,
   but rows lie along n, and the first distance counts. 9.7.15.5.1.2.2 */
SVG2__DEVICE uint64_t slab_desc(uint32_t at, uint32_t slab_bytes)
{
    return (uint64_t)(at >> 4) | (uint64_t)(slab_bytes >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | 1ull << 62;
}

/* ---- the warpgroup that loads ---- */
#if SVG2_CUDA_TMA
/* The first `keys` rows of a tile, and zeros behind them, as boxes: one warp. A piece, rows that follow each
   other in memory, too, is cut into boxes as its length into powers of two; lane 8*slab + i brings that of
   2^i rows. Where a row stands in the swizzle's pattern is a matter of its address, so that a box may begin
   at any row. Zeros are tokens behind the last one, and columns behind head_dim. In a cluster a block brings
   its part of the rows, to all blocks. */
template <class L>
SVG2__DEVICE void load_boxes(const CUtensorMap *box, int head, int batch, int tokens, const int32_t *row,
                             int keys, uint32_t tile, uint32_t bar)
{
    enum { ROWS = L::KEYS / HOPPER_CLUSTER, WORDS = (ROWS + WARP - 1) / WARP };
    const int own = HOPPER_CLUSTER == 1 ? 0 : (int)svg2__cluster_rank() * ROWS; /* first row of the part */
    const int lane = svg2__fresh((int)threadIdx.x) % WARP, bit = lane % HOPPER_BOXES,
              slab = lane / HOPPER_BOXES;
    unsigned begins[WORDS]; /* where a piece begins */
    int next[WORDS], i;     /* the first piece that begins behind those 32 rows */
    row += own;
    keys = min(max(keys - own, 0), (int)ROWS);
#pragma unroll
    for (i = 0; i < WORDS; ++i) {
        const int k = i * WARP + lane;
        begins[i] = __ballot_sync(0xffffffffu, k < keys && (k == 0 || row[k] != row[k - 1] + 1));
    }
#pragma unroll
    for (i = WORDS - 1; i >= 0; --i)
        next[i] = i + 1 == WORDS       ? keys
                  : begins[i + 1] != 0 ? (i + 1) * WARP + __ffs((int)begins[i + 1]) - 1
                                       : next[i + 1];
#pragma unroll
    for (i = 0; i <= WORDS; ++i) {
        unsigned left = i < WORDS ? begins[i] : keys < ROWS;
        while (left) {
            const int at = i < WORDS ? i * WARP + __ffs((int)left) - 1 : keys;
            left &= left - 1;
            const int end = i == WORDS ? (int)ROWS : left ? i * WARP + __ffs((int)left) - 1 : next[i];
            const int size = end - at, before = size & ((1 << bit) - 1);
            if (size >> bit & 1 && slab < L::SLABS) {
                const uint32_t to = tile + (uint32_t)((slab * L::KEYS + own + at + before) * 128);
                const int token = i < WORDS ? row[at] + before : tokens;
                if (HOPPER_CLUSTER == 1)
                    svg2__tma_load_4d(to, box + bit, bar, slab * 64, token, head, batch);
                else
                    svg2__tma_load_4d_multicast(to, box + bit, bar, slab * 64, token, head, batch,
                                                (1 << HOPPER_CLUSTER) - 1);
            }
        }
    }
}

/* Tile of K (which = 0) or V; not virtual ones, and not without maps. */
template <class L>
SVG2__DEVICE bool load_mapped(const hopper_maps<true> &maps, const attention_args &a, int which, int is_tail,
                              const tile_rows &from, const int32_t *row, int keys, uint32_t tile,
                              uint32_t bar)
{
    if (is_tail || !maps.is_there[which]) return false;
    publish(bar, L::TILE);
    if (svg2__fresh((int)threadIdx.x) < WARP) {
        const int kv = from.kv - maps.begin[which];
        load_boxes<L>(maps.box[which], kv % maps.heads[which], kv / maps.heads[which], a.tokens_kv, row, keys,
                      tile, bar);
    }
    return true;
}
#endif
template <class L>
SVG2__DEVICE bool load_mapped(const hopper_maps<false> &, const attention_args &, int, int, const tile_rows &,
                              const int32_t *, int, uint32_t, uint32_t)
{
    return false;
}

/* Item n, to this block, and in a cluster its rows to both: cut into steps of 64, as evenly as that goes. By
   the block that takes the items, one thread. */
template <class L> SVG2__DEVICE void give_item(attention_item x, int n, unsigned char *smem)
{
    const uint32_t base = svg2__smem(smem), full = base + L::ITEM_FULL + 8 * (uint32_t)(n & 1);
    attention_item *slot = shared_at<attention_item>(smem, L::ITEM) + (n & 1);
    if (HOPPER_CLUSTER > 1) {
        const int own = min(x.count, ((x.count + 63) / 64 + 1) / 2 * 64), rest = x.count - own;
        if (L::SKIPS) {
            const int middle = x.first + x.count / 2, place = (int)L::PLACE + 16 * (n & 1);
            *shared_at<int32_t>(smem, place) = middle;
            svg2__store_remote(svg2__mapa(base + (uint32_t)place, 1), middle, 0, 0, 0);
        }
        svg2__store_remote(svg2__mapa(base + L::ITEM + 16 * (uint32_t)(n & 1), 1), x.head, x.block,
                           x.first + own, rest == 0 && own > 0 ? (int)HOPPER_NO_ROWS : rest);
        svg2__mbar_arrive_remote(svg2__mapa(full, 1));
        x.count = own;
    }
    *slot = x;
    svg2__mbar_arrive(full);
}

SVG2__DEVICE bool takes_items() { return HOPPER_CLUSTER == 1 || svg2__cluster_rank() == 0; }
/* Else this block only brings its part of K and V to the other one, and passes everything on. */
SVG2__DEVICE bool has_rows(const attention_item *slot) { return HOPPER_CLUSTER == 1 || slot->count > 0; }

/* Keys, values, queries and matrices of the items that this block takes, one after the other. */
template <class T, int DP, bool SKIP, bool TMA>
SVG2__DEVICE void hopper_load(const attention_args &a, const hopper_maps<TMA> &maps, unsigned char *smem)
{
    typedef hopper_smem<DP, SKIP> L;
    enum { KEYS = L::KEYS, STAGES = L::STAGES };
    const uint32_t base = svg2__smem(smem);
    const key_source &source = *shared_at<key_source>(smem, L::SOURCE);
    const tile_rows *stream = shared_at<tile_rows>(smem, L::STREAM);
    int32_t *message = shared_at<int32_t>(smem, L::MESSAGE);
    const uint32_t items = (uint32_t)a.items;
    uint32_t next = blockIdx.x / HOPPER_CLUSTER; /* of one thread: the item that it looks at */
    int key = 0, value = 0, n; /* places of the rings that have been filled so far, and items */

#pragma unroll 1
    for (n = 0;; ++n) {
        attention_item *slot = shared_at<attention_item>(smem, L::ITEM) + (n & 1);
        if (svg2__fresh((int)threadIdx.x) == 0 && takes_items()) {
            attention_item x;
            x.head = x.block = x.first = x.count = 0;
            for (; next < items; next = gridDim.x / HOPPER_CLUSTER + atomicAdd(a.next, 1u)) {
                x = a.item[next];
                if (x.count) break;
            }
            /* both warpgroups, of all blocks, are done with the item before the last one */
            if (!SVG2__FAULT(118))
                wait_blocks(base + L::ITEM_EMPTY + 8 * (uint32_t)(n & 1), (n >> 1 & 1) ^ 1);
            give_item<L>(x, n, smem);
            /* used after this item: the answer has time */
            if (x.count) next = gridDim.x / HOPPER_CLUSTER + atomicAdd(a.next, 1u);
        } else if (svg2__fresh((int)threadIdx.x) == 0) {
            wait_blocks(base + L::ITEM_FULL + 8 * (uint32_t)(n & 1), n >> 1 & 1);
        }
        L::wait(); /* the item is there */
        /* where another block hands them out: nobody here looks at the item before this one any more */
        if (!takes_items() && n && svg2__fresh((int)threadIdx.x) == 0)
            svg2__mbar_arrive_remote(svg2__mapa(base + L::ITEM_EMPTY + 8 * (uint32_t)((n - 1) & 1), 0));
        if (slot->count == 0) break;
        int is_tail = 0, tile;
#pragma unroll 1
        for (;; is_tail = 1) {
            if (svg2__fresh((int)threadIdx.x) == 0) {
                begin_phase<T, L>(a, *slot, smem, is_tail != 0);
                if (HOPPER_CLUSTER > 1 && SKIP) /* where the tiles begin: the same in both blocks */
                    shared_at<key_source>(smem, L::SOURCE)->place =
                        *shared_at<int32_t>(smem, L::PLACE + 16 * (n & 1));
            }
            L::wait(); /* source, stream and list are there */
            if (SKIP && !is_tail && a.skip == SVG2_SKIP_RECALL) { /* how many keys there will be */
                int32_t mine = 0, all, first;
                for (int i = svg2__fresh((int)threadIdx.x); i < source.blocks; i += HOPPER_GROUP)
                    mine += max(source_rows(source, i, first), 0);
                (void)scan_threads<HOPPER_GROUP, L>(mine, shared_at<int32_t>(smem, L::SCAN), all);
                if (svg2__fresh((int)threadIdx.x) == 0) shared_at<int32_t>(smem, L::TOTAL)[n & 1] = all;
                if (!SVG2__FAULT(74)) L::wait(); /* nobody reads the sums of the warps any more */
            }
#pragma unroll 1
            for (tile = -1;; ++tile) {
                if (tile >= 0) {
                    L::wait(); /* its row numbers are there; nobody reads those of the tile before */
                    const int keys = shared_at<int32_t>(smem, L::INFO)[tile & 1];
                    if (keys) {
                        const int32_t *row = shared_at<int32_t>(smem, L::ROW) + (tile & 1) * KEYS;
                        const uint32_t k = (uint32_t)(key % STAGES), v = (uint32_t)(value % STAGES);
                        /* both warpgroups have read K, bias and message that were here */
                        if (!SVG2__FAULT(101)) wait_empty<STAGES>(base + L::KEY_EMPTY, key);
                        ++key;
                        if (svg2__fresh((int)threadIdx.x) == 0)
                            message[k] = is_tail ? keys | HOPPER_TAIL : keys;
#pragma unroll 1
                        for (int i = svg2__fresh((int)threadIdx.x); i < KEYS && is_tail; i += HOPPER_GROUP)
                            shared_at<float>(smem, L::BIAS)[k * KEYS + i] = key_bias(source, row[i]);
                        if (!load_mapped<L>(maps, a, 0, is_tail, stream[0], row, keys,
                                            base + L::KEY + k * L::TILE, base + L::KEY_FULL + 8 * k)) {
                            if (has_rows(slot))
                                load_tile<T, DP, L>((const T *)stream[0].data, stream[0].stride,
                                                    stream[0].chunks, row, base + L::KEY + k * L::TILE);
                            publish(base + L::KEY_FULL + 8 * k);
                        }
                        if (!SVG2__FAULT(102)) wait_empty<STAGES>(base + L::VALUE_EMPTY, value); /* and V */
                        ++value;
                        if (!load_mapped<L>(maps, a, 1, is_tail, stream[1], row, keys,
                                            base + L::VALUE + v * L::TILE, base + L::VALUE_FULL + 8 * v)) {
                            if (has_rows(slot))
                                load_tile<T, DP, L>((const T *)stream[1].data, stream[1].stride,
                                                    stream[1].chunks, row, base + L::VALUE + v * L::TILE);
                            publish(base + L::VALUE_FULL + 8 * v);
                        }
                    }
                    if (tile == 0 && !is_tail) { /* behind it: those of the item before may still be needed */
                        const item_head x = head_of(a, *slot);
                        if (!SVG2__FAULT(104)) wait_phase(base + L::QUERY_EMPTY, (n & 1) ^ 1);
                        if (has_rows(slot))
                            load_queries<T, DP, L::ROWS, L>(
                                a.q, a.query_order ? a.query_order + x.bh * a.tokens : NULL, x.batch, x.head,
                                slot->first, slot->count, a.dim, a.sign, smem + L::QUERY);
                        publish(base + L::QUERY_FULL);
                    }
                    if (!keys) break;
                }
                find_rows<L, SKIP>(source, smem, tile + 1);
            }
            if (is_tail || slot->block >= a.tail_query_blocks) break;
        }
        wait_empty<STAGES>(base + L::KEY_EMPTY, key);
        if (svg2__fresh((int)threadIdx.x) == 0) message[key % STAGES] = 0; /* no more tiles */
        publish(base + L::KEY_FULL + 8 * (uint32_t)(key % STAGES));
        ++key;
        if (!is_tail || tile == 0 || !a.tail_matrix) continue;
        /* The matrix in strips of KEYS rows (of the key's dimensions), by the way of V; bf16 whatever T is:
           its range holds any covariance. */
        const float *matrix =
            a.tail_matrix + ((int64_t)slot->head * a.tail_query_blocks + slot->block) * a.dim * a.dim;
#pragma unroll 1
        for (int strip = 0; strip < DP; strip += KEYS, ++value) {
            const uint32_t at = (uint32_t)(value % STAGES);
            /* nobody reads this place any more */
            if (!SVG2__FAULT(117)) wait_empty<STAGES>(base + L::VALUE_EMPTY, value);
#pragma unroll 2
            for (int i = svg2__fresh((int)threadIdx.x);
                 i < min((int)KEYS, DP - strip) * (DP / 8) && has_rows(slot); i += HOPPER_GROUP) {
                const int r = i / (DP / 8), c = i % (DP / 8);
                float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
                if (strip + r < a.dim && c * 8 < a.dim)
                    load_matrix8(x, matrix + (int64_t)(strip + r) * a.dim + c * 8, a.is_matrix_vector != 0);
                *(uint4 *)(void *)(smem + L::VALUE + at * L::TILE + L::at(r, c)) = pack8<__nv_bfloat16>(x);
            }
            publish(base + L::VALUE_FULL + 8 * at);
        }
    }
    svg2__cp_async_commit();
    svg2__cp_async_wait<0>(); /* no thread ends before its copies */
}

/* ---- the warpgroups that compute ---- */
/* Where a warpgroup stands: it sees all tiles, and computes all of them or every second one. */
struct hopper_place {
    int key, value; /* tiles of K and of V that it has seen so far, of all items           */
    int group;      /* 0 or 1                                                              */
    int is_split;   /* the tiles of the item are shared out: even ones to 0, odd ones to 1 */
    int tile;       /* of the item                                                         */
    int had_tail;
    int passes;     /* (in a cluster) the rows are all the other block's: no tile is computed */
};

/* Row g (h = 0) or g + 8 of this thread among those of the item, and its token. */
SVG2__DEVICE int row_of(const hopper_place &p, int h)
{
    const int t = svg2__fresh((int)threadIdx.x) % HOPPER_GROUP;
    return t / WARP * 16 + t % WARP / 4 + 8 * h + (p.is_split ? 0 : 64 * p.group);
}
SVG2__DEVICE int token_of(const attention_args &a, const attention_item &item, const item_head &x, int row)
{
    return a.query_order ? a.query_order[x.bh * a.tokens + item.first + row] : item.first + row;
}

/* The next tile of this warpgroup, when its K is there: the message, 0 = there is none; and the place of its
   V. Tiles of the other warpgroup are passed on: not before they are there, else the arrival would count for
   the phase before. */
template <class L>
SVG2__DEVICE int next_tile(hopper_place &p, uint32_t base, const unsigned char *smem, int &v)
{
    for (;;) {
        const int k = p.key++ % L::STAGES;
        if (!SVG2__FAULT(105)) wait_full<L::STAGES>(base + L::KEY_FULL, p.key - 1);
        /* the same in all lanes, which the compiler then knows */
        const int message =
            __shfl_sync(0xffffffffu, ((const int32_t *)(const void *)(smem + L::MESSAGE))[k], 0);
        if (message == 0) {
            release(base + L::KEY_EMPTY + 8 * (uint32_t)k);
            return 0;
        }
        if (message & HOPPER_TAIL) p.had_tail = 1;
        v = p.value++;
        if ((HOPPER_CLUSTER == 1 || !p.passes) && (!p.is_split || (p.tile++ & 1) == p.group)) return message;
        release(base + L::KEY_EMPTY + 8 * (uint32_t)k);
        if (!SVG2__FAULT(106)) wait_full<L::STAGES>(base + L::VALUE_FULL, v);
        release(base + L::VALUE_EMPTY + 8 * (uint32_t)(v % L::STAGES));
    }
}

/* Everything of item n, which has no rows for this block, is passed on when it is there. */
template <class L>
SVG2__DEVICE void pass_item(hopper_place &p, const attention_args &a, uint32_t base,
                            const unsigned char *smem, int n)
{
    int v = 0;
    p.passes = 1;
    p.had_tail = 0;
    wait_phase(base + L::QUERY_FULL, n & 1);
    (void)next_tile<L>(p, base, smem, v);
    p.passes = 0;
    for (int strip = 0; strip < L::DIM && p.had_tail && a.tail_matrix; strip += L::KEYS, ++p.value) {
        wait_full<L::STAGES>(base + L::VALUE_FULL, p.value);
        release(base + L::VALUE_EMPTY + 8 * (uint32_t)(p.value % L::STAGES));
    }
    release_own(base + L::QUERY_EMPTY);
    release_item(base + L::ITEM_EMPTY + 8 * (uint32_t)(n & 1));
}

/* an array of fragments of 8 columns as the accumulators of wgmma */
template <int N> SVG2__DEVICE float (&accumulators(float (&d)[N][4]))[4 * N]
{
    return *(float (*)[4 * N])(void *)&d[0][0];
}

/* s (64 x KEYS) = Q K^T, one group; q: the rows of the warpgroup */
template <class T, class L>
SVG2__DEVICE void multiply_keys(float (&s)[L::KEYS / 8][4], uint32_t q, uint32_t k)
{
    const uint64_t qd = tile_desc<64>(q), kd = tile_desc<64>(k);
#pragma unroll
    for (int e = 0; e < L::DIM / 16; ++e)
        svg2__wgmma_ss<0>(accumulators(s), qd + (uint64_t)((e / 4 * 64 * 128 + e % 4 * 32) >> 4),
                          kd + (uint64_t)((e / 4 * L::KEYS * 128 + e % 4 * 32) >> 4), e != 0, T());
    svg2__wgmma_commit();
}

/* o (64 x DIM) += P V of STEPS times 16 keys, from step FROM on, one group */
template <class T, class L, int FROM = 0, int STEPS = L::KEYS / 16>
SVG2__DEVICE void add_values(float (&o)[L::DIM / 8][4], const uint32_t (&p)[L::KEYS / 16][4], uint32_t v)
{
    const uint64_t vd = slab_desc(v, L::KEYS * 128);
#pragma unroll
    for (int n = FROM; n < FROM + STEPS; ++n)
        svg2__wgmma_rs<1>(accumulators(o), p[n], vd + (uint64_t)((n * 16 * 128) >> 4), 1, T());
    svg2__wgmma_commit();
}

/* The same from beginning to end, at once. */
template <class T, class L, int FROM, int STEPS>
SVG2__DEVICE void add_steps(float (&o)[L::DIM / 8][4], uint32_t (&p)[L::KEYS / 16][4], uint32_t v)
{
    svg2__wgmma_hold(accumulators(o));
    svg2__wgmma_hold(p);
    svg2__wgmma_fence();
    add_values<T, L, FROM, STEPS>(o, p, v);
    svg2__wgmma_wait<0>();
    svg2__wgmma_hold(accumulators(o));
}

/* The parts of tile v that are kept, when it is there; it is released at the end. Products under a condition need
   a group and a wait of their own: ptxas serialises what is under way across a branch (C7520). */
template <class T, class L>
SVG2__DEVICE void add_tile(float (&o)[L::DIM / 8][4], uint32_t (&p)[L::KEYS / 16][4], int v, int kept,
                           uint32_t base)
{
    enum { STEPS = L::KEYS / 16, HALF = STEPS / L::PARTS };
    const uint32_t place = (uint32_t)(v % L::STAGES), at = base + L::VALUE + place * L::TILE;
    wait_full<L::STAGES>(base + L::VALUE_FULL, v);
    fence_tile();
    if (!L::SKIPS || kept == (1 << L::PARTS) - 1) add_steps<T, L, 0, STEPS>(o, p, at);
    else if (L::PARTS == 2 && kept == 1) add_steps<T, L, 0, HALF>(o, p, at);
    else if (L::PARTS == 2 && kept == 2) add_steps<T, L, HALF, STEPS - HALF>(o, p, at);
    release(base + L::VALUE_EMPTY + 8 * place);
}

/* Logits of a tile, when the products are done: of virtual keys with their bias; -Inf behind the last one. K,
   bias and message are then released. */
template <class L>
SVG2__DEVICE void finish_logits(float (&s)[L::KEYS / 8][4], int message, const attention_args &a,
                                const float (&shift)[2], int k, uint32_t base, const unsigned char *smem)
{
    enum { KEYS = L::KEYS };
    const int keys = message & (HOPPER_TAIL - 1), quad = svg2__fresh((int)threadIdx.x) % 4;
    int n, e;
    if (message & HOPPER_TAIL) {
        const float *bias = (const float *)(const void *)(smem + L::BIAS) + k * KEYS + 2 * quad;
#pragma unroll
        for (n = 0; n < KEYS / 8; ++n)
#pragma unroll
            for (e = 0; e < 4; ++e)
                s[n][e] = fmaf(s[n][e], a.scale2,
                               bias[8 * n + e % 2] + (a.is_relative ? 0.0f : shift[e / 2]));
    }
    release(base + L::KEY_EMPTY + 8 * (uint32_t)k);
    if (keys < KEYS) {
        const int left = keys - 2 * quad;
#pragma unroll
        for (n = 0; n < KEYS / 8; ++n)
#pragma unroll
            for (e = 0; e < 4; ++e)
                if (8 * n + e % 2 >= left) s[n][e] = -INFINITY;
    }
}

/* What the softmax of a thread's two rows, g and g + 8, has so far. */
struct softmax_rows {
    float m[2], l[2], exact[2]; /* maximum; this lane's part of the sum, and of it the exact keys' */
};

/* Logits become weights; alpha: what all before is to be multiplied by. */
template <int N>
SVG2__DEVICE void weigh_tile(float (&s)[N][4], float factor, bool is_tail, softmax_rows &r, float (&alpha)[2])
{
    float top[2], sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        top[h] = fmaxf(r.m[h], tile_top(s, h, factor));
        const float before = r.m[h];
        r.m[h] = top[h];
        if (top[h] == -INFINITY) top[h] = 0.0f; /* nothing but -Inf so far: keep exp2 away from Inf - Inf */
        alpha[h] = svg2__exp2(before - top[h]);
    }
    weigh(s, factor, top, sum);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
        r.l[h] = fmaf(r.l[h], alpha[h], sum[h]);
        r.exact[h] = is_tail ? r.exact[h] * alpha[h] : r.l[h];
    }
}

/* Under a skip rule, of a thread's two rows: what they have lost, in units of 2^m; estimates of their LSE (-Inf:
   none); whether they are there. */
struct skip_rows {
    float lost[2], seed[2];
    bool  is_there[2];
    float most, share; /* 16 / parts of the item; of what a row may lose, this warpgroup's */
    int   keys, turn;  /* kept so far, of exact ones; votes so far                         */
};

/* The weights of the parts of a tile of exact keys that are kept: bit i of the result, the same in all threads of
   the warpgroup. A part is left out if all of its rows agree. All parts are judged by what was before the tile, so
   that there is one vote a tile: of recall, a later part as if those before it, as far as the row agrees, were
   left out. keys: of the tile. */
template <class L>
SVG2__DEVICE int weigh_or_leave_parts(const attention_args &a, float (&s)[L::KEYS / 8][4], softmax_rows &r,
                                      skip_rows &x, int keys, int group, unsigned char *smem,
                                      float (&alpha)[2])
{
    enum { PART = L::KEYS / 8 / L::PARTS, ALL = (1 << L::PARTS) - 1 };
    typedef float part_of[PART][4];
    const bool is_recall = a.skip == SVG2_SKIP_RECALL;
    float top[L::PARTS][2], sum[L::PARTS][2], most[2], zero[2];
    int kept = 0, part, h;
#pragma unroll
    for (h = 0; h < 2; ++h) {
        most[h] = r.m[h];
#pragma unroll
        for (part = 0; part < L::PARTS; ++part) {
            top[part][h] = tile_top(*(part_of *)(void *)s[part * PART], h, a.scale2);
            sum[part][h] = 0.0f;
            most[h] = fmaxf(most[h], top[part][h]);
        }
        zero[h] = most[h] == -INFINITY ? 0.0f : most[h];
        alpha[h] = svg2__exp2(r.m[h] - zero[h]);
    }
    if (is_recall) {
#pragma unroll
        for (part = 0; part < L::PARTS; ++part)
            weigh(*(part_of *)(void *)s[part * PART], a.scale2, zero, sum[part]);
    }
#pragma unroll
    for (h = 0; h < 2; ++h) {
        float lost = x.lost[h] * alpha[h];
        const float limit =
            is_recall ? x.share * recall_limit(a, r.l[h], alpha[h], x.seed[h], most[h]) : 0.0f;
#pragma unroll
        for (part = 0; part < L::PARTS; ++part) {
            bool does_leave;
            if (is_recall) {
                const float u = quad_sum(sum[part][h]);
                does_leave = may_lose(u, lost, limit, x.most, alpha[h]);
                if (does_leave) lost += u;
            } else {
                does_leave = does_without(a, top[part][h], tile_odd(*(part_of *)(void *)s[part * PART], h),
                                          r.m[h], r.l[h], x.seed[h]);
            }
            if (x.is_there[h] && !does_leave) kept |= 1 << part;
        }
    }
#pragma unroll
    for (part = 0; part < L::PARTS; ++part)
        if (__any_sync(0xffffffffu, kept >> part & 1)) kept |= 1 << part;
    const int t = svg2__fresh((int)threadIdx.x) % HOPPER_GROUP;
    unsigned char *vote = smem + L::VOTE + group * 8 + (x.turn++ & 1) * 4; /* two, so that one barrier does */
    if (t % WARP == 0) vote[t / WARP] = (unsigned char)kept;
    __syncwarp(); /* the warp is one again: the barrier is for whole warps */
    if (!SVG2__FAULT(75)) svg2__bar_sync(BARRIER_VOTE + (uint32_t)group, HOPPER_GROUP); /* all four are there */
    uint32_t votes = *(const uint32_t *)(const void *)vote;
    votes |= votes >> 16;
    /* the same in all lanes, which the compiler then knows */
    kept = __shfl_sync(0xffffffffu, (int)(votes | votes >> 8) & ALL, 0);

#pragma unroll
    for (h = 0; h < 2; ++h) {
        if (is_recall) {
            float lost = 0.0f, stays = 0.0f;
#pragma unroll
            for (part = 0; part < L::PARTS; ++part) {
                if (kept >> part & 1) stays += sum[part][h];
                else lost += quad_sum(sum[part][h]);
            }
            if (kept) {
                x.lost[h] = x.lost[h] * alpha[h] + lost;
                r.l[h] = fmaf(r.l[h], alpha[h], stays);
                r.m[h] = most[h];
            } else {
                x.lost[h] += lost / alpha[h];
                alpha[h] = 1.0f;
            }
        } else {
            float after = r.m[h];
#pragma unroll
            for (part = 0; part < L::PARTS; ++part)
                if (kept >> part & 1) after = fmaxf(after, top[part][h]);
            zero[h] = after == -INFINITY ? 0.0f : after;
            alpha[h] = svg2__exp2(r.m[h] - zero[h]);
            r.m[h] = after;
        }
    }
#pragma unroll
    for (part = 0; part < L::PARTS; ++part) {
        if (!(kept >> part & 1)) continue;
        x.keys += min(max(keys - part * 8 * PART, 0), 8 * PART);
        if (!is_recall) weigh(*(part_of *)(void *)s[part * PART], a.scale2, zero, sum[part]);
    }
#pragma unroll
    for (h = 0; h < 2; ++h) {
        if (!is_recall) {
            r.l[h] *= alpha[h];
#pragma unroll
            for (part = 0; part < L::PARTS; ++part) r.l[h] += sum[part][h];
        }
        r.exact[h] = r.l[h];
    }
    return kept;
}

/* The weights of the tile that a message speaks of. Virtual keys are never left out. */
template <class L>
SVG2__DEVICE int weigh_next(const attention_args &a, float (&s)[L::KEYS / 8][4], softmax_rows &r, skip_rows &x,
                            int message, int group, unsigned char *smem, float (&alpha)[2])
{
    const bool is_tail = (message & HOPPER_TAIL) != 0;
    if (L::SKIPS && !is_tail) return weigh_or_leave_parts<L>(a, s, r, x, message, group, smem, alpha);
    weigh_tile(s, is_tail ? 1.0f : a.scale2, is_tail, r, alpha);
    return (1 << L::PARTS) - 1;
}

/* q.key_mean of a row as mean_logit, by the four lanes of a quad, each with every fourth chunk. */
template <class T>
SVG2__DEVICE float mean_logit_quad(const tensor &q, int64_t row, int dim, const float *mean, bool is_rounded)
{
    float sum = 0.0f, x[8];
#pragma unroll 1
    for (int e = svg2__fresh((int)threadIdx.x) % 4 * 8; e < dim; e += 32) {
        load8(x, q, row, e);
        for (int n = 0; n < 8; ++n)
            sum = fmaf(is_rounded ? to_float(round_to(x[n], T())) : x[n], mean[e + n], sum);
    }
    return quad_sum(sum);
}

/* Warpgroup 1's part of rows that both have computed, with other keys, is added to that of warpgroup 0. In
   the spare half of the query tile, in the order of its threads: the same thread has the same place of the
   rows. */
template <int DP>
SVG2__DEVICE void merge_groups(float (&o)[DP / 8][4], softmax_rows &r, int group, unsigned char *spare)
{
    enum { PART = DP / 16 }; /* fragments of a round */
    const int t = svg2__fresh((int)threadIdx.x) % HOPPER_GROUP;
    float *mine = (float *)(void *)spare + t, scale[2] = {0.0f, 0.0f};
    int h, n, e;
    if (group == 1) {
#pragma unroll
        for (h = 0; h < 2; ++h) {
            mine[(3 * h + 0) * HOPPER_GROUP] = r.m[h];
            mine[(3 * h + 1) * HOPPER_GROUP] = r.l[h];
            mine[(3 * h + 2) * HOPPER_GROUP] = r.exact[h];
        }
    }
    if (!SVG2__FAULT(107)) svg2__bar_sync(BARRIER_MERGE, 2 * HOPPER_GROUP); /* its sums are there */
    if (group == 0) {
        float alpha[2];
#pragma unroll
        for (h = 0; h < 2; ++h) {
            const float m = mine[(3 * h + 0) * HOPPER_GROUP], top = fmaxf(r.m[h], m);
            const float zero = top == -INFINITY ? 0.0f : top;
            alpha[h] = svg2__exp2(r.m[h] - zero);
            scale[h] = svg2__exp2(m - zero);
            r.m[h] = top;
            r.l[h] = r.l[h] * alpha[h] + mine[(3 * h + 1) * HOPPER_GROUP] * scale[h];
            r.exact[h] = r.exact[h] * alpha[h] + mine[(3 * h + 2) * HOPPER_GROUP] * scale[h];
        }
        rescale_output(o, alpha);
    }
#pragma unroll
    for (int round = 0; round < 2; ++round) {
        /* warpgroup 0 has read what stands there */
        if (!SVG2__FAULT(108)) svg2__bar_sync(BARRIER_MERGE, 2 * HOPPER_GROUP);
        if (group == 1) {
#pragma unroll
            for (n = 0; n < PART; ++n)
#pragma unroll
                for (e = 0; e < 4; ++e) mine[(4 * n + e) * HOPPER_GROUP] = o[round * PART + n][e];
        }
        if (!SVG2__FAULT(109)) svg2__bar_sync(BARRIER_MERGE, 2 * HOPPER_GROUP); /* these columns are there */
        if (group == 0) {
#pragma unroll
            for (n = 0; n < PART; ++n)
#pragma unroll
                for (e = 0; e < 4; ++e)
                    o[round * PART + n][e] =
                        fmaf(mine[(4 * n + e) * HOPPER_GROUP], scale[e / 2], o[round * PART + n][e]);
        }
    }
}

/* One warpgroup: 64 rows of each item, or every second tile of them. */
template <class T, int DP, bool SKIP, bool OVERLAP, bool PINGPONG>
SVG2__DEVICE void hopper_compute(const attention_args &a, unsigned char *smem)
{
    typedef hopper_smem<DP, SKIP> L;
    enum { KEYS = L::KEYS, STAGES = L::STAGES };
    const uint32_t base = svg2__smem(smem);
    hopper_place p;
    float o[DP / 8][4], s[KEYS / 8][4], alpha[2];
    uint32_t w[KEYS / 16][4];
    int n, h, e, i;
    skip_rows skip;
    skip.turn = 0;
    p.key = p.value = p.passes = 0;
    p.group = __shfl_sync(0xffffffffu, (int)threadIdx.x / HOPPER_GROUP - 1, 0);
    if (PINGPONG && p.group == 1) svg2__bar_arrive(BARRIER_TURN, 2 * HOPPER_GROUP); /* warpgroup 0 begins */

#pragma unroll 1
    for (n = 0;; ++n) {
        if (!SVG2__FAULT(119)) wait_blocks(base + L::ITEM_FULL + 8 * (uint32_t)(n & 1), n >> 1 & 1);
        const attention_item &item = shared_at<attention_item>(smem, L::ITEM)[n & 1];
        const int count = __shfl_sync(0xffffffffu, item.count, 0);
        if (count == 0) break;
        if (HOPPER_CLUSTER > 1 && count < 0) {
            pass_item<L>(p, a, base, smem, n);
            continue;
        }
        softmax_rows r;
        float shift[2];
        p.is_split = count <= 64;
        p.tile = p.had_tail = 0;
        const uint32_t q = base + (uint32_t)(L::QUERY + (p.is_split ? 0 : p.group * L::HALF));
#pragma unroll
        for (h = 0; h < 2; ++h) {
            r.m[h] = -INFINITY;
            r.l[h] = r.exact[h] = shift[h] = 0.0f;
            const item_head x = head_of(a, item);
            const int row = row_of(p, h), token = token_of(a, item, x, min(row, item.count - 1));
            if (a.key_mean
                && (a.is_relative ? a.lse || (SKIP && a.lse_seed) : item.block < a.tail_query_blocks))
                shift[h] = a.sign * a.scale2
                           * mean_logit_quad<T>(a.q, row_at(a.q, x.batch, x.head, token), a.dim,
                                                a.key_mean + x.kv * a.dim, !a.is_relative);
            if (SKIP) {
                skip.is_there[h] = row < item.count;
                skip.lost[h] = 0.0f;
                skip.seed[h] = a.lse_seed && skip.is_there[h]
                                   ? (a.lse_seed[x.bh * a.tokens + token] - 0.25f) * 1.44269504f
                                         - (a.is_relative ? shift[h] : 0.0f)
                                   : -INFINITY;
            }
        }
#pragma unroll
        for (i = 0; i < DP / 8; ++i) o[i][0] = o[i][1] = o[i][2] = o[i][3] = 0.0f;

        if (!SVG2__FAULT(110)) wait_phase(base + L::QUERY_FULL, n & 1); /* the queries are there */
        fence_tile();
        int v = 0, v_next = 0, now = next_tile<L>(p, base, smem, v), kept = 0;
        const bool has_tile = now != 0;
        if (SKIP) {
            /* Each warpgroup of a split item has an account of its own with what it has kept; but of what an
               estimate promises, only a half. */
            skip.share = p.is_split && a.lse_seed ? 0.5f : 1.0f;
            skip.most = 0.0f;
            if (a.skip == SVG2_SKIP_RECALL && now) {
                const int all = shared_at<int32_t>(smem, L::TOTAL)[n & 1];
                enum { PART = hopper_tiles<DP, SKIP>::PART };
                const int parts = (all + PART - 1) / PART;
                skip.most = 16.0f / (float)(p.is_split ? (parts + 1) / 2 : parts);
            }
            skip.keys = 0;
        }
        if (OVERLAP) {
            if (now) {
                fence_tile();
                svg2__wgmma_hold(accumulators(s));
                svg2__wgmma_fence();
                multiply_keys<T, L>(s, q, base + (uint32_t)(L::KEY + (p.key - 1) % STAGES * L::TILE));
                svg2__wgmma_wait<0>();
                svg2__wgmma_hold(accumulators(s));
                finish_logits<L>(s, now, a, shift, (p.key - 1) % STAGES, base, smem);
                kept = weigh_next<L>(a, s, r, skip, now, p.group, smem, alpha);
#pragma unroll
                for (i = 0; i < KEYS / 16; ++i) pack_weights<T>(w[i], s, i);
            }
#pragma unroll 1
            while (now && (now = next_tile<L>(p, base, smem, v_next)) != 0) {
                const int k = (p.key - 1) % STAGES;
                /* V of the tile before; it was asked for before K, so that this is no wait of its own */
                if (!SVG2__FAULT(111)) wait_full<STAGES>(base + L::VALUE_FULL, v);
                if (PINGPONG && !p.is_split) svg2__bar_sync(BARRIER_TURN + p.group, 2 * HOPPER_GROUP);
                fence_tile();
                svg2__wgmma_hold(accumulators(s));
                svg2__wgmma_hold(accumulators(o));
                svg2__wgmma_hold(w);
                if (!SVG2__FAULT(115)) svg2__wgmma_fence(); /* S, O and P are the products' from here on */
                multiply_keys<T, L>(s, q, base + (uint32_t)(L::KEY + k * L::TILE));
                add_values<T, L>(o, w, base + (uint32_t)(L::VALUE + v % STAGES * L::TILE));
                if (PINGPONG && !p.is_split) svg2__bar_arrive(BARRIER_TURN + 1 - p.group, 2 * HOPPER_GROUP);
                if (SVG2__FAULT(112)) release(base + L::VALUE_EMPTY + 8 * (uint32_t)(v % STAGES));
                if (!SVG2__FAULT(113)) svg2__wgmma_wait<1>(); /* S */
                svg2__wgmma_hold(accumulators(s));
                finish_logits<L>(s, now, a, shift, k, base, smem);
                kept = weigh_next<L>(a, s, r, skip, now, p.group, smem, alpha);
                svg2__wgmma_wait<0>(); /* P V of the tile before */
                svg2__wgmma_hold(accumulators(o));
                if (!SVG2__FAULT(112)) release(base + L::VALUE_EMPTY + 8 * (uint32_t)(v % STAGES));
                rescale_output(o, alpha);
#pragma unroll
                for (i = 0; i < KEYS / 16; ++i) pack_weights<T>(w[i], s, i);
                v = v_next;
            }
        } else {
#pragma unroll 1
            for (; now; now = next_tile<L>(p, base, smem, v)) {
                const int k = (p.key - 1) % STAGES;
                if (PINGPONG && !p.is_split) svg2__bar_sync(BARRIER_TURN + p.group, 2 * HOPPER_GROUP);
                fence_tile();
                svg2__wgmma_hold(accumulators(s));
                svg2__wgmma_fence();
                multiply_keys<T, L>(s, q, base + (uint32_t)(L::KEY + k * L::TILE));
                if (PINGPONG && !p.is_split) svg2__bar_arrive(BARRIER_TURN + 1 - p.group, 2 * HOPPER_GROUP);
                svg2__wgmma_wait<0>();
                svg2__wgmma_hold(accumulators(s));
                finish_logits<L>(s, now, a, shift, k, base, smem);
                kept = weigh_next<L>(a, s, r, skip, now, p.group, smem, alpha);
                rescale_output(o, alpha);
#pragma unroll
                for (i = 0; i < KEYS / 16; ++i) pack_weights<T>(w[i], s, i);
                add_tile<T, L>(o, w, v, kept, base);
            }
        }

        const bool has_matrix = p.had_tail && a.tail_matrix;
        if (!has_matrix && !p.is_split) release_own(base + L::QUERY_EMPTY); /* already: for the next ones */
        if (OVERLAP && has_tile) add_tile<T, L>(o, w, v, kept, base);
        if (p.is_split) merge_groups<DP>(o, r, p.group, smem + L::QUERY + L::HALF);
        if (SKIP && a.stats && svg2__fresh((int)threadIdx.x) % HOPPER_GROUP == 0) /* integers, in any order */
            atomicAdd((unsigned long long *)(void *)&a.stats[a.head_begin + item.head].pairs_pv,
                      (unsigned long long)(p.is_split ? count : min(count - 64 * p.group, 64))
                          * (unsigned long long)skip.keys);
        const bool is_idle = p.is_split && p.group == 1; /* the rows are the other warpgroup's */

        /* out = o / l, and with a first order out += (tail's part of l) * scale * A^T q */
        float l[2], inverse[2];
#pragma unroll
        for (h = 0; h < 2; ++h) {
            l[h] = quad_sum(r.l[h]);
            inverse[h] = l[h] == 0.0f ? 0.0f : 1.0f / l[h];
        }
        if (has_matrix) {
            float weight[2];
#pragma unroll
            for (h = 0; h < 2; ++h) {
                const float exact = quad_sum(r.exact[h]), part = exact == 0.0f ? 0.0f : exact * inverse[h];
                weight[h] = fmaxf(1.0f - part, 0.0f) * a.scale2 * 0.693147181f;
#pragma unroll
                for (i = 0; i < DP / 8; ++i) {
                    o[i][2 * h] *= inverse[h];
                    o[i][2 * h + 1] *= inverse[h];
                }
                inverse[h] = 1.0f;
            }
#pragma unroll
            for (int strip = 0; strip < DP; strip += KEYS, ++p.value) {
                enum { MOST = KEYS / 16 };
                const int steps = (DP - strip) / 16 < MOST ? (DP - strip) / 16 : MOST;
                if (!SVG2__FAULT(114)) wait_full<STAGES>(base + L::VALUE_FULL, p.value); /* it is there */
                fence_tile();
                const int t = svg2__fresh((int)threadIdx.x) % HOPPER_GROUP, lane = t % WARP;
                const uint64_t md =
                    slab_desc(base + (uint32_t)(L::VALUE + p.value % STAGES * L::TILE), KEYS * 128);
#pragma unroll
                for (i = 0; i < steps; ++i) {
                    const int row = t / WARP * 16 + lane % 16, chunk = strip / 8 + 2 * i + lane / 16;
                    svg2__ldmatrix_x4(w[i], q + (uint32_t)L::query_at(row, chunk));
#pragma unroll
                    for (e = 0; e < 4; ++e) {
                        float lo, hi;
                        unpack2(w[i][e], lo, hi, T());
                        w[i][e] = pack2(lo * weight[e % 2], hi * weight[e % 2], __nv_bfloat16());
                    }
                }
                svg2__wgmma_hold(accumulators(o));
                svg2__wgmma_hold(w);
                svg2__wgmma_fence();
#pragma unroll
                for (i = 0; i < steps; ++i)
                    svg2__wgmma_rs<1>(accumulators(o), w[i], md + (uint64_t)((i * 16 * 128) >> 4), 1,
                                      __nv_bfloat16());
                svg2__wgmma_commit();
                svg2__wgmma_wait<0>();
                svg2__wgmma_hold(accumulators(o));
                release(base + L::VALUE_EMPTY + 8 * (uint32_t)(p.value % STAGES));
            }
        }
        if (has_matrix || p.is_split) release_own(base + L::QUERY_EMPTY);
#pragma unroll
        for (h = 0; h < 2 && !is_idle; ++h) {
            const item_head x = head_of(a, item);
            const int row = row_of(p, h);
            const bool is_there = row < item.count;
            const int token = is_there ? token_of(a, item, x, row) : 0;
            const int quad = svg2__fresh((int)threadIdx.x) % 4;
            store_row<DP / 8>(a, is_there ? row_at(a.out, x.batch, x.head, token) : 0, is_there, o, h,
                              inverse[h], quad);
            if (a.lse && is_there && quad == 0) {
                float lse = l[h] == 0.0f ? -INFINITY : (r.m[h] + log2f(l[h])) * 0.693147181f;
                if (l[h] != 0.0f && a.key_mean && a.is_relative) lse += shift[h] * 0.693147181f;
                a.lse[x.bh * a.tokens + token] = lse;
            }
        }
        release_item(base + L::ITEM_EMPTY + 8 * (uint32_t)(n & 1));
    }
    if (PINGPONG && p.group == 0) svg2__bar_sync(BARRIER_TURN, 2 * HOPPER_GROUP); /* the last one's */
}
#endif /* SVG2__SM90A */

/* One block of 384 threads a multiprocessor: items one after the other, in the order of the plan. Its own
   number first, then whatever the counter says is next: which block computes an item changes no bit of it.

       warpgroup 0, 56 registers    K0 V0 Q | K1 V1 | K2 V2 | ... | Kn Vn | C0 W0 | ... | Cm Wm | A | next K0
         cp.async of rows, into rings of 2 places for K and for V               (tail)     (order 1)
       warpgroups 1 and 2, 224      S0 . | S1 P0 V0 . | S2 P1 V1 . | ...              | Pm Wm | w q A | out
         . = softmax, beside the products of the other one and P V of the tile before

       Q  128 x D in shared memory, 64 rows a warpgroup
       S  = Q K^T          64 x 128 a warpgroup, f32 registers          wgmma m64n128k16, both operands shared
       P  = exp2(scale2 S - m), T: its accumulators are, packed, the fragments of the next product
       O += P V            64 x D, f32 registers                        wgmma m64nDk16, P from registers
       m, l in registers

   What a key list is, how virtual keys follow the exact ones, and what is masked, is as in attention_forward;
   so is the arithmetic but for the order of sums. Of an item of at most 64 rows both warpgroups have all
   rows: one takes the even tiles, the other one the odd ones, and at the end the first adds the second's part
   to its own. With order 1 the matrix comes by the way of V.

   Under a skip rule the rows of a warpgroup decide together, by a vote of its four warps, on each 64 keys of a
   tile; P V of a tile then follows its softmax at once, and only the turns of the two warpgroups overlap the two.

   With SVG2_CUDA_TMA K and V, packed or read where they are, come as boxes of the copy engine (load_boxes),
   issued by one warp; virtual keys, and strides that no tensor map can have, still by cp.async. That a box
   may begin inside the swizzle's pattern is what tests of the operations on a GPU have to show first; until
   then, and until it is faster, it is no default.

   With SVG2_CUDA_MULTICAST, too, an item has up to 256 rows, and a cluster of two blocks takes it:

       rank 0   rows 0 to 127      brings rows 0 to 63 of every tile of K and V, to both
       rank 1   rows 128 to 255    brings rows 64 to 127, to both; gets its items from rank 0

   or less rows in steps of 64, shared out evenly, at most one step more for rank 0; a block without any
   brings and releases. Both walk through the same tiles, virtual ones and strips of the matrix included, so
   that a place of a ring has the same use in both: that is why each full barrier counts all bytes of a tile,
   whoever brings them, and each empty one the warps of both blocks. Virtual keys, queries and matrices stay a
   block's own matter. L2 is then read once for 256 rows, not for 128: with 400 query blocks in 118,800 tokens
   1.66 times a query block in the mean, not 2.82 times. What it costs: an item lasts as long as in the block
   with more rows, there 9.7 % more of the tensor cores' time.

   Every wait has its reason at an mbarrier: a full one (128 threads whose copies have landed, 4 warps whose
   stores are done) before reading, an empty one (8 warps that have read) before overwriting. No thread of the
   warpgroups that compute waits for __syncthreads or for global memory while there are tiles.

   head_dim   keys of   places of   shared memory,   registers      spills   S, O, P of them
   up to      a tile    each ring   bytes            as launched
       64      128        4         155,552          168            0        64, 32, 32
       96      128        2         170,848          168            0        64, 48, 32
      128      128        2         170,848          168            0        64, 64, 32
      256       80        2         232,352          168            0        40, 128, 20
   (nvcc 13.0, sm_90a, with either feed; setmaxnreg then gives 56 and 224. Under a skip rule: 72 and 216; 24 bytes
   more; 64 keys and 202,360 bytes at head_dim 256. 176 keys at head_dim 128: 12 bytes of spills where it loads.
   A wait for V between S and P V, fragments of P that the compiler may still touch behind wgmma.fence, or products
   under a condition beside others, serialise the products: C7520.)

   Limiter, by counting at head_dim 128 (a tile of 128 keys, 128 rows): the products take the tensor cores
   2,048 cycles; 16,384 exp2 take 1,024 and the rest of the softmax some 550 issue slots of each quarter,
   beside them where the two warpgroups take turns; wgmma reads 160 KB of shared memory and the copies write
   64 KB, 1,792 cycles; L2 has to bring 64 KB, 32 bytes a cycle and multiprocessor. So the tensor cores,
   closely followed by shared memory and by L2: K and V of one head should be there, which is why items go
   head by head. At head_dim 64 exp2 takes as long as the products. Not measured; a guess, from
   FlashAttention-3's 650 TFLOP/s with larger tiles, TMA and multicast, and FlashInfer's nine tenths of that
   with cp.async: 500 to 580 at head_dim 128.

   Executed beyond what is useful: rows in steps of 64, 11 % with 400 query blocks in 118,800 tokens; half a
   tile of keys an item, 0.5 % of the 11,880 keys of 10 % density; in an item of 64 rows half a tile once
   more. The tail adds what it adds above. */
template <class T, int DP, bool SKIP, bool TMA>
static __global__ void __launch_bounds__(HOPPER_THREADS, 1)
    attention_hopper(const __grid_constant__ attention_args a, const __grid_constant__ hopper_maps<TMA> maps)
{
#if SVG2__SM90A
    typedef hopper_smem<DP, SKIP> L;
    SVG2_DYN_SMEM(attention_hopper_shared, 1024);
    if (threadIdx.x == 0) {
        const uint32_t base = svg2__smem(attention_hopper_shared);
        if (base % 1024) __trap(); /* the swizzle goes by addresses */
        const uint32_t releases = HOPPER_RELEASES * (SVG2__FAULT(130) ? 1 : HOPPER_CLUSTER);
        for (uint32_t i = 0; i < L::STAGES; ++i) {
            svg2__mbar_init(base + L::KEY_FULL + 8 * i, HOPPER_ARRIVALS);
            svg2__mbar_init(base + L::KEY_EMPTY + 8 * i, releases);
            svg2__mbar_init(base + L::VALUE_FULL + 8 * i, HOPPER_ARRIVALS);
            svg2__mbar_init(base + L::VALUE_EMPTY + 8 * i, releases);
        }
        svg2__mbar_init(base + L::QUERY_FULL, HOPPER_ARRIVALS);
        svg2__mbar_init(base + L::QUERY_EMPTY, HOPPER_RELEASES);
        for (uint32_t i = 0; i < 2; ++i) {
            svg2__mbar_init(base + L::ITEM_FULL + 8 * i, 1);
            /* warps that compute; and that load, of the block that gets them from the other one */
            svg2__mbar_init(base + L::ITEM_EMPTY + 8 * i,
                            HOPPER_RELEASES * HOPPER_CLUSTER + HOPPER_CLUSTER - 1);
        }
        svg2__fence_mbar_init();
    }
    if (HOPPER_CLUSTER == 1 || SVG2__FAULT(131)) __syncthreads(); /* the barriers are there */
    else {
        svg2__cluster_arrive();
        svg2__cluster_wait(); /* in all blocks */
    }
    if (threadIdx.x < HOPPER_GROUP) {
        svg2__registers_less<SKIP ? 72 : 56>();
        hopper_load<T, DP, SKIP, TMA>(a, maps, attention_hopper_shared);
    } else {
        svg2__registers_more<SKIP ? 216 : 224>();
        hopper_compute<T, DP, SKIP, SVG2_CUDA_OVERLAP != 0 && !SKIP, SVG2_CUDA_PINGPONG != 0>(
            a, attention_hopper_shared);
    }
    if (HOPPER_CLUSTER > 1 && !SVG2__FAULT(132)) { /* nobody arrives or writes here any more */
        svg2__cluster_arrive();
        svg2__cluster_wait();
    }
#else
    (void)a, (void)maps;
    __trap();
#endif
}

/* One thread a head: what a skip rule counts, before and after. */
static __global__ void __launch_bounds__(256)
    attention_stats(svg2_head_stats *stats, int32_t begin, int32_t count, int is_after)
{
    const int h = (int)(blockIdx.x * 256 + threadIdx.x);
    if (h >= count) return;
    svg2_head_stats *s = &stats[begin + h];
    if (!is_after) s->pairs_pv = 0;
    else s->density_pv = s->pairs_total ? (float)((double)s->pairs_pv / (double)s->pairs_total) : 0.0f;
}

/* ---- merging ----
   One warp a row; the weights in f64, as on the CPU. Bound by DRAM: 12 bytes an element. */
template <int VECTOR>
static __global__ void __launch_bounds__(MERGE_THREADS)
    attention_merge(const float *out_a, const float *lse_a, const float *out_b, const float *lse_b,
                    float *out, float *lse, int64_t rows, int32_t dim)
{
    const int lane = (int)threadIdx.x % WARP;
    const int64_t warps = (int64_t)gridDim.x * (MERGE_THREADS / WARP);
    int64_t r = (int64_t)blockIdx.x * (MERGE_THREADS / WARP) + threadIdx.x / WARP;
    for (; r < rows; r += warps) {
        const float a = lse_a[r], b = lse_b[r], top = a > b ? a : b;
        /* weights relative to the larger side; an empty side weighs 0 even when both are empty (-Inf - -Inf
           is NaN) */
        const double wa = a == -INFINITY ? 0.0 : exp((double)a - (double)top),
                     wb = b == -INFINITY ? 0.0 : exp((double)b - (double)top);
        const double sum = wa + wb, fa = sum == 0.0 ? 0.0 : wa / sum, fb = sum == 0.0 ? 0.0 : wb / sum;
        const float joined = sum == 0.0 ? -INFINITY : (float)((double)top + log(sum));
        for (int e = lane * VECTOR; e < dim; e += WARP * VECTOR) {
            float x[VECTOR], y[VECTOR];
            if (VECTOR == 4) {
                const float4 p = *(const float4 *)(const void *)(out_a + r * dim + e),
                             q = *(const float4 *)(const void *)(out_b + r * dim + e);
                memcpy(x, &p, 16);
                memcpy(y, &q, 16);
            } else {
                x[0] = out_a[r * dim + e];
                y[0] = out_b[r * dim + e];
            }
            for (int n = 0; n < VECTOR; ++n)
                x[n] = (float)((fa == 0.0 ? 0.0 : fa * (double)x[n]) + (fb == 0.0 ? 0.0 : fb * (double)y[n]));
            if (VECTOR == 4) {
                float4 p;
                memcpy(&p, x, 16);
                *(float4 *)(void *)(out + r * dim + e) = p;
            } else {
                out[r * dim + e] = x[0];
            }
        }
        if (!SVG2__FAULT(72)) __syncwarp(); /* all lanes have read the LSE, which may be lse_a or lse_b */
        if (lane == 0) lse[r] = joined;
    }
}

/* ---- launching ---- */
struct attention_memory {
    void *key, *value, *virtual_key, *virtual_value;
    int32_t *cost, *first_item;
    attention_item *item;
    uint32_t *next;                                      /* (Hopper) one               */
    float *partial;                                      /* mass: [items, key_blocks] */
    int32_t heads, kv_count, query_blocks, key_blocks, padded, rows, most; /* most: items of a head */
};

static size_t attention_carve(const svg2_attention_desc *d, bool is_mass, void *base, attention_memory *out)
{
    arena a;
    attention_memory w;
    a.base = (char *)base;
    a.used = 0;
    memset(&w, 0, sizeof w);
    const int64_t heads = d->head_count ? d->head_count : (int64_t)d->batch * d->heads,
                  kv_all = (int64_t)d->batch * d->heads_kv;
    w.query_blocks = d->query_blocks ? d->query_blocks : 1;
    w.key_blocks = d->key_blocks ? d->key_blocks : 1;
    w.padded = padded_dim(d->head_dim);
    w.rows = item_rows(w.padded);
    const int64_t kv_count = heads < kv_all ? heads : kv_all; /* that these heads can need */
    const int64_t most = (int64_t)d->tokens / w.rows + w.query_blocks;
    const size_t items = count_of(heads, most),
                 packs = count_of(kv_count, ((int64_t)d->tokens_kv + PACK_ROWS - 1) / PACK_ROWS);
    if (items > 0x7fffffff || packs > 0x3fffffff || count_of(heads, w.query_blocks) > 0x7fffffff)
        return SIZE_MAX; /* grids */
    w.heads = (int32_t)heads;
    w.kv_count = (int32_t)kv_count;
    w.most = (int32_t)most;
    const int64_t tail = !is_mass && d->tail_query_blocks > 0 ? d->tail_key_blocks : 0;
    w.key = a.take<uint16_t>(count_of(kv_count, d->tokens_kv, w.padded));
    w.value = a.take<uint16_t>(is_mass ? 0 : count_of(kv_count, d->tokens_kv, w.padded));
    w.virtual_key = a.take<uint16_t>(count_of(kv_count, tail, w.padded));
    w.virtual_value = a.take<uint16_t>(count_of(kv_count, tail, w.padded));
    w.cost = a.take<int32_t>(count_of(heads, w.query_blocks));
    w.item = a.take<attention_item>(items);
    w.next = a.take<uint32_t>(is_mass ? 0 : 1);
    if (is_mass) w.first_item = a.take<int32_t>(count_of(heads, w.query_blocks));
    if (is_mass) w.partial = a.take<float>(mul(items, (size_t)w.key_blocks));
    if (out) *out = w;
    return a.used;
}

/* 2 * (kv heads of the call) * tokens_kv * padded head_dim * 2 bytes for K and V, the same with
   tail_key_blocks for the virtual keys, 16 bytes for each of heads * (tokens / 128 + query_blocks) items.
   HunyuanVideo, 118,800 x 128, 400 x 1,000 blocks: 4 heads (a group of the order-1 tail) 245 MB, all 24 heads
   1,473 MB. */
static size_t attention_layout(const svg2_attention_desc *d, void *base)
{
    return attention_carve(d, false, base, NULL);
}

static bool is_half(const svg2_attention_desc *d, bool is_mass)
{
    return d->k_layout.dtype == SVG2_F16 && (is_mass || d->v_layout.dtype == SVG2_F16);
}

/* The operand of a tensor: the tensor itself where it is in order, of type T and aligned; else a job that
   makes a copy. */
static operand pack_or_use(pack_args *p, int64_t *blocks, tensor t, bool is_plain, const int32_t *order,
                           const float *mean, void *to, int32_t tokens, int32_t kv_count, int32_t padded)
{
    operand o;
    if (is_plain) {
        o.data = t.data;
        o.stride_batch = t.stride_batch;
        o.stride_head = t.stride_head;
        o.stride_token = t.stride_token;
        o.begin = 0;
        o.chunks = p->dim / 8;
        return o;
    }
    pack_job *j = &p->job[p->jobs++];
    j->from = t;
    j->order = order;
    j->mean = mean;
    j->to = to;
    j->tokens = tokens;
    j->groups = (tokens + PACK_ROWS - 1) / PACK_ROWS;
    j->first = *blocks;
    *blocks += (int64_t)kv_count * j->groups;
    o.data = to;
    o.stride_token = padded;
    o.stride_head = (int64_t)tokens * padded;
    o.stride_batch = o.stride_head * p->heads_kv;
    o.begin = p->kv_begin * o.stride_head;
    o.chunks = padded / 8;
    return o;
}

/* Everything that forward and mass have in common: packing, planning, arguments. */
struct attention_call {
    attention_memory memory;
    attention_args args;
    pack_args pack;
    plan_args plan;
    int64_t pack_blocks;
    int32_t batch;
    int32_t blocks; /* of the kernel for wgmma; 0: that for mma.sync */
};

static void attention_prepare(attention_call *c, const svg2_attention_desc *d, bool is_mass, void *workspace)
{
    const svg2_dtype type = is_half(d, is_mass) ? SVG2_F16 : SVG2_BF16;
    attention_memory *w = &c->memory;
    attention_args *a = &c->args;
    plan_args *p = &c->plan;
    memset(c, 0, sizeof *c);
    (void)attention_carve(d, is_mass, workspace, w);
    const int64_t kv_begin = kv_head_host(d->head_begin, d->heads, d->heads_kv);
    const int32_t kv_count =
        (int32_t)(kv_head_host((int64_t)d->head_begin + w->heads - 1, d->heads, d->heads_kv) - kv_begin + 1);
    const tensor k = tensor_of(d->k, d->k_layout, d->heads_kv, d->tokens_kv, d->head_dim);
    const bool has_tail = !is_mass && d->tail_query_blocks > 0 && d->tail_key_blocks > 0;
    const float scale2 = fabsf(d->scale) * 1.44269504f;

    c->batch = d->batch;
    c->pack.heads_kv = d->heads_kv;
    c->pack.dim = d->head_dim;
    c->pack.kv_begin = kv_begin;
    a->is_relative = d->key_mean && d->k_layout.dtype != type;
    a->key = pack_or_use(&c->pack, &c->pack_blocks, k, !d->key_order && k.is_vector && k.dtype == type,
                         d->key_order, a->is_relative ? d->key_mean : NULL, w->key, d->tokens_kv, kv_count,
                         w->padded);
    if (!is_mass) {
        const tensor v = tensor_of(d->v, d->v_layout, d->heads_kv, d->tokens_kv, d->head_dim);
        a->value = pack_or_use(&c->pack, &c->pack_blocks, v, !d->key_order && v.is_vector && v.dtype == type,
                               d->key_order, NULL, w->value, d->tokens_kv, kv_count, w->padded);
        a->out = tensor_of(d->out, d->out_layout, d->heads, d->tokens, d->head_dim);
    }
    if (has_tail) {
        svg2_layout f32;
        memset(&f32, 0, sizeof f32);
        f32.dtype = SVG2_F32;
        a->virtual_key =
            pack_or_use(&c->pack, &c->pack_blocks,
                        tensor_of(d->key_centroid, f32, d->heads_kv, d->tail_key_blocks, d->head_dim), false,
                        NULL, d->key_mean, w->virtual_key, d->tail_key_blocks, kv_count, w->padded);
        a->virtual_value =
            pack_or_use(&c->pack, &c->pack_blocks,
                        tensor_of(d->value_mean, f32, d->heads_kv, d->tail_key_blocks, d->head_dim), false,
                        NULL, NULL, w->virtual_value, d->tail_key_blocks, kv_count, w->padded);
        a->tail_query_blocks = d->tail_query_blocks;
        a->tail_key_blocks = d->tail_key_blocks;
        a->log_mass = d->log_mass;
        a->tail_matrix = d->tail_matrix;
        a->is_matrix_vector = (uintptr_t)d->tail_matrix % 16 == 0;
    }
    a->item = w->item;
    a->q = tensor_of(d->q, d->q_layout, d->heads, d->tokens, d->head_dim);
    a->query_order = d->query_order;
    a->key_offset = d->key_offset;
    a->map = d->map;
    a->key_mean = d->key_mean;
    a->lse = d->lse;
    a->heads = d->heads;
    a->heads_kv = d->heads_kv;
    a->tokens = d->tokens;
    a->tokens_kv = d->tokens_kv;
    a->dim = d->head_dim;
    a->query_blocks = w->query_blocks;
    a->key_blocks = w->key_blocks;
    a->head_begin = d->head_begin;
    /* exp2 takes logits by a factor that is positive (the maximum of a row is taken before it) and finite; 0
       becomes so small that it makes no difference */
    a->scale2 = scale2 < 1.2e-38f ? 1.2e-38f : scale2 > 3.4e38f ? 3.4e38f : scale2;
    a->sign = d->scale < 0.0f ? -1.0f : 1.0f;

    p->query_offset = d->query_offset;
    p->key_offset = d->key_offset;
    p->map = d->map;
    p->cost = !is_mass && d->map && d->key_offset && w->query_blocks > 1 && w->query_blocks <= PLAN_BLOCKS
                  ? w->cost
                  : NULL;
    p->item = w->item;
    p->first_item = w->first_item;
    p->heads = d->heads;
    p->heads_kv = d->heads_kv;
    p->tokens = d->tokens;
    p->query_blocks = w->query_blocks;
    p->key_blocks = w->key_blocks;
    p->tail_query_blocks = a->tail_query_blocks;
    p->tail_key_blocks = a->tail_key_blocks;
    p->rows = w->rows;
    p->most = w->most;
    p->head_begin = d->head_begin;
    p->blocks = (int64_t)w->heads * w->query_blocks;
}

/* Packs and plans. */
template <class T, int DP>
static svg2_result attention_launch_first(const svg2_backend *backend, const attention_call *c,
                                          svg2_error *err)
{
    SVG2__RUN(launch(backend, err, "attention_pack", attention_pack<T, DP>, dim3(grid_of(c->pack_blocks)),
                     PACK_THREADS, 0, c->pack));
    if (c->plan.cost)
        SVG2__RUN(launch(backend, err, "attention_count", attention_count,
                         dim3(grid_of((c->plan.blocks + COUNT_THREADS / WARP - 1) / (COUNT_THREADS / WARP))),
                         COUNT_THREADS, 0, c->plan));
    return launch(backend, err, "attention_plan", attention_plan, dim3(grid_of(c->memory.heads)),
                  PLAN_THREADS, (3 * PLAN_BLOCKS + PLAN_THREADS / WARP) * sizeof(int32_t), c->plan);
}

/* As many stages as fit without taking a block from the multiprocessor: registers allow 2. */
static svg2_result attention_stages(int32_t padded, bool is_skip, int32_t *stages, svg2_error *err)
{
    int device = 0, per_block = 0, per_sm = 0;
    SVG2__CUDA(cudaGetDevice(&device), "device");
    SVG2__CUDA(cudaDeviceGetAttribute(&per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device");
    SVG2__CUDA(cudaDeviceGetAttribute(&per_sm, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device),
               "device");
    for (int blocks = 2; blocks > 0; --blocks)
        for (*stages = 4; *stages >= 2; --*stages) {
            const size_t bytes = is_skip ? attention_smem_bytes<true>(padded, *stages)
                                         : attention_smem_bytes<false>(padded, *stages);
            if (bytes <= (size_t)per_block && (size_t)blocks * (bytes + 1024) <= (size_t)per_sm)
                return SVG2_OK;
        }
    return set_error(err, SVG2_ERR_BACKEND, "device", "has too little shared memory", cudaSuccess);
}

#if SVG2_CUDA_TMA
/* The driver's encoder is found at run time, so that nothing has to be linked with the driver. */
static svg2_result hopper_maps_of(hopper_maps<true> *maps, const attention_call *c, bool is_bf16,
                                  svg2_error *err)
{
    typedef CUresult (*encoder)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                                CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill);
    static const char name[] = "cuTensorMapEncodeTiled";
    void *found = NULL;
    cudaDriverEntryPointQueryResult how = cudaDriverEntryPointSymbolNotFound;
    memset(maps, 0, sizeof *maps);
#if CUDART_VERSION >= 12050
    SVG2__CUDA(cudaGetDriverEntryPointByVersion(name, &found, 12000, cudaEnableDefault, &how), name);
#else
    SVG2__CUDA(cudaGetDriverEntryPoint(name, &found, cudaEnableDefault, &how), name);
#endif
    if (!found || how != cudaDriverEntryPointSuccess)
        return set_error(err, SVG2_ERR_BACKEND, name, "is not in this driver", cudaSuccess);
    const CUtensorMapDataType type =
        is_bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    const int64_t most = (int64_t)1 << 39; /* elements */
    for (int which = 0; which < 2; ++which) {
        const operand &from = which ? c->args.value : c->args.key;
        const bool is_packed = from.data == (which ? c->memory.value : c->memory.key);
        const int64_t heads = is_packed ? c->memory.kv_count : c->pack.heads_kv,
                      batch = is_packed ? 1 : c->batch, columns = from.chunks * 8;
        /* where there is one of them its stride is not used, but has to be one */
        const int64_t of_token = c->args.tokens_kv > 1 ? from.stride_token : columns,
                      of_head = heads > 1 ? from.stride_head : columns,
                      of_batch = batch > 1 ? from.stride_batch : columns;
        if (of_token <= 0 || of_head <= 0 || of_batch <= 0 || of_token >= most || of_head >= most
            || of_batch >= most)
            continue; /* a broadcast, or too far: by cp.async */
        maps->begin[which] = is_packed ? (int32_t)c->pack.kv_begin : 0;
        maps->heads[which] = (int32_t)heads;
        for (int i = 0; i < HOPPER_BOXES; ++i) {
            const cuuint64_t dim[4] = {(cuuint64_t)columns, (cuuint64_t)c->args.tokens_kv, (cuuint64_t)heads,
                                       (cuuint64_t)batch},
                             stride[3] = {(cuuint64_t)of_token * 2, (cuuint64_t)of_head * 2,
                                          (cuuint64_t)of_batch * 2};
            const cuuint32_t size[4] = {64, 1u << i, 1, 1}, step[4] = {1, 1, 1, 1};
            if (((encoder)found)(&maps->box[which][i], type, 4, (void *)(uintptr_t)from.data, dim, stride,
                                 size, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
                != CUDA_SUCCESS)
                return set_error(err, SVG2_ERR_BACKEND, name, "failed", cudaSuccess);
        }
        maps->is_there[which] = 1;
    }
    return SVG2_OK;
}
#else
static svg2_result hopper_maps_of(hopper_maps<false> *maps, const attention_call *, bool, svg2_error *)
{
    maps->unused = 0;
    return SVG2_OK;
}
#endif

template <class T, int DP, bool SKIP>
static svg2_result attention_launch_forward(const svg2_backend *backend, const attention_call *c, svg2_error *err)
{
    enum { TMA = SVG2_CUDA_TMA != 0 };
    hopper_maps<TMA> maps;
    if (!c->blocks)
        return launch(backend, err, "attention_forward", attention_forward<T, DP, SKIP>,
                      dim3(grid_of((int64_t)c->memory.heads * c->memory.most)), ATTENTION_THREADS,
                      attention_smem_bytes<SKIP>(DP, c->args.stages), c->args);
    SVG2__RUN(hopper_maps_of(&maps, c, dtype_of(T()) == SVG2_BF16, err));
    return launch_clusters(backend, err, "attention_hopper", attention_hopper<T, DP, SKIP, TMA>,
                           HOPPER_CLUSTER, dim3((unsigned)c->blocks), HOPPER_THREADS,
                           hopper_smem<DP, SKIP>::BYTES, c->args, maps);
}

template <class T, int DP>
static svg2_result attention_launch(const svg2_backend *backend, const attention_call *c, svg2_error *err)
{
    const dim3 heads((unsigned)(c->memory.heads + 255) / 256);
    svg2_head_stats *stats = c->args.stats;
    SVG2__RUN((attention_launch_first<T, DP>(backend, c, err)));
    if (!c->args.skip) return attention_launch_forward<T, DP, false>(backend, c, err);
    if (stats)
        SVG2__RUN(launch(backend, err, "attention_stats", attention_stats, heads, 256, 0, stats,
                         c->args.head_begin, c->memory.heads, 0));
    SVG2__RUN((attention_launch_forward<T, DP, true>(backend, c, err)));
    if (!stats) return ok(err);
    return launch(backend, err, "attention_stats", attention_stats, heads, 256, 0, stats, c->args.head_begin,
                  c->memory.heads, 1);
}

template <class T>
static svg2_result attention_launch_dim(const svg2_backend *backend, const attention_call *c, svg2_error *err)
{
    switch (c->memory.padded) {
    case 64: return attention_launch<T, 64>(backend, c, err);
    case 96: return attention_launch<T, 96>(backend, c, err);
    case 128: return attention_launch<T, 128>(backend, c, err);
    default: return attention_launch<T, 256>(backend, c, err);
    }
}

/* What differs where the kernel for wgmma is taken. Its items have 128 rows whatever head_dim is; the workspace
   has room for either. */
static svg2_result attention_hopper_plan(const svg2_backend *backend, attention_call *c, svg2_error *err)
{
    bool is_wgmma;
    int device = 0, processors = 0;
    SVG2__RUN(takes_wgmma(backend, &is_wgmma, err));
    if (!is_wgmma) return SVG2_OK;
    SVG2__CUDA(cudaGetDevice(&device), "device");
    SVG2__CUDA(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "device");
    c->plan.rows = HOPPER_ROWS * HOPPER_CLUSTER;
    c->plan.next = c->args.next = c->memory.next;
    c->args.items = (int64_t)c->memory.heads * c->memory.most;
    const int64_t groups = processors / HOPPER_CLUSTER > 1 ? processors / HOPPER_CLUSTER : 1;
    c->blocks = (int32_t)(c->args.items < groups ? c->args.items : groups) * HOPPER_CLUSTER;
    return SVG2_OK;
}

static svg2_result run_attention(const svg2_backend *backend, const svg2_attention_desc *d, void *workspace,
                                 svg2_error *err)
{
    attention_call c;
    attention_prepare(&c, d, false, workspace);
    c.args.skip = d->skip;
    c.args.is_diagonal = d->skip && d->visit == SVG2_VISIT_DIAGONAL;
    c.args.limit = d->skip == SVG2_SKIP_ENERGY ? expf(d->energy_lambda) : d->skip_threshold;
    c.args.recall = d->recall;
    c.args.rho = d->skip == SVG2_SKIP_RECALL ? (1.0f - d->recall) / d->recall * 0.999f : 0.0f;
    c.args.lse_seed = d->skip ? d->lse_seed : NULL;
    c.args.stats = d->skip ? d->stats : NULL;
    SVG2__RUN(attention_hopper_plan(backend, &c, err));
    SVG2__RUN(attention_stages(c.memory.padded, d->skip != SVG2_SKIP_NONE, &c.args.stages, err));
    SVG2__RUN(is_half(d, false) ? attention_launch_dim<__half>(backend, &c, err)
                                : attention_launch_dim<__nv_bfloat16>(backend, &c, err));
    return ok(err);
}

} /* namespace svg2__cuda */

extern "C" svg2_result svg2_cuda_merge(void *stream, const float *out_a, const float *lse_a,
                                       const float *out_b, const float *lse_b, float *out, float *lse,
                                       int64_t rows, int32_t dim, svg2_error *err)
{
    using namespace svg2__cuda;
    const svg2_backend backend = svg2_cuda_backend(stream);
    const void *pointers[] = {out_a, lse_a, out_b, lse_b, out, lse};
    static const char *const names[] = {"out_a", "lse_a", "out_b", "lse_b", "out", "lse"};
    for (int i = 0; i < 6; ++i)
        if (!pointers[i]) return set_error(err, SVG2_ERR_NULL, names[i], "must not be NULL", cudaSuccess);
    if (rows < 0) return set_error(err, SVG2_ERR_RANGE, "rows", "must not be negative", cudaSuccess);
    if (dim < 1) return set_error(err, SVG2_ERR_RANGE, "dim", "must be at least 1", cudaSuccess);
    const bool is_vector = dim % 4 == 0 && ((uintptr_t)out_a | (uintptr_t)out_b | (uintptr_t)out) % 16 == 0;
    const int64_t blocks = (rows + MERGE_THREADS / WARP - 1) / (MERGE_THREADS / WARP);
    SVG2__RUN(launch(&backend, err, "attention_merge", is_vector ? attention_merge<4> : attention_merge<1>,
                     dim3(grid_of(blocks)), MERGE_THREADS, 0, out_a, lse_a, out_b, lse_b, out, lse, rows,
                     dim));
    return ok(err);
}

/* ==== >>mass =============================================================================== */
namespace svg2__cuda {

enum { MASS_STAGES = 3, MASS_THREADS = 256 };

struct mass_args {
    attention_args attention;
    int32_t valid_key_blocks;
    float  *partial; /* [items, key_blocks], NULL = only recall */
    float  *recall;
};

template <int DP> struct mass_smem {
    enum {
        ROWS = attention_smem<DP>::ROWS,
        KEYS = attention_smem<DP>::KEYS,
        TILE = attention_smem<DP>::TILE,
        ITEM = 0,                         /* attention_item                                       */
        TOKEN = 16,                       /* i32 [ROWS]                                           */
        LSE = TOKEN + 4 * ROWS,           /* f32 [ROWS]  times log2(e), less what the keys lack;
                                             Inf = no row                                         */
        ROW = LSE + 4 * ROWS,             /* i32 [SLOTS][KEYS]                                    */
        BLOCK = ROW + 4 * SLOTS * KEYS,   /* i32 [SLOTS][KEYS]                                    */
        KEEP = BLOCK + 4 * SLOTS * KEYS,  /* f32 [SLOTS][KEYS]  1 = inside the map                */
        COLUMN = KEEP + 4 * SLOTS * KEYS, /* f32 [4][KEYS]  sums over the rows of each warp       */
        TOTAL = COLUMN + 16 * KEYS,       /* f32 [KEYS]                                           */
        QUERY = (TOTAL + 4 * KEYS + 127) / 128 * 128,
        RING = QUERY + ROWS * attention_smem<DP>::QUERY_ROW,
        BYTES = RING + MASS_STAGES * TILE
    };
};

/* The block of a key: the last one that begins at or before it (blocks without keys are passed over), looked for
   from `from` on, which begins there or before. */
SVG2__DEVICE int mass_block(const int32_t *offset, int blocks, int key, int from)
{
    int step = 1, hi;
    if (!offset) return from;
    for (; step < blocks - from && offset[from + step] <= key; step *= 2) from += step;
    hi = min(step, blocks - from) + from - 1;
    while (from < hi) {
        const int mid = from + (hi - from + 1) / 2;
        if (offset[mid] <= key) from = mid;
        else hi = mid - 1;
    }
    return from;
}

/* Sums of a tile's keys to the sums of their blocks, by the thread of the first key of a block; barriers stand
   between two tiles. */
template <int KEYS> SVG2__DEVICE void mass_add(float *partial, const int32_t *block, const float *total, int tid)
{
    if (tid >= KEYS || block[tid] < 0 || (tid > 0 && block[tid] == block[tid - 1])) return;
    float sum = 0.0f;
    for (int n = tid; n < KEYS && block[n] == block[tid]; ++n) sum += total[n];
    partial[block[tid]] += sum;
}

/* Rows, key blocks and map of a tile's keys. from: a block that begins at or before the thread's key, and
   then the key's own: that of the next tile is mostly the same or near. */
template <int DP>
SVG2__DEVICE void mass_rows(const mass_args &m, const attention_item &item, const item_head &x,
                            unsigned char *smem, int end, int tile, int &from)
{
    typedef mass_smem<DP> L;
    const attention_args &a = m.attention;
    const int tid = (int)threadIdx.x, key = tile * L::KEYS + tid, at = (tile & (SLOTS - 1)) * L::KEYS + tid;
    if (tid >= L::KEYS) return;
    int row = -1, block = -1;
    float keep = 0.0f;
    if (key < end) {
        row = key;
        from = mass_block(a.key_offset ? a.key_offset + x.kv * ((int64_t)a.key_blocks + 1) : NULL,
                          m.valid_key_blocks, key, from);
        block = from;
        keep = !a.map || a.map[(x.bh * a.query_blocks + item.block) * a.key_blocks + block] ? 1.0f : 0.0f;
    }
    shared_at<int32_t>(smem, L::ROW)[at] = row;
    shared_at<int32_t>(smem, L::BLOCK)[at] = block;
    shared_at<float>(smem, L::KEEP)[at] = keep;
}

/* N numbers of each lane, added over the eight lanes of its place in the quads; lane g of them (lane / 4) then has
   sums g*N/8 ... in x[0] .... Each step sends away the half that the other lane goes on with: 7 N / 8 shuffles,
   where sums one by one would need 3 N. */
template <int N> SVG2__DEVICE void fold_rows(float (&x)[N])
{
    const int lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int step = 1; step <= 3; ++step) {
        const int half = N >> step, other = 32 >> step;
        const bool is_upper = (lane & other) != 0;
#pragma unroll
        for (int i = 0; i < N / 2; ++i) {
            if (i >= half) continue;
            const float got = __shfl_xor_sync(0xffffffffu, is_upper ? x[i] : x[i + half], other);
            x[i] = (is_upper ? x[i + half] : x[i]) + got;
        }
    }
}

/* The columns of the rows of a warp, added up, to its part of the columns in shared memory. */
template <int KEYS> SVG2__DEVICE void store_columns(float (&sum)[KEYS / 4], float *column)
{
    const int lane = (int)threadIdx.x % WARP;
    fold_rows(sum);
#pragma unroll
    for (int n = 0; n < KEYS / 32; ++n) {
        const int at = lane / 4 * (KEYS / 32) + n;
        column[at / 2 * 8 + 2 * (lane % 4) + at % 2] = sum[n];
    }
}

/* P = exp2(logits - y) of rows g and g + 8; its sums over keys inside the map, and over the rows, are added. left:
   keys from here on. */
template <int N>
SVG2__DEVICE void mass_weights(float (&s)[N][4], float scale2, const float (&y)[2], const float *keep, int left,
                               float (&row_mass)[2], float (&column)[2 * N])
{
    const int quad = svg2__fresh((int)threadIdx.x) % 4;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
            const int c = 8 * n + 2 * quad + e % 2;
            /* rows that are not there count nothing, whatever their logits (0 * NaN) */
            const float p = y[e / 2] == INFINITY || c >= left
                                ? 0.0f
                                : svg2__exp2(fmaf(s[n][e], scale2, -y[e / 2]));
            row_mass[e / 2] = fmaf(keep[c], p, row_mass[e / 2]);
            column[2 * n + e % 2] += p;
        }
}

template <class T, int DP, int MT>
SVG2__DEVICE void mass_of_item(const mass_args &m, const attention_item &item, unsigned char *smem)
{
    typedef mass_smem<DP> L;
    enum { KEYS = L::KEYS };
    const attention_args &a = m.attention;
    const item_head x = head_of(a, item);
    const int tid = (int)threadIdx.x, lane = tid % WARP, warp = tid / WARP, quad = lane % 4,
              first_row = warp * 16 * MT + lane / 4;
    const int32_t *order = a.query_order ? a.query_order + x.bh * a.tokens : NULL;
    const int end =
        a.key_offset ? a.key_offset[x.kv * ((int64_t)a.key_blocks + 1) + m.valid_key_blocks] : a.tokens_kv;
    const int tiles = (end + KEYS - 1) / KEYS;
    int32_t *token = shared_at<int32_t>(smem, L::TOKEN);
    float *lse = shared_at<float>(smem, L::LSE), *column = shared_at<float>(smem, L::COLUMN),
          *total = shared_at<float>(smem, L::TOTAL);
    float *partial = m.partial ? m.partial + (int64_t)blockIdx.x * a.key_blocks : NULL;
    const T *keys = operand_head<T>(a.key, (int32_t)x.kv, a.heads_kv);
    const uint32_t query = svg2__smem(smem + L::QUERY), ring = svg2__smem(smem + L::RING);
    float row_mass[MT][2];
    int i, h, n, j, from = 0;

    load_queries<T, DP, 64 * MT>(a.q, order, x.batch, x.head, item.first, item.count, a.dim, a.sign,
                                 smem + L::QUERY);
    svg2__cp_async_commit();
    if (tid < 64 * MT) {
        float y = INFINITY;
        if (tid < item.count) {
            token[tid] = order ? order[item.first + tid] : item.first + tid;
            const float whole = a.lse[x.bh * a.tokens + token[tid]];
            float shift = 0.0f;
            if (a.is_relative)
                shift = a.sign * a.scale2
                        * mean_logit<T>(a.q, row_at(a.q, x.batch, x.head, token[tid]), a.dim,
                                        a.key_mean + x.kv * a.dim, false);
            if (whole != -INFINITY) y = fmaf(whole, 1.44269504f, -shift);
        }
        lse[tid] = y;
    }
    for (j = tid; j < a.key_blocks && partial; j += ATTENTION_THREADS) partial[j] = 0.0f;
#pragma unroll
    for (i = 0; i < MT; ++i) row_mass[i][0] = row_mass[i][1] = 0.0f;

    /* Tile t + 2 is loaded while tile t is computed. Two rounds before the first tile fill the ring. */
#pragma unroll 1
    for (int tile = -2; tile < tiles; ++tile) {
        const int slot = tile & (SLOTS - 1);
        mass_rows<DP>(m, item, x, smem, end, tile + 2, from);
        /* this thread's copies of the tile have landed */
        if (tile >= 0 && !SVG2__FAULT(80)) svg2__cp_async_wait<1>();
        if (!SVG2__FAULT(81)) __syncthreads(); /* those of all others, too; row numbers are there; nobody
                                                  reads the tile before */
        if (tile + 2 < tiles)
            load_tile<T, DP>(keys, a.key.stride_token, a.key.chunks,
                             shared_at<int32_t>(smem, L::ROW) + ((tile + 2) & (SLOTS - 1)) * KEYS,
                             ring + (uint32_t)((tile + 2) % MASS_STAGES * L::TILE));
        svg2__cp_async_commit();
        if (tile < 0) continue;

        float s[MT][KEYS / 8][4];
        logits<T, DP, MT, KEYS>(s, query, ring + (uint32_t)(tile % MASS_STAGES * L::TILE));
        const float *keep = shared_at<float>(smem, L::KEEP) + slot * KEYS;
        const int32_t *block = shared_at<int32_t>(smem, L::BLOCK) + slot * KEYS;
        float sum[KEYS / 4];
#pragma unroll
        for (n = 0; n < KEYS / 4; ++n) sum[n] = 0.0f;
#pragma unroll
        for (i = 0; i < MT; ++i) {
            const float y[2] = {lse[first_row + 16 * i], lse[first_row + 16 * i + 8]};
            mass_weights(s[i], a.scale2, y, keep, end - tile * KEYS, row_mass[i], sum);
        }
        if (!partial) continue; /* all threads */
        store_columns<KEYS>(sum, column + warp * KEYS);
        if (!SVG2__FAULT(82)) __syncthreads(); /* the sums of all warps are there */
        if (tid < KEYS)
            total[tid] = (column[tid] + column[KEYS + tid])
                         + (column[2 * KEYS + tid] + column[3 * KEYS + tid]);
        if (!SVG2__FAULT(83)) __syncthreads(); /* the totals are there */
        mass_add<KEYS>(partial, block, total, tid);
    }
    svg2__cp_async_wait<0>(); /* without a key the queries may still be under way */
    if (!m.recall) return;
#pragma unroll
    for (i = 0; i < MT; ++i)
#pragma unroll
        for (h = 0; h < 2; ++h) {
            const int r = first_row + 16 * i + 8 * h;
            const float sum = quad_sum(row_mass[i][h]);
            if (quad == 0 && r < item.count) m.recall[x.bh * a.tokens + token[r]] = sum;
        }
}

/* One item a block of threads, as attention_forward, against the keys of all valid blocks, which stand one
   after the other in the packed order: no lists. P = exp2(logits - LSE) in f32; its columns are summed over
   the rows of a warp by shuffles, over the warps in shared memory, over the keys of a block by the thread of
   the block's first key: always in the same order. Bound by the tensor cores and by exp2 in equal parts; 88
   KB of shared memory (head_dim 128). */
template <class T, int DP>
static __global__ void __launch_bounds__(ATTENTION_THREADS) mass_items(const __grid_constant__ mass_args m)
{
    SVG2_DYN_SMEM(attention_shared, 128);
    const attention_item item = m.attention.item[blockIdx.x];
    if (item.count == 0) return; /* the whole block */
    if (DP <= 128 && item.count > 64) mass_of_item<T, DP, DP <= 128 ? 2 : 1>(m, item, attention_shared);
    else mass_of_item<T, DP, 1>(m, item, attention_shared);
}

/* ---- Hopper ---- */
/* Shared memory of a block, as byte offsets; tiles as under a skip rule. [2]: of a warpgroup. */
template <int DP> struct mass_hopper_smem {
    enum {
        DIM = DP,
        KEYS = hopper_smem<DP, true>::KEYS, STAGES = 2,
        LANES = 8, ROWS_AT_ONCE = 2,
        TILE = hopper_smem<DP, true>::TILE,
        QUERY = 0,
        HALF = hopper_smem<DP, true>::HALF,
        KEY = QUERY + 2 * HALF,                         /* [2][STAGES] tiles              */
        KEY_FULL = KEY + 2 * STAGES * TILE,             /* mbarriers [2][STAGES]          */
        KEY_EMPTY = KEY_FULL + 16 * STAGES,             /* alike                          */
        QUERY_FULL = KEY_EMPTY + 16 * STAGES,
        ROW = QUERY_FULL + 16,                          /* i32 [2][KEYS]                  */
        BLOCK = ROW + 8 * KEYS,                         /* i32 [2][turn][KEYS]            */
        KEEP = BLOCK + 16 * KEYS,                       /* f32 [2][turn][KEYS]            */
        COLUMN = KEEP + 16 * KEYS,                      /* f32 [2][4][KEYS]               */
        TOTAL = COLUMN + 32 * KEYS,                     /* f32 [2][KEYS]                  */
        RECALL = TOTAL + 8 * KEYS,                      /* f32 [128], of warpgroup 1      */
        BYTES = RECALL + 512
    };
    static_assert(BYTES <= 227 * 1024, "what a block may have");
    static __device__ __forceinline__ uint32_t at(int row, int chunk)
    {
        return hopper_smem<DP, true>::at(row, chunk);
    }
    static __device__ __forceinline__ int query_at(int row, int chunk)
    {
        return hopper_smem<DP, true>::query_at(row, chunk);
    }
};

#if SVG2__SM90A
/* Keys [begin, end) and key blocks [first_block, last_block) of a warpgroup. Half of the keys, up to the border of
   a block: the sums of a block are then one warpgroup's. */
struct mass_share {
    int begin, end, first_block, last_block;
};

SVG2__DEVICE mass_share mass_share_of(const mass_args &m, int64_t kv, int group)
{
    const attention_args &a = m.attention;
    const int32_t *offset = a.key_offset ? a.key_offset + kv * ((int64_t)a.key_blocks + 1) : NULL;
    const int end = offset ? offset[m.valid_key_blocks] : a.tokens_kv;
    int block = 0, middle = end;
    if (offset) { /* the first block that begins in the second half */
        int hi = m.valid_key_blocks;
        while (block < hi) {
            const int mid = (block + hi) / 2;
            if (offset[mid] >= end / 2) hi = mid;
            else block = mid + 1;
        }
        middle = offset[block];
    } else {
        block = a.key_blocks;
    }
    mass_share x;
    x.begin = group ? middle : 0;
    x.end = group ? end : middle;
    x.first_block = group ? block : 0;
    x.last_block = group ? a.key_blocks : block;
    return x;
}

/* The tiles of both warpgroups in turn, and the queries. */
template <class T, int DP>
SVG2__DEVICE void mass_load(const mass_args &m, const attention_item &item, unsigned char *smem)
{
    typedef mass_hopper_smem<DP> L;
    enum { KEYS = L::KEYS, STAGES = L::STAGES };
    const attention_args &a = m.attention;
    const item_head x = head_of(a, item);
    const uint32_t base = svg2__smem(smem);
    const T *keys = operand_head<T>(a.key, (int32_t)x.kv, a.heads_kv);
    int32_t *row = shared_at<int32_t>(smem, L::ROW);
    mass_share share[2];
    int g;
    load_queries<T, DP, HOPPER_ROWS, L>(a.q, a.query_order ? a.query_order + x.bh * a.tokens : NULL, x.batch,
                                        x.head, item.first, item.count, a.dim, a.sign, smem + L::QUERY);
    publish(base + L::QUERY_FULL);
    for (g = 0; g < 2; ++g) share[g] = mass_share_of(m, x.kv, g);
#pragma unroll 1
    for (int tile = 0;; ++tile) {
        const int at = tile * KEYS;
        if (at >= share[0].end - share[0].begin && at >= share[1].end - share[1].begin) break;
        for (int i = svg2__fresh((int)threadIdx.x); i < 2 * KEYS; i += HOPPER_GROUP) {
            const bool is_other = i >= KEYS;
            const int key = (is_other ? share[1].begin : share[0].begin) + at + i % KEYS;
            row[i] = key < (is_other ? share[1].end : share[0].end) ? key : -1;
        }
        hopper_smem<DP, true>::wait(); /* the row numbers are there */
#pragma unroll
        for (g = 0; g < 2; ++g) {
            const uint32_t place = (uint32_t)(g * STAGES + tile % STAGES);
            if (at >= share[g].end - share[g].begin) continue;
            if (!SVG2__FAULT(84)) wait_empty<STAGES>(base + L::KEY_EMPTY + (uint32_t)(8 * STAGES * g), tile);
            load_tile<T, DP, L>(keys, a.key.stride_token, a.key.chunks, row + g * KEYS,
                                base + L::KEY + place * L::TILE);
            publish(base + L::KEY_FULL + 8 * place);
        }
        hopper_smem<DP, true>::wait(); /* nobody reads them any more */
    }
    svg2__cp_async_commit();
    svg2__cp_async_wait<0>(); /* no thread ends before its copies */
}

template <class T, class L>
SVG2__DEVICE void mass_logits(float (&s)[L::KEYS / 8][4], uint32_t q, uint32_t k)
{
    svg2__wgmma_hold(accumulators(s));
    svg2__wgmma_fence();
    multiply_keys<T, L>(s, q, k);
}

/* One warpgroup: all rows of the item against its half of the keys. */
template <class T, int DP>
SVG2__DEVICE void mass_compute(const mass_args &m, const attention_item &item, unsigned char *smem)
{
    typedef mass_hopper_smem<DP> L;
    enum { KEYS = L::KEYS, STAGES = L::STAGES };
    const attention_args &a = m.attention;
    const item_head x = head_of(a, item);
    const int group = __shfl_sync(0xffffffffu, (int)threadIdx.x / HOPPER_GROUP - 1, 0);
    const int tid = (int)threadIdx.x % HOPPER_GROUP, lane = tid % WARP, warp = tid / WARP, quad = lane % 4;
    const bool has_both = __shfl_sync(0xffffffffu, item.count, 0) > 64; /* halves of the rows */
    const uint32_t base = svg2__smem(smem), own = (uint32_t)(8 * STAGES * group);
    const uint8_t *map = a.map ? a.map + (x.bh * a.query_blocks + item.block) * a.key_blocks : NULL;
    const int32_t *offset = a.key_offset ? a.key_offset + x.kv * ((int64_t)a.key_blocks + 1) : NULL;
    const mass_share share = mass_share_of(m, x.kv, group);
    const int tiles = __shfl_sync(0xffffffffu, (share.end - share.begin + KEYS - 1) / KEYS, 0);
    float *column = shared_at<float>(smem, L::COLUMN) + group * 4 * KEYS,
          *total = shared_at<float>(smem, L::TOTAL) + group * KEYS, *recall = shared_at<float>(smem, L::RECALL);
    float *partial = m.partial ? m.partial + (int64_t)blockIdx.x * a.key_blocks : NULL;
    float y[2][2], row_mass[2][2], s[2][KEYS / 8][4];
    int i, h, n, from = 0;
#pragma unroll
    for (i = 0; i < 2; ++i)
#pragma unroll
        for (h = 0; h < 2; ++h) {
            const int r = i * 64 + warp * 16 + lane / 4 + 8 * h;
            const int token = token_of(a, item, x, min(r, item.count - 1));
            const float whole = a.lse[x.bh * a.tokens + token];
            float shift = 0.0f;
            if (a.is_relative)
                shift = a.sign * a.scale2
                        * mean_logit_quad<T>(a.q, row_at(a.q, x.batch, x.head, token), a.dim,
                                             a.key_mean + x.kv * a.dim, false);
            y[i][h] = r < item.count && whole != -INFINITY ? fmaf(whole, 1.44269504f, -shift) : INFINITY;
            row_mass[i][h] = 0.0f;
        }
    for (i = share.first_block + tid; i < share.last_block && partial; i += HOPPER_GROUP) partial[i] = 0.0f;
    wait_phase(base + L::QUERY_FULL, 0);

#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
        const uint32_t place = (uint32_t)(tile % STAGES), q = base + L::QUERY,
                       k = base + (uint32_t)L::KEY + (uint32_t)(group * STAGES + tile % STAGES) * L::TILE;
        int32_t *block = shared_at<int32_t>(smem, L::BLOCK) + (2 * group + (tile & 1)) * KEYS;
        float *keep = shared_at<float>(smem, L::KEEP) + (2 * group + (tile & 1)) * KEYS;
        const int left = share.end - (share.begin + tile * KEYS);
        float sum[KEYS / 4];
        if (tid < KEYS) {
            const int key = share.begin + tile * KEYS + tid;
            if (tid < left) from = mass_block(offset, m.valid_key_blocks, key, from);
            block[tid] = tid < left ? from : -1;
            keep[tid] = tid < left && (!map || map[from]) ? 1.0f : 0.0f;
        }
        wait_full<STAGES>(base + L::KEY_FULL + own, tile);
        fence_tile();
        mass_logits<T, L>(s[0], q, k);
        if (has_both) mass_logits<T, L>(s[1], q + L::HALF, k);
        __syncwarp();
        /* blocks and maps of the tile are there; and nobody reads those of the tile before the last one */
        if (!SVG2__FAULT(85)) svg2__bar_sync(BARRIER_VOTE + group, HOPPER_GROUP);
#pragma unroll
        for (n = 0; n < KEYS / 4; ++n) sum[n] = 0.0f;
        svg2__wgmma_wait<0>();
        svg2__wgmma_hold(accumulators(s[0]));
        svg2__wgmma_hold(accumulators(s[1]));
        release_own(base + L::KEY_EMPTY + own + 8 * place);
        mass_weights(s[0], a.scale2, y[0], keep, left, row_mass[0], sum);
        if (has_both) mass_weights(s[1], a.scale2, y[1], keep, left, row_mass[1], sum);
        if (!partial) continue; /* all threads */
        store_columns<KEYS>(sum, column + warp * KEYS);
        __syncwarp();
        if (!SVG2__FAULT(86)) svg2__bar_sync(BARRIER_VOTE + group, HOPPER_GROUP); /* the sums of all warps are there */
        if (tid < KEYS)
            total[tid] = (column[tid] + column[KEYS + tid])
                         + (column[2 * KEYS + tid] + column[3 * KEYS + tid]);
        __syncwarp();
        if (!SVG2__FAULT(87)) svg2__bar_sync(BARRIER_VOTE + group, HOPPER_GROUP); /* the totals are there */
        mass_add<KEYS>(partial, block, total, tid);
    }
    if (!m.recall) return;
#pragma unroll
    for (i = 0; i < 2; ++i)
#pragma unroll
        for (h = 0; h < 2; ++h) {
            row_mass[i][h] = quad_sum(row_mass[i][h]);
            if (group == 1 && quad == 0) recall[i * 64 + warp * 16 + lane / 4 + 8 * h] = row_mass[i][h];
        }
    __syncwarp();
    if (!SVG2__FAULT(88)) svg2__bar_sync(BARRIER_MERGE, 2 * HOPPER_GROUP); /* the other half's masses are there */
    if (group == 1) return;
#pragma unroll
    for (i = 0; i < 2; ++i)
#pragma unroll
        for (h = 0; h < 2; ++h) {
            const int r = i * 64 + warp * 16 + lane / 4 + 8 * h;
            if (quad == 0 && r < item.count)
                m.recall[x.bh * a.tokens + token_of(a, item, x, r)] = row_mass[i][h] + recall[r];
        }
}
#endif /* SVG2__SM90A */

/* The same by wgmma: one item of up to 128 rows a block of 384 threads. One warpgroup loads; two have half of the
   keys each, and all rows: S of rows 0 to 63 and of 64 to 127 are products of one tile of 128 keys (64 where
   head_dim > 128). Bound by exp2 and by shared memory in equal parts, by counting at head_dim 128 (a tile of 128
   keys, 128 rows): 16,384 exp2 take 1,024 cycles, 96 KB read by wgmma and 32 KB written by the copies as many, the
   products half; mass_items needs some 1,800. 93 to 202 KB of shared memory; 168 registers, by setmaxnreg 56 and
   224. */
template <class T, int DP>
static __global__ void __launch_bounds__(HOPPER_THREADS, 1) mass_hopper(const __grid_constant__ mass_args m)
{
#if SVG2__SM90A
    typedef mass_hopper_smem<DP> L;
    SVG2_DYN_SMEM(attention_hopper_shared, 1024);
    const attention_item item = m.attention.item[blockIdx.x];
    if (item.count == 0) return; /* the whole block */
    if (threadIdx.x == 0) {
        const uint32_t base = svg2__smem(attention_hopper_shared);
        for (uint32_t i = 0; i < 2 * L::STAGES; ++i) {
            svg2__mbar_init(base + L::KEY_FULL + 8 * i, HOPPER_ARRIVALS);
            svg2__mbar_init(base + L::KEY_EMPTY + 8 * i, HOPPER_GROUP / WARP);
        }
        svg2__mbar_init(base + L::QUERY_FULL, HOPPER_ARRIVALS);
        svg2__fence_mbar_init();
    }
    __syncthreads(); /* the barriers are there */
    if (threadIdx.x < HOPPER_GROUP) {
        svg2__registers_less<56>();
        mass_load<T, DP>(m, item, attention_hopper_shared);
    } else {
        svg2__registers_more<224>();
        mass_compute<T, DP>(m, item, attention_hopper_shared);
    }
#else
    (void)m;
    __trap();
#endif
}

/* One block of threads: a query block; its items are added in order. */
static __global__ void __launch_bounds__(MASS_THREADS)
    mass_sum(const __grid_constant__ plan_args p, const float *partial, float *mass)
{
    const int64_t at = blockIdx.x, head = at / p.query_blocks, bh = p.head_begin + head;
    const int block = (int)(at % p.query_blocks);
    const int32_t *offset =
        p.query_offset ? p.query_offset + bh * ((int64_t)p.query_blocks + 1) + block : NULL;
    const int items = ((offset ? offset[1] - offset[0] : p.tokens) + p.rows - 1) / p.rows;
    const float *from = partial + (head * p.most + p.first_item[at]) * p.key_blocks;
    float *to = mass + at * p.key_blocks; /* of the heads of the call */
    for (int j = (int)threadIdx.x; j < p.key_blocks; j += MASS_THREADS) {
        float sum = 0.0f;
        for (int i = 0; i < items; ++i) sum += from[(int64_t)i * p.key_blocks + j];
        to[j] = sum;
    }
}

/* That of attention with K alone, and 4 bytes for every (item, key block). */
static size_t mass_layout(const svg2_mass_desc *d, void *base)
{
    return attention_carve(&d->attention, true, base, NULL);
}

template <class T, int DP>
static svg2_result mass_launch(const svg2_backend *backend, const attention_call *c, const mass_args *m,
                               svg2_error *err)
{
    SVG2__RUN((attention_launch_first<T, DP>(backend, c, err)));
    if (c->blocks)
        return launch(backend, err, "mass_hopper", mass_hopper<T, DP>,
                      dim3(grid_of((int64_t)c->memory.heads * c->memory.most)), HOPPER_THREADS,
                      mass_hopper_smem<DP>::BYTES, *m);
    return launch(backend, err, "mass_items", mass_items<T, DP>,
                  dim3(grid_of((int64_t)c->memory.heads * c->memory.most)), ATTENTION_THREADS,
                  mass_smem<DP>::BYTES, *m);
}

template <class T>
static svg2_result mass_launch_dim(const svg2_backend *backend, const attention_call *c, const mass_args *m,
                                   svg2_error *err)
{
    switch (c->memory.padded) {
    case 64: return mass_launch<T, 64>(backend, c, m, err);
    case 96: return mass_launch<T, 96>(backend, c, m, err);
    case 128: return mass_launch<T, 128>(backend, c, m, err);
    default: return mass_launch<T, 256>(backend, c, m, err);
    }
}

static svg2_result run_mass(const svg2_backend *backend, const svg2_mass_desc *d, void *workspace,
                            svg2_error *err)
{
    attention_call c;
    mass_args m;
    attention_prepare(&c, &d->attention, true, workspace);
    SVG2__RUN(attention_hopper_plan(backend, &c, err));
    c.plan.next = NULL; /* a block an item */
    if (c.blocks) c.plan.rows = HOPPER_ROWS; /* of one block, whatever attention has */
    m.attention = c.args;
    m.valid_key_blocks = d->valid_key_blocks ? d->valid_key_blocks : c.memory.key_blocks;
    m.partial = d->mass ? c.memory.partial : NULL;
    m.recall = d->recall;
    SVG2__RUN(is_half(&d->attention, true) ? mass_launch_dim<__half>(backend, &c, &m, err)
                                           : mass_launch_dim<__nv_bfloat16>(backend, &c, &m, err));
    if (d->mass)
        SVG2__RUN(launch(backend, err, "mass_sum", mass_sum, dim3(grid_of(c.plan.blocks)), MASS_THREADS, 0,
                         c.plan, (const float *)m.partial, d->mass));
    return ok(err);
}

} /* namespace svg2__cuda */

/* ==== >>tiles ============================================================================
   Blocks of neighbouring tokens. The arithmetic is that of >>tiles in svg2.h: every label, every byte of a
   map and every statistic is the CPU's; sums of masses are as near as the order of doubles allows.

   place     labels of the video tokens
   band      map: a warp a row; statistics: a block of threads a head, from the rows' ranges, not from the map
   pick      a row's blocks by level (its k-th largest mass, or its order), into the map; recall of the heads
             of this call. In the last call: levels of the heads; map, bits and pairs; the other statistics */
namespace svg2__cuda {

enum {
    PLACE_THREADS = 256,
    PLACE_TOKENS = 2048,    /* of a block of threads                                          */
    BAND_THREADS = 256,
    PICK_THREADS = 256,     /* of a row that is sorted; of a head; 8 rows of the map          */
    PICK_TOP_THREADS = 128, /* 4 rows                                                         */
    PICK_SHARED = 4096,     /* key blocks of a row that shared memory holds                   */
    PICK_SCRATCH = 1 << 24  /* sorting keys of the blocks that work on larger rows, about     */
};

#define SVG2__BOTH static __host__ __device__ __forceinline__

/* 32-bit division by way of unsigned: tokens and positions are below 2^31. */
SVG2__BOTH int32_t divide(int32_t a, int32_t b) { return (int32_t)((uint32_t)a / (uint32_t)b); }
SVG2__BOTH int32_t divide_up(int32_t a, int32_t b)
{
    return (int32_t)(((uint32_t)a + (uint32_t)b - 1u) / (uint32_t)b);
}

struct tile_grid {
    int32_t frames, frame_tokens, block, first_frame;
};

SVG2__BOTH int32_t grid_head(const tile_grid &g) /* blocks of the first frame alone */
{
    return g.first_frame ? divide_up(g.frame_tokens, g.block) : 0;
}
SVG2__BOTH int32_t grid_rest(const tile_grid &g) /* tokens in the other blocks */
{
    return (g.frames - g.first_frame) * g.frame_tokens;
}
SVG2__BOTH int32_t grid_blocks(const tile_grid &g) { return grid_head(g) + divide_up(grid_rest(g), g.block); }

SVG2__DEVICE int32_t grid_label(const tile_grid &g, int pattern, int32_t token)
{
    const int32_t frame = divide(token, g.frame_tokens), place = token - frame * g.frame_tokens;
    if (frame < g.first_frame) return divide(place, g.block);
    const int32_t at = pattern ? place * (g.frames - g.first_frame) + (frame - g.first_frame)
                               : token - g.first_frame * g.frame_tokens;
    return grid_head(g) + divide(at, g.block);
}

/* Tokens behind the first frame (if that has its own blocks) whose position is below x. */
SVG2__DEVICE int32_t grid_below(const tile_grid &g, int pattern, int64_t x)
{
    if (x <= 0) return 0;
    if (x >= (int64_t)g.frames * g.frame_tokens) return grid_rest(g);
    const int32_t at = (int32_t)x;
    if (!pattern) return max(at - g.first_frame * g.frame_tokens, 0);
    const int32_t place = divide(at, g.frames), frame = at - place * g.frames - g.first_frame;
    return place * (g.frames - g.first_frame) + max(frame, 0);
}

/* What a row of blocks sees: key blocks [0, head) of the first frame, and [begin, end). */
struct near_blocks {
    int32_t begin, end;
};

SVG2__DEVICE near_blocks grid_near(const tile_grid &g, int pattern, int32_t block, int32_t width)
{
    const int32_t head = grid_head(g), others = g.frames - g.first_frame;
    int64_t low, high; /* first and last position of the block */
    near_blocks n;
    if (block < head) {
        const int32_t first = block * g.block, last = min(g.block, g.frame_tokens - first) - 1 + first;
        low = (int64_t)first * (pattern ? g.frames : 1);
        high = (int64_t)last * (pattern ? g.frames : 1);
    } else {
        const int32_t first = (block - head) * g.block;
        const int32_t last = min(g.block, grid_rest(g) - first) - 1 + first;
        if (pattern) { /* others frames at a place, behind first_frame ones */
            low = (int64_t)divide(first, others) * g.first_frame + first + g.first_frame;
            high = (int64_t)divide(last, others) * g.first_frame + last + g.first_frame;
        } else {
            low = (int64_t)first + g.first_frame * g.frame_tokens;
            high = (int64_t)last + g.first_frame * g.frame_tokens;
        }
    }
    const int32_t first = grid_below(g, pattern, low - width + 1);
    const int32_t last = grid_below(g, pattern, high + width);
    n.begin = head + divide(first, g.block);
    n.end = last > first ? head + divide_up(last, g.block) : n.begin;
    return n;
}

/* ---- place ----
   One block: 2048 tokens of a head. Limiter: DRAM, 4 bytes a token, beside some 40 instructions for the two
   divisions. */
struct place_args {
    tile_grid grid;
    const int32_t *pattern;
    int32_t *label;
    int32_t heads, pattern_heads, tokens, video_begin, video_count, chunks;
    int64_t items;
};

static __global__ void __launch_bounds__(PLACE_THREADS) place_tokens(const __grid_constant__ place_args a)
{
    const int64_t item = item_index();
    if (item >= a.items) return;
    const int64_t bh = item / a.chunks;
    const int32_t first = (int32_t)(item - bh * a.chunks) * PLACE_TOKENS;
    const int32_t end = min(a.video_count - first, (int32_t)PLACE_TOKENS);
    const int pattern = a.pattern && a.pattern[kv_head((int32_t)bh, a.heads, a.pattern_heads)] == 1;
    int32_t *label = a.label + bh * a.tokens + a.video_begin + first;
    for (int32_t t = (int32_t)threadIdx.x; t < end; t += PLACE_THREADS)
        label[t] = grid_label(a.grid, pattern, first + t);
}

static svg2_result run_place(const svg2_backend *backend, const svg2_place_desc *d, void *workspace,
                             svg2_error *err)
{
    place_args a;
    (void)workspace;
    a.grid = {d->frames, d->frame_tokens, d->block, d->first_frame};
    a.pattern = d->pattern;
    a.label = d->label;
    a.heads = d->heads;
    a.pattern_heads = d->pattern_heads ? d->pattern_heads : d->heads;
    a.tokens = d->tokens;
    a.video_begin = d->video_begin;
    a.video_count = d->video_count;
    a.chunks = (d->video_count + PLACE_TOKENS - 1) / PLACE_TOKENS;
    a.items = (int64_t)d->batch * d->heads * a.chunks;
    SVG2__RUN(launch(backend, err, "place_tokens", place_tokens, grid_items(a.items), PLACE_THREADS, 0, a));
    return ok(err);
}

/* ---- band ---- */
struct band_args {
    tile_grid grid;
    int32_t heads, heads_kv, width, video, blocks, has_text, has_padding;
    const int32_t *pattern;
    const float   *error;
    const int32_t *query_offset, *key_offset;
    uint8_t *map;
    svg2_head_stats *stats;
    int64_t rows;
};

/* 8 bytes, the first n of them 1 */
SVG2__DEVICE uint64_t ones_below(int n)
{
    return n <= 0 ? 0ull : 0x0101010101010101ull >> 8 * (8 - min(n, 8));
}
SVG2__DEVICE uint64_t ones(int begin, int end) { return ones_below(end) & ~ones_below(begin); }

/* The ranges of a row of blocks: [0, head), near, and from video on; empty for padding. */
struct band_row {
    near_blocks near;
    int32_t head, video, seen;
};

SVG2__DEVICE band_row band_row_of(const band_args &a, int64_t bh, int32_t row)
{
    band_row r;
    r.video = a.video;
    r.head = r.near.begin = r.near.end = r.seen = 0;
    if (row < a.video) {
        const int pattern = a.pattern[kv_head((int32_t)bh, a.heads, a.heads_kv)] == 1;
        r.near = grid_near(a.grid, pattern, row, a.width);
        r.head = grid_head(a.grid);
        r.seen = a.video + a.has_text;
    } else if (a.has_text && row == a.video) { /* text sees everything */
        r.head = r.near.begin = r.near.end = a.video;
        r.seen = a.video + a.has_text;
    }
    return r;
}

/* map[j .. j + 8) */
SVG2__DEVICE uint64_t band_bytes(const band_row &r, int j)
{
    return ones_below(r.head - j) | ones(r.near.begin - j, r.near.end - j) | ones(r.video - j, r.seen - j);
}

/* One warp: one row of the map. Its bytes up to the first and from the last address that 16 divides by one
   lane each, the others 16 a lane. Limiter: DRAM, one byte written a pair of blocks; registers only. */
static __global__ void __launch_bounds__(BAND_THREADS) band_rows(const __grid_constant__ band_args a)
{
    const int64_t at = item_index() * (BAND_THREADS / WARP) + threadIdx.x / WARP;
    const int lane = (int)threadIdx.x % WARP;
    if (at >= a.rows) return; /* the whole warp */
    const int64_t bh = at / a.blocks;
    const band_row r = band_row_of(a, bh, (int32_t)(at - bh * a.blocks));
    uint8_t *row = a.map + at * a.blocks;
    const int before = min((int)(-(uintptr_t)row & 15u), a.blocks);
    const int wide = (a.blocks - before) / 16, after = before + 16 * wide;
    if (lane < before) row[lane] = (uint8_t)(band_bytes(r, lane) & 1u);
    if (lane >= 16 && after + lane - 16 < a.blocks)
        row[after + lane - 16] = (uint8_t)(band_bytes(r, after + lane - 16) & 1u);
    for (int c = lane; c < wide; c += WARP) {
        const int j = before + 16 * c;
        const uint64_t x = band_bytes(r, j), y = band_bytes(r, j + 8);
        *(uint4 *)(void *)(row + j) =
            make_uint4((uint32_t)x, (uint32_t)(x >> 32), (uint32_t)y, (uint32_t)(y >> 32));
    }
}

/* Statistics of a map that was not selected: all but those that say where the map comes from. */
SVG2__DEVICE svg2_head_stats map_stats(int64_t pairs, int64_t rows, int64_t keys)
{
    svg2_head_stats s;
    memset(&s, 0, sizeof s);
    s.pairs = s.pairs_pv = pairs;
    s.pairs_total = rows * keys;
    s.density = s.density_pv = s.pairs_total ? (float)((double)pairs / (double)s.pairs_total) : 0.0f;
    s.error_estimate = pairs == s.pairs_total ? 0.0f : -1.0f;
    s.recall = -1.0f;
    return s;
}

/* One block: one head. Keys of a range of blocks are a difference of offsets. Latency-bound, a few us. */
static __global__ void __launch_bounds__(BAND_THREADS) band_stats(const __grid_constant__ band_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    const int64_t bh = blockIdx.x, kv = kv_head((int32_t)bh, a.heads, a.heads_kv);
    const int32_t *query = a.query_offset + bh * ((int64_t)a.blocks + 1);
    const int32_t *key = a.key_offset + kv * ((int64_t)a.blocks + 1);
    int64_t pairs = 0;
    for (int i = (int)threadIdx.x; i < a.blocks; i += BAND_THREADS) {
        const band_row r = band_row_of(a, bh, i);
        int64_t seen = (int64_t)(key[r.head] - key[0]) + (key[r.near.end] - key[r.near.begin]);
        if (r.seen > r.video) seen += key[r.seen] - key[r.video];
        pairs += seen * (query[i + 1] - query[i]);
    }
    pairs = block_sum(pairs, smem);
    if (threadIdx.x) return;
    svg2_head_stats s = map_stats(pairs, query[a.blocks - a.has_padding], key[a.blocks - a.has_padding]);
    s.pattern = a.pattern[kv] == 1;
    if (a.error) s.pattern_error[0] = a.error[2 * bh], s.pattern_error[1] = a.error[2 * bh + 1];
    a.stats[bh] = s;
}

static svg2_result run_band(const svg2_backend *backend, const svg2_band_desc *d, void *workspace,
                            svg2_error *err)
{
    const int64_t heads = (int64_t)d->batch * d->heads;
    band_args a;
    (void)workspace;
    a.grid = {d->frames, d->frame_tokens, d->block, d->first_frame};
    a.heads = d->heads;
    a.heads_kv = d->heads_kv;
    a.width = d->width;
    a.video = grid_blocks(a.grid);
    a.has_text = d->has_text;
    a.has_padding = d->has_padding;
    a.blocks = a.video + a.has_text + a.has_padding;
    a.pattern = d->pattern;
    a.error = d->error;
    a.query_offset = d->query_offset;
    a.key_offset = d->key_offset;
    a.map = d->map;
    a.stats = d->stats;
    a.rows = heads * a.blocks;
    SVG2__RUN(launch(backend, err, "band_rows", band_rows,
                     grid_items((a.rows + BAND_THREADS / WARP - 1) / (BAND_THREADS / WARP)), BAND_THREADS, 0,
                     a));
    if (a.stats)
        SVG2__RUN(launch(backend, err, "band_stats", band_stats, dim3(grid_of(heads)), BAND_THREADS, 64, a));
    return ok(err);
}

/* ---- pick ---- */
struct pick_args {
    int32_t heads, heads_kv, query_blocks, key_blocks, video_rows, video_keys, has_text, has_padding;
    int32_t keep[3];     /* blocks of a row at the levels s + e, s, s - e        */
    int32_t words;       /* of a row of bits                                     */
    float   mass_target;
    const float *mass;
    const int32_t *query_offset, *key_offset;
    uint8_t  *map;
    uint32_t *bits;
    float    *recall;
    svg2_head_stats *stats;
    double   *sum;       /* [rows of the call, 4]  mass kept at the three levels, and all */
    int32_t  *level;     /* [BH]                                                 */
    uint64_t *sort_key;  /* [blocks, sort_size]  where shared memory is too small */
    int32_t   sort_size; /* power of two                                         */
    int64_t   head_begin, head_count, rows; /* rows: of the call                 */
};

/* What sorts first stands for the largest mass; a NaN comes before all. */
SVG2__DEVICE uint32_t pick_key(float mass) { return ~__float_as_uint(mass); }

/* A row of the call: where its masses and its levels are. */
struct pick_row {
    const float *mass;
    uint8_t *map;
    double  *sum;
    int32_t  row;
};

SVG2__DEVICE pick_row pick_row_of(const pick_args &a, int64_t at)
{
    pick_row r;
    r.row = (int32_t)(at % a.query_blocks);
    r.mass = a.mass + at * a.key_blocks;
    r.map = a.map + (a.head_begin * a.query_blocks + at) * a.key_blocks;
    r.sum = a.sum + 4 * at;
    return r;
}

/* The levels of a row with nothing to choose: text sees all that is valid, padding nothing. And of the blocks
   behind the video. By threads t, t + step, ... */
SVG2__DEVICE void pick_border(const pick_args &a, const pick_row &r, int t, int step)
{
    const int is_text = a.has_text && r.row == a.video_rows;
    if (r.row >= a.video_rows)
        for (int j = t; j < a.video_keys; j += step) r.map[j] = is_text ? 0 : 3;
    if (t == 0 && a.has_text) r.map[a.video_keys] = r.row <= a.video_rows ? 0 : 3;
    if (t == 0 && a.has_padding) r.map[a.key_blocks - 1] = 3;
}

/* One warp: one row. For three k at once the largest number below which no more than k keys lie, bit by bit
   from the top, until exactly k are below: mostly after 20 bits or so of 32. If there is no such number, some
   of the keys equal to the largest are taken, by their index. Shared memory: 4 bytes a key block for each of
   4 rows, 30 KB at 1857; larger rows are read again and again. Limiter: issue, some 8,000 instructions a row
   at 1857. */
template <int IS_LARGE>
static __global__ void __launch_bounds__(PICK_TOP_THREADS) pick_top(const __grid_constant__ pick_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    const int64_t at = item_index() * (PICK_TOP_THREADS / WARP) + threadIdx.x / WARP;
    const int lane = (int)threadIdx.x % WARP, n = a.video_keys, groups = (n + 4 * WARP - 1) / (4 * WARP);
    uint4 *key = (uint4 *)(void *)smem + (int)threadIdx.x / WARP * groups * WARP;
    if (at >= a.rows) return; /* the whole warp; there is no barrier of the block */
    const pick_row r = pick_row_of(a, at);
    uint32_t below[3] = {0u, 0u, 0u};
    int taken[3] = {0, 0, 0}, i, bit; /* keys that are below */
    double all = 0.0, kept[3] = {0.0, 0.0, 0.0};
    pick_border(a, r, lane, WARP);
    if (r.row >= a.video_rows) return;
    for (int j = lane; j < groups * 4 * WARP; j += WARP) {
        const float mass = j < n ? r.mass[j] : 0.0f;
        all += (double)mass;
        if (!IS_LARGE) ((uint32_t *)(void *)key)[j] = j < n ? pick_key(mass) : 0xffffffffu; /* never below */
    }
    all = warp_sum(all);
    if (a.has_text) all += (double)r.mass[n];
    if (!(all <= 3.0e38)) { /* a NaN or an Inf: it stays whole and counts nothing */
        for (int j = lane; j < n; j += WARP) r.map[j] = 0;
        if (lane < 4) r.sum[lane] = 0.0;
        return;
    }
    if (!SVG2__FAULT(90)) __syncwarp(); /* the keys of all lanes are there */
    for (bit = 31; bit >= 0; --bit) {
        const uint32_t edge[3] = {below[0] | 1u << bit, below[1] | 1u << bit, below[2] | 1u << bit};
        int count[3] = {0, 0, 0};
        /* the whole warp */
        if (taken[0] == a.keep[0] && taken[1] == a.keep[1] && taken[2] == a.keep[2]) break;
        if (IS_LARGE) {
            for (int j = lane; j < n; j += WARP) {
                const uint32_t k = pick_key(r.mass[j]);
#pragma unroll
                for (i = 0; i < 3; ++i) count[i] += k < edge[i];
            }
        } else {
            for (int g = lane; g < groups * WARP; g += WARP) {
                const uint4 k = key[g];
#pragma unroll
                for (i = 0; i < 3; ++i)
                    count[i] += (k.x < edge[i]) + (k.y < edge[i]) + (k.z < edge[i]) + (k.w < edge[i]);
            }
        }
#pragma unroll
        for (i = 0; i < 3; ++i) {
            const int sum = __reduce_add_sync(0xffffffffu, count[i]);
            if (taken[i] < a.keep[i] && sum <= a.keep[i]) below[i] = edge[i], taken[i] = sum;
        }
    }
    for (int j0 = 0; j0 < n; j0 += WARP) {
        const int j = j0 + lane;
        const float mass = j < n ? r.mass[j] : 0.0f;
        const uint32_t k = pick_key(mass);
        int level = 3;
#pragma unroll
        for (i = 2; i >= 0; --i) {
            const int is_tie = j < n && taken[i] < a.keep[i] && k == below[i];
            const unsigned ties = __ballot_sync(0xffffffffu, is_tie);
            const int before = __popc(ties & ((1u << lane) - 1u));
            if (k < below[i] || (is_tie && before < a.keep[i] - taken[i])) level = i;
            taken[i] = min(taken[i] + __popc(ties), a.keep[i]);
        }
        if (j >= n) continue;
        r.map[j] = (uint8_t)level;
#pragma unroll
        for (i = 0; i < 3; ++i) kept[i] += level == i ? (double)mass : 0.0;
    }
#pragma unroll
    for (i = 0; i < 3; ++i) kept[i] = warp_sum(kept[i]);
    if (lane) return;
    r.sum[0] = kept[0] + (a.has_text ? (double)r.mass[n] : 0.0);
    r.sum[1] = r.sum[0] + kept[1];
    r.sum[2] = r.sum[1] + kept[2];
    r.sum[3] = all;
}

/* One block of threads: one row (of larger rows several, one after the other), which keeps its heaviest
   blocks until they hold mass_target of it. They are sorted, and the sums are one thread's, in the order of
   the CPU: where the masses are the same, so is the map. Shared memory: 8 bytes a key block, rounded up to a
   power of two. Limiter: the sort, as in select_rows, and the chain of additions. */
template <int IS_LARGE>
static __global__ void __launch_bounds__(PICK_THREADS) pick_mass(const __grid_constant__ pick_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    uint64_t *end = (uint64_t *)(void *)smem; /* behind the last key that is kept */
    uint64_t *key =
        IS_LARGE ? a.sort_key + (int64_t)blockIdx.x * a.sort_size : (uint64_t *)(void *)(smem + 16);
    const int t = (int)threadIdx.x, n = a.video_keys;
    for (int64_t at = blockIdx.x; at < a.rows; at += gridDim.x) {
        const pick_row r = pick_row_of(a, at);
        double all = 0.0, kept = 0.0;
        int j;
        pick_border(a, r, t, PICK_THREADS);
        if (r.row >= a.video_rows) continue; /* the whole block */
        for (j = t; j < a.sort_size; j += PICK_THREADS) key[j] = j < n ? falling_key(r.mass[j], j) : ~0ull;
        sort_keys(key, a.sort_size);
        if (t == 0) {
            for (j = 0; j < n + a.has_text; ++j) all += (double)r.mass[j];
            if (all <= 3.0e38) {
                const double most = (double)a.mass_target * all;
                if (a.has_text) kept = (double)r.mass[n];
                for (j = 0; j < n && !(kept >= most); ++j) kept += (double)score_of(key[j]);
                *end = j ? key[j - 1] + 1 : 0;
            } else { /* a NaN or an Inf: it stays whole and counts nothing */
                *end = ~0ull;
                all = 0.0;
            }
            r.sum[0] = r.sum[1] = r.sum[2] = kept;
            r.sum[3] = all;
        }
        /* end is there, and nobody reads the keys any more; end itself is written again behind the barriers
           of the next sort */
        if (!SVG2__FAULT(91)) __syncthreads();
        for (j = t; j < n; j += PICK_THREADS) r.map[j] = falling_key(r.mass[j], j) < *end ? 0 : 3;
    }
}

/* One block of threads: a head of the call. */
static __global__ void __launch_bounds__(PICK_THREADS) pick_recall(const __grid_constant__ pick_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    const double *sum = a.sum + (int64_t)blockIdx.x * a.query_blocks * 4;
    double total[4] = {0.0, 0.0, 0.0, 0.0};
    int k;
    for (int i = (int)threadIdx.x; i < a.video_rows; i += PICK_THREADS)
        for (k = 0; k < 4; ++k) total[k] += sum[4 * (int64_t)i + k];
    for (k = 0; k < 4; ++k) total[k] = block_sum(total[k], smem);
    if (threadIdx.x) return;
    for (k = 0; k < 3; ++k)
        a.recall[3 * (a.head_begin + blockIdx.x) + k] = total[3] > 0.0 ? (float)(total[k] / total[3]) : 0.0f;
}

/* One block of threads: a head. Its level, by its rank among the heads of its batch entry; its statistics but
   for the pairs, which pick_cut adds up. */
static __global__ void __launch_bounds__(PICK_THREADS) pick_levels(const __grid_constant__ pick_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    const int64_t bh = blockIdx.x;
    const int32_t h = (int32_t)(bh % a.heads);
    const float *recall = a.recall + (bh - h) * 3 + 1, mine = a.recall[3 * bh + 1];
    int good = 0, above = 0, level = 1;
    for (int i = (int)threadIdx.x; i < a.heads; i += PICK_THREADS) {
        const float x = recall[3 * (int64_t)i];
        good += x > 0.8f;
        above += x > mine || (x == mine && i < h);
    }
    good = min(block_sum(good, smem), a.heads / 2);
    above = block_sum(above, smem);
    if (threadIdx.x) return;
    if (!(a.mass_target > 0.0f)) level = above < good ? 0 : above >= a.heads - good ? 2 : 1;
    a.level[bh] = level;
    if (a.stats) a.stats[bh].pairs = 0;
}

/* One warp: one row of the map. Levels, or bits (IS_BITS), become the map; and its bits, and its part of the
   head's pairs, an integer, so that the order of the additions does not matter. Limiter: DRAM, 2 bytes a pair
   of blocks (from bits 1), and as much the issue of a byte a lane: rows are not aligned. */
template <int IS_BITS>
static __global__ void __launch_bounds__(PICK_THREADS)
    pick_cut(const __grid_constant__ pick_args a, int64_t rows)
{
    const int64_t at = item_index() * (PICK_THREADS / WARP) + threadIdx.x / WARP;
    const int lane = (int)threadIdx.x % WARP;
    if (at >= rows) return; /* the whole warp */
    const int64_t bh = at / a.query_blocks, kv = kv_head((int32_t)bh, a.heads, a.heads_kv);
    const int32_t *key = a.stats ? a.key_offset + kv * ((int64_t)a.key_blocks + 1) : NULL;
    uint8_t *map = a.map + at * a.key_blocks;
    uint32_t *bits = a.bits ? a.bits + at * a.words : NULL;
    const int level = IS_BITS ? 0 : a.level[bh];
    int64_t seen = 0;
#pragma unroll 4
    for (int w = 0; w < a.words; ++w) {
        const int j = w * WARP + lane;
        int is_kept = 0;
        if (j < a.key_blocks) {
            is_kept = IS_BITS ? (int)(bits[w] >> lane & 1u) : map[j] <= level;
            map[j] = (uint8_t)is_kept;
            if (key && is_kept) seen += key[j + 1] - key[j];
        }
        const unsigned word = __ballot_sync(0xffffffffu, is_kept);
        if (!IS_BITS && bits && lane == 0) bits[w] = word;
    }
    if (!a.stats) return;
    seen = warp_sum(seen);
    if (lane == 0 && seen) {
        const int32_t *query = a.query_offset + bh * ((int64_t)a.query_blocks + 1) + at % a.query_blocks;
        atomicAdd((unsigned long long *)(void *)&a.stats[bh].pairs,
                  (unsigned long long)(seen * (query[1] - query[0])));
    }
}

/* One thread: a head. */
static __global__ void __launch_bounds__(PICK_THREADS)
    pick_end(const __grid_constant__ pick_args a, int64_t heads)
{
    const int64_t bh = (int64_t)blockIdx.x * PICK_THREADS + threadIdx.x;
    if (bh >= heads) return;
    const int64_t kv = kv_head((int32_t)bh, a.heads, a.heads_kv);
    svg2_head_stats s =
        map_stats(a.stats[bh].pairs,
                  a.query_offset[bh * ((int64_t)a.query_blocks + 1) + a.query_blocks - a.has_padding],
                  a.key_offset[kv * ((int64_t)a.key_blocks + 1) + a.key_blocks - a.has_padding]);
    s.recall = a.recall[3 * bh + a.level[bh]];
    a.stats[bh] = s;
}

/* 32 bytes for every row of blocks of the call, and 4 a head; with mass_target and above 4096 key blocks up
   to 256 times 8 bytes a key block, rounded up to a power of two. */
static size_t pick_layout(const svg2_pick_desc *d, void *base, pick_args *out, int64_t *blocks)
{
    arena a = {(char *)base, 0};
    const int is_sorted = d->mass_target > 0.0f, is_large = d->key_blocks > PICK_SHARED;
    int64_t many;
    pick_args w;
    memset(&w, 0, sizeof w);
    if (is_sorted && d->key_blocks > 1 << 24) return SIZE_MAX;
    for (w.sort_size = 1; is_sorted && w.sort_size < d->key_blocks; w.sort_size *= 2) {}
    many = PICK_SCRATCH / w.sort_size;
    many = many > 256 ? 256 : many < 1 ? 1 : many;
    w.sum = a.take<double>(count_of(d->head_count, d->query_blocks, 4));
    w.level = a.take<int32_t>(count_of(d->batch, d->heads));
    w.sort_key = a.take<uint64_t>(is_sorted && is_large ? count_of(many, w.sort_size) : 0);
    if (out) *out = w;
    if (blocks) *blocks = many;
    return a.used;
}

/* Blocks that a row keeps at the three levels of sparsity, as svg2__pick_counts. */
static void pick_counts(int32_t blocks, double sparsity, int32_t *keep)
{
    const double step = sparsity < (1.0 - sparsity) / 2.0 ? sparsity : (1.0 - sparsity) / 2.0;
    for (int i = 0; i < 3; ++i) {
        const double count = ceil((1.0 - sparsity + (i - 1) * step) * (double)blocks - 1e-6);
        keep[i] = count < 1.0 ? 1 : count > (double)blocks ? blocks : (int32_t)count;
    }
}

static svg2_result run_pick(const svg2_backend *backend, const svg2_pick_desc *d, void *workspace,
                            svg2_error *err)
{
    const int64_t heads = (int64_t)d->batch * d->heads;
    const int rows_each = PICK_TOP_THREADS / WARP;
    int64_t blocks;
    pick_args a;
    (void)pick_layout(d, workspace, &a, &blocks);
    a.heads = d->heads;
    a.heads_kv = d->heads_kv;
    a.query_blocks = d->query_blocks;
    a.key_blocks = d->key_blocks;
    a.video_rows = d->query_blocks - d->has_text - d->has_padding;
    a.video_keys = d->key_blocks - d->has_text - d->has_padding;
    a.has_text = d->has_text;
    a.has_padding = d->has_padding;
    a.words = (int32_t)(((int64_t)d->key_blocks + 31) / 32);
    a.mass_target = d->mass_target;
    a.mass = d->mass;
    a.query_offset = d->query_offset;
    a.key_offset = d->key_offset;
    a.map = d->map;
    a.bits = d->bits;
    a.recall = d->recall;
    a.stats = d->stats;
    a.head_begin = d->head_begin;
    a.head_count = d->head_count;
    a.rows = (int64_t)d->head_count * d->query_blocks;
    pick_counts(a.video_keys, (double)d->sparsity, a.keep);
    if (d->mass) {
        const dim3 top = grid_items((a.rows + rows_each - 1) / rows_each);
        if (d->mass_target > 0.0f && d->key_blocks > PICK_SHARED)
            SVG2__RUN(launch(backend, err, "pick_mass", pick_mass<1>,
                             dim3(grid_of(blocks < a.rows ? blocks : a.rows)), PICK_THREADS, 16, a));
        else if (d->mass_target > 0.0f)
            SVG2__RUN(launch(backend, err, "pick_mass", pick_mass<0>, dim3(grid_of(a.rows)), PICK_THREADS,
                             (size_t)(16 + 8 * a.sort_size), a));
        else if (a.video_keys > PICK_SHARED)
            SVG2__RUN(launch(backend, err, "pick_top", pick_top<1>, top, PICK_TOP_THREADS, 0, a));
        else
            SVG2__RUN(launch(backend, err, "pick_top", pick_top<0>, top, PICK_TOP_THREADS,
                             (size_t)((a.video_keys + 4 * WARP - 1) / (4 * WARP) * 16 * WARP * rows_each),
                             a));
        SVG2__RUN(launch(backend, err, "pick_recall", pick_recall, dim3(grid_of(d->head_count)),
                         PICK_THREADS, 64, a));
        if (d->head_begin + (int64_t)d->head_count < heads) return ok(err);
    }
    const int64_t rows = heads * a.query_blocks;
    SVG2__RUN(launch(backend, err, "pick_levels", pick_levels, dim3(grid_of(heads)), PICK_THREADS, 64, a));
    SVG2__RUN(launch(backend, err, "pick_cut", d->mass ? pick_cut<0> : pick_cut<1>,
                     grid_items((rows + PICK_THREADS / WARP - 1) / (PICK_THREADS / WARP)), PICK_THREADS, 0, a,
                     rows));
    if (a.stats)
        SVG2__RUN(launch(backend, err, "pick_end", pick_end,
                         dim3(grid_of((heads + PICK_THREADS - 1) / PICK_THREADS)), PICK_THREADS, 0, a,
                         heads));
    return ok(err);
}

} /* namespace svg2__cuda */

/* ==== >>profile ==========================================================================
   64 sampled rows of a head are an item.

   rows      a block of threads sees an item against one stretch of the keys (a split)
   error     joins the splits of an item and compares either band with all keys
   end       adds up, and decides */
namespace svg2__cuda {

enum {
    PROFILE_ROWS = 64,
    PROFILE_THREADS = 384,  /* three groups of four warps: all keys, the band in space, the band in time */
    PROFILE_SPLITS = 22,    /* at most; the keys alone decide how many, so that the bits of a head do not
                               depend on how many others there are. 6 heads fill 132 multiprocessors     */
    PROFILE_TILES = 32,     /* tiles of a split, at least                                                */
    PROFILE_BLOCKS = 528,   /* items times splits at one time                                            */
    PROFILE_ERROR_ROWS = 8, /* a warp each                                                               */
    PROFILE_ERROR_THREADS = PROFILE_ERROR_ROWS * WARP,
    PROFILE_PARTS = PROFILE_ROWS / PROFILE_ERROR_ROWS,
    PROFILE_END_THREADS = 128
};

/* Shared memory. A block makes at most 128 columns of the output. */
template <int DP> struct profile_smem {
    enum {
        KEYS = DP > 128 ? 32 : 64,
        COLUMNS = DP > 128 ? 128 : DP,
        KEY = KEYS * DP * 2,
        VALUE = KEYS * COLUMNS * 2,
        TOKEN = 0,                                     /* i32 [ROWS]                                   */
        NEAR = TOKEN + 4 * PROFILE_ROWS,               /* near_blocks [2][ROWS]                        */
        BLOCK = NEAR + 16 * PROFILE_ROWS,              /* i32 [2 places][2][KEYS]                      */
        QUERY = (BLOCK + 16 * KEYS + 127) / 128 * 128, /* [ROWS] rows of QUERY_ROW bytes               */
        QUERY_ROW = DP * 2 + 16,                       /* 16 bytes further into the banks from row to row */
        TILE = (QUERY + PROFILE_ROWS * QUERY_ROW + 127) / 128 * 128, /* [2 places] keys, values        */
        BYTES = TILE + 2 * (KEY + VALUE)
    };
};
static_assert(profile_smem<128>::BYTES + 1024 <= 100 * 1024 && profile_smem<256>::BYTES + 1024 <= 100 * 1024,
              "a block a multiprocessor");

struct profile_args {
    tile_grid grid;
    tensor  q, k, v;
    const float *key_mean;
    float  *partial;      /* [count, splits][m, l, l, l [ROWS], output [3][ROWS][dim]]              */
    double *error;        /* [items, PARTS, 3]  squared error under either pattern, squared output  */
    int32_t *pattern;
    float   *relative;    /* [BH, 2], NULL = not wanted                                             */
    int64_t first, count; /* items of this launch                                                   */
    uint64_t seed;
    int32_t heads, heads_kv, tokens, dim, video_begin, video_count, text_begin, text_count;
    int32_t width, sample_rows, units, splits, columns; /* units: items of a head; columns: blocks of threads
                                                           that share the columns of the output       */
    float   scale2;       /* scale * log2(e)                                                        */
};

SVG2__DEVICE float *profile_partial(const profile_args &a, int64_t item, int split)
{
    return a.partial + (item * a.splits + split) * (PROFILE_ROWS * (4 + 3 * (int64_t)a.dim));
}

/* The n-th sampled token of the video: one from each stretch. */
SVG2__DEVICE int32_t profile_row(const profile_args &a, int32_t n)
{
    const double at = ((double)n + uniform(a.seed, 0x70726f66u, (uint64_t)n)) * (double)a.video_count
                      / (double)a.sample_rows;
    return min((int32_t)at, a.video_count - 1);
}

SVG2__DEVICE bool profile_is_video(const profile_args &a, int32_t token)
{
    return token >= a.video_begin && token - a.video_begin < a.video_count;
}
SVG2__DEVICE bool profile_is_text(const profile_args &a, int32_t token)
{
    return token >= a.text_begin && token - a.text_begin < a.text_count;
}

/* Rows of keys or values, elements from `column` on, into a tile; padding, and what is behind head_dim, as
   zeros. One group of copies. */
template <class T, int WIDTH, int KEYS>
SVG2__DEVICE void profile_load(const profile_args &a, const tensor &x, int64_t head, int first, int column,
                               const float *mean, unsigned char *tile)
{
    const bool is_copy = x.dtype == dtype_of(T()) && x.is_vector;
#pragma unroll 1
    for (int i = (int)threadIdx.x; i < KEYS * (WIDTH / 8); i += PROFILE_THREADS) {
        const int r = i / (WIDTH / 8), c = i % (WIDTH / 8), e = column + 8 * c, token = first + r;
        const bool is_there =
            e < a.dim && token < a.tokens && (profile_is_video(a, token) || profile_is_text(a, token));
        const int64_t at = is_there ? head + (int64_t)token * x.stride_token + e : 0;
        unsigned char *to = tile + tile_at<WIDTH>(r, c);
        if (is_copy) {
            svg2__cp_async16(svg2__smem(to), (const T *)x.data + at, is_there ? 16 : 0);
        } else {
            float y[8] = {0, 0, 0, 0, 0, 0, 0, 0};
            if (is_there) load8(y, x, at, 0);
            for (int n = 0; n < 8 && mean && is_there; ++n) y[n] -= mean[e + n];
            *(uint4 *)(void *)to = pack8<T>(y);
        }
    }
    svg2__cp_async_commit();
}

/* Blocks of the tokens of a tile under both patterns; -1: seen by all, -2: padding. */
template <int KEYS> SVG2__DEVICE void profile_blocks(const profile_args &a, int first, int32_t *block)
{
    const int tid = (int)threadIdx.x, token = first + tid % KEYS;
    int32_t b = -2;
    if (tid >= 2 * KEYS) return;
    if (token < a.tokens && profile_is_video(a, token)) {
        b = grid_label(a.grid, tid / KEYS, token - a.video_begin);
        if (b < grid_head(a.grid)) b = -1;
    } else if (token < a.tokens && profile_is_text(a, token)) {
        b = -1;
    }
    block[tid] = b;
}

/* One block of threads: 64 rows against a stretch of the keys, FlashAttention-2's way, three times: the first
   four warps weigh all keys, the next those in the band in space, the last those in the band in time; warp w
   of four owns rows 16w .. 16w+15.

       S  = Q K^T      16 x 64 a warp (32 where head_dim > 128), the same in all three groups
       m  = maximum    over all keys, so the same, too
       P  = exp2(S - m)                                   0 outside the group's band
       O += P V        16 x 128 a warp                    left out where P is 0

   Every group forms S itself: half as many products again, but no P goes through shared memory, no group
   waits for another, and O takes 64 registers a thread and not 192. Where head_dim > 128, a second block
   makes the other columns. Tiles of keys and values alternate between two places, copied while the tile
   before is computed; one barrier a tile. Shared memory: 85 KB; one block of 12 warps a multiprocessor.
   Limiter: the tensor cores, at most 6 * 64 * S * D multiply-adds a head beside 4 S D bytes that are read. */
template <class T, int DP>
static __global__ void __launch_bounds__(PROFILE_THREADS, 1)
    profile_rows(const __grid_constant__ profile_args a)
{
    typedef profile_smem<DP> L;
    enum { KEYS = L::KEYS, COLUMNS = L::COLUMNS };
    SVG2_DYN_SMEM(smem, 128);
    const int tid = (int)threadIdx.x, lane = tid % WARP, quad = lane % 4, warp = tid / WARP % 4,
              part = tid / WARP / 4;
    /* items of one split are neighbours: their keys may be the same */
    const int64_t at = item_index() / a.columns;
    const int column = (int)(item_index() % a.columns) * COLUMNS, split = (int)(at / a.count);
    const int64_t local = at % a.count, bh = (a.first + local) / a.units;
    const int first_row = (int)((a.first + local) % a.units) * PROFILE_ROWS;
    const int rows = min(a.sample_rows - first_row, (int)PROFILE_ROWS);
    const int64_t kv = kv_head((int32_t)bh, a.heads, a.heads_kv);
    const int64_t key_head = row_at(a.k, kv / a.heads_kv, kv % a.heads_kv, 0),
                  value_head = row_at(a.v, kv / a.heads_kv, kv % a.heads_kv, 0);
    const float *mean = a.key_mean && a.k.dtype != dtype_of(T()) ? a.key_mean + kv * a.dim : NULL;
    const int tiles = (a.tokens + KEYS - 1) / KEYS;
    const int begin = (int)((int64_t)tiles * split / a.splits),
              end = (int)((int64_t)tiles * (split + 1) / a.splits);
    int32_t *token = (int32_t *)(void *)(smem + L::TOKEN), *block = (int32_t *)(void *)(smem + L::BLOCK);
    near_blocks *near = (near_blocks *)(void *)(smem + L::NEAR);
    float o[COLUMNS / 8][4], m[2] = {-INFINITY, -INFINITY}, l[2] = {0.0f, 0.0f};
    int n, h, e;

    if (split >= a.splits) return; /* the whole block */
    if (tid < PROFILE_ROWS) {
        const int32_t place = tid < rows ? profile_row(a, first_row + tid) : 0;
        token[tid] = a.video_begin + place;
        for (h = 0; h < 2; ++h)
            near[h * PROFILE_ROWS + tid] = grid_near(a.grid, h, grid_label(a.grid, h, place), a.width);
    }
    profile_load<T, DP, KEYS>(a, a.k, key_head, begin * KEYS, 0, mean, smem + L::TILE);
    profile_load<T, COLUMNS, KEYS>(a, a.v, value_head, begin * KEYS, column, NULL, smem + L::TILE + L::KEY);
    profile_blocks<KEYS>(a, begin * KEYS, block);
    if (!SVG2__FAULT(93)) __syncthreads(); /* row numbers are there */
#pragma unroll 1
    for (int i = tid; i < PROFILE_ROWS * (DP / 8); i += PROFILE_THREADS) {
        const int r = i / (DP / 8), c = i % (DP / 8);
        float x[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (r < rows && 8 * c < a.dim)
            load8(x, a.q, row_at(a.q, bh / a.heads, bh % a.heads, token[r]), 8 * c);
        *(uint4 *)(void *)(smem + L::QUERY + r * L::QUERY_ROW + 16 * c) = pack8<T>(x);
    }
    const int r0 = 16 * warp + lane / 4; /* rows of this thread: r0, r0 + 8 */
    const int32_t *own = (const int32_t *)&near[max(part - 1, 0) * PROFILE_ROWS + r0];
    const int32_t near_begin[2] = {own[0], own[16]}, near_size[2] = {own[1] - own[0], own[17] - own[16]};
#pragma unroll
    for (n = 0; n < COLUMNS / 8; ++n) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0.0f;

#pragma unroll 1
    for (int tile = begin; tile < end; ++tile) {
        const int place = (tile - begin) & 1, other = place ^ 1;
        if (!SVG2__FAULT(94)) svg2__cp_async_wait<0>(); /* this thread's copies of the tile have landed */
        if (!SVG2__FAULT(95)) __syncthreads(); /* those of all others, its blocks, and at first the queries,
                                                  too; nobody reads the tile before */
        if (tile + 1 < end) {
            unsigned char *to = smem + L::TILE + other * (L::KEY + L::VALUE);
            profile_load<T, DP, KEYS>(a, a.k, key_head, (tile + 1) * KEYS, 0, mean, to);
            profile_load<T, COLUMNS, KEYS>(a, a.v, value_head, (tile + 1) * KEYS, column, NULL, to + L::KEY);
            profile_blocks<KEYS>(a, (tile + 1) * KEYS, block + other * 2 * KEYS);
        }
        if (16 * warp >= rows) continue; /* the whole warp only loads and waits */
        const uint32_t keys = svg2__smem(smem + L::TILE + place * (L::KEY + L::VALUE));
        const int32_t *b = block + (2 * place + max(part - 1, 0)) * KEYS + 2 * quad;
        float s[KEYS / 8][4];
#pragma unroll
        for (n = 0; n < KEYS / 8; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.0f;
        {
            const uint32_t q = svg2__smem(smem + L::QUERY)
                               + (uint32_t)((16 * warp + lane % 16) * L::QUERY_ROW + lane / 16 * 16);
            const uint32_t k = keys + tile_at<DP>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
#pragma unroll
            for (e = 0; e < DP / 16; ++e) {
                uint32_t x[4], y[4];
                if (16 * e >= a.dim) continue; /* nothing but zeros */
                svg2__ldmatrix_x4(x, q + (uint32_t)(32 * e));
#pragma unroll
                for (n = 0; n < KEYS / 16; ++n) {
                    svg2__ldmatrix_x4(y, tile_step<DP>(k, e) + (uint32_t)(16 * n * DP * 2));
                    svg2__mma_m16n8k16(s[2 * n], x, y[0], y[1], T());
                    svg2__mma_m16n8k16(s[2 * n + 1], x, y[2], y[3], T());
                }
            }
        }
        float alpha[2], sum[2] = {0.0f, 0.0f};
#pragma unroll
        for (n = 0; n < KEYS / 8; ++n)
#pragma unroll
            for (e = 0; e < 4; ++e) s[n][e] = b[8 * n + e % 2] == -2 ? -INFINITY : s[n][e] * a.scale2;
#pragma unroll
        for (h = 0; h < 2; ++h) {
            float top = -INFINITY;
#pragma unroll
            for (n = 0; n < KEYS / 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * h], s[n][2 * h + 1]));
            top = fmaxf(m[h], quad_max(top));
            /* nothing but -Inf so far: keep exp2 away from Inf - Inf */
            const float from = top == -INFINITY ? 0.0f : top;
            alpha[h] = svg2__exp2(m[h] - from);
            m[h] = top;
#pragma unroll
            for (n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (e = 2 * h; e < 2 * h + 2; ++e) {
                    const int32_t j = b[8 * n + e % 2];
                    const bool is_seen =
                        part == 0 || j < 0 || (uint32_t)(j - near_begin[h]) < (uint32_t)near_size[h];
                    s[n][e] = is_seen ? svg2__exp2(s[n][e] - from) : 0.0f;
                    sum[h] += s[n][e];
                }
            l[h] = fmaf(l[h], alpha[h], sum[h]);
        }
        if (__any_sync(0xffffffffu, !(alpha[0] == 1.0f && alpha[1] == 1.0f))) {
#pragma unroll
            for (n = 0; n < COLUMNS / 8; ++n)
#pragma unroll
                for (e = 0; e < 4; ++e) o[n][e] *= alpha[e / 2];
        }
        /* outside the band of all 16 rows; of all keys nothing is left out: a value may be NaN */
        if (part && !__any_sync(0xffffffffu, !(sum[0] == 0.0f && sum[1] == 0.0f))) continue;
        const uint32_t v = keys + (uint32_t)L::KEY + tile_at<COLUMNS>(lane % 16, lane / 16);
#pragma unroll
        for (n = 0; n < KEYS / 16; ++n) {
            uint32_t x[4], y[4];
            x[0] = pack2(s[2 * n][0], s[2 * n][1], T());
            x[1] = pack2(s[2 * n][2], s[2 * n][3], T());
            x[2] = pack2(s[2 * n + 1][0], s[2 * n + 1][1], T());
            x[3] = pack2(s[2 * n + 1][2], s[2 * n + 1][3], T());
#pragma unroll
            for (e = 0; e < COLUMNS / 16; ++e) {
                if (column + 16 * e >= a.dim) continue;
                svg2__ldmatrix_x4_trans(y, tile_step<COLUMNS>(v, e) + (uint32_t)(16 * n * COLUMNS * 2));
                svg2__mma_m16n8k16(o[2 * e], x, y[0], y[1], T());
                svg2__mma_m16n8k16(o[2 * e + 1], x, y[2], y[3], T());
            }
        }
    }
    svg2__cp_async_wait<0>();

    float *partial = profile_partial(a, local, split);
#pragma unroll
    for (h = 0; h < 2; ++h) {
        const int r = r0 + 8 * h;
        const float sum = quad_sum(l[h]);
        float *row = partial + 4 * PROFILE_ROWS + ((int64_t)part * PROFILE_ROWS + r) * a.dim + column;
        if (r >= rows) continue;
        if (quad == 0 && column == 0 && part == 0) partial[r] = m[h];
        if (quad == 0 && column == 0) partial[(1 + part) * PROFILE_ROWS + r] = sum;
#pragma unroll
        for (n = 0; n < COLUMNS / 8; ++n)
            if (column + 8 * n < a.dim)
                *(float2 *)(void *)(row + 8 * n + 2 * quad) = make_float2(o[n][2 * h], o[n][2 * h + 1]);
    }
}

/* One warp: one row, its splits joined in order. A block: 8 rows of an item; their sums. Limiter: DRAM and
   L2, 12 bytes an element of a split. */
static __global__ void __launch_bounds__(PROFILE_ERROR_THREADS)
    profile_error(const __grid_constant__ profile_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    const int lane = (int)threadIdx.x % WARP;
    const int64_t local = item_index() / PROFILE_PARTS;
    const int group = (int)(item_index() % PROFILE_PARTS),
              r = group * PROFILE_ERROR_ROWS + (int)threadIdx.x / WARP;
    if (local >= a.count) return; /* the whole block */
    const int64_t item = a.first + local;
    const int first_row = (int)(item % a.units) * PROFILE_ROWS;
    double error[3] = {0.0, 0.0, 0.0};
    int part, s, i;
    if (first_row + r < a.sample_rows) {
        float top = -INFINITY, l[3] = {0.0f, 0.0f, 0.0f};
        for (s = 0; s < a.splits; ++s) top = fmaxf(top, profile_partial(a, local, s)[r]);
        if (top == -INFINITY) top = 0.0f;
        for (int e = 4 * lane; e < a.dim; e += 4 * WARP) {
            float o[3][4] = {{0.0f}};
            l[0] = l[1] = l[2] = 0.0f;
#pragma unroll 2
            for (s = 0; s < a.splits; ++s) {
                const float *partial = profile_partial(a, local, s), weight = svg2__exp2(partial[r] - top);
#pragma unroll
                for (part = 0; part < 3; ++part) {
                    const float4 x = *(const float4 *)(const void *)(
                        partial + 4 * PROFILE_ROWS + ((int64_t)part * PROFILE_ROWS + r) * a.dim + e);
                    l[part] = fmaf(partial[(1 + part) * PROFILE_ROWS + r], weight, l[part]);
                    o[part][0] = fmaf(x.x, weight, o[part][0]);
                    o[part][1] = fmaf(x.y, weight, o[part][1]);
                    o[part][2] = fmaf(x.z, weight, o[part][2]);
                    o[part][3] = fmaf(x.w, weight, o[part][3]);
                }
            }
#pragma unroll
            for (i = 0; i < 4; ++i) {
                const double dense = (double)o[0][i] / (double)l[0];
                error[2] += dense * dense;
#pragma unroll
                for (part = 1; part < 3; ++part) { /* a row without a key that counts has an output of 0 */
                    const double x = l[part] > 0.0f ? (double)o[part][i] / (double)l[part] : 0.0;
                    error[part - 1] += (x - dense) * (x - dense);
                }
            }
        }
    }
    for (i = 0; i < 3; ++i) {
        const double sum = block_sum(error[i], smem);
        if (threadIdx.x == 0) a.error[(item * PROFILE_PARTS + group) * 3 + i] = sum;
    }
}

/* One block of threads: a key head and its query heads, which are neighbours. */
static __global__ void __launch_bounds__(PROFILE_END_THREADS)
    profile_end(const __grid_constant__ profile_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    const int64_t kv = blockIdx.x, group = a.heads / a.heads_kv, each = (int64_t)a.units * PROFILE_PARTS;
    double both[2] = {0.0, 0.0};
    for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
        double sum[3] = {0.0, 0.0, 0.0};
        int i;
        for (int64_t n = threadIdx.x; n < each; n += PROFILE_END_THREADS)
            for (i = 0; i < 3; ++i) sum[i] += a.error[(h * each + n) * 3 + i];
        for (i = 0; i < 3; ++i) sum[i] = block_sum(sum[i], smem);
        for (i = 0; i < 2; ++i) {
            both[i] += sum[i];
            if (a.relative && threadIdx.x == 0)
                a.relative[2 * h + i] = sum[2] > 0.0 ? (float)sqrt(sum[i] / sum[2]) : 0.0f;
        }
    }
    if (threadIdx.x == 0) a.pattern[kv] = both[1] < both[0]; /* NaN: 0 */
}

/* 192 bytes an item, and the partial results of at most 528 splits of 64 rows: 768 bytes a dimension and 1 KB
   each, 52 MB at head_dim 128. */
static size_t profile_layout(const svg2_profile_desc *d, void *base, profile_args *out)
{
    arena a = {(char *)base, 0};
    const int32_t units = (int32_t)(((int64_t)d->sample_rows + PROFILE_ROWS - 1) / PROFILE_ROWS);
    const int keys = d->head_dim > 128 ? (int)profile_smem<256>::KEYS : (int)profile_smem<128>::KEYS;
    const int64_t items = (int64_t)d->batch * d->heads * units;
    const int64_t tiles = ((int64_t)d->tokens + keys - 1) / keys;
    const int64_t wanted = (tiles + PROFILE_TILES - 1) / PROFILE_TILES;
    const int32_t splits = (int32_t)(wanted < PROFILE_SPLITS ? wanted : (int64_t)PROFILE_SPLITS);
    profile_args w;
    memset(&w, 0, sizeof w);
    w.units = units;
    w.splits = splits;
    w.count = items < PROFILE_BLOCKS / splits ? items : (int64_t)(PROFILE_BLOCKS / splits);
    w.error = a.take<double>(count_of(items, PROFILE_PARTS, 3));
    w.partial = a.take<float>(count_of(w.count, splits, PROFILE_ROWS, 4 + 3 * (int64_t)d->head_dim));
    if (out) *out = w;
    return a.used;
}

template <class T, int DP>
static svg2_result profile_launch(const svg2_backend *backend, profile_args a, int64_t items, svg2_error *err)
{
    const int64_t most = a.count;
    a.columns = (a.dim + profile_smem<DP>::COLUMNS - 1) / profile_smem<DP>::COLUMNS;
    for (a.first = 0; a.first < items; a.first += most) {
        a.count = most < items - a.first ? most : items - a.first;
        SVG2__RUN(launch(backend, err, "profile_rows", profile_rows<T, DP>,
                         grid_items(a.count * a.splits * a.columns), PROFILE_THREADS,
                         profile_smem<DP>::BYTES, a));
        SVG2__RUN(launch(backend, err, "profile_error", profile_error, grid_items(a.count * PROFILE_PARTS),
                         PROFILE_ERROR_THREADS, 64, a));
    }
    return SVG2_OK;
}

static svg2_result run_profile(const svg2_backend *backend, const svg2_profile_desc *d, void *workspace,
                               svg2_error *err)
{
    const bool is_f16 = d->k_layout.dtype == SVG2_F16 && d->v_layout.dtype == SVG2_F16;
    profile_args a;
    (void)profile_layout(d, workspace, &a);
    const int64_t items = (int64_t)d->batch * d->heads * a.units;
    a.grid = {d->frames, d->frame_tokens, d->block, d->first_frame};
    a.q = tensor_of(d->q, d->q_layout, d->heads, d->tokens, d->head_dim);
    a.k = tensor_of(d->k, d->k_layout, d->heads_kv, d->tokens, d->head_dim);
    a.v = tensor_of(d->v, d->v_layout, d->heads_kv, d->tokens, d->head_dim);
    a.key_mean = d->key_mean;
    a.pattern = d->pattern;
    a.relative = d->error;
    a.seed = d->seed;
    a.heads = d->heads;
    a.heads_kv = d->heads_kv;
    a.tokens = d->tokens;
    a.dim = d->head_dim;
    a.video_begin = d->video_begin;
    a.video_count = d->frames * d->frame_tokens;
    a.text_begin = d->text_begin;
    a.text_count = d->text_count;
    a.width = d->width;
    a.sample_rows = d->sample_rows;
    a.scale2 = d->scale * 1.44269504f;
    if (a.dim > 128)
        SVG2__RUN(is_f16 ? (profile_launch<__half, 256>(backend, a, items, err))
                         : (profile_launch<__nv_bfloat16, 256>(backend, a, items, err)));
    else
        SVG2__RUN(is_f16 ? (profile_launch<__half, 128>(backend, a, items, err))
                         : (profile_launch<__nv_bfloat16, 128>(backend, a, items, err)));
    SVG2__RUN(launch(backend, err, "profile_end", profile_end, dim3(grid_of((int64_t)d->batch * d->heads_kv)),
                     PROFILE_END_THREADS, 64, a));
    return ok(err);
}

} /* namespace svg2__cuda */

/* ==== >>front ============================================================================
   rows      a block of threads takes a stretch of the tokens of q, or of k, with all heads
   square    only where the norm is over all heads of a token, and they are too many for a block
   The sums of the keys end in kmeans_start, which makes means of such sums. */
namespace svg2__cuda {

enum {
    FRONT_THREADS = 256,   /* at most                                                              */
    FRONT_UNITS = 4,       /* heads of a thread: with 8 elements of each, 64 bytes under way in 16 bits */
    FRONT_STRETCHES = 512, /* at most, and in a stretch at least FRONT_TOKENS; the tokens alone decide how
                              many, so that the bits of a mean do not depend on how many heads there are */
    FRONT_TOKENS = 16
};

struct front_side {
    tensor in, out;
    const float *weight;
    int32_t heads, is_weight_vector; /* heads = 0: left out */
};

struct front_args {
    front_side side[2];
    const float *cosine, *sine; /* NULL = not turned                                   */
    double *partial;            /* [BHkv, stretches, D]: sums of keys; NULL = not wanted */
    float *inverse;             /* [B, tokens, 2]; NULL = of the rows themselves       */
    int64_t rope_stride, items;
    int32_t batch, tokens, dim, video_begin, video_end, rope_heads;
    int32_t norm, is_half, is_table_vector;
    int32_t first_side, sides, parts; /* parts: blocks that share the heads of a stretch */
    int32_t stretch, stretches;       /* tokens of a stretch; how many                    */
    float epsilon;
};

/* Four elements from lo on, and four from hi on, as eight: x[0..3], x[4..7]. */
template <class E> SVG2__DEVICE void front_load(raw8<E> &raw, const tensor &t, int64_t row, int lo, int hi)
{
    const E *p = (const E *)t.data + row;
    if (t.is_vector && hi == lo + 4) {
        load_raw8<E, true>(raw, t, row, lo);
    } else if (t.is_vector) {
        if (sizeof(E) == 4) {
            raw.v[0] = *(const uint4 *)(const void *)(p + lo);
            raw.v[sizeof(E) / 2 - 1] = *(const uint4 *)(const void *)(p + hi);
        } else {
            const uint2 a = *(const uint2 *)(const void *)(p + lo),
                        b = *(const uint2 *)(const void *)(p + hi);
            raw.v[0] = make_uint4(a.x, a.y, b.x, b.y);
        }
    } else {
        E x[8];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = p[lo + i], x[4 + i] = p[hi + i];
        memcpy(&raw, x, sizeof raw);
    }
}

SVG2__DEVICE void front_store(const tensor &t, int64_t row, int lo, int hi, const float (&x)[8])
{
    if (t.dtype == SVG2_F32) {
        float *p = (float *)const_cast<void *>(t.data) + row;
        if (t.is_vector) {
            *(float4 *)(void *)(p + lo) = make_float4(x[0], x[1], x[2], x[3]);
            *(float4 *)(void *)(p + hi) = make_float4(x[4], x[5], x[6], x[7]);
        } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) p[lo + i] = x[i], p[hi + i] = x[4 + i];
        }
        return;
    }
    uint16_t *p = (uint16_t *)const_cast<void *>(t.data) + row;
    const uint4 v = t.dtype == SVG2_F16 ? pack8<__half>(x) : pack8<__nv_bfloat16>(x);
    if (t.is_vector && hi == lo + 4) {
        *(uint4 *)(void *)(p + lo) = v;
    } else if (t.is_vector) {
        *(uint2 *)(void *)(p + lo) = make_uint2(v.x, v.y);
        *(uint2 *)(void *)(p + hi) = make_uint2(v.z, v.w);
    } else {
        const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            p[lo + i] = (uint16_t)(w[i / 2] >> i % 2 * 16);
            p[hi + i] = (uint16_t)(w[2 + i / 2] >> i % 2 * 16);
        }
    }
}

SVG2__DEVICE void front_four(float (&x)[4], const float *p, bool is_vector)
{
    if (is_vector) {
        const float4 v = *(const float4 *)(const void *)p;
        x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = p[i];
    }
}

/* One block: a stretch of tokens of q or k, one token after the other. D/8 neighbouring threads take a head:

       thread   0 .. D/8-1 | D/8 .. 2D/8-1 | ...
       heads    0, g, 2g.. | 1, 1+g, ..    | ...      g = groups of D/8 threads; FRONT_UNITS heads a thread

   so that a thread has the same 8 elements of each of its heads, and loads its angles once a token. These are
   twice four, lo and hi, and make four pairs: next to each other where pairs are interleaved (one load of 16
   bytes), D/2 apart where they are halves. All loads of a token are issued before anything waits for one, and
   elements stay as they came until the norm is known: squares are added by thread; then for a head by
   shuffles (D/8 a power of two: no barrier at all) or in shared memory (D/8 numbers, in order), for a token
   by warp and in shared memory; two places alternate, so that a barrier a token will do. Keys are summed
   in registers over the stretch.
   Shared memory: 8 KB. Bytes a token: 2 e D (H + Hkv) for elements of e bytes, and 4 D for its angles (blocks
   of q and k are neighbours: the second has them from L2); weights stay in L1; with key_mean 8 D Hkv a
   stretch, twice. Limiter: DRAM, at copy speed. That asks for some 13 KB of loads under way in a multiprocessor
   (3.35 TB/s, half of it reads, 1 us, 132 of them); a block at 40 heads of 128 in 16 bits has 10 KB, and
   three of them fit at 128 registers a thread. (With FRONT_UNITS 2 more threads fit, of half the bytes.) */
template <class E>
static __global__ void __launch_bounds__(FRONT_THREADS, 2) front_rows(const __grid_constant__ front_args a)
{
    SVG2_DYN_SMEM(smem, 128);
    const int64_t item = item_index();
    if (item >= a.items) return;
    const int tid = (int)threadIdx.x, warp = tid / WARP, warps = (int)blockDim.x / WARP;
    const int columns = a.dim / 8, groups = (int)blockDim.x / columns;
    const int group = tid / columns, column = tid % columns;
    const int part = (int)(item % a.parts), which = a.first_side + (int)(item / a.parts % a.sides);
    const int64_t at = item / a.parts / a.sides, batch = at / a.stretches, stretch = at % a.stretches;
    const front_side &s = a.side[which];
    if (part * groups * FRONT_UNITS >= s.heads) return; /* the whole block */
    /* heads of this thread: the u-th is first_head + u * groups */
    const int first_head = part * groups * FRONT_UNITS + group;
    const int most =
        group >= groups || first_head >= s.heads ? 0 : (s.heads - first_head + groups - 1) / groups;
    const int units = most && SVG2__FAULT(98) ? (int)FRONT_UNITS : min(most, (int)FRONT_UNITS);
    const int lo = a.is_half ? 4 * column : 8 * column, hi = a.is_half ? lo + a.dim / 2 : lo + 4;
    const int first = (int)stretch * a.stretch,
              last = (int)min((int64_t)first + a.stretch, (int64_t)a.tokens);
    const int size = groups * FRONT_UNITS * columns; /* of a place, floats */
    float total[FRONT_UNITS][8];
    int u, i;
#pragma unroll
    for (u = 0; u < FRONT_UNITS; ++u)
#pragma unroll
        for (i = 0; i < 8; ++i) total[u][i] = 0.0f;

#pragma unroll 1
    for (int token = first; token < last; ++token) {
        const bool is_video = token >= a.video_begin && token < a.video_end, is_turned = is_video && a.cosine;
        const int64_t angles = is_turned ? (token - a.video_begin) * a.rope_stride + 4 * column : 0;
        float *sums = (float *)(void *)smem + (token & (SVG2__FAULT(97) ? 0 : 1)) * size;
        int64_t row = units ? row_at(s.in, batch, first_head, token) : 0;
        raw8<E> raw[FRONT_UNITS];
        float c[4] = {0, 0, 0, 0}, sn[4] = {0, 0, 0, 0}, square[FRONT_UNITS] = {0, 0, 0, 0}, inverse = 1.0f;
#pragma unroll
        for (u = 0; u < FRONT_UNITS; ++u)
            if (u < units) front_load(raw[u], s.in, row + u * groups * s.in.stride_head, lo, hi);
        if (is_turned && a.rope_heads == 1 && units) {
            front_four(c, a.cosine + angles, a.is_table_vector);
            front_four(sn, a.sine + angles, a.is_table_vector);
        }
        if (a.inverse) {
            inverse = a.inverse[(batch * a.tokens + token) * 2 + which];
        } else if (a.norm != SVG2_NORM_NONE) {
            float all = 0.0f;
#pragma unroll
            for (u = 0; u < FRONT_UNITS; ++u) {
                float x[8];
                square[u] = 0.0f;
                if (u < units) {
                    numbers(x, raw[u]);
#pragma unroll
                    for (i = 0; i < 8; ++i) square[u] = fmaf(x[i], x[i], square[u]);
                }
                all += square[u];
            }
            if (a.norm == SVG2_NORM_HEAD && WARP % columns == 0) { /* a head is inside of a warp */
                for (i = columns / 2; i; i /= 2)
#pragma unroll
                    for (u = 0; u < FRONT_UNITS; ++u) square[u] += __shfl_xor_sync(0xffffffffu, square[u], i);
            } else {
                if (a.norm == SVG2_NORM_TOKEN) {
                    all = warp_sum(all);
                    if (tid % WARP == 0) sums[warp] = all;
                } else {
#pragma unroll
                    for (u = 0; u < FRONT_UNITS; ++u)
                        if (u < units) sums[(u * groups + group) * columns + column] = square[u];
                }
                /* the sums of all threads are there; and all have read those of the token before, which the
                   next one's overwrite */
                if (!SVG2__FAULT(96)) __syncthreads();
                if (a.norm == SVG2_NORM_TOKEN) {
                    all = 0.0f;
                    for (i = 0; i < warps; ++i) all += sums[i];
                    inverse = 1.0f / sqrtf(all / (float)((int64_t)s.heads * a.dim) + a.epsilon);
                } else {
#pragma unroll
                    for (u = 0; u < FRONT_UNITS; ++u) {
                        const float *own = sums + (u * groups + group) * columns;
                        square[u] = 0.0f;
                        if (u < units)
                            for (i = 0; i < columns; ++i) square[u] += own[i];
                    }
                }
            }
        }
        row = units ? row_at(s.out, batch, first_head, token) : 0;
#pragma unroll
        for (u = 0; u < FRONT_UNITS; ++u) {
            const int head = first_head + u * groups;
            float x[8];
            if (u >= units) continue;
            numbers(x, raw[u]);
            if (a.norm == SVG2_NORM_HEAD) inverse = 1.0f / sqrtf(square[u] / (float)a.dim + a.epsilon);
#pragma unroll
            for (i = 0; i < 8; ++i) x[i] *= inverse;
            if (s.weight) {
                const float *weight = s.weight + (a.norm == SVG2_NORM_TOKEN ? (int64_t)head * a.dim : 0);
                float w[4], v[4];
                front_four(w, weight + lo, s.is_weight_vector);
                front_four(v, weight + hi, s.is_weight_vector);
#pragma unroll
                for (i = 0; i < 4; ++i) x[i] *= w[i], x[4 + i] *= v[i];
            }
            if (is_turned) {
                if (a.rope_heads > 1) {
                    front_four(c, a.cosine + angles + (int64_t)head * (a.dim / 2), a.is_table_vector);
                    front_four(sn, a.sine + angles + (int64_t)head * (a.dim / 2), a.is_table_vector);
                }
                if (a.is_half) {
#pragma unroll
                    for (i = 0; i < 4; ++i) {
                        const float p = x[i], q = x[4 + i];
                        x[i] = p * c[i] - q * sn[i];
                        x[4 + i] = p * sn[i] + q * c[i];
                    }
                } else {
#pragma unroll
                    for (i = 0; i < 4; ++i) {
                        const float p = x[2 * i], q = x[2 * i + 1];
                        x[2 * i] = p * c[i] - q * sn[i];
                        x[2 * i + 1] = p * sn[i] + q * c[i];
                    }
                }
            }
            if (is_video) {
#pragma unroll
                for (i = 0; i < 8; ++i) total[u][i] += x[i];
            }
            front_store(s.out, row + u * groups * s.out.stride_head, lo, hi, x);
        }
    }
    if (which == 0 || !a.partial) return;
#pragma unroll
    for (u = 0; u < FRONT_UNITS; ++u) {
        const int64_t head = batch * s.heads + first_head + u * groups;
        if (u >= units) continue;
        double *sum = a.partial + (head * a.stretches + stretch) * a.dim;
#pragma unroll
        for (i = 0; i < 4; ++i) {
            sum[lo + i] = (double)total[u][i];
            sum[hi + i] = (double)total[u][4 + i];
        }
    }
}

/* One warp: a token of q or k. Limiter: DRAM. No published model comes to it (more than 8,192 columns). */
static __global__ void __launch_bounds__(FRONT_THREADS) front_square(const __grid_constant__ front_args a)
{
    const int64_t item = item_index() * (FRONT_THREADS / WARP) + threadIdx.x / WARP;
    const int lane = (int)threadIdx.x % WARP, columns = a.dim / 8;
    if (item >= (int64_t)a.batch * a.tokens * 2) return; /* the whole warp */
    const front_side &s = a.side[item % 2];
    const int64_t batch = item / 2 / a.tokens, token = item / 2 % a.tokens,
                  units = (int64_t)s.heads * columns;
    float all = 0.0f;
    for (int64_t i = lane; i < units; i += WARP) {
        float x[8];
        load8(x, s.in, row_at(s.in, batch, i / columns, token), (int)(i % columns) * 8);
#pragma unroll
        for (int n = 0; n < 8; ++n) all = fmaf(x[n], x[n], all);
    }
    all = warp_sum(all);
    if (lane == 0) a.inverse[item] = 1.0f / sqrtf(all / (float)(units * 8) + a.epsilon);
}

/* Threads of a block: what the heads need at FRONT_UNITS a thread, in groups of D/8. */
static int front_threads(const front_args *a)
{
    const int columns = a->dim / 8, most = FRONT_THREADS / columns;
    const int heads = a->side[0].heads > a->side[1].heads ? a->side[0].heads : a->side[1].heads;
    const int wanted = (int)(((int64_t)heads + FRONT_UNITS - 1) / FRONT_UNITS);
    return ((wanted < most ? wanted : most) * columns + WARP - 1) / WARP * WARP;
}

/* With key_mean 8 D Hkv bytes a stretch: 21 MB at 40 heads of 128. */
static size_t front_layout(const svg2_front_desc *d, void *base, front_args *out)
{
    arena a = {(char *)base, 0};
    const int32_t heads_kv = d->heads_kv ? d->heads_kv : d->heads;
    const int64_t fair = ((int64_t)d->tokens + FRONT_STRETCHES - 1) / FRONT_STRETCHES;
    front_args w;
    memset(&w, 0, sizeof w);
    w.dim = d->head_dim;
    w.side[0].heads = d->q ? d->heads : 0;
    w.side[1].heads = d->k ? heads_kv : 0;
    w.stretch = (int32_t)(fair < FRONT_TOKENS ? (int64_t)FRONT_TOKENS : fair);
    w.stretches = (int32_t)(((int64_t)d->tokens + w.stretch - 1) / w.stretch);
    /* the most heads, whether pointers are set or not: a size may be asked for before they are */
    const int64_t heads = d->heads > heads_kv ? d->heads : heads_kv;
    const int64_t block = (int64_t)(FRONT_THREADS / (w.dim / 8)) * FRONT_UNITS; /* heads of a block at most */
    const bool is_wide = d->norm == SVG2_NORM_TOKEN && heads > block;
    if (d->key_mean) w.partial = a.take<double>(count_of(d->batch, heads_kv, w.stretches, w.dim));
    if (is_wide) w.inverse = a.take<float>(count_of(d->batch, d->tokens, 2));
    if (out) *out = w;
    return a.used;
}

static svg2_result front_launch(const svg2_backend *backend, front_args a, int first_side, int sides,
                                int32_t dtype, svg2_error *err)
{
    const int threads = front_threads(&a), columns = a.dim / 8, groups = threads / columns;
    const size_t smem = 2 * sizeof(float) * (size_t)(groups * FRONT_UNITS * columns);
    const int heads = a.side[0].heads > a.side[1].heads ? a.side[0].heads : a.side[1].heads;
    a.first_side = first_side;
    a.sides = sides;
    a.parts = (int32_t)(((int64_t)heads + groups * FRONT_UNITS - 1) / (groups * FRONT_UNITS));
    a.items = (int64_t)a.batch * a.stretches * sides * a.parts;
    void (*const kernel)(front_args) = dtype == SVG2_F32   ? front_rows<float>
                                       : dtype == SVG2_F16 ? front_rows<__half>
                                                           : front_rows<__nv_bfloat16>;
    return launch(backend, err, "front_rows", kernel, grid_items(a.items), (unsigned)threads, smem, a);
}

static svg2_result run_front(const svg2_backend *backend, const svg2_front_desc *d, void *workspace,
                             svg2_error *err)
{
    const int32_t heads_kv = d->heads_kv ? d->heads_kv : d->heads;
    front_args a;
    (void)front_layout(d, workspace, &a);
    a.side[0].in = tensor_of(d->q, d->q_layout, d->heads, d->tokens, d->head_dim);
    a.side[0].out = tensor_of(d->q_out, d->q_out_layout, d->heads, d->tokens, d->head_dim);
    a.side[0].weight = d->q_weight;
    a.side[0].is_weight_vector = (uintptr_t)d->q_weight % 16 == 0;
    a.side[1].in = tensor_of(d->k, d->k_layout, heads_kv, d->tokens, d->head_dim);
    a.side[1].out = tensor_of(d->k_out, d->k_out_layout, heads_kv, d->tokens, d->head_dim);
    a.side[1].weight = d->k_weight;
    a.side[1].is_weight_vector = (uintptr_t)d->k_weight % 16 == 0;
    a.cosine = d->cosine;
    a.sine = d->sine;
    a.rope_heads = d->rope_heads > 1 ? d->rope_heads : 1;
    a.rope_stride = d->rope_stride ? d->rope_stride : (int64_t)a.rope_heads * (d->head_dim / 2);
    a.is_table_vector = (((uintptr_t)d->cosine | (uintptr_t)d->sine) % 16 == 0) && a.rope_stride % 4 == 0;
    a.batch = d->batch;
    a.tokens = d->tokens;
    a.video_begin = d->video_begin;
    a.video_end = d->video_begin + (d->video_count ? d->video_count : d->tokens);
    a.norm = d->norm;
    a.is_half = d->pairing == SVG2_PAIRING_HALF;
    a.epsilon = d->epsilon > 0.0f ? d->epsilon : 1e-6f;
    if (a.inverse)
        SVG2__RUN(launch(backend, err, "front_square", front_square,
                         grid_items(((int64_t)d->batch * d->tokens * 2 + FRONT_THREADS / WARP - 1)
                                    / (FRONT_THREADS / WARP)),
                         FRONT_THREADS, 0, a));
    if (d->q && d->k && d->q_layout.dtype == d->k_layout.dtype) {
        SVG2__RUN(front_launch(backend, a, 0, 2, d->q_layout.dtype, err));
    } else {
        if (d->q) SVG2__RUN(front_launch(backend, a, 0, 1, d->q_layout.dtype, err));
        if (d->k) SVG2__RUN(front_launch(backend, a, 1, 1, d->k_layout.dtype, err));
    }
    if (d->key_mean)
        SVG2__RUN(launch(backend, err, "kmeans_start", kmeans_start, grid_items((int64_t)d->batch * heads_kv),
                         512, 512 * sizeof(double), (const double *)a.partial, d->head_dim,
                         a.video_end - a.video_begin, (int64_t)a.stretches, (int64_t)d->batch * heads_kv,
                         d->key_mean, (float *)NULL, (int32_t *)NULL));
    return ok(err);
}

} /* namespace svg2__cuda */

/* ==== >>pipeline ========================================================================= */
namespace svg2__cuda {

static size_t workspace_bytes(const svg2_backend *backend, svg2_stage stage, const void *desc)
{
    (void)backend;
    switch (stage) {
    case SVG2_STAGE_KMEANS: return kmeans_layout((const svg2_kmeans_desc *)desc, NULL);
    case SVG2_STAGE_PERMUTE: return permute_layout((const svg2_permute_desc *)desc, NULL);
    case SVG2_STAGE_SUMMARIZE: return summarize_layout((const svg2_summarize_desc *)desc, NULL);
    case SVG2_STAGE_SCORE: return score_layout((const svg2_score_desc *)desc, NULL);
    case SVG2_STAGE_SELECT: return select_layout((const svg2_select_desc *)desc, NULL);
    case SVG2_STAGE_TAIL: return tail_layout((const svg2_tail_desc *)desc, NULL, NULL);
    case SVG2_STAGE_ATTENTION: return attention_layout((const svg2_attention_desc *)desc, NULL);
    case SVG2_STAGE_MASS: return mass_layout((const svg2_mass_desc *)desc, NULL);
    case SVG2_STAGE_PLACE: return 0;
    case SVG2_STAGE_BAND: return 0;
    case SVG2_STAGE_PICK: return pick_layout((const svg2_pick_desc *)desc, NULL, NULL, NULL);
    case SVG2_STAGE_PROFILE: return profile_layout((const svg2_profile_desc *)desc, NULL, NULL);
    case SVG2_STAGE_FRONT: return front_layout((const svg2_front_desc *)desc, NULL, NULL);
    default: return SIZE_MAX;
    }
}

static svg2_result copy_inside(const svg2_backend *backend, void *to, const void *from, size_t bytes,
                               svg2_error *err)
{
    SVG2__CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_of(backend)), "copy");
    return ok(err);
}

/* These two wait for the copy (state as bytes, tests and tools); nothing else here does. */
static svg2_result copy(const svg2_backend *backend, void *to, const void *from, size_t bytes,
                        cudaMemcpyKind kind, const char *field, svg2_error *err)
{
    SVG2__CUDA(cudaMemcpyAsync(to, from, bytes, kind, stream_of(backend)), field);
    SVG2__CUDA(cudaStreamSynchronize(stream_of(backend)), field);
    return ok(err);
}

static svg2_result copy_out(const svg2_backend *backend, void *host, const void *memory, size_t bytes,
                            svg2_error *err)
{
    return copy(backend, host, memory, bytes, cudaMemcpyDeviceToHost, "copy_out", err);
}

static svg2_result copy_in(const svg2_backend *backend, void *memory, const void *host, size_t bytes,
                           svg2_error *err)
{
    return copy(backend, memory, host, bytes, cudaMemcpyHostToDevice, "copy_in", err);
}

} /* namespace svg2__cuda */

extern "C" svg2_backend svg2_cuda_backend_arch(void *stream, int32_t arch)
{
    svg2_backend b;
    memset(&b, 0, sizeof b);
    b.name = "cuda";
    b.arch = arch;
    b.version = SVG2_VERSION;
    b.desc_bytes = (uint32_t)sizeof(svg2_desc);
    b.align = svg2__cuda::ALIGN;
    b.tail_heads = 4; /* 400 query clusters: 105 MB of matrices */
    b.user = stream;
    b.workspace_bytes = svg2__cuda::workspace_bytes;
    b.kmeans = svg2__cuda::run_kmeans;
    b.permute = svg2__cuda::run_permute;
    b.summarize = svg2__cuda::run_summarize;
    b.score = svg2__cuda::run_score;
    b.select = svg2__cuda::run_select;
    b.tail = svg2__cuda::run_tail;
    b.attention = svg2__cuda::run_attention;
    b.mass = svg2__cuda::run_mass;
    b.place = svg2__cuda::run_place;
    b.band = svg2__cuda::run_band;
    b.pick = svg2__cuda::run_pick;
    b.profile = svg2__cuda::run_profile;
    b.front = svg2__cuda::run_front;
    b.copy = svg2__cuda::copy_inside;
    b.copy_out = svg2__cuda::copy_out;
    b.copy_in = svg2__cuda::copy_in;
    return b;
}

extern "C" svg2_backend svg2_cuda_backend(void *stream) { return svg2_cuda_backend_arch(stream, 0); }

extern "C" svg2_result svg2_cuda_check(svg2_error *err)
{
    int device = 0, major = 0;
    SVG2__CUDA(cudaGetDevice(&device), "device");
    SVG2__CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
    if (major < 8)
        return svg2__cuda::set_error(err, SVG2_ERR_BACKEND, "device", "has a compute capability below 8.0",
                                     cudaSuccess);
    return svg2__cuda::ok(err);
}
