#include "worker/gpu_info.h"

#include "base/buf.h"
#include "base/check.h"
#include "base/log.h"
#include "worker/nvml.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { LINKS_MAX = 64, EVENTS_MAX = 64 };

struct nvml {
    void *lib, *events;
    bool init;
#define FN(needed, name, args) int(*name) args;
    NVML_FUNCTIONS(FN)
#undef FN
};

/* ---- Xids ---- */

/* NVIDIA's words, shortened. fatal: answered by a reset of the GPU or a restart of the host. Where that depends on generation or driver it is not: a worker that fails
 * again and again is given up anyway, while a GPU that is called lost in error is missed until the agent starts again. */
static const struct {
    uint32_t xid;
    bool fatal;
    const char *text;
} xids[] = {
    {8, false, "GPU stopped processing"},
    {13, false, "graphics engine exception"},
    {31, false, "GPU memory page fault"},
    {32, false, "invalid or corrupted push buffer stream"},
    {43, false, "GPU stopped processing"},
    {45, false, "preemptive cleanup, due to previous errors"},
    {46, true, "GPU stopped processing"},
    {48, true, "double bit ECC error"},
    {61, false, "internal micro-controller breakpoint or warning"},
    {62, true, "internal micro-controller halt"},
    {63, false, "ECC row remapping recorded"},
    {64, true, "ECC row remapping failed"},
    {68, false, "video processor exception"},
    {69, false, "graphics engine class error"},
    {74, false, "NVLink error"},
    {79, true, "fallen off the bus"},
    {92, false, "high rate of single bit ECC errors"},
    {94, false, "contained ECC error"},
    {95, true, "uncontained ECC error"},
    {109, false, "context switch timeout"},
    {110, false, "security fault"},
    {119, true, "GSP RPC timeout"},
    {120, true, "GSP error"},
    {121, false, "C2C link error"},
    {140, true, "unrecovered ECC error"},
};

const char *gpu_info_xid_text(uint32_t xid)
{
    for (unsigned i = 0; i < ARRAY_LEN(xids); i++)
        if (xids[i].xid == xid)
            return xids[i].text;
    return "";
}

bool gpu_info_xid_is_fatal(uint32_t xid)
{
    for (unsigned i = 0; i < ARRAY_LEN(xids); i++)
        if (xids[i].xid == xid)
            return xids[i].fatal;
    return false;
}

/* ---- opening ---- */

static bool driver_is_loaded(const char *root)
{
    char path[1024];
    snprintf(path, sizeof(path), "%s/proc/driver/nvidia", root);
    return access(path, F_OK) == 0;
}

