/* Chooses the CPU table once: the widest instruction set that this CPU runs, or the one that RACKLM_CPU_ISA names. */
#include "base/log.h"
#include "kernels/cpu/cpu.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

static bool have_f16c(void) /* clang 14 does not know it by name */
{
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
static bool have_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && have_f16c();
}
static bool have_avx512(void)
{
    return have_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni");
}
#endif

const struct kernels *kernels_cpu(void)
{
    const char *want = getenv("RACKLM_CPU_ISA");
    if (want && !strcmp(want, "c"))
        return &kernels_cpu_c;
#if defined(__x86_64__)
    if (have_avx512() && !(want && !strcmp(want, "avx2")))
        return &kernels_cpu_avx512;
    if (have_avx2()) {
        if (want && !strcmp(want, "avx512"))
            LOG(WARN, BASE, "RACKLM_CPU_ISA names what this CPU cannot run", "want=%s using=avx2", want);
        return &kernels_cpu_avx2;
    }
#endif
    return &kernels_cpu_c;
}
