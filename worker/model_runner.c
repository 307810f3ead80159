#include "worker/model_runner.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/device.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    BATCH_TOKENS = 512,    /* more tokens of a step go through the layers in turns, so that the activations stay bounded */
    HANDOVER_IDS = 1024,   /* sampled ids in a message from the last stage to stage 0 */
    CTX_LEAST = 512,       /* a context that was not asked for is not lowered below that to make room */
    TOK_KEPT = 0xffffffff, /* add_row */
    ROWS_MIN = 16, ROWS_MAX = 64, ROWS_BYTES = 32 << 20,
};

/* Samples of a step that stage 0 has not yet received from the last stage. */
struct handover {
    uint32_t n;
    uint32_t *slot, *gen;  /* [max_seqs] */
};
/* Where the answer of a row through the head goes. */
struct row_dest {
    uint32_t result;       /* run of the result; SAMPLER_NONE: nowhere (hook only) */
    uint32_t position;     /* row of log-probabilities; SAMPLER_NONE */
    uint32_t slot, gen;
};

/* A step that was begun: where its answers go. */
struct flight {
    struct arena arena;           /* of the result */
    struct step_result res;
    uint32_t *res_of_run;         /* [max_seqs] run of the result; SAMPLER_NONE */
    uint32_t *pos_base;           /* [max_seqs] first row of log-probabilities of a run of the result */
    uint32_t *top_base;           /* [n_all_positions] in the arena */
    uint32_t n_pooled;            /* states of the result so far */
    struct sampler_row *rows;     /* [rows_cap] */
    struct row_dest *dest;
    uint32_t n_rows;
    bool deferred;                /* the device samples; runner_finish fetches what it sampled */
    uint64_t forward_ns, sample_ns, wait0_ns;
};

struct runner {
    struct runner_config cfg;
    struct hparams hp;
    struct shard_split split;
    struct pool *pool;
    struct device *device;
    struct slots slots;
    struct batch batch;
    struct comm *comm;
    struct runner_info info;
    bool first_stage, last_stage;

    uint32_t *tokens;             /* [max_step_tokens] of the step, sampled ones resolved */
    uint32_t *sampled;            /* [max_seqs] ids that travel between stages */
    uint16_t *awaiting;           /* [max_seqs] stage 0: how many samples of the slot are still on their way; steps whose input ids were known leave theirs */
    struct handover *handovers;   /* ring of pp + 2 */
    uint32_t handover_first, n_handovers;

    uint32_t rows_cap;
    struct flight flights[RUNNER_IN_FLIGHT], *f; /* f: of the step that is being begun or finished */
    uint32_t flight_first, n_flights;
    float *normed;                /* [dim] scratch of pooling */
    runner_logits_fn *hook;
    void *hook_arg;
};

/* ---- creation */

static enum err make_split(struct runner *r)
{
    const struct runner_config *c = &r->cfg;
    uint32_t layers[SHARD_PP_MAX];
    if (c->tp < 1 || c->tp > SHARD_TP_MAX || c->pp < 1 || c->pp > SHARD_PP_MAX || c->tp_rank >= c->tp || c->stage >= c->pp)
        return err_set(ERR_INVALID, "rank %u of tp %u, stage %u of pp %u: out of range (at most %d x %d)", c->tp_rank, c->tp, c->stage, c->pp,
                       SHARD_TP_MAX, SHARD_PP_MAX);
    for (uint32_t s = 0; c->layer_first && s < c->pp; s++) {
        if (c->layer_first[s + 1] < c->layer_first[s])
            return err_set(ERR_INVALID, "stage %u ends at layer %u, before it begins", s, c->layer_first[s + 1]);
        layers[s] = c->layer_first[s + 1] - c->layer_first[s];
    }
    TRY(shard_split_init(&r->hp, c->tp, c->pp, c->share, c->share ? c->tp : 0, c->layer_first ? layers : NULL, c->layer_first ? c->pp : 0,
                         &r->split));
    r->split.cut = c->use_cuda ? SHARD_CUT_INPUTS : SHARD_CUT_ROWS;
    return ERR_OK;
}

