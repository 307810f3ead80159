#include "worker/inventory.h"

#include "base/buf.h"
#include "base/check.h"

#include <ctype.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FILE_MAX = 8 << 20 };

/* ---- reading small files below a root ---- */

static bool read_text(const char *root, const char *path, struct buf *out)
{
    char full[1024];
    buf_clear(out);
    if (snprintf(full, sizeof(full), "%s%s", root, path) >= (int)sizeof(full))
        return false;
    if (buf_read_file(out, full, FILE_MAX) != ERR_OK)
        return false;
    buf_putc(out, 0); /* some of the files are empty */
    return !out->failed;
}

static bool read_u64(const char *root, const char *path, uint64_t *out)
{
    struct buf b;
    buf_init(&b);
    bool ok = read_text(root, path, &b) && isdigit((unsigned char)b.data[0]);
    if (ok)
        *out = strtoull(b.data, NULL, 10);
    buf_deinit(&b);
    return ok;
}

/* The number behind `key` at the start of a line ("MemAvailable:   123 kB", "inactive_file 77"). */
static bool field_u64(const char *text, const char *key, uint64_t *out)
{
    size_t len = strlen(key);
    for (const char *p = text; p; p = strchr(p, '\n')) {
        p += *p == '\n';
        if (strncmp(p, key, len) == 0 && (p[len] == ':' || p[len] == ' ')) {
            *out = strtoull(p + len + 1, NULL, 10);
            return true;
        }
    }
    return false;
}

int inventory_parse_list(const char *s, int *out, uint32_t cap)
{
    uint32_t n = 0;
    while (isspace((unsigned char)*s))
        s++;
    while (*s) {
        char *end;
        if (!isdigit((unsigned char)*s))
            return -1;
        unsigned long a = strtoul(s, &end, 10), b = a;
        if (*end == '-') {
            if (!isdigit((unsigned char)end[1]))
                return -1;
            b = strtoul(end + 1, &end, 10);
        }
        if (b < a || b > 1u << 20)
            return -1;
        for (unsigned long v = a; v <= b && n < cap; v++)
            out[n++] = (int)v;
        while (isspace((unsigned char)*end))
            end++;
        if (*end == ',')
            end++;
        else if (*end)
            return -1;
        s = end;
    }
    return (int)n;
}

uint32_t inventory_allowed(int *cpus, uint32_t cap)
{
    cpu_set_t set;
    uint32_t n = 0;
    if (sched_getaffinity(0, sizeof(set), &set) == 0)
        for (int i = 0; i < CPU_SETSIZE && n < cap; i++)
            if (CPU_ISSET(i, &set))
                cpus[n++] = i;
    if (n == 0) { /* more CPUs than a cpu_set_t has; the first ones will do */
        long online = sysconf(_SC_NPROCESSORS_ONLN);
        for (int i = 0; i < MAX(online, 1) && n < cap; i++)
            cpus[n++] = i;
    }
    return n;
}

/* ---- cgroups ---- */

/* Calls fn for the directory of this process's cgroup and each one above it. v1 mounts a controller in a folder of its own; inside a
 * container the path may not exist below the mount, whose root is then our own group. */
typedef void cgroup_fn(void *arg, const char *root, const char *dir);

static void walk_up(const char *root, const char *mount, const char *path, cgroup_fn *fn, void *arg)
{
    char dir[900];
    if (snprintf(dir, sizeof(dir), "%s%s", mount, strcmp(path, "/") == 0 ? "" : path) >= (int)sizeof(dir))
        return;
    size_t base = strlen(mount);
    for (;;) {
        fn(arg, root, dir);
        char *slash = strrchr(dir, '/');
        if (strlen(dir) <= base || !slash || (size_t)(slash - dir) < base)
            return;
        *slash = 0;
    }
}

