/* Text to ids as a tokenizer.json says (the way of the library `tokenizers`): added tokens are taken out of the text,
 * what lies between is normalised, cut into pieces (splitter.h) and given to the model (BPE or Unigram); the
 * post-processor's ids stand around the whole. Private to tokenizer*.c. Immutable once made: any thread may use it. */
#ifndef TEXT_TOKENIZER_HF_H
#define TEXT_TOKENIZER_HF_H

#include "text/tokenizer.h"

struct tokenizer_hf;
/* t has its vocabulary and token index already. ERR_UNSUPPORTED names the component. */
enum err tokenizer_hf_create(const struct tokenizer *t, struct tokenizer_hf **out);
void tokenizer_hf_destroy(struct tokenizer_hf **h);
struct tokenizer_work;
enum err tokenizer_hf_encode(const struct tokenizer_hf *h, struct tokenizer_work *w, const char *text, size_t len,
                             unsigned flags, struct tokens *out);
/* The bytes of a token of the model (no added one). */
struct buf;
void tokenizer_hf_piece(const struct tokenizer_hf *h, uint32_t id, struct buf *out);

#endif
