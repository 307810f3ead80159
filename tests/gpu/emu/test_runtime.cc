/* Memory, copies, streams and events of the emulated runtime. What is expected stands in the CUDA Runtime API's documentation and the programming guide (13.0); what
 * an order that is not fixed by them may give is looked for over seeds: each of its outcomes has to come. */
#include <atomic>
#include <thread>
#include <time.h>

#include "tests/gpu/emu/test_runtime.h"

namespace {

constexpr uint64_t SEEDS = 64;

/* ---- devices */

void devices_are_emulated_and_say_so(void **)
{
    int n, v;
    struct cudaDeviceProp p[2];
    OK(cudaGetDeviceCount(&n));
    assert_int_equal(n, 2);
    OK(cudaGetDeviceProperties(&p[0], 0));
    OK(cudaGetDeviceProperties(&p[1], 1));
    assert_string_equal(p[0].name, "Emulated GPU");
    assert_int_equal(p[0].totalGlobalMem, 2ull << 30);
    assert_int_equal(p[0].major * 10 + p[0].minor, 90);
    assert_int_equal(p[0].sharedMemPerBlockOptin, 227 * 1024);
    assert_memory_not_equal(&p[0].uuid, &p[1].uuid, sizeof(p[0].uuid));
    assert_int_not_equal(p[0].pciBusID, p[1].pciBusID);
    OK(cudaDeviceGetAttribute(&v, cudaDevAttrMultiProcessorCount, 1));
    assert_int_equal(v, 8);
    GIVES(cudaErrorInvalidDevice, cudaSetDevice(2));
    GIVES(cudaErrorInvalidDevice, cudaGetDeviceProperties(&p[0], -1));
    OK(cudaRuntimeGetVersion(&v));
    assert_int_equal(v, CUDART_VERSION);
    char id[16];
    OK(cudaDeviceGetPCIBusId(id, sizeof(id), 1));
    assert_string_equal(id, "0000:02:00.0");
}

void a_thread_begins_with_device_0(void **)
{
    OK(cudaSetDevice(1));
    int other = -1;
    std::thread([&] { cudaGetDevice(&other); }).join();
    assert_int_equal(other, 0);
    int here;
    OK(cudaGetDevice(&here));
    assert_int_equal(here, 1);
}

void an_error_is_kept_until_it_is_fetched(void **)
{
    OK(cudaGetLastError());
    assert_int_equal(cudaSetDevice(7), cudaErrorInvalidDevice);
    OK(cudaSetDevice(0));
    assert_int_equal(cudaPeekAtLastError(), cudaErrorInvalidDevice);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidDevice);
    OK(cudaGetLastError());
    assert_string_equal(cudaGetErrorName(cudaErrorIllegalAddress), "cudaErrorIllegalAddress");
    assert_string_equal(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory");
}

void peers_are_enabled_once(void **)
{
    int can;
    OK(cudaDeviceCanAccessPeer(&can, 0, 1));
    assert_true(can);
    OK(cudaDeviceCanAccessPeer(&can, 0, 0));
    assert_false(can);
    OK(cudaDeviceEnablePeerAccess(1, 0));
    GIVES(cudaErrorPeerAccessAlreadyEnabled, cudaDeviceEnablePeerAccess(1, 0));
    OK(cudaDeviceDisablePeerAccess(1));
    GIVES(cudaErrorPeerAccessNotEnabled, cudaDeviceDisablePeerAccess(1));
}

/* ---- memory */

void fresh_memory_is_poison(void **)
{
    for (size_t bytes : {4, 100, 70000, 3 << 20}) {
        std::vector<uint16_t> h(bytes / 2);
        char *d = device_array<char>(bytes);
        assert_int_equal((uintptr_t)d % 256, 0);
        OK(cudaMemcpy(h.data(), d, bytes, cudaMemcpyDeviceToHost));
        for (size_t i = 0; i < h.size(); i++) {
            assert_true((h[i] & 0x7c00) == 0x7c00 && (h[i] & 0x3ff) != 0); /* a NaN of f16 */
            assert_true((h[i] & 0x7f80) == 0x7f80 && (h[i] & 0x7f) != 0);  /* of bf16, and, as the upper half of one, of fp32 */
        }
        OK(cudaFree(d));
    }
    float *pinned = pinned_array<float>(3);
    assert_true(std::isnan(pinned[2]));
    OK(cudaFreeHost(pinned));
}

void memory_is_counted_and_ends(void **)
{
    size_t free, total, after;
    emu_set_memory(0, 10000);
    OK(cudaMemGetInfo(&free, &total));
    assert_int_equal(free, 10000);
    char *a = device_array<char>(5000); /* 5120 with what alignment takes */
    OK(cudaMemGetInfo(&after, &total));
    assert_int_equal(free - after, 5120);
    void *b;
    GIVES(cudaErrorMemoryAllocation, cudaMalloc(&b, 5000));
    OK(cudaMalloc(&b, 4608));
    OK(cudaFree(a));
    OK(cudaFree(b));
    OK(cudaMemGetInfo(&after, &total));
    assert_int_equal(after, 10000);
    OK(cudaMalloc(&b, 0));
    assert_null(b);
    OK(cudaFree(nullptr));
}

void only_what_is_allocated_can_be_freed(void **)
{
    char *a = device_array<char>(100);
    int local;
    GIVES(cudaErrorInvalidValue, cudaFree(a + 1));
    GIVES(cudaErrorInvalidValue, cudaFree(&local));
    GIVES(cudaErrorInvalidValue, cudaFreeHost(a));
    OK(cudaFree(a));
    GIVES(cudaErrorInvalidValue, cudaFree(a));
}

/* What children of this program do: each shall crash. */
void touch(const char *what)
{
    static const struct { const char *what; ptrdiff_t at; bool free_before; } places[] = {
        {"after", 1024, false}, {"page before", -4096, false}, {"freed", 0, true}, {"slack", 1000, false}, {"gap", -1, false}, {"last", 999, false}};
    volatile char *p = pinned_array<char>(1000);
    if (strcmp(what, "by host") == 0)
        device_array<volatile char>(1000)[0] = 1;
    for (const auto &i : places)
        if (strcmp(what, i.what) == 0) {
            if (i.free_before)
                cudaFreeHost((void *)p);
            p[i.at] = 1;
            if (!i.free_before)
                cudaFreeHost((void *)p);
        }
}

void what_is_out_of_bounds_faults(void **)
{
    for (const char *what : {"after", "page before", "freed", "slack", "gap", "by host"}) {
        child_result r = run_child(std::string("touch ") + what);
        if (!r.crashed())
            print_error("%s: %s\n", what, r.text.c_str());
        assert_true(r.crashed());
    }
    assert_false(run_child("touch last").crashed());
#if !defined(__SANITIZE_ADDRESS__)
    assert_non_null(strstr(run_child("touch slack").text.c_str(), "byte 1000 of 1000 bytes of pinned memory"));
    assert_non_null(strstr(run_child("touch gap").text.c_str(), "byte -1 of 1000 bytes"));
#endif
}

void pointers_tell_what_they_are(void **)
{
    OK(cudaSetDevice(1));
    char *d = device_array<char>(16), *h = pinned_array<char>(16), local;
    struct cudaPointerAttributes a;
    OK(cudaPointerGetAttributes(&a, d + 3));
    assert_true(a.type == cudaMemoryTypeDevice && a.device == 1);
    OK(cudaPointerGetAttributes(&a, h));
    assert_true(a.type == cudaMemoryTypeHost && a.hostPointer == h);
    OK(cudaPointerGetAttributes(&a, &local));
    assert_int_equal(a.type, cudaMemoryTypeUnregistered);
    void *p;
    OK(cudaHostGetDevicePointer(&p, h, 0));
    assert_ptr_equal(p, h);
    std::vector<char> own(5000);
    OK(cudaHostRegister(own.data(), own.size(), cudaHostRegisterDefault));
    GIVES(cudaErrorHostMemoryAlreadyRegistered, cudaHostRegister(own.data() + 100, 10, cudaHostRegisterDefault));
    OK(cudaPointerGetAttributes(&a, own.data() + 4999));
    assert_int_equal(a.type, cudaMemoryTypeHost);
    OK(cudaHostUnregister(own.data()));
    GIVES(cudaErrorHostMemoryNotRegistered, cudaHostUnregister(own.data()));
}

/* ---- copies */

void copies_know_their_ranges_and_direction(void **)
{
    char *d = device_array<char>(100), *e = device_array<char>(100), host[200] = {};
    GIVES(cudaErrorInvalidValue, cudaMemcpy(d, host, 101, cudaMemcpyHostToDevice));
    GIVES(cudaErrorInvalidValue, cudaMemcpy(d + 50, host, 51, cudaMemcpyHostToDevice));
    OK(cudaMemcpy(d + 50, host, 50, cudaMemcpyHostToDevice));
    GIVES(cudaErrorInvalidValue, cudaMemcpy(host, d, 10, cudaMemcpyHostToDevice));
    GIVES(cudaErrorInvalidValue, cudaMemcpy(d, e, 10, cudaMemcpyDeviceToHost));
    GIVES(cudaErrorInvalidValue, cudaMemcpy(host, host + 100, 10, cudaMemcpyDeviceToDevice));
    GIVES(cudaErrorInvalidMemcpyDirection, cudaMemcpy(d, host, 10, (enum cudaMemcpyKind)7));
    OK(cudaMemcpy(d, e, 10, cudaMemcpyDefault));
    OK(cudaMemcpy(d, nullptr, 0, cudaMemcpyHostToDevice));
    OK(cudaFree(e));
    GIVES(cudaErrorInvalidValue, cudaMemcpy(host, e, 10, cudaMemcpyDeviceToHost));
    GIVES(cudaErrorInvalidValue, cudaMemset(d, 0, 101));
}

void rows_are_copied_by_pitch(void **)
{
    uint8_t *d = device_array<uint8_t>(4 * 10), from[3][5], to[4 * 10];
    for (int i = 0; i < 15; i++)
        from[i / 5][i % 5] = (uint8_t)(i + 1);
    OK(cudaMemset(d, 0, 40));
    OK(cudaMemcpy2D(d + 2, 10, from, 5, 4, 3, cudaMemcpyHostToDevice));
    OK(cudaMemcpy(to, d, 40, cudaMemcpyDeviceToHost));
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 10; j++)
            assert_int_equal(to[i * 10 + j], i < 3 && j >= 2 && j < 6 ? i * 5 + j - 1 : 0);
    GIVES(cudaErrorInvalidPitchValue, cudaMemcpy2D(d, 3, from, 5, 4, 3, cudaMemcpyHostToDevice));
    GIVES(cudaErrorInvalidValue, cudaMemcpy2D(d + 2, 10, from, 5, 4, 5, cudaMemcpyHostToDevice));
}