static void each_cgroup(const char *root, const char *controller, cgroup_fn *fn, void *arg)
{
    struct buf b;
    buf_init(&b);
    char *save = NULL;
    bool any = read_text(root, "/proc/self/cgroup", &b);
    for (char *line = any ? strtok_r(b.data, "\n", &save) : NULL; line; line = strtok_r(NULL, "\n", &save)) {
        char *names = strchr(line, ':'), *path = names ? strchr(names + 1, ':') : NULL, *word_save = NULL;
        if (!path)
            continue;
        *path++ = 0;
        names++;
        if (!*names) {
            walk_up(root, "/sys/fs/cgroup", path, fn, arg);
            walk_up(root, "/sys/fs/cgroup/unified", path, fn, arg);
        }
        char mount[300];
        snprintf(mount, sizeof(mount), "/sys/fs/cgroup/%.200s", names);
        for (char *word = strtok_r(names, ",", &word_save); word; word = strtok_r(NULL, ",", &word_save))
            if (strcmp(word, controller) == 0) {
                walk_up(root, mount, path, fn, arg);
                snprintf(mount, sizeof(mount), "/sys/fs/cgroup/%s", controller);
                walk_up(root, mount, path, fn, arg);
            }
    }
    buf_deinit(&b);
}

static void quota_of(void *arg, const char *root, const char *dir)
{
    double *cpus = arg;
    char path[1024];
    struct buf b;
    buf_init(&b);
    unsigned long long quota, period;
    snprintf(path, sizeof(path), "%s/cpu.max", dir);
    if (read_text(root, path, &b) && sscanf(b.data, "%llu %llu", &quota, &period) == 2 && period > 0)
        *cpus = MIN(*cpus, (double)quota / (double)period);
    uint64_t q, p;
    snprintf(path, sizeof(path), "%s/cpu.cfs_quota_us", dir); /* v1; -1: none, which is no digit */
    if (read_u64(root, path, &q)) {
        snprintf(path, sizeof(path), "%s/cpu.cfs_period_us", dir);
        if (read_u64(root, path, &p) && p > 0)
            *cpus = MIN(*cpus, (double)q / (double)p);
    }
    buf_deinit(&b);
}

/* What the group may still take: its limit less what it holds and cannot drop. */
static void memory_of(void *arg, const char *root, const char *dir)
{
    static const char *const names[2][3] = {{"memory.max", "memory.current", "inactive_file"},
                                            {"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"}};
    uint64_t *left = arg;
    char path[1024];
    for (unsigned v = 0; v < 2; v++) {
        uint64_t limit, used = 0, cache = 0;
        snprintf(path, sizeof(path), "%s/%s", dir, names[v][0]);
        if (!read_u64(root, path, &limit)) /* "max" is no digit */
            continue;
        snprintf(path, sizeof(path), "%s/%s", dir, names[v][1]);
        read_u64(root, path, &used);
        struct buf b;
        buf_init(&b);
        snprintf(path, sizeof(path), "%s/memory.stat", dir);
        if (read_text(root, path, &b))
            field_u64(b.data, names[v][2], &cache);
        buf_deinit(&b);
        used -= MIN(used, cache);
        *left = MIN(*left, limit - MIN(limit, used));
    }
}

/* A tenth is left to the rest of the host. */
static uint64_t read_memory(const char *root)
{
    uint64_t kb = 0, left = UINT64_MAX;
    struct buf b;
    buf_init(&b);
    if (read_text(root, "/proc/meminfo", &b) && (field_u64(b.data, "MemAvailable", &kb) || field_u64(b.data, "MemFree", &kb)))
        left = kb * 1024;
    buf_deinit(&b);
    each_cgroup(root, "memory", memory_of, &left);
    return left == UINT64_MAX ? 0 : left / 10 * 9;
}

/* ---- CPUs ---- */

struct cpu {
    int id, node, core; /* core: its lowest-numbered thread */
};

