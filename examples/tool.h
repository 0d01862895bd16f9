/* tool.h - MIT licence - what a command-line program needs besides its work: options, messages, output files

   Part of examples/svg2.c; include it in the one C file of a program. POSIX.

   Messages  tool_fail() prints one line "name: ..." and ends the program: 2 = wrong usage, 1 = failure.
   Options   one table per command; parsing and --help come from the same table, so they cannot disagree.
   Outputs   are written to a temporary file beside the target and renamed when all of them are complete. A program that
             fails or is interrupted leaves nothing behind, and an unwritable target is found before the work starts. */
#ifndef TOOL_H_INCLUDED
#define TOOL_H_INCLUDED

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef TOOL_MAX_OUTPUTS
#  define TOOL_MAX_OUTPUTS 32
#endif
#define TOOL_FAILURE 1
#define TOOL_USAGE 2

typedef struct tool_output {
    FILE *file;
    char *path, *temporary;
} tool_output;

static const char *tool_name = "tool";
static tool_output tool_outputs[TOOL_MAX_OUTPUTS];
static int         tool_output_count;
/* What a signal handler may look at: plain pointers, set only while signals are blocked. */
static char *volatile tool_temporary[TOOL_MAX_OUTPUTS];
static char *volatile tool_directory[TOOL_MAX_OUTPUTS];
static int tool_directory_count;
static int tool_has_progress_line; /* an unfinished line stands on the terminal */

/* ---- messages --------------------------------------------------------------------------- */
/* Async-signal-safe. Directories that this program made go, too, if they are empty again. */
static void tool_discard_outputs(void)
{
    int i;
    for (i = 0; i < TOOL_MAX_OUTPUTS; ++i) {
        if (tool_temporary[i]) unlink(tool_temporary[i]);
    }
    for (i = TOOL_MAX_OUTPUTS - 1; i >= 0; --i) {
        if (tool_directory[i]) rmdir(tool_directory[i]);
    }
}

static void tool_clear_progress(void)
{
    if (tool_has_progress_line) fputs("\r\033[K", stderr);
    tool_has_progress_line = 0;
}

#if defined(__GNUC__)
__attribute__((format(printf, 1, 2)))
#endif
static void tool_notice(const char *format, ...)
{
    va_list args;
    tool_clear_progress();
    fprintf(stderr, "%s: ", tool_name);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
}

#if defined(__GNUC__)
__attribute__((format(printf, 2, 3), noreturn))
#endif
static void tool_fail(int exit_code, const char *format, ...)
{
    va_list args;
    tool_clear_progress();
    tool_discard_outputs();
    fprintf(stderr, "%s: ", tool_name);
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(exit_code);
}

static void tool_on_signal(int number)
{
    tool_discard_outputs();
    if (number == SIGBUS) { /* a mapped input shrank under us */
        static const char text[] = ": an input file was truncated while it was read\n";
        if (write(2, tool_name, strlen(tool_name)) < 0 || write(2, text, sizeof text - 1) < 0) _exit(TOOL_FAILURE);
        _exit(TOOL_FAILURE);
    }
    signal(number, SIG_DFL); /* so that the caller sees by which signal we died */
    raise(number);
}

static void tool_start(const char *name)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGBUS};
    struct sigaction action;
    size_t           i;
    tool_name = name;
    memset(&action, 0, sizeof action);
    action.sa_handler = tool_on_signal;
    sigemptyset(&action.sa_mask);
    for (i = 0; i < sizeof numbers / sizeof *numbers; ++i) {
        struct sigaction old;
        sigaction(numbers[i], NULL, &old);
        if (old.sa_handler != SIG_IGN) sigaction(numbers[i], &action, NULL); /* nohup stays nohup */
    }
}

static void *tool_allocate(size_t count, size_t size)
{
    void  *memory = NULL;
    size_t bytes = count && size > SIZE_MAX / count ? SIZE_MAX : count * size;
    if (bytes > SIZE_MAX / 2 || posix_memalign(&memory, 64, bytes ? bytes : 64) != 0) {
        tool_fail(TOOL_FAILURE, "out of memory: %.1f MiB are needed for one array",
                  (double)count * (double)size / 1048576);
    }
    return memory;
}

static char *tool_format(const char *format, const char *first, const char *second)
{
    size_t count = strlen(format) + strlen(first) + strlen(second) + 1;
    char  *text = (char *)tool_allocate(count, 1);
#if defined(__GNUC__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wformat-nonliteral"
#endif
    snprintf(text, count, format, first, second);
#if defined(__GNUC__)
#  pragma GCC diagnostic pop
#endif
    return text;
}

/* ---- outputs ---------------------------------------------------------------------------- */
static void tool_block_signals(sigset_t *old)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, old);
}

