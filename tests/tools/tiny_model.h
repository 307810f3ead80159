/* A complete small model in memory, for unit tests: keys, tokenizer and F32 tensors of zeros (norms and all), which a
 * test may bend before the header is written. */
#ifndef TESTS_TOOLS_TINY_MODEL_H
#define TESTS_TOOLS_TINY_MODEL_H

#include "tests/tools/gguf_write.h"

struct tiny_model {
    const char *arch;
    uint32_t layers, dim, heads, kv_heads, head_dim, head_dim_v, ffn, vocab, ctx;
    bool qkv_bias, o_bias, qk_norm, untied, rope_freqs, no_tokenizer;
    const char *skip_key; /* this key is left out (full name) */
};

extern const struct tiny_model tiny_model_default;
void tiny_model_begin(const struct tiny_model *t, struct gguf_write *w);
struct gguf_write_tensor *tiny_model_tensor(struct gguf_write *w, const char *name);
/* Header and zeros; rope_freqs are ones. free() it. w stays valid until gguf_write_deinit. */
uint8_t *tiny_model_bytes(struct gguf_write *w, size_t *len);

#endif
