/* The part of NVML that racklm calls, from its documentation (docs.nvidia.com/deploy/nvml-api: Device Structs, Device Enums, Event Types, Clocks Event Reasons), with
 * prototypes of our own: nvml.h comes with a driver, and nothing here may need one. Only gpu_info.c and the fake library of the tests know it. */
#ifndef WORKER_NVML_H
#define WORKER_NVML_H

enum nvml_return {
    NVML_OK = 0, NVML_UNINITIALIZED = 1, NVML_INVALID_ARGUMENT = 2, NVML_NOT_SUPPORTED = 3, NVML_NO_PERMISSION = 4, NVML_NOT_FOUND = 6, NVML_INSUFFICIENT_SIZE = 7,
    NVML_DRIVER_NOT_LOADED = 9, NVML_TIMEOUT = 10, NVML_GPU_IS_LOST = 15, NVML_RESET_REQUIRED = 16, NVML_OPERATING_SYSTEM = 17, NVML_LIB_RM_VERSION_MISMATCH = 18,
    NVML_UNKNOWN = 999,
};
enum { NVML_NAME_MAX = 96, NVML_UUID_MAX = 96, NVML_DRIVER_MAX = 80 }; /* buffers that are always long enough */
enum { NVML_TEMPERATURE_GPU = 0 };
enum nvml_topology {
    NVML_TOPOLOGY_INTERNAL = 0, NVML_TOPOLOGY_SINGLE = 10, NVML_TOPOLOGY_MULTIPLE = 20, NVML_TOPOLOGY_HOSTBRIDGE = 30, NVML_TOPOLOGY_NODE = 40, NVML_TOPOLOGY_SYSTEM = 50,
};
enum { NVML_NVLINK_TO_GPU = 0, NVML_NVLINK_TO_SWITCH = 2 };
#define NVML_EVENT_XID 0x8ull

struct nvml_memory {
    unsigned long long total, free, used;
};
struct nvml_utilization {
    unsigned gpu, memory; /* percent of the last sample period */
};
struct nvml_pci {
    char bus_id_legacy[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
};
struct nvml_event {
    void *device;
    unsigned long long type, data; /* data: the Xid */
    unsigned gpu_instance, compute_instance;
};

/* FN(needed, name in the library, parameters): all return enum nvml_return as an int. What is not needed may be missing in an older driver. */
#define NVML_FUNCTIONS(FN)                                                                                                                                       \
    FN(1, nvmlInit_v2, (void))                                                                                                                                   \
    FN(1, nvmlShutdown, (void))                                                                                                                                  \
    FN(1, nvmlDeviceGetCount_v2, (unsigned *n))                                                                                                                  \
    FN(1, nvmlDeviceGetHandleByIndex_v2, (unsigned index, void **device))                                                                                        \
    FN(1, nvmlDeviceGetName, (void *device, char *name, unsigned len))                                                                                           \
    FN(1, nvmlDeviceGetUUID, (void *device, char *uuid, unsigned len))                                                                                           \
    FN(1, nvmlDeviceGetMemoryInfo, (void *device, struct nvml_memory *memory))                                                                                   \
    FN(1, nvmlDeviceGetPciInfo_v3, (void *device, struct nvml_pci *pci))                                                                                         \
    FN(0, nvmlSystemGetDriverVersion, (char *version, unsigned len))                                                                                             \
    FN(0, nvmlSystemGetCudaDriverVersion_v2, (int *version))                                                                                                     \
    FN(0, nvmlDeviceGetCudaComputeCapability, (void *device, int *major, int *minor))                                                                            \
    FN(0, nvmlDeviceGetMigMode, (void *device, unsigned *current, unsigned *pending))                                                                            \
    FN(0, nvmlDeviceGetTemperature, (void *device, int sensor, unsigned *celsius))                                                                               \
    FN(0, nvmlDeviceGetPowerUsage, (void *device, unsigned *milliwatts))                                                                                         \
    FN(0, nvmlDeviceGetUtilizationRates, (void *device, struct nvml_utilization *rates))                                                                         \
    FN(0, nvmlDeviceGetCurrentClocksEventReasons, (void *device, unsigned long long *reasons))                                                                   \
    FN(0, nvmlDeviceGetCurrentClocksThrottleReasons, (void *device, unsigned long long *reasons)) /* the name before driver 535 */                               \
    FN(0, nvmlDeviceGetTopologyCommonAncestor, (void *device1, void *device2, int *level))                                                                       \
    FN(0, nvmlDeviceGetNvLinkState, (void *device, unsigned link, int *active))                                                                                  \
    FN(0, nvmlDeviceGetNvLinkRemotePciInfo_v2, (void *device, unsigned link, struct nvml_pci *pci))                                                              \
    FN(0, nvmlDeviceGetNvLinkRemoteDeviceType, (void *device, unsigned link, int *type))                                                                         \
    FN(0, nvmlEventSetCreate, (void **set))                                                                                                                      \
    FN(0, nvmlEventSetFree, (void *set))                                                                                                                         \
    FN(0, nvmlDeviceRegisterEvents, (void *device, unsigned long long types, void *set))                                                                         \
    FN(0, nvmlEventSetWait_v2, (void *set, struct nvml_event *event, unsigned timeout_ms))

#endif
