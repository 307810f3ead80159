#include "worker/forward.h"

#include "base/check.h"

#include <math.h>
#include <string.h>
#include <sys/mman.h>

enum { ROW_UNIT = 16, PIECES = 8 /* of a thread's stretch of a matrix */, ATTN_TOKENS = 32, UNPACK_ALONE = 4, PART_ALIGN = 64, QB = KERNELS_Q_BLOCK };

/* How the input of o or down gets from the ranks that made its columns to all of them. */
enum act_mode {
    ACT_Q8,     /* quantised where it was made; int8 and scales travel */
    ACT_F32,    /* fp32 travels; the matrix takes fp32 */
    ACT_F32_Q8, /* fp32 travels, then everybody quantises: a rank's columns begin inside a block of 32 */
};
/* Where this rank's columns go: straight into the whole activation with tp 1, else into its part of the gather buffer. */
struct act_part {
    float *f32;
    int8_t *q;
    float *d;
    size_t stride, d_stride; /* elements from token to token */
};
struct job { /* one matrix of a list that is shared out over the threads by rows */
    const struct kernels_weight *w;
    const float *bias;
    float *y;
    size_t stride;
};

#define SYNC(f) pool_barrier((f)->cfg.pool)

static bool takes_q8(const struct forward *f, const struct kernels_weight *w)
{
    return f->cfg.k->act(w->type) == QUANT_ACT_Q8;
}

/* ---- matrices and norms, shared out over the threads */

/* Does anything that reads the normed input of attention (of the feed-forward) take it quantised? */
static bool attn_q8(const struct forward *f, const struct weights_layer *L)
{
    return takes_q8(f, &L->q) || takes_q8(f, &L->k) || takes_q8(f, &L->v);
}
static bool ffn_q8(const struct forward *f, const struct weights_layer *L)
{
    return takes_q8(f, &L->gate) || takes_q8(f, &L->up);
}

static struct kernels_act act_view(const struct forward_act *a, uint32_t n, uint32_t k)
{
    return (struct kernels_act){.n = n, .k = k, .stride = a->stride, .f32 = a->f32, .q = a->q, .d = a->d};
}

static void job_rows(const struct forward *f, const struct job *j, const struct kernels_act *x, uint32_t begin, uint32_t end)
{
    f->cfg.k->matmul(j->w, x, begin, end, j->y, j->stride);
    if (j->bias)
        for (uint32_t i = 0; i < x->n; i++)
            f->cfg.k->add(j->y + i * j->stride + begin, j->bias + begin, end - begin);
}

/* ---- shares: rows in units of 16, taken two by two: the columns of ffn are quantised in blocks of 32, and kernels work on pairs of units */

static uint32_t units_of(uint32_t rows)
{
    return (rows + ROW_UNIT - 1) / ROW_UNIT;
}

/* Thread 0, while no thread takes of it; a barrier follows before one does. */
static void refill(struct forward *f, enum forward_product p)
{
    enum { UNIT = SHARD_FFN_UNIT / ROW_UNIT, TOKENS_MANY = 8, PIECE_OF_MANY = 8 };
    const struct weights *w = f->cfg.w;
    const struct weights_layer *L = w->layers; /* all layers are alike */
    uint32_t n = p == FORWARD_QKV    ? units_of(L->q.rows) + units_of(L->k.rows) + units_of(L->v.rows)
                 : p == FORWARD_O    ? units_of(L->o.rows)
                 : p == FORWARD_FFN  ? units_of(f->own.ffn.n)
                 : p == FORWARD_DOWN ? units_of(L->down.rows)
                                     : units_of(w->head.rows);
    uint32_t n_tok = p == FORWARD_HEAD ? f->head_rows : f->b->n_tok, piece = n / (pool_n_threads(f->cfg.pool) * PIECES);
    if (n_tok > TOKENS_MANY) /* each piece makes the sums of all tokens again (kernels/cpu/matmul.c) */
        piece = MAX(piece, (uint32_t)PIECE_OF_MANY);
    pool_share_set(f->share[p], pool_n_threads(f->cfg.pool), n, UNIT);
    f->piece[p] = ROUND_UP(MAX(piece, 1u), (uint32_t)UNIT);
}

