/* The packed layout of the vector kernels: 16 rows interleaved, so that a vector instruction works on 16 outputs at
 * once, activations come by broadcast and nothing is ever summed across lanes. One layout for a type, used by decode,
 * small batches and prefill.
 *
 * Quantised types. A group of 16 rows is a run of panels; a panel is 8 blocks of 32 columns (the last may have fewer):
 * a header with the scales of its 8 blocks, then the weights of each block. A block is 8 vectors of 64 bytes; vector j
 * holds, for each row r, columns 4j..4j+3 at byte 4r (the operand of the byte dot instructions). Raw weights, before
 * any offset is subtracted:
 *
 *   8 bits  512 B: the 8 vectors; s8 as in the file, or with `flip` 0x80 as u8 (VNNI multiplies unsigned by signed)
 *   4 bits  256 B: vector j in the low nibbles of byte vector j, j + 4 in its high ones
 *   5 bits  320 B: as 4 bits, then one vector of fifth bits, bit j of vector j
 *   6 bits  384 B: as 4 bits, then two vectors of 2-bit fields, field j % 4 of vector j / 4
 *   2 bits  128 B: two vectors of 2-bit fields
 *   3 bits  192 B: as 2 bits, then one vector of third bits
 *
 * Headers, all [16 rows]:
 *   Q8_0 Q4_0 Q5_0  f16 d of each block                      256 B
 *   Q4_1 Q5_1       the same, then f16 m of each block       512 B
 *   Q4_K Q5_K       f16 d, f16 dmin; u8 {sc, mn} of each block            320 B
 *   Q2_K            f16 d, f16 dmin; u8 {sc0 | mn0 << 4, sc1 | mn1 << 4}  320 B
 *   Q3_K Q6_K       f16 d, 32 B unused; s8 {sc0, sc1} of each block       320 B
 *
 * Float types: column k of 16 rows is one vector: F32 64 B, F16 32 B; BF16 has pairs of columns, {k, k + 1} of each
 * row, 64 B.
 *
 * Against the file: Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 and floats the same bytes, Q4_K and Q5_K +2%, Q2_K +0, Q3_K +4%, Q6_K
 * +1%. Every header and block starts at a multiple of 64 bytes. */
#ifndef KERNELS_CPU_LAYOUT_H
#define KERNELS_CPU_LAYOUT_H

#include "base/check.h"
#include "kernels/kernels.h"

enum { LAYOUT_ROWS = 16, LAYOUT_PANEL = 8 };
enum layout_scales { LAYOUT_D, LAYOUT_DM, LAYOUT_K4, LAYOUT_K2, LAYOUT_KS };

static inline unsigned layout_bits(enum quant t)
{
    return t == QUANT_Q8_0                                         ? 8
           : t == QUANT_Q6_K                                       ? 6
           : t == QUANT_Q5_0 || t == QUANT_Q5_1 || t == QUANT_Q5_K ? 5
           : t == QUANT_Q4_0 || t == QUANT_Q4_1 || t == QUANT_Q4_K ? 4
           : t == QUANT_Q3_K                                       ? 3
                                                                   : 2;
}
static inline enum layout_scales layout_scales(enum quant t)
{
    return t == QUANT_Q4_1 || t == QUANT_Q5_1   ? LAYOUT_DM
           : t == QUANT_Q4_K || t == QUANT_Q5_K ? LAYOUT_K4
           : t == QUANT_Q2_K                    ? LAYOUT_K2
           : t == QUANT_Q3_K || t == QUANT_Q6_K ? LAYOUT_KS
                                                : LAYOUT_D;
}
static inline bool layout_has_minima(enum quant t)
{
    return layout_scales(t) == LAYOUT_DM || layout_scales(t) == LAYOUT_K4 || layout_scales(t) == LAYOUT_K2;
}
/* What the format subtracts from a raw weight. */
static inline int layout_offset(enum quant t)
{
    return t == QUANT_Q4_0 ? 8 : t == QUANT_Q5_0 ? 16 : t == QUANT_Q3_K ? 4 : t == QUANT_Q6_K ? 32 : 0;
}
static inline size_t layout_block_bytes(enum quant t)
{
    return 64 * (size_t)layout_bits(t);
}
static inline size_t layout_header_bytes(enum quant t)
{
    return layout_scales(t) == LAYOUT_D ? 256 : layout_scales(t) == LAYOUT_DM ? 512 : 320;
}
static inline const uint8_t *layout_panel(enum quant t, const uint8_t *group, uint32_t block)
{
    return group + block / LAYOUT_PANEL * (layout_header_bytes(t) + LAYOUT_PANEL * layout_block_bytes(t));
}
static inline const uint8_t *layout_block(enum quant t, const uint8_t *group, uint32_t block)
{
    return layout_panel(t, group, block) + layout_header_bytes(t) + block % LAYOUT_PANEL * layout_block_bytes(t);
}
static inline size_t layout_group_bytes(enum quant t, uint32_t cols)
{
    switch (t) {
    case QUANT_F32:
        return 64 * (size_t)cols;
    case QUANT_F16:
        return ROUND_UP(32 * (size_t)cols, (size_t)64);
    case QUANT_BF16:
        return ROUND_UP(32 * (size_t)cols, (size_t)64);
    default:
        return ((size_t)cols / 32 + LAYOUT_PANEL - 1) / LAYOUT_PANEL * layout_header_bytes(t) +
               cols / 32 * layout_block_bytes(t);
    }
}

size_t layout_bytes(enum quant type, uint32_t rows, uint32_t cols);
/* flip: 0 or 0x80, see above. The contract of weight_pack and weight_row otherwise. */
void layout_pack(enum quant type, uint32_t rows, uint32_t cols, const void *src, uint32_t row0, uint32_t n, void *dst,
                 uint8_t flip);
void layout_row(const struct kernels_weight *w, uint32_t row, float *out, uint8_t flip);

#endif
