/* examples/wan/wan.c from the inside: forward pass against PyTorch, sampler, one state per layer and branch, and
   what attention of a trained model asks of svg2. Data: tests/data/wan_*.safetensors, see tests/data/README.md. */
#define WAN_NO_MAIN
#if defined(__GNUC__)
#  pragma GCC diagnostic ignored "-Wunused-function"
#endif
#include "../examples/wan/wan.c"

#include "test.h"

static const char *model_path = "examples/wan/model.safetensors";
static const char *reference_path = "tests/data/wan_reference.safetensors";
static const char *const qkv_paths[] = {"tests/data/wan_qkv_early.safetensors", "tests/data/wan_qkv_late.safetensors"};
enum { QKV_COUNT = TEST_SLOW_BUILD ? 1 : 2, BISECTIONS = TEST_SLOW_BUILD ? 3 : 7 };

/* ---- the forward pass --------------------------------------------------------------------- */
typedef struct reference {
    tf_file file;
    int compared;
} reference;

static float *reference_read(const reference *r, const char *name, int64_t *count)
{
    const tf_tensor *t = tf_find(&r->file, name);
    float *x;
    if (!t) fail_msg("%s lacks the tensor %s", reference_path, name);
    x = (float *)mem_new((size_t)t->count * sizeof *x);
    assert_true(tf_get_f32(t, 0, t->count, x));
    if (count) *count = t->count;
    return x;
}

static void reference_compare(reference *r, const char *name, const float *x)
{
    int64_t count;
    float *y = reference_read(r, name, &count);
    svg2_metrics metrics;
    svg2_error err;
    assert_ok(svg2_compare(x, y, (size_t)count, 0, &metrics, &err));
    assert_true(metrics.finite);
    if (metrics.rel_l2 > 1e-5) fail_msg("%s: relative L2 difference %.3g from PyTorch's", name, metrics.rel_l2);
    ++r->compared;
}

static void reference_block(void *user, int32_t layer, const float *x)
{
    char name[32] = "embedded";
    if (layer >= 0) snprintf(name, sizeof name, "block.%d", layer);
    reference_compare((reference *)user, name, x);
}

/* A model, a grid and a run, opened. */
typedef struct fixture {
    wan_model model;
    wan_grid grid;
    wan_work work;
    wan_run run;
    wan_step step;
} fixture;

static void fixture_open(fixture *f, const char *settings, int32_t frames, int32_t height, int32_t width)
{
    memset(f, 0, sizeof *f);
    wan_model_open(&f->model, model_path, 0);
    wan_grid_open(&f->grid, &f->model, frames, height, width);
    wan_work_open(&f->work, &f->model, &f->grid);
    wan_run_parse(&f->run, settings, 20);
    wan_run_open(&f->run, &f->model, &f->grid, 2);
    f->run.step = &f->step;
}

static void fixture_close(fixture *f)
{
    wan_run_close(&f->run);
    wan_work_close(&f->work);
    wan_grid_close(&f->grid);
    wan_model_close(&f->model);
}

static void test_forward_as_in_pytorch(void **state)
{
    fixture f;
    reference r;
    char message[TF_MESSAGE_COUNT];
    const tf_tensor *latent;
    wan_hooks hooks = {&r, NULL, reference_block};
    float *x, *text, *timestep, *context, *velocity;
    int64_t count;
    (void)state;
    memset(&r, 0, sizeof r);
    if (tf_open(&r.file, reference_path, message, sizeof message) != TF_OK) fail_msg("%s", message);
    latent = tf_find(&r.file, "latent"); /* [C, F, H, W] */
    assert_non_null(latent);
    fixture_open(&f, "dense", (int32_t)latent->shape[1], (int32_t)latent->shape[2] / 2, (int32_t)latent->shape[3] / 2);
    assert_int_equal(latent->shape[0], f.model.channels);
    x = reference_read(&r, "latent", &count);
    text = reference_read(&r, "text", NULL);
    timestep = reference_read(&r, "timestep", NULL);
    velocity = (float *)mem_new((size_t)count * sizeof *velocity);
    context = embed_text(&f.model, text);
    wan_forward(&f.model, &f.grid, &f.work, &f.run, 0, 0, x, (double)timestep[0], context, velocity, 0, &hooks);
    reference_compare(&r, "velocity", velocity);
    assert_int_equal(r.compared, f.model.layers + 2);
    free(context);
    fixture_close(&f);
    tf_close(&r.file);
}

