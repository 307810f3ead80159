/* Packed weights (layout.h) in registers: what a lane reads of 16 rows x 128 columns, and how it becomes operand A of mma.m16n8k16. weight_step<T>, of
 * each type:
 *
 *   source, open()     where a lane reads a group of 16 rows
 *   load()             a step of it into registers
 *   prepare()          its scales, once a step
 *   operand<i>(q, a)   a[j]: operand A of mma 2i + j, i = 0 .. 3
 *   RUN                columns of a row that a lane owns side by side (x_piece() in matmul_tile.cuh)
 *
 * Dequantised in f16: c = code - offset is exact, w = c * s or fma(c, s, t), with s = d * sc and t = m * mn each rounded to f16 once, and w once.
 * (Exact codes with scales on the sums instead would save an instruction a pair and cost 4 a tile of tokens and block of 16 or 32; as would f16
 * denormals without the 1024, whose scales overflow from 0.25 on.) A pair takes an and-or, a subtraction or fma that takes 1024 away, the fma with its
 * scales: with shifts 1.6 instructions a weight of 2 or 4 bits, 1.5 of 8, 2.1 to 2.4 of 3, 5 or 6, and 0.1 to 0.4 for scales. */
#ifndef KERNELS_CUDA_WEIGHTS_CUH
#define KERNELS_CUDA_WEIGHTS_CUH

#include "kernels/cuda/launch.cuh"

#include "kernels/cuda/layout.h"
#include "kernels/cuda/ptx.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

/* The pair of two equal small integers, as f16 bits; what is not a small integer is a bug. */
static constexpr __host__ __device__ __forceinline__ uint32_t weight_int2(int32_t v)
{
    uint32_t sign = v < 0 ? 0x8000u : 0, a = (uint32_t)(v < 0 ? -v : v), e = 0;
    for (uint32_t b = a; b > 1; b >>= 1)
        e++;
    uint32_t h = a == 0 ? 0 : sign | (e + 15) << 10 | ((a << (10 - e)) & 0x3ff);
    return h | h << 16;
}
static constexpr __host__ __device__ __forceinline__ uint32_t weight_pow2(int32_t e)
{
    return (uint32_t)(e + 15) << 10 | (uint32_t)(e + 15) << 26;
}

/* 1024 + 2^POS * v in each half, minus the bias, over 2^POS: exactly v - OFFSET. */
template <int POS, int OFFSET>
static __device__ __forceinline__ __half2 weight_code(uint32_t magic)
{
    if (POS == 0)
        return __hadd2(ptx_half2(magic), ptx_half2(weight_int2(-1024 - OFFSET)));
    return __hfma2(ptx_half2(magic), ptx_half2(weight_pow2(-POS)), ptx_half2(weight_int2(-(1024 >> POS) - OFFSET)));
}
/* (a & mask) | magic in one instruction; of two constants the compiler would make two. */
static __device__ __forceinline__ uint32_t weight_and_or(uint32_t a, uint32_t mask, uint32_t magic)
{
    return ptx_lop3<(0xf0 & 0xcc) | 0xaa>(a, mask, magic);
}
static __device__ __forceinline__ uint32_t weight_both(uint32_t pair, uint32_t which)
{
    return __byte_perm(pair, 0, which ? 0x3232 : 0x1010);
}

template <quant T>
struct weight_step {
    static constexpr uint32_t LOW = layout_low_bits(T), HIGH = layout_high_bits(T), STEPS = layout_tile_steps(T), RUN = 32;
    static constexpr layout_kind KIND = layout_scales(T);
    static constexpr int OFFSET = layout_offset(T);
    static constexpr bool HAS_MIN = KIND == LAYOUT_DM || KIND == LAYOUT_K4 || KIND == LAYOUT_K2, HALVES = KIND == LAYOUT_K2 || KIND == LAYOUT_KS;
    static constexpr uint32_t WORDS = 2 * LOW + 2 * HIGH + (KIND == LAYOUT_DM ? 2 : 1) +
                                      (KIND == LAYOUT_K4 || KIND == LAYOUT_K2 ? 2 : KIND == LAYOUT_KS ? 1 : 0);

    uint32_t low[2][LOW], high[2][HIGH ? HIGH : 1], scale[2], super[2];

    /* The group of 16 rows. */
    struct source {
        const unsigned char *p;
    };
    static __device__ __forceinline__ source open(const void *w, uint32_t group, uint32_t, uint32_t cols, uint32_t)
    {
        return {(const unsigned char *)w + group * layout_group_bytes(T, cols)};
    }

