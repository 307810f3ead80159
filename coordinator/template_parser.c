/* Tokens to nodes: recursive descent with the precedences of jinja2. Names are interned so that scopes compare
 * pointers; filters and tests are looked up here, so that a template that names an unknown one is refused when the
 * model is loaded and not when somebody chats; as in jinja2 it is only refused when it gets there where it stands in a
 * branch of `if`. */
#include "base/check.h"
#include "coordinator/template_ast.h"

#include <string.h>

enum { NESTING_MAX = 150, NAME_BUCKETS = 64 };

struct parser {
    struct arena *arena;
    const struct template_token *t; /* the current one; the last is TT_EOF */
    const struct template_token *end;
    struct template_name *names[NAME_BUCKETS];
    uint32_t depth, loops;
    int uses; /* TN_USES_ flags of the macro that is being read */
    enum err err;
};

static struct template_node *expression(struct parser *p);
static struct template_node *condexpr(struct parser *p, bool with_cond);
static struct template_node *unary(struct parser *p, bool with_filter);
static struct template_node *body(struct parser *p, const char *const *ends);

static void fail(struct parser *p, const char *what)
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

static void advance(struct parser *p)
{
    if (p->t < p->end)
        p->t++;
}

static struct template_node *node(struct parser *p, enum template_node_kind kind)
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

static bool op_is(const struct parser *p, int op)
{
    return p->t->type == TT_OP && p->t->op == op;
}

static bool take_op(struct parser *p, int op)
{
    if (!op_is(p, op))
        return false;
    advance(p);
    return true;
}

static void expect_op(struct parser *p, int op, const char *what)
{
    if (!take_op(p, op))
        fail(p, what);
}

static bool word_is(const struct template_token *t, const char *w)
{
    return t->type == TT_NAME && strlen(w) == t->len && memcmp(t->s, w, t->len) == 0;
}

static bool take_word(struct parser *p, const char *w)
{
    if (!word_is(p->t, w))
        return false;
    advance(p);
    return true;
}

