/* See detokenizer.h. */
#include "text/detokenizer.h"

#include "base/check.h"
#include "text/utf8.h"

#include <string.h>

void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, const char *const *stops, uint32_t n_stops,
                      bool special)
{
    const struct vocab *v = tokenizer_vocab(t);
    *d = (struct detokenizer){.tok = t, .stops = stops, .n_stops = n_stops, .special = special, .stop_idx = -1};
    d->first = v->strip_space;
    buf_init(&d->held);
    buf_init(&d->piece);
}

void detokenizer_continue(struct detokenizer *d)
{
    d->first = false;
}

void detokenizer_deinit(struct detokenizer *d)
{
    buf_deinit(&d->held);
    buf_deinit(&d->piece);
}

/* True when a stop string ends at byte `end` of the held text; the longest one. */
static bool stop_ends(struct detokenizer *d, size_t end, size_t *start)
{
    size_t best = 0;
    for (uint32_t i = 0; i < d->n_stops; i++) {
        size_t n = strlen(d->stops[i]);
        if (n > best && n <= end && memcmp(d->held.data + end - n, d->stops[i], n) == 0) {
            best = n;
            d->stop_idx = (int)i;
        }
    }
    *start = end - best;
    return best > 0;
}

/* Bytes at the end of the held text that may begin a stop string. */
static size_t stop_begins(const struct detokenizer *d)
{
    size_t best = 0;
    for (uint32_t i = 0; i < d->n_stops; i++) {
        size_t n = strlen(d->stops[i]);
        for (size_t k = n == 0 ? 0 : MIN(n - 1, d->held.len); k > best; k--)
            if (memcmp(d->held.data + d->held.len - k, d->stops[i], k) == 0)
                best = k;
    }
    return best;
}

static void give(struct detokenizer *d, size_t len, struct buf *out)
{
    if (len == 0)
        return;
    buf_append(out, d->held.data, len);
    memmove(d->held.data, d->held.data + len, d->held.len - len);
    d->held.len -= len;
    d->held.data[d->held.len] = 0;
}

/* Looks at the bytes of held text from `seen` on. */
static void scan(struct detokenizer *d, size_t seen, struct buf *out)
{
    for (size_t end = seen + 1; d->n_stops > 0 && end <= d->held.len; end++) {
        size_t start;
        if (stop_ends(d, end, &start)) {
            give(d, start, out);
            buf_clear(&d->held);
            d->stopped = true;
            return;
        }
    }
    give(d, d->held.len - stop_begins(d), out);
}

/* Bytes of a token to whole characters in held; an unfinished one waits in part. */
static void take(struct detokenizer *d, const char *s, size_t len)
{
    size_t i = 0;
    while (i < len) {
        char join[8];
        const char *p = s + i;
        size_t n = len - i;
        if (d->n_part > 0) {
            n = MIN(n, sizeof(join) - d->n_part);
            memcpy(join, d->part, d->n_part);
            memcpy(join + d->n_part, s + i, n);
            p = join;
            n += d->n_part;
        }
        uint32_t cp;
        size_t bad;
        bool cut;
        size_t k = utf8_decode(p, n, &cp, &bad, &cut);
        if (cut) {
            ASSERT(n < sizeof(d->part));
            memcpy(d->part, p, n);
            d->n_part = (uint8_t)n;
            return;
        }
        if (k > 0)
            buf_append(&d->held, p, k);
        else
            buf_puts(&d->held, "\xEF\xBF\xBD");
        k = k == 0 ? bad : k;
        ASSERT(k >= d->n_part);
        i += k - d->n_part;
        d->n_part = 0;
    }
}

static bool is_shown(const struct detokenizer *d, uint32_t id)
{
    for (uint32_t i = 0; i < d->n_shown; i++)
        if (d->shown[i] == id)
            return true;
    return false;
}

bool detokenizer_push(struct detokenizer *d, uint32_t id, struct buf *out)
{
    if (d->stopped)
        return true;
    buf_clear(&d->piece);
    tokenizer_piece(d->tok, id, d->special || is_shown(d, id), &d->piece);
    size_t skip = 0;
    if (d->piece.len > 0 && d->first) {
        const struct vocab *v = tokenizer_vocab(d->tok);
        bool special = v->types != NULL && (v->types[id] == VOCAB_CONTROL || v->types[id] == VOCAB_UNKNOWN);
        skip = !special && d->piece.data[0] == ' ' ? 1 : 0;
        d->first = special;
    }
    size_t seen = d->held.len;
    if (d->piece.len > skip)
        take(d, d->piece.data + skip, d->piece.len - skip);
    scan(d, seen, out);
    return d->stopped;
}

void detokenizer_finish(struct detokenizer *d, struct buf *out)
{
    if (!d->stopped && d->n_part > 0) {
        size_t seen = d->held.len;
        buf_puts(&d->held, "\xEF\xBF\xBD");
        d->n_part = 0;
        scan(d, seen, out);
    }
    if (!d->stopped)
        give(d, d->held.len, out);
}
