/* Filters and tests, by name. Those that jinja2 makes generators give generators here too, so that what may be done
 * with them is the same. */
#include "base/check.h"
#include "coordinator/template_ast.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILTER(name)                                                                                                   \
    static struct template_val name(struct template_run *r, struct template_val v, const struct template_args *a)

static bool flag(const struct template_args *a, uint32_t idx, const char *name, bool def)
{
    struct template_val v = template_arg(a, idx, name);
    return template_given(v) ? template_truth(v) : def;
}

static int64_t int_arg(const struct template_args *a, uint32_t idx, const char *name, int64_t def)
{
    struct template_val v = template_arg(a, idx, name);
    return v.kind == TV_INT ? v.i : v.kind == TV_BOOL ? v.b : def;
}

/* ---- text ---- */

FILTER(f_trim)
{
    return template_strip(r, template_to_str(r, v), template_arg(a, 0, "chars"), 3);
}

FILTER(f_upper)
{
    (void)a;
    return template_case(r, template_to_str(r, v), 'u');
}

FILTER(f_lower)
{
    (void)a;
    return template_case(r, template_to_str(r, v), 'l');
}

FILTER(f_capitalize)
{
    (void)a;
    return template_case(r, template_to_str(r, v), 'c');
}

/* Words begin after white space, '-', '(', '{', '[' and '<'. */
FILTER(f_title)
{
    (void)a;
    struct template_val s = template_to_str(r, v);
    struct template_text t = {.r = r};
    for (size_t i = 0; i < s.len && template_step(r, 1);) {
        size_t from = i, n;
        uint32_t cp = 0;
        while (i < s.len && (cp = template_char_at(s, i, &n),
                             !(template_is_space(cp) || (cp < 128 && strchr("-({[<", (int)cp) != NULL && cp != 0))))
            i += n;
        struct template_val w = template_case(r, template_str(s.s + from, i - from), 'c');
        template_text_add(&t, w.s, w.len);
        if (i < s.len) {
            template_char_at(s, i, &n);
            template_text_add(&t, s.s + i, n);
            i += n;
        }
    }
    return template_text_val(&t);
}

FILTER(f_string)
{
    (void)a;
    return template_to_str(r, v);
}

FILTER(f_safe)
{
    (void)a;
    struct template_val s = template_to_str(r, v);
    s.flavour = TV_MARKUP;
    return s;
}

FILTER(f_escape)
{
    (void)a;
    struct template_val s = template_to_str(r, v);
    struct template_text t = {.r = r};
    if (s.flavour == TV_MARKUP)
        return s;
    template_text_escape(&t, s);
    s = template_text_val(&t);
    s.flavour = TV_MARKUP;
    return s;
}

FILTER(f_replace)
{
    struct template_val from = template_arg(a, 0, "old"), to = template_arg(a, 1, "new");
    if (!template_given(from) || !template_given(to))
        return template_fail(r, ERR_INVALID, "replace needs what is to be replaced, and by what");
    return template_replace(r, template_to_str(r, v), template_to_str(r, from), template_to_str(r, to),
                            int_arg(a, 2, "count", -1));
}

FILTER(f_indent)
{
    struct template_val s = template_to_str(r, v), width = template_arg(a, 0, "width");
    bool first = flag(a, 1, "first", false), empty = flag(a, 2, "blank", false);
    struct template_text pad = {.r = r}, t = {.r = r};
    if (width.kind == TV_STR)
        template_text_add(&pad, width.s, width.len);
    for (int64_t i = template_given(width) ? int_arg(a, 0, "width", 0) : 4; i > 0 && template_step(r, 1); i--)
        template_text_puts(&pad, " ");
    for (size_t i = 0, line = 0; i <= s.len && template_step(r, 1); line++) {
        const char *nl = i < s.len ? memchr(s.s + i, '\n', s.len - i) : NULL;
        size_t to = nl == NULL ? s.len : (size_t)(nl - s.s);
        if ((line > 0 || first) && (to > i || empty))
            template_text_add(&t, pad.s, pad.len);
        template_text_add(&t, s.s + i, to - i);
        if (nl != NULL)
            template_text_puts(&t, "\n");
        i = to + 1;
    }
    return template_text_val(&t);
}

