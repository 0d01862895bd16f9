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
static std::vector<cudaStream_t> streams;
static std::vector<cudaGraphExec_t> graphs;

static void must(cudaError_t e, const char *what)
{
    if (e == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(e));
    exit(3);
}

/* Sets and copies are the default stream's, and may return before they are done; streams of device_stream do
   not wait for them. */
static void settle(void)
{
    must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

void *device_new(size_t bytes)
{
    void *p = NULL;
    must(cudaMalloc(&p, bytes ? bytes : 1), "cudaMalloc");
    must(cudaMemset(p, 0xff, bytes), "cudaMemset");
    settle();
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
    settle();
    must(cudaMemcpy(host, device, bytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
}

void device_write(void *device, const void *host, size_t bytes)
{
    settle();
    must(cudaMemcpy(device, host, bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    settle();
}

void device_reset(void)
{
    settle();
    for (void *p : allocations) must(cudaFree(p), "cudaFree");
    for (cudaGraphExec_t g : graphs) must(cudaGraphExecDestroy(g), "cudaGraphExecDestroy");
    for (cudaStream_t s : streams) must(cudaStreamDestroy(s), "cudaStreamDestroy");
    allocations.clear();
    graphs.clear();
    streams.clear();
}

void *device_stream(void)
{
    cudaStream_t s = NULL;
    must(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "cudaStreamCreate");
    streams.push_back(s);
    return s;
}

void device_record(void *stream)
{
    must(cudaStreamBeginCapture((cudaStream_t)stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
}

void *device_recorded(void *stream)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t exec = NULL;
    must(cudaStreamEndCapture((cudaStream_t)stream, &graph), "cudaStreamEndCapture");
    must(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    must(cudaGraphDestroy(graph), "cudaGraphDestroy");
    graphs.push_back(exec);
    return exec;
}

void device_replay(void *graph, void *stream)
{
    must(cudaGraphLaunch((cudaGraphExec_t)graph, (cudaStream_t)stream), "cudaGraphLaunch");
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

unsigned long long device_boxes(void)
{
#ifdef SVG2_EMULATED
    return cuemu::stats.bulk;
#else
    return 0;
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