/* Every extent of a product: rows and tokens that do not fill a panel or a group. */
static void test_linear_against_f64(void **state)
{
    static const int32_t shapes[][3] = {{1, 1, 1},     {5, 7, 3},     {6, 32, 16},   {7, 33, 17},
                                        {13, 100, 40}, {1, 192, 256}, {50, 70, 1030}};
    uint64_t seed = 3;
    size_t i;
    (void)state;
    for (i = 0; i < sizeof shapes / sizeof *shapes; ++i) {
        const int32_t n = shapes[i][0], rows = shapes[i][1], columns = shapes[i][2];
        float *x = (float *)mem_new((size_t)(n * columns) * 4), *w = (float *)mem_new((size_t)(rows * columns) * 4);
        float *y = (float *)mem_new((size_t)(n * rows) * 4), *bias = (float *)mem_new((size_t)rows * 4);
        wan_model m;
        wan_linear l;
        tf_tensor t;
        int32_t a, b, c;
        memset(&m, 0, sizeof m);
        memset(&t, 0, sizeof t);
        for (c = 0; c < n * columns; ++c) x[c] = (float)rnd_normal(&seed);
        for (c = 0; c < rows * columns; ++c) w[c] = (float)rnd_normal(&seed);
        for (c = 0; c < rows; ++c) bias[c] = (float)rnd_normal(&seed);
        t.dtype = TF_F32, t.rank = 2, t.shape[0] = rows, t.shape[1] = columns, t.count = (int64_t)rows * columns;
        t.bytes = (size_t)t.count * 4, t.data = w;
        l.weight = &t, l.bias = bias, l.rows = rows, l.columns = columns;
        m.scratch = (float *)mem_new((size_t)((rows + 31) * columns) * 4);
        linear(&m, &l, x, y, n);
        for (a = 0; a < n; ++a) {
            for (b = 0; b < rows; ++b) {
                double sum = bias[b], size = fabs(sum);
                for (c = 0; c < columns; ++c) {
                    double product = (double)x[a * columns + c] * (double)w[b * columns + c];
                    sum += product, size += fabs(product);
                }
                if (fabs(sum - (double)y[a * rows + b]) > 1e-6 * size)
                    fail_msg("%d x %d x %d at %d, %d", n, rows, columns, a, b);
            }
        }
    }
}

/* ---- sampler ------------------------------------------------------------------------------ */
static void test_noise_schedule(void **state)
{
    wan_options o;
    int32_t i;
    (void)state;
    wan_defaults(&o);
    o.steps = 10, o.shift = 3;
    assert_true(wan_sigma(&o, 0) == 1 && wan_sigma(&o, 10) == 0);
    for (i = 0; i < 10; ++i) assert_true(wan_sigma(&o, i) > wan_sigma(&o, i + 1));
    assert_at_most(fabs(wan_sigma(&o, 5) - 0.75), 1e-12); /* 3 * 0.5 / (1 + 2 * 0.5) */
    o.shift = 1;
    assert_at_most(fabs(wan_sigma(&o, 3) - 0.7), 1e-12);
}

static void test_noise_is_normal(void **state)
{
    enum { N = 100000 };
    static float x[N], y[N];
    double mean = 0, variance = 0, fourth = 0, shared = 0;
    int i;
    (void)state;
    wan_noise(x, N, 5);
    wan_noise(y, N, 6);
    for (i = 0; i < N; ++i) {
        const double v = (double)x[i];
        mean += v, variance += v * v, fourth += v * v * v * v, shared += v * (double)y[i];
    }
    assert_at_most(fabs(mean / N), 0.015);
    assert_at_most(fabs(variance / N - 1), 0.02);
    assert_at_most(fabs(fourth / N - 3), 0.15);
    assert_at_most(fabs(shared / N), 0.015); /* seeds are independent */
}

