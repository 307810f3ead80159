/* "..." % values and "...".format(values): Python's two ways of writing values into a text. Both come down to one piece of
 * text, with its sign and prefix, that is laid out in a field. */
#include "base/check.h"
#include "text/template_ast.h"
#include "text/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct spec {
    struct template_val fill;
    char align, sign, group, type; /* align: < > ^ =, 0 when not given */
    bool alt, zero;
    int64_t width, prec; /* prec -1: none */
};

static bool among(const char *set, char c)
{
    return c != 0 && strchr(set, c) != NULL;
}

/* The field: sign and prefix, then the body. */
static void lay_out(struct template_text *t, const struct spec *s, struct template_val prefix, struct template_val body, char align)
{
    int64_t n = (int64_t)(template_char_count(prefix) + template_char_count(body)), room = MAX(s->width - n, 0);
    int64_t left = align == '>' ? room : align == '^' ? room / 2 : 0;
    struct template_val fill = template_given(s->fill) ? s->fill : template_cstr(" ");
    template_text_fill(t, fill.s, fill.len, left);
    template_text_add(t, prefix.s, prefix.len);
    if (align == '=')
        template_text_fill(t, fill.s, fill.len, room);
    template_text_add(t, body.s, body.len);
    if (align == '<' || align == '^')
        template_text_fill(t, fill.s, fill.len, room - left);
}

static struct template_val grouped(struct template_run *r, struct template_val digits, char sep, size_t every)
{
    size_t whole = 0;
    while (whole < digits.len && !among(".e", digits.s[whole]))
        whole++;
    struct template_text t = {.r = r};
    for (size_t i = 0; i < whole; i++) {
        if (i > 0 && (whole - i) % every == 0)
            template_text_add(&t, &sep, 1);
        template_text_add(&t, digits.s + i, 1);
    }
    template_text_add(&t, digits.s + whole, digits.len - whole);
    return template_text_val(&t);
}

/* Digits of |f|; type e f g and their capitals, 'r' for repr's. */
static struct template_val float_digits(struct template_run *r, double f, char type, int64_t prec, bool alt)
{
    char out[1100], fmt[16];
    f = fabs(f);
    if (!isfinite(f))
        return template_cstr(isnan(f) ? (among("EFG", type) ? "NAN" : "nan") : among("EFG", type) ? "INF" : "inf");
    if (type == 'r') {
        template_format_float(f, out, sizeof(out));
    } else {
        snprintf(fmt, sizeof(fmt), "%%%s.*%c", alt ? "#" : "", type);
        if (prec > 700) {
            template_fail(r, ERR_TOO_BIG, "a format's precision is over 700");
            return template_cstr("");
        }
        snprintf(out, sizeof(out), fmt, (int)prec, f);
    }
    struct template_text t = {.r = r};
    template_text_puts(&t, out);
    return template_text_val(&t);
}

static void add_number(struct template_text *t, const struct spec *s, bool negative, const char *prefix, struct template_val body)
{
    char sign[8];
    snprintf(sign, sizeof(sign), "%s%s", negative ? "-" : s->sign == '+' ? "+" : s->sign == ' ' ? " " : "", prefix);
    struct spec f = *s;
    if (s->zero && !template_given(f.fill))
        f.fill = template_cstr("0");
    lay_out(t, &f, template_cstr(sign), body, s->align != 0 ? s->align : s->zero ? '=' : '>');
}

static void add_whole(struct template_text *t, const struct spec *s, struct template_val v, bool modern)
{
    int base = among("xX", s->type) ? 16 : s->type == 'o' ? 8 : s->type == 'b' ? 2 : 10;
    struct template_val d = template_int_text(t->r, v, base);
    bool negative = d.len > 0 && d.s[0] == '-';
    char prefix[4] = {0};
    if (t->r->failed)
        return;
    d.s += negative;
    d.len -= negative;
    if (s->type == 'X')
        d = template_case(t->r, d, 'u');
    if (s->alt && base != 10) {
        prefix[0] = '0';
        prefix[1] = s->type;
    }
    struct template_text wide = {.r = t->r};
    if (!modern && s->prec > (int64_t)d.len) {
        template_text_fill(&wide, "0", 1, s->prec - (int64_t)d.len);
        template_text_add(&wide, d.s, d.len);
        d = template_text_val(&wide);
    }
    if (s->group != 0)
        d = grouped(t->r, d, s->group, base == 10 ? 3 : 4);
    add_number(t, s, negative, prefix, d);
}

