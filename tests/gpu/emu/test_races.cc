/* The race checker by itself (races.h): each rule once kept and once broken. A mistake must be told in every order, so each is tried with one launch only. */
#include "tests/gpu/emu/test_emu.h"

#include "kernels/cuda/ptx.cuh"

#include <vector>

namespace {

/* Accesses that the compiler leaves as they are. */
template <class T> __attribute__((noinline)) T load(const T *p)
{
    T v = *p;
    asm volatile("" ::"r"(v));
    return v;
}
template <class T> __attribute__((noinline)) void store(T *p, T v)
{
    *p = v;
    asm volatile("" ::: "memory");
}

template <class F> void is_a_race(dim3 grid, dim3 block, size_t smem, F f)
{
    assert_says(message_of([=] { run(grid, block, smem, f); }), {"kernel test_kernel", "race: ", "nothing orders the two"});
}

void exchange(bool first, bool second)
{
    auto *s = reinterpret_cast<uint32_t *>(smem_base());
    uint32_t t = threadIdx.x;
    for (uint32_t round = 0; round < 2; round++) {
        store(s + t, t);
        if (first)
            __syncthreads();
        load(s + (t + 32) % 64);
        if (second)
            __syncthreads();
    }
}
void a_barrier_orders_a_block(void **)
{
    run(2, 64, 256, [] { exchange(true, true); });
    is_a_race(2, 64, 256, [] { exchange(false, true); });
    is_a_race(2, 64, 256, [] { exchange(true, false); });
}

void lanes(bool first, bool second, bool shuffle)
{
    auto *s = reinterpret_cast<uint16_t *>(smem_base());
    uint32_t t = threadIdx.x;
    for (uint32_t round = 0; round < 2; round++) {
        store(s + t, uint16_t(t));
        if (first)
            __syncwarp();
        if (shuffle)
            __shfl_xor_sync(0xffffffff, t, 1);
        load(s + (t ^ 1));
        if (second)
            __syncwarp();
    }
}
void a_syncwarp_orders_a_warp_and_a_shuffle_does_not(void **)
{
    run(2, 64, 256, [] { lanes(true, true, false); });
    is_a_race(2, 64, 256, [] { lanes(false, true, false); });
    is_a_race(2, 64, 256, [] { lanes(true, false, false); });
    is_a_race(2, 64, 256, [] { lanes(false, true, true); });
}
void a_syncwarp_orders_no_other_warp(void **)
{
    is_a_race(1, 64, 256, [] {
        auto *s = reinterpret_cast<uint32_t *>(smem_base());
        store(s + threadIdx.x, 1u);
        __syncwarp();
        load(s + (threadIdx.x + 32) % 64);
    });
}

void many_may_read_what_is_stored_behind_a_barrier(void **)
{
    run(3, 128, 256, [] {
        auto *s = reinterpret_cast<uint32_t *>(smem_base());
        if (threadIdx.x == 5)
            store(s, 7u);
        __syncthreads();
        expect_equal(load(s), 7);
        expect_equal(load(s), 7);
        __syncthreads();
        if (threadIdx.x == 77)
            store(s, 8u);
    });
    /* The store is ordered with some of the readers only. */
    is_a_race(1, 128, 256, [] {
        auto *s = reinterpret_cast<uint32_t *>(smem_base());
        if (threadIdx.x == 5)
            store(s, 7u);
        __syncthreads();
        load(s);
        __syncwarp();
        if (threadIdx.x == 77)
            store(s, 8u);
    });
}

void atomics_race_with_plain_accesses_only(void **)
{
    run(1, 64, 256, [] {
        auto *s = reinterpret_cast<uint32_t *>(smem_base());
        if (threadIdx.x == 0)
            store(s, 0u);
        __syncthreads();
        atomicAdd(s, 1u);
        __syncthreads();
        expect_equal(load(s), 64);
    });
    is_a_race(1, 64, 256, [] {
        auto *s = reinterpret_cast<uint32_t *>(smem_base());
        if (threadIdx.x == 0)
            store(s, 0u);
        atomicAdd(s, 1u);
    });
}

void copies(bool wait, bool barrier, bool behind, const uint32_t *from)
{
    auto *s = reinterpret_cast<uint32_t *>(smem_base());
    uint32_t t = threadIdx.x;
    for (uint32_t round = 0; round < 2; round++) {
        ptx_cp_async_16(s + 4 * t, from + 4 * t);
        ptx_cp_async_commit();
        if (wait)
            ptx_cp_async_wait<0>();
        if (barrier)
            __syncthreads();
        load(s + 4 * ((t + 32) % 64));
        if (behind)
            __syncthreads();
    }
}
void a_copy_is_to_be_waited_for_and_then_a_barrier(void **)
{
    std::vector<uint32_t> words(256);
    uint32_t *from = words.data();
    run(2, 64, 1024, [=] { copies(true, true, true, from); });
    assert_says(message_of([=] { run(2, 64, 1024, [=] { copies(false, true, true, from); }); }), {"race: ", "cp.async", "not waited for"});
    is_a_race(2, 64, 1024, [=] { copies(true, false, true, from); });
    is_a_race(2, 64, 1024, [=] { copies(true, true, false, from); });
}

void ldmatrix_reads_what_its_lane_names(void **)
{
    auto kernel = [](bool wait) {
        auto *s = reinterpret_cast<uint32_t *>(smem_base());
        uint32_t r[4], t = threadIdx.x;
        for (uint32_t i = 0; i < 4; i++)
            store(s + 4 * t + i, t);
        if (wait)
            __syncwarp();
        ptx_ldmatrix_x4(r, s + 4 * (t ^ 1));
    };
    run(1, 32, 512, [=] { kernel(true); });
    is_a_race(1, 32, 512, [=] { kernel(false); });
}

/* The last block to come adds what all stored: before says where the fence of the one who counts is. */
enum class before { none, others_too_early, counter };
void last_block(uint32_t *parts, uint32_t *counter, before f, bool fence_behind)
{
    auto *last = reinterpret_cast<uint32_t *>(smem_base());
    store(parts + blockIdx.x * 64 + threadIdx.x, 1u);
    if (f == before::others_too_early)
        __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (f == before::counter)
            __threadfence();
        uint32_t n = atomicAdd(counter, 1u);
        if (fence_behind)
            __threadfence();
        store(last, uint32_t(n == gridDim.x - 1));
    }
    __syncthreads();
    if (load(last))
        for (uint32_t b = 0; b < gridDim.x; b++)
            expect_equal(load(parts + b * 64 + 63 - threadIdx.x), 1);
}
void blocks_are_ordered_by_fences_around_an_atomic(void **)
{
    std::vector<uint32_t> words(5 * 64 + 1);
    uint32_t *parts = words.data(), *counter = parts + 5 * 64;
    run(5, 64, 16, [=] { last_block(parts, counter, before::counter, true); });
    *counter = 0;
    is_a_race(5, 64, 16, [=] { last_block(parts, counter, before::none, true); });
    is_a_race(5, 64, 16, [=] { last_block(parts, counter, before::others_too_early, true); });
    is_a_race(5, 64, 16, [=] { last_block(parts, counter, before::counter, false); });
}
void release_and_acquire_order_blocks(void **)
{
    uint32_t words[2] = {}, *x = words, *flag = words + 1;
    auto kernel = [=](bool acquire) {
        if (blockIdx.x == 0) {
            store(x, 5u);
            ptx_st_release_gpu(flag, 1);
            return;
        }
        while ((acquire ? ptx_ld_acquire_gpu(flag) : ptx_ld_relaxed_gpu(flag)) == 0) {
        }
        expect_equal(load(x), 5);
    };
    run(2, 1, 0, [=] { kernel(true); });
    *flag = 0;
    is_a_race(2, 1, 0, [=] { kernel(false); });
}