/* Pageable memory is read before the call returns; pinned memory when the copy runs. */
void a_source_is_read_when_the_documentation_says(void **)
{
    float *d = device_array<float>(2), *pinned = pinned_array<float>(1), pageable = 1;
    cudaStream_t s = new_stream();
    pinned[0] = 1;
    OK(cudaMemcpyAsync(d, &pageable, 4, cudaMemcpyHostToDevice, s));
    OK(cudaMemcpyAsync(d + 1, pinned, 4, cudaMemcpyHostToDevice, s));
    pageable = pinned[0] = 2;
    OK(cudaStreamSynchronize(s));
    assert_true(read_one(d) == 1);
    assert_true(read_one(d + 1) == 2);
}

/* Into pinned memory nothing comes before the stream is waited for; into pageable memory the call itself waits. */
void a_result_is_there_when_it_was_waited_for(void **)
{
    float *d = device_array<float>(1), *pinned = pinned_array<float>(1), pageable = 0;
    cudaStream_t s = new_stream();
    OK(LAUNCH(set_one, 1, 1, 0, s, d, 5.0f));
    OK(cudaMemcpyAsync(pinned, d, 4, cudaMemcpyDeviceToHost, s));
    assert_true(std::isnan(pinned[0]));
    OK(cudaStreamSynchronize(s));
    assert_true(pinned[0] == 5);
    OK(LAUNCH(add_one, 1, 1, 0, s, d));
    OK(cudaMemcpyAsync(&pageable, d, 4, cudaMemcpyDeviceToHost, s));
    assert_true(pageable == 6);
}

