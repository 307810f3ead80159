/* Attributes of strings, dicts, lists and numbers: their methods, with Python's parameters. Methods that would change a value are not there, as
 * in jinja2's immutable sandbox. */
#include "base/check.h"
#include "text/template_ast.h"

#include <math.h>
#include <string.h>

#define METHOD(name)                                                                                                   \
    static struct template_val name(struct template_run *r, struct template_val self, const struct template_args *a)

static struct template_val need_str(struct template_run *r, struct template_val v)
{
    if (v.kind == TV_STR)
        return v;
    template_fail(r, ERR_INVALID, "argument must be str, not %s", template_type_name(v));
    return template_cstr("");
}

static int64_t need_int(struct template_run *r, struct template_val v, int64_t def)
{
    int64_t i = def;
    if (v.kind == TV_BIG)
        return template_int_cmp(v, template_int(0)) < 0 ? INT64_MIN / 2 : INT64_MAX / 2;
    if (template_given(v) && !template_small(v, &i))
        template_fail(r, ERR_INVALID, "'%s' object cannot be interpreted as an integer", template_type_name(v));
    return i;
}

/* A part of s, which is marked safe when s is. */
static struct template_val part(struct template_val s, size_t from, size_t to)
{
    struct template_val v = template_str(s.s + from, to - from);
    v.flavour = s.flavour;
    return v;
}

/* ---- str: case and strip ---- */

METHOD(s_strip)
{
    return template_strip(r, self, a->pos[0], 3);
}

METHOD(s_lstrip)
{
    return template_strip(r, self, a->pos[0], 1);
}

METHOD(s_rstrip)
{
    return template_strip(r, self, a->pos[0], 2);
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

METHOD(s_casefold)
{
    (void)a;
    return template_case(r, self, 'f');
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

/* ---- str: where something is ---- */

/* The part of self between the optional character indices; false when it starts past the end. */
static bool window(struct template_run *r, struct template_val self, struct template_val from, struct template_val to, size_t *a, size_t *b)
{
    int64_t n = (int64_t)template_char_count(self), x = from.kind == TV_NONE ? 0 : need_int(r, from, 0), y = to.kind == TV_NONE ? n : need_int(r, to, n);
    x = x < 0 ? MAX(x + n, 0) : x;
    y = y < 0 ? MAX(y + n, 0) : MIN(y, n);
    if (r->failed || !template_step(r, self.len / 64) || x > n || x > y)
        return false;
    *a = template_char_offset(self, (size_t)x);
    *b = template_char_offset(self, (size_t)y);
    return true;
}

static bool has_affix(struct template_val s, struct template_val x, bool end)
{
    return x.len <= s.len && memcmp(end ? s.s + s.len - x.len : s.s, x.s, x.len) == 0;
}

static struct template_val affix(struct template_run *r, struct template_val self, const struct template_args *a, bool end)
{
    struct template_val x = a->pos[0];
    size_t from = 0, to = 0;
    bool in = window(r, self, a->pos[1], a->pos[2], &from, &to), found = false;
    uint32_t n = template_is_tuple(x) ? x.list->n : 1;
    for (uint32_t i = 0; i < n && !found && !r->failed; i++) {
        struct template_val want = need_str(r, template_is_tuple(x) ? x.list->v[i] : x);
        found = in && !r->failed && has_affix(part(self, from, to), want, end);
    }
    return template_bool(found);
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
    struct template_val x = need_str(r, a->pos[0]);
    return has_affix(self, x, false) ? part(self, x.len, self.len) : self;
}

METHOD(s_removesuffix)
{
    struct template_val x = need_str(r, a->pos[0]);
    return has_affix(self, x, true) ? part(self, 0, self.len - x.len) : self;
}

/* The last place of x in s[0, len), or NULL. */
static const char *find_last(struct template_run *r, struct template_val s, size_t len, struct template_val x)
{
    for (size_t i = len < x.len ? 0 : len - x.len + 1; i-- > 0 && ((i & 63) != 0 || template_step(r, 1));)
        if (memcmp(s.s + i, x.s, x.len) == 0)
            return s.s + i;
    return NULL;
}

static struct template_val find(struct template_run *r, struct template_val self, const struct template_args *a, bool last, bool must)
{
    struct template_val x = need_str(r, a->pos[0]);
    size_t from, to;
    const char *p = NULL;
    if (window(r, self, a->pos[1], a->pos[2], &from, &to)) {
        struct template_val w = part(self, from, to);
        p = last ? find_last(r, w, w.len, x) : x.len == 0 ? w.s : memmem(w.s, w.len, x.s, x.len);
    }
    if (p == NULL && must)
        return template_fail(r, ERR_INVALID, "substring not found");
    return template_int(p == NULL ? -1 : (int64_t)template_char_count(part(self, 0, (size_t)(p - self.s))));
}

METHOD(s_find)
{
    return find(r, self, a, false, false);
}

METHOD(s_rfind)
{
    return find(r, self, a, true, false);
}

METHOD(s_index)
{
    return find(r, self, a, false, true);
}

METHOD(s_rindex)
{
    return find(r, self, a, true, true);
}

METHOD(s_count)
{
    struct template_val x = need_str(r, a->pos[0]);
    size_t i, to;
    int64_t n = 0;
    if (!window(r, self, a->pos[1], a->pos[2], &i, &to))
        return template_int(0);
    if (x.len == 0)
        return template_int((int64_t)template_char_count(part(self, i, to)) + 1);
    for (const char *p; template_step(r, 1) && (p = memmem(self.s + i, to - i, x.s, x.len)) != NULL; n++)
        i = (size_t)(p - self.s) + x.len;
    return template_int(n);
}

/* ---- str: parts ---- */

METHOD(s_replace)
{
    return template_replace(r, self, need_str(r, a->pos[0]), need_str(r, a->pos[1]), need_int(r, a->pos[2], -1));
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
            template_push(r, out, part(s, from, s.len));
            return;
        }
        while (i < s.len && !template_is_space(template_char_at(s, i, &n)))
            i += n;
        template_push(r, out, part(s, from, i));
    }
}

