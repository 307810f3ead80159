/* What kernels see of the emulator: CUDA's built-in variables and functions, as the CUDA C++ Programming Guide (13.0) describes them, for .cu files that are
 * compiled as C++20 with -DRACKLM_EMU. Types, and conversions and arithmetic of f16, bf16 and fp8, are the toolkit's own headers; what they have for the
 * device only is added here when a kernel needs it. Instructions of ptx.cuh call the functions of namespace emu below.
 *
 * Every warp-wide function is a meeting (engine.cc): the lanes named in its mask leave pointers to their operands, the last one that comes does the work
 * for all. Two things are stricter than a GPU: a lane that has left the kernel is missed by a mask that names it, and __syncthreads of one
 * phase is one place in the source (the guide: "only if the conditional evaluates identically across the entire thread block"). */
#ifndef TESTS_GPU_EMU_KERNEL_H
#define TESTS_GPU_EMU_KERNEL_H

#include "tests/gpu/emu/emu.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <source_location>
#include <tuple>
#include <type_traits>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

namespace emu {

using here = std::source_location; /* of a call, by default arguments: which barrier, which shuffle */

struct block_view {
    uint3 block_idx;
    dim3 block_dim, grid_dim;
    unsigned char *smem;
    size_t smem_bytes;
    struct race_block *race; /* races.cc's */
};
struct thread_view {
    uint3 thread_idx;
    uint32_t lane_idx, thread; /* in the warp, in the block */
    const block_view *block;
};
/* The thread that runs; nullptr outside of kernels. */
extern thread_view *self;

/* A warp-wide function. aligned: as PTX's .aligned, all 32 lanes at one place. */
struct warp_op {
    const char *name;
    void (*run)(void *const *args, uint32_t mask); /* args[lane] for the lanes of mask */
    bool aligned;
};
void meet(const warp_op *op, uint32_t mask, void *arg, here at);

enum class vote { none, count, all, any };
uint32_t barrier(vote v, bool predicate, here at);

/* After a load that may be one of a loop that waits for memory: lets others run when the value is what it was the last time. */
void polled(const volatile void *addr, uint64_t value);
/* After a store that another thread may wait for. */
void wrote();
void yield();

/* Ends the kernel: reports what (printf) with kernel, block, thread. */
[[noreturn]] void fail(fault f, const char *what, ...) __attribute__((format(printf, 2, 3)));

/* A shared-memory address that an instruction names: inside of the block's, aligned. */
void check_shared(const void *p, uint32_t bytes, const char *what);

void cp_async(void *dst, const void *src, uint32_t bytes, uint32_t src_bytes);
void cp_async_commit();
void cp_async_wait(uint32_t groups_left);
void cp_async_wait_all();

void ldmatrix(uint32_t *r, uint32_t n, bool trans, const void *row, here at);
enum class mma_type { f16, bf16, tf32, e4m3, s8 };
/* d += a * b, by the shapes of ptx.cuh. d: 4 floats, or 4 int32 */
void mma(mma_type type, void *d, const uint32_t *a, uint32_t b0, uint32_t b1, here at);

uint64_t clock_ns();

template <class T> inline T poison()
{
    T v;
    memset(static_cast<void *>(&v), 0xff, sizeof v);
    return v;
}

/* ---- shuffles */
enum class shfl_mode { idx, up, down, bfly };
template <class T> struct shfl_arg {
    T value;
    uint32_t src;
};
template <class T> void shfl_run(void *const *args, uint32_t mask)
{
    T out[32];
    for (uint32_t i = 0; i < 32; i++) {
        if (!(mask >> i & 1))
            continue;
        uint32_t src = static_cast<shfl_arg<T> *>(args[i])->src;
        out[i] = mask >> src & 1 ? static_cast<shfl_arg<T> *>(args[src])->value : poison<T>(); /* undefined by the guide */
    }
    for (uint32_t i = 0; i < 32; i++)
        if (mask >> i & 1)
            static_cast<shfl_arg<T> *>(args[i])->value = out[i];
}
template <class T, shfl_mode mode> inline constexpr warp_op shfl_op = {
    mode == shfl_mode::idx ? "__shfl_sync" : mode == shfl_mode::up ? "__shfl_up_sync" : mode == shfl_mode::down ? "__shfl_down_sync" : "__shfl_xor_sync",
    shfl_run<T>, false};
template <class T, shfl_mode mode> inline T shfl(uint32_t mask, T value, uint32_t by, uint32_t width, here at)
{
    static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8);
    uint32_t lane = self->lane_idx, seg = lane & ~(width - 1), src;
    if constexpr (mode == shfl_mode::idx)
        src = seg | (by & (width - 1));
    else if constexpr (mode == shfl_mode::up)
        src = lane - seg >= by ? lane - by : lane;
    else if constexpr (mode == shfl_mode::down)
        src = by < width && lane + by < seg + width ? lane + by : lane;
    else
        src = (lane ^ by) < seg + width ? lane ^ by : lane;
    shfl_arg<T> arg = {value, src};
    meet(&shfl_op<T, mode>, mask, &arg, at);
    return arg.value;
}