static void add_float(struct template_text *t, const struct spec *s, double f)
{
    char type = s->type == 0 ? (s->prec < 0 ? 'r' : 'g') : s->type == '%' ? 'f' : s->type == 'n' ? 'g' : s->type;
    int64_t prec = s->prec >= 0 ? s->prec : 6;
    bool negative = signbit(f) && !isnan(f);
    struct template_val d = float_digits(t->r, s->type == '%' ? f * 100 : f, type, type == 'g' && prec == 0 ? 1 : prec, s->alt);
    struct template_text tail = {.r = t->r};
    if (s->type == 0 && s->prec >= 0 && isfinite(f)) { /* like g, but never without a point, and one digit earlier with an exponent */
        int exp = f == 0 ? 0 : (int)floor(log10(fabs(f)));
        char e[64];
        snprintf(e, sizeof(e), "%.*e", (int)MIN(MAX(prec - 1, 0), 40), fabs(f));
        exp = atoi(strchr(e, 'e') + 1);
        if (exp == MAX(prec, 1) - 1 && exp >= 0) { /* no room for a digit behind the point */
            char *mark = strchr(e, 'e'), *end = mark;
            while (end > e && end[-1] == '0' && memchr(e, '.', (size_t)(end - e)) != NULL)
                end--;
            if (end > e && end[-1] == '.')
                end--;
            template_text_add(&tail, e, (size_t)(end - e));
            template_text_puts(&tail, mark);
            d = template_text_val(&tail);
        } else if (memchr(d.s, '.', d.len) == NULL && memchr(d.s, 'e', d.len) == NULL) {
            template_text_add(&tail, d.s, d.len);
            template_text_puts(&tail, ".0");
            d = template_text_val(&tail);
        }
    }
    if (s->group != 0)
        d = grouped(t->r, d, s->group, 3);
    if (s->type == '%') {
        template_text_add(&tail, d.s, d.len);
        template_text_puts(&tail, "%");
        d = template_text_val(&tail);
    }
    add_number(t, s, negative, "", d);
}

static void add_text(struct template_text *t, const struct spec *s, struct template_val v, char align)
{
    if (s->prec >= 0)
        v.len = template_char_offset(v, (size_t)s->prec);
    lay_out(t, s, template_cstr(""), v, align);
}

/* ---- % ---- */

struct percent {
    struct template_run *r;
    struct template_val fmt, arg;
    size_t at;
    uint32_t next, n;
    bool tuple, mapping;
};

static struct template_val percent_arg(struct percent *p)
{
    if (p->next >= p->n)
        return template_fail(p->r, ERR_INVALID, "not enough arguments for format string");
    p->next++;
    return p->tuple ? p->arg.list->v[p->next - 1] : p->arg;
}

/* "(name)" behind the %. */
static struct template_val percent_key(struct percent *p)
{
    size_t from = ++p->at, depth = 1;
    if (!p->mapping)
        return template_fail(p->r, ERR_INVALID, "format requires a mapping");
    for (; p->at < p->fmt.len; p->at++) {
        depth += (p->fmt.s[p->at] == '(') - (p->fmt.s[p->at] == ')');
        if (depth == 0)
            break;
    }
    if (p->at >= p->fmt.len)
        return template_fail(p->r, ERR_INVALID, "incomplete format key");
    struct template_val key = template_str(p->fmt.s + from, p->at++ - from);
    if (p->arg.kind == TV_UNDEFINED)
        return template_undefined_used(p->r, p->arg);
    const struct template_val *v = p->arg.kind == TV_DICT ? template_get(p->r, p->arg.dict, key) : NULL;
    p->next = p->n;
    return v != NULL ? *v : template_fail(p->r, ERR_INVALID, "the format has no value for '%.*s'", (int)MIN(key.len, (size_t)60), key.s);
}

/* A number of the format, or "*". */
static int64_t percent_size(struct percent *p, bool *negative)
{
    int64_t n = 0;
    if (p->at < p->fmt.len && p->fmt.s[p->at] == '*') {
        p->at++;
        struct template_val v = percent_arg(p);
        if (!template_small(v, &n))
            template_fail(p->r, ERR_INVALID, "* wants int");
        *negative = n < 0;
        n = n < 0 ? -n : n;
    }
    while (p->at < p->fmt.len && p->fmt.s[p->at] >= '0' && p->fmt.s[p->at] <= '9' && n <= TEMPLATE_WIDTH_MAX)
        n = n * 10 + (p->fmt.s[p->at++] - '0');
    if (n > TEMPLATE_WIDTH_MAX)
        template_fail(p->r, ERR_TOO_BIG, "a format is wider than %d", TEMPLATE_WIDTH_MAX);
    return n;
}

