"""Nodes with GPUs, without one: the library that the agent asks is tests/tools/fake_nvml.c, whose GPUs the variables RACKLM_EMU_* make up.

Two workers take racklm-worker's place. `worker_gpus` (tests/tools/worker_gpus.c) has GPUs and no kernels for them: which devices are chosen, what is shown, what is said when a
choice cannot be, what follows when a GPU is lost. The emulated worker (emu/bin/racklm-worker, where the build has it) computes.
"""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import BUILD, DEMO, PATIENCE_S, SANITIZED, Server, racklm
from streams import wait_for

NVML = BUILD / "emu/nvml/libnvidia-ml.so.1"
EMULATED = BUILD / "emu/bin/racklm-worker"
UUID = ["GPU-e000000%d-e000-4000-8000-00000000000%d" % (i, i) for i in range(10)]


def programs_with(worker, folder):
    """A folder with the programs of which racklm-worker is another: racklm looks for it beside itself."""
    (folder / "bin").mkdir()
    for name in ("racklm", "racklm-coordinator"):
        shutil.copy2(BUILD / "bin" / name, folder / "bin" / name)
    shutil.copy2(worker, folder / "bin/racklm-worker")
    return folder / "bin"


@pytest.fixture(scope="module")
def no_kernels(tmp_path_factory):
    return programs_with(BUILD / "tests/worker_gpus", tmp_path_factory.mktemp("gpus"))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    if not EMULATED.exists():
        pytest.skip("this build has no emulated GPU worker")
    return programs_with(EMULATED, tmp_path_factory.mktemp("emulated"))


def gpus(n, what="", **more):
    return {"RACKLM_NVML": str(NVML), "RACKLM_EMU_DEVICES": str(n), "RACKLM_EMU_NVML": what, **more}


def workers_when(server, condition, what):
    def look():
        r = server.cli("workers", "-o", "json")
        w = json.loads(r.stdout) if r.returncode == 0 else []
        return w if w and condition(w) else None
    return wait_for(what, look, PATIENCE_S, 0.05)


def refused(programs, tmp_path, env, *args):
    """What a serve that cannot be says, in one line."""
    env = {**os.environ, "RACKLM_STATE_DIR": str(tmp_path / "s"), "RACKLM_RUNTIME_DIR": str(tmp_path / "r"), "RACKLM_LOG_FILE": str(tmp_path / "log"), **env}
    r = racklm("serve", DEMO, "--port", "0", *args, env=env, programs=programs)
    assert r.returncode == 1 and len(r.stderr.splitlines()) == 1, r.stderr
    return r.stderr


def test_the_made_up_library_is_what_nvidias_binding_expects(tmp_path):
    """The layout of every structure and the meaning of every argument, from a source that is not ours."""
    pytest.importorskip("pynvml")
    if SANITIZED:
        pytest.skip("a library with a sanitizer in it cannot be loaded by Python")
    code = """
import pynvml as n
n.nvmlInit()
a, b = (n.nvmlDeviceGetHandleByIndex(i) for i in range(2))
m, p = n.nvmlDeviceGetMemoryInfo(b), n.nvmlDeviceGetPciInfo(b)
events = n.nvmlEventSetCreate()
n.nvmlDeviceRegisterEvents(b, n.nvmlEventTypeXidCriticalError, events)
open(__import__('os').environ['RACKLM_EMU_NVML_EVENTS'], 'w').write('xid 1 79\\n')
e = n.nvmlEventSetWait_v2(events, 0)
print([n.nvmlDeviceGetCount(), n.nvmlSystemGetDriverVersion(), n.nvmlSystemGetCudaDriverVersion_v2(), n.nvmlDeviceGetName(b), n.nvmlDeviceGetUUID(b), m.total, m.free, p.busId, p.bus,
       n.nvmlDeviceGetTemperature(b, n.NVML_TEMPERATURE_GPU), n.nvmlDeviceGetCurrentClocksEventReasons(b) == n.nvmlClocksEventReasonSwThermalSlowdown, n.nvmlDeviceGetPowerUsage(b),
       n.nvmlDeviceGetUtilizationRates(b).gpu, n.nvmlDeviceGetCudaComputeCapability(b), n.nvmlDeviceGetMigMode(b), n.nvmlDeviceGetTopologyCommonAncestor(a, b) == n.NVML_TOPOLOGY_HOSTBRIDGE,
       n.nvmlDeviceGetNvLinkState(a, 0), n.nvmlDeviceGetNvLinkRemotePciInfo(a, 0).busId, e.eventType == n.nvmlEventTypeXidCriticalError, e.eventData])
"""
    env = {**os.environ, **gpus(2, "memory=8G;free=7G;temperature=30|55;throttle=0x20;power=70000;utilization=9;level=30;link=1"), "LD_LIBRARY_PATH": str(NVML.parent),
           "RACKLM_EMU_NVML_EVENTS": str(tmp_path / "events")}
    r = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert r.returncode == 0, r.stderr
    assert eval(r.stdout) == [2, "580.00.00", 13000, "Emulated GPU", UUID[1], 8 << 30, 7 << 30, "00000000:2B:00.0", 0x2b, 55, True, 70000, 9, (9, 0), [0, 0], True, 1, "00000000:2B:00.0",
                              True, 79]


