/* What the functions of cuda.h share beside their arguments: struct cuda_context. Private to kernels/cuda. */
#ifndef KERNELS_CUDA_CONTEXT_H
#define KERNELS_CUDA_CONTEXT_H

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Counters at the start of the workspace: 0 between launches, so whoever counts in one sets it back (the last to count does). */
enum { CONTEXT_COUNTERS = 4096 };

struct cuda_context {
    struct cuda_config cfg;
    uint32_t *counters;   /* device, [CONTEXT_COUNTERS]; NULL: no workspace, so nothing is split over blocks */
    void *scratch;        /* device: the rest of the workspace, CUDA_ALIGN-aligned, contents undefined between launches */
    size_t scratch_bytes; /* 0: none */
    struct cublaslt *lt;  /* NULL: not there, or the deterministic form, which never asks it */
    char describe[48];
};

/* What matrices need of scratch, at best (with less they go on, slower); attention.h has its own. */
size_t matmul_scratch_bytes(const struct cuda_limits *l);

#ifdef __cplusplus
}
#endif

#endif
