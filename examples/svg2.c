/* svg2.c - MIT licence - the command-line tool of svg2.h: attention on files of Q, K and V, and what it cost and lost

   cc -std=c99 -O2 -ffp-contract=off -fopenmp -I. -o svg2 examples/svg2.c -lpng -lcjson -lm

   SVG2_TOOL_NO_CJSON  without cJSON: no .safetensors input, no --report
   SVG2_TOOL_NO_PNG    without libpng: no --picture

   >>common    reading tensors, threads and progress, time     >>attend   the attention call and its report
   >>calibrate thresholds for a wanted sparsity                >>synth    structured test input
   >>compare   errors between tensors or clips                 >>info     what is in a file
   >>main      commands */
#define _XOPEN_SOURCE 700

#ifdef _OPENMP
#  define SVG2_OPENMP
#endif
#define SVG2_IMPLEMENTATION
#include "svg2.h"

#ifdef SVG2_TOOL_NO_CJSON
#  define TF_NO_CJSON
#else
#  include <cjson/cJSON.h>
#endif
#define TF_API static inline /* not all are used */
#define TF_IMPLEMENTATION
#include "tensor_file.h"

#include "picture.h"
#include "synth.h"
#include "tool.h"
#include "y4m.h"

#include <time.h>

/* ==== >>common =========================================================================== */
static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* svg2_parallel that counts finished items and shows them, on a terminal only. */
static struct progress {
    svg2_parallel inner;
    int           is_terminal;
    char          label[80];
    double        shown_at;
} progress;

typedef struct counted_task {
    svg2_task_fn *fn;
    void         *task;
    int64_t       done, count;
} counted_task;

static void run_counted(void *task, int64_t begin, int64_t end, int32_t worker)
{
    counted_task *counted = (counted_task *)task;
    int64_t       done;
    counted->fn(counted->task, begin, end, worker);
    done = __atomic_add_fetch(&counted->done, end - begin, __ATOMIC_RELAXED);
    if (worker == 0 && now() - progress.shown_at > 0.1) { /* one worker writes, so lines do not mix */
        progress.shown_at = now();
        tool_has_progress_line = 1;
        fprintf(stderr, "\r\033[K%s  %3.0f %%", progress.label, 100.0 * (double)done / (double)counted->count);
    }
}

static void run_with_progress(void *user, svg2_task_fn *fn, void *task, int64_t count, int64_t grain)
{
    counted_task counted;
    int64_t      begin, piece = grain > 0 ? grain : 1;
    (void)user;
    counted.fn = fn;
    counted.task = task;
    counted.done = 0;
    counted.count = count;
    if (progress.inner.run) {
        progress.inner.run(progress.inner.user, run_counted, &counted, count, grain);
    } else {
        for (begin = 0; begin < count; begin += piece) {
            run_counted(&counted, begin, begin + piece < count ? begin + piece : count, 0);
        }
    }
}

static svg2_parallel start_threads(int32_t threads)
{
    svg2_parallel parallel;
#ifdef SVG2_OPENMP
    progress.inner = svg2_parallel_openmp(threads);
#else
    memset(&progress.inner, 0, sizeof progress.inner);
    if (threads > 1) tool_notice("this build has no OpenMP: one thread");
#endif
    progress.is_terminal = isatty(2) && (!getenv("TERM") || strcmp(getenv("TERM"), "dumb") != 0);
    parallel = progress.inner;
    if (progress.is_terminal) parallel.run = run_with_progress;
    return parallel;
}

static int32_t online_cpus(void)
{
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1 : count > 1024 ? 1024 : (int32_t)count;
}

static const char *dtype_name(svg2_dtype dtype) { return dtype == SVG2_F32 ? "f32" : dtype == SVG2_F16 ? "f16" : "bf16"; }
static size_t dtype_bytes(svg2_dtype dtype) { return dtype == SVG2_F32 ? 4 : 2; }
static tf_dtype dtype_in_file(svg2_dtype dtype)
{
    return dtype == SVG2_F32 ? TF_F32 : dtype == SVG2_F16 ? TF_F16 : TF_BF16;
}

