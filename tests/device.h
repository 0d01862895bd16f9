/* device.h - memory of the CUDA backend, for tests that run on the emulation (tests/emu) and on a GPU */
#ifndef SVG2_TEST_DEVICE_H
#define SVG2_TEST_DEVICE_H
#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif
/* Device memory, filled with 0xff (NaN, -1). All of it is freed by device_reset. Ends the program where there
   is none. */
void *device_new(size_t bytes);
/* The same with the bytes of host memory in it. */
void *device_copy(const void *host, size_t bytes);
void  device_read(void *host, const void *device, size_t bytes);
void  device_write(void *device, const void *host, size_t bytes);
void  device_reset(void);
/* A stream of its own (cudaStream_t), freed by device_reset. */
void *device_stream(void);
/* What is launched on the stream between the two is recorded instead, and done by device_replay, any number
   of times. Freed by device_reset. */
void  device_record(void *stream);
void *device_recorded(void *stream);
void  device_replay(void *graph, void *stream);
/* Order of threads and blocks ("rr", "first", "last", "random") and time of completion of asynchronous copies
   ("early", "late", "mixed") from now on. Nothing on a GPU. */
void device_schedule(const char *threads, const char *copies, unsigned seed);
/* Compute capability (80, 86, 90, ...) that the emulation shows from now on; 90 at first. Nothing on a GPU */
void device_model(int capability);
/* Boxes of tensor maps that kernels have asked for so far. 0 on a GPU, where nobody counts */
unsigned long long device_boxes(void);
/* 1 = the emulation */
int device_is_emulated(void);
/* 1 = there is something to run on; else reason says why not */
int device_present(const char **reason);
#ifdef __cplusplus
}
#endif
#endif
