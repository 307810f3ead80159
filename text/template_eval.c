/* Expressions to values, and calls: the arguments are bound to the parameters of what is called as Python does it. */
#include "base/check.h"
#include "text/template_ast.h"

#include <string.h>

static struct template_val eval_kind(struct template_run *r, const struct template_node *n);

struct template_val template_eval(struct template_run *r, const struct template_node *n)
{
    if (!template_step(r, 1))
        return template_undefined(NULL, 0);
    r->line = n->line;
    if (++r->depth > TEMPLATE_DEPTH_MAX)
        template_fail(r, ERR_TOO_BIG, "the chat template is nested deeper than %d", TEMPLATE_DEPTH_MAX);
    struct template_val v = r->failed ? template_undefined(NULL, 0) : eval_kind(r, n);
    r->depth--;
    return v;
}

/* ---- arguments ---- */

static bool add_kw(struct template_run *r, struct template_args *a, const char *name, struct template_val v)
{
    for (uint32_t i = 0; i < a->n_kw; i++)
        if (strcmp(a->kw[i].name, name) == 0) {
            template_fail(r, ERR_INVALID, "got multiple values for keyword argument '%.60s'", name);
            return false;
        }
    a->kw[a->n_kw++] = (struct template_kw){name, v};
    return true;
}

static void add_dict_kw(struct template_run *r, struct template_args *a, const struct template_dict *d)
{
    for (uint32_t k = 0; k < d->n && !r->failed; k++) {
        struct template_val key = d->e[k].k;
        char *name = key.kind == TV_STR ? template_alloc(r, key.len + 1, 1) : NULL;
        if (name == NULL) {
            template_fail(r, ERR_INVALID, "keywords must be strings");
            return;
        }
        memcpy(name, key.s, key.len);
        add_kw(r, a, name, d->e[k].v);
    }
}

/* *args and **kwargs make the room that is needed unknown before: counted first. spare: keywords that the caller adds. */
bool template_eval_args(struct template_run *r, const struct template_node *n, struct template_args *a, uint32_t spare)
{
    uint32_t n_pos = 0, n_kw = spare, i = 0, count = 0;
    for (const struct template_node *x = n; x != NULL; x = x->next)
        count++;
    struct template_val *v = template_alloc(r, count + 1, sizeof(*v));
    for (const struct template_node *x = n; x != NULL && !r->failed; x = x->next, i++) {
        bool named = x->kind == TN_KWARG || x->kind == TN_STAR || x->kind == TN_STARSTAR;
        v[i] = template_eval(r, named ? x->a : x);
        if (x->kind == TN_STAR) {
            struct template_list *l = template_iterate(r, v[i]);
            if (l == NULL)
                return false;
            v[i] = (struct template_val){.kind = TV_LIST, .list = l};
            n_pos += l->n;
        } else if (x->kind == TN_STARSTAR) {
            if (v[i].kind != TV_DICT) {
                template_fail(r, ERR_INVALID, "argument after ** must be a mapping, not %s", template_type_name(v[i]));
                return false;
            }
            n_kw += v[i].dict->n;
        } else {
            *(x->kind == TN_KWARG ? &n_kw : &n_pos) += 1;
        }
    }
    a->pos = template_alloc(r, (size_t)n_pos + 1, sizeof(*a->pos));
    a->kw = template_alloc(r, (size_t)n_kw + 1, sizeof(*a->kw));
    i = 0;
    for (const struct template_node *x = n; x != NULL && !r->failed; x = x->next, i++) {
        if (x->kind == TN_KWARG)
            add_kw(r, a, x->name, v[i]);
        else if (x->kind == TN_STARSTAR)
            add_dict_kw(r, a, v[i].dict);
        else if (x->kind != TN_STAR)
            a->pos[a->n++] = v[i];
        for (uint32_t k = 0; x->kind == TN_STAR && k < v[i].list->n; k++)
            a->pos[a->n++] = v[i].list->v[k];
    }
    return !r->failed;
}

