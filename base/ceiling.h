/* What this machine reaches at most: the read bandwidth that the speed of generation is measured against, the rates of dot products for that of prompts. */
#ifndef BASE_CEILING_H
#define BASE_CEILING_H

#include <stddef.h>

/* GB/s (10^9 bytes) of n_threads reading `bytes` of huge-page memory together: the best of several rounds. Takes some
 * `bytes` of memory and about a second. `bytes` should be several times the last-level cache. 0 when memory is short.
 */
double ceiling_read_gbs(unsigned n_threads, size_t bytes);
/* 10^9 operations a second (a multiply-add is two) of n_threads with nothing but the widest instruction there is for products of this kind, from registers: the best
 * of several rounds, a few ms in all. INT8: unsigned times signed bytes (VNNI; AVX2: vpmaddubsw and an addition of 16 bits). BF16: pairs into fp32. FP32: multiply-add.
 * 0 where there is no such instruction. */
enum ceiling_dot { CEILING_INT8, CEILING_BF16, CEILING_FP32, CEILING_DOTS };
double ceiling_dot_gops(enum ceiling_dot kind, unsigned n_threads);

#endif
