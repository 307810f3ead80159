/* See template_value.h: the run's budgets, construction, dicts, equality, order, iteration. */
#include "text/template_value.h"

#include "base/check.h"
#include "base/clock.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { CLOCK_EVERY = 512, DICT_LINEAR_MAX = 8 };

struct template_val template_fail(struct template_run *r, enum err e, const char *fmt, ...)
{
    if (!r->failed) {
        va_list ap;
        va_start(ap, fmt);
        vsnprintf(r->text, sizeof(r->text), fmt, ap);
        va_end(ap);
        r->failed = true;
        r->err = e;
    }
    return template_undefined(NULL, 0);
}

static uint64_t thread_cpu_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}

bool template_step(struct template_run *r, uint64_t n)
{
    if (r->failed)
        return false;
    uint64_t before = r->steps;
    r->steps += n;
    if (r->steps > r->steps_max) {
        template_fail(r, ERR_TOO_BIG, "the chat template takes more than %llu steps", (unsigned long long)r->steps_max);
        return false;
    }
    if (before / CLOCK_EVERY == r->steps / CLOCK_EVERY && before != 0)
        return true;
    uint64_t now = thread_cpu_ns();
    if (r->cpu_deadline_ns == 0)
        r->cpu_deadline_ns = now + r->time_ns;
    if (now <= r->cpu_deadline_ns)
        return true;
    template_fail(r, ERR_TOO_BIG, "the chat template takes more than %llu ms", (unsigned long long)(r->time_ns / NS_PER_MS));
    return false;
}

void *template_alloc(struct template_run *r, size_t n, size_t size)
{
    if (!template_step(r, 1 + n * size / 256))
        return NULL;
    void *p = arena_array(&r->arena, n, size);
    if (p == NULL)
        template_fail(r, ERR_TOO_BIG, "the chat template needs more than %d MiB of memory", TEMPLATE_MEMORY_MAX >> 20);
    return p;
}

struct template_val template_cstr(const char *s)
{
    return template_str(s, strlen(s));
}

struct template_val template_list(struct template_run *r, enum template_flavour flavour, uint32_t cap)
{
    struct template_list *l = template_alloc(r, 1, sizeof(*l));
    if (l != NULL && cap > 0) {
        l->v = template_alloc(r, cap, sizeof(*l->v));
        l->cap = l->v == NULL ? 0 : cap;
    }
    if (r->failed)
        return template_undefined(NULL, 0);
    return (struct template_val){.kind = TV_LIST, .flavour = flavour, .list = l};
}

bool template_push(struct template_run *r, struct template_val list, struct template_val v)
{
    if (r->failed)
        return false;
    struct template_list *l = list.list;
    if (l->n == l->cap) {
        uint32_t cap = l->cap == 0 ? 8 : l->cap * 2;
        struct template_val *n = template_alloc(r, cap, sizeof(*n));
        if (n == NULL)
            return false;
        if (l->n > 0)
            memcpy(n, l->v, l->n * sizeof(*n));
        l->v = n;
        l->cap = cap;
    }
    l->v[l->n++] = v;
    return true;
}

struct template_val template_pair(struct template_run *r, struct template_val a, struct template_val b)
{
    struct template_val p = template_list(r, TV_TUPLE, 2);
    template_push(r, p, a);
    template_push(r, p, b);
    return p;
}

struct template_val template_dict(struct template_run *r)
{
    struct template_dict *d = template_alloc(r, 1, sizeof(*d));
    return d == NULL ? template_undefined(NULL, 0) : (struct template_val){.kind = TV_DICT, .dict = d};
}

struct template_val template_bound(struct template_run *r, const struct template_def *def, struct template_val self)
{
    struct template_val f = {.kind = TV_FUNCTION, .def = def}, *copy;
    if (!template_given(self))
        return f;
    copy = template_alloc(r, 1, sizeof(*copy));
    if (copy == NULL)
        return template_undefined(NULL, 0);
    *copy = self;
    f.self = copy;
    return f;
}

/* ---- dicts ---- */

bool template_is_tuple(struct template_val v)
{
    return v.kind == TV_LIST && (v.flavour == TV_TUPLE || v.flavour == TV_GROUP);
}

bool template_is_sequence(struct template_val v)
{
    return v.kind == TV_LIST && v.flavour <= TV_RANGE;
}

bool template_hashable(struct template_run *r, struct template_val k)
{
    bool ok = !(k.kind == TV_DICT || (k.kind == TV_LIST && !template_is_tuple(k) && k.flavour != TV_RANGE && k.flavour != TV_VALUES));
    if (!ok)
        template_fail(r, ERR_INVALID, "unhashable type: '%s'", template_type_name(k));
    for (uint32_t i = 0; ok && template_is_tuple(k) && i < k.list->n; i++)
        ok = template_step(r, 1) && template_hashable(r, k.list->v[i]);
    return ok;
}

