/* settings.h - MIT licence - what attention computes, as options of svg2 attend and of a run of wan; after tool.h, svg2.h

   One table of options and one function that turns their values into svg2_desc, so that both programs mean the same.
   In svg2_desc 0 is the default: the user's own 0 becomes the desc's word for zero here. */
#ifndef SETTINGS_H_INCLUDED
#define SETTINGS_H_INCLUDED

#define SETTINGS_METHODS "dense|svg2|svg1|adaspa|blasst|energy"
typedef enum settings_method {
    SETTINGS_DENSE,
    SETTINGS_SVG2,
    SETTINGS_SVG1,
    SETTINGS_ADASPA,
    SETTINGS_BLASST, /* dense, with the rules that leave tiles out */
    SETTINGS_ENERGY
} settings_method;

/* Negative or NULL: not given. */
typedef struct attention_settings {
    settings_method method;
    const char *prefix;                   /* of the options in messages: "--" or "" */
    int tail, route, budget, skip, order; /* indices of choices */
    int32_t query_clusters, key_clusters, init_iterations, step_iterations, keep_empty;
    int32_t block, sample_rows, first_frame, seed_lse, dense_steps;
    double top_p, min_keep, density, target_error, dense_above;
    double keep, sparsity, mass_target, threshold, energy_lambda, recall;
    const char *search_steps;
} attention_settings;

enum { SETTINGS_OPTIONS = 32, SETTINGS_MESSAGE = 200 };

static void settings_init(attention_settings *s, const char *prefix)
{
    memset(s, 0, sizeof *s);
    s->prefix = prefix;
    s->method = SETTINGS_SVG2;
    s->tail = s->route = s->budget = s->skip = s->order = -1;
    s->query_clusters = s->key_clusters = s->init_iterations = s->step_iterations = s->keep_empty = -1;
    s->block = s->sample_rows = s->first_frame = s->seed_lse = s->dense_steps = -1;
    s->top_p = s->min_keep = s->density = s->target_error = s->dense_above = -1;
    s->keep = s->sparsity = s->mass_target = s->threshold = s->recall = -1;
    s->energy_lambda = 1; /* those that are given are negative */
}

