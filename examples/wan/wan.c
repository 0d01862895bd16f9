/* wan.c - MIT licence - a Wan 2.1/2.2 text-to-video transformer in C, its self-attention dense or sparse (svg2.h)

   Build and run, from the root of the repository ("make demo" does it):

       cc -O2 -ffp-contract=off -fopenmp -I. examples/wan/wan.c -lopenblas -lpng -lgif -lcjson -lm -o wan
       ./wan dense svg2                         # the same clip twice; out/dense.y4m, out/svg2.y4m, a table
       ./wan dense svg2,density=0.2 svg2,tail=0,top-p=0.9 --prompt "red striped disc; blue ring; navy waves pan-left"

   The network is read from one .safetensors file with Wan's own tensor names; every extent follows from the
   tensors. model.safetensors beside this file is a small model of that architecture, trained from nothing by train.py
   on made-up clips; its latents are pixels. With the weights of a real Wan transformer, --text gives it the umT5
   embedding of the prompt, and the latent that comes out is for Wan's VAE (--latent).

   To see how svg2.h is used, read >>attention: 60 lines. To see what a video transformer is, read >>forward.

   Macros
     WAN_NO_BLAS   plain loops for matrix products; otherwise cblas.h (OpenBLAS)
     WAN_NO_MAIN   for tests
     SVG2_TOOL_NO_PNG, SVG2_TOOL_NO_GIF, TF_NO_CJSON   without libpng, giflib, cJSON (which reads .safetensors)

   CONTENTS
     >>options    what can be asked for
     >>model      tensors by name, checked
     >>layers     linear, norms, RoPE
     >>attention  one svg2 state per (layer, guidance branch); settings of a run; seconds by stage
     >>forward    the transformer
     >>check      dense attention and exact mass beside every sparse call
     >>sampler    flow matching, guidance
     >>prompt     text embeddings
     >>results    table, report, pictures, Q/K/V
     >>main */

#define _XOPEN_SOURCE 700

#define SVG2_IMPLEMENTATION
#ifdef _OPENMP
#  define SVG2_OPENMP
#endif
#include "svg2.h"

#define TF_IMPLEMENTATION
#include "../tensor_file.h"
#define TOOL_MAX_OUTPUTS 4608
#include "../tool.h"
#include "clip.h"

#include <time.h>
#ifdef _OPENMP
#  include <omp.h>
#endif
#ifndef WAN_NO_BLAS
#  include <cblas.h>
#endif

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *floats(size_t a, size_t b)
{
    return (float *)tool_allocate(b && a > SIZE_MAX / 4 / b ? SIZE_MAX : a * b, sizeof(float));
}

/* ==== >>options ========================================================================== */
enum { WAN_MAX_RUNS = 256, WAN_MAX_STEPS = 1000, WAN_MAX_LISTED = 64 };

typedef struct wan_options {
    const char *model, *low_noise, *prompt, *text, *negative, *out, *latent, *csv, *dump, *dump_layers, *dump_steps, *noise;
    int32_t     frames, height, width, steps, heads, threads, fps, scale;
    double      shift, guidance, boundary;
    uint64_t    seed;
    int         is_check, is_help, dump_dtype;
} wan_options;

#define WAN_OPTIONS 40

static size_t wan_option_table(wan_options *o, tool_option *options)
{
    const tool_option table[] = {
        {TOOL_HEADING, "", "", NULL, 0, 0, 0, "what to generate"},
        {TOOL_TEXT, "model", "F.safetensors", &o->model, 0, 0, 0, "weights (examples/wan/model.safetensors)"},
        {TOOL_TEXT, "prompt", "WORDS", &o->prompt, 0, 0, 0, "for a model that lists its words: \"object; object; ground camera\""},
        {TOOL_TEXT, "text", "F", &o->text, 0, 0, 0, "or a text embedding [L, text_dim], x.npy or x.safetensors:name"},
        {TOOL_TEXT, "negative", "F", &o->negative, 0, 0, 0, "embedding for guidance to lead away from (zeros)"},
        {TOOL_INT, "frames", "N", &o->frames, 1, 100000, 0, "of the latent; of the clip where latents are pixels (16)"},
        {TOOL_INT, "height", "N", &o->height, 1, 100000, 0, "likewise (64)"},
        {TOOL_INT, "width", "N", &o->width, 1, 100000, 0, "likewise (64)"},
        {TOOL_SEED, "seed", "N", &o->seed, 0, 0, 0, "of the noise (0)"},
        {TOOL_TEXT, "noise", "F", &o->noise, 0, 0, 0, "or the noise itself, [C, F, H, W] of the latent"},
        {TOOL_INT, "steps", "N", &o->steps, 1, WAN_MAX_STEPS, 0, "Euler steps (20)"},
        {TOOL_REAL, "shift", "X", &o->shift, 0, 100, 0, "of the noise schedule (3)"},
        {TOOL_REAL, "guidance", "X", &o->guidance, 0, 100, 1, "classifier-free guidance; 1 = off (3)"},
        {TOOL_TEXT, "low-noise", "F.safetensors", &o->low_noise, 0, 0, 0, "Wan 2.2 A14B: second transformer, for the late steps"},
        {TOOL_REAL, "boundary", "X", &o->boundary, 0, 1, 0, "noise level at which it takes over (0.875)"},
        {TOOL_INT, "heads", "N", &o->heads, 1, 1024, 0, "attention heads, where the file does not say (dim / 128)"},

        {TOOL_HEADING, "", "", NULL, 0, 0, 0, "what to write"},
        {TOOL_TEXT, "out", "DIR", &o->out, 0, 0, 0, "NAME.y4m of each run, sheet.png, clips.gif, report.json (out)"},
        {TOOL_TEXT, "latent", "DIR", &o->latent, 0, 0, 0, "NAME.safetensors of each run: tensor latent [C, F, H, W]"},
        {TOOL_TEXT, "csv", "F", &o->csv, 0, 0, 0, "one line per run"},
        {TOOL_INT, "scale", "N", &o->scale, 1, 64, 0, "screen pixels per pixel in the pictures (3)"},
        {TOOL_INT, "fps", "N", &o->fps, 1, 1000, 0, "frames per second (8)"},
        {TOOL_FLAG, "check", "", &o->is_check, 0, 0, 0, "also dense attention and exact mass beside every sparse call: error, recall"},
        {TOOL_TEXT, "dump-qkv", "DIR", &o->dump, 0, 0, 0, "q, k, v of the first run as stepNN-layerNN.safetensors"},
        {TOOL_TEXT, "dump-layers", "LIST", &o->dump_layers, 0, 0, 0, "layers, as in 0,2,5 (all)"},
        {TOOL_TEXT, "dump-steps", "LIST", &o->dump_steps, 0, 0, 0, "steps (the middle one)"},
        {TOOL_CHOICE, "dump-dtype", "f32|f16|bf16", &o->dump_dtype, 0, 0, 0, "(f32)"},

        {TOOL_HEADING, "", "", NULL, 0, 0, 0, "how"},
        {TOOL_INT, "threads", "N", &o->threads, 1, 1024, 0, "(number of CPUs)"},
        {TOOL_FLAG, "help", "", &o->is_help, 0, 0, 0, "this"},
    };
    memcpy(options, table, sizeof table);
    return sizeof table / sizeof *table;
}

static void wan_defaults(wan_options *o)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    memset(o, 0, sizeof *o);
    o->model = "examples/wan/model.safetensors";
    o->out = "out";
    o->frames = 16, o->height = o->width = 64;
    o->steps = 20;
    o->shift = 3, o->guidance = 3, o->boundary = 0.875;
    o->fps = 8, o->scale = 3;
    o->threads = cpus < 1 ? 1 : cpus > 1024 ? 1024 : (int32_t)cpus;
}

/* ==== >>model ============================================================================
   dim = width; a token is dim floats. Weights stay in the mapped file as they are (F32, F16 or BF16); those of one
   layer are expanded to f32 just before a product with all tokens, which costs next to nothing. */
typedef struct wan_linear { /* y [n, rows] = x [n, columns] W^T + b */
    const tf_tensor *weight;
    float           *bias;
    int32_t          rows, columns;
} wan_linear;

typedef struct wan_attention_weights {
    wan_linear q, k, v, o;
    float     *norm_q, *norm_k; /* [dim] */
} wan_attention_weights;

typedef struct wan_block {
    wan_attention_weights self, cross;
    wan_linear            ffn0, ffn2;
    float                *norm3_weight, *norm3_bias; /* [dim] before cross-attention          */
    float                *modulation;                /* [6, dim] added to the time projection */
} wan_block;

typedef struct wan_model {
    const char *path;
    tf_file     file;
    int32_t     channels, dim, ffn_dim, heads, head_dim, layers, text_dim, text_len, freq_dim;
    int32_t     pixel_fold; /* latents are pixels, fold x fold of them per position; 0 = latents of a VAE */
    const char *words;      /* one-hot vocabulary of the prompt, or NULL */
    int32_t     parts;
    wan_linear  patch, text0, text2, time0, time2, time_projection, head;
    float      *head_modulation; /* [2, dim] */
    wan_block  *blocks;
    float      *scratch; /* the f32 weights of one layer */
} wan_model;

enum { WAN_PATCH = 4 }; /* 1 x 2 x 2 positions of the latent are one token */

