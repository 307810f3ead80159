/* Stream capture and graphs of the emulated runtime, by the programming guide (CUDA Graphs) and the Runtime API's documentation (Stream Management). */
#include <thread>

#include "tests/gpu/emu/test_runtime.h"

namespace {

constexpr uint64_t SEEDS = 64;

cudaGraphExec_t end_capture(cudaStream_t s, size_t n_nodes)
{
    cudaGraph_t g;
    cudaGraphExec_t x;
    size_t n;
    OK(cudaStreamEndCapture(s, &g));
    OK(cudaGraphGetNodes(g, nullptr, &n));
    assert_int_equal(n, n_nodes);
    OK(cudaGraphInstantiate(&x, g, 0));
    OK(cudaGraphDestroy(g));
    return x;
}

void begin(cudaStream_t s)
{
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
}

/* It ends with this error and no graph, and the stream is an ordinary one again. */
void ends_with(cudaError_t e, cudaStream_t s)
{
    cudaGraph_t g = (cudaGraph_t)1;
    enum cudaStreamCaptureStatus status;
    GIVES(e, cudaStreamEndCapture(s, &g));
    assert_null(g);
    OK(cudaStreamIsCapturing(s, &status));
    assert_int_equal(status, cudaStreamCaptureStatusNone);
    OK(cudaStreamSynchronize(s));
}

void nothing_runs_while_it_is_captured(void **)
{
    float *d = device_array<float>(1);
    cudaStream_t s = new_stream();
    enum cudaStreamCaptureStatus status;
    OK(cudaMemset(d, 0, 4));
    OK(cudaDeviceSynchronize());
    OK(cudaStreamIsCapturing(s, &status));
    assert_int_equal(status, cudaStreamCaptureStatusNone);
    begin(s);
    OK(cudaStreamIsCapturing(s, &status));
    assert_int_equal(status, cudaStreamCaptureStatusActive);
    for (int i = 0; i < 3; i++)
        OK(LAUNCH(add_one, 1, 1, 0, s, d));
    cudaGraphExec_t x = end_capture(s, 3);
    OK(cudaStreamSynchronize(s));
    assert_true(read_one(d) == 0);
    for (int i = 0; i < 4; i++)
        OK(cudaGraphLaunch(x, s));
    OK(cudaGraphExecDestroy(x)); /* what was launched goes on */
    OK(cudaStreamSynchronize(s));
    assert_true(read_one(d) == 12);
}

/* Arguments as they were; memory, pinned memory too, as it is at the launch. */
void arguments_are_captured_memory_is_not(void **)
{
    float *d = device_array<float>(2), *in = pinned_array<float>(1), *out = pinned_array<float>(2), v = 10;
    cudaStream_t s = new_stream();
    begin(s);
    OK(cudaMemcpyAsync(d, in, 4, cudaMemcpyHostToDevice, s));
    OK(LAUNCH(add_one, 1, 1, 0, s, d));
    OK(LAUNCH(set_one, 1, 1, 0, s, d + 1, v));
    OK(cudaMemcpyAsync(out, d, 8, cudaMemcpyDeviceToHost, s));
    v = 11;
    cudaGraphExec_t x = end_capture(s, 4);
    for (int i = 0; i < 3; i++) {
        in[0] = (float)i;
        OK(cudaGraphLaunch(x, s));
        OK(cudaStreamSynchronize(s));
        assert_true(out[0] == (float)i + 1 && out[1] == 10);
    }
    OK(cudaGraphExecDestroy(x));
}

/* Fork to two streams by an event, join by another: both branches come after the fork and before the join, in either order. */
void a_capture_forks_and_joins(void **)
{
    float *d = device_array<float>(5);
    cudaStream_t s = new_stream(), t = new_stream();
    cudaEvent_t fork = new_event(), join = new_event();
    begin(s);
    OK(LAUNCH(set_one, 1, 1, 0, s, d, 1.0f));
    OK(cudaEventRecord(fork, s));
    OK(cudaStreamWaitEvent(t, fork, 0));
    OK(LAUNCH(copy_one, 1, 1, 0, t, d, d + 1));
    OK(LAUNCH(set_one, 1, 1, 0, t, d + 3, 7.0f));
    OK(LAUNCH(copy_one, 1, 1, 0, s, d, d + 2));
    OK(LAUNCH(copy_one, 1, 1, 0, s, d + 3, d + 4)); /* not ordered with what writes it */
    OK(cudaEventRecord(join, t));
    OK(cudaStreamWaitEvent(s, join, 0));
    OK(LAUNCH(add_one, 1, 1, 0, s, d + 1));
    cudaGraphExec_t x = end_capture(s, 6);
    std::set<float> outcomes;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emu_set_order_seed(seed);
        float h[5];
        OK(cudaMemsetAsync(d, 0, 20, s));
        OK(cudaGraphLaunch(x, s));
        OK(cudaMemcpyAsync(h, d, 20, cudaMemcpyDeviceToHost, s));
        assert_true(h[0] == 1 && h[1] == 2 && h[2] == 1 && h[3] == 7);
        outcomes.insert(h[4]);
    }
    assert_true(outcomes == (std::set<float>{0, 7}));
    OK(cudaGraphExecDestroy(x));
}

