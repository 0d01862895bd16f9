/* cuda_emu.cc - the engine behind cuda_emu.h

   Every CUDA thread is a fiber. One block, or the blocks of one cluster, run at a time, on the thread that launched
   them; fibers change only where a kernel synchronises, and which goes next is the policy's choice (configure).
   Built plain, or with ASan, or plain beside kernels built with -fsanitize=thread: the hooks of >>races then give each
   CUDA thread a vector clock of its own, so that a missing barrier is a reported race whatever the schedule was. The
   engine itself is never built with -fsanitize=thread.

   >>sanitizers   their entry points, weak
   >>state        threads, warps, barriers, one block
   >>races        who has seen what: contexts of the race checker
   >>fibers       switching and scheduling
   >>blocks       beginning and end of a block
   >>collectives  operations of a warp or a warpgroup
   >>barriers     of the block, named ones, of the cluster, fences
   >>memory       shared memory, global memory
   >>cp_async     copies of single threads
   >>mbarrier
   >>bulk         TMA copies
   >>mma          ldmatrix, stmatrix, mma
   >>wgmma
   >>launch       launches, streams, graphs
   >>runtime      the other functions of the CUDA runtime */
#include "cuda_emu.h"

#include <algorithm>
#include <cstdarg>
#include <functional>
#include <map>
#include <memory>
#include <signal.h>
#include <string>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <vector>

