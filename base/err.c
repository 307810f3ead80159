/* The table of errors.def and the thread's line of detail (err.h). */
#include "base/err.h"

#include "base/check.h"

#include <stdarg.h>
#include <stdio.h>

static const struct {
    const char *name, *text;
    int http_status;
    bool retry;
} rows[ERR_COUNT] = {
#define ERR(sym, http, retry_, text_) {#sym, text_, http, retry_},
#include "base/errors.def"
#undef ERR
};

static _Thread_local char detail[512];

/* A number from the wire may be none of ours. */
static unsigned row_of(enum err e)
{
    return (unsigned)e < ERR_COUNT ? (unsigned)e : ERR_INTERNAL;
}

const char *err_name(enum err e)
{
    return rows[row_of(e)].name;
}

const char *err_text(enum err e)
{
    return rows[row_of(e)].text;
}

int err_http_status(enum err e)
{
    return rows[row_of(e)].http_status;
}

bool err_retry(enum err e)
{
    return rows[row_of(e)].retry;
}

enum err err_set(enum err e, const char *fmt, ...)
{
    /* The old detail is often an argument of the new one: format aside, then copy. */
    char line[sizeof detail];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    size_t len = n < 0 ? 0 : MIN((size_t)n, sizeof line - 1);
    if (n >= (int)sizeof line) { /* cut: drop a last character that may not be whole */
        while (len > 0 && ((unsigned char)line[len - 1] & 0xC0) == 0x80)
            len--;
        if (len > 0 && (unsigned char)line[len - 1] >= 0xC0)
            len--;
    }
    for (size_t i = 0; i < len; i++)
        detail[i] = line[i];
    detail[len] = 0;
    return e;
}

const char *err_detail(void)
{
    return detail;
}

void err_clear(void)
{
    detail[0] = 0;
}
