/* Characters as Python's str knows them: code points, their classes, case mapping with the letters that grow, stripping,
 * lines. Categories and single-letter mappings are utf8proc's; what it lacks is in template_unicode.def. */
#include "base/check.h"
#include "text/template_value.h"
#include "text/utf8.h"

#include <string.h>
#include <utf8proc.h>

struct range {
    uint32_t first, last;
};
struct casing {
    uint32_t cp;
    const char *upper, *title;
};

static const struct range digits[] = {
#define DIGITS(a, b) {a, b},
#include "text/template_unicode.def"
};
static const struct range numerals[] = {
#define NUMERALS(a, b) {a, b},
#include "text/template_unicode.def"
};
static const struct range lowers[] = {
#define LOWERS(a, b) {a, b},
#include "text/template_unicode.def"
};
static const struct range uppers[] = {
#define UPPERS(a, b) {a, b},
#include "text/template_unicode.def"
};
static const struct casing casings[] = {
#define CASING(cp, upper, title) {cp, upper, title},
#include "text/template_unicode.def"
};

static bool among(const struct range *t, size_t n, uint32_t cp)
{
    size_t lo = 0, hi = n;
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (cp > t[mid].last)
            lo = mid + 1;
        else if (cp < t[mid].first)
            hi = mid;
        else
            return true;
    }
    return false;
}

#define AMONG(table, cp) among(table, ARRAY_LEN(table), cp)

bool template_is_space(uint32_t cp)
{
    return (cp >= 9 && cp <= 13) || (cp >= 28 && cp <= 32) || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F || cp == 0x3000;
}

static bool in_category(uint32_t cp, uint32_t set)
{
    return (set >> (unsigned)utf8proc_category((utf8proc_int32_t)cp) & 1) != 0;
}

#define CAT(x) (1u << UTF8PROC_CATEGORY_##x)

bool template_char_is(uint32_t cp, enum template_class c)
{
    enum { LETTERS = CAT(LU) | CAT(LL) | CAT(LT) | CAT(LM) | CAT(LO) };
    switch (c) {
    case TC_SPACE:
        return template_is_space(cp);
    case TC_ALPHA:
        return cp < 128 ? (cp | 32) >= 'a' && (cp | 32) <= 'z' : in_category(cp, LETTERS);
    case TC_DECIMAL:
        return cp < 128 ? cp >= '0' && cp <= '9' : in_category(cp, CAT(ND));
    case TC_DIGIT:
        return template_char_is(cp, TC_DECIMAL) || AMONG(digits, cp);
    case TC_NUMERIC:
        return in_category(cp, CAT(ND) | CAT(NL) | CAT(NO)) || AMONG(numerals, cp);
    case TC_ALNUM:
        return template_char_is(cp, TC_ALPHA) || template_char_is(cp, TC_NUMERIC);
    case TC_PRINTABLE:
        return cp == ' ' || !in_category(cp, CAT(CC) | CAT(CF) | CAT(CS) | CAT(CO) | CAT(CN) | CAT(ZL) | CAT(ZP) | CAT(ZS));
    case TC_UPPER:
        return in_category(cp, CAT(LU)) || AMONG(uppers, cp);
    case TC_LOWER:
        return in_category(cp, CAT(LL)) || AMONG(lowers, cp);
    case TC_TITLE:
        return in_category(cp, CAT(LT));
    case TC_ASCII:
        return cp < 128;
    case TC_ID_START:
        return cp == '_' || in_category(cp, LETTERS | CAT(NL));
    case TC_ID_CONTINUE:
        return cp == 0xB7 || in_category(cp, LETTERS | CAT(NL) | CAT(MN) | CAT(MC) | CAT(ND) | CAT(PC));
    }
    return false;
}

int template_char_decimal(uint32_t cp)
{
    if (cp < 128)
        return cp >= '0' && cp <= '9' ? (int)cp - '0' : -1;
    if (!template_char_is(cp, TC_DECIMAL))
        return -1;
    int v = 0; /* decimal digits come in runs of ten, and no two runs but the mathematical ones touch */
    if (cp >= 0x1D7CE && cp <= 0x1D7FF)
        return (int)((cp - 0x1D7CE) % 10);
    while (v < 9 && template_char_is(cp - (uint32_t)v - 1, TC_DECIMAL))
        v++;
    return v;
}