static bool take(struct forward *f, enum forward_product p, unsigned ith, unsigned nth, uint32_t *begin, uint32_t *end)
{
    return pool_share_take(f->share[p], ith, nth, f->piece[p], begin, end);
}

/* The rows of all jobs in one line, in units of 16. */
static void matmul(struct forward *f, enum forward_product p, unsigned ith, unsigned nth, const struct job *jobs, uint32_t n_jobs, const struct kernels_act *x)
{
    uint32_t begin, end;
    while (take(f, p, ith, nth, &begin, &end)) {
        for (uint32_t j = 0, at = 0; j < n_jobs; at += units_of(jobs[j++].w->rows)) {
            uint32_t rows = jobs[j].w->rows, b = MAX(begin, at) - at, e = end > at ? MIN(end - at, units_of(rows)) : 0;
            if (b < e)
                job_rows(f, &jobs[j], x, b * ROW_UNIT, MIN(e * ROW_UNIT, rows));
        }
    }
}

static void norm_row(const struct forward *f, const float *x, const float *w, const struct forward_act *out, uint32_t i, bool q8)
{
    uint32_t dim = f->cfg.hp->dim;
    float *y = out->f32 + (size_t)i * out->stride;
    f->cfg.k->rmsnorm(x, w, f->cfg.hp->norm_eps, dim, y);
    if (q8)
        f->cfg.k->quantize(y, dim, out->q + (size_t)i * out->stride, out->d + (size_t)i * (out->stride / QB));
}

/* ---- exchanging columns */

/* Bytes of a rank's part, and where the parts lie. */
static size_t part_layout(const struct forward *f, const struct forward_cols *c, bool q8, uint32_t n, size_t *off, size_t *len)
{
    size_t at = 0;
    for (uint32_t r = 0; r < f->tp; r++) {
        size_t cols = c->r[r].n;
        off[r] = at;
        len[r] = q8 ? n * (cols + cols / QB * sizeof(float)) : n * cols * sizeof(float);
        at = ROUND_UP(at + len[r], (size_t)PART_ALIGN);
    }
    return at;
}

static struct act_part part_at(uint8_t *p, uint32_t cols, bool q8, uint32_t n)
{
    if (!q8)
        return (struct act_part){.f32 = (float *)p, .stride = cols};
    return (struct act_part){.q = (int8_t *)p, .d = (float *)(p + (size_t)n * cols), .stride = cols, .d_stride = cols / QB};
}

static struct act_part own_part(const struct forward *f, const struct forward_cols *c, enum act_mode mode, uint32_t n)
{
    if (f->tp == 1)
        return (struct act_part){f->a.f32, f->a.q, f->a.d, f->a.stride, f->a.stride / QB};
    size_t off[SHARD_TP_MAX], len[SHARD_TP_MAX];
    part_layout(f, c, mode == ACT_Q8, n, off, len);
    return part_at(f->parts + off[f->cfg.tp_rank], c->r[f->cfg.tp_rank].n, mode == ACT_Q8, n);
}

static enum act_mode mode_of(const struct forward *f, const struct kernels_weight *w, const struct forward_cols *c)
{
    return !takes_q8(f, w) ? ACT_F32 : c->aligned ? ACT_Q8 : ACT_F32_Q8;
}

/* Tokens [begin, end) of the parts into the whole activation f->a. */
static void unpack(const struct forward *f, const struct forward_cols *c, bool q8, uint32_t n, uint32_t begin, uint32_t end)
{
    size_t off[SHARD_TP_MAX], len[SHARD_TP_MAX];
    part_layout(f, c, q8, n, off, len);
    for (uint32_t r = 0; r < f->tp; r++) {
        struct act_part p = part_at(f->parts + off[r], c->r[r].n, q8, n);
        size_t first = c->r[r].first, cols = c->r[r].n;
        for (size_t i = begin; i < end && cols; i++) {
            if (q8) {
                memcpy(f->a.q + i * f->a.stride + first, p.q + i * p.stride, cols);
                memcpy(f->a.d + i * (f->a.stride / QB) + first / QB, p.d + i * p.d_stride, cols / QB * sizeof(float));
            } else {
                memcpy(f->a.f32 + i * f->a.stride + first, p.f32 + i * p.stride, cols * sizeof(float));
            }
        }
    }
}

