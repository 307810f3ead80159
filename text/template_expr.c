/* Expressions of the template language: recursive descent with the precedences of jinja2. Filters and tests are looked up
 * here, so that a template that names an unknown one is refused when the model is loaded (template_parser.c). */
#include "base/check.h"
#include "text/template_parser.h"

#include <string.h>

static struct template_node *condexpr(struct template_parser *p, bool with_cond);
static struct template_node *unary(struct template_parser *p, bool with_filter);

static struct template_node *constant(struct template_parser *p, struct template_val v)
{
    struct template_node *n = template_parser_node(p, TN_CONST);
    if (p->err == ERR_OK)
        n->val = v;
    return n;
}

static struct template_node *name_or_constant(struct template_parser *p)
{
    static const struct {
        const char *name;
        uint8_t kind;
        bool b;
    } words[] = {{"true", TV_BOOL, true},   {"True", TV_BOOL, true},  {"false", TV_BOOL, false},
                 {"False", TV_BOOL, false}, {"none", TV_NONE, false}, {"None", TV_NONE, false}};
    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        if (template_parser_take_word(p, words[i].name))
            return constant(p, words[i].kind == TV_BOOL ? template_bool(words[i].b) : template_none());
    struct template_node *n = template_parser_node(p, TN_NAME);
    const char *s = template_parser_take_name(p, "a name is expected");
    if (p->err == ERR_OK)
        n->name = s;
    return n;
}

/* Adjacent strings are one. */
static struct template_node *strings(struct template_parser *p)
{
    size_t len = 0, at = 0;
    for (const struct template_token *t = p->t; t->type == TT_STR; t++)
        len += t->len;
    char *s = arena_alloc(p->arena, len + 1);
    if (s == NULL) {
        template_parser_fail(p, "too much text");
        return template_parser_node(p, TN_CONST);
    }
    for (; p->t->type == TT_STR; template_parser_advance(p)) {
        memcpy(s + at, p->t->s, p->t->len);
        at += p->t->len;
    }
    return constant(p, template_str(s, len));
}

/* Items up to the closing bracket; pairs: "k: v" for dicts. */
static struct template_node *items(struct template_parser *p, int close, bool pairs)
{
    struct template_node *first = NULL, **link = &first;
    while (p->err == ERR_OK && !template_parser_op_is(p, close)) {
        *link = template_expr(p);
        if (p->err != ERR_OK)
            break;
        link = &(*link)->next;
        if (pairs) {
            template_parser_expect_op(p, ':', "\":\" is expected in a dict");
            *link = template_expr(p);
            if (p->err != ERR_OK)
                break;
            link = &(*link)->next;
        }
        if (!template_parser_take_op(p, ',') && !template_parser_op_is(p, close))
            template_parser_fail(p, "\",\" or a closing bracket is expected");
    }
    template_parser_expect_op(p, close, "a closing bracket is expected");
    return first;
}

struct template_node *template_expr_tuple(struct template_parser *p, bool with_cond, bool parentheses)
{
    struct template_node *first = NULL, **link = &first;
    bool several = false;
    while (p->err == ERR_OK) {
        if (p->t->type == TT_PRINT_END || p->t->type == TT_BLOCK_END || template_parser_op_is(p, ')') ||
            (!with_cond && template_parser_word_is(p->t, "recursive")))
            break;
        *link = condexpr(p, with_cond);
        if (p->err != ERR_OK)
            break;
        link = &(*link)->next;
        if (!template_parser_take_op(p, ','))
            break;
        several = true;
    }
    if (!several && first != NULL)
        return first;
    if (!several && !parentheses)
        template_parser_fail(p, "an expression is expected");
    return template_parser_one(p, TN_TUPLE, first);
}