/* Generates from the fixture's seed; returns the latent. */
static float *generate(const char *settings, double guidance, int32_t steps, int32_t frames, int32_t height,
                       int32_t width, size_t *count)
{
    static wan_job clip_job;
    float *latent;
    memset(&clip_job, 0, sizeof clip_job);
    wan_defaults(&clip_job.o);
    clip_job.o.model = model_path, clip_job.o.steps = steps, clip_job.o.guidance = guidance, clip_job.o.threads = 2;
    clip_job.o.prompt = "red striped disc; blue dotted square; grey waves pan-left";
    wan_model_open(&clip_job.model, model_path, 0);
    wan_grid_open(&clip_job.grid, &clip_job.model, frames, height, width);
    wan_work_open(&clip_job.work, &clip_job.model, &clip_job.grid);
    clip_job.count = (size_t)clip_job.grid.tokens * (size_t)clip_job.model.channels * WAN_PATCH;
    clip_job.text = wan_embed_prompt(&clip_job.model, clip_job.o.prompt);
    clip_job.negative = floats((size_t)clip_job.model.text_len, (size_t)clip_job.model.text_dim);
    memset(clip_job.negative, 0,
           (size_t)clip_job.model.text_len * (size_t)clip_job.model.text_dim * sizeof *clip_job.negative);
    clip_job.noise = floats(clip_job.count, 1);
    wan_noise(clip_job.noise, clip_job.count, 11);
    wan_run_parse(&clip_job.runs[0], settings, 20);
    latent = (float *)mem_new(clip_job.count * sizeof *latent);
    wan_generate(&clip_job, &clip_job.runs[0], latent);
    *count = clip_job.count;
    free(clip_job.runs[0].steps), free(clip_job.noise), free(clip_job.text), free(clip_job.negative);
    wan_work_close(&clip_job.work), wan_grid_close(&clip_job.grid), wan_model_close(&clip_job.model);
    return latent;
}

static double relative(const float *x, const float *y, size_t count)
{
    svg2_metrics metrics;
    svg2_error err;
    assert_ok(svg2_compare(x, y, count, 0, &metrics, &err));
    return metrics.rel_l2;
}

/* One Euler step is linear in the guidance: v = v_without + g (v_with - v_without). */
static void test_guidance(void **state)
{
    size_t count, i;
    float *one = generate("dense", 1, 1, 2, 4, 4, &count), *two = generate("dense", 2, 1, 2, 4, 4, &count);
    float *three = generate("dense", 3, 1, 2, 4, 4, &count), *line = (float *)mem_new(count * sizeof *line);
    (void)state;
    for (i = 0; i < count; ++i) line[i] = 2 * two[i] - one[i];
    assert_at_most(relative(three, line, count), 1e-5);
    assert_true(relative(two, one, count) > 1e-3);
}

/* With every block selected sparse attention is dense attention, through the whole network. */
static void test_everything_selected_is_dense(void **state)
{
    size_t count;
    float *dense = generate("dense", 3, 3, 4, 8, 8, &count);
    float *all = generate("svg2,density=1", 3, 3, 4, 8, 8, &count),
          *some = generate("svg2,density=0.05,tail=0", 3, 3, 4, 8, 8, &count);
    (void)state;
    assert_at_most(relative(all, dense, count), 1e-4);
    assert_true(relative(some, dense, count) > 1e-3);
}

static void test_one_state_per_layer_and_branch(void **state)
{
    fixture f;
    size_t count;
    float *x, *velocity, *context, *text;
    int32_t step, branch, i;
    (void)state;
    fixture_open(&f, "svg2,dense-steps=1,dense-layers=2", 4, 4, 4);
    count = (size_t)f.grid.tokens * (size_t)f.model.channels * WAN_PATCH;
    x = (float *)mem_new(count * sizeof *x), velocity = (float *)mem_new(count * sizeof *velocity);
    wan_noise(x, count, 1);
    text = wan_embed_prompt(&f.model, "red disc;;navy");
    context = embed_text(&f.model, text);
    for (step = 0; step < 4; ++step) {
        for (branch = 0; branch < WAN_BRANCHES; ++branch) {
            wan_forward(&f.model, &f.grid, &f.work, &f.run, branch, step, x, 900, context, velocity, 0, NULL);
        }
    }
    for (i = 0; i < WAN_BRANCHES * f.model.layers; ++i) {
        assert_int_equal(f.run.state[i].calls, i % f.model.layers < 2 ? 0 : 3);
    }
    assert_int_equal(f.step.heads, 3 * WAN_BRANCHES * (f.model.layers - 2) * f.model.heads);
    free(context), free(text);
    fixture_close(&f);
}

/* ---- attention of a trained model ----------------------------------------------------------- */
typedef struct qkv {
    wan_run run;
    wan_grid grid;
    float *x[3]; /* [heads, tokens, head_dim] */
    float *dense, *lse;
    int32_t heads, tokens, head_dim;
} qkv;

