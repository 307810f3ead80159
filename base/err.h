/* Operating failures: an enum from errors.def, a text with the values, and the macros that pass them up.
 *
 * A function that can fail returns enum err, ERR_OK (0) on success. The place that finds the failure calls
 * err_set(), which keeps one line of text per thread with what, where and what to do; callers only pass the
 * value up. Bugs are ASSERT (check.h); bad requests are kept on the request and rendered by the API. */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stdbool.h>

enum err {
#define ERR(sym, http, retry, text) ERR_##sym,
#include "base/errors.def"
#undef ERR
    ERR_COUNT
};

const char *err_name(enum err e);  /* "NOT_FOUND"; static storage */
const char *err_text(enum err e);  /* the sentence of errors.def */
int err_http_status(enum err e);
bool err_retry(enum err e);

/* Keeps the formatted line as this thread's detail (512 bytes, cut at the end) and returns e. */
enum err err_set(enum err e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The detail of the last err_set of this thread; "" when none. Valid until the next err_set of this thread. */
const char *err_detail(void);
void err_clear(void);

#define TRY(x)                       \
    do {                             \
        enum err try_e_ = (x);       \
        if (try_e_ != ERR_OK)        \
            return try_e_;           \
    } while (0)

/* Needs a local `enum err e`. */
#define TRY_GOTO(x, label)           \
    do {                             \
        e = (x);                     \
        if (e != ERR_OK)             \
            goto label;              \
    } while (0)

#endif
