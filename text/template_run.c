/* Statements: they write to run->out. Scopes, macros and loops are here; which variable a name means was decided before
 * (template_scope.c). A loop's body has one scope for all turns, entered anew in each, as in the Python that jinja2 makes. */
#include "base/check.h"
#include "text/template_ast.h"

#include <string.h>

struct template_macro {
    const struct template_node *def; /* TN_MACRO, TN_CALLBLOCK or TN_GENERATION: parameters in a */
    struct template_scope *scope;
};
struct template_loop {
    const struct template_node *def;
    struct template_scope *scope; /* around the loop, for recursion */
    struct template_iter *it;
    int64_t idx, length; /* length -1: not known yet */
    struct template_val before, current, after; /* after: looked at ahead, or MISSING */
    uint32_t depth0;
    struct template_val changed;
};
enum flow { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE };

static enum flow run_body(struct template_run *r, const struct template_node *n);
static void for_loop(struct template_run *r, const struct template_node *n, struct template_val over, uint32_t depth0, enum flow *flow);

/* ---- scopes ---- */

static struct template_scope *scope_create(struct template_run *r, const struct template_frame *f, struct template_scope *up)
{
    struct template_scope *s = template_alloc(r, 1, sizeof(*s) + f->n_slots * sizeof(struct template_val));
    if (s != NULL)
        s->up = up;
    return s;
}

static struct template_val resolve(struct template_run *r, const char *name)
{
    size_t len = strlen(name);
    const struct template_val *v = template_get_str(r->context, name, len);
    return v != NULL ? *v : template_global_find(r, name, len);
}

/* Every variable that is no parameter starts anew. */
static void enter(struct template_run *r, struct template_scope *s, const struct template_frame *f, bool again)
{
    for (uint32_t i = 0; again && i < f->n_slots; i++)
        if (i != f->loop)
            s->v[i] = (struct template_val){0};
    for (uint32_t i = 0; i < f->n_loads; i++) {
        const struct template_load *l = &f->loads[i];
        const struct template_scope *from = s;
        for (uint16_t h = l->how == TL_ALIAS ? l->hops : 0; h > 0; h--)
            from = from->up;
        s->v[l->slot] = l->how == TL_ALIAS ? from->v[l->from] : resolve(r, l->name);
    }
    r->scope = s;
}

static bool push(struct template_run *r, const struct template_frame *f)
{
    struct template_scope *s = scope_create(r, f, r->scope);
    if (s != NULL)
        enter(r, s, f, false);
    return s != NULL;
}

static void assign_all(struct template_run *r, const struct template_node *target, struct template_val v);

static void assign(struct template_run *r, const struct template_node *target, struct template_val v)
{
    if (r->failed)
        return;
    if (target->kind == TN_TUPLE) {
        assign_all(r, target, v);
        return;
    }
    const struct template_node *name = target->kind == TN_ATTR ? target->a : target;
    struct template_scope *s = r->scope;
    for (uint16_t h = name->hops; h > 0; h--)
        s = s->up;
    struct template_val *place = &s->v[name->slot];
    if (target->kind != TN_ATTR)
        *place = v;
    else if (place->kind != TV_NAMESPACE)
        template_fail(r, ERR_INVALID, "cannot assign attribute on non-namespace object");
    else
        template_put(r, place->dict, template_cstr(target->name), v);
}

static void assign_all(struct template_run *r, const struct template_node *target, struct template_val v)
{
    struct template_list *l = template_iterate(r, v);
    uint32_t n = 0, i = 0;
    for (const struct template_node *t = target->a; t != NULL; t = t->next)
        n++;
    if (l == NULL)
        return;
    if (l->n != n) {
        template_fail(r, ERR_INVALID, l->n > n ? "too many values to unpack (expected %u)" : "not enough values to unpack (expected %u, got %u)", n,
                      l->n);
        return;
    }
    for (const struct template_node *t = target->a; t != NULL; t = t->next)
        assign(r, t, l->v[i++]);
}

/* ---- output ---- */

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

/* What a filter block or a call gives must be text. */
static void write_text(struct template_run *r, struct template_val v)
{
    if (!r->failed && v.kind != TV_STR)
        template_fail(r, ERR_INVALID, "a block gives text, not '%s'", template_type_name(v));
    write_out(r, v);
}

