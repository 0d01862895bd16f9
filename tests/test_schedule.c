/* >>schedule: dense or sparse, presets, cost. */
#include "test.h"

static void test_actions(void **state)
{
    (void)state;
    svg2_desc d = desc_small(2, 1000, 64);
    d.dense_steps = 3;
    d.dense_layers = 2;
    for (int init = 0; init < 2; ++init)
        for (int layer = 0; layer < 5; ++layer)
            for (int step = 0; step < 6; ++step) {
                svg2_action want = SVG2_ACTION_SPARSE;
                d.layer = layer;
                d.init_on_dense = init;
                d.method = SVG2_METHOD_SVG2;
                if (step < 3) want = init && layer >= 2 ? SVG2_ACTION_DENSE_INIT : SVG2_ACTION_DENSE;
                if (layer < 2) want = SVG2_ACTION_DENSE; /* never sparse later: clusters would be wasted */
                svg2_action got = svg2_schedule(&d, step);
                if (layer >= 2 || !init) assert_int_equal(got, want);
                else assert_int_not_equal(got, SVG2_ACTION_SPARSE);
                d.method = SVG2_METHOD_DENSE;
                assert_int_equal(svg2_schedule(&d, step), SVG2_ACTION_DENSE);
            }
}

/* The settings of the authors' scripts. */
typedef struct published {
    const char *name;
    int heads, head_dim, layers, frames, frame_tokens, text, cq, ck, init, step, steps, dense_steps, dense_layers, init_on_dense;
    float keep;
} published;

static void test_presets(void **state)
{
    (void)state;
    static const published table[] = {
        {"wan2.1-t2v-14b-720p", 40, 128, 40, 21, 3600, 0, 300, 1000, 50, 2, 50, 10, 1, 0, 0.3f},
        {"wan2.1-i2v-14b-720p", 40, 128, 40, 21, 3600, 0, 300, 1000, 50, 2, 40, 14, 1, 0, 0.3f},
        {"wan2.1-i2v-14b-480p", 40, 128, 40, 21, 1560, 0, 200, 1000, 50, 2, 40, 8, 1, 1, 0.3f},
        {"hunyuanvideo-720p", 24, 128, 60, 33, 3600, 256, 400, 1000, 50, 2, 50, 5, 1, 1, 0.25f},
        {"hunyuanvideo-480p", 24, 128, 60, 33, 1350, 256, 200, 1000, 50, 2, 50, 2, 0, 1, 0.2f},
        {"cosmos-predict2-14b-720p", 40, 128, 36, 16, 3520, 0, 400, 1000, 50, 2, 35, 10, 1, 0, 0.25f},
    };
    for (int i = 0; i < COUNT(table); ++i) {
        const svg2_preset *p = svg2_preset_find(table[i].name);
        assert_non_null(p);
        assert_string_equal(p->note, "published");
        assert_int_equal(p->heads, table[i].heads);
        assert_int_equal(p->head_dim, table[i].head_dim);
        assert_int_equal(p->layers, table[i].layers);
        assert_int_equal(p->frames, table[i].frames);
        assert_int_equal(p->frame_tokens, table[i].frame_tokens);
        assert_int_equal(p->text_tokens, table[i].text);
        assert_int_equal(p->query_clusters, table[i].cq);
        assert_int_equal(p->key_clusters, table[i].ck);
        assert_int_equal(p->init_iterations, table[i].init);
        assert_int_equal(p->step_iterations, table[i].step);
        assert_int_equal(p->steps, table[i].steps);
        assert_int_equal(p->dense_steps, table[i].dense_steps);
        assert_int_equal(p->dense_layers, table[i].dense_layers);
        assert_int_equal(p->init_on_dense, table[i].init_on_dense);
        assert_true(p->keep == table[i].keep);
    }
}

