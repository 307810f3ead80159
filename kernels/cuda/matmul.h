/* Between matmul.c, which picks, and the kernels of matmul_*.cu. Private to kernels/cuda. */
#ifndef KERNELS_CUDA_MATMUL_H
#define KERNELS_CUDA_MATMUL_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MATMUL_JOBS = 4, MATMUL_WARPS = 8 };

/* Matrices of one type with one input, as one list of groups of 16 rows. */
struct matmul_job {
    const void *w;
    const float *bias;
    float *y;
    size_t y_stride;
    uint32_t rows, group0; /* first group in the list */
};
struct matmul_args {
    struct matmul_job job[MATMUL_JOBS];
    uint32_t n_jobs, groups; /* of all jobs */
    uint32_t cols;           /* k of the weights */
    const void *x;           /* [n][k] */
    const float *scale;      /* [n], or NULL */
    uint32_t n, k;
    /* The block's shape: warps_row of its 8 warps side by side over rows, the others over k. k in `splits` parts, one a block. */
    uint32_t warps_row, splits;
    uint32_t n_sms;     /* no more blocks than these hold at once */
    float *partial;     /* [row tile, token tile][split][tile], where splits > 1 */
    uint32_t *counters; /* [row tile, token tile], 0 before and after */
};
/* Tokens and rows of 16 that a warp of the kernel for n tokens has; how many warps can divide k among them. */
struct matmul_form {
    uint32_t n_tiles /* of 8 tokens */, m_tiles /* of 16 rows */, warps_k_max;
};
struct matmul_form matmul_small_form(enum quant type, uint32_t n); /* n: up to CUDA_SMALL_BATCH; more runs in tiles of that many */
struct matmul_form matmul_large_form(enum quant type);
/* Launches. Not F32. */
cudaError_t matmul_small(enum quant type, const struct matmul_args *a, cudaStream_t stream);
cudaError_t matmul_large(enum quant type, const struct matmul_args *a, cudaStream_t stream);
/* F32: jobs' w in groups of 1 row, x fp32. */
cudaError_t matmul_f32(const struct matmul_args *a, cudaStream_t stream);
/* y[i][r] = y[i][r] * scale[i] + bias[r], where scale or bias is given: what cuBLASLt leaves undone. */
cudaError_t matmul_finish(const struct matmul_job *j, const float *scale, uint32_t n, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
