/* What matrix instructions do: ldmatrix and mma, as meetings of a warp (engine.cc). Each lane's operands are deposited by pointer; the last lane to come gathers them into
 * plain matrices, does the work in vectors and gives each lane its share. Fragments: PTX ISA 9.0, sections 9.7.15.5 (as written down in ptx.cuh). */
#include "tests/gpu/emu/races.h"

#include <array>

#include <immintrin.h>

namespace emu {

namespace {

struct ldmatrix_arg {
    uint32_t *r;
    const void *row;
};

template <uint32_t n, bool trans> void ldmatrix_run(void *const *args, uint32_t)
{
    for (uint32_t j = 0; j < n; j++) {
        uint16_t m[8][8];
        for (uint32_t i = 0; i < 8; i++)
            memcpy(m[i], static_cast<ldmatrix_arg *>(args[8 * j + i])->row, 16);
        for (uint32_t l = 0; l < 32; l++) {
            uint32_t row = l / 4, col = 2 * (l % 4);
            static_cast<ldmatrix_arg *>(args[l])->r[j] = trans ? m[col][row] | uint32_t(m[col + 1][row]) << 16 : m[row][col] | uint32_t(m[row][col + 1]) << 16;
        }
    }
}
template <uint32_t n, bool trans> constexpr warp_op ldmatrix_op = {trans ? "ldmatrix.trans" : "ldmatrix", ldmatrix_run<n, trans>, true};

struct mma_arg {
    void *d;
    const uint32_t *a;
    uint32_t b[2];
};

float f16_float(uint16_t h)
{
    return _cvtsh_ss(h);
}
float e4m3_float(uint8_t v)
{
    uint32_t e = v >> 3 & 15, m = v & 7;
    float x = e == 15 && m == 7 ? NAN : e == 0 ? std::ldexp(float(m), -9) : std::ldexp(float(8 + m), int(e) - 10);
    return v & 128 ? -x : x;
}

/* Elements of one operand register: how many, and as fp32. */
template <mma_type type> constexpr uint32_t per_reg = type == mma_type::tf32 ? 1 : type == mma_type::e4m3 ? 4 : 2;
template <mma_type type> void widen(uint32_t r, float *out, uint32_t stride)
{
    if constexpr (type == mma_type::f16) {
        out[0] = f16_float(uint16_t(r));
        out[stride] = f16_float(uint16_t(r >> 16));
    } else if constexpr (type == mma_type::bf16) {
        out[0] = bit_cast<float>(r << 16);
        out[stride] = bit_cast<float>(r & 0xffff0000u);
    } else if constexpr (type == mma_type::tf32) {
        out[0] = bit_cast<float>(r & 0xffffe000u); /* the lower 13 bits are ignored */
    } else {
        static const std::array<float, 256> table = [] {
            std::array<float, 256> t;
            for (uint32_t i = 0; i < 256; i++)
                t[i] = e4m3_float(uint8_t(i));
            return t;
        }();
        for (uint32_t i = 0; i < 4; i++)
            out[i * stride] = table[r >> 8 * i & 255];
    }
}

/* Lane l = 4 g + t. A: rows g, g + 8; register halves of k begin at t * per_reg and K/2 + t * per_reg. B: the same k, column g. C, D: rows g, g + 8, columns
 * 2 t, 2 t + 1. */
template <mma_type type> void mma_run(void *const *args, uint32_t)
{
    constexpr uint32_t P = per_reg<type>, K = 8 * P;
    alignas(32) float a[16][K], b[K][8], d[16][8];
    for (uint32_t l = 0; l < 32; l++) {
        const mma_arg *x = static_cast<mma_arg *>(args[l]);
        const float *c = static_cast<const float *>(x->d);
        uint32_t g = l / 4, t = l % 4;
        for (uint32_t h = 0; h < 2; h++) {
            widen<type>(x->a[2 * h], &a[g][h * K / 2 + t * P], 1);
            widen<type>(x->a[2 * h + 1], &a[g + 8][h * K / 2 + t * P], 1);
            widen<type>(x->b[h], &b[h * K / 2 + t * P][g], 8);
            memcpy(&d[g + 8 * h][2 * t], c + 2 * h, 8);
        }
    }
    for (uint32_t i = 0; i < 16; i += 8) {
        __m256 acc[8];
        for (uint32_t r = 0; r < 8; r++)
            acc[r] = _mm256_load_ps(d[i + r]);
        for (uint32_t k = 0; k < K; k++) {
            __m256 bk = _mm256_load_ps(b[k]);
            for (uint32_t r = 0; r < 8; r++)
                acc[r] = _mm256_fmadd_ps(_mm256_broadcast_ss(&a[i + r][k]), bk, acc[r]);
        }
        for (uint32_t r = 0; r < 8; r++)
            _mm256_store_ps(d[i + r], acc[r]);
    }
    for (uint32_t l = 0; l < 32; l++) {
        float *c = static_cast<float *>(static_cast<mma_arg *>(args[l])->d);
        for (uint32_t h = 0; h < 2; h++)
            memcpy(c + 2 * h, &d[l / 4 + 8 * h][2 * (l % 4)], 8);
    }
}

void mma_s8_run(void *const *args, uint32_t)
{
    /* Two neighbours in k at a time, as _mm256_madd_epi16 takes them. */
    alignas(32) int16_t a[16][32], b[16][8][2];
    alignas(32) int32_t d[16][8];
    for (uint32_t l = 0; l < 32; l++) {
        const mma_arg *x = static_cast<mma_arg *>(args[l]);
        const int32_t *c = static_cast<const int32_t *>(x->d);
        uint32_t g = l / 4, t = l % 4;
        for (uint32_t h = 0; h < 2; h++) {
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t k = 16 * h + 4 * t + i;
                a[g][k] = int8_t(x->a[2 * h] >> 8 * i);
                a[g + 8][k] = int8_t(x->a[2 * h + 1] >> 8 * i);
                b[k / 2][g][k % 2] = int8_t(x->b[h] >> 8 * i);
            }
            memcpy(&d[g + 8 * h][2 * t], c + 2 * h, 8);
        }
    }
    for (uint32_t i = 0; i < 16; i++) {
        __m256i acc = _mm256_load_si256(reinterpret_cast<__m256i *>(d[i]));
        for (uint32_t k = 0; k < 16; k++) {
            int32_t pair;
            memcpy(&pair, &a[i][2 * k], 4);
            acc = _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_set1_epi32(pair), _mm256_load_si256(reinterpret_cast<__m256i *>(b[k]))));
        }
        _mm256_store_si256(reinterpret_cast<__m256i *>(d[i]), acc);
    }
    for (uint32_t l = 0; l < 32; l++) {
        int32_t *c = static_cast<int32_t *>(static_cast<mma_arg *>(args[l])->d);
        for (uint32_t h = 0; h < 2; h++)
            memcpy(c + 2 * h, &d[l / 4 + 8 * h][2 * (l % 4)], 8);
    }
}

