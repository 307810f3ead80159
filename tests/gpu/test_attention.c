/* Rope and KV write, decode and prefill attention against kernels_ref_f32 (double precision) and, where that has no words for it (window, softcap, sinks), a
 * plain double loop here. What no kernel may read is NaN: KV beyond a sequence's end or of no sequence, q of padding, table entries past the last block (an
 * id far outside). One table serves as test and, with --bench on a device, as benchmark: a case has its tolerance, bytes and operations.
 *
 * Tolerance, as the L2 distance of a head's output, by first-order propagation of what the formats round: with u the half step of 16 bits (f16 2^-11, bf16 2^-8), or in
 * decode of groups of up to 8 heads, where the rest is multiplied too, 2u^2, and t = 2^-22 scale sum |q_i k_i| for fp32,
 *   score    ds = scale * |(u q_i k_i)|_2 and t, with q8_0 also k_i's own rounding to f16
 *   output   do = |p (ds + u) (v - o)|_2 over positions (p sums to 1), in f16, which ends at 2^-24, |2^-25 max(p) (v - o)|_2, with q8_0 also |p 2^-11 v|_2
 * These are taken for deviations: 2 of them are allowed. And for fp32 sum p (2^-20 + t) |v|. */
#include "base/check.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/context.h"
#include "kernels/ref/ref.h"
#include "tests/kernels/cases.h"

#include <cuda_runtime_api.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { BLOCK = SHARD_KV_BLOCK, RUNS = 8, NO_BLOCK = 0x7fffffff };

/* Runs of one sequence each: tokens at pos0 .. pos0 + n - 1; n = 0 ends the list. */
struct run {
    uint32_t pos0, n;
};
struct kase {
    enum kv_type type;
    uint32_t dim, dim_v, n_heads, group, head0;
    uint32_t window;
    float softcap;
    bool sinks;
    struct run runs[RUNS];
};

