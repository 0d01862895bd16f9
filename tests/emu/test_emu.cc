/* test_emu.cc - tests of the emulation itself

   What the engine computes is compared with the layouts of the PTX ISA, written here as that document writes them, on
   small integers, so that every comparison is of bits. What the engine must report is run in a process of its own,
   which has to end with that report; correct code has to be silent, in the race checker above all.

     test_emu             everything
     test_emu NAME        only tests and reports of this name
     test_emu --case NAME one case of a report, in this process

   >>tools        checks, launches, memory
   >>mma          fragments, ldmatrix, stmatrix
   >>wgmma        descriptors, registers
   >>bulk         tensor maps, swizzles, store groups
   >>async        cp.async, mbarriers
   >>warp         shuffles, votes, matches, reductions
   >>block        barriers
   >>atomics
   >>arithmetic   bits, conversions
   >>launches     order, limits, streams, graphs, memory
   >>reports      what must be refused, and what must not be */
#include <algorithm>
#include <functional>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

/* ==== >>tools ================================================================================================ */
#if defined(__SANITIZE_THREAD__)
#  define BUILD "tsan"
#elif defined(__SANITIZE_ADDRESS__)
#  define BUILD "asan"
#elif defined(__has_feature)
#  if __has_feature(thread_sanitizer)
#    define BUILD "tsan"
#  elif __has_feature(address_sanitizer)
#    define BUILD "asan"
#  endif
#endif
#ifndef BUILD
#  define BUILD "plain"
#endif

static int checks_failed; /* in the running test */

static bool check(bool is_good, const char *text, int line)
{
    if (!is_good && checks_failed++ < 5) printf("fail: line %d: %s\n", line, text);
    return is_good;
}
#define CHECK(x) check(x, #x, __LINE__)

static void must(cudaError_t e, int line)
{
    if (e == cudaSuccess) return;
    printf("fail: line %d: %s\n", line, cudaGetErrorString(e));
    exit(1);
}
#define MUST(x) must(x, __LINE__)

template <class... P, class... A>
static cudaError_t try_launch_clusters(unsigned cluster, dim3 grid, dim3 block, size_t smem, void (*kernel)(P...),
                                       A... args)
{
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attribute;
    memset(static_cast<void *>(&config), 0, sizeof config);
    memset(static_cast<void *>(&attribute), 0, sizeof attribute);
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = cluster;
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = cluster != 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem;
    return cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

template <class... P, class... A>
static cudaError_t try_launch(dim3 grid, dim3 block, size_t smem, void (*kernel)(P...), A... args)
{
    return try_launch_clusters(1, grid, block, smem, kernel, args...);
}

template <class... P, class... A>
static void launch_clusters(unsigned cluster, dim3 grid, dim3 block, size_t smem, void (*kernel)(P...), A... args)
{
    MUST(try_launch_clusters(cluster, grid, block, smem, kernel, args...));
    MUST(cudaDeviceSynchronize());
}

template <class... P, class... A>
static void launch(dim3 grid, dim3 block, size_t smem, void (*kernel)(P...), A... args)
{
    if (smem > 48 * 1024)
        MUST(cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem));
    MUST(try_launch(grid, block, smem, kernel, args...));
    MUST(cudaDeviceSynchronize());
}

/* device memory with a copy on the host */
template <class T> struct Buffer {
    T *device = nullptr;
    std::vector<T> host;

    explicit Buffer(size_t count) : host(count) { MUST(cudaMalloc((void **)&device, count * sizeof(T))); }
    explicit Buffer(const std::vector<T> &from) : Buffer(from.size())
    {
        host = from;
        upload();
    }
    ~Buffer() { MUST(cudaFree(device)); }
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;

    void upload() { MUST(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice)); }
    const std::vector<T> &download()
    {
        MUST(cudaMemcpy(host.data(), device, host.size() * sizeof(T), cudaMemcpyDeviceToHost));
        return host;
    }
    void fill(T v)
    {
        std::fill(host.begin(), host.end(), v);
        upload();
    }
};

static uint64_t random_state = 88172645463325252ull;
static uint32_t random_bits()
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}
static int random_int(int low, int high) { return low + (int)(random_bits() % (unsigned)(high - low + 1)); }

static uint16_t bits16(float v, cuemu::Type type)
{
    if (type == cuemu::Type::bf16) {
        const __nv_bfloat16 h = __float2bfloat16(v);
        uint16_t u;
        memcpy(&u, &h, 2);
        return u;
    }
    const __half h = __float2half(v);
    uint16_t u;
    memcpy(&u, &h, 2);
    return u;
}

static const char *const orders[] = {"rr", "first", "last", "random"};
static const char *const times[] = {"early", "late", "mixed"};
static const cuemu::Type types[] = {cuemu::Type::bf16, cuemu::Type::f16};

#define SMEM(name, align) unsigned char *name = (unsigned char *)cuemu::dyn_smem(align, __LINE__)

/* ==== >>mma ================================================================================================== */
/* PTX ISA, Matrix Fragments for mma.m16n8k16 with floating point type */
static int a_row(int lane, int i) { return (i < 2 || (i >= 4 && i < 6)) ? lane / 4 : lane / 4 + 8; }
static int a_col(int lane, int i) { return i < 4 ? lane % 4 * 2 + i % 2 : lane % 4 * 2 + i % 2 + 8; }
static int b_row(int lane, int i) { return i < 2 ? lane % 4 * 2 + i % 2 : lane % 4 * 2 + i % 2 + 8; }
static int b_col(int lane, int) { return lane / 4; }
static int c_row(int lane, int i) { return i < 2 ? lane / 4 : lane / 4 + 8; }
static int c_col(int lane, int i) { return lane % 4 * 2 + i % 2; }

static void mma_kernel(const uint16_t *a, const uint16_t *b, const float *c, float *d, cuemu::Type type, bool in_place)
{
    const int lane = (int)threadIdx.x & 31, job = (int)(threadIdx.x / 32 + blockIdx.x * (blockDim.x / 32));
    a += job * 256, b += job * 128, c += job * 128, d += job * 128;
    uint32_t ra[4], rb[2];
    float rc[4], rd[4];
    for (int i = 0; i < 8; i += 2)
        ra[i / 2] = a[a_row(lane, i) * 16 + a_col(lane, i)] | (uint32_t)a[a_row(lane, i + 1) * 16 + a_col(lane, i + 1)]
                                                                  << 16;
    for (int i = 0; i < 4; i += 2)
        rb[i / 2] = b[b_row(lane, i) * 8 + b_col(lane, i)] | (uint32_t)b[b_row(lane, i + 1) * 8 + b_col(lane, i + 1)]
                                                                 << 16;
    for (int i = 0; i < 4; ++i) rc[i] = c[c_row(lane, i) * 8 + c_col(lane, i)];
    cuemu::mma_m16n8k16(in_place ? rc : rd, ra, rb, rc, type, __LINE__);
    for (int i = 0; i < 4; ++i) d[c_row(lane, i) * 8 + c_col(lane, i)] = in_place ? rc[i] : rd[i];
}

static void mma()
{
    const int jobs = 12;
    for (const char *order : orders)
        for (cuemu::Type type : types) {
            cuemu::configure(order, "late", 5);
            std::vector<float> fa((size_t)jobs * 256), fb((size_t)jobs * 128);
            std::vector<uint16_t> ha(fa.size()), hb(fb.size());
            std::vector<float> hc((size_t)jobs * 128);
            for (size_t i = 0; i < fa.size(); ++i) ha[i] = bits16(fa[i] = (float)random_int(-60, 60), type);
            for (size_t i = 0; i < fb.size(); ++i) hb[i] = bits16(fb[i] = (float)random_int(-60, 60), type);
            for (float &x : hc) x = (float)random_int(-1000, 1000);
            Buffer<uint16_t> a(ha), b(hb);
            Buffer<float> c(hc), d((size_t)jobs * 128);
            launch(3, 128, 0, mma_kernel, a.device, b.device, c.device, d.device, type, order[0] == 'r');
            d.download();
            for (int job = 0; job < jobs; ++job)
                for (int i = 0; i < 16; ++i)
                    for (int j = 0; j < 8; ++j) {
                        double sum = (double)hc[(size_t)(job * 128 + i * 8 + j)];
                        for (int k = 0; k < 16; ++k)
                            sum += (double)fa[(size_t)(job * 256 + i * 16 + k)] *
                                   (double)fb[(size_t)(job * 128 + k * 8 + j)];
                        CHECK((double)d.host[(size_t)(job * 128 + i * 8 + j)] == sum);
                    }
        }
}

/* every 16-bit pattern, times one */
static void mma_values()
{
    cuemu::configure("rr", "late", 1);
    for (cuemu::Type type : types) {
        const int jobs = 256;
        std::vector<uint16_t> ha((size_t)jobs * 256), hb((size_t)jobs * 128);
        for (size_t i = 0; i < ha.size(); ++i) ha[i] = 0;
        for (size_t i = 0; i < 65536;
             ++i) { /* one pattern a row, in the column that b picks: others must not disturb */
            const size_t job = i % 256, row = i / 256 % 16, k = i / 4096;
            ha[job * 256 + row * 16 + k] = (uint16_t)i;
        }
        /* of 16 products, the one with k = column is kept: n has 8, so twice */
        for (int part = 0; part < 2; ++part) {
            for (size_t job = 0; job < (size_t)jobs; ++job)
                for (size_t k = 0; k < 16; ++k)
                    for (size_t n = 0; n < 8; ++n)
                        hb[job * 128 + k * 8 + n] = bits16(k == n + 8 * (size_t)part ? 1.f : 0.f, type);
            Buffer<uint16_t> a(ha), b(hb);
            Buffer<float> c((size_t)jobs * 128), d((size_t)jobs * 128);
            c.fill(0);
            launch(jobs, 32, 0, mma_kernel, a.device, b.device, c.device, d.device, type, false);
            d.download();
            for (size_t i = 0; i < 65536; ++i) {
                const size_t job = i % 256, row = i / 256 % 16, k = i / 4096;
                if (k / 8 != (size_t)part) continue;
                bool is_finite = true; /* an Inf or NaN elsewhere in the row makes NaN of 0 * Inf */
                for (size_t other = 0; other < 16; ++other) {
                    const unsigned h = ha[job * 256 + row * 16 + other];
                    is_finite =
                        is_finite && (type == cuemu::Type::bf16 ? (h & 0x7f80) != 0x7f80 : (h & 0x7c00) != 0x7c00);
                }
                const float got = d.host[job * 128 + row * 8 + k % 8];
                float want;
                if (type == cuemu::Type::bf16) {
                    want = __uint_as_float((uint32_t)i << 16);
                } else {
                    __half_raw raw;
                    raw.x = (unsigned short)i;
                    want = __half2float(__half(raw));
                }
                CHECK(is_finite ? got == want : std::isnan(got) || std::isinf(got));
            }
        }
    }
}

static void ldmatrix_kernel(uint32_t *out, int num, bool trans)
{
    SMEM(smem, 16);
    uint16_t *words = (uint16_t *)(void *)smem;
    const int lane = (int)threadIdx.x;
    /* Element (r, c) of matrix m is 64 m + 8 r + c. Rows are scattered: 8 m + r lies at 16-byte unit 5 (8 m + r) % 32. */
    for (int i = lane; i < 256; i += 32) words[(5 * (i / 8)) % 32 * 8 + i % 8] = (uint16_t)i;
    __syncwarp();
    uint32_t r[4] = {~0u, ~0u, ~0u, ~0u};
    const uint32_t address =
        lane < 8 * num ? cuemu::smem_addr(smem) + (uint32_t)((5 * lane) % 32 * 16) : 3; /* others: ignored */
    cuemu::ldmatrix(address, r, num, trans, __LINE__);
    for (int m = 0; m < 4; ++m) out[lane * 4 + m] = r[m];
}

static void ldmatrix()
{
    for (const char *order : orders)
        for (int num : {1, 2, 4})
            for (bool trans : {false, true}) {
                cuemu::configure(order, "late", 3);
                Buffer<uint32_t> out(128);
                launch(1, 32, 512, ldmatrix_kernel, out.device, num, trans);
                out.download();
                for (int lane = 0; lane < 32; ++lane)
                    for (int m = 0; m < 4; ++m) {
                        const int major = lane / 4, minor = lane % 4 * 2;
                        const int first = trans ? minor * 8 + major : major * 8 + minor;
                        const int second = trans ? (minor + 1) * 8 + major : major * 8 + minor + 1;
                        const uint32_t want = (uint32_t)(64 * m + first) | (uint32_t)(64 * m + second) << 16;
                        CHECK(out.host[(size_t)(lane * 4 + m)] == (m < num ? want : ~0u));
                    }
            }
    const uint64_t before = cuemu::stats.ldmatrix_conflicts;
    Buffer<uint32_t> out(128);
    launch(1, 32, 512, ldmatrix_kernel, out.device, 4, false);
    CHECK(cuemu::stats.ldmatrix_conflicts == before); /* 5 is odd: 8 rows lie in 8 different banks */
}

