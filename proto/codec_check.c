/* The rules of a message's content, on the plain structs: what codec.c will send and what it has just read obey the
 * same ones, so that a message that left one process is never refused by the next, and nothing past the decoder needs
 * to check again that parallel arrays are parallel or that counts add up. Ranges that only one process knows (a slot
 * below max_seqs, a token below n_vocab) are its own business. No state; any thread. */
#include "proto/codec_internal.h"

#include "base/check.h"
#include "base/err.h"

#include <math.h>
#include <string.h>

static enum err check_str(const char *msg, const char *field, const char *s)
{
    if (s && strnlen(s, (size_t)MSG_STR_MAX + 1) > MSG_STR_MAX)
        return err_set(ERR_TOO_BIG, "%s.%s: a string over %d bytes", msg, field, (int)MSG_STR_MAX);
    return ERR_OK;
}

static enum err check_count(const char *msg, const char *field, const void *p, uint64_t n, uint64_t max)
{
    if (n > max)
        return err_set(ERR_TOO_BIG, "%s.%s: %llu entries, at most %llu", msg, field, (unsigned long long)n,
                       (unsigned long long)max);
    ASSERT(n == 0 || p);
    return ERR_OK;
}

static enum err check_reals(const char *msg, const char *field, const float *v, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(v[i]))
            return err_set(ERR_PROTOCOL, "%s.%s: entry %u is not finite", msg, field, i);
    return ERR_OK;
}

