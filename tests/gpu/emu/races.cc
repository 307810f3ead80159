/* The race checker: races.h. For each word, or byte of it, that a kernel touches there is a cell, with the last store and the last load; both say which block and thread it was, in
 * which phase (between which barriers) and between which __syncwarps. That is enough to tell whether what comes next is ordered after them.
 *
 * Owns: cells (by pages, kept between launches: what another launch left there is told by the number of its block), what blocks know of each other. */
#include "tests/gpu/emu/races.h"

#ifdef RACKLM_EMU_RACES

#include <atomic>
#include <unordered_map>
#include <vector>

#include <dlfcn.h>

namespace emu {

namespace {

constexpr size_t PAGE = 4096, MOST_PAGES = 16384; /* 0.8 GB of words */

enum : uint8_t { LANES = 1, WARPS = 2, ATOMIC = 4, IN_FLIGHT = 8 }; /* LANES, WARPS: several of them loaded it in this phase */

struct access {
    uint32_t block; /* number of it, never the same for two; 0: no access */
    uint32_t phase, syncs;
    uint16_t thread;
    uint8_t flags;
    const void *pc;
};
struct cell {
    access store, load;
};
struct shadow { /* of a page */
    cell words[PAGE / 4];
    uint8_t split[PAGE / 4];       /* the word's bytes have cells of their own */
    std::unique_ptr<cell[]> bytes; /* [PAGE], once there is one */
};

/* Accesses of `block` in phases before `phase` are ordered before whoever holds this, and those of `thread` in that phase. */
struct known {
    uint32_t block, phase;
    uint16_t thread;
};

struct thread_order {
    bool fenced = false;
    uint32_t fence_phase = 0;
    std::vector<known> seen, knows; /* read by an atomic; behind a fence, too */
};

struct cached {
    uintptr_t page;
    uint32_t launch; /* first block of it: bounds are looked up again by each launch */
    shadow *cells;    /* NULL: threads' own variables, which what a warp does together may reach */
    uintptr_t lo, hi; /* what may be touched */
};

} // namespace

struct race_launch {
    uint32_t first_block, n_blocks;
    std::unordered_map<const void *, std::vector<known>> published;
};

struct race_block {
    race_launch *launch;
    uint32_t number, phase;
    uint32_t syncs[32];
    uintptr_t room_lo, room_hi;
    std::unordered_map<uint32_t, thread_order> threads; /* those that fenced or used an atomic */
    std::vector<known> knows;
};

namespace {

std::unordered_map<uintptr_t, std::unique_ptr<shadow>> pages; /* under the engine's mutex, as all here */
cached cache[4096];
uint32_t next_block = 1;
std::atomic<int> n_launches;

__attribute__((tls_model("initial-exec"))) thread_local bool runs_kernels;

bool holds(const std::vector<known> &k, const access &a)
{
    for (const known &e : k)
        if (e.block == a.block && (a.phase < e.phase || (a.phase == e.phase && a.thread == e.thread)))
            return true;
    return false;
}

thread_order &mine(race_block *b)
{
    return b->threads[self->thread];
}

bool in_room(const race_block *b, uintptr_t at)
{
    return at >= b->room_lo && at < b->room_hi;
}
/* Not left from another launch; in shared memory not from another block. */
bool counts(const race_block *b, const access &a, uintptr_t at)
{
    return in_room(b, at) ? a.block == b->number : a.block - b->launch->first_block < b->launch->n_blocks;
}

/* Whether a, of this launch, is ordered before what the running thread does now. */
bool ordered(race_block *b, const access &a)
{
    if (a.block == b->number)
        return a.thread == self->thread || a.phase < b->phase || (a.thread / 32 == self->thread / 32 && a.syncs < b->syncs[self->thread / 32]);
    if (holds(b->knows, a))
        return true;
    auto t = b->threads.find(self->thread);
    return t != b->threads.end() && holds(t->second.knows, a);
}
/* The same for the loads of a cell. */
bool loads_ordered(race_block *b, const access &a)
{
    if (a.block != b->number || a.phase < b->phase || !(a.flags & (LANES | WARPS)))
        return ordered(b, a);
    return !(a.flags & WARPS) && a.thread / 32 == self->thread / 32 && a.syncs < b->syncs[self->thread / 32];
}

void name_pc(const void *pc, char *text, size_t size)
{
    Dl_info info;
    if (pc && dladdr(pc, &info) && info.dli_fname)
        snprintf(text, size, "%s+0x%zx", info.dli_fname, size_t(pc) - size_t(info.dli_fbase) - 1);
    else
        snprintf(text, size, "pc %p", pc);
}

[[noreturn]] void report(race_block *b, uintptr_t at, const access &was, const char *had, const char *does, const void *pc)
{
    char here[300], there[300], place[160] = "";
    name_pc(pc, here, sizeof here);
    name_pc(was.pc, there, sizeof there);
    if (in_room(b, at))
        snprintf(place, sizeof place, "byte %td of shared memory", reinterpret_cast<const unsigned char *>(at) - self->block->smem);
    else
        describe_address(reinterpret_cast<const void *>(at), place, sizeof place);
    fail(fault::race, "race: %s (%s) what thread %u of %s %s (%s), and nothing orders the two; %s", does, here, was.thread,
         was.block == b->number ? "the same block" : "another block", had, there, place);
}

[[noreturn]] void out_of_bounds(uintptr_t at, uint32_t bytes, const void *pc)
{
    char here[300], near[160];
    name_pc(pc, here, sizeof here);
    describe_address(reinterpret_cast<const void *>(at), near, sizeof near);
    fail(fault::out_of_bounds, "access of %u bytes out of bounds (%s), %td from the start of %zu bytes of shared memory; %s", bytes, here,
         reinterpret_cast<const unsigned char *>(at) - self->block->smem, self->block->smem_bytes, near);
}

const cached &page_of(const race_block *b, uintptr_t at)
{
    uintptr_t page = at / PAGE;
    cached &c = cache[page % (sizeof cache / sizeof *cache)];
    if (c.page == page && c.launch == b->launch->first_block)
        return c;
    c = {page, b->launch->first_block, nullptr, 0, UINTPTR_MAX};
    if (!on_a_stack(at)) {
        std::unique_ptr<shadow> &cells = pages[page];
        if (!cells)
            cells = std::make_unique<shadow>();
        c.cells = cells.get();
        uintptr_t lo, hi;
        if (allocation_in_page(page, &lo, &hi)) {
            c.lo = lo;
            c.hi = hi;
        }
    }
    return c;
}

void load_cell(race_block *b, cell &c, const access &now, uintptr_t at)
{
    if (counts(b, c.store, at)) {
        if (c.store.flags & IN_FLIGHT)
            report(b, at, c.store, "has begun a cp.async to and not waited for", "loads", now.pc);
        if (!(now.flags & c.store.flags & ATOMIC) && !ordered(b, c.store))
            report(b, at, c.store, "stored", "loads", now.pc);
    }
    access &r = c.load;
    uint8_t flags = now.flags;
    if (r.block == now.block && r.phase == now.phase) {
        flags |= r.flags & WARPS;
        if (r.thread / 32 != now.thread / 32)
            flags |= WARPS;
        else if (r.syncs == now.syncs)
            flags |= r.thread != now.thread ? uint8_t(LANES) : uint8_t(r.flags & LANES);
        flags &= uint8_t(r.flags | ~ATOMIC); /* a plain one counts for more */
    }
    r = now;
    r.flags = flags;
}

void store_cell(race_block *b, cell &c, const access &now, uintptr_t at)
{
    if (counts(b, c.store, at)) {
        if (c.store.flags & IN_FLIGHT && !(now.flags & IN_FLIGHT && c.store.thread == now.thread && c.store.block == now.block))
            report(b, at, c.store, "has begun a cp.async to and not waited for", "stores to", now.pc);
        if (!(now.flags & c.store.flags & ATOMIC) && !ordered(b, c.store))
            report(b, at, c.store, "stored", "stores to", now.pc);
    }
    if (counts(b, c.load, at) && !(now.flags & c.load.flags & ATOMIC) && !loads_ordered(b, c.load))
        report(b, at, c.load, "loads", "stores to", now.pc);
    c.store = now;
    c.load.block = 0;
}

/* The cell of a byte of its own. */
cell *byte_cell(shadow *p, size_t at)
{
    size_t word = at / 4;
    if (!p->split[word]) {
        if (!p->bytes)
            p->bytes.reset(new cell[PAGE]);
        for (size_t i = 0; i < 4; i++)
            p->bytes[4 * word + i] = p->words[word];
        p->split[word] = true;
    }
    return &p->bytes[at];
}

enum class what { load, store, update };

void touch(uintptr_t at, uint32_t bytes, what w, uint8_t flags, const void *pc)
{
    race_block *b = self->block->race;
    if (in_room(b, at)) {
        uintptr_t lo = uintptr_t(self->block->smem);
        if (at < lo || at + bytes > lo + self->block->smem_bytes)
            out_of_bounds(at, bytes, pc);
    }
    access now = {b->number, b->phase, b->syncs[self->thread / 32], uint16_t(self->thread), flags, pc};
    while (bytes > 0) {
        const cached &page = page_of(b, at);
        uint32_t n = uint32_t(std::min(size_t(bytes), PAGE - at % PAGE));
        if (at < page.lo || at + n > page.hi)
            out_of_bounds(at, n, pc);
        for (uint32_t i = 0; page.cells && i < n;) {
            size_t in_page = (at + i) % PAGE;
            bool whole = in_page % 4 == 0 && n - i >= 4;
            uint8_t &split = page.cells->split[in_page / 4];
            for (uint32_t k = 0; k < (whole && split ? 4 : 1); k++) {
                cell *c = whole && !split ? &page.cells->words[in_page / 4] : byte_cell(page.cells, in_page + k);
                if (w == what::load)
                    load_cell(b, *c, now, at + i + k);
                else
                    store_cell(b, *c, now, at + i + k);
            }
            if (whole && split && w == what::store) { /* one thread's again */
                split = false;
                page.cells->words[in_page / 4] = page.cells->bytes[in_page];
            }
            i += whole ? 4 : 1;
        }
        at += n;
        bytes -= n;
    }
}

bool of_a_kernel()
{
    return runs_kernels && self;
}

/* What the compiler put in: loads and stores of kernels, but also of the host's part of a .cu file, and of threads' own variables. */
inline void plain(const void *p, uint32_t bytes, what w, const void *pc)
{
    if (of_a_kernel())
        touch(uintptr_t(p), bytes, w, 0, pc);
}

void join(std::vector<known> &to, const std::vector<known> &from)
{
    for (const known &k : from) {
        bool there = false;
        for (known &t : to)
            if (t.block == k.block && t.thread == k.thread) {
                t.phase = std::max(t.phase, k.phase);
                there = true;
            }
        if (!there)
            to.push_back(k);
    }
}

/* What the running thread's fence covered is published with p. */
void publish(race_block *b, const thread_order &t, const void *p)
{
    if (!t.fenced)
        return;
    std::vector<known> &to = b->launch->published[p];
    join(to, {{b->number, t.fence_phase, uint16_t(self->thread)}});
    join(to, b->knows);
    join(to, t.knows);
}

void fence()
{
    if (!of_a_kernel())
        return;
    race_block *b = self->block->race;
    thread_order &t = mine(b);
    join(t.knows, t.seen);
    t.seen.clear();
    t.fenced = true;
    t.fence_phase = b->phase;
}

void atomic(const volatile void *p, uint32_t bytes, what w, int order, const void *pc)
{
    if (!of_a_kernel())
        return;
    touch(uintptr_t(p), bytes, w == what::load ? w : what::store, ATOMIC, pc);
    race_block *b = self->block->race;
    thread_order &t = mine(b);
    const void *at = const_cast<const void *>(p);
    if (w != what::store) {
        auto i = b->launch->published.find(at);
        if (i != b->launch->published.end())
            join(order == __ATOMIC_ACQUIRE || order == __ATOMIC_ACQ_REL || order == __ATOMIC_SEQ_CST ? t.knows : t.seen, i->second);
    }
    if (w != what::load) {
        if (order == __ATOMIC_RELEASE || order == __ATOMIC_ACQ_REL || order == __ATOMIC_SEQ_CST)
            fence();
        publish(b, t, at);
    }
}

} // namespace

/* ---- for the engine */

std::shared_ptr<race_launch> races_launch(uint64_t n_blocks)
{
    if (n_launches == 0 && pages.size() > MOST_PAGES) {
        pages.clear();
        std::fill(std::begin(cache), std::end(cache), cached{});
    }
    if (next_block + n_blocks >= UINT32_MAX) {
        fprintf(stderr, "emu: too many blocks for the race checker\n");
        abort();
    }
    auto *l = new race_launch{next_block, uint32_t(n_blocks), {}};
    next_block += uint32_t(n_blocks);
    n_launches++;
    return {l, [](race_launch *gone) {
                n_launches--;
                delete gone;
            }};
}

void races_on_this_thread(bool on)
{
    runs_kernels = on;
}

void races_block_starts(block_view *b, race_launch *launch, uint32_t index, const void *room, size_t room_bytes)
{
    if (!b->race)
        b->race = new race_block();
    *b->race = {launch, launch->first_block + index, 0, {}, uintptr_t(room), uintptr_t(room) + room_bytes, {}, {}};
}

void races_barrier(const block_view *v)
{
    race_block *b = v->race;
    for (auto &[thread, t] : b->threads) {
        join(b->knows, t.knows);
        t.knows.clear();
    }
    b->phase++;
}

void races_syncwarp(const block_view *b, uint32_t warp)
{
    b->race->syncs[warp]++;
}

void races_read(const void *p, uint32_t bytes)
{
    touch(uintptr_t(p), bytes, what::load, 0, __builtin_return_address(0));
}

void races_copy_begins(void *dst, uint32_t bytes)
{
    touch(uintptr_t(dst), bytes, what::store, IN_FLIGHT, __builtin_return_address(0));
}

void races_copy_lands(void *dst, uint32_t bytes, const void *src, uint32_t src_bytes)
{
    touch(uintptr_t(src), src_bytes, what::load, 0, __builtin_return_address(0));
    race_block *b = self->block->race;
    for (uint32_t i = 0; i < bytes; i += 4) { /* whole words, as it began */
        uintptr_t at = uintptr_t(dst) + i;
        access &s = page_of(b, at).cells->words[at % PAGE / 4].store;
        s.flags &= uint8_t(~IN_FLIGHT);
        s.phase = b->phase;
        s.syncs = b->syncs[self->thread / 32];
    }
}

} // namespace emu

