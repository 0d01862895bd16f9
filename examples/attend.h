/* attend.h - MIT licence - the attend command of examples/svg2.c, which includes it: one attention call on files

   >>arguments  options to svg2_desc      >>inputs  tensors      >>timing  seconds per stage
   >>check      dense and the oracle      >>dump    what the call planned      >>report  table, JSON, picture

   The call can run on a GPU (device.h): tensors, state and workspace are then memory of it, and everything that
   looks at results looks at the host's copies. */
#include "plan.h"
#include "settings.h"

/* ==== >>arguments ======================================================================== */
typedef struct attend_arguments {
    const char *q, *k, *v, *out, *report, *dump, *picture, *preset;
    attention_settings settings;
    int         simd, layout; /* indices of choices; -1 = not given */
    int         is_check, keep_empty, is_cuda;
    int32_t     threads, repeat;
    int32_t     frames, frame_tokens, text_first, text_last, text_valid;
    double      scale;
    uint64_t    seed;
    const char *method_name, *backend_name, *device_name;
} attend_arguments;

#define ATTEND_OPTIONS (32 + SETTINGS_OPTIONS)

/* What the tokens are: of attend and of calibrate. */
static size_t attend_token_options(attend_arguments *a, tool_option *options)
{
    const tool_option table[] = {
        {TOOL_HEADING, "", "", NULL, 0, 0, 0, "what the tokens are"},
        {TOOL_INT, "frames", "F", &a->frames, 1, INT32_MAX, 0, "latent frames"},
        {TOOL_INT, "frame-tokens", "T", &a->frame_tokens, 1, INT32_MAX, 0, "video tokens per frame"},
        {TOOL_INT, "text-first", "N", &a->text_first, 0, INT32_MAX, 0, "the first N tokens are text"},
        {TOOL_INT, "text-last", "N", &a->text_last, 0, INT32_MAX, 0, "the last N tokens are text"},
        {TOOL_INT, "text-valid", "N", &a->text_valid, 0, INT32_MAX, 0, "so many of them; the rest is padding (all)"},
    };
    memcpy(options, table, sizeof table);
    return sizeof table / sizeof *table;
}

static size_t attend_options(attend_arguments *a, tool_option *options)
{
    const tool_option files[] = {
        {TOOL_HEADING, "", "", NULL, 0, 0, 0,
         "files: F is x.npy or x.safetensors:name; [B,H,S,D] or [H,S,D]; f32, f16 or bf16"},
        {TOOL_TEXT, "q", "F", &a->q, 0, 0, 0, "queries; required"},
        {TOOL_TEXT, "k", "F", &a->k, 0, 0, 0, "keys; required; fewer heads than q = grouped queries"},
        {TOOL_TEXT, "v", "F", &a->v, 0, 0, 0, "values; required"},
        {TOOL_TEXT, "out", "F", &a->out, 0, 0, 0, "output, shape and dtype of q (bf16 into .npy becomes f32)"},
        {TOOL_TEXT, "report", "F.json", &a->report, 0, 0, 0, "density, errors, recall, seconds, settings"},
        {TOOL_TEXT, "dump", "DIR", &a->dump, 0, 0, 0, "labels, centroids, sizes, block map and LSE as .npy"},
        {TOOL_TEXT, "picture", "F.png", &a->picture, 0, 0, 0, "block map of every head, sizes to scale"},
        {TOOL_CHOICE, "layout", "bhsd|bshd", &a->layout, 0, 0, 0, "order of the axes in the files (bhsd)"},

        {TOOL_HEADING, "", "", NULL, 0, 0, 0, "what to compute"},
        {TOOL_TEXT, "method", "NAME", &a->method_name, 0, 0, 0,
         SETTINGS_METHODS " (svg2)\n                             blasst, energy: dense with --skip constant, energy"},
        {TOOL_TEXT, "preset", "NAME", &a->preset, 0, 0, 0, "published clusters and selection; svg2 presets lists them"},
        {TOOL_FLAG, "keep-empty", "", &a->keep_empty, 0, 0, 0, "svg2: do not re-seed empty clusters"},
        {TOOL_SEED, "seed", "N", &a->seed, 0, 0, 0, "of clustering and sampling (0)"},
        {TOOL_REAL, "scale", "X", &a->scale, 0, 1e6, 0, "factor of q.k (1/sqrt(D))"},
    };
    const tool_option how[] = {
        {TOOL_HEADING, "", "", NULL, 0, 0, 0, "how"},
        {TOOL_INT, "repeat", "N", &a->repeat, 1, 100000, 0, "denoising steps on the same input, to see the warm start (1)"},
        {TOOL_FLAG, "check", "", &a->is_check, 0, 0, 0, "also dense attention and the exact oracle: errors, recall"},
        {TOOL_TEXT, "backend", "cpu|cuda", &a->backend_name, 0, 0, 0,
         "(cpu); cuda: svg2_cuda.cu, in a build that has it"},
        {TOOL_CHOICE, "simd", "scalar|avx2|avx512|avx512bf16", &a->simd, 0, 0, 0, "(the best there is)"},
        {TOOL_INT, "threads", "N", &a->threads, 1, 1024, 0, "(number of CPUs)"},
    };
    size_t count = sizeof files / sizeof *files;
    memcpy(options, files, sizeof files);
    count += settings_options(&a->settings, options + count);
    count += attend_token_options(a, options + count);
    memcpy(options + count, how, sizeof how);
    return count + sizeof how / sizeof *how;
}

static void attend_defaults(attend_arguments *a)
{
    memset(a, 0, sizeof *a);
    settings_init(&a->settings, "--");
    a->simd = -1;
    a->threads = online_cpus();
    a->repeat = 1;
    a->frames = a->frame_tokens = a->text_first = a->text_last = a->text_valid = -1;
    a->scale = -1;
}

static void attend_check_text(const attend_arguments *a)
{
    if (a->text_first >= 0 && a->text_last >= 0) tool_fail(TOOL_USAGE, "--text-first and --text-last exclude each other");
    if (a->text_valid >= 0 && a->text_first < 0 && a->text_last < 0) {
        tool_fail(TOOL_USAGE, "--text-valid needs --text-first or --text-last");
    }
}

/* What can be said to be wrong before any file is touched. */
static void attend_check_arguments(attend_arguments *a)
{
    svg2_desc ignored = SVG2_ZERO;
    char      message[SETTINGS_MESSAGE];
    int       method = a->method_name ? tool_parse_choice(SETTINGS_METHODS, a->method_name) : SETTINGS_SVG2;
    if (!a->q || !a->k || !a->v) tool_fail(TOOL_USAGE, "attend needs --q, --k and --v");
    if (method < 0) {
        tool_fail(TOOL_USAGE, "--method: unknown method '%s'; known are %s", a->method_name,
                  "dense, svg2, svg1, adaspa, blasst, energy");
    }
    a->settings.method = (settings_method)method;
    if (a->keep_empty) a->settings.keep_empty = 1;
    a->is_cuda = a->backend_name && !strcmp(a->backend_name, "cuda");
    if (a->backend_name && !a->is_cuda && strcmp(a->backend_name, "cpu") != 0)
        tool_fail(TOOL_USAGE, "--backend: unknown backend '%s'; known are cpu, cuda", a->backend_name);
    if (a->is_cuda && a->simd >= 0) tool_fail(TOOL_USAGE, "--simd is of the CPU, --backend cuda is not");
    attend_check_text(a);
    if (!settings_apply(&a->settings, &ignored, a->repeat, 0, message)) tool_fail(TOOL_USAGE, "%s", message);
    if (a->preset && !svg2_preset_find(a->preset)) {
        tool_fail(TOOL_USAGE, "--preset: unknown preset '%s' (svg2 presets lists them)", a->preset);
    }
    if (a->picture && ignored.method == SVG2_METHOD_DENSE) {
        tool_fail(TOOL_USAGE, "--picture: dense attention%s has no block map", ignored.skip ? " with a skip rule" : "");
    }
#ifdef SVG2_TOOL_NO_PNG
    if (a->picture) tool_fail(TOOL_USAGE, "--picture: this build has no libpng");
#endif
#ifdef SVG2_TOOL_NO_CJSON
    if (a->report) tool_fail(TOOL_USAGE, "--report: this build has no cJSON");
#endif
    if (a->is_cuda) {
        const char *failure = device_check(&a->device_name);
        if (failure) tool_fail(DEVICE_IS_BUILT ? TOOL_FAILURE : TOOL_USAGE, "--backend cuda: %s", failure);
    }
}

