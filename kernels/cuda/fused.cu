/* The elementwise parts between matrices: residual and norm, SwiGLU, activations in the form a matrix takes them, rotations, rows by index. A block a token,
 * 4 values a thread at a time, so that a warp reads 512 bytes and writes 256 (f16, bf16) in a piece; the first KEEP groups of a thread stay in registers between
 * the passes over a row, and only rows beyond 4 * KEEP * 1024 values are read twice.
 *
 * The number of threads, and so the order of every sum, depends on the length of a row alone: a token has the same bits in any batch. */
#include "kernels/cuda/act.cuh"

#include "base/check.h"

namespace
{

constexpr uint32_t KEEP = 4, THREADS_MAX = 1024;

uint32_t threads_for(uint32_t k)
{
    return MIN(MAX(ROUND_UP(k / 8, 32u), 32u), THREADS_MAX); /* two groups of 4 each, as far as a block goes */
}

__device__ __forceinline__ float warp_sum(float v)
{
    for (uint32_t d = 16; d > 0; d /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
__device__ __forceinline__ uint32_t warp_max(uint32_t v)
{
    for (uint32_t d = 16; d > 0; d /= 2) {
        uint32_t o = __shfl_xor_sync(0xffffffffu, v, d);
        v = o > v ? o : v;
    }
    return v;
}
/* Over the block, to every thread; part: [32] of shared memory, one for each reduction of a kernel. */
__device__ __forceinline__ float block_sum(float v, float *part)
{
    uint32_t lane = threadIdx.x % 32, warps = blockDim.x / 32;
    v = warp_sum(v);
    if (lane == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_sum(lane < warps ? part[lane] : 0.0f);
}
__device__ __forceinline__ uint32_t block_max(uint32_t v, uint32_t *part)
{
    uint32_t lane = threadIdx.x % 32, warps = blockDim.x / 32;
    v = warp_max(v);
    if (lane == 0)
        part[threadIdx.x / 32] = v;
    __syncthreads();
    return warp_max(lane < warps ? part[lane] : 0u);
}

/* Magnitudes as bits: they compare like the numbers, and infinities and NaN are above all of these, so that a maximum never loses one. */
__device__ __forceinline__ uint32_t magnitude(float4 v)
{
    uint32_t a = (uint32_t)fm_bits(v.x) & 0x7fffffffu, b = (uint32_t)fm_bits(v.y) & 0x7fffffffu, c = (uint32_t)fm_bits(v.z) & 0x7fffffffu,
             d = (uint32_t)fm_bits(v.w) & 0x7fffffffu;
    a = a > b ? a : b;
    c = c > d ? c : d;
    return a > c ? a : c;
}

template <cuda_type T>
__device__ __forceinline__ void *row_of(void *x, uint32_t k)
{
    return (unsigned char *)x + (size_t)blockIdx.x * k * (T == CUDA_F32 ? 4 : 2);
}

/* A row whose groups of 4 are value(group), pure: written as T, for f16 with its power of two taken out. kept: the thread's first KEEP groups. */
template <cuda_type T, typename V>
__device__ __forceinline__ void write_row(const float4 *kept, V value, uint32_t k, void *x, float *scale, uint32_t *part)
{
    uint32_t groups = k / 4;
    float inverse = 1.0f;
    if (T == CUDA_F16) {
        uint32_t top = 0;
#pragma unroll
        for (uint32_t u = 0; u < KEEP; u++) {
            uint32_t m = threadIdx.x + u * blockDim.x < groups ? magnitude(kept[u]) : 0u;
            top = m > top ? m : top;
        }
        for (uint32_t g = threadIdx.x + KEEP * blockDim.x; g < groups; g += blockDim.x) {
            uint32_t m = magnitude(value(g));
            top = m > top ? m : top;
        }
        float s = act_scale(block_max(top, part));
        inverse = act_inverse(s);
        if (threadIdx.x == 0)
            scale[blockIdx.x] = s;
    }
    void *row = row_of<T>(x, k);
#pragma unroll
    for (uint32_t u = 0; u < KEEP; u++)
        if (threadIdx.x + u * blockDim.x < groups)
            act_store<T>(row, threadIdx.x + u * blockDim.x, kept[u], inverse);
    for (uint32_t g = threadIdx.x + KEEP * blockDim.x; g < groups; g += blockDim.x)
        act_store<T>(row, g, value(g), inverse);
}

/* x += add; out = x * w / sqrt(mean(x^2) + eps).
 * Grid: n tokens; block: threads_for(dim); x, add, w, out 16-byte aligned, rows dense. Thread t owns groups t, t + threads, ...
 * Bytes a token: 12 dim (x, add; x back) + 2 dim (out); operations: 7 dim. Bound by memory, and by latency for few tokens; expected 80% of copy bandwidth from 64
 * tokens on. Oracle: ref_f32 rmsnorm. */
template <cuda_type T, bool NORM>
__global__ void __launch_bounds__(THREADS_MAX, 1) add_norm_kernel(float *x, const float *add, const float *w, float eps, uint32_t dim, void *out, float *scale)
{
    float *part = (float *)smem_base();
    float4 *row = (float4 *)(x + (size_t)blockIdx.x * dim), kept[KEEP];
    const float4 *more = (const float4 *)(add + (add ? (size_t)blockIdx.x * dim : 0));
    uint32_t groups = dim / 4;
    float sum = 0.0f;
    auto load = [=](uint32_t g) {
        float4 v = row[g];
        if (add) {
            float4 a = more[g];
            v = make_float4(v.x + a.x, v.y + a.y, v.z + a.z, v.w + a.w);
            row[g] = v;
        }
        return v;
    };
    auto square = [](float4 v, float s) { return fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, s)))); };
#pragma unroll
    for (uint32_t u = 0; u < KEEP; u++) {
        kept[u] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (threadIdx.x + u * blockDim.x < groups) {
            kept[u] = load(threadIdx.x + u * blockDim.x);
            sum = square(kept[u], sum);
        }
    }
    for (uint32_t g = threadIdx.x + KEEP * blockDim.x; g < groups; g += blockDim.x)
        sum = square(load(g), sum);
    if (!NORM)
        return;
    sum = block_sum(sum, part);
    /* A sum that overflowed would make zeros of everything. */
    float r = sum < fm_from_bits(ACT_INF) ? 1.0f / sqrtf(sum / (float)dim + eps) : fm_from_bits(0x7fc00000);
    auto normed = [=](float4 v, uint32_t g) {
        float4 f = ((const float4 *)w)[g];
        return make_float4((v.x * r) * f.x, (v.y * r) * f.y, (v.z * r) * f.z, (v.w * r) * f.w);
    };
#pragma unroll
    for (uint32_t u = 0; u < KEEP; u++)
        if (threadIdx.x + u * blockDim.x < groups)
            kept[u] = normed(kept[u], threadIdx.x + u * blockDim.x);
    write_row<T>(kept, [=](uint32_t g) { return normed(row[g], g); }, dim, out, scale, (uint32_t *)part + 32);
}

