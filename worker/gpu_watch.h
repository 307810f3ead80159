/* A thread that asks the driver how the GPUs are, so that the agent does not hang with a GPU that hangs: a question about a failing one may take the driver most of a minute, in which
 * heartbeats must go on, or the whole node would be taken for lost.
 *
 * How often: while a worker runs on a GPU its errors (Xids) are looked for twice a second and its state is read every 10 s; otherwise both once a minute, since an idle node should
 * cost nothing. All functions are for the one thread that made the watch. */
#ifndef WORKER_GPU_WATCH_H
#define WORKER_GPU_WATCH_H

#include "worker/gpu_info.h"

struct gpu_watch;
/* gpus: opened; from here on only gpu_watch_take writes to it, and only this watch uses its NVML. ERR_NOMEM, ERR_IO. */
enum err gpu_watch_create(struct gpu_info *gpus, struct gpu_watch **out);
/* False: the thread hangs in the driver and is left behind with all it has; gpus must not be closed then. True too when there is none. */
bool gpu_watch_destroy(struct gpu_watch **w);
/* Readable when there is something to take. */
int gpu_watch_fd(const struct gpu_watch *w);
/* Puts what was seen into gpus. False: nothing new. *changed: a GPU was lost, or is back. */
bool gpu_watch_take(struct gpu_watch *w, bool *changed);
/* Workers run on GPUs, or no longer. */
void gpu_watch_set_busy(struct gpu_watch *w, bool busy);
/* Looks at everything now, and waits for that, but no longer than so. */
void gpu_watch_look(struct gpu_watch *w, unsigned timeout_ms);

#endif
