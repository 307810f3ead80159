/* The packed layout of weights on a GPU.
 *
 * F32, F16, BF16: row-major as in the file, so that cuBLASLt reads them too; rows padded with zeros, F32 to 16 bytes, 16-bit types to 128 columns.
 *
 * Quantised: tiles of 16 rows x 128 columns (256 for the K types), each one run of bytes with everything in it, in the order in which a warp reads it as operand A
 * of mma.m16n8k16. A group of 16 rows is a run of tiles in k order, a matrix a run of groups: a warp's reads are one sequential stream in which each load
 * instruction takes 128 to 512 consecutive bytes. (Row-major planes would do for the codes, but not for scales and high bits: 2 bytes a block of 8 rows are 8 sectors
 * of 32 bytes, for 16 bytes of use.) Rows are padded to 16 (padding undefined: it reaches nothing but outputs that do not exist), columns to the tile with zeros.
 *
 * Lane l = 4g + t of a warp owns, of a tile's 128 columns, block t (32 columns) of rows g and g + 8 (h = 0, 1). Which k an index of mma means is free as long as A
 * and B agree: lane t's indices of the j-th of 8 mma's are columns 4j .. 4j + 3 of its block. So a lane needs the scale of one block a row, not of four.
 *
 * A step (128 columns) of a tile; a tile is 1 step, or for K types 2 and the super-scales:
 *   low bits     8: [piece of 16 columns][h][lane] 16 B; 4: [h][lane] 16 B; 2: [lane][h] 8 B
 *   high bits    2 (Q6_K): [lane][h] 8 B; 1 (Q3_K, Q5_*): [lane][h] 4 B
 *   scales       Q4_0 Q5_0 Q8_0  [lane][h] f16 d
 *                Q4_1 Q5_1       [lane][h] f16 d, f16 m
 *                Q4_K Q5_K       [lane][h] u8 sc, u8 mn
 *                Q2_K            [lane][h] of each 16 columns: u8 sc | mn << 4
 *                Q3_K Q6_K       [lane][h] of each 16 columns: u8 sc + 128
 * super-scales       Q2_K Q4_K Q5_K  [g][h] f16 d, f16 -dmin
 *                    Q3_K Q6_K       [g][h] f16 d
 *
 * Codes are stored before their offset is subtracted (Q8_0: + 128). Where those of a block lie in its words is chosen so that a pair of columns lies 16 bits
 * apart, in the mantissas of two f16: and-or with 0x6400 makes 1024 + 2^position * code of both in one instruction (layout_low_bit, layout_high_bit).
 *
 * Against the file: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q6_K the same bytes, Q4_K +2.8%, Q5_K +2.3%, Q3_K +3.6% (its 6-bit scales are bytes here).
 *
 * Not here yet: fp8 (e4m3) with a scale a row or 128 x 128 block. It would be a type of 8 low bits without offset, laid out as Q8_0, with one f32 scale a tile row
 * (or tile) as its scales; codes widen by cvt.rn.f16x2.e4m3x2, exactly, and the scale joins where s does. */
#ifndef KERNELS_CUDA_LAYOUT_H
#define KERNELS_CUDA_LAYOUT_H

#include "model/quants.h"

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define LAYOUT_FN static constexpr __host__ __device__ __attribute__((unused))
#else
#define LAYOUT_FN static inline
#endif

enum { LAYOUT_ROWS = 16, LAYOUT_STEP = 128 };
enum layout_kind { LAYOUT_D, LAYOUT_DM, LAYOUT_K4, LAYOUT_K2, LAYOUT_KS };