/* ==== >>sanitizers =========================================================================================== */
extern "C" {
#define WEAK __attribute__((weak))
WEAK void __asan_poison_memory_region(void const volatile *, size_t);
WEAK void __asan_unpoison_memory_region(void const volatile *, size_t);
WEAK void *__asan_region_is_poisoned(void *, size_t);
WEAK void __sanitizer_start_switch_fiber(void **, const void *, size_t);
WEAK void __sanitizer_finish_switch_fiber(void *, const void **, size_t *);
WEAK void *__tsan_get_current_fiber(void);
WEAK void *__tsan_create_fiber(unsigned);
WEAK void __tsan_switch_to_fiber(void *, unsigned);
WEAK void __tsan_set_fiber_name(void *, const char *);
WEAK void __tsan_acquire(void *);
WEAK void __tsan_release(void *);
WEAK void AnnotateIgnoreReadsBegin(const char *, int);
WEAK void AnnotateIgnoreReadsEnd(const char *, int);
WEAK void AnnotateIgnoreWritesBegin(const char *, int);
WEAK void AnnotateIgnoreWritesEnd(const char *, int);
WEAK void __tsan_read_range_pc(void *, unsigned long, void *);
WEAK void __tsan_write_range_pc(void *, unsigned long, void *);

/* At its end a process with several contexts would sleep for a second, lest a thread has yet something to show. */
const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "atexit_sleep_ms=0"; }
}

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuemu {

static inline bool with_asan() { return &__asan_poison_memory_region != nullptr; }
static inline bool with_tsan() { return &__tsan_create_fiber != nullptr; }

static void poison(void *p, size_t n)
{
    if (with_asan()) __asan_poison_memory_region(p, n);
}

static void unpoison(void *p, size_t n)
{
    if (with_asan()) __asan_unpoison_memory_region(p, n);
}

/* Fills and copies of the engine are loops, and this keeps them loops: memset and memcpy are known to the race
   checker, which would take them for accesses of the kernel. */
#define KEEP_LOOP() asm volatile("" ::: "memory")

static void fill_unset(void *p, size_t n) /* NaN in every format */
{
    char *c = (char *)p;
    for (; n >= 16; n -= 16, c += 16) {
        const uint64_t ones[2] = {~0ull, ~0ull};
        __builtin_memcpy(c, ones, 16);
        KEEP_LOOP();
    }
    for (; n; --n, ++c) {
        *c = (char)0xff;
        KEEP_LOOP();
    }
}

static inline void copy16(void *d, const void *s) { __builtin_memcpy(d, s, 16); }

static inline void copy_bytes(char *d, const char *s, int n)
{
    for (int i = 0; i < n; ++i) {
        d[i] = s[i];
        KEEP_LOOP();
    }
}

/* ==== >>state ================================================================================================ */
enum {
    MAX_THREADS = 1024, /* of a block, and, which is a limit of the emulation, of a cluster */
    MAX_CLUSTER = 8,
    REMOTE = 24, /* a shared address of another block has its rank + 1 from this bit on */
    MAX_WARPS = MAX_THREADS / 32,
    STACK = 256 << 10,
    PAGE = 4096,
    GUARD = 64 << 10,                  /* of addresses that fault, on both sides of a stack; frames are smaller */
    WINDOW = 1024,                     /* shared addresses begin here, as on a GPU with reserved shared memory */
    SMEM_ROOM = (228 << 10) + 2 * PAGE /* the most that any device has, and room to choose the alignment */
};
static constexpr uint64_t MBAR_CANARY = 0x6d62617272696572ull;

enum class Sched { rr, first, last, random };
enum class Async { early, late, mixed };

/* Shared memory of a multiprocessor by compute capability (CUDA C++ programming guide, technical specifications). A
   block can have 1 KB less. */
struct Device {
    int cc, smem;
};
static const Device devices[] = {{80, 164 << 10}, {86, 100 << 10},  {87, 164 << 10},  {89, 100 << 10},
                                 {90, 228 << 10}, {100, 228 << 10}, {103, 228 << 10}, {120, 100 << 10}};

struct Config {
    Sched sched = Sched::rr;
    Async async = Async::late;
    uint64_t seed = 1;
    Device device = devices[4];
};
static Config cfg;

/* Addresses only: the synchronisation objects of one event, for threads and for their asynchronous proxies. */
struct Sync {
    uint64_t thread = 0, proxy = 0;
};

/* a set of threads of the block */
struct Threads {
    uint64_t word[MAX_THREADS / 64] = {};

    void add(int i) { word[i >> 6] |= 1ull << (i & 63); }
    void add_warp(int warp, unsigned mask) { word[warp >> 1] |= (uint64_t)mask << ((warp & 1) * 32); }
    void remove(int i) { word[i >> 6] &= ~(1ull << (i & 63)); }
    void move_to(Threads &to)
    {
        for (int w = 0; w < MAX_THREADS / 64; ++w) to.word[w] |= word[w], word[w] = 0;
    }
};

/* Contexts of the race checker that a CUDA thread can have. Only the first always exists. */
enum Context {
    THREAD, /* its ordinary accesses                                                            */
    PROXY,  /* its asynchronous proxy: wgmma and bulk copies act in it                          */
    ENGINE, /* the copy engine: bulk loads, which know what the thread knew when it issued them */
    FENCED, /* knows what the thread knew at its last fence: what its atomics publish           */
    CONTEXTS
};

struct CpOp {
    uint32_t dst;
    const void *src;
    int bytes, src_bytes, line;
    bool done, tracked; /* tracked: an mbarrier tells of its end */
};

/* Committed groups of something, and the open one: items of all of them in order, and where each committed one ends. */
template <class T> struct Groups {
    std::vector<T> items;
    std::vector<size_t> ends;
    size_t dropped = 0; /* items, so far */

    void clear() { items.clear(), ends.clear(), dropped = 0; }
    void commit() { ends.push_back(items.size()); }
    /* calls f on each item of all committed groups but the newest `left`, and drops them */
    template <class F> void complete(size_t left, F f)
    {
        if (ends.size() <= left) return;
        const size_t groups = ends.size() - left, count = ends[groups - 1];
        for (size_t i = 0; i < count; ++i) f(items[i]);
        items.erase(items.begin(), items.begin() + (ptrdiff_t)count);
        ends.erase(ends.begin(), ends.begin() + (ptrdiff_t)groups);
        for (size_t &end : ends) end -= count;
        dropped += count;
    }
};

struct Warp;
struct Place;
struct Fiber {
    /* what every switch touches comes first */
    void *sp = nullptr;
    Warp *w = nullptr;
    Place *place = nullptr;
    uint3 tid{};
    int number = 0; /* in the cluster: the index in `fibers` and in sets of threads */
    int linear = 0, lane = 0, warp = 0; /* in the block */
    const char *what = nullptr; /* what it waits for, and where */
    int line = 0;
    bool alive = false, wgmma_fenced = false, has_fence = false;
    bool is_at_cluster = false; /* has come to barrier.cluster.arrive, and not to the wait */
    unsigned cluster_phase = 0; /* of that */
    void *last_atomic = nullptr; /* what the next fence lets the thread know */
    char *stack = nullptr;
    void *asan_fake = nullptr;
    void *context[CONTEXTS] = {};
    uint64_t launch[CONTEXTS] = {}, block[CONTEXTS] = {}; /* the last ones that the context was in, counted from 1 */
    uint64_t via[CONTEXTS] = {}; /* synchronisation objects between the thread and its other contexts */
    Groups<CpOp> cp;
    size_t store_groups = 0; /* committed groups of bulk stores */
};

/* One operation that lanes of a warp are coming to. */
struct Collective {
    unsigned mask = 0, here = 0;
    const char *what = nullptr;
    int line = 0;
    unsigned phase = 0;
    Sync sync[2];
};

/* What lanes bring to a collective, and take from it: arrays over lanes. Entries of a lane are written by itself,
   and by the last one to come, so that a lane which is ahead does no harm to those that have not yet taken theirs. */
struct Exchange {
    struct {
        uint64_t in[32], out[32];
        int src[32];
    } shuffle;
    struct {
        const void *row[32];
        uint32_t reg[4][32];
        uint32_t addr[32];
    } matrix;
    struct {
        /* the fragments as they are: 8x8 blocks of 16-bit elements, rows of 16 bytes */
        alignas(64) uint32_t a[4][32], b[2][32];
        alignas(64) float cd[2][8 * 8];
    } mma;
};

struct Warp {
    unsigned alive = 0;
    int partial = 0; /* collectives under way with less than all lanes */
    Collective full, part[4];
    Exchange x;
};

struct WgmmaOp {
    int n, line;
    bool scale_d, trans_a, trans_b, a_in_registers;
    Type type;
    uint64_t desc_a, desc_b;
    void *pc;
    float *d[128];
    const uint32_t *a[128];
    std::vector<float> saved; /* the accumulators; while the operation is under way, the thread's own hold NaNs */
};

struct Warpgroup {
    int here = 0, line = 0;
    const char *what = nullptr;
    void *arg[128] = {};
    Groups<WgmmaOp> ops;
};

struct Barrier {
    int here = 0, want = 0, line = 0;
    unsigned phase = 0;
    int sum[2] = {};
    Threads waiting;
    Sync sync[2];
};

struct Mbarrier {
    bool valid = false;
    uint32_t address = 0, want = 0, pending = 0, phase = 0;
    int64_t tx = 0;
    Threads waiting;
    Sync sync[4], remote[4]; /* remote: what blocks of the cluster have to say, to waits at cluster scope */
};

struct Map;
/* Something that the hardware does in its own time. */
struct Transfer {
    enum Kind { LOAD, STORE, CP_ARRIVE } kind;
    uint32_t smem, mbar;
    size_t bytes;     /* of shared memory */
    const char *gmem; /* a plain bulk copy; else map */
    int coord[5];
    int owner, line;
    unsigned blocks; /* of the cluster, that a load is for: bit = rank */
    size_t group;    /* of a store */
    size_t cp_count; /* CP_ARRIVE: it comes after that many cp.async of the thread */
    void *pc;
    std::shared_ptr<Map> map;
    bool is_read; /* a store that has read its source */
    std::vector<char> data;
};

/* A place for a block. Plain builds have one. Beside the race checker there are several, used in turn, each with
   fibers and shared memory of its own. A thread and the same one of the next block in its place are one thread to the
   checker; no other threads of two blocks are ordered before their first barriers, which have the same objects. */
struct Place {
    std::vector<std::unique_ptr<Fiber>> fibers;
    char *smem_room = nullptr;
    Warp warps[MAX_WARPS];
    Warpgroup groups[MAX_THREADS / 128];
    Barrier bars[16], of_cluster; /* of_cluster: that of the block of rank 0 is used */
    std::vector<std::unique_ptr<Mbarrier>> mbars;
    /* the block */
    uint64_t number = 0; /* of all, counted from 1 */
    uint3 index{};
    unsigned rank = 0;  /* in its cluster */
    int first = 0;      /* its first thread's number */
    int live = 0;
    char *smem_base = nullptr;
    size_t smem_align = 0;    /* 0: no thread has asked for shared memory so far */
    uint32_t smem_window = 0; /* shared address of smem_base */
    char *gone = nullptr; /* for each thread, written by those that end; what comes to a block from others reads it */
};

static std::vector<std::unique_ptr<Place>> places;
static Place *place;   /* of the running block */
static Place *cluster[MAX_CLUSTER]; /* of the blocks of its cluster */
static unsigned cluster_size = 1;
static Fiber **fibers; /* the threads of the cluster */
static Fiber *fiber_table[MAX_THREADS];
static Fiber *cur; /* the running thread; null in the launching context */
static int nthreads; /* of a block */
static int all_threads, live, last_run; /* of the cluster */
static Threads ready;
static std::vector<Transfer> transfers;
static LaunchBase *job;
static size_t smem_size;
static Fiber host;            /* where a launch came from */
static uint64_t launch_begin, launch_end; /* synchronisation objects */
Stats stats;

static uint64_t rnd()
{
    uint64_t &x = cfg.seed;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return x;
}

static bool one_in(unsigned n) { return rnd() % n == 0; }

static int number_from_environment(const char *name)
{
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}
const int planted_fault = number_from_environment("SVG2_FAULT");

void configure(const char *sched, const char *async, uint64_t seed)
{
    const std::string s = sched, a = async;
    if (s == "rr")
        cfg.sched = Sched::rr;
    else if (s == "first")
        cfg.sched = Sched::first;
    else if (s == "last")
        cfg.sched = Sched::last;
    else if (s == "random")
        cfg.sched = Sched::random;
    else
        fail("configure: no order of threads is called %s", sched);
    if (a == "early")
        cfg.async = Async::early;
    else if (a == "late")
        cfg.async = Async::late;
    else if (a == "mixed")
        cfg.async = Async::mixed;
    else
        fail("configure: no time of completion is called %s", async);
    cfg.seed = seed * 0x9e3779b97f4a7c15ull + 1;
    if (!cfg.seed) cfg.seed = 1;
}

/* "random mixed 3" in the environment: how a program begins */
[[maybe_unused]] static const bool is_configured = [] {
    char sched[16], async[16];
    unsigned seed = 1;
    const char *text = getenv("EMU_SCHEDULE");
    const bool is_there = text && sscanf(text, "%15s %15s %u", sched, async, &seed) >= 2;
    if (is_there) configure(sched, async, seed);
    return is_there;
}();

void device(int cc)
{
    for (const Device &d : devices)
        if (d.cc == cc) {
            cfg.device = d;
            return;
        }
    fail("device: compute capability %d is not known", cc);
}
/* 80 in the environment: the device of the program, if it chooses none */
[[maybe_unused]] static const bool has_device = [] {
    const int cc = number_from_environment("EMU_DEVICE");
    if (cc) device(cc);
    return cc != 0;
}();

void fail(const char *fmt, ...)
{
    fflush(stdout);
    fprintf(stderr, "cuda_emu: ");
    if (cur)
        fprintf(stderr, "block (%u,%u,%u) thread %d (warp %d lane %d): ", blockIdx.x, blockIdx.y, blockIdx.z,
                cur->linear, cur->warp, cur->lane);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    fflush(stderr);
    _exit(70);
}

/* ==== >>races ================================================================================================
   While a thread runs, in the kernel or in the engine, the race checker's context is that thread's own. */
static void *now;       /* the context that the race checker has been told of */
static void *root;      /* contexts grow from this one, which never learns anything */
static void *kernel_pc; /* where the kernel called the engine, for reports */
#define FROM_KERNEL() (kernel_pc = __builtin_return_address(0))

/* a stretch of code in another context */
struct As {
    void *const before = now;
    explicit As(void *context) { go(context); }
    ~As() { go(before); }
    As(const As &) = delete;
    As &operator=(const As &) = delete;

    static void go(void *context)
    {
        if (context == now) return;
        now = context;
        __tsan_switch_to_fiber(context, 1);
    }
};

/* The engine's own doing, above all on its heap: not the kernel's. */
struct Aside {
    void *const before = now;
    Aside()
    {
        if (with_tsan()) As::go(host.context[THREAD]);
    }
    ~Aside()
    {
        if (with_tsan()) As::go(before);
    }
    Aside(const Aside &) = delete;
    Aside &operator=(const Aside &) = delete;
};

static const char *const context_names[CONTEXTS] = {"", "async proxy of ", "bulk copy of ", "fences of "};

static char *put(char *to, const char *text)
{
    while (*text) *to++ = *text++;
    return to;
}

static char *put(char *to, unsigned n) /* snprintf for each thread of each block takes its time */
{
    if (n > 9) to = put(to, n / 10);
    *to++ = (char)('0' + n % 10);
    return to;
}

static void name_context(Fiber *f, int kind)
{
    char name[96], *p = name;
    Aside aside;
    const uint3 b = f->place->index;
    p = put(put(p, context_names[kind]), "block ");
    p = put(put(put(put(p, b.x), ","), b.y), ",");
    p = put(put(put(p, b.z), " thread "), (unsigned)f->linear);
    *p = 0;
    __tsan_set_fiber_name(f->context[kind], name);
}

/* Made at its first use. It knows what was before the launch. */
static void *context_of(Fiber *f, Context kind)
{
    if (f->block[kind] == f->place->number) return f->context[kind];
    f->block[kind] = f->place->number;
    if (!f->context[kind]) {
        As as(root);
        f->context[kind] = __tsan_create_fiber(0);
    }
    if (f->launch[kind] != stats.launches) {
        As as(f->context[kind]);
        __tsan_acquire(&launch_begin);
        f->launch[kind] = stats.launches;
    }
    name_context(f, kind);
    return f->context[kind];
}

/* one context of a thread learns what another one, perhaps of another thread, has done and knows */
static void teach(Fiber *from, Context from_kind, Fiber *to, Context to_kind)
{
    if (!with_tsan()) return;
    uint64_t *via = &from->via[from_kind == THREAD ? to_kind : from_kind];
    {
        As as(context_of(from, from_kind));
        __tsan_release(via);
    }
    As as(context_of(to, to_kind));
    __tsan_acquire(via);
}

/* Proxies exist from their first use in a block on, and what is not there has nothing to tell. */
static bool proxies_used;
static void *proxy_of(Fiber *f)
{
    proxies_used = true;
    return context_of(f, PROXY);
}

static void release(Sync &s)
{
    if (!with_tsan()) return;
    __tsan_release(&s.thread);
    if (proxies_used && cur->context[PROXY]) {
        As as(cur->context[PROXY]);
        __tsan_release(&s.proxy);
    }
}

static void acquire(Sync &s)
{
    if (!with_tsan()) return;
    __tsan_acquire(&s.thread);
    if (proxies_used) {
        As as(proxy_of(cur));
        __tsan_acquire(&s.proxy);
    }
}

static void access(const void *p, size_t n, bool is_write)
{
    (is_write ? __tsan_write_range_pc : __tsan_read_range_pc)(const_cast<void *>(p), n, kernel_pc);
}

/* an access by the running thread, or by another context of a thread */
static inline void touch(const void *p, size_t n, bool is_write)
{
    if (with_tsan()) access(p, n, is_write);
}

static void touch_as(Fiber *f, Context kind, const void *p, size_t n, bool is_write)
{
    if (!with_tsan()) return;
    As as(context_of(f, kind));
    access(p, n, is_write);
}

/* ==== >>fibers =============================================================================================== */
} // namespace cuemu
#if !defined(__x86_64__)
#  error "cuemu_switch is not written for this machine"
#endif
/* saves the callee's registers and the stack pointer, and goes on where the other stack was left */
extern "C" void cuemu_switch(void **save, void *load);
asm(R"(
.text
.globl cuemu_switch
.type cuemu_switch,@function
cuemu_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuemu_switch,.-cuemu_switch
)");
namespace cuemu {

static const void *host_stack;
static size_t host_stack_size;
static bool is_from_host; /* the last switch */

static void arrived() /* first thing on a stack that was switched to */
{
    if (!with_asan()) return;
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber((cur ? cur : &host)->asan_fake, &bottom, &size);
    if (is_from_host) host_stack = bottom, host_stack_size = size;
}

/* Has the only call of cuemu_switch: lanes of a warp then return along the path on which the lane before them came,
   and the processor predicts it. */
static __attribute__((noinline)) void switch_to(Fiber *to)
{
    Fiber *const from = cur ? cur : &host;
    if (from == to) return;
    is_from_host = from == &host;
    cur = to == &host ? nullptr : to;
    threadIdx = to->tid;
    if (to->place != place && cur) {
        place = to->place;
        blockIdx = place->index;
    }
    if (with_tsan()) As::go(to->context[THREAD]);
    if (with_asan()) {
        const bool is_host = to == &host;
        __sanitizer_start_switch_fiber(&from->asan_fake, is_host ? host_stack : to->stack,
                                       is_host ? host_stack_size : (size_t)STACK);
    }
    cuemu_switch(&from->sp, to->sp);
    arrived();
}

[[noreturn]] static void deadlock()
{
    const uint3 begin = cluster[0]->index;
    fprintf(stderr, "cuda_emu: deadlock in block (%u,%u,%u): nothing can run\n", begin.x, begin.y, begin.z);
    for (int first = 0, end; first < all_threads; first = end) { /* runs of lanes that wait for the same */
        const Fiber &f = *fibers[first];
        if (f.linear == 0 && f.number) fprintf(stderr, " block of rank %u:\n", f.place->rank);
        for (end = first + 1; end % 32 && fibers[end]->alive == f.alive; ++end)
            if (f.alive && (fibers[end]->what != f.what || fibers[end]->line != f.line)) break;
        fprintf(stderr, "  warp %d lanes %d-%d: ", f.warp, f.lane, (end - 1) & 31);
        if (f.alive)
            fprintf(stderr, "%s line %d\n", f.what, f.line);
        else
            fprintf(stderr, "exited\n");
    }
    for (unsigned r = 0; r < cluster_size; ++r)
        for (const auto &m : cluster[r]->mbars)
            if (m->valid)
                fprintf(stderr, "  mbarrier %u: phase %u, %u of %u arrivals pending, tx %lld\n", m->address, m->phase,
                        m->pending, m->want, (long long)m->tx);
    cur = nullptr;
    fail("deadlock");
}

static bool complete_one();

static int first_ready(int from) /* at or after from, going round; -1 if none */
{
    const int words = (all_threads + 63) / 64;
    int w = from >> 6;
    if (w >= words) w = 0, from = 0;
    uint64_t bits = ready.word[w] & ~0ull << (from & 63);
    for (int k = 0; k <= words; ++k) {
        if (bits) return (w << 6) + __builtin_ctzll(bits);
        if (++w == words) w = 0;
        bits = ready.word[w];
    }
    return -1;
}

static int last_ready()
{
    for (int w = (all_threads + 63) / 64; w-- > 0;)
        if (ready.word[w]) return (w << 6) + 63 - __builtin_clzll(ready.word[w]);
    return -1;
}

/* who runs next: a thread, or the launching context when all have ended */
static Fiber *next_fiber()
{
    for (;;) {
        if (cfg.async == Async::mixed && !transfers.empty() && one_in(16)) complete_one();
        int i;
        switch (cfg.sched) {
        case Sched::rr:
            i = first_ready(last_run + 1);
            break;
        case Sched::first:
            i = first_ready(0);
            break;
        case Sched::last:
            i = last_ready();
            break;
        default:
            i = first_ready((int)(rnd() % (unsigned)all_threads));
        }
        if (i >= 0) {
            ready.remove(i);
            last_run = i;
            return fibers[i];
        }
        if (!live) return &host;
        if (!complete_one()) deadlock();
    }
}

static inline void wait_here(const char *what, int line)
{
    cur->what = what;
    cur->line = line;
    switch_to(next_fiber());
}

static void end_cluster_barrier();

static void end_thread()
{
    Fiber *f = cur;
    for (const CpOp &op : f->cp.items)
        if (!op.tracked) fail("ended with cp.async of line %d not waited for", op.line);
    const unsigned me = 1u << f->lane;
    if (f->w->full.here) fail("exits, but %s at line %d waits for it", f->w->full.what, f->w->full.line);
    for (const Collective &c : f->w->part)
        if (c.here && (c.mask & me)) fail("exits, but %s at line %d waits for it", c.what, c.line);
    if (cluster_size > 1) touch(&place->gone[f->linear], 1, true);
    f->alive = false;
    f->w->alive &= ~me;
    --place->live;
    --live;
    end_cluster_barrier(); /* which does not wait for threads that are gone */
}

static void fiber_main()
{
    arrived();
    for (;;) { /* one block after another */
        job->run();
        end_thread();
        switch_to(next_fiber());
    }
}

static char *map_pages(size_t bytes) /* between two stretches that fault */
{
    char *p = (char *)mmap(nullptr, bytes + 2 * GUARD, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p + GUARD, bytes, PROT_READ | PROT_WRITE)) fail("no memory for stacks");
    return p + GUARD;
}

static std::unique_ptr<Fiber> new_fiber(int i)
{
    std::unique_ptr<Fiber> f(new Fiber);
    f->linear = i;
    f->warp = i / 32;
    f->lane = i & 31;
    f->stack = map_pages(STACK);
    /* Stacks lie a power of two apart. Their tops do not, so that the frames of a warp do not share a few sets of
       the cache. */
    void **sp = (void **)(void *)(f->stack + STACK - (i & 31) * 192 - (i >> 5 & 1) * 64);
    *--sp = nullptr; /* a function begins with the stack at 8 modulo 16 */
    *--sp = (void *)fiber_main;
    for (int saved = 0; saved < 6; ++saved) *--sp = nullptr;
    f->sp = sp;
    return f;
}

/* ==== >>blocks =============================================================================================== */
static constexpr unsigned char SMEM_CANARY = 0xa5;

/* Where a block runs next: not where others of its cluster do. Beside the race checker, as many places as about a
   thousand of its contexts make. */
static void take_place()
{
    static size_t turn;
    const size_t wanted =
        std::max((size_t)cluster_size, with_tsan() ? (size_t)std::min(8, std::max(2, 384 / nthreads)) : (size_t)1);
    while (places.size() < wanted) {
        places.emplace_back(new Place);
        places.back()->gone = places.back()->smem_room = map_pages(SMEM_ROOM);
    }
    place = places[turn++ % wanted].get();
    while (place->fibers.size() < (size_t)nthreads) place->fibers.push_back(new_fiber((int)place->fibers.size()));
}

