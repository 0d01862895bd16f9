/* compare.h - MIT licence - part of wan.c: what its runs can be, and what is measured beside them

   >>settings  a run as text            >>timed   the stages of the backend, with their seconds
   >>blocks    blocks by position in place of clusters
   >>exact     dense attention and exact mass    >>oracle  clusters selected by exact mass
   >>check     error and recall of a sparse call */

/* ==== >>settings ====================================================================== */
/* "svg2,tail=1,density=0.2" or "NAME:svg2,..."; what is not given keeps the default of svg2.h. steps: of the schedule */
static void wan_run_parse(wan_run *run, const char *text, int32_t steps)
{
    static const svg2_simd simds[] = {SVG2_SIMD_SCALAR, SVG2_SIMD_AVX2, SVG2_SIMD_AVX512, SVG2_SIMD_AVX512BF16};
    static const settings_method methods[] = {SETTINGS_DENSE,  SETTINGS_SVG2,  SETTINGS_SVG2, SETTINGS_SVG2,
                                              SETTINGS_SVG2,   SETTINGS_SVG2,  SETTINGS_SVG1, SETTINGS_ADASPA,
                                              SETTINGS_BLASST, SETTINGS_ENERGY};
    svg2_desc *d = &run->desc;
    int simd = -1, backend = -1;
    int32_t is_cold = 0;
    const tool_option own[] = {
        {TOOL_INT, "dense-steps", "", &run->chosen.dense_steps, 0, WAN_MAX_STEPS, 0, ""},
        {TOOL_INT, "dense-layers", "", &d->dense_layers, 0, 1000, 0, ""},
        {TOOL_INT, "init-on-dense", "", &d->init_on_dense, 0, 1, 0, ""},
        {TOOL_INT, "cold", "", &is_cold, 0, 1, 0, ""},
        {TOOL_CHOICE, "simd", "scalar|avx2|avx512|avx512bf16", &simd, 0, 0, 0, ""},
        {TOOL_CHOICE, "backend", WAN_BACKENDS, &backend, 0, 0, 0, ""},
    };
    tool_option options[SETTINGS_OPTIONS + sizeof own / sizeof *own];
    const char *colon = strchr(text, ':'), *at = colon ? colon + 1 : text;
    char message[SETTINGS_MESSAGE], *word = run->words, is_given[sizeof options / sizeof *options] = {0};
    size_t count, option_count, k;

    memset(run, 0, sizeof *run);
    settings_init(&run->chosen, "");
    option_count = settings_options(&run->chosen, options);
    memcpy(options + option_count, own, sizeof own);
    option_count += sizeof own / sizeof *own;
    if (colon) {
        if (colon - text > 63 || colon == text) tool_fail(TOOL_USAGE, "'%s': the name is empty or too long", text);
        memcpy(run->label, text, (size_t)(colon - text));
        if (strspn(run->label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+.%") !=
                strlen(run->label) ||
            run->label[0] == '.') {
            tool_fail(TOOL_USAGE,
                      "'%s': a name is made of letters, digits and - _ + . %%, and does not begin with a dot", text);
        }
    }
    if (strlen(at) >= sizeof run->settings) tool_fail(TOOL_USAGE, "'%s' is too long", text);
    strcpy(run->settings, at);
    for (k = 0;; ++k, ++at) { /* the method, then key=value */
        count = strcspn(at, ",");
        if (count >= 64) tool_fail(TOOL_USAGE, "'%s': a setting is too long", text);
        memcpy(word, at, count);
        word[count] = 0;
        at += count;
        if (k == 0) {
            run->method = (wan_method)tool_parse_choice(WAN_METHODS, word);
            if ((int)run->method < 0) tool_fail(TOOL_USAGE, "'%s' is not one of %s", word, WAN_METHODS);
            if (!colon) strcpy(run->label, word);
        } else {
            char *equals = strchr(word, '=');
            size_t i = 0;
            if (!equals) tool_fail(TOOL_USAGE, "'%s': '%s' is not key=value", text, word);
            *equals = 0;
            while (i < option_count && (options[i].kind == TOOL_HEADING || strcmp(options[i].name, word) != 0)) ++i;
            if (i == option_count) tool_fail(TOOL_USAGE, "'%s': unknown setting '%s'", text, word);
            if (is_given[i]++) tool_fail(TOOL_USAGE, "'%s': '%s' is given twice", text, word);
            tool_parse_value(&options[i], equals + 1);
        }
        word += count + 1; /* what was parsed may point to it */
        if (*at != ',') break;
    }
    run->chosen.method = methods[run->method];
    if (!settings_apply(&run->chosen, d, steps, 1, message)) tool_fail(TOOL_USAGE, "run '%s': %s", run->label, message);
    if (is_cold && run->method == WAN_ADASPA)
        tool_fail(TOOL_USAGE, "run '%s': cold=1 would search at every step, and leave nothing out", run->label);
    run->is_cold = is_cold;
    run->simd = simd < 0 ? SVG2_SIMD_BEST : simds[simd];
    run->backend_choice = backend;
}

/* ==== >>timed ========================================================================= */
/* Stages of the backend, timed: svg2.h invites to wrap them. A stage on the GPU is over when the GPU says so. */
#define WAN_TIMED(stage, name)                                                                                         \
  static svg2_result wan_timed_##name(const svg2_backend *backend, const svg2_##name##_desc *desc, void *work,         \
                                      svg2_error *err)                                                                 \
  {                                                                                                                    \
    wan_run *run = (wan_run *)backend->user;                                                                           \
    double start = now();                                                                                              \
    svg2_result result = run->inner.name(&run->inner, desc, work, err);                                                \
    if (run->is_cuda) wan_expect_device(device_wait());                                                                \
    if (run->step) run->step->seconds[stage] += now() - start;                                                         \
    return result;                                                                                                     \
  }