/* Equal keys hash equal: 1, 1.0 and True are one key. */
static uint32_t hash_key(struct template_val k)
{
    uint64_t h = 0x9E3779B97F4A7C15ull;
    double f;
    if (k.kind == TV_STR) {
        for (size_t i = 0; i < k.len; i++)
            h = (h ^ (unsigned char)k.s[i]) * 0x100000001B3ull;
    } else if (template_number(k, &f)) {
        f = f == 0 ? 0 : f;
        memcpy(&h, &f, sizeof(h));
        h *= 0x9E3779B97F4A7C15ull;
    }
    return (uint32_t)(h ^ h >> 32);
}

static uint32_t find_entry(struct template_run *r, const struct template_dict *d, struct template_val k)
{
    if (d->slots == NULL) {
        for (uint32_t i = 0; i < d->n; i++)
            if (template_eq(r, d->e[i].k, k))
                return i + 1;
        return 0;
    }
    for (uint32_t s = hash_key(k) & d->mask; d->slots[s] != 0; s = (s + 1) & d->mask)
        if (template_eq(r, d->e[d->slots[s] - 1].k, k))
            return d->slots[s];
    return 0;
}

static void slot_in(struct template_dict *d, uint32_t entry)
{
    uint32_t s = hash_key(d->e[entry].k) & d->mask;
    while (d->slots[s] != 0)
        s = (s + 1) & d->mask;
    d->slots[s] = entry + 1;
}

static bool grow_dict(struct template_run *r, struct template_dict *d)
{
    uint32_t cap = d->cap == 0 ? 4 : d->cap * 2;
    struct template_entry *e = template_alloc(r, cap, sizeof(*e));
    if (e == NULL)
        return false;
    if (d->n > 0)
        memcpy(e, d->e, d->n * sizeof(*e));
    d->e = e;
    d->cap = cap;
    if (cap <= DICT_LINEAR_MAX)
        return true;
    d->slots = template_alloc(r, (size_t)cap * 2, sizeof(*d->slots));
    if (d->slots == NULL) {
        d->n = 0;
        return false;
    }
    d->mask = cap * 2 - 1;
    for (uint32_t i = 0; i < d->n; i++)
        slot_in(d, i);
    return true;
}

bool template_put(struct template_run *r, struct template_dict *d, struct template_val k, struct template_val v)
{
    if (r->failed || !template_hashable(r, k))
        return false;
    uint32_t at = find_entry(r, d, k);
    if (at != 0) {
        d->e[at - 1].v = v;
        return true;
    }
    if (d->n == d->cap && !grow_dict(r, d))
        return false;
    d->e[d->n] = (struct template_entry){k, v};
    if (d->slots != NULL)
        slot_in(d, d->n);
    d->n++;
    return true;
}

const struct template_val *template_get(struct template_run *r, const struct template_dict *d, struct template_val k)
{
    uint32_t at = find_entry(r, d, k);
    return at == 0 ? NULL : &d->e[at - 1].v;
}

const struct template_val *template_get_str(const struct template_dict *d, const char *s, size_t len)
{
    uint32_t at = find_entry(NULL, d, template_str(s, len)); /* comparing with a string never fails */
    return at == 0 ? NULL : &d->e[at - 1].v;
}

struct template_val template_from_json(struct template_run *r, const json_t *j, uint32_t depth)
{
    if (depth > TEMPLATE_NESTING_MAX)
        return template_fail(r, ERR_TOO_BIG, "the template's context is nested deeper than %d", TEMPLATE_NESTING_MAX);
    switch (json_typeof(j)) {
    case JSON_STRING:
        r->text_bytes += json_string_length(j);
        return template_str(json_string_value(j), json_string_length(j));
    case JSON_INTEGER:
        return template_int(json_integer_value(j));
    case JSON_REAL:
        return template_float(json_real_value(j));
    case JSON_TRUE:
    case JSON_FALSE:
        return template_bool(json_is_true(j));
    case JSON_NULL:
        return template_none();
    case JSON_ARRAY: {
        size_t n = json_array_size(j);
        struct template_val l = template_list(r, TV_PLAIN, (uint32_t)MIN(n, (size_t)UINT32_MAX / 2));
        for (size_t i = 0; i < n && !r->failed; i++)
            template_push(r, l, template_from_json(r, json_array_get(j, i), depth + 1));
        return l;
    }
    default: {
        struct template_val d = template_dict(r);
        void *it = json_object_iter((json_t *)j);
        for (; it != NULL && !r->failed; it = json_object_iter_next((json_t *)j, it)) {
            struct template_val v = template_from_json(r, json_object_iter_value(it), depth + 1);
            if (!r->failed)
                template_put(r, d.dict, template_cstr(json_object_iter_key(it)), v);
        }
        return d;
    }
    }
}

