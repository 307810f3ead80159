/* Paged attention on AVX2, in the chains of kernels.h. All query heads of a KV group and several tokens (up to 16
 * queries) are worked on together, so that a KV block of 16 positions is widened to fp32 once for all of them.
 *
 * Per range of 256 positions: scores of all queries, block by block; then per query the maximum and the exponentials;
 * then the values, block by block; then the range joins the state. Scratch (this thread's, floats): queries 16 x 256,
 * scores 16 x 256, o of the range 16 x 256, O of all ranges 16 x 256, the widened block 16 x 256, M and L. Rows are
 * padded with zeros to multiples of 16. */
#include "base/check.h"
#include "base/fmath_avx2.h"
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/cpu.h"
#include "kernels/half.h"

enum { QUERIES = 16, DIM = 256, BLOCK = SHARD_KV_BLOCK, RANGE = KERNELS_ATTN_RANGE };
_Static_assert(5 * QUERIES * DIM + 2 * QUERIES <= KERNELS_ATTN_SCRATCH, "scratch");
_Static_assert((int)HPARAMS_HEAD_DIM_MAX <= (int)DIM, "a model may have larger heads than there is room for");

struct work {
    const struct kernels_attn *a;
    uint32_t kv_head, n_q, dim_pad, dim_v_pad;
    uint32_t n_pos[QUERIES]; /* positions that a query sees */
    float *q, *s, *o, *all, *kv;
    float m_all[QUERIES], l_all[QUERIES], m[QUERIES], l[QUERIES];
};

/* One row of n values as fp32, zeros up to n_pad (a multiple of 16). */
static void widen(enum kv_type type, const uint8_t *p, uint32_t n, uint32_t n_pad, float *out)
{
    uint32_t i = 0;
    switch (type) {
    case KV_F32:
        memcpy(out, p, n * sizeof *out);
        i = n;
        break;
    case KV_F16:
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i))));
        for (; i < n; i++)
            out[i] = half_from_f16(half_load16(p + 2 * i));
        break;
    case KV_BF16:
        for (; i + 8 <= n; i += 8) {
            __m256i v = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)(p + 2 * i)));
            _mm256_storeu_si256((__m256i *)(void *)(out + i), _mm256_slli_epi32(v, 16));
        }
        for (; i < n; i++)
            out[i] = half_from_bf16(half_load16(p + 2 * i));
        break;
    case KV_Q8_0:
        for (; i < n; i += 32, p += 34) {
            __m256 d = _mm256_cvtph_ps(_mm_set1_epi16((short)half_load16(p)));
            CPU_UNROLL
            for (int v = 0; v < 32; v += 8) {
                __m256i w = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)(p + 2 + v)));
                _mm256_storeu_ps(out + i + v, _mm256_mul_ps(d, _mm256_cvtepi32_ps(w)));
            }
        }
        break;
    case KV_FP8: /* one place to the left and a byte up it is an f16 of an exponent 8 too small */
        for (; i + 8 <= n; i += 8) {
            __m128i b = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)(const void *)(p + i)));
            __m128i rest = _mm_and_si128(b, _mm_set1_epi16(0x7f)), sign = _mm_slli_epi16(_mm_xor_si128(b, rest), 8);
            __m256i nan = _mm256_cvtepi16_epi32(_mm_cmpeq_epi16(rest, _mm_set1_epi16(0x7f)));
            __m256 v = _mm256_mul_ps(_mm256_cvtph_ps(_mm_or_si128(sign, _mm_slli_epi16(rest, 7))), _mm256_set1_ps(0x1p8f));
            _mm256_storeu_ps(out + i, _mm256_blendv_ps(v, _mm256_set1_ps(NAN), _mm256_castsi256_ps(nan)));
        }
        for (; i < n; i++)
            out[i] = half_from_e4m3(p[i]);
        break;
    }
    for (; i < n_pad; i++)
        out[i] = 0;
}

