/* ptx_probe.cu - each device operation of svg2_cuda.cu in a kernel of its own, for tests/nvcc.sh

   Operands come from in[], results go to out[], at places of their own: tests/nvcc.sh gives the registers of the PTX those
   names. The kernels are compiled and never run. */
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "ptx.h" /* the section >>ptx, cut out */

#define PROBE extern "C" __global__ void

PROBE probe_smem(uint32_t *out, const uint32_t *in) { out[0] = svg2__smem(in); }
PROBE probe_exp2(float *out, const float *in) { out[0] = svg2__exp2(in[1]); }
PROBE probe_fresh(int *out, const int *in) { out[0] = svg2__fresh(in[1]); }

PROBE probe_cp_async16(const char *out, const uint32_t *in) { svg2__cp_async16(in[0], out, (int)in[1]); }
PROBE probe_cp_async_commit() { svg2__cp_async_commit(); }
PROBE probe_cp_async_wait() { svg2__cp_async_wait<3>(); }

PROBE probe_ldmatrix_x4(uint32_t *out, const uint32_t *in)
{
    uint32_t r[4];
    svg2__ldmatrix_x4(r, in[0]);
    for (int i = 0; i < 4; ++i) out[i] = r[i];
}
PROBE probe_ldmatrix_x4_trans(uint32_t *out, const uint32_t *in)
{
    uint32_t r[4];
    svg2__ldmatrix_x4_trans(r, in[0]);
    for (int i = 0; i < 4; ++i) out[i] = r[i];
}

PROBE probe_mma_m16n8k16_bf16(float *out, const uint32_t *in)
{
    float d[4] = {out[0], out[1], out[2], out[3]};
    const uint32_t a[4] = {in[0], in[1], in[2], in[3]};
    svg2__mma_m16n8k16(d, a, in[4], in[5], __nv_bfloat16());
    for (int i = 0; i < 4; ++i) out[i] = d[i];
}
PROBE probe_mma_m16n8k16_f16(float *out, const uint32_t *in)
{
    float d[4] = {out[0], out[1], out[2], out[3]};
    const uint32_t a[4] = {in[0], in[1], in[2], in[3]};
    svg2__mma_m16n8k16(d, a, in[4], in[5], __half());
    for (int i = 0; i < 4; ++i) out[i] = d[i];
}

