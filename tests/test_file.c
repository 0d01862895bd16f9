/* Tensor files: what is written is read again, and __metadata__ (hostile files: also test_tool.c and fuzz_file.c).
   TF_NO_CJSON: built without cJSON, .safetensors cannot be read and is left out. */
#define _XOPEN_SOURCE 700
#define TF_IMPLEMENTATION
#ifdef SVG2_TOOL_NO_CJSON
#  define TF_NO_CJSON
#endif
#include "../examples/tensor_file.h" /* first: test.h has a type named tensor */

#include "test.h"

#ifdef TF_NO_CJSON
#  define NEEDS_CJSON() skip()
#else
#  define NEEDS_CJSON() ((void)0)
#endif

static unsigned char bytes[1 << 16];

/* A header, then as many zero bytes as the tensors need: the bytes are in the array above, their count is returned. */
static size_t written(const tf_tensor *tensors, size_t tensor_count, const char *const *metadata, size_t metadata_count)
{
    FILE *f = tmpfile();
    size_t n = 0;
    assert_non_null(f);
    assert_int_equal(tf_write_safetensors_header_with(f, tensors, tensor_count, metadata, metadata_count), TF_OK);
    for (size_t i = 0; i < tensor_count; ++i) {
        size_t data = tf_dtype_bytes(tensors[i].dtype);
        for (int r = 0; r < tensors[i].rank; ++r) data *= (size_t)tensors[i].shape[r];
        for (; data; --data) assert_int_equal(putc(0, f), 0);
    }
    rewind(f);
    n = fread(bytes, 1, sizeof bytes, f);
    assert_true(n > 8 && n < sizeof bytes && !fclose(f));
    return n;
}
static tf_tensor tensor_named(char *name, tf_dtype dtype, int rank, int64_t a, int64_t b)
{
    tf_tensor t;
    memset(&t, 0, sizeof t);
    t.name = name; t.dtype = dtype; t.rank = rank;
    t.shape[0] = a; t.shape[1] = b;
    return t;
}
static size_t from_json(const char *json)
{
    size_t n = strlen(json);
    for (int i = 0; i < 8; ++i) bytes[i] = (unsigned char)(n >> (8 * i) & 255);
    memcpy(bytes + 8, json, n);
    return 8 + n;
}

static void test_round_trip(void **state)
{
    (void)state;
    NEEDS_CJSON();
    char q[] = "q", odd[] = "a \"name\"\\ with \x01 and \xc3\xa9";
    tf_tensor t[3];
    tf_file file;
    char message[TF_MESSAGE_COUNT];
    static const char *const metadata[] = {
        "format", "svg2 tiny", "", "empty key", "empty value", "", "json", "{\"a\": [1, 2], \"b\": \"\\\"\"}", "lines", "one\ntwo\r\n\tthree\x01\x1f\x7f",
        "text \xe2\x82\xac", "caf\xc3\xa9 \xf0\x9f\x98\x80", "slashes", "\\u0000 \\\\ / \\", "q", "not the tensor",
    };
    size_t pairs = COUNT(metadata) / 2;
    t[0] = tensor_named(q, TF_BF16, 2, 3, 5);
    t[1] = tensor_named(odd, TF_F32, 1, 7, 0);
    t[2] = tensor_named(message, TF_U8, 0, 0, 0);
    snprintf(message, sizeof message, "scalar");
    for (size_t tensors = 0; tensors <= 3; ++tensors)
        for (size_t m = 0; m <= pairs; m += m ? pairs - 1 : 1) {
            size_t n = written(t, tensors, metadata, m);
            char why[TF_MESSAGE_COUNT];
            if (tf_open_memory(&file, bytes, n, "x.safetensors", why, sizeof why)) fail_msg("%s", why);
            assert_int_equal(file.tensor_count, tensors);
            for (size_t i = 0; i < tensors; ++i) {
                const tf_tensor *got = tf_find(&file, t[i].name);
                assert_true(got && got->dtype == t[i].dtype && got->rank == t[i].rank);
                assert_true(((const unsigned char *)got->data - bytes) % 64 == 0 || i > 0);
                for (int r = 0; r < got->rank; ++r) assert_true(got->shape[r] == t[i].shape[r]);
            }
            for (size_t i = 0; i < pairs; ++i) {
                const char *value = tf_metadata(&file, metadata[2 * i]);
                if (i < m) { assert_non_null(value); assert_string_equal(value, metadata[2 * i + 1]); }
                else assert_null(value);
            }
            assert_null(tf_metadata(&file, "forma"));
            assert_null(tf_metadata(&file, "svg2 tiny")); /* a value is not a key */
            tf_close(&file);
            assert_null(tf_metadata(&file, "format"));
        }
    FILE *one = tmpfile(); /* none = the plain writer */
    size_t n = written(t, 3, 0, 0), got;
    unsigned char plain[2048];
    assert_true(one && tf_write_safetensors_header(one, t, 3) == TF_OK);
    rewind(one);
    got = fread(plain, 1, sizeof plain, one);
    fclose(one);
    assert_int_equal(got, n - 3 * 5 * 2 - 7 * 4 - 1);
    assert_memory_equal(plain, bytes, got);
}

