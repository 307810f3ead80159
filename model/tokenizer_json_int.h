/* What the two halves of the tokenizer.json reader share. Private to model/tokenizer_json*.c. */
#ifndef MODEL_TOKENIZER_JSON_INT_H
#define MODEL_TOKENIZER_JSON_INT_H

#include "model/tokenizer_json.h"

#include <jansson.h>
#include <string.h>

/* A copy of a JSON string in the arena; false when it is none or memory ends. */
bool tokenizer_json_str(struct tokenizer_json *j, const json_t *s, struct gguf_str *out);
/* o[key] as a flag; `def` when it is absent or null. ERR_CORRUPT names `what`. */
enum err tokenizer_json_flag(const json_t *o, const char *what, const char *key, bool def, bool *out);
/* tokenizer_json_steps.c: normalizer, pre_tokenizer and decoder of the file, and what the post-processor adds. */
enum err tokenizer_json_steps(struct tokenizer_json *j, const json_t *root);
enum err tokenizer_json_post(struct tokenizer_json *j, const struct vocab *v, const json_t *root);

#endif
