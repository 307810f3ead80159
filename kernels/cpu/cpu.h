/* What the files of the CPU backend share: its tables, one for each instruction set, and the choice among them
 * (dispatch.c). */
#ifndef KERNELS_CPU_CPU_H
#define KERNELS_CPU_CPU_H

#include "kernels/kernels.h"

extern const struct kernels kernels_cpu_c; /* kernels/ref/ref.c: the exact reference, as a backend */

#endif
