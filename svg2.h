/* svg2.h - v0.1.0 - MIT licence - sparse attention for video diffusion transformers, no retraining

   A video transformer spends most of its time in attention between all pairs of tokens. svg2 groups similar queries
   and similar keys, computes exactly the blocks of pairs that matter, and stands a cheap expansion in for the rest.

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

   svg2.h DOES NOT allocate memory, print, exit, read the environment, start threads, or keep anything between calls
   except in the svg2_state you own. It does not train, does not do backward passes, does not mask causally.

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
  >>select      which blocks are computed exactly
  >>attention   attention over a block map, the tail, merging of partial results
  >>mass        exact attention mass of every block: the oracle
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
   Build the implementing file with -O2 -ffp-contract=off if results must have the same bits under every compiler. */

/* ==== >>conventions ======================================================================
   Extents    B batch, H heads (Hkv of keys and values), S tokens (Sq of queries, Skv of keys), D head_dim,
              Cq and Ck clusters, Qb and Kb blocks: the clusters, then the text block and the padding block if any.
   Layouts    [B, H, S, D] row-major unless an svg2_layout says otherwise; strides count elements; D is contiguous.
              [B, S, H, D] is stride_batch = S*H*D, stride_head = D, stride_token = H*D.
   Dtypes     q, k, v, out are f32, f16 or bf16, each on its own; all arithmetic and the LSE are f32.
              LSE = natural log of the sum of exp(scale * q.k); -INFINITY for a row that attends to nothing.
   Extents    head_dim: multiples of 8 up to 256. Any token count from 1 to 2^31-1. heads % heads_kv == 0.
   Text       text tokens stand first or last; the last text_tokens - text_valid of them are padding. Valid text
              attends to every valid token and is attended by every valid token; padding attends to nothing (its output
              is 0, its LSE -INFINITY) and nobody attends to it.
   Errors     every function that can fail returns svg2_result and fills the caller's svg2_error: code, field, sentence.
              Arguments are validated before anything is written.
   Memory     the caller owns all of it. Workspaces and state memory are aligned to SVG2_ALIGN bytes; sizes by query;
              SIZE_MAX from a query means "does not fit into size_t, or the descriptor is invalid".
   Threads    every function is reentrant: no global state. Two threads may work with two states at once.
              One state must not be used by two threads at once.
   Same bits  for any number of threads, from run to run, and for any order or split of heads and batch entries.
              Different instruction sets (svg2_simd) and compilers round differently.
   NaN, Inf   in q, k, v never harm memory or hang. Where clustering meets one, selection keeps everything that it
              touches, so that NaN and Inf reach the outputs they would reach in dense attention (and maybe more). */

/* ==== >>algorithm ========================================================================
   For each batch entry and head, with scale s (default 1/sqrt(D)):

   1 k-means     Q into Cq clusters, K into Ck clusters (Lloyd, squared distance), starting from the previous denoising
                 step's centroids. The mean of K over tokens is removed first: softmax does not see it, rounding does.
                 assign   a(x) = argmax_c  x.c - |c|^2/2 ,  ties to the lower c          update   c = mean of its tokens
   2 permute     order, offset: tokens of a cluster made contiguous (stable counting sort)
   3 summarize   per key cluster j:  n_j,  kbar_j,  vbar_j,  var_jd (variance of key dimension d),  |var v_j|
   4 select      S_Ij = s qbar_I.kbar_j      P_Ij = n_j exp(S_Ij) / sum_j n_j exp(S_Ij)       (f32)
                 spread_Ij = s^2 sum_d qbar_Id^2 var_jd : variance of the logits inside the block
                 SVG2's rule: clusters by falling P until their sum passes top_p, and at least min_keep * Ck of them.
                 Or: the same area, or a fixed density, or as much as a target error needs, where P (or P * spread) per
                 key-query pair is highest, with one budget per query cluster or per head.
   5 attention   o_i = softmax over the keys of the selected blocks, plus the tail in the same softmax:
                 order 0   one virtual key per skipped cluster: logit s q_i.kbar_j + ln n_j, value vbar_j
                 order 1   C_j = 1/n_j sum_t (k_t - kbar_j)(v_t - vbar_j)^T ,  w_Ij = n_j exp(s qbar_I.kbar_j) over skipped j
                           A_I = sum_j w_Ij C_j / sum_j w_Ij ,   o_i += (row's tail weight) s A_I^T q_i
   Sources: SVG2, arXiv 2505.18875 (1, 2, 4 with mass, top-p); order 0: SVG-EAR, arXiv 2603.08982; order 1 and spread: own.

   stage      public function      CPU truth                what the pipeline hands on
   1          svg2_kmeans          svg2__mk_scalar          label [B,H,S], centroid [B,H,C,D], mean [B,H,D]
   2          svg2_permute         -                        order [B,H,S], offset [B,H,blocks+1]
   3          svg2_summarize       -                        key_var, value_mean [B,Hkv,Ck,D], value_var [B,Hkv,Ck]
   4          svg2_select          -                        map [B,H,Qb,Kb]
   5a         svg2_tail            svg2__mk_scalar          matrix A [heads, Cq, D, D]
   5b         svg2_attention       svg2__mk_scalar          out, lse
   oracle     svg2_block_mass      svg2__mk_scalar          mass [B,H,Qb,Kb], recall [B,H,Sq] */

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
   A stride of 0 beside nonzero ones is allowed for inputs (a broadcast) and an error for outputs with extent > 1. */
