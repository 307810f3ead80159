/* Backends by name. */
#include "kernels/kernels.h"

#include <string.h>

const struct kernels *kernels_by_name(const char *name)
{
    if (!strcmp(name, "auto") || !strcmp(name, "cpu"))
        return kernels_cpu();
    if (!strcmp(name, "ref"))
        return &kernels_ref;
    if (!strcmp(name, "ref_f32"))
        return &kernels_ref_f32;
    return NULL;
}
