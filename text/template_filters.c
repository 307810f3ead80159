/* Filters of text and numbers, and the table of all filters with their parameters, as jinja2's functions have them. */
#include "text/template_filters.h"

#include "base/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An integer parameter that was left out, or fails. */
static int64_t whole(struct template_run *r, struct template_val v, int64_t def)
{
    int64_t i = def;
    if (template_given(v) && !template_small(v, &i))
        template_fail(r, ERR_INVALID, "'%s' object cannot be interpreted as an integer", template_type_name(v));
    return i;
}

/* A parameter that must be text. */
static struct template_val text(struct template_run *r, struct template_val v)
{
    if (v.kind == TV_UNDEFINED)
        template_undefined_used(r, v);
    else if (v.kind != TV_STR)
        template_fail(r, ERR_INVALID, "a str is needed, not '%s'", template_type_name(v));
    return r->failed ? template_cstr("") : v;
}

/* ---- text ---- */

static FILTER(f_trim)
{
    return template_strip(r, template_to_str(r, v), a->pos[0], 3);
}

static FILTER(f_upper)
{
    (void)a;
    return template_case(r, template_to_str(r, v), 'u');
}

static FILTER(f_lower)
{
    (void)a;
    return template_case(r, template_to_str(r, v), 'l');
}

static FILTER(f_capitalize)
{
    (void)a;
    return template_case(r, template_to_str(r, v), 'c');
}

static bool word_break(uint32_t cp)
{
    return template_is_space(cp) || (cp != 0 && cp < 128 && strchr("-({[<", (int)cp) != NULL);
}

/* Words and what is between them, each with a capital first; the rest of the words in lower case. */
static FILTER(f_title)
{
    (void)a;
    struct template_val s = template_to_str(r, v);
    struct template_text t = {.r = r};
    for (size_t i = 0, n; i < s.len && template_step(r, 1);) {
        size_t from = i, first;
        template_char_at(s, i, &first);
        bool between = word_break(template_char_at(s, i, &n));
        while (i < s.len && word_break(template_char_at(s, i, &n)) == between)
            i += n;
        struct template_val head = template_case(r, template_str(s.s + from, first), 'u');
        struct template_val rest = template_case(r, template_str(s.s + from + first, i - from - first), 'l');
        template_text_add(&t, head.s, head.len);
        template_text_add(&t, rest.s, rest.len);
    }
    return template_text_val(&t);
}

static FILTER(f_string)
{
    (void)a;
    return template_to_str(r, v);
}

static FILTER(f_safe)
{
    (void)a;
    struct template_val s = template_to_str(r, v);
    s.flavour = TV_MARKUP;
    return s;
}

static FILTER(f_forceescape)
{
    (void)a;
    struct template_text t = {.r = r};
    template_text_escape(&t, template_to_str(r, v));
    struct template_val s = template_text_val(&t);
    s.flavour = TV_MARKUP;
    return s;
}

static FILTER(f_escape)
{
    return v.kind == TV_STR && v.flavour == TV_MARKUP ? v : f_forceescape(r, v, a);
}

static FILTER(f_replace)
{
    struct template_val count = a->pos[2], plain = template_to_str(r, v);
    int64_t max = count.kind == TV_NONE ? -1 : whole(r, count, -1);
    plain.flavour = TV_PLAIN;
    return template_replace(r, plain, template_to_str(r, a->pos[0]), template_to_str(r, a->pos[1]), max);
}

static FILTER(f_indent)
{
    struct template_val width = a->pos[0], s = text(r, v);
    struct template_text pad = {.r = r}, t = {.r = r};
    bool blank = template_filter_flag(a->pos[2]);
    if (template_given(width) && width.kind == TV_STR)
        template_text_add(&pad, width.s, width.len);
    else
        template_text_fill(&pad, " ", 1, whole(r, width, 4));
    template_text_add(&t, s.s, s.len);
    template_text_puts(&t, "\n");
    struct template_list *l = template_lines(r, template_text_val(&t), false);
    t = (struct template_text){.r = r};
    for (uint32_t i = 0; l != NULL && i < l->n && template_step(r, 1); i++) {
        if (i > 0)
            template_text_puts(&t, "\n");
        if (i == 0 ? template_filter_flag(a->pos[1]) : l->v[i].len > 0 || blank)
            template_text_add(&t, pad.s, pad.len);
        template_text_add(&t, l->v[i].s, l->v[i].len);
    }
    struct template_val out = template_text_val(&t);
    out.flavour = s.flavour;
    return out;
}

