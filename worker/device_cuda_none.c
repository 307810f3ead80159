/* Builds without CUDA. */
#include "worker/device.h"

enum err device_cuda_create(const struct device_config *cfg, struct device **out)
{
    *out = NULL;
    return err_set(ERR_UNSUPPORTED, "device cuda:%d: this racklm-worker was built without CUDA (configure with -DRACKLM_CUDA=ON)", cfg->cuda_ordinal);
}
