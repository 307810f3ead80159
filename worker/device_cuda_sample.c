/* The rows of a batch that go through the head on a GPU, and the sampling of their tokens there (kernels/cuda/sample.h).
 *
 * Rows are named in the step's block beside the batch they come from, so that for a batch of lone tokens layers, head and sampling are one graph. Tensor parallel: the
 * logits of all ranks are gathered on every rank, and each comes to the same tokens. Results come back through pinned memory, one place for each block, so that the next
 * step may be launched before they are read. */
#include "base/check.h"
#include "base/clock.h"
#include "worker/comm/comm_nccl.h"
#include "worker/device_cuda.h"
#include "worker/sampler_history.h"

#include <string.h>

/* ---- rows */

static void name_row(struct cuda *c, uint32_t row, uint32_t tok)
{
    cuda_last_block(c)->row_src[c->row_first + row] = tok;
    c->n_put = row + 1;
}

void device_cuda_put_row(struct device *d, uint32_t row, uint32_t tok)
{
    name_row(cuda_of(d), row, tok);
}

/* Each gathering has a list of its own in the block, so that none need be waited for before the next is written; a batch with more of them than lists waits once in a
 * while. */
enum err device_cuda_gather(struct cuda *c)
{
    if (c->n_put == 0)
        return ERR_OK;
    struct cuda_step_block *k = cuda_last_block(c);
    uint32_t *src = c->dev.row_src + c->row_first, rows_cap = c->sizes.rows_cap;
    TRY(device_cuda_launch_pass(c));
    TRY_CUDA(cudaMemcpyAsync(src, k->row_src + c->row_first, c->n_put * sizeof(*src), cudaMemcpyHostToDevice, c->stream));
    TRY_CUDA(cuda_gather_rows(c->x, src, c->n_put, c->d.cfg.hp->dim, c->head_x, c->stream));
    TRY_CUDA(cudaEventRecord(c->taken[(c->n_batches - 1) % CUDA_BLOCKS], c->stream)); /* the block is read until here */
    c->row_first += c->n_put;
    c->n_put = 0;
    if (c->row_first + rows_cap <= CUDA_ROW_LISTS * rows_cap)
        return ERR_OK;
    TRY(device_cuda_wait(c));
    for (uint32_t i = 0; i < CUDA_ROW_LISTS * rows_cap; i++)
        k->row_src[i] = CUDA_NO_TOKEN;
    c->row_first = 0;
    return ERR_OK;
}

static enum err try_copy(struct cuda *c, float *to, const float *from)
{
    TRY(device_cuda_launch_pass(c));
    TRY_CUDA(cudaMemcpyAsync(to, from, c->d.cfg.hp->dim * sizeof(float), cudaMemcpyDeviceToDevice, c->stream));
    return ERR_OK;
}

enum err device_cuda_failed(const struct cuda *c)
{
    return c->failed == ERR_OK ? ERR_OK : err_set(c->failed, "what the host asked of GPU %d beside its steps failed", c->d.cfg.cuda_ordinal);
}

static void copy_state(struct cuda *c, float *to, const float *from)
{
    enum err e = try_copy(c, to, from);
    if (e != ERR_OK)
        c->failed = e;
}

void device_cuda_keep(struct device *d, uint32_t slot, uint32_t tok)
{
    struct cuda *c = cuda_of(d);
    size_t dim = d->cfg.hp->dim;
    copy_state(c, c->kept + slot * dim, c->x + tok * dim);
}

void device_cuda_put_kept(struct device *d, uint32_t row, uint32_t slot)
{
    struct cuda *c = cuda_of(d);
    size_t dim = d->cfg.hp->dim;
    copy_state(c, c->head_x + row * dim, c->kept + slot * dim);
    name_row(c, row, CUDA_NO_TOKEN);
}

static struct cuda_input normed(struct cuda *c, float *x, uint32_t n)
{
    return (struct cuda_input){.from = CUDA_INPUT_NORM, .n = n, .k = c->d.cfg.hp->dim, .x = x, .norm = c->w.out_norm, .act = c->h, .scale = c->h_scale};
}

