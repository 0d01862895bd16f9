/* >>base: results and errors, sizes, resolve and validation, bad arguments of svg2_attend. */
#include "test.h"

static void test_result_strings(void **state)
{
    (void)state;
    static const svg2_result all[] = {
#define SVG2__X(name, value, text) name,
        SVG2_RESULTS(SVG2__X)
#undef SVG2__X
    };
    for (int i = 0; i < COUNT(all); ++i) {
        const char *s = svg2_result_string(all[i]);
        assert_non_null(s);
        assert_true(strlen(s) > 1);
        for (int k = 0; k < i; ++k) assert_string_not_equal(s, svg2_result_string(all[k]));
    }
    assert_string_equal(svg2_result_string(SVG2_OK), "ok");
    assert_non_null(svg2_result_string((svg2_result)77));
    assert_non_null(svg2_result_string((svg2_result)-1));
}

static svg2_desc good(void)
{
    svg2_desc d = desc_small(4, 300, 24);
    d.batch = 2;
    d.heads_kv = 2;
    d.text_tokens = 20;
    d.text_valid = 11;
    return d;
}

static void test_resolve_defaults(void **state)
{
    (void)state;
    svg2_desc d = desc_small(24, 33 * 3600, 128), again;
    svg2_error err;
    memset(&err, 0x55, sizeof err);
    assert_ok(svg2_resolve(&d, &err));
    assert_true(err.code == SVG2_OK && err.field && err.field[0] == 0);
    assert_true(d.batch == 1 && d.heads_kv == 24 && d.tokens_kv == d.tokens);
    assert_true(fabs((double)d.scale - 1 / sqrt(128)) < 1e-8);
    int32_t cq, ck;
    svg2_default_clusters(d.tokens, &cq, &ck);
    assert_true(d.query_clusters == cq && d.key_clusters == ck);
    assert_true(d.init_iterations == 10 && d.step_iterations == 2 && d.keep_empty == 0);
    assert_true(d.tail == SVG2_TAIL_ORDER1 && d.route == SVG2_ROUTE_MASS && d.budget == SVG2_BUDGET_HEAD);
    assert_true(d.top_p == 0.9f && d.dense_above == 0.8f && d.density == 0 && d.target_error == 0.02f);
    for (int given = 0; given < 2; ++given) { /* the default target error yields to the other two ways to say how much */
        svg2_desc other = desc_small(2, 1000, 64);
        if (given) other.density = 0.2f;
        else other.top_p = 0.9f;
        assert_ok(svg2_resolve(&other, 0));
        assert_true(other.target_error == 0 && other.tail == SVG2_TAIL_ORDER1);
        again = other;
        assert_ok(svg2_resolve(&again, 0));
        assert_true(desc_equal(&again, &other));
    }
    again = d;
    assert_ok(svg2_resolve(&again, &err)); /* idempotent */
    assert_true(desc_equal(&again, &d));

    svg2_desc plain = desc_small(2, 1000, 64);
    plain.tail = SVG2_TAIL_NONE;
    assert_ok(svg2_resolve(&plain, 0));
    assert_true(plain.route == SVG2_ROUTE_MASS && plain.budget == SVG2_BUDGET_ROW && fabs((double)plain.min_keep - 0.1) < 1e-6 && plain.density == 0 && plain.target_error == 0);

    svg2_desc text = desc_small(2, 1000, 64);
    text.text_tokens = 100;
    assert_ok(svg2_resolve(&text, 0));
    assert_int_equal(text.text_valid, 100);
    text = desc_small(2, 1000, 64);
    text.text_tokens = 100;
    text.text_valid = -1;
    text.step_iterations = -1;
    text.min_keep = -1;
    assert_ok(svg2_resolve(&text, 0));
    again = text;
    assert_ok(svg2_resolve(&again, 0));
    assert_true(desc_equal(&again, &text));
    assert_true(text.text_valid == -1 && text.step_iterations == -1); /* still "none", also the second time */
}