static FILTER(f_center)
{
    struct template_val s = template_to_str(r, v), method = template_value_attr(r, s, "center", 6);
    struct template_val width = template_int(whole(r, a->pos[0], 80));
    struct template_args args = {.pos = &width, .n = 1};
    return r->failed ? s : template_call(r, method, &args);
}

static FILTER(f_truncate)
{
    struct template_val end = template_given(a->pos[2]) ? text(r, a->pos[2]) : template_cstr("...");
    int64_t length = whole(r, a->pos[0], 255), leeway = a->pos[3].kind == TV_NONE ? 5 : whole(r, a->pos[3], 5);
    int64_t n = template_len(r, v), n_end = (int64_t)template_char_count(end);
    if (length < n_end || leeway < 0)
        return template_fail(r, ERR_INVALID, "truncate: the length is less than that of the end, or the leeway negative");
    if (n < 0)
        return template_fail(r, ERR_INVALID, "object of type '%s' has no len()", template_type_name(v));
    if (n <= length + leeway)
        return v;
    struct template_val s = text(r, v);
    s.len = template_char_offset(s, (size_t)(length - n_end));
    if (!template_filter_flag(a->pos[1]))
        for (size_t i = s.len; i-- > 0;)
            if (s.s[i] == ' ') {
                s.len = i;
                break;
            }
    return template_binary(r, '+', s, end);
}

static FILTER(f_striptags)
{
    (void)a;
    struct template_val s = template_to_str(r, v);
    static const char *const pairs[][2] = {{"<!--", "-->"}, {"<", ">"}};
    for (int k = 0; k < 2; k++) {
        struct template_text t = {.r = r};
        size_t at = 0;
        for (const char *p; at < s.len && template_step(r, 1) && (p = memmem(s.s + at, s.len - at, pairs[k][0], strlen(pairs[k][0]))) != NULL;) {
            size_t from = (size_t)(p - s.s);
            const char *end = memmem(p, s.len - from, pairs[k][1], strlen(pairs[k][1]));
            if (end == NULL)
                break;
            template_text_add(&t, s.s + at, from - at);
            at = (size_t)(end - s.s) + strlen(pairs[k][1]);
        }
        template_text_add(&t, s.s + at, s.len - at);
        s = template_text_val(&t);
    }
    struct template_text t = {.r = r};
    bool word = false, gap = false;
    for (size_t i = 0, n; i < s.len && template_step(r, 1); i += n) {
        bool space = template_is_space(template_char_at(s, i, &n));
        if (!space && gap && word)
            template_text_puts(&t, " ");
        gap = space;
        word = word || !space;
        if (!space)
            template_text_add(&t, s.s + i, n);
    }
    s = template_text_val(&t);
    static const struct {
        const char *name, *text;
    } entities[] = {{"&lt;", "<"}, {"&gt;", ">"}, {"&#34;", "\""}, {"&quot;", "\""}, {"&#39;", "'"}, {"&amp;", "&"}};
    for (size_t i = 0; i < ARRAY_LEN(entities); i++)
        s = template_replace(r, s, template_cstr(entities[i].name), template_cstr(entities[i].text), -1);
    return s;
}

static void url_quote(struct template_text *t, struct template_val v, bool query)
{
    struct template_val s = template_to_str(t->r, v);
    for (size_t i = 0; i < s.len && template_step(t->r, 1); i++) {
        unsigned char c = (unsigned char)s.s[i];
        char hex[4];
        bool plain = (c | 32u) - 'a' < 26 || (c >= '0' && c <= '9') || (c != 0 && strchr("_.-~", c) != NULL) || (c == '/' && !query);
        if (plain)
            template_text_add(t, s.s + i, 1);
        else if (c == ' ' && query)
            template_text_puts(t, "+");
        else
            template_text_add(t, hex, (size_t)snprintf(hex, sizeof(hex), "%%%02X", c));
    }
}

static FILTER(f_urlencode)
{
    (void)a;
    struct template_text t = {.r = r};
    if (v.kind == TV_STR || !template_iterable(v)) {
        url_quote(&t, v, false);
        return template_text_val(&t);
    }
    struct template_iter *it = template_iter(r, v.kind == TV_DICT ? template_filter_items(r, v, a) : v);
    struct template_val x;
    for (bool first = true; it != NULL && template_next(r, it, &x); first = false) {
        struct template_list *pair = template_iterate(r, x);
        if (pair == NULL || pair->n != 2)
            return template_fail(r, ERR_INVALID, "urlencode needs pairs");
        if (!first)
            template_text_puts(&t, "&");
        url_quote(&t, pair->v[0], true);
        template_text_puts(&t, "=");
        url_quote(&t, pair->v[1], true);
    }
    return template_text_val(&t);
}