static void test_npy_has_none(void **state)
{
    (void)state;
    int64_t shape[2] = {2, 3};
    tf_file file;
    char why[TF_MESSAGE_COUNT];
    FILE *f = tmpfile();
    assert_true(f && tf_write_npy_header(f, TF_U8, 2, shape) == TF_OK && fwrite("abcdef", 1, 6, f) == 6);
    rewind(f);
    size_t n = fread(bytes, 1, sizeof bytes, f);
    fclose(f);
    if (tf_open_memory(&file, bytes, n, "x.npy", why, sizeof why)) fail_msg("%s", why);
    assert_null(tf_metadata(&file, "descr"));
    assert_true(tf_find(&file, 0)->count == 6);
    tf_close(&file);
}

static void test_metadata_of_others(void **state)
{
    (void)state;
    NEEDS_CJSON();
    tf_file file;
    char why[TF_MESSAGE_COUNT];
    size_t n = from_json("{\"__metadata__\" : { \"a\\u0062\\n\" : \"\\ud83d\\ude00\\/\\\\u0000\" , \"a\" : \"\" } }  \n");
    if (tf_open_memory(&file, bytes, n, "x.safetensors", why, sizeof why)) fail_msg("%s", why);
    assert_string_equal(tf_metadata(&file, "ab\n"), "\xf0\x9f\x98\x80/\\u0000");
    assert_string_equal(tf_metadata(&file, "a"), "");
    assert_null(tf_metadata(&file, "b"));
    tf_close(&file);
    static const struct { const char *json, *message; } bad[] = {
        {"{\"__metadata__\":{\"a\":1}}", "__metadata__: the value of 'a' is not a string"},
        {"{\"__metadata__\":{\"a\":null}}", "__metadata__: the value of 'a' is not a string"},
        {"{\"__metadata__\":{\"b\":\"\",\"a\":{\"b\":\"c\"}}}", "__metadata__: the value of 'a' is not a string"},
        {"{\"__metadata__\":[\"a\"]}", "__metadata__ is not an object"},
        {"{\"__metadata__\":\"a\"}", "__metadata__ is not an object"},
        {"{\"__metadata__\":{\"a\":\"1\",\"b\":\"2\",\"\\u0061\":\"3\"}}", "__metadata__: the name 'a' occurs twice"},
        {"{\"__metadata__\":{\"a\":\"1\"},\"__metadata__\":{\"a\":\"1\"}}", "the name '__metadata__' occurs twice"},
        {"{\"__metadata__\":{\"a\":\"1\\u0000\"}}", "the header has a zero byte in it"},
        {"{\"__metadata__\":{\"a\\\\\\u0000\":\"1\"}}", "the header has a zero byte in it"},
        {"{\"__metadata__\":{\"a\":\"\\ud83d\"}}", "the safetensors header is not valid JSON"},
    };
    for (int i = 0; i < COUNT(bad); ++i) {
        n = from_json(bad[i].json);
        assert_int_equal(tf_open_memory(&file, bytes, n, "x.safetensors", why, sizeof why), TF_ERR_FORMAT);
        if (strncmp(why, "x.safetensors: ", 15) || strcmp(why + 15, bad[i].message)) fail_msg("case %d: %s", i, why);
        assert_true(!file.metadata && !file.tensors && !tf_metadata(&file, "a"));
    }
    for (n = 0; n < 8; ++n) /* cut anywhere */
        assert_true(tf_open_memory(&file, bytes, n, "x.safetensors", why, sizeof why) != TF_OK);
}

static void test_full_disk(void **state)
{
    (void)state;
    static const char *const pair[2] = {"key", "value"};
    FILE *f = fopen("/dev/full", "w");
    if (!f) skip();
    setvbuf(f, 0, _IONBF, 0);
    assert_int_equal(tf_write_safetensors_header_with(f, 0, 0, pair, 1), TF_ERR_OPEN);
    fclose(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(test_round_trip), TEST(test_npy_has_none), TEST(test_metadata_of_others), TEST(test_full_disk)};
    return cmocka_run_group_tests_name("file", tests, 0, 0);
}
