/* The engine of the emulator: runs a kernel's blocks, each CUDA thread a fiber of the calling OS thread.
 *
 * Owns: fibers and their stacks, blocks and their shared memory, meetings of warps, barriers, asynchronous copies, the reports of faults. Not: device memory,
 * streams (runtime.cc).
 *
 * Order. One warp, chosen at random, runs until all its lanes wait; its lanes run one at a time, the next one chosen at random whenever one waits. So whatever
 * is not ordered by a barrier or a warp function has some other order with another seed (RACKLM_EMU_SEED). Blocks start in random order, one after the other,
 * and a few at once in some launches; when all that run wait for memory (polled), more are started, up to RESIDENT_THREADS, and then those of
 * other kernels (set_idle): blocks that wait for each other make progress as far as a GPU would let them.
 *
 * Fibers. A lane that has not begun needs none: the fiber of a lane that ended goes on with the next one, so kernels without barriers switch never. Lanes of
 * a warp switch to each other directly, not through the scheduler. */
#include "tests/gpu/emu/kernel.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <signal.h>
#include <sys/mman.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include <boost/context/detail/fcontext.hpp>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define EMU_ASAN 0
#endif

namespace emu {

constinit thread_local thread_view *self __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

namespace bc = boost::context::detail;

constexpr size_t PAGE = 4096, STACK_BYTES = EMU_ASAN ? 256 * 1024 : 64 * 1024;
constexpr size_t SMEM_MAX = 256 * 1024; /* more than any GPU has (227 KiB) */
constexpr size_t SMEM_ALIGN = 1024, SMEM_CANARY = 256;
constexpr uint32_t RESIDENT_THREADS = 32768;
constexpr unsigned char POISON = 0xff; /* NaN as f32, f16, bf16 and e4m3 */

struct block;
struct grid;

struct fiber {
    bc::fcontext_t ctx;
    unsigned char *stack; /* lowest byte above the guard page; nullptr: the OS thread's own */
    const void *bottom;   /* for AddressSanitizer */
    size_t size;
    void *fake_stack;
};

struct copy { /* cp.async, not landed */
    void *dst;
    const void *src;
    uint32_t bytes, src_bytes, group;
};

struct warp;
struct lane : thread_view {
    warp *w;
    fiber *f;
    const volatile void *poll_addr;
    uint64_t poll_value;
    uint32_t groups; /* cp.async groups committed */
    std::vector<copy> copies;
};

struct meeting {
    const warp_op *op;
    uint32_t mask, arrived;
    here at;
    void *args[32];
};

struct warp {
    block *b;
    lane *lanes;
    uint32_t exists;   /* lanes there are */
    uint32_t fresh;    /* not begun */
    uint32_t ready;    /* can run (fresh ones included), but do not */
    uint32_t polling;  /* wait for memory */
    uint32_t at_barrier;
    uint32_t done;
    uint32_t meetings; /* of m, those that somebody has come to */
    meeting m[32];
};

struct block : block_view {
    grid *g;
    uint32_t n_threads, n_warps, live;
    std::vector<lane> lanes;
    std::vector<warp> warps;
    unsigned char *smem_map, *smem_end; /* a guard page, SMEM_MAX, a guard page */
    /* the barrier */
    uint32_t arrived, votes, result;
    here barrier_at;
};

struct grid {
    const kernel_launch *launch;
    uint64_t n_blocks, n_started, n_done;
    std::vector<uint32_t> order; /* of the blocks not started yet, shuffled as they are taken */
    uint32_t resident, width;    /* blocks that run; how many may */
    fault failed;
};

struct engine {
    uint64_t rng;
    fiber *running;   /* nullptr only before the first kernel */
    fiber *scheduler; /* of the innermost run_kernel */
    std::vector<fiber *> free_fibers;
    std::vector<block *> free_blocks;
    std::vector<block *> resident;
    std::vector<grid *> grids;
    uint64_t quiet_since; /* ns; 0: something else than polling has happened */
    uint64_t quiet_max;   /* after that it is a fault */
    uint64_t n_launches;
    std::vector<std::unique_ptr<fiber>> fibers;
    std::vector<std::unique_ptr<block>> blocks;
    std::vector<std::pair<void *, size_t>> maps;
    std::unique_ptr<char[]> signal_stack;
    ~engine();
};
constinit thread_local engine *eng __attribute__((tls_model("initial-exec"))) = nullptr;

bool catching = false;
bool (*idle_hook)() = nullptr;

uint64_t random64()
{
    uint64_t x = eng->rng; /* xorshift64* */
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    eng->rng = x;
    return x * 0x2545f4914f6cdd1dull;
}
uint32_t random_below(uint32_t n)
{
    return uint32_t((random64() >> 32) * n >> 32);
}

lane *self_lane()
{
    return static_cast<lane *>(self);
}

/* ---- fibers */

void after_switch(bc::transfer_t t, void *fake_stack)
{
    fiber *from = static_cast<fiber *>(t.data);
    from->ctx = t.fctx;
#if EMU_ASAN
    __sanitizer_finish_switch_fiber(fake_stack, &from->bottom, &from->size);
#else
    (void)fake_stack;
#endif
}

void switch_to(fiber *to)
{
    fiber *from = eng->running;
    eng->running = to;
#if EMU_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->bottom, to->size);
#endif
    bc::transfer_t t = bc::jump_fcontext(to->ctx, from);
    after_switch(t, from->fake_stack);
}

void fiber_main(bc::transfer_t t);

void fiber_reset(fiber *f)
{
#if EMU_ASAN
    __asan_unpoison_memory_region(f->stack, STACK_BYTES);
#endif
    f->bottom = f->stack;
    f->size = STACK_BYTES;
    f->fake_stack = nullptr;
    /* Stacks are some pages apart: without a skew the hot ends of all of them share a few sets of the first-level cache. */
    size_t skew = (size_t(f->stack) / (STACK_BYTES + PAGE)) % 16 * 13 * 64;
    f->ctx = bc::make_fcontext(f->stack + STACK_BYTES - skew, STACK_BYTES - skew, fiber_main);
}

void *map_or_die(size_t bytes)
{
    void *p = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        fprintf(stderr, "emu: no memory for the stacks or the shared memory of a block\n");
        abort();
    }
    eng->maps.emplace_back(p, bytes);
    return p;
}
void map_open(void *p, size_t bytes)
{
    if (mprotect(p, bytes, PROT_READ | PROT_WRITE) != 0) {
        fprintf(stderr, "emu: too many stacks (vm.max_map_count)\n");
        abort();
    }
}

