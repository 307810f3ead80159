/* device.h on this host's processors: the weights, the KV pool, the forward pass (forward.c) and the sampler of one rank, joined. */
#include "base/check.h"
#include "worker/device.h"
#include "worker/forward.h"

#include <stdlib.h>
#include <string.h>

struct cpu {
    struct device d;
    struct weights weights;
    struct kv_pool kv;
    struct forward fwd;
    struct sampler *sampler; /* last stage */
    float *kept;             /* [max_seqs][dim], last stage */
};

static struct cpu *cpu_of(struct device *d)
{
    return (struct cpu *)d;
}
static bool last_stage(const struct device *d)
{
    return d->cfg.stage + 1 == d->cfg.split->pp;
}
static float *state_of(struct cpu *c, uint32_t tok)
{
    return c->fwd.x + (size_t)tok * c->d.cfg.hp->dim;
}
static void copy_state(const struct cpu *c, float *to, const float *from)
{
    memcpy(to, from, c->d.cfg.hp->dim * sizeof(float));
}

static enum err plan(struct device *d, const struct gguf *g)
{
    struct cpu *c = cpu_of(d);
    TRY(weights_plan(g, d->cfg.hp, d->cfg.split, d->cfg.tp_rank, d->cfg.stage, d->cfg.kernels->weight_bytes, &c->weights));
    d->info.weights_bytes_planned = c->weights.planned_bytes;
    d->info.file_bytes = c->weights.file_bytes;
    d->info.n_layers = c->weights.n_layers;
    return ERR_OK;
}

static uint64_t reserve_bytes(struct device *d, const struct device_sizes *s)
{
    (void)d;
    (void)s;
    return 0; /* the half of the memory that KV does not take is for them */
}

static enum err load(struct device *d, const struct gguf *g, weights_progress_fn *progress, void *arg)
{
    struct cpu *c = cpu_of(d);
    TRY(weights_load(&c->weights, g, d->cfg.hp, d->cfg.stage, d->cfg.split, d->cfg.kernels, d->cfg.pool, progress, arg));
    d->info.weights_bytes = weights_resident_bytes(&c->weights);
    return ERR_OK;
}

static enum err prepare(struct device *d, const struct device_sizes *s)
{
    struct cpu *c = cpu_of(d);
    const struct hparams *hp = d->cfg.hp;
    struct shard_rank own;
    shard_rank(hp, d->cfg.split, d->cfg.tp_rank, &own);
    TRY(kv_pool_init(&c->kv, hp, own.kv_heads.n, c->weights.n_layers, s->kv_type, s->kv_blocks));
    ASSERT(c->kv.block_stride * c->kv.n_layers == shard_kv_block_bytes(hp, d->cfg.split, s->kv_type, d->cfg.tp_rank, d->cfg.stage));
    d->info.kv_bytes = c->kv.bytes;
    struct forward_config fc = {.hp = hp, .split = d->cfg.split, .tp_rank = d->cfg.tp_rank, .stage = d->cfg.stage, .k = d->cfg.kernels,
                                .pool = d->cfg.pool, .w = &c->weights, .kv = &c->kv, .batch_cap = s->batch_cap, .rows_cap = s->rows_cap,
                                .tick = d->cfg.tick, .tick_arg = d->cfg.tick_arg};
    TRY(forward_init(&c->fwd, &fc));
    d->info.activation_bytes = c->fwd.map_bytes;
    if (!last_stage(d))
        return ERR_OK;
    struct sampler_config pc = {.tp = d->cfg.split->tp, .tp_rank = d->cfg.tp_rank, .vocab = hp->vocab, .rows_cap = s->rows_cap,
                                .ctx = s->ctx, .pool = d->cfg.pool};
    memcpy(pc.ids, c->fwd.vocab.r, sizeof(pc.ids));
    TRY(sampler_create(&pc, &c->sampler));
    c->kept = calloc((size_t)s->max_seqs * hp->dim, sizeof(float)); /* touched by few */
    return c->kept ? ERR_OK : err_set(ERR_NOMEM, "out of memory for the states of %u sequences", s->max_seqs);
}

static enum err comm_create(struct device *d, const struct comm_config *cfg, struct comm **out, struct comm_addr *own)
{
    (void)d;
    return comm_ucx_create(cfg, out, own);
}

static enum err reset(struct device *d)
{
    (void)d;
    return ERR_OK;
}

static enum err forward(struct device *d, const struct batch *b)
{
    cpu_of(d)->fwd.comm = d->comm;
    return forward_run(&cpu_of(d)->fwd, b);
}

static void put_row(struct device *d, uint32_t row, uint32_t tok)
{
    struct cpu *c = cpu_of(d);
    copy_state(c, c->fwd.head_x + (size_t)row * d->cfg.hp->dim, state_of(c, tok));
}

static void keep(struct device *d, uint32_t slot, uint32_t tok)
{
    struct cpu *c = cpu_of(d);
    copy_state(c, c->kept + (size_t)slot * d->cfg.hp->dim, state_of(c, tok));
}

static void put_kept(struct device *d, uint32_t row, uint32_t slot)
{
    struct cpu *c = cpu_of(d);
    copy_state(c, c->fwd.head_x + (size_t)row * d->cfg.hp->dim, c->kept + (size_t)slot * d->cfg.hp->dim);
}

static enum err head(struct device *d, uint32_t n)
{
    forward_head(&cpu_of(d)->fwd, n);
    return ERR_OK;
}

static const float *logits(struct device *d, uint32_t row)
{
    return cpu_of(d)->fwd.logits + row * cpu_of(d)->fwd.logits_stride;
}

static enum err sample(struct device *d, struct sampler_row *rows, uint32_t n)
{
    struct cpu *c = cpu_of(d);
    return sampler_run(c->sampler, d->comm, c->fwd.logits, c->fwd.logits_stride, rows, n);
}

static enum err state(struct device *d, uint32_t tok, float *y)
{
    forward_final_norm(&cpu_of(d)->fwd, state_of(cpu_of(d), tok), y);
    return ERR_OK;
}

static enum err classify(struct device *d, uint32_t tok, float *y)
{
    forward_classify(&cpu_of(d)->fwd, state_of(cpu_of(d), tok), y);
    return ERR_OK;
}

static void destroy(struct device *d)
{
    struct cpu *c = cpu_of(d);
    sampler_destroy(&c->sampler);
    forward_deinit(&c->fwd);
    kv_pool_deinit(&c->kv);
    weights_deinit(&c->weights);
    free(c->kept);
    free(c);
}

static const struct device_ops ops = {
    .destroy = destroy, .plan = plan, .reserve_bytes = reserve_bytes, .load = load, .prepare = prepare, .comm_create = comm_create, .reset = reset,
    .forward = forward, .put_row = put_row, .keep = keep, .put_kept = put_kept, .head = head, .logits = logits, .sample = sample,
    .state = state, .classify = classify,
};

enum err device_cpu_create(const struct device_config *cfg, struct device **out)
{
    ASSERT(cfg->kernels && cfg->pool);
    struct cpu *c = calloc(1, sizeof(*c));
    if (!c)
        return err_set(ERR_NOMEM, "out of memory for a device");
    c->d = (struct device){.ops = &ops, .cfg = *cfg, .info = {.backend = cfg->kernels->name, .memory_bytes = cfg->memory_bytes}};
    *out = &c->d;
    return ERR_OK;
}