WAN_TIMED(SVG2_STAGE_KMEANS, kmeans)
WAN_TIMED(SVG2_STAGE_PERMUTE, permute)
WAN_TIMED(SVG2_STAGE_SUMMARIZE, summarize)
WAN_TIMED(SVG2_STAGE_SCORE, score)
WAN_TIMED(SVG2_STAGE_SELECT, select)
WAN_TIMED(SVG2_STAGE_TAIL, tail)
WAN_TIMED(SVG2_STAGE_ATTENTION, attention)
WAN_TIMED(SVG2_STAGE_MASS, mass)
WAN_TIMED(SVG2_STAGE_PLACE, place)
WAN_TIMED(SVG2_STAGE_BAND, band)
WAN_TIMED(SVG2_STAGE_PICK, pick)
WAN_TIMED(SVG2_STAGE_PROFILE, profile)
#undef WAN_TIMED

/* Method centroid: selection by the mass that the query centroid sees, not by the share of its rows. */
static svg2_result wan_centroid_select(const svg2_backend *backend, const svg2_select_desc *desc, void *work,
                                       svg2_error *err)
{
    svg2_select_desc d = *desc;
    d.share = NULL;
    return wan_timed_select(backend, &d, work, err);
}

/* ==== >>blocks ======================================================================== */
/* Blocks of neighbouring tokens in place of clusters: runs in raster order, or boxes in time, height and width. */
static svg2_result wan_position_blocks(const svg2_backend *backend, const svg2_kmeans_desc *d, void *work,
                                       svg2_error *err)
{
    wan_run *run = (wan_run *)backend->user;
    const wan_grid *g = run->grid;
    int32_t box[3] = {1, 1, 1}, count[3], token, head, c, axis;
    const int32_t extent[3] = {g->frames, g->height, g->width};
    svg2_layout layout = d->layout;
    if (d->clusters == 1) return run->cpu.kmeans(&run->cpu, d, work, err);
    if (!layout.stride_head && !layout.stride_token) { /* contiguous */
        layout.stride_token = d->head_dim;
        layout.stride_head = (int64_t)d->tokens * d->head_dim;
    }
    while ((int64_t)((extent[0] + box[0] - 1) / box[0]) * ((extent[1] + box[1] - 1) / box[1]) *
               ((extent[2] + box[2] - 1) / box[2]) >
           d->clusters) { /* grow the side that has most boxes */
        for (axis = 0, c = 1; c < 3; ++c) {
            if ((extent[c] + box[c] - 1) / box[c] >= (extent[axis] + box[axis] - 1) / box[axis]) axis = c;
        }
        ++box[axis];
    }
    for (axis = 0; axis < 3; ++axis) count[axis] = (extent[axis] + box[axis] - 1) / box[axis];
    for (head = 0; head < d->heads; ++head) {
        const size_t at = (size_t)head * (size_t)d->clusters;
        float *centroid = d->centroid + at * (size_t)d->head_dim, *mean = d->mean + (size_t)head * (size_t)d->head_dim;
        int32_t *size = d->size + at, *label = d->label + (size_t)head * (size_t)d->tokens;
        memset(centroid, 0, (size_t)d->clusters * (size_t)d->head_dim * sizeof *centroid);
        memset(mean, 0, (size_t)d->head_dim * sizeof *mean);
        memset(size, 0, (size_t)d->clusters * sizeof *size);
        for (token = 0; token < d->tokens; ++token) {
            const float *x = (const float *)d->x + head * layout.stride_head + token * layout.stride_token;
            int32_t j = (int32_t)((int64_t)token * d->clusters / d->tokens);
            if (run->method == WAN_TILES) {
                int32_t t = token / g->width / g->height / box[0], h = token / g->width % g->height / box[1],
                        w = token % g->width / box[2];
                j = (t * count[1] + h) * count[2] + w;
            }
            label[token] = j;
            ++size[j];
            for (c = 0; c < d->head_dim; ++c) {
                centroid[(int64_t)j * d->head_dim + c] += x[c];
                mean[c] += x[c] / (float)d->tokens;
            }
        }
        for (token = 0; token < d->clusters; ++token) {
            for (c = 0; c < d->head_dim; ++c) {
                float *value = &centroid[(int64_t)token * d->head_dim + c];
                *value = size[token] ? *value / (float)size[token] : mean[c];
            }
        }
        if (d->store) {
            for (token = 0; token < d->clusters * d->head_dim; ++token) {
                ((float *)d->store)[at * (size_t)d->head_dim + (size_t)token] =
                    centroid[token] - mean[token % d->head_dim];
            }
        }
    }
    return SVG2_OK;
}

