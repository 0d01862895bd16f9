/* synth.h - MIT licence - Q, K and V with the structure of a trained video diffusion transformer, from a procedural scene

   Part of examples/svg2.c. White noise tells nothing about sparse attention: there is nothing to group and nothing to
   skip. What makes real attention sparse is modelled here instead:

     scene     textured background under a panning camera, the same texture at distant places; moving objects that hide
               one another, several of the same kind. A token knows what it shows: the identity of the surface, where on
               the surface it lies, the light there, and noise. That is its content vector.
     head      q and k are projections of the same content (so like attends to like), plus a constant that RoPE turns
               into a preference for near positions along its axes. How much of each makes the kind of head: semantic,
               spatial (its own frame), temporal (its own place), local, diffuse.
     model     RMSNorm of q and k with a gain per head, RoPE over t, h, w as Wan splits it, a common mean on k,
               v a projection of the same content. Text tokens carry identities of objects and no position.

   Everything is a function of the seed: the random numbers are hashes of counters. */
#ifndef SYNTH_H_INCLUDED
#define SYNTH_H_INCLUDED

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define SYNTH_CONTENT 48  /* length of a content vector                                          */
#define SYNTH_SURFACES 12 /* identities: the first are textures of the background, then objects  */
#define SYNTH_TEXTURES 7
#define SYNTH_OBJECTS 7
#define SYNTH_IDENTITY 12 /* features of the identity, then as many of the texture, then others  */
#define SYNTH_RANK 10     /* features that q and k of one head read                              */
#define SYNTH_FIELDS 8    /* of light and the like: smooth in space and time                     */
#define SYNTH_MAX_DIM 256

typedef struct synth_desc {
    int32_t  batch, heads, heads_kv, frames, height, width, dim, text;
    uint64_t seed;
} synth_desc;

/* The content of one batch entry, [tokens, SYNTH_CONTENT]; made once, used by all heads. */
typedef struct synth_scene {
    synth_desc desc;
    uint64_t   key; /* of this batch entry */
    int64_t    tokens;
    float     *content;
} synth_scene;

typedef enum synth_part { SYNTH_Q, SYNTH_K, SYNTH_V } synth_part;

/* ---- random numbers --------------------------------------------------------------------- */
static uint64_t synth_hash(uint64_t key, uint64_t stream, uint64_t counter)
{
    uint64_t x = key * 0x9e3779b97f4a7c15u ^ stream * 0xd1b54a32d192ed03u ^ counter * 0x8cb92ba72f3d8dd7u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u; /* splitmix64's finaliser, twice: the products above mix only upwards */
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    x = (x ^ x >> 31) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 29) * 0x94d049bb133111ebu;
    return x ^ x >> 32;
}

/* (0, 1) */
static double synth_uniform(uint64_t key, uint64_t stream, uint64_t counter)
{
    return ((double)(synth_hash(key, stream, counter) >> 11) + 0.5) / 9007199254740992.0;
}

static double synth_between(double low, double high, uint64_t key, uint64_t stream, uint64_t counter)
{
    return low + (high - low) * synth_uniform(key, stream, counter);
}

static double synth_normal(uint64_t key, uint64_t stream, uint64_t counter)
{
    double radius = sqrt(-2 * log(synth_uniform(key, stream, 2 * counter)));
    return radius * cos(6.283185307179586 * synth_uniform(key, stream, 2 * counter + 1));
}

/* Streams, so that no two uses share numbers. */
enum {
    SYNTH_STREAM_SURFACE = 1,
    SYNTH_STREAM_CELL,
    SYNTH_STREAM_OBJECT,
    SYNTH_STREAM_CAMERA,
    SYNTH_STREAM_LIGHT,
    SYNTH_STREAM_NOISE,
    SYNTH_STREAM_TEXT,
    SYNTH_STREAM_HEAD,
    SYNTH_STREAM_MATRIX
};

/* ---- scene ------------------------------------------------------------------------------ */
/* Where a point of the picture lies: which surface, and which coordinates on it (periods are 1). */
typedef struct synth_point {
    int    surface;
    double u, v;
} synth_point;

/* A way that turns round at both ends of [0, length]. */
static double synth_bounce(double x, double length)
{
    double phase = fmod(fabs(x), 2 * length);
    return phase < length ? phase : 2 * length - phase;
}

