#include "coordinator/step.h"

#include "base/check.h"

#include <math.h>
#include <string.h>

/* memcpy of words that allows nothing from nowhere. */
static void copy_words(void *to, const void *from, uint32_t n)
{
    if (n)
        memcpy(to, from, (size_t)n * 4);
}

/* ---- plan to step ---- */

static bool step_alloc(struct step *s, struct arena *a, uint32_t n_runs, uint32_t n_tokens, uint32_t n_blocks,
                       uint32_t n_setups, uint32_t n_freed)
{
    s->n_runs = n_runs;
    s->n_all_tokens = n_tokens;
    s->n_all_blocks = n_blocks;
    s->n_setups = n_setups;
    s->n_freed = n_freed;
    uint32_t **by_run[] = {&s->slot, &s->gen, &s->start, &s->n_tokens, &s->want, &s->n_blocks};
    bool ok = true;
    for (size_t i = 0; i < ARRAY_LEN(by_run); i++)
        ok &= (*by_run[i] = arena_array(a, n_runs, sizeof(uint32_t))) != NULL;
    ok &= (s->tokens = arena_array(a, n_tokens, sizeof(uint32_t))) != NULL;
    ok &= (s->blocks = arena_array(a, n_blocks, sizeof(uint32_t))) != NULL;
    ok &= (s->setups = arena_array(a, n_setups, sizeof *s->setups)) != NULL;
    ok &= (s->freed = arena_array(a, n_freed, sizeof(uint32_t))) != NULL;
    return ok;
}

static void fill_setup(struct slot_setup *u, const struct plan_run *r)
{
    const struct sampling *s = &r->seq->req->sampling;
    *u = (struct slot_setup){.slot = r->slot,
                             .gen = r->gen,
                             .seed = s->seed,
                             .choice = s->choice,
                             .temperature = s->temperature,
                             .top_p = s->top_p,
                             .min_p = s->min_p,
                             .top_k = s->top_k,
                             .repetition_penalty = s->repetition_penalty,
                             .presence_penalty = s->presence_penalty,
                             .frequency_penalty = s->frequency_penalty,
                             .min_tokens = s->min_tokens,
                             .n_logprobs = s->n_logprobs,
                             .prompt_len = r->seq->req->n_prompt,
                             .stop = s->stop_ids,
                             .n_stop = s->n_stop_ids,
                             .bias_id = s->bias_id,
                             .bias = s->bias,
                             .n_bias = s->n_bias,
                             .penalty_last_n = s->penalty_last_n,
                             .typical_p = s->typical_p,
                             .top_n_sigma = s->top_n_sigma,
                             .xtc_probability = s->xtc_probability,
                             .xtc_threshold = s->xtc_threshold,
                             .dynatemp_range = s->dynatemp_range,
                             .dynatemp_exponent = s->dynatemp_exponent,
                             .dry_multiplier = s->dry_multiplier,
                             .dry_base = s->dry_base,
                             .dry_allowed_length = s->dry_allowed_length,
                             .dry_last_n = s->dry_last_n,
                             .mirostat = s->mirostat,
                             .mirostat_tau = s->mirostat_tau,
                             .mirostat_eta = s->mirostat_eta,
                             .mirostat_mu = r->seq->mu,
                             .pooling = r->seq->req->kind == REQUEST_EMBED ? r->seq->req->pooling : 0,
                             .target = r->seq->req->targets,
                             .n_targets = r->seq->req->n_targets};
    const struct sampling_ids *ids = s->ids;
    if (!ids)
        return;
    u->allowed = ids->allowed;
    u->n_allowed = ids->n_allowed;
    u->bad_id = ids->bad_id;
    u->n_bad_ids = ids->n_bad_ids;
    u->bad_len = ids->bad_len;
    u->n_bad = ids->n_bad;
    u->dry_id = ids->dry_id;
    u->n_dry_ids = ids->n_dry_ids;
    u->dry_len = ids->dry_len;
    u->n_dry = ids->n_dry;
}

