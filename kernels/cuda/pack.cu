/* Between a file's rows and the packed layout (layout.h): pack and look-up of rows. Not tuned beyond what it takes to keep up with a disk: one thread
 * a block of 32 columns, byte reads that the L1 cache joins.
 *
 * The formats are those of kernels/ref/decode.c, which is also the oracle of both. */
#include "kernels/cuda/launch.cuh"

#include "base/check.h"
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/layout.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace
{

constexpr uint32_t THREADS = 128;

struct file_form {
    uint32_t elems, bytes;
};
constexpr __host__ __device__ file_form file_block(quant t)
{
    constexpr file_form forms[] = {
#define QUANT(sym, id, name, elems, bytes, act) {elems, bytes},
#include "model/quants.def"
#undef QUANT
    };
    return forms[t];
}

/* 32 columns as they lie in a file: codes before the offset is subtracted; the f16 scales; the sub-block scales as bytes of layout.h. */
struct block {
    uint8_t code[32];
    uint16_t d, m;     /* m: the minimum's scale, negated for K types */
    uint8_t sub[2];
};

__device__ __forceinline__ uint16_t load16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}
__device__ __forceinline__ uint32_t load32(const uint8_t *p)
{
    return load16(p) | (uint32_t)load16(p + 2) << 16;
}

template <quant T>
__device__ __forceinline__ void read_plain(const uint8_t *p, block *o)
{
    constexpr bool MIN = layout_scales(T) == LAYOUT_DM, FIFTH = layout_high_bits(T) == 1;
    o->d = load16(p);
    o->m = MIN ? load16(p + 2) : 0;
    p += MIN ? 4 : 2;
    if (T == QUANT_Q8_0) {
        for (uint32_t i = 0; i < 32; i++)
            o->code[i] = p[i] ^ 0x80;
        return;
    }
    uint32_t fifth = FIFTH ? load32(p) : 0;
    p += FIFTH ? 4 : 0;
    for (uint32_t i = 0; i < 16; i++) {
        o->code[i] = (uint8_t)((p[i] & 15) | (fifth >> i & 1) << 4);
        o->code[i + 16] = (uint8_t)(p[i] >> 4 | (fifth >> (i + 16) & 1) << 4);
    }
}

/* Block s of a super-block at p. */
template <quant T>
__device__ __forceinline__ void read_super(const uint8_t *p, uint32_t s, block *o)
{
    if (T == QUANT_Q2_K) {
        o->d = load16(p + 80);
        o->m = load16(p + 82) ^ 0x8000;
        o->sub[0] = p[2 * s];
        o->sub[1] = p[2 * s + 1];
        for (uint32_t i = 0; i < 32; i++)
            o->code[i] = p[16 + 32 * (s / 4) + i] >> 2 * (s % 4) & 3;
    } else if (T == QUANT_Q3_K) {
        const uint8_t *scales = p + 96;
        o->d = load16(p + 108);
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t j = 2 * s + h;
            uint32_t lo = j < 8 ? scales[j] & 15 : scales[j - 8] >> 4, hi = scales[8 + j % 4] >> 2 * (j / 4) & 3;
            o->sub[h] = (uint8_t)((lo | hi << 4) + 128 - 32);
        }
        for (uint32_t i = 0; i < 32; i++)
            o->code[i] = (uint8_t)((p[32 + 32 * (s / 4) + i] >> 2 * (s % 4) & 3) | (p[i] >> s & 1) << 2);
    } else if (T == QUANT_Q6_K) {
        const uint8_t *ql = p + 64 * (s / 4) + 32 * (s % 2), *qh = p + 128 + 32 * (s / 4);
        o->d = load16(p + 208);
        o->sub[0] = p[192 + 2 * s] ^ 0x80;
        o->sub[1] = p[192 + 2 * s + 1] ^ 0x80;
        for (uint32_t i = 0; i < 32; i++)
            o->code[i] = (uint8_t)((ql[i] >> 4 * (s % 4 / 2) & 15) | (qh[i] >> 2 * (s % 4) & 3) << 4);
    } else { /* Q4_K, Q5_K */
        const uint8_t *b = p + 4, *nibbles = p + (T == QUANT_Q5_K ? 48 : 16) + 32 * (s / 2);
        o->d = load16(p);
        o->m = load16(p + 2) ^ 0x8000;
        o->sub[0] = s < 4 ? b[s] & 63 : (uint8_t)((b[s + 4] & 15) | b[s - 4] >> 6 << 4);
        o->sub[1] = s < 4 ? b[s + 4] & 63 : (uint8_t)(b[s + 4] >> 4 | b[s] >> 6 << 4);
        for (uint32_t i = 0; i < 32; i++)
            o->code[i] = (uint8_t)((nibbles[i] >> 4 * (s % 2) & 15) | (T == QUANT_Q5_K ? (p[16 + i] >> s & 1) << 4 : 0));
    }
}

