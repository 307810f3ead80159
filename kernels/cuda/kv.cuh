/* The types of the KV cache on the device: f16, bf16, q8_0 (an f16 scale and 32 int8), fp8 (e4m3). Writing rounds as kernels/ref does, bit for bit. Reading gives
 * 16-bit tiles in shared memory, which tensor cores take: f16 and bf16 as they are, q8_0 and fp8 as f16 (fp8 exactly; q8_0 rounds scale * int8 to f16,
 * an eighth of its own step at most). A page is the 16 positions of one block, head and K or V: contiguous, 16 * kv_bytes(). */
#ifndef KERNELS_CUDA_KV_CUH
#define KERNELS_CUDA_KV_CUH

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

#include "kernels/cuda/cuda.h"

#include <cuda_fp16.h>
#include <float.h>
#include <math.h>
#include <string.h>

enum { KV_PAGE = SHARD_KV_BLOCK };

/* Bytes of a row of n values. */
static __host__ __device__ __forceinline__ uint32_t kv_bytes(enum kv_type type, uint32_t n)
{
    return type == KV_Q8_0 ? n / 32 * 34 : type == KV_FP8 ? n : 2 * n;
}
/* 8-bit types, which pass through a conversion on their way. */
static __host__ __device__ __forceinline__ bool kv_narrow(enum kv_type type)
{
    return type == KV_Q8_0 || type == KV_FP8;
}

template <bool BF16> static __device__ __forceinline__ uint32_t kv_pack2(float low, float high)
{
    return BF16 ? ptx_bf16x2(low, high) : ptx_f16x2(low, high);
}
/* What the packing above has lost, itself packed: low - value of u's low half, and high. */
template <bool BF16> static __device__ __forceinline__ uint32_t kv_rest2(uint32_t u, float low, float high)
{
    if (BF16)
        return kv_pack2<true>(low - __uint_as_float(u << 16), high - __uint_as_float(u & 0xffff0000u));
    __half2 v = ptx_half2(u);
    return kv_pack2<false>(low - __low2float(v), high - __high2float(v));
}

/* ---- writing: a warp writes one row of n values (shared memory, visible to the warp) */
static __device__ __forceinline__ void kv_write_q8_0(const float *x, uint32_t n, uint8_t *dst, uint32_t lane)
{
    for (uint32_t b = 0; b < n / 32; b++, dst += 34) {
        float v = x[b * 32 + lane], a = fabsf(v);
        bool finite = __all_sync(0xffffffffu, a <= FLT_MAX);
        for (int m = 16; m > 0; m /= 2)
            a = fmaxf(a, __shfl_xor_sync(0xffffffffu, a, m));
        bool some = finite && a >= 0x1p-120f;
        float d = some ? a / 127.0f : finite ? 0.0f : NAN, inv = some ? 127.0f / a : 0.0f;
        ((int8_t *)dst)[2 + lane] = some ? (int8_t)__float2int_rn(v * inv) : (int8_t)0;
        if (lane == 0) {
            __half h = __float2half_rn(d);
            memcpy(dst, &h, 2);
        }
    }
}
static __device__ __forceinline__ void kv_write_row(enum kv_type type, const float *x, uint32_t n, uint8_t *dst, uint32_t lane)
{
    if (type == KV_Q8_0)
        kv_write_q8_0(x, n, dst, lane);
    else if (type == KV_FP8)
        for (uint32_t j = 4 * lane; j < n; j += 128)
            *(uint32_t *)(dst + j) = ptx_e4m3x2(x[j], x[j + 1]) | ptx_e4m3x2(x[j + 2], x[j + 3]) << 16;
    else
        for (uint32_t j = 2 * lane; j < n; j += 64)
            *(uint32_t *)(dst + 2 * j) = type == KV_BF16 ? kv_pack2<true>(x[j], x[j + 1]) : kv_pack2<false>(x[j], x[j + 1]);
}

/* ---- reading */

/* Two e4m3 in the high bytes of two halves: one place to the right they are f16 of an exponent 8 too small. All ones is NaN. */
static __device__ __forceinline__ uint32_t kv_widen_fp8x2(uint32_t x)
{
    uint32_t rest = x & 0x7f007f00u, nan = (rest + 0x01000100u) & 0x80008000u;
    return ptx_half2_bits(__hmul2(ptx_half2((x & 0x80008000u) | rest >> 1), __float2half2_rn(256.0f))) | (nan - (nan >> 6));
}
static __device__ __forceinline__ uint2 kv_widen_fp8x4(uint32_t w)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890 /* one instruction for two */
    return make_uint2(ptx_f16x2_of_e4m3x2(w), ptx_f16x2_of_e4m3x2(w >> 16));
#else
    return make_uint2(kv_widen_fp8x2(__byte_perm(w, 0, 0x1404)), kv_widen_fp8x2(__byte_perm(w, 0, 0x3424)));
#endif
}

/* Four int8 times d. 0x6400 + an unsigned byte is the f16 1024 + byte. */
static __device__ __forceinline__ uint2 kv_widen_q8x4(uint32_t w, __half2 d)
{
    uint32_t x = w ^ 0x80808080u;
    __half2 off = __float2half2_rn(1024.0f + 128.0f), a = ptx_half2(__byte_perm(x, 0x64646464u, 0x4140)), b = ptx_half2(__byte_perm(x, 0x64646464u, 0x4342));
    return make_uint2(ptx_half2_bits(__hmul2(__hsub2(a, off), d)), ptx_half2_bits(__hmul2(__hsub2(b, off), d)));
}

/* A tile of rows of up to D values has D + 8 halves a row: an odd number of 16 bytes, so that the 8 rows of an ldmatrix lie in different banks. */
template <int D> struct kv_tile {
    static constexpr uint32_t STRIDE = 2 * D + 16; /* bytes */
};

