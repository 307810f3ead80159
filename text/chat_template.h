/* Chat templates: a subset of Jinja, compiled once, rendered with budgets, with the settings of Hugging Face
 * (trim_blocks, lstrip_blocks, an immutable sandbox, its tojson). The language is in template_*.c. Templates come from
 * model files only. Thread-safe once made. */
#ifndef TEXT_CHAT_TEMPLATE_H
#define TEXT_CHAT_TEMPLATE_H

#include "base/buf.h"

#include <jansson.h>
#include <time.h>

struct chat_template;
/* ERR_INVALID with line and column and what is not known. */
enum err chat_template_create(const char *source, size_t len, struct chat_template **out);
void chat_template_destroy(struct chat_template **t);
/* context: an object with messages, add_generation_prompt, bos_token, eos_token, tools ... ERR_INVALID: raise_exception
 * or a type error of the template, its text in err_detail(); ERR_TOO_BIG: a budget (steps, output, depth, time). */
enum err chat_template_render(const struct chat_template *t, const json_t *context, struct buf *out);
/* The same at a given time (strftime_now), for tests and tools. */
enum err chat_template_render_at(const struct chat_template *t, const json_t *context, time_t now, struct buf *out);

#endif
