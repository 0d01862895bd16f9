/* ptx_probe.cu - each device operation of svg2_cuda.cu in a kernel of its own, for tests/nvcc.sh

   Operands come from in[], results go to out[], at places of their own: tests/nvcc.sh gives the registers of the PTX those
   names. The kernels are compiled and never run. */
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