static size_t row_bytes(enum kv_type type, uint32_t n)
{
    return type == KV_F32 ? 4 * (size_t)n : type == KV_Q8_0 ? 34 * (size_t)(n / 32) : type == KV_FP8 ? n : 2 * (size_t)n;
}

/* The 16 rows of the K or V block at position p0 (a multiple of 16) of the work's KV head. */
static const uint8_t *block_rows(const struct work *w, uint32_t p0, bool v)
{
    const struct kernels_attn *a = w->a;
    const uint8_t *p = a->kv + (size_t)a->blocks[p0 / BLOCK] * a->block_stride;
    return p + (v ? a->v_off + w->kv_head * a->v_head_stride : w->kv_head * a->k_head_stride);
}

/* Widens the first n rows of a block. Block ids are in no order, so the hardware does not foresee the next block: it is
 * asked for here (decode of one token, 8192 positions, f16: 10.9 -> see kernels/README.md). */
static void widen_block(struct work *w, uint32_t p0, uint32_t n, uint32_t next, bool v)
{
    const struct kernels_attn *a = w->a;
    uint32_t dim = v ? a->head_dim_v : a->head_dim, pad = v ? w->dim_v_pad : w->dim_pad;
    size_t row = row_bytes(a->type, dim);
    const uint8_t *p = block_rows(w, p0, v);
    if (next > p0) {
        const uint8_t *q = block_rows(w, next, v);
        for (size_t i = 0; i < BLOCK * row; i += 64)
            _mm_prefetch((const char *)q + i, _MM_HINT_T0);
    }
    if (pad == dim) { /* rows follow each other without gaps */
        widen(a->type, p, n * dim, n * dim, w->kv);
        return;
    }
    for (uint32_t i = 0; i < n; i++)
        widen(a->type, p + i * row, dim, pad, w->kv + i * pad);
}

/* The two halves of the chains, c and c + 8, of P positions with Q queries (DIM apart), added: the first level of the tree. r [Q][stride]. As many chains as hide the
 * latency of an addition, 8, and as many operands as registers hold: both halves at once, or with 4 queries one after the other. */
CPU_INLINE void dots(int Q, int P, const float *q, const float *k, uint32_t dim, __m256 *r, int stride)
{
    const int halves = Q * P > 4 ? 1 : 2;
    CPU_UNROLL
    for (int first = 0; first < 2; first += halves) {
        __m256 c[4][4][2];
        CPU_UNROLL
        for (int i = 0; i < Q * P * halves; i++)
            c[i / halves / P][i / halves % P][i % halves] = _mm256_setzero_ps();
        for (uint32_t i = 0; i < dim; i += 16) {
            CPU_UNROLL
            for (int h = 0; h < halves; h++) {
                __m256 kv[4];
                CPU_UNROLL
                for (int p = 0; p < P; p++)
                    kv[p] = _mm256_loadu_ps(k + (size_t)p * dim + i + 8 * (first + h));
                CPU_UNROLL
                for (int n = 0; n < Q; n++) {
                    __m256 v = _mm256_loadu_ps(q + n * DIM + i + 8 * (first + h));
                    CPU_UNROLL
                    for (int p = 0; p < P; p++)
                        c[n][p][h] = _mm256_fmadd_ps(v, kv[p], c[n][p][h]);
                }
            }
        }
        CPU_UNROLL
        for (int i = 0; i < Q * P; i++) {
            __m256 *out = &r[i / P * stride + i % P];
            *out = halves == 2 ? _mm256_add_ps(c[i / P][i % P][0], c[i / P][i % P][1]) : first ? _mm256_add_ps(*out, c[i / P][i % P][0]) : c[i / P][i % P][0];
        }
    }
}

