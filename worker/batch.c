#include "worker/batch.h"

#include "base/check.h"

#include <stdlib.h>

enum err batch_init(struct batch *b, uint32_t cap)
{
    *b = (struct batch){.cap = cap};
    b->pos = calloc(cap, sizeof(*b->pos));
    b->run_of = calloc(cap, sizeof(*b->run_of));
    b->runs = calloc(cap, sizeof(*b->runs));
    return b->pos && b->run_of && b->runs ? ERR_OK : err_set(ERR_NOMEM, "out of memory for a batch of %u tokens", cap);
}

void batch_deinit(struct batch *b)
{
    free(b->pos);
    free(b->run_of);
    free(b->runs);
    *b = (struct batch){0};
}

bool batch_next(struct batch *b, struct batch_walk *w, const struct step *step, const uint32_t *tokens, const struct slots *slots)
{
    b->token = tokens + w->tok;
    b->n_tok = b->n_runs = 0;
    while (w->run < step->n_runs && b->n_tok < b->cap) {
        uint32_t n = MIN(step->n_tokens[w->run] - w->first, b->cap - b->n_tok);
        struct batch_run *r = &b->runs[b->n_runs];
        *r = (struct batch_run){.run = w->run, .slot = step->slot[w->run], .gen = step->gen[w->run], .first = w->first, .tok0 = b->n_tok, .n_tok = n, .pos0 = step->start[w->run] + w->first,
                                .blocks = slots->slot[step->slot[w->run]].blocks};
        for (uint32_t i = 0; i < n; i++) {
            b->pos[b->n_tok + i] = r->pos0 + i;
            b->run_of[b->n_tok + i] = b->n_runs;
        }
        b->n_runs++;
        b->n_tok += n;
        w->first += n;
        w->tok += n;
        if (w->first == step->n_tokens[w->run]) {
            w->run++;
            w->first = 0;
        }
    }
    return b->n_tok > 0;
}