/* out = x, or silu(x) * up = x * (1 / (1 + exp(-x))) * up, left to right.
 * Grid: n tokens; block: threads_for(k); row strides of x and up are multiples of 4 floats. Thread t owns groups t, t + threads, ...
 * Bytes a token: 4 k (8 k with up) + 2 k; operations: k, or about 30 k. Bound by memory; expected 80% of copy bandwidth from 64 tokens on.
 * Oracle: ref_f32 swiglu. */
template <cuda_type T, bool SWIGLU>
__global__ void __launch_bounds__(THREADS_MAX, 1) act_kernel(const float *x, const float *up, size_t stride, uint32_t k, void *out, float *scale)
{
    float4 kept[KEEP];
    const float4 *row = (const float4 *)(x + blockIdx.x * stride), *other = (const float4 *)(up + (SWIGLU ? blockIdx.x * stride : 0));
    auto silu = [](float g, float u) { return g * (1.0f / (1.0f + fm_exp(-g))) * u; };
    auto value = [=](uint32_t g) {
        float4 v = row[g];
        if (!SWIGLU)
            return v;
        float4 u = other[g];
        return make_float4(silu(v.x, u.x), silu(v.y, u.y), silu(v.z, u.z), silu(v.w, u.w));
    };
#pragma unroll
    for (uint32_t u = 0; u < KEEP; u++) {
        kept[u] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (threadIdx.x + u * blockDim.x < k / 4)
            kept[u] = value(threadIdx.x + u * blockDim.x);
    }
    write_row<T>(kept, value, k, out, scale, (uint32_t *)smem_base());
}

/* cos, sin of pos * inv_freq in double, times magnitude. Grid: n tokens; thread j owns frequencies j, j + threads, ... Bytes a token: 16 half; bound by
 * double precision (about 60 operations an angle), 4096 tokens of 64 angles a step at most; runs once a step. Expected: 50% of
 * the double-precision rate in prefill, the launch alone in decode. Oracle: libm in double. */
__global__ void __launch_bounds__(128) rotations_kernel(const uint32_t *pos, const double *inv_freq, uint32_t half, float magnitude, float *cos_out,
                                                       float *sin_out)
{
    double at = (double)pos[blockIdx.x];
    for (uint32_t j = threadIdx.x; j < half; j += blockDim.x) {
        double s, c;
        sincos(at * inv_freq[j], &s, &c);
        cos_out[(size_t)blockIdx.x * half + j] = (float)(c * (double)magnitude);
        sin_out[(size_t)blockIdx.x * half + j] = (float)(s * (double)magnitude);
    }
}

