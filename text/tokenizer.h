/* Text to token ids. Algorithms: SentencePiece BPE with byte fallback (vocab kind `llama`), byte-level BPE with the pre-tokeniser that the file
 * names (`gpt2`), SentencePiece unigram (`t5`), and what a tokenizer.json says (tokenizer_hf.h). Immutable after creation: any thread may use it. Linear in the text up to a logarithm. */
#ifndef TEXT_TOKENIZER_H
#define TEXT_TOKENIZER_H

#include "base/err.h"
#include "model/vocab.h"

#include <stdbool.h>
#include <stddef.h>

struct tokenizer;
struct tokens { /* growable array of ids */
    uint32_t *ids;
    size_t n, cap;
};
void tokens_deinit(struct tokens *t);
enum err tokens_push(struct tokens *t, uint32_t id);

/* v must outlive it. ERR_UNSUPPORTED names an unknown pre-tokeniser and the known ones. */
enum err tokenizer_create(const struct vocab *v, struct tokenizer **out);
void tokenizer_destroy(struct tokenizer **t);
const struct vocab *tokenizer_vocab(const struct tokenizer *t);

enum tokenizer_flags {
    TOKENIZER_SPECIAL = 1, /* add BOS/EOS as the model wants */
    TOKENIZER_PARSE = 2,   /* recognise control tokens written in the text (chat templates); user-defined ones always are */
};
/* Appends to out. text may hold any bytes (bad UTF-8 becomes what the algorithm defines: bytes, or U+FFFD before the pattern). */
enum err tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags, struct tokens *out);
/* The bytes of one id, appended to out: special tokens give nothing unless `special`. */
struct buf;
void tokenizer_piece(const struct tokenizer *t, uint32_t id, bool special, struct buf *out);
/* Ids that end a turn: eos, eot, eom and control tokens known to (<|im_end|>, <|eot_id|>, <|end_of_text|>, <end_of_turn> ...). Returns how many. */
uint32_t tokenizer_end_ids(const struct tokenizer *t, uint32_t *ids, uint32_t cap);

#endif
