/* The only things that differ between nvcc and the emulator (tests/gpu/emu) in otherwise ordinary CUDA source. A .cu file of ours includes this header
 * first, and keeps four rules, so that the same file runs on a GPU and, compiled as C++, on a CPU:
 *  - launches go through LAUNCH(kernel, grid, block, smem_bytes, stream, arguments...); a template with commas stands in parentheses;
 *  - all shared memory is dynamic: smem_base(), carved by the kernel itself, 1024-byte aligned, contents undefined (the emulator poisons it);
 *  - instructions that C++ does not have are functions of ptx.cuh; no asm anywhere else;
 *  - no thread leaves a kernel (or a branch) before a barrier or a warp-wide function that the others of its block or warp reach.
 * Rows, ids and counts are uint32_t; byte offsets and products of two of them are size_t. */
#ifndef KERNELS_CUDA_LAUNCH_CUH
#define KERNELS_CUDA_LAUNCH_CUH

#ifdef RACKLM_EMU

#include "tests/gpu/emu/kernel.h"

#else

#include <cuda_runtime.h>

extern __shared__ __align__(1024) unsigned char racklm_smem[];
static __device__ __forceinline__ unsigned char *smem_base()
{
    return racklm_smem;
}

/* Gives the launch's own error; work in the stream fails later. */
template <typename... P, typename... A>
static inline cudaError_t launch_kernel(void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, cudaStream_t stream, A... args)
{
    if (smem > 48u * 1024u) { /* more has to be asked for */
        cudaError_t e = cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)smem);
        if (e != cudaSuccess)
            return e;
    }
    kernel<<<grid, block, smem, stream>>>(static_cast<P>(args)...);
    return cudaGetLastError();
}
#define LAUNCH(kernel, grid, block, smem, stream, ...) launch_kernel(kernel, grid, block, smem, stream, __VA_ARGS__)

#endif

#define CUDA_TRY(x)                                                                                                    \
    do {                                                                                                               \
        cudaError_t cuda_try_e = (x);                                                                                  \
        if (cuda_try_e != cudaSuccess)                                                                                 \
            return cuda_try_e;                                                                                         \
    } while (0)

#endif
