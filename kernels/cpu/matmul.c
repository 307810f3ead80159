/* The loops around the vector kernels: tokens in chunks of 64, for each of which the weights pass once (128 operations a
 * byte: memory keeps up), tiles of as many tokens as the registers hold. No arithmetic on outputs happens here, so the
 * order of summation is the kernels' alone.
 *
 * Quantised: with few tokens (one tile) a kernel unpacks in registers and reads each weight once, as one sequential
 * stream. With more, a run of blocks of a group, or two, is unpacked to bytes on the stack once and used for every tile of
 * the chunk. Floats: widened in registers, or once for a chunk in a panel, where registers are few. */
#include "base/check.h"
#include "kernels/cpu/avx2.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/layout.h"

#include <string.h>

enum { SUMS_CAP = 16384 + 512, CHUNK_MAX = 64 };
_Static_assert((int)HPARAMS_COLS_MAX / 32 + 2 <= (int)SUMS_CAP / 4, "a model may have wider matrices than there is room for");

/* A chunk of tokens cut into tiles: as few as there can be, of about the same width. */
struct tiles {
    uint32_t n;
    uint8_t width[CHUNK_MAX];
};
static struct tiles cut(uint32_t widest, uint32_t n)
{
    struct tiles t = {0};
    while (n > 0) {
        uint32_t left = (n + widest - 1) / widest, w = (n + left - 1) / left;
        t.width[t.n++] = (uint8_t)w;
        n -= w;
    }
    return t;
}

static uint32_t widest(cpu_tile_fn *const fns[])
{
    uint32_t w = CPU_TILE_MAX;
    while (!fns[w])
        w--;
    ASSERT(w > 0);
    return w;
}

/* acc [n][R][16] += R groups times the tokens of x from t0 on. */
static void groups_chunk(const struct cpu_matmul *m, enum quant type, cpu_tile_fn *const *fns, const struct tiles *tiles, const uint8_t *group, size_t group_bytes, uint32_t R,
                         const struct kernels_act *x, uint32_t t0, const uint32_t *sums, uint32_t words, float *acc)
{
    _Alignas(64) uint8_t bytes[2 * CPU_BYTES_BLOCKS * 512], scales[2 * CPU_BYTES_BLOCKS * CPU_SCALE_BYTES];
    bool packed = fns == m->packed[type];
    uint32_t n_blocks = x->k / 32, row = x->stride / 32, step = packed && tiles->n == 1 ? n_blocks : CPU_BYTES_BLOCKS;
    for (uint32_t b0 = 0; b0 < n_blocks; b0 += step) {
        uint32_t b1 = MIN(b0 + step, n_blocks);
        for (uint32_t r = 0; r < R && !packed && m->unpack[type]; r++)
            m->unpack[type](group + r * group_bytes, b0, b1, bytes + r * CPU_BYTES_BLOCKS * 512, scales + r * CPU_BYTES_BLOCKS * CPU_SCALE_BYTES);
        for (uint32_t i = 0, t = 0; t < tiles->n; i += tiles->width[t++]) {
            size_t tok = t0 + i;
            fns[tiles->width[t]](&(struct cpu_tile){.group = group,
                                                    .group_bytes = group_bytes,
                                                    .bytes = bytes,
                                                    .scales = scales,
                                                    .b0 = b0,
                                                    .b1 = b1,
                                                    .q = x->q + tok * x->stride,
                                                    .d = x->d + tok * row,
                                                    .sums = sums + (size_t)i * row * words,
                                                    .stride = x->stride,
                                                    .acc = acc + i * R * 16});
        }
    }
}

/* Whole groups by copies of a fixed size, which a compiler makes without a call. */
static void store(const float *acc, uint32_t n, uint32_t width, uint32_t row, uint32_t row_end, float *y, size_t y_stride)
{
    uint32_t rows = MIN(row_end - row, width), whole = rows / LAYOUT_ROWS;
    for (uint32_t i = 0; i < n; i++) {
        float *to = y + i * y_stride + row;
        const float *from = acc + i * width;
        for (uint32_t g = 0; g < whole; g++, to += LAYOUT_ROWS, from += LAYOUT_ROWS)
            memcpy(to, from, LAYOUT_ROWS * sizeof *to);
        for (uint32_t r = 0; r < rows % LAYOUT_ROWS; r++)
            to[r] = from[r];
    }
}

