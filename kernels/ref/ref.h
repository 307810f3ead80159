/* What the files of the reference share. The reference is written to be read: one decoder for each quantisation, plain
 * loops, no vectors. Its packed layout is the file's own: rows of GGUF bytes, one after the other. */
#ifndef KERNELS_REF_REF_H
#define KERNELS_REF_REF_H

#include "kernels/kernels.h"

/* 32 consecutive weights of a row. With i the index in the block and h = i / 16 its half:
 *     weight = d * sc[h] * w[i] + m * mn[h]
 * w has its offset subtracted where the format has one; a minimum that the format subtracts stands as a negative mn.
 * Types without sub-block scales have sc = 1, types without minimum has_min = false. */
struct ref_block {
    int16_t w[32];
    int32_t sc[2], mn[2];
    float d, m;
    bool has_min, halves; /* halves: the scales of the two may differ */
};

/* Block b (of 32) of a row of a QUANT_ACT_Q8 type. */
void ref_decode(enum quant type, const uint8_t *row, uint32_t b, struct ref_block *out);
/* Element k of a row of F32, F16 or BF16. */
float ref_element(enum quant type, const uint8_t *row, uint32_t k);
/* n dequantised weights from the start of a row. */
void ref_dequant(enum quant type, const uint8_t *row, uint32_t n, float *out);
/* n values of a KV row as fp32. */
void ref_kv_read(enum kv_type type, const void *src, uint32_t n, float *out);
size_t ref_kv_bytes(enum kv_type type, uint32_t n);
/* Where the K (or V, off = v_off) row of a position stands. */
const uint8_t *ref_kv_row(const struct kernels_attn *a, uint32_t kv_head, uint32_t pos, bool v);

/* The ops with chained roundings, compiled twice from exact.c: with the compiler's fma instruction, and with libm's
 * fmaf. */
#define REF_EXACT(suffix)                                                                                              \
    void ref_exact_rmsnorm##suffix(const float *x, const float *w, float eps, uint32_t k, float *y);                   \
    void ref_exact_matmul##suffix(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin,     \
                                  uint32_t row_end, float *y, size_t y_stride);                                        \
    void ref_exact_rope##suffix(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t rope_dims,                     \
                                enum rope_layout layout, const float *cos, const float *sin);                          \
    void ref_exact_attention##suffix(const struct kernels_attn *a, uint32_t head_begin, uint32_t head_end,             \
                                     uint32_t tok_begin, uint32_t tok_end, float *scratch);                            \
    void ref_exact_swiglu##suffix(const float *gate, const float *up, uint32_t n, float *y);
REF_EXACT(_fma)
REF_EXACT(_libm)

/* Ops without a chain of roundings (ref.c), shared with the plain-C CPU table. */
size_t ref_weight_bytes(enum quant type, uint32_t rows, uint32_t cols);
void ref_weight_pack(enum quant type, uint32_t rows, uint32_t cols, const void *src, uint32_t row0, uint32_t n,
                     void *dst);
void ref_weight_row(const struct kernels_weight *w, uint32_t row, float *out);
void ref_quantize(const float *x, uint32_t k, int8_t *q, float *d);
void ref_kv_write(enum kv_type type, const float *src, uint32_t n, void *dst);
void ref_add(float *x, const float *y, uint32_t n);

/* ref_f32's mathematics in double (math.c). */
void ref_math_rmsnorm(const float *x, const float *w, float eps, uint32_t k, float *y);
void ref_math_matmul(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin, uint32_t row_end,
                     float *y, size_t y_stride);
void ref_math_rope(float *x, uint32_t n_heads, uint32_t head_dim, uint32_t rope_dims, enum rope_layout layout,
                   const float *cos, const float *sin);
void ref_math_attention(const struct kernels_attn *a, uint32_t head_begin, uint32_t head_end, uint32_t tok_begin,
                        uint32_t tok_end, float *scratch);
void ref_math_swiglu(const float *gate, const float *up, uint32_t n, float *y);

#endif
