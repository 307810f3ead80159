/* What the files of the CPU backend share: its tables, one for each instruction set, the choice among them
 * (dispatch.c), and the loops over groups and tokens around the vector kernels (matmul.c). */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/kernels.h"

extern const struct kernels kernels_cpu_c; /* kernels/ref/ref.c: the exact reference, as a backend */
extern const struct kernels kernels_cpu_avx2, kernels_cpu_avx512;

/* Loops over constant bounds that must vanish, so that arrays of vectors become registers. */
#define CPU_INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define CPU_UNROLL _Pragma("clang loop unroll(full)")
#else
#define CPU_UNROLL _Pragma("GCC unroll 16")
#endif

/* The quantised product of R groups of 16 rows with T tokens, over the blocks [b0, b1): continues the chains in acc. */
struct cpu_tile {
    const uint8_t *group; /* the packed groups (cpu/layout.h), group_bytes apart */
    size_t group_bytes;
    const uint8_t *bytes; /* the weights of blocks b0.. as bytes, 512 a block, CPU_BYTES_BLOCKS * 512 a group; only for tiles that do not unpack in registers */
    const uint8_t *scales; /* theirs, as unpack left them, CPU_SCALE_BYTES a block */
    uint32_t b0, b1;
    const int8_t *q; /* of the first token; tokens are `stride` apart */
    const float *d;  /* stride / 32 apart */
    const uint32_t *sums; /* of each token and block, stride / 32 * words apart: what prepare made of the sum of q[0..15] as int16, low, and of q[16..31], high */
    uint32_t stride;
    float *acc; /* [T][R][16] */
};
typedef void cpu_tile_fn(const struct cpu_tile *t);

enum { CPU_TILE_MAX = 8, CPU_BYTES_BLOCKS = 32, CPU_SCALE_BYTES = 384 };
/* The kernels of an instruction set. [type][T]: NULL where no kernel has this width. */
struct cpu_matmul {
    cpu_tile_fn *packed[QUANT_COUNT][CPU_TILE_MAX + 1];
    /* Unpacked before, of R = 1 or 2 groups. Of pairs what is left over, one group, is worked on packed. */
    cpu_tile_fn *bytes[QUANT_COUNT][CPU_TILE_MAX + 1], *pairs[QUANT_COUNT][CPU_TILE_MAX + 1];
    uint32_t packed_max;                               /* so many tokens are worked on without unpacking to bytes, one group at a time */
    /* Blocks [b0, b1) of a group as bytes, 512 a block, with their scales where its tiles want them ready. NULL where the packed form is bytes already. */
    void (*unpack[QUANT_COUNT])(const uint8_t *group, uint32_t b0, uint32_t b1, uint8_t *out, uint8_t *scales);
    /* The sums of n blocks, with their scales, in the form that tiles want, words(type) each. */
    void (*prepare)(enum quant type, const uint32_t *sums, const float *d, uint32_t n, uint32_t *out);
    uint32_t (*words)(enum quant type);
};
void cpu_matmul_q8(const struct cpu_matmul *m, const struct kernels_weight *w, const struct kernels_act *x,
                   uint32_t row_begin, uint32_t row_end, float *y, size_t y_stride);

/* A group of 16 rows of a float type with T tokens over n columns from k0 on, a multiple of 4. */
struct cpu_ftile {
    const void *w;  /* the group's bytes at k0, or the panel: fp32 [4 chains][CPU_PANEL / 4][16 rows] */
    const float *x; /* of the first token at k0 */
    uint32_t n, stride; /* columns; from a token to the next */
    float *acc;     /* [T][4][16] */
};
enum { CPU_PANEL = 256 };
typedef void cpu_ftile_fn(const struct cpu_ftile *t);
struct cpu_matmul_f32 {
    uint32_t width; /* most tokens of a tile */
    cpu_ftile_fn *tile[QUANT_COUNT][CPU_TILE_MAX + 1]; /* [type][1..width] */
    /* Widens columns [k0, k0+n) of a group into the panel of cpu_ftile. NULL: tiles take the group as it is. */
    void (*panel[QUANT_COUNT])(const uint8_t *group, uint32_t k0, uint32_t n, float *out);
    /* Where there are panels: one token without, whole rows. out [16] */
    void (*one[QUANT_COUNT])(const uint8_t *group, const float *x, uint32_t k, float *out);
};
void cpu_matmul_float(const struct cpu_matmul_f32 *m, const struct kernels_weight *w, const struct kernels_act *x,
                      uint32_t row_begin, uint32_t row_end, float *y, size_t y_stride);

#endif
