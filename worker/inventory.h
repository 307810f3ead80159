/* What a host offers: its devices, the CPUs each may use, the memory of each.
 *
 * GPUs come from gpu_info.h: cuda:N is its gpus[N]; the CPUs of one are those of its NUMA node. CPU devices are cut from the CPUs that this process may use (affinity, cgroup quota): one per NUMA node, or as many as `--devices` names.
 * The sets of two devices are disjoint while there are CPUs enough; with more threads than CPUs they are all the CPUs and nobody
 * owns a core. Plain functions over files below a root, so that tests read a made-up host; no state, no threads. */
#ifndef WORKER_INVENTORY_H
#define WORKER_INVENTORY_H

#include "base/err.h"
#include "worker/gpu_info.h"
#include "worker/gpu_support.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { INVENTORY_DEVICES_MAX = 256, INVENTORY_CPUS_MAX = 1024 };

struct inventory_device {
    char name[32];         /* "cpu:0", "cuda:1" */
    enum device_kind kind;
    uint32_t gpu;          /* of a GPU: in gpu_info, and its CUDA ordinal */
    const char *model;     /* the CPU's or the GPU's name; of the inventory or of gpu_info */
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
    uint32_t n_spare; /* GPUs of them that nobody needs: they take the place of one that is lost */
};

/* Which devices may be chosen: of any kind (GPUs where there are some), CPUs only, GPUs only. */
enum inventory_want { INVENTORY_WANT_ANY, INVENTORY_WANT_CPU, INVENTORY_WANT_GPU };
struct inventory_config {
    const char *root;              /* prefix of /proc and /sys ("" for this host) */
    const int *allowed;            /* CPU numbers */
    uint32_t n_allowed;            /* > 0 */
    const char *devices;           /* "cpu:0,cuda:1"; "any:N": N more; where there are GPUs, all of a type that has so many. NULL: all GPUs, else a CPU device a NUMA node */
    uint32_t threads;              /* of each worker, 0: shared out */
    uint64_t device_memory;        /* most memory of a worker, 0: no such bound */
    enum inventory_want want;
    const struct gpu_info *gpus;   /* borrowed while the inventory lives; NULL: nobody looked */
    enum gpu_support support;
};
/* ERR_CONFIG names a device that cannot be, and says why and what to do; ERR_NOMEM. */
enum err inventory_read(const struct inventory_config *cfg, struct inventory *out);
/* Does the list leave it to us, or name GPUs? Else nobody needs to look for them. */
bool inventory_needs_gpus(const char *devices, enum inventory_want want);
/* Why no GPU is offered, and what to do; "" where some could be. */
void inventory_why_no_gpu(const struct inventory_config *cfg, char *out, size_t cap);
/* Memory of a GPU that is left free: CUDA's context and modules, NCCL's buffers and cuBLASLt's workspace are outside of our budget. */
uint64_t inventory_gpu_reserve(uint64_t memory_bytes);
void inventory_deinit(struct inventory *v);
const struct inventory_device *inventory_find(const struct inventory *v, const char *name); /* or NULL */
/* The CPUs of this process's affinity mask, at most cap. */
uint32_t inventory_allowed(int *cpus, uint32_t cap);
/* "0-3,8,10-11" -> numbers, ascending as written; at most cap. The count, or -1 when it is no such list. */
int inventory_parse_list(const char *s, int *out, uint32_t cap);

#endif
