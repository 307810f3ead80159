/* Runs the nodes: statements write to run->out, expressions give values. Scopes are jinja2's: a for body, a macro and a
 * block have one of their own, `if` has none; a macro sees the scope in which it was defined. */
#include "base/check.h"
#include "coordinator/template_ast.h"

#include <string.h>

struct binding {
    const char *name;
    struct template_val v;
    struct binding *next;
};
struct template_scope {
    struct template_scope *up;
    struct binding *vars;
};
struct template_macro {
    const struct template_node *def; /* TN_MACRO or TN_CALLBLOCK: parameters in a */
    struct template_scope *scope;
};
struct template_loop {
    struct template_list *items;
    const struct template_node *def;
    struct template_scope *scope; /* around the loop, for recursion */
    uint32_t idx, depth0;
    struct template_val changed;
    bool has_changed;
};
enum flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };

static struct template_val eval(struct template_run *r, const struct template_node *n);
static enum flow run_body(struct template_run *r, const struct template_node *n);
static enum flow for_loop(struct template_run *r, const struct template_node *n, struct template_val over,
                          uint32_t depth0);

/* ---- scopes ---- */

static bool push_scope(struct template_run *r, struct template_scope *up)
{
    struct template_scope *s = template_alloc(r, 1, sizeof(*s));
    if (s == NULL)
        return false;
    s->up = up;
    r->scope = s;
    return true;
}

static void bind(struct template_run *r, const char *name, struct template_val v)
{
    for (struct binding *b = r->scope->vars; b != NULL; b = b->next)
        if (b->name == name || strcmp(b->name, name) == 0) {
            b->v = v;
            return;
        }
    struct binding *b = template_alloc(r, 1, sizeof(*b));
    if (b == NULL)
        return;
    *b = (struct binding){name, v, r->scope->vars};
    r->scope->vars = b;
}

static struct template_val lookup(struct template_run *r, const char *name)
{
    for (const struct template_scope *s = r->scope; s != NULL; s = s->up)
        for (const struct binding *b = s->vars; b != NULL; b = b->next)
            if (b->name == name || strcmp(b->name, name) == 0)
                return b->v;
    size_t len = strlen(name);
    const struct template_val *v = template_get_str(r->context, name, len);
    if (v != NULL)
        return *v;
    struct template_val g = template_global_find(name, len);
    return g.kind != TV_UNDEFINED ? g : template_undefined(name, len);
}

static void assign(struct template_run *r, const struct template_node *target, struct template_val v)
{
    if (r->failed)
        return;
    if (target->kind == TN_NAME) {
        bind(r, target->name, v);
        return;
    }
    if (target->kind == TN_ATTR) {
        struct template_val ns = lookup(r, target->a->name);
        if (ns.kind != TV_NAMESPACE)
            template_fail(r, ERR_INVALID, "cannot assign attribute on non-namespace object");
        else
            template_put(r, ns.dict, template_cstr(target->name), v);
        return;
    }
    struct template_list *l = template_iterate(r, v);
    uint32_t n = 0;
    for (const struct template_node *t = target->a; t != NULL; t = t->next)
        n++;
    if (l == NULL)
        return;
    if (l->n != n) {
        template_fail(r, ERR_INVALID,
                      l->n > n ? "too many values to unpack (expected %u)"
                               : "not enough values to unpack (expected %u, got %u)",
                      n, l->n);
        return;
    }
    uint32_t i = 0;
    for (const struct template_node *t = target->a; t != NULL; t = t->next)
        assign(r, t, l->v[i++]);
}

/* ---- calls ---- */

static bool add_kw(struct template_run *r, struct template_args *a, uint32_t cap, const char *name,
                   struct template_val v)
{
    ASSERT(a->n_kw < cap);
    if (r->failed)
        return false;
    a->kw[a->n_kw++] = (struct template_kw){name, v};
    return true;
}