/* Make a directory and its parents where they are missing. */
static void tool_make_directory(const char *path)
{
    char  *part = tool_format("%s%s", path, "");
    size_t i, count = strlen(part);
    for (i = 1; i <= count; ++i) {
        sigset_t old;
        char     saved = part[i];
        if (saved && saved != '/') continue;
        part[i] = 0;
        tool_block_signals(&old);
        if (mkdir(part, 0777) == 0) {
            if (tool_directory_count < TOOL_MAX_OUTPUTS) {
                tool_directory[tool_directory_count++] = tool_format("%s%s", part, "");
            }
        } else if (errno != EEXIST) {
            int error = errno;
            sigprocmask(SIG_SETMASK, &old, NULL);
            tool_fail(TOOL_FAILURE, "%s: %s", part, strerror(error));
        }
        sigprocmask(SIG_SETMASK, &old, NULL);
        part[i] = saved;
    }
    free(part);
}

/* Returns a file to write to; the target appears (or changes) only in tool_commit_outputs. */
static FILE *tool_open_output(const char *path)
{
    struct stat  status;
    char         suffix[32], *target, *temporary;
    sigset_t     old;
    int          i, descriptor, is_special, error;
    tool_output *output = &tool_outputs[tool_output_count];

    if (tool_output_count == TOOL_MAX_OUTPUTS) tool_fail(TOOL_FAILURE, "too many output files");
    /* Through a symbolic link the file it points to is replaced, not the link. */
    target = realpath(path, NULL);
    if (!target) target = tool_format("%s%s", path, "");
    for (i = 0; i < tool_output_count; ++i) {
        if (!strcmp(tool_outputs[i].path, target)) tool_fail(TOOL_USAGE, "%s: given for two outputs", path);
    }
    is_special = 0;
    if (stat(target, &status) == 0) {
        if (S_ISDIR(status.st_mode)) tool_fail(TOOL_FAILURE, "%s: is a directory", path);
        if (access(target, W_OK) != 0) tool_fail(TOOL_FAILURE, "%s: %s", path, strerror(errno));
        is_special = !S_ISREG(status.st_mode); /* /dev/null and pipes are written in place */
    }
    snprintf(suffix, sizeof suffix, ".%ld.tmp", (long)getpid());
    temporary = tool_format("%s%s", target, is_special ? "" : suffix);
    tool_block_signals(&old);
    descriptor = is_special ? open(temporary, O_WRONLY | O_CLOEXEC)
                            : open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    error = errno;
    if (descriptor >= 0 && !is_special) tool_temporary[tool_output_count] = temporary;
    sigprocmask(SIG_SETMASK, &old, NULL);
    if (descriptor < 0) tool_fail(TOOL_FAILURE, "%s: cannot be written: %s", path, strerror(error));
    output->path = target;
    output->temporary = temporary;
    output->file = fdopen(descriptor, "wb");
    if (!output->file) tool_fail(TOOL_FAILURE, "%s: %s", path, strerror(errno));
    ++tool_output_count;
    return output->file;
}

/* Flush everything first, then rename: a full disk is noticed before anything changes. */
static void tool_commit_outputs(void)
{
    int i;
    for (i = 0; i < tool_output_count; ++i) {
        int is_bad = ferror(tool_outputs[i].file);
        errno = is_bad ? EIO : 0;
        if (fclose(tool_outputs[i].file) != 0 || is_bad) {
            tool_fail(TOOL_FAILURE, "%s: cannot be written: %s", tool_outputs[i].path, strerror(errno));
        }
    }
    for (i = 0; i < tool_output_count; ++i) {
        sigset_t old;
        int      error = 0;
        tool_block_signals(&old);
        if (tool_temporary[i]) {
            if (rename(tool_temporary[i], tool_outputs[i].path) != 0) error = errno;
            else tool_temporary[i] = NULL;
        }
        sigprocmask(SIG_SETMASK, &old, NULL);
        if (error) tool_fail(TOOL_FAILURE, "%s: %s", tool_outputs[i].path, strerror(error));
    }
    for (i = 0; i < tool_output_count; ++i) {
        free(tool_outputs[i].path);
        free(tool_outputs[i].temporary);
    }
    for (i = 0; i < tool_directory_count; ++i) {
        char *path = tool_directory[i];
        tool_directory[i] = NULL; /* a signal from now on leaves it */
        free(path);
    }
    tool_output_count = tool_directory_count = 0;
}

static void tool_write(FILE *file, const void *bytes, size_t count, const char *path)
{
    if (count && fwrite(bytes, 1, count, file) != count) {
        tool_fail(TOOL_FAILURE, "%s: cannot be written: %s", path, strerror(errno));
    }
}

/* ---- options ---------------------------------------------------------------------------- */
typedef enum tool_kind {
    TOOL_HEADING, /* a line of the help                                                   */
    TOOL_FLAG,    /* int: 1 when given                                                    */
    TOOL_TEXT,    /* const char *                                                         */
    TOOL_INT,     /* int32_t in [low, high]                                               */
    TOOL_SEED,    /* uint64_t                                                             */
    TOOL_REAL,    /* double in (low, high], or [low, high] where low_is_allowed           */
    TOOL_CHOICE   /* int: index of the choice in "a|b|c"                                  */
} tool_kind;

