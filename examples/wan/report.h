/* report.h - MIT licence - part of wan.c: what comes out

   >>clips  latents to pixels    >>dump  Q, K, V    >>totals  sums over steps    >>table  for people
   >>files  JSON, CSV, latents */

/* ==== >>clips ========================================================================= */
/* Latents that are pixels, folded fold x fold into channels. */
static clip wan_clip(const wan_job *job, const float *latent)
{
    const wan_model *m = &job->model;
    const int64_t fold = m->pixel_fold, height = 2 * (int64_t)job->grid.height, width = 2 * (int64_t)job->grid.width;
    clip c;
    int64_t frame, y, x, channel;
    c.frames = job->grid.frames, c.height = (int32_t)(height * fold), c.width = (int32_t)(width * fold);
    c.rgb = floats(job->count, 1);
    for (channel = 0; channel < m->channels; ++channel) {
        const int64_t color = channel / (fold * fold), dy = channel / fold % fold, dx = channel % fold;
        for (frame = 0; frame < c.frames; ++frame) {
            for (y = 0; y < height; ++y) {
                for (x = 0; x < width; ++x) {
                    float value = latent[((channel * c.frames + frame) * height + y) * width + x] * 0.5f + 0.5f;
                    c.rgb[((frame * c.height + y * fold + dy) * c.width + x * fold + dx) * 3 + color] = value < 0 ? 0
                                                                                                        : value > 1
                                                                                                            ? 1
                                                                                                            : value;
                }
            }
        }
    }
    return c;
}

/* ==== >>dump ========================================================================== */
static void wan_dump(void *user, int32_t layer, const float *q, const float *k, const float *v)
{
    static const svg2_dtype to[3] = {SVG2_F32, SVG2_F16, SVG2_BF16};
    static const tf_dtype as[3] = {TF_F32, TF_F16, TF_BF16};
    wan_job *job = (wan_job *)user;
    const int32_t heads = job->model.heads, dim = job->model.head_dim;
    const size_t tokens = (size_t)job->grid.tokens, count = tokens * (size_t)heads * (size_t)dim;
    const float *x[3] = {q, k, v};
    int32_t i, head;
    int side;
    for (i = 0; i < job->dump_count; ++i) {
        char names[3][2] = {"q", "k", "v"};
        tf_tensor tensors[3];
        float *values;
        if (job->dumps[i].layer != layer || job->dumps[i].step != job->dump_step) continue;
        memset(tensors, 0, sizeof tensors);
        for (side = 0; side < 3; ++side) {
            tensors[side].name = names[side];
            tensors[side].dtype = as[job->o.dump_dtype];
            tensors[side].rank = 3;
            tensors[side].shape[0] = heads, tensors[side].shape[1] = (int64_t)tokens, tensors[side].shape[2] = dim;
        }
        if (tf_write_safetensors_header(job->dumps[i].file, tensors, 3) != TF_OK)
            tool_fail(TOOL_FAILURE, "%s: %s", job->o.dump, strerror(errno));
        values = floats(count, 1);
        for (side = 0; side < 3; ++side) {
            for (head = 0; head < heads; ++head) {
                size_t token;
                for (token = 0; token < tokens; ++token) {
                    memcpy(values + ((size_t)head * tokens + token) * (size_t)dim,
                           x[side] + (token * (size_t)heads + (size_t)head) * (size_t)dim,
                           (size_t)dim * sizeof *values);
                }
            }
            if (job->o.dump_dtype) {
                uint16_t *half = (uint16_t *)tool_allocate(count, sizeof *half);
                svg2_convert(half, to[job->o.dump_dtype], values, SVG2_F32, count);
                tool_write(job->dumps[i].file, half, count * sizeof *half, job->o.dump);
                free(half);
            } else
                tool_write(job->dumps[i].file, values, count * sizeof *values, job->o.dump);
        }
        free(values);
    }
}

/* ==== >>totals ======================================================================== */
/* Sums over the steps of a run. */
typedef struct wan_totals {
    double attention_seconds, kmeans_seconds, density, density_pv, all_pairs, error, recall, recall_min;
    double kmeans_first, kmeans_later; /* seconds of the first step that clusters; mean of the others */
    double cost;                       /* arithmetic of a warm sparse call / dense */
    int is_checked, has_recall;
} wan_totals;

/* A warm call, not one that searches. What a rule leaves out is half of the work: P V. */
static double wan_cost(const svg2_desc *d, double density, double density_pv)
{
    const int is_dense = d->method == SVG2_METHOD_DENSE;
    svg2_cost cost;
    if (svg2_cost_estimate(d, is_dense ? density_pv : density, 1, &cost, NULL) != SVG2_OK) return 1;
    return cost.ratio - (is_dense ? 0 : (density - density_pv) / 2);
}