void peers_copy_between_their_own(void **)
{
    float *a = device_array<float>(1), v = 3;
    OK(cudaSetDevice(1));
    float *b = device_array<float>(1);
    OK(cudaMemcpy(a, &v, 4, cudaMemcpyHostToDevice));
    GIVES(cudaErrorInvalidValue, cudaMemcpyPeer(b, 0, a, 1, 4));
    OK(cudaMemcpyPeer(b, 1, a, 0, 4));
    assert_true(read_one(b) == 3);
}

void memory_of_a_stream_comes_and_goes_in_it(void **)
{
    cudaStream_t s = new_stream();
    void *p;
    size_t free, total;
    OK(cudaMallocAsync(&p, 256, s));
    OK(LAUNCH(set_one, 1, 1, 0, s, (float *)p, 1.0f));
    OK(cudaFreeAsync(p, s));
    OK(cudaMemGetInfo(&free, &total));
    assert_int_equal(total - free, 256);
    OK(cudaStreamSynchronize(s));
    OK(cudaMemGetInfo(&free, &total));
    assert_int_equal(total - free, 0);
}

/* ---- streams */

void a_stream_keeps_its_order(void **)
{
    for (uint64_t seed = 0; seed < 8; seed++) {
        emu_set_order_seed(seed);
        float *d = device_array<float>(1);
        cudaStream_t s = new_stream(), t = new_stream();
        float *other = device_array<float>(1);
        OK(LAUNCH(set_one, 1, 1, 0, s, d, 1.0f));
        for (int i = 0; i < 20; i++) {
            OK(LAUNCH(add_one, 1, 1, 0, s, d));
            OK(LAUNCH(add_one, 1, 1, 0, t, other));
        }
        OK(LAUNCH(set_one, 1, 1, 0, t, other, 9.0f));
        OK(cudaDeviceSynchronize());
        assert_true(read_one(d) == 21);
        assert_true(read_one(other) == 9);
    }
}