static synth_point synth_look(const synth_desc *desc, uint64_t key, double t, double y, double x)
{
    double      extent = desc->height < desc->width ? desc->height : desc->width;
    synth_point point;
    double      cell_extent = 0.34 * extent + 1, best = 1e30, center_y = 0, center_x = 0;
    double      world_y, world_x, angle, dy, dx;
    int64_t     row, column, i, j;
    int         object;

    for (object = 0; object < SYNTH_OBJECTS; ++object) { /* the first one is the nearest */
        uint64_t id = (uint64_t)object * 16;
        double   radius = extent * synth_between(0.09, 0.20, key, SYNTH_STREAM_OBJECT, id);
        double   speed_y = extent * synth_between(-0.05, 0.05, key, SYNTH_STREAM_OBJECT, id + 1);
        double   speed_x = extent * synth_between(-0.08, 0.08, key, SYNTH_STREAM_OBJECT, id + 2);
        double   start_y = desc->height * synth_uniform(key, SYNTH_STREAM_OBJECT, id + 3);
        double   start_x = desc->width * synth_uniform(key, SYNTH_STREAM_OBJECT, id + 4);
        dy = (y - synth_bounce(start_y + speed_y * t, desc->height)) / radius;
        dx = (x - synth_bounce(start_x + speed_x * t, desc->width)) / radius;
        if (synth_hash(key, SYNTH_STREAM_OBJECT, id + 5) & 1 ? dy * dy + dx * dx < 1 : fabs(dy) < 0.8 && fabs(dx) < 1.1) {
            point.surface = SYNTH_TEXTURES + object % (SYNTH_SURFACES - SYNTH_TEXTURES); /* some are of the same kind */
            point.u = dx / 4;
            point.v = dy / 4;
            return point;
        }
    }
    /* Background: cells around jittered points of a grid that the camera passes over. */
    world_y = y + extent * synth_between(-0.015, 0.015, key, SYNTH_STREAM_CAMERA, 0) * t + 1000 * cell_extent;
    world_x = x + extent * synth_between(0.01, 0.04, key, SYNTH_STREAM_CAMERA, 1) * t + 1000 * cell_extent;
    row = (int64_t)floor(world_y / cell_extent);
    column = (int64_t)floor(world_x / cell_extent);
    point.surface = 0;
    for (i = row - 1; i <= row + 1; ++i) {
        for (j = column - 1; j <= column + 1; ++j) {
            uint64_t id = (uint64_t)(i * 4096 + j) * 4;
            double   at_y = ((double)i + synth_uniform(key, SYNTH_STREAM_CELL, id)) * cell_extent;
            double   at_x = ((double)j + synth_uniform(key, SYNTH_STREAM_CELL, id + 1)) * cell_extent;
            double   distance = (world_y - at_y) * (world_y - at_y) + (world_x - at_x) * (world_x - at_x);
            if (distance < best) {
                best = distance;
                point.surface = (int)(synth_hash(key, SYNTH_STREAM_CELL, id + 2) % SYNTH_TEXTURES);
                center_y = at_y;
                center_x = at_x;
            }
        }
    }
    angle = synth_between(0, 3.14, key, SYNTH_STREAM_SURFACE, (uint64_t)point.surface);
    dy = (world_y - center_y) / (0.5 * extent + 4);
    dx = (world_x - center_x) / (0.5 * extent + 4);
    point.u = cos(angle) * dx + sin(angle) * dy;
    point.v = cos(angle) * dy - sin(angle) * dx;
    return point;
}

/* What the surfaces look like, in content space: a mean and one direction per texture function. */
#define SYNTH_TEXTURE_TERMS 8
typedef struct synth_surface {
    float identity[SYNTH_CONTENT], term[SYNTH_TEXTURE_TERMS][SYNTH_CONTENT];
} synth_surface;

static void synth_add_point(float *content, const synth_surface *surface, synth_point point, double weight)
{
    double terms[SYNTH_TEXTURE_TERMS], u = 6.283185307179586 * point.u, v = 6.283185307179586 * point.v;
    int    i, m;
    terms[0] = sin(u), terms[1] = cos(u), terms[2] = sin(v), terms[3] = cos(v);
    terms[4] = 0.6 * sin(2 * u), terms[5] = 0.6 * cos(2 * v), terms[6] = 0.6 * sin(u + v), terms[7] = 0.6 * cos(u - v);
    for (m = 0; m < SYNTH_CONTENT; ++m) {
        double value = surface->identity[m];
        for (i = 0; i < SYNTH_TEXTURE_TERMS; ++i) value += 0.40 * terms[i] * (double)surface->term[i][m];
        content[m] += (float)(weight * value);
    }
}

