/* The layers of a stage on a GPU.
 *
 * A batch's facts go into a pinned block (struct cuda_step_block), which the first kernel of the pass fetches; everything else reads device memory. A batch of lone tokens
 * (decode) is padded to a power of two and captured in a graph once for each size and bound of the context, so that such a step costs one
 * launch, the head and the sampling with it (device_cuda_sample.c); other batches are launched kernel by kernel, which long kernels hide.
 *
 * Tensor parallel: q, k, v, gate, up and the head are cut by rows, o and down by columns; their outputs are added up over the ranks (the bias of o by rank 0 alone). The
 * embedding is cut by ids: a rank has zeros for the others', and the sum is exact. */
#include "base/check.h"
#include "base/log.h"
#include "worker/comm/comm_nccl.h"
#include "worker/device_cuda.h"

#include <math.h>
#include <string.h>

enum { CTX_STEP = 256 };

/* ---- matrices with one input */

/* x += what o or down gave, summed over the ranks of the stage; then, where norm is given, act = its norm. */
static enum err add_and_norm(struct cuda *c, float *x, float *add, const float *norm, uint32_t n, const struct cuda_act *act)
{
    const struct hparams *hp = c->d.cfg.hp;
    if (add && c->tp > 1)
        return comm_nccl_all_reduce_norm(c->d.comm, add, x, norm, hp->norm_eps, n, hp->dim, act, c->stream);
    TRY_CUDA(cuda_add_norm(x, add, norm, hp->norm_eps, n, hp->dim, act, c->stream));
    return ERR_OK;
}

enum err device_cuda_make_input(struct cuda *c, struct cuda_input *in, enum cuda_type type, struct cuda_act *act)
{
    *act = (struct cuda_act){.type = type, .n = in->n, .k = in->k, .x = in->act, .scale = type == CUDA_F16 ? in->scale : NULL};
    switch (in->from) {
    case CUDA_INPUT_NORM:
        TRY(add_and_norm(c, in->x, in->add, in->norm, in->n, act));
        in->add = NULL; /* once */
        break;
    case CUDA_INPUT_ROWS:
        TRY_CUDA(cuda_act_from_f32(in->x, in->stride, act, c->stream));
        break;
    case CUDA_INPUT_SWIGLU:
        TRY_CUDA(cuda_swiglu(in->x, in->up, in->stride, act, c->stream));
        break;
    }
    return ERR_OK;
}

enum err device_cuda_project(struct cuda *c, struct cuda_input *in, const struct cuda_output *outs, uint32_t n_outs)
{
    static const enum cuda_type types[] = {CUDA_F16, CUDA_BF16, CUDA_F32};
    for (uint32_t t = 0; t < ARRAY_LEN(types); t++) {
        struct cuda_weight w[4];
        struct cuda_matmul m[4];
        uint32_t n = 0;
        for (uint32_t i = 0; i < n_outs; i++) {
            if (outs[i].w->rows == 0 || cuda_act_type(outs[i].w->type) != types[t])
                continue;
            w[n] = cuda_weight_of(outs[i].w);
            m[n] = (struct cuda_matmul){&w[n], outs[i].bias, outs[i].y, outs[i].stride};
            n++;
        }
        if (n == 0)
            continue;
        struct cuda_act act;
        TRY(device_cuda_make_input(c, in, types[t], &act));
        TRY_CUDA(cuda_matmul(c->kernels, m, n, &act, c->stream));
    }
    if (in->from == CUDA_INPUT_NORM && in->add) { /* this rank has no row of any: the residual goes on all the same, by the same calls as on other ranks */
        struct cuda_act act;
        TRY(device_cuda_make_input(c, in, CUDA_F16, &act));
    }
    return ERR_OK;
}

/* Where the columns that w takes begin in a buffer whose rank's own begin at `skip` and are from `first` of the tensor's on: blocks of another type begin
 * elsewhere. */
static uint32_t cols_at(const struct kernels_weight *w, uint32_t skip, uint32_t first)
{
    return w->rows ? skip - first % quant_traits[w->type].block_elems : 0;
}

/* y = this rank's part of w times the input; who adds it to the residual sums it over the ranks. */
static enum err project_part(struct cuda *c, struct cuda_input *in, const struct kernels_weight *w, const float *bias)
{
    uint32_t dim = c->d.cfg.hp->dim;
    struct cuda_output o = {w, c->d.cfg.tp_rank == 0 ? bias : NULL, c->y, dim};
    if (w->rows > 0)
        return device_cuda_project(c, in, &o, 1);
    TRY_CUDA(cudaMemsetAsync(c->y, 0, (size_t)in->n * dim * sizeof(float), c->stream));
    return ERR_OK;
}