typedef struct svg2_layout {
    svg2_dtype dtype;
    int64_t    stride_batch, stride_head, stride_token;
} svg2_layout;

/* Convert count elements between dtypes (f16 and bf16 round to nearest even). dst and src must not overlap unless equal
   with equal element size. Reentrant. */
SVG2_API void svg2_convert(void *dst, svg2_dtype dst_dtype, const void *src, svg2_dtype src_dtype, size_t count);

/* ---- threads ---------------------------------------------------------------------------- */
/* Handle items [begin, end). worker is in [0, workers); two calls running at the same time have different workers. */
typedef void svg2_task_fn(void *task, int64_t begin, int64_t end, int32_t worker);

/* Cover [0, count) by calls of fn, on any threads, in pieces of at least grain items (the last may be smaller); return
   when all are done. */
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
    SVG2_SIMD_BEST = 0, /* what this machine has */
    SVG2_SIMD_SCALAR = 1,
    SVG2_SIMD_AVX2 = 2, /* with FMA and F16C */
    SVG2_SIMD_AVX512 = 3, /* F */
    SVG2_SIMD_FORCE_I32 = 0x7fffffff
} svg2_simd;

typedef struct svg2_backend       svg2_backend;
typedef struct svg2_kmeans_desc    svg2_kmeans_desc;
typedef struct svg2_permute_desc   svg2_permute_desc;
typedef struct svg2_summarize_desc svg2_summarize_desc;
typedef struct svg2_select_desc    svg2_select_desc;
typedef struct svg2_tail_desc      svg2_tail_desc;
typedef struct svg2_attention_desc svg2_attention_desc;
typedef struct svg2_mass_desc      svg2_mass_desc;

typedef enum svg2_stage {
    SVG2_STAGE_KMEANS = 0,
    SVG2_STAGE_PERMUTE,
    SVG2_STAGE_SUMMARIZE,
    SVG2_STAGE_SELECT,
    SVG2_STAGE_TAIL,
    SVG2_STAGE_ATTENTION,
    SVG2_STAGE_MASS,
    SVG2_STAGE_COUNT
} svg2_stage;

/* The stages as functions. svg2_attend and the public stage functions validate, then call through this table, so a caller
   may copy a backend and wrap entries (to time them, say). All memory in the stage descriptors is the backend's:
   host memory for the CPU, device memory for CUDA. */