/* A launch comes after all of the graph's earlier launches, in whatever stream those were, and the streams wait for it as for other work. */
void launches_of_one_graph_follow_each_other(void **)
{
    for (uint64_t seed = 0; seed < 16; seed++) {
        emu_set_order_seed(seed);
        float *d = device_array<float>(2);
        cudaStream_t s = new_stream(), t = new_stream();
        OK(cudaMemset(d, 0, 8));
        OK(cudaDeviceSynchronize());
        begin(s);
        OK(LAUNCH(copy_one, 1, 1, 0, s, d, d + 1));
        OK(LAUNCH(add_one, 1, 1, 0, s, d + 1));
        OK(LAUNCH(copy_one, 1, 1, 0, s, d + 1, d));
        cudaGraphExec_t x = end_capture(s, 3);
        for (int i = 0; i < 6; i++)
            OK(cudaGraphLaunch(x, i % 2 ? s : t));
        OK(cudaDeviceSynchronize());
        assert_true(read_one(d) == 6);
        OK(cudaGraphExecDestroy(x));
    }
}

/* A collective begins anew in each replay. */
void an_operation_forgets_its_state_between_replays(void **)
{
    cudaStream_t s = new_stream();
    auto finished = std::make_shared<int>(0), attempts = std::make_shared<int>(0);
    begin(s);
    OK(emu::enqueue_operation(s, [left = 3, finished, attempts]() mutable {
        ++*attempts;
        if (--left > 0)
            return false;
        ++*finished;
        return true;
    }));
    cudaGraphExec_t x = end_capture(s, 1);
    OK(cudaGraphLaunch(x, s));
    OK(cudaGraphLaunch(x, s));
    OK(cudaStreamSynchronize(s));
    assert_int_equal(*finished, 2);
    assert_int_equal(*attempts, 6);
    OK(cudaGraphExecDestroy(x));
}

/* ---- what may not be done */

void waiting_for_what_is_captured_ends_the_capture(void **)
{
    float *d = device_array<float>(1);
    cudaStream_t s = new_stream();
    cudaEvent_t e = new_event();
    enum cudaStreamCaptureStatus status;
    const std::function<void()> calls[] = {
        [&] { GIVES(cudaErrorStreamCaptureUnsupported, cudaStreamSynchronize(s)); },
        [&] { GIVES(cudaErrorStreamCaptureUnsupported, cudaStreamQuery(s)); },
        [&] { GIVES(cudaErrorStreamCaptureUnsupported, cudaDeviceSynchronize()); },
        [&] {
            OK(cudaEventRecord(e, s));
            GIVES(cudaErrorCapturedEvent, cudaEventSynchronize(e));
        },
        [&] {
            OK(cudaEventRecord(e, s));
            GIVES(cudaErrorCapturedEvent, cudaEventQuery(e));
        },
    };
    for (const auto &call : calls) {
        OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed));
        OK(LAUNCH(add_one, 1, 1, 0, s, d));
        call();
        OK(cudaStreamIsCapturing(s, &status));
        assert_int_equal(status, cudaStreamCaptureStatusInvalidated);
        assert_int_equal(LAUNCH(add_one, 1, 1, 0, s, d), cudaErrorStreamCaptureInvalidated);
        ends_with(cudaErrorStreamCaptureInvalidated, s);
    }
}

