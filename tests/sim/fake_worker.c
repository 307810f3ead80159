#include "tests/sim/fake_worker.h"

#include "base/check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t mix(uint64_t h, uint64_t v)
{
    h ^= v + 0x9e3779b97f4a7c15ull + (h << 6) + (h >> 2);
    h *= 0xff51afd7ed558ccdull;
    return h ^ (h >> 33);
}

uint32_t fake_worker_next(uint64_t seed, uint32_t choice, float mu, const uint32_t *tokens, uint32_t n)
{
    uint64_t h = mix(mix(seed, choice), (uint64_t)mu);
    for (uint32_t i = 0; i < n; i++)
        h = mix(h, tokens[i]);
    return (uint32_t)(mix(h, n) % FAKE_VOCAB);
}

float fake_worker_mu(float mu, uint32_t token)
{
    return (float)(((uint32_t)mu * 31 + token + 7) % 65521);
}

float fake_worker_logprob(uint32_t token, uint32_t pos)
{
    return -(float)(token + 1) - (float)pos / 1024;
}

uint32_t fake_worker_top_id(uint32_t token, uint32_t i)
{
    return (token + i) % FAKE_VOCAB;
}

void fake_worker_init(struct fake_worker *w, uint32_t n_slots, uint32_t n_blocks)
{
    memset(w, 0, sizeof *w);
    w->n_slots = n_slots;
    w->n_blocks = n_blocks;
    w->vocab = FAKE_VOCAB;
    w->slots = calloc(n_slots, sizeof *w->slots);
    w->cells = calloc((size_t)n_blocks * 16, sizeof *w->cells);
    ASSERT(w->slots && w->cells);
    for (uint32_t i = 0; i < n_slots; i++) {
        w->slots[i].blocks = calloc(n_blocks, sizeof(uint32_t));
        ASSERT(w->slots[i].blocks);
    }
}

void fake_worker_deinit(struct fake_worker *w)
{
    for (uint32_t i = 0; i < w->n_slots; i++)
        free(w->slots[i].blocks);
    free(w->slots);
    free(w->cells);
    memset(w, 0, sizeof *w);
}

float fake_worker_value(uint32_t target, const uint32_t *tokens, uint32_t n)
{
    return -(float)fake_worker_next(target, 77, 0, tokens, n);
}

static bool wrong(struct fake_worker *w, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (!w->error[0])
        vsnprintf(w->error, sizeof w->error, fmt, ap);
    va_end(ap);
    return false;
}

static struct fake_cell *cell(struct fake_worker *w, const struct fake_slot *s, uint32_t pos)
{
    return &w->cells[(size_t)s->blocks[pos / 16] * 16 + pos % 16];
}

static bool set_up(struct fake_worker *w, const struct step *s)
{
    for (uint32_t i = 0; i < s->n_freed; i++) {
        if (s->freed[i] >= w->n_slots)
            return wrong(w, "freed slot %u", s->freed[i]);
        w->slots[s->freed[i]].used = false;
    }
    for (uint32_t i = 0; i < s->n_setups; i++) {
        const struct slot_setup *u = &s->setups[i];
        if (u->slot >= w->n_slots)
            return wrong(w, "set-up of slot %u", u->slot);
        struct fake_slot *f = &w->slots[u->slot];
        if (f->used)
            return wrong(w, "slot %u was set up while generation %u is still there", u->slot, f->gen);
        uint32_t *blocks = f->blocks;
        *f = (struct fake_slot){.used = true,
                                .gen = u->gen,
                                .blocks = blocks,
                                .seed = u->seed,
                                .mirostat = u->mirostat,
                                .mu = u->mirostat_mu,
                                .choice = u->choice,
                                .n_logprobs = u->n_logprobs,
                                .prompt_len = u->prompt_len,
                                .pooling = u->pooling,
                                .n_targets = u->n_targets};
        if (u->n_targets > 0)
            memcpy(f->targets, u->target, u->n_targets * sizeof *u->target);
    }
    return true;
}

/* Appends the tokens of run i to the cache of its slot. */
static bool compute(struct fake_worker *w, const struct step *s, uint32_t i, const uint32_t *tokens,
                    const uint32_t *blocks)
{
    if (s->slot[i] >= w->n_slots || !w->slots[s->slot[i]].used || w->slots[s->slot[i]].gen != s->gen[i])
        return wrong(w, "run of slot %u generation %u, which is not set up", s->slot[i], s->gen[i]);
    struct fake_slot *f = &w->slots[s->slot[i]];
    for (uint32_t b = 0; b < s->n_blocks[i]; b++) {
        if (blocks[b] >= w->n_blocks || f->n_blocks >= w->n_blocks)
            return wrong(w, "block %u", blocks[b]);
        f->blocks[f->n_blocks++] = blocks[b];
    }
    if (s->start[i] != f->n_computed)
        return wrong(w, "slot %u: run starts at %u, %u positions are computed", s->slot[i], s->start[i], f->n_computed);
    for (uint32_t t = 0; t < s->n_tokens[i]; t++) {
        uint32_t pos = f->n_computed++, token = tokens[t];
        if (token == STEP_TOKEN_SAMPLED) {
            if (!f->has_sample)
                return wrong(w, "slot %u has sampled nothing yet", s->slot[i]);
            token = f->last_sample;
        }
        if (token >= w->vocab)
            return wrong(w, "token %u", token);
        if (pos / 16 >= f->n_blocks)
            return wrong(w, "slot %u: position %u has no block", s->slot[i], pos);
        *cell(w, f, pos) = (struct fake_cell){s->slot[i], s->gen[i], pos, token};
    }
    return true;
}

