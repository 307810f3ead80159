/* Instructions that CUDA C++ has no words for, each with its emulated twin (tests/gpu/emu; the work is in engine.cc) and its known-answer test (tests/gpu/emu/test_ptx.cc).
 * Source: PTX ISA 9.0. No asm stands anywhere else.
 *
 * Addresses are ordinary pointers; what must be shared memory is named smem. Warp-wide functions are to be reached by all 32 lanes together.
 *
 * Fragments, with g = lane / 4 and t = lane % 4 (9.7.15.5; a register holds neighbours in k, the lower one in its low bits):
 *   m16n8k16, 16-bit types   a[0] row g, k 2t..; a[1] row g+8; a[2] row g, k 2t+8..; a[3] row g+8, k 2t+8..; b0 column g, k 2t..; b1 k 2t+8..
 *   m16n8k32, 8-bit types    a[0] row g, k 4t..; a[1] row g+8; a[2] row g, k 4t+16..; a[3] row g+8, k 4t+16..; b0 column g, k 4t..; b1 k 4t+16..
 *   m16n8k8, tf32            a[0] row g, k t; a[1] row g+8; a[2] row g, k t+4; a[3] row g+8, k t+4; b0 column g, k t; b1 k t+4
 *   all: d[0], d[1] row g, columns 2t, 2t+1; d[2], d[3] row g+8. */
#ifndef KERNELS_CUDA_PTX_CUH
#define KERNELS_CUDA_PTX_CUH

#include "kernels/cuda/launch.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <stdint.h>
#include <string.h>

#ifdef RACKLM_EMU
#define PTX static inline
/* Where a warp-wide function was called, for reports. */
#define PTX_HERE , emu::here at = emu::here::current()
#else
#define PTX static __device__ __forceinline__
#define PTX_HERE
PTX uint32_t ptx_smem_u32(const void *smem)
{
    return (uint32_t)__cvta_generic_to_shared(smem);
}
#endif

/* ---- ldmatrix: 8x8 matrices of 16-bit elements. Lanes 8j .. 8j+7 give the rows of matrix j (16 bytes each, 16-byte aligned). r[j]: row g, columns 2t, 2t+1
 * of matrix j; _trans: of its transpose. */
#ifdef RACKLM_EMU
PTX void ptx_ldmatrix_x1(uint32_t &r, const void *smem PTX_HERE)
{
    emu::ldmatrix(&r, 1, false, smem, at);
}
PTX void ptx_ldmatrix_x2(uint32_t (&r)[2], const void *smem PTX_HERE)
{
    emu::ldmatrix(r, 2, false, smem, at);
}
PTX void ptx_ldmatrix_x4(uint32_t (&r)[4], const void *smem PTX_HERE)
{
    emu::ldmatrix(r, 4, false, smem, at);
}
PTX void ptx_ldmatrix_x1_trans(uint32_t &r, const void *smem PTX_HERE)
{
    emu::ldmatrix(&r, 1, true, smem, at);
}
PTX void ptx_ldmatrix_x2_trans(uint32_t (&r)[2], const void *smem PTX_HERE)
{
    emu::ldmatrix(r, 2, true, smem, at);
}
PTX void ptx_ldmatrix_x4_trans(uint32_t (&r)[4], const void *smem PTX_HERE)
{
    emu::ldmatrix(r, 4, true, smem, at);
}
#else
PTX void ptx_ldmatrix_x1(uint32_t &r, const void *smem)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(ptx_smem_u32(smem)) : "memory");
}
PTX void ptx_ldmatrix_x2(uint32_t (&r)[2], const void *smem)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(ptx_smem_u32(smem)) : "memory");
}
PTX void ptx_ldmatrix_x4(uint32_t (&r)[4], const void *smem)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(ptx_smem_u32(smem))
                 : "memory");
}
PTX void ptx_ldmatrix_x1_trans(uint32_t &r, const void *smem)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(ptx_smem_u32(smem)) : "memory");
}
PTX void ptx_ldmatrix_x2_trans(uint32_t (&r)[2], const void *smem)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(ptx_smem_u32(smem)) : "memory");
}
PTX void ptx_ldmatrix_x4_trans(uint32_t (&r)[4], const void *smem)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(ptx_smem_u32(smem))
                 : "memory");
}
#endif

