/* Quantised products on AVX2: T tokens with a group of 16 rows (two vectors of 8).
 *
 * Per block of 32 columns and token: S = sum over j of dot4(weights of vector j, 4 activations broadcast), then acc =
 * fmaf(S, d_w*d_x, acc). vpmaddubsw multiplies unsigned by signed bytes and adds pairs in int16 with saturation, which
 * must never happen: 8 bits: |w| <= 128 times sign(q, w), |q| <= 127: a pair is at most 32512; widened to int32 at once
 *   6 bits: a pair <= 63*2*127 = 16002: two are added as int16;  5 bits: <= 7874, four;  4 bits and fewer: <= 3810,
 * eight and vpmaddwd widens, multiplying by the sub-block's integer scale in the same instruction (|sums| <= 32767,
 * scales <= 127). Offsets are subtracted with the block sums of q: -offset times the sum, or vpmaddwd of (sum lo, sum hi)
 * with the pair of scales. */
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/layout.h"

#include <immintrin.h>
#include <string.h>

/* Bytes ahead of the stream that kernels ask for, with one token and with more (into the second level: the next run of blocks, while this one is multiplied): best or equal of
 * those tried, on one machine (Zen 3). */
enum { PREFETCH = 2048, PREFETCH_MANY = 16384 };

CPU_INLINE __m256i load(const uint8_t *p)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)p);
}
CPU_INLINE __m256i shift(__m256i v, int left)
{
    return left > 0 ? _mm256_slli_epi16(v, left) : left < 0 ? _mm256_srli_epi16(v, -left) : v;
}

/* Half h (8 rows) of vector j of a block as bytes. */
CPU_INLINE __m256i unpack(enum quant type, const uint8_t *p, int j, int h)
{
    unsigned bits = layout_bits(type);
    if (bits == 8)
        return load(p + 64 * j + 32 * h);
    if (bits < 4) {
        __m256i v = _mm256_and_si256(shift(load(p + 64 * (j / 4) + 32 * h), -(j % 4) * 2), _mm256_set1_epi8(3));
        if (bits == 3)
            v = _mm256_or_si256(v, _mm256_and_si256(shift(load(p + 128 + 32 * h), 2 - j), _mm256_set1_epi8(4)));
        return v;
    }
    __m256i v = _mm256_and_si256(shift(load(p + 64 * (j % 4) + 32 * h), j < 4 ? 0 : -4), _mm256_set1_epi8(15));
    if (bits == 5)
        v = _mm256_or_si256(v, _mm256_and_si256(shift(load(p + 256 + 32 * h), 4 - j), _mm256_set1_epi8(16)));
    if (bits == 6)
        v = _mm256_or_si256(
            v, _mm256_and_si256(shift(load(p + 256 + 64 * (j / 4) + 32 * h), 4 - j % 4 * 2), _mm256_set1_epi8(48)));
    return v;
}

/* How many vectors are added as int16 before they are widened. */
CPU_INLINE int flush(enum quant type)
{
    return layout_bits(type) == 8                                                                 ? 1
           : layout_bits(type) == 6                                                               ? 2
           : layout_bits(type) == 5 || layout_scales(type) == LAYOUT_K2 || layout_bits(type) == 3 ? 4
                                                                                                  : 8;
}

