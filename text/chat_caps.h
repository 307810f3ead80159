/* What a chat template wants of the messages it is given, found out once by rendering small conversations and looking what became of them. OpenAI's
 * shape leaves room where templates do not: content as a string or as a list of parts, a tool call's arguments as JSON text or as an object. */
#ifndef TEXT_CHAT_CAPS_H
#define TEXT_CHAT_CAPS_H

#include "text/chat_template.h"
#include "text/reasoning.h"

struct chat_caps {
    bool parts;            /* a message's content must be a list of parts */
    bool object_arguments; /* tool calls: the arguments as an object */
    bool developer;        /* the role is known; else it is system's */
    const struct reasoning_format *reasoning; /* NULL: none */
};
/* source: the template's text. Never fails: a template that renders none of the probes gets what most want. */
void chat_caps_find(const struct chat_template *t, const char *source, size_t len, const char *bos, const char *eos, struct chat_caps *out);

#endif
