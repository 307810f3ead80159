/* What the emulator's own tests share: a kernel that is a lambda, and the message of a child that a fault ends. */
#ifndef TESTS_GPU_EMU_TEST_EMU_H
#define TESTS_GPU_EMU_TEST_EMU_H

#include "tests/gpu/emu/kernel.h"

#include <cstdio>
#include <cstdlib>
#include <string>

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
}

/* For kernels and hosts alike: a test framework's assert cannot leave a fiber, so a kernel's is told by run. */
inline int kernel_errors;
inline void expect(bool x, emu::here at = emu::here::current())
{
    if (x)
        return;
    if (kernel_errors < 10)
        print_error("%s:%u: not as expected\n", at.file_name(), at.line());
    if (emu::self)
        kernel_errors++;
    else
        fail();
}
template <class A, class B> void expect_equal(A a, B b, emu::here at = emu::here::current())
{
    if (a != A(b))
        print_error("%lld, not %lld\n", (long long)a, (long long)b);
    expect(a == A(b), at);
}

inline emu::fault run(dim3 grid, dim3 block, size_t smem, std::function<void()> thread, const char *name = "test_kernel")
{
    emu::fault f = emu::run_kernel({name, grid, block, smem, std::move(thread)});
    int n = kernel_errors;
    kernel_errors = 0;
    assert_int_equal(n, 0);
    return f;
}

/* What a child wrote to standard error before it died, by abort or the sanitizer's exit. */
inline std::string message_of(const std::function<void()> &what)
{
    int fd[2];
    assert_int_equal(pipe(fd), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(fd[1], 2);
        for (int s : {SIGABRT, SIGSEGV, SIGBUS}) /* not cmocka's, nor a core */
            signal(s, SIG_DFL);
        setenv("RACKLM_EMU_SPIN_S", "1", 1);
        what();
        _exit(0);
    }
    close(fd[1]);
    std::string text;
    char buf[4096];
    for (ssize_t n; (n = read(fd[0], buf, sizeof buf)) > 0;)
        text.append(buf, size_t(n));
    close(fd[0]);
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_not_equal(status, 0);
    return text;
}
inline void assert_says(const std::string &text, std::initializer_list<const char *> parts)
{
    for (const char *p : parts)
        if (text.find(p) == std::string::npos) {
            print_error("not said: \"%s\"\nbut: %s\n", p, text.c_str());
            assert_true(false);
        }
}

#endif