CPU_INLINE __m256i broadcast4(const int8_t *q)
{
    int32_t v;
    memcpy(&v, q, 4);
    return _mm256_set1_epi32(v);
}
CPU_INLINE __m256 broadcast_ps(const uint32_t *p)
{
    return _mm256_castsi256_ps(_mm256_set1_epi32((int)*p));
}
CPU_INLINE __m256 scale8(const uint8_t *p)
{
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* The scales of a block, for 8 rows: `mul` as pairs for vpmaddwd by half of the block (columns 0-15, 16-31), `off` (LAYOUT_KS) the
 * pairs that multiply the two sums of q for the integer offset; d times what all of the block shares; the minima of its halves, or of the whole (negated but for
 * LAYOUT_DM). */
struct scales {
    __m256i mul[2], off;
    __m256 d, m[2];
};
/* Of 8 pairs of 16 bits the first or the second, as floats. */
CPU_INLINE __m256 pair_ps(__m256i p, bool second)
{
    return _mm256_cvtepi32_ps(second ? _mm256_srli_epi32(p, 16) : _mm256_and_si256(p, _mm256_set1_epi32(0xffff)));
}
CPU_INLINE struct scales block_scales(enum quant type, const uint8_t *panel, uint32_t b, int h)
{
    const __m256i one = _mm256_set1_epi16(1);
    const __m256i first = _mm256_set1_epi32(0x01000100), second = _mm256_set1_epi32(0x03020302);
    const __m256i lanes =
        _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808, 0x0c0c0c0c);
    const __m256i dup0 = _mm256_add_epi8(first, lanes), dup1 = _mm256_add_epi8(second, lanes);
    struct scales s = {.mul = {one, one}};
    __m128i raw = _mm_loadu_si128((const __m128i *)(const void *)(panel + 64 + 32 * (b % 8) + 16 * h));
    bool each = layout_scales(type) == LAYOUT_D || layout_scales(type) == LAYOUT_DM;
    s.d = scale8(panel + (each ? 32 * (b % 8) : 0) + 16 * h);
    const __m256 dmin = scale8(panel + 32 + 16 * h);
    switch (layout_scales(type)) {
    case LAYOUT_DM:
        s.m[0] = scale8(panel + 256 + 32 * (b % 8) + 16 * h);
        break;
    case LAYOUT_K4: {
        __m256i p = _mm256_cvtepu8_epi16(raw);
        s.d = _mm256_mul_ps(s.d, pair_ps(p, false));
        s.m[0] = _mm256_mul_ps(dmin, pair_ps(p, true));
        break;
    }
    case LAYOUT_K2: {
        __m256i p = _mm256_cvtepu8_epi16(raw), sc = _mm256_and_si256(p, _mm256_set1_epi16(15));
        s.mul[0] = _mm256_shuffle_epi8(sc, dup0);
        s.mul[1] = _mm256_shuffle_epi8(sc, dup1);
        s.m[0] = _mm256_mul_ps(dmin, pair_ps(_mm256_srli_epi16(p, 4), false));
        s.m[1] = _mm256_mul_ps(dmin, pair_ps(_mm256_srli_epi16(p, 4), true));
        break;
    }
    case LAYOUT_KS: {
        __m256i p = _mm256_cvtepi8_epi16(raw);
        s.mul[0] = _mm256_shuffle_epi8(p, dup0);
        s.mul[1] = _mm256_shuffle_epi8(p, dup1);
        s.off = p; /* times -offset, by a shift after the product */
        break;
    }
    default:
        break;
    }
    return s;
}

/* The scales of a block as unpack leaves them for the tiles: those that the type has, a vector each. */
enum { READY_D, READY_M0 = 1, READY_OFF = 1, READY_MUL = 2, READY_M1 = 4 };
CPU_INLINE void put(uint8_t *p, int slot, __m256i v)
{
    _mm256_storeu_si256((__m256i *)(void *)(p + 32 * slot), v);
}
CPU_INLINE void store_scales(enum quant type, const struct scales *s, uint8_t *p)
{
    const enum layout_scales kind = layout_scales(type);
    put(p, READY_D, _mm256_castps_si256(s->d));
    if (layout_has_minima(type))
        put(p, READY_M0, _mm256_castps_si256(s->m[0]));
    if (kind == LAYOUT_KS)
        put(p, READY_OFF, s->off);
    for (int i = 0; i < 2 && (kind == LAYOUT_KS || kind == LAYOUT_K2); i++)
        put(p, READY_MUL + i, s->mul[i]);
    if (kind == LAYOUT_K2)
        put(p, READY_M1, _mm256_castps_si256(s->m[1]));
}
CPU_INLINE struct scales ready_scales(enum quant type, const uint8_t *p)
{
    const enum layout_scales kind = layout_scales(type);
    const __m256i one = _mm256_set1_epi16(1);
    struct scales s = {.mul = {one, one}, .d = _mm256_castsi256_ps(load(p + 32 * READY_D))};
    if (layout_has_minima(type))
        s.m[0] = _mm256_castsi256_ps(load(p + 32 * READY_M0));
    if (kind == LAYOUT_KS)
        s.off = load(p + 32 * READY_OFF);
    for (int i = 0; i < 2 && (kind == LAYOUT_KS || kind == LAYOUT_K2); i++)
        s.mul[i] = load(p + 32 * (READY_MUL + i));
    if (kind == LAYOUT_K2)
        s.m[1] = _mm256_castsi256_ps(load(p + 32 * READY_M1));
    return s;
}

