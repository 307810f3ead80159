/* The AVX2 ops by name: the AVX-512 table takes those whose speed is the memory's, not the instructions'. */
#ifndef KERNELS_CPU_AVX2_H
#define KERNELS_CPU_AVX2_H

#include "kernels/kernels.h"

void cpu_avx2_quantize(const float *x, uint32_t k, int8_t *q, float *d);
void cpu_avx2_rmsnorm(const float *x, const float *w, float eps, uint32_t k, float *y);
void cpu_avx2_rope(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t rope_dims, enum rope_layout layout,
                   const float *cos, const float *sin);
void cpu_avx2_kv_write(enum kv_type type, const float *src, uint32_t n, void *dst);
void cpu_avx2_attention(const struct kernels_attn *a, uint32_t head_begin, uint32_t head_end, uint32_t tok_begin,
                        uint32_t tok_end, float *scratch);
void cpu_avx2_swiglu(const float *gate, const float *up, uint32_t n, float *y);
void cpu_avx2_add(float *x, const float *y, uint32_t n);
void cpu_avx2_matmul_q8(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin,
                        uint32_t row_end, float *y, size_t y_stride);
void cpu_avx2_matmul_float(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin,
                           uint32_t row_end, float *y, size_t y_stride);
/* Of each block of one token: the sum of q[0..15] as int16, low, and of q[16..31], high. */
void cpu_avx2_sums(const int8_t *q, uint32_t n_blocks, uint32_t *out);
/* What tiles need of n sums, of the whole block or (two) of its halves: where there are minima, the sum times d as fp32; else -offset times it as int32. */
void cpu_avx2_prepare(int offset, bool two, bool minima, const uint32_t *sums, const float *d, uint32_t n, uint32_t *out);

#endif
