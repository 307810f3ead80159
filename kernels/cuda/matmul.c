/* Which kernel, and how its blocks lie over a matrix. Everything here is a guess from bytes and instructions until a GPU measures it (kernels/README.md). */
#include "kernels/cuda/matmul.h"

#include "base/check.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/layout.h"

enum {
    SPLIT_STEPS_MIN = 4,      /* steps of 128 columns that a block keeps when k is split over blocks */
    DETERMINISTIC_WARPS_ROW = 4,
    SCRATCH_MAX = 32 << 20    /* what cuBLASLt is best given on Hopper, and twice what splitting ever takes with 132 SMs */
};

size_t matmul_scratch_bytes(const struct cuda_limits *l)
{
    /* 8 parts of everything are more than any split makes of a small matrix. */
    size_t all = (size_t)8 * ROUND_UP(l->rows_max, 256u) * ROUND_UP(l->n_tok, 128u) * sizeof(float);
    return MIN(all, (size_t)SCRATCH_MAX);
}

static uint32_t div_up(uint32_t a, uint32_t b)
{
    return (a + b - 1) / b;
}

/* Bytes of 16 rows x 128 columns. */
static uint32_t step_bytes(enum quant type)
{
    return layout_tiled(type) ? layout_step_bytes(type) : LAYOUT_ROWS * LAYOUT_STEP * 2;
}

/* A launch: how a block's warps are divided, and in how many parts k is. */
struct shape {
    uint32_t warps_row, splits;
};
static uint32_t row_tiles(const struct matmul_args *a, const struct matmul_form *f, uint32_t warps_row)
{
    return div_up(a->groups, warps_row * f->m_tiles);
}
static size_t partial_bytes(const struct matmul_form *f, const struct shape *s, size_t tiles)
{
    return tiles * s->splits * s->warps_row * f->m_tiles * f->n_tiles * (128 * sizeof(float));
}
/* Splits so that every SM has a block, as far as steps and the workspace go. tiles: blocks of one split. */
static uint32_t splits_for(const struct cuda_context *c, const struct matmul_form *f, uint32_t warps_row, size_t tiles, uint32_t steps)
{
    uint32_t splits = tiles >= c->cfg.n_sms ? 1 : (uint32_t)(c->cfg.n_sms / tiles);
    splits = MIN(splits, MAX(steps / SPLIT_STEPS_MIN, 1u));
    if (!c->counters || tiles > CONTEXT_COUNTERS)
        return 1;
    while (splits > 1 && partial_bytes(f, &(struct shape){warps_row, splits}, tiles) > c->scratch_bytes)
        splits--;
    return splits;
}

/* The more rows a block has, the less often x is read from L2 (n * 2 bytes a column and block, against the block's rows of weights): rows enough for x to be
 * half of the weights at most; fewer where that leaves SMs without a block; splits where even that does. */
static struct shape pick(const struct cuda_context *c, enum quant type, const struct matmul_args *a, const struct matmul_form *f)
{
    uint32_t tok = MIN(a->n, f->n_tiles * 8), tok_tiles = div_up(a->n, f->n_tiles * 8), least = MATMUL_WARPS / f->warps_k_max, w = least;
    while (w < MATMUL_WARPS && 2 * tok * 2 * LAYOUT_STEP > w * f->m_tiles * step_bytes(type))
        w *= 2;
    while (w > least && row_tiles(a, f, w) * tok_tiles < c->cfg.n_sms)
        w /= 2;
    return (struct shape){w, splits_for(c, f, w, (size_t)row_tiles(a, f, w) * tok_tiles, div_up(a->k, LAYOUT_STEP))};
}

/* The same for any number of tokens: only what does not depend on it is asked. */
static struct shape pick_deterministic(const struct cuda_context *c, enum quant type, const struct matmul_args *a)
{
    struct matmul_form largest = matmul_small_form(type, CUDA_SMALL_BATCH);
    uint32_t w = DETERMINISTIC_WARPS_ROW;
    return (struct shape){w, splits_for(c, &largest, w, row_tiles(a, &largest, w), div_up(a->k, LAYOUT_STEP))};
}

static void place(const struct cuda_context *c, struct matmul_args *a, const struct shape *s)
{
    a->warps_row = s->warps_row;
    a->splits = s->splits;
    a->n_sms = c->cfg.n_sms;
    a->partial = s->splits > 1 ? c->scratch : NULL;
    a->counters = c->counters;
}

