/* The parsed template: nodes in the template's arena, immutable once made. Private to the chat template.
 *
 * What a..d, next, name and val mean is said beside each kind. Lists of nodes are chained by next. Names are places: how
 * many frames up, and which slot there (template_scope.c). */
#ifndef TEXT_TEMPLATE_AST_H
#define TEXT_TEMPLATE_AST_H

#include "text/template_lexer.h"
#include "text/template_value.h"

enum template_node_kind {
    /* expressions */
    TN_CONST,    /* val */
    TN_BIG,      /* val: digits; op: their base */
    TN_NAME,     /* name, hops, slot */
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
    TN_FOR,         /* for a in b [if d]: body, else: c; op: TN_RECURSIVE, TN_USES_LOOP; frames of body, else and test */
    TN_SET,         /* a = b */
    TN_SETBLOCK,    /* a = body, through the filters b */
    TN_MACRO,       /* name, slot, a: parameters (TN_NAME, a: its default), body; op: TN_USES_ flags */
    TN_CALLBLOCK,   /* b: the call, a: parameters of the caller, body; op as of a macro */
    TN_FILTERBLOCK, /* b: filters around body */
    TN_WITH,        /* a: TN_SET chain, body */
    TN_GENERATION,  /* body; op as of a macro, which it is */
    TN_BREAK,
    TN_CONTINUE,
};
enum { TN_USES_VARARGS = 1, TN_USES_KWARGS = 2, TN_USES_CALLER = 4, TN_USES_LOOP = 8, TN_RECURSIVE = 16 };
enum { TN_IN = 200, TN_NOT_IN }; /* ops of TN_COMPARE beside the lexer's */
enum { TN_FRAME_BODY, TN_FRAME_ELSE, TN_FRAME_TEST, TN_FRAMES };

/* A scope's variables, and where those come from that are not set in it first. */
enum template_load_how { TL_PARAM, TL_UNDEFINED, TL_RESOLVE /* from the context */, TL_ALIAS /* from a frame around it */ };
struct template_load {
    const char *name;
    uint16_t slot, hops, from;
    uint8_t how;
};
struct template_frame {
    struct template_load *loads;
    uint32_t n_loads, n_slots;
    uint16_t loop, caller, kwargs, varargs; /* slots of those that the frame has, else TEMPLATE_NO_SLOT */
};
enum { TEMPLATE_NO_SLOT = UINT16_MAX };

struct template_node {
    uint8_t kind;
    int op;
    uint32_t line;
    uint16_t hops, slot;
    const char *name; /* interned: equal names are one pointer; NUL-terminated */
    struct template_node *a, *b, *c, *d, *body, *next;
    struct template_frame *frame[TN_FRAMES];
    struct template_val val;
    const struct template_def *def; /* of filters and tests */
};

struct template_scope {
    struct template_scope *up;
    struct template_val v[];
};

/* ERR_INVALID with line and column; ERR_TOO_BIG. *out: the statements. */
enum err template_parser_run(struct arena *a, const struct template_token *tok, size_t n, struct template_node **out);
/* Gives each name its place and each scope its frame; *root: the outermost. ERR_INVALID, ERR_TOO_BIG. */
enum err template_scope_run(struct arena *a, struct template_node *body, struct template_frame **root);

/* Filters and tests by name; NULL when unknown (template_filters.c). */
const struct template_def *template_filter_find(const char *name, size_t len);
const struct template_def *template_test_find(const char *name, size_t len);
const struct template_def *template_def_find(const struct template_def *table, size_t n, const char *name, size_t len);

/* An attribute of a str, dict, list, number ... as Python has it (template_methods.c); UNDEFINED kind without one. */
struct template_val template_value_attr(struct template_run *r, struct template_val self, const char *name, size_t len);
/* range, namespace, dict, raise_exception, strftime_now ... (template_globals.c); MISSING kind when unknown. */
struct template_val template_global_find(struct template_run *r, const char *name, size_t len);
/* A range keeps its bounds behind its items. */
void template_range_bounds(struct template_run *r, struct template_val range, int64_t first, int64_t end, int64_t step);

/* template_ops.c */
struct template_val template_binary(struct template_run *r, int op, struct template_val a, struct template_val b);
struct template_val template_attr(struct template_run *r, struct template_val v, const char *name, size_t len);
struct template_val template_item(struct template_run *r, struct template_val v, struct template_val key);
struct template_val template_slice(struct template_run *r, struct template_val v, struct template_val from, struct template_val to,
                                   struct template_val step);
/* template_format.c: Python's % on strings; str.format, of format_map when map is a dict. */
struct template_val template_percent(struct template_run *r, struct template_val fmt, struct template_val arg);
struct template_val template_str_format(struct template_run *r, struct template_val s, const struct template_args *a, struct template_val map);

/* template_eval.c */
struct template_val template_eval(struct template_run *r, const struct template_node *n);
bool template_eval_args(struct template_run *r, const struct template_node *n, struct template_args *a, uint32_t spare);
/* Applies a filter or test node to v; a chain of filters whose innermost has no operand. */
struct template_val template_apply(struct template_run *r, const struct template_node *n, struct template_val v);
struct template_val template_filter_chain(struct template_run *r, const struct template_node *f, struct template_val v);

/* template_run.c */
void template_run_body(struct template_run *r, const struct template_node *body, const struct template_frame *root);
struct template_val template_call_macro(struct template_run *r, const struct template_macro *m, const struct template_args *a);
struct template_val template_call_loop(struct template_run *r, struct template_loop *l, const struct template_args *a);
struct template_val template_loop_attr(struct template_run *r, struct template_loop *l, const char *name, size_t len);
struct template_val template_macro_attr(struct template_run *r, const struct template_macro *m, const char *name, size_t len);
void template_repr_object(struct template_text *t, struct template_val v); /* macros and loops */

#endif