LAYOUT_FN bool layout_tiled(enum quant t)
{
    return t != QUANT_F32 && t != QUANT_F16 && t != QUANT_BF16;
}
LAYOUT_FN uint32_t layout_low_bits(enum quant t)
{
    return t == QUANT_Q8_0 ? 8 : t == QUANT_Q2_K || t == QUANT_Q3_K ? 2 : 4;
}
LAYOUT_FN uint32_t layout_high_bits(enum quant t)
{
    return t == QUANT_Q6_K ? 2 : t == QUANT_Q5_0 || t == QUANT_Q5_1 || t == QUANT_Q5_K || t == QUANT_Q3_K ? 1 : 0;
}
LAYOUT_FN int32_t layout_offset(enum quant t)
{
    return t == QUANT_Q4_0 ? 8 : t == QUANT_Q5_0 ? 16 : t == QUANT_Q8_0 ? 128 : t == QUANT_Q3_K ? 4 : t == QUANT_Q6_K ? 32 : 0;
}
LAYOUT_FN enum layout_kind layout_scales(enum quant t)
{
    return t == QUANT_Q4_1 || t == QUANT_Q5_1   ? LAYOUT_DM
           : t == QUANT_Q4_K || t == QUANT_Q5_K ? LAYOUT_K4
           : t == QUANT_Q2_K                    ? LAYOUT_K2
           : t == QUANT_Q3_K || t == QUANT_Q6_K ? LAYOUT_KS
                                                : LAYOUT_D;
}

/* Bytes, and where the parts of a step and of a tile begin. */
LAYOUT_FN uint32_t layout_high_at(enum quant t)
{
    return LAYOUT_ROWS * LAYOUT_STEP / 8 * layout_low_bits(t);
}
LAYOUT_FN uint32_t layout_scales_at(enum quant t)
{
    return LAYOUT_ROWS * LAYOUT_STEP / 8 * (layout_low_bits(t) + layout_high_bits(t));
}
LAYOUT_FN uint32_t layout_step_bytes(enum quant t)
{
    return layout_scales_at(t) + (layout_scales(t) == LAYOUT_DM ? 256 : 128);
}
LAYOUT_FN uint32_t layout_tile_steps(enum quant t)
{
    return layout_scales(t) >= LAYOUT_K4 ? 2 : 1;
}
LAYOUT_FN uint32_t layout_super_at(enum quant t)
{
    return layout_tile_steps(t) * layout_step_bytes(t);
}
LAYOUT_FN uint32_t layout_tile_bytes(enum quant t)
{
    return layout_super_at(t) + (layout_scales(t) == LAYOUT_KS ? 32 : layout_scales(t) >= LAYOUT_K4 ? 64 : 0);
}
LAYOUT_FN size_t layout_group_bytes(enum quant t, uint32_t cols)
{
    uint32_t tile_cols = layout_tile_steps(t) * LAYOUT_STEP;
    return (size_t)((cols + tile_cols - 1) / tile_cols) * layout_tile_bytes(t);
}
/* Bytes of a row of a type that is not tiled. */
LAYOUT_FN size_t layout_row_bytes(enum quant t, uint32_t cols)
{
    return t == QUANT_F32 ? ((size_t)cols + 3) / 4 * 16 : ((size_t)cols + LAYOUT_STEP - 1) / LAYOUT_STEP * (LAYOUT_STEP * 2);
}

/* Column e (0 .. 31) of a block: its low bits begin at this bit of the block's low words (as one little-endian number). Pairs of columns lie 16 bits apart; with 4 bits a word
 * holds 4 pairs, each nibble by nibble; with 2 bits 8 pairs; 8 bits are bytes in order. */
LAYOUT_FN uint32_t layout_low_bit(enum quant t, uint32_t e)
{
    uint32_t bits = layout_low_bits(t), per = 32 / bits;
    return bits == 8 ? 8 * e : e / per * 32 + e % per / 2 * bits + e % 2 * 16;
}
/* The same for the high bits. One shift of the word brings those of a half word of low bits (two pairs of 4 bits, four of 2) to where they are wanted, just above the low
 * ones:  pairs 2u, 2u + 1 of 4 bits want theirs at bits 4 and 8, so they lie 4 apart; pairs 4v .. 4v + 3 of 2 bits at 2, 4, 6, 8, so 2 apart. */
LAYOUT_FN uint32_t layout_high_bit(enum quant t, uint32_t e)
{
    uint32_t pair = e / 2, hi = e % 2 * 16, u = pair / 2, v = pair / 4;
    if (layout_high_bits(t) == 2)
        return pair / 8 * 32 + hi + u % 2 * 2 + u % 4 / 2 * 8 + pair % 2 * 4;
    if (layout_low_bits(t) == 2)
        return hi + v % 2 + v / 2 * 8 + pair % 4 * 2;
    return hi + u % 4 + u / 4 * 8 + pair % 2 * 4;
}

#endif
