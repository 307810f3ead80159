/* A libnvidia-ml.so.1 with made-up GPUs, for tests: racklm loads it where RACKLM_NVML names it. It follows NVML's documentation (docs.nvidia.com/deploy/nvml-api), not what
 * gpu_info.c expects; tests/e2e/test_gpu.py reads it through NVIDIA's own Python binding too.
 *
 *   RACKLM_EMU_DEVICES   how many GPUs (default 1)
 *   RACKLM_EMU_NVML      what they are, "key=value;key=value"; a value with '|' has one part a GPU, of which the last stands for the rest:
 *       name, memory, free (bytes, K M G), sm (90), temperature, throttle (bits), power (mW), mig (1), driver, cuda (13000),
 *       init, count, handle (an NVML error in place of success), link (a GPU's NVLinks to each other one), switch (to a switch),
 *       level (of every common ancestor: 10 ... 50), reverse (1: NVML's order is not that of the PCI buses)
 *   RACKLM_EMU_NVML_EVENTS  a file that is read on as it grows: lines "xid GPU CODE", "lost GPU", "back GPU", "temperature GPU CELSIUS", "throttle GPU BITS",
 *                       "hang GPU MS" (every question about it takes so long)
 *
 * FAKE_NVML_OLD: the library of an old driver, which lacks every function that racklm can do without, but those that tell versions. */
#include "worker/nvml.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define FN(needed, name, args) int name args;
NVML_FUNCTIONS(FN)
#undef FN

enum { GPUS_MAX = 64, EVENTS_MAX = 256 };

static struct gpu {
    unsigned index;
    bool lost, has_events;
    unsigned temperature;
    unsigned long long throttle;
    unsigned hang_ms;
} gpus[GPUS_MAX];
static unsigned n_gpus, inits;
static struct nvml_event events[EVENTS_MAX];
static unsigned n_events;
static long events_at; /* offset in the file */
static __attribute__((unused)) int event_set;

/* ---- configuration ---- */

/* The value of a key for a GPU, or what it is without one. Static until the next call. */
static const char *text_of(const char *key, unsigned gpu, const char *otherwise)
{
    static char out[256];
    const char *p = getenv("RACKLM_EMU_NVML");
    size_t len = strlen(key);
    for (; p && *p; p += strcspn(p, ";"), p += *p == ';') {
        if (strncmp(p, key, len) != 0 || p[len] != '=')
            continue;
        p += len + 1;
        size_t end = strcspn(p, ";|");
        for (; gpu > 0 && p[end] == '|'; gpu--) {
            p += end + 1;
            end = strcspn(p, ";|");
        }
        snprintf(out, sizeof(out), "%.*s", (int)end, p);
        return out;
    }
    return otherwise;
}

static unsigned long long number_of(const char *key, unsigned gpu, unsigned long long otherwise)
{
    const char *s = text_of(key, gpu, NULL);
    char *end;
    if (!s)
        return otherwise;
    unsigned long long v = strtoull(s, &end, 0);
    return v << (*end == 'G' ? 30 : *end == 'M' ? 20 : *end == 'K' ? 10 : 0);
}

static void put_event(unsigned gpu, unsigned xid)
{
    if (gpus[gpu].has_events && n_events < EVENTS_MAX)
        events[n_events++] = (struct nvml_event){&gpus[gpu], NVML_EVENT_XID, xid, 0xffffffff, 0xffffffff};
}

static void read_on(void)
{
    const char *path = getenv("RACKLM_EMU_NVML_EVENTS");
    FILE *f = path ? fopen(path, "r") : NULL;
    char line[128], word[32];
    unsigned gpu, value;
    if (!f)
        return;
    fseek(f, events_at, SEEK_SET);
    while (fgets(line, sizeof(line), f) && strchr(line, '\n')) { /* a line that is still being written comes later */
        events_at = ftell(f);
        value = 0;
        if (sscanf(line, "%31s %u %i", word, &gpu, (int *)&value) < 2 || gpu >= n_gpus)
            continue;
        if (strcmp(word, "xid") == 0)
            put_event(gpu, value);
        else if (strcmp(word, "temperature") == 0)
            gpus[gpu].temperature = value;
        else if (strcmp(word, "hang") == 0)
            gpus[gpu].hang_ms = value;
        else if (strcmp(word, "throttle") == 0)
            gpus[gpu].throttle = value;
        else
            gpus[gpu].lost = strcmp(word, "lost") == 0;
    }
    fclose(f);
}

/* ---- the library ---- */

static int check(void *device)
{
    struct gpu *g = device;
    if (inits == 0)
        return NVML_UNINITIALIZED;
    read_on();
    if (g < gpus || g >= gpus + n_gpus)
        return NVML_INVALID_ARGUMENT;
    if (g->hang_ms)
        usleep(g->hang_ms * 1000);
    return g->lost ? NVML_GPU_IS_LOST : NVML_OK;
}

