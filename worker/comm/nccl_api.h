/* NCCL's functions, found at run time: a binary linked to libnccl.so.2 would not start on machines without it. Prototypes are those of nccl.h, whose C API
 * is stable within version 2. Private to worker/comm. */
#ifndef WORKER_COMM_NCCL_API_H
#define WORKER_COMM_NCCL_API_H

#include "base/err.h"

#include <nccl.h>

#define NCCL_FUNCTIONS(X)                                                                                               \
    X(GetVersion)                                                                                                      \
    X(GetUniqueId)                                                                                                     \
    X(GetErrorString)                                                                                                  \
    X(GetLastError)                                                                                                    \
    X(CommInitRankConfig)                                                                                              \
    X(CommGetAsyncError)                                                                                               \
    X(CommAbort)                                                                                                       \
    X(GroupStart)                                                                                                      \
    X(GroupEnd)                                                                                                        \
    X(AllReduce)                                                                                                       \
    X(AllGather)                                                                                                       \
    X(Broadcast)                                                                                                       \
    X(Send)                                                                                                            \
    X(Recv)

struct nccl_api {
#define X(name) __typeof__(nccl##name) *name;
    NCCL_FUNCTIONS(X)
#undef X
    int version; /* as NCCL_VERSION() makes it */
};

/* The oldest that has all of the above and a non-blocking ncclConfig_t (2.14) that later headers' larger ones are cut down to. */
enum { NCCL_VERSION_MIN = NCCL_VERSION(2, 18, 0) };

/* Loads the library once a process; the table is static. ERR_UNSUPPORTED: not there, a function is missing, or too old; the detail says which. */
enum err nccl_api_load(const struct nccl_api **out);

#endif
