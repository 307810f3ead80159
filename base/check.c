/* The end of a process that found a bug in itself (check.h). Writes with write(2) and no allocation, since the heap may
 * be what is broken. */
#include "base/check.h"

#include <execinfo.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local char context[128];

void check_context(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(context, sizeof context, fmt, ap);
    va_end(ap);
}

void check_failed(const char *file, int line, const char *cond)
{
    char text[512];
    int n = snprintf(text, sizeof text, "%s:%d: ASSERT(%s) failed%s%s\n", file, line, cond, context[0] ? ": " : "",
                     context);
    if (n > 0) {
        size_t len = MIN((size_t)n, sizeof text - 1);
        ssize_t done = write(STDERR_FILENO, text, len);
        (void)done;
    }
    void *frames[64];
    backtrace_symbols_fd(frames, backtrace(frames, (int)ARRAY_LEN(frames)), STDERR_FILENO);
    abort();
}
