/* exact.c again, built with the fma instruction (-mfma on x86; other targets have it anyway). */
#define REF_EXACT_NAME(op) ref_exact_##op##_fma
#include "kernels/ref/exact.c" /* NOLINT: the same source under a second name */