static void qkv_open(qkv *a, const char *path)
{
    static const char *const names[3] = {"q", "k", "v"};
    tf_file file;
    char message[TF_MESSAGE_COUNT];
    svg2_mass_desc mass;
    int i;
    memset(a, 0, sizeof *a);
    if (tf_open(&file, path, message, sizeof message) != TF_OK) fail_msg("%s", message);
    for (i = 0; i < 3; ++i) {
        const tf_tensor *t = tf_find(&file, names[i]);
        assert_true(t && t->rank == 3);
        a->heads = (int32_t)t->shape[0], a->tokens = (int32_t)t->shape[1], a->head_dim = (int32_t)t->shape[2];
        a->x[i] = (float *)mem_new((size_t)t->count * sizeof(float));
        assert_true(tf_get_f32(t, 0, t->count, a->x[i]));
    }
    tf_close(&file);
    a->grid.frames = a->tokens / 256, a->grid.height = a->grid.width = 16, a->grid.tokens = a->tokens;
    assert_int_equal(a->grid.frames * 256, a->tokens);
    a->dense = (float *)mem_new((size_t)a->heads * (size_t)a->tokens * (size_t)a->head_dim * sizeof(float));
    a->lse = (float *)mem_new((size_t)a->heads * (size_t)a->tokens * sizeof(float));
    a->run.cpu = svg2_cpu_backend(0);
    a->run.q = a->x[0], a->run.k = a->x[1], a->run.v = a->x[2];
    a->run.desc.heads = a->heads, a->run.desc.tokens = a->tokens, a->run.desc.head_dim = a->head_dim;
    wan_exact(&a->run, &mass.attention, a->dense, a->lse);
}

/* One cold call; of AdaSpa, whose first is dense, the next. Returns the relative error; mean recall and density by
   pointer. */
static double qkv_call(qkv *a, const char *settings, double *recall, double *density)
{
    const size_t rows = (size_t)a->heads * (size_t)a->tokens, count = rows * (size_t)a->head_dim;
    float *out = floats(count, 1), *row_recall = floats(rows, 1);
    svg2_head_stats stats[16];
    svg2_state state;
    svg2_plan plan;
    svg2_mass_desc mass;
    svg2_error err;
    double error;
    size_t bytes, i;
    int32_t step, last;
    void *memory, *work;
    svg2_desc d;
    wan_run run;

    wan_run_parse(&run, settings, 20);
    run.grid = &a->grid;
    run.cpu = run.backend = svg2_cpu_backend(0);
    run.backend.user = &run;
    if (run.method == WAN_RASTER || run.method == WAN_TILES) run.backend.kmeans = wan_position_blocks;
    d = run.desc;
    d.heads = a->heads, d.tokens = a->tokens, d.head_dim = a->head_dim;
    assert_true(a->heads <= 16);
    assert_ok(svg2_resolve(&d, &err));
    last = d.method == SVG2_METHOD_ADASPA;
    memory = tool_allocate(svg2_state_bytes(&d), 1);
    bytes = svg2_workspace_bytes(&run.backend, &d);
    work = tool_allocate(bytes, 1);
    assert_ok(svg2_state_init(&state, &d, memory, svg2_state_bytes(&d), &err));
    for (step = 0; step <= last; ++step)
        assert_ok(svg2_attend(&run.backend, &d, &state, step, a->x[0], a->x[1], a->x[2], out, NULL, stats, work, bytes,
                              &err));
    plan = svg2_plan_view(&run.backend, &d, last, work);
    memset(&mass, 0, sizeof mass);
    mass.attention.batch = 1, mass.attention.heads = mass.attention.heads_kv = a->heads,
    mass.attention.head_dim = a->head_dim;
    mass.attention.tokens = mass.attention.tokens_kv = a->tokens, mass.attention.scale = d.scale;
    mass.attention.q = a->x[0], mass.attention.k = a->x[1], mass.attention.v = a->x[2];
    mass.attention.out = out, mass.attention.lse = a->lse;
    mass.attention.query_blocks = plan.query_blocks, mass.attention.key_blocks = plan.key_blocks;
    mass.attention.query_order = plan.query_order, mass.attention.query_offset = plan.query_offset;
    mass.attention.key_order = plan.key_order, mass.attention.key_offset = plan.key_offset;
    mass.attention.map = plan.map;
    mass.recall = row_recall;
    wan_exact_mass(&run, &mass);
    error = relative(out, a->dense, count);
    for (*recall = 0, i = 0; i < rows; ++i) *recall += (double)row_recall[i] / (double)rows;
    for (*density = 0, i = 0; i < (size_t)a->heads; ++i) *density += (double)stats[i].density / a->heads;
    free(out), free(row_recall), free(memory), free(work);
    return error;
}

