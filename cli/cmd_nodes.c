/* racklm nodes: the devices of each node, what is known of its GPUs, and a matrix of how these reach each other. */
#include "cli/cli.h"
#include "cli/control.h"
#include "cli/nodes.h"
#include "proto/device.h"

#include "base/check.h"

#include <stdio.h>
#include <string.h>

/* ---- shared with racklm status and racklm workers ---- */

const char *nodes_device(const char *name, const char *kind, char out[80])
{
    bool emulated = kind && strcmp(kind, device_kind_name(DEVICE_EMULATED)) == 0;
    snprintf(out, 80, "%.60s%s", name, emulated ? " (emulated)" : "");
    return out;
}

const char *nodes_uuid(const char *uuid, char out[24])
{
    size_t len = strlen(uuid), first = strncmp(uuid, "GPU-", 4) == 0 ? 4 + strcspn(uuid + 4, "-") : len;
    snprintf(out, 24, "%.*s", (int)MIN(first, 23), uuid);
    return out;
}

const char *nodes_temperature(uint32_t celsius, char out[24])
{
    snprintf(out, 24, celsius == DEVICE_TEMPERATURE_UNKNOWN ? "-" : "%u C", celsius);
    return out;
}

void nodes_json_state(struct buf *b, uint64_t memory_free, uint32_t temperature_c, uint32_t power_mw, uint32_t utilization_percent, uint32_t throttle)
{
    const char *name;
    buf_printf(b, ",\"memory_free_bytes\":%llu,\"temperature_c\":%u,\"power_mw\":%u,\"utilization_percent\":%u,\"throttle\":[", (unsigned long long)memory_free, temperature_c, power_mw,
               utilization_percent);
    for (unsigned i = 0; (name = device_throttle_name(throttle, i)); i++)
        buf_printf(b, "%s\"%s\"", i ? "," : "", name);
    buf_putc(b, ']');
}

/* What only a GPU has. */
static void gpu_json(struct buf *b, const struct msg_device *d)
{
    cli_json_str(b, "uuid", d->uuid);
    cli_json_str(b, "bus_id", d->bus_id);
    buf_printf(b, ",\"compute_capability\":\"%u.%u\",\"memory_total_bytes\":%llu", d->sm / 10, d->sm % 10, (unsigned long long)d->memory_total_bytes);
    nodes_json_state(b, d->memory_free_bytes, d->temperature_c, d->power_mw, d->utilization_percent, d->throttle);
    buf_printf(b, ",\"state_age_ms\":%u,\"lost\":%s,", d->state_age_ms, d->lost ? "true" : "false");
    cli_json_str(b, "message", d->why);
    buf_puts(b, ",\"path\":[");
    for (uint32_t i = 0; i < d->n_peers; i++)
        buf_printf(b, "%s\"%s\"", i ? "," : "", device_path_name(d->path[i]));
    buf_puts(b, "],\"nvlinks\":[");
    for (uint32_t i = 0; i < d->n_peers; i++)
        buf_printf(b, "%s%u", i ? "," : "", d->nvlinks[i]);
    buf_putc(b, ']');
}

void nodes_json(struct buf *b, const struct msg_admin_reply *r)
{
    buf_putc(b, '[');
    for (uint32_t i = 0; i < r->n_nodes; i++) {
        const struct msg_hello *n = &r->nodes[i];
        buf_puts(b, i ? ",{" : "{");
        cli_json_str(b, "host", n->host);
        cli_json_str(b, "gpu_driver", n->gpu_driver);
        buf_printf(b, ",\"cuda_version\":\"%u.%u\",", n->cuda_version / 1000, n->cuda_version % 1000 / 10);
        cli_json_str(b, "gpu_note", n->gpu_note);
        buf_puts(b, ",\"devices\":[");
        for (uint32_t d = 0; d < n->n_devices; d++) {
            const struct msg_device *v = &n->devices[d];
            buf_puts(b, d ? ",{" : "{");
            cli_json_str(b, "name", v->name);
            cli_json_str(b, "kind", v->kind);
            cli_json_str(b, "model", v->model);
            buf_printf(b, ",\"memory_bytes\":%llu,\"cores\":%u,\"numa\":%u", (unsigned long long)v->memory_bytes, v->cores, v->numa);
            if (device_is_gpu(v->kind))
                gpu_json(b, v);
            buf_putc(b, '}');
        }
        buf_puts(b, "]}");
    }
    buf_putc(b, ']');
}

/* ---- the table ---- */

static uint32_t count_workers(const struct msg_admin_reply *r, const char *host, const char *device)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n_workers; i++)
        n += strcmp(r->workers[i].host, host) == 0 && strcmp(r->workers[i].device, device) == 0;
    return n;
}