#define CHECK(device)              \
    do {                           \
        int rc_ = check(device);   \
        if (rc_ != NVML_OK)        \
            return rc_;            \
    } while (0)
#define GPU(device) (((struct gpu *)(device))->index)

static int give(char *out, unsigned cap, const char *text)
{
    return (unsigned)snprintf(out, cap, "%s", text) < cap ? NVML_OK : NVML_INSUFFICIENT_SIZE;
}

API int nvmlInit_v2(void)
{
    int rc = (int)number_of("init", 0, NVML_OK);
    const char *n = getenv("RACKLM_EMU_DEVICES");
    if (rc != NVML_OK)
        return rc;
    if (inits++ > 0)
        return NVML_OK;
    n_gpus = n ? (unsigned)atoi(n) : 1;
    if (n_gpus > GPUS_MAX)
        n_gpus = GPUS_MAX;
    n_events = 0;
    events_at = 0;
    for (unsigned i = 0; i < n_gpus; i++)
        gpus[i] = (struct gpu){i, false, false, (unsigned)number_of("temperature", i, 41), number_of("throttle", i, 0x1), 0};
    return NVML_OK;
}

API int nvmlInitWithFlags(unsigned flags); /* what the Python binding begins with */
API int nvmlInitWithFlags(unsigned flags)
{
    return flags == 0 ? nvmlInit_v2() : NVML_INVALID_ARGUMENT;
}

API int nvmlShutdown(void)
{
    if (inits == 0)
        return NVML_UNINITIALIZED;
    inits--;
    return NVML_OK;
}

API int nvmlDeviceGetCount_v2(unsigned *n)
{
    *n = n_gpus;
    return inits == 0 ? NVML_UNINITIALIZED : (int)number_of("count", 0, NVML_OK);
}

API int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device)
{
    if (inits == 0)
        return NVML_UNINITIALIZED;
    if (index >= n_gpus)
        return NVML_INVALID_ARGUMENT;
    unsigned i = number_of("reverse", 0, 0) ? n_gpus - 1 - index : index;
    *device = &gpus[i];
    read_on();
    return gpus[i].lost ? NVML_GPU_IS_LOST : (int)number_of("handle", i, NVML_OK);
}

API int nvmlDeviceGetName(void *device, char *name, unsigned len)
{
    CHECK(device);
    return give(name, len, text_of("name", GPU(device), "Emulated GPU"));
}

API int nvmlDeviceGetUUID(void *device, char *uuid, unsigned len)
{
    char text[64];
    CHECK(device);
    snprintf(text, sizeof(text), "GPU-%08x-e000-4000-8000-%012x", 0xe0000000u + GPU(device), GPU(device));
    return give(uuid, len, text);
}

API int nvmlDeviceGetMemoryInfo(void *device, struct nvml_memory *memory)
{
    CHECK(device);
    memory->total = number_of("memory", GPU(device), 4ull << 30);
    memory->free = number_of("free", GPU(device), memory->total);
    memory->used = memory->total - memory->free;
    return NVML_OK;
}

static void pci_of(unsigned gpu, struct nvml_pci *pci)
{
    memset(pci, 0, sizeof(*pci));
    pci->domain = gpu / 8;
    pci->bus = 0x10 * (gpu % 8 + 1) + 0xb;
    pci->device_id = 0x233010de;
    snprintf(pci->bus_id, sizeof(pci->bus_id), "%08X:%02X:%02X.0", pci->domain, pci->bus, pci->device);
    snprintf(pci->bus_id_legacy, sizeof(pci->bus_id_legacy), "%04X:%02X:%02X.0", pci->domain & 0xffff, pci->bus & 0xff, pci->device & 0xff);
}

API int nvmlDeviceGetPciInfo_v3(void *device, struct nvml_pci *pci)
{
    CHECK(device);
    pci_of(GPU(device), pci);
    return NVML_OK;
}

API int nvmlSystemGetDriverVersion(char *version, unsigned len)
{
    return inits == 0 ? NVML_UNINITIALIZED : give(version, len, text_of("driver", 0, "580.00.00"));
}

API int nvmlSystemGetCudaDriverVersion_v2(int *version)
{
    *version = (int)number_of("cuda", 0, 13000);
    return NVML_OK;
}

#ifndef FAKE_NVML_OLD
API int nvmlDeviceGetCudaComputeCapability(void *device, int *major, int *minor)
{
    CHECK(device);
    int sm = (int)number_of("sm", GPU(device), 90);
    *major = sm / 10;
    *minor = sm % 10;
    return NVML_OK;
}