METHOD(s_split)
{
    struct template_val sep = a->pos[0], out = template_list(r, TV_PLAIN, 0);
    int64_t max = need_int(r, a->pos[1], -1);
    if (!template_given(sep) || sep.kind == TV_NONE) {
        split_space(r, self, max, out);
        return out;
    }
    sep = need_str(r, sep);
    if (sep.len == 0)
        return template_fail(r, ERR_INVALID, "empty separator");
    size_t i = 0;
    for (const char *p; max != 0 && template_step(r, 1) && (p = memmem(self.s + i, self.len - i, sep.s, sep.len)) != NULL; max--) {
        template_push(r, out, part(self, i, (size_t)(p - self.s)));
        i = (size_t)(p - self.s) + sep.len;
    }
    template_push(r, out, part(self, i, self.len));
    return out;
}

/* The next part from the end, before `end`: up to a separator or, without one, between white space. False when that was the last. */
static bool last_part(struct template_run *r, struct template_val s, struct template_val sep, size_t *end, struct template_val *out)
{
    size_t n;
    if (sep.kind == TV_STR) {
        const char *p = template_step(r, 1) ? find_last(r, s, *end, sep) : NULL;
        size_t at = p == NULL ? 0 : (size_t)(p - s.s) + sep.len;
        *out = part(s, at, *end);
        *end = p == NULL ? 0 : (size_t)(p - s.s);
        return p != NULL;
    }
    size_t from = *end;
    while (from > 0 && template_step(r, 1) && !template_is_space(template_char_at(s, template_char_before(s, from), &n)))
        from = template_char_before(s, from);
    *out = part(s, from, *end);
    *end = template_strip(r, part(s, 0, from), template_none(), 2).len;
    return *end > 0;
}