/* b copies what a writes; `wait` orders them. Gives how many seeds saw the value. */
int seen(const std::function<void(cudaStream_t, cudaStream_t)> &wait)
{
    int n = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emu_set_order_seed(seed);
        float *x = device_array<float>(1), *y = device_array<float>(1);
        cudaStream_t a = new_stream(), b = new_stream();
        OK(LAUNCH(set_one, 1, 1, 0, a, x, 1.0f));
        wait(a, b);
        OK(LAUNCH(copy_one, 1, 1, 0, b, x, y));
        OK(cudaDeviceSynchronize());
        n += read_one(y) == 1;
        OK(cudaStreamDestroy(a));
        OK(cudaStreamDestroy(b));
        OK(cudaFree(x));
        OK(cudaFree(y));
    }
    return n;
}

void a_missing_event_is_seen(void **)
{
    int without = seen([](cudaStream_t, cudaStream_t) {});
    assert_in_range(without, 1, SEEDS - 1);
    int with = seen([](cudaStream_t a, cudaStream_t b) {
        cudaEvent_t e = new_event();
        OK(cudaEventRecord(e, a));
        OK(cudaStreamWaitEvent(b, e, 0));
        OK(cudaEventDestroy(e)); /* which the wait survives */
    });
    assert_int_equal(with, SEEDS);
    int wrong_way = seen([](cudaStream_t a, cudaStream_t b) {
        cudaEvent_t e = new_event();
        OK(cudaEventRecord(e, b));
        OK(cudaStreamWaitEvent(a, e, 0));
    });
    assert_in_range(wrong_way, 1, SEEDS - 1);
    int before_recording = seen([](cudaStream_t a, cudaStream_t b) {
        cudaEvent_t e = new_event();
        OK(cudaStreamWaitEvent(b, e, 0));
        OK(cudaEventRecord(e, a));
    });
    assert_in_range(before_recording, 1, SEEDS - 1);
}

/* The event as it was when the wait was asked for, whatever it records later. */
void a_wait_is_for_what_was_recorded(void **)
{
    std::set<float> outcomes;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        emu_set_order_seed(seed);
        float *x = device_array<float>(1), *y = device_array<float>(1);
        cudaStream_t a = new_stream(), b = new_stream();
        cudaEvent_t e = new_event();
        OK(LAUNCH(set_one, 1, 1, 0, a, x, 1.0f));
        OK(cudaEventRecord(e, a));
        OK(cudaStreamWaitEvent(b, e, 0));
        OK(LAUNCH(set_one, 1, 1, 0, a, x, 2.0f));
        OK(cudaEventRecord(e, a));
        OK(LAUNCH(copy_one, 1, 1, 0, b, x, y));
        OK(cudaDeviceSynchronize());
        outcomes.insert(read_one(y));
    }
    assert_true(outcomes == (std::set<float>{1, 2}));
}