/* The form of every field, from the table. */
#define BEGIN(ctype, snake, camel)                                                                                     \
    static enum err check_##snake(const struct ctype *m)                                                               \
    {                                                                                                                  \
        static const char msg[] = #snake;                                                                              \
        (void)msg, (void)m;
#define VAL(f)
#define CODE(f)
#define REAL(f) TRY(check_reals(msg, #f, &m->f, 1));
#define STR(f) TRY(check_str(msg, #f, m->f));
#define BLOB(f, len, max) TRY(check_count(msg, #f, m->f, m->len, max));
#define BLOBS(f, lens, n, max, one)                                                                                    \
    TRY(check_count(msg, #f, m->f, m->n, max));                                                                        \
    for (uint32_t i = 0; i < m->n; i++)                                                                                \
        TRY(check_count(msg, #f, m->f[i], m->lens[i], one));
#define LIST(f, n, max) TRY(check_count(msg, #f, m->f, m->n, max));
#define WITH(f, n, max) TRY(check_count(msg, #f, m->f, m->n, max));
#define WITH_AS(f, wire, n, max) WITH(f, n, max)
#define REALS(f, n, max)                                                                                               \
    TRY(check_count(msg, #f, m->f, m->n, max));                                                                        \
    TRY(check_reals(msg, #f, m->f, m->n));
#define SUBS(f, n, max, ctype, snake, camel)                                                                           \
    TRY(check_count(msg, #f, m->f, m->n, max));                                                                        \
    for (uint32_t i = 0; i < m->n; i++)                                                                                \
        TRY(check_##snake(&m->f[i]));
#define END                                                                                                            \
    return ERR_OK;                                                                                                     \
    }
#include "proto/codec_fields.def"

static uint64_t sum(const uint32_t *v, uint32_t n)
{
    uint64_t s = 0; /* no overflow: n is capped far below 2^32 */
    for (uint32_t i = 0; i < n; i++)
        s += v[i];
    return s;
}

static enum err rules_hello(const struct msg_hello *m)
{
    if (m->version_min > m->version_max)
        return err_set(ERR_PROTOCOL, "hello.version_min: %u is above version_max %u", m->version_min, m->version_max);
    return ERR_OK;
}

static enum err rules_start_worker(const struct msg_start_worker *m)
{
    if (m->tp == 0 || m->pp == 0 || m->tp > MSG_RANKS_MAX || m->pp > MSG_RANKS_MAX)
        return err_set(ERR_PROTOCOL, "start_worker.tp: tp %u pp %u, each from 1 to %d", m->tp, m->pp,
                       (int)MSG_RANKS_MAX);
    if (m->tp_rank >= m->tp || m->stage >= m->pp)
        return err_set(ERR_PROTOCOL, "start_worker.tp_rank: rank %u of %u, stage %u of %u", m->tp_rank, m->tp, m->stage,
                       m->pp);
    if (m->n_share != m->tp)
        return err_set(ERR_PROTOCOL, "start_worker.share: %u entries, tp is %u", m->n_share, m->tp);
    if (m->n_layer_first != m->pp + 1)
        return err_set(ERR_PROTOCOL, "start_worker.layer_first: %u entries, pp is %u", m->n_layer_first, m->pp);
    for (uint32_t i = 0; i < m->pp; i++)
        if (m->layer_first[i] > m->layer_first[i + 1])
            return err_set(ERR_PROTOCOL, "start_worker.layer_first: stage %u ends before it begins", i);
    return ERR_OK;
}

/* Sequences of ids one after the other: none is empty, together they are the ids. */
static enum err rules_sequences(const char *field, const uint32_t *len, uint32_t n, uint32_t n_ids)
{
    for (uint32_t i = 0; i < n; i++)
        if (len[i] == 0)
            return err_set(ERR_PROTOCOL, "%s: sequence %u is empty", field, i);
    if (sum(len, n) != n_ids)
        return err_set(ERR_PROTOCOL, "%s: the sequences have %llu ids, %u are there", field, (unsigned long long)sum(len, n), n_ids);
    return ERR_OK;
}

static enum err rules_slot_setup(const struct slot_setup *m)
{
    if (m->n_logprobs > MSG_LOGPROBS_MAX)
        return err_set(ERR_TOO_BIG, "slot_setup.n_logprobs: %u, at most %d", m->n_logprobs, (int)MSG_LOGPROBS_MAX);
    if (m->n_output > m->n_history)
        return err_set(ERR_PROTOCOL, "slot_setup.n_output: %u of %u tokens of history", m->n_output, m->n_history);
    TRY(rules_sequences("slot_setup.bad_len", m->bad_len, m->n_bad, m->n_bad_ids));
    return rules_sequences("slot_setup.dry_len", m->dry_len, m->n_dry, m->n_dry_ids);
}

static enum err rules_step(const struct step *m)
{
    for (uint32_t i = 0; i < m->n_runs; i++) {
        if (m->n_tokens[i] == 0)
            return err_set(ERR_PROTOCOL, "step.n_tokens: run %u has no tokens", i);
        if (m->want[i] & ~(uint32_t)RUN_WANT_ALL)
            return err_set(ERR_PROTOCOL, "step.want: run %u wants unknown bits 0x%x", i, m->want[i]);
    }
    uint64_t tokens = sum(m->n_tokens, m->n_runs), blocks = sum(m->n_blocks, m->n_runs);
    if (tokens != m->n_all_tokens)
        return err_set(ERR_PROTOCOL, "step.tokens: %u entries, the runs have %llu", m->n_all_tokens,
                       (unsigned long long)tokens);
    if (blocks != m->n_all_blocks)
        return err_set(ERR_PROTOCOL, "step.blocks: %u entries, the runs have %llu", m->n_all_blocks,
                       (unsigned long long)blocks);
    for (uint32_t i = 0; i < m->n_setups; i++)
        TRY(rules_slot_setup(&m->setups[i]));
    return ERR_OK;
}

static enum err rules_step_result(const struct step_result *m)
{
    uint64_t positions = sum(m->n_positions, m->n_runs), top = sum(m->n_top, m->n_all_positions);
    if (positions != m->n_all_positions)
        return err_set(ERR_PROTOCOL, "step_result.logprob: %u entries, the runs have %llu", m->n_all_positions,
                       (unsigned long long)positions);
    for (uint32_t i = 0; i < m->n_all_positions; i++)
        if (m->n_top[i] > MSG_LOGPROBS_MAX)
            return err_set(ERR_TOO_BIG, "step_result.n_top: %u at position %u, at most %d", m->n_top[i], i,
                           (int)MSG_LOGPROBS_MAX);
    if (top != m->n_all_top)
        return err_set(ERR_PROTOCOL, "step_result.top_id: %u entries, the positions have %llu", m->n_all_top,
                       (unsigned long long)top);
    for (uint32_t i = 0; i < m->n_mu; i++)
        if (m->mu_run[i] >= m->n_runs || (i && m->mu_run[i] <= m->mu_run[i - 1]))
            return err_set(ERR_PROTOCOL, "step_result.mu_run: %u after %u of %u runs", m->mu_run[i], i ? m->mu_run[i - 1] : 0, m->n_runs);
    if (m->pooled_dim ? m->n_all_pooled % m->pooled_dim : m->n_all_pooled)
        return err_set(ERR_PROTOCOL, "step_result.pooled: %u entries in states of %u", m->n_all_pooled, m->pooled_dim);
    return check_reals("step_result", "pooled", m->pooled, m->n_all_pooled);
}

/* Rules between fields, for the types that have any. */
static enum err rules(const struct msg *m)
{
    switch (m->type) {
    case MSG_HELLO:
        return rules_hello(&m->hello);
    case MSG_START_WORKER:
        return rules_start_worker(&m->start_worker);
    case MSG_STEP:
        return rules_step(&m->step);
    case MSG_STEP_RESULT:
        return rules_step_result(&m->step_result);
    case MSG_ADMIN_REPLY:
        for (uint32_t i = 0; i < m->admin_reply.n_nodes; i++)
            TRY(rules_hello(&m->admin_reply.nodes[i]));
        return ERR_OK;
    default:
        return ERR_OK;
    }
}

enum err codec_check(const struct msg *m)
{
    switch (m->type) {
#define MSG(sym, field)                                                                                                \
    case MSG_##sym:                                                                                                    \
        TRY(check_##field(&m->field));                                                                                 \
        break;
#include "proto/msgs.def"
#undef MSG
    default:
        return err_set(ERR_PROTOCOL, "unknown message type %d", (int)m->type);
    }
    return rules(m);
}
