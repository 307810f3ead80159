/* The process of one worker: joins the control link of its engine to the model runner and the communicator.
 *
 *     step => batch -forward-> logits -sampler-> step_result =>
 *
 * Exit codes, of the agent's process too (the agent reports a worker's as `status` of WORKER_EXITED):
 *   0  stopped as asked (SIGTERM, SHUTDOWN)
 *   1  failed; the last line says why
 *   2  wrong usage or configuration
 *   3  refused by the coordinator: key or protocol version
 *   4  the parent process, the engine or the coordinator is gone
 *   5  the GPU, or what it does with other GPUs, failed or does not answer: only the end of the process gives it back */
#ifndef WORKER_WORKER_H
#define WORKER_WORKER_H

#include "base/options.h"

enum worker_exit { WORKER_EXIT_OK, WORKER_EXIT_FAILED, WORKER_EXIT_USAGE, WORKER_EXIT_REFUSED, WORKER_EXIT_ORPHAN, WORKER_EXIT_GPU };

/* A link that has been silent for so long is lost: the worker leaves, the agent starts over. */
enum { WORKER_LINK_LOST_MS = 30000 };

/* Runs a worker until it is to end; the exit code. spec_fd: from the agent (spec.h); o->parent_fd: end of file ends the process at once. SIGTERM and
 * SIGINT are blocked in every thread; SIGTERM ends the process within a second, also in the middle of a step. */
int worker_main(const struct options *o, int spec_fd);

#endif
