/* The engine of the emulator: runs a kernel's blocks, each CUDA thread a fiber of the calling OS thread.
 *
 * Owns: fibers and their stacks, blocks and their shared memory, meetings of warps, barriers, asynchronous copies. Not: reports of faults (engine_faults.cc), device
 * memory, streams (runtime.cc).
 *
 * Order. One warp, chosen at random, runs until all its lanes wait; its lanes run one at a time, the next one chosen at random whenever one waits. So whatever
 * is not ordered by a barrier or a warp function has some other order with another seed (RACKLM_EMU_SEED). Blocks start in random order, one after the other,
 * and a few at once in some launches; when all that run wait for memory (polled), more are started, up to RESIDENT_THREADS, and then the caller is told, so that
 * kernels of other streams get their turn: what waits for each other makes progress as far as a GPU would let it.
 *
 * Threads. One OS thread at a time runs a kernel, and another one may go on with it: nothing here nor in kernels is kept for the OS thread but the stack on which
 * signals are handled.
 *
 * Fibers. A lane that has not begun needs none: the fiber of a lane that ended goes on with the next one, so kernels without barriers switch never. Lanes of
 * a warp switch to each other directly, not through the scheduler. */
#include "tests/gpu/emu/engine.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <sys/mman.h>
#include <time.h>

#if EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

thread_view *self = nullptr;
engine &eng = *new engine(); /* never destroyed: threads of the runtime outlive main */

namespace {

constexpr size_t STACKS = 64;
constexpr size_t SMEM_MAX = 256 * 1024; /* more than any GPU has (227 KiB) */
constexpr size_t SMEM_ALIGN = 1024, SMEM_CANARY = 256;
constexpr uint32_t RESIDENT_THREADS = 32768;
constexpr uint32_t VAIN_ROUNDS = 16; /* of looks at memory by all that wait, before another kernel's turn */
constexpr unsigned char POISON = 0xff; /* NaN as f32, f16, bf16 and e4m3 */

uint64_t random64()
{
    uint64_t x = eng.rng; /* xorshift64* */
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    eng.rng = x;
    return x * 0x2545f4914f6cdd1dull;
}
uint32_t random_below(uint32_t n)
{
    return uint32_t((random64() >> 32) * n >> 32);
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
    fiber *from = eng.running;
    eng.running = to;
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
    if (eng.free_fibers.empty()) {
        auto *p = static_cast<unsigned char *>(map_or_die(STACKS * (STACK_BYTES + PAGE)));
        eng.stacks.push_back(uintptr_t(p));
        for (size_t i = 0; i < STACKS; i++) {
            fiber *f = new fiber();
            f->stack = p + i * (STACK_BYTES + PAGE) + PAGE;
            map_open(f->stack, STACK_BYTES);
            fiber_reset(f);
            eng.free_fibers.push_back(f);
        }
    }
    fiber *f = eng.free_fibers.back();
    eng.free_fibers.pop_back();
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
        switch_to(eng.scheduler);
    }
}

void fiber_main(bc::transfer_t t)
{
    after_switch(t, nullptr);
    for (;;) {
        lane *l = self_lane();
        warp *w = l->w;
        w->b->k->launch->thread();
        w->done |= 1u << l->lane_idx;
        w->b->live--;
        l->copies.clear(); /* not waited for: they never land */
        eng.active = true;
        fiber *f = eng.running;
        if (w->ready == 0) {
            self = nullptr;
            eng.free_fibers.push_back(f);
            switch_to(eng.scheduler);
            continue;
        }
        lane *next = warp_take(w);
        self = next;
        if (w->fresh >> next->lane_idx & 1) {
            w->fresh &= ~(1u << next->lane_idx);
            next->f = f;
            continue;
        }
        eng.free_fibers.push_back(f);
        switch_to(next->f);
    }
}

/* ---- blocks */