fiber *fiber_take()
{
    if (eng->free_fibers.empty()) {
        constexpr size_t n = 64;
        auto *p = static_cast<unsigned char *>(map_or_die(n * (STACK_BYTES + PAGE)));
        for (size_t i = 0; i < n; i++) {
            fiber *f = eng->fibers.emplace_back(std::make_unique<fiber>()).get();
            f->stack = p + i * (STACK_BYTES + PAGE) + PAGE;
            map_open(f->stack, STACK_BYTES);
            fiber_reset(f);
            eng->free_fibers.push_back(f);
        }
    }
    fiber *f = eng->free_fibers.back();
    eng->free_fibers.pop_back();
    return f;
}

/* A lane that can run is taken from the warp, a random one: what `self` becomes. */
lane *warp_take(warp *w)
{
    uint32_t turn = uint32_t(random64() >> 59);
    uint32_t i = (uint32_t(__builtin_ctz(w->ready >> turn | w->ready << (-turn & 31))) + turn) & 31;
    w->ready &= ~(1u << i);
    return &w->lanes[i];
}

/* The fiber of lane l, which is to run; a new one when it has not begun. */
fiber *lane_fiber(lane *l)
{
    uint32_t bit = 1u << l->lane_idx;
    if (l->w->fresh & bit) {
        l->w->fresh &= ~bit;
        l->f = fiber_take();
    }
    return l->f;
}