static void test_preset_functions(void **state)
{
    (void)state;
    int n = svg2_preset_count();
    assert_true(n >= 6);
    assert_null(svg2_preset_at(-1));
    assert_null(svg2_preset_at(n));
    assert_null(svg2_preset_find("no such model"));
    assert_null(svg2_preset_find(""));
    assert_null(svg2_preset_find(0));
    for (int i = 0; i < n; ++i) {
        const svg2_preset *p = svg2_preset_at(i);
        svg2_desc d, again;
        svg2_error err;
        memset(&d, 0x77, sizeof d);
        assert_ptr_equal(svg2_preset_find(p->name), p);
        assert_ok(svg2_preset_apply(p, &d, &err));
        assert_int_equal(d.heads, p->heads);
        assert_int_equal(d.tokens, p->frames * p->frame_tokens + p->text_tokens);
        assert_int_equal(d.text_tokens, p->text_tokens);
        assert_int_equal(d.text_place, p->text_first ? SVG2_TEXT_FIRST : SVG2_TEXT_LAST);
        assert_true(p->note && p->note[0]);
        assert_int_equal(d.route, SVG2_ROUTE_MASS);
        assert_int_equal(d.budget, SVG2_BUDGET_ROW);
        assert_int_equal(d.tail, SVG2_TAIL_NONE);
        assert_true(d.top_p == p->top_p && d.min_keep == p->min_keep && d.keep == p->keep);
        assert_ok(svg2_resolve(&d, &err));
        again = d;
        assert_ok(svg2_resolve(&again, &err));
        assert_true(desc_equal(&d, &again));
        if (p->query_clusters) assert_int_equal(d.query_clusters, p->query_clusters); /* 0 = default */
        svg2_backend cpu = svg2_cpu_backend(0);
        assert_true(svg2_workspace_bytes(&cpu, &d) < SIZE_MAX);
        size_t centroids = ((size_t)d.batch * (size_t)d.heads * (size_t)d.query_clusters
                            + (size_t)d.batch * (size_t)d.heads_kv * (size_t)d.key_clusters) * (size_t)d.head_dim;
        assert_true(svg2_state_bytes(&d) >= centroids * 4 && svg2_state_bytes(&d) < centroids * 4 + 4096);
        assert_ok(svg2_preset_apply(p, &d, &err)); /* the same model with SVG1, as its authors run it */
        d.method = SVG2_METHOD_SVG1;
        assert_ok(svg2_resolve(&d, &err));
        assert_true(d.keep == (p->keep > 0 ? p->keep : 0.3f) && d.sample_rows == 64 && d.first_frame == (p->text_tokens ? -1 : 1));
        assert_true(d.band_width > p->frame_tokens && d.band_width < d.tokens / 4); /* a few frames */
        assert_true(svg2_schedule(&d, p->dense_steps) == (p->dense_layers ? SVG2_ACTION_DENSE : SVG2_ACTION_SPARSE));
        d.layer = p->dense_layers;
        assert_int_equal(svg2_schedule(&d, p->dense_steps), SVG2_ACTION_SPARSE);
        assert_int_equal(svg2_schedule(&d, p->dense_steps - 1), SVG2_ACTION_DENSE);
        assert_ok(svg2_preset_apply(p, &d, &err)); /* and with AdaSpa */
        d.method = SVG2_METHOD_ADASPA;
        d.dense_steps = 10;
        d.dense_layers = 0;
        assert_ok(svg2_resolve(&d, &err));
        assert_true(d.sparsity == 0.8f && d.block == 64 && d.search_count == 2 && d.tail == SVG2_TAIL_NONE);
        assert_int_equal(svg2_schedule(&d, 9), SVG2_ACTION_DENSE);
        assert_int_equal(svg2_schedule(&d, 10), SVG2_ACTION_SEARCH);
        assert_int_equal(svg2_schedule(&d, 29), SVG2_ACTION_SPARSE);
        assert_int_equal(svg2_schedule(&d, 30), SVG2_ACTION_SEARCH_CACHED);
        assert_true(svg2_workspace_bytes(&cpu, &d) < SIZE_MAX);
    }
    svg2_error err;
    svg2_desc d;
    assert_true(error_names(&err, svg2_preset_apply(0, &d, &err), SVG2_ERR_NULL, "preset"));
    assert_true(error_names(&err, svg2_preset_apply(svg2_preset_at(0), 0, &err), SVG2_ERR_NULL, "desc"));
}