/* Returns how many. */
static size_t settings_options(attention_settings *s, tool_option *options)
{
    /* clang-format off */
    const tool_option table[] = {
        {TOOL_HEADING, "", "", NULL, 0, 0, 0, "svg2: clusters of similar tokens"},
        {TOOL_INT, "query-clusters", "N", &s->query_clusters, 1, 65536, 0, "(about 1.1 sqrt of the video tokens)"},
        {TOOL_INT, "key-clusters", "N", &s->key_clusters, 1, 65536, 0, "(about 3.6 sqrt of the video tokens)"},
        {TOOL_INT, "init-iters", "N", &s->init_iterations, 1, 10000, 0, "k-means iterations of the first step (10)"},
        {TOOL_INT, "step-iters", "N", &s->step_iterations, 0, 10000, 0, "and of every later one (2)"},
        {TOOL_REAL, "top-p", "P", &s->top_p, 0, 1, 0, "compute this much of the estimated mass exactly (0.9)"},
        {TOOL_REAL, "min-keep", "R", &s->min_keep, 0, 1, 1, "least fraction of key clusters per query cluster"},
        {TOOL_REAL, "density", "X", &s->density, 0, 1, 0, "or this fraction of all pairs"},
        {TOOL_REAL, "target-error", "E", &s->target_error, 0, 1, 0,
         "or as much as this relative L2 error needs (0.02 unless --compensate 0)"},
        {TOOL_REAL, "dense-above", "X", &s->dense_above, 0, 1, 0, "with it: a head that needs more goes dense (0.8)"},
        {TOOL_CHOICE, "route", "mass|spread", &s->route, 0, 0, 0, "what makes a block worth computing (mass)"},
        {TOOL_CHOICE, "budget", "row|head", &s->budget, 0, 0, 0, "who shares the budget (head)"},
        {TOOL_CHOICE, "compensate", "0|1|2", &s->tail, 0, 0, 0,
         "skipped blocks: 0 dropped (route mass, budget row), 1 mean, 2 first order (2; adaspa: 0)"},
        {TOOL_CHOICE, "tail", "0|1|2", &s->tail, 0, 0, 0, NULL},

        {TOOL_HEADING, "", "", NULL, 0, 0, 0, "svg1: bands in space or in time; adaspa: blocks with the largest exact mass"},
        {TOOL_REAL, "keep", "X", &s->keep, 0, 1, 0, "svg1: part of all pairs in a band (0.3)"},
        {TOOL_INT, "sample-rows", "N", &s->sample_rows, 1, 65536, 0, "svg1: rows that decide between space and time (64)"},
        {TOOL_INT, "first-frame", "0|1", &s->first_frame, 0, 1, 0, "svg1: all see the first frame (1 without text)"},
        {TOOL_REAL, "sparsity", "S", &s->sparsity, 0, 0.9999, 1, "adaspa: part of the key blocks that is left out (0.8)"},
        {TOOL_REAL, "mass-target", "T", &s->mass_target, 0, 1, 0, "adaspa: or blocks that hold this part of the mass"},
        {TOOL_TEXT, "search-steps", "A,B", &s->search_steps, 0, 0, 0, "adaspa: steps at which blocks are searched, the first of them dense (0)"},
        {TOOL_INT, "block", "N", &s->block, 1, INT32_MAX, 0, "both: tokens of a block (64)"},

        {TOOL_HEADING, "", "", NULL, 0, 0, 0, "in any method: tiles left out while attention runs"},
        {TOOL_CHOICE, "skip", "none|constant|energy|recall", &s->skip, 0, 0, 0,
         "rule (none; blasst: constant, energy: energy)"},
        {TOOL_REAL, "threshold", "X", &s->threshold, 0, 1, 0, "constant: weights below X times the largest (0.1)"},
        {TOOL_REAL, "energy-lambda", "X", &s->energy_lambda, -1e30, -1e-6, 1,
         "energy: weights below exp(X) times their sum (ln(94 / keys))"},
        {TOOL_REAL, "recall", "R", &s->recall, 0, 1, 0, "recall: every row keeps this part of its mass (0.95)"},
        {TOOL_CHOICE, "order", "natural|diagonal", &s->order, 0, 0, 0, "in which tiles are visited (dense: diagonal; else natural)"},
        {TOOL_INT, "seed-lse", "0|1", &s->seed_lse, 0, 1, 0, "energy: begin with the LSE of the step before (0)"},
    };
    /* clang-format on */
    memcpy(options, table, sizeof table);
    return sizeof table / sizeof *table;
}

static const char *settings_method_name(settings_method method)
{
    static const char *const names[] = {"dense", "svg2", "svg1", "adaspa", "blasst", "energy"};
    return names[method];
}

static const char *settings_skip_name(svg2_skip skip)
{
    static const char *const names[] = {"none", "constant", "energy", "recall"};
    return names[skip];
}

/* What is too small for a float must not become 0, the default. */
static float settings_positive(double value) { return (float)value > 0 ? (float)value : 1e-37f; }

/* The option that sets a field of svg2_desc, or NULL. */
static const char *settings_option_of(const char *field)
{
    static const char *const known[][2] = {
        {"frames", "frames"},
        {"frame_tokens", "frame-tokens"},
        {"text_valid", "text-valid"},
        {"query_clusters", "query-clusters"},
        {"key_clusters", "key-clusters"},
        {"init_iterations", "init-iters"},
        {"step_iterations", "step-iters"},
        {"top_p", "top-p"},
        {"min_keep", "min-keep"},
        {"density", "density"},
        {"target_error", "target-error"},
        {"dense_above", "dense-above"},
        {"scale", "scale"},
        {"method", "method"},
        {"block", "block"},
        {"keep", "keep"},
        {"sample_rows", "sample-rows"},
        {"first_frame", "first-frame"},
        {"sparsity", "sparsity"},
        {"mass_target", "mass-target"},
        {"search_count", "search-steps"},
        {"search_steps", "search-steps"},
        {"skip", "skip"},
        {"visit", "order"},
        {"skip_threshold", "threshold"},
        {"energy_lambda", "energy-lambda"},
        {"recall", "recall"},
        {"seed_lse", "seed-lse"},
        {"dense_steps", "dense-steps"},
        {"dense_layers", "dense-layers"},
    };
    size_t i;
    for (i = 0; i < sizeof known / sizeof *known; ++i) {
        if (!strcmp(field, known[i][0])) return known[i][1];
    }
    return NULL;
}

