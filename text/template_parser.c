/* Tokens to nodes: the statements. Names are interned so that equal ones are one pointer. */
#include "text/template_parser.h"

#include "base/check.h"

#include <string.h>

static struct template_node *body(struct template_parser *p, const char *const *ends);

void template_parser_fail(struct template_parser *p, const char *what)
{
    if (p->err != ERR_OK)
        return;
    const struct template_token *t = p->t;
    if (t->type == TT_NAME || t->type == TT_STR)
        p->err = err_set(ERR_INVALID, "chat template, line %u, column %u: %s (at \"%.*s\")", t->line, t->col, what,
                         (int)MIN(t->len, (size_t)40), t->s);
    else
        p->err = err_set(ERR_INVALID, "chat template, line %u, column %u: %s", t->line, t->col, what);
}

void template_parser_advance(struct template_parser *p)
{
    if (p->t < p->end)
        p->t++;
}

struct template_node *template_parser_node(struct template_parser *p, enum template_node_kind kind)
{
    static const struct template_node
        spare; /* only the arena's limit leads here; the caller sees p->err before using it */
    struct template_node *n = arena_alloc(p->arena, sizeof(*n));
    if (n == NULL) {
        if (p->err == ERR_OK)
            p->err = err_set(ERR_TOO_BIG, "the chat template is too large");
        return (struct template_node *)&spare;
    }
    n->kind = (uint8_t)kind;
    n->line = p->t->line;
    return n;
}

bool template_parser_op_is(const struct template_parser *p, int op)
{
    return p->t->type == TT_OP && p->t->op == op;
}

bool template_parser_take_op(struct template_parser *p, int op)
{
    if (!template_parser_op_is(p, op))
        return false;
    template_parser_advance(p);
    return true;
}

void template_parser_expect_op(struct template_parser *p, int op, const char *what)
{
    if (!template_parser_take_op(p, op))
        template_parser_fail(p, what);
}

bool template_parser_word_is(const struct template_token *t, const char *w)
{
    return t->type == TT_NAME && strlen(w) == t->len && memcmp(t->s, w, t->len) == 0;
}

bool template_parser_take_word(struct template_parser *p, const char *w)
{
    if (!template_parser_word_is(p->t, w))
        return false;
    template_parser_advance(p);
    return true;
}

const char *template_parser_intern(struct template_parser *p, const char *s, size_t len)
{
    uint32_t h = 5381;
    for (size_t i = 0; i < len; i++)
        h = h * 33 + (unsigned char)s[i];
    struct template_name **bucket = &p->names[h % TEMPLATE_PARSER_BUCKETS];
    for (struct template_name *n = *bucket; n != NULL; n = n->next)
        if (n->len == len && memcmp(n->s, s, len) == 0)
            return n->s;
    struct template_name *n = arena_alloc(p->arena, sizeof(*n));
    char *copy = arena_strndup(p->arena, s, len);
    if (n == NULL || copy == NULL) {
        if (p->err == ERR_OK)
            p->err = err_set(ERR_TOO_BIG, "the chat template is too large");
        return "";
    }
    *n = (struct template_name){copy, len, *bucket};
    *bucket = n;
    return copy;
}

const char *template_parser_take_name(struct template_parser *p, const char *what)
{
    if (p->t->type != TT_NAME) {
        template_parser_fail(p, what);
        return "";
    }
    const char *s = template_parser_intern(p, p->t->s, p->t->len);
    template_parser_advance(p);
    return s;
}

bool template_parser_enter(struct template_parser *p)
{
    if (p->depth++ >= TEMPLATE_PARSER_NESTING_MAX)
        template_parser_fail(p, "nested too deeply");
    return p->err == ERR_OK;
}

struct template_node *template_parser_one(struct template_parser *p, enum template_node_kind kind, struct template_node *a)
{
    struct template_node *n = template_parser_node(p, kind);
    if (p->err == ERR_OK)
        n->a = a;
    return n;
}

static void end_tag(struct template_parser *p)
{
    if (p->t->type == TT_BLOCK_END)
        template_parser_advance(p);
    else
        template_parser_fail(p, "the end of the tag is expected");
}

/* The body up to one of `ends`, whose name is then the current token. */
static struct template_node *inner(struct template_parser *p, const char *const *ends)
{
    template_parser_take_op(p, ':'); /* as in Python */
    end_tag(p);
    return body(p, ends);
}

static struct template_node *inner_to(struct template_parser *p, const char *end)
{
    const char *const ends[] = {end, NULL};
    struct template_node *b = inner(p, ends);
    if (p->err == ERR_OK)
        template_parser_advance(p);
    return b;
}