/* All threads, own columns written: afterwards f->a holds the columns of all ranks. False after an error (f->err). */
static bool gather_cols(struct forward *f, unsigned ith, unsigned nth, const struct forward_cols *c, enum act_mode mode)
{
    uint32_t n = f->b->n_tok, begin, end;
    bool q8 = mode == ACT_Q8;
    pool_part(n, 1, ith, nth, &begin, &end);
    SYNC(f);
    if (f->tp > 1) {
        if (ith == 0) {
            size_t off[SHARD_TP_MAX], len[SHARD_TP_MAX];
            part_layout(f, c, q8, n, off, len);
            f->err = comm_allgather(f->comm, f->parts, off, len);
            if (n <= UNPACK_ALONE) /* cheaper than one more barrier */
                unpack(f, c, q8, n, 0, n);
        }
        SYNC(f);
        if (f->err != ERR_OK)
            return false;
        if (n > UNPACK_ALONE) {
            unpack(f, c, q8, n, begin, end);
            SYNC(f);
        }
    }
    if (mode == ACT_F32_Q8) {
        for (size_t i = begin; i < end; i++)
            f->cfg.k->quantize(f->a.f32 + i * f->a.stride, c->k, f->a.q + i * f->a.stride, f->a.d + i * (f->a.stride / QB));
        SYNC(f);
    }
    return true;
}

/* o or down: this rank's output rows from the whole f->a, then everybody's. */
static bool project_and_gather(struct forward *f, enum forward_product p, unsigned ith, unsigned nth, const struct kernels_weight *w, const float *bias, uint32_t k)
{
    size_t off[SHARD_TP_MAX], len[SHARD_TP_MAX];
    uint32_t n = f->b->n_tok;
    part_layout(f, &f->dim, false, n, off, len);
    struct job j = {w, bias, (float *)((uint8_t *)f->out + off[f->cfg.tp_rank]), f->own.dim_rows.n};
    struct kernels_act x = act_view(&f->a, n, k);
    matmul(f, p, ith, nth, &j, 1, &x);
    SYNC(f);
    if (ith == 0)
        refill(f, p);
    if (f->tp > 1) {
        if (ith == 0)
            f->err = comm_allgather(f->comm, f->out, off, len);
        SYNC(f);
    }
    return f->err == ERR_OK;
}

/* x += what was gathered; then, when norm is given, its normed form for the next block. */
static void add_and_norm(struct forward *f, unsigned ith, unsigned nth, const float *norm, bool q8)
{
    size_t off[SHARD_TP_MAX], len[SHARD_TP_MAX];
    uint32_t n = f->b->n_tok, dim = f->cfg.hp->dim, begin, end;
    part_layout(f, &f->dim, false, n, off, len);
    pool_part(n, 1, ith, nth, &begin, &end);
    for (uint32_t i = begin; i < end; i++) {
        float *x = f->x + (size_t)i * dim;
        for (uint32_t r = 0; r < f->tp; r++) {
            struct shard_range rows = f->dim.r[r];
            if (rows.n)
                f->cfg.k->add(x + rows.first, (const float *)((const uint8_t *)f->out + off[r]) + (size_t)i * rows.n, rows.n);
        }
        if (norm)
            norm_row(f, x, norm, &f->h, i, q8);
    }
    SYNC(f);
}

/* ---- attention */