/* Every field, out of its range: code and field; nothing is written; the size queries say SIZE_MAX; svg2_attend refuses. */
static void test_every_field(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    svg2_desc base = good(), d;
    svg2_error err;
    job j;
    job_make(&j, base, &backend, BHSD, 1);
    uint64_t state_before = mem_hash(&j.state, sizeof j.state);
#define BAD(change, want, name)                                                                                         \
    do {                                                                                                                \
        d = base;                                                                                                       \
        change;                                                                                                         \
        svg2_desc before = d;                                                                                           \
        if (!error_names(&err, svg2_resolve(&d, &err), want, name)) fail_msg("svg2_resolve: %s", #change);               \
        assert_memory_equal(&d, &before, sizeof d);                                                                     \
        if (!(svg2_workspace_bytes(&backend, &d) == SIZE_MAX && svg2_state_bytes(&d) == SIZE_MAX)) fail_msg("sizes: %s", #change); \
        svg2_result r = svg2_attend(&backend, &d, &j.state, 0, j.q.data, j.k.data, j.v.data, j.out.data, j.lse, j.stats, j.work, \
                                    j.work_bytes, &err);                                                                \
        if (!error_names(&err, r, want, name)) fail_msg("svg2_attend: %s", #change);                                     \
        svg2_state s;                                                                                                   \
        memset(&s, 0xff, sizeof s);                                                                                     \
        if (!error_names(&err, svg2_state_init(&s, &d, j.state_memory, j.state_bytes, &err), want, name)) fail_msg("svg2_state_init: %s", #change); \
        assert_untouched(&s, sizeof s);                                                                                 \
    } while (0)
    BAD(d.batch = -1, SVG2_ERR_RANGE, "batch");
    BAD(d.heads = 0, SVG2_ERR_RANGE, "heads");
    BAD(d.heads = -4, SVG2_ERR_RANGE, "heads");
    BAD(d.heads_kv = -1, SVG2_ERR_RANGE, "heads_kv");
    BAD(d.heads_kv = 3, SVG2_ERR_SHAPE, "heads_kv");
    BAD(d.heads_kv = 8, SVG2_ERR_SHAPE, "heads_kv");
    BAD(d.tokens = 0, SVG2_ERR_RANGE, "tokens");
    BAD(d.tokens = -300, SVG2_ERR_RANGE, "tokens");
    BAD(d.tokens = INT32_MIN, SVG2_ERR_RANGE, "tokens");
    BAD(d.tokens_kv = -1, SVG2_ERR_RANGE, "tokens_kv");
    BAD(d.head_dim = 0, SVG2_ERR_RANGE, "head_dim");
    BAD(d.head_dim = -8, SVG2_ERR_RANGE, "head_dim");
    BAD(d.head_dim = 4, SVG2_ERR_RANGE, "head_dim");
    BAD(d.head_dim = 25, SVG2_ERR_RANGE, "head_dim");
    BAD(d.head_dim = 264, SVG2_ERR_RANGE, "head_dim");
    BAD(d.scale = NAN, SVG2_ERR_RANGE, "scale");
    BAD(d.scale = INFINITY, SVG2_ERR_RANGE, "scale");
    BAD(d.frames = -1, SVG2_ERR_RANGE, "frames");
    BAD(d.frame_tokens = -1, SVG2_ERR_RANGE, "frame_tokens");
    BAD((d.frames = 7, d.frame_tokens = 41), SVG2_ERR_SHAPE, "frame_tokens");
    BAD(d.text_tokens = -1, SVG2_ERR_RANGE, "text_tokens");
    BAD(d.text_tokens = 301, SVG2_ERR_SHAPE, "text_tokens");
    BAD(d.text_place = (svg2_text_place)2, SVG2_ERR_RANGE, "text_place");
    BAD(d.text_place = (svg2_text_place)-1, SVG2_ERR_RANGE, "text_place");
    BAD(d.text_valid = 21, SVG2_ERR_RANGE, "text_valid");
    BAD(d.text_valid = -2, SVG2_ERR_RANGE, "text_valid");
    BAD(d.method = (svg2_method)4, SVG2_ERR_RANGE, "method");
    BAD(d.method = (svg2_method)-1, SVG2_ERR_RANGE, "method");
    BAD(d.query_clusters = -1, SVG2_ERR_RANGE, "query_clusters");
    BAD(d.key_clusters = -1, SVG2_ERR_RANGE, "key_clusters");
    BAD(d.init_iterations = -1, SVG2_ERR_RANGE, "init_iterations");
    BAD(d.step_iterations = -2, SVG2_ERR_RANGE, "step_iterations");
    BAD(d.keep_empty = 2, SVG2_ERR_RANGE, "keep_empty");
    BAD(d.keep_empty = -1, SVG2_ERR_RANGE, "keep_empty");
    BAD(d.route = (svg2_route)3, SVG2_ERR_RANGE, "route");
    BAD(d.route = (svg2_route)-1, SVG2_ERR_RANGE, "route");
    BAD(d.budget = (svg2_budget)3, SVG2_ERR_RANGE, "budget");
    BAD(d.tail = (svg2_tail_kind)4, SVG2_ERR_RANGE, "tail");
    BAD(d.top_p = -0.1f, SVG2_ERR_RANGE, "top_p");
    BAD(d.top_p = 1.01f, SVG2_ERR_RANGE, "top_p");
    BAD(d.top_p = NAN, SVG2_ERR_RANGE, "top_p");
    BAD(d.min_keep = 1.01f, SVG2_ERR_RANGE, "min_keep");
    BAD(d.min_keep = NAN, SVG2_ERR_RANGE, "min_keep");
    BAD(d.density = -0.1f, SVG2_ERR_RANGE, "density");
    BAD(d.density = 1.01f, SVG2_ERR_RANGE, "density");
    BAD(d.density = NAN, SVG2_ERR_RANGE, "density");
    BAD(d.target_error = -1, SVG2_ERR_RANGE, "target_error");
    BAD(d.target_error = NAN, SVG2_ERR_RANGE, "target_error");
    BAD(d.target_error = INFINITY, SVG2_ERR_RANGE, "target_error");
    BAD((d.density = 0.1f, d.target_error = 0.1f), SVG2_ERR_SHAPE, "target_error");
    BAD(d.dense_above = -1, SVG2_ERR_RANGE, "dense_above");
    BAD(d.dense_above = NAN, SVG2_ERR_RANGE, "dense_above");
    BAD(d.layer = -1, SVG2_ERR_RANGE, "layer");
    BAD(d.dense_layers = -1, SVG2_ERR_RANGE, "dense_layers");
    BAD(d.dense_steps = -1, SVG2_ERR_RANGE, "dense_steps");
    BAD(d.init_on_dense = 2, SVG2_ERR_RANGE, "init_on_dense");
    BAD(d.state_dtype = (svg2_dtype)3, SVG2_ERR_DTYPE, "state_dtype");
    BAD(d.state_dtype = (svg2_dtype)-1, SVG2_ERR_DTYPE, "state_dtype");
    /* layouts: a dtype that is none, negative strides, rows that overlap or share elements in an output, overflow */
    BAD(d.q.dtype = (svg2_dtype)3, SVG2_ERR_DTYPE, "q");
    BAD(d.k.dtype = (svg2_dtype)-1, SVG2_ERR_DTYPE, "k");
    BAD(d.v.dtype = (svg2_dtype)100, SVG2_ERR_DTYPE, "v");
    BAD(d.out.dtype = (svg2_dtype)3, SVG2_ERR_DTYPE, "out");
    BAD(d.q.stride_token = -1, SVG2_ERR_STRIDE, "q");
    BAD(d.k.stride_head = -24, SVG2_ERR_STRIDE, "k");
    BAD(d.v.stride_batch = INT64_MIN, SVG2_ERR_STRIDE, "v");
    BAD((d.out.stride_batch = 4 * 300 * 24, d.out.stride_head = 300 * 24, d.out.stride_token = 23), SVG2_ERR_STRIDE, "out");
    BAD((d.out.stride_batch = 4 * 300 * 24, d.out.stride_head = 300 * 24, d.out.stride_token = 0), SVG2_ERR_STRIDE, "out");
    BAD((d.out.stride_batch = 0, d.out.stride_head = 300 * 24, d.out.stride_token = 24), SVG2_ERR_STRIDE, "out");
    BAD((d.out.stride_batch = 4 * 300 * 24, d.out.stride_head = 24, d.out.stride_token = 24), SVG2_ERR_STRIDE, "out");
    BAD((d.out.stride_batch = 4 * 300 * 24, d.out.stride_head = 299 * 24, d.out.stride_token = 24), SVG2_ERR_STRIDE, "out");
    BAD((d.out.stride_batch = 48, d.out.stride_head = 24, d.out.stride_token = 96), SVG2_ERR_STRIDE, "out");
    BAD((d.q.stride_batch = INT64_MAX, d.q.stride_head = 1, d.q.stride_token = 1), SVG2_ERR_OVERFLOW, "q");
    BAD((d.k.stride_batch = 1, d.k.stride_head = 1, d.k.stride_token = INT64_MAX / 4), SVG2_ERR_OVERFLOW, "k");
    assert_untouched(j.out.data, j.out.bytes);
    assert_untouched(j.lse, 2 * 4 * 300 * 4);
    assert_untouched(j.stats, 8 * sizeof *j.stats);
    assert_untouched(j.work, j.work_bytes);
    assert_untouched(j.state_memory, j.state_bytes);
    assert_true(state_before == mem_hash(&j.state, sizeof j.state));
    assert_true(error_names(&err, svg2_resolve(0, &err), SVG2_ERR_NULL, "desc"));
    assert_int_equal(svg2_resolve(0, 0), SVG2_ERR_NULL); /* err is optional everywhere */
    assert_true(svg2_workspace_bytes(&backend, 0) == SIZE_MAX && svg2_workspace_bytes(0, &base) == SIZE_MAX && svg2_state_bytes(0) == SIZE_MAX);
}

/* Inputs may broadcast (stride 0 beside others); outputs with extent 1 may have any stride there. */
static void test_allowed_strides(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    svg2_desc d = desc_small(4, 100, 24), one;
    job same, each;
    svg2_error err;
    job_make(&each, d, &backend, BHSD, 1);
    for (int h = 1; h < 4; ++h) {
        memcpy((float *)each.k.data + h * 2400, each.k.data, 2400 * 4);
        memcpy((float *)each.v.data + h * 2400, each.v.data, 2400 * 4);
    }
    job_run(&each, 0);
    d.k.stride_token = d.v.stride_token = 24; /* heads and batch: stride 0 */
    job_alloc(&same, each.d, &backend, BHSD);
    same.d.k.stride_token = same.d.v.stride_token = 24;
    same.k.data = each.k.data; same.v.data = each.v.data; same.q.data = each.q.data;
    job_run(&same, 0);
    assert_true(job_hash(&same) == job_hash(&each));
    one = desc_small(1, 100, 24);
    one.out.stride_token = 24; /* batch 1, heads 1 */
    assert_ok(svg2_resolve(&one, &err));
}

static void test_sizes_saturate(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    svg2_desc d = desc_small(1, INT32_MAX, 256);
    svg2_error err;
    size_t bytes = svg2_workspace_bytes(&backend, &d);
    assert_true(bytes > (size_t)INT32_MAX * 4); /* a real number: 2^31-1 tokens are allowed */
    d.batch = d.heads = INT32_MAX;
    svg2_result r = svg2_resolve(&d, &err);
    assert_true(r == SVG2_ERR_OVERFLOW && err.code == r && err.field[0]);
    assert_true(svg2_workspace_bytes(&backend, &d) == SIZE_MAX && svg2_state_bytes(&d) == SIZE_MAX);
    d = desc_small(1 << 20, 1 << 22, 256); /* elements fit into 63 bits, bytes of clusters do not */
    d.batch = 1 << 20;
    d.query_clusters = d.key_clusters = 1 << 22;
    assert_true(svg2_state_bytes(&d) == SIZE_MAX);
    d = desc_small(4, 1000, 64);
    d.query_clusters = d.key_clusters = INT32_MAX; /* far more clusters than tokens */
    bytes = svg2_workspace_bytes(&backend, &d);
    assert_true(bytes == SIZE_MAX || bytes > (size_t)INT32_MAX);
    d = desc_small(1, INT32_MAX - 1023, 256); /* the most tokens there may be */
    d.batch = 1;
    assert_int_equal(svg2_resolve(&d, &err), SVG2_OK);
    ++d.tokens;
    assert_int_equal(svg2_resolve(&d, &err), SVG2_ERR_RANGE);
    assert_string_equal(err.field, "tokens");
    d = desc_small(1, 400000000, 256); /* a zero descriptor is valid whatever the size */
    d.batch = 1;
    assert_int_equal(svg2_resolve(&d, &err), SVG2_OK);
    assert_true(d.query_clusters <= 65536 && d.key_clusters <= 65536);
    d = desc_small(1, INT32_MAX - 1023, 256);
    d.q.stride_batch = 1; d.q.stride_head = 1; d.q.stride_token = ((int64_t)1 << 62) / 1000;
    r = svg2_resolve(&d, &err);
    assert_true((r == SVG2_ERR_STRIDE || r == SVG2_ERR_OVERFLOW) && err.field[0] == 'q');

    /* stages: the same */
    svg2_kmeans_desc km = SVG2_ZERO;
    km.batch = km.heads = km.tokens = km.clusters = INT32_MAX;
    km.head_dim = 256;
    km.iterations = 1;
    assert_true(svg2_stage_workspace_bytes(&backend, SVG2_STAGE_KMEANS, &km) == SIZE_MAX);
    svg2_select_desc se = SVG2_ZERO;
    se.batch = se.heads = se.heads_kv = se.query_clusters = se.key_clusters = INT32_MAX;
    se.head_dim = 256;
    size_t n = svg2_stage_workspace_bytes(&backend, SVG2_STAGE_SELECT, &se);
    assert_true(n == SIZE_MAX || n > 0);
    assert_true(svg2_stage_workspace_bytes(&backend, SVG2_STAGE_COUNT, &km) == SIZE_MAX);
    assert_true(svg2_stage_workspace_bytes(&backend, SVG2_STAGE_KMEANS, 0) == SIZE_MAX);
    assert_true(svg2_stage_workspace_bytes(0, SVG2_STAGE_KMEANS, &km) == SIZE_MAX);
    memset(&km, 0, sizeof km);
    assert_true(svg2_stage_workspace_bytes(&backend, SVG2_STAGE_KMEANS, &km) == SIZE_MAX); /* invalid */
}

/* The workspace does not hold anything of the size of a whole input, nor S x S, nor S x C. */
static void test_workspace_is_modest(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    svg2_desc d = desc_small(1, 118800, 128);
    double tokens = 118800;
    d.query_clusters = 400; d.key_clusters = 1000;
    d.tail = SVG2_TAIL_NONE;
    size_t bytes = svg2_workspace_bytes(&backend, &d);
    assert_true((double)bytes < tokens * 128 * 4); /* less than one f32 copy of Q */
    d.tail = SVG2_TAIL_ORDER1; /* (Cq + Ck) matrices of one head come on top */
    assert_true((double)svg2_workspace_bytes(&backend, &d) < (double)bytes + 1.1 * 4 * 1400 * 128 * 128);
    d.method = SVG2_METHOD_DENSE;
    assert_true(svg2_workspace_bytes(&backend, &d) < bytes);
    assert_int_equal(svg2_state_bytes(&d), 0);
}

static void test_attend_arguments(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    for (int dense = 0; dense < 2; ++dense) {
        svg2_desc d = good();
        job j;
        svg2_error e;
        svg2_result r;
        d.method = dense ? SVG2_METHOD_DENSE : SVG2_METHOD_SVG2;
        job_make(&j, d, &backend, BHSD, 1);
        char *work = (char *)mem_new(j.work_bytes + 64);
        const svg2_backend *b = &backend;
        const svg2_desc *dp = &j.d;
        const void *q = j.q.data, *k = j.k.data, *v = j.v.data;
        void *out = j.out.data;
#define CALL(B_, D_, S_, STEP_, Q_, K_, V_, O_, W_, N_, code, name)                                     \
    do {                                                                                                \
        r = svg2_attend(B_, D_, S_, STEP_, Q_, K_, V_, O_, j.lse, j.stats, W_, N_, &e);                 \
        if (!error_names(&e, r, code, name)) fail_msg("dense %d", dense);                               \
    } while (0)
        CALL(0, dp, &j.state, 0, q, k, v, out, work, j.work_bytes, SVG2_ERR_NULL, "backend");
        CALL(b, 0, &j.state, 0, q, k, v, out, work, j.work_bytes, SVG2_ERR_NULL, "desc");
        CALL(b, dp, &j.state, 0, 0, k, v, out, work, j.work_bytes, SVG2_ERR_NULL, "q");
        CALL(b, dp, &j.state, 0, q, 0, v, out, work, j.work_bytes, SVG2_ERR_NULL, "k");
        CALL(b, dp, &j.state, 0, q, k, 0, out, work, j.work_bytes, SVG2_ERR_NULL, "v");
        CALL(b, dp, &j.state, 0, q, k, v, 0, work, j.work_bytes, SVG2_ERR_NULL, "out");
        CALL(b, dp, &j.state, -1, q, k, v, out, work, j.work_bytes, SVG2_ERR_RANGE, "step");
        CALL(b, dp, &j.state, 0, q, k, v, out, 0, j.work_bytes, SVG2_ERR_NULL, "workspace");
        CALL(b, dp, &j.state, 0, q, k, v, out, work, j.work_bytes - 1, SVG2_ERR_WORKSPACE, "workspace_bytes|workspace");
        CALL(b, dp, &j.state, 0, q, k, v, out, work, 0, SVG2_ERR_WORKSPACE, "workspace_bytes|workspace");
        CALL(b, dp, &j.state, 0, q, k, v, out, work + 1, j.work_bytes, SVG2_ERR_ALIGN, "workspace");
        CALL(b, dp, &j.state, 0, q, k, v, out, work + 32, j.work_bytes, SVG2_ERR_ALIGN, "workspace");
        if (!dense) CALL(b, dp, 0, 0, q, k, v, out, work, j.work_bytes, SVG2_ERR_NULL, "state");
        assert_untouched(j.out.data, j.out.bytes);
        assert_untouched(j.lse, 2 * 4 * 300 * 4);
        assert_untouched(j.stats, 8 * sizeof *j.stats);
        assert_untouched(work, j.work_bytes + 64);
        assert_untouched(j.state_memory, j.state_bytes);
        assert_int_equal(j.state.is_warm, 0);
        /* lse, stats and err may be NULL; a dense call needs no state; the unresolved descriptor is as good */
        job_run(&j, 0);
        tensor out2 = tensor_new(2, 4, 300, 24, SVG2_F32, BHSD);
        svg2_state_reset(&j.state);
        assert_ok(svg2_attend(b, &d, dense ? 0 : &j.state, 0, q, k, v, out2.data, 0, 0, j.work, j.work_bytes, 0));
        assert_memory_equal(out2.data, j.out.data, j.out.bytes);
        mem_done();
    }
}

static void test_plan_view_of_nothing(void **state)
{
    (void)state;
    svg2_backend backend = svg2_cpu_backend(0);
    svg2_desc d = desc_small(1, 100, 8);
    svg2_plan p = svg2_plan_view(&backend, &d, 0, 0);
    assert_true(!p.map && !p.query_label && p.query_blocks == 0);
    p = svg2_plan_view(0, &d, 0, &d);
    assert_true(!p.map && !p.key_label);
    p = svg2_plan_view(&backend, 0, 0, &d);
    assert_true(!p.map && !p.key_label);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_result_strings),  TEST(test_resolve_defaults),    TEST(test_every_field),      TEST(test_allowed_strides),
        TEST(test_sizes_saturate),  TEST(test_workspace_is_modest), TEST(test_attend_arguments), TEST(test_plan_view_of_nothing),
    };
    return cmocka_run_group_tests_name("base", tests, 0, 0);
}