/* An option of another method would be without effect. Dense takes those of svg2: so it can stand beside it. */
static int settings_check_methods(const attention_settings *s, char message[SETTINGS_MESSAGE])
{
    enum {
        DENSE = 1 << SETTINGS_DENSE,
        SVG2 = 1 << SETTINGS_SVG2 | DENSE,
        SVG1 = 1 << SETTINGS_SVG1,
        ADASPA = 1 << SETTINGS_ADASPA
    };
    const struct {
        const char *name;
        int is_given, methods;
        const char *of;
    } rules[] = {
        {"query-clusters", s->query_clusters >= 0, SVG2, "svg2"},
        {"key-clusters", s->key_clusters >= 0, SVG2, "svg2"},
        {"init-iters", s->init_iterations >= 0, SVG2, "svg2"},
        {"step-iters", s->step_iterations >= 0, SVG2, "svg2"},
        {"keep-empty", s->keep_empty >= 0, SVG2, "svg2"},
        {"top-p", s->top_p >= 0, SVG2, "svg2"},
        {"min-keep", s->min_keep >= 0, SVG2, "svg2"},
        {"density", s->density >= 0, SVG2, "svg2"},
        {"target-error", s->target_error >= 0, SVG2, "svg2"},
        {"dense-above", s->dense_above >= 0, SVG2, "svg2"},
        {"route", s->route >= 0, SVG2, "svg2"},
        {"budget", s->budget >= 0, SVG2, "svg2"},
        {s->prefix[0] ? "compensate" : "tail", s->tail > 0, SVG2 | ADASPA, "svg2 and adaspa"},
        {"keep", s->keep >= 0, SVG1, "svg1"},
        {"sample-rows", s->sample_rows >= 0, SVG1, "svg1"},
        {"first-frame", s->first_frame >= 0, SVG1, "svg1"},
        {"sparsity", s->sparsity >= 0, ADASPA, "adaspa"},
        {"mass-target", s->mass_target >= 0, ADASPA, "adaspa"},
        {"search-steps", s->search_steps != NULL, ADASPA, "adaspa"},
        {"block", s->block >= 0, SVG1 | ADASPA, "svg1 and adaspa"},
    };
    size_t i;
    for (i = 0; i < sizeof rules / sizeof *rules; ++i) {
        if (!rules[i].is_given || rules[i].methods >> s->method & 1) continue;
        snprintf(message, SETTINGS_MESSAGE, "%s%s is of %s, the method is %s", s->prefix, rules[i].name, rules[i].of,
                 settings_method_name(s->method));
        return 0;
    }
    return 1;
}