/* ---- mma.sync: d += a * b, sums in fp32 or int32 (which wraps). */
#ifdef RACKLM_EMU
PTX void ptx_mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 PTX_HERE)
{
    emu::mma(emu::mma_type::f16, d, a, b0, b1, at);
}
PTX void ptx_mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 PTX_HERE)
{
    emu::mma(emu::mma_type::bf16, d, a, b0, b1, at);
}
PTX void ptx_mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 PTX_HERE)
{
    emu::mma(emu::mma_type::tf32, d, a, b0, b1, at);
}
PTX void ptx_mma_e4m3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 PTX_HERE)
{
    emu::mma(emu::mma_type::e4m3, d, a, b0, b1, at);
}
PTX void ptx_mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1 PTX_HERE)
{
    emu::mma(emu::mma_type::s8, d, a, b0, b1, at);
}
#else
#define PTX_MMA(shape_types, c, d, a, b0, b1)                                                                                                                  \
    asm("mma.sync.aligned." shape_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                                                     \
        : "+" c(d[0]), "+" c(d[1]), "+" c(d[2]), "+" c(d[3])                                                                                                   \
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1))
PTX void ptx_mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    PTX_MMA("m16n8k16.row.col.f32.f16.f16.f32", "f", d, a, b0, b1);
}
PTX void ptx_mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    PTX_MMA("m16n8k16.row.col.f32.bf16.bf16.f32", "f", d, a, b0, b1);
}
PTX void ptx_mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    PTX_MMA("m16n8k8.row.col.f32.tf32.tf32.f32", "f", d, a, b0, b1);
}
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890 /* a kernel that calls it exists from there on only */
PTX void ptx_mma_e4m3(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    PTX_MMA("m16n8k32.row.col.f32.e4m3.e4m3.f32", "f", d, a, b0, b1);
}
#endif
PTX void ptx_mma_s8(int32_t (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    PTX_MMA("m16n8k32.row.col.s32.s8.s8.s32", "r", d, a, b0, b1);
}
#endif

/* ---- cp.async: 4, 8 or 16 bytes from global to shared memory, both aligned to that; src_bytes (at most that many) are read and the rest is zeros, with 0
 * nothing is read. There after a wait of this thread, and for the others after a barrier too. The 16-byte form goes past L1. */
#ifdef RACKLM_EMU
PTX void ptx_cp_async_4(void *smem, const void *gmem, uint32_t src_bytes = 4)
{
    emu::cp_async(smem, gmem, 4, src_bytes);
}
PTX void ptx_cp_async_8(void *smem, const void *gmem, uint32_t src_bytes = 8)
{
    emu::cp_async(smem, gmem, 8, src_bytes);
}
PTX void ptx_cp_async_16(void *smem, const void *gmem, uint32_t src_bytes = 16)
{
    emu::cp_async(smem, gmem, 16, src_bytes);
}
PTX void ptx_cp_async_commit()
{
    emu::cp_async_commit();
}
/* Until at most n of this thread's latest groups are on their way. */
template <int n> PTX void ptx_cp_async_wait()
{
    emu::cp_async_wait(n);
}
PTX void ptx_cp_async_wait_all()
{
    emu::cp_async_wait_all();
}
#else
PTX void ptx_cp_async_4(void *smem, const void *gmem, uint32_t src_bytes = 4)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(ptx_smem_u32(smem)), "l"(__cvta_generic_to_global(gmem)), "r"(src_bytes) : "memory");
}
PTX void ptx_cp_async_8(void *smem, const void *gmem, uint32_t src_bytes = 8)
{
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(ptx_smem_u32(smem)), "l"(__cvta_generic_to_global(gmem)), "r"(src_bytes) : "memory");
}
PTX void ptx_cp_async_16(void *smem, const void *gmem, uint32_t src_bytes = 16)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ptx_smem_u32(smem)), "l"(__cvta_generic_to_global(gmem)), "r"(src_bytes) : "memory");
}
PTX void ptx_cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int n> PTX void ptx_cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory");
}
PTX void ptx_cp_async_wait_all()
{
    asm volatile("cp.async.wait_all;" ::: "memory");
}
#endif

