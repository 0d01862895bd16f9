/* The command-line tool, as a script would use it: test_tool path/to/svg2
   Consistent dumps, equal bits, bad options, hostile files, outputs that cannot be written. */
#define _XOPEN_SOURCE 700
#include "test.h"

#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *tool;
static char dir[64];

/* ---- running ------------------------------------------------------------------------------ */
static char last_command[4096], last_error[8192], last_output[16384];
static void read_text(const char *name, char *text, size_t capacity)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    size_t n = f ? fread(text, 1, capacity - 1, f) : 0;
    text[n] = 0;
    if (f) fclose(f);
}
/* Runs the tool in the temporary directory; every %s is a string. Returns the exit code, 1000 + signal after a crash. */
static int run(const char *format, ...)
{
    char arguments[2048];
    va_list list;
    va_start(list, format);
    vsnprintf(arguments, sizeof arguments, format, list);
    va_end(list);
    snprintf(last_command, sizeof last_command, "cd %s && timeout 120 %s %s >stdout.txt 2>stderr.txt </dev/null", dir, tool, arguments);
    int status = system(last_command);
    read_text("stderr.txt", last_error, sizeof last_error);
    read_text("stdout.txt", last_output, sizeof last_output);
    if (!WIFEXITED(status)) return 1000 + WTERMSIG(status);
    return WEXITSTATUS(status) >= 124 ? 1000 + WEXITSTATUS(status) : WEXITSTATUS(status);
}
#define assert_runs(...)                                                                      \
    do {                                                                                      \
        int code_ = run(__VA_ARGS__);                                                         \
        if (code_ != 0) fail_msg("exit code %d: %s\n%s", code_, last_command, last_error);    \
    } while (0)

static int exists(const char *name)
{
    char path[256];
    struct stat s;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return stat(path, &s) == 0;
}
static int count_files(void)
{
    char command[256], text[32] = "";
    snprintf(command, sizeof command, "find %s | wc -l", dir);
    FILE *p = popen(command, "r");
    if (p) {
        if (!fgets(text, sizeof text, p)) text[0] = 0;
        pclose(p);
    }
    return atoi(text);
}
/* Fails as it should: a code of its own, one line that is no crash report, no file made or changed. */
static void refused(const char *what)
{
    size_t n = strlen(last_error);
    int lines = 0;
    for (size_t i = 0; i < n; ++i) lines += last_error[i] == '\n';
    if (lines != 1 || n < 12 || last_error[n - 1] != '\n' || strstr(last_error, "Sanitizer") || strstr(last_error, "runtime error"))
        fail_msg("%s: not one line: %s\n%s", what, last_command, last_error);
}
#define assert_refused(...)                                                                                          \
    do {                                                                                                             \
        int before_ = count_files(), code_ = run(__VA_ARGS__);                                                       \
        if (code_ < 1 || code_ > 2) fail_msg("exit code %d: %s\n%s", code_, last_command, last_error);               \
        refused(#__VA_ARGS__);                                                                                       \
        if (count_files() != before_) fail_msg("left files behind: %s", last_command);                               \
    } while (0)

static void write_file(const char *name, const void *bytes, size_t n)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_true(fwrite(bytes, 1, n, f) == n);
    assert_int_equal(fclose(f), 0);
}

/* ---- a .npy reader of our own ---------------------------------------------------------------- */
typedef struct npy { char type[8]; int rank; int shape[5]; int64_t count; void *data; } npy;
static npy load(const char *name)
{
    char path[256], header[4096];
    unsigned char start[10];
    npy a;
    memset(&a, 0, sizeof a);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s is not there", path);
    assert_true(fread(start, 1, 10, f) == 10 && memcmp(start, "\x93NUMPY\x01", 7) == 0);
    size_t n = start[8] + 256u * start[9];
    assert_true(n < sizeof header && fread(header, 1, n, f) == n && (10 + n) % 64 == 0);
    header[n] = 0;
    assert_true(header[n - 1] == '\n' && strstr(header, "'fortran_order': False"));
    assert_int_equal(sscanf(strstr(header, "'descr': '") + 10, "%7[^']", a.type), 1);
    a.count = 1;
    char *s = strstr(header, "'shape': (") + 10;
    while (*s && *s != ')') {
        if (*s >= '0' && *s <= '9') { a.shape[a.rank] = (int)strtol(s, &s, 10); a.count *= a.shape[a.rank++]; }
        else ++s;
    }
    size_t bytes = (size_t)a.count * (size_t)(a.type[2] - '0');
    a.data = mem_new(bytes);
    assert_true(fread(a.data, 1, bytes, f) == bytes && fgetc(f) == EOF);
    fclose(f);
    return a;
}
static double *load_f64(const char *name, npy *info)
{
    npy a = load(name);
    double *x = (double *)mem_new(sizeof(double) * (size_t)a.count);
    for (int64_t i = 0; i < a.count; ++i)
        x[i] = strcmp(a.type, "<f4") == 0 ? (double)((float *)a.data)[i] : f16_value(((uint16_t *)a.data)[i]);
    *info = a;
    return x;
}
static void save_f32(const char *name, const float *x, int rank, const int *shape, size_t count)
{
    char text[512], dims[128] = "";
    for (int i = 0; i < rank; ++i) snprintf(dims + strlen(dims), sizeof dims - strlen(dims), "%d, ", shape[i]);
    int n = snprintf(text + 10, sizeof text - 10, "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }", dims);
    memcpy(text, "\x93NUMPY\x01", 8);
    while ((10 + n + 1) % 64) text[10 + n++] = ' ';
    text[10 + n++] = '\n';
    text[8] = (char)(n & 255);
    text[9] = (char)(n >> 8);
    char *all = (char *)mem_new((size_t)(10 + n) + count * 4);
    memcpy(all, text, (size_t)(10 + n));
    memcpy(all + 10 + n, x, count * 4);
    write_file(name, all, (size_t)(10 + n) + count * 4);
}
static double number(const char *json, const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *s = strstr(json, quoted);
    if (!s) fail_msg("no %s in the report", key);
    return strtod(s + strlen(quoted), 0);
}
static int has(const char *help) { return run("attend --help") == 0 && strstr(last_output, help) != 0; }

