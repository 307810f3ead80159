/* How a kernel writes activations (struct cuda_act, cuda.h): four neighbours at a time, and for f16 with the token's power of two taken out. */
#ifndef KERNELS_CUDA_ACT_CUH
#define KERNELS_CUDA_ACT_CUH

#include "kernels/cuda/launch.cuh"

#include "base/fmath.h"
#include "kernels/cuda/cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr uint32_t ACT_INF = 0x7f800000u;
/* The largest value of a token in f16 lies in [2^13, 2^14): 4 times below the format's end, and what is 2^-27 of it is no denormal yet. */
constexpr int32_t ACT_F16_TOP = 13;

/* The power of two that is taken out of a token, from the bits of its largest magnitude: 2^(exponent - ACT_F16_TOP), no smaller than the least normal number; 1 for
 * a row of zeros; NaN for a row with something that is not finite, so that all that is made of it is NaN. */
static __device__ __forceinline__ float act_scale(uint32_t top)
{
    if (top >= ACT_INF)
        return fm_from_bits(0x7fc00000);
    int32_t e = (int32_t)(top >> 23) - ACT_F16_TOP; /* biased */
    return top == 0 ? 1.0f : fm_from_bits((e < 1 ? 1 : e) << 23);
}
/* 1 / scale, exactly: of biased exponents e and 254 - e. */
static __device__ __forceinline__ float act_inverse(float scale)
{
    return scale != scale ? scale : fm_from_bits(0x7f000000 - fm_bits(scale));
}

/* x[4 group ..] = v; f16: times inverse. */
template <cuda_type T> static __device__ __forceinline__ void act_store(void *x, size_t group, float4 v, float inverse)
{
    if (T == CUDA_F32) {
        ((float4 *)x)[group] = v;
        return;
    }
    union {
        __half h[4];
        __nv_bfloat16 b[4];
        uint2 both;
    } out;
    if (T == CUDA_F16) {
        out.h[0] = __float2half_rn(v.x * inverse);
        out.h[1] = __float2half_rn(v.y * inverse);
        out.h[2] = __float2half_rn(v.z * inverse);
        out.h[3] = __float2half_rn(v.w * inverse);
    } else {
        out.b[0] = __float2bfloat16_rn(v.x);
        out.b[1] = __float2bfloat16_rn(v.y);
        out.b[2] = __float2bfloat16_rn(v.z);
        out.b[3] = __float2bfloat16_rn(v.w);
    }
    ((uint2 *)x)[group] = out.both;
}

#endif