/* The race checker forgets accesses to pages that are mapped, if it is the launching context that maps them, whose own
   accesses are ignored. This is cheaper by far than to teach each thread of a block what those of the last one did. */
static void forget(char *p, size_t bytes)
{
    if (mmap(p, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != p)
        fail("no memory for a block");
}

static void forget_block()
{
    const size_t used = (smem_size + 2 * WINDOW + PAGE - 1) / PAGE * PAGE; /* whatever the alignment */
    if (smem_size) forget(place->smem_room + SMEM_ROOM - used, used);
    if (cluster_size > 1) forget(place->gone, PAGE);
}

static void begin_block(uint3 index, unsigned rank)
{
    static uint64_t number;
    take_place();
    place->number = ++number;
    if (with_tsan()) forget_block();
    fibers = fiber_table;
    cluster[rank] = place;
    place->index = blockIdx = index;
    place->rank = rank;
    place->first = (int)rank * nthreads;
    place->live = nthreads;
    for (int w = 0; w < nthreads / 32; ++w) {
        Warp &warp = place->warps[w];
        warp.alive = ~0u;
        warp.partial = 0;
        warp.full.here = 0;
        for (Collective &c : warp.part) c.mask = c.here = 0;
    }
    for (Warpgroup &g : place->groups) {
        g.here = 0;
        g.ops.clear();
    }
    for (Barrier &b : place->bars) {
        b.here = 0;
        b.waiting = Threads();
    }
    place->of_cluster.here = 0;
    place->of_cluster.waiting = Threads();
    for (const auto &m : place->mbars) m->valid = false;
    place->smem_align = 0;
    for (int i = 0; i < nthreads; ++i) {
        Fiber *f = fibers[place->first + i] = place->fibers[(size_t)i].get();
        const unsigned n = (unsigned)i;
        f->place = place;
        f->number = place->first + i;
        f->tid = make_uint3(n % blockDim.x, n / blockDim.x % blockDim.y, n / (blockDim.x * blockDim.y));
        f->w = &place->warps[f->warp];
        f->alive = true;
        f->wgmma_fenced = f->has_fence = f->is_at_cluster = false;
        f->last_atomic = nullptr;
        f->store_groups = 0;
        f->cp.clear();
        if (with_tsan()) (void)context_of(f, THREAD);
        ready.add(f->number);
    }
}

static void begin_cluster()
{
    all_threads = live = nthreads * (int)cluster_size;
    last_run = -1;
    transfers.clear();
    ready = Threads();
}

static void end_block(Place *of)
{
    place = of;
    blockIdx = of->index;
    for (const Warpgroup &g : place->groups)
        if (!g.ops.items.empty()) fail("block ended with wgmma of line %d not waited for", g.ops.items[0].line);
    if (place->smem_align && !with_asan()) {
        const char *end = place->smem_room + SMEM_ROOM, *const smem_base = place->smem_base;
        for (const char *p = smem_base - 256; p < end; ++p) {
            if (p == smem_base) p += smem_size;
            if (p < end && (unsigned char)*p != SMEM_CANARY)
                fail("block (%u,%u,%u) wrote to its shared memory of %zu bytes at offset %td", blockIdx.x, blockIdx.y,
                     blockIdx.z, smem_size, p - smem_base);
        }
    }
    ++stats.blocks;
}

/* ==== >>collectives ========================================================================================== */
static Collective &search_collective(Warp &w, const char *what, unsigned mask, int line)
{
    Collective *unused = mask == ~0u ? &w.full : nullptr;
    for (Collective &c : w.part) {
        if (c.here && c.mask == mask) return c;
        if (!c.here)
            unused = unused ? unused : &c;
        else if (c.mask & mask)
            fail("%s at line %d, mask %08x: %s at line %d is under way with mask %08x", what, line, mask, c.what,
                 c.line, c.mask);
    }
    if (mask != ~0u && w.full.here)
        fail("%s at line %d, mask %08x: %s at line %d is under way with all lanes", what, line, mask, w.full.what,
             w.full.line);
    if (!unused) fail("%s at line %d: more than 4 collectives under way in one warp", what, line);
    return *unused;
}

static inline Collective &collective_of(Warp &w, const char *what, unsigned mask, int line)
{
    return mask == ~0u && !w.partial ? w.full : search_collective(w, what, mask, line);
}

/* The lane has put what it brings into the exchange. The last to come calls exec for all; then all go on. */
template <class Exec>
static inline void meet(Collective &c, Warp &w, const char *what, unsigned mask, int line, Exec exec)
{
    Fiber *const f = cur;
    const unsigned me = 1u << f->lane;
    if (!c.here) {
        if (mask & ~w.alive)
            fail("%s at line %d, mask %08x: lanes %08x have exited", what, line, mask, mask & ~w.alive);
        if (!(mask & me)) fail("%s at line %d: this lane is not in its own mask %08x", what, line, mask);
        c.mask = mask;
        c.what = what;
        c.line = line;
        w.partial += mask != ~0u;
    } else if (c.line != line || (c.what != what && strcmp(c.what, what))) {
        fail("divergent warp: %s at line %d meets %s at line %d", what, line, c.what, c.line);
    }
    c.here |= me;
    if (c.here != mask) {
        if (!(mask & me)) fail("%s at line %d: this lane is not in its own mask %08x", what, line, mask);
        wait_here(what, line);
        return;
    }
    w.partial -= mask != ~0u;
    c.here = 0;
    ++c.phase;
    exec(w.x);
    ready.add_warp(f->number / 32, mask & ~me);
}

template <class Exec> static inline void collective(const char *what, unsigned mask, int line, Exec exec)
{
    Warp &w = *cur->w;
    meet(collective_of(w, what, mask, line), w, what, mask, line, exec);
}

static inline Exchange &exchange() { return cur->w->x; }

template <class F> static inline void each(unsigned mask, F f)
{
    for (; mask; mask &= mask - 1) f(__builtin_ctz(mask));
}

int shfl_source(Shuffle mode, int operand, int width, int line)
{
    if (width < 1 || width > 32 || (width & (width - 1))) fail("shuffle at line %d: width %d", line, width);
    const int lane = cur->lane, first = lane & ~(width - 1);
    int src;
    switch (mode) {
    case Shuffle::idx:
        return first + (operand & (width - 1));
    case Shuffle::bfly:
        src = lane ^ (operand & 31);
        return src >= first + width ? lane : src;
    case Shuffle::down:
        src = lane + (operand & 31);
        return src >= first + width ? lane : src;
    default:
        src = lane - (operand & 31);
        return src < first ? lane : src;
    }
}

uint64_t shfl_bits(const char *what, unsigned mask, uint64_t v, int src, int line)
{
    FROM_KERNEL();
    Exchange &mine = exchange();
    const int lane = cur->lane;
    mine.shuffle.in[lane] = v;
    mine.shuffle.src[lane] = src;
    collective(what, mask, line, [mask, what, line](Exchange &x) {
        each(mask, [&](int i) {
            const int from = x.shuffle.src[i];
            if (!(mask >> from & 1))
                fail("%s at line %d: lane %d reads lane %d, which is not in the mask %08x", what, line, i, from, mask);
            x.shuffle.out[i] = x.shuffle.in[from];
        });
    });
    return mine.shuffle.out[lane];
}

/* one result for all lanes */
template <class F> static uint64_t all_to_one(const char *what, unsigned mask, uint64_t v, int line, F fold)
{
    Exchange &mine = exchange();
    const int lane = cur->lane;
    mine.shuffle.in[lane] = v;
    collective(what, mask, line, [mask, fold](Exchange &x) {
        uint64_t r = x.shuffle.in[__builtin_ctz(mask)];
        each(mask & (mask - 1), [&](int i) { r = fold(r, x.shuffle.in[i]); });
        each(mask, [&](int i) { x.shuffle.out[i] = r; });
    });
    return mine.shuffle.out[lane];
}

unsigned ballot(const char *what, unsigned mask, bool p, int line)
{
    FROM_KERNEL();
    return (unsigned)all_to_one(what, mask, (uint64_t)p << cur->lane, line,
                                [](uint64_t a, uint64_t b) { return a | b; });
}

int64_t reduce(Reduce op, unsigned mask, int64_t v, int line)
{
    FROM_KERNEL();
    return (int64_t)all_to_one("redux", mask, (uint64_t)v, line, [op](uint64_t a, uint64_t b) {
        switch (op) {
        case Reduce::add:
            return a + b;
        case Reduce::min:
            return (int64_t)b < (int64_t)a ? b : a;
        case Reduce::max:
            return (int64_t)b > (int64_t)a ? b : a;
        case Reduce::bit_and:
            return a & b;
        case Reduce::bit_or:
            return a | b;
        default:
            return a ^ b;
        }
    });
}

unsigned match_any(unsigned mask, uint64_t v, int line)
{
    FROM_KERNEL();
    Exchange &mine = exchange();
    const int lane = cur->lane;
    mine.shuffle.in[lane] = v;
    collective("match", mask, line, [mask](Exchange &x) {
        each(mask, [&](int i) {
            x.shuffle.out[i] = 0;
            each(mask, [&](int j) { x.shuffle.out[i] |= (uint64_t)(x.shuffle.in[i] == x.shuffle.in[j]) << j; });
        });
    });
    return (unsigned)mine.shuffle.out[lane];
}

unsigned match_all(unsigned mask, uint64_t v, int line) { return match_any(mask, v, line) == mask ? mask : 0; }

unsigned active_mask() { return cur->w->alive; }

void sync_warp(unsigned mask, int line)
{
    FROM_KERNEL();
    Warp &w = *cur->w;
    Collective &c = collective_of(w, "syncwarp", mask, line);
    Sync &s =
        c.sync[c.phase & 1]; /* lanes still leaving a phase, and lanes coming to the next, have different objects */
    release(s);
    meet(c, w, "syncwarp", mask, line, [](Exchange &) {});
    acquire(s);
}

/* All 128 threads of a warpgroup, each with a pointer to what it brings. */
template <class Exec> static void warpgroup(const char *what, void *arg, int line, Exec exec)
{
    Fiber *const f = cur;
    if ((f->linear | 127) >= nthreads)
        fail("%s at line %d: warps %d.. are no full warpgroup", what, line, f->warp & ~3);
    Warpgroup &g = place->groups[f->linear / 128];
    if (!g.here) {
        g.what = what;
        g.line = line;
    } else if (g.line != line || (g.what != what && strcmp(g.what, what))) {
        fail("divergent warpgroup: %s at line %d meets %s at line %d", what, line, g.what, g.line);
    }
    g.arg[f->linear & 127] = arg;
    if (++g.here < 128) {
        wait_here(what, line);
        return;
    }
    g.here = 0;
    exec(g);
    for (int w = 0; w < 4; ++w) ready.add_warp(place->first / 32 + (f->warp & ~3) + w, ~0u);
    ready.remove(f->number);
}

/* ==== >>barriers ============================================================================================= */
/* is_whole: __syncthreads and its kin, which all threads must reach at the same place */
static Barrier &barrier_at(int id, int count, bool is_whole, const char *what, int line)
{
    if (id < 0 || id > 15) fail("%s at line %d: there is no barrier %d", what, line, id);
    if (count < 1 || count % 32 || count > nthreads) fail("%s %d at line %d: count %d", what, id, line, count);
    Barrier &b = place->bars[id];
    if (!b.here)
        b.line = line;
    else if (b.want != count)
        fail("%s %d at line %d: count %d, but others came with %d", what, id, line, count, b.want);
    else if (is_whole && b.line != line)
        fail("divergent block: %s at line %d meets one at line %d", what, line, b.line);
    b.want = count;
    return b;
}

static bool is_last(Barrier &b)
{
    if (++b.here < b.want) return false;
    b.here = 0;
    ++b.phase;
    b.waiting.move_to(ready);
    return true;
}

static int barrier(int id, int count, int value, const char *what, int line)
{
    const bool is_whole = count < 0;
    Barrier &b = barrier_at(id, is_whole ? nthreads : count, is_whole, what, line);
    const unsigned parity = b.phase & 1; /* a thread may come to the next phase before all have left this one */
    if (!b.here) b.sum[parity] = 0;
    b.sum[parity] += value;
    release(b.sync[parity]);
    if (!is_last(b)) {
        b.waiting.add(cur->number);
        wait_here(what, line);
    }
    acquire(b.sync[parity]);
    return b.sum[parity];
}

void bar_sync(int id, int count, int line)
{
    FROM_KERNEL();
    barrier(id, count, 0, count < 0 ? "__syncthreads" : "bar.sync", line);
}

int bar_reduce(Reduce op, int p, int line)
{
    FROM_KERNEL();
    const int sum = barrier(0, -1, p != 0, "__syncthreads with a vote", line);
    return op == Reduce::add ? sum : op == Reduce::bit_or ? sum != 0 : sum == nthreads;
}

void bar_arrive(int id, int count, int line)
{
    FROM_KERNEL();
    Barrier &b = barrier_at(id, count, false, "bar.arrive", line);
    if (!b.here) b.sum[b.phase & 1] = 0;
    release(b.sync[b.phase & 1]);
    (void)is_last(b);
}

/* ---- of the cluster ---- */
unsigned cluster_rank() { return place->rank; }

/* All threads that have not ended have arrived: it is the next phase. */
static void end_cluster_barrier()
{
    Barrier &b = cluster[0]->of_cluster;
    if (!b.here || b.here < live) return;
    b.here = 0;
    ++b.phase;
    b.waiting.move_to(ready);
}

void cluster_arrive(int line)
{
    FROM_KERNEL();
    Barrier &b = cluster[0]->of_cluster;
    if (cur->is_at_cluster) fail("barrier.cluster.arrive at line %d: the second without a wait", line);
    cur->is_at_cluster = true;
    cur->cluster_phase = b.phase;
    release(b.sync[b.phase & 1]);
    ++b.here;
    end_cluster_barrier();
}

void cluster_wait(int line)
{
    FROM_KERNEL();
    Barrier &b = cluster[0]->of_cluster;
    if (!cur->is_at_cluster) fail("barrier.cluster.wait at line %d: without an arrival", line);
    while (b.phase == cur->cluster_phase) {
        b.waiting.add(cur->number);
        wait_here("barrier.cluster.wait", line);
    }
    cur->is_at_cluster = false;
    acquire(b.sync[cur->cluster_phase & 1]);
}

/* What a thread did before its fence is seen by who meets a later atomic of it with an atomic, and then has a fence. */
void thread_fence()
{
    if (!with_tsan()) return;
    cur->has_fence = true;
    teach(cur, THREAD, cur, FENCED);
    if (cur->last_atomic) __tsan_acquire(cur->last_atomic);
}

void atomic_hb(const void *p)
{
    if (!with_tsan()) return;
    cur->last_atomic = const_cast<void *>(p);
    if (!cur->has_fence) return;
    As as(cur->context[FENCED]);
    __tsan_release(cur->last_atomic);
}

/* ==== >>memory =============================================================================================== */
void *dyn_smem(size_t align, int line)
{
    if (place->smem_align) {
        if (align != place->smem_align) fail("dyn_smem at line %d: two alignments in one kernel", line);
        return place->smem_base;
    }
    if (align < 16 || align > 1024 || (align & (align - 1))) fail("dyn_smem at line %d: alignment %zu", line, align);
    place->smem_align = align;
    /* The base is aligned as the kernel declares it and no better, as an address and in the shared window; the last
       byte is near a page that faults. */
    char *const room = place->smem_room, *const end = room + SMEM_ROOM;
    char *smem_base = end - (smem_size + align - 1) / align * align;
    if ((uintptr_t)smem_base % (2 * align) == 0) smem_base -= align;
    place->smem_base = smem_base;
    place->smem_window = align == WINDOW ? (uint32_t)WINDOW : (uint32_t)(WINDOW + align);
    if (with_asan()) {
        poison(room, SMEM_ROOM);
        unpoison(smem_base, smem_size);
    } else {
        for (char *p = smem_base - 256; p < end; ++p) {
            if (p == smem_base) p += smem_size;
            if (p < end) *p = (char)SMEM_CANARY;
            KEEP_LOOP();
        }
    }
    fill_unset(smem_base, smem_size);
    return smem_base;
}

uint32_t smem_addr(const void *p)
{
    const ptrdiff_t d = (const char *)p - place->smem_base;
    if (!place->smem_align || d < 0 || (size_t)d > smem_size) fail("address %p is not in shared memory", p);
    return place->smem_window + (uint32_t)d;
}

/* n bytes at a shared address */
static inline char *smem_at(uint32_t a, size_t n, size_t align, const char *what, int line)
{
    const uint32_t smem_window = place->smem_window;
    const size_t at = (size_t)a - smem_window;
    if (!place->smem_align || a < smem_window || at > smem_size || n > smem_size - at)
        fail("%s at line %d: shared address %u (+%zu) is outside the block's %zu bytes, which begin at %u", what, line,
             a, n, smem_size, smem_window);
    if (a % align) fail("%s at line %d: shared address %u is not aligned to %zu", what, line, a, align);
    return place->smem_base + at;
}

/* ---- of another block of the cluster: at the same offset ---- */
uint32_t mapa(uint32_t a, uint32_t rank, int line)
{
    (void)smem_at(a, 0, 1, "mapa", line);
    if (rank >= cluster_size) fail("mapa at line %d: rank %u in a cluster of %u blocks", line, rank, cluster_size);
    return a | (rank + 1) << REMOTE;
}

/* As long as one of these exists, the engine works in that block. */
struct In {
    Place *const before = place;
    explicit In(Place *other) { place = other; }
    ~In() { place = before; }
    In(const In &) = delete;
    In &operator=(const In &) = delete;
};

/* A thread, or the copy engine on its behalf, comes to a block of the cluster, whose shared memory has to be there:
   it has begun, and not ended. */
static void check_block(Place *other, Fiber *who, Context kind, const char *what, int line)
{
    if (!other->smem_align) fail("%s at line %d: the block of rank %u has not begun", what, line, other->rank);
    if (!other->live) fail("%s at line %d: the block of rank %u has ended", what, line, other->rank);
    if (other == who->place) return;
    if (kind == THREAD) touch(other->gone, (size_t)nthreads, false);
    else touch_as(who, kind, other->gone, (size_t)nthreads, false);
}

/* the block of a shared address of the cluster, which becomes one of that block */
static Place *block_of(uint32_t &a, const char *what, int line)
{
    const uint32_t rank = a >> REMOTE;
    if (!rank) return place;
    if (rank > cluster_size) fail("%s at line %d: shared address %x is in no block of the cluster", what, line, a);
    a &= (1u << REMOTE) - 1;
    check_block(cluster[rank - 1], cur, THREAD, what, line);
    return cluster[rank - 1];
}

void store_remote(uint32_t a, const void *value, size_t bytes, int line)
{
    FROM_KERNEL();
    Place *const other = block_of(a, "st.shared::cluster", line);
    const In in(other);
    char *p = smem_at(a, bytes, bytes, "st.shared::cluster", line);
    touch(p, bytes, true);
    copy_bytes(p, (const char *)value, (int)bytes);
}

/* ---- device memory: one range of addresses, which only kernels and copies may touch ---- */
static constexpr size_t DEVICE_BYTES = (size_t)16 << 30, DEVICE_ALIGN = 256;
static constexpr unsigned char RED_ZONE = 0xb6;

struct Allocation {
    size_t bytes, room; /* room: with the red zone behind */
    bool is_free;
};
static struct {
    char *base = nullptr;
    size_t used = 0;
    int open = 0;
    std::map<char *, Allocation> all;
} heap;

static bool is_device(const void *p)
{
    return heap.base && (const char *)p >= heap.base && (const char *)p < heap.base + DEVICE_BYTES;
}

/* the live allocation that holds [p, p + n), or null */
static const Allocation *allocation_of(const void *p, size_t n, char **base = nullptr)
{
    auto it = heap.all.upper_bound((char *)const_cast<void *>(p));
    if (it == heap.all.begin()) return nullptr;
    --it;
    const size_t at = (size_t)((const char *)p - it->first);
    if (base) *base = it->first;
    return it->second.is_free || at > it->second.bytes || n > it->second.bytes - at ? nullptr : &it->second;
}

/* Device memory can be touched while one of these exists. At other times it faults: the host has no business there. */
struct OpenHeap {
    OpenHeap()
    {
        if (heap.open++ == 0) protect(PROT_READ | PROT_WRITE);
    }
    ~OpenHeap()
    {
        if (--heap.open == 0) protect(PROT_NONE);
    }
    OpenHeap(const OpenHeap &) = delete;
    OpenHeap &operator=(const OpenHeap &) = delete;

    static void protect(int how)
    {
        const size_t bytes = (heap.used + PAGE - 1) / PAGE * PAGE;
        if (bytes && mprotect(heap.base, bytes, how)) fail("device memory: mprotect");
    }
};

static void check_red_zones(const char *when)
{
    if (with_asan()) return; /* which has poisoned them */
    for (const auto &a : heap.all)
        for (size_t i = a.second.bytes; !a.second.is_free && i < a.second.room; ++i)
            if ((unsigned char)a.first[i] != RED_ZONE)
                fail("%s wrote past the end of an allocation: %p, %zu bytes, at offset %zu", when, (void *)a.first,
                     a.second.bytes, i);
}

static void *device_alloc(size_t bytes)
{
    if (!heap.base) {
        void *p = mmap(nullptr, DEVICE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED) return nullptr;
        heap.base = (char *)p;
    }
    if (bytes > DEVICE_BYTES) return nullptr;
    const size_t room = (bytes + DEVICE_ALIGN - 1) / DEVICE_ALIGN * DEVICE_ALIGN + DEVICE_ALIGN;
    /* the first freed place of the same size, or the end */
    char *p = nullptr;
    for (auto &a : heap.all)
        if (a.second.is_free && a.second.room == room) {
            p = a.first;
            break;
        }
    if (!p) {
        if (room > DEVICE_BYTES - heap.used) return nullptr;
        p = heap.base + heap.used;
        heap.used += room;
    }
    OpenHeap::protect(PROT_READ | PROT_WRITE);
    heap.all[p] = Allocation{bytes, room, false};
    unpoison(p, room);
    memset(p, 0xff, bytes);
    memset(p + bytes, RED_ZONE, room - bytes);
    poison(p + bytes, room - bytes);
    if (!heap.open) OpenHeap::protect(PROT_NONE);
    return p;
}

static void device_free(char *p)
{
    Allocation &a = heap.all.at(p);
    a.is_free = true;
    if (!with_asan()) {
        OpenHeap open;
        check_red_zones("something");
    }
    char *const first = (char *)(((uintptr_t)p + PAGE - 1) / PAGE * PAGE), *const end =
                                                                               (char *)((uintptr_t)(p + a.room) / PAGE *
                                                                                        PAGE);
    if (end > first) madvise(first, (size_t)(end - first), MADV_DONTNEED);
    poison(p, a.room);
    for (const auto &other : heap.all)
        if (!other.second.is_free) return;
    heap.all.clear(); /* nothing is left: begin anew */
    heap.used = 0;
}

static void check_device_range(const void *p, size_t n, const char *what, int line)
{
    static const char *base[2], *end[2]; /* ranges of this launch that were met last */
    static uint64_t of_launch;
    if (of_launch != stats.launches) base[0] = base[1] = end[0] = end[1] = nullptr, of_launch = stats.launches;
    const char *c = (const char *)p;
    for (int i = 0; i < 2; ++i)
        if (c >= base[i] && c + n <= end[i]) return;
    char *at = nullptr;
    if (!is_device(p)) fail("%s at line %d: %p is not device memory", what, line, p);
    const Allocation *a = allocation_of(p, n, &at);
    if (!a) fail("%s at line %d: global address %p (+%zu) is out of bounds", what, line, p, n);
    base[1] = base[0], end[1] = end[0];
    base[0] = at, end[0] = at + a->bytes;
}

/* ==== >>cp_async ============================================================================================= */

static void complete(CpOp &op)
{
    if (op.done) return;
    op.done = true;
    char *d = smem_at(op.dst, (size_t)op.bytes, (size_t)op.bytes, "cp.async", op.line);
    if (op.src_bytes) touch(op.src, (size_t)op.src_bytes, false);
    touch(d, (size_t)op.bytes, true);
    if (op.src_bytes == 16) {
        copy16(d, op.src);
        return;
    }
    const char zero[16] = {};
    copy_bytes(d, (const char *)op.src, op.src_bytes);
    copy_bytes(d + op.src_bytes, zero, op.bytes - op.src_bytes);
}

void cp_async(uint32_t dst, const void *src, int bytes, int src_bytes, int line)
{
    FROM_KERNEL();
    if ((bytes != 4 && bytes != 8 && bytes != 16) || src_bytes < 0 || src_bytes > bytes)
        fail("cp.async at line %d: sizes %d, %d", line, bytes, src_bytes);
    if (src_bytes) {
        if ((uintptr_t)src % (unsigned)bytes)
            fail("cp.async at line %d: global address %p is not aligned to %d", line, src, bytes);
        check_device_range(src, (size_t)src_bytes, "cp.async", line);
    }
    char *d = smem_at(dst, (size_t)bytes, (size_t)bytes, "cp.async", line);
    CpOp op{dst, src, bytes, src_bytes, line, false, false};
    if (cfg.async == Async::early || (cfg.async == Async::mixed && (rnd() & 1))) {
        complete(op);
    } else {
        touch(d, (size_t)bytes, true);
        fill_unset(d, (size_t)bytes);
    }
    std::vector<CpOp> &items = cur->cp.items;
    if (items.size() == items.capacity()) {
        Aside aside;
        items.reserve(items.size() ? 2 * items.size() : 32);
    }
    items.push_back(op);
    ++stats.cp_async;
}

void cp_async_commit()
{
    std::vector<size_t> &ends = cur->cp.ends;
    if (ends.size() == ends.capacity()) {
        Aside aside;
        ends.reserve(ends.size() ? 2 * ends.size() : 8);
    }
    cur->cp.commit();
}

void cp_async_wait(int left)
{
    FROM_KERNEL();
    if (left < 0) fail("cp.async.wait_group: %d", left);
    cur->cp.complete((size_t)left, complete);
}

void cp_async_wait_all()
{
    FROM_KERNEL();
    cp_async_commit();
    cur->cp.complete(0, complete);
}

/* ==== >>mbarrier =============================================================================================
   The state is kept aside; the 8 bytes in shared memory hold a pattern that nobody may write. */
static Mbarrier &mbarrier_at(uint32_t a, const char *what, int line)
{
    const char *word = smem_at(a, 8, 8, what, line);
    for (const auto &m : place->mbars)
        if (m->valid && m->address == a) {
            uint64_t bits;
            __builtin_memcpy(&bits, word, 8);
            if (bits != MBAR_CANARY) fail("%s at line %d: the mbarrier at %u was overwritten", what, line, a);
            return *m;
        }
    fail("%s at line %d: no mbarrier at %u", what, line, a);
}

void mbar_init(uint32_t a, uint32_t count, int line)
{
    FROM_KERNEL();
    char *word = smem_at(a, 8, 8, "mbarrier.init", line);
    if (count < 1 || count > (1u << 20) - 1) fail("mbarrier.init at line %d: count %u", line, count);
    Mbarrier *unused = nullptr;
    for (const auto &m : place->mbars) {
        if (m->valid && m->address == a) fail("mbarrier.init at line %d: there is a live mbarrier at %u", line, a);
        if (!m->valid) unused = m.get();
    }
    if (!unused) {
        Aside aside;
        place->mbars.emplace_back(new Mbarrier);
        unused = place->mbars.back().get();
    }
    unused->valid = true;
    unused->address = a;
    unused->want = unused->pending = count;
    unused->tx = 0;
    unused->phase = 0;
    unused->waiting = Threads();
    __builtin_memcpy(word, &MBAR_CANARY, 8);
    touch(word, 8, true);
}

void mbar_inval(uint32_t a, int line)
{
    FROM_KERNEL();
    mbarrier_at(a, "mbarrier.inval", line).valid = false;
    touch(smem_at(a, 8, 8, "mbarrier.inval", line), 8, true);
}

static void check_phase(Mbarrier &m)
{
    if (m.pending || m.tx) return;
    ++m.phase;
    m.pending = m.want;
    m.waiting.move_to(ready);
}

/* use of a barrier by the running thread: after its init, or it is a race */
static Mbarrier &use_mbarrier(uint32_t a, const char *what, int line)
{
    Mbarrier &m = mbarrier_at(a, what, line);
    touch(smem_at(a, 8, 8, what, line), 8, false);
    return m;
}

static void count_arrival(Mbarrier &m, uint32_t count, int line)
{
    if (m.pending < count) fail("mbarrier.arrive at line %d: one arrival too many in this phase", line);
    m.pending -= count;
    check_phase(m);
}

void mbar_arrive(uint32_t a, uint32_t count, uint32_t expect_tx, int line)
{
    FROM_KERNEL();
    Mbarrier &m = use_mbarrier(a, "mbarrier.arrive", line);
    release(m.sync[m.phase & 3]);
    m.tx += expect_tx;
    count_arrival(m, count, line);
}

/* one of another block of the cluster, or of this one by its address there; at cluster scope */
void mbar_arrive_remote(uint32_t a, int line)
{
    FROM_KERNEL();
    Place *const other = block_of(a, "mbarrier.arrive", line);
    const bool is_remote = other != place;
    const In in(other);
    Mbarrier &m = use_mbarrier(a, "mbarrier.arrive", line);
    release(is_remote ? m.remote[m.phase & 3] : m.sync[m.phase & 3]);
    count_arrival(m, 1, line);
}

void mbar_expect_tx(uint32_t a, uint32_t bytes, int line)
{
    FROM_KERNEL();
    use_mbarrier(a, "mbarrier.expect_tx", line).tx += bytes;
}

bool mbar_try_wait(uint32_t a, uint32_t parity, bool is_cluster, int line)
{
    FROM_KERNEL();
    if (parity > 1) fail("mbarrier.try_wait at line %d: parity %u", line, parity);
    Mbarrier &m = use_mbarrier(a, "mbarrier.try_wait", line);
    if (cfg.async == Async::mixed && one_in(4)) { /* its time limit may pass at once */
        ready.add(cur->number);
        wait_here("mbarrier.try_wait", line);
        return false;
    }
    while ((m.phase & 1) == parity) {
        m.waiting.add(cur->number);
        wait_here("mbarrier.try_wait", line);
        if (!m.valid) fail("mbarrier.try_wait at line %d: the mbarrier at %u was invalidated", line, a);
    }
    acquire(m.sync[(m.phase - 1) & 3]);
    if (is_cluster && cluster_size > 1) acquire(m.remote[(m.phase - 1) & 3]);
    return true;
}

void fence_mbar_init() {}

void fence_proxy_async()
{
    if (!with_tsan()) return;
    proxies_used = true;
    teach(cur, THREAD, cur, PROXY);
}

static void add_transfer(Transfer &t) /* (called aside) */ { transfers.push_back(std::move(t)); }

static void complete_cp_arrive(Transfer &t)
{
    Fiber *const f = fibers[t.owner], *const was = cur;
    const In in(f->place);
    cur = f;
    {
        As as(f->context[THREAD]);
        for (size_t i = f->cp.dropped; i < t.cp_count; ++i) complete(f->cp.items[i - f->cp.dropped]);
        Mbarrier &m = mbarrier_at(t.mbar, "cp.async.mbarrier.arrive", t.line);
        release(m.sync[m.phase & 3]);
        count_arrival(m, 1, t.line);
    }
    /* done, and in no group: a thread that never waits by groups would keep all of its copies */
    if (f->cp.ends.empty() && t.cp_count > f->cp.dropped) {
        f->cp.items.erase(f->cp.items.begin(), f->cp.items.begin() + (ptrdiff_t)(t.cp_count - f->cp.dropped));
        f->cp.dropped = t.cp_count;
    }
    cur = was;
}

/* the barrier gets an arrival when all cp.async of the thread so far are complete */
void cp_async_mbar_arrive(uint32_t a, bool noinc, int line)
{
    FROM_KERNEL();
    Mbarrier &m = use_mbarrier(a, "cp.async.mbarrier.arrive", line);
    if (!noinc) ++m.pending;
    for (CpOp &op : cur->cp.items) op.tracked = true;
    Aside aside;
    Transfer t{};
    t.kind = Transfer::CP_ARRIVE;
    t.mbar = a;
    t.owner = cur->number;
    t.line = line;
    t.cp_count = cur->cp.dropped + cur->cp.items.size();
    t.pc = kernel_pc;
    if (cfg.async == Async::early)
        complete_cp_arrive(t);
    else
        add_transfer(t);
}

/* ==== >>bulk ================================================================================================= */
struct Map {
    uint64_t magic;
    const char *base;
    uint64_t stride[4];
    uint64_t dim[5];
    uint16_t box[5];
    uint8_t rank, element, swizzle;

    size_t box_bytes() const
    {
        size_t n = element;
        for (int i = 0; i < rank; ++i) n *= box[i];
        return n;
    }
};
static_assert(sizeof(Map) <= sizeof(CUtensorMap), "a tensor map has 128 bytes");
static constexpr uint64_t MAP_MAGIC = 0x73766732746d6170ull;

/* the rules are those in the comment of cuTensorMapEncodeTiled in cuda.h */
static CUresult encode_tiled(CUtensorMap *out, CUtensorMapDataType type, cuuint32_t rank, void *base,
                             const cuuint64_t *dim, const cuuint64_t *stride, const cuuint32_t *box,
                             const cuuint32_t *element_stride, CUtensorMapInterleave interleave,
                             CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill)
{
    static const uint8_t sizes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    if ((uintptr_t)out % 64 || type > CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ || rank < 1 || rank > 5)
        return CUDA_ERROR_INVALID_VALUE;
    if ((uintptr_t)base % 16 || interleave || fill || swizzle > CU_TENSOR_MAP_SWIZZLE_128B)
        return CUDA_ERROR_INVALID_VALUE;
    Map m;
    memset(&m, 0, sizeof m);
    m.magic = MAP_MAGIC;
    m.base = (const char *)base;
    m.rank = (uint8_t)rank;
    m.element = sizes[type];
    m.swizzle = (uint8_t)swizzle;
    for (unsigned i = 0; i < rank; ++i) {
        if (!dim[i] || dim[i] > 1ull << 32 || !box[i] || box[i] > 256 || element_stride[i] != 1)
            return CUDA_ERROR_INVALID_VALUE;
        m.dim[i] = dim[i];
        m.box[i] = (uint16_t)box[i];
        if (i == 0) continue;
        if (stride[i - 1] % 16 || stride[i - 1] >= 1ull << 40) return CUDA_ERROR_INVALID_VALUE;
        m.stride[i - 1] = stride[i - 1];
    }
    const unsigned inner = box[0] * m.element;
    if (inner % 16 || (swizzle && inner > 16u << swizzle)) return CUDA_ERROR_INVALID_VALUE;
    memset(out, 0, sizeof *out);
    memcpy(out, &m, sizeof m);
    return CUDA_SUCCESS;
}

/* Swizzles exchange 16-byte units within 32, 64 or 128 bytes by bits of the shared address: a box of a tensor map may lie
   at any multiple of 128 bytes, inside a pattern too, and its rows lie as those of one larger box would. That is how the
   documents read; tests/gpu/ops.cu asks a GPU ("one-row boxes"). */
static inline uint32_t swizzled(uint32_t a, int bits) { return a ^ ((a >> 7 & ((1u << bits) - 1)) << 4); }

/* What a bulk copy does in shared memory is seen by the race checker as done by the copy engine (loads) or by the
   proxy of the thread that issued it (stores). */
static Context context_of_bulk(const Transfer &t) { return t.kind == Transfer::STORE ? PROXY : ENGINE; }

/* calls f(shared memory, global memory or null where out of bounds, bytes) on every piece of 16 bytes or one element */
template <class F> static void each_piece(const Transfer &t, F f)
{
    if (!t.map) {
        for (size_t b = 0; b < t.bytes; b += 16) f(t.smem + (uint32_t)b, t.gmem + b, (size_t)16);
        return;
    }
    const Map &m = *t.map;
    const size_t inner = (size_t)m.box[0] * m.element, rows = t.bytes / inner;
    for (size_t r = 0; r < rows; ++r) {
        const char *row = m.base;
        bool is_in = true;
        size_t q = r;
        for (int i = 1; i < m.rank; ++i) {
            const int64_t x = (int64_t)t.coord[i] + (int64_t)(q % m.box[i]);
            q /= m.box[i];
            if (x < 0 || x >= (int64_t)m.dim[i])
                is_in = false;
            else
                row += (int64_t)m.stride[i - 1] * x;
        }
        for (size_t unit = 0; unit < inner; unit += 16) {
            const int64_t x = (int64_t)t.coord[0] + (int64_t)(unit / m.element);
            const uint32_t at = swizzled(t.smem + (uint32_t)(r * inner + unit), m.swizzle);
            const int count = 16 / m.element;
            if (is_in && x >= 0 && x + count <= (int64_t)m.dim[0]) {
                f(at, row + x * m.element, (size_t)16);
                continue;
            }
            for (int i = 0; i < count; ++i) {
                const bool is_here = is_in && x + i >= 0 && x + i < (int64_t)m.dim[0];
                f(at + (uint32_t)(i * m.element), is_here ? row + (x + i) * m.element : nullptr, (size_t)m.element);
            }
        }
    }
}

static char *smem_of(uint32_t a) { return place->smem_base + (a - place->smem_window); }

/* To each block that it is for, at the same offset, and to the barrier there, in any order. */
static void complete_load(Transfer &t)
{
    Fiber *const f = fibers[t.owner];
    for (unsigned i = 0, turn = cluster_size > 1 ? (unsigned)(rnd() % cluster_size) : 0; i < cluster_size; ++i) {
        Place *const to = cluster[(i + turn) % cluster_size];
        if (!(t.blocks >> to->rank & 1)) continue;
        check_block(to, f, ENGINE, "completion of a bulk load", t.line);
        const In in(to);
        each_piece(t, [&](uint32_t a, const char *g, size_t n) {
            const char zero[16] = {};
            if (g) {
                check_device_range(g, n, "bulk load", t.line);
                touch_as(f, ENGINE, g, n, false);
            }
            touch_as(f, ENGINE, smem_of(a), n, true);
            copy_bytes(smem_of(a), g ? g : zero, (int)n);
        });
        Mbarrier &m = mbarrier_at(t.mbar, "completion of a bulk load", t.line);
        if (with_tsan()) {
            As as(context_of(f, ENGINE));
            __tsan_release(&m.sync[m.phase & 3].thread);
            __tsan_release(&m.sync[m.phase & 3].proxy);
        }
        m.tx -= (int64_t)t.bytes;
        check_phase(m);
    }
}

static void read_store(Transfer &t)
{
    if (t.is_read) return;
    t.is_read = true;
    each_piece(t, [&](uint32_t a, const char *, size_t n) {
        touch_as(fibers[t.owner], PROXY, smem_of(a), n, false);
        t.data.insert(t.data.end(), smem_of(a), smem_of(a) + n);
    });
}

static void complete_store(Transfer &t)
{
    read_store(t);
    size_t at = 0;
    each_piece(t, [&](uint32_t, const char *g, size_t n) {
        if (g) {
            check_device_range(g, n, "bulk store", t.line);
            touch_as(fibers[t.owner], PROXY, g, n, true);
            copy_bytes(const_cast<char *>(g), &t.data[at], (int)n);
        }
        at += n;
    });
}

static void complete(Transfer &t)
{
    const In in(fibers[t.owner]->place);
    kernel_pc = t.pc;
    switch (t.kind) {
    case Transfer::LOAD:
        complete_load(t);
        break;
    case Transfer::STORE:
        complete_store(t);
        break;
    case Transfer::CP_ARRIVE:
        complete_cp_arrive(t);
        break;
    }
}

/* any one of the transfers under way comes to its end; false: there is none */
static bool complete_one()
{
    if (transfers.empty()) return false;
    Aside aside;
    const size_t i = rnd() % transfers.size();
    Transfer t = std::move(transfers[i]);
    transfers.erase(transfers.begin() + (ptrdiff_t)i);
    Fiber *const was = cur;
    cur = nullptr;
    complete(t);
    cur = was;
    return true;
}

/* At the end of a block stores need only have read their source. */
static void finish_transfers()
{
    for (Transfer &t : transfers) {
        const Place *const of = fibers[t.owner]->place;
        if (t.kind != Transfer::STORE || !t.is_read)
            fail("block (%u,%u,%u) ended with asynchronous copies under way (line %d)", of->index.x, of->index.y,
                 of->index.z, t.line);
        complete(t);
    }
    transfers.clear();
}

static void begin_bulk(Transfer &t, size_t align)
{
    char *p = smem_at(t.smem, t.bytes, align, "bulk copy", t.line);
    if (t.map && t.map->swizzle && t.map->box[0] * t.map->element != 16 << t.map->swizzle)
        fail("bulk copy at line %d: a box narrower than its swizzle is not emulated", t.line);
    Fiber *const f = cur;
    t.owner = f->number;
    t.pc = kernel_pc;
    if (with_tsan()) (void)proxy_of(f);
    if (t.kind == Transfer::LOAD) {
        if (with_tsan()) {
            teach(f, THREAD, f, ENGINE);
            teach(f, PROXY, f, ENGINE);
        }
        for (unsigned r = 0; r < cluster_size; ++r) {
            if (!(t.blocks >> r & 1)) continue;
            check_block(cluster[r], f, ENGINE, "bulk load", t.line);
            const In in(cluster[r]);
            (void)mbarrier_at(t.mbar, "bulk load", t.line);
            p = smem_of(t.smem);
            touch_as(f, ENGINE, p, t.bytes, true);
            if (cfg.async != Async::early) fill_unset(p, t.bytes);
        }
    } else {
        t.group = f->store_groups;
        touch_as(f, context_of_bulk(t), p, t.bytes, false);
    }
    ++stats.bulk;
    Aside aside;
    if (cfg.async == Async::early)
        complete(t);
    else
        add_transfer(t);
}

/* blocks: of the cluster, for which a load is */
static void tensor_copy(Transfer::Kind kind, uint32_t smem, const void *map, uint32_t mbar, const int *coord, int rank,
                        unsigned blocks, int line)
{
    const Map *m = (const Map *)map;
    if ((uintptr_t)map % 64 || m->magic != MAP_MAGIC) fail("bulk copy at line %d: not a tensor map", line);
    if (m->rank != rank) fail("bulk copy at line %d: a %dD copy with a %dD tensor map", line, rank, m->rank);
    if (blocks >> cluster_size) fail("bulk copy at line %d: blocks %x in a cluster of %u", line, blocks, cluster_size);
    Transfer t{};
    t.kind = kind;
    t.smem = smem;
    t.mbar = mbar;
    t.line = line;
    t.blocks = blocks;
    for (int i = 0; i < rank; ++i) t.coord[i] = coord[i];
    {
        Aside aside;
        t.map.reset(new Map(*m));
    }
    t.bytes = m->box_bytes();
    begin_bulk(t, 128);
    Aside aside;
    t.map.reset();
}

void tma_load(uint32_t dst, const void *map, uint32_t mbar, const int *coord, int rank, int line)
{
    FROM_KERNEL();
    tensor_copy(Transfer::LOAD, dst, map, mbar, coord, rank, 1u << place->rank, line);
}

void tma_load_multicast(uint32_t dst, const void *map, uint32_t mbar, unsigned blocks, const int *coord, int rank,
                        int line)
{
    FROM_KERNEL();
    tensor_copy(Transfer::LOAD, dst, map, mbar, coord, rank, blocks, line);
}

void tma_store(const void *map, uint32_t src, const int *coord, int rank, int line)
{
    FROM_KERNEL();
    tensor_copy(Transfer::STORE, src, map, 0, coord, rank, 0, line);
}

static void plain_copy(Transfer::Kind kind, uint32_t smem, const void *gmem, size_t bytes, uint32_t mbar, int line)
{
    if (bytes % 16 || !bytes || (uintptr_t)gmem % 16)
        fail("bulk copy at line %d: %zu bytes at %p, not in units of 16", line, bytes, gmem);
    Transfer t{};
    t.kind = kind;
    t.smem = smem;
    t.mbar = mbar;
    t.line = line;
    t.blocks = kind == Transfer::LOAD ? 1u << place->rank : 0;
    t.gmem = (const char *)gmem;
    t.bytes = bytes;
    begin_bulk(t, 16);
}

void bulk_load(uint32_t dst, const void *src, size_t bytes, uint32_t mbar, int line)
{
    FROM_KERNEL();
    plain_copy(Transfer::LOAD, dst, src, bytes, mbar, line);
}

void bulk_store(void *dst, uint32_t src, size_t bytes, int line)
{
    FROM_KERNEL();
    plain_copy(Transfer::STORE, src, dst, bytes, 0, line);
}

void tma_store_commit() { ++cur->store_groups; }

/* Until at most `left` of the thread's groups of stores are not done, or (read_only) have not read their source. */
void tma_store_wait(int left, bool read_only)
{
    FROM_KERNEL();
    if (left < 0) fail("cp.async.bulk.wait_group: %d", left);
    {
        Aside aside;
        for (size_t i = 0; i < transfers.size();) {
            Transfer &t = transfers[i];
            const bool is_due =
                t.kind == Transfer::STORE && t.owner == cur->number && t.group + (size_t)left < cur->store_groups;
            if (!is_due) {
                ++i;
            } else if (read_only) {
                kernel_pc = t.pc;
                read_store(t);
                ++i;
            } else {
                complete(t);
                transfers.erase(transfers.begin() + (ptrdiff_t)i);
            }
        }
    }
    if (with_tsan() && cur->context[PROXY]) teach(cur, PROXY, cur, THREAD);
}

/* ==== >>mma ================================================================================================== */
typedef float float8 __attribute__((vector_size(32)));

static inline __attribute__((always_inline)) float8 load_float8(const float *p)
{
    float8 v;
    __builtin_memcpy(&v, p, 32);
    return v;
}

static inline __attribute__((always_inline)) void store_float8(float *p, float8 v) { __builtin_memcpy(p, &v, 32); }

static inline __attribute__((always_inline)) float to_float(uint16_t v, Type type)
{
    if (type == Type::bf16) return cast<float>((uint32_t)v << 16);
    /* f16: the exponent is moved by a product, which is exact for subnormals too */
    const uint32_t sign = (uint32_t)(v & 0x8000) << 16, rest = (uint32_t)(v & 0x7fff) << 13;
    const float scaled = cast<float>(rest) * 0x1p112f;
    return cast<float>(cast<uint32_t>(scaled) | sign | (rest >= 0x0f800000 ? 0x7f800000u : 0u));
}

/* d (m x n) += a (m x 16) b (16 x n), sums in the order of k; n is a multiple of 8 */
static inline __attribute__((always_inline)) void product(float *d, const float *a, const float *b, int m, int n)
{
    for (int i = 0; i < m; ++i)
        for (int j = 0; j < n; j += 8) {
            float8 sum = load_float8(d + i * n + j);
            for (int k = 0; k < 16; ++k) sum += a[i * 16 + k] * load_float8(b + k * n + j);
            store_float8(d + i * n + j, sum);
        }
}

/* 8x8 elements of 16 bits, in rows */
static inline __attribute__((always_inline)) void transpose8(uint16_t *to, const void *from)
{
    typedef uint16_t Row __attribute__((vector_size(16)));
    Row r[8], half[8];
    __builtin_memcpy(r, from, sizeof r);
    for (int round = 0; round < 3; ++round) { /* each one interleaves rows i and i + 4 */
        for (int i = 0; i < 4; ++i) {
            half[2 * i] = __builtin_shufflevector(r[i], r[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
            half[2 * i + 1] = __builtin_shufflevector(r[i], r[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
        }
        __builtin_memcpy(r, half, sizeof r);
    }
    __builtin_memcpy(to, r, sizeof r);
}

/* The fragments of mma.m16n8k16, as the lanes have brought them. */
static inline __attribute__((always_inline)) void mma_all(Exchange &x, Type type)
{
    alignas(32) float a[16 * 16], b[16 * 8];
    for (int block = 0; block < 4; ++block) {
        uint16_t h[64];
        __builtin_memcpy(h, x.mma.a[block], sizeof h);
        for (int r = 0; r < 8; ++r)
            for (int i = 0; i < 8; ++i)
                a[(8 * (block & 1) + r) * 16 + 8 * (block >> 1) + i] = to_float(h[r * 8 + i], type);
    }
    for (int block = 0; block < 2; ++block) {
        uint16_t h[64];
        transpose8(h, x.mma.b[block]);
        for (int i = 0; i < 64; ++i) b[block * 64 + i] = to_float(h[i], type);
    }
    product(x.mma.cd[0], a, b, 16, 8);
}

/* The same code for machines with AVX2 and for others; the results have the same bits, as nothing is contracted. */
struct Kernels {
    void (*mma)(Exchange &x, Type type);
    void (*product)(float *d, const float *a, const float *b, int m, int n);
};
static void mma_base(Exchange &x, Type type)
{
    if (type == Type::bf16)
        mma_all(x, Type::bf16);
    else
        mma_all(x, Type::f16);
}
static void product_base(float *d, const float *a, const float *b, int m, int n) { product(d, a, b, m, n); }
__attribute__((target("avx2"))) static void mma_avx2(Exchange &x, Type type)
{
    if (type == Type::bf16)
        mma_all(x, Type::bf16);
    else
        mma_all(x, Type::f16);
}
__attribute__((target("avx2"))) static void product_avx2(float *d, const float *a, const float *b, int m, int n)
{
    product(d, a, b, m, n);
}
static const Kernels kernels =
    __builtin_cpu_supports("avx2") ? Kernels{mma_avx2, product_avx2} : Kernels{mma_base, product_base};

/* Fragments (PTX ISA, Matrix Fragments for mma.m16n8k16; g = lane / 4, t = lane % 4):
     a  register r holds elements (g + 8 (r & 1), 2 t + 8 (r >> 1)) and the next in the row
     b  register r holds elements (2 t + 8 r, g) and the next in the column
     c  element i is (g + 8 (i >> 1), 2 t + (i & 1))
   So register r of all lanes, in order of lanes, is an 8x8 block of a (or of b, transposed) in rows; and c 0 and 1 of
   all lanes are 8 rows of d. */
void mma_m16n8k16(float *d, const uint32_t *a, const uint32_t *b, const float *c, Type type, int line)
{
    FROM_KERNEL();
    const int lane = cur->lane;
    Exchange &x = exchange();
    for (int r = 0; r < 4; ++r) x.mma.a[r][lane] = a[r];
    for (int r = 0; r < 2; ++r) x.mma.b[r][lane] = b[r];
    for (int r = 0; r < 2; ++r) __builtin_memcpy(&x.mma.cd[r][2 * lane], c + 2 * r, 8);
    collective(type == Type::bf16 ? "mma.m16n8k16.bf16" : "mma.m16n8k16.f16", ~0u, line, [type](Exchange &all) {
        kernels.mma(all, type);
        ++stats.mma;
    });
    for (int r = 0; r < 2; ++r) __builtin_memcpy(d + 2 * r, &x.mma.cd[r][2 * lane], 8);
}

/* rows of 8x8 matrices of 16-bit elements: lanes 8m..8m+7 bring the addresses of the rows of matrix m */
static void bring_row(Exchange &x, uint32_t addr, int num, bool is_store, const char *what, int line)
{
    if (num != 1 && num != 2 && num != 4) fail("%s at line %d: %d matrices", what, line, num);
    const int lane = cur->lane;
    if (lane >= 8 * num) return;
    char *row = smem_at(addr, 16, 16, what, line);
    touch(row, 16, is_store);
    x.matrix.row[lane] = row;
    x.matrix.addr[lane] = addr;
}

static void count_conflicts(const Exchange &x, int num)
{
    for (int m = 0; m < num; ++m) {
        unsigned banks = 0;
        for (int r = 0; r < 8; ++r) banks |= 1u << (x.matrix.addr[m * 8 + r] >> 4 & 7);
        stats.ldmatrix_conflicts += (uint64_t)(8 - __builtin_popcount(banks));
    }
    stats.ldmatrix += (uint64_t)num;
}

/* Lane l gets elements (l / 4, 2 (l % 4)) and the next of each matrix, or of its transpose. */
void ldmatrix(uint32_t addr, uint32_t *r, int num, bool trans, int line)
{
    FROM_KERNEL();
    const char *const what = trans ? "ldmatrix.trans" : "ldmatrix";
    Exchange &x = exchange();
    const int lane = cur->lane;
    bring_row(x, addr, num, false, what, line);
    collective(what, ~0u, line, [num, trans](Exchange &all) {
        for (int m = 0; m < num; ++m) {
            uint16_t rows[64];
            for (int i = 0; i < 8; ++i) copy16(rows + 8 * i, all.matrix.row[m * 8 + i]);
            if (trans) transpose8(rows, rows);
            __builtin_memcpy(all.matrix.reg[m], rows, sizeof rows);
        }
        count_conflicts(all, num);
    });
    for (int m = 0; m < num; ++m) r[m] = x.matrix.reg[m][lane];
}

void stmatrix(uint32_t addr, const uint32_t *r, int num, bool trans, int line)
{
    FROM_KERNEL();
    const char *const what = trans ? "stmatrix.trans" : "stmatrix";
    Exchange &x = exchange();
    const int lane = cur->lane;
    bring_row(x, addr, num, true, what, line);
    for (int m = 0; m < num; ++m) x.matrix.reg[m][lane] = r[m];
    collective(what, ~0u, line, [num, trans](Exchange &all) {
        for (int m = 0; m < num; ++m) {
            uint16_t rows[64];
            __builtin_memcpy(rows, all.matrix.reg[m], sizeof rows);
            if (trans) transpose8(rows, rows);
            for (int i = 0; i < 8; ++i) copy16(const_cast<void *>(all.matrix.row[m * 8 + i]), rows + 8 * i);
        }
        count_conflicts(all, num);
    });
}

/* ==== >>wgmma ================================================================================================ */
/* One operand from its descriptor (PTX ISA, Matrix Descriptor): out[k * extent + i], i along m or n, 16 in k. Only
   notes the reads where out is null. */
static void read_operand(float *out, uint64_t desc, int extent, bool is_mn_major, Type type, Fiber *who, int line)
{
    const uint32_t start = (uint32_t)(desc & 0x3fff) << 4;
    const uint32_t leading = (uint32_t)(desc >> 16 & 0x3fff) << 4, stride = (uint32_t)(desc >> 32 & 0x3fff) << 4;
    static const int bits_of[4] = {0, 3, 2, 1};
    const int bits = bits_of[desc >> 62], width = 1 << bits; /* of the swizzle's rows, in units of 16 bytes */
    const uint64_t used = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62;
    if (desc & ~used)
        fail("wgmma at line %d: descriptor %016llx has reserved bits set", line, (unsigned long long)desc);
    if (desc >> 49 & 7) fail("wgmma at line %d: a base offset is not emulated", line);
    if (start >> 7 & (uint32_t)(width - 1))
        fail(
            "wgmma at line %d: start address %u is not in the first row of a swizzle pattern, and the base offset is 0",
            line, start);
    const int outer = is_mn_major ? 16 : extent,
              units = is_mn_major ? extent / 8 : 2; /* units lie along the contiguous dimension */
    for (int o = 0; o < outer; ++o)
        for (int u = 0; u < units; ++u) {
            const uint32_t row = (uint32_t)(o % 8 * width * 16), group = (uint32_t)(o / 8);
            uint32_t at;
            if (!is_mn_major)
                at = row + group * stride + (uint32_t)u * (width == 1 ? leading : 16);
            else if (width == 1)
                at = row + group * leading + (uint32_t)u * stride;
            else
                at = row + group * stride + (uint32_t)(u % width * 16) + (uint32_t)(u / width) * leading;
            const char *p = smem_at(swizzled(start + at, bits), 16, 16, "wgmma operand", line);
            touch_as(who, PROXY, p, 16, false);
            if (!out) continue;
            uint16_t h[8];
            copy16(h, p);
            for (int e = 0; e < 8; ++e)
                out[is_mn_major ? o * extent + u * 8 + e : (u * 8 + e) * extent + o] = to_float(h[e], type);
        }
}

/* Element i of thread t's accumulators in the 64 x n matrix (PTX ISA, Register Fragments for wgmma). */
static inline int accumulator_at(int t, int i, int n)
{
    return (t / 32 * 16 + t % 32 / 4 + 8 * (i >> 1 & 1)) * n + 8 * (i >> 2) + 2 * (t & 3) + (i & 1);
}

static void complete_wgmma(WgmmaOp &op, int group)
{
    alignas(64) static float at[16 * 64], a[64 * 16], b[16 * 256], d[64 * 256];
    const int n = op.n;
    kernel_pc = op.pc;
    Fiber *const who = fibers[place->first + group * 128];
    if (op.a_in_registers) { /* the fragment of mma.m16n8k16 of 16 rows a warp */
        for (int t = 0; t < 128; ++t)
            for (int i = 0; i < 8; ++i) {
                const int row = t / 32 * 16 + t % 32 / 4 + 8 * (i >> 1 & 1), k = 2 * (t & 3) + (i & 1) + 8 * (i >> 2);
                a[row * 16 + k] = to_float((uint16_t)(op.a[t][i >> 1] >> (i & 1) * 16), op.type);
            }
    } else {
        read_operand(at, op.desc_a, 64, op.trans_a, op.type, who, op.line);
        for (int i = 0; i < 64; ++i)
            for (int k = 0; k < 16; ++k) a[i * 16 + k] = at[k * 64 + i];
    }
    read_operand(b, op.desc_b, n, op.trans_b, op.type, who, op.line);
    for (int t = 0; t < 128; ++t) {
        const float *from = op.saved.empty() ? op.d[t] : &op.saved[(size_t)(t * (n / 2))];
        for (int i = 0; i < n / 2; ++i) d[accumulator_at(t, i, n)] = op.scale_d ? from[i] : 0.f;
    }
    kernels.product(d, a, b, 64, n);
    for (int t = 0; t < 128; ++t)
        for (int i = 0; i < n / 2; ++i) op.d[t][i] = d[accumulator_at(t, i, n)];
    ++stats.wgmma;
}

static void complete_groups(Warpgroup &g, int group, size_t left)
{
    g.ops.complete(left, [group](WgmmaOp &op) { complete_wgmma(op, group); });
}

void wgmma_fence(int) { cur->wgmma_fenced = true; }

void wgmma_commit(int line)
{
    FROM_KERNEL();
    const int group = cur->linear / 128;
    warpgroup("wgmma.commit_group", nullptr, line, [group](Warpgroup &g) {
        Aside aside;
        g.ops.commit();
        if (cfg.async == Async::early || (cfg.async == Async::mixed && (rnd() & 1))) complete_groups(g, group, 0);
    });
}

void wgmma_wait(int left, int line)
{
    FROM_KERNEL();
    const int group = cur->linear / 128;
    warpgroup("wgmma.wait_group", nullptr, line, [group, left](Warpgroup &g) {
        Aside aside;
        complete_groups(g, group, (size_t)left);
    });
    cur->wgmma_fenced = false;
    if (with_tsan()) teach(fibers[place->first + group * 128], PROXY, cur, THREAD); /* the proxy's reads are over */
}

void wgmma_m64k16(int n, float *d, const uint32_t *a_regs, uint64_t desc_a, uint64_t desc_b, bool scale_d, bool trans_a,
                  bool trans_b, Type type, int line)
{
    FROM_KERNEL();
    if (n < 8 || n > 256 || n % 8) fail("wgmma at line %d: n = %d", line, n);
    if (!cur->wgmma_fenced)
        fail("wgmma at line %d: no wgmma.fence since the registers were last the thread's own", line);
    if (with_tsan()) (void)proxy_of(cur);
    struct Arg {
        float *d;
        const uint32_t *a;
        uint64_t desc_a, desc_b;
        bool scale_d;
    } arg = {d, a_regs, desc_a, desc_b, scale_d};
    const int group = cur->linear / 128;
    warpgroup("wgmma.mma_async", &arg, line, [=](Warpgroup &g) {
        Aside aside;
        WgmmaOp op{};
        op.n = n;
        op.line = line;
        op.scale_d = scale_d;
        op.trans_a = trans_a;
        op.trans_b = trans_b;
        op.a_in_registers = a_regs != nullptr;
        op.type = type;
        op.desc_a = desc_a;
        op.desc_b = desc_b;
        op.pc = kernel_pc;
        bool is_first = true; /* of those under way on this accumulator */
        for (const WgmmaOp &other : g.ops.items) is_first = is_first && other.d[0] != ((const Arg *)g.arg[0])->d;
        if (is_first) op.saved.resize((size_t)(128 * (n / 2)));
        for (int t = 0; t < 128; ++t) {
            const Arg *x = (const Arg *)g.arg[t];
            if (x->desc_a != desc_a || x->desc_b != desc_b || x->scale_d != scale_d)
                fail("wgmma at line %d: operands differ between threads of the warpgroup", line);
            op.d[t] = x->d;
            op.a[t] = x->a;
            if (!is_first) continue;
            for (int i = 0; i < n / 2; ++i) { /* until it is waited for, the accumulator has no value */
                op.saved[(size_t)(t * (n / 2) + i)] = x->d[i];
                x->d[i] = NAN;
            }
        }
        if (with_tsan()) { /* the operands are read from now on */
            Fiber *const who = fibers[place->first + group * 128];
            if (!op.a_in_registers) read_operand(nullptr, desc_a, 64, trans_a, type, who, line);
            read_operand(nullptr, desc_b, n, trans_b, type, who, line);
        }
        g.ops.items.push_back(std::move(op));
    });
}

void setmaxnreg(int n, bool inc, int line)
{
    FROM_KERNEL();
    if (n < 24 || n > 256 || n % 8) fail("setmaxnreg at line %d: %d", line, n);
    warpgroup(inc ? "setmaxnreg.inc" : "setmaxnreg.dec", nullptr, line, [](Warpgroup &) {});
}

/* ==== >>launch =============================================================================================== */
static cudaError_t last_error = cudaSuccess;
static cudaError_t error(cudaError_t e)
{
    if (e != cudaSuccess) last_error = e;
    return e;
}

struct Graph {
    std::vector<std::function<cudaError_t()>> nodes;
};
static struct {
    cudaStream_t stream = nullptr;
    Graph *graph = nullptr; /* null: nothing is being captured */
    bool is_invalid = false;
} capture;

static bool is_legacy(cudaStream_t s) { return s == nullptr || s == cudaStreamLegacy; }

/* Work given to a stream: done at once, or recorded where the stream is being captured. */
static cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> work)
{
    if (capture.graph && stream == capture.stream) {
        capture.graph->nodes.push_back(std::move(work));
        return cudaSuccess;
    }
    if (capture.graph && is_legacy(stream)) {
        capture.is_invalid = true;
        return error(cudaErrorStreamCaptureImplicit);
    }
    return error(work());
}

/* calls that may not be made while a stream is being captured */
static cudaError_t not_in_capture()
{
    if (!capture.graph) return cudaSuccess;
    capture.is_invalid = true;
    return error(cudaErrorStreamCaptureUnsupported);
}

/* ---- a kernel that faults ---- */
static struct sigaction old_segv, old_bus;

static void on_fault(int, siginfo_t *info, void *)
{
    char *const p = (char *)info->si_addr;
    if (is_device(p))
        fail("%s at %p, in device memory that is not allocated", cur ? "fault" : "the host's fault", (void *)p);
    if (cur && p >= cur->stack - GUARD && p < cur->stack) fail("stack overflow: a thread has %d bytes", STACK);
    if (place && place->smem_align && p >= place->smem_base - SMEM_ROOM && p < place->smem_base + SMEM_ROOM)
        fail("fault near shared memory of %zu bytes, at offset %td", smem_size, p - place->smem_base);
    fail("fault at %p", (void *)p);
}

struct CatchFaults {
    CatchFaults()
    {
        if (with_asan() || with_tsan()) return; /* they say more */
        static char alternate[64 << 10];
        stack_t stack{};
        stack.ss_sp = alternate;
        stack.ss_size = sizeof alternate;
        sigaltstack(&stack, nullptr);
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_sigaction = on_fault;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        sigaction(SIGSEGV, &action, &old_segv);
        sigaction(SIGBUS, &action, &old_bus);
    }
    ~CatchFaults()
    {
        if (with_asan() || with_tsan()) return;
        sigaction(SIGSEGV, &old_segv, nullptr);
        sigaction(SIGBUS, &old_bus, nullptr);
    }
    CatchFaults(const CatchFaults &) = delete;
    CatchFaults &operator=(const CatchFaults &) = delete;
};

static void begin_launch()
{
    ++stats.launches;
    proxies_used = false;
    if (!with_tsan()) return;
    now = host.context[THREAD] = __tsan_get_current_fiber();
    if (!root) root = __tsan_create_fiber(0);
    __tsan_release(&launch_begin);
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}

static void end_launch()
{
    if (!with_tsan()) return;
    for (const auto &p : places)
        for (const auto &f : p->fibers)
            for (int kind = 0; kind < CONTEXTS; ++kind)
                if (f->launch[kind] == stats.launches) {
                    As as(f->context[kind]);
                    __tsan_release(&launch_end);
                }
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    __tsan_acquire(&launch_end);
}

static cudaError_t run_launch(const cudaLaunchConfig_t &config, unsigned blocks_of_cluster, LaunchBase *kernel)
{
    if (cur) fail("a kernel launches a kernel");
    OpenHeap open;
    CatchFaults catch_faults;
    blockDim = config.blockDim;
    gridDim = config.gridDim;
    nthreads = (int)(blockDim.x * blockDim.y * blockDim.z);
    smem_size = config.dynamicSmemBytes;
    job = kernel;
    cluster_size = blocks_of_cluster;
    begin_launch();
    const unsigned row = gridDim.x / cluster_size; /* clusters */
    const uint64_t blocks = (uint64_t)row * gridDim.y * gridDim.z; /* or clusters */
    uint64_t step = 1, at = 0;
    if (cfg.sched == Sched::last) step = std::max<uint64_t>(blocks - 1, 1), at = blocks - 1;
    if (cfg.sched == Sched::random && blocks > 2) {
        at = rnd() % blocks;
        do step = 1 + rnd() % (blocks - 1);
        while (std::__gcd(step, blocks) != 1);
    }
    for (uint64_t i = 0; i < blocks; ++i, at = (at + step) % blocks) {
        begin_cluster();
        for (unsigned r = 0; r < cluster_size; ++r)
            begin_block(make_uint3((unsigned)(at % row) * cluster_size + r, (unsigned)(at / row % gridDim.y),
                                   (unsigned)(at / row / gridDim.y)),
                        r);
        switch_to(next_fiber());
        finish_transfers();
        for (unsigned r = 0; r < cluster_size; ++r) end_block(cluster[r]);
    }
    end_launch();
    check_red_zones("a kernel");
    return cudaSuccess;
}

static std::map<const void *, int> max_smem; /* by kernel: cudaFuncAttributeMaxDynamicSharedMemorySize */

cudaError_t launch(const cudaLaunchConfig_t *config, const void *function, const LaunchBase &kernel)
{
    const dim3 b = config->blockDim, g = config->gridDim;
    const uint64_t threads = (uint64_t)b.x * b.y * b.z;
    if (threads < 1 || threads > MAX_THREADS || b.z > 64) return error(cudaErrorInvalidConfiguration);
    if (threads % 32) fail("launch with %u x %u x %u threads: no multiple of 32", b.x, b.y, b.z);
    if (!g.x || !g.y || !g.z || g.x > 0x7fffffff || g.y > 65535 || g.z > 65535)
        return error(cudaErrorInvalidConfiguration);
    if (config->dynamicSmemBytes > (size_t)std::max(49152, max_smem[function])) return error(cudaErrorInvalidValue);
    unsigned of_cluster = 1;
    for (unsigned i = 0; i < config->numAttrs; ++i) {
        const cudaLaunchAttribute &a = config->attrs[i];
        if (a.id != cudaLaunchAttributeClusterDimension) fail("launch: attribute %d is not emulated", (int)a.id);
        of_cluster = a.val.clusterDim.x;
        if (a.val.clusterDim.y != 1 || a.val.clusterDim.z != 1) fail("launch: clusters lie along x here");
    }
    if (of_cluster < 1 || of_cluster > MAX_CLUSTER || g.x % of_cluster || (of_cluster > 1 && cfg.device.cc < 90))
        return error(of_cluster > MAX_CLUSTER ? cudaErrorInvalidClusterSize : cudaErrorInvalidConfiguration);
    if (of_cluster * threads > MAX_THREADS)
        fail("launch: a cluster of %u blocks of %u threads is too large here", of_cluster, (unsigned)threads);
    std::shared_ptr<LaunchBase> copy(kernel.copy());
    cudaLaunchConfig_t c = *config;
    c.attrs = nullptr; /* the caller's memory */
    c.numAttrs = 0;
    return enqueue(config->stream, [c, of_cluster, copy] { return run_launch(c, of_cluster, copy.get()); });
}

/* ---- copies ---- */
/* n bytes at p as one side of a copy */
static bool is_side(const void *p, size_t n, bool wants_device)
{
    return wants_device ? allocation_of(p, n) != nullptr : !is_device(p);
}

static cudaError_t copy(void *to, const void *from, size_t n, cudaMemcpyKind kind)
{
    const bool to_device =
        kind == cudaMemcpyDefault ? is_device(to) : kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDefault
                                 ? is_device(from)
                                 : kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (!is_side(to, n, to_device) || !is_side(from, n, from_device)) return cudaErrorInvalidValue;
    OpenHeap open;
    /* bounds were looked at; gaps that a program poisoned inside of an allocation may be taken along */
    if (to_device) unpoison(to, n);
    if (from_device) unpoison(const_cast<void *>(from), n);
    memmove(to, from, n);
    return cudaSuccess;
}

static cudaError_t set(void *to, int value, size_t n)
{
    if (!allocation_of(to, n)) return cudaErrorInvalidValue;
    OpenHeap open;
    unpoison(to, n);
    memset(to, value, n);
    return cudaSuccess;
}

/* Few, so that loops over a grid of that size are run through. */
static const int processors = getenv("EMU_PROCESSORS") ? number_from_environment("EMU_PROCESSORS") : 2;

static int attribute(cudaDeviceAttr a)
{
    const Device &d = cfg.device;
    switch (a) {
    case cudaDevAttrComputeCapabilityMajor:
        return d.cc / 10;
    case cudaDevAttrComputeCapabilityMinor:
        return d.cc % 10;
    case cudaDevAttrMultiProcessorCount:
        return processors;
    case cudaDevAttrWarpSize:
        return 32;
    case cudaDevAttrMaxThreadsPerBlock:
        return MAX_THREADS;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        return d.smem == 100 << 10 ? 1536 : 2048;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
        return d.cc == 86 ? 16 : d.cc == 89 ? 24 : 32;
    case cudaDevAttrMaxRegistersPerBlock:
    case cudaDevAttrMaxRegistersPerMultiprocessor:
        return 65536;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        return 48 << 10;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        return d.smem - 1024;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        return d.smem;
    case cudaDevAttrReservedSharedMemoryPerBlock:
        return 1024;
    case cudaDevAttrL2CacheSize:
        return d.cc == 86 ? 6 << 20 : 40 << 20;
    case cudaDevAttrMaxBlockDimX:
    case cudaDevAttrMaxBlockDimY:
        return 1024;
    case cudaDevAttrMaxBlockDimZ:
        return 64;
    case cudaDevAttrMaxGridDimX:
        return 0x7fffffff;
    case cudaDevAttrMaxGridDimY:
    case cudaDevAttrMaxGridDimZ:
        return 65535;
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrMemoryPoolsSupported:
        return 1;
    default:
        return -1;
    }
}
} // namespace cuemu

/* ==== >>runtime ==============================================================================================
   In place of libcudart. Streams are in order by nature: everything is done when the call returns. */
using namespace cuemu;

extern "C" {
cudaError_t cudaMalloc(void **p, size_t n)
{
    const cudaError_t e = not_in_capture();
    if (e != cudaSuccess) return e;
    *p = n ? device_alloc(n) : nullptr;
    return error(*p || !n ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void *p)
{
    const cudaError_t e = not_in_capture();
    if (e != cudaSuccess || !p) return e;
    const auto it = heap.all.find((char *)p);
    if (it == heap.all.end() || it->second.is_free) return error(cudaErrorInvalidValue);
    device_free((char *)p);
    return cudaSuccess;
}
cudaError_t cudaMallocHost(void **p, size_t n)
{
    *p = malloc(n ? n : 1);
    return error(*p ? cudaSuccess : cudaErrorMemoryAllocation);
}
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned) { return cudaMallocHost(p, n); }
cudaError_t cudaFreeHost(void *p)
{
    free(p);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    *total = DEVICE_BYTES;
    *available = DEVICE_BYTES - heap.used;
    return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *a, const void *p)
{
    memset(a, 0, sizeof *a);
    a->type = is_device(p) ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
    a->device = is_device(p) ? 0 : -2;
    a->devicePointer = is_device(p) ? const_cast<void *>(p) : nullptr;
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind)
{
    const cudaError_t e = not_in_capture();
    return e != cudaSuccess ? e : error(copy(to, from, n, kind));
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t stream)
{
    return enqueue(stream, [=] { return copy(to, from, n, kind); });
}
cudaError_t cudaMemset(void *to, int value, size_t n)
{
    const cudaError_t e = not_in_capture();
    return e != cudaSuccess ? e : error(set(to, value, n));
}
cudaError_t cudaMemsetAsync(void *to, int value, size_t n, cudaStream_t stream)
{
    return enqueue(stream, [=] { return set(to, value, n); });
}

cudaError_t cudaDeviceSynchronize() { return not_in_capture(); }
cudaError_t cudaDeviceReset() { return cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t *s)
{
    *s = (cudaStream_t)malloc(1);
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return cudaStreamCreate(s); }
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    free(s);
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) { return not_in_capture(); }
cudaError_t cudaStreamQuery(cudaStream_t) { return not_in_capture(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status)
{
    *status = !capture.graph || s != capture.stream ? cudaStreamCaptureStatusNone
              : capture.is_invalid                  ? cudaStreamCaptureStatusInvalidated
                                                    : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode)
{
    if (capture.graph || is_legacy(s)) return error(cudaErrorStreamCaptureUnsupported);
    capture.stream = s;
    capture.graph = new Graph;
    capture.is_invalid = false;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *graph)
{
    *graph = nullptr;
    if (!capture.graph || s != capture.stream) return error(cudaErrorStreamCaptureUnmatched);
    Graph *const g = capture.graph;
    capture.graph = nullptr;
    if (capture.is_invalid) {
        delete g;
        return error(cudaErrorStreamCaptureInvalidated);
    }
    *graph = (cudaGraph_t)(void *)g;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    *exec = (cudaGraphExec_t)(void *)new Graph(*(const Graph *)(const void *)graph);
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream)
{
    const Graph *g = (const Graph *)(const void *)exec;
    return enqueue(stream, [g] {
        for (const auto &node : g->nodes) {
            const cudaError_t e = node();
            if (e != cudaSuccess) return e;
        }
        return cudaSuccess;
    });
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *, size_t *count)
{
    *count = ((const Graph *)(const void *)graph)->nodes.size();
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    delete (Graph *)(void *)graph;
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    delete (Graph *)(void *)exec;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    *e = (cudaEvent_t)calloc(1, sizeof(timespec));
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    free(e);
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream)
{
    return enqueue(stream, [e] {
        clock_gettime(CLOCK_MONOTONIC, (timespec *)(void *)e);
        return cudaSuccess;
    });
}
cudaError_t cudaEventSynchronize(cudaEvent_t) { return not_in_capture(); }
cudaError_t cudaEventQuery(cudaEvent_t) { return not_in_capture(); }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    const timespec *x = (const timespec *)(const void *)a, *y = (const timespec *)(const void *)b;
    *ms = (float)((double)(y->tv_sec - x->tv_sec) * 1e3 + (double)(y->tv_nsec - x->tv_nsec) * 1e-6);
    return cudaSuccess;
}

cudaError_t cudaGetLastError()
{
    const cudaError_t e = last_error;
    last_error = cudaSuccess;
    return e;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
const char *cudaGetErrorName(cudaError_t e)
{
    switch (e) {
    case cudaSuccess:
        return "cudaSuccess";
    case cudaErrorInvalidValue:
        return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
        return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidConfiguration:
        return "cudaErrorInvalidConfiguration";
    case cudaErrorStreamCaptureUnsupported:
        return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
        return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureUnmatched:
        return "cudaErrorStreamCaptureUnmatched";
    case cudaErrorStreamCaptureImplicit:
        return "cudaErrorStreamCaptureImplicit";
    default:
        return "an error of the CUDA runtime";
    }
}
const char *cudaGetErrorString(cudaError_t e) { return cudaGetErrorName(e); }
cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 1;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *d)
{
    *d = 0;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int d) { return error(d == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaRuntimeGetVersion(int *v)
{
    *v = CUDART_VERSION;
    return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int *v) { return cudaRuntimeGetVersion(v); }
cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int d)
{
    if (d != 0) return error(cudaErrorInvalidDevice);
    *v = attribute(a);
    return error(*v < 0 ? cudaErrorInvalidValue : cudaSuccess);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int d)
{
    if (d != 0) return error(cudaErrorInvalidDevice);
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated");
    p->major = attribute(cudaDevAttrComputeCapabilityMajor);
    p->minor = attribute(cudaDevAttrComputeCapabilityMinor);
    p->multiProcessorCount = attribute(cudaDevAttrMultiProcessorCount);
    p->totalGlobalMem = DEVICE_BYTES;
    p->l2CacheSize = attribute(cudaDevAttrL2CacheSize);
    p->warpSize = 32;
    p->maxThreadsPerBlock = MAX_THREADS;
    p->sharedMemPerBlock = (size_t)attribute(cudaDevAttrMaxSharedMemoryPerBlock);
    p->sharedMemPerBlockOptin = (size_t)attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    p->sharedMemPerMultiprocessor = (size_t)attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *function, cudaFuncAttribute a, int v)
{
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
    if (v < 0 || v > attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) return error(cudaErrorInvalidValue);
    max_smem[function] = v;
    return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *a, const void *function)
{
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = MAX_THREADS;
    a->maxDynamicSharedSizeBytes = std::max(49152, max_smem[function]);
    a->binaryVersion = a->ptxVersion = cfg.device.cc;
    return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *result)
{
    *f = strcmp(name, "cuTensorMapEncodeTiled") ? nullptr : (void *)encode_tiled;
    if (result) *result = *f ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
}