uint32_t template_char_at(struct template_val s, size_t offset, size_t *n)
{
    uint32_t cp = 0xFFFD;
    size_t bad;
    bool cut;
    *n = utf8_decode(s.s + offset, s.len - offset, &cp, &bad, &cut);
    if (*n == 0) {
        *n = bad;
        cp = 0xFFFD;
    }
    return cp;
}

size_t template_char_before(struct template_val s, size_t offset)
{
    size_t at = offset - 1;
    while (at > 0 && offset - at < 4 && ((unsigned char)s.s[at] & 0xC0) == 0x80)
        at--;
    return at;
}

size_t template_char_count(struct template_val s)
{
    size_t n = 0;
    for (size_t i = 0; i < s.len; i++)
        n += ((unsigned char)s.s[i] & 0xC0) != 0x80;
    return n;
}

size_t template_char_offset(struct template_val s, size_t idx)
{
    size_t i = 0;
    while (i < s.len) {
        if (((unsigned char)s.s[i] & 0xC0) != 0x80 && idx-- == 0)
            return i;
        i++;
    }
    return s.len;
}

/* ---- case ---- */

static bool is_cased(uint32_t cp)
{
    return template_char_is(cp, TC_LOWER) || template_char_is(cp, TC_UPPER) || template_char_is(cp, TC_TITLE);
}

static bool is_ignorable(uint32_t cp) /* Case_Ignorable */
{
    static const uint32_t marks[] = {0x27,   0x2E,   0x3A,   0xB7,   0x387,  0x55F,  0x5F4,  0x2018, 0x2019,
                                     0x2024, 0x2027, 0xFE13, 0xFE52, 0xFE55, 0xFF07, 0xFF0E, 0xFF1A};
    for (size_t i = 0; i < ARRAY_LEN(marks); i++)
        if (cp == marks[i])
            return true;
    return in_category(cp, CAT(MN) | CAT(ME) | CAT(CF) | CAT(LM) | CAT(SK));
}

/* The sigma at `at` ends a word: a cased letter before it, none behind it. */
static bool final_sigma(struct template_val s, size_t at)
{
    size_t i = at, n;
    bool before = false;
    while (i > 0) {
        i = template_char_before(s, i);
        uint32_t cp = template_char_at(s, i, &n);
        if (!is_ignorable(cp)) {
            before = is_cased(cp);
            break;
        }
    }
    for (i = at + 2; before && i < s.len; i += n) {
        uint32_t cp = template_char_at(s, i, &n);
        if (!is_ignorable(cp))
            return !is_cased(cp);
    }
    return before;
}

static void add_char(struct template_text *t, uint32_t cp)
{
    char c[4];
    template_text_add(t, c, utf8_encode(cp, c));
}

static void add_upper(struct template_text *t, uint32_t cp, bool title)
{
    if (cp < 128) {
        add_char(t, cp >= 'a' && cp <= 'z' ? cp - 32 : cp);
        return;
    }
    for (size_t i = 0; i < ARRAY_LEN(casings); i++)
        if (casings[i].cp == cp) {
            template_text_puts(t, title ? casings[i].title : casings[i].upper);
            return;
        }
    add_char(t, (uint32_t)(title ? utf8proc_totitle((utf8proc_int32_t)cp) : utf8proc_toupper((utf8proc_int32_t)cp)));
}

static void add_lower(struct template_text *t, uint32_t cp, struct template_val s, size_t at)
{
    if (cp < 128)
        add_char(t, cp >= 'A' && cp <= 'Z' ? cp + 32 : cp);
    else if (cp == 0x130)
        template_text_puts(t, "i\xCC\x87");
    else if (cp == 0x3A3)
        add_char(t, final_sigma(s, at) ? 0x3C2 : 0x3C3);
    else
        add_char(t, (uint32_t)utf8proc_tolower((utf8proc_int32_t)cp));
}

static void add_folded(struct template_text *t, uint32_t cp)
{
    utf8proc_int32_t out[8];
    int boundary = 0;
    utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)cp, out, 8, UTF8PROC_CASEFOLD, &boundary);
    for (utf8proc_ssize_t i = 0; i < n; i++)
        add_char(t, (uint32_t)out[i]);
}