/* Where block b (of 32) of a row lies. */
template <quant T>
struct place {
    uint8_t *step, *super;
    uint32_t lane, h;
    __device__ __forceinline__ place(void *data, uint32_t row, uint32_t b, uint32_t cols)
    {
        uint8_t *group = (uint8_t *)data + row / LAYOUT_ROWS * layout_group_bytes(T, cols);
        uint32_t s = b / 4, in = row % LAYOUT_ROWS;
        uint8_t *tile = group + (size_t)(s / layout_tile_steps(T)) * layout_tile_bytes(T);
        step = tile + s % layout_tile_steps(T) * layout_step_bytes(T);
        super = tile + layout_super_at(T) + (in % 8 * 2 + in / 8) * (layout_scales(T) == LAYOUT_KS ? 2 : 4);
        lane = in % 8 * 4 + b % 4;
        h = in / 8;
    }
    /* Word i (of low_bits) of the block's low bits, word i of its high bits; its scales. */
    __device__ __forceinline__ uint32_t *low(uint32_t i) const
    {
        if (layout_low_bits(T) == 2)
            return (uint32_t *)step + lane * 4 + h * 2 + i;
        return (uint32_t *)step + (i / 4 * 2 + h) * 128 + lane * 4 + i % 4;
    }
    __device__ __forceinline__ uint32_t *high(uint32_t i) const
    {
        return (uint32_t *)(step + layout_high_at(T)) + (lane * 2 + h) * layout_high_bits(T) + i;
    }
    __device__ __forceinline__ uint8_t *scales() const
    {
        return step + layout_scales_at(T) + (lane * 2 + h) * (layout_scales(T) == LAYOUT_DM ? 4 : 2);
    }
};

template <quant T>
__device__ __forceinline__ void write_block(const place<T> &at, const block *o, bool first)
{
    constexpr uint32_t LOW = layout_low_bits(T), HIGH = layout_high_bits(T);
    uint32_t low[LOW] = {}, high[HIGH ? HIGH : 1] = {};
#pragma unroll
    for (uint32_t e = 0; e < 32; e++) {
        uint32_t lo = layout_low_bit(T, e), hi = layout_high_bit(T, e), c = o->code[e];
        low[lo / 32] |= (c & ((1u << LOW) - 1)) << lo % 32;
        if (HIGH > 0)
            high[hi / 32] |= c >> LOW << hi % 32;
    }
#pragma unroll
    for (uint32_t i = 0; i < LOW; i++)
        *at.low(i) = low[i];
#pragma unroll
    for (uint32_t i = 0; i != HIGH; i++)
        *at.high(i) = high[i];
    if (layout_scales(T) == LAYOUT_D) {
        *(uint16_t *)at.scales() = o->d;
    } else if (layout_scales(T) == LAYOUT_DM) {
        *(uint32_t *)at.scales() = o->d | (uint32_t)o->m << 16;
    } else {
        *(uint16_t *)at.scales() = (uint16_t)(o->sub[0] | o->sub[1] << 8);
        if (first && layout_scales(T) == LAYOUT_KS)
            *(uint16_t *)at.super = o->d;
        else if (first)
            *(uint32_t *)at.super = o->d | (uint32_t)o->m << 16;
    }
}

/* Thread: (row, block); the blocks of the padding, too, which are zeros. Reads each byte of the file once, writes each packed byte once.
 * Expected: 30% of copy bandwidth, ten times what the bus brings while a model is loaded. */
