/* tensor_map.h - tensor maps for the programs that try the copy engine of Hopper: 16-bit rows, in boxes of 64
   columns (128 bytes) under the swizzle of 128 bytes. */
#ifndef SVG2_TENSOR_MAP_H
#define SVG2_TENSOR_MAP_H

#include <cuda.h>
#include <cudaTypedefs.h>
#include <cuda_runtime.h>
#include <stdint.h>

/* A tensor of `rank` dimensions, columns first; stride: elements, of dimension 1 on. A box has 64 columns and
   box_rows rows of the rest. Not CUDA_SUCCESS if there is no such map, or the driver makes none. */
static CUresult tensor_map_of(CUtensorMap *map, const void *data, unsigned rank, const int64_t *size,
                              const int64_t *stride, int box_rows)
{
    void *f = NULL;
    cudaDriverEntryPointQueryResult found;
#if CUDART_VERSION >= 12050
    const cudaError_t e =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found);
#else
    const cudaError_t e = cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &f, cudaEnableDefault, &found);
#endif
    if (e != cudaSuccess || !f) return CUDA_ERROR_NOT_SUPPORTED;
    cuuint64_t sizes[5] = {}, strides[4] = {};
    cuuint32_t box[5] = {64, (cuuint32_t)box_rows, 1, 1, 1}, steps[5] = {1, 1, 1, 1, 1};
    for (unsigned i = 0; i < rank; ++i) sizes[i] = (cuuint64_t)size[i];
    for (unsigned i = 1; i < rank; ++i) strides[i - 1] = (cuuint64_t)stride[i - 1] * 2;
    return ((PFN_cuTensorMapEncodeTiled_v12000)f)(
        map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, rank, (void *)(uintptr_t)data, sizes, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
        CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}
/* rows of a matrix */
static CUresult tensor_map_of(CUtensorMap *map, const void *data, int64_t rows, int64_t columns,
                              int64_t stride, int box_rows)
{
    const int64_t size[2] = {columns, rows};
    return tensor_map_of(map, data, 2u, size, &stride, box_rows);
}

#endif