/* ---- the good way ---------------------------------------------------------------------------- */
/* Everything in the dump of one call agrees with q.npy, k.npy, v.npy and out.npy. mode: 1 = also SVG2's rule. */
static void check_dump(int text, int valid, int order, double top_p, double min_keep)
{
    npy qi, ki, vi, oi, lq = load("dump/labels_q.npy"), lk = load("dump/labels_k.npy"), cq = load("dump/centroids_q.npy");
    npy ck = load("dump/centroids_k.npy"), sq = load("dump/sizes_q.npy"), sk = load("dump/sizes_k.npy"), map = load("dump/map.npy");
    npy lse = load("dump/lse.npy");
    double *q = load_f64("q.npy", &qi), *k = load_f64("k.npy", &ki), *v = load_f64("v.npy", &vi), *o = load_f64("out.npy", &oi);
    int B = qi.shape[0], H = qi.shape[1], S = qi.shape[2], D = qi.shape[3], Hk = ki.shape[1], Sk = ki.shape[2];
    int Qb = map.shape[2], Kb = map.shape[3], extra = (valid > 0) + (text > valid), Cq = Qb - extra, Ck = Kb - extra;
    rel_error e = {0, 0};
    assert_true(!strcmp(lq.type, "<i4") && !strcmp(lk.type, "<i4") && !strcmp(cq.type, "<f4") && !strcmp(sq.type, "<i4") && !strcmp(map.type, "|u1"));
    assert_true(lq.rank == 3 && lq.shape[0] == B && lq.shape[1] == H && lq.shape[2] == S && lk.shape[1] == Hk && lk.shape[2] == Sk);
    assert_true(cq.rank == 4 && cq.shape[1] == H && cq.shape[2] == Qb && cq.shape[3] == D && ck.shape[1] == Hk && ck.shape[2] == Kb);
    assert_true(sq.rank == 3 && sq.shape[2] == Qb && sk.shape[1] == Hk && sk.shape[2] == Kb);
    assert_true(map.rank == 4 && map.shape[0] == B && map.shape[1] == H && lse.shape[2] == S && oi.shape[2] == S && oi.shape[3] == D);
    double *mean = (double *)mem_new(sizeof(double) * (size_t)((Qb > Kb ? Qb : Kb) * D)), *row = (double *)mem_new(sizeof(double) * (size_t)D);
    int *n = (int *)mem_new(sizeof(int) * (size_t)(Qb > Kb ? Qb : Kb));
    for (int side = 0; side < 2; ++side)
        for (int h = 0; h < B * (side ? Hk : H); ++h) {
            int T = side ? Sk : S, C = side ? Kb : Qb, clusters = side ? Ck : Cq;
            const int32_t *label = (const int32_t *)(side ? lk : lq).data + h * T, *size = (const int32_t *)(side ? sk : sq).data + h * C;
            const float *c = (const float *)(side ? ck : cq).data + (int64_t)h * C * D;
            const double *x = (side ? k : q) + (int64_t)h * T * D;
            double top = 0;
            for (int t = 0; t < T; ++t) { /* text is last */
                int want = t < T - text ? -1 : t < T - text + valid ? clusters : C - 1;
                if (want >= 0) assert_int_equal(label[t], want);
                else assert_in_range(label[t], 0, clusters - 1);
                for (int d = 0; d < D; ++d) top = fmax(top, fabs(x[t * D + d]));
            }
            ref_means(x, label, T, D, C, mean, n);
            for (int i = 0; i < C; ++i) {
                assert_int_equal(size[i], n[i]);
                for (int d = 0; d < D && n[i]; ++d) assert_at_most(fabs((double)c[i * D + d] - mean[i * D + d]), 2e-6 * top);
            }
        }
    for (int h = 0; h < B * H; ++h) {
        int hk = h / H * Hk + h % H / (H / Hk);
        ref_head r;
        memset(&r, 0, sizeof r);
        r.Sq = S; r.Skv = Sk; r.D = D; r.Cq = Cq; r.Ck = Ck; r.Qb = Qb; r.Kb = Kb; r.order = order; r.scale = 1 / sqrt(D);
        r.q = q + (int64_t)h * S * D; r.k = k + (int64_t)hk * Sk * D; r.v = v + (int64_t)hk * Sk * D;
        r.query_label = (const int32_t *)lq.data + h * S; r.key_label = (const int32_t *)lk.data + hk * Sk;
        r.map = (const uint8_t *)map.data + (int64_t)h * Qb * Kb;
        ref_head_prepare(&r);
        unsigned char *keep = (unsigned char *)mem_new((size_t)Ck);
        double *P = (double *)mem_new(sizeof(double) * (size_t)Ck), *kd = (double *)mem_new(sizeof(double) * (size_t)(Ck * D));
        for (int i = 0; i < Ck * D; ++i) kd[i] = (double)((const float *)ck.data)[(int64_t)hk * Kb * D + i];
        for (int I = 0; I < Cq && top_p > 0; ++I) { /* the rule, applied to what was dumped */
            if (!r.nq[I]) continue;
            for (int d = 0; d < D; ++d) row[d] = (double)((const float *)cq.data)[((int64_t)h * Qb + I) * D + d];
            ref_probability(row, kd, r.nk, 0, Ck, D, r.scale, P);
            ref_top_p(P, Ck, top_p, min_keep, keep);
            for (int j = 0; j < Ck; ++j)
                if (keep[j] != 2 && r.nk[j] && keep[j] != r.map[I * Kb + j]) fail_msg("map: head %d (%d, %d) is %d", h, I, j, r.map[I * Kb + j]);
        }
        for (int i = 0; i < S; i += 13) {
            float got = ((const float *)lse.data)[h * S + i];
            if (r.query_label[i] >= Cq + (valid > 0)) {
                assert_true(isinf(got));
                continue;
            }
            double want = ref_head_row(&r, i, row);
            assert_at_most(fabs((double)got - want), 2e-5);
            rel_add(&e, o + ((int64_t)h * S + i) * D, row, D);
        }
    }
    assert_at_most(rel_l2(e), strcmp(oi.type, "<f4") ? 6e-4 : order < 0 ? 5e-6 : 2e-5);
}

static void test_dumps(void **state)
{
    (void)state;
    assert_runs("synth --out . --frames 3 --height 10 --width 16 --heads 2 --dim 40 --seed 5");
    /* f32 arithmetic throughout, if the machine has something else */
    const char *simd = run("attend --q q.npy --k k.npy --v v.npy --out out.npy --simd avx512") == 0 ? "--simd avx512" : "";
    assert_runs("attend --q q.npy --k k.npy --v v.npy --out out.npy --dump dump --route mass --budget row --compensate 0 --top-p 0.8 --min-keep 0.05");
    check_dump(0, 0, -1, 0.8, 0.05);
    for (int c = 1; c < 3; ++c) {
        assert_runs("attend --q q.npy --k k.npy --v v.npy --out out.npy --dump dump --compensate %d --density 0.1 --repeat 3 %s", c, simd);
        check_dump(0, 0, c - 1, 0, 0);
    }
    assert_runs("synth --out . --frames 2 --height 10 --width 16 --heads 4 --heads-kv 1 --batch 2 --dim 64 --text 30 --dtype f16");
    assert_runs("attend --q q.npy --k k.npy --v v.npy --out out.npy --dump dump --text-last 30 --text-valid 12 --frames 2 --frame-tokens 160 %s", simd);
    check_dump(30, 12, 1, 0, 0);
    assert_runs("attend --q q.npy --k k.npy --v v.npy --out out.npy --dump dump --text-last 30 --compensate 0 --target-error 0.1");
    check_dump(30, 30, -1, 0, 0);
}