/* The lane waits: others run until something has made it ready and its turn comes. */
void suspend(lane *l)
{
    if (l->w->ready) {
        lane *next = warp_take(l->w);
        self = next;
        switch_to(lane_fiber(next));
    } else {
        self = nullptr;
        switch_to(eng->scheduler);
    }
}

void fiber_main(bc::transfer_t t)
{
    after_switch(t, nullptr);
    for (;;) {
        lane *l = self_lane();
        warp *w = l->w;
        w->b->g->launch->thread();
        w->done |= 1u << l->lane_idx;
        w->b->live--;
        l->copies.clear(); /* not waited for: they never land */
        eng->quiet_since = 0;
        fiber *f = eng->running;
        if (w->ready == 0) {
            self = nullptr;
            eng->free_fibers.push_back(f);
            switch_to(eng->scheduler);
            continue;
        }
        lane *next = warp_take(w);
        self = next;
        if (w->fresh >> next->lane_idx & 1) {
            w->fresh &= ~(1u << next->lane_idx);
            next->f = f;
            continue;
        }
        eng->free_fibers.push_back(f);
        switch_to(next->f);
    }
}

/* ---- blocks */

block *block_take(uint32_t n_threads, size_t smem)
{
    block *b;
    if (eng->free_blocks.empty()) {
        b = eng->blocks.emplace_back(std::make_unique<block>()).get();
        b->smem_map = static_cast<unsigned char *>(map_or_die(SMEM_MAX + 2 * PAGE));
        b->smem_end = b->smem_map + PAGE + SMEM_MAX;
        map_open(b->smem_map + PAGE, SMEM_MAX);
        memset(b->smem_map + PAGE, POISON, SMEM_MAX);
    } else {
        b = eng->free_blocks.back();
        eng->free_blocks.pop_back();
    }
    if (b->lanes.size() < n_threads) {
        b->lanes.resize(n_threads);
        b->warps.resize((n_threads + 31) / 32);
    }
    b->n_threads = b->live = n_threads;
    b->n_warps = (n_threads + 31) / 32;
    b->arrived = b->votes = 0;
    /* At the upper guard page, but for alignment; what lies between and before is checked when the block ends. */
    b->smem_bytes = smem;
    b->smem = b->smem_end - (smem + SMEM_ALIGN - 1) / SMEM_ALIGN * SMEM_ALIGN;
#if EMU_ASAN
    __asan_unpoison_memory_region(b->smem_map + PAGE, SMEM_MAX);
#endif
    memset(b->smem - SMEM_CANARY, POISON, size_t(b->smem_end - b->smem) + SMEM_CANARY);
#if EMU_ASAN
    __asan_poison_memory_region(b->smem_map + PAGE, size_t(b->smem - b->smem_map) - PAGE);
    __asan_poison_memory_region(b->smem + smem, size_t(b->smem_end - b->smem) - smem);
#endif
    return b;
}

void block_start(grid *g)
{
    const kernel_launch &k = *g->launch;
    uint32_t n_threads = k.block.x * k.block.y * k.block.z;
    block *b = block_take(n_threads, k.smem);
    b->g = g;
    b->block_dim = k.block;
    b->grid_dim = k.grid;

    uint32_t left = uint32_t(g->n_blocks - g->n_started), pick = random_below(left), idx = g->order[pick];
    g->order[pick] = g->order[left - 1];
    g->n_started++;
    g->resident++;
    b->block_idx = {idx % k.grid.x, idx / k.grid.x % k.grid.y, idx / k.grid.x / k.grid.y};

    for (uint32_t i = 0; i < b->n_warps; i++) {
        warp *w = &b->warps[i];
        uint32_t n = std::min(32u, n_threads - 32 * i);
        w->b = b;
        w->lanes = &b->lanes[32 * i];
        w->exists = w->fresh = w->ready = n == 32 ? UINT32_MAX : (1u << n) - 1;
        w->polling = w->at_barrier = w->done = w->meetings = 0;
        for (meeting &m : w->m)
            m.arrived = 0;
    }
    for (uint32_t i = 0; i < n_threads; i++) {
        lane *l = &b->lanes[i];
        l->thread_idx = {i % k.block.x, i / k.block.x % k.block.y, i / k.block.x / k.block.y};
        l->lane_idx = i % 32;
        l->block = b;
        l->w = &b->warps[i / 32];
        l->f = nullptr;
        l->poll_addr = nullptr;
        l->groups = 0;
        l->copies.clear();
    }
    eng->resident.push_back(b);
}

