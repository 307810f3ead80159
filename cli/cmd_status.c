/* racklm status, racklm workers: what the coordinator knows, as a table or JSON. */
#include "cli/cli.h"
#include "cli/control.h"
#include "cli/nodes.h"
#include "proto/device.h"

#include <stdio.h>
#include <string.h>

static void deployment_json(struct buf *b, const struct msg_deployment_info *d, uint32_t i)
{
    buf_puts(b, i ? ",{\"names\":[" : "{\"names\":[");
    for (const char *p = d->names; *p; p += strcspn(p, ","), p += *p == ',') {
        buf_puts(b, p == d->names ? "" : ",");
        buf_json_str(b, p, strcspn(p, ","));
    }
    buf_puts(b, "],");
    cli_json_str(b, "path", d->path);
    cli_json_str(b, "state", d->state);
    cli_json_str(b, "message", d->text);
    buf_printf(b, ",\"tp\":%u,\"pp\":%u,\"replicas\":%u,\"ctx\":%u,\"workers\":%u,\"workers_ready\":%u}", d->tp, d->pp, d->replicas, d->ctx, d->workers,
               d->workers_ready);
}

static void status_json(struct buf *b, const struct msg_admin_reply *r)
{
    buf_putc(b, '{');
    cli_json_str(b, "version", r->version);
    cli_json_str(b, "model", r->model);
    cli_json_str(b, "url", r->http_url);
    cli_json_str(b, "message", r->text);
    buf_printf(b, ",\"uptime_ms\":%llu,\"tp\":%u,\"pp\":%u,\"ctx\":%u,\"models\":[", (unsigned long long)r->uptime_ms, r->tp, r->pp, r->ctx);
    for (uint32_t i = 0; i < r->n_deployments; i++)
        deployment_json(b, &r->deployments[i], i);
    buf_puts(b, "],\"replicas\":[");
    for (uint32_t i = 0; i < r->n_replicas; i++) {
        const struct msg_replica_info *p = &r->replicas[i];
        buf_puts(b, i ? ",{" : "{");
        cli_json_str(b, "model", p->deployment);
        buf_printf(b, ",\"replica\":%u,", p->replica);
        cli_json_str(b, "state", p->state);
        buf_printf(b, ",\"epoch\":%llu,\"running\":%u,\"waiting\":%u,\"kv_blocks\":%u,\"kv_blocks_used\":%u,\"load_percent\":%u}",
                   (unsigned long long)p->epoch, p->running, p->waiting, p->kv_blocks, p->kv_blocks_used, p->load_percent);
    }
    buf_puts(b, "],\"nodes\":");
    nodes_json(b, r);
    buf_putc(b, '}');
}

static void print_deployments(const struct msg_admin_reply *r)
{
    static const char *const heads[] = {"MODEL", "STATE", "TP", "PP", "REPLICAS", "CONTEXT", "WORKERS", "FILE"};
    struct cli_table *t = cli_table_create(8, heads, "llrrrrrl");
    for (uint32_t i = 0; i < r->n_deployments; i++) {
        const struct msg_deployment_info *d = &r->deployments[i];
        char c[5][24];
        snprintf(c[0], 24, "%u", d->tp);
        snprintf(c[1], 24, "%u", d->pp);
        snprintf(c[2], 24, "%u", d->replicas);
        snprintf(c[3], 24, "%u", d->ctx);
        snprintf(c[4], 24, "%u/%u", d->workers_ready, d->workers);
        cli_table_row(t, d->names, d->state, c[0], c[1], c[2], c[3], c[4], d->path);
    }
    cli_table_print(&t);
    putchar('\n');
}

static void status_text(const struct msg_admin_reply *r)
{
    printf("racklm %s  %s  up %llu s\n", r->version, r->http_url, (unsigned long long)(r->uptime_ms / 1000));
    if (r->text && r->text[0])
        printf("%s\n", r->text);
    print_deployments(r);
    static const char *const heads[] = {"MODEL", "REPLICA", "STATE", "EPOCH", "RUNNING", "WAITING", "KV BLOCKS", "USED"};
    struct cli_table *t = cli_table_create(8, heads, "lrlrrrrr");
    for (uint32_t i = 0; i < r->n_replicas; i++) {
        const struct msg_replica_info *p = &r->replicas[i];
        char c[6][24];
        snprintf(c[0], 24, "%u", p->replica);
        snprintf(c[1], 24, "%llu", (unsigned long long)p->epoch);
        snprintf(c[2], 24, "%u", p->running);
        snprintf(c[3], 24, "%u", p->waiting);
        snprintf(c[4], 24, "%u", p->kv_blocks);
        snprintf(c[5], 24, "%u", p->kv_blocks_used);
        cli_table_row(t, p->deployment, c[0], p->state, c[1], c[2], c[3], c[4], c[5]);
    }
    cli_table_print(&t);
}

