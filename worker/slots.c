#include "worker/slots.h"

#include "base/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, NO_RUN = 0xffffffff };

static size_t pages(size_t bytes)
{
    return ROUND_UP(bytes, (size_t)PAGE);
}

enum err slots_init(struct slots *s, const struct slots_config *cfg)
{
    *s = (struct slots){.cfg = *cfg};
    size_t blocks = pages(((size_t)cfg->ctx + SHARD_KV_BLOCK - 1) / SHARD_KV_BLOCK * sizeof(uint32_t));
    size_t lists = pages((MSG_STOP_IDS_MAX + 2 * MSG_BIAS_MAX) * sizeof(uint32_t));
    size_t counts = cfg->sampling ? pages((size_t)cfg->vocab * sizeof(uint32_t)) : 0;
    size_t hidden = cfg->sampling ? pages((size_t)cfg->dim * sizeof(float)) : 0;
    size_t sum = cfg->sampling ? pages((size_t)cfg->dim * sizeof(double)) : 0;
    size_t per = blocks + lists + counts + hidden + sum;
    s->counts_bytes = counts;
    s->slot = calloc(cfg->max_seqs, sizeof(*s->slot));
    s->last_run = calloc(cfg->max_seqs, sizeof(*s->last_run));
    if (!s->slot || !s->last_run)
        return err_set(ERR_NOMEM, "out of memory for %u slots", cfg->max_seqs);
    s->map_bytes = per * cfg->max_seqs;
    s->map = mmap(NULL, s->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->map == MAP_FAILED) {
        s->map = NULL;
        return err_set(ERR_NOMEM, "no address space for %u slots of %zu bytes (lower --max-seqs or --ctx)", cfg->max_seqs, per);
    }
    for (uint32_t i = 0; i < cfg->max_seqs; i++) {
        struct slot *sl = &s->slot[i];
        uint8_t *p = (uint8_t *)s->map + per * i;
        sl->blocks = (uint32_t *)p;
        sl->stop = (uint32_t *)(p += blocks);
        sl->bias_id = sl->stop + MSG_STOP_IDS_MAX;
        sl->bias = (float *)(sl->bias_id + MSG_BIAS_MAX);
        p += lists;
        sl->counts = counts ? (uint32_t *)p : NULL;
        sl->hidden = hidden ? (float *)(p + counts) : NULL;
        sl->pool_sum = sum ? (double *)(p + counts + hidden) : NULL;
    }
    return ERR_OK;
}

void slots_deinit(struct slots *s)
{
    if (s->map)
        munmap(s->map, s->map_bytes);
    free(s->slot);
    free(s->last_run);
    *s = (struct slots){0};
}

static void forget(struct slots *s, struct slot *sl)
{
    if (sl->live && sl->has_penalties && sl->counts)
        madvise(sl->counts, s->counts_bytes, MADV_DONTNEED); /* reads as zeros again */
    sl->live = sl->has_sampled = sl->hidden_valid = sl->has_penalties = false;
    sl->pos = sl->n_blocks = 0;
}

void slots_reset(struct slots *s)
{
    for (uint32_t i = 0; i < s->cfg.max_seqs; i++)
        forget(s, &s->slot[i]);
}

/* ---- checks */

#define REFUSE(...) return err_set(ERR_PROTOCOL, __VA_ARGS__)

static enum err check_ids(const struct slots *s, const char *what, uint32_t slot, const uint32_t *ids, uint32_t n)
{
    if (n && !ids)
        REFUSE("setup of slot %u: %s are missing", slot, what);
    for (uint32_t i = 0; i < n; i++)
        if (ids[i] >= s->cfg.vocab)
            REFUSE("setup of slot %u: %s: token %u is outside the vocabulary of %u", slot, what, ids[i], s->cfg.vocab);
    return ERR_OK;
}

