/* Methods of strings, dicts and lists, and the functions that every template has. */
#include "base/check.h"
#include "coordinator/template_ast.h"

#include <stdlib.h>
#include <string.h>

#define METHOD(name)                                                                                                   \
    static struct template_val name(struct template_run *r, struct template_val self, const struct template_args *a)

static struct template_val need_str(struct template_run *r, struct template_val v, const char *method)
{
    if (v.kind == TV_STR)
        return v;
    template_fail(r, ERR_INVALID, "%s() argument must be str, not %s", method, template_type_name(v));
    return template_cstr("");
}

static int64_t int_arg(const struct template_args *a, uint32_t idx, const char *name, int64_t def)
{
    struct template_val v = template_arg(a, idx, name);
    return v.kind == TV_INT ? v.i : v.kind == TV_BOOL ? v.b : def;
}

/* ---- str ---- */

METHOD(s_strip)
{
    return template_strip(r, self, template_arg(a, 0, NULL), 3);
}

METHOD(s_lstrip)
{
    return template_strip(r, self, template_arg(a, 0, NULL), 1);
}

METHOD(s_rstrip)
{
    return template_strip(r, self, template_arg(a, 0, NULL), 2);
}

METHOD(s_upper)
{
    (void)a;
    return template_case(r, self, 'u');
}

METHOD(s_lower)
{
    (void)a;
    return template_case(r, self, 'l');
}

METHOD(s_title)
{
    (void)a;
    return template_case(r, self, 't');
}

METHOD(s_capitalize)
{
    (void)a;
    return template_case(r, self, 'c');
}

METHOD(s_swapcase)
{
    (void)a;
    return template_case(r, self, 's');
}

static bool has_affix(struct template_val s, struct template_val x, bool end)
{
    return x.kind == TV_STR && x.len <= s.len && memcmp(end ? s.s + s.len - x.len : s.s, x.s, x.len) == 0;
}

static struct template_val affix(struct template_run *r, struct template_val self, const struct template_args *a,
                                 bool end)
{
    struct template_val x = template_arg(a, 0, NULL);
    if (x.kind == TV_LIST && x.flavour == TV_TUPLE) {
        for (uint32_t i = 0; i < x.list->n; i++)
            if (has_affix(self, x.list->v[i], end))
                return template_bool(true);
        return template_bool(false);
    }
    return template_bool(has_affix(self, need_str(r, x, end ? "endswith" : "startswith"), end));
}

METHOD(s_startswith)
{
    return affix(r, self, a, false);
}

METHOD(s_endswith)
{
    return affix(r, self, a, true);
}

METHOD(s_removeprefix)
{
    struct template_val x = need_str(r, template_arg(a, 0, NULL), "removeprefix");
    return has_affix(self, x, false) ? template_str(self.s + x.len, self.len - x.len) : self;
}

METHOD(s_removesuffix)
{
    struct template_val x = need_str(r, template_arg(a, 0, NULL), "removesuffix");
    return has_affix(self, x, true) ? template_str(self.s, self.len - x.len) : self;
}

METHOD(s_replace)
{
    struct template_val from = need_str(r, template_arg(a, 0, "old"), "replace"),
                        to = need_str(r, template_arg(a, 1, "new"), "replace");
    return template_replace(r, self, from, to, int_arg(a, 2, "count", -1));
}

static void split_space(struct template_run *r, struct template_val s, int64_t max, struct template_val out)
{
    size_t i = 0, n;
    while (template_step(r, 1)) {
        while (i < s.len && template_is_space(template_char_at(s, i, &n)))
            i += n;
        size_t from = i;
        if (i >= s.len)
            return;
        if (max-- == 0) {
            template_push(r, out, template_strip(r, template_str(s.s + from, s.len - from), template_none(), 2));
            return;
        }
        while (i < s.len && !template_is_space(template_char_at(s, i, &n)))
            i += n;
        template_push(r, out, template_str(s.s + from, i - from));
    }
}