/* Rows [0, ROWS) of a tile by T threads, 8 a row. cp.async, so that nothing is there before the wait; rows outside [lo, hi) become zeros.
 * src(page) gives a page's address, of which only wanted rows are read; `none` is any address. WHOLE: all rows, of D values: then an address a page is all there
 * is to compute. */
template <int D, int ROWS, int T, bool WHOLE, class SRC>
static __device__ __forceinline__ void kv_copy16_rows(unsigned char *tile, const SRC &src, const void *none, uint32_t n, int lo, int hi, uint32_t t)
{
    static_assert(T % 8 == 0 && KV_PAGE % (T / 8) == 0, "");
    uint32_t row_bytes = WHOLE ? 2 * D : 2 * n, row0 = t / 8, col = t % 8;
    unsigned char *to = tile + row0 * kv_tile<D>::STRIDE + col * 16;
#pragma unroll
    for (int page = 0; page < ROWS / KV_PAGE; page++) {
        const uint8_t *from = src(page) + (row0 * row_bytes + col * 16);
#pragma unroll
        for (int r = 0; r < KV_PAGE; r += T / 8) {
            int row = page * KV_PAGE + r;
            bool valid = WHOLE || (row + (int)row0 >= lo && row + (int)row0 < hi);
#pragma unroll
            for (int c = 0; c < D / 8; c += 8)
                if ((WHOLE && c + 8 <= D / 8) || (c + col) * 16 < row_bytes)
                    ptx_cp_async_16(to + row * kv_tile<D>::STRIDE + c * 16, valid ? from + r * row_bytes + c * 16 : none, valid ? 16 : 0);
        }
    }
}
template <int D, int ROWS, int T, class SRC>
static __device__ __forceinline__ void kv_copy16(unsigned char *tile, const SRC &src, const void *none, uint32_t n, int lo, int hi, uint32_t t)
{
    if (lo <= 0 && hi >= ROWS && n == D)
        kv_copy16_rows<D, ROWS, T, true>(tile, src, none, n, lo, hi, t);
    else
        kv_copy16_rows<D, ROWS, T, false>(tile, src, none, n, lo, hi, t);
}
/* The same of 8-bit types: pages as they are, one after the other. */
template <int ROWS, int T, class SRC>
static __device__ __forceinline__ void kv_copy8(unsigned char *raw, const SRC &src, uint32_t row_bytes, int lo, int hi, uint32_t t)
{
    for (int page = 0; page < ROWS / KV_PAGE; page++)
        if (page * KV_PAGE < hi && page * KV_PAGE + KV_PAGE > lo) {
            const uint8_t *from = src(page);
            for (uint32_t c = t * 16; c < KV_PAGE * row_bytes; c += T * 16)
                ptx_cp_async_16(raw + page * KV_PAGE * row_bytes + c, from + c, 16);
        }
}

/* Block b (of 34 bytes) of raw rows as 32 f16 at out. Every other block stands 2 bytes off a word. */
static __device__ __forceinline__ void kv_widen_q8_block(const unsigned char *raw, uint32_t b, unsigned char *out)
{
    const uint32_t *w = (const uint32_t *)(raw + (b * 34 & ~3u));
    bool odd = b & 1;
    uint32_t last = w[0];
    __half2 d = ptx_half2((odd ? last >> 16 : last & 0xffff) * 0x10001u);
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        uint32_t w0 = w[2 * i + 1], w1 = w[2 * i + 2];
        uint2 a = kv_widen_q8x4(odd ? w0 : __funnelshift_r(last, w0, 16), d), c = kv_widen_q8x4(odd ? w1 : __funnelshift_r(w0, w1, 16), d);
        *(uint4 *)(out + 16 * i) = make_uint4(a.x, a.y, c.x, c.y);
        last = w1;
    }
}
/* Raw rows become the tile's; rows outside [lo, hi) zeros. q8_0: T / ROWS threads a row, fp8: 8 a row. */
template <int D, int ROWS, int T>
static __device__ __forceinline__ void kv_widen(enum kv_type type, unsigned char *tile, const unsigned char *raw, uint32_t n, int lo, int hi, uint32_t t)
{
    static_assert(T >= ROWS && T % ROWS == 0, "");
    constexpr uint32_t STRIDE = kv_tile<D>::STRIDE;
    const uint4 zero = make_uint4(0, 0, 0, 0);
    if (type == KV_Q8_0) {
        const uint32_t by = T / ROWS;
        uint32_t row = t / by, blocks = n / 32;
        bool valid = (int)row >= lo && (int)row < hi;
        for (uint32_t c = t % by; c < blocks; c += by) {
            unsigned char *out = tile + row * STRIDE + c * 64;
            if (valid)
                kv_widen_q8_block(raw, row * blocks + c, out);
            else
                for (uint32_t i = 0; i < 4; i++)
                    *(uint4 *)(out + 16 * i) = zero;
        }
        return;
    }
    unsigned char *to = tile + t / 8 * STRIDE + t % 8 * 16;
    raw += t / 8 * n + t % 8 * 8;
#pragma unroll 4
    for (int r = 0; r < ROWS; r += T / 8) {
        bool valid = r + (int)(t / 8) >= lo && r + (int)(t / 8) < hi;
#pragma unroll
        for (int c = 0; c < D / 8; c += 8)
            if (c * 8 + t % 8 * 8 < n) {
                uint2 w = *(const uint2 *)(raw + r * n + c * 8), a = kv_widen_fp8x4(w.x), b = kv_widen_fp8x4(w.y);
                *(uint4 *)(to + r * STRIDE + c * 16) = valid ? make_uint4(a.x, a.y, b.x, b.y) : zero;
            }
    }
}

#endif