/* Calls that may wait inside: forbidden to the thread that captures, in global mode to all threads, in relaxed mode to none. */
void unsafe_calls_depend_on_the_mode(void **)
{
    static cudaError_t from_thread;
    cudaStream_t s = new_stream();
    cudaEvent_t e = new_event();
    for (enum cudaStreamCaptureMode mode : {cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed}) {
        void *p = nullptr, *q = nullptr;
        cudaGraph_t g;
        OK(cudaStreamBeginCapture(s, mode));
        std::thread([&] { from_thread = cudaMalloc(&q, 16); }).join();
        assert_int_equal(from_thread, mode == cudaStreamCaptureModeGlobal ? cudaErrorStreamCaptureUnsupported : cudaSuccess);
        cudaError_t here = cudaMalloc(&p, 16);
        assert_int_equal(here, mode == cudaStreamCaptureModeRelaxed ? cudaSuccess : cudaErrorStreamCaptureUnsupported);
        cudaGetLastError();
        assert_int_equal(cudaStreamEndCapture(s, &g), here == cudaSuccess ? cudaSuccess : cudaErrorStreamCaptureInvalidated);
        cudaGetLastError();
        if (here == cudaSuccess)
            OK(cudaGraphDestroy(g));
        OK(cudaFree(p));
        OK(cudaFree(q));
    }
    /* A watcher that asks for another stream's event says that this is safe. */
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeGlobal));
    std::thread([&] {
        enum cudaStreamCaptureMode mode = cudaStreamCaptureModeThreadLocal;
        cudaThreadExchangeStreamCaptureMode(&mode);
        from_thread = mode == cudaStreamCaptureModeGlobal ? cudaEventQuery(e) : cudaErrorUnknown;
    }).join();
    OK(from_thread);
    OK(cudaGraphExecDestroy(end_capture(s, 0)));
}

void a_capture_ends_where_and_by_whom_it_began(void **)
{
    static cudaError_t from_thread;
    float *d = device_array<float>(1);
    cudaStream_t s = new_stream(), t = new_stream();
    cudaEvent_t e = new_event();
    cudaGraph_t g;
    GIVES(cudaErrorIllegalState, cudaStreamEndCapture(s, &g));
    GIVES(cudaErrorStreamCaptureUnsupported, cudaStreamBeginCapture(nullptr, cudaStreamCaptureModeRelaxed));
    begin(s);
    OK(cudaEventRecord(e, s));
    OK(cudaStreamWaitEvent(t, e, 0));
    GIVES(cudaErrorStreamCaptureUnmatched, cudaStreamEndCapture(t, &g));
    ends_with(cudaErrorStreamCaptureInvalidated, s);

    begin(s);
    std::thread([&] { from_thread = cudaStreamEndCapture(s, &g); }).join();
    assert_int_equal(from_thread, cudaErrorStreamCaptureWrongThread);
    OK(cudaGraphExecDestroy(end_capture(s, 0)));

    begin(s); /* t is never joined */
    OK(cudaEventRecord(e, s));
    OK(cudaStreamWaitEvent(t, e, 0));
    OK(LAUNCH(add_one, 1, 1, 0, t, d));
    ends_with(cudaErrorStreamCaptureUnjoined, s);
    OK(LAUNCH(set_one, 1, 1, 0, t, d, 3.0f));
    OK(cudaStreamSynchronize(t));
    assert_true(read_one(d) == 3);
}

