/* Faults of kernels: their reports, the signals and the sanitizer's words among them, and how the kernel ends. */
#include "tests/gpu/emu/engine.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>

#include <signal.h>
#include <ucontext.h>

#if EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace emu {

namespace {

bool catching = false;

std::string coordinates(const uint3 &v)
{
    return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}

void report_seed()
{
    static bool told = false;
    if (!told)
        fprintf(stderr, "emu: RACKLM_EMU_SEED=%llu\n", (unsigned long long)seed());
    told = true;
}

} // namespace

std::string where(const here &at)
{
    return std::string(at.file_name()) + ":" + std::to_string(at.line());
}

void report_place(const block *b, const lane *l)
{
    fprintf(stderr, "emu: kernel %s, block %s", b->k->launch->name, coordinates(b->block_idx).c_str());
    if (l)
        fprintf(stderr, ", thread %s", coordinates(l->thread_idx).c_str());
}

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

void kernel_fail(kernel_run *k, fault f)
{
    report_seed();
    if (!catching) {
        self = nullptr;
        fflush(nullptr);
        abort();
    }
    k->failed = f;
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
    kernel_fail(l->w->b->k, f);
    self = nullptr;
    leave_fiber();
}

void catch_faults(bool on)
{
    catching = on;
}

/* ---- signals: an access outside of device or shared memory meets a guard page (or nothing) */

namespace {

constexpr int SIGNALS[] = {SIGSEGV, SIGBUS, SIGABRT};
struct sigaction old_actions[3];

void on_signal(int sig, siginfo_t *info, void *context)
{
    const lane *l = self_lane();
    if (!l || !pthread_equal(eng.thread, pthread_self())) { /* the host's own: as if we were not there */
        for (size_t i = 0; i < std::size(SIGNALS); i++)
            if (SIGNALS[i] == sig)
                sigaction(sig, &old_actions[i], nullptr);
        return; /* to where it happens again; abort() raises it again by itself */
    }
    auto *uc = static_cast<ucontext_t *>(context);
    block *b = l->w->b;
    if (sig == SIGABRT) {
        report_place(b, l);
        fprintf(stderr, ": abort(), an assertion it may be\n");
        report_seed();
        signal(SIGABRT, SIG_DFL);
        return;
    }
    const auto *addr = static_cast<const unsigned char *>(info->si_addr);
    bool stack = l->f && addr >= l->f->stack - PAGE && addr < l->f->stack;
    report_place(b, l);
    if (stack)
        fprintf(stderr, ": stack overflow of an emulated thread (%zu bytes)\n", STACK_BYTES);
    else if (addr >= b->smem_map && addr < b->smem_end + PAGE)
        fprintf(stderr, ": access out of bounds, %td bytes from the start of %zu bytes of shared memory, at pc %p\n", addr - b->smem, b->smem_bytes,
                (void *)uc->uc_mcontext.gregs[REG_RIP]);
    else {
        char near[160];
        describe_address(info->si_addr, near, sizeof(near));
        fprintf(stderr, ": access out of bounds (or misaligned), address %p, at pc %p; %s\n", info->si_addr, (void *)uc->uc_mcontext.gregs[REG_RIP], near);
    }
    kernel_fail(b->k, fault::out_of_bounds);
    if (stack)
        abort();
    /* Goes on after the handler, on the fiber's stack, in leave_fiber(). */
    self = nullptr;
    uc->uc_mcontext.gregs[REG_RSP] = greg_t(((size_t)uc->uc_mcontext.gregs[REG_RSP] - 1024) / 16 * 16 - 8);
    uc->uc_mcontext.gregs[REG_RIP] = greg_t((size_t)leave_fiber);
}

void on_sanitizer()
{
    if (self && pthread_equal(eng.thread, pthread_self())) {
        report_place(self_lane()->w->b, self_lane());
        fprintf(stderr, ": the sanitizer's report here\n");
        report_seed();
    }
}

} // namespace

/* UndefinedBehaviorSanitizer's hook. */
extern "C" void __ubsan_on_report();
extern "C" void __ubsan_on_report()
{
    on_sanitizer();
}

void signals_take()
{
#if EMU_ASAN
    static const bool asked = (__sanitizer_set_death_callback(on_sanitizer), true);
    (void)asked;
#endif
    thread_local std::unique_ptr<char[]> stack;
    stack_t ss = {};
    sigaltstack(nullptr, &ss);
    if (ss.ss_flags & SS_DISABLE) { /* else somebody's, AddressSanitizer's for one, is there already */
        ss = {};
        ss.ss_size = 64 * 1024;
        stack = std::make_unique<char[]>(ss.ss_size);
        ss.ss_sp = stack.get();
        sigaltstack(&ss, nullptr);
    }
    struct sigaction a = {};
    a.sa_sigaction = on_signal;
    a.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (size_t i = 0; i < std::size(SIGNALS); i++)
        sigaction(SIGNALS[i], &a, &old_actions[i]);
}
void signals_give_back()
{
    for (size_t i = 0; i < std::size(SIGNALS); i++)
        sigaction(SIGNALS[i], &old_actions[i], nullptr);
}

} // namespace emu