void launches_of_one_stream_are_ordered(void **)
{
    uint32_t x[64];
    for (uint32_t i = 0; i < 3; i++)
        run(2, 32, 0, [&] { store(x + blockIdx.x * 32 + (threadIdx.x + 7 * i) % 32, i); });
    is_a_race(2, 32, 0, [&] { store(x + threadIdx.x, 1u); });
}

/* An allocation of 20 bytes in a process of its own. A runtime that is in use does not go through a fork. */
template <class F> __global__ void lambda_kernel(F f)
{
    f();
}
template <class F> std::string message_with_words(F f)
{
    return message_of([f] {
        uint32_t *x = nullptr;
        cudaMalloc(reinterpret_cast<void **>(&x), 20);
        auto kernel = [=] { f(x); };
        cudaError_t e = LAUNCH(lambda_kernel<decltype(kernel)>, 1, 1, 20, nullptr, kernel);
        e = e == cudaSuccess ? cudaDeviceSynchronize() : e;
        if (e != cudaSuccess) {
            fprintf(stderr, "%s\n", cudaGetErrorName(e));
            _exit(1);
        }
        fprintf(stderr, "no fault\n");
        _exit(2);
    });
}
void bounds_are_exact(void **)
{
    assert_says(message_with_words([](uint32_t *x) { store(x + 4, load(x)); }), {"no fault"});
    assert_says(message_with_words([](uint32_t *x) { store(x + 5, 1u); }), {"access of 4 bytes out of bounds", "byte 20 of 20 bytes of device memory"});
    assert_says(message_with_words([](uint32_t *x) { load(x + 5); }), {"access of 4 bytes out of bounds", "byte 20 of 20 bytes of device memory"});
    assert_says(message_with_words([](uint32_t *) { store(smem_base() + 19, (unsigned char)1); }), {"no fault"});
    assert_says(message_with_words([](uint32_t *) { store(smem_base() + 20, (unsigned char)1); }), {"out of bounds", "20 from the start of 20 bytes of shared memory"});
    assert_says(message_with_words([](uint32_t *) { load(smem_base() - 1); }), {"out of bounds", "-1 from the start"});
}

} // namespace

int main()
{
    const CMUnitTest tests[] = {
        cmocka_unit_test(bounds_are_exact), /* first: nothing has used the runtime yet */
        cmocka_unit_test(a_barrier_orders_a_block),
        cmocka_unit_test(a_syncwarp_orders_a_warp_and_a_shuffle_does_not),
        cmocka_unit_test(a_syncwarp_orders_no_other_warp),
        cmocka_unit_test(many_may_read_what_is_stored_behind_a_barrier),
        cmocka_unit_test(atomics_race_with_plain_accesses_only),
        cmocka_unit_test(a_copy_is_to_be_waited_for_and_then_a_barrier),
        cmocka_unit_test(ldmatrix_reads_what_its_lane_names),
        cmocka_unit_test(blocks_are_ordered_by_fences_around_an_atomic),
        cmocka_unit_test(release_and_acquire_order_blocks),
        cmocka_unit_test(launches_of_one_stream_are_ordered),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