METHOD(s_rsplit)
{
    struct template_val sep = a->pos[0], back = template_list(r, TV_PLAIN, 0), out = template_list(r, TV_PLAIN, 0), x;
    int64_t max = need_int(r, a->pos[1], -1);
    bool space = !template_given(sep) || sep.kind == TV_NONE, more = true;
    size_t end = self.len;
    if (!space && need_str(r, sep).len == 0)
        return template_fail(r, ERR_INVALID, "empty separator");
    if (space)
        end = template_strip(r, self, template_none(), 2).len;
    more = !space || end > 0;
    while (more && max-- != 0 && !r->failed) {
        more = last_part(r, self, sep, &end, &x);
        template_push(r, back, x);
    }
    if (more)
        template_push(r, back, part(self, 0, end));
    for (uint32_t i = r->failed ? 0 : back.list->n; i-- > 0;)
        template_push(r, out, back.list->v[i]);
    return out;
}

METHOD(s_splitlines)
{
    struct template_list *l = template_lines(r, self, template_given(a->pos[0]) && template_truth(a->pos[0]));
    return l == NULL ? template_undefined(NULL, 0) : (struct template_val){.kind = TV_LIST, .list = l};
}

static struct template_val partition(struct template_run *r, struct template_val self, struct template_val sep, bool last)
{
    sep = need_str(r, sep);
    if (sep.len == 0)
        return template_fail(r, ERR_INVALID, "empty separator");
    const char *p = last ? find_last(r, self, self.len, sep) : memmem(self.s, self.len, sep.s, sep.len);
    size_t at = p == NULL ? (last ? 0 : self.len) : (size_t)(p - self.s), end = p == NULL ? at : at + sep.len;
    struct template_val t = template_list(r, TV_TUPLE, 3);
    template_push(r, t, part(self, 0, at));
    template_push(r, t, part(self, at, end));
    template_push(r, t, part(self, end, self.len));
    return t;
}

METHOD(s_partition)
{
    return partition(r, self, a->pos[0], false);
}

METHOD(s_rpartition)
{
    return partition(r, self, a->pos[0], true);
}

METHOD(s_join)
{
    struct template_iter *it = template_iter(r, a->pos[0]);
    struct template_text t = {.r = r};
    struct template_val x;
    for (uint32_t i = 0; it != NULL && template_next(r, it, &x); i++) {
        if (x.kind != TV_STR)
            return template_fail(r, ERR_INVALID, "sequence item %u: expected str instance, %s found", i, template_type_name(x));
        if (i > 0)
            template_text_add(&t, self.s, self.len);
        template_text_add(&t, x.s, x.len);
    }
    return template_text_val(&t);
}

/* ---- str: classes ---- */

static struct template_val all_chars(struct template_run *r, struct template_val s, enum template_class first, enum template_class rest, bool empty)
{
    bool ok = s.len > 0 || empty;
    for (size_t i = 0, n; ok && i < s.len && template_step(r, 1); i += n)
        ok = template_char_is(template_char_at(s, i, &n), i == 0 ? first : rest);
    return template_bool(ok);
}

#define ALL_CHARS(name, first, rest, empty)                                                                            \
    METHOD(name)                                                                                                       \
    {                                                                                                                  \
        (void)a;                                                                                                       \
        return all_chars(r, self, first, rest, empty);                                                                 \
    }

ALL_CHARS(s_isdigit, TC_DIGIT, TC_DIGIT, false)
ALL_CHARS(s_isdecimal, TC_DECIMAL, TC_DECIMAL, false)
ALL_CHARS(s_isnumeric, TC_NUMERIC, TC_NUMERIC, false)
ALL_CHARS(s_isalpha, TC_ALPHA, TC_ALPHA, false)
ALL_CHARS(s_isalnum, TC_ALNUM, TC_ALNUM, false)
ALL_CHARS(s_isspace, TC_SPACE, TC_SPACE, false)
ALL_CHARS(s_isascii, TC_ASCII, TC_ASCII, true)
ALL_CHARS(s_isprintable, TC_PRINTABLE, TC_PRINTABLE, true)
ALL_CHARS(s_isidentifier, TC_ID_START, TC_ID_CONTINUE, false)