constexpr warp_op mma_ops[] = {{"mma f16", mma_run<mma_type::f16>, true},
                               {"mma bf16", mma_run<mma_type::bf16>, true},
                               {"mma tf32", mma_run<mma_type::tf32>, true},
                               {"mma e4m3", mma_run<mma_type::e4m3>, true},
                               {"mma s8", mma_s8_run, true}};

} // namespace

void ldmatrix(uint32_t *r, uint32_t n, bool trans, const void *row, here at)
{
    static constexpr const warp_op *ops[2][3] = {{&ldmatrix_op<1, false>, &ldmatrix_op<2, false>, &ldmatrix_op<4, false>},
                                                 {&ldmatrix_op<1, true>, &ldmatrix_op<2, true>, &ldmatrix_op<4, true>}};
    if (self->lane_idx < 8 * n) { /* the other lanes' addresses are not used */
        check_shared(row, 16, "ldmatrix");
        races_read(row, 16);
    }
    ldmatrix_arg arg = {r, row};
    meet(ops[trans][n / 2], UINT32_MAX, &arg, at);
}

void mma(mma_type type, void *d, const uint32_t *a, uint32_t b0, uint32_t b1, here at)
{
    mma_arg arg = {d, a, {b0, b1}};
    meet(&mma_ops[int(type)], UINT32_MAX, &arg, at);
}

} // namespace emu
