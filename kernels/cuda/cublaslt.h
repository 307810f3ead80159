/* NVIDIA's cuBLASLt for dense matrices, when the machine has it: libcublasLt.so.13, else .12, is loaded by dlopen, so that a machine without it (or without a
 * GPU) needs nothing. Only what matmul.c asks for. Sums are fp32; F32 matrices are multiplied as TF32 (10 bits of mantissa), which cuda.h's own fp32 kernel is
 * not. May be captured in a graph. Not for several threads at once. Reference: cublasLt.h of the toolkit. */
#ifndef KERNELS_CUDA_CUBLASLT_H
#define KERNELS_CUDA_CUBLASLT_H

#include "kernels/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* y[i][r] = sum over j of x[i][j] * w[r][j], plus bias[r], plus the old y[i][r] where accumulate is set. Strides are in elements, from row to row. Pointers
 * are device memory, aligned to 16 bytes, workspace to 256; the strides of x and w are multiples of 16 bytes. */
struct cublaslt_problem {
    enum cuda_type type;   /* of w and x */
    enum cuda_type y_type; /* CUDA_F32, or type */
    uint32_t n, rows, k;
    const void *w, *x;
    size_t w_stride, x_stride; /* >= k */
    void *y;
    size_t y_stride; /* >= rows */
    const void *bias; /* [rows] of y_type, or NULL */
    bool accumulate;
    void *workspace; /* of one stream at a time; more allows faster algorithms (NVIDIA's advice for Hopper and newer: 32 MiB) */
    size_t workspace_bytes;
};

struct cublaslt;
/* NULL: not there, or not usable (too old a driver, out of memory). The current device is the one that it will be used with. */
struct cublaslt *cublaslt_open(void);
void cublaslt_close(struct cublaslt **lt);
/* "13.0.2": lives as long as lt. */
const char *cublaslt_version(const struct cublaslt *lt);
/* Launches. cudaErrorNotSupported: no algorithm for this problem (the caller's own kernel has to do it; nothing was launched). The choice of algorithm is
 * remembered per shape, alignment and power of two of n, so that the steady state neither asks nor allocates. */
cudaError_t cublaslt_matmul(struct cublaslt *lt, const struct cublaslt_problem *p, cudaStream_t stream);

#ifdef __cplusplus
}
#endif

#endif
