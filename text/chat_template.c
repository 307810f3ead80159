/* See chat_template.h. source -template_lexer-> tokens -template_parser-> nodes -template_scope-> places of names
 * -template_run-> text. The nodes live
 * in the template's arena and never change; a run has an arena of its own, so that any number of threads render at
 * once. */
#include "text/chat_template.h"

#include "base/check.h"
#include "base/clock.h"
#include "text/template_ast.h"

#include <stdlib.h>
#include <string.h>

enum { PARSED_MAX = 64 << 20 };

struct chat_template {
    struct arena arena;
    struct template_node *body;
    struct template_frame *root;
};

enum err chat_template_create(const char *source, size_t len, struct chat_template **out)
{
    struct template_token *tok = NULL;
    size_t n = 0;
    enum err e;
    *out = NULL;
    struct chat_template *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return err_set(ERR_NOMEM, "no memory for a chat template");
    arena_init(&t->arena, PARSED_MAX);
    e = template_lexer_run(&t->arena, source, len, &tok, &n);
    if (e == ERR_OK)
        e = template_parser_run(&t->arena, tok, n, &t->body);
    if (e == ERR_OK)
        e = template_scope_run(&t->arena, t->body, &t->root);
    if (e != ERR_OK) {
        chat_template_destroy(&t);
        return e;
    }
    *out = t;
    return ERR_OK;
}

void chat_template_destroy(struct chat_template **tp)
{
    struct chat_template *t = *tp;
    if (t == NULL)
        return;
    arena_deinit(&t->arena);
    free(t);
    *tp = NULL;
}

enum err chat_template_render_at(const struct chat_template *t, const json_t *context, time_t now, struct buf *out)
{
    struct template_run r = {.out = out, .now = now, .steps_max = UINT64_MAX, .time_ns = UINT64_MAX / 4};
    size_t start = out->len;
    if (!json_is_object(context))
        return err_set(ERR_INVALID, "the context of a chat template is no JSON object");
    arena_init(&r.arena, 0);
    struct template_val ctx = template_from_json(&r, context, 0);
    if (!r.failed) { /* the budgets are the template's; a long conversation has larger ones */
        uint64_t bytes = r.arena.total + r.text_bytes;
        r.context = ctx.dict;
        r.steps = r.cpu_deadline_ns = 0;
        r.steps_max = TEMPLATE_STEPS_MAX + bytes * TEMPLATE_STEPS_PER_BYTE;
        r.time_ns = TEMPLATE_TIME_US * 1000ull + bytes * TEMPLATE_TIME_NS_PER_BYTE;
        r.arena.limit = TEMPLATE_MEMORY_MAX + r.arena.total * 4;
        template_run_body(&r, t->body, t->root);
    }
    arena_deinit(&r.arena);
    if (!r.failed && out->failed)
        return err_set(ERR_NOMEM, "no memory for the output of a chat template");
    if (!r.failed)
        return ERR_OK;
    if (out->data != NULL)
        out->data[out->len = start] = 0;
    return err_set(r.err, "chat template, line %u: %s", r.line, r.text);
}

enum err chat_template_render(const struct chat_template *t, const json_t *context, struct buf *out)
{
    return chat_template_render_at(t, context, time(NULL), out);
}
