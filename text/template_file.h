/* Chat templates as they lie beside models: chat_template.jinja, or the member `chat_template` of a tokenizer_config.json. */
#ifndef TEXT_TEMPLATE_FILE_H
#define TEXT_TEMPLATE_FILE_H

#include "base/buf.h"

/* The template's source; the caller frees *out. A name that ends in .json is such an object: its template is a string, or a list of named ones of
 * which "default" is taken. ERR_NOT_FOUND, ERR_IO, ERR_TOO_BIG, ERR_CORRUPT (no JSON), ERR_INVALID (no template in it); all name the file. */
enum err template_file_read(const char *path, struct buf *out);
/* The template of that name ("tool_use": for requests with tools); ERR_NOT_FOUND where the file has none. */
enum err template_file_read_named(const char *path, const char *name, struct buf *out);

#endif