static enum err check_setup(const struct slots *s, const struct slot_setup *u)
{
    if (u->slot >= s->cfg.max_seqs)
        REFUSE("setup of slot %u: there are %u", u->slot, s->cfg.max_seqs);
    if (u->n_stop > MSG_STOP_IDS_MAX || u->n_bias > MSG_BIAS_MAX || u->n_history > s->cfg.ctx || u->n_output > u->n_history ||
        u->n_logprobs > MSG_LOGPROBS_MAX || u->n_targets > MSG_TARGETS_MAX)
        REFUSE("setup of slot %u: counts out of range (stop %u, bias %u, history %u, output %u, logprobs %u, targets %u)", u->slot, u->n_stop, u->n_bias,
               u->n_history, u->n_output, u->n_logprobs, u->n_targets);
    if (u->pooling != POOLING_NONE && ((u->pooling != POOLING_MEAN && u->pooling != POOLING_LAST) || u->n_history))
        REFUSE("setup of slot %u: pooling %u with %u skipped tokens", u->slot, u->pooling, u->n_history);
    if (!isfinite(u->temperature) || !isfinite(u->top_p) || !isfinite(u->min_p) || !isfinite(u->repetition_penalty) ||
        !isfinite(u->presence_penalty) || !isfinite(u->frequency_penalty) || u->temperature < 0 || u->repetition_penalty < 0)
        REFUSE("setup of slot %u: a sampling parameter is no finite number or below zero", u->slot);
    TRY(check_ids(s, "stop ids", u->slot, u->stop, u->n_stop));
    TRY(check_ids(s, "bias ids", u->slot, u->bias_id, u->n_bias));
    TRY(check_ids(s, "targets", u->slot, u->target, u->n_targets));
    TRY(check_ids(s, "history", u->slot, u->history, u->n_history));
    if (u->n_bias && !u->bias)
        REFUSE("setup of slot %u: biases are missing", u->slot);
    for (uint32_t i = 0; i < u->n_bias; i++)
        if (!isfinite(u->bias[i]))
            REFUSE("setup of slot %u: bias of token %u is not finite", u->slot, u->bias_id[i]);
    return ERR_OK;
}

/* The state a slot will have when the runs come: after frees and setups. */
struct view {
    bool live, has_sampled;
    uint32_t gen, pos, n_blocks, pooling, n_targets;
};

static struct view view_of(const struct slots *s, const struct step *step, uint32_t slot)
{
    const struct slot *sl = &s->slot[slot];
    struct view v = {sl->live, sl->has_sampled, sl->gen, sl->pos, sl->n_blocks, sl->pooling, sl->n_targets};
    for (uint32_t i = 0; i < step->n_freed; i++)
        if (step->freed[i] == slot)
            v = (struct view){0};
    for (uint32_t i = 0; i < step->n_setups; i++)
        if (step->setups[i].slot == slot)
            v = (struct view){.live = true, .gen = step->setups[i].gen, .pos = step->setups[i].n_history,
                              .pooling = step->setups[i].pooling, .n_targets = step->setups[i].n_targets};
    return v;
}

static enum err check_run(const struct slots *s, const struct step *st, uint32_t r, const uint32_t *tokens, const uint32_t *blocks)
{
    uint32_t slot = st->slot[r], n = st->n_tokens[r];
    struct view v = view_of(s, st, slot);
    if (!v.live)
        REFUSE("run %u: slot %u was never set up", r, slot);
    if (v.gen != st->gen[r])
        REFUSE("run %u: slot %u has generation %u, the step says %u", r, slot, v.gen, st->gen[r]);
    if (st->start[r] != v.pos)
        REFUSE("run %u: slot %u continues at position %u, the step says %u", r, slot, v.pos, st->start[r]);
    if (n == 0 || n > s->cfg.ctx || v.pos > s->cfg.ctx - n)
        REFUSE("run %u: %u tokens from position %u do not fit a context of %u", r, n, v.pos, s->cfg.ctx);
    if (st->want[r] & ~(uint32_t)RUN_WANT_ALL)
        REFUSE("run %u: unknown want bits %#x", r, st->want[r]);
    if (((st->want[r] & RUN_WANT_POOLED) && !v.pooling) || ((st->want[r] & RUN_WANT_TARGETS) && !v.n_targets))
        REFUSE("run %u: slot %u was not set up for what is wanted (%#x)", r, slot, st->want[r]);
    uint32_t table_max = (s->cfg.ctx + SHARD_KV_BLOCK - 1) / SHARD_KV_BLOCK;
    if (st->n_blocks[r] > table_max - v.n_blocks)
        REFUSE("run %u: slot %u would have more than %u blocks", r, slot, table_max);
    if ((uint64_t)(v.n_blocks + st->n_blocks[r]) * SHARD_KV_BLOCK < (uint64_t)v.pos + n)
        REFUSE("run %u: slot %u has %u blocks for %u positions", r, slot, v.n_blocks + st->n_blocks[r], v.pos + n);
    for (uint32_t i = 0; i < st->n_blocks[r]; i++)
        if (blocks[i] >= s->cfg.n_kv_blocks)
            REFUSE("run %u: KV block %u of %u", r, blocks[i], s->cfg.n_kv_blocks);
    for (uint32_t i = 0; i < n; i++) {
        if (tokens[i] == STEP_TOKEN_SAMPLED && i == 0 && v.has_sampled)
            continue;
        if (tokens[i] >= s->cfg.vocab)
            REFUSE("run %u: token %u at position %u is outside the vocabulary of %u, or nothing was sampled there", r, tokens[i], v.pos + i,
                   s->cfg.vocab);
    }
    return ERR_OK;
}