static void percent_value(struct percent *p, struct template_text *t, struct spec *s, struct template_val v)
{
    struct template_run *r = p->r;
    double f;
    bool left = s->align == '<';
    if (among("sra", s->type)) {
        struct template_val text = s->type == 's' ? template_to_str(r, v) : template_to_repr(r, v);
        if (s->type == 'a')
            template_fail(r, ERR_UNSUPPORTED, "%%a is not supported");
        s->fill = (struct template_val){0};
        add_text(t, s, text, left ? '<' : '>');
    } else if (among("diu", s->type)) {
        if (v.kind == TV_FLOAT && isfinite(v.f))
            v = template_int_from_double(r, v.f);
        if (!template_is_whole(v))
            template_fail(r, ERR_INVALID, "%%%c format: a real number is required, not %s", s->type, template_type_name(v));
        else
            add_whole(t, s, v, false);
    } else if (among("xXo", s->type)) {
        if (!template_is_whole(v))
            template_fail(r, ERR_INVALID, "%%%c format: an integer is required, not %s", s->type, template_type_name(v));
        else
            add_whole(t, s, v, false);
    } else if (among("eEfFgG", s->type)) {
        if (!template_number(v, &f) || (isinf(f) && v.kind == TV_BIG))
            template_fail(r, ERR_INVALID, "must be real number, not %s", template_type_name(v));
        else
            add_float(t, s, f);
    } else if (s->type == 'c') {
        int64_t cp;
        char c[4];
        if (v.kind == TV_STR && template_char_count(v) == 1)
            add_text(t, s, v, left ? '<' : '>');
        else if (template_small(v, &cp) && cp >= 0 && cp <= 0x10FFFF && (cp < 0xD800 || cp >= 0xE000))
            add_text(t, s, template_str(c, utf8_encode((uint32_t)cp, c)), left ? '<' : '>');
        else
            template_fail(r, ERR_INVALID, "%%c requires int or char");
    } else {
        template_fail(r, ERR_INVALID, "unsupported format character");
    }
}

static void percent_item(struct percent *p, struct template_text *t)
{
    struct spec s = {.prec = -1};
    struct template_val v = {0};
    bool negative = false;
    if (p->at < p->fmt.len && p->fmt.s[p->at] == '(')
        v = percent_key(p);
    for (; p->at < p->fmt.len && among("-+ #0", p->fmt.s[p->at]); p->at++) {
        char c = p->fmt.s[p->at];
        if (c == '-')
            s.align = '<';
        else if (c == '+' || (c == ' ' && s.sign == 0))
            s.sign = c;
        s.alt = s.alt || c == '#';
        s.zero = s.zero || c == '0';
    }
    s.width = percent_size(p, &negative);
    if (negative)
        s.align = '<';
    if (p->at < p->fmt.len && p->fmt.s[p->at] == '.') {
        p->at++;
        negative = false;
        s.prec = percent_size(p, &negative);
        if (negative)
            s.prec = 0;
    }
    if (p->at < p->fmt.len && among("hlL", p->fmt.s[p->at]))
        p->at++;
    if (p->at >= p->fmt.len) {
        template_fail(p->r, ERR_INVALID, "incomplete format");
        return;
    }
    s.type = p->fmt.s[p->at++];
    s.zero = s.zero && s.align == 0;
    if (s.type == '%') {
        template_text_puts(t, "%");
        return;
    }
    if (!template_given(v))
        v = percent_arg(p);
    if (!p->r->failed)
        percent_value(p, t, &s, v);
}

struct template_val template_percent(struct template_run *r, struct template_val fmt, struct template_val arg)
{
    struct template_text t = {.r = r};
    struct percent p = {.r = r, .fmt = fmt, .arg = arg, .tuple = template_is_tuple(arg)};
    p.n = p.tuple ? arg.list->n : 1;
    p.mapping = arg.kind == TV_DICT || arg.kind == TV_UNDEFINED || (arg.kind == TV_LIST && (arg.flavour == TV_PLAIN || arg.flavour == TV_RANGE));
    while (p.at < fmt.len && template_step(r, 1)) {
        if (fmt.s[p.at] == '%') {
            p.at++;
            percent_item(&p, &t);
        } else {
            const char *next = memchr(fmt.s + p.at, '%', fmt.len - p.at);
            size_t to = next == NULL ? fmt.len : (size_t)(next - fmt.s);
            template_text_add(&t, fmt.s + p.at, to - p.at);
            p.at = to;
        }
    }
    if (p.next < p.n && !p.mapping)
        return template_fail(r, ERR_INVALID, "not all arguments converted during string formatting");
    struct template_val v = template_text_val(&t);
    v.flavour = fmt.flavour;
    return v;
}

