/* The node agent: one process a host, parent of its workers. Tells the coordinator what the host offers, starts and stops workers as told,
 * reports at once when one ends, and leaves none behind.
 *
 * Does not own: what runs where (the coordinator's), nor anything inside a worker. It computes nothing. */
#ifndef WORKER_AGENT_H
#define WORKER_AGENT_H

#include "base/options.h"

#include <stddef.h>

/* Runs until SIGTERM or SIGINT (with o->parent_fd only SIGTERM: a terminal's Ctrl-C is the parent's affair), the end of the parent, or a
 * refusal; an exit code of worker.h. Call it first thing on the main thread. */
int agent_main(struct options *o);

/* Fills o->join and o->key_file where they were not given: the coordinator of this host. Owned by o. */
enum err agent_defaults(struct options *o);
/* The engine's endpoint as it is reached from here: where it names no host (tcp://0.0.0.0:P, tcp://[::]:P, tcp://<star>:P), the host of `join`. */
enum err agent_endpoint(const char *endpoint, const char *join, char *out, size_t cap);

#endif