static int by_place(const void *a, const void *b)
{
    const struct cpu *x = a, *y = b;
    if (x->node != y->node)
        return x->node < y->node ? -1 : 1;
    if (x->core != y->core)
        return x->core < y->core ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static void read_nodes(const char *root, struct cpu *cpus, uint32_t n)
{
    struct buf b;
    int nodes[256], in[INVENTORY_CPUS_MAX];
    buf_init(&b);
    int n_nodes = read_text(root, "/sys/devices/system/node/online", &b) ? inventory_parse_list(b.data, nodes, 256) : 0;
    for (int k = 0; k < n_nodes; k++) {
        char path[128];
        snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/cpulist", nodes[k]);
        int m = read_text(root, path, &b) ? inventory_parse_list(b.data, in, INVENTORY_CPUS_MAX) : 0;
        for (int i = 0; i < m; i++)
            for (uint32_t c = 0; c < n; c++)
                if (cpus[c].id == in[i])
                    cpus[c].node = nodes[k];
    }
    for (uint32_t c = 0; c < n; c++) {
        char path[128];
        snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", cpus[c].id);
        if (read_text(root, path, &b) && inventory_parse_list(b.data, in, 1) == 1)
            cpus[c].core = in[0];
    }
    buf_deinit(&b);
}

static void read_model(const char *root, char *out, size_t cap)
{
    struct buf b;
    buf_init(&b);
    snprintf(out, cap, "CPU");
    char *p = read_text(root, "/proc/cpuinfo", &b) ? strstr(b.data, "model name") : NULL;
    p = p ? strchr(p, ':') : NULL;
    if (p) {
        p += 1 + strspn(p + 1, " \t");
        snprintf(out, cap, "%.*s", (int)MIN(strcspn(p, "\n"), cap - 1), p);
    }
    buf_deinit(&b);
}

/* ---- which devices ---- */

static bool gpus_usable(const struct inventory_config *c)
{
    return c->want != INVENTORY_WANT_CPU && c->support != GPU_SUPPORT_NONE && c->gpus && c->gpus->state == GPU_INFO_OK;
}

bool inventory_needs_gpus(const char *devices, enum inventory_want want)
{
    return want != INVENTORY_WANT_CPU && (!devices || !*devices || strstr(devices, "any:") || strstr(devices, "cuda:"));
}

void inventory_why_no_gpu(const struct inventory_config *c, char *out, size_t cap)
{
    out[0] = '\0';
    if (gpus_usable(c))
        return;
    if (c->want == INVENTORY_WANT_CPU)
        snprintf(out, cap, "--backend chooses CPUs");
    else if (c->support == GPU_SUPPORT_NONE)
        snprintf(out, cap, "this racklm was built without CUDA: configure it with -DRACKLM_CUDA=ON");
    else
        snprintf(out, cap, "%s", c->gpus ? c->gpus->why : "nobody looked for one");
}

uint64_t inventory_gpu_reserve(uint64_t memory_bytes)
{
    return (1ull << 30) + memory_bytes / 64;
}

/* One more device, or NULL after an error. */
static struct inventory_device *add(struct inventory *v, const char *kind, uint32_t n)
{
    char name[32];
    snprintf(name, sizeof(name), "%s:%u", kind, n);
    if (inventory_find(v, name)) {
        err_set(ERR_CONFIG, "--devices: %s stands there twice", name);
        return NULL;
    }
    if (v->n_devices == INVENTORY_DEVICES_MAX) {
        err_set(ERR_CONFIG, "--devices: more than %d devices", (int)INVENTORY_DEVICES_MAX);
        return NULL;
    }
    struct inventory_device *d = &v->devices[v->n_devices++];
    memcpy(d->name, name, sizeof(name));
    d->model = v->cpu_model;
    return d;
}

static enum err add_cpu(struct inventory *v, uint32_t n)
{
    return add(v, "cpu", n) ? ERR_OK : ERR_CONFIG;
}

static enum err add_gpu(const struct inventory_config *c, struct inventory *v, uint32_t n)
{
    char why[500];
    inventory_why_no_gpu(c, why, sizeof(why));
    if (why[0])
        return err_set(ERR_CONFIG, "no GPU can be used as cuda:%u: %s", n, why);
    if (n >= c->gpus->n && c->gpus->n == 1)
        return err_set(ERR_CONFIG, "--devices: cuda:%u is no device of this host, its one GPU is cuda:0", n);
    if (n >= c->gpus->n)
        return err_set(ERR_CONFIG, "--devices: cuda:%u is no device of this host, its GPUs are cuda:0 to cuda:%u", n, c->gpus->n - 1);
    const struct gpu *g = &c->gpus->gpus[n];
    if (g->lost)
        return err_set(ERR_CONFIG, "--devices: cuda:%u (%s, %s) %s", n, g->name, g->uuid, g->why);
    struct inventory_device *d = add(v, "cuda", n);
    if (!d)
        return ERR_CONFIG;
    uint64_t reserve = inventory_gpu_reserve(g->memory_bytes);
    d->kind = c->support == GPU_SUPPORT_EMULATED ? DEVICE_EMULATED : DEVICE_CUDA;
    d->gpu = n;
    d->model = g->name;
    d->memory_bytes = g->free_bytes > reserve ? g->free_bytes - reserve : 1; /* 0 would say: not known */
    return ERR_OK;
}

static bool has_gpu(const struct inventory *v, uint32_t gpu)
{
    for (uint32_t k = 0; k < v->n_devices; k++)
        if (v->devices[k].kind != DEVICE_CPU && v->devices[k].gpu == gpu)
            return true;
    return false;
}

/* GPUs named `name` that are neither lost nor in the list; NULL: of any name. */
static uint32_t count_gpus(const struct inventory_config *c, const struct inventory *v, const char *name)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->gpus->n; i++)
        n += !c->gpus->gpus[i].lost && !has_gpu(v, i) && (!name || strcmp(c->gpus->gpus[i].name, name) == 0);
    return n;
}