/* All tokens in tiles of CUDA_SMALL_BATCH, each launch with as many as its order of summation allows: one, since parts of k lie in the workspace. */
static cudaError_t deterministic(const struct cuda_context *c, enum quant type, const struct matmul_args *all, cudaStream_t stream)
{
    struct matmul_args a = *all;
    struct shape s = pick_deterministic(c, type, all);
    place(c, &a, &s);
    uint32_t at_once = s.splits > 1 ? CUDA_SMALL_BATCH : all->n;
    for (uint32_t t = 0; t < all->n; t += at_once) {
        a.n = MIN(at_once, all->n - t);
        a.x = (const uint8_t *)all->x + (size_t)t * all->k * 2;
        a.scale = all->scale ? all->scale + t : NULL;
        for (uint32_t j = 0; j < a.n_jobs; j++)
            a.job[j].y = all->job[j].y + t * all->job[j].y_stride;
        cudaError_t e = matmul_small(type, &a, stream);
        if (e != cudaSuccess)
            return e;
    }
    return cudaSuccess;
}

static cudaError_t own(const struct cuda_context *c, enum quant type, struct matmul_args *a, cudaStream_t stream)
{
    if (type == QUANT_F32)
        return matmul_f32(a, stream);
    if (c->cfg.deterministic)
        return deterministic(c, type, a, stream);
    bool small = a->n <= CUDA_SMALL_BATCH;
    struct matmul_form f = small ? matmul_small_form(type, a->n) : matmul_large_form(type);
    struct shape s = pick(c, type, a, &f);
    place(c, a, &s);
    return small ? matmul_small(type, a, stream) : matmul_large(type, a, stream);
}

/* One job by cuBLASLt, then what it does not do: a factor a token. NotSupported: nothing was launched. */
static cudaError_t by_lt(const struct cuda_context *c, enum quant type, const struct matmul_job *j, const struct matmul_args *a, cudaStream_t stream)
{
    if ((uintptr_t)j->y % 16 || (uintptr_t)j->bias % 16)
        return cudaErrorNotSupported;
    struct cublaslt_problem p = {
        .type = cuda_act_type(type),
        .y_type = CUDA_F32,
        .n = a->n,
        .rows = j->rows,
        .k = a->k,
        .w = j->w,
        .x = a->x,
        .w_stride = layout_row_bytes(type, a->cols) / 2,
        .x_stride = a->k,
        .y = j->y,
        .y_stride = j->y_stride,
        .bias = a->scale ? NULL : j->bias,
        .workspace = c->scratch,
        .workspace_bytes = c->scratch_bytes,
    };
    cudaError_t e = cublaslt_matmul(c->lt, &p, stream);
    return e != cudaSuccess || !a->scale ? e : matmul_finish(j, a->scale, a->n, stream);
}

static struct matmul_args args_of(const struct cuda_act *x, uint32_t cols)
{
    return (struct matmul_args){.x = x->x, .scale = x->scale, .n = x->n, .k = x->k, .cols = cols};
}
static void add_job(struct matmul_args *a, const struct cuda_matmul *m)
{
    a->job[a->n_jobs++] = (struct matmul_job){m->w->data, m->bias, m->y, m->y_stride, m->w->rows, a->groups};
    a->groups += m->w->type == QUANT_F32 ? m->w->rows : div_up(m->w->rows, LAYOUT_ROWS);
}

cudaError_t cuda_matmul(struct cuda_context *c, const struct cuda_matmul *m, uint32_t n_m, const struct cuda_act *x, cudaStream_t stream)
{
    ASSERT(n_m <= MATMUL_JOBS && (uintptr_t)x->x % 16 == 0);
    bool done[MATMUL_JOBS] = {false};
    for (uint32_t i = 0; i < n_m; i++) {
        const struct cuda_weight *w = m[i].w;
        ASSERT(w->rows == 0 || (x->type == cuda_act_type(w->type) && x->k == ROUND_UP(w->cols, 8u) && (uintptr_t)w->data % CUDA_ALIGN == 0));
        ASSERT(x->n <= 1 || m[i].y_stride >= w->rows);
        done[i] = w->rows == 0 || x->n == 0;
    }
    for (uint32_t i = 0; i < n_m; i++) {
        enum quant type = m[i].w->type;
        struct matmul_args a = args_of(x, m[i].w->cols);
        for (uint32_t j = i; j < n_m; j++) { /* all that are left of this type and, should they differ inside of x's rounding, columns */
            if (done[j] || m[j].w->type != type || m[j].w->cols != a.cols)
                continue;
            done[j] = true;
            struct matmul_args one = args_of(x, a.cols);
            add_job(&one, &m[j]);
            bool dense = type == QUANT_F16 || type == QUANT_BF16;
            cudaError_t e = dense && c->lt && x->n > CUDA_SMALL_BATCH ? by_lt(c, type, &one.job[0], &one, stream) : cudaErrorNotSupported;
            if (e == cudaErrorNotSupported)
                add_job(&a, &m[j]);
            else if (e != cudaSuccess)
                return e;
        }
        if (a.n_jobs == 0)
            continue;
        cudaError_t e = own(c, type, &a, stream);
        if (e != cudaSuccess)
            return e;
    }
    return cudaSuccess;
}