/* ==== >>inputs =========================================================================== */
typedef struct attend_tensor {
    tensor_input input;
    svg2_layout  layout;
    int32_t      batch, heads, tokens, dim;
    const void  *data;
    void        *copy; /* where the file's data are not aligned */
} attend_tensor;

static void attend_open(attend_tensor *tensor, const char *where, const char *name, int is_bshd)
{
    const tf_tensor *t;
    char             text[TF_MAX_RANK * 22 + 8];
    int64_t          extent[4] = {1, 1, 1, 1}, heads, tokens;
    int              i;

    memset(tensor, 0, sizeof *tensor);
    open_tensor(&tensor->input, where, name);
    t = tensor->input.tensor;
    if (t->dtype != TF_F32 && t->dtype != TF_F16 && t->dtype != TF_BF16) {
        tool_fail(TOOL_FAILURE, "%s: dtype %s, but q, k and v are F32, F16 or BF16", where, tf_dtype_name(t->dtype));
    }
    if (t->rank != 3 && t->rank != 4) {
        tool_fail(TOOL_FAILURE, "%s: shape %s is neither [B,H,S,D] nor [H,S,D]", where,
                  shape_text(t->rank, t->shape, text));
    }
    for (i = 0; i < t->rank; ++i) {
        if (t->shape[i] < 1 || t->shape[i] > INT32_MAX) {
            tool_fail(TOOL_FAILURE, "%s: shape %s has an extent that is 0 or above 2^31-1", where,
                      shape_text(t->rank, t->shape, text));
        }
        extent[4 - t->rank + i] = t->shape[i];
    }
    heads = is_bshd ? extent[2] : extent[1];
    tokens = is_bshd ? extent[1] : extent[2];
    tensor->batch = (int32_t)extent[0];
    tensor->heads = (int32_t)heads;
    tensor->tokens = (int32_t)tokens;
    tensor->dim = (int32_t)extent[3];
    tensor->layout.dtype = t->dtype == TF_F32 ? SVG2_F32 : t->dtype == TF_F16 ? SVG2_F16 : SVG2_BF16;
    tensor->layout.stride_batch = heads * tokens * extent[3];
    tensor->layout.stride_head = is_bshd ? extent[3] : tokens * extent[3];
    tensor->layout.stride_token = is_bshd ? heads * extent[3] : extent[3];
    tensor->data = t->data;
    if ((uintptr_t)t->data % tf_dtype_bytes(t->dtype)) {
        tensor->copy = tool_allocate(t->bytes, 1);
        memcpy(tensor->copy, t->data, t->bytes);
        tensor->data = tensor->copy;
    }
}

static void attend_refuse_non_finite(const attend_tensor *tensor, const char *name)
{
    const tf_tensor *t = tensor->input.tensor;
    char             text[TF_MAX_RANK * 22 + 8];
    int64_t          index[TF_MAX_RANK], i, bad = -1;
    int              axis;

    if (t->dtype == TF_F32) {
        const uint32_t *bits = (const uint32_t *)tensor->data;
        for (i = 0; i < t->count && bad < 0; ++i) bad = (bits[i] & 0x7f800000u) == 0x7f800000u ? i : -1;
    } else {
        const uint16_t *bits = (const uint16_t *)tensor->data;
        const unsigned  mask = t->dtype == TF_F16 ? 0x7c00u : 0x7f80u;
        for (i = 0; i < t->count && bad < 0; ++i) bad = (bits[i] & mask) == mask ? i : -1;
    }
    if (bad < 0) return;
    for (axis = t->rank - 1, i = bad; axis >= 0; --axis) {
        index[axis] = i % t->shape[axis];
        i /= t->shape[axis];
    }
    tool_fail(TOOL_FAILURE, "%s: %s is not finite: the first NaN or Inf is element %s", tensor->input.where, name,
              shape_text(t->rank, index, text));
}

static void attend_close(attend_tensor *tensor)
{
    free(tensor->copy);
    tf_close(&tensor->input.file);
}

static void attend_fill_desc(svg2_desc *desc, const attend_arguments *a, const attend_tensor *q, const attend_tensor *k,
                             const attend_tensor *v)
{
    static const svg2_desc zero = SVG2_ZERO;
    svg2_error             err;
    int64_t                video;
    char                   message[SETTINGS_MESSAGE];

    *desc = zero;
    if (a->preset) { /* clusters and selection; shape and schedule are those of this call */
        svg2_desc published;
        if (svg2_preset_apply(svg2_preset_find(a->preset), &published, &err) != SVG2_OK) {
            tool_fail(TOOL_FAILURE, "--preset: %s %s", err.field, err.text);
        }
        desc->query_clusters = published.query_clusters;
        desc->key_clusters = published.key_clusters;
        desc->init_iterations = published.init_iterations;
        desc->step_iterations = published.step_iterations;
        desc->top_p = published.top_p;
        desc->min_keep = published.min_keep;
        desc->keep = published.keep;
        desc->route = published.route;
        desc->budget = published.budget;
        desc->tail = published.tail;
    }
    if (k->batch != v->batch || k->heads != v->heads || k->tokens != v->tokens || k->dim != v->dim) {
        tool_fail(TOOL_FAILURE, "k [%d,%d,%d,%d] and v [%d,%d,%d,%d] differ in shape (B,H,S,D)", k->batch, k->heads,
                  k->tokens, k->dim, v->batch, v->heads, v->tokens, v->dim);
    }
    if (q->batch != k->batch || q->dim != k->dim || q->heads % k->heads) {
        tool_fail(TOOL_FAILURE, "q [%d,%d,%d,%d] and k [%d,%d,%d,%d] do not fit together (B,H,S,D)", q->batch, q->heads,
                  q->tokens, q->dim, k->batch, k->heads, k->tokens, k->dim);
    }
    desc->batch = q->batch;
    desc->heads = q->heads;
    desc->heads_kv = k->heads;
    desc->tokens = q->tokens;
    desc->tokens_kv = k->tokens;
    desc->head_dim = q->dim;
    desc->q = desc->out = q->layout;
    desc->k = k->layout;
    desc->v = v->layout;
    desc->text_place = a->text_first > 0 ? SVG2_TEXT_FIRST : SVG2_TEXT_LAST;
    desc->text_tokens = a->text_first > 0 ? a->text_first : a->text_last > 0 ? a->text_last : 0;
    if (a->text_valid >= 0 && desc->text_tokens) desc->text_valid = a->text_valid == 0 ? -1 : a->text_valid;
    desc->frames = a->frames > 0 ? a->frames : 0;
    desc->frame_tokens = a->frame_tokens > 0 ? a->frame_tokens : 0;
    video = (int64_t)k->tokens - desc->text_tokens; /* one of the two is enough */
    if (desc->frames && !desc->frame_tokens && video % desc->frames == 0)
        desc->frame_tokens = (int32_t)(video / desc->frames);
    if (!desc->frames && desc->frame_tokens && video % desc->frame_tokens == 0) {
        desc->frames = (int32_t)(video / desc->frame_tokens);
    }
    desc->seed = a->seed;
    if (!settings_apply(&a->settings, desc, a->repeat, 0, message)) tool_fail(TOOL_USAGE, "%s", message);
    if (a->scale >= 0) desc->scale = (float)a->scale;
}

/* The library speaks of fields; the user knows options. */
static void attend_fail(const svg2_error *err)
{
    const char *option = settings_option_of(err->field);
    if (option) tool_fail(TOOL_FAILURE, "--%s: %s", option, err->text);
    tool_fail(TOOL_FAILURE, "%s %s",
              !strcmp(err->field, "text_tokens") ? "--text-first or --text-last:"
              : !strcmp(err->field, "tail")      ? "--compensate:"
              : !strcmp(err->field, "head_dim")  ? "the last extent of q"
              : !strcmp(err->field, "tokens")    ? "q: tokens"
              : !strcmp(err->field, "tokens_kv") ? "k: tokens"
                                                 : err->field,
              err->text);
}

/* ==== >>timing =========================================================================== */
/* The backend's stages, wrapped: the way that svg2.h names for it. */
static struct stage_timing {
    svg2_backend inner;
    double       seconds[SVG2_STAGE_COUNT];
    const char  *prefix; /* "step 1/3", for the progress line */
    int          is_cuda;
} stage_timing;

/* A stage on the GPU is over when the GPU says so. */
static void stage_wait(void)
{
    const char *failure = stage_timing.is_cuda ? device_wait() : NULL;
    if (failure) tool_fail(TOOL_FAILURE, "CUDA: %s", failure);
}