/* ---- votes and reductions: every lane gets one 32-bit result */
struct vote_arg {
    uint32_t value;
};
template <class F> inline void all_get(void *const *args, uint32_t mask, F &&combine)
{
    uint32_t r = 0, first = 1;
    for (uint32_t i = 0; i < 32; i++)
        if (mask >> i & 1) {
            uint32_t v = static_cast<vote_arg *>(args[i])->value;
            r = first ? v : combine(r, v);
            first = 0;
        }
    for (uint32_t i = 0; i < 32; i++)
        if (mask >> i & 1)
            static_cast<vote_arg *>(args[i])->value = r;
}
#define EMU_REDUCTION(name, expr)                                                                                              \
    inline constexpr warp_op name##_op = {                                                                                     \
        "__" #name "_sync", [](void *const *args, uint32_t mask) { all_get(args, mask, [](uint32_t a, uint32_t b) { return uint32_t(expr); }); }, false};
EMU_REDUCTION(ballot, a | b)
EMU_REDUCTION(any, a | b)
EMU_REDUCTION(all, a & b)
EMU_REDUCTION(reduce_add, a + b)
EMU_REDUCTION(reduce_and, a & b)
EMU_REDUCTION(reduce_or, a | b)
EMU_REDUCTION(reduce_xor, a ^ b)
EMU_REDUCTION(reduce_min_u, a < b ? a : b)
EMU_REDUCTION(reduce_max_u, a > b ? a : b)
EMU_REDUCTION(reduce_min_s, int32_t(a) < int32_t(b) ? a : b)
EMU_REDUCTION(reduce_max_s, int32_t(a) > int32_t(b) ? a : b)
#undef EMU_REDUCTION
inline uint32_t vote_of(const warp_op *op, uint32_t mask, uint32_t value, here at)
{
    vote_arg arg = {value};
    meet(op, mask, &arg, at);
    return arg.value;
}
inline constexpr warp_op syncwarp_op = {"__syncwarp", [](void *const *, uint32_t) {}, false};

template <class T> inline uint64_t bits_of(T v)
{
    uint64_t b = 0;
    memcpy(&b, &v, sizeof v);
    return b;
}
/* One that changes nothing is a look at memory. */
template <class T, class F> inline T atomic_update(T *p, F &&f)
{
    T old, now;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do {
        now = f(old);
    } while (!__atomic_compare_exchange(p, &old, &now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    if (bits_of(old) != bits_of(now))
        wrote();
    else
        polled(p, bits_of(old));
    return old;
}
template <class A, class B> inline A bit_cast(B b)
{
    static_assert(sizeof(A) == sizeof(B));
    A a;
    memcpy(static_cast<void *>(&a), &b, sizeof a);
    return a;
}

/* Stricter than a GPU, which finds out when the kernel uses it: a pointer that a kernel is given is NULL or of memory that it may use. */
template <class T> inline bool pointer_fits(const char *name, const T &v)
{
    if constexpr (std::is_pointer_v<T> && !std::is_function_v<std::remove_pointer_t<T>>) {
        if (v != nullptr && !device_accessible(const_cast<const void *>(static_cast<const volatile void *>(v)), true)) {
            fprintf(stderr, "emu: kernel %s is given %p, which is no memory of a device, nor pinned\n", name, (const volatile void *)v);
            return false;
        }
    }
    return true;
}

template <class... P, class... A>
inline cudaError_t launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t smem, cudaStream_t stream, A... args)
{
    std::tuple<P...> bound(static_cast<P>(args)...);
    if (!std::apply([name](const P &...p) { return (pointer_fits(name, p) && ...); }, bound))
        return cudaErrorInvalidValue;
    return enqueue_kernel({name, grid, block, smem, [kernel, bound] { std::apply(kernel, bound); }}, stream);
}

} // namespace emu