/* Fill scene->content. Returns 0 when memory is short. */
static int synth_scene_create(synth_scene *scene, const synth_desc *desc, int32_t batch_entry)
{
    synth_surface *surfaces = (synth_surface *)malloc(SYNTH_SURFACES * sizeof *surfaces);
    float          light[SYNTH_FIELDS][SYNTH_CONTENT];
    double         unit = 1 / sqrt((double)SYNTH_IDENTITY);
    int64_t        video = (int64_t)desc->frames * desc->height * desc->width, s;
    uint64_t       key;
    int            i, k, m;

    scene->desc = *desc;
    scene->key = key = synth_hash(desc->seed, 0, (uint64_t)batch_entry);
    scene->tokens = video + desc->text;
    scene->content = (float *)calloc((size_t)scene->tokens * SYNTH_CONTENT, sizeof(float));
    if (!surfaces || !scene->content) {
        free(surfaces);
        free(scene->content);
        return 0;
    }
    memset(surfaces, 0, SYNTH_SURFACES * sizeof *surfaces);
    for (i = 0; i < SYNTH_SURFACES; ++i) {
        for (m = 0; m < SYNTH_IDENTITY; ++m) {
            uint64_t id = (uint64_t)(i * 64 + m) * 16;
            surfaces[i].identity[m] = (float)(unit * synth_normal(desc->seed, SYNTH_STREAM_SURFACE, 1000 + id));
            for (k = 0; k < SYNTH_TEXTURE_TERMS; ++k) {
                surfaces[i].term[k][SYNTH_IDENTITY + m] =
                    (float)(unit * synth_normal(desc->seed, SYNTH_STREAM_SURFACE, 1001 + id + (uint64_t)k));
            }
        }
    }
    for (k = 0; k < SYNTH_FIELDS; ++k) {
        for (m = 0; m < SYNTH_CONTENT; ++m) {
            light[k][m] = (float)(synth_normal(desc->seed, SYNTH_STREAM_LIGHT, (uint64_t)(k * 64 + m)) /
                                  sqrt((double)SYNTH_CONTENT));
        }
    }
    for (s = 0; s < scene->tokens; ++s) {
        float *content = scene->content + s * SYNTH_CONTENT;
        double noise = 1.2;
        if (s < video) {
            int64_t x = s % desc->width, y = s / desc->width % desc->height, t = s / desc->width / desc->height;
            double  ys = (double)y / desc->height, xs = (double)x / desc->width, ts = (double)t / (desc->frames + 4.0);
            double  bright[SYNTH_FIELDS];
            for (k = 0; k < 4; ++k) { /* a token is a patch: at an edge it shows both sides */
                synth_point point =
                    synth_look(desc, key, (double)t, (double)y + 0.5 * (k >> 1), (double)x + 0.5 * (k & 1));
                synth_add_point(content, &surfaces[point.surface], point, 0.25);
            }
            for (k = 0; k < SYNTH_FIELDS; ++k) {
                bright[k] = sin(synth_between(2, 7, key, SYNTH_STREAM_LIGHT, 5000 + 4 * (uint64_t)k) * xs +
                                synth_between(2, 7, key, SYNTH_STREAM_LIGHT, 5001 + 4 * (uint64_t)k) * ys +
                                synth_between(-5, 5, key, SYNTH_STREAM_LIGHT, 5002 + 4 * (uint64_t)k) * ts +
                                synth_between(0, 6.28, key, SYNTH_STREAM_LIGHT, 5003 + 4 * (uint64_t)k));
                for (m = 0; m < SYNTH_CONTENT; ++m) content[m] += (float)(0.5 * bright[k] * (double)light[k][m]);
            }
        } else { /* a word: one object, a share of another, and what only words have */
            uint64_t id = (uint64_t)(s - video) * 4;
            int      first = (int)(synth_hash(key, SYNTH_STREAM_TEXT, id) % SYNTH_SURFACES);
            int      second = (int)(synth_hash(key, SYNTH_STREAM_TEXT, id + 1) % SYNTH_SURFACES);
            for (m = 0; m < SYNTH_CONTENT; ++m) {
                content[m] = 0.5f * surfaces[first].identity[m] + 0.25f * surfaces[second].identity[m];
            }
            noise = 0.8;
        }
        for (m = 0; m < SYNTH_CONTENT; ++m) {
            double own = synth_normal(key, SYNTH_STREAM_NOISE, (uint64_t)(s * SYNTH_CONTENT + m));
            content[m] += (float)(noise / sqrt((double)SYNTH_CONTENT) * own);
        }
    }
    free(surfaces);
    return 1;
}

static void synth_scene_destroy(synth_scene *scene) { free(scene->content); }

/* ---- heads ------------------------------------------------------------------------------ */
/* Shares of the energy of q and k before the norm, and the logit of two equal vectors. */
typedef struct synth_kind {
    const char *name;
    double      content, along_t, along_hw, sharpness;
} synth_kind;