METHOD(s_split)
{
    struct template_val sep = template_arg(a, 0, "sep"), out = template_list(r, TV_PLAIN, 0);
    int64_t max = int_arg(a, 1, "maxsplit", -1);
    if (r->failed)
        return out;
    if (!template_given(sep) || sep.kind == TV_NONE) {
        split_space(r, self, max, out);
        return out;
    }
    sep = need_str(r, sep, "split");
    if (sep.len == 0)
        return template_fail(r, ERR_INVALID, "empty separator");
    size_t i = 0;
    for (const char *p;
         max != 0 && template_step(r, 1) && (p = memmem(self.s + i, self.len - i, sep.s, sep.len)) != NULL; max--) {
        template_push(r, out, template_str(self.s + i, (size_t)(p - self.s) - i));
        i = (size_t)(p - self.s) + sep.len;
    }
    template_push(r, out, template_str(self.s + i, self.len - i));
    return out;
}

/* The last place of x in s[0, len), or NULL. */
static const char *find_last(struct template_val s, size_t len, struct template_val x)
{
    for (size_t i = len < x.len ? 0 : len - x.len + 1; i-- > 0;)
        if (memcmp(s.s + i, x.s, x.len) == 0)
            return s.s + i;
    return NULL;
}

METHOD(s_rsplit)
{
    struct template_val sep = template_arg(a, 0, "sep"), back = template_list(r, TV_PLAIN, 0),
                        out = template_list(r, TV_PLAIN, 0);
    int64_t max = int_arg(a, 1, "maxsplit", -1);
    if (!template_given(sep) || sep.kind == TV_NONE) {
        if (max < 0)
            return s_split(r, self, a);
        return template_fail(r, ERR_INVALID, "rsplit with maxsplit needs a separator");
    }
    sep = need_str(r, sep, "rsplit");
    if (sep.len == 0)
        return template_fail(r, ERR_INVALID, "empty separator");
    size_t end = self.len;
    for (const char *p; max != 0 && template_step(r, 1 + end / 64) && (p = find_last(self, end, sep)) != NULL; max--) {
        size_t at = (size_t)(p - self.s) + sep.len;
        template_push(r, back, template_str(self.s + at, end - at));
        end = (size_t)(p - self.s);
    }
    template_push(r, out, template_str(self.s, end));
    for (uint32_t i = r->failed ? 0 : back.list->n; i-- > 0;)
        template_push(r, out, back.list->v[i]);
    return out;
}

METHOD(s_splitlines)
{
    struct template_val out = template_list(r, TV_PLAIN, 0), keep = template_arg(a, 0, "keepends");
    size_t from = 0;
    for (size_t i = 0; i < self.len && template_step(r, 1);) {
        size_t n;
        uint32_t cp = template_char_at(self, i, &n);
        size_t end = i;
        i += n;
        if (!((cp >= 10 && cp <= 13) || (cp >= 28 && cp <= 30) || cp == 0x85 || cp == 0x2028 || cp == 0x2029))
            continue;
        if (cp == '\r' && i < self.len && self.s[i] == '\n')
            i++;
        template_push(r, out, template_str(self.s + from, (template_truth(keep) ? i : end) - from));
        from = i;
    }
    if (from < self.len)
        template_push(r, out, template_str(self.s + from, self.len - from));
    return out;
}

static struct template_val parts(struct template_run *r, struct template_val x, struct template_val y,
                                 struct template_val z)
{
    struct template_val t = template_list(r, TV_TUPLE, 3);
    template_push(r, t, x);
    template_push(r, t, y);
    template_push(r, t, z);
    return t;
}

static struct template_val partition(struct template_run *r, struct template_val self, const struct template_args *a,
                                     bool last)
{
    struct template_val sep = need_str(r, template_arg(a, 0, NULL), "partition"), empty = template_cstr("");
    if (sep.len == 0)
        return template_fail(r, ERR_INVALID, "empty separator");
    const char *p = last ? find_last(self, self.len, sep) : memmem(self.s, self.len, sep.s, sep.len);
    if (p == NULL)
        return last ? parts(r, empty, empty, self) : parts(r, self, empty, empty);
    size_t at = (size_t)(p - self.s);
    return parts(r, template_str(self.s, at), sep, template_str(p + sep.len, self.len - at - sep.len));
}

