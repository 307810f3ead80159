/* What the tests of the emulated runtime share. */
#ifndef TESTS_GPU_EMU_TEST_RUNTIME_H
#define TESTS_GPU_EMU_TEST_RUNTIME_H

#include "kernels/cuda/launch.cuh"
#include "tests/gpu/emu/emu_control.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
}
#undef fail /* of cmocka; the standard library has functions of that name */

#define OK(x) assert_int_equal(x, cudaSuccess)
#define GIVES(error, x) (assert_int_equal(x, error), cudaGetLastError())

__global__ inline void set_one(float *p, float v)
{
    p[0] = v;
}
__global__ inline void add_one(float *p)
{
    p[0] += 1;
}
__global__ inline void copy_one(const float *from, float *to)
{
    to[0] = from[0];
}

template <typename T> inline T *device_array(size_t n)
{
    void *p;
    OK(cudaMalloc(&p, n * sizeof(T)));
    return static_cast<T *>(p);
}
template <typename T> inline T *pinned_array(size_t n)
{
    void *p;
    OK(cudaHostAlloc(&p, n * sizeof(T), cudaHostAllocDefault));
    return static_cast<T *>(p);
}
template <typename T> inline T read_one(const T *p)
{
    T v;
    OK(cudaMemcpy(&v, p, sizeof(v), cudaMemcpyDeviceToHost));
    return v;
}
inline cudaStream_t new_stream()
{
    cudaStream_t s;
    OK(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
    return s;
}
inline cudaEvent_t new_event()
{
    cudaEvent_t e;
    OK(cudaEventCreateWithFlags(&e, cudaEventDisableTiming));
    return e;
}

/* Devices as the environment now says; nothing works unless it is waited for, so that a seed decides everything. */
inline int begin_test(void **)
{
    setenv("RACKLM_EMU_DEVICES", "2", 1);
    emu_reset();
    emu_set_lag_ms(0);
    return 0;
}
inline int end_test(void **)
{
    emu_reset();
    return 0;
}
#define TEST(f) cmocka_unit_test_setup_teardown(f, begin_test, end_test)

/* Runs f in another process that has not used CUDA: `argument` picks it in main (run_child), its output is `text`; the wait status, as of waitpid. */
struct child_result {
    int status;
    std::string text;
    bool crashed() const { return WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) != 0); }
};
inline child_result run_child(const std::string &argument, const std::string &environment = "")
{
    int out[2];
    if (pipe(out) != 0)
        abort();
    pid_t pid = fork();
    if (pid == 0) {
        dup2(out[1], 1);
        dup2(out[1], 2);
        close(out[0]);
        if (!environment.empty()) {
            static std::string e;
            e = environment;
            putenv(e.data());
        }
        execl("/proc/self/exe", "test_runtime", argument.c_str(), (char *)nullptr);
        _exit(127);
    }
    close(out[1]);
    child_result r = {0, ""};
    char buf[512];
    for (ssize_t n; (n = read(out[0], buf, sizeof(buf))) > 0;)
        r.text.append(buf, (size_t)n);
    close(out[0]);
    waitpid(pid, &r.status, 0);
    return r;
}

#endif
