/* calibrate.h - MIT licence - the calibrate command of examples/svg2.c, which includes it after attend.h: thresholds of the
   skip rules for a wanted sparsity

   BLASST's threshold falls with the number L of keys: lambda * L = alpha * exp(beta * sparsity), fitted to a count. The
   count takes one pass for all thresholds: a tile is left out if for every row its largest logit t is less than
   m + ln lambda, m the largest so far. What is left out never raises m, so that m is that of dense attention, whatever
   lambda; and max(t - m) over the rows is all there is to know about a tile. It goes into a histogram. Only the logits are
   needed, by a loop of our own.

   Cumulative energy compares with the sum of what was kept, which depends on lambda: the rule itself runs, at values
   between those already known.

   >>count  the histogram    >>fit  alpha, beta    >>energy  by trial    >>calibrate  the command */

enum {
    CALIBRATE_ROWS = 256, /* the CPU visits tiles in one order for so many rows of a query block, ...      */
    CALIBRATE_TILE = 64,  /* ... and leaves them out for so many, in tiles of so many keys                 */
    CALIBRATE_BINS = 480, /* of ln lambda, from -24 to 0                                                   */
    CALIBRATE_TARGETS = 16,
    CALIBRATE_TRIALS = 14 /* at most, for a target                                                         */
};

typedef struct calibrate_target {
    double sparsity;
    double threshold, threshold_sparsity; /* of the fit, and what it was counted to give; 0 = not reached  */
    double counted;                       /* where the count itself has the sparsity; 0 = not reached      */
    double lambda, lambda_sparsity;       /* energy; what it gave */
} calibrate_target;

typedef struct calibrate_job {
    svg2_desc      desc;     /* resolved */
    const void    *q, *k;
    int32_t       *order[2]; /* queries, keys: video, then valid text */
    int32_t        video[2], count[2];
    int32_t        items;    /* of a head */
    int64_t       *bins;     /* [workers, CALIBRATE_BINS + 1]; the last: never left out */
    float         *rows;     /* [workers]: a row, queries [dim, 64] of four units */
    size_t         rows_count;
    double         sparsity[CALIBRATE_BINS + 1]; /* at the lower edge of each bin */
    double         alpha, beta, residual, low, high; /* sparsities that were fitted */
    int32_t        points;
    calibrate_target targets[CALIBRATE_TARGETS];
    int32_t        target_count;
} calibrate_job;

/* ==== >>count ============================================================================ */
static double calibrate_edge(int bin) { return -24.0 + 24.0 / CALIBRATE_BINS * bin; } /* ln lambda */

/* Video tokens, then valid text: the order in which a call without clusters has them. */
static void calibrate_order(calibrate_job *job, int side)
{
    const svg2_desc *d = &job->desc;
    const int32_t    tokens = side ? d->tokens_kv : d->tokens, valid = d->text_valid > 0 ? d->text_valid : 0;
    const int32_t    video_begin = d->text_place == SVG2_TEXT_FIRST ? d->text_tokens : 0;
    const int32_t    text_begin = d->text_place == SVG2_TEXT_FIRST ? 0 : tokens - d->text_tokens;
    int32_t          i;
    job->video[side] = tokens - d->text_tokens;
    job->count[side] = job->video[side] + valid;
    job->order[side] = (int32_t *)tool_allocate((size_t)job->count[side], sizeof(int32_t));
    for (i = 0; i < job->video[side]; ++i) job->order[side][i] = video_begin + i;
    for (i = 0; i < valid; ++i) job->order[side][job->video[side] + i] = text_begin + i;
}

static void calibrate_row(const calibrate_job *job, int side, int64_t bh, int32_t at, float *row)
{
    const svg2_desc   *d = &job->desc;
    const svg2_layout *l = side ? &d->k : &d->q;
    const int64_t      batch = bh / d->heads, head = bh % d->heads / (side ? d->heads / d->heads_kv : 1);
    const int64_t      first = batch * l->stride_batch + head * l->stride_head + job->order[side][at] * l->stride_token;
    svg2_convert(row, SVG2_F32, (const char *)(side ? job->k : job->q) + (size_t)first * dtype_bytes(l->dtype), l->dtype,
                 (size_t)d->head_dim);
}

