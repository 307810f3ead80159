/* GPUs as NVML tells them, of a made-up NVML (tests/tools/fake_nvml.c: what it says of each is set here by environment variables). What is expected of
 * CUDA_VISIBLE_DEVICES is the CUDA C++ Programming Guide's, of bits and levels the NVML reference's. */
#include "base/check.h"
#include "tests/tools/host_files.h"
#include "worker/gpu_info.h"
#include "worker/nvml.h"

#define NS 1000000000ull

static char events[128];
static struct gpu_info *g;

static void put(const char *path, const char *text)
{
    put_file(path, text, "a");
}

static int begin(void **state)
{
    (void)state;
    make_root();
    snprintf(events, sizeof(events), "%s/events", root);
    setenv("RACKLM_EMU_NVML_EVENTS", events, 1);
    return 0;
}

static int end(void **state)
{
    (void)state;
    gpu_info_close(&g);
    unsetenv("RACKLM_EMU_DEVICES");
    unsetenv("RACKLM_EMU_NVML");
    return drop_root();
}

static void look_in(const char *library, const char *n, const char *what, const char *visible)
{
    gpu_info_close(&g);
    setenv("RACKLM_EMU_DEVICES", n, 1);
    setenv("RACKLM_EMU_NVML", what, 1);
    assert_int_equal(gpu_info_open(root, library, visible, &g), ERR_OK);
}

static void look(const char *n, const char *what)
{
    look_in(FAKE_NVML, n, what, NULL);
}

static void says(enum gpu_info_state state, const char *why)
{
    assert_int_equal(g->state, state);
    assert_int_equal(g->n, 0);
    if (!strstr(g->why, why))
        fail_msg("'%s' does not say '%s'", g->why, why);
}

static void the_structures_are_laid_out_as_documented(void **state)
{
    (void)state;
    /* nvmlPciInfo_t: char[16], five unsigned, char[32]. nvmlEventData_t: pointer, two unsigned long long, two unsigned. nvmlMemory_t: three unsigned long long. */
    assert_int_equal(sizeof(struct nvml_pci), 16 + 5 * 4 + 32);
    assert_int_equal(offsetof(struct nvml_pci, bus_id), 36);
    assert_int_equal(sizeof(struct nvml_event), 8 + 2 * 8 + 2 * 4);
    assert_int_equal(sizeof(struct nvml_memory), 24);
    assert_int_equal(sizeof(struct nvml_utilization), 8);
}

static void a_gpu_is_told_with_all_its_facts(void **state)
{
    (void)state;
    put("/sys/bus/pci/devices/0000:1b:00.0/numa_node", "1\n");
    put("/sys/bus/pci/devices/0000:2b:00.0/numa_node", "-1\n");
    look("2", "name=NVIDIA H200;memory=141G;free=140G;sm=90;temperature=33|71;power=98000;throttle=0x1|0x24;driver=580.65.06;cuda=13010;utilization=12");
    assert_int_equal(g->state, GPU_INFO_OK);
    assert_int_equal(g->n, 2);
    assert_string_equal(g->driver, "580.65.06");
    assert_int_equal(g->cuda_version, 13010);
    const struct gpu *v = &g->gpus[0];
    assert_string_equal(v->name, "NVIDIA H200");
    assert_string_equal(v->bus_id, "0000:1b:00.0");
    assert_int_equal(strncmp(v->uuid, "GPU-", 4), 0);
    assert_string_not_equal(v->uuid, g->gpus[1].uuid);
    assert_int_equal(v->memory_bytes, 141ull << 30);
    assert_int_equal(v->free_bytes, 140ull << 30);
    assert_int_equal(v->sm, 90);
    assert_int_equal(v->numa, 1);
    assert_int_equal(v->temperature_c, 33);
    assert_int_equal(v->power_mw, 98000);
    assert_int_equal(v->utilization_percent, 12);
    assert_int_equal(g->gpus[1].numa, -1);
    assert_int_equal(g->gpus[1].temperature_c, 71);
    char text[128];
    device_throttle_text(v->throttle, text, sizeof(text));
    assert_string_equal(text, ""); /* idle is no reason to worry */
    device_throttle_text(g->gpus[1].throttle, text, sizeof(text));
    assert_string_equal(text, "sw_power_cap, sw_thermal_slowdown");
}