static void test_report_and_picture(void **state)
{
    (void)state;
    char text[32768], png[16];
    if (!has("--report")) skip();
    assert_runs("synth --out . --frames 3 --height 12 --width 16 --heads 2 --dim 64");
    if (run("attend --q q.npy --k k.npy --v v.npy --out out.npy --report r.json --check --density 0.2 --repeat 2 --threads 2") == 2
        && strstr(last_error, "no cJSON")) skip();
    read_text("r.json", text, sizeof text);
    static const char *keys[] = {"method", "backend", "shape", "density", "density_pv", "recall_mean", "recall_min", "rel_l1", "rel_l2", "cosine", "max_abs",
                                 "seconds", "kmeans", "select", "permute", "attend", "total", "threads", "workspace_bytes", "state_bytes"};
    for (int i = 0; i < COUNT(keys); ++i) number(text, keys[i]);
    assert_at_most(fabs(number(text, "density") - 0.2), 0.03);
    assert_true(number(text, "recall_mean") > 0.2 && number(text, "recall_mean") <= 1.0001 && number(text, "recall_min") <= number(text, "recall_mean"));
    /* the error in the report is the error of the file */
    assert_runs("attend --q q.npy --k k.npy --v v.npy --out dense.npy --method dense");
    npy info;
    double *a = load_f64("out.npy", &info), *b = load_f64("dense.npy", &info);
    assert_at_most(fabs(rel_l2_arrays(a, b, info.count) / number(text, "rel_l2") - 1), 1e-3);
    assert_runs("compare out.npy dense.npy");
    const char *l2 = strstr(last_output, "rel_l2");
    assert_true(l2 && strstr(last_output, "cosine") && strstr(last_output, "psnr"));
    assert_at_most(fabs(strtod(l2 + 6, 0) / number(text, "rel_l2") - 1), 1e-3);
    assert_runs("info out.npy");
    assert_true(strstr(last_output, "576") && strstr(last_output, "64"));
    if (run("attend --q q.npy --k k.npy --v v.npy --picture p.png --check") == 2 && strstr(last_error, "no libpng")) return;
    read_text("p.png", png, sizeof png);
    assert_memory_equal(png, "\x89PNG\r\n\x1a\n", 8);
}

static void test_top_p_one_and_tails(void **state)
{
    (void)state;
    npy info;
    double error[3];
    assert_runs("synth --out . --frames 4 --height 12 --width 20 --heads 2 --dim 128");
    assert_runs("attend --q q.npy --k k.npy --v v.npy --out dense.npy --method dense");
    double *dense = load_f64("dense.npy", &info);
    for (int c = 0; c < 3; ++c) {
        assert_runs("attend --q q.npy --k k.npy --v v.npy --out out.npy --top-p 1 --min-keep 1 --compensate %d", c);
        assert_at_most(rel_l2_arrays(load_f64("out.npy", &info), dense, info.count), 2e-6);
        assert_runs("attend --q q.npy --k k.npy --v v.npy --out out.npy --density 0.15 --compensate %d", c);
        error[c] = rel_l2_arrays(load_f64("out.npy", &info), dense, info.count);
    }
    assert_true(error[2] < error[1] && error[1] < error[0]);
}

static void test_same_bits(void **state)
{
    (void)state;
    assert_runs("synth --out . --frames 3 --height 10 --width 16 --heads 3 --dim 48 --seed 9");
    npy want = {"", 0, {0}, 0, 0}, got;
    for (int i = 0; i < 5; ++i) {
        assert_runs("attend --q q.npy --k k.npy --v v.npy --out out.npy --threads %d --repeat 2", i < 3 ? i + 1 : 2);
        got = load("out.npy");
        if (i == 0) want = got;
        assert_memory_equal(got.data, want.data, (size_t)want.count * 4);
    }
    assert_runs("synth --out again --frames 3 --height 10 --width 16 --heads 3 --dim 48 --seed 9");
    assert_memory_equal(load("q.npy").data, load("again/q.npy").data, 3 * 480 * 48 * 4);
    /* heads in another order */
    npy t[3];
    static const char *names[3] = {"q.npy", "k.npy", "v.npy"}, *moved[3] = {"mq.npy", "mk.npy", "mv.npy"};
    assert_runs("attend --q q.npy --k k.npy --v v.npy --out out.npy");
    want = load("out.npy");
    for (int i = 0; i < 3; ++i) {
        float *x = (float *)mem_new(3 * 480 * 48 * 4);
        t[i] = load(names[i]);
        for (int h = 0; h < 3; ++h) memcpy(x + (h + 1) % 3 * 480 * 48, (float *)t[i].data + h * 480 * 48, 480 * 48 * 4);
        save_f32(moved[i], x, t[i].rank, t[i].shape, 3 * 480 * 48);
    }
    assert_runs("attend --q mq.npy --k mk.npy --v mv.npy --out out.npy");
    got = load("out.npy");
    for (int h = 0; h < 3; ++h) assert_memory_equal((float *)got.data + (h + 1) % 3 * 480 * 48, (float *)want.data + h * 480 * 48, 480 * 48 * 4);
}

static void test_safetensors_and_rank_three(void **state)
{
    (void)state;
    npy info;
    assert_runs("synth --out . --frames 2 --height 8 --width 16 --heads 2 --dim 32 --dtype bf16");
    assert_true(exists("qkv.safetensors"));
    if (run("attend --q qkv.safetensors:q --k qkv.safetensors:k --v qkv.safetensors:v --out o.safetensors:o") != 0) {
        if (strstr(last_error, "cJSON")) skip();
        fail_msg("%s", last_error);
    }
    assert_runs("info o.safetensors");
    assert_true(strstr(last_output, "BF16") != 0);
    assert_runs("compare o.safetensors:o o.safetensors");
    assert_true(strstr(last_output, "equal") != 0);
    assert_refused("attend --q qkv.safetensors:z --k qkv.safetensors:k --v qkv.safetensors:v --out x.npy");
    float *x = (float *)mem_new(2 * 100 * 16 * 4);
    uint64_t s = 3;
    for (int i = 0; i < 3200; ++i) x[i] = (float)rnd_normal(&s);
    int shape[3] = {2, 100, 16};
    save_f32("three.npy", x, 3, shape, 3200); /* [H, S, D] */
    assert_runs("attend --q three.npy --k three.npy --v three.npy --out out.npy --method dense");
    double *o = load_f64("out.npy", &info), row[16], x64[3200];
    assert_int_equal(info.rank, 3);
    for (int i = 0; i < 3200; ++i) x64[i] = (double)x[i];
    for (int i = 0; i < 200; ++i) {
        ref_row(x64 + i * 16, x64 + i / 100 * 1600, x64 + i / 100 * 1600, 0, 100, 16, 0.25, 0, 0, 0, row, 0);
        assert_at_most(rel_l2_arrays(o + i * 16, row, 16), 5e-6);
    }
}

