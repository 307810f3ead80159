/* The case table of matrices on a GPU, as test and as benchmark: each case owns its tolerance, bytes and operations. And device memory for tests. */
#ifndef TESTS_GPU_CASES_GPU_H
#define TESTS_GPU_CASES_GPU_H

#include "kernels/cuda/cuda.h"
#include "tests/kernels/cases.h"

/* One matrix times n tokens. The test takes a type where cols is a multiple of its block, the benchmark the cases marked. */
struct cases_gpu_matmul {
    uint32_t rows, cols, n;
    bool bench;
};
extern const struct cases_gpu_matmul cases_gpu_matmuls[];
extern const unsigned cases_gpu_n_matmuls;
bool cases_gpu_has(const struct cases_gpu_matmul *c, enum quant type);
/* What has to be moved at least: packed weights, activations, outputs once. */
double cases_gpu_bytes(const struct cases_gpu_matmul *c, enum quant type);
double cases_gpu_flops(const struct cases_gpu_matmul *c);
/* How far y[token][row] may be from the exact sum: row as the file has it, x[cols] the activation as it is multiplied. The derivation stands in
 * cases_gpu.c. */
double cases_gpu_tolerance(enum quant type, const uint8_t *row, uint32_t cols, const float *x);

/* Rows of a type with weights of up to 256, odd ones too: all bits set or clear in a block, scales of 0, denormal scales. */
void cases_gpu_weights(struct cases_rng *r, enum quant type, uint32_t rows, uint32_t cols, uint8_t *bytes);

/* Device memory with these bytes (NULL: undefined); an error ends the test. */
void *cases_gpu_device(const void *host, size_t bytes);
/* Bytes at p, malloc'ed. */
void *cases_gpu_host(const void *p, size_t bytes);
void cases_gpu_free(void *p);

/* An activation on the device of n rows of k values in the type that goes with `type`, columns up to a multiple of 8 being zeros, and value[n][k],
 * what it exactly means. F16: tokens have different powers of two taken out. */
struct cases_gpu_act {
    struct cuda_act act;
    float *value;
};
void cases_gpu_act_init(struct cases_gpu_act *a, struct cases_rng *r, enum quant type, uint32_t n, uint32_t k);
void cases_gpu_act_deinit(struct cases_gpu_act *a);
/* Tokens [first, first + n) of it. */
struct cuda_act cases_gpu_act_part(const struct cases_gpu_act *a, uint32_t first, uint32_t n);

#endif
