/* The NVIDIA GPUs of this host as NVML tells them: facts, topology, state, and the errors that the driver reports (Xids).
 *
 * NVML is loaded when it is there (RACKLM_NVML names another library, which tests use); the program starts without it, without a driver and without a GPU. Nothing here creates
 * a CUDA context, so the agent holds no memory of a GPU. GPUs stand in the order of PCI bus ids, as CUDA counts them with
 * CUDA_DEVICE_ORDER=PCI_BUS_ID and nvidia-smi always, less those that CUDA_VISIBLE_DEVICES hides and those that are of no use: cuda:N is gpus[N].
 *
 * One thread at a time, nothing in the background. gpu_info_poll and gpu_info_refresh wait for no event, but a GPU that hangs may hold them for long: gpu_watch.h. */
#ifndef WORKER_GPU_INFO_H
#define WORKER_GPU_INFO_H

#include "base/err.h"
#include "proto/device.h"

#include <stdbool.h>
#include <stdint.h>

enum { GPU_INFO_MAX = 64 };
/* The CUDA version that the driver must know: that of the toolkit racklm is built with, whose programs run on any driver of the same major version
 * (docs.nvidia.com/deploy/cuda-compatibility). */
#ifndef GPU_INFO_CUDA_NEEDED
#define GPU_INFO_CUDA_NEEDED 13000
#endif
/* The first drivers of CUDA 12 and 13. */
#define GPU_INFO_DRIVER_NEEDED (GPU_INFO_CUDA_NEEDED >= 13000 ? 580 : 525)
/* The oldest compute capability that the kernels are compiled for (RACKLM_CUDA_ARCHS). */
enum { GPU_INFO_SM_MIN = 80 };

struct gpu {
    char name[96], uuid[96];
    char bus_id[20];          /* "0000:3b:00.0", as in sysfs */
    uint32_t domain, bus, device; /* the same in numbers */
    uint64_t memory_bytes, free_bytes; /* free: as of the last refresh */
    uint32_t sm;              /* compute capability: 90; 0: not known */
    int numa;                 /* -1: not known */
    uint32_t temperature_c, power_mw, utilization_percent, throttle; /* enum device_throttle; as of the last refresh */
    bool lost;                /* no work for it any more */
    bool lost_by_xid;         /* it may answer and is no good all the same */
    char why[160];            /* lost: "reported Xid 79: ..." */
    uint32_t xid;             /* the last one, 0: none */
    uint64_t xid_ns;          /* when it was seen */
    void *handle;
};
enum gpu_info_state {
    GPU_INFO_NONE,  /* no GPU, or no driver: nothing is wrong */
    GPU_INFO_BROKEN, /* there is a driver, and it cannot be used: why */
    GPU_INFO_OK,
};
struct gpu_info {
    enum gpu_info_state state;
    char why[400];            /* what is wrong and what to do; not OK only */
    char driver[80];
    uint32_t cuda_version;    /* of the driver: 13000 */
    uint32_t n;
    struct gpu gpus[GPU_INFO_MAX];
    uint8_t path[GPU_INFO_MAX][GPU_INFO_MAX];    /* enum device_path */
    uint8_t nvlinks[GPU_INFO_MAX][GPU_INFO_MAX]; /* NVLinks that lead there: directly, or through switches that both hang from */
    struct nvml *nvml;
};

/* root: prefix of /proc and /sys. library: NULL: libnvidia-ml.so.1. visible: CUDA_VISIBLE_DEVICES, or NULL. *out is made in any state; ERR_NOMEM only. GPUs that cannot be used
 * (a MIG mode, an old compute capability, lost) are left out or marked lost, with a line in the log. */
enum err gpu_info_open(const char *root, const char *library, const char *visible, struct gpu_info **out);
void gpu_info_close(struct gpu_info **g);
/* Reads temperature, clocks, power, load, free memory. True: a GPU was lost, or answers again. */
bool gpu_info_refresh(struct gpu_info *g);
/* Takes the Xids that have come. True: a GPU is lost by one. */
bool gpu_info_poll(struct gpu_info *g, uint64_t now_ns);
/* What NVIDIA's catalogue says of an Xid (docs.nvidia.com/deploy/xid-errors), "" for one that is not in our list. */
const char *gpu_info_xid_text(uint32_t xid);
/* The GPU is not to be used after it: its memory or its firmware needs a reset. The others end at most the program that caused them. */
bool gpu_info_xid_is_fatal(uint32_t xid);

#endif
