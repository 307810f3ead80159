/* Which variable a name means. jinja2 decides this before a template runs: a scope (the template, a loop's body, a macro, a
 * block that is captured ...) has a variable for each name that is set in it anywhere; such a name starts as the variable
 * around it, or, when it is read or set in a branch first, as what the context has, or else as undefined. Frames follow the
 * same rules here, so that a name is a place: hops frames up, slot.
 *
 * A frame is analysed as a whole before the scopes inside it are looked at; then its own names get their places. */
#include "base/check.h"
#include "text/template_ast.h"

#include <string.h>

enum { SLOTS_MAX = 4000, DEPTH_MAX = 1000 };

/* What is known of each slot at one point of the analysis: branches work on copies. A slot past cap was not seen yet. */
struct state {
    uint8_t *how; /* 0: the name was not seen yet; else 1 + enum template_load_how */
    bool *stored;
    uint32_t cap;
};
struct frame {
    struct frame *up;
    const char **names;
    uint32_t n, cap;
    struct state s;
    struct template_frame *out;
};
struct scopes {
    struct arena *arena;
    uint32_t depth;
    enum err err;
};

static void body_places(struct scopes *x, struct frame *f, struct template_node *n);
static void visit(struct scopes *x, struct frame *f, const struct template_node *n);

static void fail(struct scopes *x, uint32_t line, const char *what)
{
    if (x->err == ERR_OK)
        x->err = err_set(ERR_INVALID, "chat template, line %u: %s", line, what);
}

static void *alloc(struct scopes *x, size_t n, size_t size)
{
    void *p = arena_array(x->arena, n, size);
    if (p == NULL && x->err == ERR_OK)
        x->err = err_set(ERR_TOO_BIG, "the chat template is too large");
    return p;
}

static bool enter(struct scopes *x)
{
    if (x->depth++ >= DEPTH_MAX && x->err == ERR_OK)
        x->err = err_set(ERR_TOO_BIG, "the chat template is nested too deeply");
    return x->err == ERR_OK;
}

static uint32_t slot_of(const struct frame *f, const char *name)
{
    for (uint32_t i = 0; i < f->n; i++)
        if (f->names[i] == name || strcmp(f->names[i], name) == 0)
            return i;
    return TEMPLATE_NO_SLOT;
}

static uint8_t how_of(const struct state *s, uint32_t slot)
{
    return slot < s->cap ? s->how[slot] : 0;
}

static bool is_stored(const struct state *s, uint32_t slot)
{
    return slot < s->cap && s->stored[slot];
}

static bool known(const struct frame *f, uint32_t slot)
{
    return how_of(&f->s, slot) != 0;
}

/* The state with room for `cap` slots, in memory of its own. */
static struct state copy(struct scopes *x, const struct state *s, uint32_t cap)
{
    cap = MAX(cap, s->cap);
    struct state c = {alloc(x, (size_t)cap + 1, 1), alloc(x, (size_t)cap + 1, sizeof(bool)), cap};
    if (x->err != ERR_OK)
        return (struct state){0};
    if (s->cap > 0) {
        memcpy(c.how, s->how, s->cap);
        memcpy(c.stored, s->stored, s->cap * sizeof(bool));
    }
    return c;
}

static uint32_t add_slot(struct scopes *x, struct frame *f, const char *name)
{
    uint32_t slot = slot_of(f, name);
    if (slot != TEMPLATE_NO_SLOT)
        return slot;
    if (f->n == SLOTS_MAX && x->err == ERR_OK)
        x->err = err_set(ERR_TOO_BIG, "the chat template has more than %d variables in one scope", SLOTS_MAX);
    if (f->n == f->cap && x->err == ERR_OK) {
        uint32_t cap = f->cap == 0 ? 16 : f->cap * 2;
        const char **names = alloc(x, cap, sizeof(*names));
        if (names != NULL && f->n > 0)
            memcpy(names, f->names, f->n * sizeof(*names));
        f->names = names;
        f->cap = cap;
    }
    if (x->err != ERR_OK)
        return 0;
    f->names[f->n] = name;
    return f->n++;
}

static bool outer_has(const struct frame *f, const char *name)
{
    for (const struct frame *o = f->up; o != NULL; o = o->up)
        if (known(o, slot_of(o, name)))
            return true;
    return false;
}

static void define(struct scopes *x, struct frame *f, const char *name, enum template_load_how how)
{
    uint32_t slot = add_slot(x, f, name);
    if (x->err == ERR_OK && slot >= f->s.cap)
        f->s = copy(x, &f->s, (slot + 1) * 2);
    if (x->err == ERR_OK)
        f->s.how[slot] = (uint8_t)(1 + how);
}