/* ---- the head */

enum err device_cuda_enqueue_head(struct cuda *c, uint32_t n)
{
    struct cuda_input in = normed(c, c->head_x, n);
    struct cuda_output o = {&c->w.head, NULL, c->logits_own, c->logits_stride};
    return device_cuda_project(c, &in, &o, 1);
}

enum err device_cuda_head(struct device *d, uint32_t n)
{
    struct cuda *c = cuda_of(d);
    c->head_rows = n;
    c->head_waits = true; /* until it is known whether sampling goes with it */
    return ERR_OK;
}

/* The head, if it still waits, launched by itself. */
static enum err launch_head(struct cuda *c)
{
    TRY(device_cuda_failed(c));
    if (!c->head_waits)
        return ERR_OK;
    c->head_waits = false;
    TRY(device_cuda_launch_pass(c));
    TRY(device_cuda_gather(c));
    return device_cuda_enqueue_head(c, c->head_rows);
}

static enum err fetch_logits(struct cuda *c, uint32_t row)
{
    TRY(launch_head(c));
    TRY_CUDA(cudaMemcpyAsync(c->host_logits, c->logits_own + row * c->logits_stride, c->own.vocab.n * sizeof(float), cudaMemcpyDeviceToHost, c->stream));
    return device_cuda_wait(c);
}

const float *device_cuda_logits(struct device *d, uint32_t row)
{
    struct cuda *c = cuda_of(d);
    enum err e = fetch_logits(c, row);
    if (e != ERR_OK)
        c->failed = e; /* device_sample says so, which comes next */
    return c->host_logits;
}

/* ---- set-up of slots */

static void fill_setup(struct cuda_sample_slot *u, const struct slot *sl)
{
    u->params = slot_params(sl);
    u->token = 0;
    u->mu = sl->mu;
    u->penalty_last_n = sl->penalty_last_n;
    u->has_allowed = sl->allowed != NULL;
    u->n_stop = sl->n_stop;
    u->n_bias = sl->n_bias;
    memcpy(u->stop, sl->stop, sl->n_stop * sizeof(*u->stop));
    memcpy(u->bias_id, sl->bias_id, sl->n_bias * sizeof(*u->bias_id));
    memcpy(u->bias, sl->bias, sl->n_bias * sizeof(*u->bias));
}

enum err device_cuda_setup(struct device *d, uint32_t slot, const struct slot *sl)
{
    struct cuda *c = cuda_of(d);
    size_t vocab = d->cfg.hp->vocab;
    fill_setup(c->host_setup, sl);
    if (sl->allowed)
        memcpy(c->host_allowed, sl->allowed, (vocab + 31) / 32 * sizeof(uint32_t));
    TRY_CUDA(cuda_sample_setup(&c->sample, slot, c->host_setup, sl->allowed ? c->host_allowed : NULL, c->stream));
    /* Tokens of a prefix that is skipped: the host has counted them already. */
    if (sl->pos && sl->has_penalties)
        TRY_CUDA(cudaMemcpyAsync(c->sample.counts + slot * vocab, sl->counts, vocab * sizeof(*sl->counts), cudaMemcpyHostToDevice, c->stream));
    if (sl->pos && sl->has_penalties && sl->penalty_last_n)
        TRY_CUDA(cudaMemcpyAsync(c->sample.history + slot * (size_t)c->sizes.ctx, sl->tokens, sl->pos * sizeof(*sl->tokens), cudaMemcpyHostToDevice,
                                 c->stream));
    return device_cuda_wait(c); /* the pinned set-up is written again for the next */
}

/* ---- sampling */

static enum err sample_rows(struct cuda *c, uint32_t first, uint32_t n)
{
    struct cuda_sample_call call = {.logits = c->logits + first * c->logits_stride, .rank_stride = c->sizes.rows_cap * c->logits_stride,
                                    .row_stride = c->logits_stride, .rows = c->dev.rows + first, .changes = c->changes, .out = c->out.out + first,
                                    .top_id = c->out.top_id + (size_t)first * CUDA_TOP_CAP, .top_lp = c->out.top_lp + (size_t)first * CUDA_TOP_CAP,
                                    .n = n, .top_cap = CUDA_TOP_CAP};
    TRY_CUDA(cuda_sample_run(&c->sample, &call, c->stream));
    return ERR_OK;
}