/* Reads the whole sequence back from the cache. */
static bool history(struct fake_worker *w, uint32_t slot, struct arena *a, uint32_t **out)
{
    struct fake_slot *f = &w->slots[slot];
    uint32_t *t = arena_array(a, (size_t)f->n_computed + 1, sizeof *t);
    ASSERT(t);
    for (uint32_t pos = 0; pos < f->n_computed; pos++) {
        const struct fake_cell *c = cell(w, f, pos);
        if (c->slot != slot || c->gen != f->gen || c->pos != pos)
            return wrong(w, "slot %u:%u position %u: the cache holds slot %u:%u position %u", slot, f->gen, pos,
                         c->slot, c->gen, c->pos);
        t[pos] = c->token;
    }
    *out = t;
    return true;
}

static void add_row(struct step_result *r, uint32_t token, uint32_t pos, uint32_t n_top)
{
    uint32_t row = r->n_all_positions++;
    r->logprob[row] = pos ? fake_worker_logprob(token, pos) : NAN;
    r->n_top[row] = pos ? n_top : 0;
    for (uint32_t i = 0; i < r->n_top[row]; i++) {
        r->top_id[r->n_all_top] = fake_worker_top_id(token, i);
        r->top_logprob[r->n_all_top++] = fake_worker_logprob(token, pos) - (float)i;
    }
}

static bool answer(struct fake_worker *w, const struct step *s, uint32_t i, struct arena *a, struct step_result *r)
{
    struct fake_slot *f = &w->slots[s->slot[i]];
    uint32_t *tokens = NULL, j = r->n_runs++, rows = r->n_all_positions;
    if (!history(w, s->slot[i], a, &tokens))
        return false;
    r->slot[j] = s->slot[i];
    r->gen[j] = s->gen[i];
    r->token[j] = STEP_TOKEN_SAMPLED;
    if (s->want[i] & RUN_WANT_PROMPT_LOGPROBS)
        for (uint32_t t = 0; t < s->n_tokens[i]; t++)
            add_row(r, tokens[s->start[i] + t], s->start[i] + t, f->n_logprobs);
    if (s->want[i] & RUN_WANT_SAMPLE) {
        uint32_t token = fake_worker_next(f->seed, f->choice, f->mu, tokens, f->n_computed);
        if (f->mirostat) {
            r->mu_run[r->n_mu] = j;
            r->mu[r->n_mu++] = f->mu = fake_worker_mu(f->mu, token);
        }
        r->token[j] = f->last_sample = token;
        f->has_sample = true;
        if (s->want[i] & RUN_WANT_LOGPROBS)
            add_row(r, token, f->n_computed, f->n_logprobs);
    }
    if (s->want[i] & RUN_WANT_TARGETS)
        for (uint32_t k = 0; k < f->n_targets; k++) {
            r->n_top[r->n_all_positions] = 0;
            r->logprob[r->n_all_positions++] = fake_worker_value(f->targets[k], tokens, f->n_computed);
        }
    if (s->want[i] & RUN_WANT_POOLED) {
        if (!f->pooling)
            return wrong(w, "slot %u is not set up to pool", s->slot[i]);
        for (uint32_t k = 0; k < FAKE_DIM; k++)
            r->pooled[r->n_all_pooled++] = fake_worker_value(FAKE_VOCAB + f->pooling + k, tokens, f->n_computed);
    }
    r->n_positions[j] = r->n_all_positions - rows;
    return true;
}

static void alloc_result(const struct fake_worker *w, const struct step *s, struct arena *a, struct step_result *r)
{
    uint32_t top = 0, rows = s->n_all_tokens + s->n_runs * (1 + MSG_TARGETS_MAX);
    for (uint32_t i = 0; i < w->n_slots; i++)
        top = MAX(top, w->slots[i].n_logprobs);
    *r = (struct step_result){.epoch = s->epoch, .step_id = s->step_id};
    r->slot = arena_array(a, s->n_runs, sizeof(uint32_t));
    r->gen = arena_array(a, s->n_runs, sizeof(uint32_t));
    r->token = arena_array(a, s->n_runs, sizeof(uint32_t));
    r->n_positions = arena_array(a, s->n_runs, sizeof(uint32_t));
    r->mu_run = arena_array(a, s->n_runs, sizeof(uint32_t));
    r->mu = arena_array(a, s->n_runs, sizeof(float));
    r->logprob = arena_array(a, rows, sizeof(float));
    r->n_top = arena_array(a, rows, sizeof(uint32_t));
    r->top_id = arena_array(a, (size_t)rows * top, sizeof(uint32_t));
    r->top_logprob = arena_array(a, (size_t)rows * top, sizeof(float));
    r->pooled = arena_array(a, (size_t)s->n_runs * FAKE_DIM, sizeof(float));
    r->pooled_dim = FAKE_DIM;
    ASSERT(r->pooled && r->slot && r->gen && r->token && r->n_positions && r->mu_run && r->mu && r->logprob && r->n_top && r->top_id && r->top_logprob);
}

bool fake_worker_run(struct fake_worker *w, const struct step *s, struct arena *a, struct step_result *out)
{
    if (s->step_id <= w->last_step_id)
        return wrong(w, "step %llu after %llu", (unsigned long long)s->step_id, (unsigned long long)w->last_step_id);
    w->last_step_id = s->step_id;
    if (!set_up(w, s))
        return false;
    alloc_result(w, s, a, out);
    const uint32_t *tokens = s->tokens, *blocks = s->blocks;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        if (!compute(w, s, i, tokens, blocks))
            return false;
        if (s->want[i] != RUN_WANT_NOTHING && !answer(w, s, i, a, out))
            return false;
        tokens += s->n_tokens[i];
        blocks += s->n_blocks[i];
    }
    return true;
}
