/* tensor_file.h - MIT licence - reads and writes tensors in .npy and .safetensors files

   Do this in ONE C file, then include the header wherever it is used (POSIX.1-2008 is needed for mmap):

       #define TF_IMPLEMENTATION
       #include "tensor_file.h"

   Synopsis:

       tf_file file;
       char message[TF_MESSAGE_COUNT];
       if (tf_open(&file, "x.safetensors", message, sizeof message)) { fprintf(stderr, "%s\n", message); return 1; }
       const tf_tensor *q = tf_find(&file, "q");          // NULL as name: the only tensor of the file
       ... q->data, q->dtype, q->shape[0 .. q->rank) ...
       tf_close(&file);

   Files are untrusted: every length, offset and shape is checked before it is used, and a file that is refused gets one
   line that names it and says what is wrong. Nothing here prints, exits or keeps anything between calls.

   Macros, in the implementing file:
     TF_NO_CJSON   build without cJSON: .safetensors can be written but not read
   In every file that includes it:
     TF_API        linkage of the functions; default extern; "static inline" where not all of them are used

   .npy          versions 1 to 3, little-endian, C order, no structured types.
   .safetensors  8 bytes length, JSON, data. Offsets must tile the data without overlap and without holes; __metadata__
                 holds strings only. */
#ifndef TENSOR_FILE_H_INCLUDED
#define TENSOR_FILE_H_INCLUDED

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifndef TF_API
#  define TF_API extern
#endif

#define TF_MAX_RANK 8
#define TF_MESSAGE_COUNT 512

/* name here, element bytes, name in .safetensors, type string in .npy ("" = has none) */
#define TF_DTYPES(X)                    \
    X(TF_F32, 4, "F32", "<f4")          \
    X(TF_F16, 2, "F16", "<f2")          \
    X(TF_BF16, 2, "BF16", "")           \
    X(TF_F64, 8, "F64", "<f8")          \
    X(TF_I8, 1, "I8", "|i1")            \
    X(TF_I16, 2, "I16", "<i2")          \
    X(TF_I32, 4, "I32", "<i4")          \
    X(TF_I64, 8, "I64", "<i8")          \
    X(TF_U8, 1, "U8", "|u1")            \
    X(TF_U16, 2, "U16", "<u2")          \
    X(TF_U32, 4, "U32", "<u4")          \
    X(TF_U64, 8, "U64", "<u8")          \
    X(TF_BOOL, 1, "BOOL", "|b1")        \
    X(TF_F8_E4M3, 1, "F8_E4M3", "")     \
    X(TF_F8_E5M2, 1, "F8_E5M2", "")

typedef enum tf_dtype {
#define TF__X(name, bytes, safetensors, npy) name,
    TF_DTYPES(TF__X)
#undef TF__X
    TF_DTYPE_COUNT
} tf_dtype;

typedef enum tf_result {
    TF_OK = 0,
    TF_ERR_OPEN,        /* the file cannot be opened or read */
    TF_ERR_FORMAT,      /* the bytes are damaged             */
    TF_ERR_UNSUPPORTED, /* fine, but not for this reader     */
    TF_ERR_MEMORY
} tf_result;

typedef enum tf_format { TF_NPY, TF_SAFETENSORS } tf_format;

typedef struct tf_tensor {
    char       *name;  /* "" in .npy                                                    */
    tf_dtype    dtype;
    int         rank;  /* 0 for a scalar                                                */
    int64_t     shape[TF_MAX_RANK];
    int64_t     count; /* elements                                                      */
    size_t      bytes;
    const void *data;  /* inside the file's bytes; .safetensors does not promise any alignment */
} tf_tensor;

typedef struct tf_file {
    tf_format  format;
    tf_tensor *tensors; /* in the order of their data */
    size_t     tensor_count;
    char      *metadata; /* private: key, 0, value, 0, ... */
    size_t     metadata_bytes;
    void      *owned; /* private: mapping or buffer made by tf_open */
    size_t     owned_bytes;
    int        is_mapped;
} tf_file;

/* Open a file; the format is told by its first bytes. On failure the message is filled and *file is empty. */
TF_API int tf_open(tf_file *file, const char *path, char *message, size_t message_count);

/* The same for bytes that the caller keeps alive until tf_close. */
TF_API int tf_open_memory(tf_file *file, const void *bytes, size_t count, const char *name_for_messages, char *message,
                          size_t message_count);

TF_API void tf_close(tf_file *file);

/* NULL if there is none of that name; name NULL or "": the only tensor of the file, NULL if there are several. */
TF_API const tf_tensor *tf_find(const tf_file *file, const char *name);

/* The string that a .safetensors file has under this key of __metadata__; NULL if there is none. Valid until tf_close. */
TF_API const char *tf_metadata(const tf_file *file, const char *key);

TF_API size_t      tf_dtype_bytes(tf_dtype dtype);
TF_API const char *tf_dtype_name(tf_dtype dtype); /* "F32" */

/* Elements [first, first + count) as numbers; works for unaligned data. The 8-bit floats become 0: returns 0 for them,
   1 for every other dtype. */
TF_API int tf_get_f32(const tf_tensor *tensor, int64_t first, int64_t count, float *values);
TF_API int tf_get_f64(const tf_tensor *tensor, int64_t first, int64_t count, double *values);

