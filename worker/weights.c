#include "worker/weights.h"

#include "base/check.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CHUNK_BYTES = 512 << 10, PACK_ROWS = 16, PART_ALIGN = 256 /* of a part, as every device wants it */ };
#define HUGE_PAGE (2ull << 20)

/* The tensors of a layer, and where the loaded part is hung in. */
#define LAYER_MATRICES(X) X("attn_q", q) X("attn_k", k) X("attn_v", v) X("attn_output", o) X("ffn_gate", gate) X("ffn_up", up) X("ffn_down", down)
#define LAYER_NORMS(X) X("attn_norm", attn_norm) X("ffn_norm", ffn_norm) X("attn_q_norm", q_norm) X("attn_k_norm", k_norm)
#define LAYER_BIASES(X) X("attn_q", q_bias) X("attn_k", k_bias) X("attn_v", v_bias) X("attn_output", o_bias)

static const struct gguf_tensor *layer_tensor(const struct gguf *g, uint32_t layer, const char *stem, const char *kind)
{
    char name[96];
    snprintf(name, sizeof(name), "blk.%u.%s.%s", layer, stem, kind);
    return gguf_tensor(g, name);
}

/* Appends the rank's rows of a tensor to the plan; nothing when it is absent or the rank has no rows of it. */
static void plan_part(struct weights *w, const struct gguf_tensor *t, const struct hparams *hp, const struct shard_split *split,
                      uint32_t tp_rank, uint32_t stage, weights_bytes_fn *bytes)
{
    if (!t)
        return;
    struct shard_range rows, cols;
    shard_tensor_slice(hp, split, t, tp_rank, stage, &rows, &cols);
    if (rows.n == 0)
        return;
    struct weights_part *p = &w->parts[w->n_parts++];
    *p = (struct weights_part){.t = t, .rows = rows, .cols = cols, .vector = t->n_dims == 1, .offset = w->planned_bytes};
    snprintf(p->label, sizeof(p->label), "%s", t->name);
    if (p->vector) {
        ASSERT(t->type == QUANT_F32); /* hparams_load accepts no other */
        p->bytes = p->src_bytes = (uint64_t)rows.n * sizeof(float);
    } else {
        p->bytes = bytes(t->type, rows.n, cols.n);
        p->src_bytes = quant_row_bytes(t->type, cols.n) * rows.n;
    }
    w->planned_bytes = ROUND_UP(p->offset + p->bytes, (uint64_t)PART_ALIGN);
    w->file_bytes += p->src_bytes;
}

enum err weights_plan(const struct gguf *g, const struct hparams *hp, const struct shard_split *split, uint32_t tp_rank, uint32_t stage,
                      weights_bytes_fn *bytes, struct weights *w)
{
    *w = (struct weights){0};
    uint32_t first = split->layer_first[stage], end = split->layer_first[stage + 1];
    w->n_layers = end - first;
    w->parts = calloc((size_t)w->n_layers * 15 + 4, sizeof(*w->parts));
    w->layers = calloc(w->n_layers ? w->n_layers : 1, sizeof(*w->layers));
    if (!w->parts || !w->layers)
        return err_set(ERR_NOMEM, "out of memory for the plan of the weights");
    /* In the order in which a step reads them. */
    plan_part(w, gguf_tensor(g, "token_embd.weight"), hp, split, tp_rank, stage, bytes);
    for (uint32_t l = first; l < end; l++) {
#define PLAN_WEIGHT(stem, field) plan_part(w, layer_tensor(g, l, stem, "weight"), hp, split, tp_rank, stage, bytes);
#define PLAN_BIAS(stem, field) plan_part(w, layer_tensor(g, l, stem, "bias"), hp, split, tp_rank, stage, bytes);
        LAYER_NORMS(PLAN_WEIGHT)
        LAYER_BIASES(PLAN_BIAS)
        LAYER_MATRICES(PLAN_WEIGHT)
#undef PLAN_WEIGHT
#undef PLAN_BIAS
    }
    plan_part(w, gguf_tensor(g, "output_norm.weight"), hp, split, tp_rank, stage, bytes);
    if (hp->has_cls)
        plan_part(w, gguf_tensor(g, "cls.output.weight"), hp, split, tp_rank, stage, bytes);
    if (!hp->tied_embeddings)
        plan_part(w, gguf_tensor(g, "output.weight"), hp, split, tp_rank, stage, bytes);
    return ERR_OK;
}