/* Norm of each head (Qwen 3), rotation, and the new keys and values into the cache. Items: (token, head) with q heads, then KV heads. */
static void rotate_and_store(struct forward *f, unsigned ith, unsigned nth, uint32_t layer)
{
    const struct hparams *hp = f->cfg.hp;
    const struct kernels *k = f->cfg.k;
    const struct weights_layer *L = &f->cfg.w->layers[layer];
    const struct kv_pool *kv = f->cfg.kv;
    uint32_t nq = f->own.heads.n, nkv = f->own.kv_heads.n, hd = hp->head_dim, hdv = hp->head_dim_v, half = hp->rope_dims / 2;
    size_t stride = (size_t)(nq + nkv) * hd + (size_t)nkv * hdv;
    uint32_t begin, end;
    pool_part(f->b->n_tok * (nq + nkv), 1, ith, nth, &begin, &end);
    for (uint32_t item = begin; item < end; item++) {
        uint32_t i = item / (nq + nkv), h = item % (nq + nkv), pos = f->b->pos[i];
        float *row = f->qkv + i * stride, *x = row + (size_t)h * hd;
        const float *norm = h < nq ? L->q_norm : L->k_norm;
        if (norm)
            k->rmsnorm(x, norm, hp->norm_eps, hd, x);
        k->rope(x, 1, hd, hp->rope_dims, hp->rope_layout, f->cos + (size_t)i * half, f->sin + (size_t)i * half);
        if (h >= nq) {
            uint32_t block = f->b->runs[f->b->run_of[i]].blocks[pos / SHARD_KV_BLOCK];
            k->kv_write(kv->type, x, hd, kv_pool_k(kv, layer, block, h - nq, pos));
            k->kv_write(kv->type, row + (size_t)(nq + nkv) * hd + (size_t)(h - nq) * hdv, hdv, kv_pool_v(kv, layer, block, h - nq, pos));
        }
    }
    if (ith == 0)
        atomic_store_explicit(&f->next_item, 0, memory_order_relaxed);
    SYNC(f);
}

/* Local heads of one work item: all that share a KV head, or a single one when there is little to share out. */
static void item_heads(const struct forward *f, bool single, uint32_t c, uint32_t *begin, uint32_t *end)
{
    uint32_t group = f->cfg.hp->n_heads / f->cfg.hp->n_kv_heads, head0 = f->own.heads.first;
    if (single) {
        *begin = c;
        *end = c + 1;
        return;
    }
    uint32_t lo = (f->own.kv_heads.first + c) * group, hi = lo + group;
    *begin = MAX(lo, head0) - head0;
    *end = MIN(hi, head0 + f->own.heads.n) - head0;
}