FILTER(f_wordcount)
{
    (void)a;
    struct template_val s = template_to_str(r, v);
    int64_t words = 0;
    bool in = false;
    for (size_t i = 0; i < s.len && template_step(r, 1);) {
        size_t n;
        uint32_t cp = template_char_at(s, i, &n);
        bool w = template_is_alpha(cp) || (cp >= '0' && cp <= '9') || cp == '_';
        words += w && !in;
        in = w;
        i += n;
    }
    return template_int(words);
}

FILTER(f_format)
{
    if (a->n_kw > 0 && a->n > 0)
        return template_fail(r, ERR_INVALID, "format takes positional or named arguments, not both");
    if (a->n_kw > 0) {
        struct template_val d = template_dict(r);
        for (uint32_t i = 0; i < a->n_kw && !r->failed; i++)
            template_put(r, d.dict, template_cstr(a->kw[i].name), a->kw[i].v);
        return template_percent(r, template_to_str(r, v), d);
    }
    struct template_val l = template_list(r, TV_TUPLE, a->n);
    for (uint32_t i = 0; i < a->n && !r->failed; i++)
        template_push(r, l, a->pos[i]);
    return r->failed ? v : template_percent(r, template_to_str(r, v), l);
}

FILTER(f_tojson)
{
    struct template_val seps = template_arg(a, 2, "separators"), indent = template_arg(a, 1, "indent");
    struct template_json_opts o = {
        .indent = -1, .ascii = flag(a, 0, "ensure_ascii", false), .sort_keys = flag(a, 3, "sort_keys", false)};
    struct template_text t = {.r = r}, pad = {.r = r};
    if (indent.kind == TV_INT || indent.kind == TV_BOOL) {
        o.indent = MAX(int_arg(a, 1, "indent", 0), 0);
    } else if (indent.kind == TV_STR) {
        template_text_add(&pad, indent.s, indent.len);
        template_text_add(&pad, "", 1);
        o.indent_str = pad.len > 0 ? pad.s : "";
    }
    bool lines = o.indent >= 0 || o.indent_str != NULL;
    o.item_sep = template_cstr(lines ? "," : ", ");
    o.key_sep = template_cstr(": ");
    if (template_given(seps) && seps.kind != TV_NONE) {
        if (seps.kind != TV_LIST || seps.list->n != 2 || seps.list->v[0].kind != TV_STR ||
            seps.list->v[1].kind != TV_STR)
            return template_fail(r, ERR_INVALID, "tojson: separators are two strings");
        o.item_sep = seps.list->v[0];
        o.key_sep = seps.list->v[1];
    }
    if (!r->failed)
        template_text_json(&t, v, &o, 0);
    return template_text_val(&t);
}

/* ---- numbers ---- */

FILTER(f_int)
{
    double f;
    struct template_val def = template_arg(a, 0, "default");
    int64_t base = int_arg(a, 1, "base", 10);
    if (!template_given(def))
        def = template_int(0);
    if (v.kind == TV_INT)
        return v;
    if (template_number(v, &f))
        return fabs(f) < 9.2e18 ? template_int((int64_t)f) : def;
    if (v.kind != TV_STR)
        return def;
    char text[80], *end;
    struct template_val s = template_strip(r, v, template_none(), 3);
    if (s.len == 0 || s.len >= sizeof(text) || memchr(s.s, 0, s.len) != NULL || base < 0 || base == 1 || base > 36)
        return def;
    memcpy(text, s.s, s.len);
    text[s.len] = 0;
    long long i = strtoll(text, &end, (int)base);
    if (*end == 0 && i != INT64_MAX && i != INT64_MIN)
        return template_int(i);
    f = strtod(text, &end);
    return *end == 0 && fabs(f) < 9.2e18 && strpbrk(text, "xXpP") == NULL ? template_int((int64_t)f) : def;
}

FILTER(f_float)
{
    double f;
    struct template_val def = template_arg(a, 0, "default");
    if (!template_given(def))
        def = template_float(0);
    if (template_number(v, &f))
        return template_float(f);
    char text[400], *end;
    struct template_val s = v.kind == TV_STR ? template_strip(r, v, template_none(), 3) : template_cstr("");
    if (s.len == 0 || s.len >= sizeof(text))
        return def;
    memcpy(text, s.s, s.len);
    text[s.len] = 0;
    f = strtod(text, &end);
    return *end == 0 && strpbrk(text, "xXpP") == NULL ? template_float(f) : def;
}

