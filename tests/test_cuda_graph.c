/* >>pipeline on CUDA: a whole svg2_attend as a CUDA graph, replayed on other contents of the same buffers; two streams at once.
   Both give the bits that plain calls give. */
#include "device.h"
#include "test.h"

#define COPIES 3 /* contents of q, k, v */

typedef struct call {
    job j;             /* host: shapes, and what the last call left */
    tensor content[COPIES][3];
    void *q, *k, *v, *out, *lse, *stats, *work, *memory;
    size_t rows, heads;
} call;

static void call_make(call *c, svg2_desc d, tensor_order order, uint64_t seed, void *stream)
{
    const svg2_backend cuda = svg2_cuda_backend(stream);
    memset(c, 0, sizeof *c);
    job_alloc(&c->j, d, &cuda, order);
    for (int n = 0; n < COPIES; ++n) {
        const svg2_desc *r = &c->j.d;
        tensor *t = c->content[n];
        t[0] = tensor_new(r->batch, r->heads, r->tokens, r->head_dim, d.q.dtype, order);
        t[1] = tensor_new(r->batch, r->heads_kv, r->tokens_kv, r->head_dim, d.k.dtype, order);
        t[2] = tensor_new(r->batch, r->heads_kv, r->tokens_kv, r->head_dim, d.v.dtype, order);
        fill_video(&t[0], &t[1], &t[2], seed + (uint64_t)n, 1.0, 1.0);
    }
    c->heads = (size_t)(c->j.d.batch * c->j.d.heads);
    c->rows = c->heads * (size_t)c->j.d.tokens;
    c->q = device_new(c->j.q.bytes);
    c->k = device_new(c->j.k.bytes);
    c->v = device_new(c->j.v.bytes);
    c->out = device_new(c->j.out.bytes);
    c->lse = device_new(4 * c->rows);
    c->stats = device_new(c->heads * sizeof(svg2_head_stats));
    c->work = device_new(c->j.work_bytes);
    c->memory = device_new(c->j.state_bytes);
    assert_ok(svg2_state_init(&c->j.state, &c->j.d, c->memory, c->j.state_bytes, &c->j.err));
}

static void call_fill(call *c, int content)
{
    device_write(c->q, c->content[content][0].data, c->j.q.bytes);
    device_write(c->k, c->content[content][1].data, c->j.k.bytes);
    device_write(c->v, c->content[content][2].data, c->j.v.bytes);
}

static void call_launch(call *c, int32_t step)
{
    job *j = &c->j;
    const svg2_result r = svg2_attend(&j->backend, &j->d, &j->state, step, c->q, c->k, c->v, c->out, (float *)c->lse,
                                      (svg2_head_stats *)c->stats, c->work, j->work_bytes, &j->err);
    if (r != SVG2_OK) fail_msg("svg2_attend: %s (%s: %s, CUDA %d)", svg2_result_string(r), j->err.field, j->err.text, (int)j->err.cuda);
}

/* hash of out, lse, stats and state; out and lse are filled with 0xff again */
static uint64_t call_hash(call *c)
{
    job *j = &c->j;
    unsigned char *memory = (unsigned char *)malloc(j->state_bytes);
    uint64_t hash;
    device_read(j->out.data, c->out, j->out.bytes);
    device_read(j->lse, c->lse, 4 * c->rows);
    device_read(j->stats, c->stats, c->heads * sizeof(svg2_head_stats));
    device_read(memory, c->memory, j->state_bytes);
    for (size_t i = 0; i < c->rows; ++i) assert_true(j->lse[i] == j->lse[i]);
    hash = job_hash(j) ^ (13 * mem_hash(memory, j->state_bytes));
    for (size_t h = 0; h < c->heads; ++h) /* without the bytes behind the last field */
        hash = 7 * hash + mem_hash(&j->stats[h], offsetof(svg2_head_stats, recall) + sizeof(float));
    free(memory);
    memset(j->out.data, 0xff, j->out.bytes);
    memset(j->lse, 0xff, 4 * c->rows);
    device_write(c->out, j->out.data, j->out.bytes);
    device_write(c->lse, j->lse, 4 * c->rows);
    return hash;
}

static svg2_desc desc_of(int mode)
{
    /* of fewer keys the skip rules of wgmma keep all: the first tile of each warpgroup stays */
    svg2_desc d = desc_small(2, !device_is_emulated() ? 2000 : mode >= 7 ? 480 : 120, 64);
    d.q.dtype = d.k.dtype = d.v.dtype = d.out.dtype = mode == 1 ? SVG2_F32 : SVG2_BF16;
    d.query_clusters = device_is_emulated() ? 4 : 20;
    d.key_clusters = device_is_emulated() ? 11 : 70;
    d.init_iterations = 2;
    if (mode == 0) d.density = 0.3f;
    if (mode == 1) d.heads_kv = 1, d.target_error = 0.1f, d.text_tokens = 9, d.text_valid = 5;
    if (mode == 2) d.tail = SVG2_TAIL_NONE;
    if (mode == 3) d.method = SVG2_METHOD_DENSE;
    if (mode == 4 || mode == 7) d.method = SVG2_METHOD_SVG1, d.frames = 10, d.frame_tokens = d.tokens / 10, d.keep = 0.5f;
    if (mode == 5 || mode == 6 || mode == 8) d.method = SVG2_METHOD_ADASPA, d.sparsity = 0.5f;
    if (mode >= 4) d.block = !device_is_emulated() ? 64 : mode >= 7 ? 40 : 10;
    if (mode == 7) d.keep = 0.95f, d.skip = SVG2_SKIP_CONSTANT, d.skip_threshold = 1, d.visit = SVG2_VISIT_DIAGONAL;
    if (mode == 8) d.sparsity = 0.15f, d.skip = SVG2_SKIP_RECALL, d.recall = 0.2f;
    if (mode == 6 || mode == 8) /* every step searches */
        for (d.search_count = 0; d.search_count < 4; ++d.search_count) d.search_steps[d.search_count] = d.search_count;
    return d;
}

