/* The engine by itself. Expectations are the CUDA C++ Programming Guide's definitions (13.0, chapter C++ language extensions), written as plain loops here; the
 * conversions are held against the machine's F16C instructions and the formats' definitions. What the emulator is for, showing mistakes, is tested by making
 * them: a barrier left out gives wrong numbers over a few orders, and each fault is made in a child process whose message is read. */
#include "tests/gpu/emu/test_emu.h"

#include <algorithm>
#include <thread>
#include <vector>

#include <fcntl.h>
#include <immintrin.h>
#include <sys/mman.h>

using emu::fault;

namespace {

uint32_t tid()
{
    return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
}

/* ---- order */

void every_thread_of_every_block_runs_once_with_its_indices(void **)
{
    dim3 grid(3, 2, 4), block(5, 3, 7);
    std::vector<int> seen(grid.x * grid.y * grid.z * block.x * block.y * block.z);
    run(grid, block, 0, [&] {
        expect(gridDim.x == 3 && gridDim.y == 2 && gridDim.z == 4 && blockDim.x == 5 && blockDim.y == 3 && blockDim.z == 7);
        uint32_t b = blockIdx.x + 3 * (blockIdx.y + 2 * blockIdx.z);
        seen[b * 105 + tid()]++;
        __syncthreads();
        seen[b * 105 + tid()]++;
    });
    for (int n : seen)
        expect_equal(n, 2);
}

void order_of_blocks_warps_and_lanes_changes(void **)
{
    std::vector<uint32_t> first_block, first_warp, first_lane;
    for (int i = 0; i < 30; i++) {
        bool begun = false;
        run(16, 256, 0, [&] {
            if (!begun) {
                first_block.push_back(blockIdx.x);
                first_warp.push_back(threadIdx.x / 32);
                first_lane.push_back(threadIdx.x % 32);
            }
            begun = true;
        });
    }
    for (auto *v : {&first_block, &first_warp, &first_lane}) {
        std::sort(v->begin(), v->end());
        expect(std::unique(v->begin(), v->end()) - v->begin() >= 4);
    }
}

/* Every thread passes a value to the one opposite, in another warp, twice over one buffer. */
template <bool first, bool second> int exchange_errors()
{
    int errors = 0;
    for (int i = 0; i < 10; i++)
        run(2, 128, 128 * 4, [&] {
            auto *s = reinterpret_cast<uint32_t *>(smem_base());
            uint32_t t = threadIdx.x, o = 127 - t;
            for (uint32_t round = 0; round < 3; round++) {
                s[t] = 1000 * round + t;
                if (first)
                    __syncthreads();
                errors += s[o] != 1000 * round + o;
                if (second)
                    __syncthreads();
            }
        });
    return errors;
}
void a_barrier_orders_and_a_missing_one_shows(void **)
{
    expect_equal((exchange_errors<true, true>()), 0);
    expect((exchange_errors<false, true>()) > 0);
    expect((exchange_errors<true, false>()) > 0);
}
/* The same between the lanes of a warp. */
void a_missing_syncwarp_shows(void **)
{
    for (bool sync : {true, false}) {
        int errors = 0;
        for (int i = 0; i < 5; i++)
            run(1, 32, 128, [&] {
                auto *s = reinterpret_cast<uint32_t *>(smem_base());
                s[threadIdx.x] = threadIdx.x;
                if (sync)
                    __syncwarp();
                errors += s[threadIdx.x ^ 1] != (threadIdx.x ^ 1);
            });
        expect(sync ? errors == 0 : errors > 0);
    }
}

void barriers_count_votes(void **)
{
    run(1, 100, 0, [] {
        int t = int(threadIdx.x);
        expect_equal(__syncthreads_count(t % 3 == 0), 34);
        expect_equal(__syncthreads_and(t >= 0), 1);
        expect_equal(__syncthreads_and(t != 77), 0);
        expect_equal(__syncthreads_or(t == 77), 1);
        expect_equal(__syncthreads_or(t > 100), 0);
    });
}

/* ---- warps */

/* The lane whose value lane i gets, from the guide's words: segments of `width` lanes; outside of the segment one's own (xor: later segments only). */
uint32_t up_source(uint32_t i, uint32_t by, uint32_t width)
{
    return i % width < by ? i : i - by;
}
uint32_t down_source(uint32_t i, uint32_t by, uint32_t width)
{
    return i % width + by >= width ? i : i + by;
}
uint32_t xor_source(uint32_t i, uint32_t by, uint32_t width)
{
    uint32_t to = i ^ by;
    return to / width > i / width ? i : to;
}
template <class T> T value_of(uint32_t lane)
{
    return T(3 * lane + 1);
}
template <> __half2 value_of(uint32_t lane)
{
    return __floats2half2_rn(float(lane), float(100 + lane));
}
template <class T> bool same(T a, T b)
{
    return memcmp(&a, &b, sizeof a) == 0;
}
template <class T> void shuffles()
{
    run(1, 64, 0, [] {
        uint32_t i = threadIdx.x % 32;
        T v = value_of<T>(i);
        for (uint32_t width = 1; width <= 32; width *= 2)
            for (uint32_t by = 0; by < 32; by++) {
                int w = int(width);
                expect(same(__shfl_sync(~0u, v, int(by), w), value_of<T>(i / width * width + by % width)));
                expect(same(__shfl_up_sync(~0u, v, by, w), value_of<T>(up_source(i, by, width))));
                expect(same(__shfl_down_sync(~0u, v, by, w), value_of<T>(down_source(i, by, width))));
                expect(same(__shfl_xor_sync(~0u, v, int(by), w), value_of<T>(xor_source(i, by, width))));
            }
    });
}
void shuffles_give_the_value_of_the_lane_that_the_guide_names(void **)
{
    shuffles<int>();
    shuffles<float>();
    shuffles<uint64_t>();
    shuffles<double>();
    shuffles<__half>();
    shuffles<__half2>();
}

void votes_and_reductions_are_over_the_mask(void **)
{
    run(1, 32, 0, [] {
        uint32_t i = threadIdx.x;
        int x = int(i) - 20;
        expect_equal(__ballot_sync(~0u, i % 5 == 0), 0x42108421);
        expect(__any_sync(~0u, i == 9) && !__any_sync(~0u, i == 32) && __all_sync(~0u, i < 32) && !__all_sync(~0u, i < 31));
        expect_equal(__reduce_add_sync(~0u, x), 31 * 32 / 2 - 20 * 32);
        expect_equal(__reduce_min_sync(~0u, x), -20);
        expect_equal(__reduce_max_sync(~0u, x), 11);
        expect_equal(__reduce_min_sync(~0u, unsigned(x)), 0);
        expect(__reduce_max_sync(~0u, unsigned(x)) == UINT32_MAX);
        /* Thirds of the warp, each with its own mask, in different branches and loops of different length. */
        uint32_t third = i % 3, mask = third == 0 ? 0x49249249 : third == 1 ? 0x92492492 : 0x24924924;
        uint32_t n = third == 2 ? 10 : 11;
        for (uint32_t k = 0; k <= third; k++) {
            expect_equal(__popc(__ballot_sync(mask, 1)), n);
            if (third == 1)
                __syncwarp(mask);
            expect_equal(__shfl_sync(mask, i, int(third + 3)), third + 3);
        }
        __syncwarp();
    });
}

void a_lane_that_a_shuffle_does_not_name_gives_poison(void **)
{
    run(1, 32, 0, [] {
        if (threadIdx.x < 16)
            expect(__shfl_sync(0xffff, 1.0f, 20) != __shfl_sync(0xffff, 1.0f, 20)); /* NaN */
    });
}

/* ---- memory */

void shared_memory_is_poison_in_every_block_and_aligned(void **)
{
    run(20, 64, 3 * 64 * 4, [] {
        auto *s = reinterpret_cast<float *>(smem_base());
        expect_equal(size_t(s) % 1024, 0);
        for (int i = 0; i < 3; i++)
            expect(std::isnan(s[64 * i + int(threadIdx.x)]));
        expect(__hisnan(reinterpret_cast<__half *>(s)[threadIdx.x]));
        __syncthreads();
        s[threadIdx.x] = s[64 + threadIdx.x] = s[128 + threadIdx.x] = 0;
    });
}

void atomics_lose_nothing(void **)
{
    int sum = 0, largest = INT32_MIN, smallest = INT32_MAX, tickets = 0;
    unsigned wrap = 0, bits = 0;
    unsigned long long wide = 0;
    float f = 0;
    std::vector<int> seen(32 * 96);
    run(32, 96, 4, [&] {
        int i = int(blockIdx.x * 96 + threadIdx.x);
        atomicAdd(&sum, i);
        atomicMax(&largest, i);
        atomicMin(&smallest, i);
        atomicAdd(&wide, 1ull << 33);
        atomicAdd(&f, 0.5f);
        atomicInc(&wrap, 6);
        atomicOr(&bits, 1u << i % 32);
        seen[size_t(atomicAdd(&tickets, 1))]++;
    });
    int n = 32 * 96;
    expect_equal(sum, n * (n - 1) / 2);
    expect_equal(largest, n - 1);
    expect_equal(smallest, 0);
    expect(wide == uint64_t(n) << 33);
    expect(f == float(n) / 2);
    expect_equal(wrap, n % 7);
    expect(bits == UINT32_MAX);
    expect_equal(std::count(seen.begin(), seen.end(), 1), n);
    run(1, 32, 0, [&] { /* a lock: one after the other, by compare and swap */
        while (atomicCAS(&tickets, n, -1) != n)
            ;
        sum++;
        expect_equal(atomicExch(&tickets, n), -1);
    });
    expect_equal(sum, n * (n - 1) / 2 + 32);
}

/* ---- waiting for memory */

uint32_t load(uint32_t *p)
{
    uint32_t v = __atomic_load_n(p, __ATOMIC_ACQUIRE);
    emu::polled(p, v);
    return v;
}

void blocks_that_wait_for_each_other_go_on(void **)
{
    uint32_t count = 0, errors = 0;
    std::vector<uint32_t> data(64);
    run(64, 64, 0, [&] {
        for (uint32_t round = 1; round <= 3; round++) {
            if (threadIdx.x == 0) {
                data[blockIdx.x] = round;
                atomicAdd(&count, 1u);
                while (load(&count) < 64 * round)
                    ;
            }
            __syncthreads();
            errors += data[(blockIdx.x + threadIdx.x) % 64] < round;
            __syncthreads();
        }
    });
    expect_equal(errors, 0);
    expect_equal(count, 64 * 3);
}

void two_kernels_that_wait_for_each_other_go_on_by_turns(void **)
{
    uint32_t ping = 0, pong = 0;
    emu::kernel_launch one = {"one", 2, 64, 64, [&] {
                                  __syncthreads();
                                  if (threadIdx.x == 40 && blockIdx.x == 1)
                                      for (uint32_t i = 1; i <= 3; i++) {
                                          __atomic_store_n(&ping, i, __ATOMIC_RELEASE);
                                          while (load(&pong) != i)
                                              ;
                                      }
                                  __syncthreads();
                              }};
    emu::kernel_launch other = {"other", 1, 32, 0, [&] {
                                    for (uint32_t i = 1; i <= 3; i++) {
                                        while (load(&ping) < i)
                                            ;
                                        __syncwarp();
                                        if (threadIdx.x == 0)
                                            __atomic_store_n(&pong, i, __ATOMIC_RELEASE);
                                    }
                                }};
    auto a = emu::kernel_begin(one), b = emu::kernel_begin(other), never = emu::kernel_begin(other);
    fault f;
    ping = 0;
    expect(emu::kernel_advance(*never, &f) != emu::advance::ended); /* and is abandoned as it waits */
    never = nullptr;
    bool a_ended = false, b_ended = false;
    for (int turn = 0; turn < 100 && !(a_ended && b_ended); turn++) {
        std::thread t([&] { /* any OS thread may go on */
            a_ended = a_ended || emu::kernel_advance(*a, &f) == emu::advance::ended;
        });
        t.join();
        b_ended = b_ended || emu::kernel_advance(*b, &f) == emu::advance::ended;
    }
    expect(a_ended && b_ended && pong == 3);
}

/* ---- faults */

void a_barrier_that_not_all_reach_is_reported(void **)
{
    std::string text = message_of([] {
        run(
            dim3(2, 3), 64, 0,
            [] {
                if (blockIdx.x == 1 && blockIdx.y == 2 && threadIdx.x >= 40)
                    return;
                __syncthreads();
            },
            "leaves_early");
    });
    assert_says(text, {"kernel leaves_early, block (1,2,0)", "deadlock", "40 of 64 threads wait in __syncthreads at ", "test_engine.cc:",
                       "24 threads have left the kernel, thread (", "RACKLM_EMU_SEED="});
}

void barriers_at_two_places_are_reported(void **)
{
    std::string text = message_of([] {
        run(1, 64, 0, [] {
            if (threadIdx.x < 32)
                __syncthreads();
            else
                __syncthreads();
        });
    });
    assert_says(text, {"block (0,0,0), thread (", "__syncthreads at ", "while others of the block wait in the one at "});
}

void a_lane_that_does_not_come_to_a_shuffle_is_reported(void **)
{
    std::string text = message_of([] {
        run(1, 64, 0, [] {
            if (threadIdx.x == 37)
                __syncthreads();
            else
                __shfl_xor_sync(~0u, 1, 1);
        });
    });
    assert_says(text, {"deadlock", "warp 1: lanes ffffffdf wait in __shfl_xor_sync at ", "mask ffffffff: lanes 00000020 do not come", "1 of 64 threads wait in __syncthreads",
                       "32 threads have left"});
    text = message_of([] {
        run(1, 32, 0, [] { __ballot_sync(0xffff, 1); });
    });
    assert_says(text, {"__ballot_sync at ", "mask 0000ffff names not the calling lane, "});
}

void an_access_out_of_bounds_is_reported(void **)
{
    auto *page = static_cast<unsigned char *>(mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(page + 4096, 4096, PROT_NONE);
    auto *p = reinterpret_cast<volatile uint32_t *>(page);
    std::string text = message_of([&] {
        run(dim3(4, 1, 2), 32, 0, [&] { p[993 + threadIdx.x + (blockIdx.z ? 0 : threadIdx.x % 2)] = 1; }, "far_store");
    });
    assert_says(text, {"kernel far_store, block (", "thread (31,0,0): access out of bounds (or misaligned), address 0x"});
    munmap(page, 8192);
#if !defined(__SANITIZE_ADDRESS__)
    text = message_of([] {
        run(1, 32, 1000, [] { reinterpret_cast<volatile unsigned char *>(smem_base())[threadIdx.x == 3 ? 1024 : 0] = 1; });
    });
    assert_says(text, {"thread (3,0,0): access out of bounds, 1024 bytes from the start of 1000 bytes of shared memory"});
    text = message_of([] {
        run(1, 32, 1000, [] { reinterpret_cast<volatile unsigned char *>(smem_base())[1000] = 1; }); /* no guard page there */
    });
    assert_says(text, {"block (0,0,0): bytes before or after the block's 1000 of shared memory were written"});
    text = message_of([] {
        run(1, 32, 1000, [] { reinterpret_cast<volatile unsigned char *>(smem_base())[-1] = 1; });
    });
    assert_says(text, {"bytes before or after the block's 1000"});
#endif
}

#if defined(__SANITIZE_ADDRESS__)
void address_sanitizer_reports_get_the_place(void **)
{
    for (ptrdiff_t at : {ptrdiff_t(-1), ptrdiff_t(1000), ptrdiff_t(1023)}) {
        std::string text = message_of([at] {
            run(1, 64, 1000, [at] { reinterpret_cast<volatile unsigned char *>(smem_base())[threadIdx.x == 40 ? at : 0] = 1; }, "asan_kernel");
        });
        assert_says(text, {"AddressSanitizer: use-after-poison", "test_engine.cc", "kernel asan_kernel, block (0,0,0), thread (40,0,0)"});
    }
    std::string text = message_of([] {
        std::vector<uint32_t> v(100);
        run(1, 128, 0, [&] { v.data()[threadIdx.x == 99 ? 100 : 0] = 1; });
    });
    assert_says(text, {"heap-buffer-overflow", "block (0,0,0), thread (99,0,0)"});
    text = message_of([] { /* its companion UndefinedBehaviorSanitizer's */
        int x = INT32_MAX - 31;
        run(1, 64, 0, [&] { x += threadIdx.x == 50 ? 32 : 0; }, "ubsan_kernel");
    });
    assert_says(text, {"signed integer overflow", "kernel ubsan_kernel, block (0,0,0), thread (50,0,0)"});
}
#endif

__attribute__((noinline)) int deep(int n)
{
    volatile char frame[1024];
    frame[n % 1024] = char(n);
    return n == 0 ? 0 : deep(n - 1) + frame[n % 1024];
}
void other_faults_are_reported(void **)
{
    assert_says(message_of([] {
                    run(1, 32, 0, [] {
                        if (threadIdx.x == 5)
                            __trap();
                    });
                }),
                {"thread (5,0,0): __trap()"});
    assert_says(message_of([] {
                    run(1, 32, 0, [] {
                        if (threadIdx.x == 5)
                            abort();
                    });
                }),
                {"thread (5,0,0): abort()"});
    assert_says(message_of([] { run(1, 1, 0, [] { deep(100000); }); }), {"stack overflow of an emulated thread"});
    assert_says(message_of([] {
                    uint32_t never = 0;
                    run(2, 32, 0, [&] {
                        if (threadIdx.x == 7)
                            while (load(&never) == 0)
                                ;
                        __syncthreads();
                    });
                }),
                {"thread (7,0,0): waits for memory that nobody writes", "31 of 32 threads wait in __syncthreads"});
}

void a_caught_fault_is_returned_and_the_next_kernel_runs(void **)
{
    int keep = dup(2), null = open("/dev/null", O_WRONLY);
    dup2(null, 2);
    emu::catch_faults(true);
    auto *page = static_cast<unsigned char *>(mmap(nullptr, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    fault f[3] = {}, good[3] = {};
    for (int i = 0; i < 3; i++) {
        if (i == 0)
            f[i] = run(4, 96, 64, [] {
                if (threadIdx.x < 50)
                    __syncthreads();
            });
        else if (i == 1)
            f[i] = run(4, 96, 64, [page] {
                __shfl_xor_sync(~0u, 1, 1);
                if (threadIdx.x == 60)
                    *const_cast<volatile unsigned char *>(page) = 1;
                __syncthreads();
            });
        else
            f[i] = run(4, 96, 64, [] {
                __syncthreads();
                if (threadIdx.x == 60)
                    __trap();
                __syncthreads();
            });
        int n = 0;
        good[i] = run(4, 96, 64, [&] {
            __syncthreads();
            n += __shfl_xor_sync(~0u, 1, 1);
            __syncthreads();
        });
        expect_equal(n, 4 * 96);
    }
    emu::catch_faults(false);
    dup2(keep, 2);
    munmap(page, 4096);
    expect(f[0] == fault::divergent_barrier && f[1] == fault::out_of_bounds && f[2] == fault::trap);
    for (fault g : good)
        expect(g == fault::none);
}

/* ---- functions: integers, conversions */

void integer_functions(void **)
{
    uint64_t r = 88172645463325252u;
    for (int n = 0; n < 10000; n++) {
        r ^= r << 13, r ^= r >> 7, r ^= r << 17;
        auto a = uint32_t(r), b = uint32_t(r >> 32);
        auto *x = reinterpret_cast<uint8_t *>(&a), *y = reinterpret_cast<uint8_t *>(&b);
        int64_t dot = -5, udot = 5;
        for (int i = 0; i < 4; i++) {
            dot += int64_t(int8_t(x[i])) * int8_t(y[i]);
            udot += int64_t(x[i]) * y[i];
        }
        expect(__dp4a(int(a), int(b), -5) == dot && int64_t(__dp4a(a, b, 5u)) == udot);
        uint32_t sh = b % 32;
        expect(__funnelshift_l(a, b, sh) == (sh ? b << sh | a >> (32 - sh) : b) && __funnelshift_r(a, b, sh) == (sh ? a >> sh | b << (32 - sh) : a));
        expect(__byte_perm(a, b, 0x7160) == (uint32_t(y[3]) << 24 | uint32_t(x[1]) << 16 | uint32_t(y[2]) << 8 | x[0]));
        expect(__umulhi(a, b) == uint32_t(uint64_t(a) * b >> 32) && __popc(a) == __builtin_popcount(a));
        expect(min(a, b) == (a < b ? a : b) && max(int(a), int(b)) == (int(a) > int(b) ? int(a) : int(b)));
    }
    expect(__dp4a(int(0x80808080), int(0x80808080), INT32_MAX) == INT32_MIN + 65535); /* wraps: 4 * 16384 more */
    expect(__clz(0) == 32 && __clz(1) == 31 && __ffs(0) == 0 && __ffs(8) == 4 && __brev(1) == 0x80000000u);
    expect(__float2int_rn(2.5f) == 2 && __float2int_rn(3.5f) == 4 && __float2int_rn(-2.5f) == -2 && __float2int_rn(1e20f) == INT32_MAX &&
                __float2int_rn(NAN) == 0 && __float2int_rz(-2.9f) == -2 && __float2uint_rn(-1.0f) == 0 && __float2uint_rn(4294967040.0f) == 4294967040u);
    expect(fmaxf(NAN, 1.0f) == 1.0f && max(NAN, 1.0f) == 1.0f && __saturatef(NAN) == 0.0f); /* as the guide has max, fmax and __saturatef */
}

uint32_t bits(float x)
{
    return emu::bit_cast<uint32_t>(x);
}
void f16_conversions_are_those_of_the_machine(void **)
{
    for (uint32_t h = 0; h < 65536; h++) {
        float want = _cvtsh_ss(uint16_t(h)), got = __half2float(__ushort_as_half(uint16_t(h)));
        expect(std::isnan(want) ? std::isnan(got) : bits(want) == bits(got));
        float2 pair = __half22float2(emu::bit_cast<__half2>(h | h << 16));
        expect(std::isnan(want) ? std::isnan(pair.x) && std::isnan(pair.y) : bits(pair.x) == bits(want) && bits(pair.y) == bits(want));
    }
    for (uint64_t u = 0; u < 1ull << 32; u += 65521) { /* a prime step, and each f16 tie and its neighbours */
        auto x = emu::bit_cast<float>(uint32_t(u));
        if (!std::isnan(x))
            expect_equal(__half_as_ushort(__float2half_rn(x)), _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
    }
    for (uint32_t h = 0; h < 0x7bff; h++) {
        float a = _cvtsh_ss(uint16_t(h)), b = _cvtsh_ss(uint16_t(h + 1)), tie = (a + b) / 2;
        for (float x : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 1e9f)})
            expect_equal(__half_as_ushort(__float2half_rn(x)), _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
    }
    /* One rounding: 1 + 2^-10 squared, less 1, is 2^-9 + 2^-20; two roundings would lose the last term. */
    __half x = __float2half_rn(1.0009765625f), fma = __hfma(x, x, __float2half_rn(-1.0f));
    expect(__half2float(fma) == _cvtsh_ss(_cvtss_sh(0.001953125f + 9.5367431640625e-07f, 0)));
    expect(same(__hfma2(__half2half2(x), __half2half2(x), __float2half2_rn(-1.0f)), __half2half2(fma)));
}

void bf16_conversions_round_to_nearest_even(void **)
{
    for (uint64_t u = 0; u < 1ull << 32; u += 32749) {
        auto x = emu::bit_cast<float>(uint32_t(u));
        uint32_t want = uint32_t((u + 0x7fff + (u >> 16 & 1)) >> 16); /* carries into the exponent as it must; infinity for what is too large */
        if (!std::isnan(x)) {
            expect_equal(__bfloat16_as_ushort(__float2bfloat16_rn(x)), want & 0xffff);
            expect(bits(__bfloat162float(__ushort_as_bfloat16(uint16_t(want)))) == want << 16);
        }
    }
}

/* OCP 8-bit floating point specification, E4M3: bias 7, no infinity, S.1111.111 is NaN. */
void fp8_conversions_follow_the_format(void **)
{
    std::vector<float> value(127);
    for (uint32_t i = 0; i < 127; i++) {
        value[i] = i < 8 ? std::ldexp(float(i), -9) : std::ldexp(1.0f + float(i % 8) / 8, int(i / 8) - 7);
        __half_raw h = __nv_cvt_fp8_to_halfraw(uint8_t(i), __NV_E4M3), m = __nv_cvt_fp8_to_halfraw(uint8_t(i | 128), __NV_E4M3);
        expect(_cvtsh_ss(h.x) == value[i] && _cvtsh_ss(m.x) == -value[i]);
    }
    expect(std::isnan(_cvtsh_ss(__nv_cvt_fp8_to_halfraw(0x7f, __NV_E4M3).x)));
    for (uint32_t i = 0; i + 1 < 127; i++) {
        float tie = (value[i] + value[i + 1]) / 2;
        uint32_t even = i % 2 ? i + 1 : i;
        expect_equal(__nv_cvt_float_to_fp8(tie, __NV_SATFINITE, __NV_E4M3), even);
        expect_equal(__nv_cvt_float_to_fp8(std::nextafter(tie, 0.0f), __NV_SATFINITE, __NV_E4M3), i);
        expect_equal(__nv_cvt_float_to_fp8(-std::nextafter(tie, 1e9f), __NV_SATFINITE, __NV_E4M3), (i + 1) | 128);
    }
    expect_equal(__nv_cvt_float_to_fp8(1e9f, __NV_SATFINITE, __NV_E4M3), 126);
    expect_equal(__nv_cvt_float_to_fp8(NAN, __NV_SATFINITE, __NV_E4M3) & 127, 127);
}

__global__ void launched(int *out, int n, double scale)
{
    int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n)
        out[i] = int(i * scale);
}
void a_launch_passes_arguments_by_value_and_type(void **)
{
    int *p;
    expect_equal(cudaMalloc(reinterpret_cast<void **>(&p), 100 * 4), cudaSuccess);
    cudaStream_t s;
    expect_equal(cudaStreamCreate(&s), cudaSuccess);
    expect_equal(LAUNCH(launched, 4, 32, 0, s, p, 100, 3), cudaSuccess);
    int h[100];
    expect_equal(cudaMemcpyAsync(h, p, sizeof(h), cudaMemcpyDeviceToHost, s), cudaSuccess);
    expect_equal(cudaStreamSynchronize(s), cudaSuccess);
    for (int i = 0; i < 100; i++)
        expect_equal(h[i], 3 * i);
    cudaStreamDestroy(s);
    cudaFree(p);
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(every_thread_of_every_block_runs_once_with_its_indices),
        cmocka_unit_test(order_of_blocks_warps_and_lanes_changes),
        cmocka_unit_test(a_barrier_orders_and_a_missing_one_shows),
        cmocka_unit_test(a_missing_syncwarp_shows),
        cmocka_unit_test(barriers_count_votes),
        cmocka_unit_test(shuffles_give_the_value_of_the_lane_that_the_guide_names),
        cmocka_unit_test(votes_and_reductions_are_over_the_mask),
        cmocka_unit_test(a_lane_that_a_shuffle_does_not_name_gives_poison),
        cmocka_unit_test(shared_memory_is_poison_in_every_block_and_aligned),
        cmocka_unit_test(atomics_lose_nothing),
        cmocka_unit_test(blocks_that_wait_for_each_other_go_on),
        cmocka_unit_test(two_kernels_that_wait_for_each_other_go_on_by_turns),
        cmocka_unit_test(a_barrier_that_not_all_reach_is_reported),
        cmocka_unit_test(barriers_at_two_places_are_reported),
        cmocka_unit_test(a_lane_that_does_not_come_to_a_shuffle_is_reported),
        cmocka_unit_test(an_access_out_of_bounds_is_reported),
#if defined(__SANITIZE_ADDRESS__)
        cmocka_unit_test(address_sanitizer_reports_get_the_place),
#endif
        cmocka_unit_test(other_faults_are_reported),
        cmocka_unit_test(a_caught_fault_is_returned_and_the_next_kernel_runs),
        cmocka_unit_test(integer_functions),
        cmocka_unit_test(f16_conversions_are_those_of_the_machine),
        cmocka_unit_test(bf16_conversions_round_to_nearest_even),
        cmocka_unit_test(fp8_conversions_follow_the_format),
        cmocka_unit_test(a_launch_passes_arguments_by_value_and_type),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