METHOD(s_partition)
{
    return partition(r, self, a, false);
}

METHOD(s_rpartition)
{
    return partition(r, self, a, true);
}

/* Character index of a byte place. */
static struct template_val place(struct template_val s, const char *p)
{
    return template_int(p == NULL ? -1 : (int64_t)template_char_count(template_str(s.s, (size_t)(p - s.s))));
}

METHOD(s_find)
{
    struct template_val x = need_str(r, template_arg(a, 0, NULL), "find");
    size_t from = template_char_offset(self, (size_t)MAX(int_arg(a, 1, NULL, 0), 0));
    return place(self, x.len == 0 ? self.s + from : memmem(self.s + from, self.len - from, x.s, x.len));
}

METHOD(s_rfind)
{
    return place(self, find_last(self, self.len, need_str(r, template_arg(a, 0, NULL), "rfind")));
}

METHOD(s_index)
{
    struct template_val v = s_find(r, self, a);
    return v.kind == TV_INT && v.i < 0 ? template_fail(r, ERR_INVALID, "substring not found") : v;
}

METHOD(s_count)
{
    struct template_val x = need_str(r, template_arg(a, 0, NULL), "count");
    int64_t n = 0;
    size_t i = 0;
    if (x.len == 0)
        return template_int((int64_t)template_char_count(self) + 1);
    for (const char *p; template_step(r, 1) && (p = memmem(self.s + i, self.len - i, x.s, x.len)) != NULL; n++)
        i = (size_t)(p - self.s) + x.len;
    return template_int(n);
}

METHOD(s_join)
{
    struct template_list *l = template_iterate(r, template_arg(a, 0, NULL));
    struct template_text t = {.r = r};
    for (uint32_t i = 0; l != NULL && i < l->n && template_step(r, 1); i++) {
        if (l->v[i].kind != TV_STR)
            return template_fail(r, ERR_INVALID, "sequence item %u: expected str instance, %s found", i,
                                 template_type_name(l->v[i]));
        if (i > 0)
            template_text_add(&t, self.s, self.len);
        template_text_add(&t, l->v[i].s, l->v[i].len);
    }
    return template_text_val(&t);
}

/* All characters of a class, and at least one. */
static struct template_val all_chars(struct template_run *r, struct template_val s, bool alpha, bool num, bool space)
{
    bool ok = s.len > 0;
    for (size_t i = 0; ok && i < s.len && template_step(r, 1);) {
        size_t n;
        uint32_t cp = template_char_at(s, i, &n);
        ok = (alpha && template_is_alpha(cp)) || (num && cp >= '0' && cp <= '9') || (space && template_is_space(cp));
        i += n;
    }
    return template_bool(ok);
}

METHOD(s_isdigit)
{
    (void)a;
    return all_chars(r, self, false, true, false);
}

METHOD(s_isalpha)
{
    (void)a;
    return all_chars(r, self, true, false, false);
}

METHOD(s_isalnum)
{
    (void)a;
    return all_chars(r, self, true, true, false);
}

METHOD(s_isspace)
{
    (void)a;
    return all_chars(r, self, false, false, true);
}

METHOD(s_isupper)
{
    return template_test_find("upper", 5)(r, self, a);
}

METHOD(s_islower)
{
    return template_test_find("lower", 5)(r, self, a);
}

static struct template_val pad(struct template_run *r, struct template_val self, const struct template_args *a,
                               int side)
{
    int64_t width = int_arg(a, 0, NULL, 0), n = (int64_t)template_char_count(self), room = width > n ? width - n : 0;
    struct template_val fill = template_arg(a, 1, NULL);
    fill = fill.kind == TV_STR ? fill : template_cstr(" ");
    int64_t left = side == 'r' ? room : side == 'l' ? 0 : room / 2 + (room & width & 1);
    struct template_text t = {.r = r};
    for (int64_t i = 0; i < left && template_step(r, 1); i++)
        template_text_add(&t, fill.s, fill.len);
    template_text_add(&t, self.s, self.len);
    for (int64_t i = left; i < room && template_step(r, 1); i++)
        template_text_add(&t, fill.s, fill.len);
    return template_text_val(&t);
}