def test_serve_takes_gpus_and_shows_them(no_kernels, tmp_path):
    events = tmp_path / "events"
    env = gpus(3, "name=NVIDIA H200;memory=141G;switch=18|18|0;temperature=33|85|41;throttle=1|0x44|1;free=141G|140G|100G", RACKLM_EMU_NVML_EVENTS=str(events), TEST_CHILD_HANGS="1")
    with Server(DEMO, "--tp", 2, env=env, programs=no_kernels, wait=False, check=False) as s:
        placed = lambda w: all(x["device"] for x in w)
        w = workers_when(s, placed, "two placed workers")
        assert [(x["device"], x["device_kind"], x["device_model"], x["device_uuid"]) for x in w] == [(f"cuda:{i}", "emulated", "NVIDIA H200", UUID[i]) for i in range(2)]
        assert [x["temperature_c"] for x in w] == [33, 85] and [x["throttle"] for x in w] == [[], ["sw_power_cap", "hw_thermal_slowdown"]]
        assert all(x["device_memory_bytes"] < x["memory_free_bytes"] for x in w) and not any(x["device_lost"] for x in w)

        node = json.loads(s.cli("nodes", "-o", "json").stdout)[0]
        assert node == json.loads(s.cli("status", "-o", "json").stdout)["nodes"][0] | {"devices": node["devices"]}
        d = node["devices"]
        assert (node["gpu_driver"], node["cuda_version"], node["gpu_note"]) == ("580.00.00", "13.0", "")
        assert [x["name"] for x in d] == ["cuda:0", "cuda:1", "cuda:2"] and all(x["kind"] == "emulated" and x["compute_capability"] == "9.0" for x in d)
        assert [x["bus_id"] for x in d] == ["0000:1b:00.0", "0000:2b:00.0", "0000:3b:00.0"]
        assert d[0]["path"] == ["X", "PIX", "NODE"] and d[0]["nvlinks"] == [0, 18, 0] and d[2]["nvlinks"] == [0, 0, 0]

        text = s.cli("workers").stdout
        assert all(x in text for x in ("cuda:0 (emulated)", "NVIDIA H200", "GPU-e0000001", "85 C", "sw_power_cap, hw_thermal_slowdown")) and UUID[1] not in text
        text = s.cli("nodes").stdout
        rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line[:5] in ("cuda:", "     ")}
        assert rows["cuda:0"] == ["X", "NV18", "NODE"] and rows["cuda:1"] == ["NV18", "X", "NODE"] and rows["cuda:2"] == ["NODE", "NODE", "X"]
        assert "NV#: so many NVLinks; NODE: between the host bridges of one NUMA node" in text and "throttled: sw_power_cap, hw_thermal_slowdown" in text

        # The GPU of rank 1 is lost: the third, which stands by, takes its place. Then that one goes, too.
        events.write_text("xid 1 79\n")
        w = workers_when(s, lambda w: w[1]["device"] == "cuda:2", "the worker on the third GPU")
        assert w[0]["device"] == "cuda:0"
        assert f"GPU cuda:1 (NVIDIA H200, {UUID[1]}) reported Xid 79: fallen off the bus" in s.logs()
        assert "lost: reported Xid 79: fallen off the bus" in s.cli("nodes").stdout
        with open(events, "a") as f:
            f.write("xid 2 95\n")
        w = workers_when(s, lambda w: not w[1]["device"], "no device left")
        assert w[1]["state"] == "waiting for a device" and w[0]["device"] == "cuda:0"
        s.proc.kill()


def test_named_devices_and_backends_are_kept_to(no_kernels):
    env = gpus(4, TEST_CHILD_HANGS="1")
    with Server(DEMO, "--tp", 2, "--devices", "cuda:3,cuda:1", env=env, programs=no_kernels, wait=False, check=False) as s:
        w = workers_when(s, lambda w: all(x["device"] for x in w), "placed workers")
        assert {x["device"]: x["device_uuid"] for x in w} == {"cuda:1": UUID[1], "cuda:3": UUID[3]}
        s.proc.kill()
    with Server(DEMO, "--tp", 2, "--device-memory", "1G", env={**env, "CUDA_VISIBLE_DEVICES": f"{UUID[2]},0"}, programs=no_kernels, wait=False, check=False) as s:
        w = workers_when(s, lambda w: all(x["device"] for x in w), "placed workers")
        assert {x["device"]: x["device_uuid"] for x in w} == {"cuda:0": UUID[2], "cuda:1": UUID[0]} and all(x["device_memory_bytes"] == 1 << 30 for x in w)
        s.proc.kill()


