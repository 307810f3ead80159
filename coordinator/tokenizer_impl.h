/* What the parts of the tokenizer share: the token index, the special-token trie, and the two algorithms. Private to
 * tokenizer*.c. */
#ifndef COORDINATOR_TOKENIZER_IMPL_H
#define COORDINATOR_TOKENIZER_IMPL_H

#include "coordinator/pretokenizer.h"
#include "coordinator/tokenizer.h"

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

struct bpe_merge {
    uint32_t left, right, result;
};
struct trie_node {
    uint32_t child, sibling; /* 0: none */
    uint32_t id;             /* TOKEN_NONE: no token ends here */
    uint8_t byte;
    bool always; /* user-defined: recognised in any text */
};

struct tokenizer {
    const struct vocab *v;
    struct pretokenizer *pre; /* BPE only */
    bool ignore_merges;
    bool split_words; /* SPM: no token has U+2581 after another character, so words can be merged one by one */
    size_t token_len_max;
    uint32_t byte_ids[256]; /* the token of a single byte, or TOKEN_NONE */
    uint32_t *slots;        /* token index: id + 1, 0 is free; open addressing */
    uint32_t slot_mask;
    struct bpe_merge *merges; /* by rank */
    uint32_t n_merges;
    uint32_t *merge_slots; /* rank + 1 */
    uint32_t merge_mask;
    struct trie_node *trie;
    uint32_t n_trie, trie_cap;
    uint32_t trie_root[256]; /* 0: no special token starts with this byte */
};

/* The id of a token by its text in the file; TOKEN_NONE. */
uint32_t tokenizer_find(const struct tokenizer *t, const char *s, size_t len);

/* tokenizer_bpe.c */
enum err tokenizer_bpe_init(struct tokenizer *t);
enum err tokenizer_bpe_encode(const struct tokenizer *t, const char *text, size_t len, struct tokens *out);
void tokenizer_bpe_bytes(const struct gguf_str *token, struct buf *out);

/* tokenizer_spm.c */
enum err tokenizer_spm_init(struct tokenizer *t);
enum err tokenizer_spm_encode(const struct tokenizer *t, const char *text, size_t len, bool space_first,
                              struct tokens *out);
void tokenizer_spm_bytes(const struct tokenizer *t, uint32_t id, struct buf *out);

#endif