static void test_clips(void **state)
{
    (void)state;
    unsigned char clip[2][3 * (6 + 96) + 64];
    size_t n = 0;
    for (int c = 0; c < 2; ++c) {
        n = (size_t)sprintf((char *)clip[c], "YUV4MPEG2 W8 H8 F24:1 Ip A1:1 C420jpeg\n");
        for (int f = 0; f < 3; ++f) {
            memcpy(clip[c] + n, "FRAME\n", 6);
            n += 6;
            for (int i = 0; i < 96; ++i) clip[c][n++] = (unsigned char)(100 + i + (c && i < 64 ? (i & 1 ? 2 : -2) : 0));
        }
        write_file(c ? "b.y4m" : "a.y4m", clip[c], n);
    }
    assert_runs("compare a.y4m a.y4m");
    assert_runs("compare a.y4m b.y4m");
    const char *psnr = strstr(last_output, "psnr");
    assert_non_null(psnr);
    assert_at_most(fabs(strtod(psnr + 4, 0) - 10 * log10(255. * 255 / 4)), 0.01); /* luma differs by 2 everywhere */
    write_file("c.y4m", clip[1], n - 50);
    assert_refused("compare a.y4m c.y4m");
    write_file("c.y4m", clip[1], 20);
    assert_refused("compare a.y4m c.y4m");
    write_file("c.y4m", "YUV4MPEG2 W99999999 H99999999 F24:1\nFRAME\n", 42);
    assert_refused("compare a.y4m c.y4m");
    write_file("c.y4m", "YUV4MPEG2 W0 H-3 F24:1\nFRAME\n", 29);
    assert_refused("compare a.y4m c.y4m");
    assert_refused("compare a.y4m none.y4m");
}

/* ---- the bad ways ---------------------------------------------------------------------------- */
static void test_bad_options(void **state)
{
    (void)state;
    assert_runs("synth --out . --frames 2 --height 5 --width 8 --heads 2 --dim 16 --text 10");
    static const char *all[] = {
        "", "nonsense", "--nonsense", "attend", "attend --q q.npy", "attend --q q.npy --k k.npy --v v.npy --out", "synth", "synth --out",
        "compare", "compare q.npy", "compare q.npy k.npy v.npy", "info", "info none.npy", "compare q.npy none.npy",
        "synth --out d --frames 0", "synth --out d --frames -1", "synth --out d --frames x", "synth --out d --frames 99999999999", "synth --out d --dim 7",
        "synth --out d --heads 3 --heads-kv 2", "synth --out d --dtype f64", "synth --out d --frames 2 extra", "synth --out d --frames 100000 --height 100000 --width 100000",
    };
    static const char *more[] = {
        "--unknown", "--unknown 3", "--top-p", "--top-p x", "--top-p 1.5", "--top-p -1", "--top-p nan", "--min-keep 2", "--density 2", "--density -0.5",
        "--density 0.1 --target-error 0.1", "--target-error -1", "--compensate 3", "--compensate -1", "--route depth", "--budget column", "--method svg9",
        "--backend gpu", "--threads 0", "--threads -2", "--threads 1e9", "--repeat 0", "--query-clusters 0", "--query-clusters -4", "--key-clusters 1000000000000",
        "--init-iters 0", "--step-iters -2", "--frames 7", "--frames 2 --frame-tokens 41", "--text-last 91", "--text-first 10 --text-last 10", "--text-last -1",
        "--text-valid 3", "--text-last 10 --text-valid 11", "--scale x", "--scale inf", "--seed -x", "--preset none", "stray",
        "--method dense --picture p.png", "--layout hbsd", "--simd sse9",
    };
    for (int i = 0; i < COUNT(all); ++i) assert_refused("%s", all[i]);
    for (int i = 0; i < COUNT(more); ++i) assert_refused("attend --q q.npy --k k.npy --v v.npy --out refused.npy %s", more[i]);
    assert_false(exists("refused.npy"));
    assert_runs("--help");
    assert_runs("attend --help");
    assert_runs("synth --help");
    assert_runs("presets");
}

static void test_shapes_that_do_not_fit(void **state)
{
    (void)state;
    float *x = (float *)mem_new(4 * 10 * 16 * 4);
    for (int i = 0; i < 640; ++i) x[i] = 0.1f;
    static const struct { const char *name; int rank, shape[5]; } files[] = {
        {"a.npy", 4, {1, 2, 10, 16}}, {"dim.npy", 4, {1, 2, 10, 8}}, {"heads.npy", 4, {1, 3, 10, 16}}, {"batch.npy", 4, {2, 2, 10, 16}},
        {"rank2.npy", 2, {20, 16}},   {"rank5.npy", 5, {1, 1, 2, 10, 16}}, {"odd.npy", 4, {1, 2, 10, 12}}, {"zero.npy", 4, {1, 2, 0, 16}}, {"scalar.npy", 0, {0}},
        {"tokens.npy", 4, {1, 2, 9, 16}},
    };
    for (int i = 0; i < COUNT(files); ++i) {
        size_t n = 1;
        for (int d = 0; d < files[i].rank; ++d) n *= (size_t)files[i].shape[d];
        save_f32(files[i].name, x, files[i].rank, files[i].shape, n);
    }
    assert_runs("attend --q a.npy --k a.npy --v a.npy --out ok.npy");
    assert_runs("attend --q a.npy --k tokens.npy --v tokens.npy --out ok.npy"); /* Sq != Skv is fine */
    for (int i = 1; i < COUNT(files); ++i) {
        if (strcmp(files[i].name, "tokens.npy") != 0) assert_refused("attend --q %s --k a.npy --v a.npy --out x.npy", files[i].name);
        assert_refused("attend --q a.npy --k %s --v a.npy --out x.npy", files[i].name);
        assert_refused("attend --q a.npy --k a.npy --v %s --out x.npy", files[i].name);
    }
    assert_refused("attend --q odd.npy --k odd.npy --v odd.npy --out x.npy"); /* head_dim 12 */
    x[77] = NAN;
    int shape[4] = {1, 2, 10, 16};
    save_f32("nan.npy", x, 4, shape, 320);
    assert_refused("attend --q nan.npy --k a.npy --v a.npy --out x.npy");
    assert_true(strstr(last_error, "nan.npy") != 0);
}

