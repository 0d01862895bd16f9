/* svg2.h - v0.1.0 - MIT licence - sparse attention for video diffusion transformers, no retraining

   A video transformer spends most of its time in attention between all pairs of tokens. svg2 groups similar
   queries and similar keys, computes exactly the blocks of pairs that matter, and stands a cheap expansion in
   for the rest.

   Do this in ONE C or C++ file, then include the header wherever it is used:

       #define SVG2_IMPLEMENTATION
       #include "svg2.h"

   Synopsis (examples/minimal.c is this, complete):

       svg2_desc d = SVG2_ZERO;                               // zero = default, everywhere
       d.heads = 24; d.tokens = 33 * 3600; d.head_dim = 128;  // one layer of HunyuanVideo 720p, batch 1, f32
       svg2_backend cpu = svg2_cpu_backend(0);                // 0 = calling thread only
       svg2_state state;                                      // one per (layer, guidance branch)
       svg2_state_init(&state, &d, state_memory, svg2_state_bytes(&d), &err);
       for (step = 0; step < steps; ++step)                   // the clusters follow from step to step
           svg2_attend(&cpu, &d, &state, step, q, k, v, out, 0, 0, work, svg2_workspace_bytes(&cpu, &d), &err);

   svg2.h DOES NOT allocate memory, print, exit, read the environment, start threads, or keep anything between
   calls except in the svg2_state you own. It does not train, does not do backward passes, does not mask causally.

TABLE OF CONTENTS   (jump: search for the tag, e.g. ">>api")
  >>config      macros you may define before including
  >>conventions layouts, extents, dtypes, units, errors, ownership, threads, determinism, NaN
  >>algorithm   SVG2 and its tail on one page, with the formulas the code uses
  >>api         types and functions you call; a user may stop reading where it ends
  >>impl        start of the implementation
  >>base        integer maths, carving workspaces, errors, validation helpers
  >>dtype       f16 and bf16 conversion
  >>rng         counter-based random numbers
  >>parallel    running a task over items
  >>dispatch    the handful of inner loops, scalar and SIMD, and the table that picks them
  >>kmeans      grouping tokens by similarity
  >>permute     counting sort of tokens into blocks; statistics of a key cluster
  >>score       log mass of blocks as the query centroids see them
  >>select      which blocks are computed exactly
  >>attention   attention over a block map, the tail, merging of partial results
  >>mass        exact attention mass of every block: the oracle
  >>tiles       blocks of neighbouring tokens: where they lie, bands of them, choosing them by exact mass
  >>profile     spatial or temporal: sampled rows under both bands
  >>front       RMSNorm of queries and keys and rotary positions, in one pass
  >>schedule    dense or sparse, presets, cost
  >>pipeline    resolve, state, svg2_attend
  >>stats       error metrics
  >>licence     MIT
*/

/* ==== >>config ===========================================================================
   Define globally (every file that includes svg2.h must agree):
     SVG2_API          linkage of public functions; default: extern "C" in C++, extern in C
     SVG2_STATIC       makes all public functions static (then implement in every file that uses them)
     SVG2_OPENMP       declares svg2_parallel_openmp(), a ready-made thread pool; compile with -fopenmp
   Define in the implementing file only:
     SVG2_IMPLEMENTATION   compiles the implementation
     SVG2_ASSERT(x)        checks of internal consistency; default: nothing
     SVG2_NO_SIMD          scalar loops only
     SVG2_DEBUG_WORKSPACE  leaves gaps between the arrays carved from a workspace; under AddressSanitizer the
                           gaps are poisoned, so that an overrun inside a workspace is found
   Build the implementing file with -O2 -ffp-contract=off if results must have the same bits under every
   compiler. */

/* ==== >>conventions ======================================================================
   Extents    B batch, H heads (Hkv of keys and values), S tokens (Sq of queries, Skv of keys), D head_dim,
              Cq and Ck clusters, Qb and Kb blocks: the clusters, then the text block and the padding block if
              any.
   Layouts    [B, H, S, D] row-major unless an svg2_layout says otherwise; strides count elements; D is
              contiguous. [B, S, H, D] is stride_batch = S*H*D, stride_head = D, stride_token = H*D.
   Dtypes     q, k, v, out are f32, f16 or bf16, each on its own; arithmetic and the LSE are f32 (the tail, an
              approximation itself, takes bf16 products on SVG2_SIMD_AVX512BF16).
              LSE = natural log of the sum of exp(scale * q.k); -INFINITY for a row that attends to nothing.
   Limits     head_dim: multiples of 8 up to 256. Any token count from 1 to 2^31 - 1024. heads % heads_kv == 0.
   Text       text tokens stand first or last; the last text_tokens - text_valid of them are padding. Valid text
              attends to every valid token and is attended by every valid token; padding attends to nothing (its
              output is 0, its LSE -INFINITY) and nobody attends to it.
   Errors     every function that can fail returns svg2_result and fills the caller's svg2_error: code, field,
              sentence. Arguments are validated before anything is written.
   Memory     the caller owns all of it. Workspaces and state memory are aligned to SVG2_ALIGN bytes; sizes by
              query; SIZE_MAX from a query means "does not fit into size_t, or the descriptor is invalid".
   Threads    every function is reentrant: no global state. Two threads may work with two states at once.
              One state must not be used by two threads at once.
   Same bits  for any number of threads, from run to run, and for any order or split of heads and batch entries.
              Different instruction sets (svg2_simd) and compilers round differently.
   NaN, Inf   in q, k, v never harm memory or hang. Where clustering meets one in q or k, selection keeps
              everything that it touches, so that it reaches the outputs it would reach in dense attention (and
              maybe more). One in v reaches the rows that compute its block or carry it in their tail; without a
              tail a skipped key is gone. */

/* ==== >>algorithm ========================================================================
   For each batch entry and head, with scale s (default 1/sqrt(D)):

   1 k-means     Q into Cq clusters, K into Ck clusters (Lloyd, squared distance), starting from the previous
                 denoising step's centroids. The mean of K over tokens is removed first: softmax does not see it,
                 rounding does.
                 assign   a(x) = argmax_c  x.c - |c|^2/2 ,  ties to the lower c
                 update   c = mean of its tokens
   2 permute     order, offset: tokens of a cluster made contiguous (stable counting sort)
   3 summarize   per key cluster j:  n_j,  kbar_j,  vbar_j,  |var v_j|
   4 score       lambda_Ij = ln sum_{t in j} exp(s qbar_I.(k_t - kbar_j)) : the exact log mass of the block as
                 the query centroid sees it, less its centroid logit. ln n_j if all keys of the cluster were
                 equal; the difference, doubled, is the variance of the logits inside the block:
                 spread_Ij = 2 (lambda_Ij - ln n_j). And what the rows themselves see of cluster j:
                 share_Ij = mean over the rows i of I of softmax_j(s q_i.kbar_j + lambda_Ij)
   5 select      S_Ij = s qbar_I.kbar_j      P_Ij = n_j exp(S_Ij) / sum_j n_j exp(S_Ij)       (f32)
                 SVG2's rule: clusters by falling P until their sum passes top_p, and at least min_keep * Ck of
                 them. Or, with the share in place of P: the same area, or a fixed density, or as much as
                 a target error needs, where P (or P * spread) per key-query pair is highest, with one budget per
                 query cluster or per head.
   6 attention   o_i = softmax over the keys of the selected blocks, plus the tail in the same softmax:
                 order 0   one virtual key per skipped cluster: logit s q_i.kbar_j + lambda_Ij, value vbar_j
                 order 1   C_j = 1/n_j sum_t (k_t - kbar_j)(v_t - vbar_j)^T ,  w_Ij = exp(S_Ij + lambda_Ij)
                           A_I = sum_j w_Ij C_j / sum_j w_Ij over skipped j ,
                           o_i += (row's tail weight) s A_I^T q_i
   Other methods make blocks, or a map, in another way, and end in the same attention:
   SVG1          blocks of neighbours in space or in time, whichever band errs less on sampled rows (>>profile)
   ADASPA        blocks of neighbours, those with the largest exact mass, searched at a few steps (>>tiles)
   and with any map, the whole one included, tiles may be left out while it is computed: skip rules (>>attention).

   Sources: SVG2, arXiv 2505.18875 (1, 2, 5 with mass, top-p). Order 0 with ln n_j for lambda: SVG-EAR, arXiv
   2603.08982. Spread, lambda, share and order 1: own. On synthetic video (8 heads of 64, 4,096 tokens, 10 % density)
   lambda in place of ln n_j lifts output accuracy from 22.9 to 25.0 dB with order 0 and from 23.5 to 28.2 dB with
   order 1, for Cq/(2 Skv) of the cost of dense attention: without it the two errors of order 0, too little weight
   and values of the wrong keys, partly cancel, and mending one of them gains little. In sharp heads of trained
   models the rows of a cluster look at other keys than its centroid does: there the share, for Ck/(2 Skv) of dense,
   takes a third off the error (a clip of examples/wan, 10 % density, order 1: 0.061 to 0.040; exact mass gives 0.033),
   and the estimate of a target error sees it, too.

   stage      public function      CPU truth                what the pipeline hands on
   1          svg2_kmeans          svg2__mk_scalar          label [B,H,S], centroid [B,H,C,D], mean [B,H,D]
   2          svg2_permute         -                        order [B,H,S], offset [B,H,blocks+1]
   3          svg2_summarize       svg2__moments_scalar     value_mean [B,Hkv,Ck,D], value_var [B,Hkv,Ck]
   4          svg2_score           svg2__softmax_scalar     log_mass lambda, share [B,H,Cq,Ck]
   5          svg2_select          -                        map [B,H,Qb,Kb]
   6a         svg2_tail            svg2__mk_scalar          matrix A [heads, Cq, D, D]
   6b         svg2_attention       svg2__mk_scalar          out, lse
   oracle     svg2_block_mass      svg2__mk_scalar          mass [heads,Qb,Kb], recall [B,H,Sq]
   tiles      svg2_place           svg2__grid_label         label
              svg2_band            svg2__grid_near          map
              svg2_pick            -                        map, bits
              svg2_profile         svg2__mk_scalar          pattern [B,Hkv], error [B,H,2]
   before all svg2_front           svg2__turn_scalar        q, k (svg2_attend does not call it) */

/* ==== >>api ============================================================================== */
#ifndef SVG2_H_INCLUDED
#define SVG2_H_INCLUDED

#define SVG2_VERSION 100 /* major*10000 + minor*100 + patch */
#define SVG2_ALIGN 64    /* bytes; every workspace and state memory on the CPU */

#include <stddef.h>
#include <stdint.h>

#ifndef SVG2_API
#  ifdef SVG2_STATIC
#    define SVG2_API static
#  elif defined(__cplusplus)
#    define SVG2_API extern "C"
#  else
#    define SVG2_API extern
#  endif
#endif

#define SVG2_MAX_SEARCHES 8

/* Zero a descriptor without warnings in either language: svg2_desc d = SVG2_ZERO; */
#ifdef __cplusplus
#  define SVG2_ZERO {}
#else
#  define SVG2_ZERO {0}
#endif

/* ---- results ---------------------------------------------------------------------------- */
#define SVG2_RESULTS(X)                                                          \
    X(SVG2_OK,              0, "ok")                                             \
    X(SVG2_ERR_NULL,        1, "pointer is NULL")                                \
    X(SVG2_ERR_RANGE,       2, "value out of range")                             \
    X(SVG2_ERR_SHAPE,       3, "shapes do not fit together")                     \
    X(SVG2_ERR_DTYPE,       4, "unsupported dtype")                              \
    X(SVG2_ERR_STRIDE,      5, "strides overlap or overflow")                    \
    X(SVG2_ERR_ALIGN,       6, "memory is not aligned to SVG2_ALIGN")            \
    X(SVG2_ERR_WORKSPACE,   7, "memory is too small")                            \
    X(SVG2_ERR_OVERFLOW,    8, "size overflows")                                 \
    X(SVG2_ERR_STATE,       9, "state belongs to another shape or was never initialised") \
    X(SVG2_ERR_DATA,       10, "saved bytes are damaged or of another version")  \
    X(SVG2_ERR_BACKEND,    11, "backend failed or does not fit this header")

typedef enum svg2_result {
#define SVG2__X(name, value, text) name = value,
    SVG2_RESULTS(SVG2__X)
#undef SVG2__X
    SVG2_RESULT_FORCE_I32 = 0x7fffffff
} svg2_result;

/* Filled by every call that takes one (NULL is allowed). The strings are constants and live for ever. */
typedef struct svg2_error {
    svg2_result code;
    const char *field; /* name of the offending field or argument, e.g. "head_dim"; "" if none   */
    const char *text;  /* one sentence, e.g. "must be a multiple of 8 between 8 and 256"           */
    int32_t     cuda;  /* cudaError_t of a failing CUDA call, else 0                               */
} svg2_error;

/* Constant sentence for a result code. */
SVG2_API const char *svg2_result_string(svg2_result result);

/* ---- tensors ---------------------------------------------------------------------------- */
typedef enum svg2_dtype {
    SVG2_F32 = 0,
    SVG2_F16 = 1,
    SVG2_BF16 = 2,
    SVG2_DTYPE_FORCE_I32 = 0x7fffffff
} svg2_dtype;

/* How a [B, H, S, D] tensor lies in memory. All strides 0 = contiguous in that order. Strides in elements, >= 0.
   A stride of 0 beside nonzero ones is allowed for inputs (a broadcast) and an error for outputs with extent >
   1. */
typedef struct svg2_layout {
    svg2_dtype dtype;
    int64_t    stride_batch, stride_head, stride_token;
} svg2_layout;

/* Convert count elements between dtypes (f16 and bf16 round to nearest even). dst and src must not overlap
   unless equal with equal element size. Reentrant. */
SVG2_API void svg2_convert(void *dst, svg2_dtype dst_dtype, const void *src, svg2_dtype src_dtype, size_t count);

/* ---- threads ---------------------------------------------------------------------------- */
/* Handle items [begin, end). worker is in [0, workers); two calls running at the same time have different
   workers. */
typedef void svg2_task_fn(void *task, int64_t begin, int64_t end, int32_t worker);

/* Cover [0, count) by calls of fn, on any threads, in pieces of at least grain items (the last may be smaller);
   return when all are done. */
typedef void svg2_parallel_fn(void *user, svg2_task_fn *fn, void *task, int64_t count, int64_t grain);

typedef struct svg2_parallel {
    svg2_parallel_fn *run;     /* 0: everything runs on the calling thread */
    void             *user;
    int32_t           workers; /* upper bound of worker + 1; 0 = 1. The workspace grows with it. At most 4096. */
} svg2_parallel;

#ifdef SVG2_OPENMP
/* OpenMP threads; threads <= 0 takes the default number. Needs -fopenmp in the implementing file. */
SVG2_API svg2_parallel svg2_parallel_openmp(int32_t threads);
#endif

/* ---- backends --------------------------------------------------------------------------- */
typedef enum svg2_simd {
    SVG2_SIMD_BEST = 0, /* the fastest that this machine has */
    SVG2_SIMD_SCALAR = 1,
    SVG2_SIMD_AVX2 = 2, /* with FMA and F16C */
    SVG2_SIMD_AVX512 = 3, /* F */
    SVG2_SIMD_AVX512BF16 = 4, /* and bf16 products at twice the rate: for candidates in k-means (labels unchanged) and
                                 for the tail (changes the output by 5e-4 on synthetic video, where the tail itself
                                 errs by 1e-2, and by at most 1.4e-3 in the tests) */
    SVG2_SIMD_FORCE_I32 = 0x7fffffff
} svg2_simd;

typedef struct svg2_backend       svg2_backend;
typedef struct svg2_kmeans_desc    svg2_kmeans_desc;
typedef struct svg2_permute_desc   svg2_permute_desc;
typedef struct svg2_summarize_desc svg2_summarize_desc;
typedef struct svg2_score_desc     svg2_score_desc;
typedef struct svg2_select_desc    svg2_select_desc;
typedef struct svg2_tail_desc      svg2_tail_desc;
typedef struct svg2_attention_desc svg2_attention_desc;
typedef struct svg2_mass_desc      svg2_mass_desc;
typedef struct svg2_place_desc     svg2_place_desc;
typedef struct svg2_band_desc      svg2_band_desc;
typedef struct svg2_pick_desc      svg2_pick_desc;
typedef struct svg2_profile_desc   svg2_profile_desc;
typedef struct svg2_front_desc     svg2_front_desc;

typedef enum svg2_stage {
    SVG2_STAGE_KMEANS = 0,
    SVG2_STAGE_PERMUTE,
    SVG2_STAGE_SUMMARIZE,
    SVG2_STAGE_SCORE,
    SVG2_STAGE_SELECT,
    SVG2_STAGE_TAIL,
    SVG2_STAGE_ATTENTION,
    SVG2_STAGE_MASS,
    SVG2_STAGE_PLACE,
    SVG2_STAGE_BAND,
    SVG2_STAGE_PICK,
    SVG2_STAGE_PROFILE,
    SVG2_STAGE_FRONT,
    SVG2_STAGE_COUNT
} svg2_stage;

/* The stages as functions. svg2_attend and the public stage functions validate, then call through this table, so
   a caller may copy a backend and wrap entries (to time them, say). All memory in the stage descriptors is the
   backend's: host memory for the CPU, device memory for CUDA. */
struct svg2_backend {
    const char   *name;       /* "cpu"                                                       */
    uint32_t      version;    /* SVG2_VERSION the backend was built with                     */
    uint32_t      desc_bytes; /* sizeof(svg2_desc) the backend was built with                */
    size_t        align;      /* of workspaces and state memory, bytes                       */
    svg2_parallel parallel;   /* CPU                                                         */
    svg2_simd     simd;       /* CPU: never SVG2_SIMD_BEST                                   */
    int32_t       arch;       /* CUDA: 0, 80 or 90, see svg2_cuda_backend_arch               */
    int32_t       tail_heads; /* heads whose order-1 tail or block mass is prepared at once  */
    void         *user;       /* free for the backend                                        */
    size_t (*workspace_bytes)(const svg2_backend *, svg2_stage, const void *stage_desc);
    svg2_result (*kmeans)(const svg2_backend *, const svg2_kmeans_desc *, void *workspace, svg2_error *);
    svg2_result (*permute)(const svg2_backend *, const svg2_permute_desc *, void *workspace, svg2_error *);
    svg2_result (*summarize)(const svg2_backend *, const svg2_summarize_desc *, void *workspace, svg2_error *);
    svg2_result (*score)(const svg2_backend *, const svg2_score_desc *, void *workspace, svg2_error *);
    svg2_result (*select)(const svg2_backend *, const svg2_select_desc *, void *workspace, svg2_error *);
    svg2_result (*tail)(const svg2_backend *, const svg2_tail_desc *, void *workspace, svg2_error *);
    svg2_result (*attention)(const svg2_backend *, const svg2_attention_desc *, void *workspace, svg2_error *);
    svg2_result (*mass)(const svg2_backend *, const svg2_mass_desc *, void *workspace, svg2_error *);
    svg2_result (*place)(const svg2_backend *, const svg2_place_desc *, void *workspace, svg2_error *);
    svg2_result (*band)(const svg2_backend *, const svg2_band_desc *, void *workspace, svg2_error *);
    svg2_result (*pick)(const svg2_backend *, const svg2_pick_desc *, void *workspace, svg2_error *);
    svg2_result (*profile)(const svg2_backend *, const svg2_profile_desc *, void *workspace, svg2_error *);
    svg2_result (*front)(const svg2_backend *, const svg2_front_desc *, void *workspace, svg2_error *);
    svg2_result (*copy)(const svg2_backend *, void *to, const void *from, size_t bytes, svg2_error *); /* inside */
    svg2_result (*copy_out)(const svg2_backend *, void *host, const void *memory, size_t bytes, svg2_error *);
    svg2_result (*copy_in)(const svg2_backend *, void *memory, const void *host, size_t bytes, svg2_error *);
};

/* CPU backend. parallel may be NULL (serial). The struct is self-contained: copy it freely. */
SVG2_API svg2_backend svg2_cpu_backend(const svg2_parallel *parallel);

/* The same, restricted to one instruction set, for tests and for equal bits across machines; what the machine
   lacks falls back to the next smaller one (look at .simd). */
SVG2_API svg2_backend svg2_cpu_backend_simd(const svg2_parallel *parallel, svg2_simd simd);

/* CUDA backend, implemented by svg2_cuda.cu; call it only where that file is linked. stream is a cudaStream_t (NULL =
   the default stream): all work is launched on it, on the device that is current at the call, and nothing waits for
   it. Every pointer of a call (tensors, state and workspace memory, lse, stats) is device memory; workspaces and state
   memory are aligned to 256 bytes, as cudaMalloc's is. Two streams may work at once with two workspaces. */
#ifndef SVG2_STATIC
SVG2_API svg2_backend svg2_cuda_backend(void *stream);

/* The same, kept to the kernels of one generation, for tests and for equal bits across devices. arch 80: mma.sync, on
   any device; 90: wgmma, on compute capability 9.0 in a build with code for sm_90a, elsewhere SVG2_ERR_BACKEND, "arch".
   0, as above: 90 where that is possible, else 80. */
SVG2_API svg2_backend svg2_cuda_backend_arch(void *stream, int32_t arch);

/* svg2_merge on the device, on that stream: all pointers are device memory, the rest as there. */
SVG2_API svg2_result svg2_cuda_merge(void *stream, const float *out_a, const float *lse_a, const float *out_b,
                                     const float *lse_b, float *out, float *lse, int64_t rows, int32_t dim,
                                     svg2_error *err);

/* SVG2_OK if the current device can run it (compute capability 8.0 or newer), else SVG2_ERR_BACKEND with the reason. */
SVG2_API svg2_result svg2_cuda_check(svg2_error *err);
#endif

/* ---- the whole operation (>>pipeline, >>schedule) ---------------------------------------- */
typedef enum svg2_method {
    SVG2_METHOD_SVG2 = 0,
    SVG2_METHOD_DENSE = 1,
    SVG2_METHOD_SVG1 = 2,   /* bands of neighbouring tokens, in space or in time, head by head: arXiv 2502.01776 */
    SVG2_METHOD_ADASPA = 3, /* blocks of neighbouring tokens with the largest exact mass, found at a few steps:
                               arXiv 2502.21079                                                              */
    SVG2_METHOD_FORCE_I32 = 0x7fffffff
} svg2_method;

typedef enum svg2_text_place {
    SVG2_TEXT_LAST = 0,  /* [video | text | padding] */
    SVG2_TEXT_FIRST = 1, /* [text | padding | video] */
    SVG2_TEXT_FORCE_I32 = 0x7fffffff
} svg2_text_place;

typedef enum svg2_tail_kind {
    SVG2_TAIL_DEFAULT = 0,
    SVG2_TAIL_NONE = 1,   /* skipped blocks are dropped, as SVG2 does                           */
    SVG2_TAIL_ORDER0 = 2, /* one virtual key per skipped cluster                                */
    SVG2_TAIL_ORDER1 = 3, /* and the first-order term, summed per query cluster                 */
    SVG2_TAIL_FORCE_I32 = 0x7fffffff
} svg2_tail_kind;

typedef enum svg2_route {
    SVG2_ROUTE_DEFAULT = 0,
    SVG2_ROUTE_MASS = 1,   /* estimated attention mass                                          */
    SVG2_ROUTE_SPREAD = 2, /* mass x variance of the logits inside the block: what a tail misses */
    SVG2_ROUTE_FORCE_I32 = 0x7fffffff
} svg2_route;

typedef enum svg2_budget {
    SVG2_BUDGET_DEFAULT = 0,
    SVG2_BUDGET_ROW = 1,  /* each query cluster has its own                                     */
    SVG2_BUDGET_HEAD = 2, /* one per head, spent where the score is highest                     */
    SVG2_BUDGET_FORCE_I32 = 0x7fffffff
} svg2_budget;

/* Rules that leave tiles out while attention runs: rows of a query block (64 on the CPU and with wgmma, else 32 or 16
   on a GPU) x up to 64 keys of its list (32 with mma.sync where head_dim > 128). The logits of a tile are always
   computed; if every one of its rows agrees, its weights and its product with V are not. The first tile of a row
   stays (with wgmma 128 keys, of up to 64 rows twice as many). The rules as formulas, and the proof of the third,
   are in >>attention. */
typedef enum svg2_skip {
    SVG2_SKIP_NONE = 0,
    SVG2_SKIP_CONSTANT = 1, /* largest weight of the tile < skip_threshold * largest so far: BLASST, arXiv 2512.12087 */
    SVG2_SKIP_ENERGY = 2,   /* largest weight < exp(energy_lambda) * sum of weights so far: cumulative energy
                               filtering, arXiv 2606.16317                                                         */
    SVG2_SKIP_RECALL = 3,   /* an account for each row of what it has lost: every row keeps at least this part of its
                               attention mass (of the mass inside the map, where there is one), whatever the input */
    SVG2_SKIP_FORCE_I32 = 0x7fffffff
} svg2_skip;

typedef enum svg2_visit {
    SVG2_VISIT_DEFAULT = 0,
    SVG2_VISIT_NATURAL = 1,  /* keys in the order of their list */
    SVG2_VISIT_DIAGONAL = 2, /* from the queries' own place in the list outwards: what matters most comes early. The
                                place is that of 256 rows on the CPU, of 128 or 64 on a GPU; and a GPU takes the
                                natural order where there are more than 512 key blocks                       */
    SVG2_VISIT_FORCE_I32 = 0x7fffffff
} svg2_visit;

/* What to compute. Zero means the default named behind each field; svg2_resolve() shows what 0 became. Fields
   whose zero would be a meaningful value take a negative number for it. */
typedef struct svg2_desc {
    /* extents */
    int32_t batch;    /* 1                                                                       */
    int32_t heads;    /* required                                                                */
    int32_t heads_kv; /* heads; grouped queries: heads % heads_kv == 0                           */
    int32_t tokens;   /* required; query tokens, text included                                   */
    int32_t tokens_kv; /* tokens; key and value tokens, text included                            */
    int32_t head_dim; /* required; multiple of 8, at most 256                                    */
    float   scale;    /* 1/sqrt(head_dim); factor of q.k                                         */
    svg2_layout q, k, v, out; /* f32, contiguous [B, H, S, D]                                    */

    /* what the tokens are */
    int32_t frames, frame_tokens;  /* 0, 0 = unknown; else frames*frame_tokens = video tokens (of the keys) */
    int32_t text_tokens;           /* 0; text tokens, padding included, in queries and keys alike */
    svg2_text_place text_place;    /* last                                                        */
    int32_t text_valid;            /* text_tokens; -1 = none: the other text tokens are padding   */

    /* method */
    svg2_method method;        /* SVG2                                                            */
    int32_t query_clusters;    /* 1.1 sqrt(query video tokens), see svg2_default_clusters          */
    int32_t key_clusters;      /* 3.6 sqrt(key video tokens)                                       */
    int32_t init_iterations;   /* 10; Lloyd iterations of the first sparse step (or of init_on_dense) */
    int32_t step_iterations;   /* 2; of every later step; -1 = 0: only assign to the old centroids */
    int32_t keep_empty;        /* 0 = re-seed empty clusters; 1 = leave them, as the authors' code */
    uint64_t seed;             /* 0; same seed, same bits, whatever the head's position            */
    int32_t block;             /* SVG1, ADASPA: tokens of a block; 64                              */
    float   keep;              /* SVG1: part of all pairs that a band takes, text and first frame
                                  included; 0.3. Needs frames and frame_tokens                     */
    int32_t band_width;        /* SVG1: positions; from keep                                       */
    int32_t sample_rows;       /* SVG1: rows that decide between space and time; 64                */
    int32_t first_frame;       /* SVG1: the first frame is seen by all: 1; -1 = not. Default: without text */
    float   sparsity;          /* ADASPA: part of the key blocks that a row of blocks leaves out; 0.8; -1 = 0 */
    float   mass_target;       /* ADASPA: 0 = off; else keep as few blocks as hold this part of the mass */
    int32_t search_count;      /* ADASPA: 2; steps at which blocks are searched, at most           */
    int32_t search_steps[SVG2_MAX_SEARCHES]; /* ascending; dense_steps, dense_steps + 20, ...       */

    /* which blocks are exact */
    svg2_route  route;         /* mass                                                             */
    svg2_budget budget;        /* head if there is a tail, else row                                */
    svg2_tail_kind tail;       /* order 1 with SVG2, else none; SVG1 has no other. ADASPA: order 1
                                  or none; order 0 may err more than none                          */
    float top_p;               /* 0.9; with budget row and route mass SVG2's rule; else its area is the budget.
                                  Given with a tail, it also switches off the default target error */
    float min_keep;            /* fraction of key clusters that every query cluster keeps, by mass:
                                  0.1 for row budgets by top_p, else none; -1 = none               */
    float density;             /* 0 = off; else the fraction of all video pairs to compute         */
    float target_error;        /* with a tail 0.02, unless top_p or density is given; else 0 = off: by top_p.
                                  Blocks are taken until the estimated relative L2 error of the
                                  head's output falls under it; excludes density                   */
    float dense_above;         /* 0.8; with target_error, a head that would need more becomes dense */

    /* which tiles of the exact blocks are left out while they are computed; goes with every method, dense included */
    svg2_skip  skip;           /* none                                                             */
    svg2_visit visit;          /* diagonal when method is dense, else natural                      */
    float skip_threshold;      /* SKIP_CONSTANT: 0.1; in (0, 1]                                    */
    float energy_lambda;       /* SKIP_ENERGY: ln(1.464 * 64 / keys), the published constant; < 0  */
    float recall;              /* SKIP_RECALL: 0.95; in (0, 1]                                     */
    int32_t seed_lse;          /* SKIP_ENERGY: 0; 1 = lse comes in as the call before left it (-INFINITY =
                                  unknown) and is an estimate: the rule skips from the first tiles on.
                                  Excludes SKIP_RECALL, whose promise old LSE would break          */

    /* schedule: dense at first, where the picture's layout is decided */
    int32_t layer;             /* 0; index of this layer                                           */
    int32_t dense_layers;      /* 0; layers below are dense                                        */
    int32_t dense_steps;       /* 0; steps below are dense                                         */
    int32_t init_on_dense;     /* 0; 1 = cluster on dense steps too, so that the first sparse step is warm */

    svg2_dtype state_dtype;    /* f32; bf16 halves the state                                       */
} svg2_desc;

/* Fill in what 0 meant, and check every field. Idempotent. On error *desc is unchanged.
   Returns SVG2_OK, SVG2_ERR_NULL, SVG2_ERR_RANGE, SVG2_ERR_SHAPE, SVG2_ERR_DTYPE, SVG2_ERR_STRIDE,
   SVG2_ERR_OVERFLOW; err->field names the field. */
SVG2_API svg2_result svg2_resolve(svg2_desc *desc, svg2_error *err);

/* The number of clusters that 0 means for this many video tokens. */
SVG2_API void svg2_default_clusters(int32_t video_tokens, int32_t *query_clusters, int32_t *key_clusters);

/* What svg2_attend will do at this step. A function of the arguments alone. */
typedef enum svg2_action {
    SVG2_ACTION_DENSE = 0,
    SVG2_ACTION_DENSE_INIT = 1, /* dense output, and the clusters are prepared */
    SVG2_ACTION_SPARSE = 2,
    SVG2_ACTION_SEARCH = 3, /* ADASPA: dense output; blocks are searched with this step's LSE, which is kept. So is a
                               later step of a state that is not warm                                           */
    SVG2_ACTION_SEARCH_CACHED = 4, /* ADASPA: blocks are searched with the LSE that was kept; sparse output     */
    SVG2_ACTION_FORCE_I32 = 0x7fffffff
} svg2_action;
SVG2_API svg2_action svg2_schedule(const svg2_desc *desc, int32_t step);

/* What a call computed, per (batch, head). In the backend's memory. */
typedef struct svg2_head_stats {
    int64_t pairs;       /* query-key pairs computed exactly                                       */
    int64_t pairs_pv;    /* those of them whose product with V was computed: fewer with a skip rule */
    int64_t pairs_total; /* pairs that dense attention computes (padding left out)                 */
    float   density;     /* pairs / pairs_total                                                    */
    float   density_pv;  /* pairs_pv / pairs_total                                                 */
    float   error_estimate; /* estimated relative L2 error of the output; 0 when dense; -1 = not estimated
                               (estimated when target_error is set)                                */
    int32_t is_dense;    /* 1 = target_error sent this head to dense                               */
    int32_t empty_clusters; /* query and key clusters without a token                              */
    int32_t pattern;     /* SVG1: 0 = in space, 1 = in time                                        */
    float   pattern_error[2]; /* SVG1: relative L2 error of the sampled rows' output under either  */
    float   recall;      /* ADASPA: part of the mass inside the map when it was searched; else -1  */
} svg2_head_stats;

/* What is carried from step to step, for one layer and one guidance branch. Fields are for reading only. */
typedef struct svg2_state {
    uint32_t magic;
    svg2_method method;
    int32_t  batch, heads, heads_kv, head_dim;
    int32_t  query_clusters, key_clusters; /* ADASPA: query and key blocks                         */
    int32_t  tokens;  /* ADASPA; else 0                                                            */
    svg2_dtype dtype;
    int32_t  is_warm; /* 0 after init and reset; 1 once the clusters, or the map, exist            */
    int32_t  calls;   /* sparse calls since reset                                                  */
    void    *memory;  /* the caller's; backend memory                                              */
    size_t   memory_bytes;
} svg2_state;

/* Bytes of state memory: (B*H*Cq + B*Hkv*Ck) * D elements of state_dtype. SIZE_MAX for an invalid descriptor; 0 for
   DENSE and SVG1. ADASPA: an LSE [B, H, Sq] f32, a map of bits [B, H, Qb, (Kb+31)/32] u32, and recall [B, H, 3] f32
   of svg2_pick, each from a multiple of 256 bytes on.
   The memory of SVG2 holds the query centroids [B, H, Cq, D], then the key centroids [B, Hkv, Ck, D], relative to the
   mean of their tokens: an engine that spreads heads over ranks may move the slices of one head. */
SVG2_API size_t svg2_state_bytes(const svg2_desc *desc);

/* Tie state to memory (of the backend that will use it; aligned; at least svg2_state_bytes) and reset it. The
   memory is not read or written here. A dense descriptor needs no memory (NULL, 0). */
SVG2_API svg2_result svg2_state_init(svg2_state *state, const svg2_desc *desc, void *memory, size_t memory_bytes,
                                     svg2_error *err);

/* Forget the clusters: call at the start of each video. NULL is allowed. */
SVG2_API void svg2_state_reset(svg2_state *state);

/* State as bytes: for checkpoints, or to move it to another rank. The format is the machine's byte order with a
   checksum. save needs svg2_state_save_bytes(). load needs a state initialised for the same shape: damaged or
   foreign bytes are refused with SVG2_ERR_DATA, those of another shape with SVG2_ERR_STATE, and the state stays as
   it was. These two may synchronise with a device. */
SVG2_API size_t svg2_state_save_bytes(const svg2_state *state);
SVG2_API svg2_result svg2_state_save(const svg2_backend *backend, const svg2_state *state, void *bytes,
                                     size_t count, svg2_error *err);
SVG2_API svg2_result svg2_state_load(const svg2_backend *backend, svg2_state *state, const void *bytes,
                                     size_t count, svg2_error *err);

/* Bytes of workspace for svg2_attend. SIZE_MAX for an invalid descriptor. It may be shared by all layers. */
SVG2_API size_t svg2_workspace_bytes(const svg2_backend *backend, const svg2_desc *desc);

/* svg2_attend - one attention call of a video transformer.

   q [B, H, Sq, D], k, v [B, Hkv, Skv, D]   read, dtypes and strides as in desc
   out [B, H, Sq, D]                        written; must not overlap the inputs
   lse [B, H, Sq] f32, contiguous           written unless NULL; with a tail it includes the tail. Read, too, with
                                            desc's seed_lse
   stats [B, H]                             written unless NULL
   state                                    read and advanced; may be NULL for DENSE and SVG1, else it must fit desc
   step                                     index of the denoising step, >= 0: decides dense or sparse with
                                            desc's schedule

   Work: 4*B*H*Sq*Skv*D*density flop in attention, (init or step iterations)*2*B*(H*Sq*Cq + Hkv*Skv*Ck)*D in
   k-means; svg2_cost_estimate counts the rest.
   Returns SVG2_OK or an error; everything is validated before anything is written. */
SVG2_API svg2_result svg2_attend(const svg2_backend *backend, const svg2_desc *desc, svg2_state *state,
                                 int32_t step, const void *q, const void *k, const void *v, void *out, float *lse,
                                 svg2_head_stats *stats, void *workspace, size_t workspace_bytes,
                                 svg2_error *err);

/* What the last svg2_attend left in its workspace: pointers into it, valid until it is used again. All NULL and
   0 after a call that was dense without init. Text and padding are the last blocks. */
typedef struct svg2_plan {
    int32_t query_blocks, key_blocks;     /* Qb, Kb: clusters, then text, then padding             */
    int32_t query_clusters, key_clusters; /* Cq, Ck                                                */
    const int32_t *query_label;  /* [B, H, Sq]  in [0, Qb)                                         */
    const int32_t *key_label;    /* [B, Hkv, Skv]                                                  */
    const int32_t *query_order;  /* [B, H, Sq]  tokens by label: block i is order[offset[i] .. offset[i+1])  */
    const int32_t *key_order;    /* [B, Hkv, Skv]                                                  */
    const int32_t *query_offset; /* [B, H, Qb+1]                                                   */
    const int32_t *key_offset;   /* [B, Hkv, Kb+1]                                                 */
    /* SVG1 and ADASPA have only key_mean, and with a tail the centroids that it needs; the others are NULL */
    const float   *query_centroid; /* [B, H, Cq, D]   means of the labelled tokens, input coordinates */
    const float   *key_centroid;   /* [B, Hkv, Ck, D]                                              */
    const float   *query_mean;   /* [B, H, D]    mean over the video tokens                        */
    const float   *key_mean;     /* [B, Hkv, D]                                                    */
    const uint8_t *map;          /* [B, H, Qb, Kb]  1 = computed exactly; NULL after a dense init call */
} svg2_plan;
SVG2_API svg2_plan svg2_plan_view(const svg2_backend *backend, const svg2_desc *desc, int32_t step,
                                  const void *workspace);

/* Arithmetic of one call, to decide whether sparse pays before making it. density is the caller's guess (or the
   last step's); of DENSE with a skip rule that of the product with V. Multiply-adds count as two. */
typedef struct svg2_cost {
    double dense_flops;     /* dense attention                                                     */
    double kmeans_flops;    /* clustering: init_iterations when cold, else step_iterations         */
    double select_flops;    /* centroid scores and log masses; SVG1: sampled rows; ADASPA, cold: the search,
                               whose output is dense                                               */
    double tail_flops;      /* virtual keys and matrices                                           */
    double attention_flops; /* exact blocks                                                        */
    double ratio;           /* (kmeans + select + tail + attention) / dense                        */
} svg2_cost;
SVG2_API svg2_result svg2_cost_estimate(const svg2_desc *desc, double density, int32_t is_warm, svg2_cost *cost,
                                        svg2_error *err);

/* Published settings, by name, as data; steps are those of the whole schedule. */
typedef struct svg2_preset {
    const char *name; /* e.g. "wan2.1-t2v-14b-720p"                                               */
    int32_t heads, head_dim, layers, frames, frame_tokens, text_tokens;
    int32_t text_first; /* 1 = text stands before the video */
    int32_t query_clusters, key_clusters;
    float   top_p, min_keep;
    float   keep;              /* SVG1: part of all pairs in a band                                */
    int32_t init_iterations, step_iterations;
    int32_t steps, dense_steps, dense_layers, init_on_dense;
    const char *note; /* "published", or "nearest" published, or "default" where there is none */
} svg2_preset;
SVG2_API int32_t svg2_preset_count(void);
SVG2_API const svg2_preset *svg2_preset_at(int32_t index);     /* NULL outside [0, count)          */
SVG2_API const svg2_preset *svg2_preset_find(const char *name); /* NULL if unknown                 */
/* Zero *desc, then fill in shape, clusters, schedule and SVG2's published selection (row budget, mass, top-p, no
   tail). Set method = SVG1 after it for that method's published settings: its schedule is the same. Those of ADASPA are
   the same for all models: the defaults, with method = ADASPA and dense_steps = 10 (of 50). */
SVG2_API svg2_result svg2_preset_apply(const svg2_preset *preset, svg2_desc *desc, svg2_error *err);

/* ---- stages: for engines that compose their own (>>kmeans .. >>mass) ---------------------- */
/* Each takes its workspace from the caller: svg2_stage_workspace_bytes(backend, stage, &desc_of_that_stage).
   Offsets, orders and labels are trusted to be consistent (svg2_permute makes them so). */
SVG2_API size_t svg2_stage_workspace_bytes(const svg2_backend *backend, svg2_stage stage, const void *stage_desc);

/* svg2_kmeans - group the tokens of each head by similarity (Lloyd, squared L2).

   x         [B, H, S, D]   read
   start     [B, H, C, D]   read unless NULL: centroids to start from, relative to the mean;
                            NULL = seed by D^2 sampling
   label     [B, H, S]      written, in [0, C), for tokens [token_begin, token_begin + token_count)
   centroid  [B, H, C, D]   f32, written: means of the returned labels, input coordinates. An empty cluster holds
                            the point it would be re-seeded with (keep_empty: its old centroid)
   store     [B, H, C, D]   written unless NULL: the same relative to the mean, in store_dtype; may equal start
   mean      [B, H, D]      f32, written: mean over the tokens, removed before distances are formed
   size      [B, H, C]      written: tokens per cluster

   Distances are |c|^2 - 2 x.c in f32 after removal of the mean; ties go to the lower index. iterations = number
   of (assign, update) rounds, at least 1 unless start is given; 0 = assign once and keep the centroids of start,
   but return the means of the labels. Stops early when nothing changes.
   Re-seeding: the r-th empty cluster takes the token farthest from the centroid in the cluster of r-th largest
   inertia.
   Work: 2*B*H*S*C*D flop per iteration.  Threads: splits over heads and tokens; the result does not depend on it. */
struct svg2_kmeans_desc {
    int32_t batch, heads, tokens, head_dim, clusters;
    int32_t token_begin, token_count; /* 0, 0 = all tokens */
    int32_t iterations, keep_empty;
    uint64_t seed;
    const void *x;
    svg2_layout layout;
    const void *start;
    void       *store;
    svg2_dtype  store_dtype; /* of start and store */
    float   *centroid;
    float   *mean;
    int32_t *label;
    int32_t *size;
};
SVG2_API svg2_result svg2_kmeans(const svg2_backend *backend, const svg2_kmeans_desc *desc, void *workspace,
                                 size_t workspace_bytes, svg2_error *err);

/* svg2_permute - stable counting sort of the tokens of each head by label.

   label   [B, H, S]           read for clustered tokens; text tokens get label clusters, padding the next
   order   [B, H, S]           written: token indices, sorted by label, ascending inside a block
   offset  [B, H, blocks + 1]  written; blocks = clusters + (text_count > 0) + (padding_count > 0) */
struct svg2_permute_desc {
    int32_t batch, heads, tokens, clusters;
    int32_t text_begin, text_count;       /* valid text tokens */
    int32_t padding_begin, padding_count; /* padding tokens    */
    int32_t *label;
    int32_t *order;
    int32_t *offset;
};
SVG2_API svg2_result svg2_permute(const svg2_backend *backend, const svg2_permute_desc *desc, void *workspace,
                                  size_t workspace_bytes, svg2_error *err);

/* svg2_summarize - what a tail and the error estimate need to know of the values of each key cluster.

   v [B, Hkv, S, D], order [B, Hkv, S], offset [B, Hkv, blocks + 1]   read
   value_mean [B, Hkv, clusters, D]  written
   value_var  [B, Hkv, clusters]     written: variance of the values, summed over dimensions
   Empty clusters get zeros. */
struct svg2_summarize_desc {
    int32_t batch, heads, tokens, head_dim, clusters, blocks; /* heads: of keys */
    const void *v;
    svg2_layout v_layout;
    const int32_t *order, *offset;
    float *value_mean, *value_var;
};
SVG2_API svg2_result svg2_summarize(const svg2_backend *backend, const svg2_summarize_desc *desc, void *workspace,
                                    size_t workspace_bytes, svg2_error *err);

/* svg2_score - the log mass of every block as the query centroid sees it; and the share of attention that every key
   cluster has in the rows of a query cluster.

   k [B, Hkv, Skv, D], key_order [B, Hkv, Skv], key_offset [B, Hkv, key_blocks + 1]                 read
   query_centroid [B, H, Cq, D], key_centroid [B, Hkv, Ck, D]                                        read
   log_mass [B, H, Cq, Ck]   f32, written: ln sum over the tokens t of cluster j of exp(scale*qbar_I.(k_t -
                             kbar_j)); -INFINITY for an empty cluster
   share    [B, H, Cq, Ck]   f32, written if tokens > 0: mean over the rows i of cluster I of
                             softmax_j(scale*q_i.kbar_j + log_mass_Ij); 0 for an empty cluster of either side. It
                             needs q [B, H, tokens, D], query_order [B, H, tokens], query_offset [B, H,
                             query_blocks + 1] and key_mean [B, Hkv, D] (subtracted from the centroids: accuracy)
   Work per head: 2*Cq*Skv*D flop, and 2*tokens*Ck*D for the share. */
struct svg2_score_desc {
    int32_t batch, heads, heads_kv, tokens_kv, head_dim;
    int32_t query_clusters, key_clusters, key_blocks;
    float scale;
    const void *k;
    svg2_layout k_layout;
    const int32_t *key_order, *key_offset;
    const float *query_centroid, *key_centroid;
    float *log_mass;
    int32_t tokens, query_blocks; /* of the queries; 0 = no share */
    const void *q;
    svg2_layout q_layout;
    const int32_t *query_order, *query_offset;
    const float *key_mean;
    float *share;
};
SVG2_API svg2_result svg2_score(const svg2_backend *backend, const svg2_score_desc *desc, void *workspace,
                                size_t workspace_bytes, svg2_error *err);

/* svg2_select - which blocks are computed exactly.

   query_centroid [B, H, Cq, D], key_centroid [B, Hkv, Ck, D], key_mean [B, Hkv, D], offsets       read
   log_mass [B, H, Cq, Ck]   read; NULL = ln n_j (not with route spread or target_error)
   share    [B, H, Cq, Ck]   read; NULL = P as the query centroid sees it
   value_mean, value_var     read; may be NULL without target_error
   map [B, H, Qb, Kb]   written. Blocks behind the clusters: text (if has_text) is computed against everything
                        valid, padding (if has_padding) against nothing.
   stats [B, H]         written unless NULL

   budget row, route mass, density 0, target_error 0, log_mass NULL: SVG2's rule. Clusters in order of falling P
   (ties to the lower index); rank r is kept iff r = 0, or the sum of the P before it is <= top_p, or r <
   floor(min_keep * Ck). With log_mass the same rule on the better P. Otherwise blocks are taken by falling score
   per pair (P/n_j, times spread = 2 (log_mass - ln n_j) for route spread) until the area is used: that of SVG2's
   rule, or density * Sq * Skv (of video tokens), per query cluster or per head; or until the estimated error is
   under target_error. Without a tail each query cluster always keeps its heaviest cluster. A row with a NaN or Inf
   among its centroid logits is kept whole. */
struct svg2_select_desc {
    int32_t batch, heads, heads_kv, head_dim;
    int32_t query_clusters, key_clusters, has_text, has_padding;
    float scale;
    svg2_route route;
    svg2_budget budget;
    svg2_tail_kind tail;
    float top_p, min_keep, density, target_error, dense_above; /* no defaults here; min_keep < 0 = none */
    const float *query_centroid, *key_centroid, *key_mean;
    const float *log_mass, *share, *value_mean, *value_var;
    const int32_t *query_offset, *key_offset; /* [B, H, Qb+1], [B, Hkv, Kb+1] */
    uint8_t *map;
    svg2_head_stats *stats;
};
SVG2_API svg2_result svg2_select(const svg2_backend *backend, const svg2_select_desc *desc, void *workspace,
                                 size_t workspace_bytes, svg2_error *err);

/* svg2_tail - the matrices A of the order-1 tail, for heads [head_begin, head_begin + head_count) of the B*H.

   k, v, order, offset, centroids, value_mean, map   read, as elsewhere; log_mass too (NULL = ln n_j)
   matrix [head_count, Cq, D, D]   f32, written: A_I, row = key dimension, column = value dimension; 0 where
                                   nothing is skipped
   Work per head: 2*Skv*D*D + 2*Cq*Ck*D*D flop. */
struct svg2_tail_desc {
    int32_t batch, heads, heads_kv, tokens_kv, head_dim;
    int32_t query_clusters, key_clusters, query_blocks, key_blocks;
    int32_t head_begin, head_count;
    float scale;
    const void *k, *v;
    svg2_layout k_layout, v_layout;
    const int32_t *key_order, *key_offset;
    const float *query_centroid, *key_centroid, *key_mean, *value_mean, *log_mass;
    const uint8_t *map;
    float *matrix;
};
SVG2_API svg2_result svg2_tail(const svg2_backend *backend, const svg2_tail_desc *desc, void *workspace,
                               size_t workspace_bytes, svg2_error *err);

/* svg2_attention - attention over a block map.

   q, k, v read, out written, lse [B, H, Sq] written unless NULL, for heads [head_begin, head_begin + head_count)
   of the B*H (0, 0 = all). Query block i is query_order[query_offset[i] .. query_offset[i+1]); keys alike. NULL
   order = identity; NULL offset = one block; NULL map = all ones: with all NULL this is dense attention. Rows
   that attend to nothing get out = 0, lse = -INFINITY.
   key_mean [B, Hkv, D]: subtracted from the keys (accuracy; the LSE is corrected). NULL = none.
   Tail: query blocks < tail_query_blocks also see one virtual key for each non-empty key block < tail_key_blocks
   that their map row lacks: logit scale*q.key_centroid + log_mass (NULL = ln n), value value_mean; tail_matrix
   (NULL = order 0) is svg2_tail's output for the same heads.
   Skip: tiles of the listed keys may be left out (virtual keys never are); out and lse are those of the keys that
   stayed. lse_seed [B, H, Sq], read unless NULL: an estimate of every row's LSE, the last step's, say, so that
   SKIP_ENERGY and SKIP_RECALL need not see the heavy keys first (it may be lse itself); SKIP_RECALL then keeps its
   promise if no estimate is more than 0.25 above the truth. stats [B, H]: pairs_pv and density_pv are written with a
   skip rule (density_pv from pairs_total, which svg2_select writes). */
struct svg2_attention_desc {
    int32_t batch, heads, heads_kv, tokens, tokens_kv, head_dim;
    int32_t head_begin, head_count;
    float scale;
    const void *q, *k, *v;
    void *out;
    float *lse;
    svg2_layout q_layout, k_layout, v_layout, out_layout;
    int32_t query_blocks, key_blocks; /* 0 = 1 */
    const int32_t *query_order, *query_offset, *key_order, *key_offset;
    const uint8_t *map;
    const float *key_mean;
    int32_t tail_query_blocks, tail_key_blocks; /* 0, 0 = no tail */
    const float *key_centroid, *value_mean;     /* [B, Hkv, tail_key_blocks, D] */
    const float *log_mass;                      /* [B, H, tail_query_blocks, tail_key_blocks] */
    const float *tail_matrix;                   /* [head_count, tail_query_blocks, D, D] */
    svg2_skip skip;                             /* no defaults here */
    svg2_visit visit;                           /* 0 = natural */
    float skip_threshold, energy_lambda, recall;
    const float *lse_seed;
    svg2_head_stats *stats;
};
SVG2_API svg2_result svg2_attention(const svg2_backend *backend, const svg2_attention_desc *desc, void *workspace,
                                    size_t workspace_bytes, svg2_error *err);

/* svg2_block_mass - exact attention mass of every block: sum over its pairs of exp(scale*q.k - lse). The oracle:
   the mass of a row of blocks sums to its number of rows. attention.lse is READ and must be the LSE of dense
   attention without tail (rows with -INFINITY count nothing); attention.map is used for recall only; out and
   tail fields are ignored.

   mass   [heads of the call, Qb, Kb]  f32, written unless NULL
   recall [B, H, Sq]      f32, written unless NULL: per query row, the mass inside the map (1 without a map) */
struct svg2_mass_desc {
    svg2_attention_desc attention;
    int32_t valid_key_blocks; /* 0 = all; key blocks from here on are padding: mass 0 */
    float *mass;
    float *recall;
};
SVG2_API svg2_result svg2_block_mass(const svg2_backend *backend, const svg2_mass_desc *desc, void *workspace,
                                     size_t workspace_bytes, svg2_error *err);

/* svg2_place - blocks of neighbouring tokens, as labels that svg2_permute sorts by.

   pattern [B, H]     read; NULL = 0 for all. 0: video tokens frame by frame, 1: place by place, through all
                      frames. block tokens in that order make a block; with first_frame the first frame has
                      blocks of its own before the others, where neighbours in the frame stand together
   label   [B, H, S]  written for video tokens: in [0, svg2_place_blocks)

   frames * frame_tokens = video_count; frames may be 1 where only pattern 0 is asked for. */
struct svg2_place_desc {
    int32_t batch, heads, tokens;
    int32_t video_begin, video_count;
    int32_t frames, frame_tokens, block, first_frame; /* first_frame: 0 or 1 */
    const int32_t *pattern;
    int32_t pattern_heads; /* 0 = heads; else heads of pattern: one for a group of heads */
    int32_t *label;
};
SVG2_API int32_t svg2_place_blocks(const svg2_place_desc *desc);
SVG2_API svg2_result svg2_place(const svg2_backend *backend, const svg2_place_desc *desc, void *workspace,
                                size_t workspace_bytes, svg2_error *err);

/* svg2_band - the map of SVG1: pairs of blocks near each other in the order of their head's pattern.

   map [B, H, Qb, Kb]  written: 1 if the blocks' positions (frame * frame_tokens + place, or place * frames +
                       frame) come closer than width; the first frame's key blocks for all (first_frame); text
                       and padding, which stand behind the blocks, as in svg2_select
   stats [B, H]        written unless NULL
   Queries and keys are the same tokens, placed by the same svg2_place. */
struct svg2_band_desc {
    int32_t batch, heads, heads_kv;
    int32_t frames, frame_tokens, block, first_frame, width;
    int32_t has_text, has_padding;
    const int32_t *pattern; /* [B, Hkv] */
    const float   *error;   /* [B, H, 2] or NULL: svg2_profile's, for stats */
    const int32_t *query_offset, *key_offset; /* [B, H, Qb+1], [B, Hkv, Kb+1] */
    uint8_t *map;
    svg2_head_stats *stats;
};
SVG2_API svg2_result svg2_band(const svg2_backend *backend, const svg2_band_desc *desc, void *workspace,
                               size_t workspace_bytes, svg2_error *err);

/* The largest width with which a band takes at most keep of all pairs, of the wider pattern; at least 1. */
SVG2_API int32_t svg2_band_width(int32_t frames, int32_t frame_tokens, int32_t block, int32_t first_frame,
                                 int32_t text_valid, float keep);

/* svg2_pick - blocks by their exact mass: AdaSpa's selection.

   mass [head_count, Qb, Kb]  read, for heads [head_begin, head_begin + head_count) of the B*H: svg2_block_mass's
                              output, with any LSE: what counts is each row's own distribution
   map  [B, H, Qb, Kb]        written
   bits [B, H, Qb, (Kb+31)/32]  written unless NULL: the same map, bit j%32 of word j/32
   recall [B, H, 3]           written, part of the mass kept at sparsity s + e, s, s - e; read by the last call
   stats [B, H]               written unless NULL

   Call it for groups of heads in order; the call with the last head completes map, bits and stats of all. With
   mass NULL it only writes map and stats from bits and recall.
   Row-wise top-k (ties to the lower index): of its nb video key blocks a row keeps ceil((1-s) nb), the text block
   besides. A head keeps s = sparsity; but of the heads of a batch entry, those n with the highest recall get s + e
   and those n with the lowest s - e, e = (1-s)/2, at most s; n = heads with a recall above 0.8, at most half.
   mass_target > 0: instead each row keeps its heaviest blocks until they hold mass_target of its mass; no levels.
   A row of blocks with a NaN or Inf among its masses is kept whole and counts nothing in the recall. */
struct svg2_pick_desc {
    int32_t batch, heads, heads_kv;
    int32_t query_blocks, key_blocks, has_text, has_padding;
    int32_t head_begin, head_count;
    float sparsity, mass_target; /* no defaults here: sparsity in [0, 1) */
    const float *mass;
    const int32_t *query_offset, *key_offset;
    uint8_t  *map;
    uint32_t *bits;
    float    *recall;
    svg2_head_stats *stats;
};
SVG2_API svg2_result svg2_pick(const svg2_backend *backend, const svg2_pick_desc *desc, void *workspace,
                               size_t workspace_bytes, svg2_error *err);

/* svg2_profile - spatial or temporal: sample_rows rows of every head, under the band of either pattern and under none.

   q [B, H, S, D], k, v [B, Hkv, S, D], key_mean [B, Hkv, D] or NULL   read
   pattern [B, Hkv]     written: the one with the smaller squared error, summed over the query heads of a key head;
                        ties, and errors that are no number: 0
   error   [B, H, 2]    written: relative L2 error of the sampled rows under either; NULL = not

   The bands are those of svg2_band: what is profiled is what will be executed. Rows are drawn from all video
   tokens, one from each of sample_rows equal stretches. Work per head: 2*rows*S*D flop for logits, 6*rows*S*D for
   outputs. */
struct svg2_profile_desc {
    int32_t batch, heads, heads_kv, tokens, head_dim;
    int32_t video_begin, frames, frame_tokens, block, first_frame, width;
    int32_t text_begin, text_count; /* valid text; what is neither that nor video is padding */
    int32_t sample_rows;
    uint64_t seed;
    float scale;
    const void *q, *k, *v;
    svg2_layout q_layout, k_layout, v_layout;
    const float *key_mean;
    int32_t *pattern;
    float   *error;
};
SVG2_API svg2_result svg2_profile(const svg2_backend *backend, const svg2_profile_desc *desc, void *workspace,
                                  size_t workspace_bytes, svg2_error *err);

/* svg2_front - what stands between the projections and attention: RMSNorm of queries and keys, rotary
   positions (RoPE) and a change of layout or dtype, in one pass over memory.

   q [B, H, S, D], k [B, Hkv, S, D]   read; either may be NULL: then only the other is done
   q_out, k_out             written; each may be its input itself (same pointer, same strides, elements of
                            the same size), else they must not overlap
   q_weight, k_weight       f32 [D] with norm HEAD, [H, D] and [Hkv, D] with norm TOKEN; NULL = 1
   cosine, sine             f32 [rope_tokens, rope_heads, D/2], token after token in steps of rope_stride;
                            row n is that of video token n, for all batch entries. Both NULL = no turning
   key_mean [B, Hkv, D]     f32, written unless NULL: mean of the video tokens of k_out, before it is rounded;
                            0 for a head where it is not finite. svg2_attention, svg2_block_mass and
                            svg2_profile take it; svg2_attend has its own, from svg2_kmeans

       y = x / sqrt(mean(x^2) + epsilon) * weight       mean over D (HEAD), or all heads of the token (TOKEN)
       (a, b) = (a cos - b sin, a sin + b cos)          every pair of y, video tokens; text is only normalised

   In f32 throughout, rounded once at the end; sums in a fixed order. (An engine in bf16 rounds after the norm
   as well.) A NaN or Inf reaches what its mean reaches: the head or the token.

                     norm, epsilon  pairing      axes of svg2_rope_table; theta
     Wan 2.1, 2.2    TOKEN  1e-6    interleaved  44, 42, 42 (0 = this); 10000
     HunyuanVideo    HEAD   1e-6    interleaved  16, 56, 56; 256. Blocks of two streams have other weights for
                                                 text: a call for either part of the tokens (strides)
     LTX-Video       TOKEN  1e-5    interleaved  tables of its own, with rope_heads = heads
     Mochi           HEAD   1e-5    interleaved  tables of its own, with rope_heads = heads
     Cosmos          HEAD           half         tables of its own that hold everything twice: rope_stride = D
   Tables and not angles are the input: engines have them, each by another rule (learned frequencies, frame
   rates, interpolation). Beside q and k they are small: 4 D bytes a token, against 4 D (H + Hkv) of q and k
   in bf16, in and out. Not offered: pairs inside each axis (Step-Video), LayerNorm (CogVideoX).
   Threads: splits over tokens; the result does not depend on it. Workspace: ask when key_mean is set; 0 bytes
   without it (but on CUDA 8 bytes a token where a norm is over more than 8,192 columns). */
typedef enum svg2_norm {
    SVG2_NORM_NONE = 0,
    SVG2_NORM_HEAD = 1,
    SVG2_NORM_TOKEN = 2,
    SVG2_NORM_FORCE_I32 = 0x7fffffff
} svg2_norm;

typedef enum svg2_pairing {
    SVG2_PAIRING_INTERLEAVED = 0, /* pair i of a head: elements 2i, 2i + 1 */
    SVG2_PAIRING_HALF = 1,        /* i, i + D/2                            */
    SVG2_PAIRING_FORCE_I32 = 0x7fffffff
} svg2_pairing;

struct svg2_front_desc {
    int32_t batch, heads, heads_kv, tokens, head_dim; /* heads_kv: 0 = heads; any number                    */
    int32_t video_begin, video_count;                 /* 0, 0 = all tokens                                  */
    svg2_norm norm;                                   /* none                                               */
    float   epsilon;                                  /* 1e-6                                               */
    svg2_pairing pairing;                             /* interleaved                                        */
    int32_t rope_tokens;                              /* rows of the tables; video_count, or more           */
    int32_t rope_heads;                               /* 1: for all heads; else heads (= heads_kv)          */
    int64_t rope_stride;                              /* floats from token to token; rope_heads * D/2       */
    const float *cosine, *sine;
    const void *q, *k;
    void *q_out, *k_out;
    svg2_layout q_layout, k_layout, q_out_layout, k_out_layout;
    const float *q_weight, *k_weight;
    float *key_mean;
};
SVG2_API svg2_result svg2_front(const svg2_backend *backend, const svg2_front_desc *desc, void *workspace,
                                size_t workspace_bytes, svg2_error *err);

/* svg2_rope_table - the tables of svg2_front for a grid of frames x height x width tokens, in that order.

   cosine, sine [frames*height*width, head_dim/2]   f32, host memory, written; count floats fit into each

   Of the pairs of a head axes[0]/2 turn with the frame, the next axes[1]/2 with the row, the last axes[2]/2
   with the column: pair i of n by the angle position * theta^(-i/n), in f64. */
typedef struct svg2_rope_desc {
    int32_t frames, height, width, head_dim;
    int32_t axes[3]; /* even, sum = head_dim; all 0: row and column 2 (head_dim/6) each, frame the rest */
    float   theta;   /* 10000 */
} svg2_rope_desc;
SVG2_API svg2_result svg2_rope_table(const svg2_rope_desc *desc, float *cosine, float *sine, size_t count,
                                     svg2_error *err);

/* svg2_merge - join two attentions over disjoint key sets. out and lse may be the arrays of either side. Rows
   are contiguous f32: o [rows, dim], lse [rows]. A side with lse = -INFINITY contributes nothing; both so: out =
   0, lse = -INFINITY. */
SVG2_API svg2_result svg2_merge(const float *out_a, const float *lse_a, const float *out_b, const float *lse_b,
                                float *out, float *lse, int64_t rows, int32_t dim, svg2_error *err);

/* ---- metrics (>>stats) -------------------------------------------------------------------- */
/* Differences of x from the reference y over count elements; sums in f64.
   rel_l1 = sum|x-y| / sum|y|, rel_l2 = |x-y| / |y| (0/0 = 0), cosine = x.y / |x||y| (1 if both are 0),
   mse = mean (x-y)^2, psnr = 10 log10(peak^2 / mse) in dB (INFINITY if equal), peak = max y - min y unless given.
   finite = 0 if any element of x or y is NaN or Inf (then the numbers may be NaN). */
typedef struct svg2_metrics {
    double rel_l1, rel_l2, cosine, max_abs, mse, psnr;
    int32_t finite;
} svg2_metrics;
SVG2_API svg2_result svg2_compare(const float *x, const float *y, size_t count, double peak,
                                  svg2_metrics *metrics, svg2_error *err);

#endif /* SVG2_H_INCLUDED */

/* ==== >>impl =============================================================================
   Everything below is private (svg2__; the double underscore is reserved in C++ only, and accepted). The
   implementation is C99 that is also C++11. IDEs grey it out unless the macro is set. */
#if (defined(SVG2_IMPLEMENTATION) || defined(__INTELLISENSE__) || defined(__JETBRAINS_IDE__)) \
    && !defined(SVG2_IMPLEMENTATION_DONE)
#define SVG2_IMPLEMENTATION_DONE

#include <math.h>
#include <string.h>

#if defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__
#  error "svg2.h works with NaN and Inf: compile the implementing file without -ffast-math (-ffinite-math-only)"
#endif

/* ==== >>base ============================================================================= */
#ifndef SVG2_ASSERT
#  define SVG2_ASSERT(x) ((void)0)
#endif

#if defined(__GNUC__)
#  define SVG2__INLINE __attribute__((always_inline)) static inline
#else
#  define SVG2__INLINE static
#endif

enum {
    SVG2__AHEAD = 8,   /* rows asked for ahead of a gather: summing 8 rows takes about as long as fetching one */
    SVG2__LANES = 64,  /* query rows of one unit. Lanes of the inner loops run over queries (or tokens), so that
                          row maxima and row sums need no shuffles; 64 also is the unit of the GPU kernels     */
    SVG2__KEYS = 128,  /* keys of one tile                                                                     */
    SVG2__SKIP_KEYS = 64, /* and with a skip rule: what is left out is left out in smaller pieces              */
    SVG2__UNITS = 4,   /* units that share a loaded key tile: loading and transposing it then costs about 1 %  */
    SVG2__ROWS = SVG2__LANES * SVG2__UNITS,
    SVG2__PANEL = 16,  /* key dimensions of C_j that svg2_tail works on at once                                */
    SVG2__MAX_DIM = 256,
    SVG2__MAX_WORKERS = 4096,
    SVG2__MAX_CLUSTERS = 65536,
    SVG2__SEED_ROUNDS = 32, /* rounds of D^2 sampling                                                          */
    SVG2__CHUNK = 256  /* rows summed in f32 before they are added to an f64 total                             */
};

static size_t svg2__mul(size_t a, size_t b)
{
    return (a && b > SIZE_MAX / a) ? SIZE_MAX : a * b;
}

static size_t svg2__add(size_t a, size_t b)
{
    return b > SIZE_MAX - a ? SIZE_MAX : a + b;
}

static int64_t svg2__min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int32_t svg2__min32(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static int32_t svg2__max32(int32_t a, int32_t b)
{
    return a > b ? a : b;
}

static int32_t svg2__round_up(int32_t x, int32_t unit)
{
    return (x + unit - 1) / unit * unit;
}

/* Carves a workspace. With base = NULL it only counts, so the function that lays out memory also tells its
size. */
typedef struct svg2__arena {
    char  *base;
    size_t used;
    size_t align; /* power of two; 0 = SVG2_ALIGN */
} svg2__arena;

#ifdef SVG2_DEBUG_WORKSPACE
#  define SVG2__GAP SVG2_ALIGN
#  if defined(__SANITIZE_ADDRESS__)
#    include <sanitizer/asan_interface.h>
#  elif defined(__has_feature)
#    if __has_feature(address_sanitizer)
#      include <sanitizer/asan_interface.h>
#    endif
#  endif
#else
#  define SVG2__GAP 0
#endif

static void *svg2__take(svg2__arena *a, size_t elem_bytes, size_t count)
{
    const size_t at = a->used, mask = (a->align ? a->align : SVG2_ALIGN) - 1,
                 exact = svg2__mul(elem_bytes, count);
    const size_t bytes = exact > SIZE_MAX - mask - SVG2__GAP ? SIZE_MAX : (exact + SVG2__GAP + mask) & ~mask;
    a->used = svg2__add(at, bytes);
    if (!a->base) return 0;
#ifdef ASAN_POISON_MEMORY_REGION
    ASAN_UNPOISON_MEMORY_REGION(a->base + at, exact);
    ASAN_POISON_MEMORY_REGION(a->base + at + exact, bytes - exact);
#endif
    return a->base + at;
}

static float *svg2__take_f32(svg2__arena *a, size_t count)
{
    return (float *)svg2__take(a, sizeof(float), count);
}

static int32_t *svg2__take_i32(svg2__arena *a, size_t count)
{
    return (int32_t *)svg2__take(a, sizeof(int32_t), count);
}

/* Product of three or four extents as a count, saturating. Extents are positive. */
static size_t svg2__count(int64_t a, int64_t b, int64_t c, int64_t d)
{
    return svg2__mul(svg2__mul((size_t)a, (size_t)b), svg2__mul((size_t)c, (size_t)d));
}

static svg2_result svg2__fail(svg2_error *err, svg2_result code, const char *field, const char *text)
{
    if (err) {
        err->code = code;
        err->field = field;
        err->text = text;
        err->cuda = 0;
    }
    return code;
}

static svg2_result svg2__ok(svg2_error *err)
{
    return svg2__fail(err, SVG2_OK, "", svg2_result_string(SVG2_OK));
}

/* Leave the function with an error unless the condition holds. */
#define SVG2__CHECK(condition, code, field, text)                            \
    do {                                                                     \
        if (!(condition)) return svg2__fail(err, (code), (field), (text));   \
    } while (0)
#define SVG2__TRY(call)                               \
    do {                                              \
        svg2_result svg2__r = (call);                 \
        if (svg2__r != SVG2_OK) return svg2__r;       \
    } while (0)
#define SVG2__NOT_NULL(pointer, field) SVG2__CHECK((pointer) != 0, SVG2_ERR_NULL, field, "must not be NULL")

SVG2_API const char *svg2_result_string(svg2_result result)
{
    switch (result) {
#define SVG2__X(name, value, text) \
    case name: return text;
    SVG2_RESULTS(SVG2__X)
#undef SVG2__X
    case SVG2_RESULT_FORCE_I32: break;
    }
    return "unknown svg2_result";
}

static size_t svg2__dtype_bytes(svg2_dtype dtype)
{
    return dtype == SVG2_F32 ? 4u : 2u;
}

static int svg2__dtype_valid(svg2_dtype dtype)
{
    return dtype == SVG2_F32 || dtype == SVG2_F16 || dtype == SVG2_BF16;
}

/* A usable layout: strides filled in where all are 0. */
static svg2_layout svg2__layout(svg2_layout l, int32_t heads, int32_t tokens, int32_t dim)
{
    if (l.stride_batch == 0 && l.stride_head == 0 && l.stride_token == 0) {
        l.stride_token = dim;
        l.stride_head = (int64_t)tokens * dim;
        l.stride_batch = l.stride_head * heads;
    }
    return l;
}

/* field names the layout, e.g. "k" */
static svg2_result svg2__check_layout(svg2_layout l, int32_t batch, int32_t heads, int32_t tokens, int32_t dim,
                                      int is_output, const char *field, svg2_error *err)
{
    const int64_t limit = INT64_MAX / 16;
    int64_t extent[3], stride[3], span = dim;
    int i, j;
    SVG2__CHECK(svg2__dtype_valid(l.dtype), SVG2_ERR_DTYPE, field,
                "dtype must be SVG2_F32, SVG2_F16 or SVG2_BF16");
    SVG2__CHECK(l.stride_batch >= 0 && l.stride_head >= 0 && l.stride_token >= 0, SVG2_ERR_STRIDE, field,
                "strides must not be negative");
    SVG2__CHECK(svg2__count(batch, heads, tokens, dim) < (size_t)limit, SVG2_ERR_OVERFLOW, field,
                "batch*heads*tokens*head_dim overflows");
    l = svg2__layout(l, heads, tokens, dim);
    extent[0] = tokens, stride[0] = l.stride_token;
    extent[1] = heads, stride[1] = l.stride_head;
    extent[2] = batch, stride[2] = l.stride_batch;
    for (i = 0; i < 3; ++i) {
        SVG2__CHECK(extent[i] <= 1 || stride[i] <= (limit - span) / (extent[i] - 1), SVG2_ERR_OVERFLOW, field,
                    "extents times strides overflow");
        span += stride[i] * (extent[i] - 1);
    }
    if (!is_output) return SVG2_OK;
    /* Rows of an output must not overlap: sorted by stride, each dimension must step over all the smaller
    ones. */
    for (i = 0; i < 2; ++i)
        for (j = 0; j < 2 - i; ++j)
            if (stride[j] > stride[j + 1]) {
                int64_t t = stride[j];
                stride[j] = stride[j + 1], stride[j + 1] = t;
                t = extent[j];
                extent[j] = extent[j + 1], extent[j + 1] = t;
            }
    span = dim;
    for (i = 0; i < 3; ++i) {
        if (extent[i] <= 1) continue;
        SVG2__CHECK(stride[i] >= span, SVG2_ERR_STRIDE, field, "rows of an output must not overlap");
        span = stride[i] * (extent[i] - 1) + span;
    }
    return SVG2_OK;
}

static svg2_result svg2__check_tensor(const void *p, svg2_layout l, const char *field, svg2_error *err)
{
    SVG2__NOT_NULL(p, field);
    SVG2__CHECK((uintptr_t)p % svg2__dtype_bytes(l.dtype) == 0, SVG2_ERR_ALIGN, field,
                "must be aligned to the size of its elements");
    return SVG2_OK;
}

static svg2_result svg2__check_memory(const void *p, size_t have, size_t need, size_t align, const char *field,
                                      svg2_error *err)
{
    SVG2__CHECK(need != SIZE_MAX, SVG2_ERR_OVERFLOW, field, "size overflows");
    if (need == 0) return SVG2_OK;
    SVG2__NOT_NULL(p, field);
    SVG2__CHECK((uintptr_t)p % align == 0, SVG2_ERR_ALIGN, field, "is not aligned (SVG2_ALIGN on the CPU)");
    SVG2__CHECK(have >= need, SVG2_ERR_WORKSPACE, field, "is smaller than the size query says");
    return SVG2_OK;
}

/* Loops step over the tokens in tiles and chunks of up to 1024 with 32-bit counters. */
static svg2_result svg2__check_tokens(int32_t tokens, const char *field, svg2_error *err)
{
    SVG2__CHECK(tokens >= 1 && tokens <= INT32_MAX - 1023, SVG2_ERR_RANGE, field, "must be between 1 and 2^31 - 1024");
    return SVG2_OK;
}

static svg2_result svg2__check_extents(int32_t batch, int32_t heads, int32_t tokens, int32_t dim, svg2_error *err)
{
    SVG2__CHECK(batch >= 1, SVG2_ERR_RANGE, "batch", "must be at least 1");
    SVG2__CHECK(heads >= 1, SVG2_ERR_RANGE, "heads", "must be at least 1");
    SVG2__CHECK((int64_t)batch * heads <= INT32_MAX, SVG2_ERR_OVERFLOW, "batch", "batch*heads overflows");
    SVG2__TRY(svg2__check_tokens(tokens, "tokens", err));
    SVG2__CHECK(dim >= 8 && dim <= SVG2__MAX_DIM && dim % 8 == 0, SVG2_ERR_RANGE, "head_dim",
                "must be a multiple of 8 between 8 and 256");
    return SVG2_OK;
}

static svg2_result svg2__check_clusters(int32_t clusters, const char *field, svg2_error *err)
{
    SVG2__CHECK(clusters >= 1 && clusters <= (1 << 24), SVG2_ERR_RANGE, field, "must be between 1 and 2^24");
    return SVG2_OK;
}

static svg2_result svg2__check_heads_kv(int32_t heads, int32_t heads_kv, svg2_error *err)
{
    SVG2__CHECK(heads_kv >= 1, SVG2_ERR_RANGE, "heads_kv", "must be at least 1");
    SVG2__CHECK(heads % heads_kv == 0, SVG2_ERR_SHAPE, "heads_kv", "must divide heads");
    return SVG2_OK;
}

/* Index of the key head that serves query head bh = b*heads + h. */
static int64_t svg2__kv_head(int64_t bh, int32_t heads, int32_t heads_kv)
{
    return bh / heads * heads_kv + bh % heads / (heads / heads_kv);
}

/* Byte offset of a row. */
static size_t svg2__row_at(const svg2_layout *l, int64_t b, int64_t h, int64_t token)
{
    return (size_t)(b * l->stride_batch + h * l->stride_head + token * l->stride_token)
           * svg2__dtype_bytes(l->dtype);
}

static const char *svg2__row(const void *base, const svg2_layout *l, int64_t b, int64_t h, int64_t token)
{
    return (const char *)base + svg2__row_at(l, b, h, token);
}

/* Ask for a row that will be needed soon. Rows of a cluster lie anywhere; waiting for each costs more than
   working on it. Always inline: GCC takes a function that only prefetches for one without effect, and drops the
   call. */
SVG2__INLINE void svg2__prefetch(const char *row, const svg2_layout *l, int32_t dim)
{
#if defined(__GNUC__)
    const size_t bytes = (size_t)dim * svg2__dtype_bytes(l->dtype);
    size_t i;
    for (i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
#else
    (void)row, (void)l, (void)dim;
#endif
}

/* ==== >>dtype ============================================================================ */
static uint32_t svg2__bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

static float svg2__from_bits(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

static float svg2__bf16_to_f32(uint16_t h)
{
    return svg2__from_bits((uint32_t)h << 16);
}

static uint16_t svg2__f32_to_bf16(float x)
{
    uint32_t u = svg2__bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u); /* NaN stays NaN, quiet */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);                 /* nearest, ties to even */
}

static float svg2__f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, mantissa = h & 1023u;
    if (exponent == 31u)
        return svg2__from_bits(sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
    if (exponent) return svg2__from_bits(sign | ((exponent + 112u) << 23) | (mantissa << 13));
    return svg2__from_bits(sign | svg2__bits((float)mantissa * (1.0f / 16777216.0f))); /* subnormal: mantissa * 2^-24 */
}

static uint16_t svg2__f32_to_f16(float x)
{
    uint32_t u = svg2__bits(x), sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((u >> 13) & 0x3ffu)); /* NaN */
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);                       /* rounds to 65536 or more: Inf */
    if (u < 0x38800000u) { /* below 2^-14: adding 1/2 leaves the subnormal f16, rounded by the FPU, in the low bits */
        float f = svg2__from_bits(u) + 0.5f;
        return (uint16_t)(sign | (svg2__bits(f) - 0x3f000000u));
    }
    u += 0xfffu + ((u >> 13) & 1u);
    return (uint16_t)(sign | ((u - 0x38000000u) >> 13));
}

static float svg2__load1(const void *p, svg2_dtype dtype, size_t i)
{
    if (dtype == SVG2_F32) return ((const float *)p)[i];
    if (dtype == SVG2_F16) return svg2__f16_to_f32(((const uint16_t *)p)[i]);
    return svg2__bf16_to_f32(((const uint16_t *)p)[i]);
}

static void svg2__store1(void *p, svg2_dtype dtype, size_t i, float x)
{
    if (dtype == SVG2_F32) ((float *)p)[i] = x;
    else if (dtype == SVG2_F16) ((uint16_t *)p)[i] = svg2__f32_to_f16(x);
    else ((uint16_t *)p)[i] = svg2__f32_to_bf16(x);
}

SVG2_API void svg2_convert(void *dst, svg2_dtype dst_dtype, const void *src, svg2_dtype src_dtype, size_t count)
{
    size_t i;
    for (i = 0; i < count; ++i) svg2__store1(dst, dst_dtype, i, svg2__load1(src, src_dtype, i));
}

/* ==== >>rng ==============================================================================
   Counter-based: the number depends on (seed, stream, counter) alone. Two rounds of the splitmix64 finaliser. */
static uint64_t svg2__mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Uniform in [0, 1). */
static double svg2__uniform(uint64_t seed, uint64_t stream, uint64_t counter)
{
    return (double)(svg2__mix(svg2__mix(seed ^ svg2__mix(stream)) ^ counter) >> 11) * (1.0 / 9007199254740992.0);
}

/* ==== >>parallel ========================================================================= */
static void svg2__run(const svg2_backend *backend, svg2_task_fn *fn, void *task, int64_t count, int64_t grain)
{
    if (count <= 0) return;
    if (backend->parallel.run && backend->parallel.workers > 1 && count > grain)
        backend->parallel.run(backend->parallel.user, fn, task, count, grain < 1 ? 1 : grain);
    else
        fn(task, 0, count, 0);
}

static size_t svg2__workers(const svg2_backend *backend)
{
    int32_t w = backend->parallel.run ? backend->parallel.workers : 1;
    return (size_t)(w < 1 ? 1 : w > SVG2__MAX_WORKERS ? SVG2__MAX_WORKERS : w);
}

#ifdef SVG2_OPENMP
#  ifndef _OPENMP
#    error "SVG2_OPENMP needs -fopenmp (or your compiler's switch) in the file that defines SVG2_IMPLEMENTATION"
#  endif
#  include <omp.h>
static void svg2__openmp_run(void *user, svg2_task_fn *fn, void *task, int64_t count, int64_t grain)
{
    const int threads = (int)(intptr_t)user;
    const int64_t pieces = (count + grain - 1) / grain;
    int64_t i;
#  pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
    for (i = 0; i < pieces; ++i)
        fn(task, i * grain, svg2__min64(count, (i + 1) * grain), (int32_t)omp_get_thread_num());
}

SVG2_API svg2_parallel svg2_parallel_openmp(int32_t threads)
{
    svg2_parallel p = SVG2_ZERO;
    if (threads <= 0) threads = (int32_t)omp_get_max_threads();
    if (threads > SVG2__MAX_WORKERS) threads = SVG2__MAX_WORKERS;
    p.run = svg2__openmp_run;
    p.user = (void *)(intptr_t)threads;
    p.workers = threads;
    return p;
}
#endif

/* ==== >>dispatch =========================================================================
   All heavy work goes through a dozen inner loops. mk ("micro-kernel") is the matrix product of the library: logits,
   values, distances, tail matrices are the same loop on differently packed operands. mk16 is its bf16 form. */

/* c[i][l] = (accumulate ? c[i][l] : 0) + sum over k < kc of a[k*lda + i] * b[k*ldb + l],   i < 4, l < 16*nv, nv
   in 1..4 */
typedef void svg2__mk_fn(int nv, int64_t kc, const float *a, int64_t lda, const float *b, int64_t ldb, float *c,
                         int64_t ldc, int accumulate);
/* dst[d] = src[d] - shift[d] (shift may be NULL), d < dim, dim a multiple of 8 */
typedef void svg2__load_fn(float *dst, const void *src, svg2_dtype dtype, const float *shift, int32_t dim);
/* transpose 4 rows: dst[d*ld_dst + i] = src[i*ld_src + d], d < dim, dim a multiple of 4 */
typedef void svg2__pack4_fn(float *dst, int64_t ld_dst, const float *src, int64_t ld_src, int32_t dim);
/* p [keys][64]: base-2 logits in, weights exp2(p + bias[key] - m) out; m, l [64] are updated; alpha = exp2(old m
   - new m). bias may be NULL. Returns 1 if any alpha is not 1, i.e. earlier sums must be rescaled. */
typedef int svg2__softmax_fn(float *p, int32_t keys, int nv, const float *bias, float *m, float *l, float *alpha);
/* top [64] = largest of p [keys][64], keys > 0; NaN where one of a lane's is not finite */
typedef void svg2__peak_fn(const float *p, int32_t keys, int nv, float *top);
/* o [dim][64] *= alpha [64] */
typedef void svg2__rescale_fn(float *o, int32_t dim, int nv, const float *alpha);
/* score [4][64]: for each lane, best = max over i of score + bias[i], index = first + i of it; strict, so ties
   stay low */
typedef void svg2__argmax_fn(const float *score, int nv, const float *bias, int32_t first, float *best,
                             int32_t *index);
/* p = exp2(p - lse2): key_mass[key] = sum over lanes, recall[lane] += sum over keys of weight[key] * p */
typedef void svg2__mass_fn(const float *p, int32_t keys, int nv, const float *lse2, const float *weight,
                           float *key_mass, float *recall);
/* sum[d] += row[d], square[d] += row[d]^2 */
typedef void svg2__moments_fn(float *sum, float *square, const float *row, int32_t dim);
/* sum of a[i]*b[i] */
typedef float svg2__dot_fn(const float *a, const float *b, int32_t dim);
/* Where the machine multiplies pairs of bf16 at twice the rate: mk on bf16 pairs.
   mk16: c [4][64] = bias[i] + products, best [64] = max of it and c over i; or, with bias = best = NULL, c += products
   pairs: x [dim][64] f32 -> xb [dim/2][64] pairs, and per lane the lengths of x, of its rounded form and of the
   difference */
typedef void svg2__mk16_fn(int nv, int64_t kc, const uint32_t *a, const uint32_t *b, const float *bias, float *c,
                           float *best);
typedef void svg2__pairs_fn(uint32_t *xb, const float *x, int32_t dim, int nv, float *length, float *rounded,
                            float *residual);
/* bit l of the result: not (score[l] < threshold[l]), l < 64 */
typedef uint64_t svg2__reach_fn(const float *score, int nv, const float *threshold);
/* sum of the squares of src */
typedef float svg2__square_fn(const void *src, svg2_dtype dtype, int32_t dim);
/* dst = src * inverse * weight, its pairs turned; sum += the same before it is rounded. dst may be src. */
typedef struct svg2__turn {
    void *dst;
    const void *src;
    svg2_dtype dst_dtype, src_dtype;
    float *sum;                  /* [dim], NULL = not                               */
    const float *weight;         /* [dim], NULL = 1                                 */
    const float *cosine, *sine;  /* [dim/2], NULL = not turned                      */
    float inverse;
    int32_t dim;                 /* a multiple of 8                                 */
    int is_half;                 /* pair i is elements i, i + dim/2, not 2i, 2i + 1 */
} svg2__turn;
typedef void svg2__turn_fn(const svg2__turn *t);

typedef struct svg2__loops {
    svg2__mk_fn      *mk;
    svg2__load_fn    *load;
    svg2__pack4_fn   *pack4;
    svg2__softmax_fn *softmax;
    svg2__peak_fn    *peak;
    svg2__rescale_fn *rescale;
    svg2__argmax_fn  *argmax;
    svg2__mass_fn    *mass;
    svg2__moments_fn *moments;
    svg2__dot_fn     *dot;
    svg2__square_fn  *square;
    svg2__turn_fn    *turn;
    svg2__mk16_fn    *mk16; /* these three may be NULL */
    svg2__pairs_fn   *pairs;
    svg2__reach_fn   *reach;
} svg2__loops;

/* ---- scalar: the definition of truth ---- */
static void svg2__mk_scalar(int nv, int64_t kc, const float *a, int64_t lda, const float *b, int64_t ldb,
                            float *c, int64_t ldc, int accumulate)
{
    const int n = 16 * nv;
    float acc[SVG2__LANES];
    int64_t k;
    int i, l;
    for (i = 0; i < 4; ++i) {
        for (l = 0; l < n; ++l) acc[l] = 0.0f;
        for (k = 0; k < kc; ++k) {
            const float x = a[k * lda + i];
            const float *row = b + k * ldb;
            for (l = 0; l < n; ++l) acc[l] += x * row[l];
        }
        for (l = 0; l < n; ++l) c[i * ldc + l] = acc[l] + (accumulate ? c[i * ldc + l] : 0.0f);
    }
}

static void svg2__load_scalar(float *dst, const void *src, svg2_dtype dtype, const float *shift, int32_t dim)
{
    int32_t d;
    for (d = 0; d < dim; ++d) dst[d] = svg2__load1(src, dtype, (size_t)d) - (shift ? shift[d] : 0.0f);
}

static void svg2__pack4_scalar(float *dst, int64_t ld_dst, const float *src, int64_t ld_src, int32_t dim)
{
    int32_t d, i;
    for (d = 0; d < dim; ++d)
        for (i = 0; i < 4; ++i) dst[d * ld_dst + i] = src[i * ld_src + d];
}

static int svg2__softmax_scalar(float *p, int32_t keys, int nv, const float *bias, float *m, float *l,
                                float *alpha)
{
    const int n = 16 * nv;
    int32_t key;
    int lane, changed = 0;
    for (lane = 0; lane < n; ++lane) {
        float old = m[lane], top = old, reference, sum = 0.0f;
        for (key = 0; key < keys; ++key) {
            float x = p[key * SVG2__LANES + lane] + (bias ? bias[key] : 0.0f);
            if (x > top) top = x;
        }
        reference = top == -INFINITY ? 0.0f : top; /* nothing but -Inf so far: keep exp2 away from Inf - Inf */
        for (key = 0; key < keys; ++key) {
            float *x = &p[key * SVG2__LANES + lane];
            *x = exp2f(*x + (bias ? bias[key] : 0.0f) - reference);
            sum += *x;
        }
        alpha[lane] = exp2f(old - reference);
        l[lane] = l[lane] * alpha[lane] + sum;
        m[lane] = top;
        if (!(alpha[lane] == 1.0f)) changed = 1;
    }
    return changed;
}

static void svg2__peak_scalar(const float *p, int32_t keys, int nv, float *top)
{
    float odd[SVG2__LANES];
    int32_t key;
    int lane;
    for (lane = 0; lane < 16 * nv; ++lane) top[lane] = -INFINITY, odd[lane] = 0.0f;
    for (key = 0; key < keys; ++key)
        for (lane = 0; lane < 16 * nv; ++lane) {
            const float x = p[key * SVG2__LANES + lane];
            top[lane] = x > top[lane] ? x : top[lane];
            odd[lane] += x - x; /* a NaN, which the comparison passes over; an Inf */
        }
    for (lane = 0; lane < 16 * nv; ++lane) top[lane] += odd[lane];
}

static void svg2__rescale_scalar(float *o, int32_t dim, int nv, const float *alpha)
{
    int32_t d;
    int lane;
    for (d = 0; d < dim; ++d)
        for (lane = 0; lane < 16 * nv; ++lane) o[d * SVG2__LANES + lane] *= alpha[lane];
}

static void svg2__argmax_scalar(const float *score, int nv, const float *bias, int32_t first, float *best,
                                int32_t *index)
{
    int i, lane;
    for (i = 0; i < 4; ++i)
        for (lane = 0; lane < 16 * nv; ++lane) {
            float x = score[i * SVG2__LANES + lane] + bias[i];
            if (x > best[lane]) best[lane] = x, index[lane] = first + i;
        }
}

static void svg2__mass_scalar(const float *p, int32_t keys, int nv, const float *lse2, const float *weight,
                              float *key_mass, float *recall)
{
    int32_t key;
    int lane;
    for (key = 0; key < keys; ++key) {
        float sum = 0.0f;
        for (lane = 0; lane < 16 * nv; ++lane) {
            float x = exp2f(p[key * SVG2__LANES + lane] - lse2[lane]);
            sum += x;
            recall[lane] += weight[key] * x;
        }
        key_mass[key] = sum;
    }
}

static void svg2__moments_scalar(float *sum, float *square, const float *row, int32_t dim)
{
    int32_t d;
    for (d = 0; d < dim; ++d) {
        sum[d] += row[d];
        square[d] += row[d] * row[d];
    }
}

static float svg2__dot_scalar(const float *a, const float *b, int32_t dim)
{
    float sum = 0.0f;
    int32_t d;
    for (d = 0; d < dim; ++d) sum += a[d] * b[d];
    return sum;
}

static float svg2__square_scalar(const void *src, svg2_dtype dtype, int32_t dim)
{
    float sum = 0.0f;
    int32_t d;
    for (d = 0; d < dim; ++d) {
        const float x = svg2__load1(src, dtype, (size_t)d);
        sum += x * x;
    }
    return sum;
}

/* pairs from first on */
static void svg2__turn_pairs(const svg2__turn *t, int32_t first)
{
    int32_t i, n;
    for (i = first; i < t->dim / 2; ++i) {
        const size_t at[2] = {(size_t)(t->is_half ? i : 2 * i),
                              (size_t)(t->is_half ? i + t->dim / 2 : 2 * i + 1)};
        float x[2];
        for (n = 0; n < 2; ++n)
            x[n] = svg2__load1(t->src, t->src_dtype, at[n]) * t->inverse
                   * (t->weight ? t->weight[at[n]] : 1.0f);
        if (t->cosine) {
            const float a = x[0], b = x[1];
            x[0] = a * t->cosine[i] - b * t->sine[i];
            x[1] = a * t->sine[i] + b * t->cosine[i];
        }
        for (n = 0; n < 2; ++n) {
            svg2__store1(t->dst, t->dst_dtype, at[n], x[n]);
            if (t->sum) t->sum[at[n]] += x[n];
        }
    }
}

static void svg2__turn_scalar(const svg2__turn *t)
{
    svg2__turn_pairs(t, 0);
}

static const svg2__loops svg2__loops_scalar = {
    svg2__mk_scalar,      svg2__load_scalar,   svg2__pack4_scalar, svg2__softmax_scalar, svg2__peak_scalar,
    svg2__rescale_scalar, svg2__argmax_scalar, svg2__mass_scalar,  svg2__moments_scalar, svg2__dot_scalar,
    svg2__square_scalar,  svg2__turn_scalar,   0,                  0,                    0,
};

/* ---- x86 ----
   Functions carry target attributes, so that the file compiles without -mavx and picks at run time. Left out on
   Windows: GCC aligns the stack to 16 bytes there and still uses aligned AVX stores (GCC bug 54412). */
#if !defined(SVG2_NO_SIMD) && defined(__x86_64__) && defined(__GNUC__) && !defined(_WIN32)
#  define SVG2__X86 1
#else
#  define SVG2__X86 0
#endif

#if SVG2__X86
#  if !defined(__clang__) /* GCC's own avx512fintrin.h leaves "undefined" registers uninitialised, and then warns of it in C++ */
#    pragma GCC diagnostic push
#    pragma GCC diagnostic ignored "-Wuninitialized"
#    pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#    pragma GCC diagnostic ignored "-Wsign-conversion" /* its macros, without optimisation */
#  endif
#include <immintrin.h>
#define SVG2__AVX2 __attribute__((target("avx2,fma,f16c")))
#define SVG2__AVX512 __attribute__((target("avx512f")))

/* 2^f on [-1/2, 1/2], relative error 1e-7 in f32 arithmetic: interpolation at the Chebyshev nodes, degree 6 */
#define SVG2__EXP2_0 1.0f
#define SVG2__EXP2_1 0.693147182f
#define SVG2__EXP2_2 0.240226507f
#define SVG2__EXP2_3 0.0555032715f
#define SVG2__EXP2_4 0.00961805694f
#define SVG2__EXP2_5 0.00134004280f
#define SVG2__EXP2_6 0.000154614448f

/* Transposing 4x4 blocks needs nothing beyond the SSE of every x86-64. */
static void svg2__pack4_sse(float *dst, int64_t ld_dst, const float *src, int64_t ld_src, int32_t dim)
{
    int32_t d;
    for (d = 0; d < dim; d += 4, dst += 4 * ld_dst, src += 4) {
        __m128 r0 = _mm_loadu_ps(src), r1 = _mm_loadu_ps(src + ld_src);
        __m128 r2 = _mm_loadu_ps(src + 2 * ld_src), r3 = _mm_loadu_ps(src + 3 * ld_src);
        _MM_TRANSPOSE4_PS(r0, r1, r2, r3);
        _mm_storeu_ps(dst, r0);
        _mm_storeu_ps(dst + ld_dst, r1);
        _mm_storeu_ps(dst + 2 * ld_dst, r2);
        _mm_storeu_ps(dst + 3 * ld_dst, r3);
    }
}

/* ---- AVX2 + FMA + F16C: 16 lanes are two registers ---- */

/* 4 x 16 accumulators in 8 registers, 2 for b, 1 for the broadcast: 6 loads for 8 FMA, below the 2 loads per
   cycle there are. More accumulators would leave no register for the operands. */
SVG2__AVX2 static void svg2__mk_avx2(int nv, int64_t kc, const float *a, int64_t lda, const float *b, int64_t ldb,
                                     float *c, int64_t ldc, int accumulate)
{
    int v;
    for (v = 0; v < nv; ++v, b += 16, c += 16) {
        const float *ak = a, *bk = b;
        __m256 c00 = _mm256_setzero_ps(), c01 = c00, c10 = c00, c11 = c00, c20 = c00, c21 = c00, c30 = c00,
               c31 = c00;
        int64_t k;
        for (k = 0; k < kc; ++k, ak += lda, bk += ldb) {
            const __m256 b0 = _mm256_loadu_ps(bk), b1 = _mm256_loadu_ps(bk + 8);
            __m256 x = _mm256_broadcast_ss(ak);
            c00 = _mm256_fmadd_ps(x, b0, c00), c01 = _mm256_fmadd_ps(x, b1, c01);
            x = _mm256_broadcast_ss(ak + 1);
            c10 = _mm256_fmadd_ps(x, b0, c10), c11 = _mm256_fmadd_ps(x, b1, c11);
            x = _mm256_broadcast_ss(ak + 2);
            c20 = _mm256_fmadd_ps(x, b0, c20), c21 = _mm256_fmadd_ps(x, b1, c21);
            x = _mm256_broadcast_ss(ak + 3);
            c30 = _mm256_fmadd_ps(x, b0, c30), c31 = _mm256_fmadd_ps(x, b1, c31);
        }
#define SVG2__PUT(i, lo, hi)                                                      \
    if (accumulate) {                                                             \
        lo = _mm256_add_ps(lo, _mm256_loadu_ps(c + (i) * ldc));                   \
        hi = _mm256_add_ps(hi, _mm256_loadu_ps(c + (i) * ldc + 8));               \
    }                                                                             \
    _mm256_storeu_ps(c + (i) * ldc, lo);                                          \
    _mm256_storeu_ps(c + (i) * ldc + 8, hi)
        SVG2__PUT(0, c00, c01);
        SVG2__PUT(1, c10, c11);
        SVG2__PUT(2, c20, c21);
        SVG2__PUT(3, c30, c31);
#undef SVG2__PUT
    }
}

SVG2__AVX2 static void svg2__load_avx2(float *dst, const void *src, svg2_dtype dtype, const float *shift,
                                       int32_t dim)
{
    int32_t d;
    for (d = 0; d < dim; d += 8) {
        __m256 x;
        if (dtype == SVG2_F32) {
            x = _mm256_loadu_ps((const float *)src + d);
        } else {
            __m128i h = _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)src + d));
            if (dtype == SVG2_F16) x = _mm256_cvtph_ps(h);
            else x = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
        }
        if (shift) x = _mm256_sub_ps(x, _mm256_loadu_ps(shift + d));
        _mm256_storeu_ps(dst + d, x);
    }
}

/* 2^x for x <= 0; NaN stays NaN; below 2^-126 flushes to 0 */
SVG2__AVX2 SVG2__INLINE __m256 svg2__exp2_avx2(__m256 x)
{
    __m256 n, f, p;
    x = _mm256_max_ps(_mm256_set1_ps(-127.0f), x); /* operand order: max returns the second if one is NaN */
    n = _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    f = _mm256_sub_ps(x, n);
    p = _mm256_set1_ps(SVG2__EXP2_6);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(SVG2__EXP2_5));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(SVG2__EXP2_4));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(SVG2__EXP2_3));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(SVG2__EXP2_2));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(SVG2__EXP2_1));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(SVG2__EXP2_0));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(
                                _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)));
}

SVG2__AVX2 static int svg2__softmax_avx2(float *p, int32_t keys, int nv, const float *bias, float *m, float *l,
                                         float *alpha)
{
    const __m256 minus_inf = _mm256_set1_ps(-INFINITY);
    int v, changed = 0;
    for (v = 0; v < 2 * nv; ++v, p += 8, m += 8, l += 8, alpha += 8) {
        const __m256 old = _mm256_loadu_ps(m);
        __m256 top = old, reference, sum = _mm256_setzero_ps(), scale;
        int32_t key;
        for (key = 0; key < keys; ++key) {
            __m256 x = _mm256_loadu_ps(p + key * SVG2__LANES);
            if (bias) x = _mm256_add_ps(x, _mm256_broadcast_ss(bias + key));
            top = _mm256_max_ps(x, top);
        }
        reference = _mm256_andnot_ps(_mm256_cmp_ps(top, minus_inf, _CMP_EQ_OQ), top); /* -Inf becomes 0 */
        for (key = 0; key < keys; ++key) {
            __m256 x = _mm256_loadu_ps(p + key * SVG2__LANES);
            if (bias) x = _mm256_add_ps(x, _mm256_broadcast_ss(bias + key));
            x = svg2__exp2_avx2(_mm256_sub_ps(x, reference));
            sum = _mm256_add_ps(sum, x);
            _mm256_storeu_ps(p + key * SVG2__LANES, x);
        }
        scale = svg2__exp2_avx2(_mm256_sub_ps(old, reference));
        _mm256_storeu_ps(alpha, scale);
        _mm256_storeu_ps(l, _mm256_fmadd_ps(_mm256_loadu_ps(l), scale, sum));
        _mm256_storeu_ps(m, top);
        changed |= _mm256_movemask_ps(_mm256_cmp_ps(scale, _mm256_set1_ps(1.0f), _CMP_NEQ_UQ));
    }
    return changed != 0;
}

SVG2__AVX2 static void svg2__peak_avx2(const float *p, int32_t keys, int nv, float *top)
{
    int v;
    for (v = 0; v < 2 * nv; ++v, p += 8, top += 8) {
        __m256 best = _mm256_loadu_ps(p), odd = _mm256_sub_ps(best, best);
        int32_t key;
        for (key = keys % 2; key < keys; key += 2) { /* two: a maximum takes four cycles */
            const __m256 x = _mm256_loadu_ps(p + key * SVG2__LANES);
            const __m256 y = _mm256_loadu_ps(p + (key + 1) * SVG2__LANES);
            best = _mm256_max_ps(_mm256_max_ps(x, y), best);
            odd = _mm256_or_ps(_mm256_or_ps(_mm256_sub_ps(x, x), _mm256_sub_ps(y, y)), odd);
        }
        _mm256_storeu_ps(top, _mm256_add_ps(best, odd));
    }
}

SVG2__AVX2 static void svg2__rescale_avx2(float *o, int32_t dim, int nv, const float *alpha)
{
    int32_t d;
    int v;
    for (v = 0; v < 2 * nv; ++v) {
        const __m256 x = _mm256_loadu_ps(alpha + 8 * v);
        for (d = 0; d < dim; ++d) {
            float *at = o + d * SVG2__LANES + 8 * v;
            _mm256_storeu_ps(at, _mm256_mul_ps(_mm256_loadu_ps(at), x));
        }
    }
}

SVG2__AVX2 static void svg2__argmax_avx2(const float *score, int nv, const float *bias, int32_t first,
                                         float *best, int32_t *index)
{
    int v, i;
    for (v = 0; v < 2 * nv; ++v) {
        __m256 top = _mm256_loadu_ps(best + 8 * v);
        __m256 at = _mm256_castsi256_ps(_mm256_loadu_si256((const __m256i *)(const void *)(index + 8 * v)));
        for (i = 0; i < 4; ++i) {
            const __m256 x =
                _mm256_add_ps(_mm256_loadu_ps(score + i * SVG2__LANES + 8 * v), _mm256_broadcast_ss(bias + i));
            const __m256 above = _mm256_cmp_ps(x, top, _CMP_GT_OQ);
            top = _mm256_blendv_ps(top, x, above);
            at = _mm256_blendv_ps(at, _mm256_castsi256_ps(_mm256_set1_epi32(first + i)), above);
        }
        _mm256_storeu_ps(best + 8 * v, top);
        _mm256_storeu_si256((__m256i *)(void *)(index + 8 * v), _mm256_castps_si256(at));
    }
}

SVG2__AVX2 SVG2__INLINE float svg2__sum_avx2(__m256 x)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

SVG2__AVX2 static void svg2__mass_avx2(const float *p, int32_t keys, int nv, const float *lse2,
                                       const float *weight, float *key_mass, float *recall)
{
    int32_t key;
    int v;
    for (key = 0; key < keys; ++key) key_mass[key] = 0.0f;
    for (v = 0; v < 2 * nv; ++v) {
        const __m256 lse = _mm256_loadu_ps(lse2 + 8 * v);
        __m256 kept = _mm256_loadu_ps(recall + 8 * v);
        for (key = 0; key < keys; ++key) {
            const __m256 x = svg2__exp2_avx2(_mm256_sub_ps(_mm256_loadu_ps(p + key * SVG2__LANES + 8 * v), lse));
            kept = _mm256_fmadd_ps(x, _mm256_broadcast_ss(weight + key), kept);
            key_mass[key] += svg2__sum_avx2(x);
        }
        _mm256_storeu_ps(recall + 8 * v, kept);
    }
}

SVG2__AVX2 static void svg2__moments_avx2(float *sum, float *square, const float *row, int32_t dim)
{
    int32_t d;
    for (d = 0; d < dim; d += 8) {
        const __m256 x = _mm256_loadu_ps(row + d);
        _mm256_storeu_ps(sum + d, _mm256_add_ps(_mm256_loadu_ps(sum + d), x));
        _mm256_storeu_ps(square + d, _mm256_fmadd_ps(x, x, _mm256_loadu_ps(square + d)));
    }
}

SVG2__AVX2 static float svg2__dot_avx2(const float *a, const float *b, int32_t dim)
{
    __m256 sum = _mm256_setzero_ps();
    int32_t d;
    for (d = 0; d < dim; d += 8) sum = _mm256_fmadd_ps(_mm256_loadu_ps(a + d), _mm256_loadu_ps(b + d), sum);
    return svg2__sum_avx2(sum);
}

/* 8 elements of any dtype in and out; rounding as svg2__f32_to_bf16 */
SVG2__AVX2 SVG2__INLINE __m256 svg2__get_avx2(const void *src, svg2_dtype dtype, int32_t d)
{
    __m128i h;
    if (dtype == SVG2_F32) return _mm256_loadu_ps((const float *)src + d);
    h = _mm_loadu_si128((const __m128i *)(const void *)((const uint16_t *)src + d));
    if (dtype == SVG2_F16) return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

SVG2__AVX2 SVG2__INLINE void svg2__put_avx2(void *dst, svg2_dtype dtype, int32_t d, __m256 x)
{
    __m128i h;
    if (dtype == SVG2_F32) {
        _mm256_storeu_ps((float *)dst + d, x);
        return;
    }
    if (dtype == SVG2_F16) {
        h = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    } else {
        const __m256i u = _mm256_castps_si256(x), high = _mm256_srli_epi32(u, 16);
        const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
        const __m256i up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
        const __m256i r = _mm256_blendv_epi8(_mm256_srli_epi32(up, 16), quiet, nan);
        h = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    }
    _mm_storeu_si128((__m128i *)(void *)((uint16_t *)dst + d), h);
}

SVG2__AVX2 static float svg2__square_avx2(const void *src, svg2_dtype dtype, int32_t dim)
{
    __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}; /* two chains: an FMA takes four cycles */
    int32_t d;
    for (d = 0; d < dim; d += 8) {
        const __m256 x = svg2__get_avx2(src, dtype, d);
        const __m256 next = _mm256_fmadd_ps(x, x, sum[0]);
        sum[0] = sum[1];
        sum[1] = next;
    }
    return svg2__sum_avx2(_mm256_add_ps(sum[0], sum[1]));
}

SVG2__AVX2 SVG2__INLINE __m256 svg2__scaled_avx2(const svg2__turn *t, int32_t d)
{
    const __m256 x = _mm256_mul_ps(svg2__get_avx2(t->src, t->src_dtype, d), _mm256_set1_ps(t->inverse));
    return t->weight ? _mm256_mul_ps(x, _mm256_loadu_ps(t->weight + d)) : x;
}

SVG2__AVX2 SVG2__INLINE void svg2__turned_avx2(const svg2__turn *t, int32_t d, __m256 x)
{
    svg2__put_avx2(t->dst, t->dst_dtype, d, x);
    if (t->sum) _mm256_storeu_ps(t->sum + d, _mm256_add_ps(_mm256_loadu_ps(t->sum + d), x));
}

/* pairs from first on; dim/2 need not be a multiple of 8 */
SVG2__AVX2 static void svg2__turn_half_avx2(const svg2__turn *job, int32_t first)
{
    const svg2__turn copy = *job, *t = &copy; /* whose address nobody has: its fields stay in registers */
    const int32_t half = t->dim / 2;
    for (; first + 8 <= half; first += 8) {
        const __m256 c = _mm256_loadu_ps(t->cosine + first), s = _mm256_loadu_ps(t->sine + first);
        const __m256 a = svg2__scaled_avx2(t, first), b = svg2__scaled_avx2(t, half + first);
        svg2__turned_avx2(t, first, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
        svg2__turned_avx2(t, half + first, _mm256_fmadd_ps(b, c, _mm256_mul_ps(a, s)));
    }
    svg2__turn_pairs(job, first);
}

SVG2__AVX2 static void svg2__turn_avx2(const svg2__turn *job)
{
    const svg2__turn copy = *job, *t = &copy;
    const __m256i twice = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
    int32_t d;
    if (t->cosine && t->is_half) {
        svg2__turn_half_avx2(job, 0);
        return;
    }
    for (d = 0; d < t->dim; d += 8) {
        __m256 x = svg2__scaled_avx2(t, d);
        if (t->cosine) {
            const __m256 c = _mm256_castps128_ps256(_mm_loadu_ps(t->cosine + d / 2));
            const __m256 s = _mm256_castps128_ps256(_mm_loadu_ps(t->sine + d / 2));
            const __m256 other = _mm256_permute_ps(x, 0xb1);
            x = _mm256_fmaddsub_ps(x, _mm256_permutevar8x32_ps(c, twice),
                                   _mm256_mul_ps(other, _mm256_permutevar8x32_ps(s, twice)));
        }
        svg2__turned_avx2(t, d, x);
    }
}

static const svg2__loops svg2__loops_avx2 = {
    svg2__mk_avx2,      svg2__load_avx2,   svg2__pack4_sse, svg2__softmax_avx2, svg2__peak_avx2,
    svg2__rescale_avx2, svg2__argmax_avx2, svg2__mass_avx2, svg2__moments_avx2, svg2__dot_avx2,
    svg2__square_avx2,  svg2__turn_avx2,   0,               0,                  0,
};

/* ---- AVX-512 F: 16 lanes are one register ---- */

/* 4 x 64 accumulators in 16 registers. Per k: 4 + 4 loads for 16 FMA, so that one load per cycle is enough even
   where two FMA issue per cycle. nv is a constant after inlining; unused accumulators vanish. */
SVG2__AVX512 SVG2__INLINE void svg2__mk_avx512_nv(const int nv, int64_t kc, const float *a, int64_t lda,
                                                  const float *b, int64_t ldb, float *c, int64_t ldc,
                                                  int accumulate)
{
    const __m512 zero = _mm512_setzero_ps();
    __m512 c00 = zero, c01 = zero, c02 = zero, c03 = zero, c10 = zero, c11 = zero, c12 = zero, c13 = zero;
    __m512 c20 = zero, c21 = zero, c22 = zero, c23 = zero, c30 = zero, c31 = zero, c32 = zero, c33 = zero;
    __m512 b0, b1 = zero, b2 = zero, b3 = zero, x;
    int64_t k;
    for (k = 0; k < kc; ++k, a += lda, b += ldb) {
        b0 = _mm512_loadu_ps(b);
        if (nv > 1) b1 = _mm512_loadu_ps(b + 16);
        if (nv > 2) b2 = _mm512_loadu_ps(b + 32);
        if (nv > 3) b3 = _mm512_loadu_ps(b + 48);
#define SVG2__STEP(i)                                          \
    x = _mm512_set1_ps(a[i]);                                  \
    c##i##0 = _mm512_fmadd_ps(x, b0, c##i##0);                 \
    if (nv > 1) c##i##1 = _mm512_fmadd_ps(x, b1, c##i##1);     \
    if (nv > 2) c##i##2 = _mm512_fmadd_ps(x, b2, c##i##2);     \
    if (nv > 3) c##i##3 = _mm512_fmadd_ps(x, b3, c##i##3)
        SVG2__STEP(0);
        SVG2__STEP(1);
        SVG2__STEP(2);
        SVG2__STEP(3);
#undef SVG2__STEP
    }
#define SVG2__PUT(at, x) _mm512_storeu_ps(at, accumulate ? _mm512_add_ps(x, _mm512_loadu_ps(at)) : x)
#define SVG2__PUT_ROW(i)                                        \
    SVG2__PUT(c + (i) * ldc, c##i##0);                          \
    if (nv > 1) SVG2__PUT(c + (i) * ldc + 16, c##i##1);         \
    if (nv > 2) SVG2__PUT(c + (i) * ldc + 32, c##i##2);         \
    if (nv > 3) SVG2__PUT(c + (i) * ldc + 48, c##i##3)
    SVG2__PUT_ROW(0);
    SVG2__PUT_ROW(1);
    SVG2__PUT_ROW(2);
    SVG2__PUT_ROW(3);
#undef SVG2__PUT_ROW
#undef SVG2__PUT
}

SVG2__AVX512 static void svg2__mk_avx512(int nv, int64_t kc, const float *a, int64_t lda, const float *b,
                                         int64_t ldb, float *c, int64_t ldc, int accumulate)
{
    switch (nv) {
    case 1: svg2__mk_avx512_nv(1, kc, a, lda, b, ldb, c, ldc, accumulate); break;
    case 2: svg2__mk_avx512_nv(2, kc, a, lda, b, ldb, c, ldc, accumulate); break;
    case 3: svg2__mk_avx512_nv(3, kc, a, lda, b, ldb, c, ldc, accumulate); break;
    default: svg2__mk_avx512_nv(4, kc, a, lda, b, ldb, c, ldc, accumulate); break;
    }
}

/* Lanes of the last, possibly half, register of a row whose length is a multiple of 8. */
SVG2__INLINE uint16_t svg2__mask16(int32_t left)
{
    return (uint16_t)(left >= 16 ? 0xffffu : 0xffu);
}

SVG2__AVX512 static void svg2__load_avx512(float *dst, const void *src, svg2_dtype dtype, const float *shift,
                                           int32_t dim)
{
    int32_t d;
    for (d = 0; d < dim; d += 16) {
        const __mmask16 mask = svg2__mask16(dim - d);
        __m512 x;
        if (dtype == SVG2_F32) {
            x = _mm512_maskz_loadu_ps(mask, (const float *)src + d);
        } else {
            const uint16_t *s = (const uint16_t *)src + d;
            __m256i h;
            if (mask == 0xffff) h = _mm256_loadu_si256((const __m256i *)(const void *)s);
            else h = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)s));
            if (dtype == SVG2_F16) x = _mm512_cvtph_ps(h);
            else x = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
        }
        if (shift) x = _mm512_sub_ps(x, _mm512_maskz_loadu_ps(mask, shift + d));
        _mm512_mask_storeu_ps(dst + d, mask, x);
    }
}

/* 2^x for x <= 0; NaN stays NaN; below 2^-126 flushes to 0, which also keeps subnormals out of the products */
SVG2__AVX512 SVG2__INLINE __m512 svg2__exp2_avx512(__m512 x)
{
    const __mmask16 normal = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-126.0f), _CMP_NLT_UQ);
    const __m512 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(x, n);
    __m512 p = _mm512_set1_ps(SVG2__EXP2_6);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(SVG2__EXP2_5));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(SVG2__EXP2_4));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(SVG2__EXP2_3));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(SVG2__EXP2_2));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(SVG2__EXP2_1));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(SVG2__EXP2_0));
    return _mm512_maskz_scalef_ps(normal, p, n);
}

SVG2__AVX512 static int svg2__softmax_avx512(float *p, int32_t keys, int nv, const float *bias, float *m,
                                             float *l, float *alpha)
{
    const __m512 minus_inf = _mm512_set1_ps(-INFINITY);
    int v, changed = 0;
    for (v = 0; v < nv; ++v, p += 16, m += 16, l += 16, alpha += 16) {
        const __m512 old = _mm512_loadu_ps(m);
        __m512 top = old, reference, sum = _mm512_setzero_ps(), scale;
        int32_t key;
        for (key = 0; key < keys; ++key) {
            __m512 x = _mm512_loadu_ps(p + key * SVG2__LANES);
            if (bias) x = _mm512_add_ps(x, _mm512_set1_ps(bias[key]));
            top = _mm512_max_ps(x, top);
        }
        reference = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(top, minus_inf, _CMP_NEQ_UQ), top); /* -Inf becomes 0 */
        for (key = 0; key < keys; ++key) {
            __m512 x = _mm512_loadu_ps(p + key * SVG2__LANES);
            if (bias) x = _mm512_add_ps(x, _mm512_set1_ps(bias[key]));
            x = svg2__exp2_avx512(_mm512_sub_ps(x, reference));
            sum = _mm512_add_ps(sum, x);
            _mm512_storeu_ps(p + key * SVG2__LANES, x);
        }
        scale = svg2__exp2_avx512(_mm512_sub_ps(old, reference));
        _mm512_storeu_ps(alpha, scale);
        _mm512_storeu_ps(l, _mm512_fmadd_ps(_mm512_loadu_ps(l), scale, sum));
        _mm512_storeu_ps(m, top);
        changed |= _mm512_cmp_ps_mask(scale, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ);
    }
    return changed != 0;
}

SVG2__AVX512 static void svg2__peak_avx512(const float *p, int32_t keys, int nv, float *top)
{
    int v;
    for (v = 0; v < nv; ++v, p += 16, top += 16) {
        __m512 best = _mm512_loadu_ps(p);
        __m512i odd = _mm512_castps_si512(_mm512_sub_ps(best, best));
        int32_t key;
        for (key = keys % 2; key < keys; key += 2) {
            const __m512 x = _mm512_loadu_ps(p + key * SVG2__LANES);
            const __m512 y = _mm512_loadu_ps(p + (key + 1) * SVG2__LANES);
            best = _mm512_max_ps(_mm512_max_ps(x, y), best);
            odd = _mm512_ternarylogic_epi32(odd, _mm512_castps_si512(_mm512_sub_ps(x, x)),
                                            _mm512_castps_si512(_mm512_sub_ps(y, y)), 0xfe); /* or */
        }
        _mm512_storeu_ps(top, _mm512_add_ps(best, _mm512_castsi512_ps(odd)));
    }
}

SVG2__AVX512 static void svg2__rescale_avx512(float *o, int32_t dim, int nv, const float *alpha)
{
    int32_t d;
    int v;
    for (v = 0; v < nv; ++v) {
        const __m512 x = _mm512_loadu_ps(alpha + 16 * v);
        for (d = 0; d < dim; ++d) {
            float *at = o + d * SVG2__LANES + 16 * v;
            _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), x));
        }
    }
}

SVG2__AVX512 static void svg2__argmax_avx512(const float *score, int nv, const float *bias, int32_t first,
                                             float *best, int32_t *index)
{
    int v, i;
    for (v = 0; v < nv; ++v) {
        __m512 top = _mm512_loadu_ps(best + 16 * v);
        __m512i at = _mm512_loadu_si512(index + 16 * v);
        for (i = 0; i < 4; ++i) {
            const __m512 x =
                _mm512_add_ps(_mm512_loadu_ps(score + i * SVG2__LANES + 16 * v), _mm512_set1_ps(bias[i]));
            const __mmask16 above = _mm512_cmp_ps_mask(x, top, _CMP_GT_OQ);
            top = _mm512_mask_mov_ps(top, above, x);
            at = _mm512_mask_mov_epi32(at, above, _mm512_set1_epi32(first + i));
        }
        _mm512_storeu_ps(best + 16 * v, top);
        _mm512_storeu_si512(index + 16 * v, at);
    }
}

SVG2__AVX512 static void svg2__mass_avx512(const float *p, int32_t keys, int nv, const float *lse2,
                                           const float *weight, float *key_mass, float *recall)
{
    int32_t key;
    int v;
    for (key = 0; key < keys; ++key) key_mass[key] = 0.0f;
    for (v = 0; v < nv; ++v) {
        const __m512 lse = _mm512_loadu_ps(lse2 + 16 * v);
        __m512 kept = _mm512_loadu_ps(recall + 16 * v);
        for (key = 0; key < keys; ++key) {
            const __m512 x =
                svg2__exp2_avx512(_mm512_sub_ps(_mm512_loadu_ps(p + key * SVG2__LANES + 16 * v), lse));
            kept = _mm512_fmadd_ps(x, _mm512_set1_ps(weight[key]), kept);
            key_mass[key] += _mm512_reduce_add_ps(x);
        }
        _mm512_storeu_ps(recall + 16 * v, kept);
    }
}

SVG2__AVX512 static void svg2__moments_avx512(float *sum, float *square, const float *row, int32_t dim)
{
    int32_t d;
    for (d = 0; d < dim; d += 16) {
        const __mmask16 mask = svg2__mask16(dim - d);
        const __m512 x = _mm512_maskz_loadu_ps(mask, row + d);
        _mm512_mask_storeu_ps(sum + d, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, sum + d), x));
        _mm512_mask_storeu_ps(square + d, mask, _mm512_fmadd_ps(x, x, _mm512_maskz_loadu_ps(mask, square + d)));
    }
}

SVG2__AVX512 static float svg2__dot_avx512(const float *a, const float *b, int32_t dim)
{
    __m512 sum = _mm512_setzero_ps();
    int32_t d;
    for (d = 0; d < dim; d += 16) {
        const __mmask16 mask = svg2__mask16(dim - d);
        sum = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(mask, a + d), _mm512_maskz_loadu_ps(mask, b + d), sum);
    }
    return _mm512_reduce_add_ps(sum);
}

/* 16 elements (8 where mask is 0xff) of any dtype in and out */
SVG2__AVX512 SVG2__INLINE __m512 svg2__get_avx512(const void *src, svg2_dtype dtype, int32_t d,
                                                  __mmask16 mask)
{
    const uint16_t *from = (const uint16_t *)src + d;
    __m256i h;
    if (dtype == SVG2_F32) return _mm512_maskz_loadu_ps(mask, (const float *)src + d);
    if (mask == 0xffff) h = _mm256_loadu_si256((const __m256i *)(const void *)from);
    else h = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(const void *)from));
    if (dtype == SVG2_F16) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

SVG2__AVX512 SVG2__INLINE void svg2__put_avx512(void *dst, svg2_dtype dtype, int32_t d, __mmask16 mask,
                                                __m512 x)
{
    uint16_t *to = (uint16_t *)dst + d;
    __m256i h;
    if (dtype == SVG2_F32) {
        _mm512_mask_storeu_ps((float *)dst + d, mask, x);
        return;
    }
    if (dtype == SVG2_F16) {
        h = _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
    } else {
        const __m512i u = _mm512_castps_si512(x), high = _mm512_srli_epi32(u, 16);
        const __m512i odd = _mm512_and_epi32(high, _mm512_set1_epi32(1));
        const __m512i up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
        const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        const __m512i r = _mm512_srli_epi32(up, 16);
        h = _mm512_cvtepi32_epi16(_mm512_mask_or_epi32(r, nan, high, _mm512_set1_epi32(0x40)));
    }
    if (mask == 0xffff) _mm256_storeu_si256((__m256i *)(void *)to, h);
    else _mm_storeu_si128((__m128i *)(void *)to, _mm256_castsi256_si128(h));
}

SVG2__AVX512 static float svg2__square_avx512(const void *src, svg2_dtype dtype, int32_t dim)
{
    __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    int32_t d;
    for (d = 0; d < dim; d += 16) {
        const __m512 x = _mm512_maskz_mov_ps(svg2__mask16(dim - d),
                                             svg2__get_avx512(src, dtype, d, svg2__mask16(dim - d)));
        const __m512 next = _mm512_fmadd_ps(x, x, sum[0]);
        sum[0] = sum[1];
        sum[1] = next;
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}

SVG2__AVX512 SVG2__INLINE __m512 svg2__scaled_avx512(const svg2__turn *t, int32_t d, __mmask16 mask)
{
    const __m512 inverse = _mm512_set1_ps(t->inverse);
    const __m512 x = _mm512_mul_ps(svg2__get_avx512(t->src, t->src_dtype, d, mask), inverse);
    return t->weight ? _mm512_mul_ps(x, _mm512_maskz_loadu_ps(mask, t->weight + d)) : x;
}

SVG2__AVX512 SVG2__INLINE void svg2__turned_avx512(const svg2__turn *t, int32_t d, __mmask16 mask, __m512 x)
{
    svg2__put_avx512(t->dst, t->dst_dtype, d, mask, x);
    if (t->sum)
        _mm512_mask_storeu_ps(t->sum + d, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, t->sum + d), x));
}

SVG2__AVX512 static void svg2__turn_avx512(const svg2__turn *job)
{
    const svg2__turn copy = *job, *t = &copy; /* whose address nobody has: its fields stay in registers */
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const int32_t half = t->dim / 2;
    int32_t d;
    if (t->cosine && t->is_half) {
        for (d = 0; d + 16 <= half; d += 16) {
            const __m512 c = _mm512_loadu_ps(t->cosine + d), s = _mm512_loadu_ps(t->sine + d);
            const __m512 a = svg2__scaled_avx512(t, d, 0xffff), b = svg2__scaled_avx512(t, half + d, 0xffff);
            svg2__turned_avx512(t, d, 0xffff, _mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)));
            svg2__turned_avx512(t, half + d, 0xffff, _mm512_fmadd_ps(b, c, _mm512_mul_ps(a, s)));
        }
        if (d < half) svg2__turn_half_avx2(job, d);
        return;
    }
    for (d = 0; d < t->dim; d += 16) {
        const __mmask16 mask = svg2__mask16(t->dim - d), pairs = (__mmask16)(mask == 0xffff ? 0xff : 0xf);
        __m512 x = svg2__scaled_avx512(t, d, mask);
        if (t->cosine) {
            const __m512 c = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(pairs, t->cosine + d / 2));
            const __m512 s = _mm512_permutexvar_ps(twice, _mm512_maskz_loadu_ps(pairs, t->sine + d / 2));
            x = _mm512_fmaddsub_ps(x, c, _mm512_mul_ps(_mm512_permute_ps(x, 0xb1), s));
        }
        svg2__turned_avx512(t, d, mask, x);
    }
}

static const svg2__loops svg2__loops_avx512 = {
    svg2__mk_avx512,      svg2__load_avx512,   svg2__pack4_sse,   svg2__softmax_avx512, svg2__peak_avx512,
    svg2__rescale_avx512, svg2__argmax_avx512, svg2__mass_avx512, svg2__moments_avx512, svg2__dot_avx512,
    svg2__square_avx512,  svg2__turn_avx512,   0,                 0,                    0,
};

/* ---- AVX-512 BF16: two products for one ---- */
#define SVG2__AVX512BF16 __attribute__((target("avx512f,avx512bf16")))

SVG2__AVX512BF16 SVG2__INLINE void svg2__mk16_nv(const int nv, int64_t kc, const uint32_t *a, const uint32_t *b,
                                                 const float *bias, float *c, float *best)
{
    const int is_sum = bias == 0;
#define SVG2__START(i, v) \
    (is_sum && (v) < nv ? _mm512_loadu_ps(c + (i) * SVG2__LANES + 16 * (v)) : _mm512_set1_ps(is_sum ? 0.0f : bias[i]))
    __m512 c00 = SVG2__START(0, 0), c01 = SVG2__START(0, 1), c02 = SVG2__START(0, 2), c03 = SVG2__START(0, 3);
    __m512 c10 = SVG2__START(1, 0), c11 = SVG2__START(1, 1), c12 = SVG2__START(1, 2), c13 = SVG2__START(1, 3);
    __m512 c20 = SVG2__START(2, 0), c21 = SVG2__START(2, 1), c22 = SVG2__START(2, 2), c23 = SVG2__START(2, 3);
    __m512 c30 = SVG2__START(3, 0), c31 = SVG2__START(3, 1), c32 = SVG2__START(3, 2), c33 = SVG2__START(3, 3);
#undef SVG2__START
    __m512i b0, b1 = _mm512_setzero_si512(), b2 = b1, b3 = b1, x;
    int64_t k;
    for (k = 0; k < kc; ++k, a += 4, b += SVG2__LANES) {
        b0 = _mm512_loadu_si512(b);
        if (nv > 1) b1 = _mm512_loadu_si512(b + 16);
        if (nv > 2) b2 = _mm512_loadu_si512(b + 32);
        if (nv > 3) b3 = _mm512_loadu_si512(b + 48);
#define SVG2__STEP(i)                                                                              \
    x = _mm512_set1_epi32((int)a[i]);                                                              \
    c##i##0 = _mm512_dpbf16_ps(c##i##0, (__m512bh)x, (__m512bh)b0);                                \
    if (nv > 1) c##i##1 = _mm512_dpbf16_ps(c##i##1, (__m512bh)x, (__m512bh)b1);                    \
    if (nv > 2) c##i##2 = _mm512_dpbf16_ps(c##i##2, (__m512bh)x, (__m512bh)b2);                    \
    if (nv > 3) c##i##3 = _mm512_dpbf16_ps(c##i##3, (__m512bh)x, (__m512bh)b3)
        SVG2__STEP(0);
        SVG2__STEP(1);
        SVG2__STEP(2);
        SVG2__STEP(3);
#undef SVG2__STEP
    }
#define SVG2__PUT_COLUMN(v)                                                        \
    _mm512_storeu_ps(c + 16 * (v), c0##v);                                         \
    _mm512_storeu_ps(c + SVG2__LANES + 16 * (v), c1##v);                           \
    _mm512_storeu_ps(c + 2 * SVG2__LANES + 16 * (v), c2##v);                       \
    _mm512_storeu_ps(c + 3 * SVG2__LANES + 16 * (v), c3##v);                       \
    c0##v = _mm512_max_ps(_mm512_max_ps(c0##v, c1##v), _mm512_max_ps(c2##v, c3##v)); \
    if (best) _mm512_storeu_ps(best + 16 * (v), _mm512_max_ps(c0##v, _mm512_loadu_ps(best + 16 * (v))))
    { SVG2__PUT_COLUMN(0); }
    if (nv > 1) { SVG2__PUT_COLUMN(1); }
    if (nv > 2) { SVG2__PUT_COLUMN(2); }
    if (nv > 3) { SVG2__PUT_COLUMN(3); }
#undef SVG2__PUT_COLUMN
}

SVG2__AVX512BF16 static void svg2__mk16_avx512(int nv, int64_t kc, const uint32_t *a, const uint32_t *b,
                                               const float *bias, float *c, float *best)
{
    switch (nv) {
    case 1: svg2__mk16_nv(1, kc, a, b, bias, c, best); break;
    case 2: svg2__mk16_nv(2, kc, a, b, bias, c, best); break;
    case 3: svg2__mk16_nv(3, kc, a, b, bias, c, best); break;
    default: svg2__mk16_nv(4, kc, a, b, bias, c, best); break;
    }
}

SVG2__AVX512 static void svg2__pairs_avx512(uint32_t *xb, const float *x, int32_t dim, int nv, float *length,
                                            float *rounded, float *residual)
{
    const __m512i half = _mm512_set1_epi32(0x7fff), one = _mm512_set1_epi32(1),
                  high = _mm512_set1_epi32((int)0xffff0000u);
    int v;
    for (v = 0; v < nv; ++v) {
        __m512 sum = _mm512_setzero_ps(), sum_rounded = sum, sum_residual = sum;
        int32_t d, i;
        for (d = 0; d < dim; d += 2) {
            __m512i pair[2];
            for (i = 0; i < 2; ++i) {
                const __m512 f = _mm512_loadu_ps(x + (d + i) * SVG2__LANES + 16 * v);
                const __m512i u = _mm512_castps_si512(f); /* nearest, ties to even; NaN is told by its length */
                const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), one);
                const __m512i r = _mm512_and_si512(_mm512_add_epi32(u, _mm512_add_epi32(half, odd)), high);
                const __m512 g = _mm512_castsi512_ps(r), e = _mm512_sub_ps(f, g);
                pair[i] = r;
                sum = _mm512_fmadd_ps(f, f, sum);
                sum_rounded = _mm512_fmadd_ps(g, g, sum_rounded);
                sum_residual = _mm512_fmadd_ps(e, e, sum_residual);
            }
            _mm512_storeu_si512(xb + d / 2 * SVG2__LANES + 16 * v,
                                _mm512_or_si512(_mm512_srli_epi32(pair[0], 16), pair[1]));
        }
        _mm512_storeu_ps(length + 16 * v, _mm512_sqrt_ps(sum));
        _mm512_storeu_ps(rounded + 16 * v, _mm512_sqrt_ps(sum_rounded));
        _mm512_storeu_ps(residual + 16 * v, _mm512_sqrt_ps(sum_residual));
    }
}

SVG2__AVX512 static uint64_t svg2__reach_avx512(const float *score, int nv, const float *threshold)
{
    uint64_t mask = 0;
    int v;
    for (v = 0; v < nv; ++v)
        mask |= (uint64_t)_mm512_cmp_ps_mask(_mm512_loadu_ps(score + 16 * v), _mm512_loadu_ps(threshold + 16 * v),
                                             _CMP_NLT_UQ)
                << 16 * v;
    return mask;
}

static const svg2__loops svg2__loops_avx512bf16 = {
    svg2__mk_avx512,      svg2__load_avx512,   svg2__pack4_sse,   svg2__softmax_avx512, svg2__peak_avx512,
    svg2__rescale_avx512, svg2__argmax_avx512, svg2__mass_avx512, svg2__moments_avx512, svg2__dot_avx512,
    svg2__square_avx512,  svg2__turn_avx512,   svg2__mk16_avx512, svg2__pairs_avx512,   svg2__reach_avx512,
};
#  if !defined(__clang__)
#    pragma GCC diagnostic pop
#  endif
#endif /* SVG2__X86 */

static svg2_simd svg2__pick_simd(svg2_simd wanted)
{
#if SVG2__X86
    const int most = wanted == SVG2_SIMD_BEST ? (int)SVG2_SIMD_AVX512BF16 : (int)wanted;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f")) {
        /* bf16 products pay where they run at twice the f32 rate: AMD. On an Intel Xeon a whole call took 27 ms with
           them and 22 without (4,096 tokens, 72 x 232 clusters). */
        if (most >= SVG2_SIMD_AVX512BF16 && __builtin_cpu_supports("avx512bf16")
            && (wanted != SVG2_SIMD_BEST || __builtin_cpu_is("amd")))
            return SVG2_SIMD_AVX512BF16;
        if (most >= SVG2_SIMD_AVX512) return SVG2_SIMD_AVX512;
    }
    /* F16C is older than AVX2 and in every processor that has it; clang 14 cannot ask for it */
    if (most >= SVG2_SIMD_AVX2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return SVG2_SIMD_AVX2;
#else
    (void)wanted;
#endif
    return SVG2_SIMD_SCALAR;
}

static const svg2__loops *svg2__loops_of(const svg2_backend *backend)
{
#if SVG2__X86
    if (backend->simd == SVG2_SIMD_AVX512BF16) return &svg2__loops_avx512bf16;
    if (backend->simd == SVG2_SIMD_AVX512) return &svg2__loops_avx512;
    if (backend->simd == SVG2_SIMD_AVX2) return &svg2__loops_avx2;
#else
    (void)backend;
#endif
    return &svg2__loops_scalar;
}

/* The public stage functions validate, look at the workspace, and call the backend. */

/* Enough for a size query to make sense; the stage itself checks everything and says what is wrong. */
static int svg2__extents_valid(svg2_stage stage, const void *stage_desc)
{
    switch (stage) {
    case SVG2_STAGE_KMEANS: {
        const svg2_kmeans_desc *d = (const svg2_kmeans_desc *)stage_desc;
        return svg2__check_extents(d->batch, d->heads, d->tokens, d->head_dim, 0) == SVG2_OK && d->clusters > 0
            && d->token_count >= 0;
    }
    case SVG2_STAGE_PERMUTE: {
        const svg2_permute_desc *d = (const svg2_permute_desc *)stage_desc;
        return svg2__check_extents(d->batch, d->heads, d->tokens, 8, 0) == SVG2_OK && d->clusters > 0;
    }
    case SVG2_STAGE_SUMMARIZE: {
        const svg2_summarize_desc *d = (const svg2_summarize_desc *)stage_desc;
        return svg2__check_extents(d->batch, d->heads, d->tokens, d->head_dim, 0) == SVG2_OK && d->clusters > 0;
    }
    case SVG2_STAGE_SCORE: {
        const svg2_score_desc *d = (const svg2_score_desc *)stage_desc;
        return svg2__check_extents(d->batch, d->heads, d->tokens_kv, d->head_dim, 0) == SVG2_OK
               && d->query_clusters > 0 && d->key_clusters > 0;
    }
    case SVG2_STAGE_SELECT: {
        const svg2_select_desc *d = (const svg2_select_desc *)stage_desc;
        return svg2__check_extents(d->batch, d->heads, 1, d->head_dim, 0) == SVG2_OK && d->query_clusters > 0
            && d->key_clusters > 0;
    }
    case SVG2_STAGE_TAIL: {
        const svg2_tail_desc *d = (const svg2_tail_desc *)stage_desc;
        return svg2__check_extents(d->batch, d->heads, d->tokens_kv, d->head_dim, 0) == SVG2_OK
               && d->query_clusters > 0 && d->key_clusters > 0 && d->head_count > 0;
    }
    case SVG2_STAGE_ATTENTION:
    case SVG2_STAGE_MASS: { /* a mass desc begins with an attention desc */
        const svg2_attention_desc *d = (const svg2_attention_desc *)stage_desc;
        return svg2__check_extents(d->batch, d->heads, d->tokens, d->head_dim, 0) == SVG2_OK && d->tokens_kv > 0
            && d->head_count >= 0 && d->query_blocks >= 0 && d->key_blocks >= 0
            && d->tail_key_blocks >= 0 && d->tail_key_blocks <= INT32_MAX - 3;
    }
    case SVG2_STAGE_PLACE: {
        const svg2_place_desc *d = (const svg2_place_desc *)stage_desc;
        return svg2__check_extents(d->batch, d->heads, d->tokens, 8, 0) == SVG2_OK;
    }
    case SVG2_STAGE_BAND: {
        const svg2_band_desc *d = (const svg2_band_desc *)stage_desc;
        return svg2__check_extents(d->batch, d->heads, 1, 8, 0) == SVG2_OK;
    }
    case SVG2_STAGE_PICK: {
        const svg2_pick_desc *d = (const svg2_pick_desc *)stage_desc;
        return svg2__check_extents(d->batch, d->heads, 1, 8, 0) == SVG2_OK && d->head_count > 0 && d->query_blocks > 0
            && d->key_blocks > 0;
    }
    case SVG2_STAGE_PROFILE: {
        const svg2_profile_desc *d = (const svg2_profile_desc *)stage_desc;
        return svg2__check_extents(d->batch, d->heads, d->tokens, d->head_dim, 0) == SVG2_OK && d->sample_rows > 0
            && d->sample_rows <= 65536;
    }
    case SVG2_STAGE_FRONT: {
        const svg2_front_desc *d = (const svg2_front_desc *)stage_desc;
        return svg2__check_extents(d->batch, d->heads, d->tokens, d->head_dim, 0) == SVG2_OK
               && d->heads_kv >= 0
               && svg2__check_extents(d->batch, d->heads_kv ? d->heads_kv : 1, d->tokens, d->head_dim, 0)
                      == SVG2_OK;
    }
    case SVG2_STAGE_COUNT: break;
    }
    return 0;
}

SVG2_API size_t svg2_stage_workspace_bytes(const svg2_backend *backend, svg2_stage stage, const void *stage_desc)
{
    if (!backend || !backend->workspace_bytes || !stage_desc || !svg2__extents_valid(stage, stage_desc))
        return SIZE_MAX;
    return backend->workspace_bytes(backend, stage, stage_desc);
}

static svg2_result svg2__check_backend(const svg2_backend *backend, svg2_error *err)
{
    SVG2__NOT_NULL(backend, "backend");
    SVG2__CHECK(backend->version == SVG2_VERSION && backend->desc_bytes == sizeof(svg2_desc), SVG2_ERR_BACKEND,
                "backend", "was built from another version of svg2.h, or was never created");
    SVG2__CHECK(backend->parallel.workers >= 0 && backend->parallel.workers <= SVG2__MAX_WORKERS, SVG2_ERR_RANGE,
                "parallel.workers", "must be between 0 and 4096");
    return SVG2_OK;
}

static svg2_result svg2__check_workspace(const svg2_backend *backend, svg2_stage stage, const void *desc,
                                         const void *workspace, size_t workspace_bytes, svg2_error *err)
{
    return svg2__check_memory(workspace, workspace_bytes, svg2_stage_workspace_bytes(backend, stage, desc),
                              backend->align, "workspace", err);
}

/* Products with a matrix of many rows want it in panels of 64 rows, transposed: [panel][D][64]. rows beyond
   count are 0. */
static void svg2__pack_panel(const svg2__loops *loops, float *panel, float *row_buffer /* [4][dim] */, const float *rows,
                             const float *shift, int32_t first, int32_t count, int32_t dim)
{
    int32_t lane, i;
    for (lane = 0; lane < SVG2__LANES; lane += 4) {
        for (i = 0; i < 4; ++i) {
            const int32_t r = first + lane + i;
            if (r < count)
                loops->load(row_buffer + i * dim, rows + (size_t)r * (size_t)dim, SVG2_F32, shift, dim);
            else memset(row_buffer + i * dim, 0, (size_t)dim * sizeof(float));
        }
        loops->pack4(panel + lane, SVG2__LANES, row_buffer, dim, dim);
    }
}

/* ==== >>kmeans ===========================================================================
   Distances: |x - c|^2 = |x|^2 - 2 (x.c - |c|^2/2); the bracket is all that the argmax needs. Everything is
   relative to the mean, so that a large common offset (K has one: its bias) costs no precision.

   Where the machine has bf16 products at twice the f32 rate (AVX512_BF16), they find the candidates: with xh, ch
   the rounded vectors, |x.c - xh.ch| <= |x - xh| |c| + |xh| |c - ch|, all four lengths known, plus a bound on
   summation error. A centroid whose rounded score is more than twice that below the best cannot win. Mostly one
   is left; else the few are evaluated in f32 by the ordinary inner loop. The labels have the same bits as
   without; measured 1.5 times faster at 1000 centroids (Zen 4). */
typedef struct svg2__kmeans_ws {
    double  *partial;      /* [BH, chunks, D]   sums for the mean                                      */
    float   *centre;       /* [BH, C, D]        centroids relative to the mean                         */
    float   *packed;       /* [BH, C4/4, D, 4]  the same for the micro-kernel                          */
    float   *bias;         /* [BH, C4]          -|c|^2/2 ; -Inf behind C                               */
    uint32_t *packed16;    /* [BH, C4/4, D/2, 4] pairs of bf16; only where there are such products     */
    float   *length;       /* [BH, C4, 2]       |c|, |c - rounded c|                                   */
    int32_t *order;        /* [BH, count]                                                              */
    int32_t *offset;       /* [BH, C+1]                                                                */
    double  *inertia;      /* [BH, C]           sum of squared distances                               */
    int32_t *changed;      /* [BH, tiles]       labels that changed                                    */
    int32_t *done;         /* [BH]                                                                     */
    float   *distance;     /* [BH, samples]     squared distance to the nearest seed                   */
    float   *scratch;      /* [workers, scratch_floats]                                                */
    size_t   scratch_floats;
    char    *filter;       /* [workers, filter_bytes]                                                  */
    size_t   filter_bytes;
} svg2__kmeans_ws;

typedef struct svg2__kmeans_filter {
    uint32_t *x;         /* [D/2, 64]   pairs of bf16                          */
    float    *score;     /* [C4, 64]                                           */
    uint64_t *lanes;     /* [C4]        lanes for which a centroid may be best */
    int32_t  *candidate; /* [C4]                                               */
    float    *exact;     /* [D, 4]      gathered candidates                    */
} svg2__kmeans_filter;

enum { SVG2__FILTER_CLUSTERS = 4096 }; /* beyond, the scores of a tile would leave the cache */

typedef struct svg2__kmeans_task {
    const svg2__loops *loops;
    const svg2_kmeans_desc *d;
    svg2_layout layout;
    svg2__kmeans_ws ws;
    int32_t count;      /* tokens clustered           */
    int32_t clusters4;  /* clusters, rounded up to 4  */
    int32_t tiles;      /* of 64 tokens, per head     */
    int32_t chunks;     /* of 1024 tokens, per head   */
    int32_t samples;    /* tokens that seeding looks at */
    int32_t seeds;      /* clusters seeded so far     */
    int32_t batch_size; /* seeds of this round; 0 when seeding is over */
    int32_t is_first;   /* labels hold nothing yet    */
} svg2__kmeans_task;

enum { SVG2__MEAN_CHUNK = 1024 };

static int32_t svg2__kmeans_count(const svg2_kmeans_desc *d)
{
    return d->token_count ? d->token_count : d->tokens;
}

static size_t svg2__kmeans_filter_layout(const svg2_kmeans_desc *d, void *base, svg2__kmeans_filter *filter)
{
    svg2__arena a = SVG2_ZERO;
    const size_t clusters4 = ((size_t)d->clusters + 3) / 4 * 4, dim = (size_t)d->head_dim;
    svg2__kmeans_filter f;
    a.base = (char *)base;
    f.x = (uint32_t *)svg2__take(&a, sizeof(uint32_t), dim / 2 * SVG2__LANES);
    f.score = svg2__take_f32(&a, clusters4 * SVG2__LANES);
    f.lanes = (uint64_t *)svg2__take(&a, sizeof(uint64_t), clusters4);
    f.candidate = svg2__take_i32(&a, clusters4);
    f.exact = svg2__take_f32(&a, 4 * dim);
    if (filter) *filter = f;
    return a.used;
}

static size_t svg2__kmeans_layout(const svg2_backend *backend, const svg2_kmeans_desc *d, void *base,
                                  svg2__kmeans_ws *ws)
{
    svg2__arena a = SVG2_ZERO;
    const int has_filter = svg2__loops_of(backend)->mk16 && d->clusters <= SVG2__FILTER_CLUSTERS;
    const int32_t count = svg2__kmeans_count(d);
    const int64_t heads = (int64_t)d->batch * d->heads;
    const int64_t clusters4 = ((int64_t)d->clusters + 3) / 4 * 4;
    const int64_t samples = svg2__min64(count, (int64_t)SVG2__SEED_ROUNDS * d->clusters);
    svg2__kmeans_ws w;
    a.base = (char *)base;
    w.partial = (double *)svg2__take(
        &a, sizeof(double),
        svg2__count(heads, ((int64_t)count + SVG2__MEAN_CHUNK - 1) / SVG2__MEAN_CHUNK, d->head_dim, 1));
    w.centre = svg2__take_f32(&a, svg2__count(heads, d->clusters, d->head_dim, 1));
    w.packed = svg2__take_f32(&a, svg2__count(heads, clusters4, d->head_dim, 1));
    w.bias = svg2__take_f32(&a, svg2__count(heads, clusters4, 1, 1));
    w.packed16 = (uint32_t *)svg2__take(&a, sizeof(uint32_t),
                                        has_filter ? svg2__count(heads, clusters4, d->head_dim / 2, 1) : 0);
    w.length = svg2__take_f32(&a, has_filter ? svg2__count(heads, clusters4, 2, 1) : 0);
    w.order = svg2__take_i32(&a, svg2__count(heads, count, 1, 1));
    w.offset = svg2__take_i32(&a, svg2__count(heads, (int64_t)d->clusters + 1, 1, 1));
    w.inertia = (double *)svg2__take(&a, sizeof(double), svg2__count(heads, d->clusters, 1, 1));
    w.changed = svg2__take_i32(&a, svg2__count(heads, ((int64_t)count + SVG2__LANES - 1) / SVG2__LANES, 1, 1));
    w.done = svg2__take_i32(&a, (size_t)heads);
    w.distance = svg2__take_f32(&a, svg2__count(heads, samples, 1, 1));
    /* four rows, a transposed tile, a strip of scores, best and index of each lane; update: two rows, two sums
       of f64 */
    w.scratch_floats = (size_t)d->head_dim * (SVG2__LANES + 12) + SVG2__LANES * 8;
    w.scratch = svg2__take_f32(&a, svg2__mul(svg2__workers(backend), w.scratch_floats));
    w.filter_bytes = has_filter ? svg2__kmeans_filter_layout(d, 0, 0) : 0;
    w.filter = (char *)svg2__take(&a, w.filter_bytes, svg2__workers(backend));
    if (ws) *ws = w;
    return a.used;
}

static const char *svg2__kmeans_row(const svg2__kmeans_task *t, int64_t bh, int32_t token)
{
    return svg2__row(t->d->x, &t->layout, bh / t->d->heads, bh % t->d->heads, (int64_t)t->d->token_begin + token);
}

/* item = (head, chunk): sum of the rows of a chunk */
static void svg2__kmeans_sum(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__kmeans_task *t = (const svg2__kmeans_task *)task;
    const int32_t dim = t->d->head_dim;
    float *row = t->ws.scratch + (size_t)worker * t->ws.scratch_floats, *sum = row + dim, *square = sum + dim;
    for (; begin < end; ++begin) {
        const int64_t bh = begin / t->chunks;
        const int32_t first = (int32_t)(begin % t->chunks) * SVG2__MEAN_CHUNK;
        const int32_t last = (int32_t)svg2__min64(t->count, (int64_t)first + SVG2__MEAN_CHUNK);
        double *out = t->ws.partial + (size_t)begin * (size_t)dim;
        int32_t i, j, d;
        for (d = 0; d < dim; ++d) out[d] = 0.0;
        for (i = first; i < last; i = j) {
            memset(sum, 0, 2 * (size_t)dim * sizeof(float));
            for (j = i; j < last && j < i + SVG2__CHUNK; ++j) {
                t->loops->load(row, svg2__kmeans_row(t, bh, j), t->layout.dtype, 0, dim);
                t->loops->moments(sum, square, row, dim);
            }
            for (d = 0; d < dim; ++d) out[d] += (double)sum[d];
        }
    }
}

/* item = head: the mean, and the centroids to start from */
static void svg2__kmeans_start(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__kmeans_task *t = (const svg2__kmeans_task *)task;
    const svg2_kmeans_desc *d = t->d;
    const size_t dim = (size_t)d->head_dim, elements = (size_t)d->clusters * dim;
    (void)worker;
    for (; begin < end; ++begin) {
        float *mean = d->mean + (size_t)begin * dim;
        const double *partial = t->ws.partial + (size_t)begin * (size_t)t->chunks * dim;
        int finite = 1;
        size_t i;
        int32_t chunk;
        for (i = 0; i < dim; ++i) {
            double sum = 0.0;
            for (chunk = 0; chunk < t->chunks; ++chunk) sum += partial[(size_t)chunk * dim + i];
            mean[i] = (float)(sum / (double)t->count);
            if (!(fabsf(mean[i]) <= 3.0e38f)) finite = 0;
        }
        if (!finite) memset(mean, 0, dim * sizeof(float)); /* a NaN or Inf token must not spoil the labels of all others */
        if (d->start)
            for (i = 0; i < elements; ++i)
                t->ws.centre[(size_t)begin * elements + i] =
                    svg2__load1(d->start, d->store_dtype, (size_t)begin * elements + i);
        t->ws.done[begin] = 0;
    }
}

/* The rounded form of 4 centroids, and what rounding took from them. */
static void svg2__kmeans_pack16(const svg2__kmeans_task *t, int64_t bh, int32_t first, const float *rows)
{
    const int32_t dim = t->d->head_dim;
    uint32_t *out = t->ws.packed16 + ((size_t)bh * (size_t)t->clusters4 + (size_t)first) * (size_t)(dim / 2);
    float *length = t->ws.length + 2 * (bh * t->clusters4 + first);
    int32_t i, d;
    for (i = 0; i < 4; ++i) {
        double square = 0.0, residual = 0.0;
        for (d = 0; d < dim; ++d) {
            const float x = rows[i * dim + d];
            const uint16_t h = svg2__f32_to_bf16(x);
            const double e = (double)x - (double)svg2__bf16_to_f32(h);
            uint32_t *pair = out + d / 2 * 4 + i;
            *pair = d & 1 ? *pair | (uint32_t)h << 16 : (uint32_t)h;
            square += (double)x * (double)x;
            residual += e * e;
        }
        length[2 * i] = (float)sqrt(square);
        length[2 * i + 1] = (float)sqrt(residual);
    }
}

/* item = (head, group of 4 clusters) */
static void svg2__kmeans_pack(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__kmeans_task *t = (const svg2__kmeans_task *)task;
    const int32_t dim = t->d->head_dim, groups = t->clusters4 / 4, known = t->seeds;
    float *rows = t->ws.scratch + (size_t)worker * t->ws.scratch_floats;
    for (; begin < end; ++begin) {
        const int64_t bh = begin / groups;
        const int32_t first = (int32_t)(begin % groups) * 4;
        int32_t i, d;
        if (t->ws.done[bh]) continue;
        if (t->batch_size && (first < known - t->batch_size || first >= known)) continue; /* seeding: the new ones */
        for (i = 0; i < 4; ++i) {
            float *row = rows + i * dim, *bias = t->ws.bias + bh * t->clusters4 + first + i;
            double square = 0.0;
            if (first + i >= known) {
                memset(row, 0, (size_t)dim * sizeof(float));
                *bias = -INFINITY;
                continue;
            }
            memcpy(row, t->ws.centre + ((size_t)bh * (size_t)t->d->clusters + (size_t)(first + i)) * (size_t)dim,
                   (size_t)dim * sizeof(float));
            for (d = 0; d < dim; ++d) square += (double)row[d] * (double)row[d];
            *bias = (float)(-0.5 * square);
        }
        t->loops->pack4(t->ws.packed + ((size_t)bh * (size_t)t->clusters4 + (size_t)first) * (size_t)dim, 4, rows,
                        dim, dim);
        if (t->ws.filter_bytes && !t->batch_size) svg2__kmeans_pack16(t, bh, first, rows);
    }
}

/* Load up to 64 tokens relative to the mean into x [D][64]; token i is given by token_of(i) = (first + i) * num
   / den. */
static int svg2__kmeans_tile(const svg2__kmeans_task *t, int64_t bh, int64_t first, int64_t last, int64_t num,
                             int64_t den, float *rows, float *x)
{
    const int32_t dim = t->d->head_dim;
    const float *mean = t->d->mean + bh * dim;
    const int lanes = (int)(last - first), nv = (lanes + 15) / 16;
    int lane, i;
    for (lane = 0; lane < 16 * nv; lane += 4) {
        for (i = 0; i < 4; ++i) {
            const int64_t at = svg2__min64(first + lane + i, last - 1);
            t->loops->load(rows + i * dim, svg2__kmeans_row(t, bh, (int32_t)(at * num / den)), t->layout.dtype,
                           mean, dim);
        }
        t->loops->pack4(x + lane, SVG2__LANES, rows, dim, dim);
    }
    return nv;
}

/* best centroid of each lane among groups [group_begin, group_end) of 4 */
static void svg2__kmeans_best(const svg2__kmeans_task *t, int64_t bh, int32_t group_begin, int32_t group_end,
                              int nv, const float *x, float *score, float *best, int32_t *index)
{
    const int32_t dim = t->d->head_dim;
    const float *packed = t->ws.packed + (size_t)bh * (size_t)t->clusters4 * (size_t)dim;
    const float *bias = t->ws.bias + bh * t->clusters4;
    int32_t group, lane;
    for (lane = 0; lane < SVG2__LANES; ++lane) best[lane] = -INFINITY, index[lane] = 0;
    for (group = group_begin; group < group_end; ++group) {
        t->loops->mk(nv, dim, packed + (size_t)group * 4 * (size_t)dim, 4, x, SVG2__LANES, score, SVG2__LANES, 0);
        t->loops->argmax(score, nv, bias + 4 * group, 4 * group, best, index);
    }
}

/* The same index as svg2__kmeans_best over all clusters, by way of rounded scores. */
static void svg2__kmeans_filtered(const svg2__kmeans_task *t, int64_t bh, int nv, const float *x,
                                  const svg2__kmeans_filter *f, float *score, float *best, int32_t *index)
{
    const int32_t dim = t->d->head_dim, groups = t->clusters4 / 4;
    const float *packed = t->ws.packed + (size_t)bh * (size_t)t->clusters4 * (size_t)dim;
    const uint32_t *packed16 = t->ws.packed16 + (size_t)bh * (size_t)t->clusters4 * (size_t)(dim / 2);
    const float *bias = t->ws.bias + bh * t->clusters4, *lengths = t->ws.length + 2 * bh * t->clusters4;
    float length[SVG2__LANES], rounded[SVG2__LANES], residual[SVG2__LANES], threshold[SVG2__LANES];
    float longest = 0.0f, roughest = 0.0f;
    uint64_t seen = 0, several = 0;
    int32_t group, c, n = 0, i, d;
    int lane;
    for (c = 0; c < t->d->clusters; ++c) { /* written so that NaN stays */
        if (!(lengths[2 * c] <= longest)) longest = lengths[2 * c];
        if (!(lengths[2 * c + 1] <= roughest)) roughest = lengths[2 * c + 1];
    }
    t->loops->pairs(f->x, x, dim, nv, length, rounded, residual);
    for (lane = 0; lane < SVG2__LANES; ++lane) best[lane] = -INFINITY, index[lane] = 0;
    for (group = 0; group < groups; ++group) {
        float *strip = f->score + (size_t)group * 4 * SVG2__LANES;
        t->loops->mk16(nv, dim / 2, packed16 + (size_t)group * 4 * (size_t)(dim / 2), f->x, bias + 4 * group,
                       strip, best);
    }
    for (lane = 0; lane < 16 * nv; ++lane) { /* 2^-24: unit roundoff; each sum is longer than D by less than its factor */
        const float sums = 4.0f * (float)dim * 5.9604645e-8f * (length[lane] + longest) * longest;
        const float bound = 1.001f * (residual[lane] * longest + rounded[lane] * roughest) + sums
                            + (float)dim * 1.2e-38f;
        threshold[lane] = best[lane] - 2.0f * bound;
    }
    for (c = 0; c < t->clusters4; ++c) {
        const uint64_t lanes = t->loops->reach(f->score + (size_t)c * SVG2__LANES, nv, threshold);
        if (!lanes) continue;
        several |= seen & lanes;
        seen |= lanes;
        f->candidate[n] = c;
        f->lanes[n++] = lanes;
    }
    for (i = 0; i < n; ++i) { /* lanes with a single candidate are done */
        uint64_t single = f->lanes[i] & ~several;
        for (lane = 0; single; ++lane, single >>= 1)
            if (single & 1u) index[lane] = f->candidate[i];
    }
    for (lane = 0; lane < SVG2__LANES; ++lane) best[lane] = -INFINITY;
    for (i = 0; several && i < n;) { /* the others' in f32, four candidates at a time, in rising order */
        int32_t four[4], count = 0;
        uint64_t lanes[4];
        for (; i < n && count < 4; ++i)
            if (f->lanes[i] & several) four[count] = f->candidate[i], lanes[count++] = f->lanes[i] & several;
        for (c = 0; c < 4; ++c) {
            const int32_t from = four[c < count ? c : 0];
            const float *source = packed + (size_t)(from / 4) * 4 * (size_t)dim + from % 4;
            for (d = 0; d < dim && count; ++d) f->exact[4 * d + c] = source[4 * d];
        }
        t->loops->mk(nv, count ? dim : 0, f->exact, 4, x, SVG2__LANES, score, SVG2__LANES, 0);
        for (c = 0; c < count; ++c)
            for (lane = 0; lanes[c]; ++lane, lanes[c] >>= 1) {
                const float value = score[c * SVG2__LANES + lane] + bias[four[c]];
                if ((lanes[c] & 1u) && value > best[lane]) best[lane] = value, index[lane] = four[c];
            }
    }
    for (lane = 0; lane < SVG2__LANES; ++lane)
        if (index[lane] >= t->d->clusters) index[lane] = 0; /* only NaN reaches the padding */
}

/* item = (head, tile of 64 tokens): label = nearest centroid */
static void svg2__kmeans_assign(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__kmeans_task *t = (const svg2__kmeans_task *)task;
    const int32_t dim = t->d->head_dim;
    float *rows = t->ws.scratch + (size_t)worker * t->ws.scratch_floats, *x = rows + 4 * dim;
    float *score = x + (size_t)dim * SVG2__LANES, *best = score + 4 * SVG2__LANES;
    int32_t index[SVG2__LANES];
    for (; begin < end; ++begin) {
        const int64_t bh = begin / t->tiles, first = begin % t->tiles * SVG2__LANES;
        const int64_t last = svg2__min64(t->count, first + SVG2__LANES);
        int32_t *label = t->d->label + bh * t->d->tokens + t->d->token_begin;
        int32_t changed = 0;
        int64_t i;
        int nv;
        if (t->ws.done[bh]) continue;
        nv = svg2__kmeans_tile(t, bh, first, last, 1, 1, rows, x);
        if (t->ws.filter_bytes) {
            svg2__kmeans_filter filter;
            (void)svg2__kmeans_filter_layout(t->d, t->ws.filter + (size_t)worker * t->ws.filter_bytes, &filter);
            svg2__kmeans_filtered(t, bh, nv, x, &filter, score, best, index);
        } else {
            svg2__kmeans_best(t, bh, 0, t->clusters4 / 4, nv, x, score, best, index);
        }
        for (i = first; i < last; ++i) {
            if (t->is_first || label[i] != index[i - first]) ++changed;
            label[i] = index[i - first];
        }
        t->ws.changed[begin] = changed;
    }
}

/* item = (head, tile of 64 samples): squared distance to the nearest of the seeds so far */
static void svg2__kmeans_seed_distance(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__kmeans_task *t = (const svg2__kmeans_task *)task;
    const int32_t dim = t->d->head_dim, tiles = (t->samples + SVG2__LANES - 1) / SVG2__LANES;
    float *rows = t->ws.scratch + (size_t)worker * t->ws.scratch_floats, *x = rows + 4 * dim;
    float *score = x + (size_t)dim * SVG2__LANES, *best = score + 4 * SVG2__LANES;
    int32_t index[SVG2__LANES];
    for (; begin < end; ++begin) {
        const int64_t bh = begin / tiles, first = begin % tiles * SVG2__LANES;
        const int64_t last = svg2__min64(t->samples, first + SVG2__LANES);
        float *distance = t->ws.distance + bh * t->samples + first;
        const int nv = svg2__kmeans_tile(t, bh, first, last, t->count, t->samples, rows, x);
        int64_t lane;
        int32_t d;
        svg2__kmeans_best(t, bh, (t->seeds - t->batch_size) / 4, (t->seeds + 3) / 4, nv, x, score, best, index);
        for (lane = 0; lane < last - first; ++lane) {
            float square = 0.0f, away;
            for (d = 0; d < dim; ++d) square += x[d * SVG2__LANES + lane] * x[d * SVG2__LANES + lane];
            away = square - 2.0f * best[lane];
            if (!(away > 0.0f)) away = 0.0f; /* rounding, or NaN: never a seed */
            if (away > 3.0e38f) away = 0.0f;
            if (t->seeds == t->batch_size || away < distance[lane]) distance[lane] = away;
        }
    }
}

/* item = head: draw the next batch of seeds by systematic sampling of the squared distances. One random offset
   and evenly spaced steps along the cumulative sum: unlike independent draws this spreads the batch over space
   and time, because neighbouring tokens are similar, and it cannot draw a token twice unless it holds over
   1/batch of the total. */
static void svg2__kmeans_seed_draw(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__kmeans_task *t = (const svg2__kmeans_task *)task;
    const int32_t dim = t->d->head_dim, first_seed = t->seeds - t->batch_size;
    (void)worker;
    for (; begin < end; ++begin) {
        const float *distance = t->ws.distance + begin * t->samples;
        const double offset = svg2__uniform(t->d->seed, 1, (uint64_t)first_seed);
        double total = 0.0, sum = 0.0;
        int32_t i, s = 0;
        if (first_seed > 0)
            for (i = 0; i < t->samples; ++i) total += (double)distance[i];
        for (i = 0; i < t->batch_size; ++i) {
            float *centre = t->ws.centre
                            + ((size_t)begin * (size_t)t->d->clusters + (size_t)(first_seed + i)) * (size_t)dim;
            const double quantile = ((double)i + offset) / (double)t->batch_size;
            int32_t pick;
            if (total > 0.0) { /* the sample in whose share of the cumulative sum the quantile falls */
                while (s < t->samples - 1 && sum + (double)distance[s] <= quantile * total)
                    sum += (double)distance[s], ++s;
                pick = s;
            } else { /* first batch, or every token already is a seed: evenly over the tokens */
                pick = svg2__min32((int32_t)(quantile * (double)t->samples), t->samples - 1); /* i + offset may round up */
            }
            t->loops->load(centre, svg2__kmeans_row(t, begin, (int32_t)((int64_t)pick * t->count / t->samples)),
                           t->layout.dtype, t->d->mean + begin * dim, dim);
        }
    }
}

/* item = head: stop if nothing changed, else sort the tokens by label */
static void svg2__kmeans_sort(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__kmeans_task *t = (const svg2__kmeans_task *)task;
    const int32_t clusters = t->d->clusters;
    (void)worker;
    for (; begin < end; ++begin) {
        const int32_t *label = t->d->label + begin * t->d->tokens + t->d->token_begin;
        int32_t *order = t->ws.order + (size_t)begin * (size_t)t->count;
        int32_t *offset = t->ws.offset + (size_t)begin * ((size_t)clusters + 1);
        int64_t changed = 0;
        int32_t i;
        if (t->ws.done[begin]) continue;
        for (i = 0; i < t->tiles; ++i) changed += t->ws.changed[begin * t->tiles + i];
        if (changed == 0) {
            t->ws.done[begin] = 1;
            continue;
        }
        memset(offset, 0, ((size_t)clusters + 1) * sizeof *offset);
        for (i = 0; i < t->count; ++i) ++offset[label[i] + 1];
        for (i = 0; i < clusters; ++i) offset[i + 1] += offset[i];
        for (i = 0; i < t->count; ++i) order[offset[label[i]]++] = i;
        for (i = clusters; i > 0; --i) offset[i] = offset[i - 1]; /* filling moved each start to its end */
        offset[0] = 0;
    }
}

/* item = (head, cluster): mean and inertia. A row of f32 partial sums per 256 tokens, f64 above. */
static void svg2__kmeans_update(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__kmeans_task *t = (const svg2__kmeans_task *)task;
    const int32_t dim = t->d->head_dim, clusters = t->d->clusters;
    float *row = t->ws.scratch + (size_t)worker * t->ws.scratch_floats, *sum = row + dim, *square = sum + dim;
    double total[SVG2__MAX_DIM];
    for (; begin < end; ++begin) {
        const int64_t bh = begin / clusters;
        const int32_t *order = t->ws.order + (size_t)bh * (size_t)t->count;
        const int32_t *offset = t->ws.offset + (size_t)bh * ((size_t)clusters + 1) + begin % clusters;
        const int32_t n = offset[1] - offset[0];
        double inertia = 0.0;
        int32_t i, j, d;
        if (t->ws.done[bh]) continue;
        t->ws.inertia[begin] = 0.0;
        if (n == 0) continue;
        for (d = 0; d < dim; ++d) total[d] = 0.0;
        for (i = offset[0]; i < offset[1]; i = j) {
            memset(sum, 0, 2 * (size_t)dim * sizeof(float));
            for (j = i; j < offset[1] && j < i + SVG2__CHUNK; ++j) {
                /* the order runs on into the next cluster, which is next in line */
                if (j + SVG2__AHEAD < t->count)
                    svg2__prefetch(svg2__kmeans_row(t, bh, order[j + SVG2__AHEAD]), &t->layout, dim);
                t->loops->load(row, svg2__kmeans_row(t, bh, order[j]), t->layout.dtype, t->d->mean + bh * dim,
                               dim);
                t->loops->moments(sum, square, row, dim);
            }
            for (d = 0; d < dim; ++d) total[d] += (double)sum[d], inertia += (double)square[d];
        }
        for (d = 0; d < dim; ++d) {
            const double mean = total[d] / n;
            t->ws.centre[(size_t)begin * (size_t)dim + (size_t)d] = (float)mean;
            inertia -= mean * total[d];
        }
        t->ws.inertia[begin] = inertia;
    }
}

/* item = head: the r-th empty cluster takes the farthest token of the cluster with the r-th largest inertia */
static void svg2__kmeans_reseed(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__kmeans_task *t = (const svg2__kmeans_task *)task;
    const int32_t dim = t->d->head_dim, clusters = t->d->clusters;
    float *row = t->ws.scratch + (size_t)worker * t->ws.scratch_floats;
    for (; begin < end; ++begin) {
        const int32_t *order = t->ws.order + (size_t)begin * (size_t)t->count;
        const int32_t *offset = t->ws.offset + (size_t)begin * ((size_t)clusters + 1);
        double *inertia = t->ws.inertia + begin * clusters;
        float *centre = t->ws.centre + (size_t)begin * (size_t)clusters * (size_t)dim;
        int32_t empty, c, j, donor, token;
        if (t->ws.done[begin]) continue;
        for (empty = 0; empty < clusters; ++empty) {
            float farthest = 0.0f;
            if (offset[empty + 1] > offset[empty]) continue;
            donor = -1;
            for (c = 0; c < clusters; ++c)
                if (offset[c + 1] - offset[c] > 1 && inertia[c] > 0.0
                    && (donor < 0 || inertia[c] > inertia[donor]))
                    donor = c;
            if (donor < 0) break;
            inertia[donor] = 0.0; /* gives once */
            token = -1;
            for (j = offset[donor]; j < offset[donor + 1]; ++j) {
                float away;
                t->loops->load(row, svg2__kmeans_row(t, begin, order[j]), t->layout.dtype,
                               t->d->mean + begin * dim, dim);
                t->loops->load(row + dim, row, SVG2_F32, centre + (size_t)donor * (size_t)dim, dim);
                away = t->loops->dot(row + dim, row + dim, dim);
                if (away > farthest) farthest = away, token = order[j];
            }
            if (token < 0) continue;
            t->loops->load(centre + (size_t)empty * (size_t)dim, svg2__kmeans_row(t, begin, token),
                           t->layout.dtype, t->d->mean + begin * dim, dim);
        }
    }
}

/* item = head: results in the caller's terms */
static void svg2__kmeans_finish(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__kmeans_task *t = (const svg2__kmeans_task *)task;
    const svg2_kmeans_desc *d = t->d;
    const size_t dim = (size_t)d->head_dim, elements = (size_t)d->clusters * dim;
    (void)worker;
    for (; begin < end; ++begin) {
        const float *centre = t->ws.centre + (size_t)begin * elements, *mean = d->mean + (size_t)begin * dim;
        const int32_t *offset = t->ws.offset + (size_t)begin * ((size_t)d->clusters + 1);
        size_t i;
        int32_t c;
        for (i = 0; i < elements; ++i) d->centroid[(size_t)begin * elements + i] = centre[i] + mean[i % dim];
        if (d->store && !(d->start && d->iterations == 0)) /* 0 iterations keep the centroids */
            for (i = 0; i < elements; ++i)
                svg2__store1(d->store, d->store_dtype, (size_t)begin * elements + i, centre[i]);
        else if (d->store && d->store != d->start)
            memcpy((char *)d->store + (size_t)begin * elements * svg2__dtype_bytes(d->store_dtype),
                   (const char *)d->start + (size_t)begin * elements * svg2__dtype_bytes(d->store_dtype),
                   elements * svg2__dtype_bytes(d->store_dtype));
        for (c = 0; c < d->clusters; ++c) d->size[begin * d->clusters + c] = offset[c + 1] - offset[c];
    }
}

static svg2_result svg2__cpu_kmeans(const svg2_backend *backend, const svg2_kmeans_desc *d, void *workspace,
                                    svg2_error *err)
{
    const int64_t heads = (int64_t)d->batch * d->heads;
    svg2__kmeans_task t;
    int32_t i, rounds = d->iterations > 0 ? d->iterations : 1;
    memset(&t, 0, sizeof t);
    t.loops = svg2__loops_of(backend);
    t.d = d;
    t.layout = svg2__layout(d->layout, d->heads, d->tokens, d->head_dim);
    (void)svg2__kmeans_layout(backend, d, workspace, &t.ws);
    t.count = svg2__kmeans_count(d);
    t.clusters4 = svg2__round_up(d->clusters, 4);
    t.tiles = (int32_t)(((int64_t)t.count + SVG2__LANES - 1) / SVG2__LANES);
    t.chunks = (int32_t)(((int64_t)t.count + SVG2__MEAN_CHUNK - 1) / SVG2__MEAN_CHUNK);
    t.samples = (int32_t)svg2__min64(t.count, (int64_t)SVG2__SEED_ROUNDS * d->clusters);
    svg2__run(backend, svg2__kmeans_sum, &t, heads * t.chunks, 1);
    svg2__run(backend, svg2__kmeans_start, &t, heads, 1);
    if (!d->start) {
        const int32_t batch = svg2__round_up((d->clusters + SVG2__SEED_ROUNDS - 1) / SVG2__SEED_ROUNDS, 4);
        while (t.seeds < d->clusters) {
            t.batch_size = svg2__min32(batch, d->clusters - t.seeds);
            t.seeds += t.batch_size;
            svg2__run(backend, svg2__kmeans_seed_draw, &t, heads, 1);
            if (t.seeds == d->clusters) break; /* nobody asks for the last distances */
            svg2__run(backend, svg2__kmeans_pack, &t, heads * (t.clusters4 / 4), 64);
            svg2__run(backend, svg2__kmeans_seed_distance, &t,
                      heads * ((t.samples + SVG2__LANES - 1) / SVG2__LANES), 8);
        }
    }
    t.seeds = d->clusters;
    t.batch_size = 0;
    t.is_first = 1;
    for (i = 0; i < rounds; ++i) {
        svg2__run(backend, svg2__kmeans_pack, &t, heads * (t.clusters4 / 4), 64);
        svg2__run(backend, svg2__kmeans_assign, &t, heads * t.tiles, 1);
        svg2__run(backend, svg2__kmeans_sort, &t, heads, 1);
        svg2__run(backend, svg2__kmeans_update, &t, heads * d->clusters, 8);
        if (!d->keep_empty) svg2__run(backend, svg2__kmeans_reseed, &t, heads, 1);
        t.is_first = 0;
    }
    svg2__run(backend, svg2__kmeans_finish, &t, heads, 1);
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_kmeans(const svg2_backend *backend, const svg2_kmeans_desc *desc, void *workspace,
                                 size_t workspace_bytes, svg2_error *err)
{
    const svg2_kmeans_desc *d = desc;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(d, "desc");
    SVG2__TRY(svg2__check_extents(d->batch, d->heads, d->tokens, d->head_dim, err));
    SVG2__TRY(svg2__check_clusters(d->clusters, "clusters", err));
    SVG2__CHECK(d->token_begin >= 0 && d->token_count >= 0 && d->token_begin <= d->tokens
                    && d->token_count <= d->tokens - d->token_begin
                    && (d->token_count > 0 || d->token_begin == 0),
                SVG2_ERR_RANGE, "token_count", "token_begin and token_count must name tokens of x");
    SVG2__CHECK(d->iterations >= (d->start ? 0 : 1), SVG2_ERR_RANGE, "iterations",
                "must be at least 1, or 0 with centroids to start from");
    SVG2__TRY(svg2__check_layout(d->layout, d->batch, d->heads, d->tokens, d->head_dim, 0, "x", err));
    SVG2__TRY(svg2__check_tensor(d->x, d->layout, "x", err));
    SVG2__CHECK(svg2__dtype_valid(d->store_dtype), SVG2_ERR_DTYPE, "store_dtype",
                "must be SVG2_F32, SVG2_F16 or SVG2_BF16");
    SVG2__NOT_NULL(d->centroid, "centroid");
    SVG2__NOT_NULL(d->mean, "mean");
    SVG2__NOT_NULL(d->label, "label");
    SVG2__NOT_NULL(d->size, "size");
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_KMEANS, d, workspace, workspace_bytes, err));
    return backend->kmeans(backend, d, workspace, err);
}

/* ==== >>permute ========================================================================== */
typedef struct svg2__permute_task {
    const svg2_permute_desc *d;
    int32_t blocks;
} svg2__permute_task;

static int32_t svg2__permute_blocks(const svg2_permute_desc *d)
{
    return d->clusters + (d->text_count > 0) + (d->padding_count > 0);
}

/* item = head */
static void svg2__permute_heads(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__permute_task *t = (const svg2__permute_task *)task;
    const svg2_permute_desc *d = t->d;
    (void)worker;
    for (; begin < end; ++begin) {
        int32_t *label = d->label + begin * d->tokens, *order = d->order + begin * d->tokens;
        int32_t *offset = d->offset + begin * ((int64_t)t->blocks + 1);
        int32_t i;
        for (i = 0; i < d->text_count; ++i) label[d->text_begin + i] = d->clusters;
        for (i = 0; i < d->padding_count; ++i) label[d->padding_begin + i] = t->blocks - 1;
        memset(offset, 0, ((size_t)t->blocks + 1) * sizeof *offset);
        for (i = 0; i < d->tokens; ++i) ++offset[label[i] + 1];
        for (i = 0; i < t->blocks; ++i) offset[i + 1] += offset[i];
        for (i = 0; i < d->tokens; ++i) order[offset[label[i]]++] = i;
        for (i = t->blocks; i > 0; --i) offset[i] = offset[i - 1]; /* filling moved each start to its end */
        offset[0] = 0;
        SVG2_ASSERT(offset[t->blocks] == d->tokens);
    }
}

static svg2_result svg2__cpu_permute(const svg2_backend *backend, const svg2_permute_desc *d, void *workspace,
                                     svg2_error *err)
{
    svg2__permute_task t;
    int64_t head;
    int32_t i;
    (void)workspace;
    t.d = d;
    t.blocks = svg2__permute_blocks(d);
    for (head = 0; head < (int64_t)d->batch * d->heads; ++head)
        for (i = 0; i < d->tokens; ++i) {
            const int32_t *l = d->label + head * d->tokens + i;
            if ((i >= d->text_begin && i - d->text_begin < d->text_count)
                || (i >= d->padding_begin && i - d->padding_begin < d->padding_count))
                continue; /* its label is written here, not read */
            SVG2__CHECK(*l >= 0 && *l < d->clusters, SVG2_ERR_RANGE, "label",
                        "must be in [0, clusters) for every token that is not text");
        }
    svg2__run(backend, svg2__permute_heads, &t, (int64_t)d->batch * d->heads, 1);
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_permute(const svg2_backend *backend, const svg2_permute_desc *desc, void *workspace,
                                  size_t workspace_bytes, svg2_error *err)
{
    const svg2_permute_desc *d = desc;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(d, "desc");
    SVG2__TRY(svg2__check_extents(d->batch, d->heads, d->tokens, 8, err));
    SVG2__TRY(svg2__check_clusters(d->clusters, "clusters", err));
    SVG2__CHECK(d->text_begin >= 0 && d->text_count >= 0 && d->text_begin <= d->tokens
                    && d->text_count <= d->tokens - d->text_begin,
                SVG2_ERR_RANGE, "text_count", "text_begin and text_count must name tokens");
    SVG2__CHECK(d->padding_begin >= 0 && d->padding_count >= 0 && d->padding_begin <= d->tokens
                    && d->padding_count <= d->tokens - d->padding_begin,
                SVG2_ERR_RANGE, "padding_count", "padding_begin and padding_count must name tokens");
    SVG2__CHECK(d->text_count == 0 || d->padding_count == 0 || d->text_begin + d->text_count <= d->padding_begin
                    || d->padding_begin + d->padding_count <= d->text_begin,
                SVG2_ERR_SHAPE, "padding_begin", "text and padding must not overlap");
    SVG2__NOT_NULL(d->label, "label");
    SVG2__NOT_NULL(d->order, "order");
    SVG2__NOT_NULL(d->offset, "offset");
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_PERMUTE, d, workspace, workspace_bytes, err));
    return backend->permute(backend, d, workspace, err);
}

/* ---- statistics of a key cluster ---- */
typedef struct svg2__summarize_task {
    const svg2__loops *loops;
    const svg2_summarize_desc *d;
    svg2_layout v_layout;
    float *scratch; /* [workers][4][D] */
} svg2__summarize_task;

/* item = (head, cluster) */
static void svg2__summarize_clusters(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__summarize_task *t = (const svg2__summarize_task *)task;
    const svg2_summarize_desc *d = t->d;
    const int32_t dim = d->head_dim;
    float *row = t->scratch + (size_t)worker * 4 * (size_t)dim, *part = row + dim, *part_square = part + dim;
    float *shift = part_square + dim; /* the first row: keeps the variance of values with a large mean accurate */
    double sum[SVG2__MAX_DIM];
    for (; begin < end; ++begin) {
        const int64_t bh = begin / d->clusters, b = bh / d->heads, h = bh % d->heads;
        const int32_t *offset = d->offset + bh * ((int64_t)d->blocks + 1) + begin % d->clusters;
        const int32_t *order = d->order + bh * d->tokens + offset[0];
        const int32_t n = offset[1] - offset[0];
        const double scale = n ? 1.0 / n : 0.0;
        double square = 0.0;
        int32_t i, j, e;
        for (e = 0; e < dim; ++e) sum[e] = 0.0, shift[e] = 0.0f;
        if (n) t->loops->load(shift, svg2__row(d->v, &t->v_layout, b, h, order[0]), t->v_layout.dtype, 0, dim);
        for (i = 0; i < n; i = j) { /* f32 for 256 rows, f64 above */
            memset(part, 0, 2 * (size_t)dim * sizeof(float));
            for (j = i; j < n && j < i + SVG2__CHUNK; ++j) {
                if (j + SVG2__AHEAD < n)
                    svg2__prefetch(svg2__row(d->v, &t->v_layout, b, h, order[j + SVG2__AHEAD]), &t->v_layout,
                                   dim);
                t->loops->load(row, svg2__row(d->v, &t->v_layout, b, h, order[j]), t->v_layout.dtype, shift, dim);
                t->loops->moments(part, part_square, row, dim);
            }
            for (e = 0; e < dim; ++e) sum[e] += (double)part[e], square += (double)part_square[e];
        }
        for (e = 0; e < dim; ++e) {
            d->value_mean[begin * dim + e] = (float)((double)shift[e] + sum[e] * scale);
            square -= sum[e] * sum[e] * scale;
        }
        d->value_var[begin] = square > 0.0 ? (float)(square * scale) : 0.0f;
    }
}

static size_t svg2__summarize_layout(const svg2_backend *backend, const svg2_summarize_desc *d, void *base,
                                     float **scratch)
{
    svg2__arena a = SVG2_ZERO;
    float *rows;
    a.base = (char *)base;
    rows = svg2__take_f32(&a, svg2__mul(svg2__workers(backend), 4 * (size_t)d->head_dim));
    if (scratch) *scratch = rows;
    return a.used;
}

static svg2_result svg2__cpu_summarize(const svg2_backend *backend, const svg2_summarize_desc *d, void *workspace,
                                       svg2_error *err)
{
    svg2__summarize_task t;
    t.loops = svg2__loops_of(backend);
    t.d = d;
    t.v_layout = svg2__layout(d->v_layout, d->heads, d->tokens, d->head_dim);
    (void)svg2__summarize_layout(backend, d, workspace, &t.scratch);
    svg2__run(backend, svg2__summarize_clusters, &t, (int64_t)d->batch * d->heads * d->clusters, 8);
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_summarize(const svg2_backend *backend, const svg2_summarize_desc *desc, void *workspace,
                                    size_t workspace_bytes, svg2_error *err)
{
    const svg2_summarize_desc *d = desc;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(d, "desc");
    SVG2__TRY(svg2__check_extents(d->batch, d->heads, d->tokens, d->head_dim, err));
    SVG2__TRY(svg2__check_clusters(d->clusters, "clusters", err));
    SVG2__CHECK(d->blocks >= d->clusters && d->blocks <= d->clusters + 2, SVG2_ERR_RANGE, "blocks",
                "must be clusters, plus 1 for text, plus 1 for padding");
    SVG2__TRY(svg2__check_layout(d->v_layout, d->batch, d->heads, d->tokens, d->head_dim, 0, "v", err));
    SVG2__TRY(svg2__check_tensor(d->v, d->v_layout, "v", err));
    SVG2__NOT_NULL(d->order, "order");
    SVG2__NOT_NULL(d->offset, "offset");
    SVG2__NOT_NULL(d->value_mean, "value_mean");
    SVG2__NOT_NULL(d->value_var, "value_var");
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_SUMMARIZE, d, workspace, workspace_bytes, err));
    return backend->summarize(backend, d, workspace, err);
}

/* ==== >>score ============================================================================
   Keys relative to their own centroid keep the exponents small and the sums accurate; the running maximum of the
   softmax loop takes care of the rest. One item = one key cluster against all query centroids, 64 at a time. */
typedef struct svg2__score_ws {
    float *query;   /* [BH, units, D, 64]  log2(e) * scale * query centroids, transposed */
    float *key;     /* [BHkv, Ck4 / 4, D, 4]  key centroids relative to the mean, for the share */
    float *scratch; /* [workers, scratch_floats] */
    size_t scratch_floats;
} svg2__score_ws;

typedef struct svg2__score_task {
    const svg2__loops *loops;
    const svg2_score_desc *d;
    svg2_layout k, q;
    svg2__score_ws ws;
    int32_t units, clusters4;
} svg2__score_task;

static size_t svg2__score_layout(const svg2_backend *backend, const svg2_score_desc *d, void *base,
                                 svg2__score_ws *ws)
{
    svg2__arena a = SVG2_ZERO;
    const int64_t units = ((int64_t)d->query_clusters + SVG2__LANES - 1) / SVG2__LANES;
    const int64_t clusters4 = ((int64_t)d->key_clusters + 3) / 4 * 4;
    size_t share;
    svg2__score_ws w;
    a.base = (char *)base;
    w.key = svg2__take_f32(&a, d->tokens ? svg2__count(d->batch, d->heads_kv, clusters4, d->head_dim) : 0);
    w.query = svg2__take_f32(&a, svg2__mul(svg2__count(d->batch, d->heads, units, d->head_dim), SVG2__LANES));
    /* a key tile, 4 rows, logits, and m, l of each query centroid */
    w.scratch_floats = svg2__add((size_t)d->head_dim * (SVG2__KEYS + 4) + SVG2__KEYS * SVG2__LANES + SVG2__LANES,
                                 svg2__count(units, 2, SVG2__LANES, 1));
    /* 64 rows transposed, 4 rows, their logits, bias, and alpha, m, l, weight of each row */
    share = svg2__add((size_t)d->head_dim * (SVG2__LANES + 4) + 4 * SVG2__LANES,
                      svg2__count(clusters4, SVG2__LANES + 1, 1, 1));
    if (d->tokens && share > w.scratch_floats) w.scratch_floats = share;
    w.scratch = svg2__take_f32(&a, svg2__mul(svg2__workers(backend), w.scratch_floats));
    if (ws) *ws = w;
    return a.used;
}

/* item = (head, unit of 64 query centroids) */
static void svg2__score_pack(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__score_task *t = (const svg2__score_task *)task;
    const svg2_score_desc *d = t->d;
    const int32_t dim = d->head_dim;
    const float scale = d->scale * 1.44269504f; /* log2(e) */
    float *rows = t->ws.scratch + (size_t)worker * t->ws.scratch_floats;
    for (; begin < end; ++begin) {
        const int64_t bh = begin / t->units;
        float *query = t->ws.query + (size_t)begin * (size_t)dim * SVG2__LANES;
        int32_t i;
        svg2__pack_panel(t->loops, query, rows,
                         d->query_centroid + (size_t)bh * (size_t)d->query_clusters * (size_t)dim, 0,
                         (int32_t)(begin % t->units) * SVG2__LANES, d->query_clusters, dim);
        for (i = 0; i < dim * SVG2__LANES; ++i) query[i] *= scale;
    }
}

/* item = (head, key cluster) */
static void svg2__score_clusters(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__score_task *t = (const svg2__score_task *)task;
    const svg2_score_desc *d = t->d;
    const int32_t dim = d->head_dim;
    float *rows = t->ws.scratch + (size_t)worker * t->ws.scratch_floats, *keys = rows + 4 * dim;
    float *p = keys + (size_t)SVG2__KEYS * (size_t)dim, *alpha = p + SVG2__KEYS * SVG2__LANES,
          *m = alpha + SVG2__LANES;
    float *l = m + (size_t)t->units * SVG2__LANES;
    for (; begin < end; ++begin) {
        const int64_t bh = begin / d->key_clusters, kv = svg2__kv_head(bh, d->heads, d->heads_kv);
        const int64_t j = begin % d->key_clusters;
        const int32_t *offset = d->key_offset + kv * ((int64_t)d->key_blocks + 1) + j;
        const int32_t *order = d->key_order + kv * d->tokens_kv;
        const float *centroid = d->key_centroid
                                + ((size_t)kv * (size_t)d->key_clusters + (size_t)j) * (size_t)dim;
        float *out = d->log_mass + (size_t)bh * (size_t)d->query_clusters * (size_t)d->key_clusters + (size_t)j;
        int32_t at, key, i, unit;
        for (i = 0; i < t->units * SVG2__LANES; ++i) m[i] = -INFINITY, l[i] = 0.0f;
        for (at = offset[0]; at < offset[1]; at += SVG2__KEYS) {
            const int32_t n = svg2__min32(SVG2__KEYS, offset[1] - at);
            for (key = 0; key < n; key += 4) {
                for (i = 0; i < 4; ++i) {
                    const int32_t ahead = at + key + i + SVG2__AHEAD;
                    if (ahead < d->tokens_kv)
                        svg2__prefetch(svg2__row(d->k, &t->k, kv / d->heads_kv, kv % d->heads_kv, order[ahead]),
                                       &t->k, dim);
                    t->loops->load(rows + i * dim,
                                   svg2__row(d->k, &t->k, kv / d->heads_kv, kv % d->heads_kv,
                                             order[at + svg2__min32(key + i, n - 1)]),
                                   t->k.dtype, centroid, dim);
                }
                t->loops->pack4(keys + (size_t)key * (size_t)dim, 4, rows, dim, dim);
            }
            for (unit = 0; unit < t->units; ++unit) {
                const int nv = (svg2__min32(SVG2__LANES, d->query_clusters - unit * SVG2__LANES) + 15) / 16;
                const float *query = t->ws.query
                                     + ((size_t)bh * (size_t)t->units + (size_t)unit) * (size_t)dim * SVG2__LANES;
                for (key = 0; key < n; key += 4)
                    t->loops->mk(nv, dim, keys + (size_t)key * (size_t)dim, 4, query, SVG2__LANES,
                                 p + key * SVG2__LANES, SVG2__LANES, 0);
                (void)t->loops->softmax(p, n, nv, 0, m + unit * SVG2__LANES, l + unit * SVG2__LANES, alpha);
            }
        }
        for (i = 0; i < d->query_clusters; ++i)
            out[(size_t)i * (size_t)d->key_clusters] =
                l[i] == 0.0f ? -INFINITY : (float)(((double)m[i] + log2((double)l[i])) * 0.69314718055994531);
    }
}

/* item = (key head, four key clusters) */
static void svg2__score_pack_keys(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__score_task *t = (const svg2__score_task *)task;
    const svg2_score_desc *d = t->d;
    const int32_t dim = d->head_dim, groups = t->clusters4 / 4;
    float *rows = t->ws.scratch + (size_t)worker * t->ws.scratch_floats;
    for (; begin < end; ++begin) {
        const int64_t kv = begin / groups;
        const int32_t first = (int32_t)(begin % groups) * 4;
        int32_t i;
        for (i = 0; i < 4; ++i) {
            const size_t j = (size_t)svg2__min32(first + i, d->key_clusters - 1);
            t->loops->load(rows + i * dim, d->key_centroid + ((size_t)kv * (size_t)d->key_clusters + j) * (size_t)dim,
                           SVG2_F32, d->key_mean + kv * dim, dim);
        }
        t->loops->pack4(t->ws.key + (size_t)begin * 4 * (size_t)dim, 4, rows, dim, dim);
    }
}

/* item = (head, query cluster): the softmax of each of its rows over the key clusters, 64 rows at a time; their mean */
static void svg2__score_shares(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__score_task *t = (const svg2__score_task *)task;
    const svg2_score_desc *d = t->d;
    const int32_t dim = d->head_dim, ck = d->key_clusters;
    const float scale = d->scale * 1.44269504f; /* log2(e) */
    float *rows = t->ws.scratch + (size_t)worker * t->ws.scratch_floats, *query = rows + 4 * dim;
    float *p = query + (size_t)SVG2__LANES * (size_t)dim, *bias = p + (size_t)t->clusters4 * SVG2__LANES;
    float *alpha = bias + t->clusters4, *m = alpha + SVG2__LANES, *l = m + SVG2__LANES, *weight = l + SVG2__LANES;
    for (; begin < end; ++begin) {
        const int64_t bh = begin / d->query_clusters, kv = svg2__kv_head(bh, d->heads, d->heads_kv);
        const int32_t *offset = d->query_offset + bh * ((int64_t)d->query_blocks + 1) + begin % d->query_clusters;
        const int32_t *order = d->query_order + bh * d->tokens, count = offset[1] - offset[0];
        const float *log_mass = d->log_mass + (size_t)begin * (size_t)ck;
        float *share = d->share + (size_t)begin * (size_t)ck;
        int32_t at, i, j;
        memset(share, 0, (size_t)ck * sizeof *share);
        for (j = 0; j < ck; ++j) bias[j] = log_mass[j] * 1.44269504f;
        for (at = offset[0]; at < offset[1]; at += SVG2__LANES) {
            const int32_t n = svg2__min32(SVG2__LANES, offset[1] - at);
            const int nv = (n + 15) / 16;
            for (i = 0; i < 16 * nv; i += 4) {
                int32_t r;
                for (r = 0; r < 4; ++r) {
                    if (i + r >= n) memset(rows + r * dim, 0, (size_t)dim * sizeof *rows);
                    else
                        t->loops->load(rows + r * dim,
                                       svg2__row(d->q, &t->q, bh / d->heads, bh % d->heads, order[at + i + r]),
                                       t->q.dtype, 0, dim);
                }
                t->loops->pack4(query + i, SVG2__LANES, rows, dim, dim);
            }
            for (i = 0; i < dim; ++i)
                for (j = 0; j < 16 * nv; ++j) query[i * SVG2__LANES + j] *= scale;
            for (j = 0; j < ck; j += 4)
                t->loops->mk(nv, dim, t->ws.key + ((size_t)kv * (size_t)t->clusters4 + (size_t)j) * (size_t)dim, 4,
                             query, SVG2__LANES, p + (size_t)j * SVG2__LANES, SVG2__LANES, 0);
            for (i = 0; i < SVG2__LANES; ++i) m[i] = -INFINITY, l[i] = 0.0f;
            (void)t->loops->softmax(p, ck, nv, bias, m, l, alpha);
            for (i = 0; i < 16 * nv; ++i) weight[i] = i < n && l[i] != 0.0f ? 1.0f / (l[i] * (float)count) : 0.0f;
            for (j = 0; j < ck; ++j) share[j] += t->loops->dot(p + (size_t)j * SVG2__LANES, weight, 16 * nv);
        }
    }
}

static svg2_result svg2__cpu_score(const svg2_backend *backend, const svg2_score_desc *d, void *workspace,
                                   svg2_error *err)
{
    svg2__score_task t;
    t.loops = svg2__loops_of(backend);
    t.d = d;
    t.k = svg2__layout(d->k_layout, d->heads_kv, d->tokens_kv, d->head_dim);
    (void)svg2__score_layout(backend, d, workspace, &t.ws);
    t.units = (d->query_clusters + SVG2__LANES - 1) / SVG2__LANES;
    t.clusters4 = svg2__round_up(d->key_clusters, 4);
    svg2__run(backend, svg2__score_pack, &t, (int64_t)d->batch * d->heads * t.units, 1);
    svg2__run(backend, svg2__score_clusters, &t, (int64_t)d->batch * d->heads * d->key_clusters, 4);
    if (d->tokens) {
        t.q = svg2__layout(d->q_layout, d->heads, d->tokens, d->head_dim);
        svg2__run(backend, svg2__score_pack_keys, &t, (int64_t)d->batch * d->heads_kv * (t.clusters4 / 4), 16);
        svg2__run(backend, svg2__score_shares, &t, (int64_t)d->batch * d->heads * d->query_clusters, 1);
    }
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_score(const svg2_backend *backend, const svg2_score_desc *desc, void *workspace,
                                size_t workspace_bytes, svg2_error *err)
{
    const svg2_score_desc *d = desc;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(d, "desc");
    SVG2__TRY(svg2__check_extents(d->batch, d->heads, 1, d->head_dim, err));
    SVG2__TRY(svg2__check_heads_kv(d->heads, d->heads_kv, err));
    SVG2__TRY(svg2__check_tokens(d->tokens_kv, "tokens_kv", err));
    SVG2__TRY(svg2__check_clusters(d->query_clusters, "query_clusters", err));
    SVG2__TRY(svg2__check_clusters(d->key_clusters, "key_clusters", err));
    SVG2__CHECK(d->key_blocks >= d->key_clusters, SVG2_ERR_RANGE, "key_blocks", "must be at least key_clusters");
    SVG2__CHECK(fabsf(d->scale) <= 3.0e38f, SVG2_ERR_RANGE, "scale", "must be finite");
    SVG2__TRY(svg2__check_layout(d->k_layout, d->batch, d->heads_kv, d->tokens_kv, d->head_dim, 0, "k", err));
    SVG2__TRY(svg2__check_tensor(d->k, d->k_layout, "k", err));
    SVG2__NOT_NULL(d->key_order, "key_order");
    SVG2__NOT_NULL(d->key_offset, "key_offset");
    SVG2__NOT_NULL(d->query_centroid, "query_centroid");
    SVG2__NOT_NULL(d->key_centroid, "key_centroid");
    SVG2__NOT_NULL(d->log_mass, "log_mass");
    if (d->tokens) {
        SVG2__TRY(svg2__check_tokens(d->tokens, "tokens", err));
        SVG2__CHECK(d->query_blocks >= d->query_clusters, SVG2_ERR_RANGE, "query_blocks",
                    "must be at least query_clusters");
        SVG2__TRY(svg2__check_layout(d->q_layout, d->batch, d->heads, d->tokens, d->head_dim, 0, "q", err));
        SVG2__TRY(svg2__check_tensor(d->q, d->q_layout, "q", err));
        SVG2__NOT_NULL(d->query_order, "query_order");
        SVG2__NOT_NULL(d->query_offset, "query_offset");
        SVG2__NOT_NULL(d->key_mean, "key_mean");
        SVG2__NOT_NULL(d->share, "share");
    }
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_SCORE, d, workspace, workspace_bytes, err));
    return backend->score(backend, d, workspace, err);
}

/* ==== >>select ===========================================================================
   Per head: centroid logits of all pairs of clusters by the micro-kernel, one strip of four query clusters at a
   time; then each query cluster's own decision; then, where the budget belongs to the head, one threshold for
   all pairs, found by counting instead of sorting (three digits of the score's bits). */
typedef struct svg2__select_ws {
    float    *key_panel;   /* [panels, D, 64]  key centroids relative to the mean                    */
    float    *value;       /* [Ck, D16]        value means, rows padded to full registers            */
    float    *score;       /* [Cq, Ck]         per pair; < 0 = not for the taking                    */
    float    *loss;        /* [Cq, Ck]         contribution to the squared error if skipped          */
    double   *row_signal;  /* [Cq]             rows x squared length of the output                   */
    int64_t  *row_area;    /* [Cq]             key tokens of SVG2's rule                             */
    int64_t  *histogram;   /* [2048]                                                                 */
    char     *scratch;     /* [workers, scratch_bytes]                                               */
    size_t    scratch_bytes;
} svg2__select_ws;

typedef struct svg2__select_scratch {
    float    *pack;        /* [D, 4], rows [4, D]                                                    */
    float    *logit;       /* [4, Ck64]                                                              */
    float    *mass;        /* [Ck, 4]                                                                */
    float    *output;      /* [4, D16]                                                               */
    float    *row_score;   /* [Ck]                                                                   */
    uint32_t *key[2];      /* [Ck] each: sorting                                                     */
    int32_t  *index[2];    /* [Ck] each                                                              */
} svg2__select_scratch;

typedef struct svg2__select_task {
    const svg2__loops *loops;
    const svg2_select_desc *d;
    svg2__select_ws ws;
    int64_t bh;                  /* the head being worked on                                         */
    int32_t query_blocks, key_blocks;
    int32_t panels, floor;       /* panels of 64 key clusters; clusters that every row keeps         */
    int need_loss, is_literal;   /* is_literal: SVG2's own rule                                      */
} svg2__select_task;

static size_t svg2__select_scratch_layout(const svg2_select_desc *d, void *base, svg2__select_scratch *s)
{
    svg2__arena a = SVG2_ZERO;
    const size_t ck = (size_t)d->key_clusters, ck64 = (ck + 63) / 64 * 64, dim = (size_t)d->head_dim;
    svg2__select_scratch w;
    int i;
    a.base = (char *)base;
    w.pack = svg2__take_f32(&a, 8 * dim);
    w.logit = svg2__take_f32(&a, 4 * ck64);
    w.mass = svg2__take_f32(&a, 4 * ck);
    w.output = svg2__take_f32(&a, 4 * (dim + 8));
    w.row_score = svg2__take_f32(&a, ck);
    for (i = 0; i < 2; ++i) {
        w.key[i] = (uint32_t *)svg2__take(&a, sizeof(uint32_t), ck);
        w.index[i] = svg2__take_i32(&a, ck);
    }
    if (s) *s = w;
    return a.used;
}

static size_t svg2__select_layout(const svg2_backend *backend, const svg2_select_desc *d, void *base,
                                  svg2__select_ws *ws)
{
    svg2__arena a = SVG2_ZERO;
    const int64_t panels = ((int64_t)d->key_clusters + 63) / 64;
    svg2__select_ws w;
    a.base = (char *)base;
    w.key_panel = svg2__take_f32(&a, svg2__count(panels, d->head_dim, SVG2__LANES, 1));
    w.value = svg2__take_f32(&a, svg2__count(d->key_clusters, d->head_dim + 8, 1, 1));
    w.score = svg2__take_f32(&a, svg2__count(d->query_clusters, d->key_clusters, 1, 1));
    w.loss = svg2__take_f32(&a, d->target_error > 0.0f ? svg2__count(d->query_clusters, d->key_clusters, 1, 1) : 0);
    w.row_signal = (double *)svg2__take(&a, sizeof(double), (size_t)d->query_clusters);
    w.row_area = (int64_t *)svg2__take(&a, sizeof(int64_t), (size_t)d->query_clusters);
    w.histogram = (int64_t *)svg2__take(&a, sizeof(int64_t), 2048);
    w.scratch_bytes = svg2__select_scratch_layout(d, 0, 0);
    w.scratch = (char *)svg2__take(&a, w.scratch_bytes, svg2__workers(backend));
    if (ws) *ws = w;
    return a.used;
}

/* Indices 0..n-1 in order of falling score >= 0, ties to the lower index: stable radix sort of the inverted
   bits. key, index: two arrays of n each. Returns the sorted indices, index[0]. */
static const int32_t *svg2__sort_falling(uint32_t *const *key, int32_t *const *index, const float *score, int32_t n)
{
    int32_t i, count[256], at = 0;
    int pass;
    for (i = 0; i < n; ++i) key[0][i] = ~svg2__bits(score[i]), index[0][i] = i;
    for (pass = 0; pass < 4; ++pass) {
        const int from = pass & 1, shift = 8 * pass;
        int32_t sum = 0;
        memset(count, 0, sizeof count);
        for (i = 0; i < n; ++i) ++count[(key[from][i] >> shift) & 255u];
        for (i = 0; i < 256; ++i) {
            const int32_t c = count[i];
            count[i] = sum;
            sum += c;
        }
        for (i = 0; i < n; ++i) {
            at = count[(key[from][i] >> shift) & 255u]++;
            key[1 - from][at] = key[from][i];
            index[1 - from][at] = index[from][i];
        }
    }
    return index[0];
}

/* What skipping a block costs, per query row, from its share of the mass P, the variance of its logits (spread),
   its mean value and the variance of its values, and the row's output.
     no tail   the block's mean value is missing. Dropped blocks err together, as the rest is scaled up:
               amplitudes add.
     order 0   values that follow the key inside the block: first order. Blocks err independently: squares add.
     order 1   second order, of the values and of the weight: squares add. */
static float svg2__block_loss(svg2_tail_kind tail, float mass, float spread, float value_square, float value_var,
                              float output_square)
{
    const float m2 = mass * mass;
    if (tail == SVG2_TAIL_NONE) return mass * sqrtf(value_square + output_square);
    if (tail == SVG2_TAIL_ORDER0) return m2 * spread * value_var;
    return m2 * spread * spread * 0.5f * (value_var + 0.5f * (value_square + output_square));
}

/* spread = 2 (log_mass - ln n): 0 by Jensen at least, but for rounding */
static float svg2__spread(float log_mass, int32_t n)
{
    const float x = 2.0f * (log_mass - logf((float)n));
    return x < 0.0f ? 0.0f : x;
}

/* One query cluster: estimated mass, then its own decision into map (head budgets: only what every row keeps). */
static void svg2__select_row(const svg2__select_task *t, svg2__select_scratch *s, int32_t row, int lane)
{
    const svg2_select_desc *d = t->d;
    const int32_t ck = d->key_clusters, *key_offset, *query_offset;
    const int64_t bh = t->bh, kv = svg2__kv_head(bh, d->heads, d->heads_kv);
    float *logit = s->logit + (size_t)lane * (size_t)t->panels * SVG2__LANES;
    const float *log_mass =
        d->log_mass ? d->log_mass + ((size_t)bh * (size_t)d->query_clusters + (size_t)row) * (size_t)ck : 0;
    const float *share = /* an empty query cluster has no rows to ask */
        d->share && d->query_offset[bh * ((int64_t)t->query_blocks + 1) + row + 1]
                        > d->query_offset[bh * ((int64_t)t->query_blocks + 1) + row]
            ? d->share + ((size_t)bh * (size_t)d->query_clusters + (size_t)row) * (size_t)ck
            : 0;
    uint8_t *map = d->map + ((size_t)bh * (size_t)t->query_blocks + (size_t)row) * (size_t)t->key_blocks;
    float *score = t->ws.score + (size_t)row * (size_t)ck, *mass = s->row_score;
    const int32_t *sorted;
    float top = -INFINITY, running = 0.0f;
    double sum = 0.0;
    int64_t area = 0, budget, total_keys = 0;
    int32_t j, r;
    int sane = 1;
    key_offset = d->key_offset + kv * ((int64_t)t->key_blocks + 1);
    query_offset = d->query_offset + bh * ((int64_t)t->query_blocks + 1);
    for (j = 0; j < ck; ++j) {
        if (key_offset[j + 1] == key_offset[j]) continue;
        if (log_mass) logit[j] += log_mass[j];
        if (!(fabsf(logit[j]) <= 3.0e38f)) sane = 0; /* NaN, or Inf of either sign */
        if (logit[j] > top) top = logit[j];
    }
    if (share) {
        for (j = 0; j < ck; ++j)
            if (!(share[j] >= 0.0f && share[j] <= 3.0e38f)) sane = 0;
    }
    for (j = 0; j < ck; ++j) {
        const int32_t n = key_offset[j + 1] - key_offset[j];
        if (share && sane) mass[j] = n ? share[j] + 0.0f : 0.0f; /* -0 becomes 0: it is sorted by its bits */
        else mass[j] = n && sane ? (log_mass ? 1.0f : (float)n) * expf(logit[j] - top) : 0.0f;
        sum += (double)mass[j];
        total_keys += n;
    }
    t->ws.row_signal[row] = 0.0;
    if (!(sum > 0.0)) sane = 0; /* no key at all */
    if (!sane || (d->top_p >= 1.0f && t->is_literal)) { /* NaN: keep what it touches; and top_p = 1 means all */
        for (j = 0; j < ck; ++j) map[j] = 1, score[j] = -1.0f;
        for (j = 0; j < ck; ++j) s->mass[4 * j + lane] = 0.0f;
        t->ws.row_area[row] = total_keys;
        return;
    }
    for (j = 0; j < ck; ++j) {
        mass[j] = (float)((double)mass[j] / sum);
        s->mass[4 * j + lane] = mass[j];
        map[j] = 0;
    }
    /* SVG2's rule; where it is not the decision itself, its area is the budget */
    sorted = svg2__sort_falling(s->key, s->index, mass, ck);
    for (r = 0; r < ck; ++r) {
        const int by_mass = r == 0 || running <= d->top_p, by_floor = r < t->floor;
        j = sorted[r];
        if (!by_mass && !by_floor) break;
        area += key_offset[j + 1] - key_offset[j];
        running += mass[j];
        if (t->is_literal || by_floor || (r == 0 && d->tail == SVG2_TAIL_NONE)) map[j] = 1;
    }
    t->ws.row_area[row] = area;
    if (t->is_literal) return;
    /* score per pair of what is left for the taking */
    for (j = 0; j < ck; ++j) {
        const int32_t n = key_offset[j + 1] - key_offset[j];
        if (map[j] || n == 0 || query_offset[row + 1] == query_offset[row]) score[j] = -1.0f;
        else
            score[j] = mass[j] / (float)n * (d->route == SVG2_ROUTE_SPREAD ? svg2__spread(log_mass[j], n) : 1.0f);
    }
    if (d->budget != SVG2_BUDGET_ROW || d->target_error > 0.0f) return;
    budget = d->density > 0.0f ? (int64_t)((double)d->density * (double)total_keys + 0.5) : area;
    for (j = 0; j < ck; ++j)
        if (map[j]) budget -= key_offset[j + 1] - key_offset[j];
    for (j = 0; j < ck; ++j) s->row_score[j] = score[j] < 0.0f ? 0.0f : score[j];
    sorted = svg2__sort_falling(s->key, s->index, s->row_score, ck);
    for (r = 0; r < ck && budget > 0; ++r) {
        j = sorted[r];
        if (score[j] < 0.0f) continue;
        map[j] = 1;
        budget -= key_offset[j + 1] - key_offset[j];
    }
}

/* item = strip of 4 query clusters of head t->bh */
static void svg2__select_strip(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__select_task *t = (const svg2__select_task *)task;
    const svg2_select_desc *d = t->d;
    const int32_t dim = d->head_dim, dim16 = svg2__round_up(dim, 16), ck = d->key_clusters,
                  ck64 = t->panels * SVG2__LANES;
    const int64_t kv = svg2__kv_head(t->bh, d->heads, d->heads_kv);
    const int32_t *query_offset = d->query_offset + t->bh * ((int64_t)t->query_blocks + 1);
    const int32_t *key_offset = d->key_offset + kv * ((int64_t)t->key_blocks + 1);
    svg2__select_scratch s;
    (void)svg2__select_scratch_layout(d, t->ws.scratch + (size_t)worker * t->ws.scratch_bytes, &s);
    for (; begin < end; ++begin) {
        const int32_t first = (int32_t)begin * 4;
        const int rows = (int)svg2__min32(4, d->query_clusters - first);
        float *row = s.pack + 4 * dim;
        int32_t panel, i, e, j;
        for (i = 0; i < 4; ++i) {
            const float *q = d->query_centroid
                             + ((size_t)t->bh * (size_t)d->query_clusters
                                + (size_t)svg2__min32(first + i, d->query_clusters - 1))
                                   * (size_t)dim;
            for (e = 0; e < dim; ++e) row[i * dim + e] = q[e] * d->scale;
        }
        t->loops->pack4(s.pack, 4, row, dim, dim);
        for (panel = 0; panel < t->panels; ++panel)
            t->loops->mk(4, dim, s.pack, 4, t->ws.key_panel + (size_t)panel * (size_t)dim * SVG2__LANES,
                         SVG2__LANES, s.logit + panel * SVG2__LANES, ck64, 0);
        for (i = 0; i < rows; ++i) svg2__select_row(t, &s, first + i, i);
        if (!t->need_loss) continue;
        for (i = rows; i < 4; ++i)
            for (j = 0; j < ck; ++j) s.mass[4 * j + i] = 0.0f;
        for (e = 0; e < dim16; e += SVG2__LANES) /* the outputs, as the centroids see them */
            t->loops->mk(svg2__min32(SVG2__LANES, dim16 - e) / 16, ck, s.mass, 4, t->ws.value + e, dim16,
                         s.output + e, dim16, 0);
        for (i = 0; i < rows; ++i) {
            const float output_square = t->loops->dot(s.output + i * dim16, s.output + i * dim16, dim);
            const int32_t n = query_offset[first + i + 1] - query_offset[first + i];
            const float *log_mass =
                d->log_mass + ((size_t)t->bh * (size_t)d->query_clusters + (size_t)(first + i)) * (size_t)ck;
            float *loss = t->ws.loss + (size_t)(first + i) * (size_t)ck;
            t->ws.row_signal[first + i] =
                (double)n * (d->tail == SVG2_TAIL_NONE ? sqrt((double)output_square) : (double)output_square);
            for (j = 0; j < ck; ++j) {
                const float *v = t->ws.value + (size_t)j * (size_t)dim16;
                const int32_t keys = key_offset[j + 1] - key_offset[j];
                loss[j] = keys ? (float)n
                                     * svg2__block_loss(d->tail, s.mass[4 * j + i],
                                                        svg2__spread(log_mass[j], keys), t->loops->dot(v, v, dim),
                                                        d->value_var[kv * ck + j], output_square)
                               : 0.0f;
            }
        }
    }
}

/* Mark blocks by falling score (ties in index order) until their weights reach the budget. weight(I, j) is the
   area, or the loss in fixed point, so that sums are exact in any order. */
static int64_t svg2__select_weight(const svg2__select_task *t, int32_t row, int32_t j,
                                   const int32_t *query_offset, const int32_t *key_offset, double loss_unit)
{
    if (loss_unit > 0.0) {
        const double w = (double)t->ws.loss[(size_t)row * (size_t)t->d->key_clusters + (size_t)j] * loss_unit;
        return w > 0.0 ? (int64_t)w : 0; /* NaN counts nothing */
    }
    return (int64_t)(query_offset[row + 1] - query_offset[row]) * (key_offset[j + 1] - key_offset[j]);
}

static void svg2__select_threshold(const svg2__select_task *t, const int32_t *query_offset,
                                   const int32_t *key_offset, int64_t budget, double loss_unit)
{
    static const int shifts[3] = {21, 10, 0}, widths[3] = {11, 11, 10};
    const svg2_select_desc *d = t->d;
    const int32_t cq = d->query_clusters, ck = d->key_clusters;
    uint32_t prefix = 0; /* digits of the threshold found so far */
    int64_t left = budget;
    int32_t row, j;
    int pass, digit;
    if (budget <= 0) return;
    for (pass = 0; pass < 3; ++pass) {
        const uint32_t above = pass ? ~0u << (shifts[pass] + widths[pass]) : 0u;
        memset(t->ws.histogram, 0, 2048 * sizeof *t->ws.histogram);
        for (row = 0; row < cq; ++row)
            for (j = 0; j < ck; ++j) {
                const float score = t->ws.score[(size_t)row * (size_t)ck + (size_t)j];
                const uint32_t bits = svg2__bits(score + 0.0f); /* -0 becomes 0 */
                if (score < 0.0f || (bits & above) != prefix) continue;
                t->ws.histogram[(bits >> shifts[pass]) & ((1u << widths[pass]) - 1u)] +=
                    svg2__select_weight(t, row, j, query_offset, key_offset, loss_unit);
            }
        for (digit = (1 << widths[pass]) - 1; digit > 0; --digit) {
            if (t->ws.histogram[digit] >= left) break;
            left -= t->ws.histogram[digit];
        }
        prefix |= (uint32_t)digit << shifts[pass];
    }
    for (row = 0; row < cq; ++row) {
        uint8_t *map = d->map + ((size_t)t->bh * (size_t)t->query_blocks + (size_t)row) * (size_t)t->key_blocks;
        for (j = 0; j < ck; ++j) {
            const float score = t->ws.score[(size_t)row * (size_t)ck + (size_t)j];
            const uint32_t bits = svg2__bits(score + 0.0f);
            if (score < 0.0f || bits < prefix) continue;
            if (bits == prefix) { /* on the threshold: in index order, while something is left */
                if (left <= 0) continue;
                left -= svg2__select_weight(t, row, j, query_offset, key_offset, loss_unit);
            }
            map[j] = 1;
        }
    }
}

/* Everything about head t->bh that needs all its rows. */
static void svg2__select_head(const svg2__select_task *t)
{
    const svg2_select_desc *d = t->d;
    const int32_t cq = d->query_clusters, ck = d->key_clusters;
    const int64_t kv = svg2__kv_head(t->bh, d->heads, d->heads_kv);
    const int32_t *query_offset = d->query_offset + t->bh * ((int64_t)t->query_blocks + 1);
    const int32_t *key_offset = d->key_offset + kv * ((int64_t)t->key_blocks + 1);
    uint8_t *map = d->map + (size_t)t->bh * (size_t)t->query_blocks * (size_t)t->key_blocks;
    const int64_t video_pairs = (int64_t)query_offset[cq] * key_offset[ck];
    int64_t pairs = 0, total;
    double signal = 0.0, lost = 0.0;
    int32_t row, j, empty = 0;
    int is_dense = 0;
    if (t->need_loss) {
        double all = 0.0;
        for (row = 0; row < cq; ++row) {
            signal += t->ws.row_signal[row];
            for (j = 0; j < ck; ++j)
                if (t->ws.score[(size_t)row * (size_t)ck + (size_t)j] >= 0.0f)
                    all += (double)t->ws.loss[(size_t)row * (size_t)ck + (size_t)j];
        }
        if (!(all <= 1.0e300 && signal <= 1.0e300)) {
            is_dense = 1; /* NaN or Inf in v: nothing can be estimated */
        } else if (all > 0.0) {
            const double target = (double)d->target_error, unit = 1152921504606846976.0 / all; /* 2^60: fixed point */
            const double allowed = (d->tail == SVG2_TAIL_NONE ? target : target * target) * signal;
            if (all > allowed) {
                double exact = 0.0;
                for (row = 0; row < cq; ++row)
                    for (j = 0; j < ck; ++j)
                        if (t->ws.score[(size_t)row * (size_t)ck + (size_t)j] >= 0.0f)
                            exact += (double)svg2__select_weight(t, row, j, query_offset, key_offset, unit);
                svg2__select_threshold(t, query_offset, key_offset,
                                       (int64_t)((exact - allowed * unit) * (1.0 + 1e-12)) + 1, unit);
            }
        }
    } else if (!t->is_literal && d->budget == SVG2_BUDGET_HEAD) {
        int64_t budget = 0;
        if (d->density > 0.0f) budget = (int64_t)((double)d->density * (double)video_pairs + 0.5);
        for (row = 0; row < cq; ++row) {
            const int64_t n = query_offset[row + 1] - query_offset[row];
            if (!(d->density > 0.0f)) budget += n * t->ws.row_area[row];
            for (j = 0; j < ck; ++j)
                if (map[(size_t)row * (size_t)t->key_blocks + (size_t)j])
                    budget -= n * (key_offset[j + 1] - key_offset[j]);
        }
        svg2__select_threshold(t, query_offset, key_offset, budget, 0.0);
    }
    for (row = 0; row < cq; ++row)
        for (j = 0; j < ck; ++j)
            if (map[(size_t)row * (size_t)t->key_blocks + (size_t)j])
                pairs += (int64_t)(query_offset[row + 1] - query_offset[row])
                         * (key_offset[j + 1] - key_offset[j]);
            else if (t->need_loss && t->ws.score[(size_t)row * (size_t)ck + (size_t)j] >= 0.0f)
                lost += (double)t->ws.loss[(size_t)row * (size_t)ck + (size_t)j];
    if (is_dense || (t->need_loss && (double)pairs > (double)d->dense_above * (double)video_pairs)) { /* sparse would not pay */
        for (row = 0; row < cq; ++row) memset(map + (size_t)row * (size_t)t->key_blocks, 1, (size_t)ck);
        pairs = video_pairs;
        is_dense = 1;
    }
    total = video_pairs;
    for (row = 0; row < t->query_blocks; ++row) { /* text sees and is seen by all that is valid; padding by nobody */
        uint8_t *line = map + (size_t)row * (size_t)t->key_blocks;
        const int is_text = d->has_text && row == cq, is_padding = d->has_padding && row == t->query_blocks - 1;
        if (is_text) memset(line, 1, (size_t)ck);
        if (is_padding) memset(line, 0, (size_t)ck);
        if (d->has_text) line[ck] = (uint8_t)!is_padding;
        if (d->has_padding) line[t->key_blocks - 1] = 0;
    }
    if (d->has_text) {
        const int64_t text_q = query_offset[cq + 1] - query_offset[cq],
                      text_k = key_offset[ck + 1] - key_offset[ck];
        const int64_t more = text_q * key_offset[ck] + text_k * query_offset[cq] + text_q * text_k;
        pairs += more;
        total += more;
    }
    if (!d->stats) return;
    for (row = 0; row < cq; ++row) empty += query_offset[row + 1] == query_offset[row];
    for (j = 0; j < ck; ++j) empty += key_offset[j + 1] == key_offset[j];
    d->stats[t->bh].pairs = pairs;
    d->stats[t->bh].pairs_pv = pairs;
    d->stats[t->bh].pairs_total = total;
    d->stats[t->bh].density = d->stats[t->bh].density_pv = total ? (float)((double)pairs / (double)total) : 0.0f;
    if (!t->need_loss) d->stats[t->bh].error_estimate = pairs == total ? 0.0f : -1.0f;
    else if (is_dense || !(signal > 0.0)) d->stats[t->bh].error_estimate = 0.0f;
    else
        d->stats[t->bh].error_estimate = (float)(d->tail == SVG2_TAIL_NONE ? lost / signal : sqrt(lost / signal));
    d->stats[t->bh].is_dense = is_dense;
    d->stats[t->bh].empty_clusters = empty;
    d->stats[t->bh].pattern = 0;
    d->stats[t->bh].pattern_error[0] = d->stats[t->bh].pattern_error[1] = 0.0f;
    d->stats[t->bh].recall = -1.0f;
}

static svg2_result svg2__cpu_select(const svg2_backend *backend, const svg2_select_desc *d, void *workspace,
                                    svg2_error *err)
{
    svg2__select_task t;
    const int32_t dim = d->head_dim, dim16 = svg2__round_up(dim, 16), ck = d->key_clusters;
    memset(&t, 0, sizeof t);
    t.loops = svg2__loops_of(backend);
    t.d = d;
    (void)svg2__select_layout(backend, d, workspace, &t.ws);
    t.query_blocks = d->query_clusters + (d->has_text != 0) + (d->has_padding != 0);
    t.key_blocks = ck + (d->has_text != 0) + (d->has_padding != 0);
    t.panels = (ck + SVG2__LANES - 1) / SVG2__LANES;
    /* 1e-4: 0.7f * 10 must be 7 */
    t.floor = d->min_keep > 0.0f ? (int32_t)floor((double)d->min_keep * (double)ck + 1e-4) : 0;
    t.need_loss = d->target_error > 0.0f;
    t.is_literal = d->route == SVG2_ROUTE_MASS && d->budget == SVG2_BUDGET_ROW && !(d->density > 0.0f)
                   && !t.need_loss;
    for (t.bh = 0; t.bh < (int64_t)d->batch * d->heads; ++t.bh) {
        const int64_t kv = svg2__kv_head(t.bh, d->heads, d->heads_kv);
        float *rows = (float *)(void *)t.ws.scratch; /* worker 0's, not in use yet */
        int32_t panel, j;
        if (t.bh == 0 || kv != svg2__kv_head(t.bh - 1, d->heads, d->heads_kv)) { /* grouped queries share the keys */
            for (panel = 0; panel < t.panels; ++panel) {
                const size_t at = (size_t)panel * (size_t)dim * SVG2__LANES;
                svg2__pack_panel(t.loops, t.ws.key_panel + at, rows,
                                 d->key_centroid + (size_t)kv * (size_t)ck * (size_t)dim, d->key_mean + kv * dim,
                                 panel * SVG2__LANES, ck, dim);
            }
            for (j = 0; j < ck && t.need_loss; ++j) {
                float *value = t.ws.value + (size_t)j * (size_t)dim16;
                memcpy(value, d->value_mean + ((size_t)kv * (size_t)ck + (size_t)j) * (size_t)dim,
                       (size_t)dim * sizeof(float));
                memset(value + dim, 0, (size_t)(dim16 - dim) * sizeof(float));
            }
        }
        svg2__run(backend, svg2__select_strip, &t, (d->query_clusters + 3) / 4, 4);
        svg2__select_head(&t);
    }
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_select(const svg2_backend *backend, const svg2_select_desc *desc, void *workspace,
                                 size_t workspace_bytes, svg2_error *err)
{
    const svg2_select_desc *d = desc;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(d, "desc");
    SVG2__TRY(svg2__check_extents(d->batch, d->heads, 1, d->head_dim, err));
    SVG2__TRY(svg2__check_heads_kv(d->heads, d->heads_kv, err));
    SVG2__TRY(svg2__check_clusters(d->query_clusters, "query_clusters", err));
    SVG2__TRY(svg2__check_clusters(d->key_clusters, "key_clusters", err));
    SVG2__CHECK(fabsf(d->scale) <= 3.0e38f, SVG2_ERR_RANGE, "scale", "must be finite");
    SVG2__CHECK(d->route == SVG2_ROUTE_MASS || d->route == SVG2_ROUTE_SPREAD, SVG2_ERR_RANGE, "route",
                "must be mass or spread");
    SVG2__CHECK(d->budget == SVG2_BUDGET_ROW || d->budget == SVG2_BUDGET_HEAD, SVG2_ERR_RANGE, "budget",
                "must be row or head");
    SVG2__CHECK(d->tail >= SVG2_TAIL_NONE && d->tail <= SVG2_TAIL_ORDER1, SVG2_ERR_RANGE, "tail",
                "must be none, order 0 or order 1");
    SVG2__CHECK(d->top_p > 0.0f && d->top_p <= 1.0f, SVG2_ERR_RANGE, "top_p", "must be in (0, 1]");
    SVG2__CHECK(d->min_keep <= 1.0f, SVG2_ERR_RANGE, "min_keep", "must be at most 1");
    SVG2__CHECK(d->density >= 0.0f && d->density <= 1.0f, SVG2_ERR_RANGE, "density", "must be in [0, 1]");
    SVG2__CHECK(d->target_error >= 0.0f && d->target_error <= 3.0e38f, SVG2_ERR_RANGE, "target_error",
                "must not be negative");
    SVG2__CHECK(!(d->target_error > 0.0f) || (d->dense_above > 0.0f && d->dense_above <= 1.0f), SVG2_ERR_RANGE,
                "dense_above", "must be in (0, 1]");
    SVG2__NOT_NULL(d->query_centroid, "query_centroid");
    SVG2__NOT_NULL(d->key_centroid, "key_centroid");
    SVG2__NOT_NULL(d->key_mean, "key_mean");
    if (d->route == SVG2_ROUTE_SPREAD || d->target_error > 0.0f) SVG2__NOT_NULL(d->log_mass, "log_mass");
    if (d->target_error > 0.0f) {
        SVG2__NOT_NULL(d->value_mean, "value_mean");
        SVG2__NOT_NULL(d->value_var, "value_var");
    }
    SVG2__NOT_NULL(d->query_offset, "query_offset");
    SVG2__NOT_NULL(d->key_offset, "key_offset");
    SVG2__NOT_NULL(d->map, "map");
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_SELECT, d, workspace, workspace_bytes, err));
    return backend->select(backend, d, workspace, err);
}

/* ==== >>attention ========================================================================
   One work item = up to 256 rows of one query block. Keys come in tiles of 128, packed from the block's list of
   key tokens across cluster borders (no padding of clusters), loaded, converted and transposed once for four
   units of 64 rows. Rows of a cluster lie anywhere in memory; the next tile's are asked for while this one is
   computed (measured: 10 % of a sparse call).

       K tile [keys/4][D][4]  x  Q unit [D][64 rows]   ->  P [keys][64]      (mk: k = D)
       softmax over keys, per lane; running maximum m and sum l
       V tile [keys][D]       x  P [keys][64]          ->  O [D][64]  +=     (mk: k = keys)

   The tail's virtual keys are tiles like any other, from the table of centroids, with their log mass as bias. */
typedef struct svg2__attention_item {
    int32_t block, first, count, unused; /* query block; rows first .. first+count of its order             */
    int64_t bh;
} svg2__attention_item;

typedef struct svg2__attention_task {
    const svg2_backend *backend;
    const svg2__loops *loops;
    const svg2_attention_desc *d;
    svg2_layout q, k, v, out;
    int32_t query_blocks, key_blocks;
    const svg2__attention_item *items;
    float *scratch;
    size_t scratch_floats;
    /* virtual keys and values of the kv heads from kv_begin on, bf16 pairs, where there are such products (else tail4 = 0) */
    uint32_t *key16;            /* [kv_count, tail4/4, D/2, 4]  pairs of dimensions, less the mean */
    uint32_t *value16;          /* [kv_count, D/4, tail4/2, 4]  pairs of clusters                  */
    int64_t kv_begin, kv_count;
    int32_t tail4;              /* tail_key_blocks, rounded up to 4 */
    int64_t *pairs;             /* [items]  pairs multiplied with V (skip rules only) */
    /* block mass only */
    float *partial;             /* [items, key_blocks] */
    float *recall;
    int need_mass;
    int32_t valid_key_blocks;
} svg2__attention_task;

typedef struct svg2__attention_scratch {
    float   *query;    /* [units, D, 64]   scale * log2(e) * q, transposed   */
    float   *output;   /* [units, D, 64]                                     */
    float   *key;      /* [keys/4, D, 4]                                     */
    float   *value;    /* [keys, D + 16]   the odd number of cache lines spreads a column over all L1 sets */
    float   *p;        /* [keys, 64]                                         */
    float   *rows;     /* [4, D]                                             */
    float   *bias;     /* [keys]                                             */
    float   *m, *l, *tail; /* [units, 64]  running maximum, sum, tail's part of the sum */
    float   *lost, *seed; /* [units, 64]  (skip)  mass left out, in units of exp2(m); estimate of the LSE, base 2 */
    float   *alpha;    /* [64]                                               */
    uint32_t *query16; /* [units, D/2, 64] bf16 pairs                        */
    uint32_t *p16;     /* [keys/2, 64]     bf16 pairs                        */
    int32_t *token;    /* [tokens_kv]      all keys of the item              */
    int32_t *cluster;  /* [keys]           of the virtual keys of a tile     */
    int32_t *block;    /* [keys]           key block (mass)                  */
    double  *mass;     /* [key_blocks]     (mass)                            */
    double  *row_mass; /* [units * 64]     (mass)                            */
} svg2__attention_scratch;

static size_t svg2__attention_scratch_layout(const svg2_backend *backend, const svg2_attention_desc *d, int is_mass,
                                             void *base, svg2__attention_scratch *s)
{
    svg2__arena a = SVG2_ZERO;
    const int has_tail16 = !is_mass && d->tail_query_blocks > 0 && d->tail_key_blocks > 0 && svg2__loops_of(backend)->mk16;
    const size_t n = (size_t)d->head_dim;
    svg2__attention_scratch w;
    a.base = (char *)base;
    w.query = svg2__take_f32(&a, n * SVG2__ROWS);
    w.output = svg2__take_f32(&a, is_mass ? 0 : n * SVG2__ROWS);
    w.key = svg2__take_f32(&a, n * SVG2__KEYS);
    w.value = svg2__take_f32(&a, is_mass ? 0 : (n + 16) * SVG2__KEYS);
    w.p = svg2__take_f32(&a, SVG2__KEYS * SVG2__LANES);
    w.rows = svg2__take_f32(&a, 4 * n);
    w.bias = svg2__take_f32(&a, SVG2__KEYS);
    w.m = svg2__take_f32(&a, SVG2__ROWS);
    w.l = svg2__take_f32(&a, SVG2__ROWS);
    w.tail = svg2__take_f32(&a, SVG2__ROWS);
    w.lost = svg2__take_f32(&a, !is_mass && d->skip ? SVG2__ROWS : 0);
    w.seed = svg2__take_f32(&a, !is_mass && d->skip ? SVG2__ROWS : 0);
    w.alpha = svg2__take_f32(&a, SVG2__LANES);
    w.query16 = (uint32_t *)svg2__take(&a, sizeof(uint32_t), has_tail16 ? n / 2 * SVG2__ROWS : 0);
    w.p16 = (uint32_t *)svg2__take(&a, sizeof(uint32_t), has_tail16 ? SVG2__KEYS / 2 * SVG2__LANES : 0);
    w.token = svg2__take_i32(&a, is_mass ? (size_t)SVG2__KEYS : (size_t)d->tokens_kv);
    w.cluster = svg2__take_i32(&a, SVG2__KEYS);
    w.block = svg2__take_i32(&a, SVG2__KEYS);
    w.mass = (double *)svg2__take(&a, sizeof(double), is_mass ? (size_t)(d->key_blocks ? d->key_blocks : 1) : 0);
    w.row_mass = (double *)svg2__take(&a, sizeof(double), is_mass ? SVG2__ROWS : 0);
    if (s) *s = w;
    return a.used;
}

static int64_t svg2__attention_heads(const svg2_attention_desc *d)
{
    return d->head_count ? d->head_count : (int64_t)d->batch * d->heads;
}

static int64_t svg2__attention_most_items(const svg2_attention_desc *d)
{
    const int64_t blocks = d->query_blocks ? d->query_blocks : 1;
    return svg2__attention_heads(d) * (((int64_t)d->tokens + SVG2__ROWS - 1) / SVG2__ROWS + blocks);
}

static size_t svg2__attention_layout(const svg2_backend *backend, const svg2_attention_desc *d, int is_mass,
                                     void *base, svg2__attention_task *t)
{
    svg2__arena a = SVG2_ZERO;
    const int64_t items = svg2__attention_most_items(d), heads = svg2__attention_heads(d);
    const int64_t kv_count = svg2__min64(heads, (int64_t)d->batch * d->heads_kv); /* that these heads can need */
    const int32_t key_blocks = d->key_blocks ? d->key_blocks : 1;
    const int32_t tail4 = !is_mass && d->tail_query_blocks > 0 && svg2__loops_of(backend)->mk16
                              ? svg2__round_up(d->tail_key_blocks, 4) : 0;
    const size_t scratch_bytes = svg2__attention_scratch_layout(backend, d, is_mass, 0, 0);
    const size_t pairs = svg2__count(kv_count, tail4, d->head_dim / 2, 1);
    svg2__attention_task w;
    memset(&w, 0, sizeof w);
    a.base = (char *)base;
    w.items = (const svg2__attention_item *)svg2__take(&a, sizeof(svg2__attention_item), (size_t)items);
    w.scratch = (float *)svg2__take(&a, scratch_bytes, svg2__workers(backend));
    w.partial = svg2__take_f32(&a, is_mass ? svg2__count(items, key_blocks, 1, 1) : 0);
    w.pairs = (int64_t *)svg2__take(&a, sizeof(int64_t), !is_mass && d->skip ? (size_t)items : 0);
    w.key16 = (uint32_t *)svg2__take(&a, sizeof(uint32_t), pairs);
    w.value16 = (uint32_t *)svg2__take(&a, sizeof(uint32_t), pairs);
    if (t) {
        t->items = w.items;
        t->scratch = w.scratch;
        t->scratch_floats = scratch_bytes / sizeof(float);
        t->partial = w.partial;
        t->pairs = w.pairs;
        t->key16 = w.key16;
        t->value16 = w.value16;
        t->kv_count = kv_count;
        t->tail4 = tail4;
    }
    return a.used;
}

/* The list of work items; returns their number. */
static int64_t svg2__attention_plan(svg2__attention_task *t, void *workspace)
{
    const svg2_attention_desc *d = t->d;
    svg2__attention_item *item = (svg2__attention_item *)workspace;
    int64_t bh, n = 0;
    int32_t i, r;
    for (bh = d->head_begin; bh < d->head_begin + svg2__attention_heads(d); ++bh) {
        const int32_t *offset = d->query_offset ? d->query_offset + bh * ((int64_t)t->query_blocks + 1) : 0;
        for (i = 0; i < t->query_blocks; ++i) {
            const int32_t begin = offset ? offset[i] : 0, end = offset ? offset[i + 1] : d->tokens;
            for (r = begin; r < end; r += svg2__min32(SVG2__ROWS, end - r), ++n) {
                item[n].bh = bh;
                item[n].block = i;
                item[n].first = r;
                item[n].count = svg2__min32(SVG2__ROWS, end - r);
                item[n].unused = 0;
            }
        }
    }
    return n;
}

static int32_t svg2__query_token(const svg2__attention_task *t, const svg2__attention_item *item, int32_t r)
{
    return t->d->query_order ? t->d->query_order[item->bh * t->d->tokens + item->first + r] : item->first + r;
}

/* Rows of the item into query [units][D][64], scaled so that exp2 of the product is the weight. */
static void svg2__attention_load_queries(const svg2__attention_task *t, const svg2__attention_item *item,
                                         svg2__attention_scratch *s)
{
    const int32_t dim = t->d->head_dim;
    const int64_t b = item->bh / t->d->heads, h = item->bh % t->d->heads;
    const float scale = t->d->scale * 1.44269504f; /* log2(e) */
    int32_t r, i, d;
    for (r = 0; r < svg2__round_up(item->count, 16); r += 4) {
        for (i = 0; i < 4; ++i) {
            float *row = s->rows + i * dim;
            if (r + i >= item->count) {
                memset(row, 0, (size_t)dim * sizeof(float));
                continue;
            }
            t->loops->load(row, svg2__row(t->d->q, &t->q, b, h, svg2__query_token(t, item, r + i)), t->q.dtype, 0,
                           dim);
            for (d = 0; d < dim; ++d) row[d] *= scale;
        }
        t->loops->pack4(s->query + (size_t)(r / SVG2__LANES) * (size_t)dim * SVG2__LANES + r % SVG2__LANES,
                        SVG2__LANES, s->rows, dim, dim);
    }
}

/* Pack n keys (4-rounded with zeros) from rows given by index: tokens of k, or rows of a table of centroids. */
static void svg2__attention_load_keys(const svg2__attention_task *t, int64_t kv, const float *table,
                                      const int32_t *index, int32_t n, svg2__attention_scratch *s)
{
    const int32_t dim = t->d->head_dim;
    const int64_t b = kv / t->d->heads_kv, h = kv % t->d->heads_kv;
    const float *shift = t->d->key_mean ? t->d->key_mean + kv * dim : 0;
    int32_t key, i;
    for (key = 0; key < n; key += 4) {
        for (i = 0; i < 4; ++i) {
            float *row = s->rows + i * dim;
            if (key + i >= n) memset(row, 0, (size_t)dim * sizeof(float));
            else if (table)
                t->loops->load(row, table + (size_t)index[key + i] * (size_t)dim, SVG2_F32, shift, dim);
            else t->loops->load(row, svg2__row(t->d->k, &t->k, b, h, index[key + i]), t->k.dtype, shift, dim);
        }
        t->loops->pack4(s->key + (size_t)key * (size_t)dim, 4, s->rows, dim, dim);
    }
}

static void svg2__attention_load_values(const svg2__attention_task *t, int64_t kv, const float *table,
                                        const int32_t *index, int32_t n, svg2__attention_scratch *s)
{
    const int32_t dim = t->d->head_dim;
    const int64_t b = kv / t->d->heads_kv, h = kv % t->d->heads_kv;
    int32_t key;
    for (key = 0; key < n; ++key) {
        float *value = s->value + (size_t)key * (size_t)(dim + 16);
        if (table) memcpy(value, table + (size_t)index[key] * (size_t)dim, (size_t)dim * sizeof(float));
        else t->loops->load(value, svg2__row(t->d->v, &t->v, b, h, index[key]), t->v.dtype, 0, dim);
    }
}

/* Rows of the next tile, asked for bit by bit between the products of this one: waiting for them one by one
   costs more than loading them. */
typedef struct svg2__attention_ahead {
    const int32_t *index;
    int32_t rows, done; /* rows: keys, then values */
    int32_t calls, call; /* products of this tile  */
} svg2__attention_ahead;

SVG2__INLINE void svg2__attention_prefetch(const svg2__attention_task *t, int64_t kv,
                                           svg2__attention_ahead *ahead)
{
    const int32_t until = (int32_t)((int64_t)ahead->rows * ++ahead->call / ahead->calls);
    for (; ahead->done < until; ++ahead->done) {
        const int32_t is_value = ahead->done >= ahead->rows / 2;
        const svg2_layout *layout = is_value ? &t->v : &t->k;
        svg2__prefetch(svg2__row(is_value ? t->d->v : t->d->k, layout, kv / t->d->heads_kv, kv % t->d->heads_kv,
                                 ahead->index[is_value ? ahead->done - ahead->rows / 2 : ahead->done]),
                       layout, t->d->head_dim);
    }
}

/* One tile of n keys (index: tokens, or clusters of virtual keys) against all units of the item; nexts tokens
   follow. */
static void svg2__attention_tile(const svg2__attention_task *t, const svg2__attention_item *item, int64_t kv,
                                 int is_tail, const int32_t *index, int32_t n, int32_t nexts,
                                 svg2__attention_scratch *s)
{
    const int32_t dim = t->d->head_dim, ld = dim + 16;
    const float *centroids =
        is_tail ? t->d->key_centroid + (size_t)kv * (size_t)t->d->tail_key_blocks * (size_t)dim : 0;
    const float *values = is_tail ? t->d->value_mean + (size_t)kv * (size_t)t->d->tail_key_blocks * (size_t)dim
                                  : 0;
    int32_t key, d, unit;
    svg2__attention_ahead ahead;
    ahead.index = index + n;
    ahead.rows = 2 * nexts;
    ahead.done = ahead.call = 0;
    ahead.calls = (item->count + SVG2__LANES - 1) / SVG2__LANES * ((n + 3) / 4 + dim / 4);
    svg2__attention_load_keys(t, kv, centroids, index, n, s);
    svg2__attention_load_values(t, kv, values, index, n, s);
    for (unit = 0; unit * SVG2__LANES < item->count; ++unit) {
        const int nv = (svg2__min32(SVG2__LANES, item->count - unit * SVG2__LANES) + 15) / 16;
        const float *query = s->query + (size_t)unit * (size_t)dim * SVG2__LANES;
        float *output = s->output + (size_t)unit * (size_t)dim * SVG2__LANES,
              *tail = s->tail + unit * SVG2__LANES;
        float *l = s->l + unit * SVG2__LANES, before[SVG2__LANES];
        int lane, changed;
        for (key = 0; key < n; key += 4) {
            svg2__attention_prefetch(t, kv, &ahead);
            t->loops->mk(nv, dim, s->key + (size_t)key * (size_t)dim, 4, query, SVG2__LANES,
                         s->p + key * SVG2__LANES, SVG2__LANES, 0);
        }
        memcpy(before, l, sizeof before);
        changed = t->loops->softmax(s->p, n, nv, is_tail ? s->bias : 0, s->m + unit * SVG2__LANES, l, s->alpha);
        if (changed) t->loops->rescale(output, dim, nv, s->alpha);
        if (is_tail) /* what this tile added to l is the tail's */
            for (lane = 0; lane < 16 * nv; ++lane)
                tail[lane] = tail[lane] * s->alpha[lane] + (l[lane] - before[lane] * s->alpha[lane]);
        for (d = 0; d < dim; d += 4) {
            svg2__attention_prefetch(t, kv, &ahead);
            t->loops->mk(nv, n, s->value + d, ld, s->p, SVG2__LANES, output + d * SVG2__LANES, SVG2__LANES, 1);
        }
    }
}

/* ---- skip rules ----
   Row i has seen tiles whose largest logit was m and whose weights sum to l, in units of e^m; tile j has n keys,
   largest logit t and sum of weights u, in the same units. It is left out if for every row of the unit

     constant   e^(t-m) < skip_threshold
     energy     e^(t-m) < e^energy_lambda * l
     recall     lost + u <= rho * l  and  u <= 16 * rho * l / T      rho = (1-R)/R,  T tiles in all;  lost += u then

   With an estimate of the row's LSE, l of the last two is at least e^(LSE - 0.25 - m) (times R in rho * l).

   Recall is never less than R. Measure everything in fixed units: what a row keeps, E = l e^m, never falls, and what
   it has lost, M = lost e^m, grows only when a tile is left out, at which moment M <= rho E. E can only grow
   afterwards, so M <= rho E at the end, and recall = E / (E + M) >= 1 / (1 + rho) = R. The order of tiles does not
   matter, nor whether other rows wanted the tile. u is the exact sum: the bound n e^(t-m), which would save its
   exponentials, overstates it several times (a head of examples/wan, 4,096 tokens, R = 0.95: 11 % of the products
   left out, not 43 %). rho is taken 0.1 % smaller than that: the sums are rounded.
   The second condition spreads what may be lost over the tiles: without it the first few heavy ones take all of it
   (63 % computed, not 57 %; 16 was the best of 2, 4, 8, 16, 32). */

/* Whether all rows of a unit agree. p: base-2 logits of n keys; becomes weights under SKIP_RECALL, and then m, l, lost
   and alpha are those after the tile, kept or left out. */
static int svg2__attention_leaves_out(const svg2__attention_task *t, float *p, int32_t n, int32_t rows, int32_t tiles,
                                      const float *seed, float *m, float *l, float *lost, float *alpha, int *changed)
{
    const svg2_attention_desc *d = t->d;
    const int nv = (rows + 15) / 16;
    float top[SVG2__LANES], sum[SVG2__LANES], next[SVG2__LANES];
    const float part = d->skip == SVG2_SKIP_ENERGY ? expf(d->energy_lambda) : d->skip_threshold;
    int lane, leaves_out = 1;
    if (d->skip == SVG2_SKIP_RECALL) {
        const float rho = (1.0f - d->recall) / d->recall * 0.999f, most = 16.0f / (float)tiles;
        memcpy(next, m, sizeof next);
        memset(sum, 0, sizeof sum);
        *changed = t->loops->softmax(p, n, nv, 0, next, sum, alpha);
        for (lane = 0; lane < rows; ++lane) {
            const float hint = d->recall * (seed[lane] == -INFINITY ? 0.0f : exp2f(seed[lane] - next[lane]));
            const float kept = l[lane] * alpha[lane], limit = rho * (kept > hint ? kept : hint);
            /* not <= : a NaN stays. alpha: sums that all but vanish beside the tile are not worth an account */
            if (!(sum[lane] <= most * limit && lost[lane] * alpha[lane] + sum[lane] <= limit && alpha[lane] > 1e-6f))
                leaves_out = 0;
        }
        for (lane = 0; lane < 16 * nv; ++lane) {
            if (leaves_out) {
                lost[lane] += sum[lane] / alpha[lane];
            } else {
                m[lane] = next[lane];
                l[lane] = l[lane] * alpha[lane] + sum[lane];
                lost[lane] *= alpha[lane];
            }
        }
        return leaves_out;
    }
    t->loops->peak(p, n, nv, top);
    for (lane = 0; lane < rows; ++lane) {
        float limit = part;
        if (d->skip == SVG2_SKIP_ENERGY) {
            const float hint = seed[lane] == -INFINITY ? 0.0f : exp2f(seed[lane] - m[lane]);
            limit *= l[lane] > hint ? l[lane] : hint;
        }
        if (!(exp2f(top[lane] - m[lane]) < limit)) return 0; /* not >= : a NaN stays, and so does an Inf */
    }
    return 1;
}

/* One tile of n keys against all units; each leaves it out or not. next: the tokens of the next tile, nexts of
   them. Returns the pairs that were multiplied with V. */
static int64_t svg2__attention_skip_tile(const svg2__attention_task *t, const svg2__attention_item *item, int64_t kv,
                                         const int32_t *index, int32_t n, const int32_t *next, int32_t nexts,
                                         int32_t tiles, svg2__attention_scratch *s)
{
    const int32_t dim = t->d->head_dim, ld = dim + 16;
    int32_t key, d, unit, has_values = 0;
    int64_t pairs = 0;
    svg2__attention_ahead ahead;
    ahead.index = next; /* values, too: some unit may need them */
    ahead.rows = 2 * nexts;
    ahead.done = ahead.call = 0;
    ahead.calls = (item->count + SVG2__LANES - 1) / SVG2__LANES * ((n + 3) / 4);
    svg2__attention_load_keys(t, kv, 0, index, n, s);
    for (unit = 0; unit * SVG2__LANES < item->count; ++unit) {
        const int32_t rows = svg2__min32(SVG2__LANES, item->count - unit * SVG2__LANES), at = unit * SVG2__LANES;
        const int nv = (rows + 15) / 16;
        const float *query = s->query + (size_t)at * (size_t)dim;
        float *output = s->output + (size_t)at * (size_t)dim;
        int changed = 0;
        for (key = 0; key < n; key += 4) {
            svg2__attention_prefetch(t, kv, &ahead);
            t->loops->mk(nv, dim, s->key + (size_t)key * (size_t)dim, 4, query, SVG2__LANES, s->p + key * SVG2__LANES,
                         SVG2__LANES, 0);
        }
        if (svg2__attention_leaves_out(t, s->p, n, rows, tiles, s->seed + at, s->m + at, s->l + at, s->lost + at,
                                       s->alpha, &changed))
            continue;
        if (t->d->skip != SVG2_SKIP_RECALL) changed = t->loops->softmax(s->p, n, nv, 0, s->m + at, s->l + at, s->alpha);
        if (changed) t->loops->rescale(output, dim, nv, s->alpha);
        if (!has_values) svg2__attention_load_values(t, kv, 0, index, n, s), has_values = 1;
        for (d = 0; d < dim; d += 4)
            t->loops->mk(nv, n, s->value + d, ld, s->p, SVG2__LANES, output + d * SVG2__LANES, SVG2__LANES, 1);
        pairs += (int64_t)rows * n;
    }
    return pairs;
}

/* All listed keys of an item, n of them, under a skip rule. */
static int64_t svg2__attention_skip(const svg2__attention_task *t, const svg2__attention_item *item, int64_t kv,
                                    int32_t n, const double *shift_logit, svg2__attention_scratch *s)
{
    const int32_t tiles = (n + SVG2__SKIP_KEYS - 1) / SVG2__SKIP_KEYS;
    int64_t pairs = 0;
    int32_t i, r, tile = 0, below, above;
    for (r = 0; r < SVG2__ROWS; ++r) {
        const float *lse = r < item->count ? t->d->lse_seed : 0;
        s->lost[r] = 0.0f;
        s->seed[r] = -INFINITY;
        if (lse)
            s->seed[r] =
                (float)(((double)lse[item->bh * t->d->tokens + svg2__query_token(t, item, r)] - 0.25 - shift_logit[r]) *
                        1.4426950408889634);
    }
    if (t->d->visit == SVG2_VISIT_DIAGONAL && tiles)
        tile = (int32_t)(((int64_t)item->first + item->count / 2) * tiles / t->d->tokens);
    below = tile - 1, above = tile + 1;
    for (i = 0; i < tiles; ++i) {
        const int32_t at = tile * SVG2__SKIP_KEYS;
        int32_t next;
        /* the nearer side next; equally near: the later one */
        tile = below < 0 || (above < tiles && i % 2 == 0) ? above++ : below--;
        next = i + 1 < tiles ? tile * SVG2__SKIP_KEYS : n;
        pairs += svg2__attention_skip_tile(t, item, kv, s->token + at, svg2__min32(SVG2__SKIP_KEYS, n - at),
                                           s->token + next, svg2__min32(SVG2__SKIP_KEYS, n - next), tiles, s);
    }
    return pairs;
}

/* o += (tail weight) * s * A^T q, before the division by l */
static void svg2__attention_first_order(const svg2__attention_task *t, const svg2__attention_item *item,
                                        const float *matrix, svg2__attention_scratch *s)
{
    const int32_t dim = t->d->head_dim;
    int32_t unit, e, d;
    for (unit = 0; unit * SVG2__LANES < item->count; ++unit) {
        const int nv = (svg2__min32(SVG2__LANES, item->count - unit * SVG2__LANES) + 15) / 16;
        float *query = s->query + (size_t)unit * (size_t)dim * SVG2__LANES, *tail = s->tail + unit * SVG2__LANES;
        float *output = s->output + (size_t)unit * (size_t)dim * SVG2__LANES;
        int lane;
        for (lane = 0; lane < 16 * nv; ++lane) tail[lane] *= 0.693147181f; /* the query carries log2(e) */
        for (e = 0; e < dim; ++e)
            for (lane = 0; lane < 16 * nv; ++lane) query[e * SVG2__LANES + lane] *= tail[lane];
        for (d = 0; d < dim; d += 4)
            t->loops->mk(nv, dim, matrix + d, dim, query, SVG2__LANES, output + d * SVG2__LANES, SVG2__LANES, 1);
    }
}

static void svg2__attention_store(const svg2__attention_task *t, const svg2__attention_item *item,
                                  svg2__attention_scratch *s, const double *shift_logit)
{
    const int32_t dim = t->d->head_dim;
    const int64_t b = item->bh / t->d->heads, h = item->bh % t->d->heads;
    int32_t unit, r, d;
    for (unit = 0; unit * SVG2__LANES < item->count; ++unit) {
        const int32_t count = svg2__min32(SVG2__LANES, item->count - unit * SVG2__LANES),
                      lanes = svg2__round_up(count, 16);
        float *rows = s->key; /* [64][D]: the key tile is not needed any more */
        for (d = 0; d < dim; d += 4)
            t->loops->pack4(rows + d, dim, s->output + ((size_t)unit * (size_t)dim + (size_t)d) * SVG2__LANES,
                            SVG2__LANES, lanes);
        for (r = 0; r < count; ++r) {
            const int32_t at = unit * SVG2__LANES + r, token = svg2__query_token(t, item, at);
            const float l = s->l[at], inverse = l == 0.0f ? 0.0f : 1.0f / l;
            float *row = rows + (size_t)r * (size_t)dim;
            char *out = (char *)t->d->out + svg2__row_at(&t->out, b, h, token);
            for (d = 0; d < dim; ++d) row[d] *= inverse;
            if (t->out.dtype == SVG2_F32) memcpy(out, row, (size_t)dim * sizeof(float));
            else svg2_convert(out, t->out.dtype, row, SVG2_F32, (size_t)dim);
            if (t->d->lse) {
                double lse = l == 0.0f ? -INFINITY : ((double)s->m[at] + log2((double)l)) * 0.69314718055994531;
                if (l != 0.0f) lse += shift_logit[at];
                t->d->lse[item->bh * t->d->tokens + token] = (float)lse;
            }
        }
    }
}

/* scale * q.key_mean per row: what subtracting the mean took from the logits */
static void svg2__attention_shift(const svg2__attention_task *t, const svg2__attention_item *item, int64_t kv,
                                  const svg2__attention_scratch *s, double *shift_logit)
{
    const int32_t dim = t->d->head_dim;
    const float *mean = t->d->key_mean ? t->d->key_mean + kv * dim : 0;
    int32_t r, d;
    for (r = 0; r < item->count; ++r) {
        const float *query = s->query + (size_t)(r / SVG2__LANES) * (size_t)dim * SVG2__LANES + r % SVG2__LANES;
        double sum = 0.0;
        for (d = 0; d < dim && mean; ++d) sum += (double)query[d * SVG2__LANES] * (double)mean[d];
        shift_logit[r] = sum * 0.69314718055994531;
    }
}

/* ---- virtual keys by bf16 products ----
   Nine virtual keys in ten are the same for all query blocks of a head, so they are packed once, all of them; a block
   that is computed exactly takes its virtual key out by its bias. Measured on Zen 4: 13 % of a sparse call at 10 %
   density; relative L2 error 0.04413 becomes 0.04414. */
/* item = (kv head, group of four virtual keys) */
static void svg2__attention_pack16(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__attention_task *t = (const svg2__attention_task *)task;
    const svg2_attention_desc *d = t->d;
    const int32_t dim = d->head_dim, groups = t->tail4 / 4;
    (void)worker;
    for (; begin < end; ++begin) {
        const int64_t kv = t->kv_begin + begin / groups;
        const int32_t first = (int32_t)(begin % groups) * 4;
        const float *shift = d->key_mean ? d->key_mean + kv * dim : 0;
        const int32_t *offset = d->key_offset + kv * ((int64_t)t->key_blocks + 1) + first;
        uint32_t *key = t->key16 + (size_t)begin * (size_t)(dim / 2) * 4;
        uint32_t *value = t->value16 + (size_t)(kv - t->kv_begin) * (size_t)t->tail4 * (size_t)(dim / 2);
        uint32_t k, v[4];
        int32_t e, i;
        for (e = 0; e < dim; ++e) {
            for (i = 0; i < 4; ++i) {
                const int valid = first + i < d->tail_key_blocks && offset[i + 1] > offset[i];
                const size_t at = ((size_t)kv * (size_t)d->tail_key_blocks + (size_t)(first + i)) * (size_t)dim + (size_t)e;
                k = valid ? svg2__f32_to_bf16(d->key_centroid[at] - (shift ? shift[e] : 0.0f)) : 0u;
                v[i] = valid ? svg2__f32_to_bf16(d->value_mean[at]) : 0u;
                key[e / 2 * 4 + i] = e % 2 ? key[e / 2 * 4 + i] | k << 16 : k;
            }
            for (i = 0; i < 2; ++i)
                value[((size_t)(e / 4) * (size_t)(t->tail4 / 2) + (size_t)(first / 2 + i)) * 4 + (size_t)(e % 4)] =
                    v[2 * i] | v[2 * i + 1] << 16;
        }
    }
}

/* Virtual keys first .. first+n against all units; s->bias holds their log mass, or next to nothing. */
static void svg2__attention_tile16(const svg2__attention_task *t, const svg2__attention_item *item, int64_t kv,
                                   int32_t first, int32_t n, svg2__attention_scratch *s)
{
    const int32_t dim = t->d->head_dim;
    const uint32_t *keys = t->key16 + ((size_t)(kv - t->kv_begin) * (size_t)t->tail4 + (size_t)first) * (size_t)(dim / 2);
    const uint32_t *values = t->value16 + (size_t)(kv - t->kv_begin) * (size_t)t->tail4 * (size_t)(dim / 2)
                             + (size_t)(first / 2) * 4;
    float lengths[3][SVG2__LANES]; /* not needed here */
    int32_t key, e, unit;
    for (unit = 0; unit * SVG2__LANES < item->count; ++unit) {
        const int nv = (svg2__min32(SVG2__LANES, item->count - unit * SVG2__LANES) + 15) / 16;
        const uint32_t *query = s->query16 + (size_t)unit * (size_t)(dim / 2) * SVG2__LANES;
        float *output = s->output + (size_t)unit * (size_t)dim * SVG2__LANES, *tail = s->tail + unit * SVG2__LANES;
        float *l = s->l + unit * SVG2__LANES, before[SVG2__LANES];
        int lane;
        for (key = 0; key < n; key += 4)
            t->loops->mk16(nv, dim / 2, keys + (size_t)key * (size_t)(dim / 2), query, s->bias + key,
                           s->p + key * SVG2__LANES, 0);
        memcpy(before, l, sizeof before);
        if (t->loops->softmax(s->p, n, nv, 0, s->m + unit * SVG2__LANES, l, s->alpha))
            t->loops->rescale(output, dim, nv, s->alpha);
        for (lane = 0; lane < 16 * nv; ++lane)
            tail[lane] = tail[lane] * s->alpha[lane] + (l[lane] - before[lane] * s->alpha[lane]);
        t->loops->pairs(s->p16, s->p, n, nv, lengths[0], lengths[1], lengths[2]);
        for (e = 0; e < dim; e += 4)
            t->loops->mk16(nv, n / 2, values + (size_t)(e / 4) * (size_t)(t->tail4 / 2) * 4, s->p16, 0,
                           output + e * SVG2__LANES, 0);
    }
}

/* All virtual keys of the item; returns whether there was one. */
static int svg2__attention_tail16(const svg2__attention_task *t, const svg2__attention_item *item, int64_t kv,
                                  const uint8_t *map, const int32_t *key_offset, const float *log_mass,
                                  svg2__attention_scratch *s)
{
    const int32_t dim = t->d->head_dim;
    float lengths[3][SVG2__LANES];
    int32_t at, j, unit;
    int any = 0;
    for (unit = 0; unit * SVG2__LANES < item->count; ++unit)
        t->loops->pairs(s->query16 + (size_t)unit * (size_t)(dim / 2) * SVG2__LANES,
                        s->query + (size_t)unit * (size_t)dim * SVG2__LANES, dim,
                        (svg2__min32(SVG2__LANES, item->count - unit * SVG2__LANES) + 15) / 16, lengths[0], lengths[1],
                        lengths[2]);
    for (at = 0; at < t->tail4; at += SVG2__KEYS) {
        const int32_t n = svg2__min32(SVG2__KEYS, t->tail4 - at);
        int some = 0;
        for (j = at; j < at + n; ++j) {
            const int32_t size = j < t->d->tail_key_blocks ? key_offset[j + 1] - key_offset[j] : 0;
            if (size && !map[j]) {
                s->bias[j - at] = log_mass ? log_mass[j] * 1.44269504f : (float)log2((double)size);
                some = 1;
            } else {
                s->bias[j - at] = -1e30f; /* exp2 gives 0 beside any real key, and one is in the tile */
            }
        }
        if (some) svg2__attention_tile16(t, item, kv, at, n, s);
        any |= some;
    }
    return any;
}

static void svg2__attention_items(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__attention_task *t = (const svg2__attention_task *)task;
    const svg2_attention_desc *d = t->d;
    double shift_logit[SVG2__ROWS];
    svg2__attention_scratch s;
    (void)svg2__attention_scratch_layout(t->backend, d, 0, t->scratch + (size_t)worker * t->scratch_floats, &s);
    for (; begin < end; ++begin) {
        const svg2__attention_item *item = t->items + begin;
        const int64_t kv = svg2__kv_head(item->bh, d->heads, d->heads_kv);
        const int32_t *key_offset = d->key_offset ? d->key_offset + kv * ((int64_t)t->key_blocks + 1) : 0;
        const int32_t *key_order = d->key_order ? d->key_order + kv * d->tokens_kv : 0;
        const uint8_t *map = d->map ? d->map
                                          + ((size_t)item->bh * (size_t)t->query_blocks + (size_t)item->block)
                                                * (size_t)t->key_blocks
                                    : 0;
        const int has_tail = item->block < d->tail_query_blocks && map && key_offset;
        const float *log_mass =
            has_tail && d->log_mass ? d->log_mass
                                          + ((size_t)item->bh * (size_t)d->tail_query_blocks + (size_t)item->block)
                                                * (size_t)d->tail_key_blocks
                                    : 0;
        int32_t j, n = 0, at, had_tail = 0;
        int r;
        svg2__attention_load_queries(t, item, &s);
        svg2__attention_shift(t, item, kv, &s, shift_logit);
        memset(s.output, 0,
               (size_t)svg2__round_up(item->count, SVG2__LANES) * (size_t)d->head_dim * sizeof(float));
        for (r = 0; r < SVG2__ROWS; ++r) s.m[r] = -INFINITY, s.l[r] = s.tail[r] = 0.0f;
        for (j = 0; j < t->key_blocks; ++j) { /* the block's keys, one list */
            const int32_t first = key_offset ? key_offset[j] : 0,
                          count = (key_offset ? key_offset[j + 1] : d->tokens_kv) - first;
            if (map && !map[j]) continue;
            if (key_order) memcpy(s.token + n, key_order + first, (size_t)count * sizeof(int32_t));
            else for (at = 0; at < count; ++at) s.token[n + at] = first + at;
            n += count;
            SVG2_ASSERT(n <= d->tokens_kv);
        }
        if (d->skip) t->pairs[begin] = svg2__attention_skip(t, item, kv, n, shift_logit, &s);
        for (at = 0; at < n && !d->skip; at += SVG2__KEYS) {
            const int32_t keys = svg2__min32(SVG2__KEYS, n - at), nexts = svg2__min32(SVG2__KEYS, n - at - keys);
            svg2__attention_tile(t, item, kv, 0, s.token + at, keys, nexts, &s);
        }
        if (has_tail) {
            if (t->tail4) {
                had_tail = svg2__attention_tail16(t, item, kv, map, key_offset, log_mass, &s);
            } else {
                for (j = n = 0; j < d->tail_key_blocks; ++j) {
                    if (map[j] || key_offset[j + 1] == key_offset[j]) continue;
                    had_tail = 1;
                    s.bias[n] = log_mass ? log_mass[j] * 1.44269504f
                                         : (float)log2((double)(key_offset[j + 1] - key_offset[j]));
                    s.cluster[n++] = j;
                    if (n == SVG2__KEYS) svg2__attention_tile(t, item, kv, 1, s.cluster, n, 0, &s), n = 0;
                }
                if (n) svg2__attention_tile(t, item, kv, 1, s.cluster, n, 0, &s);
            }
            if (had_tail && d->tail_matrix)
                svg2__attention_first_order(
                    t, item,
                    d->tail_matrix
                        + ((size_t)(item->bh - d->head_begin) * (size_t)d->tail_query_blocks
                           + (size_t)item->block)
                              * (size_t)d->head_dim * (size_t)d->head_dim,
                    &s);
        }
        svg2__attention_store(t, item, &s, shift_logit);
    }
}

static void svg2__attention_task_init(svg2__attention_task *t, const svg2_backend *backend,
                                      const svg2_attention_desc *d, int is_mass, void *workspace)
{
    memset(t, 0, sizeof *t);
    t->backend = backend;
    t->loops = svg2__loops_of(backend);
    t->d = d;
    t->query_blocks = d->query_blocks ? d->query_blocks : 1;
    t->key_blocks = d->key_blocks ? d->key_blocks : 1;
    t->q = svg2__layout(d->q_layout, d->heads, d->tokens, d->head_dim);
    t->k = svg2__layout(d->k_layout, d->heads_kv, d->tokens_kv, d->head_dim);
    t->v = svg2__layout(d->v_layout, d->heads_kv, d->tokens_kv, d->head_dim);
    t->out = svg2__layout(d->out_layout, d->heads, d->tokens, d->head_dim);
    (void)svg2__attention_layout(backend, d, is_mass, workspace, t);
    t->kv_begin = svg2__kv_head(d->head_begin, d->heads, d->heads_kv);
    t->kv_count = svg2__kv_head(d->head_begin + svg2__attention_heads(d) - 1, d->heads, d->heads_kv) - t->kv_begin + 1;
}

static svg2_result svg2__cpu_attention(const svg2_backend *backend, const svg2_attention_desc *d, void *workspace,
                                       svg2_error *err)
{
    svg2__attention_task t;
    int64_t items;
    svg2__attention_task_init(&t, backend, d, 0, workspace);
    if (t.tail4) svg2__run(backend, svg2__attention_pack16, &t, t.kv_count * (t.tail4 / 4), 16);
    items = svg2__attention_plan(&t, workspace);
    svg2__run(backend, svg2__attention_items, &t, items, 1);
    if (d->skip && d->stats) {
        int64_t i;
        for (i = 0; i < svg2__attention_heads(d); ++i) d->stats[d->head_begin + i].pairs_pv = 0;
        for (i = 0; i < items; ++i) d->stats[t.items[i].bh].pairs_pv += t.pairs[i];
        for (i = d->head_begin; i < d->head_begin + svg2__attention_heads(d); ++i) {
            svg2_head_stats *h = &d->stats[i];
            h->density_pv = h->pairs_total ? (float)((double)h->pairs_pv / (double)h->pairs_total) : 0.0f;
        }
    }
    return svg2__ok(err);
}

static svg2_result svg2__check_skip(svg2_skip skip, float threshold, float lambda, float recall, svg2_error *err)
{
    SVG2__CHECK(skip >= SVG2_SKIP_NONE && skip <= SVG2_SKIP_RECALL, SVG2_ERR_RANGE, "skip",
                "must be none, constant, energy or recall");
    SVG2__CHECK(skip != SVG2_SKIP_CONSTANT || (threshold > 0.0f && threshold <= 1.0f), SVG2_ERR_RANGE, "skip_threshold",
                "must be in (0, 1]");
    SVG2__CHECK(skip != SVG2_SKIP_ENERGY || (lambda < 0.0f && lambda >= -3.0e38f), SVG2_ERR_RANGE, "energy_lambda",
                "must be negative");
    SVG2__CHECK(skip != SVG2_SKIP_RECALL || (recall > 0.0f && recall <= 1.0f), SVG2_ERR_RANGE, "recall",
                "must be in (0, 1]");
    return SVG2_OK;
}

static svg2_result svg2__check_attention(const svg2_attention_desc *d, int is_mass, svg2_error *err)
{
    SVG2__NOT_NULL(d, "desc");
    SVG2__TRY(svg2__check_extents(d->batch, d->heads, d->tokens, d->head_dim, err));
    SVG2__TRY(svg2__check_heads_kv(d->heads, d->heads_kv, err));
    SVG2__TRY(svg2__check_tokens(d->tokens_kv, "tokens_kv", err));
    SVG2__CHECK(d->head_begin >= 0 && d->head_count >= 0
                    && d->head_begin <= (int64_t)d->batch * d->heads - svg2__attention_heads(d),
                SVG2_ERR_RANGE, "head_count", "head_begin and head_count must name heads in [0, batch*heads)");
    SVG2__CHECK(fabsf(d->scale) <= 3.0e38f, SVG2_ERR_RANGE, "scale", "must be finite");
    SVG2__CHECK(d->query_blocks >= 0, SVG2_ERR_RANGE, "query_blocks", "must not be negative");
    SVG2__CHECK(d->key_blocks >= 0, SVG2_ERR_RANGE, "key_blocks", "must not be negative");
    SVG2__CHECK(d->query_blocks <= 1 || d->query_offset, SVG2_ERR_NULL, "query_offset",
                "is needed for several blocks");
    SVG2__CHECK(d->key_blocks <= 1 || d->key_offset, SVG2_ERR_NULL, "key_offset", "is needed for several blocks");
    SVG2__TRY(svg2__check_layout(d->q_layout, d->batch, d->heads, d->tokens, d->head_dim, 0, "q", err));
    SVG2__TRY(svg2__check_layout(d->k_layout, d->batch, d->heads_kv, d->tokens_kv, d->head_dim, 0, "k", err));
    SVG2__TRY(svg2__check_tensor(d->q, d->q_layout, "q", err));
    SVG2__TRY(svg2__check_tensor(d->k, d->k_layout, "k", err));
    if (is_mass) return SVG2_OK;
    SVG2__TRY(svg2__check_layout(d->v_layout, d->batch, d->heads_kv, d->tokens_kv, d->head_dim, 0, "v", err));
    SVG2__TRY(svg2__check_layout(d->out_layout, d->batch, d->heads, d->tokens, d->head_dim, 1, "out", err));
    SVG2__TRY(svg2__check_tensor(d->v, d->v_layout, "v", err));
    SVG2__TRY(svg2__check_tensor(d->out, d->out_layout, "out", err));
    SVG2__CHECK(d->out != d->q && d->out != d->k && d->out != d->v, SVG2_ERR_SHAPE, "out",
                "must not overlap an input");
    SVG2__CHECK(d->tail_query_blocks >= 0 && d->tail_query_blocks <= (d->query_blocks ? d->query_blocks : 1),
                SVG2_ERR_RANGE, "tail_query_blocks", "must be between 0 and query_blocks");
    SVG2__CHECK(d->tail_key_blocks >= 0 && d->tail_key_blocks <= (d->key_blocks ? d->key_blocks : 1),
                SVG2_ERR_RANGE, "tail_key_blocks", "must be between 0 and key_blocks");
    if (d->tail_query_blocks > 0 && d->tail_key_blocks > 0) {
        SVG2__NOT_NULL(d->map, "map");
        SVG2__NOT_NULL(d->key_offset, "key_offset");
        SVG2__NOT_NULL(d->key_centroid, "key_centroid");
        SVG2__NOT_NULL(d->value_mean, "value_mean");
    }
    SVG2__CHECK(d->visit >= SVG2_VISIT_DEFAULT && d->visit <= SVG2_VISIT_DIAGONAL, SVG2_ERR_RANGE, "visit",
                "must be natural or diagonal");
    return svg2__check_skip(d->skip, d->skip_threshold, d->energy_lambda, d->recall, err);
}

SVG2_API svg2_result svg2_attention(const svg2_backend *backend, const svg2_attention_desc *desc, void *workspace,
                                    size_t workspace_bytes, svg2_error *err)
{
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__TRY(svg2__check_attention(desc, 0, err));
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_ATTENTION, desc, workspace, workspace_bytes, err));
    return backend->attention(backend, desc, workspace, err);
}

/* ---- matrices of the order-1 tail ----
   A_I = sum_j W_Ij C'_j with C'_j = n_j C_j and W_Ij = w_Ij / (n_j sum_j w_Ij): one product [Cq, Ck] x [Ck,
   D*D], made in panels of 16 rows (key dimensions) of the C'_j, which keeps the C'_j of a panel in the cache and
   the workspace small. */
typedef struct svg2__tail_ws {
    float   *key_panel; /* [head_count, panels, D, 64]                                             */
    float   *weight;    /* [head_count, Cq4/4, Ck, 4]  W, columns of active clusters only          */
    uint32_t *weight16; /* [head_count, Cq4/4, Ck2/2, 4]  as bf16 pairs, where there are such products */
    int32_t *active;    /* [head_count, Ck]            clusters of two or more tokens that somebody skips */
    int32_t *actives;   /* [head_count]                                                            */
    char    *scratch;   /* [workers, scratch_bytes]                                                */
    size_t   scratch_bytes;
} svg2__tail_ws;

typedef struct svg2__tail_scratch {
    float *moment; /* [16 * chunks, Ck, 64]  C' of a panel: (key dimension, 64 value dimensions), cluster */
    float *key;    /* [128, 16]                                                                           */
    float *value;  /* [128, D16]                                                                          */
    float *strip;  /* [4, Ck64] logits; also [4, 64] results                                              */
    float *pack;   /* [8, D]                                                                              */
    uint32_t *pairs; /* [Ck2/2, 64]  a plane of moment as bf16 pairs                                      */
} svg2__tail_scratch;

typedef struct svg2__tail_task {
    const svg2__loops *loops;
    const svg2_tail_desc *d;
    svg2_layout k, v;
    svg2__tail_ws ws;
    int32_t panels, strips; /* of 64 key clusters; of 4 query clusters */
} svg2__tail_task;

static size_t svg2__tail_scratch_layout(const svg2_tail_desc *d, void *base, svg2__tail_scratch *s)
{
    svg2__arena a = SVG2_ZERO;
    const int64_t chunks = (d->head_dim + SVG2__LANES - 1) / SVG2__LANES;
    svg2__tail_scratch w;
    a.base = (char *)base;
    w.moment = svg2__take_f32(&a, svg2__count(SVG2__PANEL * chunks, d->key_clusters, SVG2__LANES, 1));
    w.key = svg2__take_f32(&a, SVG2__KEYS * SVG2__PANEL);
    w.value = svg2__take_f32(&a, SVG2__KEYS * ((size_t)d->head_dim + 8));
    w.strip = svg2__take_f32(&a, svg2__count(4, ((int64_t)d->key_clusters + 63) / 64 * 64, 1, 1));
    w.pack = svg2__take_f32(&a, 8 * (size_t)d->head_dim);
    w.pairs = (uint32_t *)svg2__take(&a, sizeof(uint32_t),
                                     svg2__count(((int64_t)d->key_clusters + 1) / 2, SVG2__LANES, 1, 1));
    if (s) *s = w;
    return a.used;
}

static size_t svg2__tail_layout(const svg2_backend *backend, const svg2_tail_desc *d, void *base,
                                svg2__tail_ws *ws)
{
    svg2__arena a = SVG2_ZERO;
    const int64_t panels = ((int64_t)d->key_clusters + 63) / 64, strips = ((int64_t)d->query_clusters + 3) / 4;
    svg2__tail_ws w;
    a.base = (char *)base;
    w.key_panel = svg2__take_f32(&a, svg2__count(d->head_count, panels, d->head_dim, SVG2__LANES));
    w.weight = svg2__take_f32(&a, svg2__count(d->head_count, strips, d->key_clusters, 4));
    w.weight16 = (uint32_t *)svg2__take(
        &a, sizeof(uint32_t),
        svg2__loops_of(backend)->mk16 ? svg2__count(d->head_count, strips, ((int64_t)d->key_clusters + 1) / 2, 4) : 0);
    w.active = svg2__take_i32(&a, svg2__count(d->head_count, d->key_clusters, 1, 1));
    w.actives = svg2__take_i32(&a, (size_t)d->head_count);
    w.scratch_bytes = svg2__tail_scratch_layout(d, 0, 0);
    w.scratch = (char *)svg2__take(&a, w.scratch_bytes, svg2__workers(backend));
    if (ws) *ws = w;
    return a.used;
}

/* item = head of the group: active clusters, key centroids in panels */
static void svg2__tail_prepare(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__tail_task *t = (const svg2__tail_task *)task;
    const svg2_tail_desc *d = t->d;
    const int32_t dim = d->head_dim, ck = d->key_clusters;
    svg2__tail_scratch s;
    (void)svg2__tail_scratch_layout(d, t->ws.scratch + (size_t)worker * t->ws.scratch_bytes, &s);
    for (; begin < end; ++begin) {
        const int64_t bh = d->head_begin + begin, kv = svg2__kv_head(bh, d->heads, d->heads_kv);
        const int32_t *key_offset = d->key_offset + kv * ((int64_t)d->key_blocks + 1);
        const uint8_t *map = d->map + (size_t)bh * (size_t)d->query_blocks * (size_t)d->key_blocks;
        int32_t *active = t->ws.active + begin * ck, n = 0, j, row, panel;
        for (j = 0; j < ck; ++j) {
            if (key_offset[j + 1] - key_offset[j] < 2) continue; /* one token has no spread */
            for (row = 0; row < d->query_clusters && map[(size_t)row * (size_t)d->key_blocks + (size_t)j];
                 ++row) {}
            if (row < d->query_clusters) active[n++] = j;
        }
        t->ws.actives[begin] = n;
        for (panel = 0; panel < t->panels; ++panel)
            svg2__pack_panel(
                t->loops,
                t->ws.key_panel + ((size_t)begin * (size_t)t->panels + (size_t)panel) * (size_t)dim * SVG2__LANES,
                s.pack, d->key_centroid + (size_t)kv * (size_t)ck * (size_t)dim, d->key_mean + kv * dim,
                panel * SVG2__LANES, ck, dim);
    }
}

/* item = (head of the group, strip of 4 query clusters): weights */
static void svg2__tail_weights(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__tail_task *t = (const svg2__tail_task *)task;
    const svg2_tail_desc *d = t->d;
    const int32_t dim = d->head_dim, ck = d->key_clusters, ck64 = t->panels * SVG2__LANES;
    svg2__tail_scratch s;
    (void)svg2__tail_scratch_layout(d, t->ws.scratch + (size_t)worker * t->ws.scratch_bytes, &s);
    for (; begin < end; ++begin) {
        const int64_t head = begin / t->strips, bh = d->head_begin + head,
                      kv = svg2__kv_head(bh, d->heads, d->heads_kv);
        const int32_t first = (int32_t)(begin % t->strips) * 4;
        const int32_t *key_offset = d->key_offset + kv * ((int64_t)d->key_blocks + 1),
                      *active = t->ws.active + head * ck;
        float *weight = t->ws.weight + (size_t)begin * (size_t)ck * 4;
        int32_t i, e, j, a, panel;
        for (i = 0; i < 4; ++i) {
            const float *q =
                d->query_centroid
                + ((size_t)bh * (size_t)d->query_clusters + (size_t)svg2__min32(first + i, d->query_clusters - 1))
                      * (size_t)dim;
            for (e = 0; e < dim; ++e) s.pack[(4 + i) * dim + e] = q[e] * d->scale;
        }
        t->loops->pack4(s.pack, 4, s.pack + 4 * dim, dim, dim);
        for (panel = 0; panel < t->panels; ++panel)
            t->loops->mk(4, dim, s.pack, 4,
                         t->ws.key_panel
                             + ((size_t)head * (size_t)t->panels + (size_t)panel) * (size_t)dim * SVG2__LANES,
                         SVG2__LANES, s.strip + panel * SVG2__LANES, ck64, 0);
        for (i = 0; i < 4; ++i) {
            const int32_t row = svg2__min32(first + i, d->query_clusters - 1);
            const uint8_t *map = d->map
                                 + ((size_t)bh * (size_t)d->query_blocks + (size_t)row) * (size_t)d->key_blocks;
            const float *log_mass =
                d->log_mass ? d->log_mass + ((size_t)bh * (size_t)d->query_clusters + (size_t)row) * (size_t)ck
                            : 0;
            float *logit = s.strip + i * ck64, top = -INFINITY;
            double sum = 0.0;
            for (j = 0; j < ck; ++j) {
                const int32_t n = key_offset[j + 1] - key_offset[j];
                if (map[j] || n == 0) continue;
                logit[j] += log_mass ? log_mass[j] : logf((float)n);
                if (logit[j] > top) top = logit[j];
            }
            for (j = 0; j < ck; ++j) /* single tokens count in the sum, with C = 0 */
                if (!map[j] && key_offset[j + 1] > key_offset[j])
                    sum += (double)(logit[j] = expf(logit[j] - top));
            for (a = 0; a < t->ws.actives[head]; ++a) {
                j = active[a];
                weight[4 * a + i] = map[j] || !(sum > 0.0)
                    ? 0.0f : (float)((double)logit[j] / (sum * (double)(key_offset[j + 1] - key_offset[j])));
            }
        }
        if (t->loops->mk16) {
            uint32_t *pair = t->ws.weight16 + (size_t)begin * (size_t)((ck + 1) / 2) * 4;
            const int32_t n = t->ws.actives[head];
            for (a = 0; a < n; ++a)
                for (i = 0; i < 4; ++i) {
                    const uint32_t w = svg2__f32_to_bf16(weight[4 * a + i]);
                    uint32_t *at = pair + a / 2 * 4 + i;
                    *at = a % 2 ? *at | w << 16 : w;
                }
        }
    }
}

/* A plane of n clusters as pairs; an odd last one is paired with 0. */
static void svg2__tail_pairs(const svg2__tail_task *t, const float *plane, int32_t n, int nv, uint32_t *pairs)
{
    float lengths[3][SVG2__LANES]; /* not needed here */
    int lane;
    t->loops->pairs(pairs, plane, n & ~1, nv, lengths[0], lengths[1], lengths[2]);
    for (lane = 0; lane < 16 * nv && n % 2; ++lane)
        pairs[(size_t)(n / 2) * SVG2__LANES + (size_t)lane] =
            svg2__f32_to_bf16(plane[(size_t)(n - 1) * SVG2__LANES + (size_t)lane]);
}

/* item = (head of the group, panel of 16 key dimensions): C' of the panel for all active clusters, then its
   product with W */
static void svg2__tail_product(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__tail_task *t = (const svg2__tail_task *)task;
    const svg2_tail_desc *d = t->d;
    const int32_t dim = d->head_dim, dim16 = svg2__round_up(dim, 16), ck = d->key_clusters;
    const int32_t panels = (dim + SVG2__PANEL - 1) / SVG2__PANEL, chunks = (dim + SVG2__LANES - 1) / SVG2__LANES;
    const size_t stride = (size_t)ck * SVG2__LANES; /* between (dimension, chunk) planes of moment */
    const float zero[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    svg2__tail_scratch s;
    (void)svg2__tail_scratch_layout(d, t->ws.scratch + (size_t)worker * t->ws.scratch_bytes, &s);
    for (; begin < end; ++begin) {
        const int64_t head = begin / panels, bh = d->head_begin + head,
                      kv = svg2__kv_head(bh, d->heads, d->heads_kv);
        const int64_t b = kv / d->heads_kv, h = kv % d->heads_kv;
        const int32_t first = (int32_t)(begin % panels) * SVG2__PANEL,
                      wide = svg2__min32(SVG2__PANEL, dim - first);
        const int32_t *key_offset = d->key_offset + kv * ((int64_t)d->key_blocks + 1);
        const int32_t *order = d->key_order + kv * d->tokens_kv, *active = t->ws.active + head * ck;
        const int32_t actives = t->ws.actives[head];
        float *matrix = d->matrix + (size_t)head * (size_t)d->query_clusters * (size_t)dim * (size_t)dim;
        int32_t a, i, e, chunk, strip, at;
        for (a = 0; a < actives; ++a) {
            const int32_t j = active[a];
            const float *key_shift = d->key_centroid + ((size_t)kv * (size_t)ck + (size_t)j) * (size_t)dim
                                     + first;
            const float *value_shift = d->value_mean + ((size_t)kv * (size_t)ck + (size_t)j) * (size_t)dim;
            for (at = key_offset[j]; at < key_offset[j + 1]; at += SVG2__KEYS) {
                const int32_t n = svg2__min32(SVG2__KEYS, key_offset[j + 1] - at);
                for (i = 0; i < n; ++i) {
                    if (at + i + SVG2__AHEAD < d->tokens_kv) {
                        const int32_t ahead = order[at + i + SVG2__AHEAD];
                        svg2__prefetch(svg2__row(d->v, &t->v, b, h, ahead), &t->v, dim);
                        svg2__prefetch(svg2__row(d->k, &t->k, b, h, ahead)
                                           + (size_t)first * svg2__dtype_bytes(t->k.dtype),
                                       &t->k, wide);
                    }
                    t->loops->load(s.key + i * SVG2__PANEL,
                                   svg2__row(d->k, &t->k, b, h, order[at + i])
                                       + (size_t)first * svg2__dtype_bytes(t->k.dtype),
                                   t->k.dtype, key_shift, wide);
                    t->loops->load(s.value + i * dim16, svg2__row(d->v, &t->v, b, h, order[at + i]), t->v.dtype,
                                   value_shift, dim);
                    memset(s.value + i * dim16 + dim, 0, (size_t)(dim16 - dim) * sizeof(float));
                }
                for (e = 0; e < wide; e += 4)
                    for (chunk = 0; chunk < chunks; ++chunk)
                        t->loops->mk(svg2__min32(SVG2__LANES, dim16 - chunk * SVG2__LANES) / 16, n, s.key + e,
                                     SVG2__PANEL, s.value + chunk * SVG2__LANES, dim16,
                                     s.moment + (size_t)(e * chunks + chunk) * stride + (size_t)a * SVG2__LANES,
                                     (int64_t)((size_t)chunks * stride), at > key_offset[j]);
            }
        }
        for (e = 0; e < wide; ++e)
            for (chunk = 0; chunk < chunks; ++chunk) {
                const int32_t lanes = svg2__min32(SVG2__LANES, dim - chunk * SVG2__LANES);
                const int nv = (lanes + 15) / 16;
                const float *plane = s.moment + (size_t)(e * chunks + chunk) * stride;
                if (t->loops->mk16) svg2__tail_pairs(t, plane, actives, nv, s.pairs); /* 8 bits of W and C' do */
                for (strip = 0; strip < t->strips; ++strip) {
                    const size_t at_strip = (size_t)head * (size_t)t->strips + (size_t)strip;
                    if (t->loops->mk16)
                        t->loops->mk16(nv, (actives + 1) / 2, t->ws.weight16 + at_strip * (size_t)((ck + 1) / 2) * 4,
                                       s.pairs, zero, s.strip, 0);
                    else
                        t->loops->mk(nv, actives, t->ws.weight + at_strip * (size_t)ck * 4, 4, plane, SVG2__LANES,
                                     s.strip, SVG2__LANES, 0);
                    for (i = 0; i < svg2__min32(4, d->query_clusters - 4 * strip); ++i)
                        memcpy(matrix
                                   + ((size_t)(4 * strip + i) * (size_t)dim + (size_t)(first + e)) * (size_t)dim
                                   + (size_t)chunk * SVG2__LANES,
                               s.strip + i * SVG2__LANES, (size_t)lanes * sizeof(float));
                }
            }
    }
}

static svg2_result svg2__cpu_tail(const svg2_backend *backend, const svg2_tail_desc *d, void *workspace,
                                  svg2_error *err)
{
    svg2__tail_task t;
    memset(&t, 0, sizeof t);
    t.loops = svg2__loops_of(backend);
    t.d = d;
    t.k = svg2__layout(d->k_layout, d->heads_kv, d->tokens_kv, d->head_dim);
    t.v = svg2__layout(d->v_layout, d->heads_kv, d->tokens_kv, d->head_dim);
    (void)svg2__tail_layout(backend, d, workspace, &t.ws);
    t.panels = (d->key_clusters + SVG2__LANES - 1) / SVG2__LANES;
    t.strips = (d->query_clusters + 3) / 4;
    svg2__run(backend, svg2__tail_prepare, &t, d->head_count, 1);
    svg2__run(backend, svg2__tail_weights, &t, (int64_t)d->head_count * t.strips, 4);
    svg2__run(backend, svg2__tail_product, &t,
              (int64_t)d->head_count * ((d->head_dim + SVG2__PANEL - 1) / SVG2__PANEL), 1);
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_tail(const svg2_backend *backend, const svg2_tail_desc *desc, void *workspace,
                               size_t workspace_bytes, svg2_error *err)
{
    const svg2_tail_desc *d = desc;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(d, "desc");
    SVG2__TRY(svg2__check_extents(d->batch, d->heads, 1, d->head_dim, err));
    SVG2__TRY(svg2__check_heads_kv(d->heads, d->heads_kv, err));
    SVG2__TRY(svg2__check_tokens(d->tokens_kv, "tokens_kv", err));
    SVG2__TRY(svg2__check_clusters(d->query_clusters, "query_clusters", err));
    SVG2__TRY(svg2__check_clusters(d->key_clusters, "key_clusters", err));
    SVG2__CHECK(d->query_blocks >= d->query_clusters, SVG2_ERR_RANGE, "query_blocks",
                "must be at least query_clusters");
    SVG2__CHECK(d->key_blocks >= d->key_clusters, SVG2_ERR_RANGE, "key_blocks", "must be at least key_clusters");
    SVG2__CHECK(d->head_begin >= 0 && d->head_count >= 1
                    && d->head_begin <= (int64_t)d->batch * d->heads - d->head_count,
                SVG2_ERR_RANGE, "head_count", "head_begin and head_count must name heads in [0, batch*heads)");
    SVG2__CHECK(fabsf(d->scale) <= 3.0e38f, SVG2_ERR_RANGE, "scale", "must be finite");
    SVG2__TRY(svg2__check_layout(d->k_layout, d->batch, d->heads_kv, d->tokens_kv, d->head_dim, 0, "k", err));
    SVG2__TRY(svg2__check_layout(d->v_layout, d->batch, d->heads_kv, d->tokens_kv, d->head_dim, 0, "v", err));
    SVG2__TRY(svg2__check_tensor(d->k, d->k_layout, "k", err));
    SVG2__TRY(svg2__check_tensor(d->v, d->v_layout, "v", err));
    SVG2__NOT_NULL(d->key_order, "key_order");
    SVG2__NOT_NULL(d->key_offset, "key_offset");
    SVG2__NOT_NULL(d->query_centroid, "query_centroid");
    SVG2__NOT_NULL(d->key_centroid, "key_centroid");
    SVG2__NOT_NULL(d->key_mean, "key_mean");
    SVG2__NOT_NULL(d->value_mean, "value_mean");
    SVG2__NOT_NULL(d->map, "map");
    SVG2__NOT_NULL(d->matrix, "matrix");
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_TAIL, d, workspace, workspace_bytes, err));
    return backend->tail(backend, d, workspace, err);
}

/* ---- joining partial results ---- */
SVG2_API svg2_result svg2_merge(const float *out_a, const float *lse_a, const float *out_b, const float *lse_b,
                                float *out, float *lse, int64_t rows, int32_t dim, svg2_error *err)
{
    int64_t r;
    int32_t d;
    SVG2__NOT_NULL(out_a, "out_a");
    SVG2__NOT_NULL(lse_a, "lse_a");
    SVG2__NOT_NULL(out_b, "out_b");
    SVG2__NOT_NULL(lse_b, "lse_b");
    SVG2__NOT_NULL(out, "out");
    SVG2__NOT_NULL(lse, "lse");
    SVG2__CHECK(rows >= 0, SVG2_ERR_RANGE, "rows", "must not be negative");
    SVG2__CHECK(dim >= 1, SVG2_ERR_RANGE, "dim", "must be at least 1");
    for (r = 0; r < rows; ++r) {
        const float a = lse_a[r], b = lse_b[r], top = a > b ? a : b;
        /* weights relative to the larger side; an empty side weighs 0 even when both are empty (-Inf - -Inf is
           NaN) */
        const double wa = a == -INFINITY ? 0.0 : exp((double)a - (double)top);
        const double wb = b == -INFINITY ? 0.0 : exp((double)b - (double)top);
        const double sum = wa + wb, fa = sum == 0.0 ? 0.0 : wa / sum, fb = sum == 0.0 ? 0.0 : wb / sum;
        for (d = 0; d < dim; ++d) {
            const double xa = fa == 0.0 ? 0.0 : fa * (double)out_a[r * dim + d];
            const double xb = fb == 0.0 ? 0.0 : fb * (double)out_b[r * dim + d];
            out[r * dim + d] = (float)(xa + xb);
        }
        lse[r] = sum == 0.0 ? -INFINITY : (float)((double)top + log(sum));
    }
    return svg2__ok(err);
}

/* ==== >>mass ============================================================================= */
static void svg2__mass_tile(const svg2__attention_task *t, const svg2__attention_item *item, int64_t kv,
                            int32_t n, const float *lse2, svg2__attention_scratch *s)
{
    const int32_t dim = t->d->head_dim;
    float key_mass[SVG2__KEYS], kept[SVG2__LANES];
    int32_t key, unit;
    svg2__attention_load_keys(t, kv, 0, s->token, n, s);
    for (unit = 0; unit * SVG2__LANES < item->count; ++unit) {
        const int nv = (svg2__min32(SVG2__LANES, item->count - unit * SVG2__LANES) + 15) / 16;
        int lane;
        for (key = 0; key < n; key += 4)
            t->loops->mk(nv, dim, s->key + (size_t)key * (size_t)dim, 4,
                         s->query + (size_t)unit * (size_t)dim * SVG2__LANES, SVG2__LANES,
                         s->p + key * SVG2__LANES, SVG2__LANES, 0);
        memset(kept, 0, sizeof kept);
        t->loops->mass(s->p, n, nv, lse2 + unit * SVG2__LANES, s->bias, key_mass, kept);
        for (key = 0; key < n; ++key) s->mass[s->block[key]] += (double)key_mass[key];
        for (lane = 0; lane < 16 * nv; ++lane) s->row_mass[unit * SVG2__LANES + lane] += (double)kept[lane];
    }
}

static void svg2__mass_items(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__attention_task *t = (const svg2__attention_task *)task;
    const svg2_attention_desc *d = t->d;
    double shift_logit[SVG2__ROWS];
    float lse2[SVG2__ROWS];
    svg2__attention_scratch s;
    (void)svg2__attention_scratch_layout(t->backend, d, 1, t->scratch + (size_t)worker * t->scratch_floats, &s);
    for (; begin < end; ++begin) {
        const svg2__attention_item *item = t->items + begin;
        const int64_t kv = svg2__kv_head(item->bh, d->heads, d->heads_kv);
        const int32_t *key_offset = d->key_offset ? d->key_offset + kv * ((int64_t)t->key_blocks + 1) : 0;
        const int32_t *key_order = d->key_order ? d->key_order + kv * d->tokens_kv : 0;
        const uint8_t *map = d->map ? d->map
                                          + ((size_t)item->bh * (size_t)t->query_blocks + (size_t)item->block)
                                                * (size_t)t->key_blocks
                                    : 0;
        int32_t j, n = 0, at, r;
        svg2__attention_load_queries(t, item, &s);
        svg2__attention_shift(t, item, kv, &s, shift_logit);
        for (r = 0; r < SVG2__ROWS; ++r) {
            float lse = r < item->count ? d->lse[item->bh * d->tokens + svg2__query_token(t, item, r)]
                                        : -INFINITY;
            s.row_mass[r] = 0.0;
            lse2[r] = lse == -INFINITY ? INFINITY : (float)(((double)lse - shift_logit[r]) * 1.4426950408889634);
        }
        for (j = 0; j < t->key_blocks; ++j) s.mass[j] = 0.0;
        for (j = 0; j < t->valid_key_blocks; ++j)
            for (at = key_offset ? key_offset[j] : 0; at < (key_offset ? key_offset[j + 1] : d->tokens_kv);
                 ++at) {
                s.token[n] = key_order ? key_order[at] : at;
                s.block[n] = j;
                s.bias[n++] = !map || map[j] ? 1.0f : 0.0f;
                if (n == SVG2__KEYS) svg2__mass_tile(t, item, kv, n, lse2, &s), n = 0;
            }
        if (n) svg2__mass_tile(t, item, kv, n, lse2, &s);
        if (t->recall)
            for (r = 0; r < item->count; ++r)
                t->recall[item->bh * d->tokens + svg2__query_token(t, item, r)] = (float)s.row_mass[r];
        if (t->need_mass)
            for (j = 0; j < t->key_blocks; ++j)
                t->partial[(size_t)begin * (size_t)t->key_blocks + (size_t)j] = (float)s.mass[j];
    }
}

static svg2_result svg2__cpu_mass(const svg2_backend *backend, const svg2_mass_desc *desc, void *workspace,
                                  svg2_error *err)
{
    const svg2_attention_desc *d = &desc->attention;
    svg2__attention_task t;
    int64_t items, i, j;
    svg2__attention_task_init(&t, backend, d, 1, workspace);
    t.recall = desc->recall;
    t.need_mass = desc->mass != 0;
    t.valid_key_blocks = desc->valid_key_blocks ? desc->valid_key_blocks : t.key_blocks;
    items = svg2__attention_plan(&t, workspace);
    if (desc->mass)
        memset(desc->mass, 0,
               (size_t)svg2__attention_heads(d) * (size_t)t.query_blocks * (size_t)t.key_blocks * sizeof(float));
    svg2__run(backend, svg2__mass_items, &t, items, 1);
    for (i = 0; desc->mass && i < items; ++i) { /* a block's items in order, so that the sum does not depend on threads */
        float *row = desc->mass
                     + ((size_t)(t.items[i].bh - d->head_begin) * (size_t)t.query_blocks + (size_t)t.items[i].block)
                           * (size_t)t.key_blocks;
        for (j = 0; j < t.key_blocks; ++j) row[j] += t.partial[(size_t)i * (size_t)t.key_blocks + (size_t)j];
    }
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_block_mass(const svg2_backend *backend, const svg2_mass_desc *desc, void *workspace,
                                     size_t workspace_bytes, svg2_error *err)
{
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(desc, "desc");
    SVG2__TRY(svg2__check_attention(&desc->attention, 1, err));
    SVG2__NOT_NULL(desc->attention.lse, "lse");
    SVG2__CHECK(desc->mass || desc->recall, SVG2_ERR_NULL, "mass", "or recall must be given");
    SVG2__CHECK(desc->valid_key_blocks >= 0
                    && desc->valid_key_blocks <= (desc->attention.key_blocks ? desc->attention.key_blocks : 1),
                SVG2_ERR_RANGE, "valid_key_blocks", "must be between 0 and key_blocks");
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_MASS, desc, workspace, workspace_bytes, err));
    return backend->mass(backend, desc, workspace, err);
}

/* ==== >>tiles ============================================================================
   Methods with blocks of neighbouring tokens. A token's position is frame * frame_tokens + place in pattern 0 (space)
   and place * frames + frame in pattern 1 (time); blocks are runs of the tokens in that order, so that a block covers a
   span of positions, and blocks are near each other if their spans are. */
typedef struct svg2__grid {
    int32_t frames, frame_tokens, block, first_frame;
} svg2__grid;

static int32_t svg2__div_up(int64_t a, int32_t b)
{
    return (int32_t)((a + b - 1) / b);
}

/* Blocks of the first frame alone. */
static int32_t svg2__grid_head(const svg2__grid *g)
{
    return g->first_frame ? svg2__div_up(g->frame_tokens, g->block) : 0;
}

static int32_t svg2__grid_blocks(const svg2__grid *g)
{
    const int64_t rest = (int64_t)(g->frames - g->first_frame) * g->frame_tokens;
    return svg2__grid_head(g) + svg2__div_up(rest, g->block);
}

static int32_t svg2__grid_label(const svg2__grid *g, int pattern, int32_t token)
{
    const int32_t frame = token / g->frame_tokens, place = token % g->frame_tokens;
    int64_t at;
    if (frame < g->first_frame) return place / g->block;
    at = pattern ? (int64_t)place * (g->frames - g->first_frame) + (frame - g->first_frame)
                 : (int64_t)token - g->first_frame * g->frame_tokens;
    return svg2__grid_head(g) + (int32_t)(at / g->block);
}

/* Tokens behind the first frame (if that has its own blocks) whose position is below x. */
static int64_t svg2__grid_below(const svg2__grid *g, int pattern, int64_t x)
{
    const int64_t others = g->frames - g->first_frame, rest = others * g->frame_tokens;
    int64_t frame;
    if (x <= 0) return 0;
    if (x >= (int64_t)g->frames * g->frame_tokens) return rest;
    if (!pattern)
        return x < g->first_frame * (int64_t)g->frame_tokens ? 0 : x - g->first_frame * (int64_t)g->frame_tokens;
    frame = x % g->frames - g->first_frame;
    return x / g->frames * others + (frame > 0 ? frame : 0);
}

/* First and last position of a block. */
static void svg2__grid_span(const svg2__grid *g, int pattern, int32_t block, int64_t *low, int64_t *high)
{
    const int32_t head = svg2__grid_head(g), others = g->frames - g->first_frame;
    const int64_t rest = (int64_t)others * g->frame_tokens, skipped = (int64_t)g->first_frame * g->frame_tokens;
    int64_t first, last;
    if (block < head) {
        first = (int64_t)block * g->block;
        last = svg2__min64(first + g->block, g->frame_tokens) - 1;
        *low = pattern ? first * g->frames : first;
        *high = pattern ? last * g->frames : last;
        return;
    }
    first = (int64_t)(block - head) * g->block;
    last = svg2__min64(first + g->block, rest) - 1;
    *low = pattern ? first / others * g->frames + first % others + g->first_frame : first + skipped;
    *high = pattern ? last / others * g->frames + last % others + g->first_frame : last + skipped;
}

/* What a row of blocks sees: key blocks [0, head) of the first frame, all or (begin, end) of them, and [begin, end). */
typedef struct svg2__near {
    int32_t begin, end;
} svg2__near;

static svg2__near svg2__grid_near(const svg2__grid *g, int pattern, int32_t block, int32_t width)
{
    const int32_t head = svg2__grid_head(g);
    svg2__near n;
    int64_t low, high, first, last;
    svg2__grid_span(g, pattern, block, &low, &high);
    first = svg2__grid_below(g, pattern, low - width + 1); /* tokens from there on are near */
    last = svg2__grid_below(g, pattern, high + width);     /* up to this one, exclusive     */
    n.begin = head + (int32_t)(first / g->block);
    n.end = last > first ? head + svg2__div_up(last, g->block) : n.begin;
    return n;
}

static int64_t svg2__grid_tokens(const svg2__grid *g, int32_t begin,
                                 int32_t end) /* of blocks behind the first frame's */
{
    const int32_t head = svg2__grid_head(g);
    const int64_t rest = (int64_t)(g->frames - g->first_frame) * g->frame_tokens;
    return svg2__min64((int64_t)(end - head) * g->block, rest) - svg2__min64((int64_t)(begin - head) * g->block, rest);
}

/* Pairs of video tokens inside the band. */
static double svg2__grid_area(const svg2__grid *g, int pattern, int32_t width)
{
    const int32_t blocks = svg2__grid_blocks(g), head = svg2__grid_head(g);
    double area = 0.0;
    int32_t i;
    for (i = 0; i < blocks; ++i) {
        const svg2__near n = svg2__grid_near(g, pattern, i, width);
        const int64_t rows = i < head ? svg2__min64(g->block, (int64_t)g->frame_tokens - (int64_t)i * g->block)
                                      : svg2__grid_tokens(g, i, i + 1);
        area +=
            (double)rows * (double)(svg2__grid_tokens(g, n.begin, n.end) + (int64_t)g->first_frame * g->frame_tokens);
    }
    return area;
}

static svg2_result svg2__check_grid(int32_t frames, int32_t frame_tokens, int32_t block, int32_t first_frame,
                                    svg2_error *err)
{
    SVG2__CHECK(frames >= 1, SVG2_ERR_RANGE, "frames", "must be at least 1");
    SVG2__CHECK(frame_tokens >= 1, SVG2_ERR_RANGE, "frame_tokens", "must be at least 1");
    SVG2__CHECK((int64_t)frames * frame_tokens <= 2147482624, SVG2_ERR_RANGE, "frames",
                "times frame_tokens must be below 2^31 - 1024");
    SVG2__CHECK(block >= 1, SVG2_ERR_RANGE, "block", "must be at least 1");
    SVG2__CHECK(first_frame == 0 || first_frame == 1, SVG2_ERR_RANGE, "first_frame", "must be 0 or 1");
    return SVG2_OK;
}

SVG2_API int32_t svg2_band_width(int32_t frames, int32_t frame_tokens, int32_t block, int32_t first_frame,
                                 int32_t text_valid, float keep)
{
    svg2__grid g;
    const double video = (double)frames * (double)frame_tokens, text = (double)text_valid;
    const double budget = (double)keep * (video + text) * (video + text) - text * (2.0 * video + text);
    int64_t low = 1, high = (int64_t)frames * frame_tokens; /* low always does */
    if (svg2__check_grid(frames, frame_tokens, block, first_frame, 0) != SVG2_OK) return 0;
    g.frames = frames;
    g.frame_tokens = frame_tokens;
    g.block = block;
    g.first_frame = first_frame;
    while (low < high) {
        const int64_t middle = low + (high - low + 1) / 2;
        const double space = svg2__grid_area(&g, 0, (int32_t)middle), time = svg2__grid_area(&g, 1, (int32_t)middle);
        if ((space > time ? space : time) <= budget) low = middle;
        else high = middle - 1;
    }
    return (int32_t)low;
}

/* ---- place ---- */
SVG2_API int32_t svg2_place_blocks(const svg2_place_desc *desc)
{
    svg2__grid g;
    if (!desc || svg2__check_grid(desc->frames, desc->frame_tokens, desc->block, desc->first_frame, 0) != SVG2_OK)
        return 0;
    g.frames = desc->frames;
    g.frame_tokens = desc->frame_tokens;
    g.block = desc->block;
    g.first_frame = desc->first_frame;
    return svg2__grid_blocks(&g);
}

/* item = head */
static void svg2__place_items(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2_place_desc *d = (const svg2_place_desc *)task;
    svg2__grid g;
    int32_t t;
    (void)worker;
    g.frames = d->frames;
    g.frame_tokens = d->frame_tokens;
    g.block = d->block;
    g.first_frame = d->first_frame;
    for (; begin < end; ++begin) {
        const int32_t groups = d->pattern_heads ? d->pattern_heads : d->heads;
        const int pattern = d->pattern && d->pattern[svg2__kv_head(begin, d->heads, groups)] == 1;
        int32_t *label = d->label + (size_t)begin * (size_t)d->tokens + d->video_begin;
        for (t = 0; t < d->video_count; ++t) label[t] = svg2__grid_label(&g, pattern, t);
    }
}

static svg2_result svg2__cpu_place(const svg2_backend *backend, const svg2_place_desc *d, void *workspace,
                                   svg2_error *err)
{
    svg2_place_desc task = *d;
    (void)workspace;
    svg2__run(backend, svg2__place_items, &task, (int64_t)d->batch * d->heads, 1);
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_place(const svg2_backend *backend, const svg2_place_desc *desc, void *workspace,
                                size_t workspace_bytes, svg2_error *err)
{
    const svg2_place_desc *d = desc;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(d, "desc");
    SVG2__TRY(svg2__check_extents(d->batch, d->heads, d->tokens, 8, err));
    SVG2__TRY(svg2__check_grid(d->frames, d->frame_tokens, d->block, d->first_frame, err));
    SVG2__CHECK(d->video_begin >= 0 && d->video_count >= 1 && d->video_begin <= d->tokens - d->video_count,
                SVG2_ERR_RANGE, "video_count", "video_begin and video_count must lie inside tokens");
    SVG2__CHECK((int64_t)d->frames * d->frame_tokens == d->video_count, SVG2_ERR_SHAPE, "frame_tokens",
                "frames*frame_tokens must be video_count");
    SVG2__CHECK(d->pattern_heads >= 0 && (d->pattern_heads == 0 || (d->pattern_heads <= d->heads && d->heads % d->pattern_heads == 0)),
                SVG2_ERR_SHAPE, "pattern_heads", "must divide heads");
    SVG2__NOT_NULL(d->label, "label");
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_PLACE, d, workspace, workspace_bytes, err));
    return backend->place(backend, d, workspace, err);
}

/* ---- statistics of a map that was not selected by svg2_select ---- */
static void svg2__map_stats(const uint8_t *map, const int32_t *query_offset, const int32_t *key_offset,
                            int32_t query_blocks, int32_t key_blocks, int has_padding, svg2_head_stats *stats)
{
    const int64_t rows = query_offset[query_blocks - has_padding], keys = key_offset[key_blocks - has_padding];
    int32_t i, j;
    memset(stats, 0, sizeof *stats);
    for (i = 0; i < query_blocks; ++i) {
        int64_t seen = 0;
        for (j = 0; j < key_blocks; ++j)
            if (map[(size_t)i * (size_t)key_blocks + (size_t)j]) seen += key_offset[j + 1] - key_offset[j];
        stats->pairs += seen * (query_offset[i + 1] - query_offset[i]);
    }
    stats->pairs_pv = stats->pairs;
    stats->pairs_total = rows * keys;
    stats->density = stats->density_pv =
        stats->pairs_total ? (float)((double)stats->pairs / (double)stats->pairs_total) : 0.0f;
    stats->error_estimate = stats->pairs == stats->pairs_total ? 0.0f : -1.0f;
    stats->recall = -1.0f;
}

/* ---- band ---- */
static svg2__grid svg2__band_grid(const svg2_band_desc *d)
{
    svg2__grid g;
    g.frames = d->frames;
    g.frame_tokens = d->frame_tokens;
    g.block = d->block;
    g.first_frame = d->first_frame;
    return g;
}

/* item = head */
static void svg2__band_items(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2_band_desc *d = (const svg2_band_desc *)task;
    const svg2__grid g = svg2__band_grid(d);
    const int32_t video = svg2__grid_blocks(&g), head = svg2__grid_head(&g);
    const int32_t blocks = video + d->has_text + d->has_padding, seen = video + d->has_text;
    (void)worker;
    for (; begin < end; ++begin) {
        const int64_t kv = svg2__kv_head(begin, d->heads, d->heads_kv);
        uint8_t *map = d->map + (size_t)begin * (size_t)blocks * (size_t)blocks;
        int32_t i;
        memset(map, 0, (size_t)blocks * (size_t)blocks);
        for (i = 0; i < video; ++i) {
            const int pattern = d->pattern[kv] == 1;
            const svg2__near n = svg2__grid_near(&g, pattern, i, d->width);
            uint8_t *row = map + (size_t)i * (size_t)blocks;
            memset(row, 1, (size_t)head);
            memset(row + n.begin, 1, (size_t)(n.end - n.begin));
            if (d->has_text) row[video] = 1;
        }
        if (d->has_text) memset(map + (size_t)video * (size_t)blocks, 1, (size_t)seen);
        if (d->stats) {
            svg2__map_stats(map, d->query_offset + begin * ((int64_t)blocks + 1),
                            d->key_offset + kv * ((int64_t)blocks + 1), blocks, blocks, d->has_padding,
                            d->stats + begin);
            d->stats[begin].pattern = d->pattern[kv] == 1;
            if (d->error) memcpy(d->stats[begin].pattern_error, d->error + 2 * begin, 2 * sizeof(float));
        }
    }
}

static svg2_result svg2__cpu_band(const svg2_backend *backend, const svg2_band_desc *d, void *workspace,
                                  svg2_error *err)
{
    svg2_band_desc task = *d;
    (void)workspace;
    svg2__run(backend, svg2__band_items, &task, (int64_t)d->batch * d->heads, 1);
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_band(const svg2_backend *backend, const svg2_band_desc *desc, void *workspace,
                               size_t workspace_bytes, svg2_error *err)
{
    const svg2_band_desc *d = desc;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(d, "desc");
    SVG2__TRY(svg2__check_extents(d->batch, d->heads, 1, 8, err));
    SVG2__TRY(svg2__check_heads_kv(d->heads, d->heads_kv, err));
    SVG2__TRY(svg2__check_grid(d->frames, d->frame_tokens, d->block, d->first_frame, err));
    SVG2__CHECK(d->width >= 1, SVG2_ERR_RANGE, "width", "must be at least 1");
    SVG2__CHECK((d->has_text == 0 || d->has_text == 1) && (d->has_padding == 0 || d->has_padding == 1), SVG2_ERR_RANGE,
                "has_text", "and has_padding must be 0 or 1");
    SVG2__NOT_NULL(d->pattern, "pattern");
    SVG2__NOT_NULL(d->map, "map");
    SVG2__CHECK(!d->stats || d->query_offset, SVG2_ERR_NULL, "query_offset", "is needed for stats");
    SVG2__CHECK(!d->stats || d->key_offset, SVG2_ERR_NULL, "key_offset", "is needed for stats");
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_BAND, d, workspace, workspace_bytes, err));
    return backend->band(backend, d, workspace, err);
}

/* ---- pick ---- */
typedef struct svg2__pick_task {
    const svg2_pick_desc *d;
    char *scratch;
    size_t scratch_bytes;
    double *sum;  /* [rows of the group, 4] mass of a row: kept by the three levels, and all; added up in a fixed order */
    int32_t video_rows, video_keys, keep[3]; /* keep: blocks of the levels s + e, s, s - e */
} svg2__pick_task;

typedef struct svg2__pick_scratch {
    uint32_t *key[2];
    int32_t  *index[2];
} svg2__pick_scratch;

static size_t svg2__pick_scratch_layout(const svg2_pick_desc *d, void *base, svg2__pick_scratch *s)
{
    svg2__arena a = SVG2_ZERO;
    svg2__pick_scratch w;
    int i;
    a.base = (char *)base;
    for (i = 0; i < 2; ++i) {
        w.key[i] = (uint32_t *)svg2__take(&a, sizeof(uint32_t), (size_t)d->key_blocks);
        w.index[i] = svg2__take_i32(&a, (size_t)d->key_blocks);
    }
    if (s) *s = w;
    return a.used;
}

static size_t svg2__pick_layout(const svg2_backend *backend, const svg2_pick_desc *d, void *base, svg2__pick_task *t)
{
    svg2__arena a = SVG2_ZERO;
    svg2__pick_task w;
    memset(&w, 0, sizeof w);
    a.base = (char *)base;
    w.scratch_bytes = svg2__pick_scratch_layout(d, 0, 0);
    w.scratch = (char *)svg2__take(&a, w.scratch_bytes, svg2__workers(backend));
    w.sum = (double *)svg2__take(&a, sizeof(double), svg2__count(d->head_count, d->query_blocks, 4, 1));
    if (t) *t = w;
    return a.used;
}

/* Blocks that a row keeps at the three levels of sparsity. */
static void svg2__pick_counts(int32_t blocks, double sparsity, int32_t *keep)
{
    const double step = sparsity < (1.0 - sparsity) / 2.0 ? sparsity : (1.0 - sparsity) / 2.0;
    int i;
    for (i = 0; i < 3; ++i) {
        const double count = ceil((1.0 - sparsity + (i - 1) * step) * (double)blocks - 1e-6);
        keep[i] = count < 1.0 ? 1 : count > (double)blocks ? blocks : (int32_t)count;
    }
}

/* item = row of blocks of the group: the level of every block of it, 0 to 3 (left out), goes into the map */
static void svg2__pick_rows(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__pick_task *t = (const svg2__pick_task *)task;
    const svg2_pick_desc *d = t->d;
    svg2__pick_scratch s;
    (void)svg2__pick_scratch_layout(d, t->scratch + (size_t)worker * t->scratch_bytes, &s);
    for (; begin < end; ++begin) {
        const int32_t i = (int32_t)(begin % d->query_blocks), valid = t->video_keys + d->has_text;
        const float *mass = d->mass + (size_t)begin * (size_t)d->key_blocks;
        uint8_t *map =
            d->map + ((size_t)d->head_begin * (size_t)d->query_blocks + (size_t)begin) * (size_t)d->key_blocks;
        const int32_t *index;
        double *sum = t->sum + 4 * begin, kept[4] = {0.0, 0.0, 0.0, 0.0}, most;
        int32_t j;
        memset(map, 3, (size_t)d->key_blocks);
        if (d->has_text && i <= t->video_rows) map[t->video_keys] = 0;
        if (i >= t->video_rows) { /* text sees everything, padding nothing */
            if (d->has_text && i == t->video_rows) memset(map, 0, (size_t)valid);
            continue;
        }
        index = svg2__sort_falling(s.key, s.index, mass, t->video_keys);
        for (j = 0; j < valid; ++j) kept[3] += (double)mass[j];
        if (!(kept[3] <= 3.0e38)) { /* a NaN or an Inf among them: it has to reach the output, so the row stays whole */
            memset(map, 0, (size_t)valid);
            sum[0] = sum[1] = sum[2] = sum[3] = 0.0;
            continue;
        }
        most = (double)d->mass_target * kept[3];
        if (d->has_text) kept[0] = (double)mass[t->video_keys];
        for (j = 0; j < t->video_keys; ++j) {
            int level = j < t->keep[0] ? 0 : j < t->keep[1] ? 1 : j < t->keep[2] ? 2 : 3;
            if (d->mass_target > 0.0f) level = kept[0] >= most ? 3 : 0;
            map[index[j]] = (uint8_t)level;
            if (level < 3) kept[level] += (double)mass[index[j]];
        }
        sum[0] = kept[0];
        sum[1] = sum[0] + kept[1];
        sum[2] = sum[1] + kept[2];
        sum[3] = kept[3];
    }
}

/* Which level each head keeps: budgets of the heads of one batch entry. */
static int svg2__pick_level(const svg2_pick_desc *d, int64_t bh)
{
    const float *recall = d->recall + bh / d->heads * d->heads * 3 + 1, mine = d->recall[3 * bh + 1];
    const int32_t h = (int32_t)(bh % d->heads);
    int32_t i, good = 0, above = 0;
    if (d->mass_target > 0.0f) return 1;
    for (i = 0; i < d->heads; ++i) {
        good += recall[3 * i] > 0.8f;
        above += recall[3 * i] > mine || (recall[3 * i] == mine && i < h); /* this head's rank from the top */
    }
    good = svg2__min32(good, d->heads / 2);
    return above < good ? 0 : above >= d->heads - good ? 2 : 1;
}

/* item = head: levels become a map, bits and statistics; or bits a map */
static void svg2__pick_cut(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2_pick_desc *d = (const svg2_pick_desc *)task;
    const size_t words = ((size_t)d->key_blocks + 31) / 32;
    (void)worker;
    for (; begin < end; ++begin) {
        const int64_t kv = svg2__kv_head(begin, d->heads, d->heads_kv);
        const int level = svg2__pick_level(d, begin);
        int32_t i, j;
        for (i = 0; i < d->query_blocks; ++i) {
            const size_t row = (size_t)begin * (size_t)d->query_blocks + (size_t)i;
            uint8_t *map = d->map + row * (size_t)d->key_blocks;
            uint32_t *bits = d->bits ? d->bits + row * words : 0;
            if (!d->mass) {
                for (j = 0; j < d->key_blocks; ++j) map[j] = (uint8_t)(bits[j / 32] >> (j % 32) & 1u);
                continue;
            }
            if (bits) memset(bits, 0, words * sizeof *bits);
            for (j = 0; j < d->key_blocks; ++j) {
                map[j] = map[j] <= level;
                if (bits) bits[j / 32] |= (uint32_t)map[j] << (j % 32);
            }
        }
        if (d->stats) {
            svg2__map_stats(d->map + (size_t)begin * (size_t)d->query_blocks * (size_t)d->key_blocks,
                            d->query_offset + begin * ((int64_t)d->query_blocks + 1),
                            d->key_offset + kv * ((int64_t)d->key_blocks + 1), d->query_blocks, d->key_blocks,
                            d->has_padding, d->stats + begin);
            d->stats[begin].recall = d->recall[3 * begin + level];
        }
    }
}

static svg2_result svg2__cpu_pick(const svg2_backend *backend, const svg2_pick_desc *d, void *workspace,
                                  svg2_error *err)
{
    const int64_t heads = (int64_t)d->batch * d->heads;
    svg2_pick_desc cut = *d;
    if (d->mass) {
        svg2__pick_task t;
        int64_t h, i;
        int k;
        (void)svg2__pick_layout(backend, d, workspace, &t);
        t.d = d;
        t.video_rows = d->query_blocks - d->has_text - d->has_padding;
        t.video_keys = d->key_blocks - d->has_text - d->has_padding;
        svg2__pick_counts(t.video_keys, (double)d->sparsity, t.keep);
        svg2__run(backend, svg2__pick_rows, &t, (int64_t)d->head_count * d->query_blocks, 4);
        for (h = 0; h < d->head_count; ++h) {
            double sum[4] = {0.0, 0.0, 0.0, 0.0};
            for (i = h * d->query_blocks; i < h * d->query_blocks + t.video_rows; ++i)
                for (k = 0; k < 4; ++k) sum[k] += t.sum[4 * i + k];
            for (k = 0; k < 3; ++k)
                d->recall[3 * (d->head_begin + h) + k] = sum[3] > 0.0 ? (float)(sum[k] / sum[3]) : 0.0f;
        }
        if (d->head_begin + d->head_count < heads) return svg2__ok(err);
    }
    svg2__run(backend, svg2__pick_cut, &cut, heads, 1);
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_pick(const svg2_backend *backend, const svg2_pick_desc *desc, void *workspace,
                               size_t workspace_bytes, svg2_error *err)
{
    const svg2_pick_desc *d = desc;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(d, "desc");
    SVG2__TRY(svg2__check_extents(d->batch, d->heads, 1, 8, err));
    SVG2__TRY(svg2__check_heads_kv(d->heads, d->heads_kv, err));
    SVG2__CHECK((d->has_text == 0 || d->has_text == 1) && (d->has_padding == 0 || d->has_padding == 1), SVG2_ERR_RANGE,
                "has_text", "and has_padding must be 0 or 1");
    SVG2__CHECK(d->query_blocks > d->has_text + d->has_padding, SVG2_ERR_RANGE, "query_blocks",
                "must hold a video block");
    SVG2__CHECK(d->key_blocks > d->has_text + d->has_padding, SVG2_ERR_RANGE, "key_blocks", "must hold a video block");
    SVG2__CHECK(d->head_begin >= 0 && d->head_count >= 1
                    && d->head_begin <= (int64_t)d->batch * d->heads - d->head_count,
                SVG2_ERR_RANGE, "head_count", "head_begin and head_count must name heads in [0, batch*heads)");
    SVG2__CHECK(d->sparsity >= 0.0f && d->sparsity < 1.0f, SVG2_ERR_RANGE, "sparsity", "must be in [0, 1)");
    SVG2__CHECK(d->mass_target >= 0.0f && d->mass_target <= 1.0f, SVG2_ERR_RANGE, "mass_target", "must be in [0, 1]");
    SVG2__CHECK(d->mass || d->bits, SVG2_ERR_NULL, "mass", "or bits must be given");
    SVG2__NOT_NULL(d->map, "map");
    SVG2__NOT_NULL(d->recall, "recall");
    SVG2__CHECK(!d->stats || d->query_offset, SVG2_ERR_NULL, "query_offset", "is needed for stats");
    SVG2__CHECK(!d->stats || d->key_offset, SVG2_ERR_NULL, "key_offset", "is needed for stats");
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_PICK, d, workspace, workspace_bytes, err));
    return backend->pick(backend, d, workspace, err);
}

/* ---- what a descriptor says ---- */
static int32_t svg2__text_valid(const svg2_desc *d)
{
    return d->text_valid < 0 ? 0 : d->text_valid;
}

static int32_t svg2__side_blocks(const svg2_desc *d, int side) /* of video, text and padding */
{
    const int32_t valid = svg2__text_valid(d), video = (side ? d->tokens_kv : d->tokens) - d->text_tokens;
    return svg2__div_up(video, d->block) + (valid > 0) + (d->text_tokens > valid);
}

/* ==== >>profile ==========================================================================
   One item = 64 sampled rows of a head. Keys come in tiles of 128; the weights of a tile are formed once and go into
   three sums: all keys, those in the band in space, those in the band in time. All three are relative to the maximum
   over all keys. */
typedef struct svg2__profile_task {
    const svg2_backend *backend;
    const svg2__loops *loops;
    const svg2_profile_desc *d;
    svg2__grid grid;
    svg2_layout q, k, v;
    float *scratch;
    size_t scratch_floats;
    double *error; /* [items, 3]  squared error under either pattern, squared output */
    int32_t units; /* of 64 rows */
} svg2__profile_task;

typedef struct svg2__profile_scratch {
    float   *query, *output; /* [D, 64], [3, D, 64]                    */
    float   *key, *value;    /* [keys/4, D, 4], [keys, D + 16]         */
    float   *p, *part;       /* [keys, 64]: weights; those of a band   */
    float   *rows;           /* [4, D]                                 */
    int32_t *token, *block;  /* [keys], [2, keys]                      */
} svg2__profile_scratch;

static size_t svg2__profile_scratch_layout(const svg2_profile_desc *d, void *base, svg2__profile_scratch *s)
{
    svg2__arena a = SVG2_ZERO;
    const size_t n = (size_t)d->head_dim;
    svg2__profile_scratch w;
    a.base = (char *)base;
    w.query = svg2__take_f32(&a, n * SVG2__LANES);
    w.output = svg2__take_f32(&a, 3 * n * SVG2__LANES);
    w.key = svg2__take_f32(&a, n * SVG2__KEYS);
    w.value = svg2__take_f32(&a, (n + 16) * SVG2__KEYS);
    w.p = svg2__take_f32(&a, SVG2__KEYS * SVG2__LANES);
    w.part = svg2__take_f32(&a, SVG2__KEYS * SVG2__LANES);
    w.rows = svg2__take_f32(&a, 4 * n);
    w.token = svg2__take_i32(&a, SVG2__KEYS);
    w.block = svg2__take_i32(&a, 2 * SVG2__KEYS);
    if (s) *s = w;
    return a.used;
}

static size_t svg2__profile_layout(const svg2_backend *backend, const svg2_profile_desc *d, void *base,
                                   svg2__profile_task *t)
{
    svg2__arena a = SVG2_ZERO;
    const int32_t units = (d->sample_rows + SVG2__LANES - 1) / SVG2__LANES;
    const size_t scratch_bytes = svg2__profile_scratch_layout(d, 0, 0);
    float *scratch;
    double *error;
    a.base = (char *)base;
    scratch = (float *)svg2__take(&a, scratch_bytes, svg2__workers(backend));
    error = (double *)svg2__take(&a, sizeof(double), svg2__count((int64_t)d->batch * d->heads, units, 3, 1));
    if (t) {
        t->scratch = scratch;
        t->scratch_floats = scratch_bytes / sizeof(float);
        t->error = error;
        t->units = units;
    }
    return a.used;
}

/* The n-th sampled token of the video: one from each stretch. */
static int32_t svg2__profile_row(const svg2_profile_desc *d, int32_t n)
{
    const int64_t video = (int64_t)d->frames * d->frame_tokens;
    const double at =
        ((double)n + svg2__uniform(d->seed, 0x70726f66u, (uint64_t)n)) * (double)video / (double)d->sample_rows;
    return (int32_t)svg2__min64((int64_t)at, video - 1);
}

static void svg2__profile_tile(const svg2__profile_task *t, int64_t b, int64_t kv, int32_t n, svg2__near (*near)[2],
                               int rows, float *m, float (*l)[SVG2__LANES], svg2__profile_scratch *s)
{
    const svg2_profile_desc *d = t->d;
    const int32_t dim = d->head_dim, ld = dim + 16, head = svg2__grid_head(&t->grid);
    const int nv = (rows + 15) / 16;
    const float *shift = d->key_mean ? d->key_mean + kv * dim : 0;
    float alpha[SVG2__LANES];
    int32_t key, i, e;
    int lane, part;
    for (key = 0; key < n; key += 4) {
        for (i = 0; i < 4; ++i) {
            float *row = s->rows + i * dim;
            if (key + i >= n)
                memset(row, 0, (size_t)dim * sizeof(float));
            else
                t->loops->load(row, svg2__row(d->k, &t->k, b, kv % d->heads_kv, s->token[key + i]), t->k.dtype, shift,
                               dim);
        }
        t->loops->pack4(s->key + (size_t)key * (size_t)dim, 4, s->rows, dim, dim);
    }
    for (key = 0; key < n; ++key)
        t->loops->load(s->value + (size_t)key * (size_t)ld, svg2__row(d->v, &t->v, b, kv % d->heads_kv, s->token[key]),
                       t->v.dtype, 0, dim);
    for (key = 0; key < n; key += 4)
        t->loops->mk(nv, dim, s->key + (size_t)key * (size_t)dim, 4, s->query, SVG2__LANES, s->p + key * SVG2__LANES,
                     SVG2__LANES, 0);
    if (t->loops->softmax(s->p, n, nv, 0, m, l[0], alpha)) {
        for (part = 0; part < 3; ++part)
            t->loops->rescale(s->output + (size_t)part * (size_t)dim * SVG2__LANES, dim, nv, alpha);
        for (lane = 0; lane < 16 * nv; ++lane) l[1][lane] *= alpha[lane], l[2][lane] *= alpha[lane];
    }
    for (part = 0; part < 3; ++part) {
        float *p = part ? s->part : s->p, *output = s->output + (size_t)part * (size_t)dim * SVG2__LANES;
        for (key = 0; part && key < n; ++key) {
            const int32_t block = s->block[(part - 1) * SVG2__KEYS + key]; /* -1: text */
            for (lane = 0; lane < 16 * nv; ++lane) {
                const svg2__near seen = near[lane][part - 1];
                const float x =
                    block < head || (block >= seen.begin && block < seen.end) ? s->p[key * SVG2__LANES + lane] : 0.0f;
                p[key * SVG2__LANES + lane] = x;
                l[part][lane] += x;
            }
        }
        for (e = 0; e < dim; e += 4)
            t->loops->mk(nv, n, s->value + e, ld, p, SVG2__LANES, output + e * SVG2__LANES, SVG2__LANES, 1);
    }
}

static void svg2__profile_items(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__profile_task *t = (const svg2__profile_task *)task;
    const svg2_profile_desc *d = t->d;
    const int32_t dim = d->head_dim;
    const float scale = d->scale * 1.44269504f; /* log2(e) */
    svg2__profile_scratch s;
    (void)svg2__profile_scratch_layout(d, t->scratch + (size_t)worker * t->scratch_floats, &s);
    for (; begin < end; ++begin) {
        const int64_t bh = begin / t->units, b = bh / d->heads, h = bh % d->heads,
                      kv = svg2__kv_head(bh, d->heads, d->heads_kv);
        const int32_t first = (int32_t)(begin % t->units) * SVG2__LANES;
        const int rows = svg2__min32(SVG2__LANES, d->sample_rows - first);
        svg2__near near[SVG2__LANES][2];
        float m[SVG2__LANES], l[3][SVG2__LANES];
        double *error = t->error + 3 * begin;
        int32_t r, i, e, token, n = 0, part;
        memset(near, 0, sizeof near);
        memset(l, 0, sizeof l);
        memset(s.output, 0, 3 * (size_t)dim * SVG2__LANES * sizeof(float));
        for (r = 0; r < SVG2__LANES; r += 4) {
            for (i = 0; i < 4; ++i) {
                float *row = s.rows + i * dim;
                const int32_t at = r + i < rows ? svg2__profile_row(d, first + r + i) : 0;
                m[r + i] = -INFINITY;
                for (part = 0; part < 2; ++part)
                    near[r + i][part] = svg2__grid_near(&t->grid, part, svg2__grid_label(&t->grid, part, at), d->width);
                t->loops->load(row, svg2__row(d->q, &t->q, b, h, d->video_begin + at), t->q.dtype, 0, dim);
                for (e = 0; e < dim; ++e) row[e] *= scale;
            }
            t->loops->pack4(s.query + r, SVG2__LANES, s.rows, dim, dim);
        }
        for (token = 0; token < d->tokens; ++token) {
            const int32_t at = token - d->video_begin;
            const int is_video = at >= 0 && at < d->frames * d->frame_tokens;
            if (!is_video && (token < d->text_begin || token >= d->text_begin + d->text_count)) continue; /* padding */
            s.token[n] = token;
            for (part = 0; part < 2; ++part)
                s.block[part * SVG2__KEYS + n] = is_video ? svg2__grid_label(&t->grid, part, at) : -1;
            if (++n == SVG2__KEYS) svg2__profile_tile(t, b, kv, n, near, rows, m, l, &s), n = 0;
        }
        if (n) svg2__profile_tile(t, b, kv, n, near, rows, m, l, &s);
        error[0] = error[1] = error[2] = 0.0;
        for (e = 0; e < dim; ++e)
            for (r = 0; r < rows; ++r) {
                const size_t at = (size_t)e * SVG2__LANES + (size_t)r, plane = (size_t)dim * SVG2__LANES;
                const double dense = (double)s.output[at] / (double)l[0][r];
                error[2] += dense * dense;
                for (part = 0; part < 2; ++part) { /* a row without a key that counts has an output of 0 */
                    const double x = l[part + 1][r] > 0.0f
                                         ? (double)s.output[(size_t)(part + 1) * plane + at] / (double)l[part + 1][r]
                                         : 0.0;
                    error[part] += (x - dense) * (x - dense);
                }
            }
    }
}

static svg2_result svg2__cpu_profile(const svg2_backend *backend, const svg2_profile_desc *d, void *workspace,
                                     svg2_error *err)
{
    const int32_t group = d->heads / d->heads_kv;
    svg2__profile_task t;
    int64_t kv, h, u;
    memset(&t, 0, sizeof t);
    t.backend = backend;
    t.loops = svg2__loops_of(backend);
    t.d = d;
    t.grid.frames = d->frames;
    t.grid.frame_tokens = d->frame_tokens;
    t.grid.block = d->block;
    t.grid.first_frame = d->first_frame;
    t.q = svg2__layout(d->q_layout, d->heads, d->tokens, d->head_dim);
    t.k = svg2__layout(d->k_layout, d->heads_kv, d->tokens, d->head_dim);
    t.v = svg2__layout(d->v_layout, d->heads_kv, d->tokens, d->head_dim);
    (void)svg2__profile_layout(backend, d, workspace, &t);
    svg2__run(backend, svg2__profile_items, &t, (int64_t)d->batch * d->heads * t.units, 1);
    for (kv = 0; kv < (int64_t)d->batch * d->heads_kv; ++kv) {
        double both[2] = {0.0, 0.0};
        for (h = kv * group; h < (kv + 1) * group; ++h) { /* query heads of a key head are neighbours */
            double sum[3] = {0.0, 0.0, 0.0};
            for (u = h * t.units; u < (h + 1) * t.units; ++u) {
                sum[0] += t.error[3 * u];
                sum[1] += t.error[3 * u + 1];
                sum[2] += t.error[3 * u + 2];
            }
            both[0] += sum[0];
            both[1] += sum[1];
            if (d->error) {
                d->error[2 * h] = sum[2] > 0.0 ? (float)sqrt(sum[0] / sum[2]) : 0.0f;
                d->error[2 * h + 1] = sum[2] > 0.0 ? (float)sqrt(sum[1] / sum[2]) : 0.0f;
            }
        }
        d->pattern[kv] = both[1] < both[0];
    }
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_profile(const svg2_backend *backend, const svg2_profile_desc *desc, void *workspace,
                                  size_t workspace_bytes, svg2_error *err)
{
    const svg2_profile_desc *d = desc;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(d, "desc");
    SVG2__TRY(svg2__check_extents(d->batch, d->heads, d->tokens, d->head_dim, err));
    SVG2__TRY(svg2__check_heads_kv(d->heads, d->heads_kv, err));
    SVG2__TRY(svg2__check_grid(d->frames, d->frame_tokens, d->block, d->first_frame, err));
    SVG2__CHECK(d->width >= 1, SVG2_ERR_RANGE, "width", "must be at least 1");
    SVG2__CHECK(d->sample_rows >= 1 && d->sample_rows <= 65536, SVG2_ERR_RANGE, "sample_rows",
                "must be between 1 and 65536");
    SVG2__CHECK(fabsf(d->scale) <= 3.0e38f, SVG2_ERR_RANGE, "scale", "must be finite");
    SVG2__CHECK(d->video_begin >= 0 && d->video_begin <= (int64_t)d->tokens - (int64_t)d->frames * d->frame_tokens,
                SVG2_ERR_SHAPE, "frame_tokens", "frames*frame_tokens video tokens must lie inside tokens");
    SVG2__CHECK(d->text_begin >= 0 && d->text_count >= 0 && d->text_begin <= d->tokens - d->text_count, SVG2_ERR_RANGE,
                "text_count", "text_begin and text_count must lie inside tokens");
    SVG2__TRY(svg2__check_layout(d->q_layout, d->batch, d->heads, d->tokens, d->head_dim, 0, "q", err));
    SVG2__TRY(svg2__check_layout(d->k_layout, d->batch, d->heads_kv, d->tokens, d->head_dim, 0, "k", err));
    SVG2__TRY(svg2__check_layout(d->v_layout, d->batch, d->heads_kv, d->tokens, d->head_dim, 0, "v", err));
    SVG2__TRY(svg2__check_tensor(d->q, d->q_layout, "q", err));
    SVG2__TRY(svg2__check_tensor(d->k, d->k_layout, "k", err));
    SVG2__TRY(svg2__check_tensor(d->v, d->v_layout, "v", err));
    SVG2__NOT_NULL(d->pattern, "pattern");
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_PROFILE, d, workspace, workspace_bytes, err));
    return backend->profile(backend, d, workspace, err);
}

/* ==== >>front ============================================================================
   Item = a few tokens of a batch entry, all heads: the norm over a token needs them all. With a norm rows are
   loaded twice, the second time from the cache. Limiter: memory, where all cores work; one core of an Intel
   Xeon with AVX-512 takes 0.81 ns for an f32 element and 0.64 for bf16 (norm over the token, 12 heads of 128,
   tokens beyond the cache, median of 21), memcpy 0.55 and 0.29. Scalar: 6.1 and 6.5 ns, from the cache. */
enum { SVG2__FRONT_TOKENS = 16 /* of an item; with key_mean SVG2__CHUNK, the rows that are summed in f32 */ };

typedef struct svg2__front_side {
    const char *in;
    char *out;
    const float *weight;
    svg2_layout in_layout, out_layout;
    int32_t heads;
} svg2__front_side;

typedef struct svg2__front_task {
    const svg2__loops *loops;
    const svg2_front_desc *d;
    svg2__front_side side[2]; /* q, k; heads = 0: left out */
    float *partial;           /* [BHkv, pieces, D]: sums of keys; NULL = not wanted */
    int64_t rope_stride;
    int32_t pieces, piece, video_begin, video_end;
    float epsilon;
} svg2__front_task;

static int32_t svg2__front_heads_kv(const svg2_front_desc *d) { return d->heads_kv ? d->heads_kv : d->heads; }

static size_t svg2__front_layout(const svg2_front_desc *d, void *base, svg2__front_task *t)
{
    svg2__arena a = SVG2_ZERO;
    const int32_t piece = d->key_mean ? (int32_t)SVG2__CHUNK : (int32_t)SVG2__FRONT_TOKENS,
                  pieces = (d->tokens + piece - 1) / piece;
    float *partial = 0;
    a.base = (char *)base;
    if (d->key_mean)
        partial = svg2__take_f32(&a, svg2__count(d->batch, svg2__front_heads_kv(d), pieces, d->head_dim));
    if (t) {
        t->partial = partial;
        t->piece = piece;
        t->pieces = pieces;
    }
    return a.used;
}

static float svg2__front_inverse(const svg2__front_task *t, float square, int64_t count)
{
    return 1.0f / sqrtf(square / (float)count + t->epsilon);
}

/* sum [heads, pieces, D] or NULL */
static void svg2__front_token(const svg2__front_task *t, const svg2__front_side *s, int64_t b, int32_t token,
                              float *sum)
{
    const svg2_front_desc *d = t->d;
    const int32_t dim = d->head_dim;
    const int is_video = token >= t->video_begin && token < t->video_end;
    const size_t at = is_video ? (size_t)(token - t->video_begin) * (size_t)t->rope_stride : 0;
    float square = 0.0f;
    svg2__turn turn;
    int32_t h;
    memset(&turn, 0, sizeof turn);
    turn.src_dtype = s->in_layout.dtype;
    turn.dst_dtype = s->out_layout.dtype;
    turn.dim = dim;
    turn.is_half = d->pairing == SVG2_PAIRING_HALF;
    turn.inverse = 1.0f;
    if (d->norm == SVG2_NORM_TOKEN) {
        for (h = 0; h < s->heads; ++h)
            square += t->loops->square(svg2__row(s->in, &s->in_layout, b, h, token), turn.src_dtype, dim);
        turn.inverse = svg2__front_inverse(t, square, (int64_t)s->heads * dim);
    }
    for (h = 0; h < s->heads; ++h) {
        const size_t angles = at + (d->rope_heads > 1 ? (size_t)h * (size_t)(dim / 2) : 0);
        turn.src = svg2__row(s->in, &s->in_layout, b, h, token);
        turn.dst = s->out + svg2__row_at(&s->out_layout, b, h, token);
        if (d->norm == SVG2_NORM_HEAD)
            turn.inverse = svg2__front_inverse(t, t->loops->square(turn.src, turn.src_dtype, dim), dim);
        if (s->weight) turn.weight = s->weight + (d->norm == SVG2_NORM_TOKEN ? (size_t)h * (size_t)dim : 0);
        if (is_video && d->cosine) turn.cosine = d->cosine + angles, turn.sine = d->sine + angles;
        if (is_video && sum) turn.sum = sum + (size_t)h * (size_t)t->pieces * (size_t)dim;
        t->loops->turn(&turn);
    }
}

static void svg2__front_items(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__front_task *t = (const svg2__front_task *)task;
    const size_t dim = (size_t)t->d->head_dim, head = (size_t)t->pieces * dim; /* floats of a head's sums */
    (void)worker;
    for (; begin < end; ++begin) {
        const int64_t b = begin / t->pieces, first = begin % t->pieces * t->piece;
        const int32_t last = (int32_t)svg2__min64(first + t->piece, t->d->tokens);
        float *sum = t->partial ? t->partial + (size_t)(b * t->side[1].heads) * head
                                      + (size_t)(begin % t->pieces) * dim
                                : 0;
        int32_t token, h;
        for (h = 0; sum && h < t->side[1].heads; ++h) memset(sum + (size_t)h * head, 0, dim * sizeof(float));
        for (token = (int32_t)first; token < last; ++token) {
            svg2__front_token(t, &t->side[0], b, token, 0);
            svg2__front_token(t, &t->side[1], b, token, sum);
        }
    }
}

/* item = key head */
static void svg2__front_mean(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const svg2__front_task *t = (const svg2__front_task *)task;
    const size_t dim = (size_t)t->d->head_dim;
    (void)worker;
    for (; begin < end; ++begin) {
        const float *partial = t->partial + (size_t)begin * (size_t)t->pieces * dim;
        float *mean = t->d->key_mean + (size_t)begin * dim;
        int finite = 1;
        size_t i, piece;
        for (i = 0; i < dim; ++i) {
            double sum = 0.0;
            for (piece = 0; piece < (size_t)t->pieces; ++piece) sum += (double)partial[piece * dim + i];
            mean[i] = (float)(sum / (double)(t->video_end - t->video_begin));
            if (!(fabsf(mean[i]) <= 3.0e38f)) finite = 0;
        }
        if (!finite) memset(mean, 0, dim * sizeof(float));
    }
}

static svg2_result svg2__cpu_front(const svg2_backend *backend, const svg2_front_desc *d, void *workspace,
                                   svg2_error *err)
{
    const int32_t heads_kv = svg2__front_heads_kv(d);
    svg2__front_task t;
    memset(&t, 0, sizeof t);
    t.loops = svg2__loops_of(backend);
    t.d = d;
    t.side[0].in = (const char *)d->q;
    t.side[0].out = (char *)d->q_out;
    t.side[0].weight = d->q_weight;
    t.side[0].in_layout = svg2__layout(d->q_layout, d->heads, d->tokens, d->head_dim);
    t.side[0].out_layout = svg2__layout(d->q_out_layout, d->heads, d->tokens, d->head_dim);
    t.side[0].heads = d->q ? d->heads : 0;
    t.side[1].in = (const char *)d->k;
    t.side[1].out = (char *)d->k_out;
    t.side[1].weight = d->k_weight;
    t.side[1].in_layout = svg2__layout(d->k_layout, heads_kv, d->tokens, d->head_dim);
    t.side[1].out_layout = svg2__layout(d->k_out_layout, heads_kv, d->tokens, d->head_dim);
    t.side[1].heads = d->k ? heads_kv : 0;
    t.video_begin = d->video_begin;
    t.video_end = d->video_begin + (d->video_count ? d->video_count : d->tokens);
    t.rope_stride =
        d->rope_stride ? d->rope_stride : (int64_t)svg2__max32(d->rope_heads, 1) * (d->head_dim / 2);
    t.epsilon = d->epsilon > 0.0f ? d->epsilon : 1e-6f;
    (void)svg2__front_layout(d, workspace, &t);
    svg2__run(backend, svg2__front_items, &t, (int64_t)d->batch * t.pieces, 1);
    if (d->key_mean) svg2__run(backend, svg2__front_mean, &t, (int64_t)d->batch * heads_kv, 1);
    return svg2__ok(err);
}

/* An output is its input, or they have no byte in common: the ranges from their first to their last byte. */
static svg2_result svg2__check_apart(const void *in, svg2_layout in_layout, const void *out,
                                     svg2_layout out_layout, int32_t batch, int32_t heads, int32_t tokens,
                                     int32_t dim, const char *field, svg2_error *err)
{
    const svg2_layout i = svg2__layout(in_layout, heads, tokens, dim),
                      o = svg2__layout(out_layout, heads, tokens, dim);
    const uintptr_t in_begin = (uintptr_t)in, out_begin = (uintptr_t)out;
    const size_t last_in =
        svg2__row_at(&i, batch - 1, heads - 1, tokens - 1) + (size_t)dim * svg2__dtype_bytes(i.dtype);
    const size_t last_out =
        svg2__row_at(&o, batch - 1, heads - 1, tokens - 1) + (size_t)dim * svg2__dtype_bytes(o.dtype);
    if (in == out && svg2__dtype_bytes(i.dtype) == svg2__dtype_bytes(o.dtype)
        && i.stride_batch == o.stride_batch && i.stride_head == o.stride_head
        && i.stride_token == o.stride_token)
        return SVG2_OK;
    SVG2__CHECK(in_begin < out_begin ? out_begin - in_begin >= last_in : in_begin - out_begin >= last_out,
                SVG2_ERR_STRIDE, field, "overlaps its input without being the same");
    return SVG2_OK;
}

SVG2_API svg2_result svg2_front(const svg2_backend *backend, const svg2_front_desc *desc, void *workspace,
                                size_t workspace_bytes, svg2_error *err)
{
    const svg2_front_desc *d = desc;
    int32_t heads_kv, video;
    int64_t row;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(d, "desc");
    SVG2__TRY(svg2__check_extents(d->batch, d->heads, d->tokens, d->head_dim, err));
    SVG2__CHECK(d->heads_kv >= 0, SVG2_ERR_RANGE, "heads_kv", "must not be negative");
    heads_kv = svg2__front_heads_kv(d);
    SVG2__CHECK((int64_t)d->batch * heads_kv <= INT32_MAX, SVG2_ERR_OVERFLOW, "heads_kv",
                "batch*heads_kv overflows");
    SVG2__CHECK(d->video_begin >= 0 && d->video_count >= 0
                    && (d->video_count ? d->video_begin <= d->tokens - d->video_count : d->video_begin == 0),
                SVG2_ERR_RANGE, "video_count", "video_begin and video_count must lie inside tokens");
    video = d->video_count ? d->video_count : d->tokens;
    SVG2__CHECK(d->norm == SVG2_NORM_NONE || d->norm == SVG2_NORM_HEAD || d->norm == SVG2_NORM_TOKEN,
                SVG2_ERR_RANGE, "norm", "is not an svg2_norm");
    SVG2__CHECK(d->epsilon >= 0.0f && d->epsilon <= 3.0e38f, SVG2_ERR_RANGE, "epsilon",
                "must not be negative or infinite");
    SVG2__CHECK(d->pairing == SVG2_PAIRING_INTERLEAVED || d->pairing == SVG2_PAIRING_HALF, SVG2_ERR_RANGE,
                "pairing", "is not an svg2_pairing");
    SVG2__CHECK(d->norm != SVG2_NORM_NONE || !d->q_weight, SVG2_ERR_RANGE, "q_weight", "needs a norm");
    SVG2__CHECK(d->norm != SVG2_NORM_NONE || !d->k_weight, SVG2_ERR_RANGE, "k_weight", "needs a norm");
    if (d->cosine || d->sine) {
        SVG2__NOT_NULL(d->cosine, "cosine");
        SVG2__NOT_NULL(d->sine, "sine");
        SVG2__CHECK(d->rope_tokens == 0 || d->rope_tokens >= video, SVG2_ERR_SHAPE, "rope_tokens",
                    "the tables have fewer rows than there are video tokens");
        SVG2__CHECK(d->rope_heads == 0 || d->rope_heads == 1
                        || ((!d->q || d->rope_heads == d->heads) && (!d->k || d->rope_heads == heads_kv)),
                    SVG2_ERR_SHAPE, "rope_heads", "must be 1 or the heads of q and of k");
        row = (int64_t)svg2__max32(d->rope_heads, 1) * (d->head_dim / 2);
        SVG2__CHECK(d->rope_stride == 0 || d->rope_stride >= row, SVG2_ERR_STRIDE, "rope_stride",
                    "must be at least rope_heads * head_dim/2");
        SVG2__CHECK((d->rope_stride ? d->rope_stride : row) <= INT64_MAX / 16 / video, SVG2_ERR_OVERFLOW,
                    "rope_stride", "tokens times stride overflow");
    }
    SVG2__CHECK(d->q || d->k, SVG2_ERR_NULL, "q", "q or k must be given");
    SVG2__CHECK(d->k || !d->key_mean, SVG2_ERR_NULL, "k", "key_mean needs it");
    if (d->q) {
        SVG2__TRY(svg2__check_layout(d->q_layout, d->batch, d->heads, d->tokens, d->head_dim, 0, "q", err));
        SVG2__TRY(
            svg2__check_layout(d->q_out_layout, d->batch, d->heads, d->tokens, d->head_dim, 1, "q_out", err));
        SVG2__TRY(svg2__check_tensor(d->q, d->q_layout, "q", err));
        SVG2__TRY(svg2__check_tensor(d->q_out, d->q_out_layout, "q_out", err));
        SVG2__TRY(svg2__check_apart(d->q, d->q_layout, d->q_out, d->q_out_layout, d->batch, d->heads,
                                    d->tokens, d->head_dim, "q_out", err));
    }
    if (d->k) {
        SVG2__TRY(svg2__check_layout(d->k_layout, d->batch, heads_kv, d->tokens, d->head_dim, 0, "k", err));
        SVG2__TRY(
            svg2__check_layout(d->k_out_layout, d->batch, heads_kv, d->tokens, d->head_dim, 1, "k_out", err));
        SVG2__TRY(svg2__check_tensor(d->k, d->k_layout, "k", err));
        SVG2__TRY(svg2__check_tensor(d->k_out, d->k_out_layout, "k_out", err));
        SVG2__TRY(svg2__check_apart(d->k, d->k_layout, d->k_out, d->k_out_layout, d->batch, heads_kv,
                                    d->tokens, d->head_dim, "k_out", err));
    }
    SVG2__TRY(svg2__check_workspace(backend, SVG2_STAGE_FRONT, d, workspace, workspace_bytes, err));
    return backend->front(backend, d, workspace, err);
}

/* One axis of a table row: computed for the first token at this position, else copied from such a one. */
static void svg2__rope_axis(float *cosine, float *sine, int32_t pairs, double theta, int32_t position,
                            int is_first, size_t back)
{
    int32_t i;
    if (!is_first) {
        memcpy(cosine, cosine - back, (size_t)pairs * sizeof(float));
        memcpy(sine, sine - back, (size_t)pairs * sizeof(float));
        return;
    }
    for (i = 0; i < pairs; ++i) {
        const double angle = (double)position * pow(theta, -(double)i / (double)pairs);
        cosine[i] = (float)cos(angle);
        sine[i] = (float)sin(angle);
    }
}

SVG2_API svg2_result svg2_rope_table(const svg2_rope_desc *desc, float *cosine, float *sine, size_t count,
                                     svg2_error *err)
{
    const svg2_rope_desc *d = desc;
    int32_t axes[3], half, at[3];
    size_t row, frame, token;
    double theta;
    SVG2__NOT_NULL(d, "desc");
    SVG2__CHECK(d->head_dim >= 8 && d->head_dim <= SVG2__MAX_DIM && d->head_dim % 8 == 0, SVG2_ERR_RANGE,
                "head_dim", "must be a multiple of 8 between 8 and 256");
    SVG2__CHECK(d->frames >= 1 && d->height >= 1 && d->width >= 1, SVG2_ERR_RANGE, "frames",
                "frames, height and width must be at least 1");
    SVG2__CHECK(svg2__count(d->frames, d->height, d->width, 1) <= (size_t)(INT32_MAX - 1023),
                SVG2_ERR_OVERFLOW, "frames", "frames*height*width overflows");
    memcpy(axes, d->axes, sizeof axes);
    if (!axes[0] && !axes[1] && !axes[2]) {
        axes[1] = axes[2] = d->head_dim / 6 * 2;
        axes[0] = d->head_dim - 2 * axes[1];
    }
    SVG2__CHECK(axes[0] >= 0 && axes[1] >= 0 && axes[2] >= 0 && axes[0] % 2 == 0 && axes[1] % 2 == 0
                    && axes[2] % 2 == 0,
                SVG2_ERR_RANGE, "axes", "must be even and not negative");
    SVG2__CHECK((int64_t)axes[0] + axes[1] + axes[2] == d->head_dim, SVG2_ERR_SHAPE, "axes",
                "must add up to head_dim");
    SVG2__CHECK(d->theta >= 0.0f && d->theta <= 3.0e38f, SVG2_ERR_RANGE, "theta",
                "must be positive and finite");
    theta = d->theta > 0.0f ? (double)d->theta : 10000.0;
    half = d->head_dim / 2;
    SVG2__CHECK(svg2__mul((size_t)half, (size_t)d->frames * (size_t)d->height * (size_t)d->width) <= count,
                SVG2_ERR_WORKSPACE, "count", "is smaller than frames*height*width*head_dim/2");
    SVG2__NOT_NULL(cosine, "cosine");
    SVG2__NOT_NULL(sine, "sine");
    row = (size_t)d->width * (size_t)half;
    frame = (size_t)d->height * row;
    for (at[0] = 0, token = 0; at[0] < d->frames; ++at[0])
        for (at[1] = 0; at[1] < d->height; ++at[1])
            for (at[2] = 0; at[2] < d->width; ++at[2], ++token) {
                float *c = cosine + token * (size_t)half, *s = sine + token * (size_t)half;
                const int32_t column = axes[0] / 2 + axes[1] / 2;
                svg2__rope_axis(c, s, axes[0] / 2, theta, at[0], !at[1] && !at[2], (size_t)half);
                svg2__rope_axis(c + axes[0] / 2, s + axes[0] / 2, axes[1] / 2, theta, at[1], !at[0] && !at[2],
                                at[2] ? (size_t)half : frame);
                svg2__rope_axis(c + column, s + column, axes[2] / 2, theta, at[2], !at[0] && !at[1],
                                at[1] ? row : frame);
            }
    return svg2__ok(err);
}

/* ==== >>schedule ========================================================================= */
static int svg2__is_warm_up(const svg2_desc *d, int32_t step)
{
    return d->layer < d->dense_layers || step < d->dense_steps;
}

SVG2_API svg2_action svg2_schedule(const svg2_desc *desc, int32_t step)
{
    if (!desc || desc->method == SVG2_METHOD_DENSE) return SVG2_ACTION_DENSE;
    if (!svg2__is_warm_up(desc, step)) {
        int32_t i;
        if (desc->method != SVG2_METHOD_ADASPA || desc->search_count < 1) return SVG2_ACTION_SPARSE;
        if (step < desc->search_steps[0]) return SVG2_ACTION_DENSE;
        for (i = 0; i < desc->search_count; ++i)
            if (step == desc->search_steps[i]) return i ? SVG2_ACTION_SEARCH_CACHED : SVG2_ACTION_SEARCH;
        return SVG2_ACTION_SPARSE;
    }
    /* a layer that is always dense has no use for clusters */
    return desc->method == SVG2_METHOD_SVG2 && desc->init_on_dense && desc->layer >= desc->dense_layers
               ? SVG2_ACTION_DENSE_INIT
               : SVG2_ACTION_DENSE;
}

/* The authors' scripts (Sparse-VideoGen 5ce7b01, scripts/ *_sap.sh): dense steps and layers are their ratios of the
   schedule, rounded down as their code does. Not every model has published SVG2 settings: "nearest" takes those of
   the nearest row that has, "default" the library's (0). Text: tokens, and whether they come first. SVG1's keep is what
   scripts/ *_svg.sh call sparsity, and they have the same dense steps and layers and, all, 64 sampled rows. ADASPA, by its
   paper (arXiv 2502.21079): sparsity 0.8, blocks of 64, searched at steps 10 and 30 of 50, dense before. */
/* clang-format off */
static const svg2_preset svg2__presets[] = {
    /* name, then heads, head_dim, layers, frames, frame_tokens, text_tokens, text_first, query and key clusters, top_p,
       min_keep, keep, init and step iterations, steps, dense steps, dense layers, init_on_dense, note */
    {"wan2.1-t2v-14b-720p",      40, 128, 40, 21, 3600,   0, 0, 300, 1000, 0.9f, 0.1f,  0.3f, 50, 2, 50, 10, 1, 0, "published"},
    {"wan2.1-i2v-14b-720p",      40, 128, 40, 21, 3600,   0, 0, 300, 1000, 0.9f, 0.1f,  0.3f, 50, 2, 40, 14, 1, 0, "published"},
    {"wan2.1-i2v-14b-480p",      40, 128, 40, 21, 1560,   0, 0, 200, 1000, 0.9f, 0.1f,  0.3f, 50, 2, 40,  8, 1, 1, "published"},
    {"wan2.1-t2v-14b-480p",      40, 128, 40, 21, 1560,   0, 0, 200, 1000, 0.9f, 0.1f,  0.3f, 50, 2, 50, 10, 1, 1, "nearest"},
    {"wan2.2-t2v-a14b-720p",     40, 128, 40, 21, 3600,   0, 0, 300, 1000, 0.9f, 0.1f,  0.3f, 50, 2, 40,  8, 1, 0, "nearest"},
    {"wan2.2-i2v-a14b-720p",     40, 128, 40, 21, 3600,   0, 0, 300, 1000, 0.9f, 0.1f,  0.3f, 50, 2, 40, 14, 1, 0, "nearest"},
    {"wan2.2-t2v-a14b-480p",     40, 128, 40, 21, 1560,   0, 0, 200, 1000, 0.9f, 0.1f,  0.3f, 50, 2, 40,  8, 1, 1, "nearest"},
    {"hunyuanvideo-720p",        24, 128, 60, 33, 3600, 256, 0, 400, 1000, 0.9f, 0.1f, 0.25f, 50, 2, 50,  5, 1, 1, "published"},
    {"hunyuanvideo-480p",        24, 128, 60, 33, 1350, 256, 0, 200, 1000, 0.9f, 0.1f,  0.2f, 50, 2, 50,  2, 0, 1, "published"},
    {"cosmos-predict2-14b-720p", 40, 128, 36, 16, 3520,   0, 0, 400, 1000, 0.9f, 0.1f, 0.25f, 50, 2, 35, 10, 1, 0, "published"},
    {"cogvideox1.5-5b-768p",     48,  64, 42, 11, 4080, 226, 1,   0,    0, 0.9f, 0.1f,     0,  0, 0, 50, 10, 1, 0, "default"},
};
/* clang-format on */
enum { SVG2__PRESETS = sizeof svg2__presets / sizeof svg2__presets[0] };

SVG2_API int32_t svg2_preset_count(void)
{
    return SVG2__PRESETS;
}

SVG2_API const svg2_preset *svg2_preset_at(int32_t index)
{
    return index >= 0 && index < SVG2__PRESETS ? &svg2__presets[index] : 0;
}

SVG2_API const svg2_preset *svg2_preset_find(const char *name)
{
    int32_t i;
    for (i = 0; name && i < SVG2__PRESETS; ++i)
        if (!strcmp(svg2__presets[i].name, name)) return &svg2__presets[i];
    return 0;
}

SVG2_API svg2_result svg2_preset_apply(const svg2_preset *preset, svg2_desc *desc, svg2_error *err)
{
    SVG2__NOT_NULL(preset, "preset");
    SVG2__NOT_NULL(desc, "desc");
    memset(desc, 0, sizeof *desc);
    desc->heads = preset->heads;
    desc->head_dim = preset->head_dim;
    desc->frames = preset->frames;
    desc->frame_tokens = preset->frame_tokens;
    desc->text_tokens = preset->text_tokens;
    desc->tokens = preset->frames * preset->frame_tokens + preset->text_tokens;
    desc->query_clusters = preset->query_clusters;
    desc->key_clusters = preset->key_clusters;
    desc->top_p = preset->top_p;
    desc->min_keep = preset->min_keep;
    desc->keep = preset->keep;
    desc->init_iterations = preset->init_iterations;
    desc->step_iterations = preset->step_iterations;
    desc->dense_steps = preset->dense_steps;
    desc->dense_layers = preset->dense_layers;
    desc->init_on_dense = preset->init_on_dense;
    desc->tail = SVG2_TAIL_NONE;
    desc->route = SVG2_ROUTE_MASS;
    desc->budget = SVG2_BUDGET_ROW;
    desc->text_place = preset->text_first ? SVG2_TEXT_FIRST : SVG2_TEXT_LAST;
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_cost_estimate(const svg2_desc *desc, double density, int32_t is_warm, svg2_cost *cost,
                                        svg2_error *err)
{
    svg2_desc d;
    double heads, heads_kv, dim, sq, sk, cq, ck, iterations;
    SVG2__NOT_NULL(desc, "desc");
    SVG2__NOT_NULL(cost, "cost");
    SVG2__CHECK(density >= 0.0 && density <= 1.0, SVG2_ERR_RANGE, "density", "must be in [0, 1]");
    d = *desc;
    SVG2__TRY(svg2_resolve(&d, err));
    heads = (double)d.batch * d.heads, heads_kv = (double)d.batch * d.heads_kv, dim = d.head_dim;
    sq = d.tokens, sk = d.tokens_kv, cq = d.query_clusters, ck = d.key_clusters;
    memset(cost, 0, sizeof *cost);
    cost->dense_flops = 4.0 * heads * sq * sk * dim;
    cost->attention_flops = cost->dense_flops * density;
    if (d.method == SVG2_METHOD_DENSE) {
        cost->attention_flops = cost->dense_flops * (d.skip ? 0.5 + 0.5 * density : 1.0);
        cost->ratio = cost->attention_flops / cost->dense_flops;
        return svg2__ok(err);
    }
    if (d.method != SVG2_METHOD_SVG2) {
        cq = svg2__side_blocks(&d, 0), ck = svg2__side_blocks(&d, 1);
        if (d.method == SVG2_METHOD_SVG1) cost->select_flops = 8.0 * heads * (double)d.sample_rows * sk * dim;
        else if (!is_warm) cost->attention_flops = cost->dense_flops, cost->select_flops = cost->dense_flops / 2.0;
        if (d.tail != SVG2_TAIL_NONE && is_warm) cost->tail_flops = 4.0 * heads * sq * ck * (1.0 - density) * dim;
        if (d.tail == SVG2_TAIL_ORDER1 && is_warm) cost->tail_flops += heads * 2.0 * dim * dim * (sk + cq * ck + sq);
        cost->ratio = (cost->select_flops + cost->tail_flops + cost->attention_flops) / cost->dense_flops;
        return svg2__ok(err);
    }
    iterations = is_warm ? (d.step_iterations < 1 ? 1 : d.step_iterations) : d.init_iterations + 1; /* seeding is about one */
    cost->kmeans_flops = iterations * 2.0 * dim * (heads * sq * cq + heads_kv * sk * ck);
    cost->select_flops = 2.0 * heads * cq * ck * dim;
    if (d.tail != SVG2_TAIL_NONE || d.route == SVG2_ROUTE_SPREAD || d.target_error > 0.0f)
        cost->select_flops += 2.0 * heads * (cq * sk + sq * ck) * dim;
    if (d.tail != SVG2_TAIL_NONE) cost->tail_flops = 4.0 * heads * sq * ck * (1.0 - density) * dim;
    if (d.tail == SVG2_TAIL_ORDER1) cost->tail_flops += heads * 2.0 * dim * dim * (sk + cq * ck + sq);
    cost->ratio = (cost->kmeans_flops + cost->select_flops + cost->tail_flops + cost->attention_flops)
                  / cost->dense_flops;
    return svg2__ok(err);
}

/* ==== >>pipeline ========================================================================= */
SVG2_API void svg2_default_clusters(int32_t video_tokens, int32_t *query_clusters, int32_t *key_clusters)
{
    /* The published 300/1000 at 75,600 tokens, scaled with the root of the token count: then the cost of
       clustering and of virtual keys falls, relative to dense attention, as sequences grow, and short ones keep
       enough clusters. */
    const double root = sqrt((double)(video_tokens < 1 ? 1 : video_tokens));
    int32_t q = svg2__round_up((int32_t)(1.1 * root + 0.5), 4),
            k = svg2__round_up((int32_t)(3.6 * root + 0.5), 4);
    if (query_clusters) *query_clusters = svg2__min32(q, SVG2__MAX_CLUSTERS);
    if (key_clusters) *key_clusters = svg2__min32(k, SVG2__MAX_CLUSTERS);
}

/* The fields of SVG1 and ADASPA, whatever the method: a field that is wrong is wrong. */
static svg2_result svg2__resolve_tiles(svg2_desc *d, svg2_error *err)
{
    const int64_t video = d->tokens - d->text_tokens, video_kv = d->tokens_kv - d->text_tokens;
    int32_t i;
    if (d->block == 0) d->block = 64;
    if (d->keep == 0.0f) d->keep = 0.3f;
    if (d->sample_rows == 0) d->sample_rows = 64;
    if (d->first_frame == 0) d->first_frame = d->text_tokens > 0 ? -1 : 1;
    if (d->sparsity == 0.0f) d->sparsity = 0.8f;
    SVG2__CHECK(d->block >= 1, SVG2_ERR_RANGE, "block", "must be at least 1");
    SVG2__CHECK(d->keep > 0.0f && d->keep <= 1.0f, SVG2_ERR_RANGE, "keep", "must be in (0, 1]");
    SVG2__CHECK(d->sample_rows >= 1 && d->sample_rows <= 65536, SVG2_ERR_RANGE, "sample_rows",
                "must be between 1 and 65536");
    SVG2__CHECK(d->first_frame == 1 || d->first_frame == -1, SVG2_ERR_RANGE, "first_frame", "must be 1, or -1 for no");
    SVG2__CHECK(d->band_width >= 0, SVG2_ERR_RANGE, "band_width", "must not be negative");
    SVG2__CHECK((d->sparsity > 0.0f && d->sparsity < 1.0f) || d->sparsity == -1.0f, SVG2_ERR_RANGE, "sparsity",
                "must be in (0, 1), or -1 for 0");
    SVG2__CHECK(d->mass_target >= 0.0f && d->mass_target <= 1.0f, SVG2_ERR_RANGE, "mass_target", "must be in [0, 1]");
    SVG2__CHECK(d->search_count >= 0 && d->search_count <= SVG2_MAX_SEARCHES, SVG2_ERR_RANGE, "search_count",
                "must be between 0 and SVG2_MAX_SEARCHES");
    if (d->search_count == 0) {
        d->search_count = 2;
        d->search_steps[0] = d->dense_steps;
        d->search_steps[1] = (int32_t)svg2__min64((int64_t)d->dense_steps + 20, INT32_MAX);
    }
    for (i = 0; i < d->search_count; ++i)
        SVG2__CHECK(d->search_steps[i] >= 0 && (i == 0 || d->search_steps[i] > d->search_steps[i - 1]), SVG2_ERR_RANGE,
                    "search_steps", "must ascend, from 0 or more");
    if (d->method == SVG2_METHOD_SVG1) {
        SVG2__CHECK(d->frames >= 1, SVG2_ERR_SHAPE, "frames", "is needed for SVG1, and so is frame_tokens");
        SVG2__CHECK(d->tokens == d->tokens_kv, SVG2_ERR_SHAPE, "tokens_kv", "must be tokens for SVG1");
        SVG2__CHECK(d->tail == SVG2_TAIL_NONE, SVG2_ERR_SHAPE, "tail", "must be none for SVG1");
        if (d->band_width == 0)
            d->band_width = svg2_band_width(d->frames, d->frame_tokens, d->block, d->first_frame == 1,
                                            d->text_valid < 0 ? 0 : d->text_valid, d->keep);
    }
    if (d->method == SVG2_METHOD_SVG1 || d->method == SVG2_METHOD_ADASPA)
        SVG2__CHECK((video > video_kv ? video : video_kv) / d->block < SVG2__MAX_CLUSTERS - 1, SVG2_ERR_RANGE, "block",
                    "makes more than 65536 blocks");
    return SVG2_OK;
}

SVG2_API svg2_result svg2_resolve(svg2_desc *desc, svg2_error *err)
{
    svg2_desc d;
    int32_t cq, ck;
    SVG2__NOT_NULL(desc, "desc");
    d = *desc;
    if (d.batch == 0) d.batch = 1;
    if (d.heads_kv == 0) d.heads_kv = d.heads;
    if (d.tokens_kv == 0) d.tokens_kv = d.tokens;
    SVG2__TRY(svg2__check_extents(d.batch, d.heads, d.tokens, d.head_dim, err));
    SVG2__TRY(svg2__check_heads_kv(d.heads, d.heads_kv, err));
    SVG2__TRY(svg2__check_tokens(d.tokens_kv, "tokens_kv", err));
    if (d.scale == 0.0f) d.scale = 1.0f / sqrtf((float)d.head_dim);
    SVG2__CHECK(fabsf(d.scale) <= 3.0e38f, SVG2_ERR_RANGE, "scale", "must be finite");
    SVG2__TRY(svg2__check_layout(d.q, d.batch, d.heads, d.tokens, d.head_dim, 0, "q", err));
    SVG2__TRY(svg2__check_layout(d.k, d.batch, d.heads_kv, d.tokens_kv, d.head_dim, 0, "k", err));
    SVG2__TRY(svg2__check_layout(d.v, d.batch, d.heads_kv, d.tokens_kv, d.head_dim, 0, "v", err));
    SVG2__TRY(svg2__check_layout(d.out, d.batch, d.heads, d.tokens, d.head_dim, 1, "out", err));

    SVG2__CHECK(d.text_tokens >= 0, SVG2_ERR_RANGE, "text_tokens", "must not be negative");
    SVG2__CHECK(d.text_tokens < d.tokens && d.text_tokens < d.tokens_kv, SVG2_ERR_SHAPE, "text_tokens",
                "must leave at least one video token");
    SVG2__CHECK(d.text_place == SVG2_TEXT_LAST || d.text_place == SVG2_TEXT_FIRST, SVG2_ERR_RANGE, "text_place",
                "must be SVG2_TEXT_LAST or SVG2_TEXT_FIRST");
    if (d.text_valid == 0) d.text_valid = d.text_tokens;
    SVG2__CHECK(d.text_valid >= -1 && d.text_valid <= d.text_tokens, SVG2_ERR_RANGE, "text_valid",
                "must be between 1 and text_tokens, or -1 for none");
    SVG2__CHECK(d.frames >= 0, SVG2_ERR_RANGE, "frames", "must not be negative");
    SVG2__CHECK(d.frame_tokens >= 0, SVG2_ERR_RANGE, "frame_tokens", "must not be negative");
    SVG2__CHECK((d.frames == 0 && d.frame_tokens == 0)
                    || (int64_t)d.frames * d.frame_tokens == (int64_t)d.tokens_kv - d.text_tokens,
                SVG2_ERR_SHAPE, "frame_tokens", "frames*frame_tokens must be the number of video tokens");

    SVG2__CHECK(d.method >= SVG2_METHOD_SVG2 && d.method <= SVG2_METHOD_ADASPA, SVG2_ERR_RANGE, "method",
                "must be SVG2, DENSE, SVG1 or ADASPA");
    svg2_default_clusters(d.tokens - d.text_tokens, &cq, 0);
    svg2_default_clusters(d.tokens_kv - d.text_tokens, 0, &ck);
    if (d.query_clusters == 0) d.query_clusters = cq;
    if (d.key_clusters == 0) d.key_clusters = ck;
    SVG2__CHECK(d.query_clusters >= 1 && d.query_clusters <= 65536, SVG2_ERR_RANGE, "query_clusters",
                "must be between 1 and 65536");
    SVG2__CHECK(d.key_clusters >= 1 && d.key_clusters <= 65536, SVG2_ERR_RANGE, "key_clusters",
                "must be between 1 and 65536");
    if (d.init_iterations == 0) d.init_iterations = 10;
    if (d.step_iterations == 0) d.step_iterations = 2;
    SVG2__CHECK(d.init_iterations >= 1 && d.init_iterations <= 10000, SVG2_ERR_RANGE, "init_iterations",
                "must be between 1 and 10000");
    SVG2__CHECK(d.step_iterations >= -1 && d.step_iterations <= 10000, SVG2_ERR_RANGE, "step_iterations",
                "must be between 1 and 10000, or -1 for none");
    SVG2__CHECK(d.keep_empty == 0 || d.keep_empty == 1, SVG2_ERR_RANGE, "keep_empty", "must be 0 or 1");

    if (d.tail == SVG2_TAIL_DEFAULT) d.tail = d.method == SVG2_METHOD_SVG2 ? SVG2_TAIL_ORDER1 : SVG2_TAIL_NONE;
    SVG2__CHECK(d.tail >= SVG2_TAIL_NONE && d.tail <= SVG2_TAIL_ORDER1, SVG2_ERR_RANGE, "tail",
                "must be none, order 0 or order 1");
    if (d.route == SVG2_ROUTE_DEFAULT) d.route = SVG2_ROUTE_MASS;
    if (d.budget == SVG2_BUDGET_DEFAULT) d.budget = d.tail == SVG2_TAIL_NONE ? SVG2_BUDGET_ROW : SVG2_BUDGET_HEAD;
    SVG2__CHECK(d.route == SVG2_ROUTE_MASS || d.route == SVG2_ROUTE_SPREAD, SVG2_ERR_RANGE, "route",
                "must be mass or spread");
    SVG2__CHECK(d.budget == SVG2_BUDGET_ROW || d.budget == SVG2_BUDGET_HEAD, SVG2_ERR_RANGE, "budget",
                "must be row or head");
    if (d.tail != SVG2_TAIL_NONE && d.top_p == 0.0f && d.density == 0.0f && d.target_error == 0.0f)
        d.target_error = 0.02f;
    if (d.top_p == 0.0f) d.top_p = 0.9f;
    if (d.min_keep == 0.0f)
        d.min_keep = d.budget == SVG2_BUDGET_ROW && d.density == 0.0f && d.target_error == 0.0f ? 0.1f : -1.0f;
    if (d.dense_above == 0.0f) d.dense_above = 0.8f;
    SVG2__CHECK(d.top_p > 0.0f && d.top_p <= 1.0f, SVG2_ERR_RANGE, "top_p", "must be in (0, 1]");
    SVG2__CHECK((d.min_keep > 0.0f && d.min_keep <= 1.0f) || d.min_keep == -1.0f, SVG2_ERR_RANGE, "min_keep",
                "must be in (0, 1], or -1 for none");
    SVG2__CHECK(d.density >= 0.0f && d.density <= 1.0f, SVG2_ERR_RANGE, "density", "must be in [0, 1]");
    SVG2__CHECK(d.target_error >= 0.0f && d.target_error <= 3.0e38f, SVG2_ERR_RANGE, "target_error",
                "must not be negative");
    SVG2__CHECK(d.density == 0.0f || d.target_error == 0.0f, SVG2_ERR_SHAPE, "target_error", "excludes density");
    SVG2__CHECK(d.dense_above > 0.0f && d.dense_above <= 1.0f, SVG2_ERR_RANGE, "dense_above",
                "must be in (0, 1]");

    if (d.visit == SVG2_VISIT_DEFAULT)
        d.visit = d.method == SVG2_METHOD_DENSE ? SVG2_VISIT_DIAGONAL : SVG2_VISIT_NATURAL;
    SVG2__CHECK(d.visit == SVG2_VISIT_NATURAL || d.visit == SVG2_VISIT_DIAGONAL, SVG2_ERR_RANGE, "visit",
                "must be natural or diagonal");
    if (d.skip_threshold == 0.0f) d.skip_threshold = 0.1f;
    if (d.energy_lambda == 0.0f) {
        d.energy_lambda = logf(1.464f * (float)SVG2__SKIP_KEYS / (float)d.tokens_kv);
        if (!(d.energy_lambda < -0.01f)) d.energy_lambda = -0.01f; /* fewer keys than two tiles */
    }
    if (d.recall == 0.0f) d.recall = 0.95f;
    SVG2__TRY(svg2__check_skip(d.skip, d.skip_threshold, d.energy_lambda, d.recall, err));
    SVG2__CHECK(d.seed_lse == 0 || d.seed_lse == 1, SVG2_ERR_RANGE, "seed_lse", "must be 0 or 1");
    /* from step to step the LSE of some rows falls by more than the 0.25 of the proof: a recall of 0.9 became 0.62 in a
       clip of examples/wan, for no less work */
    SVG2__CHECK(d.seed_lse == 0 || d.skip != SVG2_SKIP_RECALL, SVG2_ERR_SHAPE, "seed_lse",
                "excludes a recall that every row keeps");

    SVG2__CHECK(d.layer >= 0, SVG2_ERR_RANGE, "layer", "must not be negative");
    SVG2__CHECK(d.dense_layers >= 0, SVG2_ERR_RANGE, "dense_layers", "must not be negative");
    SVG2__CHECK(d.dense_steps >= 0, SVG2_ERR_RANGE, "dense_steps", "must not be negative");
    SVG2__CHECK(d.init_on_dense == 0 || d.init_on_dense == 1, SVG2_ERR_RANGE, "init_on_dense", "must be 0 or 1");
    SVG2__CHECK(svg2__dtype_valid(d.state_dtype), SVG2_ERR_DTYPE, "state_dtype",
                "must be SVG2_F32, SVG2_F16 or SVG2_BF16");
    SVG2__TRY(svg2__resolve_tiles(&d, err));
    *desc = d;
    return svg2__ok(err);
}

/* ---- state ---- */
#define SVG2__STATE_MAGIC 0x32677673u /* "svg2" */

static size_t svg2__state_elements(int32_t batch, int32_t heads, int32_t heads_kv, int32_t dim, int32_t cq,
                                   int32_t ck)
{
    return svg2__add(svg2__count(batch, heads, cq, dim), svg2__count(batch, heads_kv, ck, dim));
}

/* State of ADASPA. */
typedef struct svg2__searched {
    float    *lse;
    uint32_t *bits;
    float    *recall;
} svg2__searched;

/* Each array begins at a multiple of 256 bytes, as the pickiest backend wants: a state moves between them as it is. No
   arena: state memory is copied whole, so it has no gaps that may not be touched. */
static size_t svg2__searched_layout(const svg2_desc *d, void *memory, svg2__searched *s)
{
    const int64_t heads = (int64_t)d->batch * d->heads, words = ((int64_t)svg2__side_blocks(d, 1) + 31) / 32;
    const size_t lse = svg2__mul(svg2__count(heads, d->tokens, 1, 1), sizeof(float));
    const size_t bits = svg2__mul(svg2__count(heads, svg2__side_blocks(d, 0), words, 1), sizeof(uint32_t));
    const size_t recall = svg2__mul(svg2__count(heads, 3, 1, 1), sizeof(float));
    const size_t bits_at = svg2__add(lse, 255) / 256 * 256,
                 recall_at = svg2__add(bits_at, svg2__add(bits, 255) / 256 * 256);
    char *base = (char *)memory;
    if (s) {
        s->lse = (float *)(void *)base;
        s->bits = (uint32_t *)(void *)(base + bits_at);
        s->recall = (float *)(void *)(base + recall_at);
    }
    return lse == SIZE_MAX || bits == SIZE_MAX ? SIZE_MAX : svg2__add(recall_at, recall);
}

SVG2_API size_t svg2_state_bytes(const svg2_desc *desc)
{
    svg2_desc d;
    if (!desc) return SIZE_MAX;
    d = *desc;
    if (svg2_resolve(&d, 0) != SVG2_OK) return SIZE_MAX;
    if (d.method == SVG2_METHOD_DENSE || d.method == SVG2_METHOD_SVG1) return 0;
    if (d.method == SVG2_METHOD_ADASPA) return svg2__searched_layout(&d, 0, 0);
    return svg2__mul(
        svg2__state_elements(d.batch, d.heads, d.heads_kv, d.head_dim, d.query_clusters, d.key_clusters),
        svg2__dtype_bytes(d.state_dtype));
}

SVG2_API svg2_result svg2_state_init(svg2_state *state, const svg2_desc *desc, void *memory, size_t memory_bytes,
                                     svg2_error *err)
{
    svg2_desc d;
    size_t need;
    SVG2__NOT_NULL(state, "state");
    SVG2__NOT_NULL(desc, "desc");
    d = *desc;
    SVG2__TRY(svg2_resolve(&d, err));
    need = svg2_state_bytes(&d);
    SVG2__TRY(svg2__check_memory(memory, memory_bytes, need, SVG2_ALIGN, "memory", err));
    memset(state, 0, sizeof *state);
    state->magic = SVG2__STATE_MAGIC;
    state->batch = d.batch;
    state->heads = d.heads;
    state->heads_kv = d.heads_kv;
    state->head_dim = d.head_dim;
    state->method = d.method;
    state->query_clusters = d.method == SVG2_METHOD_ADASPA ? svg2__side_blocks(&d, 0) : d.query_clusters;
    state->key_clusters = d.method == SVG2_METHOD_ADASPA ? svg2__side_blocks(&d, 1) : d.key_clusters;
    state->tokens = d.method == SVG2_METHOD_ADASPA ? d.tokens : 0;
    state->dtype = d.state_dtype;
    state->memory = need ? memory : 0; /* a dense state owns none, and fits no sparse call */
    state->memory_bytes = need;
    return svg2__ok(err);
}

SVG2_API void svg2_state_reset(svg2_state *state)
{
    if (!state) return;
    state->is_warm = 0;
    state->calls = 0;
}

static svg2_result svg2__check_state(const svg2_state *state, const svg2_desc *d, svg2_error *err)
{
    SVG2__NOT_NULL(state, "state");
    SVG2__CHECK(state->magic == SVG2__STATE_MAGIC, SVG2_ERR_STATE, "state", "was never initialised");
    SVG2__CHECK(state->method == d->method, SVG2_ERR_STATE, "state", "was initialised for another method");
    SVG2__CHECK(state->batch == d->batch && state->heads == d->heads && state->heads_kv == d->heads_kv
                    && state->head_dim == d->head_dim && state->dtype == d->state_dtype && state->memory
                    && (d->method == SVG2_METHOD_ADASPA
                            ? state->query_clusters == svg2__side_blocks(d, 0)
                                  && state->key_clusters == svg2__side_blocks(d, 1) && state->tokens == d->tokens
                            : state->query_clusters == d->query_clusters && state->key_clusters == d->key_clusters),
                SVG2_ERR_STATE, "state", "was initialised for another shape");
    return SVG2_OK;
}

/* Saved form, in the machine's byte order (a foreign one fails the magic): header, centroids, FNV-1a of all
   that. */
typedef struct svg2__state_header {
    uint32_t magic, version;
    int32_t batch, heads, heads_kv, head_dim, query_clusters, key_clusters, dtype, is_warm, calls, method, tokens,
        unused;
} svg2__state_header;

static uint64_t svg2__fnv1a(const void *bytes, size_t count)
{
    const unsigned char *p = (const unsigned char *)bytes;
    uint64_t hash = 0xcbf29ce484222325u;
    size_t i;
    for (i = 0; i < count; ++i) hash = (hash ^ p[i]) * 0x100000001b3u;
    return hash;
}

SVG2_API size_t svg2_state_save_bytes(const svg2_state *state)
{
    if (!state || state->magic != SVG2__STATE_MAGIC) return SIZE_MAX;
    return svg2__add(state->memory_bytes, sizeof(svg2__state_header) + sizeof(uint64_t));
}

static svg2__state_header svg2__state_header_of(const svg2_state *state)
{
    svg2__state_header h;
    memset(&h, 0, sizeof h);
    h.magic = SVG2__STATE_MAGIC;
    h.version = 2;
    h.batch = state->batch;
    h.heads = state->heads;
    h.heads_kv = state->heads_kv;
    h.head_dim = state->head_dim;
    h.query_clusters = state->query_clusters;
    h.key_clusters = state->key_clusters;
    h.dtype = (int32_t)state->dtype;
    h.is_warm = state->is_warm;
    h.calls = state->calls;
    h.method = (int32_t)state->method;
    h.tokens = state->tokens;
    return h;
}

SVG2_API svg2_result svg2_state_save(const svg2_backend *backend, const svg2_state *state, void *bytes,
                                     size_t count, svg2_error *err)
{
    svg2__state_header h;
    uint64_t hash;
    char *out = (char *)bytes;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(state, "state");
    SVG2__CHECK(state->magic == SVG2__STATE_MAGIC, SVG2_ERR_STATE, "state", "was never initialised");
    SVG2__NOT_NULL(bytes, "bytes");
    SVG2__CHECK(count >= svg2_state_save_bytes(state), SVG2_ERR_WORKSPACE, "bytes",
                "is smaller than svg2_state_save_bytes()");
    h = svg2__state_header_of(state);
    memcpy(out, &h, sizeof h);
    if (state->is_warm)
        SVG2__TRY(backend->copy_out(backend, out + sizeof h, state->memory, state->memory_bytes, err));
    else memset(out + sizeof h, 0, state->memory_bytes);
    hash = svg2__fnv1a(out, sizeof h + state->memory_bytes);
    memcpy(out + sizeof h + state->memory_bytes, &hash, sizeof hash);
    return svg2__ok(err);
}

SVG2_API svg2_result svg2_state_load(const svg2_backend *backend, svg2_state *state, const void *bytes,
                                     size_t count, svg2_error *err)
{
    svg2__state_header have, want;
    uint64_t hash;
    const char *in = (const char *)bytes;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(state, "state");
    SVG2__CHECK(state->magic == SVG2__STATE_MAGIC, SVG2_ERR_STATE, "state", "was never initialised");
    SVG2__NOT_NULL(bytes, "bytes");
    SVG2__CHECK(count >= sizeof have + sizeof hash, SVG2_ERR_DATA, "bytes", "are too few for a saved state");
    memcpy(&have, in, sizeof have);
    memcpy(&hash, in + count - sizeof hash, sizeof hash);
    want = svg2__state_header_of(state);
    SVG2__CHECK(have.magic == want.magic && have.version == want.version, SVG2_ERR_DATA, "bytes",
                "are not a saved state of this version and byte order");
    SVG2__CHECK(hash == svg2__fnv1a(in, count - sizeof hash), SVG2_ERR_DATA, "bytes", "are damaged (checksum)");
    want.is_warm = have.is_warm;
    want.calls = have.calls;
    SVG2__CHECK(memcmp(&have, &want, sizeof have) == 0, SVG2_ERR_STATE, "bytes",
                "were saved from a state of another shape");
    SVG2__CHECK(count == svg2_state_save_bytes(state) && (have.is_warm == 0 || have.is_warm == 1) && have.calls >= 0,
                SVG2_ERR_DATA, "bytes", "are not a saved state");
    if (have.is_warm)
        SVG2__TRY(backend->copy_in(backend, state->memory, in + sizeof have, state->memory_bytes, err));
    state->is_warm = have.is_warm;
    state->calls = have.calls;
    return svg2__ok(err);
}

/* ---- one call ---- */
typedef struct svg2__work {
    int32_t *label[2], *order[2], *offset[2], *size[2]; /* 0 queries, 1 keys */
    float   *centroid[2], *mean[2];
    float   *value_mean, *value_var, *log_mass, *share;
    float   *matrix;
    float   *center;  /* blocks of neighbours: [B, Hkv, D], the centroid of all keys */
    int32_t *pattern; /* SVG1: [B, Hkv]      */
    float   *error;   /* SVG1: [B, H, 2]     */
    float   *mass;    /* ADASPA: [heads, Qb, Kb] of a group of heads */
    uint8_t *map;
    void    *scratch;
    size_t   scratch_bytes;
} svg2__work;

/* What a call is about to do: the resolved desc, turned into one-block form for a dense step. */
typedef struct svg2__call {
    const svg2_backend *backend;
    svg2_desc d;
    svg2_action action;
    int32_t clusters[2], blocks[2];
    int32_t text_begin[2], text_count, padding_begin[2], padding_count, video_begin;
    int is_tiled; /* blocks of neighbouring tokens in place of clusters */
    svg2__grid grid[2];
    int need_summary, is_warm_up; /* is_warm_up: a layer or step that the schedule wants dense */
} svg2__call;

static void svg2__call_init(svg2__call *c, const svg2_backend *backend, const svg2_desc *resolved,
                            svg2_action action, int is_warm_up)
{
    int i;
    memset(c, 0, sizeof *c);
    c->is_warm_up = is_warm_up;
    c->backend = backend;
    c->d = *resolved;
    c->action = action;
    if (action == SVG2_ACTION_DENSE || action == SVG2_ACTION_DENSE_INIT) { /* everything is selected: dense */
        c->d.tail = SVG2_TAIL_NONE;
        c->d.route = SVG2_ROUTE_MASS;
        c->d.budget = SVG2_BUDGET_ROW;
        c->d.top_p = c->d.min_keep = 1.0f;
        c->d.density = c->d.target_error = 0.0f;
    }
    c->clusters[0] = action == SVG2_ACTION_DENSE ? 1 : c->d.query_clusters;
    c->clusters[1] = action == SVG2_ACTION_DENSE ? 1 : c->d.key_clusters;
    c->is_tiled = action != SVG2_ACTION_DENSE && c->d.method != SVG2_METHOD_SVG2;
    for (i = 0; i < 2 && c->is_tiled; ++i) {
        const int is_svg1 = c->d.method == SVG2_METHOD_SVG1;
        c->grid[i].frames = is_svg1 ? c->d.frames : 1;
        c->grid[i].frame_tokens = is_svg1 ? c->d.frame_tokens : (i ? c->d.tokens_kv : c->d.tokens) - c->d.text_tokens;
        c->grid[i].block = c->d.block;
        c->grid[i].first_frame = is_svg1 && c->d.first_frame == 1;
        c->clusters[i] = svg2__grid_blocks(&c->grid[i]);
    }
    c->text_count = svg2__text_valid(&c->d);
    c->padding_count = c->d.text_tokens - c->text_count;
    c->video_begin = c->d.text_place == SVG2_TEXT_FIRST ? c->d.text_tokens : 0;
    for (i = 0; i < 2; ++i) {
        const int32_t tokens = i ? c->d.tokens_kv : c->d.tokens;
        c->text_begin[i] = c->d.text_place == SVG2_TEXT_FIRST ? 0 : tokens - c->d.text_tokens;
        c->padding_begin[i] = c->text_begin[i] + c->text_count;
        c->blocks[i] = c->clusters[i] + (c->text_count > 0) + (c->padding_count > 0);
    }
    c->need_summary = c->d.tail != SVG2_TAIL_NONE
                      || (!c->is_tiled && (c->d.route == SVG2_ROUTE_SPREAD || c->d.target_error > 0.0f));
}

static svg2_kmeans_desc svg2__call_kmeans(const svg2__call *c, const svg2__work *w, int side,
                                          const svg2_state *state, const void *x)
{
    const svg2_desc *d = &c->d;
    svg2_kmeans_desc k;
    memset(&k, 0, sizeof k);
    k.batch = d->batch;
    k.heads = side ? d->heads_kv : d->heads;
    k.tokens = side ? d->tokens_kv : d->tokens;
    k.head_dim = d->head_dim;
    k.clusters = c->clusters[side];
    k.token_begin = c->video_begin;
    k.token_count = k.tokens - d->text_tokens;
    k.iterations = 1;
    k.keep_empty = d->keep_empty;
    k.seed = d->seed + (uint64_t)side;
    k.x = x;
    k.layout = side ? d->k : d->q;
    k.store_dtype = d->state_dtype;
    if (c->is_tiled) k.clusters = 1; /* for the mean alone */
    else if (c->action != SVG2_ACTION_DENSE && state) {
        const size_t queries = svg2__count(d->batch, d->heads, d->query_clusters, d->head_dim);
        char *memory = (char *)state->memory + (side ? queries * svg2__dtype_bytes(d->state_dtype) : 0);
        k.iterations = !state->is_warm ? d->init_iterations : d->step_iterations < 0 ? 0 : d->step_iterations;
        k.start = state->is_warm ? memory : 0;
        k.store = memory;
    }
    k.centroid = c->is_tiled ? w->center : w->centroid[side];
    k.mean = w->mean[side];
    k.label = w->label[side];
    k.size = w->size[side];
    return k;
}

static svg2_permute_desc svg2__call_permute(const svg2__call *c, const svg2__work *w, int side)
{
    svg2_permute_desc p;
    memset(&p, 0, sizeof p);
    p.batch = c->d.batch;
    p.heads = side ? c->d.heads_kv : c->d.heads;
    p.tokens = side ? c->d.tokens_kv : c->d.tokens;
    p.clusters = c->clusters[side];
    p.text_begin = c->text_begin[side];
    p.text_count = c->text_count;
    p.padding_begin = c->padding_begin[side];
    p.padding_count = c->padding_count;
    p.label = w->label[side];
    p.order = w->order[side];
    p.offset = w->offset[side];
    return p;
}

/* Means and variances of the values of each block. */
static svg2_summarize_desc svg2__call_summarize(const svg2__call *c, const svg2__work *w, const void *v)
{
    svg2_summarize_desc s;
    memset(&s, 0, sizeof s);
    s.batch = c->d.batch;
    s.heads = c->d.heads_kv;
    s.tokens = c->d.tokens_kv;
    s.head_dim = c->d.head_dim;
    s.clusters = c->clusters[1];
    s.blocks = c->blocks[1];
    s.v = v;
    s.v_layout = c->d.v;
    s.order = w->order[1];
    s.offset = w->offset[1];
    s.value_mean = w->value_mean;
    s.value_var = w->value_var;
    return s;
}

static svg2_score_desc svg2__call_score(const svg2__call *c, const svg2__work *w, const void *q, const void *k)
{
    svg2_score_desc s;
    memset(&s, 0, sizeof s);
    s.batch = c->d.batch;
    s.heads = c->d.heads;
    s.heads_kv = c->d.heads_kv;
    s.tokens_kv = c->d.tokens_kv;
    s.head_dim = c->d.head_dim;
    s.query_clusters = c->clusters[0];
    s.key_clusters = c->clusters[1];
    s.key_blocks = c->blocks[1];
    s.scale = c->d.scale;
    s.k = k;
    s.k_layout = c->d.k;
    s.key_order = w->order[1];
    s.key_offset = w->offset[1];
    s.query_centroid = w->centroid[0];
    s.key_centroid = w->centroid[1];
    s.log_mass = w->log_mass;
    s.tokens = c->d.tokens;
    s.query_blocks = c->blocks[0];
    s.q = q;
    s.q_layout = c->d.q;
    s.query_order = w->order[0];
    s.query_offset = w->offset[0];
    s.key_mean = w->mean[1];
    s.share = w->share;
    return s;
}

static svg2_select_desc svg2__call_select(const svg2__call *c, const svg2__work *w, svg2_head_stats *stats)
{
    const svg2_desc *d = &c->d;
    svg2_select_desc s;
    memset(&s, 0, sizeof s);
    s.batch = d->batch;
    s.heads = d->heads;
    s.heads_kv = d->heads_kv;
    s.head_dim = d->head_dim;
    s.query_clusters = c->clusters[0];
    s.key_clusters = c->clusters[1];
    s.has_text = c->text_count > 0;
    s.has_padding = c->padding_count > 0;
    s.scale = d->scale;
    s.route = d->route;
    s.budget = d->budget;
    s.tail = d->tail;
    s.top_p = d->top_p;
    s.min_keep = d->min_keep;
    s.density = d->density;
    s.target_error = d->target_error;
    s.dense_above = d->dense_above;
    s.query_centroid = w->centroid[0];
    s.key_centroid = w->centroid[1];
    s.key_mean = w->mean[1];
    s.log_mass = w->log_mass;
    s.share = w->share;
    s.value_mean = w->value_mean;
    s.value_var = w->value_var;
    s.query_offset = w->offset[0];
    s.key_offset = w->offset[1];
    s.map = w->map;
    s.stats = stats;
    return s;
}

static svg2_attention_desc svg2__call_attention(const svg2__call *c, const svg2__work *w, const void *q,
                                                const void *k, const void *v, void *out, float *lse,
                                                svg2_head_stats *stats)
{
    const svg2_desc *d = &c->d;
    svg2_attention_desc a;
    memset(&a, 0, sizeof a);
    a.batch = d->batch;
    a.heads = d->heads;
    a.heads_kv = d->heads_kv;
    a.tokens = d->tokens;
    a.tokens_kv = d->tokens_kv;
    a.head_dim = d->head_dim;
    a.scale = d->scale;
    a.q = q;
    a.k = k;
    a.v = v;
    a.out = out;
    a.lse = lse;
    a.q_layout = d->q;
    a.k_layout = d->k;
    a.v_layout = d->v;
    a.out_layout = d->out;
    a.query_blocks = c->blocks[0];
    a.key_blocks = c->blocks[1];
    a.query_order = w->order[0];
    a.query_offset = w->offset[0];
    a.key_order = w->order[1];
    a.key_offset = w->offset[1];
    a.map = w->map;
    a.key_mean = w->mean[1];
    if (!c->is_warm_up) {
        a.skip = d->skip;
        a.visit = d->visit;
        a.skip_threshold = d->skip_threshold;
        a.energy_lambda = d->energy_lambda;
        a.recall = d->recall;
        a.lse_seed = d->skip && d->seed_lse ? lse : 0;
        a.stats = stats;
    }
    if (d->tail != SVG2_TAIL_NONE) {
        a.tail_query_blocks = c->clusters[0];
        a.tail_key_blocks = c->clusters[1];
        a.key_centroid = w->centroid[1];
        a.value_mean = w->value_mean;
        a.log_mass = w->log_mass;
    }
    return a;
}

/* Where there are no clusters, centroids are the means of the blocks: of queries (side 0) or keys. */
static svg2_summarize_desc svg2__call_centroids(const svg2__call *c, const svg2__work *w, int side, const void *x)
{
    svg2_summarize_desc s = svg2__call_summarize(c, w, x);
    s.heads = side ? c->d.heads_kv : c->d.heads;
    s.tokens = side ? c->d.tokens_kv : c->d.tokens;
    s.clusters = c->clusters[side];
    s.blocks = c->blocks[side];
    s.v_layout = side ? c->d.k : c->d.q;
    s.order = w->order[side];
    s.offset = w->offset[side];
    s.value_mean = w->centroid[side];
    s.value_var = w->share; /* not needed */
    return s;
}

static svg2_place_desc svg2__call_place(const svg2__call *c, const svg2__work *w, int side)
{
    svg2_place_desc p;
    memset(&p, 0, sizeof p);
    p.batch = c->d.batch;
    p.heads = side ? c->d.heads_kv : c->d.heads;
    p.tokens = side ? c->d.tokens_kv : c->d.tokens;
    p.video_begin = c->video_begin;
    p.video_count = p.tokens - c->d.text_tokens;
    p.frames = c->grid[side].frames;
    p.frame_tokens = c->grid[side].frame_tokens;
    p.block = c->grid[side].block;
    p.first_frame = c->grid[side].first_frame;
    p.pattern = w->pattern;
    p.pattern_heads = c->d.heads_kv;
    p.label = w->label[side];
    return p;
}

static svg2_band_desc svg2__call_band(const svg2__call *c, const svg2__work *w, svg2_head_stats *stats)
{
    svg2_band_desc b;
    memset(&b, 0, sizeof b);
    b.batch = c->d.batch;
    b.heads = c->d.heads;
    b.heads_kv = c->d.heads_kv;
    b.frames = c->grid[0].frames;
    b.frame_tokens = c->grid[0].frame_tokens;
    b.block = c->grid[0].block;
    b.first_frame = c->grid[0].first_frame;
    b.width = c->d.band_width;
    b.has_text = c->text_count > 0;
    b.has_padding = c->padding_count > 0;
    b.pattern = w->pattern;
    b.error = w->error;
    b.query_offset = w->offset[0];
    b.key_offset = w->offset[1];
    b.map = w->map;
    b.stats = stats;
    return b;
}

static svg2_profile_desc svg2__call_profile(const svg2__call *c, const svg2__work *w, const void *q, const void *k,
                                            const void *v)
{
    svg2_profile_desc p;
    memset(&p, 0, sizeof p);
    p.batch = c->d.batch;
    p.heads = c->d.heads;
    p.heads_kv = c->d.heads_kv;
    p.tokens = c->d.tokens;
    p.head_dim = c->d.head_dim;
    p.video_begin = c->video_begin;
    p.frames = c->grid[0].frames;
    p.frame_tokens = c->grid[0].frame_tokens;
    p.block = c->grid[0].block;
    p.first_frame = c->grid[0].first_frame;
    p.width = c->d.band_width;
    p.text_begin = c->text_begin[0];
    p.text_count = c->text_count;
    p.sample_rows = c->d.sample_rows;
    p.seed = c->d.seed;
    p.scale = c->d.scale;
    p.q = q;
    p.k = k;
    p.v = v;
    p.q_layout = c->d.q;
    p.k_layout = c->d.k;
    p.v_layout = c->d.v;
    p.key_mean = w->mean[1];
    p.pattern = w->pattern;
    p.error = w->error;
    return p;
}

static int32_t svg2__call_tail_heads(const svg2__call *c)
{
    const int64_t all = (int64_t)c->d.batch * c->d.heads,
                  group = c->backend->tail_heads < 1 ? 1 : c->backend->tail_heads;
    return (int32_t)svg2__min64(all, group);
}

static svg2_tail_desc svg2__call_tail(const svg2__call *c, const svg2__work *w, const void *k, const void *v)
{
    const svg2_desc *d = &c->d;
    svg2_tail_desc t;
    memset(&t, 0, sizeof t);
    t.batch = d->batch;
    t.heads = d->heads;
    t.heads_kv = d->heads_kv;
    t.tokens_kv = d->tokens_kv;
    t.head_dim = d->head_dim;
    t.query_clusters = c->clusters[0];
    t.key_clusters = c->clusters[1];
    t.query_blocks = c->blocks[0];
    t.key_blocks = c->blocks[1];
    t.head_count = svg2__call_tail_heads(c);
    t.scale = d->scale;
    t.k = k;
    t.v = v;
    t.k_layout = d->k;
    t.v_layout = d->v;
    t.key_order = w->order[1];
    t.key_offset = w->offset[1];
    t.query_centroid = w->centroid[0];
    t.key_centroid = w->centroid[1];
    t.key_mean = w->mean[1];
    t.value_mean = w->value_mean;
    t.log_mass = w->log_mass;
    t.map = w->map;
    t.matrix = w->matrix;
    return t;
}

static svg2_pick_desc svg2__call_pick(const svg2__call *c, const svg2__work *w, const svg2__searched *found,
                                      svg2_head_stats *stats)
{
    svg2_pick_desc p;
    memset(&p, 0, sizeof p);
    p.batch = c->d.batch;
    p.heads = c->d.heads;
    p.heads_kv = c->d.heads_kv;
    p.query_blocks = c->blocks[0];
    p.key_blocks = c->blocks[1];
    p.has_text = c->text_count > 0;
    p.has_padding = c->padding_count > 0;
    p.head_count = svg2__call_tail_heads(c);
    p.sparsity = c->d.sparsity < 0.0f ? 0.0f : c->d.sparsity;
    p.mass_target = c->d.mass_target;
    p.mass = w->mass;
    p.query_offset = w->offset[0];
    p.key_offset = w->offset[1];
    p.map = w->map;
    p.bits = found->bits;
    p.recall = found->recall;
    p.stats = stats;
    return p;
}

static svg2_mass_desc svg2__call_mass(const svg2__call *c, const svg2__work *w, const void *q, const void *k,
                                      float *lse)
{
    svg2_mass_desc m;
    memset(&m, 0, sizeof m);
    m.attention = svg2__call_attention(c, w, q, k, 0, 0, lse, 0);
    m.attention.map = 0;
    m.attention.tail_query_blocks = m.attention.tail_key_blocks = 0;
    m.attention.skip = SVG2_SKIP_NONE;
    m.attention.lse_seed = 0;
    m.attention.head_count = svg2__call_tail_heads(c);
    m.valid_key_blocks = c->blocks[1] - (c->padding_count > 0);
    m.mass = w->mass;
    return m;
}

static size_t svg2__max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Counts (base = NULL) or carves the workspace of a call. */
static size_t svg2__call_layout(const svg2__call *c, void *base, svg2__work *work)
{
    svg2__arena a = SVG2_ZERO;
    const svg2_desc *d = &c->d;
    const svg2_backend *backend = c->backend;
    svg2__work w;
    size_t most = 0;
    int side;
    memset(&w, 0, sizeof w);
    a.base = (char *)base;
    a.align = backend->align;
    for (side = 0; side < 2; ++side) {
        const int64_t heads = (int64_t)d->batch * (side ? d->heads_kv : d->heads);
        const int64_t tokens = side ? d->tokens_kv : d->tokens;
        w.label[side] = svg2__take_i32(&a, svg2__count(heads, tokens, 1, 1));
        w.order[side] = svg2__take_i32(&a, svg2__count(heads, tokens, 1, 1));
        w.offset[side] = svg2__take_i32(&a, svg2__count(heads, (int64_t)c->blocks[side] + 1, 1, 1));
        w.size[side] = svg2__take_i32(&a, svg2__count(heads, c->clusters[side], 1, 1));
        if (!c->is_tiled || c->need_summary)
            w.centroid[side] = svg2__take_f32(&a, svg2__count(heads, c->clusters[side], d->head_dim, 1));
        w.mean[side] = svg2__take_f32(&a, svg2__count(heads, d->head_dim, 1, 1));
    }
    w.map =
        (uint8_t *)svg2__take(&a, 1, svg2__count((int64_t)d->batch * d->heads, c->blocks[0], c->blocks[1], 1));
    if (c->need_summary) {
        const size_t clusters = svg2__count(d->batch, d->heads_kv, c->clusters[1], 1);
        const size_t pairs = svg2__count(d->batch, d->heads, c->clusters[0], c->clusters[1]);
        w.value_mean = svg2__take_f32(&a, svg2__mul(clusters, (size_t)d->head_dim));
        w.value_var = svg2__take_f32(&a, clusters);
        if (!c->is_tiled) w.log_mass = svg2__take_f32(&a, pairs);
        w.share = svg2__take_f32(
            &a, c->is_tiled ? svg2__count(d->batch, d->heads, svg2__max32(c->clusters[0], c->clusters[1]), 1) : pairs);
    }
    if (c->is_tiled) w.center = svg2__take_f32(&a, svg2__count(d->batch, d->heads_kv, d->head_dim, 1));
    if (c->is_tiled && d->method == SVG2_METHOD_SVG1) {
        w.pattern = svg2__take_i32(&a, svg2__count(d->batch, d->heads_kv, 1, 1));
        w.error = svg2__take_f32(&a, svg2__count(d->batch, d->heads, 2, 1));
    }
    if (c->is_tiled && d->method == SVG2_METHOD_ADASPA)
        w.mass = svg2__take_f32(&a, svg2__count(svg2__call_tail_heads(c), c->blocks[0], c->blocks[1], 1));
    if (d->tail == SVG2_TAIL_ORDER1)
        w.matrix =
            svg2__take_f32(&a, svg2__count(svg2__call_tail_heads(c), c->clusters[0], d->head_dim, d->head_dim));
    for (side = 0; side < 2; ++side) {
        const svg2_kmeans_desc k = svg2__call_kmeans(c, &w, side, 0, 0);
        const svg2_permute_desc p = svg2__call_permute(c, &w, side);
        if (c->is_tiled) {
            const svg2_place_desc l = svg2__call_place(c, &w, side);
            const svg2_summarize_desc m = svg2__call_centroids(c, &w, side, 0);
            most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_PLACE, &l));
            if (c->need_summary)
                most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_SUMMARIZE, &m));
        }
        most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_KMEANS, &k));
        most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_PERMUTE, &p));
    }
    {
        const svg2_summarize_desc s = svg2__call_summarize(c, &w, 0);
        const svg2_score_desc l = svg2__call_score(c, &w, 0, 0);
        const svg2_select_desc m = svg2__call_select(c, &w, 0);
        const svg2_attention_desc t = svg2__call_attention(c, &w, 0, 0, 0, 0, 0, 0);
        if (c->need_summary)
            most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_SUMMARIZE, &s));
        if (c->need_summary && !c->is_tiled)
            most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_SCORE, &l));
        if (!c->is_tiled) most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_SELECT, &m));
        most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_ATTENTION, &t));
    }
    if (c->is_tiled && d->method == SVG2_METHOD_SVG1) {
        const svg2_profile_desc p = svg2__call_profile(c, &w, 0, 0, 0);
        const svg2_band_desc b = svg2__call_band(c, &w, 0);
        most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_PROFILE, &p));
        most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_BAND, &b));
    }
    if (c->is_tiled && d->method == SVG2_METHOD_ADASPA) {
        const svg2__searched none = {0, 0, 0};
        const svg2_pick_desc p = svg2__call_pick(c, &w, &none, 0);
        const svg2_mass_desc m = svg2__call_mass(c, &w, 0, 0, 0);
        most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_PICK, &p));
        most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_MASS, &m));
    }
    if (d->tail == SVG2_TAIL_ORDER1) {
        const svg2_tail_desc t = svg2__call_tail(c, &w, 0, 0);
        most = svg2__max_size(most, svg2_stage_workspace_bytes(backend, SVG2_STAGE_TAIL, &t));
    }
    w.scratch_bytes = most;
    w.scratch = svg2__take(&a, 1, most);
    if (work) *work = w;
    return a.used;
}

SVG2_API size_t svg2_workspace_bytes(const svg2_backend *backend, const svg2_desc *desc)
{
    svg2_desc d;
    svg2__call c;
    size_t dense, sparse = 0;
    if (!desc || svg2__check_backend(backend, 0) != SVG2_OK) return SIZE_MAX;
    d = *desc;
    if (svg2_resolve(&d, 0) != SVG2_OK) return SIZE_MAX;
    svg2__call_init(&c, backend, &d, SVG2_ACTION_DENSE, 0);
    dense = svg2__call_layout(&c, 0, 0);
    if (d.method != SVG2_METHOD_DENSE) {
        svg2__call_init(&c, backend, &d, SVG2_ACTION_SPARSE, 0);
        sparse = svg2__call_layout(&c, 0, 0);
    }
    return svg2__max_size(dense, sparse);
}

SVG2_API svg2_plan svg2_plan_view(const svg2_backend *backend, const svg2_desc *desc, int32_t step,
                                  const void *workspace)
{
    svg2_plan p = SVG2_ZERO;
    svg2_desc d;
    svg2__call c;
    svg2__work w;
    if (!desc || !workspace || svg2__check_backend(backend, 0) != SVG2_OK) return p;
    d = *desc;
    if (svg2_resolve(&d, 0) != SVG2_OK || svg2_schedule(&d, step) == SVG2_ACTION_DENSE) return p;
    svg2__call_init(&c, backend, &d, svg2_schedule(&d, step), svg2__is_warm_up(&d, step));
    (void)svg2__call_layout(&c, (void *)(uintptr_t)workspace, &w); /* only to find the pointers: nothing is written */
    p.query_blocks = c.blocks[0];
    p.key_blocks = c.blocks[1];
    p.query_clusters = c.clusters[0];
    p.key_clusters = c.clusters[1];
    p.query_label = w.label[0];
    p.key_label = w.label[1];
    p.query_order = w.order[0];
    p.key_order = w.order[1];
    p.query_offset = w.offset[0];
    p.key_offset = w.offset[1];
    p.query_centroid = c.is_tiled && c.d.tail != SVG2_TAIL_ORDER1 ? 0 : w.centroid[0];
    p.key_centroid = c.is_tiled && !c.need_summary ? 0 : w.centroid[1];
    p.query_mean = c.is_tiled ? 0 : w.mean[0];
    p.key_mean = w.mean[1];
    p.map = c.action != SVG2_ACTION_DENSE_INIT ? w.map : 0;
    return p;
}

/* The tensors of a call. */
typedef struct svg2__io {
    const void *q, *k, *v;
    void *out;
    float *lse;
    svg2_head_stats *stats;
} svg2__io;

/* Attention over the map, with its tail. */
static svg2_result svg2__attend_map(const svg2__call *c, const svg2__work *w, const svg2__io *io, svg2_error *err)
{
    const svg2_backend *backend = c->backend;
    svg2_attention_desc attention = svg2__call_attention(c, w, io->q, io->k, io->v, io->out, io->lse, io->stats);
    svg2_tail_desc tail = svg2__call_tail(c, w, io->k, io->v);
    const int32_t heads = c->d.batch * c->d.heads;
    if (c->d.tail != SVG2_TAIL_ORDER1) return svg2_attention(backend, &attention, w->scratch, w->scratch_bytes, err);
    attention.tail_matrix = w->matrix; /* the matrices of all heads at once would be too much memory */
    for (; tail.head_begin < heads; tail.head_begin += tail.head_count) {
        tail.head_count = svg2__min32(tail.head_count, heads - tail.head_begin);
        attention.head_begin = tail.head_begin;
        attention.head_count = tail.head_count;
        SVG2__TRY(svg2_tail(backend, &tail, w->scratch, w->scratch_bytes, err));
        SVG2__TRY(svg2_attention(backend, &attention, w->scratch, w->scratch_bytes, err));
    }
    return svg2__ok(err);
}

/* SVG2; and everything that is dense, as one cluster on each side. */
static svg2_result svg2__attend_clusters(const svg2__call *c, const svg2__work *w, svg2_state *state,
                                         const svg2__io *io, svg2_error *err)
{
    const svg2_backend *backend = c->backend;
    const svg2_select_desc select = svg2__call_select(c, w, io->stats);
    int side;
    for (side = 0; side < 2; ++side) {
        const svg2_kmeans_desc kmeans = svg2__call_kmeans(c, w, side, state, side ? io->k : io->q);
        const svg2_permute_desc permute = svg2__call_permute(c, w, side);
        SVG2__TRY(svg2_kmeans(backend, &kmeans, w->scratch, w->scratch_bytes, err));
        SVG2__TRY(svg2_permute(backend, &permute, w->scratch, w->scratch_bytes, err));
    }
    if (c->action != SVG2_ACTION_DENSE) {
        state->is_warm = 1;
        state->calls += c->action == SVG2_ACTION_SPARSE && state->calls < INT32_MAX;
    }
    if (c->need_summary) {
        const svg2_summarize_desc summarize = svg2__call_summarize(c, w, io->v);
        const svg2_score_desc score = svg2__call_score(c, w, io->q, io->k);
        SVG2__TRY(svg2_summarize(backend, &summarize, w->scratch, w->scratch_bytes, err));
        SVG2__TRY(svg2_score(backend, &score, w->scratch, w->scratch_bytes, err));
    }
    SVG2__TRY(svg2_select(backend, &select, w->scratch, w->scratch_bytes, err));
    return svg2__attend_map(c, w, io, err);
}

/* The mean of the keys, and the order of both sides by blocks of neighbours. */
static svg2_result svg2__attend_place(const svg2__call *c, const svg2__work *w, const svg2__io *io, svg2_error *err)
{
    const svg2_backend *backend = c->backend;
    const svg2_kmeans_desc mean = svg2__call_kmeans(c, w, 1, 0, io->k);
    int side;
    SVG2__TRY(svg2_kmeans(backend, &mean, w->scratch, w->scratch_bytes, err));
    if (w->pattern) {
        const svg2_profile_desc profile = svg2__call_profile(c, w, io->q, io->k, io->v);
        SVG2__TRY(svg2_profile(backend, &profile, w->scratch, w->scratch_bytes, err));
    }
    for (side = 0; side < 2; ++side) {
        const svg2_place_desc place = svg2__call_place(c, w, side);
        const svg2_permute_desc permute = svg2__call_permute(c, w, side);
        SVG2__TRY(svg2_place(backend, &place, w->scratch, w->scratch_bytes, err));
        SVG2__TRY(svg2_permute(backend, &permute, w->scratch, w->scratch_bytes, err));
    }
    return svg2__ok(err);
}

/* ADASPA: the map by the exact mass under this LSE, for this step and those that reuse it. */
static svg2_result svg2__attend_search(const svg2__call *c, const svg2__work *w, const svg2__searched *found,
                                       const svg2__io *io, svg2_head_stats *stats, svg2_error *err)
{
    const int32_t heads = c->d.batch * c->d.heads;
    svg2_mass_desc mass = svg2__call_mass(c, w, io->q, io->k, found->lse);
    svg2_pick_desc pick = svg2__call_pick(c, w, found, stats);
    for (; pick.head_begin < heads; pick.head_begin += pick.head_count) {
        pick.head_count = svg2__min32(pick.head_count, heads - pick.head_begin);
        mass.attention.head_begin = pick.head_begin;
        mass.attention.head_count = pick.head_count;
        SVG2__TRY(svg2_block_mass(c->backend, &mass, w->scratch, w->scratch_bytes, err));
        SVG2__TRY(svg2_pick(c->backend, &pick, w->scratch, w->scratch_bytes, err));
    }
    return svg2__ok(err);
}

/* SVG1 and ADASPA: blocks of neighbouring tokens. */
static svg2_result svg2__attend_tiles(const svg2__call *c, const svg2__work *w, svg2_state *state, const svg2__io *io,
                                      svg2_error *err)
{
    const svg2_backend *backend = c->backend;
    SVG2__TRY(svg2__attend_place(c, w, io, err));
    if (c->d.method == SVG2_METHOD_SVG1) {
        const svg2_band_desc band = svg2__call_band(c, w, io->stats);
        SVG2__TRY(svg2_band(backend, &band, w->scratch, w->scratch_bytes, err));
    } else {
        svg2__searched found;
        (void)svg2__searched_layout(&c->d, state->memory, &found);
        if (c->action == SVG2_ACTION_SPARSE) {
            svg2_pick_desc reuse = svg2__call_pick(c, w, &found, io->stats);
            reuse.mass = 0;
            SVG2__TRY(svg2_pick(backend, &reuse, w->scratch, w->scratch_bytes, err));
        } else {
            SVG2__TRY(svg2__attend_search(c, w, &found, io, c->action == SVG2_ACTION_SEARCH ? 0 : io->stats, err));
            state->is_warm = 1;
            if (c->action == SVG2_ACTION_SEARCH) return svg2__ok(err); /* its output was dense */
        }
        state->calls += state->calls < INT32_MAX;
    }
    if (c->need_summary) {
        const svg2_summarize_desc values = svg2__call_summarize(c, w, io->v);
        int side;
        SVG2__TRY(svg2_summarize(backend, &values, w->scratch, w->scratch_bytes, err));
        for (side = c->d.tail == SVG2_TAIL_ORDER1 ? 0 : 1; side < 2; ++side) {
            const svg2_summarize_desc centroids = svg2__call_centroids(c, w, side, side ? io->k : io->q);
            SVG2__TRY(svg2_summarize(backend, &centroids, w->scratch, w->scratch_bytes, err));
        }
    }
    return svg2__attend_map(c, w, io, err);
}

SVG2_API svg2_result svg2_attend(const svg2_backend *backend, const svg2_desc *desc, svg2_state *state,
                                 int32_t step, const void *q, const void *k, const void *v, void *out, float *lse,
                                 svg2_head_stats *stats, void *workspace, size_t workspace_bytes, svg2_error *err)
{
    svg2_desc d;
    svg2__call c;
    svg2__work w;
    svg2__io io;
    svg2_action action;
    SVG2__TRY(svg2__check_backend(backend, err));
    SVG2__NOT_NULL(desc, "desc");
    d = *desc;
    SVG2__TRY(svg2_resolve(&d, err));
    SVG2__CHECK(step >= 0, SVG2_ERR_RANGE, "step", "must not be negative");
    SVG2__CHECK(backend->place || d.method == SVG2_METHOD_SVG2 || d.method == SVG2_METHOD_DENSE, SVG2_ERR_BACKEND,
                "method", "is not there on this backend");
    SVG2__TRY(svg2__check_tensor(q, d.q, "q", err));
    SVG2__TRY(svg2__check_tensor(k, d.k, "k", err));
    SVG2__TRY(svg2__check_tensor(v, d.v, "v", err));
    SVG2__TRY(svg2__check_tensor(out, d.out, "out", err));
    SVG2__CHECK(out != q && out != k && out != v, SVG2_ERR_SHAPE, "out", "must not overlap an input");
    SVG2__CHECK((uintptr_t)lse % sizeof(float) == 0, SVG2_ERR_ALIGN, "lse",
                "must be aligned to the size of its elements");
    SVG2__CHECK(lse || !d.seed_lse, SVG2_ERR_NULL, "lse", "must not be NULL with seed_lse");
    SVG2__CHECK((uintptr_t)stats % sizeof(int64_t) == 0, SVG2_ERR_ALIGN, "stats", "must be aligned to 8 bytes");
    if (d.method == SVG2_METHOD_SVG2 || d.method == SVG2_METHOD_ADASPA) SVG2__TRY(svg2__check_state(state, &d, err));
    SVG2__TRY(svg2__check_memory(workspace, workspace_bytes, svg2_workspace_bytes(backend, &d), backend->align,
                                 "workspace", err));
    action = svg2_schedule(&d, step);
    if (d.method == SVG2_METHOD_ADASPA && action != SVG2_ACTION_DENSE && !state->is_warm) action = SVG2_ACTION_SEARCH;
    io.q = q;
    io.k = k;
    io.v = v;
    io.out = out;
    io.lse = lse;
    io.stats = stats;
    if (action == SVG2_ACTION_SEARCH) { /* a dense call first, whose LSE stays */
        const size_t rows = svg2__count(d.batch, d.heads, d.tokens, 1);
        svg2__searched found;
        (void)svg2__searched_layout(&d, state->memory, &found);
        io.lse = found.lse;
        svg2__call_init(&c, backend, &d, SVG2_ACTION_DENSE, 1);
        (void)svg2__call_layout(&c, workspace, &w);
        SVG2__TRY(svg2__attend_clusters(&c, &w, 0, &io, err));
        if (lse) SVG2__TRY(backend->copy(backend, lse, found.lse, svg2__mul(rows, sizeof(float)), err));
    }
    svg2__call_init(&c, backend, &d, action,
                    svg2__is_warm_up(&d, step) || (d.method == SVG2_METHOD_ADASPA && action == SVG2_ACTION_DENSE));
    SVG2_ASSERT(svg2__call_layout(&c, 0, 0) <= svg2_workspace_bytes(backend, &d));
    (void)svg2__call_layout(&c, workspace, &w);
    if (c.is_tiled) return svg2__attend_tiles(&c, &w, state, &io, err);
    return svg2__attend_clusters(&c, &w, state, &io, err);
}

/* ---- the CPU backend ---- */
static size_t svg2__cpu_workspace_bytes(const svg2_backend *backend, svg2_stage stage, const void *desc)
{
    switch (stage) {
    case SVG2_STAGE_KMEANS: return svg2__kmeans_layout(backend, (const svg2_kmeans_desc *)desc, 0, 0);
    case SVG2_STAGE_PERMUTE: return 0;
    case SVG2_STAGE_SUMMARIZE: return svg2__summarize_layout(backend, (const svg2_summarize_desc *)desc, 0, 0);
    case SVG2_STAGE_SCORE: return svg2__score_layout(backend, (const svg2_score_desc *)desc, 0, 0);
    case SVG2_STAGE_SELECT: return svg2__select_layout(backend, (const svg2_select_desc *)desc, 0, 0);
    case SVG2_STAGE_TAIL: return svg2__tail_layout(backend, (const svg2_tail_desc *)desc, 0, 0);
    case SVG2_STAGE_ATTENTION: return svg2__attention_layout(backend, (const svg2_attention_desc *)desc, 0, 0, 0);
    case SVG2_STAGE_MASS:
        return svg2__attention_layout(backend, &((const svg2_mass_desc *)desc)->attention, 1, 0, 0);
    case SVG2_STAGE_PLACE: case SVG2_STAGE_BAND: return 0;
    case SVG2_STAGE_PICK: return svg2__pick_layout(backend, (const svg2_pick_desc *)desc, 0, 0);
    case SVG2_STAGE_PROFILE: return svg2__profile_layout(backend, (const svg2_profile_desc *)desc, 0, 0);
    case SVG2_STAGE_FRONT: return svg2__front_layout((const svg2_front_desc *)desc, 0, 0);
    case SVG2_STAGE_COUNT: break;
    }
    return SIZE_MAX;
}

static svg2_result svg2__cpu_copy_out(const svg2_backend *backend, void *host, const void *memory, size_t bytes,
                                      svg2_error *err)
{
    (void)backend;
    memcpy(host, memory, bytes);
    return svg2__ok(err);
}

static svg2_result svg2__cpu_copy_in(const svg2_backend *backend, void *memory, const void *host, size_t bytes,
                                     svg2_error *err)
{
    return svg2__cpu_copy_out(backend, memory, host, bytes, err);
}

SVG2_API svg2_backend svg2_cpu_backend_simd(const svg2_parallel *parallel, svg2_simd simd)
{
    svg2_backend b;
    memset(&b, 0, sizeof b);
    b.name = "cpu";
    b.version = SVG2_VERSION;
    b.desc_bytes = (uint32_t)sizeof(svg2_desc);
    b.align = SVG2_ALIGN;
    if (parallel) b.parallel = *parallel;
    b.simd = svg2__pick_simd(simd);
    b.tail_heads = (int32_t)(svg2__workers(&b) + 7) / 8; /* a head has 8 panels of work at D = 128 */
    b.workspace_bytes = svg2__cpu_workspace_bytes;
    b.kmeans = svg2__cpu_kmeans;
    b.permute = svg2__cpu_permute;
    b.summarize = svg2__cpu_summarize;
    b.score = svg2__cpu_score;
    b.select = svg2__cpu_select;
    b.tail = svg2__cpu_tail;
    b.attention = svg2__cpu_attention;
    b.mass = svg2__cpu_mass;
    b.place = svg2__cpu_place;
    b.band = svg2__cpu_band;
    b.pick = svg2__cpu_pick;
    b.profile = svg2__cpu_profile;
    b.front = svg2__cpu_front;
    b.copy = svg2__cpu_copy_out;
    b.copy_out = svg2__cpu_copy_out;
    b.copy_in = svg2__cpu_copy_in;
    return b;
}

SVG2_API svg2_backend svg2_cpu_backend(const svg2_parallel *parallel)
{
    return svg2_cpu_backend_simd(parallel, SVG2_SIMD_BEST);
}

/* ==== >>stats ============================================================================ */
SVG2_API svg2_result svg2_compare(const float *x, const float *y, size_t count, double peak,
                                  svg2_metrics *metrics, svg2_error *err)
{
    double difference = 0.0, square = 0.0, xx = 0.0, yy = 0.0, xy = 0.0, absolute = 0.0, top = 0.0, low = 0.0,
           high = 0.0;
    size_t i;
    SVG2__NOT_NULL(metrics, "metrics");
    SVG2__CHECK(count == 0 || x, SVG2_ERR_NULL, "x", "must not be NULL");
    SVG2__CHECK(count == 0 || y, SVG2_ERR_NULL, "y", "must not be NULL");
    SVG2__CHECK(peak >= 0.0, SVG2_ERR_RANGE, "peak", "must not be negative");
    memset(metrics, 0, sizeof *metrics);
    metrics->finite = 1;
    for (i = 0; i < count; ++i) {
        const double a = (double)x[i], b = (double)y[i], e = fabs(a - b);
        if (!(fabs(a) <= 3.5e38) || !(fabs(b) <= 3.5e38)) metrics->finite = 0;
        difference += e;
        square += e * e;
        absolute += fabs(b);
        xx += a * a;
        yy += b * b;
        xy += a * b;
        if (e > top) top = e;
        if (i == 0 || b < low) low = b;
        if (i == 0 || b > high) high = b;
    }
    if (peak == 0.0) peak = high - low;
    metrics->rel_l1 = difference == 0.0 ? 0.0 : difference / absolute;
    metrics->rel_l2 = square == 0.0 ? 0.0 : sqrt(square / yy);
    metrics->cosine = xx == 0.0 || yy == 0.0 ? (double)(xx == yy) : xy / sqrt(xx * yy);
    metrics->max_abs = top;
    metrics->mse = count ? square / (double)count : 0.0;
    metrics->psnr = metrics->mse == 0.0 ? INFINITY : 10.0 * log10(peak * peak / metrics->mse);
    return svg2__ok(err);
}

#undef SVG2__CHECK
#undef SVG2__TRY
#undef SVG2__NOT_NULL
#endif /* SVG2_IMPLEMENTATION */

/* ==== >>licence ==========================================================================
   MIT License

   Copyright (c) 2026 svg2 authors

   Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
   documentation files (the "Software"), to deal in the Software without restriction, including without
   limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the
   Software, and to permit persons to whom the Software is furnished to do so, subject to the following
   conditions:

   The above copyright notice and this permission notice shall be included in all copies or substantial portions
   of the Software.

   THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED
   TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL
   THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
   CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER
   DEALINGS IN THE SOFTWARE. */