static FILTER(f_xmlattr)
{
    struct template_text t = {.r = r};
    if (v.kind != TV_DICT)
        return template_fail(r, ERR_INVALID, "'%s' object has no attribute 'items'", template_type_name(v));
    for (uint32_t i = 0; i < v.dict->n && !r->failed; i++) {
        const struct template_entry *e = &v.dict->e[i];
        if (e->v.kind == TV_NONE || e->v.kind == TV_UNDEFINED)
            continue;
        struct template_val k = text(r, e->k);
        for (size_t c = 0; c < k.len; c++)
            if (strchr(" \t\n\r\f\v/>=", k.s[c]) != NULL)
                return template_fail(r, ERR_INVALID, "Invalid character in attribute name");
        if (t.len > 0 || !template_given(a->pos[0]) || template_truth(a->pos[0]))
            template_text_puts(&t, " ");
        template_text_escape(&t, k);
        template_text_puts(&t, "=\"");
        struct template_val value = f_escape(r, e->v, a);
        template_text_add(&t, value.s, value.len);
        template_text_puts(&t, "\"");
    }
    return template_text_val(&t);
}

static FILTER(f_wordcount)
{
    (void)a;
    struct template_val s = template_to_str(r, v);
    int64_t words = 0;
    bool in = false;
    for (size_t i = 0, n; i < s.len && template_step(r, 1); i += n) {
        uint32_t cp = template_char_at(s, i, &n);
        bool w = template_char_is(cp, TC_ALNUM) || cp == '_';
        words += w && !in;
        in = w;
    }
    return template_int(words);
}

static FILTER(f_format)
{
    if (a->n_kw > 0 && a->n > 0)
        return template_fail(r, ERR_INVALID, "can't handle positional and keyword arguments at the same time");
    struct template_val d = a->n_kw > 0 ? template_dict(r) : template_list(r, TV_TUPLE, a->n);
    for (uint32_t i = 0; i < a->n_kw && !r->failed; i++)
        template_put(r, d.dict, template_cstr(a->kw[i].name), a->kw[i].v);
    for (uint32_t i = 0; i < a->n && !r->failed; i++)
        template_push(r, d, a->pos[i]);
    return r->failed ? v : template_percent(r, template_to_str(r, v), d);
}

static FILTER(f_tojson)
{
    struct template_val indent = a->pos[1], seps = a->pos[2];
    struct template_json_opts o = {.ascii = template_filter_flag(a->pos[0]), .sort_keys = template_filter_flag(a->pos[3])};
    struct template_text t = {.r = r}, pad = {.r = r};
    if (template_given(indent) && indent.kind != TV_NONE && v.kind != TV_STR) { /* json does not look at it for a string */
        if (indent.kind != TV_STR)
            template_text_fill(&pad, " ", 1, whole(r, indent, 0));
        o.indent = indent.kind == TV_STR ? indent : template_text_val(&pad);
    }
    o.item_sep = template_cstr(template_given(o.indent) ? "," : ", ");
    o.key_sep = template_cstr(": ");
    if (template_given(seps) && seps.kind != TV_NONE) {
        struct template_list *l = template_iterate(r, seps);
        if (l == NULL || l->n != 2 || l->v[0].kind != TV_STR || l->v[1].kind != TV_STR)
            return template_fail(r, ERR_INVALID, "tojson: separators are two strings");
        o.item_sep = l->v[0];
        o.key_sep = l->v[1];
    }
    if (!r->failed)
        template_json(&t, v, &o, 0);
    return template_text_val(&t);
}

/* ---- numbers ---- */

/* Any decimal digits as ASCII, without white space around; false when it is too long or has a NUL. */
static bool ascii_number(struct template_run *r, struct template_val s, char *out, size_t cap)
{
    size_t len = 0, n;
    s = template_strip(r, s, template_none(), 3);
    for (size_t i = 0; i < s.len; i += n) {
        uint32_t cp = template_char_at(s, i, &n);
        int d = template_char_decimal(cp);
        if (len + 1 >= cap || cp == 0 || (d < 0 && cp > 127))
            return false;
        out[len++] = d >= 0 ? (char)('0' + d) : (char)cp;
    }
    out[len] = 0;
    return len > 0;
}