static void stmatrix_kernel(uint16_t *out, int num, bool trans)
{
    SMEM(smem, 16);
    uint16_t *words = (uint16_t *)(void *)smem;
    const int lane = (int)threadIdx.x;
    for (int i = lane; i < 256; i += 32) words[i] = 0xffff;
    __syncwarp();
    uint32_t r[4];
    for (int m = 0; m < 4; ++m) { /* the element at (row, column) of matrix m is 64 m + 8 row + column */
        const int major = lane / 4, minor = lane % 4 * 2;
        const int first = trans ? minor * 8 + major : major * 8 + minor;
        const int second = trans ? (minor + 1) * 8 + major : major * 8 + minor + 1;
        r[m] = (uint32_t)(64 * m + first) | (uint32_t)(64 * m + second) << 16;
    }
    cuemu::stmatrix(lane < 8 * num ? cuemu::smem_addr(smem) + (uint32_t)((5 * lane) % 32 * 16) : 3, r, num, trans,
                    __LINE__);
    __syncwarp();
    for (int i = lane; i < 256; i += 32) out[i] = words[(5 * (i / 8)) % 32 * 8 + i % 8];
}

static void stmatrix()
{
    for (const char *order : orders)
        for (int num : {1, 2, 4})
            for (bool trans : {false, true}) {
                cuemu::configure(order, "late", 3);
                Buffer<uint16_t> out(256);
                launch(1, 32, 512, stmatrix_kernel, out.device, num, trans);
                out.download();
                for (int i = 0; i < 256; ++i) CHECK(out.host[(size_t)i] == (i < 64 * num ? i : 0xffff));
            }
}

/* ==== >>wgmma ================================================================================================ */
/* Where an operand's elements lie: the tile as rows of 16-byte chunks, the chunks of a row permuted by its number. */
enum Swizzle { NONE, S32, S64, S128 };
static int chunks_of(Swizzle s) { return s == NONE ? 1 : s == S32 ? 2 : s == S64 ? 4 : 8; }
static int permuted(Swizzle s, int row, int chunk)
{
    switch (s) {
    case S32:
        return chunk ^ (row >> 2 & 1);
    case S64:
        return chunk ^ (row >> 1 & 3);
    case S128:
        return chunk ^ (row & 7);
    default:
        return chunk;
    }
}

struct Operand {
    Swizzle swizzle;
    int is_mn_major, extent; /* m or n */
    int leading, stride;     /* byte offsets, as in the descriptor */
    int slice;               /* which 16 of k, where a row of a K-major tile holds more than that */

    int bytes() const
    {
        const int w = chunks_of(swizzle);
        if (!is_mn_major) return swizzle == NONE ? extent * 32 : (extent + 7) / 8 * 8 * w * 16;
        return swizzle == NONE ? extent * 32 : (extent + 8 * w - 1) / (8 * w) * 16 * w * 16;
    }
    /* byte offset of element (i, k), i along m or n */
    int at(int i, int k) const
    {
        const int w = chunks_of(swizzle);
        if (swizzle == NONE) /* 8x8 blocks of 128 bytes, each contiguous, rows along the contiguous dimension */
            return is_mn_major ? i / 8 * stride + k / 8 * leading + k % 8 * 16 + i % 8 * 2
                               : i / 8 * stride + k / 8 * leading + i % 8 * 16 + k % 8 * 2;
        if (!is_mn_major)
            return i / 8 * stride + i % 8 * w * 16 + permuted(swizzle, i % 8, slice * 2 + k / 8) * 16 + k % 8 * 2;
        return i / (8 * w) * leading + k / 8 * stride + k % 8 * w * 16 + permuted(swizzle, k % 8, i / 8 % w) * 16 +
               i % 8 * 2;
    }
    uint64_t descriptor(uint32_t start) const
    {
        static const uint64_t mode[] = {0, 3, 2, 1};
        if (swizzle != NONE && !is_mn_major) start += (uint32_t)slice * 32;
        return (uint64_t)(start >> 4 & 0x3fff) | (uint64_t)(leading >> 4) << 16 | (uint64_t)(stride >> 4) << 32 |
               mode[swizzle] << 62;
    }
};

static Operand operand(Swizzle swizzle, bool is_mn_major, int extent, int slice)
{
    const int w = chunks_of(swizzle);
    Operand o{swizzle, is_mn_major, extent, 16, 0, slice};
    if (swizzle == NONE) {
        if (is_mn_major)
            o.stride = 128, o.leading = extent / 8 * 128;
        else
            o.leading = 128, o.stride = 256;
        if (is_mn_major) o.slice = 0;
    } else if (!is_mn_major) {
        o.stride = 8 * w * 16;
    } else {
        o.stride = 8 * w * 16;      /* between groups of 8 k */
        o.leading = 2 * 8 * w * 16; /* between columns of atoms */
        o.slice = 0;
    }
    return o;
}

struct WgmmaArgs {
    const unsigned char *a, *b; /* as they shall lie in shared memory */
    const uint16_t *a_rows;     /* 64 x 16, for A in registers */
    const float *c;
    float *d;
    int a_bytes, b_bytes, n, in_registers, trans_a, trans_b, scale_d;
    uint64_t desc_a, desc_b; /* without the address */
    cuemu::Type type;
    int *before_wait; /* 1 where an accumulator was NaN before the wait */
};

/* PTX ISA, Register Fragments for wgmma.mma_async.m64nNk16 */
static int d_row(int t, int i) { return 16 * (t / 32) + t % 32 / 4 + (i % 4 < 2 ? 0 : 8); }
static int d_col(int t, int i) { return i / 4 * 8 + t % 4 * 2 + i % 2; }

static void wgmma_kernel(WgmmaArgs x)
{
    SMEM(smem, 1024);
    const int t = (int)threadIdx.x;
    const int b_at = (x.a_bytes + 1023) / 1024 * 1024;
    for (int i = t; i < x.a_bytes; i += 128) smem[i] = x.a[i];
    for (int i = t; i < x.b_bytes; i += 128) smem[b_at + i] = x.b[i];
    float d[128];
    for (int i = 0; i < x.n / 2; ++i) d[i] = x.c[d_row(t, i) * x.n + d_col(t, i)];
    uint32_t a[4];
    for (int i = 0; i < 8; i += 2) {
        const uint16_t *row = x.a_rows + (16 * (t / 32) + a_row(t % 32, i)) * 16;
        a[i / 2] = row[a_col(t % 32, i)] | (uint32_t)row[a_col(t % 32, i + 1)] << 16;
    }
    cuemu::fence_proxy_async(); /* what was written is read by the asynchronous proxy */
    __syncthreads();
    const uint32_t at = cuemu::smem_addr(smem);
    cuemu::wgmma_fence(__LINE__);
    cuemu::wgmma_m64k16(x.n, d, x.in_registers ? a : nullptr, x.desc_a + (at >> 4),
                        x.desc_b + ((at + (uint32_t)b_at) >> 4), x.scale_d, x.trans_a, x.trans_b, x.type, __LINE__);
    cuemu::wgmma_commit(__LINE__);
    x.before_wait[t] = std::isnan(d[0]);
    cuemu::wgmma_wait(0, __LINE__);
    for (int i = 0; i < x.n / 2; ++i) x.d[d_row(t, i) * x.n + d_col(t, i)] = d[i];
}

static void wgmma_case(cuemu::Type type, int n, bool in_registers, const Operand &oa, const Operand &ob, bool scale_d,
                       const char *time)
{
    std::vector<float> fa(64 * 16), fb(16 * (size_t)n), hc(64 * (size_t)n);
    std::vector<uint16_t> rows(64 * 16);
    std::vector<unsigned char> ha((size_t)oa.bytes(), 0xff), hb((size_t)ob.bytes(), 0xff);
    auto put = [](std::vector<unsigned char> &to, int at, uint16_t v) { memcpy(&to.at((size_t)at), &v, 2); };
    for (int i = 0; i < 64; ++i)
        for (int k = 0; k < 16; ++k) {
            const float v = fa[(size_t)(i * 16 + k)] = (float)random_int(-60, 60);
            rows[(size_t)(i * 16 + k)] = bits16(v, type);
            put(ha, oa.at(i, k), bits16(v, type));
        }
    for (int j = 0; j < n; ++j)
        for (int k = 0; k < 16; ++k) {
            const float v = fb[(size_t)(k * n + j)] = (float)random_int(-60, 60);
            put(hb, ob.at(j, k), bits16(v, type));
        }
    for (float &x : hc) x = (float)random_int(-1000, 1000);
    Buffer<unsigned char> a(ha), b(hb);
    Buffer<uint16_t> a_rows(rows);
    Buffer<float> c(hc), d(hc.size());
    Buffer<int> before(128);
    WgmmaArgs x{a.device, b.device,     a_rows.device,  c.device,       d.device, oa.bytes(),       ob.bytes(),
                n,        in_registers, oa.is_mn_major, ob.is_mn_major, scale_d,  oa.descriptor(0), ob.descriptor(0),
                type,     before.device};
    launch(1, 128, (size_t)((oa.bytes() + 1023) / 1024 * 1024 + ob.bytes()), wgmma_kernel, x);
    d.download();
    before.download();
    for (int i = 0; i < 64; ++i)
        for (int j = 0; j < n; ++j) {
            double sum = scale_d ? (double)hc[(size_t)(i * n + j)] : 0;
            for (int k = 0; k < 16; ++k) sum += (double)fa[(size_t)(i * 16 + k)] * (double)fb[(size_t)(k * n + j)];
            CHECK((double)d.host[(size_t)(i * n + j)] == sum);
        }
    for (int t : before.host)
        CHECK(time[0] == 'm' || t == (time[0] == 'l')); /* no value before the wait, where it is late */
}

static void wgmma()
{
    static const Swizzle swizzles[] = {NONE, S32, S64, S128};
    int number = 0;
    for (Swizzle sa : swizzles)
        for (Swizzle sb : swizzles)
            for (int mn_a = 0; mn_a < 2; ++mn_a)
                for (int mn_b = 0; mn_b < 2; ++mn_b)
                    for (int in_registers = 0; in_registers < 2; ++in_registers) {
                        if (in_registers && (mn_a || sa != NONE)) continue;
                        const char *time = times[number % 3];
                        cuemu::configure(orders[number % 4], time, (uint64_t)number);
                        const int wb = chunks_of(sb),
                                  n = mn_b ? (sb == NONE ? 24 : 8 * wb * (1 + number % 2)) : 8 * (1 + number % 9);
                        const Operand oa = operand(sa, mn_a, 64, chunks_of(sa) > 1 ? number % (chunks_of(sa) / 2) : 0);
                        const Operand ob =
                            operand(sb, mn_b, n, chunks_of(sb) > 1 ? number / 2 % (chunks_of(sb) / 2) : 0);
                        wgmma_case(types[number / 3 % 2], n, in_registers, oa, ob, number % 5 != 0, time);
                        ++number;
                    }
    for (int n = 8; n <= 256; n += 8) { /* every width that there is */
        cuemu::configure("rr", times[n / 8 % 3], 1);
        wgmma_case(types[n / 8 % 2], n, n / 16 % 2, operand(S128, false, 64, 1),
                   operand(n % 64 ? S32 : S128, n % 64 == 0, n, 0), true, times[n / 8 % 3]);
    }
}

/* two groups under way: the first wait makes only the older one's result there; a chain on one accumulator adds up */
static void wgmma_groups_kernel(float *out)
{
    SMEM(smem, 1024);
    const int t = (int)threadIdx.x;
    uint16_t *words = (uint16_t *)(void *)smem; /* 16 x 8 ones as B; no swizzle */
    words[t] = 0x3f80;
    cuemu::fence_proxy_async();
    __syncthreads();
    const uint64_t b =
        (uint64_t)(cuemu::smem_addr(smem) >> 4) | (uint64_t)(128 >> 4) << 16 | (uint64_t)(256 >> 4) << 32;
    uint32_t a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
    float d[4] = {1, 1, 1, 1}, e[4] = {5, 5, 5, 5};
    cuemu::wgmma_fence(__LINE__);
    cuemu::wgmma_m64k16(8, d, a, 0, b, true, false, false, cuemu::Type::bf16, __LINE__);
    cuemu::wgmma_m64k16(8, d, a, 0, b, true, false, false, cuemu::Type::bf16, __LINE__);
    cuemu::wgmma_commit(__LINE__);
    cuemu::wgmma_m64k16(8, e, a, 0, b, true, false, false, cuemu::Type::bf16, __LINE__);
    cuemu::wgmma_commit(__LINE__);
    cuemu::wgmma_wait(1, __LINE__);
    for (int i = 0; i < 4; ++i) out[t * 12 + i] = d[i], out[t * 12 + 4 + i] = e[i];
    cuemu::wgmma_wait(0, __LINE__);
    for (int i = 0; i < 4; ++i) out[t * 12 + 8 + i] = e[i];
}

static void wgmma_groups()
{
    Buffer<float> out(128 * 12);
    for (const char *time : {"early", "late"}) {
        cuemu::configure("rr", time, 1);
        launch(1, 128, 256, wgmma_groups_kernel, out.device);
        out.download();
        for (size_t t = 0; t < 128; ++t)
            for (size_t i = 0; i < 4; ++i) {
                CHECK(out.host[t * 12 + i] == 33);
                CHECK(time[0] == 'e' ? out.host[t * 12 + 4 + i] == 21 : std::isnan(out.host[t * 12 + 4 + i]));
                CHECK(out.host[t * 12 + 8 + i] == 21);
            }
    }
}

/* ==== >>bulk ================================================================================================= */
typedef CUresult (*EncodeTiled)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static EncodeTiled encoder()
{
    void *f = nullptr;
    cudaDriverEntryPointQueryResult found;
    MUST(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &found));
    CHECK(found == cudaDriverEntryPointSuccess);
    return (EncodeTiled)f;
}

struct Tensor {
    int rank, element;
    uint64_t dim[5], stride[4]; /* stride: bytes, of dimension 1 on */
    uint32_t box[5];
    Swizzle swizzle;