void cpu_matmul_q8(const struct cpu_matmul *m, const struct kernels_weight *w, const struct kernels_act *x,
                   uint32_t row_begin, uint32_t row_end, float *y, size_t y_stride)
{
    uint32_t n_blocks = w->cols / 32, row = x->stride / 32, words = m->words(w->type);
    ASSERT(x->k == w->cols && (x->stride >= x->k || x->n <= 1) && row_end <= w->rows && row_begin % LAYOUT_ROWS == 0 && w->cols % 32 == 0 &&
           row <= SUMS_CAP / 4);
    uint32_t raw[SUMS_CAP], sums[2 * SUMS_CAP];
    _Alignas(64) float acc[CHUNK_MAX * 32];
    size_t group_bytes = layout_group_bytes(w->type, w->cols);
    uint32_t chunk = CHUNK_MAX;
    while (chunk > 4 && chunk * row > SUMS_CAP)
        chunk /= 2;
    for (uint32_t t0 = 0; t0 < x->n; t0 += chunk) {
        uint32_t n = MIN(x->n - t0, chunk), R;
        for (uint32_t i = 0; i < n; i++)
            cpu_avx2_sums(x->q + (size_t)(t0 + i) * x->stride, n_blocks, raw + (size_t)i * row);
        m->prepare(w->type, raw, x->d + (size_t)t0 * row, (n - 1) * row + n_blocks, sums);
        const bool many = n > m->packed_max;
        cpu_tile_fn *const *single = many && m->bytes[w->type][1] ? m->bytes[w->type] : m->packed[w->type], *const *pair = many && m->pairs[w->type][1] ? m->pairs[w->type] : NULL;
        const struct tiles singles = cut(widest(single), n), pairs = pair ? cut(widest(pair), n) : singles;
        for (uint32_t r = row_begin; r < row_end; r += R * LAYOUT_ROWS) {
            R = pair && r + LAYOUT_ROWS < row_end ? 2 : 1;
            memset(acc, 0, n * R * 16 * sizeof *acc);
            groups_chunk(m, w->type, R == 2 ? pair : single, R == 2 ? &pairs : &singles, (const uint8_t *)w->data + r / LAYOUT_ROWS * group_bytes, group_bytes, R, x, t0, sums,
                         words, acc);
            store(acc, n, R * LAYOUT_ROWS, r, row_end, y + t0 * y_stride, y_stride);
        }
    }
}

/* One group of a float type with n tokens from t0 on: acc [n][4][16] holds the chains between panels. */
static void float_group(const struct cpu_matmul_f32 *m, enum quant type, const uint8_t *group,
                        const struct kernels_act *x, uint32_t t0, uint32_t n, const struct tiles *tiles, float *out)
{
    _Alignas(64) float panel[CPU_PANEL * 16], acc[CHUNK_MAX * 64];
    uint32_t step = !m->panel[type] && n <= m->width ? x->k : (uint32_t)CPU_PANEL;
    memset(acc, 0, n * 64 * sizeof *acc);
    for (uint32_t k0 = 0; k0 < x->k; k0 += step) {
        uint32_t cols = MIN(x->k - k0, step);
        const void *w = panel;
        if (m->panel[type])
            m->panel[type](group, k0, cols, panel);
        else
            w = group + layout_group_bytes(type, k0);
        for (uint32_t i = 0, t = 0; t < tiles->n; i += tiles->width[t++])
            m->tile[type][tiles->width[t]](&(struct cpu_ftile){
                .w = w, .x = x->f32 + (size_t)(t0 + i) * x->stride + k0, .n = cols, .stride = x->stride, .acc = acc + i * 64});
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
    ASSERT(x->k == w->cols && (x->stride >= x->k || x->n <= 1) && row_end <= w->rows && row_begin % LAYOUT_ROWS == 0);
    _Alignas(64) float out[CHUNK_MAX * 16];
    size_t group_bytes = layout_group_bytes(w->type, w->cols);
    for (uint32_t t0 = 0; t0 < x->n; t0 += CHUNK_MAX) {
        uint32_t n = MIN(x->n - t0, (uint32_t)CHUNK_MAX);
        const struct tiles tiles = cut(m->width, n);
        for (uint32_t r = row_begin; r < row_end; r += LAYOUT_ROWS) {
            const uint8_t *group = (const uint8_t *)w->data + r / LAYOUT_ROWS * group_bytes;
            if (n == 1 && m->one[w->type])
                m->one[w->type](group, x->f32 + (size_t)t0 * x->stride, x->k, out);
            else
                float_group(m, w->type, group, x, t0, n, &tiles, out);
            store(out, n, LAYOUT_ROWS, r, row_end, y + t0 * y_stride, y_stride);
        }
    }
}
