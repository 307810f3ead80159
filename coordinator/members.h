/* Who is in the cluster: nodes (one agent each) with their devices, and the workers, one for every rank of every
 * replica of every deployment, wherever they are or are not. Plain tables with the rules of a worker's life; no socket, no clock. Owned by
 * the cluster thread. */
#ifndef COORDINATOR_MEMBERS_H
#define COORDINATOR_MEMBERS_H

#include "coordinator/placement.h"
#include "proto/link.h"

enum { MEMBERS_NODES_MAX = 1024, MEMBERS_LOAD_FAILURES_MAX = 3 };

/* As the agent described it (msg_device). The state of a GPU is that of state_ns. */
struct device {
    char name[64], kind[32], model[128], uuid[96], bus_id[24], why[160];
    uint64_t memory_bytes, memory_total_bytes, memory_free_bytes;
    uint32_t cores, numa, sm;
    uint32_t temperature_c, power_mw, utilization_percent, throttle;
    bool lost;                 /* nothing is placed there */
    uint32_t *path, *nvlinks;  /* [n_peers]; of the node's block */
    uint32_t n_peers;
    uint64_t state_ns;
};
struct node {
    bool joined;
    unsigned server; /* which control socket it came by: 0 ipc, 1 tcp */
    struct link_peer peer;
    uint64_t peer_id, heard_ns;
    uint32_t pid;
    char host[128];
    struct device *devices;
    uint32_t n_devices;
    uint32_t *links;       /* what the devices' path and nvlinks point into */
    char gpu_driver[80], gpu_note[400];
    uint32_t cuda_version;
};

/* UNPLACED -placement-> PLACED -START_WORKER-> STARTING -loaded-> LOADED. An exit leads back to PLACED with a back-off;
 * a worker that the engine gave up is STOPPING until its exit; a node or a device that is lost leaves UNPLACED; too many failed
 * loads in a row lead to FATAL, which only a person ends. */
enum worker_state { WORKER_UNPLACED, WORKER_PLACED, WORKER_STARTING, WORKER_LOADED, WORKER_STOPPING, WORKER_FATAL };
struct worker {
    enum worker_state state;
    uint32_t group, world_rank;
    uint64_t id;           /* of the present process; 0: none yet */
    uint32_t node, device; /* from PLACED on */
    uint64_t started_ns, start_at_ns;
    uint32_t n_starts, n_quick, n_load_failures;
    bool loaded;    /* the present process got so far */
    char text[160]; /* why the last one ended */
    struct msg_worker_ready info;
    char backend[96];
    uint32_t pid;
};

/* The workers of one replica, placed together. */
struct group {
    uint32_t deployment, replica, tp, pp;
    const uint64_t *need_bytes; /* by world rank; borrowed */
    const char *devices;        /* "cpu:0,cpu:1": these only, and shared with the models that name them too; NULL: any that is free; borrowed */
    uint32_t first;             /* in members.workers; set by members_init */
};

struct members {
    struct node *nodes;
    uint32_t n_nodes;          /* entries in use, joined or not */
    struct group *groups;
    struct worker *workers;    /* group by group */
    uint32_t n_groups, n_workers;
    uint64_t next_worker_id;
};

/* The groups are copied. */
enum err members_init(struct members *m, const struct group *groups, uint32_t n_groups, uint64_t first_worker_id);
void members_deinit(struct members *m);
/* A node says hello; copies the devices. ERR_TOO_BIG, ERR_NOMEM. */
enum err members_join(struct members *m, unsigned server, const struct link_peer *peer, const struct msg_hello *h,
                      uint64_t now_ns, uint32_t *node);
/* Joined node of that peer or agent id, or PLACEMENT_NONE. */
uint32_t members_find_peer(const struct members *m, unsigned server, const struct link_peer *peer);
uint32_t members_find_id(const struct members *m, uint64_t peer_id);
/* The agent's heartbeat tells the state of devices. Workers that wait to start on one that is lost become UNPLACED. True: one is newly lost or came back. */
bool members_device_states(struct members *m, uint32_t node, const struct msg_heartbeat *h, uint64_t now_ns);
/* Its workers become UNPLACED (the caller tells the engines before). */
void members_leave(struct members *m, uint32_t node);
struct worker *members_worker(struct members *m, uint64_t worker_id);
/* Places the missing ranks of a group when all of them find a device. True when all are placed now. */
bool members_place(struct members *m, const struct group *g, uint64_t now_ns);
/* Why a group is not placed, where that is more than that devices are missing: those that are free are of several types, or too small. False: it is not so. */
bool members_why_not(const struct members *m, const struct group *g, char *out, size_t cap);
uint32_t members_n_devices(const struct members *m);
/* Devices that the group could still be given. */
uint32_t members_n_free(const struct members *m, const struct group *g);
/* The process of the worker is gone: it will start again at start_at_ns, or not at all (FATAL). */
void members_exited(struct members *m, struct worker *w, const char *why, uint64_t now_ns);
/* Start it: a new id. */
void members_started(struct members *m, struct worker *w, uint64_t now_ns);
const char *members_worker_state_name(enum worker_state s);

#endif
