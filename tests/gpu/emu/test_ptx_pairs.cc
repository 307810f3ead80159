/* ptx.cuh: stores and loads of two neighbours of 8 bytes (PTX ISA 9.0, 9.7.9.8 ld and 9.7.9.12 st with .v2, 8.2.2 on vector accesses). */
#include "kernels/cuda/ptx.cuh"

#include <csetjmp>
#include <cstdarg>
#include <cstring>

extern "C" {
#include <cmocka.h>
}

/* Thread t stores a pair at pairs[t] and loads its neighbour's after a barrier. */
static void exchange(void *pairs, uint64_t *out)
{
    uint32_t t = threadIdx.x;
    ptx_st_relaxed_sys_v2((char *)pairs + 16 * t, 0x1111111111111111ull * t, ~0ull - t);
    __syncthreads();
    ptx_ld_relaxed_sys_v2((char *)pairs + 16 * ((t + 1) % 8), out[2 * t], out[2 * t + 1]);
}

static void the_first_value_lies_lower(void **)
{
    unsigned char *pairs;
    uint64_t *out, host[16], raw[16];
    assert_int_equal(cudaMalloc((void **)&pairs, sizeof(raw)), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&out, sizeof(host)), cudaSuccess);
    assert_int_equal(LAUNCH(exchange, dim3(1), dim3(8), 0, nullptr, (void *)pairs, out), cudaSuccess);
    assert_int_equal(cudaMemcpy(raw, pairs, sizeof(raw), cudaMemcpyDeviceToHost), cudaSuccess);
    assert_int_equal(cudaMemcpy(host, out, sizeof(host), cudaMemcpyDeviceToHost), cudaSuccess);
    for (uint64_t t = 0; t < 8; t++) {
        assert_true(raw[2 * t] == 0x1111111111111111ull * t && raw[2 * t + 1] == ~0ull - t);
        assert_true(host[2 * t] == raw[2 * ((t + 1) % 8)] && host[2 * t + 1] == raw[2 * ((t + 1) % 8) + 1]);
    }
    cudaFree(pairs);
    cudaFree(out);
}

/* A receiver that loads while the sender stores: each half is old or new, and sooner or later a pair is seen of which only one half has come. */
static void watch(uint64_t *pair, uint32_t *torn)
{
    if (blockIdx.x == 0) {
        for (uint64_t i = 1; i <= 200; i++)
            ptx_st_relaxed_sys_v2(pair, i, i);
        return;
    }
    for (uint64_t lo = 0, hi = 0; lo != 200 || hi != 200;) {
        ptx_ld_relaxed_sys_v2(pair, lo, hi);
        *torn += lo != hi;
    }
}

static void a_pair_is_no_unit(void **)
{
    uint64_t *pair;
    uint32_t *torn, n = 0;
    assert_int_equal(cudaMalloc((void **)&pair, 16), cudaSuccess);
    assert_int_equal(cudaMalloc((void **)&torn, 4), cudaSuccess);
    assert_int_equal(cudaMemset(pair, 0, 16), cudaSuccess);
    assert_int_equal(cudaMemset(torn, 0, 4), cudaSuccess);
    assert_int_equal(LAUNCH(watch, dim3(2), dim3(1), 0, nullptr, pair, torn), cudaSuccess);
    assert_int_equal(cudaMemcpy(&n, torn, 4, cudaMemcpyDeviceToHost), cudaSuccess);
    assert_true(n > 0);
    cudaFree(pair);
    cudaFree(torn);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_first_value_lies_lower), cmocka_unit_test(a_pair_is_no_unit)};
    return cmocka_run_group_tests_name("ptx pairs", tests, nullptr, nullptr);
}
