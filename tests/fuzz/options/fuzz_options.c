/* Any bytes as racklm.yaml: the loader must give ERR_OK or an error that names the file and a place, leak nothing, and
 * never repeat a secret. The input is read through a memory file, since the loader takes a path. */
#include "base/check.h"
#include "base/log.h"
#include "base/options.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned occurrences(const uint8_t *data, size_t size, const char *s)
{
    unsigned n = 0;
    const uint8_t *p = data;
    while ((p = memmem(p, size - (size_t)(p - data), s, strlen(s))) != NULL) {
        n++;
        p++;
    }
    return n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("racklm.yaml", MFD_CLOEXEC);
        ASSERT(fd >= 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        log_init("fuzz", LOG_ERROR, LOG_TEXT);
    }
    ASSERT(ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size);
    struct options o;
    options_init(&o);
    err_clear();
    enum err e = options_load_file(&o, path);
    if (e != ERR_OK)
        ASSERT(strncmp(err_detail(), path, strlen(path)) == 0);
    else {
        ASSERT(o.tp >= 1 && o.tp <= 1024 && o.port >= 0 && o.port <= 65535 && o.kv_type >= 0 && o.kv_type < 5);
        ASSERT(o.body_max >= 1024 && o.step_target_ms >= 1 && o.step_target_ms <= 60000);
    }
    /* Long enough not to stand in an error by chance, and not also written where an error may quote it (as a key's name, say). */
    if (o.api_key && strlen(o.api_key) >= 12 && occurrences(data, size, o.api_key) == 1)
        ASSERT(!strstr(err_detail(), o.api_key));
    options_deinit(&o);
    return 0;
}