/* What the budget has for KV when weights and buffers have theirs. */
static enum err kv_budget(const struct runner *r, uint64_t reserve, uint64_t *out)
{
    const struct runner_config *c = &r->cfg;
    const struct device_info *i = &r->device->info;
    uint64_t memory = i->memory_bytes, weights = i->weights_bytes_planned, others = weights + reserve;
    if (memory && others >= memory)
        return err_set(ERR_NO_FIT, "%llu bytes of weights%s do not fit the worker's budget of %llu bytes: %llu are missing (more ranks or stages, or a smaller model)",
                       (unsigned long long)weights, reserve ? " and the buffers of a step" : "", (unsigned long long)memory,
                       (unsigned long long)(others - memory + 1));
    if (c->kv_memory_bytes && memory && c->kv_memory_bytes > memory - others)
        return err_set(ERR_NO_FIT, "%llu bytes of KV cache beside %llu bytes of weights do not fit the worker's budget of %llu bytes (at most %llu would)",
                       (unsigned long long)c->kv_memory_bytes, (unsigned long long)weights, (unsigned long long)memory,
                       (unsigned long long)(memory - others));
    *out = c->kv_memory_bytes ? c->kv_memory_bytes : memory ? (memory - others) / (i->kv_takes_rest ? 1 : 2) : UINT64_MAX;
    return ERR_OK;
}

/* Blocks of KV from the budget; lowers a context that was not asked for to what fits. */
static enum err size_kv(struct runner *r, struct device_sizes *sizes)
{
    const struct runner_config *c = &r->cfg;
    uint64_t block = shard_kv_block_bytes(&r->hp, &r->split, c->kv_type, c->tp_rank, c->stage), budget = 0;
    uint32_t ctx = c->ctx ? c->ctx : r->hp.ctx_train;
    if (ctx == 0)
        return err_set(ERR_INVALID, "the model names no context length: give --ctx");
    for (;; ctx /= 2) { /* what a long context takes beside its KV may be too much, too */
        sizes->ctx = ctx;
        enum err e = kv_budget(r, device_reserve_bytes(r->device, sizes), &budget);
        if (e == ERR_OK && (budget >= block || c->kv_memory_bytes))
            break;
        if (c->ctx || ctx < CTX_LEAST)
            return e != ERR_OK ? e : err_set(ERR_NO_FIT, "no memory for one KV block of %llu bytes", (unsigned long long)block);
    }
    uint64_t fit = block ? budget / block : UINT32_MAX, per_seq = ((uint64_t)ctx + SHARD_KV_BLOCK - 1) / SHARD_KV_BLOCK;
    if (fit < per_seq && c->ctx)
        return err_set(ERR_NO_FIT, "a context of %u tokens needs %llu bytes of KV cache on this worker, %llu are left (lower --ctx, or raise --kv-memory)",
                       ctx, (unsigned long long)(per_seq * block), (unsigned long long)budget);
    if (fit == 0)
        return err_set(ERR_NO_FIT, "no memory for one KV block of %llu bytes", (unsigned long long)block);
    if (fit < per_seq) {
        per_seq = fit;
        ctx = (uint32_t)(fit * SHARD_KV_BLOCK);
        LOG(WARN, WORKER, "context lowered to what fits", "ctx=%u model_ctx=%u", ctx, r->hp.ctx_train);
    }
    uint64_t need = per_seq * c->max_seqs;
    uint64_t blocks = c->kv_memory_bytes ? fit : MIN(need, fit);
    sizes->kv_blocks = (uint32_t)MIN(blocks, (uint64_t)INT32_MAX);
    sizes->ctx = ctx;
    return ERR_OK;
}

/* All sizes but those of the KV cache. */
static struct device_sizes step_sizes(struct runner *r)
{
    const struct runner_config *c = &r->cfg;
    uint32_t rows = (uint32_t)(ROWS_BYTES / sizeof(float) / MAX(r->hp.vocab, 1u));
    r->rows_cap = MIN(MAX(rows, (uint32_t)ROWS_MIN), (uint32_t)ROWS_MAX);
    return (struct device_sizes){.kv_type = c->kv_type, .max_seqs = c->max_seqs, .batch_cap = MIN(c->max_step_tokens, (uint32_t)BATCH_TOKENS),
                                 .rows_cap = r->rows_cap};
}