static struct template_node *number(struct template_parser *p)
{
    const struct template_token *t = p->t;
    struct template_node *n = template_parser_node(p, t->type == TT_INT && t->i < 0 ? TN_BIG : TN_CONST);
    template_parser_advance(p);
    if (p->err == ERR_OK) {
        n->op = t->op;
        n->val = t->type == TT_FLOAT ? template_float(t->f) : t->i < 0 ? template_str(t->s, t->len) : template_int(t->i);
    }
    return n;
}

static struct template_node *primary(struct template_parser *p)
{
    struct template_node *n;
    if (!template_parser_enter(p))
        return template_parser_node(p, TN_CONST);
    if (p->t->type == TT_NAME) {
        n = name_or_constant(p);
    } else if (p->t->type == TT_STR) {
        n = strings(p);
    } else if (p->t->type == TT_INT || p->t->type == TT_FLOAT) {
        n = number(p);
    } else if (template_parser_take_op(p, '(')) {
        n = template_expr_tuple(p, true, true);
        template_parser_expect_op(p, ')', "\")\" is expected");
    } else if (template_parser_op_is(p, '[') || template_parser_op_is(p, '{')) {
        bool list = template_parser_op_is(p, '[');
        template_parser_advance(p);
        n = template_parser_node(p, list ? TN_LIST : TN_DICT);
        struct template_node *first = items(p, list ? ']' : '}', !list);
        if (p->err == ERR_OK)
            n->a = first;
    } else {
        template_parser_fail(p, "an expression is expected");
        n = template_parser_node(p, TN_CONST);
    }
    p->depth--;
    return n;
}

/* The rules of Python for what may follow what; `seen`: one bit each for *, ** and names. */
static struct template_node *argument(struct template_parser *p, int *seen)
{
    enum { STAR = 1, STARSTAR = 2, NAMED = 4 };
    struct template_node *n = NULL;
    int not_after = STAR | STARSTAR | NAMED, is = 0;
    if (template_parser_op_is(p, '*') || template_parser_op_is(p, OP_POW)) {
        is = template_parser_op_is(p, '*') ? STAR : STARSTAR;
        not_after = is == STAR ? STAR | STARSTAR : STARSTAR;
        n = template_parser_node(p, is == STAR ? TN_STAR : TN_STARSTAR);
        template_parser_advance(p);
    } else if (p->t->type == TT_NAME && p->t[1].type == TT_OP && p->t[1].op == '=') {
        is = NAMED;
        not_after = STARSTAR;
        n = template_parser_node(p, TN_KWARG);
        const char *s = template_parser_take_name(p, "a name is expected");
        template_parser_advance(p);
        if (p->err == ERR_OK)
            n->name = s;
    }
    if (*seen & not_after)
        template_parser_fail(p, "this argument cannot stand behind the one before");
    *seen |= is;
    struct template_node *e = template_expr(p);
    if (n == NULL)
        return e;
    if (p->err == ERR_OK)
        n->a = e;
    return n;
}

/* After "(": arguments up to ")". */
static struct template_node *arguments(struct template_parser *p)
{
    struct template_node *first = NULL, **link = &first;
    int seen = 0;
    while (p->err == ERR_OK && !template_parser_op_is(p, ')')) {
        struct template_node *n = argument(p, &seen);
        if (p->err != ERR_OK)
            break;
        for (const struct template_node *x = first; n->kind == TN_KWARG && x != NULL; x = x->next)
            if (x->kind == TN_KWARG && x->name == n->name)
                template_parser_fail(p, "an argument is named twice");
        *link = n;
        link = &n->next;
        if (!template_parser_take_op(p, ',') && !template_parser_op_is(p, ')'))
            template_parser_fail(p, "\",\" or \")\" is expected");
    }
    template_parser_expect_op(p, ')', "\")\" is expected");
    return first;
}

