/* A growable byte buffer, always followed by a NUL that is not counted. Not thread-safe.
 * Out of memory is remembered (buf->failed) and every later append is ignored, so that a writer of many
 * pieces checks once at the end. */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf {
    char *data;  /* owned; NULL while empty */
    size_t len, cap;
    bool failed;
};

void buf_init(struct buf *b);
void buf_deinit(struct buf *b);
void buf_clear(struct buf *b); /* len = 0, failed = false, keeps the memory */
bool buf_reserve(struct buf *b, size_t extra);
void buf_append(struct buf *b, const void *p, size_t len);
void buf_puts(struct buf *b, const char *s);
void buf_putc(struct buf *b, char c);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* A JSON string with its quotes; bytes that are no UTF-8 become U+FFFD. */
void buf_json_str(struct buf *b, const char *s, size_t len);
/* A finite double in the shortest form that reads back equal; NaN and infinities become null. */
void buf_json_double(struct buf *b, double v);
/* Gives the memory to the caller (free()); the buffer is empty afterwards. */
char *buf_take(struct buf *b, size_t *len);
/* The whole file, at most max bytes; ERR_NOT_FOUND, ERR_TOO_BIG, ERR_IO. */
enum err buf_read_file(struct buf *b, const char *path, size_t max);

#endif
