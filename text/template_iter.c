/* Iteration: iterators give each item once, when it is asked for, as Python's do; what nobody asks for is never computed,
 * and an error in it never raised. */
#include "base/check.h"
#include "text/template_ast.h"

static bool walk_list(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    (void)r;
    if (it->at >= it->over.list->n)
        return false;
    *out = it->over.list->v[it->at++];
    return true;
}

static bool walk_dict(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    (void)r;
    if (it->at >= it->over.dict->n)
        return false;
    *out = it->over.dict->e[it->at++].k;
    return true;
}

static bool walk_str(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    size_t n;
    (void)r;
    if (it->at >= it->over.len)
        return false;
    template_char_at(it->over, it->at, &n);
    *out = template_str(it->over.s + it->at, n);
    it->at += n;
    return true;
}

static bool walk_back(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    (void)r;
    if (it->at == 0)
        return false;
    it->at--;
    *out = it->over.kind == TV_DICT ? it->over.dict->e[it->at].k : it->over.list->v[it->at];
    return true;
}

static bool walk_nothing(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    (void)r;
    (void)it;
    (void)out;
    return false;
}

struct template_val template_iter_new(struct template_run *r, template_next_fn *next, struct template_iter *src, struct template_val over)
{
    struct template_iter *it = template_alloc(r, 1, sizeof(*it));
    if (it == NULL)
        return template_undefined(NULL, 0);
    it->next = next;
    it->src = src;
    it->over = over;
    return (struct template_val){.kind = TV_ITER, .iter = it};
}

bool template_next(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    if (it->done || !template_step(r, 1))
        return false;
    if (++r->depth > TEMPLATE_DEPTH_MAX)
        template_fail(r, ERR_TOO_BIG, "the chat template is nested deeper than %d", TEMPLATE_DEPTH_MAX);
    it->done = r->failed || !it->next(r, it, out) || r->failed;
    r->depth--;
    return !it->done;
}

bool template_iterable(struct template_val v)
{
    return v.kind == TV_LIST || v.kind == TV_STR || v.kind == TV_DICT || v.kind == TV_UNDEFINED || v.kind == TV_ITER || v.kind == TV_LOOP;
}

struct template_iter *template_iter(struct template_run *r, struct template_val v)
{
    if (r->failed)
        return NULL;
    if (v.kind == TV_ITER)
        return v.iter;
    if (!template_iterable(v)) {
        template_fail(r, ERR_INVALID, "'%s' object is not iterable", template_type_name(v));
        return NULL;
    }
    if (v.kind == TV_LOOP) {
        template_fail(r, ERR_UNSUPPORTED, "the loop variable is walked through");
        return NULL;
    }
    template_next_fn *next = v.kind == TV_LIST ? walk_list : v.kind == TV_DICT ? walk_dict : v.kind == TV_STR ? walk_str : walk_nothing;
    return template_iter_new(r, next, NULL, v).iter;
}

struct template_list *template_iterate(struct template_run *r, struct template_val v)
{
    if (!template_step(r, 1))
        return NULL;
    if (v.kind == TV_LIST)
        return v.list;
    struct template_iter *it = template_iter(r, v);
    struct template_val l = template_list(r, TV_PLAIN, 0), x;
    while (it != NULL && template_next(r, it, &x))
        template_push(r, l, x);
    return r->failed ? NULL : l.list;
}

struct template_val template_reversed(struct template_run *r, struct template_val v)
{
    if (v.kind == TV_UNDEFINED)
        return template_iter_new(r, walk_nothing, NULL, v);
    if (v.kind == TV_STR)
        v = (struct template_val){.kind = TV_LIST, .list = template_iterate(r, v)};
    if (r->failed || (v.kind != TV_LIST && v.kind != TV_DICT))
        return (struct template_val){0};
    struct template_val it = template_iter_new(r, walk_back, NULL, v);
    if (!r->failed)
        it.iter->at = v.kind == TV_DICT ? v.dict->n : v.list->n;
    return it;
}
