/* Shapes and random weights of test models; the main program is mkmodel.c. */
#ifndef TESTS_BENCH_MKMODEL_H
#define TESTS_BENCH_MKMODEL_H

#include "model/quants.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mkmodel_shape {
    const char *name, *arch;
    uint32_t layers, dim, heads, kv_heads, head_dim, ffn, vocab, ctx;
    float rope_base, eps;
    float rope_factor; /* of Llama 3's rope_freqs; 0: none */
    bool tied, qkv_bias, qk_norm;
    const char *pre; /* of the tokenizer: llama-bpe or qwen2 */
};

/* Random valid blocks `first` .. `first + n` of a matrix, values of about the given deviation and no mean. A pure
 * function of (type, deviation, seed, first): threads may fill a matrix in any order, in runs of MKMODEL_RUN blocks. */
enum { MKMODEL_RUN = 1024 };
void mkmodel_fill(enum quant type, double deviation, uint64_t seed, uint64_t first, uint64_t n, uint8_t *out);

#endif