static enum err make_buffers(struct runner *r, const struct device_sizes *sizes)
{
    const struct runner_config *c = &r->cfg;
    const struct hparams *hp = &r->hp;
    struct slots_config sc = {c->max_seqs, sizes->ctx, hp->vocab, hp->dim, sizes->kv_blocks, c->max_step_tokens, r->last_stage, hp->has_cls};
    TRY(slots_init(&r->slots, &sc));
    TRY(batch_init(&r->batch, sizes->batch_cap));
    r->tokens = calloc(c->max_step_tokens, sizeof(*r->tokens));
    r->sampled = calloc(c->max_seqs, sizeof(*r->sampled));
    r->awaiting = calloc(c->max_seqs, sizeof(*r->awaiting));
    r->handovers = calloc(c->pp + 2, sizeof(*r->handovers));
    r->normed = calloc(hp->dim, sizeof(*r->normed));
    bool ok = r->normed && r->tokens && r->sampled && r->awaiting && r->handovers;
    for (uint32_t i = 0; i < RUNNER_IN_FLIGHT; i++) {
        struct flight *f = &r->flights[i];
        f->rows = calloc(r->rows_cap, sizeof(*f->rows));
        f->dest = calloc(r->rows_cap, sizeof(*f->dest));
        f->res_of_run = calloc(c->max_seqs, sizeof(*f->res_of_run));
        f->pos_base = calloc(c->max_seqs, sizeof(*f->pos_base));
        ok = ok && f->rows && f->dest && f->res_of_run && f->pos_base;
    }
    for (uint32_t i = 0; ok && i < c->pp + 2; i++) {
        r->handovers[i].slot = calloc(c->max_seqs, sizeof(uint32_t));
        r->handovers[i].gen = calloc(c->max_seqs, sizeof(uint32_t));
        ok = r->handovers[i].slot && r->handovers[i].gen;
    }
    return ok ? ERR_OK : err_set(ERR_NOMEM, "out of memory for a step's buffers");
}

static enum err load(struct runner *r, const struct gguf *g)
{
    const struct runner_config *c = &r->cfg;
    if (c->model_bytes && g->files[0].size != c->model_bytes)
        return err_set(ERR_INVALID, "%s has %llu bytes here and %llu on the coordinator's host: not the same file", c->model_path,
                       (unsigned long long)g->files[0].size, (unsigned long long)c->model_bytes);
    TRY(hparams_load(g, &r->hp));
    TRY(make_split(r));
    TRY(shard_kv_check(&r->hp, c->kv_type)); /* before minutes of loading */
    struct device_config dc = {.hp = &r->hp, .split = &r->split, .tp_rank = c->tp_rank, .stage = c->stage, .pool = r->pool, .kernels = c->kernels,
                               .cuda_ordinal = c->use_cuda ? (int32_t)c->cuda_ordinal : -1, .deterministic = c->deterministic,
                               .kv_type = c->kv_type, .memory_bytes = c->memory_bytes, .tick = c->tick, .tick_arg = c->tick_arg};
    struct device_sizes sizes = step_sizes(r);
    TRY(device_create(&dc, &r->device));
    TRY(device_plan(r->device, g));
    TRY(size_kv(r, &sizes));
    TRY(device_load(r->device, g, c->progress, c->progress_arg));
    TRY(device_prepare(r->device, &sizes));
    r->info.kv_blocks = sizes.kv_blocks;
    r->info.ctx = sizes.ctx;
    return make_buffers(r, &sizes);
}

static void fill_info(struct runner *r)
{
    struct runner_info *i = &r->info;
    const struct device_info *d = &r->device->info;
    i->vocab = r->hp.vocab;
    i->n_layers = d->n_layers;
    i->weights_bytes = d->weights_bytes;
    i->weights_bytes_planned = d->weights_bytes_planned;
    i->kv_bytes = d->kv_bytes;
    i->file_bytes_read = d->file_bytes;
    i->activation_bytes = d->activation_bytes;
    i->backend = d->backend;
}

enum err runner_create(const struct runner_config *cfg, struct runner **out)
{
    ASSERT((cfg->kernels || cfg->use_cuda) && cfg->n_threads >= 1 && cfg->max_seqs >= 1 && cfg->max_step_tokens >= 1);
    uint64_t t0 = clock_ns();
    struct gguf *g = NULL;
    struct runner *r = calloc(1, sizeof(*r));
    enum err e = ERR_OK;
    if (!r)
        return err_set(ERR_NOMEM, "out of memory for a runner");
    r->cfg = *cfg;
    r->first_stage = cfg->stage == 0;
    r->last_stage = cfg->stage + 1 == cfg->pp;
    for (uint32_t i = 0; i < RUNNER_IN_FLIGHT; i++)
        arena_init(&r->flights[i].arena, 0);
    TRY_GOTO(gguf_open(cfg->model_path, &g), fail);
    TRY_GOTO(pool_create(cfg->n_threads, cfg->cpus, cfg->spin_us, &r->pool), fail);
    TRY_GOTO(load(r, g), fail);
    r->hp.rope_freqs = NULL;
    gguf_close(&g);
    r->cfg.model_path = NULL;
    r->cfg.share = r->cfg.layer_first = NULL;
    r->cfg.cpus = NULL;
    fill_info(r);
    r->info.load_ms = (uint32_t)((clock_ns() - t0) / NS_PER_MS);
    *out = r;
    return ERR_OK;
fail:
    if (g)
        gguf_close(&g);
    runner_destroy(&r);
    return e;
}