/* *args and **kwargs make the room that is needed unknown before: counted first. */
static bool eval_args(struct template_run *r, const struct template_node *n, struct template_args *a, uint32_t spare)
{
    uint32_t n_pos = 0, n_kw = spare, i = 0, count = 0;
    for (const struct template_node *x = n; x != NULL; x = x->next)
        count++;
    struct template_val *v = template_alloc(r, count + 1, sizeof(*v));
    for (const struct template_node *x = n; x != NULL && !r->failed; x = x->next, i++) {
        bool named = x->kind == TN_KWARG || x->kind == TN_STAR || x->kind == TN_STARSTAR;
        v[i] = eval(r, named ? x->a : x);
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
    if (r->failed)
        return false;
    i = 0;
    for (const struct template_node *x = n; x != NULL; x = x->next, i++) {
        if (x->kind == TN_KWARG) {
            add_kw(r, a, n_kw, x->name, v[i]);
        } else if (x->kind == TN_STAR) {
            for (uint32_t k = 0; k < v[i].list->n; k++)
                a->pos[a->n++] = v[i].list->v[k];
        } else if (x->kind == TN_STARSTAR) {
            for (uint32_t k = 0; k < v[i].dict->n && !r->failed; k++) {
                struct template_val key = v[i].dict->e[k].k;
                char *name = key.kind == TV_STR ? template_alloc(r, key.len + 1, 1) : NULL;
                if (name == NULL) {
                    template_fail(r, ERR_INVALID, "keywords must be strings");
                    return false;
                }
                memcpy(name, key.s, key.len);
                add_kw(r, a, n_kw, name, v[i].dict->e[k].v);
            }
        } else {
            a->pos[a->n++] = v[i];
        }
    }
    return !r->failed;
}

/* Runs a body into a string. */
static struct template_val capture(struct template_run *r, const struct template_node *body)
{
    struct buf b, *out = r->out;
    buf_init(&b);
    r->out = &b;
    run_body(r, body);
    r->out = out;
    struct template_text t = {.r = r};
    if (b.failed)
        template_fail(r, ERR_NOMEM, "no memory for the output of a chat template");
    if (b.len > 0)
        template_text_add(&t, b.data, b.len);
    buf_deinit(&b);
    return template_text_val(&t);
}

static const struct template_kw *keyword(const struct template_args *a, const char *name)
{
    for (uint32_t i = 0; i < a->n_kw; i++)
        if (strcmp(a->kw[i].name, name) == 0)
            return &a->kw[i];
    return NULL;
}

static void macro_rest(struct template_run *r, const struct template_macro *m, const struct template_args *a,
                       uint32_t n_params)
{
    int uses = m->def->kind == TN_MACRO ? m->def->op : 0;
    if (a->n > n_params && !(uses & TN_USES_VARARGS))
        template_fail(r, ERR_INVALID, "macro '%s' takes not more than %u argument(s)", m->def->name, n_params);
    if (uses & TN_USES_VARARGS) {
        struct template_val l = template_list(r, TV_TUPLE, 0);
        for (uint32_t i = n_params; i < a->n && !r->failed; i++)
            template_push(r, l, a->pos[i]);
        bind(r, "varargs", l);
    }
    struct template_val rest = template_dict(r);
    for (uint32_t i = 0; i < a->n_kw && !r->failed; i++) {
        bool param = false;
        for (const struct template_node *p = m->def->a; p != NULL && !param; p = p->next)
            param = strcmp(p->name, a->kw[i].name) == 0;
        if (param)
            continue;
        if (strcmp(a->kw[i].name, "caller") == 0 && (uses & TN_USES_CALLER))
            bind(r, "caller", a->kw[i].v);
        else if (uses & TN_USES_KWARGS)
            template_put(r, rest.dict, template_cstr(a->kw[i].name), a->kw[i].v);
        else
            template_fail(r, ERR_INVALID, "macro '%s' takes no keyword argument '%s'", m->def->name, a->kw[i].name);
    }
    if (uses & TN_USES_KWARGS)
        bind(r, "kwargs", rest);
    if ((uses & TN_USES_CALLER) && keyword(a, "caller") == NULL)
        bind(r, "caller", template_undefined("caller", 6));
}

static struct template_val call_macro(struct template_run *r, const struct template_macro *m,
                                      const struct template_args *a)
{
    struct template_scope *was = r->scope;
    struct template_val v = template_undefined(NULL, 0);
    if (!push_scope(r, m->scope))
        return v;
    uint32_t i = 0;
    for (const struct template_node *p = m->def->a; p != NULL && !r->failed; p = p->next, i++) {
        const struct template_kw *k = keyword(a, p->name);
        if (k != NULL && i < a->n)
            template_fail(r, ERR_INVALID, "macro '%s' got several values for '%s'", m->def->name, p->name);
        bind(r, p->name,
             i < a->n       ? a->pos[i]
             : k != NULL    ? k->v
             : p->a != NULL ? eval(r, p->a)
                            : template_undefined(p->name, strlen(p->name)));
    }
    macro_rest(r, m, a, i);
    v = capture(r, m->def->body);
    r->scope = was;
    return v;
}

static struct template_val call_loop(struct template_run *r, struct template_loop *l, const struct template_args *a)
{
    if (!l->def->op || a->n != 1)
        return template_fail(r, ERR_INVALID,
                             "the loop must have the 'recursive' marker to be called, with one argument");
    struct template_scope *was = r->scope;
    struct buf b, *out = r->out;
    buf_init(&b);
    r->out = &b;
    r->scope = l->scope;
    for_loop(r, l->def, a->pos[0], l->depth0 + 1);
    r->out = out;
    r->scope = was;
    struct template_text t = {.r = r};
    if (b.len > 0)
        template_text_add(&t, b.data, b.len);
    buf_deinit(&b);
    return template_text_val(&t);
}

struct template_val template_call(struct template_run *r, struct template_val fn, const struct template_args *a)
{
    struct template_val v;
    if (!template_step(r, 1))
        return template_undefined(NULL, 0);
    if (++r->depth > TEMPLATE_DEPTH_MAX)
        v = template_fail(r, ERR_TOO_BIG, "the chat template calls itself too deeply");
    else if (fn.kind == TV_FUNCTION)
        v = fn.fn(r, fn.self != NULL ? *fn.self : template_none(), a);
    else if (fn.kind == TV_MACRO)
        v = call_macro(r, fn.macro, a);
    else if (fn.kind == TV_LOOP)
        v = call_loop(r, fn.loop, a);
    else if (fn.kind == TV_UNDEFINED)
        v = template_undefined_used(r, fn);
    else
        v = template_fail(r, ERR_INVALID, "'%s' object is not callable", template_type_name(fn));
    r->depth--;
    return v;
}

/* ---- loop ---- */

static struct template_val loop_cycle(struct template_run *r, struct template_val self, const struct template_args *a)
{
    if (a->n == 0)
        return template_fail(r, ERR_INVALID, "no items for cycling given");
    return a->pos[self.loop->idx % a->n];
}

static struct template_val loop_changed(struct template_run *r, struct template_val self, const struct template_args *a)
{
    struct template_loop *l = self.loop;
    struct template_val now = template_list(r, TV_TUPLE, a->n);
    for (uint32_t i = 0; i < a->n && !r->failed; i++)
        template_push(r, now, a->pos[i]);
    bool same = l->has_changed && !r->failed && template_eq(r, l->changed, now);
    l->changed = now;
    l->has_changed = true;
    return template_bool(!same);
}

static bool is(const char *name, size_t len, const char *want)
{
    return strlen(want) == len && memcmp(name, want, len) == 0;
}

struct template_val template_loop_attr(struct template_run *r, struct template_loop *l, const char *name, size_t len)
{
    uint32_t n = l->items->n;
    if (is(name, len, "index"))
        return template_int((int64_t)l->idx + 1);
    if (is(name, len, "index0"))
        return template_int(l->idx);
    if (is(name, len, "revindex"))
        return template_int((int64_t)n - l->idx);
    if (is(name, len, "revindex0"))
        return template_int((int64_t)n - l->idx - 1);
    if (is(name, len, "first"))
        return template_bool(l->idx == 0);
    if (is(name, len, "last"))
        return template_bool(l->idx + 1 == n);
    if (is(name, len, "length"))
        return template_int(n);
    if (is(name, len, "depth"))
        return template_int((int64_t)l->depth0 + 1);
    if (is(name, len, "depth0"))
        return template_int(l->depth0);
    if (is(name, len, "previtem"))
        return l->idx > 0 ? l->items->v[l->idx - 1] : template_undefined("there is no previous item", 25);
    if (is(name, len, "nextitem"))
        return l->idx + 1 < n ? l->items->v[l->idx + 1] : template_undefined("there is no next item", 21);
    template_fn *fn = is(name, len, "cycle") ? loop_cycle : is(name, len, "changed") ? loop_changed : NULL;
    if (fn == NULL)
        return template_undefined(name, len);
    struct template_val *self = template_alloc(r, 1, sizeof(*self));
    if (self == NULL)
        return template_undefined(NULL, 0);
    *self = (struct template_val){.kind = TV_LOOP, .loop = l};
    return (struct template_val){.kind = TV_FUNCTION, .fn = fn, .self = self};
}

/* The items for which `if` holds, tried with the loop's variables. */
static struct template_list *filtered(struct template_run *r, const struct template_node *n, struct template_list *all)
{
    struct template_val kept = template_list(r, TV_PLAIN, 0);
    struct template_scope *was = r->scope;
    for (uint32_t i = 0; i < all->n && !r->failed; i++) {
        if (!push_scope(r, was))
            break;
        assign(r, n->a, all->v[i]);
        if (template_truth(eval(r, n->d)))
            template_push(r, kept, all->v[i]);
    }
    r->scope = was;
    return r->failed ? NULL : kept.list;
}

/* jinja2 runs `else` unless the body came to its end at least once: break and continue do not count. */
static enum flow for_loop(struct template_run *r, const struct template_node *n, struct template_val over,
                          uint32_t depth0)
{
    bool whole = false;
    struct template_list *items = template_iterate(r, over);
    if (items != NULL && n->d != NULL)
        items = filtered(r, n, items);
    struct template_loop *l = template_alloc(r, 1, sizeof(*l));
    if (items == NULL || l == NULL)
        return FLOW_NEXT;
    struct template_scope *was = r->scope;
    *l = (struct template_loop){.items = items, .def = n, .scope = was, .depth0 = depth0};
    for (; l->idx < items->n && template_step(r, 1); l->idx++) {
        if (!push_scope(r, was))
            break;
        bind(r, "loop", (struct template_val){.kind = TV_LOOP, .loop = l});
        assign(r, n->a, items->v[l->idx]);
        enum flow f = run_body(r, n->body);
        whole = whole || f == FLOW_NEXT;
        if (f == FLOW_BREAK)
            break;
    }
    r->scope = was;
    return !whole ? run_body(r, n->c) : FLOW_NEXT;
}

/* ---- expressions ---- */

static struct template_val compare(struct template_run *r, const struct template_node *n)
{
    struct template_val left = eval(r, n->a);
    for (const struct template_node *p = n->b; p != NULL && !r->failed; p = p->next) {
        struct template_val right = eval(r, p->a);
        bool ok = false;
        if (r->failed)
            break;
        if (p->op == OP_EQ || p->op == OP_NE) {
            ok = template_eq(r, left, right) == (p->op == OP_EQ);
        } else if (p->op == TN_IN || p->op == TN_NOT_IN) {
            ok = template_contains(r, left, right) == (p->op == TN_IN);
        } else {
            int c = template_cmp(r, left, right,
                                 p->op == OP_LE   ? "<="
                                 : p->op == OP_GE ? ">="
                                 : p->op == '<'   ? "<"
                                                  : ">");
            ok = p->op == '<' ? c < 0 : p->op == '>' ? c > 0 && c != 2 : p->op == OP_LE ? c <= 0 : c >= 0 && c != 2;
        }
        if (!ok)
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
            struct template_val k = eval(r, x), v = eval(r, x->next);
            template_put(r, d.dict, k, v);
        }
        return d;
    }
    struct template_val l = template_list(r, n->kind == TN_TUPLE ? TV_TUPLE : TV_PLAIN, 0);
    for (const struct template_node *x = n->a; x != NULL && !r->failed; x = x->next)
        template_push(r, l, eval(r, x));
    return l;
}

