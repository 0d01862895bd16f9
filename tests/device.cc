/* device.cc - see device.h */
#include "device.h"

#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>
#ifdef SVG2_EMULATED
#  include "emu/cuda_emu.h"
#endif

static std::vector<void *> allocations;

static void must(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(e));
    exit(3);
}

void *device_new(size_t bytes)
{
    void *p = NULL;
    must(cudaMalloc(&p, bytes ? bytes : 1), "cudaMalloc");
    must(cudaMemset(p, 0xff, bytes), "cudaMemset");
    allocations.push_back(p);
    return p;
}

void *device_copy(const void *host, size_t bytes)
{
    void *p = device_new(bytes);
    device_write(p, host, bytes);
    return p;
}

void device_read(void *host, const void *device, size_t bytes)
{
    must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    must(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
}

void device_write(void *device, const void *host, size_t bytes)
{
    must(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
}

void device_reset(void)
{
    must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    for (void *p : allocations) must(cudaFree(p), "cudaFree");
    allocations.clear();
}

void device_schedule(const char *threads, const char *copies, unsigned seed)
{
#ifdef SVG2_EMULATED
    cuemu::configure(threads, copies, seed);
#else
    (void)threads, (void)copies, (void)seed;
#endif
}

void device_model(int capability)
{
#ifdef SVG2_EMULATED
    cuemu::device(capability);
#else
    (void)capability;
#endif
}

int device_is_emulated(void)
{
#ifdef SVG2_EMULATED
    return 1;
#else
    return 0;
#endif
}

int device_present(const char **reason)
{
    int count = 0;
    const cudaError_t e = cudaGetDeviceCount(&count);
    if (reason) *reason = e == cudaSuccess ? "" : cudaGetErrorString(e);
    return e == cudaSuccess && count > 0;
}