/* Largest logit of each of 64 rows over n keys; queries [dim, 64] are scaled. */
static void calibrate_tile(const float *query, const float *keys, int32_t n, int32_t dim, float top[CALIBRATE_TILE])
{
    int32_t key, d, i;
    for (i = 0; i < CALIBRATE_TILE; ++i) top[i] = -INFINITY;
    for (key = 0; key < n; ++key) {
        float sum[CALIBRATE_TILE] = {0};
        for (d = 0; d < dim; d += 4) {
            const float *k = keys + (size_t)key * (size_t)dim + d, *x = query + (size_t)d * CALIBRATE_TILE;
            for (i = 0; i < CALIBRATE_TILE; ++i) {
                sum[i] += k[0] * x[i] + k[1] * x[CALIBRATE_TILE + i] + k[2] * x[2 * CALIBRATE_TILE + i] +
                          k[3] * x[3 * CALIBRATE_TILE + i];
            }
        }
        for (i = 0; i < CALIBRATE_TILE; ++i) top[i] = sum[i] > top[i] ? sum[i] : top[i];
    }
}

/* Up to 256 rows of one query block against all keys: tiles from the diagonal outwards, or as they come. */
static void calibrate_item(const calibrate_job *job, int64_t bh, int32_t first, int32_t count, int32_t worker)
{
    const svg2_desc *d = &job->desc;
    const int32_t    dim = d->head_dim, n = job->count[1], tiles = (n + CALIBRATE_TILE - 1) / CALIBRATE_TILE;
    int64_t         *bins = job->bins + (size_t)worker * (CALIBRATE_BINS + 1);
    float           *query = job->rows + (size_t)worker * job->rows_count, *keys = query + CALIBRATE_ROWS * dim;
    float            largest[CALIBRATE_ROWS], top[CALIBRATE_TILE];
    int32_t          i, r, at, unit, c, tile = 0, below, above;

    for (r = 0; r < CALIBRATE_ROWS; ++r) {
        largest[r] = -INFINITY;
        if (r < count) calibrate_row(job, 0, bh, first + r, keys); /* as scratch */
        for (c = 0; c < dim; ++c) {
            query[(size_t)(r / CALIBRATE_TILE * dim + c) * CALIBRATE_TILE + (size_t)(r % CALIBRATE_TILE)] =
                r < count ? d->scale * keys[c] : 0;
        }
    }
    if (d->visit == SVG2_VISIT_DIAGONAL) tile = (int32_t)(((int64_t)first + count / 2) * tiles / d->tokens);
    below = tile - 1, above = tile + 1;
    for (i = 0; i < tiles; ++i) {
        const int32_t begin = tile * CALIBRATE_TILE, size = n - begin < CALIBRATE_TILE ? n - begin : CALIBRATE_TILE;
        for (at = 0; at < size; ++at) calibrate_row(job, 1, bh, begin + at, keys + (size_t)at * (size_t)dim);
        for (unit = 0; unit * CALIBRATE_TILE < count; ++unit) {
            const int32_t from = unit * CALIBRATE_TILE, left = count - from;
            const int32_t rows = left < CALIBRATE_TILE ? left : CALIBRATE_TILE;
            float         most = -INFINITY;
            int           bin = CALIBRATE_BINS;
            calibrate_tile(query + (size_t)from * (size_t)dim, keys, size, dim, top);
            for (r = 0; r < rows; ++r) {
                const float over = top[r] - largest[from + r]; /* the first tile: +Inf */
                most = over > most ? over : most;
                largest[from + r] = top[r] > largest[from + r] ? top[r] : largest[from + r];
            }
            if (most < 0) bin = (int)(((double)most + 24) * CALIBRATE_BINS / 24);
            bins[bin < 0 ? 0 : bin > CALIBRATE_BINS ? CALIBRATE_BINS : bin] += (int64_t)rows * size;
        }
        tile = below < 0 || (above < tiles && i % 2 == 0) ? above++ : below--;
    }
}

static void calibrate_items(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const calibrate_job *job = (const calibrate_job *)task;
    const int32_t        of_video = (job->video[0] + CALIBRATE_ROWS - 1) / CALIBRATE_ROWS;
    for (; begin < end; ++begin) {
        const int32_t item = (int32_t)(begin % job->items);
        const int32_t first = item < of_video ? item * CALIBRATE_ROWS : job->video[0] + (item - of_video) * CALIBRATE_ROWS;
        const int32_t left = (item < of_video ? job->video[0] : job->count[0]) - first;
        calibrate_item(job, begin / job->items, first, left < CALIBRATE_ROWS ? left : CALIBRATE_ROWS, worker);
    }
}

