/* Loading: this rank's slices go from the mapped file through pinned buffers to the GPU, which turns them into the layout of its kernels.
 *
 * A chunk is some rows of one tensor. The pool's threads copy it into a pinned buffer (with only its columns), the copy engine takes it to the device, a kernel packs it; meanwhile
 * the threads fill the next buffer. What bounds it is the slowest of page cache, PCIe and packing, not their sum. */
#include "base/check.h"
#include "worker/device_cuda.h"

#include <string.h>

enum { STAGE_BYTES = 16 << 20, N_STAGES = 3 };

struct stage {
    uint8_t *pinned, *device;
    cudaEvent_t free;
};
struct load {
    struct cuda *c;
    const struct gguf *g;
    struct stage stages[N_STAGES];
    uint32_t next;
    uint64_t done;
    weights_progress_fn *progress;
    void *arg;
};
/* One chunk, for the threads: n pieces of `piece` bytes, `stride` apart in the file, become dense. */
struct copy {
    const uint8_t *src;
    uint8_t *dst;
    size_t stride, piece;
    uint32_t n;
    bool mapped;
};

static void copy_part(void *arg, unsigned ith, unsigned nth)
{
    const struct copy *cp = arg;
    uint32_t begin, end;
    pool_part(cp->n, 1, ith, nth, &begin, &end);
    if (begin == end)
        return;
    const uint8_t *src = cp->src + begin * cp->stride;
    size_t span = (end - begin - 1) * cp->stride + cp->piece;
    if (cp->mapped)
        weights_take_pages(src, span);
    if (cp->stride == cp->piece)
        memcpy(cp->dst + begin * cp->piece, src, span);
    else
        for (uint32_t i = begin; i < end; i++)
            memcpy(cp->dst + i * cp->piece, cp->src + i * cp->stride, cp->piece);
    if (cp->mapped)
        weights_drop_pages(src, span);
}

/* n rows from row0 of a part, which is a whole vector or rows of a matrix. */
static enum err load_rows(struct load *ld, const struct weights_part *p, uint32_t row0, uint32_t n)
{
    struct cuda *c = ld->c;
    struct stage *st = &ld->stages[ld->next++ % N_STAGES];
    uint64_t row = p->vector ? p->src_bytes : quant_row_bytes(p->t->type, p->t->ne[0]);
    struct copy cp = {.dst = st->pinned, .n = n, .stride = row, .mapped = ld->g->files[p->t->file_idx].fd >= 0};
    if (p->vector) {
        cp.src = p->t->data + (uint64_t)p->rows.first * sizeof(float);
        cp.piece = p->src_bytes;
    } else {
        cp.src = p->t->data + (p->rows.first + (uint64_t)row0) * row + quant_row_bytes(p->t->type, p->cols.first);
        cp.piece = quant_row_bytes(p->t->type, p->cols.n);
    }
    TRY_CUDA(cudaEventSynchronize(st->free));
    pool_run(c->d.cfg.pool, copy_part, &cp);
    if (p->vector) {
        TRY_CUDA(cudaMemcpyAsync(c->weights_mem + p->offset, st->pinned, cp.piece, cudaMemcpyHostToDevice, c->stream));
    } else {
        struct cuda_weight w = {p->t->type, p->rows.n, p->cols.n, c->weights_mem + p->offset};
        TRY_CUDA(cudaMemcpyAsync(st->device, st->pinned, n * cp.piece, cudaMemcpyHostToDevice, c->stream));
        TRY_CUDA(cuda_weight_pack(&w, st->device, row0, n, c->stream));
    }
    TRY_CUDA(cudaEventRecord(st->free, c->stream));
    ld->done += n * cp.piece;
    if (ld->progress && !ld->progress(ld->arg, ld->done, c->w.file_bytes))
        return err_set(ERR_ABORTED, "loading was stopped");
    return ERR_OK;
}

static enum err load_part(struct load *ld, const struct weights_part *p)
{
    uint32_t n = p->vector ? 1 : p->rows.n;
    uint64_t piece = p->vector ? p->src_bytes : quant_row_bytes(p->t->type, p->cols.n);
    uint32_t per = (uint32_t)MAX(STAGE_BYTES / piece, (uint64_t)1);
    if (piece > STAGE_BYTES)
        return err_set(ERR_UNSUPPORTED, "%s: a row of %llu bytes is beyond what is loaded at once", p->label, (unsigned long long)piece);
    for (uint32_t row = 0; row < n; row += per)
        TRY(load_rows(ld, p, row, MIN(per, n - row)));
    return ERR_OK;
}

static enum err open_stages(struct load *ld)
{
    for (uint32_t i = 0; i < N_STAGES; i++) {
        struct stage *st = &ld->stages[i];
        TRY_CUDA(cudaHostAlloc((void **)&st->pinned, STAGE_BYTES, cudaHostAllocDefault));
        TRY_CUDA(cudaMalloc((void **)&st->device, STAGE_BYTES));
        TRY_CUDA(cudaEventCreateWithFlags(&st->free, cudaEventDisableTiming));
        TRY_CUDA(cudaEventRecord(st->free, ld->c->stream));
    }
    return ERR_OK;
}

static void close_stages(struct load *ld)
{
    for (uint32_t i = 0; i < N_STAGES; i++) {
        if (ld->stages[i].free)
            cudaEventDestroy(ld->stages[i].free);
        cudaFree(ld->stages[i].device);
        cudaFreeHost(ld->stages[i].pinned);
    }
}

enum err device_cuda_load(struct cuda *c, const struct gguf *g, weights_progress_fn *progress, void *arg)
{
    struct load ld = {.c = c, .g = g, .progress = progress, .arg = arg};
    enum err e = ERR_OK;
    TRY_CUDA(cudaMalloc((void **)&c->weights_mem, MAX(c->w.planned_bytes, (uint64_t)CUDA_ALIGN)));
    TRY_GOTO(open_stages(&ld), fail);
    if (progress && !progress(arg, 0, c->w.file_bytes)) {
        e = err_set(ERR_ABORTED, "loading was stopped");
        goto fail;
    }
    for (uint32_t i = 0; i < c->w.n_parts; i++)
        TRY_GOTO(load_part(&ld, &c->w.parts[i]), fail);
    TRY_GOTO(device_cuda_wait(c), fail);
    if (progress && !progress(arg, c->w.file_bytes, c->w.file_bytes))
        e = err_set(ERR_ABORTED, "loading was stopped");
fail:
    cudaStreamSynchronize(c->stream); /* nothing may still read the buffers */
    close_stages(&ld);
    return e;
}
