/* The agent's worker processes: starting, watching, ending them.
 *
 * A child is this very program (/proc/self/exe --child), with only four descriptors: nothing, the log, the spec, and the read end of a pipe
 * whose other end the agent holds: end of file means that the agent is gone. The kernel kills it too when the agent's
 * main thread ends (PR_SET_PDEATHSIG), so children are forked from that thread only. Its end is seen at once on a pidfd. */
#ifndef WORKER_CHILD_H
#define WORKER_CHILD_H

#include "base/options.h"
#include "worker/inventory.h"
#include "worker/spec.h"

#include <sys/types.h>

enum { CHILD_KILL_MS = 2000 }; /* between SIGTERM and SIGKILL */

struct child {
    uint64_t worker_id;
    pid_t pid;
    int pidfd, spec_fd;
    uint64_t kill_at_ns; /* 0: not asked to stop */
    uint32_t gpu;        /* in gpu_info, or CHILD_NO_GPU */
    uint64_t started_ns;
    bool reported;       /* its end was, before it was seen: its GPU is lost, and what hangs in the driver may not end */
};
#define CHILD_NO_GPU 0xffffffffu
struct child_exit {
    int32_t status; /* exit code, or minus the signal */
    char text[SPEC_TEXT_MAX];
};

/* life_fd: read end of the agent's pipe. gpus: where d is a GPU; a real one is the only one that the child's CUDA sees, so that it neither
 * waits for the others nor fails when one of them is lost. Signals stay blocked in the child. ERR_IO, ERR_NOMEM. */
enum err child_start(const struct options *o, const struct inventory *v, const struct inventory_device *d, const struct gpu_info *gpus,
                     const struct msg_start_worker *start, int life_fd, struct child *out);
/* SIGTERM now, SIGKILL by child_tick when it has not gone CHILD_KILL_MS later. */
void child_stop(struct child *c, uint64_t now_ns);
void child_kill(struct child *c);
void child_tick(struct child *c, uint64_t now_ns);
/* False while it runs. True: reaped, *out is filled, the descriptors are closed. */
bool child_reap(struct child *c, struct child_exit *out);

#endif
