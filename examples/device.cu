/* device.cu - MIT licence - see device.h. All on the default stream. */
#define SVG2_TOOL_CUDA
#include "device.h"

#include <cuda_runtime.h>

static const char *sentence(cudaError_t e)
{
    return e == cudaSuccess ? NULL : cudaGetErrorString(e);
}

const char *device_check(const char **name)
{
    static cudaDeviceProp device;
    svg2_error err;
    int id = 0, driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
        return "there is no GPU, or no driver for it";
    if (svg2_cuda_check(&err) != SVG2_OK)
        return err.cuda ? err.text : "the GPU's compute capability is below 8.0";
    const cudaError_t e = cudaGetDevice(&id);
    if (e != cudaSuccess) return sentence(e);
    if (name) *name = cudaGetDeviceProperties(&device, id) == cudaSuccess ? device.name : "GPU";
    return NULL;
}

svg2_backend device_backend(void)
{
    return svg2_cuda_backend(NULL);
}

const char *device_available(size_t *bytes)
{
    size_t total;
    return sentence(cudaMemGetInfo(bytes, &total));
}

const char *device_allocate(void **memory, size_t bytes)
{
    return sentence(cudaMalloc(memory, bytes ? bytes : 1));
}

void device_free(void *memory)
{
    (void)cudaFree(memory);
}

const char *device_put(void *device, const void *host, size_t bytes)
{
    return sentence(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice));
}

const char *device_get(void *host, const void *device, size_t bytes)
{
    const char *failure = device_wait();
    return failure ? failure : sentence(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost));
}

const char *device_wait(void)
{
    return sentence(cudaDeviceSynchronize());
}