enum err step_build(const struct step_plan *p, const struct kv_blocks *kv, uint64_t epoch, struct arena *a,
                    struct step *out)
{
    uint32_t n_blocks = 0, n_setups = 0;
    for (uint32_t i = 0; i < p->n_runs; i++) {
        n_blocks += p->runs[i].n_blocks;
        n_setups += p->runs[i].setup;
    }
    *out = (struct step){.epoch = epoch, .step_id = p->step_id};
    if (!step_alloc(out, a, p->n_runs, p->n_tokens, n_blocks, n_setups, p->n_freed))
        return err_set(ERR_NOMEM, "step of %u runs and %u tokens", p->n_runs, p->n_tokens);
    uint32_t *token = out->tokens, *block = out->blocks;
    struct slot_setup *setup = out->setups;
    for (uint32_t i = 0; i < p->n_runs; i++) {
        const struct plan_run *r = &p->runs[i];
        out->slot[i] = r->slot;
        out->gen[i] = r->gen;
        out->start[i] = r->start;
        out->n_tokens[i] = r->n_tokens;
        out->want[i] = r->want;
        out->n_blocks[i] = r->n_blocks;
        if (r->tokens)
            copy_words(token, r->tokens, r->n_tokens);
        else
            *token = STEP_TOKEN_SAMPLED;
        token += r->n_tokens;
        for (uint32_t b = r->first_block, n = 0; n < r->n_blocks; n++, b = kv_blocks_next(kv, b))
            *block++ = b;
        if (r->setup)
            fill_setup(setup++, r);
    }
    copy_words(out->freed, p->freed, p->n_freed);
    return ERR_OK;
}

enum err step_build_warmup(uint64_t epoch, uint64_t step_id, bool second, struct arena *a, struct step *out)
{
    *out = (struct step){.epoch = epoch, .step_id = step_id};
    if (!step_alloc(out, a, 1, second ? 1 : STEP_WARMUP_TOKENS, 1, second ? 0 : 1, 0))
        return err_set(ERR_NOMEM, "warm-up step");
    out->start[0] = second ? STEP_WARMUP_TOKENS : 0;
    out->n_tokens[0] = out->n_all_tokens;
    out->want[0] = RUN_WANT_SAMPLE;
    out->n_blocks[0] = 1;
    out->blocks[0] = second;
    if (second)
        out->tokens[0] = STEP_TOKEN_SAMPLED;
    else
        out->setups[0] = (struct slot_setup){.top_p = 1, .repetition_penalty = 1, .prompt_len = STEP_WARMUP_TOKENS};
    return ERR_OK;
}

enum err step_check_warmup(const struct step_result *r, uint64_t step_id, uint32_t vocab)
{
    if (r->step_id != step_id || r->n_runs != 1 || r->slot[0] != 0 || r->gen[0] != 0 || r->token[0] >= vocab)
        return err_set(ERR_PROTOCOL, "the result does not answer warm-up step %llu", (unsigned long long)step_id);
    return ERR_OK;
}

/* ---- result to samples ---- */

static enum err match_run(const struct step_plan *p, uint32_t i, const struct step_result *r, uint32_t j, uint32_t row,
                          uint32_t vocab, struct step_samples *m)
{
    const struct plan_run *run = &p->runs[i];
    bool sample = run->want & RUN_WANT_SAMPLE, prompt = run->want & RUN_WANT_PROMPT_LOGPROBS;
    uint32_t n = r->n_positions[j], rows = prompt ? run->n_tokens : 0;
    rows += run->want & RUN_WANT_TARGETS ? run->n_targets : 0;
    if (r->slot[j] != run->slot || r->gen[j] != run->gen)
        return err_set(ERR_PROTOCOL, "result of step %llu: run %u is of slot %u:%u, expected %u:%u",
                       (unsigned long long)p->step_id, j, r->slot[j], r->gen[j], run->slot, run->gen);
    if (sample && r->token[j] >= vocab)
        return err_set(ERR_PROTOCOL, "result of step %llu: token %u, the vocabulary has %u",
                       (unsigned long long)p->step_id, r->token[j], vocab);
    bool with_sample = sample && n == rows + 1;
    if (!with_sample && (n != rows || (run->want & RUN_WANT_LOGPROBS)))
        return err_set(ERR_PROTOCOL, "result of step %llu: run %u has %u rows of log-probabilities, expected %u",
                       (unsigned long long)p->step_id, j, n, rows + sample);
    for (uint32_t t = 0; run->want & RUN_WANT_TARGETS && t < n; t++) /* a score is made of them */
        if (!isfinite(r->logprob[row + t]))
            return err_set(ERR_PROTOCOL, "result of step %llu: run %u has a log-probability that is no number", (unsigned long long)p->step_id, j);
    if (sample)
        m->token[i] = r->token[j];
    m->row[i] = row;
    m->n_rows[i] = n;
    return ERR_OK;
}

