/* The tokenizer data of a model: tokens, scores, types, merges, special ids, template; from a GGUF file or from a
 * tokenizer.json (model/tokenizer_json.h). The algorithms are the coordinator's. */
#ifndef MODEL_VOCAB_H
#define MODEL_VOCAB_H

#include "model/gguf.h"

enum vocab_kind { VOCAB_SPM, VOCAB_BPE, VOCAB_UNIGRAM }; /* tokenizer.ggml.model: llama, gpt2, t5 */
enum vocab_token_type { VOCAB_NORMAL = 1, VOCAB_UNKNOWN, VOCAB_CONTROL, VOCAB_USER_DEFINED, VOCAB_UNUSED, VOCAB_BYTE };
enum vocab_strip { VOCAB_LSTRIP = 1, VOCAB_RSTRIP = 2 }; /* a special token takes the white space before it, behind it */
enum { VOCAB_NONE = -1 };

struct vocab_merge { /* of token ids; its rank is its index */
    uint32_t left, right, result;
};
struct tokenizer_json;
struct vocab {
    enum vocab_kind kind;
    struct gguf_str pre;            /* tokenizer.ggml.pre; empty when absent */
    uint32_t n_tokens;
    struct gguf_str *tokens;        /* views into the gguf (or into the memory of json) */
    float *scores;                  /* NULL when absent */
    uint8_t *types;                 /* enum vocab_token_type; NORMAL when absent */
    uint8_t *strips;                /* bits of enum vocab_strip; NULL: no token has any */
    uint64_t n_merges;
    struct gguf_str *merges;        /* "left right", rank = index; NULL in a tokenizer.json */
    struct vocab_merge *merge_ids;  /* the same of a tokenizer.json */
    int32_t bos, eos, eot, eom, unk, pad;
    bool add_bos, add_eos, add_space_prefix;
    bool strip_space;               /* the first space of a text was put there by the tokenizer and is not part of it */
    /* Unigram: how SentencePiece normalises */
    struct gguf_str charsmap;       /* compiled rules (text/charsmap.h); empty when absent */
    bool merge_spaces;              /* runs of spaces become one, those at the ends go */
    bool space_suffix;              /* the added space stands behind the text */
    struct gguf_str chat_template;  /* empty when absent */
    struct tokenizer_json *json;    /* NULL: the vocabulary is of a GGUF file, which the fields above describe wholly */
    struct gguf *file;              /* opened by vocab_open, else NULL */
};

/* Views stay valid while g is open. ERR_UNSUPPORTED (tokenizer kind), ERR_CORRUPT (ids out of range, counts that differ). */
enum err vocab_load(const struct gguf *g, struct vocab **out);
/* A GGUF file or a tokenizer.json, told apart by its first bytes; the vocabulary keeps what it needs of it. */
enum err vocab_open(const char *path, struct vocab **out);
/* Replaces *v (which may be NULL) by the tokenizer.json at path. What that does not say (ids of special tokens, the chat template) stays as
 * the model's file has it, which must stay open. ERR_CORRUPT when it has ids that a model of n_vocab rows lacks. */
enum err vocab_replace(struct vocab **v, const char *path, uint32_t n_vocab);
void vocab_destroy(struct vocab **v);

#endif