/* The other levels of the tree, of 8 positions at once: transposing additions (i with i + 4, i + 2, i + 1). */
CPU_INLINE __m256 tree8(const __m256 *r)
{
    __m256 u[4];
    CPU_UNROLL
    for (int p = 0; p < 4; p++)
        u[p] =
            _mm256_add_ps(_mm256_permute2f128_ps(r[p], r[p + 4], 0x20), _mm256_permute2f128_ps(r[p], r[p + 4], 0x31));
    __m256d u0 = _mm256_castps_pd(u[0]), u1 = _mm256_castps_pd(u[1]), u2 = _mm256_castps_pd(u[2]),
            u3 = _mm256_castps_pd(u[3]);
    __m256 a =
        _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(u0, u1)), _mm256_castpd_ps(_mm256_unpackhi_pd(u0, u1)));
    __m256 b =
        _mm256_add_ps(_mm256_castpd_ps(_mm256_unpacklo_pd(u2, u3)), _mm256_castpd_ps(_mm256_unpackhi_pd(u2, u3)));
    return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}

/* The scores of Q queries with 8 positions. */
CPU_INLINE void scores8(int Q, const float *q, const float *k, uint32_t dim, __m256 scale, float *s)
{
    const int P = Q == 1 ? 4 : 2;
    __m256 r[4 * 8];
    CPU_UNROLL
    for (int p = 0; p < 8; p += P)
        dots(Q, P, q, k + (size_t)p * dim, dim, r + p, 8);
    CPU_UNROLL
    for (int n = 0; n < Q; n++)
        _mm256_storeu_ps(s + n * RANGE, _mm256_mul_ps(tree8(r + 8 * n), scale));
}

/* dim: w->dim_pad, a constant for the sizes that most models have, so that its loops vanish. */
CPU_INLINE void scores_of(uint32_t dim, struct work *w, uint32_t r0, uint32_t n)
{
    __m256 scale = _mm256_set1_ps(w->a->scale);
    for (uint32_t p = 0; p < n; p += BLOCK) {
        uint32_t have = MIN(n - p, (uint32_t)BLOCK), from = 0; /* queries see more positions, not fewer, from one to the next */
        widen_block(w, r0 + p, have, r0 + (p + BLOCK < n ? p + BLOCK : p), false);
        for (uint32_t v = 0; v < have; v += 8) {
            const float *k = w->kv + v * dim;
            while (w->n_pos[from] <= r0 + p + v)
                from++;
            uint32_t i = from;
            const float *q = w->q + i * DIM;
            float *s = w->s + i * RANGE + p + v;
            for (; i + 4 <= w->n_q; i += 4, q += 4 * DIM, s += 4 * RANGE)
                scores8(4, q, k, dim, scale, s);
            if (i + 2 <= w->n_q) {
                scores8(2, q, k, dim, scale, s);
                i += 2, q += 2 * DIM, s += 2 * RANGE;
            }
            if (i < w->n_q)
                scores8(1, q, k, dim, scale, s);
        }
    }
}
static void scores_64(struct work *w, uint32_t r0, uint32_t n)
{
    scores_of(64, w, r0, n);
}
static void scores_any(struct work *w, uint32_t r0, uint32_t n)
{
    scores_of(w->dim_pad, w, r0, n);
}

/* s becomes exp(s - m). Lanes past n hold what no later step reads. */
static float exponentials(float *s, uint32_t n)
{
    __m256 m = _mm256_set1_ps(-INFINITY);
    uint32_t i = 0;
    for (; i + 8 <= n; i += 8)
        m = _mm256_max_ps(_mm256_loadu_ps(s + i), m);
    for (uint32_t t = n; t % 8; t++)
        s[t] = -INFINITY;
    if (i < n)
        m = _mm256_max_ps(_mm256_loadu_ps(s + i), m);
    float lane[8], top = -INFINITY;
    _mm256_storeu_ps(lane, m);
    for (int l = 0; l < 8; l++)
        top = lane[l] > top ? lane[l] : top;
    m = _mm256_set1_ps(top);
    for (i = 0; i < n; i += 8)
        _mm256_storeu_ps(s + i, fm_exp_avx2(_mm256_sub_ps(_mm256_loadu_ps(s + i), m)));
    return top;
}