enum err step_match(const struct step_plan *p, const struct step_result *r, uint32_t vocab, struct arena *a,
                    struct step_samples *m)
{
    m->token = arena_array(a, p->n_runs, sizeof *m->token);
    m->row = arena_array(a, p->n_runs, sizeof *m->row);
    m->n_rows = arena_array(a, p->n_runs, sizeof *m->n_rows);
    m->pooled = arena_array(a, p->n_runs, sizeof *m->pooled);
    m->row_top = arena_array(a, (size_t)r->n_all_positions + 1, sizeof *m->row_top);
    m->mu = arena_array(a, p->n_runs, sizeof *m->mu);
    if (!m->token || !m->row || !m->n_rows || !m->pooled || !m->row_top || !m->mu)
        return err_set(ERR_NOMEM, "result of step %llu", (unsigned long long)p->step_id);
    if (r->step_id != p->step_id)
        return err_set(ERR_PROTOCOL, "result of step %llu, expected %llu", (unsigned long long)r->step_id,
                       (unsigned long long)p->step_id);
    uint32_t top = 0;
    for (uint32_t i = 0; i < r->n_all_positions; i++) {
        m->row_top[i] = top;
        if (r->n_top[i] > r->n_all_top - top)
            return err_set(ERR_PROTOCOL, "result of step %llu: more top log-probabilities than it holds",
                           (unsigned long long)p->step_id);
        top += r->n_top[i];
    }
    m->row_top[r->n_all_positions] = top;
    for (uint32_t i = 0; i < top; i++)
        if (r->top_id[i] >= vocab)
            return err_set(ERR_PROTOCOL, "result of step %llu: a top token %u, the vocabulary has %u", (unsigned long long)p->step_id, r->top_id[i], vocab);
    uint32_t j = 0, row = 0, pooled = 0, mu = 0;
    for (uint32_t i = 0; i < p->n_runs; i++) {
        m->token[i] = STEP_TOKEN_SAMPLED;
        m->pooled[i] = NULL;
        m->mu[i] = NAN;
        if (p->runs[i].want == RUN_WANT_NOTHING)
            continue;
        if (j == r->n_runs || r->n_positions[j] > r->n_all_positions - row)
            return err_set(ERR_PROTOCOL, "result of step %llu: %u runs are too few", (unsigned long long)p->step_id,
                           r->n_runs);
        TRY(match_run(p, i, r, j, row, vocab, m));
        if (mu < r->n_mu && r->mu_run[mu] == j)
            m->mu[i] = r->mu[mu++];
        row += r->n_positions[j++];
        if (!(p->runs[i].want & RUN_WANT_POOLED))
            continue;
        if (r->pooled_dim == 0 || r->n_all_pooled - pooled < r->pooled_dim)
            return err_set(ERR_PROTOCOL, "result of step %llu: pooled states are missing", (unsigned long long)p->step_id);
        m->pooled[i] = r->pooled + pooled;
        pooled += r->pooled_dim;
    }
    if (j != r->n_runs || row != r->n_all_positions)
        return err_set(ERR_PROTOCOL, "result of step %llu: %u runs, expected %u", (unsigned long long)p->step_id,
                       r->n_runs, j);
    return ERR_OK;
}

/* ---- samples to events ---- */

/* A worker that returns more than was asked for is cut, not trusted. */
static uint32_t row_n_top(const struct step_samples *m, uint32_t row, uint32_t cap)
{
    return MIN(m->row_top[row + 1] - m->row_top[row], cap);
}

