/* The loops around the vector kernels: slabs of rows that stay in the second-level cache, tokens in chunks, tiles of as
 * many tokens as the registers hold. No arithmetic on outputs happens here, so the order of summation is the kernels'
 * alone.
 *
 * Quantised: with few tokens (one tile) a kernel unpacks in registers and reads each weight once, as one sequential
 * stream. With more, a run of blocks of a group is unpacked to bytes on the stack once and used for every tile of the
 * chunk. Floats: one token directly; more through panels widened to fp32. */
#include "base/check.h"
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/layout.h"

#include <string.h>

enum { SUMS_CAP = 16384, CHUNK_MAX = 64, SLAB_BYTES = 256 << 10 };
_Static_assert((int)HPARAMS_COLS_MAX / 32 <= (int)SUMS_CAP / 4, "a model may have wider matrices than there is room for");

static cpu_tile_fn *widest(cpu_tile_fn *const fns[], uint32_t n, uint32_t *width)
{
    for (uint32_t t = MIN(n, (uint32_t)CPU_TILE_MAX); t > 0; t--)
        if (fns[t]) {
            *width = t;
            return fns[t];
        }
    ASSERT(!"a type without kernels");
    return NULL;
}

/* acc [n][16] += group times the tokens of x from t0 on. */
static void group_chunk(const struct cpu_matmul *m, enum quant type, const uint8_t *group, const struct kernels_act *x,
                        uint32_t t0, uint32_t n, const uint32_t *sums, float *acc)
{
    _Alignas(64) uint8_t bytes[CPU_BYTES_BLOCKS * 512];
    uint32_t n_blocks = x->k / 32, width;
    cpu_tile_fn *fn = widest(m->packed[type], n, &width);
    bool direct = width == n;
    uint32_t step = direct ? n_blocks : CPU_BYTES_BLOCKS;
    for (uint32_t b0 = 0; b0 < n_blocks; b0 += step) {
        uint32_t b1 = MIN(b0 + step, n_blocks);
        if (!direct && m->unpack[type])
            m->unpack[type](group, b0, b1, bytes);
        for (uint32_t i = 0; i < n; i += width) {
            if (!direct)
                fn = widest(m->bytes[type], n - i, &width);
            size_t tok = t0 + i;
            fn(&(struct cpu_tile){.group = group,
                                  .bytes = bytes,
                                  .b0 = b0,
                                  .b1 = b1,
                                  .q = x->q + tok * x->k,
                                  .d = x->d + tok * n_blocks,
                                  .sums = sums + (size_t)i * n_blocks,
                                  .k = x->k,
                                  .acc = acc + i * 16});
        }
    }
}

static void store(const float *acc, uint32_t n, uint32_t row, uint32_t row_end, float *y, size_t y_stride)
{
    uint32_t rows = MIN(row_end - row, (uint32_t)LAYOUT_ROWS);
    for (uint32_t i = 0; i < n; i++)
        memcpy(y + i * y_stride + row, acc + i * 16, rows * sizeof *y);
}

void cpu_matmul_q8(const struct cpu_matmul *m, const struct kernels_weight *w, const struct kernels_act *x,
                   uint32_t row_begin, uint32_t row_end, float *y, size_t y_stride)
{
    uint32_t n_blocks = w->cols / 32;
    ASSERT(x->k == w->cols && row_end <= w->rows && row_begin % LAYOUT_ROWS == 0 && w->cols % 32 == 0 &&
           n_blocks <= SUMS_CAP / 4);
    uint32_t sums[SUMS_CAP];
    _Alignas(64) float acc[CHUNK_MAX * 16];
    size_t group_bytes = layout_group_bytes(w->type, w->cols);
    uint32_t chunk = CHUNK_MAX;
    while (chunk > 4 && chunk * n_blocks > SUMS_CAP)
        chunk /= 2;
    uint32_t slab = (uint32_t)MAX(SLAB_BYTES / (group_bytes + 1), (size_t)4) * LAYOUT_ROWS;
    if (x->n <= chunk)
        slab = MAX(row_end, (uint32_t)1); /* the sums are made once */
    for (uint32_t s0 = row_begin; s0 < row_end; s0 += slab)
        for (uint32_t t0 = 0; t0 < x->n; t0 += chunk) {
            uint32_t n = MIN(x->n - t0, chunk);
            for (uint32_t i = 0; i < n; i++)
                cpu_avx2_sums(x->q + (size_t)(t0 + i) * x->k, n_blocks, sums + (size_t)i * n_blocks);
            for (uint32_t r = s0; r < row_end && r - s0 < slab; r += LAYOUT_ROWS) {
                memset(acc, 0, n * 16 * sizeof *acc);
                group_chunk(m, w->type, (const uint8_t *)w->data + r / LAYOUT_ROWS * group_bytes, x, t0, n, sums, acc);
                store(acc, n, r, row_end, y + t0 * y_stride, y_stride);
            }
        }
}

/* One group of a float type with n tokens from t0 on: acc [n][4][16] holds the chains between panels. */
static void float_group(const struct cpu_matmul_f32 *m, enum quant type, const uint8_t *group,
                        const struct kernels_act *x, uint32_t t0, uint32_t n, float *out)
{
    _Alignas(64) float panel[CPU_PANEL * 16], acc[CHUNK_MAX * 64];
    memset(acc, 0, n * 64 * sizeof *acc);
    for (uint32_t k0 = 0; k0 < x->k; k0 += CPU_PANEL) {
        uint32_t cols = MIN(x->k - k0, (uint32_t)CPU_PANEL);
        m->panel[type](group, k0, cols, panel);
        for (uint32_t i = 0, t; i < n; i += t) {
            t = MIN(n - i, m->width);
            m->tile[t](&(struct cpu_ftile){
                .w = panel, .x = x->f32 + (size_t)(t0 + i) * x->k + k0, .n = cols, .k = x->k, .acc = acc + i * 64});
        }
    }
    for (uint32_t i = 0; i < n; i++) {
        const float *c = acc + i * 64;
        for (int r = 0; r < 16; r++)
            out[i * 16 + r] = (c[r] + c[16 + r]) + (c[32 + r] + c[48 + r]);
    }
}

void cpu_matmul_float(const struct cpu_matmul_f32 *m, const struct kernels_weight *w, const struct kernels_act *x,
                      uint32_t row_begin, uint32_t row_end, float *y, size_t y_stride)
{
    ASSERT(x->k == w->cols && row_end <= w->rows && row_begin % LAYOUT_ROWS == 0);
    _Alignas(64) float out[CHUNK_MAX * 16];
    size_t group_bytes = layout_group_bytes(w->type, w->cols);
    for (uint32_t r = row_begin; r < row_end; r += LAYOUT_ROWS) {
        const uint8_t *group = (const uint8_t *)w->data + r / LAYOUT_ROWS * group_bytes;
        for (uint32_t t0 = 0; t0 < x->n; t0 += CHUNK_MAX) {
            uint32_t n = MIN(x->n - t0, (uint32_t)CHUNK_MAX);
            if (n == 1)
                m->one[w->type](group, x->f32 + (size_t)t0 * x->k, x->k, out);
            else
                float_group(m, w->type, group, x, t0, n, out);
            store(out, n, r, row_end, y + t0 * y_stride, y_stride);
        }
    }
}
