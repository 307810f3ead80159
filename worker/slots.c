#include "worker/slots.h"

#include "base/check.h"
#include "worker/sampler_history.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { PAGE = 4096, NO_RUN = 0xffffffff };

static size_t pages(size_t bytes)
{
    return ROUND_UP(bytes, (size_t)PAGE);
}

static size_t bitmap_bytes(uint32_t n)
{
    return ((size_t)n + 31) / 32 * sizeof(uint32_t);
}

enum err slots_init(struct slots *s, const struct slots_config *cfg)
{
    *s = (struct slots){.cfg = *cfg};
    size_t blocks = pages(((size_t)cfg->ctx + SHARD_KV_BLOCK - 1) / SHARD_KV_BLOCK * sizeof(uint32_t));
    size_t lists = pages((MSG_STOP_IDS_MAX + 2 * MSG_BIAS_MAX + 2 * MSG_BAD_IDS_MAX + 2 * MSG_DRY_IDS_MAX) * sizeof(uint32_t));
    size_t bits = pages(bitmap_bytes(cfg->vocab));
    size_t tokens = cfg->sampling ? pages((size_t)cfg->ctx * sizeof(uint32_t)) : 0;
    size_t counts = cfg->sampling ? pages((size_t)cfg->vocab * sizeof(struct slot_count)) : 0;
    size_t sum = cfg->sampling ? pages((size_t)cfg->dim * sizeof(double)) : 0;
    size_t per = blocks + lists + 3 * bits + tokens + counts + sum;
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
        sl->bad_id = (uint32_t *)(sl->bias + MSG_BIAS_MAX);
        sl->bad_len = sl->bad_id + MSG_BAD_IDS_MAX;
        sl->dry_id = sl->bad_len + MSG_BAD_IDS_MAX;
        sl->dry_len = sl->dry_id + MSG_DRY_IDS_MAX;
        sl->allowed_bits = (uint32_t *)(p += lists);
        sl->dry_stop = (uint32_t *)(p += bits);
        sl->dry_tail = (uint32_t *)(p += bits);
        p += bits;
        sl->tokens = tokens ? (uint32_t *)p : NULL;
        p += tokens;
        sl->counts = counts ? (struct slot_count *)p : NULL;
        sl->pool_sum = sum ? (double *)(p + counts) : NULL;
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
    sl->live = sl->has_sampled = sl->hidden_valid = sl->has_penalties = sl->has_history = false;
    sl->pos = sl->n_blocks = sl->pending = 0;
}

