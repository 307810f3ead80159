/* Inventory of made-up hosts: a tree of the /proc and /sys files that matter, written by the test as Linux documents them
 * (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, ABI/stable/sysfs-devices-node). */
#include "base/check.h"
#include "tests/tools/host_files.h"
#include "worker/inventory.h"

#include <unistd.h>

static void put(const char *path, const char *text)
{
    put_file(path, text, "w");
}

static int first(void **state)
{
    (void)state;
    make_root();
    put("/proc/meminfo", "MemTotal:       33554432 kB\nMemFree:         1000000 kB\nMemAvailable:   20971520 kB\n");
    put("/proc/cpuinfo", "processor\t: 0\nmodel name\t: Made-up CPU 9000\ncache size\t: 1 KB\n");
    return 0;
}

/* Two nodes of four cores with two threads each; the threads of a core are n and n + 8, as on Intel machines. */
static void two_sockets(void)
{
    put("/sys/devices/system/node/online", "0-1\n");
    put("/sys/devices/system/node/node0/cpulist", "0-3,8-11\n");
    put("/sys/devices/system/node/node1/cpulist", "4-7,12-15\n");
    for (int i = 0; i < 16; i++) {
        char path[128], text[32];
        snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", i);
        snprintf(text, sizeof(text), "%d,%d\n", i % 8, i % 8 + 8);
        put(path, text);
    }
}

static struct inventory v;
static struct gpu_info gpus; /* what gpu_info.h would say; n = 0: there are none */
static enum gpu_support support = GPU_SUPPORT_CUDA;
static enum inventory_want want;
static uint64_t device_memory;

static enum err try_look(const char *allowed, const char *devices, uint32_t threads)
{
    int cpus[64];
    int n = inventory_parse_list(allowed, cpus, 64);
    assert_true(n > 0);
    inventory_deinit(&v);
    return inventory_read(&(struct inventory_config){.root = root, .allowed = cpus, .n_allowed = (uint32_t)n, .devices = devices, .threads = threads, .device_memory = device_memory,
                                                     .want = want, .gpus = &gpus, .support = support},
                          &v);
}

static void look(const char *allowed, const char *devices, uint32_t threads)
{
    assert_int_equal(try_look(allowed, devices, threads), ERR_OK);
}

static void refuses(const char *devices, const char *why)
{
    assert_int_equal(try_look("0-3", devices, 0), ERR_CONFIG);
    if (!strstr(err_detail(), why))
        fail_msg("'%s' does not say '%s'", err_detail(), why);
}

/* Names separated by '|'; 80 GiB each, 60 of them free, on NUMA nodes 0 1 0 1 ... */
static void put_gpus(const char *names)
{
    gpus.state = GPU_INFO_OK;
    for (const char *p = names; *p; p += strcspn(p, "|"), p += *p == '|') {
        struct gpu *g = &gpus.gpus[gpus.n];
        *g = (struct gpu){.memory_bytes = 80ull << 30, .free_bytes = 60ull << 30, .sm = 90, .numa = (int)(gpus.n++ % 2)};
        snprintf(g->name, sizeof(g->name), "%.*s", (int)strcspn(p, "|"), p);
    }
}

static bool has(const struct inventory_device *d, int cpu)
{
    for (uint32_t i = 0; i < d->n_cpus; i++)
        if (v.cpus[d->first_cpu + i] == cpu)
            return true;
    return false;
}

static void assert_disjoint(void)
{
    for (uint32_t a = 0; a < v.n_devices; a++)
        for (uint32_t b = 0; b < a; b++)
            for (uint32_t i = 0; i < v.devices[a].n_cpus; i++)
                assert_false(has(&v.devices[b], v.cpus[v.devices[a].first_cpu + i]));
}

static void cpu_lists_are_parsed_or_refused(void **state)
{
    (void)state;
    int out[16];
    assert_int_equal(inventory_parse_list("0-3,8\n", out, 16), 5);
    assert_int_equal(out[3], 3);
    assert_int_equal(out[4], 8);
    assert_int_equal(inventory_parse_list("\n", out, 16), 0);
    assert_int_equal(inventory_parse_list("0-99", out, 16), 16);
    static const char *const bad[] = {"a", "1-", "3-1", "1,,2", "-1", "1;2", "0-99999999999"};
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++)
        assert_int_equal(inventory_parse_list(bad[i], out, 16), -1);
}