block *block_take(uint32_t n_threads, size_t smem)
{
    block *b;
    if (eng.free_blocks.empty()) {
        b = new block();
        b->smem_map = static_cast<unsigned char *>(map_or_die(SMEM_MAX + 2 * PAGE));
        b->smem_end = b->smem_map + PAGE + SMEM_MAX;
        map_open(b->smem_map + PAGE, SMEM_MAX);
        memset(b->smem_map + PAGE, POISON, SMEM_MAX);
    } else {
        b = eng.free_blocks.back();
        eng.free_blocks.pop_back();
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

void block_start(kernel_run *k)
{
    dim3 grid = k->launch->grid, dim = k->launch->block;
    uint32_t n_threads = dim.x * dim.y * dim.z;
    block *b = block_take(n_threads, k->launch->smem);
    b->k = k;
    b->block_dim = dim;
    b->grid_dim = grid;

    uint32_t left = uint32_t(k->n_blocks - k->n_started), pick = random_below(left), idx = k->order[pick];
    k->order[pick] = k->order[left - 1];
    k->n_started++;
    b->block_idx = {idx % grid.x, idx / grid.x % grid.y, idx / grid.x / grid.y};

    races_block_starts(b, k->races.get(), idx, b->smem_map + PAGE, SMEM_MAX);

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
        l->thread_idx = {i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y};
        l->lane_idx = i % 32;
        l->thread = i;
        l->block = b;
        l->w = &b->warps[i / 32];
        l->f = nullptr;
        l->poll_addr = nullptr;
        l->groups = 0;
        l->copies.clear();
    }
    k->resident.push_back(b);
}

void lane_recycle(lane *l)
{
    uint32_t bit = 1u << l->lane_idx;
    if (!(l->w->done & bit) && !(l->w->fresh & bit)) {
        fiber_reset(l->f);
        eng.free_fibers.push_back(l->f);
    }
}

/* Blocks that will not end: their fibers begin anew. */
void kernel_abandon(kernel_run *k)
{
    for (block *b : k->resident) {
        for (uint32_t i = 0; i < b->n_threads; i++)
            lane_recycle(&b->lanes[i]);
        eng.free_blocks.push_back(b);
    }
    k->resident.clear();
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
        kernel_fail(b->k, fault::out_of_bounds);
    }
    b->k->n_done++;
    b->k->resident.erase(std::find(b->k->resident.begin(), b->k->resident.end(), b));
    eng.free_blocks.push_back(b);
}

/* After a warp of b ran: has the block ended, or can it never go on? */
void block_check(block *b)
{
    if (b->k->failed != fault::none)
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
    kernel_fail(b->k, fault::divergent_barrier);
}

warp *warp_choose(kernel_run *k)
{
    uint32_t n = uint32_t(k->resident.size());
    if (n == 0)
        return nullptr;
    for (uint32_t i = 0, b0 = random_below(n); i < n; i++) {
        block *b = k->resident[(b0 + i) % n];
        for (uint32_t j = 0, w0 = random_below(b->n_warps); j < b->n_warps; j++) {
            warp *w = &b->warps[w0 + j < b->n_warps ? w0 + j : w0 + j - b->n_warps];
            if (w->ready)
                return w;
        }
    }
    return nullptr;
}

bool block_may_start(const kernel_run *k)
{
    const dim3 &d = k->launch->block;
    return k->n_started < k->n_blocks && (k->resident.empty() || (k->resident.size() + 1) * d.x * d.y * d.z <= RESIDENT_THREADS);
}

/* Everything that runs waits for memory: it will look again. Too long: a fault. */
void all_poll(kernel_run *k)
{
    if (eng.active || k->quiet_since == 0)
        k->quiet_since = clock_ns();
    const char *spin = getenv("RACKLM_EMU_SPIN_S");
    bool late = clock_ns() - k->quiet_since > uint64_t(spin ? atoi(spin) : 60) * 1000000000u;
    for (block *b : k->resident)
        for (uint32_t i = 0; i < b->n_warps; i++) {
            warp *w = &b->warps[i];
            if (late && w->polling && k->failed == fault::none) {
                report_place(b, &w->lanes[__builtin_ctz(w->polling)]);
                fprintf(stderr, ": waits for memory that nobody writes, as every thread of it does that has not left\n");
                report_waiting(b);
                kernel_fail(k, fault::timeout);
            }
            w->ready |= w->polling;
            w->polling = 0;
        }
}

/* One warp runs. False: none can. */
bool schedule(kernel_run *k)
{
    while (k->resident.size() < k->width && block_may_start(k))
        block_start(k);
    warp *w = warp_choose(k);
    if (!w && block_may_start(k)) {
        k->width = uint32_t(k->resident.size()) + 1;
        return true;
    }
    if (!w)
        return false;
    block *b = w->b;
    lane *l = warp_take(w);
    fiber *f = lane_fiber(l);
    self = l;
    switch_to(f);
    block_check(b);
    return true;
}

} // namespace