#define TIMED_STAGE(stage, name)                                                                                          \
    static svg2_result timed_##name(const svg2_backend *backend, const svg2_##name##_desc *desc, void *workspace,         \
                                    svg2_error *err)                                                                      \
    {                                                                                                                     \
        double      start = now();                                                                                        \
        svg2_result result;                                                                                               \
        (void)backend;                                                                                                    \
        snprintf(progress.label, sizeof progress.label, "%s  %s", stage_timing.prefix, #name);                            \
        result = stage_timing.inner.name(&stage_timing.inner, desc, workspace, err);                                      \
        stage_wait();                                                                                                     \
        stage_timing.seconds[stage] += now() - start;                                                                     \
        return result;                                                                                                    \
    }
TIMED_STAGE(SVG2_STAGE_KMEANS, kmeans)
TIMED_STAGE(SVG2_STAGE_PERMUTE, permute)
TIMED_STAGE(SVG2_STAGE_SUMMARIZE, summarize)
TIMED_STAGE(SVG2_STAGE_SCORE, score)
TIMED_STAGE(SVG2_STAGE_SELECT, select)
TIMED_STAGE(SVG2_STAGE_TAIL, tail)
TIMED_STAGE(SVG2_STAGE_ATTENTION, attention)
TIMED_STAGE(SVG2_STAGE_MASS, mass)
TIMED_STAGE(SVG2_STAGE_PLACE, place)
TIMED_STAGE(SVG2_STAGE_BAND, band)
TIMED_STAGE(SVG2_STAGE_PICK, pick)
TIMED_STAGE(SVG2_STAGE_PROFILE, profile)
#undef TIMED_STAGE

/* host: the CPU's, not timed */
static svg2_backend attend_backend(const attend_arguments *a, svg2_backend *host)
{
    static const svg2_simd choices[4] = {SVG2_SIMD_SCALAR, SVG2_SIMD_AVX2, SVG2_SIMD_AVX512, SVG2_SIMD_AVX512BF16};
    svg2_parallel          parallel = start_threads(a->threads);
    svg2_backend           backend = svg2_cpu_backend_simd(&parallel, a->simd < 0 ? SVG2_SIMD_BEST : choices[a->simd]);

    if (a->simd >= 0 && backend.simd != choices[a->simd])
        tool_fail(TOOL_FAILURE, "--simd: this machine or build lacks it");
    if (host) *host = backend;
    if (a->is_cuda) backend = device_backend();
    stage_timing.inner = backend;
    stage_timing.is_cuda = a->is_cuda;
    stage_timing.prefix = "";
    backend.kmeans = timed_kmeans;
    backend.permute = timed_permute;
    backend.summarize = timed_summarize;
    backend.score = timed_score;
    backend.select = timed_select;
    backend.tail = timed_tail;
    backend.attention = timed_attention;
    backend.mass = timed_mass;
    if (backend.place) { /* the four come together */
        backend.place = timed_place;
        backend.band = timed_band;
        backend.pick = timed_pick;
        backend.profile = timed_profile;
    }
    return backend;
}

static const char *simd_name(svg2_simd simd)
{
    return simd == SVG2_SIMD_SCALAR   ? "scalar"
           : simd == SVG2_SIMD_AVX2   ? "avx2"
           : simd == SVG2_SIMD_AVX512 ? "avx512"
                                      : "avx512bf16";
}

/* Attention mass that is there, per row. */
typedef struct attend_recall {
    int     is_known;
    double  mean, min;
    double *head_mean, *head_min; /* [B*H] */
} attend_recall;

/* Everything that the last step left, and what --check found. */
typedef struct attend_result {
    svg2_backend     backend, host; /* host computes what the result is checked against */
    svg2_desc        desc; /* resolved */
    svg2_plan        plan;
    svg2_head_stats *stats;  /* [B*H]     */
    void            *out;
    float           *lse;    /* [B, H, S] */
    float           *device_lse; /* of dense attention there; NULL on the CPU */
    double          *step_seconds;
    double           stage_seconds[SVG2_STAGE_COUNT], dense_seconds;
    size_t           workspace_bytes, state_bytes;
    svg2_action      action;              /* of the last step */
    double           density, density_pv; /* pairs of logits, and of products with V */
    int              is_checked;
    attend_recall    map, recall; /* inside the blocks of the map; what the output was computed from */
    svg2_metrics     metrics;
    float           *mass; /* [B, H, Qb, Kb], NULL without plan */
} attend_result;

static int has_text(const svg2_desc *desc) { return desc->text_tokens > 0 && desc->text_valid > 0; }
static int has_padding(const svg2_desc *desc)
{
    return desc->text_tokens > 0 && (desc->text_valid > 0 ? desc->text_valid : 0) < desc->text_tokens;
}

/* The stages as the report groups them. */
static double seconds_permute(const double *s)
{
    return s[SVG2_STAGE_PERMUTE] + s[SVG2_STAGE_SUMMARIZE] + s[SVG2_STAGE_PLACE];
}
static double seconds_select(const double *s)
{
    return s[SVG2_STAGE_SCORE] + s[SVG2_STAGE_SELECT] + s[SVG2_STAGE_PROFILE] + s[SVG2_STAGE_BAND] +
           s[SVG2_STAGE_MASS] + s[SVG2_STAGE_PICK];
}
static double seconds_attend(const double *s) { return s[SVG2_STAGE_TAIL] + s[SVG2_STAGE_ATTENTION]; }

/* Strides of a contiguous tensor in the axis order of the files. */
static svg2_layout attend_layout_as(const svg2_layout *like, svg2_dtype dtype)
{
    svg2_layout layout = *like;
    layout.dtype = dtype;
    return layout;
}

/* ==== >>check ============================================================================ */
/* recall [B, H, S]; rows that attend to nothing (by the LSE of dense attention) have none. */
static void attend_sum_recall(attend_recall *r, const svg2_desc *desc, const float *recall, const float *lse)
{
    const size_t tokens = (size_t)desc->tokens, heads = (size_t)desc->batch * (size_t)desc->heads;
    double       sum = 0;
    size_t       valid = 0, head, i;
    r->is_known = 1;
    r->mean = r->min = 1;
    r->head_mean = (double *)tool_allocate(heads, sizeof(double));
    r->head_min = (double *)tool_allocate(heads, sizeof(double));
    for (head = 0; head < heads; ++head) {
        double head_sum = 0;
        size_t used = 0;
        r->head_mean[head] = r->head_min[head] = 1;
        for (i = head * tokens; i < (head + 1) * tokens; ++i) {
            if (!(lse[i] > -INFINITY)) continue;
            head_sum += (double)recall[i];
            if ((double)recall[i] < r->head_min[head]) r->head_min[head] = (double)recall[i];
            ++used;
        }
        if (r->head_min[head] < r->min) r->min = r->head_min[head];
        if (used) r->head_mean[head] = head_sum / (double)used;
        sum += head_sum;
        valid += used;
    }
    if (valid) r->mean = sum / (double)valid;
}

/* Exact mass of every block of the plan, and what of it the map has for every row. */
static void attend_oracle(attend_result *r, const void *q, const void *k, const void *v, float *lse, float *recall)
{
    svg2_mass_desc mass;
    svg2_error     err;
    size_t         bytes, heads = (size_t)r->desc.batch * (size_t)r->desc.heads;
    void          *workspace;

    memset(&mass, 0, sizeof mass);
    mass.attention.batch = r->desc.batch;
    mass.attention.heads = r->desc.heads;
    mass.attention.heads_kv = r->desc.heads_kv;
    mass.attention.tokens = r->desc.tokens;
    mass.attention.tokens_kv = r->desc.tokens_kv;
    mass.attention.head_dim = r->desc.head_dim;
    mass.attention.scale = r->desc.scale;
    mass.attention.q = q;
    mass.attention.k = k;
    mass.attention.v = v;
    mass.attention.lse = lse;
    mass.attention.q_layout = r->desc.q;
    mass.attention.k_layout = r->desc.k;
    mass.attention.v_layout = r->desc.v;
    mass.attention.query_blocks = r->plan.query_blocks;
    mass.attention.key_blocks = r->plan.key_blocks;
    mass.attention.query_order = r->plan.query_order;
    mass.attention.query_offset = r->plan.query_offset;
    mass.attention.key_order = r->plan.key_order;
    mass.attention.key_offset = r->plan.key_offset;
    mass.attention.map = r->plan.map;
    mass.attention.key_mean = r->plan.key_mean;
    r->mass = (float *)tool_allocate(heads * (size_t)r->plan.query_blocks * (size_t)r->plan.key_blocks, sizeof(float));
    mass.valid_key_blocks = r->plan.key_blocks - (has_padding(&r->desc) ? 1 : 0); /* padding is the last block */
    mass.mass = r->mass;
    mass.recall = recall;
    bytes = svg2_stage_workspace_bytes(&r->host, SVG2_STAGE_MASS, &mass);
    workspace = tool_allocate(bytes, 1);
    stage_timing.prefix = "check: oracle";
    if (svg2_block_mass(&r->host, &mass, workspace, bytes, &err) != SVG2_OK) attend_fail(&err);
    free(workspace);
}

static void attend_check(attend_result *r, const void *q, const void *k, const void *v)
{
    const int      is_sparse = r->action == SVG2_ACTION_SPARSE || r->action == SVG2_ACTION_SEARCH_CACHED;
    svg2_desc      dense = r->desc;
    svg2_error     err;
    size_t         rows = (size_t)r->desc.batch * (size_t)r->desc.heads * (size_t)r->desc.tokens;
    size_t         count = rows * (size_t)r->desc.head_dim, bytes, i;
    float         *reference = (float *)tool_allocate(count, sizeof(float)), *output;
    float         *lse = (float *)tool_allocate(rows, sizeof(float));
    float         *recall = (float *)tool_allocate(rows, sizeof(float));
    void          *workspace;
    double         start;

    dense.method = SVG2_METHOD_DENSE;
    dense.skip = SVG2_SKIP_NONE;
    dense.out = attend_layout_as(&r->desc.out, SVG2_F32);
    bytes = svg2_workspace_bytes(&r->host, &dense);
    workspace = tool_allocate(bytes, 1);
    stage_timing.prefix = "check: dense";
    start = now();
    if (svg2_attend(&r->host, &dense, NULL, 0, q, k, v, reference, lse, NULL, workspace, bytes, &err) != SVG2_OK) {
        attend_fail(&err);
    }
    if (!stage_timing.is_cuda) r->dense_seconds = now() - start;
    free(workspace);
    if (r->desc.out.dtype == SVG2_F32) output = (float *)r->out;
    else {
        output = (float *)tool_allocate(count, sizeof(float));
        svg2_convert(output, SVG2_F32, r->out, r->desc.out.dtype, count);
    }
    if (svg2_compare(output, reference, count, 0, &r->metrics, &err) != SVG2_OK) attend_fail(&err);
    if (output != r->out) free(output);

    r->is_checked = 1;
    if (r->plan.map) {
        attend_oracle(r, q, k, v, lse, recall);
        attend_sum_recall(&r->map, &r->desc, recall, lse);
    }
    if (is_sparse && !r->desc.skip) {
        attend_sum_recall(&r->recall, &r->desc, recall, lse);
    } else if (!is_sparse || r->desc.tail == SVG2_TAIL_NONE) {
        /* what the softmax summed up, of the whole; a tail in the sum would hide what a rule has left out */
        const float *whole = r->device_lse ? r->device_lse : lse; /* rounded as this one */
        for (i = 0; i < rows; ++i) recall[i] = r->lse[i] < whole[i] ? expf(r->lse[i] - whole[i]) : 1;
        attend_sum_recall(&r->recall, &r->desc, recall, lse);
    }
    free(recall);
    free(reference);
    free(lse);
}

/* ==== >>dump ============================================================================= */
enum { DUMP_LSE, DUMP_MAP, DUMP_LABELS_Q, DUMP_LABELS_K, DUMP_CENTROIDS_Q, DUMP_CENTROIDS_K, DUMP_SIZES_Q, DUMP_SIZES_K,
       DUMP_COUNT };
static const char *const dump_names[DUMP_COUNT] = {"lse.npy",         "map.npy",         "labels_q.npy", "labels_k.npy",
                                                   "centroids_q.npy", "centroids_k.npy", "sizes_q.npy",  "sizes_k.npy"};

/* Open them all before the work, so that a full or read-only place is found early. Blocks of neighbours have no
   centroids; dense attention has no blocks. */
static void dump_open(const char *directory, svg2_method method, FILE *files[DUMP_COUNT], char *paths[DUMP_COUNT])
{
    int i;
    tool_make_directory(directory);
    for (i = 0; i < DUMP_COUNT; ++i) {
        files[i] = NULL;
        paths[i] = NULL;
        if (method == SVG2_METHOD_DENSE && i != DUMP_LSE) continue;
        if (method != SVG2_METHOD_SVG2 && (i == DUMP_CENTROIDS_Q || i == DUMP_CENTROIDS_K)) continue;
        paths[i] = tool_format("%s/%s", directory, dump_names[i]);
        files[i] = tool_open_output(paths[i]);
    }
}

static void dump_header(FILE *file, const char *path, tf_dtype dtype, int rank, int64_t a, int64_t b, int64_t c,
                        int64_t d)
{
    int64_t shape[4];
    shape[0] = a, shape[1] = b, shape[2] = c, shape[3] = d;
    if (tf_write_npy_header(file, dtype, rank, shape) != TF_OK) tool_fail(TOOL_FAILURE, "%s: cannot be written", path);
}

/* Labels, sizes and, of clusters, centroids of one side. Blocks behind the clusters (text, padding) get the mean of their
   tokens. */
static void dump_side(FILE *const *files, char *const *paths, const attend_tensor *tensor, int32_t blocks,
                      int32_t clusters, const int32_t *label, const int32_t *order, const int32_t *offset,
                      const float *centroid, int is_key)
{
    int      labels = is_key ? DUMP_LABELS_K : DUMP_LABELS_Q, centroids = is_key ? DUMP_CENTROIDS_K : DUMP_CENTROIDS_Q;
    int      sizes = is_key ? DUMP_SIZES_K : DUMP_SIZES_Q;
    int32_t  batch, head, block, i, d, dim = tensor->dim;
    int64_t  heads = (int64_t)tensor->batch * tensor->heads;
    double  *sum = (double *)tool_allocate((size_t)dim, sizeof(double));
    float   *row = (float *)tool_allocate((size_t)dim, sizeof(float));

    dump_header(files[labels], paths[labels], TF_I32, 3, tensor->batch, tensor->heads, tensor->tokens, 0);
    tool_write(files[labels], label, (size_t)heads * (size_t)tensor->tokens * sizeof *label, paths[labels]);
    dump_header(files[sizes], paths[sizes], TF_I32, 3, tensor->batch, tensor->heads, blocks, 0);
    if (files[centroids])
        dump_header(files[centroids], paths[centroids], TF_F32, 4, tensor->batch, tensor->heads, blocks, dim);
    for (batch = 0; batch < tensor->batch; ++batch) {
        for (head = 0; head < tensor->heads; ++head) {
            size_t         index = (size_t)batch * (size_t)tensor->heads + (size_t)head;
            const int32_t *begin = offset + index * (size_t)(blocks + 1);
            const int32_t *tokens = order + index * (size_t)tensor->tokens;
            const char    *rows = (const char *)tensor->data;
            rows += (size_t)(batch * tensor->layout.stride_batch + head * tensor->layout.stride_head) *
                    dtype_bytes(tensor->layout.dtype);
            for (block = 0; block < blocks; ++block) {
                int32_t size = begin[block + 1] - begin[block];
                tool_write(files[sizes], &size, sizeof size, paths[sizes]);
            }
            if (!files[centroids]) continue;
            tool_write(files[centroids], centroid + index * (size_t)clusters * (size_t)dim,
                       (size_t)clusters * (size_t)dim * sizeof(float), paths[centroids]);
            for (block = clusters; block < blocks; ++block) {
                for (d = 0; d < dim; ++d) sum[d] = 0;
                for (i = begin[block]; i < begin[block + 1]; ++i) {
                    svg2_convert(row, SVG2_F32,
                                 rows + (size_t)(tokens[i] * tensor->layout.stride_token) *
                                            dtype_bytes(tensor->layout.dtype),
                                 tensor->layout.dtype, (size_t)dim);
                    for (d = 0; d < dim; ++d) sum[d] += (double)row[d];
                }
                for (d = 0; d < dim; ++d) row[d] = i > begin[block] ? (float)(sum[d] / (i - begin[block])) : 0;
                tool_write(files[centroids], row, (size_t)dim * sizeof(float), paths[centroids]);
            }
        }
    }
    free(sum);
    free(row);
}

static void dump_write(FILE *const *files, char *const *paths, const attend_result *r, const attend_tensor *q,
                       const attend_tensor *k)
{
    size_t heads = (size_t)r->desc.batch * (size_t)r->desc.heads;
    dump_header(files[DUMP_LSE], paths[DUMP_LSE], TF_F32, 3, r->desc.batch, r->desc.heads, r->desc.tokens, 0);
    tool_write(files[DUMP_LSE], r->lse, heads * (size_t)r->desc.tokens * sizeof(float), paths[DUMP_LSE]);
    if (!r->plan.map) {
        tool_notice("--dump: a dense call has no clusters and no map: only lse.npy is written");
        return;
    }
    dump_header(files[DUMP_MAP], paths[DUMP_MAP], TF_U8, 4, r->desc.batch, r->desc.heads, r->plan.query_blocks,
                r->plan.key_blocks);
    tool_write(files[DUMP_MAP], r->plan.map, heads * (size_t)r->plan.query_blocks * (size_t)r->plan.key_blocks,
               paths[DUMP_MAP]);
    dump_side(files, paths, q, r->plan.query_blocks, r->plan.query_clusters, r->plan.query_label, r->plan.query_order,
              r->plan.query_offset, r->plan.query_centroid, 0);
    dump_side(files, paths, k, r->plan.key_blocks, r->plan.key_clusters, r->plan.key_label, r->plan.key_order,
              r->plan.key_offset, r->plan.key_centroid, 1);
}

/* ==== >>report =========================================================================== */
static const char *tail_name(svg2_tail_kind tail)
{
    return tail == SVG2_TAIL_NONE ? "none" : tail == SVG2_TAIL_ORDER0 ? "order0" : "order1";
}
static const char *route_name(svg2_route route) { return route == SVG2_ROUTE_MASS ? "mass" : "spread"; }
static const char *budget_name(svg2_budget budget) { return budget == SVG2_BUDGET_ROW ? "row" : "head"; }

/* How much is exact, in words: "top-p 0.9, min-keep 0.1". */
static const char *selection_text(const svg2_desc *desc, char text[80])
{
    char floor_text[32] = "";
    if (desc->min_keep > 0) snprintf(floor_text, sizeof floor_text, ", min-keep %.3g", (double)desc->min_keep);
    if (desc->target_error > 0) snprintf(text, 80, "target error %.3g%s", (double)desc->target_error, floor_text);
    else if (desc->density > 0) snprintf(text, 80, "density %.3g%s", (double)desc->density, floor_text);
    else snprintf(text, 80, "top-p %.3g%s", (double)desc->top_p, floor_text);
    return text;
}

/* What decides, in words, without the plan's numbers of blocks. */
static const char *settings_text(const svg2_desc *desc, char text[160])
{
    char selection[80];
    if (desc->method == SVG2_METHOD_SVG2) {
        snprintf(text, 160, "%s, route %s, budget per %s, tail %s", selection_text(desc, selection),
                 route_name(desc->route), budget_name(desc->budget), tail_name(desc->tail));
    } else if (desc->method == SVG2_METHOD_SVG1) {
        snprintf(text, 160, "keep %.3g: band of %d positions%s, %d sampled rows", (double)desc->keep, desc->band_width,
                 desc->first_frame > 0 ? ", first frame" : "", desc->sample_rows);
    } else if (desc->mass_target > 0) {
        snprintf(text, 160, "mass target %.3g, tail %s", (double)desc->mass_target, tail_name(desc->tail));
    } else {
        snprintf(text, 160, "sparsity %.3g, tail %s", desc->sparsity < 0 ? 0 : (double)desc->sparsity,
                 tail_name(desc->tail));
    }
    return text;
}

static const char *skip_text(const svg2_desc *desc, char text[80])
{
    const char *order = desc->visit == SVG2_VISIT_NATURAL ? "natural" : "diagonal";
    if (desc->skip == SVG2_SKIP_CONSTANT) snprintf(text, 80, "threshold %.4g, order %s", (double)desc->skip_threshold, order);
    else snprintf(text, 80, "%s %.4g, order %s%s", desc->skip == SVG2_SKIP_ENERGY ? "energy lambda" : "recall",
                  (double)(desc->skip == SVG2_SKIP_ENERGY ? desc->energy_lambda : desc->recall), order,
                  desc->seed_lse ? ", from the last LSE" : "");
    return text;
}

static double attend_error_estimate(const attend_result *r)
{
    int32_t heads = r->desc.batch * r->desc.heads, head;
    double  squares = 0;
    if (r->desc.skip) return -1; /* it would be of the blocks alone */
    for (head = 0; head < heads; ++head) {
        if (r->stats[head].error_estimate < 0) return -1;
        squares += (double)r->stats[head].error_estimate * (double)r->stats[head].error_estimate;
    }
    return sqrt(squares / heads);
}

/* What a method has found out about each head. */
static void attend_print_heads(const attend_result *r)
{
    int32_t heads = r->desc.batch * r->desc.heads, head, temporal = 0;
    double  recall = 0;
    for (head = 0; head < heads; ++head) {
        temporal += r->stats[head].pattern == 1;
        recall += (double)r->stats[head].recall / heads;
    }
    if (r->desc.method == SVG2_METHOD_SVG1)
        printf("heads     %d in space, %d in time\n", heads - temporal, temporal);
    if (r->desc.method == SVG2_METHOD_ADASPA && r->action != SVG2_ACTION_SEARCH)
        printf("found     recall %.4f where it was searched (mean of the heads)\n", recall);
}

static void attend_print(const attend_result *r, const attend_arguments *a)
{
    const double *seconds = r->stage_seconds;
    int32_t       heads = r->desc.batch * r->desc.heads, head, dense_heads = 0, empty = 0;
    double        low = 1, high = 0, estimate = attend_error_estimate(r), total = r->step_seconds[a->repeat - 1];
    char          text[160];

    for (head = 0; head < heads; ++head) {
        double density = (double)(r->desc.skip ? r->stats[head].density_pv : r->stats[head].density);
        low = density < low ? density : low;
        high = density > high ? density : high;
        dense_heads += r->stats[head].is_dense != 0;
        empty += r->stats[head].empty_clusters;
    }
    printf("call      %s, %s, ", settings_method_name(a->settings.method), r->backend.name);
    if (a->is_cuda) printf("%s\n", a->device_name);
    else printf("%s, %d thread%s\n", simd_name(r->backend.simd), a->threads, a->threads == 1 ? "" : "s");
    printf("shape     q [%d, %d, %d, %d] %s", r->desc.batch, r->desc.heads, r->desc.tokens, r->desc.head_dim,
           dtype_name(r->desc.q.dtype));
    if (r->desc.heads_kv != r->desc.heads || r->desc.tokens_kv != r->desc.tokens) {
        printf("   k, v [%d, %d, %d, %d]", r->desc.batch, r->desc.heads_kv, r->desc.tokens_kv, r->desc.head_dim);
    }
    printf("\n");
    if (r->plan.map) {
        printf("blocks    %d x %d ", r->plan.query_clusters, r->plan.key_clusters);
        if (r->desc.method == SVG2_METHOD_SVG2) printf("clusters (%d empty)", empty);
        else printf("blocks of %d tokens", r->desc.block);
        printf("%s%s\n", has_text(&r->desc) ? " + text" : "", has_padding(&r->desc) ? " + padding" : "");
        printf("exact     %s\n", settings_text(&r->desc, text));
    }
    if (r->desc.skip) printf("skip      %s\n", skip_text(&r->desc, text));
    attend_print_heads(r);
    if (r->desc.skip) {
        printf("density   %.2f %% of products Q K, %.2f %% of products P V  (heads: %.2f .. %.2f %%)", 100 * r->density,
               100 * r->density_pv, 100 * low, 100 * high);
    } else {
        printf("density   %.2f %%  (heads: %.2f .. %.2f %%)", 100 * r->density, 100 * low, 100 * high);
    }
    if (dense_heads) printf("  %d of %d heads dense", dense_heads, heads);
    printf("\n");
    if (estimate >= 0) printf("estimate  relative L2 error %.4g\n", estimate);
    if (r->is_checked) {
        if (r->recall.is_known) printf("recall    mean %.4f  worst row %.4f\n", r->recall.mean, r->recall.min);
        if (r->map.is_known && (!r->recall.is_known || r->desc.skip)) {
            printf("map       recall mean %.4f  worst row %.4f, before tiles are left out\n", r->map.mean, r->map.min);
        } else if (r->action == SVG2_ACTION_SEARCH && r->map.is_known) {
            printf("map       recall mean %.4f  worst row %.4f, of the blocks that were found\n", r->map.mean, r->map.min);
        }
        printf("error     rel_l2 %.4g (%.1f dB)  rel_l1 %.4g  cosine %.6f  max_abs %.4g\n", r->metrics.rel_l2,
               -20 * log10(r->metrics.rel_l2 > 1e-30 ? r->metrics.rel_l2 : 1e-30), r->metrics.rel_l1, r->metrics.cosine,
               r->metrics.max_abs);
    }
    printf("seconds   %.3f = kmeans %.3f  permute %.3f  select %.3f  attend %.3f  other %.3f\n", total,
           seconds[SVG2_STAGE_KMEANS], seconds_permute(seconds), seconds_select(seconds), seconds_attend(seconds),
           total - seconds[SVG2_STAGE_KMEANS] - seconds_permute(seconds) - seconds_select(seconds) -
               seconds_attend(seconds));
    if (r->action == SVG2_ACTION_SEARCH) {
        printf("note      step %d searched, and computed everything: one more step (--repeat %d) shows what it found\n",
               a->repeat - 1, a->repeat + 1);
    }
    if (a->repeat > 1) printf("steps     first %.3f s, last %.3f s\n", r->step_seconds[0], total);
    if (r->is_checked) printf("dense     %.3f s: %.2f times as long\n", r->dense_seconds, r->dense_seconds / total);
    printf("memory    workspace %.1f MiB, state %.1f MiB\n", (double)r->workspace_bytes / 1048576,
           (double)r->state_bytes / 1048576);
}

#ifndef SVG2_TOOL_NO_CJSON
static void report_number(cJSON *object, const char *key, double value, int is_known)
{
    if (is_known && isfinite(value)) cJSON_AddNumberToObject(object, key, value);
    else cJSON_AddNullToObject(object, key);
}

static void report_shape(cJSON *object, const char *key, int32_t a, int32_t b, int32_t c, int32_t d)
{
    int shape[4];
    shape[0] = a, shape[1] = b, shape[2] = c, shape[3] = d;
    cJSON_AddItemToObject(object, key, cJSON_CreateIntArray(shape, 4));
}

static const char *action_name(svg2_action action)
{
    return action == SVG2_ACTION_SEARCH          ? "search"
           : action == SVG2_ACTION_SEARCH_CACHED ? "search_cached"
           : action == SVG2_ACTION_SPARSE        ? "sparse"
                                                 : "dense";
}

static void report_methods(cJSON *object, const svg2_desc *d)
{
    int steps[SVG2_MAX_SEARCHES], i;
    if (d->method != SVG2_METHOD_DENSE) cJSON_AddStringToObject(object, "tail", tail_name(d->tail));
    if (d->method == SVG2_METHOD_SVG1 || d->method == SVG2_METHOD_ADASPA)
        cJSON_AddNumberToObject(object, "block", d->block);
    if (d->method == SVG2_METHOD_SVG1) {
        report_number(object, "keep", (double)d->keep, 1);
        cJSON_AddNumberToObject(object, "band_width", d->band_width);
        cJSON_AddNumberToObject(object, "sample_rows", d->sample_rows);
        cJSON_AddNumberToObject(object, "first_frame", d->first_frame > 0);
    }
    if (d->method == SVG2_METHOD_ADASPA) {
        for (i = 0; i < d->search_count; ++i) steps[i] = d->search_steps[i];
        report_number(object, "sparsity", d->sparsity < 0 ? 0 : (double)d->sparsity, !(d->mass_target > 0));
        report_number(object, "mass_target", (double)d->mass_target, d->mass_target > 0);
        cJSON_AddItemToObject(object, "search_steps", cJSON_CreateIntArray(steps, d->search_count));
    }
    cJSON_AddStringToObject(object, "skip", settings_skip_name(d->skip));
    if (!d->skip) return;
    cJSON_AddStringToObject(object, "order", d->visit == SVG2_VISIT_NATURAL ? "natural" : "diagonal");
    report_number(object, "threshold", (double)d->skip_threshold, d->skip == SVG2_SKIP_CONSTANT);
    report_number(object, "energy_lambda", (double)d->energy_lambda, d->skip == SVG2_SKIP_ENERGY);
    report_number(object, "recall", (double)d->recall, d->skip == SVG2_SKIP_RECALL);
    cJSON_AddBoolToObject(object, "seed_lse", d->seed_lse);
}

static void attend_write_report(FILE *file, const attend_result *r, const attend_arguments *a)
{
    cJSON        *root = cJSON_CreateObject(), *object;
    const double *seconds = r->stage_seconds;
    int32_t       heads = r->desc.batch * r->desc.heads, head;
    double        total = r->step_seconds[a->repeat - 1], estimate = attend_error_estimate(r);
    double       *values = (double *)tool_allocate((size_t)heads, sizeof(double));
    char         *text;

    cJSON_AddStringToObject(root, "method", settings_method_name(a->settings.method));
    cJSON_AddStringToObject(root, "backend", r->backend.name);
    if (a->is_cuda) {
        cJSON_AddStringToObject(root, "device", a->device_name);
    } else {
        cJSON_AddStringToObject(root, "simd", simd_name(r->backend.simd));
        cJSON_AddNumberToObject(root, "threads", a->threads);
    }
    report_shape(root, "shape", r->desc.batch, r->desc.heads, r->desc.tokens, r->desc.head_dim);
    report_shape(root, "shape_kv", r->desc.batch, r->desc.heads_kv, r->desc.tokens_kv, r->desc.head_dim);
    cJSON_AddStringToObject(root, "dtype", dtype_name(r->desc.q.dtype));
    cJSON_AddNumberToObject(root, "density", r->density);
    cJSON_AddNumberToObject(root, "density_pv", r->density_pv);
    report_number(root, "recall_mean", r->recall.mean, r->recall.is_known);
    report_number(root, "recall_min", r->recall.min, r->recall.is_known);
    report_number(root, "map_recall_mean", r->map.mean, r->map.is_known);
    report_number(root, "map_recall_min", r->map.min, r->map.is_known);
    cJSON_AddStringToObject(root, "last_step", action_name(r->action));
    report_number(root, "rel_l1", r->metrics.rel_l1, r->is_checked);
    report_number(root, "rel_l2", r->metrics.rel_l2, r->is_checked);
    report_number(root, "cosine", r->metrics.cosine, r->is_checked);
    report_number(root, "max_abs", r->metrics.max_abs, r->is_checked);
    report_number(root, "psnr", r->metrics.psnr, r->is_checked);
    report_number(root, "error_estimate", estimate, estimate >= 0);
    report_number(root, "speedup", r->dense_seconds / total, r->is_checked);

    object = cJSON_AddObjectToObject(root, "seconds");
    cJSON_AddNumberToObject(object, "kmeans", seconds[SVG2_STAGE_KMEANS]);
    cJSON_AddNumberToObject(object, "select", seconds_select(seconds));
    cJSON_AddNumberToObject(object, "permute", seconds_permute(seconds));
    cJSON_AddNumberToObject(object, "attend", seconds_attend(seconds));
    cJSON_AddNumberToObject(object, "total", total);
    report_number(object, "dense", r->dense_seconds, r->is_checked);
    cJSON_AddItemToObject(root, "step_seconds", cJSON_CreateDoubleArray(r->step_seconds, a->repeat));
    cJSON_AddNumberToObject(root, "workspace_bytes", (double)r->workspace_bytes);
    cJSON_AddNumberToObject(root, "state_bytes", (double)r->state_bytes);

    object = cJSON_AddObjectToObject(root, "settings");
    cJSON_AddNumberToObject(object, "scale", (double)r->desc.scale);
    cJSON_AddNumberToObject(object, "frames", r->desc.frames);
    cJSON_AddNumberToObject(object, "frame_tokens", r->desc.frame_tokens);
    cJSON_AddNumberToObject(object, "text_tokens", r->desc.text_tokens);
    cJSON_AddNumberToObject(object, "text_valid", r->desc.text_valid < 0 ? 0 : r->desc.text_valid);
    if (r->desc.method == SVG2_METHOD_SVG2) {
        cJSON_AddNumberToObject(object, "query_clusters", r->desc.query_clusters);
        cJSON_AddNumberToObject(object, "key_clusters", r->desc.key_clusters);
        cJSON_AddNumberToObject(object, "init_iterations", r->desc.init_iterations);
        cJSON_AddNumberToObject(object, "step_iterations", r->desc.step_iterations < 0 ? 0 : r->desc.step_iterations);
        cJSON_AddBoolToObject(object, "keep_empty", r->desc.keep_empty != 0);
        text = (char *)tool_allocate(32, 1);
        snprintf(text, 32, "%llu", (unsigned long long)r->desc.seed); /* a JSON number would lose bits */
        cJSON_AddStringToObject(object, "seed", text);
        free(text);
        cJSON_AddStringToObject(object, "route", route_name(r->desc.route));
        cJSON_AddStringToObject(object, "budget", budget_name(r->desc.budget));
        report_number(object, "top_p", (double)r->desc.top_p, 1);
        report_number(object, "min_keep", r->desc.min_keep < 0 ? 0 : (double)r->desc.min_keep, 1);
        report_number(object, "density", (double)r->desc.density, r->desc.density > 0);
        report_number(object, "target_error", (double)r->desc.target_error, r->desc.target_error > 0);
    }
    report_methods(object, &r->desc);
    object = cJSON_AddObjectToObject(root, "per_head"); /* batch by batch */
    for (head = 0; head < heads; ++head) values[head] = (double)r->stats[head].density;
    cJSON_AddItemToObject(object, "density", cJSON_CreateDoubleArray(values, heads));
    for (head = 0; head < heads; ++head) values[head] = (double)r->stats[head].density_pv;
    cJSON_AddItemToObject(object, "density_pv", cJSON_CreateDoubleArray(values, heads));
    if (r->recall.is_known) {
        cJSON_AddItemToObject(object, "recall_mean", cJSON_CreateDoubleArray(r->recall.head_mean, heads));
        cJSON_AddItemToObject(object, "recall_min", cJSON_CreateDoubleArray(r->recall.head_min, heads));
    }
    if (r->map.is_known) {
        cJSON_AddItemToObject(object, "map_recall_mean", cJSON_CreateDoubleArray(r->map.head_mean, heads));
        cJSON_AddItemToObject(object, "map_recall_min", cJSON_CreateDoubleArray(r->map.head_min, heads));
    }
    if (r->desc.method == SVG2_METHOD_SVG1) {
        cJSON *patterns = cJSON_AddArrayToObject(object, "pattern"), *errors = cJSON_AddArrayToObject(object, "pattern_error");
        for (head = 0; head < heads; ++head) { /* relative L2 error of the sampled rows in space, in time */
            double pair[2];
            pair[0] = (double)r->stats[head].pattern_error[0], pair[1] = (double)r->stats[head].pattern_error[1];
            cJSON_AddItemToArray(patterns, cJSON_CreateString(r->stats[head].pattern == 1 ? "time" : "space"));
            cJSON_AddItemToArray(errors, cJSON_CreateDoubleArray(pair, 2));
        }
    }
    if (r->desc.method == SVG2_METHOD_ADASPA && r->action != SVG2_ACTION_SEARCH) {
        for (head = 0; head < heads; ++head) values[head] = (double)r->stats[head].recall;
        cJSON_AddItemToObject(object, "search_recall", cJSON_CreateDoubleArray(values, heads));
    }
    if (estimate >= 0) {
        for (head = 0; head < heads; ++head) values[head] = (double)r->stats[head].error_estimate;
        cJSON_AddItemToObject(object, "error_estimate", cJSON_CreateDoubleArray(values, heads));
    }
    for (head = 0; head < heads; ++head) values[head] = r->stats[head].empty_clusters;
    cJSON_AddItemToObject(object, "empty_clusters", cJSON_CreateDoubleArray(values, heads));
    text = cJSON_Print(root);
    if (!text) tool_fail(TOOL_FAILURE, "out of memory");
    tool_write(file, text, strlen(text), a->report);
    tool_write(file, "\n", 1, a->report);
    cJSON_free(text);
    cJSON_Delete(root);
    free(values);
}
#endif

#ifndef SVG2_TOOL_NO_PNG
static void attend_write_picture(FILE *file, const attend_result *r, const attend_arguments *a)
{
    picture_desc desc;
    char         title[160], subtitle[480], text[160];
    int32_t      head, heads = r->desc.batch * r->desc.heads;

    memset(&desc, 0, sizeof desc);
    snprintf(title, sizeof title, "%s   %d head%s x %d tokens x %d dims   density %.1f %%",
             settings_method_name(a->settings.method), heads, heads == 1 ? "" : "s", r->desc.tokens, r->desc.head_dim,
             100 * r->density);
    snprintf(subtitle, sizeof subtitle, "%d x %d %s, %s", r->plan.query_clusters, r->plan.key_clusters,
             r->desc.method == SVG2_METHOD_SVG2 ? "clusters" : "blocks", settings_text(&r->desc, text));
    if (r->is_checked) {
        size_t used = strlen(subtitle);
        snprintf(subtitle + used, sizeof subtitle - used, ";  recall %.3f, relative L2 error %.3g", r->map.mean,
                 r->metrics.rel_l2);
    }
    desc.title = title;
    desc.settings = subtitle;
    desc.batch = r->desc.batch;
    desc.heads = r->desc.heads;
    desc.heads_kv = r->desc.heads_kv;
    desc.query_tokens = r->desc.tokens;
    desc.key_tokens = r->desc.tokens_kv;
    desc.query_blocks = r->plan.query_blocks;
    desc.key_blocks = r->plan.key_blocks;
    desc.query_clusters = r->plan.query_clusters;
    desc.key_clusters = r->plan.key_clusters;
    desc.has_text = has_text(&r->desc);
    desc.has_frames = r->desc.frames > 1;
    desc.text_begin = r->desc.text_place == SVG2_TEXT_FIRST ? r->desc.text_tokens : 0;
    desc.query_label = r->plan.query_label;
    desc.key_label = r->plan.key_label;
    desc.query_offset = r->plan.query_offset;
    desc.key_offset = r->plan.key_offset;
    desc.map = r->plan.map;
    desc.mass = r->mass;
    desc.density = (float *)tool_allocate((size_t)heads, sizeof(float));
    for (head = 0; head < heads; ++head) desc.density[head] = r->stats[head].density;
    desc.recall = r->map.head_mean;
    desc.is_ordered = r->desc.method != SVG2_METHOD_SVG2;
    if (!picture_write(file, &desc)) tool_fail(TOOL_FAILURE, "%s: the picture cannot be written", a->picture);
    free(desc.density);
}
#endif

/* ==== the command ======================================================================== */
/* What the call works on: memory of the host, or its twins on the GPU. */
typedef struct attend_memory {
    const void      *q, *k, *v;
    void            *out, *workspace, *state;
    float           *lse;
    svg2_head_stats *stats;
} attend_memory;

static void attend_expect(const char *failure)
{
    if (failure) tool_fail(TOOL_FAILURE, "CUDA: %s", failure);
}

static void *attend_twin(const void *host, size_t bytes) /* host NULL: contents do not matter */
{
    void       *twin = NULL;
    const char *failure = device_allocate(&twin, bytes);
    if (failure) tool_fail(TOOL_FAILURE, "CUDA: %s: %.1f MiB for one array", failure, (double)bytes / 1048576);
    if (host) attend_expect(device_put(twin, host, bytes));
    return twin;
}

static size_t attend_out_bytes(const attend_result *r)
{
    const size_t rows = (size_t)r->desc.batch * (size_t)r->desc.heads * (size_t)r->desc.tokens;
    return rows * (size_t)r->desc.head_dim * dtype_bytes(r->desc.out.dtype);
}

static attend_memory attend_to_device(const attend_result *r, const attend_tensor *q, const attend_tensor *k,
                                      const attend_tensor *v)
{
    size_t        heads = (size_t)r->desc.batch * (size_t)r->desc.heads;
    attend_memory m;
    m.q = attend_twin(q->data, q->input.tensor->bytes);
    m.k = attend_twin(k->data, k->input.tensor->bytes);
    m.v = attend_twin(v->data, v->input.tensor->bytes);
    m.out = attend_twin(NULL, attend_out_bytes(r));
    m.lse = (float *)attend_twin(r->lse, heads * (size_t)r->desc.tokens * sizeof(float));
    m.stats = (svg2_head_stats *)attend_twin(NULL, heads * sizeof *r->stats);
    m.workspace = attend_twin(NULL, r->workspace_bytes);
    m.state = r->state_bytes ? attend_twin(NULL, r->state_bytes) : NULL;
    return m;
}

static void attend_from_device(const attend_result *r, const attend_memory *m)
{
    size_t heads = (size_t)r->desc.batch * (size_t)r->desc.heads;
    attend_expect(device_get(r->out, m->out, attend_out_bytes(r)));
    attend_expect(device_get(r->lse, m->lse, heads * (size_t)r->desc.tokens * sizeof(float)));
    attend_expect(device_get(r->stats, m->stats, heads * sizeof *r->stats));
}

/* Dense attention on the GPU, for its time (the second of two calls) and its LSE. */
static void attend_time_dense(attend_result *r, const attend_memory *m)
{
    svg2_desc  dense = r->desc;
    svg2_error err;
    size_t     bytes, rows = (size_t)r->desc.batch * (size_t)r->desc.heads * (size_t)r->desc.tokens;
    void      *workspace;
    int        i;
    dense.method = SVG2_METHOD_DENSE;
    dense.skip = SVG2_SKIP_NONE;
    bytes = svg2_workspace_bytes(&r->backend, &dense);
    workspace = attend_twin(NULL, bytes);
    for (i = 0; i < 2; ++i) {
        double start = now();
        if (svg2_attend(&r->backend, &dense, NULL, 0, m->q, m->k, m->v, m->out, m->lse, NULL, workspace, bytes,
                        &err) != SVG2_OK) {
            attend_fail(&err);
        }
        r->dense_seconds = now() - start;
    }
    r->device_lse = (float *)tool_allocate(rows, sizeof(float));
    attend_expect(device_get(r->device_lse, m->lse, rows * sizeof(float)));
    device_free(workspace);
}

static void attend_free_device(attend_memory *m)
{
    const void *all[] = {m->q, m->k, m->v, m->out, m->lse, m->stats, m->workspace, m->state};
    size_t      i;
    for (i = 0; i < sizeof all / sizeof *all; ++i) device_free((void *)(uintptr_t)all[i]);
}

static void attend_run(attend_result *r, const attend_arguments *a, const attend_tensor *q, const attend_tensor *k,
                       const attend_tensor *v, void *workspace, void *state_memory)
{
    svg2_state state;
    svg2_error err;
    int32_t    step, heads = r->desc.batch * r->desc.heads, head;
    int64_t    pairs = 0, pairs_pv = 0, pairs_total = 0;
    char       prefix[48];
    attend_memory m;

    m.q = q->data, m.k = k->data, m.v = v->data, m.out = r->out, m.lse = r->lse, m.stats = r->stats;
    m.workspace = workspace, m.state = state_memory;
    if (a->is_cuda) m = attend_to_device(r, q, k, v);
    if (svg2_state_init(&state, &r->desc, m.state, r->state_bytes, &err) != SVG2_OK) attend_fail(&err);
    for (step = 0; step < a->repeat; ++step) {
        double start = now();
        memset(stage_timing.seconds, 0, sizeof stage_timing.seconds);
        if (a->repeat > 1) snprintf(prefix, sizeof prefix, "step %d/%d", step + 1, a->repeat);
        else snprintf(prefix, sizeof prefix, "attend");
        stage_timing.prefix = prefix;
        r->action = settings_action(&r->desc, &state, step);
        if (svg2_attend(&r->backend, &r->desc, &state, step, m.q, m.k, m.v, m.out, m.lse, m.stats, m.workspace,
                        r->workspace_bytes, &err) != SVG2_OK) {
            attend_fail(&err);
        }
        r->step_seconds[step] = now() - start;
    }
    stage_timing.prefix = "";
    memcpy(r->stage_seconds, stage_timing.seconds, sizeof r->stage_seconds);
    r->plan = svg2_plan_view(&r->backend, &r->desc, a->repeat - 1, m.workspace);
    if (a->is_cuda) {
        attend_from_device(r, &m);
        r->plan = plan_from_device(&r->plan, &r->desc);
        if (a->is_check) attend_time_dense(r, &m);
        attend_free_device(&m);
    }
    for (head = 0; head < heads; ++head) {
        pairs += r->stats[head].pairs;
        pairs_pv += r->stats[head].pairs_pv;
        pairs_total += r->stats[head].pairs_total;
    }
    r->density = pairs_total ? (double)pairs / (double)pairs_total : 1;
    r->density_pv = pairs_total ? (double)pairs_pv / (double)pairs_total : 1;
}

static int command_attend(int argc, char **argv, int is_help)
{
    attend_arguments a;
    attend_result    r;
    attend_tensor    q, k, v;
    tool_option      options[ATTEND_OPTIONS];
    svg2_error       err;
    size_t           option_count, rows;
    FILE            *out_file = NULL, *report_file = NULL, *picture_file = NULL, *dump_files[DUMP_COUNT];
    char            *dump_paths[DUMP_COUNT], *out_path = NULL;
    const char      *out_name = "";
    void            *workspace, *state_memory;
    int              i;

    attend_defaults(&a);
    option_count = attend_options(&a, options);
    if (is_help) {
        printf("svg2 attend --q F --k F --v F [--out F] [options]\n\n"
               "One attention call on files; prints what it computed, what it cost and, with --check, what it lost.\n");
        tool_print_options(options, option_count);
        return 0;
    }
    tool_parse(argc, argv, options, option_count, NULL, 0);
    attend_check_arguments(&a);
    memset(&r, 0, sizeof r);

    attend_open(&q, a.q, "q", a.layout == 1);
    attend_open(&k, a.k, "k", a.layout == 1);
    attend_open(&v, a.v, "v", a.layout == 1);
    attend_fill_desc(&r.desc, &a, &q, &k, &v);
    if (a.out) {
        out_path = tf_split(a.out, &out_name);
        if (!out_path) tool_fail(TOOL_FAILURE, "out of memory");
        if (!tf_is_safetensors_path(out_path) && r.desc.out.dtype == SVG2_BF16) {
            tool_notice("--out: .npy has no bf16: writing f32");
            r.desc.out.dtype = SVG2_F32;
        }
    }
    if (svg2_resolve(&r.desc, &err) != SVG2_OK) attend_fail(&err);

    if (a.out) out_file = tool_open_output(out_path);
    if (a.report) report_file = tool_open_output(a.report);
    if (a.picture) picture_file = tool_open_output(a.picture);
    if (a.dump) dump_open(a.dump, r.desc.method, dump_files, dump_paths);
    attend_refuse_non_finite(&q, "q");
    attend_refuse_non_finite(&k, "k");
    attend_refuse_non_finite(&v, "v");

    r.backend = attend_backend(&a, &r.host);
    if (settings_lacks(&r.backend, &r.desc))
        tool_fail(TOOL_FAILURE, "--method: backend %s %s", r.backend.name, settings_lacks(&r.backend, &r.desc));
    r.workspace_bytes = svg2_workspace_bytes(&r.backend, &r.desc);
    r.state_bytes = r.desc.method == SVG2_METHOD_DENSE ? 0 : svg2_state_bytes(&r.desc);
    rows = (size_t)r.desc.batch * (size_t)r.desc.heads * (size_t)r.desc.tokens;
    workspace = a.is_cuda ? NULL : tool_allocate(r.workspace_bytes, 1);
    state_memory = r.state_bytes && !a.is_cuda ? tool_allocate(r.state_bytes, 1) : NULL;
    r.out = tool_allocate(rows * (size_t)r.desc.head_dim, dtype_bytes(r.desc.out.dtype));
    r.lse = (float *)tool_allocate(rows, sizeof(float));
    for (size_t row = 0; row < rows; ++row) r.lse[row] = -INFINITY; /* unknown, for seed_lse */
    r.stats = (svg2_head_stats *)tool_allocate((size_t)r.desc.batch * (size_t)r.desc.heads, sizeof *r.stats);
    r.step_seconds = (double *)tool_allocate((size_t)a.repeat, sizeof(double));
    attend_run(&r, &a, &q, &k, &v, workspace, state_memory);
    if (a.is_check) attend_check(&r, q.data, k.data, v.data);
    tool_clear_progress();

    if (out_file) {
        tf_tensor header = *q.input.tensor; /* its shape, in the same order of axes */
        int       result;
        header.dtype = dtype_in_file(r.desc.out.dtype);
        header.name = tool_format("%s%s", out_name[0] ? out_name : "out", "");
        result = tf_is_safetensors_path(out_path)
                     ? tf_write_safetensors_header(out_file, &header, 1)
                     : tf_write_npy_header(out_file, header.dtype, header.rank, header.shape);
        if (result != TF_OK) tool_fail(TOOL_FAILURE, "%s: cannot be written", a.out);
        tool_write(out_file, r.out, rows * (size_t)r.desc.head_dim * dtype_bytes(r.desc.out.dtype), a.out);
        free(header.name);
    }
    if (a.dump) dump_write(dump_files, dump_paths, &r, &q, &k);
#ifndef SVG2_TOOL_NO_CJSON
    if (report_file) attend_write_report(report_file, &r, &a);
#else
    (void)report_file;
#endif
#ifndef SVG2_TOOL_NO_PNG
    if (picture_file) attend_write_picture(picture_file, &r, &a);
#else
    (void)picture_file;
#endif
    tool_commit_outputs();
    attend_print(&r, &a);

    for (i = 0; a.dump && i < DUMP_COUNT; ++i) free(dump_paths[i]);
    if (a.is_cuda) plan_free(&r.plan);
    free(out_path);
    free(workspace);
    free(state_memory);
    free(r.out);
    free(r.lse);
    free(r.stats);
    free(r.step_seconds);
    free(r.device_lse);
    free(r.map.head_mean);
    free(r.map.head_min);
    free(r.recall.head_mean);
    free(r.recall.head_min);
    free(r.mass);
    attend_close(&q);
    attend_close(&k);
    attend_close(&v);
    return 0;
}