static bool end_open(struct gpu_info *g, enum gpu_info_state state, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static bool end_open(struct gpu_info *g, enum gpu_info_state state, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(g->why, sizeof(g->why), fmt, ap);
    va_end(ap);
    g->state = state;
    g->n = 0;
    return false;
}

static bool load_library(struct gpu_info *g, const char *root, const char *library)
{
    struct nvml *l = g->nvml;
    const char *missing = NULL;
    l->lib = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!l->lib && driver_is_loaded(root))
        return end_open(g, GPU_INFO_BROKEN,
                        "the NVIDIA driver is loaded, but its library %.100s cannot be: %.120s (a container needs the NVIDIA container toolkit: --gpus all; a host the driver's libraries)",
                        library, dlerror());
    if (!l->lib)
        return end_open(g, GPU_INFO_NONE, "there is no NVIDIA driver on this host");
#define FN(needed, name, args)                      \
    *(void **)&l->name = dlsym(l->lib, #name);      \
    if (needed && !l->name && !missing)             \
        missing = #name;
    NVML_FUNCTIONS(FN)
#undef FN
    if (missing)
        return end_open(g, GPU_INFO_BROKEN, "%.100s has no %s: the NVIDIA driver is too old, racklm needs one for CUDA %d.%d (driver %d or later)", library, missing,
                        GPU_INFO_CUDA_NEEDED / 1000, GPU_INFO_CUDA_NEEDED % 1000 / 10, GPU_INFO_DRIVER_NEEDED);
    return true;
}

static bool start_library(struct gpu_info *g, const char *root)
{
    struct nvml *l = g->nvml;
    int rc = l->nvmlInit_v2(), cuda = 0;
    switch (rc) {
    case NVML_OK:
        break;
    case NVML_DRIVER_NOT_LOADED:
        return end_open(g, driver_is_loaded(root) ? GPU_INFO_BROKEN : GPU_INFO_NONE, "the NVIDIA driver is installed, but not loaded (modprobe nvidia; dmesg says why it fails)");
    case NVML_LIB_RM_VERSION_MISMATCH:
        return end_open(g, GPU_INFO_BROKEN, "the NVIDIA driver was updated, but the old one is still loaded: restart this host, or reload the nvidia modules");
    case NVML_NO_PERMISSION:
    case NVML_OPERATING_SYSTEM:
        return end_open(g, GPU_INFO_BROKEN, "this user may not use the NVIDIA driver (NVML error %d): look at the rights of /dev/nvidia*, and at the cgroup's devices", rc);
    default:
        return end_open(g, GPU_INFO_BROKEN, "the NVIDIA driver does not start (NVML error %d): nvidia-smi and dmesg say more", rc);
    }
    l->init = true;
    if (!l->nvmlSystemGetDriverVersion || l->nvmlSystemGetDriverVersion(g->driver, sizeof(g->driver)) != NVML_OK)
        snprintf(g->driver, sizeof(g->driver), "of an unknown version");
    if (!l->nvmlSystemGetCudaDriverVersion_v2 || l->nvmlSystemGetCudaDriverVersion_v2(&cuda) != NVML_OK)
        cuda = 0;
    g->cuda_version = (uint32_t)MAX(cuda, 0);
    if (cuda < GPU_INFO_CUDA_NEEDED)
        return end_open(g, GPU_INFO_BROKEN, "the NVIDIA driver %s knows CUDA up to %d.%d, racklm needs %d.%d: install driver %d or later", g->driver, cuda / 1000, cuda % 1000 / 10,
                        GPU_INFO_CUDA_NEEDED / 1000, GPU_INFO_CUDA_NEEDED % 1000 / 10, GPU_INFO_DRIVER_NEEDED);
    return true;
}

/* ---- the facts of a GPU ---- */

static int read_numa(const char *root, const char *bus_id)
{
    char path[1024];
    struct buf b;
    buf_init(&b);
    snprintf(path, sizeof(path), "%s/sys/bus/pci/devices/%s/numa_node", root, bus_id);
    int node = -1; /* what the kernel writes too where the firmware does not tell */
    if (buf_read_file(&b, path, 64) == ERR_OK && b.len && isdigit((unsigned char)b.data[0]))
        node = atoi(b.data);
    buf_deinit(&b);
    return node;
}

/* False: it cannot be read. why: what stands against using it, or "". */
static bool read_gpu(struct nvml *l, const char *root, unsigned index, struct gpu *v)
{
    struct nvml_pci pci = {0};
    struct nvml_memory memory = {0};
    int rc, major = 0, minor = 0;
    unsigned mig = 0, pending = 0;
    *v = (struct gpu){.numa = -1};
    if ((rc = l->nvmlDeviceGetHandleByIndex_v2(index, &v->handle)) != NVML_OK || (rc = l->nvmlDeviceGetPciInfo_v3(v->handle, &pci)) != NVML_OK ||
        (rc = l->nvmlDeviceGetUUID(v->handle, v->uuid, sizeof(v->uuid))) != NVML_OK || (rc = l->nvmlDeviceGetName(v->handle, v->name, sizeof(v->name))) != NVML_OK ||
        (rc = l->nvmlDeviceGetMemoryInfo(v->handle, &memory)) != NVML_OK) {
        LOG(WARN, AGENT, "GPU left out", "nvml_index=%u error=%d why=\"%s\"", index, rc,
            rc == NVML_GPU_IS_LOST ? "it is lost: the host must be restarted" : "NVML cannot read it: nvidia-smi says more");
        return false;
    }
    v->domain = pci.domain;
    v->bus = pci.bus;
    v->device = pci.device;
    snprintf(v->bus_id, sizeof(v->bus_id), "%04x:%02x:%02x.0", pci.domain, pci.bus & 0xff, pci.device & 0xff);
    v->memory_bytes = memory.total;
    v->free_bytes = memory.free;
    v->numa = read_numa(root, v->bus_id);
    if (l->nvmlDeviceGetCudaComputeCapability && l->nvmlDeviceGetCudaComputeCapability(v->handle, &major, &minor) == NVML_OK)
        v->sm = (uint32_t)(major * 10 + minor);
    if (l->nvmlDeviceGetMigMode && l->nvmlDeviceGetMigMode(v->handle, &mig, &pending) == NVML_OK && mig)
        snprintf(v->why, sizeof(v->why), "it is cut up (MIG), racklm uses whole GPUs (nvidia-smi -i BUS_ID -mig 0)");
    else if (v->sm && v->sm < GPU_INFO_SM_MIN)
        snprintf(v->why, sizeof(v->why), "its compute capability is %u.%u, racklm needs %d.%d", v->sm / 10, v->sm % 10, GPU_INFO_SM_MIN / 10, GPU_INFO_SM_MIN % 10);
    return true;
}

static int by_bus(const void *a, const void *b)
{
    const struct gpu *x = a, *y = b;
    if (x->domain != y->domain)
        return x->domain < y->domain ? -1 : 1;
    if (x->bus != y->bus)
        return x->bus < y->bus ? -1 : 1;
    return (x->device > y->device) - (x->device < y->device);
}

/* The GPU that an entry of CUDA_VISIBLE_DEVICES names: a number, or the beginning of a UUID that only one has. n: none. */
static uint32_t find_visible(const struct gpu *gpus, uint32_t n, const char *word, size_t len)
{
    uint32_t found = n;
    if (len && strspn(word, "0123456789") >= len) {
        unsigned long k = strtoul(word, NULL, 10);
        return k < n ? (uint32_t)k : n;
    }
    for (uint32_t i = 0; i < n && len; i++)
        if (strncmp(gpus[i].uuid, word, len) == 0) {
            if (found < n)
                return n;
            found = i;
        }
    return found;
}

/* As CUDA reads it (CUDA C++ Programming Guide, Environment Variables): what stands behind the first entry that names no GPU is not seen, and a GPU that is named twice makes all of
 * them invisible. Numbers count in the order of PCI bus ids, whatever CUDA_DEVICE_ORDER said: our children are told so too. */
static void apply_visible(struct gpu_info *g, const char *visible)
{
    struct gpu all[GPU_INFO_MAX];
    uint32_t n = g->n;
    memcpy(all, g->gpus, sizeof(all));
    g->n = 0;
    for (const char *p = visible; *p;) {
        p += strspn(p, " ");
        size_t len = strcspn(p, ", ");
        uint32_t i = find_visible(all, n, p, len);
        if (i == n)
            return;
        for (uint32_t k = 0; k < g->n; k++)
            if (g->gpus[k].handle == all[i].handle) {
                g->n = 0;
                return;
            }
        g->gpus[g->n++] = all[i];
        p += len;
        p += strspn(p, " ");
        p += *p == ',';
    }
}

static void leave_out(struct gpu_info *g)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < g->n; i++) {
        if (g->gpus[i].why[0])
            LOG(WARN, AGENT, "GPU left out", "gpu=\"%s\" bus_id=%s why=\"%s\"", g->gpus[i].name, g->gpus[i].bus_id, g->gpus[i].why);
        else
            g->gpus[n++] = g->gpus[i];
    }
    g->n = n;
}