/* float(text): digits may have single "_" between them. */
static bool parse_float(struct template_run *r, struct template_val s, double *f)
{
    char in[5000], out[5000], *end;
    size_t n = 0;
    if (!ascii_number(r, s, in, sizeof(in)))
        return false;
    for (size_t i = 0; in[i] != 0; i++) {
        bool digits = i > 0 && in[i - 1] >= '0' && in[i - 1] <= '9' && in[i + 1] >= '0' && in[i + 1] <= '9';
        if (in[i] == '_' && !digits)
            return false;
        if (in[i] != '_')
            out[n++] = in[i];
    }
    out[n] = 0;
    if (strpbrk(out, "xXpP(") != NULL)
        return false;
    *f = strtod(out, &end);
    return *end == 0 && end != out;
}

static struct template_val int_of_float(struct template_run *r, double f, struct template_val def, bool strict)
{
    if (isnan(f) || (isinf(f) && !strict))
        return def;
    return isinf(f) ? template_fail(r, ERR_INVALID, "cannot convert float infinity to integer") : template_int_from_double(r, f);
}

static FILTER(f_int)
{
    struct template_val def = template_given(a->pos[0]) ? a->pos[0] : template_int(0);
    int64_t base = 10;
    double f;
    char in[5000];
    if (v.kind == TV_UNDEFINED)
        return template_undefined_used(r, v);
    if (v.kind == TV_BOOL)
        return template_int(v.b);
    if (v.kind == TV_INT || v.kind == TV_BIG)
        return v;
    if (v.kind == TV_FLOAT)
        return int_of_float(r, v.f, def, true);
    if (v.kind != TV_STR)
        return def;
    bool base_ok = !template_given(a->pos[1]) || (template_small(a->pos[1], &base) && (base == 0 || (base >= 2 && base <= 36)));
    if (base_ok && ascii_number(r, v, in, sizeof(in))) {
        char *p = in + (*in == '-' || *in == '+'), sign = *in == '-' ? '-' : '+';
        char c = (char)(p[0] == '0' ? p[1] | 32 : 0);
        int64_t prefix = c == 'x' ? 16 : c == 'o' ? 8 : c == 'b' ? 2 : 0;
        if (prefix != 0 && (base == 0 || base == prefix)) {
            p += 2 + (p[2] == '_');
            base = prefix;
            if (*p == '-' || *p == '+')
                p = in + strlen(in);
            *--p = sign;
        } else {
            bool zeros = base != 0 || p[0] != '0' || strspn(p, "0_") == strlen(p); /* base 0: no zeros before other digits */
            base = base == 0 ? 10 : base;
            p = zeros ? in : in + strlen(in);
        }
        struct template_val i = template_int_parse(r, p, strlen(p), (int)base);
        if (template_given(i))
            return i;
    }
    return parse_float(r, v, &f) ? int_of_float(r, f, def, false) : def;
}

static FILTER(f_float)
{
    double f;
    struct template_val def = template_given(a->pos[0]) ? a->pos[0] : template_float(0);
    if (v.kind == TV_UNDEFINED)
        return template_undefined_used(r, v);
    if (template_number(v, &f))
        return v.kind == TV_BIG && isinf(f) ? template_fail(r, ERR_INVALID, "int too large to convert to float") : template_float(f);
    return v.kind == TV_STR && parse_float(r, v, &f) ? template_float(f) : def;
}

static FILTER(f_abs)
{
    (void)a;
    if (v.kind == TV_FLOAT)
        return template_float(fabs(v.f));
    if (!template_is_whole(v))
        return template_fail(r, ERR_INVALID, "bad operand type for abs(): '%s'", template_type_name(v));
    return template_int_op(r, template_int_cmp(v, template_int(0)) < 0 ? '*' : '+', v, template_int(template_int_cmp(v, template_int(0)) < 0 ? -1 : 0));
}