struct svg2_backend {
    const char   *name;       /* "cpu"                                                       */
    uint32_t      version;    /* SVG2_VERSION the backend was built with                     */
    uint32_t      desc_bytes; /* sizeof(svg2_desc) the backend was built with                */
    size_t        align;      /* of workspaces and state memory, bytes                       */
    svg2_parallel parallel;   /* CPU                                                         */
    svg2_simd     simd;       /* CPU: never SVG2_SIMD_BEST                                   */
    int32_t       tail_heads; /* heads whose order-1 tail is prepared at once                */
    void         *user;       /* free for the backend                                        */
    size_t (*workspace_bytes)(const svg2_backend *, svg2_stage, const void *stage_desc);
    svg2_result (*kmeans)(const svg2_backend *, const svg2_kmeans_desc *, void *workspace, svg2_error *);
    svg2_result (*permute)(const svg2_backend *, const svg2_permute_desc *, void *workspace, svg2_error *);
    svg2_result (*summarize)(const svg2_backend *, const svg2_summarize_desc *, void *workspace, svg2_error *);
    svg2_result (*select)(const svg2_backend *, const svg2_select_desc *, void *workspace, svg2_error *);
    svg2_result (*tail)(const svg2_backend *, const svg2_tail_desc *, void *workspace, svg2_error *);
    svg2_result (*attention)(const svg2_backend *, const svg2_attention_desc *, void *workspace, svg2_error *);
    svg2_result (*mass)(const svg2_backend *, const svg2_mass_desc *, void *workspace, svg2_error *);
    svg2_result (*copy_out)(const svg2_backend *, void *host, const void *memory, size_t bytes, svg2_error *);
    svg2_result (*copy_in)(const svg2_backend *, void *memory, const void *host, size_t bytes, svg2_error *);
};

/* CPU backend. parallel may be NULL (serial). The struct is self-contained: copy it freely. */
SVG2_API svg2_backend svg2_cpu_backend(const svg2_parallel *parallel);

/* The same, restricted to one instruction set, for tests and for equal bits across machines; what the machine lacks
   falls back to the next smaller one (look at .simd). */
SVG2_API svg2_backend svg2_cpu_backend_simd(const svg2_parallel *parallel, svg2_simd simd);

/* ---- the whole operation (>>pipeline, >>schedule) ---------------------------------------- */
typedef enum svg2_method {
    SVG2_METHOD_SVG2 = 0,
    SVG2_METHOD_DENSE = 1,
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

/* What to compute. Zero means the default named behind each field; svg2_resolve() shows what 0 became. Fields whose zero
   would be a meaningful value take a negative number for it. */
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

    /* which blocks are exact */
    svg2_route  route;         /* spread if there is a tail, else mass                             */
    svg2_budget budget;        /* head if there is a tail, else row                                */
    svg2_tail_kind tail;       /* order 1                                                          */
    float top_p;               /* 0.9; with budget row and route mass SVG2's rule; else its area is the budget */
    float min_keep;            /* fraction of key clusters that every query cluster keeps, by mass:
                                  0.1 for row budgets, else none; -1 = none                        */
    float density;             /* 0 = by top_p; else fraction of all video pairs to compute        */
    float target_error;        /* 0 = off; else blocks are taken until the estimated relative L2
                                  error of the head's output falls under it; excludes density      */
    float dense_above;         /* 0.8; with target_error, a head that would need more becomes dense */

    /* schedule: dense at first, where the picture's layout is decided */
    int32_t layer;             /* 0; index of this layer                                           */
    int32_t dense_layers;      /* 0; layers below are dense                                        */
    int32_t dense_steps;       /* 0; steps below are dense                                         */
    int32_t init_on_dense;     /* 0; 1 = cluster on dense steps too, so that the first sparse step is warm */

    svg2_dtype state_dtype;    /* f32; bf16 halves the state                                       */
} svg2_desc;

/* Fill in what 0 meant, and check every field. Idempotent. On error *desc is unchanged.
   Returns SVG2_OK, SVG2_ERR_NULL, SVG2_ERR_RANGE, SVG2_ERR_SHAPE, SVG2_ERR_DTYPE, SVG2_ERR_STRIDE, SVG2_ERR_OVERFLOW;
   err->field names the field. */
SVG2_API svg2_result svg2_resolve(svg2_desc *desc, svg2_error *err);

/* The number of clusters that 0 means for this many video tokens. */
SVG2_API void svg2_default_clusters(int32_t video_tokens, int32_t *query_clusters, int32_t *key_clusters);