void runner_destroy(struct runner **rp)
{
    struct runner *r = *rp;
    if (!r)
        return;
    device_destroy(&r->device);
    batch_deinit(&r->batch);
    slots_deinit(&r->slots);
    pool_destroy(&r->pool);
    for (uint32_t i = 0; r->handovers && i < r->cfg.pp + 2; i++) {
        free(r->handovers[i].slot);
        free(r->handovers[i].gen);
    }
    free(r->tokens);
    free(r->sampled);
    free(r->awaiting);
    free(r->handovers);
    for (uint32_t i = 0; i < RUNNER_IN_FLIGHT; i++) {
        free(r->flights[i].rows);
        free(r->flights[i].dest);
        free(r->flights[i].res_of_run);
        free(r->flights[i].pos_base);
        arena_deinit(&r->flights[i].arena);
    }
    free(r->normed);
    free(r);
    *rp = NULL;
}

void runner_info(const struct runner *r, struct runner_info *out)
{
    *out = r->info;
}

enum err runner_set_comm(struct runner *r, struct comm *c)
{
    r->comm = c;
    return device_set_comm(r->device, c);
}

enum err runner_comm_create(struct runner *r, const struct comm_config *cfg, struct comm **out, struct comm_addr *own)
{
    return device_comm_create(r->device, cfg, out, own);
}

enum err runner_reset(struct runner *r)
{
    slots_reset(&r->slots);
    memset(r->awaiting, 0, r->cfg.max_seqs * sizeof(*r->awaiting));
    r->handover_first = r->n_handovers = 0;
    r->flight_first = r->n_flights = 0;
    return device_reset(r->device);
}

void runner_set_logits_hook(struct runner *r, runner_logits_fn *fn, void *arg)
{
    r->hook = fn;
    r->hook_arg = arg;
}

/* ---- sampled ids from the last stage to stage 0 (pp > 1)
 *
 * Rank r of the last stage sends what each step sampled to rank r of stage 0, which takes it when a later step needs it, or at the latest
 * when more than pp steps are outstanding. Nothing that the last stage does depends on a later step, so waiting for it is safe. */

static enum err send_sampled(struct runner *r, const struct step *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_runs; i++)
        if (s->want[i] & RUN_WANT_SAMPLE)
            r->sampled[n++] = r->slots.slot[s->slot[i]].sampled;
    for (uint32_t i = 0; i < n; i += HANDOVER_IDS)
        TRY(comm_send(r->comm, r->cfg.tp_rank, r->sampled + i, MIN(n - i, (uint32_t)HANDOVER_IDS) * sizeof(uint32_t)));
    return ERR_OK;
}

static enum err take_oldest(struct runner *r)
{
    struct handover *h = &r->handovers[r->handover_first];
    uint32_t from = (r->cfg.pp - 1) * r->cfg.tp + r->cfg.tp_rank;
    for (uint32_t i = 0; i < h->n; i += HANDOVER_IDS)
        TRY(comm_recv(r->comm, from, r->sampled + i, MIN(h->n - i, (uint32_t)HANDOVER_IDS) * sizeof(uint32_t)));
    for (uint32_t i = 0; i < h->n; i++) {
        struct slot *sl = &r->slots.slot[h->slot[i]];
        if (r->sampled[i] >= r->hp.vocab)
            return err_set(ERR_PROTOCOL, "the last stage says that slot %u sampled token %u of %u", h->slot[i], r->sampled[i], r->hp.vocab);
        r->awaiting[h->slot[i]]--;
        if (sl->live && sl->gen == h->gen[i])
            sl->sampled = r->sampled[i];
    }
    r->handover_first = (r->handover_first + 1) % (r->cfg.pp + 2);
    r->n_handovers--;
    return ERR_OK;
}

static void expect_sampled(struct runner *r, const struct step *s)
{
    struct handover *h = &r->handovers[(r->handover_first + r->n_handovers) % (r->cfg.pp + 2)];
    h->n = 0;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        if (!(s->want[i] & RUN_WANT_SAMPLE))
            continue;
        h->slot[h->n] = s->slot[i];
        h->gen[h->n++] = s->gen[i];
        r->awaiting[s->slot[i]]++;
    }
    if (h->n)
        r->n_handovers++;
}