/* An integer to 10^-digits, half to even. */
static struct template_val round_int(struct template_run *r, struct template_val v, int64_t digits)
{
    if (digits > TEMPLATE_DIGITS_MAX)
        return template_int(0);
    struct template_val p = template_int_op(r, OP_POW, template_int(10), template_int(digits)), down = template_int_op(r, OP_FLOORDIV, v, p);
    struct template_val rest = template_int_op(r, '*', template_int_op(r, '%', v, p), template_int(2));
    if (r->failed)
        return v;
    int c = template_int_cmp(rest, p);
    if (c > 0 || (c == 0 && !template_int_even(down)))
        down = template_int_op(r, '+', down, template_int(1));
    return r->failed ? v : template_int_op(r, '*', down, p);
}

static FILTER(f_round)
{
    struct template_val how = a->pos[1], precision = a->pos[0];
    bool none = template_given(precision) && precision.kind == TV_NONE, common = !template_given(how) || template_is_str(how, "common");
    double f;
    char out[800];
    if (!common && !template_is_str(how, "ceil") && !template_is_str(how, "floor"))
        return template_fail(r, ERR_INVALID, "method must be common, ceil or floor");
    if (!template_number(v, &f))
        return template_fail(r, ERR_INVALID, "type %s doesn't define __round__ method", template_type_name(v));
    int64_t digits = none && common ? 0 : whole(r, precision, 0);
    if (r->failed)
        return v;
    if (!common) {
        struct template_val p = template_binary(r, OP_POW, template_int(10), template_int(digits)), x = template_binary(r, '*', v, p);
        if (r->failed)
            return v;
        if (x.kind == TV_FLOAT && !isfinite(x.f))
            return template_fail(r, ERR_INVALID, "cannot convert float to integer");
        if (x.kind == TV_FLOAT)
            x = template_int_from_double(r, template_is_str(how, "ceil") ? ceil(x.f) : floor(x.f));
        return template_binary(r, '/', x, p);
    }
    if (template_is_whole(v))
        return digits >= 0 ? template_int_op(r, '+', v, template_int(0)) : round_int(r, v, -digits);
    if (!isfinite(f))
        return none ? template_fail(r, ERR_INVALID, "cannot convert float to integer") : v;
    if (digits > 320)
        return v;
    if (digits < -308)
        return template_float(copysign(0, f));
    if (digits >= 0) { /* half to even on the exact value, as Python does */
        snprintf(out, sizeof(out), "%.*f", (int)digits, f);
        f = strtod(out, NULL);
    } else {
        int exp = f == 0 ? 0 : (int)floor(log10(fabs(f))); /* digits before the point that stay */
        snprintf(out, sizeof(out), "%.0f", trunc(f));
        exp = (int)strlen(out) - (out[0] == '-') - 1;
        int keep = exp + (int)digits;
        if (keep >= 0) {
            snprintf(out, sizeof(out), "%.*e", keep, f);
            f = strtod(out, NULL);
        } else { /* below one unit: half a unit and less is nothing */
            double unit = pow(10, (double)-digits);
            f = fabs(f) > unit / 2 ? copysign(unit, f) : copysign(0, f);
        }
    }
    if (isinf(f))
        return template_fail(r, ERR_INVALID, "rounded value too large to represent");
    return none ? template_int_from_double(r, f) : template_float(f);
}

static FILTER(f_filesizeformat)
{
    static const char *const names[2][8] = {{"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"}, {"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"}};
    struct template_val missing[2] = {{0}};
    struct template_args none = {.pos = missing, .n = 2};
    bool binary = template_filter_flag(a->pos[0]);
    double f, base = binary ? 1024 : 1000, unit = base * base;
    if (v.kind != TV_STR ? !template_number(v, &f) : !parse_float(r, v, &f))
        return v.kind == TV_UNDEFINED ? f_float(r, v, &none) : template_fail(r, ERR_INVALID, "could not convert to float");
    char out[400];
    int i = 0;
    if (f == 1)
        return template_cstr("1 Byte");
    if (f < base) {
        struct template_val s = int_of_float(r, f, template_int(0), true);
        return template_binary(r, '+', template_to_str(r, s), template_cstr(" Bytes"));
    }
    if (isnan(f))
        f = NAN;
    while (i < 7 && !(f < unit)) {
        unit *= base;
        i++;
    }
    struct template_text t = {.r = r};
    template_text_add(&t, out, (size_t)snprintf(out, sizeof(out), "%.1f %s", base * f / unit, names[binary][i]));
    return template_text_val(&t);
}

/* ---- any value ---- */

static FILTER(f_length)
{
    (void)a;
    int64_t n = v.kind == TV_LOOP ? template_loop_attr(r, v.loop, "length", 6).i : template_len(r, v);
    return n >= 0 ? template_int(n) : template_fail(r, ERR_INVALID, "object of type '%s' has no len()", template_type_name(v));
}