struct capture {
    struct buf b, *out;
    struct template_scope *scope;
};

static void capture_begin(struct template_run *r, struct capture *c)
{
    buf_init(&c->b);
    c->out = r->out;
    c->scope = r->scope;
    r->out = &c->b;
}

/* What was written since, as a string; the scope is that of the beginning again. */
static struct template_val capture_end(struct template_run *r, struct capture *c)
{
    struct template_text t = {.r = r};
    if (c->b.failed)
        template_fail(r, ERR_NOMEM, "no memory for the output of a chat template");
    if (c->b.len > 0)
        template_text_add(&t, c->b.data, c->b.len);
    buf_deinit(&c->b);
    r->out = c->out;
    r->scope = c->scope;
    return template_text_val(&t);
}

/* ---- macros ---- */

/* Keywords that no parameter took, and positions past them. */
static void macro_rest(struct template_run *r, const struct template_macro *m, const struct template_args *a, struct template_scope *s,
                       uint32_t n_params, const bool *taken)
{
    const struct template_frame *f = m->def->frame[TN_FRAME_BODY];
    const char *name = m->def->name != NULL ? m->def->name : "caller";
    struct template_val rest = template_dict(r), caller = template_undefined("caller", 6), extra = template_list(r, TV_TUPLE, 0);
    for (uint32_t i = 0; i < a->n_kw && !r->failed; i++) {
        if (taken[i])
            continue;
        if ((m->def->op & TN_USES_CALLER) != 0 && strcmp(a->kw[i].name, "caller") == 0)
            caller = a->kw[i].v.kind == TV_NONE ? caller : a->kw[i].v;
        else if ((m->def->op & TN_USES_KWARGS) != 0)
            template_put(r, rest.dict, template_cstr(a->kw[i].name), a->kw[i].v);
        else
            template_fail(r, ERR_INVALID, "macro '%s' takes no keyword argument '%.60s'", name, a->kw[i].name);
    }
    if (a->n > n_params && (m->def->op & TN_USES_VARARGS) == 0)
        template_fail(r, ERR_INVALID, "macro '%s' takes not more than %u argument(s)", name, n_params);
    for (uint32_t i = n_params; i < a->n && !r->failed; i++)
        template_push(r, extra, a->pos[i]);
    if ((m->def->op & TN_USES_CALLER) != 0)
        s->v[f->caller] = caller;
    if ((m->def->op & TN_USES_KWARGS) != 0)
        s->v[f->kwargs] = rest;
    if ((m->def->op & TN_USES_VARARGS) != 0)
        s->v[f->varargs] = extra;
}

struct template_val template_call_macro(struct template_run *r, const struct template_macro *m, const struct template_args *a)
{
    const struct template_frame *f = m->def->frame[TN_FRAME_BODY];
    struct template_scope *s = scope_create(r, f, m->scope);
    bool *taken = template_alloc(r, a->n_kw + 1, sizeof(*taken));
    uint32_t n = 0;
    if (r->failed)
        return template_undefined(NULL, 0);
    for (const struct template_node *p = m->def->a; p != NULL; p = p->next, n++) {
        s->v[p->slot] = n < a->n ? a->pos[n] : (struct template_val){0};
        for (uint32_t k = 0; n >= a->n && k < a->n_kw; k++)
            if (strcmp(a->kw[k].name, p->name) == 0) {
                s->v[p->slot] = a->kw[k].v;
                taken[k] = true;
            }
    }
    macro_rest(r, m, a, s, n, taken);
    struct capture c;
    capture_begin(r, &c);
    if (!r->failed)
        enter(r, s, f, false);
    for (const struct template_node *p = m->def->a; p != NULL && !r->failed; p = p->next)
        if (!template_given(s->v[p->slot])) {
            struct template_val def = p->a != NULL ? template_eval(r, p->a) : template_undefined(p->name, strlen(p->name));
            s->v[p->slot] = def;
        }
    run_body(r, m->def->body);
    return capture_end(r, &c);
}

