#include "worker/device_cuda.h"

#include "base/check.h"
#include "base/clock.h"
#include "base/log.h"
#include "worker/comm/comm_nccl.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { WAIT_SPIN_US = 200, WAIT_SLEEP_US = 50, SETTLE_LIMIT_S = 5, COMPUTE_MIN = 80, VOCAB_MAX = 1 << 20 };

/* ---- errors and waiting */

enum err device_cuda_error(cudaError_t e, const char *what)
{
    cudaGetLastError(); /* one that is not sticky must not be found again by the next launch */
    enum err ours = e == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_DEVICE;
    err_set(ours, "%.*s: %s (%s)", (int)strcspn(what, "("), what, cudaGetErrorString(e), cudaGetErrorName(e));
    LOG(ERROR, WORKER, "CUDA failed", "call=\"%s\" error=%s", what, cudaGetErrorName(e));
    return ours;
}

cudaError_t device_cuda_query(cudaEvent_t event)
{
    cudaError_t e = cudaEventQuery(event);
    if (e == cudaErrorNotReady)
        cudaGetLastError(); /* or the next launch finds it */
    return e;
}

/* Until an event has come to pass; spins first, for steps are short. tick: the caller may be told meanwhile to end. */
static enum err poll_event(struct cuda *c, cudaEvent_t event, uint64_t limit_ns, bool tick)
{
    for (uint64_t t0 = clock_ns(), waited; ;) {
        cudaError_t e = device_cuda_query(event);
        if (e == cudaSuccess)
            return ERR_OK;
        if (e != cudaErrorNotReady)
            return device_cuda_error(e, "cudaEventQuery(step)");
        if (tick && c->d.cfg.tick)
            c->d.cfg.tick(c->d.cfg.tick_arg);
        waited = clock_ns() - t0;
        if (waited > limit_ns)
            return err_set(ERR_DEVICE, "GPU %d has not ended what it was given for %llu s", c->d.cfg.cuda_ordinal, (unsigned long long)(limit_ns / NS_PER_S));
        if (waited > WAIT_SPIN_US * 1000ull) {
            struct timespec ts = {0, WAIT_SLEEP_US * 1000l};
            nanosleep(&ts, NULL);
        }
    }
}

enum err device_cuda_wait(struct cuda *c)
{
    TRY_CUDA(cudaEventRecord(c->done, c->stream));
    return device_cuda_wait_event(c, c->done);
}

enum err device_cuda_wait_event(struct cuda *c, cudaEvent_t event)
{
    return c->d.comm ? comm_nccl_wait(c->d.comm, c->stream, event) : poll_event(c, event, CUDA_WAIT_LIMIT_S * NS_PER_S, true);
}

/* ---- memory */

static void *place(struct cuda_arena *a, size_t n, size_t size)
{
    size_t at = a->at;
    a->at = ROUND_UP(at + n * size, (size_t)CUDA_ALIGN);
    return a->base ? a->base + at : NULL;
}

size_t device_cuda_carve_block(struct cuda *c, struct cuda_step_block *b, uint8_t *base)
{
    struct cuda_arena a = {base, 0};
    uint32_t cap = c->sizes.batch_cap;
    b->n_updates = place(&a, 1, sizeof(*b->n_updates));
    b->token = place(&a, cap, sizeof(*b->token));
    b->pos = place(&a, cap, sizeof(*b->pos));
    b->slot = place(&a, cap, sizeof(*b->slot));
    b->alone = place(&a, cap, sizeof(*b->alone));
    b->tile_tok = place(&a, c->tiles_cap, sizeof(*b->tile_tok));
    b->tile_n = place(&a, c->tiles_cap, sizeof(*b->tile_n));
    b->row_src = place(&a, cuda_last_stage(c) ? CUDA_ROW_LISTS * c->sizes.rows_cap : 0, sizeof(*b->row_src));
    b->rows = place(&a, cuda_last_stage(c) ? c->sizes.rows_cap : 0, sizeof(*b->rows));
    b->updates = place(&a, c->updates_cap, sizeof(*b->updates)); /* last: seldom long */
    b->bytes = a.at;
    return a.at;
}