METHOD(s_isupper)
{
    (void)a;
    return template_bool(template_is_cased(r, self, 'u'));
}

METHOD(s_islower)
{
    (void)a;
    return template_bool(template_is_cased(r, self, 'l'));
}

METHOD(s_istitle)
{
    (void)a;
    return template_bool(template_is_cased(r, self, 't'));
}

/* ---- str: fields ---- */

static struct template_val pad(struct template_run *r, struct template_val self, const struct template_args *a, int side)
{
    int64_t width = need_int(r, a->pos[0], 0), n = (int64_t)template_char_count(self), room = width > n ? width - n : 0;
    struct template_val fill = template_given(a->pos[1]) ? need_str(r, a->pos[1]) : template_cstr(" ");
    int64_t left = side == 'r' ? room : side == 'l' ? 0 : room / 2 + (room & width & 1);
    struct template_text t = {.r = r};
    if (template_char_count(fill) != 1)
        return template_fail(r, ERR_INVALID, "The fill character must be exactly one character long");
    template_text_fill(&t, fill.s, fill.len, left);
    template_text_add(&t, self.s, self.len);
    template_text_fill(&t, fill.s, fill.len, room - left);
    struct template_val v = template_text_val(&t);
    v.flavour = self.flavour;
    return v;
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
    size_t sign = self.len > 0 && (self.s[0] == '-' || self.s[0] == '+');
    struct template_text t = {.r = r};
    template_text_add(&t, self.s, sign);
    template_text_fill(&t, "0", 1, need_int(r, a->pos[0], 0) - (int64_t)template_char_count(self));
    template_text_add(&t, self.s + sign, self.len - sign);
    return template_text_val(&t);
}

METHOD(s_expandtabs)
{
    int64_t size = need_int(r, a->pos[0], 8), column = 0;
    struct template_text t = {.r = r};
    for (size_t i = 0, n; i < self.len && template_step(r, 1); i += n) {
        uint32_t cp = template_char_at(self, i, &n);
        if (cp == '\t') {
            int64_t room = size > 0 ? size - column % size : 0;
            template_text_fill(&t, " ", 1, room);
            column += room;
            continue;
        }
        template_text_add(&t, self.s + i, n);
        column = cp == '\n' || cp == '\r' ? 0 : column + 1;
    }
    return template_text_val(&t);
}

METHOD(s_format)
{
    return template_str_format(r, self, a, (struct template_val){0});
}

METHOD(s_format_map)
{
    return template_str_format(r, self, NULL, a->pos[0]);
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
    if (!template_hashable(r, a->pos[0]))
        return self;
    const struct template_val *v = template_get(r, self.dict, a->pos[0]);
    return v != NULL ? *v : template_given(a->pos[1]) ? a->pos[1] : template_none();
}

METHOD(d_copy)
{
    (void)a;
    struct template_val d = template_dict(r);
    for (uint32_t i = 0; i < self.dict->n && !r->failed; i++)
        template_put(r, d.dict, self.dict->e[i].k, self.dict->e[i].v);
    return d;
}

/* ---- list, tuple, range ---- */

METHOD(l_count)
{
    int64_t n = 0;
    for (uint32_t i = 0; i < self.list->n && template_step(r, 1); i++)
        n += template_eq(r, self.list->v[i], a->pos[0]);
    return template_int(n);
}

METHOD(l_index)
{
    int64_t n = self.list->n, from = need_int(r, a->pos[1], 0), to = need_int(r, a->pos[2], n);
    from = from < 0 ? MAX(from + n, 0) : from;
    to = to < 0 ? to + n : MIN(to, n);
    for (int64_t i = from; i < to && template_step(r, 1); i++)
        if (template_eq(r, self.list->v[i], a->pos[0]))
            return template_int(i);
    return template_fail(r, ERR_INVALID, "the value is not in the list");
}