/* ---- Python's idea of values ---- */

const char *template_type_name(struct template_val v)
{
    static const char *const names[] = {
        [TV_MISSING] = "Undefined", [TV_UNDEFINED] = "Undefined", [TV_NONE] = "NoneType",
        [TV_BOOL] = "bool",         [TV_INT] = "int",             [TV_BIG] = "int",
        [TV_FLOAT] = "float",       [TV_STR] = "str",             [TV_LIST] = "list",
        [TV_DICT] = "dict",         [TV_ITER] = "generator",      [TV_NAMESPACE] = "Namespace",
        [TV_CYCLER] = "Cycler",     [TV_FUNCTION] = "function",   [TV_MACRO] = "Macro",
        [TV_LOOP] = "LoopContext"};
    static const char *const lists[] = {"list", "tuple", "_GroupTuple", "range", "dict_keys", "dict_values", "dict_items"};
    return v.kind == TV_LIST ? lists[v.flavour] : names[v.kind];
}

bool template_number(struct template_val v, double *f)
{
    if (v.kind == TV_FLOAT)
        *f = v.f;
    else if (template_is_whole(v))
        *f = template_int_double(v);
    else
        return false;
    return true;
}

bool template_small(struct template_val v, int64_t *i)
{
    *i = v.kind == TV_BOOL ? v.b : v.i;
    return v.kind == TV_BOOL || v.kind == TV_INT;
}

bool template_is_whole(struct template_val v)
{
    return v.kind == TV_BOOL || v.kind == TV_INT || v.kind == TV_BIG;
}

static bool is_number(struct template_val v)
{
    return template_is_whole(v) || v.kind == TV_FLOAT;
}

/* -1, 0, 1, or 2 with a NaN. An integer and a float are compared exactly, not after rounding. */
static int cmp_number(struct template_run *r, struct template_val a, struct template_val b)
{
    if (template_is_whole(a) && template_is_whole(b))
        return template_int_cmp(a, b);
    if (b.kind != TV_FLOAT) {
        int c = cmp_number(r, b, a);
        return c == 2 ? 2 : -c;
    }
    double g = b.f, f = a.kind == TV_FLOAT ? a.f : template_int_double(a);
    if (isnan(f) || isnan(g))
        return 2;
    if (a.kind == TV_FLOAT || fabs(g) < 0x1p53 || isinf(g))
        return (f > g) - (f < g);
    return template_int_cmp(a, template_int_from_double(r, g)); /* no digits behind the point */
}

bool template_truth(struct template_val v)
{
    switch (v.kind) {
    case TV_MISSING:
    case TV_UNDEFINED:
    case TV_NONE:
        return false;
    case TV_BOOL:
        return v.b;
    case TV_INT:
        return v.i != 0;
    case TV_FLOAT:
        return v.f != 0;
    case TV_STR:
        return v.len > 0;
    case TV_LIST:
        return v.list->n > 0;
    case TV_DICT:
        return v.dict->n > 0;
    default:
        return true;
    }
}

bool template_is_str(struct template_val v, const char *s)
{
    return v.kind == TV_STR && strlen(s) == v.len && memcmp(v.s, s, v.len) == 0;
}

struct template_val template_undefined_used(struct template_run *r, struct template_val v)
{
    if (v.s == NULL)
        return template_fail(r, ERR_INVALID, "the value is undefined");
    return template_fail(r, ERR_INVALID, v.flavour == TV_UNSAFE ? "a template may not change its values: '%.*s' is not safe to call" : "'%.*s' is undefined",
                         (int)MIN(v.len, (size_t)100), v.s);
}

static bool eq_at(struct template_run *r, struct template_val a, struct template_val b, uint32_t depth);

static bool eq_dict(struct template_run *r, const struct template_dict *a, const struct template_dict *b,
                    uint32_t depth)
{
    if (a->n != b->n)
        return false;
    for (uint32_t i = 0; i < a->n; i++) {
        const struct template_val *o = template_get(r, b, a->e[i].k);
        if (o == NULL || !eq_at(r, a->e[i].v, *o, depth + 1))
            return false;
    }
    return true;
}