static struct template_val macro_create(struct template_run *r, const struct template_node *n)
{
    struct template_macro *m = template_alloc(r, 1, sizeof(*m));
    if (m == NULL)
        return template_undefined(NULL, 0);
    *m = (struct template_macro){n, r->scope};
    return (struct template_val){.kind = TV_MACRO, .macro = m};
}

static bool is(const char *name, size_t len, const char *want)
{
    return strlen(want) == len && memcmp(name, want, len) == 0;
}

struct template_val template_macro_attr(struct template_run *r, const struct template_macro *m, const char *name, size_t len)
{
    const struct template_node *d = m->def;
    if (is(name, len, "name"))
        return d->name != NULL ? template_cstr(d->name) : template_none();
    if (is(name, len, "catch_kwargs") || is(name, len, "catch_varargs") || is(name, len, "caller"))
        return template_bool((d->op & (len == 6 ? TN_USES_CALLER : name[6] == 'k' ? TN_USES_KWARGS : TN_USES_VARARGS)) != 0);
    if (!is(name, len, "arguments"))
        return template_undefined(name, len);
    struct template_val l = template_list(r, TV_TUPLE, 0);
    for (const struct template_node *p = d->a; p != NULL && !r->failed; p = p->next)
        template_push(r, l, template_cstr(p->name));
    return l;
}

/* ---- loop ---- */

/* One item ahead. */
static struct template_val peek(struct template_run *r, struct template_loop *l)
{
    struct template_val v;
    if (!template_given(l->after) && template_next(r, l->it, &v))
        l->after = v;
    return l->after;
}

static int64_t loop_length(struct template_run *r, struct template_loop *l)
{
    if (l->length >= 0)
        return l->length;
    struct template_list *rest = template_iterate(r, (struct template_val){.kind = TV_ITER, .iter = l->it});
    if (rest == NULL)
        return 0;
    l->length = (int64_t)rest->n + l->idx + 1 + template_given(l->after);
    l->it = template_iter(r, (struct template_val){.kind = TV_LIST, .list = rest});
    return l->length;
}

static struct template_val loop_cycle(struct template_run *r, struct template_val self, const struct template_args *a)
{
    if (a->n == 0 || a->n_kw > 0)
        return template_fail(r, ERR_INVALID, "no items for cycling given");
    return a->pos[self.loop->idx % a->n];
}

static struct template_val loop_changed(struct template_run *r, struct template_val self, const struct template_args *a)
{
    struct template_loop *l = self.loop;
    struct template_val now = template_list(r, TV_TUPLE, a->n);
    if (a->n_kw > 0)
        return template_fail(r, ERR_INVALID, "changed() takes no keyword arguments");
    for (uint32_t i = 0; i < a->n && !r->failed; i++)
        template_push(r, now, a->pos[i]);
    bool same = template_given(l->changed) && !r->failed && template_eq(r, l->changed, now);
    if (!same)
        l->changed = now;
    return template_bool(!same);
}

struct template_val template_loop_attr(struct template_run *r, struct template_loop *l, const char *name, size_t len)
{
    static const struct template_def cycle = {"cycle", loop_cycle, NULL}, changed = {"changed", loop_changed, NULL};
    struct template_val self = {.kind = TV_LOOP, .loop = l};
    if (is(name, len, "index"))
        return template_int(l->idx + 1);
    if (is(name, len, "index0"))
        return template_int(l->idx);
    if (is(name, len, "revindex"))
        return template_int(loop_length(r, l) - l->idx);
    if (is(name, len, "revindex0"))
        return template_int(loop_length(r, l) - l->idx - 1);
    if (is(name, len, "first"))
        return template_bool(l->idx == 0);
    if (is(name, len, "last"))
        return template_bool(!template_given(peek(r, l)));
    if (is(name, len, "length"))
        return template_int(loop_length(r, l));
    if (is(name, len, "depth"))
        return template_int((int64_t)l->depth0 + 1);
    if (is(name, len, "depth0"))
        return template_int(l->depth0);
    if (is(name, len, "previtem"))
        return l->idx > 0 ? l->before : template_undefined("there is no previous item", 25);
    if (is(name, len, "nextitem"))
        return template_given(peek(r, l)) ? l->after : template_undefined("there is no next item", 21);
    if (is(name, len, "cycle") || is(name, len, "changed"))
        return template_bound(r, name[1] == 'y' ? &cycle : &changed, self);
    return template_undefined(name, len);
}

