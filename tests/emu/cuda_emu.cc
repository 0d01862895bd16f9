// cuda_emu.cc - the engine behind cuda_emu.h.  One fiber per CUDA thread, one block at a time, one OS
// thread.  Fibers change only where a kernel synchronises; which goes next is the policy's choice.
// Built plain or with ASan (all of it), or plain beside kernels built with TSan: the __tsan hooks
// below then give each CUDA thread, and each thread's asynchronous proxy, a vector clock of its own.
#include "cuda_emu.h"
#include <cstdarg>
#include <map>
#include <algorithm>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <vector>

extern "C" {
#define WEAK __attribute__((weak))
WEAK void __asan_poison_memory_region(void const volatile *, size_t);
WEAK void __asan_unpoison_memory_region(void const volatile *, size_t);
WEAK void *__asan_region_is_poisoned(void *, size_t);
WEAK void __sanitizer_start_switch_fiber(void **, const void *, size_t);
WEAK void __sanitizer_finish_switch_fiber(void *, const void **, size_t *);
WEAK void *__tsan_get_current_fiber(void);
WEAK void *__tsan_create_fiber(unsigned);
WEAK void __tsan_destroy_fiber(void *);
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
}

// ---- context switch ---------------------------------------------------------------------------------
#if defined(__x86_64__)
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
#else
#error "port cuemu_switch (or use swapcontext) for this machine"
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuemu {

Thread *self;

struct Hb { uint64_t g = 0, p = 0; };     // addresses only: sync objects for the generic and async proxy

struct CpOp { uint32_t dst; const void *src; int n, ns, line; bool done; };
struct Fiber : Thread {
    void *sp = nullptr;
    char *stack = nullptr;
    bool alive = false, inside = false;   // inside: in an engine call
    const char *what = nullptr;           // what it waits for
    int line = 0;
    void *asan_fake = nullptr;
    void *ts = nullptr, *ts_proxy = nullptr, *ts_agent = nullptr;
    uint64_t via_p, via_a, via_g, via_w;  // sync objects: thread to proxy, to copy engine, and back
    bool fenced = false;                  // wgmma.fence since the last wait
    void *last_atomic = nullptr; bool tf = false;
    std::vector<std::vector<CpOp>> cp;    // committed groups; cp.back() is open
    std::vector<std::vector<int>> st;     // TMA store groups (indices into stores)
};
struct Coll { unsigned mask = 0, here = 0; const char *what; int line; void *arg[32]; };
struct WgOp { int n; float *d[128]; const uint32_t *a[128]; uint64_t da, db; bool scale, ta, tb, regs; Ty ty; int line; void *pc; std::vector<float> saved[128]; };
struct Warpgroup {
    int here = 0; const char *what; int line; void *arg[128];
    std::vector<std::vector<WgOp>> q;     // committed groups; q.back() is open
};
struct Bar { int here = 0, want = 0, phase = 0; std::vector<int> waiting; Hb hb[2]; };
struct Mbar { bool valid = false; uint32_t want = 0, pending = 0; int64_t tx = 0; uint32_t phase = 0; std::vector<int> waiting; Hb hb[4]; };
struct TmaOp { uint32_t smem, bar; const void *map; int c[5]; int rank, owner, line; bool store; void *pc; alignas(8) unsigned char mapcopy[128]; };

enum Sched { RR, FIRST, LAST, RANDOM };
enum Async { EARLY, LATE, MIXED };
static struct { Sched sched = RR; Async async = LATE; uint64_t seed = 1; int sms = 2; int cc = 90; } cfg;
static constexpr size_t STACK = 256 << 10;
static constexpr uint32_t WINDOW = 1024;  // first shared-window address of dynamic shared memory
static constexpr uint64_t CANARY = 0x6d62617272696572ull;

static Fiber *fibers;
static int nthreads, live;
static uint64_t ready_bits[16];
static int last_run;
static void *main_sp;
static const void *main_stack; static size_t main_stack_size;
static void *main_fake, *main_ts, *root_ts; // for TSan, a block grows from root, which knows what was before the launch
static Fiber *cur;
static std::vector<Coll> colls;           // 4 a warp
static std::vector<Warpgroup> wgs;
static Bar bars[16];
static std::map<uint32_t, Mbar> mbars;
static std::vector<TmaOp> pending;
static char *smem_raw, *smem_base; static size_t smem_size, smem_raw_size, smem_align;
static LaunchBase *job;
static Hb end_hb;
Stats stats;

static uint64_t rnd() { uint64_t &x = cfg.seed; x ^= x << 13; x ^= x >> 7; x ^= x << 17; return x; }

void configure(const char *sched, const char *async, uint64_t seed) {
    std::string s = sched, a = async;
    cfg.sched = s == "rr" ? RR : s == "first" ? FIRST : s == "last" ? LAST : RANDOM;
    cfg.async = a == "early" ? EARLY : a == "late" ? LATE : MIXED;
    cfg.seed = seed * 0x9e3779b97f4a7c15ull + 1;
}

void device(int cc) { cfg.cc = cc; }
// CUDA C++ programming guide, technical specifications per compute capability; a block can have 1 KB less
int smem_per_sm() {
    switch (cfg.cc) {
    case 80: case 87: return 164 << 10;
    case 86: case 89: case 120: return 100 << 10;
    default: return 228 << 10;
    }
}

void fail(const char *fmt, ...) {
    fflush(stdout);
    fprintf(stderr, "cuda_emu: ");
    if (cur) fprintf(stderr, "block (%u,%u,%u) thread %d (warp %d lane %d): ", blockIdx.x, blockIdx.y, blockIdx.z, cur->linear, cur->warp, cur->lane);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    fflush(stderr);
    _exit(70);
}

// ---- race checker hooks ------------------------------------------------------------------------------
static bool tsan() { return &__tsan_create_fiber != nullptr; }
static void as(void *ts) { __tsan_switch_to_fiber(ts, 1); }
// All of these are called, and return, in the engine's context.
static void *kernel_pc;                   // where the kernel called the engine, for reports
static void release(Hb &h) {
    if (!tsan()) return;
    as(cur->ts); __tsan_release(&h.g);
    as(cur->ts_proxy); __tsan_release(&h.p);
    as(main_ts);
}
static void acquire(Hb &h) {
    if (!tsan()) return;
    as(cur->ts); __tsan_acquire(&h.g);
    as(cur->ts_proxy); __tsan_acquire(&h.p);
    as(main_ts);
}
static void pass(void *from, void *to, uint64_t &via) {  // what from has done and seen, to has seen
    if (!tsan()) return;
    as(from); __tsan_release(&via);
    as(to); __tsan_acquire(&via);
    as(main_ts);
}
static void access_as(void *ts, const void *p, size_t n, bool write) {
    if (!tsan()) return;
    as(ts);
    (write ? __tsan_write_range_pc : __tsan_read_range_pc)(const_cast<void *>(p), n, kernel_pc);
    as(main_ts);
}
static void touch(const void *p, size_t n, bool write) { if (tsan() && cur) access_as(cur->ts, p, n, write); }
// What the engine itself does (its heap above all) is the launching thread's doing, not the kernel's.
struct Engine { // (nests: only the outermost changes anything)
    bool outer;
    __attribute__((always_inline)) Engine() : outer(cur && !cur->inside) {
        if (!outer) return;
        cur->inside = true;
        kernel_pc = __builtin_return_address(0);
        if (tsan()) as(main_ts);
    }
    ~Engine() { if (outer) { cur->inside = false; if (tsan()) as(cur->ts); } }
};
static void touch_proxy(Fiber *f, const void *p, size_t n, bool write) { access_as(f->ts_proxy, p, n, write); }

// ---- scheduler ---------------------------------------------------------------------------------------
static void set_ready(int i) { ready_bits[i >> 6] |= 1ull << (i & 63); }
static int find_from(int i) {                 // first ready at or after i, going round; -1 if none
    for (int k = 0, w = i >> 6; k <= 16; k++, w = (w + 1) & 15) {
        uint64_t b = ready_bits[w];
        if (k == 0) b &= ~0ull << (i & 63);
        if (b) return (w << 6) + __builtin_ctzll(b);
    }
    return -1;
}
static int find_last() {
    for (int w = 15; w >= 0; w--) if (ready_bits[w]) return (w << 6) + 63 - __builtin_clzll(ready_bits[w]);
    return -1;
}
static size_t stack_low;
static void to_main() {                       // leave the current fiber
    Fiber *f = cur;
    if (tsan()) {
        size_t at = ((char *)__builtin_frame_address(0) - f->stack - 8192) & ~(size_t)4095;
        if (!stack_low || at < stack_low) stack_low = at;
    }
    if (&__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(f->alive ? &f->asan_fake : nullptr, main_stack, main_stack_size);
    cuemu_switch(&f->sp, main_sp);
    if (&__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(f->asan_fake, &main_stack, &main_stack_size);
}
static void block_here(const char *what, int line) {
    cur->what = what;
    cur->line = line;
    to_main();
    cur->what = nullptr;
}
static void relax() { set_ready(cur->linear); to_main(); }
static void fiber_main() {
    if (&__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_size);
    if (tsan()) as(cur->ts);
    job->run();
    if (tsan()) as(main_ts);
    release(end_hb);
    cur->alive = false;
    live--;
    to_main();
    __builtin_unreachable();
}
static void resume(Fiber *f) {
    cur = f;
    self = f;
    threadIdx = f->tid;
    if (&__sanitizer_start_switch_fiber) __sanitizer_start_switch_fiber(&main_fake, f->stack, STACK);
    cuemu_switch(&main_sp, f->sp);
    if (&__sanitizer_finish_switch_fiber) __sanitizer_finish_switch_fiber(main_fake, nullptr, nullptr);
    cur = nullptr;
}
static bool complete_one();
[[noreturn]] static void deadlock() {
    fprintf(stderr, "cuda_emu: deadlock in block (%u,%u,%u): nothing can run\n", blockIdx.x, blockIdx.y, blockIdx.z);
    for (int w = 0; w * 32 < nthreads; w++)
        for (int l = 0; l < 32;) {
            Fiber &f = fibers[w * 32 + l];
            int e = l + 1;
            while (e < 32 && fibers[w * 32 + e].what == f.what && fibers[w * 32 + e].line == f.line && fibers[w * 32 + e].alive == f.alive) e++;
            fprintf(stderr, "  warp %d lanes %d-%d: %s line %d\n", w, l, e - 1, f.alive ? f.what : "exited,", f.line);
            l = e;
        }
    for (auto &m : mbars) fprintf(stderr, "  mbarrier %u: phase %u, %u of %u arrivals pending, tx %lld\n", m.first, m.second.phase, m.second.pending, m.second.want, (long long)m.second.tx);
    fail("deadlock");
}
static char *map_smem() {
    char *p = (char *)mmap(nullptr, smem_raw_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) abort();
    return p;
}
static std::vector<void *> graveyard;
static void bury() { for (void *t : graveyard) __tsan_destroy_fiber(t); graveyard.clear(); }
static void run_block() {
    live = nthreads;
    colls.assign((nthreads / 32) * 4, Coll());
    wgs.assign((nthreads + 127) / 128, Warpgroup());
    for (auto &w : wgs) w.q.resize(1);
    for (auto &b : bars) b = Bar();
    mbars.clear();
    pending.clear();
    memset(ready_bits, 0, sizeof ready_bits);
    if (tsan()) {                             // new memory, new clocks: blocks know nothing of each other
        munmap(smem_raw, smem_raw_size);
        smem_raw = map_smem();
        for (int i = 0; i < nthreads && stack_low; i++) // fresh stacks as well, as deep as kernels have been seen to use them
            mmap(fibers[i].stack + stack_low, STACK - stack_low, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    }
    for (size_t i = 0; i < smem_raw_size; i++) { smem_raw[i] = (char)0xff; if (tsan()) asm volatile("" ::: "memory"); } // NaNs in every format
    smem_align = 0;
    for (int i = 0; i < nthreads; i++) {
        Fiber &f = fibers[i];
        char *st = f.stack;
        f.linear = i; f.warp = i / 32; f.lane = i & 31;
        f.tid = make_uint3(i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y));
        f.alive = true; f.inside = false; f.what = nullptr; f.fenced = false; f.tf = false; f.last_atomic = nullptr; f.asan_fake = nullptr;
        f.cp.assign(1, {}); f.st.assign(1, {});
        if (&__asan_unpoison_memory_region) __asan_unpoison_memory_region(st, STACK);
        void **sp = (void **)(st + STACK);
        *--sp = nullptr;                      // keeps rsp at 8 mod 16 on entry
        *--sp = (void *)fiber_main;
        for (int k = 0; k < 6; k++) *--sp = nullptr;
        f.sp = sp;
        if (tsan()) {
            as(root_ts);
            f.ts = __tsan_create_fiber(0);
            f.ts_proxy = __tsan_create_fiber(0);
            as(main_ts);
            f.ts_agent = nullptr;
            char nm[64];
            snprintf(nm, sizeof nm, "block %u,%u,%u thread %d", blockIdx.x, blockIdx.y, blockIdx.z, i);
            __tsan_set_fiber_name(f.ts, nm);
            snprintf(nm, sizeof nm, "async proxy of block %u,%u,%u thread %d", blockIdx.x, blockIdx.y, blockIdx.z, i);
            __tsan_set_fiber_name(f.ts_proxy, nm);
        }
        set_ready(i);
    }
    last_run = -1;
    while (live) {
        if (cfg.async == MIXED && !pending.empty() && rnd() % 16 == 0) complete_one();
        int i;
        switch (cfg.sched) {
        case RR: i = find_from((last_run + 1) & 1023); break;
        case FIRST: i = find_from(0); break;
        case LAST: i = find_last(); break;
        default: i = find_from(rnd() % nthreads);
        }
        if (i < 0) {
            if (!complete_one()) deadlock();
            continue;
        }
        ready_bits[i >> 6] &= ~(1ull << (i & 63));
        last_run = i;
        resume(&fibers[i]);
    }
    if (!pending.empty()) fail("block (%u,%u,%u) ended with %zu asynchronous bulk copies under way (line %d)", blockIdx.x, blockIdx.y, blockIdx.z, pending.size(), pending[0].line);
    for (int i = 0; i < nthreads; i++) {
        Fiber &f = fibers[i];
        for (auto &g : f.cp) for (auto &o : g) if (!o.done) fail("thread %d ended with cp.async of line %d not waited for", i, o.line);
        if (tsan()) for (void *t : {f.ts, f.ts_proxy, f.ts_agent}) if (t) graveyard.push_back(t);
    }
    if (graveyard.size() > 2500) bury();      // TSan has 8128 contexts, and takes a new one in a dead one's place for the same thread
    for (auto &w : wgs) for (auto &g : w.q) if (!g.empty()) fail("block ended with wgmma of line %d not waited for", g[0].line);
    for (auto &c : colls) if (c.mask) fail("block ended inside %s of line %d", c.what, c.line);
    stats.blocks++;
}

// ---- collectives -------------------------------------------------------------------------------------
void warp_op(const char *what, unsigned mask, void *arg, Exec exec, int line) {
    Engine e_;
    Fiber *f = cur;
    if (!(mask >> f->lane & 1)) fail("%s at line %d: this lane is not in its own mask %08x", what, line, mask);
    Coll *c = nullptr, *c0 = &colls[f->warp * 4], *free_ = nullptr;
    for (int i = 0; i < 4; i++) {
        if (c0[i].mask == mask) { c = &c0[i]; break; }
        if (!c0[i].mask) { if (!free_) free_ = &c0[i]; }
        else if (c0[i].mask & mask) fail("%s at line %d, mask %08x: %s at line %d is under way with mask %08x", what, line, mask, c0[i].what, c0[i].line, c0[i].mask);
    }
    if (!c) {
        if (!free_) fail("too many collectives under way in one warp");
        c = free_; c->mask = mask; c->here = 0; c->what = what; c->line = line;
    } else if (c->what != what || c->line != line)
        fail("divergent warp: %s at line %d meets %s at line %d", what, line, c->what, c->line);
    c->arg[f->lane] = arg;
    c->here |= 1u << f->lane;
    if (c->here == mask) {
        exec(c->arg, mask);
        c->mask = 0;
        unsigned m = mask & ~(1u << f->lane);
        for (; m; m &= m - 1) set_ready(f->warp * 32 + __builtin_ctz(m));
    } else
        block_here(what, line);
}
void warpgroup_op(const char *what, void *arg, Exec4 exec, int line) {
    Engine e_;
    Fiber *f = cur;
    if ((f->linear | 127) >= nthreads) fail("%s at line %d: warps %d.. are no full warpgroup", what, line, f->warp & ~3);
    Warpgroup &g = wgs[f->linear / 128];
    if (!g.here) { g.what = what; g.line = line; }
    else if (g.what != what || g.line != line) fail("divergent warpgroup: %s at line %d meets %s at line %d", what, line, g.what, g.line);
    g.arg[f->linear & 127] = arg;
    if (++g.here == 128) {
        g.here = 0;
        exec(g.arg);
        for (int i = f->linear & ~127, e = i + 128; i < e; i++) if (i != f->linear) set_ready(i);
    } else
        block_here(what, line);
}
uint64_t shfl_bits(const char *what, unsigned mask, uint64_t v, int src, int line) {
    struct Arg { uint64_t in, out; int src; } a{v, 0, src};
    warp_op(what, mask, &a, [](void *const *arg, unsigned m) {
        for (int i = 0; i < 32; i++)
            if (m >> i & 1) {
                Arg *p = (Arg *)arg[i];
                if (!(m >> p->src & 1)) fail("shuffle: lane %d reads lane %d, which is not in the mask %08x", i, p->src, m);
                p->out = ((Arg *)arg[p->src])->in;
            }
    }, line);
    return a.out;
}
int shfl_source(Shuffle mode, int operand, int width, int line)
{
    if (width < 1 || width > 32 || (width & (width - 1))) fail("shuffle at line %d: width %d", line, width);
    const int lane = cur->lane, lo = lane & ~(width - 1);
    int src;
    switch (mode) {
    case Shuffle::idx: return lo + (operand & (width - 1));
    case Shuffle::bfly: src = lane ^ (operand & 31); return src >= lo + width ? lane : src;
    case Shuffle::down: src = lane + (operand & 31); return src >= lo + width ? lane : src;
    default: src = lane - (operand & 31); return src < lo ? lane : src;
    }
}
template <class F> static void each(unsigned mask, F f)
{
    for (; mask; mask &= mask - 1) f(__builtin_ctz(mask));
}
unsigned ballot(const char *what, unsigned mask, bool p, int line)
{
    struct Arg { unsigned in, out; } a{p, 0};
    warp_op(what, mask, &a, [](void *const *arg, unsigned m) {
        unsigned r = 0;
        each(m, [&](int i) { r |= ((Arg *)arg[i])->in << i; });
        each(m, [&](int i) { ((Arg *)arg[i])->out = r; });
    }, line);
    return a.out;
}
unsigned match_any(unsigned mask, uint64_t v, int line)
{
    struct Arg { uint64_t in; unsigned out; } a{v, 0};
    warp_op("match.any", mask, &a, [](void *const *arg, unsigned m) {
        each(m, [&](int i) {
            each(m, [&](int j) { ((Arg *)arg[i])->out |= (unsigned)(((Arg *)arg[i])->in == ((Arg *)arg[j])->in) << j; });
        });
    }, line);
    return a.out;
}
unsigned match_all(unsigned mask, uint64_t v, int line)
{
    return match_any(mask, v, line) == mask ? mask : 0;
}
int64_t reduce(Reduce op, unsigned mask, int64_t v, int line)
{
    struct Arg { Reduce op; int64_t v; } a{op, v};
    warp_op("redux", mask, &a, [](void *const *arg, unsigned m) {
        const Arg *first = (const Arg *)arg[__builtin_ctz(m)];
        int64_t r = first->v;
        each(m & (m - 1), [&](int i) {
            const int64_t x = ((const Arg *)arg[i])->v;
            switch (first->op) {
            case Reduce::add: r += x; break;
            case Reduce::min: r = std::min(r, x); break;
            case Reduce::max: r = std::max(r, x); break;
            case Reduce::bit_and: r &= x; break;
            case Reduce::bit_or: r |= x; break;
            case Reduce::bit_xor: r ^= x; break;
            }
        });
        each(m, [&](int i) { ((Arg *)arg[i])->v = r; });
    }, line);
    return a.v;
}
unsigned active_mask()
{
    unsigned m = 0;
    for (int i = 0; i < 32; i++) m |= (unsigned)fibers[cur->warp * 32 + i].alive << i;
    return m;
}
static Hb warp_hb[32][2]; static int warp_ph[32];
void sync_warp(unsigned mask, int line) {
    Engine e_;
    int w = cur->warp, ph = warp_ph[w] & 1;
    release(warp_hb[w][ph]);
    warp_op("syncwarp", mask, &w, [](void *const *arg, unsigned m) { warp_ph[*(int *)arg[__builtin_ctz(m)]]++; }, line);
    acquire(warp_hb[w][ph]);
}
static Bar &bar_at(int id, int &count, int line) {
    if (id < 0 || id > 15) fail("barrier %d at line %d", id, line);
    if (count < 0) count = nthreads;
    if (count % 32 || count > nthreads) fail("barrier %d at line %d: count %d", id, line, count);
    Bar &b = bars[id];
    if (b.here && b.want != count) fail("barrier %d at line %d: count %d, but others came with %d", id, line, count, b.want);
    b.want = count;
    return b;
}
static void bar_done(Bar &b) { b.here = 0; b.phase++; for (int i : b.waiting) set_ready(i); b.waiting.clear(); }
void bar_sync(int id, int count, int line) {
    Engine e_;
    Bar &b = bar_at(id, count, line);
    Hb &h = b.hb[b.phase & 1];
    release(h);
    if (++b.here == b.want) bar_done(b);
    else { b.waiting.push_back(cur->linear); block_here(id ? "bar.sync" : "__syncthreads", line); }
    acquire(h);
}
void bar_arrive(int id, int count, int line) {
    Engine e_;
    Bar &b = bar_at(id, count, line);
    release(b.hb[b.phase & 1]);
    if (++b.here == b.want) bar_done(b);
}
int bar_reduce(Reduce op, int p, int line)
{
    /* one sum for each parity of the barrier's phase: a thread may come to the next one before all have left this one */
    static int sum[2];
    {
        Engine e_;
        const int phase = bars[0].phase & 1;
        if (!bars[0].here) sum[phase] = 0;
        sum[phase] += p != 0;
    }
    const int phase = bars[0].phase & 1;
    bar_sync(0, -1, line);
    return op == Reduce::add ? sum[phase] : op == Reduce::bit_or ? sum[phase] != 0 : sum[phase] == nthreads;
}
void thread_fence() {
    cur->tf = true;
    if (tsan() && cur->last_atomic) __tsan_acquire(cur->last_atomic);
}
void atomic_hb(const void *p) {
    if (!tsan()) return;
    cur->last_atomic = (void *)p;
    if (cur->tf) __tsan_release((void *)p);
}

// ---- memory ------------------------------------------------------------------------------------------
void *dyn_smem(size_t align, int line) {
    if (!smem_align) {       // the base is aligned as the kernel declares it, and no better
        smem_align = align;
        if (align & (align - 1) || align > 1024) fail("dyn_smem at line %d: alignment %zu", line, align);
        smem_base = smem_raw + (align == 1024 ? 1024 : 1024 - align);
        if (&__asan_poison_memory_region) {
            __asan_poison_memory_region(smem_raw, smem_raw_size);
            __asan_unpoison_memory_region(smem_base, smem_size);
        }
    } else if (align != smem_align) fail("dyn_smem at line %d: two alignments in one kernel", line);
    return smem_base;
}
uint32_t smem_addr(const void *p) {
    ptrdiff_t d = (const char *)p - smem_base;
    if (d < 0 || (size_t)d > smem_size) fail("address %p is not in shared memory", p);
    return WINDOW + (uint32_t)((const char *)p - smem_raw) - 1024u + 1024u;
}
void *smem_ptr(uint32_t a, size_t n, size_t align, bool write, const char *what, int line) {
    char *p = smem_raw + (a - WINDOW);
    if (a < WINDOW || p < smem_base || p + n > smem_base + smem_size) fail("%s at line %d: shared address %u (+%zu) is outside the block's %zu bytes", what, line, a, n, smem_size);
    if (a % align) fail("%s at line %d: shared address %u is not aligned to %zu", what, line, a, align);
    (void)write;
    return p;
}
static void gmem_check_as(void *ts, const void *p, size_t n, bool write, const char *what, int line) {
    if (&__asan_region_is_poisoned && __asan_region_is_poisoned((void *)p, n)) fail("%s at line %d: global address %p (+%zu) is out of bounds", what, line, p, n);
    access_as(ts, p, n, write);
}
void gmem_check(const void *p, size_t n, bool write, const char *what, int line) { gmem_check_as(cur->ts, p, n, write, what, line); }
static inline void copy16(void *d, const void *s) { __builtin_memcpy(d, s, 16); }

// ---- cp.async ----------------------------------------------------------------------------------------
static void do_cp(CpOp &o) {
    if (o.done) return;
    o.done = true;
    char *d = (char *)smem_ptr(o.dst, o.n, o.n, true, "cp.async", o.line);
    if (o.ns) gmem_check(o.src, o.ns, false, "cp.async", o.line);
    touch(d, o.n, true);
    for (int i = 0; i < o.n; i++) { d[i] = i < o.ns ? ((const char *)o.src)[i] : 0; asm volatile("" ::: "memory"); }
}
void cp_async(uint32_t dst, const void *src, int n, int ns, int line) {
    Engine e_;
    if ((n != 4 && n != 8 && n != 16) || ns < 0 || ns > n) fail("cp.async at line %d: sizes %d, %d", line, n, ns);
    if (ns && (uintptr_t)src % n) fail("cp.async at line %d: global address %p is not aligned to %d", line, src, n);
    char *d = (char *)smem_ptr(dst, n, n, true, "cp.async", line);
    touch(d, n, true);
    cur->cp.back().push_back({dst, src, n, ns, line, false});
    stats.cp_async++;
    if (cfg.async == EARLY || (cfg.async == MIXED && rnd() & 1)) do_cp(cur->cp.back().back());
    else for (int i = 0; i < n; i++) { d[i] = (char)0xff; asm volatile("" ::: "memory"); }
}
void cp_async_commit() { Engine e_; cur->cp.emplace_back(); }
void cp_async_wait(int left) {
    Engine e_;
    auto &q = cur->cp;                        // q.back() is the open group
    while ((int)q.size() - 1 > left) { for (auto &o : q.front()) do_cp(o); q.erase(q.begin()); }
}

// ---- mbarriers ---------------------------------------------------------------------------------------
static Mbar &mbar_at(uint32_t a, const char *what, int line) {
    uint64_t *w = (uint64_t *)smem_ptr(a, 8, 8, true, what, line);
    auto it = mbars.find(a);
    if (it == mbars.end() || !it->second.valid) fail("%s at line %d: no mbarrier at %u", what, line, a);
    if (*w != CANARY) fail("%s at line %d: the mbarrier at %u was overwritten", what, line, a);
    return it->second;
}
void mbar_init(uint32_t a, uint32_t count, int line) {
    Engine e_;
    uint64_t *w = (uint64_t *)smem_ptr(a, 8, 8, true, "mbarrier.init", line);
    if (!count || count > (1u << 20) - 1) fail("mbarrier.init at line %d: count %u", line, count);
    Mbar &m = mbars[a];
    if (m.valid) fail("mbarrier.init at line %d: there is a live mbarrier at %u", line, a);
    m = Mbar();
    m.valid = true; m.want = m.pending = count;
    *w = CANARY;
    touch(w, 8, true);
}
void mbar_inval(uint32_t a, int line) { mbar_at(a, "mbarrier.inval", line).valid = false; }
static void mbar_check(Mbar &m) {
    if (m.pending || m.tx) return;
    m.phase++;
    m.pending = m.want;
    for (int i : m.waiting) set_ready(i);
    m.waiting.clear();
}
void mbar_arrive(uint32_t a, uint32_t n, uint32_t expect, int line) {
    Engine e_;
    Mbar &m = mbar_at(a, "mbarrier.arrive", line);
    touch(smem_ptr(a, 8, 8, false, "", line), 8, false);   // ordered after its init, or a race
    if (m.pending < n) fail("mbarrier.arrive at line %d: one arrival too many in this phase", line);
    release(m.hb[m.phase & 3]);
    m.tx += expect;
    m.pending -= n;
    mbar_check(m);
}
bool mbar_try_wait(uint32_t a, uint32_t parity, int line) {
    Engine e_;
    if (parity > 1) fail("mbarrier.try_wait at line %d: parity %u", line, parity);
    Mbar &m = mbar_at(a, "mbarrier.try_wait", line);
    touch(smem_ptr(a, 8, 8, false, "", line), 8, false);
    if (cfg.async == MIXED && rnd() % 4 == 0) { relax(); return false; }   // the time limit may pass at once
    while ((m.phase & 1) == parity) { m.waiting.push_back(cur->linear); block_here("mbarrier.try_wait", line); }
    acquire(m.hb[(m.phase - 1) & 3]);
    return true;
}
void fence_mbar_init() {}
void fence_proxy_async() { Engine e_; pass(cur->ts, cur->ts_proxy, cur->via_p); }

// ---- TMA ---------------------------------------------------------------------------------------------
struct Map { uint64_t magic; const char *base; uint64_t stride[4]; uint32_t dim[5]; uint16_t box[5]; uint8_t rank, esz, swz, pad[11]; };
static_assert(sizeof(Map) <= 128);
static constexpr uint64_t MAGIC = 0x73766732746d6170ull;
CUresult encode_tiled(CUtensorMap *out, CUtensorMapDataType ty, cuuint32_t rank, void *base, const cuuint64_t *dim, const cuuint64_t *stride,
                      const cuuint32_t *box, const cuuint32_t *estr, CUtensorMapInterleave il, CUtensorMapSwizzle swz, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
    static const int size[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
    if ((uintptr_t)out % 64 || ty > CU_TENSOR_MAP_DATA_TYPE_TFLOAT32_FTZ || !rank || rank > 5 || (uintptr_t)base % 16 || il || fill || swz > CU_TENSOR_MAP_SWIZZLE_128B) return CUDA_ERROR_INVALID_VALUE;
    Map m;
    memset(&m, 0, sizeof m);
    m.magic = MAGIC; m.base = (const char *)base; m.rank = rank; m.esz = size[ty]; m.swz = swz;
    for (unsigned i = 0; i < rank; i++) {
        if (!dim[i] || dim[i] > 1ull << 32 || !box[i] || box[i] > 256 || estr[i] != 1) return CUDA_ERROR_INVALID_VALUE;
        m.dim[i] = (uint32_t)dim[i]; m.box[i] = (uint16_t)box[i];
        if (i && (stride[i - 1] % 16 || stride[i - 1] >= 1ull << 40)) return CUDA_ERROR_INVALID_VALUE;
        if (i) m.stride[i - 1] = stride[i - 1];
    }
    unsigned inner = box[0] * m.esz;
    if (inner % 16 || (swz && inner > 16u << swz)) return CUDA_ERROR_INVALID_VALUE;
    memset(out, 0, sizeof *out);
    memcpy(out, &m, sizeof m);
    return CUDA_SUCCESS;
}
static Map *map_of(const void *p, int rank, int line) {
    Map *m = (Map *)p;
    if ((uintptr_t)p % 64 || m->magic != MAGIC) fail("TMA at line %d: not a tensor map", line);
    if (m->rank != rank) fail("TMA at line %d: a %dD copy with a %dD tensor map", line, rank, m->rank);
    return m;
}
static uint32_t swizzle(uint32_t a, int bits) { return a ^ ((a >> 7 & ((1u << bits) - 1)) << 4); }
static size_t box_bytes(const Map *m) { size_t n = m->esz; for (int i = 0; i < m->rank; i++) n *= m->box[i]; return n; }
static void do_tma(TmaOp &o) {
    Map *m = (Map *)o.mapcopy;
    Fiber *f = &fibers[o.owner];
    kernel_pc = o.pc;
    size_t inner = (size_t)m->box[0] * m->esz, rows = box_bytes(m) / inner;
    void *ts = o.store ? f->ts_proxy : f->ts_agent;
    for (size_t r = 0; r < rows; r++) {
        const char *g = m->base;
        bool in = true;
        size_t q = r;
        for (int i = 1; i < m->rank; i++) {
            int64_t x = (int64_t)o.c[i] + (int64_t)(q % m->box[i]);
            q /= m->box[i];
            if (x < 0 || x >= m->dim[i]) in = false;
            g += (int64_t)m->stride[i - 1] * x;
        }
        for (size_t b = 0; b < inner; b += 16) {
            char *s = smem_raw + (swizzle(o.smem + (uint32_t)(r * inner + b), m->swz) - WINDOW);
            char chunk[16];
            if (o.store) { access_as(ts, s, 16, false); copy16(chunk, s); }
            else { for (int i = 0; i < 16; i++) chunk[i] = 0; }
            for (int e = 0; e < 16; e += m->esz) {
                int64_t x = (int64_t)o.c[0] + (int64_t)(b + e) / m->esz;
                if (!in || x < 0 || x >= m->dim[0]) continue;
                const char *src = g + x * m->esz;
                gmem_check_as(ts, src, m->esz, o.store, "TMA", o.line);
                for (int i = 0; i < m->esz; i++) { if (o.store) ((char *)src)[i] = chunk[e + i]; else chunk[e + i] = src[i]; asm volatile("" ::: "memory"); }
            }
            if (!o.store) { access_as(ts, s, 16, true); copy16(s, chunk); }
        }
    }
    if (!o.store) {
        Mbar &b = mbar_at(o.bar, "TMA completion", o.line);
        if (tsan()) { as(ts); __tsan_release(&b.hb[b.phase & 3].g); __tsan_release(&b.hb[b.phase & 3].p); as(main_ts); }
        b.tx -= (int64_t)box_bytes(m);
        mbar_check(b);
    }
}
static bool complete_one() {
    for (size_t tries = pending.size(); tries; tries--) {
        size_t i = rnd() % pending.size();
        TmaOp o = pending[i];
        pending.erase(pending.begin() + i);
        Fiber *was = cur;
        cur = nullptr;
        do_tma(o);
        cur = was;
        if (!o.store || true) return true;
    }
    return false;
}
static void tma_common(TmaOp &o, const Map *m) {
    int al = m->swz ? 128 : 16;
    if (m->swz && o.smem % (128u << m->swz) && m->swz == 3 && o.smem % 1024) fail("TMA at line %d: shared address %u of a 128B-swizzled box is not at a 1024-byte boundary", o.line, o.smem);
    void *p = smem_ptr(o.smem, box_bytes(m), al, !o.store, "TMA", o.line);
    memcpy(o.mapcopy, m, sizeof *m);
    if (!o.store) {
        if (tsan()) {                       // the copy engine knows what the issuing thread knows
            if (!cur->ts_agent) { as(root_ts); cur->ts_agent = __tsan_create_fiber(0); as(main_ts); __tsan_set_fiber_name(cur->ts_agent, "TMA load"); }
            pass(cur->ts, cur->ts_agent, cur->via_a);
            pass(cur->ts_proxy, cur->ts_agent, cur->via_a);
            access_as(cur->ts_agent, p, box_bytes(m), true);
        }
        if (cfg.async != EARLY) for (size_t i = 0; i < box_bytes(m); i++) { ((char *)p)[i] = (char)0xff; asm volatile("" ::: "memory"); }
    } else
        touch_proxy(cur, p, box_bytes(m), false);
    stats.tma++;
    if (cfg.async == EARLY) do_tma(o);
    else pending.push_back(o);
}
void tma_load(uint32_t dst, const void *map, uint32_t bar, const int *c, int rank, int line) {
    Engine e_;
    Map *m = map_of(map, rank, line);
    mbar_at(bar, "TMA", line);
    TmaOp o{};
    o.smem = dst; o.bar = bar; o.rank = rank; o.owner = cur->linear; o.line = line; o.store = false; o.pc = kernel_pc;
    for (int i = 0; i < rank; i++) o.c[i] = c[i];
    tma_common(o, m);
}
void tma_store(const void *map, uint32_t src, const int *c, int rank, int line) {
    Engine e_;
    Map *m = map_of(map, rank, line);
    TmaOp o{};
    o.smem = src; o.rank = rank; o.owner = cur->linear; o.line = line; o.store = true; o.pc = kernel_pc;
    for (int i = 0; i < rank; i++) o.c[i] = c[i];
    tma_common(o, m);
}
void tma_store_commit() {}
void tma_store_wait(int left, bool) {
    Engine e_;
    if (left) return;                        // (a prototype: groups are not told apart)
    for (size_t i = 0; i < pending.size();)
            if (pending[i].store && pending[i].owner == cur->linear) { TmaOp o = pending[i]; pending.erase(pending.begin() + i); do_tma(o); }
        else i++;
    pass(cur->ts_proxy, cur->ts, cur->via_g);
}

// ---- tensor cores ------------------------------------------------------------------------------------
static inline float to_f(uint16_t v, Ty ty) {
    if (ty == Ty::bf16) { uint32_t u = (uint32_t)v << 16; float f; __builtin_memcpy(&f, &u, 4); return f; }
    __half_raw h; h.x = v; return __half2float(h);
}
void ldmatrix(uint32_t addr, uint32_t *r, int num, bool trans, int line) {
    Engine e_;
    struct Arg { uint32_t addr; uint16_t row[8]; uint32_t *r; int num; bool trans; } a;
    a.addr = addr; a.r = r; a.num = num; a.trans = trans;
    if (cur->lane < 8 * num) {
        void *p = smem_ptr(addr, 16, 16, false, "ldmatrix", line);
        touch(p, 16, false);
        copy16(a.row, p);
    }
    warp_op(trans ? "ldmatrix.trans" : "ldmatrix", ~0u, &a, [](void *const *arg, unsigned) {
        Arg *const *p = (Arg *const *)arg;
        for (int m = 0; m < p[0]->num; m++) {
            unsigned banks = 0;
            for (int l = 0; l < 8; l++) banks |= 1u << (p[m * 8 + l]->addr >> 4 & 7);
            stats.ldm++; stats.ldm_conflicts += 8 - __builtin_popcount(banks);
            for (int t = 0; t < 32; t++) {
                uint16_t lo, hi;
                if (!p[t]->trans) { lo = p[m * 8 + t / 4]->row[t % 4 * 2]; hi = p[m * 8 + t / 4]->row[t % 4 * 2 + 1]; }
                else { lo = p[m * 8 + t % 4 * 2]->row[t / 4]; hi = p[m * 8 + t % 4 * 2 + 1]->row[t / 4]; }
                p[t]->r[m] = lo | (uint32_t)hi << 16;
            }
        }
    }, line);
}
// d (mr x n) += a (mr x 16) b (16 x n)
static void gemm16(float *__restrict d, const float *__restrict a, const float *__restrict b, int mr, int n) {
    for (int i = 0; i < mr; i++)
        for (int k = 0; k < 16; k++) {
            float x = a[i * 16 + k];
            for (int j = 0; j < n; j++) d[i * n + j] += x * b[k * n + j];
        }
}
static void unpack_a(float *A, const uint32_t *a, int lane, Ty ty) { // 16x16 fragment of one lane
    int g = lane >> 2, t = lane & 3;
    for (int i = 0; i < 8; i++) {
        int row = g + (i >> 1 & 1) * 8, col = t * 2 + (i & 1) + (i >> 2) * 8;
        A[row * 16 + col] = to_f((uint16_t)(a[i >> 1] >> (i & 1) * 16), ty);
    }
}
void mma_m16n8k16(float *d, const uint32_t *a, const uint32_t *b, const float *c, Ty ty, int line) {
    struct Arg { float *d; const uint32_t *a, *b; const float *c; Ty ty; } s{d, a, b, c, ty};
    warp_op("mma.m16n8k16", ~0u, &s, [](void *const *arg, unsigned) {
        float A[256], B[128], D[128];
        for (int l = 0; l < 32; l++) {
            const Arg *p = (const Arg *)arg[l];
            int g = l >> 2, t = l & 3;
            unpack_a(A, p->a, l, p->ty);
            for (int i = 0; i < 4; i++) {
                B[(t * 2 + (i & 1) + (i >> 1) * 8) * 8 + g] = to_f((uint16_t)(p->b[i >> 1] >> (i & 1) * 16), p->ty);
                D[(g + (i >> 1) * 8) * 8 + t * 2 + (i & 1)] = p->c[i];
            }
        }
        gemm16(D, A, B, 16, 8);
        for (int l = 0; l < 32; l++)
            for (int i = 0; i < 4; i++) ((Arg *)arg[l])->d[i] = D[((l >> 2) + (i >> 1) * 8) * 8 + (l & 3) * 2 + (i & 1)];
        stats.mma++;
    }, line);
}
// One operand from its shared-memory descriptor.  mn: extent in M or N; out[k * mn + i].
static void from_desc(float *out, uint64_t desc, int mn, bool mn_major, Ty ty, Fiber *who, int line) {
    uint32_t start = (uint32_t)(desc & 0x3fff) << 4, lbo = (uint32_t)(desc >> 16 & 0x3fff) << 4, sbo = (uint32_t)(desc >> 32 & 0x3fff) << 4;
    unsigned base_off = desc >> 49 & 7, mode = desc >> 62;
    static const int bits_of[4] = {0, 3, 2, 1};
    int bits = bits_of[mode], w = 1 << bits;
    uint64_t used = 0x3fffull | 0x3fffull << 16 | 0x3fffull << 32 | 7ull << 49 | 3ull << 62;
    if (desc & ~used) fail("wgmma at line %d: descriptor %016llx has reserved bits set", line, (unsigned long long)desc);
    if (base_off) fail("wgmma at line %d: base offset %u is not emulated", line, base_off);
    if (bits && (start >> 7 & ((1 << bits) - 1)) ) fail("wgmma at line %d: start address %u is not in the first row of a swizzle pattern and the base offset is 0", line, start);
    // 16-byte units along the contiguous dimension
    int outer = mn_major ? 16 : mn, units = mn_major ? mn / 8 : 2;
    for (int o = 0; o < outer; o++)
        for (int u = 0; u < units; u++) {
            uint32_t off;
            if (!mn_major) off = (o % 8) * w * 16 + (o / 8) * sbo + u * (w == 1 ? lbo : 16);
            else if (w == 1) off = u * sbo + (o % 8) * 16 + (o / 8) * lbo;
            else off = (u % w) * 16 + (u / w) * lbo + (o % 8) * w * 16 + (o / 8) * sbo;
            // the swizzle acts on shared-window address bits
            const uint16_t *p = (const uint16_t *)smem_ptr(swizzle(start + off, bits), 16, 16, false, "wgmma operand", line);
            touch_proxy(who, p, 16, false);
            for (int e = 0; e < 8; e++) {
                float v = to_f(p[e], ty);
                if (mn_major) out[o * mn + u * 8 + e] = v; else out[(u * 8 + e) * mn + o] = v;
            }
        }
}
static void do_wgmma(WgOp &o, int wg) {
    alignas(64) float At[16 * 64], A[64 * 16], B[16 * 256], D[64 * 256];
    int n = o.n;
    kernel_pc = o.pc;
    Fiber *who = &fibers[wg * 128];
    if (o.regs) for (int t = 0; t < 128; t++) unpack_a(A + (t / 32) * 256, o.a[t], t & 31, o.ty);
    else { from_desc(At, o.da, 64, o.ta, o.ty, who, o.line); for (int i = 0; i < 64; i++) for (int k = 0; k < 16; k++) A[i * 16 + k] = At[k * 64 + i]; }
    from_desc(B, o.db, n, o.tb, o.ty, who, o.line);
    auto at = [n](int t, int i) { return (t / 32 * 16 + (t & 31) / 4 + (i >> 1 & 1) * 8) * n + (i >> 2) * 8 + (t & 3) * 2 + (i & 1); };
    for (int t = 0; t < 128; t++) {
        float *d = o.d[t];
        if (!o.saved[t].empty()) for (int i = 0; i < n / 2; i++) d[i] = o.saved[t][i];
        for (int i = 0; i < n / 2; i++) D[at(t, i)] = o.scale ? d[i] : 0.f;
    }
    gemm16(D, A, B, 64, n);
    for (int t = 0; t < 128; t++) for (int i = 0; i < n / 2; i++) o.d[t][i] = D[at(t, i)];
    stats.wgmma++;
}
void wgmma_fence(int) { cur->fenced = true; }
static void drain(Warpgroup &g, int wg, int left) {
    while ((int)g.q.size() - 1 > left) {
        for (auto &o : g.q.front()) do_wgmma(o, wg);
        g.q.erase(g.q.begin());
    }
}
void wgmma_commit(int line) {
    warpgroup_op("wgmma.commit_group", cur, [](void *const *arg) {
        int wg = ((Fiber *)arg[0])->linear / 128;
        wgs[wg].q.emplace_back();
        if (cfg.async == EARLY || (cfg.async == MIXED && rnd() & 1)) drain(wgs[wg], wg, 0);
    }, line);
}
void wgmma_wait(int left, int line) {
    Engine e_;
    struct Arg { int wg, left; } a{cur->linear / 128, left};
    warpgroup_op("wgmma.wait_group", &a, [](void *const *arg) { Arg *p = (Arg *)arg[0]; drain(wgs[p->wg], p->wg, p->left); }, line);
    cur->fenced = false;
    if (tsan()) { Fiber *who = &fibers[cur->linear & ~127]; pass(who->ts_proxy, cur->ts, who->via_w); } // the proxy's reads are over
}
void wgmma_m64k16(int n, float *d, const uint32_t *a_regs, uint64_t da, uint64_t db, bool scale_d, bool trans_a, bool trans_b, Ty ty, int line) {
    Engine e_;
    if (!cur->fenced) fail("wgmma at line %d: no wgmma.fence since the registers were last the thread's own", line);
    struct Arg { int n; float *d; const uint32_t *a; uint64_t da, db; bool s, ta, tb; Ty ty; int line, wg; } s{n, d, a_regs, da, db, scale_d, trans_a, trans_b, ty, line, cur->linear / 128};
    warpgroup_op("wgmma.mma_async", &s, [](void *const *arg) {
        Arg *p = (Arg *)arg[0];
        Warpgroup &g = wgs[p->wg];
        WgOp o{};
        o.n = p->n; o.da = p->da; o.db = p->db; o.scale = p->s; o.ta = p->ta; o.tb = p->tb; o.regs = p->a; o.ty = p->ty; o.line = p->line; o.pc = kernel_pc;
        bool first = true;
        for (auto &q : g.q) for (auto &e : q) if (e.d[0] == p->d) first = false;
        for (int t = 0; t < 128; t++) {
            Arg *x = (Arg *)arg[t];
            if (x->da != p->da || x->db != p->db || x->s != p->s) fail("wgmma at line %d: operands differ between threads of the warpgroup", p->line);
            o.d[t] = x->d; o.a[t] = x->a;
            if (first) { // until it is waited for, the accumulator has no value
                o.saved[t].assign(x->d, x->d + p->n / 2);
                for (int i = 0; i < p->n / 2; i++) x->d[i] = NAN;
            }
        }
        if (tsan()) { // the operands are read from now on
            alignas(64) static float B[16 * 256];
            Fiber *who = &fibers[p->wg * 128];
            if (!o.regs) from_desc(B, o.da, 64, o.ta, o.ty, who, o.line);
            from_desc(B, o.db, o.n, o.tb, o.ty, who, o.line);
        }
        g.q.back().push_back(std::move(o));
    }, line);
}
void setmaxnreg(int n, bool inc, int line) {
    if (n < 24 || n > 256 || n % 8) fail("setmaxnreg at line %d: %d", line, n);
    int v = n;
    warpgroup_op(inc ? "setmaxnreg.inc" : "setmaxnreg.dec", &v, [](void *const *) {}, line);
}

// ---- launches and the runtime API ------------------------------------------------------------------
static std::map<const void *, int> max_smem;
static cudaError_t last_error = cudaSuccess;
static cudaError_t err(cudaError_t e) { if (e != cudaSuccess) last_error = e; return e; }
cudaError_t launch(const cudaLaunchConfig_t *c, const void *func, LaunchBase *l) {
    blockDim = c->blockDim; gridDim = c->gridDim;
    nthreads = blockDim.x * blockDim.y * blockDim.z;
    if (nthreads < 32 || nthreads > 1024 || nthreads % 32) return err(cudaErrorInvalidConfiguration);
    if (!gridDim.x || !gridDim.y || !gridDim.z || gridDim.y > 65535 || gridDim.z > 65535) return err(cudaErrorInvalidConfiguration);
    smem_size = c->dynamicSmemBytes;
    if (smem_size > 49152 && (size_t)max_smem[func] < smem_size) return err(cudaErrorInvalidValue);
    job = l;
    if (!fibers) {
        fibers = new Fiber[1024];
        for (int i = 0; i < 1024; i++) {
            char *p = (char *)mmap(nullptr, STACK + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            mprotect(p, 4096, PROT_NONE);
            fibers[i].stack = p + 4096;
        }
    }
    // the last byte of shared memory is the last byte of the allocation
    smem_raw_size = 1024 + smem_size + 256;
    smem_raw = map_smem();
    smem_base = smem_raw + 1024;
    if (tsan()) { main_ts = __tsan_get_current_fiber(); root_ts = __tsan_create_fiber(0); AnnotateIgnoreReadsBegin(__FILE__, __LINE__); AnnotateIgnoreWritesBegin(__FILE__, __LINE__); }
    uint64_t blocks = (uint64_t)gridDim.x * gridDim.y * gridDim.z, step = 1, at = 0;
    if (cfg.sched == LAST) { step = blocks - 1 ? blocks - 1 : 1; at = blocks - 1; }        // last block first
    if (cfg.sched == RANDOM && blocks > 2) { at = rnd() % blocks; do step = rnd() % blocks; while (std::__gcd(step, blocks) != 1); }
    for (uint64_t i = 0; i < blocks; i++, at = (at + step) % blocks) {
        blockIdx = make_uint3(at % gridDim.x, at / gridDim.x % gridDim.y, at / gridDim.x / gridDim.y);
        run_block();
        if (&__asan_unpoison_memory_region) __asan_unpoison_memory_region(smem_raw, smem_raw_size);
    }
    if (tsan()) { AnnotateIgnoreWritesEnd(__FILE__, __LINE__); AnnotateIgnoreReadsEnd(__FILE__, __LINE__); __tsan_acquire(&end_hb.g); __tsan_acquire(&end_hb.p); bury(); __tsan_destroy_fiber(root_ts); }
    munmap(smem_raw, smem_raw_size);
    return cudaSuccess;
}
} // namespace cuemu

using cuemu::err;
extern "C" {
cudaError_t cudaMalloc(void **p, size_t n) { if (posix_memalign(p, 256, n ? n : 1)) return err(cudaErrorMemoryAllocation); memset(*p, 0xff, n); return cudaSuccess; }
cudaError_t cudaFree(void *p) { free(p); return cudaSuccess; }
cudaError_t cudaMemcpy(void *d, const void *s, size_t n, cudaMemcpyKind) { memcpy(d, s, n); return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, cudaMemcpyKind, cudaStream_t) { memcpy(d, s, n); return cudaSuccess; }
cudaError_t cudaMemset(void *d, int v, size_t n) { memset(d, v, n); return cudaSuccess; }
cudaError_t cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t) { memset(d, v, n); return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamCreate(cudaStream_t *s) { *s = (cudaStream_t)malloc(1); return cudaSuccess; }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned) { return cudaStreamCreate(s); }
cudaError_t cudaStreamDestroy(cudaStream_t s) { free(s); return cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { *e = (cudaEvent_t)calloc(1, sizeof(timespec)); return cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t) { clock_gettime(CLOCK_MONOTONIC, (timespec *)e); return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    const timespec *x = (const timespec *)a, *y = (const timespec *)b;
    *ms = (float)((double)(y->tv_sec - x->tv_sec) * 1e3 + (double)(y->tv_nsec - x->tv_nsec) * 1e-6);
    return cudaSuccess;
}
cudaError_t cudaGetLastError() { cudaError_t e = cuemu::last_error; cuemu::last_error = cudaSuccess; return e; }
cudaError_t cudaPeekAtLastError() { return cuemu::last_error; }
const char *cudaGetErrorString(cudaError_t e) { static char b[32]; snprintf(b, sizeof b, "cudaError %d", (int)e); return b; }
cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetDevice(int *d) { *d = 0; return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int) {
    switch (a) {
    case cudaDevAttrComputeCapabilityMajor: *v = cuemu::cfg.cc / 10; break;
    case cudaDevAttrComputeCapabilityMinor: *v = cuemu::cfg.cc % 10; break;
    case cudaDevAttrMultiProcessorCount: *v = cuemu::cfg.sms; break;
    case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break;
    case cudaDevAttrWarpSize: *v = 32; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *v = 32; break;
    case cudaDevAttrMaxRegistersPerBlock: *v = 65536; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *v = 65536; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *v = 1024; break;
    case cudaDevAttrL2CacheSize: *v = 40 << 20; break;
    case cudaDevAttrMaxGridDimX: *v = 0x7fffffff; break;
    case cudaDevAttrMaxGridDimY: *v = 65535; break;
    case cudaDevAttrMaxGridDimZ: *v = 65535; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = cuemu::smem_per_sm() - 1024; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = cuemu::smem_per_sm(); break;
    default: return err(cudaErrorInvalidValue);
    }
    return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void *f, cudaFuncAttribute a, int v) {
    if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) { if (v > cuemu::smem_per_sm() - 1024) return err(cudaErrorInvalidValue); cuemu::max_smem[f] = v; }
    return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char *s, void **f, unsigned, unsigned long long, cudaDriverEntryPointQueryResult *r) {
    *f = !strcmp(s, "cuTensorMapEncodeTiled") ? (void *)cuemu::encode_tiled : nullptr;
    if (r) *r = *f ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
}