/* ---- the other methods ------------------------------------------------------------------------ */
#define QKV "attend --q q.npy --k k.npy --v v.npy "

/* All keys computed: dense, but for rounding. */
static void test_limits_are_dense(void **state)
{
    (void)state;
    static const char *all[] = {
        "--method svg1 --keep 1", "--method svg1 --keep 1 --first-frame 0 --block 7 --sample-rows 5", "--method adaspa --sparsity 0 --repeat 2",
        "--method adaspa --mass-target 1 --repeat 3 --search-steps 1", "--method adaspa", "--method blasst --threshold 1e-30",
        "--method energy --energy-lambda -1000", "--method dense --recall 1", "--method dense --skip recall --recall 1 --order natural",
        "--top-p 1 --min-keep 1 --compensate 0 --recall 1", "--method svg1 --keep 1 --threshold 1e-30", "--skip none --method dense",
        "--method adaspa --sparsity 0 --repeat 2 --energy-lambda -1000 --compensate 0", "--top-p 1 --min-keep 1 --tail 2 --skip energy --energy-lambda -1000",
    };
    npy info;
    for (int text = 0; text < 2; ++text) {
        const char *tokens = text ? "--frames 4 --text-last 30 --text-valid 21" : "--frames 4";
        assert_runs("synth --out . --frames 4 --height 8 --width 10 --heads 2 --dim 32 --text %d", text * 30);
        assert_runs(QKV "--out dense.npy --method dense %s", tokens);
        double *dense = load_f64("dense.npy", &info);
        for (int i = 0; i < COUNT(all); ++i) {
            assert_runs(QKV "--out out.npy %s %s", tokens, all[i]);
            double error = rel_l2_arrays(load_f64("out.npy", &info), dense, info.count);
            if (!(error <= 5e-6)) fail_msg("%s: %g", all[i], error);
        }
    }
}

static void load_report(char *text, size_t capacity, const char *options)
{
    assert_runs(QKV "--report r.json %s", options);
    read_text("r.json", text, capacity);
}
static int is_null(const char *json, const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *s = strstr(json, quoted);
    if (!s) fail_msg("no %s in the report", key);
    s += strlen(quoted);
    return strncmp(s + strspn(s, " \t"), "null", 4) == 0;
}

static void test_methods_report(void **state)
{
    (void)state;
    char text[32768];
    if (!has("--report")) skip();
    assert_runs("synth --out . --frames 4 --height 8 --width 16 --heads 3 --dim 32 --text 20");
    if (run(QKV "--report r.json") == 2 && strstr(last_error, "no cJSON")) skip();
#define TOKENS "--frames 4 --text-last 20 --text-valid 9 --check "
    /* what the output has of every row, and what of it the map had */
    load_report(text, sizeof text, TOKENS "--method svg1 --keep 0.4 --threads 1");
    assert_non_null(strstr(text, "\"svg1\""));
    number(text, "band_width"), number(text, "pattern"), number(text, "pattern_error");
    assert_true(strstr(text, "\"space\"") || strstr(text, "\"time\""));
    assert_true(number(text, "density") > 0.1 && number(text, "density") <= 0.4001);
    assert_true(number(text, "density_pv") == number(text, "density") && number(text, "recall_mean") == number(text, "map_recall_mean"));
    double map = number(text, "map_recall_mean");
    load_report(text, sizeof text, TOKENS "--method svg1 --keep 0.4 --energy-lambda -2");
    assert_true(number(text, "density_pv") < number(text, "density") && number(text, "recall_mean") < map);
    assert_at_most(fabs(number(text, "map_recall_mean") - map), 1e-6);

    load_report(text, sizeof text, TOKENS "--method adaspa --sparsity 0.5 --block 16");
    assert_true(strstr(text, "\"search\"") && number(text, "density") == 1 && number(text, "recall_min") > 0.99999);
    assert_non_null(strstr(last_output, "searched"));
    map = number(text, "map_recall_mean");
    load_report(text, sizeof text, TOKENS "--method adaspa --sparsity 0.5 --block 16 --repeat 2");
    assert_true(strstr(text, "\"sparse\"") && number(text, "density") > 0.35 && number(text, "density") < 0.65);
    assert_null(strstr(last_output, "searched,"));
    number(text, "search_recall");
    assert_at_most(fabs(number(text, "recall_mean") - map), 1e-6);
    load_report(text, sizeof text, TOKENS "--method adaspa --sparsity 0.5 --block 16 --repeat 3 --search-steps 0,2");
    assert_true(strstr(text, "\"search_cached\"") && number(text, "density") < 0.65);
    load_report(text, sizeof text, TOKENS "--method adaspa --mass-target 0.8 --block 16 --repeat 2");
    assert_true(number(text, "recall_mean") >= 0.8 - 1e-5);

    load_report(text, sizeof text, TOKENS "--method blasst --threshold 0.5");
    assert_true(number(text, "density") == 1 && number(text, "density_pv") < 1 && is_null(text, "map_recall_mean"));
    assert_true(strstr(text, "\"blasst\"") && strstr(text, "\"constant\"") && strstr(text, "\"diagonal\"") && is_null(text, "error_estimate"));
    load_report(text, sizeof text, TOKENS "--method energy --energy-lambda -2");
    assert_true(number(text, "density_pv") < 1 && strstr(text, "\"energy_lambda\""));
    double energy = number(text, "density_pv");
    load_report(text, sizeof text, TOKENS "--method dense --energy-lambda -2"); /* the same in other words */
    assert_true(number(text, "density_pv") == energy);
    load_report(text, sizeof text, TOKENS "--method energy --energy-lambda -2 --order natural");
    energy = number(text, "density_pv");
    load_report(text, sizeof text, TOKENS "--method energy --energy-lambda -2 --order natural --seed-lse 1 --repeat 2");
    assert_true(number(text, "density_pv") < energy && strstr(text, "\"seed_lse\":\ttrue"));

    /* with a tail nobody can tell what a rule has left of a row */
    load_report(text, sizeof text, TOKENS "--density 0.3 --recall 0.8");
    assert_true(is_null(text, "recall_mean") && is_null(text, "recall_min") && number(text, "map_recall_mean") > 0);
    assert_true(strstr(last_output, "before tiles are left out") != 0);
    load_report(text, sizeof text, TOKENS "--density 0.3 --recall 0.8 --compensate 0");
    assert_true(number(text, "recall_min") >= 0.8 * number(text, "map_recall_min") - 1e-5);
    assert_true(number(text, "recall_mean") <= number(text, "map_recall_mean") + 1e-5);
}