/* "i", "a:b", "a:b:c" between brackets; *slice says which. */
static struct template_node *index_or_slice(struct template_parser *p, bool *slice)
{
    struct template_node *part[3] = {NULL, NULL, NULL};
    *slice = false;
    for (int n = 0; p->err == ERR_OK; n++) {
        if (!template_parser_op_is(p, ':') && !template_parser_op_is(p, ']') && !template_parser_op_is(p, ','))
            part[n] = template_expr(p);
        if (n == 2 || !template_parser_op_is(p, ':'))
            break;
        template_parser_advance(p);
        *slice = true;
    }
    if (!*slice)
        return part[0];
    struct template_node *s = template_parser_node(p, TN_SLICE);
    if (p->err == ERR_OK) {
        s->b = part[0];
        s->c = part[1];
        s->d = part[2];
    }
    return s;
}

static struct template_node *subscript(struct template_parser *p, struct template_node *v)
{
    struct template_node *first = NULL, **link = &first;
    bool slice = false, any_slice = false;
    uint32_t n = 0;
    while (p->err == ERR_OK && !template_parser_op_is(p, ']')) {
        struct template_node *x = index_or_slice(p, &slice);
        any_slice = any_slice || slice;
        if (p->err == ERR_OK && x == NULL)
            template_parser_fail(p, "an index is expected");
        if (p->err != ERR_OK)
            break;
        *link = x;
        link = &x->next;
        n++;
        if (!template_parser_take_op(p, ','))
            break;
    }
    template_parser_expect_op(p, ']', "\"]\" is expected");
    if (n == 1 && any_slice && p->err == ERR_OK) {
        first->a = v;
        return first;
    }
    if (any_slice)
        template_parser_fail(p, "several slices at once are not supported");
    struct template_node *s = template_parser_one(p, TN_ITEM, v);
    if (n != 1)
        first = template_parser_one(p, TN_TUPLE, first);
    if (p->err == ERR_OK)
        s->b = first;
    return s;
}

static struct template_node *call(struct template_parser *p, struct template_node *f)
{
    struct template_node *n = template_parser_node(p, TN_CALL), *args = arguments(p);
    if (p->err == ERR_OK) {
        n->a = f;
        n->b = args;
    }
    return n;
}

static struct template_node *postfix(struct template_parser *p, struct template_node *v)
{
    while (p->err == ERR_OK) {
        if (template_parser_take_op(p, '.')) {
            struct template_node *n = template_parser_node(p, p->t->type == TT_INT ? TN_ITEM : TN_ATTR);
            if (p->t->type == TT_INT) {
                struct template_node *i = number(p);
                if (p->err == ERR_OK)
                    n->b = i;
            } else {
                const char *s = template_parser_take_name(p, "a name is expected after \".\"");
                if (p->err == ERR_OK)
                    n->name = s;
            }
            if (p->err == ERR_OK)
                n->a = v;
            v = n;
        } else if (template_parser_take_op(p, '[')) {
            v = subscript(p, v);
        } else if (template_parser_take_op(p, '(')) {
            v = call(p, v);
        } else {
            break;
        }
    }
    return v;
}

struct template_node *template_expr_filter(struct template_parser *p, struct template_node *v)
{
    struct template_node *n = template_parser_node(p, TN_FILTER);
    const char *name = template_parser_take_name(p, "a filter's name is expected");
    const struct template_def *def = template_parser_op_is(p, '.') ? NULL : template_filter_find(name, strlen(name));
    while (template_parser_take_op(p, '.'))
        template_parser_take_name(p, "a name is expected after \".\"");
    struct template_node *args = template_parser_take_op(p, '(') ? arguments(p) : NULL;
    if (p->err == ERR_OK) {
        n->name = name;
        n->def = def;
        n->a = v;
        n->b = args;
    }
    return n;
}

static bool starts_operand(const struct template_parser *p)
{
    if (p->t->type == TT_STR || p->t->type == TT_INT || p->t->type == TT_FLOAT)
        return true;
    if (p->t->type == TT_OP)
        return p->t->op == '(' || p->t->op == '[' || p->t->op == '{';
    return p->t->type == TT_NAME && !template_parser_word_is(p->t, "else") && !template_parser_word_is(p->t, "or") &&
           !template_parser_word_is(p->t, "and");
}