/* out[i] = x[index[i]]. Grid: n rows; 16 bytes a thread at a time. Bytes a row: 8 dim; expected 80% of copy bandwidth. Oracle: memcpy. */
__global__ void __launch_bounds__(256) gather_kernel(const float *x, const uint32_t *index, uint32_t dim, float *out)
{
    uint32_t from = index[blockIdx.x];
    if (from == UINT32_MAX)
        return;
    const float4 *src = (const float4 *)(x + (size_t)from * dim);
    float4 *dst = (float4 *)(out + (size_t)blockIdx.x * dim);
    for (uint32_t g = threadIdx.x; g < dim / 4; g += blockDim.x)
        dst[g] = src[g];
}

bool aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}
void check_act(const struct cuda_act *out)
{
    ASSERT(out->k > 0 && out->k % 8 == 0 && aligned(out->x) && (out->type != CUDA_F16 || out->scale));
}

template <bool NORM>
cudaError_t launch_add_norm(float *x, const float *add, const float *w, float eps, uint32_t n, uint32_t dim, const struct cuda_act *out, cudaStream_t stream)
{
    constexpr size_t SMEM = 2 * 32 * sizeof(float);
    dim3 grid(n), block(threads_for(dim));
    if (!NORM)
        return LAUNCH((add_norm_kernel<CUDA_F32, false>), grid, block, SMEM, stream, x, add, w, eps, dim, nullptr, nullptr);
    switch (out->type) {
    case CUDA_F16:
        return LAUNCH((add_norm_kernel<CUDA_F16, true>), grid, block, SMEM, stream, x, add, w, eps, dim, out->x, out->scale);
    case CUDA_BF16:
        return LAUNCH((add_norm_kernel<CUDA_BF16, true>), grid, block, SMEM, stream, x, add, w, eps, dim, out->x, nullptr);
    default:
        return LAUNCH((add_norm_kernel<CUDA_F32, true>), grid, block, SMEM, stream, x, add, w, eps, dim, out->x, nullptr);
    }
}

template <bool SWIGLU>
cudaError_t launch_act(const float *x, const float *up, size_t stride, const struct cuda_act *out, cudaStream_t stream)
{
    constexpr size_t SMEM = 32 * sizeof(uint32_t);
    check_act(out);
    ASSERT(aligned(x) && aligned(up) && stride % 4 == 0);
    if (out->n == 0)
        return cudaSuccess;
    dim3 grid(out->n), block(threads_for(out->k));
    switch (out->type) {
    case CUDA_F16:
        return LAUNCH((act_kernel<CUDA_F16, SWIGLU>), grid, block, SMEM, stream, x, up, stride, out->k, out->x, out->scale);
    case CUDA_BF16:
        return LAUNCH((act_kernel<CUDA_BF16, SWIGLU>), grid, block, SMEM, stream, x, up, stride, out->k, out->x, nullptr);
    default:
        return LAUNCH((act_kernel<CUDA_F32, SWIGLU>), grid, block, SMEM, stream, x, up, stride, out->k, out->x, nullptr);
    }
}

} // namespace

cuda_type cuda_act_type(enum quant type)
{
    return type == QUANT_F32 ? CUDA_F32 : type == QUANT_BF16 ? CUDA_BF16 : CUDA_F16;
}

cudaError_t cuda_rotations(const uint32_t *pos, uint32_t n, const double *inv_freq, uint32_t half, float magnitude, float *cos, float *sin,
                           cudaStream_t stream)
{
    if (n == 0 || half == 0)
        return cudaSuccess;
    return LAUNCH(rotations_kernel, dim3(n), dim3(MIN(ROUND_UP(half, 32u), 128u)), 0, stream, pos, inv_freq, half, magnitude, cos, sin);
}

cudaError_t cuda_add_norm(float *x, const float *add, const float *w, float eps, uint32_t n, uint32_t dim, const struct cuda_act *out, cudaStream_t stream)
{
    ASSERT(dim > 0 && dim % 8 == 0 && aligned(x) && aligned(add) && aligned(w));
    if (w) {
        check_act(out);
        ASSERT(out->n == n && out->k == dim);
    }
    if (n == 0 || (!add && !w))
        return cudaSuccess;
    return w ? launch_add_norm<true>(x, add, w, eps, n, dim, out, stream) : launch_add_norm<false>(x, add, w, eps, n, dim, out, stream);
}

cudaError_t cuda_act_from_f32(const float *x, size_t stride, const struct cuda_act *out, cudaStream_t stream)
{
    return launch_act<false>(x, nullptr, stride, out, stream);
}

cudaError_t cuda_swiglu(const float *gate, const float *up, size_t stride, const struct cuda_act *out, cudaStream_t stream)
{
    return launch_act<true>(gate, up, stride, out, stream);
}

cudaError_t cuda_gather_rows(const float *x, const uint32_t *index, uint32_t n, uint32_t dim, float *out, cudaStream_t stream)
{
    ASSERT(dim % 4 == 0 && aligned(x) && aligned(out));
    if (n == 0)
        return cudaSuccess;
    return LAUNCH(gather_kernel, dim3(n), dim3(MIN(ROUND_UP(MAX(dim / 4, 1u), 32u), 256u)), 0, stream, x, index, dim, out);
}