/* ---- for kernels: what gcc's -fsanitize=thread calls */

using emu::what;

extern "C" {

void __tsan_init();
void __tsan_init()
{
}

#define ACCESS(n)                                                                                                                                              \
    void __tsan_read##n(void *p);                                                                                                                              \
    void __tsan_read##n(void *p)                                                                                                                               \
    {                                                                                                                                                          \
        emu::plain(p, n, what::load, __builtin_return_address(0));                                                                                             \
    }                                                                                                                                                          \
    void __tsan_write##n(void *p);                                                                                                                             \
    void __tsan_write##n(void *p)                                                                                                                              \
    {                                                                                                                                                          \
        emu::plain(p, n, what::store, __builtin_return_address(0));                                                                                            \
    }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS
void __tsan_read_range(void *p, size_t n);
void __tsan_read_range(void *p, size_t n)
{
    emu::plain(p, uint32_t(n), what::load, __builtin_return_address(0));
}
void __tsan_write_range(void *p, size_t n);
void __tsan_write_range(void *p, size_t n)
{
    emu::plain(p, uint32_t(n), what::store, __builtin_return_address(0));
}
void __tsan_vptr_update(void *, void *);
void __tsan_vptr_update(void *, void *)
{
}
void __tsan_atomic_thread_fence(int);
void __tsan_atomic_thread_fence(int order)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    (void)order;
    emu::fence();
}

