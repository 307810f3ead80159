#include "proto/device.h"

#include "base/check.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name, *text;
} paths[DEVICE_PATH_COUNT] = {
    [DEVICE_PATH_UNKNOWN] = {"?", "not known"},
    [DEVICE_PATH_SELF] = {"X", "itself"},
    [DEVICE_PATH_BOARD] = {"BRD", "on one board"},
    [DEVICE_PATH_SWITCH] = {"PIX", "through one PCIe switch"},
    [DEVICE_PATH_SWITCHES] = {"PXB", "through several PCIe switches"},
    [DEVICE_PATH_BRIDGE] = {"PHB", "through a PCIe host bridge"},
    [DEVICE_PATH_NODE] = {"NODE", "between the host bridges of one NUMA node"},
    [DEVICE_PATH_SYSTEM] = {"SYS", "between NUMA nodes"},
};

static const struct {
    uint32_t bit;
    const char *name;
} reasons[] = {
    {DEVICE_THROTTLE_APPLICATION_CLOCKS, "application_clocks"},
    {DEVICE_THROTTLE_SW_POWER_CAP, "sw_power_cap"},
    {DEVICE_THROTTLE_HW_SLOWDOWN, "hw_slowdown"},
    {DEVICE_THROTTLE_SYNC_BOOST, "sync_boost"},
    {DEVICE_THROTTLE_SW_THERMAL, "sw_thermal_slowdown"},
    {DEVICE_THROTTLE_HW_THERMAL, "hw_thermal_slowdown"},
    {DEVICE_THROTTLE_HW_POWER_BRAKE, "hw_power_brake"},
    {DEVICE_THROTTLE_DISPLAY_CLOCKS, "display_clocks"},
};

const char *device_kind_name(enum device_kind kind)
{
    static const char *const names[] = {[DEVICE_CPU] = "cpu", [DEVICE_CUDA] = "cuda", [DEVICE_EMULATED] = "emulated"};
    return names[kind];
}

bool device_is_gpu(const char *kind)
{
    return kind && *kind && strcmp(kind, device_kind_name(DEVICE_CPU)) != 0;
}

const char *device_path_name(uint32_t path)
{
    return paths[path < DEVICE_PATH_COUNT ? path : DEVICE_PATH_UNKNOWN].name;
}

const char *device_path_text(uint32_t path)
{
    return paths[path < DEVICE_PATH_COUNT ? path : DEVICE_PATH_UNKNOWN].text;
}

const char *device_throttle_name(uint32_t mask, unsigned i)
{
    mask &= ~(uint32_t)DEVICE_THROTTLE_IDLE;
    for (unsigned k = 0; k < ARRAY_LEN(reasons); k++) {
        if ((mask & reasons[k].bit) && i-- == 0)
            return reasons[k].name;
        mask &= ~reasons[k].bit;
    }
    return mask && i == 0 ? "other" : NULL;
}

void device_throttle_text(uint32_t mask, char *out, size_t cap)
{
    size_t len = 0;
    const char *name;
    out[0] = '\0';
    for (unsigned i = 0; (name = device_throttle_name(mask, i)) && len < cap; i++)
        len += (size_t)snprintf(out + len, cap - len, "%s%s", i ? ", " : "", name);
}
