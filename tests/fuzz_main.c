/* A driver for the fuzz harnesses where libFuzzer is absent: the seeds, their truncations, and random changes of them.

   fuzz_x [seconds]               fuzz_x --write-seeds DIR: the seeds as files, for libFuzzer */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t count);
size_t fuzz_seed(int index, uint8_t *bytes, size_t capacity);

static uint64_t random_state = 1;
static uint32_t random32(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 33);
}

int main(int argc, char **argv)
{
    static uint8_t seed[4096], input[8192];
    size_t n;
    long runs = 0;
    if (argc == 3 && strcmp(argv[1], "--write-seeds") == 0) {
        for (int i = 0; (n = fuzz_seed(i, seed, sizeof seed)) > 0; ++i) {
            char path[1024];
            snprintf(path, sizeof path, "%s/seed_%02d", argv[2], i);
            FILE *f = fopen(path, "wb");
            if (!f || fwrite(seed, 1, n, f) != n || fclose(f)) return 1;
        }
        return 0;
    }
    time_t end = time(0) + (argc > 1 ? atol(argv[1]) : 5);
    for (int i = 0; (n = fuzz_seed(i, seed, sizeof seed)) > 0; ++i)
        for (size_t k = 0; k <= n; ++k, ++runs) LLVMFuzzerTestOneInput(seed, k);
    while (time(0) < end)
        for (int i = 0; (n = fuzz_seed(i, seed, sizeof seed)) > 0; ++i, ++runs) {
            memcpy(input, seed, n);
            for (uint32_t k = 1 + random32() % 6; k; --k) {
                size_t at = random32() % n, length = 1 + random32() % 8;
                switch (random32() % 5) {
                case 0: input[at] = (uint8_t)random32(); break;
                case 1: input[at] ^= (uint8_t)(1u << random32() % 8); break;
                case 2: input[at] = random32() & 1 ? 255 : 0; break;
                case 3: if (at + length < n) { memmove(input + at, input + at + length, n - at - length); n -= length; } break;
                default: if (n + length < sizeof input) { memmove(input + at + length, input + at, n - at); n += length; }
                }
            }
            LLVMFuzzerTestOneInput(input, n);
        }
    printf("%ld inputs\n", runs);
    return 0;
}