/* Split "dir/x.safetensors:name" into path (malloc'ed; NULL if memory is short) and name ("" where there is none). */
TF_API char *tf_split(const char *where, const char **name);
TF_API int   tf_is_safetensors_path(const char *path);

/* Write a header; the data follows by fwrite, tensor by tensor in that order, C order, little-endian. Of the tensors name,
   dtype, rank and shape are read. Return TF_OK, TF_ERR_UNSUPPORTED (no such .npy type) or TF_ERR_OPEN (see errno). */
TF_API int tf_write_npy_header(FILE *out, tf_dtype dtype, int rank, const int64_t *shape);
TF_API int tf_write_safetensors_header(FILE *out, const tf_tensor *tensors, size_t tensor_count);

/* The same with __metadata__: key, value, key, value, ..., 2 * metadata_count strings in UTF-8, no key twice. */
TF_API int tf_write_safetensors_header_with(FILE *out, const tf_tensor *tensors, size_t tensor_count,
                                            const char *const *metadata, size_t metadata_count);

#endif /* TENSOR_FILE_H_INCLUDED */

/* ==== implementation ===================================================================== */
#if defined(TF_IMPLEMENTATION) && !defined(TF_IMPLEMENTED)
#define TF_IMPLEMENTED

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#ifndef TF_NO_CJSON
#  include <cjson/cJSON.h>
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#  error "tensor_file.h: both formats are little-endian and are mapped as they are"
#endif

/* The reference implementation allows 100 MB; a tree of that would take gigabytes. 200,000 tensors fit into this. */
#define TF__MAX_HEADER ((size_t)32 << 20)

typedef struct tf__dtype_info {
    size_t      bytes;
    const char *safetensors, *npy;
} tf__dtype_info;

static tf__dtype_info tf__info(tf_dtype dtype)
{
    static const tf__dtype_info table[TF_DTYPE_COUNT] = {
#define TF__X(name, bytes, safetensors, npy) {bytes, safetensors, npy},
        TF_DTYPES(TF__X)
#undef TF__X
    };
    return table[dtype];
}

TF_API size_t tf_dtype_bytes(tf_dtype dtype) { return tf__info(dtype).bytes; }
TF_API const char *tf_dtype_name(tf_dtype dtype) { return tf__info(dtype).safetensors; }

/* What is being parsed and where complaints go. */
typedef struct tf__reader {
    const char *file_name;
    char       *message;
    size_t      message_count;
} tf__reader;

#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static int tf__fail(const tf__reader *reader, int result, const char *format, ...)
{
    va_list args;
    int     used;
    if (!reader->message || reader->message_count == 0) return result;
    used = snprintf(reader->message, reader->message_count, "%s: ", reader->file_name);
    if (used < 0 || (size_t)used >= reader->message_count) return result;
    va_start(args, format);
    vsnprintf(reader->message + used, reader->message_count - (size_t)used, format, args);
    va_end(args);
    return result;
}

/* A name from a file, made fit to be printed: control characters could drive the terminal. */
static const char *tf__printable(const char *name, char buffer[64])
{
    size_t i;
    for (i = 0; name[i] && i < 60; ++i) buffer[i] = (unsigned char)name[i] < 32 || name[i] == 127 ? '?' : name[i];
    if (name[i]) {
        memcpy(buffer + i, "...", 3);
        i += 3;
    }
    buffer[i] = 0;
    return buffer;
}

/* Element and byte counts of a shape whose dimensions are >= 0. Returns 0 on overflow. */
static int tf__measure(tf_tensor *tensor)
{
    int64_t limit = INT64_MAX / 8; /* so that bytes fit, too */
    int     i, is_empty = 0;
    tensor->count = 1;
    for (i = 0; i < tensor->rank; ++i) is_empty |= tensor->shape[i] == 0;
    for (i = 0; i < tensor->rank && !is_empty; ++i) {
        if (tensor->count > limit / tensor->shape[i]) return 0;
        tensor->count *= tensor->shape[i];
    }
    if (is_empty) tensor->count = 0;
    if ((uint64_t)tensor->count > SIZE_MAX / tf_dtype_bytes(tensor->dtype)) return 0;
    tensor->bytes = (size_t)tensor->count * tf_dtype_bytes(tensor->dtype);
    return 1;
}

static char *tf__copy_string(const char *text)
{
    size_t count = strlen(text) + 1;
    char  *copy = (char *)malloc(count);
    if (copy) memcpy(copy, text, count);
    return copy;
}

/* ---- .npy ------------------------------------------------------------------------------- */
/* The header is a Python dictionary: {'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } */
typedef struct tf__cursor {
    const char *at, *end;
} tf__cursor;

static void tf__skip_space(tf__cursor *cursor)
{
    while (cursor->at < cursor->end && (*cursor->at == ' ' || *cursor->at == '\n' || *cursor->at == '\t')) ++cursor->at;
}

static int tf__accept(tf__cursor *cursor, char wanted)
{
    tf__skip_space(cursor);
    if (cursor->at == cursor->end || *cursor->at != wanted) return 0;
    ++cursor->at;
    return 1;
}