static struct cuda_limits limits_of(const struct cuda *c, const struct device_sizes *s)
{
    const struct hparams *hp = c->d.cfg.hp;
    uint32_t rows = MAX(MAX(hp->dim, c->own.vocab.n), MAX(c->own.ffn.n, c->own.heads.n * hp->head_dim));
    return (struct cuda_limits){.n_tok = s->batch_cap, .n_seqs = s->max_seqs, .n_heads = c->own.heads.n, .head_dim_v = hp->head_dim_v, .ctx = s->ctx,
                                .rows_max = rows, .cols_max = MAX(hp->dim, MAX(c->o_cols, c->down_cols))};
}

static struct cuda_sample_config sample_config(const struct cuda *c, const struct device_sizes *s)
{
    struct cuda_sample_config sc = {.vocab = c->d.cfg.hp->vocab, .slots = s->max_seqs, .rows_cap = s->rows_cap, .ctx = s->ctx, .tp = c->tp};
    for (uint32_t r = 0; r < c->tp; r++) {
        struct shard_rank sr;
        shard_rank(c->d.cfg.hp, c->d.cfg.split, r, &sr);
        sc.ids[r] = sr.vocab;
    }
    return sc;
}

static void carve_head(struct cuda *c, const struct device_sizes *s, struct cuda_arena *a)
{
    struct cuda_sample_config sc = sample_config(c, s);
    size_t rows = s->rows_cap;
    c->logits_stride = 0;
    for (uint32_t r = 0; r < c->tp; r++)
        c->logits_stride = MAX(c->logits_stride, ROUND_UP((size_t)sc.ids[r].n, (size_t)16));
    c->head_x = place(a, rows * c->d.cfg.hp->dim, sizeof(float));
    c->logits = place(a, c->tp * rows * c->logits_stride, sizeof(float));
    c->logits_own = c->logits ? c->logits + c->d.cfg.tp_rank * rows * c->logits_stride : NULL;
    c->kept = place(a, (size_t)s->max_seqs * c->d.cfg.hp->dim, sizeof(float));
    c->out.out = place(a, rows, sizeof(*c->out.out));
    c->out.top_id = place(a, rows * CUDA_TOP_CAP, sizeof(*c->out.top_id));
    c->out.top_lp = place(a, rows * CUDA_TOP_CAP, sizeof(*c->out.top_lp));
    c->changes_cap = s->ctx + MSG_BAD_IDS_MAX;
    c->changes = place(a, c->changes_cap, sizeof(*c->changes));
    uint8_t *sampler = place(a, cuda_sample_bytes(&sc), 1);
    if (sampler)
        cuda_sample_init(&sc, sampler, &c->sample);
}

size_t device_cuda_carve(struct cuda *c, const struct device_sizes *s, uint8_t *base)
{
    const struct hparams *hp = c->d.cfg.hp;
    struct cuda_arena a = {base, 0};
    size_t n = s->batch_cap, rows = s->rows_cap, half = hp->rope_dims / 2, wide = MAX(c->o_cols, c->down_cols);
    struct cuda_limits limits = limits_of(c, s);
    size_t block = device_cuda_carve_block(c, &c->dev, NULL);
    uint8_t *dev = place(&a, block, 1);
    if (dev)
        device_cuda_carve_block(c, &c->dev, dev);
    c->table_stride = ROUND_UP(((size_t)s->ctx + SHARD_KV_BLOCK - 1) / SHARD_KV_BLOCK, (size_t)4);
    c->qkv_stride = ROUND_UP((size_t)(c->own.heads.n + c->own.kv_heads.n) * hp->head_dim + (size_t)c->own.kv_heads.n * hp->head_dim_v, (size_t)4);
    c->tables = place(&a, s->max_seqs * c->table_stride, sizeof(*c->tables));
    c->turn = place(&a, 1, sizeof(*c->turn));
    c->inv_freq = place(&a, half + 1, sizeof(*c->inv_freq));
    c->x = place(&a, n * hp->dim, sizeof(float));
    c->cos = place(&a, n * half, sizeof(float));
    c->sin = place(&a, n * half, sizeof(float));
    c->h = place(&a, MAX(n, rows) * hp->dim, sizeof(float));
    c->h_scale = place(&a, MAX(n, rows), sizeof(float));
    c->a = place(&a, n * wide, sizeof(float));
    c->a_scale = place(&a, n, sizeof(float));
    c->qkv = place(&a, n * c->qkv_stride, sizeof(float));
    c->attn = place(&a, n * c->o_cols, sizeof(float));
    c->gate = place(&a, n * c->down_cols, sizeof(float));
    c->up = place(&a, n * c->down_cols, sizeof(float));
    c->y = place(&a, n * hp->dim, sizeof(float));
    c->workspace_bytes = cuda_workspace_bytes(&limits);
    c->workspace = place(&a, c->workspace_bytes, 1);
    if (cuda_last_stage(c))
        carve_head(c, s, &a);
    return a.at;
}