/* ---- reports */

std::string where(const here &at)
{
    return std::string(at.file_name()) + ":" + std::to_string(at.line());
}
std::string coordinates(const uint3 &v)
{
    return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

void report_place(const block *b, const lane *l)
{
    fprintf(stderr, "emu: kernel %s, block %s", b->g->launch->name, coordinates(b->block_idx).c_str());
    if (l)
        fprintf(stderr, ", thread %s", coordinates(l->thread_idx).c_str());
}

void report_seed()
{
    static bool told = false;
    if (!told)
        fprintf(stderr, "emu: RACKLM_EMU_SEED=%llu\n", (unsigned long long)seed());
    told = true;
}

/* Who waits where in a block that cannot go on: one line for each place. */
void report_waiting(const block *b)
{
    uint32_t at_barrier = 0, done = 0;
    const lane *gone = nullptr;
    for (uint32_t i = 0; i < b->n_warps; i++) {
        const warp *w = &b->warps[i];
        at_barrier += uint32_t(__builtin_popcount(w->at_barrier));
        done += uint32_t(__builtin_popcount(w->done));
        if (w->done && !gone)
            gone = &w->lanes[__builtin_ctz(w->done)];
        for (uint32_t k = w->meetings; k; k &= k - 1) {
            const meeting &m = w->m[__builtin_ctz(k)];
            fprintf(stderr, "emu:   warp %u: lanes %08x wait in %s at %s, mask %08x: lanes %08x do not come (%08x of them have left the kernel)\n", i,
                    m.arrived, m.op->name, where(m.at).c_str(), m.mask, m.mask & ~m.arrived, m.mask & ~m.arrived & w->done);
        }
    }
    if (at_barrier)
        fprintf(stderr, "emu:   %u of %u threads wait in __syncthreads at %s\n", at_barrier, b->n_threads, where(b->barrier_at).c_str());
    if (gone)
        fprintf(stderr, "emu:   %u threads have left the kernel, thread %s among them\n", done, coordinates(gone->thread_idx).c_str());
}

/* A fault of block b has been told. */
void grid_fail(grid *g, fault f)
{
    report_seed();
    if (!catching) {
        fflush(nullptr);
        abort();
    }
    g->failed = f;
}

void lane_recycle(lane *l)
{
    uint32_t bit = 1u << l->lane_idx;
    if (!(l->w->done & bit) && !(l->w->fresh & bit)) {
        fiber_reset(l->f);
        eng->free_fibers.push_back(l->f);
    }
}

/* Blocks of a grid that failed: the fibers begin anew. */
void grid_abandon(grid *g)
{
    for (size_t i = 0; i < eng->resident.size();) {
        block *b = eng->resident[i];
        if (b->g != g) {
            i++;
            continue;
        }
        for (uint32_t k = 0; k < b->n_threads; k++)
            lane_recycle(&b->lanes[k]);
        eng->free_blocks.push_back(b);
        eng->resident[i] = eng->resident.back();
        eng->resident.pop_back();
    }
}

/* ---- the scheduler */

/* True unless bytes around the block's shared memory were written. */
bool smem_intact(const block *b)
{
#if EMU_ASAN
    (void)b;
    return true; /* poisoned memory: reported at the access */
#else
    for (const unsigned char *p = b->smem - SMEM_CANARY; p < b->smem_end; p++) {
        if (p == b->smem)
            p += b->smem_bytes;
        if (p < b->smem_end && *p != POISON)
            return false;
    }
    return true;
#endif
}

void block_retire(block *b)
{
    if (!smem_intact(b)) {
        report_place(b, nullptr);
        fprintf(stderr, ": bytes before or after the block's %zu of shared memory were written\n", b->smem_bytes);
        grid_fail(b->g, fault::out_of_bounds);
    }
    b->g->n_done++;
    b->g->resident--;
    eng->resident.erase(std::find(eng->resident.begin(), eng->resident.end(), b));
    eng->free_blocks.push_back(b);
}

/* After a warp of b ran: has the block ended, or can it never go on? */
void block_check(block *b)
{
    if (b->g->failed != fault::none)
        return;
    if (b->live == 0) {
        block_retire(b);
        return;
    }
    for (uint32_t i = 0; i < b->n_warps; i++)
        if (b->warps[i].ready | b->warps[i].polling)
            return;
    report_place(b, nullptr);
    fprintf(stderr, ": deadlock, a barrier or warp function that not all its threads reach:\n");
    report_waiting(b);
    grid_fail(b->g, fault::divergent_barrier);
}

warp *warp_choose()
{
    uint32_t n = uint32_t(eng->resident.size());
    if (n == 0)
        return nullptr;
    for (uint32_t i = 0, b0 = random_below(n); i < n; i++) {
        block *b = eng->resident[(b0 + i) % n];
        for (uint32_t k = 0, w0 = random_below(b->n_warps); k < b->n_warps; k++) {
            warp *w = &b->warps[w0 + k < b->n_warps ? w0 + k : w0 + k - b->n_warps];
            if (w->ready)
                return w;
        }
    }
    return nullptr;
}

bool grid_may_start(const grid *g)
{
    const dim3 &d = g->launch->block;
    return g->failed == fault::none && g->n_started < g->n_blocks && (g->resident == 0 || size_t(g->resident + 1) * d.x * d.y * d.z <= RESIDENT_THREADS);
}

/* Everything that runs waits for memory. */
void all_poll()
{
    for (grid *g : eng->grids)
        if (grid_may_start(g)) {
            g->width = g->resident + 1;
            return;
        }
    uint64_t quiet = 0;
    if (idle_hook && idle_hook())
        eng->quiet_since = 0;
    else if (eng->quiet_since == 0)
        eng->quiet_since = clock_ns();
    else {
        quiet = clock_ns() - eng->quiet_since;
        if (quiet > 1000000) { /* another thread or process is waited for */
            timespec t = {0, 50000};
            nanosleep(&t, nullptr);
        }
    }
    bool late = quiet > eng->quiet_max;
    for (block *b : eng->resident)
        for (uint32_t i = 0; i < b->n_warps; i++) {
            warp *w = &b->warps[i];
            if (late && w->polling && b->g->failed == fault::none) {
                report_place(b, &w->lanes[__builtin_ctz(w->polling)]);
                fprintf(stderr, ": waits for memory that nobody writes, as every thread does that has not left\n");
                report_waiting(b);
                grid_fail(b->g, fault::timeout);
            }
            w->ready |= w->polling;
            w->polling = 0;
        }
}

void schedule()
{
    for (grid *g : eng->grids)
        while (g->resident < g->width && grid_may_start(g))
            block_start(g);
    warp *w = warp_choose();
    if (!w) {
        all_poll();
        return;
    }
    block *b = w->b;
    lane *l = warp_take(w);
    fiber *f = lane_fiber(l);
    self = l;
    switch_to(f);
    block_check(b);
}

/* ---- signals: an access outside of device or shared memory meets a guard page (or nothing). */

std::mutex signals_mutex;
uint32_t signals_users; /* OS threads that run kernels */
struct sigaction old_segv, old_bus;

[[noreturn]] void landed()
{
    switch_to(eng->scheduler);
    abort(); /* an abandoned fiber is never run again */
}

void on_signal(int sig, siginfo_t *info, void *context)
{
    const lane *l = eng ? self_lane() : nullptr;
    if (!l) { /* the host's own: as if we were not there */
        sigaction(sig, sig == SIGSEGV ? &old_segv : &old_bus, nullptr);
        return;
    }
    auto *uc = static_cast<ucontext_t *>(context);
    block *b = l->w->b;
    const auto *addr = static_cast<const unsigned char *>(info->si_addr);
    bool stack = l->f && addr >= l->f->stack - PAGE && addr < l->f->stack;
    report_place(b, l);
    if (stack)
        fprintf(stderr, ": stack overflow of an emulated thread (%zu bytes)\n", STACK_BYTES);
    else if (addr >= b->smem_map && addr < b->smem_end + PAGE)
        fprintf(stderr, ": access out of bounds, %td bytes from the start of %zu bytes of shared memory, at pc %p\n", addr - b->smem, b->smem_bytes,
                (void *)uc->uc_mcontext.gregs[REG_RIP]);
    else
        fprintf(stderr, ": access out of bounds (or misaligned), address %p, at pc %p; %s\n", info->si_addr, (void *)uc->uc_mcontext.gregs[REG_RIP],
                describe_address(info->si_addr).c_str());
    grid_fail(b->g, fault::out_of_bounds);
    if (stack)
        abort();
    /* Goes on after the handler, on the fiber's stack, in landed(). */
    self = nullptr;
    uc->uc_mcontext.gregs[REG_RSP] = greg_t(((size_t)uc->uc_mcontext.gregs[REG_RSP] - 1024) / 16 * 16 - 8);
    uc->uc_mcontext.gregs[REG_RIP] = greg_t((size_t)landed);
}

/* Only while kernels run: test frameworks and sanitizers have handlers of their own. */
void signals_take()
{
    std::lock_guard<std::mutex> l(signals_mutex);
    if (signals_users++ > 0)
        return;
    struct sigaction a = {};
    a.sa_sigaction = on_signal;
    a.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &a, &old_segv);
    sigaction(SIGBUS, &a, &old_bus);
}
void signals_give_back()
{
    std::lock_guard<std::mutex> l(signals_mutex);
    if (--signals_users > 0)
        return;
    sigaction(SIGSEGV, &old_segv, nullptr);
    sigaction(SIGBUS, &old_bus, nullptr);
}

