/* svg2_cuda.cu - the stages of svg2.h on NVIDIA GPUs (compute capability 8.0 and newer), one file - MIT licence

   Add it to a build that has svg2.h implemented somewhere, link, and pass svg2_cuda_backend(stream) where
   svg2_cpu_backend() was; every pointer of a call is then device memory:

       nvcc -std=c++17 -O3 -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -c svg2_cuda.cu

   Nothing here allocates, synchronises, or reads device data on the host: a call is a fixed sequence of launches, so it
   can be captured in a CUDA graph and replayed on new contents of the same buffers. Results have the same bits from run
   to run on one device: sums of floats go in a fixed order, atomics work on integers only.

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
  >>pipeline    the backend

   Arithmetic. Products run on the tensor cores with 16-bit operands and f32 accumulation: f16 if k and v are f16, else
   bf16. 16-bit inputs of that type enter unchanged. f32 inputs are rounded, keys after removal of their mean. Softmax,
   statistics, selection and centroids are f32 (sums of many terms f64). */
#include "svg2.h"

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

/* Carves a workspace. With base = NULL it only counts, so the function that lays out memory also tells its size. */
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

static svg2_result set_error(svg2_error *err, svg2_result code, const char *field, const char *text, cudaError_t cuda)
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

/* Launch on the backend's stream. The return value is that of the launch alone: errors of the caller's earlier work stay
   where they are. Nothing to do (an empty grid) is no error. */
template <class... P, class... A>
static svg2_result launch(const svg2_backend *backend, svg2_error *err, const char *name, void (*kernel)(P...), dim3 grid,
                          unsigned threads, size_t smem_bytes, A... args)
{
    cudaLaunchConfig_t config;
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return SVG2_OK;
    memset(&config, 0, sizeof config);
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = smem_bytes;
    config.stream = stream_of(backend);
    if (smem_bytes > 48 * 1024)
        SVG2__CUDA(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem_bytes), name);
    SVG2__CUDA(cudaLaunchKernelEx(&config, kernel, (P)args...), name);
    return SVG2_OK;
}

/* Grids have 2^31 - 1 blocks in x. Work items are counted in 64 bits and folded by grid-stride loops where more are
   possible. */
static inline unsigned grid_of(int64_t items)
{
    return (unsigned)(items > 0x7fffffff ? 0x7fffffff : items);
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
    int32_t     dtype, is_vector; /* is_vector: every row is aligned to 16 bytes, so it may be read 8 elements at a time */
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
    t.is_vector = (((uintptr_t)data | (uintptr_t)((size_t)l.stride_batch * unit) | (uintptr_t)((size_t)l.stride_head * unit)
                    | (uintptr_t)((size_t)l.stride_token * unit)) % 16) == 0;
    return t;
}

} /* namespace svg2__cuda */

/* ==== >>ptx ==============================================================================
   All PTX of the file, one instruction a function, named by the section of the PTX ISA. A build that brings its own (the
   emulation in tests/emu) defines SVG2_DEVICE_OPS_PROVIDED. */
#ifndef SVG2_DEVICE_OPS_PROVIDED
#define SVG2_DYN_SMEM(name, align) extern __shared__ __align__(align) unsigned char name[]
#define SVG2__OP static __device__ __forceinline__

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
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(src_bytes) : "memory");
}
SVG2__OP void svg2__cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* until at most N groups of this thread are under way */
template <int N> SVG2__OP void svg2__cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

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
SVG2__OP void svg2__mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
SVG2__OP void svg2__mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif /* SVG2_DEVICE_OPS_PROVIDED */

