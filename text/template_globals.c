/* The functions that every template has. */
#include "base/check.h"
#include "text/template_ast.h"

#include <string.h>

#define GLOBAL(name)                                                                                                   \
    static struct template_val name(struct template_run *r, struct template_val self, const struct template_args *a)

void template_range_bounds(struct template_run *r, struct template_val range, int64_t first, int64_t end, int64_t step)
{
    template_push(r, range, template_int(first));
    template_push(r, range, template_int(end));
    template_push(r, range, template_int(step));
    if (!r->failed)
        range.list->n -= 3;
}

GLOBAL(g_range)
{
    (void)self;
    int64_t v[3] = {0, 0, 1};
    if (a->n < 1 || a->n > 3 || a->n_kw > 0)
        return template_fail(r, ERR_INVALID, "range expected 1 to 3 arguments, got %u", a->n);
    for (uint32_t i = 0; i < a->n; i++)
        if (a->pos[i].kind == TV_BIG)
            return template_fail(r, ERR_TOO_BIG, "range() takes no integers of more than 64 bits");
        else if (!template_small(a->pos[i], &v[a->n == 1 ? 1 : i]))
            return template_fail(r, ERR_INVALID, "'%s' object cannot be interpreted as an integer", template_type_name(a->pos[i]));
    if (v[2] == 0)
        return template_fail(r, ERR_INVALID, "range() arg 3 must not be zero");
    struct template_val l = template_list(r, TV_RANGE, 0);
    for (int64_t i = v[0]; (v[2] > 0 ? i < v[1] : i > v[1]) && !r->failed;) {
        if (l.list->n >= TEMPLATE_RANGE_MAX)
            return template_fail(r, ERR_TOO_BIG, "Range too big. The sandbox blocks ranges larger than %d.", TEMPLATE_RANGE_MAX);
        template_push(r, l, template_int(i));
        if (__builtin_add_overflow(i, v[2], &i))
            break;
    }
    if (!r->failed)
        template_range_bounds(r, l, v[0], v[1], v[2]);
    return l;
}

GLOBAL(g_dict)
{
    (void)self;
    struct template_val d = template_dict(r);
    if (a->n > 1)
        return template_fail(r, ERR_INVALID, "dict expected at most 1 argument, got %u", a->n);
    if (a->n > 0 && a->pos[0].kind == TV_DICT) {
        for (uint32_t i = 0; i < a->pos[0].dict->n && !r->failed; i++)
            template_put(r, d.dict, a->pos[0].dict->e[i].k, a->pos[0].dict->e[i].v);
    } else if (a->n > 0) {
        struct template_list *l = template_iterate(r, a->pos[0]);
        for (uint32_t i = 0; l != NULL && i < l->n && !r->failed; i++) {
            struct template_list *pair = template_iterate(r, l->v[i]);
            if (pair == NULL || pair->n != 2)
                return template_fail(r, ERR_INVALID, "dictionary update sequence element #%u is no pair", i);
            template_put(r, d.dict, pair->v[0], pair->v[1]);
        }
    }
    for (uint32_t i = 0; i < a->n_kw && !r->failed; i++)
        template_put(r, d.dict, template_cstr(a->kw[i].name), a->kw[i].v);
    return d;
}

GLOBAL(g_namespace)
{
    struct template_val d = g_dict(r, self, a);
    if (d.kind == TV_DICT)
        d.kind = TV_NAMESPACE;
    return d;
}

GLOBAL(g_raise)
{
    (void)self;
    struct template_val s = template_to_str(r, a->pos[0]);
    return template_fail(r, ERR_INVALID, "%.*s", (int)MIN(s.len, (size_t)380), s.s);
}

GLOBAL(g_strftime_now)
{
    (void)self;
    struct template_val f = a->pos[0];
    char fmt[256], out[1024];
    struct tm tm;
    if (f.kind != TV_STR)
        return template_fail(r, ERR_INVALID, "strftime() argument must be str, not %s", template_type_name(f));
    if (f.len >= sizeof(fmt))
        return template_fail(r, ERR_TOO_BIG, "strftime_now: the format is too long");
    memcpy(fmt, f.s, f.len);
    fmt[f.len] = 0;
    size_t n = localtime_r(&r->now, &tm) == NULL ? 0 : strftime(out, sizeof(out), fmt, &tm);
    struct template_text t = {.r = r};
    template_text_add(&t, out, n);
    return template_text_val(&t);
}

/* A joiner gives nothing the first time and its text from then on: {sep, used}. */
GLOBAL(joiner_next)
{
    (void)a;
    struct template_val v = self.list->next > 0 ? self.list->v[0] : template_cstr("");
    (void)r;
    self.list->next = 1;
    return v;
}

GLOBAL(g_joiner)
{
    static const struct template_def next = {"joiner", joiner_next, ""};
    struct template_val state = template_list(r, TV_PLAIN, 1);
    (void)self;
    template_push(r, state, template_given(a->pos[0]) ? a->pos[0] : template_cstr(", "));
    return r->failed ? state : template_bound(r, &next, state);
}

GLOBAL(g_cycler)
{
    struct template_val c = template_list(r, TV_PLAIN, a->n);
    (void)self;
    if (a->n == 0 || a->n_kw > 0)
        return template_fail(r, ERR_INVALID, "at least one item has to be provided");
    for (uint32_t i = 0; i < a->n && !r->failed; i++)
        template_push(r, c, a->pos[i]);
    if (!r->failed)
        c.kind = TV_CYCLER;
    return c;
}

GLOBAL(g_lipsum)
{
    (void)self;
    (void)a;
    return template_fail(r, ERR_UNSUPPORTED, "lipsum() is not supported");
}

struct template_val template_global_find(struct template_run *r, const char *name, size_t len)
{
    static const struct template_def globals[] = {
        {"range", g_range, NULL},
        {"dict", g_dict, NULL},
        {"namespace", g_namespace, NULL},
        {"raise_exception", g_raise, "message"},
        {"strftime_now", g_strftime_now, "format"},
        {"joiner", g_joiner, "sep?"},
        {"cycler", g_cycler, NULL},
        {"lipsum", g_lipsum, NULL},
    };
    const struct template_def *def = template_def_find(globals, ARRAY_LEN(globals), name, len);
    return def == NULL ? (struct template_val){0} : template_bound(r, def, (struct template_val){0});
}