#define LAUNCH(kernel, grid, block, smem, stream, ...) emu::launch(#kernel, kernel, grid, block, smem, stream, __VA_ARGS__)
#define __launch_bounds__(...)
#undef __shared__
#define __shared__ shared_memory_is_dynamic_here_see_launch_cuh

#define threadIdx (emu::self->thread_idx)
#define blockIdx (emu::self->block->block_idx)
#define blockDim (emu::self->block->block_dim)
#define gridDim (emu::self->block->grid_dim)
inline constexpr int warpSize = 32;
static inline unsigned char *smem_base()
{
    return emu::self->block->smem;
}

/* ---- barriers, warps */
static inline void __syncthreads(emu::here at = emu::here::current())
{
    emu::barrier(emu::vote::none, false, at);
}
static inline int __syncthreads_count(int p, emu::here at = emu::here::current())
{
    return int(emu::barrier(emu::vote::count, p != 0, at));
}
static inline int __syncthreads_and(int p, emu::here at = emu::here::current())
{
    return int(emu::barrier(emu::vote::all, p != 0, at));
}
static inline int __syncthreads_or(int p, emu::here at = emu::here::current())
{
    return int(emu::barrier(emu::vote::any, p != 0, at));
}
static inline void __syncwarp(uint32_t mask = 0xffffffff, emu::here at = emu::here::current())
{
    emu::meet(&emu::syncwarp_op, mask, nullptr, at);
}
template <class T> static inline T __shfl_sync(uint32_t mask, T v, int src, int width = 32, emu::here at = emu::here::current())
{
    return emu::shfl<T, emu::shfl_mode::idx>(mask, v, uint32_t(src), uint32_t(width), at);
}
template <class T> static inline T __shfl_up_sync(uint32_t mask, T v, unsigned by, int width = 32, emu::here at = emu::here::current())
{
    return emu::shfl<T, emu::shfl_mode::up>(mask, v, by, uint32_t(width), at);
}
template <class T> static inline T __shfl_down_sync(uint32_t mask, T v, unsigned by, int width = 32, emu::here at = emu::here::current())
{
    return emu::shfl<T, emu::shfl_mode::down>(mask, v, by, uint32_t(width), at);
}
template <class T> static inline T __shfl_xor_sync(uint32_t mask, T v, int by, int width = 32, emu::here at = emu::here::current())
{
    return emu::shfl<T, emu::shfl_mode::bfly>(mask, v, uint32_t(by), uint32_t(width), at);
}
static inline unsigned __ballot_sync(uint32_t mask, int p, emu::here at = emu::here::current())
{
    return emu::vote_of(&emu::ballot_op, mask, p ? 1u << emu::self->lane_idx : 0, at);
}
static inline int __any_sync(uint32_t mask, int p, emu::here at = emu::here::current())
{
    return int(emu::vote_of(&emu::any_op, mask, p != 0, at));
}
static inline int __all_sync(uint32_t mask, int p, emu::here at = emu::here::current())
{
    return int(emu::vote_of(&emu::all_op, mask, p != 0, at));
}
#define EMU_REDUCE(name, type, op)                                                                  \
    static inline type name(uint32_t mask, type v, emu::here at = emu::here::current())             \
    {                                                                                               \
        return type(emu::vote_of(&emu::op, mask, uint32_t(v), at));                                 \
    }
EMU_REDUCE(__reduce_add_sync, unsigned, reduce_add_op)
EMU_REDUCE(__reduce_add_sync, int, reduce_add_op)
EMU_REDUCE(__reduce_min_sync, unsigned, reduce_min_u_op)
EMU_REDUCE(__reduce_min_sync, int, reduce_min_s_op)
EMU_REDUCE(__reduce_max_sync, unsigned, reduce_max_u_op)
EMU_REDUCE(__reduce_max_sync, int, reduce_max_s_op)
EMU_REDUCE(__reduce_and_sync, unsigned, reduce_and_op)
EMU_REDUCE(__reduce_or_sync, unsigned, reduce_or_op)
EMU_REDUCE(__reduce_xor_sync, unsigned, reduce_xor_op)
#undef EMU_REDUCE