void template_repr_object(struct template_text *t, struct template_val v)
{
    template_text_puts(t, v.kind == TV_MACRO ? "<Macro " : "<LoopContext ");
    if (v.kind == TV_LOOP) {
        template_text_repr(t, template_int(v.loop->idx + 1), 0);
        template_text_puts(t, "/");
        template_text_repr(t, template_int(loop_length(t->r, v.loop)), 0);
    } else if (v.macro->def->name != NULL) {
        template_text_repr(t, template_cstr(v.macro->def->name), 0);
    } else {
        template_text_puts(t, "anonymous");
    }
    template_text_puts(t, ">");
}

/* The variables that a loop sets, as one value: what a condition passes on to the loop. */
static struct template_val target_value(struct template_run *r, const struct template_node *target)
{
    if (target->kind != TN_TUPLE)
        return r->scope->v[target->slot];
    struct template_val l = template_list(r, TV_TUPLE, 0);
    for (const struct template_node *t = target->a; t != NULL && !r->failed; t = t->next)
        template_push(r, l, target_value(r, t));
    return l;
}

/* The items for which `if` holds, each tried when its turn comes. */
static bool next_that_holds(struct template_run *r, struct template_iter *it, struct template_val *out)
{
    struct template_scope *was = r->scope;
    struct template_val v;
    bool found = false;
    r->scope = it->scope;
    while (!found && !r->failed && template_next(r, it->src, &v)) {
        assign(r, it->node->a, v);
        found = template_truth(template_eval(r, it->node->d)) && !r->failed;
    }
    if (found)
        *out = target_value(r, it->node->a);
    r->scope = was;
    return found;
}

static struct template_iter *loop_items(struct template_run *r, const struct template_node *n, struct template_val over, int64_t *length)
{
    struct template_iter *it = template_iter(r, over);
    *length = n->d == NULL ? template_len(r, over) : -1;
    if (it == NULL || n->d == NULL)
        return it;
    struct template_scope *was = r->scope;
    struct template_val v = template_iter_new(r, next_that_holds, it, over);
    if (r->failed || !push(r, n->frame[TN_FRAME_TEST]))
        return NULL;
    v.iter->scope = r->scope;
    v.iter->node = n;
    r->scope = was;
    return v.iter;
}

/* jinja2 runs `else` unless the body came to its end at least once: break and continue do not count. */
static void for_loop(struct template_run *r, const struct template_node *n, struct template_val over, uint32_t depth0, enum flow *flow)
{
    const struct template_frame *f = n->frame[TN_FRAME_BODY];
    bool whole = false, broken = false, again = false;
    struct template_loop *l = template_alloc(r, 1, sizeof(*l));
    struct template_scope *was = r->scope, *s = scope_create(r, f, was);
    if (r->failed)
        return;
    *l = (struct template_loop){.def = n, .scope = was, .depth0 = depth0, .idx = -1};
    l->it = loop_items(r, n, over, &l->length);
    if (l->it == NULL)
        return;
    if (f->loop != TEMPLATE_NO_SLOT)
        s->v[f->loop] = (struct template_val){.kind = TV_LOOP, .loop = l};
    while (!broken && !r->failed) {
        struct template_val v = l->after;
        l->after = (struct template_val){0};
        if (!template_given(v) && !template_next(r, l->it, &v))
            break;
        l->idx++;
        l->before = l->current;
        l->current = v;
        enter(r, s, f, again);
        assign(r, n->a, v);
        enum flow end = run_body(r, n->body);
        whole = whole || end == FLOW_NEXT;
        broken = end == FLOW_BREAK;
        again = true;
        r->scope = was;
    }
    if (whole || r->failed || n->c == NULL)
        return;
    if (push(r, n->frame[TN_FRAME_ELSE]))
        *flow = run_body(r, n->c);
    r->scope = was;
}