static void throttle_bits_have_names(void **state)
{
    (void)state;
    char text[256], small[8];
    device_throttle_text(0x1ff, text, sizeof(text));
    assert_string_equal(text, "application_clocks, sw_power_cap, hw_slowdown, sync_boost, sw_thermal_slowdown, hw_thermal_slowdown, hw_power_brake, display_clocks");
    device_throttle_text(0x8000008, text, sizeof(text));
    assert_string_equal(text, "hw_slowdown, other"); /* a reason of a later driver */
    device_throttle_text(0x1ff, small, sizeof(small));
    assert_int_equal(strlen(small), 7);
    assert_null(device_throttle_name(0x1, 0));
}

static void the_order_is_that_of_the_buses(void **state)
{
    (void)state;
    look("10", "reverse=1");
    assert_int_equal(g->n, 10);
    for (uint32_t i = 0; i < 10; i++) {
        char id[32];
        snprintf(id, sizeof(id), "%04x:%02x:00.0", i / 8, 0x1b + 0x10 * (i % 8));
        assert_string_equal(g->gpus[i].bus_id, id);
    }
    look("0", "");
    says(GPU_INFO_NONE, "has no GPU");
}

/* The last digits of the UUIDs, in order. */
static void sees(const char *visible, const char *expected)
{
    char got[65] = "";
    look_in(FAKE_NVML, "4", "", visible);
    for (uint32_t i = 0; i < g->n; i++)
        snprintf(got + i, sizeof(got) - i, "%s", g->gpus[i].uuid + strlen(g->gpus[i].uuid) - 1);
    if (strcmp(got, expected) != 0)
        fail_msg("CUDA_VISIBLE_DEVICES=%s shows '%s', not '%s'", visible, got, expected);
}

static void hidden_gpus_are_not_ours(void **state)
{
    (void)state;
    sees("0,1,2,3", "0123");
    sees("2,0", "20"); /* in that order: cuda:0 is the third */
    sees("1", "1");
    sees("0,7,1", "0"); /* what stands behind a wrong one is not seen */
    sees("-1", "");
    sees("", "");
    sees("NoDevFiles", "");
    sees("GPU-e0000002-e000-4000-8000-000000000002,0", "20");
    sees("GPU-e0000003", "3"); /* as much of it as no other has */
    sees("GPU-e", "");
    sees("1,2,1", ""); /* twice */
    sees(" 1 , 3 ", "13");
    look_in(FAKE_NVML, "4", "", "9");
    says(GPU_INFO_NONE, "CUDA_VISIBLE_DEVICES=9 hides all GPUs");
}