/* The step's tokens with what was sampled put in. Stages between the first and the last need no ids. */
static enum err resolve_tokens(struct runner *r, const struct step *s)
{
    bool waits = r->first_stage && !r->last_stage;
    while (waits && r->n_handovers > r->cfg.pp)
        TRY(take_oldest(r));
    if (s->n_all_tokens)
        memcpy(r->tokens, s->tokens, s->n_all_tokens * sizeof(*r->tokens));
    for (uint32_t i = 0, at = 0; i < s->n_runs; at += s->n_tokens[i++]) {
        if (r->tokens[at] != STEP_TOKEN_SAMPLED)
            continue;
        while (waits && r->awaiting[s->slot[i]] && r->n_handovers)
            TRY(take_oldest(r));
        const struct slot *sl = &r->slots.slot[s->slot[i]];
        if (!sl->pending) /* else the device knows, and nobody else yet */
            r->tokens[at] = r->first_stage || r->last_stage ? sl->sampled : 0;
    }
    return ERR_OK;
}

/* ---- the result */

/* Rows of log-probabilities that a run gets. */
static uint32_t n_rows_of(const struct runner *r, const struct step *s, uint32_t run)
{
    uint32_t want = s->want[run];
    bool sample_lp = (want & RUN_WANT_SAMPLE) && (want & RUN_WANT_LOGPROBS);
    uint32_t prompt = want & RUN_WANT_PROMPT_LOGPROBS ? s->n_tokens[run] : 0;
    return prompt + sample_lp + (want & RUN_WANT_TARGETS ? r->slots.slot[s->slot[run]].n_targets : 0);
}

/* Room for all that the runs may get. */
static bool make_room(struct runner *r, uint64_t positions, uint64_t tops, uint64_t pooled)
{
    struct step_result *o = &r->f->res;
    struct arena *a = &r->f->arena;
    uint32_t **by_run[] = {&o->slot, &o->gen, &o->token, &o->n_positions, &o->mu_run};
    bool ok = true;
    for (size_t i = 0; i < ARRAY_LEN(by_run); i++)
        ok &= (*by_run[i] = arena_array(a, o->n_runs, sizeof(uint32_t))) != NULL;
    ok &= (o->mu = arena_array(a, o->n_runs, sizeof(float))) != NULL;
    ok &= (o->logprob = arena_array(a, positions, sizeof(float))) != NULL;
    ok &= (o->n_top = arena_array(a, positions, sizeof(uint32_t))) != NULL;
    ok &= (r->f->top_base = arena_array(a, positions, sizeof(uint32_t))) != NULL;
    ok &= (o->top_id = arena_array(a, tops, sizeof(uint32_t))) != NULL;
    ok &= (o->top_logprob = arena_array(a, tops, sizeof(float))) != NULL;
    ok &= (o->pooled = arena_array(a, pooled, sizeof(float))) != NULL;
    return ok;
}

static enum err begin_result(struct runner *r, const struct step *s)
{
    struct step_result *o = &r->f->res;
    arena_reset(&r->f->arena);
    *o = (struct step_result){.epoch = s->epoch, .step_id = s->step_id};
    uint64_t positions = 0, tops = 0, pooled = 0;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        r->f->res_of_run[i] = s->want[i] ? o->n_runs++ : SAMPLER_NONE;
        uint32_t n = n_rows_of(r, s, i);
        positions += n;
        pooled += s->want[i] & RUN_WANT_POOLED ? r->hp.dim : 0;
        tops += (uint64_t)n * r->slots.slot[s->slot[i]].n_logprobs;
    }
    if (!make_room(r, positions, tops, pooled))
        return err_set(ERR_NOMEM, "out of memory for the result of a step with %llu log-probabilities", (unsigned long long)tops);
    uint32_t pos = 0, top = 0;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        uint32_t at = r->f->res_of_run[i];
        if (at == SAMPLER_NONE)
            continue;
        o->slot[at] = s->slot[i];
        o->gen[at] = s->gen[i];
        o->token[at] = STEP_TOKEN_SAMPLED;
        o->n_positions[at] = n_rows_of(r, s, i);
        r->f->pos_base[at] = pos;
        for (uint32_t p = 0; p < o->n_positions[at]; p++) {
            o->logprob[pos] = NAN;
            r->f->top_base[pos++] = top;
            top += r->slots.slot[s->slot[i]].n_logprobs;
        }
    }
    o->n_all_positions = pos;
    o->pooled_dim = pooled ? r->hp.dim : 0;
    o->n_all_pooled = (uint32_t)pooled;
    r->f->n_pooled = 0;
    return ERR_OK;
}