FILTER(f_abs)
{
    (void)a;
    if (v.kind == TV_FLOAT)
        return template_float(fabs(v.f));
    if (v.kind == TV_BOOL)
        return template_int(v.b);
    if (v.kind != TV_INT)
        return template_fail(r, ERR_INVALID, "bad operand type for abs(): '%s'", template_type_name(v));
    return v.i == INT64_MIN ? template_fail(r, ERR_INVALID, "integer overflow") : template_int(llabs(v.i));
}

FILTER(f_round)
{
    double f;
    int64_t prec = int_arg(a, 0, "precision", 0);
    struct template_val how = template_arg(a, 1, "method");
    if (!template_number(v, &f))
        return template_fail(r, ERR_INVALID, "type %s doesn't define __round__ method", template_type_name(v));
    if (prec < -300 || prec > 300)
        return v;
    double p = pow(10, (double)prec);
    if (template_is_str(how, "ceil"))
        return template_float(ceil(f * p) / p);
    if (template_is_str(how, "floor"))
        return template_float(floor(f * p) / p);
    if (v.kind != TV_FLOAT && prec >= 0)
        return template_int((int64_t)f);
    char text[700];
    if (prec >= 0) {
        snprintf(text, sizeof(text), "%.*f", (int)prec, f); /* round half to even on the exact value, as Python does */
        return template_float(strtod(text, NULL));
    }
    f = nearbyint(f * p) / p;
    return v.kind == TV_FLOAT ? template_float(f) : template_int((int64_t)f);
}

/* ---- sequences ---- */

FILTER(f_length)
{
    (void)a;
    if (v.kind == TV_STR)
        return template_step(r, v.len / 64) ? template_int((int64_t)template_char_count(v)) : v;
    if (v.kind == TV_LIST && v.flavour != TV_GENERATOR)
        return template_int(v.list->n);
    if (v.kind == TV_DICT)
        return template_int(v.dict->n);
    if (v.kind == TV_UNDEFINED)
        return template_int(0);
    return template_fail(r, ERR_INVALID, "object of type '%s' has no len()", template_type_name(v));
}

FILTER(f_default)
{
    struct template_val def = template_arg(a, 0, "default_value");
    if (!template_given(def) && a->n == 0)
        def = template_cstr("");
    (void)r;
    return v.kind == TV_UNDEFINED || (flag(a, 1, "boolean", false) && !template_truth(v)) ? def : v;
}

static struct template_val copy_list(struct template_run *r, const struct template_list *l,
                                     enum template_flavour flavour)
{
    struct template_val out = template_list(r, flavour, l == NULL ? 0 : l->n);
    for (uint32_t i = 0; l != NULL && i < l->n && template_step(r, 1); i++)
        template_push(r, out, l->v[i]);
    return out;
}

FILTER(f_list)
{
    (void)a;
    return copy_list(r, template_iterate(r, v), TV_PLAIN);
}

FILTER(f_first)
{
    (void)a;
    if (v.kind == TV_LIST && v.flavour == TV_GENERATOR && v.list->n > 0) {
        struct template_val x = v.list->v[0];
        v.list->v++;
        v.list->n--;
        v.list->cap--;
        return x;
    }
    struct template_list *l = template_iterate(r, v);
    return l != NULL && l->n > 0 ? l->v[0] : template_undefined("No first item, sequence was empty.", 34);
}

FILTER(f_last)
{
    (void)a;
    if (v.kind == TV_LIST && v.flavour == TV_GENERATOR)
        return template_fail(r, ERR_INVALID, "'generator' object is not reversible");
    struct template_list *l = template_iterate(r, v);
    return l != NULL && l->n > 0 ? l->v[l->n - 1] : template_undefined("No last item, sequence was empty.", 33);
}