enum err slots_check(struct slots *s, const struct step *st)
{
    if (st->n_runs > s->cfg.max_seqs || st->n_setups > s->cfg.max_seqs || st->n_freed > s->cfg.max_seqs)
        REFUSE("step %llu: %u runs, %u setups, %u freed, with %u slots", (unsigned long long)st->step_id, st->n_runs, st->n_setups, st->n_freed,
               s->cfg.max_seqs);
    if (st->n_all_tokens > s->cfg.max_step_tokens)
        REFUSE("step %llu: %u tokens, at most %u", (unsigned long long)st->step_id, st->n_all_tokens, s->cfg.max_step_tokens);
    for (uint32_t i = 0; i < st->n_freed; i++)
        if (st->freed[i] >= s->cfg.max_seqs)
            REFUSE("freed slot %u: there are %u", st->freed[i], s->cfg.max_seqs);
    for (uint32_t i = 0; i < s->cfg.max_seqs; i++)
        s->last_run[i] = NO_RUN;
    for (uint32_t i = 0; i < st->n_setups; i++) {
        const struct slot_setup *u = &st->setups[i];
        TRY(check_setup(s, u));
        if (s->last_run[u->slot] != NO_RUN)
            REFUSE("slot %u is set up twice in a step", u->slot);
        s->last_run[u->slot] = 0;
        if (s->slot[u->slot].live && s->slot[u->slot].gen == u->gen)
            REFUSE("slot %u is set up again with generation %u", u->slot, u->gen);
    }
    for (uint32_t i = 0; i < s->cfg.max_seqs; i++)
        s->last_run[i] = NO_RUN;
    uint64_t tok = 0, blk = 0, pooled = 0;
    for (uint32_t r = 0; r < st->n_runs; r++) {
        if (st->slot[r] >= s->cfg.max_seqs)
            REFUSE("run %u: slot %u of %u", r, st->slot[r], s->cfg.max_seqs);
        if (s->last_run[st->slot[r]] != NO_RUN)
            REFUSE("run %u: slot %u already has run %u in this step", r, st->slot[r], s->last_run[st->slot[r]]);
        s->last_run[st->slot[r]] = r;
        if (!check_range(tok, st->n_tokens[r], st->n_all_tokens) || !check_range(blk, st->n_blocks[r], st->n_all_blocks))
            REFUSE("run %u: more tokens or blocks than the step holds", r);
        TRY(check_run(s, st, r, st->tokens + tok, st->blocks + blk));
        pooled += st->want[r] & RUN_WANT_POOLED ? s->cfg.dim : 0;
        tok += st->n_tokens[r];
        blk += st->n_blocks[r];
    }
    if (pooled > MSG_POOLED_MAX)
        REFUSE("step %llu: pooled states of %llu floats, at most %d", (unsigned long long)st->step_id, (unsigned long long)pooled, (int)MSG_POOLED_MAX);
    if (tok != st->n_all_tokens || blk != st->n_all_blocks)
        REFUSE("step %llu: tokens or blocks that belong to no run", (unsigned long long)st->step_id);
    return ERR_OK;
}

/* ---- changes */