/* Each position had room for all it might get: close the gaps. */
static void end_result(struct runner *r)
{
    struct step_result *o = &r->f->res;
    uint32_t to = 0;
    for (uint32_t p = 0; p < o->n_all_positions; p++) {
        if (to != r->f->top_base[p] && o->n_top[p]) {
            memmove(o->top_id + to, o->top_id + r->f->top_base[p], o->n_top[p] * sizeof(uint32_t));
            memmove(o->top_logprob + to, o->top_logprob + r->f->top_base[p], o->n_top[p] * sizeof(float));
        }
        to += o->n_top[p];
    }
    o->n_all_top = to;
}

/* ---- rows through the head */

/* What was sampled and scored goes into the result, and into the slots that still are who they were. */
static void take_rows(struct runner *r)
{
    struct step_result *o = &r->f->res;
    for (uint32_t i = 0; i < r->f->n_rows; i++) {
        const struct sampler_row *row = &r->f->rows[i];
        const struct row_dest *d = &r->f->dest[i];
        struct slot *sl = &r->slots.slot[d->slot];
        if (row->sample) {
            o->token[d->result] = row->token;
            if (sl->live && sl->gen == d->gen) {
                sl->sampled = row->token;
                sl->mu = row->mu;
                sl->pending -= r->f->deferred;
            }
            if (row->mirostat) {
                o->mu_run[o->n_mu] = d->result;
                o->mu[o->n_mu++] = row->mu;
            }
        }
        if (d->position != SAMPLER_NONE) {
            o->logprob[d->position] = row->lp;
            o->n_top[d->position] = row->n_top_out;
        }
    }
    r->f->n_rows = 0;
}

static void call_hook(struct runner *r)
{
    struct shard_rank own;
    shard_rank(&r->hp, &r->split, r->cfg.tp_rank, &own);
    for (uint32_t i = 0; i < r->f->n_rows; i++)
        r->hook(r->hook_arg, r->f->dest[i].slot, r->f->rows[i].position, own.vocab.first, own.vocab.n, device_logits(r->device, i));
}

static enum err flush_rows(struct runner *r)
{
    struct flight *f = r->f;
    if (f->n_rows == 0)
        return ERR_OK;
    uint64_t t0 = clock_ns();
    TRY(device_head(r->device, f->n_rows));
    uint64_t t1 = clock_ns();
    f->forward_ns += t1 - t0;
    if (f->deferred)
        return device_sample_begin(r->device, f->rows, f->n_rows);
    if (r->hook)
        call_hook(r);
    TRY(device_sample(r->device, f->rows, f->n_rows));
    take_rows(r);
    f->sample_ns += clock_ns() - t1;
    if (r->cfg.tick)
        r->cfg.tick(r->cfg.tick_arg);
    return ERR_OK;
}

/* tok: of the batch, whose state predicts `position`; TOK_KEPT: the state kept of the slot does. lp_row: row of log-probabilities in the result, or
 * SAMPLER_NONE. */
static enum err add_row(struct runner *r, const struct step *s, uint32_t run, uint32_t tok, uint32_t position, bool sample, uint32_t target,
                        uint32_t lp_row)
{
    uint32_t i = r->f->n_rows, slot = s->slot[run];
    const struct slot *sl = &r->slots.slot[slot];
    bool lp = lp_row != SAMPLER_NONE;
    if (tok == TOK_KEPT)
        device_put_kept(r->device, i, slot);
    else
        device_put_row(r->device, i, tok);
    r->f->rows[i] = (struct sampler_row){.slot = sl, .slot_idx = slot, .mirostat = sl->mirostat != 0, .position = position, .sample = sample,
                                      .logprob = lp && sample, .target = target,
                                      .n_top = lp ? sl->n_logprobs : 0,
                                      .top_id = lp ? r->f->res.top_id + r->f->top_base[lp_row] : NULL,
                                      .top_lp = lp ? r->f->res.top_logprob + r->f->top_base[lp_row] : NULL};
    r->f->dest[i] = (struct row_dest){r->f->res_of_run[run], lp_row, slot, sl->gen};
    return ++r->f->n_rows == r->rows_cap && !r->f->deferred ? flush_rows(r) : ERR_OK; /* deferred: they fit (may_defer) */
}