/* ---- bits */
#ifdef RACKLM_EMU
/* Bit by bit table[4 a + 2 b + c]: the table of a & b is 0xf0 & 0xcc, and so on with c = 0xaa. */
template <int table> PTX uint32_t ptx_lop3(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r = 0;
    for (int i = 0; i < 8; i++)
        if (table >> i & 1)
            r |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
    return r;
}
/* Byte i: byte number (sel >> 4 i & 7) of b:a; with bit 3 of the selector its sign, eight times. */
PTX uint32_t ptx_prmt(uint32_t a, uint32_t b, uint32_t sel)
{
    uint64_t v = a | uint64_t(b) << 32;
    uint32_t r = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t s = sel >> 4 * i, byte = uint32_t(v >> 8 * (s & 7)) & 255;
        r |= (s & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * i;
    }
    return r;
}
#else
template <int table> PTX uint32_t ptx_lop3(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(r) : "r"(a), "r"(b), "r"(c), "n"(table));
    return r;
}
PTX uint32_t ptx_prmt(uint32_t a, uint32_t b, uint32_t sel)
{
    uint32_t r;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(sel));
    return r;
}
#endif

/* ---- conversions, two values at a time, `lo` in the low half. To nearest even; e4m3 saturates at 448, NaN stays NaN. Below sm_89 in software. */
PTX uint32_t ptx_e4m3x2(float lo, float hi)
{
#if !defined(RACKLM_EMU) && __CUDA_ARCH__ >= 890
    uint16_t r;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(r) : "f"(hi), "f"(lo));
    return r;
#else
    return __nv_cvt_float2_to_fp8x2(make_float2(lo, hi), __NV_SATFINITE, __NV_E4M3);
#endif
}
PTX uint32_t ptx_f16x2_of_e4m3x2(uint32_t x)
{
#if !defined(RACKLM_EMU) && __CUDA_ARCH__ >= 890
    uint32_t r;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(r) : "h"((uint16_t)x));
    return r;
#else
    __half2_raw h = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)x, __NV_E4M3);
    return h.x | (uint32_t)h.y << 16;
#endif
}
PTX uint32_t ptx_f16x2(float lo, float hi)
{
#ifdef RACKLM_EMU
    return emu::bit_cast<uint32_t>(__floats2half2_rn(lo, hi));
#else
    uint32_t r;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
#endif
}
PTX uint32_t ptx_bf16x2(float lo, float hi)
{
#ifdef RACKLM_EMU
    return emu::bit_cast<uint32_t>(__floats2bfloat162_rn(lo, hi));
#else
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
    return r;
#endif
}
/* The pair as CUDA's arithmetic takes it, and back. */
PTX __half2 ptx_half2(uint32_t u)
{
    __half2 h;
    memcpy((void *)&h, &u, 4);
    return h;
}
PTX uint32_t ptx_half2_bits(__half2 h)
{
    uint32_t u;
    memcpy(&u, &h, 4);
    return u;
}
/* To tf32, to nearest, ties away from zero. */
PTX uint32_t ptx_tf32(float x)
{
#ifdef RACKLM_EMU
    uint32_t u = emu::bit_cast<uint32_t>(x);
    return x != x ? 0x7fffffffu : (u & 0x7f800000u) == 0x7f800000u ? u : (u + 0x1000u) & 0xffffe000u;
#else
    uint32_t r;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
    return r;
#endif
}
/* 2^x, 2 ulp; subnormal arguments and results are 0. */
PTX float ptx_exp2(float x)
{
#ifdef RACKLM_EMU
    float y = exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
#else
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
#endif
}