static void calibrate_count(calibrate_job *job, const svg2_parallel *parallel)
{
    const size_t  workers = parallel->workers > 1 ? (size_t)parallel->workers : 1;
    const int64_t heads = (int64_t)job->desc.batch * job->desc.heads;
    const int32_t of_text = (job->count[0] - job->video[0] + CALIBRATE_ROWS - 1) / CALIBRATE_ROWS;
    double        all = (double)heads * job->count[0] * job->count[1], below = 0;
    size_t        worker;
    int           bin;
    job->items = (job->video[0] + CALIBRATE_ROWS - 1) / CALIBRATE_ROWS + of_text;
    job->rows_count = (CALIBRATE_ROWS + CALIBRATE_TILE) * (size_t)job->desc.head_dim;
    job->rows = (float *)tool_allocate(workers * job->rows_count, sizeof(float));
    job->bins = (int64_t *)tool_allocate(workers * (CALIBRATE_BINS + 1), sizeof(int64_t));
    memset(job->bins, 0, workers * (CALIBRATE_BINS + 1) * sizeof(int64_t));
    snprintf(progress.label, sizeof progress.label, "calibrate  counting");
    if (parallel->run) parallel->run(parallel->user, calibrate_items, job, heads * job->items, 1);
    else calibrate_items(job, 0, heads * job->items, 0);
    for (bin = 0; bin <= CALIBRATE_BINS; ++bin) {
        job->sparsity[bin] = below / all;
        for (worker = 0; worker < workers; ++worker) below += (double)job->bins[worker * (CALIBRATE_BINS + 1) + (size_t)bin];
    }
    free(job->rows);
    free(job->bins);
}

/* ==== >>fit ============================================================================== */
/* Of the count, at any threshold; and the other way round: 0 where no threshold up to 1 leaves out so much. */
static double calibrate_sparsity(const calibrate_job *job, double threshold)
{
    const double at = (log(threshold) + 24) * CALIBRATE_BINS / 24;
    const int    bin = at < 0 ? 0 : at < CALIBRATE_BINS ? (int)at : CALIBRATE_BINS;
    if (at < 0 || bin == CALIBRATE_BINS) return job->sparsity[bin];
    return job->sparsity[bin] + (job->sparsity[bin + 1] - job->sparsity[bin]) * (at - bin);
}

static double calibrate_threshold(const calibrate_job *job, double sparsity)
{
    int bin;
    for (bin = 1; bin <= CALIBRATE_BINS; ++bin) {
        const double low = job->sparsity[bin - 1], high = job->sparsity[bin];
        if (high < sparsity || !(high > low)) continue;
        return exp(calibrate_edge(bin - 1) + (calibrate_edge(bin) - calibrate_edge(bin - 1)) * (sparsity - low) / (high - low));
    }
    return 0;
}

/* Least squares of ln(lambda * L) over the sparsities from 0.1 below the targets to 0.1 above them. */
static void calibrate_fit(calibrate_job *job)
{
    double n = 0, x = 0, y = 0, xx = 0, xy = 0, square = 0;
    int    bin, i;
    job->low = 1, job->high = 0;
    for (i = 0; i < job->target_count; ++i) {
        job->low = fmin(job->low, job->targets[i].sparsity - 0.1);
        job->high = fmax(job->high, job->targets[i].sparsity + 0.1);
    }
    job->low = fmax(job->low, 0.05);
    for (i = 0; i < 2; ++i) { /* sums, then what is left of them */
        for (bin = 1; bin <= CALIBRATE_BINS; ++bin) {
            const double s = job->sparsity[bin], value = calibrate_edge(bin) + log(job->count[1]);
            if (s < job->low || s > job->high || s >= 1) continue;
            if (i) square += pow(value - log(job->alpha) - job->beta * s, 2);
            else ++n, x += s, y += value, xx += s * s, xy += s * value;
        }
        if (n < 3 || !(xx * n - x * x > 1e-12 * n * n)) break;
        job->beta = (xy * n - x * y) / (xx * n - x * x);
        job->alpha = exp((y - job->beta * x) / n);
        job->points = (int32_t)n;
    }
    if (job->points) job->residual = sqrt(square / n);
    for (i = 0; i < job->target_count; ++i) {
        calibrate_target *t = &job->targets[i];
        t->counted = calibrate_threshold(job, t->sparsity);
        if (!job->points || t->counted <= 0) continue;
        t->threshold = fmin(job->alpha * exp(job->beta * t->sparsity) / job->count[1], 1);
        t->threshold_sparsity = calibrate_sparsity(job, t->threshold);
    }
}