/* "[1, 24, 4096, 128]" */
static const char *shape_text(int rank, const int64_t *shape, char text[TF_MAX_RANK * 22 + 8])
{
    int i, used = sprintf(text, "[");
    for (i = 0; i < rank; ++i) used += sprintf(text + used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    sprintf(text + used, "]");
    return text;
}

/* A tensor in a file, opened by "x.npy" or "x.safetensors:name". */
typedef struct tensor_input {
    const char      *where;
    tf_file          file;
    const tf_tensor *tensor;
} tensor_input;

/* preferred: the name to take from a .safetensors file when none is given, or NULL */
static void open_tensor(tensor_input *input, const char *where, const char *preferred)
{
    char        message[TF_MESSAGE_COUNT];
    const char *name;
    char       *path = tf_split(where, &name);

    if (!path) tool_fail(TOOL_FAILURE, "out of memory");
    input->where = where;
    if (tf_open(&input->file, path, message, sizeof message)) tool_fail(TOOL_FAILURE, "%s", message);
    input->tensor = tf_find(&input->file, name);
    if (!input->tensor && !name[0] && preferred) input->tensor = tf_find(&input->file, preferred);
    if (!input->tensor && name[0]) tool_fail(TOOL_FAILURE, "%s: no tensor of that name in the file", where);
    if (!input->tensor) {
        tool_fail(TOOL_FAILURE, "%s: %zu tensors in the file: say which, as %s:name", where, input->file.tensor_count,
                  path);
    }
    free(path);
}

#include "attend.h" /* >>attend */

#include "calibrate.h" /* >>calibrate */

/* ==== >>synth ============================================================================ */
typedef struct synth_job {
    const synth_projection *projection;
    const synth_scene      *scene;
    svg2_dtype              dtype;
    unsigned char          *rows; /* [tokens, dim] of dtype */
} synth_job;

static void synth_rows(void *task, int64_t begin, int64_t end, int32_t worker)
{
    const synth_job *job = (const synth_job *)task;
    float            row[SYNTH_MAX_DIM];
    size_t           dim = (size_t)job->projection->dim, row_bytes = dim * dtype_bytes(job->dtype);
    int64_t          token;
    (void)worker;
    for (token = begin; token < end; ++token) {
        synth_row(job->projection, job->scene, token, row);
        svg2_convert(job->rows + (size_t)token * row_bytes, job->dtype, row, SVG2_F32, dim);
    }
}

static int command_synth(int argc, char **argv, int is_help)
{
    int32_t           frames = 9, height = 24, width = 40, heads = 2, heads_kv = -1, dim = 128, text = 0, batch = 1;
    int32_t           threads = online_cpus(), part, head, entry;
    int               dtype_choice = 0;
    uint64_t          seed = 0;
    const char       *directory = NULL;
    static const char *const names[3] = {"q", "k", "v"};
    const tool_option options[] = {
        {TOOL_TEXT, "out", "DIR", &directory, 0, 0, 0, "where q.npy, k.npy, v.npy (bf16: qkv.safetensors) go; required"},
        {TOOL_INT, "frames", "N", &frames, 1, 100000, 0, "latent frames (9)"},
        {TOOL_INT, "height", "N", &height, 1, 100000, 0, "tokens per column (24)"},
        {TOOL_INT, "width", "N", &width, 1, 100000, 0, "tokens per row (40)"},
        {TOOL_INT, "heads", "N", &heads, 1, 4096, 0, "heads of q (2)"},
        {TOOL_INT, "heads-kv", "N", &heads_kv, 1, 4096, 0, "heads of k and v (as q)"},
        {TOOL_INT, "dim", "N", &dim, 8, SYNTH_MAX_DIM, 0, "head dimension, a multiple of 8 (128)"},
        {TOOL_INT, "batch", "N", &batch, 1, 4096, 0, "independent scenes (1)"},
        {TOOL_INT, "text", "N", &text, 0, 1000000, 0, "text tokens behind the video tokens (0)"},
        {TOOL_CHOICE, "dtype", "f32|f16|bf16", &dtype_choice, 0, 0, 0, "(f32)"},
        {TOOL_SEED, "seed", "N", &seed, 0, 0, 0, "same seed, same tensors (0)"},
        {TOOL_INT, "threads", "N", &threads, 1, 1024, 0, "(number of CPUs)"},
    };
    const size_t option_count = sizeof options / sizeof *options;
    synth_desc   desc;
    synth_scene *scenes;
    svg2_dtype   dtype;
    synth_job    job;
    svg2_parallel parallel;
    FILE        *files[3];
    char        *paths[3];
    tf_tensor    headers[3];
    int64_t      tokens;
    synth_projection *projection;

    if (is_help) {
        printf("svg2 synth --out DIR [options]\n\n"
               "Writes Q, K and V with the structure of video attention: a procedural scene (textures, moving objects, a\n"
               "panning camera) seen through heads of several kinds, with QK norm and 3-D RoPE.\n\n");
        tool_print_options(options, option_count);
        return 0;
    }
    tool_parse(argc, argv, options, option_count, NULL, 0);
    if (!directory) tool_fail(TOOL_USAGE, "synth needs --out DIR");
    if (heads_kv < 0) heads_kv = heads;
    if (heads % heads_kv) tool_fail(TOOL_USAGE, "--heads-kv: %d does not divide --heads %d", heads_kv, heads);
    if (dim % 8) tool_fail(TOOL_USAGE, "--dim: %d is not a multiple of 8", dim);
    if ((double)frames * height * width + text > INT32_MAX) tool_fail(TOOL_USAGE, "more than 2^31-1 tokens");
    tokens = (int64_t)frames * height * width + text;
    dtype = dtype_choice == 0 ? SVG2_F32 : dtype_choice == 1 ? SVG2_F16 : SVG2_BF16;

    desc.batch = batch, desc.heads = heads, desc.heads_kv = heads_kv, desc.dim = dim;
    desc.frames = frames, desc.height = height, desc.width = width, desc.text = text, desc.seed = seed;
    memset(headers, 0, sizeof headers);
    for (part = 0; part < 3; ++part) {
        static char single[3][2] = {"q", "k", "v"};
        headers[part].name = single[part];
        headers[part].dtype = dtype_in_file(dtype);
        headers[part].rank = 4;
        headers[part].shape[0] = batch;
        headers[part].shape[1] = part == SYNTH_Q ? heads : heads_kv;
        headers[part].shape[2] = tokens;
        headers[part].shape[3] = dim;
    }
    tool_make_directory(directory);
    for (part = 0; part < 3; ++part) {
        if (dtype == SVG2_BF16) {
            paths[part] = part ? paths[0] : tool_format("%s/%s", directory, "qkv.safetensors");
            files[part] = part ? files[0] : tool_open_output(paths[0]);
        } else {
            char *base = tool_format("%s/%s", directory, names[part]);
            paths[part] = tool_format("%s%s", base, ".npy");
            files[part] = tool_open_output(paths[part]);
            free(base);
        }
    }
    if (dtype == SVG2_BF16 && tf_write_safetensors_header(files[0], headers, 3) != TF_OK) {
        tool_fail(TOOL_FAILURE, "%s: cannot be written", paths[0]);
    }
    parallel = start_threads(threads);
    scenes = (synth_scene *)tool_allocate((size_t)batch, sizeof *scenes);
    projection = (synth_projection *)tool_allocate(1, sizeof *projection);
    for (entry = 0; entry < batch; ++entry) {
        if (!synth_scene_create(&scenes[entry], &desc, entry)) tool_fail(TOOL_FAILURE, "out of memory");
    }
    job.projection = projection;
    job.dtype = dtype;
    job.rows = (unsigned char *)tool_allocate((size_t)tokens, (size_t)dim * dtype_bytes(dtype));
    for (part = 0; part < 3; ++part) {
        if (dtype != SVG2_BF16 &&
            tf_write_npy_header(files[part], headers[part].dtype, 4, headers[part].shape) != TF_OK) {
            tool_fail(TOOL_FAILURE, "%s: cannot be written", paths[part]);
        }
        for (entry = 0; entry < batch; ++entry) {
            for (head = 0; head < (int32_t)headers[part].shape[1]; ++head) {
                job.scene = &scenes[entry];
                synth_projection_create(projection, job.scene, (synth_part)part, head);
                snprintf(progress.label, sizeof progress.label, "synth %s  head %d", names[part], head);
                if (parallel.run) parallel.run(parallel.user, synth_rows, &job, tokens, 256);
                else synth_rows(&job, 0, tokens, 0);
                tool_write(files[part], job.rows, (size_t)tokens * (size_t)dim * dtype_bytes(dtype), paths[part]);
            }
        }
    }
    tool_clear_progress();
    tool_commit_outputs();
    printf("%s  q [%d, %d, %lld, %d]  k, v [%d, %d, %lld, %d]  %s  %d frames x %d tokens%s\n",
           dtype == SVG2_BF16 ? paths[0] : directory, batch, heads, (long long)tokens, dim, batch, heads_kv,
           (long long)tokens, dim, dtype_name(dtype), frames, height * width, text ? " + text" : "");
    for (part = 0; part < (dtype == SVG2_BF16 ? 1 : 3); ++part) free(paths[part]);
    for (entry = 0; entry < batch; ++entry) synth_scene_destroy(&scenes[entry]);
    free(scenes);
    free(projection);
    free(job.rows);
    return 0;
}

/* ==== >>compare ========================================================================== */
static void print_metrics(const svg2_metrics *metrics)
{
    printf("rel_l1    %.6g\nrel_l2    %.6g\ncosine    %.9g\nmax_abs   %.6g\n", metrics->rel_l1, metrics->rel_l2,
           metrics->cosine, metrics->max_abs);
}

static void compare_tensors(const char *left_path, const char *right_path)
{
    tensor_input  inputs[2];
    float        *values[2];
    svg2_metrics  metrics;
    svg2_error    err;
    char          text[2][TF_MAX_RANK * 22 + 8];
    int           i;

    open_tensor(&inputs[0], left_path, NULL);
    open_tensor(&inputs[1], right_path, NULL);
    for (i = 0; i < 2; ++i) shape_text(inputs[i].tensor->rank, inputs[i].tensor->shape, text[i]);
    if (strcmp(text[0], text[1]) != 0) {
        tool_fail(TOOL_FAILURE, "shapes differ: %s is %s, %s is %s", left_path, text[0], right_path, text[1]);
    }
    for (i = 0; i < 2; ++i) {
        values[i] = (float *)tool_allocate((size_t)inputs[i].tensor->count, sizeof(float));
        if (!tf_get_f32(inputs[i].tensor, 0, inputs[i].tensor->count, values[i])) {
            tool_fail(TOOL_FAILURE, "%s: %s cannot be compared", inputs[i].where, tf_dtype_name(inputs[i].tensor->dtype));
        }
    }
    if (svg2_compare(values[0], values[1], (size_t)inputs[0].tensor->count, 0, &metrics, &err) != SVG2_OK) {
        tool_fail(TOOL_FAILURE, "%s %s", err.field, err.text);
    }
    printf("%s %s against %s %s, %s\n", left_path, tf_dtype_name(inputs[0].tensor->dtype), right_path,
           tf_dtype_name(inputs[1].tensor->dtype), text[0]);
    print_metrics(&metrics);
    printf("psnr      %.4f dB  (peak = max - min of the second)\n", metrics.psnr);
    if (!metrics.finite) printf("note      there are NaN or Inf among the elements\n");
    if (inputs[0].tensor->dtype == inputs[1].tensor->dtype) {
        int equal = !memcmp(inputs[0].tensor->data, inputs[1].tensor->data, inputs[0].tensor->bytes);
        printf("bits      %s\n", equal ? "equal" : "differ");
    }
    for (i = 0; i < 2; ++i) {
        free(values[i]);
        tf_close(&inputs[i].file);
    }
}

/* PSNR of one frame from its squared error; two equal frames count as 100 dB so that a mean exists. */
static double frame_psnr(double squares, double count)
{
    double psnr = squares > 0 ? 10 * log10(255.0 * 255.0 * count / squares) : 100;
    return psnr < 100 ? psnr : 100;
}

static void compare_clips(const char *left_path, const char *right_path)
{
    y4m_clip    clips[2];
    uint8_t    *frames[2];
    const char *paths[2];
    double      sum_y = 0, sum_all = 0, squares_total = 0, absolute = 0, reference = 0, reference_squares = 0;
    double      dot = 0, left_squares = 0, maximum = 0, luma;
    size_t      i, luma_count;
    int64_t     count = 0, equal = 0;
    int         k, got[2];

    paths[0] = left_path;
    paths[1] = right_path;
    for (k = 0; k < 2; ++k) {
        const char *wrong = y4m_open(&clips[k], paths[k]);
        if (wrong) tool_fail(TOOL_FAILURE, "%s: %s", paths[k], wrong);
    }
    if (clips[0].width != clips[1].width || clips[0].height != clips[1].height ||
        clips[0].chroma_width != clips[1].chroma_width || clips[0].chroma_height != clips[1].chroma_height) {
        tool_fail(TOOL_FAILURE, "clips differ: %s is %dx%d C%s, %s is %dx%d C%s", left_path, clips[0].width,
                  clips[0].height, clips[0].chroma, right_path, clips[1].width, clips[1].height, clips[1].chroma);
    }
    luma_count = (size_t)clips[0].width * (size_t)clips[0].height;
    luma = (double)luma_count;
    for (k = 0; k < 2; ++k) frames[k] = (uint8_t *)tool_allocate(clips[k].frame_bytes, 1);
    for (;;) {
        double squares = 0, squares_y = 0;
        for (k = 0; k < 2; ++k) {
            got[k] = y4m_read(&clips[k], frames[k]);
            if (got[k] < 0) tool_fail(TOOL_FAILURE, "%s: truncated or damaged in frame %lld", paths[k], (long long)count);
        }
        if (got[0] != got[1]) {
            tool_fail(TOOL_FAILURE, "clips differ: %s ends after %lld frames, the other one goes on", paths[got[0] != 0],
                      (long long)count);
        }
        if (!got[0]) break;
        for (i = 0; i < clips[0].frame_bytes; ++i) {
            double x = frames[0][i], y = frames[1][i], difference = x - y;
            squares += difference * difference;
            if (i + 1 == luma_count) squares_y = squares;
            if (i >= luma_count) continue;
            absolute += fabs(difference);
            maximum = fabs(difference) > maximum ? fabs(difference) : maximum;
            reference += y;
            reference_squares += y * y;
            left_squares += x * x;
            dot += x * y;
        }
        sum_y += frame_psnr(squares_y, luma);
        sum_all += frame_psnr(squares, (double)clips[0].frame_bytes);
        squares_total += squares_y;
        equal += squares == 0;
        ++count;
    }
    if (count == 0) tool_fail(TOOL_FAILURE, "%s: no frames", left_path);
    printf("%s against %s, %dx%d C%s, %lld frames\n", left_path, right_path, clips[0].width, clips[0].height,
           clips[0].chroma, (long long)count);
    printf("rel_l1    %.6g\nrel_l2    %.6g\ncosine    %.9g\nmax_abs   %.6g\n", reference > 0 ? absolute / reference : 0,
           reference_squares > 0 ? sqrt(squares_total / reference_squares) : 0,
           left_squares > 0 && reference_squares > 0 ? dot / sqrt(left_squares * reference_squares) : 1, maximum);
    printf("psnr      %.4f dB  (mean of the frames' PSNR over Y, peak 255; equal frames count as 100 dB)\n",
           sum_y / (double)count);
    printf("psnr_all  %.4f dB  (the same over Y, U and V together)\n", sum_all / (double)count);
    printf("equal     %lld frames\n", (long long)equal);
    for (k = 0; k < 2; ++k) {
        free(frames[k]);
        y4m_close(&clips[k]);
    }
}

static int command_compare(int argc, char **argv, int is_help)
{
    const char *words[2];
    if (is_help) {
        printf("svg2 compare A B\n\nErrors of A against the reference B: two tensors of one shape (x.npy, "
               "x.safetensors:name; any dtype),\n"
               "or two .y4m clips (8 bit). Prints rel_l1, rel_l2, cosine, max_abs and psnr; for clips over Y.\n");
        return 0;
    }
    if (tool_parse(argc, argv, NULL, 0, words, 2) != 2) tool_fail(TOOL_USAGE, "compare needs two files");
    if (y4m_is_clip(words[0]) && y4m_is_clip(words[1])) compare_clips(words[0], words[1]);
    else compare_tensors(words[0], words[1]);
    return 0;
}

/* ==== >>info ============================================================================= */
typedef struct value_stats {
    double  low, high, mean, squares; /* of the finite ones; squares: sum of squared distances from the mean */
    int64_t finite, other;
} value_stats;

/* Chan's update piece by piece: a sum of squares would cancel for data far from zero. */
static void add_values(value_stats *stats, const double *values, int64_t count)
{
    double  sum = 0, squares = 0, mean, step;
    int64_t i, finite = 0;
    for (i = 0; i < count; ++i) {
        if (!isfinite(values[i])) continue;
        if (stats->finite + finite == 0) stats->low = stats->high = values[i];
        stats->low = values[i] < stats->low ? values[i] : stats->low;
        stats->high = values[i] > stats->high ? values[i] : stats->high;
        sum += values[i];
        ++finite;
    }
    stats->other += count - finite;
    if (!finite) return;
    mean = sum / (double)finite;
    for (i = 0; i < count; ++i) {
        if (isfinite(values[i])) squares += (values[i] - mean) * (values[i] - mean);
    }
    step = mean - stats->mean;
    stats->squares += squares + step * step * (double)stats->finite * (double)finite / (double)(stats->finite + finite);
    stats->mean += step * (double)finite / (double)(stats->finite + finite);
    stats->finite += finite;
}

static void print_stats(const value_stats *stats)
{
    if (stats->finite) {
        printf("  min %.6g  max %.6g  mean %.6g  std %.6g", stats->low, stats->high, stats->mean,
               sqrt(stats->squares / (double)stats->finite));
    }
    printf("  non-finite %lld\n", (long long)stats->other);
}

static void info_tensor(const tf_tensor *tensor)
{
    value_stats stats;
    double      values[1024];
    char        text[TF_MAX_RANK * 22 + 8], printable[64];
    int64_t     first;
    int         has_values = 1;

    memset(&stats, 0, sizeof stats);
    for (first = 0; first < tensor->count && has_values; first += 1024) {
        int64_t count = tensor->count - first < 1024 ? tensor->count - first : 1024;
        has_values = tf_get_f64(tensor, first, count, values);
        add_values(&stats, values, count);
    }
    if (tensor->name[0]) printf("%-24s ", tf__printable(tensor->name, printable));
    printf("%-5s %-24s", tf_dtype_name(tensor->dtype), shape_text(tensor->rank, tensor->shape, text));
    if (has_values) print_stats(&stats);
    else printf("\n");
}

static void info_clip(const char *path)
{
    y4m_clip    clip;
    value_stats stats;
    uint8_t    *frame;
    double      values[1024];
    int64_t     frames = 0;
    size_t      i, k, luma;
    int         got;
    const char *wrong = y4m_open(&clip, path);

    if (wrong) tool_fail(TOOL_FAILURE, "%s: %s", path, wrong);
    memset(&stats, 0, sizeof stats);
    luma = (size_t)clip.width * (size_t)clip.height;
    frame = (uint8_t *)tool_allocate(clip.frame_bytes, 1);
    while ((got = y4m_read(&clip, frame)) > 0) {
        for (i = 0; i < luma; i += 1024) {
            size_t count = luma - i < 1024 ? luma - i : 1024;
            for (k = 0; k < count; ++k) values[k] = frame[i + k];
            add_values(&stats, values, (int64_t)count);
        }
        ++frames;
    }
    if (got < 0) tool_fail(TOOL_FAILURE, "%s: truncated or damaged in frame %lld", path, (long long)frames);
    printf("y4m %dx%d C%s  rate %s  %lld frames  Y:", clip.width, clip.height, clip.chroma,
           clip.rate[0] ? clip.rate : "?", (long long)frames);
    print_stats(&stats);
    free(frame);
    y4m_close(&clip);
}

static int command_info(int argc, char **argv, int is_help)
{
    const char *words[64], *name;
    char       *path;
    char        message[TF_MESSAGE_COUNT];
    tf_file     file;
    size_t      k;
    int         i, count;

    if (is_help) {
        printf("svg2 info F...\n\nLists dtype, shape, range, mean, standard deviation and the number of NaN and Inf "
               "of every tensor in a\n"
               ".npy or .safetensors file (or of one, as x.safetensors:name), and of the luma of a .y4m clip.\n");
        return 0;
    }
    count = tool_parse(argc, argv, NULL, 0, words, 64);
    if (count == 0) tool_fail(TOOL_USAGE, "info needs a file");
    for (i = 0; i < count; ++i) {
        if (count > 1) printf("%s\n", words[i]);
        if (y4m_is_clip(words[i])) {
            info_clip(words[i]);
            continue;
        }
        path = tf_split(words[i], &name);
        if (!path) tool_fail(TOOL_FAILURE, "out of memory");
        if (tf_open(&file, path, message, sizeof message)) tool_fail(TOOL_FAILURE, "%s", message);
        if (name[0] && !tf_find(&file, name)) tool_fail(TOOL_FAILURE, "%s: no tensor of that name in the file", words[i]);
        for (k = 0; k < file.tensor_count; ++k) {
            if (!name[0] || &file.tensors[k] == tf_find(&file, name)) info_tensor(&file.tensors[k]);
        }
        tf_close(&file);
        free(path);
    }
    return 0;
}

/* ==== >>main ============================================================================= */
static int command_presets(int argc, char **argv, int is_help)
{
    int32_t i;
    if (is_help) {
        printf("svg2 presets\n\nLists the published settings that attend --preset knows.\n");
        return 0;
    }
    tool_parse(argc, argv, NULL, 0, NULL, 0);
    printf("%-28s %5s %4s %6s %13s %5s %10s %6s %8s %10s %6s %14s %9s\n", "name", "heads", "dim", "layers",
           "video tokens", "text", "clusters", "top_p", "min_keep", "iterations", "steps", "dense st./lay.", "svg1 keep");
    for (i = 0; i < svg2_preset_count(); ++i) {
        const svg2_preset *preset = svg2_preset_at(i);
        char               tokens[32], clusters[32], iterations[32], dense[32];
        snprintf(tokens, sizeof tokens, "%d x %d", preset->frames, preset->frame_tokens);
        snprintf(clusters, sizeof clusters, "%d/%d", preset->query_clusters, preset->key_clusters);
        snprintf(iterations, sizeof iterations, "%d/%d", preset->init_iterations, preset->step_iterations);
        snprintf(dense, sizeof dense, "%d/%d", preset->dense_steps, preset->dense_layers);
        printf("%-28s %5d %4d %6d %13s %5d %10s %6.2g %8.2g %10s %6d %14s %9.2g\n", preset->name, preset->heads,
               preset->head_dim, preset->layers, tokens, preset->text_tokens, clusters, (double)preset->top_p,
               (double)preset->min_keep, iterations, preset->steps, dense, (double)preset->keep);
        if (preset->note && strcmp(preset->note, "published") != 0) printf("%28s %s\n", "", preset->note);
    }
    return 0;
}

static void print_help(void)
{
    printf("svg2 %d.%d.%d - sparse attention for video diffusion transformers\n\n"
           "  svg2 attend --q F --k F --v F --out F [options]   one attention call on files\n"
           "  svg2 calibrate --q F --k F [options]              thresholds of the skip rules for a wanted sparsity\n"
           "  svg2 synth --out DIR [options]                    Q, K, V with the structure of video attention\n"
           "  svg2 compare A B                                  errors between two tensors or two .y4m clips\n"
           "  svg2 info F...                                    what is in a file\n"
           "  svg2 presets                                      published settings by name\n\n"
           "F is x.npy or x.safetensors:name. Each command has --help.\n"
           "Exit code 0; 2 for wrong usage, 1 for any other failure, with one line on standard error.\n",
           SVG2_VERSION / 10000, SVG2_VERSION / 100 % 100, SVG2_VERSION % 100);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv, int is_help);
    } commands[] = {{"attend", command_attend},
                    {"calibrate", command_calibrate},
                    {"synth", command_synth},
                    {"compare", command_compare},
                    {"info", command_info},
                    {"presets", command_presets}};
    size_t i;
    int    k, status;

    tool_start("svg2");
    if (argc < 2) tool_fail(TOOL_USAGE, "no command given (svg2 --help lists them)");
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_help();
        return 0;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("svg2 %d.%d.%d\n", SVG2_VERSION / 10000, SVG2_VERSION / 100 % 100, SVG2_VERSION % 100);
        return 0;
    }
    for (i = 0; i < sizeof commands / sizeof *commands; ++i) {
        int is_help = 0;
        if (strcmp(argv[1], commands[i].name) != 0) continue;
        for (k = 2; k < argc; ++k) is_help |= !strcmp(argv[k], "--help") || !strcmp(argv[k], "-h");
        status = commands[i].run(argc - 2, argv + 2, is_help);
        if (fflush(stdout) != 0) tool_fail(TOOL_FAILURE, "standard output: %s", strerror(errno));
        return status;
    }
    tool_fail(TOOL_USAGE, "unknown command '%s' (svg2 --help lists them)", argv[1]);
}