METHOD(s_ljust)
{
    return pad(r, self, a, 'l');
}

METHOD(s_rjust)
{
    return pad(r, self, a, 'r');
}

METHOD(s_center)
{
    return pad(r, self, a, 'c');
}

METHOD(s_zfill)
{
    int64_t width = int_arg(a, 0, NULL, 0), n = (int64_t)template_char_count(self);
    size_t sign = self.len > 0 && (self.s[0] == '-' || self.s[0] == '+');
    struct template_text t = {.r = r};
    template_text_add(&t, self.s, sign);
    for (; n < width && template_step(r, 1); n++)
        template_text_puts(&t, "0");
    template_text_add(&t, self.s + sign, self.len - sign);
    return template_text_val(&t);
}

/* "{}", "{0}", "{name}" with attributes and items behind; format specifications are not part of the language here. */
METHOD(s_format)
{
    struct template_text t = {.r = r};
    uint32_t next = 0;
    for (size_t i = 0; i < self.len && template_step(r, 1); i++) {
        char c = self.s[i];
        if ((c == '{' || c == '}') && i + 1 < self.len && self.s[i + 1] == c) {
            template_text_add(&t, &c, 1);
            i++;
            continue;
        }
        if (c != '{') {
            template_text_add(&t, &c, 1);
            continue;
        }
        const char *end = memchr(self.s + i, '}', self.len - i);
        size_t len = end == NULL ? 0 : (size_t)(end - self.s) - i - 1;
        char name[64];
        if (end == NULL || len >= sizeof(name))
            return template_fail(r, ERR_INVALID, "a replacement field of format() has no end or too long a name");
        memcpy(name, self.s + i + 1, len);
        name[len] = 0;
        if (strpbrk(name, ":!.[") != NULL)
            return template_fail(r, ERR_UNSUPPORTED, "format() with \"{%s}\" is not supported", name);
        char *stop;
        unsigned long idx = len == 0 ? next++ : strtoul(name, &stop, 10);
        bool positional = len == 0 || *stop == 0;
        struct template_val v = positional ? template_arg(a, idx < a->n ? (uint32_t)idx : UINT32_MAX, NULL)
                                           : template_arg(a, UINT32_MAX, name);
        if (!template_given(v))
            return template_fail(r, ERR_INVALID, "format() has no argument for \"{%s}\"", name);
        template_text_str(&t, v);
        i += len + 1;
    }
    return template_text_val(&t);
}

/* ---- dict ---- */

static struct template_val view(struct template_run *r, struct template_val self, enum template_flavour flavour)
{
    struct template_val l = template_list(r, flavour, self.dict->n);
    for (uint32_t i = 0; i < self.dict->n && template_step(r, 1); i++) {
        const struct template_entry *e = &self.dict->e[i];
        template_push(r, l, flavour == TV_KEYS ? e->k : flavour == TV_VALUES ? e->v : template_pair(r, e->k, e->v));
    }
    return l;
}

METHOD(d_items)
{
    (void)a;
    return view(r, self, TV_ITEMS);
}

METHOD(d_keys)
{
    (void)a;
    return view(r, self, TV_KEYS);
}

METHOD(d_values)
{
    (void)a;
    return view(r, self, TV_VALUES);
}

METHOD(d_get)
{
    struct template_val key = template_arg(a, 0, NULL);
    const struct template_val *v = key.kind == TV_DICT || key.kind == TV_LIST ? NULL : template_get(r, self.dict, key);
    return v != NULL ? *v : a->n > 1 ? a->pos[1] : template_none();
}

METHOD(d_copy)
{
    (void)a;
    struct template_val d = template_dict(r);
    for (uint32_t i = 0; i < self.dict->n && !r->failed; i++)
        template_put(r, d.dict, self.dict->e[i].k, self.dict->e[i].v);
    return d;
}

/* ---- list ---- */

METHOD(l_count)
{
    int64_t n = 0;
    for (uint32_t i = 0; i < self.list->n && template_step(r, 1); i++)
        n += template_eq(r, self.list->v[i], template_arg(a, 0, NULL));
    return template_int(n);
}