static int tf__accept_word(tf__cursor *cursor, const char *word)
{
    size_t count = strlen(word);
    tf__skip_space(cursor);
    if ((size_t)(cursor->end - cursor->at) < count || memcmp(cursor->at, word, count) != 0) return 0;
    cursor->at += count;
    return 1;
}

static int tf__accept_string(tf__cursor *cursor, char *text, size_t text_count)
{
    size_t used = 0;
    char   quote;
    tf__skip_space(cursor);
    if (cursor->at == cursor->end || (*cursor->at != '\'' && *cursor->at != '"')) return 0;
    quote = *cursor->at++;
    while (cursor->at < cursor->end && *cursor->at != quote) {
        if (used + 1 >= text_count || *cursor->at == '\\' || *cursor->at == 0) return 0;
        text[used++] = *cursor->at++;
    }
    if (cursor->at == cursor->end) return 0;
    ++cursor->at;
    text[used] = 0;
    return 1;
}

/* "(2, 3)", "(2,)", "()": the result says what is wrong, or NULL. */
static const char *tf__accept_shape(tf__cursor *cursor, tf_tensor *tensor)
{
    if (!tf__accept(cursor, '(')) return "the shape is not a tuple";
    tensor->rank = 0;
    while (!tf__accept(cursor, ')')) {
        int64_t value = 0;
        int     digits = 0;
        if (tf__accept(cursor, '-')) return "the shape has a negative dimension";
        while (cursor->at < cursor->end && *cursor->at >= '0' && *cursor->at <= '9') {
            if (value > (INT64_MAX - 9) / 10) return "the shape overflows";
            value = value * 10 + (*cursor->at++ - '0');
            ++digits;
        }
        if (!digits) return "the shape is not a tuple of numbers";
        if (tensor->rank == TF_MAX_RANK) return "more than 8 dimensions";
        tensor->shape[tensor->rank++] = value;
        if (!tf__accept(cursor, ',') && (cursor->at == cursor->end || *cursor->at != ')'))
            return "the shape is not a tuple of numbers";
    }
    return NULL;
}

static int tf__npy_dtype(const char *descr, tf_dtype *dtype)
{
    int i;
    for (i = 0; i < TF_DTYPE_COUNT; ++i) {
        const char *known = tf__info((tf_dtype)i).npy;
        if (!known[0] || strcmp(known + 1, descr + 1) != 0) continue;
        if (descr[0] == known[0] || descr[0] == '<' || (descr[0] == '|' && tf__info((tf_dtype)i).bytes == 1)) {
            *dtype = (tf_dtype)i;
            return 1;
        }
    }
    return 0;
}

