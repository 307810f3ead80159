/* A whole coordinator: options, keys, the facts of its models, engines, the cluster thread, the front; made in this order, ended in
 * the reverse.
 *
 * Sockets: instance.h says where the ipc ones are and how clients find them. With `listen` tcp://HOST:PORT agents of
 * other hosts join there, and engine N listens for their workers on PORT + 1 + N (on any free port where PORT is 0).
 *
 * It runs until SIGTERM, SIGINT, an admin's SHUTDOWN or the end of file of `parent_fd`. The first three drain: new
 * requests are refused, open ones may finish for drain_timeout_ms; a second signal ends at once. With parent_fd (racklm
 * serve) a state that only a person can mend (a worker that cannot load, memory that does not suffice) ends it with one
 * line on standard error; without, it stays and /health says why. */
#ifndef COORDINATOR_COORDINATOR_H
#define COORDINATOR_COORDINATOR_H

#include "base/options.h"

/* Signals it handles; block them before any thread starts. */
void coordinator_block_signals(void);
/* ERR_OK after an orderly end. */
enum err coordinator_run(const struct options *opts);

#endif
