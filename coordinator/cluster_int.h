/* Inside the cluster thread: shared by cluster.c and admin.c. */
#ifndef COORDINATOR_CLUSTER_INT_H
#define COORDINATOR_CLUSTER_INT_H

#include "base/buf.h"
#include "coordinator/cluster.h"
#include "coordinator/members.h"

#include <pthread.h>

enum { CLUSTER_IPC, CLUSTER_TCP, CLUSTER_SERVERS };

struct cluster {
    struct cluster_config cfg;
    struct link_server *servers[CLUSTER_SERVERS]; /* CLUSTER_TCP may be NULL */
    struct members members;
    uint64_t *need_bytes; /* [ranks] weights, by world rank */
    uint64_t model_bytes, started_ns, now_ns, last_tick_ns, tick_ns;
    uint32_t ctx;  /* decided at the first placement */
    bool *drained; /* [n_engines] */
    struct arena arena;
    pthread_t thread;
    bool has_thread;

    int stop_fd;
    atomic_bool stop, draining, all_drained, shutdown_asked, fatal;
    pthread_mutex_t lock; /* text, http_url */
    char text[256], http_url[128];
};

/* admin.c: answers STATUS, WORKERS and SHUTDOWN, the last only to an admin's key. */
void admin_answer(struct cluster *c, unsigned server, const struct link_peer *from, const struct msg_admin_request *q);
/* cluster.c */
void cluster_wake_main(struct cluster *c);

#endif