/* ---- str.format ---- */

struct fields {
    struct template_run *r;
    const struct template_args *a;
    struct template_val map; /* of format_map */
    int64_t next;            /* of "{}"; -1 once numbers are used */
    uint32_t depth;
};

static struct template_val expand(struct fields *f, struct template_val s);

/* The digits at *i, of any script, as Python takes them; ends behind the first that passes max. */
static int64_t read_number(struct template_val text, size_t *i, int64_t max)
{
    int64_t v = 0;
    while (*i < text.len && v <= max) {
        size_t n = 0;
        int digit = template_char_decimal(template_char_at(text, *i, &n));
        if (digit < 0)
            break;
        v = v * 10 + digit;
        *i += n;
    }
    return v;
}

/* cut: the precision cuts a text, which may be as long as it likes. */
static bool read_spec(struct template_run *r, struct template_val text, bool cut, struct spec *s)
{
    size_t i = 0, n = 0;
    *s = (struct spec){.prec = -1};
    if (text.len > 0)
        template_char_at(text, 0, &n);
    if (n > 0 && n < text.len && among("<>=^", text.s[n])) {
        s->fill = template_str(text.s, n);
        s->align = text.s[n];
        i = n + 1;
    } else if (text.len > 0 && among("<>=^", text.s[0])) {
        s->align = text.s[i++];
    }
    if (i < text.len && among("+- ", text.s[i]))
        s->sign = text.s[i++];
    if (i < text.len && text.s[i] == '#') {
        s->alt = true;
        i++;
    }
    if (i < text.len && text.s[i] == '0') {
        s->zero = true;
        i++;
    }
    s->width = read_number(text, &i, TEMPLATE_WIDTH_MAX);
    if (i < text.len && among(",_", text.s[i]))
        s->group = text.s[i++];
    if (i < text.len && text.s[i] == '.') {
        size_t from = ++i;
        s->prec = read_number(text, &i, cut ? INT64_MAX / 100 : TEMPLATE_WIDTH_MAX);
        if (i == from)
            template_fail(r, ERR_INVALID, "Format specifier missing precision");
    }
    if (i < text.len)
        s->type = text.s[i++];
    if (s->width > TEMPLATE_WIDTH_MAX || (s->prec > TEMPLATE_WIDTH_MAX && !cut))
        template_fail(r, ERR_TOO_BIG, "a format is wider than %d", TEMPLATE_WIDTH_MAX);
    else if (i < text.len)
        template_fail(r, ERR_INVALID, "Invalid format specifier");
    if (s->zero && s->group != 0)
        template_fail(r, ERR_UNSUPPORTED, "a format with zeros and groups is not supported");
    return !r->failed;
}

static void format_value(struct fields *f, struct template_text *t, struct template_val v, struct template_val spec)
{
    struct spec s;
    double d;
    if (spec.len == 0) {
        template_text_str(t, v);
        return;
    }
    if (!read_spec(f->r, spec, v.kind == TV_STR, &s))
        return;
    bool whole = template_is_whole(v);
    if (v.kind == TV_STR && (s.type == 0 || s.type == 's') && s.sign == 0 && !s.alt && s.group == 0 && s.align != '=') {
        if (s.zero && !template_given(s.fill))
            s.fill = template_cstr("0");
        add_text(t, &s, v, s.align != 0 ? s.align : '<');
    } else if (whole && (s.type == 0 || among("bdoxXn", s.type)) && s.prec < 0 && !(s.group == ',' && among("boxX", s.type))) {
        add_whole(t, &s, v, true);
    } else if (whole && s.type == 'c' && s.sign == 0 && s.prec < 0) {
        int64_t cp;
        char c[4];
        if (!template_small(v, &cp) || cp < 0 || cp > 0x10FFFF || (cp >= 0xD800 && cp < 0xE000))
            template_fail(f->r, ERR_INVALID, "%%c arg not in range(0x110000)");
        else
            add_text(t, &s, template_str(c, utf8_encode((uint32_t)cp, c)), s.align != 0 ? s.align : '<');
    } else if (template_number(v, &d) && ((v.kind == TV_FLOAT && s.type == 0) || among("eEfFgGn%", s.type))) {
        add_float(t, &s, d);
    } else {
        template_fail(f->r, ERR_INVALID, "unsupported format specification for '%s'", template_type_name(v));
    }
}