static const tf_tensor *wan_tensor(const wan_model *m, const char *name, int rank, const int64_t *shape)
{
    const tf_tensor *t = tf_find(&m->file, name);
    int              i, is_same;
    if (!t) tool_fail(TOOL_FAILURE, "%s: tensor '%s' is missing", m->path, name);
    if (t->dtype != TF_F32 && t->dtype != TF_F16 && t->dtype != TF_BF16) {
        tool_fail(TOOL_FAILURE, "%s: tensor '%s' is %s, but weights are F32, F16 or BF16", m->path, name,
                  tf_dtype_name(t->dtype));
    }
    is_same = t->rank == rank;
    for (i = 0; is_same && i < rank; ++i) is_same = shape[i] < 0 ? t->shape[i] > 0 && t->shape[i] <= 1 << 24 : t->shape[i] == shape[i];
    if (!is_same) {
        char   have[256] = "[", want[256] = "[";
        size_t used;
        for (i = 0; i < t->rank; ++i) {
            used = strlen(have);
            snprintf(have + used, sizeof have - used, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
        }
        for (i = 0; i < rank; ++i) {
            used = strlen(want);
            if (shape[i] < 0) snprintf(want + used, sizeof want - used, "%sany", i ? ", " : "");
            else snprintf(want + used, sizeof want - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
        }
        tool_fail(TOOL_FAILURE, "%s: tensor '%s' has shape %s], but %s] is needed", m->path, name, have, want);
    }
    return t;
}

/* A small tensor, as floats. */
static float *wan_vector(const wan_model *m, const char *prefix, const char *suffix, int rank, int64_t a, int64_t b, int64_t c)
{
    char             name[128];
    int64_t          shape[3];
    const tf_tensor *t;
    float           *values;
    shape[0] = a, shape[1] = b, shape[2] = c;
    snprintf(name, sizeof name, "%s%s", prefix, suffix);
    t = wan_tensor(m, name, rank, shape);
    values = floats((size_t)t->count, 1);
    tf_get_f32(t, 0, t->count, values);
    return values;
}

/* columns < 0: any */
static wan_linear wan_linear_open(const wan_model *m, const char *prefix, const char *suffix, int64_t rows, int64_t columns)
{
    char       name[128];
    int64_t    shape[2];
    wan_linear l;
    shape[0] = rows, shape[1] = columns;
    snprintf(name, sizeof name, "%s%s.weight", prefix, suffix);
    l.weight = wan_tensor(m, name, 2, shape);
    l.rows = (int32_t)l.weight->shape[0];
    l.columns = (int32_t)l.weight->shape[1];
    snprintf(name, sizeof name, "%s.bias", suffix);
    l.bias = wan_vector(m, prefix, name, 1, l.rows, 0, 0);
    return l;
}

static wan_attention_weights wan_attention_open(const wan_model *m, const char *prefix)
{
    wan_attention_weights a;
    a.q = wan_linear_open(m, prefix, "q", m->dim, m->dim);
    a.k = wan_linear_open(m, prefix, "k", m->dim, m->dim);
    a.v = wan_linear_open(m, prefix, "v", m->dim, m->dim);
    a.o = wan_linear_open(m, prefix, "o", m->dim, m->dim);
    a.norm_q = wan_vector(m, prefix, "norm_q.weight", 1, m->dim, 0, 0);
    a.norm_k = wan_vector(m, prefix, "norm_k.weight", 1, m->dim, 0, 0);
    return a;
}

static int32_t wan_metadata_int(const wan_model *m, const char *key, int32_t otherwise, int32_t low, int32_t high)
{
    const char *text = tf_metadata(&m->file, key);
    char       *end;
    long        value;
    if (!text) return otherwise;
    value = strtol(text, &end, 10);
    if (end == text || *end || value < low || value > high) {
        tool_fail(TOOL_FAILURE, "%s: metadata %s is not a whole number from %d to %d", m->path, key, low, high);
    }
    return (int32_t)value;
}

static void wan_model_open(wan_model *m, const char *path, int32_t heads)
{
    static const int64_t patch_shape[5] = {-1, -1, 1, 2, 2};
    char                 message[TF_MESSAGE_COUNT], prefix[64];
    const tf_tensor     *t;
    size_t               i, largest = 0;
    int32_t              layer;

    memset(m, 0, sizeof *m);
    m->path = path;
    if (tf_open(&m->file, path, message, sizeof message) != TF_OK) tool_fail(TOOL_FAILURE, "%s", message);
    if (m->file.format != TF_SAFETENSORS) tool_fail(TOOL_FAILURE, "%s: weights are read from .safetensors files only", path);
    if (tf_find(&m->file, "img_emb.proj.0.weight") || tf_find(&m->file, "blocks.0.cross_attn.k_img.weight")) {
        tool_fail(TOOL_FAILURE, "%s: this is an image-to-video model; only text-to-video is supported", path);
    }
    t = wan_tensor(m, "patch_embedding.weight", 5, patch_shape);
    m->dim = (int32_t)t->shape[0];
    m->channels = (int32_t)t->shape[1];
    m->heads = wan_metadata_int(m, "num_heads", heads ? heads : m->dim / 128, 1, 1024);
    if (heads && heads != m->heads) tool_fail(TOOL_FAILURE, "--heads: %s says it has %d", path, m->heads);
    if (m->heads < 1 || m->dim % m->heads || m->dim / m->heads % 8 || m->dim / m->heads > 256) {
        tool_fail(TOOL_FAILURE, "%s: width %d does not divide into %d heads of a multiple of 8 up to 256 (see --heads)", path,
                  m->dim, m->heads);
    }
    m->head_dim = m->dim / m->heads;
    m->text_len = wan_metadata_int(m, "text_len", 512, 1, 65536);
    m->pixel_fold = wan_metadata_int(m, "pixel_fold", 0, 0, 16);
    m->words = tf_metadata(&m->file, "words");
    m->parts = wan_metadata_int(m, "parts", 1, 1, 64);
    if (m->pixel_fold && m->channels != 3 * m->pixel_fold * m->pixel_fold) {
        tool_fail(TOOL_FAILURE, "%s: metadata pixel_fold %d needs %d channels, the tensors have %d", path, m->pixel_fold,
                  3 * m->pixel_fold * m->pixel_fold, m->channels);
    }
    m->patch.weight = t;
    m->patch.bias = wan_vector(m, "patch_embedding", ".bias", 1, m->dim, 0, 0);
    m->patch.rows = m->dim, m->patch.columns = m->channels * WAN_PATCH;
    m->text0 = wan_linear_open(m, "text_embedding.", "0", m->dim, -1);
    m->text2 = wan_linear_open(m, "text_embedding.", "2", m->dim, m->dim);
    m->text_dim = m->text0.columns;
    m->time0 = wan_linear_open(m, "time_embedding.", "0", m->dim, -1);
    m->time2 = wan_linear_open(m, "time_embedding.", "2", m->dim, m->dim);
    m->freq_dim = m->time0.columns;
    if (m->freq_dim % 2) tool_fail(TOOL_FAILURE, "%s: time_embedding.0.weight has an odd number of columns, %d", path, m->freq_dim);
    m->time_projection = wan_linear_open(m, "time_projection.", "1", 6 * (int64_t)m->dim, m->dim);
    m->head = wan_linear_open(m, "head.", "head", (int64_t)m->channels * WAN_PATCH, m->dim);
    m->head_modulation = wan_vector(m, "head.", "modulation", 3, 1, 2, m->dim);
    do {
        snprintf(prefix, sizeof prefix, "blocks.%d.self_attn.q.weight", m->layers);
    } while (tf_find(&m->file, prefix) && ++m->layers < 1000);
    if (!m->layers) tool_fail(TOOL_FAILURE, "%s: tensor 'blocks.0.self_attn.q.weight' is missing", path);
    for (i = 0; i < m->file.tensor_count; ++i) { /* a hole in the numbering would silently shorten the model */
        if (!strncmp(m->file.tensors[i].name, "blocks.", 7) && strtol(m->file.tensors[i].name + 7, NULL, 10) >= m->layers) {
            tool_fail(TOOL_FAILURE, "%s: tensor 'blocks.%d.self_attn.q.weight' is missing", path, m->layers);
        }
    }
    m->blocks = (wan_block *)tool_allocate((size_t)m->layers, sizeof *m->blocks);
    for (layer = 0; layer < m->layers; ++layer) {
        wan_block *b = &m->blocks[layer];
        snprintf(prefix, sizeof prefix, "blocks.%d.self_attn.", layer);
        b->self = wan_attention_open(m, prefix);
        snprintf(prefix, sizeof prefix, "blocks.%d.cross_attn.", layer);
        b->cross = wan_attention_open(m, prefix);
        snprintf(prefix, sizeof prefix, "blocks.%d.", layer);
        b->ffn0 = wan_linear_open(m, prefix, "ffn.0", layer ? m->ffn_dim : -1, m->dim);
        m->ffn_dim = b->ffn0.rows;
        b->ffn2 = wan_linear_open(m, prefix, "ffn.2", m->dim, m->ffn_dim);
        b->norm3_weight = wan_vector(m, prefix, "norm3.weight", 1, m->dim, 0, 0);
        b->norm3_bias = wan_vector(m, prefix, "norm3.bias", 1, m->dim, 0, 0);
        b->modulation = wan_vector(m, prefix, "modulation", 3, 1, 6, m->dim);
    }
    for (i = 0; i < m->file.tensor_count; ++i) {
        if ((size_t)m->file.tensors[i].count > largest) largest = (size_t)m->file.tensors[i].count;
    }
    m->scratch = floats(largest, 1);
}

static void wan_linear_close(wan_linear *l) { free(l->bias); }

static void wan_attention_close(wan_attention_weights *a)
{
    wan_linear_close(&a->q), wan_linear_close(&a->k), wan_linear_close(&a->v), wan_linear_close(&a->o);
    free(a->norm_q), free(a->norm_k);
}

static void wan_model_close(wan_model *m)
{
    int32_t layer;
    for (layer = 0; layer < m->layers; ++layer) {
        wan_block *b = &m->blocks[layer];
        wan_attention_close(&b->self), wan_attention_close(&b->cross);
        wan_linear_close(&b->ffn0), wan_linear_close(&b->ffn2);
        free(b->norm3_weight), free(b->norm3_bias), free(b->modulation);
    }
    wan_linear_close(&m->patch), wan_linear_close(&m->text0), wan_linear_close(&m->text2), wan_linear_close(&m->time0);
    wan_linear_close(&m->time2), wan_linear_close(&m->time_projection), wan_linear_close(&m->head);
    free(m->head_modulation), free(m->blocks), free(m->scratch);
    tf_close(&m->file);
}

/* ==== >>layers =========================================================================== */
/* y [n, rows] = x [n, columns] W^T + bias */
static void linear(const wan_model *m, const wan_linear *l, const float *x, float *y, int64_t n)
{
    const float  *weight = m->scratch;
    const int64_t count = (int64_t)l->rows * l->columns, piece = 65536;
    int64_t       i;
    if (l->weight->dtype == TF_F32 && (uintptr_t)l->weight->data % sizeof(float) == 0) weight = (const float *)l->weight->data;
    else {
#pragma omp parallel for
        for (i = 0; i < count; i += piece) tf_get_f32(l->weight, i, count - i < piece ? count - i : piece, m->scratch + i);
    }
#pragma omp parallel for
    for (i = 0; i < n; ++i) memcpy(y + i * l->rows, l->bias, (size_t)l->rows * sizeof *y);
#ifndef WAN_NO_BLAS
    for (i = 0; i < n; i += 1 << 20) { /* extents of cblas are ints */
        int some = n - i < 1 << 20 ? (int)(n - i) : 1 << 20;
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, some, l->rows, l->columns, 1.0f, x + i * l->columns, l->columns,
                    weight, l->columns, 1.0f, y + i * l->rows, l->rows);
    }
#else
#pragma omp parallel for schedule(dynamic)
    for (i = 0; i < (n + 15) / 16; ++i) { /* 16 tokens share what is read of W */
        int64_t begin = i * 16, end = begin + 16 < n ? begin + 16 : n, token;
        int32_t row, c;
        for (row = 0; row < l->rows; ++row) {
            const float *w = weight + (int64_t)row * l->columns;
            for (token = begin; token < end; ++token) {
                const float *in = x + token * l->columns;
                float        sum[16] = {0};
                for (c = 0; c + 16 <= l->columns; c += 16) {
                    int lane;
                    for (lane = 0; lane < 16; ++lane) sum[lane] += in[c + lane] * w[c + lane];
                }
                for (; c < l->columns; ++c) sum[0] += in[c] * w[c];
                for (c = 1; c < 16; ++c) sum[0] += sum[c];
                y[token * l->rows + row] += sum[0];
            }
        }
    }
#endif
}

/* y = LayerNorm(x) * (scale + offset) + shift, rows of dim floats; scale and shift are [dim] */
static void layer_norm(const float *x, float *y, int64_t n, int32_t dim, const float *scale, float offset, const float *shift)
{
    int64_t i;
#pragma omp parallel for
    for (i = 0; i < n; ++i) {
        const float *in = x + i * dim;
        float       *out = y + i * dim, inverse;
        double       mean = 0, variance = 0;
        int32_t      c;
        for (c = 0; c < dim; ++c) mean += in[c];
        mean /= dim;
        for (c = 0; c < dim; ++c) variance += (in[c] - mean) * (in[c] - mean);
        inverse = (float)(1 / sqrt(variance / dim + 1e-6));
        for (c = 0; c < dim; ++c) out[c] = (in[c] - (float)mean) * inverse * (scale[c] + offset) + shift[c];
    }
}

/* Over the full width, all heads together. */
static void rms_norm(float *x, int64_t n, int32_t dim, const float *weight)
{
    int64_t i;
#pragma omp parallel for
    for (i = 0; i < n; ++i) {
        float  *row = x + i * dim, inverse;
        double  sum = 0;
        int32_t c;
        for (c = 0; c < dim; ++c) sum += (double)row[c] * row[c];
        inverse = (float)(1 / sqrt(sum / dim + 1e-6));
        for (c = 0; c < dim; ++c) row[c] *= inverse * weight[c];
    }
}

/* x += y * gate; gate [dim], NULL = 1 */
static void add_gated(float *x, const float *y, int64_t n, int32_t dim, const float *gate)
{
    int64_t i;
#pragma omp parallel for
    for (i = 0; i < n; ++i) {
        int32_t c;
        for (c = 0; c < dim; ++c) x[i * dim + c] += y[i * dim + c] * (gate ? gate[c] : 1.0f);
    }
}

static void gelu_tanh(float *x, int64_t count)
{
    int64_t i;
#pragma omp parallel for
    for (i = 0; i < count; ++i) {
        float v = x[i];
        x[i] = 0.5f * v * (1 + tanhf(0.7978845608f * (v + 0.044715f * v * v * v)));
    }
}

static void silu(float *x, int64_t count)
{
    int64_t i;
    for (i = 0; i < count; ++i) x[i] /= 1 + expf(-x[i]);
}

/* What stays the same over a whole clip. Grid: patches of time, height and width; tokens in that order. */
typedef struct wan_grid {
    int32_t frames, height, width;
    int64_t tokens;
    float  *cosine, *sine; /* [tokens, head_dim / 2]: the pairs of a head go to time, height, width in turn */
} wan_grid;

static void wan_grid_open(wan_grid *g, const wan_model *m, int32_t frames, int32_t height, int32_t width)
{
    const int32_t half = m->head_dim / 2, axis = half / 3, first[4] = {0, half - 2 * axis, half - axis, half};
    int64_t       token;
    g->frames = frames, g->height = height, g->width = width;
    g->tokens = (int64_t)frames * height * width;
    g->cosine = floats((size_t)g->tokens, (size_t)half);
    g->sine = floats((size_t)g->tokens, (size_t)half);
#pragma omp parallel for
    for (token = 0; token < g->tokens; ++token) {
        const int64_t at[3] = {token / width / height, token / width % height, token % width};
        int           a;
        int32_t       c;
        for (a = 0; a < 3; ++a) {
            for (c = first[a]; c < first[a + 1]; ++c) {
                double angle = (double)at[a] * pow(10000.0, -(double)(c - first[a]) / (first[a + 1] - first[a]));
                g->cosine[token * half + c] = (float)cos(angle);
                g->sine[token * half + c] = (float)sin(angle);
            }
        }
    }
}

static void wan_grid_close(wan_grid *g) { free(g->cosine), free(g->sine); }

/* Turns the pairs (2i, 2i + 1) of every head. */
static void rope(float *x, const wan_grid *g, int32_t heads, int32_t head_dim)
{
    const int32_t half = head_dim / 2;
    int64_t       token;
#pragma omp parallel for
    for (token = 0; token < g->tokens; ++token) {
        const float *cosine = g->cosine + token * half, *sine = g->sine + token * half;
        int32_t      head, c;
        for (head = 0; head < heads; ++head) {
            float *pair = x + (token * heads + head) * head_dim;
            for (c = 0; c < half; ++c, pair += 2) {
                float a = pair[0], b = pair[1];
                pair[0] = a * cosine[c] - b * sine[c];
                pair[1] = a * sine[c] + b * cosine[c];
            }
        }
    }
}

/* ==== >>attention ========================================================================
   All that an engine needs to do: fill in a descriptor, keep one state per (layer, branch), call svg2_attend. The rest
   of this section measures it, and replaces stages for comparison. */
typedef enum wan_method { WAN_DENSE, WAN_SVG2, WAN_RASTER, WAN_TILES, WAN_ORACLE } wan_method;
#define WAN_METHODS "dense|svg2|raster|tiles|oracle"
enum { WAN_BRANCHES = 2 }; /* with the prompt, without */

typedef struct wan_step {
    double seconds[SVG2_STAGE_COUNT], attention_seconds;
    double density;  /* sum over sparse calls and heads    */
    int64_t heads;   /* how many                           */
    double pairs, pairs_total; /* of all calls             */
    double error, norm, recall, recall_min; /* with --check: sums of squares; sum and minimum over rows */
    int64_t rows;
} wan_step;

typedef struct wan_run {
    char         label[80], settings[256]; /* 64 characters of the label are the user's */
    wan_method   method;
    int          is_cold; /* forget the clusters at every step */
    svg2_desc    desc;    /* of layer 0 */
    svg2_backend cpu, backend; /* as it is; with the stages wrapped */
    svg2_state  *state;   /* [branches, layers] */
    char        *state_memory;
    size_t       state_bytes, work_bytes;
    void        *work;
    svg2_head_stats  *stats;         /* [heads] */
    svg2_permute_desc permuted[2];   /* the last two: for the oracle */
    const float      *q, *k, *v;     /* of the current call */
    const wan_grid   *grid;
    wan_step         *step, *steps;  /* the current one, all */
    double            total_seconds, psnr, ssim;
} wan_run;

/* The query, key, value and output of head h, token t start at t * dim + h * head_dim. */
static svg2_layout wan_layout(int32_t heads, int32_t head_dim)
{
    svg2_layout l = SVG2_ZERO;
    l.stride_token = (int64_t)heads * head_dim;
    l.stride_head = head_dim;
    return l;
}

static void wan_expect(svg2_result result, const svg2_error *err)
{
    if (result != SVG2_OK) tool_fail(TOOL_FAILURE, "svg2: %s %s", err->field, err->text);
}

/* Stages of the backend, timed: svg2.h invites to wrap them. */
#define WAN_TIMED(stage, name)                                                                                              \
    static svg2_result wan_timed_##name(const svg2_backend *backend, const svg2_##name##_desc *desc, void *work,            \
                                        svg2_error *err)                                                                    \
    {                                                                                                                       \
        wan_run    *run = (wan_run *)backend->user;                                                                         \
        double      start = now();                                                                                          \
        svg2_result result = run->cpu.name(&run->cpu, desc, work, err);                                                     \
        if (run->step) run->step->seconds[stage] += now() - start;                                                          \
        return result;                                                                                                      \
    }
