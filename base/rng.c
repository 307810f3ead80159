/* The system's generator. */
#include "base/rng.h"

#include "base/check.h"

#include <errno.h>
#include <sys/random.h>

void rng_system(void *p, unsigned len)
{
    unsigned char *at = p;
    while (len > 0) {
        ssize_t n = getrandom(at, len, 0);
        if (n < 0 && errno == EINTR)
            continue;
        ASSERT(n > 0); /* since Linux 3.17 it cannot fail otherwise */
        at += n;
        len -= (unsigned)n;
    }
}