/* ---- topology ---- */

static enum device_path path_of_level(int level)
{
    switch (level) {
    case NVML_TOPOLOGY_INTERNAL:
        return DEVICE_PATH_BOARD;
    case NVML_TOPOLOGY_SINGLE:
        return DEVICE_PATH_SWITCH;
    case NVML_TOPOLOGY_MULTIPLE:
        return DEVICE_PATH_SWITCHES;
    case NVML_TOPOLOGY_HOSTBRIDGE:
        return DEVICE_PATH_BRIDGE;
    case NVML_TOPOLOGY_NODE:
        return DEVICE_PATH_NODE;
    case NVML_TOPOLOGY_SYSTEM:
        return DEVICE_PATH_SYSTEM;
    default:
        return DEVICE_PATH_UNKNOWN;
    }
}

/* Adds GPU i's links to their other ends; those to switches are counted for all who have some. */
static void read_links(struct gpu_info *g, uint32_t i, uint8_t *to_switch)
{
    struct nvml *l = g->nvml;
    for (unsigned link = 0; link < LINKS_MAX; link++) {
        int active = 0, type = NVML_NVLINK_TO_GPU;
        struct nvml_pci pci = {0};
        int rc = l->nvmlDeviceGetNvLinkState(g->gpus[i].handle, link, &active);
        if (rc == NVML_INVALID_ARGUMENT) /* there are no more */
            return;
        if (rc != NVML_OK || !active)
            continue;
        if (l->nvmlDeviceGetNvLinkRemoteDeviceType && l->nvmlDeviceGetNvLinkRemoteDeviceType(g->gpus[i].handle, link, &type) == NVML_OK && type == NVML_NVLINK_TO_SWITCH) {
            to_switch[i]++;
            continue;
        }
        if (l->nvmlDeviceGetNvLinkRemotePciInfo_v2(g->gpus[i].handle, link, &pci) != NVML_OK)
            continue;
        for (uint32_t k = 0; k < g->n; k++)
            if (g->gpus[k].domain == pci.domain && g->gpus[k].bus == pci.bus && g->gpus[k].device == pci.device)
                g->nvlinks[i][k]++;
    }
}