/* What svg2_attend will do at this step. A function of the arguments alone. */
typedef enum svg2_action {
    SVG2_ACTION_DENSE = 0,
    SVG2_ACTION_DENSE_INIT = 1, /* dense output, and the clusters are prepared */
    SVG2_ACTION_SPARSE = 2,
    SVG2_ACTION_FORCE_I32 = 0x7fffffff
} svg2_action;
SVG2_API svg2_action svg2_schedule(const svg2_desc *desc, int32_t step);

/* What a call computed, per (batch, head). In the backend's memory. */
typedef struct svg2_head_stats {
    int64_t pairs;       /* query-key pairs computed exactly                                       */
    int64_t pairs_total; /* pairs that dense attention computes (padding left out)                 */
    float   density;     /* pairs / pairs_total                                                    */
    float   error_estimate; /* estimated relative L2 error of the output; 0 when dense; -1 = not estimated
                               (estimated when target_error is set)                                */
    int32_t is_dense;    /* 1 = target_error sent this head to dense                               */
    int32_t empty_clusters; /* query and key clusters without a token                              */
} svg2_head_stats;

/* Clusters carried from step to step, for one layer and one guidance branch. Fields are for reading only. */
typedef struct svg2_state {
    uint32_t magic;
    int32_t  batch, heads, heads_kv, head_dim, query_clusters, key_clusters;
    svg2_dtype dtype;
    int32_t  is_warm; /* 0 after init and reset; 1 once the clusters exist                         */
    int32_t  calls;   /* sparse calls since reset                                                  */
    void    *memory;  /* the caller's; backend memory                                              */
    size_t   memory_bytes;
} svg2_state;

/* Bytes of state memory: (B*H*Cq + B*Hkv*Ck) * D elements of state_dtype. SIZE_MAX for an invalid descriptor. */
SVG2_API size_t svg2_state_bytes(const svg2_desc *desc);

/* Tie state to memory (of the backend that will use it; aligned; at least svg2_state_bytes) and reset it. The memory is
   not read or written here. A dense descriptor needs no memory (NULL, 0). */
SVG2_API svg2_result svg2_state_init(svg2_state *state, const svg2_desc *desc, void *memory, size_t memory_bytes,
                                     svg2_error *err);

/* Forget the clusters: call at the start of each video. NULL is allowed. */
SVG2_API void svg2_state_reset(svg2_state *state);

/* State as bytes: for checkpoints, or to move it to another rank. The format is little-endian with a checksum, and the
   same on all machines. save needs svg2_state_save_bytes(). load needs a state initialised for the same shape; damaged or
   foreign bytes are refused with SVG2_ERR_DATA and leave the state as it was. These two may synchronise with a device. */
SVG2_API size_t svg2_state_save_bytes(const svg2_state *state);
SVG2_API svg2_result svg2_state_save(const svg2_backend *backend, const svg2_state *state, void *bytes, size_t count,
                                     svg2_error *err);
SVG2_API svg2_result svg2_state_load(const svg2_backend *backend, svg2_state *state, const void *bytes, size_t count,
                                     svg2_error *err);

/* Bytes of workspace for svg2_attend. SIZE_MAX for an invalid descriptor. It may be shared by all layers. */
SVG2_API size_t svg2_workspace_bytes(const svg2_backend *backend, const svg2_desc *desc);

/* svg2_attend - one attention call of a video transformer.

   q [B, H, Sq, D], k, v [B, Hkv, Skv, D]   read, dtypes and strides as in desc
   out [B, H, Sq, D]                        written; must not overlap the inputs
   lse [B, H, Sq] f32, contiguous           written unless NULL; with a tail it includes the tail
   stats [B, H]                             written unless NULL
   state                                    read and advanced; may be NULL for the dense method, else it must fit desc
   step                                     index of the denoising step, >= 0: decides dense or sparse with desc's schedule

   Work: 4*B*H*Sq*Skv*D*density flop in attention, (init or step iterations)*2*B*(H*Sq*Cq + Hkv*Skv*Ck)*D in k-means.
   Returns SVG2_OK or an error; everything is validated before anything is written. */
SVG2_API svg2_result svg2_attend(const svg2_backend *backend, const svg2_desc *desc, svg2_state *state, int32_t step,
                                 const void *q, const void *k, const void *v, void *out, float *lse,
                                 svg2_head_stats *stats, void *workspace, size_t workspace_bytes, svg2_error *err);