/* "2 NVIDIA H200, 1 NVIDIA H100" */
static void list_types(const struct inventory_config *c, const struct inventory *v, char *out, size_t cap)
{
    size_t len = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < c->gpus->n && len < cap; i++) {
        const char *name = c->gpus->gpus[i].name;
        bool seen = false;
        for (uint32_t k = 0; k < i; k++)
            seen |= strcmp(c->gpus->gpus[k].name, name) == 0;
        uint32_t n = count_gpus(c, v, name);
        if (!seen && n)
            len += (size_t)snprintf(out + len, cap - len, "%s%u %s", len ? ", " : "", n, name);
    }
}

/* n GPUs of one type: the type with the most memory that has enough. All of them are offered, so that workers go where most memory is free, and a lost GPU can be replaced; a GPU
 * that no worker runs on costs nothing. */
static enum err add_gpus(const struct inventory_config *c, struct inventory *v, uint32_t n)
{
    char types[300];
    const struct gpu *best = NULL;
    for (uint32_t i = 0; i < c->gpus->n; i++) {
        const struct gpu *g = &c->gpus->gpus[i];
        if (count_gpus(c, v, g->name) >= n && (!best || g->memory_bytes > best->memory_bytes))
            best = g;
    }
    list_types(c, v, types, sizeof(types));
    if (!best)
        return err_set(ERR_CONFIG, "%u GPU%s of one type %s needed, this host has %s: lower --tp, --pp or --replicas, or choose --backend cpu", n, n == 1 ? "" : "s", n == 1 ? "is" : "are",
                       types[0] ? types : "none left");
    v->n_spare += count_gpus(c, v, best->name) - n;
    for (uint32_t i = 0; i < c->gpus->n; i++)
        if (!c->gpus->gpus[i].lost && !has_gpu(v, i) && strcmp(c->gpus->gpus[i].name, best->name) == 0)
            TRY(add_gpu(c, v, i));
    return ERR_OK;
}

static enum err no_gpu(const struct inventory_config *c)
{
    char why[500];
    inventory_why_no_gpu(c, why, sizeof(why));
    return err_set(ERR_CONFIG, "--backend cuda: %s", why[0] ? why : "every GPU of this host is lost");
}

static enum err add_any(const struct inventory_config *c, struct inventory *v, uint32_t n)
{
    char name[32];
    if (gpus_usable(c))
        return add_gpus(c, v, n);
    if (c->want == INVENTORY_WANT_GPU)
        return no_gpu(c);
    for (uint32_t i = 0; n; i++) {
        snprintf(name, sizeof(name), "cpu:%u", i);
        if (inventory_find(v, name))
            continue;
        TRY(add_cpu(v, i));
        n--;
    }
    return ERR_OK;
}