typedef struct tool_option {
    tool_kind   kind;
    const char *name;     /* without the dashes */
    const char *argument; /* as in the help; the choices for TOOL_CHOICE */
    void       *value;
    double      low, high;
    int         low_is_allowed;
    const char *help; /* NULL: not in the help (another spelling) */
} tool_option;

static void tool_print_options(const tool_option *options, size_t count)
{
    size_t i;
    for (i = 0; i < count; ++i) {
        char left[64];
        if (!options[i].help) continue;
        if (options[i].kind == TOOL_HEADING) {
            printf("\n%s\n", options[i].help);
            continue;
        }
        snprintf(left, sizeof left, "--%s %s", options[i].name, options[i].argument ? options[i].argument : "");
        printf("  %-26s %s%s\n", left, strlen(left) > 26 ? "\n                             " : "", options[i].help);
    }
}

static int tool_parse_choice(const char *choices, const char *text)
{
    size_t count = strlen(text);
    int    index;
    for (index = 0; *choices; ++index) {
        size_t part = strcspn(choices, "|");
        if (part == count && !memcmp(choices, text, part)) return index;
        choices += part;
        if (*choices) ++choices;
    }
    return -1;
}

static void tool_parse_value(const tool_option *option, const char *text)
{
    char *end = NULL;
    errno = 0;
    switch (option->kind) {
    case TOOL_TEXT: {
        const char **value = (const char **)option->value;
        if (!text[0]) tool_fail(TOOL_USAGE, "--%s: the value is empty", option->name);
        *value = text;
        break;
    }
    case TOOL_INT: {
        long long value = strtoll(text, &end, 10);
        if (end == text || *end) tool_fail(TOOL_USAGE, "--%s: '%s' is not a whole number", option->name, text);
        if (errno || (double)value < option->low || (double)value > option->high) {
            tool_fail(TOOL_USAGE, "--%s: %s is not between %.0f and %.0f", option->name, text, option->low, option->high);
        }
        *(int32_t *)option->value = (int32_t)value;
        break;
    }
    case TOOL_SEED: {
        unsigned long long value = strtoull(text, &end, 10);
        if (end == text || *end || strchr(text, '-') || errno) {
            tool_fail(TOOL_USAGE, "--%s: '%s' is not a whole number from 0 to 2^64-1", option->name, text);
        }
        *(uint64_t *)option->value = value;
        break;
    }
    case TOOL_REAL: {
        double value = strtod(text, &end);
        if (end == text || *end || !isfinite(value)) {
            tool_fail(TOOL_USAGE, "--%s: '%s' is not a number", option->name, text);
        }
        if (value < option->low || value > option->high || (value <= option->low && !option->low_is_allowed)) {
            tool_fail(TOOL_USAGE, "--%s: %s is not %s %g and at most %g", option->name, text,
                      option->low_is_allowed ? "at least" : "above", option->low, option->high);
        }
        *(double *)option->value = value;
        break;
    }
    case TOOL_CHOICE: {
        int index = tool_parse_choice(option->argument, text);
        if (index < 0) tool_fail(TOOL_USAGE, "--%s: '%s' is not one of %s", option->name, text, option->argument);
        *(int *)option->value = index;
        break;
    }
    case TOOL_FLAG:
    case TOOL_HEADING: break;
    }
}

/* Parse "--name value" and "--name=value"; what is no option goes to words. Returns the number of words. */
static int tool_parse(int argc, char **argv, const tool_option *options, size_t count, const char **words, int max_words)
{
    int    i, word_count = 0;
    size_t k;
    for (i = 0; i < argc; ++i) {
        const char *text = argv[i], *equals;
        size_t      name_count;
        if (text[0] != '-' || !text[1]) {
            if (word_count == max_words) tool_fail(TOOL_USAGE, "unexpected argument '%s'", text);
            words[word_count++] = text;
            continue;
        }
        if (text[1] != '-') tool_fail(TOOL_USAGE, "unknown option '%s'", text);
        equals = strchr(text, '=');
        name_count = equals ? (size_t)(equals - text - 2) : strlen(text + 2);
        for (k = 0; k < count; ++k) {
            if (options[k].kind != TOOL_HEADING && strlen(options[k].name) == name_count &&
                !memcmp(options[k].name, text + 2, name_count))
                break;
        }
        if (k == count) tool_fail(TOOL_USAGE, "unknown option '%s' (--help lists them)", text);
        if (options[k].kind == TOOL_FLAG) {
            if (equals) tool_fail(TOOL_USAGE, "--%s takes no value", options[k].name);
            *(int *)options[k].value = 1;
            continue;
        }
        if (!equals && (i + 1 == argc || !strncmp(argv[i + 1], "--", 2))) {
            tool_fail(TOOL_USAGE, "--%s needs a value", options[k].name);
        }
        tool_parse_value(&options[k], equals ? equals + 1 : argv[++i]);
    }
    return word_count;
}

#endif /* TOOL_H_INCLUDED */