static struct template_node *test(struct template_parser *p, struct template_node *v)
{
    bool negate = template_parser_take_word(p, "not");
    struct template_node *n = template_parser_node(p, TN_TEST), *args = NULL;
    const char *name = template_parser_take_name(p, "a test's name is expected");
    const struct template_def *def = template_parser_op_is(p, '.') ? NULL : template_test_find(name, strlen(name));
    while (template_parser_take_op(p, '.')) /* no test has a point in its name */
        template_parser_take_name(p, "a name is expected after \".\"");
    if (template_parser_take_op(p, '('))
        args = arguments(p);
    else if (template_parser_word_is(p->t, "is"))
        template_parser_fail(p, "tests cannot be chained with \"is\"");
    else if (starts_operand(p))
        args = postfix(p, primary(p));
    if (p->err != ERR_OK)
        return n;
    n->name = name;
    n->def = def;
    n->a = v;
    n->b = args;
    if (!negate)
        return n;
    return template_parser_one(p, TN_NOT, n);
}

static struct template_node *filters_and_tests(struct template_parser *p, struct template_node *v)
{
    while (p->err == ERR_OK) {
        if (template_parser_take_op(p, '|'))
            v = template_expr_filter(p, v);
        else if (template_parser_take_word(p, "is"))
            v = test(p, v);
        else if (template_parser_take_op(p, '('))
            v = call(p, v);
        else
            break;
    }
    return v;
}

static struct template_node *unary(struct template_parser *p, bool with_filter)
{
    struct template_node *n;
    if (!template_parser_enter(p))
        return template_parser_node(p, TN_CONST);
    if (template_parser_take_op(p, '-'))
        n = template_parser_one(p, TN_NEG, unary(p, false));
    else if (template_parser_take_op(p, '+'))
        n = template_parser_one(p, TN_POS, unary(p, false));
    else
        n = primary(p);
    n = postfix(p, n);
    if (with_filter)
        n = filters_and_tests(p, n);
    p->depth--;
    return n;
}

static struct template_node *binary(struct template_parser *p, int op, struct template_node *a, struct template_node *b)
{
    struct template_node *n = template_parser_node(p, TN_BINARY);
    if (p->err == ERR_OK) {
        n->op = op;
        n->a = a;
        n->b = b;
    }
    return n;
}

/* Made of constants only, so that jinja2 computes it before the template runs. */
static bool constant_only(const struct template_node *n, int depth)
{
    for (; n != NULL; n = n->next)
        if (depth > 20 || n->kind == TN_NAME || n->kind == TN_CALL || n->kind == TN_ATTR || !constant_only(n->a, depth + 1) ||
            !constant_only(n->b, depth + 1) || !constant_only(n->c, depth + 1) || !constant_only(n->d, depth + 1))
            return false;
    return true;
}

static struct template_node *power(struct template_parser *p)
{
    struct template_node *n = unary(p, true);
    while (p->err == ERR_OK && template_parser_take_op(p, OP_POW)) {
        struct template_node *right = unary(p, true);
        /* jinja2 writes the constant -2 of `-2 ** x` into Python as it is, where it means -(2 ** x) */
        bool sign = p->err == ERR_OK && n->kind == TN_NEG && (n->a->kind == TN_CONST || n->a->kind == TN_BIG) && !constant_only(right, 0);
        n = binary(p, OP_POW, sign ? n->a : n, right);
        if (sign)
            n = template_parser_one(p, TN_NEG, n);
    }
    return n;
}

static struct template_node *product(struct template_parser *p)
{
    struct template_node *n = power(p);
    while (p->err == ERR_OK && (template_parser_op_is(p, '*') || template_parser_op_is(p, '/') || template_parser_op_is(p, OP_FLOORDIV) || template_parser_op_is(p, '%'))) {
        int op = p->t->op;
        template_parser_advance(p);
        n = binary(p, op, n, power(p));
    }
    return n;
}