static wan_totals wan_total(const wan_run *run, int32_t steps)
{
    wan_totals t;
    double density = 0, density_pv = 0, heads = 0, pairs = 0, pairs_total = 0, error = 0, norm = 0, recall = 0,
           rows = 0;
    int32_t i, later = 0;
    memset(&t, 0, sizeof t);
    t.recall_min = 1;
    for (i = 0; i < steps; ++i) {
        const wan_step *s = &run->steps[i];
        const double kmeans = s->seconds[SVG2_STAGE_KMEANS];
        t.attention_seconds += s->attention_seconds;
        t.kmeans_seconds += kmeans;
        if (s->heads && t.kmeans_first == 0)
            t.kmeans_first = kmeans;
        else if (s->heads)
            t.kmeans_later += kmeans, ++later;
        density += s->density, density_pv += s->density_pv, heads += (double)s->heads;
        pairs += s->pairs, pairs_total += s->pairs_total;
        error += s->error, norm += s->norm, recall += s->recall, rows += (double)s->rows;
        if (s->rows && s->recall_min < t.recall_min) t.recall_min = s->recall_min;
    }
    if (later) t.kmeans_later /= later;
    t.density = heads > 0 ? density / heads : 1;
    t.density_pv = heads > 0 ? density_pv / heads : 1;
    t.all_pairs = pairs_total > 0 ? pairs / pairs_total : 1;
    t.is_checked = rows > 0;
    t.error = norm > 0 ? sqrt(error / norm) : 0;
    t.has_recall = t.is_checked && wan_has_recall(&run->desc);
    t.recall = rows > 0 ? recall / rows : 1;
    t.cost = heads > 0 ? wan_cost(&run->desc, t.density, t.density_pv) : 1;
    return t;
}

/* ==== >>table ========================================================================= */
static void wan_print_table(const wan_job *job)
{
    wan_totals first = wan_total(&job->runs[0], job->o.steps);
    int32_t i;
    printf("%-34s%8s%8s%9s%8s%11s%8s%9s%8s\n", "", "density", "all", "PSNR", "SSIM", "attention", "faster", "total",
           "faster");
    for (i = 0; i < job->run_count; ++i) {
        const wan_run *run = &job->runs[i];
        wan_totals t = wan_total(run, job->o.steps);
        char psnr[16] = "-", ssim[16] = "-";
        if (i && isfinite(run->psnr))
            snprintf(psnr, sizeof psnr, "%.2f dB", run->psnr);
        else if (i)
            strcpy(psnr, "equal");
        if (i && run->ssim >= -1) snprintf(ssim, sizeof ssim, "%.4f", run->ssim);
        printf("%-34s%6.1f %%%6.1f %%%9s%8s%9.2f s%7.2fx%7.2f s%7.2fx\n", run->settings, 100 * t.density,
               100 * t.all_pairs, psnr, ssim, t.attention_seconds, first.attention_seconds / t.attention_seconds,
               run->total_seconds, job->runs[0].total_seconds / run->total_seconds);
        if (run->desc.skip) printf("%-34s%6.1f %% of products P V\n", "", 100 * t.density_pv);
        if (t.has_recall)
            printf("%-34serror of attention %.4f, recall %.4f, worst row %.4f\n", "", t.error, t.recall, t.recall_min);
        else if (t.is_checked)
            printf("%-34serror of attention %.4f\n", "", t.error);
    }
    printf("\ndensity: of the calls that are sparse; all: of all pairs of all steps and layers; PSNR, SSIM: of the "
           "clip, against the first line\n");
}

/* ==== >>files ========================================================================= */
static void wan_print_number(FILE *f, const char *key, double value, int digits)
{
    if (isfinite(value))
        fprintf(f, "\"%s\": %.*g", key, digits, value);
    else
        fprintf(f, "\"%s\": null", key);
}

static void wan_print_string(FILE *f, const char *key, const char *text)
{
    fprintf(f, "\"%s\": \"", key);
    for (; *text; ++text) {
        if (*text == '"' || *text == '\\') fputc('\\', f);
        if ((unsigned char)*text < 32)
            fprintf(f, "\\u%04x", (unsigned)*text);
        else
            fputc(*text, f);
    }
    fputc('"', f);
}

static const char *wan_tail_name(svg2_tail_kind tail)
{
    return tail == SVG2_TAIL_NONE ? "0" : tail == SVG2_TAIL_ORDER0 ? "1" : "2";
}

static const char *wan_method_name(wan_method method)
{
    static const char *const names[] = {"dense",  "svg2", "centroid", "raster", "tiles",
                                        "oracle", "svg1", "adaspa",   "blasst", "energy"};
    return names[method];
}