/* ---- Hopper ---- */
PROBE probe_mbar_init(uint32_t *, const uint32_t *in) { svg2__mbar_init(in[0], in[1]); }
PROBE probe_mbar_arrive(uint32_t *, const uint32_t *in) { svg2__mbar_arrive(in[0]); }
PROBE probe_mbar_arrive_expect(uint32_t *, const uint32_t *in) { svg2__mbar_arrive_expect(in[0], in[1]); }
PROBE probe_mbar_try_wait(uint32_t *out, const uint32_t *in)
{
    out[0] = svg2__mbar_try_wait(in[0], in[1]);
}
PROBE probe_cp_async_mbar_arrive(uint32_t *, const uint32_t *in) { svg2__cp_async_mbar_arrive(in[0]); }
PROBE probe_fence_mbar_init() { svg2__fence_mbar_init(); }
PROBE probe_fence_async() { svg2__fence_async(); }
PROBE probe_bar_sync(uint32_t *, const int *in) { svg2__bar_sync(in[0], in[1]); }
PROBE probe_bar_arrive(uint32_t *, const int *in) { svg2__bar_arrive(in[0], in[1]); }
PROBE probe_tma_load_2d(const CUtensorMap *out, const uint32_t *in)
{
    svg2__tma_load_2d(in[0], out, in[1], (int)in[2], (int)in[3]);
}
PROBE probe_tma_load_4d(const CUtensorMap *out, const uint32_t *in)
{
    svg2__tma_load_4d(in[0], out, in[1], (int)in[2], (int)in[3], (int)in[4], (int)in[5]);
}
PROBE probe_tma_load_4d_multicast(const CUtensorMap *out, const uint32_t *in, const uint16_t *blocks)
{
    svg2__tma_load_4d_multicast(in[0], out, in[1], (int)in[2], (int)in[3], (int)in[4], (int)in[5], blocks[0]);
}
PROBE probe_cluster_rank(uint32_t *out) { out[0] = svg2__cluster_rank(); }
PROBE probe_mapa(uint32_t *out, const uint32_t *in) { out[0] = svg2__mapa(in[0], in[1]); }
PROBE probe_cluster_arrive() { svg2__cluster_arrive(); }
PROBE probe_cluster_wait() { svg2__cluster_wait(); }
PROBE probe_mbar_arrive_remote(uint32_t *, const uint32_t *in) { svg2__mbar_arrive_remote(in[0]); }
PROBE probe_mbar_try_wait_cluster(uint32_t *out, const uint32_t *in)
{
    out[0] = svg2__mbar_try_wait_cluster(in[0], in[1]);
}
PROBE probe_store_remote(uint32_t *, const int *in) { svg2__store_remote((uint32_t)in[0], in[1], in[2], in[3], in[4]); }
PROBE probe_prefetch_map(const CUtensorMap *out) { svg2__prefetch_map(out); }
PROBE probe_registers_more() { svg2__registers_more<240>(); }
PROBE probe_registers_less() { svg2__registers_less<24>(); }
PROBE probe_wgmma_fence() { svg2__wgmma_fence(); }
PROBE probe_wgmma_commit() { svg2__wgmma_commit(); }
PROBE probe_wgmma_wait() { svg2__wgmma_wait<1>(); }
PROBE probe_wgmma_hold(float *out)
{
    float d[2] = {out[0], out[1]};
    svg2__wgmma_hold(d);
    out[0] = d[0], out[1] = d[1];
}
PROBE probe_wgmma_hold_fragments(uint32_t *out)
{
    uint32_t a[1][4] = {{out[0], out[1], out[2], out[3]}};
    svg2__wgmma_hold(a);
    for (int i = 0; i < 4; ++i) out[i] = a[0][i];
}
/* Operands of wgmma: d from and to out[], descriptors from in[0] and in[1]; a flag from in[2]. Fragments from flag[]. */
template <int COUNT, int IS_ROWS, class T>
static __device__ void wgmma_ss_of(float *out, const unsigned long long *in, const int *flag)
{
    float d[COUNT];
    for (int i = 0; i < COUNT; ++i) d[i] = out[i];
    svg2__wgmma_ss<IS_ROWS>(d, in[0], in[1], flag[0], T());
    for (int i = 0; i < COUNT; ++i) out[i] = d[i];
}
template <int COUNT, int IS_ROWS, class T>
static __device__ void wgmma_rs_of(float *out, const unsigned long long *in, const int *flag)
{
    float d[COUNT];
    const uint32_t a[4] = {(uint32_t)flag[1], (uint32_t)flag[2], (uint32_t)flag[3], (uint32_t)flag[4]};
    for (int i = 0; i < COUNT; ++i) d[i] = out[i];
    svg2__wgmma_rs<IS_ROWS>(d, a, in[1], flag[0], T());
    for (int i = 0; i < COUNT; ++i) out[i] = d[i];
}
#define PROBE_WGMMA(COUNT, TYPE, T)                                                                                      \
    PROBE probe_wgmma_ss_##COUNT##_##TYPE(float *out, const unsigned long long *in, const int *flag)                     \
    {                                                                                                                    \
        wgmma_ss_of<COUNT, 0, T>(out, in, flag);                                                                         \
    }                                                                                                                    \
    PROBE probe_wgmma_rs_##COUNT##_##TYPE(float *out, const unsigned long long *in, const int *flag)                     \
    {                                                                                                                    \
        wgmma_rs_of<COUNT, 1, T>(out, in, flag);                                                                         \
    }
#define PROBE_WGMMA_TYPES(COUNT) PROBE_WGMMA(COUNT, bf16, __nv_bfloat16) PROBE_WGMMA(COUNT, f16, __half)
PROBE_WGMMA_TYPES(32)
PROBE_WGMMA_TYPES(40)
PROBE_WGMMA_TYPES(48)
PROBE_WGMMA_TYPES(64)
PROBE_WGMMA_TYPES(88)
PROBE_WGMMA_TYPES(128)