WAN_TIMED(SVG2_STAGE_KMEANS, kmeans)
WAN_TIMED(SVG2_STAGE_PERMUTE, permute)
WAN_TIMED(SVG2_STAGE_SUMMARIZE, summarize)
WAN_TIMED(SVG2_STAGE_SCORE, score)
WAN_TIMED(SVG2_STAGE_SELECT, select)
WAN_TIMED(SVG2_STAGE_TAIL, tail)
WAN_TIMED(SVG2_STAGE_ATTENTION, attention)
#undef WAN_TIMED

/* Blocks of neighbouring tokens in place of clusters: runs in raster order, or boxes in time, height and width. */
static svg2_result wan_position_blocks(const svg2_backend *backend, const svg2_kmeans_desc *d, void *work, svg2_error *err)
{
    wan_run       *run = (wan_run *)backend->user;
    const wan_grid *g = run->grid;
    int32_t         box[3] = {1, 1, 1}, count[3], token, head, c, axis;
    const int32_t   extent[3] = {g->frames, g->height, g->width};
    if (d->clusters == 1) return run->cpu.kmeans(&run->cpu, d, work, err);
    while ((int64_t)((extent[0] + box[0] - 1) / box[0]) * ((extent[1] + box[1] - 1) / box[1]) * ((extent[2] + box[2] - 1) / box[2]) >
           d->clusters) { /* grow the side that has most boxes */
        for (axis = 0, c = 1; c < 3; ++c) {
            if ((extent[c] + box[c] - 1) / box[c] >= (extent[axis] + box[axis] - 1) / box[axis]) axis = c;
        }
        ++box[axis];
    }
    for (axis = 0; axis < 3; ++axis) count[axis] = (extent[axis] + box[axis] - 1) / box[axis];
    for (head = 0; head < d->heads; ++head) {
        const size_t at = (size_t)head * (size_t)d->clusters;
        float       *centroid = d->centroid + at * (size_t)d->head_dim, *mean = d->mean + (size_t)head * (size_t)d->head_dim;
        int32_t     *size = d->size + at, *label = d->label + (size_t)head * (size_t)d->tokens;
        memset(centroid, 0, (size_t)d->clusters * (size_t)d->head_dim * sizeof *centroid);
        memset(mean, 0, (size_t)d->head_dim * sizeof *mean);
        memset(size, 0, (size_t)d->clusters * sizeof *size);
        for (token = 0; token < d->tokens; ++token) {
            const float *x = (const float *)d->x + head * d->layout.stride_head + token * d->layout.stride_token;
            int32_t      j = (int32_t)((int64_t)token * d->clusters / d->tokens);
            if (run->method == WAN_TILES) {
                int32_t t = token / g->width / g->height / box[0], h = token / g->width % g->height / box[1], w = token % g->width / box[2];
                j = (t * count[1] + h) * count[2] + w;
            }
            label[token] = j;
            ++size[j];
            for (c = 0; c < d->head_dim; ++c) {
                centroid[(int64_t)j * d->head_dim + c] += x[c];
                mean[c] += x[c] / (float)d->tokens;
            }
        }
        for (token = 0; token < d->clusters; ++token) {
            for (c = 0; c < d->head_dim; ++c) {
                float *value = &centroid[(int64_t)token * d->head_dim + c];
                *value = size[token] ? *value / (float)size[token] : mean[c];
            }
        }
        if (d->store) {
            for (token = 0; token < d->clusters * d->head_dim; ++token) {
                ((float *)d->store)[at * (size_t)d->head_dim + (size_t)token] = centroid[token] - mean[token % d->head_dim];
            }
        }
    }
    return SVG2_OK;
}

/* The oracle knows the exact mass of every block, which takes dense attention to find out. */
static svg2_result wan_keep_order(const svg2_backend *backend, const svg2_permute_desc *d, void *work, svg2_error *err)
{
    wan_run *run = (wan_run *)backend->user;
    run->permuted[0] = run->permuted[1];
    run->permuted[1] = *d;
    return run->cpu.permute(&run->cpu, d, work, err);
}

static void wan_exact(wan_run *run, svg2_attention_desc *a, float *out, float *lse)
{
    svg2_error err;
    size_t     bytes;
    void      *work;
    memset(a, 0, sizeof *a);
    a->batch = 1, a->heads = a->heads_kv = run->desc.heads, a->head_dim = run->desc.head_dim;
    a->tokens = a->tokens_kv = run->desc.tokens;
    a->scale = 1.0f / sqrtf((float)a->head_dim);
    a->q = run->q, a->k = run->k, a->v = run->v;
    a->q_layout = a->k_layout = a->v_layout = a->out_layout = run->desc.q;
    a->out = out, a->lse = lse;
    bytes = svg2_stage_workspace_bytes(&run->cpu, SVG2_STAGE_ATTENTION, a);
    work = tool_allocate(bytes, 1);
    wan_expect(svg2_attention(&run->cpu, a, work, bytes, &err), &err);
    free(work);
}

static void wan_exact_mass(wan_run *run, const svg2_mass_desc *desc)
{
    svg2_error err;
    size_t     bytes = svg2_stage_workspace_bytes(&run->cpu, SVG2_STAGE_MASS, desc);
    void      *work = tool_allocate(bytes, 1);
    wan_expect(svg2_block_mass(&run->cpu, desc, work, bytes, &err), &err);
    free(work);
}