/* What a batch's part of a run adds to the pooled state of its slot; on the rank that answers alone. */
static enum err pool_rows(struct runner *r, const struct step *s, const struct batch_run *b)
{
    struct slot *sl = &r->slots.slot[s->slot[b->run]];
    uint32_t dim = r->hp.dim;
    for (uint32_t i = 0; sl->pooling == POOLING_MEAN && i < b->n_tok; i++) {
        TRY(device_state(r->device, b->tok0 + i, r->normed));
        for (uint32_t j = 0; j < dim; j++)
            sl->pool_sum[j] += (double)r->normed[j];
    }
    if (!(s->want[b->run] & RUN_WANT_POOLED) || b->first + b->n_tok < s->n_tokens[b->run])
        return ERR_OK;
    float *y = r->f->res.pooled + (size_t)r->f->n_pooled++ * dim;
    bool finite = true;
    if (sl->pooling == POOLING_RANK) {
        memset(y, 0, dim * sizeof(*y));
        TRY(device_classify(r->device, b->tok0 + b->n_tok - 1, y));
    }
    if (sl->pooling == POOLING_LAST)
        TRY(device_state(r->device, b->tok0 + b->n_tok - 1, y));
    for (uint32_t j = 0; j < dim; j++) {
        if (sl->pooling == POOLING_MEAN)
            y[j] = (float)(sl->pool_sum[j] / (b->pos0 + b->n_tok));
        finite &= isfinite(y[j]) != 0;
    }
    return finite ? ERR_OK : err_set(ERR_CORRUPT, "the hidden state at position %u is not finite (damaged weights)", b->pos0 + b->n_tok - 1);
}

/* The rows that a batch's part of a run gives to the head. tokens: of the whole run. */
static enum err rows_of_run(struct runner *r, const struct step *s, const struct batch_run *b, const uint32_t *tokens)
{
    uint32_t run = b->run, n = s->n_tokens[run], want = s->want[run];
    struct slot *sl = &r->slots.slot[s->slot[run]];
    bool prompt = want & RUN_WANT_PROMPT_LOGPROBS;
    uint32_t base = want ? r->f->pos_base[r->f->res_of_run[run]] : 0;
    if (prompt && b->first == 0 && sl->hidden_valid)
        TRY(add_row(r, s, run, TOK_KEPT, s->start[run], false, tokens[0], base));
    for (uint32_t i = 0; i < b->n_tok; i++) {
        uint32_t j = b->first + i, next = b->pos0 + i + 1;
        uint32_t tok = b->tok0 + i;
        bool last = j + 1 == n;
        if (last && (want & RUN_WANT_SAMPLE))
            TRY(add_row(r, s, run, tok, next, true, SAMPLER_NONE, want & RUN_WANT_LOGPROBS ? base + (prompt ? n : 0) : SAMPLER_NONE));
        else if (prompt && !last)
            TRY(add_row(r, s, run, tok, next, false, tokens[j + 1], base + j + 1));
        else if (r->hook)
            TRY(add_row(r, s, run, tok, next, false, SAMPLER_NONE, SAMPLER_NONE));
        for (uint32_t k = 0; last && (want & RUN_WANT_TARGETS) && k < sl->n_targets; k++) /* the last rows of the run */
            TRY(add_row(r, s, run, tok, next, false, sl->target[k], base + n_rows_of(r, s, run) - sl->n_targets + k));
        if (last) {
            sl->hidden_valid = prompt;
            if (prompt)
                device_keep(r->device, s->slot[run], tok);
        }
    }
    return ERR_OK;
}

/* ---- the step */

static enum err run_batches(struct runner *r, const struct step *s)
{
    struct batch_walk w = {0};
    while (batch_next(&r->batch, &w, s, r->tokens, &r->slots)) {
        uint64_t t0 = clock_ns();
        TRY(device_forward(r->device, &r->batch));
        r->f->forward_ns += clock_ns() - t0;
        for (uint32_t i = 0; r->last_stage && i < r->batch.n_runs; i++) {
            const struct batch_run *b = &r->batch.runs[i];
            TRY(rows_of_run(r, s, b, r->batch.token + b->tok0 - b->first));
            if (r->slots.slot[s->slot[b->run]].pooling)
                TRY(device_flush(r->device)); /* rank 0 waits for the state, which the others help to make */
            if (r->cfg.tp_rank == 0 && r->slots.slot[s->slot[b->run]].pooling)
                TRY(pool_rows(r, s, b));
        }
    }
    if (r->f->n_rows == 0)
        return device_flush(r->device);
    return r->last_stage ? flush_rows(r) : ERR_OK;
}