/* "a.b.0" of a value, as map(attribute=...) and others take it. */
static struct template_val path_of(struct template_run *r, struct template_val v, struct template_val path)
{
    if (path.kind != TV_STR)
        return path.kind == TV_INT ? template_item(r, v, path) : v;
    for (size_t i = 0; i <= path.len && !r->failed;) {
        const char *dot = i < path.len ? memchr(path.s + i, '.', path.len - i) : NULL;
        size_t to = dot == NULL ? path.len : (size_t)(dot - path.s), k = i;
        int64_t idx = 0;
        for (; k < to && to - i < 10 && path.s[k] >= '0' && path.s[k] <= '9'; k++)
            idx = idx * 10 + (path.s[k] - '0');
        v = template_item(r, v, k == to && to > i ? template_int(idx) : template_str(path.s + i, to - i));
        i = to + 1;
    }
    return v;
}

FILTER(f_join)
{
    struct template_val sep = template_arg(a, 0, "d"), attr = template_arg(a, 1, "attribute");
    struct template_list *l = template_iterate(r, v);
    struct template_text t = {.r = r};
    sep = template_given(sep) ? template_to_str(r, sep) : template_cstr("");
    for (uint32_t i = 0; l != NULL && i < l->n && template_step(r, 1); i++) {
        if (i > 0)
            template_text_add(&t, sep.s, sep.len);
        template_text_str(&t, template_given(attr) ? path_of(r, l->v[i], attr) : l->v[i]);
    }
    return template_text_val(&t);
}

FILTER(f_items)
{
    (void)a;
    struct template_val out = template_list(r, TV_GENERATOR, v.kind == TV_DICT ? v.dict->n : 0);
    if (v.kind != TV_DICT && v.kind != TV_UNDEFINED)
        return template_fail(r, ERR_INVALID, "Can only get item pairs from a mapping.");
    for (uint32_t i = 0; v.kind == TV_DICT && i < v.dict->n && !r->failed; i++)
        template_push(r, out, template_pair(r, v.dict->e[i].k, v.dict->e[i].v));
    return out;
}

FILTER(f_reverse)
{
    (void)a;
    bool text = v.kind == TV_STR;
    struct template_list *l = template_iterate(r, v);
    struct template_val out = template_list(r, TV_GENERATOR, 0);
    struct template_text t = {.r = r};
    for (uint32_t i = l == NULL ? 0 : l->n; i-- > 0 && template_step(r, 1);) {
        if (text)
            template_text_add(&t, l->v[i].s, l->v[i].len);
        else
            template_push(r, out, l->v[i]);
    }
    return text ? template_text_val(&t) : out;
}

/* What sort, unique, min, max and groupby compare: the attribute, in lower case unless case counts. */
static struct template_val sort_key(struct template_run *r, struct template_val v, struct template_val attr,
                                    bool case_sensitive)
{
    if (template_given(attr) && attr.kind != TV_NONE)
        v = path_of(r, v, attr);
    return v.kind == TV_STR && !case_sensitive ? template_case(r, v, 'l') : v;
}

struct sorting {
    struct template_val key, v;
};

/* Stable merge sort of n items with one spare array of the same size. */
static void merge_sort(struct template_run *r, struct sorting *s, struct sorting *spare, uint32_t n, bool reverse)
{
    if (n < 2 || !template_step(r, n))
        return;
    uint32_t half = n / 2, i = 0, j = half, k = 0;
    merge_sort(r, s, spare, half, reverse);
    merge_sort(r, s + half, spare, n - half, reverse);
    while (i < half && j < n && !r->failed) {
        int c = template_cmp(r, s[j].key, s[i].key, "<");
        bool take_right = c != 2 && (reverse ? c > 0 : c < 0);
        spare[k++] = take_right ? s[j++] : s[i++];
    }
    while (i < half)
        spare[k++] = s[i++];
    while (j < n)
        spare[k++] = s[j++];
    memcpy(s, spare, n * sizeof(*s));
}

static struct sorting *sorted(struct template_run *r, const struct template_list *l, struct template_val attr,
                              bool case_sensitive, bool reverse)
{
    struct sorting *s = template_alloc(r, (size_t)l->n + 1, sizeof(*s)),
                   *spare = template_alloc(r, (size_t)l->n + 1, sizeof(*spare));
    for (uint32_t i = 0; i < l->n && !r->failed; i++)
        s[i] = (struct sorting){sort_key(r, l->v[i], attr, case_sensitive), l->v[i]};
    if (!r->failed)
        merge_sort(r, s, spare, l->n, reverse);
    return r->failed ? NULL : s;
}