/* Items (run, tile of tokens, heads) are taken as threads get free; who computes one makes no difference to its bits. */
static void attend(struct forward *f, unsigned ith, unsigned nth, uint32_t layer, const struct act_part *part, enum act_mode mode)
{
    const struct hparams *hp = f->cfg.hp;
    const struct kv_pool *kv = f->cfg.kv;
    uint32_t nq = f->own.heads.n, nkv = f->own.kv_heads.n, hd = hp->head_dim, hdv = hp->head_dim_v, tiles = 0;
    size_t stride = (size_t)(nq + nkv) * hd + (size_t)nkv * hdv;
    for (uint32_t r = 0; r < f->b->n_runs; r++)
        tiles += (f->b->runs[r].n_tok + ATTN_TOKENS - 1) / ATTN_TOKENS;
    bool single = tiles * nkv < 2 * nth;
    uint32_t chunks = single ? nq : nkv, run = 0, first = 0;
    float *scratch = f->scratch + ith * f->scratch_each;
    for (;;) {
        uint32_t item = atomic_fetch_add_explicit(&f->next_item, 1, memory_order_relaxed);
        if (item >= tiles * chunks)
            return;
        const struct batch_run *r = &f->b->runs[run];
        while (item - first >= (r->n_tok + ATTN_TOKENS - 1) / ATTN_TOKENS * chunks) {
            first += (r->n_tok + ATTN_TOKENS - 1) / ATTN_TOKENS * chunks;
            r = &f->b->runs[++run];
        }
        uint32_t t0 = (item - first) / chunks * ATTN_TOKENS, t1 = MIN(t0 + ATTN_TOKENS, r->n_tok), hb, he;
        item_heads(f, single, (item - first) % chunks, &hb, &he);
        float *out = mode == ACT_Q8 ? f->attn : part->f32;
        size_t out_stride = mode == ACT_Q8 ? (size_t)nq * hdv : part->stride;
        struct kernels_attn at = {
            .q = f->qkv + r->tok0 * stride, .out = out + r->tok0 * out_stride, .q_stride = stride, .out_stride = out_stride,
            .pos0 = r->pos0, .n_tok = r->n_tok, .head_dim = hd, .head_dim_v = hdv,
            .head0 = f->own.heads.first, .group = hp->n_heads / hp->n_kv_heads, .kv_head0 = f->own.kv_heads.first,
            .kv = kv_pool_layer(kv, layer), .block_stride = kv->block_stride, .v_off = kv->v_off,
            .k_head_stride = kv->k_head_stride, .v_head_stride = kv->v_head_stride,
            .blocks = r->blocks, .type = kv->type, .scale = 1.0f / sqrtf((float)hd)};
        f->cfg.k->attention(&at, hb, he, t0, t1, scratch);
        if (mode == ACT_Q8)
            for (size_t i = r->tok0 + t0; i < r->tok0 + t1; i++)
                f->cfg.k->quantize(out + i * out_stride + (size_t)hb * hdv, (he - hb) * hdv, part->q + i * part->stride + (size_t)hb * hdv,
                                   part->d + i * part->d_stride + (size_t)hb * hdv / QB);
    }
}

/* gate and up of a piece of the columns, then SwiGLU and quantisation of the same columns: no barrier between. */
static void feed(struct forward *f, unsigned ith, unsigned nth, const struct weights_layer *L, const struct act_part *part, enum act_mode mode)
{
    uint32_t n = f->b->n_tok, cols = f->own.ffn.n, begin, end;
    const struct kernels *k = f->cfg.k;
    struct kernels_act x = act_view(&f->h, n, f->cfg.hp->dim);
    float *tmp = f->scratch + ith * f->scratch_each;
    while (take(f, FORWARD_FFN, ith, nth, &begin, &end)) {
        begin *= ROW_UNIT;
        end = MIN(end * ROW_UNIT, cols);
        k->matmul(&L->gate, &x, begin, end, f->gate, cols);
        k->matmul(&L->up, &x, begin, end, f->up, cols);
        for (size_t i = 0; i < n; i++) {
            float *y = mode == ACT_Q8 ? tmp : part->f32 + i * part->stride + begin;
            k->swiglu(f->gate + i * cols + begin, f->up + i * cols + begin, end - begin, y);
            if (mode == ACT_Q8)
                k->quantize(y, end - begin, part->q + i * part->stride + begin, part->d + i * part->d_stride + begin / QB);
        }
    }
}

/* ---- the ends of a stage */

static void rotations(struct forward *f, uint32_t begin, uint32_t end)
{
    uint32_t half = f->cfg.hp->rope_dims / 2;
    for (size_t i = begin; i < end; i++) {
        for (uint32_t j = 0; j < half; j++) {
            double angle = f->b->pos[i] * f->inv_freq[j];
            f->cos[i * half + j] = (float)(cos(angle) * f->rope_magnitude);
            f->sin[i * half + j] = (float)(sin(angle) * f->rope_magnitude);
        }
    }
}