int cmd_status(struct options *o, int argc, char **argv)
{
    return control_show("status", ADMIN_STATUS, status_json, status_text, o, argc, argv);
}

static void workers_json(struct buf *b, const struct msg_admin_reply *r)
{
    buf_putc(b, '[');
    for (uint32_t i = 0; i < r->n_workers; i++) {
        const struct msg_worker_info *w = &r->workers[i];
        buf_printf(b, "%s{\"worker_id\":%llu,", i ? "," : "", (unsigned long long)w->worker_id);
        cli_json_str(b, "model", w->deployment);
        cli_json_str(b, "host", w->host);
        cli_json_str(b, "device", w->device);
        cli_json_str(b, "state", w->state);
        cli_json_str(b, "backend", w->backend);
        buf_printf(b,
                   ",\"pid\":%u,\"replica\":%u,\"stage\":%u,\"tp_rank\":%u,\"layers\":[%u,%u],\"weights_bytes\":%llu,\"weights_bytes_planned\":%llu,"
                   "\"kv_bytes\":%llu,\"kv_blocks\":%u,\"load_ms\":%u,\"restarts\":%u,\"steps\":%llu,\"heartbeat_age_ms\":%u,",
                   w->pid, w->replica, w->stage, w->tp_rank, w->layer_first, w->layer_end, (unsigned long long)w->weights_bytes,
                   (unsigned long long)w->weights_bytes_planned, (unsigned long long)w->kv_bytes, w->kv_blocks, w->load_ms, w->restarts,
                   (unsigned long long)w->steps, w->heartbeat_age_ms);
        cli_json_str(b, "device_kind", w->device_kind);
        cli_json_str(b, "device_model", w->device_model);
        cli_json_str(b, "device_uuid", w->device_uuid);
        buf_printf(b, ",\"device_lost\":%s,\"device_memory_bytes\":%llu", w->device_lost ? "true" : "false", (unsigned long long)w->device_memory_bytes);
        nodes_json_state(b, w->memory_free_bytes, w->temperature_c, w->power_mw, w->utilization_percent, w->throttle);
        buf_putc(b, '}');
    }
    buf_putc(b, ']');
}

/* What a GPU adds stands in columns of its own, where there are GPUs. */
static void workers_text(const struct msg_admin_reply *r)
{
    enum { COLS = 14, GPU_COLS = 5 };
    static const char *const heads[] = {"MODEL", "REPLICA", "STAGE", "RANK", "HOST", "DEVICE", "PID", "STATE", "BACKEND", "LAYERS", "WEIGHTS", "KV", "LOAD", "RESTARTS", "GPU", "UUID",
                                        "BUDGET", "TEMP", "THROTTLE"};
    bool gpus = false;
    for (uint32_t i = 0; i < r->n_workers; i++)
        gpus |= device_is_gpu(r->workers[i].device_kind);
    struct cli_table *t = cli_table_create(gpus ? COLS + GPU_COLS : COLS, heads, gpus ? "lrrrllrlllrrrrllrrl" : "lrrrllrlllrrrr");
    for (uint32_t i = 0; i < r->n_workers; i++) {
        const struct msg_worker_info *w = &r->workers[i];
        bool gpu = device_is_gpu(w->device_kind);
        char c[7][24], weights[16], kv[16], device[80], uuid[24], budget[16] = "", temperature[24] = "", throttle[160] = "";
        snprintf(c[0], 24, "%u", w->replica);
        snprintf(c[1], 24, "%u", w->stage);
        snprintf(c[2], 24, "%u", w->tp_rank);
        snprintf(c[3], 24, "%u", w->pid);
        snprintf(c[4], 24, "%u-%u", w->layer_first, w->layer_end ? w->layer_end - 1 : 0);
        snprintf(c[5], 24, "%u ms", w->load_ms);
        snprintf(c[6], 24, "%u", w->restarts);
        if (gpu) {
            cli_bytes(w->device_memory_bytes, budget);
            nodes_temperature(w->temperature_c, temperature);
            device_throttle_text(w->throttle, throttle, sizeof(throttle));
        }
        const char *cells[] = {w->deployment, c[0], c[1], c[2], w->host, nodes_device(w->device, w->device_kind, device), c[3], w->state, w->backend, c[4],
                               cli_bytes(w->weights_bytes, weights), cli_bytes(w->kv_bytes, kv), c[5], c[6], gpu ? w->device_model : "", gpu ? nodes_uuid(w->device_uuid, uuid) : "", budget,
                               temperature, w->device_lost ? "lost" : gpu && !throttle[0] ? "-" : throttle};
        cli_table_cells(t, cells);
    }
    cli_table_print(&t);
}

int cmd_workers(struct options *o, int argc, char **argv)
{
    return control_show("workers", ADMIN_WORKERS, workers_json, workers_text, o, argc, argv);
}