/* ---- the stage */

static struct cuda_kv layer_kv(const struct cuda *c, uint32_t layer)
{
    const struct kv_pool *kv = &c->kv;
    return (struct cuda_kv){.layer = kv_pool_layer(kv, layer), .type = kv->type, .block_stride = kv->block_stride, .v_off = kv->v_off,
                            .k_head_stride = kv->k_head_stride, .v_head_stride = kv->v_head_stride, .n_kv_heads = kv->n_kv_heads,
                            .head_dim = kv->head_dim, .head_dim_v = kv->head_dim_v};
}

static enum err attend(struct cuda *c, const struct cuda_pass *p, uint32_t layer)
{
    const struct hparams *hp = c->d.cfg.hp;
    const struct weights_layer *L = &c->w.layers[layer];
    struct cuda_batch b = {c->dev.pos, c->dev.slot, c->tables, c->table_stride, p->n_tok};
    struct cuda_rope_kv r = {.qkv = c->qkv, .stride = c->qkv_stride, .n_heads = c->own.heads.n, .rope_dims = hp->rope_dims, .layout = hp->rope_layout,
                             .q_norm = L->q_norm, .k_norm = L->k_norm, .eps = hp->norm_eps, .cos = c->cos, .sin = c->sin, .kv = layer_kv(c, layer)};
    TRY_CUDA(cuda_rope_kv(&r, &b, c->stream));
    struct cuda_attention a = {.q = c->qkv, .out = c->attn + c->o_skip, .q_stride = c->qkv_stride, .out_stride = c->o_cols, .n_heads = c->own.heads.n,
                               .head0 = c->own.heads.first, .group = hp->n_heads / hp->n_kv_heads, .kv_head0 = c->own.kv_heads.first,
                               .kv = layer_kv(c, layer), .scale = 1.0f / sqrtf((float)hp->head_dim)};
    if (p->n_alone)
        TRY_CUDA(cuda_attention_decode(c->kernels, &a, &b, c->dev.alone, p->n_alone, p->ctx_max, c->stream));
    if (p->n_tiles)
        TRY_CUDA(cuda_attention_prefill(c->kernels, &a, &b, c->dev.tile_tok, c->dev.tile_n, p->n_tiles, c->stream));
    return ERR_OK;
}

static enum err run_layer(struct cuda *c, const struct cuda_pass *p, uint32_t layer, float *add)
{
    const struct hparams *hp = c->d.cfg.hp;
    const struct weights_layer *L = &c->w.layers[layer];
    uint32_t nq = c->own.heads.n * hp->head_dim, nk = c->own.kv_heads.n * hp->head_dim;
    struct cuda_input in = {.from = CUDA_INPUT_NORM, .n = p->n_tok, .k = hp->dim, .x = c->x, .add = add, .norm = L->attn_norm, .act = c->h, .scale = c->h_scale};
    const struct cuda_output qkv[] = {{&L->q, L->q_bias, c->qkv, c->qkv_stride}, {&L->k, L->k_bias, c->qkv + nq, c->qkv_stride},
                                 {&L->v, L->v_bias, c->qkv + nq + nk, c->qkv_stride}};
    TRY(device_cuda_project(c, &in, qkv, ARRAY_LEN(qkv)));
    TRY(attend(c, p, layer));
    in = (struct cuda_input){.from = CUDA_INPUT_ROWS, .n = p->n_tok, .k = L->o.cols, .stride = c->o_cols, .act = c->a, .scale = c->a_scale,
                        .x = c->attn + cols_at(&L->o, c->o_skip, c->own.heads.first * hp->head_dim_v)};
    TRY(project_part(c, &in, &L->o, L->o_bias));

    in = (struct cuda_input){.from = CUDA_INPUT_NORM, .n = p->n_tok, .k = hp->dim, .x = c->x, .add = c->y, .norm = L->ffn_norm, .act = c->h, .scale = c->h_scale};
    const struct cuda_output ffn[] = {{&L->gate, NULL, c->gate + c->down_skip, c->down_cols}, {&L->up, NULL, c->up + c->down_skip, c->down_cols}};
    TRY(device_cuda_project(c, &in, ffn, ARRAY_LEN(ffn)));
    uint32_t at = cols_at(&L->down, c->down_skip, c->own.ffn.first);
    in = (struct cuda_input){.from = CUDA_INPUT_SWIGLU, .n = p->n_tok, .k = L->down.cols, .x = c->gate + at, .up = c->up + at, .stride = c->down_cols, .act = c->a,
                        .scale = c->a_scale};
    return project_part(c, &in, &L->down, NULL);
}