FILTER(f_sort)
{
    struct template_list *l = template_iterate(r, v);
    if (l == NULL)
        return v;
    struct sorting *s = sorted(r, l, template_arg(a, 2, "attribute"), flag(a, 1, "case_sensitive", false),
                               flag(a, 0, "reverse", false));
    struct template_val out = template_list(r, TV_PLAIN, l->n);
    for (uint32_t i = 0; s != NULL && i < l->n && !r->failed; i++)
        template_push(r, out, s[i].v);
    return out;
}

FILTER(f_dictsort)
{
    if (v.kind != TV_DICT)
        return template_fail(r, ERR_INVALID, "'%s' object has no attribute 'items'", template_type_name(v));
    struct template_val by = template_arg(a, 1, "by"), pairs = template_list(r, TV_PLAIN, v.dict->n);
    if (template_given(by) && !template_is_str(by, "key") && !template_is_str(by, "value"))
        return template_fail(r, ERR_INVALID, "You can only sort by either \"key\" or \"value\"");
    for (uint32_t i = 0; i < v.dict->n && !r->failed; i++)
        template_push(r, pairs, template_pair(r, v.dict->e[i].k, v.dict->e[i].v));
    if (r->failed)
        return v;
    struct sorting *s = sorted(r, pairs.list, template_int(template_is_str(by, "value")),
                               flag(a, 0, "case_sensitive", false), flag(a, 2, "reverse", false));
    for (uint32_t i = 0; s != NULL && i < pairs.list->n; i++)
        pairs.list->v[i] = s[i].v;
    return pairs;
}

FILTER(f_unique)
{
    struct template_list *l = template_iterate(r, v);
    struct template_val out = template_list(r, TV_GENERATOR, 0), seen = template_dict(r),
                        attr = template_arg(a, 1, "attribute");
    bool case_sensitive = flag(a, 0, "case_sensitive", false);
    for (uint32_t i = 0; l != NULL && i < l->n && !r->failed; i++) {
        struct template_val k = sort_key(r, l->v[i], attr, case_sensitive);
        if (k.kind != TV_DICT && k.kind != TV_LIST && template_get(r, seen.dict, k) != NULL)
            continue;
        template_put(r, seen.dict, k, template_none());
        template_push(r, out, l->v[i]);
    }
    return out;
}

static struct template_val extreme(struct template_run *r, struct template_val v, const struct template_args *a,
                                   int sign)
{
    struct template_list *l = template_iterate(r, v);
    struct template_val attr = template_arg(a, 1, "attribute"),
                        best = template_undefined("No aggregated item, sequence was empty.", 39), key = best;
    bool case_sensitive = flag(a, 0, "case_sensitive", false);
    for (uint32_t i = 0; l != NULL && i < l->n && !r->failed; i++) {
        struct template_val k = sort_key(r, l->v[i], attr, case_sensitive);
        int c = i == 0 ? 1 : template_cmp(r, k, key, sign > 0 ? ">" : "<") * sign;
        if (c > 0 && (i == 0 || c != 2)) {
            best = l->v[i];
            key = k;
        }
    }
    return best;
}

FILTER(f_min)
{
    return extreme(r, v, a, -1);
}

FILTER(f_max)
{
    return extreme(r, v, a, 1);
}

FILTER(f_sum)
{
    struct template_list *l = template_iterate(r, v);
    struct template_val attr = template_arg(a, 0, "attribute"), total = template_arg(a, 1, "start");
    if (!template_given(total))
        total = template_int(0);
    for (uint32_t i = 0; l != NULL && i < l->n && !r->failed; i++)
        total = template_binary(r, '+', total,
                                template_given(attr) && attr.kind != TV_NONE ? path_of(r, l->v[i], attr) : l->v[i]);
    return total;
}