/* The default stream waits for blocking streams and they for it; others do not take part. */
void the_default_stream_orders_blocking_streams(void **)
{
    int blocking = 0, non_blocking = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++)
        for (unsigned flags : {cudaStreamDefault, cudaStreamNonBlocking}) {
            emu_set_order_seed(seed);
            float *x = device_array<float>(3);
            cudaStream_t a, b;
            OK(cudaStreamCreateWithFlags(&a, flags));
            OK(cudaStreamCreateWithFlags(&b, flags));
            OK(LAUNCH(set_one, 1, 1, 0, a, x, 1.0f));
            OK(LAUNCH(copy_one, 1, 1, 0, nullptr, x, x + 1));
            OK(LAUNCH(copy_one, 1, 1, 0, b, x + 1, x + 2));
            OK(cudaStreamSynchronize(b));
            OK(cudaDeviceSynchronize());
            (flags == cudaStreamDefault ? blocking : non_blocking) += read_one(x + 2) == 1;
            OK(cudaFree(x));
        }
    assert_int_equal(blocking, SEEDS);
    assert_in_range(non_blocking, 1, SEEDS - 1);
}

void a_question_lets_work_go_on(void **)
{
    float *d = device_array<float>(1);
    cudaStream_t s = new_stream();
    cudaEvent_t e = new_event();
    OK(cudaEventQuery(e)); /* never recorded */
    OK(LAUNCH(set_one, 1, 1, 0, s, d, 1.0f));
    OK(LAUNCH(add_one, 1, 1, 0, s, d));
    OK(cudaEventRecord(e, s));
    OK(LAUNCH(add_one, 1, 1, 0, s, d));
    int asked = 0;
    while (cudaEventQuery(e) == cudaErrorNotReady)
        asked++;
    assert_int_equal(asked, 1); /* one operation, then two */
    assert_int_equal(cudaGetLastError(), cudaErrorNotReady); /* an error like any other to cudaGetLastError */
    OK(cudaStreamQuery(s));
    assert_true(read_one(d) == 3);
}

/* What nobody fetched comes out after the next launch, as after <<<>>>. */
void a_launch_gives_an_error_that_was_not_fetched(void **)
{
    float *d = device_array<float>(1);
    cudaStream_t s = new_stream();
    assert_int_equal(cudaSetDevice(9), cudaErrorInvalidDevice);
    assert_int_equal(LAUNCH(set_one, 1, 1, 0, s, d, 1.0f), cudaErrorInvalidDevice);
    OK(LAUNCH(add_one, 1, 1, 0, s, d));
    OK(cudaStreamSynchronize(s));
    assert_true(read_one(d) == 2);
}

void launches_have_the_limits_of_the_device(void **)
{
    float *d = device_array<float>(1);
    cudaStream_t s = new_stream();
    assert_int_equal(LAUNCH(set_one, 0, 1, 0, s, d, 1.0f), cudaErrorInvalidConfiguration);
    assert_int_equal(LAUNCH(set_one, 1, 1025, 0, s, d, 1.0f), cudaErrorInvalidConfiguration);
    assert_int_equal(LAUNCH(set_one, 1, dim3(1, 1, 65), 0, s, d, 1.0f), cudaErrorInvalidConfiguration);
    assert_int_equal(LAUNCH(set_one, 1, dim3(32, 33), 0, s, d, 1.0f), cudaErrorInvalidConfiguration);
    assert_int_equal(LAUNCH(set_one, dim3(1, 65536), 1, 0, s, d, 1.0f), cudaErrorInvalidConfiguration);
    assert_int_equal(LAUNCH(set_one, 1, 1, 227 * 1024 + 1, s, d, 1.0f), cudaErrorInvalidValue);
    OK(LAUNCH(set_one, 1, 1024, 227 * 1024, s, d, 1.0f));
    float host;
    assert_int_equal(LAUNCH(set_one, 1, 1, 0, s, &host, 1.0f), cudaErrorInvalidValue);
    OK(cudaSetDevice(1));
    assert_int_equal(LAUNCH(set_one, 1, 1, 0, s, d, 1.0f), cudaErrorInvalidResourceHandle);
    const void *f = (const void *)set_one;
    OK(cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
    GIVES(cudaErrorInvalidValue, cudaFuncSetAttribute(f, cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024 + 1));
    int n;
    OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n, f, 256, 100 * 1024)); /* 228 KiB / 101 KiB */
    assert_int_equal(n, 2);
    OK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&n, f, 100, 0)); /* 2048 threads / 128 */
    assert_int_equal(n, 16);
}

