/* One thread beside the front's for work on requests that would hold up its loop: parsing and tokenising bodies of more than a few thousand words.
 * Jobs run one after another in the order they came; their number and their bytes are bounded. What a job may touch in `run`: itself, and what never
 * changes while the server runs (deployments, options). */
#ifndef COORDINATOR_API_WORK_H
#define COORDINATOR_API_WORK_H

#include "base/err.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

struct api_job {
    void (*run)(struct api_job *j);  /* in the worker's thread; left out when cancelled before */
    void (*done)(struct api_job *j); /* in the front's thread, always; frees the job */
    atomic_bool cancelled;           /* set by the front when nobody waits for it any more */
    size_t bytes;                    /* memory that it holds on to */
};

struct api_work;
enum err api_work_create(struct api_work **out);
/* Every job's `done` is called, with `cancelled` set. */
void api_work_destroy(struct api_work **w);
/* Readable when a job is done; then call api_work_reap. */
int api_work_fd(const struct api_work *w);
void api_work_reap(struct api_work *w);
/* False: too much waits already; the job stays the caller's. */
bool api_work_submit(struct api_work *w, struct api_job *j);

#endif