/* The pinned side: the block, and what comes back. */
static size_t carve_pinned(struct cuda *c, const struct device_sizes *s, uint8_t *base)
{
    struct cuda_arena a = {base, 0};
    size_t block = device_cuda_carve_block(c, &c->host[0], NULL);
    c->ring = place(&a, CUDA_BLOCKS * block, 1);
    for (uint32_t i = 0; c->ring && i < CUDA_BLOCKS; i++)
        device_cuda_carve_block(c, &c->host[i], c->ring + i * block);
    c->host_state = place(&a, MAX(c->d.cfg.hp->dim, c->w.cls.rows), sizeof(float));
    if (cuda_last_stage(c)) {
        c->host_logits = place(&a, c->logits_stride, sizeof(float));
        c->host_setup = place(&a, 1, sizeof(*c->host_setup));
        c->host_allowed = place(&a, (c->d.cfg.hp->vocab + 31) / 32, sizeof(*c->host_allowed));
        c->host_changes = place(&a, c->changes_cap, sizeof(*c->host_changes));
        for (uint32_t i = 0; i < CUDA_BLOCKS; i++) {
            c->results[i].out = place(&a, s->rows_cap, sizeof(*c->results[i].out));
            c->results[i].top_id = place(&a, s->rows_cap * CUDA_TOP_CAP, sizeof(*c->results[i].top_id));
            c->results[i].top_lp = place(&a, s->rows_cap * CUDA_TOP_CAP, sizeof(*c->results[i].top_lp));
        }
    }
    return a.at;
}

/* ---- device.h */

static void size_caps(struct cuda *c, const struct device_sizes *s)
{
    c->sizes = *s;
    c->tiles_cap = s->batch_cap; /* at worst a tile a token: short runs */
    c->updates_cap = 2 * s->batch_cap + s->batch_cap / SHARD_KV_BLOCK;
}

/* Columns of what o and down take: all of the tensor's, or this rank's with the blocks on its borders. */
static void input_cols(struct cuda *c, const struct gguf *g)
{
    const struct hparams *hp = c->d.cfg.hp;
    const struct shard_split *s = c->d.cfg.split;
    uint32_t first = s->layer_first[c->d.cfg.stage], end = s->layer_first[c->d.cfg.stage + 1];
    struct shard_range own_o = {c->own.heads.first * hp->head_dim_v, c->own.heads.n * hp->head_dim_v};
    uint32_t o_begin = own_o.first, o_end = o_begin + own_o.n, d_begin = c->own.ffn.first, d_end = d_begin + c->own.ffn.n;
    for (uint32_t l = first; l < end; l++) { /* the widest of the layers: their types may differ */
        char name[64];
        struct shard_range rows, cols;
        const struct gguf_tensor *t;
        snprintf(name, sizeof(name), "blk.%u.attn_output.weight", l);
        if ((t = gguf_tensor(g, name)) != NULL) {
            shard_tensor_slice(hp, s, t, c->d.cfg.tp_rank, c->d.cfg.stage, &rows, &cols);
            o_begin = MIN(o_begin, cols.first);
            o_end = MAX(o_end, cols.first + cols.n);
        }
        snprintf(name, sizeof(name), "blk.%u.ffn_down.weight", l);
        if ((t = gguf_tensor(g, name)) != NULL && c->own.ffn.n) {
            shard_tensor_slice(hp, s, t, c->d.cfg.tp_rank, c->d.cfg.stage, &rows, &cols);
            d_begin = MIN(d_begin, cols.first);
            d_end = MAX(d_end, cols.first + cols.n);
        }
    }
    c->o_cols = o_end - o_begin;
    c->o_skip = own_o.first - o_begin;
    c->down_cols = d_end - d_begin;
    c->down_skip = c->own.ffn.first - d_begin;
}

/* What the kernels cannot do, which a CPU can. */
static enum err check_shape(const struct hparams *hp)
{
    if (hp->dim % 8 || hp->head_dim % 8 || hp->head_dim_v % 8 || hp->ffn_dim % 8)
        return err_set(ERR_UNSUPPORTED, "GPU workers take sizes that are multiples of 8: the model has %u dimensions, heads of %u and %u, a feed-forward of %u (--backend cpu)",
                       hp->dim, hp->head_dim, hp->head_dim_v, hp->ffn_dim);
    if (hp->vocab > VOCAB_MAX)
        return err_set(ERR_UNSUPPORTED, "GPU workers sample from up to %d tokens, the model has %u (--backend cpu)", VOCAB_MAX, hp->vocab);
    return ERR_OK;
}

