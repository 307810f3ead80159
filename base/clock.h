/* Time. clock_ns is CLOCK_MONOTONIC; code that a simulator runs takes `now_ns` as an argument instead. */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define NS_PER_MS 1000000ull
#define NS_PER_S 1000000000ull

static inline uint64_t clock_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * NS_PER_S + (uint64_t)ts.tv_nsec;
}
static inline uint64_t clock_unix_s(void)
{
    return (uint64_t)time(NULL);
}

#endif
