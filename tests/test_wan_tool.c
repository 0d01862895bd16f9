/* The video transformer's program, as a script would use it: test_wan_tool path/to/wan [path/to/svg2]
   Clips, reports and tensors that agree with each other, equal bits where bits must be equal, bad options, hostile
   models, interruptions. The model is examples/wan/model.safetensors from here, or what WAN_MODEL says. */
#define _XOPEN_SOURCE 700
#include "test.h"

#include <cjson/cJSON.h>
#include <ftw.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#if TEST_SLOW_BUILD
#  define SIDE   16
#  define SMALL  "--frames 4 --height 16 --width 16 --steps 3 --guidance 1 " PROMPT
#  define MIDDLE TINY
#  define TINY   SIZE "--guidance 1 " PROMPT
#else
#  define SIDE   32
#  define SMALL  "--frames 4 --height 32 --width 32 --steps 3 " PROMPT
#  define MIDDLE "--frames 3 --height 24 --width 32 --steps 2 " PROMPT
#  define TINY   SIZE PROMPT
#endif
#define TILES     "--frames 4 --height 32 --width 32 --steps 3 --guidance 1 " PROMPT /* tokens for several tiles */
#define SIZE      "--frames 2 --height 16 --width 16 --steps 2 "
#define PROMPT    "--prompt 'red striped disc; ring; navy waves pan-left' "
#define NO_PROMPT SIZE "--guidance 1 --out none "

static char wan[4096], svg2[4096], model[4096], dir[64];

/* ---- running ------------------------------------------------------------------------------ */
static char last_command[16384], last_error[65536], last_output[65536];

static void in_dir(char *path, size_t capacity, const char *name) { snprintf(path, capacity, "%s/%s", dir, name); }