static enum err plan(struct device *d, const struct gguf *g)
{
    struct cuda *c = cuda_of(d);
    TRY(check_shape(d->cfg.hp));
    TRY(weights_plan(g, d->cfg.hp, d->cfg.split, d->cfg.tp_rank, d->cfg.stage, cuda_weight_bytes, &c->w));
    d->info.weights_bytes_planned = c->w.planned_bytes;
    d->info.file_bytes = c->w.file_bytes;
    d->info.n_layers = c->w.n_layers;
    shard_rank(d->cfg.hp, d->cfg.split, d->cfg.tp_rank, &c->own);
    input_cols(c, g);
    return ERR_OK;
}

static uint64_t reserve_bytes(struct device *d, const struct device_sizes *s)
{
    struct cuda *c = cuda_of(d);
    size_caps(c, s);
    return device_cuda_carve(c, s, NULL);
}

static enum err load(struct device *d, const struct gguf *g, weights_progress_fn *progress, void *arg)
{
    struct cuda *c = cuda_of(d);
    TRY(device_cuda_load(c, g, progress, arg));
    c->w.base = c->weights_mem;
    weights_hang(&c->w, g, d->cfg.hp, d->cfg.stage, d->cfg.split);
    d->info.weights_bytes = c->w.planned_bytes;
    return ERR_OK;
}

static enum err make_kv(struct cuda *c, const struct device_sizes *s)
{
    TRY(kv_pool_layout(&c->kv, c->d.cfg.hp, c->own.kv_heads.n, c->w.n_layers, s->kv_type, s->kv_blocks));
    TRY_CUDA(cudaMalloc((void **)&c->kv_mem, MAX(c->kv.bytes, (size_t)CUDA_ALIGN)));
    c->kv.map = c->kv_mem;
    c->d.info.kv_bytes = c->kv.bytes;
    return ERR_OK;
}

static enum err make_buffers(struct cuda *c, const struct device_sizes *s)
{
    const struct hparams *hp = c->d.cfg.hp;
    size_caps(c, s);
    size_t bytes = device_cuda_carve(c, s, NULL);
    TRY_CUDA(cudaMalloc((void **)&c->buffers_mem, bytes));
    device_cuda_carve(c, s, c->buffers_mem);
    TRY_CUDA(cudaHostAlloc((void **)&c->pinned, carve_pinned(c, s, NULL), cudaHostAllocDefault));
    carve_pinned(c, s, c->pinned);
    c->d.info.activation_bytes = bytes;
    /* Zeros where zeros must stay (columns beside the rank's own), and where ids must be valid though nobody has written them. */
    TRY_CUDA(cudaMemsetAsync(c->attn, 0, s->batch_cap * c->o_cols * sizeof(float), c->stream));
    TRY_CUDA(cudaMemsetAsync(c->gate, 0, s->batch_cap * c->down_cols * sizeof(float), c->stream));
    TRY_CUDA(cudaMemsetAsync(c->up, 0, s->batch_cap * c->down_cols * sizeof(float), c->stream));
    TRY_CUDA(cudaMemsetAsync(c->turn, 0, sizeof(*c->turn), c->stream));
    TRY_CUDA(cudaMemsetAsync(c->tables, 0, s->max_seqs * c->table_stride * sizeof(*c->tables), c->stream));
    double *freq = calloc(hp->rope_dims / 2 + 1, sizeof(*freq));
    if (!freq)
        return err_set(ERR_NOMEM, "out of memory for rotation frequencies");
    rope_freqs_init(hp, freq, &c->rope_magnitude);
    cudaError_t e = cudaMemcpy(c->inv_freq, freq, (hp->rope_dims / 2 + 1) * sizeof(*freq), cudaMemcpyHostToDevice);
    free(freq);
    TRY_CUDA(e);
    struct cuda_config kc = {.deterministic = c->d.cfg.deterministic, .workspace = c->workspace, .workspace_bytes = c->workspace_bytes,
                             .n_sms = (uint32_t)c->prop->multiProcessorCount};
    c->kernels = cuda_context_create(&kc);
    c->known = calloc(s->max_seqs, sizeof(*c->known));
    c->known_gen = calloc(s->max_seqs, sizeof(*c->known_gen));
    return c->kernels && c->known && c->known_gen ? ERR_OK : err_set(ERR_NOMEM, "out of memory for a GPU's tables");
}