/* Puts the arguments in the order of the parameters. */
static bool bind(struct template_run *r, const struct template_def *def, const struct template_args *a, struct template_val *out)
{
    const char *p = def->params;
    uint32_t i = 0, used = 0;
    bool by_name = *p != '/';
    for (p += !by_name; *p != 0; i++) {
        size_t len = strcspn(p, " ");
        bool optional = p[len - 1] == '?';
        ASSERT(i < TEMPLATE_PARAMS_MAX);
        out[i] = i < a->n ? a->pos[i] : (struct template_val){0};
        for (uint32_t k = 0; by_name && k < a->n_kw; k++) {
            if (strlen(a->kw[k].name) != len - optional || memcmp(a->kw[k].name, p, len - optional) != 0)
                continue;
            if (i < a->n) {
                template_fail(r, ERR_INVALID, "%s() got multiple values for argument '%s'", def->name, a->kw[k].name);
                return false;
            }
            out[i] = a->kw[k].v;
            used++;
        }
        if (!template_given(out[i]) && !optional) {
            template_fail(r, ERR_INVALID, "%s() missing a required argument: '%.*s'", def->name, (int)len, p);
            return false;
        }
        p += len + (p[len] == ' ');
    }
    if (a->n <= i && used == a->n_kw)
        return true;
    if (a->n > i)
        template_fail(r, ERR_INVALID, "%s() takes at most %u arguments, %u given", def->name, i, a->n);
    else
        template_fail(r, ERR_INVALID, "%s() got an unexpected keyword argument", def->name);
    return false;
}

struct template_val template_call_def(struct template_run *r, const struct template_def *def, struct template_val self, const struct template_args *a)
{
    if (def->params == NULL)
        return def->fn(r, self, a);
    struct template_val v[TEMPLATE_PARAMS_MAX];
    struct template_args bound = {.pos = v, .n = TEMPLATE_PARAMS_MAX};
    return bind(r, def, a, v) ? def->fn(r, self, &bound) : template_undefined(NULL, 0);
}

struct template_val template_call(struct template_run *r, struct template_val fn, const struct template_args *a)
{
    struct template_val v;
    if (!template_step(r, 1))
        return template_undefined(NULL, 0);
    if (++r->depth > TEMPLATE_DEPTH_MAX)
        v = template_fail(r, ERR_TOO_BIG, "the chat template calls itself too deeply");
    else if (fn.kind == TV_FUNCTION)
        v = template_call_def(r, fn.def, fn.self != NULL ? *fn.self : (struct template_val){0}, a);
    else if (fn.kind == TV_MACRO)
        v = template_call_macro(r, fn.macro, a);
    else if (fn.kind == TV_LOOP)
        v = template_call_loop(r, fn.loop, a);
    else if (fn.kind == TV_UNDEFINED)
        v = template_undefined_used(r, fn);
    else
        v = template_fail(r, ERR_INVALID, "'%s' object is not callable", template_type_name(fn));
    r->depth--;
    return v;
}

/* ---- expressions ---- */

static struct template_val lookup(struct template_run *r, const struct template_node *n)
{
    const struct template_scope *s = r->scope;
    for (uint16_t h = n->hops; h > 0; h--)
        s = s->up;
    struct template_val v = s->v[n->slot];
    return template_given(v) ? v : template_undefined(n->name, strlen(n->name));
}

static bool compare_one(struct template_run *r, int op, struct template_val left, struct template_val right)
{
    if (op == OP_EQ || op == OP_NE)
        return template_eq(r, left, right) == (op == OP_EQ);
    if (op == TN_IN || op == TN_NOT_IN)
        return template_contains(r, left, right) == (op == TN_IN);
    int c = template_cmp(r, left, right, op == OP_LE ? "<=" : op == OP_GE ? ">=" : op == '<' ? "<" : ">");
    return c != 2 && (op == '<' ? c < 0 : op == '>' ? c > 0 : op == OP_LE ? c <= 0 : c >= 0);
}

static struct template_val compare(struct template_run *r, const struct template_node *n)
{
    struct template_val left = template_eval(r, n->a);
    for (const struct template_node *p = n->b; p != NULL && !r->failed; p = p->next) {
        struct template_val right = template_eval(r, p->a);
        if (r->failed || !compare_one(r, p->op, left, right))
            return template_bool(false);
        left = right;
    }
    return template_bool(true);
}

static struct template_val container(struct template_run *r, const struct template_node *n)
{
    if (n->kind == TN_DICT) {
        struct template_val d = template_dict(r);
        for (const struct template_node *x = n->a; x != NULL && !r->failed; x = x->next->next) {
            struct template_val k = template_eval(r, x), v = template_eval(r, x->next);
            template_put(r, d.dict, k, v);
        }
        return d;
    }
    struct template_val l = template_list(r, n->kind == TN_TUPLE ? TV_TUPLE : TV_PLAIN, 0);
    for (const struct template_node *x = n->a; x != NULL && !r->failed; x = x->next)
        template_push(r, l, template_eval(r, x));
    return l;
}