static void *device(const void *host, size_t bytes)
{
    void *p;
    assert_int_equal(cudaMalloc(&p, bytes ? bytes : 1), cudaSuccess);
    if (host)
        assert_int_equal(cudaMemcpy(p, host, bytes, cudaMemcpyHostToDevice), cudaSuccess);
    return p;
}
static void host(void *to, const void *dev, size_t bytes)
{
    assert_int_equal(cudaMemcpy(to, dev, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
}

/* ---- a problem: a case with its memory on both sides */
struct problem {
    struct kase k;
    uint32_t n_runs, n_tok, n_pad, n_kv; /* n_tok with padding, which comes last */
    size_t pool_bytes, q_len, out_len;
    uint8_t *pool;
    uint32_t *pos, *slot, *tables;
    size_t table_stride;
    float *q, *out, *want, *sinks;
    double (*allowed)[2]; /* [token][head]: of prefill, of decode */
    struct cuda_attention a;
    struct cuda_batch b;
};

static struct cuda_kv layout(enum kv_type type, uint32_t dim, uint32_t dim_v, uint32_t n_kv)
{
    struct cuda_kv kv = {.type = type, .n_kv_heads = n_kv, .head_dim = dim, .head_dim_v = dim_v};
    kv.k_head_stride = BLOCK * ref_kv_bytes(type, dim);
    kv.v_head_stride = BLOCK * ref_kv_bytes(type, dim_v);
    kv.v_off = n_kv * kv.k_head_stride;
    kv.block_stride = kv.v_off + n_kv * kv.v_head_stride;
    return kv;
}

/* Ids of n_blocks blocks in no order, for sequences of so many blocks each; what no block stands for is NO_BLOCK. */
static void deal_blocks(struct cases_rng *r, struct problem *p, uint32_t *n_blocks)
{
    uint32_t most = 0, total = 0;
    for (uint32_t i = 0; i < p->n_runs; i++) {
        uint32_t n = (p->k.runs[i].pos0 + p->k.runs[i].n + BLOCK - 1) / BLOCK;
        most = MAX(most, n);
        total += n;
    }
    uint32_t *ids = malloc((total + 3) * sizeof *ids), next = 0;
    for (uint32_t i = 0; i < total + 3; i++)
        ids[i] = i;
    for (uint32_t i = total + 3; i > 1; i--) {
        uint32_t j = cases_u32(r) % i, t = ids[i - 1];
        ids[i - 1] = ids[j];
        ids[j] = t;
    }
    p->table_stride = most + (p->n_runs > 1); /* of a single run nothing stands behind the table, either */
    p->tables = malloc(p->n_runs * p->table_stride * sizeof *p->tables);
    for (uint32_t i = 0; i < p->n_runs; i++) {
        uint32_t n = (p->k.runs[i].pos0 + p->k.runs[i].n + BLOCK - 1) / BLOCK;
        for (uint32_t j = 0; j < p->table_stride; j++)
            p->tables[i * p->table_stride + j] = j < n ? ids[next++] : NO_BLOCK;
    }
    free(ids);
    *n_blocks = total + 3;
}

static void fill_pool(struct cases_rng *r, struct problem *p)
{
    const struct cuda_kv *kv = &p->a.kv;
    float row[256];
    for (uint32_t s = 0; s < p->n_runs; s++)
        for (uint32_t pos = 0; pos < p->k.runs[s].pos0 + p->k.runs[s].n; pos++)
            for (uint32_t h = 0; h < p->n_kv; h++) {
                uint8_t *block = p->pool + p->tables[s * p->table_stride + pos / BLOCK] * kv->block_stride;
                cases_floats(r, kv->head_dim, row);
                kernels_ref.kv_write(kv->type, row, kv->head_dim, block + h * kv->k_head_stride + pos % BLOCK * ref_kv_bytes(kv->type, kv->head_dim));
                cases_floats(r, kv->head_dim_v, row);
                kernels_ref.kv_write(kv->type, row, kv->head_dim_v,
                                     block + kv->v_off + h * kv->v_head_stride + pos % BLOCK * ref_kv_bytes(kv->type, kv->head_dim_v));
            }
}

/* One head of one token, in double: scores, softcap, then the softmax with the sink in its sum. Gives what decode and prefill may be off by. */
static void plain(const struct problem *p, const struct kernels_attn *at, uint32_t kv_head, uint32_t n_pos, const float *q, const float *sink, float *out,
                  double allowed[2])
{
    const struct kase *k = &p->k;
    uint32_t lo = k->window && n_pos > k->window ? n_pos - k->window : 0;
    double u = k->type == KV_BF16 ? 0x1p-8 : 0x1p-11, us[2] = {u, MIN(k->group, 16u) <= 8 ? 2 * u * u : u}, own = k->type == KV_Q8_0 ? 0x1p-11 : 0;
    double *s = malloc(4 * n_pos * sizeof *s), *squares = s + n_pos, *sums = squares + n_pos, top = sink ? *sink : -INFINITY, sum = 0, o[256] = {0};
    float row[256];
    for (uint32_t i = lo; i < n_pos; i++) {
        ref_kv_read(k->type, ref_kv_row(at, kv_head, i, false), k->dim, row);
        s[i] = squares[i] = sums[i] = 0;
        for (uint32_t j = 0; j < k->dim; j++) {
            double x = (double)q[j] * row[j];
            s[i] += x;
            squares[i] += x * x;
            sums[i] += fabs(x);
        }
        s[i] *= (double)at->scale;
        if (k->softcap > 0)
            s[i] = (double)k->softcap * tanh(s[i] / (double)k->softcap);
        top = s[i] > top ? s[i] : top;
    }
    for (uint32_t i = lo; i < n_pos; i++) {
        s[i] = exp(s[i] - top);
        sum += s[i];
        ref_kv_read(k->type, ref_kv_row(at, kv_head, i, true), k->dim_v, row);
        for (uint32_t j = 0; j < k->dim_v; j++)
            o[j] += s[i] * row[j];
    }
    sum += sink ? exp((double)*sink - top) : 0;
    for (uint32_t j = 0; j < k->dim_v; j++)
        out[j] = (float)(o[j] /= sum);
    double off[2] = {0, 0}, fp32 = 0, least = 0; /* step of P where f16 has no more exponents */
    for (uint32_t i = lo; i < n_pos && k->type != KV_BF16; i++)
        least = MAX(least, 0x1p-25 * s[i] / sum);
    for (uint32_t i = lo; i < n_pos; i++) {
        double apart = 0, len = 0, e = s[i] / sum, last = 0x1p-22 * sums[i] * (double)at->scale;
        ref_kv_read(k->type, ref_kv_row(at, kv_head, i, true), k->dim_v, row);
        for (uint32_t j = 0; j < k->dim_v; j++) {
            apart += (row[j] - o[j]) * (row[j] - o[j]);
            len += (double)row[j] * row[j];
        }
        for (int d = 0; d < 2; d++) {
            double ds2 = (us[d] * us[d] + own * own) * squares[i] * (double)at->scale * (double)at->scale;
            off[d] += e * e * ((ds2 + last * last + us[d] * us[d]) * apart + own * own * len) + least * least * apart;
        }
        fp32 += e * (0x1p-20 + last) * sqrt(len);
    }
    for (int d = 0; d < 2; d++)
        allowed[d] = 2 * sqrt(off[d]) + fp32;
    free(s);
}

static void oracle(struct problem *p)
{
    static float scratch[KERNELS_ATTN_SCRATCH];
    const struct cuda_kv *kv = &p->a.kv;
    uint32_t tok = 0;
    for (uint32_t i = 0; i < p->n_runs; tok += p->k.runs[i++].n) {
        float *want = p->want + tok * p->a.out_stride;
        struct kernels_attn at = {.q = p->q + tok * p->a.q_stride, .out = want, .q_stride = p->a.q_stride, .out_stride = p->a.out_stride,
                                  .pos0 = p->k.runs[i].pos0, .n_tok = p->k.runs[i].n, .head_dim = p->k.dim, .head_dim_v = p->k.dim_v,
                                  .head0 = p->k.head0, .group = p->k.group, .kv_head0 = p->a.kv_head0, .kv = p->pool, .block_stride = kv->block_stride,
                                  .v_off = kv->v_off, .k_head_stride = kv->k_head_stride, .v_head_stride = kv->v_head_stride,
                                  .blocks = p->tables + i * p->table_stride, .type = kv->type, .scale = p->a.scale};
        for (uint32_t t = 0; t < p->k.runs[i].n; t++)
            for (uint32_t h = 0; h < p->k.n_heads; h++)
                plain(p, &at, (p->k.head0 + h) / p->k.group - p->a.kv_head0, at.pos0 + t + 1, at.q + t * at.q_stride + (size_t)h * p->k.dim,
                      p->k.sinks ? p->sinks + h : NULL, want + t * at.out_stride + (size_t)h * p->k.dim_v, p->allowed[(tok + t) * p->k.n_heads + h]);
        if (!p->k.window && !(p->k.softcap > 0) && !p->k.sinks)
            kernels_ref_f32.attention(&at, 0, p->k.n_heads, 0, p->k.runs[i].n, scratch);
    }
}

static void problem_init(struct problem *p, const struct kase *k, uint64_t seed, bool with_oracle)
{
    struct cases_rng r = {seed};
    *p = (struct problem){.k = *k, .n_pad = 2};
    while (p->n_runs < RUNS && k->runs[p->n_runs].n)
        p->n_tok += k->runs[p->n_runs++].n;
    p->n_tok += p->n_pad;
    p->n_kv = (k->head0 + k->n_heads - 1) / k->group - k->head0 / k->group + 1;
    p->a = (struct cuda_attention){.n_heads = k->n_heads, .head0 = k->head0, .group = k->group, .kv_head0 = k->head0 / k->group,
                                   .kv = layout(k->type, k->dim, k->dim_v, p->n_kv), .scale = 1 / sqrtf((float)k->dim), .window = k->window,
                                   .softcap = k->softcap, .q_stride = (size_t)k->n_heads * k->dim + 4, .out_stride = (size_t)k->n_heads * k->dim_v + 2};
    uint32_t n_blocks;
    deal_blocks(&r, p, &n_blocks);
    p->pool_bytes = n_blocks * p->a.kv.block_stride;
    p->pool = malloc(p->pool_bytes);
    memset(p->pool, 0xff, p->pool_bytes); /* NaN in every type */
    fill_pool(&r, p);
    p->q_len = p->n_tok * p->a.q_stride;
    p->out_len = p->n_tok * p->a.out_stride;
    p->q = malloc(p->q_len * sizeof(float));
    p->out = malloc(p->out_len * sizeof(float));
    p->want = malloc(p->out_len * sizeof(float));
    p->allowed = malloc(p->n_tok * k->n_heads * sizeof *p->allowed);
    p->pos = malloc(p->n_tok * sizeof(uint32_t));
    p->slot = malloc(p->n_tok * sizeof(uint32_t));
    p->sinks = malloc(k->n_heads * sizeof(float));
    cases_floats(&r, k->n_heads, p->sinks);
    cases_floats(&r, p->q_len, p->q);
    uint32_t tok = 0;
    for (uint32_t i = 0; i < p->n_runs; i++)
        for (uint32_t t = 0; t < k->runs[i].n; t++, tok++) {
            p->pos[tok] = k->runs[i].pos0 + t;
            p->slot[tok] = i;
        }
    for (; tok < p->n_tok; tok++) {
        p->pos[tok] = p->slot[tok] = UINT32_MAX;
        memset(p->q + tok * p->a.q_stride, 0xff, p->a.q_stride * sizeof(float));
    }
    if (with_oracle)
        oracle(p);
    p->a.kv.layer = device(p->pool, p->pool_bytes);
    p->a.q = device(p->q, p->q_len * sizeof(float));
    memset(p->out, 0xff, p->out_len * sizeof(float));
    p->a.out = device(p->out, p->out_len * sizeof(float));
    p->a.sinks = k->sinks ? device(p->sinks, k->n_heads * sizeof(float)) : NULL;
    p->b = (struct cuda_batch){.pos = device(p->pos, p->n_tok * 4), .slot = device(p->slot, p->n_tok * 4),
                               .tables = device(p->tables, p->n_runs * p->table_stride * 4), .table_stride = p->table_stride, .n_tok = p->n_tok};
}

static void problem_deinit(struct problem *p)
{
    void *dev[] = {p->a.kv.layer, (void *)(uintptr_t)p->a.q, p->a.out, (void *)(uintptr_t)p->a.sinks, (void *)(uintptr_t)p->b.pos,
                   (void *)(uintptr_t)p->b.slot, (void *)(uintptr_t)p->b.tables};
    for (unsigned i = 0; i < ARRAY_LEN(dev); i++)
        assert_int_equal(cudaFree(dev[i]), cudaSuccess);
    free(p->pool); free(p->pos); free(p->slot); free(p->tables); free(p->q); free(p->out); free(p->want); free(p->sinks); free(p->allowed);
}

/* ---- contexts */
static void context_init(struct cuda_context *c, bool deterministic, uint32_t n_sms, size_t scratch_bytes)
{
    *c = (struct cuda_context){.cfg = {.deterministic = deterministic, .n_sms = n_sms}, .scratch_bytes = scratch_bytes};
    c->scratch = scratch_bytes ? device(NULL, scratch_bytes) : NULL;
    c->counters = device(NULL, CONTEXT_COUNTERS * 4);
    assert_int_equal(cudaMemset(c->counters, 0, CONTEXT_COUNTERS * 4), cudaSuccess);
    if (c->scratch)
        assert_int_equal(cudaMemset(c->scratch, 0xff, scratch_bytes), cudaSuccess);
}
static void context_deinit(struct cuda_context *c)
{
    static uint32_t counters[CONTEXT_COUNTERS];
    host(counters, c->counters, sizeof counters);
    for (unsigned i = 0; i < CONTEXT_COUNTERS; i++)
        assert_int_equal(counters[i], 0);
    cudaFree(c->counters);
    cudaFree(c->scratch);
}

/* ---- judging */
static void describe(const struct kase *k, char *to, size_t cap)
{
    static const char *const names[] = {"f32", "f16", "bf16", "q8_0", "fp8"};
    snprintf(to, cap, "%s dim %u dim_v %u heads %u group %u head0 %u window %u softcap %g sinks %d first run %u+%u", names[k->type], k->dim, k->dim_v,
             k->n_heads, k->group, k->head0, k->window, (double)k->softcap, k->sinks, k->runs[0].pos0, k->runs[0].n);
}

static double worst; /* share of what is allowed, of all cases so far */

static void check(struct problem *p, bool decode)
{
    char what[256];
    describe(&p->k, what, sizeof what);
    host(p->out, p->a.out, p->out_len * sizeof(float));
    for (uint32_t t = 0; t < p->n_tok; t++) {
        const float *got = p->out + t * p->a.out_stride, *want = p->want + t * p->a.out_stride;
        for (uint32_t h = 0; h < p->k.n_heads; h++, got += p->k.dim_v, want += p->k.dim_v) {
            double far = 0, tol = p->allowed[t * p->k.n_heads + h][decode];
            for (uint32_t j = 0; j < p->k.dim_v; j++) {
                if (t >= p->n_tok - p->n_pad) {
                    if (!isfinite(got[j]))
                        fail_msg("%s: padding is not finite", what);
                    continue;
                }
                far += ((double)got[j] - want[j]) * ((double)got[j] - want[j]);
            }
            if (t >= p->n_tok - p->n_pad)
                continue;
            if (!(sqrt(far) <= tol))
                fail_msg("%s: token %u head %u: off by %.3g, allowed %.3g", what, t, h, sqrt(far), tol);
            worst = MAX(worst, sqrt(far) / tol);
        }
        for (size_t j = p->k.n_heads * p->k.dim_v; j < p->a.out_stride; j++)
            if (!isnan(p->out[t * p->a.out_stride + j]))
                fail_msg("%s: token %u: written past the last head", what, t);
    }
}

static uint32_t ctx_of(const struct problem *p)
{
    uint32_t most = 0;
    for (uint32_t i = 0; i < p->n_runs; i++)
        most = MAX(most, p->k.runs[i].pos0 + p->k.runs[i].n);
    return most;
}

/* ---- the table */
#define EDGES {{0, 1}, {14, 1}, {15, 1}, {16, 1}, {254, 1}, {255, 1}, {256, 1}}
#define LONG {{999, 1}, {2099, 1}, {62, 1}}
#define FEW {{40, 1}, {2, 1}, {129, 1}}
#define ODD {{0, 5}, {13, 70}, {255, 2}, {700, 33}}
#define ONE {{300, 65}}
static const struct kase decode_cases[] = {
    {KV_F16, 64, 64, 4, 1, 0, 0, 0, false, EDGES},     {KV_F16, 128, 128, 8, 4, 0, 0, 0, false, EDGES},   {KV_F16, 128, 128, 4, 4, 0, 0, 0, false, LONG},
    {KV_BF16, 128, 128, 8, 8, 0, 0, 0, false, LONG},   {KV_BF16, 64, 64, 14, 7, 0, 0, 0, false, EDGES},   {KV_Q8_0, 128, 128, 6, 3, 0, 0, 0, false, LONG},
    {KV_FP8, 128, 128, 4, 2, 0, 0, 0, false, LONG},    {KV_Q8_0, 64, 64, 4, 2, 0, 0, 0, false, EDGES},    {KV_FP8, 64, 64, 3, 1, 0, 0, 0, false, EDGES},
    {KV_F16, 80, 80, 4, 2, 0, 0, 0, false, EDGES},     {KV_BF16, 96, 96, 6, 3, 0, 0, 0, false, EDGES},    {KV_Q8_0, 96, 96, 4, 4, 0, 0, 0, false, FEW},
    {KV_FP8, 80, 80, 4, 4, 0, 0, 0, false, EDGES},     {KV_F16, 256, 256, 4, 2, 0, 0, 0, false, EDGES},   {KV_BF16, 256, 256, 2, 1, 0, 0, 0, false, LONG},
    {KV_Q8_0, 256, 256, 4, 4, 0, 0, 0, false, FEW},    {KV_FP8, 256, 256, 16, 16, 0, 0, 0, false, FEW},   {KV_F16, 128, 128, 16, 16, 0, 0, 0, false, LONG},
    {KV_BF16, 64, 64, 16, 16, 0, 0, 0, false, EDGES},  {KV_F16, 64, 64, 20, 20, 0, 0, 0, false, FEW},     {KV_F16, 64, 64, 7, 4, 6, 0, 0, false, FEW},
    {KV_BF16, 128, 128, 5, 16, 14, 0, 0, false, FEW},  {KV_F16, 64, 64, 3, 7, 3, 0, 0, false, LONG},      {KV_F16, 16, 16, 4, 2, 0, 0, 0, false, EDGES},
    {KV_Q8_0, 32, 32, 4, 4, 0, 0, 0, false, EDGES},    {KV_FP8, 8, 24, 2, 1, 0, 0, 0, false, EDGES},      {KV_F16, 72, 40, 5, 5, 0, 0, 0, false, FEW},
    {KV_BF16, 128, 64, 4, 2, 0, 0, 0, false, FEW},     {KV_FP8, 192, 128, 2, 1, 0, 0, 0, false, FEW},     {KV_F16, 64, 128, 2, 2, 0, 0, 0, false, FEW},
    {KV_F16, 64, 64, 4, 2, 0, 100, 0, false, LONG},    {KV_BF16, 128, 128, 8, 8, 0, 16, 0, true, EDGES},  {KV_F16, 256, 256, 4, 2, 0, 300, 50, false, LONG},
    {KV_Q8_0, 64, 64, 8, 8, 0, 128, 0, true, LONG},    {KV_F16, 128, 128, 2, 1, 0, 0, 5, true, FEW},      {KV_FP8, 64, 64, 16, 16, 0, 1, 30, true, EDGES},
};
static const struct kase prefill_cases[] = {
    {KV_F16, 64, 64, 2, 2, 0, 0, 0, false, ODD},      {KV_BF16, 64, 64, 3, 1, 1, 0, 0, false, ODD},     {KV_Q8_0, 64, 64, 2, 4, 3, 0, 0, false, ODD},
    {KV_FP8, 64, 64, 2, 2, 0, 0, 0, false, ODD},      {KV_F16, 128, 128, 2, 2, 0, 0, 0, false, ODD},    {KV_BF16, 128, 128, 2, 2, 0, 0, 0, false, ONE},
    {KV_Q8_0, 128, 128, 2, 2, 0, 0, 0, false, ONE},   {KV_FP8, 128, 128, 2, 1, 0, 0, 0, false, ONE},    {KV_F16, 80, 80, 2, 2, 0, 0, 0, false, ONE},
    {KV_BF16, 96, 96, 2, 2, 0, 0, 0, false, ONE},     {KV_F16, 256, 256, 1, 1, 0, 0, 0, false, ODD},    {KV_Q8_0, 256, 256, 1, 1, 0, 0, 0, false, ONE},
    {KV_BF16, 256, 128, 1, 1, 0, 0, 0, false, ONE},   {KV_F16, 16, 16, 2, 2, 0, 0, 0, false, ODD},      {KV_FP8, 40, 72, 1, 1, 0, 0, 0, false, ONE},
    {KV_Q8_0, 32, 32, 2, 2, 0, 0, 0, false, ONE},     {KV_F16, 64, 64, 2, 2, 0, 100, 0, false, ODD},    {KV_BF16, 128, 128, 1, 1, 0, 1, 0, true, ONE},
    {KV_F16, 64, 128, 1, 1, 0, 0, 0, false, ONE},     {KV_Q8_0, 64, 96, 1, 1, 0, 0, 0, false, ONE},
    {KV_F16, 64, 64, 2, 2, 0, 20, 30, true, ODD},     {KV_FP8, 256, 256, 1, 1, 0, 64, 50, false, ONE},  {KV_F16, 64, 64, 2, 1, 0, 0, 5, true, {{0, 200}}},
};

static void decode_equals_the_oracle(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ARRAY_LEN(decode_cases); i++) {
        struct problem p;
        struct cuda_context c;
        problem_init(&p, &decode_cases[i], i + 1, true);
        /* From one split to many, and none for want of scratch; every second case deterministic. */
        context_init(&c, i % 2, i % 3 == 0 ? 1 : i % 3 == 1 ? 16 : 132, i % 8 == 6 ? 0 : 4 << 20);
        assert_int_equal(cuda_attention_decode(&c, &p.a, &p.b, NULL, p.n_tok, ctx_of(&p) + (i % 4 == 0 ? 5000 : 0), NULL), cudaSuccess);
        check(&p, true);
        context_deinit(&c);
        problem_deinit(&p);
    }
    print_message("the worst is %.2f of what is allowed\n", worst);
}

/* Every dimension that has a kernel of its own, type and size of a group. */
static void decode_equals_the_oracle_for_all_shapes(void **state)
{
    (void)state;
    static const uint32_t dims[] = {64, 80, 96, 128, 256}, groups[] = {1, 2, 3, 4, 7, 8, 16};
    worst = 0;
    for (unsigned i = 0; i < ARRAY_LEN(dims) * ARRAY_LEN(groups) * 4; i++) {
        uint32_t dim = dims[i / 4 % ARRAY_LEN(dims)], group = groups[i / 4 / ARRAY_LEN(dims)];
        struct kase k = {(enum kv_type)(KV_F16 + i % 4), dim, dim, group + group / 2, group, group / 3, 0, 0, false, {{16, 1}, {i % 256, 1}, {256 + i, 1}}};
        if (k.type == KV_Q8_0 && dim % 32)
            continue;
        struct problem p;
        struct cuda_context c;
        problem_init(&p, &k, 1000 + i, true);
        context_init(&c, false, 64, 4 << 20);
        assert_int_equal(cuda_attention_decode(&c, &p.a, &p.b, NULL, p.n_tok, ctx_of(&p), NULL), cudaSuccess);
        check(&p, true);
        context_deinit(&c);
        problem_deinit(&p);
    }
    print_message("the worst is %.2f of what is allowed\n", worst);
}

/* Tiles of every run, with empty ones among them and one of padding, as a step that is captured in a graph has them. */
static void run_prefill(struct problem *p)
{
    uint32_t tok[64], n[64], count = 0, first = 0;
    struct cuda_context c;
    for (uint32_t i = 0; i < p->n_runs; first += p->k.runs[i++].n)
        for (uint32_t t = 0; t < p->k.runs[i].n; t += CUDA_ATTN_TILE) {
            tok[count] = first + t;
            n[count++] = MIN(p->k.runs[i].n - t, (uint32_t)CUDA_ATTN_TILE);
            tok[count] = UINT32_MAX;
            n[count++] = 0;
        }
    if (p->n_pad) {
        tok[count] = p->n_tok - p->n_pad;
        n[count++] = p->n_pad;
    }
    ASSERT(count <= 64);
    context_init(&c, false, 132, 0);
    uint32_t *dev_tok = device(tok, count * 4), *dev_n = device(n, count * 4);
    assert_int_equal(cuda_attention_prefill(&c, &p->a, &p->b, dev_tok, dev_n, count, NULL), cudaSuccess);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    cudaFree(dev_tok);
    cudaFree(dev_n);
    context_deinit(&c);
}

static void prefill_equals_the_oracle_for_all_shapes(void **state)
{
    (void)state;
    static const uint32_t dims[] = {64, 80, 96, 128, 256};
    worst = 0;
    for (unsigned i = 0; i < ARRAY_LEN(dims) * 4; i++) {
        uint32_t dim = dims[i / 4];
        struct kase k = {(enum kv_type)(KV_F16 + i % 4), dim, dim, 2, 2, i % 2, 0, 0, false, {{i, 20 + i}, {250 + i, 70 - i}}};
        if (k.type == KV_Q8_0 && dim % 32)
            continue;
        struct problem p;
        problem_init(&p, &k, 2000 + i, true);
        run_prefill(&p);
        check(&p, false);
        problem_deinit(&p);
    }
    print_message("the worst is %.2f of what is allowed\n", worst);
}

static void prefill_equals_the_oracle(void **state)
{
    (void)state;
    worst = 0;
    for (unsigned i = 0; i < ARRAY_LEN(prefill_cases); i++) {
        struct problem p;
        problem_init(&p, &prefill_cases[i], 100 + i, true);
        run_prefill(&p);
        check(&p, false);
        problem_deinit(&p);
    }
    print_message("the worst is %.2f of what is allowed\n", worst);
}

/* The deterministic form: a token's bits whatever else is in the batch, however far it is split, and in whatever order tokens come. */
static void decode_of_a_token_has_the_same_bits_in_any_batch(void **state)
{
    (void)state;
    static const struct kase cases[] = {
        {KV_F16, 64, 64, 4, 2, 0, 0, 0, false, {{700, 1}, {15, 1}, {2099, 1}, {256, 3}}},
        {KV_BF16, 128, 128, 3, 4, 3, 300, 0, true, {{700, 1}, {255, 1}, {1023, 1}}},
        {KV_Q8_0, 256, 256, 2, 2, 0, 0, 50, false, {{511, 1}, {600, 2}}},
        {KV_FP8, 96, 96, 16, 16, 0, 0, 0, false, {{511, 1}, {600, 1}}},
    };
    for (unsigned i = 0; i < ARRAY_LEN(cases); i++) {
        struct problem p;
        problem_init(&p, &cases[i], 7 + i, true);
        uint32_t n = p.n_tok - p.n_pad, mixed[16];
        size_t bytes = p.out_len * sizeof(float);
        float *first = malloc(bytes);
        /* all of them; on a smaller device, with the workspace that is asked for; a token or two at a time for want of scratch; backwards with gaps; each alone, with another bound */
        struct cuda_limits limits = {.n_heads = p.k.n_heads, .head_dim_v = p.k.dim_v, .ctx = ctx_of(&p)};
        size_t one = (size_t)(ctx_of(&p) / 256 + 2) * p.n_kv * MIN(p.k.group, 16u) * (p.k.dim_v + 2) * sizeof(float);
        for (unsigned form = 0; form < 5; form++) {
            struct cuda_context c;
            memset(p.out, 0xff, bytes);
            assert_int_equal(cudaMemcpy(p.a.out, p.out, bytes, cudaMemcpyHostToDevice), cudaSuccess);
            context_init(&c, true, form == 1 ? 1 : 132, form == 2 ? one * 2 : form == 1 ? cuda_attention_workspace_bytes(&limits) : 8 << 20);
            for (uint32_t t = 0; t < 2 * n; t++)
                mixed[t] = t % 2 ? UINT32_MAX : n - 1 - t / 2;
            uint32_t *index = device(mixed, 2 * n * 4);
            if (form < 3)
                assert_int_equal(cuda_attention_decode(&c, &p.a, &p.b, NULL, n, ctx_of(&p), NULL), cudaSuccess);
            else if (form == 3)
                assert_int_equal(cuda_attention_decode(&c, &p.a, &p.b, index, 2 * n, ctx_of(&p), NULL), cudaSuccess);
            for (uint32_t t = 0; form == 4 && t < n; t++)
                assert_int_equal(cuda_attention_decode(&c, &p.a, &p.b, index + 2 * t, 1, 4096 + t, NULL), cudaSuccess);
            host(p.out, p.a.out, bytes);
            if (form == 0)
                memcpy(first, p.out, bytes);
            for (uint32_t t = 0; t < n; t++)
                assert_memory_equal(p.out + t * p.a.out_stride, first + t * p.a.out_stride, (size_t)p.k.n_heads * p.k.dim_v * sizeof(float));
            cudaFree(index);
            context_deinit(&c);
        }
        free(first);
        problem_deinit(&p);
    }
}

/* A split over ranks changes no bit either: the heads of a group that others have do not matter. */
static void a_head_has_the_same_bits_on_any_rank(void **state)
{
    (void)state;
    static const struct kase whole = {KV_F16, 64, 64, 8, 4, 0, 0, 0, false, {{300, 1}, {31, 1}}};
    struct problem p;
    struct cuda_context c;
    problem_init(&p, &whole, 3, true);
    context_init(&c, true, 16, 1 << 20);
    assert_int_equal(cuda_attention_decode(&c, &p.a, &p.b, NULL, 2, 301, NULL), cudaSuccess);
    float *all = malloc(p.out_len * 4);
    host(all, p.a.out, p.out_len * 4);
    struct cuda_attention a = p.a; /* heads 3 .. 5: the last of a group and two of the next */
    a.head0 = 3;
    a.n_heads = 3;
    a.q += 3 * 64;
    assert_int_equal(cuda_attention_decode(&c, &a, &p.b, NULL, 2, 301, NULL), cudaSuccess);
    host(p.out, p.a.out, p.out_len * 4);
    for (uint32_t t = 0; t < 2; t++)
        assert_memory_equal(p.out + t * p.a.out_stride, all + t * p.a.out_stride + 3 * 64, 3 * 64 * sizeof(float));
    free(all);
    context_deinit(&c);
    problem_deinit(&p);
}

/* One capture serves every step: the same launch with other positions, slots and q. */
static void a_captured_launch_follows_what_lies_in_memory(void **state)
{
    (void)state;
    static const struct kase first = {KV_F16, 64, 64, 4, 2, 0, 0, 0, false, {{30, 1}, {2000, 1}}}, second = {KV_F16, 64, 64, 4, 2, 0, 0, 0, false, {{2000, 1}, {17, 1}}};
    struct problem p, other;
    struct cuda_context c;
    cudaStream_t stream;
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    problem_init(&p, &first, 21, true);
    problem_init(&other, &second, 22, true);
    assert_true(p.table_stride == other.table_stride && p.pool_bytes == other.pool_bytes);
    context_init(&c, false, 132, 4 << 20);
    assert_int_equal(cudaStreamCreate(&stream), cudaSuccess);
    assert_int_equal(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), cudaSuccess);
    assert_int_equal(cuda_attention_decode(&c, &p.a, &p.b, NULL, p.n_tok, 4096, stream), cudaSuccess);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaSuccess);
    assert_int_equal(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
    assert_int_equal(cudaGraphLaunch(exec, stream), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    check(&p, true);
    cudaMemcpy(p.a.kv.layer, other.pool, p.pool_bytes, cudaMemcpyHostToDevice);
    cudaMemcpy((void *)(uintptr_t)p.a.q, other.q, p.q_len * 4, cudaMemcpyHostToDevice);
    cudaMemcpy((void *)(uintptr_t)p.b.pos, other.pos, p.n_tok * 4, cudaMemcpyHostToDevice);
    cudaMemcpy((void *)(uintptr_t)p.b.slot, other.slot, p.n_tok * 4, cudaMemcpyHostToDevice);
    cudaMemcpy((void *)(uintptr_t)p.b.tables, other.tables, p.n_runs * p.table_stride * 4, cudaMemcpyHostToDevice);
    memcpy(p.want, other.want, p.out_len * 4);
    memcpy(p.allowed, other.allowed, p.n_tok * p.k.n_heads * sizeof *p.allowed);
    assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
    assert_int_equal(cudaGraphLaunch(exec, stream), cudaSuccess);
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    check(&p, true);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    context_deinit(&c);
    problem_deinit(&other);
    problem_deinit(&p);
}

static void a_type_that_kernels_do_not_have_is_refused(void **state)
{
    (void)state;
    static const struct kase f32 = {KV_F32, 64, 64, 2, 1, 0, 0, 0, false, {{3, 1}}};
    struct problem p;
    struct cuda_context c;
    problem_init(&p, &f32, 1, false);
    context_init(&c, false, 16, 0);
    struct cuda_rope_kv r = {.qkv = (float *)(uintptr_t)p.a.q, .kv = p.a.kv};
    assert_int_equal(cuda_attention_decode(&c, &p.a, &p.b, NULL, 1, 4, NULL), cudaErrorInvalidValue);
    assert_int_equal(cuda_attention_prefill(&c, &p.a, &p.b, p.b.pos, p.b.pos, 1, NULL), cudaErrorInvalidValue);
    assert_int_equal(cuda_rope_kv(&r, &p.b, NULL), cudaErrorInvalidValue);
    context_deinit(&c);
    problem_deinit(&p);
}

/* ---- rope and KV write */
struct rope_case {
    enum kv_type type;
    uint32_t dim, dim_v, n_heads, n_kv, rope_dims;
    enum rope_layout layout;
    bool norms;
};
static const struct rope_case rope_cases[] = {
    {KV_F16, 64, 64, 4, 2, 64, ROPE_NORMAL, false}, {KV_BF16, 128, 128, 3, 1, 128, ROPE_NEOX, true},  {KV_Q8_0, 128, 64, 2, 2, 128, ROPE_NEOX, true},
    {KV_FP8, 96, 96, 2, 1, 48, ROPE_NEOX, false},   {KV_F16, 80, 80, 2, 2, 20, ROPE_NORMAL, true},    {KV_Q8_0, 32, 32, 4, 4, 32, ROPE_NORMAL, false},
    {KV_FP8, 8, 24, 1, 1, 8, ROPE_NORMAL, false},   {KV_BF16, 256, 256, 2, 1, 64, ROPE_NEOX, false},  {KV_Q8_0, 256, 256, 1, 1, 0, ROPE_NORMAL, true},
};
enum { ROPE_TOK = 7 };

static void rope_case(const struct rope_case *k, uint64_t seed)
{
    struct cases_rng r = {seed};
    uint32_t half = k->rope_dims / 2, heads_qk = k->n_heads + k->n_kv;
    size_t stride = (size_t)heads_qk * k->dim + k->n_kv * k->dim_v + 4, n = ROPE_TOK * stride;
    struct cuda_kv kv = layout(k->type, k->dim, k->dim_v, k->n_kv);
    /* Two sequences over a border of blocks, padding in the middle. */
    static const uint32_t pos[ROPE_TOK] = {15, 16, 17, UINT32_MAX, 0, 1, 47}, slot[ROPE_TOK] = {0, 0, 0, UINT32_MAX, 1, 1, 1};
    static const uint32_t tables[2][4] = {{4, 2, NO_BLOCK, NO_BLOCK}, {1, NO_BLOCK, 5, NO_BLOCK}};
    size_t pool_bytes = 6 * kv.block_stride;
    float *x = malloc(n * 4), *want = malloc(n * 4), *got = malloc(n * 4), w[2][256], c[ROPE_TOK * 128], s[ROPE_TOK * 128];
    uint8_t *pool = malloc(pool_bytes), *want_pool = malloc(pool_bytes);
    memset(want_pool, 0xee, pool_bytes);
    cases_floats(&r, n, x);
    x[stride + (size_t)heads_qk * k->dim] = NAN;           /* a lost v and a huge one: stay visible, stay in their block */
    x[2 * stride + (size_t)heads_qk * k->dim] = 1e6f;
    cases_floats(&r, 256, w[0]);
    cases_floats(&r, 256, w[1]);
    for (uint32_t i = 0; i < ROPE_TOK * half; i++) {
        double angle = 3.14 * cases_normal(&r);
        c[i] = (float)cos(angle);
        s[i] = (float)sin(angle);
    }
    memcpy(want, x, n * 4);
    for (uint32_t t = 0; t < ROPE_TOK; t++)
        for (uint32_t h = 0; h < heads_qk; h++) {
            float *v = want + t * stride + (size_t)h * k->dim;
            if (k->norms)
                kernels_ref_f32.rmsnorm(v, h < k->n_heads ? w[0] : w[1], 1e-6f, k->dim, v);
            kernels_ref_f32.rope(v, 1, k->dim, k->rope_dims, k->layout, c + t * half, s + t * half);
        }
    struct cuda_rope_kv a = {.qkv = device(x, n * 4), .stride = stride, .n_heads = k->n_heads, .rope_dims = k->rope_dims, .layout = k->layout,
                             .q_norm = k->norms ? device(w[0], k->dim * 4) : NULL, .k_norm = k->norms ? device(w[1], k->dim * 4) : NULL, .eps = 1e-6f,
                             .cos = device(c, ROPE_TOK * half * 4), .sin = device(s, ROPE_TOK * half * 4), .kv = kv};
    a.kv.layer = device(want_pool, pool_bytes);
    struct cuda_batch b = {.pos = device(pos, sizeof pos), .slot = device(slot, sizeof slot), .tables = device(tables, sizeof tables), .table_stride = 4,
                           .n_tok = ROPE_TOK};
    assert_int_equal(cuda_rope_kv(&a, &b, NULL), cudaSuccess);
    host(got, a.qkv, n * 4);
    host(pool, a.kv.layer, pool_bytes);
    for (uint32_t t = 0; t < ROPE_TOK; t++) {
        float *row = got + t * stride;
        for (uint32_t h = 0; h < heads_qk; h++) {
            float len = 0; /* a norm of 128 squares, one rotation: a few steps of fp32, of the head's largest value */
            for (uint32_t j = 0; j < k->dim; j++)
                len = fmaxf(len, fabsf(want[t * stride + h * k->dim + j]));
            for (uint32_t j = 0; j < k->dim; j++)
                assert_true(fabsf(row[h * k->dim + j] - want[t * stride + h * k->dim + j]) <= 0x1p-21f * len);
        }
        size_t rest = (size_t)heads_qk * k->dim; /* v, and what is not ours, as it was */
        assert_memory_equal(row + rest, x + t * stride + rest, (stride - rest) * 4);
        if (slot[t] == UINT32_MAX)
            continue;
        for (uint32_t h = 0; h < k->n_kv; h++) { /* the cache: these very values, rounded as the reference does */
            uint8_t *block = want_pool + tables[slot[t]][pos[t] / BLOCK] * kv.block_stride;
            kernels_ref.kv_write(k->type, row + (size_t)(k->n_heads + h) * k->dim, k->dim,
                                 block + h * kv.k_head_stride + pos[t] % BLOCK * ref_kv_bytes(k->type, k->dim));
            kernels_ref.kv_write(k->type, row + rest + (size_t)h * k->dim_v, k->dim_v,
                                 block + kv.v_off + h * kv.v_head_stride + pos[t] % BLOCK * ref_kv_bytes(k->type, k->dim_v));
        }
    }
    /* Which NaN is not laid down: f16 and bf16 of the lost value, and q8_0's scale. */
    uint8_t *lost = want_pool + tables[0][1] * kv.block_stride + kv.v_off;
    if (k->type != KV_FP8) {
        float is;
        ref_kv_read(k->type, pool + (lost - want_pool), 1, &is);
        assert_true(isnan(is) || (k->type == KV_Q8_0 && isnan(is)));
        memcpy(lost, pool + (lost - want_pool), 2);
    }
    assert_memory_equal(pool, want_pool, pool_bytes);
    void *dev[] = {a.qkv, (void *)(uintptr_t)a.q_norm, (void *)(uintptr_t)a.k_norm, (void *)(uintptr_t)a.cos, (void *)(uintptr_t)a.sin, a.kv.layer,
                   (void *)(uintptr_t)b.pos, (void *)(uintptr_t)b.slot, (void *)(uintptr_t)b.tables};
    for (unsigned i = 0; i < ARRAY_LEN(dev); i++)
        cudaFree(dev[i]);
    free(x); free(want); free(got); free(pool); free(want_pool);
}

static void rope_norm_and_cache_equal_the_reference(void **state)
{
    (void)state;
    for (unsigned i = 0; i < ARRAY_LEN(rope_cases); i++)
        rope_case(&rope_cases[i], 50 + i);
}

/* ---- the benchmark */
static const struct kase bench_cases[] = {
    {KV_F16, 128, 128, 32, 4, 0, 0, 0, false, {{1023, 1}}},  {KV_BF16, 128, 128, 32, 4, 0, 0, 0, false, {{16383, 1}}},
    {KV_Q8_0, 128, 128, 32, 4, 0, 0, 0, false, {{16383, 1}}}, {KV_FP8, 128, 128, 32, 4, 0, 0, 0, false, {{16383, 1}}},
    {KV_F16, 64, 64, 32, 4, 0, 0, 0, false, {{16383, 1}}},   {KV_F16, 256, 256, 16, 2, 0, 0, 0, false, {{16383, 1}}},
    {KV_F16, 128, 128, 32, 4, 0, 0, 0, false, {{4095, 1}, {4095, 1}, {4095, 1}, {4095, 1}, {4095, 1}, {4095, 1}, {4095, 1}, {4095, 1}}},
    {KV_F16, 128, 128, 32, 4, 0, 0, 0, false, {{0, 4096}}},  {KV_BF16, 128, 128, 32, 4, 0, 0, 0, false, {{0, 4096}}},
    {KV_Q8_0, 128, 128, 32, 4, 0, 0, 0, false, {{0, 4096}}}, {KV_F16, 64, 64, 32, 4, 0, 0, 0, false, {{0, 4096}}},
    {KV_F16, 256, 256, 16, 2, 0, 0, 0, false, {{0, 4096}}},
};
static void bench(void)
{
    enum { TIMES = 20 };
    struct cudaDeviceProp prop;
    assert_int_equal(cudaGetDeviceProperties(&prop, 0), cudaSuccess);
    printf("%s, %d SMs\n", prop.name, prop.multiProcessorCount);
    for (unsigned i = 0; i < ARRAY_LEN(bench_cases); i++) {
        const struct kase *k = &bench_cases[i];
        struct problem p;
        struct cuda_context c;
        cudaEvent_t from, to;
        float ms;
        char what[256];
        problem_init(&p, k, 1, false);
        context_init(&c, false, (uint32_t)prop.multiProcessorCount, 64 << 20);
        bool decode = k->runs[0].n == 1;
        uint32_t n = p.n_tok - p.n_pad, tiles = n / CUDA_ATTN_TILE, *tok = malloc((tiles + 1) * 4), *len = malloc((tiles + 1) * 4);
        for (uint32_t t = 0; t < tiles; t++) {
            tok[t] = t * CUDA_ATTN_TILE;
            len[t] = CUDA_ATTN_TILE;
        }
        uint32_t *dev_tok = device(tok, (tiles + 1) * 4), *dev_len = device(len, (tiles + 1) * 4);
        cudaEventCreate(&from);
        cudaEventCreate(&to);
        for (int t = -3; t < TIMES; t++) {
            if (t == 0)
                cudaEventRecord(from, NULL);
            if (decode)
                cuda_attention_decode(&c, &p.a, &p.b, NULL, n, ctx_of(&p), NULL);
            else
                cuda_attention_prefill(&c, &p.a, &p.b, dev_tok, dev_len, tiles, NULL);
        }
        cudaEventRecord(to, NULL);
        assert_int_equal(cudaEventSynchronize(to), cudaSuccess);
        cudaEventElapsedTime(&ms, from, to);
        double bytes = 0, pairs = 0, s = (double)ms * 1e-3 / TIMES;
        for (uint32_t r = 0; r < p.n_runs; r++) {
            bytes += (double)(k->runs[r].pos0 + k->runs[r].n) * p.n_kv * (double)(ref_kv_bytes(k->type, k->dim) + ref_kv_bytes(k->type, k->dim_v));
            pairs += (double)k->runs[r].n * (k->runs[r].pos0 + (k->runs[r].n + 1) / 2.0);
        }
        describe(k, what, sizeof what);
        printf("%-8s %-100s %9.1f us %8.1f GB/s %7.1f TFLOP/s\n", decode ? "decode" : "prefill", what, s * 1e6, bytes / s * 1e-9,
               pairs * k->n_heads * 2 * (k->dim + k->dim_v) / s * 1e-12);
        cudaFree(dev_tok);
        cudaFree(dev_len);
        free(tok);
        free(len);
        context_deinit(&c);
        problem_deinit(&p);
    }
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        bench();
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rope_norm_and_cache_equal_the_reference),
        cmocka_unit_test(decode_equals_the_oracle),
        cmocka_unit_test(decode_equals_the_oracle_for_all_shapes),
        cmocka_unit_test(prefill_equals_the_oracle),
        cmocka_unit_test(prefill_equals_the_oracle_for_all_shapes),
        cmocka_unit_test(decode_of_a_token_has_the_same_bits_in_any_batch),
        cmocka_unit_test(a_head_has_the_same_bits_on_any_rank),
        cmocka_unit_test(a_captured_launch_follows_what_lies_in_memory),
        cmocka_unit_test(a_type_that_kernels_do_not_have_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
