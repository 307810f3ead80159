/* Jinja source to tokens, with the white-space control that Hugging Face sets (trim_blocks, lstrip_blocks; one last
 * newline is dropped). Private to the chat template. */
#ifndef TEXT_TEMPLATE_LEXER_H
#define TEXT_TEMPLATE_LEXER_H

#include "base/arena.h"
#include "base/err.h"

#include <stdint.h>

enum template_token_type {
    TT_TEXT,
    TT_PRINT,
    TT_PRINT_END,
    TT_BLOCK,
    TT_BLOCK_END,
    TT_NAME,
    TT_STR,
    TT_INT,
    TT_FLOAT,
    TT_OP,
    TT_EOF,
};
enum {
    OP_EQ = 128,
    OP_NE,
    OP_LE,
    OP_GE,
    OP_FLOORDIV,
    OP_POW
}; /* operators of two characters; the others are the character itself */

struct template_token {
    uint8_t type;
    int op;
    uint32_t line, col;
    const char *s; /* text, name, the string's value, digits (op: their base); in the arena */
    size_t len;
    int64_t i; /* -1: only the digits say it */
    double f;
};

/* All tokens, ending with TT_EOF. ERR_INVALID with line and column; ERR_TOO_BIG past the arena's limit. */
enum err template_lexer_run(struct arena *a, const char *source, size_t len, struct template_token **out, size_t *n);

#endif