/* Plain text even of what is marked safe: escaping is off, as with every chat template. */
static struct template_val concat(struct template_run *r, const struct template_node *n)
{
    struct template_text t = {.r = r};
    for (const struct template_node *x = n->a; x != NULL && !r->failed; x = x->next)
        template_text_str(&t, eval(r, x));
    return template_text_val(&t);
}

static struct template_val sign(struct template_run *r, const struct template_node *n)
{
    struct template_val v = eval(r, n->a);
    if (v.kind == TV_BOOL)
        v = template_int(v.b);
    if (v.kind == TV_UNDEFINED)
        return r->failed ? v : template_undefined_used(r, v);
    if (v.kind != TV_INT && v.kind != TV_FLOAT)
        return template_fail(r, ERR_INVALID, "bad operand type for unary %c: '%s'", n->kind == TN_NEG ? '-' : '+',
                             template_type_name(v));
    if (n->kind == TN_POS)
        return v;
    if (v.kind == TV_INT)
        return v.i == INT64_MIN ? template_fail(r, ERR_INVALID, "integer overflow") : template_int(-v.i);
    return template_float(-v.f);
}

static struct template_val apply(struct template_run *r, const struct template_node *n, struct template_val v)
{
    struct template_args a = {0};
    if (r->failed || (n->b != NULL && !eval_args(r, n->b, &a, 0)))
        return template_undefined(NULL, 0);
    if (n->fn == NULL)
        return template_fail(r, ERR_INVALID, "there is no %s '%s'", n->kind == TN_TEST ? "test" : "filter", n->name);
    return n->fn(r, v, &a);
}

