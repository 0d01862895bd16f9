/* plan.h - MIT licence - what a call on the GPU planned (svg2_plan), as arrays of the host; after tool.h */
#ifndef PLAN_H_INCLUDED
#define PLAN_H_INCLUDED

#include "device.h"

static void *plan_array(const void *device, size_t heads, int32_t count, size_t size)
{
    void *host = device ? tool_allocate(heads * (size_t)count, size) : NULL;
    const char *failure = device ? device_get(host, device, heads * (size_t)count * size) : NULL;
    if (failure) tool_fail(TOOL_FAILURE, "CUDA: %s", failure);
    return host;
}

/* device: of svg2_plan_view with a workspace on the GPU. No more of it is copied: it may have gigabytes. */
static svg2_plan plan_from_device(const svg2_plan *device, const svg2_desc *d)
{
    const size_t word = 4, heads = (size_t)d->batch * (size_t)d->heads,
                 heads_kv = (size_t)d->batch * (size_t)d->heads_kv, dim = (size_t)d->head_dim * word;
    const int32_t query_clusters = device->query_clusters, key_clusters = device->key_clusters;
    svg2_plan p = *device;
    p.query_label = (const int32_t *)plan_array(device->query_label, heads, d->tokens, word);
    p.query_order = (const int32_t *)plan_array(device->query_order, heads, d->tokens, word);
    p.query_offset = (const int32_t *)plan_array(device->query_offset, heads, p.query_blocks + 1, word);
    p.query_centroid = (const float *)plan_array(device->query_centroid, heads, query_clusters, dim);
    p.query_mean = (const float *)plan_array(device->query_mean, heads, 1, dim);
    p.key_label = (const int32_t *)plan_array(device->key_label, heads_kv, d->tokens_kv, word);
    p.key_order = (const int32_t *)plan_array(device->key_order, heads_kv, d->tokens_kv, word);
    p.key_offset = (const int32_t *)plan_array(device->key_offset, heads_kv, p.key_blocks + 1, word);
    p.key_centroid = (const float *)plan_array(device->key_centroid, heads_kv, key_clusters, dim);
    p.key_mean = (const float *)plan_array(device->key_mean, heads_kv, 1, dim);
    p.map = (const uint8_t *)plan_array(device->map, heads * (size_t)p.query_blocks, p.key_blocks, 1);
    return p;
}

static void plan_free(svg2_plan *p)
{
    const void *all[] = {p->query_label, p->query_order, p->query_offset, p->query_centroid, p->query_mean, p->map,
                         p->key_label,   p->key_order,   p->key_offset,   p->key_centroid,   p->key_mean};
    size_t i;
    for (i = 0; i < sizeof all / sizeof *all; ++i) free((void *)(uintptr_t)all[i]);
    memset(p, 0, sizeof *p);
}

#endif