template <quant T>
__global__ void pack_kernel(void *data, const uint8_t *src, uint32_t row0, uint32_t n, uint32_t cols, uint32_t blocks)
{
    constexpr uint32_t PER = file_block(T).elems / 32, BYTES = file_block(T).bytes;
    size_t id = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (id >= (size_t)n * blocks)
        return;
    uint32_t row = (uint32_t)(id / blocks), b = (uint32_t)(id % blocks);
    block o = {};
    if (b < cols / 32) {
        const uint8_t *p = src + ((size_t)row * (cols / 32 / PER) + b / PER) * BYTES;
        if constexpr (PER == 1)
            read_plain<T>(p, &o);
        else
            read_super<T>(p, b % PER, &o);
    }
    write_block(place<T>(data, row0 + row, b, cols), &o, b % PER == 0);
}

/* Rows of bytes, row_bytes long, become rows of stride bytes (a multiple of 16) that end in zeros. Thread: 4 bytes.
 * Expected: 50% of copy bandwidth, likewise. */
__global__ void pad_kernel(uint8_t *dst, const uint8_t *src, uint32_t n, size_t row_bytes, size_t stride)
{
    size_t id = (size_t)blockIdx.x * THREADS + threadIdx.x, words = stride / 4;
    if (id >= n * words)
        return;
    size_t row = id / words, at = id % words * 4;
    const uint8_t *p = src + row * row_bytes + at;
    uint32_t v = 0;
    if (at < row_bytes)
        v = load16(p);
    if (at + 2 < row_bytes)
        v |= (uint32_t)load16(p + 2) << 16;
    *(uint32_t *)(dst + row * stride + at) = v;
}

__device__ __forceinline__ float f16_value(uint16_t h)
{
    return __half2float(__ushort_as_half(h));
}

/* Thread: 32 columns of a row. The products are exact in fp32 (11 bits of d, at most 8 of the scale, 8 of the code), so a weight has at most one
 * rounding, that of the sum, as ref_dequant has it. Indices: i a row of y, id the row of the matrix.
 * Expected: the launch alone in decode; 30% of copy bandwidth for many tokens. */
template <quant T>
__global__ void rows_kernel(const void *data, uint32_t rows, uint32_t cols, const uint32_t *ids, uint32_t n, uint32_t first_id, float *y)
{
    uint32_t blocks = (cols + 31) / 32;
    size_t at = (size_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= (size_t)n * blocks)
        return;
    uint32_t i = (uint32_t)(at / blocks), b = (uint32_t)(at % blocks), row = ids[i] - first_id, len = min(cols - b * 32, 32u);
    float *out = y + (size_t)i * cols + b * 32;
    if (ids[i] < first_id || row >= rows) {
        for (uint32_t e = 0; e < len; e++)
            out[e] = 0;
        return;
    }
    if constexpr (!layout_tiled(T)) {
        const uint8_t *p = (const uint8_t *)data + row * layout_row_bytes(T, cols);
        for (uint32_t e = b * 32; e < b * 32 + len; e++)
            *out++ = T == QUANT_F32   ? ((const float *)p)[e]
                     : T == QUANT_F16 ? f16_value(((const uint16_t *)p)[e])
                                      : __uint_as_float((uint32_t)((const uint16_t *)p)[e] << 16);
    } else {
        constexpr layout_kind KIND = layout_scales(T);
        constexpr uint32_t LOW = layout_low_bits(T), HIGH = layout_high_bits(T);
        place<T> in((void *)data, row, b, cols);
        const uint8_t *k = in.scales();
        float d, m = 0, sc[2] = {1, 1}, mn[2] = {1, 1};
        if (KIND < LAYOUT_K4) {
            d = f16_value(*(const uint16_t *)k);
            m = KIND == LAYOUT_DM ? f16_value(((const uint16_t *)k)[1]) : 0;
        } else {
            d = f16_value(*(const uint16_t *)in.super);
            m = KIND == LAYOUT_KS ? 0 : f16_value(((const uint16_t *)in.super)[1]);
            for (uint32_t h = 0; h < 2; h++) {
                sc[h] = KIND == LAYOUT_K4 ? k[0] : KIND == LAYOUT_K2 ? k[h] & 15 : (int)k[h] - 128;
                mn[h] = KIND == LAYOUT_K4 ? k[1] : k[h] >> 4;
            }
        }
#pragma unroll
        for (uint32_t e = 0; e < 32; e++) {
            uint32_t lo = layout_low_bit(T, e), hi = layout_high_bit(T, e), c = *in.low(lo / 32) >> lo % 32 & ((1u << LOW) - 1);
            if (HIGH > 0)
                c |= (*in.high(hi / 32) >> hi % 32 & ((1u << HIGH) - 1)) << LOW;
            float v = d * sc[e / 16] * (float)((int32_t)c - layout_offset(T));
            out[e] = KIND == LAYOUT_DM || KIND == LAYOUT_K4 || KIND == LAYOUT_K2 ? v + m * mn[e / 16] : v;
        }
    }
}

