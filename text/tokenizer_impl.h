/* What the parts of the tokenizer share: the token index, the special-token trie, and the two algorithms. Private to
 * tokenizer*.c. */
#ifndef TEXT_TOKENIZER_IMPL_H
#define TEXT_TOKENIZER_IMPL_H

#include "text/pretokenizer.h"
#include "text/tokenizer.h"
#include "text/trie.h"

#include <string.h>

#define TOKEN_NONE UINT32_MAX

/* Of a byte string; not for hostile keys that must not collide (a vocabulary is trusted as far as speed goes). */
static inline uint64_t tokenizer_hash(const char *s, size_t len)
{
    uint64_t h = 0x9E3779B97F4A7C15ull ^ len;
    for (; len >= 8; s += 8, len -= 8) {
        uint64_t v;
        memcpy(&v, s, 8);
        h = (h ^ v) * 0xD6E8FEB86659FD93ull;
        h ^= h >> 32;
    }
    uint64_t v = 0;
    memcpy(&v, s, len);
    h = (h ^ v) * 0xD6E8FEB86659FD93ull;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93ull;
    return h ^ h >> 29;
}

struct bpe_pair { /* a slot of the table of pairs */
    uint32_t left, right;
    uint32_t rank; /* TOKEN_NONE: free */
};
struct tokenizer_hf;
struct tokenizer_unigram;
struct tokenizer {
    const struct vocab *v;
    struct tokenizer_hf *hf;           /* of a tokenizer.json, else NULL */
    struct tokenizer_unigram *unigram; /* of a GGUF file, else NULL */
    struct pretokenizer *pre;          /* BPE only */
    unsigned pre_flags;
    bool split_words; /* SPM: no token has U+2581 after another character, so words can be merged one by one */
    size_t token_len_max;
    uint32_t byte_ids[256]; /* the token of a single byte, or TOKEN_NONE */
    uint64_t *slots;        /* token index: upper half of the hash and id + 1, 0 is free; open addressing */
    uint32_t slot_mask;
    uint32_t n_orders;      /* ranks of merges (BPE), places among the scores (SPM) */
    uint32_t *results;      /* BPE, by rank */
    struct bpe_pair *pairs; /* BPE: open addressing */
    uint32_t pair_mask;
    uint32_t *orders; /* SPM, by token: the higher the score the lower; equal ones share it; TOKEN_NONE: text never means it */
    struct trie special;      /* control, unknown and user-defined tokens by their text */
    bool special_first[256];  /* one starts with this byte */
};

/* The id of a token by its text in the file; TOKEN_NONE. */
uint32_t tokenizer_find(const struct tokenizer *t, const char *s, size_t len);

struct tokenizer_work; /* tokenizer_merge.h: the scratch memory of one tokenizer_encode */

/* tokenizer_bpe.c */
enum err tokenizer_bpe_init(struct tokenizer *t);
enum err tokenizer_bpe_merges_init(struct tokenizer *t); /* the merges only */
enum err tokenizer_bpe_encode(const struct tokenizer *t, struct tokenizer_work *w, const char *text, size_t len,
                              struct tokens *out);
/* Merges ids[0..*n) in place; there is room for one id more. */
enum err tokenizer_bpe_merge(const struct tokenizer *t, struct tokenizer_work *w, uint32_t *ids, size_t *n);
void tokenizer_bpe_bytes(const struct gguf_str *token, struct buf *out);

/* tokenizer_spm.c */
enum err tokenizer_spm_init(struct tokenizer *t);
enum err tokenizer_spm_encode(const struct tokenizer *t, struct tokenizer_work *w, const char *text, size_t len,
                              bool space_first, struct tokens *out);
/* The bytes of a token whose text has U+2581 for spaces and whose byte tokens are <0xXX>. */
void tokenizer_spm_bytes(const struct tokenizer *t, uint32_t id, struct buf *out);
/* Finds the <0xXX> of every byte. */
void tokenizer_spm_byte_ids(struct tokenizer *t);
/* Text with U+2581 for spaces, appended to out. */
void tokenizer_spm_escape(const char *text, size_t len, struct buf *out);

enum err tokens_reserve(struct tokens *t, size_t extra);
/* Appends n ids; the second: n that stand at `at` in t itself. */
static inline enum err tokens_append(struct tokens *t, const uint32_t *ids, size_t n)
{
    if (n == 0)
        return ERR_OK;
    if (t->cap - t->n < n)
        TRY(tokens_reserve(t, n));
    memcpy(t->ids + t->n, ids, n * sizeof(*ids));
    t->n += n;
    return ERR_OK;
}
static inline enum err tokens_copy(struct tokens *t, size_t at, size_t n)
{
    if (t->cap - t->n < n)
        TRY(tokens_reserve(t, n));
    for (size_t i = 0; i < n; i++)
        t->ids[t->n++] = t->ids[at + i];
    return ERR_OK;
}

#endif