/* What the last svg2_attend left in its workspace: pointers into it, valid until it is used again. All NULL and 0 after a
   call that was dense without init. Text and padding are the last blocks. */
typedef struct svg2_plan {
    int32_t query_blocks, key_blocks;     /* Qb, Kb: clusters, then text, then padding             */
    int32_t query_clusters, key_clusters; /* Cq, Ck                                                */
    const int32_t *query_label;  /* [B, H, Sq]  in [0, Qb)                                         */
    const int32_t *key_label;    /* [B, Hkv, Skv]                                                  */
    const int32_t *query_order;  /* [B, H, Sq]  tokens sorted by label; block i is order[offset[i] .. offset[i+1]) */
    const int32_t *key_order;    /* [B, Hkv, Skv]                                                  */
    const int32_t *query_offset; /* [B, H, Qb+1]                                                   */
    const int32_t *key_offset;   /* [B, Hkv, Kb+1]                                                 */
    const float   *query_centroid; /* [B, H, Cq, D]   means of the labelled tokens, input coordinates */
    const float   *key_centroid;   /* [B, Hkv, Ck, D]                                              */
    const float   *query_mean;   /* [B, H, D]    mean over the video tokens                        */
    const float   *key_mean;     /* [B, Hkv, D]                                                    */
    const uint8_t *map;          /* [B, H, Qb, Kb]  1 = computed exactly; NULL after a dense init call */
} svg2_plan;
SVG2_API svg2_plan svg2_plan_view(const svg2_backend *backend, const svg2_desc *desc, int32_t step,
                                  const void *workspace);

/* Arithmetic of one call, to decide whether sparse pays before making it. density is the caller's guess (or the last
   step's). Multiply-adds count as two. */
typedef struct svg2_cost {
    double dense_flops;     /* dense attention                                                     */
    double kmeans_flops;    /* clustering: init_iterations when cold, else step_iterations         */
    double select_flops;    /* centroid scores                                                     */
    double tail_flops;      /* virtual keys and matrices                                           */
    double attention_flops; /* exact blocks                                                        */
    double ratio;           /* (kmeans + select + tail + attention) / dense                        */
} svg2_cost;
SVG2_API svg2_result svg2_cost_estimate(const svg2_desc *desc, double density, int32_t is_warm, svg2_cost *cost,
                                        svg2_error *err);

/* Published settings, by name, as data. fractions as in the authors' scripts; steps of the whole schedule. */
typedef struct svg2_preset {
    const char *name; /* e.g. "wan2.1-t2v-14b-720p"                                               */
    int32_t heads, head_dim, layers, frames, frame_tokens, text_tokens;
    int32_t query_clusters, key_clusters;
    float   top_p, min_keep;
    int32_t init_iterations, step_iterations;
    int32_t steps, dense_steps, dense_layers, init_on_dense;
} svg2_preset;
SVG2_API int32_t svg2_preset_count(void);
SVG2_API const svg2_preset *svg2_preset_at(int32_t index);     /* NULL outside [0, count)          */
SVG2_API const svg2_preset *svg2_preset_find(const char *name); /* NULL if unknown                 */
/* Zero *desc, then fill in shape, clusters, schedule and SVG2's published selection (row budget, mass, top-p, no tail). */
SVG2_API svg2_result svg2_preset_apply(const svg2_preset *preset, svg2_desc *desc, svg2_error *err);

/* ---- stages: for engines that compose their own (>>kmeans .. >>mass) ---------------------- */
/* Each takes its workspace from the caller: svg2_stage_workspace_bytes(backend, stage, &desc_of_that_stage).
   Offsets, orders and labels are trusted to be consistent (svg2_permute makes them so). */
SVG2_API size_t svg2_stage_workspace_bytes(const svg2_backend *backend, svg2_stage stage, const void *stage_desc);