static void load(struct scopes *x, struct frame *f, const char *name)
{
    if (!known(f, slot_of(f, name)) && !outer_has(f, name))
        define(x, f, name, TL_RESOLVE);
}

static void store(struct scopes *x, struct frame *f, const char *name)
{
    if (!known(f, slot_of(f, name)))
        define(x, f, name, outer_has(f, name) ? TL_ALIAS : TL_UNDEFINED);
    if (x->err == ERR_OK)
        f->s.stored[slot_of(f, name)] = true;
}

static void param(struct scopes *x, struct frame *f, const char *name)
{
    define(x, f, name, TL_PARAM);
    if (x->err == ERR_OK)
        f->s.stored[slot_of(f, name)] = true;
}

/* ---- what a frame's own statements read and set ---- */

static void visit_expr(struct scopes *x, struct frame *f, const struct template_node *n)
{
    if (!enter(x)) {
        x->depth--;
        return;
    }
    for (; n != NULL && x->err == ERR_OK; n = n->next) {
        if (n->kind == TN_NAME)
            load(x, f, n->name);
        visit_expr(x, f, n->a);
        visit_expr(x, f, n->b);
        visit_expr(x, f, n->c);
        visit_expr(x, f, n->d);
    }
    x->depth--;
}

static void visit_target(struct scopes *x, struct frame *f, const struct template_node *n, bool as_param)
{
    if (n->kind == TN_TUPLE) {
        for (const struct template_node *t = n->a; t != NULL && x->err == ERR_OK; t = t->next)
            visit_target(x, f, t, as_param);
    } else if (n->kind == TN_ATTR) {
        load(x, f, n->a->name);
    } else if (as_param) {
        param(x, f, n->name);
    } else {
        store(x, f, n->name);
    }
}

static void visit_if(struct scopes *x, struct frame *f, const struct template_node *n)
{
    visit_expr(x, f, n->a);
    struct state before = f->s, part[2];
    const struct template_node *const bodies[2] = {n->b, n->c};
    for (int i = 0; i < 2 && x->err == ERR_OK; i++) {
        f->s = copy(x, &before, before.cap);
        visit(x, f, bodies[i]);
        part[i] = f->s;
    }
    if (x->err != ERR_OK)
        return;
    f->s = copy(x, &before, f->n);
    for (uint32_t s = 0; s < f->n && x->err == ERR_OK; s++) {
        bool stored = !is_stored(&before, s) && (is_stored(&part[0], s) || is_stored(&part[1], s));
        for (int i = 0; i < 2; i++)
            if (how_of(&part[i], s) != 0)
                f->s.how[s] = how_of(&part[i], s);
        f->s.stored[s] = f->s.stored[s] || stored;
        if (stored)
            f->s.how[s] = (uint8_t)(1 + (outer_has(f, f->names[s]) ? TL_ALIAS : TL_RESOLVE));
    }
}

static void visit(struct scopes *x, struct frame *f, const struct template_node *n)
{
    if (!enter(x)) {
        x->depth--;
        return;
    }
    for (; n != NULL && x->err == ERR_OK; n = n->next) {
        switch (n->kind) {
        case TN_PRINT:
            visit_expr(x, f, n->a);
            break;
        case TN_IF:
            visit_if(x, f, n);
            break;
        case TN_SET:
            visit_expr(x, f, n->b);
            visit_target(x, f, n->a, false);
            break;
        case TN_SETBLOCK:
            visit_target(x, f, n->a, false);
            break;
        case TN_MACRO:
            store(x, f, n->name);
            break;
        case TN_FOR:
        case TN_CALLBLOCK:
        case TN_FILTERBLOCK:
            visit_expr(x, f, n->b);
            break;
        case TN_WITH:
            for (const struct template_node *s = n->a; s != NULL && x->err == ERR_OK; s = s->next)
                visit_expr(x, f, s->b);
            break;
        default:
            break;
        }
    }
    x->depth--;
}

/* ---- varargs, kwargs, caller, loop: read before they are set, in any scope inside? ---- */

struct wanted {
    int open, found; /* TN_USES_ flags: still looked for; read */
};

static void want(struct wanted *w, const char *name, bool set)
{
    static const char *const special[] = {"varargs", "kwargs", "caller", "loop"};
    for (int i = 0; i < 4; i++)
        if ((w->open & 1 << i) != 0 && strcmp(name, special[i]) == 0) {
            w->open &= ~(1 << i);
            w->found |= set ? 0 : 1 << i;
        }
}