static void gather_prompt(const struct plan_run *run, uint32_t first_row, const struct step_result *r,
                          const struct step_samples *m, struct seq *q)
{
    struct seq_prompt_logprobs *g = &q->prompt_logprobs;
    uint32_t cap = q->req->sampling.n_logprobs;
    for (uint32_t i = 0; i < run->n_tokens && run->start + i < q->req->n_prompt; i++) {
        uint32_t pos = run->start + i, row = first_row + i, n = row_n_top(m, row, cap);
        g->logprob[pos] = pos ? r->logprob[row] : NAN;
        g->n_top[pos] = n;
        copy_words(g->top_id + (size_t)pos * cap, r->top_id + m->row_top[row], n);
        copy_words(g->top + (size_t)pos * cap, r->top_logprob + m->row_top[row], n);
    }
}

static void give_prompt(struct seq *q, struct token_event *e)
{
    struct seq_prompt_logprobs *g = &q->prompt_logprobs;
    size_t cap = q->req->sampling.n_logprobs;
    for (uint32_t i = 0; i < q->req->n_prompt; i++) {
        struct token_logprobs *lp = &e->prompt_logprobs[i];
        lp->logprob = g->logprob[i];
        token_event_top(e, lp, g->n_top[i]);
        copy_words(lp->id, g->top_id + i * cap, g->n_top[i]);
        copy_words(lp->top, g->top + i * cap, g->n_top[i]);
    }
    g->sent = true;
}

/* The end of an EMBED or SCORE. */
static struct token_event *values_event(const struct plan_run *run, const struct step_result *r, const struct step_samples *m,
                                        const struct seq_outcome *o)
{
    bool pooled = run->want & RUN_WANT_POOLED;
    uint32_t n = pooled ? r->pooled_dim : m->n_rows[o->run_idx];
    struct token_event *e = token_event_create_values(n);
    if (!e)
        return NULL;
    copy_words(e->values, pooled ? m->pooled[o->run_idx] : r->logprob + m->row[o->run_idx], n);
    e->id = o->seq->req->id;
    e->started = !o->seq->started;
    o->seq->started = true;
    e->finish = o->finish;
    return e;
}

struct token_event *step_event(const struct step_plan *p, const struct step_result *r, const struct step_samples *m,
                               const struct seq_outcome *o)
{
    struct seq *q = o->seq;
    const struct plan_run *run = &p->runs[o->run_idx];
    const struct sampling *s = &q->req->sampling;
    if (run->want & RUN_WANT_PROMPT_LOGPROBS)
        gather_prompt(run, m->row[o->run_idx], r, m, q);

    if (o->finish != FINISH_NONE && q->req->kind != REQUEST_GENERATE)
        return values_event(run, r, m, o);
    bool known = o->has_token || o->finish != FINISH_NONE;
    bool prompt = s->prompt_logprobs && !q->prompt_logprobs.sent && known;
    bool logprobs = o->has_token && (run->want & RUN_WANT_LOGPROBS);
    uint32_t row = logprobs ? m->row[o->run_idx] + m->n_rows[o->run_idx] - 1 : 0;
    uint32_t n_sample_top = logprobs ? row_n_top(m, row, s->n_logprobs) : 0, n_top = n_sample_top;
    for (uint32_t i = 0; prompt && i < q->req->n_prompt; i++)
        n_top += q->prompt_logprobs.n_top[i];

    struct token_event *e = token_event_create(o->has_token, logprobs, n_top, prompt ? q->req->n_prompt : 0);
    if (!e)
        return NULL;
    e->id = q->req->id;
    e->started = !q->started;
    q->started = true;
    e->finish = o->finish;
    e->stop_id = o->stop_id;
    e->prefilling = !known;
    e->n_prefilled = o->n_prefilled;
    if (o->has_token)
        e->tokens[0] = o->token;
    if (o->has_token && !isnan(m->mu[o->run_idx]) && !MUTANT(8))
        q->mu = m->mu[o->run_idx];
    if (logprobs) {
        e->logprobs[0].logprob = r->logprob[row];
        token_event_top(e, &e->logprobs[0], n_sample_top);
        copy_words(e->logprobs[0].id, r->top_id + m->row_top[row], n_sample_top);
        copy_words(e->logprobs[0].top, r->top_logprob + m->row_top[row], n_sample_top);
    }
    if (prompt)
        give_prompt(q, e);
    return e;
}
