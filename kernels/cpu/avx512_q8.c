/* Quantised products on AVX-512 with VNNI: T tokens with R groups of 16 rows, one vector an accumulator. Few tokens: R = 1, unpacked in registers.
 * Prompts: R = 2, T = 6, which takes 24 accumulators and shares each broadcast activation between two products.
 *
 * vpdpbusd adds four products of unsigned weights and signed activations to each 32-bit lane. Offsets (8 bits: stored with 128 added) are subtracted by
 * starting the accumulator at -offset times the activations' block sum. Scales of halves multiply in fp32, where those products are exact (below 2^24); a
 * multiply-add with zero in place of a multiplication keeps the sign of a zero as an integer's. */
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/avx512.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/layout.h"

#include <string.h>

enum { PREFETCH = 16384 };

CPU_INLINE __m512i load(const uint8_t *p)
{
    return _mm512_loadu_si512((const void *)p);
}
CPU_INLINE __m512 scale16(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/* Vector j of a block as bytes. */
CPU_INLINE __m512i unpack(enum quant type, const uint8_t *p, int j)
{
    unsigned bits = layout_bits(type);
    if (bits == 8)
        return load(p + 64 * j);
    if (bits < 4) {
        __m512i v = _mm512_and_si512(avx512_shift16(load(p + 64 * (j / 4)), -(j % 4) * 2), _mm512_set1_epi8(3));
        if (bits == 3)
            v = _mm512_or_si512(v, _mm512_and_si512(avx512_shift16(load(p + 128), 2 - j), _mm512_set1_epi8(4)));
        return v;
    }
    __m512i v = _mm512_and_si512(avx512_shift16(load(p + 64 * (j % 4)), j < 4 ? 0 : -4), _mm512_set1_epi8(15));
    if (bits == 5)
        v = _mm512_or_si512(v, _mm512_and_si512(avx512_shift16(load(p + 256), 4 - j), _mm512_set1_epi8(16)));
    if (bits == 6)
        v = _mm512_or_si512(
            v, _mm512_and_si512(avx512_shift16(load(p + 256 + 64 * (j / 4)), 4 - j % 4 * 2), _mm512_set1_epi8(48)));
    return v;
}

CPU_INLINE __m512i broadcast4(const int8_t *q)
{
    int32_t v;
    memcpy(&v, q, 4);
    return _mm512_set1_epi32(v);
}

/* Types whose two halves of a block have scales of their own. */
CPU_INLINE bool halves(enum quant type)
{
    return layout_scales(type) == LAYOUT_K2 || layout_scales(type) == LAYOUT_KS;
}

/* A block's scales, 16 rows: d (times the sub-block's where the whole block has one), the scales of two halves, the minima (negated but for LAYOUT_DM). */
struct scales {
    __m512 d, sc[2], m[2];
};
CPU_INLINE struct scales block_scales(enum quant type, const uint8_t *panel, uint32_t b)
{
    const enum layout_scales kind = layout_scales(type);
    struct scales s;
    if (kind == LAYOUT_D || kind == LAYOUT_DM) {
        s.d = scale16(panel + 32 * (b % 8));
        if (kind == LAYOUT_DM)
            s.m[0] = scale16(panel + 256 + 32 * (b % 8));
        return s;
    }
    s.d = scale16(panel);
    const __m512 dmin = scale16(panel + 32);
    const uint8_t *raw = panel + 64 + 32 * (b % 8);
    __m512i p =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)raw)); /* (first byte, second byte) */
    const __m512i low8 = _mm512_set1_epi32(255), low4 = _mm512_set1_epi32(15);
    __m512i a = _mm512_and_si512(p, low8), c = _mm512_srli_epi32(p, 8);
    if (kind == LAYOUT_K4) {
        s.d = _mm512_mul_ps(s.d, _mm512_cvtepi32_ps(a));
        s.m[0] = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(c));
    } else if (kind == LAYOUT_K2) {
        s.sc[0] = _mm512_cvtepi32_ps(_mm512_and_si512(a, low4));
        s.sc[1] = _mm512_cvtepi32_ps(_mm512_and_si512(c, low4));
        s.m[0] = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(_mm512_srli_epi32(a, 4)));
        s.m[1] = _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(_mm512_srli_epi32(c, 4)));
    } else {
        s.sc[0] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(p, 24), 24));
        s.sc[1] = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(p, 16), 24));
    }
    return s;
}