/* ==== >>energy =========================================================================== */
typedef struct calibrate_trials {
    double  lambda[CALIBRATE_TARGETS * CALIBRATE_TRIALS + 2], sparsity[CALIBRATE_TARGETS * CALIBRATE_TRIALS + 2];
    int32_t count;
} calibrate_trials;

/* One call of the rule; values do not matter to it, so the keys are the values, too. */
static double calibrate_try(const calibrate_job *job, const svg2_backend *backend, double lambda, void *out,
                            svg2_head_stats *stats, void *workspace, size_t workspace_bytes)
{
    svg2_desc  d = job->desc;
    svg2_error err;
    int32_t    head, heads = d.batch * d.heads;
    double     kept = 0, all = 0;
    d.skip = SVG2_SKIP_ENERGY;
    d.energy_lambda = (float)lambda;
    d.v = d.k;
    stage_timing.prefix = "calibrate: energy";
    if (svg2_attend(backend, &d, NULL, 0, job->q, job->k, job->k, out, NULL, stats, workspace, workspace_bytes, &err) !=
        SVG2_OK)
        attend_fail(&err);
    for (head = 0; head < heads; ++head) kept += (double)stats[head].pairs_pv, all += (double)stats[head].pairs_total;
    return all > 0 ? 1 - kept / all : 0;
}

/* Between the nearest trials below and above each target: by interpolation and by halving in turn. */
static void calibrate_energy(calibrate_job *job, const svg2_backend *backend)
{
    static const double ends[2] = {-30, -1e-3};
    calibrate_trials    trials;
    svg2_desc           d = job->desc;
    size_t              bytes, rows = (size_t)d.batch * (size_t)d.heads * (size_t)d.tokens;
    void               *workspace, *out = tool_allocate(rows * (size_t)d.head_dim, sizeof(float));
    svg2_head_stats    *stats = (svg2_head_stats *)tool_allocate((size_t)d.batch * (size_t)d.heads, sizeof *stats);
    int32_t             i, k, trial;

    d.skip = SVG2_SKIP_ENERGY;
    d.v = d.k;
    bytes = svg2_workspace_bytes(backend, &d);
    workspace = tool_allocate(bytes, 1);
    for (trials.count = 0; trials.count < 2; ++trials.count) {
        trials.lambda[trials.count] = ends[trials.count];
        trials.sparsity[trials.count] =
            calibrate_try(job, backend, ends[trials.count], out, stats, workspace, bytes);
    }
    for (i = 0; i < job->target_count; ++i) {
        calibrate_target *t = &job->targets[i];
        if (trials.sparsity[1] < t->sparsity) continue;
        for (trial = 0;; ++trial) {
            int32_t low = 0, high = 1, best = 0;
            double  between, lambda;
            for (k = 0; k < trials.count; ++k) {
                if (trials.sparsity[k] <= t->sparsity && trials.lambda[k] > trials.lambda[low]) low = k;
                if (trials.sparsity[k] >= t->sparsity && trials.lambda[k] < trials.lambda[high]) high = k;
                if (fabs(trials.sparsity[k] - t->sparsity) < fabs(trials.sparsity[best] - t->sparsity)) best = k;
            }
            t->lambda = trials.lambda[best];
            t->lambda_sparsity = trials.sparsity[best];
            if (trial == CALIBRATE_TRIALS || fabs(t->lambda_sparsity - t->sparsity) < 0.002) break;
            between = 0.5;
            if (trial % 2 && trials.sparsity[high] > trials.sparsity[low])
                between = (t->sparsity - trials.sparsity[low]) / (trials.sparsity[high] - trials.sparsity[low]);
            between = fmin(fmax(between, 0.02), 0.98);
            lambda = trials.lambda[low] + between * (trials.lambda[high] - trials.lambda[low]);
            trials.lambda[trials.count] = lambda;
            trials.sparsity[trials.count++] = calibrate_try(job, backend, lambda, out, stats, workspace, bytes);
        }
    }
    free(workspace);
    free(out);
    free(stats);
}

