/* Where one coordinator of this user keeps its sockets, so that several on a machine coexist and a client finds the
 * newest.
 *
 *   <runtime_dir>/<pid>/control.sock    agents and admins (ipc)
 *   <runtime_dir>/<pid>/engine-N.sock   workers of replica N
 *   <runtime_dir>/current -> <pid>      the coordinator that was started last and still runs
 *
 * The directory of a coordinator that was killed is removed by the next one that starts. */
#ifndef COORDINATOR_INSTANCE_H
#define COORDINATOR_INSTANCE_H

#include "base/err.h"

#include <stddef.h>

struct instance {
    char runtime_dir[256], dir[288];
};

/* Makes the directory and points `current` at it. */
enum err instance_open(const char *runtime_dir, struct instance *out);
/* Removes both again; `current` goes to the newest of the others that still run. */
void instance_close(struct instance *i);
/* "ipc://<dir>/<name>"; ERR_CONFIG when the path is longer than a socket's may be. */
enum err instance_endpoint(const struct instance *i, const char *name, char *out, size_t cap);

#endif