static void read_topology(struct gpu_info *g)
{
    struct nvml *l = g->nvml;
    uint8_t to_switch[GPU_INFO_MAX] = {0};
    for (uint32_t i = 0; i < g->n; i++)
        for (uint32_t k = 0; k < g->n; k++) {
            int level;
            g->path[i][k] = i == k ? DEVICE_PATH_SELF : DEVICE_PATH_UNKNOWN;
            if (i != k && l->nvmlDeviceGetTopologyCommonAncestor && l->nvmlDeviceGetTopologyCommonAncestor(g->gpus[i].handle, g->gpus[k].handle, &level) == NVML_OK)
                g->path[i][k] = (uint8_t)path_of_level(level);
        }
    for (uint32_t i = 0; i < g->n && l->nvmlDeviceGetNvLinkState && l->nvmlDeviceGetNvLinkRemotePciInfo_v2; i++)
        read_links(g, i, to_switch);
    for (uint32_t i = 0; i < g->n; i++)
        for (uint32_t k = 0; k < g->n; k++)
            if (i != k)
                g->nvlinks[i][k] = (uint8_t)(g->nvlinks[i][k] + MIN(to_switch[i], to_switch[k]));
}

/* ---- state ---- */

static void lose(struct gpu *v, bool by_xid, const char *why)
{
    v->lost = true;
    v->lost_by_xid |= by_xid;
    snprintf(v->why, sizeof(v->why), "%s", why);
}

static void read_state(struct nvml *l, struct gpu *v)
{
    unsigned c = 0, mw = 0;
    unsigned long long reasons = 0;
    struct nvml_utilization rates = {0};
    struct nvml_memory memory = {0};
    int rc = l->nvmlDeviceGetMemoryInfo(v->handle, &memory);
    if (rc == NVML_OK)
        v->free_bytes = memory.free;
    int (*throttle)(void *, unsigned long long *) =
        l->nvmlDeviceGetCurrentClocksEventReasons ? l->nvmlDeviceGetCurrentClocksEventReasons : l->nvmlDeviceGetCurrentClocksThrottleReasons;
    if (rc != NVML_GPU_IS_LOST && l->nvmlDeviceGetTemperature)
        rc = l->nvmlDeviceGetTemperature(v->handle, NVML_TEMPERATURE_GPU, &c);
    if (rc == NVML_GPU_IS_LOST || rc == NVML_RESET_REQUIRED) {
        if (!v->lost)
            lose(v, false, rc == NVML_GPU_IS_LOST ? "is lost: the driver cannot reach it any more" : "needs a reset (nvidia-smi --gpu-reset)");
        v->temperature_c = v->power_mw = v->utilization_percent = v->throttle = 0;
        return;
    }
    if (v->lost && !v->lost_by_xid) {
        v->lost = false;
        v->why[0] = '\0';
    }
    v->temperature_c = c;
    v->power_mw = l->nvmlDeviceGetPowerUsage && l->nvmlDeviceGetPowerUsage(v->handle, &mw) == NVML_OK ? mw : 0;
    v->utilization_percent = l->nvmlDeviceGetUtilizationRates && l->nvmlDeviceGetUtilizationRates(v->handle, &rates) == NVML_OK ? rates.gpu : 0;
    v->throttle = throttle && throttle(v->handle, &reasons) == NVML_OK ? (uint32_t)reasons : 0;
}

bool gpu_info_refresh(struct gpu_info *g)
{
    bool changed = false;
    for (uint32_t i = 0; i < g->n; i++) {
        bool was = g->gpus[i].lost;
        read_state(g->nvml, &g->gpus[i]);
        changed |= was != g->gpus[i].lost;
    }
    return changed;
}

