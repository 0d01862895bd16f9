/* svg2_ops.h - the device operations of svg2_cuda.cu (its section >>ptx) on the emulation. Force-included after
   cuda_emu.h: names and signatures are the file's own. */
#pragma once
#define SVG2_DEVICE_OPS_PROVIDED 1
#define SVG2_DYN_SMEM(name, align) unsigned char *name = (unsigned char *)cuemu::dyn_smem(align, __LINE__)
#define OP [[maybe_unused]] static inline
#define LINE int line = __builtin_LINE()
OP uint32_t svg2__smem(const void *p) { return cuemu::smem_addr(p); }
OP float svg2__exp2(float x) { return exp2f(x); }
OP void svg2__cp_async16(uint32_t dst, const void *src, int n, LINE) { cuemu::cp_async(dst, src, 16, n, line); }
OP void svg2__cp_async_commit() { cuemu::cp_async_commit(); }
template <int N> OP void svg2__cp_async_wait() { cuemu::cp_async_wait(N); }
OP void svg2__ldmatrix_x4(uint32_t (&r)[4], uint32_t a, LINE) { cuemu::ldmatrix(a, r, 4, false, line); }
OP void svg2__ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t a, LINE) { cuemu::ldmatrix(a, r, 4, true, line); }
OP void svg2__mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __nv_bfloat16, LINE)
{
    const uint32_t b[2] = {b0, b1};
    cuemu::mma_m16n8k16(d, a, b, d, cuemu::Ty::bf16, line);
}
OP void svg2__mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, __half, LINE)
{
    const uint32_t b[2] = {b0, b1};
    cuemu::mma_m16n8k16(d, a, b, d, cuemu::Ty::f16, line);
}
OP int svg2__fresh(int x) { return x; }
#undef OP
#undef LINE