/* All that there are. */
static enum err add_all(const struct inventory_config *c, struct inventory *v, uint32_t n_nodes)
{
    if (gpus_usable(c) && count_gpus(c, v, NULL) > 0) {
        for (uint32_t i = 0; i < c->gpus->n; i++)
            if (!c->gpus->gpus[i].lost)
                TRY(add_gpu(c, v, i));
        return ERR_OK;
    }
    if (c->want == INVENTORY_WANT_GPU)
        return no_gpu(c);
    for (uint32_t i = 0; i < MIN(n_nodes, INVENTORY_DEVICES_MAX); i++)
        TRY(add_cpu(v, i));
    return ERR_OK;
}

/* The number behind "cpu:" and the like; false: there is none. */
static bool number_behind(const char *prefix, const char *p, size_t len, uint32_t *n)
{
    size_t skip = strlen(prefix);
    if (len <= skip || len > skip + 9 || strncmp(p, prefix, skip) != 0 || strspn(p + skip, "0123456789") < len - skip)
        return false;
    *n = (uint32_t)strtoul(p + skip, NULL, 10);
    return true;
}

static enum err name_devices(const struct inventory_config *c, struct inventory *v, uint32_t n_nodes)
{
    v->devices = calloc(INVENTORY_DEVICES_MAX, sizeof(*v->devices));
    if (!v->devices)
        return err_set(ERR_NOMEM, "the list of devices");
    if (!c->devices || !*c->devices)
        return add_all(c, v, n_nodes);
    for (const char *p = c->devices; *p;) {
        size_t len = strcspn(p, ",");
        uint32_t n;
        if (number_behind("cpu:", p, len, &n) && c->want == INVENTORY_WANT_GPU)
            return err_set(ERR_CONFIG, "--devices names cpu:%u, --backend cuda runs on GPUs only", n);
        else if (number_behind("cpu:", p, len, &n))
            TRY(add_cpu(v, n));
        else if (number_behind("cuda:", p, len, &n))
            TRY(add_gpu(c, v, n));
        else if (number_behind("any:", p, len, &n))
            TRY(add_any(c, v, n));
        else
            return err_set(ERR_CONFIG, "--devices: '%.*s' is no device of this host; CPU devices are cpu:0, cpu:1, ..., GPUs cuda:0, cuda:1, ...", (int)MIN(len, 40), p);
        p += len + (p[len] == ',');
    }
    return ERR_OK;
}

/* ---- CPUs and memory for each ---- */

/* Physical cores of cpus[first, first + n). */
static uint32_t count_cores(const struct cpu *cpus, uint32_t first, uint32_t n)
{
    uint32_t cores = 0;
    for (uint32_t i = first; i < first + n; i++)
        cores += i == first || cpus[i].core != cpus[i - 1].core || cpus[i].node != cpus[i - 1].node;
    return cores;
}

/* The k'th CPU device's part of the CPUs: a NUMA node each where the counts are equal, else an even cut. */
static void cut_cpus(const struct cpu *cpus, uint32_t n, uint32_t n_nodes, struct inventory_device *d, uint32_t k, uint32_t n_cut)
{
    uint32_t first = (uint32_t)((uint64_t)n * k / n_cut), end = (uint32_t)((uint64_t)n * (k + 1) / n_cut);
    if (n_cut == n_nodes && n_nodes > 1) {
        first = 0;
        for (uint32_t node = 0; node < k; node++)
            for (int at = cpus[first].node; cpus[first].node == at;)
                first++;
        for (end = first; end < n && cpus[end].node == cpus[first].node;)
            end++;
    }
    if (n_cut > n) {
        first = 0;
        end = n;
    }
    d->first_cpu = first;
    d->n_cpus = end - first;
    d->numa = (uint32_t)cpus[first].node;
}

/* The CPUs of a GPU's node; all of them where its node is not known or none of them is ours. */
static void near_cpus(const struct cpu *cpus, uint32_t n, int node, struct inventory_device *d)
{
    uint32_t first = 0, end;
    while (first < n && cpus[first].node != node)
        first++;
    for (end = first; end < n && cpus[end].node == node;)
        end++;
    d->first_cpu = end > first ? first : 0;
    d->n_cpus = end > first ? end - first : n;
    d->numa = (uint32_t)cpus[d->first_cpu].node;
}