/* A cold call, then warm ones: first as plain calls, then the warm one as a graph. */
static void check_graph(void **state)
{
    (void)state;
    for (int mode = 0; mode < 9; mode += TEST_SLOW_BUILD ? 4 : 1) {
        void *stream = device_stream();
        call c;
        uint64_t want[COPIES + 1], got;
        call_make(&c, desc_of(mode), mode == 2 ? BSHD : BHSD, 3 + (uint64_t)mode, stream);
        call_fill(&c, 0);
        call_launch(&c, 0);
        want[0] = call_hash(&c);
        for (int n = 1; n <= COPIES; ++n) {
            call_fill(&c, n % COPIES);
            call_launch(&c, n);
            want[n] = call_hash(&c);
        }
        svg2_state_reset(&c.j.state);
        call_fill(&c, 0);
        call_launch(&c, 0);
        assert_true(call_hash(&c) == want[0]);
        device_record(stream);
        call_launch(&c, 1);
        void *graph = device_recorded(stream);
        device_read(c.j.out.data, c.out, c.j.out.bytes); /* recorded, not done */
        assert_true(is_fill(c.j.out.data, c.j.out.bytes, 0xff));
        for (int n = 1; n <= COPIES; ++n) {
            call_fill(&c, n % COPIES);
            device_replay(graph, stream);
            got = call_hash(&c);
            if (got != want[n]) fail_msg("mode %d: replay %d differs from the plain call", mode, n);
        }
        assert_true(want[1] != want[2]); /* or the comparison says nothing */
        for (size_t h = 0; h < c.heads && mode > 6; ++h) assert_true(c.j.stats[h].pairs_pv < c.j.stats[h].pairs);
        device_reset();
        mem_done();
    }
}

/* AdaSpa's first search, a search with its LSE and reuse, with a rule, as one graph. */
static void check_sequence(void **state)
{
    void *stream = device_stream();
    const int copies = TEST_SLOW_BUILD ? 2 : COPIES;
    svg2_desc d = desc_of(8);
    call c;
    uint64_t want[COPIES];
    (void)state;
    d.search_count = 2;
    call_make(&c, d, BHSD, 50, stream);
    for (int n = 0; n < copies; ++n) {
        svg2_state_reset(&c.j.state);
        call_fill(&c, n);
        for (int step = 0; step < 3; ++step) call_launch(&c, step);
        want[n] = call_hash(&c);
        for (size_t h = 0; h < c.heads; ++h) assert_true(c.j.stats[h].pairs_pv < c.j.stats[h].pairs);
        assert_true(c.j.stats[0].density < 1 || c.j.stats[1].density < 1); /* one head may have a level of 0 */
    }
    assert_true(want[0] != want[1]);
    svg2_state_reset(&c.j.state);
    device_record(stream);
    for (int step = 0; step < 3; ++step) call_launch(&c, step);
    void *graph = device_recorded(stream);
    device_read(c.j.out.data, c.out, c.j.out.bytes);
    assert_true(is_fill(c.j.out.data, c.j.out.bytes, 0xff));
    for (int n = 0; n < copies; ++n) {
        call_fill(&c, n);
        TEST_UNPOISON(c.work, c.j.work_bytes); /* gaps of the last call's layout: the first kernels have another */
        device_replay(graph, stream);
        if (call_hash(&c) != want[n]) fail_msg("contents %d: the graph differs from the plain calls", n);
    }
    device_reset();
    mem_done();
}

/* Two calls on two streams, under way together, with a state and a workspace each. */
static void check_streams(void **state)
{
    call c[2];
    uint64_t want[2][2];
    (void)state;
    for (int i = 0; i < 2; ++i) {
        call_make(&c[i], desc_of(i ? 2 : 0), BHSD, 20 + (uint64_t)i, device_stream());
        call_fill(&c[i], 0);
        for (int step = 0; step < 2; ++step) {
            call_launch(&c[i], step);
            want[i][step] = call_hash(&c[i]);
        }
    }
    for (int round = 0; round < (TEST_SLOW_BUILD ? 1 : 4); ++round) {
        for (int i = 0; i < 2; ++i) svg2_state_reset(&c[i].j.state);
        for (int step = 0; step < 2; ++step) {
            for (int i = 0; i < 2; ++i) call_launch(&c[(i + round) % 2], step);
            for (int i = 0; i < 2; ++i)
                if (call_hash(&c[i]) != want[i][step]) fail_msg("round %d, stream %d, step %d differs", round, i, step);
        }
    }
    device_reset();
    mem_done();
}

/* The same bits twenty times over, at a size with many blocks. */
static void check_same_bits(void **state)
{
    call c;
    uint64_t want = 0;
    (void)state;
    call_make(&c, desc_of(0), GAPS, 40, device_stream());
    call_fill(&c, 0);
    for (int round = 0; round < (device_is_emulated() ? 2 : 20); ++round) {
        svg2_state_reset(&c.j.state);
        call_launch(&c, 0);
        call_launch(&c, 1);
        const uint64_t got = call_hash(&c);
        if (round == 0) want = got;
        if (got != want) fail_msg("round %d differs", round);
    }
    device_reset();
    mem_done();
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(check_graph), TEST(check_sequence), TEST(check_streams), TEST(check_same_bits)};
    return cmocka_run_group_tests(tests, 0, 0);
}
