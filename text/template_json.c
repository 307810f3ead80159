/* JSON, as Python's json.dumps writes it. */
#include "base/check.h"
#include "text/template_filters.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

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
        if (esc[0] == 0 && (c < 0x20 || (c == 0x7F && ascii)))
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

static void json_float(struct template_text *t, double f)
{
    char s[400];
    if (isfinite(f))
        template_text_add(t, s, template_format_float(f, s, sizeof(s)));
    else
        template_text_puts(t, isnan(f) ? "NaN" : f > 0 ? "Infinity" : "-Infinity");
}

static void json_newline(struct template_text *t, const struct template_json_opts *o, uint32_t depth)
{
    if (!template_given(o->indent))
        return;
    template_text_puts(t, "\n");
    template_text_fill(t, o->indent.s, o->indent.len, depth);
}

static void json_key(struct template_text *t, struct template_val k, bool ascii)
{
    struct template_text s = {.r = t->r};
    if (k.kind == TV_BOOL || k.kind == TV_NONE)
        template_text_puts(&s, k.kind == TV_NONE ? "null" : k.b ? "true" : "false");
    else if (k.kind == TV_STR || template_is_whole(k))
        template_text_str(&s, k);
    else if (k.kind == TV_FLOAT)
        json_float(&s, k.f);
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
    const uint32_t *order = o->sort_keys ? template_filter_key_order(t->r, d) : NULL;
    template_text_puts(t, "{");
    for (uint32_t i = 0; i < d->n && !t->r->failed; i++) {
        if (i > 0)
            template_text_add(t, o->item_sep.s, o->item_sep.len);
        const struct template_entry *e = &d->e[order != NULL ? order[i] : i];
        json_newline(t, o, depth + 1);
        json_key(t, e->k, o->ascii);
        template_text_add(t, o->key_sep.s, o->key_sep.len);
        template_json(t, e->v, o, depth + 1);
    }
    json_newline(t, o, depth);
    template_text_puts(t, "}");
}

void template_json(struct template_text *t, struct template_val v, const struct template_json_opts *o,
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
    case TV_BIG:
        template_text_str(t, v);
        return;
    case TV_FLOAT:
        json_float(t, v.f);
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
    if (v.kind != TV_LIST || (v.flavour != TV_PLAIN && !template_is_tuple(v))) {
        template_fail(t->r, ERR_INVALID, "Object of type %s is not JSON serializable", template_type_name(v));
        return;
    }
    template_text_puts(t, v.list->n == 0 ? "[]" : "[");
    for (uint32_t i = 0; i < v.list->n && !t->r->failed; i++) {
        if (i > 0)
            template_text_add(t, o->item_sep.s, o->item_sep.len);
        json_newline(t, o, depth + 1);
        template_json(t, v.list->v[i], o, depth + 1);
    }
    if (v.list->n == 0)
        return;
    json_newline(t, o, depth);
    template_text_puts(t, "]");
}
