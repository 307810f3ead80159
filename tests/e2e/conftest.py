"""Real processes, real sockets: each test starts `racklm serve` (or its parts) in directories of its own and talks to it over loopback.

RACKLM_BUILD chooses the build (default build/); under a sanitizer any report in a process's log fails the test that started it.
Times: a wait for what must come ends after PATIENCE_S, which is no expectation of speed, so that a machine that stands still for seconds passes; the
only times that are asserted are lower bounds. Two files run at a time (tests/run.sh), so what the whole machine has is nobody's to compare.
Tests marked `sanitizer` are the ones that run under ASan and TSan too: they cover every path once and need little time.
"""
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("RACKLM_BUILD", TOP / "build"))
DEMO = TOP / "deploy/demo/grimm-6m-Q8_0.gguf"
REFERENCE = json.loads((TOP / "deploy/demo/reference.json").read_text())
SHARED = Path(os.environ.get("RACKLM_TEST_SHARED", TOP / "../shared"))
FULL = os.environ.get("RACKLM_FULL", "0") == "1"
SANITIZED = "asan" in BUILD.name or "tsan" in BUILD.name
PATIENCE_S = 60
REPORT = re.compile(r"ERROR: (Address|Leak|Thread)Sanitizer|WARNING: ThreadSanitizer|runtime error:|ASSERT|check failed")


def pytest_configure(config):
    config.addinivalue_line("markers", "sanitizer: also run under ASan, UBSan and TSan")


def racklm(*args, timeout=120, programs=BUILD / "bin", **kw):
    """Runs the racklm command; returns the completed process with text output."""
    return subprocess.run([programs / "racklm", *map(str, args)], capture_output=True, text=True, timeout=timeout, stdin=kw.pop("stdin", subprocess.DEVNULL), **kw)


def orphaned_shared_memory():
    """Files of /dev/shm that no process has in its memory: other programs on this machine have theirs."""
    names, maps = set(os.listdir("/dev/shm")), ""
    for p in Path("/proc").iterdir():
        if names and p.name.isdigit():
            try:
                maps += "".join(line + "\n" for line in (p / "maps").read_text().splitlines() if "/dev/shm/" in line)
            except OSError:
                pass
    return {n for n in names if n not in maps}


def check_reports(logs):
    """No sanitizer and no assertion has spoken."""
    report = REPORT.search(logs)
    assert not report, logs[max(0, report.start() - 500):report.start() + 3000]


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self):
        return json.loads(self.body)


class Api:
    """What is asked of a coordinator at host and port."""

    headers = {}

    def connection(self, timeout):
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, timeout=180):
        conn = self.connection(timeout)
        try:
            data = json.dumps(body) if isinstance(body, (dict, list)) else body
            conn.request(method, path, data, {"Content-Type": "application/json", **self.headers, **(headers or {})})
            r = conn.getresponse()
            return Reply(r.status, r.headers, r.read().decode("utf-8", "surrogateescape"))
        finally:
            conn.close()

    def get(self, path, **kw):
        return self.request("GET", path, **kw)

    def post(self, path, body, **kw):
        return self.request("POST", path, body, **kw)

    def complete(self, prompt="Once upon a time", **params):
        """A text completion that must succeed; returns the JSON."""
        r = self.post("/v1/completions", {"model": "default", "prompt": prompt, "temperature": 0, **params}, timeout=300)
        assert r.status == 200, r.body
        return r.json


class Server(Api):
    """One `racklm serve`. Use as a context manager: leaving it stops the server and checks that nothing was left behind."""

    def __init__(self, model=DEMO, *args, env=None, wait=True, check=True, wrap=(), programs=BUILD / "bin"):
        self.programs = programs
        self.dir = Path(tempfile.mkdtemp(prefix="racklm-e2e-"))
        self.check = check
        self.log = self.dir / "log"
        self.env = {**os.environ, "XDG_STATE_HOME": str(self.dir / "state"), "RACKLM_RUNTIME_DIR": str(self.dir / "run"),
                    "RACKLM_STATE_DIR": str(self.dir / "state"), **(env or {})}
        with open(self.log, "wb") as log:
            self.proc = subprocess.Popen([*wrap, programs / "racklm", "serve", str(model), "--port", "0", "--log-level", "debug", *map(str, args)],
                                         stdout=subprocess.PIPE, stderr=log, env=self.env, text=True)
        self.url = None
        if wait:
            self.wait_ready()

    def wait_ready(self):
        line = self.proc.stdout.readline()
        match = re.search(r" at http://([\d.]+):(\d+)", line)
        if not match:
            self.proc.wait(60)
            raise RuntimeError(f"no server: {line!r} {self.log.read_text()[-3000:]}")
        self.host, self.port = match.group(1), int(match.group(2))
        self.url = f"http://{self.host}:{self.port}"

    def stream(self, path, body, timeout=120):
        """Yields the JSON of each event; the last item is "[DONE]" when the server said so."""
        conn = self.connection(timeout)
        try:
            conn.request("POST", path, json.dumps({"stream": True, **body}), {"Content-Type": "application/json"})
            r = conn.getresponse()
            assert r.status == 200, r.read()
            for line in r:
                line = line.decode().rstrip("\r\n")
                if line.startswith("data: "):
                    yield "[DONE]" if line == "data: [DONE]" else json.loads(line[6:])
        finally:
            conn.close()

    def metric(self, name):
        """The sum over the label sets of a metric."""
        return sum(float(x.rsplit(" ", 1)[1]) for x in self.get("/metrics").body.splitlines() if x.startswith(name + "{"))

    def cli(self, *args, **kw):
        return racklm(*args, env=self.env, programs=self.programs, **kw)

    def workers(self):
        return json.loads(self.cli("workers", "-o", "json").stdout)

    def pids(self):
        """Every process of this server, by its state directory in the environment."""
        found = []
        for p in Path("/proc").iterdir():
            if p.name.isdigit():
                try:
                    if str(self.dir).encode() in (p / "environ").read_bytes() and (p / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                        found.append(int(p.name))
                except OSError:
                    pass
        return found

    def stop(self, sig=signal.SIGTERM, timeout=90):
        if self.proc.poll() is None:
            self.proc.send_signal(sig)
        self.proc.wait(timeout)

    def logs(self):
        return self.log.read_text(errors="replace")

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.stop()
            left = self.pids()
            deadline = time.time() + 30
            while left and time.time() < deadline:
                time.sleep(0.05)
                left = self.pids()
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            if self.check and kind is None:
                assert not left, f"processes left behind: {left}"
                check_reports(self.logs())
        finally:
            self.proc.stdout.close()
            if kind is None:
                shutil.rmtree(self.dir, ignore_errors=True)


@pytest.fixture(scope="session")
def demo():
    """One server of the demo model that many tests share: two tensor-parallel workers."""
    with Server(DEMO, "--tp", "2") as s:
        yield s