/* Of the methods beside svg2, and of the rule that leaves tiles out. */
static void wan_write_settings(FILE *f, const svg2_desc *d)
{
    int32_t i;
    if (d->method == SVG2_METHOD_SVG1 || d->method == SVG2_METHOD_ADASPA) fprintf(f, "\"block\": %d, ", d->block);
    if (d->method == SVG2_METHOD_SVG1) {
        fprintf(f, "\"keep\": %g, \"band_width\": %d, \"sample_rows\": %d, \"first_frame\": %d, ", (double)d->keep,
                d->band_width, d->sample_rows, d->first_frame > 0);
    }
    if (d->method == SVG2_METHOD_ADASPA) {
        fprintf(f, "\"sparsity\": %g, \"mass_target\": %g, \"search_steps\": [",
                d->sparsity < 0 ? 0 : (double)d->sparsity, (double)d->mass_target);
        for (i = 0; i < d->search_count; ++i) fprintf(f, "%s%d", i ? ", " : "", d->search_steps[i]);
        fputs("], ", f);
    }
    wan_print_string(f, "skip", settings_skip_name(d->skip)), fputs(",", f);
    if (d->skip == SVG2_SKIP_CONSTANT) fprintf(f, " \"threshold\": %g,", (double)d->skip_threshold);
    if (d->skip == SVG2_SKIP_ENERGY) fprintf(f, " \"energy_lambda\": %g,", (double)d->energy_lambda);
    if (d->skip == SVG2_SKIP_RECALL) fprintf(f, " \"row_recall\": %g,", (double)d->recall);
    if (d->skip) {
        fprintf(f, " \"order\": \"%s\", \"seed_lse\": %s,", d->visit == SVG2_VISIT_NATURAL ? "natural" : "diagonal",
                d->seed_lse ? "true" : "false");
    }
    fputs("\n", f);
}

/* A list with one entry per run, the reference first. Numbers that make no sense for it are null. */
static void wan_write_report(const wan_job *job)
{
    static const char *const stages[] = {"kmeans",    "permute", "summarize", "score", "select", "tail",
                                         "attention", "mass",    "place",     "band",  "pick",   "profile"};
    const wan_options *o = &job->o;
    FILE *f = job->report;
    int32_t i, step;
    size_t k;
    fprintf(f, "[\n");
    for (i = 0; i < job->run_count; ++i) {
        const wan_run *run = &job->runs[i];
        wan_totals t = wan_total(run, o->steps);
        fprintf(f, "  {");
        wan_print_string(f, "name", run->label), fputs(", ", f);
        wan_print_string(f, "method", wan_method_name(run->method)), fputs(", ", f);
        wan_print_string(f, "settings", run->settings), fputs(", ", f);
        wan_print_string(f, "backend", run->backend.name);
        if (run->is_cuda) fputs(", ", f), wan_print_string(f, "device", job->device_name);
        fputs(",\n   ", f);
        wan_print_number(f, "density", t.density, 6), fputs(", ", f);
        wan_print_number(f, "density_pv", t.density_pv, 6), fputs(", ", f);
        wan_print_number(f, "density_all", t.all_pairs, 6), fputs(", ", f);
        wan_print_number(f, "cost", t.cost, 6), fputs(", ", f);
        wan_print_number(f, "psnr", i ? run->psnr : INFINITY, 6), fputs(", ", f);
        wan_print_number(f, "ssim", i && run->ssim >= -1 ? run->ssim : INFINITY, 6), fputs(",\n   ", f);
        wan_print_number(f, "attention_seconds", t.attention_seconds, 5), fputs(", ", f);
        wan_print_number(f, "total_seconds", run->total_seconds, 5), fputs(", ", f);
        wan_print_number(f, "kmeans_seconds", t.kmeans_seconds, 5), fputs(", ", f);
        wan_print_number(f, "kmeans_first_step_seconds", t.kmeans_first, 5), fputs(", ", f);
        wan_print_number(f, "kmeans_later_step_seconds", t.kmeans_later, 5), fputs(",\n   ", f);
        wan_print_number(f, "attention_error", t.is_checked ? t.error : INFINITY, 6), fputs(", ", f);
        wan_print_number(f, "recall", t.has_recall ? t.recall : INFINITY, 6), fputs(", ", f);
        wan_print_number(f, "recall_worst_row", t.has_recall ? t.recall_min : INFINITY, 6), fputs(",\n   ", f);
        fprintf(f, "\"tokens\": %lld, \"steps\": %d, \"frames\": %d, \"height\": %d, \"width\": %d, ",
                (long long)job->grid.tokens, o->steps, o->frames, o->height, o->width);
        fprintf(f, "\"seed\": %llu, \"guidance\": %g, \"shift\": %g, \"threads\": %d,\n   ",
                (unsigned long long)o->seed, o->guidance, o->shift, o->threads);
        wan_print_string(f, "model", o->model), fputs(", ", f);
        wan_print_string(f, "prompt", o->prompt ? o->prompt : o->text ? o->text : ""), fputs(",\n   ", f);
        fprintf(f,
                "\"query_clusters\": %d, \"key_clusters\": %d, \"tail\": %s, \"route\": \"%s\", \"budget\": \"%s\",\n",
                run->desc.query_clusters, run->desc.key_clusters, wan_tail_name(run->desc.tail),
                run->desc.route == SVG2_ROUTE_MASS ? "mass" : "spread",
                run->desc.budget == SVG2_BUDGET_ROW ? "row" : "head");
        fputs("   ", f), wan_write_settings(f, &run->desc);
        fprintf(f, "   \"per_step\": [");
        for (step = 0; step < o->steps; ++step) {
            const wan_step *s = &run->steps[step];
            fprintf(f, "%s\n     {\"step\": %d, ", step ? "," : "", step);
            wan_print_number(f, "sigma", wan_sigma(o, step), 6), fputs(", ", f);
            wan_print_number(f, "density", s->heads ? s->density / (double)s->heads : 1, 5), fputs(", ", f);
            wan_print_number(f, "density_pv", s->heads ? s->density_pv / (double)s->heads : 1, 5), fputs(", ", f);
            wan_print_number(f, "attention_seconds", s->attention_seconds, 4), fputs(", ", f);
            wan_print_number(f, "attention_error", s->rows ? sqrt(s->error / s->norm) : INFINITY, 4), fputs(", ", f);
            wan_print_number(f, "recall", s->rows && t.has_recall ? s->recall / (double)s->rows : INFINITY, 4),
                fputs(", \"stages\": {", f);
            for (k = 0; k < sizeof stages / sizeof *stages; ++k) {
                fputs(k ? ", " : "", f);
                wan_print_number(f, stages[k], s->seconds[k], 4);
            }
            fputs("}}", f);
        }
        fprintf(f, "]}%s\n", i + 1 < job->run_count ? "," : "");
    }
    fprintf(f, "]\n");
}