engine::~engine()
{
    if (signal_stack) {
        stack_t off = {};
        off.ss_flags = SS_DISABLE;
        sigaltstack(&off, nullptr);
    }
    for (auto [p, bytes] : maps) {
#if EMU_ASAN
        __asan_unpoison_memory_region(p, bytes);
#endif
        munmap(p, bytes);
    }
    eng = nullptr;
}

#if EMU_ASAN
void on_death()
{
    if (eng && self) {
        report_place(self_lane()->w->b, self_lane());
        fprintf(stderr, ": ended by the sanitizer's report above\n");
        report_seed();
    }
}
#endif

engine *engine_here()
{
    if (eng)
        return eng;
    static thread_local engine own; /* ends with the OS thread */
    eng = &own;
    stack_t ss = {};
    sigaltstack(nullptr, &ss);
    if (ss.ss_flags & SS_DISABLE) { /* else somebody's, AddressSanitizer's for one, is there already */
        ss = {};
        ss.ss_size = 64 * 1024;
        own.signal_stack = std::make_unique<char[]>(ss.ss_size);
        ss.ss_sp = own.signal_stack.get();
        sigaltstack(&ss, nullptr);
    }
#if EMU_ASAN
    __sanitizer_set_death_callback(on_death);
#endif
    return eng;
}

} // namespace