void a_capture_has_no_dependencies_outside(void **)
{
    cudaStream_t s = new_stream(), t = new_stream();
    cudaEvent_t e = new_event(), f = new_event();
    OK(cudaEventRecord(e, t));
    begin(s);
    GIVES(cudaErrorStreamCaptureIsolation, cudaStreamWaitEvent(s, e, 0));
    ends_with(cudaErrorStreamCaptureInvalidated, s);

    begin(s);
    begin(t);
    OK(cudaEventRecord(f, t));
    GIVES(cudaErrorStreamCaptureMerge, cudaStreamWaitEvent(s, f, 0));
    ends_with(cudaErrorStreamCaptureInvalidated, s);
    ends_with(cudaErrorStreamCaptureInvalidated, t);

    begin(s); /* an event of a capture that has ended */
    OK(cudaEventRecord(f, s));
    OK(cudaGraphExecDestroy(end_capture(s, 0)));
    GIVES(cudaErrorCapturedEvent, cudaStreamWaitEvent(t, f, 0));
    OK(cudaEventRecord(f, s));
    OK(cudaStreamWaitEvent(t, f, 0));
    OK(cudaStreamSynchronize(t));
}

void the_default_stream_may_not_depend_on_a_capture(void **)
{
    float *d = device_array<float>(1);
    cudaStream_t blocking, s = new_stream();
    OK(cudaStreamCreate(&blocking));
    OK(cudaStreamBeginCapture(blocking, cudaStreamCaptureModeRelaxed));
    GIVES(cudaErrorStreamCaptureImplicit, cudaMemset(d, 0, 4));
    ends_with(cudaErrorStreamCaptureInvalidated, blocking);
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeRelaxed)); /* with one that does not block it is no matter */
    OK(cudaMemset(d, 0, 4));
    OK(cudaGraphExecDestroy(end_capture(s, 0)));
}

void pageable_memory_is_not_captured(void **)
{
    float *d = device_array<float>(1), v = 1;
    cudaStream_t s = new_stream();
    begin(s);
    GIVES(cudaErrorStreamCaptureUnsupported, cudaMemcpyAsync(d, &v, 4, cudaMemcpyHostToDevice, s));
    ends_with(cudaErrorStreamCaptureInvalidated, s);
}

void handles_of_graphs_are_checked(void **)
{
    cudaStream_t s = new_stream();
    cudaGraph_t g;
    cudaGraphExec_t x;
    begin(s);
    OK(cudaStreamEndCapture(s, &g));
    OK(cudaGraphInstantiate(&x, g, 0));
    OK(cudaGraphLaunch(x, s)); /* of nothing */
    OK(cudaStreamSynchronize(s));
    OK(cudaGraphDestroy(g));
    GIVES(cudaErrorInvalidValue, cudaGraphDestroy(g));
    GIVES(cudaErrorInvalidValue, cudaGraphInstantiate(&x, g, 0));
    struct emu_stats stats;
    emu_get_stats(0, &stats);
    assert_int_equal(stats.graphs, 1);
    OK(cudaGraphExecDestroy(x));
    GIVES(cudaErrorInvalidValue, cudaGraphLaunch(x, s));
}

} // namespace

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(nothing_runs_while_it_is_captured),
        TEST(arguments_are_captured_memory_is_not),
        TEST(a_capture_forks_and_joins),
        TEST(launches_of_one_graph_follow_each_other),
        TEST(an_operation_forgets_its_state_between_replays),
        TEST(waiting_for_what_is_captured_ends_the_capture),
        TEST(unsafe_calls_depend_on_the_mode),
        TEST(a_capture_ends_where_and_by_whom_it_began),
        TEST(a_capture_has_no_dependencies_outside),
        TEST(the_default_stream_may_not_depend_on_a_capture),
        TEST(pageable_memory_is_not_captured),
        TEST(handles_of_graphs_are_checked),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
