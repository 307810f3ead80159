/* The growable byte buffer of buf.h, and the JSON scalars that hot paths write by hand. */
#include "base/buf.h"

#include "base/check.h"

#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

void buf_init(struct buf *b)
{
    *b = (struct buf){0};
}

void buf_deinit(struct buf *b)
{
    free(b->data);
    *b = (struct buf){0};
}

void buf_clear(struct buf *b)
{
    b->len = 0;
    b->failed = false;
    if (b->data)
        b->data[0] = 0;
}

/* Room for `extra` more bytes and the NUL. */
bool buf_reserve(struct buf *b, size_t extra)
{
    if (b->failed)
        return false;
    if (extra < b->cap - b->len) /* cap is 0 or greater than len */
        return true;
    uint64_t need;
    if (!check_add(b->len, extra, &need) || need > SIZE_MAX / 2) {
        b->failed = true;
        return false;
    }
    size_t cap = MAX((size_t)need + 1, MAX(b->cap + b->cap / 2, (size_t)64));
    char *data = realloc(b->data, cap);
    if (!data) {
        b->failed = true;
        return false;
    }
    b->data = data;
    b->cap = cap;
    b->data[b->len] = 0;
    return true;
}

void buf_append(struct buf *b, const void *p, size_t len)
{
    if (!buf_reserve(b, len))
        return;
    if (len)
        memcpy(b->data + b->len, p, len);
    b->len += len;
    b->data[b->len] = 0;
}

void buf_puts(struct buf *b, const char *s)
{
    buf_append(b, s, strlen(s));
}

void buf_putc(struct buf *b, char c)
{
    buf_append(b, &c, 1);
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    for (int round = 0; round < 2; round++) {
        if (b->failed)
            return;
        size_t room = b->cap - b->len;
        va_list ap;
        va_start(ap, fmt);
        int n = vsnprintf(room ? b->data + b->len : NULL, room, fmt, ap);
        va_end(ap);
        if (n < 0) {
            b->failed = true;
            return;
        }
        if ((size_t)n < room) {
            b->len += (size_t)n;
            return;
        }
        if (b->data)
            b->data[b->len] = 0; /* what was cut is written again */
        if (!buf_reserve(b, (size_t)n))
            return;
    }
}

/* The length of the well-formed UTF-8 sequence at s (Unicode 15, table 3-7), 0 when there is none. */
static size_t utf8_len(const unsigned char *s, size_t len)
{
    unsigned char c = s[0];
    if (c < 0x80)
        return 1;
    if (c < 0xC2 || c > 0xF4)
        return 0;
    size_t n = c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    if (len < n)
        return 0;
    unsigned char lo = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80;
    unsigned char hi = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    if (s[1] < lo || s[1] > hi)
        return 0;
    for (size_t i = 2; i < n; i++)
        if (s[i] < 0x80 || s[i] > 0xBF)
            return 0;
    return n;
}

static void json_control(struct buf *b, unsigned char c)
{
    switch (c) {
    case '"':
        buf_append(b, "\\\"", 2);
        break;
    case '\\':
        buf_append(b, "\\\\", 2);
        break;
    case '\n':
        buf_append(b, "\\n", 2);
        break;
    case '\r':
        buf_append(b, "\\r", 2);
        break;
    case '\t':
        buf_append(b, "\\t", 2);
        break;
    default:
        buf_printf(b, "\\u%04x", c);
    }
}

void buf_json_str(struct buf *b, const char *str, size_t len)
{
    const unsigned char *s = (const unsigned char *)str;
    buf_putc(b, '"');
    size_t from = 0, i = 0; /* [from, i) is copied as it is */
    while (i < len) {
        unsigned char c = s[i];
        size_t n = utf8_len(s + i, len - i);
        if (n && c >= 0x20 && c != '"' && c != '\\' && c != 0x7F) {
            i += n;
            continue;
        }
        buf_append(b, s + from, i - from);
        if (n)
            json_control(b, c);
        else
            buf_puts(b, "\xEF\xBF\xBD");
        from = ++i;
    }
    buf_append(b, s + from, len - from);
    buf_putc(b, '"');
}

void buf_json_double(struct buf *b, double v)
{
    if (!isfinite(v)) {
        buf_puts(b, "null");
        return;
    }
    char text[40];
    /* 15 digits always survive a round trip of a normal number, so fewer need no trying: %g drops the zeros. */
    for (int digits = fabs(v) < DBL_MIN ? 1 : 15; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    buf_puts(b, text);
}

char *buf_take(struct buf *b, size_t *len)
{
    char *data = b->data;
    if (len)
        *len = b->len;
    *b = (struct buf){0};
    return data;
}

enum err buf_read_file(struct buf *b, const char *path, size_t max)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not hang the start */
    if (fd < 0) {
        bool missing = errno == ENOENT || errno == ENOTDIR;
        return err_set(missing ? ERR_NOT_FOUND : ERR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    }
    enum err e = ERR_OK;
    struct stat st;
    if (fstat(fd, &st) || S_ISDIR(st.st_mode)) {
        e = err_set(ERR_IO, "%s: not a readable file", path);
        goto done;
    }
    size_t total = 0;
    for (;;) {
        size_t want = S_ISREG(st.st_mode) && (size_t)st.st_size > total ? (size_t)st.st_size - total : 4096;
        if (want > max - total)
            want = max - total + 1; /* one more tells that there is more */
        if (!buf_reserve(b, want)) {
            e = err_set(ERR_NOMEM, "%s: no memory to read it", path);
            goto done;
        }
        ssize_t n = read(fd, b->data + b->len, want);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            e = err_set(ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
            goto done;
        }
        if (n == 0)
            break;
        b->len += (size_t)n;
        b->data[b->len] = 0;
        total += (size_t)n;
        if (total > max) {
            e = err_set(ERR_TOO_BIG, "%s: larger than %zu bytes", path, max);
            goto done;
        }
    }
done:
    close(fd);
    return e;
}