METHOD(l_index)
{
    for (uint32_t i = 0; i < self.list->n && template_step(r, 1); i++)
        if (template_eq(r, self.list->v[i], template_arg(a, 0, NULL)))
            return template_int(i);
    return template_fail(r, ERR_INVALID, "the value is not in the list");
}

METHOD(l_copy)
{
    return template_filter_find("list", 4)(r, self, a);
}

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

static bool among(const char *const *names, const char *name, size_t len)
{
    for (; *names != NULL; names++)
        if (strlen(*names) == len && memcmp(*names, name, len) == 0)
            return true;
    return false;
}

template_fn *template_method_find(struct template_val self, const char *name, size_t len, bool *forbidden)
{
    static const struct named_fn strs[] = {
        {"strip", s_strip},
        {"lstrip", s_lstrip},
        {"rstrip", s_rstrip},
        {"upper", s_upper},
        {"lower", s_lower},
        {"casefold", s_lower},
        {"title", s_title},
        {"capitalize", s_capitalize},
        {"swapcase", s_swapcase},
        {"startswith", s_startswith},
        {"endswith", s_endswith},
        {"removeprefix", s_removeprefix},
        {"removesuffix", s_removesuffix},
        {"replace", s_replace},
        {"split", s_split},
        {"rsplit", s_rsplit},
        {"splitlines", s_splitlines},
        {"partition", s_partition},
        {"rpartition", s_rpartition},
        {"find", s_find},
        {"rfind", s_rfind},
        {"index", s_index},
        {"count", s_count},
        {"join", s_join},
        {"isdigit", s_isdigit},
        {"isdecimal", s_isdigit},
        {"isnumeric", s_isdigit},
        {"isalpha", s_isalpha},
        {"isalnum", s_isalnum},
        {"isspace", s_isspace},
        {"isupper", s_isupper},
        {"islower", s_islower},
        {"ljust", s_ljust},
        {"rjust", s_rjust},
        {"center", s_center},
        {"zfill", s_zfill},
        {"format", s_format},
    };
    static const struct named_fn dicts[] = {
        {"items", d_items}, {"keys", d_keys}, {"values", d_values}, {"get", d_get}, {"copy", d_copy}};
    static const struct named_fn lists[] = {{"count", l_count}, {"index", l_index}, {"copy", l_copy}};
    static const char *const dict_changes[] = {"update", "pop", "popitem", "clear", "setdefault", "fromkeys", NULL};
    static const char *const list_changes[] = {"append", "extend", "insert",  "pop", "remove",
                                               "clear",  "sort",   "reverse", NULL};
    *forbidden = false;
    if (self.kind == TV_STR)
        return find(strs, ARRAY_LEN(strs), name, len);
    if (self.kind == TV_DICT) {
        *forbidden = among(dict_changes, name, len);
        return find(dicts, ARRAY_LEN(dicts), name, len);
    }
    if (self.kind == TV_LIST && self.flavour <= TV_RANGE) {
        *forbidden = self.flavour == TV_PLAIN && among(list_changes, name, len);
        return find(lists, ARRAY_LEN(lists), name, len);
    }
    return NULL;
}

/* ---- functions of every template ---- */

METHOD(g_range)
{
    (void)self;
    int64_t v[3] = {0, 0, 1};
    if (a->n < 1 || a->n > 3)
        return template_fail(r, ERR_INVALID, "range expected 1 to 3 arguments, got %u", a->n);
    for (uint32_t i = 0; i < a->n; i++) {
        if (a->pos[i].kind != TV_INT && a->pos[i].kind != TV_BOOL)
            return template_fail(r, ERR_INVALID, "'%s' object cannot be interpreted as an integer",
                                 template_type_name(a->pos[i]));
        v[a->n == 1 ? 1 : i] = a->pos[i].kind == TV_BOOL ? a->pos[i].b : a->pos[i].i;
    }
    if (v[2] == 0)
        return template_fail(r, ERR_INVALID, "range() arg 3 must not be zero");
    struct template_val l = template_list(r, TV_RANGE, 0);
    for (int64_t i = v[0]; (v[2] > 0 ? i < v[1] : i > v[1]) && !r->failed;) {
        if (l.list->n >= TEMPLATE_RANGE_MAX)
            return template_fail(r, ERR_TOO_BIG, "Range too big. The sandbox blocks ranges larger than %d.",
                                 TEMPLATE_RANGE_MAX);
        template_push(r, l, template_int(i));
        if (__builtin_add_overflow(i, v[2], &i))
            break;
    }
    return l;
}