/* The 32-bit sums of a block for each token and half: integer scales applied, offsets not yet. Columns outside, tokens inside: with 4 tokens the sums and the two
 * weights are in registers, and each weight is loaded once. */
CPU_INLINE void block_dots(enum quant type, int T, bool bytes, const uint8_t *p, const int8_t *q, uint32_t k,
                           const struct scales *sc, __m256i (*s)[2])
{
    const int F = flush(type);
    __m256i a[4][2];
    CPU_UNROLL
    for (int j = 0; j < 8; j++) {
        __m256i w[2], u[2];
        CPU_UNROLL
        for (int h = 0; h < 2; h++) {
            w[h] = bytes ? load(p + 64 * j + 32 * h) : unpack(type, p, j, h);
            u[h] = F == 1 ? _mm256_abs_epi8(w[h]) : w[h];
        }
        CPU_UNROLL
        for (int t = 0; t < T; t++) {
            __m256i x = broadcast4(q + (size_t)t * k + 4 * j);
            CPU_UNROLL
            for (int h = 0; h < 2; h++) {
                __m256i m = _mm256_maddubs_epi16(u[h], F == 1 ? _mm256_sign_epi8(x, w[h]) : x);
                a[t][h] = j % F ? _mm256_add_epi16(a[t][h], m) : m;
                if (j % F == F - 1) {
                    __m256i v = _mm256_madd_epi16(a[t][h], sc[h].mul[j / 4]);
                    s[t][h] = j >= F ? _mm256_add_epi32(s[t][h], v) : v;
                }
            }
        }
    }
}

CPU_INLINE void tile(enum quant type, int T, bool bytes, const struct cpu_tile *c)
{
    const enum layout_scales kind = layout_scales(type);
    const uint32_t row = c->stride / 32, W = kind == LAYOUT_K2 ? 2 : 1;
    __m256 acc[4][2];
    CPU_UNROLL
    for (int t = 0; t < T; t++)
        for (int h = 0; h < 2; h++)
            acc[t][h] = _mm256_loadu_ps(c->acc + 16 * t + 8 * h);
    for (uint32_t b = c->b0; b < c->b1; b++) {
        const uint8_t *panel = layout_panel(type, c->group, b);
        const uint8_t *p = bytes ? c->bytes + 512 * (size_t)(b - c->b0) : layout_block(type, c->group, b);
        for (unsigned i = 0; i < layout_block_bytes(type) && !bytes; i += 64) {
            if (T == 1)
                _mm_prefetch((const char *)p + PREFETCH + i, _MM_HINT_T0);
            else
                _mm_prefetch((const char *)p + PREFETCH_MANY + i, _MM_HINT_T1);
        }
        struct scales sc[2];
        __m256i s[4][2];
        CPU_UNROLL
        for (int h = 0; h < 2; h++) {
            if (bytes)
                sc[h] = ready_scales(type, c->scales + CPU_SCALE_BYTES * (size_t)(b - c->b0) + CPU_SCALE_BYTES / 2 * h);
            else
                sc[h] = block_scales(type, panel, b, h);
        }
        block_dots(type, T, bytes, p, c->q + 32 * (size_t)b, c->stride, sc, s);
        CPU_UNROLL
        for (int t = 0; t < T; t++) {
            const uint32_t *sums = c->sums + ((size_t)t * row + b) * W;
            const __m256i sum = _mm256_set1_epi32((int)sums[0]);
            const __m256 dx = _mm256_set1_ps(c->d[(size_t)t * row + b]), a0 = _mm256_castsi256_ps(sum), a1 = W == 2 ? broadcast_ps(sums + 1) : a0;
            CPU_UNROLL
            for (int h = 0; h < 2; h++) {
                __m256i v = s[t][h];
                if (kind == LAYOUT_KS) {
                    __m256i off = _mm256_madd_epi16(sum, sc[h].off);
                    v = _mm256_sub_epi32(v, _mm256_slli_epi32(off, type == QUANT_Q6_K ? 5 : 2));
                } else if (layout_offset(type)) {
                    v = _mm256_add_epi32(v, sum);
                }
                acc[t][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(v), _mm256_mul_ps(sc[h].d, dx), acc[t][h]);
                if (kind == LAYOUT_DM)
                    acc[t][h] = _mm256_fmadd_ps(sc[h].m[0], a0, acc[t][h]);
                if (kind == LAYOUT_K4 || kind == LAYOUT_K2)
                    acc[t][h] = _mm256_fnmadd_ps(sc[h].m[0], a0, acc[t][h]);
                if (kind == LAYOUT_K2)
                    acc[t][h] = _mm256_fnmadd_ps(sc[h].m[1], a1, acc[t][h]);
            }
        }
    }
    CPU_UNROLL
    for (int t = 0; t < T; t++)
        for (int h = 0; h < 2; h++)
            _mm256_storeu_ps(c->acc + 16 * t + 8 * h, acc[t][h]);
}

