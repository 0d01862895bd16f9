/* wgmma.h - tests of both generations of CUDA kernels; after test.h and device.h */
#ifndef SVG2_TEST_WGMMA_H
#define SVG2_TEST_WGMMA_H

static int32_t arch = 80; /* the kernels that are tested: those of mma.sync (80) or of wgmma (90) */

/* Whether there are kernels for wgmma, and a device for them. */
static int has_wgmma(void)
{
    svg2_error err;
    svg2_kmeans_desc d = SVG2_ZERO;
    svg2_backend cuda = svg2_cuda_backend_arch(0, 90);
    d.batch = d.heads = d.tokens = d.clusters = d.iterations = 1;
    d.head_dim = 8;
    d.layout.dtype = SVG2_F32;
    d.x = device_copy("8 floats that no one looks at now", 32);
    d.centroid = (float *)device_new(32);
    d.mean = (float *)device_new(32);
    d.label = (int32_t *)device_new(4);
    d.size = (int32_t *)device_new(4);
    size_t bytes = svg2_stage_workspace_bytes(&cuda, SVG2_STAGE_KMEANS, &d);
    svg2_result r = svg2_kmeans(&cuda, &d, device_new(bytes), bytes, &err);
    device_reset();
    if (r != SVG2_OK) printf("without the kernels for wgmma: %s\n", err.text);
    return r == SVG2_OK;
}

/* The same test with these kernels. */
static int wgmma_setup(void **state)
{
    arch = 90;
    return test_setup(state);
}
static int wgmma_teardown(void **state)
{
    arch = 80;
    return test_teardown(state);
}
#define WGMMA(fn) {#fn "_wgmma", fn, wgmma_setup, wgmma_teardown, 0}
#endif