#define ATOMICS(bits)                                                                                                                                          \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile void *p, int order);                                                                              \
    uint##bits##_t __tsan_atomic##bits##_load(const volatile void *p, int order)                                                                               \
    {                                                                                                                                                          \
        emu::atomic(p, bits / 8, what::load, order, __builtin_return_address(0));                                                                              \
        return __atomic_load_n(static_cast<const volatile uint##bits##_t *>(p), __ATOMIC_SEQ_CST);                                                             \
    }                                                                                                                                                          \
    void __tsan_atomic##bits##_store(volatile void *p, uint##bits##_t v, int order);                                                                           \
    void __tsan_atomic##bits##_store(volatile void *p, uint##bits##_t v, int order)                                                                            \
    {                                                                                                                                                          \
        emu::atomic(p, bits / 8, what::store, order, __builtin_return_address(0));                                                                             \
        __atomic_store_n(static_cast<volatile uint##bits##_t *>(p), v, __ATOMIC_SEQ_CST);                                                                      \
    }                                                                                                                                                          \
    uint##bits##_t __tsan_atomic##bits##_fetch_add(volatile void *p, uint##bits##_t v, int order);                                                             \
    uint##bits##_t __tsan_atomic##bits##_fetch_add(volatile void *p, uint##bits##_t v, int order)                                                              \
    {                                                                                                                                                          \
        emu::atomic(p, bits / 8, what::update, order, __builtin_return_address(0));                                                                            \
        return __atomic_fetch_add(static_cast<volatile uint##bits##_t *>(p), v, __ATOMIC_SEQ_CST);                                                             \
    }                                                                                                                                                          \
    bool __tsan_atomic##bits##_compare_exchange_strong(volatile void *p, uint##bits##_t *was, uint##bits##_t v, int order, int);                               \
    bool __tsan_atomic##bits##_compare_exchange_strong(volatile void *p, uint##bits##_t *was, uint##bits##_t v, int order, int)                                \
    {                                                                                                                                                          \
        emu::atomic(p, bits / 8, what::update, order, __builtin_return_address(0));                                                                            \
        return __atomic_compare_exchange_n(static_cast<volatile uint##bits##_t *>(p), was, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);                      \
    }
ATOMICS(32)
ATOMICS(64)
#undef ATOMICS

} /* extern "C" */

#endif