uint64_t seed()
{
    static const uint64_t s = [] {
        const char *e = getenv("RACKLM_EMU_SEED");
        return e && *e ? strtoull(e, nullptr, 0) : 1ull;
    }();
    return s;
}

void catch_faults(bool on)
{
    catching = on;
}
void set_idle(bool (*idle)())
{
    idle_hook = idle;
}

fault run_kernel(const kernel_launch &launch)
{
    engine *e = engine_here();
    bool outermost = e->grids.empty();
    if (outermost) {
        /* Each launch has its own order, whatever ran before it took. */
        e->rng = (seed() * 0x9e3779b97f4a7c15ull) ^ (++e->n_launches * 0xbf58476d1ce4e5b9ull) ^ 0x94d049bb133111ebull;
        if (e->rng == 0)
            e->rng = 1;
        random64();
        const char *spin = getenv("RACKLM_EMU_SPIN_S");
        e->quiet_max = uint64_t(spin ? atoi(spin) : 60) * 1000000000u;
        signals_take();
    }
    grid g = {};
    g.launch = &launch;
    g.n_blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    g.order.resize(g.n_blocks);
    for (uint64_t i = 0; i < g.n_blocks; i++)
        g.order[i] = uint32_t(i);
    g.width = random_below(4) == 0 ? 1 + random_below(3) : 1;

    fiber here_fiber = {};
    fiber *outer_running = e->running, *outer_scheduler = e->scheduler;
    e->running = e->scheduler = &here_fiber;
    e->grids.push_back(&g);
    e->quiet_since = 0;
    while (g.n_done < g.n_blocks && g.failed == fault::none)
        schedule();
    if (g.failed != fault::none)
        grid_abandon(&g);
    e->grids.erase(std::find(e->grids.begin(), e->grids.end(), &g));
    e->running = outer_running;
    e->scheduler = outer_scheduler;
    if (outermost)
        signals_give_back();
    return g.failed;
}