/* ---- memory. The order of one OS thread is kept, so fences have nothing to do but towards other processes. */
static inline void __threadfence()
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}
static inline void __threadfence_block()
{
    __threadfence();
}
static inline void __threadfence_system()
{
    __threadfence();
}
template <class T> static inline T __ldg(const T *p)
{
    return *p;
}
template <class T> static inline T __ldca(const T *p)
{
    return *p;
}
template <class T> static inline T __ldcg(const T *p)
{
    return *p;
}
template <class T> static inline T __ldcs(const T *p)
{
    return *p;
}
template <class T> static inline void __stcg(T *p, T v)
{
    *p = v;
}
template <class T> static inline void __stcs(T *p, T v)
{
    *p = v;
}

/* ---- atomics. The value's type follows from the pointer's, as with CUDA's overloads. */
#define EMU_ATOMIC(name, expr)                                                                      \
    template <class T> static inline T name(T *p, std::type_identity_t<T> v)                        \
    {                                                                                               \
        return emu::atomic_update(p, [v](T o) { return T(expr); });                                 \
    }                                                                                               \
    template <class T> static inline T name##_block(T *p, std::type_identity_t<T> v)                \
    {                                                                                               \
        return name(p, v);                                                                          \
    }                                                                                               \
    template <class T> static inline T name##_system(T *p, std::type_identity_t<T> v)               \
    {                                                                                               \
        return name(p, v);                                                                          \
    }
EMU_ATOMIC(atomicAdd, o + v)
EMU_ATOMIC(atomicSub, o - v)
EMU_ATOMIC(atomicMax, o > v ? o : v)
EMU_ATOMIC(atomicMin, o < v ? o : v)
EMU_ATOMIC(atomicExch, ((void)o, v))
EMU_ATOMIC(atomicAnd, o &v)
EMU_ATOMIC(atomicOr, o | v)
EMU_ATOMIC(atomicXor, o ^ v)
EMU_ATOMIC(atomicInc, o >= v ? 0 : o + 1)
EMU_ATOMIC(atomicDec, o == 0 || o > v ? v : o - 1)
#undef EMU_ATOMIC
template <class T> static inline T atomicCAS(T *p, std::type_identity_t<T> compare, std::type_identity_t<T> v)
{
    return emu::atomic_update(p, [=](T o) { return o == compare ? v : o; });
}

/* ---- time, ends */
static inline long long clock64()
{
    return (long long)emu::clock_ns();
}
static inline void __nanosleep(unsigned)
{
    emu::yield();
}
[[noreturn]] static inline void __trap()
{
    emu::fail(emu::fault::trap, "__trap()");
}

/* ---- integers */
static inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++)
        c = int(unsigned(c) + unsigned(int8_t(a >> 8 * i) * int8_t(b >> 8 * i)));
    return c;
}
static inline unsigned __dp4a(unsigned a, unsigned b, unsigned c)
{
    for (int i = 0; i < 4; i++)
        c += (a >> 8 * i & 255) * (b >> 8 * i & 255);
    return c;
}
static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}
static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}
static inline int __clz(int x)
{
    return x ? __builtin_clz(unsigned(x)) : 32;
}
static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}
static inline unsigned __brev(unsigned x)
{
    unsigned r = 0;
    for (int i = 0; i < 32; i++)
        r |= (x >> i & 1) << (31 - i);
    return r;
}
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned sel)
{
    uint64_t v = a | uint64_t(b) << 32;
    unsigned r = 0;
    for (int i = 0; i < 4; i++)
        r |= unsigned(v >> 8 * (sel >> 4 * i & 7) & 255) << 8 * i;
    return r;
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n)
{
    return unsigned((uint64_t(hi) << 32 | lo) << (n & 31) >> 32);
}
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n)
{
    return unsigned((uint64_t(hi) << 32 | lo) >> (n & 31));
}
static inline unsigned __umulhi(unsigned a, unsigned b)
{
    return unsigned(uint64_t(a) * b >> 32);
}
static inline int __mulhi(int a, int b)
{
    return int(int64_t(a) * b >> 32);
}
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b)
{
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
template <class A, class B> static constexpr inline auto min(A a, B b) -> std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>>
{
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>)
        return std::fmin(T(a), T(b));
    else
        return T(a) < T(b) ? T(a) : T(b);
}
template <class A, class B> static constexpr inline auto max(A a, B b) -> std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>>
{
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>)
        return std::fmax(T(a), T(b));
    else
        return T(a) > T(b) ? T(a) : T(b);
}