CPU_INLINE __m512i broadcast_i32(const uint32_t *p)
{
    return _mm512_set1_epi32((int32_t)*p);
}
CPU_INLINE __m512 broadcast_f32(const uint32_t *p)
{
    float v;
    memcpy(&v, p, 4);
    return _mm512_set1_ps(v);
}

/* What a tile needs of a token's sums: where offsets are subtracted, -offset times them, to begin the integer sums with; where there are minima, the sums times d. */
static uint32_t words(enum quant type)
{
    return halves(type) ? 2 : 1;
}
static void prepare(enum quant type, const uint32_t *sums, const float *d, uint32_t n, uint32_t *out)
{
    cpu_avx2_prepare(type == QUANT_Q8_0 ? 128 : layout_offset(type), halves(type), layout_has_minima(type), sums, d, n, out);
}

/* The float stage of one token: s0, s1 the integer sums of the block's halves (s0 of the whole where they share scales). */
CPU_INLINE __m512 chain(enum quant type, const struct scales *sc, __m512i s0, __m512i s1, const uint32_t *sums, const float *dx, __m512 acc)
{
    const enum layout_scales kind = layout_scales(type);
    __m512 v = _mm512_cvtepi32_ps(s0);
    if (halves(type))
        v = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s1), sc->sc[1], _mm512_fmadd_ps(v, sc->sc[0], _mm512_setzero_ps()));
    acc = _mm512_fmadd_ps(v, _mm512_mul_ps(sc->d, _mm512_set1_ps(*dx)), acc);
    if (kind == LAYOUT_DM)
        acc = _mm512_fmadd_ps(sc->m[0], broadcast_f32(sums), acc);
    if (kind == LAYOUT_K4 || kind == LAYOUT_K2)
        acc = _mm512_fnmadd_ps(sc->m[0], broadcast_f32(sums), acc);
    if (kind == LAYOUT_K2)
        acc = _mm512_fnmadd_ps(sc->m[1], broadcast_f32(sums + 1), acc);
    return acc;
}

enum { TILE_ROWS = 2 };
CPU_INLINE void tile(enum quant type, int R, int T, bool bytes, const struct cpu_tile *c)
{
    const uint32_t row = c->stride / 32, W = halves(type) ? 2 : 1;
    const bool starts = !layout_has_minima(type);
    __m512 acc[TILE_ROWS][CPU_TILE_MAX];
    CPU_UNROLL
    for (int t = 0; t < T; t++)
        CPU_UNROLL
        for (int r = 0; r < R; r++)
            acc[r][t] = _mm512_loadu_ps(c->acc + 16 * (R * t + r));
    for (uint32_t b = c->b0; b < c->b1; b++) {
        const uint8_t *panel[TILE_ROWS], *p[TILE_ROWS];
        CPU_UNROLL
        for (int r = 0; r < R; r++) {
            const uint8_t *group = c->group + r * c->group_bytes;
            panel[r] = layout_panel(type, group, b);
            p[r] = bytes && type != QUANT_Q8_0 ? c->bytes + 512 * (size_t)(r * CPU_BYTES_BLOCKS + b - c->b0) : layout_block(type, group, b);
        }
        if (!bytes && T >= 4) /* into the second level: the first has too few misses in flight; with fewer tokens the hardware follows by itself */
            for (unsigned i = 0; i < layout_block_bytes(type); i += 64)
                _mm_prefetch((const char *)p[0] + PREFETCH + i, _MM_HINT_T1);
        __m512i s[2][TILE_ROWS][CPU_TILE_MAX];
        CPU_UNROLL
        for (int t = 0; t < T; t++)
            for (uint32_t h = 0; h < W; h++) {
                __m512i from = starts ? broadcast_i32(c->sums + ((size_t)t * row + b) * W + h) : _mm512_setzero_si512();
                CPU_UNROLL
                for (int r = 0; r < R; r++)
                    s[h][r][t] = from;
            }
        const int8_t *q = c->q + 32 * (size_t)b;
        CPU_UNROLL
        for (int j = 0; j < 8; j++) {
            const uint32_t h = W == 2 ? (uint32_t)j / 4 : 0;
            __m512i w[TILE_ROWS];
            CPU_UNROLL
            for (int r = 0; r < R; r++)
                w[r] = bytes ? load(p[r] + 64 * j) : unpack(type, p[r], j);
            CPU_UNROLL
            for (int t = 0; t < T; t++) {
                __m512i x = broadcast4(q + (size_t)t * c->stride + 4 * j);
                CPU_UNROLL
                for (int r = 0; r < R; r++)
                    s[h][r][t] = _mm512_dpbusd_epi32(s[h][r][t], w[r], x);
            }
        }
        CPU_UNROLL
        for (int r = 0; r < R; r++) {
            struct scales sc = block_scales(type, panel[r], b);
            CPU_UNROLL
            for (int t = 0; t < T; t++) {
                size_t at = (size_t)t * row + b;
                acc[r][t] = chain(type, &sc, s[0][r][t], s[W - 1][r][t], c->sums + at * W, c->d + at, acc[r][t]);
            }
        }
    }
    CPU_UNROLL
    for (int t = 0; t < T; t++)
        CPU_UNROLL
        for (int r = 0; r < R; r++)
            _mm512_storeu_ps(c->acc + 16 * (R * t + r), acc[r][t]);
}

