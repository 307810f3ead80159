#include "worker/gpu_support.h"

enum gpu_support gpu_support(void)
{
#ifdef RACKLM_CUDA_BUILD
    return GPU_SUPPORT_CUDA;
#else
    return GPU_SUPPORT_NONE;
#endif
}