static void want_in(struct scopes *x, struct wanted *w, const struct template_node *n, bool target)
{
    if (!enter(x)) {
        x->depth--;
        return;
    }
    for (; n != NULL && w->open != 0 && x->err == ERR_OK; n = n->next) {
        bool sets = n->kind == TN_FOR || n->kind == TN_SET || n->kind == TN_SETBLOCK || n->kind == TN_MACRO || n->kind == TN_CALLBLOCK;
        if (n->kind == TN_NAME)
            want(w, n->name, target);
        if (target && n->kind == TN_ATTR)
            continue;
        const struct template_node *const parts[] = {n->kind == TN_CALLBLOCK ? n->b : NULL, /* read before the parameters are set */
                                                     n->a, n->kind == TN_CALLBLOCK ? NULL : n->b,
                                                     n->kind == TN_FOR ? n->body : n->c, n->kind == TN_FOR ? n->c : n->d,
                                                     n->kind == TN_FOR ? n->d : n->body};
        for (size_t i = 0; i < ARRAY_LEN(parts); i++)
            want_in(x, w, parts[i], i == 1 && (sets || (target && n->kind == TN_TUPLE)));
    }
    x->depth--;
}

static int uses(struct scopes *x, const struct template_node *body)
{
    struct wanted w = {.open = TN_USES_VARARGS | TN_USES_KWARGS | TN_USES_CALLER | TN_USES_LOOP};
    want_in(x, &w, body, false);
    return w.found;
}

/* ---- places ---- */

static void place(struct scopes *x, const struct frame *f, struct template_node *n)
{
    uint16_t hops = 0;
    for (const struct frame *o = f; o != NULL; o = o->up, hops++) {
        uint32_t slot = slot_of(o, n->name);
        if (known(o, slot)) {
            n->hops = hops;
            n->slot = (uint16_t)slot;
            return;
        }
    }
    fail(x, n->line, "a variable is used only in the filter of a {% set %} block, which jinja2 does not allow");
}

static void places(struct scopes *x, const struct frame *f, struct template_node *n)
{
    if (!enter(x)) {
        x->depth--;
        return;
    }
    for (; n != NULL && x->err == ERR_OK; n = n->next) {
        if (n->kind == TN_NAME)
            place(x, f, n);
        places(x, f, n->a);
        places(x, f, n->b);
        places(x, f, n->c);
        places(x, f, n->d);
    }
    x->depth--;
}

static struct frame *frame_create(struct scopes *x, struct frame *up)
{
    struct frame *f = alloc(x, 1, sizeof(*f));
    struct template_frame *out = alloc(x, 1, sizeof(*out));
    if (x->err == ERR_OK)
        *f = (struct frame){.up = up, .out = out};
    return x->err == ERR_OK ? f : NULL;
}

static uint16_t special(const struct frame *f, const char *name)
{
    for (uint32_t i = 0; i < f->n; i++)
        if (how_of(&f->s, i) == 1 + TL_PARAM && strcmp(f->names[i], name) == 0)
            return (uint16_t)i;
    return TEMPLATE_NO_SLOT;
}

/* The analysis of f is complete: what happens when it is entered. */
static struct template_frame *finish(struct scopes *x, struct frame *f)
{
    struct template_load *l = alloc(x, f->n + 1, sizeof(*l));
    for (uint32_t i = 0; i < f->n && x->err == ERR_OK; i++) {
        int how = how_of(&f->s, i) - 1;
        if (how != TL_RESOLVE && how != TL_ALIAS)
            continue;
        struct template_node name = {.name = f->names[i]};
        if (how == TL_ALIAS)
            place(x, f->up, &name);
        l[f->out->n_loads++] = (struct template_load){f->names[i], (uint16_t)i, (uint16_t)(name.hops + 1), name.slot, (uint8_t)how};
    }
    f->out->loads = l;
    f->out->n_slots = f->n;
    f->out->loop = special(f, "loop");
    f->out->caller = special(f, "caller");
    f->out->kwargs = special(f, "kwargs");
    f->out->varargs = special(f, "varargs");
    return f->out;
}

static void for_places(struct scopes *x, struct frame *f, struct template_node *n)
{
    struct frame *in = frame_create(x, f), *other = frame_create(x, f), *test = frame_create(x, f);
    places(x, f, n->b);
    if (x->err != ERR_OK)
        return;
    visit_target(x, in, n->a, true); /* the first slots, in the frame of the condition, too */
    visit_target(x, test, n->a, true);
    if ((n->op & TN_RECURSIVE) != 0 || (uses(x, n->body) & TN_USES_LOOP) != 0) {
        n->op |= TN_USES_LOOP;
        param(x, in, "loop");
    }
    visit(x, in, n->body);
    visit(x, other, n->c);
    if (n->d != NULL)
        visit_expr(x, test, n->d);
    if (x->err != ERR_OK)
        return;
    n->frame[TN_FRAME_BODY] = finish(x, in);
    n->frame[TN_FRAME_ELSE] = finish(x, other);
    n->frame[TN_FRAME_TEST] = finish(x, test);
    places(x, in, n->a);
    places(x, test, n->d);
    body_places(x, in, n->body);
    body_places(x, other, n->c);
}