/* svg2_kmeans - group the tokens of each head by similarity (Lloyd, squared L2).

   x         [B, H, S, D]   read
   start     [B, H, C, D]   read unless NULL: centroids to start from, relative to the mean; NULL = seed by D^2 sampling
   label     [B, H, S]      written, in [0, C), for tokens [token_begin, token_begin + token_count)
   centroid  [B, H, C, D]   f32, written: means of the returned labels, input coordinates. An empty cluster holds the point
                            it would be re-seeded with (keep_empty: its old centroid)
   store     [B, H, C, D]   written unless NULL: the same relative to the mean, in store_dtype; may equal start
   mean      [B, H, D]      f32, written: mean over the tokens, removed before distances are formed
   size      [B, H, C]      written: tokens per cluster

   Distances are |c|^2 - 2 x.c in f32 after removal of the mean; ties go to the lower index. iterations = number of
   (assign, update) rounds, at least 1 unless start is given; 0 = assign once and keep the centroids of start, but return
   the means of the labels. Stops early when nothing changes.
   Re-seeding: the r-th empty cluster takes the token farthest from the centroid in the cluster of r-th largest inertia.
   Work: 2*B*H*S*C*D flop per iteration.  Threads: splits over heads and tokens; the result does not depend on the split. */
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

/* svg2_summarize - what a tail and the error estimate need to know of each key cluster.

   k, v [B, Hkv, S, D], order [B, Hkv, S], offset [B, Hkv, blocks + 1], centroid [B, Hkv, clusters, D]   read
   key_var    [B, Hkv, clusters, D]  written: variance of each key dimension around the centroid
   value_mean [B, Hkv, clusters, D]  written
   value_var  [B, Hkv, clusters]     written: variance of the values, summed over dimensions
   Empty clusters get zeros. */
struct svg2_summarize_desc {
    int32_t batch, heads, tokens, head_dim, clusters, blocks; /* heads: of keys */
    const void *k, *v;
    svg2_layout k_layout, v_layout;
    const int32_t *order, *offset;
    const float *centroid;
    float *key_var, *value_mean, *value_var;
};
SVG2_API svg2_result svg2_summarize(const svg2_backend *backend, const svg2_summarize_desc *desc, void *workspace,
                                    size_t workspace_bytes, svg2_error *err);

/* svg2_select - which blocks are computed exactly.

   query_centroid [B, H, Cq, D], key_centroid [B, Hkv, Ck, D], key_mean [B, Hkv, D], offsets       read
   key_var, value_mean, value_var   read; may be NULL for route mass without target_error
   map [B, H, Qb, Kb]   written. Blocks behind the clusters: text (if has_text) is computed against everything valid,
                        padding (if has_padding) against nothing.
   stats [B, H]         written unless NULL

   budget row, route mass, density 0, target_error 0: SVG2's rule. Clusters in order of falling P (ties to the lower index);
   rank r is kept iff r = 0, or the sum of the P before it is <= top_p, or r < floor(min_keep * Ck).
   Otherwise blocks are taken by falling score per pair (P/n_j, times spread for route spread) until the area is used: that
   of SVG2's rule, or density * Sq * Skv (of video tokens), per query cluster or per head; or until the estimated error is
   under target_error. Without a tail each query cluster always keeps its heaviest cluster. A NaN score is kept. */
struct svg2_select_desc {
    int32_t batch, heads, heads_kv, head_dim;
    int32_t query_clusters, key_clusters, has_text, has_padding;
    float scale;
    svg2_route route;
    svg2_budget budget;
    svg2_tail_kind tail;
    float top_p, min_keep, density, target_error, dense_above; /* resolved: no defaults here; min_keep < 0 = none */
    const float *query_centroid, *key_centroid, *key_mean;
    const float *key_var, *value_mean, *value_var;
    const int32_t *query_offset, *key_offset; /* [B, H, Qb+1], [B, Hkv, Kb+1] */
    uint8_t *map;
    svg2_head_stats *stats;
};
SVG2_API svg2_result svg2_select(const svg2_backend *backend, const svg2_select_desc *desc, void *workspace,
                                 size_t workspace_bytes, svg2_error *err);

/* svg2_tail - the matrices A of the order-1 tail, for heads [head_begin, head_begin + head_count) of the B*H.

   k, v, order, offset, centroids, value_mean, map   read, as elsewhere
   matrix [head_count, Cq, D, D]   f32, written: A_I, row = key dimension, column = value dimension; 0 where nothing is skipped
   Work per head: 2*Skv*D*D + 2*Cq*Ck*D*D flop. */