static void wan_write_csv(const wan_job *job)
{
    int32_t i;
    fprintf(job->csv, "name,settings,method,density,density_all,cost,psnr,ssim,attention_seconds,total_seconds,"
                      "kmeans_seconds,attention_error,recall,recall_worst_row,tokens,steps,seed,density_pv,prompt\n");
    for (i = 0; i < job->run_count; ++i) {
        const wan_run *run = &job->runs[i];
        wan_totals t = wan_total(run, job->o.steps);
        fprintf(job->csv, "%s,\"%s\",%s,%.5f,%.5f,%.5f,", run->label, run->settings, wan_method_name(run->method),
                t.density, t.all_pairs, t.cost);
        if (i && isfinite(run->psnr)) fprintf(job->csv, "%.4f", run->psnr);
        fputc(',', job->csv);
        if (i && run->ssim >= -1) fprintf(job->csv, "%.6f", run->ssim);
        fprintf(job->csv, ",%.3f,%.3f,%.3f,", t.attention_seconds, run->total_seconds, t.kmeans_seconds);
        if (t.has_recall)
            fprintf(job->csv, "%.6f,%.6f,%.6f", t.error, t.recall, t.recall_min);
        else if (t.is_checked)
            fprintf(job->csv, "%.6f,,", t.error);
        else
            fputs(",,", job->csv);
        fprintf(job->csv, ",%lld,%d,%llu,%.5f,\"%s\"\n", (long long)job->grid.tokens, job->o.steps,
                (unsigned long long)job->o.seed, t.density_pv, job->o.prompt ? job->o.prompt : "");
    }
}

static void wan_write_latent(const wan_job *job, FILE *file, const float *latent)
{
    char name[] = "latent";
    tf_tensor t;
    memset(&t, 0, sizeof t);
    t.name = name, t.dtype = TF_F32, t.rank = 4;
    t.shape[0] = job->model.channels, t.shape[1] = job->grid.frames, t.shape[2] = 2 * job->grid.height,
    t.shape[3] = 2 * job->grid.width;
    if (tf_write_safetensors_header(file, &t, 1) != TF_OK)
        tool_fail(TOOL_FAILURE, "%s: %s", job->o.latent, strerror(errno));
    tool_write(file, latent, job->count * sizeof *latent, job->o.latent);
}
