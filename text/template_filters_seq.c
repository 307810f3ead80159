/* Filters of sequences. Those that are generators in jinja2 are iterators here: they compute an item when it is asked for.
 * Parameters are in the table of template_filters.c. */
#include "base/check.h"
#include "text/template_filters.h"

#include <string.h>

static struct template_val copy_list(struct template_run *r, struct template_val v)
{
    struct template_list *l = template_iterate(r, v);
    if (l == NULL || v.kind != TV_LIST)
        return (struct template_val){.kind = TV_LIST, .list = l};
    struct template_val out = template_list(r, TV_PLAIN, l->n);
    for (uint32_t i = 0; i < l->n && template_step(r, 1); i++)
        template_push(r, out, l->v[i]);
    return out;
}

FILTER(template_filter_list)
{
    (void)a;
    struct template_val l = copy_list(r, v);
    return r->failed ? template_undefined(NULL, 0) : l;
}

FILTER(template_filter_first)
{
    (void)a;
    struct template_iter *it = template_iter(r, v);
    struct template_val x;
    return it != NULL && template_next(r, it, &x) ? x : template_undefined("No first item, sequence was empty.", 34);
}

FILTER(template_filter_last)
{
    (void)a;
    struct template_val back = template_reversed(r, v);
    if (!template_given(back))
        return template_fail(r, ERR_INVALID, "'%s' object is not reversible", template_type_name(v));
    return template_filter_first(r, back, a);
}

FILTER(template_filter_reverse)
{
    (void)a;
    if (v.kind == TV_STR) {
        struct template_text t = {.r = r};
        for (size_t i = v.len; i > 0 && template_step(r, 1);) {
            size_t at = template_char_before(v, i);
            template_text_add(&t, v.s + at, i - at);
            i = at;
        }
        struct template_val s = template_text_val(&t);
        s.flavour = v.flavour;
        return s;
    }
    struct template_val back = template_reversed(r, v);
    if (template_given(back) || r->failed)
        return back;
    struct template_list *l = template_iterate(r, v);
    struct template_val out = template_list(r, TV_PLAIN, 0);
    for (uint32_t i = l == NULL ? 0 : l->n; i-- > 0 && template_step(r, 1);)
        template_push(r, out, l->v[i]);
    return out;
}

/* "a.b.0" of a value, as map(attribute=...) and others take it; a `fallback` replaces what is undefined on the way. */
static struct template_val path_of(struct template_run *r, struct template_val v, struct template_val path, struct template_val fallback)
{
    bool has_fallback = template_given(fallback) && fallback.kind != TV_NONE;
    if (path.kind == TV_NONE || !template_given(path))
        return v;
    if (path.kind != TV_STR) {
        v = template_item(r, v, path);
        return has_fallback && v.kind == TV_UNDEFINED ? fallback : v;
    }
    for (size_t i = 0; i <= path.len && template_step(r, 1);) {
        const char *dot = i < path.len ? memchr(path.s + i, '.', path.len - i) : NULL;
        size_t to = dot == NULL ? path.len : (size_t)(dot - path.s), k = i, n;
        while (k < to && template_char_is(template_char_at(path, k, &n), TC_DECIMAL))
            k += n;
        v = template_item(r, v, k == to && to > i && to - i < 18 ? template_int_parse(r, path.s + i, to - i, 10) : template_str(path.s + i, to - i));
        if (has_fallback && v.kind == TV_UNDEFINED)
            v = fallback;
        i = to + 1;
    }
    return v;
}

FILTER(template_filter_join)
{
    struct template_val sep = a->pos[0], attr = a->pos[1], x;
    struct template_iter *it = template_iter(r, v);
    struct template_text t = {.r = r};
    sep = template_given(sep) ? template_to_str(r, sep) : template_cstr("");
    for (bool first = true; it != NULL && template_next(r, it, &x); first = false) {
        if (!first)
            template_text_add(&t, sep.s, sep.len);
        template_text_str(&t, path_of(r, x, attr, (struct template_val){0}));
    }
    return template_text_val(&t);
}

/* ---- sorting ---- */

/* What sort, unique, min, max and groupby compare: the attribute, in lower case unless case counts. */
static struct template_val lowered(struct template_run *r, struct template_val v, bool case_sensitive)
{
    return v.kind == TV_STR && !case_sensitive ? template_case(r, v, 'l') : v;
}

