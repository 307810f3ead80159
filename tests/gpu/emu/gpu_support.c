/* In the emulated worker: what it offers is called emulated. */
#include "worker/gpu_support.h"

enum gpu_support gpu_support(void)
{
    return GPU_SUPPORT_EMULATED;
}