static void topology_is_a_matrix(void **state)
{
    (void)state;
    look("5", ""); /* two at a switch, four at a NUMA node (fake_nvml.c) */
    static const uint8_t first[] = {DEVICE_PATH_SELF, DEVICE_PATH_SWITCH, DEVICE_PATH_NODE, DEVICE_PATH_NODE, DEVICE_PATH_SYSTEM};
    for (uint32_t k = 0; k < 5; k++) {
        assert_int_equal(g->path[0][k], first[k]);
        assert_int_equal(g->path[k][0], first[k]);
        assert_int_equal(g->nvlinks[0][k], 0);
    }
    /* Levels of nvmlGpuTopologyLevel_t and the short forms of `nvidia-smi topo -m`. */
    static const struct {
        const char *what, *name;
    } levels[] = {{"level=0", "BRD"}, {"level=10", "PIX"}, {"level=20", "PXB"}, {"level=30", "PHB"}, {"level=40", "NODE"}, {"level=50", "SYS"}, {"level=60", "?"}};
    for (unsigned i = 0; i < ARRAY_LEN(levels); i++) {
        look("2", levels[i].what);
        assert_string_equal(device_path_name(g->path[0][1]), levels[i].name);
        assert_string_equal(device_path_name(g->path[1][1]), "X");
    }
    assert_string_equal(device_path_name(12345), "?");
    look("3", "link=4"); /* direct ones */
    assert_int_equal(g->nvlinks[0][1], 4);
    assert_int_equal(g->nvlinks[2][1], 4);
    assert_int_equal(g->nvlinks[1][1], 0);
    look("3", "switch=18|18|16"); /* all to switches: as many as both have */
    assert_int_equal(g->nvlinks[0][1], 18);
    assert_int_equal(g->nvlinks[0][2], 16);
    assert_int_equal(g->nvlinks[2][2], 0);
    look("3", "link=2;switch=1|1|0");
    assert_int_equal(g->nvlinks[0][1], 3);
    assert_int_equal(g->nvlinks[0][2], 2);
}

static void what_stops_a_driver_is_said_with_the_cure(void **state)
{
    (void)state;
    look_in("/nowhere/libnvidia-ml.so.1", "1", "", NULL);
    says(GPU_INFO_NONE, "no NVIDIA driver");
    look("1", "init=9"); /* the library of a package, and no module */
    says(GPU_INFO_NONE, "not loaded");
    put("/proc/driver/nvidia/version", "NVRM version\n");
    look_in("/nowhere/libnvidia-ml.so.1", "1", "", NULL);
    says(GPU_INFO_BROKEN, "NVIDIA container toolkit");
    look("1", "init=9");
    says(GPU_INFO_BROKEN, "modprobe nvidia");
    look("1", "init=18");
    says(GPU_INFO_BROKEN, "restart this host");
    look("1", "init=4");
    says(GPU_INFO_BROKEN, "rights of /dev/nvidia*");
    look("1", "init=999");
    says(GPU_INFO_BROKEN, "NVML error 999");
    look("1", "count=999");
    says(GPU_INFO_BROKEN, "cannot count its GPUs");
    look("1", "cuda=12020;driver=535.183.01");
    says(GPU_INFO_BROKEN, "535.183.01 knows CUDA up to 12.2, racklm needs 13.0: install driver 580 or later");
    look_in("libc.so.6", "1", "", NULL); /* a library of that name with none of the functions */
    says(GPU_INFO_BROKEN, "nvmlInit_v2");
}

static void an_old_library_tells_less(void **state)
{
    (void)state;
    look_in(FAKE_NVML_OLD, "2", "", NULL);
    assert_int_equal(g->state, GPU_INFO_OK);
    assert_int_equal(g->n, 2);
    assert_int_equal(g->gpus[0].sm, 0);
    assert_int_equal(g->gpus[0].temperature_c, DEVICE_TEMPERATURE_UNKNOWN);
    assert_int_equal(g->path[0][1], DEVICE_PATH_UNKNOWN);
    assert_false(gpu_info_refresh(g));
    assert_false(gpu_info_poll(g, NS));
}

static void gpus_of_no_use_are_left_out(void **state)
{
    (void)state;
    look("4", "sm=90|75|120|90;mig=0|0|0|1;handle=0");
    assert_int_equal(g->n, 2);
    assert_int_equal(g->gpus[0].sm, 90);
    assert_int_equal(g->gpus[1].sm, 120);
    look("3", "handle=0|15|0"); /* lost when we come */
    assert_int_equal(g->n, 2);
    assert_string_equal(g->gpus[1].bus_id, "0000:3b:00.0");
    look_in(FAKE_NVML, "3", "sm=75|90|90", "2,0,1"); /* CUDA's numbers count those too that we cannot use */
    assert_int_equal(g->n, 2);
    assert_string_equal(g->gpus[0].bus_id, "0000:3b:00.0");
    assert_string_equal(g->gpus[1].bus_id, "0000:2b:00.0");
    look("2", "mig=1");
    says(GPU_INFO_BROKEN, "none of the 2 GPUs can be used");
}