    __device__ __forceinline__ void load(const source &src, uint32_t step, uint32_t lane)
    {
        const unsigned char *tile = src.p + (size_t)(step / STEPS) * layout_tile_bytes(T);
        const unsigned char *p = tile + (STEPS > 1 ? step % STEPS * layout_step_bytes(T) : 0);
        const unsigned char *p16 = p + lane * 16;
        if constexpr (LOW >= 4) {
#pragma unroll
            for (uint32_t i = 0; i < LOW / 4; i++)
#pragma unroll
                for (uint32_t h = 0; h < 2; h++) {
                    uint4 v = ptx_ld_stream(p16 + (2 * i + h) * 512);
                    low[h][4 * i + 0] = v.x, low[h][4 * i + 1] = v.y, low[h][4 * i + 2] = v.z, low[h][4 * i + 3] = v.w;
                }
        } else {
            uint4 v = ptx_ld_stream(p16);
            low[0][0] = v.x, low[0][1] = v.y, low[1][0] = v.z, low[1][1] = v.w;
        }
        if constexpr (HIGH == 2) {
            uint4 v = ptx_ld_stream(p16 + layout_high_at(T));
            high[0][0] = v.x, high[0][1] = v.y, high[1][0] = v.z, high[1][1] = v.w;
        } else if constexpr (HIGH == 1) {
            uint2 v = __ldcs((const uint2 *)(p + layout_high_at(T)) + lane);
            high[0][0] = v.x, high[1][0] = v.y;
        }
        if constexpr (KIND == LAYOUT_DM) {
            uint2 v = __ldcs((const uint2 *)(p + layout_scales_at(T)) + lane);
            scale[0] = v.x, scale[1] = v.y;
        } else {
            scale[0] = __ldcs((const uint32_t *)(p + layout_scales_at(T)) + lane);
        }
        if constexpr (KIND == LAYOUT_KS) {
            super[0] = __ldg((const uint32_t *)(tile + layout_super_at(T)) + lane / 4);
        } else if constexpr (KIND >= LAYOUT_K4) {
            uint2 v = __ldg((const uint2 *)(tile + layout_super_at(T)) + lane / 4);
            super[0] = v.x, super[1] = v.y;
        }
    }

    /* s and t of a row h, each twice in a pair: of columns 0 .. 15 and 16 .. 31 where they differ, else of all. */
    struct scales {
        uint32_t s[2], t[2];
    };
    __device__ __forceinline__ scales row_scales(uint32_t h) const
    {
        scales k = {{0, 0}, {0, 0}};
        if (KIND == LAYOUT_D) {
            k.s[0] = weight_both(scale[0], h);
        } else if (KIND == LAYOUT_DM) {
            k.s[0] = weight_both(scale[h], 0);
            k.t[0] = weight_both(scale[h], 1);
        } else if (KIND == LAYOUT_K4) { /* {sc, mn} * {d, -dmin} */
            uint32_t v = __byte_perm(scale[0], 0x64646464u, h ? 0x4342 : 0x4140);
            uint32_t st = ptx_half2_bits(__hmul2(weight_code<0, 0>(v), ptx_half2(super[h])));
            k.s[0] = weight_both(st, 0);
            k.t[0] = weight_both(st, 1);
        } else if (KIND == LAYOUT_K2) { /* {sc0, sc1} * d, {mn0, mn1} * -dmin */
            uint32_t v = __byte_perm(scale[0], 0, h ? 0x4342 : 0x4140);
            uint32_t s = ptx_half2_bits(__hmul2(weight_code<0, 0>(weight_and_or(v, 0x000f000fu, 0x64006400u)), ptx_half2(weight_both(super[h], 0))));
            uint32_t t = ptx_half2_bits(__hmul2(weight_code<4, 0>(weight_and_or(v, 0x00f000f0u, 0x64006400u)), ptx_half2(weight_both(super[h], 1))));
            k.s[0] = weight_both(s, 0), k.s[1] = weight_both(s, 1);
            k.t[0] = weight_both(t, 0), k.t[1] = weight_both(t, 1);
        } else { /* {sc0, sc1} * d */
            uint32_t v = __byte_perm(scale[0], 0x64646464u, h ? 0x4342 : 0x4140);
            uint32_t s = ptx_half2_bits(__hmul2(weight_code<0, 128>(v), ptx_half2(weight_both(super[0], h))));
            k.s[0] = weight_both(s, 0), k.s[1] = weight_both(s, 1);
        }
        return k;
    }

