/* wan.c - MIT licence - a Wan 2.1/2.2 text-to-video transformer in C, its self-attention dense or sparse (svg2.h)

   Build and run, from the root of the repository ("make demo" does it):

       cc -O2 -ffp-contract=off -fopenmp -I. examples/wan/wan.c -lpng -lgif -lcjson -lm -o wan
       ./wan dense svg2                         # the same clip twice; out/dense.y4m, out/svg2.y4m, a table
       ./wan dense svg2,density=0.2 svg2,tail=0,top-p=0.9 --prompt "red striped disc; blue ring; navy waves pan-left"

   The network is read from one .safetensors file with Wan's own tensor names; every extent follows from the
   tensors. model.safetensors beside this file is a small model of that architecture, trained from nothing by train.py
   on made-up clips; its latents are pixels. With the weights of a real Wan transformer, --text gives it the umT5
   embedding of the prompt, and the latent that comes out is for Wan's VAE (--latent).

   To see how svg2.h is used, read >>attention. To see what a video transformer is, read >>forward.

   Macros
     WAN_NO_MAIN   for tests
     SVG2_TOOL_NO_PNG, SVG2_TOOL_NO_GIF, SVG2_TOOL_NO_CJSON   without libpng, giflib, cJSON (which reads .safetensors)

   CONTENTS
     >>options    what can be asked for
     >>model      tensors by name, checked
     >>layers     linear, LayerNorm, grids
     >>attention  one svg2 state per (layer, guidance branch)
     >>forward    the transformer
     >>sampler    flow matching, guidance
     >>prompt     text embeddings
     >>main
   gpu.h          self-attention by svg2_cuda.cu: --backend cuda, in a build by "make cuda"
   compare.h      what a run can be; stages timed or replaced; exact attention beside it
   report.h       table, report, pictures, Q/K/V
   clip.h         PSNR, SSIM, y4m, PNG, GIF */

#define _XOPEN_SOURCE 700

#define SVG2_IMPLEMENTATION
#ifdef _OPENMP
#  define SVG2_OPENMP
#endif
#include "svg2.h"

#define TF_IMPLEMENTATION
#ifdef SVG2_TOOL_NO_CJSON
#  define TF_NO_CJSON
#endif
#include "../tensor_file.h"
#define TOOL_MAX_OUTPUTS 4608
#include "../tool.h"
#include "../settings.h"
#include "clip.h"

#include <time.h>
#ifdef _OPENMP
#  include <omp.h>
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
    const char *model, *low_noise, *prompt, *text, *negative, *out, *latent, *csv, *dump, *dump_layers, *dump_steps,
        *noise;
    int32_t frames, height, width, steps, heads, threads, fps, scale;
    double shift, guidance, boundary;
    uint64_t seed;
    int is_check, is_help, dump_dtype, backend;
} wan_options;

#define WAN_OPTIONS  40
#define WAN_BACKENDS "cpu|cuda"