/* The embedding is cut by ids: each rank looks its own up, and the rows are gathered in the order of the tokens of each rank. */
static bool embed(struct forward *f, unsigned ith, unsigned nth)
{
    uint32_t n = f->b->n_tok, dim = f->cfg.hp->dim, begin, end;
    size_t off[SHARD_TP_MAX], len[SHARD_TP_MAX], at = 0;
    for (uint32_t r = 0; r < f->tp; r++) {
        off[r] = at;
        len[r] = (size_t)f->embd_n[r] * dim * sizeof(float);
        at += len[r];
    }
    pool_part(n, 1, ith, nth, &begin, &end);
    uint8_t *rows = (uint8_t *)f->out;
    for (uint32_t i = begin; i < end; i++) {
        if (f->embd_rank[i] != f->cfg.tp_rank)
            continue;
        float *y = f->tp == 1 ? f->x + (size_t)i * dim : (float *)(rows + off[f->cfg.tp_rank]) + (size_t)f->embd_idx[i] * dim;
        f->cfg.k->weight_row(&f->cfg.w->embd, f->b->token[i] - f->own.vocab.first, y);
    }
    if (f->tp == 1)
        return true;
    SYNC(f);
    if (ith == 0)
        f->err = comm_allgather(f->comm, f->out, off, len);
    SYNC(f);
    if (f->err != ERR_OK)
        return false;
    for (uint32_t i = begin; i < end; i++)
        memcpy(f->x + (size_t)i * dim, (float *)(rows + off[f->embd_rank[i]]) + (size_t)f->embd_idx[i] * dim, dim * sizeof(float));
    return true;
}

static bool receive(struct forward *f, unsigned ith)
{
    if (ith == 0)
        f->err = comm_recv(f->comm, f->world_rank - f->tp, f->x, (size_t)f->b->n_tok * f->cfg.hp->dim * sizeof(float));
    SYNC(f);
    return f->err == ERR_OK;
}

/* ---- the stage */

static void stage_pass(void *arg, unsigned ith, unsigned nth)
{
    struct forward *f = arg;
    const struct weights *w = f->cfg.w;
    const struct hparams *hp = f->cfg.hp;
    uint32_t n = f->b->n_tok, begin, end;
    uint32_t nq = f->own.heads.n * hp->head_dim, nk = f->own.kv_heads.n * hp->head_dim, nv = f->own.kv_heads.n * hp->head_dim_v;
    pool_part(n, 1, ith, nth, &begin, &end);

    rotations(f, begin, end);
    if (!(f->cfg.stage == 0 ? embed(f, ith, nth) : receive(f, ith)))
        return;
    for (uint32_t i = begin; i < end; i++) /* the same tokens that this thread has just looked up */
        norm_row(f, f->x + (size_t)i * hp->dim, w->layers[0].attn_norm, &f->h, i, attn_q8(f, &w->layers[0]));
    SYNC(f);

    for (uint32_t l = 0; l < w->n_layers; l++) {
        const struct weights_layer *L = &w->layers[l];
        size_t stride = nq + nk + nv;
        if (ith == 0 && f->cfg.tick)
            f->cfg.tick(f->cfg.tick_arg);

        struct kernels_act h = act_view(&f->h, n, hp->dim);
        struct job qkv[3] = {{&L->q, L->q_bias, f->qkv, stride}, {&L->k, L->k_bias, f->qkv + nq, stride}, {&L->v, L->v_bias, f->qkv + nq + nk, stride}};
        matmul(f, FORWARD_QKV, ith, nth, qkv, 3, &h);
        SYNC(f);
        if (ith == 0)
            refill(f, FORWARD_QKV);
        rotate_and_store(f, ith, nth, l);

        enum act_mode mode = mode_of(f, &L->o, &f->heads);
        struct act_part part = own_part(f, &f->heads, mode, n);
        attend(f, ith, nth, l, &part, mode);
        if (!gather_cols(f, ith, nth, &f->heads, mode) || !project_and_gather(f, FORWARD_O, ith, nth, &L->o, L->o_bias, f->heads.k))
            return;
        add_and_norm(f, ith, nth, L->ffn_norm, ffn_q8(f, L));

        mode = mode_of(f, &L->down, &f->ffn);
        part = own_part(f, &f->ffn, mode, n);
        feed(f, ith, nth, L, &part, mode);
        if (!gather_cols(f, ith, nth, &f->ffn, mode))
            return;
        if (ith == 0)
            refill(f, FORWARD_FFN);
        if (!project_and_gather(f, FORWARD_DOWN, ith, nth, &L->down, NULL, f->ffn.k))
            return;
        const struct weights_layer *next = l + 1 < w->n_layers ? L + 1 : NULL;
        add_and_norm(f, ith, nth, next ? next->attn_norm : NULL, next && attn_q8(f, next));
    }
    if (ith == 0 && f->cfg.stage + 1 < f->cfg.split->pp)
        f->err = comm_send(f->comm, f->world_rank + f->tp, f->x, (size_t)n * hp->dim * sizeof(float));
}