bool slots_known(const struct slots *s, const struct step *step)
{
    for (uint32_t i = 0; i < step->n_runs; i++)
        if (step->slot[i] >= s->cfg.max_seqs)
            return false;
    return true;
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

static enum err check_sequences(const struct slots *s, const char *what, uint32_t slot, const uint32_t *ids, uint32_t n_ids,
                                const uint32_t *len, uint32_t n, uint32_t max)
{
    uint64_t sum = 0;
    if (n_ids > max || n > n_ids || (n && !len))
        REFUSE("setup of slot %u: %s: %u of %u ids, at most %u", slot, what, n, n_ids, max);
    for (uint32_t i = 0; i < n; i++) {
        if (len[i] == 0)
            REFUSE("setup of slot %u: %s: one is empty", slot, what);
        sum += len[i];
    }
    if (sum != n_ids)
        REFUSE("setup of slot %u: %s: %u ids in sequences of %llu", slot, what, n_ids, (unsigned long long)sum);
    return check_ids(s, what, slot, ids, n_ids);
}

static enum err check_setup(const struct slots *s, const struct slot_setup *u)
{
    if (u->slot >= s->cfg.max_seqs)
        REFUSE("setup of slot %u: there are %u", u->slot, s->cfg.max_seqs);
    if (u->n_stop > MSG_STOP_IDS_MAX || u->n_bias > MSG_BIAS_MAX || u->n_history > s->cfg.ctx || u->n_output > u->n_history ||
        u->n_logprobs > MSG_LOGPROBS_MAX || u->n_targets > MSG_TARGETS_MAX)
        REFUSE("setup of slot %u: counts out of range (stop %u, bias %u, history %u, output %u, logprobs %u, targets %u)", u->slot, u->n_stop, u->n_bias,
               u->n_history, u->n_output, u->n_logprobs, u->n_targets);
    bool known = u->pooling == POOLING_MEAN || u->pooling == POOLING_LAST || (u->pooling == POOLING_RANK && s->cfg.has_cls);
    if (u->pooling != POOLING_NONE && (!known || u->n_history))
        REFUSE("setup of slot %u: pooling %u with %u skipped tokens", u->slot, u->pooling, u->n_history);
    if (!isfinite(u->temperature) || !isfinite(u->top_p) || !isfinite(u->min_p) || !isfinite(u->repetition_penalty) ||
        !isfinite(u->presence_penalty) || !isfinite(u->frequency_penalty) || u->temperature < 0 || u->repetition_penalty < 0)
        REFUSE("setup of slot %u: a sampling parameter is no finite number or below zero", u->slot);
    const float more[] = {u->typical_p, u->top_n_sigma, u->xtc_probability, u->xtc_threshold, u->dynatemp_range, u->dynatemp_exponent,
                          u->dry_multiplier, u->dry_base, u->mirostat_tau, u->mirostat_eta};
    for (size_t i = 0; i < ARRAY_LEN(more); i++)
        if (!(more[i] >= 0 && more[i] < INFINITY))
            REFUSE("setup of slot %u: sampling parameter %zu of the second group is no finite number or below zero", u->slot, i);
    if (!isfinite(u->mirostat_mu) || u->mirostat > 2)
        REFUSE("setup of slot %u: mirostat %u with mu %g", u->slot, u->mirostat, (double)u->mirostat_mu);
    TRY(check_ids(s, "allowed ids", u->slot, u->allowed, u->n_allowed));
    TRY(check_sequences(s, "bad sequences", u->slot, u->bad_id, u->n_bad_ids, u->bad_len, u->n_bad, MSG_BAD_IDS_MAX));
    TRY(check_sequences(s, "DRY's sequences", u->slot, u->dry_id, u->n_dry_ids, u->dry_len, u->n_dry, MSG_DRY_IDS_MAX));
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

/* The token of position pos becomes known. */
static void learn(struct slot *sl, uint32_t pos, uint32_t token)
{
    if (sl->has_history)
        sl->tokens[pos] = token;
    if (sl->has_history && sl->dry_multiplier > 0)
        sampler_history_learn(sl, pos);
    if (!sl->has_penalties)
        return;
    sl->counts[token].all++;
    sl->counts[token].output += pos >= sl->prompt_len;
    uint32_t n = sl->penalty_last_n;
    if (n && pos >= n) { /* one leaves the window */
        uint32_t old = sl->tokens[pos - n];
        sl->counts[old].all--;
        sl->counts[old].output -= pos - n >= sl->prompt_len;
    }
}

static void set_bit(uint32_t *bits, uint32_t id)
{
    bits[id / 32] |= 1u << id % 32;
}

static void take_sequences(const struct slots *s, struct slot *sl, const struct slot_setup *u)
{
    size_t bits = bitmap_bytes(s->cfg.vocab);
    sl->allowed = u->n_allowed ? sl->allowed_bits : NULL;
    if (sl->allowed)
        memset(sl->allowed, 0, bits);
    for (uint32_t i = 0; i < u->n_allowed; i++)
        set_bit(sl->allowed, u->allowed[i]);
    sl->n_bad = u->n_bad;
    if (u->n_bad) {
        memcpy(sl->bad_id, u->bad_id, u->n_bad_ids * sizeof(*sl->bad_id));
        memcpy(sl->bad_len, u->bad_len, u->n_bad * sizeof(*sl->bad_len));
    }
    sl->n_dry = sl->dry_cut_begin = sl->dry_cut_end = 0;
    if (sl->dry_multiplier == 0)
        return;
    memset(sl->dry_stop, 0, bits);
    memset(sl->dry_tail, 0, bits);
    for (uint32_t i = 0, at = 0, to = 0; i < u->n_dry; at += u->dry_len[i++]) {
        if (u->dry_len[i] == 1) {
            set_bit(sl->dry_stop, u->dry_id[at]);
            continue;
        }
        set_bit(sl->dry_tail, u->dry_id[at + u->dry_len[i] - 1]);
        memcpy(sl->dry_id + to, u->dry_id + at, u->dry_len[i] * sizeof(*sl->dry_id));
        sl->dry_len[sl->n_dry++] = u->dry_len[i];
        to += u->dry_len[i];
    }
}

/* Each id once, so that those who ban them side by side (a GPU) have an id each. */
static void take_stops(struct slot *sl, const struct slot_setup *u)
{
    sl->n_stop = 0;
    for (uint32_t i = 0; i < u->n_stop; i++) {
        uint32_t at = 0;
        while (at < sl->n_stop && sl->stop[at] != u->stop[i])
            at++;
        sl->stop[at] = u->stop[i];
        sl->n_stop += at == sl->n_stop;
    }
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
    sl->typical_p = u->typical_p;
    sl->top_n_sigma = u->top_n_sigma;
    sl->xtc_probability = u->xtc_probability;
    sl->xtc_threshold = u->xtc_threshold;
    sl->dynatemp_range = u->dynatemp_range;
    sl->dynatemp_exponent = u->dynatemp_exponent;
    sl->mirostat = u->mirostat;
    sl->mirostat_tau = u->mirostat_tau;
    sl->mirostat_eta = u->mirostat_eta;
    sl->mu = u->mirostat_mu;
    sl->dry_multiplier = u->dry_multiplier;
    sl->dry_base = u->dry_base;
    sl->dry_allowed_length = u->dry_allowed_length;
    sl->dry_last_n = u->dry_last_n;
    sl->prompt_len = u->n_output ? MIN(u->prompt_len, u->n_history - u->n_output) : u->prompt_len;
    sl->n_logprobs = u->n_logprobs;
    sl->pooling = (enum pooling)u->pooling;
    if (sl->pooling == POOLING_MEAN && s->cfg.sampling)
        memset(sl->pool_sum, 0, s->cfg.dim * sizeof(*sl->pool_sum));
    sl->n_targets = u->n_targets;
    if (u->n_targets)
        memcpy(sl->target, u->target, u->n_targets * sizeof(*sl->target));
    take_stops(sl, u);
    take_bias(sl, u);
    take_sequences(s, sl, u);
    sl->has_penalties = s->cfg.sampling &&
                        (sl->repetition_penalty != 1 || sl->presence_penalty != 0 || sl->frequency_penalty != 0);
    sl->penalty_last_n = u->penalty_last_n < s->cfg.ctx ? u->penalty_last_n : 0;
    sl->has_history = s->cfg.sampling && (slot_looks_back(sl) || (sl->has_penalties && sl->penalty_last_n));
    for (uint32_t i = 0; i < u->n_history; i++)
        learn(sl, i, u->history[i]);
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
    for (uint32_t i = 0; i < st->n_tokens[run] && (sl->has_penalties || sl->has_history); i++)
        if (tokens[i] != STEP_TOKEN_SAMPLED) /* else the device alone knows, which then keeps the account */
            learn(sl, sl->pos + i, tokens[i]);
    sl->pos += st->n_tokens[run];
    sl->has_sampled = (st->want[run] & RUN_WANT_SAMPLE) != 0;
}