CPU_INLINE void unpack_blocks(enum quant type, const uint8_t *group, uint32_t b0, uint32_t b1, uint8_t *out)
{
    for (uint32_t b = b0; b < b1; b++, out += 512) {
        const uint8_t *p = layout_block(type, group, b);
        CPU_UNROLL
        for (int j = 0; j < 8; j++)
            _mm512_storeu_si512((void *)(out + 64 * j), unpack(type, p, j));
    }
}

#define TILE(form, type, R, T, bytes)                                                                                   \
    static void form##_##type##_##T(const struct cpu_tile *c)                                                          \
    {                                                                                                                  \
        tile(QUANT_##type, R, T, bytes, c);                                                                            \
    }
#define ACT_F32(type)
#define ACT_Q8(type)                                                                                                   \
    TILE(packed, type, 1, 1, false)                                                                                    \
    TILE(packed, type, 1, 2, false)                                                                                    \
    TILE(packed, type, 1, 3, false)                                                                                    \
    TILE(packed, type, 1, 4, false)                                                                                    \
    TILE(packed, type, 1, 5, false)                                                                                    \
    TILE(packed, type, 1, 6, false)                                                                                    \
    TILE(packed, type, 1, 7, false)                                                                                    \
    TILE(packed, type, 1, 8, false)                                                                                    \
    TILE(pairs, type, 2, 1, true)                                                                                      \
    TILE(pairs, type, 2, 2, true)                                                                                      \
    TILE(pairs, type, 2, 3, true)                                                                                      \
    TILE(pairs, type, 2, 4, true)                                                                                      \
    TILE(pairs, type, 2, 5, true)                                                                                      \
    TILE(pairs, type, 2, 6, true)                                                                                      \
    static void unpack_##type(const uint8_t *group, uint32_t b0, uint32_t b1, uint8_t *out, uint8_t *scales)           \
    {                                                                                                                  \
        (void)scales;                                                                                                  \
        unpack_blocks(QUANT_##type, group, b0, b1, out);                                                               \
    }
#define QUANT(type, id, name, elems, bytes, act) ACT_##act(type)
#include "model/quants.def"
#undef QUANT
#undef ACT_Q8

static const struct cpu_matmul kernels = {
    .prepare = prepare,
    .words = words,
    .packed_max = 16,
#define ACT_Q8(type)                                                                                                   \
    .packed[QUANT_##type] = {NULL, packed_##type##_1, packed_##type##_2, packed_##type##_3, packed_##type##_4, packed_##type##_5, packed_##type##_6, packed_##type##_7, packed_##type##_8}, \
    .pairs[QUANT_##type] = {NULL, pairs_##type##_1, pairs_##type##_2, pairs_##type##_3, pairs_##type##_4, pairs_##type##_5, pairs_##type##_6}, \
    .unpack[QUANT_##type] = QUANT_##type == QUANT_Q8_0 ? NULL : unpack_##type,
#define QUANT(type, id, name, elems, bytes, act) ACT_##act(type)
#include "model/quants.def"
#undef QUANT
};

void AVX512_NAME(cpu_avx512_matmul_q8)(const struct kernels_weight *w, const struct kernels_act *x, uint32_t row_begin,
                                       uint32_t row_end, float *y, size_t y_stride)
{
    cpu_matmul_q8(&kernels, w, x, row_begin, row_end, y, y_stride);
}
