/* What messages say about devices in numbers, and its names: the agent fills them in, the CLI shows them. */
#ifndef PROTO_DEVICE_H
#define PROTO_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What a worker computes on. Messages carry the name: "cpu", "cuda"; "emulated": a GPU that is none, in tests. */
enum device_kind { DEVICE_CPU, DEVICE_CUDA, DEVICE_EMULATED };
const char *device_kind_name(enum device_kind kind);
/* Everything but a CPU: also of a kind that this build does not know. */
bool device_is_gpu(const char *kind);

/* How two GPUs of a host reach each other without NVLink: the closest thing that both hang from. Short names as nvidia-smi prints them. Visible on the wire. */
enum device_path {
    DEVICE_PATH_UNKNOWN,
    DEVICE_PATH_SELF,
    DEVICE_PATH_BOARD,    /* one board */
    DEVICE_PATH_SWITCH,   /* one PCIe switch */
    DEVICE_PATH_SWITCHES, /* several PCIe switches, no host bridge */
    DEVICE_PATH_BRIDGE,   /* a PCIe host bridge */
    DEVICE_PATH_NODE,     /* the interconnect between the host bridges of a NUMA node */
    DEVICE_PATH_SYSTEM,   /* the interconnect between NUMA nodes */
    DEVICE_PATH_COUNT
};
/* Why a GPU's clocks are below what was asked for: bits, the numbers of NVML's clocks event reasons (docs.nvidia.com/deploy/nvml-api, group nvmlClocksEventReasons).
 * Visible on the wire. */
enum device_throttle {
    DEVICE_THROTTLE_IDLE = 0x1, /* nothing runs: no throttling */
    DEVICE_THROTTLE_APPLICATION_CLOCKS = 0x2,
    DEVICE_THROTTLE_SW_POWER_CAP = 0x4,
    DEVICE_THROTTLE_HW_SLOWDOWN = 0x8,
    DEVICE_THROTTLE_SYNC_BOOST = 0x10,
    DEVICE_THROTTLE_SW_THERMAL = 0x20,
    DEVICE_THROTTLE_HW_THERMAL = 0x40,
    DEVICE_THROTTLE_HW_POWER_BRAKE = 0x80,
    DEVICE_THROTTLE_DISPLAY_CLOCKS = 0x100,
};
enum { DEVICE_TEMPERATURE_UNKNOWN = 0 }; /* of temperature_c: a GPU that says nothing */

/* "PIX"; "?" for what is not known. */
const char *device_path_name(uint32_t path);
/* One sentence for a legend. */
const char *device_path_text(uint32_t path);
/* The i'th name of a reason in `mask` but idle ("sw_power_cap"), or NULL: there are no more. A bit without a name is "other". */
const char *device_throttle_name(uint32_t mask, unsigned i);
/* "sw_power_cap, hw_slowdown", "" for none. */
void device_throttle_text(uint32_t mask, char *out, size_t cap);

#endif
