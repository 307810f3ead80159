/* Inventory of made-up hosts: a tree of the /proc and /sys files that matter, written by the test as Linux documents them
 * (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst, ABI/stable/sysfs-devices-node). */
#include "base/check.h"
#include "worker/inventory.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char root[64];

static void put(const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof(full), "%s%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = 0;
        mkdir(full, 0700);
        *p = '/';
    }
    FILE *f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static int make_root(void **state)
{
    (void)state;
    snprintf(root, sizeof(root), "/tmp/racklm-inventory-XXXXXX");
    if (!mkdtemp(root))
        return -1;
    put("/proc/meminfo", "MemTotal:       33554432 kB\nMemFree:         1000000 kB\nMemAvailable:   20971520 kB\n");
    put("/proc/cpuinfo", "processor\t: 0\nmodel name\t: Made-up CPU 9000\ncache size\t: 1 KB\n");
    return 0;
}

static int drop_root(void **state)
{
    (void)state;
    char cmd[128];
    snprintf(cmd, sizeof(cmd), "rm -rf %s", root);
    return system(cmd);
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

static void look(const char *allowed, const char *devices, uint32_t threads)
{
    int cpus[64];
    int n = inventory_parse_list(allowed, cpus, 64);
    assert_true(n > 0);
    inventory_deinit(&v);
    assert_int_equal(inventory_read(root, cpus, (uint32_t)n, devices, threads, &v), ERR_OK);
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
    static const char *const bad[][2] = {{"cuda:0", "cuda:0"}, {"cpu:0,cpu:0", "twice"}, {"cpu:", "'cpu:'"}, {"cpu:x", "cpu:x"},
                                         {"cpu:0,,cpu:1", "''"}};
    int cpus[] = {0, 1};
    for (unsigned i = 0; i < ARRAY_LEN(bad); i++) {
        struct inventory w;
        assert_int_equal(inventory_read(root, cpus, 2, bad[i][0], 0, &w), ERR_CONFIG);
        assert_non_null(strstr(err_detail(), bad[i][1]));
    }
}

static void this_host_has_a_device(void **state)
{
    (void)state;
    int cpus[INVENTORY_CPUS_MAX];
    uint32_t n = inventory_allowed(cpus, INVENTORY_CPUS_MAX);
    assert_true(n >= 1 && n <= (uint32_t)sysconf(_SC_NPROCESSORS_CONF));
    inventory_deinit(&v);
    assert_int_equal(inventory_read("", cpus, n, NULL, 0, &v), ERR_OK);
    assert_true(v.n_devices >= 1 && v.devices[0].memory_bytes > 0 && v.host[0] && v.devices[0].n_threads >= 1);
}

static int last(void **state)
{
    inventory_deinit(&v);
    return drop_root(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(cpu_lists_are_parsed_or_refused, make_root, last),
        cmocka_unit_test_setup_teardown(a_numa_node_is_a_device, make_root, last),
        cmocka_unit_test_setup_teardown(affinity_with_uneven_nodes_keeps_devices_on_their_nodes, make_root, last),
        cmocka_unit_test_setup_teardown(named_devices_cut_the_cpus_into_disjoint_sets, make_root, last),
        cmocka_unit_test_setup_teardown(more_workers_than_cpus_own_no_core, make_root, last),
        cmocka_unit_test_setup_teardown(a_v2_quota_and_limit_hold_from_any_group_above, make_root, last),
        cmocka_unit_test_setup_teardown(v1_groups_hold_too, make_root, last),
        cmocka_unit_test_setup_teardown(wrong_device_lists_are_named, make_root, last),
        cmocka_unit_test_setup_teardown(this_host_has_a_device, make_root, last),
    };
    return cmocka_run_group_tests_name("inventory", tests, NULL, NULL);
}