static void test_promised_recall(void **state)
{
    (void)state;
    char text[32768], options[160];
    static const double promised[] = {0.5, 0.9, 0.95, 0.99};
    if (!has("--report")) skip();
    assert_runs("synth --out . --frames 4 --height 8 --width 16 --heads 3 --dim 32 --seed 3");
    if (run(QKV "--report r.json") == 2 && strstr(last_error, "no cJSON")) skip();
    for (int i = 0; i < 8; ++i) {
        snprintf(options, sizeof options, "--method dense --check --recall %g --order %s", promised[i % 4], i < 4 ? "natural" : "diagonal");
        load_report(text, sizeof text, options);
        if (!(number(text, "recall_min") >= promised[i % 4] - 1e-5)) fail_msg("%s: %g", options, number(text, "recall_min"));
        assert_true(number(text, "recall_mean") >= number(text, "recall_min"));
        if (i % 4 == 0) assert_true(number(text, "density_pv") < 0.95);
    }
}

static void test_blocks_dump(void **state)
{
    (void)state;
    char png[16];
    static const char *methods[] = {"svg1 --keep 0.3", "adaspa --sparsity 0.6 --repeat 2", "adaspa --sparsity 0.6 --compensate 1 --repeat 2"};
    assert_runs("synth --out . --frames 3 --height 8 --width 8 --heads 4 --heads-kv 2 --dim 32 --text 20");
    for (int i = 0; i < COUNT(methods); ++i) {
        assert_runs(QKV "--frames 3 --text-last 20 --text-valid 12 --block 16 --dump d%d --out out.npy --method %s", i, methods[i]);
        char name[64];
        npy a[5];
        static const char *files[] = {"labels_q", "labels_k", "sizes_q", "sizes_k", "map"};
        for (int f = 0; f < 5; ++f) {
            snprintf(name, sizeof name, "d%d/%s.npy", i, files[f]);
            a[f] = load(name);
        }
        snprintf(name, sizeof name, "d%d/centroids_q.npy", i);
        assert_false(exists(name));
        assert_int_equal(a[4].shape[2], a[2].shape[2]);
        assert_int_equal(a[4].shape[3], a[3].shape[2]);
        for (int side = 0; side < 2; ++side) /* sizes are those of the labels */
            for (int h = 0; h < (side ? 2 : 4); ++h) {
                const int32_t *label = (const int32_t *)a[side].data + h * 212, *size = (const int32_t *)a[2 + side].data + h * a[2 + side].shape[2];
                int blocks = a[2 + side].shape[2], n[64] = {0};
                assert_true(blocks < 64);
                for (int t = 0; t < 212; ++t) {
                    assert_in_range(label[t], 0, blocks - 1);
                    ++n[label[t]];
                    if (t >= 192) assert_int_equal(label[t], t < 204 ? blocks - 2 : blocks - 1);
                }
                for (int b = 0; b < blocks; ++b) assert_int_equal(n[b], size[b]);
            }
    }
    if (run(QKV "--frames 3 --text-last 20 --method svg1 --check --picture p.png") == 2 && strstr(last_error, "no libpng")) return;
    read_text("p.png", png, sizeof png);
    assert_memory_equal(png, "\x89PNG\r\n\x1a\n", 8);
    assert_runs(QKV "--method adaspa --repeat 2 --check --picture a.png");
    read_text("a.png", png, sizeof png);
    assert_memory_equal(png, "\x89PNG\r\n\x1a\n", 8);
}

static void test_bad_methods(void **state)
{
    (void)state;
    assert_runs("synth --out . --frames 2 --height 5 --width 8 --heads 2 --dim 16");
    static const struct { const char *options, *says; } all[] = {
        {"--method svg1", "--frames"}, {"--method svg1 --frames 3", "--frame-tokens"}, {"--method svg1 --frames 2 --keep 0", "--keep"},
        {"--method svg1 --frames 2 --keep 1.1", "--keep"}, {"--method svg1 --frames 2 --sample-rows 0", "--sample-rows"},
        {"--method svg1 --frames 2 --first-frame 2", "--first-frame"}, {"--method svg1 --frames 2 --block 0", "--block"},
        {"--method svg1 --frames 2 --compensate 1", "--compensate"}, {"--method svg1 --frames 2 --density 0.2", "--density"},
        {"--method adaspa --sparsity -0.1", "--sparsity"}, {"--method adaspa --sparsity 1", "--sparsity"}, {"--method adaspa --mass-target 2", "--mass-target"},
        {"--method adaspa --search-steps 1", "--search-steps"}, {"--method adaspa --search-steps 0,3 --repeat 3", "--search-steps: 3 is beyond the schedule"},
        {"--method adaspa --search-steps 1,1 --repeat 3", "--search-steps"}, {"--method adaspa --search-steps 2,1 --repeat 3", "--search-steps"},
        {"--method adaspa --search-steps x", "--search-steps"}, {"--method adaspa --search-steps 0, --repeat 3", "--search-steps"},
        {"--method adaspa --search-steps -1 --repeat 3", "--search-steps"}, {"--method adaspa --search-steps 99999999999999999999", "--search-steps"},
        {"--method adaspa --search-steps 0,1,2,3,4,5,6,7,8 --repeat 20", "--search-steps"}, {"--method adaspa --keep 0.3", "--keep"},
        {"--method blasst --threshold 0", "--threshold"}, {"--method blasst --threshold 1.5", "--threshold"}, {"--threshold nan", "--threshold"},
        {"--method energy --energy-lambda 0", "--energy-lambda"}, {"--method energy --energy-lambda 1", "--energy-lambda"},
        {"--recall 0", "--recall"}, {"--recall 1.01", "--recall"}, {"--recall 0.9 --threshold 0.1", "exclude each other"},
        {"--recall 0.9 --seed-lse 1", "--seed-lse goes with --skip energy"}, {"--energy-lambda -3 --threshold 0.1", "exclude each other"}, {"--skip none --recall 0.9", "--skip none"}, {"--skip constant --energy-lambda -3", "--skip constant"},
        {"--method blasst --energy-lambda -3", "--method blasst"}, {"--method energy --skip none", "--method energy"}, {"--skip never", "--skip"},
        {"--order natural", "--order"}, {"--skip none --order natural", "--order"}, {"--skip energy --order up", "--order"}, {"--block 64", "--block"},
        {"--method blasst --picture p.png", "--picture"}, {"--method blasst --top-p 0.5", "--top-p"}, {"--method sparse", "blasst"},
    };
    for (int i = 0; i < COUNT(all); ++i) {
        assert_refused(QKV "--out refused.npy %s", all[i].options);
        if (!strstr(last_error, all[i].says)) fail_msg("%s: no '%s' in: %s", all[i].options, all[i].says, last_error);
    }
    static const char *options[] = {"--method NAME", "--keep X", "--sample-rows N", "--first-frame 0|1", "--sparsity S", "--block N", "--search-steps A,B",
                                    "--mass-target T", "--threshold X", "--energy-lambda X", "--order natural|diagonal", "--recall R",
                                    "--skip none|constant|energy|recall", "--compensate 0|1|2", "blasst"};
    for (int i = 0; i < COUNT(options); ++i)
        if (!has(options[i])) fail_msg("no %s in the help", options[i]);
    assert_false(has("--tail"));
}

