/* minimal.c - svg2.h in one small program: cc -std=c99 -O2 -ffp-contract=off -I. examples/minimal.c -lm && ./a.out */
#define SVG2_IMPLEMENTATION
#include "svg2.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static void *aligned(size_t bytes) /* never freed here */
{
    char *memory = (char *)malloc(bytes + SVG2_ALIGN);
    return memory ? memory + (SVG2_ALIGN - (uintptr_t)memory % SVG2_ALIGN) : NULL;
}

int main(void)
{
    svg2_desc       d = SVG2_ZERO; /* zero = default, everywhere */
    svg2_backend    cpu = svg2_cpu_backend(0); /* 0 = calling thread only */
    svg2_state      state; /* one per (layer, guidance branch) */
    svg2_head_stats stats[2];
    svg2_error      err;

    d.heads = 2, d.tokens = 8 * 256, d.head_dim = 64;
    size_t count = 2 * 2048 * 64, state_bytes = svg2_state_bytes(&d), work_bytes = svg2_workspace_bytes(&cpu, &d);
    float *q = aligned(count * 4), *k = aligned(count * 4), *v = aligned(count * 4), *out = aligned(count * 4);
    void  *work = aligned(work_bytes), *state_memory = aligned(state_bytes);
    if (!q || !k || !v || !out || !work || !state_memory) return 1;
    for (size_t i = 0; i < count; ++i) { /* something with structure: what a token shows, and a channel */
        double token = (double)(i / 64 % 2048), channel = (double)(i % 64);
        q[i] = k[i] = (float)(4 * sin(0.1 * channel * sin(0.02 * token)));
        v[i] = (float)cos(0.01 * token + channel);
    }
    if (svg2_state_init(&state, &d, state_memory, state_bytes, &err))
        return fprintf(stderr, "%s %s\n", err.field, err.text), 1;
    for (int step = 0; step < 3; ++step) { /* the clusters follow from step to step */
        if (svg2_attend(&cpu, &d, &state, step, q, k, v, out, 0, stats, work, work_bytes, &err))
            return fprintf(stderr, "%s %s\n", err.field, err.text), 1;
        printf("step %d: %.1f %% of the pairs computed, out[0] = %f\n", step, 100 * (double)stats[0].density,
               (double)out[0]);
    }
    return 0;
}
