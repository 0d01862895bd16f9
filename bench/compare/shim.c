/* shim.c - svg2.h as a shared library of flat functions, so that compare.py can call it through ctypes without
   repeating the layout of any struct. Every function that can fail returns NULL, or a sentence that says why.
 */

#define _XOPEN_SOURCE 600 /* posix_memalign */

#define SVG2_IMPLEMENTATION
#define SVG2_OPENMP
#include "../../svg2.h"

#include "../synth.h"

#include <stdlib.h>
#include <string.h>

typedef struct shim_call {
    svg2_parallel parallel;
    svg2_backend backend;
    svg2_desc desc;
    svg2_state state, kept;
    void *state_memory, *kept_memory, *workspace;
    size_t state_bytes, bytes;
    svg2_head_stats stats[64];
} shim_call;

typedef struct shim_kmeans {
    svg2_parallel parallel;
    svg2_backend backend;
    svg2_kmeans_desc desc;
    void *workspace;
    size_t bytes;
} shim_kmeans;

/* Zeroed, so that no call pays for the first touch of a page. */
static void *shim_memory(size_t bytes)
{
    void *memory = 0;
    if (bytes == SIZE_MAX) return 0;
    bytes = (bytes / SVG2_ALIGN + 1) * SVG2_ALIGN;
    if (posix_memalign(&memory, SVG2_ALIGN, bytes)) return 0;
    return memset(memory, 0, bytes);
}

static const char *shim_error(svg2_result result, const svg2_error *err)
{
    if (result == SVG2_OK) return 0;
    return err->text ? err->text : svg2_result_string(result);
}

void shim_synth(int32_t frames, int32_t height, int32_t width, int32_t heads, int32_t dim, double drift,
                float *q, float *k, float *v);
const char *shim_open(shim_call **call, int32_t threads, int32_t heads, int32_t tokens, int32_t dim,
                      double density, int32_t tail);
const char *shim_attend(shim_call *call, int32_t step, const float *q, const float *k, const float *v,
                        float *out);
void shim_keep(shim_call *call);
void shim_restore(shim_call *call);
double shim_density(const shim_call *call);
void shim_close(shim_call *call);
const char *shim_kmeans_open(shim_kmeans **kmeans, int32_t threads, int32_t tokens, int32_t dim,
                             int32_t clusters);
const char *shim_kmeans_run(shim_kmeans *kmeans, const float *x, const float *start, int32_t iterations,
                            float *centroid, float *mean, int32_t *label, int32_t *size);
void shim_kmeans_close(shim_kmeans *kmeans);

void shim_synth(int32_t frames, int32_t height, int32_t width, int32_t heads, int32_t dim, double drift,
                float *q, float *k, float *v)
{
    synth_video s;
    s.frames = frames;
    s.height = height;
    s.width = width;
    s.heads = heads;
    s.dim = dim;
    s.seed = 1;
    s.drift = drift;
    synth_make(&s, q, k, v);
}

/* density > 0: that; 0: dense; < 0: SVG2's own rule, top-p 0.9. 300 query clusters and 1000 key clusters. */
const char *shim_open(shim_call **call, int32_t threads, int32_t heads, int32_t tokens, int32_t dim,
                      double density, int32_t tail)
{
    shim_call *c = (shim_call *)calloc(1, sizeof *c);
    svg2_error err;
    const char *text;
    if (!c) return "out of memory";
    if (heads > 64) return "at most 64 heads";
    c->parallel = svg2_parallel_openmp(threads);
    c->backend = svg2_cpu_backend(&c->parallel);
    c->desc.heads = heads;
    c->desc.tokens = tokens;
    c->desc.head_dim = dim;
    c->desc.method = density == 0 ? SVG2_METHOD_DENSE : SVG2_METHOD_SVG2;
    c->desc.tail = (svg2_tail_kind)tail;
    c->desc.query_clusters = 300;
    c->desc.key_clusters = 1000;
    c->desc.density = density > 0 ? (float)density : 0;
    text = shim_error(svg2_resolve(&c->desc, &err), &err);
    if (text) return text;
    c->state_bytes = density == 0 ? 0 : svg2_state_bytes(&c->desc);
    c->bytes = svg2_workspace_bytes(&c->backend, &c->desc);
    c->state_memory = shim_memory(c->state_bytes);
    c->kept_memory = shim_memory(c->state_bytes);
    c->workspace = shim_memory(c->bytes);
    if (!c->state_memory || !c->kept_memory || !c->workspace) return "out of memory";
    *call = c;
    return shim_error(svg2_state_init(&c->state, &c->desc, c->state_memory, c->state_bytes, &err), &err);
}

const char *shim_attend(shim_call *c, int32_t step, const float *q, const float *k, const float *v, float *out)
{
    svg2_error err;
    return shim_error(svg2_attend(&c->backend, &c->desc, &c->state, step, q, k, v, out, 0, c->stats,
                                  c->workspace, c->bytes, &err),
                      &err);
}

/* Remember the clusters, and go back to them: then every timed call is the same denoising step. */
void shim_keep(shim_call *c)
{
    c->kept = c->state;
    memcpy(c->kept_memory, c->state_memory, c->state_bytes);
}

void shim_restore(shim_call *c)
{
    c->state = c->kept;
    memcpy(c->state_memory, c->kept_memory, c->state_bytes);
}

double shim_density(const shim_call *c)
{
    double sum = 0;
    int32_t h;
    for (h = 0; h < c->desc.heads; ++h) sum += c->stats[h].density;
    return sum / c->desc.heads;
}

void shim_close(shim_call *c)
{
    free(c->state_memory);
    free(c->kept_memory);
    free(c->workspace);
    free(c);
}

const char *shim_kmeans_open(shim_kmeans **kmeans, int32_t threads, int32_t tokens, int32_t dim,
                             int32_t clusters)
{
    shim_kmeans *c = (shim_kmeans *)calloc(1, sizeof *c);
    if (!c) return "out of memory";
    c->parallel = svg2_parallel_openmp(threads);
    c->backend = svg2_cpu_backend(&c->parallel);
    c->desc.batch = c->desc.heads = 1;
    c->desc.tokens = tokens;
    c->desc.head_dim = dim;
    c->desc.clusters = clusters;
    c->desc.iterations = 1;
    c->bytes = svg2_stage_workspace_bytes(&c->backend, SVG2_STAGE_KMEANS, &c->desc);
    c->workspace = shim_memory(c->bytes);
    if (!c->workspace) return "out of memory";
    *kmeans = c;
    return 0;
}

/* start [clusters, dim] is relative to the mean of x, as in svg2_kmeans. */
const char *shim_kmeans_run(shim_kmeans *c, const float *x, const float *start, int32_t iterations,
                            float *centroid, float *mean, int32_t *label, int32_t *size)
{
    svg2_error err;
    c->desc.x = x;
    c->desc.start = start;
    c->desc.iterations = iterations;
    c->desc.centroid = centroid;
    c->desc.mean = mean;
    c->desc.label = label;
    c->desc.size = size;
    return shim_error(svg2_kmeans(&c->backend, &c->desc, c->workspace, c->bytes, &err), &err);
}

void shim_kmeans_close(shim_kmeans *c)
{
    free(c->workspace);
    free(c);
}