/* ==== >>exact ========================================================================= */
static void wan_exact(wan_run *run, svg2_attention_desc *a, float *out, float *lse)
{
    svg2_error err;
    size_t bytes;
    void *work;
    memset(a, 0, sizeof *a);
    a->batch = 1, a->heads = a->heads_kv = run->desc.heads, a->head_dim = run->desc.head_dim;
    a->tokens = a->tokens_kv = run->desc.tokens;
    a->scale = 1.0f / sqrtf((float)a->head_dim);
    a->q = run->q, a->k = run->k, a->v = run->v;
    a->q_layout = a->k_layout = a->v_layout = a->out_layout = run->desc.q;
    a->out = out, a->lse = lse;
    bytes = svg2_stage_workspace_bytes(&run->cpu, SVG2_STAGE_ATTENTION, a);
    work = tool_allocate(bytes, 1);
    wan_expect(svg2_attention(&run->cpu, a, work, bytes, &err), &err);
    free(work);
}

static void wan_exact_mass(wan_run *run, const svg2_mass_desc *desc)
{
    svg2_error err;
    size_t bytes = svg2_stage_workspace_bytes(&run->cpu, SVG2_STAGE_MASS, desc);
    void *work = tool_allocate(bytes, 1);
    wan_expect(svg2_block_mass(&run->cpu, desc, work, bytes, &err), &err);
    free(work);
}

/* ==== >>oracle ======================================================================== */
/* The oracle knows the exact mass of every block, which takes dense attention to find out. */
static svg2_result wan_keep_order(const svg2_backend *backend, const svg2_permute_desc *d, void *work, svg2_error *err)
{
    wan_run *run = (wan_run *)backend->user;
    run->permuted[0] = run->permuted[1];
    run->permuted[1] = *d;
    return run->cpu.permute(&run->cpu, d, work, err);
}

typedef struct wan_ranked {
    float score;
    int32_t index;
} wan_ranked;

static int wan_by_score(const void *left, const void *right)
{
    const wan_ranked *a = (const wan_ranked *)left, *b = (const wan_ranked *)right;
    if (a->score != b->score) return a->score > b->score ? -1 : 1;
    return a->index < b->index ? -1 : a->index > b->index;
}