void handles_are_checked(void **)
{
    cudaStream_t s = new_stream(), other;
    cudaEvent_t e = new_event();
    OK(cudaSetDevice(1));
    GIVES(cudaErrorInvalidResourceHandle, cudaEventRecord(e, nullptr)); /* of another device than the stream */
    OK(cudaEventRecord(e, s));
    other = new_stream();
    OK(cudaStreamWaitEvent(other, e, 0)); /* a wait may cross devices */
    OK(cudaStreamSynchronize(other));
    OK(cudaEventDestroy(e));
    GIVES(cudaErrorInvalidResourceHandle, cudaEventDestroy(e));
    OK(cudaStreamDestroy(s));
    GIVES(cudaErrorInvalidResourceHandle, cudaStreamSynchronize(s));
    GIVES(cudaErrorInvalidResourceHandle, cudaStreamQuery(cudaStreamPerThread));
    GIVES(cudaErrorInvalidValue, cudaStreamCreateWithFlags(&s, 4));
}

void a_destroyed_stream_ends_its_work(void **)
{
    float *d = device_array<float>(1);
    cudaStream_t s = new_stream();
    OK(LAUNCH(set_one, 1, 1, 0, s, d, 1.0f));
    OK(cudaStreamDestroy(s));
    OK(cudaDeviceSynchronize());
    assert_true(read_one(d) == 1);
}

void time_between_events_is_measured(void **)
{
    cudaStream_t s = new_stream();
    cudaEvent_t a, b, untimed = new_event();
    float ms;
    OK(cudaEventCreate(&a));
    OK(cudaEventCreate(&b));
    GIVES(cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&ms, a, b));
    OK(cudaEventRecord(a, s));
    OK(cudaLaunchHostFunc(s, [](void *) { usleep(20000); }, nullptr));
    OK(cudaEventRecord(b, s));
    GIVES(cudaErrorNotReady, cudaEventElapsedTime(&ms, a, b));
    OK(cudaEventSynchronize(b));
    OK(cudaEventElapsedTime(&ms, a, b));
    assert_true(ms >= 20);
    OK(cudaEventRecord(untimed, s));
    OK(cudaEventSynchronize(untimed));
    GIVES(cudaErrorInvalidResourceHandle, cudaEventElapsedTime(&ms, a, untimed));
}

void host_functions_run_in_the_order_of_the_stream(void **)
{
    float *d = device_array<float>(1), *pinned = pinned_array<float>(2);
    cudaStream_t s = new_stream();
    OK(LAUNCH(set_one, 1, 1, 0, s, d, 4.0f));
    OK(cudaMemcpyAsync(pinned, d, 4, cudaMemcpyDeviceToHost, s));
    OK(cudaLaunchHostFunc(s, [](void *p) { ((float *)p)[1] = ((float *)p)[0] * 2; }, pinned));
    OK(cudaStreamSynchronize(s));
    assert_true(pinned[1] == 8);
}

/* ---- work that waits */

void what_cannot_go_on_lets_others_go_on(void **)
{
    cudaStream_t a = new_stream(), b = new_stream();
    float *d = device_array<float>(1);
    auto open = std::make_shared<bool>(false);
    int tries = 0;
    OK(emu::enqueue_operation(a, [open, &tries] { return tries++, *open; }));
    OK(LAUNCH(set_one, 1, 1, 0, a, d, 1.0f));
    OK(emu::enqueue_operation(b, [open] {
        *open = true;
        return true;
    }));
    OK(cudaStreamSynchronize(a));
    assert_true(*open && tries >= 1);
    assert_true(read_one(d) == 1);
}

double cpu_seconds()
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void waiting_takes_no_core(void **)
{
    cudaStream_t s = new_stream();
    struct timespec begun;
    clock_gettime(CLOCK_MONOTONIC, &begun);
    OK(emu::enqueue_operation(s, [begun] {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000 >= 300;
    }));
    double before = cpu_seconds();
    OK(cudaStreamSynchronize(s));
    assert_true(cpu_seconds() - before < 0.15);
}

/* One waits for what another process would only send after this one's work, which nobody here waits for. */
void work_goes_on_when_nobody_asks(void **)
{
    static std::atomic<bool> ran;
    ran = false;
    emu_set_lag_ms(5);
    cudaStream_t s = new_stream();
    OK(cudaLaunchHostFunc(s, [](void *) { ran = true; }, nullptr));
    for (int i = 0; i < 1000 && !ran; i++)
        usleep(10000);
    assert_true(ran);
    OK(cudaStreamSynchronize(s));
}

__global__ void wait_for(float *flag)
{
    while (atomicAdd(flag, 0.0f) != 1)
        __nanosleep(100);
}