static void take_xid(struct gpu *v, uint32_t xid, uint64_t now_ns)
{
    char why[160];
    const char *text = gpu_info_xid_text(xid);
    v->xid = xid;
    v->xid_ns = now_ns;
    snprintf(why, sizeof(why), "reported Xid %u%s%s", xid, text[0] ? ": " : "", text);
    if (gpu_info_xid_is_fatal(xid) && !v->lost_by_xid)
        lose(v, true, why);
    LOG(WARN, AGENT, "GPU error", "gpu=\"%s\" uuid=%s bus_id=%s xid=%u what=\"%s\" lost=%d", v->name, v->uuid, v->bus_id, xid, text, v->lost);
}

bool gpu_info_poll(struct gpu_info *g, uint64_t now_ns)
{
    bool lost = false;
    if (g->state != GPU_INFO_OK || !g->nvml->events)
        return false;
    for (unsigned n = 0; n < EVENTS_MAX; n++) {
        struct nvml_event e = {0};
        if (g->nvml->nvmlEventSetWait_v2(g->nvml->events, &e, 0) != NVML_OK)
            break; /* a time out: there is none; lost GPUs are seen by gpu_info_refresh */
        if (e.type != NVML_EVENT_XID)
            continue;
        for (uint32_t i = 0; i < g->n; i++)
            if (g->gpus[i].handle == e.device) {
                bool was = g->gpus[i].lost;
                take_xid(&g->gpus[i], (uint32_t)e.data, now_ns);
                lost |= !was && g->gpus[i].lost;
            }
    }
    return lost;
}

static void register_events(struct gpu_info *g)
{
    struct nvml *l = g->nvml;
    if (!l->nvmlEventSetCreate || !l->nvmlEventSetFree || !l->nvmlDeviceRegisterEvents || !l->nvmlEventSetWait_v2 || l->nvmlEventSetCreate(&l->events) != NVML_OK) {
        l->events = NULL;
        return;
    }
    for (uint32_t i = 0; i < g->n; i++)
        if (l->nvmlDeviceRegisterEvents(g->gpus[i].handle, NVML_EVENT_XID, l->events) != NVML_OK)
            LOG(WARN, AGENT, "errors of a GPU are not reported", "gpu=\"%s\" bus_id=%s", g->gpus[i].name, g->gpus[i].bus_id);
}

/* ---- life ---- */

static bool read_all(struct gpu_info *g, const char *root, const char *visible)
{
    unsigned n = 0;
    int rc = g->nvml->nvmlDeviceGetCount_v2(&n);
    if (rc != NVML_OK)
        return end_open(g, GPU_INFO_BROKEN, "the NVIDIA driver %s cannot count its GPUs (NVML error %d): nvidia-smi and dmesg say more", g->driver, rc);
    for (unsigned i = 0; i < n && g->n < GPU_INFO_MAX; i++)
        g->n += read_gpu(g->nvml, root, i, &g->gpus[g->n]);
    if (n == 0)
        return end_open(g, GPU_INFO_NONE, "the NVIDIA driver %s has no GPU", g->driver);
    qsort(g->gpus, g->n, sizeof(g->gpus[0]), by_bus);
    if (visible)
        apply_visible(g, visible); /* before: its numbers count them all */
    if (visible && g->n == 0)
        return end_open(g, GPU_INFO_NONE, "CUDA_VISIBLE_DEVICES=%.100s hides all GPUs of this host", visible);
    leave_out(g);
    if (g->n == 0)
        return end_open(g, GPU_INFO_BROKEN, "none of the %u GPUs can be used: the agent's log says why of each", n);
    return true;
}

enum err gpu_info_open(const char *root, const char *library, const char *visible, struct gpu_info **out)
{
    struct gpu_info *g = calloc(1, sizeof(*g));
    struct nvml *l = calloc(1, sizeof(*l));
    *out = NULL;
    if (!g || !l) {
        free(g);
        free(l);
        return err_set(ERR_NOMEM, "the list of GPUs");
    }
    g->nvml = l;
    *out = g;
    if (!load_library(g, root, library ? library : "libnvidia-ml.so.1") || !start_library(g, root) || !read_all(g, root, visible))
        return ERR_OK;
    g->state = GPU_INFO_OK;
    read_topology(g);
    register_events(g);
    gpu_info_refresh(g);
    return ERR_OK;
}

void gpu_info_close(struct gpu_info **gp)
{
    struct gpu_info *g = *gp;
    if (!g)
        return;
    if (g->nvml->events)
        g->nvml->nvmlEventSetFree(g->nvml->events);
    if (g->nvml->init)
        g->nvml->nvmlShutdown();
    if (g->nvml->lib)
        dlclose(g->nvml->lib);
    free(g->nvml);
    free(g);
    *gp = NULL;
}
