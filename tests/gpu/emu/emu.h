/* The seam between the two halves of the emulator: the engine, which runs one kernel (engine.cc; what kernels see is kernel.h), and the runtime, which owns memory,
 * streams, events and graphs (runtime.cc; what the host sees is the toolkit's own cuda_runtime_api.h). It follows the CUDA documentation, never what our kernels
 * expect. A fault of a kernel (a barrier that not all threads reach, an access out of bounds) is reported with kernel, block and thread on
 * standard error and ends the process, unless catch_faults made it a sticky error of the context, as a GPU has it. */
#ifndef TESTS_GPU_EMU_EMU_H
#define TESTS_GPU_EMU_EMU_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include <cuda_runtime_api.h>

namespace emu {

struct kernel_launch {
    const char *name;
    dim3 grid, block;
    size_t smem;
    std::function<void()> thread; /* what one thread does; the arguments are inside, by value */
};

/* runtime.cc: puts it into a stream (or a graph that is being captured); checks the shape of the launch as the documentation says. */
cudaError_t enqueue_kernel(kernel_launch launch, cudaStream_t stream);

/* runtime.cc: the same for any work that is not a kernel: a collective, a matrix product of a library. attempt does it on whatever thread works for the
 * device: true when it is done; false when it has to be called again (after 100 us or more; other streams go on meanwhile). It is copied for each
 * replay of a graph, so state in its captures begins anew each time. It must not wait, nor call cuda functions. */
cudaError_t enqueue_operation(cudaStream_t stream, std::function<bool()> attempt, const char *name = "operation");

/* runtime.cc: whether a kernel may use this address: inside a live allocation of a device or pinned (or_end: or just behind one). */
bool device_accessible(const void *p, bool or_end = false);
/* runtime.cc: the live allocation that lies in this page of 4096 bytes (there is never more than one): [lo, hi), not cut to the page. False: none does. */
bool allocation_in_page(uintptr_t page, uintptr_t *lo, uintptr_t *hi);
/* runtime.cc: what an address is, for reports: "byte 104 of 100 bytes of device memory at 0x7f...". Empty when the runtime is locked. Allocates
 * nothing: a signal handler may ask. */
void describe_address(const void *p, char *text, size_t size);

/* engine.cc: a kernel that has begun; what it runs, `launch`, stays until then. Let go of before its end it is abandoned. */
enum class fault { none, divergent_barrier, out_of_bounds, trap, timeout, race };
struct kernel_run;
std::shared_ptr<kernel_run> kernel_begin(const kernel_launch &launch);
/* Runs it, on the calling OS thread (one at a time, any) to its end, or until all its threads wait for memory: another kernel may write it, or a host thread.
 * ended: f says how. some: it got further. none: it did not. timeout is the fault when that is all for RACKLM_EMU_SPIN_S seconds (60). */
enum class advance { ended, some, none };
advance kernel_advance(kernel_run &k, fault *f);
/* The two, to the end. */
fault run_kernel(const kernel_launch &launch);
/* On: the fault is returned after its report. Off, as at the start: the report ends the process (abort). */
void catch_faults(bool on);
/* The seed of everything random: RACKLM_EMU_SEED, else a fixed one; printed once on standard error when something fails. */
uint64_t seed();

} // namespace emu

#endif
