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
/* Hopper */
#define SVG2__SM90A 1
OP void svg2__mbar_init(uint32_t bar, uint32_t count, LINE) { cuemu::mbar_init(bar, count, line); }
OP void svg2__mbar_arrive(uint32_t bar, LINE) { cuemu::mbar_arrive(bar, 1, 0, line); }
OP void svg2__mbar_arrive_expect(uint32_t bar, uint32_t bytes, LINE) { cuemu::mbar_arrive(bar, 1, bytes, line); }
OP uint32_t svg2__mbar_try_wait(uint32_t bar, uint32_t parity, LINE) { return cuemu::mbar_try_wait(bar, parity, line); }
OP void svg2__cp_async_mbar_arrive(uint32_t bar, LINE) { cuemu::cp_async_mbar_arrive(bar, true, line); }
OP void svg2__fence_mbar_init() { cuemu::fence_mbar_init(); }
OP void svg2__fence_async() { cuemu::fence_proxy_async(); }
OP void svg2__bar_sync(int id, int threads, LINE) { cuemu::bar_sync(id, threads, line); }
OP void svg2__bar_arrive(int id, int threads, LINE) { cuemu::bar_arrive(id, threads, line); }
OP void svg2__tma_load_2d(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x, int y, LINE)
{
    const int at[2] = {x, y};
    cuemu::tma_load(dst, map, bar, at, 2, line);
}
OP void svg2__tma_load_4d(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x, int y, int z, int w, LINE)
{
    const int at[4] = {x, y, z, w};
    cuemu::tma_load(dst, map, bar, at, 4, line);
}
OP void svg2__tma_load_4d_multicast(uint32_t dst, const CUtensorMap *map, uint32_t bar, int x, int y, int z, int w,
                                    uint16_t blocks, LINE)
{
    const int at[4] = {x, y, z, w};
    cuemu::tma_load_multicast(dst, map, bar, blocks, at, 4, line);
}
OP uint32_t svg2__cluster_rank() { return cuemu::cluster_rank(); }
OP uint32_t svg2__mapa(uint32_t address, uint32_t rank, LINE) { return cuemu::mapa(address, rank, line); }
OP void svg2__cluster_arrive(LINE) { cuemu::cluster_arrive(line); }
OP void svg2__cluster_wait(LINE) { cuemu::cluster_wait(line); }
OP void svg2__mbar_arrive_remote(uint32_t bar, LINE) { cuemu::mbar_arrive_remote(bar, line); }
OP uint32_t svg2__mbar_try_wait_cluster(uint32_t bar, uint32_t parity, LINE)
{
    return cuemu::mbar_try_wait(bar, parity, true, line);
}
OP void svg2__store_remote(uint32_t dst, int x, int y, int z, int w, LINE)
{
    const int value[4] = {x, y, z, w};
    cuemu::store_remote(dst, value, 16, line);
}
OP void svg2__prefetch_map(const CUtensorMap *) {}
template <int N> OP void svg2__registers_more(LINE) { cuemu::setmaxnreg(N, true, line); }
template <int N> OP void svg2__registers_less(LINE) { cuemu::setmaxnreg(N, false, line); }
OP void svg2__wgmma_fence(LINE) { cuemu::wgmma_fence(line); }
OP void svg2__wgmma_commit(LINE) { cuemu::wgmma_commit(line); }
template <int N> OP void svg2__wgmma_wait(LINE) { cuemu::wgmma_wait(N, line); }
template <int COUNT> OP void svg2__wgmma_hold(float (&)[COUNT]) {}
template <int COUNT> OP void svg2__wgmma_hold(uint32_t (&)[COUNT][4]) {}
static inline cuemu::Ty svg2__type_of(__nv_bfloat16) { return cuemu::Ty::bf16; }
static inline cuemu::Ty svg2__type_of(__half) { return cuemu::Ty::f16; }
template <int IS_ROWS, int COUNT, class T>
OP void svg2__wgmma_ss(float (&d)[COUNT], uint64_t a, uint64_t b, int is_added, T, LINE)
{
    cuemu::wgmma_m64k16(2 * COUNT, d, nullptr, a, b, is_added, false, IS_ROWS, svg2__type_of(T()), line);
}
template <int IS_ROWS, int COUNT, class T>
OP void svg2__wgmma_rs(float (&d)[COUNT], const uint32_t (&a)[4], uint64_t b, int is_added, T, LINE)
{
    cuemu::wgmma_m64k16(2 * COUNT, d, a, 0, b, is_added, false, IS_ROWS, svg2__type_of(T()), line);
}
/* host */
OP cudaError_t svg2__has_sm90a(bool *is_there)
{
    *is_there = true;
    return cudaSuccess;
}
#undef OP
#undef LINE