static size_t wan_option_table(wan_options *o, tool_option *options)
{
    const tool_option table[] = {
        {TOOL_HEADING, "", "", NULL, 0, 0, 0, "what to generate"},
        {TOOL_TEXT, "model", "F.safetensors", &o->model, 0, 0, 0, "weights (examples/wan/model.safetensors)"},
        {TOOL_TEXT, "prompt", "WORDS", &o->prompt, 0, 0, 0,
         "for a model that lists its words: \"object; object; ground camera\""},
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
        {TOOL_TEXT, "low-noise", "F.safetensors", &o->low_noise, 0, 0, 0,
         "Wan 2.2 A14B: second transformer, for the late steps"},
        {TOOL_REAL, "boundary", "X", &o->boundary, 0, 1, 0, "noise level at which it takes over (0.875)"},
        {TOOL_INT, "heads", "N", &o->heads, 1, 1024, 0, "attention heads, where the file does not say (dim / 128)"},

        {TOOL_HEADING, "", "", NULL, 0, 0, 0, "what to write"},
        {TOOL_TEXT, "out", "DIR", &o->out, 0, 0, 0, "NAME.y4m of each run, sheet.png, clips.gif, report.json (out)"},
        {TOOL_TEXT, "latent", "DIR", &o->latent, 0, 0, 0, "NAME.safetensors of each run: tensor latent [C, F, H, W]"},
        {TOOL_TEXT, "csv", "F", &o->csv, 0, 0, 0, "one line per run"},
        {TOOL_INT, "scale", "N", &o->scale, 1, 64, 0, "screen pixels per pixel in the pictures (3)"},
        {TOOL_INT, "fps", "N", &o->fps, 1, 1000, 0, "frames per second (8)"},
        {TOOL_FLAG, "check", "", &o->is_check, 0, 0, 0,
         "also dense attention and exact mass beside every sparse call: error, recall"},
        {TOOL_TEXT, "dump-qkv", "DIR", &o->dump, 0, 0, 0, "q, k, v of the first run as stepNN-layerNN.safetensors"},
        {TOOL_TEXT, "dump-layers", "LIST", &o->dump_layers, 0, 0, 0, "layers, as in 0,2,5 (all)"},
        {TOOL_TEXT, "dump-steps", "LIST", &o->dump_steps, 0, 0, 0, "steps (the middle one)"},
        {TOOL_CHOICE, "dump-dtype", "f32|f16|bf16", &o->dump_dtype, 0, 0, 0, "(f32)"},

        {TOOL_HEADING, "", "", NULL, 0, 0, 0, "how"},
        {TOOL_CHOICE, "backend", WAN_BACKENDS, &o->backend, 0, 0, 0,
         "of self-attention (cpu); cuda: svg2_cuda.cu, in a build that has it"},
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
    float *bias;
    int32_t rows, columns;
} wan_linear;

typedef struct wan_attention_weights {
    wan_linear q, k, v, o;
    float *norm_q, *norm_k; /* [dim] */
} wan_attention_weights;

typedef struct wan_block {
    wan_attention_weights self, cross;
    wan_linear ffn0, ffn2;
    float *norm3_weight, *norm3_bias; /* [dim] before cross-attention          */
    float *modulation;                /* [6, dim] added to the time projection */
} wan_block;

typedef struct wan_model {
    const char *path;
    tf_file file;
    int32_t channels, dim, ffn_dim, heads, head_dim, layers, text_dim, text_len, freq_dim;
    int32_t pixel_fold; /* latents are pixels, fold x fold of them per position; 0 = latents of a VAE */
    const char *words;  /* one-hot vocabulary of the prompt, or NULL */
    int32_t parts;
    wan_linear patch, text0, text2, time0, time2, time_projection, head;
    float *head_modulation; /* [2, dim] */
    wan_block *blocks;
    float *scratch; /* the f32 weights of one layer */
} wan_model;

enum { WAN_PATCH = 4 }; /* 1 x 2 x 2 positions of the latent are one token */

static const tf_tensor *wan_tensor(const wan_model *m, const char *name, int rank, const int64_t *shape)
{
    const tf_tensor *t = tf_find(&m->file, name);
    int i, is_same;
    if (!t) tool_fail(TOOL_FAILURE, "%s: tensor '%s' is missing", m->path, name);
    if (t->dtype != TF_F32 && t->dtype != TF_F16 && t->dtype != TF_BF16) {
        tool_fail(TOOL_FAILURE, "%s: tensor '%s' is %s, but weights are F32, F16 or BF16", m->path, name,
                  tf_dtype_name(t->dtype));
    }
    is_same = t->rank == rank;
    for (i = 0; is_same && i < rank; ++i)
        is_same = shape[i] < 0 ? t->shape[i] > 0 && t->shape[i] <= 1 << 24 : t->shape[i] == shape[i];
    if (!is_same) {
        char have[256] = "[", want[256] = "[";
        size_t used;
        for (i = 0; i < t->rank; ++i) {
            used = strlen(have);
            snprintf(have + used, sizeof have - used, "%s%lld", i ? ", " : "", (long long)t->shape[i]);
        }
        for (i = 0; i < rank; ++i) {
            used = strlen(want);
            if (shape[i] < 0)
                snprintf(want + used, sizeof want - used, "%sany", i ? ", " : "");
            else
                snprintf(want + used, sizeof want - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
        }
        tool_fail(TOOL_FAILURE, "%s: tensor '%s' has shape %s], but %s] is needed", m->path, name, have, want);
    }
    return t;
}

/* A small tensor, as floats. */
static float *wan_vector(const wan_model *m, const char *prefix, const char *suffix, int rank, int64_t a, int64_t b,
                         int64_t c)
{
    char name[128];
    int64_t shape[3];
    const tf_tensor *t;
    float *values;
    shape[0] = a, shape[1] = b, shape[2] = c;
    snprintf(name, sizeof name, "%s%s", prefix, suffix);
    t = wan_tensor(m, name, rank, shape);
    values = floats((size_t)t->count, 1);
    tf_get_f32(t, 0, t->count, values);
    return values;
}

/* columns < 0: any */
static wan_linear wan_linear_open(const wan_model *m, const char *prefix, const char *suffix, int64_t rows,
                                  int64_t columns)
{
    char name[128];
    int64_t shape[2];
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
    char *end;
    long value;
    if (!text) return otherwise;
    value = strtol(text, &end, 10);
    if (end == text || *end || value < low || value > high) {
        tool_fail(TOOL_FAILURE, "%s: metadata %s is not a whole number from %d to %d", m->path, key, low, high);
    }
    return (int32_t)value;
}

/* Panels are filled up to a multiple of 32 rows. */
static size_t wan_scratch_count(const wan_model *m)
{
    const wan_linear *l[8];
    size_t largest = 0, count;
    int i;
    l[0] = &m->patch, l[1] = &m->text0, l[2] = &m->text2, l[3] = &m->time0, l[4] = &m->time_projection, l[5] = &m->head;
    l[6] = &m->blocks[0].ffn0, l[7] = &m->blocks[0].ffn2; /* all blocks are alike, and their other layers smaller */
    for (i = 0; i < 8; ++i) {
        count = ((size_t)l[i]->rows + 31) * (size_t)l[i]->columns;
        if (count > largest) largest = count;
    }
    return largest;
}

static void wan_model_open(wan_model *m, const char *path, int32_t heads)
{
    static const int64_t patch_shape[5] = {-1, -1, 1, 2, 2};
    char message[TF_MESSAGE_COUNT], prefix[64];
    const tf_tensor *t;
    size_t i;
    int32_t layer;

    memset(m, 0, sizeof *m);
    m->path = path;
    if (tf_open(&m->file, path, message, sizeof message) != TF_OK) tool_fail(TOOL_FAILURE, "%s", message);
    if (m->file.format != TF_SAFETENSORS)
        tool_fail(TOOL_FAILURE, "%s: weights are read from .safetensors files only", path);
    if (tf_find(&m->file, "img_emb.proj.0.weight") || tf_find(&m->file, "blocks.0.cross_attn.k_img.weight")) {
        tool_fail(TOOL_FAILURE, "%s: this is an image-to-video model; only text-to-video is supported", path);
    }
    t = wan_tensor(m, "patch_embedding.weight", 5, patch_shape);
    m->dim = (int32_t)t->shape[0];
    m->channels = (int32_t)t->shape[1];
    m->heads = wan_metadata_int(m, "num_heads", heads ? heads : m->dim / 128, 1, 1024);
    if (heads && heads != m->heads) tool_fail(TOOL_FAILURE, "--heads: %s says it has %d", path, m->heads);
    if (m->heads < 1 || m->dim % m->heads || m->dim / m->heads % 8 || m->dim / m->heads > 256) {
        tool_fail(TOOL_FAILURE, "%s: width %d does not divide into %d heads of a multiple of 8 up to 256 (see --heads)",
                  path, m->dim, m->heads);
    }
    m->head_dim = m->dim / m->heads;
    m->text_len = wan_metadata_int(m, "text_len", 512, 1, 65536);
    m->pixel_fold = wan_metadata_int(m, "pixel_fold", 0, 0, 16);
    m->words = tf_metadata(&m->file, "words");
    if (m->words) m->words += strspn(m->words, " ");
    for (i = 0; m->words && m->words[i]; ++i) { /* they are printed */
        if ((unsigned char)m->words[i] < 32 || m->words[i] == 127 || m->words[i] == '"')
            tool_fail(TOOL_FAILURE, "%s: metadata words are not words with spaces between", path);
    }
    m->parts = wan_metadata_int(m, "parts", 1, 1, 64);
    if (m->pixel_fold && m->channels != 3 * m->pixel_fold * m->pixel_fold) {
        tool_fail(TOOL_FAILURE, "%s: metadata pixel_fold %d needs %d channels, the tensors have %d", path,
                  m->pixel_fold, 3 * m->pixel_fold * m->pixel_fold, m->channels);
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
    if (m->freq_dim % 2)
        tool_fail(TOOL_FAILURE, "%s: time_embedding.0.weight has an odd number of columns, %d", path, m->freq_dim);
    m->time_projection = wan_linear_open(m, "time_projection.", "1", 6 * (int64_t)m->dim, m->dim);
    m->head = wan_linear_open(m, "head.", "head", (int64_t)m->channels * WAN_PATCH, m->dim);
    m->head_modulation = wan_vector(m, "head.", "modulation", 3, 1, 2, m->dim);
    do {
        snprintf(prefix, sizeof prefix, "blocks.%d.self_attn.q.weight", m->layers);
    } while (tf_find(&m->file, prefix) && ++m->layers < 1000);
    if (!m->layers) tool_fail(TOOL_FAILURE, "%s: tensor 'blocks.0.self_attn.q.weight' is missing", path);
    for (i = 0; i < m->file.tensor_count; ++i) { /* a hole in the numbering would silently shorten the model */
        if (!strncmp(m->file.tensors[i].name, "blocks.", 7) &&
            strtol(m->file.tensors[i].name + 7, NULL, 10) >= m->layers) {
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
    m->scratch = floats(wan_scratch_count(m), 1);
}

/* A damaged file would come out as a picture of nothing. */
static void wan_model_check(const wan_model *m)
{
    char printable[64];
    size_t i;
    int64_t first;
    for (i = 0; i < m->file.tensor_count; ++i) {
        const tf_tensor *t = &m->file.tensors[i];
        int bad = 0;
        if (t->dtype != TF_F32 && t->dtype != TF_F16 && t->dtype != TF_BF16) continue;
#pragma omp parallel for reduction(+ : bad)
        for (first = 0; first < t->count; first += 1024) {
            float values[1024];
            int64_t some = t->count - first < 1024 ? t->count - first : 1024, k;
            tf_get_f32(t, first, some, values);
            for (k = 0; k < some && !bad; ++k) bad = !isfinite(values[k]);
        }
        if (bad) {
            tool_fail(TOOL_FAILURE, "%s: tensor '%s' has a NaN or an infinity", m->path,
                      tf__printable(t->name, printable));
        }
    }
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
/* y [n, rows] = x [n, columns] W^T + bias: 6 tokens by a panel of two vectors of rows at a time. Compiled for several
   vector widths. Not the point of this program, but in the way of it: what is not attention has to be fast, too. */
enum { WAN_TOKENS = 6 };
typedef void wan_product(const float *const *x, const float *panel, int32_t columns, const float *bias, float *const *y,
                         int32_t rows);

#ifdef __GNUC__
#  define WAN_PRODUCT(name, target, width)                                                                             \
    typedef float name##_vector __attribute__((vector_size(4 * (width)), aligned(4), may_alias));                      \
    target static void name(const float *const *x, const float *panel, int32_t columns, const float *bias,             \
                            float *const *y, int32_t rows)                                                             \
    {                                                                                                                  \
      name##_vector sum[WAN_TOKENS][2], w0, w1;                                                                        \
      float last[2 * (width)];                                                                                         \
      int32_t c;                                                                                                       \
      int t;                                                                                                           \
      memset(last, 0, sizeof last);                                                                                    \
      memcpy(last, bias, (size_t)(rows < 2 * (width) ? rows : 2 * (width)) * sizeof *last);                            \
      for (t = 0; t < WAN_TOKENS; ++t) {                                                                               \
        sum[t][0] = *(const name##_vector *)last, sum[t][1] = *(const name##_vector *)(last + (width));                \
      }                                                                                                                \
      for (c = 0; c < columns; ++c, panel += 2 * (width)) {                                                            \
        w0 = *(const name##_vector *)panel, w1 = *(const name##_vector *)(panel + (width));                            \
        sum[0][0] += x[0][c] * w0, sum[0][1] += x[0][c] * w1, sum[1][0] += x[1][c] * w0, sum[1][1] += x[1][c] * w1;    \
        sum[2][0] += x[2][c] * w0, sum[2][1] += x[2][c] * w1, sum[3][0] += x[3][c] * w0, sum[3][1] += x[3][c] * w1;    \
        sum[4][0] += x[4][c] * w0, sum[4][1] += x[4][c] * w1, sum[5][0] += x[5][c] * w0, sum[5][1] += x[5][c] * w1;    \
      }                                                                                                                \
      for (t = 0; t < WAN_TOKENS; ++t) {                                                                               \
        if (rows >= 2 * (width))                                                                                       \
          memcpy(y[t], sum[t], sizeof sum[t]);                                                                         \
        else                                                                                                           \
          memcpy(y[t], sum[t], (size_t)rows * sizeof(float));                                                          \
      }                                                                                                                \
    }
WAN_PRODUCT(wan_product4, , 4)
#  ifdef __x86_64__
WAN_PRODUCT(wan_product8, __attribute__((target("avx2,fma"))), 8)
WAN_PRODUCT(wan_product16, __attribute__((target("avx512f"))), 16)
#  endif
#endif

/* Without vectors, for other compilers. */
#ifndef __GNUC__
static void wan_product4(const float *const *x, const float *panel, int32_t columns, const float *bias, float *const *y,
                         int32_t rows)
{
    int32_t t, c, r;
    for (t = 0; t < WAN_TOKENS; ++t) {
        for (r = 0; r < rows && r < 8; ++r) {
            float sum = bias[r];
            for (c = 0; c < columns; ++c) sum += x[t][c] * panel[c * 8 + r];
            y[t][r] = sum;
        }
    }
}
#endif

static wan_product *wan_choose_product(int32_t *panel_rows)
{
#if defined(__GNUC__) && defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) return *panel_rows = 32, wan_product16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return *panel_rows = 16, wan_product8;
#endif
    return *panel_rows = 8, wan_product4;
}

static void linear(const wan_model *m, const wan_linear *l, const float *x, float *y, int64_t n)
{
    int32_t panel_rows;
    wan_product *const product = wan_choose_product(&panel_rows);
    const int64_t panels = (l->rows + panel_rows - 1) / panel_rows, panel_count = (int64_t)panel_rows * l->columns;
    int64_t i;
#pragma omp parallel for schedule(dynamic, 1)
    for (i = 0; i < panels; ++i) { /* as f32, columns first; rows past the end are zero */
        float *panel = m->scratch + i * panel_count, row[1024];
        int32_t r, c, from, some;
        for (r = 0; r < panel_rows; ++r) {
            for (from = 0; from < l->columns; from += some) {
                some = l->columns - from < 1024 ? l->columns - from : 1024;
                if (i * panel_rows + r < l->rows)
                    tf_get_f32(l->weight, (i * panel_rows + r) * l->columns + from, some, row);
                else
                    memset(row, 0, sizeof row);
                for (c = 0; c < some; ++c) panel[(int64_t)(from + c) * panel_rows + r] = row[c];
            }
        }
    }
#pragma omp parallel for schedule(dynamic, 4)
    for (i = 0; i < (n + WAN_TOKENS - 1) / WAN_TOKENS; ++i) {
        const float *in[WAN_TOKENS];
        float *out[WAN_TOKENS], unused[32];
        int64_t p;
        int t;
        for (p = 0; p < panels; ++p) {
            for (t = 0; t < WAN_TOKENS; ++t) { /* behind the last token: the last again, to nowhere */
                int64_t token = i * WAN_TOKENS + t;
                in[t] = x + (token < n ? token : n - 1) * l->columns;
                out[t] = token < n ? y + token * l->rows + p * panel_rows : unused;
            }
            product(in, m->scratch + p * panel_count, l->columns, l->bias + p * panel_rows, out,
                    l->rows - (int32_t)(p * panel_rows));
        }
    }
}

/* y = LayerNorm(x) * (scale + offset) + shift, rows of dim floats; scale and shift are [dim] */
static void layer_norm(const float *x, float *y, int64_t n, int32_t dim, const float *scale, float offset,
                       const float *shift)
{
    int64_t i;
#pragma omp parallel for
    for (i = 0; i < n; ++i) {
        const float *in = x + i * dim;
        float *out = y + i * dim, inverse;
        double mean = 0, variance = 0;
        int32_t c;
        for (c = 0; c < dim; ++c) mean += in[c];
        mean /= dim;
        for (c = 0; c < dim; ++c) variance += (in[c] - mean) * (in[c] - mean);
        inverse = (float)(1 / sqrt(variance / dim + 1e-6));
        for (c = 0; c < dim; ++c) out[c] = (in[c] - (float)mean) * inverse * (scale[c] + offset) + shift[c];
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
        x[i] = v / (1 + expf(-1.5957691216f * (v + 0.044715f * v * v * v))); /* 1 + tanh(a) = 2 / (1 + exp(-2 a)) */
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
    float *cosine, *sine; /* [tokens, head_dim / 2]: the pairs of a head go to time, height, width in turn */
} wan_grid;

static void wan_grid_open(wan_grid *g, const wan_model *m, int32_t frames, int32_t height, int32_t width)
{
    const size_t half = (size_t)m->head_dim / 2;
    svg2_rope_desc rope = SVG2_ZERO;
    svg2_error err;
    g->frames = frames, g->height = height, g->width = width;
    g->tokens = (int64_t)frames * height * width;
    g->cosine = floats((size_t)g->tokens, half);
    g->sine = floats((size_t)g->tokens, half);
    rope.frames = frames, rope.height = height, rope.width = width, rope.head_dim = m->head_dim;
    if (svg2_rope_table(&rope, g->cosine, g->sine, (size_t)g->tokens * half, &err) != SVG2_OK)
        tool_fail(TOOL_FAILURE, "svg2_rope_table: %s %s", err.field, err.text);
}

static void wan_grid_close(wan_grid *g) { free(g->cosine), free(g->sine); }

/* ==== >>attention ========================================================================
   All that an engine needs to do: fill in a descriptor, keep one state per (layer, branch), call svg2_attend. The rest
   of this section measures it, and replaces stages for comparison. */
typedef enum wan_method {
    WAN_DENSE,
    WAN_SVG2,
    WAN_CENTROID,
    WAN_RASTER,
    WAN_TILES,
    WAN_ORACLE,
    WAN_SVG1,
    WAN_ADASPA,
    WAN_BLASST,
    WAN_ENERGY
} wan_method;
#define WAN_METHODS "dense|svg2|centroid|raster|tiles|oracle|svg1|adaspa|blasst|energy"
enum { WAN_BRANCHES = 2 }; /* with the prompt, without */

typedef struct wan_step {
    double seconds[SVG2_STAGE_COUNT], attention_seconds;
    double density, density_pv;             /* sums over sparse calls and heads   */
    int64_t heads;                          /* how many                           */
    double pairs, pairs_total;              /* of all calls             */
    double error, norm, recall, recall_min; /* with --check: sums of squares; sum and minimum over rows */
    int64_t rows;
} wan_step;

typedef struct wan_run {
    char label[80], settings[256]; /* 64 characters of the label are the user's */
    char words[256];               /* the settings, cut into words */
    attention_settings chosen;
    wan_method method;
    int is_cold;        /* forget the clusters at every step */
    svg2_desc desc;     /* of layer 0 */
    svg2_simd simd;     /* restricted to this instruction set */
    int backend_choice; /* of WAN_BACKENDS; -1: as --backend says */
    int is_cuda;
    svg2_backend cpu;            /* for all but self-attention */
    svg2_backend inner, backend; /* of self-attention, as it is; with the stages wrapped */
    svg2_state *state;           /* [branches, layers] */
    char *state_memory;          /* the backend's, as the workspace is */
    size_t state_bytes, work_bytes;
    void *work;
    float *twins[4];               /* on the GPU: q, k, v, out */
    float *twin_lse;               /* and lse */
    svg2_head_stats *twin_stats;   /* and stats */
    svg2_head_stats *stats;        /* [heads] */
    float *lse;                    /* [heads, tokens]; with seed_lse of every state */
    svg2_permute_desc permuted[2]; /* the last two: for the oracle */
    const float *q, *k, *v;        /* of the current call */
    const wan_grid *grid;
    wan_step *step, *steps; /* the current one, all */
    double total_seconds, psnr, ssim;
} wan_run;

/* Of one call: on the host, or on the GPU. */
typedef struct wan_arrays {
    const float *q, *k, *v;
    float *out, *lse; /* lse may be NULL */
    svg2_head_stats *stats;
} wan_arrays;

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

#include "gpu.h"     /* memory of a run's backend, copies around a call */
#include "compare.h" /* what a run can be, its stages timed or replaced, exact attention beside it */

/* Descriptor, backend and sizes; what cannot be run is refused. */
static void wan_run_prepare(wan_run *run, const wan_model *m, const wan_grid *g, int32_t threads)
{
    svg2_error err;
    svg2_parallel parallel = SVG2_ZERO;

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
    if (svg2_resolve(&run->desc, &err) != SVG2_OK) {
        const char *option = settings_option_of(err.field);
        tool_fail(TOOL_USAGE, "run '%s': %s %s", run->label, option ? option : err.field, err.text);
    }
    if (run->method == WAN_ORACLE && !(run->desc.density > 0))
        tool_fail(TOOL_USAGE, "run '%s': the oracle needs a density", run->label);
    if (run->method == WAN_ORACLE && (int64_t)run->desc.query_clusters * run->desc.key_clusters > INT32_MAX)
        tool_fail(TOOL_USAGE, "run '%s': the oracle needs fewer clusters", run->label);

    run->cpu = svg2_cpu_backend_simd(&parallel, run->simd);
    if (run->simd != SVG2_SIMD_BEST && run->cpu.simd != run->simd)
        tool_fail(TOOL_FAILURE, "run '%s': this machine lacks these instructions", run->label);
    run->inner = run->backend = run->is_cuda ? device_backend() : run->cpu;
    run->backend.user = run;
    run->backend.kmeans =
        run->method == WAN_RASTER || run->method == WAN_TILES ? wan_position_blocks : wan_timed_kmeans;
    run->backend.permute = run->method == WAN_ORACLE ? wan_keep_order : wan_timed_permute;
    run->backend.summarize = wan_timed_summarize;
    run->backend.score = wan_timed_score;
    run->backend.select = run->method == WAN_ORACLE     ? wan_oracle_select
                          : run->method == WAN_CENTROID ? wan_centroid_select
                                                        : wan_timed_select;
    run->backend.tail = wan_timed_tail;
    run->backend.attention = wan_timed_attention;
    run->backend.mass = wan_timed_mass;
    if (run->backend.place) { /* the four come together */
        run->backend.place = wan_timed_place;
        run->backend.band = wan_timed_band;
        run->backend.pick = wan_timed_pick;
        run->backend.profile = wan_timed_profile;
    }
    if (settings_lacks(&run->inner, &run->desc)) {
        tool_fail(TOOL_USAGE, "run '%s': backend %s %s", run->label, run->inner.name,
                  settings_lacks(&run->inner, &run->desc));
    }

    run->state_bytes =
        (svg2_state_bytes(&run->desc) + run->backend.align - 1) / run->backend.align * run->backend.align;
    run->work_bytes = svg2_workspace_bytes(&run->backend, &run->desc);
}

/* Memory for one clip: states of all layers and branches, and a workspace that they share. */
static void wan_run_open(wan_run *run, const wan_model *m, const wan_grid *g, int32_t threads)
{
    svg2_error err;
    int32_t i;

    wan_run_prepare(run, m, g, threads);
    run->work = wan_allocate(run, run->work_bytes, 1);
    run->stats = (svg2_head_stats *)tool_allocate((size_t)m->heads, sizeof *run->stats);
    run->lse = floats((size_t)(run->desc.seed_lse ? WAN_BRANCHES * m->layers : 1), wan_rows(run));
    for (i = 0; run->desc.seed_lse && i < WAN_BRANCHES * m->layers; ++i) {
        float *lse = run->lse + (size_t)i * wan_rows(run);
        size_t row;
        for (row = 0; row < wan_rows(run); ++row) lse[row] = -INFINITY;
    }
    run->state = (svg2_state *)tool_allocate((size_t)(WAN_BRANCHES * m->layers), sizeof *run->state);
    run->state_memory =
        (char *)wan_allocate(run, (size_t)(WAN_BRANCHES * m->layers), run->state_bytes ? run->state_bytes : 1);
    wan_twins_open(run);
    for (i = 0; i < WAN_BRANCHES * m->layers; ++i) {
        wan_expect(svg2_state_init(&run->state[i], &run->desc, run->state_memory + (size_t)i * run->state_bytes,
                                   run->state_bytes, &err),
                   &err);
    }
}

static void wan_run_close(wan_run *run)
{
    wan_twins_close(run);
    wan_free(run, run->work), wan_free(run, run->state_memory), free(run->stats), free(run->state), free(run->lse);
    run->lse = NULL, run->work = run->stats = NULL, run->state = NULL, run->state_memory = NULL;
}

/* Self-attention of one layer: q, k, v, out [tokens, heads, head_dim]. */
static void self_attention(wan_run *run, int32_t layer, int32_t layers, int branch, int32_t step, const float *q,
                           const float *k, const float *v, float *out, int is_check)
{
    svg2_state *state = &run->state[branch * layers + layer];
    svg2_desc desc = run->desc;
    float *lse = desc.seed_lse              ? run->lse + (size_t)(branch * layers + layer) * wan_rows(run)
                 : is_check && desc.skip ? run->lse
                                         : NULL;
    const wan_arrays host = {q, k, v, out, lse, run->stats};
    const wan_arrays at = run->is_cuda ? wan_to_device(run, &host) : host;
    svg2_error err;
    double start = now();
    int32_t head;
    int is_sparse;

    desc.layer = layer;
    run->q = q, run->k = k, run->v = v;
    if (run->is_cold) svg2_state_reset(state);
    is_sparse = wan_is_sparse(&desc, settings_action(&desc, state, step), step);
    wan_expect(svg2_attend(&run->backend, &desc, state, step, at.q, at.k, at.v, at.out, at.lse, at.stats, run->work,
                           run->work_bytes, &err),
               &err);
    run->step->attention_seconds += now() - start; /* the copies are this program's, not the call's */
    if (run->is_cuda) wan_from_device(run, &host);
    for (head = 0; head < desc.heads; ++head) {
        run->step->pairs += (double)run->stats[head].pairs;
        run->step->pairs_total += (double)run->stats[head].pairs_total;
        if (!is_sparse) continue;
        run->step->density += (double)run->stats[head].density;
        run->step->density_pv += (double)run->stats[head].density_pv;
        ++run->step->heads;
    }
    if (is_check && is_sparse) wan_check(run, &desc, step, out, host.lse);
}

/* Cross-attention to the text is short and stays dense: the same call, with one block on each side. */
static void cross_attention(wan_run *run, const float *q, const float *k, const float *v, float *out,
                            int32_t text_tokens)
{
    static const svg2_attention_desc zero = SVG2_ZERO;
    svg2_attention_desc a = zero;
    svg2_error err;
    size_t bytes;
    void *work;
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
    float *x, *y, *q, *k, *v, *o; /* [tokens, dim]: the stream, the normed stream, attention */
    float *patches;               /* [tokens, channels * 4] */
    float *hidden;                /* [chunk, ffn_dim]       */
    float *text_k, *text_v;       /* [text_len, dim]        */
    float *time, *projected;      /* [dim], [6, dim]        */
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
    int64_t token;
#pragma omp parallel for
    for (token = 0; token < g->tokens; ++token) {
        const int64_t t = token / g->width / g->height, h = token / g->width % g->height, w = token % g->width;
        float *patch = patches + token * m->channels * WAN_PATCH;
        int32_t c;
        for (c = 0; c < m->channels; ++c, patch += WAN_PATCH) {
            const float *in = latent + ((int64_t)c * g->frames + t) * plane + 4 * h * g->width + 2 * w;
            patch[0] = in[0], patch[1] = in[1], patch[2] = in[2 * g->width], patch[3] = in[2 * g->width + 1];
        }
    }
}

static void unpatchify(const wan_model *m, const wan_grid *g, const float *patches, float *latent)
{
    const int64_t plane = 4 * (int64_t)g->height * g->width;
    int64_t token;
#pragma omp parallel for
    for (token = 0; token < g->tokens; ++token) {
        const int64_t t = token / g->width / g->height, h = token / g->width % g->height, w = token % g->width;
        const float *patch = patches + token * m->channels * WAN_PATCH;
        int32_t c;
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
    float *wave = w->time + 2 * m->dim, *hidden = w->time + m->dim;
    int32_t i;
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

/* RMSNorm of q and k over the full width, all heads together, and positions. q, k and the grid may be NULL. */
static void front(const wan_run *run, const wan_model *m, const wan_grid *g, float *q, const float *norm_q,
                  float *k, const float *norm_k, int64_t tokens)
{
    svg2_front_desc d = SVG2_ZERO;
    svg2_error err;
    d.batch = 1, d.heads = m->heads, d.tokens = (int32_t)tokens, d.head_dim = m->head_dim;
    d.norm = SVG2_NORM_TOKEN;
    d.cosine = g ? g->cosine : NULL, d.sine = g ? g->sine : NULL;
    d.q = d.q_out = q, d.q_weight = norm_q;
    d.k = d.k_out = k, d.k_weight = norm_k;
    d.q_layout.stride_token = m->dim, d.q_layout.stride_head = m->head_dim;
    d.q_layout.stride_batch = tokens * m->dim;
    d.k_layout = d.q_out_layout = d.k_out_layout = d.q_layout;
    wan_expect(svg2_front(&run->cpu, &d, NULL, 0, &err), &err);
}

/* velocity [channels, frames, height, width] = noise minus clean latent, as the network sees it */
static void wan_forward(const wan_model *m, const wan_grid *g, wan_work *w, wan_run *run, int branch, int32_t step,
                        const float *latent, double timestep, const float *context, float *velocity, int is_check,
                        const wan_hooks *hooks)
{
    const int64_t n = g->tokens;
    const int32_t dim = m->dim;
    float *e = floats(6, (size_t)dim);
    int32_t layer, c;
    int64_t begin;

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
        front(run, m, g, w->q, b->self.norm_q, w->k, b->self.norm_k, n);
        if (hooks && hooks->on_qkv) hooks->on_qkv(hooks->user, layer, w->q, w->k, w->v);
        self_attention(run, layer, m->layers, branch, step, w->q, w->k, w->v, w->o, is_check);
        linear(m, &b->self.o, w->o, w->y, n);
        add_gated(w->x, w->y, n, dim, e + 2 * dim);

        layer_norm(w->x, w->y, n, dim, b->norm3_weight, 0, b->norm3_bias);
        linear(m, &b->cross.q, w->y, w->q, n);
        linear(m, &b->cross.k, context, w->text_k, m->text_len);
        linear(m, &b->cross.v, context, w->text_v, m->text_len);
        front(run, m, NULL, w->q, b->cross.norm_q, NULL, NULL, n);
        front(run, m, NULL, NULL, NULL, w->text_k, b->cross.norm_k, m->text_len);
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

/* ==== >>sampler ==========================================================================
   Flow matching: x = (1 - sigma) clean + sigma noise, the network estimates dx / dsigma = noise - clean, and Euler's method
   goes from sigma 1 to 0. The shift spends more of the steps on high noise, where the layout is decided. */
static double wan_sigma(const wan_options *o, int32_t step)
{
    double even = 1 - (double)step / o->steps;
    return o->shift * even / (1 - even + o->shift * even);
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
        double radius = sqrt(-2 * log(wan_uniform(seed, 2 * i))),
               angle = 6.283185307179586 * wan_uniform(seed, 2 * i + 1);
        x[i] = (float)(radius * cos(angle));
    }
}

/* Everything that the runs share. */
typedef struct wan_job {
    wan_options o;
    wan_model model, late; /* late: from o.boundary on, if there is one */
    wan_grid grid;
    wan_work work;
    int has_late, is_default_prompt;
    float *text, *negative; /* [text_len, text_dim]                 */
    float *noise;           /* [channels, frames, height, width]    */
    size_t count;           /* its elements                         */
    wan_run runs[WAN_MAX_RUNS];
    int32_t run_count;
    float *latents[WAN_MAX_RUNS];
    const char *device_name; /* of the GPU, if a run has it */
    clip clips[WAN_MAX_RUNS];
    FILE *clip_files[WAN_MAX_RUNS], *latent_files[WAN_MAX_RUNS], *sheet, *gif, *report, *csv;
    struct {
        FILE *file;
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
    const int branches = o->guidance == 1.0 ? 1 : 2;
    float *velocity[WAN_BRANCHES] = {NULL, NULL}, *context[WAN_BRANCHES] = {NULL, NULL};
    const wan_model *m = NULL;
    wan_hooks hooks = {NULL, wan_dump, NULL};
    double start = now();
    int32_t step, branch, i;
    int is_finite = 1;
    size_t at;

    hooks.user = job;
    wan_run_open(run, &job->model, &job->grid, o->threads);
    run->steps = (wan_step *)tool_allocate((size_t)o->steps, sizeof *run->steps);
    memset(run->steps, 0, (size_t)o->steps * sizeof *run->steps);
    for (branch = 0; branch < branches; ++branch) velocity[branch] = floats(job->count, 1);
    memcpy(latent, job->noise, job->count * sizeof *latent);

    for (step = 0; step < o->steps; ++step) {
        const double sigma = wan_sigma(o, step), next = wan_sigma(o, step + 1);
        const wan_model *wanted = job->has_late && sigma < o->boundary ? &job->late : &job->model;
        const float guidance = (float)o->guidance, length = (float)(next - sigma);
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
            wan_forward(m, &job->grid, &job->work, run, branch, step, latent, 1000 * sigma, context[branch],
                        velocity[branch], o->is_check, job->dump_count ? &hooks : NULL);
        }
        for (at = 0; at < job->count; ++at) {
            float v = velocity[0][at];
            if (branches == 2) v = velocity[1][at] + guidance * (v - velocity[1][at]);
            latent[at] += length * v;
            is_finite &= isfinite(latent[at]) != 0;
        }
        if (!is_finite) {
            tool_fail(TOOL_FAILURE, "run '%s': the latent has a NaN or an infinity after step %d of %d", run->label,
                      step + 1, o->steps);
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
    char message[TF_MESSAGE_COUNT];
    const char *name;
    char *path = tf_split(where, &name);
    tf_file file;
    const tf_tensor *t;
    float *values;
    int64_t i;
    if (!path) tool_fail(TOOL_FAILURE, "out of memory");
    if (tf_open(&file, path, message, sizeof message) != TF_OK) tool_fail(TOOL_FAILURE, "%s", message);
    t = tf_find(&file, name);
    if (!t) tool_fail(TOOL_FAILURE, "%s: no such tensor, or several and none named (FILE:name)", where);
    values = floats((size_t)t->count, 1);
    if (!tf_get_f32(t, 0, t->count, values))
        tool_fail(TOOL_FAILURE, "%s: dtype %s cannot be used here", where, tf_dtype_name(t->dtype));
    for (i = 0; i < t->count; ++i) {
        if (!isfinite(values[i])) tool_fail(TOOL_FAILURE, "%s: has a NaN or an infinity", where);
    }
    *rank = t->rank;
    memcpy(shape, t->shape, sizeof t->shape);
    tf_close(&file);
    free(path);
    return values;
}

/* [L, text_dim] or [1, L, text_dim], filled up with zeros to text_len as Wan does */
static float *wan_read_text(const wan_model *m, const char *where)
{
    int rank;
    int64_t shape[TF_MAX_RANK];
    float *values = wan_read(where, &rank, shape), *text = floats((size_t)m->text_len, (size_t)m->text_dim);
    const int64_t *last = shape + (rank == 3);
    if (rank < 2 || rank > 3 || (rank == 3 && shape[0] != 1) || last[1] != m->text_dim || last[0] > m->text_len ||
        last[0] < 1) {
        tool_fail(TOOL_FAILURE, "%s: a text embedding has shape [L, %d] with L from 1 to %d", where, m->text_dim,
                  m->text_len);
    }
    memset(text, 0, (size_t)m->text_len * (size_t)m->text_dim * sizeof *text);
    memcpy(text, values, (size_t)(last[0] * last[1]) * sizeof *text);
    free(values);
    return text;
}

/* The model's own words, one-hot, and which of the parts between semicolons they stand in. */
static float *wan_embed_prompt(const wan_model *m, const char *prompt)
{
    float *text = floats((size_t)m->text_len, (size_t)m->text_dim);
    const char *at = prompt;
    int32_t part = 0, token = 0, words = 0;
    const char *w;

    for (w = m->words; *w; w += strspn(w, " ")) w += strcspn(w, " "), ++words;
    if (words + m->parts != m->text_dim) {
        tool_fail(TOOL_FAILURE, "%s: metadata lists %d words and %d parts, but text_embedding.0.weight has %d columns",
                  m->path, words, m->parts, m->text_dim);
    }
    memset(text, 0, (size_t)m->text_len * (size_t)m->text_dim * sizeof *text);
    for (;;) {
        size_t count;
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
        if (!*w)
            tool_fail(TOOL_USAGE, "--prompt: unknown word '%.*s'; the model knows: %.2000s",
                      (int)(count < 40 ? count : 40), at, m->words);
        if (token == m->text_len) tool_fail(TOOL_USAGE, "--prompt: more than %d words", m->text_len);
        text[(int64_t)token * m->text_dim + index] = 1;
        text[(int64_t)token * m->text_dim + words + part] = 1;
        ++token;
        at += count;
    }
    return text;
}

#include "report.h" /* >>clips, >>dump, >>totals, >>table, >>files */

/* ==== >>main ============================================================================= */
static int32_t wan_list(const char *option, const char *text, int32_t limit, int32_t *values)
{
    int32_t count = 0;
    for (;;) {
        char *end;
        long value = strtol(text, &end, 10);
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
    int32_t layers[WAN_MAX_LISTED], steps[WAN_MAX_LISTED], layer_count, step_count, i, k;
    char name[64];

    if (o->dump) {
        if (!o->dump_layers) {
            for (layer_count = 0; layer_count < job->model.layers && layer_count < WAN_MAX_LISTED; ++layer_count)
                layers[layer_count] = layer_count;
        } else
            layer_count = wan_list("dump-layers", o->dump_layers, job->model.layers, layers);
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

/* Which runs use the GPU; what it cannot do. */
static void wan_choose_backends(wan_job *job)
{
    int32_t i;
    for (i = 0; i < job->run_count; ++i) {
        wan_run *run = &job->runs[i];
        const char *failure;
        run->is_cuda = (run->backend_choice < 0 ? job->o.backend : run->backend_choice) == 1;
        if (!run->is_cuda) continue;
        if (run->method == WAN_RASTER || run->method == WAN_TILES || run->method == WAN_ORACLE) {
            tool_fail(TOOL_USAGE, "run '%s': --backend cuda has no method %s (backend=cpu has)", run->label,
                      wan_method_name(run->method));
        }
        if (run->simd != SVG2_SIMD_BEST)
            tool_fail(TOOL_USAGE, "run '%s': simd is of the CPU, --backend cuda is not", run->label);
        if (job->device_name) continue;
        failure = device_check(&job->device_name);
        if (failure) tool_fail(DEVICE_IS_BUILT ? TOOL_FAILURE : TOOL_USAGE, "--backend cuda: %s", failure);
    }
}

/* Linux grants more memory than there is, and kills who uses it: hours later, and without a word. And what the GPU
   lacks for the last run is said before the first. */
static void wan_check_memory(const wan_job *job)
{
    double have = 0, text = job->model.text_len, dim = job->model.dim, values, bytes, most = 0, most_device = 0;
    size_t available = 0;
    int32_t i;
    values = (double)job->grid.tokens * (6 * dim + job->model.head_dim + (double)job->model.channels * WAN_PATCH) +
             text * (2.0 * job->model.text_dim + 6 * dim) +
             (double)job->count * (3 + job->run_count * (job->model.pixel_fold ? 2.0 : 1.0));
    for (i = 0; i < job->run_count; ++i) {
        const wan_run *run = &job->runs[i];
        bytes = (double)run->work_bytes + (double)run->state_bytes * WAN_BRANCHES * job->model.layers;
        if (run->is_cuda) {
            bytes += 16 * (double)job->grid.tokens * dim; /* q, k, v, out */
            if (bytes > most_device) most_device = bytes;
        } else if (bytes > most)
            most = bytes;
    }
    if (job->device_name) wan_expect_device(device_available(&available));
    if (most_device > (double)available) {
        tool_fail(TOOL_FAILURE, "%lld tokens need %.1f GiB of the GPU's memory, %.1f are free",
                  (long long)job->grid.tokens, most_device / (1 << 30), (double)available / (1 << 30));
    }
    bytes = 4 * values + most;
#ifdef _SC_PHYS_PAGES
    have = (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE);
#endif
    if (have > 0 && bytes > have) {
        tool_fail(TOOL_FAILURE, "%lld tokens need %.1f GiB of memory, this machine has %.1f",
                  (long long)job->grid.tokens, bytes / (1 << 30), have / (1 << 30));
    }
}

/* What clip.h would refuse in the end (its limits, rounded down) is refused before the work. */
static void wan_check_pictures(const wan_job *job)
{
    const double width = job->o.width, height = job->o.height, scale = job->o.scale, area = (1 << 30) / 3,
                 runs = job->run_count < 8 ? job->run_count : 8;
    const double sheet_width = 8 * (width * scale + 6) + 400, sheet_height = runs * (height * scale + 200) + 100,
                 gif_width = runs * (width * (scale + 1) + 160) + 100, gif_height = height * (scale + 1) + 300;
    if (width > CLIP_MAX_EXTENT || height > CLIP_MAX_EXTENT)
        tool_fail(TOOL_USAGE, "--width, --height: a clip has at most %d", CLIP_MAX_EXTENT);
    if (width * scale > INT16_MAX || height * scale > INT16_MAX || sheet_width * sheet_height > area ||
        gif_width > UINT16_MAX || gif_height > UINT16_MAX || gif_width * gif_height > area) {
        tool_fail(TOOL_USAGE, "--scale %d: the pictures would be too large (--out none writes none)", job->o.scale);
    }
}

static void wan_open_input(wan_job *job)
{
    wan_options *o = &job->o;
    wan_model *m = &job->model;
    int32_t fold, i;
    int rank;
    int64_t shape[TF_MAX_RANK];

    wan_model_open(m, o->model, o->heads);
    fold = m->pixel_fold ? m->pixel_fold : 1;
    if (o->height % (2 * fold) || o->width % (2 * fold)) {
        tool_fail(TOOL_USAGE, "--%s: %d does not divide into patches of %d",
                  o->height % (2 * fold) ? "height" : "width", o->height % (2 * fold) ? o->height : o->width, 2 * fold);
    }
    if ((int64_t)o->frames * (o->height / fold / 2) * (o->width / fold / 2) > INT32_MAX - 1024) {
        tool_fail(TOOL_USAGE, "--frames, --height, --width: too many tokens");
    }
    if (!m->pixel_fold && !o->latent)
        tool_fail(TOOL_USAGE, "%s: its latents are for Wan's VAE: say with --latent DIR where to put them", o->model);
    if (o->low_noise) {
        wan_model_open(&job->late, o->low_noise, o->heads);
        job->has_late = 1;
        if (job->late.channels != m->channels || job->late.dim != m->dim || job->late.layers != m->layers ||
            job->late.heads != m->heads || job->late.ffn_dim != m->ffn_dim || job->late.text_dim != m->text_dim ||
            job->late.text_len != m->text_len || job->late.freq_dim != m->freq_dim) {
            tool_fail(TOOL_FAILURE, "%s: not of the same shape as %s", o->low_noise, o->model);
        }
    }
    if (o->text && o->prompt) tool_fail(TOOL_USAGE, "--text and --prompt exclude each other");
    job->grid.frames = o->frames, job->grid.height = o->height / fold / 2, job->grid.width = o->width / fold / 2;
    job->grid.tokens = (int64_t)job->grid.frames * job->grid.height * job->grid.width;
    job->count = (size_t)job->grid.tokens * (size_t)m->channels * WAN_PATCH;
    for (i = 0; i < job->run_count; ++i) /* what is wrong with the last run is said before the first */
        wan_run_prepare(&job->runs[i], m, &job->grid, o->threads);
    wan_check_memory(job);
    if (m->pixel_fold && strcmp(o->out, "none") != 0) wan_check_pictures(job);
    if (o->text)
        job->text = wan_read_text(m, o->text);
    else if (m->words) {
        if (!o->prompt) {
            o->prompt = "red striped disc; blue dotted square; grey waves pan-left";
            job->is_default_prompt = 1;
        }
        job->text = wan_embed_prompt(m, o->prompt);
    } else {
        tool_fail(TOOL_USAGE, "%s lists no words: give the text embedding of the prompt with --text F", o->model);
    }
    if (o->negative)
        job->negative = wan_read_text(m, o->negative);
    else {
        job->negative = floats((size_t)m->text_len, (size_t)m->text_dim);
        memset(job->negative, 0, (size_t)m->text_len * (size_t)m->text_dim * sizeof *job->negative);
    }
    wan_grid_open(&job->grid, m, job->grid.frames, job->grid.height, job->grid.width);
    if (o->noise) {
        job->noise = wan_read(o->noise, &rank, shape);
        if (rank != 4 || shape[0] != m->channels || shape[1] != o->frames || shape[2] != o->height / fold ||
            shape[3] != o->width / fold) {
            tool_fail(TOOL_FAILURE, "%s: the noise needs shape [%d, %d, %d, %d]", o->noise, m->channels, o->frames,
                      o->height / fold, o->width / fold);
        }
    } else {
        job->noise = floats(job->count, 1);
        wan_noise(job->noise, job->count, o->seed);
    }
    wan_work_open(&job->work, m, &job->grid);
    wan_model_check(m);
    if (job->has_late) wan_model_check(&job->late);
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
    size_t count = wan_option_table(&job.o, options);
    int32_t i;
    int is_written = 1;

    tool_start("wan");
    wan_defaults(&job.o);
    job.run_count = tool_parse(argc - 1, argv + 1, options, count, words, WAN_MAX_RUNS);
    if (job.o.is_help) {
        printf(
            "usage: wan [RUN ...] [options]\n\n"
            "Generates the same clip once per RUN and compares them with the first. A RUN is [NAME:]METHOD[,key=value "
            "...]\n"
            "  METHOD   %s\n"
            "           svg2: clusters; centroid: clusters chosen by what their centroids see; raster, tiles: blocks "
            "of\n"
            "           neighbouring tokens; oracle: clusters chosen by exact mass\n"
            "           svg1: bands in space or in time; adaspa: blocks with the largest exact mass, found at some "
            "steps\n"
            "           blasst, energy: dense with skip=constant, skip=energy\n"
            "  keys     tail=0|1|2 density top-p min-keep target-error dense-above route=mass|spread budget=row|head\n"
            "           query-clusters key-clusters init-iters step-iters dense-steps dense-layers init-on-dense simd "
            "cold=1\n"
            "           backend=cpu|cuda (as --backend says)\n"
            "           svg1: keep sample-rows first-frame=0|1 block   adaspa: sparsity mass-target block "
            "search-steps=4+12\n"
            "           tiles left out in any method: skip=none|constant|energy|recall threshold energy-lambda recall\n"
            "           order=natural|diagonal seed-lse=0|1\n"
            "Without any: dense svg2.\n",
            WAN_METHODS);
        tool_print_options(options, count);
        return 0;
    }
    if (!job.run_count) words[job.run_count++] = "dense", words[job.run_count++] = "svg2";
    for (i = 0; i < job.run_count; ++i) wan_run_parse(&job.runs[i], words[i], job.o.steps);
    wan_name_runs(&job);
    wan_choose_backends(&job);
#  ifdef _OPENMP
    omp_set_num_threads(job.o.threads);
#  endif
    wan_open_input(&job);
    wan_open_outputs(&job);
    if (job.is_default_prompt) tool_notice("no --prompt given; this one: \"%s\"", job.o.prompt);
    printf("%s: %d layers, %d heads of %d, %lld tokens (%d x %d x %d), %d steps, guidance %g\n", job.o.model,
           job.model.layers, job.model.heads, job.model.head_dim, (long long)job.grid.tokens, job.grid.frames,
           job.grid.height, job.grid.width, job.o.steps, job.o.guidance);
    if (job.device_name) printf("self-attention with backend cuda: %s\n", job.device_name);
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
            svg2_error err;
            wan_expect(svg2_compare(job.latents[i], job.latents[0], job.count, 0, &metrics, &err), &err);
            job.runs[i].psnr = metrics.psnr;
        }
    }
    wan_print_table(&job);

    for (i = 0; i < job.run_count; ++i) {
        if (job.latent_files[i]) wan_write_latent(&job, job.latent_files[i], job.latents[i]);
        if (job.clip_files[i]) is_written &= clip_write_y4m(job.clip_files[i], &job.clips[i], job.o.fps);
    }
#  if !defined(SVG2_TOOL_NO_PNG) || !defined(SVG2_TOOL_NO_GIF)
    {
        const char *labels[8];
        int32_t shown = job.run_count < 8 ? job.run_count : 8;
        char text[8][128];
        for (i = 0; i < shown; ++i) {
            wan_totals t = wan_total(&job.runs[i], job.o.steps);
            if (i && isfinite(job.runs[i].psnr))
                snprintf(text[i], sizeof text[i], "%.80s\n%.1f %% of pairs, %.1f dB", job.runs[i].label,
                         100 * t.all_pairs, job.runs[i].psnr);
            else if (i)
                snprintf(text[i], sizeof text[i], "%.80s\n%.1f %% of pairs, equal", job.runs[i].label,
                         100 * t.all_pairs);
            else
                snprintf(text[i], sizeof text[i], "%.80s", job.runs[i].label);
            labels[i] = text[i];
        }
#    ifndef SVG2_TOOL_NO_PNG
        if (job.sheet) is_written &= clip_write_sheet(job.sheet, job.clips, labels, shown, 8, job.o.scale);
#    endif
#    ifndef SVG2_TOOL_NO_GIF
        if (job.gif) is_written &= clip_write_gif(job.gif, job.clips, labels, shown, job.o.scale + 1, job.o.fps);
#    endif
    }
#  endif
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