static struct template_val call(struct template_run *r, const struct template_node *n)
{
    struct template_val f = eval(r, n->a);
    struct template_args a = {0};
    if (r->failed || (n->b != NULL && !eval_args(r, n->b, &a, 0)))
        return template_undefined(NULL, 0);
    return template_call(r, f, &a);
}

static struct template_val eval_kind(struct template_run *r, const struct template_node *n)
{
    struct template_val v;
    switch (n->kind) {
    case TN_CONST:
        return n->val;
    case TN_NAME:
        return lookup(r, n->name);
    case TN_LIST:
    case TN_TUPLE:
    case TN_DICT:
        return container(r, n);
    case TN_ATTR:
        v = eval(r, n->a);
        return r->failed ? v : template_attr(r, v, n->name, strlen(n->name));
    case TN_ITEM: {
        v = eval(r, n->a);
        struct template_val key = eval(r, n->b);
        return r->failed ? v : template_item(r, v, key);
    }
    case TN_SLICE: {
        v = eval(r, n->a);
        struct template_val part[3];
        const struct template_node *const parts[3] = {n->b, n->c, n->d};
        for (int i = 0; i < 3; i++)
            part[i] = parts[i] == NULL ? template_none() : eval(r, parts[i]);
        return r->failed ? v : template_slice(r, v, part[0], part[1], part[2]);
    }
    case TN_CALL:
        return call(r, n);
    case TN_FILTER:
    case TN_TEST:
        return apply(r, n, eval(r, n->a));
    case TN_NOT:
        return template_bool(!template_truth(eval(r, n->a)));
    case TN_NEG:
    case TN_POS:
        return sign(r, n);
    case TN_BINARY: {
        struct template_val a = eval(r, n->a), b = eval(r, n->b);
        return r->failed ? a : template_binary(r, n->op, a, b);
    }
    case TN_COMPARE:
        return compare(r, n);
    case TN_CONCAT:
        return concat(r, n);
    case TN_AND:
        v = eval(r, n->a);
        return template_truth(v) ? eval(r, n->b) : v;
    case TN_OR:
        v = eval(r, n->a);
        return template_truth(v) ? v : eval(r, n->b);
    case TN_COND:
        if (template_truth(eval(r, n->b)))
            return eval(r, n->a);
        return n->c != NULL ? eval(r, n->c)
                            : template_undefined(
                                  "the inline if-expression evaluated to false and no else section was defined", 75);
    default:
        ASSERT(!"an expression");
        return template_none();
    }
}