/* sort takes several attributes, "a,b": the key is a list of them. */
static struct template_val sort_key(struct template_run *r, struct template_val v, struct template_val attr, bool case_sensitive)
{
    struct template_val keys = template_list(r, TV_PLAIN, 1), none = {0};
    if (attr.kind != TV_STR) {
        template_push(r, keys, lowered(r, path_of(r, v, attr, none), case_sensitive));
        return keys;
    }
    for (size_t i = 0; i <= attr.len && !r->failed;) {
        const char *comma = i < attr.len ? memchr(attr.s + i, ',', attr.len - i) : NULL;
        size_t to = comma == NULL ? attr.len : (size_t)(comma - attr.s);
        template_push(r, keys, lowered(r, path_of(r, v, template_str(attr.s + i, to - i), none), case_sensitive));
        i = to + 1;
    }
    return keys;
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

static struct sorting *sorting_create(struct template_run *r, uint32_t n)
{
    return template_alloc(r, (size_t)n * 2 + 2, sizeof(struct sorting));
}

uint32_t *template_filter_key_order(struct template_run *r, const struct template_dict *d)
{
    struct sorting *s = sorting_create(r, d->n);
    uint32_t *order = template_alloc(r, (size_t)d->n + 1, sizeof(*order));
    if (r->failed)
        return NULL;
    for (uint32_t i = 0; i < d->n; i++)
        s[i] = (struct sorting){d->e[i].k, template_int(i)};
    merge_sort(r, s, s + d->n + 1, d->n, false);
    for (uint32_t i = 0; i < d->n; i++)
        order[i] = (uint32_t)s[i].v.i;
    return order;
}

FILTER(template_filter_sort)
{
    struct template_list *l = template_iterate(r, v);
    struct sorting *s = l == NULL ? NULL : sorting_create(r, l->n);
    struct template_val out = template_list(r, TV_PLAIN, l == NULL ? 0 : l->n);
    for (uint32_t i = 0; s != NULL && i < l->n && !r->failed; i++)
        s[i] = (struct sorting){sort_key(r, l->v[i], a->pos[2], template_filter_flag(a->pos[1])), l->v[i]};
    if (s != NULL && !r->failed)
        merge_sort(r, s, s + l->n + 1, l->n, template_filter_flag(a->pos[0]));
    for (uint32_t i = 0; s != NULL && i < l->n && !r->failed; i++)
        template_push(r, out, s[i].v);
    return out;
}

FILTER(template_filter_dictsort)
{
    struct template_val by = a->pos[1], out = template_list(r, TV_PLAIN, 0);
    bool value = template_given(by) && template_is_str(by, "value");
    if (template_given(by) && !value && !template_is_str(by, "key"))
        return template_fail(r, ERR_INVALID, "You can only sort by either \"key\" or \"value\"");
    if (v.kind == TV_UNDEFINED)
        return template_undefined_used(r, v);
    if (v.kind != TV_DICT)
        return template_fail(r, ERR_INVALID, "'%s' object has no attribute 'items'", template_type_name(v));
    const struct template_dict *d = v.dict;
    struct sorting *s = sorting_create(r, d->n);
    for (uint32_t i = 0; s != NULL && i < d->n && !r->failed; i++)
        s[i] = (struct sorting){lowered(r, value ? d->e[i].v : d->e[i].k, template_filter_flag(a->pos[0])), template_pair(r, d->e[i].k, d->e[i].v)};
    if (s != NULL && !r->failed)
        merge_sort(r, s, s + d->n + 1, d->n, template_filter_flag(a->pos[2]));
    for (uint32_t i = 0; s != NULL && i < d->n && !r->failed; i++)
        template_push(r, out, s[i].v);
    return out;
}

static struct template_val extreme(struct template_run *r, struct template_val v, const struct template_args *a, int sign)
{
    struct template_iter *it = template_iter(r, v);
    struct template_val best = template_undefined("No aggregated item, sequence was empty.", 39), key = best, x, none = {0};
    for (bool first = true; it != NULL && template_next(r, it, &x); first = false) {
        struct template_val k = lowered(r, path_of(r, x, a->pos[1], none), template_filter_flag(a->pos[0]));
        int c = first ? 1 : template_cmp(r, k, key, sign > 0 ? ">" : "<");
        if (first || (c != 2 && c * sign > 0)) {
            best = x;
            key = k;
        }
    }
    return best;
}

FILTER(template_filter_min)
{
    return extreme(r, v, a, -1);
}

FILTER(template_filter_max)
{
    return extreme(r, v, a, 1);
}

FILTER(template_filter_sum)
{
    struct template_iter *it = template_iter(r, v);
    struct template_val total = template_given(a->pos[1]) ? a->pos[1] : template_int(0), x, none = {0};
    if (total.kind == TV_STR)
        return template_fail(r, ERR_INVALID, "sum() can't sum strings [use ''.join(seq) instead]");
    while (it != NULL && template_next(r, it, &x))
        total = template_binary(r, '+', total, path_of(r, x, a->pos[0], none));
    return total;
}

FILTER(template_filter_groupby)
{
    struct template_list *l = template_iterate(r, v);
    struct template_val attr = a->pos[0], fallback = a->pos[1], out = template_list(r, TV_PLAIN, 0), group = template_none();
    bool case_sensitive = template_filter_flag(a->pos[2]);
    struct sorting *s = l == NULL ? NULL : sorting_create(r, l->n);
    for (uint32_t i = 0; s != NULL && i < l->n && !r->failed; i++)
        s[i] = (struct sorting){lowered(r, path_of(r, l->v[i], attr, fallback), case_sensitive), l->v[i]};
    if (s != NULL && !r->failed)
        merge_sort(r, s, s + l->n + 1, l->n, false);
    for (uint32_t i = 0; s != NULL && i < l->n && !r->failed; i++) {
        if (i == 0 || !template_eq(r, s[i].key, s[i - 1].key)) {
            group = template_list(r, TV_PLAIN, 0);
            struct template_val pair = template_pair(r, case_sensitive ? s[i].key : path_of(r, s[i].v, attr, fallback), group);
            pair.flavour = TV_GROUP;
            template_push(r, out, pair);
        }
        template_push(r, group, s[i].v);
    }
    return out;
}

/* ---- generators ---- */

/* An iterator over v, made when its first item is asked for, as a generator function does. False when there is none. */
static bool begin(struct template_run *r, struct template_iter *it)
{
    if (it->src == NULL)
        it->src = template_iter(r, it->over);
    return it->src != NULL;
}

static bool next_unique(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    struct template_val none = {0};
    if (!it->started) {
        it->args.kw = NULL;
        it->fallback = template_dict(r); /* the keys seen */
        it->started = true;
    }
    while (begin(r, it) && template_next(r, it->src, out)) {
        struct template_val k = lowered(r, path_of(r, *out, it->attr, none), it->want);
        if (!template_hashable(r, k))
            return false;
        if (template_get(r, it->fallback.dict, k) == NULL)
            return template_put(r, it->fallback.dict, k, template_none());
    }
    return false;
}

FILTER(template_filter_unique)
{
    struct template_val u = template_iter_new(r, next_unique, NULL, v);
    if (!r->failed) {
        u.iter->attr = a->pos[1];
        u.iter->want = template_filter_flag(a->pos[0]);
    }
    return u;
}

static bool next_item_pair(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    if (it->over.kind == TV_UNDEFINED)
        return false;
    if (it->over.kind != TV_DICT) {
        template_fail(r, ERR_INVALID, "Can only get item pairs from a mapping.");
        return false;
    }
    if (it->at >= it->over.dict->n)
        return false;
    *out = template_pair(r, it->over.dict->e[it->at].k, it->over.dict->e[it->at].v);
    it->at++;
    return true;
}

FILTER(template_filter_items)
{
    (void)a;
    return template_iter_new(r, next_item_pair, NULL, v);
}

static bool next_batch(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    struct template_val row = template_given(it->fallback) ? it->fallback : template_list(r, TV_PLAIN, 0), x, count = it->args.pos[0], fill = it->args.pos[1];
    int64_t size;
    it->fallback = (struct template_val){0};
    while (begin(r, it) && template_next(r, it->src, &x)) {
        bool full = template_eq(r, template_int(row.list->n), count);
        if (full) { /* x begins the next row */
            it->fallback = template_list(r, TV_PLAIN, 0);
            template_push(r, it->fallback, x);
            *out = row;
            return !r->failed;
        }
        template_push(r, row, x);
    }
    *out = row;
    if (r->failed || row.list->n == 0)
        return false;
    if (!template_given(fill) || fill.kind == TV_NONE)
        return true;
    if (template_cmp(r, template_int(row.list->n), count, "<") >= 0 || !template_small(count, &size))
        return !r->failed;
    while (row.list->n < size && template_push(r, row, fill)) {
    }
    return !r->failed;
}

static bool next_slice(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    struct template_val fill = it->args.pos[1];
    int64_t n;
    if (!it->started) {
        it->attr = copy_list(r, it->over);
        it->started = true;
    }
    if (r->failed || !template_small(it->args.pos[0], &n)) {
        template_fail(r, ERR_INVALID, "slice needs a number");
        return false;
    }
    if (n == 0)
        template_fail(r, ERR_INVALID, "integer division or modulo by zero");
    if (r->failed || (int64_t)it->at >= n)
        return false;
    const struct template_list *l = it->attr.list;
    int64_t each = l->n / n, extra = l->n % n, k = (int64_t)it->at++, from = k * each + MIN(k, extra), to = from + each + (k < extra);
    *out = template_list(r, TV_PLAIN, 0);
    for (int64_t i = from; i < to; i++)
        template_push(r, *out, l->v[i]);
    if (template_given(fill) && fill.kind != TV_NONE && k >= extra)
        template_push(r, *out, fill);
    return !r->failed;
}

/* A generator that remembers its arguments. */
static struct template_val with_args(struct template_run *r, template_next_fn *next, struct template_val v, const struct template_args *a)
{
    struct template_val g = template_iter_new(r, next, NULL, v);
    struct template_val *pos = template_alloc(r, (size_t)a->n + 1, sizeof(*pos));
    struct template_kw *kw = template_alloc(r, (size_t)a->n_kw + 1, sizeof(*kw));
    if (r->failed)
        return template_undefined(NULL, 0);
    if (a->n > 0)
        memcpy(pos, a->pos, a->n * sizeof(*pos));
    if (a->n_kw > 0)
        memcpy(kw, a->kw, a->n_kw * sizeof(*kw));
    g.iter->args = (struct template_args){pos, kw, a->n, a->n_kw};
    return g;
}

FILTER(template_filter_batch)
{
    return with_args(r, next_batch, v, a);
}

FILTER(template_filter_slice)
{
    return with_args(r, next_slice, v, a);
}

static struct template_val named(const struct template_args *a, const char *name)
{
    for (uint32_t i = 0; i < a->n_kw; i++)
        if (strcmp(a->kw[i].name, name) == 0)
            return a->kw[i].v;
    return (struct template_val){0};
}

static void drop_first(struct template_args *a, uint32_t n)
{
    a->pos += n;
    a->n -= n;
}

/* The filter or test whose name is the first argument. */
static bool take_def(struct template_run *r, struct template_iter *it, bool test)
{
    struct template_val name = it->args.pos[0];
    if (!template_hashable(r, name))
        return false;
    it->def = name.kind != TV_STR ? NULL : test ? template_test_find(name.s, name.len) : template_filter_find(name.s, name.len);
    if (it->def == NULL)
        template_fail(r, ERR_INVALID, "there is no such %s", test ? "test" : "filter");
    drop_first(&it->args, 1);
    return !r->failed;
}

static bool next_mapped(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    if (!it->started) {
        it->started = true;
        if (!template_truth(it->over)) /* jinja2 looks at nothing else then */
            return false;
        it->attr = named(&it->args, "attribute");
        it->fallback = named(&it->args, "default");
        it->by_attr = it->args.n == 0 && template_given(it->attr);
        if (it->by_attr && it->args.n_kw > 1u + template_given(it->fallback))
            template_fail(r, ERR_INVALID, "Unexpected keyword argument");
        else if (!it->by_attr && it->args.n == 0)
            template_fail(r, ERR_INVALID, "map requires a filter argument");
        else if (!it->by_attr && !take_def(r, it, false))
            return false;
    }
    struct template_val x;
    if (r->failed || !begin(r, it) || !template_next(r, it->src, &x))
        return false;
    *out = it->by_attr ? path_of(r, x, it->attr, it->fallback) : template_call_def(r, it->def, x, &it->args);
    return !r->failed;
}

FILTER(template_filter_map)
{
    return with_args(r, next_mapped, v, a);
}

static bool next_chosen(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    struct template_val none = {0};
    if (!it->started) {
        it->started = true;
        if (!template_truth(it->over))
            return false;
        if (it->by_attr && it->args.n == 0) {
            template_fail(r, ERR_INVALID, "Missing parameter for attribute name");
            return false;
        }
        if (it->by_attr) {
            it->attr = it->args.pos[0];
            drop_first(&it->args, 1);
        }
        if (it->args.n > 0 && !take_def(r, it, true))
            return false;
    }
    while (begin(r, it) && template_next(r, it->src, out)) {
        struct template_val x = it->by_attr ? path_of(r, *out, it->attr, none) : *out;
        if (it->def != NULL && !r->failed)
            x = template_call_def(r, it->def, x, &it->args);
        if (!r->failed && template_truth(x) == it->want)
            return true;
    }
    return false;
}

static struct template_val choose(struct template_run *r, struct template_val v, const struct template_args *a, bool by_attr, bool want)
{
    struct template_val g = with_args(r, next_chosen, v, a);
    if (!r->failed) {
        g.iter->by_attr = by_attr;
        g.iter->want = want;
    }
    return g;
}

FILTER(template_filter_select)
{
    return choose(r, v, a, false, true);
}

FILTER(template_filter_reject)
{
    return choose(r, v, a, false, false);
}

FILTER(template_filter_selectattr)
{
    return choose(r, v, a, true, true);
}

FILTER(template_filter_rejectattr)
{
    return choose(r, v, a, true, false);
}