METHOD(l_copy)
{
    (void)a;
    struct template_val l = template_list(r, TV_PLAIN, self.list->n);
    for (uint32_t i = 0; i < self.list->n && template_step(r, 1); i++)
        template_push(r, l, self.list->v[i]);
    return l;
}

/* ---- numbers ---- */

METHOD(n_is_integer)
{
    (void)r;
    (void)a;
    return template_bool(isfinite(self.f) && floor(self.f) == self.f);
}

METHOD(n_bit_length)
{
    (void)a;
    struct template_val s = template_int_text(r, self, 2);
    return template_int(s.len == 1 && s.s[0] == '0' ? 0 : (int64_t)s.len - (s.len > 0 && s.s[0] == '-'));
}

static struct template_val number_attr(struct template_run *r, struct template_val self, const char *name, size_t len)
{
    static const struct template_def whole[] = {{"bit_length", n_bit_length, ""}}, fraction[] = {{"is_integer", n_is_integer, ""}};
    static const struct template_def values[] = {{"real", NULL, NULL}, {"imag", NULL, NULL}, {"numerator", NULL, NULL}, {"denominator", NULL, NULL}};
    bool is_float = self.kind == TV_FLOAT;
    const struct template_def *def = is_float ? template_def_find(fraction, 1, name, len) : template_def_find(whole, 1, name, len);
    if (def != NULL)
        return template_bound(r, def, self);
    def = template_def_find(values, is_float ? 2 : 4, name, len);
    if (def == NULL)
        return template_undefined(name, len);
    if (def == &values[1])
        return is_float ? template_float(0) : template_int(0);
    return is_float ? self : def == &values[3] ? template_int(1) : template_int_op(r, '+', self, template_int(0));
}

/* ---- cycler ---- */

METHOD(c_next)
{
    (void)r;
    (void)a;
    struct template_list *l = self.list;
    struct template_val v = l->v[l->next];
    l->next = (l->next + 1) % l->n;
    return v;
}

METHOD(c_reset)
{
    (void)r;
    (void)a;
    self.list->next = 0;
    return template_none();
}

static struct template_val cycler_attr(struct template_run *r, struct template_val self, const char *name, size_t len)
{
    static const struct template_def defs[] = {{"next", c_next, ""}, {"reset", c_reset, ""}};
    const struct template_def *def = template_def_find(defs, ARRAY_LEN(defs), name, len);
    if (def != NULL)
        return template_bound(r, def, self);
    return len == 7 && memcmp(name, "current", 7) == 0 ? self.list->v[self.list->next] : template_undefined(name, len);
}

/* Data of a list-like value: the bounds of a range, the two names of a group. */
static struct template_val list_field(struct template_val self, const char *name, size_t len)
{
    static const char *const ranges[] = {"start", "stop", "step"}, *const groups[] = {"grouper", "list"};
    for (uint32_t i = 0; i < 3; i++) {
        if (self.flavour == TV_RANGE && strlen(ranges[i]) == len && memcmp(ranges[i], name, len) == 0)
            return self.list->v[self.list->n + i];
        if (self.flavour == TV_GROUP && i < 2 && strlen(groups[i]) == len && memcmp(groups[i], name, len) == 0)
            return self.list->v[i];
    }
    return template_undefined(name, len);
}

/* Methods that would change the value, and what starts with "_": not there, with a message of its own. */
static struct template_val hidden(struct template_val self, const char *name, size_t len)
{
    static const struct template_def dicts[] = {{"clear", NULL, ""}, {"pop", NULL, ""}, {"popitem", NULL, ""}, {"setdefault", NULL, ""}, {"update", NULL, ""}};
    static const struct template_def lists[] = {{"append", NULL, ""},  {"clear", NULL, ""}, {"extend", NULL, ""},  {"insert", NULL, ""},
                                                {"pop", NULL, ""},     {"remove", NULL, ""}, {"reverse", NULL, ""}, {"sort", NULL, ""}};
    struct template_val v = template_undefined(name, len);
    if ((self.kind == TV_DICT && template_def_find(dicts, ARRAY_LEN(dicts), name, len) != NULL) ||
        (self.kind == TV_LIST && self.flavour == TV_PLAIN && template_def_find(lists, ARRAY_LEN(lists), name, len) != NULL))
        v.flavour = TV_UNSAFE;
    return v;
}