FILTER(f_groupby)
{
    struct template_list *l = template_iterate(r, v);
    struct template_val attr = template_arg(a, 0, "attribute"), out = template_list(r, TV_PLAIN, 0);
    bool case_sensitive = flag(a, 2, "case_sensitive", false);
    struct sorting *s = l == NULL ? NULL : sorted(r, l, attr, case_sensitive, false);
    struct template_val group = template_none();
    for (uint32_t i = 0; s != NULL && i < l->n && !r->failed; i++) {
        if (i == 0 || !template_eq(r, s[i].key, s[i - 1].key)) {
            group = template_list(r, TV_PLAIN, 0);
            template_push(r, out, template_pair(r, path_of(r, s[i].v, attr), group));
        }
        template_push(r, group, s[i].v);
    }
    return out;
}

FILTER(f_batch)
{
    struct template_list *l = template_iterate(r, v);
    int64_t size = int_arg(a, 0, "linecount", 0);
    struct template_val fill = template_arg(a, 1, "fill_with"), out = template_list(r, TV_GENERATOR, 0),
                        row = template_none();
    if (size < 1)
        return template_fail(r, ERR_INVALID, "batch needs a size of at least 1");
    for (uint32_t i = 0; l != NULL && i < l->n && !r->failed; i++) {
        if (i % size == 0) {
            row = template_list(r, TV_PLAIN, 0);
            template_push(r, out, row);
        }
        template_push(r, row, l->v[i]);
    }
    while (template_given(fill) && fill.kind != TV_NONE && row.kind == TV_LIST && row.list->n < size &&
           template_push(r, row, fill)) {
    }
    return out;
}

FILTER(f_attr)
{
    struct template_val name = template_arg(a, 0, "name");
    if (name.kind != TV_STR)
        return template_fail(r, ERR_INVALID, "attr needs a name");
    if (v.kind == TV_DICT || v.kind == TV_UNDEFINED) /* attributes only, never items */
        return template_undefined(name.s, name.len);
    return template_attr(r, v, name.s, name.len);
}

/* ---- map and select ---- */

static struct template_args rest(const struct template_args *a, uint32_t from)
{
    struct template_args x = *a;
    x.pos += MIN(from, a->n);
    x.n -= MIN(from, a->n);
    return x;
}

/* jinja2 looks at nothing else when the sequence is false: none | selectattr(...) is empty. */
static bool nothing_there(struct template_val v)
{
    return v.kind != TV_LIST && !template_truth(v);
}

FILTER(f_map)
{
    if (nothing_there(v))
        return template_list(r, TV_GENERATOR, 0);
    struct template_list *l = template_iterate(r, v);
    struct template_val out = template_list(r, TV_GENERATOR, l == NULL ? 0 : l->n),
                        attr = template_arg(a, UINT32_MAX, "attribute");
    struct template_val name = template_arg(a, 0, NULL), def = template_arg(a, UINT32_MAX, "default");
    struct template_args args = rest(a, 1);
    bool by_attr = a->n == 0 && template_given(attr);
    template_fn *fn = by_attr || name.kind != TV_STR ? NULL : template_filter_find(name.s, name.len);
    if (!by_attr && fn == NULL)
        return template_fail(r, ERR_INVALID, "map requires the name of a filter or attribute=");
    for (uint32_t i = 0; l != NULL && i < l->n && template_step(r, 1); i++) {
        struct template_val x = by_attr ? path_of(r, l->v[i], attr) : fn(r, l->v[i], &args);
        template_push(r, out, by_attr && !template_given(x) && template_given(def) ? def : x);
    }
    return out;
}

static struct template_val choose(struct template_run *r, struct template_val v, const struct template_args *a,
                                  bool by_attr, bool want)
{
    if (nothing_there(v))
        return template_list(r, TV_GENERATOR, 0);
    struct template_list *l = template_iterate(r, v);
    struct template_val out = template_list(r, TV_GENERATOR, 0), attr = template_arg(a, 0, NULL),
                        name = template_arg(a, by_attr, NULL);
    struct template_args args = rest(a, by_attr ? 2 : 1);
    template_fn *fn = name.kind == TV_STR ? template_test_find(name.s, name.len) : NULL;
    if ((by_attr && !template_given(attr)) || (template_given(name) && fn == NULL))
        return template_fail(r, ERR_INVALID,
                             by_attr && !template_given(attr) ? "Missing parameter for attribute name"
                                                              : "there is no such test");
    for (uint32_t i = 0; l != NULL && i < l->n && template_step(r, 1); i++) {
        struct template_val x = by_attr ? path_of(r, l->v[i], attr) : l->v[i];
        if (template_truth(fn == NULL ? x : fn(r, x, &args)) == want)
            template_push(r, out, l->v[i]);
    }
    return out;
}