/* ---- steps in flight
 *
 * A device that samples by itself (device_info.defers) lets a step begin before the one before it is finished: its input tokens are what the device has just
 * sampled. Only steps that need nothing of the host's in between: lone stages, no new sequences, nothing for which the host looks back at tokens. */

/* May the device sample this step while the host goes on? */
static bool may_defer(const struct runner *r, const struct step *s)
{
    uint32_t n = 0;
    if (!r->device->info.defers || r->cfg.pp > 1 || r->hook || s->n_setups)
        return false;
    for (uint32_t i = 0; i < s->n_runs; i++) {
        const struct slot *sl = &r->slots.slot[s->slot[i]];
        if ((s->want[i] & ~(uint32_t)(RUN_WANT_SAMPLE | RUN_WANT_LOGPROBS)) || sl->pooling || slot_looks_back(sl))
            return false;
        n += (s->want[i] & RUN_WANT_SAMPLE) != 0;
    }
    return n <= r->rows_cap && s->n_all_tokens <= r->batch.cap;
}

bool runner_may_begin(const struct runner *r, const struct step *s)
{
    return r->n_flights == 0 || (r->n_flights < RUNNER_IN_FLIGHT && slots_known(&r->slots, s) && may_defer(r, s));
}

static void count_pending(struct runner *r, const struct step *s)
{
    for (uint32_t i = 0; i < s->n_runs; i++)
        r->slots.slot[s->slot[i]].pending += (s->want[i] & RUN_WANT_SAMPLE) != 0;
}

enum err runner_begin(struct runner *r, const struct step *s)
{
    ASSERT(r->n_flights < RUNNER_IN_FLIGHT);
    if (r->cfg.tp * r->cfg.pp > 1 && !r->comm)
        return err_set(ERR_UNAVAILABLE, "a step came before the communicator");
    r->f = &r->flights[(r->flight_first + r->n_flights) % RUNNER_IN_FLIGHT];
    r->f->n_rows = 0;
    r->f->forward_ns = r->f->sample_ns = 0;
    r->f->wait0_ns = r->comm ? comm_stats(r->comm).wait_ns : 0;
    TRY(slots_check(&r->slots, s));
    TRY(resolve_tokens(r, s));
    r->f->deferred = may_defer(r, s);
    slots_apply(&r->slots, s);
    for (uint32_t i = 0; r->last_stage && i < s->n_setups; i++)
        TRY(device_setup(r->device, s->setups[i].slot, &r->slots.slot[s->setups[i].slot]));
    for (uint32_t i = 0, at = 0; i < s->n_runs; at += s->n_tokens[i++])
        slots_advance(&r->slots, s, i, r->tokens + at);
    if (r->last_stage)
        TRY(begin_result(r, s));
    if (r->first_stage && !r->last_stage)
        expect_sampled(r, s);
    TRY(run_batches(r, s));
    if (r->f->deferred)
        count_pending(r, s);
    else if (r->last_stage && !r->first_stage)
        TRY(send_sampled(r, s));
    r->n_flights++;
    return ERR_OK;
}

uint32_t runner_in_flight(const struct runner *r)
{
    return r->n_flights;
}

bool runner_is_ready(struct runner *r)
{
    const struct flight *f = &r->flights[r->flight_first];
    return r->n_flights && (!f->deferred || !f->n_rows || device_sample_ready(r->device));
}

enum err runner_finish(struct runner *r, struct step_result *out, bool *has_result)
{
    ASSERT(r->n_flights > 0);
    struct flight *f = r->f = &r->flights[r->flight_first];
    *has_result = false;
    r->flight_first = (r->flight_first + 1) % RUNNER_IN_FLIGHT;
    r->n_flights--;
    if (!r->last_stage)
        return ERR_OK;
    if (f->deferred && f->n_rows) {
        TRY(device_sample_end(r->device, f->rows, f->n_rows));
        take_rows(r);
    }
    end_result(r);
    uint64_t wait = r->comm ? comm_stats(r->comm).wait_ns - f->wait0_ns : 0;
    f->res.comm_us = (uint32_t)(wait / 1000);
    f->res.compute_us = (uint32_t)((f->forward_ns > wait ? f->forward_ns - wait : 0) / 1000);
    f->res.sample_us = (uint32_t)(f->sample_ns / 1000);
    *out = f->res;
    *has_result = r->cfg.tp_rank == 0;
    return ERR_OK;
}

enum err runner_step(struct runner *r, const struct step *s, struct step_result *out, bool *has_result)
{
    ASSERT(r->n_flights == 0);
    *has_result = false;
    TRY(runner_begin(r, s));
    return runner_finish(r, out, has_result);
}