static enum err prepare(struct device *d, const struct device_sizes *s)
{
    struct cuda *c = cuda_of(d);
    TRY(make_kv(c, s));
    TRY(make_buffers(c, s));
    if (cuda_last_stage(c)) {
        c->best = calloc(d->cfg.hp->vocab, sizeof(*c->best));
        c->z = calloc(s->ctx + 1, sizeof(*c->z));
        if (!c->best || !c->z)
            return err_set(ERR_NOMEM, "out of memory for a GPU's sampling tables");
    }
    LOG(INFO, WORKER, "GPU memory", "weights=%llu kv=%zu buffers=%llu workspace=%zu kernels=\"%s\"", (unsigned long long)c->w.planned_bytes, c->kv.bytes,
        (unsigned long long)d->info.activation_bytes, c->workspace_bytes, cuda_context_describe(c->kernels));
    TRY_CUDA(cudaDeviceSynchronize()); /* what set the kernels' workspace up had a stream of its own */
    return c->tp * d->cfg.split->pp == 1 ? device_cuda_warm(c) : ERR_OK; /* else with the communicator */
}

static enum err comm_create(struct device *d, const struct comm_config *cfg, struct comm **out, struct comm_addr *own)
{
    struct comm_nccl_config nc = {.comm = *cfg, .device = d->cfg.cuda_ordinal, .deterministic = d->cfg.deterministic};
    return comm_nccl_create(&nc, out, own);
}

/* Everything in the stream is done, or the GPU hangs: whatever the communicator, whose collectives have been aborted, says. */
static enum err settle(struct cuda *c)
{
    TRY_CUDA(cudaEventRecord(c->done, c->stream));
    return poll_event(c, c->done, SETTLE_LIMIT_S * NS_PER_S, false);
}

static enum err reset(struct device *d)
{
    struct cuda *c = cuda_of(d);
    TRY(settle(c));
    memset(c->known, 0, c->sizes.max_seqs * sizeof(*c->known));
    c->n_put = c->row_first = c->n_begun = c->begun_first = 0;
    c->pass_waits = c->head_waits = false;
    c->failed = ERR_OK;
    c->n_batches = 0; /* a batch that was never launched has not counted on the device */
    TRY_CUDA(cudaMemsetAsync(c->turn, 0, sizeof(*c->turn), c->stream));
    return ERR_OK;
}

/* The graphs hold the old one's operations. */
static enum err set_comm(struct device *d, struct comm *comm)
{
    struct cuda *c = cuda_of(d);
    if (c->tp * d->cfg.split->pp == 1)
        return ERR_OK;
    c->pass_waits = c->head_waits = false; /* the epoch is over: reset follows */
    device_cuda_graphs_destroy(c);
    return comm ? device_cuda_warm(c) : ERR_OK;
}

static enum err flush(struct device *d)
{
    return device_cuda_launch_pass(cuda_of(d));
}

static void destroy(struct device *d)
{
    struct cuda *c = cuda_of(d);
    if (c->done && settle(c) != ERR_OK)
        return; /* freeing would wait for it: what it holds ends with the process */
    device_cuda_graphs_destroy(c);
    free(c->best);
    free(c->z);
    cuda_context_destroy(&c->kernels);
    for (uint32_t i = 0; i < CUDA_BLOCKS; i++) {
        if (c->taken[i])
            cudaEventDestroy(c->taken[i]);
        if (c->sampled[i])
            cudaEventDestroy(c->sampled[i]);
    }
    cudaFree(c->weights_mem);
    cudaFree(c->kv_mem);
    cudaFree(c->buffers_mem);
    cudaFreeHost(c->pinned);
    if (c->done)
        cudaEventDestroy(c->done);
    if (c->stream)
        cudaStreamDestroy(c->stream);
    c->w.base = NULL;
    weights_deinit(&c->w);
    free(c->known);
    free(c->known_gen);
    free(c->prop);
    free(c);
}

