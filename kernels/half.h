/* Narrow floats as stored in files and in the KV cache: IEEE binary16, bfloat16 and e4m3 (OCP 8-bit Floating Point Specification,
 * revision 1.0), by integer arithmetic, so that every compiler and machine gives the same bits. All narrowings round to nearest, ties to even. */
#ifndef KERNELS_HALF_H
#define KERNELS_HALF_H

#include <stdint.h>
#include <string.h>

static inline float half_bits_f32(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint32_t half_f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* binary16 -> fp32, exact. The exponent is rebased by a multiplication, which also normalises denormals; a NaN turns
 * quiet, as in the hardware's conversion. */
static inline float half_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13;
    if ((h & 0x7c00) == 0x7c00)
        return half_bits_f32(sign | 0x7f800000u | (rest & 0x007fffffu) | ((h & 0x3ff) ? 0x00400000u : 0));
    return half_bits_f32(sign | half_f32_bits(half_bits_f32(rest) * 0x1p112f));
}
/* fp32 -> binary16; beyond the range gives infinity. */
static inline uint16_t half_to_f16(float f)
{
    uint32_t u = half_f32_bits(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
    if (a > 0x7f800000)
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000)
        return (uint16_t)(sign | 0x7c00);
    if (a < 0x38800000) /* a denormal result: adding 0.5 puts its last bit at 2^-24, the rounding is the adder's */
        return (uint16_t)(sign | (half_f32_bits(half_bits_f32(a) + 0.5f) - 0x3f000000u));
    return (uint16_t)(sign | ((a - 0x38000000u + 0xfff + (a >> 13 & 1)) >> 13));
}

static inline float half_from_bf16(uint16_t h)
{
    return half_bits_f32((uint32_t)h << 16);
}
static inline uint16_t half_to_bf16(float f)
{
    uint32_t u = half_f32_bits(f);
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* e4m3: bias 7, no infinities, the largest is 448, all ones is NaN. */
static inline float half_from_e4m3(uint8_t b)
{
    if ((b & 0x7f) == 0x7f)
        return half_bits_f32(0x7fc00000u);
    return half_bits_f32((uint32_t)(b & 0x80) << 24 | half_f32_bits(half_bits_f32((uint32_t)(b & 0x7f) << 20) * 0x1p120f));
}
/* Saturating: what is larger, infinity too, becomes 448 of its sign. A NaN is 0x7f, as in PTX's cvt.rn.satfinite.e4m3x2.f32. */
static inline uint8_t half_to_e4m3(float f)
{
    uint32_t u = half_f32_bits(f), sign = u >> 24 & 0x80, a = u & 0x7fffffff;
    if (a > 0x7f800000)
        return 0x7f;
    if (a >= 0x43e00000) /* 448 */
        return (uint8_t)(sign | 0x7e);
    if (a < 0x3c800000) /* a denormal result: adding 2^14 puts its last bit at 2^-9, the rounding is the adder's */
        return (uint8_t)(sign | (half_f32_bits(half_bits_f32(a) + 0x1p14f) - 0x46800000u));
    return (uint8_t)(sign | ((a - 0x3c000000u + 0x7ffff + (a >> 20 & 1)) >> 20));
}

static inline uint16_t half_load16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}

#endif
