/* The thinking part of an answer, told from the rest as the text comes. Which marks a model uses is read off its chat template; whether a prompt
 * leaves the thinking open (the template wrote the opening mark itself) or shut, off the prompt's end.
 *
 * Two ways of marking are known: a pair of tags around the thinking, which stands first in an answer, and channels, where every part of an answer has
 * a header that names it. White space around the thinking goes away with the marks. Text only: the caller makes the detokenizer show marks that are
 * control tokens (reasoning_marks). Formats are constants; a splitter is used by one thread. */
#ifndef TEXT_REASONING_H
#define TEXT_REASONING_H

#include "base/buf.h"

struct reasoning_format {
    const char *open, *close;   /* tags; NULL: channels */
    const char *sign;           /* what of it a template shows */
    const char *drop[4];        /* marks around the answer proper, which nobody wants to read */
};
/* NULL: the template says nothing of thinking. */
const struct reasoning_format *reasoning_find(const char *source, size_t len);
/* The marks of a format, one by one, for i = 0 ...; NULL after the last. */
const char *reasoning_mark(const struct reasoning_format *f, uint32_t i);

enum reasoning_state {
    REASONING_START,   /* an opening mark may come */
    REASONING_THOUGHT,
    REASONING_CONTENT,
    REASONING_HEADER,  /* channels: between parts */
};
struct reasoning {
    const struct reasoning_format *f;
    enum reasoning_state state;
    bool trim;       /* white space at the beginning of this part is left out */
    struct buf held; /* what may be, or come before, a mark */
};
/* prompt: what the template wrote, to its end. f NULL: everything is content. */
void reasoning_init(struct reasoning *r, const struct reasoning_format *f, const char *prompt, size_t len);
void reasoning_deinit(struct reasoning *r);
/* Appends what is certain to one of the two. */
void reasoning_push(struct reasoning *r, const char *text, size_t len, struct buf *thought, struct buf *content);
/* The end of the answer: what was held back. */
void reasoning_finish(struct reasoning *r, struct buf *thought, struct buf *content);

#endif