void fail(fault f, const char *what, ...)
{
    lane *l = self_lane();
    report_place(l->w->b, l);
    fprintf(stderr, ": ");
    va_list ap;
    va_start(ap, what);
    vfprintf(stderr, what, ap);
    va_end(ap);
    fprintf(stderr, "\n");
    grid_fail(l->w->b->g, f);
    self = nullptr;
    landed();
}

/* ---- meetings and barriers */

namespace {

bool same_place(const here &a, const here &b)
{
    return a.line() == b.line() && a.column() == b.column() && (a.file_name() == b.file_name() || strcmp(a.file_name(), b.file_name()) == 0);
}

meeting *meeting_find(warp *w, const warp_op *op, uint32_t mask, const here &at)
{
    for (uint32_t k = w->meetings; k; k &= k - 1) {
        meeting *m = &w->m[__builtin_ctz(k)];
        if (m->op == op && m->mask == mask) {
            if (op->aligned && !same_place(m->at, at))
                fail(fault::divergent_barrier, "%s at %s and, for others of the warp, at %s: all lanes must be at one place", op->name, where(at).c_str(),
                     where(m->at).c_str());
            return m;
        }
    }
    uint32_t i = uint32_t(__builtin_ctz(~w->meetings)); /* never more than the 32 lanes that wait */
    w->meetings |= 1u << i;
    meeting *m = &w->m[i];
    m->op = op;
    m->mask = mask;
    m->at = at;
    m->arrived = 0;
    return m;
}

} // namespace

void meet(const warp_op *op, uint32_t mask, void *arg, here at)
{
    lane *l = self_lane();
    warp *w = l->w;
    uint32_t bit = 1u << l->lane_idx;
    if (op->aligned && w->exists != UINT32_MAX)
        fail(fault::divergent_barrier, "%s at %s: the warp has not 32 threads", op->name, where(at).c_str());
    mask &= w->exists;
    if (!(mask & bit))
        fail(fault::divergent_barrier, "%s at %s: mask %08x names not the calling lane, %u", op->name, where(at).c_str(), mask, l->lane_idx);
    meeting *m = meeting_find(w, op, mask, at);
    m->args[l->lane_idx] = arg;
    m->arrived |= bit;
    if (m->arrived != mask) {
        suspend(l);
        return;
    }
    op->run(m->args, mask);
    w->meetings &= ~(1u << (m - w->m));
    w->ready |= mask & ~bit;
    eng->quiet_since = 0;
}