/* ==== >>common =========================================================================== */
namespace svg2__cuda {

#define SVG2__DEVICE static __device__ __forceinline__

/* ---- 16-bit types ---- */
SVG2__DEVICE __nv_bfloat16 round_to(float x, __nv_bfloat16) { return __float2bfloat16_rn(x); }
SVG2__DEVICE __half round_to(float x, __half) { return __float2half_rn(x); }
SVG2__DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
SVG2__DEVICE float to_float(__half x) { return __half2float(x); }

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

/* ---- a tile of 16-bit rows in shared memory ----
   Rows of DIM elements (a multiple of 32), no padding; the 16-byte chunks of a row are permuted within groups of 8 (of 4
   where DIM is no multiple of 64) by the row number, so that the 8 rows of a matrix of ldmatrix lie in different banks. */
template <int DIM> SVG2__DEVICE uint32_t tile_at(int row, int chunk)
{
    static_assert(DIM % 32 == 0, "tiles have rows of whole groups of chunks");
    if (DIM % 64 == 0) return (uint32_t)(row * DIM * 2 + ((chunk ^ (row & 7)) << 4));
    return (uint32_t)(row * DIM * 2 + ((chunk ^ (row >> 1 & 3)) << 4));
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

/* ==== >>kmeans ============================================================================= */
namespace svg2__cuda {

static size_t kmeans_layout(const svg2_kmeans_desc *d, void *base)
{
    (void)d, (void)base;
    return 0;
}

static svg2_result run_kmeans(const svg2_backend *backend, const svg2_kmeans_desc *d, void *workspace, svg2_error *err)
{
    (void)backend, (void)d, (void)workspace;
    return set_error(err, SVG2_ERR_BACKEND, "kmeans", "is not built yet", cudaSuccess);
}

} /* namespace svg2__cuda */

/* ==== >>permute ============================================================================ */
namespace svg2__cuda {

static size_t permute_layout(const svg2_permute_desc *d, void *base)
{
    (void)d, (void)base;
    return 0;
}

static svg2_result run_permute(const svg2_backend *backend, const svg2_permute_desc *d, void *workspace, svg2_error *err)
{
    (void)backend, (void)d, (void)workspace;
    return set_error(err, SVG2_ERR_BACKEND, "permute", "is not built yet", cudaSuccess);
}

} /* namespace svg2__cuda */

/* ==== >>score ============================================================================== */
namespace svg2__cuda {

static size_t summarize_layout(const svg2_summarize_desc *d, void *base)
{
    (void)d, (void)base;
    return 0;
}

static svg2_result run_summarize(const svg2_backend *backend, const svg2_summarize_desc *d, void *workspace, svg2_error *err)
{
    (void)backend, (void)d, (void)workspace;
    return set_error(err, SVG2_ERR_BACKEND, "summarize", "is not built yet", cudaSuccess);
}

static size_t score_layout(const svg2_score_desc *d, void *base)
{
    (void)d, (void)base;
    return 0;
}

static svg2_result run_score(const svg2_backend *backend, const svg2_score_desc *d, void *workspace, svg2_error *err)
{
    (void)backend, (void)d, (void)workspace;
    return set_error(err, SVG2_ERR_BACKEND, "score", "is not built yet", cudaSuccess);
}

} /* namespace svg2__cuda */

/* ==== >>select ============================================================================= */
namespace svg2__cuda {

static size_t select_layout(const svg2_select_desc *d, void *base)
{
    (void)d, (void)base;
    return 0;
}

static svg2_result run_select(const svg2_backend *backend, const svg2_select_desc *d, void *workspace, svg2_error *err)
{
    (void)backend, (void)d, (void)workspace;
    return set_error(err, SVG2_ERR_BACKEND, "select", "is not built yet", cudaSuccess);
}

} /* namespace svg2__cuda */

/* ==== >>tail =============================================================================== */
namespace svg2__cuda {

static size_t tail_layout(const svg2_tail_desc *d, void *base)
{
    (void)d, (void)base;
    return 0;
}

static svg2_result run_tail(const svg2_backend *backend, const svg2_tail_desc *d, void *workspace, svg2_error *err)
{
    (void)backend, (void)d, (void)workspace;
    return set_error(err, SVG2_ERR_BACKEND, "tail", "is not built yet", cudaSuccess);
}

} /* namespace svg2__cuda */

/* ==== >>attention ========================================================================== */
namespace svg2__cuda {

static size_t attention_layout(const svg2_attention_desc *d, void *base)
{
    (void)d, (void)base;
    return 0;
}

static svg2_result run_attention(const svg2_backend *backend, const svg2_attention_desc *d, void *workspace, svg2_error *err)
{
    (void)backend, (void)d, (void)workspace;
    return set_error(err, SVG2_ERR_BACKEND, "attention", "is not built yet", cudaSuccess);
}

} /* namespace svg2__cuda */

/* ==== >>mass =============================================================================== */
namespace svg2__cuda {

static size_t mass_layout(const svg2_mass_desc *d, void *base)
{
    (void)d, (void)base;
    return 0;
}

static svg2_result run_mass(const svg2_backend *backend, const svg2_mass_desc *d, void *workspace, svg2_error *err)
{
    (void)backend, (void)d, (void)workspace;
    return set_error(err, SVG2_ERR_BACKEND, "mass", "is not built yet", cudaSuccess);
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
    case SVG2_STAGE_TAIL: return tail_layout((const svg2_tail_desc *)desc, NULL);
    case SVG2_STAGE_ATTENTION: return attention_layout((const svg2_attention_desc *)desc, NULL);
    case SVG2_STAGE_MASS: return mass_layout((const svg2_mass_desc *)desc, NULL);
    default: return SIZE_MAX;
    }
}

/* These two wait for the copy (state as bytes, tests and tools); nothing else here does. */
static svg2_result copy(const svg2_backend *backend, void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                        const char *field, svg2_error *err)
{
    SVG2__CUDA(cudaMemcpyAsync(to, from, bytes, kind, stream_of(backend)), field);
    SVG2__CUDA(cudaStreamSynchronize(stream_of(backend)), field);
    return ok(err);
}

static svg2_result copy_out(const svg2_backend *backend, void *host, const void *memory, size_t bytes, svg2_error *err)
{
    return copy(backend, host, memory, bytes, cudaMemcpyDeviceToHost, "copy_out", err);
}

static svg2_result copy_in(const svg2_backend *backend, void *memory, const void *host, size_t bytes, svg2_error *err)
{
    return copy(backend, memory, host, bytes, cudaMemcpyHostToDevice, "copy_in", err);
}

} /* namespace svg2__cuda */

extern "C" svg2_backend svg2_cuda_backend(void *stream)
{
    svg2_backend b;
    memset(&b, 0, sizeof b);
    b.name = "cuda";
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
    b.copy_out = svg2__cuda::copy_out;
    b.copy_in = svg2__cuda::copy_in;
    return b;
}

extern "C" svg2_result svg2_cuda_check(svg2_error *err)
{
    int device = 0, major = 0;
    SVG2__CUDA(cudaGetDevice(&device), "device");
    SVG2__CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
    if (major < 8)
        return svg2__cuda::set_error(err, SVG2_ERR_BACKEND, "device", "has a compute capability below 8.0", cudaSuccess);
    return svg2__cuda::ok(err);
}
