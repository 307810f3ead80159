/* What a host offers: its devices, the CPUs each may use, the memory of each.
 *
 * CPU devices are cut from the CPUs that this process may use (affinity, cgroup quota): one per NUMA node, or as many as `--devices` names.
 * The sets of two devices are disjoint while there are CPUs enough; with more threads than CPUs they are all the CPUs and nobody
 * owns a core. Plain functions over files below a root, so that tests read a made-up host; no state, no threads. */
#ifndef WORKER_INVENTORY_H
#define WORKER_INVENTORY_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

enum { INVENTORY_DEVICES_MAX = 256, INVENTORY_CPUS_MAX = 1024 };

struct inventory_device {
    char name[32];         /* "cpu:0" */
    uint32_t numa;         /* node of its first CPU */
    uint64_t memory_bytes; /* budget of one worker */
    uint32_t n_threads;    /* of one worker */
    bool own_core;         /* its threads may spin */
    uint32_t first_cpu, n_cpus; /* affinity: inventory.cpus[first_cpu ..] */
};
struct inventory {
    char host[128], cpu_model[128];
    uint64_t memory_bytes; /* of all devices together */
    uint32_t n_usable;     /* CPUs worth of time: affinity and quota */
    int *cpus;             /* allowed CPU numbers: node by node, threads of a core side by side */
    uint32_t n_cpus;
    struct inventory_device *devices;
    uint32_t n_devices;
};

/* root: prefix of /proc and /sys ("" for this host). allowed: CPU numbers, n_allowed > 0 of them. devices: "cpu:0,cpu:1" or NULL: one a
 * NUMA node. threads: of each worker, 0: shared out. ERR_CONFIG names a device that cannot be; ERR_NOMEM. */
enum err inventory_read(const char *root, const int *allowed, uint32_t n_allowed, const char *devices, uint32_t threads,
                        struct inventory *out);
void inventory_deinit(struct inventory *v);
const struct inventory_device *inventory_find(const struct inventory *v, const char *name); /* or NULL */
/* The CPUs of this process's affinity mask, at most cap. */
uint32_t inventory_allowed(int *cpus, uint32_t cap);
/* "0-3,8,10-11" -> numbers, ascending as written; at most cap. The count, or -1 when it is no such list. */
int inventory_parse_list(const char *s, int *out, uint32_t cap);

#endif