FILTER(f_select)
{
    return choose(r, v, a, false, true);
}

FILTER(f_reject)
{
    return choose(r, v, a, false, false);
}

FILTER(f_selectattr)
{
    return choose(r, v, a, true, true);
}

FILTER(f_rejectattr)
{
    return choose(r, v, a, true, false);
}

/* ---- tests ---- */

#define TEST_IS(name, condition)                                                                                       \
    FILTER(name)                                                                                                       \
    {                                                                                                                  \
        (void)r;                                                                                                       \
        (void)a;                                                                                                       \
        (void)v;                                                                                                       \
        return template_bool(condition);                                                                               \
    }
#define TEST_CMP(name, op, condition)                                                                                  \
    FILTER(name)                                                                                                       \
    {                                                                                                                  \
        int c = template_cmp(r, v, template_arg(a, 0, NULL), op);                                                      \
        return template_bool(c != 2 && (condition));                                                                   \
    }

TEST_IS(t_defined, v.kind != TV_UNDEFINED)
TEST_IS(t_undefined, v.kind == TV_UNDEFINED)
TEST_IS(t_none, v.kind == TV_NONE)
TEST_IS(t_string, v.kind == TV_STR)
TEST_IS(t_number, v.kind == TV_INT || v.kind == TV_FLOAT || v.kind == TV_BOOL)
TEST_IS(t_integer, v.kind == TV_INT)
TEST_IS(t_float, v.kind == TV_FLOAT)
TEST_IS(t_boolean, v.kind == TV_BOOL)
TEST_IS(t_true, v.kind == TV_BOOL && v.b)
TEST_IS(t_false, v.kind == TV_BOOL && !v.b)
TEST_IS(t_mapping, v.kind == TV_DICT)
TEST_IS(t_iterable, v.kind == TV_STR || v.kind == TV_LIST || v.kind == TV_DICT || v.kind == TV_UNDEFINED)
TEST_IS(t_sequence,
        v.kind == TV_STR || (v.kind == TV_LIST && v.flavour <= TV_RANGE) || v.kind == TV_DICT || v.kind == TV_UNDEFINED)
TEST_IS(t_callable, v.kind == TV_FUNCTION || v.kind == TV_MACRO)
TEST_IS(t_escaped, false)
TEST_IS(t_eq, template_eq(r, v, template_arg(a, 0, NULL)))
TEST_IS(t_ne, !template_eq(r, v, template_arg(a, 0, NULL)))
TEST_IS(t_in, template_contains(r, v, template_arg(a, 0, NULL)))
TEST_CMP(t_lt, "<", c < 0)
TEST_CMP(t_le, "<=", c <= 0)
TEST_CMP(t_gt, ">", c > 0)
TEST_CMP(t_ge, ">=", c >= 0)

FILTER(t_sameas)
{
    struct template_val o = template_arg(a, 0, NULL);
    return template_bool(v.kind == o.kind && template_eq(r, v, o) &&
                         (v.kind == TV_LIST   ? v.list == o.list
                          : v.kind == TV_DICT ? v.dict == o.dict
                                              : true));
}

static bool whole(struct template_run *r, struct template_val v, int64_t *i)
{
    if (v.kind != TV_INT && v.kind != TV_BOOL) {
        template_fail(r, ERR_INVALID, "not all arguments converted: an integer is expected, not '%s'",
                      template_type_name(v));
        return false;
    }
    *i = v.kind == TV_BOOL ? v.b : v.i;
    return true;
}

FILTER(t_odd)
{
    int64_t i = 0;
    (void)a;
    return template_bool(whole(r, v, &i) && i % 2 != 0);
}

FILTER(t_even)
{
    int64_t i = 1;
    (void)a;
    return template_bool(whole(r, v, &i) && i % 2 == 0);
}

FILTER(t_divisibleby)
{
    int64_t i, by;
    if (!whole(r, v, &i) || !whole(r, template_arg(a, 0, NULL), &by))
        return template_bool(false);
    if (by == 0)
        return template_fail(r, ERR_INVALID, "integer division or modulo by zero");
    return template_bool(by == -1 || i % by == 0);
}

