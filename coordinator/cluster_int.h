/* Inside the cluster thread: shared by cluster.c and admin.c. */
#ifndef COORDINATOR_CLUSTER_INT_H
#define COORDINATOR_CLUSTER_INT_H

#include "base/buf.h"
#include "coordinator/cluster.h"
#include "coordinator/members.h"

#include <pthread.h>

enum { CLUSTER_IPC, CLUSTER_TCP, CLUSTER_SERVERS };

/* What the cluster thread knows of a deployment beside its workers. */
struct served {
    const struct deployment *d;
    uint64_t *need_bytes; /* [ranks] weights, by world rank */
    uint32_t ctx;         /* decided at the first placement */
    uint32_t group;       /* of its first replica */
    atomic_bool fatal;
    char text[256];       /* under the lock */
};

struct cluster {
    struct cluster_config cfg;
    struct link_server *servers[CLUSTER_SERVERS]; /* CLUSTER_TCP may be NULL */
    struct members members;
    struct served *served; /* [n_deployments] */
    uint64_t started_ns, now_ns, last_tick_ns, tick_ns;
    bool *drained; /* [groups] */
    struct arena arena;
    pthread_t thread;
    bool has_thread;

    int stop_fd;
    atomic_bool stop, draining, all_drained, shutdown_asked, fatal, was_ready;
    pthread_mutex_t lock; /* text, http_url, those of `served` */
    char text[256], http_url[128]; /* text: of the fatal error */
};

/* admin.c: answers STATUS, WORKERS and SHUTDOWN, the last only to an admin's key. */
void admin_answer(struct cluster *c, unsigned server, const struct link_peer *from, const struct msg_admin_request *q);
/* cluster.c */
void cluster_wake_main(struct cluster *c);
struct engine *cluster_engine(const struct cluster *c, uint32_t group);

#endif