static svg2_result wan_oracle_select(const svg2_backend *backend, const svg2_select_desc *d, void *work,
                                     svg2_error *err)
{
    wan_run *run = (wan_run *)backend->user;
    const size_t blocks = (size_t)d->query_clusters * (size_t)d->key_clusters;
    const int32_t heads = d->heads, tokens = run->desc.tokens;
    svg2_mass_desc mass;
    float *lse, *value, *out;
    wan_ranked *ranked;
    int32_t head, i;
    size_t j;

    if (d->query_clusters == 1 && d->key_clusters == 1) return run->cpu.select(&run->cpu, d, work, err);
    lse = floats((size_t)heads, (size_t)tokens);
    value = floats((size_t)heads, blocks);
    out = floats((size_t)tokens * (size_t)heads, (size_t)d->head_dim);
    ranked = (wan_ranked *)tool_allocate(blocks, sizeof *ranked);
    memset(&mass, 0, sizeof mass);
    wan_exact(run, &mass.attention, out, lse);
    mass.attention.query_blocks = d->query_clusters, mass.attention.key_blocks = d->key_clusters;
    mass.attention.query_order = run->permuted[0].order, mass.attention.query_offset = d->query_offset;
    mass.attention.key_order = run->permuted[1].order, mass.attention.key_offset = d->key_offset;
    mass.mass = value;
    wan_exact_mass(run, &mass);
    for (head = 0; head < heads; ++head) {
        const int32_t *rows = d->query_offset + (size_t)head * (size_t)(d->query_clusters + 1);
        const int32_t *keys = d->key_offset + (size_t)head * (size_t)(d->key_clusters + 1);
        uint8_t *map = d->map + (size_t)head * blocks;
        double left = (double)d->density * tokens * tokens, area, used = 0;
        for (j = 0; j < blocks; ++j) {
            i = (int32_t)j;
            area = (double)(rows[i / d->key_clusters + 1] - rows[i / d->key_clusters]) *
                   (keys[i % d->key_clusters + 1] - keys[i % d->key_clusters]);
            ranked[i].score = area > 0 ? value[(size_t)head * blocks + (size_t)i] / (float)area : 0;
            ranked[i].index = i;
        }
        qsort(ranked, blocks, sizeof *ranked, wan_by_score);
        memset(map, 0, blocks);
        for (j = 0; j < blocks; ++j) {
            i = ranked[j].index;
            area = (double)(rows[i / d->key_clusters + 1] - rows[i / d->key_clusters]) *
                   (keys[i % d->key_clusters + 1] - keys[i % d->key_clusters]);
            if (used + area > left) break;
            used += area;
            map[i] = 1;
        }
        if (d->stats) {
            memset(&d->stats[head], 0, sizeof *d->stats);
            d->stats[head].pairs = (int64_t)used;
            d->stats[head].pairs_pv = (int64_t)used;
            d->stats[head].pairs_total = (int64_t)tokens * tokens;
            d->stats[head].density_pv = (float)(used / tokens / tokens);
            d->stats[head].density = (float)(used / tokens / tokens);
        }
    }
    free(lse), free(value), free(out), free(ranked);
    return SVG2_OK;
}

/* ==== >>check ============================================================================ */
/* Whether a call leaves anything out: blocks, or tiles by a rule. */
static int wan_is_sparse(const svg2_desc *d, svg2_action action, int32_t step)
{
    return action == SVG2_ACTION_SPARSE || action == SVG2_ACTION_SEARCH_CACHED ||
           (d->method == SVG2_METHOD_DENSE && d->skip && step >= d->dense_steps && d->layer >= d->dense_layers);
}

/* A tail in the softmax hides what a rule has left out. */
static int wan_has_recall(const svg2_desc *d)
{
    return !d->skip || d->method == SVG2_METHOD_DENSE || d->tail == SVG2_TAIL_NONE;
}

/* Beside a sparse call: its error against dense attention, and how much of each row's attention it has: by the LSE of
   the call where a rule has left tiles out, else inside its map. */
static void wan_check(wan_run *run, const svg2_desc *desc, int32_t step, const float *out, const float *call_lse)
{
    const size_t rows = (size_t)desc->heads * (size_t)desc->tokens, count = rows * (size_t)desc->head_dim;
    float *exact = floats(count, 1), *lse = floats(rows, 1), *recall = floats(rows, 1);
    svg2_plan plan = svg2_plan_view(&run->backend, desc, step, run->work);
    svg2_mass_desc mass;
    wan_step *s = run->step;
    size_t i;

    if (run->is_cuda) plan = plan_from_device(&plan, desc);
    memset(&mass, 0, sizeof mass);
    wan_exact(run, &mass.attention, exact, lse);
    if (desc->skip && wan_has_recall(desc)) {
        for (i = 0; i < rows; ++i) recall[i] = call_lse[i] < lse[i] ? expf(call_lse[i] - lse[i]) : 1;
    } else if (wan_has_recall(desc)) {
        mass.attention.query_blocks = plan.query_blocks, mass.attention.key_blocks = plan.key_blocks;
        mass.attention.query_order = plan.query_order, mass.attention.query_offset = plan.query_offset;
        mass.attention.key_order = plan.key_order, mass.attention.key_offset = plan.key_offset;
        mass.attention.map = plan.map;
        mass.recall = recall;
        wan_exact_mass(run, &mass);
    }
    for (i = 0; i < count; ++i) {
        double difference = (double)out[i] - (double)exact[i];
        s->error += difference * difference;
        s->norm += (double)exact[i] * (double)exact[i];
    }
    for (i = 0; i < rows; ++i, ++s->rows) {
        if (!wan_has_recall(desc)) continue;
        s->recall += (double)recall[i];
        if (s->rows == 0 || (double)recall[i] < s->recall_min) s->recall_min = (double)recall[i];
    }
    free(exact), free(lse), free(recall);
    if (run->is_cuda) plan_free(&plan);
}
