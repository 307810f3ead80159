/* Values as text: str, repr, JSON, and the character functions behind the string methods. Case mapping is the C
 * library's for Unicode (simple mapping, in the C.UTF-8 locale that glibc carries) with the few letters that grow; repr
 * escapes control, separator and unassigned characters, as Python does. */
#include "base/check.h"
#include "coordinator/template_value.h"
#include "coordinator/utf8.h"

#include <locale.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wctype.h>

void template_text_add(struct template_text *t, const char *s, size_t len)
{
    if (len == 0 || t->r->failed)
        return;
    if (t->cap - t->len < len) {
        size_t cap = MAX(t->cap * 2, t->len + len + 32);
        char *n = template_alloc(t->r, cap, 1);
        if (n == NULL)
            return;
        if (t->len > 0)
            memcpy(n, t->s, t->len);
        t->s = n;
        t->cap = cap;
    }
    memcpy(t->s + t->len, s, len);
    t->len += len;
}

void template_text_puts(struct template_text *t, const char *s)
{
    template_text_add(t, s, strlen(s));
}

struct template_val template_text_val(const struct template_text *t)
{
    return template_str(t->s == NULL ? "" : t->s, t->len);
}

/* The shortest digits that read back equal, laid out as Python's repr does. */
size_t template_format_float(double f, char *out, size_t cap)
{
    if (isnan(f) || isinf(f))
        return (size_t)snprintf(out, cap, "%s", isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
    char e[40];
    int prec = 0;
    for (; prec <= 16; prec++) {
        snprintf(e, sizeof(e), "%.*e", prec, f);
        if (strtod(e, NULL) == f)
            break;
    }
    int exp = atoi(strchr(e, 'e') + 1);
    if (exp < -4 || exp >= 16) {
        char *mark = strchr(e, 'e');
        return (size_t)snprintf(out, cap, "%.*se%c%02d", (int)(mark - e), e, exp < 0 ? '-' : '+', abs(exp));
    }
    return (size_t)snprintf(out, cap, "%.*f", MAX(prec - exp, 1), f);
}

static void add_float(struct template_text *t, double f)
{
    char s[400];
    template_text_add(t, s, template_format_float(f, s, sizeof(s)));
}

static void add_int(struct template_text *t, int64_t i)
{
    char s[32];
    template_text_add(t, s, (size_t)snprintf(s, sizeof(s), "%lld", (long long)i));
}

void template_text_str(struct template_text *t, struct template_val v)
{
    if (v.kind == TV_STR)
        template_text_add(t, v.s, v.len);
    else if (v.kind != TV_UNDEFINED)
        template_text_repr(t, v, 0);
}

struct template_val template_to_str(struct template_run *r, struct template_val v)
{
    if (v.kind == TV_STR)
        return v;
    struct template_text t = {.r = r};
    template_text_str(&t, v);
    return template_text_val(&t);
}

void template_text_escape(struct template_text *t, struct template_val s)
{
    for (size_t i = 0; i < s.len && template_step(t->r, 1); i++) {
        char c = s.s[i];
        const char *e = c == '&'    ? "&amp;"
                        : c == '<'  ? "&lt;"
                        : c == '>'  ? "&gt;"
                        : c == '"'  ? "&#34;"
                        : c == '\'' ? "&#39;"
                                    : NULL;
        if (e != NULL)
            template_text_puts(t, e);
        else
            template_text_add(t, &c, 1);
    }
}

/* ---- characters ---- */

static locale_t unicode;

static void make_locale(void)
{
    unicode = newlocale(LC_CTYPE_MASK, "C.UTF-8", (locale_t)0);
    if (unicode == (locale_t)0)
        unicode = newlocale(LC_CTYPE_MASK, "C", (locale_t)0);
}

static locale_t unicode_locale(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, make_locale);
    return unicode;
}

uint32_t template_upper_char(uint32_t cp)
{
    if (cp < 128)
        return cp >= 'a' && cp <= 'z' ? cp - 32 : cp;
    return (uint32_t)towupper_l((wint_t)cp, unicode_locale());
}

uint32_t template_lower_char(uint32_t cp)
{
    if (cp < 128)
        return cp >= 'A' && cp <= 'Z' ? cp + 32 : cp;
    return (uint32_t)towlower_l((wint_t)cp, unicode_locale());
}

bool template_is_alpha(uint32_t cp)
{
    if (cp < 128)
        return (cp | 32) >= 'a' && (cp | 32) <= 'z';
    return iswalpha_l((wint_t)cp, unicode_locale()) != 0;
}

