/* What attention needs of the context's scratch (context.h). Private to kernels/cuda. */
#ifndef KERNELS_CUDA_ATTENTION_H
#define KERNELS_CUDA_ATTENTION_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Partial results of decode's splits: enough for two waves of blocks of 16 heads on 192 SMs, and for the ranges of one sequence of l->ctx in the deterministic form.
 * With less, sequences are split less, or not at all. It may be memory that others use between calls; 0 between launches are the context's counters only. */
size_t cuda_attention_workspace_bytes(const struct cuda_limits *l);

#ifdef __cplusplus
}
#endif

#endif