CPU_INLINE void unpack_blocks(enum quant type, const uint8_t *group, uint32_t b0, uint32_t b1, uint8_t *out, uint8_t *scales)
{
    for (uint32_t b = b0; b < b1; b++, out += 512, scales += CPU_SCALE_BYTES) {
        const uint8_t *p = layout_block(type, group, b);
        CPU_UNROLL
        for (int h = 0; h < 2; h++) {
            struct scales s = block_scales(type, layout_panel(type, group, b), b, h);
            store_scales(type, &s, scales + CPU_SCALE_BYTES / 2 * h);
        }
        for (unsigned i = 0; i < layout_block_bytes(type); i += 64)
            _mm_prefetch((const char *)p + PREFETCH_MANY + i, _MM_HINT_T1);
        CPU_UNROLL
        for (int j = 0; j < 8; j++)
            for (int h = 0; h < 2; h++)
                _mm256_storeu_si256((__m256i *)(void *)(out + 64 * j + 32 * h), unpack(type, p, j, h));
    }
}

#define TILE(type, T)                                                                                                  \
    static void packed_##type##_##T(const struct cpu_tile *c)                                                          \
    {                                                                                                                  \
        tile(QUANT_##type, T, false, c);                                                                               \
    }                                                                                                                  \
    static void bytes_##type##_##T(const struct cpu_tile *c)                                                           \
    {                                                                                                                  \
        tile(QUANT_##type, T, true, c);                                                                                \
    }
#define ACT_F32(type)
#define ACT_Q8(type)                                                                                                   \
    TILE(type, 1)                                                                                                      \
    TILE(type, 2)                                                                                                      \
    TILE(type, 3)                                                                                                      \
    TILE(type, 4)                                                                                                      \
    static void unpack_##type(const uint8_t *group, uint32_t b0, uint32_t b1, uint8_t *out, uint8_t *scales)           \
    {                                                                                                                  \
        unpack_blocks(QUANT_##type, group, b0, b1, out, scales);                                                       \
    }
#define QUANT(type, id, name, elems, bytes, act) ACT_##act(type)
#include "model/quants.def"
#undef QUANT
#undef ACT_Q8

/* The sums as a tile wants them (struct cpu_tile): with integer scales as they are, for vpmaddwd with the scales. */
static uint32_t words(enum quant type)
{
    return layout_scales(type) == LAYOUT_K2 ? 2 : 1;
}
static void prepare(enum quant type, const uint32_t *sums, const float *d, uint32_t n, uint32_t *out)
{
    if (layout_scales(type) == LAYOUT_KS)
        memcpy(out, sums, n * sizeof *out);
    else
        cpu_avx2_prepare(layout_offset(type), layout_scales(type) == LAYOUT_K2, layout_has_minima(type), sums, d, n, out);
}

#define UNLESS_BYTES(type, fn) (QUANT_##type == QUANT_Q8_0 ? NULL : (fn)) /* packed, it is bytes already */
static const struct cpu_matmul kernels = {
    .prepare = prepare,
    .words = words,
    .packed_max = 4,
#define ACT_Q8(type)                                                                                                   \
    .packed[QUANT_##type] = {NULL, packed_##type##_1, packed_##type##_2, packed_##type##_3, packed_##type##_4},        \
    .bytes[QUANT_##type] = {NULL, UNLESS_BYTES(type, bytes_##type##_1), UNLESS_BYTES(type, bytes_##type##_2), UNLESS_BYTES(type, bytes_##type##_3),                             \
                            UNLESS_BYTES(type, bytes_##type##_4)},                                                     \
    .unpack[QUANT_##type] = UNLESS_BYTES(type, unpack_##type),
#define QUANT(type, id, name, elems, bytes, act) ACT_##act(type)
#include "model/quants.def"
#undef QUANT
};

void cpu_avx2_matmul_q8(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin,
                        uint32_t row_end, float *y, size_t y_stride)
{
    cpu_matmul_q8(&kernels, w, x, row_begin, row_end, y, y_stride);
}

void cpu_avx2_prepare(int offset, bool two, bool minima, const uint32_t *sums, const float *d, uint32_t n, uint32_t *out)
{
    const __m256i factor = _mm256_set1_epi32(-offset);
    uint32_t in[8] = {0}, at[16];
    float din[8] = {0};
    for (uint32_t i = 0; i < n; i += 8) {
        uint32_t have = MIN(n - i, 8u);
        const uint32_t *from = sums + i;
        const float *df = d + i;
        if (have < 8) {
            memcpy(in, from, have * sizeof *in);
            memcpy(din, df, have * sizeof *din);
            from = in;
            df = din;
        }
        __m256i v = load((const uint8_t *)from), lo = _mm256_srai_epi32(_mm256_slli_epi32(v, 16), 16), hi = _mm256_srai_epi32(v, 16);
        __m256 dx = _mm256_loadu_ps(df);
        if (!two)
            lo = _mm256_add_epi32(lo, hi);
        if (minima) {
            lo = _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtepi32_ps(lo), dx));
            hi = _mm256_castps_si256(_mm256_mul_ps(_mm256_cvtepi32_ps(hi), dx));
        } else {
            lo = _mm256_mullo_epi32(lo, factor);
            hi = _mm256_mullo_epi32(hi, factor);
        }
        if (two) { /* the halves of a block side by side */
            __m256i a = _mm256_unpacklo_epi32(lo, hi), b = _mm256_unpackhi_epi32(lo, hi);
            lo = _mm256_permute2x128_si256(a, b, 0x20);
            hi = _mm256_permute2x128_si256(a, b, 0x31);
        }
        uint32_t *to = have < 8 ? at : out + (two ? 2 : 1) * i;
        _mm256_storeu_si256((__m256i *)(void *)to, lo);
        if (two)
            _mm256_storeu_si256((__m256i *)(void *)(to + 8), hi);
        if (have < 8)
            memcpy(out + (two ? 2 : 1) * i, at, (two ? 2 : 1) * have * sizeof *at);
    }
}

/* sums of 16 and 16 activations, four blocks at a time */
void cpu_avx2_sums(const int8_t *q, uint32_t n_blocks, uint32_t *out)
{
    const __m256i one8 = _mm256_set1_epi8(1), one16 = _mm256_set1_epi16(1);
    uint32_t b = 0;
    for (; b + 4 <= n_blocks; b += 4) {
        __m256i v[4];
        CPU_UNROLL
        for (int i = 0; i < 4; i++)
            v[i] =
                _mm256_madd_epi16(_mm256_maddubs_epi16(one8, load((const uint8_t *)q + 32 * (size_t)(b + i))), one16);
        __m256i h = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
        __m128i lo = _mm_and_si128(_mm256_castsi256_si128(h), _mm_set1_epi32(0xffff));
        _mm_storeu_si128((__m128i *)(void *)(out + b),
                         _mm_or_si128(lo, _mm_slli_epi32(_mm256_extracti128_si256(h, 1), 16)));
    }
    for (; b < n_blocks; b++) {
        int a[2] = {0, 0};
        for (int i = 0; i < 32; i++)
            a[i / 16] += q[32 * (size_t)b + i];
        out[b] = ((uint32_t)a[0] & 0xffff) | (uint32_t)a[1] << 16;
    }
}
