/* See charsmap.h. */
#include "text/charsmap.h"

#include "text/utf8.h"

#include <string.h>
#include <utf8proc.h>

static uint32_t unit_at(const struct charsmap *c, size_t i)
{
    const uint8_t *p = c->units + 4 * i;
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static size_t offset_of(uint32_t unit)
{
    return (size_t)(unit >> 10) << ((unit & 1u << 9) >> 6);
}

enum err charsmap_init(struct charsmap *c, const void *bytes, size_t len)
{
    memset(c, 0, sizeof(*c));
    if (len == 0)
        return ERR_OK;
    const uint8_t *p = bytes;
    c->units = p; /* for the size before them */
    size_t trie = len < 4 ? SIZE_MAX : unit_at(c, 0);
    if (trie > len - 4 || trie % 4 != 0)
        return err_set(ERR_CORRUPT, "precompiled_charsmap: %zu bytes do not hold the trie that it announces", len);
    c->units = p + 4;
    c->n_units = trie / 4;
    c->texts = (const char *)p + 4 + trie;
    c->texts_len = len - 4 - trie;
    return ERR_OK;
}

size_t charsmap_find(const struct charsmap *c, const char *s, size_t len, bool shortest, const char **text,
                     size_t *text_len)
{
    if (c->n_units == 0)
        return 0;
    size_t best = 0, node = offset_of(unit_at(c, 0));
    for (size_t i = 0; i < len && s[i] != 0; i++) {
        node ^= (uint8_t)s[i];
        if (node >= c->n_units)
            break;
        uint32_t unit = unit_at(c, node);
        if ((unit & 0x800000FFu) != (uint8_t)s[i])
            break;
        node ^= offset_of(unit);
        if (!(unit >> 8 & 1) || node >= c->n_units)
            continue;
        size_t at = unit_at(c, node) & 0x7FFFFFFFu;
        const char *end = at < c->texts_len ? memchr(c->texts + at, 0, c->texts_len - at) : NULL;
        if (!end)
            continue;
        best = i + 1;
        *text = c->texts + at;
        *text_len = (size_t)(end - *text);
        if (shortest)
            break;
    }
    return best;
}

size_t charsmap_next(const struct charsmap *c, const char *s, size_t len, const char **text, size_t *text_len)
{
    size_t n = charsmap_find(c, s, len, false, text, text_len);
    if (n > 0)
        return n;
    uint32_t cp;
    size_t bad;
    bool cut;
    n = utf8_decode(s, len, &cp, &bad, &cut);
    *text = n > 0 ? s : "\xEF\xBF\xBD";
    *text_len = n > 0 ? n : 3;
    return n > 0 ? n : bad;
}

enum { GRAPHEME_MAX = 6 };

static void replace_grapheme(const struct charsmap *c, const char *s, size_t len, struct buf *out)
{
    const char *text;
    size_t n, text_len;
    if (len < GRAPHEME_MAX && charsmap_find(c, s, len, true, &text, &text_len) > 0) {
        buf_append(out, text, text_len);
        return;
    }
    for (size_t i = 0; i < len; i += n) {
        n = utf8_len_valid((unsigned char)s[i]);
        if (charsmap_find(c, s + i, n, true, &text, &text_len) > 0)
            buf_append(out, text, text_len);
        else
            buf_append(out, s + i, n);
    }
}

void charsmap_graphemes(const struct charsmap *c, const char *s, size_t len, struct buf *out)
{
    utf8proc_int32_t state = 0;
    uint32_t before = 0, cp = 0;
    size_t from = 0, bad;
    bool cut;
    for (size_t i = 0; i < len;) {
        size_t n = utf8_decode(s + i, len - i, &cp, &bad, &cut);
        if (i > 0 && utf8proc_grapheme_break_stateful((utf8proc_int32_t)before, (utf8proc_int32_t)cp, &state)) {
            replace_grapheme(c, s + from, i - from, out);
            from = i;
        }
        before = cp;
        i += n;
    }
    replace_grapheme(c, s + from, len - from, out);
}