/* A macro, the body of a call block, a generation block. */
static void macro_places(struct scopes *x, struct frame *f, struct template_node *n)
{
    struct frame *in = frame_create(x, f);
    n->op = uses(x, n->body) & ~TN_USES_LOOP;
    if (x->err != ERR_OK)
        return;
    for (struct template_node *p = n->a; p != NULL; p = p->next) {
        param(x, in, p->name);
        if (strcmp(p->name, "caller") == 0 && (n->op & TN_USES_CALLER) != 0 && p->a == NULL)
            fail(x, n->line, "the parameter \"caller\" must be left out or have a default");
        n->op &= strcmp(p->name, "caller") == 0    ? ~TN_USES_CALLER
                 : strcmp(p->name, "kwargs") == 0  ? ~TN_USES_KWARGS
                 : strcmp(p->name, "varargs") == 0 ? ~TN_USES_VARARGS
                                                   : -1;
    }
    for (struct template_node *p = n->a; p != NULL; p = p->next)
        visit_expr(x, in, p->a);
    visit(x, in, n->body);
    static const struct {
        int flag;
        const char *name;
    } specials[] = {{TN_USES_CALLER, "caller"}, {TN_USES_KWARGS, "kwargs"}, {TN_USES_VARARGS, "varargs"}};
    for (size_t i = 0; i < ARRAY_LEN(specials); i++)
        if ((n->op & specials[i].flag) != 0)
            param(x, in, specials[i].name);
    if (x->err != ERR_OK)
        return;
    n->frame[TN_FRAME_BODY] = finish(x, in);
    for (struct template_node *p = n->a; p != NULL; p = p->next) {
        place(x, in, p);
        places(x, in, p->a);
    }
    body_places(x, in, n->body);
}

/* A captured block, a filter block, `with`. */
static void block_places(struct scopes *x, struct frame *f, struct template_node *n)
{
    struct frame *in = frame_create(x, f);
    if (in == NULL)
        return;
    for (struct template_node *s = n->kind == TN_WITH ? n->a : NULL; s != NULL; s = s->next) {
        places(x, f, s->b);
        visit_target(x, in, s->a, true);
    }
    visit(x, in, n->body);
    if (n->kind == TN_FILTERBLOCK)
        visit_expr(x, in, n->b);
    if (x->err != ERR_OK)
        return;
    n->frame[TN_FRAME_BODY] = finish(x, in);
    for (struct template_node *s = n->kind == TN_WITH ? n->a : NULL; s != NULL; s = s->next)
        places(x, in, s->a);
    if (n->kind == TN_SETBLOCK)
        places(x, f, n->a);
    if (n->kind != TN_WITH)
        places(x, in, n->b);
    body_places(x, in, n->body);
}

static void body_places(struct scopes *x, struct frame *f, struct template_node *n)
{
    if (!enter(x)) {
        x->depth--;
        return;
    }
    for (; n != NULL && x->err == ERR_OK; n = n->next) {
        switch (n->kind) {
        case TN_PRINT:
            places(x, f, n->a);
            break;
        case TN_IF:
            places(x, f, n->a);
            body_places(x, f, n->b);
            body_places(x, f, n->c);
            break;
        case TN_SET:
            places(x, f, n->a);
            places(x, f, n->b);
            break;
        case TN_FOR:
            for_places(x, f, n);
            break;
        case TN_MACRO:
            place(x, f, n);
            macro_places(x, f, n);
            break;
        case TN_CALLBLOCK:
            places(x, f, n->b);
            macro_places(x, f, n);
            break;
        case TN_GENERATION:
            macro_places(x, f, n);
            break;
        case TN_SETBLOCK:
        case TN_FILTERBLOCK:
        case TN_WITH:
            block_places(x, f, n);
            break;
        default:
            break;
        }
    }
    x->depth--;
}

enum err template_scope_run(struct arena *a, struct template_node *body, struct template_frame **root)
{
    struct scopes x = {.arena = a};
    struct frame *f = frame_create(&x, NULL);
    if (f != NULL) {
        visit(&x, f, body);
        if (x.err == ERR_OK)
            *root = finish(&x, f);
        body_places(&x, f, body);
    }
    return x.err;
}