static void a_numa_node_is_a_device(void **state)
{
    (void)state;
    two_sockets();
    look("0-15", NULL, 0);
    assert_int_equal(v.n_devices, 2);
    assert_string_equal(v.devices[0].name, "cpu:0");
    assert_string_equal(v.devices[1].name, "cpu:1");
    assert_string_equal(v.cpu_model, "Made-up CPU 9000");
    for (uint32_t k = 0; k < 2; k++) {
        assert_int_equal(v.devices[k].numa, k);
        assert_int_equal(v.devices[k].n_cpus, 8);
        assert_int_equal(v.devices[k].n_threads, 4); /* one a core */
        assert_true(v.devices[k].own_core);
        assert_true(has(&v.devices[k], (int)(k * 4)) && has(&v.devices[k], (int)(k * 4 + 8)));
    }
    assert_disjoint();
    /* 20 GiB are free, a tenth stays, the rest is shared by two. */
    assert_int_equal(v.memory_bytes, (20ull << 30) / 10 * 9);
    assert_int_equal(v.devices[0].memory_bytes, v.memory_bytes / 2);
}

static void affinity_with_uneven_nodes_keeps_devices_on_their_nodes(void **state)
{
    (void)state;
    two_sockets();
    look("0-3,4,12", NULL, 0);
    assert_int_equal(v.n_devices, 2);
    assert_int_equal(v.devices[0].n_cpus, 4);
    assert_int_equal(v.devices[1].n_cpus, 2);
    assert_int_equal(v.devices[1].numa, 1);
    assert_int_equal(v.devices[1].n_threads, 1); /* 4 and 12 are one core */
    assert_disjoint();
}

static void named_devices_cut_the_cpus_into_disjoint_sets(void **state)
{
    (void)state;
    two_sockets();
    look("0-15", "cpu:0,cpu:1,cpu:2", 0);
    assert_int_equal(v.n_devices, 3);
    uint32_t sum = 0;
    for (uint32_t k = 0; k < 3; k++) {
        sum += v.devices[k].n_cpus;
        assert_true(v.devices[k].own_core);
        assert_true(v.devices[k].n_threads >= 2);
    }
    assert_int_equal(sum, 16);
    assert_disjoint();
    assert_non_null(inventory_find(&v, "cpu:2"));
    assert_null(inventory_find(&v, "cpu:3"));
}

static void more_workers_than_cpus_own_no_core(void **state)
{
    (void)state;
    look("0,1", "cpu:0,cpu:1,cpu:2,cpu:3", 0);
    for (uint32_t k = 0; k < 4; k++) {
        assert_int_equal(v.devices[k].n_threads, 1);
        assert_int_equal(v.devices[k].n_cpus, 2);
        assert_false(v.devices[k].own_core);
    }
    look("0,1", "cpu:0,cpu:1", 0);
    assert_true(v.devices[0].own_core && v.devices[1].own_core);
    assert_disjoint();
    look("0,1", "cpu:0,cpu:1", 2); /* two threads each on two CPUs */
    assert_false(v.devices[0].own_core);
    assert_int_equal(v.devices[0].n_threads, 2);
    assert_int_equal(v.devices[1].n_cpus, 2);
    look("0,1", NULL, 2);
    assert_int_equal(v.n_devices, 1);
    assert_true(v.devices[0].own_core);
}

static void a_v2_quota_and_limit_hold_from_any_group_above(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "0::/pods/one\n");
    put("/sys/fs/cgroup/pods/one/cpu.max", "max 100000\n");
    put("/sys/fs/cgroup/pods/cpu.max", "250000 100000\n");
    put("/sys/fs/cgroup/pods/one/memory.max", "10737418240\n");
    put("/sys/fs/cgroup/pods/one/memory.current", "4294967296\n");
    put("/sys/fs/cgroup/pods/one/memory.stat", "anon 1\ninactive_file 2147483648\n");
    look("0-7", NULL, 0);
    assert_int_equal(v.n_usable, 2);
    assert_int_equal(v.devices[0].n_threads, 2);
    assert_true(v.devices[0].own_core);
    /* 10 GiB less 4 held, of which 2 can be dropped. */
    assert_int_equal(v.memory_bytes, (8ull << 30) / 10 * 9);
    look("0-7", "cpu:0,cpu:1,cpu:2", 0);
    assert_false(v.devices[0].own_core); /* 3 threads on 2 CPUs' worth of time */
}