/* ---- 16 bytes that are read once: past L1, read-only for the kernel's life. The second form, with a policy made once a thread, leaves L2 first too. */
#ifdef RACKLM_EMU
PTX uint4 ptx_ld_stream(const void *gmem)
{
    return *(const uint4 *)gmem;
}
PTX uint64_t ptx_policy_evict_first()
{
    return 0;
}
PTX uint4 ptx_ld_stream(const void *gmem, uint64_t)
{
    return *(const uint4 *)gmem;
}
#else
PTX uint4 ptx_ld_stream(const void *gmem)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(__cvta_generic_to_global(gmem)));
    return v;
}
PTX uint64_t ptx_policy_evict_first()
{
    uint64_t p;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
    return p;
}
PTX uint4 ptx_ld_stream(const void *gmem, uint64_t policy)
{
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(__cvta_generic_to_global(gmem)), "l"(policy));
    return v;
}
#endif

/* ---- flags between blocks (gpu) and between devices and the host (sys). Whoever waits for memory loops over one of these loads. */
#ifdef RACKLM_EMU
PTX uint32_t ptx_emu_load(const uint32_t *p, int order)
{
    uint32_t v = order == __ATOMIC_ACQUIRE ? __atomic_load_n(p, __ATOMIC_ACQUIRE) : __atomic_load_n(p, __ATOMIC_RELAXED);
    emu::polled(p, v);
    return v;
}
#define PTX_LOAD(name, sem, order)                                                                                                                             \
    PTX uint32_t name(const uint32_t *p)                                                                                                                       \
    {                                                                                                                                                          \
        return ptx_emu_load(p, order);                                                                                                                         \
    }
#define PTX_STORE(name, sem, order)                                                                                                                            \
    PTX void name(uint32_t *p, uint32_t v)                                                                                                                     \
    {                                                                                                                                                          \
        __atomic_store_n(p, v, order);                                                                                                                         \
        emu::wrote();                                                                                                                                          \
    }
#define PTX_ADD(name, sem)                                                                                                                                     \
    PTX void name(uint32_t *p, uint32_t v)                                                                                                                     \
    {                                                                                                                                                          \
        __atomic_fetch_add(p, v, __ATOMIC_RELEASE);                                                                                                            \
        emu::wrote();                                                                                                                                          \
    }
#define PTX_FENCE(name, scope)                                                                                                                                 \
    PTX void name()                                                                                                                                            \
    {                                                                                                                                                          \
        __atomic_thread_fence(__ATOMIC_ACQ_REL);                                                                                                               \
    }
#else
#define PTX_LOAD(name, sem, order)                                                                                                                             \
    PTX uint32_t name(const uint32_t *p)                                                                                                                       \
    {                                                                                                                                                          \
        uint32_t v;                                                                                                                                            \
        asm volatile("ld." sem ".global.u32 %0, [%1];" : "=r"(v) : "l"(__cvta_generic_to_global(p)) : "memory");                                               \
        return v;                                                                                                                                              \
    }
