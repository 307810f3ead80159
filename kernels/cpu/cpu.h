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

/* The quantised product of one group of 16 rows with T tokens, over the blocks [b0, b1): continues the chains in acc.
 */
struct cpu_tile {
    const uint8_t *group; /* the packed group (cpu/layout.h) */
    const uint8_t *bytes; /* the weights of blocks b0.. as bytes, 512 a block; NULL: unpack in registers */
    uint32_t b0, b1;
    const int8_t *q; /* of the first token; tokens are k apart */
    const float *d;  /* k / 32 apart */
    const uint32_t
        *sums; /* of each token and block: sum of q[0..15] as int16, low, and of q[16..31], high; k / 32 apart */
    uint32_t k;
    float *acc; /* [T][16] */
};
typedef void cpu_tile_fn(const struct cpu_tile *t);

enum { CPU_TILE_MAX = 16, CPU_BYTES_BLOCKS = 32 };
/* The kernels of an instruction set. tile[type][T]: NULL where no kernel has this width. */
struct cpu_matmul {
    cpu_tile_fn *packed[QUANT_COUNT][CPU_TILE_MAX + 1];
    cpu_tile_fn *bytes[QUANT_COUNT][CPU_TILE_MAX + 1];
    /* Blocks [b0, b1) of a group as bytes, 512 a block. NULL where the packed form is bytes already. */
    void (*unpack[QUANT_COUNT])(const uint8_t *group, uint32_t b0, uint32_t b1, uint8_t *out);
};
void cpu_matmul_q8(const struct cpu_matmul *m, const struct kernels_weight *w, const struct kernels_act *x,
                   uint32_t row_begin, uint32_t row_end, float *y, size_t y_stride);

/* A group of 16 rows of a float type with T tokens over the columns [k0, k1), k0 a multiple of 4. */
struct cpu_ftile {
    const float *w; /* [4 chains][CPU_PANEL / 4][16 rows] */
    const float *x; /* of the first token at k0; tokens are k apart */
    uint32_t n, k;  /* columns, stride */
    float *acc;     /* [T][4][16] */
};
enum { CPU_PANEL = 256 };
typedef void cpu_ftile_fn(const struct cpu_ftile *t);
struct cpu_matmul_f32 {
    unsigned width;                       /* most tokens of a tile */
    cpu_ftile_fn *tile[CPU_TILE_MAX + 1]; /* [1..width] */
    /* One token, whole rows. out [16] */
    void (*one[QUANT_COUNT])(const uint8_t *group, const float *x, uint32_t k, float *out);
    /* Widens columns [k0, k0+n) of a group into the panel of cpu_ftile. */
    void (*panel[QUANT_COUNT])(const uint8_t *group, uint32_t k0, uint32_t n, float *out);
};
void cpu_matmul_float(const struct cpu_matmul_f32 *m, const struct kernels_weight *w, const struct kernels_act *x,
                      uint32_t row_begin, uint32_t row_end, float *y, size_t y_stride);

#endif