static enum err map_memory(struct weights *w)
{
    w->map_bytes = ROUND_UP(w->planned_bytes, HUGE_PAGE) + HUGE_PAGE;
    w->map = mmap(NULL, w->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (w->map == MAP_FAILED) {
        w->map = NULL;
        return err_set(ERR_NOMEM, "no memory for %llu bytes of weights", (unsigned long long)w->planned_bytes);
    }
    w->base = (uint8_t *)ROUND_UP((uintptr_t)w->map, (uintptr_t)HUGE_PAGE);
    /* Decoding reads every byte once a token: with 4 KiB pages a sixth of the bandwidth is lost to translation. */
    madvise(w->base, ROUND_UP(w->planned_bytes, HUGE_PAGE), MADV_HUGEPAGE);
    return ERR_OK;
}

/* ---- filling */

struct load {
    struct weights *w;
    const struct gguf *g;
    const struct kernels *k;
    weights_progress_fn *progress;
    void *arg;
    atomic_uint next;
    atomic_uint_fast64_t done;
    atomic_bool stop;
    uint32_t n_chunks;
};

static uint32_t chunk_rows(const struct weights_part *p)
{
    if (p->vector)
        return p->rows.n;
    uint64_t row = quant_row_bytes(p->t->type, p->t->ne[0]);
    uint64_t n = CHUNK_BYTES / row / PACK_ROWS * PACK_ROWS;
    return n < PACK_ROWS ? PACK_ROWS : (uint32_t)MIN(n, UINT32_MAX / 2);
}
static uint32_t part_chunks(const struct weights_part *p)
{
    uint32_t per = chunk_rows(p);
    return (uint32_t)(((uint64_t)p->rows.n + per - 1) / per);
}

void weights_take_pages(const uint8_t *p, uint64_t len)
{
#ifdef MADV_POPULATE_READ
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), b = (uintptr_t)p / page * page;
    madvise((void *)b, (uintptr_t)p + len - b, MADV_POPULATE_READ);
#else
    (void)p;
    (void)len;
#endif
}

void weights_drop_pages(const uint8_t *p, uint64_t len)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t b = ROUND_UP((uintptr_t)p, page), e = ((uintptr_t)p + len) / page * page;
    if (e > b)
        madvise((void *)b, e - b, MADV_DONTNEED);
}

static void load_vector(const struct load *ld, const struct weights_part *p)
{
    memcpy(ld->w->base + p->offset, p->t->data + (uint64_t)p->rows.first * sizeof(float), p->src_bytes);
}

static void load_chunk(struct load *ld, const struct weights_part *p, uint32_t chunk)
{
    uint64_t bytes = p->src_bytes;
    if (p->vector) {
        load_vector(ld, p);
    } else {
        uint32_t cols = (uint32_t)p->t->ne[0], per = chunk_rows(p), row0 = chunk * per, n = MIN(per, p->rows.n - row0);
        uint64_t row = quant_row_bytes(p->t->type, cols);
        const uint8_t *src = p->t->data + (uint64_t)(p->rows.first + row0) * row;
        bytes = n * row;
        if (ld->g->files[p->t->file_idx].fd >= 0)
            weights_take_pages(src, bytes);
        ld->k->weight_pack(p->t->type, p->rows.n, cols, src, row0, n, ld->w->base + p->offset);
        if (ld->g->files[p->t->file_idx].fd >= 0)
            weights_drop_pages(src, bytes);
    }
    atomic_fetch_add_explicit(&ld->done, bytes, memory_order_relaxed);
}

static void load_thread(void *arg, unsigned ith, unsigned nth)
{
    struct load *ld = arg;
    (void)nth;
    uint32_t part = 0, first = 0; /* chunk numbers rise, so the part is found by walking on */
    while (!atomic_load_explicit(&ld->stop, memory_order_relaxed)) {
        uint32_t c = atomic_fetch_add_explicit(&ld->next, 1, memory_order_relaxed);
        if (c >= ld->n_chunks)
            return;
        while (c - first >= part_chunks(&ld->w->parts[part]))
            first += part_chunks(&ld->w->parts[part++]);
        load_chunk(ld, &ld->w->parts[part], c - first);
        if (ith == 0 && ld->progress &&
            !ld->progress(ld->arg, atomic_load_explicit(&ld->done, memory_order_relaxed), ld->w->file_bytes))
            atomic_store_explicit(&ld->stop, true, memory_order_relaxed);
    }
}