/* ==== >>calibrate ======================================================================== */
static void calibrate_parse_targets(calibrate_job *job, const char *text)
{
    const char *at = text;
    for (;; ++at) {
        char        *end;
        const double value = strtod(at, &end);
        if (end == at || (*end && *end != ',') || !(value > 0 && value < 1)) {
            tool_fail(TOOL_USAGE, "--sparsity-targets: '%s' is not a list of numbers between 0 and 1, as in 0.3,0.5", text);
        }
        if (job->target_count == CALIBRATE_TARGETS) {
            tool_fail(TOOL_USAGE, "--sparsity-targets: more than %d of them", CALIBRATE_TARGETS);
        }
        job->targets[job->target_count++].sparsity = value;
        at = end;
        if (!*at) return;
    }
}

static void calibrate_print(const calibrate_job *job)
{
    int32_t i;
    printf("shape     q [%d, %d, %d, %d]   %d keys, tiles of %d x %d, order %s\n", job->desc.batch, job->desc.heads,
           job->desc.tokens, job->desc.head_dim, job->count[1], CALIBRATE_TILE, CALIBRATE_TILE,
           job->desc.visit == SVG2_VISIT_NATURAL ? "natural" : "diagonal");
    if (job->points) {
        printf("fit       threshold * %d = alpha * exp(beta * sparsity): alpha %.6g, beta %.6g\n", job->count[1], job->alpha,
               job->beta);
        printf("          %d thresholds with sparsity %.3f .. %.3f; they are %.3f off in ln(threshold), root of the mean square\n",
               job->points, job->low, job->high, job->residual);
    } else {
        printf("fit       too few thresholds reach these sparsities\n");
    }
    printf("\n%-10s%16s%10s%22s%18s%10s\n", "sparsity", "--threshold", "gives", "without the fit", "--energy-lambda", "gives");
    for (i = 0; i < job->target_count; ++i) {
        const calibrate_target *t = &job->targets[i];
        printf("%-10.3g", t->sparsity);
        if (t->threshold > 0) printf("%16.6g%10.3f", t->threshold, t->threshold_sparsity);
        else printf("%16s%10s", "not reached", "");
        if (t->counted > 0) printf("%22.6g", t->counted);
        else printf("%22s", "not reached");
        if (t->lambda < 0) printf("%18.6g%10.3f\n", t->lambda, t->lambda_sparsity);
        else printf("%18s\n", "not reached");
    }
    printf("\nsparsity: part of the products P V that is left out\n");
}

#ifndef SVG2_TOOL_NO_CJSON
static void calibrate_write_report(FILE *file, const calibrate_job *job, const char *path)
{
    cJSON  *root = cJSON_CreateObject(), *list, *object;
    double  values[CALIBRATE_BINS];
    char   *text;
    int32_t i;
    report_shape(root, "shape", job->desc.batch, job->desc.heads, job->desc.tokens, job->desc.head_dim);
    cJSON_AddNumberToObject(root, "keys", job->count[1]);
    cJSON_AddNumberToObject(root, "tile", CALIBRATE_TILE);
    cJSON_AddStringToObject(root, "order", job->desc.visit == SVG2_VISIT_NATURAL ? "natural" : "diagonal");
    report_number(root, "alpha", job->alpha, job->points > 0);
    report_number(root, "beta", job->beta, job->points > 0);
    report_number(root, "residual", job->residual, job->points > 0);
    list = cJSON_AddArrayToObject(root, "targets");
    for (i = 0; i < job->target_count; ++i) {
        const calibrate_target *t = &job->targets[i];
        object = cJSON_CreateObject();
        cJSON_AddNumberToObject(object, "sparsity", t->sparsity);
        report_number(object, "threshold", t->threshold, t->threshold > 0);
        report_number(object, "threshold_sparsity", t->threshold_sparsity, t->threshold > 0);
        report_number(object, "counted_threshold", t->counted, t->counted > 0);
        report_number(object, "energy_lambda", t->lambda, t->lambda < 0);
        report_number(object, "energy_sparsity", t->lambda_sparsity, t->lambda < 0);
        cJSON_AddItemToArray(list, object);
    }
    object = cJSON_AddObjectToObject(root, "count"); /* the whole curve */
    for (i = 0; i < CALIBRATE_BINS; ++i) values[i] = exp(calibrate_edge(i + 1));
    cJSON_AddItemToObject(object, "threshold", cJSON_CreateDoubleArray(values, CALIBRATE_BINS));
    cJSON_AddItemToObject(object, "sparsity", cJSON_CreateDoubleArray(job->sparsity + 1, CALIBRATE_BINS));
    text = cJSON_Print(root);
    if (!text) tool_fail(TOOL_FAILURE, "out of memory");
    tool_write(file, text, strlen(text), path);
    tool_write(file, "\n", 1, path);
    cJSON_free(text);
    cJSON_Delete(root);
}
#endif

