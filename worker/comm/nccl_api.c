/* libnccl.so.2 by dlopen. Found once, kept for the life of the process: NCCL does not support being unloaded. */
#include "worker/comm/nccl_api.h"

#include "base/check.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct nccl_api table;
static void *library;

static enum err find(void *lib, const char *name, void **fn)
{
    *fn = dlsym(lib, name);
    return *fn ? ERR_OK : err_set(ERR_UNSUPPORTED, "NCCL: libnccl.so.2 has no %s: 2.18 or newer is needed", name);
}

static enum err load(void *lib)
{
    struct nccl_api a = {0};
    void *fn;
#define X(name)                                                                                                        \
    TRY(find(lib, "nccl" #name, &fn));                                                                                 \
    memcpy(&a.name, &fn, sizeof(fn)); /* POSIX gives functions as void * */
    NCCL_FUNCTIONS(X)
#undef X
    if (a.GetVersion(&a.version) != ncclSuccess)
        return err_set(ERR_UNSUPPORTED, "NCCL: libnccl.so.2 does not tell its version");
    if (a.version < NCCL_VERSION_MIN)
        return err_set(ERR_UNSUPPORTED, "NCCL: libnccl.so.2 is version %d.%d.%d; 2.18 or newer is needed", a.version / 10000, a.version / 100 % 100,
                       a.version % 100);
    table = a;
    return ERR_OK;
}

enum err nccl_api_load(const struct nccl_api **out)
{
    enum err e = ERR_OK;
    *out = NULL;
    pthread_mutex_lock(&mutex);
    if (!library) {
        void *lib = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
        e = lib ? load(lib) : err_set(ERR_UNSUPPORTED, "NCCL is needed for several GPUs: %s (install libnccl2, 2.18 or newer)", dlerror());
        if (e == ERR_OK)
            library = lib;
        else if (lib)
            dlclose(lib);
    }
    pthread_mutex_unlock(&mutex);
    if (e == ERR_OK)
        *out = &table;
    return e;
}