static struct template_val eval(struct template_run *r, const struct template_node *n)
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

/* ---- statements ---- */

static void write_out(struct template_run *r, struct template_val v)
{
    if (v.kind != TV_STR)
        v = template_to_str(r, v);
    if (r->failed || !template_step(r, v.len / 64))
        return;
    buf_append(r->out, v.s, v.len);
    if (r->out->len > TEMPLATE_OUTPUT_MAX)
        template_fail(r, ERR_TOO_BIG, "the chat template writes more than %d MiB", TEMPLATE_OUTPUT_MAX >> 20);
}

/* Applies a chain of filters, whose innermost has no operand, to v. */
static struct template_val filter_chain(struct template_run *r, const struct template_node *f, struct template_val v)
{
    return apply(r, f, f->a == NULL ? v : filter_chain(r, f->a, v));
}

static void call_block(struct template_run *r, const struct template_node *n)
{
    struct template_macro *m = template_alloc(r, 1, sizeof(*m));
    struct template_val f = eval(r, n->b->a);
    struct template_args a = {0};
    if (r->failed || !eval_args(r, n->b->b, &a, 1))
        return;
    *m = (struct template_macro){n, r->scope};
    a.kw[a.n_kw++] = (struct template_kw){"caller", {.kind = TV_MACRO, .macro = m}};
    write_out(r, template_call(r, f, &a));
}

