/* synth.h - Q, K and V with the structure that video attention has, for bench.c and compare/shim.c

   White noise has no clusters, so it would make clustering, selection and sparsity look like something they are
   not. Here about 200 objects move through the frames. A token carries the vector of its object (content), a
   smooth variation inside the object, sines of its place in space and time (what RoPE leaves of a constant
   vector), and noise; all keys share a strong mean, as real ones do. Tokens of one object attend to one
   another, nearer ones more.

   Deterministic: the same arguments give the same bits on every machine with IEEE arithmetic and the same libm.
 */
#ifndef BENCH_SYNTH_H
#define BENCH_SYNTH_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

enum { SYNTH_OBJECTS = 200, SYNTH_MAX_DIM = 256 };

typedef struct synth_video {
    int32_t frames, height, width; /* tokens = frames * height * width, token = (f * height + y) * width + x */
    int32_t heads, dim;
    uint64_t seed;
    double drift; /* strength of extra noise, 0 = none: another value is "the next denoising step" */
} synth_video;

typedef struct synth_object {
    double x, y, step_x, step_y, size;
} synth_object;

static uint64_t synth_hash(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static double synth_uniform(uint64_t key) { return (double)(synth_hash(key) >> 11) / 9007199254740992.0; }

/* Sum of four uniforms, unit variance: near enough to a Gaussian, and one hash instead of a log, a root and a
 * cosine. */
static float synth_normal(uint64_t key)
{
    uint64_t h = synth_hash(key);
    double sum =
        (double)(h & 0xffff) + (double)((h >> 16) & 0xffff) + (double)((h >> 32) & 0xffff) + (double)(h >> 48);
    return (float)((sum - 131070.0) / 37837.23);
}

/* Which object covers (x, y) in [0,1)^2 of this frame (the frame wraps round), and where inside it. */
static int synth_object_at(const synth_object *objects, double frame, double x, double y, double *dx,
                           double *dy)
{
    int i, best = 0;
    double best_distance = 1e30;
    for (i = 0; i < SYNTH_OBJECTS; ++i) {
        double ax = x - objects[i].x - frame * objects[i].step_x,
               ay = y - objects[i].y - frame * objects[i].step_y;
        double distance;
        ax -= floor(ax + 0.5);
        ay -= floor(ay + 0.5);
        distance = (ax * ax + ay * ay) * objects[i].size;
        if (distance < best_distance) {
            best_distance = distance;
            best = i;
            *dx = ax;
            *dy = ay;
        }
    }
    return best;
}

/* q, k, v [heads, tokens, dim] f32, written. */
static void synth_make(const synth_video *s, float *q, float *k, float *v)
{
    synth_object objects[SYNTH_OBJECTS];
    float place[SYNTH_MAX_DIM];
    int frequencies = s->dim / 16, content = s->dim - 6 * frequencies, f, x, y, h, d, i;
    int64_t tokens = (int64_t)s->frames * s->height * s->width, t = 0;
    uint64_t base = synth_hash(s->seed);

    for (i = 0; i < SYNTH_OBJECTS; ++i) {
        uint64_t key = base + (uint64_t)i * 8;
        objects[i].x = synth_uniform(key);
        objects[i].y = synth_uniform(key + 1);
        objects[i].step_x = 0.02 * (synth_uniform(key + 2) - 0.5);
        objects[i].step_y = 0.02 * (synth_uniform(key + 3) - 0.5);
        objects[i].size = 0.5 + synth_uniform(key + 4);
    }
    for (f = 0; f < s->frames; ++f)
        for (y = 0; y < s->height; ++y)
            for (x = 0; x < s->width; ++x, ++t) {
                double dx = 0, dy = 0;
                double at[3];
                int object = synth_object_at(objects, f, (x + 0.5) / s->width, (y + 0.5) / s->height, &dx, &dy);
                at[0] = f;
                at[1] = y;
                at[2] = x;
                for (i = 0; i < 3 * frequencies;
                     ++i) { /* the highest frequency turns once in 6 tokens, the lowest in 200 */
                    double angle = at[i % 3] * pow(0.03, (double)(i / 3) / frequencies);
                    place[2 * i] = (float)(1.2 * cos(angle));
                    place[2 * i + 1] = (float)(1.2 * sin(angle));
                }
                for (h = 0; h < s->heads; ++h) {
                    size_t row = ((size_t)h * (size_t)tokens + (size_t)t) * (size_t)s->dim;
                    uint64_t head = synth_hash(base + 1000003u * (uint64_t)(h + 1));
                    uint64_t noise = synth_hash(head + 7919u * (uint64_t)(t + 1));
                    float dxf = (float)(dx * 8), dyf = (float)(dy * 8);
                    for (d = 0; d < s->dim; ++d) {
                        uint64_t own = head + ((uint64_t)object << 20) + (uint64_t)d;
                        uint64_t key = noise + (uint64_t)d * 8;
                        float shape, value, mean = 2.0f * synth_normal(head + 0x700000000u + (uint64_t)d);
                        value = synth_normal(own + 0x100000000u) + dxf * synth_normal(own + 0x200000000u) +
                                dyf * synth_normal(own + 0x300000000u);
                        if (d < content) /* object, and how it varies from side to side */
                            shape = synth_normal(own) + 0.5f * dxf * synth_normal(own + 0x400000000u) +
                                    0.5f * dyf * synth_normal(own + 0x500000000u);
                        else shape = place[d - content];
                        q[row + (size_t)d] =
                            shape + 0.4f * synth_normal(key) + (float)s->drift * synth_normal(key + 3);
                        k[row + (size_t)d] = shape + 0.4f * synth_normal(key + 1) + mean +
                                             (float)s->drift * synth_normal(key + 4);
                        v[row + (size_t)d] =
                            value + 0.4f * synth_normal(key + 2) + (float)s->drift * synth_normal(key + 5);
                    }
                }
            }
}

#endif
