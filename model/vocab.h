/* The tokenizer data of a GGUF file: tokens, scores, types, merges, special ids, template. The algorithms are the coordinator's. */
#ifndef MODEL_VOCAB_H
#define MODEL_VOCAB_H

#include "model/gguf.h"

enum vocab_kind { VOCAB_SPM, VOCAB_BPE }; /* tokenizer.ggml.model: llama, gpt2 */
enum vocab_token_type { VOCAB_NORMAL = 1, VOCAB_UNKNOWN, VOCAB_CONTROL, VOCAB_USER_DEFINED, VOCAB_UNUSED, VOCAB_BYTE };
enum { VOCAB_NONE = -1 };

struct vocab {
    enum vocab_kind kind;
    struct gguf_str pre;            /* tokenizer.ggml.pre; empty when absent */
    uint32_t n_tokens;
    struct gguf_str *tokens;        /* views into the gguf */
    float *scores;                  /* NULL when absent */
    uint8_t *types;                 /* enum vocab_token_type; NORMAL when absent */
    uint64_t n_merges;
    struct gguf_str *merges;        /* "left right", rank = index */
    int32_t bos, eos, eot, eom, unk, pad;
    bool add_bos, add_eos, add_space_prefix;
    struct gguf_str chat_template;  /* empty when absent */
};

/* Views stay valid while g is open. ERR_UNSUPPORTED (tokenizer kind), ERR_CORRUPT (ids out of range, counts that differ). */
enum err vocab_load(const struct gguf *g, struct vocab **out);
void vocab_destroy(struct vocab **v);

#endif
