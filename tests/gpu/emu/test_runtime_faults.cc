/* What goes wrong on a GPU, told to the emulated one by emu_control.h or by the environment, and what a program then sees (the texts of enum cudaError in
 * driver_types.h); memory shared between processes. */
#include <time.h>

#include "tests/gpu/emu/test_runtime.h"

namespace {

__global__ void write_at(float *p, long i)
{
    p[i] = 1;
}
__global__ void some_wait()
{
    if (threadIdx.x < 3)
        __syncthreads();
}

/* Every call that follows gives the error: no work, no memory, no query. */
void device_is_lost(cudaError_t e, cudaStream_t s, float *d)
{
    cudaEvent_t event;
    void *p;
    size_t free, total;
    assert_int_equal(cudaStreamQuery(s), e);
    assert_int_equal(cudaStreamSynchronize(s), e);
    assert_int_equal(cudaMalloc(&p, 16), e);
    assert_int_equal(cudaFree(d), e);
    assert_int_equal(cudaMemGetInfo(&free, &total), e);
    assert_int_equal(cudaEventCreate(&event), e);
    assert_int_equal(cudaDeviceSynchronize(), e);
    assert_int_equal(LAUNCH(add_one, 1, 1, 0, s, d), e);
    assert_int_equal(cudaGetLastError(), e); /* which nothing clears */
    assert_int_equal(cudaGetLastError(), e);
}

void a_lost_device_stays_lost(void **)
{
    for (cudaError_t e : {cudaErrorIllegalAddress, cudaErrorLaunchFailure, cudaErrorECCUncorrectable, cudaErrorUnknown}) {
        begin_test(nullptr);
        float *d = device_array<float>(1);
        cudaStream_t s = new_stream();
        struct emu_fault f = {EMU_FAULT_ERROR, e, 2, 0};
        emu_add_fault(0, &f);
        OK(LAUNCH(set_one, 1, 1, 0, s, d, 1.0f));
        OK(cudaStreamSynchronize(s));
        OK(LAUNCH(add_one, 1, 1, 0, s, d)); /* the launch itself succeeds */
        assert_int_equal(cudaStreamSynchronize(s), e);
        device_is_lost(e, s, d);
        OK(cudaSetDevice(1)); /* the other one lives */
        float *other = device_array<float>(1);
        OK(cudaFree(other));
    }
}

void a_device_is_lost_within_a_graph(void **)
{
    float *d = device_array<float>(1);
    cudaStream_t s = new_stream();
    cudaGraph_t g;
    cudaGraphExec_t x;
    OK(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < 4; i++)
        OK(LAUNCH(add_one, 1, 1, 0, s, d));
    OK(cudaStreamEndCapture(s, &g));
    OK(cudaGraphInstantiate(&x, g, 0));
    struct emu_fault f = {EMU_FAULT_ERROR, cudaErrorECCUncorrectable, 6, 0};
    emu_add_fault(0, &f);
    OK(cudaGraphLaunch(x, s));
    OK(cudaStreamSynchronize(s));
    OK(cudaGraphLaunch(x, s));
    assert_int_equal(cudaStreamSynchronize(s), cudaErrorECCUncorrectable);
    device_is_lost(cudaErrorECCUncorrectable, s, d);
}

void a_device_is_lost_after_a_time(void **)
{
    float *d = device_array<float>(1);
    cudaStream_t s = new_stream();
    struct emu_fault f = {EMU_FAULT_ERROR, cudaErrorUnknown, 0, 50};
    emu_add_fault(0, &f);
    usleep(60000);
    device_is_lost(cudaErrorUnknown, s, d);
}

/* A waiting thread learns of it, too. */
void a_wait_ends_when_the_device_is_lost(void **)
{
    float *d = device_array<float>(1);
    cudaStream_t s = new_stream();
    OK(emu::enqueue_operation(s, [] { return false; }));
    struct emu_fault f = {EMU_FAULT_ERROR, cudaErrorUnknown, 0, 50};
    emu_add_fault(0, &f);
    assert_int_equal(cudaStreamSynchronize(s), cudaErrorUnknown);
    device_is_lost(cudaErrorUnknown, s, d);
}

void memory_runs_out_when_told(void **)
{
    void *p;
    emu_fail_allocation(2);
    OK(cudaMalloc(&p, 16));
    GIVES(cudaErrorMemoryAllocation, cudaMalloc(&p, 16));
    assert_null(p);
    OK(cudaMalloc(&p, 16)); /* no sticky error */
    emu_fail_allocation(1);
    GIVES(cudaErrorMemoryAllocation, cudaHostAlloc(&p, 16, cudaHostAllocDefault));
    OK(cudaHostAlloc(&p, 16, cudaHostAllocDefault));
}

void a_stream_can_hang(void **)
{
    float *d = device_array<float>(1);
    cudaStream_t s = new_stream(), t = new_stream();
    struct emu_fault f = {EMU_FAULT_HANG, cudaSuccess, 2, 0};
    emu_add_fault(0, &f);
    OK(LAUNCH(set_one, 1, 1, 0, s, d, 1.0f));
    OK(LAUNCH(add_one, 1, 1, 0, s, d));
    for (int i = 0; i < 20; i++)
        GIVES(cudaErrorNotReady, cudaStreamQuery(s));
    OK(LAUNCH(copy_one, 1, 1, 0, t, d, d)); /* other streams go on */
    OK(cudaStreamSynchronize(t));
    emu_hang_stream(s, false);
    OK(cudaStreamSynchronize(s));
    assert_true(read_one(d) == 2);
}

/* Real faults of kernels, as the engine finds them. */
void a_fault_of_a_kernel_is_the_devices(void **)
{
    emu_catch_faults(true);
    float *d = device_array<float>(64);
    cudaStream_t s = new_stream();
    OK(LAUNCH(write_at, 1, 1, 0, s, d, 63));
    OK(cudaStreamSynchronize(s));
#if !defined(__SANITIZE_ADDRESS__)
    OK(LAUNCH(write_at, 1, 1, 0, s, d, 64)); /* the page after it */
    assert_int_equal(cudaStreamSynchronize(s), cudaErrorIllegalAddress);
    device_is_lost(cudaErrorIllegalAddress, s, d);
    begin_test(nullptr);
#endif
    emu_catch_faults(true);
    s = new_stream();
    d = device_array<float>(1);
    OK(emu::enqueue_kernel({"some_wait", 1, 32, 0, [] { some_wait(); }}, s));
    assert_int_not_equal(cudaStreamSynchronize(s), cudaSuccess);
}

/* Read as a child of this program, whose exit status is the error that came first. */
int use()
{
    int n;
    void *p;
    cudaStream_t s;
    cudaError_t e = cudaGetDeviceCount(&n);
    for (int i = 0; i < 3 && e == cudaSuccess; i++) {
        if ((e = cudaMalloc(&p, 1 << 20)) == cudaSuccess && (e = cudaStreamCreate(&s)) == cudaSuccess)
            e = LAUNCH(set_one, 1, 1, 0, s, (float *)p, 1.0f);
        for (int polls = 0; e == cudaSuccess && (e = cudaStreamQuery(s)) == cudaErrorNotReady && polls < 2000; polls++, cudaGetLastError())
            usleep(100), e = cudaSuccess;
        printf("%d ", i);
    }
    return (int)e;
}

void the_environment_says_the_same(void **)
{
    const struct { const char *fault; cudaError_t e; const char *rounds; } cases[] = {
        {"", cudaSuccess, "0 1 2 "},
        {"oom@2", cudaErrorMemoryAllocation, "0 1 "},
        {"illegal@3", cudaErrorIllegalAddress, "0 1 2 "},
        {"launch@1", cudaErrorLaunchFailure, "0 "},
        {"ecc@2", cudaErrorECCUncorrectable, "0 1 "},
        {"ecc@2:1", cudaSuccess, "0 1 2 "},
        {"lost@2:0", cudaErrorUnknown, "0 1 "},
        {"lost@0ms", cudaErrorUnknown, "0 "},
        {"hang@2", cudaErrorNotReady, "0 1 "},
        {"slow@100", cudaSuccess, "0 1 2 "},
        {"oom@3,illegal@2", cudaErrorIllegalAddress, "0 1 "},
        {"nodriver", cudaErrorInsufficientDriver, ""},
        {"olddriver", cudaErrorInsufficientDriver, ""},
        {"nodevice", cudaErrorNoDevice, ""},
    };
    for (const auto &c : cases) {
        child_result r = run_child("use", std::string("RACKLM_EMU_FAULT=") + c.fault);
        if (!WIFEXITED(r.status) || WEXITSTATUS(r.status) != (int)c.e % 256 || r.text != c.rounds)
            print_error("%s: status %x, %s\n", c.fault, (unsigned)r.status, r.text.c_str());
        assert_true(WIFEXITED(r.status));
        assert_int_equal(WEXITSTATUS(r.status), (int)c.e % 256); /* an exit status has 8 bits */
        assert_string_equal(r.text.c_str(), c.rounds);
    }
    assert_int_equal(WEXITSTATUS(run_child("use", "RACKLM_EMU_MEMORY=2500K").status), cudaErrorMemoryAllocation);
    assert_true(run_child("use", "RACKLM_EMU_FAULT=sparks@2").crashed());
}

void a_driver_tells_its_version(void **)
{
    int v;
    OK(cudaDriverGetVersion(&v));
    assert_int_equal(v, CUDART_VERSION);
    setenv("RACKLM_EMU_FAULT", "olddriver", 1);
    emu_reset();
    OK(cudaDriverGetVersion(&v));
    assert_int_equal(v, 11040);
    assert_int_equal(cudaSetDevice(0), cudaErrorInsufficientDriver);
    setenv("RACKLM_EMU_FAULT", "nodriver", 1);
    emu_reset();
    OK(cudaDriverGetVersion(&v));
    assert_int_equal(v, 0);
    unsetenv("RACKLM_EMU_FAULT");
}

void visible_devices_are_those_listed(void **)
{
    struct cudaDeviceProp p;
    int n;
    setenv("RACKLM_EMU_DEVICES", "4", 1);
    setenv("CUDA_VISIBLE_DEVICES", "2,0,9,1", 1);
    emu_reset();
    OK(cudaGetDeviceCount(&n));
    assert_int_equal(n, 2); /* up to the first that is not there */
    OK(cudaGetDeviceProperties(&p, 0));
    assert_int_equal(p.pciBusID, 3);
    setenv("CUDA_VISIBLE_DEVICES", "", 1);
    emu_reset();
    GIVES(cudaErrorNoDevice, cudaGetDeviceCount(&n));
    unsetenv("CUDA_VISIBLE_DEVICES");
}

void a_forked_process_has_no_devices(void **)
{
    float *d = device_array<float>(1);
    pid_t pid = fork();
    if (pid == 0)
        _exit(cudaFree(d) == cudaErrorInitializationError ? 0 : 1);
    int status;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
}

/* ---- between processes */

/* The other one: doubles what it finds, and tells what opening gives. argument: the handle in hexadecimal digits. */
int share(const char *hex)
{
    cudaIpcMemHandle_t h;
    void *p, *again;
    float v[100];
    for (size_t i = 0; i < sizeof(h); i++) {
        unsigned byte;
        if (sscanf(hex + 2 * i, "%2x", &byte) != 1)
            return 1;
        ((unsigned char *)&h)[i] = (unsigned char)byte;
    }
    if (cudaIpcOpenMemHandle(&p, h, 0) != cudaErrorInvalidValue || cudaIpcOpenMemHandle(&p, h, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess)
        return 2;
    if (cudaIpcOpenMemHandle(&again, h, cudaIpcMemLazyEnablePeerAccess) != cudaSuccess || again != p || cudaIpcCloseMemHandle(again) != cudaSuccess)
        return 3;
    if (cudaMemcpy(v, p, sizeof(v), cudaMemcpyDeviceToHost) != cudaSuccess)
        return 4;
    for (float &f : v)
        f *= 2;
    if (cudaMemcpy(p, v, sizeof(v), cudaMemcpyHostToDevice) != cudaSuccess || cudaMemcpy(p, v, sizeof(v) + 1, cudaMemcpyHostToDevice) != cudaErrorInvalidValue)
        return 5;
    if (cudaFree(p) != cudaErrorInvalidValue || cudaIpcCloseMemHandle(p) != cudaSuccess || cudaIpcCloseMemHandle(p) != cudaErrorInvalidValue)
        return 6;
    memset(&h, 0, sizeof(h));
    return cudaIpcOpenMemHandle(&p, h, cudaIpcMemLazyEnablePeerAccess) == cudaErrorInvalidResourceHandle ? 0 : 7;
}

void memory_is_shared_between_processes(void **)
{
    float *d = device_array<float>(100), v[100];
    cudaIpcMemHandle_t h;
    void *p;
    std::string hex = "share ";
    for (int i = 0; i < 100; i++)
        v[i] = (float)i;
    OK(cudaMemcpy(d, v, sizeof(v), cudaMemcpyHostToDevice));
    GIVES(cudaErrorInvalidValue, cudaIpcGetMemHandle(&h, v));
    OK(cudaIpcGetMemHandle(&h, d));
    GIVES(cudaErrorDeviceUninitialized, cudaIpcOpenMemHandle(&p, h, cudaIpcMemLazyEnablePeerAccess)); /* not in the same process */
    for (size_t i = 0; i < sizeof(h); i++) {
        char digits[3];
        snprintf(digits, sizeof(digits), "%02x", ((unsigned char *)&h)[i]);
        hex += digits;
    }
    child_result r = run_child(hex);
    if (r.status != 0)
        print_error("%x %s\n", (unsigned)r.status, r.text.c_str());
    assert_int_equal(r.status, 0);
    OK(cudaMemcpy(v, d, sizeof(v), cudaMemcpyDeviceToHost));
    for (int i = 0; i < 100; i++)
        assert_true(v[i] == (float)(2 * i));
    OK(cudaFree(d));
    assert_int_equal(WEXITSTATUS(run_child(hex).status), 2); /* it is gone */
}

} // namespace

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "use") == 0)
        return use();
    if (argc == 2 && strncmp(argv[1], "share ", 6) == 0)
        return share(argv[1] + 6);
    const struct CMUnitTest tests[] = {
        TEST(a_lost_device_stays_lost),
        TEST(a_device_is_lost_within_a_graph),
        TEST(a_device_is_lost_after_a_time),
        TEST(a_wait_ends_when_the_device_is_lost),
        TEST(memory_runs_out_when_told),
        TEST(a_stream_can_hang),
        TEST(a_fault_of_a_kernel_is_the_devices),
        TEST(the_environment_says_the_same),
        TEST(a_driver_tells_its_version),
        TEST(visible_devices_are_those_listed),
        TEST(a_forked_process_has_no_devices),
        TEST(memory_is_shared_between_processes),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}
