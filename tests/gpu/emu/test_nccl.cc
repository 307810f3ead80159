/* The emulated NCCL (nccl.cc), by known answers: what NCCL's user guide says of each call (collective operations, point-to-point, group calls, non-blocking
 * communicators, aborting). Ranks are threads, each with a device. */
#include "tests/gpu/emu/emu_control.h"

#include <nccl.h>

#include <csetjmp>
#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

extern "C" {
#include <cmocka.h>
}

namespace
{

struct rank {
    int me, n;
    ncclComm_t comm;
    cudaStream_t stream;
    std::string failed; /* the first expectation that did not hold; cmocka's own need the main thread */
    void expect(bool ok, const char *what)
    {
        if (!ok && failed.empty())
            failed = "rank " + std::to_string(me) + ": " + what;
    }
};
#define EXPECT(x) r.expect((x), #x)

ncclResult_t settle(rank &r, ncclResult_t first)
{
    ncclResult_t state = first;
    while (state == ncclInProgress) {
        std::this_thread::sleep_for(std::chrono::microseconds(100));
        if (ncclCommGetAsyncError(r.comm, &state) != ncclSuccess)
            return ncclInternalError;
    }
    return state;
}

/* n ranks run fn with a communicator each. */
void with_ranks(int n, bool blocking, const std::function<void(rank &)> &fn)
{
    ncclUniqueId id;
    assert_int_equal(ncclGetUniqueId(&id), ncclSuccess);
    std::vector<rank> ranks((size_t)n);
    std::vector<std::thread> threads;
    for (int i = 0; i < n; i++)
        threads.emplace_back([&, i] {
            rank &r = ranks[(size_t)i];
            r.me = i;
            r.n = n;
            EXPECT(cudaSetDevice(i) == cudaSuccess);
            EXPECT(cudaStreamCreateWithFlags(&r.stream, cudaStreamNonBlocking) == cudaSuccess);
            ncclConfig_t cfg = NCCL_CONFIG_INITIALIZER;
            cfg.blocking = blocking;
            ncclResult_t e = ncclCommInitRankConfig(&r.comm, n, id, i, &cfg);
            EXPECT(e == (blocking ? ncclSuccess : ncclInProgress));
            EXPECT(settle(r, e) == ncclSuccess);
            fn(r);
            EXPECT(ncclCommAbort(r.comm) == ncclSuccess);
            EXPECT(cudaStreamSynchronize(r.stream) == cudaSuccess);
            EXPECT(cudaStreamDestroy(r.stream) == cudaSuccess);
        });
    for (auto &t : threads)
        t.join();
    for (auto &r : ranks)
        if (!r.failed.empty())
            fail_msg("%s", r.failed.c_str());
}

float *on_device(rank &r, const std::vector<float> &v)
{
    float *p = nullptr;
    EXPECT(cudaMalloc((void **)&p, v.size() * sizeof(float)) == cudaSuccess);
    EXPECT(cudaMemcpy(p, v.data(), v.size() * sizeof(float), cudaMemcpyHostToDevice) == cudaSuccess);
    return p;
}

std::vector<float> back(rank &r, float *p, size_t n)
{
    std::vector<float> v(n);
    EXPECT(cudaStreamSynchronize(r.stream) == cudaSuccess);
    EXPECT(cudaMemcpy(v.data(), p, n * sizeof(float), cudaMemcpyDeviceToHost) == cudaSuccess);
    return v;
}

void collectives(void **)
{
    with_ranks(3, true, [](rank &r) {
        float me = (float)r.me;
        float *a = on_device(r, {me, 10 * me, 1}), *b = on_device(r, std::vector<float>(9, -1));
        EXPECT(ncclAllReduce(a, b, 3, ncclFloat32, ncclSum, r.comm, r.stream) == ncclSuccess);
        EXPECT((back(r, b, 4) == std::vector<float>{3, 30, 3, -1}));
        EXPECT(ncclAllGather(a, b, 3, ncclFloat32, r.comm, r.stream) == ncclSuccess);
        EXPECT((back(r, b, 9) == std::vector<float>{0, 0, 1, 1, 10, 1, 2, 20, 1}));
        EXPECT(ncclBroadcast(a, b, 2, ncclFloat32, 1, r.comm, r.stream) == ncclSuccess);
        EXPECT((back(r, b, 3) == std::vector<float>{1, 10, 1}));
        /* In place. */
        EXPECT(ncclAllReduce(a, a, 3, ncclFloat32, ncclSum, r.comm, r.stream) == ncclSuccess);
        EXPECT((back(r, a, 3) == std::vector<float>{3, 30, 3}));
        cudaFree(a);
        cudaFree(b);
    });
}

/* All send before they receive, more than any buffer between them holds: only a group can do that. Messages of a pair keep their order. */
void groups_run_together(void **)
{
    with_ranks(3, true, [](rank &r) {
        constexpr size_t N = 300000;
        int next = (r.me + 1) % 3, prev = (r.me + 2) % 3;
        float *out = on_device(r, std::vector<float>(N, (float)r.me)), *in = on_device(r, std::vector<float>(N)), *one = on_device(r, {100.0f + (float)r.me}),
              *got = on_device(r, {0});
        EXPECT(ncclGroupStart() == ncclSuccess);
        EXPECT(ncclSend(out, N, ncclFloat32, next, r.comm, r.stream) == ncclSuccess);
        EXPECT(ncclSend(one, 1, ncclFloat32, next, r.comm, r.stream) == ncclSuccess);
        EXPECT(ncclRecv(in, N, ncclFloat32, prev, r.comm, r.stream) == ncclSuccess);
        EXPECT(ncclRecv(got, 1, ncclFloat32, prev, r.comm, r.stream) == ncclSuccess);
        EXPECT(cudaStreamQuery(r.stream) == cudaSuccess); /* nothing has gone yet */
        EXPECT(ncclGroupEnd() == ncclSuccess);
        EXPECT(back(r, in, N) == std::vector<float>(N, (float)prev));
        EXPECT((back(r, got, 1) == std::vector<float>{100.0f + (float)prev}));
        EXPECT(ncclGroupEnd() == ncclInvalidUsage);
        for (float *p : {out, in, one, got})
            cudaFree(p);
    });
}

/* 2^24 + 1 + 1 is another number in another order. Where an element lies decides about the order, and all ranks have the same. */
void sums_are_the_same_everywhere_and_of_no_promised_order(void **)
{
    std::vector<float> results[3];
    with_ranks(3, true, [&](rank &r) {
        float *a = on_device(r, std::vector<float>(1000, r.me == 0 ? 16777216.0f : 1.0f));
        EXPECT(ncclAllReduce(a, a, 1000, ncclFloat32, ncclSum, r.comm, r.stream) == ncclSuccess);
        results[r.me] = back(r, a, 1000);
        cudaFree(a);
    });
    assert_true(results[0] == results[1] && results[1] == results[2]);
    bool low = false, high = false;
    for (float v : results[0]) {
        low |= v == 16777216.0f;
        high |= v == 16777218.0f;
    }
    assert_true(low && high);
}

void a_call_that_is_in_progress_has_to_be_asked_for(void **)
{
    with_ranks(2, false, [](rank &r) {
        float *a = on_device(r, {1, 2});
        EXPECT(ncclAllReduce(a, a, 2, ncclFloat32, ncclSum, r.comm, r.stream) == ncclInProgress);
        EXPECT(cudaStreamQuery(r.stream) == cudaSuccess); /* not in the stream yet */
        EXPECT(ncclAllReduce(a, a, 2, ncclFloat32, ncclSum, r.comm, r.stream) == ncclInvalidArgument);
        EXPECT(settle(r, ncclInProgress) == ncclSuccess);
        EXPECT((back(r, a, 2) == std::vector<float>{2, 4}));
        cudaFree(a);
    });
}

void wrong_arguments(void **)
{
    with_ranks(2, true, [](rank &r) {
        float host[4] = {}, *a = on_device(r, {1, 2});
        EXPECT(ncclAllReduce(host, host, 2, ncclFloat32, ncclSum, r.comm, r.stream) == ncclInvalidArgument);
        EXPECT(ncclBroadcast(a, a, 2, ncclFloat32, 2, r.comm, r.stream) == ncclInvalidArgument);
        EXPECT(ncclSend(a, 2, ncclFloat32, -1, r.comm, r.stream) == ncclInvalidArgument);
        EXPECT(ncclSend(a, 2, (ncclDataType_t)99, 1 - r.me, r.comm, r.stream) == ncclInvalidArgument);
        EXPECT(ncclAllReduce(a, a, 2, ncclFloat32, ncclSum, nullptr, r.stream) == ncclInvalidArgument);
        EXPECT(strlen(ncclGetLastError(r.comm)) > 0);
        EXPECT(cudaSetDevice(2) == cudaSuccess);
        EXPECT(ncclAllReduce(a, a, 2, ncclFloat32, ncclSum, r.comm, r.stream) == ncclInvalidUsage);
        EXPECT(cudaSetDevice(r.me) == cudaSuccess);
        cudaFree(a);
    });
    ncclUniqueId id = {};
    ncclComm_t c;
    ncclConfig_t cfg = NCCL_CONFIG_INITIALIZER;
    assert_int_equal(ncclCommInitRankConfig(&c, 2, id, 0, &cfg), ncclSystemError); /* nobody's id */
    assert_int_equal(ncclGetUniqueId(&id), ncclSuccess);
    assert_int_equal(ncclCommInitRankConfig(&c, 2, id, 2, &cfg), ncclInvalidArgument);
    cfg.magic = 0;
    assert_int_equal(ncclCommInitRankConfig(&c, 2, id, 0, &cfg), ncclInvalidArgument);
    int version = 0;
    assert_int_equal(ncclGetVersion(&version), ncclSuccess);
    assert_int_equal(version, NCCL_VERSION(2, 28, 9));
}

/* Rank 1 stays away, or wants something else: rank 0's stream stands still, nothing is reported, until it aborts. */
void only_an_abort_ends_what_nobody_answers(void **)
{
    for (int away = 0; away < 2; away++)
        with_ranks(2, false, [=](rank &r) {
            float *a = on_device(r, std::vector<float>(100));
            if (r.me == 0 || !away) {
                EXPECT(settle(r, ncclAllReduce(a, a, r.me == 0 ? 100 : 50, ncclFloat32, ncclSum, r.comm, r.stream)) == ncclSuccess);
                for (int i = 0; i < 100; i++) {
                    EXPECT(cudaStreamQuery(r.stream) == cudaErrorNotReady);
                    std::this_thread::sleep_for(std::chrono::milliseconds(1));
                }
                ncclResult_t state;
                EXPECT(ncclCommGetAsyncError(r.comm, &state) == ncclSuccess && state == ncclSuccess);
            }
            (void)cudaGetLastError();
        });
}

void a_graph_repeats_its_operations(void **)
{
    with_ranks(2, false, [](rank &r) {
        float *a = on_device(r, {1, 2});
        cudaGraph_t g;
        cudaGraphExec_t x;
        EXPECT(cudaStreamBeginCapture(r.stream, cudaStreamCaptureModeThreadLocal) == cudaSuccess);
        for (int i = 0; i < 2; i++)
            EXPECT(settle(r, ncclAllReduce(a, a, 2, ncclFloat32, ncclSum, r.comm, r.stream)) == ncclSuccess);
        EXPECT(cudaStreamEndCapture(r.stream, &g) == cudaSuccess);
        EXPECT(cudaGraphInstantiate(&x, g, 0) == cudaSuccess);
        for (int i = 0; i < 3; i++)
            EXPECT(cudaGraphLaunch(x, r.stream) == cudaSuccess);
        EXPECT((back(r, a, 2) == std::vector<float>{64, 128}));
        EXPECT(cudaGraphExecDestroy(x) == cudaSuccess);
        EXPECT(cudaGraphDestroy(g) == cudaSuccess);
        cudaFree(a);
    });
}

void one_gpu_is_one_rank(void **)
{
    ncclUniqueId id;
    ncclComm_t comms[2];
    ncclConfig_t cfg = NCCL_CONFIG_INITIALIZER;
    cfg.blocking = 0;
    assert_int_equal(ncclGetUniqueId(&id), ncclSuccess);
    assert_int_equal(cudaSetDevice(0), cudaSuccess);
    for (int i = 0; i < 2; i++)
        assert_int_equal(ncclCommInitRankConfig(&comms[i], 2, id, i, &cfg), ncclInProgress);
    for (int i = 0; i < 2; i++) {
        ncclResult_t state;
        assert_int_equal(ncclCommGetAsyncError(comms[i], &state), ncclSuccess);
        assert_int_equal(state, ncclInvalidUsage);
        assert_int_equal(ncclCommAbort(comms[i]), ncclSuccess);
    }
}

} // namespace

int main(void)
{
    setenv("RACKLM_EMU_DEVICES", "4", 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(collectives),
        cmocka_unit_test(groups_run_together),
        cmocka_unit_test(sums_are_the_same_everywhere_and_of_no_promised_order),
        cmocka_unit_test(a_call_that_is_in_progress_has_to_be_asked_for),
        cmocka_unit_test(wrong_arguments),
        cmocka_unit_test(only_an_abort_ends_what_nobody_answers),
        cmocka_unit_test(a_graph_repeats_its_operations),
        cmocka_unit_test(one_gpu_is_one_rank),
    };
    return cmocka_run_group_tests_name("emulated NCCL", tests, nullptr, nullptr);
}
