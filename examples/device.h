/* device.h - MIT licence - the GPU as the tools need it, in plain C; device.cu implements it on the CUDA runtime

   Part of a build with -DSVG2_TOOL_CUDA (make cuda). A function that returns const char * returns NULL, or a sentence that says
   what failed, which lives for ever. */
#ifndef DEVICE_H_INCLUDED
#define DEVICE_H_INCLUDED

#include <stddef.h>
#ifdef __cplusplus
extern "C" {
#endif
/* NULL if svg2_cuda_backend can run here; *name is the device's. */
const char *device_check(const char **name);
const char *device_allocate(void **memory, size_t bytes);
void        device_free(void *memory);
/* All of these wait for what was launched before. */
const char *device_put(void *device, const void *host, size_t bytes);
const char *device_get(void *host, const void *device, size_t bytes);
const char *device_wait(void);
#ifdef __cplusplus
}
#endif
#endif