/* The value of "0", "name", "" with ".attr" and "[item]" behind. */
static struct template_val field_value(struct fields *f, struct template_val name)
{
    size_t i = 0, n = 0;
    while (i < name.len && !among(".[", name.s[i]))
        i++;
    struct template_val v;
    int64_t idx = read_number(template_str(name.s, i), &n, INT32_MAX);
    if (n == i || idx > INT32_MAX) {
        if ((i == 0 && f->next < 0) || (i > 0 && f->next > 0))
            return template_fail(f->r, ERR_INVALID, "cannot switch between automatic field numbering and manual specification");
        if (i == 0)
            idx = f->next++;
        else
            f->next = -1;
        if (f->a == NULL || idx >= f->a->n)
            return template_fail(f->r, ERR_INVALID, "Replacement index %lld out of range for positional args tuple", (long long)idx);
        v = f->a->pos[idx];
    } else {
        const struct template_val *found = f->map.kind == TV_DICT ? template_get_str(f->map.dict, name.s, i) : NULL;
        for (uint32_t k = 0; f->a != NULL && k < f->a->n_kw && found == NULL; k++)
            if (strlen(f->a->kw[k].name) == i && memcmp(f->a->kw[k].name, name.s, i) == 0)
                found = &f->a->kw[k].v;
        if (found == NULL)
            return template_fail(f->r, ERR_INVALID, "format() has no argument \"%.*s\"", (int)MIN(i, (size_t)60), name.s);
        v = *found;
    }
    while (i < name.len && !f->r->failed) {
        bool item = name.s[i] == '[';
        size_t from = ++i;
        while (i < name.len && (item ? name.s[i] != ']' : !among(".[", name.s[i])))
            i++;
        if (i == from || (item && i >= name.len))
            return template_fail(f->r, ERR_INVALID, "Empty attribute in format string");
        struct template_val key = template_str(name.s + from, i - from);
        n = 0;
        idx = read_number(key, &n, INT32_MAX);
        v = !item          ? template_attr(f->r, v, key.s, key.len)
            : n == key.len ? template_item(f->r, v, template_int(idx))
                           : template_item(f->r, v, key);
        i += item;
        if (item && i < name.len && !among(".[", name.s[i]))
            return template_fail(f->r, ERR_INVALID, "Only '.' or '[' may follow ']' in format field specifier");
    }
    return v;
}

/* One replacement field, the text between its braces. */
static void add_field(struct fields *f, struct template_text *t, struct template_val text)
{
    size_t i = 0;
    bool item = false;
    while (i < text.len && (item || !among("!:", text.s[i]))) {
        item = text.s[i] == '[' || (item && text.s[i] != ']');
        i++;
    }
    struct template_val v = field_value(f, template_str(text.s, i)), spec = template_cstr("");
    if (!f->r->failed && i < text.len && text.s[i] == '!') {
        char how = i + 1 < text.len ? text.s[i + 1] : 0;
        if (how == 's' || how == 'r')
            v = how == 's' ? template_to_str(f->r, v) : template_to_repr(f->r, v);
        else
            template_fail(f->r, ERR_INVALID, "unknown conversion of a format field");
        i += 2;
        if (i < text.len && text.s[i] != ':')
            template_fail(f->r, ERR_INVALID, "expected ':' after conversion specifier");
    }
    if (i < text.len && !f->r->failed)
        spec = expand(f, template_str(text.s + i + 1, text.len - i - 1));
    if (!f->r->failed)
        format_value(f, t, v, spec);
}

static struct template_val expand(struct fields *f, struct template_val s)
{
    struct template_text t = {.r = f->r};
    if (f->depth++ >= 2)
        return template_fail(f->r, ERR_INVALID, "Max string recursion exceeded");
    for (size_t i = 0; i < s.len && template_step(f->r, 1); i++) {
        char c = s.s[i];
        if (c != '{' && c != '}') {
            template_text_add(&t, &c, 1);
            continue;
        }
        if (i + 1 < s.len && s.s[i + 1] == c) {
            template_text_add(&t, &c, 1);
            i++;
            continue;
        }
        size_t from = ++i, depth = 1;
        for (; c == '{' && i < s.len; i++) {
            depth += (s.s[i] == '{') - (s.s[i] == '}');
            if (depth == 0)
                break;
        }
        if (c == '}' || i >= s.len)
            return template_fail(f->r, ERR_INVALID, "a brace of format() has no partner");
        add_field(f, &t, template_str(s.s + from, i - from));
    }
    f->depth--;
    return template_text_val(&t);
}

struct template_val template_str_format(struct template_run *r, struct template_val s, const struct template_args *a, struct template_val map)
{
    struct fields f = {.r = r, .a = a, .map = map};
    struct template_val v = expand(&f, s);
    v.flavour = s.flavour;
    return v;
}
