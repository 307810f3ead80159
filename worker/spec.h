/* What the agent hands to the worker process that it starts, in a memfd: the START_WORKER message as its bytes, what the inventory says about the
 * device, and room for one line in which the worker leaves the reason of its end. The descriptor is inherited over exec, so
 * nothing of it is seen in a process list, and a worker that dies can block nobody. */
#ifndef WORKER_SPEC_H
#define WORKER_SPEC_H

#include "proto/device.h"
#include "proto/msg.h"

enum { SPEC_TEXT_MAX = 512 };

struct spec {
    struct msg_start_worker start; /* lives in the reader's arena */
    uint64_t memory_bytes;         /* budget of the worker */
    uint32_t n_threads;
    bool own_core;
    enum device_kind kind;
    uint32_t ordinal;              /* of a GPU: for cudaSetDevice in this process, whose environment shows what it may use */
};

/* Close-on-exec; *fd is the caller's. ERR_IO, ERR_TOO_BIG. */
enum err spec_write(const struct spec *s, int *fd);
/* ERR_PROTOCOL: not what spec_write made. */
enum err spec_read(int fd, struct arena *arena, struct spec *out);
/* The worker's last word; cut to one line. */
void spec_leave_text(int fd, const char *text);
/* "" when none was left. */
void spec_text(int fd, char *buf, size_t cap);

#endif