static enum err gather_logits(struct cuda *c, uint32_t n)
{
    size_t off[SHARD_TP_MAX], len[SHARD_TP_MAX];
    if (c->tp == 1)
        return ERR_OK;
    for (uint32_t r = 0; r < c->tp; r++) {
        off[r] = r * c->sizes.rows_cap * c->logits_stride * sizeof(float);
        len[r] = n * c->logits_stride * sizeof(float);
    }
    return comm_nccl_all_gather(c->d.comm, c->logits, off, len, c->stream);
}

enum err device_cuda_enqueue_sample(struct cuda *c, uint32_t n)
{
    TRY(gather_logits(c, n));
    TRY(sample_rows(c, 0, n));
    TRY_CUDA(cuda_step_store(&c->out, c->results, CUDA_BLOCKS, c->turn, n, CUDA_TOP_CAP, c->stream));
    return ERR_OK;
}

static bool looks_back(const struct sampler_row *row)
{
    return row->sample && slot_looks_back(row->slot);
}

static void fill_rows(struct cuda_step_block *k, const struct sampler_row *rows, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        k->rows[i] = (struct cuda_sample_row){.slot = rows[i].slot_idx, .position = rows[i].position, .sample = rows[i].sample, .logprob = rows[i].logprob,
                                              .target = rows[i].target, .n_top = rows[i].n_top};
}

static enum err note_begun(struct cuda *c)
{
    uint32_t at = (uint32_t)((c->n_batches - 1) % CUDA_BLOCKS);
    ASSERT(c->n_begun < CUDA_BLOCKS);
    c->begun[(c->begun_first + c->n_begun++) % CUDA_BLOCKS] = at;
    c->sampled_ns[at] = clock_ns();
    TRY_CUDA(cudaEventRecord(c->sampled[at], c->stream));
    return ERR_OK;
}

static enum err take_rows_to_device(struct cuda *c, uint32_t n)
{
    const struct cuda_step_block *k = cuda_last_block(c);
    TRY_CUDA(cudaMemcpyAsync(c->dev.rows, k->rows, n * sizeof(*k->rows), cudaMemcpyHostToDevice, c->stream));
    return ERR_OK;
}

enum err device_cuda_sample_begin(struct device *d, const struct sampler_row *rows, uint32_t n)
{
    struct cuda *c = cuda_of(d);
    bool whole;
    fill_rows(cuda_last_block(c), rows, n);
    TRY(device_cuda_launch_whole(c, &whole));
    if (!whole) {
        TRY(launch_head(c));
        TRY(take_rows_to_device(c, n));
        TRY(device_cuda_enqueue_sample(c, n));
    }
    return note_begun(c);
}

/* Rows for which the host looks back at tokens (DRY, sequences that must not become output) run one by one: what that takes off may be as long as the context. */
static enum err sample_looking_back(struct cuda *c, const struct sampler_row *rows, uint32_t n)
{
    struct cuda_step_block *k = cuda_last_block(c);
    for (uint32_t i = 0; i < n; i++) {
        if (!looks_back(&rows[i]))
            continue;
        uint32_t n_changes = sampler_history_changes(rows[i].slot, rows[i].position, c->best, c->z, c->host_changes);
        ASSERT(n_changes <= c->changes_cap);
        k->rows[i].n_changes = n_changes;
        TRY_CUDA(cudaMemcpyAsync(c->changes, c->host_changes, n_changes * sizeof(*c->changes), cudaMemcpyHostToDevice, c->stream));
        TRY(take_rows_to_device(c, n));
        TRY(sample_rows(c, i, 1));
        TRY(device_cuda_wait(c)); /* the pinned changes are written again */
        k->rows[i].n_changes = 0;
    }
    return ERR_OK;
}

