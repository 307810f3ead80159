/* Which GPU backend this program has. Linking decides: gpu_support.c is the answer of racklm-worker; the emulated worker of the tests links an object of its own that defines
 * the function, and everything it offers is then called "emulated". */
#ifndef WORKER_GPU_SUPPORT_H
#define WORKER_GPU_SUPPORT_H

enum gpu_support { GPU_SUPPORT_NONE, GPU_SUPPORT_CUDA, GPU_SUPPORT_EMULATED };
enum gpu_support gpu_support(void);

#endif