static struct template_node *if_statement(struct template_parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct template_node *n = template_parser_node(p, TN_IF), *cond = template_expr_tuple(p, false, false), *then = inner(p, ends), *other = NULL;
    if (template_parser_take_word(p, "elif")) {
        if (!template_parser_enter(p))
            return n;
        other = if_statement(p);
        p->depth--;
    } else if (template_parser_take_word(p, "else")) {
        other = inner_to(p, "endif");
    } else {
        template_parser_advance(p);
    }
    if (p->err == ERR_OK) {
        n->a = cond;
        n->b = then;
        n->c = other;
    }
    return n;
}

/* A name that can be assigned to; where `with_attr`, also an attribute of one. */
static struct template_node *target_name(struct template_parser *p, bool with_attr)
{
    static const char *const constants[] = {"true", "True", "false", "False", "none", "None"};
    struct template_node *n = template_parser_node(p, TN_NAME);
    for (size_t i = 0; i < ARRAY_LEN(constants); i++)
        if (template_parser_word_is(p->t, constants[i]))
            template_parser_fail(p, "a constant cannot be assigned to");
    if (p->loops > 0 && template_parser_word_is(p->t, "loop") && !(with_attr && p->t[1].type == TT_OP && p->t[1].op == '.'))
        template_parser_fail(p, "the loop variable cannot be assigned to");
    const char *s = template_parser_take_name(p, "a name to assign to is expected");
    if (p->err == ERR_OK)
        n->name = s;
    if (!with_attr || !template_parser_take_op(p, '.'))
        return n;
    struct template_node *attr = template_parser_one(p, TN_ATTR, n);
    s = template_parser_take_name(p, "a name is expected after \".\"");
    if (p->err == ERR_OK)
        attr->name = s;
    return attr;
}

/* What is assigned to: names, a tuple of them, or an attribute of a namespace. */
static struct template_node *target(struct template_parser *p, bool with_attr)
{
    struct template_node *first = NULL, **link = &first, *n = NULL;
    bool several = false;
    do {
        if (first != NULL) {
            several = true;
            if (template_parser_op_is(p, '=') || template_parser_word_is(p->t, "in") || p->t->type == TT_BLOCK_END || template_parser_op_is(p, ')'))
                break;
        }
        if (template_parser_take_op(p, '(')) {
            if (!template_parser_enter(p))
                return NULL;
            n = target(p, with_attr);
            p->depth--;
            template_parser_expect_op(p, ')', "\")\" is expected");
        } else {
            n = target_name(p, with_attr);
        }
        if (p->err != ERR_OK)
            return n;
        *link = n;
        link = &n->next;
    } while (template_parser_take_op(p, ','));
    return several ? template_parser_one(p, TN_TUPLE, first) : first;
}

static struct template_node *for_statement(struct template_parser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    struct template_node *n = template_parser_node(p, TN_FOR);
    uint32_t loops = p->loops;
    p->loops++;
    struct template_node *var = target(p, false);
    if (!template_parser_take_word(p, "in"))
        template_parser_fail(p, "\"in\" is expected");
    struct template_node *iter = template_expr_tuple(p, false, false), *cond = template_parser_take_word(p, "if") ? template_expr(p) : NULL;
    bool recursive = template_parser_take_word(p, "recursive");
    struct template_node *b = inner(p, ends);
    p->loops = recursive ? 0 : loops; /* a recursive loop is a function of its own: `break` in its else leads nowhere */
    struct template_node *other = NULL;
    if (template_parser_take_word(p, "else"))
        other = inner_to(p, "endfor");
    else
        template_parser_advance(p);
    p->loops = loops;
    if (p->err == ERR_OK) {
        n->a = var;
        n->b = iter;
        n->c = other;
        n->d = cond;
        n->op = recursive ? TN_RECURSIVE : 0;
        n->body = b;
    }
    return n;
}

static struct template_node *filter_chain(struct template_parser *p)
{
    struct template_node *f = NULL;
    do
        f = template_expr_filter(p, f);
    while (p->err == ERR_OK && template_parser_take_op(p, '|'));
    return f;
}

static struct template_node *set_statement(struct template_parser *p)
{
    struct template_node *n = template_parser_node(p, TN_SET), *var = target(p, true), *value = NULL, *b = NULL;
    bool assign = template_parser_take_op(p, '=');
    if (assign) {
        value = template_expr_tuple(p, true, false);
    } else {
        if (template_parser_take_op(p, '|'))
            value = filter_chain(p);
        b = inner_to(p, "endset");
    }
    if (p->err == ERR_OK) {
        n->kind = assign ? TN_SET : TN_SETBLOCK;
        n->a = var;
        n->b = value;
        n->body = b;
    }
    return n;
}