    size_t bytes() const
    {
        size_t n = dim[0] * (size_t)element;
        for (int i = 1; i < rank; ++i) n = stride[i - 1] * dim[i];
        return n;
    }
    size_t box_bytes() const
    {
        size_t n = (size_t)element;
        for (int i = 0; i < rank; ++i) n *= box[i];
        return n;
    }
    CUresult encode(CUtensorMap *map, void *base) const
    {
        static const CUtensorMapDataType types_by_size[] = {
            CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_DATA_TYPE_UINT8,   CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, CU_TENSOR_MAP_DATA_TYPE_UINT8,
            CU_TENSOR_MAP_DATA_TYPE_UINT8, CU_TENSOR_MAP_DATA_TYPE_UINT8,   CU_TENSOR_MAP_DATA_TYPE_FLOAT64};
        const cuuint64_t dims[5] = {dim[0], dim[1], dim[2], dim[3], dim[4]},
                         strides[4] = {stride[0], stride[1], stride[2], stride[3]};
        const cuuint32_t ones[5] = {1, 1, 1, 1, 1};
        return encoder()(map, types_by_size[element], (cuuint32_t)rank, base, dims, strides, box, ones,
                         CU_TENSOR_MAP_INTERLEAVE_NONE, (CUtensorMapSwizzle)swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                         CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    }
};
static_assert(CU_TENSOR_MAP_SWIZZLE_32B == (int)S32 && CU_TENSOR_MAP_SWIZZLE_128B == (int)S128, "the same order");

struct Corner {
    int at[5];
};

/* one thread loads a box, `start` bytes into shared memory; all look at it; one stores it to the other tensor */
static void tensor_kernel(CUtensorMap from, CUtensorMap to, int rank, Corner load, Corner store, uint32_t start,
                          uint32_t bytes, unsigned char *seen)
{
    SMEM(smem, 1024);
    const uint32_t box = cuemu::smem_addr(smem) + start, bar = box + (bytes + 1023) / 1024 * 1024;
    if (threadIdx.x == 0) {
        cuemu::mbar_init(bar, 1, __LINE__);
        cuemu::fence_mbar_init();
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        cuemu::mbar_arrive(bar, 1, bytes, __LINE__);
        cuemu::tma_load(box, &from, bar, load.at, rank, __LINE__);
    }
    while (!cuemu::mbar_try_wait(bar, 0, __LINE__)) {}
    for (uint32_t i = threadIdx.x; i < bytes; i += blockDim.x) seen[i] = smem[start + i];
    if (threadIdx.x == 0) {
        cuemu::tma_store(&to, box, store.at, rank, __LINE__);
        cuemu::tma_store_commit();
        cuemu::tma_store_wait(0, true);
    }
}

/* index in memory of element x, or -1 outside */
static int64_t offset_in(const Tensor &t, const int *corner, size_t index)
{
    int64_t at = 0;
    for (int i = 0; i < t.rank; ++i) {
        const int64_t x = corner[i] + (int64_t)(index % t.box[i]);
        index /= t.box[i];
        if (x < 0 || x >= (int64_t)t.dim[i]) return -1;
        at += x * (int64_t)(i ? t.stride[i - 1] : (uint64_t)t.element);
    }
    return at;
}

static void tensor_maps()
{
    for (int number = 0; number < 90; ++number) {
        cuemu::configure(orders[number % 4], times[number / 4 % 3], (uint64_t)number);
        Tensor t{};
        t.rank = 1 + number % 5;
        t.element = 1 << random_int(0, 3);
        t.swizzle = (Swizzle)random_int(0, 3);
        const int row = t.swizzle == NONE ? 16 * random_int(1, 16) : 16 * chunks_of(t.swizzle); /* bytes, of the box */
        t.box[0] = (uint32_t)std::min(row / t.element, 256);
        size_t elements = t.box[0];
        for (int i = 1; i < t.rank; ++i) {
            t.box[i] = (uint32_t)random_int(1, t.rank < 4 ? 9 : 4);
            elements *= t.box[i];
        }
        uint64_t bytes = 0;
        for (int i = 0; i < t.rank; ++i) {
            t.dim[i] = (uint64_t)random_int(1, i ? 7 : 60);
            if (i == 0)
                bytes = (t.dim[0] * (uint64_t)t.element + 15) / 16 * 16 + 16 * (uint64_t)random_int(0, 2);
            else
                t.stride[i - 1] = bytes, bytes *= t.dim[i];
        }
        Corner load{}, store{};
        for (int i = 0; i < t.rank; ++i) {
            load.at[i] = random_int(-(int)t.box[i] / 2, (int)t.dim[i]);
            store.at[i] = random_int(-(int)t.box[i] / 2, (int)t.dim[i]);
        }
        std::vector<unsigned char> data((size_t)bytes);
        for (unsigned char &x : data) x = (unsigned char)random_bits();
        Buffer<unsigned char> from(data), to(data.size()), seen(t.box_bytes());
        to.fill(0x11);
        CUtensorMap map_from, map_to;
        if (!CHECK(t.encode(&map_from, from.device) == CUDA_SUCCESS && t.encode(&map_to, to.device) == CUDA_SUCCESS))
            continue;
        const uint32_t start = 128 * (uint32_t)random_int(0, 7); /* anywhere in a pattern */
        launch(1, 64, start + (t.box_bytes() + 1023) / 1024 * 1024 + 8, tensor_kernel, map_from, map_to, t.rank, load,
               store, start, (uint32_t)t.box_bytes(), seen.device);
        seen.download();
        to.download();
        std::vector<unsigned char> want(data.size(), 0x11);
        for (size_t e = 0; e < elements; ++e) {
            const int64_t at = offset_in(t, load.at, e), target = offset_in(t, store.at, e);
            const size_t line = e / t.box[0], byte = e % t.box[0] * (size_t)t.element,
                         line_bytes = t.box[0] * (size_t)t.element;
            const size_t chunk = (size_t)permuted(t.swizzle, (int)((line + start / line_bytes) % 8), (int)(byte / 16)),
                         place = line * line_bytes + chunk * 16 + byte % 16;
            for (size_t b = 0; b < (size_t)t.element; ++b) {
                const unsigned char value = at < 0 ? 0 : data[(size_t)at + b];
                CHECK(seen.host[place + b] == value);
                if (target >= 0) want[(size_t)target + b] = value;
            }
        }
        CHECK(to.host == want);
    }
}

static void tensor_map_rules()
{
    Buffer<unsigned char> memory(1 << 16);
    CUtensorMap map;
    const Tensor good = {2, 2, {64, 64, 1, 1, 1}, {128, 0, 0, 0}, {64, 8, 1, 1, 1}, S128};
    CHECK(good.encode(&map, memory.device) == CUDA_SUCCESS);
    CHECK(good.encode(&map, memory.device + 8) != CUDA_SUCCESS);
    auto refused = [&](std::function<void(Tensor &)> change) {
        Tensor t = good;
        change(t);
        return t.encode(&map, memory.device) == CUDA_ERROR_INVALID_VALUE;
    };
    CHECK(refused([](Tensor &t) { t.stride[0] = 136; }));
    CHECK(refused([](Tensor &t) { t.stride[0] = 1ull << 40; }));
    CHECK(refused([](Tensor &t) { t.box[0] = 65; }));
    CHECK(refused([](Tensor &t) { t.box[0] = 68; }));
    CHECK(refused([](Tensor &t) { t.box[0] = 128; })); /* wider than the swizzle */
    CHECK(refused([](Tensor &t) { t.box[1] = 257; }));
    CHECK(refused([](Tensor &t) { t.box[1] = 0; }));
    CHECK(refused([](Tensor &t) { t.dim[1] = 0; }));
    CHECK(refused([](Tensor &t) { t.rank = 6; }));
    CHECK(!refused([](Tensor &t) { t.swizzle = NONE, t.box[0] = 128; }));
}

/* Two groups of stores: a wait that leaves one makes the older one's bytes arrive; one for reads lets the source go. */
static void store_groups_kernel(unsigned char *out, unsigned char *seen, int wait_first, bool read_only, bool looks)
{
    SMEM(smem, 128);
    for (int i = (int)threadIdx.x; i < 32; i += 32) smem[i] = (unsigned char)(i < 16 ? 1 : 2);
    cuemu::fence_proxy_async();
    __syncwarp();
    if (threadIdx.x == 0) {
        const uint32_t at = cuemu::smem_addr(smem);
        cuemu::bulk_store(out, at, 16, __LINE__);
        cuemu::tma_store_commit();
        cuemu::bulk_store(out + 16, at + 16, 16, __LINE__);
        cuemu::tma_store_commit();
        cuemu::tma_store_wait(wait_first, read_only);
        if (looks) seen[0] = out[0], seen[1] = out[16];
        for (int i = 0; i < 16; ++i) smem[i] = 3; /* the older one's source */
        cuemu::tma_store_wait(0, true);
    }
}

static void store_groups()
{
    Buffer<unsigned char> out(32), seen(2);
    for (const char *time : {"early", "late"}) {
        const bool is_late = time[0] == 'l';
        cuemu::configure("rr", time, 1);
        for (int left = 0; left < 2; ++left)
            for (int read_only = 0; read_only < 2; ++read_only) {
                const bool is_done = !read_only && left == 0,
                           looks = is_done || strcmp(BUILD, "tsan"); /* else it is a race */
                out.fill(9);
                launch(1, 32, 32, store_groups_kernel, out.device, seen.device, left, read_only != 0, looks);
                out.download();
                seen.download();
                if (looks) {
                    CHECK(seen.host[0] == (is_late && read_only ? 9 : 1)); /* read is not yet written */
                    CHECK(seen.host[1] == (is_late && !is_done ? 9 : 2));
                }
                for (size_t i = 0; i < 32; ++i) CHECK(out.host[i] == (i < 16 ? 1 : 2));
            }
    }
}

/* a ring of plain bulk loads: producer warp, three consumer warps */
static void ring_kernel(const float *in, float *out, int chunks, int chunk)
{
    SMEM(smem, 128);
    enum { STAGES = 3 };
    const uint32_t base = cuemu::smem_addr(smem), bytes = (uint32_t)chunk * 4, full = base + STAGES * bytes,
                   empty = full + 8 * STAGES;
    const int warp = (int)threadIdx.x / 32;
    if (threadIdx.x == 0) {
        for (uint32_t s = 0; s < STAGES; ++s) {
            cuemu::mbar_init(full + 8 * s, 1, __LINE__);
            cuemu::mbar_init(empty + 8 * s, 96, __LINE__);
        }
        cuemu::fence_mbar_init();
    }
    __syncthreads();
    if (warp == 0) {
        if (threadIdx.x == 0)
            for (int i = 0; i < chunks; ++i) {
                const uint32_t s = (uint32_t)(i % STAGES), round = (uint32_t)(i / STAGES);
                if (round > 0)
                    while (!cuemu::mbar_try_wait(empty + 8 * s, (round - 1) & 1, __LINE__)) {}
                if (i % 2) {
                    cuemu::mbar_arrive(full + 8 * s, 1, bytes, __LINE__);
                    cuemu::bulk_load(base + s * bytes, in + i * chunk, bytes, full + 8 * s, __LINE__);
                } else { /* the expectation and the arrival apart */
                    cuemu::mbar_expect_tx(full + 8 * s, bytes, __LINE__);
                    cuemu::bulk_load(base + s * bytes, in + i * chunk, bytes, full + 8 * s, __LINE__);
                    cuemu::mbar_arrive(full + 8 * s, 1, 0, __LINE__);
                }
            }
        return;
    }
    for (int i = 0; i < chunks; ++i) {
        const uint32_t s = (uint32_t)(i % STAGES), round = (uint32_t)(i / STAGES);
        while (!cuemu::mbar_try_wait(full + 8 * s, round & 1, __LINE__)) {}
        for (int e = (int)threadIdx.x - 32; e < chunk; e += 96)
            out[i * chunk + e] = 2 * ((const float *)(const void *)smem)[(int)s * chunk + e];
        cuemu::mbar_arrive(empty + 8 * s, 1, 0, __LINE__);
    }
}

static void ring()
{
    const int chunks = 11, chunk = 52;
    std::vector<float> data((size_t)(chunks * chunk));
    for (size_t i = 0; i < data.size(); ++i) data[i] = (float)i;
    Buffer<float> in(data), out(data.size());
    for (const char *order : orders)
        for (const char *time : times) {
            cuemu::configure(order, time, 11);
            out.fill(-1);
            launch(1, 128, 3 * (size_t)chunk * 4 + 48, ring_kernel, in.device, out.device, chunks, chunk);
            out.download();
            for (size_t i = 0; i < data.size(); ++i) CHECK(out.host[i] == 2 * (float)i);
        }
}

/* ==== >>async ================================================================================================ */
static void cp_kernel(const unsigned char *in, unsigned char *out, int bytes, int src_bytes)
{
    SMEM(smem, 16);
    const int t = (int)threadIdx.x;
    cuemu::cp_async(cuemu::smem_addr(smem) + (uint32_t)(t * bytes), src_bytes ? in + t * bytes : nullptr, bytes,
                    src_bytes, __LINE__);
    cuemu::cp_async_wait_all();
    __syncthreads();
    for (int i = 0; i < bytes; ++i) out[t * bytes + i] = smem[(63 - t) * bytes + i];
}

static void cp_sizes()
{
    std::vector<unsigned char> data(1024);
    for (size_t i = 0; i < data.size(); ++i) data[i] = (unsigned char)(i % 251 + 1);
    Buffer<unsigned char> in(data), out(1024);
    for (const char *time : times)
        for (int bytes : {4, 8, 16})
            for (int src_bytes = 0; src_bytes <= bytes; ++src_bytes) {
                cuemu::configure("random", time, 7);
                launch(1, 64, (size_t)(64 * bytes), cp_kernel, in.device, out.device, bytes, src_bytes);
                out.download();
                for (int t = 0; t < 64; ++t)
                    for (int i = 0; i < bytes; ++i)
                        CHECK(out.host[(size_t)(t * bytes + i)] ==
                              (i < src_bytes ? data[(size_t)((63 - t) * bytes + i)] : 0));
            }
}

/* three groups; what is there after a wait that leaves one */
static void cp_groups_kernel(const float *in, float *out)
{
    SMEM(smem, 16);
    const int t = (int)threadIdx.x;
    const uint32_t at = cuemu::smem_addr(smem) + (uint32_t)t * 16;
    const float *mine = (const float *)(const void *)(smem + t * 16);
    for (uint32_t group = 0; group < 3; ++group) {
        cuemu::cp_async(at + group * 32 * 16, in + group * 4, 16, 16, __LINE__);
        cuemu::cp_async_commit();
    }
    cuemu::cp_async_commit(); /* an empty group counts */
    cuemu::cp_async_wait(2);
    for (int group = 0; group < 3; ++group) out[t * 6 + group] = mine[group * 128];
    cuemu::cp_async_wait(1);
    for (int group = 0; group < 3; ++group) out[t * 6 + 3 + group] = mine[group * 128];
    cuemu::cp_async_wait(0);
}

static void cp_groups()
{
    Buffer<float> in(std::vector<float>{1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3}), out(32 * 6);
    int unset = 0, set = 0;
    for (const char *time : times)
        for (uint64_t seed = 1; seed < 5; ++seed) {
            cuemu::configure("rr", time, seed);
            launch(1, 32, 3 * 32 * 16, cp_groups_kernel, in.device, out.device);
            out.download();
            for (size_t t = 0; t < 32; ++t) {
                const float *x = &out.host[t * 6];
                CHECK(x[0] == 1 && x[1] == 2 && x[3] == 1 && x[4] == 2 && x[5] == 3);
                if (time[0] == 'e') CHECK(x[2] == 3);
                if (time[0] == 'l') CHECK(std::isnan(x[2]));
                if (time[0] == 'm') std::isnan(x[2]) ? ++unset : ++set;
            }
        }
    CHECK(set > 10 && unset > 10);
}

/* a warp copies for another one, which learns from an mbarrier that the copies are there */
static void cp_arrive_kernel(const float *in, float *out, bool noinc)
{
    SMEM(smem, 16);
    const int t = (int)threadIdx.x, lane = t & 31;
    const uint32_t base = cuemu::smem_addr(smem), bar = base + 512;
    if (t == 0) cuemu::mbar_init(bar, 32, __LINE__);
    __syncthreads();
    if (t < 32) {
        cuemu::cp_async(base + (uint32_t)lane * 16, in + lane * 4, 16, 16, __LINE__);
        cuemu::cp_async_mbar_arrive(bar, noinc, __LINE__);
        if (!noinc) cuemu::mbar_arrive(bar, 1, 0, __LINE__); /* its own arrival is counted besides that of the copies */
        return;
    }
    while (!cuemu::mbar_try_wait(bar, 0, __LINE__)) {}
    for (int i = 0; i < 4; ++i) out[lane * 4 + i] = ((const float *)(const void *)smem)[(31 - lane) * 4 + i];
}

static void cp_arrive()
{
    std::vector<float> data(128);
    for (size_t i = 0; i < 128; ++i) data[i] = (float)i;
    Buffer<float> in(data), out(128);
    for (const char *order : orders)
        for (const char *time : times)
            for (int noinc = 0; noinc < 2; ++noinc) {
                cuemu::configure(order, time, 3);
                out.fill(-1);
                launch(1, 64, 520, cp_arrive_kernel, in.device, out.device, noinc != 0);
                out.download();
                for (size_t i = 0; i < 128; ++i) CHECK(out.host[i] == (float)((31 - i / 4) * 4 + i % 4));
            }
}

/* which phases are over, seen by a thread that never waits long: a wait for the phase before the first is no wait */
static void phases_kernel(int *out)
{
    SMEM(smem, 16);
    const int t = (int)threadIdx.x;
    const uint32_t bar = cuemu::smem_addr(smem);
    int *const count = (int *)(void *)(smem + 16);
    if (t == 0) {
        cuemu::mbar_init(bar, 64, __LINE__);
        *count = 0;
    }
    __syncthreads();
    while (!cuemu::mbar_try_wait(bar, 1, __LINE__)) {}
    for (int phase = 0; phase < 6; ++phase) {
        atomicAdd(count, 1);
        cuemu::mbar_arrive(bar, 1, 0, __LINE__);
        while (!cuemu::mbar_try_wait(bar, (uint32_t)phase & 1, __LINE__)) {}
        if (t == 9 * phase)
            out[phase] = *count; /* all 64 of this phase, and none of the next, which waits for this thread */
        __syncthreads();
    }
    if (t == 0) {
        cuemu::mbar_inval(bar, __LINE__);
        cuemu::mbar_init(bar, 2, __LINE__); /* two arrivals by one thread, then one for two */
        cuemu::mbar_arrive(bar, 1, 0, __LINE__);
        cuemu::mbar_arrive(bar, 1, 0, __LINE__);
        while (!cuemu::mbar_try_wait(bar, 0, __LINE__)) {}
        cuemu::mbar_arrive(bar, 2, 0, __LINE__);
        while (!cuemu::mbar_try_wait(bar, 1, __LINE__)) {}
        out[6] = 1;
    }
}

static void phases()
{
    Buffer<int> out(7);
    for (const char *order : orders)
        for (const char *time : times) {
            cuemu::configure(order, time, 2);
            out.fill(-1);
            launch(1, 64, 32, phases_kernel, out.device);
            out.download();
            for (size_t i = 0; i < 6; ++i) CHECK(out.host[i] == 64 * (int)(i + 1));
            CHECK(out.host[6] == 1);
        }
}

/* ==== >>warp ================================================================================================= */
/* shfl.sync, as the PTX ISA gives it: c holds the clamp and the segment mask */
static int shuffled_lane(int mode, int lane, int b, int width)
{
    const int seg = (32 - width), clamp = mode == 3 ? 0 : 31; /* up: 0, others: 31 */
    const int min_lane = lane & seg, max_lane = min_lane | (clamp & ~seg);
    switch (mode) {
    case 0:
        return min_lane | (b & ~seg & 31);
    case 1:
        return (lane ^ b) <= max_lane ? lane ^ b : lane;
    case 2:
        return lane + b <= max_lane ? lane + b : lane;
    default:
        return lane - b >= max_lane ? lane - b : lane;
    }
}

template <class T> static void shuffle_kernel(T *out, int mode, int operand, int width)
{
    const T v = (T)(3 * (int)threadIdx.x + 1);
    T got;
    switch (mode) {
    case 0:
        got = __shfl_sync(~0u, v, operand, width);
        break;
    case 1:
        got = __shfl_xor_sync(~0u, v, operand, width);
        break;
    case 2:
        got = __shfl_down_sync(~0u, v, (unsigned)operand, width);
        break;
    default:
        got = __shfl_up_sync(~0u, v, (unsigned)operand, width);
    }
    out[threadIdx.x] = got;
}

template <class T> static void shuffles_of()
{
    Buffer<T> out(64);
    for (int mode = 0; mode < 4; ++mode)
        for (int width = 1; width <= 32; width *= 2)
            for (int operand : {0, 1, 2, 3, 5, 8, 16, 31}) {
                cuemu::configure(orders[(mode + operand) % 4], "late", 1);
                launch(1, 64, 0, shuffle_kernel<T>, out.device, mode, operand, width);
                out.download();
                for (int t = 0; t < 64; ++t)
                    CHECK(out.host[(size_t)t] ==
                          (T)(3 * (t / 32 * 32 + shuffled_lane(mode, t % 32, operand, width)) + 1));
            }
}

static void shuffles()
{
    shuffles_of<int>();
    shuffles_of<float>();
    shuffles_of<double>();
    shuffles_of<unsigned long long>();
}

static void votes_kernel(const unsigned *values, unsigned *out, unsigned mask)
{
    const unsigned lane = threadIdx.x, v = values[lane];
    unsigned *const o = out + lane * 16;
    if (mask >> lane & 1) {
        int same = -1;
        o[0] = __ballot_sync(mask, v & 1);
        o[1] = (unsigned)__any_sync(mask, v == 77);
        o[2] = (unsigned)__all_sync(mask, v < 100);
        o[3] = __match_any_sync(mask, v);
        o[4] = __match_all_sync(mask, v / 4, &same);
        o[5] = (unsigned)same;
        o[6] = (unsigned)__reduce_add_sync(mask, (int)v - 50);
        o[7] = (unsigned)__reduce_min_sync(mask, (int)v - 50);
        o[8] = (unsigned)__reduce_max_sync(mask, (int)v - 50);
        o[9] = __reduce_min_sync(mask, v - 50);
        o[10] = __reduce_max_sync(mask, v - 50);
        o[11] = __reduce_and_sync(mask, v | 64);
        o[12] = __reduce_or_sync(mask, v);
        o[13] = __reduce_xor_sync(mask, v);
        o[14] = __reduce_add_sync(mask, v * 0x10000000u);
        o[15] = __match_any_sync(mask, (double)v * 1e10) == o[3];
    } else { /* the others do the same among themselves, at other lines */
        o[0] = __ballot_sync(~mask, 1);
        __syncwarp(~mask);
    }
}

static void votes()
{
    for (int round = 0; round < 40; ++round) {
        cuemu::configure(orders[round % 4], "late", (uint64_t)round);
        const unsigned mask = round % 3 == 0 ? ~0u : random_bits() | 1u << (round % 32);
        std::vector<unsigned> v(32);
        for (unsigned &x : v) x = (unsigned)random_int(0, round % 2 ? 5 : 120);
        if (round % 7 == 0) std::fill(v.begin(), v.end(), 77u);
        Buffer<unsigned> values(v), out(32 * 16);
        launch(1, 32, 0, votes_kernel, values.device, out.device, mask);
        out.download();
        unsigned odd = 0, all_or = 0, all_and = ~0u, all_xor = 0, umin = ~0u, umax = 0, scaled = 0;
        bool is_any = false, is_all = true, is_same = true;
        int sum = 0, low = 1000, high = -1000;
        unsigned first = 0;
        while (!(mask >> first & 1)) ++first;
        for (unsigned i = 0; i < 32; ++i) {
            if (!(mask >> i & 1)) continue;
            const int x = (int)v[i] - 50;
            odd |= (v[i] & 1) << i;
            is_any = is_any || v[i] == 77;
            is_all = is_all && v[i] < 100;
            is_same = is_same && v[i] / 4 == v[first] / 4;
            sum += x, low = std::min(low, x), high = std::max(high, x);
            umin = std::min(umin, v[i] - 50), umax = std::max(umax, v[i] - 50);
            all_and &= v[i] | 64, all_or |= v[i], all_xor ^= v[i], scaled += v[i] * 0x10000000u;
        }
        for (unsigned i = 0; i < 32; ++i) {
            const unsigned *o = &out.host[i * 16];
            if (!(mask >> i & 1)) {
                CHECK(o[0] == ~mask);
                continue;
            }
            unsigned match = 0;
            for (unsigned j = 0; j < 32; ++j) match |= (unsigned)((mask >> j & 1) && v[i] == v[j]) << j;
            CHECK(o[0] == odd && o[1] == is_any && o[2] == is_all && o[3] == match);
            CHECK(o[4] == (is_same ? mask : 0) && o[5] == is_same);
            CHECK((int)o[6] == sum && (int)o[7] == low && (int)o[8] == high && o[9] == umin && o[10] == umax);
            CHECK(o[11] == all_and && o[12] == all_or && o[13] == all_xor && o[14] == scaled && o[15] == 1);
        }
    }
}

static void active_kernel(unsigned *out)
{
    if (threadIdx.x % 4 == 1) return;
    __syncwarp(0xdddddddd);
    out[threadIdx.x] = __activemask();
}

static void active()
{
    Buffer<unsigned> out(32);
    cuemu::configure("rr", "late", 1);
    launch(1, 32, 0, active_kernel, out.device);
    out.download();
    CHECK(out.host[31] == 0xdddddddd); /* the last to come goes on first, when the others are still there */
}

/* values go from lane to lane in shared memory, with __syncwarp in between */
static void sync_warp_kernel(int *out, bool halves)
{
    SMEM(smem, 16);
    int *const row = (int *)(void *)smem + threadIdx.x / 32 * 32;
    const unsigned lane = threadIdx.x & 31;
    const unsigned mask = !halves ? ~0u : lane < 16 ? 0xffffu : 0xffff0000u, size = halves ? 16 : 32;
    int v = (int)threadIdx.x;
    for (unsigned round = 0; round < size; ++round) {
        row[lane] = v;
        __syncwarp(mask);
        v = row[lane / size * size + (lane + 1) % size];
        __syncwarp(mask);
    }
    out[threadIdx.x] = v;
}

static void sync_warp()
{
    Buffer<int> out(96);
    for (const char *order : orders)
        for (int halves = 0; halves < 2; ++halves) {
            cuemu::configure(order, "late", 6);
            launch(1, 96, 96 * 4, sync_warp_kernel, out.device, halves != 0);
            out.download();
            for (int i = 0; i < 96; ++i) CHECK(out.host[(size_t)i] == i); /* once round */
        }
}

/* ==== >>block ================================================================================================ */
/* a sum by halves through shared memory, in 3 dimensions of threads; votes of the block */
static void barriers_kernel(int *out)
{
    SMEM(smem, 16);
    int *const x = (int *)(void *)smem;
    const int n = (int)(blockDim.x * blockDim.y * blockDim.z);
    const int t = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    x[t] = t * t;
    __syncthreads();
    for (int left = n / 2; left > 0; left /= 2) {
        if (t < left) x[t] += x[t + left];
        __syncthreads();
    }
    const int odd = __syncthreads_count(t % 2), some = __syncthreads_or(t == n - 1), none = __syncthreads_or(0);
    const int all = __syncthreads_and(1), not_all = __syncthreads_and(t != 5);
    const int block = (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    if (t == n - 1) out[block] = x[0];
    if (odd != n / 2 || !some || none || !all || not_all) out[block] = -1;
}

static void barriers()
{
    const dim3 grid(3, 2, 4);
    const unsigned most = strcmp(BUILD, "tsan") ? 1024 : 128; /* the race checker's time goes with the square */
    for (const char *order : orders)
        for (dim3 threads : {dim3(64), dim3(16, 4, 2), dim3(most), dim3(32)}) {
            const int n = (int)(threads.x * threads.y * threads.z);
            int sum = 0;
            for (int i = 0; i < n; ++i) sum += i * i;
            cuemu::configure(order, "late", 9);
            Buffer<int> out(24);
            out.fill(-2);
            launch(grid, threads, (size_t)n * 4, barriers_kernel, out.device);
            out.download();
            for (int v : out.host) CHECK(v == sum);
        }
}

/* two pairs of warps hand values over through named barriers: one side waits, the other only arrives */
static void named_barriers_kernel(int *out)
{
    SMEM(smem, 16);
    volatile int *const box = (volatile int *)(void *)smem;
    const int t = (int)threadIdx.x, pair = t / 64, is_reader = t / 32 % 2, lane = t % 32;
    const int full = 1 + 2 * pair, empty = 2 + 2 * pair;
    int sum = 0;
    for (int round = 0; round < 5; ++round) {
        if (is_reader) {
            cuemu::bar_sync(full, 64, __LINE__);
            sum += box[pair * 32 + 31 - lane];
            cuemu::bar_arrive(empty, 64, __LINE__);
        } else {
            if (round > 0) cuemu::bar_sync(empty, 64, __LINE__);
            box[pair * 32 + lane] = 100 * round + lane;
            cuemu::bar_arrive(full, 64, __LINE__);
        }
    }
    if (!is_reader) cuemu::bar_sync(empty, 64, __LINE__);
    out[t] = sum;
}

static void named_barriers()
{
    Buffer<int> out(128);
    for (const char *order : orders) {
        cuemu::configure(order, "late", 4);
        launch(1, 128, 256, named_barriers_kernel, out.device);
        out.download();
        for (int t = 0; t < 128; ++t) CHECK(out.host[(size_t)t] == (t / 32 % 2 ? 1000 + 5 * (31 - t % 32) : 0));
    }
}

static void unset_kernel(float *out)
{
    SMEM(smem, 64);
    const float *x = (const float *)(const void *)smem;
    out[threadIdx.x + blockIdx.x * blockDim.x] = x[threadIdx.x];
    __syncthreads();
    ((float *)(void *)smem)[threadIdx.x] = 1;
}

/* nothing is left from the block before, and the base is aligned as declared and no better */
static void alignment_kernel_16(uint64_t *out)
{
    SMEM(smem, 16);
    if (threadIdx.x) return;
    out[0] = (uint64_t)(uintptr_t)smem, out[1] = cuemu::smem_addr(smem), out[2] = cuemu::smem_addr(smem + 5);
}
static void alignment_kernel_128(uint64_t *out)
{
    SMEM(smem, 128);
    if (threadIdx.x) return;
    out[0] = (uint64_t)(uintptr_t)smem, out[1] = cuemu::smem_addr(smem), out[2] = cuemu::smem_addr(smem + 5);
}
static void alignment_kernel_1024(uint64_t *out)
{
    SMEM(smem, 1024);
    if (threadIdx.x) return;
    out[0] = (uint64_t)(uintptr_t)smem, out[1] = cuemu::smem_addr(smem), out[2] = cuemu::smem_addr(smem + 5);
}

static void shared_memory()
{
    Buffer<float> out(5 * 64);
    cuemu::configure("rr", "late", 1);
    launch(5, 64, 256, unset_kernel, out.device);
    for (float x : out.download()) CHECK(std::isnan(x));
    Buffer<uint64_t> at(3);
    const struct {
        uint64_t align;
        void (*kernel)(uint64_t *);
    } cases[] = {{16, alignment_kernel_16}, {128, alignment_kernel_128}, {1024, alignment_kernel_1024}};
    for (const auto &c : cases)
        for (size_t bytes : {16, 100, 1024, 4096, 100000}) {
            launch(1, 32, bytes, c.kernel, at.device);
            at.download();
            CHECK(at.host[0] % c.align == 0 && at.host[0] % (2 * c.align) != 0);
            CHECK(at.host[1] % c.align == 0 && at.host[1] % (2 * c.align) != 0 && at.host[1] >= 1024);
            CHECK(at.host[2] == at.host[1] + 5);
        }
}

/* ==== >>atomics ============================================================================================== */
template <class T> static void atomics_kernel(T *global, T *old, int n)
{
    SMEM(smem, 16);
    T *const shared = (T *)(void *)smem;
    const int t = (int)threadIdx.x, all = (int)(threadIdx.x + blockIdx.x * blockDim.x);
    if (t < 10) shared[t] = (T)(t == 2 || t == 4 ? n : 0);
    __syncthreads();
    for (T *x : {shared, global}) {
        const int i = x == shared ? t : all;
        const T got = atomicAdd(x + 0, 2);
        if (x == global) old[all] = got;
        atomicSub(x + 1, 3);
        atomicMin(x + 2, (T)(n - i));
        atomicMax(x + 3, (T)i);
        atomicAnd(x + 4, (T)(n | i));
        atomicOr(x + 5, (T)(i & 96));
        atomicXor(x + 6, (T)i);
        atomicExch(x + 7, (T)(i + 1));
        atomicCAS(x + 8, (T)0, (T)(i + 1));
        T seen = atomicAdd(x + 9, 0), want;
        do want = seen, seen = atomicCAS(x + 9, want, want + 5);
        while (seen != want);
    }
    __syncthreads();
    if (blockIdx.x == 0 && t < 10) old[n + t] = shared[t];
}

template <class T> static void atomics_of()
{
    const int blocks = 3, threads = 96, n = blocks * threads;
    for (const char *order : orders) {
        cuemu::configure(order, "late", 2);
        std::vector<T> start(10, 0);
        start[2] = start[4] = (T)n;
        Buffer<T> global(start), old((size_t)n + 10);
        launch(blocks, threads, 80, atomics_kernel<T>, global.device, old.device, n);
        global.download();
        old.download();
        std::vector<T> tickets(old.host.begin(), old.host.begin() + n);
        std::sort(tickets.begin(), tickets.end());
        for (int i = 0; i < n; ++i) CHECK(tickets[(size_t)i] == (T)(2 * i)); /* each value was handed out once */
        for (int is_shared = 0; is_shared < 2; ++is_shared) {
            const T *x = is_shared ? &old.host[(size_t)n] : global.host.data();
            const int count = is_shared ? threads : n, first = is_shared ? 0 : 0;
            T bits_or = 0, bits_xor = 0, bits_and = (T)n;
            for (int i = first; i < first + count; ++i)
                bits_or |= (T)(i & 96), bits_xor ^= (T)i, bits_and &= (T)(n | i);
            CHECK(x[0] == (T)(2 * count) && x[1] == (T)(-3 * count) && x[2] == (T)(n - count + 1) &&
                  x[3] == (T)(count - 1));
            CHECK(x[4] == bits_and && x[5] == bits_or && x[6] == bits_xor);
            CHECK(x[7] >= 1 && x[7] <= (T)count && x[8] >= 1 && x[8] <= (T)count && x[9] == (T)(5 * count));
        }
    }
}

static void floats_kernel(float *f, double *d, unsigned *u)
{
    atomicAdd(f, 0.5f);
    atomicAdd(d, 0.25);
    atomicInc(u, 6u);
    atomicDec(u + 1, 6u);
    atomicExch(f + 1, 3.f);
}

static void atomics()
{
    atomics_of<int>();
    atomics_of<unsigned>();
    atomics_of<unsigned long long>();
    Buffer<float> f(2);
    Buffer<double> d(1);
    Buffer<unsigned> u(2);
    f.fill(0), d.fill(0), u.fill(0);
    launch(2, 64, 0, floats_kernel, f.device, d.device, u.device);
    f.download(), d.download(), u.download();
    CHECK(f.host[0] == 64 && f.host[1] == 3 && d.host[0] == 32);
    CHECK(u.host[0] == 128 % 7 && u.host[1] == (7 - 128 % 7) % 7);
}

/* ==== >>arithmetic =========================================================================================== */
static void arithmetic()
{
    for (int i = 0; i < 2000; ++i) {
        const unsigned a = random_bits() >> random_int(0, 31), b = random_bits() >> random_int(0, 31),
                       s = random_bits();
        const uint64_t x = ((uint64_t)random_bits() << 32 | random_bits()) >> random_int(0, 63);
        unsigned reversed = 0, ones = 0, top = 0, lowest = 0, ones64 = 0;
        for (unsigned k = 0; k < 32; ++k) {
            reversed |= (a >> k & 1) << (31 - k);
            ones += a >> k & 1;
            if (a >> k & 1) top = k + 1, lowest = lowest ? lowest : k + 1;
        }
        for (unsigned k = 0; k < 64; ++k) ones64 += (unsigned)(x >> k & 1);
        CHECK(__brev(a) == reversed && __popc(a) == (int)ones && __clz((int)a) == 32 - (int)top &&
              __ffs((int)a) == (int)lowest);
        CHECK(__popcll(x) == (int)ones64 && __brevll((uint64_t)a << 32) == reversed);
        CHECK(__clzll((long long)a) == 64 - (int)top &&
              __ffsll((long long)((uint64_t)a << 32)) == (lowest ? 32 + (int)lowest : 0));
        CHECK(__umulhi(a, b) == (unsigned)((uint64_t)a * b >> 32));
        const uint64_t high = (x >> 32) * b + ((x & 0xffffffff) * b >> 32); /* x * b * 2^-32 */
        CHECK(__umul64hi(x, (uint64_t)b << 32) == high);
        CHECK(__mul64hi(-(long long)(x >> 1), 2) == (x >> 1 ? -1 : 0));
        const unsigned k = s & 31;
        CHECK(__funnelshift_l(a, b, s) == (k ? b << k | a >> (32 - k) : b));
        CHECK(__funnelshift_r(a, b, s) == (k ? b << (32 - k) | a >> k : a));
        unsigned bytes[8], permuted_bytes = 0;
        for (unsigned n = 0; n < 8; ++n) bytes[n] = (n < 4 ? a : b) >> (8 * (n & 3)) & 255;
        for (unsigned n = 0; n < 4; ++n) permuted_bytes |= bytes[s >> (4 * n) & 7] << (8 * n);
        CHECK(__byte_perm(a, b, s & 0x7777) == permuted_bytes);
    }
    CHECK(__byte_perm(0x80, 0, 0x8888) == ~0u && __byte_perm(0x7f, 0, 0x8888) == 0);
    CHECK(__clz(0) == 32 && __clzll(0) == 64 && __ffs(0) == 0 && __ffsll(0) == 0);
    CHECK(__float2int_rn(2.5f) == 2 && __float2int_rn(3.5f) == 4 && __float2int_rz(-2.7f) == -2);
    CHECK(__float2int_rd(-2.2f) == -3 && __float2int_ru(2.2f) == 3);
    CHECK(__float2int_rn(3e9f) == 0x7fffffff && __float2int_rn(-3e9f) == (int)0x80000000 && __float2int_rn(NAN) == 0);
    CHECK(__float2uint_rn(-1.f) == 0 && __float2uint_rn(5e9f) == ~0u && __float2ll_rn(NAN) == (long long)(1ull << 63));
    CHECK(__double2ll_rn(-4.5) == -4 && __double2int_rz(1e12) == 0x7fffffff);
    CHECK(__saturatef(NAN) == 0 && __saturatef(2) == 1 && __saturatef(-1) == 0 && __saturatef(0.25f) == 0.25f);
    CHECK(min(-1, 2u) == 2u && max(-1, 2u) == ~0u && min(-1, 2) == -1 && max(3ll, -4ll) == 3);
    CHECK(min(NAN, 2.f) == 2.f && max(2.f, NAN) == 2.f);
    CHECK(__double_as_longlong(1.0) == 0x3ff0000000000000 && __hiloint2double(0x3ff00000, 0) == 1.0);
    CHECK(__float_as_uint(-0.f) == 0x80000000 && __int_as_float(0x3f800000) == 1.f);
    CHECK(__fmaf_rn(0x1.000002p0f, 0x1.000002p0f, -0x1.000004p0f) == 0x1p-46f); /* one rounding */
    CHECK(rsqrtf(4) == 0.5f && __fsqrt_rn(2) == sqrtf(2) && __log2f(8) == 3 && __expf(0) == 1);
}

/* ==== >>launches ============================================================================================= */
static void order_kernel(int *order, int *next) /* blocks in the order in which they run */
{
    if (threadIdx.x == 0)
        order[atomicAdd(next, 1)] = (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
}
static void thread_order_kernel(int *order, int *next)
{
    order[atomicAdd(next, 1)] = (int)threadIdx.x;
    __syncthreads();
}

static void schedules()
{
    Buffer<int> order(60), next(1);
    std::vector<int> identity(60), reversed(60), first_random;
    for (int i = 0; i < 60; ++i) identity[(size_t)i] = i, reversed[(size_t)i] = 59 - i;
    for (const char *name : orders) {
        cuemu::configure(name, "late", 77);
        next.fill(0);
        launch(dim3(5, 4, 3), 32, 0, order_kernel, order.device, next.device);
        order.download();
        if (name[0] == 'r' && name[1] == 'a') {
            CHECK(order.host != identity && order.host != reversed);
            first_random = order.host;
            std::sort(order.host.begin(), order.host.end());
            CHECK(order.host == identity);
        } else {
            CHECK(order.host == (name[0] == 'l' ? reversed : identity));
        }
    }
    cuemu::configure("random", "late", 78);
    next.fill(0);
    launch(dim3(5, 4, 3), 32, 0, order_kernel, order.device, next.device);
    CHECK(order.download() != first_random); /* by seed */
    Buffer<int> threads(64);
    for (const char *name : orders) {
        cuemu::configure(name, "late", 5);
        next.fill(0);
        launch(1, 64, 0, thread_order_kernel, threads.device, next.device);
        threads.download();
        std::vector<int> sorted = threads.host;
        std::sort(sorted.begin(), sorted.end());
        const bool is_sorted = sorted == threads.host;
        CHECK(name[0] == 'f' || (name[0] == 'r' && name[1] == 'r') ? is_sorted : !is_sorted);
        if (name[0] == 'l') CHECK(threads.host[0] == 63 && threads.host[63] == 0);
        for (int i = 0; i < 64; ++i) CHECK(sorted[(size_t)i] == i);
    }
}

static void nothing_kernel(int) {}

static void limits()
{
    /* clusters: the grid in whole ones, not too large, not on devices before 9.0 */
    CHECK(try_launch_clusters(2, 3, 32, 0, nothing_kernel, 1) == cudaErrorInvalidConfiguration);
    CHECK(try_launch_clusters(16, 16, 32, 0, nothing_kernel, 1) == cudaErrorInvalidClusterSize);
    cuemu::device(86);
    CHECK(try_launch_clusters(2, 2, 32, 0, nothing_kernel, 1) == cudaErrorInvalidConfiguration);
    cuemu::device(90);
    CHECK(try_launch_clusters(8, 16, 32, 0, nothing_kernel, 1) == cudaSuccess);
    (void)cudaGetLastError();
    auto tried = [](dim3 grid, dim3 threads, size_t smem) {
        const cudaError_t e = try_launch(grid, threads, smem, nothing_kernel, 1);
        CHECK(cudaPeekAtLastError() == e && cudaGetLastError() == e && cudaGetLastError() == cudaSuccess);
        return e;
    };
    cuemu::configure("rr", "late", 1);
    CHECK(tried(1, 32, 0) == cudaSuccess);
    CHECK(tried(1, 1056, 0) == cudaErrorInvalidConfiguration);
    CHECK(tried(1, dim3(1, 1, 128), 0) == cudaErrorInvalidConfiguration);
    CHECK(tried(dim3(1, 65536), 32, 0) == cudaErrorInvalidConfiguration);
    CHECK(tried(dim3(1, 1, 65536), 32, 0) == cudaErrorInvalidConfiguration);
    CHECK(tried(0, 32, 0) == cudaErrorInvalidConfiguration);
    CHECK(tried(1, 32, 49152) == cudaSuccess);
    CHECK(tried(1, 32, 49153) == cudaErrorInvalidValue);
    const void *f = (const void *)(void (*)(int))nothing_kernel;
    CHECK(cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, 60000) == cudaSuccess);
    CHECK(tried(1, 32, 60000) == cudaSuccess && tried(1, 32, 60001) == cudaErrorInvalidValue);
    for (int cc : {80, 86, 90}) {
        cuemu::device(cc);
        const int most = cc == 80   ? 163 << 10
                         : cc == 86 ? 99 << 10
                                    : 227 << 10; /* CUDA programming guide, table of features */
        int major = 0, minor = 0, optin = 0;
        MUST(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
        MUST(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
        MUST(cudaDeviceGetAttribute(&optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0));
        CHECK(10 * major + minor == cc && optin == most);
        CHECK(cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, most + 1) == cudaErrorInvalidValue);
        CHECK(cudaGetLastError() == cudaErrorInvalidValue);
        CHECK(cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, most) == cudaSuccess);
        CHECK(tried(1, 32, (size_t)most) == cudaSuccess);
    }
    cuemu::device(90);
    CHECK(cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, 0) == cudaSuccess);
}

static void device_memory()
{
    Buffer<int> b(100);
    std::vector<int> host(100, 7);
    CHECK(b.device && (uintptr_t)b.device % 256 == 0);
    CHECK(b.download()[99] == -1); /* fresh memory holds no numbers */
    CHECK(cudaMemcpy(b.device, host.data(), 400, cudaMemcpyHostToDevice) == cudaSuccess);
    CHECK(cudaMemcpy(b.device, host.data(), 401, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(b.device + 1, host.data(), 400, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host.data(), b.device, 400, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
    CHECK(cudaMemcpy(host.data(), b.device, 400, cudaMemcpyDefault) == cudaSuccess && host[5] == 7);
    CHECK(cudaMemset(b.device + 10, 1, 4) == cudaSuccess && b.download()[10] == 0x01010101 && b.host[11] == 7);
    CHECK(cudaMemset(host.data(), 1, 4) == cudaErrorInvalidValue);
    CHECK(cudaFree(host.data()) == cudaErrorInvalidValue && cudaFree(nullptr) == cudaSuccess);
    cudaPointerAttributes a;
    CHECK(cudaPointerGetAttributes(&a, b.device + 3) == cudaSuccess && a.type == cudaMemoryTypeDevice);
    CHECK(cudaPointerGetAttributes(&a, host.data()) == cudaSuccess && a.type != cudaMemoryTypeDevice);
    void *p = nullptr;
    CHECK(cudaMalloc(&p, (size_t)1 << 40) == cudaErrorMemoryAllocation && !p);
    for (int i = 0; i < 8; ++i) (void)cudaGetLastError();
    cudaEvent_t begin, end;
    cudaStream_t stream;
    float ms = -1;
    MUST(cudaEventCreate(&begin));
    MUST(cudaEventCreate(&end));
    MUST(cudaStreamCreate(&stream));
    MUST(cudaEventRecord(begin, stream));
    MUST(cudaMemsetAsync(b.device, 0, 400, stream));
    MUST(cudaEventRecord(end, stream));
    MUST(cudaStreamSynchronize(stream));
    CHECK(cudaEventElapsedTime(&ms, begin, end) == cudaSuccess && ms >= 0 && ms < 1e4f);
    CHECK(b.download()[99] == 0);
    MUST(cudaStreamDestroy(stream));
    MUST(cudaEventDestroy(begin));
    MUST(cudaEventDestroy(end));
}

static void add_kernel(int *x, int v) { atomicAdd(x, v); }

static void graphs()
{
    Buffer<int> x(1), y(1);
    cudaStream_t stream;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    MUST(cudaStreamCreate(&stream));
    x.fill(1), y.fill(0);
    cudaLaunchConfig_t config;
    memset(static_cast<void *>(&config), 0, sizeof config);
    config.gridDim = dim3(2);
    config.blockDim = dim3(32);
    config.stream = stream;
    MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    MUST(cudaLaunchKernelEx(&config, add_kernel, x.device, 3));
    MUST(cudaMemcpyAsync(y.device, x.device, 4, cudaMemcpyDeviceToDevice, stream));
    MUST(cudaStreamEndCapture(stream, &graph));
    CHECK(x.download()[0] == 1); /* nothing has run yet (and a copy here would have been refused during the capture) */
    size_t nodes = 0;
    MUST(cudaGraphGetNodes(graph, nullptr, &nodes));
    CHECK(nodes == 2);
    MUST(cudaGraphInstantiate(&exec, graph, 0));
    for (int start : {0, 1000}) {
        x.fill(start);
        MUST(cudaGraphLaunch(exec, stream));
        MUST(cudaGraphLaunch(exec, stream));
        MUST(cudaStreamSynchronize(stream));
        CHECK(x.download()[0] == start + 2 * 64 * 3 && y.download()[0] == start + 2 * 64 * 3);
    }
    MUST(cudaGraphExecDestroy(exec));
    MUST(cudaGraphDestroy(graph));
    /* what a capture does not allow */
    std::function<cudaError_t()> forbidden[] = {
        [&] { return cudaStreamSynchronize(stream); },
        [&] { return cudaDeviceSynchronize(); },
        [&] {
            void *p;
            return cudaMalloc(&p, 4);
        },
        [&] { return cudaMemset(x.device, 0, 4); },
        [&] { return cudaMemcpy(x.device, y.device, 4, cudaMemcpyDeviceToDevice); },
        [&] {
            config.stream = nullptr;
            return cudaLaunchKernelEx(&config, add_kernel, x.device, 3);
        }};
    for (const auto &call : forbidden) {
        MUST(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
        CHECK(call() != cudaSuccess);
        CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorStreamCaptureInvalidated && !graph);
    }
    (void)cudaGetLastError();
    MUST(cudaStreamDestroy(stream));
}

/* ==== >>reports ==============================================================================================
   Kernels with a switch: as it should be, or with one thing wrong. */
static void exchange_kernel(int *out, int is_wrong) /* neighbours in shared memory */
{
    SMEM(smem, 16);
    int *const x = (int *)(void *)smem;
    x[threadIdx.x] = (int)threadIdx.x;
    if (is_wrong != 1) __syncthreads();
    const int v = x[(threadIdx.x + 33) % blockDim.x];
    if (is_wrong != 2) __syncthreads();
    x[threadIdx.x] = v + 1;
    __syncthreads();
    out[threadIdx.x + blockIdx.x * blockDim.x] = x[threadIdx.x];
}

static void warp_exchange_kernel(int *out, int is_wrong)
{
    SMEM(smem, 16);
    int *const x = (int *)(void *)smem;
    x[threadIdx.x] = (int)threadIdx.x;
    if (!is_wrong)
        __syncwarp();
    else
        (void)__shfl_xor_sync(~0u, 1, 1); /* meets, but orders nothing */
    out[threadIdx.x] = x[threadIdx.x ^ 1];
}

static void blocks_write_kernel(int *out, int is_wrong) /* one place for all blocks, or one for each */
{
    __syncthreads();
    if (threadIdx.x == 5) out[is_wrong ? 0 : blockIdx.x] = (int)blockIdx.x;
    __syncthreads();
}

/* the last block to come adds up what all have left */
static void last_block_kernel(float *part, int *count, float *sum, int is_wrong)
{
    if (threadIdx.x != 3) return;
    for (int round = 0; round < 2; ++round) { /* the second time shows that an old fence is not enough */
        part[round * 4 + (int)blockIdx.x] = 1.f + (float)blockIdx.x;
        if (is_wrong != 1 && (is_wrong != 3 || round == 0)) __threadfence();
        if (atomicAdd(count + round, 1) == (int)gridDim.x - 1) {
            if (is_wrong != 2) __threadfence();
            float s = 0;
            for (int i = 0; i < (int)gridDim.x; ++i) s += part[round * 4 + i];
            sum[round] = s;
        }
    }
}

static void copy_kernel(const int *in, int *out, int is_wrong) /* cp.async, read by a neighbour */
{
    SMEM(smem, 16);
    const uint32_t at = cuemu::smem_addr(smem) + 16 * threadIdx.x;
    cuemu::cp_async(at, in + 4 * threadIdx.x, 16, 16, __LINE__);
    cuemu::cp_async_commit();
    if (is_wrong != 1) cuemu::cp_async_wait(0);
    if (is_wrong != 2) __syncthreads();
    const int v = ((const int *)(const void *)smem)[4 * ((threadIdx.x + 1) % 64)];
    if (is_wrong == 1) cuemu::cp_async_wait(0);
    out[threadIdx.x] = v;
}

static void cp_exit_kernel(const int *in)
{
    SMEM(smem, 16);
    cuemu::cp_async(cuemu::smem_addr(smem) + 16 * threadIdx.x, in, 16, 16, __LINE__);
    cuemu::cp_async_commit();
}

static void store_kernel(unsigned *out, int is_wrong) /* written by all, stored by one as a bulk copy */
{
    SMEM(smem, 128);
    unsigned *const x = (unsigned *)(void *)smem;
    x[threadIdx.x] = threadIdx.x;
    if (is_wrong != 1) cuemu::fence_proxy_async();
    if (is_wrong != 2) __syncthreads();
    if (threadIdx.x == 0) {
        cuemu::bulk_store(out, cuemu::smem_addr(smem), 256, __LINE__);
        cuemu::tma_store_commit();
        if (is_wrong != 3) cuemu::tma_store_wait(0, true);
        x[0] = 7;
        if (is_wrong == 3) cuemu::tma_store_wait(0, true);
    }
}

static void store_exit_kernel(unsigned *out)
{
    SMEM(smem, 128);
    if (threadIdx.x == 0) {
        cuemu::bulk_store(out, cuemu::smem_addr(smem), 256, __LINE__);
        cuemu::tma_store_commit();
    }
}

static void load_kernel(const float *in, float *out, int is_wrong) /* a bulk load, for all */
{
    SMEM(smem, 128);
    const uint32_t at = cuemu::smem_addr(smem), bar = at + 256;
    float *const x = (float *)(void *)smem;
    if (threadIdx.x == 0) cuemu::mbar_init(bar, 1, __LINE__);
    if (is_wrong != 1) __syncthreads();
    if (is_wrong == 4) x[threadIdx.x] = 0; /* nothing orders this before the copy */
    if (threadIdx.x == 0) {
        cuemu::mbar_arrive(bar, 1, is_wrong == 2 ? 512 : 256, __LINE__);
        cuemu::bulk_load(at, in, 256, bar, __LINE__);
    }
    if (is_wrong != 3 || threadIdx.x == 0)
        while (!cuemu::mbar_try_wait(bar, 0, __LINE__)) {}
    out[threadIdx.x] = x[threadIdx.x];
}

/* Blocks of a cluster: each sends to the next one, round after round, into a place that the next one has read. */
static void neighbour_kernel(int *out, int size, int is_wrong)
{
    SMEM(smem, 128);
    const uint32_t base = cuemu::smem_addr(smem), full = base + 16, empty = base + 24;
    const unsigned rank = cuemu::cluster_rank(), next = (rank + 1) % (unsigned)size,
                   last = (rank + (unsigned)size - 1) % (unsigned)size;
    if (threadIdx.x == 0) {
        cuemu::mbar_init(full, 1, __LINE__);
        cuemu::mbar_init(empty, 32, __LINE__);
        cuemu::fence_mbar_init();
    }
    __syncthreads();
    if (is_wrong != 1) {
        cuemu::cluster_arrive(__LINE__);
        cuemu::cluster_wait(__LINE__);
    }
    for (unsigned round = 0; round < 3; ++round) {
        if (threadIdx.x == 0) {
            if (round && is_wrong != 2)
                while (!cuemu::mbar_try_wait(empty, (round - 1) & 1, is_wrong != 3, __LINE__)) {}
            const int value[4] = {(int)(100 * round + rank), 1, 2, 3};
            cuemu::store_remote(cuemu::mapa(base, next, __LINE__), value, 16, __LINE__);
            cuemu::mbar_arrive_remote(cuemu::mapa(full, next, __LINE__), __LINE__);
        }
        while (!cuemu::mbar_try_wait(full, round & 1, is_wrong != 4, __LINE__)) {}
        const int value = *(const volatile int *)(const void *)smem;
        out[blockIdx.x * 32 + threadIdx.x] = value;
        cuemu::mbar_arrive_remote(cuemu::mapa(empty, last, __LINE__), __LINE__);
    }
    if (is_wrong == 5) return;
    cuemu::cluster_arrive(__LINE__);
    cuemu::cluster_wait(__LINE__);
}

/* Two blocks, each of which brings half of a tile to both; warp 0 loads, warp 1 reads. */
static void halves_kernel(CUtensorMap map, uint16_t *out, int is_wrong)
{
    SMEM(smem, 1024);
    const uint32_t base = cuemu::smem_addr(smem), full = base + 2048, empty = full + 8;
    const int rank = (int)cuemu::cluster_rank();
    if (threadIdx.x == 0) {
        cuemu::mbar_init(full, 1, __LINE__);
        cuemu::mbar_init(empty, is_wrong == 1 ? 32 : 64, __LINE__);
        cuemu::fence_mbar_init();
    }
    cuemu::cluster_arrive(__LINE__);
    cuemu::cluster_wait(__LINE__);
    for (unsigned tile = 0; tile < 3; ++tile) {
        if (threadIdx.x == 0) {
            if (tile)
                while (!cuemu::mbar_try_wait(empty, (tile - 1) & 1, is_wrong != 2, __LINE__)) {}
            const int at[4] = {0, (int)tile * 16 + 8 * rank, 0, 0};
            cuemu::mbar_arrive(full, 1, 2048, __LINE__);
            if (is_wrong == 3 || (is_wrong == 4 && rank))
                cuemu::tma_load(base + (uint32_t)rank * 1024, &map, full, at, 4, __LINE__);
            else
                cuemu::tma_load_multicast(base + (uint32_t)rank * 1024, &map, full, 3, at, 4, __LINE__);
        } else if (threadIdx.x >= 32) {
            while (!cuemu::mbar_try_wait(full, tile & 1, __LINE__)) {}
            for (uint32_t i = threadIdx.x - 32; i < 1024; i += 32)
                out[(blockIdx.x * 3 + tile) * 1024 + i] = ((const uint16_t *)(const void *)smem)[i];
            for (uint32_t r = 0; r < 2; ++r)
                if (is_wrong != 1 || (int)r == rank)
                    cuemu::mbar_arrive_remote(cuemu::mapa(empty, r, __LINE__), __LINE__);
        }
        if (is_wrong == 5 && rank && tile == 1) return; /* while the other still brings its part */
    }
    if (is_wrong == 5) return;
    cuemu::cluster_arrive(__LINE__);
    cuemu::cluster_wait(__LINE__);
}
static void halves(int is_wrong)
{
    std::vector<uint16_t> rows(48 * 64);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = (uint16_t)(i * 7 + 1);
    static Buffer<uint16_t> *from, *out;
    if (!from) from = new Buffer<uint16_t>(rows), out = new Buffer<uint16_t>((size_t)4 * 3 * 1024);
    out->fill(0);
    const Tensor t = {4, 2, {64, 48, 1, 1, 1}, {128, 128, 128, 0}, {64, 8, 1, 1, 1}, S128};
    CUtensorMap map;
    if (t.encode(&map, from->device) != CUDA_SUCCESS) printf("no map\n");
    launch_clusters(2, 4, 64, 2048 + 16, halves_kernel, map, out->device, is_wrong);
    out->download();
    int bad = 0;
    for (size_t i = 0; i < out->host.size(); ++i) {
        const size_t row = i / 64 % 48, place = i % 64, column = (place / 8 ^ (row & 7)) * 8 + place % 8;
        bad += out->host[i] != rows[row * 64 + column];
    }
    if (bad) printf("%d wrong\n", bad);
}

static void cluster_rules_kernel(int how)
{
    SMEM(smem, 128);
    const uint32_t base = cuemu::smem_addr(smem);
    const int value[4] = {};
    switch (how) {
    case 0:
        cuemu::cluster_arrive(__LINE__);
        cuemu::cluster_arrive(__LINE__);
        break;
    case 1:
        cuemu::cluster_wait(__LINE__);
        break;
    case 2:
        (void)cuemu::mapa(base, 2, __LINE__);
        break;
    case 3:
        cuemu::mbar_init(cuemu::mapa(base, 1, __LINE__), 1, __LINE__);
        break;
    case 4:
        cuemu::store_remote(cuemu::mapa(base + 120, 0, __LINE__), value, 16, __LINE__);
        break;
    case 5: /* half of the threads never come, and do not end */
        if (threadIdx.x < 32) cuemu::cluster_arrive(__LINE__), cuemu::cluster_wait(__LINE__);
        __syncthreads();
        break;
    default: /* those that have ended are not waited for */
        if (threadIdx.x % 32 == 5) return;
        cuemu::cluster_arrive(__LINE__);
        cuemu::cluster_wait(__LINE__);
    }
}

static void wgmma_report_kernel(float *out, int is_wrong)
{
    SMEM(smem, 1024);
    uint16_t *words = (uint16_t *)(void *)smem;
    words[threadIdx.x] = 0x3f80;
    if (is_wrong != 1) cuemu::fence_proxy_async();
    __syncthreads();
    const uint64_t b = (uint64_t)(cuemu::smem_addr(smem) >> 4) | (uint64_t)8 << 16 | (uint64_t)16 << 32;
    uint32_t a[4] = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
    float d[4] = {};
    if (is_wrong != 2) cuemu::wgmma_fence(__LINE__);
    cuemu::wgmma_m64k16(8, d, a, 0, b + (is_wrong == 4 && threadIdx.x == 1), true, false, false, cuemu::Type::bf16,
                        __LINE__);
    cuemu::wgmma_commit(__LINE__);
    if (is_wrong == 3) words[threadIdx.x] = 0; /* while it is read */
    if (is_wrong != 5) cuemu::wgmma_wait(0, __LINE__);
    out[threadIdx.x] = d[0];
}

static void divergent_kernel(int *out, int how)
{
    SMEM(smem, 16);
    const unsigned lane = threadIdx.x;
    uint32_t r[4];
    float f[4] = {};
    switch (how) {
    case 0: /* two lines */
        if (lane < 7)
            (void)__shfl_xor_sync(~0u, 1, 1);
        else
            (void)__shfl_xor_sync(~0u, 1, 1);
        break;
    case 1: /* two operations */
        if (lane & 1)
            (void)__ballot_sync(~0u, 1);
        else
            __syncwarp();
        break;
    case 2:
        (void)__ballot_sync(0xfffffffeu, 1);
        break;
    case 3:
        (void)__shfl_sync(0xffffu << (lane & 16), 1, 20);
        break;
    case 4:
        if (lane == 9) return;
        (void)__ballot_sync(~0u, 1);
        break;
    case 5:
        if (lane < 16)
            __syncthreads();
        else
            __syncthreads();
        break;
    case 6:
        if (lane < 31) __syncthreads();
        break;
    case 7:
        cuemu::ldmatrix(cuemu::smem_addr(smem) + 16 * (lane & 7) + (lane == 3 ? 8 : 0), r, 1, false, __LINE__);
        break;
    case 8:
        cuemu::ldmatrix(cuemu::smem_addr(smem) + 16 * lane, r, 4, false, __LINE__);
        break; /* 512 of 256 bytes */
    case 9:
        cuemu::mma_m16n8k16(f, r, r, f, cuemu::Type::bf16, lane < 3 ? 10 : 11);
        break;
    case 10:
        cuemu::bar_sync(1, 48, __LINE__);
        break;
    case 11:
        cuemu::bar_sync(16, 32, __LINE__);
        break;
    case 12:
        (void)__shfl_sync(~0u, 1, 1, 12);
        break;
    case 13:
        if (lane < 15)
            (void)__ballot_sync(0xffffu, 1);
        else
            (void)__ballot_sync(0xffffff00u, 1);
        break;
    case 14:
        __trap();
        break;
    case 15:
        if (lane < 16) return;
        __syncthreads();
        break;
    case 16:
        if (lane < 16) return;
        __syncwarp();
        break;
    }
    out[lane] = (int)f[0];
}

static void cp_bad_kernel(const char *in, int how)
{
    SMEM(smem, 16);
    const uint32_t at = cuemu::smem_addr(smem);
    switch (how) {
    case 0:
        cuemu::cp_async(at + 8, in, 16, 16, __LINE__);
        break;
    case 1:
        cuemu::cp_async(at, in + 4, 16, 16, __LINE__);
        break;
    case 2:
        cuemu::cp_async(at + 256, in, 16, 16, __LINE__);
        break;
    case 3:
        cuemu::cp_async(at, in + 1024 - 8, 8, 8, __LINE__), cuemu::cp_async(at, in + 1024, 8, 8, __LINE__);
        break;
    case 4:
        cuemu::cp_async(at, in, 12, 12, __LINE__);
        break;
    case 5:
        cuemu::cp_async(at, in, 8, 16, __LINE__);
        break;
    case 6:
        cuemu::cp_async(at, smem, 16, 16, __LINE__);
        break;
    case 7:
        cuemu::mbar_arrive(at, 1, 0, __LINE__);
        break;
    case 8:
        cuemu::mbar_init(at, 1, __LINE__);
        *(int *)(void *)smem = 0;
        cuemu::mbar_arrive(at, 1, 0, __LINE__);
        break;
    case 9:
        cuemu::mbar_init(at, 2, __LINE__);
        cuemu::mbar_arrive(at, 3, 0, __LINE__);
        break;
    case 10:
        cuemu::mbar_init(at, 1, __LINE__);
        cuemu::mbar_init(at, 1, __LINE__);
        break;
    case 11:
        cuemu::mbar_init(at + 4, 1, __LINE__);
        break;
    }
}

static void deadlock_kernel(int how)
{
    SMEM(smem, 16);
    const uint32_t bar = cuemu::smem_addr(smem);
    if (threadIdx.x == 0) cuemu::mbar_init(bar, 3, __LINE__);
    __syncthreads();
    if (how == 0) {
        if (threadIdx.x < 2) cuemu::mbar_arrive(bar, 1, 16, __LINE__);
        while (!cuemu::mbar_try_wait(bar, 0, __LINE__)) {}
    } else if (threadIdx.x < 32) {
        cuemu::bar_sync(3, 64, 1234);
    }
}

static void write_kernel(int *out, long index, int is_shared)
{
    SMEM(smem, 16);
    int *volatile p = is_shared ? (int *)(void *)smem : out;
    if (threadIdx.x == 0) p[index] = 5;
}

static void read_kernel(const int *in, int *out) { out[threadIdx.x] = *in; }

static void deep_kernel(int *out, int depth)
{
    volatile char frame[8192];
    frame[depth % 8192] = (char)depth;
    if (depth > 0) deep_kernel(out, depth - 1);
    out[0] = frame[depth % 8192];
}

static void two_alignments_kernel()
{
    SMEM(a, 16);
    SMEM(b, 128);
    (void)a, (void)b;
}

static void misaligned_atomic_kernel(int *p) { atomicAdd((int *)(void *)((char *)p + 2), 1); }

enum { PLAIN = 1, ASAN = 2, TSAN = 4, ALL = 7 };
struct Report {
    std::string name;
    int builds;
    const char *want; /* in what the case prints; "" = it must end well and print nothing */
    std::function<void()> run;
};

static std::vector<Report> reports()
{
    std::vector<Report> r;
    auto add = [&r](std::string name, int builds, const char *want, std::function<void()> run) {
        r.push_back({name, builds, want, std::move(run)});
    };
    /* Every kernel both ways: silent for all orders of threads and times of copies, or with the report. */
    auto all = [](std::function<void()> once) {
        return [once] {
            for (const char *order : orders)
                for (const char *time : times) {
                    cuemu::configure(order, time, 3);
                    once();
                }
        };
    };
    static Buffer<int> *ints;
    static Buffer<float> *floats;
    auto memory = [](std::function<void()> f) {
        return [f] {
            Buffer<int> i(256);
            Buffer<float> x(256);
            ints = &i, floats = &x;
            i.fill(1), x.fill(0);
            f();
        };
    };
    auto rr = [](std::function<void()> once) {
        return [once] {
            cuemu::configure("rr", "late", 3);
            once();
        };
    };
    static const char *const race = "data race";
    auto both = [&](const char *name, const std::function<void(int)> &kernel,
                    std::vector<std::pair<int, const char *>> wrongs) {
        add(std::string(name) + " as it should be", ALL, "", memory(all([kernel] { kernel(0); })));
        for (const auto &w : wrongs)
            add(std::string(name) + " wrong " + std::to_string(w.first), w.second == race ? TSAN : ALL, w.second,
                memory(rr([kernel, w] { kernel(w.first); })));
    };
    both("exchange in a block", [](int w) { launch(2, 64, 256, exchange_kernel, ints->device, w); },
         {{1, race}, {2, race}});
    both("exchange in a warp", [](int w) { launch(1, 32, 128, warp_exchange_kernel, ints->device, w); }, {{1, race}});
    both("blocks write", [](int w) { launch(4, 32, 0, blocks_write_kernel, ints->device, w); }, {{1, race}});
    both("last block",
         [](int w) {
             ints->fill(0);
             launch(4, 32, 0, last_block_kernel, floats->device, ints->device, floats->device + 100, w);
             floats->download();
             if (floats->host[100] != 10 || floats->host[101] != 10) printf("wrong sum\n");
         },
         {{1, race}, {2, race}, {3, race}});
    both("cp.async", [](int w) { launch(1, 64, 1024, copy_kernel, ints->device, ints->device + 128, w); },
         {{1, race}, {2, race}});
    both("bulk store", [](int w) { launch(1, 64, 256, store_kernel, (unsigned *)ints->device, w); },
         {{1, race}, {2, race}, {3, race}});
    both("bulk load", [](int w) { launch(1, 64, 264, load_kernel, floats->device, floats->device + 128, w); },
         {{1, race}, {2, "deadlock"}, {3, race}, {4, race}});
    add("bulk load wrong 1, plain", PLAIN | ASAN, "no mbarrier", memory([] {
            cuemu::configure("last", "late", 1);
            launch(1, 64, 264, load_kernel, floats->device, floats->device + 128, 1);
        }));
    both("blocks of a cluster",
         [](int w) {
             ints->fill(0);
             launch_clusters(3, 6, 32, 32, neighbour_kernel, ints->device, 3, w);
             ints->download();
             for (int b = 0; b < 6; ++b)
                 for (int i = 0; i < 32; ++i)
                     if (ints->host[(size_t)(b * 32 + i)] != 200 + (b % 3 + 2) % 3) printf("wrong value\n"), i = 32;
         },
         {{1, race}, {2, race}, {3, race}, {4, race}, {5, race}});
    add("blocks of a cluster wrong 1, plain", PLAIN | ASAN, "has not begun", memory([] {
            cuemu::configure("first", "late", 1);
            launch_clusters(3, 6, 32, 32, neighbour_kernel, ints->device, 3, 1);
        }));
    both("halves to two blocks", [](int w) { halves(w); },
         {{1, race}, {2, race}, {3, "deadlock"}, {4, "deadlock"}, {5, "has ended"}});
    static const char *const cluster_rules[] = {"the second without a wait",
                                                "without an arrival",
                                                "rank 2 in a cluster of 2 blocks",
                                                "is outside the block's 128 bytes",
                                                "is outside the block's 128 bytes",
                                                "deadlock",
                                                ""};
    for (int how = 0; how < (int)(sizeof cluster_rules / sizeof *cluster_rules); ++how)
        add("cluster rules " + std::to_string(how), ALL, cluster_rules[how],
            rr([how] { launch_clusters(2, 4, 64, 128, cluster_rules_kernel, how); }));
    both("wgmma", [](int w) { launch(1, 128, 256, wgmma_report_kernel, floats->device, w); },
         {{1, race}, {2, "no wgmma.fence"}, {3, race}, {4, "operands differ"}, {5, "not waited for"}});

    static const struct {
        int how;
        const char *want;
    } divergent[] = {{0, "divergent warp: shfl.bfly at line"},
                     {1, "divergent warp: "},
                     {2, "not in its own mask fffffffe"},
                     {3, "reads lane 20, which is not in the mask 0000ffff"},
                     {4, "exits, but ballot at line"},
                     {5, "divergent block: __syncthreads at line"},
                     {6, "warp 0 lanes 0-30: __syncthreads line"},
                     {7, "is not aligned to 16"},
                     {8, "is outside the block's 256 bytes"},
                     {9, "divergent warp: mma.m16n8k16"},
                     {10, "bar.sync 1 at line"},
                     {11, "there is no barrier 16"},
                     {12, "width 12"},
                     {13, "is under way with mask"},
                     {14, "__trap at line"},
                     {15, "lanes 0-15: exited"},
                     {16, "lanes 0000ffff have exited"}};
    for (const auto &d : divergent)
        add("divergent " + std::to_string(d.how), ALL, d.want,
            memory(rr([d] { launch(1, 32, 256, divergent_kernel, ints->device, d.how); })));
    static const char *const bad[] = {"is not aligned to 16",
                                      "is not aligned to 16",
                                      "is outside the block's 256 bytes",
                                      "is out of bounds",
                                      "sizes 12, 12",
                                      "sizes 8, 16",
                                      "is not device memory",
                                      "no mbarrier at",
                                      "was overwritten",
                                      "one arrival too many",
                                      "there is a live mbarrier",
                                      "is not aligned to 8"};
    for (int how = 0; how < (int)(sizeof bad / sizeof *bad); ++how)
        add("bad operand " + std::to_string(how), ALL, bad[how],
            memory(rr([how] { launch(1, 32, 256, cp_bad_kernel, (const char *)ints->device, how); })));
    add("cp.async not waited for", ALL, "not waited for",
        memory(rr([] { launch(1, 32, 512, cp_exit_kernel, ints->device); })));
    add("bulk store not waited for", ALL, "ended with asynchronous copies under way",
        memory(rr([] { launch(1, 32, 256, store_exit_kernel, (unsigned *)ints->device); })));
    add("deadlock at an mbarrier", ALL, "phase 0, 1 of 3 arrivals pending, tx 32",
        memory(rr([] { launch(1, 64, 16, deadlock_kernel, 0); })));
    add("deadlock at a barrier", ALL, "warp 0 lanes 0-31: bar.sync line 1234\n  warp 1 lanes 0-31: exited",
        memory(rr([] { launch(1, 64, 16, deadlock_kernel, 1); })));
    add("two alignments", ALL, "two alignments", rr([] { launch(1, 32, 256, two_alignments_kernel); }));
    add("half a warp", ALL, "no multiple of 32", rr([] { launch(1, 48, 0, nothing_kernel, 1); }));
    add("no such order", ALL, "no order of threads is called", [] { cuemu::configure("fast", "late", 1); });
    add("misaligned atomic", ALL, "misaligned",
        memory(rr([] { launch(1, 32, 0, misaligned_atomic_kernel, ints->device); })));

    /* memory: inside, one past the end, before the beginning */
    for (int is_shared = 0; is_shared < 2; ++is_shared)
        for (long index : {0l, 255l, 256l, -1l}) {
            const bool is_in = index == 0 || index == 255;
            if (index < 0 && !is_shared) continue;
            const char *want = is_in       ? ""
                               : is_shared ? "wrote to its shared memory of 1024 bytes at offset"
                                           : "wrote past the end of an allocation";
            const std::string name =
                std::string(is_shared ? "shared" : "global") + " memory at " + std::to_string(index);
            const auto run = memory(rr([=] { launch(1, 32, 1024, write_kernel, ints->device, index, is_shared); }));
            add(name, is_in ? ALL : PLAIN | TSAN, want, run);
            if (!is_in) add(name + " with asan", ASAN, "AddressSanitizer", run);
        }
    add("host reads device memory", PLAIN | ASAN, "SEGV", memory([] {
            printf("%s\n", strcmp(BUILD, "plain") ? "" : "SEGV"); /* which a plain process says by its end */
            fflush(stdout);
            printf("%d\n", *(volatile int *)ints->device);
        }));
    add("kernel reads freed memory", PLAIN, "in device memory that is not allocated", rr([] {
            int *p = nullptr, *keep = nullptr;
            MUST(cudaMalloc((void **)&keep, 1024));
            MUST(cudaMalloc((void **)&p, 1 << 20));
            MUST(cudaFree(keep));
            MUST(cudaFree(p));
            MUST(cudaMalloc((void **)&keep, 1024));
            launch(1, 32, 0, read_kernel, (const int *)p + 200000, keep);
        }));
    add("stack overflow", PLAIN, "stack overflow",
        memory(rr([] { launch(1, 32, 0, deep_kernel, ints->device, 100); })));
    return r;
}

/* ---- running ---- */
static int this_build() { return !strcmp(BUILD, "plain") ? PLAIN : !strcmp(BUILD, "asan") ? ASAN : TSAN; }

static std::string output_of(const char *program, const char *name, int *status)
{
    int out[2];
    std::string text;
    if (pipe(out)) exit(2);
    const pid_t child = fork();
    if (child == 0) {
        dup2(out[1], 1);
        dup2(out[1], 2);
        close(out[0]);
        execl(program, program, "--case", name, (char *)nullptr);
        _exit(127);
    }
    close(out[1]);
    char piece[4096];
    for (ssize_t n; (n = read(out[0], piece, sizeof piece)) > 0;) text.append(piece, (size_t)n);
    close(out[0]);
    waitpid(child, status, 0);
    return text;
}

int main(int argc, char **argv)
{
    /* Where it is about values alone, the race checker has nothing to see. */
    static const struct {
        const char *name;
        void (*run)();
        int builds;
    } tests[] = {{"mma", mma, PLAIN | ASAN},
                 {"mma_values", mma_values, PLAIN | ASAN},
                 {"ldmatrix", ldmatrix, PLAIN | ASAN},
                 {"stmatrix", stmatrix, ALL},
                 {"wgmma", wgmma, PLAIN | ASAN},
                 {"wgmma_groups", wgmma_groups, ALL},
                 {"tensor_maps", tensor_maps, PLAIN | ASAN},
                 {"tensor_map_rules", tensor_map_rules, PLAIN | ASAN},
                 {"store_groups", store_groups, ALL},
                 {"ring", ring, ALL},
                 {"cp_sizes", cp_sizes, PLAIN | ASAN},
                 {"cp_groups", cp_groups, ALL},
                 {"cp_arrive", cp_arrive, ALL},
                 {"phases", phases, ALL},
                 {"shuffles", shuffles, PLAIN | ASAN},
                 {"votes", votes, PLAIN | ASAN},
                 {"active", active, ALL},
                 {"sync_warp", sync_warp, ALL},
                 {"barriers", barriers, ALL},
                 {"named_barriers", named_barriers, ALL},
                 {"shared_memory", shared_memory, ALL},
                 {"atomics", atomics, ALL},
                 {"arithmetic", arithmetic, PLAIN | ASAN},
                 {"schedules", schedules, PLAIN | ASAN},
                 {"limits", limits, ALL},
                 {"device_memory", device_memory, ALL},
                 {"graphs", graphs, ALL}};
    const std::vector<Report> cases = reports();
    if (argc == 3 && !strcmp(argv[1], "--case")) {
        for (const Report &r : cases)
            if (r.name == argv[2]) {
                r.run();
                return 0;
            }
        return 3;
    }
    int passed = 0, failed = 0;
    const char *only = argc > 1 ? argv[1] : nullptr;
    for (const Report &r : cases) {
        if ((only && r.name != only) || !(r.builds & this_build())) continue;
        int status = 0;
        const std::string text = output_of(argv[0], r.name.c_str(), &status);
        const bool is_good =
            *r.want ? status != 0 && text.find(r.want) != std::string::npos : status == 0 && text.empty();
        if (!is_good)
            printf("fail: %s: want \"%s\", got status %d and:\n%s\n", r.name.c_str(), r.want, status,
                   text.substr(0, 800).c_str());
        (is_good ? passed : failed)++;
    }
    for (const auto &t : tests) {
        if ((only && strcmp(only, t.name)) || !(t.builds & this_build())) continue;
        checks_failed = 0;
        t.run();
        if (checks_failed) printf("fail: %s: %d checks\n", t.name, checks_failed);
        (checks_failed ? failed : passed)++;
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0 || passed == 0;
}