@pytest.mark.sanitizer
def test_cpus_serve_where_gpus_are_not_wanted_or_not_usable(no_kernels):
    with Server(DEMO, "--backend", "cpu", env=gpus(2), programs=no_kernels) as s:
        assert [(w["device"], w["device_kind"]) for w in s.workers()] == [("cpu:0", "cpu")] and s.complete(max_tokens=4)
    with Server(DEMO, env=gpus(2, "cuda=12020;driver=535.183.01"), programs=no_kernels) as s:
        assert [w["device"] for w in s.workers()] == ["cpu:0"] and s.complete(max_tokens=4)
        note = "the NVIDIA driver 535.183.01 knows CUDA up to 12.2, racklm needs 13.0: install driver 580 or later"
        assert f'GPUs are not used why="{note}"' in s.logs() and json.loads(s.cli("nodes", "-o", "json").stdout)[0]["gpu_note"] == note
        assert f"are not used: {note}" in s.cli("nodes").stdout and s.proc.stdout.readline() == f"GPUs of this host are not used: {note}\n"
    with Server(DEMO, env={"RACKLM_NVML": "/nowhere/libnvidia-ml.so.1"}, programs=no_kernels) as s:
        assert [w["device"] for w in s.workers()] == ["cpu:0"] and "GPUs are not used" not in s.logs()


def test_a_choice_that_cannot_be_is_answered_with_the_reason(no_kernels, tmp_path):
    mixed = "name=NVIDIA H100|NVIDIA H200|NVIDIA H100"
    for env, args, words in [
        (gpus(3, mixed), ["--tp", "3"], ["3 GPUs of one type are needed", "2 NVIDIA H100, 1 NVIDIA H200", "--backend cpu"]),
        (gpus(3, mixed), ["--tp", "2", "--devices", "cuda:0,cuda:1"], ["need GPUs of one type", "1 NVIDIA H100, 1 NVIDIA H200"]),
        (gpus(2), ["--devices", "cuda:2"], ["cuda:2 is no device of this host", "cuda:0 to cuda:1"]),
        (gpus(2), ["--devices", "cuda:0", "--backend", "cpu"], ["cuda:0", "--backend chooses CPUs"]),
        (gpus(2), ["--devices", "cpu:0", "--backend", "cuda"], ["cpu:0", "--backend cuda runs on GPUs only"]),
        (gpus(1, "init=18"), ["--backend", "cuda"], ["--backend cuda", "driver was updated", "restart this host"]),
        (gpus(1, "cuda=12080"), ["--devices", "cuda:0"], ["knows CUDA up to 12.8, racklm needs 13.0"]),
        (gpus(2, "memory=2G;free=1025M"), [], ["a worker needs", "the largest Emulated GPU has room for 0.00 MiB", "are missing"]),
        ({"RACKLM_NVML": "/nowhere/x.so"}, ["--backend", "cuda"], ["--backend cuda: there is no NVIDIA driver on this host"]),
    ]:
        said = refused(no_kernels, tmp_path, {**env, "TEST_CHILD_HANGS": "1"}, *args)
        assert all(w in said for w in words), (args, said)


def test_emulated_gpus_serve(emulated):
    with Server(DEMO, "--tp", 2, env=gpus(2), programs=emulated) as s:
        assert [(w["device"], w["device_kind"], w["state"]) for w in s.workers()] == [("cuda:0", "emulated", "ready"), ("cuda:1", "emulated", "ready")]
        assert all(w["backend"] for w in s.workers()) and "cuda:1 (emulated)" in s.cli("workers").stdout
        assert s.complete(max_tokens=8)["choices"][0]["text"]


def test_an_emulated_gpu_that_is_lost_is_replaced_in_service(emulated, tmp_path):
    events = tmp_path / "events"
    with Server(DEMO, env=gpus(2, RACKLM_EMU_NVML_EVENTS=str(events)), programs=emulated, check=False) as s:
        first = s.workers()[0]["device"]
        events.write_text(f"xid {first[-1]} 79\n")
        w = workers_when(s, lambda w: w[0]["state"] == "ready" and w[0]["device"] != first, "the worker on the other GPU")
        assert f"GPU {first} (Emulated GPU, {w[0]['device_uuid'].replace(w[0]['device'][-1], first[-1])}) reported Xid 79" in s.logs()
        assert s.complete(max_tokens=4)["choices"][0]["text"]