struct template_val template_case(struct template_run *r, struct template_val s, char how)
{
    struct template_text t = {.r = r};
    bool word = false; /* the character before belongs to the word */
    for (size_t i = 0, n; i < s.len && template_step(r, 1); i += n) {
        uint32_t cp = template_char_at(s, i, &n);
        bool up = how == 'u' || (how == 't' && !word) || (how == 'c' && i == 0) || (how == 's' && template_char_is(cp, TC_LOWER));
        word = how == 't' && is_cased(cp);
        if (how == 'f')
            add_folded(&t, cp);
        else if (up)
            add_upper(&t, cp, how == 't' || how == 'c');
        else if (how == 's' && !template_char_is(cp, TC_UPPER))
            add_char(&t, cp);
        else
            add_lower(&t, cp, s, i);
    }
    struct template_val v = template_text_val(&t);
    v.flavour = s.flavour;
    return v;
}

bool template_is_cased(struct template_run *r, struct template_val s, char how)
{
    bool any = false, word = false;
    for (size_t i = 0, n; i < s.len && template_step(r, 1); i += n) {
        uint32_t cp = template_char_at(s, i, &n);
        bool lower = template_char_is(cp, TC_LOWER), upper = template_char_is(cp, TC_UPPER), title = template_char_is(cp, TC_TITLE);
        if (how == 't' ? (upper || title ? word : lower && !word) : how == 'u' ? lower || title : upper || title)
            return false;
        word = lower || upper || title;
        any = any || (how == 't' ? word : how == 'u' ? upper : lower);
    }
    return any;
}

/* ---- strip, replace, lines ---- */

static bool in_set(struct template_val chars, const char *s, size_t n, uint32_t cp)
{
    if (chars.kind != TV_STR)
        return template_is_space(cp);
    return memmem(chars.s, chars.len, s, n) != NULL;
}

struct template_val template_strip(struct template_run *r, struct template_val s, struct template_val chars, int sides)
{
    if (chars.kind != TV_STR && chars.kind != TV_NONE && chars.kind != TV_MISSING)
        return template_fail(r, ERR_INVALID, "strip arg must be None or str");
    size_t n;
    while ((sides & 1) && s.len > 0 && template_step(r, 1)) {
        uint32_t cp = template_char_at(s, 0, &n);
        if (!in_set(chars, s.s, n, cp))
            break;
        s.s += n;
        s.len -= n;
    }
    while ((sides & 2) && s.len > 0 && template_step(r, 1)) {
        size_t at = template_char_before(s, s.len);
        uint32_t cp = template_char_at(s, at, &n);
        if (!in_set(chars, s.s + at, n, cp))
            break;
        s.len = at;
    }
    return s;
}

struct template_val template_replace(struct template_run *r, struct template_val s, struct template_val from,
                                     struct template_val to, int64_t max)
{
    struct template_text t = {.r = r};
    size_t i = 0;
    if (max < 0)
        max = INT64_MAX;
    if (from.len == 0) { /* between all characters and at both ends */
        for (; max > 0 && template_step(r, 1); max--) {
            template_text_add(&t, to.s, to.len);
            if (i >= s.len)
                return template_text_val(&t);
            size_t n;
            template_char_at(s, i, &n);
            template_text_add(&t, s.s + i, n);
            i += n;
        }
    }
    while (from.len > 0 && max-- > 0 && template_step(r, 1)) {
        const char *p = memmem(s.s + i, s.len - i, from.s, from.len);
        if (p == NULL)
            break;
        template_text_add(&t, s.s + i, (size_t)(p - s.s) - i);
        template_text_add(&t, to.s, to.len);
        i = (size_t)(p - s.s) + from.len;
    }
    if (!template_step(r, s.len / 64))
        return s;
    if (i == 0 && t.len == 0)
        return s; /* nothing replaced */
    template_text_add(&t, s.s + i, s.len - i);
    return template_text_val(&t);
}

struct template_list *template_lines(struct template_run *r, struct template_val s, bool keep)
{
    struct template_val out = template_list(r, TV_PLAIN, 0);
    size_t from = 0;
    for (size_t i = 0, n; i < s.len && template_step(r, 1);) {
        uint32_t cp = template_char_at(s, i, &n);
        size_t end = i;
        i += n;
        if (!((cp >= 10 && cp <= 13) || (cp >= 28 && cp <= 30) || cp == 0x85 || cp == 0x2028 || cp == 0x2029))
            continue;
        if (cp == '\r' && i < s.len && s.s[i] == '\n')
            i++;
        template_push(r, out, template_str(s.s + from, (keep ? i : end) - from));
        from = i;
    }
    if (from < s.len)
        template_push(r, out, template_str(s.s + from, s.len - from));
    return r->failed ? NULL : out.list;
}