void leave_fiber()
{
    switch_to(eng.scheduler);
    abort(); /* an abandoned fiber is never run again */
}

#ifdef RACKLM_EMU_RACES
bool on_a_stack(uintptr_t at)
{
    for (uintptr_t s : eng.stacks)
        if (at - s < STACKS * (STACK_BYTES + PAGE))
            return true;
    return false;
}
#endif

uint64_t seed()
{
    static const uint64_t s = [] {
        const char *e = getenv("RACKLM_EMU_SEED");
        return e && *e ? strtoull(e, nullptr, 0) : 1ull;
    }();
    return s;
}

std::shared_ptr<kernel_run> kernel_begin(const kernel_launch &launch)
{
    std::lock_guard<std::mutex> l(eng.mutex);
    auto *k = new kernel_run{};
    k->launch = &launch;
    k->n_blocks = uint64_t(launch.grid.x) * launch.grid.y * launch.grid.z;
    k->order.resize(k->n_blocks);
    for (uint64_t i = 0; i < k->n_blocks; i++)
        k->order[i] = uint32_t(i);
    k->races = races_launch(k->n_blocks);
    /* Each launch has its own order, whatever ran before it. */
    k->rng = (seed() * 0x9e3779b97f4a7c15ull) ^ (++eng.n_launches * 0xbf58476d1ce4e5b9ull) ^ 0x94d049bb133111ebull;
    eng.rng = k->rng |= 1;
    random64();
    k->width = random_below(4) == 0 ? 1 + random_below(3) : 1;
    k->rng = eng.rng;
    return {k, [](kernel_run *r) {
                std::lock_guard<std::mutex> guard(eng.mutex);
                kernel_abandon(r);
                delete r;
            }};
}

advance kernel_advance(kernel_run &k, fault *f)
{
    std::lock_guard<std::mutex> l(eng.mutex);
    fiber scheduler = {};
    eng.thread = pthread_self();
    eng.running = eng.scheduler = &scheduler;
    eng.rng = k.rng;
    eng.active = false;
    signals_take();
    races_on_this_thread(true);
    bool some = false;
    for (uint32_t vain = 0; k.n_done < k.n_blocks && k.failed == fault::none && vain < VAIN_ROUNDS;) {
        if (schedule(&k))
            continue;
        all_poll(&k);
        vain = eng.active ? 0 : vain + 1;
        some |= eng.active;
        eng.active = false;
    }
    races_on_this_thread(false);
    signals_give_back();
    k.rng = eng.rng;
    *f = k.failed;
    if (k.failed != fault::none)
        kernel_abandon(&k);
    return k.failed != fault::none || k.n_done == k.n_blocks ? advance::ended : some ? advance::some : advance::none;
}

fault run_kernel(const kernel_launch &launch)
{
    std::shared_ptr<kernel_run> k = kernel_begin(launch);
    fault f;
    for (uint32_t vain = 0;;) {
        advance a = kernel_advance(*k, &f);
        if (a == advance::ended)
            return f;
        vain = a == advance::none ? vain + 1 : 0;
        if (vain > 100) { /* another thread or process is waited for */
            timespec t = {0, 50000};
            nanosleep(&t, nullptr);
        }
    }
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
    if (op == &syncwarp_op && (mask | w->done) == w->exists)
        races_syncwarp(w->b, uint32_t(w - w->b->warps.data()));
    w->meetings &= ~(1u << (m - w->m));
    w->ready |= mask & ~bit;
    eng.active = true;
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
        races_barrier(b);
        for (uint32_t i = 0; i < b->n_warps; i++) {
            b->warps[i].ready |= b->warps[i].at_barrier;
            b->warps[i].at_barrier = 0;
        }
        eng.active = true;
        /* Else the last one to come would always be the first to go on. */
        l->w->ready |= 1u << l->lane_idx;
        self = nullptr;
        switch_to(eng.scheduler);
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

void wrote()
{
    eng.active = true;
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
    races_copy_begins(dst, bytes);
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
        if (c.src_bytes > 0)
            memcpy(c.dst, c.src, c.src_bytes);
        memset(static_cast<unsigned char *>(c.dst) + c.src_bytes, 0, c.bytes - c.src_bytes);
        races_copy_lands(c.dst, c.bytes, c.src, c.src_bytes);
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