static void define_macro(struct template_run *r, const struct template_node *n)
{
    struct template_macro *m = template_alloc(r, 1, sizeof(*m));
    if (m == NULL)
        return;
    *m = (struct template_macro){n, r->scope};
    bind(r, n->name, (struct template_val){.kind = TV_MACRO, .macro = m});
}

static enum flow scoped(struct template_run *r, const struct template_node *n)
{
    struct template_scope *was = r->scope;
    struct template_val v[16];
    uint32_t i = 0;
    enum flow f = FLOW_NEXT;
    for (const struct template_node *s = n->a; s != NULL; s = s->next, i++) {
        if (i == ARRAY_LEN(v)) {
            template_fail(r, ERR_INVALID, "{%% with %%} sets more than %zu variables", ARRAY_LEN(v));
            return f;
        }
        v[i] = eval(r, s->b);
    }
    if (!push_scope(r, was))
        return f;
    i = 0;
    for (const struct template_node *s = n->a; s != NULL; s = s->next)
        assign(r, s->a, v[i++]);
    if (n->kind == TN_FILTERBLOCK)
        write_out(r, filter_chain(r, n->b, capture(r, n->body)));
    else
        f = run_body(r, n->body);
    r->scope = was;
    return f;
}

static void set_block(struct template_run *r, const struct template_node *n)
{
    struct template_scope *was = r->scope;
    if (!push_scope(r, was))
        return;
    struct template_val v = capture(r, n->body);
    r->scope = was;
    if (n->b != NULL)
        v = filter_chain(r, n->b, v);
    assign(r, n->a, v);
}

static enum flow run_statement(struct template_run *r, const struct template_node *n)
{
    switch (n->kind) {
    case TN_TEXT:
        write_out(r, n->val);
        return FLOW_NEXT;
    case TN_PRINT:
        write_out(r, eval(r, n->a));
        return FLOW_NEXT;
    case TN_IF: {
        bool yes = template_truth(eval(r, n->a));
        if (!yes && n->c != NULL && n->c->kind == TN_IF && n->c->next == NULL)
            return run_statement(r, n->c); /* elif: no deeper than its if */
        return run_body(r, yes ? n->b : n->c);
    }
    case TN_FOR:
        return for_loop(r, n, eval(r, n->b), 0);
    case TN_SET:
        assign(r, n->a, eval(r, n->b));
        return FLOW_NEXT;
    case TN_SETBLOCK:
        set_block(r, n);
        return FLOW_NEXT;
    case TN_MACRO:
        define_macro(r, n);
        return FLOW_NEXT;
    case TN_CALLBLOCK:
        call_block(r, n);
        return FLOW_NEXT;
    case TN_FILTERBLOCK:
    case TN_WITH:
    case TN_SCOPE:
        return scoped(r, n);
    case TN_BREAK:
        return FLOW_BREAK;
    case TN_CONTINUE:
        return FLOW_CONTINUE;
    default:
        ASSERT(!"a statement");
        return FLOW_NEXT;
    }
}

static enum flow run_body(struct template_run *r, const struct template_node *n)
{
    enum flow f = FLOW_NEXT;
    if (++r->depth > TEMPLATE_DEPTH_MAX)
        template_fail(r, ERR_TOO_BIG, "the chat template is nested deeper than %d", TEMPLATE_DEPTH_MAX);
    for (; n != NULL && f == FLOW_NEXT && template_step(r, 1); n = n->next) {
        r->line = n->line;
        f = run_statement(r, n);
    }
    r->depth--;
    return f;
}

void template_run_body(struct template_run *r, const struct template_node *body)
{
    if (push_scope(r, NULL))
        run_body(r, body);
}