/* "(a, b=1)" */
static struct template_node *parameters(struct template_parser *p)
{
    struct template_node *first = NULL, **link = &first;
    bool defaults = false;
    template_parser_expect_op(p, '(', "\"(\" is expected");
    while (p->err == ERR_OK && !template_parser_op_is(p, ')')) {
        struct template_node *n = target_name(p, false), *def = template_parser_take_op(p, '=') ? template_expr(p) : NULL;
        if (p->err == ERR_OK && def == NULL && defaults)
            template_parser_fail(p, "a parameter without a default stands behind one that has one");
        for (const struct template_node *x = first; x != NULL && p->err == ERR_OK; x = x->next)
            if (x->name == n->name)
                template_parser_fail(p, "a parameter is named twice");
        if (p->err != ERR_OK)
            break;
        defaults = def != NULL;
        n->a = def;
        *link = n;
        link = &n->next;
        if (!template_parser_take_op(p, ',') && !template_parser_op_is(p, ')'))
            template_parser_fail(p, "\",\" or \")\" is expected");
    }
    template_parser_expect_op(p, ')', "\")\" is expected");
    return first;
}

/* A body that is a function of its own: the loops around it are none of its. */
static struct template_node *function_body(struct template_parser *p, const char *end)
{
    uint32_t loops = p->loops;
    p->loops = 0;
    struct template_node *b = inner_to(p, end);
    p->loops = loops;
    return b;
}

static struct template_node *macro_statement(struct template_parser *p)
{
    struct template_node *n = template_parser_node(p, TN_MACRO);
    const char *name = target_name(p, false)->name;
    struct template_node *params = parameters(p), *b = function_body(p, "endmacro");
    if (p->err == ERR_OK) {
        n->name = name;
        n->a = params;
        n->body = b;
    }
    return n;
}

static struct template_node *call_statement(struct template_parser *p)
{
    struct template_node *n = template_parser_node(p, TN_CALLBLOCK), *params = template_parser_op_is(p, '(') ? parameters(p) : NULL,
                         *c = template_expr(p);
    if (p->err == ERR_OK && c->kind != TN_CALL)
        template_parser_fail(p, "a call is expected");
    struct template_node *b = function_body(p, "endcall");
    if (p->err == ERR_OK) {
        n->a = params;
        n->b = c;
        n->body = b;
    }
    return n;
}

static struct template_node *with_statement(struct template_parser *p)
{
    struct template_node *n = template_parser_node(p, TN_WITH), *first = NULL, **link = &first;
    while (p->err == ERR_OK && p->t->type != TT_BLOCK_END) {
        struct template_node *s = template_parser_node(p, TN_SET), *var = target(p, false);
        template_parser_expect_op(p, '=', "\"=\" is expected");
        struct template_node *v = template_expr(p);
        if (p->err != ERR_OK)
            break;
        s->a = var;
        s->b = v;
        *link = s;
        link = &s->next;
        if (!template_parser_take_op(p, ',')) /* else a ":" or the end */
            break;
    }
    struct template_node *b = inner_to(p, "endwith");
    if (p->err == ERR_OK) {
        n->a = first;
        n->body = b;
    }
    return n;
}

static struct template_node *simple_block(struct template_parser *p, enum template_node_kind kind, const char *end)
{
    struct template_node *n = template_parser_node(p, kind), *f = kind == TN_FILTERBLOCK ? filter_chain(p) : NULL,
                         *b = kind == TN_FILTERBLOCK ? inner_to(p, end) : function_body(p, end);
    if (p->err == ERR_OK) {
        n->b = f;
        n->body = b;
    }
    return n;
}

static struct template_node *loop_control(struct template_parser *p, enum template_node_kind kind)
{
    if (p->loops == 0)
        template_parser_fail(p, "break and continue belong into a loop");
    return template_parser_node(p, kind);
}

/* {% print a, b %} */
static struct template_node *print_statement(struct template_parser *p)
{
    struct template_node *n = template_parser_node(p, TN_PRINT), *first = NULL, **link = &first;
    do {
        *link = template_expr(p);
        if (p->err == ERR_OK)
            link = &(*link)->next;
    } while (p->err == ERR_OK && template_parser_take_op(p, ','));
    struct template_node *all = first != NULL && first->next != NULL ? template_parser_one(p, TN_CONCAT, first) : first;
    if (p->err == ERR_OK)
        n->a = all;
    return n;
}