static void count(struct slot *sl, uint32_t token, bool output)
{
    uint32_t c = sl->counts[token] | SLOT_SEEN;
    sl->counts[token] = output && (c & ~SLOT_SEEN) < ~SLOT_SEEN ? c + 1 : c;
}

/* Biases in rising order of id, so that a segment of the vocabulary finds its own; equal ids are added up. */
static void take_bias(struct slot *sl, const struct slot_setup *u)
{
    sl->n_bias = 0;
    for (uint32_t i = 0; i < u->n_bias; i++) {
        uint32_t at = sl->n_bias;
        while (at > 0 && sl->bias_id[at - 1] > u->bias_id[i])
            at--;
        if (at > 0 && sl->bias_id[at - 1] == u->bias_id[i]) {
            sl->bias[at - 1] += u->bias[i];
            continue;
        }
        memmove(sl->bias_id + at + 1, sl->bias_id + at, (sl->n_bias - at) * sizeof(*sl->bias_id));
        memmove(sl->bias + at + 1, sl->bias + at, (sl->n_bias - at) * sizeof(*sl->bias));
        sl->bias_id[at] = u->bias_id[i];
        sl->bias[at] = u->bias[i];
        sl->n_bias++;
    }
}

static void setup(struct slots *s, const struct slot_setup *u)
{
    struct slot *sl = &s->slot[u->slot];
    forget(s, sl);
    sl->live = true;
    sl->gen = u->gen;
    sl->pos = u->n_history;
    sl->seed = u->seed;
    sl->choice = u->choice;
    sl->temperature = u->temperature;
    sl->top_p = u->top_p;
    sl->min_p = u->min_p;
    sl->top_k = u->top_k;
    sl->repetition_penalty = u->repetition_penalty == 0 ? 1 : u->repetition_penalty;
    sl->presence_penalty = u->presence_penalty;
    sl->frequency_penalty = u->frequency_penalty;
    sl->min_tokens = u->min_tokens;
    sl->prompt_len = u->prompt_len;
    sl->n_logprobs = u->n_logprobs;
    sl->pooling = (enum pooling)u->pooling;
    if (sl->pooling == POOLING_MEAN && s->cfg.sampling)
        memset(sl->pool_sum, 0, s->cfg.dim * sizeof(*sl->pool_sum));
    sl->n_targets = u->n_targets;
    if (u->n_targets)
        memcpy(sl->target, u->target, u->n_targets * sizeof(*sl->target));
    sl->n_stop = u->n_stop;
    if (u->n_stop)
        memcpy(sl->stop, u->stop, u->n_stop * sizeof(*sl->stop));
    take_bias(sl, u);
    sl->has_penalties = s->cfg.sampling &&
                        (sl->repetition_penalty != 1 || sl->presence_penalty != 0 || sl->frequency_penalty != 0);
    if (sl->has_penalties)
        for (uint32_t i = 0; i < u->n_history; i++)
            count(sl, u->history[i], i >= u->n_history - u->n_output);
}

void slots_apply(struct slots *s, const struct step *st)
{
    for (uint32_t i = 0; i < st->n_freed; i++)
        forget(s, &s->slot[st->freed[i]]);
    for (uint32_t i = 0; i < st->n_setups; i++)
        setup(s, &st->setups[i]);
    const uint32_t *b = st->blocks;
    for (uint32_t r = 0; r < st->n_runs; r++) {
        struct slot *sl = &s->slot[st->slot[r]];
        if (st->n_blocks[r])
            memcpy(sl->blocks + sl->n_blocks, b, st->n_blocks[r] * sizeof(*b));
        sl->n_blocks += st->n_blocks[r];
        b += st->n_blocks[r];
    }
}

void slots_advance(struct slots *s, const struct step *st, uint32_t run, const uint32_t *tokens)
{
    struct slot *sl = &s->slot[st->slot[run]];
    if (sl->has_penalties)
        for (uint32_t i = 0; i < st->n_tokens[run]; i++)
            count(sl, tokens[i], sl->pos + i >= sl->prompt_len);
    sl->pos += st->n_tokens[run];
    sl->has_sampled = (st->want[run] & RUN_WANT_SAMPLE) != 0;
}
