/* The cluster thread: agents and their devices, placement, starting and restarting workers, the admin protocol.
 *
 * It speaks to agents and admins over one or two ROUTER sockets (ipc in the instance's directory, tcp where `listen` is
 * set) and to the engines by their command queues; engines answer in the queue of engine_events. What others may know
 * is a snapshot under a lock and a few atomics. */
#ifndef COORDINATOR_CLUSTER_H
#define COORDINATOR_CLUSTER_H

#include "coordinator/deployment.h"
#include "coordinator/front.h"

struct cluster;
struct cluster_config {
    const struct options *opts;
    const struct deployment *deployments;
    uint32_t n_deployments;
    const char *endpoint;     /* ipc:// */
    const char *endpoint_tcp; /* or NULL */
    struct link_context *links;
    struct queue *engine_events; /* struct engine_event * */
    int wake_fd;                 /* eventfd of the main thread: written when one of the three below turns true */
};
enum err cluster_create(const struct cluster_config *cfg, struct cluster **out); /* binds; the thread starts */
void cluster_destroy(struct cluster **c);                                        /* stops the workers, joins */
const char *cluster_endpoint_tcp(const struct cluster *c);                       /* with the real port, or NULL */

/* Any thread. */
void cluster_health(struct cluster *c, const struct deployment *d /* NULL: all */, struct front_health *out);
void cluster_set_url(struct cluster *c, const char *http_url);
void cluster_drain(struct cluster *c, uint32_t grace_ms); /* engines drain; workers that end are not started again */
bool cluster_drained(const struct cluster *c);
bool cluster_shutdown_asked(const struct cluster *c); /* an admin sent SHUTDOWN */
/* A person is needed: a deployment cannot come up while the server starts, or none can be served any more. */
bool cluster_fatal(struct cluster *c, char *text, size_t cap);

#endif