/* Two kernels of two streams at once: the first one queued waits for the second. */
void kernels_of_other_streams_run_beside_one_that_waits(void **)
{
    float *flag = device_array<float>(1);
    cudaStream_t a = new_stream(), b = new_stream();
    OK(cudaMemset(flag, 0, 4));
    OK(LAUNCH(wait_for, 1, 1, 0, a, flag));
    OK(LAUNCH(set_one, 1, 1, 0, b, flag, 1.0f));
    OK(cudaStreamSynchronize(a));
    OK(cudaSetDevice(1)); /* the same between devices */
    cudaStream_t c = new_stream();
    OK(cudaMemset(flag, 0, 4));
    OK(cudaDeviceSynchronize());
    OK(LAUNCH(wait_for, 1, 1, 0, c, flag));
    OK(cudaSetDevice(0));
    OK(LAUNCH(set_one, 1, 1, 0, b, flag, 1.0f));
    OK(cudaStreamSynchronize(c));
}

/* Says how far it is, and waits until the other is so far. */
__global__ void tell_and_wait(unsigned *own, unsigned told, unsigned *other, unsigned wanted)
{
    atomicExch(own, told);
    while (atomicAdd(other, 0u) < wanted)
        __nanosleep(100);
}

/* a1 ends when b1 has begun, b1 when a2 has begun: a GPU does that in whatever order the streams begin. */
void a_kernel_that_is_done_lets_the_next_begin(void **)
{
    for (uint64_t seed = 0; seed < 16; seed++)
        for (int graphs = 0; graphs < 3; graphs++) {
            emu_set_order_seed(seed);
            unsigned *at = device_array<unsigned>(2);
            cudaStream_t a = new_stream(), b = new_stream();
            cudaEvent_t e = new_event();
            cudaGraph_t g;
            cudaGraphExec_t x = nullptr;
            OK(cudaMemset(at, 0, 8));
            OK(cudaDeviceSynchronize());
            if (graphs > 0)
                OK(cudaStreamBeginCapture(a, cudaStreamCaptureModeThreadLocal));
            if (graphs == 2) { /* b's as a branch of a's */
                OK(cudaEventRecord(e, a));
                OK(cudaStreamWaitEvent(b, e, 0));
            }
            OK(LAUNCH(tell_and_wait, 1, 1, 0, a, at, 1u, at + 1, 1u));
            OK(LAUNCH(tell_and_wait, 1, 1, 0, a, at, 2u, at + 1, 2u));
            if (graphs == 2) {
                OK(LAUNCH(tell_and_wait, 1, 1, 0, b, at + 1, 1u, at, 2u));
                OK(LAUNCH(tell_and_wait, 1, 1, 0, b, at + 1, 2u, at, 2u));
                OK(cudaEventRecord(e, b));
                OK(cudaStreamWaitEvent(a, e, 0));
            }
            if (graphs > 0) {
                OK(cudaStreamEndCapture(a, &g));
                OK(cudaGraphInstantiate(&x, g, 0));
                OK(cudaGraphLaunch(x, a));
            }
            if (graphs < 2) {
                OK(LAUNCH(tell_and_wait, 1, 1, 0, b, at + 1, 1u, at, 2u));
                OK(LAUNCH(tell_and_wait, 1, 1, 0, b, at + 1, 2u, at, 2u));
            }
            OK(LAUNCH(tell_and_wait, 1, 1, 0, a, at, 3u, at + 1, 2u));
            OK(cudaDeviceSynchronize());
            assert_int_equal(read_one(at), 3);
            OK(cudaStreamDestroy(a));
            OK(cudaStreamDestroy(b));
        }
}

/* Two pairs of ranks, each rank a thread whose kernels wait for those of the other: no pair may hold up the other, whose next kernel a thread has yet to launch. */
void kernels_of_threads_wait_for_each_other(void **)
{
    constexpr int RANKS = 4, ROUNDS = 40;
    unsigned *at = device_array<unsigned>(RANKS);
    std::vector<std::thread> threads;
    std::atomic<int> failures{0};
    OK(cudaMemset(at, 0, RANKS * sizeof(*at)));
    OK(cudaDeviceSynchronize());
    for (int t = 0; t < RANKS; t++)
        threads.emplace_back([&, t] {
            cudaStream_t s;
            failures += cudaSetDevice(t % 2) != cudaSuccess || cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking) != cudaSuccess;
            for (unsigned i = 1; i <= ROUNDS; i++) {
                failures += LAUNCH(tell_and_wait, 1, 1, 0, s, at + t, i, at + (t ^ 1), i) != cudaSuccess;
                failures += cudaStreamSynchronize(s) != cudaSuccess;
            }
        });
    for (auto &t : threads)
        t.join();
    assert_int_equal(failures, 0);
}