/* Of Q queries (p RANGE apart, o DIM apart): o[0..8V) += p[i] v[i][0..8V) for n positions in order; *l += p[i], too, when given. */
CPU_INLINE void add_values(int Q, int V, const float *p, uint32_t n, const float *v, uint32_t stride, float *o, float *l)
{
    __m256 acc[2][8], sum[2];
    CPU_UNROLL
    for (int q = 0; q < Q; q++) {
        sum[q] = l ? _mm256_set1_ps(l[q]) : _mm256_setzero_ps();
        CPU_UNROLL
        for (int j = 0; j < V; j++)
            acc[q][j] = _mm256_loadu_ps(o + q * DIM + 8 * j);
    }
    for (uint32_t i = 0; i < n; i++, v += stride) {
        __m256 e[2];
        CPU_UNROLL
        for (int q = 0; q < Q; q++) {
            e[q] = _mm256_set1_ps(p[q * RANGE + i]);
            if (l)
                sum[q] = _mm256_add_ps(sum[q], e[q]);
        }
        CPU_UNROLL
        for (int j = 0; j < V; j++) {
            __m256 x = _mm256_loadu_ps(v + 8 * j);
            CPU_UNROLL
            for (int q = 0; q < Q; q++)
                acc[q][j] = _mm256_fmadd_ps(e[q], x, acc[q][j]);
        }
    }
    CPU_UNROLL
    for (int q = 0; q < Q; q++) {
        CPU_UNROLL
        for (int j = 0; j < V; j++)
            _mm256_storeu_ps(o + q * DIM + 8 * j, acc[q][j]);
        if (l)
            l[q] = _mm256_cvtss_f32(sum[q]);
    }
}

/* All columns of Q queries: 8 sums at a time hide the latency of an addition. */
CPU_INLINE void block_values(int Q, struct work *w, uint32_t i, uint32_t p, uint32_t n)
{
    const float *e = w->s + i * RANGE + p;
    float *o = w->o + i * DIM, *l = &w->l[i];
    const uint32_t wide = Q == 2 ? 32 : 64;
    uint32_t j = 0, dim = w->dim_v_pad;
    for (; j + wide <= dim; j += wide, l = NULL) {
        if (l)
            add_values(Q, Q == 2 ? 4 : 8, e, n, w->kv + j, dim, o + j, l);
        else
            add_values(Q, Q == 2 ? 4 : 8, e, n, w->kv + j, dim, o + j, NULL);
    }
    for (; j < dim; j += 16, l = NULL)
        add_values(Q, 2, e, n, w->kv + j, dim, o + j, l);
}

static void values(struct work *w, uint32_t r0, uint32_t n)
{
    for (uint32_t i = 0; i < w->n_q; i++) {
        w->l[i] = 0;
        memset(w->o + i * DIM, 0, w->dim_v_pad * sizeof *w->o);
    }
    for (uint32_t p = 0; p < n; p += BLOCK) {
        uint32_t have = MIN(n - p, (uint32_t)BLOCK), step;
        widen_block(w, r0 + p, have, r0 + (p + BLOCK < n ? p + BLOCK : p), true);
        for (uint32_t i = 0; i < w->n_q; i += step) {
            uint32_t seen = w->n_pos[i] > r0 + p ? MIN(have, w->n_pos[i] - r0 - p) : 0;
            step = i + 1 < w->n_q && MIN(have, w->n_pos[i + 1] - r0 - p) == seen ? 2 : 1;
            if (seen == 0)
                step = 1;
            else if (step == 2)
                block_values(2, w, i, p, seen);
            else
                block_values(1, w, i, p, seen);
        }
    }
}

