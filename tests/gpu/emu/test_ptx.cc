/* Known answers of ptx.cuh's emulated twins. Expectations are the PTX manual's (PTX ISA 9.0): its formulas for who holds which element of a fragment (9.7.15.5) are
 * written down as they stand there, i counting elements of a register array and not registers; results are plain loops over whole matrices. Then what
 * the twins are for: a two-stage matrix product with one wait or barrier taken away gives wrong numbers, and misuse is reported. */
#include "kernels/cuda/ptx.cuh"

#include "tests/gpu/emu/test_emu.h"

#include <array>
#include <vector>

#include <immintrin.h>

namespace {

uint64_t state = 88172645463325252u;
uint32_t random32()
{
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return uint32_t(state >> 16);
}

/* ---- ldmatrix */

uint16_t element(uint32_t matrix, uint32_t row, uint32_t col)
{
    return uint16_t(matrix << 12 | row << 8 | col);
}
template <bool trans> void ldmatrix_of(uint32_t n)
{
    /* Rows lie at random 16-byte places. */
    std::array<uint32_t, 32> place;
    for (uint32_t i = 0; i < 32; i++)
        place[i] = i * 5 % 32;
    run(1, 64, 1024, [&] {
        auto *s = reinterpret_cast<uint16_t *>(smem_base());
        uint32_t l = threadIdx.x % 32;
        if (threadIdx.x < 32)
            for (uint32_t c = 0; c < 8; c++)
                s[8 * place[l] + c] = element(l / 8, l % 8, c);
        __syncthreads();
        uint32_t r[4] = {};
        const void *row = l < 8 * n ? s + 8 * place[l] : nullptr; /* the other lanes' addresses are not used */
        uint32_t x1;
        uint32_t(&x2)[2] = reinterpret_cast<uint32_t(&)[2]>(r);
        if (n == 1) {
            trans ? ptx_ldmatrix_x1_trans(x1, row) : ptx_ldmatrix_x1(x1, row);
            r[0] = x1;
        } else if (n == 2) {
            trans ? ptx_ldmatrix_x2_trans(x2, row) : ptx_ldmatrix_x2(x2, row);
        } else {
            trans ? ptx_ldmatrix_x4_trans(r, row) : ptx_ldmatrix_x4(r, row);
        }
        for (uint32_t j = 0; j < n; j++)
            for (uint32_t half = 0; half < 2; half++) {
                /* "Each thread receives a fragment from a row: thread 0 the first two elements of row 0, thread 1 the next two", four a row. */
                uint32_t row_of = l / 4, col_of = l % 4 * 2 + half;
                uint16_t want = trans ? element(j, col_of, row_of) : element(j, row_of, col_of);
                expect_equal(r[j] >> 16 * half & 0xffff, want);
            }
    });
}
void ldmatrix_gives_each_lane_its_elements(void **)
{
    for (uint32_t n : {1, 2, 4}) {
        ldmatrix_of<false>(n);
        ldmatrix_of<true>(n);
    }
}

/* ---- mma. A type: bits of an element, a random value as its bits, and what it is worth. */
struct f16_type {
    static constexpr uint32_t bits = 16;
    static uint32_t random()
    {
        return _cvtss_sh(float(int(random32() % 65) - 32) / 4, 0);
    }
    static double value(uint32_t b)
    {
        return _cvtsh_ss(uint16_t(b));
    }
};
struct bf16_type {
    static constexpr uint32_t bits = 16;
    static uint32_t random()
    {
        return emu::bit_cast<uint32_t>(float(int(random32() % 65) - 32) * 8) >> 16;
    }
    static double value(uint32_t b)
    {
        return emu::bit_cast<float>(b << 16);
    }
};
struct tf32_type {
    static constexpr uint32_t bits = 32;
    static uint32_t random()
    {
        return emu::bit_cast<uint32_t>(float(int(random32() % 2001) - 1000) / 8);
    }
    static double value(uint32_t b)
    {
        return emu::bit_cast<float>(b);
    }
};
struct e4m3_type {
    static constexpr uint32_t bits = 8;
    static uint32_t random()
    {
        uint32_t b = random32() & 0xbf; /* of 1/8 to 2, so that sums are exact */
        return (b & 0x20) ? b : b & 0x80;
    }
    static double value(uint32_t b) /* OCP 8-bit floating point specification, E4M3 */
    {
        uint32_t e = b >> 3 & 15, m = b & 7;
        double v = e == 0 ? std::ldexp(m, -9) : std::ldexp(8 + m, int(e) - 10);
        return b & 0x80 ? -v : v;
    }
};
struct s8_type {
    static constexpr uint32_t bits = 8;
    static uint32_t random()
    {
        return random32() & 0xff;
    }
    static double value(uint32_t b)
    {
        return int8_t(b);
    }
};

/* Where element i of a lane's A, B and C stands: by the manual's text for each shape. */
struct place {
    uint32_t row, col;
};
template <uint32_t bits> place a_place(uint32_t lane, uint32_t i)
{
    uint32_t group = lane >> 2, in_group = lane % 4;
    if constexpr (bits == 16) /* m16n8k16 */
        return {i < 2 || (4 <= i && i < 6) ? group : group + 8, i < 4 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8};
    else if constexpr (bits == 8) /* m16n8k32 */
        return {i < 4 || (8 <= i && i < 12) ? group : group + 8, i < 8 ? in_group * 4 + (i & 3) : in_group * 4 + (i & 3) + 16};
    else /* m16n8k8 */
        return {i == 0 || i == 2 ? group : group + 8, i == 0 || i == 1 ? in_group : in_group + 4};
}
template <uint32_t bits> place b_place(uint32_t lane, uint32_t i)
{
    uint32_t group = lane >> 2, in_group = lane % 4;
    if constexpr (bits == 16)
        return {i < 2 ? in_group * 2 + (i & 1) : in_group * 2 + (i & 1) + 8, group};
    else if constexpr (bits == 8)
        return {i < 4 ? in_group * 4 + (i & 3) : in_group * 4 + (i & 3) + 16, group};
    else
        return {i == 0 ? in_group : in_group + 4, group};
}
place c_place(uint32_t lane, uint32_t i)
{
    uint32_t group = lane >> 2, in_group = lane % 4;
    return {i < 2 ? group : group + 8, in_group * 2 + (i & 1)};
}

template <class T, class C> void mma_of(void (*mma)(C (&)[4], const uint32_t (&)[4], uint32_t, uint32_t))
{
    constexpr uint32_t bits = T::bits, per = 32 / bits, K = 8 * per;
    for (int round = 0; round < 20; round++) {
        uint32_t a[2][16][K], b[2][K][8];
        C c[2][16][8];
        for (int w = 0; w < 2; w++) { /* two warps, of different values */
            for (auto &row : a[w])
                for (uint32_t &x : row)
                    x = T::random();
            for (auto &row : b[w])
                for (uint32_t &x : row)
                    x = T::random();
            for (auto &row : c[w])
                for (C &x : row)
                    x = C(int(random32() % 2001) - 1000);
        }
        run(1, 64, 0, [&] {
            uint32_t w = threadIdx.x / 32, lane = threadIdx.x % 32, ra[4] = {}, rb[2] = {};
            C d[4];
            for (uint32_t i = 0; i < 4 * per; i++) {
                place p = a_place<bits>(lane, i);
                ra[i / per] |= a[w][p.row][p.col] << bits % 32 * (i % per);
            }
            for (uint32_t i = 0; i < 2 * per; i++) {
                place p = b_place<bits>(lane, i);
                rb[i / per] |= b[w][p.row][p.col] << bits % 32 * (i % per);
            }
            for (uint32_t i = 0; i < 4; i++)
                d[i] = c[w][c_place(lane, i).row][c_place(lane, i).col];
            mma(d, ra, rb[0], rb[1]);
            for (uint32_t i = 0; i < 4; i++) {
                place p = c_place(lane, i);
                double want = double(c[w][p.row][p.col]);
                for (uint32_t k = 0; k < K; k++)
                    want += T::value(a[w][p.row][k]) * T::value(b[w][k][p.col]);
                expect(double(d[i]) == want);
            }
        });
    }
}
void mma_multiplies_the_matrices_of_the_manual(void **)
{
    mma_of<f16_type, float>([](float(&d)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) { ptx_mma_f16(d, a, b0, b1); });
    mma_of<bf16_type, float>([](float(&d)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) { ptx_mma_bf16(d, a, b0, b1); });
    mma_of<tf32_type, float>([](float(&d)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) { ptx_mma_tf32(d, a, b0, b1); });
    mma_of<e4m3_type, float>([](float(&d)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) { ptx_mma_e4m3(d, a, b0, b1); });
    mma_of<s8_type, int32_t>([](int32_t(&d)[4], const uint32_t(&a)[4], uint32_t b0, uint32_t b1) { ptx_mma_s8(d, a, b0, b1); });
}
/* Without .satfinite "the accumulator wraps"; the lower 13 bits of tf32 are ignored; NaN stays. */
void mma_at_the_ends_of_its_types(void **)
{
    run(1, 32, 0, [] {
        uint32_t minus[4] = {0x80808080, 0x80808080, 0x80808080, 0x80808080};
        int32_t q[4] = {INT32_MAX, INT32_MAX, 0, 0};
        ptx_mma_s8(q, minus, 0x80808080, 0x80808080);
        expect(q[0] == INT32_MIN + 32 * 16384 - 1 && q[2] == 32 * 16384);
        uint32_t ones[4] = {0x3f801fff, 0x3f801fff, 0x3f801fff, 0x3f801fff};
        float d[4] = {};
        ptx_mma_tf32(d, ones, 0x3f800001, 0x3f801fff);
        expect(d[0] == 8 && d[3] == 8);
        uint32_t nan[4] = {threadIdx.x == 4 ? 0x7f000000u : 0, 0, 0, 0}; /* e4m3: row 1, k 3 */
        float e[4] = {};
        ptx_mma_e4m3(e, nan, 0, 0);
        expect(std::isnan(e[0]) == (threadIdx.x / 4 == 1) && e[2] == 0);
        uint32_t small[4] = {0x01010101, 0x01010101, 0x01010101, 0x87878787}; /* e4m3: 2^-9; row g+8, k 16..: -7 * 2^-9 */
        float x[4] = {};
        ptx_mma_e4m3(x, small, 0x38383838, 0x40404040);
        expect(x[0] == 48 * 0x1p-9f && x[3] == (16 - 16 * 7 * 2) * 0x1p-9f);
    });
}

/* ---- cp.async */

void cp_async_lands_at_the_wait_and_not_before(void **)
{
    std::vector<uint32_t> src(64);
    for (uint32_t i = 0; i < 64; i++)
        src[i] = 0x1000 + i;
    run(1, 1, 256, [&] {
        auto *s = reinterpret_cast<uint32_t *>(smem_base());
        const uint32_t *g = src.data();
        for (int i = 0; i < 64; i++)
            s[i] = 7;
        ptx_cp_async_4(s, g);
        ptx_cp_async_8(s + 2, g + 2);
        ptx_cp_async_16(s + 4, g + 4);
        ptx_cp_async_commit(); /* group 0 */
        ptx_cp_async_16(s + 8, g + 8, 5);
        ptx_cp_async_4(s + 1, nullptr, 0); /* nothing is read */
        ptx_cp_async_commit();             /* group 1 */
        ptx_cp_async_commit();             /* group 2, empty */
        ptx_cp_async_16(s + 12, g + 12);   /* of no group yet */
        for (int i : {0, 1, 2, 3, 4, 7, 8, 11, 12, 15})
            expect(s[i] == UINT32_MAX);
        expect_equal(s[16], 7);
        ptx_cp_async_wait<3>();
        expect(s[0] == UINT32_MAX);
        ptx_cp_async_wait<2>();
        expect(s[0] == 0x1000 && s[2] == 0x1002 && s[3] == 0x1003 && s[4] == 0x1004 && s[7] == 0x1007 && s[8] == UINT32_MAX && s[1] == UINT32_MAX);
        ptx_cp_async_wait<1>();
        expect(s[8] == 0x1008 && s[9] == 9 && s[10] == 0 && s[11] == 0 && s[1] == 0 && s[12] == UINT32_MAX);
        ptx_cp_async_wait<0>();
        expect(s[12] == UINT32_MAX); /* "prior cp.async-groups" only */
        ptx_cp_async_wait_all();
        expect(s[12] == 0x100c && s[15] == 0x100f);
        ptx_cp_async_4(s + 16, g); /* of a thread that ends: for nobody */
    });
    run(1, 32, 128, [&] { /* of this thread only */
        auto *s = reinterpret_cast<uint32_t *>(smem_base());
        ptx_cp_async_4(s + threadIdx.x, src.data() + threadIdx.x);
        if (threadIdx.x < 16)
            ptx_cp_async_wait_all();
        __syncwarp();
        for (uint32_t i = 0; i < 32; i++)
            expect(s[i] == (i < 16 ? 0x1000 + i : UINT32_MAX));
        __syncwarp();
    });
}

/* ---- bits, conversions, loads, flags */

template <int... table> bool lop3_of(std::integer_sequence<int, table...>, uint32_t a, uint32_t b, uint32_t c)
{
    auto right = [=](uint32_t r, int t) {
        for (int i = 0; i < 32; i++)
            if ((r >> i & 1) != (uint32_t(t) >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1))
                return false;
        return true;
    };
    return (right(ptx_lop3<table>(a, b, c), table) && ...);
}
void lop3_and_prmt_follow_their_tables(void **)
{
    for (int i = 0; i < 20; i++)
        expect(lop3_of(std::make_integer_sequence<int, 256>(), random32(), random32(), random32()));
    /* The manual's way to a table: the function of 0xf0, 0xcc, 0xaa. */
    expect_equal((ptx_lop3<(0xf0 & 0xcc) | 0xaa>(0x12345678, 0x0f0f0f0f, 0x40000001)), (0x12345678 & 0x0f0f0f0f) | 0x40000001);
    uint32_t a = 0x83020100, b = 0x07868504; /* bytes 3, 5, 6 are negative */
    expect_equal(ptx_prmt(a, b, 0x3210), a);
    expect_equal(ptx_prmt(a, b, 0x7654), b);
    expect_equal(ptx_prmt(a, b, 0x0563), 0x00858683);
    expect(ptx_prmt(a, b, 0x89bd) == 0x0000ffff && ptx_prmt(a, b, 0xe0f1) == 0xff000001);
}

void conversions_keep_the_order_of_the_pair(void **)
{
    expect_equal(ptx_f16x2(1.0f, -2.0f), 0xc0003c00);
    expect_equal(ptx_bf16x2(1.0f, -2.0f), 0xc0003f80);
    expect_equal(ptx_e4m3x2(1.0f, -2.0f), 0xc038);
    expect_equal(ptx_e4m3x2(1e6f, -449.0f), 0xfe7e); /* satfinite: 448 */
    expect_equal(ptx_e4m3x2(NAN, 0.0f) & 0x7f, 0x7f);
    for (uint32_t i = 0; i < 65536; i++) {
        uint32_t h = ptx_f16x2_of_e4m3x2(i);
        for (int half = 0; half < 2; half++) {
            uint32_t b = i >> 8 * half & 255;
            float got = _cvtsh_ss(uint16_t(h >> 16 * half));
            expect((b & 127) == 127 ? std::isnan(got) : double(got) == e4m3_type::value(b));
        }
    }
    for (int i = 0; i < 100000; i++) {
        auto x = emu::bit_cast<float>(random32());
        if (!std::isfinite(x))
            continue;
        uint32_t r = ptx_tf32(x);
        auto y = emu::bit_cast<float>(r);
        expect_equal(r & 0x1fff, 0);
        auto down = emu::bit_cast<float>(emu::bit_cast<uint32_t>(x) & 0xffffe000u), up = emu::bit_cast<float>((emu::bit_cast<uint32_t>(x) & 0xffffe000u) + 0x2000);
        double to_down = std::fabs(double(x) - down), to_up = std::isfinite(up) ? std::fabs(double(x) - up) : std::ldexp(1, 117) - to_down;
        expect(y == (to_down < to_up ? down : up)); /* rna: ties away from zero */
    }
    for (float x = -140; x < 128; x += 0.37f) {
        double want = std::exp2(double(x));
        float got = ptx_exp2(x);
        expect(x < -126 ? got == 0 : std::fabs(got - want) <= std::ldexp(want, -22));
    }
    expect(ptx_exp2(-INFINITY) == 0 && ptx_exp2(INFINITY) == INFINITY);
}

void streaming_loads_and_flags(void **)
{
    std::vector<uint4> v(64);
    for (uint32_t i = 0; i < 64; i++)
        v[i] = make_uint4(i, i + 1, i + 2, i + 3);
    uint32_t flag = 0, counter = 0, data = 0;
    run(2, 32, 0, [&] {
        uint4 a = ptx_ld_stream(&v[threadIdx.x]), b = ptx_ld_stream(&v[32 + threadIdx.x], ptx_policy_evict_first());
        expect(a.x == threadIdx.x && a.w == a.x + 3 && b.y == 33 + threadIdx.x && b.z == b.y + 1);
        ptx_red_release_gpu(&counter, 1);
        ptx_red_release_sys(&counter, 2);
        if (threadIdx.x == 0 && blockIdx.x == 0) {
            data = 77;
            ptx_fence_sys();
            ptx_st_relaxed_sys(&flag, 1);
            while (ptx_ld_acquire_gpu(&flag) != 2)
                ;
            ptx_st_release_sys(&flag, 3);
        } else if (threadIdx.x == 0) {
            uint64_t t = ptx_globaltimer();
            while (ptx_ld_acquire_sys(&flag) != 1)
                ptx_nanosleep(100);
            expect_equal(data, 77);
            ptx_fence_gpu();
            ptx_st_release_gpu(&flag, 2);
            while (ptx_ld_relaxed_sys(&flag) != 3 && ptx_ld_relaxed_gpu(&flag) != 3)
                ;
            ptx_st_relaxed_gpu(&flag, 4);
            expect(ptx_globaltimer() >= t);
        }
        ptx_grid_launch_dependents();
        ptx_grid_wait();
    });
    expect_equal(flag, 4);
    expect_equal(counter, 2 * 32 * 3);
}

/* Pairs go over whole halves at a time, each half of one store: the reader may see an old half beside a new one, never a torn half. */
void pairs_of_eight_bytes_come_by_halves(void **)
{
    alignas(16) uint64_t pair[2] = {};
    uint32_t mixed = 0;
    run(2, 1, 0, [&] {
        constexpr uint64_t ROUNDS = 50, BOTH = 0x100000001;
        if (blockIdx.x == 0) {
            for (uint64_t i = 1; i <= ROUNDS; i++)
                ptx_st_relaxed_sys_v2(pair, i * BOTH, i * BOTH);
            return;
        }
        for (uint64_t lo = 0, hi = 0; lo != ROUNDS * BOTH || hi != lo;) {
            uint64_t l, h;
            ptx_ld_relaxed_sys_v2(pair, l, h);
            expect(l >= lo && h >= hi && l % BOTH == 0 && h % BOTH == 0);
            mixed += l != h;
            lo = l;
            hi = h;
        }
    });
    expect(mixed > 0);
}

/* ---- shown to fail */

/* C[64][64] = A[64][96] B[64][96]^T in f16 by 4 warps of 32x32, two stages of 32 columns; `whole` less one of its waits and barriers. */
enum missing { nothing, the_wait, a_weaker_wait, the_barrier_after_the_wait, the_barrier_before_the_load };
constexpr uint32_t N = 64, K = 96, STEP = 32, PITCH = STEP + 8;
template <missing without> void product(const __half *a, const __half *b, float *c)
{
    auto *s = reinterpret_cast<__half *>(smem_base());
    uint32_t tid = threadIdx.x, lane = tid % 32, m0 = tid / 64 * 32, n0 = tid / 32 % 2 * 32;
    auto load = [&](uint32_t stage, uint32_t k0) {
        for (uint32_t i = tid; i < 2 * N * STEP / 8; i += 128) {
            uint32_t row = i / (STEP / 8), col = i % (STEP / 8) * 8;
            ptx_cp_async_16(s + (stage * 2 * N + row) * PITCH + col, (row < N ? a + row * K : b + (row - N) * K) + k0 + col);
        }
        ptx_cp_async_commit();
    };
    float d[2][4][4] = {};
    load(0, 0);
    for (uint32_t k0 = 0, stage = 0; k0 < K; k0 += STEP, stage ^= 1) {
        bool more = k0 + STEP < K;
        if (more)
            load(stage ^ 1, k0 + STEP);
        if (without != the_wait) {
            if (more || without == a_weaker_wait)
                ptx_cp_async_wait<1>();
            else
                ptx_cp_async_wait<0>();
        }
        if (without != the_barrier_after_the_wait)
            __syncthreads();
        const __half *as = s + stage * 2 * N * PITCH, *bs = as + N * PITCH;
        for (uint32_t k = 0; k < STEP; k += 16) {
            uint32_t ra[2][4], rb[2][4];
            for (uint32_t i = 0; i < 2; i++) {
                ptx_ldmatrix_x4(ra[i], as + (m0 + 16 * i + lane % 16) * PITCH + k + lane / 16 * 8);
                ptx_ldmatrix_x4(rb[i], bs + (n0 + 16 * i + lane % 8 + lane / 16 * 8) * PITCH + k + lane / 8 % 2 * 8);
            }
            for (uint32_t i = 0; i < 2; i++)
                for (uint32_t j = 0; j < 4; j++)
                    ptx_mma_f16(d[i][j], ra[i], rb[j / 2][j % 2 * 2], rb[j / 2][j % 2 * 2 + 1]);
        }
        if (without != the_barrier_before_the_load)
            __syncthreads();
    }
    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t j = 0; j < 4; j++)
            for (uint32_t e = 0; e < 4; e++) {
                place p = c_place(lane, e);
                c[(m0 + 16 * i + p.row) * N + n0 + 8 * j + p.col] = d[i][j][e];
            }
}
template <missing without> bool wrong()
{
    std::vector<__half> a(N * K), b(N * K);
    for (auto *v : {&a, &b})
        for (__half &x : *v)
            x = __float2half_rn(float(int(random32() % 9) - 4));
    int errors = 0;
    for (int order = 0; order < 5; order++) {
        std::vector<float> c(N * N, 1e9f);
        run(1, 128, 4 * N * PITCH * 2, [&] { product<without>(a.data(), b.data(), c.data()); });
        for (uint32_t m = 0; m < N; m++)
            for (uint32_t n = 0; n < N; n++) {
                float want = 0;
                for (uint32_t k = 0; k < K; k++)
                    want += __half2float(a[m * K + k]) * __half2float(b[n * K + k]);
                errors += c[m * N + n] != want;
            }
    }
    return errors > 0;
}
void a_product_is_right_and_without_any_of_its_waits_and_barriers_wrong(void **)
{
    expect(!wrong<nothing>());
    expect(wrong<the_wait>());
    expect(wrong<a_weaker_wait>());
    expect(wrong<the_barrier_after_the_wait>());
    expect(wrong<the_barrier_before_the_load>());
}