/* One rule; what names another is refused. */
static int settings_skip(const attention_settings *s, svg2_desc *d, char message[SETTINGS_MESSAGE])
{
    const struct {
        const char *prefix, *name, *value;
        int is_given;
        svg2_skip skip;
    } named[] = {
        {s->prefix, "method ", "blasst", s->method == SETTINGS_BLASST, SVG2_SKIP_CONSTANT},
        {s->prefix, "method ", "energy", s->method == SETTINGS_ENERGY, SVG2_SKIP_ENERGY},
        {s->prefix, "skip ", s->skip >= 0 ? settings_skip_name((svg2_skip)s->skip) : "", s->skip >= 0,
         (svg2_skip)(s->skip > 0 ? s->skip : 0)},
        {s->prefix, "threshold", "", s->threshold >= 0, SVG2_SKIP_CONSTANT},
        {s->prefix, "energy-lambda", "", s->energy_lambda < 0, SVG2_SKIP_ENERGY},
        {s->prefix, "recall", "", s->recall >= 0, SVG2_SKIP_RECALL},
    };
    size_t i, first = sizeof named / sizeof *named;
    for (i = 0; i < sizeof named / sizeof *named; ++i) {
        if (!named[i].is_given) continue;
        if (first == sizeof named / sizeof *named) first = i;
        if (named[i].skip == named[first].skip) continue;
        snprintf(message, SETTINGS_MESSAGE, "%s%s%s and %s%s%s exclude each other: one rule leaves tiles out",
                 named[first].prefix, named[first].name, named[first].value, named[i].prefix, named[i].name,
                 named[i].value);
        return 0;
    }
    if (first < sizeof named / sizeof *named) d->skip = named[first].skip;
    if (s->order >= 0 && !d->skip) {
        snprintf(message, SETTINGS_MESSAGE,
                 "%sorder needs a rule that leaves tiles out: %sskip, %sthreshold, %senergy-lambda or %srecall",
                 s->prefix, s->prefix, s->prefix, s->prefix, s->prefix);
        return 0;
    }
    d->visit = s->order < 0 ? SVG2_VISIT_DEFAULT : s->order < 1 ? SVG2_VISIT_NATURAL : SVG2_VISIT_DIAGONAL;
    if (s->threshold >= 0) d->skip_threshold = settings_positive(s->threshold);
    if (s->energy_lambda < 0) d->energy_lambda = (float)s->energy_lambda;
    if (s->recall >= 0) d->recall = settings_positive(s->recall);
    if (s->seed_lse > 0 && d->skip != SVG2_SKIP_ENERGY) {
        snprintf(message, SETTINGS_MESSAGE, "%sseed-lse goes with %sskip energy alone", s->prefix, s->prefix);
        return 0;
    }
    d->seed_lse = s->seed_lse > 0;
    return 1;
}

/* "a,b" or "a+b": ascending, at most SVG2_MAX_SEARCHES, inside the schedule. Not given: the first step that may be
   sparse, and with is_twice the middle of the rest. */
static int settings_search(const attention_settings *s, svg2_desc *d, int32_t steps, int is_twice,
                           char message[SETTINGS_MESSAGE])
{
    const int32_t first = s->dense_steps > 0 ? s->dense_steps : 0;
    const char *at = s->search_steps;
    d->search_count = 0;
    if (!at) {
        d->search_steps[d->search_count++] = first;
        if (is_twice && steps - first > 1) d->search_steps[d->search_count++] = first + (steps - first) / 2;
        return 1;
    }
    for (;; ++at) {
        char *end;
        const long value = strtol(at, &end, 10);
        if (end == at || *at < '0' || *at > '9' || (*end && *end != ',' && *end != '+') || value > INT32_MAX) {
            snprintf(message, SETTINGS_MESSAGE, "%ssearch-steps: '%.60s' is not a list of steps, as in 2,8", s->prefix,
                     s->search_steps);
            return 0;
        }
        if (d->search_count == SVG2_MAX_SEARCHES) {
            snprintf(message, SETTINGS_MESSAGE, "%ssearch-steps: more than %d of them", s->prefix, SVG2_MAX_SEARCHES);
            return 0;
        }
        if (value >= steps) {
            snprintf(message, SETTINGS_MESSAGE, "%ssearch-steps: %ld is beyond the schedule, of %d step%s (from 0)",
                     s->prefix, value, steps, steps == 1 ? "" : "s");
            return 0;
        }
        if (value < first) {
            snprintf(message, SETTINGS_MESSAGE, "%ssearch-steps: %ld is one of the %d dense steps", s->prefix, value,
                     first);
            return 0;
        }
        if (d->search_count && value <= d->search_steps[d->search_count - 1]) {
            snprintf(message, SETTINGS_MESSAGE, "%ssearch-steps: '%.60s' does not ascend", s->prefix, s->search_steps);
            return 0;
        }
        d->search_steps[d->search_count++] = (int32_t)value;
        at = end;
        if (!*at) return 1;
    }
}

