/* shim_cuda.c - svg2_cuda.cu as a shared library of flat functions, for compare_cuda.py, which calls it
   through ctypes with the addresses of its own tensors. Every function that can fail returns NULL, or a
   sentence that says why. All tensors are bf16, [1, heads, tokens, dim], in device memory. */
#include "../../svg2.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct shim_call {
    svg2_desc desc;
    svg2_state state;
} shim_call;

const char *shim_check(void);
const char *shim_open(shim_call **call, int32_t heads, int32_t tokens, int32_t dim, int32_t query_clusters,
                      int32_t key_clusters, double density, int32_t tail, size_t *state_bytes,
                      size_t *work_bytes);
const char *shim_start(shim_call *call, void *state_memory, size_t state_bytes);
const char *shim_attend(shim_call *call, void *stream, int32_t step, const void *q, const void *k,
                        const void *v, void *out, void *stats, void *work, size_t work_bytes);
size_t shim_stats_bytes(void);
double shim_density(const void *host_stats, int32_t heads);
void shim_close(shim_call *call);
const char *shim_blocks(void *stream, int32_t heads, int32_t tokens, int32_t dim, int32_t query_blocks,
                        int32_t key_blocks, const int32_t *query_offset, const int32_t *key_offset,
                        const uint8_t *map, const void *q, const void *k, const void *v, void *out,
                        void *work, size_t *work_bytes);
const char *shim_kmeans(void *stream, int32_t heads, int32_t tokens, int32_t dim, int32_t clusters,
                        int32_t iterations, const void *x, const float *start, float *centroid, float *mean,
                        int32_t *label, int32_t *size, void *work, size_t *work_bytes);

static const char *sentence(svg2_result r, const svg2_error *err)
{
    return r == SVG2_OK ? 0 : err->text && err->text[0] ? err->text : svg2_result_string(r);
}

const char *shim_check(void)
{
    svg2_error err;
    return sentence(svg2_cuda_check(&err), &err);
}

const char *shim_open(shim_call **call, int32_t heads, int32_t tokens, int32_t dim, int32_t query_clusters,
                      int32_t key_clusters, double density, int32_t tail, size_t *state_bytes,
                      size_t *work_bytes)
{
    const svg2_backend cuda = svg2_cuda_backend(0);
    svg2_error err;
    svg2_result r;
    shim_call *c = (shim_call *)calloc(1, sizeof *c);
    if (!c) return "out of memory";
    c->desc.heads = heads;
    c->desc.tokens = tokens;
    c->desc.head_dim = dim;
    c->desc.query_clusters = query_clusters;
    c->desc.key_clusters = key_clusters;
    c->desc.q.dtype = c->desc.k.dtype = c->desc.v.dtype = c->desc.out.dtype = SVG2_BF16;
    c->desc.tail = (svg2_tail_kind)tail;
    c->desc.density = (float)density;
    if (density <= 0) c->desc.method = SVG2_METHOD_DENSE;
    r = svg2_resolve(&c->desc, &err);
    *state_bytes = svg2_state_bytes(&c->desc);
    *work_bytes = svg2_workspace_bytes(&cuda, &c->desc);
    *call = c;
    return sentence(r, &err);
}

const char *shim_start(shim_call *call, void *state_memory, size_t state_bytes)
{
    svg2_error err;
    return sentence(svg2_state_init(&call->state, &call->desc, state_memory, state_bytes, &err), &err);
}

const char *shim_attend(shim_call *call, void *stream, int32_t step, const void *q, const void *k,
                        const void *v, void *out, void *stats, void *work, size_t work_bytes)
{
    const svg2_backend cuda = svg2_cuda_backend(stream);
    svg2_error err;
    return sentence(svg2_attend(&cuda, &call->desc, &call->state, step, q, k, v, out, 0,
                                (svg2_head_stats *)stats, work, work_bytes, &err),
                    &err);
}

size_t shim_stats_bytes(void) { return sizeof(svg2_head_stats); }

double shim_density(const void *host_stats, int32_t heads)
{
    const svg2_head_stats *s = (const svg2_head_stats *)host_stats;
    double sum = 0;
    int32_t h;
    for (h = 0; h < heads; ++h) sum += (double)s[h].density;
    return sum / heads;
}

void shim_close(shim_call *call) { free(call); }

/* Attention over a map of blocks of neighbouring tokens. work NULL: only tells *work_bytes. */
const char *shim_blocks(void *stream, int32_t heads, int32_t tokens, int32_t dim, int32_t query_blocks,
                        int32_t key_blocks, const int32_t *query_offset, const int32_t *key_offset,
                        const uint8_t *map, const void *q, const void *k, const void *v, void *out,
                        void *work, size_t *work_bytes)
{
    const svg2_backend cuda = svg2_cuda_backend(stream);
    svg2_attention_desc d = SVG2_ZERO;
    svg2_error err;
    d.batch = 1;
    d.heads = d.heads_kv = heads;
    d.tokens = d.tokens_kv = tokens;
    d.head_dim = dim;
    d.scale = 1 / sqrtf((float)dim);
    d.q = q;
    d.k = k;
    d.v = v;
    d.out = out;
    d.q_layout.dtype = d.k_layout.dtype = d.v_layout.dtype = d.out_layout.dtype = SVG2_BF16;
    d.query_blocks = query_blocks;
    d.key_blocks = key_blocks;
    d.query_offset = query_offset;
    d.key_offset = key_offset;
    d.map = map;
    if (!work) {
        *work_bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_ATTENTION, &d);
        return 0;
    }
    return sentence(svg2_attention(&cuda, &d, work, *work_bytes, &err), &err);
}

/* work NULL: only tells *work_bytes. */
const char *shim_kmeans(void *stream, int32_t heads, int32_t tokens, int32_t dim, int32_t clusters,
                        int32_t iterations, const void *x, const float *start, float *centroid, float *mean,
                        int32_t *label, int32_t *size, void *work, size_t *work_bytes)
{
    const svg2_backend cuda = svg2_cuda_backend(stream);
    svg2_kmeans_desc d = SVG2_ZERO;
    svg2_error err;
    d.batch = 1;
    d.heads = heads;
    d.tokens = tokens;
    d.head_dim = dim;
    d.clusters = clusters;
    d.iterations = iterations;
    d.x = x;
    d.layout.dtype = SVG2_BF16;
    d.start = start;
    d.centroid = centroid;
    d.mean = mean;
    d.label = label;
    d.size = size;
    if (!work) {
        *work_bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_KMEANS, &d);
        return 0;
    }
    return sentence(svg2_kmeans(&cuda, &d, work, *work_bytes, &err), &err);
}
