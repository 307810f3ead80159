/* The unigram language model of SentencePiece (Kudo 2018): of all ways to write a text as pieces, the one whose scores
 * add up to most (Viterbi). Time is linear in the text: a place costs at most the longest piece. Memory is that of the
 * longest stretch without a place that every way passes through. Immutable once made: any thread may use it. */
#ifndef TEXT_TOKENIZER_UNIGRAM_H
#define TEXT_TOKENIZER_UNIGRAM_H

#include "text/tokenizer.h"
#include "text/trie.h"

struct tokenizer_unigram {
    struct trie trie;     /* the pieces */
    const double *scores; /* by id */
    double *own_scores;   /* of a GGUF file, widened; else NULL */
    double unk_score;
    uint32_t unk;           /* TRIE_NONE: characters that no piece covers are left out */
    uint32_t byte_ids[256]; /* or TRIE_NONE */
    bool fuse_unk;          /* adjacent unknown characters are one piece */
    bool byte_fallback;     /* unknown text is spelled out in bytes where there is a token for each */
};
/* v->kind is VOCAB_UNIGRAM; v outlives it. */
enum err tokenizer_unigram_create(const struct vocab *v, struct tokenizer_unigram **out);
void tokenizer_unigram_destroy(struct tokenizer_unigram **u);
/* Text that is normalised already, valid UTF-8. */
enum err tokenizer_unigram_pieces(const struct tokenizer_unigram *u, const char *s, size_t len, struct tokens *out);
/* One stretch of text as a GGUF file's fields say: normalised (charsmap, spaces), then cut. */
enum err tokenizer_unigram_encode(const struct tokenizer_unigram *u, const struct vocab *v, const char *s, size_t len,
                                  bool space_first, struct tokens *out);

#endif