static void a_lost_gpu_is_noticed_and_may_come_back(void **state)
{
    (void)state;
    look("2", "temperature=50");
    assert_false(gpu_info_refresh(g));
    put("/events", "lost 1\n");
    assert_true(gpu_info_refresh(g));
    assert_false(g->gpus[0].lost);
    assert_true(g->gpus[1].lost);
    assert_non_null(strstr(g->gpus[1].why, "is lost"));
    assert_int_equal(g->gpus[1].temperature_c, 0);
    assert_int_equal(g->gpus[0].temperature_c, 50);
    assert_false(gpu_info_refresh(g));
    put("/events", "back 1\ntemperature 1 44\nthrottle 1 0x40\n");
    assert_true(gpu_info_refresh(g));
    assert_false(g->gpus[1].lost);
    assert_string_equal(g->gpus[1].why, "");
    assert_int_equal(g->gpus[1].temperature_c, 44);
    assert_int_equal(g->gpus[1].throttle, DEVICE_THROTTLE_HW_THERMAL);
}

static void an_xid_that_needs_a_reset_ends_the_gpu(void **state)
{
    (void)state;
    look("3", "");
    assert_false(gpu_info_poll(g, NS));
    put("/events", "xid 1 31\n"); /* a program's fault */
    assert_false(gpu_info_poll(g, 2 * NS));
    assert_false(g->gpus[1].lost);
    assert_int_equal(g->gpus[1].xid, 31);
    assert_int_equal(g->gpus[1].xid_ns, 2 * NS);
    put("/events", "xid 2 79\nxid 1 63\n");
    assert_true(gpu_info_poll(g, 3 * NS));
    assert_true(g->gpus[2].lost && !g->gpus[1].lost && !g->gpus[0].lost);
    assert_string_equal(g->gpus[2].why, "reported Xid 79: fallen off the bus");
    assert_false(gpu_info_refresh(g)); /* it answers, and is no good all the same */
    assert_true(g->gpus[2].lost);
    put("/events", "xid 2 48\n");
    assert_false(gpu_info_poll(g, 4 * NS)); /* no news: the first reason stays */
    assert_string_equal(g->gpus[2].why, "reported Xid 79: fallen off the bus");
    put("/events", "xid 0 12345\n"); /* none that we know */
    assert_false(gpu_info_poll(g, 5 * NS));
    assert_false(g->gpus[0].lost);
    assert_string_equal(gpu_info_xid_text(12345), "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_structures_are_laid_out_as_documented),
        cmocka_unit_test_setup_teardown(a_gpu_is_told_with_all_its_facts, begin, end),
        cmocka_unit_test(throttle_bits_have_names),
        cmocka_unit_test_setup_teardown(the_order_is_that_of_the_buses, begin, end),
        cmocka_unit_test_setup_teardown(hidden_gpus_are_not_ours, begin, end),
        cmocka_unit_test_setup_teardown(topology_is_a_matrix, begin, end),
        cmocka_unit_test_setup_teardown(what_stops_a_driver_is_said_with_the_cure, begin, end),
        cmocka_unit_test_setup_teardown(an_old_library_tells_less, begin, end),
        cmocka_unit_test_setup_teardown(gpus_of_no_use_are_left_out, begin, end),
        cmocka_unit_test_setup_teardown(a_lost_gpu_is_noticed_and_may_come_back, begin, end),
        cmocka_unit_test_setup_teardown(an_xid_that_needs_a_reset_ends_the_gpu, begin, end),
    };
    return cmocka_run_group_tests_name("gpu_info", tests, NULL, NULL);
}