/* Into desc, where 0 stays the default of svg2.h; other fields are left alone. steps: length of the schedule. Returns 0
   with a message about what contradicts itself. */
static int settings_apply(const attention_settings *s, svg2_desc *d, int32_t steps, int is_twice,
                          char message[SETTINGS_MESSAGE])
{
    if (!settings_check_methods(s, message) || !settings_skip(s, d, message)) return 0;
    if (s->density >= 0 && s->target_error >= 0) {
        snprintf(message, SETTINGS_MESSAGE, "%sdensity and %starget-error exclude each other", s->prefix, s->prefix);
        return 0;
    }
    d->method = s->method == SETTINGS_SVG2     ? SVG2_METHOD_SVG2
                : s->method == SETTINGS_SVG1   ? SVG2_METHOD_SVG1
                : s->method == SETTINGS_ADASPA ? SVG2_METHOD_ADASPA
                                               : SVG2_METHOD_DENSE;
    if (s->query_clusters > 0) d->query_clusters = s->query_clusters;
    if (s->key_clusters > 0) d->key_clusters = s->key_clusters;
    if (s->init_iterations > 0) d->init_iterations = s->init_iterations;
    if (s->step_iterations >= 0) d->step_iterations = s->step_iterations > 0 ? s->step_iterations : -1;
    if (s->keep_empty > 0) d->keep_empty = 1;
    if (s->route >= 0) d->route = s->route < 1 ? SVG2_ROUTE_MASS : SVG2_ROUTE_SPREAD;
    if (s->budget >= 0) d->budget = s->budget < 1 ? SVG2_BUDGET_ROW : SVG2_BUDGET_HEAD;
    if (s->tail >= 0) d->tail = s->tail < 1 ? SVG2_TAIL_NONE : s->tail < 2 ? SVG2_TAIL_ORDER0 : SVG2_TAIL_ORDER1;
    if (s->top_p >= 0) d->top_p = settings_positive(s->top_p);
    if (s->min_keep >= 0) d->min_keep = s->min_keep > 0 ? settings_positive(s->min_keep) : -1.0f;
    if (s->density >= 0) d->density = settings_positive(s->density);
    if (s->target_error >= 0) d->target_error = settings_positive(s->target_error);
    if (s->dense_above >= 0) d->dense_above = settings_positive(s->dense_above);
    if (s->dense_steps >= 0) d->dense_steps = s->dense_steps;
    if (s->block > 0) d->block = s->block;
    if (s->keep >= 0) d->keep = settings_positive(s->keep);
    if (s->sample_rows > 0) d->sample_rows = s->sample_rows;
    if (s->first_frame >= 0) d->first_frame = s->first_frame > 0 ? 1 : -1;
    if (s->sparsity >= 0) d->sparsity = s->sparsity > 0 ? settings_positive(s->sparsity) : -1.0f;
    if (s->mass_target >= 0) d->mass_target = settings_positive(s->mass_target);
    return s->method != SETTINGS_ADASPA || settings_search(s, d, steps, is_twice, message);
}

/* What svg2_attend will do with this state, which it has not been called with yet. */
static svg2_action settings_action(const svg2_desc *d, const svg2_state *state, int32_t step)
{
    const svg2_action action = svg2_schedule(d, step);
    return d->method == SVG2_METHOD_ADASPA && action != SVG2_ACTION_DENSE && !state->is_warm ? SVG2_ACTION_SEARCH
                                                                                             : action;
}

/* NULL, or what the backend lacks. */
static const char *settings_lacks(const svg2_backend *backend, const svg2_desc *d)
{
    const int is_tiled = d->method == SVG2_METHOD_SVG1 || d->method == SVG2_METHOD_ADASPA;
    return is_tiled && !backend->place ? "has no svg1 and no adaspa" : NULL;
}

#endif /* SETTINGS_H_INCLUDED */