static struct template_node *statement(struct template_parser *p)
{
    if (template_parser_take_word(p, "if"))
        return if_statement(p);
    if (template_parser_take_word(p, "for"))
        return for_statement(p);
    if (template_parser_take_word(p, "set"))
        return set_statement(p);
    if (template_parser_take_word(p, "macro"))
        return macro_statement(p);
    if (template_parser_take_word(p, "call"))
        return call_statement(p);
    if (template_parser_take_word(p, "with"))
        return with_statement(p);
    if (template_parser_take_word(p, "filter"))
        return simple_block(p, TN_FILTERBLOCK, "endfilter");
    if (template_parser_take_word(p, "generation"))
        return simple_block(p, TN_GENERATION, "endgeneration");
    if (template_parser_take_word(p, "print"))
        return print_statement(p);
    if (template_parser_take_word(p, "break"))
        return loop_control(p, TN_BREAK);
    if (template_parser_take_word(p, "continue"))
        return loop_control(p, TN_CONTINUE);
    template_parser_fail(p, "this tag is not known");
    return template_parser_node(p, TN_TEXT);
}

/* Statements up to a tag that starts with one of `ends` (that name is then current), or to the end of the template when
 * ends is NULL. */
static struct template_node *body(struct template_parser *p, const char *const *ends)
{
    struct template_node *first = NULL, **link = &first, *n;
    if (!template_parser_enter(p))
        return NULL;
    while (p->err == ERR_OK) {
        if (p->t->type == TT_EOF) {
            if (ends != NULL)
                template_parser_fail(p, "a block is not closed");
            break;
        }
        if (p->t->type == TT_TEXT) {
            n = template_parser_node(p, TN_TEXT);
            if (p->err == ERR_OK)
                n->val = template_str(p->t->s, p->t->len);
            template_parser_advance(p);
        } else if (p->t->type == TT_PRINT) {
            template_parser_advance(p);
            n = template_parser_one(p, TN_PRINT, template_expr_tuple(p, true, false));
            if (p->t->type == TT_PRINT_END)
                template_parser_advance(p);
            else
                template_parser_fail(p, "the end of the expression is expected");
        } else {
            template_parser_advance(p); /* TT_BLOCK: the lexer puts nothing else here */
            bool end = false;
            for (size_t i = 0; ends != NULL && ends[i] != NULL && !end; i++)
                end = template_parser_word_is(p->t, ends[i]);
            if (end)
                break;
            n = statement(p);
            if (p->err == ERR_OK)
                end_tag(p);
        }
        if (p->err != ERR_OK)
            break;
        *link = n;
        link = &n->next;
    }
    p->depth--;
    return first;
}

/* Unknown filters and tests are refused here, except in a branch, where they only count when a run gets there. */
static enum err check_names(const struct template_node *n, bool branch, int depth)
{
    if (depth > TEMPLATE_PARSER_NESTING_MAX * 2)
        return ERR_OK; /* left to the run */
    for (; n != NULL; n = n->next) {
        bool scope = n->kind == TN_FOR || n->kind == TN_MACRO || n->kind == TN_CALLBLOCK || n->kind == TN_SETBLOCK ||
                     n->kind == TN_WITH || n->kind == TN_FILTERBLOCK || n->kind == TN_GENERATION;
        bool inside = branch || n->kind == TN_IF || n->kind == TN_COND;
        if ((n->kind == TN_FILTER || n->kind == TN_TEST) && n->def == NULL && !branch)
            return err_set(ERR_INVALID, "chat template, line %u: there is no %s '%s'", n->line,
                           n->kind == TN_FILTER ? "filter" : "test", n->name);
        /* the iterable of a loop, the call of a call block and the values of `with` belong to what is around them */
        TRY(check_names(n->a, inside && (!scope || n->kind == TN_WITH), depth + 1));
        TRY(check_names(n->b, inside && (!scope || n->kind == TN_FOR || n->kind == TN_CALLBLOCK), depth + 1));
        TRY(check_names(n->c, inside && !scope, depth + 1));
        TRY(check_names(n->d, inside && !scope, depth + 1));
        TRY(check_names(n->body, inside && !scope, depth + 1));
    }
    return ERR_OK;
}

enum err template_parser_run(struct arena *a, const struct template_token *tok, size_t n, struct template_node **out)
{
    struct template_parser p = {.arena = a, .t = tok, .end = tok + n - 1};
    *out = body(&p, NULL);
    return p.err != ERR_OK ? p.err : check_names(*out, false, 0);
}