/* ---- bits */
static inline unsigned __float_as_uint(float x)
{
    return emu::bit_cast<unsigned>(x);
}
static inline int __float_as_int(float x)
{
    return emu::bit_cast<int>(x);
}
static inline float __uint_as_float(unsigned x)
{
    return emu::bit_cast<float>(x);
}
static inline float __int_as_float(int x)
{
    return emu::bit_cast<float>(x);
}
static inline long long __double_as_longlong(double x)
{
    return emu::bit_cast<long long>(x);
}
static inline double __longlong_as_double(long long x)
{
    return emu::bit_cast<double>(x);
}

/* ---- conversions: to nearest even; they saturate and make 0 of NaN, as cvt does. */
static inline int __float2int_rn(float x)
{
    return x != x ? 0 : x >= 2147483648.0f ? INT32_MAX : x <= -2147483648.0f ? INT32_MIN : int(std::nearbyint(x));
}
static inline int __float2int_rz(float x)
{
    return x != x ? 0 : x >= 2147483648.0f ? INT32_MAX : x <= -2147483648.0f ? INT32_MIN : int(x);
}
static inline unsigned __float2uint_rn(float x)
{
    return !(x > 0) ? 0 : x >= 4294967296.0f ? UINT32_MAX : unsigned(std::nearbyint(x));
}
static inline unsigned __float2uint_rz(float x)
{
    return !(x > 0) ? 0 : x >= 4294967296.0f ? UINT32_MAX : unsigned(x);
}
static inline float __int2float_rn(int x)
{
    return float(x);
}
static inline float __uint2float_rn(unsigned x)
{
    return float(x);
}

/* ---- mathematics. The host's libm stands for CUDA's: tolerances are the tests', and the approximate forms are exact here. */
static inline float rsqrtf(float x)
{
    return float(1.0 / std::sqrt(double(x)));
}
static inline double rsqrt(double x)
{
    return 1.0 / std::sqrt(x);
}
static inline float __saturatef(float x)
{
    return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f;
}
static inline float __fdividef(float a, float b)
{
    return a / b;
}
static inline float __fadd_rn(float a, float b)
{
    return a + b;
}
static inline float __fsub_rn(float a, float b)
{
    return a - b;
}
static inline float __fmul_rn(float a, float b)
{
    return a * b;
}
static inline float __fdiv_rn(float a, float b)
{
    return a / b;
}
static inline float __fsqrt_rn(float a)
{
    return std::sqrt(a);
}
static inline float __frcp_rn(float a)
{
    return 1.0f / a;
}
static inline float __frsqrt_rn(float a)
{
    return rsqrtf(a);
}
static inline float __fmaf_rn(float a, float b, float c)
{
    return std::fma(a, b, c);
}
/* glibc's headers own these names as functions. */
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanhf(x) tanhf(x)
#define __sincosf(x, s, c) sincosf(x, s, c)

/* ---- what the toolkit's f16 and bf16 headers have for the device only: one rounding of the exact result. fp32 cannot round an fma of f16 twice wrongly
 * through double: 22 bits of product and the addend fit 53 but for addends so small or large that they only set the sticky bit. */
static inline __half __hfma(__half a, __half b, __half c)
{
    return __double2half(std::fma(double(__half2float(a)), double(__half2float(b)), double(__half2float(c))));
}
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c)
{
    return __halves2half2(__hfma(__low2half(a), __low2half(b), __low2half(c)), __hfma(__high2half(a), __high2half(b), __high2half(c)));
}
static inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c)
{
    return __double2bfloat16(std::fma(double(__bfloat162float(a)), double(__bfloat162float(b)), double(__bfloat162float(c))));
}
static inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c)
{
    return __halves2bfloat162(__hfma(__low2bfloat16(a), __low2bfloat16(b), __low2bfloat16(c)),
                              __hfma(__high2bfloat16(a), __high2bfloat16(b), __high2bfloat16(c)));
}

#endif
