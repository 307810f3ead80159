/* The read bandwidth that this machine reaches: the ceiling that the speed of generation is measured against. */
#ifndef BASE_CEILING_H
#define BASE_CEILING_H

#include <stddef.h>

/* GB/s (10^9 bytes) of n_threads reading `bytes` of huge-page memory together: the best of several rounds. Takes some
 * `bytes` of memory and about a second. `bytes` should be several times the last-level cache. 0 when memory is short.
 */
double ceiling_read_gbs(unsigned n_threads, size_t bytes);

#endif
