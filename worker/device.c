#include "worker/device.h"

enum err device_create(const struct device_config *cfg, struct device **out)
{
    *out = NULL;
    return cfg->cuda_ordinal < 0 ? device_cpu_create(cfg, out) : device_cuda_create(cfg, out);
}

void device_destroy(struct device **d)
{
    if (*d)
        (*d)->ops->destroy(*d);
    *d = NULL;
}