uint32_t barrier(vote v, bool predicate, here at)
{
    lane *l = self_lane();
    block *b = l->w->b;
    if (b->arrived == 0)
        b->barrier_at = at;
    else if (!same_place(b->barrier_at, at))
        fail(fault::divergent_barrier, "__syncthreads at %s while others of the block wait in the one at %s", where(at).c_str(), where(b->barrier_at).c_str());
    b->arrived++;
    b->votes += predicate;
    if (b->arrived < b->n_threads) {
        l->w->at_barrier |= 1u << l->lane_idx;
        suspend(l);
    } else {
        b->result = v == vote::all ? b->votes == b->n_threads : v == vote::any ? b->votes != 0 : b->votes;
        b->arrived = b->votes = 0;
        for (uint32_t i = 0; i < b->n_warps; i++) {
            b->warps[i].ready |= b->warps[i].at_barrier;
            b->warps[i].at_barrier = 0;
        }
        eng->quiet_since = 0;
        /* Else the last one to come would always be the first to go on. */
        l->w->ready |= 1u << l->lane_idx;
        self = nullptr;
        switch_to(eng->scheduler);
    }
    return b->result;
}

/* ---- waiting for memory */

void yield()
{
    lane *l = self_lane();
    l->w->polling |= 1u << l->lane_idx;
    suspend(l);
}

void polled(const volatile void *addr, uint64_t value)
{
    lane *l = self_lane();
    if (l->poll_addr == addr && l->poll_value == value)
        yield();
    l->poll_addr = addr;
    l->poll_value = value;
}

uint64_t clock_ns()
{
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

/* ---- asynchronous copies */

void check_shared(const void *p, uint32_t bytes, const char *what)
{
    const block_view *b = self->block;
    auto *c = static_cast<const unsigned char *>(p);
    if (c < b->smem || c + bytes > b->smem + b->smem_bytes)
        fail(fault::out_of_bounds, "%s: %u bytes at %td are not in the block's %zu bytes of shared memory", what, bytes, c - b->smem, b->smem_bytes);
    if (size_t(c - b->smem) % bytes != 0)
        fail(fault::out_of_bounds, "%s: shared address %td is not a multiple of %u", what, c - b->smem, bytes);
}

/* The destination is undefined until the copy has been waited for; the source is read as late as may be. */
void cp_async(void *dst, const void *src, uint32_t bytes, uint32_t src_bytes)
{
    lane *l = self_lane();
    check_shared(dst, bytes, "cp.async");
    if (size_t(src) % bytes != 0)
        fail(fault::out_of_bounds, "cp.async: global address %p is not a multiple of %u", src, bytes);
    if (src_bytes > bytes)
        fail(fault::trap, "cp.async: source of %u bytes, copy of %u", src_bytes, bytes);
    memset(dst, POISON, bytes);
    l->copies.push_back({dst, src, bytes, src_bytes, l->groups});
}

void cp_async_commit()
{
    self_lane()->groups++;
}

namespace {
/* Copies of groups before `end` land. */
void land(lane *l, uint32_t end)
{
    size_t n = 0;
    for (; n < l->copies.size() && l->copies[n].group < end; n++) {
        const copy &c = l->copies[n];
        memcpy(c.dst, c.src, c.src_bytes);
        memset(static_cast<unsigned char *>(c.dst) + c.src_bytes, 0, c.bytes - c.src_bytes);
    }
    l->copies.erase(l->copies.begin(), l->copies.begin() + ptrdiff_t(n));
}
} // namespace

void cp_async_wait(uint32_t groups_left)
{
    lane *l = self_lane();
    if (l->groups > groups_left)
        land(l, l->groups - groups_left);
}
void cp_async_wait_all()
{
    land(self_lane(), UINT32_MAX);
}

} // namespace emu
