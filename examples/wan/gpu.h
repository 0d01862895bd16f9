/* gpu.h - MIT licence - part of wan.c: self-attention on a GPU, in a model whose arrays are the host's

   Workspace and states of a run are memory of its backend: the clusters never leave the GPU. Q, K, V, the output
   and the statistics have twins there, allocated once per run and copied around each call. */
#include "../plan.h"

static void wan_expect_device(const char *failure)
{
    if (failure) tool_fail(TOOL_FAILURE, "CUDA: %s", failure);
}

/* Memory of the run's backend. */
static void *wan_allocate(const wan_run *run, size_t count, size_t size)
{
    const size_t bytes = count && size > SIZE_MAX / count ? SIZE_MAX : count * size;
    void *memory = NULL;
    const char *failure;
    if (!run->is_cuda) return tool_allocate(count, size);
    failure = device_allocate(&memory, bytes);
    if (failure) tool_fail(TOOL_FAILURE, "CUDA: %s: %.1f MiB for one array", failure, (double)bytes / 1048576);
    return memory;
}

static void wan_free(const wan_run *run, void *memory)
{
    if (run->is_cuda)
        device_free(memory);
    else
        free(memory);
}

/* Bytes of q, k, v or out. */
static size_t wan_tensor_bytes(const wan_run *run)
{
    return (size_t)run->desc.tokens * (size_t)run->desc.heads * (size_t)run->desc.head_dim * sizeof(float);
}

static size_t wan_rows(const wan_run *run)
{
    return (size_t)run->desc.heads * (size_t)run->desc.tokens;
}

static size_t wan_lse_bytes(const wan_run *run)
{
    return wan_rows(run) * sizeof(float);
}

static void wan_twins_open(wan_run *run)
{
    int i;
    if (!run->is_cuda) return;
    for (i = 0; i < 4; ++i) run->twins[i] = (float *)wan_allocate(run, wan_tensor_bytes(run), 1);
    run->twin_lse = (float *)wan_allocate(run, wan_lse_bytes(run), 1);
    run->twin_stats = (svg2_head_stats *)wan_allocate(run, (size_t)run->desc.heads, sizeof *run->twin_stats);
}

static void wan_twins_close(wan_run *run)
{
    int i;
    if (!run->is_cuda) return;
    for (i = 0; i < 4; ++i) device_free(run->twins[i]), run->twins[i] = NULL;
    device_free(run->twin_lse), run->twin_lse = NULL;
    device_free(run->twin_stats), run->twin_stats = NULL;
}

/* The inputs go to the GPU; returns the arrays of the call there. */
static wan_arrays wan_to_device(const wan_run *run, const wan_arrays *host)
{
    const size_t bytes = wan_tensor_bytes(run);
    wan_arrays device;
    wan_expect_device(device_put(run->twins[0], host->q, bytes));
    wan_expect_device(device_put(run->twins[1], host->k, bytes));
    wan_expect_device(device_put(run->twins[2], host->v, bytes));
    if (run->desc.seed_lse) wan_expect_device(device_put(run->twin_lse, host->lse, wan_lse_bytes(run)));
    device.q = run->twins[0], device.k = run->twins[1], device.v = run->twins[2], device.out = run->twins[3];
    device.lse = host->lse ? run->twin_lse : NULL, device.stats = run->twin_stats;
    return device;
}

static void wan_from_device(const wan_run *run, const wan_arrays *host)
{
    wan_expect_device(device_get(host->out, run->twins[3], wan_tensor_bytes(run)));
    if (host->lse) wan_expect_device(device_get(host->lse, run->twin_lse, wan_lse_bytes(run)));
    wan_expect_device(device_get(host->stats, run->twin_stats, (size_t)run->desc.heads * sizeof *host->stats));
}
