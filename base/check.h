/* Bugs end the process (ASSERT, on in release builds too); sizes from outside go through checked arithmetic. */
#ifndef BASE_CHECK_H
#define BASE_CHECK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Prints file, line, the condition, the thread's check_context, a backtrace, and aborts. */
__attribute__((noreturn)) void check_failed(const char *file, int line, const char *cond);
/* A short line of state (step, epoch, rank) printed by a failed ASSERT of this thread. Copied, 128 bytes. */
void check_context(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#ifdef __cplusplus
}
#endif

#define ASSERT(cond) ((cond) ? (void)0 : check_failed(__FILE__, __LINE__, #cond))

/* True on success; false (and *out untouched) when the result does not fit. */
static inline bool check_add(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}
static inline bool check_mul(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}
/* True when [off, off+len) lies inside [0, size). */
static inline bool check_range(uint64_t off, uint64_t len, uint64_t size)
{
    return off <= size && len <= size - off;
}

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define ROUND_UP(x, m) (((x) + (m)-1) / (m) * (m))

#endif
