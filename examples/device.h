/* device.h - MIT licence - the GPU as the tools need it, in plain C

   A build with -DSVG2_TOOL_CUDA has it, by device.cu and svg2_cuda.cu (make cuda). In any other the answer of each
   function is that there is none. What returns const char * returns NULL, or a sentence that says what failed,
   which lives for ever. */
#ifndef DEVICE_H_INCLUDED
#define DEVICE_H_INCLUDED

#include "svg2.h"

#ifdef SVG2_TOOL_CUDA
enum { DEVICE_IS_BUILT = 1 };
#  ifdef __cplusplus
extern "C" {
#  endif
/* NULL if svg2_cuda_backend can run here; *name is the device's. */
const char *device_check(const char **name);
/* svg2_cuda_backend on the default stream */
svg2_backend device_backend(void);
const char *device_available(size_t *bytes); /* memory that is free */
const char *device_allocate(void **memory, size_t bytes);
void device_free(void *memory);
/* All of these wait for what was launched before. */
const char *device_put(void *device, const void *host, size_t bytes);
const char *device_get(void *host, const void *device, size_t bytes);
const char *device_wait(void);
#  ifdef __cplusplus
}
#  endif

#else
enum { DEVICE_IS_BUILT = 0 };
static inline const char *device_wait(void)
{
    return "this build has no CUDA backend (make cuda builds one that has)";
}
static inline const char *device_check(const char **name) { return (void)name, device_wait(); }
static inline svg2_backend device_backend(void) { return svg2_cpu_backend(NULL); }
static inline const char *device_available(size_t *bytes) { return (void)bytes, device_wait(); }
static inline const char *device_allocate(void **memory, size_t bytes)
{
    return (void)memory, (void)bytes, device_wait();
}
static inline void device_free(void *memory) { (void)memory; }
static inline const char *device_put(void *device, const void *host, size_t bytes)
{
    return (void)device, (void)host, (void)bytes, device_wait();
}
static inline const char *device_get(void *host, const void *device, size_t bytes)
{
    return (void)host, (void)device, (void)bytes, device_wait();
}
#endif
#endif
