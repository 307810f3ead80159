/* What a test can tell the emulated GPUs, and the environment that says the same to a program that is not linked with the test:
 *
 *   RACKLM_EMU_DEVICES   how many there are (1)
 *   RACKLM_EMU_MEMORY    bytes of memory of each, K, M or G may follow (2G)
 *   RACKLM_EMU_SEED      of everything random
 *   RACKLM_EMU_LAG_MS    emu_set_lag_ms (5)
 *   CUDA_VISIBLE_DEVICES as on a GPU, numbers only
 *   RACKLM_EMU_FAULT     a list, by commas, of kind[@when][:device]; when is N, the N-th kernel (N-th allocation for oom) from 1, or Tms, that
 *                        long after the device's first use, which is noticed at the next call or in a wait; device is a number of the machine, else all of them.
 *     oom@N         that allocation (cudaMalloc, cudaMallocAsync, cudaHostAlloc, cudaHostRegister, cudaGraphInstantiate) fails: cudaErrorMemoryAllocation
 *     illegal@when  the device is lost: cudaErrorIllegalAddress from every call that follows, as CUDA's documentation says of such errors
 *     launch@when   the same with cudaErrorLaunchFailure
 *     ecc@when      the same with cudaErrorECCUncorrectable (Xid 48)
 *     lost@when     the same with cudaErrorUnknown: it has fallen off the bus (Xid 79)
 *     hang@N        that kernel never ends
 *     slow@N        each kernel takes N microseconds more
 *     nodriver      no driver is installed: cudaErrorInsufficientDriver, driver version 0
 *     olddriver     it is too old for this runtime: cudaErrorInsufficientDriver, driver version 11.4
 *     nodevice      a driver, but no device: cudaErrorNoDevice
 */
#ifndef TESTS_GPU_EMU_EMU_CONTROL_H
#define TESTS_GPU_EMU_EMU_CONTROL_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum emu_fault_kind { EMU_FAULT_ERROR, EMU_FAULT_HANG };
struct emu_fault {
    enum emu_fault_kind kind;
    cudaError_t error;  /* of EMU_FAULT_ERROR */
    uint64_t at_kernel; /* the at_kernel-th kernel from now, from 1; 0: by time */
    uint32_t after_ms;  /* from now (by the environment: from the device's first use) */
};
/* Adds one to those that wait. */
void emu_add_fault(int device, const struct emu_fault *f);
/* At once. */
void emu_fail_device(int device, cudaError_t e);
/* The n-th allocation from now, from 1, of any device or pinned; a graph is one, too. */
void emu_fail_allocation(uint64_t n);
/* What can still be allocated; what is allocated stays. */
void emu_set_memory(int device, size_t bytes);
/* This stream does nothing until it is told to again. */
void emu_hang_stream(cudaStream_t stream, bool hang);
/* The order of streams from here on. */
void emu_set_order_seed(uint64_t seed);
/* A device works on its own when for so long no host thread has given it work, waited for it or asked; 0: never; negative: at once, which kernels need that wait for
 * the host. */
void emu_set_lag_ms(int ms);
/* A fault of a kernel becomes the device's sticky error instead of ending the process. */
void emu_catch_faults(bool on);
/* Everything as it was when the process began, environment included: handles and memory are gone. No other thread uses the devices, none captures. */
void emu_reset(void);

struct emu_stats {
    size_t memory_used;      /* bytes of device memory */
    uint64_t allocations;    /* live ones, of device and pinned memory */
    uint64_t kernels;        /* that ran */
    uint64_t operations;     /* that ran, kernels included */
    uint64_t streams, events, graphs; /* live handles of all devices; graphs: both kinds */
};
void emu_get_stats(int device, struct emu_stats *s);

#ifdef __cplusplus
}
#endif

#endif