/* r is NULL only where one side is a string. */
static bool eq_at(struct template_run *r, struct template_val a, struct template_val b, uint32_t depth)
{
    if (a.kind == TV_STR || b.kind == TV_STR)
        return a.kind == b.kind && a.len == b.len && (a.s == b.s || memcmp(a.s, b.s, a.len) == 0);
    if (is_number(a) && is_number(b))
        return cmp_number(r, a, b) == 0;
    if (a.kind != b.kind)
        return false;
    if (a.kind == TV_UNDEFINED || a.kind == TV_NONE)
        return true;
    if (!template_step(r, 1))
        return false;
    if (depth > TEMPLATE_NESTING_MAX) {
        template_fail(r, ERR_TOO_BIG, "values nested deeper than %d are compared", TEMPLATE_NESTING_MAX);
        return false;
    }
    if (a.kind == TV_DICT)
        return a.dict == b.dict || eq_dict(r, a.dict, b.dict, depth);
    if (a.kind == TV_FUNCTION)
        return a.def == b.def && (a.self == NULL || b.self == NULL ? a.self == b.self : eq_at(r, *a.self, *b.self, depth + 1));
    if (a.kind != TV_LIST || a.list == b.list)
        return a.list == b.list;
    bool tuples = template_is_tuple(a) && template_is_tuple(b), views = a.flavour == b.flavour && (a.flavour == TV_KEYS || a.flavour == TV_ITEMS);
    if ((a.flavour != b.flavour && !tuples) || (!template_is_sequence(a) && !views) || a.list->n != b.list->n)
        return false;
    for (uint32_t i = 0; i < a.list->n; i++) {
        bool same = false;
        for (uint32_t k = 0; views && k < b.list->n && !same && template_step(r, 1); k++)
            same = eq_at(r, a.list->v[i], b.list->v[k], depth + 1); /* as sets */
        if (!same && (views || !eq_at(r, a.list->v[i], b.list->v[i], depth + 1)))
            return false;
    }
    return true;
}

bool template_eq(struct template_run *r, struct template_val a, struct template_val b)
{
    return eq_at(r, a, b, 0);
}

static int cmp_at(struct template_run *r, struct template_val a, struct template_val b, const char *op, uint32_t depth)
{
    if (!template_step(r, 1))
        return 0;
    if (a.kind == TV_STR && b.kind == TV_STR) {
        int c = memcmp(a.s, b.s, MIN(a.len, b.len)); /* UTF-8 sorts as its code points do */
        return c != 0 ? (c > 0) - (c < 0) : (a.len > b.len) - (a.len < b.len);
    }
    if (is_number(a) && is_number(b))
        return cmp_number(r, a, b);
    if (a.kind == TV_UNDEFINED || b.kind == TV_UNDEFINED) {
        template_undefined_used(r, a.kind == TV_UNDEFINED ? a : b);
        return 0;
    }
    bool tuples = template_is_tuple(a) && template_is_tuple(b);
    bool lists = a.kind == TV_LIST && b.kind == TV_LIST && a.flavour == TV_PLAIN && b.flavour == TV_PLAIN;
    if ((!tuples && !lists) || depth > TEMPLATE_NESTING_MAX) {
        template_fail(r, ERR_INVALID, "'%s' not supported between instances of '%s' and '%s'", op, template_type_name(a),
                      template_type_name(b));
        return 0;
    }
    for (uint32_t i = 0; i < a.list->n && i < b.list->n; i++)
        if (!eq_at(r, a.list->v[i], b.list->v[i], depth))
            return cmp_at(r, a.list->v[i], b.list->v[i], op, depth + 1);
    return (a.list->n > b.list->n) - (a.list->n < b.list->n);
}

int template_cmp(struct template_run *r, struct template_val a, struct template_val b, const char *op)
{
    return cmp_at(r, a, b, op, 0);
}

bool template_contains(struct template_run *r, struct template_val item, struct template_val in)
{
    if (in.kind == TV_STR) {
        if (item.kind != TV_STR) {
            template_fail(r, ERR_INVALID, "'in <string>' requires string as left operand, not %s",
                          template_type_name(item));
            return false;
        }
        return template_step(r, in.len / 64) && (item.len == 0 || memmem(in.s, in.len, item.s, item.len) != NULL);
    }
    if (in.kind == TV_DICT)
        return template_hashable(r, item) && template_get(r, in.dict, item) != NULL;
    bool pair = in.kind == TV_LIST && in.flavour == TV_ITEMS && template_is_tuple(item) && item.list->n == 2;
    if ((in.kind == TV_LIST && in.flavour == TV_KEYS && !template_hashable(r, item)) || (pair && !template_hashable(r, item.list->v[0])))
        return false;
    struct template_iter *it = template_iter(r, in);
    struct template_val x;
    while (it != NULL && template_next(r, it, &x))
        if (template_eq(r, x, item))
            return true;
    return false;
}

int64_t template_len(struct template_run *r, struct template_val v)
{
    if (v.kind == TV_STR)
        return template_step(r, v.len / 64) ? (int64_t)template_char_count(v) : 0;
    if (v.kind == TV_LIST || v.kind == TV_DICT)
        return v.kind == TV_LIST ? v.list->n : v.dict->n;
    return v.kind == TV_UNDEFINED ? 0 : -1;
}