static int tf__open_npy(tf_file *file, const unsigned char *bytes, size_t count, const tf__reader *reader)
{
    tf_tensor   tensor;
    tf__cursor  cursor;
    char        key[32], descr[32] = "";
    const char *wrong;
    size_t      header_begin, header_bytes;
    int         has_descr = 0, has_order = 0, has_shape = 0, is_fortran = 0;

    memset(&tensor, 0, sizeof tensor);
    if (count < 10) return tf__fail(reader, TF_ERR_FORMAT, "truncated: no room for an npy header");
    if (bytes[6] < 1 || bytes[6] > 3) {
        return tf__fail(reader, TF_ERR_UNSUPPORTED, "npy format version %d.%d is not known", bytes[6], bytes[7]);
    }
    if (bytes[6] == 1) {
        header_begin = 10;
        header_bytes = (size_t)bytes[8] | (size_t)bytes[9] << 8;
    } else {
        if (count < 12) return tf__fail(reader, TF_ERR_FORMAT, "truncated: no room for an npy header");
        header_begin = 12;
        header_bytes = (size_t)bytes[8] | (size_t)bytes[9] << 8 | (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
    }
    if (header_bytes > count - header_begin) {
        return tf__fail(reader, TF_ERR_FORMAT, "truncated: the npy header claims %zu bytes, %zu are there", header_bytes,
                        count - header_begin);
    }
    cursor.at = (const char *)bytes + header_begin;
    cursor.end = cursor.at + header_bytes;
    if (!tf__accept(&cursor, '{')) return tf__fail(reader, TF_ERR_FORMAT, "the npy header is not a dictionary");
    while (!tf__accept(&cursor, '}')) {
        if (!tf__accept_string(&cursor, key, sizeof key) || !tf__accept(&cursor, ':')) {
            return tf__fail(reader, TF_ERR_FORMAT, "the npy header is damaged");
        }
        if (!strcmp(key, "descr") && !has_descr) {
            has_descr = 1;
            tf__skip_space(&cursor);
            if (cursor.at < cursor.end && *cursor.at == '[') {
                return tf__fail(reader, TF_ERR_UNSUPPORTED, "structured dtypes are not supported");
            }
            if (!tf__accept_string(&cursor, descr, sizeof descr) || !descr[0]) {
                return tf__fail(reader, TF_ERR_FORMAT, "the npy header has a damaged dtype");
            }
        } else if (!strcmp(key, "fortran_order") && !has_order) {
            has_order = 1;
            is_fortran = tf__accept_word(&cursor, "True");
            if (!is_fortran && !tf__accept_word(&cursor, "False")) {
                return tf__fail(reader, TF_ERR_FORMAT, "fortran_order is neither True nor False");
            }
        } else if (!strcmp(key, "shape") && !has_shape) {
            has_shape = 1;
            wrong = tf__accept_shape(&cursor, &tensor);
            if (wrong) return tf__fail(reader, TF_ERR_FORMAT, "%s", wrong);
        } else {
            char printable[64];
            return tf__fail(reader, TF_ERR_FORMAT, "the npy header has an unknown or repeated key '%s'",
                            tf__printable(key, printable));
        }
        if (!tf__accept(&cursor, ',') && (cursor.at == cursor.end || *cursor.at != '}')) {
            return tf__fail(reader, TF_ERR_FORMAT, "the npy header is damaged");
        }
    }
    tf__skip_space(&cursor);
    if (cursor.at != cursor.end) return tf__fail(reader, TF_ERR_FORMAT, "the npy header has text behind the dictionary");
    if (!has_descr || !has_order || !has_shape) {
        return tf__fail(reader, TF_ERR_FORMAT, "the npy header lacks descr, fortran_order or shape");
    }
    if (descr[0] == '>' && descr[1] && strcmp(descr + 2, "1") != 0) {
        return tf__fail(reader, TF_ERR_UNSUPPORTED, "big-endian data are not supported");
    }
    if (!tf__npy_dtype(descr, &tensor.dtype)) {
        char printable[64];
        return tf__fail(reader, TF_ERR_UNSUPPORTED, "dtype '%s' is not supported%s", tf__printable(descr, printable),
                        strstr(descr, "V2") ? " (bf16 from numpy? keep it in .safetensors)" : "");
    }
    if (is_fortran && tensor.rank > 1) {
        return tf__fail(reader, TF_ERR_UNSUPPORTED, "Fortran order is not supported: save np.ascontiguousarray(x)");
    }
    if (!tf__measure(&tensor)) return tf__fail(reader, TF_ERR_FORMAT, "the shape overflows");
    if (tensor.bytes > count - header_begin - header_bytes) {
        return tf__fail(reader, TF_ERR_FORMAT, "truncated: the shape needs %zu bytes of data, %zu are there",
                        tensor.bytes, count - header_begin - header_bytes);
    }
    if (tensor.bytes < count - header_begin - header_bytes) {
        return tf__fail(reader, TF_ERR_FORMAT, "%zu bytes of data, but the shape needs only %zu",
                        count - header_begin - header_bytes, tensor.bytes);
    }
    tensor.data = bytes + header_begin + header_bytes;
    tensor.name = tf__copy_string("");
    file->tensors = (tf_tensor *)malloc(sizeof *file->tensors);
    if (!tensor.name || !file->tensors) {
        free(tensor.name);
        return tf__fail(reader, TF_ERR_MEMORY, "out of memory");
    }
    file->format = TF_NPY;
    file->tensors[0] = tensor;
    file->tensor_count = 1;
    return TF_OK;
}

/* ---- .safetensors ----------------------------------------------------------------------- */
#ifdef TF_NO_CJSON
static int tf__open_safetensors(tf_file *file, const unsigned char *bytes, size_t count, const tf__reader *reader)
{
    (void)file, (void)bytes, (void)count;
    return tf__fail(reader, TF_ERR_UNSUPPORTED, "this build has no cJSON and reads only .npy");
}
#else
/* A whole number in [0, 2^53]: beyond, a double no longer tells neighbours apart. */
static int tf__whole_number(const cJSON *item, int64_t *value)
{
    if (!cJSON_IsNumber(item) || !(item->valuedouble >= 0 && item->valuedouble <= 9007199254740992.0)) return 0;
    *value = (int64_t)item->valuedouble;
    return (double)*value == item->valuedouble;
}

static int tf__by_data(const void *left, const void *right)
{
    const tf_tensor *a = (const tf_tensor *)left, *b = (const tf_tensor *)right;
    const char *p = (const char *)a->data, *q = (const char *)b->data;
    if (p != q) return p < q ? -1 : 1;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? -1 : 1; /* an empty tensor comes before its neighbour */
    return strcmp(a->name, b->name);
}

static int tf__by_name(const void *left, const void *right)
{
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* One entry: {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} */
static int tf__safetensors_entry(tf_tensor *tensor, const cJSON *entry, const unsigned char *data, size_t data_bytes,
                                 const tf__reader *reader)
{
    char         name[64];
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype");
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape");
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    const cJSON *item;
    int64_t      begin, end;
    int          i;

    tf__printable(entry->string, name);
    if (!cJSON_IsObject(entry) || cJSON_GetArraySize(entry) != 3 || !cJSON_IsString(dtype) || !cJSON_IsArray(shape) ||
        !cJSON_IsArray(offsets)) {
        return tf__fail(reader, TF_ERR_FORMAT, "tensor '%s' is not {dtype, shape, data_offsets}", name);
    }
    for (i = 0; i < TF_DTYPE_COUNT; ++i) {
        if (!strcmp(tf__info((tf_dtype)i).safetensors, dtype->valuestring)) break;
    }
    if (i == TF_DTYPE_COUNT) {
        char printable[64];
        return tf__fail(reader, TF_ERR_UNSUPPORTED, "tensor '%s' has unknown dtype '%s'", name,
                        tf__printable(dtype->valuestring, printable));
    }
    tensor->dtype = (tf_dtype)i;
    cJSON_ArrayForEach(item, shape)
    {
        if (tensor->rank == TF_MAX_RANK) {
            return tf__fail(reader, TF_ERR_UNSUPPORTED, "tensor '%s' has more than 8 dimensions", name);
        }
        if (!tf__whole_number(item, &tensor->shape[tensor->rank++])) {
            return tf__fail(reader, TF_ERR_FORMAT, "tensor '%s': the shape has a negative, broken or huge dimension",
                            name);
        }
    }
    if (!tf__measure(tensor)) return tf__fail(reader, TF_ERR_FORMAT, "tensor '%s': the shape overflows", name);
    if (cJSON_GetArraySize(offsets) != 2 || !tf__whole_number(offsets->child, &begin) ||
        !tf__whole_number(offsets->child->next, &end) || begin > end) {
        return tf__fail(reader, TF_ERR_FORMAT, "tensor '%s' has damaged data_offsets", name);
    }
    if ((uint64_t)end > data_bytes) {
        return tf__fail(reader, TF_ERR_FORMAT, "tensor '%s' ends at byte %lld of %zu bytes of data (truncated?)", name,
                        (long long)end, data_bytes);
    }
    if ((uint64_t)(end - begin) != tensor->bytes) {
        return tf__fail(reader, TF_ERR_FORMAT, "tensor '%s': its shape needs %zu bytes, its offsets hold %lld", name,
                        tensor->bytes, (long long)(end - begin));
    }
    tensor->data = data + begin;
    tensor->name = tf__copy_string(entry->string);
    return tensor->name ? TF_OK : tf__fail(reader, TF_ERR_MEMORY, "out of memory");
}

/* JSON leaves open what a repeated name means. */
static int tf__check_names(const cJSON *object, const char *where, const tf__reader *reader)
{
    const cJSON *entry;
    const char **names;
    char         printable[64];
    size_t       i = 0, count = 0;
    int          result = TF_OK;

    cJSON_ArrayForEach(entry, object) ++count;
    names = (const char **)malloc((count + 1) * sizeof *names);
    if (!names) return tf__fail(reader, TF_ERR_MEMORY, "out of memory");
    cJSON_ArrayForEach(entry, object) names[i++] = entry->string;
    qsort(names, count, sizeof *names, tf__by_name);
    for (i = 1; i < count && !result; ++i) {
        if (!strcmp(names[i - 1], names[i])) {
            result = tf__fail(reader, TF_ERR_FORMAT, "%sthe name '%s' occurs twice", where,
                              tf__printable(names[i], printable));
        }
    }
    free(names);
    return result;
}

/* "__metadata__": {"key": "value"}; one block holds all of it, no longer than the header. */
static int tf__safetensors_metadata(tf_file *file, const cJSON *object, const tf__reader *reader)
{
    const cJSON *entry;
    char         printable[64], *at;
    int          result;

    if (!cJSON_IsObject(object)) return tf__fail(reader, TF_ERR_FORMAT, "__metadata__ is not an object");
    cJSON_ArrayForEach(entry, object)
    {
        if (!cJSON_IsString(entry)) {
            return tf__fail(reader, TF_ERR_FORMAT, "__metadata__: the value of '%s' is not a string",
                            tf__printable(entry->string, printable));
        }
        file->metadata_bytes += strlen(entry->string) + strlen(entry->valuestring) + 2;
    }
    result = tf__check_names(object, "__metadata__: ", reader);
    if (result) return result;
    file->metadata = at = (char *)malloc(file->metadata_bytes + 1);
    if (!at) return tf__fail(reader, TF_ERR_MEMORY, "out of memory");
    cJSON_ArrayForEach(entry, object)
    {
        size_t key_count = strlen(entry->string) + 1, value_count = strlen(entry->valuestring) + 1;
        memcpy(at, entry->string, key_count);
        memcpy(at + key_count, entry->valuestring, value_count);
        at += key_count + value_count;
    }
    return TF_OK;
}

static int tf__safetensors_tensors(tf_file *file, const cJSON *root, const unsigned char *data, size_t data_bytes,
                                   const tf__reader *reader)
{
    const cJSON *entry;
    size_t       i, entries = 0;
    size_t       covered = 0;
    char         printable[64];
    int          result;

    if (!cJSON_IsObject(root)) return tf__fail(reader, TF_ERR_FORMAT, "the header is JSON, but not an object");
    result = tf__check_names(root, "", reader);
    if (result) return result;
    cJSON_ArrayForEach(entry, root) ++entries;
    file->tensors = (tf_tensor *)calloc(entries + 1, sizeof *file->tensors);
    if (!file->tensors) return tf__fail(reader, TF_ERR_MEMORY, "out of memory");
    cJSON_ArrayForEach(entry, root)
    {
        if (!strcmp(entry->string, "__metadata__")) {
            result = tf__safetensors_metadata(file, entry, reader);
            if (result) return result;
            continue;
        }
        result = tf__safetensors_entry(&file->tensors[file->tensor_count], entry, data, data_bytes, reader);
        if (result) return result;
        ++file->tensor_count;
    }
    qsort(file->tensors, file->tensor_count, sizeof *file->tensors, tf__by_data);
    for (i = 0; i < file->tensor_count; ++i) {
        size_t begin = (size_t)((const unsigned char *)file->tensors[i].data - data);
        tf__printable(file->tensors[i].name, printable);
        if (begin < covered) return tf__fail(reader, TF_ERR_FORMAT, "tensor '%s' overlaps another one", printable);
        if (begin > covered) return tf__fail(reader, TF_ERR_FORMAT, "a hole in the data before tensor '%s'", printable);
        covered = begin + file->tensors[i].bytes;
    }
    if (covered != data_bytes) {
        return tf__fail(reader, TF_ERR_FORMAT, "%zu bytes of data behind the last tensor", data_bytes - covered);
    }
    return TF_OK;
}

/* A string of the parser ends at its first zero byte, so that names and values with one would be cut. */
static int tf__has_escaped_zero(const char *json, size_t count)
{
    size_t i;
    for (i = 0; i < count; ++i) {
        if (json[i] != '\\') continue;
        ++i; /* the escaped character may be a backslash */
        if (count - i >= 5 && !memcmp(json + i, "u0000", 5)) return 1;
    }
    return 0;
}

static int tf__open_safetensors(tf_file *file, const unsigned char *bytes, size_t count, const tf__reader *reader)
{
    uint64_t    header_bytes = 0;
    const char *json = (const char *)bytes + 8, *end = NULL;
    cJSON      *root;
    int         i, result;

    for (i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | bytes[i];
    if (header_bytes > count - 8) {
        return tf__fail(reader, TF_ERR_FORMAT, "the safetensors header claims %llu bytes, the file has %zu",
                        (unsigned long long)header_bytes, count);
    }
    if (header_bytes > TF__MAX_HEADER) {
        return tf__fail(reader, TF_ERR_UNSUPPORTED, "a safetensors header of %llu bytes is too large",
                        (unsigned long long)header_bytes);
    }
    if (memchr(json, 0, (size_t)header_bytes) || tf__has_escaped_zero(json, (size_t)header_bytes)) {
        return tf__fail(reader, TF_ERR_FORMAT, "the header has a zero byte in it");
    }
    root = cJSON_ParseWithLengthOpts(json, (size_t)header_bytes, &end, 0);
    if (!root) return tf__fail(reader, TF_ERR_FORMAT, "the safetensors header is not valid JSON");
    while (end < json + header_bytes && (*end == ' ' || *end == '\n' || *end == '\t' || *end == '\r')) ++end;
    if (end != json + header_bytes) {
        cJSON_Delete(root);
        return tf__fail(reader, TF_ERR_FORMAT, "the safetensors header has text behind the JSON");
    }
    file->format = TF_SAFETENSORS;
    result = tf__safetensors_tensors(file, root, bytes + 8 + header_bytes, count - 8 - (size_t)header_bytes, reader);
    cJSON_Delete(root);
    return result;
}
#endif

/* ---- opening ---------------------------------------------------------------------------- */
TF_API int tf_open_memory(tf_file *file, const void *bytes, size_t count, const char *name_for_messages, char *message,
                          size_t message_count)
{
    const unsigned char *first = (const unsigned char *)bytes;
    tf__reader           reader;
    int                  result;

    reader.file_name = name_for_messages;
    reader.message = message;
    reader.message_count = message_count;
    memset(file, 0, sizeof *file);
    if (message && message_count) message[0] = 0;
    if (count >= 6 && !memcmp(first, "\x93NUMPY", 6)) {
        result = tf__open_npy(file, first, count, &reader);
    } else if (count >= 9 && first[8] == '{') { /* the format wants the JSON to start without white space */
        result = tf__open_safetensors(file, first, count, &reader);
    } else if (count >= 9 && tf_is_safetensors_path(name_for_messages)) {
        result = tf__fail(&reader, TF_ERR_FORMAT, "the safetensors header is not a JSON object");
    } else {
        result = tf__fail(&reader, TF_ERR_FORMAT, "%s",
                          count == 0 ? "the file is empty" : "neither a .npy nor a .safetensors file (or truncated)");
    }
    if (result) tf_close(file);
    return result;
}

/* Pipes and the like cannot be mapped: read them to the end. */
static int tf__read_all(int descriptor, void **bytes, size_t *count)
{
    size_t capacity = 0;
    *bytes = NULL;
    *count = 0;
    for (;;) {
        ssize_t got;
        if (*count == capacity) {
            void *larger;
            if (capacity > SIZE_MAX / 4) return ENOMEM;
            capacity = capacity ? capacity * 2 : (size_t)1 << 16;
            larger = realloc(*bytes, capacity);
            if (!larger) return ENOMEM;
            *bytes = larger;
        }
        got = read(descriptor, (char *)*bytes + *count, capacity - *count);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno;
        if (got == 0) return 0;
        *count += (size_t)got;
    }
}

TF_API int tf_open(tf_file *file, const char *path, char *message, size_t message_count)
{
    tf__reader  reader;
    struct stat status;
    void       *bytes = NULL;
    size_t      count = 0;
    int         descriptor, result, error = 0, is_mapped = 0;

    reader.file_name = path;
    reader.message = message;
    reader.message_count = message_count;
    memset(file, 0, sizeof *file);
    descriptor = open(path, O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) return tf__fail(&reader, TF_ERR_OPEN, "%s", strerror(errno));
    if (fstat(descriptor, &status) != 0) {
        error = errno;
    } else if (S_ISREG(status.st_mode) && status.st_size > 0) {
        count = (size_t)status.st_size;
        bytes = (uint64_t)status.st_size > SIZE_MAX ? MAP_FAILED
                                                    : mmap(NULL, count, PROT_READ, MAP_PRIVATE, descriptor, 0);
        is_mapped = bytes != MAP_FAILED;
        if (!is_mapped) {
            bytes = NULL;
            error = errno;
        }
    } else if (!S_ISREG(status.st_mode)) {
        error = tf__read_all(descriptor, &bytes, &count);
    }
    close(descriptor);
    if (error) {
        free(bytes);
        return tf__fail(&reader, TF_ERR_OPEN, "%s", strerror(error));
    }
    result = tf_open_memory(file, bytes ? bytes : "", count, path, message, message_count);
    if (result) {
        if (is_mapped) munmap(bytes, count);
        else free(bytes);
        return result;
    }
    file->owned = bytes;
    file->owned_bytes = count;
    file->is_mapped = is_mapped;
    return TF_OK;
}

TF_API void tf_close(tf_file *file)
{
    size_t i;
    for (i = 0; i < file->tensor_count; ++i) free(file->tensors[i].name);
    free(file->tensors);
    free(file->metadata);
    if (file->owned && file->is_mapped) munmap(file->owned, file->owned_bytes);
    else free(file->owned);
    memset(file, 0, sizeof *file);
}

TF_API const tf_tensor *tf_find(const tf_file *file, const char *name)
{
    size_t i;
    if (!name || !name[0]) return file->tensor_count == 1 ? &file->tensors[0] : NULL;
    for (i = 0; i < file->tensor_count; ++i) {
        if (!strcmp(file->tensors[i].name, name)) return &file->tensors[i];
    }
    return NULL;
}

TF_API const char *tf_metadata(const tf_file *file, const char *key)
{
    const char *at = file->metadata, *end = at ? at + file->metadata_bytes : at;
    while (at < end) {
        const char *value = at + strlen(at) + 1;
        if (!strcmp(at, key)) return value;
        at = value + strlen(value) + 1;
    }
    return NULL;
}

/* ---- values ----------------------------------------------------------------------------- */
static float tf__f32_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float tf__f16(uint16_t half)
{
    uint32_t sign = (uint32_t)(half >> 15) << 31, exponent = half >> 10 & 31, fraction = half & 1023;
    float    magnitude;
    if (exponent == 31) return tf__f32_from_bits(sign | 0x7f800000u | fraction << 13);
    magnitude = exponent == 0 ? ldexpf((float)fraction, -24) : ldexpf((float)(fraction + 1024), (int)exponent - 25);
    return sign ? -magnitude : magnitude;
}

TF_API int tf_get_f64(const tf_tensor *tensor, int64_t first, int64_t count, double *values)
{
    size_t               bytes = tf_dtype_bytes(tensor->dtype);
    const unsigned char *at = (const unsigned char *)tensor->data + (size_t)first * bytes;
    int64_t              i;
/* memcpy because .safetensors does not align */
#define TF__LOOP(type, expression)         \
    for (i = 0; i < count; ++i) {          \
        type x;                            \
        memcpy(&x, at, sizeof x);          \
        at += sizeof x;                    \
        values[i] = (double)(expression);  \
    }                                      \
    return 1
    switch (tensor->dtype) {
    case TF_F32: TF__LOOP(float, x);
    case TF_F16: TF__LOOP(uint16_t, tf__f16(x));
    case TF_BF16: TF__LOOP(uint16_t, tf__f32_from_bits((uint32_t)x << 16));
    case TF_F64: TF__LOOP(double, x);
    case TF_I8: TF__LOOP(int8_t, x);
    case TF_I16: TF__LOOP(int16_t, x);
    case TF_I32: TF__LOOP(int32_t, x);
    case TF_I64: TF__LOOP(int64_t, x);
    case TF_U8: TF__LOOP(uint8_t, x);
    case TF_U16: TF__LOOP(uint16_t, x);
    case TF_U32: TF__LOOP(uint32_t, x);
    case TF_U64: TF__LOOP(uint64_t, x);
    case TF_BOOL: TF__LOOP(uint8_t, x != 0);
    case TF_F8_E4M3:
    case TF_F8_E5M2:
    case TF_DTYPE_COUNT: break;
    }
#undef TF__LOOP
    for (i = 0; i < count; ++i) values[i] = 0;
    return 0;
}

TF_API int tf_get_f32(const tf_tensor *tensor, int64_t first, int64_t count, float *values)
{
    double  piece[256];
    int64_t i, n;
    int     is_known = 1;
    for (; count > 0; count -= n, first += n, values += n) {
        n = count < 256 ? count : 256;
        is_known = tf_get_f64(tensor, first, n, piece);
        for (i = 0; i < n; ++i) values[i] = (float)piece[i];
    }
    return is_known;
}

/* ---- names and writing ------------------------------------------------------------------ */
TF_API int tf_is_safetensors_path(const char *path)
{
    size_t count = strlen(path), suffix = strlen(".safetensors");
    return count >= suffix && !strcmp(path + count - suffix, ".safetensors");
}

TF_API char *tf_split(const char *where, const char **name)
{
    const char *mark = strstr(where, ".safetensors:");
    char       *path = tf__copy_string(where);
    *name = "";
    if (path && mark) {
        size_t path_count = (size_t)(mark - where) + strlen(".safetensors");
        path[path_count] = 0;
        *name = where + path_count + 1;
    }
    return path;
}

TF_API int tf_write_npy_header(FILE *out, tf_dtype dtype, int rank, const int64_t *shape)
{
    char          header[512];
    unsigned char prefix[10] = {0x93, 'N', 'U', 'M', 'P', 'Y', 1, 0, 0, 0};
    int           used, i;
    size_t        count;

    if (!tf__info(dtype).npy[0] || rank < 0 || rank > TF_MAX_RANK) return TF_ERR_UNSUPPORTED;
    used = snprintf(header, sizeof header, "{'descr': '%s', 'fortran_order': False, 'shape': (", tf__info(dtype).npy);
    for (i = 0; i < rank; ++i) {
        used += snprintf(header + used, sizeof header - (size_t)used, "%s%lld%s",
                         i ? ", " : "", (long long)shape[i], rank == 1 ? "," : "");
    }
    used += snprintf(header + used, sizeof header - (size_t)used, "), }");
    count = (size_t)used;
    while ((sizeof prefix + count + 1) % 64) header[count++] = ' '; /* the data starts aligned, as numpy does it */
    header[count++] = '\n';
    prefix[8] = (unsigned char)(count & 255);
    prefix[9] = (unsigned char)(count >> 8);
    if (fwrite(prefix, 1, sizeof prefix, out) != sizeof prefix || fwrite(header, 1, count, out) != count)
        return TF_ERR_OPEN;
    return TF_OK;
}

/* Appends to a growing string; *text is freed and NULL once memory is short. */
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
static void tf__append(char **text, size_t *used, const char *format, ...)
{
    va_list args;
    char   *larger;
    int     count;
    if (!*text) return;
    va_start(args, format);
    count = vsnprintf(NULL, 0, format, args);
    va_end(args);
    larger = count < 0 ? NULL : (char *)realloc(*text, *used + (size_t)count + 1);
    if (!larger) {
        free(*text);
        *text = NULL;
        return;
    }
    *text = larger;
    va_start(args, format);
    vsnprintf(*text + *used, (size_t)count + 1, format, args);
    va_end(args);
    *used += (size_t)count;
}

static void tf__append_string(char **text, size_t *used, const char *string)
{
    tf__append(text, used, "\"");
    for (; *string; ++string) {
        unsigned char c = (unsigned char)*string;
        if (c == '"' || c == '\\') tf__append(text, used, "\\%c", c);
        else if (c < 32) tf__append(text, used, "\\u%04x", c);
        else tf__append(text, used, "%c", c);
    }
    tf__append(text, used, "\"");
}

TF_API int tf_write_safetensors_header_with(FILE *out, const tf_tensor *tensors, size_t tensor_count,
                                            const char *const *metadata, size_t metadata_count)
{
    char         *json = tf__copy_string("{"); /* realloc'ed as it grows */
    size_t        used = 1, offset = 0, i;
    int           r, result;
    unsigned char length[8];

    for (i = 0; i < metadata_count; ++i) {
        tf__append(&json, &used, i ? "," : "\"__metadata__\":{");
        tf__append_string(&json, &used, metadata[2 * i]);
        tf__append(&json, &used, ":");
        tf__append_string(&json, &used, metadata[2 * i + 1]);
    }
    if (metadata_count) tf__append(&json, &used, tensor_count ? "}," : "}");
    for (i = 0; i < tensor_count; ++i) {
        tf_tensor tensor = tensors[i];
        if (!tf__measure(&tensor) || tensor.bytes > SIZE_MAX - offset) {
            free(json);
            return TF_ERR_UNSUPPORTED;
        }
        if (i) tf__append(&json, &used, ",");
        tf__append_string(&json, &used, tensor.name);
        tf__append(&json, &used, ":{\"dtype\":\"%s\",\"shape\":[", tf_dtype_name(tensor.dtype));
        for (r = 0; r < tensor.rank; ++r) tf__append(&json, &used, "%s%lld", r ? "," : "", (long long)tensor.shape[r]);
        tf__append(&json, &used, "],\"data_offsets\":[%zu,%zu]}", offset, offset + tensor.bytes);
        offset += tensor.bytes;
    }
    tf__append(&json, &used, "}");
    while (json && (8 + used) % 64) tf__append(&json, &used, " "); /* trailing space is legal and aligns the data */
    if (!json) return TF_ERR_MEMORY;
    for (i = 0; i < 8; ++i) length[i] = (unsigned char)((uint64_t)used >> 8 * i & 255);
    result = fwrite(length, 1, 8, out) == 8 && fwrite(json, 1, used, out) == used ? TF_OK : TF_ERR_OPEN;
    free(json);
    return result;
}

TF_API int tf_write_safetensors_header(FILE *out, const tf_tensor *tensors, size_t tensor_count)
{
    return tf_write_safetensors_header_with(out, tensors, tensor_count, NULL, 0);
}

#endif /* TF_IMPLEMENTATION */