enum err forward_run(struct forward *f, const struct batch *b)
{
    ASSERT(b->n_tok > 0 && b->n_tok <= f->cfg.batch_cap);
    f->b = b;
    f->err = ERR_OK;
    for (int p = 0; p < FORWARD_HEAD; p++)
        refill(f, (enum forward_product)p); /* a pass that failed may have left some */
    if (f->cfg.stage == 0) {
        memset(f->embd_n, 0, sizeof(f->embd_n));
        for (uint32_t i = 0; i < b->n_tok; i++) {
            uint32_t r = 0;
            while (b->token[i] - f->vocab.r[r].first >= f->vocab.r[r].n)
                r++;
            f->embd_rank[i] = (uint16_t)r;
            f->embd_idx[i] = f->embd_n[r]++;
        }
    }
    pool_run(f->cfg.pool, stage_pass, f);
    return f->err;
}

static void head_pass(void *arg, unsigned ith, unsigned nth)
{
    struct forward *f = arg;
    uint32_t begin, end, dim = f->cfg.hp->dim;
    pool_part(f->head_rows, 1, ith, nth, &begin, &end);
    for (uint32_t i = begin; i < end; i++)
        norm_row(f, f->head_x + (size_t)i * dim, f->cfg.w->out_norm, &f->hh, i, takes_q8(f, &f->cfg.w->head));
    SYNC(f);
    struct job j = {&f->cfg.w->head, NULL, f->logits, f->logits_stride};
    struct kernels_act x = act_view(&f->hh, f->head_rows, dim);
    matmul(f, FORWARD_HEAD, ith, nth, &j, 1, &x);
}

void forward_head(struct forward *f, uint32_t n)
{
    ASSERT(n > 0 && n <= f->cfg.rows_cap);
    f->head_rows = n;
    refill(f, FORWARD_HEAD);
    pool_run(f->cfg.pool, head_pass, f);
}

void forward_final_norm(const struct forward *f, const float *x, float *y)
{
    f->cfg.k->rmsnorm(x, f->cfg.w->out_norm, f->cfg.hp->norm_eps, f->cfg.hp->dim, y);
}

void forward_classify(struct forward *f, const float *x, float *y)
{
    const struct kernels_weight *w = &f->cfg.w->cls;
    norm_row(f, x, f->cfg.w->out_norm, &f->hh, 0, takes_q8(f, w));
    struct kernels_act a = act_view(&f->hh, 1, f->cfg.hp->dim);
    f->cfg.k->matmul(w, &a, 0, w->rows, y, w->rows);
}

/* ---- buffers */

static void *carve(struct forward *f, size_t n, size_t size)
{
    size_t at = f->map_bytes;
    f->map_bytes = ROUND_UP(at + n * size, (size_t)KERNELS_ALIGN);
    return f->map ? (uint8_t *)f->map + at : NULL;
}

static void carve_act(struct forward *f, struct forward_act *a, size_t n, uint32_t k)
{
    a->stride = kernels_act_stride(k);
    a->f32 = carve(f, n * a->stride, sizeof(float));
    a->q = carve(f, n * a->stride, 1);
    a->d = carve(f, n * (a->stride / QB), sizeof(float));
}