typedef struct wan_ranked {
    float   score;
    int32_t index;
} wan_ranked;

static int wan_by_score(const void *left, const void *right)
{
    const wan_ranked *a = (const wan_ranked *)left, *b = (const wan_ranked *)right;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static svg2_result wan_oracle_select(const svg2_backend *backend, const svg2_select_desc *d, void *work, svg2_error *err)
{
    wan_run       *run = (wan_run *)backend->user;
    const size_t   blocks = (size_t)d->query_clusters * (size_t)d->key_clusters;
    const int32_t  heads = d->heads, tokens = run->desc.tokens;
    svg2_mass_desc mass;
    float         *lse, *value, *out;
    wan_ranked    *ranked;
    int32_t        head, i;
    size_t         j;

    if (d->query_clusters == 1 && d->key_clusters == 1) return run->cpu.select(&run->cpu, d, work, err);
    lse = floats((size_t)heads, (size_t)tokens);
    value = floats((size_t)heads, blocks);
    out = floats((size_t)tokens * (size_t)heads, (size_t)d->head_dim);
    ranked = (wan_ranked *)tool_allocate(blocks, sizeof *ranked);
    memset(&mass, 0, sizeof mass);
    wan_exact(run, &mass.attention, out, lse);
    mass.attention.query_blocks = d->query_clusters, mass.attention.key_blocks = d->key_clusters;
    mass.attention.query_order = run->permuted[0].order, mass.attention.query_offset = d->query_offset;
    mass.attention.key_order = run->permuted[1].order, mass.attention.key_offset = d->key_offset;
    mass.mass = value;
    wan_exact_mass(run, &mass);
    for (head = 0; head < heads; ++head) {
        const int32_t *rows = d->query_offset + (size_t)head * (size_t)(d->query_clusters + 1);
        const int32_t *keys = d->key_offset + (size_t)head * (size_t)(d->key_clusters + 1);
        uint8_t       *map = d->map + (size_t)head * blocks;
        double         left = (double)d->density * tokens * tokens, area, used = 0;
        for (j = 0; j < blocks; ++j) {
            i = (int32_t)j;
            area = (double)(rows[i / d->key_clusters + 1] - rows[i / d->key_clusters]) *
                   (keys[i % d->key_clusters + 1] - keys[i % d->key_clusters]);
            ranked[i].score = area > 0 ? value[(size_t)head * blocks + (size_t)i] / (float)area : 0;
            ranked[i].index = i;
        }
        qsort(ranked, blocks, sizeof *ranked, wan_by_score);
        memset(map, 0, blocks);
        for (j = 0; j < blocks; ++j) {
            i = ranked[j].index;
            area = (double)(rows[i / d->key_clusters + 1] - rows[i / d->key_clusters]) *
                   (keys[i % d->key_clusters + 1] - keys[i % d->key_clusters]);
            if (used + area > left) break;
            used += area;
            map[i] = 1;
        }
        if (d->stats) {
            memset(&d->stats[head], 0, sizeof *d->stats);
            d->stats[head].pairs = (int64_t)used;
            d->stats[head].pairs_total = (int64_t)tokens * tokens;
            d->stats[head].density = (float)(used / tokens / tokens);
        }
    }
    free(lse), free(value), free(out), free(ranked);
    return SVG2_OK;
}

/* "svg2,tail=1,density=0.2" or "NAME:svg2,..."; what is not given keeps the default of svg2.h. */
static void wan_run_parse(wan_run *run, const char *text)
{
    static const char *const keys[] = {"tail", "route", "budget", "density", "top-p", "min-keep", "target-error", "dense-above",
                                       "query-clusters", "key-clusters", "init-iters", "step-iters", "dense-steps", "dense-layers",
                                       "cold", "init-on-dense"};
    const char *colon = strchr(text, ':'), *at = text;
    char        word[64];
    size_t      count;
    svg2_desc  *d = &run->desc;

    memset(run, 0, sizeof *run);
    if (colon) {
        at = colon + 1;
        if (colon - text > 63 || colon == text) tool_fail(TOOL_USAGE, "'%s': the name is empty or too long", text);
        memcpy(run->label, text, (size_t)(colon - text));
        if (strspn(run->label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+.%") != strlen(run->label) || run->label[0] == '.') {
            tool_fail(TOOL_USAGE, "'%s': a name is made of letters, digits and - _ + . %%, and does not begin with a dot", text);
        }
    }
    if (strlen(at) >= sizeof run->settings) tool_fail(TOOL_USAGE, "'%s' is too long", text);
    strcpy(run->settings, at);
    count = strcspn(at, ",");
    if (count >= sizeof word) count = sizeof word - 1;
    memcpy(word, at, count);
    word[count] = 0;
    run->method = (wan_method)tool_parse_choice(WAN_METHODS, word);
    if ((int)run->method < 0) tool_fail(TOOL_USAGE, "'%s' is not one of %s", word, WAN_METHODS);
    if (!colon) strcpy(run->label, word);
    for (at += strcspn(at, ","); *at == ',';) {
        const char *equals;
        char       *end;
        double      value;
        size_t      k;
        int         choice;
        count = strcspn(++at, ",");
        if (count >= sizeof word) tool_fail(TOOL_USAGE, "'%s': a setting is too long", text);
        memcpy(word, at, count);
        word[count] = 0;
        at += count;
        equals = strchr(word, '=');
        if (!equals) tool_fail(TOOL_USAGE, "'%s': '%s' is not key=value", text, word);
        for (k = 0; k < sizeof keys / sizeof *keys; ++k) {
            if (strlen(keys[k]) == (size_t)(equals - word) && !memcmp(keys[k], word, (size_t)(equals - word))) break;
        }
        value = strtod(++equals, &end);
        if (k == 1 || k == 2) {
            choice = tool_parse_choice(k == 1 ? "mass|spread" : "row|head", equals);
            if (choice < 0) tool_fail(TOOL_USAGE, "'%s': '%s' is not one of %s", text, equals, k == 1 ? "mass|spread" : "row|head");
            if (k == 1) d->route = choice ? SVG2_ROUTE_SPREAD : SVG2_ROUTE_MASS;
            else d->budget = choice ? SVG2_BUDGET_HEAD : SVG2_BUDGET_ROW;
            continue;
        }
        if (k < sizeof keys / sizeof *keys && (end == equals || *end || !isfinite(value) || value < -1 || value > 1e6)) {
            tool_fail(TOOL_USAGE, "'%s': '%s' is not a number in range", text, equals);
        }
        if ((k == 0 || k >= 8) && k < sizeof keys / sizeof *keys && value != floor(value)) {
            tool_fail(TOOL_USAGE, "'%s': '%s' is not a whole number", text, equals);
        }
        switch (k) {
        case 0:
            if (value < 0 || value > 2) tool_fail(TOOL_USAGE, "'%s': tail is 0 (dropped), 1 (means) or 2 (first order)", text);
            d->tail = value < 1 ? SVG2_TAIL_NONE : value < 2 ? SVG2_TAIL_ORDER0 : SVG2_TAIL_ORDER1;
            break;
        case 3: d->density = (float)value; break;
        case 4: d->top_p = (float)value; break;
        case 5: d->min_keep = value == 0 ? -1 : (float)value; break;
        case 6: d->target_error = (float)value; break;
        case 7: d->dense_above = (float)value; break;
        case 8: d->query_clusters = (int32_t)value; break;
        case 9: d->key_clusters = (int32_t)value; break;
        case 10: d->init_iterations = (int32_t)value; break;
        case 11: d->step_iterations = value == 0 ? -1 : (int32_t)value; break;
        case 12: d->dense_steps = (int32_t)value; break;
        case 13: d->dense_layers = (int32_t)value; break;
        case 14: run->is_cold = value > 0; break;
        case 15: d->init_on_dense = (int32_t)value; break;
        default: tool_fail(TOOL_USAGE, "'%s': unknown setting '%s'", text, word);
        }
    }
    if (run->method == WAN_DENSE) d->method = SVG2_METHOD_DENSE;
}

/* Memory for one clip: states of all layers and branches, and a workspace that they share. */
static void wan_run_open(wan_run *run, const wan_model *m, const wan_grid *g, int32_t threads)
{
    svg2_error    err;
    svg2_parallel parallel = SVG2_ZERO;
    int32_t       i;

#ifdef SVG2_OPENMP
    parallel = svg2_parallel_openmp(threads);
#else
    (void)threads;
#endif
    run->grid = g;
    if (g->tokens > INT32_MAX) tool_fail(TOOL_FAILURE, "%lld tokens are too many", (long long)g->tokens);
    run->desc.heads = m->heads;
    run->desc.head_dim = m->head_dim;
    run->desc.tokens = (int32_t)g->tokens;
    run->desc.frames = g->frames;
    run->desc.frame_tokens = g->height * g->width;
    run->desc.q = run->desc.k = run->desc.v = run->desc.out = wan_layout(m->heads, m->head_dim);
    if (svg2_resolve(&run->desc, &err) != SVG2_OK) tool_fail(TOOL_USAGE, "run '%s': %s %s", run->label, err.field, err.text);
    if (run->method == WAN_ORACLE && !(run->desc.density > 0)) tool_fail(TOOL_USAGE, "run '%s': the oracle needs a density", run->label);

    run->cpu = run->backend = svg2_cpu_backend(&parallel);
    run->backend.user = run;
    run->backend.kmeans = run->method == WAN_RASTER || run->method == WAN_TILES ? wan_position_blocks : wan_timed_kmeans;
    run->backend.permute = run->method == WAN_ORACLE ? wan_keep_order : wan_timed_permute;
    run->backend.summarize = wan_timed_summarize;
    run->backend.score = wan_timed_score;
    run->backend.select = run->method == WAN_ORACLE ? wan_oracle_select : wan_timed_select;
    run->backend.tail = wan_timed_tail;
    run->backend.attention = wan_timed_attention;

    run->state_bytes = (svg2_state_bytes(&run->desc) + SVG2_ALIGN - 1) / SVG2_ALIGN * SVG2_ALIGN;
    run->work_bytes = svg2_workspace_bytes(&run->backend, &run->desc);
    run->work = tool_allocate(run->work_bytes, 1);
    run->stats = (svg2_head_stats *)tool_allocate((size_t)m->heads, sizeof *run->stats);
    run->state = (svg2_state *)tool_allocate((size_t)(WAN_BRANCHES * m->layers), sizeof *run->state);
    run->state_memory = (char *)tool_allocate((size_t)(WAN_BRANCHES * m->layers), run->state_bytes ? run->state_bytes : 1);
    for (i = 0; i < WAN_BRANCHES * m->layers; ++i) {
        wan_expect(svg2_state_init(&run->state[i], &run->desc, run->state_memory + (size_t)i * run->state_bytes, run->state_bytes, &err), &err);
    }
}

static void wan_run_close(wan_run *run)
{
    free(run->work), free(run->stats), free(run->state), free(run->state_memory);
    run->work = run->stats = NULL, run->state = NULL, run->state_memory = NULL;
}

static void wan_check(wan_run *run, const svg2_desc *desc, int32_t step, const float *out);

/* Self-attention of one layer: q, k, v, out [tokens, heads, head_dim]. */
static void self_attention(wan_run *run, int32_t layer, int32_t layers, int branch, int32_t step, const float *q, const float *k,
                           const float *v, float *out, int is_check)
{
    svg2_state *state = &run->state[branch * layers + layer];
    svg2_desc   desc = run->desc;
    svg2_error  err;
    double      start = now();
    int32_t     head;

    desc.layer = layer;
    run->q = q, run->k = k, run->v = v;
    if (run->is_cold) svg2_state_reset(state);
    wan_expect(svg2_attend(&run->backend, &desc, state, step, q, k, v, out, NULL, run->stats, run->work, run->work_bytes, &err), &err);
    run->step->attention_seconds += now() - start;
    for (head = 0; head < desc.heads; ++head) {
        run->step->pairs += (double)run->stats[head].pairs;
        run->step->pairs_total += (double)run->stats[head].pairs_total;
        if (svg2_schedule(&desc, step) != SVG2_ACTION_SPARSE) continue;
        run->step->density += (double)run->stats[head].density;
        ++run->step->heads;
    }
    if (is_check && svg2_schedule(&desc, step) == SVG2_ACTION_SPARSE) wan_check(run, &desc, step, out);
}

/* Cross-attention to the text is short and stays dense: the same call, with one block on each side. */
static void cross_attention(wan_run *run, const float *q, const float *k, const float *v, float *out, int32_t text_tokens)
{
    static const svg2_attention_desc zero = SVG2_ZERO;
    svg2_attention_desc              a = zero;
    svg2_error                       err;
    size_t                           bytes;
    void                            *work;
    a.batch = 1, a.heads = a.heads_kv = run->desc.heads, a.head_dim = run->desc.head_dim;
    a.tokens = run->desc.tokens, a.tokens_kv = text_tokens;
    a.scale = 1.0f / sqrtf((float)a.head_dim);
    a.q = q, a.k = k, a.v = v, a.out = out;
    a.q_layout = a.k_layout = a.v_layout = a.out_layout = run->desc.q;
    bytes = svg2_stage_workspace_bytes(&run->cpu, SVG2_STAGE_ATTENTION, &a);
    work = tool_allocate(bytes, 1);
    wan_expect(svg2_attention(&run->cpu, &a, work, bytes, &err), &err);
    free(work);
}

/* ==== >>forward ========================================================================== */
typedef struct wan_work {
    float *x, *y, *q, *k, *v, *o;  /* [tokens, dim]: the stream, the normed stream, attention */
    float *patches;                /* [tokens, channels * 4] */
    float *hidden;                 /* [chunk, ffn_dim]       */
    float *text_k, *text_v;        /* [text_len, dim]        */
    float *time, *projected;       /* [dim], [6, dim]        */
    int64_t chunk;
} wan_work;

static void wan_work_open(wan_work *w, const wan_model *m, const wan_grid *g)
{
    const size_t tokens = (size_t)g->tokens, dim = (size_t)m->dim;
    w->chunk = g->tokens < 2048 ? g->tokens : 2048;
    w->x = floats(tokens, dim), w->y = floats(tokens, dim), w->o = floats(tokens, dim);
    w->q = floats(tokens, dim), w->k = floats(tokens, dim), w->v = floats(tokens, dim);
    w->patches = floats(tokens, (size_t)m->channels * WAN_PATCH);
    w->hidden = floats((size_t)w->chunk, (size_t)m->ffn_dim);
    w->text_k = floats((size_t)m->text_len, dim), w->text_v = floats((size_t)m->text_len, dim);
    w->time = floats((size_t)m->freq_dim + 2 * dim, 1), w->projected = floats(6, dim);
}

static void wan_work_close(wan_work *w)
{
    free(w->x), free(w->y), free(w->q), free(w->k), free(w->v), free(w->o), free(w->patches), free(w->hidden);
    free(w->text_k), free(w->text_v), free(w->time), free(w->projected);
}

/* Latent [channels, frames, 2 height, 2 width] to patches [tokens, channels, 2, 2] and, with another order of the
   elements of a patch, [tokens, 2, 2, channels] back. */
static void patchify(const wan_model *m, const wan_grid *g, const float *latent, float *patches)
{
    const int64_t plane = 4 * (int64_t)g->height * g->width;
    int64_t       token;
#pragma omp parallel for
    for (token = 0; token < g->tokens; ++token) {
        const int64_t t = token / g->width / g->height, h = token / g->width % g->height, w = token % g->width;
        float        *patch = patches + token * m->channels * WAN_PATCH;
        int32_t       c;
        for (c = 0; c < m->channels; ++c, patch += WAN_PATCH) {
            const float *in = latent + ((int64_t)c * g->frames + t) * plane + 4 * h * g->width + 2 * w;
            patch[0] = in[0], patch[1] = in[1], patch[2] = in[2 * g->width], patch[3] = in[2 * g->width + 1];
        }
    }
}

static void unpatchify(const wan_model *m, const wan_grid *g, const float *patches, float *latent)
{
    const int64_t plane = 4 * (int64_t)g->height * g->width;
    int64_t       token;
#pragma omp parallel for
    for (token = 0; token < g->tokens; ++token) {
        const int64_t t = token / g->width / g->height, h = token / g->width % g->height, w = token % g->width;
        const float  *patch = patches + token * m->channels * WAN_PATCH;
        int32_t       c;
        for (c = 0; c < m->channels; ++c, ++patch) {
            float *out = latent + ((int64_t)c * g->frames + t) * plane + 4 * h * g->width + 2 * w;
            out[0] = patch[0], out[1] = patch[m->channels];
            out[2 * g->width] = patch[2 * m->channels], out[2 * g->width + 1] = patch[3 * m->channels];
        }
    }
}

/* time [dim] = the embedding of a timestep in 0 .. 1000; projected [6, dim] */
static void embed_time(const wan_model *m, wan_work *w, double timestep)
{
    const int32_t half = m->freq_dim / 2;
    float        *wave = w->time + 2 * m->dim, *hidden = w->time + m->dim;
    int32_t       i;
    for (i = 0; i < half; ++i) {
        double angle = timestep * pow(10000.0, -(double)i / half);
        wave[i] = (float)cos(angle);
        wave[half + i] = (float)sin(angle);
    }
    linear(m, &m->time0, wave, hidden, 1);
    silu(hidden, m->dim);
    linear(m, &m->time2, hidden, w->time, 1);
    memcpy(hidden, w->time, (size_t)m->dim * sizeof *hidden);
    silu(hidden, m->dim);
    linear(m, &m->time_projection, hidden, w->projected, 1);
}

/* context [text_len, dim] of a text embedding [text_len, text_dim] */
static float *embed_text(const wan_model *m, const float *text)
{
    float *hidden = floats((size_t)m->text_len, (size_t)m->dim), *context = floats((size_t)m->text_len, (size_t)m->dim);
    linear(m, &m->text0, text, hidden, m->text_len);
    gelu_tanh(hidden, (int64_t)m->text_len * m->dim);
    linear(m, &m->text2, hidden, context, m->text_len);
    free(hidden);
    return context;
}

/* Called with q, k, v of every self-attention, after norm and RoPE; and after each block, with the stream. */
typedef struct wan_hooks {
    void *user;
    void (*on_qkv)(void *user, int32_t layer, const float *q, const float *k, const float *v);
    void (*on_block)(void *user, int32_t layer, const float *x); /* layer -1: after the patch embedding */
} wan_hooks;

/* velocity [channels, frames, height, width] = noise minus clean latent, as the network sees it */
static void wan_forward(const wan_model *m, const wan_grid *g, wan_work *w, wan_run *run, int branch, int32_t step, const float *latent,
                        double timestep, const float *context, float *velocity, int is_check, const wan_hooks *hooks)
{
    const int64_t n = g->tokens;
    const int32_t dim = m->dim;
    float        *e = floats(6, (size_t)dim);
    int32_t       layer, c;
    int64_t       begin;

    patchify(m, g, latent, w->patches);
    linear(m, &m->patch, w->patches, w->x, n);
    embed_time(m, w, timestep);
    if (hooks && hooks->on_block) hooks->on_block(hooks->user, -1, w->x);
    for (layer = 0; layer < m->layers; ++layer) {
        const wan_block *b = &m->blocks[layer];
        for (c = 0; c < 6 * dim; ++c) e[c] = b->modulation[c] + w->projected[c]; /* shift, scale, gate; twice */

        layer_norm(w->x, w->y, n, dim, e + dim, 1, e);
        linear(m, &b->self.q, w->y, w->q, n);
        linear(m, &b->self.k, w->y, w->k, n);
        linear(m, &b->self.v, w->y, w->v, n);
        rms_norm(w->q, n, dim, b->self.norm_q);
        rms_norm(w->k, n, dim, b->self.norm_k);
        rope(w->q, g, m->heads, m->head_dim);
        rope(w->k, g, m->heads, m->head_dim);
        if (hooks && hooks->on_qkv) hooks->on_qkv(hooks->user, layer, w->q, w->k, w->v);
        self_attention(run, layer, m->layers, branch, step, w->q, w->k, w->v, w->o, is_check);
        linear(m, &b->self.o, w->o, w->y, n);
        add_gated(w->x, w->y, n, dim, e + 2 * dim);

        layer_norm(w->x, w->y, n, dim, b->norm3_weight, 0, b->norm3_bias);
        linear(m, &b->cross.q, w->y, w->q, n);
        linear(m, &b->cross.k, context, w->text_k, m->text_len);
        linear(m, &b->cross.v, context, w->text_v, m->text_len);
        rms_norm(w->q, n, dim, b->cross.norm_q);
        rms_norm(w->text_k, m->text_len, dim, b->cross.norm_k);
        cross_attention(run, w->q, w->text_k, w->text_v, w->o, m->text_len);
        linear(m, &b->cross.o, w->o, w->y, n);
        add_gated(w->x, w->y, n, dim, NULL);

        layer_norm(w->x, w->y, n, dim, e + 4 * dim, 1, e + 3 * dim);
        for (begin = 0; begin < n; begin += w->chunk) {
            int64_t some = n - begin < w->chunk ? n - begin : w->chunk;
            linear(m, &b->ffn0, w->y + begin * dim, w->hidden, some);
            gelu_tanh(w->hidden, some * m->ffn_dim);
            linear(m, &b->ffn2, w->hidden, w->o + begin * dim, some);
        }
        add_gated(w->x, w->o, n, dim, e + 5 * dim);
        if (hooks && hooks->on_block) hooks->on_block(hooks->user, layer, w->x);
    }
    for (c = 0; c < 2 * dim; ++c) e[c] = m->head_modulation[c] + w->time[c % dim];
    layer_norm(w->x, w->y, n, dim, e + dim, 1, e);
    linear(m, &m->head, w->y, w->patches, n);
    unpatchify(m, g, w->patches, velocity);
    free(e);
}

/* ==== >>check ============================================================================ */
/* Beside a sparse call: its error against dense attention, and how much of each row's attention its map holds. */
static void wan_check(wan_run *run, const svg2_desc *desc, int32_t step, const float *out)
{
    const size_t   rows = (size_t)desc->heads * (size_t)desc->tokens, count = rows * (size_t)desc->head_dim;
    float         *exact = floats(count, 1), *lse = floats(rows, 1), *recall = floats(rows, 1);
    svg2_plan      plan = svg2_plan_view(&run->backend, desc, step, run->work);
    svg2_mass_desc mass;
    wan_step      *s = run->step;
    size_t         i;

    memset(&mass, 0, sizeof mass);
    wan_exact(run, &mass.attention, exact, lse);
    mass.attention.query_blocks = plan.query_blocks, mass.attention.key_blocks = plan.key_blocks;
    mass.attention.query_order = plan.query_order, mass.attention.query_offset = plan.query_offset;
    mass.attention.key_order = plan.key_order, mass.attention.key_offset = plan.key_offset;
    mass.attention.map = plan.map;
    mass.recall = recall;
    wan_exact_mass(run, &mass);
    for (i = 0; i < count; ++i) {
        double difference = (double)out[i] - (double)exact[i];
        s->error += difference * difference;
        s->norm += (double)exact[i] * (double)exact[i];
    }
    for (i = 0; i < rows; ++i) {
        s->recall += (double)recall[i];
        if (s->rows == 0 || (double)recall[i] < s->recall_min) s->recall_min = (double)recall[i];
        ++s->rows;
    }
    free(exact), free(lse), free(recall);
}

/* ==== >>sampler ==========================================================================
   Flow matching: x = (1 - sigma) clean + sigma noise, the network estimates dx / dsigma = noise - clean, and Euler's method
   goes from sigma 1 to 0. The shift spends more of the steps on high noise, where the layout is decided. */
static double wan_sigma(const wan_options *o, int32_t step)
{
    double even = 1 - (double)step / o->steps;
    return o->shift * even / (1 + (o->shift - 1) * even);
}

/* Counter-based: the noise of a position does not depend on anything else. */
static double wan_uniform(uint64_t seed, uint64_t counter)
{
    uint64_t z = seed * 0xd1342543de82ef95u + counter * 0x9e3779b97f4a7c15u + 0x2545f4914f6cdd1du;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return ((double)((z ^ (z >> 31)) >> 11) + 0.5) / 9007199254740992.0;
}

static void wan_noise(float *x, size_t count, uint64_t seed)
{
    size_t i;
    for (i = 0; i < count; ++i) {
        double radius = sqrt(-2 * log(wan_uniform(seed, 2 * i))), angle = 6.283185307179586 * wan_uniform(seed, 2 * i + 1);
        x[i] = (float)(radius * cos(angle));
    }
}

/* Everything that the runs share. */
typedef struct wan_job {
    wan_options o;
    wan_model   model, late; /* late: from o.boundary on, if there is one */
    wan_grid    grid;
    wan_work    work;
    int         has_late;
    float      *text, *negative;      /* [text_len, text_dim]                 */
    float      *noise;                /* [channels, frames, height, width]    */
    size_t      count;                /* its elements                         */
    wan_run     runs[WAN_MAX_RUNS];
    int32_t     run_count;
    float      *latents[WAN_MAX_RUNS];
    clip        clips[WAN_MAX_RUNS];
    FILE       *clip_files[WAN_MAX_RUNS], *latent_files[WAN_MAX_RUNS], *sheet, *gif, *report, *csv;
    struct {
        FILE   *file;
        int32_t layer, step;
    } dumps[WAN_MAX_LISTED * WAN_MAX_LISTED];
    int32_t dump_count, dump_step; /* dump_step: of the forward pass that runs, or -1 */
} wan_job;

static void wan_dump(void *user, int32_t layer, const float *q, const float *k, const float *v);

static void wan_progress(const wan_run *run, const wan_options *o, int32_t step, double seconds)
{
    if (!isatty(2)) return;
    fprintf(stderr, "\r\033[K%s: step %d of %d, %.1f s", run->settings, step, o->steps, seconds);
    tool_has_progress_line = 1;
}

/* latent [channels, frames, height, width] */
static void wan_generate(wan_job *job, wan_run *run, float *latent)
{
    const wan_options *o = &job->o;
    const int          branches = o->guidance == 1.0 ? 1 : 2;
    float             *velocity[WAN_BRANCHES] = {NULL, NULL}, *context[WAN_BRANCHES] = {NULL, NULL};
    const wan_model   *m = NULL;
    wan_hooks          hooks = {NULL, wan_dump, NULL};
    double             start = now();
    int32_t            step, branch, i;
    size_t             at;

    hooks.user = job;
    wan_run_open(run, &job->model, &job->grid, o->threads);
    run->steps = (wan_step *)tool_allocate((size_t)o->steps, sizeof *run->steps);
    memset(run->steps, 0, (size_t)o->steps * sizeof *run->steps);
    for (branch = 0; branch < branches; ++branch) velocity[branch] = floats(job->count, 1);
    memcpy(latent, job->noise, job->count * sizeof *latent);

    for (step = 0; step < o->steps; ++step) {
        const double     sigma = wan_sigma(o, step), next = wan_sigma(o, step + 1);
        const wan_model *wanted = job->has_late && sigma < o->boundary ? &job->late : &job->model;
        const float      guidance = (float)o->guidance, length = (float)(next - sigma);
        if (wanted != m) { /* another network: nothing of the old one's text and clusters is of use */
            m = wanted;
            for (branch = 0; branch < branches; ++branch) {
                free(context[branch]);
                context[branch] = embed_text(m, branch ? job->negative : job->text);
            }
            for (i = 0; i < WAN_BRANCHES * m->layers; ++i) svg2_state_reset(&run->state[i]);
        }
        run->step = &run->steps[step];
        for (branch = 0; branch < branches; ++branch) {
            job->dump_step = run == job->runs && branch == 0 ? step : -1;
            wan_forward(m, &job->grid, &job->work, run, branch, step, latent, 1000 * sigma, context[branch], velocity[branch],
                        o->is_check, job->dump_count ? &hooks : NULL);
        }
        for (at = 0; at < job->count; ++at) {
            float v = velocity[0][at];
            if (branches == 2) v = velocity[1][at] + guidance * (v - velocity[1][at]);
            latent[at] += length * v;
        }
        wan_progress(run, o, step + 1, now() - start);
    }
    run->step = NULL;
    run->total_seconds = now() - start;
    tool_clear_progress();
    for (branch = 0; branch < branches; ++branch) free(velocity[branch]), free(context[branch]);
    wan_run_close(run);
}

/* ==== >>prompt =========================================================================== */
/* A tensor of floats from a file, with its shape; exits where it is not there. */
static float *wan_read(const char *where, int *rank, int64_t shape[TF_MAX_RANK])
{
    char             message[TF_MESSAGE_COUNT];
    const char      *name;
    char            *path = tf_split(where, &name);
    tf_file          file;
    const tf_tensor *t;
    float           *values;
    if (!path) tool_fail(TOOL_FAILURE, "out of memory");
    if (tf_open(&file, path, message, sizeof message) != TF_OK) tool_fail(TOOL_FAILURE, "%s", message);
    t = tf_find(&file, name);
    if (!t) tool_fail(TOOL_FAILURE, "%s: no such tensor, or several and none named (FILE:name)", where);
    values = floats((size_t)t->count, 1);
    if (!tf_get_f32(t, 0, t->count, values)) tool_fail(TOOL_FAILURE, "%s: dtype %s cannot be used here", where, tf_dtype_name(t->dtype));
    *rank = t->rank;
    memcpy(shape, t->shape, sizeof t->shape);
    tf_close(&file);
    free(path);
    return values;
}

/* [L, text_dim] or [1, L, text_dim], filled up with zeros to text_len as Wan does */
static float *wan_read_text(const wan_model *m, const char *where)
{
    int      rank;
    int64_t  shape[TF_MAX_RANK];
    float   *values = wan_read(where, &rank, shape), *text = floats((size_t)m->text_len, (size_t)m->text_dim);
    int64_t *last = shape + rank - 2;
    if (rank < 2 || rank > 3 || (rank == 3 && shape[0] != 1) || last[1] != m->text_dim || last[0] > m->text_len || last[0] < 1) {
        tool_fail(TOOL_FAILURE, "%s: a text embedding has shape [L, %d] with L from 1 to %d", where, m->text_dim, m->text_len);
    }
    memset(text, 0, (size_t)m->text_len * (size_t)m->text_dim * sizeof *text);
    memcpy(text, values, (size_t)(last[0] * last[1]) * sizeof *text);
    free(values);
    return text;
}

/* The model's own words, one-hot, and which of the parts between semicolons they stand in. */
static float *wan_embed_prompt(const wan_model *m, const char *prompt)
{
    float      *text = floats((size_t)m->text_len, (size_t)m->text_dim);
    const char *at = prompt;
    int32_t     part = 0, token = 0, words = 0;
    const char *w;

    for (w = m->words; *w; w += strspn(w, " ")) w += strcspn(w, " "), ++words;
    if (words + m->parts != m->text_dim) {
        tool_fail(TOOL_FAILURE, "%s: metadata lists %d words and %d parts, but text_embedding.0.weight has %d columns", m->path, words,
                  m->parts, m->text_dim);
    }
    memset(text, 0, (size_t)m->text_len * (size_t)m->text_dim * sizeof *text);
    for (;;) {
        size_t  count;
        int32_t index = 0;
        at += strspn(at, " \t\n,");
        if (!*at) break;
        if (*at == ';') {
            if (++part == m->parts) tool_fail(TOOL_USAGE, "--prompt: more than %d parts between semicolons", m->parts);
            ++at;
            continue;
        }
        count = strcspn(at, " \t\n,;");
        for (w = m->words; *w; w += strspn(w, " "), ++index) {
            size_t length = strcspn(w, " ");
            if (length == count && !memcmp(w, at, count)) break;
            w += length;
        }
        if (!*w) tool_fail(TOOL_USAGE, "--prompt: unknown word '%.*s'; the model knows: %s", (int)(count < 40 ? count : 40), at, m->words);
        if (token == m->text_len) tool_fail(TOOL_USAGE, "--prompt: more than %d words", m->text_len);
        text[(int64_t)token * m->text_dim + index] = 1;
        text[(int64_t)token * m->text_dim + words + part] = 1;
        ++token;
        at += count;
    }
    return text;
}

/* ==== >>results ========================================================================== */
/* Latents that are pixels, folded fold x fold into channels. */
static clip wan_clip(const wan_job *job, const float *latent)
{
    const wan_model *m = &job->model;
    const int64_t    fold = m->pixel_fold, height = 2 * (int64_t)job->grid.height, width = 2 * (int64_t)job->grid.width;
    clip             c;
    int64_t          frame, y, x, channel;
    c.frames = job->grid.frames, c.height = (int32_t)(height * fold), c.width = (int32_t)(width * fold);
    c.rgb = floats(job->count, 1);
    for (channel = 0; channel < m->channels; ++channel) {
        const int64_t color = channel / (fold * fold), dy = channel / fold % fold, dx = channel % fold;
        for (frame = 0; frame < c.frames; ++frame) {
            for (y = 0; y < height; ++y) {
                for (x = 0; x < width; ++x) {
                    float value = latent[((channel * c.frames + frame) * height + y) * width + x] * 0.5f + 0.5f;
                    c.rgb[((frame * c.height + y * fold + dy) * c.width + x * fold + dx) * 3 + color] = value < 0 ? 0 : value > 1 ? 1 : value;
                }
            }
        }
    }
    return c;
}

static void wan_dump(void *user, int32_t layer, const float *q, const float *k, const float *v)
{
    static const svg2_dtype to[3] = {SVG2_F32, SVG2_F16, SVG2_BF16};
    static const tf_dtype   as[3] = {TF_F32, TF_F16, TF_BF16};
    wan_job      *job = (wan_job *)user;
    const int32_t heads = job->model.heads, dim = job->model.head_dim;
    const size_t  tokens = (size_t)job->grid.tokens, count = tokens * (size_t)heads * (size_t)dim;
    const float  *x[3] = {q, k, v};
    int32_t       i, head;
    int           side;
    for (i = 0; i < job->dump_count; ++i) {
        char      names[3][2] = {"q", "k", "v"};
        tf_tensor tensors[3];
        float    *values;
        if (job->dumps[i].layer != layer || job->dumps[i].step != job->dump_step) continue;
        memset(tensors, 0, sizeof tensors);
        for (side = 0; side < 3; ++side) {
            tensors[side].name = names[side];
            tensors[side].dtype = as[job->o.dump_dtype];
            tensors[side].rank = 3;
            tensors[side].shape[0] = heads, tensors[side].shape[1] = (int64_t)tokens, tensors[side].shape[2] = dim;
        }
        if (tf_write_safetensors_header(job->dumps[i].file, tensors, 3) != TF_OK) tool_fail(TOOL_FAILURE, "%s: %s", job->o.dump, strerror(errno));
        values = floats(count, 1);
        for (side = 0; side < 3; ++side) {
            for (head = 0; head < heads; ++head) {
                size_t token;
                for (token = 0; token < tokens; ++token) {
                    memcpy(values + ((size_t)head * tokens + token) * (size_t)dim, x[side] + (token * (size_t)heads + (size_t)head) * (size_t)dim,
                           (size_t)dim * sizeof *values);
                }
            }
            if (job->o.dump_dtype) {
                uint16_t *half = (uint16_t *)tool_allocate(count, sizeof *half);
                svg2_convert(half, to[job->o.dump_dtype], values, SVG2_F32, count);
                tool_write(job->dumps[i].file, half, count * sizeof *half, job->o.dump);
                free(half);
            } else tool_write(job->dumps[i].file, values, count * sizeof *values, job->o.dump);
        }
        free(values);
    }
}

/* Sums over the steps of a run. */
typedef struct wan_totals {
    double  attention_seconds, kmeans_seconds, density, all_pairs, error, recall, recall_min;
    double  kmeans_first, kmeans_later; /* seconds of the first step that clusters; mean of the others */
    int     is_checked;
} wan_totals;

static wan_totals wan_total(const wan_run *run, int32_t steps)
{
    wan_totals t;
    double     density = 0, heads = 0, pairs = 0, pairs_total = 0, error = 0, norm = 0, recall = 0, rows = 0;
    int32_t    i, later = 0;
    memset(&t, 0, sizeof t);
    t.recall_min = 1;
    for (i = 0; i < steps; ++i) {
        const wan_step *s = &run->steps[i];
        const double    kmeans = s->seconds[SVG2_STAGE_KMEANS];
        t.attention_seconds += s->attention_seconds;
        t.kmeans_seconds += kmeans;
        if (s->heads && t.kmeans_first == 0) t.kmeans_first = kmeans;
        else if (s->heads) t.kmeans_later += kmeans, ++later;
        density += s->density, heads += (double)s->heads;
        pairs += s->pairs, pairs_total += s->pairs_total;
        error += s->error, norm += s->norm, recall += s->recall, rows += (double)s->rows;
        if (s->rows && s->recall_min < t.recall_min) t.recall_min = s->recall_min;
    }
    if (later) t.kmeans_later /= later;
    t.density = heads > 0 ? density / heads : 1;
    t.all_pairs = pairs_total > 0 ? pairs / pairs_total : 1;
    t.is_checked = rows > 0;
    t.error = norm > 0 ? sqrt(error / norm) : 0;
    t.recall = rows > 0 ? recall / rows : 1;
    return t;
}

static void wan_print_table(const wan_job *job)
{
    wan_totals first = wan_total(&job->runs[0], job->o.steps);
    int32_t    i;
    printf("%-34s%8s%8s%9s%8s%11s%8s%9s%8s\n", "", "density", "all", "PSNR", "SSIM", "attention", "faster", "total", "faster");
    for (i = 0; i < job->run_count; ++i) {
        const wan_run *run = &job->runs[i];
        wan_totals     t = wan_total(run, job->o.steps);
        char           psnr[16] = "-", ssim[16] = "-";
        if (i && isfinite(run->psnr)) snprintf(psnr, sizeof psnr, "%.2f dB", run->psnr);
        else if (i) strcpy(psnr, "equal");
        if (i && run->ssim >= -1) snprintf(ssim, sizeof ssim, "%.4f", run->ssim);
        printf("%-34s%6.1f %%%6.1f %%%9s%8s%9.2f s%7.2fx%7.2f s%7.2fx\n", run->settings, 100 * t.density, 100 * t.all_pairs, psnr, ssim,
               t.attention_seconds, first.attention_seconds / t.attention_seconds, run->total_seconds,
               job->runs[0].total_seconds / run->total_seconds);
        if (t.is_checked) printf("%-34serror of attention %.4f, recall %.4f, worst row %.4f\n", "", t.error, t.recall, t.recall_min);
    }
    printf("\ndensity: of the calls that are sparse; all: of all pairs of all steps and layers; PSNR, SSIM: of the clip, against the first line\n");
}

static void wan_print_number(FILE *f, const char *key, double value, int digits)
{
    if (isfinite(value)) fprintf(f, "\"%s\": %.*g", key, digits, value);
    else fprintf(f, "\"%s\": null", key);
}

static void wan_print_string(FILE *f, const char *key, const char *text)
{
    fprintf(f, "\"%s\": \"", key);
    for (; *text; ++text) {
        if (*text == '"' || *text == '\\') fputc('\\', f);
        if ((unsigned char)*text < 32) fprintf(f, "\\u%04x", (unsigned)*text);
        else fputc(*text, f);
    }
    fputc('"', f);
}

static const char *wan_tail_name(svg2_tail_kind tail) { return tail == SVG2_TAIL_NONE ? "0" : tail == SVG2_TAIL_ORDER0 ? "1" : "2"; }

static const char *wan_method_name(wan_method method)
{
    static const char *const names[] = {"dense", "svg2", "raster", "tiles", "oracle"};
    return names[method];
}

/* A list with one entry per run, the reference first. Numbers that make no sense for it are null. */
static void wan_write_report(const wan_job *job)
{
    static const char *const stages[] = {"kmeans", "permute", "summarize", "score", "select", "tail", "attention"};
    const wan_options       *o = &job->o;
    FILE                    *f = job->report;
    int32_t                  i, step;
    size_t                   k;
    fprintf(f, "[\n");
    for (i = 0; i < job->run_count; ++i) {
        const wan_run *run = &job->runs[i];
        wan_totals     t = wan_total(run, o->steps);
        fprintf(f, "  {");
        wan_print_string(f, "name", run->label), fputs(", ", f);
        wan_print_string(f, "method", wan_method_name(run->method)), fputs(", ", f);
        wan_print_string(f, "settings", run->settings), fputs(",\n   ", f);
        wan_print_number(f, "density", t.density, 6), fputs(", ", f);
        wan_print_number(f, "density_all", t.all_pairs, 6), fputs(", ", f);
        wan_print_number(f, "psnr", i ? run->psnr : INFINITY, 6), fputs(", ", f);
        wan_print_number(f, "ssim", i && run->ssim >= -1 ? run->ssim : INFINITY, 6), fputs(",\n   ", f);
        wan_print_number(f, "attention_seconds", t.attention_seconds, 5), fputs(", ", f);
        wan_print_number(f, "total_seconds", run->total_seconds, 5), fputs(", ", f);
        wan_print_number(f, "kmeans_seconds", t.kmeans_seconds, 5), fputs(", ", f);
        wan_print_number(f, "kmeans_first_step_seconds", t.kmeans_first, 5), fputs(", ", f);
        wan_print_number(f, "kmeans_later_step_seconds", t.kmeans_later, 5), fputs(",\n   ", f);
        wan_print_number(f, "attention_error", t.is_checked ? t.error : INFINITY, 6), fputs(", ", f);
        wan_print_number(f, "recall", t.is_checked ? t.recall : INFINITY, 6), fputs(", ", f);
        wan_print_number(f, "recall_worst_row", t.is_checked ? t.recall_min : INFINITY, 6), fputs(",\n   ", f);
        fprintf(f, "\"tokens\": %lld, \"steps\": %d, \"frames\": %d, \"height\": %d, \"width\": %d, ", (long long)job->grid.tokens, o->steps,
                o->frames, o->height, o->width);
        fprintf(f, "\"seed\": %llu, \"guidance\": %g, \"shift\": %g, \"threads\": %d,\n   ", (unsigned long long)o->seed, o->guidance, o->shift, o->threads);
        wan_print_string(f, "model", o->model), fputs(", ", f);
        wan_print_string(f, "prompt", o->prompt ? o->prompt : o->text ? o->text : ""), fputs(",\n   ", f);
        fprintf(f, "\"query_clusters\": %d, \"key_clusters\": %d, \"tail\": %s, \"route\": \"%s\", \"budget\": \"%s\",\n", run->desc.query_clusters,
                run->desc.key_clusters, wan_tail_name(run->desc.tail), run->desc.route == SVG2_ROUTE_MASS ? "mass" : "spread",
                run->desc.budget == SVG2_BUDGET_ROW ? "row" : "head");
        fprintf(f, "   \"per_step\": [");
        for (step = 0; step < o->steps; ++step) {
            const wan_step *s = &run->steps[step];
            fprintf(f, "%s\n     {\"step\": %d, ", step ? "," : "", step);
            wan_print_number(f, "sigma", wan_sigma(o, step), 6), fputs(", ", f);
            wan_print_number(f, "density", s->heads ? s->density / (double)s->heads : 1, 5), fputs(", ", f);
            wan_print_number(f, "attention_seconds", s->attention_seconds, 4), fputs(", ", f);
            wan_print_number(f, "attention_error", s->rows ? sqrt(s->error / s->norm) : INFINITY, 4), fputs(", ", f);
            wan_print_number(f, "recall", s->rows ? s->recall / (double)s->rows : INFINITY, 4), fputs(", \"stages\": {", f);
            for (k = 0; k < sizeof stages / sizeof *stages; ++k) {
                fputs(k ? ", " : "", f);
                wan_print_number(f, stages[k], s->seconds[k], 4);
            }
            fputs("}}", f);
        }
        fprintf(f, "]}%s\n", i + 1 < job->run_count ? "," : "");
    }
    fprintf(f, "]\n");
}

static void wan_write_csv(const wan_job *job)
{
    int32_t i;
    fprintf(job->csv, "name,settings,method,density,density_all,psnr,ssim,attention_seconds,total_seconds,kmeans_seconds,attention_error,recall,"
                      "recall_worst_row,tokens,steps,seed,prompt\n");
    for (i = 0; i < job->run_count; ++i) {
        const wan_run *run = &job->runs[i];
        wan_totals     t = wan_total(run, job->o.steps);
        fprintf(job->csv, "%s,\"%s\",%s,%.5f,%.5f,", run->label, run->settings, wan_method_name(run->method), t.density, t.all_pairs);
        if (i && isfinite(run->psnr)) fprintf(job->csv, "%.4f", run->psnr);
        fputc(',', job->csv);
        if (i && run->ssim >= -1) fprintf(job->csv, "%.6f", run->ssim);
        fprintf(job->csv, ",%.3f,%.3f,%.3f,", t.attention_seconds, run->total_seconds, t.kmeans_seconds);
        if (t.is_checked) fprintf(job->csv, "%.6f,%.6f,%.6f", t.error, t.recall, t.recall_min);
        else fputs(",,", job->csv);
        fprintf(job->csv, ",%lld,%d,%llu,\"%s\"\n", (long long)job->grid.tokens, job->o.steps, (unsigned long long)job->o.seed,
                job->o.prompt ? job->o.prompt : "");
    }
}

static void wan_write_latent(const wan_job *job, FILE *file, const float *latent)
{
    char      name[] = "latent";
    tf_tensor t;
    memset(&t, 0, sizeof t);
    t.name = name, t.dtype = TF_F32, t.rank = 4;
    t.shape[0] = job->model.channels, t.shape[1] = job->grid.frames, t.shape[2] = 2 * job->grid.height, t.shape[3] = 2 * job->grid.width;
    if (tf_write_safetensors_header(file, &t, 1) != TF_OK) tool_fail(TOOL_FAILURE, "%s: %s", job->o.latent, strerror(errno));
    tool_write(file, latent, job->count * sizeof *latent, job->o.latent);
}

/* ==== >>main ============================================================================= */
static int32_t wan_list(const char *option, const char *text, int32_t limit, int32_t *values)
{
    int32_t count = 0;
    for (;;) {
        char *end;
        long  value = strtol(text, &end, 10);
        if (end == text || (*end && *end != ',') || value < 0 || value >= limit) {
            tool_fail(TOOL_USAGE, "--%s: '%s' is not a list of numbers from 0 to %d", option, text, limit - 1);
        }
        if (count == WAN_MAX_LISTED) tool_fail(TOOL_USAGE, "--%s: more than %d entries", option, WAN_MAX_LISTED);
        values[count++] = (int32_t)value;
        if (!*end) return count;
        text = end + 1;
    }
}

static FILE *wan_output(const char *directory, const char *name, const char *suffix)
{
    char *stem = tool_format("%s/%s", directory, name), *path = tool_format("%s%s", stem, suffix);
    FILE *file = tool_open_output(path);
    free(stem), free(path);
    return file;
}

/* All outputs are opened before the work begins, and appear when everything is complete. */
static void wan_open_outputs(wan_job *job)
{
    const wan_options *o = &job->o;
    int32_t            layers[WAN_MAX_LISTED], steps[WAN_MAX_LISTED], layer_count, step_count, i, k;
    char               name[64];

    if (o->dump) {
        if (!o->dump_layers) {
            for (layer_count = 0; layer_count < job->model.layers && layer_count < WAN_MAX_LISTED; ++layer_count) layers[layer_count] = layer_count;
        } else layer_count = wan_list("dump-layers", o->dump_layers, job->model.layers, layers);
        steps[0] = o->steps / 2, step_count = 1;
        if (o->dump_steps) step_count = wan_list("dump-steps", o->dump_steps, o->steps, steps);
        tool_make_directory(o->dump);
        for (i = 0; i < step_count; ++i) {
            for (k = 0; k < layer_count; ++k) {
                snprintf(name, sizeof name, "step%02d-layer%02d", steps[i], layers[k]);
                job->dumps[job->dump_count].file = wan_output(o->dump, name, ".safetensors");
                job->dumps[job->dump_count].layer = layers[k];
                job->dumps[job->dump_count++].step = steps[i];
            }
        }
    }
    if (o->latent) tool_make_directory(o->latent);
    if (strcmp(o->out, "none") != 0) {
        tool_make_directory(o->out);
        job->report = wan_output(o->out, "report", ".json");
        if (job->model.pixel_fold) {
#ifndef SVG2_TOOL_NO_PNG
            job->sheet = wan_output(o->out, "sheet", ".png");
#endif
#ifndef SVG2_TOOL_NO_GIF
            job->gif = wan_output(o->out, "clips", ".gif");
#endif
        }
    }
    for (i = 0; i < job->run_count; ++i) {
        if (o->latent) job->latent_files[i] = wan_output(o->latent, job->runs[i].label, ".safetensors");
        if (job->report && job->model.pixel_fold) job->clip_files[i] = wan_output(o->out, job->runs[i].label, ".y4m");
    }
    if (o->csv) job->csv = tool_open_output(o->csv);
}

static void wan_open_input(wan_job *job)
{
    wan_options *o = &job->o;
    wan_model   *m = &job->model;
    int32_t      fold;
    int          rank;
    int64_t      shape[TF_MAX_RANK];

    wan_model_open(m, o->model, o->heads);
    fold = m->pixel_fold ? m->pixel_fold : 1;
    if (o->height % (2 * fold) || o->width % (2 * fold)) {
        tool_fail(TOOL_USAGE, "--%s: %d does not divide into patches of %d", o->height % (2 * fold) ? "height" : "width",
                  o->height % (2 * fold) ? o->height : o->width, 2 * fold);
    }
    if ((int64_t)o->frames * (o->height / fold / 2) * (o->width / fold / 2) > INT32_MAX - 1024) {
        tool_fail(TOOL_USAGE, "--frames, --height, --width: too many tokens");
    }
    if (!m->pixel_fold && !o->latent) tool_fail(TOOL_USAGE, "%s: its latents are for Wan's VAE: say with --latent DIR where to put them", o->model);
    if (o->low_noise) {
        wan_model_open(&job->late, o->low_noise, o->heads);
        job->has_late = 1;
        if (job->late.channels != m->channels || job->late.dim != m->dim || job->late.layers != m->layers || job->late.heads != m->heads ||
            job->late.ffn_dim != m->ffn_dim || job->late.text_dim != m->text_dim || job->late.text_len != m->text_len ||
            job->late.freq_dim != m->freq_dim) {
            tool_fail(TOOL_FAILURE, "%s: not of the same shape as %s", o->low_noise, o->model);
        }
    }
    if (o->text && o->prompt) tool_fail(TOOL_USAGE, "--text and --prompt exclude each other");
    if (o->text) job->text = wan_read_text(m, o->text);
    else if (m->words) {
        if (!o->prompt) o->prompt = "red striped disc; blue dotted square; grey waves pan-left";
        job->text = wan_embed_prompt(m, o->prompt);
    } else {
        tool_fail(TOOL_USAGE, "%s lists no words: give the text embedding of the prompt with --text F", o->model);
    }
    if (o->negative) job->negative = wan_read_text(m, o->negative);
    else {
        job->negative = floats((size_t)m->text_len, (size_t)m->text_dim);
        memset(job->negative, 0, (size_t)m->text_len * (size_t)m->text_dim * sizeof *job->negative);
    }
    wan_grid_open(&job->grid, m, o->frames, o->height / fold / 2, o->width / fold / 2);
    job->count = (size_t)job->grid.tokens * (size_t)m->channels * WAN_PATCH;
    if (o->noise) {
        job->noise = wan_read(o->noise, &rank, shape);
        if (rank != 4 || shape[0] != m->channels || shape[1] != o->frames || shape[2] != o->height / fold || shape[3] != o->width / fold) {
            tool_fail(TOOL_FAILURE, "%s: the noise needs shape [%d, %d, %d, %d]", o->noise, m->channels, o->frames, o->height / fold, o->width / fold);
        }
    } else {
        job->noise = floats(job->count, 1);
        wan_noise(job->noise, job->count, o->seed);
    }
    wan_work_open(&job->work, m, &job->grid);
}

/* Two runs of one name would write one file: the second becomes name-2. */
static void wan_name_runs(wan_job *job)
{
    int32_t i, k, number;
    for (i = 0; i < job->run_count; ++i) {
        char *label = job->runs[i].label, base[64];
        snprintf(base, sizeof base, "%.63s", label);
        for (k = 0, number = 1; k < i;) {
            if (strcmp(label, job->runs[k++].label) != 0) continue;
            snprintf(label, sizeof job->runs[i].label, "%s-%d", base, ++number);
            k = 0;
        }
    }
}

#ifndef WAN_NO_MAIN
static wan_job job;

int main(int argc, char **argv)
{
    tool_option options[WAN_OPTIONS];
    const char *words[WAN_MAX_RUNS];
    size_t      count = wan_option_table(&job.o, options);
    int32_t     i;
    int         is_written = 1;

    tool_start("wan");
    wan_defaults(&job.o);
    job.run_count = tool_parse(argc - 1, argv + 1, options, count, words, WAN_MAX_RUNS);
    if (job.o.is_help) {
        printf("usage: wan [RUN ...] [options]\n\n"
               "Generates the same clip once per RUN and compares them with the first. A RUN is [NAME:]METHOD[,key=value ...]\n"
               "  METHOD   %s: clusters, or blocks of neighbouring tokens, or clusters chosen by exact mass\n"
               "  keys     tail=0|1|2 density top-p min-keep target-error dense-above route=mass|spread budget=row|head\n"
               "           query-clusters key-clusters init-iters step-iters dense-steps dense-layers init-on-dense cold=1\n"
               "Without any: dense svg2.\n", WAN_METHODS);
        tool_print_options(options, count);
        return 0;
    }
    if (!job.run_count) words[job.run_count++] = "dense", words[job.run_count++] = "svg2";
    for (i = 0; i < job.run_count; ++i) wan_run_parse(&job.runs[i], words[i]);
    wan_name_runs(&job);
#ifdef _OPENMP
    omp_set_num_threads(job.o.threads);
#endif
    wan_open_input(&job);
    for (i = 0; i < job.run_count; ++i) { /* what is wrong with the last run is said before the first */
        wan_run_open(&job.runs[i], &job.model, &job.grid, job.o.threads);
        wan_run_close(&job.runs[i]);
    }
    wan_open_outputs(&job);
    printf("%s: %d layers, %d heads of %d, %lld tokens (%d x %d x %d), %d steps, guidance %g\n", job.o.model, job.model.layers, job.model.heads,
           job.model.head_dim, (long long)job.grid.tokens, job.grid.frames, job.grid.height, job.grid.width, job.o.steps, job.o.guidance);
    if (job.o.prompt) printf("\"%s\"\n", job.o.prompt);
    fflush(stdout);

    for (i = 0; i < job.run_count; ++i) {
        job.latents[i] = floats(job.count, 1);
        wan_generate(&job, &job.runs[i], job.latents[i]);
        job.runs[i].ssim = -2;
        if (job.model.pixel_fold) {
            job.clips[i] = wan_clip(&job, job.latents[i]);
            job.runs[i].psnr = clip_psnr(&job.clips[i], &job.clips[0]);
            job.runs[i].ssim = clip_ssim(&job.clips[i], &job.clips[0]);
        } else {
            svg2_metrics metrics;
            svg2_error   err;
            wan_expect(svg2_compare(job.latents[i], job.latents[0], job.count, 0, &metrics, &err), &err);
            job.runs[i].psnr = metrics.psnr;
        }
    }
    wan_print_table(&job);

    for (i = 0; i < job.run_count; ++i) {
        if (job.latent_files[i]) wan_write_latent(&job, job.latent_files[i], job.latents[i]);
        if (job.clip_files[i]) is_written &= clip_write_y4m(job.clip_files[i], &job.clips[i], job.o.fps);
    }
    {
        const char *labels[WAN_MAX_RUNS];
        int32_t     shown = job.run_count < 8 ? job.run_count : 8;
        for (i = 0; i < job.run_count; ++i) labels[i] = job.runs[i].label;
        if (job.sheet) is_written &= clip_write_sheet(job.sheet, job.clips, labels, shown, 8, job.o.scale);
        if (job.gif) is_written &= clip_write_gif(job.gif, job.clips, labels, shown, job.o.scale + 1, job.o.fps);
    }
    if (job.report) wan_write_report(&job);
    if (job.csv) wan_write_csv(&job);
    if (!is_written) tool_fail(TOOL_FAILURE, "%s: a picture could not be written", job.o.out);
    tool_commit_outputs();

    for (i = 0; i < job.run_count; ++i) free(job.latents[i]), free(job.clips[i].rgb), free(job.runs[i].steps);
    free(job.text), free(job.negative), free(job.noise);
    wan_work_close(&job.work);
    wan_grid_close(&job.grid);
    wan_model_close(&job.model);
    if (job.has_late) wan_model_close(&job.late);
    return 0;
}
#endif