static enum err enter_stage(struct cuda *c, const struct cuda_pass *p)
{
    const struct hparams *hp = c->d.cfg.hp;
    if (c->d.cfg.stage > 0)
        return comm_nccl_recv(c->d.comm, c->world_rank - c->tp, c->x, (size_t)p->n_tok * hp->dim * sizeof(float), c->stream);
    struct cuda_weight embd = cuda_weight_of(&c->w.embd);
    if (embd.rows)
        TRY_CUDA(cuda_weight_rows(&embd, c->dev.token, p->n_tok, c->own.vocab.first, c->x, c->stream));
    else
        TRY_CUDA(cudaMemsetAsync(c->x, 0, (size_t)p->n_tok * hp->dim * sizeof(float), c->stream));
    return c->tp > 1 ? comm_nccl_all_reduce(c->d.comm, c->x, (size_t)p->n_tok * hp->dim, c->stream) : ERR_OK;
}

static enum err enqueue_pass(struct cuda *c, const struct cuda_pass *p)
{
    const struct hparams *hp = c->d.cfg.hp;
    TRY_CUDA(cuda_step_fetch(c->ring, c->dev.bytes, CUDA_BLOCKS, c->turn, c->dev.bytes, c->dev.n_updates, c->stream));
    TRY_CUDA(cuda_step_tables(c->tables, c->table_stride, c->dev.updates, c->dev.n_updates, c->updates_cap, c->turn, c->stream));
    if (cuda_last_stage(c))
        TRY_CUDA(cuda_sample_inputs(&c->sample, c->dev.token, c->dev.slot, c->dev.pos, p->n_tok, c->stream));
    TRY_CUDA(cuda_rotations(c->dev.pos, p->n_tok, c->inv_freq, hp->rope_dims / 2, c->rope_magnitude, c->cos, c->sin, c->stream));
    TRY(enter_stage(c, p));
    for (uint32_t l = 0; l < c->w.n_layers; l++)
        TRY(run_layer(c, p, l, l ? c->y : NULL));
    TRY(add_and_norm(c, c->x, c->y, NULL, p->n_tok, NULL));
    if (cuda_last_stage(c))
        return ERR_OK;
    return comm_nccl_send(c->d.comm, c->world_rank + c->tp, c->x, (size_t)p->n_tok * hp->dim * sizeof(float), c->stream);
}

/* ---- graphs */

void device_cuda_graphs_destroy(struct cuda *c)
{
    for (uint32_t k = 0; k < 2; k++)
        for (uint32_t i = 0; i < CUDA_GRAPH_TOKENS; i++)
            for (uint32_t j = 0; j < CUDA_GRAPH_CTX; j++) {
                if (c->graph[k][i][j])
                    cudaGraphExecDestroy(c->graph[k][i][j]);
                c->graph[k][i][j] = NULL;
            }
}

static enum err enqueue_whole(struct cuda *c, const struct cuda_pass *p, bool with_head)
{
    TRY(enqueue_pass(c, p));
    if (!with_head)
        return ERR_OK;
    TRY_CUDA(cuda_gather_rows(c->x, c->dev.row_src, p->n_tok, c->d.cfg.hp->dim, c->head_x, c->stream));
    TRY(device_cuda_enqueue_head(c, p->n_tok));
    return device_cuda_enqueue_sample(c, p->n_tok);
}

static enum err capture(struct cuda *c, const struct cuda_pass *p, bool with_head, cudaGraphExec_t *out)
{
    cudaGraph_t graph = NULL;
    TRY_CUDA(cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal));
    enum err e = enqueue_whole(c, p, with_head);
    cudaError_t ce = cudaStreamEndCapture(c->stream, &graph);
    if (e == ERR_OK && ce == cudaSuccess)
        ce = cudaGraphInstantiate(out, graph, 0);
    if (graph)
        cudaGraphDestroy(graph);
    TRY(e);
    TRY_CUDA(ce);
    return ERR_OK;
}

/* The smallest i with 1 << i >= n. */
static uint32_t log2_up(uint32_t n)
{
    uint32_t i = 0;
    while (1u << i < n)
        i++;
    return i;
}

