/* What the kernel tests, the benchmark and the oracle's helper share: the table of cases and generators of valid random
 * inputs. */
#ifndef TESTS_KERNELS_CASES_H
#define TESTS_KERNELS_CASES_H

#include "kernels/kernels.h"

struct cases_rng {
    uint64_t s;
};
uint32_t cases_u32(struct cases_rng *r);
float cases_uniform(struct cases_rng *r); /* [-1, 1) */
float cases_normal(struct cases_rng *r);  /* about normal, deviation 1 */

/* Rows of a type as a file holds them: any bytes for integers, finite f16 scales. `extreme` also gives blocks whose
 * weights, scales and minima are all at the end of their range, zero, denormal and large scales. bytes: rows *
 * quant_row_bytes */
void cases_weights(struct cases_rng *r, enum quant type, uint32_t rows, uint32_t cols, bool extreme, uint8_t *bytes);
/* Normal values, some outliers, a block of zeros, a block of equal values. */
void cases_floats(struct cases_rng *r, size_t n, float *x);

/* One matrix shape. A test takes those with cols a multiple of the type's block; the benchmark takes those marked. */
struct cases_shape {
    uint32_t rows, cols;
    bool bench;
};
extern const struct cases_shape cases_shapes[];
extern const unsigned cases_n_shapes;
extern const uint32_t cases_tokens[]; /* numbers of tokens */
extern const unsigned cases_n_tokens;

/* A paged attention problem with its memory. */
struct cases_attn {
    struct kernels_attn a;
    uint32_t n_heads, n_kv_heads;
    float *q, *out;
    uint8_t *kv;
    uint32_t *blocks;
    size_t out_len;
};
struct cases_attn_shape {
    uint32_t head_dim, head_dim_v, n_heads, group, pos0, n_tok, head0;
};
extern const struct cases_attn_shape cases_attn_shapes[];
extern const unsigned cases_n_attn_shapes;
/* Filled with random values through `k`'s kv_write; block ids are shuffled. */
void cases_attn_init(struct cases_rng *r, const struct kernels *k, const struct cases_attn_shape *s, enum kv_type type,
                     struct cases_attn *c);
void cases_attn_deinit(struct cases_attn *c);

void *cases_alloc(size_t bytes); /* aligned to KERNELS_ALIGN, filled with 0xa5; free() */

#endif