static int command_calibrate(int argc, char **argv, int is_help)
{
    attend_arguments a;
    attend_tensor    q, k;
    calibrate_job   *job;
    tool_option      options[24];
    const char      *targets = "0.3,0.5,0.7";
    svg2_backend     backend;
    svg2_error       err;
    FILE            *report = NULL;
    size_t           count;

    attend_defaults(&a);
    {
        const tool_option table[] = {
            {TOOL_TEXT, "q", "F", &a.q, 0, 0, 0, "queries; x.npy or x.safetensors:name, as for attend; required"},
            {TOOL_TEXT, "k", "F", &a.k, 0, 0, 0, "keys; required"},
            {TOOL_TEXT, "sparsity-targets", "S,S", &targets, 0, 0, 0, "parts of the products P V to leave out (0.3,0.5,0.7)"},
            {TOOL_CHOICE, "order", "natural|diagonal", &a.settings.order, 0, 0, 0, "in which tiles are visited (diagonal)"},
            {TOOL_TEXT, "report", "F.json", &a.report, 0, 0, 0, "the same numbers, and the whole count"},
            {TOOL_CHOICE, "layout", "bhsd|bshd", &a.layout, 0, 0, 0, "order of the axes in the files (bhsd)"},
            {TOOL_REAL, "scale", "X", &a.scale, 0, 1e6, 0, "factor of q.k (1/sqrt(D))"},
            {TOOL_INT, "threads", "N", &a.threads, 1, 1024, 0, "(number of CPUs)"},
        };
        memcpy(options, table, sizeof table);
        count = sizeof table / sizeof *table;
        count += attend_token_options(&a, options + count);
    }
    if (is_help) {
        printf("svg2 calibrate --q F --k F [--sparsity-targets S,S] [options]\n\n"
               "Thresholds that leave out a wanted part of dense attention on these tensors: --threshold of --method blasst,\n"
               "with the law by which it changes with the number of keys, and --energy-lambda of --method energy.\n\n");
        tool_print_options(options, count);
        return 0;
    }
    job = (calibrate_job *)tool_allocate(1, sizeof *job);
    memset(job, 0, sizeof *job);
    tool_parse(argc, argv, options, count, NULL, 0);
    if (!a.q || !a.k) tool_fail(TOOL_USAGE, "calibrate needs --q and --k");
    calibrate_parse_targets(job, targets);
    attend_check_text(&a);
#ifdef SVG2_TOOL_NO_CJSON
    if (a.report) tool_fail(TOOL_USAGE, "--report: this build has no cJSON");
#endif
    attend_open(&q, a.q, "q", a.layout == 1);
    attend_open(&k, a.k, "k", a.layout == 1);
    a.settings.method = SETTINGS_BLASST;
    attend_fill_desc(&job->desc, &a, &q, &k, &k);
    job->desc.out.dtype = SVG2_F32;
    if (svg2_resolve(&job->desc, &err) != SVG2_OK) attend_fail(&err);
    if (a.report) report = tool_open_output(a.report);
    attend_refuse_non_finite(&q, "q");
    attend_refuse_non_finite(&k, "k");

    backend = attend_backend(&a, NULL);
    job->q = q.data, job->k = k.data;
    calibrate_order(job, 0);
    calibrate_order(job, 1);
    calibrate_count(job, &backend.parallel);
    calibrate_fit(job);
    calibrate_energy(job, &backend);
    tool_clear_progress();
#ifndef SVG2_TOOL_NO_CJSON
    if (report) calibrate_write_report(report, job, a.report);
#else
    (void)report;
#endif
    tool_commit_outputs();
    calibrate_print(job);
    free(job->order[0]);
    free(job->order[1]);
    free(job);
    attend_close(&q);
    attend_close(&k);
    return 0;
}