static void test_calibrate(void **state)
{
    (void)state;
    char text[32768], options[128];
    static const double targets[] = {0.15, 0.25, 0.35};
    assert_runs("synth --out . --frames 8 --height 10 --width 16 --heads 3 --dim 32 --text 40");
    assert_runs("calibrate --help");
    assert_true(strstr(last_output, "--sparsity-targets") && strstr(last_output, "--text-last"));
    assert_runs("calibrate --q q.npy --k k.npy");
    assert_true(strstr(last_output, "alpha") && strstr(last_output, "beta") && strstr(last_output, "--energy-lambda"));
    static const char *bad[] = {"", "--q q.npy", "--k k.npy", "--q q.npy --k none.npy", "--q q.npy --k k.npy --sparsity-targets 0", "--q q.npy --k k.npy --sparsity-targets 0.5,1",
                                "--q q.npy --k k.npy --sparsity-targets ,", "--q q.npy --k k.npy --sparsity-targets 0.5,", "--q q.npy --k k.npy --sparsity-targets x",
                                "--q q.npy --k k.npy --order up", "--q q.npy --k k.npy --text-valid 3", "--q q.npy --k k.npy --report no/such/r.json", "--q q.npy --k k.npy --threads 0",
                                "--q q.npy --k k.npy stray", "--q q.npy --k k.npy --sparsity-targets 0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1"};
    for (int i = 0; i < COUNT(bad); ++i) assert_refused("calibrate %s", bad[i]);
    for (int order = 0; order < 2; ++order) {
        const char *same = order ? "--order natural --text-last 40 --text-valid 11" : "--order diagonal --text-first 40";
        if (run("calibrate --q q.npy --k k.npy --sparsity-targets 0.15,0.25,0.35 --report c.json %s", same) == 2 && strstr(last_error, "no cJSON")) return;
        read_text("c.json", text, sizeof text);
        const char *at = strstr(text, "\"targets\"");
        assert_true(number(text, "alpha") > 0 && number(text, "beta") > 0 && number(text, "keys") == (order ? 1291 : 1320));
        for (int i = 0; i < COUNT(targets); ++i) {
            char report[32768];
            at = strstr(at, "\"sparsity\"");
            assert_non_null(at);
            if (!is_null(at, "threshold")) {
                const double fitted = number(at, "threshold_sparsity");
                snprintf(options, sizeof options, "--method blasst --threshold %.9g %s", number(at, "counted_threshold"), same);
                load_report(report, sizeof report, options);
                assert_at_most(fabs(1 - number(report, "density_pv") - targets[i]), 0.02); /* between two of the thresholds counted */
                snprintf(options, sizeof options, "--method blasst --threshold %.9g %s", number(at, "threshold"), same);
                load_report(report, sizeof report, options);
                assert_at_most(fabs(1 - number(report, "density_pv") - fitted), 0.02);
                assert_at_most(fabs(fitted - targets[i]), 0.06); /* the fit: two numbers for a curve */
            } else {
                assert_true(order == 1 && i == 2); /* no threshold leaves out so much */
                snprintf(options, sizeof options, "--method blasst --threshold 1 %s", same);
                load_report(report, sizeof report, options);
                assert_true(1 - number(report, "density_pv") < targets[i]);
            }
            snprintf(options, sizeof options, "--method energy --energy-lambda %.9g %s", number(at, "energy_lambda"), same);
            load_report(report, sizeof report, options);
            assert_at_most(fabs(1 - number(report, "density_pv") - number(at, "energy_sparsity")), 1e-6);
            assert_at_most(fabs(1 - number(report, "density_pv") - targets[i]), 0.02);
            ++at;
        }
    }
}

static size_t make_npy(unsigned char *b, const char *header, size_t stated, size_t data)
{
    size_t n = strlen(header);
    memcpy(b, "\x93NUMPY\x01", 8);
    b[8] = (unsigned char)(stated & 255);
    b[9] = (unsigned char)(stated >> 8 & 255);
    memcpy(b + 10, header, n);
    memset(b + 10 + n, 0, data);
    return 10 + n + data;
}
static void test_hostile_npy(void **state)
{
    (void)state;
    static const struct { const char *header; int stated; size_t data; } cases[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 10, 16), }\n", -1, 1279},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 10, 16), }\n", -1, 1281},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 10, 16), }\n", 65535, 1280},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 10, 16), }\n", 3, 1280},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 10, 16), }\n", 0, 1280},
        {"{'descr': '>f4', 'fortran_order': False, 'shape': (1, 2, 10, 16), }\n", -1, 1280},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (1, 2, 10, 16), }\n", -1, 1280},
        {"{'descr': '<f8', 'fortran_order': False, 'shape': (1, 2, 10, 16), }\n", -1, 2560},
        {"{'descr': '<i4', 'fortran_order': False, 'shape': (1, 2, 10, 16), }\n", -1, 1280},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (1, 2, 10, 16), }\n", -1, 1280},
        {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1, 2, 10, 16), }\n", -1, 1280},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, -2, 10, 16), }\n", -1, 1280},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296, 10, 16), }\n", -1, 1280},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999, 2, 10, 16), }\n", -1, 1280},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 10, 16\n", -1, 1280},
        {"{'descr': '<f4', 'shape': (1, 2, 10, 16), }\n", -1, 1280},
        {"{'fortran_order': False, 'shape': (1, 2, 10, 16), }\n", -1, 1280},
        {"{'descr': '<f4', 'fortran_order': False}\n", -1, 1280},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 10, 16), }\n", -1, 1280},
        {"", -1, 0}, {"\n", -1, 0}, {"{", -1, 0}, {"{'descr", -1, 0}, {"(((((((((((((((((((((((((((((((((((((((((((", -1, 0},
    };
    unsigned char b[4096];
    for (int i = 0; i < COUNT(cases); ++i) {
        size_t n = make_npy(b, cases[i].header, cases[i].stated < 0 ? strlen(cases[i].header) : (size_t)cases[i].stated, cases[i].data);
        write_file("bad.npy", b, n);
        write_file("sentinel.npy", "keep me", 7);
        assert_refused("attend --q bad.npy --k bad.npy --v bad.npy --out sentinel.npy");
        if (!strstr(last_error, "bad.npy")) fail_msg("case %d does not name the file: %s", i, last_error);
        char kept[16];
        read_text("sentinel.npy", kept, sizeof kept);
        assert_string_equal(kept, "keep me"); /* an old output survives a failure */
    }
    size_t n = make_npy(b, "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 10, 16), }\n", 69, 1280);
    for (size_t cut = 0; cut < 96; ++cut) { /* every truncation of the header */
        write_file("bad.npy", b, cut);
        assert_refused("info bad.npy");
    }
    b[6] = 9;
    write_file("bad.npy", b, n);
    assert_refused("info bad.npy"); /* version 9 */
    write_file("bad.npy", "", 0);
    assert_refused("info bad.npy");
    assert_refused("info .");
    assert_refused("info /dev/null");
}