API int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending)
{
    CHECK(device);
    *current = *pending = (unsigned)number_of("mig", GPU(device), 0);
    return NVML_OK;
}

API int nvmlDeviceGetTemperature(void *device, int sensor, unsigned *celsius)
{
    CHECK(device);
    *celsius = gpus[GPU(device)].temperature;
    return sensor == NVML_TEMPERATURE_GPU ? NVML_OK : NVML_INVALID_ARGUMENT;
}

API int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts)
{
    CHECK(device);
    *milliwatts = (unsigned)number_of("power", GPU(device), 75000);
    return NVML_OK;
}

API int nvmlDeviceGetUtilizationRates(void *device, struct nvml_utilization *rates)
{
    CHECK(device);
    *rates = (struct nvml_utilization){(unsigned)number_of("utilization", GPU(device), 0), 0};
    return NVML_OK;
}

API int nvmlDeviceGetCurrentClocksEventReasons(void *device, unsigned long long *reasons)
{
    CHECK(device);
    *reasons = gpus[GPU(device)].throttle;
    return NVML_OK;
}

API int nvmlDeviceGetCurrentClocksThrottleReasons(void *device, unsigned long long *reasons)
{
    return nvmlDeviceGetCurrentClocksEventReasons(device, reasons);
}

API int nvmlDeviceGetTopologyCommonAncestor(void *device1, void *device2, int *level)
{
    CHECK(device1);
    CHECK(device2);
    /* Without `level`: pairs share a switch, four of them a NUMA node. */
    unsigned a = GPU(device1), b = GPU(device2);
    *level = (int)number_of("level", 0, a / 2 == b / 2 ? NVML_TOPOLOGY_SINGLE : a / 4 == b / 4 ? NVML_TOPOLOGY_NODE : NVML_TOPOLOGY_SYSTEM);
    return NVML_OK;
}

/* Link k of a GPU: first those to the other GPUs, `link` to each, then those to the switch. */
static int other_end(unsigned gpu, unsigned link, bool *to_switch, unsigned *peer)
{
    unsigned each = (unsigned)number_of("link", gpu, 0), direct = each * (n_gpus - 1), more = (unsigned)number_of("switch", gpu, 0);
    *to_switch = link >= direct;
    *peer = each ? link / each : 0;
    *peer += *peer >= gpu;
    return link >= 18 ? NVML_INVALID_ARGUMENT : link < direct + more ? NVML_OK : NVML_NOT_SUPPORTED;
}

API int nvmlDeviceGetNvLinkState(void *device, unsigned link, int *active)
{
    bool to_switch;
    unsigned peer;
    CHECK(device);
    int rc = other_end(GPU(device), link, &to_switch, &peer);
    *active = rc == NVML_OK;
    return rc == NVML_NOT_SUPPORTED && number_of("link", 0, 0) + number_of("switch", 0, 0) ? NVML_OK : rc;
}

API int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, struct nvml_pci *pci)
{
    bool to_switch;
    unsigned peer;
    CHECK(device);
    int rc = other_end(GPU(device), link, &to_switch, &peer);
    pci_of(peer, pci);
    if (to_switch)
        pci->domain = 0x77;
    return rc;
}

API int nvmlDeviceGetNvLinkRemoteDeviceType(void *device, unsigned link, int *type)
{
    bool to_switch;
    unsigned peer;
    CHECK(device);
    int rc = other_end(GPU(device), link, &to_switch, &peer);
    *type = to_switch ? NVML_NVLINK_TO_SWITCH : NVML_NVLINK_TO_GPU;
    return rc;
}

API int nvmlEventSetCreate(void **set)
{
    *set = &event_set;
    return inits == 0 ? NVML_UNINITIALIZED : NVML_OK;
}

API int nvmlEventSetFree(void *set)
{
    return set == &event_set ? NVML_OK : NVML_INVALID_ARGUMENT;
}

API int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set)
{
    CHECK(device);
    if (set != &event_set || types != NVML_EVENT_XID)
        return NVML_INVALID_ARGUMENT;
    gpus[GPU(device)].has_events = true;
    return NVML_OK;
}

/* Never waits: nobody here asks it to. */
API int nvmlEventSetWait_v2(void *set, struct nvml_event *event, unsigned timeout_ms)
{
    (void)timeout_ms;
    if (inits == 0 || set != &event_set)
        return inits == 0 ? NVML_UNINITIALIZED : NVML_INVALID_ARGUMENT;
    read_on();
    if (n_events == 0)
        return NVML_TIMEOUT;
    *event = events[0];
    memmove(events, events + 1, --n_events * sizeof(events[0]));
    return NVML_OK;
}
#endif