static synth_kind synth_head_kind(const synth_desc *desc, int32_t head_kv)
{
    static const synth_kind kinds[8] = {
        {"semantic", 0.85, 0.08, 0.07, 12.8}, {"spatial", 0.50, 0.35, 0.15, 12.5}, {"temporal", 0.45, 0.00, 0.55, 12.6},
        {"semantic", 0.92, 0.04, 0.04, 17.5}, {"local", 0.35, 0.25, 0.40, 13.4},   {"semantic", 0.75, 0.15, 0.10, 11.2},
        {"diffuse", 0.70, 0.15, 0.15, 5.6},   {"temporal", 0.60, 0.05, 0.35, 11.0}};
    synth_kind kind = kinds[head_kv % 8];
    kind.sharpness *= synth_between(0.85, 1.2, desc->seed, SYNTH_STREAM_HEAD, (uint64_t)head_kv);
    return kind;
}

/* Everything of one head and one of q, k, v that does not depend on the token. */
typedef struct synth_projection {
    int32_t dim, pairs[3]; /* rotated pairs of channels: t, h, w */
    float   matrix[SYNTH_MAX_DIM][SYNTH_CONTENT];
    double  place[SYNTH_MAX_DIM]; /* constant before RoPE */
    double  mean[SYNTH_MAX_DIM];  /* constant after it    */
    double  frequency[SYNTH_MAX_DIM / 2];
    double  gain; /* 0: no norm, no rotation (v) */
} synth_projection;

static void synth_projection_create(synth_projection *projection, const synth_scene *scene, synth_part part, int32_t head)
{
    const synth_desc *desc = &scene->desc;
    int32_t           dim = desc->dim, sixth = dim / 6, group = desc->heads / desc->heads_kv, d, m, axis, pair = 0;
    int32_t           head_kv = part == SYNTH_Q ? head / group : head, i, k;
    synth_kind        kind = synth_head_kind(desc, head_kv);
    uint64_t stream = SYNTH_STREAM_MATRIX + 8 * (uint64_t)head_kv, own = (uint64_t)(head + 1) * 4 + (uint64_t)part;
    double            basis[SYNTH_RANK][SYNTH_CONTENT], mixed[SYNTH_RANK][SYNTH_RANK];
    double            energy = 0, place_energy[3] = {0, 0, 0}, share[3];
    int64_t           s, sampled = scene->tokens < 512 ? scene->tokens : 512;

    memset(projection, 0, sizeof *projection);
    projection->dim = dim;
    projection->pairs[0] = dim / 2 - 2 * sixth;
    projection->pairs[1] = projection->pairs[2] = sixth;
    for (axis = 0; axis < 3; ++axis) {
        for (d = 0; d < projection->pairs[axis]; ++d) {
            projection->frequency[pair++] = pow(10000.0, -(double)d / projection->pairs[axis]);
        }
    }
    /* Heads are of low rank: q and k read the same few features of the content, the identity above all. */
    for (i = 0; i < SYNTH_RANK; ++i) {
        for (m = 0; m < SYNTH_CONTENT; ++m) {
            double interest = m < SYNTH_IDENTITY ? 1 : m < 2 * SYNTH_IDENTITY ? 0.6 : 0.25;
            basis[i][m] = interest * synth_normal(desc->seed, stream, (uint64_t)(i * SYNTH_CONTENT + m));
        }
        for (k = 0; k < SYNTH_RANK; ++k) { /* what a query looks for is not quite what it is */
            mixed[i][k] =
                (i == k) + 0.2 * synth_normal(desc->seed, stream + 1, (uint64_t)(i * SYNTH_RANK + k) * 65536 + own);
        }
    }
    for (d = 0; d < dim; ++d) {
        double low = 0.08 / (0.08 + projection->frequency[d / 2]), left[SYNTH_RANK]; /* slow channels keep content */
        for (i = 0; i < SYNTH_RANK; ++i) left[i] = synth_normal(desc->seed, stream + 4, (uint64_t)(d * SYNTH_RANK + i));
        for (m = 0; m < SYNTH_CONTENT; ++m) {
            double value = 0;
            for (i = 0; i < SYNTH_RANK; ++i) {
                for (k = 0; k < SYNTH_RANK; ++k) value += left[i] * mixed[i][k] * basis[k][m];
            }
            if (part == SYNTH_V) { /* values carry the detail that keys need not tell apart */
                value = (m < SYNTH_IDENTITY ? 0.5 : 1) *
                        synth_normal(desc->seed, stream + 5, (uint64_t)(d * SYNTH_CONTENT + m));
            }
            projection->matrix[d][m] = (float)(part == SYNTH_V ? value : low * value);
        }
    }
    /* Scale so that content has its share of the energy, measured on some tokens. */
    for (s = 0; s < sampled; ++s) {
        const float *content = scene->content + s * (scene->tokens / sampled) * SYNTH_CONTENT;
        for (d = 0; d < dim; ++d) {
            double value = 0;
            for (m = 0; m < SYNTH_CONTENT; ++m) value += (double)projection->matrix[d][m] * (double)content[m];
            energy += value * value;
        }
    }
    energy = sqrt((part == SYNTH_V ? 1 : kind.content) * dim * (double)sampled / (energy + 1e-30));
    for (d = 0; d < dim; ++d) {
        for (m = 0; m < SYNTH_CONTENT; ++m) projection->matrix[d][m] = (float)((double)projection->matrix[d][m] * energy);
    }
    if (part == SYNTH_V) {
        for (d = 0; d < dim; ++d) projection->mean[d] = 0.3 * synth_normal(desc->seed, stream + 2, (uint64_t)d);
        return;
    }
    projection->gain = sqrt(kind.sharpness / sqrt((double)dim));
    if (part == SYNTH_Q) { /* heads of a group share keys, yet are not equally sharp */
        projection->gain *= synth_between(0.9, 1.1, desc->seed, SYNTH_STREAM_HEAD, 65536 + (uint64_t)head);
    }
    /* A constant c in a pair of frequency w contributes |c|^2 cos(w distance): fast pairs make narrow peaks. */
    share[0] = kind.along_t, share[1] = share[2] = kind.along_hw / 2;
    for (axis = 0, pair = 0; axis < 3; ++axis) {
        int32_t first = pair;
        for (; pair < first + projection->pairs[axis]; ++pair) {
            double frequency = projection->frequency[pair],
                   high = frequency / (frequency + 0.1) * 0.4 / (0.4 + frequency);
            double angle = 6.283185307179586 * synth_uniform(desc->seed, stream + 3, (uint64_t)pair);
            projection->place[2 * pair] = high * cos(angle);
            projection->place[2 * pair + 1] = high * sin(angle);
            place_energy[axis] += high * high;
        }
        for (pair = first; pair < first + projection->pairs[axis]; ++pair) {
            double scale = sqrt(share[axis] * dim / place_energy[axis]);
            projection->place[2 * pair] *= scale;
            projection->place[2 * pair + 1] *= scale;
        }
    }
    if (part == SYNTH_K) { /* on the slow channels, where real keys have it */
        for (d = 0; d < dim; ++d) {
            double low = 0.01 / (0.01 + projection->frequency[d / 2]);
            projection->mean[d] = 1.5 * low * projection->gain * synth_normal(desc->seed, stream + 2, (uint64_t)d);
        }
    }
}