static struct template_node *concat(struct template_parser *p)
{
    struct template_node *first = product(p);
    if (!template_parser_op_is(p, '~') || p->err != ERR_OK)
        return first;
    struct template_node *n = template_parser_one(p, TN_CONCAT, first), **link = &first->next;
    while (p->err == ERR_OK && template_parser_take_op(p, '~')) {
        *link = product(p);
        if (p->err == ERR_OK)
            link = &(*link)->next;
    }
    return n;
}

static struct template_node *sum(struct template_parser *p)
{
    struct template_node *n = concat(p);
    while (p->err == ERR_OK && (template_parser_op_is(p, '+') || template_parser_op_is(p, '-'))) {
        int op = p->t->op;
        template_parser_advance(p);
        n = binary(p, op, n, concat(p));
    }
    return n;
}

static int comparison(struct template_parser *p)
{
    static const int ops[] = {OP_EQ, OP_NE, OP_LE, OP_GE, '<', '>'};
    for (size_t i = 0; i < ARRAY_LEN(ops); i++)
        if (template_parser_take_op(p, ops[i]))
            return ops[i];
    if (template_parser_take_word(p, "in"))
        return TN_IN;
    if (template_parser_word_is(p->t, "not") && template_parser_word_is(p->t + 1, "in")) {
        template_parser_advance(p);
        template_parser_advance(p);
        return TN_NOT_IN;
    }
    return 0;
}

static struct template_node *compare(struct template_parser *p)
{
    struct template_node *left = sum(p), *n = NULL, **link = NULL;
    for (int op; p->err == ERR_OK && (op = comparison(p)) != 0;) {
        if (n == NULL) {
            n = template_parser_one(p, TN_COMPARE, left);
            link = &n->b;
        }
        struct template_node *part = template_parser_one(p, TN_COMPARE, sum(p));
        if (p->err != ERR_OK)
            break;
        part->op = op;
        *link = part;
        link = &part->next;
    }
    return n != NULL ? n : left;
}

static struct template_node *not_expr(struct template_parser *p)
{
    if (!template_parser_word_is(p->t, "not"))
        return compare(p);
    if (!template_parser_enter(p))
        return template_parser_node(p, TN_CONST);
    template_parser_advance(p);
    struct template_node *n = template_parser_one(p, TN_NOT, not_expr(p));
    p->depth--;
    return n;
}

static struct template_node *logic(struct template_parser *p, bool or_level)
{
    struct template_node *n = or_level ? logic(p, false) : not_expr(p);
    while (p->err == ERR_OK && template_parser_take_word(p, or_level ? "or" : "and")) {
        struct template_node *right = or_level ? logic(p, false) : not_expr(p),
                             *both = template_parser_one(p, or_level ? TN_OR : TN_AND, n);
        if (p->err == ERR_OK)
            both->b = right;
        n = both;
    }
    return n;
}

static struct template_node *condexpr(struct template_parser *p, bool with_cond)
{
    struct template_node *n = logic(p, true);
    while (with_cond && p->err == ERR_OK && template_parser_take_word(p, "if")) {
        struct template_node *cond = logic(p, true), *other = NULL;
        if (template_parser_take_word(p, "else")) {
            if (!template_parser_enter(p))
                return n;
            other = condexpr(p, true);
            p->depth--;
        }
        struct template_node *c = template_parser_one(p, TN_COND, n);
        if (p->err == ERR_OK) {
            c->b = cond;
            c->c = other;
        }
        n = c;
    }
    return n;
}

struct template_node *template_expr(struct template_parser *p)
{
    if (!template_parser_enter(p))
        return template_parser_node(p, TN_CONST);
    struct template_node *n = condexpr(p, true);
    p->depth--;
    return n;
}