static void *read_file(const char *path, size_t *count)
{
    FILE *f = fopen(path, "rb");
    long end;
    char *bytes;
    if (!f) fail_msg("%s is not there", path);
    fseek(f, 0, SEEK_END);
    end = ftell(f);
    rewind(f);
    bytes = (char *)mem_new((size_t)end + 1);
    *count = fread(bytes, 1, (size_t)end, f);
    bytes[*count] = 0;
    fclose(f);
    return bytes;
}
static void *read_here(const char *name, size_t *count)
{
    char path[512];
    in_dir(path, sizeof path, name);
    return read_file(path, count);
}
static void read_text(const char *name, char *text, size_t capacity)
{
    char path[512];
    in_dir(path, sizeof path, name);
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(text, 1, capacity - 1, f) : 0;
    text[n] = 0;
    if (f) fclose(f);
}
static void write_file(const char *name, const void *bytes, size_t n)
{
    char path[512];
    in_dir(path, sizeof path, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_true(fwrite(bytes, 1, n, f) == n);
    assert_int_equal(fclose(f), 0);
}
static int exists(const char *name)
{
    char path[512];
    struct stat s;
    in_dir(path, sizeof path, name);
    return stat(path, &s) == 0;
}

/* Runs a program in the temporary directory. Returns the exit code, 1000 + signal after a crash. Passive: on a machine
   that is busy otherwise, two threads that spin while they wait for each other take a hundred times as long. */
static int run_program(const char *program, const char *first, const char *format, va_list list)
{
    char arguments[12288];
    vsnprintf(arguments, sizeof arguments, format, list);
    snprintf(last_command, sizeof last_command,
             "cd %s && OMP_WAIT_POLICY=passive timeout 120 %s %s %s >stdout.txt 2>stderr.txt </dev/null", dir, program,
             first, arguments);
    int status = system(last_command);
    read_text("stderr.txt", last_error, sizeof last_error);
    read_text("stdout.txt", last_output, sizeof last_output);
    if (!WIFEXITED(status)) return 1000 + WTERMSIG(status);
    return WEXITSTATUS(status) >= 124 ? 1000 + WEXITSTATUS(status) : WEXITSTATUS(status);
}
static int run(const char *format, ...)
{
    char first[4200];
    va_list list;
    snprintf(first, sizeof first, "--model %s --threads 1", model);
    va_start(list, format);
    int code = run_program(wan, first, format, list);
    va_end(list);
    return code;
}
static int run_svg2(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    int code = run_program(svg2, "", format, list);
    va_end(list);
    return code;
}
#define assert_runs(...)                                                                                               \
  do {                                                                                                                 \
    int code_ = run(__VA_ARGS__);                                                                                      \
    if (code_ != 0) fail_msg("exit code %d: %s\n%s", code_, last_command, last_error);                                 \
  } while (0)

/* All files below the directory but the two of run(): which they are, and that none was touched. */
static uint64_t seen;
static int files_seen, temporaries_seen;
static int see(const char *path, const struct stat *s, int kind, struct FTW *where)
{
    size_t n = strlen(path);
    if (where->level == 0 || !strcmp(path + where->base, "stdout.txt") || !strcmp(path + where->base, "stderr.txt"))
        return 0;
    seen += mem_hash(path, n) ^ (kind == FTW_F ? (uint64_t)s->st_ino * 31 + (uint64_t)s->st_size * 1009 +
                                                     (uint64_t)s->st_mtim.tv_nsec * 100003 + (uint64_t)s->st_mtim.tv_sec
                                               : 1);
    ++files_seen;
    temporaries_seen += n > 4 && !strcmp(path + n - 4, ".tmp");
    return 0;
}
static uint64_t look(void)
{
    seen = 0, files_seen = temporaries_seen = 0;
    nftw(dir, see, 16, FTW_PHYS);
    return seen;
}
/* Fails as it should: a code of its own, one line that is no crash report, no file made or changed. */
static void refused(const char *what)
{
    size_t n = strlen(last_error);
    int lines = 0;
    for (size_t i = 0; i < n; ++i) lines += last_error[i] == '\n';
    if (lines != 1 || n < 12 || last_error[n - 1] != '\n' || strncmp(last_error, "wan: ", 5) != 0)
        fail_msg("%s: not one line: %s\n%s", what, last_command, last_error);
    for (size_t i = 0; i + 1 < n; ++i)
        if ((unsigned char)last_error[i] < 32) fail_msg("%s: control characters in the message", what);
}
#define assert_refused(...)                                                                                            \
  do {                                                                                                                 \
    uint64_t before_ = look();                                                                                         \
    int code_ = run(__VA_ARGS__);                                                                                      \
    if (code_ < 1 || code_ > 2) fail_msg("exit code %d: %s\n%s", code_, last_command, last_error);                     \
    refused(#__VA_ARGS__);                                                                                             \
    if (look() != before_) fail_msg("left or changed files: %s", last_command);                                        \
  } while (0)
/* The same, and the line says this. */
#define assert_refused_saying(word, ...)                                                                               \
  do {                                                                                                                 \
    assert_refused(__VA_ARGS__);                                                                                       \
    if (!strstr(last_error, word)) fail_msg("no '%s' in: %s", word, last_error);                                       \
  } while (0)

static int same_bytes(const char *a, const char *b)
{
    size_t n, m;
    void *x = read_here(a, &n), *y = read_here(b, &m);
    return n == m && memcmp(x, y, n) == 0;
}
#define assert_same(a, b)                                                                                              \
  do {                                                                                                                 \
    if (!same_bytes(a, b)) fail_msg("%s and %s differ", a, b);                                                         \
  } while (0)
#define assert_differ(a, b)                                                                                            \
  do {                                                                                                                 \
    if (same_bytes(a, b)) fail_msg("%s and %s are the same", a, b);                                                    \
  } while (0)

/* ---- what was written ----------------------------------------------------------------------- */
static cJSON *load_json(const char *name)
{
    size_t n;
    char *text = (char *)read_here(name, &n);
    cJSON *json = cJSON_Parse(text);
    if (!json) fail_msg("%s is not JSON", name);
    return json;
}
static const cJSON *member(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    if (!item) fail_msg("the report has no %s", key);
    return item;
}
static double number(const cJSON *object, const char *key)
{
    const cJSON *item = member(object, key);
    if (!cJSON_IsNumber(item)) fail_msg("%s in the report is not a number", key);
    return item->valuedouble;
}
static int is_text(const cJSON *object, const char *key, const char *text)
{
    const cJSON *item = member(object, key);
    return cJSON_IsString(item) && strcmp(item->valuestring, text) == 0;
}

/* A .safetensors reader of our own. Offsets are into bytes. */
typedef struct tensors {
    unsigned char *bytes;
    size_t count, data;
    cJSON *header;
} tensors;
static tensors parse_tensors(void *bytes, size_t count)
{
    tensors t = {(unsigned char *)bytes, count, 8, 0};
    assert_true(count > 8);
    for (int i = 7; i >= 0; --i) t.header = 0, t.data = i == 7 ? t.bytes[i] : t.data << 8 | t.bytes[i];
    assert_true(t.data <= count - 8);
    t.header = cJSON_ParseWithLength((const char *)t.bytes + 8, t.data);
    assert_non_null(t.header);
    t.data += 8;
    return t;
}
static tensors load_tensors(const char *name)
{
    size_t n;
    void *bytes = read_here(name, &n);
    return parse_tensors(bytes, n);
}
/* Where the tensor begins; checks dtype (NULL: any) and shape (ends with 0) on the way. */
static unsigned char *tensor_data(const tensors *t, const char *name, const char *dtype, const int *shape)
{
    const cJSON *entry = cJSON_GetObjectItemCaseSensitive(t->header, name), *sizes, *offsets;
    if (!entry) fail_msg("no tensor %s", name);
    if (dtype && !is_text(entry, "dtype", dtype)) fail_msg("%s is not %s", name, dtype);
    sizes = member(entry, "shape");
    for (int i = 0; shape && (i == 0 || shape[i - 1]); ++i) {
        const cJSON *size = cJSON_GetArrayItem(sizes, i);
        if ((size ? size->valueint : 0) != shape[i]) fail_msg("shape of %s: [%d] is not %d", name, i, shape[i]);
    }
    offsets = member(entry, "data_offsets");
    assert_true(cJSON_GetArraySize(offsets) == 2 && t->data + (size_t)offsets->child->next->valuedouble <= t->count);
    return t->bytes + t->data + (size_t)offsets->child->valuedouble;
}
static float float_at(const unsigned char *data, size_t i)
{
    float x;
    memcpy(&x, data + 4 * i, 4);
    return x;
}
/* What the model says about itself. */
static int metadata_number(const tensors *m, const char *key)
{
    return atoi(member(member(m->header, "__metadata__"), key)->valuestring);
}
static tensors load_model(void)
{
    size_t n;
    void *bytes = read_file(model, &n);
    return parse_tensors(bytes, n);
}

static void save_npy(const char *name, const float *x, int rank, const int *shape)
{
    char text[512];
    size_t count = 1;
    int n = snprintf(text + 10, sizeof text - 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (");
    for (int i = 0; i < rank; ++i) {
        n += snprintf(text + 10 + n, sizeof text - 10 - (size_t)n, "%d, ", shape[i]);
        count *= (size_t)shape[i];
    }
    n += snprintf(text + 10 + n, sizeof text - 10 - (size_t)n, "), }");
    memcpy(text, "\x93NUMPY\x01", 8);
    while ((10 + n + 1) % 64) text[10 + n++] = ' ';
    text[10 + n++] = '\n';
    text[8] = (char)(n & 255), text[9] = (char)(n >> 8);
    char *all = (char *)mem_new((size_t)(10 + n) + count * 4);
    memcpy(all, text, (size_t)(10 + n));
    memcpy(all + 10 + n, x, count * 4);
    write_file(name, all, (size_t)(10 + n) + count * 4);
}
static void save_tensors(const char *name, const char *json, const void *data, size_t bytes)
{
    size_t n = strlen(json);
    unsigned char *all = (unsigned char *)mem_new(8 + n + bytes);
    for (int i = 0; i < 8; ++i) all[i] = (unsigned char)((uint64_t)n >> (8 * i));
    memcpy(all + 8, json, n);
    memcpy(all + 8 + n, data, bytes);
    write_file(name, all, 8 + n + bytes);
}
/* The model with one place in its header changed: the first "from" behind "after". */
static void save_model(const char *name, const char *after, const char *from, const char *to)
{
    tensors m = load_model();
    char *json = (char *)mem_new(m.data), *changed = (char *)mem_new(m.data + strlen(to)), *at;
    memcpy(json, m.bytes + 8, m.data - 8);
    json[m.data - 8] = 0;
    at = strstr(json, after);
    at = at ? strstr(at, from) : 0;
    if (!at) fail_msg("no %s ... %s in the header of the model", after, from);
    memcpy(changed, json, (size_t)(at - json));
    strcpy(changed + (at - json), to);
    strcat(changed, at + strlen(from));
    save_tensors(name, changed, m.bytes + m.data, m.count - m.data);
    cJSON_Delete(m.header);
}

/* ---- the good way ---------------------------------------------------------------------------- */
static void check_y4m(const char *name, int width, int height, int frames)
{
    size_t n, first;
    char *bytes = (char *)read_here(name, &n), want[64];
    snprintf(want, sizeof want, "YUV4MPEG2 W%d H%d F8:1 ", width, height);
    assert_memory_equal(bytes, want, strlen(want));
    first = (size_t)(strchr(bytes, '\n') - bytes) + 1;
    assert_true(n == first + (size_t)frames * (6 + 3 * (size_t)width * (size_t)height));
    for (int f = 0; f < frames; ++f)
        assert_memory_equal(bytes + first + (size_t)f * (6 + 3 * (size_t)width * (size_t)height), "FRAME\n", 6);
}

static void test_files_and_report(void **state)
{
    (void)state;
    size_t n;
    tensors m = load_model();
    const int fold = metadata_number(&m, "pixel_fold");
    const int latent_shape[5] = {3 * fold * fold, 4, SIDE / fold, SIDE / fold, 0};
    assert_runs(SMALL "dense svg2 --latent lat/ent --csv runs.csv");
    check_y4m("out/dense.y4m", SIDE, SIDE, 4);
    check_y4m("out/svg2.y4m", SIDE, SIDE, 4);
#if defined(__has_include)
#  if __has_include(<png.h>)
    assert_memory_equal(read_here("out/sheet.png", &n), "\x89PNG\r\n", 6);
#  endif
#  if __has_include(<gif_lib.h>)
    assert_memory_equal(read_here("out/clips.gif", &n), "GIF89a", 6);
#  endif
#endif
    cJSON *report = load_json("out/report.json");
    assert_int_equal(cJSON_GetArraySize(report), 2);
    const cJSON *dense = cJSON_GetArrayItem(report, 0), *sparse = cJSON_GetArrayItem(report, 1), *run_;
    assert_true(is_text(dense, "name", "dense") && is_text(dense, "method", "dense"));
    assert_true(is_text(sparse, "name", "svg2") && is_text(sparse, "method", "svg2"));
    assert_true(cJSON_IsNull(member(dense, "psnr")) && cJSON_IsNull(member(dense, "ssim")));
    assert_true(number(dense, "density") == 1 && number(dense, "density_all") == 1);
    assert_true(number(sparse, "density") > 0 && number(sparse, "density") < 1);
    assert_true(number(sparse, "psnr") > 5 && number(sparse, "psnr") < 100);
    assert_true(number(sparse, "ssim") > 0 && number(sparse, "ssim") < 1);
    cJSON_ArrayForEach(run_, report)
    {
        assert_true(number(run_, "attention_seconds") > 0);
        assert_true(number(run_, "total_seconds") > number(run_, "attention_seconds"));
        assert_true(number(run_, "tokens") == 4 * (SIDE / (2 * fold)) * (SIDE / (2 * fold)));
        assert_true(number(run_, "steps") == 3 && number(run_, "frames") == 4 && number(run_, "height") == SIDE);
        assert_true(number(run_, "seed") == 0 && number(run_, "threads") == 1);
        assert_true(is_text(run_, "prompt", "red striped disc; ring; navy waves pan-left"));
        assert_true(cJSON_IsNull(member(run_, "attention_error")) && cJSON_IsNull(member(run_, "recall")));
        assert_int_equal(cJSON_GetArraySize(member(run_, "per_step")), 3);
    }
    cJSON_Delete(report);
    static const char *const names[] = {"lat/ent/dense.safetensors", "lat/ent/svg2.safetensors"};
    for (int i = 0; i < 2; ++i) {
        tensors latent = load_tensors(names[i]);
        const unsigned char *x = tensor_data(&latent, "latent", "F32", latent_shape);
        for (size_t k = 0; k < (latent.count - latent.data) / 4; ++k) assert_true(isfinite(float_at(x, k)));
        assert_int_equal(latent.count - latent.data, 4 * 3 * 4 * SIDE * SIDE);
        cJSON_Delete(latent.header);
    }
    char *csv = (char *)read_here("runs.csv", &n);
    int lines = 0, columns = 0, first_columns = 0, is_quoted = 0;
    for (char *c = csv; *c; ++c) {
        is_quoted ^= *c == '"';
        columns += *c == ',' && !is_quoted;
        if (*c != '\n') continue;
        if (!lines++) first_columns = columns;
        assert_int_equal(columns, first_columns);
        columns = 0;
    }
    assert_int_equal(lines, 3);
    assert_memory_equal(csv, "name,settings,method,density,", 29);
    assert_true(strstr(csv, "\ndense,\"dense\",dense,1.00000,") && strstr(csv, "\nsvg2,\"svg2\",svg2,0."));
    assert_non_null(strstr(last_output, SIDE == 32 ? "256 tokens" : "64 tokens"));
    look();
    assert_int_equal(temporaries_seen, 0);
    cJSON_Delete(m.header);
}

static void test_same_bits(void **state)
{
    (void)state;
    static const char *const runs = "dense svg2 svg2,tail=0,top-p=0.7 svg2,tail=1,target-error=0.2 tiles,density=0.3 "
                                    "raster oracle,density=0.3 centroid";
    static const char *const names[] = {"dense", "svg2", "svg2-2", "svg2-3", "tiles", "raster", "oracle", "centroid"};
    assert_runs(MIDDLE "--out none --latent a %s", runs);
    assert_runs(MIDDLE "--out none --latent b %s", runs);
    assert_runs(MIDDLE "--out none --latent c --threads 2 %s", runs);
    assert_runs(MIDDLE "--out none --latent d --seed 1 dense");
    for (int i = 0; i < COUNT(names); ++i) {
        char a[64], other[64];
        snprintf(a, sizeof a, "a/%s.safetensors", names[i]);
        for (char c = 'b'; c <= 'c'; ++c) {
            snprintf(other, sizeof other, "%c/%s.safetensors", c, names[i]);
            assert_same(a, other);
        }
        if (i) assert_differ(a, "a/dense.safetensors");
    }
    assert_differ("a/dense.safetensors", "d/dense.safetensors");
    assert_differ("a/svg2.safetensors", "a/centroid.safetensors");
    assert_runs(MIDDLE "--out none --latent e --seed 1 svg2 dense"); /* a run does not see what ran before it */
    assert_same("d/dense.safetensors", "e/dense.safetensors");
    assert_false(exists("out"));
}

static void test_density_and_schedule(void **state)
{
    (void)state;
    assert_runs(SMALL "--latent a dense all:svg2,density=1 steps:svg2,density=0.2,dense-steps=1 "
                      "layers:svg2,density=0.2,dense-layers=3 late:svg2,dense-steps=3 deep:svg2,dense-layers=6 "
                      "init:svg2,density=0.2,dense-steps=1,init-on-dense=1 none:svg2,density=0.2");
    cJSON *report = load_json("out/report.json");
    const cJSON *run_[8], *step;
    for (int i = 0; i < 8; ++i) run_[i] = cJSON_GetArrayItem(report, i);
    assert_true(number(run_[1], "density") == 1);
    assert_true(cJSON_IsNull(member(run_[1], "psnr")) || number(run_[1], "psnr") > 60);
    double d = number(run_[2], "density");
    assert_true(d > 0.15 && d < 0.25); /* in whole blocks */
    assert_at_most(fabs(number(run_[2], "density_all") - (1 + 2 * d) / 3), 1e-4);
    int i = 0;
    cJSON_ArrayForEach(step, member(run_[2], "per_step")) assert_true((number(step, "density") == 1) == (i++ < 1));
    d = number(run_[3], "density");
    assert_at_most(fabs(number(run_[3], "density_all") - (1 + d) / 2), 1e-4); /* 3 of 6 layers */
    cJSON_ArrayForEach(step, member(run_[3], "per_step")) assert_at_most(number(step, "density"), 0.25);
    for (i = 4; i < 6; ++i) assert_true(number(run_[i], "density") == 1 && number(run_[i], "density_all") == 1);
    assert_same("a/dense.safetensors", "a/late.safetensors");
    assert_same("a/dense.safetensors", "a/deep.safetensors");
    assert_differ("a/steps.safetensors", "a/init.safetensors");       /* warm against cold at the first sparse step */
    assert_at_most(number(run_[7], "psnr"), number(run_[2], "psnr")); /* the dense first step is the one that counts */
    cJSON_Delete(report);
}

static void test_settings(void **state)
{
    (void)state;
    assert_runs(TINY "--check --scale 1 --fps 60 dense svg2,tail=0 svg2,tail=1 svg2,tail=2 svg2,route=mass "
                     "svg2,route=spread svg2,budget=row svg2,budget=head svg2,top-p=0.5 svg2,min-keep=0 "
                     "svg2,min-keep=0.2,budget=row svg2,target-error=0.5,dense-above=0.5 svg2,query-clusters=3 "
                     "svg2,key-clusters=1000 svg2,init-iters=1,step-iters=0 svg2,dense-steps=1,init-on-dense=1 "
                     "svg2,dense-layers=2 svg2,cold=1 svg2,simd=scalar tiles,query-clusters=7 raster,tail=0 "
                     "svg2,query-clusters=1,key-clusters=1 svg2,density=1e-9 svg2,tail=0,density=1e-9 "
                     "oracle,density=1e-9 oracle,density=1 dense,density=0.5");
    cJSON *report = load_json("out/report.json");
    const cJSON *run_;
    assert_int_equal(cJSON_GetArraySize(report), 27);
    cJSON_ArrayForEach(run_, report)
    {
        const char *settings = member(run_, "settings")->valuestring;
        if (strstr(settings, "tail=0")) assert_true(number(run_, "tail") == 0);
        if (strstr(settings, "tail=1")) assert_true(number(run_, "tail") == 1);
        if (strstr(settings, "route=mass")) assert_true(is_text(run_, "route", "mass"));
        if (strstr(settings, "budget=row")) assert_true(is_text(run_, "budget", "row"));
        if (strstr(settings, "query-clusters=3")) assert_true(number(run_, "query_clusters") == 3);
        if (strstr(settings, "key-clusters=1000")) assert_true(number(run_, "key_clusters") == 1000);
        if (is_text(run_, "method", "dense")) {
            assert_true(cJSON_IsNull(member(run_, "recall")) && number(run_, "density") == 1);
            continue;
        }
        assert_true(number(run_, "recall") >= 0 && number(run_, "recall") <= 1.00001);
        assert_true(number(run_, "recall_worst_row") <= number(run_, "recall") + 1e-6);
        assert_true(number(run_, "attention_error") >= 0 && number(run_, "attention_error") < 2);
    }
    cJSON_Delete(report);
}

static void test_names(void **state)
{
    (void)state;
    static const char *const clips[] = {"a-2", "a", "a-3", "svg2", "svg2-2", "svg2-3", "report", "50%_x.y+z"};
    assert_runs(TINY "--scale 1 a-2:dense a:svg2 a:tiles svg2 svg2,tail=0 svg2,tail=0 report:dense 50%%_x.y+z:dense");
    cJSON *report = load_json("out/report.json");
    for (int i = 0; i < COUNT(clips); ++i) {
        char name[64];
        snprintf(name, sizeof name, "out/%s.y4m", clips[i]);
        check_y4m(name, 16, 16, 2);
        assert_true(is_text(cJSON_GetArrayItem(report, i), "name", clips[i]));
    }
    cJSON_Delete(report);
    assert_same("out/a-2.y4m", "out/report.y4m");
    assert_runs("--frames 2 --height 16 --width 16 --steps 2 --out p/q/r/"); /* its own prompt, and it says so */
    assert_non_null(strstr(last_error, "--prompt"));
    assert_true(exists("p/q/r/dense.y4m") && exists("p/q/r/svg2.y4m"));
    assert_runs("--help");
    assert_non_null(strstr(last_output, "--dump-qkv"));
}

static void test_guidance_and_negative(void **state)
{
    (void)state;
    tensors m = load_model();
    const int dim = (int)member(member(m.header, "text_embedding.0.weight"), "shape")->child->next->valuedouble;
    float *zeros = (float *)mem_new((size_t)dim * 4);
    const int shape[] = {1, dim};
    for (int i = 0; i < dim; ++i) zeros[i] = 0;
    save_npy("zeros.npy", zeros, 2, shape);
    zeros[1] = 1;
    save_npy("other.npy", zeros, 2, shape);
    assert_runs(TINY "--out none --guidance 3 --latent a dense");
    assert_runs(TINY "--out none --guidance 3 --latent b dense --negative zeros.npy");
    assert_runs(TINY "--out none --guidance 3 --latent c dense --negative other.npy");
    assert_runs(TINY "--out none --latent d dense svg2 --guidance 1");
    assert_runs(TINY "--out none --latent e dense --guidance 1 --negative other.npy");
    assert_same("a/dense.safetensors", "b/dense.safetensors");
    assert_differ("a/dense.safetensors", "c/dense.safetensors");
    assert_differ("a/dense.safetensors", "d/dense.safetensors");
    assert_same("d/dense.safetensors", "e/dense.safetensors"); /* 1 = off: there is no second branch */
    cJSON_Delete(m.header);
}

static void test_noise_and_shift(void **state)
{
    (void)state;
    assert_runs(TINY "--out none --latent a dense");
    assert_runs(TINY "--out none --latent b dense --noise a/dense.safetensors");
    assert_runs(TINY "--out none --latent c dense --noise a/dense.safetensors:latent --seed 5");
    assert_differ("a/dense.safetensors", "b/dense.safetensors");
    assert_same("b/dense.safetensors", "c/dense.safetensors");
    assert_runs(TINY "--out none --latent a dense --noise a/dense.safetensors"); /* replaces what it has read */
    assert_same("a/dense.safetensors", "b/dense.safetensors");
    assert_runs(TINY "--out none --latent d dense --shift 1e-300"); /* all steps at almost no noise */
    assert_runs(TINY "--out none --latent e dense --shift 100 --guidance 100 --seed 18446744073709551615");
    assert_differ("d/dense.safetensors", "e/dense.safetensors");
    assert_refused_saying("shape", TINY "--out none --noise a/dense.safetensors --frames 3");
    assert_refused_saying("shape", TINY "--out none --noise a/dense.safetensors --width 24");
    assert_refused_saying("F.safetensors", TINY "--out none --noise a/dense.safetensors:F.safetensors");
    assert_refused_saying("none.npy", TINY "--out none --noise none.npy");
    tensors latent = load_tensors("a/dense.safetensors");
    float bad = NAN;
    memcpy(latent.bytes + latent.data + 40, &bad, 4);
    write_file("nan.safetensors", latent.bytes, latent.count);
    assert_refused_saying("nan.safetensors", TINY "--noise nan.safetensors");
    cJSON_Delete(latent.header);
}

/* Words one-hot, then the part they stand in, one-hot. */
static float *embed(const tensors *m, const char *prompt, int text_dim, int *count)
{
    const char *words = member(member(m->header, "__metadata__"), "words")->valuestring;
    const int parts = metadata_number(m, "parts");
    float *x = (float *)mem_new((size_t)(64 * text_dim) * 4);
    char copy[256], *token;
    int part = 0, n = 0;
    for (int i = 0; i < 64 * text_dim; ++i) x[i] = 0;
    snprintf(copy, sizeof copy, "%s", prompt);
    for (token = strtok(copy, " "); token; token = strtok(0, " ")) {
        size_t length = strcspn(token, ";");
        int index = 0;
        const char *w = words;
        while (*w && !(strcspn(w, " ") == length && !memcmp(w, token, length))) {
            w += strcspn(w, " ");
            w += strspn(w, " ");
            ++index;
        }
        if (!*w) fail_msg("the model does not know %s", token);
        x[n * text_dim + index] = 1;
        x[n * text_dim + text_dim - parts + part] = 1;
        ++n;
        part += token[length] == ';';
    }
    *count = n;
    return x;
}

static void test_text(void **state)
{
    (void)state;
    static const char *const prompt = "red striped disc; blue ring; grey waves pan-left";
    tensors m = load_model();
    const int dim = (int)member(member(m.header, "text_embedding.0.weight"), "shape")->child->next->valuedouble;
    const int text_len = metadata_number(&m, "text_len");
    char text[256];
    int count;
    float *x = embed(&m, prompt, dim, &count);
    uint16_t *half = (uint16_t *)mem_new((size_t)(count * dim) * 2);
    assert_true(count <= text_len);
    const int shape[] = {count, dim}, full[] = {1, text_len, dim}; /* filled up with zeros */
    save_npy("text.npy", x, 2, shape);
    save_npy("full.npy", x, 3, full);
    for (int i = 0; i < count * dim; ++i) half[i] = bf16_bits((double)x[i]);
    snprintf(text, sizeof text,
             "{\"a\":{\"dtype\":\"BF16\",\"shape\":[%d,%d],\"data_offsets\":[0,%d]},"
             "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[%d,%d]}}",
             count, dim, count * dim * 2, count * dim * 2, count * dim * 2);
    save_tensors("text.safetensors", text, half, (size_t)(count * dim) * 2);
    assert_runs(NO_PROMPT "--latent a dense svg2 --prompt '%s'", prompt);
    assert_runs(NO_PROMPT "--latent b dense svg2 --text text.npy");
    assert_runs(NO_PROMPT "--latent c dense svg2 --text full.npy");
    assert_runs(NO_PROMPT "--latent d dense svg2 --text text.safetensors:a");
    assert_runs(NO_PROMPT "--latent e dense svg2 --prompt ' red,striped disc ;blue  ring;grey waves,pan-left '");
    assert_runs(NO_PROMPT "--latent f dense --prompt 'red striped disc; grey waves pan-left; blue ring'");
    for (char c = 'b'; c <= 'e'; ++c) {
        snprintf(text, sizeof text, "%c/dense.safetensors", c);
        assert_same("a/dense.safetensors", text);
        snprintf(text, sizeof text, "%c/svg2.safetensors", c);
        assert_same("a/svg2.safetensors", text);
    }
    assert_differ("a/dense.safetensors", "f/dense.safetensors");
    save_model("spaces", "\"words\":\"", "\"words\":\"", "\"words\":\"   ");
    assert_runs(NO_PROMPT "--latent g dense svg2 --model spaces --prompt '%s'", prompt);
    assert_same("a/dense.safetensors", "g/dense.safetensors");

    assert_refused_saying("exclude", NO_PROMPT "--text text.npy --prompt red");
    assert_refused(NO_PROMPT "--text none.npy");
    assert_refused_saying("several", NO_PROMPT "--text text.safetensors");
    assert_refused(NO_PROMPT "--text text.safetensors:c");
    assert_refused(NO_PROMPT "--text text.safetensors:b");
    assert_refused(NO_PROMPT "--text .");
    const struct {
        int rank, shape[4];
    } bad[] = {{2, {text_len + 1, dim}},
               {1, {dim}},
               {0, {0}},
               {3, {2, count, dim}},
               {4, {1, 1, count, dim}},
               {2, {0, dim}},
               {3, {count, dim, 1}},
               {2, {count, dim + 1}}};
    for (int i = 0; i < COUNT(bad); ++i) {
        save_npy("bad.npy", x, bad[i].rank, bad[i].shape);
        assert_refused_saying("bad.npy", NO_PROMPT "--text bad.npy");
        assert_refused_saying("bad.npy", NO_PROMPT "--prompt red --negative bad.npy");
    }
    x[3] = INFINITY;
    save_npy("bad.npy", x, 2, shape);
    assert_refused_saying("infinity", NO_PROMPT "--text bad.npy");
    snprintf(text, sizeof text, "{\"t\":{\"dtype\":\"F8_E4M3\",\"shape\":[%d,%d],\"data_offsets\":[0,%d]}}", count, dim,
             count * dim);
    save_tensors("f8.safetensors", text, half, (size_t)(count * dim));
    assert_refused_saying("F8_E4M3", NO_PROMPT "--text f8.safetensors");
    cJSON_Delete(m.header);
}

static void test_dumps(void **state)
{
    (void)state;
    static const char *const dtypes[] = {"F32", "F16", "BF16"}, *const names[] = {"q", "k", "v"};
    tensors m = load_model(), dump[3];
    const int heads = metadata_number(&m, "num_heads"), fold = metadata_number(&m, "pixel_fold");
    const int dim = member(member(m.header, "patch_embedding.weight"), "shape")->child->valueint;
    const int tokens = 4 * (SIDE / fold / 2) * (SIDE / fold / 2), shape[] = {heads, tokens, dim / heads, 0};
    assert_runs(SMALL "--out none dense svg2 --dump-qkv d0");
    assert_runs(SMALL "--out none dense --dump-qkv d1 --dump-layers 0,2 --dump-steps 1,0 --dump-dtype f16");
    assert_runs(SMALL "--out none dense --dump-qkv d2 --dump-layers 2 --dump-steps 1 --dump-dtype bf16");
    look();
    assert_int_equal(files_seen, 3 + 6 + 4 + 1); /* all layers of the middle step; what was listed */
    assert_true(exists("d0/step01-layer05.safetensors") && exists("d1/step00-layer00.safetensors"));
    for (int i = 0; i < 3; ++i) {
        char name[64];
        snprintf(name, sizeof name, "d%d/step01-layer02.safetensors", i);
        dump[i] = load_tensors(name);
        for (int side = 0; side < 3; ++side) {
            const unsigned char *x = tensor_data(&dump[i], names[side], dtypes[i], shape);
            const unsigned char *full = tensor_data(&dump[0], names[side], "F32", shape);
            for (size_t k = 0; i && k < (size_t)(heads * tokens * shape[2]); ++k) {
                double exact = (double)float_at(full, k);
                uint16_t bits;
                memcpy(&bits, x + 2 * k, 2);
                assert_int_equal(bits, i == 1 ? f16_bits(exact) : bf16_bits(exact));
            }
        }
    }
    for (int i = 0; i < 3; ++i) cJSON_Delete(dump[i].header);
    for (int i = 0; i < 3 && svg2[0]; ++i) { /* the tool reads them */
        char name[64];
        snprintf(name, sizeof name, "d%d/step01-layer02.safetensors", i);
        int code = run_svg2("attend --threads 1 --q %s:q --k %s:k --v %s:v --out o.npy --frames 4 --frame-tokens %d",
                            name, name, name, tokens / 4);
        if (code) fail_msg("exit code %d: %s\n%s", code, last_command, last_error);
    }
    static const char *const bad[] = {"--dump-layers 6",
                                      "--dump-layers -1",
                                      "--dump-layers 0,",
                                      "--dump-layers ,",
                                      "--dump-layers x",
                                      "--dump-layers 1,1",
                                      "--dump-layers 0,99999999999999999999",
                                      "--dump-steps 3",
                                      "--dump-steps 1.5",
                                      "--dump-steps ''",
                                      "--dump-dtype f64"};
    char many[256] = "--dump-layers 0";
    for (int i = 0; i < COUNT(bad); ++i) assert_refused(SMALL "--dump-qkv new %s", bad[i]);
    for (int i = 0; i < 64; ++i) strcat(many, ",0");
    assert_refused_saying("64", SMALL "--dump-qkv new %s", many);
    cJSON_Delete(m.header);
}

#if TEST_SLOW_BUILD
static void test_search_with_old_lse(void **state)
{
    (void)state;
    printf("skipped: search with an old LSE: denoising 2,048 tokens takes too long under sanitizers\n");
}
#else
/* Blocks of the smaller of two sets that the larger lacks: two levels of sparsity differ in how many blocks they keep,
   not in their order. */
static int blocks_lacking(const uint8_t *x, const uint8_t *y, size_t n, int *smaller, int *levels)
{
    int only_x = 0, only_y = 0, both = 0;
    for (size_t i = 0; i < n; ++i) only_x += x[i] && !y[i], only_y += y[i] && !x[i], both += x[i] && y[i];
    *smaller += both + (only_x < only_y ? only_x : only_y);
    *levels += only_x != only_y;
    return only_x < only_y ? only_x : only_y;
}

/* AdaSpa searches again with the LSE of its first search. On consecutive steps of a clip that finds the blocks that a
   search with the step's own LSE finds, nearly; and more of them than the first search had found. */
static void test_search_with_old_lse(void **state)
{
    (void)state;
    static const float sparsities[] = {0.65f, 0.75f, 0.85f};
    const svg2_backend cpu = svg2_cpu_backend(0);
    tensors m = load_model();
    const int heads = metadata_number(&m, "num_heads");
    const int dim = member(member(m.header, "patch_embedding.weight"), "shape")->child->valueint / heads;
    const int tokens = 8 * 16 * 16, shape[] = {heads, tokens, dim, 0};
    const size_t blocks = (size_t)(tokens / 64) * (size_t)(tokens / 64);
    const size_t rows = (size_t)(heads * tokens), bytes = rows * (size_t)dim * sizeof(float);
    int all_old = 0, all_first = 0, all = 0, levels = 0;
    double worst = 0;
    svg2_desc d = desc_small(heads, tokens, dim);
    job j[2]; /* 0: searches at step 7, and at 8 with that LSE; 1: at 8 alone */
    d.method = SVG2_METHOD_ADASPA;
    d.search_count = 2, d.search_steps[0] = 7, d.search_steps[1] = 8;
    uint8_t *map[3]; /* of the search at 7, of that at 8 with its LSE, of that at 8 with its own */
    for (int i = 0; i < 2; ++i) job_alloc(&j[i], d, &cpu, BHSD);
    for (int i = 0; i < 3; ++i) map[i] = (uint8_t *)mem_new((size_t)heads * blocks);
    assert_runs("dense --frames 8 --height 64 --width 64 --steps 12 --guidance 1 --threads 2 --out none --dump-qkv d "
                "--dump-steps 7,8 " PROMPT);
    for (int layer = 0; layer < 6; ++layer) {
        tensors at[2];
        for (int step = 0; step < 2; ++step) {
            char name[64];
            snprintf(name, sizeof name, "d/step%02d-layer%02d.safetensors", 7 + step, layer);
            at[step] = load_tensors(name);
        }
        for (int n = 0; n < COUNT(sparsities); ++n) {
            int old = 0, first = 0, kept = 0;
            double moved = 0, share;
            for (int call = 0; call < 3; ++call) {
                job *x = &j[call == 2];
                const tensors *t = &at[call != 0];
                x->d.sparsity = sparsities[n];
                if (call != 1) svg2_state_reset(&x->state);
                memcpy(x->q.data, tensor_data(t, "q", "F32", shape), bytes);
                memcpy(x->k.data, tensor_data(t, "k", "F32", shape), bytes);
                memcpy(x->v.data, tensor_data(t, "v", "F32", shape), bytes);
                job_run(x, call ? 8 : 7);
                memcpy(map[call], svg2_plan_view(&cpu, &x->d, call ? 8 : 7, x->work).map, (size_t)heads * blocks);
            }
            for (int h = 0; h < heads; ++h) {
                const size_t begin = (size_t)h * blocks;
                int unused[2] = {0, 0};
                old += blocks_lacking(map[1] + begin, map[2] + begin, blocks, &kept, &levels);
                first += blocks_lacking(map[0] + begin, map[2] + begin, blocks, &unused[0], &unused[1]);
            }
            for (size_t i = 0; i < rows; ++i) /* the LSE is the first array of the state */
                moved += fabs((double)((float *)j[0].state_memory)[i] - (double)((float *)j[1].state_memory)[i]);
            share = (double)old / kept;
            if (share > worst) worst = share;
            if (share > 0.02) fail_msg("layer %d, sparsity %g: %d of %d", layer, (double)sparsities[n], old, kept);
            assert_true(moved / (double)rows > 0.01); /* or the two searches are the same */
            all_old += old, all_first += first, all += kept;
        }
        for (int step = 0; step < 2; ++step) cJSON_Delete(at[step].header);
    }
    print_message("of %d blocks %d are not found with the old LSE (at worst %.2f %%), %d were not a step before\n", all,
                  all_old, 100 * worst, all_first);
    print_message("%d of %d heads are at another level of sparsity\n", levels, 6 * heads * COUNT(sparsities));
    assert_true(all_old < all_first && levels * 10 <= 6 * heads * COUNT(sparsities));
    cJSON_Delete(m.header);
}
#endif

/* Wan 2.2: two networks. With the same weights in both, who computes which step does not matter, unless clusters are
   carried across the boundary. */
static void test_two_models(void **state)
{
    (void)state;
    assert_runs(SMALL "--out none --latent a dense svg2");
    assert_runs(SMALL "--out none --latent b --low-noise %s dense svg2", model);
    assert_runs(SMALL "--out none --latent c --low-noise %s --boundary 1e-9 dense svg2", model);
    assert_same("a/dense.safetensors", "b/dense.safetensors");
    assert_differ("a/svg2.safetensors", "b/svg2.safetensors"); /* the second one starts with clusters of its own */
    assert_same("a/svg2.safetensors", "c/svg2.safetensors");   /* never reached */
    save_model("short", "\"text_len\":", "\"text_len\":\"9\"", "\"text_len\":\"8\"");
    assert_refused_saying("not of the same shape", SMALL "--low-noise short");
    assert_refused_saying("none", SMALL "--low-noise none");
    write_file("empty", "", 0);
    assert_refused_saying("empty", SMALL "--low-noise empty");
}

/* The same network, told that its latents are not pixels. */
static void test_latents_of_a_vae(void **state)
{
    (void)state;
    save_model("vae", "\"pixel_fold\":", "\"pixel_fold\":\"2\"", "\"pixel_fold\":\"0\"");
    assert_refused_saying("--latent", TINY "--model vae");
    assert_runs(TINY "--model vae --height 8 --width 8 --latent a dense svg2");
    assert_true(exists("out/report.json") && !exists("out/dense.y4m") && !exists("out/sheet.png"));
    assert_runs(TINY "--out none --latent b dense svg2");
    assert_same("a/svg2.safetensors", "b/svg2.safetensors");
    cJSON *report = load_json("out/report.json");
    assert_true(cJSON_IsNull(member(cJSON_GetArrayItem(report, 1), "ssim")));
    assert_true(number(cJSON_GetArrayItem(report, 1), "psnr") > 0);
    cJSON_Delete(report);
}

/* ---- the bad ways ---------------------------------------------------------------------------- */
static void test_bad_options(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "--frames 0",
        "--frames -1",
        "--frames x",
        "--frames 1e3",
        "--frames 99999999999",
        "--frames",
        "--height 0",
        "--height 18",
        "--width 17",
        "--width 2",
        "--steps 0",
        "--steps 1001",
        "--steps 3.5",
        "--seed -1",
        "--seed 18446744073709551616",
        "--shift 0",
        "--shift -1",
        "--shift nan",
        "--shift inf",
        "--shift 101",
        "--guidance -1",
        "--guidance nan",
        "--boundary 0",
        "--boundary 2",
        "--heads 0",
        "--heads 5",
        "--scale 0",
        "--scale 65",
        "--fps 0",
        "--threads 0",
        "--threads -1",
        "--threads 1e9",
        "--check=1",
        "--nonsense",
        "-x",
        "--prompt purple",
        "--prompt 'red; blue; green; still'",
        "--prompt ''",
        "--prompt 'red disk'",
        "--prompt 'red red red red red red red red red red red red red red red red red red red red'",
        "--out ''",
        "svg9",
        "''",
        "svg2,",
        "svg2,density",
        "svg2,density=",
        "svg2,=1",
        "svg2,bogus=1",
        "svg2,density=x",
        "svg2,density=nan",
        "svg2,density=inf",
        "svg2,density=0",
        "svg2,density=-0.1",
        "svg2,density=1.1",
        "svg2,density=1e999",
        "svg2,top-p=0",
        "svg2,top-p=1.5",
        "svg2,min-keep=-1",
        "svg2,min-keep=2",
        "svg2,target-error=0",
        "svg2,target-error=0.1,density=0.1",
        "svg2,dense-above=0",
        "svg2,dense-above=1.1",
        "svg2,tail=3",
        "svg2,tail=-1",
        "svg2,tail=1.5",
        "svg2,route=depth",
        "svg2,budget=",
        "svg2,query-clusters=0",
        "svg2,query-clusters=65537",
        "svg2,key-clusters=-3",
        "svg2,init-iters=0",
        "svg2,init-iters=10001",
        "svg2,step-iters=-1",
        "svg2,dense-steps=-1",
        "svg2,dense-layers=x",
        "svg2,cold=2",
        "svg2,init-on-dense=2",
        "svg2,simd=sse9",
        "svg2,density=0.1,density=0.2",
        "oracle,top-p=0.5",
        "oracle,query-clusters=65536,key-clusters=65536",
        ":svg2",
        "x:",
        "a/b:svg2",
        "../x:svg2",
        ".x:svg2",
        "'a b:svg2'",
        "x:y:svg2",
        "dense svg2 svg2,density=2"};
    char many[2048] = "";
    for (int i = 0; i < COUNT(bad); ++i) assert_refused(TINY "%s", bad[i]);
    memset(many, 'n', 64);
    assert_refused_saying("too long", TINY "%s:svg2", many);
    memset(many, 'n', 63);
    many[63] = 0;
    assert_runs(TINY "--out none --latent a %s:dense", many);
    strcpy(many, "svg2");
    while (strlen(many) < 256) strcat(many, ",density=0.1");
    assert_refused_saying("too long", TINY "%s", many);
    many[0] = 0;
    for (int i = 0; i < 257; ++i) strcat(many, "dense ");
    assert_refused_saying("unexpected", TINY "%s", many);
}

static void test_too_large(void **state)
{
    (void)state;
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    assert_refused_saying("tokens", TINY "--frames 100000 --height 100000 --width 100000");
    assert_refused_saying("GiB", TINY "--frames 100000 --height 512 --width 512");
    assert_refused_saying("GiB", TINY "--frames 100000 --height 512 --width 512 --out none dense");
    assert_refused_saying("--scale", TINY "--height 1024 --width 1024 --scale 64");
    assert_refused_saying("--scale", TINY "--height 4 --width 20000 --scale 3");
    assert_refused_saying("--width", TINY "--height 4 --width 70000 --scale 1");
    clock_gettime(CLOCK_MONOTONIC, &end);
    assert_in_range(end.tv_sec - begin.tv_sec, 0, 20);
    save_model("long", "\"text_len\":", "\"text_len\":\"9\"", "\"text_len\":\"65536\"");
    assert_refused_saying("nowhere.npy",
                          NO_PROMPT "--model long --text nowhere.npy"); /* 65536 x 32 floats are nothing */
}

static void test_unwritable(void **state)
{
    (void)state;
    write_file("file", "keep me", 7);
    assert_refused(TINY "--out file");
    assert_refused(TINY "--out file/x");
    assert_refused(TINY "--out none --latent file");
    assert_refused(TINY "--out none --latent new/a/b --csv file/x.csv");
    assert_refused(TINY "--dump-qkv file");
    assert_refused(TINY "--csv no/such/place.csv");
    assert_refused(TINY "--csv .");
    assert_refused_saying("two outputs", TINY "--csv out/report.json");
    assert_refused_saying("two outputs", TINY "--latent both --dump-qkv both step01-layer01:dense");
    assert_runs(TINY "--out out --csv runs.csv dense");
    assert_refused(TINY "--out out --csv runs.csv dense svg2,density=2"); /* old results survive */
    if (access("/dev/full", W_OK) == 0)
        assert_refused(TINY "--seed 1 --out out --csv /dev/full dense"); /* a full disk */
    assert_runs(TINY "--out none --csv /dev/null dense");
}

static void test_hostile_files(void **state)
{
    (void)state;
    tensors m = load_model();
    const size_t cuts[] = {0,          1,      7,          8,          9,           100,        m.data / 2,
                           m.data - 1, m.data, m.data + 1, m.data + 2, m.count / 2, m.count - 1};
    const float x[4] = {0, 0, 0, 0};
    const int square[] = {2, 2};
    uint64_t random = 7;
    assert_refused(TINY "--model nowhere");
    assert_refused(TINY "--model .");
    assert_refused(TINY "--model /dev/null");
    write_file("bad", m.bytes, m.count);
    for (int i = COUNT(cuts) - 1; i >= 0; --i) {
        char path[512];
        in_dir(path, sizeof path, "bad");
        assert_int_equal(truncate(path, (off_t)cuts[i]), 0);
        assert_refused_saying("bad", TINY "--model bad");
    }
    write_file("bad", m.bytes, m.count);
    unsigned char *longer = (unsigned char *)mem_new(m.count + 1);
    memcpy(longer, m.bytes, m.count);
    write_file("longer", longer, m.count + 1);
    assert_refused_saying("longer", TINY "--model longer");
    for (int i = 0; i < 20; ++i) {
        memcpy(longer, m.bytes, m.data);
        for (int k = 0; k < 8 + i * 4; ++k)
            longer[rnd_int(&random, i < 10 ? 200 : (int)m.data)] ^= (unsigned char)(1 + i);
        write_file("bad", longer, 4096);
        assert_refused(TINY "--model bad");
    }
    for (size_t i = 0; i < 5000; ++i) longer[i] = (unsigned char)rnd_bits(&random);
    write_file("bad", longer, 5000);
    assert_refused_saying("bad", TINY "--model bad");
    save_npy("bad", x, 2, square);
    assert_refused_saying("bad", TINY "--model bad");
    save_tensors("bad", "{}", x, 0);
    assert_refused_saying("patch_embedding.weight", TINY "--model bad");
    save_tensors("bad", "{\"img_emb.proj.0.weight\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}", x, 16);
    assert_refused_saying("image-to-video", TINY "--model bad");
    cJSON_Delete(m.header);
}

static void test_hostile_models(void **state)
{
    (void)state;
    static const struct {
        const char *after, *from, *to, *says;
    } cases[] = {
        {"\"blocks.0.ffn.0.bias\"", "\"BF16\"", "\"I16\" ", "blocks.0.ffn.0.bias"},
        {"\"patch_embedding.weight\"", "\"BF16\"", "\"U16\"", "patch_embedding.weight"},
        {"\"head.head.weight\"", "\"BF16\"", "\"BF17\"", "head.head.weight"},
        {"\"patch_embedding.weight\"", "[192,12,1,2,2]", "[192,12,2,1,2]", "patch_embedding.weight"},
        {"\"patch_embedding.weight\"", "[192,12,1,2,2]", "[12,192,1,2,2]", "width 12"},
        {"\"patch_embedding.weight\"", "[192,12,1,2,2]", "[192,48]", "patch_embedding.weight"},
        {"\"patch_embedding.weight\"", "[192,12,1,2,2]", "[192,12,1,2,3]", "patch_embedding.weight"},
        {"\"patch_embedding.weight\"", "[192,12,1,2,2]", "[9216,1,1,1,1,1,1,1,1]", "patch_embedding.weight"},
        {"\"patch_embedding.weight\"", "[192,12,1,2,2]", "[-192,-12,1,2,2]", "patch_embedding.weight"},
        {"\"patch_embedding.weight\"", "[192,", "[1e300,", "patch_embedding.weight"},
        {"\"time_embedding.0.weight\"", "[192,256]", "[256,192]", "time_embedding.0.weight"},
        {"\"blocks.1.modulation\"", "[1,6,192]", "[6,192]", "blocks.1.modulation"},
        {"\"blocks.2.ffn.0.weight\"", "[768,192]", "[192,768]", "blocks.2.ffn.0.weight"},
        {"\"head.head.weight\"", "head.head.weight", "head.tail.weight", "'head.head.weight' is missing"},
        {"\"blocks.0.self_attn.q.weight\"", "self_attn", "self_none", "'blocks.0.self_attn.q.weight' is missing"},
        {"\"blocks.3.self_attn.q.weight\"", "self_attn", "self_none", "'blocks.3.self_attn.q.weight' is missing"},
        {"\"blocks.3.cross_attn.norm_k.weight\"", "norm_k", "norm_x", "blocks.3.cross_attn.norm_k.weight"},
        {"\"blocks.0.cross_attn.k.bias\"", "cross_attn.k.bias", "cross_attn.k_img.weight", "image-to-video"},
        {"\"blocks.5.ffn.2.bias\"", "blocks.5", "blocks.9", "blocks.6"},
        {"\"blocks.5.ffn.2.bias\"", "blocks.5", "blocks.99999999999999999999", "blocks.6"},
        {"\"head.head.bias\"", "head.head.bias", "\\u001b[2J", "head.head.bias"},
        {"\"num_heads\"", "\"3\"", "\"x\"", "num_heads"},
        {"\"num_heads\"", "\"3\"", "\"0\"", "num_heads"},
        {"\"num_heads\"", "\"3\"", "\"-3\"", "num_heads"},
        {"\"num_heads\"", "\"3\"", "\"\"", "num_heads"},
        {"\"num_heads\"", "\"3\"", "\"3 \"", "num_heads"},
        {"\"num_heads\"", "\"3\"", "\"99999999999999999999\"", "num_heads"},
        {"\"num_heads\"", "\"3\"", "3", "num_heads"},
        {"\"num_heads\"", "\"3\"", "\"5\"", "5 heads"},
        {"\"num_heads\"", "\"3\"", "\"64\"", "64 heads"}, /* of 3 */
        {"\"text_len\"", "\"9\"", "\"0\"", "text_len"},
        {"\"text_len\"", "\"9\"", "\"65537\"", "text_len"},
        {"\"pixel_fold\"", "\"2\"", "\"3\"", "pixel_fold"},
        {"\"pixel_fold\"", "\"2\"", "\"17\"", "pixel_fold"},
        {"\"parts\"", "\"3\"", "\"2\"", "parts"},
        {"\"parts\"", "\"3\"", "\"0\"", "parts"},
        {"\"parts\"", "\"3\"", "\"2147483647\"", "parts"},
        {"\"words\"", "red ", "", "words"},
        {"\"words\"", "red ", "red red ", "words"},
        {"\"words\"", "red ", "red\\u001b[2J ", "words"},
        {"\"words\"", "red ", "red\\n", "words"},
    };
    tensors m = load_model();
    const unsigned char *head = tensor_data(&m, "head.head.weight", "BF16", 0);
    const unsigned char *norm = tensor_data(&m, "blocks.1.norm3.bias", "BF16", 0);
    for (int i = 0; i < COUNT(cases); ++i) {
        save_model("changed", cases[i].after, cases[i].from, cases[i].to);
        assert_refused_saying(cases[i].says, TINY "--model changed");
    }
    /* Weights that are not numbers, and weights with which nothing stays a number. */
    unsigned char saved[2];
    static const uint16_t bits[] = {0x7fc0, 0xff80};
    for (int i = 0; i < 2; ++i) {
        unsigned char *at = m.bytes + ((i ? norm : head) - m.bytes) + 100;
        memcpy(saved, at, 2);
        memcpy(at, &bits[i], 2);
        write_file("changed", m.bytes, m.count);
        assert_refused_saying(i ? "blocks.1.norm3.bias" : "head.head.weight", TINY "--model changed");
        assert_refused_saying(i ? "blocks.1.norm3.bias" : "head.head.weight", TINY "--low-noise changed");
        memcpy(at, saved, 2);
    }
    static const uint16_t huge = 0x7f7f;
    for (int i = 0; i < 192 * 48; ++i) memcpy(m.bytes + (head - m.bytes) + 2 * i, &huge, 2);
    write_file("changed", m.bytes, m.count);
    assert_refused_saying("step 1 of 2", TINY "--model changed");
    assert_refused_saying("NaN", TINY "--model changed --dump-qkv d --latent l --csv c svg2 tiles oracle,density=0.5");
    cJSON_Delete(m.header);
}

/* Starts a run that takes long, waits until it is at work. */
static pid_t start(const char *model_name)
{
    pid_t child = fork();
    if (child == 0) {
        if (chdir(dir) != 0 || !freopen("/dev/null", "w", stdout) || !freopen("stderr.txt", "w", stderr)) _exit(99);
        execl(wan, "wan", "--model", model_name, "--threads", "1", "--frames", "4", "--height", "32", "--width", "32",
              "--steps", "1000", "--prompt", "red disc", "--latent", "a/b", "--dump-qkv", "c", "--csv", "d.csv",
              "dense", "svg2", (char *)0);
        _exit(99);
    }
    assert_true(child > 0);
    for (int i = 0; i < 1000; ++i) {
        struct timespec pause = {0, 10000000};
        nanosleep(&pause, 0);
        look();
        if (temporaries_seen >= 9) break; /* 6 of q, k, v; 2 latents; ... */
    }
    assert_true(temporaries_seen >= 9);
    return child;
}

static void test_interrupted(void **state)
{
    (void)state;
    static const int signals[] = {SIGINT, SIGTERM};
    struct timespec pause = {0, 50000000};
    tensors m = load_model();
    char path[512];
    int status;
    write_file("model", m.bytes, m.count);
    uint64_t before = look();
    for (int i = 0; i < COUNT(signals); ++i) {
        pid_t child = start("model");
        nanosleep(&pause, 0);
        assert_int_equal(kill(child, signals[i]), 0);
        assert_true(waitpid(child, &status, 0) == child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == signals[i]); /* so that a script stops, too */
        assert_true(look() == before);                                      /* directories are gone, too */
    }
    pid_t child = start("model");
    in_dir(path, sizeof path, "model");
    assert_int_equal(truncate(path, 4096), 0); /* the model, under its feet */
    assert_true(waitpid(child, &status, 0) == child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
    read_text("stderr.txt", last_error, sizeof last_error);
    assert_non_null(strstr(last_error, "truncated"));
    look();
    assert_int_equal(files_seen, 1);
    cJSON_Delete(m.header);
}

/* ---- the other methods ------------------------------------------------------------------------ */
static const cJSON *run_named(const cJSON *report, const char *name)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, report) if (is_text(item, "name", name)) return item;
    fail_msg("no run %s in the report", name);
    return NULL;
}

static void test_methods(void **state)
{
    (void)state;
    size_t n;
    assert_runs(
        TILES "--check --csv runs.csv --scale 1 dense a:svg1,keep=1 b:adaspa,sparsity=0 c:blasst,threshold=1e-30 "
              "d:energy,energy-lambda=-1000 e:dense,recall=1 f:svg1,keep=0.4,block=16,first-frame=0,sample-rows=8 "
              "g:adaspa,sparsity=0.5,block=16 h:adaspa,block=16,mass-target=0.9,search-steps=1,tail=1 "
              "i:blasst,threshold=0.9,dense-steps=1,order=natural j:energy,energy-lambda=-1,dense-layers=3 "
              "k:dense,recall=0.8 l:svg2,recall=0.9 m:svg2,tail=0,skip=recall,recall=0.9 n:adaspa,search-steps=0+1+2");
    cJSON *report = load_json("out/report.json");
    const cJSON *x, *step;
    static const char *const dense[] = {"a", "b", "c", "d", "e"};
    for (int i = 0; i < COUNT(dense); ++i) {
        x = run_named(report, dense[i]);
        assert_at_most(number(x, "attention_error"), 5e-6);
        assert_true(number(x, "recall_worst_row") > 0.9999 && number(x, "density") == 1 &&
                    number(x, "density_pv") == 1);
        assert_true(cJSON_IsNull(member(x, "psnr")) || number(x, "psnr") > 80);
    }
    x = run_named(report, "f");
    assert_true(is_text(x, "method", "svg1") && number(x, "density") <= 0.4001 && number(x, "density") > 0.05);
    assert_true(number(x, "block") == 16 && number(x, "first_frame") == 0 && number(x, "sample_rows") == 8);
    assert_true(number(x, "density_pv") == number(x, "density") && number(x, "recall") < 1);
    x = run_named(report, "g"); /* of three steps: search, search again and reuse */
    assert_true(member(x, "search_steps")->child->valueint == 0 &&
                member(x, "search_steps")->child->next->valueint == 1);
    int i = 0;
    cJSON_ArrayForEach(step, member(x, "per_step")) assert_true((number(step, "density") == 1) == (i++ == 0));
    assert_at_most(fabs(number(x, "density_all") - (1 + 2 * number(x, "density")) / 3), 1e-4); /* searching is dense */
    x = run_named(report, "h"); /* dense, search, reuse */
    assert_at_most(fabs(number(x, "density_all") - (2 + number(x, "density")) / 3), 1e-4);
    assert_true(number(x, "tail") == 1 && number(x, "recall") > 0.5 && number(x, "recall") < 1);
    x = run_named(report, "i");
    assert_true(number(x, "density") == 1 && number(x, "density_pv") < 1 && is_text(x, "order", "natural"));
    i = 0;
    cJSON_ArrayForEach(step, member(x, "per_step")) assert_true((number(step, "density_pv") == 1) == (i++ == 0));
    assert_true(is_text(x, "skip", "constant") && number(x, "recall") < 1);
    x = run_named(report, "j");
    assert_true(number(x, "density_pv") < 0.95 && is_text(x, "skip", "energy") && is_text(x, "order", "diagonal"));
    x = run_named(report, "k");
    assert_true(number(x, "recall_worst_row") >= 0.8 - 1e-5 && is_text(x, "skip", "recall"));
    x = run_named(report, "l"); /* the tail hides what the rule has left out */
    assert_true(cJSON_IsNull(member(x, "recall")) && number(x, "attention_error") > 0);
    x = run_named(report, "m");
    assert_true(number(x, "recall") > 0 && number(x, "recall") < 1 && number(x, "density_pv") <= number(x, "density"));
    x = run_named(report, "n");
    assert_true(number(x, "density") < 1);
    cJSON_Delete(report);
    assert_non_null(strstr((char *)read_here("runs.csv", &n), ",density_pv,"));
    assert_non_null(strstr(last_output, "of products P V"));
}

static void test_methods_same_bits(void **state)
{
    (void)state;
    static const char *const runs = "svg1 adaspa,block=16 blasst,threshold=0.5 energy,energy-lambda=-2 svg2,recall=0.9";
    static const char *const names[] = {"svg1", "adaspa", "blasst", "energy", "svg2"};
    assert_runs(TILES "--out none --latent a %s", runs);
    assert_runs(TILES "--out none --latent b --threads 2 --check %s", runs); /* checking changes nothing */
    for (int i = 0; i < COUNT(names); ++i) {
        char a[64], b[64];
        snprintf(a, sizeof a, "a/%s.safetensors", names[i]);
        snprintf(b, sizeof b, "b/%s.safetensors", names[i]);
        assert_same(a, b);
        if (i) assert_differ(a, "a/svg1.safetensors");
    }
    /* two spellings */
    assert_runs(TILES "--out none --latent c x:dense,skip=constant,threshold=0.5 y:dense,threshold=0.5 "
                      "z:svg2,compensate=0 t:svg2,tail=0");
    assert_same("c/x.safetensors", "a/blasst.safetensors");
    assert_same("c/y.safetensors", "a/blasst.safetensors");
    assert_same("c/z.safetensors", "c/t.safetensors");
}

static void test_bad_methods(void **state)
{
    (void)state;
    static const struct {
        const char *run, *says;
    } bad[] = {{"svg1,keep=0", "keep"},
               {"svg1,density=0.3", "density"},
               {"svg1,tail=1", "tail"},
               {"svg1,block=0", "block"},
               {"svg1,first-frame=2", "first-frame"},
               {"svg1,sample-rows=0", "sample-rows"},
               {"adaspa,sparsity=1", "sparsity"},
               {"adaspa,sparsity=-0.5", "sparsity"},
               {"adaspa,mass-target=1.5", "mass-target"},
               {"adaspa,search-steps=2", "search-steps: 2 is beyond the schedule"},
               {"adaspa,search-steps=0+7", "search-steps: 7 is beyond the schedule"},
               {"adaspa,search-steps=1+0", "search-steps"},
               {"adaspa,search-steps=x", "search-steps"},
               {"adaspa,search-steps=", "search-steps"},
               {"adaspa,search-steps=0,dense-steps=1", "search-steps"},
               {"adaspa,cold=1", "cold"},
               {"adaspa,keep=0.3", "keep"},
               {"blasst,threshold=0", "threshold"},
               {"blasst,threshold=2", "threshold"},
               {"blasst,recall=0.9", "blasst"},
               {"energy,energy-lambda=0.1", "energy-lambda"},
               {"energy,skip=none", "energy"},
               {"svg2,recall=0", "recall"},
               {"svg2,recall=0.9,threshold=0.1", "exclude"},
               {"svg2,skip=none,recall=0.9", "skip none"},
               {"svg2,order=natural", "order"},
               {"svg2,skip=sometimes", "skip"},
               {"svg2,block=8", "block"},
               {"raster,sparsity=0.5", "sparsity"},
               {"sparse", "energy"}};
    for (int i = 0; i < COUNT(bad); ++i) assert_refused_saying(bad[i].says, TINY "dense %s", bad[i].run);
    assert_runs("--help");
    static const char *const keys[] = {"svg1",        "adaspa",      "blasst",    "search-steps=4+12",
                                       "mass-target", "sample-rows", "threshold", "energy-lambda",
                                       "order=",      "recall",      "skip=none"};
    for (int i = 0; i < COUNT(keys); ++i)
        if (!strstr(last_output, keys[i])) fail_msg("no %s in the help", keys[i]);
}

static int tool_setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/svg2_wan_XXXXXX");
    if (!mkdtemp(dir)) return -1;
    write_file("stdout.txt", "", 0);
    write_file("stderr.txt", "", 0);
    fflush(stdout);
    return 0;
}
static int tool_teardown(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    int code = system(command);
    return test_teardown(state) || code;
}
#define TOOL_TEST(fn) cmocka_unit_test_setup_teardown(fn, tool_setup, tool_teardown)

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        TOOL_TEST(test_files_and_report),
        TOOL_TEST(test_same_bits),
        TOOL_TEST(test_density_and_schedule),
        TOOL_TEST(test_settings),
        TOOL_TEST(test_methods),
        TOOL_TEST(test_methods_same_bits),
        TOOL_TEST(test_bad_methods),
        TOOL_TEST(test_names),
        TOOL_TEST(test_guidance_and_negative),
        TOOL_TEST(test_noise_and_shift),
        TOOL_TEST(test_text),
        TOOL_TEST(test_dumps),
        TOOL_TEST(test_search_with_old_lse),
        TOOL_TEST(test_two_models),
        TOOL_TEST(test_latents_of_a_vae),
        TOOL_TEST(test_bad_options),
        TOOL_TEST(test_too_large),
        TOOL_TEST(test_unwritable),
        TOOL_TEST(test_hostile_files),
        TOOL_TEST(test_hostile_models),
        TOOL_TEST(test_interrupted),
    };
    const char *path = getenv("WAN_MODEL");
    if (!path) path = "examples/wan/model.safetensors";
    if (argc < 2 || !realpath(argv[1], wan) || (argc > 2 && !realpath(argv[2], svg2))) {
        fprintf(stderr, "test_wan_tool path/to/wan [path/to/svg2]\n");
        return 2;
    }
    if (!realpath(path, model)) {
        fprintf(stderr, "test_wan_tool: there is no model at %s\n", path);
        return 2;
    }
    return cmocka_run_group_tests_name("wan", tests, 0, 0);
}