static void test_cost(void **state)
{
    (void)state;
    svg2_desc d = desc_small(24, 33 * 3600, 128);
    svg2_cost a, b;
    svg2_error err;
    d.query_clusters = 400;
    d.key_clusters = 1000;
    d.init_iterations = 50;
    d.step_iterations = 2;
    assert_ok(svg2_cost_estimate(&d, 0.25, 1, &a, &err));
    double s = 33. * 3600;
    assert_at_most(fabs(a.dense_flops / (4 * 24 * s * s * 128) - 1), 1e-9);
    assert_at_most(fabs(a.attention_flops / (a.dense_flops * 0.25) - 1), 0.02);
    assert_at_most(fabs(a.kmeans_flops / (2 * 2 * 24 * s * (400 + 1000) * 128) - 1), 1e-9);
    assert_at_most(fabs(a.ratio - (a.kmeans_flops + a.select_flops + a.tail_flops + a.attention_flops) / a.dense_flops), 1e-9);
    assert_true(a.ratio > 0.25 && a.ratio < 0.35);
    assert_ok(svg2_cost_estimate(&d, 0.25, 0, &b, &err));
    assert_true(b.kmeans_flops > 10 * a.kmeans_flops && b.attention_flops == a.attention_flops);
    assert_ok(svg2_cost_estimate(&d, 1, 1, &b, &err));
    assert_true(b.ratio > 1);
    d.tail = SVG2_TAIL_NONE;
    assert_ok(svg2_cost_estimate(&d, 0.25, 1, &b, &err));
    assert_true(b.tail_flops == 0 && a.tail_flops > 0);
    /* the other methods: no clusters; a search is a dense call and the logits once more; a skip rule saves half of a tile */
    svg2_desc other = d;
    other.frames = 33; other.frame_tokens = 3600;
    other.method = SVG2_METHOD_SVG1;
    assert_ok(svg2_cost_estimate(&other, 0.25, 1, &b, &err));
    assert_true(b.kmeans_flops == 0 && b.ratio > 0.25 && b.ratio < 0.26);
    other.method = SVG2_METHOD_ADASPA;
    assert_ok(svg2_cost_estimate(&other, 0.25, 1, &b, &err));
    assert_true(b.ratio == 0.25);
    assert_ok(svg2_cost_estimate(&other, 0.25, 0, &b, &err));
    assert_true(b.ratio == 1.5);
    other.method = SVG2_METHOD_DENSE;
    assert_ok(svg2_cost_estimate(&other, 0.25, 0, &b, &err));
    assert_true(b.ratio == 1);
    other.skip = SVG2_SKIP_CONSTANT;
    assert_ok(svg2_cost_estimate(&other, 0.25, 0, &b, &err));
    assert_at_most(fabs(b.ratio - 0.625), 1e-9);
    memset(&a, 0xff, sizeof a);
    d.heads = 0;
    assert_true(error_names(&err, svg2_cost_estimate(&d, 0.25, 1, &a, &err), SVG2_ERR_RANGE, "heads"));
    d.heads = 24;
    assert_true(error_names(&err, svg2_cost_estimate(&d, -0.5, 1, &a, &err), SVG2_ERR_RANGE, "density"));
    assert_true(error_names(&err, svg2_cost_estimate(&d, (double)NAN, 1, &a, &err), SVG2_ERR_RANGE, "density"));
    assert_untouched(&a, sizeof a);
    assert_true(error_names(&err, svg2_cost_estimate(0, 0.5, 1, &a, &err), SVG2_ERR_NULL, "desc"));
    assert_true(error_names(&err, svg2_cost_estimate(&d, 0.5, 1, 0, &err), SVG2_ERR_NULL, "cost"));
}

static void test_default_clusters(void **state)
{
    (void)state;
    int last_q = 0, last_k = 0;
    for (int tokens = 1; tokens < 200000; tokens += 1 + tokens / 7) {
        int32_t q = -1, k = -1;
        svg2_default_clusters(tokens, &q, &k);
        assert_true(q >= 1 && k >= 1 && (q <= 16 || q <= tokens) && (k <= 16 || k <= tokens));
        assert_true(q >= last_q && k >= last_k);
        if (tokens > 1000) {
            assert_at_most(fabs(q - 1.1 * sqrt(tokens)), 17);
            assert_at_most(fabs(k - 3.6 * sqrt(tokens)), 17);
        }
        last_q = q;
        last_k = k;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_actions), TEST(test_presets), TEST(test_preset_functions), TEST(test_cost),
                                       TEST(test_default_clusters)};
    return cmocka_run_group_tests_name("schedule", tests, 0, 0);
}