static FILTER(f_default)
{
    (void)r;
    bool missing = v.kind == TV_UNDEFINED || (template_filter_flag(a->pos[1]) && !template_truth(v));
    return !missing ? v : template_given(a->pos[0]) ? a->pos[0] : template_cstr("");
}

static FILTER(f_attr)
{
    struct template_val name = text(r, a->pos[0]);
    if (r->failed || v.kind == TV_UNDEFINED || v.kind == TV_DICT) /* attributes only, never items */
        return v.kind == TV_DICT && !r->failed ? template_value_attr(r, v, name.s, name.len) : template_undefined(name.s, name.len);
    return template_attr(r, v, name.s, name.len);
}

/* Those of jinja2 that lay out HTML or text for people, or roll dice: known, so that a template that has them loads. */
static FILTER(f_unsupported)
{
    (void)v;
    (void)a;
    return template_fail(r, ERR_UNSUPPORTED, "the filters pprint, random, urlize and wordwrap are not supported");
}

const struct template_def *template_def_find(const struct template_def *table, size_t n, const char *name, size_t len)
{
    for (size_t i = 0; i < n; i++)
        if (table[i].name[0] == (len > 0 ? name[0] : 0) && strlen(table[i].name) == len && memcmp(table[i].name, name, len) == 0)
            return &table[i];
    return NULL;
}

const struct template_def *template_filter_find(const char *name, size_t len)
{
    static const struct template_def filters[] = {
        {"abs", f_abs, ""},
        {"attr", f_attr, "name"},
        {"batch", template_filter_batch, "linecount fill_with?"},
        {"capitalize", f_capitalize, ""},
        {"center", f_center, "width?"},
        {"count", f_length, ""},
        {"d", f_default, "default_value? boolean?"},
        {"default", f_default, "default_value? boolean?"},
        {"dictsort", template_filter_dictsort, "case_sensitive? by? reverse?"},
        {"e", f_escape, ""},
        {"escape", f_escape, ""},
        {"filesizeformat", f_filesizeformat, "binary?"},
        {"first", template_filter_first, ""},
        {"float", f_float, "default?"},
        {"forceescape", f_forceescape, ""},
        {"format", f_format, NULL},
        {"groupby", template_filter_groupby, "attribute default? case_sensitive?"},
        {"indent", f_indent, "width? first? blank?"},
        {"int", f_int, "default? base?"},
        {"items", template_filter_items, ""},
        {"join", template_filter_join, "d? attribute?"},
        {"last", template_filter_last, ""},
        {"length", f_length, ""},
        {"list", template_filter_list, ""},
        {"lower", f_lower, ""},
        {"map", template_filter_map, NULL},
        {"max", template_filter_max, "case_sensitive? attribute?"},
        {"min", template_filter_min, "case_sensitive? attribute?"},
        {"pprint", f_unsupported, NULL},
        {"random", f_unsupported, NULL},
        {"reject", template_filter_reject, NULL},
        {"rejectattr", template_filter_rejectattr, NULL},
        {"replace", f_replace, "old new count?"},
        {"reverse", template_filter_reverse, ""},
        {"round", f_round, "precision? method?"},
        {"safe", f_safe, ""},
        {"select", template_filter_select, NULL},
        {"selectattr", template_filter_selectattr, NULL},
        {"slice", template_filter_slice, "slices fill_with?"},
        {"sort", template_filter_sort, "reverse? case_sensitive? attribute?"},
        {"string", f_string, ""},
        {"striptags", f_striptags, ""},
        {"sum", template_filter_sum, "attribute? start?"},
        {"title", f_title, ""},
        {"tojson", f_tojson, "ensure_ascii? indent? separators? sort_keys?"},
        {"trim", f_trim, "chars?"},
        {"truncate", f_truncate, "length? killwords? end? leeway?"},
        {"unique", template_filter_unique, "case_sensitive? attribute?"},
        {"upper", f_upper, ""},
        {"urlencode", f_urlencode, ""},
        {"urlize", f_unsupported, NULL},
        {"wordcount", f_wordcount, ""},
        {"wordwrap", f_unsupported, NULL},
        {"xmlattr", f_xmlattr, "autospace?"},
    };
    return template_def_find(filters, ARRAY_LEN(filters), name, len);
}