/* ---- the block */

static uint32_t pad_tokens(const struct cuda *c, const struct batch *b)
{
    uint32_t i = log2_up(b->n_tok);
    return c->use_graphs && b->n_runs == b->n_tok && i < CUDA_GRAPH_TOKENS && 1u << i <= c->sizes.batch_cap ? 1u << i : b->n_tok;
}

/* The entries of a run's table that the device has not got. False when there is no room. */
static bool update_table(struct cuda *c, struct cuda_step_block *k, const struct batch_run *r)
{
    uint32_t need = (r->pos0 + r->n_tok + SHARD_KV_BLOCK - 1) / SHARD_KV_BLOCK;
    if (c->known_gen[r->slot] != r->gen || c->known[r->slot] > need) {
        c->known_gen[r->slot] = r->gen;
        c->known[r->slot] = 0;
    }
    while (c->known[r->slot] < need) {
        uint32_t at = c->known[r->slot];
        if (*k->n_updates == c->updates_cap)
            return false;
        k->updates[(*k->n_updates)++] = (struct cuda_table_update){r->slot, at, r->blocks[at]};
        c->known[r->slot]++;
    }
    return true;
}

static struct cuda_pass fill_block(struct cuda *c, struct cuda_step_block *k, const struct batch *b)
{
    struct cuda_pass p = {.n_tok = pad_tokens(c, b)};
    for (uint32_t i = 0; i < b->n_tok; i++) {
        k->token[i] = b->token[i];
        k->pos[i] = b->pos[i];
        k->slot[i] = b->runs[b->run_of[i]].slot;
    }
    for (uint32_t i = 0; cuda_last_stage(c) && i < c->sizes.rows_cap; i++)
        k->rows[i].slot = SAMPLING_NONE;
    for (uint32_t i = 0; cuda_last_stage(c) && i < CUDA_ROW_LISTS * c->sizes.rows_cap; i++)
        k->row_src[i] = CUDA_NO_TOKEN;
    for (uint32_t i = b->n_tok; i < p.n_tok; i++) {
        k->token[i] = k->pos[i] = 0;
        k->slot[i] = CUDA_NO_TOKEN;
    }
    for (uint32_t i = 0; i < b->n_runs; i++) {
        const struct batch_run *r = &b->runs[i];
        p.ctx_max = MAX(p.ctx_max, r->pos0 + r->n_tok);
        if (r->n_tok == 1 || c->d.cfg.deterministic) {
            for (uint32_t j = 0; j < r->n_tok; j++)
                k->alone[p.n_alone++] = r->tok0 + j;
            continue;
        }
        for (uint32_t j = 0; j < r->n_tok; j += CUDA_ATTN_TILE) {
            k->tile_tok[p.n_tiles] = r->tok0 + j;
            k->tile_n[p.n_tiles++] = MIN(r->n_tok - j, (uint32_t)CUDA_ATTN_TILE);
        }
    }
    if (p.n_tok > b->n_tok || (c->use_graphs && p.n_alone == p.n_tok)) {
        while (p.n_alone < p.n_tok)
            k->alone[p.n_alone++] = CUDA_NO_TOKEN;
        p.ctx_max = MIN((uint32_t)CTX_STEP << log2_up((p.ctx_max + CTX_STEP - 1) / CTX_STEP), ROUND_UP(c->sizes.ctx, (uint32_t)CTX_STEP));
    }
    return p;
}

/* Tables so long that they do not fit the block (a context that came whole) go ahead in turns of their own. */
static enum err update_tables(struct cuda *c, struct cuda_step_block *k, const struct batch *b)
{
    *k->n_updates = 0;
    for (uint32_t i = 0; i < b->n_runs; i++)
        while (!update_table(c, k, &b->runs[i])) {
            TRY_CUDA(cudaMemcpyAsync(c->dev.updates, k->updates, *k->n_updates * sizeof(*k->updates), cudaMemcpyHostToDevice, c->stream));
            TRY_CUDA(cudaMemcpyAsync(c->dev.n_updates, k->n_updates, sizeof(*k->n_updates), cudaMemcpyHostToDevice, c->stream));
            TRY_CUDA(cuda_step_tables(c->tables, c->table_stride, c->dev.updates, c->dev.n_updates, c->updates_cap, c->turn, c->stream));
            TRY_CUDA(cudaMemcpyAsync(c->turn, &c->n_batches, sizeof(*c->turn), cudaMemcpyHostToDevice, c->stream)); /* not a batch (little-endian) */
            TRY(device_cuda_wait(c));
            *k->n_updates = 0;
        }
    return ERR_OK;
}

