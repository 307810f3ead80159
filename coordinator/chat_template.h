/* Chat templates: a subset of Jinja, compiled once, rendered with budgets. This first part knows what Llama 3, ChatML, Mistral and the demo's
 * templates need; the language grows in its own files (template_*.c). Templates come from model files only. Thread-safe once made. */
#ifndef COORDINATOR_CHAT_TEMPLATE_H
#define COORDINATOR_CHAT_TEMPLATE_H

#include "base/buf.h"

#include <jansson.h>

struct chat_template;
/* ERR_INVALID with line and column and what is not known. */
enum err chat_template_create(const char *source, size_t len, struct chat_template **out);
void chat_template_destroy(struct chat_template **t);
/* context: an object with messages, add_generation_prompt, bos_token, eos_token, tools ... ERR_INVALID: raise_exception or a type error of the
 * template, its text in err_detail(); ERR_TOO_BIG: a budget (steps, output, depth, time). */
enum err chat_template_render(const struct chat_template *t, const json_t *context, struct buf *out);

#endif