/* Threads of each, and whether they have their cores for themselves. A worker on a GPU needs one thread that launches and one that reads files. */
static void share_out(const struct inventory_config *c, const struct cpu *cpus, uint32_t n, uint32_t n_nodes, struct inventory *v)
{
    enum { GPU_THREADS = 2 };
    uint32_t n_cut = 0, k_cut = 0, total = 0, spare = v->n_spare;
    for (uint32_t k = 0; k < v->n_devices; k++)
        n_cut += v->devices[k].kind == DEVICE_CPU;
    bool room = n_cut <= n;
    for (uint32_t k = 0; k < v->n_devices; k++) {
        struct inventory_device *d = &v->devices[k];
        uint32_t even = MAX(v->n_usable / MAX(v->n_devices - v->n_spare, 1), 1);
        if (d->kind == DEVICE_CPU) {
            cut_cpus(cpus, n, n_nodes, d, k_cut++, n_cut);
            d->memory_bytes = v->memory_bytes / n_cut;
        } else {
            near_cpus(cpus, n, c->gpus->gpus[d->gpu].numa, d);
        }
        uint32_t want = d->kind == DEVICE_CPU ? count_cores(cpus, d->first_cpu, d->n_cpus) : GPU_THREADS;
        d->n_threads = c->threads ? c->threads : MAX(MIN(want, even), 1);
        if (c->device_memory && d->memory_bytes)
            d->memory_bytes = MIN(d->memory_bytes, c->device_memory);
        room = room && d->n_threads <= d->n_cpus;
        total += d->n_threads;
        if (d->kind != DEVICE_CPU && spare) { /* of what is spare no thread runs */
            total -= d->n_threads;
            spare--;
        }
    }
    for (uint32_t k = 0; k < v->n_devices; k++) {
        struct inventory_device *d = &v->devices[k];
        d->own_core = room && total <= v->n_usable;
        if (!room && d->kind == DEVICE_CPU) { /* let the kernel place them */
            d->first_cpu = 0;
            d->n_cpus = n;
        }
    }
}

enum err inventory_read(const struct inventory_config *cfg, struct inventory *out)
{
    enum err e = ERR_OK;
    const char *root = cfg->root;
    ASSERT(cfg->n_allowed > 0);
    *out = (struct inventory){0};
    uint32_t n = MIN(cfg->n_allowed, INVENTORY_CPUS_MAX), n_nodes = 1;
    struct cpu *cpus = calloc(n, sizeof(*cpus));
    out->cpus = calloc(n, sizeof(*out->cpus));
    if (!cpus || !out->cpus) {
        e = err_set(ERR_NOMEM, "the list of %u CPUs", n);
        goto fail;
    }
    for (uint32_t i = 0; i < n; i++)
        cpus[i] = (struct cpu){cfg->allowed[i], 0, cfg->allowed[i]};
    read_nodes(root, cpus, n);
    qsort(cpus, n, sizeof(*cpus), by_place);
    for (uint32_t i = 0; i < n; i++) {
        out->cpus[i] = cpus[i].id;
        n_nodes += i > 0 && cpus[i].node != cpus[i - 1].node;
    }
    out->n_cpus = n;

    double quota = n;
    each_cgroup(root, "cpu", quota_of, &quota);
    out->n_usable = quota < 1 ? 1 : (uint32_t)quota;
    out->memory_bytes = read_memory(root);
    read_model(root, out->cpu_model, sizeof(out->cpu_model));
    if (gethostname(out->host, sizeof(out->host) - 1) != 0)
        snprintf(out->host, sizeof(out->host), "localhost");

    TRY_GOTO(name_devices(cfg, out, n_nodes), fail);
    share_out(cfg, cpus, n, n_nodes, out);
    free(cpus);
    return ERR_OK;
fail:
    free(cpus);
    inventory_deinit(out);
    return e;
}

void inventory_deinit(struct inventory *v)
{
    free(v->cpus);
    free(v->devices);
    *v = (struct inventory){0};
}

const struct inventory_device *inventory_find(const struct inventory *v, const char *name)
{
    for (uint32_t k = 0; k < v->n_devices; k++)
        if (strcmp(v->devices[k].name, name) == 0)
            return &v->devices[k];
    return NULL;
}
