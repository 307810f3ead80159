/* UTF-8, strictly as Unicode defines it (no surrogates, no overlong forms, nothing above U+10FFFF). Header only. */
#ifndef TEXT_UTF8_H
#define TEXT_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Length of the character that starts with this byte, in text that is known to be valid. */
static inline size_t utf8_len_valid(unsigned char c)
{
    return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

/* Decodes the character at s[0..len). Returns its length (1 to 4) and the code point; 0 when it is invalid or cut off,
 * and then *bad is the number of bytes that stand for one U+FFFD (the longest beginning of a valid character, at least
 * 1) and *cut says that s ends inside it. */
static inline size_t utf8_decode(const char *text, size_t len, uint32_t *cp, size_t *bad, bool *cut)
{
    const unsigned char *s = (const unsigned char *)text;
    *bad = 1;
    *cut = false;
    if (len == 0) {
        *bad = 0;
        return 0;
    }
    unsigned char c = s[0];
    if (c < 0x80) {
        *cp = c;
        return 1;
    }
    if (c < 0xC2 || c > 0xF4)
        return 0;
    size_t n = utf8_len_valid(c);
    unsigned char lo = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80, hi = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    uint32_t v = c & (0x7Fu >> n);
    for (size_t i = 1; i < n; i++) {
        if (i == len) {
            *cut = true;
            return 0;
        }
        if (s[i] < lo || s[i] > hi)
            return 0;
        v = v << 6 | (s[i] & 0x3Fu);
        *bad = i + 1;
        lo = 0x80;
        hi = 0xBF;
    }
    *cp = v;
    return n;
}

/* Bytes at the start of s that are whole valid characters. */
static inline size_t utf8_valid_prefix(const char *s, size_t len)
{
    size_t i = 0;
    while (i < len) {
        if ((unsigned char)s[i] < 0x80) {
            i++;
            continue;
        }
        uint32_t cp;
        size_t bad;
        bool cut;
        size_t n = utf8_decode(s + i, len - i, &cp, &bad, &cut);
        if (n == 0)
            break;
        i += n;
    }
    return i;
}

/* Writes the character; returns its length. out has room for 4 bytes; cp is a scalar value. */
static inline size_t utf8_encode(uint32_t cp, char *out)
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

#endif