static const struct weights_part *find(const struct weights *w, const char *label)
{
    for (uint32_t i = 0; i < w->n_parts; i++)
        if (strcmp(w->parts[i].label, label) == 0)
            return &w->parts[i];
    return NULL;
}
static const float *vector_at(const struct weights *w, const char *label)
{
    const struct weights_part *p = find(w, label);
    return p ? (const float *)(w->base + p->offset) : NULL;
}
/* rows = 0 when the rank has none; type and cols then are those of the tensor, so that all ranks agree on the activation. */
static struct kernels_weight matrix_at(const struct weights *w, const struct gguf *g, const char *label)
{
    const struct gguf_tensor *t = gguf_tensor(g, label);
    const struct weights_part *p = find(w, label);
    if (!t)
        return (struct kernels_weight){0};
    return (struct kernels_weight){t->type, p ? p->rows.n : 0, p ? p->cols.n : (uint32_t)t->ne[0], p ? w->base + p->offset : NULL};
}

void weights_hang(struct weights *w, const struct gguf *g, const struct hparams *hp, uint32_t stage, const struct shard_split *split)
{
    char name[96];
    for (uint32_t i = 0; i < w->n_layers; i++) {
        struct weights_layer *L = &w->layers[i];
        uint32_t l = split->layer_first[stage] + i;
#define HANG_MATRIX(stem, field) (snprintf(name, sizeof(name), "blk.%u." stem ".weight", l), L->field = matrix_at(w, g, name));
#define HANG_NORM(stem, field) (snprintf(name, sizeof(name), "blk.%u." stem ".weight", l), L->field = vector_at(w, name));
#define HANG_BIAS(stem, field) (snprintf(name, sizeof(name), "blk.%u." stem ".bias", l), L->field = vector_at(w, name));
        LAYER_MATRICES(HANG_MATRIX)
        LAYER_NORMS(HANG_NORM)
        LAYER_BIASES(HANG_BIAS)
    }
    if (stage == 0)
        w->embd = matrix_at(w, g, "token_embd.weight");
    if (stage + 1 == split->pp) {
        w->head = matrix_at(w, g, hp->tied_embeddings ? "token_embd.weight" : "output.weight");
        w->out_norm = vector_at(w, "output_norm.weight");
        if (hp->has_cls)
            w->cls = matrix_at(w, g, "cls.output.weight");
    }
}

enum err weights_load(struct weights *w, const struct gguf *g, const struct hparams *hp, uint32_t stage, const struct shard_split *split,
                      const struct kernels *k, struct pool *pool, weights_progress_fn *progress, void *arg)
{
    ASSERT(split->cut == SHARD_CUT_ROWS);
    TRY(map_memory(w));
    struct load ld = {.w = w, .g = g, .k = k, .progress = progress, .arg = arg};
    for (uint32_t i = 0; i < w->n_parts; i++)
        ld.n_chunks += part_chunks(&w->parts[i]);
    if (progress && !progress(arg, 0, w->file_bytes))
        return err_set(ERR_ABORTED, "loading was stopped");
    pool_run(pool, load_thread, &ld);
    if (atomic_load(&ld.stop) || (progress && !progress(arg, w->file_bytes, w->file_bytes)))
        return err_set(ERR_ABORTED, "loading was stopped");
    weights_hang(w, g, hp, stage, split);
    return ERR_OK;
}

void weights_deinit(struct weights *w)
{
    if (w->map)
        munmap(w->map, w->map_bytes);
    free(w->parts);
    free(w->layers);
    *w = (struct weights){0};
}

uint64_t weights_resident_bytes(const struct weights *w)
{
    enum { PAGES = 4096 };
    unsigned char in[PAGES];
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), resident = 0;
    for (uint64_t off = 0; off < w->planned_bytes; off += PAGES * page) {
        uint64_t len = MIN(PAGES * page, w->planned_bytes - off);
        if (mincore(w->base + off, len, in) != 0)
            return 0;
        for (uint64_t i = 0; i * page < len; i++)
            resident += (in[i] & 1) ? MIN(page, len - i * page) : 0;
    }
    return resident;
}