/* Plain text even of what is marked safe: escaping is off, as with every chat template. */
static struct template_val concat(struct template_run *r, const struct template_node *n)
{
    struct template_text t = {.r = r};
    uint32_t count = 0;
    for (const struct template_node *x = n->a; x != NULL; x = x->next)
        count++;
    struct template_val *v = template_alloc(r, count, sizeof(*v));
    count = 0;
    for (const struct template_node *x = n->a; x != NULL && !r->failed; x = x->next)
        v[count++] = template_eval(r, x);
    for (uint32_t i = 0; i < count && !r->failed; i++) {
        if (i == 0 && v[0].kind == TV_STR)
            template_text_resume(&t, v[0]);
        else
            template_text_str(&t, v[i]);
    }
    return template_text_keep(&t);
}

static struct template_val sign(struct template_run *r, const struct template_node *n)
{
    struct template_val v = template_eval(r, n->a);
    if (v.kind == TV_UNDEFINED)
        return r->failed ? v : template_undefined_used(r, v);
    if (v.kind == TV_FLOAT)
        return n->kind == TN_POS ? v : template_float(-v.f);
    if (!template_is_whole(v))
        return template_fail(r, ERR_INVALID, "bad operand type for unary %c: '%s'", n->kind == TN_NEG ? '-' : '+', template_type_name(v));
    return template_int_op(r, n->kind == TN_NEG ? '-' : '+', template_int(0), v);
}

struct template_val template_apply(struct template_run *r, const struct template_node *n, struct template_val v)
{
    struct template_args a = {0};
    if (r->failed || (n->b != NULL && !template_eval_args(r, n->b, &a, 0)))
        return template_undefined(NULL, 0);
    if (n->def == NULL)
        return template_fail(r, ERR_INVALID, "there is no %s '%s'", n->kind == TN_TEST ? "test" : "filter", n->name);
    return template_call_def(r, n->def, v, &a);
}

struct template_val template_filter_chain(struct template_run *r, const struct template_node *f, struct template_val v)
{
    if (f->a != NULL)
        v = template_filter_chain(r, f->a, v);
    return template_apply(r, f, v);
}

static struct template_val call(struct template_run *r, const struct template_node *n)
{
    struct template_val f = template_eval(r, n->a);
    struct template_args a = {0};
    if (r->failed || (n->b != NULL && !template_eval_args(r, n->b, &a, 0)))
        return template_undefined(NULL, 0);
    return template_call(r, f, &a);
}

static struct template_val slice(struct template_run *r, const struct template_node *n)
{
    struct template_val v = template_eval(r, n->a), part[3];
    const struct template_node *const parts[3] = {n->b, n->c, n->d};
    for (int i = 0; i < 3; i++)
        part[i] = parts[i] == NULL ? template_none() : template_eval(r, parts[i]);
    return r->failed ? v : template_slice(r, v, part[0], part[1], part[2]);
}

static struct template_val eval_kind(struct template_run *r, const struct template_node *n)
{
    struct template_val v, w;
    switch (n->kind) {
    case TN_CONST:
        return n->val;
    case TN_BIG:
        v = template_int_parse(r, n->val.s, n->val.len, n->op);
        return template_given(v) ? v : template_fail(r, ERR_TOO_BIG, "an integer has too many digits");
    case TN_NAME:
        return lookup(r, n);
    case TN_LIST:
    case TN_TUPLE:
    case TN_DICT:
        return container(r, n);
    case TN_ATTR:
        v = template_eval(r, n->a);
        return r->failed ? v : template_attr(r, v, n->name, strlen(n->name));
    case TN_ITEM:
        v = template_eval(r, n->a);
        w = template_eval(r, n->b);
        return r->failed ? v : template_item(r, v, w);
    case TN_SLICE:
        return slice(r, n);
    case TN_CALL:
        return call(r, n);
    case TN_FILTER:
    case TN_TEST:
        return template_apply(r, n, template_eval(r, n->a));
    case TN_NOT:
        return template_bool(!template_truth(template_eval(r, n->a)));
    case TN_NEG:
    case TN_POS:
        return sign(r, n);
    case TN_BINARY:
        v = template_eval(r, n->a);
        w = template_eval(r, n->b);
        return r->failed ? v : template_binary(r, n->op, v, w);
    case TN_COMPARE:
        return compare(r, n);
    case TN_CONCAT:
        return concat(r, n);
    case TN_AND:
        v = template_eval(r, n->a);
        return template_truth(v) ? template_eval(r, n->b) : v;
    case TN_OR:
        v = template_eval(r, n->a);
        return template_truth(v) ? v : template_eval(r, n->b);
    case TN_COND:
        if (template_truth(template_eval(r, n->b)))
            return template_eval(r, n->a);
        return n->c != NULL ? template_eval(r, n->c)
                            : template_undefined("the inline if-expression evaluated to false and no else section was defined", 75);
    default:
        ASSERT(!"an expression");
        return template_none();
    }
}