struct template_val template_call_loop(struct template_run *r, struct template_loop *l, const struct template_args *a)
{
    if ((l->def->op & TN_RECURSIVE) == 0 || a->n != 1 || a->n_kw > 0)
        return template_fail(r, ERR_INVALID, "the loop must have the 'recursive' marker to be called, with one argument");
    struct capture c;
    enum flow flow = FLOW_NEXT;
    capture_begin(r, &c);
    r->scope = l->scope;
    for_loop(r, l->def, a->pos[0], l->depth0 + 1, &flow);
    return capture_end(r, &c);
}

/* ---- blocks ---- */

static void call_block(struct template_run *r, const struct template_node *n)
{
    struct template_val caller = macro_create(r, n), f = template_eval(r, n->b->a);
    struct template_args a = {0};
    if (r->failed || !template_eval_args(r, n->b->b, &a, 1))
        return;
    for (uint32_t i = 0; i < a.n_kw; i++)
        if (strcmp(a.kw[i].name, "caller") == 0) {
            template_fail(r, ERR_INVALID, "got multiple values for keyword argument 'caller'");
            return;
        }
    a.kw[a.n_kw++] = (struct template_kw){"caller", caller};
    write_text(r, template_call(r, f, &a));
}

/* A filter block, or one whose text is set; what is written before a break is lost, as in jinja2. */
static enum flow captured_block(struct template_run *r, const struct template_node *n)
{
    struct template_scope *was = r->scope, *inner;
    if (!push(r, n->frame[TN_FRAME_BODY]))
        return FLOW_NEXT;
    inner = r->scope;
    struct capture c;
    capture_begin(r, &c);
    enum flow f = run_body(r, n->body);
    struct template_val v = capture_end(r, &c);
    if (f == FLOW_NEXT && n->b != NULL) {
        r->scope = inner;
        v = template_filter_chain(r, n->b, v);
    }
    r->scope = was;
    if (f == FLOW_NEXT && n->kind == TN_SETBLOCK)
        assign(r, n->a, v);
    else if (f == FLOW_NEXT)
        write_text(r, v);
    return f;
}

static enum flow with_block(struct template_run *r, const struct template_node *n)
{
    struct template_scope *was = r->scope, *s = scope_create(r, n->frame[TN_FRAME_BODY], was);
    if (s == NULL)
        return FLOW_NEXT;
    enter(r, s, n->frame[TN_FRAME_BODY], false);
    for (const struct template_node *x = n->a; x != NULL && !r->failed; x = x->next) {
        r->scope = was;
        struct template_val v = template_eval(r, x->b);
        r->scope = s;
        assign(r, x->a, v);
    }
    enum flow f = run_body(r, n->body);
    r->scope = was;
    return f;
}

static enum flow run_statement(struct template_run *r, const struct template_node *n)
{
    enum flow f = FLOW_NEXT;
    struct template_args none = {0};
    switch (n->kind) {
    case TN_TEXT:
        write_out(r, n->val);
        return FLOW_NEXT;
    case TN_PRINT:
        write_out(r, template_eval(r, n->a));
        return FLOW_NEXT;
    case TN_IF: {
        bool yes = template_truth(template_eval(r, n->a));
        if (!yes && n->c != NULL && n->c->kind == TN_IF && n->c->next == NULL)
            return template_step(r, 1) ? run_statement(r, n->c) : FLOW_NEXT; /* elif: no deeper than its if */
        return run_body(r, yes ? n->b : n->c);
    }
    case TN_FOR:
        for_loop(r, n, template_eval(r, n->b), 0, &f);
        return f;
    case TN_SET:
        assign(r, n->a, template_eval(r, n->b));
        return FLOW_NEXT;
    case TN_MACRO:
        r->scope->v[n->slot] = macro_create(r, n);
        return FLOW_NEXT;
    case TN_CALLBLOCK:
        call_block(r, n);
        return FLOW_NEXT;
    case TN_GENERATION:
        write_out(r, template_call(r, macro_create(r, n), &none));
        return FLOW_NEXT;
    case TN_SETBLOCK:
    case TN_FILTERBLOCK:
        return captured_block(r, n);
    case TN_WITH:
        return with_block(r, n);
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

void template_run_body(struct template_run *r, const struct template_node *body, const struct template_frame *root)
{
    if (push(r, root))
        run_body(r, body);
}