    /* Pair P (columns 2P, 2P + 1) of row h as codes without offset. */
    template <uint32_t P>
    __device__ __forceinline__ __half2 code(uint32_t h) const
    {
        if constexpr (LOW == 8) {
            return weight_code<0, OFFSET>(__byte_perm(low[h][P / 2], 0x64646464u, P % 2 ? 0x4342 : 0x4140));
        } else {
            constexpr uint32_t E = 2 * P, AT = layout_low_bit(T, E) % 32, POS = AT % 8; /* in the word's half, or in that of the word shifted by 8 */
            constexpr uint32_t TO = POS + LOW;                                         /* where the high bits go */
            uint32_t w = low[h][layout_low_bit(T, E) / 32] >> (AT - POS), v = 0x64006400u;
            if constexpr (HIGH > 0) {
                constexpr int32_t SHIFT = (int32_t)(layout_high_bit(T, E) % 32) - (int32_t)TO;
                constexpr uint32_t MASK = ((1u << HIGH) - 1) << TO;
                uint32_t x = high[h][layout_high_bit(T, E) / 32];
                if constexpr (SHIFT < 0)
                    x <<= -SHIFT;
                else
                    x >>= SHIFT;
                v = weight_and_or(x, MASK | MASK << 16, v);
            }
            constexpr uint32_t MASK = ((1u << LOW) - 1) << POS;
            return weight_code<(int)POS, OFFSET>(weight_and_or(w, MASK | MASK << 16, v));
        }
    }
    template <uint32_t P>
    __device__ __forceinline__ uint32_t pair(const scales &k, uint32_t h) const
    {
        constexpr uint32_t half = HALVES ? P / 8 : 0;
        __half2 c = code<P>(h), s = ptx_half2(k.s[half]);
        return ptx_half2_bits(HAS_MIN ? __hfma2(c, s, ptx_half2(k.t[half])) : __hmul2(c, s));
    }

    /* Scales are the same for all pieces: computed once, kept by the caller. */
    struct prepared {
        scales k[2];
    };
    __device__ __forceinline__ prepared prepare() const
    {
        return {{row_scales(0), row_scales(1)}};
    }
    template <uint32_t I>
    __device__ __forceinline__ void operand(const prepared &q, uint32_t a[2][4]) const
    {
        a[0][0] = pair<4 * I>(q.k[0], 0), a[0][1] = pair<4 * I>(q.k[1], 1);
        a[0][2] = pair<4 * I + 1>(q.k[0], 0), a[0][3] = pair<4 * I + 1>(q.k[1], 1);
        a[1][0] = pair<4 * I + 2>(q.k[0], 0), a[1][1] = pair<4 * I + 2>(q.k[1], 1);
        a[1][2] = pair<4 * I + 3>(q.k[0], 0), a[1][3] = pair<4 * I + 3>(q.k[1], 1);
    }
};

/* F16, BF16: a lane reads 16 bytes (8 columns) of a row at a time, 4 lanes 64 consecutive bytes. */
template <quant T>
struct weight_step16 {
    static constexpr uint32_t RUN = 8, WORDS = 32;
    uint4 v[2][4];

    struct source {
        const unsigned char *row[2];
    };
    static __device__ __forceinline__ source open(const void *w, uint32_t group, uint32_t rows, uint32_t cols, uint32_t lane)
    {
        uint32_t r0 = group * LAYOUT_ROWS + lane / 4, r1 = r0 + 8;
        size_t bytes = layout_row_bytes(T, cols);
        const unsigned char *p = (const unsigned char *)w + lane % 4 * 16;
        return {{p + min(r0, rows - 1) * bytes, p + min(r1, rows - 1) * bytes}};
    }
    __device__ __forceinline__ void load(const source &src, uint32_t step, uint32_t)
    {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const unsigned char *p = src.row[h] + (size_t)step * (LAYOUT_STEP * 2);
#pragma unroll
            for (uint32_t i = 0; i < 4; i++)
                v[h][i] = ptx_ld_stream(p + i * 64);
        }
    }
    struct prepared {};
    __device__ __forceinline__ prepared prepare() const
    {
        return {};
    }
    template <uint32_t I>
    __device__ __forceinline__ void operand(const prepared &, uint32_t a[2][4]) const
    {
        a[0][0] = v[0][I].x, a[0][1] = v[1][I].x, a[0][2] = v[0][I].y, a[0][3] = v[1][I].y;
        a[1][0] = v[0][I].z, a[1][1] = v[1][I].z, a[1][2] = v[0][I].w, a[1][3] = v[1][I].w;
    }
};
template <>
struct weight_step<QUANT_F16> : weight_step16<QUANT_F16> {};
template <>
struct weight_step<QUANT_BF16> : weight_step16<QUANT_BF16> {};

#endif