void misuse_is_reported(void **)
{
    assert_says(message_of([] {
                    run(1, 32, 0, [] {
                        uint32_t a[4] = {};
                        float d[4] = {};
                        if (threadIdx.x != 3)
                            ptx_mma_f16(d, a, 0, 0);
                        __syncwarp();
                    });
                }),
                {"deadlock", "lanes fffffff7 wait in mma f16 at ", "test_ptx.cc:", "lanes 00000008 do not come"});
    assert_says(message_of([] {
                    run(1, 32, 0, [] {
                        uint32_t a[4] = {};
                        float d[4] = {};
                        if (threadIdx.x < 16)
                            ptx_mma_f16(d, a, 0, 0);
                        else
                            ptx_mma_f16(d, a, 0, 0);
                    });
                }),
                {"mma f16 at ", "and, for others of the warp, at ", "all lanes must be at one place"});
    assert_says(message_of([] {
                    run(1, 16, 0, [] {
                        uint32_t a[4] = {};
                        float d[4] = {};
                        ptx_mma_f16(d, a, 0, 0);
                    });
                }),
                {"mma f16 at ", "the warp has not 32 threads"});
    assert_says(message_of([] {
                    run(1, 32, 512, [] {
                        uint32_t r[4];
                        ptx_ldmatrix_x4(r, smem_base() + 16 * threadIdx.x + (threadIdx.x == 9 ? 8 : 0));
                    });
                }),
                {"thread (9,0,0): ldmatrix: shared address 152 is not a multiple of 16"});
    assert_says(message_of([] {
                    run(1, 32, 496, [] {
                        uint32_t r[4];
                        ptx_ldmatrix_x4(r, smem_base() + 16 * threadIdx.x);
                    });
                }),
                {"thread (31,0,0): ldmatrix: 16 bytes at 496 are not in the block's 496 bytes of shared memory"});
    assert_says(message_of([] {
                    static uint32_t g[8] __attribute__((aligned(16)));
                    run(1, 1, 64, [] { ptx_cp_async_16(smem_base(), g + 1); });
                }),
                {"cp.async: global address ", "is not a multiple of 16"});
    assert_says(message_of([] {
                    static uint32_t g[8] __attribute__((aligned(16)));
                    run(1, 1, 64, [] { ptx_cp_async_16(smem_base() + 64, g); });
                }),
                {"cp.async: 16 bytes at 64 are not in the block's 64 bytes"});
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(ldmatrix_gives_each_lane_its_elements),
        cmocka_unit_test(mma_multiplies_the_matrices_of_the_manual),
        cmocka_unit_test(mma_at_the_ends_of_its_types),
        cmocka_unit_test(cp_async_lands_at_the_wait_and_not_before),
        cmocka_unit_test(lop3_and_prmt_follow_their_tables),
        cmocka_unit_test(conversions_keep_the_order_of_the_pair),
        cmocka_unit_test(streaming_loads_and_flags),
        cmocka_unit_test(pairs_of_eight_bytes_come_by_halves),
        cmocka_unit_test(a_product_is_right_and_without_any_of_its_waits_and_barriers_wrong),
        cmocka_unit_test(misuse_is_reported),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