static void print_devices(const struct msg_admin_reply *r)
{
    static const char *const heads[] = {"HOST", "DEVICE", "MODEL", "BUDGET", "NUMA", "THREADS", "WORKERS", "UUID", "BUS", "FREE", "TEMP", "POWER", "LOAD", "STATE"};
    struct cli_table *t = cli_table_create(14, heads, "lllrrrrllrrrrl");
    for (uint32_t i = 0; i < r->n_nodes; i++)
        for (uint32_t k = 0; k < r->nodes[i].n_devices; k++) {
            const struct msg_device *d = &r->nodes[i].devices[k];
            bool gpu = device_is_gpu(d->kind);
            char c[6][24] = {{0}}, device[80], uuid[24] = "", budget[16], memory_free[16] = "", throttle[160], state[300] = "ok";
            snprintf(c[0], 24, "%u", d->numa);
            snprintf(c[1], 24, "%u", d->cores);
            snprintf(c[2], 24, "%u", count_workers(r, r->nodes[i].host, d->name));
            if (gpu) {
                nodes_temperature(d->temperature_c, c[3]);
                snprintf(c[4], 24, "%.0f W", d->power_mw / 1000.0);
                snprintf(c[5], 24, "%u %%", d->utilization_percent);
                cli_bytes(d->memory_free_bytes, memory_free);
                nodes_uuid(d->uuid, uuid);
                device_throttle_text(d->throttle, throttle, sizeof(throttle));
                if (d->lost)
                    snprintf(state, sizeof(state), "lost: %s", d->why);
                else if (throttle[0])
                    snprintf(state, sizeof(state), "throttled: %s", throttle);
            }
            cli_table_row(t, r->nodes[i].host, nodes_device(d->name, d->kind, device), d->model, cli_bytes(d->memory_bytes, budget), c[0], c[1], c[2], uuid, gpu ? d->bus_id : "", memory_free,
                          c[3], c[4], c[5], state);
        }
    cli_table_print(&t);
}

/* "NV4" where 4 NVLinks lead there, else the way over PCIe. */
static const char *cell(const struct msg_device *from, uint32_t to, char out[16])
{
    if (to < from->n_peers && from->nvlinks[to])
        snprintf(out, 16, "NV%u", from->nvlinks[to]);
    else
        snprintf(out, 16, "%s", device_path_name(to < from->n_peers ? from->path[to] : DEVICE_PATH_UNKNOWN));
    return out;
}

static void print_legend(const struct msg_hello *n, const uint32_t *gpus, uint32_t n_gpus)
{
    bool seen[DEVICE_PATH_COUNT] = {0}, nvlinks = false, any = false;
    for (uint32_t i = 0; i < n_gpus; i++)
        for (uint32_t k = 0; k < n_gpus; k++) {
            const struct msg_device *d = &n->devices[gpus[i]];
            bool known = gpus[k] < d->n_peers;
            nvlinks |= known && d->nvlinks[gpus[k]];
            if (i != k && !(known && d->nvlinks[gpus[k]]))
                seen[known && d->path[gpus[k]] < DEVICE_PATH_COUNT ? d->path[gpus[k]] : DEVICE_PATH_UNKNOWN] = true;
        }
    if (nvlinks)
        printf("NV#: so many NVLinks");
    any = nvlinks;
    for (uint32_t p = 0; p < DEVICE_PATH_COUNT; p++) {
        if (!seen[p])
            continue;
        printf("%s%s: %s", any ? "; " : "", device_path_name(p), device_path_text(p));
        any = true;
    }
    putchar('\n');
}

static void print_topology(const struct msg_hello *n)
{
    const char *heads[MSG_DEVICES_MAX + 1] = {""}, *cells[MSG_DEVICES_MAX + 1];
    char align[MSG_DEVICES_MAX + 2], text[MSG_DEVICES_MAX][16];
    uint32_t gpus[MSG_DEVICES_MAX], n_gpus = 0;
    for (uint32_t k = 0; k < n->n_devices && k < MSG_DEVICES_MAX; k++)
        if (device_is_gpu(n->devices[k].kind)) {
            heads[n_gpus + 1] = n->devices[k].name;
            gpus[n_gpus++] = k;
        }
    if (n_gpus < 2)
        return;
    memset(align, 'l', n_gpus + 1);
    align[n_gpus + 1] = '\0';
    struct cli_table *t = cli_table_create(n_gpus + 1, heads, align);
    for (uint32_t i = 0; i < n_gpus; i++) {
        cells[0] = heads[i + 1];
        for (uint32_t k = 0; k < n_gpus; k++)
            cells[k + 1] = cell(&n->devices[gpus[i]], gpus[k], text[k]);
        cli_table_cells(t, cells);
    }
    printf("\nHow the GPUs of %s reach each other (driver %s, CUDA %u.%u):\n", n->host, n->gpu_driver, n->cuda_version / 1000, n->cuda_version % 1000 / 10);
    cli_table_print(&t);
    print_legend(n, gpus, n_gpus);
}

static void nodes_text(const struct msg_admin_reply *r)
{
    print_devices(r);
    for (uint32_t i = 0; i < r->n_nodes; i++) {
        print_topology(&r->nodes[i]);
        if (r->nodes[i].gpu_note[0])
            printf("\nGPUs of %s are not used: %s\n", r->nodes[i].host, r->nodes[i].gpu_note);
    }
}

int cmd_nodes(struct options *o, int argc, char **argv)
{
    return control_show("nodes", ADMIN_STATUS, nodes_json, nodes_text, o, argc, argv);
}
