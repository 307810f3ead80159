/* What the two halves of the parser share: template_parser.c has the statements, template_expr.c the expressions. Private
 * to them. */
#ifndef TEXT_TEMPLATE_PARSER_H
#define TEXT_TEMPLATE_PARSER_H

#include "text/template_ast.h"

enum { TEMPLATE_PARSER_NESTING_MAX = 150, TEMPLATE_PARSER_BUCKETS = 64 };

struct template_name {
    const char *s;
    size_t len;
    struct template_name *next;
};
struct template_parser {
    struct arena *arena;
    const struct template_token *t; /* the current one; the last is TT_EOF */
    const struct template_token *end;
    struct template_name *names[TEMPLATE_PARSER_BUCKETS];
    uint32_t depth, loops;
    enum err err;
};

/* The first failure counts; afterwards nodes are still given, and thrown away. */
void template_parser_fail(struct template_parser *p, const char *what);
void template_parser_advance(struct template_parser *p);
struct template_node *template_parser_node(struct template_parser *p, enum template_node_kind kind);
struct template_node *template_parser_one(struct template_parser *p, enum template_node_kind kind, struct template_node *a);
bool template_parser_op_is(const struct template_parser *p, int op);
bool template_parser_take_op(struct template_parser *p, int op);
void template_parser_expect_op(struct template_parser *p, int op, const char *what);
bool template_parser_word_is(const struct template_token *t, const char *w);
bool template_parser_take_word(struct template_parser *p, const char *w);
const char *template_parser_intern(struct template_parser *p, const char *s, size_t len);
const char *template_parser_take_name(struct template_parser *p, const char *what);
bool template_parser_enter(struct template_parser *p); /* one level deeper; p->depth-- leaves it */

/* template_expr.c */
struct template_node *template_expr(struct template_parser *p);
struct template_node *template_expr_tuple(struct template_parser *p, bool with_cond, bool parentheses); /* one expression, or several with commas */
struct template_node *template_expr_filter(struct template_parser *p, struct template_node *v);         /* behind the "|" */

#endif
