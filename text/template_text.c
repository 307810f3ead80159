/* Values as text: str, repr, escaping, floats. repr escapes what Python does not print. */
#include "base/check.h"
#include "text/template_ast.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

void template_text_fill(struct template_text *t, const char *s, size_t len, int64_t n)
{
    for (int64_t i = 0; i < n && len > 0 && template_step(t->r, 1); i++)
        template_text_add(t, s, len);
}

struct template_val template_text_val(const struct template_text *t)
{
    return template_str(t->s == NULL ? "" : t->s, t->len);
}

void template_text_resume(struct template_text *t, struct template_val a)
{
    if (a.s != NULL && a.s == t->r->tail.s && a.len == t->r->tail.len) {
        t->s = t->r->tail.s;
        t->len = a.len;
        t->cap = t->r->tail.cap;
    } else {
        template_text_add(t, a.s, a.len);
    }
}

struct template_val template_text_keep(const struct template_text *t)
{
    if (t->len >= 256 && !t->r->failed) {
        t->r->tail.s = t->s;
        t->r->tail.len = t->len;
        t->r->tail.cap = t->cap;
    }
    return template_text_val(t);
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

struct template_val template_to_repr(struct template_run *r, struct template_val v)
{
    struct template_text t = {.r = r};
    template_text_repr(&t, v, 0);
    return template_text_val(&t);
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

/* ---- repr ---- */

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
        } else if (template_char_is(cp, TC_PRINTABLE)) {
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
    if (v.flavour == TV_RANGE) {
        const struct template_val *bounds = l->v + l->n; /* range() leaves them behind the items */
        for (int i = 0; i < (bounds[2].i == 1 ? 2 : 3); i++) {
            template_text_puts(t, i == 0 ? "range(" : ", ");
            add_int(t, bounds[i].i);
        }
        template_text_puts(t, ")");
        return;
    }
    bool view = v.flavour >= TV_KEYS, tuple = template_is_tuple(v);
    if (view)
        template_text_puts(t, template_type_name(v));
    template_text_puts(t, view ? "([" : tuple ? "(" : "[");
    for (uint32_t i = 0; i < l->n && !t->r->failed; i++) {
        if (i > 0)
            template_text_puts(t, ", ");
        template_text_repr(t, l->v[i], depth + 1);
    }
    if (tuple && l->n == 1)
        template_text_puts(t, ",");
    template_text_puts(t, view ? "])" : tuple ? ")" : "]");
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
    case TV_BIG:
        v = template_int_text(t->r, v, 10);
        template_text_add(t, v.s, v.len);
        return;
    case TV_FLOAT:
        add_float(t, v.f);
        return;
    case TV_STR:
        if (v.flavour == TV_MARKUP)
            template_text_puts(t, "Markup(");
        repr_str(t, v);
        if (v.flavour == TV_MARKUP)
            template_text_puts(t, ")");
        return;
    case TV_MACRO:
    case TV_LOOP:
        template_repr_object(t, v);
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
        template_fail(t->r, ERR_INVALID, "a %s is printed; call it, or make a list of it", template_type_name(v));
    }
}

