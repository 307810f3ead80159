/* Inside of the engine; no other part includes it.
 *
 * engine.cc         fibers, blocks, who runs when, meetings and barriers, asynchronous copies
 * engine_faults.cc  what ends a kernel before its time, and what is said of it */
#ifndef TESTS_GPU_EMU_ENGINE_H
#define TESTS_GPU_EMU_ENGINE_H

#include "tests/gpu/emu/races.h"

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <pthread.h>

#include <boost/context/detail/fcontext.hpp>

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#else
#define EMU_ASAN 0
#endif

namespace emu {

namespace bc = boost::context::detail;

constexpr size_t PAGE = 4096, STACK_BYTES = EMU_ASAN ? 256 * 1024 : 64 * 1024;

struct block;
struct kernel_run {
    const kernel_launch *launch;
    uint64_t n_blocks, n_started, n_done, rng;
    std::vector<uint32_t> order; /* of the blocks not started yet, shuffled as they are taken */
    std::vector<block *> resident;
    uint32_t width; /* how many may run at once */
    fault failed;
    uint64_t quiet_since; /* ns: since then it has waited for memory only; 0: it has not */
    std::shared_ptr<race_launch> races;
};

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
    kernel_run *k;
    uint32_t n_threads, n_warps, live;
    std::vector<lane> lanes;
    std::vector<warp> warps;
    unsigned char *smem_map, *smem_end; /* a guard page, SMEM_MAX, a guard page */
    /* the barrier */
    uint32_t arrived, votes, result;
    here barrier_at;
};

struct engine {
    std::mutex mutex; /* of whoever runs a kernel, or ends one */
    pthread_t thread; /* which that is */
    fiber *running, *scheduler;
    uint64_t rng; /* the kernel's, while it runs */
    bool active;  /* something else than waiting for memory has happened */
    uint64_t n_launches;
    std::vector<fiber *> free_fibers;
    std::vector<uintptr_t> stacks; /* where those of STACKS fibers begin */
    std::vector<block *> free_blocks;
};
extern engine &eng __attribute__((visibility("hidden")));

inline lane *self_lane()
{
    return static_cast<lane *>(self);
}

/* ---- engine.cc */
/* The running lane's fiber is left for good: its kernel has failed. */
[[noreturn]] void leave_fiber();

/* ---- engine_faults.cc */
std::string where(const here &at);
/* The beginning of a line; l NULL: of the block. */
void report_place(const block *b, const lane *l);
/* Who waits where in a block that cannot go on: one line for each place. */
void report_waiting(const block *b);
/* A fault of the kernel has been told. */
void kernel_fail(kernel_run *k, fault f);
/* Handlers that report. Only while kernels run: test frameworks and sanitizers have their own. */
void signals_take();
void signals_give_back();

} // namespace emu

#endif