/* Captures it, unless it is there. Without memory for it there are no graphs from here on, which costs time and nothing else. */
static enum err find_graph(struct cuda *c, const struct cuda_pass *p, bool with_head, cudaGraphExec_t *g)
{
    enum err e = *g ? ERR_OK : capture(c, p, with_head, g);
    if (e != ERR_NOMEM)
        return e;
    LOG(WARN, WORKER, "no memory for a graph: kernels are launched one by one", "tokens=%u ctx=%u", p->n_tok, p->ctx_max);
    c->use_graphs = false;
    return ERR_OK;
}

static enum err launch_graph(struct cuda *c, bool with_head)
{
    const struct cuda_pass *p = &c->pass;
    uint32_t i = log2_up(p->n_tok), j = log2_up((p->ctx_max + CTX_STEP - 1) / CTX_STEP);
    cudaGraphExec_t *g = &c->graph[with_head][i][j];
    c->pass_waits = false;
    TRY(find_graph(c, p, with_head, g));
    if (*g)
        TRY_CUDA(cudaGraphLaunch(*g, c->stream));
    else
        TRY(enqueue_whole(c, p, with_head));
    TRY_CUDA(cudaEventRecord(c->taken[(c->n_batches - 1) % CUDA_BLOCKS], c->stream));
    return ERR_OK;
}

enum err device_cuda_launch_pass(struct cuda *c)
{
    return c->pass_waits ? launch_graph(c, false) : ERR_OK;
}

enum err device_cuda_launch_whole(struct cuda *c, bool *done)
{
    *done = c->pass_waits && c->head_waits && c->row_first == 0 && c->n_put == c->head_rows && c->pass.n_tok <= c->sizes.rows_cap && c->head_rows <= c->pass.n_tok;
    if (!*done)
        return ERR_OK;
    c->head_waits = false;
    c->n_put = 0;
    return launch_graph(c, true);
}

enum err device_cuda_warm(struct cuda *c)
{
    bool last = cuda_last_stage(c);
    uint32_t most = MIN(MIN(c->sizes.max_seqs, c->sizes.batch_cap), last ? c->sizes.rows_cap : UINT32_MAX);
    for (uint32_t i = 0; c->use_graphs && i < CUDA_GRAPH_TOKENS && 1u << i <= most; i++) {
        struct cuda_pass p = {.n_tok = 1u << i, .n_alone = 1u << i, .ctx_max = MIN((uint32_t)CTX_STEP, ROUND_UP(c->sizes.ctx, (uint32_t)CTX_STEP))};
        TRY(find_graph(c, &p, last, &c->graph[last][i][0]));
    }
    return ERR_OK;
}

static bool fits_graph(const struct cuda *c, const struct cuda_pass *p)
{
    uint32_t i = log2_up(p->n_tok), j = log2_up((p->ctx_max + CTX_STEP - 1) / CTX_STEP);
    return c->use_graphs && p->n_alone == p->n_tok && p->n_tok == 1u << i && i < CUDA_GRAPH_TOKENS && j < CUDA_GRAPH_CTX;
}

enum err device_cuda_forward(struct device *d, const struct batch *b)
{
    struct cuda *c = cuda_of(d);
    uint32_t at = (uint32_t)(c->n_batches % CUDA_BLOCKS);
    struct cuda_step_block *k = &c->host[at];
    TRY(device_cuda_failed(c));
    TRY(device_cuda_launch_pass(c));
    TRY(device_cuda_gather(c)); /* of the batch before, whose states go */
    if (c->n_batches >= CUDA_BLOCKS)
        TRY(device_cuda_wait_event(c, c->taken[at]));
    TRY(update_tables(c, k, b));
    c->pass = fill_block(c, k, b);
    c->n_batches++;
    c->row_first = 0;
    if (fits_graph(c, &c->pass)) {
        c->pass_waits = true; /* until it is known what of the head goes with it */
    } else {
        TRY(enqueue_pass(c, &c->pass));
        TRY_CUDA(cudaEventRecord(c->taken[at], c->stream));
    }
    if (!cuda_last_stage(c))
        TRY(device_cuda_launch_pass(c));
    if (d->cfg.tick)
        d->cfg.tick(d->cfg.tick_arg);
    return ERR_OK;
}