static size_t make_safetensors(unsigned char *b, const char *json, uint64_t stated, size_t data)
{
    size_t n = strlen(json);
    for (int i = 0; i < 8; ++i) b[i] = (unsigned char)(stated >> (8 * i));
    memcpy(b + 8, json, n);
    memset(b + 8 + n, 0, data);
    return 8 + n + data;
}
static void test_hostile_safetensors(void **state)
{
    (void)state;
    static const struct { const char *json; int64_t stated; size_t data; } cases[] = {
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]}}", -1, 63},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]}}", -1, 65},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]}}", 1000000, 64},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]}}", INT64_MAX, 64},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]}}", -2, 64},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]}}", 0, 64},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[64,0]}}", -1, 64},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[-64,0]}}", -1, 64},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,32]}}", -1, 32},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0]}}", -1, 64},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8]}}", -1, 64},
        {"{\"q\":{\"shape\":[1,1,2,8],\"data_offsets\":[0,64]}}", -1, 64},
        {"{\"q\":{\"dtype\":\"F33\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]}}", -1, 64},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,-8],\"data_offsets\":[0,64]}}", -1, 64},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8.5],\"data_offsets\":[0,64]}}", -1, 64},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296,1,16],\"data_offsets\":[0,64]}}", -1, 64},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]},\"k\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[32,96]}}", -1, 96},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]},\"k\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[128,192]}}", -1, 192},
        {"{\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]},\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[64,128]}}", -1, 128},
        {"{\"q\":[]}", -1, 0}, {"[]", -1, 0}, {"{\"q\":", -1, 0}, {"", -1, 0}, {"{\"q\":{\"dtype\":\"F32\",\"shape\":{},\"data_offsets\":[0,64]}}", -1, 64},
        {"{\"q\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", -1, 4},
        {"{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"},\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]}}", -1, 64},
        {"{\"__metadata__\":{\"a\":1},\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]}}", -1, 64},
        {"{\"__metadata__\":[],\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]}}", -1, 64},
        {"{\"__metadata__\":{\"a\":\"1\\u0000\"},\"q\":{\"dtype\":\"F32\",\"shape\":[1,1,2,8],\"data_offsets\":[0,64]}}", -1, 64},
    };
    unsigned char b[8192];
    for (int i = 0; i < COUNT(cases); ++i) {
        size_t n = make_safetensors(b, cases[i].json, cases[i].stated == -1 ? strlen(cases[i].json) : (uint64_t)cases[i].stated, cases[i].data);
        write_file("bad.safetensors", b, n);
        assert_refused("attend --q bad.safetensors:q --k bad.safetensors:q --v bad.safetensors:q --out x.npy");
        if (!strstr(last_error, "bad.safetensors")) fail_msg("case %d does not name the file: %s", i, last_error);
    }
    char deep[8000]; /* deep nesting must not exhaust the stack */
    memset(deep, '[', sizeof deep - 1);
    deep[sizeof deep - 1] = 0;
    size_t n = make_safetensors(b, deep, strlen(deep), 0);
    write_file("bad.safetensors", b, n);
    assert_refused("info bad.safetensors");
}

static void test_unwritable(void **state)
{
    (void)state;
    assert_runs("synth --out . --frames 2 --height 5 --width 8 --heads 1 --dim 16");
    assert_refused("attend --q q.npy --k k.npy --v v.npy --out no/such/place/x.npy");
    assert_refused("attend --q q.npy --k k.npy --v v.npy --out q.npy/x.npy");
    assert_refused("attend --q q.npy --k k.npy --v v.npy --out .");
    assert_refused("attend --q q.npy --k k.npy --v v.npy --out new.npy --dump q.npy");
    assert_refused("attend --q q.npy --k k.npy --v v.npy --out new.npy --report no/such/r.json");
    assert_refused("attend --q q.npy --k k.npy --v v.npy --out new.npy --picture no/such/p.png");
    assert_refused("synth --out q.npy");
    assert_false(exists("new.npy"));
    if (access("/dev/full", W_OK) == 0) { /* a full disk */
        int code = run("attend --q q.npy --k k.npy --v v.npy --out /dev/full");
        assert_true(code == 1 || code == 2);
    }
}

static int tool_setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/svg2_tool_XXXXXX");
    if (!mkdtemp(dir)) return -1;
    write_file("stdout.txt", "", 0);
    write_file("stderr.txt", "", 0);
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
        TOOL_TEST(test_dumps),       TOOL_TEST(test_report_and_picture), TOOL_TEST(test_top_p_one_and_tails),    TOOL_TEST(test_same_bits),
        TOOL_TEST(test_clips),       TOOL_TEST(test_bad_options),        TOOL_TEST(test_shapes_that_do_not_fit), TOOL_TEST(test_hostile_npy),
        TOOL_TEST(test_unwritable),  TOOL_TEST(test_hostile_safetensors), TOOL_TEST(test_safetensors_and_rank_three),
        TOOL_TEST(test_limits_are_dense), TOOL_TEST(test_methods_report), TOOL_TEST(test_promised_recall), TOOL_TEST(test_blocks_dump),
        TOOL_TEST(test_bad_methods), TOOL_TEST(test_calibrate),
    };
    static char absolute[4096];
    if (argc < 2 || !realpath(argv[1], absolute)) {
        fprintf(stderr, "test_tool path/to/svg2\n");
        return 2;
    }
    tool = absolute;
    return cmocka_run_group_tests_name("tool", tests, 0, 0);
}