struct svg2_tail_desc {
    int32_t batch, heads, heads_kv, tokens_kv, head_dim;
    int32_t query_clusters, key_clusters, query_blocks, key_blocks;
    int32_t head_begin, head_count;
    float scale;
    const void *k, *v;
    svg2_layout k_layout, v_layout;
    const int32_t *key_order, *key_offset;
    const float *query_centroid, *key_centroid, *key_mean, *value_mean;
    const uint8_t *map;
    float *matrix;
};
SVG2_API svg2_result svg2_tail(const svg2_backend *backend, const svg2_tail_desc *desc, void *workspace,
                               size_t workspace_bytes, svg2_error *err);

/* svg2_attention - attention over a block map.

   q, k, v read, out written, lse [B, H, Sq] written unless NULL, for heads [head_begin, head_begin + head_count) of the B*H
   (0, 0 = all). Query block i is query_order[query_offset[i] .. query_offset[i+1]); keys alike. NULL order = identity;
   NULL offset = one block; NULL map = all ones: with all NULL this is dense attention. Rows that attend to nothing get
   out = 0, lse = -INFINITY.
   key_mean [B, Hkv, D]: subtracted from the keys (accuracy; the LSE is corrected). NULL = none.
   Tail: query blocks < tail_query_blocks also see one virtual key for each non-empty key block < tail_key_blocks that their
   map row lacks: logit scale*q.key_centroid + ln n, value value_mean; tail_matrix (NULL = order 0) is svg2_tail's
   output for the same heads. */
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
    const float *tail_matrix;                   /* [head_count, tail_query_blocks, D, D] */
};
SVG2_API svg2_result svg2_attention(const svg2_backend *backend, const svg2_attention_desc *desc, void *workspace,
                                    size_t workspace_bytes, svg2_error *err);

/* svg2_block_mass - exact attention mass of every block: sum over its pairs of exp(scale*q.k - lse). The oracle: the mass of
   a row of blocks sums to its number of rows. attention.lse is READ and must be the LSE of dense attention without tail
   (rows with -INFINITY count nothing); attention.map is used for recall only; out and tail fields are ignored.

   mass   [B, H, Qb, Kb]  f32, written unless NULL
   recall [B, H, Sq]      f32, written unless NULL: per query row, the mass inside the map (1 where map is NULL) */
struct svg2_mass_desc {
    svg2_attention_desc attention;
    float *mass;
    float *recall;
};
SVG2_API svg2_result svg2_block_mass(const svg2_backend *backend, const svg2_mass_desc *desc, void *workspace,
                                     size_t workspace_bytes, svg2_error *err);

/* svg2_merge - join two attentions over disjoint key sets. out and lse may be the arrays of either side. Rows are contiguous
   f32: o [rows, dim], lse [rows]. A side with lse = -INFINITY contributes nothing; both so: out = 0, lse = -INFINITY. */
SVG2_API svg2_result svg2_merge(const float *out_a, const float *lse_a, const float *out_b, const float *lse_b, float *out,
                                float *lse, int64_t rows, int32_t dim, svg2_error *err);

/* ---- metrics (>>stats) -------------------------------------------------------------------- */
/* Differences of x from the reference y over count elements; sums in f64.
   rel_l1 = sum|x-y| / sum|y|, rel_l2 = |x-y| / |y| (0/0 = 0), cosine = x.y / |x||y| (1 if both are 0),
   mse = mean (x-y)^2, psnr = 10 log10(peak^2 / mse) in dB (INFINITY if equal), peak = max y - min y unless given.
   finite = 0 if any element of x or y is NaN or Inf (then the numbers may be NaN). */
typedef struct svg2_metrics {
    double rel_l1, rel_l2, cosine, max_abs, mse, psnr;
    int32_t finite;
} svg2_metrics;
SVG2_API svg2_result svg2_compare(const float *x, const float *y, size_t count, double peak, svg2_metrics *metrics,
                                  svg2_error *err);

#endif /* SVG2_H_INCLUDED */