struct template_val template_value_attr(struct template_run *r, struct template_val self, const char *name, size_t len)
{
    static const struct template_def strs[] = {
        {"capitalize", s_capitalize, ""},
        {"casefold", s_casefold, ""},
        {"center", s_center, "/width fill?"},
        {"count", s_count, "/sub start? end?"},
        {"endswith", s_endswith, "/suffix start? end?"},
        {"expandtabs", s_expandtabs, "tabsize?"},
        {"find", s_find, "/sub start? end?"},
        {"format", s_format, NULL},
        {"format_map", s_format_map, "/mapping"},
        {"index", s_index, "/sub start? end?"},
        {"isalnum", s_isalnum, ""},
        {"isalpha", s_isalpha, ""},
        {"isascii", s_isascii, ""},
        {"isdecimal", s_isdecimal, ""},
        {"isdigit", s_isdigit, ""},
        {"isidentifier", s_isidentifier, ""},
        {"islower", s_islower, ""},
        {"isnumeric", s_isnumeric, ""},
        {"isprintable", s_isprintable, ""},
        {"isspace", s_isspace, ""},
        {"istitle", s_istitle, ""},
        {"isupper", s_isupper, ""},
        {"join", s_join, "/iterable"},
        {"ljust", s_ljust, "/width fill?"},
        {"lower", s_lower, ""},
        {"lstrip", s_lstrip, "/chars?"},
        {"partition", s_partition, "/sep"},
        {"removeprefix", s_removeprefix, "/prefix"},
        {"removesuffix", s_removesuffix, "/suffix"},
        {"replace", s_replace, "/old new count?"},
        {"rfind", s_rfind, "/sub start? end?"},
        {"rindex", s_rindex, "/sub start? end?"},
        {"rjust", s_rjust, "/width fill?"},
        {"rpartition", s_rpartition, "/sep"},
        {"rsplit", s_rsplit, "sep? maxsplit?"},
        {"rstrip", s_rstrip, "/chars?"},
        {"split", s_split, "sep? maxsplit?"},
        {"splitlines", s_splitlines, "keepends?"},
        {"startswith", s_startswith, "/prefix start? end?"},
        {"strip", s_strip, "/chars?"},
        {"swapcase", s_swapcase, ""},
        {"title", s_title, ""},
        {"upper", s_upper, ""},
        {"zfill", s_zfill, "/width"},
    };
    static const struct template_def dicts[] = {
        {"copy", d_copy, ""}, {"get", d_get, "/key default?"}, {"items", d_items, ""}, {"keys", d_keys, ""}, {"values", d_values, ""}};
    static const struct template_def lists[] = {{"count", l_count, "/value"}, {"index", l_index, "/value start? stop?"}, {"copy", l_copy, ""}};
    const struct template_def *def = NULL;
    if (self.kind == TV_STR)
        def = template_def_find(strs, ARRAY_LEN(strs), name, len);
    else if (self.kind == TV_DICT)
        def = template_def_find(dicts, ARRAY_LEN(dicts), name, len);
    else if (template_is_sequence(self)) /* only lists can be copied */
        def = template_def_find(lists, self.flavour == TV_PLAIN ? 3 : 2, name, len);
    if (def != NULL)
        return template_bound(r, def, self);
    if (self.kind == TV_LIST && self.flavour != TV_PLAIN)
        return list_field(self, name, len);
    if (self.kind == TV_LIST || self.kind == TV_DICT)
        return hidden(self, name, len);
    if (self.kind == TV_CYCLER)
        return cycler_attr(r, self, name, len);
    return template_is_whole(self) || self.kind == TV_FLOAT ? number_attr(r, self, name, len) : template_undefined(name, len);
}