static void synth_row(const synth_projection *projection, const synth_scene *scene, int64_t token, float *row)
{
    const synth_desc *desc = &scene->desc;
    const float      *content = scene->content + token * SYNTH_CONTENT;
    int64_t           video = (int64_t)desc->frames * desc->height * desc->width, position[3];
    double            energy = 0;
    int32_t           d, m, axis, pair = 0, last;

    for (d = 0; d < projection->dim; ++d) {
        float value = (float)projection->place[d];
        for (m = 0; m < SYNTH_CONTENT; ++m) value += projection->matrix[d][m] * content[m];
        row[d] = value;
        energy += (double)value * (double)value;
    }
    if (projection->gain > 0) {
        double scale = projection->gain / sqrt(energy / projection->dim + 1e-6);
        for (d = 0; d < projection->dim; ++d) row[d] = (float)((double)row[d] * scale);
        if (token < video) { /* text has no place in the picture */
            position[2] = token % desc->width;
            position[1] = token / desc->width % desc->height;
            position[0] = token / desc->width / desc->height;
            for (axis = 0; axis < 3; ++axis) {
                for (last = pair + projection->pairs[axis]; pair < last; ++pair) {
                    double angle = (double)position[axis] * projection->frequency[pair], c = cos(angle), s = sin(angle);
                    double a = (double)row[2 * pair], b = (double)row[2 * pair + 1];
                    row[2 * pair] = (float)(a * c - b * s);
                    row[2 * pair + 1] = (float)(a * s + b * c);
                }
            }
        }
    }
    for (d = 0; d < projection->dim; ++d) row[d] += (float)projection->mean[d];
}

#endif /* SYNTH_H_INCLUDED */