static bool is_cased(uint32_t cp)
{
    return template_upper_char(cp) != cp || template_lower_char(cp) != cp;
}

bool template_is_space(uint32_t cp)
{
    return (cp >= 9 && cp <= 13) || (cp >= 28 && cp <= 32) || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F || cp == 0x205F ||
           cp == 0x3000;
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

static void add_char(struct template_text *t, uint32_t cp)
{
    char c[4];
    template_text_add(t, c, utf8_encode(cp, c));
}

static void add_upper(struct template_text *t, uint32_t cp, bool title)
{
    if (cp == 0xDF) /* the letters in wide use whose capital is two letters */
        template_text_puts(t, title ? "Ss" : "SS");
    else if (cp >= 0xFB00 && cp <= 0xFB02)
        template_text_puts(t, title ? (cp == 0xFB00   ? "Ff"
                                       : cp == 0xFB01 ? "Fi"
                                                      : "Fl")
                                    : (cp == 0xFB00   ? "FF"
                                       : cp == 0xFB01 ? "FI"
                                                      : "FL"));
    else
        add_char(t, template_upper_char(cp));
}

struct template_val template_case(struct template_run *r, struct template_val s, char how)
{
    struct template_text t = {.r = r};
    bool word = false; /* the character before belongs to the word */
    for (size_t i = 0; i < s.len && template_step(r, 1);) {
        size_t n;
        uint32_t cp = template_char_at(s, i, &n);
        bool up = how == 'u' || (how == 't' && !word) || (how == 'c' && i == 0);
        if (how == 's')
            up = template_lower_char(cp) == cp;
        i += n;
        word = is_cased(cp);
        if (up)
            add_upper(&t, cp, how == 't' || how == 'c');
        else if (cp == 0x130)
            template_text_puts(&t, "i\xCC\x87");
        else
            add_char(&t, template_lower_char(cp));
    }
    return template_text_val(&t);
}

static bool in_set(struct template_val chars, const char *s, size_t n, uint32_t cp)
{
    if (chars.kind != TV_STR)
        return template_is_space(cp);
    return memmem(chars.s, chars.len, s, n) != NULL;
}

struct template_val template_strip(struct template_run *r, struct template_val s, struct template_val chars, int sides)
{
    if (chars.kind != TV_STR && chars.kind != TV_NONE && chars.kind != TV_UNDEFINED)
        return template_fail(r, ERR_INVALID, "strip arg must be None or str");
    if (!template_step(r, s.len / 64))
        return s;
    while ((sides & 1) && s.len > 0) {
        size_t n;
        uint32_t cp = template_char_at(s, 0, &n);
        if (!in_set(chars, s.s, n, cp))
            break;
        s.s += n;
        s.len -= n;
    }
    while ((sides & 2) && s.len > 0) {
        size_t at = s.len - 1, n;
        while (at > 0 && s.len - at < 4 && ((unsigned char)s.s[at] & 0xC0) == 0x80)
            at--;
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
    template_text_add(&t, s.s + i, s.len - i);
    return template_text_val(&t);
}

/* ---- repr ---- */

static bool printable(uint32_t cp)
{
    if (cp < 0x20 || (cp >= 0x7F && cp <= 0xA0) || cp == 0xAD)
        return false;
    if (cp < 0x300)
        return true;
    if (template_is_space(cp) || (cp >= 0x200B && cp <= 0x200F) || (cp >= 0x202A && cp <= 0x202E) ||
        (cp >= 0x2060 && cp <= 0x206F) || cp == 0xFEFF || (cp >= 0xFFF0 && cp <= 0xFFFB) ||
        (cp >= 0xE000 && cp <= 0xF8FF) || cp >= 0xE0000)
        return cp >= 0xE0100 && cp <= 0xE01EF;
    return iswprint_l((wint_t)cp, unicode_locale()) != 0;
}

static void repr_str(struct template_text *t, struct template_val s)
{
    char quote = memchr(s.s, '\'', s.len) != NULL && memchr(s.s, '"', s.len) == NULL ? '"' : '\'';
    template_text_add(t, &quote, 1);
    for (size_t i = 0; i < s.len && template_step(t->r, 1);) {
        size_t n;
        uint32_t cp = template_char_at(s, i, &n);
        char esc[16];
        const char *two = cp == '\n' ? "\\n" : cp == '\r' ? "\\r" : cp == '\t' ? "\\t" : cp == '\\' ? "\\\\" : NULL;
        if (two != NULL || cp == (unsigned char)quote) {
            template_text_puts(t, two != NULL ? two : quote == '\'' ? "\\'" : "\\\"");
        } else if (printable(cp)) {
            template_text_add(t, s.s + i, n);
        } else {
            snprintf(esc, sizeof(esc), cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
            template_text_puts(t, esc);
        }
        i += n;
    }
    template_text_add(t, &quote, 1);
}

static void repr_list(struct template_text *t, struct template_val v, uint32_t depth)
{
    const struct template_list *l = v.list;
    if (v.flavour == TV_GENERATOR) {
        template_fail(t->r, ERR_INVALID, "a generator is printed; turn it into a list first");
        return;
    }
    if (v.flavour == TV_RANGE) {
        int64_t first = l->n > 0 ? l->v[0].i : 0, step = l->n > 1 ? l->v[1].i - first : 1;
        template_text_puts(t, "range(");
        add_int(t, first);
        template_text_puts(t, ", ");
        add_int(t, first + step * l->n);
        if (step != 1) {
            template_text_puts(t, ", ");
            add_int(t, step);
        }
        template_text_puts(t, ")");
        return;
    }
    bool view = v.flavour >= TV_KEYS;
    if (view)
        template_text_puts(t, template_type_name(v));
    template_text_puts(t, view ? "([" : v.flavour == TV_TUPLE ? "(" : "[");
    for (uint32_t i = 0; i < l->n && !t->r->failed; i++) {
        if (i > 0)
            template_text_puts(t, ", ");
        template_text_repr(t, l->v[i], depth + 1);
    }
    if (v.flavour == TV_TUPLE && l->n == 1)
        template_text_puts(t, ",");
    template_text_puts(t, view ? "])" : v.flavour == TV_TUPLE ? ")" : "]");
}

void template_text_repr(struct template_text *t, struct template_val v, uint32_t depth)
{
    if (!template_step(t->r, 1))
        return;
    if (depth > TEMPLATE_NESTING_MAX) {
        template_fail(t->r, ERR_TOO_BIG, "a value nested deeper than %d is printed", TEMPLATE_NESTING_MAX);
        return;
    }
    switch (v.kind) {
    case TV_UNDEFINED:
        template_text_puts(t, "Undefined");
        return;
    case TV_NONE:
        template_text_puts(t, "None");
        return;
    case TV_BOOL:
        template_text_puts(t, v.b ? "True" : "False");
        return;
    case TV_INT:
        add_int(t, v.i);
        return;
    case TV_FLOAT:
        add_float(t, v.f);
        return;
    case TV_STR:
        repr_str(t, v);
        return;
    case TV_LIST:
        repr_list(t, v, depth);
        return;
    case TV_DICT:
    case TV_NAMESPACE:
        template_text_puts(t, v.kind == TV_DICT ? "{" : "<Namespace {");
        for (uint32_t i = 0; i < v.dict->n && !t->r->failed; i++) {
            if (i > 0)
                template_text_puts(t, ", ");
            template_text_repr(t, v.dict->e[i].k, depth + 1);
            template_text_puts(t, ": ");
            template_text_repr(t, v.dict->e[i].v, depth + 1);
        }
        template_text_puts(t, v.kind == TV_DICT ? "}" : "}>");
        return;
    default:
        template_fail(t->r, ERR_INVALID, "a %s is printed; call it", template_type_name(v));
    }
}

/* ---- JSON, as Python's json.dumps writes it ---- */

static void json_str(struct template_text *t, struct template_val s, bool ascii)
{
    template_text_puts(t, "\"");
    size_t from = 0;
    for (size_t i = 0; i < s.len && template_step(t->r, 1);) {
        unsigned char c = (unsigned char)s.s[i];
        size_t n = 1;
        char esc[16] = "";
        static const char named[] = "\"\"\\\\\bb\ff\nn\rr\tt";
        for (size_t k = 0; k + 1 < sizeof(named); k += 2)
            if (c == (unsigned char)named[k])
                snprintf(esc, sizeof(esc), "\\%c", named[k + 1]);
        if (esc[0] == 0 && c < 0x20)
            snprintf(esc, sizeof(esc), "\\u%04x", c);
        if (c >= 0x80) {
            uint32_t cp = template_char_at(s, i, &n);
            if (ascii && cp < 0x10000)
                snprintf(esc, sizeof(esc), "\\u%04x", cp);
            else if (ascii)
                snprintf(esc, sizeof(esc), "\\u%04x\\u%04x", 0xD7C0 + (cp >> 10), 0xDC00 + (cp & 0x3FF));
        }
        if (esc[0] != 0) {
            template_text_add(t, s.s + from, i - from);
            template_text_puts(t, esc);
            from = i + n;
        }
        i += n;
    }
    template_text_add(t, s.s + from, s.len - from);
    template_text_puts(t, "\"");
}

static void json_newline(struct template_text *t, const struct template_json_opts *o, uint32_t depth)
{
    if (o->indent < 0 && o->indent_str == NULL)
        return;
    template_text_puts(t, "\n");
    for (uint32_t i = 0; i < depth && !t->r->failed; i++) {
        if (o->indent_str != NULL)
            template_text_puts(t, o->indent_str);
        else
            for (int64_t k = 0; k < o->indent && template_step(t->r, 1); k++)
                template_text_puts(t, " ");
    }
}

static void json_key(struct template_text *t, struct template_val k, bool ascii)
{
    struct template_text s = {.r = t->r};
    if (k.kind == TV_BOOL || k.kind == TV_NONE)
        template_text_puts(&s, k.kind == TV_NONE ? "null" : k.b ? "true" : "false");
    else if (k.kind == TV_STR || k.kind == TV_INT || k.kind == TV_FLOAT)
        template_text_str(&s, k);
    else
        template_fail(t->r, ERR_INVALID, "keys must be str, int, float, bool or None, not %s", template_type_name(k));
    json_str(t, template_text_val(&s), ascii);
}

static void json_dict(struct template_text *t, const struct template_dict *d, const struct template_json_opts *o,
                      uint32_t depth)
{
    if (d->n == 0) {
        template_text_puts(t, "{}");
        return;
    }
    uint32_t *order = template_alloc(t->r, d->n, sizeof(*order));
    for (uint32_t i = 0; order != NULL && i < d->n; i++) {
        uint32_t k = i;
        for (; o->sort_keys && k > 0 && !t->r->failed && template_cmp(t->r, d->e[order[k - 1]].k, d->e[i].k, "<") > 0;
             k--)
            order[k] = order[k - 1];
        order[k] = i;
    }
    template_text_puts(t, "{");
    for (uint32_t i = 0; i < d->n && !t->r->failed; i++) {
        if (i > 0)
            template_text_add(t, o->item_sep.s, o->item_sep.len);
        json_newline(t, o, depth + 1);
        json_key(t, d->e[order[i]].k, o->ascii);
        template_text_add(t, o->key_sep.s, o->key_sep.len);
        template_text_json(t, d->e[order[i]].v, o, depth + 1);
    }
    json_newline(t, o, depth);
    template_text_puts(t, "}");
}

void template_text_json(struct template_text *t, struct template_val v, const struct template_json_opts *o,
                        uint32_t depth)
{
    if (!template_step(t->r, 1))
        return;
    if (depth > TEMPLATE_NESTING_MAX) {
        template_fail(t->r, ERR_TOO_BIG, "a value nested deeper than %d is written as JSON", TEMPLATE_NESTING_MAX);
        return;
    }
    switch (v.kind) {
    case TV_NONE:
        template_text_puts(t, "null");
        return;
    case TV_BOOL:
        template_text_puts(t, v.b ? "true" : "false");
        return;
    case TV_INT:
        add_int(t, v.i);
        return;
    case TV_FLOAT:
        if (isfinite(v.f))
            add_float(t, v.f);
        else
            template_text_puts(t, isnan(v.f) ? "NaN" : v.f > 0 ? "Infinity" : "-Infinity");
        return;
    case TV_STR:
        json_str(t, v, o->ascii);
        return;
    case TV_DICT:
        json_dict(t, v.dict, o, depth);
        return;
    default:
        break;
    }
    if (v.kind != TV_LIST || (v.flavour != TV_PLAIN && v.flavour != TV_TUPLE)) {
        template_fail(t->r, ERR_INVALID, "Object of type %s is not JSON serializable", template_type_name(v));
        return;
    }
    template_text_puts(t, v.list->n == 0 ? "[]" : "[");
    for (uint32_t i = 0; i < v.list->n && !t->r->failed; i++) {
        if (i > 0)
            template_text_add(t, o->item_sep.s, o->item_sep.len);
        json_newline(t, o, depth + 1);
        template_text_json(t, v.list->v[i], o, depth + 1);
    }
    if (v.list->n == 0)
        return;
    json_newline(t, o, depth);
    template_text_puts(t, "]");
}
