/* Bytes become a .npy or .safetensors file. Checked under ASan and UBSan: no crash and no read outside; every tensor of an
   accepted file lies inside the bytes; a refused file has a message of one line. */
#define _XOPEN_SOURCE 700
#ifndef TF_NO_CJSON
#  include <cjson/cJSON.h>
#endif
#define TF_IMPLEMENTATION
#include "../examples/tensor_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);
size_t fuzz_seed(int index, uint8_t *bytes, size_t capacity);

static void check(int ok, const char *what)
{
    if (ok) return;
    fprintf(stderr, "fuzz_file: %s\n", what);
    abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count)
{
    tf_file file;
    char message[TF_MESSAGE_COUNT];
    uint8_t *copy = (uint8_t *)malloc(count ? count : 1); /* its end is the end of the allocation */
    if (!copy) return 0;
    if (count) memcpy(copy, bytes, count);
    memset(message, 0, sizeof message);
    if (tf_open_memory(&file, copy, count, "input", message, sizeof message) != TF_OK) {
        size_t n = strlen(message);
        check(n > 8 && n < sizeof message && !strchr(message, '\n') && strstr(message, "input"), "message");
        check(!file.tensor_count && !file.tensors && !file.metadata, "a refused file is not empty");
    } else {
        for (size_t i = 0; i < file.tensor_count; ++i) {
            const tf_tensor *t = &file.tensors[i];
            const uint8_t *data = (const uint8_t *)t->data;
            int64_t elements = 1;
            check(t->rank >= 0 && t->rank <= TF_MAX_RANK && t->count >= 0, "rank and count");
            check(!t->bytes || (data >= copy && t->bytes <= count && data + t->bytes <= copy + count), "data outside the file");
            for (int r = 0; r < t->rank; ++r) {
                check(t->shape[r] >= 0, "negative extent");
                elements *= t->shape[r];
            }
            check(elements == t->count && (size_t)elements * tf_dtype_bytes(t->dtype) == t->bytes, "shape and bytes");
            if (t->count > 0) {
                float first, last;
                double d;
                tf_get_f32(t, 0, 1, &first);
                tf_get_f32(t, t->count - 1, 1, &last);
                tf_get_f64(t, t->count - 1, 1, &d);
            }
            tf_find(&file, t->name);
        }
        tf_find(&file, 0);
        tf_find(&file, "q");
        check(!tf_metadata(&file, "no such key"), "metadata out of nothing");
        const char *key = file.metadata;
        for (size_t used = 0; used < file.metadata_bytes;) {
            const char *value = key + strlen(key) + 1;
            check(tf_metadata(&file, key) == value, "metadata"); /* no key is there twice */
            used += strlen(key) + strlen(value) + 2;
            check(used <= file.metadata_bytes && used <= count, "metadata longer than the file");
            key = value + strlen(value) + 1;
        }
        tf_close(&file);
    }
    free(copy);
    return 0;
}

static size_t npy(uint8_t *bytes, int version, const char *header, size_t data)
{
    size_t n = strlen(header);
    memcpy(bytes, "\x93NUMPY", 6);
    bytes[6] = (uint8_t)version;
    bytes[7] = 0;
    bytes[8] = (uint8_t)(n & 255);
    bytes[9] = (uint8_t)(n >> 8);
    if (version > 1) bytes[10] = bytes[11] = 0;
    size_t at = version > 1 ? 12 : 10;
    memcpy(bytes + at, header, n);
    memset(bytes + at + n, 0x3f, data);
    return at + n + data;
}
static size_t safetensors(uint8_t *bytes, const char *json, size_t data)
{
    size_t n = strlen(json);
    for (int i = 0; i < 8; ++i) bytes[i] = (uint8_t)(n >> (8 * i) & 255);
    memcpy(bytes + 8, json, n);
    memset(bytes + 8 + n, 0x3f, data);
    return 8 + n + data;
}
size_t fuzz_seed(int index, uint8_t *b, size_t capacity)
{
    if (capacity < 1024) return 0;
    switch (index) {
    case 0: return npy(b, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 3, 4), }\n", 96);
    case 1: return npy(b, 2, "{'descr': '<f2', 'fortran_order': False, 'shape': (2, 8), }\n", 32);
    case 2: return npy(b, 3, "{'descr': '|u1', 'fortran_order': False, 'shape': (), }\n", 1);
    case 3: return npy(b, 1, "{'shape': (3,), 'fortran_order': False, 'descr': '<i8'}\n", 24);
    case 4: return npy(b, 1, "{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }\n", 16);
    case 5: return npy(b, 1, "{'descr': '>f4', 'fortran_order': False, 'shape': (2, 2), }\n", 16);
    case 6: return npy(b, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 4), }\n", 16);
    case 7: return npy(b, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 5), }\n", 0);
    case 8: return safetensors(b, "{\"q\":{\"dtype\":\"BF16\",\"shape\":[1,2,3,4],\"data_offsets\":[0,48]}}", 48);
    case 9: return safetensors(b, "{\"__metadata__\":{\"a\":\"b\"},\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
                                  "\"k\":{\"dtype\":\"F16\",\"shape\":[4],\"data_offsets\":[8,16]}}", 16);
    case 10: return safetensors(b, "{\"q\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},\"k\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]}}", 12);
    case 11: return safetensors(b, "{\"q\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}   ", 4);
    case 12: return safetensors(b, "{}", 0);
    case 13: return safetensors(b, "{\"q\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]}}", 0);
    case 14: return safetensors(b, "{\"q\":{\"dtype\":\"F8_E4M3\",\"shape\":[3],\"data_offsets\":[0,3]}}", 3);
    case 15: return safetensors(b, "{\"__metadata__\":{\"\":\"\",\"caf\\u00e9\":\"\\\\u0000\",\"b\":\"\\ud83d\\ude00\\n\"}}", 0);
    case 16: return safetensors(b, "{\"__metadata__\":{\"a\":\"b\",\"a\":\"c\"}}", 0);
    case 17: return safetensors(b, "{\"__metadata__\":{\"a\":1}}", 0);
    case 18: return safetensors(b, "{\"__metadata__\":{\"a\":\"1\\u00002\"}}", 0);
    default: return 0;
    }
}