enum err device_cuda_sample(struct device *d, struct sampler_row *rows, uint32_t n)
{
    struct cuda *c = cuda_of(d);
    struct cuda_step_block *k = cuda_last_block(c);
    TRY(launch_head(c));
    fill_rows(k, rows, n);
    TRY(gather_logits(c, n));
    TRY(sample_looking_back(c, rows, n));
    TRY(take_rows_to_device(c, n));
    for (uint32_t i = 0, end; i < n; i = end) { /* the others, in stretches */
        for (end = i; end < n && !looks_back(&rows[end]);)
            end++;
        if (end > i)
            TRY(sample_rows(c, i, end - i));
        while (end < n && looks_back(&rows[end]))
            end++;
    }
    TRY_CUDA(cuda_step_store(&c->out, c->results, CUDA_BLOCKS, c->turn, n, CUDA_TOP_CAP, c->stream));
    TRY(note_begun(c));
    return device_cuda_sample_end(d, rows, n);
}

/* True also when waiting has become hopeless: device_sample_end says so. */
bool device_cuda_sample_ready(struct device *d)
{
    struct cuda *c = cuda_of(d);
    uint32_t at = c->begun[c->begun_first];
    return device_cuda_query(c->sampled[at]) != cudaErrorNotReady || (d->comm && comm_overdue(d->comm)) || clock_ns() - c->sampled_ns[at] > CUDA_WAIT_LIMIT_S * NS_PER_S;
}

enum err device_cuda_sample_end(struct device *d, struct sampler_row *rows, uint32_t n)
{
    struct cuda *c = cuda_of(d);
    uint32_t at = c->begun[c->begun_first];
    const struct cuda_step_results *r = &c->results[at];
    c->begun_first = (c->begun_first + 1) % CUDA_BLOCKS;
    c->n_begun--;
    TRY(device_cuda_wait_event(c, c->sampled[at]));
    for (uint32_t i = 0; i < n; i++) {
        const struct cuda_sample_result *o = &r->out[i];
        if (o->flags & CUDA_SAMPLE_CORRUPT)
            return err_set(ERR_CORRUPT, "logits at position %u are not finite (damaged weights)", rows[i].position);
        rows[i].token = o->token;
        rows[i].lp = o->lp;
        rows[i].mu = o->mu;
        rows[i].n_top_out = MIN(o->n_top, rows[i].n_top);
        for (uint32_t j = 0; j < rows[i].n_top_out; j++) {
            rows[i].top_id[j] = r->top_id[(size_t)i * CUDA_TOP_CAP + j];
            rows[i].top_lp[j] = r->top_lp[(size_t)i * CUDA_TOP_CAP + j];
        }
    }
    return ERR_OK;
}

/* ---- pooled states */

enum err device_cuda_state(struct device *d, uint32_t tok, float *y)
{
    struct cuda *c = cuda_of(d);
    size_t dim = d->cfg.hp->dim;
    struct cuda_input in = normed(c, c->x + tok * dim, 1);
    struct cuda_act act;
    TRY(device_cuda_launch_pass(c));
    TRY(device_cuda_make_input(c, &in, CUDA_F32, &act));
    TRY_CUDA(cudaMemcpyAsync(c->host_state, act.x, dim * sizeof(float), cudaMemcpyDeviceToHost, c->stream));
    TRY(device_cuda_wait(c));
    memcpy(y, c->host_state, dim * sizeof(float));
    return ERR_OK;
}

enum err device_cuda_classify(struct device *d, uint32_t tok, float *y)
{
    struct cuda *c = cuda_of(d);
    uint32_t rows = c->w.cls.rows;
    struct cuda_input in = normed(c, c->x + (size_t)tok * d->cfg.hp->dim, 1);
    struct cuda_output o = {&c->w.cls, NULL, c->y, rows};
    TRY(device_cuda_launch_pass(c));
    TRY(device_cuda_project(c, &in, &o, 1));
    TRY_CUDA(cudaMemcpyAsync(c->host_state, c->y, rows * sizeof(float), cudaMemcpyDeviceToHost, c->stream));
    TRY(device_cuda_wait(c));
    memcpy(y, c->host_state, rows * sizeof(float));
    return ERR_OK;
}