#define PTX_STORE(name, sem, order)                                                                                                                            \
    PTX void name(uint32_t *p, uint32_t v)                                                                                                                     \
    {                                                                                                                                                          \
        asm volatile("st." sem ".global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(v) : "memory");                                                 \
    }
#define PTX_ADD(name, sem)                                                                                                                                     \
    PTX void name(uint32_t *p, uint32_t v)                                                                                                                     \
    {                                                                                                                                                          \
        asm volatile("red." sem ".global.add.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(p)), "r"(v) : "memory");                                            \
    }
#define PTX_FENCE(name, scope)                                                                                                                                 \
    PTX void name()                                                                                                                                            \
    {                                                                                                                                                          \
        asm volatile("fence.acq_rel." scope ";" ::: "memory");                                                                                                 \
    }
#endif
PTX_LOAD(ptx_ld_acquire_gpu, "acquire.gpu", __ATOMIC_ACQUIRE)
PTX_LOAD(ptx_ld_acquire_sys, "acquire.sys", __ATOMIC_ACQUIRE)
PTX_LOAD(ptx_ld_relaxed_gpu, "relaxed.gpu", __ATOMIC_RELAXED)
PTX_LOAD(ptx_ld_relaxed_sys, "relaxed.sys", __ATOMIC_RELAXED)
PTX_STORE(ptx_st_release_gpu, "release.gpu", __ATOMIC_RELEASE)
PTX_STORE(ptx_st_release_sys, "release.sys", __ATOMIC_RELEASE)
PTX_STORE(ptx_st_relaxed_gpu, "relaxed.gpu", __ATOMIC_RELAXED)
PTX_STORE(ptx_st_relaxed_sys, "relaxed.sys", __ATOMIC_RELAXED)
PTX_ADD(ptx_red_release_gpu, "release.gpu")
PTX_ADD(ptx_red_release_sys, "release.sys")
PTX_FENCE(ptx_fence_gpu, "gpu")
PTX_FENCE(ptx_fence_sys, "sys")
/* Two neighbours of 8 bytes, 16-byte aligned: each comes as a whole, the two in any order (8.2.2: a vector access is scalar accesses in no order). */
#ifdef RACKLM_EMU
PTX void ptx_ld_relaxed_sys_v2(const void *p, uint64_t &lo, uint64_t &hi)
{
    const uint64_t *q = (const uint64_t *)p;
    hi = __atomic_load_n(q + 1, __ATOMIC_RELAXED);
    lo = __atomic_load_n(q, __ATOMIC_RELAXED);
    emu::polled(p, lo ^ (hi << 1 | hi >> 63));
}
PTX void ptx_st_relaxed_sys_v2(void *p, uint64_t lo, uint64_t hi)
{
    uint64_t *q = (uint64_t *)p, v[2] = {lo, hi}, first = ((uintptr_t)p >> 4 ^ hi >> 32) & 1; /* now this one, now that */
    __atomic_store_n(q + first, v[first], __ATOMIC_RELAXED);
    emu::wrote();
    emu::yield(); /* somebody may look in between */
    __atomic_store_n(q + 1 - first, v[1 - first], __ATOMIC_RELAXED);
    emu::wrote();
}
#else
PTX void ptx_ld_relaxed_sys_v2(const void *p, uint64_t &lo, uint64_t &hi)
{
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(lo), "=l"(hi) : "l"(__cvta_generic_to_global(p)) : "memory");
}
PTX void ptx_st_relaxed_sys_v2(void *p, uint64_t lo, uint64_t hi)
{
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(p)), "l"(lo), "l"(hi) : "memory");
}
#endif
#undef PTX_LOAD
#undef PTX_STORE
#undef PTX_ADD
#undef PTX_FENCE

/* ---- programmatic dependent launch: the next kernel of the stream, launched with the attribute, may begin once all blocks called launch_dependents (or ended),
 * and waits in ptx_grid_wait for the end, and the writes, of this one. Nothing where it does not exist (before sm_90) or was not asked for. */
PTX void ptx_grid_launch_dependents()
{
#if !defined(RACKLM_EMU) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
PTX void ptx_grid_wait()
{
#if !defined(RACKLM_EMU) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* ---- time: nanoseconds of one clock of the device, and a rest of about that long (for loops that wait). */
#ifdef RACKLM_EMU
PTX uint64_t ptx_globaltimer()
{
    return emu::clock_ns();
}
PTX void ptx_nanosleep(uint32_t)
{
    emu::yield();
}
#else
PTX uint64_t ptx_globaltimer()
{
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}
PTX void ptx_nanosleep(uint32_t ns)
{
    asm volatile("nanosleep.u32 %0;" ::"r"(ns));
}
#endif

#undef PTX
#undef PTX_HERE
#undef PTX_MMA

#endif
