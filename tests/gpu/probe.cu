/* probe.cu - "sm_90a NVIDIA H100 80GB HBM3", or why there is no GPU to run on (exit code 2); for gpu.sh */
#include <cuda_runtime.h>
#include <stdio.h>

int main()
{
    int count = 0;
    cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceCount(&count);
    if (e == cudaSuccess && count > 0) e = cudaGetDeviceProperties(&p, 0);
    if (e != cudaSuccess || count == 0) {
        printf("%s\n", e == cudaSuccess ? "none is visible" : cudaGetErrorString(e));
        return 2;
    }
    if (p.major < 8) {
        printf("%s has compute capability %d.%d, below 8.0\n", p.name, p.major, p.minor);
        return 2;
    }
    printf("sm_%d%d%s %s\n", p.major, p.minor, p.major == 9 && p.minor == 0 ? "a" : "", p.name);
    return 0;
}