void many_threads_use_it_at_once(void **)
{
    constexpr int THREADS = 4, ROUNDS = 50;
    emu_set_lag_ms(1);
    std::vector<std::thread> threads;
    float results[THREADS] = {};
    std::atomic<int> failures{0};
    for (int t = 0; t < THREADS; t++)
        threads.emplace_back([&, t] {
            auto check = [&](cudaError_t e) { failures += e != cudaSuccess; };
            float *d, *pinned;
            cudaStream_t s, u;
            cudaEvent_t e;
            check(cudaSetDevice(t % 2));
            check(cudaMalloc((void **)&d, 4));
            check(cudaMallocHost((void **)&pinned, 4));
            check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
            check(cudaStreamCreateWithFlags(&u, cudaStreamNonBlocking));
            check(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
            check(cudaMemsetAsync(d, 0, 4, s));
            for (int i = 0; i < ROUNDS; i++) {
                check(LAUNCH(add_one, 1, 1, 0, s, d));
                check(cudaEventRecord(e, s));
                check(cudaStreamWaitEvent(u, e, 0));
                check(cudaMemcpyAsync(pinned, d, 4, cudaMemcpyDeviceToHost, u));
                check(cudaEventRecord(e, u));
                check(cudaStreamWaitEvent(s, e, 0));
                if (i % 5 == 0) {
                    check(cudaStreamSynchronize(u));
                    failures += pinned[0] != (float)(i + 1);
                }
            }
            check(cudaStreamSynchronize(u));
            results[t] = pinned[0];
            check(cudaStreamDestroy(s));
            check(cudaStreamDestroy(u));
            check(cudaEventDestroy(e));
            check(cudaFree(d));
            check(cudaFreeHost(pinned));
        });
    for (auto &t : threads)
        t.join();
    assert_int_equal(failures, 0);
    for (float r : results)
        assert_true(r == ROUNDS);
    struct emu_stats s;
    emu_get_stats(0, &s);
    assert_int_equal(s.memory_used, 0);
    assert_int_equal(s.streams + s.events + s.allocations, 0);
}

} // namespace

int main(int argc, char **argv)
{
    if (argc == 2 && strncmp(argv[1], "touch ", 6) == 0) {
        touch(argv[1] + 6);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        TEST(devices_are_emulated_and_say_so),
        TEST(a_thread_begins_with_device_0),
        TEST(an_error_is_kept_until_it_is_fetched),
        TEST(peers_are_enabled_once),
        TEST(fresh_memory_is_poison),
        TEST(memory_is_counted_and_ends),
        TEST(only_what_is_allocated_can_be_freed),
        TEST(what_is_out_of_bounds_faults),
        TEST(pointers_tell_what_they_are),
        TEST(copies_know_their_ranges_and_direction),
        TEST(rows_are_copied_by_pitch),
        TEST(a_source_is_read_when_the_documentation_says),
        TEST(a_result_is_there_when_it_was_waited_for),
        TEST(peers_copy_between_their_own),
        TEST(memory_of_a_stream_comes_and_goes_in_it),
        TEST(a_stream_keeps_its_order),
        TEST(a_missing_event_is_seen),
        TEST(a_wait_is_for_what_was_recorded),
        TEST(the_default_stream_orders_blocking_streams),
        TEST(a_question_lets_work_go_on),
        TEST(a_launch_gives_an_error_that_was_not_fetched),
        TEST(launches_have_the_limits_of_the_device),
        TEST(handles_are_checked),
        TEST(a_destroyed_stream_ends_its_work),
        TEST(time_between_events_is_measured),
        TEST(host_functions_run_in_the_order_of_the_stream),
        TEST(what_cannot_go_on_lets_others_go_on),
        TEST(waiting_takes_no_core),
        TEST(work_goes_on_when_nobody_asks),
        TEST(kernels_of_other_streams_run_beside_one_that_waits),
        TEST(a_kernel_that_is_done_lets_the_next_begin),
        TEST(kernels_of_threads_wait_for_each_other),
        TEST(many_threads_use_it_at_once),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
