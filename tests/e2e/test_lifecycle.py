"""Start, idle and end: what processes, sockets, files and memory a server has, and that nothing of it is left. Measured from /proc."""
import json
import os
import re
import signal
import socket
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import BUILD, DEMO, FULL, PATIENCE_S, SANITIZED, Server, orphaned_shared_memory
from streams import wait_for

TICKS = os.sysconf("SC_CLK_TCK")
IDLE_S = 30 if FULL else 4
IDLE_SHARE = 0.01 if FULL else 0.05  # a short look on a busy machine tells only who spins
PSS_MIB_DEMO, PSS_MIB_128K = 30, 60
TOKENS = 120 if SANITIZED else 400
KEY = "a-key-that-nobody-should-see"


def argv(pid):
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def name(pid):
    return Path(argv(pid)[0]).name


def cpu_s(pid):
    f = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(f[11]) + int(f[12])) / TICKS


def pss_mib(pid):
    return sum(int(x) for x in re.findall(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)) / 1024


def coordinator(s):
    return next(p for p in s.pids() if name(p) == "racklm-coordinator")


def agent(s):
    """The node agent: the parent of the workers."""
    workers = [w["pid"] for w in s.workers()]
    return int(Path(f"/proc/{workers[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])


def listening(pid):
    """Local addresses of the TCP sockets on which a process listens, and of its UDP sockets."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            m = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(fd))
        except OSError:
            continue
        if m:
            inodes.add(m.group(1))
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            f = line.split()
            if f[9] in inodes and (f[3] == "0A" or table.startswith("udp")):
                host, port = f[1].split(":")
                found.append((table, socket.inet_ntoa(bytes.fromhex(host)[::-1]) if len(host) == 8 else host, int(port, 16)))
    return found


def lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:  # gone, perhaps while it was being read
        return False


def gone(pids):
    deadline = time.time() + PATIENCE_S
    left = pids
    while left and time.time() < deadline:
        left = [p for p in left if lives(p)]
        time.sleep(0.02)
    return not left


def nothing_left_in_memory(before):
    return wait_for("no shared memory is left", lambda: orphaned_shared_memory() <= before, PATIENCE_S)


def healthy(s):
    try:
        return s.get("/health", timeout=5).status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def server():
    with Server(DEMO, "--tp", "2", "--pp", "2", env={"RACKLM_API_KEY": KEY}) as s:
        s.auth = {"Authorization": "Bearer " + KEY}
        yield s


def read_stream(s, body, out, headers=None):
    """Reads a stream in a thread; out gets its events, or the exception."""
    def run():
        try:
            for e in s.stream("/v1/completions", body):
                out.append(e)
        except Exception as e:  # noqa: BLE001: the test looks at it
            out.append(e)
    t = threading.Thread(target=run)
    t.start()
    wait_for("something was answered", lambda: out, PATIENCE_S)
    return t


def whole_or_error(events):
    """A stream ends with [DONE], or with an error event that says why; never just so."""
    last = events[-1]
    if last == "[DONE]":
        return "done"
    assert isinstance(last, dict) and set(last["error"]) == {"message", "type", "param", "code"}, last
    assert last["error"]["message"] and last["error"]["code"] >= 500
    return "error"


# ---- while it runs ----

def test_idle_is_idle(server):
    """No requests, heartbeats on: every process under 1% of a core. The coordinator under 30 MB."""
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 4}, headers=server.auth).status == 200
    pids = server.pids()
    assert len(pids) == 3 + 4, [name(p) for p in pids]  # racklm, coordinator, agent, four workers
    time.sleep(0.5)  # the steps in flight end
    before = {p: cpu_s(p) for p in pids}
    start = time.monotonic()
    time.sleep(IDLE_S)
    took = time.monotonic() - start
    used = {f"{name(p)} {p}": (cpu_s(p) - before[p]) / took for p in pids}
    print("share of a core:", {k: f"{v:.2%}" for k, v in used.items()})
    pss = pss_mib(coordinator(server))
    print(f"coordinator: {pss:.1f} MiB")
    if not SANITIZED:
        assert all(v < IDLE_SHARE for v in used.values()), used
        assert pss < PSS_MIB_DEMO


@pytest.mark.skipif(SANITIZED, reason="a sanitizer's shadow memory is not the program's")
def test_memory_of_a_vocabulary_of_128000(tmp_path):
    model = tmp_path / "v128k.gguf"
    made = subprocess.run([BUILD / "bin/mkmodel", "tiny-llama", "Q8_0", model, "--vocab", "128000"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with Server(model, "--ctx", "512") as s:
        assert s.complete("hello", max_tokens=4)["usage"]["completion_tokens"] >= 1
        pss = pss_mib(coordinator(s))
        print(f"coordinator with 128,000 tokens: {pss:.1f} MiB")
        assert pss < PSS_MIB_128K


@pytest.mark.sanitizer
def test_sockets_files_and_secrets(server):
    """One TCP port, on loopback, of the coordinator; control sockets in a closed directory; secrets in files of their owner and in no argument list."""
    for p in server.pids():
        found = listening(p)
        assert found == ([("tcp", "127.0.0.1", server.port)] if name(p) == "racklm-coordinator" else []), (name(p), found)
        assert KEY not in " ".join(argv(p))
    state, run = server.dir / "state", server.dir / "run"
    assert stat.S_IMODE(run.stat().st_mode) == 0o700
    sockets = [f for f in run.rglob("*") if stat.S_ISSOCK(f.lstat().st_mode)]
    assert any(f.name == "control.sock" for f in sockets)
    for d in run.rglob("*"):
        if d.is_dir() and not d.is_symlink():
            assert stat.S_IMODE(d.stat().st_mode) == 0o700, d
    files = [f for f in state.rglob("*") if f.is_file()]
    assert len(files) >= 4
    for f in files:
        assert stat.S_IMODE(f.stat().st_mode) & 0o077 == 0, f
    for d in state.rglob("*"):
        if d.is_dir():
            assert stat.S_IMODE(d.stat().st_mode) == 0o700, d
    assert KEY not in server.logs()
    for f in files:
        if f.name.endswith(".key"):
            for secret in re.findall(r"[!-~]{40}", f.read_text()):
                assert secret not in server.logs()


@pytest.mark.sanitizer
def test_start_up_time():
    begin = time.monotonic()
    with Server(DEMO, "--tp", "2") as s:
        ready = time.monotonic() - begin
        up = int(re.search(r"coordinator up.* ms=(\d+)", s.logs()).group(1))
        print(f"coordinator up after {up} ms, serving after {ready * 1000:.0f} ms")
        assert healthy(s)


# ---- the end ----

@pytest.mark.sanitizer
def test_sigterm_lets_short_streams_finish_and_leaves_nothing(tmp_path):
    shm = orphaned_shared_memory()
    with Server(DEMO, "--tp", "2", "--drain-timeout-ms", "60000") as s:
        pids = s.pids()
        outs = [[] for _ in range(3)]
        threads = [read_stream(s, {"prompt": f"{i}", "max_tokens": 150, "ignore_eos": True}, out) for i, out in enumerate(outs)]
        s.proc.send_signal(signal.SIGTERM)
        wait_for("the coordinator's log has begun", lambda: "coordinator" in s.logs(), PATIENCE_S)
        assert s.proc.wait(PATIENCE_S) == 0
        for t in threads:
            t.join(PATIENCE_S)
        assert [whole_or_error(o) for o in outs] == ["done"] * 3
        assert gone(pids)
        assert nothing_left_in_memory(shm)
        assert os.listdir(s.dir / "run") == []


@pytest.mark.sanitizer
def test_sigterm_ends_long_streams_with_a_clear_error():
    shm = orphaned_shared_memory()
    with Server(DEMO, "--drain-timeout-ms", "200", "--max-seqs", "4") as s:
        pids = s.pids()
        outs = [[]]
        threads = [read_stream(s, {"prompt": "a", "max_tokens": 1000, "ignore_eos": True, "n": 20}, out) for out in outs]
        s.proc.send_signal(signal.SIGTERM)
        assert s.proc.wait(PATIENCE_S) == 0
        for t in threads:
            t.join(PATIENCE_S)
        assert "error" in [whole_or_error(o) for o in outs]
        assert gone(pids) and nothing_left_in_memory(shm) and os.listdir(s.dir / "run") == []


def test_a_second_signal_ends_the_drain():
    with Server(DEMO, "--drain-timeout-ms", "60000", "--max-seqs", "1") as s:
        out = []  # one of its choices after the other: longer than the test waits
        t = read_stream(s, {"prompt": "a", "max_tokens": 1000, "ignore_eos": True, "n": 40}, out)
        wait_for("the others wait", lambda: s.get("/health").json["replicas"][0]["waiting"] > 35, PATIENCE_S)
        s.proc.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert s.proc.poll() is None
        s.proc.send_signal(signal.SIGINT)
        assert s.proc.wait(30) == 0  # half of the drain's time
        t.join(PATIENCE_S)
        assert whole_or_error(out) != "done"


def test_interrupt_while_loading_leaves_nothing():
    for delay in (0.0, 0.05, 0.15):
        s = Server(DEMO, "--tp", "2", wait=False)
        with s:
            wait_for("there are two processes", lambda: len(s.pids()) >= 2 or s.proc.poll() is not None, PATIENCE_S)
            time.sleep(delay)
            s.stop(signal.SIGINT)
            assert s.proc.returncode == 0, s.logs()[-2000:]
            assert gone(s.pids()) and os.listdir(s.dir / "run") == []


@pytest.mark.sanitizer
def test_kill_of_the_parent_leaves_nothing_running():
    shm = orphaned_shared_memory()
    with Server(DEMO, "--tp", "2", "--pp", "2") as s:
        out = []
        t = read_stream(s, {"prompt": "a", "max_tokens": 1000, "ignore_eos": True}, out)
        pids = s.pids()
        assert len(pids) == 7
        s.proc.kill()
        assert gone(pids), [argv(p) for p in s.pids()]
        t.join(PATIENCE_S)
        assert nothing_left_in_memory(shm)
        # What is left in the runtime directory does not disturb the next one, which sweeps it.
        again = Server(DEMO, env={k: s.env[k] for k in ("RACKLM_STATE_DIR", "RACKLM_RUNTIME_DIR", "XDG_STATE_HOME")})
        with again:
            assert again.complete(max_tokens=2)
        assert os.listdir(s.dir / "run") == []


@pytest.mark.sanitizer
def test_kill_of_the_coordinator_ends_the_server_with_a_message():
    shm = orphaned_shared_memory()
    with Server(DEMO, "--tp", "2", check=False) as s:
        pids = s.pids()
        os.kill(coordinator(s), signal.SIGKILL)
        assert s.proc.wait(PATIENCE_S) == 1
        assert "coordinator ended (signal 9)" in s.logs()
        assert gone(pids) and nothing_left_in_memory(shm)


@pytest.mark.sanitizer
def test_kill_of_the_agent_is_mended():
    """Its workers end with it; the parent starts it again, the cluster serves again, and a stream that ran continues."""
    with Server(DEMO, "--tp", "2", "--recover-timeout-ms", "30000") as s:
        want = s.complete("Once upon a time", max_tokens=TOKENS, ignore_eos=True)["choices"][0]["text"]
        workers, first = [w["pid"] for w in s.workers()], agent(s)
        out = []
        t = read_stream(s, {"prompt": "Once upon a time", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}, out)
        os.kill(first, signal.SIGKILL)
        assert gone([first, *workers])
        t.join(PATIENCE_S)
        assert whole_or_error(out) == "done", out[-1]
        assert "".join(e["choices"][0]["text"] for e in out[:-1]) == want
        wait_for("/health is 200", lambda: healthy(s), PATIENCE_S)
        assert s.complete(max_tokens=4) and agent(s) != first


@pytest.mark.sanitizer
def test_kill_of_a_worker_is_mended():
    with Server(DEMO, "--tp", "2", "--recover-timeout-ms", "30000") as s:
        want = s.complete("Once upon a time", max_tokens=TOKENS, ignore_eos=True)["choices"][0]["text"]
        victim = s.workers()[1]["pid"]
        out = []
        t = read_stream(s, {"prompt": "Once upon a time", "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}, out)
        os.kill(victim, signal.SIGKILL)
        t.join(PATIENCE_S)
        assert whole_or_error(out) == "done", out[-1]
        assert "".join(e["choices"][0]["text"] for e in out[:-1]) == want
        assert victim not in [w["pid"] for w in s.workers()]
        assert json.loads(s.cli("status", "-o", "json").stdout)["replicas"][0]["epoch"] > 1