static const char *intern(struct parser *p, const char *s, size_t len)
{
    uint32_t h = 5381;
    for (size_t i = 0; i < len; i++)
        h = h * 33 + (unsigned char)s[i];
    struct template_name **bucket = &p->names[h % NAME_BUCKETS];
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

static const char *take_name(struct parser *p, const char *what)
{
    if (p->t->type != TT_NAME) {
        fail(p, what);
        return "";
    }
    const char *s = intern(p, p->t->s, p->t->len);
    advance(p);
    return s;
}

static bool enter(struct parser *p)
{
    if (p->depth++ >= NESTING_MAX)
        fail(p, "nested too deeply");
    return p->err == ERR_OK;
}

/* ---- expressions ---- */

static struct template_node *constant(struct parser *p, struct template_val v)
{
    struct template_node *n = node(p, TN_CONST);
    if (p->err == ERR_OK)
        n->val = v;
    return n;
}

static struct template_node *name_or_constant(struct parser *p)
{
    static const struct {
        const char *name;
        uint8_t kind;
        bool b;
    } words[] = {{"true", TV_BOOL, true},   {"True", TV_BOOL, true},  {"false", TV_BOOL, false},
                 {"False", TV_BOOL, false}, {"none", TV_NONE, false}, {"None", TV_NONE, false}};
    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        if (take_word(p, words[i].name))
            return constant(p, words[i].kind == TV_BOOL ? template_bool(words[i].b) : template_none());
    struct template_node *n = node(p, TN_NAME);
    const char *s = take_name(p, "a name is expected");
    p->uses |= strcmp(s, "varargs") == 0  ? TN_USES_VARARGS
               : strcmp(s, "kwargs") == 0 ? TN_USES_KWARGS
               : strcmp(s, "caller") == 0 ? TN_USES_CALLER
                                          : 0;
    if (p->err == ERR_OK)
        n->name = s;
    return n;
}

/* Adjacent strings are one. */
static struct template_node *strings(struct parser *p)
{
    size_t len = 0, at = 0;
    for (const struct template_token *t = p->t; t->type == TT_STR; t++)
        len += t->len;
    char *s = arena_alloc(p->arena, len + 1);
    if (s == NULL) {
        fail(p, "too much text");
        return node(p, TN_CONST);
    }
    for (; p->t->type == TT_STR; advance(p)) {
        memcpy(s + at, p->t->s, p->t->len);
        at += p->t->len;
    }
    return constant(p, template_str(s, len));
}

/* Items up to the closing bracket; pairs: "k: v" for dicts. */
static struct template_node *items(struct parser *p, int close, bool pairs)
{
    struct template_node *first = NULL, **link = &first;
    while (p->err == ERR_OK && !op_is(p, close)) {
        *link = expression(p);
        if (p->err != ERR_OK)
            break;
        link = &(*link)->next;
        if (pairs) {
            expect_op(p, ':', "\":\" is expected in a dict");
            *link = expression(p);
            if (p->err != ERR_OK)
                break;
            link = &(*link)->next;
        }
        if (!take_op(p, ',') && !op_is(p, close))
            fail(p, "\",\" or a closing bracket is expected");
    }
    expect_op(p, close, "a closing bracket is expected");
    return first;
}

/* One expression, or a tuple when commas follow. */
static struct template_node *tuple(struct parser *p, bool with_cond)
{
    struct template_node *first = condexpr(p, with_cond);
    if (!op_is(p, ',') || p->err != ERR_OK)
        return first;
    struct template_node *n = node(p, TN_TUPLE), **link = &first->next;
    if (p->err == ERR_OK)
        n->a = first;
    while (p->err == ERR_OK && take_op(p, ',')) {
        if (op_is(p, ')') || op_is(p, '=') || p->t->type == TT_PRINT_END || p->t->type == TT_BLOCK_END ||
            word_is(p->t, "in"))
            break;
        *link = condexpr(p, with_cond);
        if (p->err == ERR_OK)
            link = &(*link)->next;
    }
    return n;
}

static struct template_node *primary(struct parser *p)
{
    struct template_node *n;
    if (!enter(p))
        return node(p, TN_CONST);
    if (p->t->type == TT_NAME) {
        n = name_or_constant(p);
    } else if (p->t->type == TT_STR) {
        n = strings(p);
    } else if (p->t->type == TT_INT || p->t->type == TT_FLOAT) {
        n = constant(p, p->t->type == TT_INT ? template_int(p->t->i) : template_float(p->t->f));
        advance(p);
    } else if (take_op(p, '(')) {
        if (take_op(p, ')')) {
            n = node(p, TN_TUPLE);
        } else {
            n = tuple(p, true);
            expect_op(p, ')', "\")\" is expected");
        }
    } else if (op_is(p, '[') || op_is(p, '{')) {
        bool list = op_is(p, '[');
        advance(p);
        n = node(p, list ? TN_LIST : TN_DICT);
        struct template_node *first = items(p, list ? ']' : '}', !list);
        if (p->err == ERR_OK)
            n->a = first;
    } else {
        fail(p, "an expression is expected");
        n = node(p, TN_CONST);
    }
    p->depth--;
    return n;
}

/* After "(": arguments up to ")". */
static struct template_node *arguments(struct parser *p)
{
    struct template_node *first = NULL, **link = &first;
    bool named = false;
    while (p->err == ERR_OK && !op_is(p, ')')) {
        struct template_node *n;
        if (op_is(p, '*') || op_is(p, OP_POW)) {
            n = node(p, op_is(p, '*') ? TN_STAR : TN_STARSTAR);
            advance(p);
        } else if (p->t->type == TT_NAME && p->t[1].type == TT_OP && p->t[1].op == '=') {
            n = node(p, TN_KWARG);
            const char *s = take_name(p, "a name is expected");
            advance(p);
            if (p->err == ERR_OK)
                n->name = s;
            named = true;
        } else {
            n = NULL;
            if (named)
                fail(p, "an argument without a name follows one with a name");
        }
        struct template_node *e = expression(p);
        if (p->err != ERR_OK)
            break;
        if (n != NULL)
            n->a = e;
        *link = n != NULL ? n : e;
        link = &(*link)->next;
        if (!take_op(p, ',') && !op_is(p, ')'))
            fail(p, "\",\" or \")\" is expected");
    }
    expect_op(p, ')', "\")\" is expected");
    return first;
}

static struct template_node *subscript(struct parser *p, struct template_node *v)
{
    struct template_node *part[3] = {NULL, NULL, NULL};
    int n = 0;
    bool slice = false;
    while (p->err == ERR_OK && !op_is(p, ']') && n < 3) {
        if (op_is(p, ':')) {
            slice = true;
            advance(p);
            n++;
            continue;
        }
        if (part[n] != NULL)
            break;
        part[n] = expression(p);
    }
    expect_op(p, ']', "\"]\" is expected");
    if (!slice && part[0] == NULL)
        fail(p, "an index is expected");
    struct template_node *s = node(p, slice ? TN_SLICE : TN_ITEM);
    if (p->err == ERR_OK) {
        s->a = v;
        s->b = part[0];
        s->c = part[1];
        s->d = part[2];
    }
    return s;
}

static struct template_node *call(struct parser *p, struct template_node *f)
{
    struct template_node *n = node(p, TN_CALL), *args = arguments(p);
    if (p->err == ERR_OK) {
        n->a = f;
        n->b = args;
    }
    return n;
}

static struct template_node *postfix(struct parser *p, struct template_node *v)
{
    while (p->err == ERR_OK) {
        if (take_op(p, '.')) {
            struct template_node *n = node(p, p->t->type == TT_INT ? TN_ITEM : TN_ATTR);
            if (p->t->type == TT_INT) {
                struct template_node *i = constant(p, template_int(p->t->i));
                advance(p);
                if (p->err == ERR_OK)
                    n->b = i;
            } else {
                const char *s = take_name(p, "a name is expected after \".\"");
                if (p->err == ERR_OK)
                    n->name = s;
            }
            if (p->err == ERR_OK)
                n->a = v;
            v = n;
        } else if (take_op(p, '[')) {
            v = subscript(p, v);
        } else if (take_op(p, '(')) {
            v = call(p, v);
        } else {
            break;
        }
    }
    return v;
}

static struct template_node *filter(struct parser *p, struct template_node *v)
{
    struct template_node *n = node(p, TN_FILTER);
    const char *name = take_name(p, "a filter's name is expected");
    template_fn *fn = template_filter_find(name, strlen(name));
    struct template_node *args = take_op(p, '(') ? arguments(p) : NULL;
    if (p->err == ERR_OK) {
        n->name = name;
        n->fn = fn;
        n->a = v;
        n->b = args;
    }
    return n;
}

static bool starts_operand(const struct parser *p)
{
    if (p->t->type == TT_STR || p->t->type == TT_INT || p->t->type == TT_FLOAT)
        return true;
    if (p->t->type == TT_OP)
        return p->t->op == '(' || p->t->op == '[' || p->t->op == '{';
    return p->t->type == TT_NAME && !word_is(p->t, "else") && !word_is(p->t, "or") && !word_is(p->t, "and") &&
           !word_is(p->t, "is") && !word_is(p->t, "if") && !word_is(p->t, "not") && !word_is(p->t, "in");
}

static struct template_node *test(struct parser *p, struct template_node *v)
{
    bool negate = take_word(p, "not");
    struct template_node *n = node(p, TN_TEST), *args = NULL;
    const char *name = take_name(p, "a test's name is expected");
    template_fn *fn = template_test_find(name, strlen(name));
    if (take_op(p, '('))
        args = arguments(p);
    else if (starts_operand(p))
        args = postfix(p, primary(p));
    if (p->err != ERR_OK)
        return n;
    n->name = name;
    n->fn = fn;
    n->a = v;
    n->b = args;
    if (!negate)
        return n;
    struct template_node *not = node(p, TN_NOT);
    if (p->err == ERR_OK)
        not ->a = n;
    return not ;
}

static struct template_node *filters_and_tests(struct parser *p, struct template_node *v)
{
    while (p->err == ERR_OK) {
        if (take_op(p, '|'))
            v = filter(p, v);
        else if (take_word(p, "is"))
            v = test(p, v);
        else if (take_op(p, '('))
            v = call(p, v);
        else
            break;
    }
    return v;
}

static struct template_node *one(struct parser *p, enum template_node_kind kind, struct template_node *a)
{
    struct template_node *n = node(p, kind);
    if (p->err == ERR_OK)
        n->a = a;
    return n;
}

static struct template_node *unary(struct parser *p, bool with_filter)
{
    struct template_node *n;
    if (!enter(p))
        return node(p, TN_CONST);
    if (take_op(p, '-'))
        n = one(p, TN_NEG, unary(p, false));
    else if (take_op(p, '+'))
        n = one(p, TN_POS, unary(p, false));
    else
        n = primary(p);
    n = postfix(p, n);
    if (with_filter)
        n = filters_and_tests(p, n);
    p->depth--;
    return n;
}

static struct template_node *binary(struct parser *p, int op, struct template_node *a, struct template_node *b)
{
    struct template_node *n = node(p, TN_BINARY);
    if (p->err == ERR_OK) {
        n->op = op;
        n->a = a;
        n->b = b;
    }
    return n;
}

static struct template_node *power(struct parser *p)
{
    struct template_node *n = unary(p, true);
    while (p->err == ERR_OK && take_op(p, OP_POW))
        n = binary(p, OP_POW, n, unary(p, true));
    return n;
}

static struct template_node *product(struct parser *p)
{
    struct template_node *n = power(p);
    while (p->err == ERR_OK && (op_is(p, '*') || op_is(p, '/') || op_is(p, OP_FLOORDIV) || op_is(p, '%'))) {
        int op = p->t->op;
        advance(p);
        n = binary(p, op, n, power(p));
    }
    return n;
}

static struct template_node *concat(struct parser *p)
{
    struct template_node *first = product(p);
    if (!op_is(p, '~') || p->err != ERR_OK)
        return first;
    struct template_node *n = one(p, TN_CONCAT, first), **link = &first->next;
    while (p->err == ERR_OK && take_op(p, '~')) {
        *link = product(p);
        if (p->err == ERR_OK)
            link = &(*link)->next;
    }
    return n;
}

static struct template_node *sum(struct parser *p)
{
    struct template_node *n = concat(p);
    while (p->err == ERR_OK && (op_is(p, '+') || op_is(p, '-'))) {
        int op = p->t->op;
        advance(p);
        n = binary(p, op, n, concat(p));
    }
    return n;
}

static int comparison(struct parser *p)
{
    static const int ops[] = {OP_EQ, OP_NE, OP_LE, OP_GE, '<', '>'};
    for (size_t i = 0; i < ARRAY_LEN(ops); i++)
        if (take_op(p, ops[i]))
            return ops[i];
    if (take_word(p, "in"))
        return TN_IN;
    if (word_is(p->t, "not") && word_is(p->t + 1, "in")) {
        advance(p);
        advance(p);
        return TN_NOT_IN;
    }
    return 0;
}

static struct template_node *compare(struct parser *p)
{
    struct template_node *left = sum(p), *n = NULL, **link = NULL;
    for (int op; p->err == ERR_OK && (op = comparison(p)) != 0;) {
        if (n == NULL) {
            n = one(p, TN_COMPARE, left);
            link = &n->b;
        }
        struct template_node *part = one(p, TN_COMPARE, sum(p));
        if (p->err != ERR_OK)
            break;
        part->op = op;
        *link = part;
        link = &part->next;
    }
    return n != NULL ? n : left;
}

static struct template_node *not_expr(struct parser *p)
{
    if (!word_is(p->t, "not"))
        return compare(p);
    if (!enter(p))
        return node(p, TN_CONST);
    advance(p);
    struct template_node *n = one(p, TN_NOT, not_expr(p));
    p->depth--;
    return n;
}

static struct template_node *logic(struct parser *p, bool or_level)
{
    struct template_node *n = or_level ? logic(p, false) : not_expr(p);
    while (p->err == ERR_OK && take_word(p, or_level ? "or" : "and")) {
        struct template_node *right = or_level ? logic(p, false) : not_expr(p),
                             *both = one(p, or_level ? TN_OR : TN_AND, n);
        if (p->err == ERR_OK)
            both->b = right;
        n = both;
    }
    return n;
}

static struct template_node *condexpr(struct parser *p, bool with_cond)
{
    struct template_node *n = logic(p, true);
    while (with_cond && p->err == ERR_OK && take_word(p, "if")) {
        struct template_node *cond = logic(p, true), *other = NULL;
        if (take_word(p, "else")) {
            if (!enter(p))
                return n;
            other = condexpr(p, true);
            p->depth--;
        }
        struct template_node *c = one(p, TN_COND, n);
        if (p->err == ERR_OK) {
            c->b = cond;
            c->c = other;
        }
        n = c;
    }
    return n;
}

static struct template_node *expression(struct parser *p)
{
    if (!enter(p))
        return node(p, TN_CONST);
    struct template_node *n = condexpr(p, true);
    p->depth--;
    return n;
}

/* ---- statements ---- */

static void end_tag(struct parser *p)
{
    if (p->t->type == TT_BLOCK_END)
        advance(p);
    else
        fail(p, "the end of the tag is expected");
}

/* The body up to one of `ends`, whose name is then the current token. */
static struct template_node *inner(struct parser *p, const char *const *ends)
{
    end_tag(p);
    return body(p, ends);
}

static struct template_node *inner_to(struct parser *p, const char *end)
{
    const char *const ends[] = {end, NULL};
    struct template_node *b = inner(p, ends);
    if (p->err == ERR_OK)
        advance(p);
    return b;
}

static struct template_node *if_statement(struct parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct template_node *n = node(p, TN_IF), *cond = tuple(p, true), *then = inner(p, ends), *other = NULL;
    if (take_word(p, "elif")) {
        if (!enter(p))
            return n;
        other = if_statement(p);
        p->depth--;
    } else if (take_word(p, "else")) {
        other = inner_to(p, "endif");
    } else {
        advance(p);
    }
    if (p->err == ERR_OK) {
        n->a = cond;
        n->b = then;
        n->c = other;
    }
    return n;
}

/* What is assigned to: names, a tuple of them, or an attribute of a namespace. */
static struct template_node *target(struct parser *p, bool with_attr)
{
    struct template_node *first = NULL, **link = &first, *n = NULL;
    bool several = false;
    do {
        if (first != NULL) {
            several = true;
            if (op_is(p, '=') || word_is(p->t, "in") || p->t->type == TT_BLOCK_END || op_is(p, ')'))
                break;
        }
        if (take_op(p, '(')) {
            if (!enter(p))
                return NULL;
            n = target(p, with_attr);
            p->depth--;
            expect_op(p, ')', "\")\" is expected");
        } else {
            n = node(p, TN_NAME);
            const char *s = take_name(p, "a name to assign to is expected");
            if (p->err == ERR_OK)
                n->name = s;
            if (with_attr && take_op(p, '.')) {
                struct template_node *attr = one(p, TN_ATTR, n);
                s = take_name(p, "a name is expected after \".\"");
                if (p->err == ERR_OK)
                    attr->name = s;
                n = attr;
            }
        }
        if (p->err != ERR_OK)
            return n;
        *link = n;
        link = &n->next;
    } while (take_op(p, ','));
    return several ? one(p, TN_TUPLE, first) : first;
}

static struct template_node *for_statement(struct parser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    struct template_node *n = node(p, TN_FOR), *var = target(p, false);
    if (!take_word(p, "in"))
        fail(p, "\"in\" is expected");
    struct template_node *iter = tuple(p, false), *cond = take_word(p, "if") ? expression(p) : NULL;
    bool recursive = take_word(p, "recursive");
    p->loops++;
    struct template_node *b = inner(p, ends);
    p->loops--;
    struct template_node *other = NULL;
    if (take_word(p, "else"))
        other = inner_to(p, "endfor");
    else
        advance(p);
    if (p->err == ERR_OK) {
        n->a = var;
        n->b = iter;
        n->c = other;
        n->d = cond;
        n->op = recursive;
        n->body = b;
    }
    return n;
}

static struct template_node *filter_chain(struct parser *p)
{
    struct template_node *f = NULL;
    do
        f = filter(p, f);
    while (p->err == ERR_OK && take_op(p, '|'));
    return f;
}

static struct template_node *set_statement(struct parser *p)
{
    struct template_node *n = node(p, TN_SET), *var = target(p, true), *value = NULL, *b = NULL;
    bool assign = take_op(p, '=');
    if (assign) {
        value = tuple(p, true);
    } else {
        if (take_op(p, '|'))
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
static struct template_node *parameters(struct parser *p)
{
    struct template_node *first = NULL, **link = &first;
    expect_op(p, '(', "\"(\" is expected");
    while (p->err == ERR_OK && !op_is(p, ')')) {
        struct template_node *n = node(p, TN_NAME);
        const char *s = take_name(p, "a parameter's name is expected");
        struct template_node *def = take_op(p, '=') ? expression(p) : NULL;
        if (p->err != ERR_OK)
            break;
        n->name = s;
        n->a = def;
        *link = n;
        link = &n->next;
        if (!take_op(p, ',') && !op_is(p, ')'))
            fail(p, "\",\" or \")\" is expected");
    }
    expect_op(p, ')', "\")\" is expected");
    return first;
}

static struct template_node *macro_statement(struct parser *p)
{
    struct template_node *n = node(p, TN_MACRO);
    const char *name = take_name(p, "a macro's name is expected");
    struct template_node *params = parameters(p);
    uint32_t loops = p->loops;
    int uses = p->uses;
    p->loops = 0;
    p->uses = 0;
    struct template_node *b = inner_to(p, "endmacro");
    p->loops = loops;
    if (p->err == ERR_OK) {
        n->op = p->uses;
        n->name = name;
        n->a = params;
        n->body = b;
    }
    p->uses = uses;
    return n;
}

static struct template_node *call_statement(struct parser *p)
{
    struct template_node *n = node(p, TN_CALLBLOCK), *params = op_is(p, '(') ? parameters(p) : NULL, *c = expression(p);
    if (p->err == ERR_OK && c->kind != TN_CALL)
        fail(p, "a call is expected");
    uint32_t loops = p->loops;
    p->loops = 0;
    struct template_node *b = inner_to(p, "endcall");
    p->loops = loops;
    if (p->err == ERR_OK) {
        n->name = intern(p, "caller", 6);
        n->a = params;
        n->b = c;
        n->body = b;
    }
    return n;
}

static struct template_node *with_statement(struct parser *p)
{
    struct template_node *n = node(p, TN_WITH), *first = NULL, **link = &first;
    while (p->err == ERR_OK && p->t->type != TT_BLOCK_END) {
        struct template_node *s = node(p, TN_SET), *var = target(p, false);
        expect_op(p, '=', "\"=\" is expected");
        struct template_node *v = expression(p);
        if (p->err != ERR_OK)
            break;
        s->a = var;
        s->b = v;
        *link = s;
        link = &s->next;
        if (!take_op(p, ','))
            break;
    }
    struct template_node *b = inner_to(p, "endwith");
    if (p->err == ERR_OK) {
        n->a = first;
        n->body = b;
    }
    return n;
}

static struct template_node *simple_block(struct parser *p, enum template_node_kind kind, const char *end)
{
    struct template_node *n = node(p, kind), *f = kind == TN_FILTERBLOCK ? filter_chain(p) : NULL,
                         *b = inner_to(p, end);
    if (p->err == ERR_OK) {
        n->b = f;
        n->body = b;
    }
    return n;
}

static struct template_node *loop_control(struct parser *p, enum template_node_kind kind)
{
    if (p->loops == 0)
        fail(p, "break and continue belong into a loop");
    return node(p, kind);
}

static struct template_node *statement(struct parser *p)
{
    if (take_word(p, "if"))
        return if_statement(p);
    if (take_word(p, "for"))
        return for_statement(p);
    if (take_word(p, "set"))
        return set_statement(p);
    if (take_word(p, "macro"))
        return macro_statement(p);
    if (take_word(p, "call"))
        return call_statement(p);
    if (take_word(p, "with"))
        return with_statement(p);
    if (take_word(p, "filter"))
        return simple_block(p, TN_FILTERBLOCK, "endfilter");
    if (take_word(p, "generation"))
        return simple_block(p, TN_SCOPE, "endgeneration");
    if (take_word(p, "break"))
        return loop_control(p, TN_BREAK);
    if (take_word(p, "continue"))
        return loop_control(p, TN_CONTINUE);
    fail(p, "this tag is not known");
    return node(p, TN_TEXT);
}

/* Statements up to a tag that starts with one of `ends` (that name is then current), or to the end of the template when
 * ends is NULL. */
static struct template_node *body(struct parser *p, const char *const *ends)
{
    struct template_node *first = NULL, **link = &first, *n;
    if (!enter(p))
        return NULL;
    while (p->err == ERR_OK) {
        if (p->t->type == TT_EOF) {
            if (ends != NULL)
                fail(p, "a block is not closed");
            break;
        }
        if (p->t->type == TT_TEXT) {
            n = node(p, TN_TEXT);
            if (p->err == ERR_OK)
                n->val = template_str(p->t->s, p->t->len);
            advance(p);
        } else if (p->t->type == TT_PRINT) {
            advance(p);
            n = one(p, TN_PRINT, tuple(p, true));
            if (p->t->type == TT_PRINT_END)
                advance(p);
            else
                fail(p, "the end of the expression is expected");
        } else {
            advance(p); /* TT_BLOCK: the lexer puts nothing else here */
            bool end = false;
            for (size_t i = 0; ends != NULL && ends[i] != NULL && !end; i++)
                end = word_is(p->t, ends[i]);
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

/* Unknown filters and tests outside of branches. Past NESTING_MAX levels it is left to the run. */
static enum err check_names(const struct template_node *n, bool branch, int depth)
{
    if (depth > NESTING_MAX * 2)
        return ERR_OK;
    for (; n != NULL; n = n->next) {
        bool inside = n->kind == TN_FOR || n->kind == TN_MACRO || n->kind == TN_CALLBLOCK || n->kind == TN_SETBLOCK ||
                              n->kind == TN_WITH || n->kind == TN_FILTERBLOCK || n->kind == TN_SCOPE
                          ? false
                          : branch || n->kind == TN_IF || n->kind == TN_COND;
        if ((n->kind == TN_FILTER || n->kind == TN_TEST) && n->fn == NULL && !branch)
            return err_set(ERR_INVALID, "chat template, line %u: there is no %s '%s'", n->line,
                           n->kind == TN_FILTER ? "filter" : "test", n->name);
        const struct template_node *const parts[] = {n->a, n->b, n->c, n->d, n->body};
        for (size_t i = 0; i < ARRAY_LEN(parts); i++)
            TRY(check_names(parts[i], inside, depth + 1));
    }
    return ERR_OK;
}

enum err template_parser_run(struct arena *a, const struct template_token *tok, size_t n, struct template_node **out)
{
    struct parser p = {.arena = a, .t = tok, .end = tok + n - 1};
    *out = body(&p, NULL);
    return p.err != ERR_OK ? p.err : check_names(*out, false, 0);
}