static const struct device_ops ops = {
    .destroy = destroy, .plan = plan, .reserve_bytes = reserve_bytes, .load = load, .prepare = prepare, .comm_create = comm_create, .set_comm = set_comm, .reset = reset, .flush = flush,
    .forward = device_cuda_forward, .put_row = device_cuda_put_row, .keep = device_cuda_keep, .put_kept = device_cuda_put_kept,
    .head = device_cuda_head, .logits = device_cuda_logits, .sample = device_cuda_sample,
    .sample_begin = device_cuda_sample_begin, .sample_ready = device_cuda_sample_ready, .sample_end = device_cuda_sample_end, .setup = device_cuda_setup,
    .state = device_cuda_state,
    .classify = device_cuda_classify,
};

/* ---- opening */

/* What a driver that cannot be used is told. */
static enum err no_device(cudaError_t e, int32_t ordinal)
{
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0)
        return err_set(ERR_DEVICE, "cuda:%d: this host has no NVIDIA driver (%s); install one, or use --backend cpu", ordinal, cudaGetErrorName(e));
    if (e == cudaErrorInsufficientDriver)
        return err_set(ERR_DEVICE, "cuda:%d: the NVIDIA driver is for CUDA %d.%d, this racklm needs one for %d.%d or newer", ordinal, driver / 1000,
                       driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    if (e == cudaErrorNoDevice)
        return err_set(ERR_DEVICE, "cuda:%d: this host has no GPU that CUDA may use (CUDA_VISIBLE_DEVICES, nvidia-smi)", ordinal);
    return err_set(ERR_DEVICE, "cuda:%d: %s (%s)", ordinal, cudaGetErrorString(e), cudaGetErrorName(e));
}

static enum err open_gpu(struct cuda *c)
{
    int32_t ordinal = c->d.cfg.cuda_ordinal;
    int n = 0;
    size_t free_bytes, total_bytes;
    cudaError_t e = cudaGetDeviceCount(&n);
    if (e != cudaSuccess)
        return no_device(e, ordinal);
    if (ordinal >= n)
        return err_set(ERR_DEVICE, "cuda:%d: this host has %d GPU%s", ordinal, n, n == 1 ? "" : "s");
    c->prop = calloc(1, sizeof(*c->prop));
    if (!c->prop)
        return err_set(ERR_NOMEM, "out of memory for a GPU's properties");
    TRY_CUDA(cudaSetDevice(ordinal));
    TRY_CUDA(cudaGetDeviceProperties(c->prop, ordinal));
    if (c->prop->major * 10 + c->prop->minor < COMPUTE_MIN)
        return err_set(ERR_UNSUPPORTED, "cuda:%d: %s has compute capability %d.%d; racklm needs 8.0 (Ampere) or newer", ordinal, c->prop->name, c->prop->major,
                       c->prop->minor);
    snprintf(c->backend, sizeof(c->backend), "cuda sm_%d%d (%.80s)", c->prop->major, c->prop->minor, c->prop->name);
    TRY_CUDA(cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking));
    TRY_CUDA(cudaEventCreateWithFlags(&c->done, cudaEventDisableTiming));
    for (uint32_t i = 0; i < CUDA_BLOCKS; i++) {
        TRY_CUDA(cudaEventCreateWithFlags(&c->taken[i], cudaEventDisableTiming));
        TRY_CUDA(cudaEventCreateWithFlags(&c->sampled[i], cudaEventDisableTiming));
    }
    TRY_CUDA(cudaMemGetInfo(&free_bytes, &total_bytes));
    c->d.info.memory_bytes = c->d.cfg.memory_bytes ? MIN(c->d.cfg.memory_bytes, (uint64_t)free_bytes) : free_bytes;
    return ERR_OK;
}

enum err device_cuda_create(const struct device_config *cfg, struct device **out)
{
    ASSERT(cfg->pool && cfg->split->cut == SHARD_CUT_INPUTS);
    if (cfg->kv_type == KV_F32)
        return err_set(ERR_UNSUPPORTED, "an f32 KV cache is for CPU workers: f16, bf16, q8_0 and fp8 are for GPUs (--kv-type)");
    struct cuda *c = calloc(1, sizeof(*c));
    if (!c)
        return err_set(ERR_NOMEM, "out of memory for a device");
    c->d = (struct device){.ops = &ops, .cfg = *cfg, .info = {.backend = c->backend, .kv_takes_rest = true, .defers = true}};
    c->tp = cfg->split->tp;
    c->world_rank = cfg->stage * c->tp + cfg->tp_rank;
    c->use_graphs = true;
    enum err e = open_gpu(c);
    if (e != ERR_OK) {
        destroy(&c->d);
        return e;
    }
    *out = &c->d;
    return ERR_OK;
}