static void v1_groups_hold_too(void **state)
{
    (void)state;
    put("/proc/self/cgroup", "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n");
    put("/sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "50000\n");
    put("/sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us", "100000\n");
    put("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "1073741824\n");
    put("/sys/fs/cgroup/memory/box/memory.usage_in_bytes", "73741824\n");
    look("0-3", NULL, 0);
    assert_int_equal(v.n_usable, 1); /* half a CPU: one thread */
    assert_int_equal(v.devices[0].n_threads, 1);
    assert_int_equal(v.memory_bytes, 1000000000ull / 10 * 9);
    put("/sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us", "-1\n");
    look("0-3", NULL, 0);
    assert_int_equal(v.n_usable, 4);
}

static void wrong_device_lists_are_named(void **state)
{
    (void)state;
    static const char *const bad[][2] = {{"gpu:0", "'gpu:0'"}, {"cpu:0,cpu:0", "cpu:0 stands there twice"}, {"cpu:", "'cpu:'"}, {"cpu:x", "cpu:x"}, {"cpu:0,,cpu:1", "''"},
                                         {"cuda:2", "its GPUs are cuda:0 to cuda:1"}, {"cuda:0,cuda:0", "cuda:0 stands there twice"}, {"cuda:1x", "'cuda:1x'"},
                                         {"cuda:99999999999", "'cuda:99999999999'"}};
    put_gpus("H|H");
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++)
        refuses(bad[i][0], bad[i][1]);
}

static void gpus_are_taken_where_there_are_some(void **state)
{
    (void)state;
    two_sockets();
    put_gpus("NVIDIA H200|NVIDIA H200|NVIDIA H200");
    look("0-15", NULL, 0);
    assert_int_equal(v.n_devices, 3);
    for (uint32_t k = 0; k < 3; k++) {
        const struct inventory_device *d = &v.devices[k];
        char name[16];
        snprintf(name, sizeof(name), "cuda:%u", k);
        assert_string_equal(d->name, name);
        assert_string_equal(d->model, "NVIDIA H200");
        assert_int_equal(d->kind, DEVICE_CUDA);
        assert_int_equal(d->gpu, k);
        /* Near it: the CPUs of its node, as two_sockets has them; two threads, one that launches and one that reads. */
        assert_int_equal(d->numa, k % 2);
        assert_int_equal(d->n_cpus, 8);
        assert_true(has(d, k % 2 ? 4 : 0) && has(d, k % 2 ? 12 : 8));
        assert_int_equal(d->n_threads, 2);
        assert_true(d->own_core);
        /* What is free, less 1 GiB and a 64th of 80 GiB. */
        assert_int_equal(d->memory_bytes, (60ull << 30) - (1ull << 30) - (80ull << 30) / 64);
    }
    device_memory = 10ull << 30;
    look("0-15", "cuda:2", 1);
    assert_int_equal(v.n_devices, 1);
    assert_int_equal(v.devices[0].gpu, 2);
    assert_int_equal(v.devices[0].n_threads, 1);
    assert_int_equal(v.devices[0].memory_bytes, 10ull << 30);
    gpus.gpus[2].free_bytes = 1 << 20; /* somebody else has it all: that is not "not known", which is 0 */
    look("0-15", "cuda:2", 1);
    assert_int_equal(v.devices[0].memory_bytes, 1);
}

static void a_gpu_of_an_unknown_node_may_use_every_cpu(void **state)
{
    (void)state;
    two_sockets();
    put_gpus("G|G");
    gpus.gpus[0].numa = -1;
    look("4-7,12-15", "cuda:0,cuda:1", 0);
    assert_int_equal(v.devices[0].n_cpus, 8);
    gpus.gpus[1].numa = 0; /* where this process has no CPU */
    look("4-7,12-15", "cuda:1", 0);
    assert_int_equal(v.devices[0].n_cpus, 8);
    assert_int_equal(v.devices[0].numa, 1);
    look("4", "cuda:0,cuda:1", 0);
    assert_int_equal(v.devices[0].n_threads, 1); /* one CPU for two workers */
    assert_false(v.devices[0].own_core);
}

static void cpus_and_gpus_can_be_offered_together(void **state)
{
    (void)state;
    two_sockets();
    put_gpus("G|G");
    look("0-15", "cpu:0,cuda:1,cpu:1", 0);
    assert_int_equal(v.n_devices, 3);
    assert_int_equal(v.devices[0].kind, DEVICE_CPU);
    assert_int_equal(v.devices[0].n_cpus, 8);
    assert_int_equal(v.devices[2].numa, 1); /* the CPUs are cut as if there were no GPU */
    assert_int_equal(v.devices[2].memory_bytes, v.memory_bytes / 2);
    assert_string_equal(v.devices[2].model, "Made-up CPU 9000");
}

static void a_backend_keeps_to_its_kind(void **state)
{
    (void)state;
    put_gpus("G|G");
    want = INVENTORY_WANT_CPU;
    look("0-3", NULL, 0);
    assert_string_equal(v.devices[0].name, "cpu:0");
    refuses("cuda:0", "--backend chooses CPUs");
    assert_false(inventory_needs_gpus(NULL, want));
    want = INVENTORY_WANT_GPU;
    look("0-3", NULL, 0);
    assert_int_equal(v.n_devices, 2);
    assert_string_equal(v.devices[0].name, "cuda:0");
    refuses("cpu:0", "--backend cuda runs on GPUs only");
    gpus = (struct gpu_info){.state = GPU_INFO_NONE, .why = "there is no NVIDIA driver on this host"};
    refuses(NULL, "--backend cuda: there is no NVIDIA driver on this host");
    refuses("any:2", "--backend cuda: there is no NVIDIA driver on this host");
    want = INVENTORY_WANT_ANY;
    look("0-3", NULL, 0);
    assert_string_equal(v.devices[0].name, "cpu:0");
    refuses("cuda:0", "no GPU can be used as cuda:0: there is no NVIDIA driver on this host");
    assert_true(inventory_needs_gpus(NULL, want) && inventory_needs_gpus("cpu:0,any:1", want) && inventory_needs_gpus("cuda:1", want));
    assert_false(inventory_needs_gpus("cpu:0,cpu:1", want));
}

static void as_many_as_are_needed_are_of_one_type(void **state)
{
    (void)state;
    look("0-3", "cpu:1,any:3", 0); /* no GPU: CPU devices with the lowest numbers that are left */
    assert_int_equal(v.n_devices, 4);
    assert_string_equal(v.devices[1].name, "cpu:0");
    assert_string_equal(v.devices[2].name, "cpu:2");
    put_gpus("NVIDIA H100|NVIDIA H200|NVIDIA H200|NVIDIA H100|NVIDIA H200");
    for (uint32_t i = 0; i < 5; i++)
        if (strstr(gpus.gpus[i].name, "H200"))
            gpus.gpus[i].memory_bytes = 141ull << 30;
    look("0-3", "any:2", 0); /* the larger type; the third stands by, and takes no CPU from the two */
    assert_int_equal(v.n_devices, 3);
    assert_string_equal(v.devices[0].name, "cuda:1");
    assert_string_equal(v.devices[1].name, "cuda:2");
    assert_string_equal(v.devices[2].name, "cuda:4");
    assert_int_equal(v.devices[2].n_threads, 2);
    assert_true(v.devices[0].own_core);
    look("0-3", "cuda:1,cuda:4,any:2", 0); /* of which one is left */
    assert_string_equal(v.devices[2].name, "cuda:0");
    assert_string_equal(v.devices[3].name, "cuda:3");
    refuses("any:4", "4 GPUs of one type are needed, this host has 2 NVIDIA H100, 3 NVIDIA H200");
    gpus.gpus[2].lost = true;
    snprintf(gpus.gpus[2].why, sizeof(gpus.gpus[2].why), "reported Xid 79: fallen off the bus");
    refuses("any:3", "this host has 2 NVIDIA H100, 2 NVIDIA H200");
    refuses("cuda:2", "reported Xid 79");
    look("0-3", NULL, 0);
    assert_int_equal(v.n_devices, 4);
    assert_null(inventory_find(&v, "cuda:2"));
}

static void what_stands_against_gpus_is_said(void **state)
{
    (void)state;
    char why[400];
    put_gpus("G");
    struct inventory_config c = {.gpus = &gpus, .support = GPU_SUPPORT_CUDA};
    inventory_why_no_gpu(&c, why, sizeof(why));
    assert_string_equal(why, "");
    c.support = GPU_SUPPORT_NONE;
    inventory_why_no_gpu(&c, why, sizeof(why));
    assert_non_null(strstr(why, "-DRACKLM_CUDA=ON"));
    support = GPU_SUPPORT_NONE;
    look("0-3", NULL, 0);
    assert_string_equal(v.devices[0].name, "cpu:0");
    refuses("cuda:0", "built without CUDA");
    support = GPU_SUPPORT_EMULATED;
    look("0-3", NULL, 0);
    assert_int_equal(v.devices[0].kind, DEVICE_EMULATED);
    assert_string_equal(device_kind_name(v.devices[0].kind), "emulated");
    support = GPU_SUPPORT_CUDA;
    gpus = (struct gpu_info){.state = GPU_INFO_BROKEN, .why = "the driver is too old"};
    look("0-3", NULL, 0); /* CPUs go on */
    assert_string_equal(v.devices[0].name, "cpu:0");
}

static void this_host_has_a_device(void **state)
{
    (void)state;
    int cpus[INVENTORY_CPUS_MAX];
    uint32_t n = inventory_allowed(cpus, INVENTORY_CPUS_MAX);
    assert_true(n >= 1 && n <= (uint32_t)sysconf(_SC_NPROCESSORS_CONF));
    inventory_deinit(&v);
    assert_int_equal(inventory_read(&(struct inventory_config){.root = "", .allowed = cpus, .n_allowed = n}, &v), ERR_OK);
    assert_true(v.n_devices >= 1 && v.devices[0].memory_bytes > 0 && v.host[0] && v.devices[0].n_threads >= 1);
}

static int last(void **state)
{
    (void)state;
    inventory_deinit(&v);
    gpus = (struct gpu_info){.state = GPU_INFO_NONE};
    support = GPU_SUPPORT_CUDA;
    want = INVENTORY_WANT_ANY;
    device_memory = 0;
    return drop_root();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(cpu_lists_are_parsed_or_refused, first, last),
        cmocka_unit_test_setup_teardown(a_numa_node_is_a_device, first, last),
        cmocka_unit_test_setup_teardown(affinity_with_uneven_nodes_keeps_devices_on_their_nodes, first, last),
        cmocka_unit_test_setup_teardown(named_devices_cut_the_cpus_into_disjoint_sets, first, last),
        cmocka_unit_test_setup_teardown(more_workers_than_cpus_own_no_core, first, last),
        cmocka_unit_test_setup_teardown(a_v2_quota_and_limit_hold_from_any_group_above, first, last),
        cmocka_unit_test_setup_teardown(v1_groups_hold_too, first, last),
        cmocka_unit_test_setup_teardown(wrong_device_lists_are_named, first, last),
        cmocka_unit_test_setup_teardown(gpus_are_taken_where_there_are_some, first, last),
        cmocka_unit_test_setup_teardown(a_gpu_of_an_unknown_node_may_use_every_cpu, first, last),
        cmocka_unit_test_setup_teardown(cpus_and_gpus_can_be_offered_together, first, last),
        cmocka_unit_test_setup_teardown(a_backend_keeps_to_its_kind, first, last),
        cmocka_unit_test_setup_teardown(as_many_as_are_needed_are_of_one_type, first, last),
        cmocka_unit_test_setup_teardown(what_stands_against_gpus_is_said, first, last),
        cmocka_unit_test_setup_teardown(this_host_has_a_device, first, last),
    };
    return cmocka_run_group_tests_name("inventory", tests, NULL, NULL);
}
