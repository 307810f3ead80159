"""Two hosts on one machine: network namespaces joined by a veth pair, and a cluster whose parts run in them as the README says.

The names are of this process, and everything is taken down in __exit__. Namespaces need root: available() says why not."""
import contextlib
import ctypes
import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from conftest import BUILD, TOP, Api, check_reports
from streams import wait_for

CLONE_NEWNET = 0x40000000
ADDRESS = ["10.77.0.1", "10.77.0.2"]
DEVICE = "data"
libc = ctypes.CDLL(None, use_errno=True)


def available():
    """None, or why there can be no network namespaces here."""
    for tool in ("ip", "nft"):
        if not shutil.which(tool):
            return f"no `{tool}` command"
    name = f"rltry{os.getpid()}"
    r = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if r.returncode == 0:
        r = subprocess.run(["ip", "-n", name, "link", "add", "x0", "type", "veth", "peer", "name", "x1"], capture_output=True, text=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return None if r.returncode == 0 else f"network namespaces are not permitted here: {r.stderr.strip()}"


def sh(*args, **kw):
    return subprocess.run([str(a) for a in args], check=True, capture_output=True, text=True, **kw)


class Net:
    """Two namespaces, each with an interface "data" that leads to the other."""

    def __init__(self):
        self.names = [f"rl{os.getpid()}{c}" for c in "ab"]

    def __enter__(self):
        try:
            for name in self.names:
                sh("ip", "netns", "add", name)
                sh("ip", "-n", name, "link", "set", "lo", "up")
            sh("ip", "-n", self.names[0], "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", self.names[1])
            for name, address in zip(self.names, ADDRESS):
                sh("ip", "-n", name, "addr", "add", address + "/24", "dev", DEVICE)
                sh("ip", "-n", name, "link", "set", DEVICE, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def link_down(self):
        sh("ip", "-n", self.names[1], "link", "set", DEVICE, "down")

    def link_up(self):
        sh("ip", "-n", self.names[1], "link", "set", DEVICE, "up")

    def drop(self):
        """Packets vanish both ways; nobody is told."""
        sh("ip", "netns", "exec", self.names[1], "nft", "-f", "-",
           input=f'table inet cut {{\n chain i {{\n type filter hook input priority 0;\n iifname "{DEVICE}" drop;\n }}\n'
                 f' chain o {{\n type filter hook output priority 0;\n oifname "{DEVICE}" drop;\n }}\n}}\n')

    def undrop(self):
        sh("ip", "netns", "exec", self.names[1], "nft", "delete", "table", "inet", "cut")

    @contextlib.contextmanager
    def cut(self, how):
        """The link is gone inside the block: `how` is "down" or "drop"."""
        off, on = (self.link_down, self.link_up) if how == "down" else (self.drop, self.undrop)
        off()
        try:
            yield
        finally:
            on()

    def connect(self, host, address, timeout):
        """A TCP connection made inside a namespace; the socket stays there, this process does not."""
        box = []

        def work():
            fd = os.open(f"/run/netns/{self.names[host]}", os.O_RDONLY)
            try:
                if libc.setns(fd, CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
                box.append(socket.create_connection(address, timeout))
            except OSError as e:
                box.append(e)
            finally:
                os.close(fd)
        t = threading.Thread(target=work)  # a namespace belongs to a thread, and this one ends with its errand
        t.start()
        t.join()
        if isinstance(box[0], OSError):
            raise box[0]
        return box[0]


class Connection(http.client.HTTPConnection):
    def __init__(self, cluster, timeout):
        super().__init__(cluster.host, cluster.port, timeout=timeout)
        self.cluster = cluster

    def connect(self):
        self.sock = self.cluster.net.connect(0, (self.cluster.host, self.cluster.port), self.timeout)


def readme_recipe():
    """(racklm.yaml, commands of the first host, commands of the second) as they stand in the README."""
    text = (TOP / "README.md").read_text().split("## Two hosts", 1)[1].split("\n## ", 1)[0]
    yaml = re.search(r"```yaml\n(.*?)```", text, re.S).group(1)
    first, second = re.findall(r"```sh\n(.*?)```", text, re.S)

    def lines(block):
        return [line.split("#")[0].strip().rstrip("&").strip() for line in block.splitlines() if line.split("#")[0].strip()]
    return yaml, lines(first), lines(second)


class Cluster(Api):
    """The README's two hosts: a coordinator and an agent in the first namespace, an agent in the second."""

    port = 8000
    host = ADDRESS[0]

    def __init__(self, net, model, tp=1, pp=1, options="", worker_flags=("--threads", "1"), log_level="debug"):
        self.net, self.procs, self.logs_open = net, {}, []
        self.dir = Path(tempfile.mkdtemp(prefix="racklm-hosts-"))
        self.homes = [self.dir / "host1", self.dir / "host2"]
        for h in self.homes:
            h.mkdir()
            (h / "run").mkdir(mode=0o700)
        self.keys = self.homes[0] / "api.keys"
        self.keys.write_text("secret-of-the-tests\n")
        self.keys.chmod(0o600)
        self.headers = {"Authorization": "Bearer secret-of-the-tests"}
        self.worker_flags = list(worker_flags)
        self.log_level = log_level
        yaml, self.first, self.second = readme_recipe()
        yaml = self.local(yaml).replace("tp: 2", f"tp: {tp}\npp: {pp}")
        yaml = re.sub(r"^model: \S+", f"model: {model}", yaml, flags=re.M)
        yaml = re.sub(r"^( *listen: \S+.*)$", "\\1" + "".join(f"\n  {o}" for o in options.split(";") if o.startswith("heartbeat")), yaml, flags=re.M)
        yaml += "".join(f"{o}\n" for o in options.split(";") if o and not o.startswith("heartbeat"))
        (self.homes[0] / "racklm.yaml").write_text(yaml)

    def local(self, text):
        """The README's text with this machine's names in it."""
        return text.replace("10.0.0.1", ADDRESS[0]).replace("/etc/racklm/api.keys", str(self.keys)).replace("eth0", DEVICE)

    def env(self, host):
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RACKLM_", "XDG_"))}
        return {**env, "HOME": str(self.homes[host]), "XDG_RUNTIME_DIR": str(self.homes[host] / "run"), "RACKLM_LOG_LEVEL": self.log_level,
                "PATH": f"{BUILD / 'bin'}:{env['PATH']}"}

    def spawn(self, host, name, command):
        """Starts one of the README's long-running commands in the namespace of its host; on a core of its own where there are two."""
        log = open(self.dir / f"{name}.log", "ab")
        self.logs_open.append(log)
        if command.startswith("racklm-worker"):
            command += "".join(f" {f}" for f in self.worker_flags)
        cpus = sorted(os.sched_getaffinity(0))
        cpu = {cpus[host % len(cpus)]}
        p = subprocess.Popen(["ip", "netns", "exec", self.net.names[host], "sh", "-c", "exec " + command], cwd=self.homes[host], env=self.env(host),
                             stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, cpu))
        self.procs[name] = p
        return p

    def key(self, name):
        r = sh("sh", "-c", f"racklm key {name}", env=self.env(0))
        return Path(r.stdout.strip())

    def __enter__(self):
        try:
            for command in map(self.local, self.first):
                if command.startswith("racklm key "):
                    path = self.key(command.split()[-1])
                    if command.endswith("host2"):
                        shutil.copy2(path, self.homes[1] / "host2.key")
                        (self.homes[1] / "host2.key").chmod(0o600)
                else:
                    self.spawn(0, "coordinator" if "coordinator" in command else "agent1", command)
            for command in map(self.local, self.second):
                self.spawn(1, "agent2", command)
            self.wait_healthy()
        except BaseException:
            self.close(False)
            raise
        return self

    def __exit__(self, kind, *_):
        self.close(kind is None)

    def close(self, check):
        for p in reversed(self.procs.values()):
            if p.poll() is None:
                p.send_signal(signal.SIGTERM)
        codes = {}
        for name, p in self.procs.items():
            try:
                codes[name] = p.wait(15)
            except subprocess.TimeoutExpired:
                p.kill()
                codes[name] = "killed after 15 s"
                p.wait()
        for log in self.logs_open:
            log.close()
        logs = self.logs()
        left = [pid for n in self.net.names for pid in sh("ip", "netns", "pids", n).stdout.split()]
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(int(pid), signal.SIGKILL)
        if check:
            shutil.rmtree(self.dir, ignore_errors=True)
            check_reports(logs)
            assert not left, f"processes left behind: {left}"
            assert all(c == 0 for c in codes.values()), f"exit codes {codes}: {logs[-3000:]}"
        else:
            print(logs[-12000:])

    def logs(self, name=None):
        return "".join(p.read_text(errors="replace") for p in sorted(self.dir.glob(f"{name or '*'}.log")))

    def connection(self, timeout):
        return Connection(self, timeout)

    def health(self):
        try:
            return self.get("/health", timeout=30).status
        except OSError:
            return None

    def wait_healthy(self, timeout=120):
        begin = time.monotonic()

        def ready():
            dead = [n for n, p in self.procs.items() if p.poll() is not None]
            assert not dead, f"{dead} ended: {self.logs()[-3000:]}"
            return self.health() == 200
        wait_for(lambda: "the cluster is ready: " + self.logs()[-6000:], ready, timeout, 0.02)
        return time.monotonic() - begin