static bool cased(struct template_run *r, struct template_val v, bool upper)
{
    struct template_val s = template_to_str(r, v);
    bool any = false;
    for (size_t i = 0; i < s.len && template_step(r, 1);) {
        size_t n;
        uint32_t cp = template_char_at(s, i, &n), other = upper ? template_upper_char(cp) : template_lower_char(cp);
        if (other != cp)
            return false;
        any = any || (upper ? template_lower_char(cp) : template_upper_char(cp)) != cp;
        i += n;
    }
    return any;
}

TEST_IS(t_lower, cased(r, v, false))
TEST_IS(t_upper, cased(r, v, true))

FILTER(t_filter)
{
    (void)a;
    struct template_val s = template_to_str(r, v);
    return template_bool(template_filter_find(s.s, s.len) != NULL);
}

FILTER(t_test)
{
    (void)a;
    struct template_val s = template_to_str(r, v);
    return template_bool(template_test_find(s.s, s.len) != NULL);
}

/* ---- by name ---- */

struct named_fn {
    const char *name;
    template_fn *fn;
};

static template_fn *find(const struct named_fn *table, size_t n, const char *name, size_t len)
{
    for (size_t i = 0; i < n; i++)
        if (strlen(table[i].name) == len && memcmp(table[i].name, name, len) == 0)
            return table[i].fn;
    return NULL;
}

template_fn *template_filter_find(const char *name, size_t len)
{
    static const struct named_fn filters[] = {
        {"abs", f_abs},
        {"attr", f_attr},
        {"batch", f_batch},
        {"capitalize", f_capitalize},
        {"count", f_length},
        {"d", f_default},
        {"default", f_default},
        {"dictsort", f_dictsort},
        {"e", f_escape},
        {"escape", f_escape},
        {"first", f_first},
        {"float", f_float},
        {"format", f_format},
        {"groupby", f_groupby},
        {"indent", f_indent},
        {"int", f_int},
        {"items", f_items},
        {"join", f_join},
        {"last", f_last},
        {"length", f_length},
        {"list", f_list},
        {"lower", f_lower},
        {"map", f_map},
        {"max", f_max},
        {"min", f_min},
        {"reject", f_reject},
        {"rejectattr", f_rejectattr},
        {"replace", f_replace},
        {"reverse", f_reverse},
        {"round", f_round},
        {"safe", f_safe},
        {"select", f_select},
        {"selectattr", f_selectattr},
        {"sort", f_sort},
        {"string", f_string},
        {"sum", f_sum},
        {"title", f_title},
        {"tojson", f_tojson},
        {"trim", f_trim},
        {"unique", f_unique},
        {"upper", f_upper},
        {"wordcount", f_wordcount},
    };
    return find(filters, ARRAY_LEN(filters), name, len);
}

template_fn *template_test_find(const char *name, size_t len)
{
    static const struct named_fn tests[] = {
        {"boolean", t_boolean},
        {"callable", t_callable},
        {"defined", t_defined},
        {"divisibleby", t_divisibleby},
        {"eq", t_eq},
        {"equalto", t_eq},
        {"==", t_eq},
        {"escaped", t_escaped},
        {"even", t_even},
        {"false", t_false},
        {"filter", t_filter},
        {"float", t_float},
        {"ge", t_ge},
        {">=", t_ge},
        {"gt", t_gt},
        {"greaterthan", t_gt},
        {">", t_gt},
        {"in", t_in},
        {"integer", t_integer},
        {"iterable", t_iterable},
        {"le", t_le},
        {"<=", t_le},
        {"lower", t_lower},
        {"lt", t_lt},
        {"lessthan", t_lt},
        {"<", t_lt},
        {"mapping", t_mapping},
        {"ne", t_ne},
        {"!=", t_ne},
        {"none", t_none},
        {"number", t_number},
        {"odd", t_odd},
        {"sameas", t_sameas},
        {"sequence", t_sequence},
        {"string", t_string},
        {"test", t_test},
        {"true", t_true},
        {"undefined", t_undefined},
        {"upper", t_upper},
    };
    return find(tests, ARRAY_LEN(tests), name, len);
}
