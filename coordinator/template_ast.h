/* The parsed template: nodes in the template's arena, immutable once made. Private to the chat template.
 *
 * What a..c, next, name and val mean is said beside each kind. Lists of nodes are chained by next. */
#ifndef COORDINATOR_TEMPLATE_AST_H
#define COORDINATOR_TEMPLATE_AST_H

#include "coordinator/template_lexer.h"
#include "coordinator/template_value.h"

enum template_node_kind {
    /* expressions */
    TN_CONST,    /* val */
    TN_NAME,     /* name */
    TN_LIST,     /* a: items */
    TN_TUPLE,    /* a: items */
    TN_DICT,     /* a: keys and values in turn */
    TN_ATTR,     /* a . name */
    TN_ITEM,     /* a [ b ] */
    TN_SLICE,    /* a [ b : c : d ], each of the three may be NULL */
    TN_CALL,     /* a ( b ); arguments: TN_KWARG or expressions */
    TN_KWARG,    /* name = a */
    TN_STAR,     /* *a */
    TN_STARSTAR, /* **a */
    TN_FILTER,   /* a | filter(b); a NULL in a filter block */
    TN_TEST,     /* a is test(b) */
    TN_NOT,
    TN_NEG,
    TN_POS,
    TN_BINARY,  /* a op b */
    TN_COMPARE, /* a, then the chain b: TN_COMPARE nodes of their own with op and a */
    TN_CONCAT,  /* a: parts */
    TN_AND,
    TN_OR,
    TN_COND, /* a if b else c (may be NULL) */
    /* statements */
    TN_TEXT,        /* val */
    TN_PRINT,       /* a */
    TN_IF,          /* if a: b else: c */
    TN_FOR,         /* for a in b [if d]: body, else: c; op: recursive */
    TN_SET,         /* a = b */
    TN_SETBLOCK,    /* a = body, through the filters b */
    TN_MACRO,       /* name, a: parameters (TN_KWARG with a default, or TN_NAME), body; op: TN_USES_ flags */
    TN_CALLBLOCK,   /* b: the call, a: parameters of the caller, body */
    TN_FILTERBLOCK, /* b: filters around body */
    TN_WITH,        /* a: TN_SET chain, body */
    TN_SCOPE,       /* body */
    TN_BREAK,
    TN_CONTINUE,
};
enum { TN_USES_VARARGS = 1, TN_USES_KWARGS = 2, TN_USES_CALLER = 4 };
enum { TN_IN = 200, TN_NOT_IN }; /* ops of TN_COMPARE beside the lexer's */

struct template_node {
    uint8_t kind;
    int op;
    uint32_t line;
    const char *name; /* interned: equal names are one pointer; NUL-terminated */
    struct template_node *a, *b, *c, *d, *body, *next;
    struct template_val val;
    template_fn *fn; /* of filters and tests */
};

struct template_name {
    const char *s;
    size_t len;
    struct template_name *next;
};

/* ERR_INVALID with line and column; ERR_TOO_BIG. *out: the statements. */
enum err template_parser_run(struct arena *a, const struct template_token *tok, size_t n, struct template_node **out);

/* Filters and tests by name; NULL when unknown (template_filters.c). */
template_fn *template_filter_find(const char *name, size_t len);
template_fn *template_test_find(const char *name, size_t len);

/* Methods of strings, dicts, lists (template_methods.c): the function, or NULL. *forbidden: one that would change the
 * value, which the sandbox refuses. */
template_fn *template_method_find(struct template_val self, const char *name, size_t len, bool *forbidden);
/* range, namespace, dict, raise_exception, strftime_now ...; UNDEFINED kind when unknown. */
struct template_val template_global_find(const char *name, size_t len);

/* template_ops.c */
struct template_val template_binary(struct template_run *r, int op, struct template_val a, struct template_val b);
struct template_val template_attr(struct template_run *r, struct template_val v, const char *name, size_t len);
struct template_val template_item(struct template_run *r, struct template_val v, struct template_val key);
struct template_val template_slice(struct template_run *r, struct template_val v, struct template_val from,
                                   struct template_val to, struct template_val step);
/* printf-style formatting of Python's % on strings. */
struct template_val template_percent(struct template_run *r, struct template_val fmt, struct template_val arg);

/* template_eval.c */
void template_run_body(struct template_run *r, const struct template_node *body);
struct template_val template_call(struct template_run *r, struct template_val fn, const struct template_args *a);
struct template_val template_loop_attr(struct template_run *r, struct template_loop *l, const char *name, size_t len);

#endif