METHOD(g_dict)
{
    (void)self;
    struct template_val d = template_dict(r);
    if (a->n > 0 && a->pos[0].kind == TV_DICT) {
        for (uint32_t i = 0; i < a->pos[0].dict->n && !r->failed; i++)
            template_put(r, d.dict, a->pos[0].dict->e[i].k, a->pos[0].dict->e[i].v);
    } else if (a->n > 0) {
        struct template_list *l = template_iterate(r, a->pos[0]);
        for (uint32_t i = 0; l != NULL && i < l->n && !r->failed; i++) {
            if (l->v[i].kind != TV_LIST || l->v[i].list->n != 2)
                return template_fail(r, ERR_INVALID, "dictionary update sequence element #%u is no pair", i);
            template_put(r, d.dict, l->v[i].list->v[0], l->v[i].list->v[1]);
        }
    }
    for (uint32_t i = 0; i < a->n_kw && !r->failed; i++)
        template_put(r, d.dict, template_cstr(a->kw[i].name), a->kw[i].v);
    return d;
}

METHOD(g_namespace)
{
    struct template_val d = g_dict(r, self, a);
    if (d.kind == TV_DICT)
        d.kind = TV_NAMESPACE;
    return d;
}

METHOD(g_raise)
{
    (void)self;
    struct template_val s = template_to_str(r, template_arg(a, 0, "message"));
    return template_fail(r, ERR_INVALID, "%.*s", (int)MIN(s.len, (size_t)380), s.s);
}

METHOD(g_strftime_now)
{
    (void)self;
    struct template_val f = need_str(r, template_arg(a, 0, "format"), "strftime_now");
    char fmt[256], out[1024];
    struct tm tm;
    if (f.len >= sizeof(fmt))
        return template_fail(r, ERR_TOO_BIG, "strftime_now: the format is too long");
    memcpy(fmt, f.s, f.len);
    fmt[f.len] = 0;
    size_t n = localtime_r(&r->now, &tm) == NULL ? 0 : strftime(out, sizeof(out), fmt, &tm);
    struct template_text t = {.r = r};
    template_text_add(&t, out, n);
    return template_text_val(&t);
}

/* A joiner gives nothing the first time and its text from then on. Its state is a namespace of its own. */
METHOD(joiner_next)
{
    (void)a;
    const struct template_val *used = template_get_str(self.dict, "used", 4),
                              *sep = template_get_str(self.dict, "sep", 3);
    struct template_val v = used != NULL && sep != NULL ? *sep : template_cstr("");
    template_put(r, self.dict, template_cstr("used"), template_bool(true));
    return v;
}

METHOD(g_joiner)
{
    (void)self;
    struct template_val *state = template_alloc(r, 1, sizeof(*state)), sep = template_arg(a, 0, "sep");
    if (state == NULL)
        return template_undefined(NULL, 0);
    *state = template_dict(r);
    if (r->failed)
        return template_undefined(NULL, 0);
    template_put(r, state->dict, template_cstr("sep"), template_given(sep) ? sep : template_cstr(", "));
    return (struct template_val){.kind = TV_FUNCTION, .fn = joiner_next, .self = state};
}

struct template_val template_global_find(const char *name, size_t len)
{
    static const struct named_fn globals[] = {
        {"range", g_range},
        {"dict", g_dict},
        {"namespace", g_namespace},
        {"raise_exception", g_raise},
        {"strftime_now", g_strftime_now},
        {"joiner", g_joiner},
    };
    template_fn *fn = find(globals, ARRAY_LEN(globals), name, len);
    return fn == NULL ? template_undefined(name, len) : template_function(fn);
}
