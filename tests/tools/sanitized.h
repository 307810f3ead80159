/* How much a test does. Under a sanitizer every access to memory costs ten times as much: the short form takes smaller matrices of cases
 * there, RACKLM_FULL=1 all of them, and a build without sanitizers always all of them. */
#ifndef TESTS_TOOLS_SANITIZED_H
#define TESTS_TOOLS_SANITIZED_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED_ADDRESS 1
#elif defined(__SANITIZE_THREAD__)
#define SANITIZED_THREAD 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED_ADDRESS 1
#elif __has_feature(thread_sanitizer)
#define SANITIZED_THREAD 1
#endif
#endif
#ifndef SANITIZED_ADDRESS
#define SANITIZED_ADDRESS 0
#endif
#ifndef SANITIZED_THREAD
#define SANITIZED_THREAD 0
#endif
#define SANITIZED (SANITIZED_ADDRESS || SANITIZED_THREAD)

static inline bool long_form(void)
{
    const char *full = getenv("RACKLM_FULL");
    return full && strcmp(full, "1") == 0;
}

static inline bool sanitized_short(void)
{
    return SANITIZED && !long_form();
}
#endif