/* The state of query i takes in the range. */
static void combine(struct work *w, uint32_t i, bool first)
{
    float *o = w->o + i * DIM, *all = w->all + i * DIM;
    if (first) {
        w->m_all[i] = w->m[i];
        w->l_all[i] = w->l[i];
        memcpy(all, o, w->dim_v_pad * sizeof *o);
        return;
    }
    float top = w->m[i] > w->m_all[i] ? w->m[i] : w->m_all[i];
    float fa = fm_exp(w->m_all[i] - top), fb = fm_exp(w->m[i] - top);
    w->m_all[i] = top;
    w->l_all[i] = fmaf(w->l[i], fb, w->l_all[i] * fa);
    __m256 va = _mm256_set1_ps(fa), vb = _mm256_set1_ps(fb);
    for (uint32_t j = 0; j < w->dim_v_pad; j += 8)
        _mm256_storeu_ps(all + j,
                         _mm256_fmadd_ps(_mm256_loadu_ps(o + j), vb, _mm256_mul_ps(_mm256_loadu_ps(all + j), va)));
}

/* Heads [h0, h0 + nh) of one KV head, tokens [t0, t0 + nt); nh * nt <= QUERIES. */
static void queries(struct work *w, uint32_t h0, uint32_t nh, uint32_t t0, uint32_t nt)
{
    const struct kernels_attn *a = w->a;
    w->n_q = nh * nt;
    for (uint32_t i = 0; i < w->n_q; i++) {
        float *q = w->q + i * DIM;
        w->n_pos[i] = a->pos0 + t0 + i / nh + 1;
        memcpy(q, a->q + (t0 + i / nh) * a->q_stride + (size_t)(h0 + i % nh) * a->head_dim, a->head_dim * sizeof *q);
        memset(q + a->head_dim, 0, (w->dim_pad - a->head_dim) * sizeof *q);
    }
    uint32_t last = w->n_pos[w->n_q - 1];
    for (uint32_t r0 = 0; r0 < last; r0 += RANGE) {
        uint32_t n = MIN(last - r0, (uint32_t)RANGE);
        (w->dim_pad == 64 ? scores_64 : scores_any)(w, r0, n);
        for (uint32_t i = 0; i < w->n_q; i++)
            if (w->n_pos[i] > r0)
                w->m[i] = exponentials(w->s + i * RANGE, MIN(w->n_pos[i] - r0, (uint32_t)RANGE));
        values(w, r0, n);
        for (uint32_t i = 0; i < w->n_q; i++)
            if (w->n_pos[i] > r0)
                combine(w, i, r0 == 0);
    }
    for (uint32_t i = 0; i < w->n_q; i++) {
        float *out = a->out + (t0 + i / nh) * a->out_stride + (size_t)(h0 + i % nh) * a->head_dim_v,
              inv = 1.0f / w->l_all[i];
        for (uint32_t j = 0; j < a->head_dim_v; j++)
            out[j] = w->all[i * DIM + j] * inv;
    }
}

void cpu_avx2_attention(const struct kernels_attn *a, uint32_t head_begin, uint32_t head_end, uint32_t tok_begin,
                        uint32_t tok_end, float *scratch)
{
    ASSERT(a->head_dim <= DIM && a->head_dim_v <= DIM);
    ASSERT(a->type != KV_Q8_0 || (a->head_dim % 32 == 0 && a->head_dim_v % 32 == 0));
    struct work w = {.a = a, .dim_pad = ROUND_UP(a->head_dim, 16u), .dim_v_pad = ROUND_UP(a->head_dim_v, 16u)};
    w.q = scratch;
    w.s = w.q + QUERIES * DIM;
    w.o = w.s + QUERIES * RANGE;
    w.all = w.o + QUERIES * DIM;
    w.kv = w.all + QUERIES * DIM;
    for (uint32_t h = head_begin, nh; h < head_end; h += nh) {
        uint32_t kv = (a->head0 + h) / a->group;
        w.kv_head = kv - a->kv_head0;
        nh = MIN(MIN(head_end, (kv + 1) * a->group - a->head0) - h, (uint32_t)QUERIES);
        for (uint32_t t = tok_begin, nt; t < tok_end; t += nt) {
            nt = MIN(QUERIES / nh, tok_end - t);
            queries(&w, h, nh, t, nt);
        }
    }
}