/* SVG2's claim: to hold the same attention mass, blocks of similar tokens need fewer pairs than blocks of neighbours. */
static void test_semantic_blocks_need_less_than_raster(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < QKV_COUNT; ++i) {
        qkv a;
        double semantic, raster, density, low = 0.15, high = 1;
        int round;
        qkv_open(&a, qkv_paths[i]);
        qkv_call(&a, "svg2,tail=0,budget=head,density=0.15", &semantic, &density);
        for (round = 0; round < BISECTIONS; ++round) { /* the density at which raster blocks hold as much */
            char settings[64];
            double middle = (low + high) / 2;
            snprintf(settings, sizeof settings, "raster,tail=0,budget=head,density=%.4f", middle);
            qkv_call(&a, settings, &raster, &density);
            if (raster < semantic)
                low = middle;
            else
                high = middle;
        }
        print_message("%s: recall %.3f takes 0.150 of the pairs with clusters, %.3f with raster blocks\n", qkv_paths[i],
                      semantic, high);
        assert_true(high > 0.15 * 1.2);
    }
}

static void test_each_order_of_the_tail_is_better(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < QKV_COUNT; ++i) {
        qkv a;
        double none, order0, order1, recall, density;
        qkv_open(&a, qkv_paths[i]);
        none = qkv_call(&a, "svg2,tail=0,budget=head,density=0.1", &recall, &density);
        order0 = qkv_call(&a, "svg2,tail=1,density=0.1", &recall, &density);
        order1 = qkv_call(&a, "svg2,tail=2,density=0.1", &recall, &density);
        print_message("%s: error at 10 %%: dropped %.4f, order 0 %.4f, order 1 %.4f\n", qkv_paths[i], none, order0,
                      order1);
        assert_true(order0 < none * 0.5 && order1 < order0);
    }
}

/* Blocks of neighbours: their mean value helps in some layers and hurts in others; order 1 helps. */
static void test_tail_of_adaspa(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < QKV_COUNT; ++i) {
        qkv a;
        double none, order0, order1, recall, density;
        qkv_open(&a, qkv_paths[i]);
        none = qkv_call(&a, "adaspa,sparsity=0.85", &recall, &density);
        order0 = qkv_call(&a, "adaspa,sparsity=0.85,tail=1", &recall, &density);
        order1 = qkv_call(&a, "adaspa,sparsity=0.85,tail=2", &recall, &density);
        print_message("%s: error of AdaSpa at %.3f: dropped %.4f, order 0 %.4f, order 1 %.4f\n", qkv_paths[i], density,
                      none, order0, order1);
        assert_true(density < 0.25 && order1 < none);
    }
}

/* Sharp heads, whose rows look at other keys than their centroid does: the estimate sees the rows, and the error stays
   under what was asked for. */
static void test_target_error_is_kept(void **state)
{
    size_t i;
    (void)state;
    for (i = 0; i < QKV_COUNT; ++i) {
        qkv a;
        double loose, tight, recall, density, more;
        qkv_open(&a, qkv_paths[i]);
        loose = qkv_call(&a, "svg2,target-error=0.1", &recall, &density);
        tight = qkv_call(&a, "svg2,target-error=0.03", &recall, &more);
        print_message("%s: target 0.1: error %.4f at density %.3f; target 0.03: %.4f at %.3f\n", qkv_paths[i], loose,
                      density, tight, more);
        assert_true(more > density && tight < loose);
        assert_at_most(loose, 0.1);
        assert_at_most(tight, 0.03);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_forward_as_in_pytorch),
                                       TEST(test_linear_against_f64),
                                       TEST(test_noise_schedule),
                                       TEST(test_noise_is_normal),
                                       TEST(test_guidance),
                                       TEST(test_everything_selected_is_dense),
                                       TEST(test_one_state_per_layer_and_branch),
                                       TEST(test_semantic_blocks_need_less_than_raster),
                                       TEST(test_each_order_of_the_tail_is_better),
                                       TEST(test_tail_of_adaspa),
                                       TEST(test_target_error_is_kept)};
    tool_start("test_wan");
#ifndef TF_NO_CJSON
    return cmocka_run_group_tests_name("wan", tests, 0, 0);
#else
    (void)tests;
    printf("skipped: no cJSON, models cannot be read\n0 passed, 0 failed, 11 skipped\n");
    return 0;
#endif
}