/* Called twice: first it only counts, then the mapping is there. */
static void carve_all(struct forward *f)
{
    const struct hparams *hp = f->cfg.hp;
    size_t n = f->cfg.batch_cap, rows = f->cfg.rows_cap;
    uint32_t wide = MAX(f->heads.k, f->ffn.k);
    bool last = f->cfg.stage + 1 == f->cfg.split->pp;
    f->map_bytes = 0;
    f->inv_freq = carve(f, hp->rope_dims / 2 + 1, sizeof(double));
    f->x = carve(f, n * hp->dim, sizeof(float));
    f->cos = carve(f, n * (hp->rope_dims / 2), sizeof(float));
    f->sin = carve(f, n * (hp->rope_dims / 2), sizeof(float));
    carve_act(f, &f->h, n, hp->dim);
    carve_act(f, &f->a, n, wide);
    f->qkv = carve(f, n * ((size_t)(f->own.heads.n + f->own.kv_heads.n) * hp->head_dim + (size_t)f->own.kv_heads.n * hp->head_dim_v), sizeof(float));
    f->attn = carve(f, n * f->own.heads.n * hp->head_dim_v, sizeof(float));
    f->gate = carve(f, n * f->own.ffn.n, sizeof(float));
    f->up = carve(f, n * f->own.ffn.n, sizeof(float));
    f->parts = carve(f, f->tp > 1 ? n * wide + f->tp * PART_ALIGN : 1, sizeof(float));
    f->out = carve(f, n * hp->dim + f->tp * PART_ALIGN, sizeof(float));
    f->scratch_each = ROUND_UP((size_t)MAX((uint32_t)KERNELS_ATTN_SCRATCH, f->own.ffn.n), (size_t)16);
    f->scratch = carve(f, f->scratch_each * pool_n_threads(f->cfg.pool), sizeof(float));
    for (int p = 0; p < FORWARD_PRODUCTS; p++)
        f->share[p] = carve(f, pool_n_threads(f->cfg.pool), sizeof(*f->share[p]));
    f->embd_rank = carve(f, n, sizeof(*f->embd_rank));
    f->embd_idx = carve(f, n, sizeof(*f->embd_idx));
    if (last) {
        f->logits_stride = ROUND_UP((size_t)f->own.vocab.n, (size_t)16);
        f->head_x = carve(f, rows * hp->dim, sizeof(float));
        carve_act(f, &f->hh, rows, hp->dim);
        f->logits = carve(f, rows * f->logits_stride + 16, sizeof(float));
    }
}

static void cols_of(struct forward *f)
{
    const struct hparams *hp = f->cfg.hp;
    f->heads = (struct forward_cols){.k = hp->n_heads * hp->head_dim_v, .aligned = hp->head_dim_v % QB == 0};
    f->ffn = (struct forward_cols){.k = hp->ffn_dim, .aligned = hp->ffn_dim % QB == 0};
    f->dim = (struct forward_cols){.k = hp->dim};
    f->vocab = (struct forward_cols){.k = hp->vocab};
    for (uint32_t r = 0; r < f->tp; r++) {
        struct shard_rank sr;
        shard_rank(hp, f->cfg.split, r, &sr);
        f->heads.r[r] = (struct shard_range){sr.heads.first * hp->head_dim_v, sr.heads.n * hp->head_dim_v};
        f->ffn.r[r] = sr.ffn;
        f->dim.r[r] = sr.dim_rows;
        f->vocab.r[r] = sr.vocab;
        if (r == f->cfg.tp_rank)
            f->own = sr;
    }
}

enum err forward_init(struct forward *f, const struct forward_config *cfg)
{
    *f = (struct forward){.cfg = *cfg, .tp = cfg->split->tp, .world_rank = cfg->stage * cfg->split->tp + cfg->tp_rank};
    cols_of(f);
    carve_all(f);
    size_t bytes = f->map_bytes;
    f->map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (f->map == MAP_FAILED) {
        f->map = NULL;
        return err_set(ERR_NOMEM, "no memory for %zu bytes of activations", bytes);
    }
    carve_all(f);
    ASSERT(f->map_bytes == bytes);
    rope_freqs_init(cfg->hp, f->inv_freq, &f->rope_magnitude);
    return ERR_OK;
}

void forward_deinit(struct forward *f)
{
    if (f->map)
        munmap(f->map, f->map_bytes);
    *f = (struct forward){0};
}