template <quant T>
cudaError_t pack(const cuda_weight *w, const uint8_t *src, uint32_t row0, uint32_t n, cudaStream_t stream)
{
    if constexpr (layout_tiled(T)) {
        uint32_t blocks = ROUND_UP(w->cols, LAYOUT_STEP * layout_tile_steps(T)) / 32;
        uint32_t grid = (uint32_t)(((size_t)n * blocks + THREADS - 1) / THREADS);
        return LAUNCH((pack_kernel<T>), dim3(grid), dim3(THREADS), 0, stream, (void *)w->data, src, row0, n, w->cols, blocks);
    } else {
        size_t stride = layout_row_bytes(T, w->cols);
        uint32_t grid = (uint32_t)((n * (stride / 4) + THREADS - 1) / THREADS);
        return LAUNCH(pad_kernel, dim3(grid), dim3(THREADS), 0, stream, (uint8_t *)w->data + row0 * stride, src, n, (size_t)quant_row_bytes(T, w->cols),
                      stride);
    }
}

template <quant T>
cudaError_t rows(const cuda_weight *w, const uint32_t *ids, uint32_t n, uint32_t first_id, float *y, cudaStream_t stream)
{
    uint32_t grid = (uint32_t)(((size_t)n * ((w->cols + 31) / 32) + THREADS - 1) / THREADS);
    return LAUNCH((rows_kernel<T>), dim3(grid), dim3(THREADS), 0, stream, w->data, w->rows, w->cols, ids, n, first_id, y);
}

} // namespace

size_t cuda_weight_bytes(enum quant type, uint32_t rows, uint32_t cols)
{
    ASSERT(type < QUANT_COUNT && cols % quant_traits[type].block_elems == 0);
    if (!layout_tiled(type))
        return rows * layout_row_bytes(type, cols);
    return (rows + LAYOUT_ROWS - 1) / LAYOUT_ROWS * layout_group_bytes(type, cols);
}

cudaError_t cuda_weight_pack(const struct cuda_weight *w, const void *src, uint32_t row0, uint32_t n, cudaStream_t stream)
{
    ASSERT(w->type < QUANT_COUNT && w->cols % quant_traits[w->type].block_elems == 0 && (uintptr_t)w->data % CUDA_ALIGN == 0);
    ASSERT(row0 <= w->rows && n <= w->rows - row0);
    if (n == 0 || w->cols == 0)
        return cudaSuccess;
    switch (w->type) {
#define QUANT(sym, id, name, elems, bytes, act)                                                                        \
    case QUANT_##sym:                                                                                                  \
        return pack<QUANT_##sym>(w, (const uint8_t *)src, row0, n, stream);
#include "model/quants.def"
#undef QUANT
    default:
        return cudaErrorInvalidValue;
    }
}

cudaError_t cuda_weight_rows(const struct cuda_weight *w, const uint32_t *ids, uint32_t n, uint32_t first_id, float *y, cudaStream_t stream)
{
    ASSERT(w->type < QUANT_COUNT && w->cols % quant_traits[w->type].block_elems == 0);
    if (n == 0 || w->cols == 0)
        return cudaSuccess;
    switch (w->type) {
#define QUANT(sym, id, name, elems, bytes, act)                                                                        \
    case QUANT_##sym:                                                                                                  \
        return rows<QUANT_##sym>(w, ids, n, first_id, y, stream);
#include "model/quants.def"
#undef QUANT
    default:
        return cudaErrorInvalidValue;
    }
}
