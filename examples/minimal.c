/* minimal.c - the synopsis of svg2.h as a program: cc -std=c99 -O2 -ffp-contract=off -I. examples/minimal.c -lm */
#include <stdio.h>
#include <stdlib.h>

#define SVG2_IMPLEMENTATION
#include "svg2.h"

int main(void)
{
    svg2_backend    cpu = svg2_cpu_backend(0); /* 0: on this thread */
    svg2_state      state;                     /* one per layer and guidance branch */
    svg2_head_stats stats[2];
    svg2_error      err;
    svg2_desc       d = SVG2_ZERO; /* zero = default, everywhere */
    d.heads = 2, d.tokens = 8 * 256, d.head_dim = 64;

    size_t count = (size_t)d.heads * (size_t)d.tokens * (size_t)d.head_dim, i;
    size_t work_bytes = svg2_workspace_bytes(&cpu, &d), state_bytes = svg2_state_bytes(&d);
    float *q = malloc(count * 4), *k = malloc(count * 4), *v = malloc(count * 4), *out = malloc(count * 4);
    void  *work, *state_memory; /* aligned to SVG2_ALIGN */
    if (!q || !k || !v || !out || !(work = svg2_aligned(work_bytes)) || !(state_memory = svg2_aligned(state_bytes))) return 1;
    return 0;
}
