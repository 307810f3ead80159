/* The normalizer of a tokenizer.json: text to text, before added tokens that want it and the pre-tokeniser. Linear in the
 * text, whatever it is. Immutable once made: any thread may use it. */
#ifndef TEXT_NORMALIZER_H
#define TEXT_NORMALIZER_H

#include "base/buf.h"
#include "model/tokenizer_json.h"

struct normalizer;
/* j outlives it. ERR_UNSUPPORTED, ERR_CORRUPT name the step. */
enum err normalizer_create(const struct tokenizer_json *j, struct normalizer **out);
void normalizer_destroy(struct normalizer **n);
/* s is valid UTF-8; out is cleared first. */
enum err normalizer_run(const struct normalizer *n, const char *s, size_t len, struct buf *out);
/* Without any step text stays as it is: no need to copy it. */
bool normalizer_is_empty(const struct normalizer *n);

/* White_Space of Unicode. */
bool normalizer_is_white(uint32_t cp);
/* The character by which byte-level tokenizers write a byte. */
void normalizer_byte_level(const char *s, size_t len, struct buf *out);

enum normalizer_form { NORMALIZER_NFC, NORMALIZER_NFD, NORMALIZER_NFKC, NORMALIZER_NFKD };
/* A Unicode normalisation form (UAX #15), appended. s is valid UTF-8. */
enum err normalizer_unicode(enum normalizer_form form, const char *s, size_t len, struct buf *out);

#endif
