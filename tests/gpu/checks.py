#!/usr/bin/env python3
"""What run.sh does on a machine with a GPU, and, with --emulated, on one without. Each check has its own limit of time and all of them together have --minutes; a
failure stops nothing. Correctness first, several checks at a time, while the big models are made; then speed, alone on the machine.

Every line is PASS, FAIL or SKIP with the reason; speed rows are PASS, BELOW (counted as failed) or SKIP ("not measured"). Closes with `N passed, N failed, N skipped`."""
import argparse
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parents[1]
DEMO = TOP / "deploy/demo/grimm-6m-Q8_0.gguf"
NCCL_ENV = dict(NCCL_NET="Socket", NCCL_IB_DISABLE="1", NCCL_SOCKET_IFNAME="lo", NCCL_MNNVL_ENABLE="0", NCCL_MAX_CTAS="2", NCCL_RAS_ENABLE="0",
                UCX_TLS="posix,sysv,cma,self")


class Skip(Exception):
    pass


def module(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    m = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(m)
    return m


class Checks:
    def __init__(self, a):
        self.a, self.begin, self.lock, self.counts = a, time.monotonic(), threading.Lock(), {"PASS": 0, "FAIL": 0, "SKIP": 0}
        self.failures, self.table = [], []
        self.until = a.minutes * 60 # seconds after the beginning; less while correctness is checked, so that speed has its time
        self.bin, self.tests, self.n_ids = a.bin, a.tests, 16 if a.short else 40
        self.env = dict(os.environ, UCX_MEM_EVENTS="n", UCX_MEM_MALLOC_HOOKS="n", UCX_MEM_MMAP_HOOK_MODE="none")
        if a.libs:
            self.env["LD_LIBRARY_PATH"] = ":".join([*a.libs, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])
        if a.emulated:
            self.env |= {"RACKLM_EMU_DEVICES": "4"}
        self.tmp = Path(tempfile.mkdtemp(prefix="racklm-gpu-", dir=a.scratch))

    def left(self):
        return self.until - (time.monotonic() - self.begin)

    def run(self, command, limit, check=True, **env):
        """Output of the command; on failure the last lines as the reason. What it started dies with it."""
        limit = min(limit, self.left())
        if limit < 2:
            raise Skip("no time left")
        p = subprocess.Popen([str(c) for c in command], env={**self.env, **env}, cwd=TOP, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             text=True, errors="replace", start_new_session=True)
        try:
            out, _ = p.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(p.pid, signal.SIGKILL)
            out, _ = p.communicate()
            raise TimeoutError(f"not done in {limit:.0f} s; last: {last(out)}") from None
        if check and p.returncode:
            raise RuntimeError(f"exit code {p.returncode}: {last(out, 6)}")
        return out if check else (p.returncode, out)

    def row(self, state, name, detail, seconds=None):
        with self.lock:
            self.counts[state] += 1
            if state == "FAIL":
                self.failures.append(name)
            print(f"{state} {name}: {detail}" + (f"  [{seconds:.1f} s]" if seconds is not None else ""), flush=True)

    def check(self, name, fn, *args):
        """fn gives a detail, raises Skip, or anything else for a failure."""
        start = time.monotonic()
        try:
            state, detail = "PASS", fn(*args)
        except Skip as e:
            state, detail = "SKIP", e
        except Exception as e: # noqa: BLE001: whatever it was, the others go on
            state, detail = "FAIL", f"{type(e).__name__}: {e}"
        self.row(state, name, detail, time.monotonic() - start)


def last(text, n=2):
    return " / ".join(line.strip() for line in text.strip().splitlines()[-n:])[-600:]


# --- kernels

def kernel_test(c, program):
    out = c.run([program], 240)
    m = re.findall(r"\[  PASSED  \] (\d+) test", out)
    skipped = re.findall(r"\[  SKIPPED \] (\d+) test", out)
    return f"{m[-1] if m else '?'} tests" + (f", {skipped[-1]} skipped" if skipped else "")


def sanitizer(c, program, tool):
    if not c.a.sanitizer:
        raise Skip("no compute-sanitizer on this machine")
    try:
        out = c.run([c.a.sanitizer, "--tool", tool, "--error-exitcode", "9", program], 150, RACKLM_TEST_SHORT="1")
    except TimeoutError as e:
        if "ERROR SUMMARY: 0" in str(e) or "=========" not in str(e):
            raise Skip(f"{e}; no report until then") from None
        raise
    m = re.search(r"ERROR SUMMARY: (\d+) error", out)
    return f"{m[1] if m else 'no'} errors"


# --- logits

def ids_file(c):
    """Ids that every model has."""
    import numpy as np
    path = c.tmp / "ids.bin"
    if not path.exists():
        np.random.default_rng(3).integers(0, 1024, c.n_ids).astype(np.uint32).tofile(path)
    return path


def read(c, path):
    import numpy as np
    return np.fromfile(path, dtype=np.float32).reshape(c.n_ids, -1).astype(np.float64)


def random_model(c, shape, kind):
    """A small random model of tests/oracle/models.py, made once."""
    path = c.tmp / f"{shape}-{kind}.gguf"
    if not path.exists():
        seed = int(hashlib.sha256(f"{shape}{kind}".encode()).hexdigest()[:6], 16)
        c.models.write(path.with_suffix(".part"), kind=kind, seed=seed, **c.models.SHAPES[shape])
        path.with_suffix(".part").rename(path)
    return path


def reference(c, path, out):
    c.run([c.tests / "racklm-logits" if c.a.emulated else c.tests / "racklm-logits-cuda", path, ids_file(c), out, "--backend", "ref_f32", "--kv-type", "f32"], 120)
    return read(c, out)


def judged(c, got, right):
    wrong, distance, sure = c.hf.compare(got, right)
    if wrong:
        raise AssertionError(wrong)
    return f"relative L2 {distance:.1e}, {sure} of {c.n_ids} sure"


def logits(c, path):
    """All tokens in one step, then one at a time, against the mathematics."""
    name = path.stem
    right = reference(c, path, c.tmp / f"{name}.ref")
    said = []
    for how, args in (("prefill", []), ("decode", ["--decode"])):
        out = c.tmp / f"{name}.{how}"
        c.run([c.gpu_logits, path, ids_file(c), out, "--gpus", "1", "--kv-type", "f16", *args], 120)
        said.append(f"{how}: {judged(c, read(c, out), right)}")
    return "; ".join(said)


def deterministic(c, path):
    outs = []
    for name, args in (("whole", []), ("chunk7", ["--chunk", "7"]), ("one", ["--decode"])):
        outs.append(c.tmp / f"{path.stem}.det.{name}")
        c.run([c.gpu_logits, path, ids_file(c), outs[-1], "--gpus", "1", "--kv-type", "f16", "--deterministic", *args], 120)
    data = [o.read_bytes() for o in outs]
    if len(set(data)) != 1:
        raise AssertionError("chunks of 7, single tokens and all at once differ in bits")
    return "chunks of 7, single tokens and all at once: the same bits"


def against_transformers(c, paths):
    if not c.a.torch:
        raise Skip("no torch and transformers here")
    files = []
    for p in paths:
        out = c.tmp / f"{p.stem}.prefill"
        if out.exists(): # else its own check has said why
            files += [p, ids_file(c), out]
    if not files:
        raise Skip("no logits to compare")
    rc, out = c.run([c.a.torch, HERE / "against_transformers.py", "--device", "cpu" if c.a.emulated else "cuda:0", *files], 200, check=False, PYTHONPATH=python_path(c),
                    LD_LIBRARY_PATH=os.environ.get("LD_LIBRARY_PATH", ""))
    lines = re.findall(r"^(ok|FAILED) (.*)$", out, re.M)
    for state, text in lines:
        c.row("PASS" if state == "ok" else "FAIL", "transformers", text)
    if len(lines) * 3 != len(files):
        raise RuntimeError(f"exit code {rc}: {last(out, 5)}")
    return f"{len(lines)} models compared"


def python_path(c):
    return ":".join(filter(None, [str(c.a.python_extra or ""), os.environ.get("PYTHONPATH")]))


# --- groups on one GPU

def nccl_group(c, path, tp, pp):
    """A process a rank, each its own host for NCCL (worker/comm/comm_nccl.h); half of the tokens at once, the others one by one."""
    if not (c.a.emulated or c.a.nccl):
        raise Skip("no libnccl.so.2 on this machine")
    right = reference(c, path, c.tmp / f"group-{tp}-{pp}.ref")
    with tempfile.TemporaryDirectory(dir=c.tmp) as d:
        out = Path(d) / "logits"
        def one(rank):
            c.run([c.rank, path, ids_file(c), out, tp, pp, rank, d], 110, **NCCL_ENV, NCCL_HOSTID=f"rank{rank}")
        with ThreadPoolExecutor(tp * pp) as pool:
            errors = [j.exception() for j in [pool.submit(one, r) for r in range(tp * pp)]]
        if any(errors):
            raise RuntimeError("; ".join(f"rank {i}: {e}" for i, e in enumerate(errors) if e))
        return judged(c, read(c, out), right)


# --- serving and speed

class Server:
    def __init__(self, c, model, *args, limit=120):
        self.c, self.log = c, c.tmp / f"serve-{model.stem}.log"
        run = c.tmp / f"run-{time.monotonic_ns()}"
        env = {**c.env, "XDG_STATE_HOME": str(run / "state"), "RACKLM_RUNTIME_DIR": str(run / "run"), "RACKLM_STATE_DIR": str(run / "state")}
        if c.a.emulated: # an emulated step may take seconds, in which nobody gives a sign of life
            args = (*args, "--heartbeat-timeout-ms", "60000", "--step-timeout-ms", "120000")
        with open(self.log, "wb") as log:
            self.start = time.monotonic()
            self.p = subprocess.Popen([str(x) for x in [c.bin / "racklm", "serve", model, "--port", "0", "--log-level", "info", "--backend", "cuda", *args]], env=env, cwd=TOP,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True)
        timer = threading.Timer(max(1, min(limit, c.left())), lambda: os.killpg(self.p.pid, signal.SIGKILL))
        timer.start()
        line = self.p.stdout.readline()
        timer.cancel()
        self.ready_s = time.monotonic() - self.start
        m = re.search(r" at (http://[\d.]+:\d+)", line)
        if not m:
            self.stop()
            raise RuntimeError(f"racklm serve did not come up: {last(self.log.read_text(errors='replace'), 4)}")
        self.url = m[1]

    def load_s(self):
        """From the worker's start to its being ready, by the log."""
        import datetime
        times = {what: re.search(rf"^(\S+)Z.*\b{what}\b", self.log.read_text(errors="replace"), re.M) for what in ("worker started", "ready")}
        if not all(times.values()):
            return self.ready_s
        a, b = (datetime.datetime.fromisoformat(m[1]) for m in times.values())
        return (b - a).total_seconds()

    def bench(self, concurrency, requests, prompt, max_tokens, limit=150):
        out = self.c.run([self.c.bin / "racklm", "bench", "serve", "--url", self.url, "-c", concurrency, "-n", requests, "--prompt-tokens", prompt, "--max-tokens", max_tokens,
                          "--ignore-eos", "-o", "json"], limit)
        return json.loads(next(line for line in out.splitlines() if line.startswith("{")))

    def stop(self):
        if self.p.poll() is None:
            self.p.send_signal(signal.SIGTERM)
            try:
                self.p.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self.p.pid, signal.SIGKILL)
        self.p.wait()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.stop()


def serves(c, model):
    with Server(c, model, "--max-seqs", "8", "--ctx", "512") as s:
        at_a_time, n, n_prompt, n_tok = (2, 3, 20, 4) if c.a.short else (4, 8, 48, 16)
        r = s.bench(at_a_time, n, n_prompt, n_tok)
        if r["failed"] or r["completion_tokens"] != n * n_tok:
            raise AssertionError(f"{r}")
        return f"{n} requests, {at_a_time} at a time: {r['completion_tokens']} tokens"


CEILINGS = """
import json, time, torch
def best(fn, n):
    fn(); torch.cuda.synchronize(); t = []
    for _ in range(n):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); fn(); b.record(); torch.cuda.synchronize(); t.append(a.elapsed_time(b) / 1e3)
    return sorted(t)[len(t) // 2]
x = torch.empty(2 << 30, dtype=torch.uint8, device="cuda"); y = torch.empty_like(x)
copy = 2 * x.numel() / best(lambda: y.copy_(x), 20)
del x, y
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16); b = torch.randn_like(a)
gemm = 2 * 8192**3 / best(lambda: torch.mm(a, b), 20)
print(json.dumps({"device": torch.cuda.get_device_name(), "copy": copy, "gemm": gemm}))
"""

# One token of a Llama-3-8B shape with a static cache, captured in a graph, replayed: what a careful user of transformers gets.
TRANSFORMERS_DECODE = """
import json, torch
from transformers import LlamaConfig, LlamaForCausalLM, StaticCache
torch.set_default_dtype(torch.bfloat16)
cfg = LlamaConfig(hidden_size=4096, intermediate_size=14336, num_hidden_layers=LAYERS, num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
                  max_position_embeddings=8192, attn_implementation="sdpa")
with torch.device("cuda"), torch.inference_mode():
    torch.nn.init.normal_ = torch.nn.init.kaiming_uniform_ = lambda t, *a, **k: t
    model = LlamaForCausalLM(cfg).eval()
    for p in model.parameters():
        p.uniform_(-0.02, 0.02)
    try:
        cache = StaticCache(config=cfg, max_cache_len=2048)
    except TypeError:
        cache = StaticCache(config=cfg, max_batch_size=1, max_cache_len=2048, device="cuda", dtype=torch.bfloat16)
    ids = torch.randint(0, 128256, (1, 1024))
    model(ids, past_key_values=cache, cache_position=torch.arange(1024), use_cache=True)
    tok, pos = torch.zeros((1, 1), dtype=torch.long), torch.tensor([1024])
    def step():
        out = model(tok, past_key_values=cache, cache_position=pos, position_ids=pos[None], use_cache=True).logits[:, -1]
        tok.copy_(out.argmax(-1, keepdim=True))
        pos.add_(1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(8):
        graph.replay()
    torch.cuda.synchronize()
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    a.record()
    for _ in range(128):
        graph.replay()
    b.record(); torch.cuda.synchronize()
    print(json.dumps({"step_s": a.elapsed_time(b) / 1e3 / 128}))
"""


class Shape8B:
    """Llama-3-8B as tests/bench/mkmodel makes it."""
    layers, dim, heads, kv_heads, head_dim, ffn, vocab = 32, 4096, 32, 8, 128, 14336, 128256
    matrices = layers * (2 * dim * dim + 2 * dim * kv_heads * head_dim + 3 * dim * ffn) + vocab * dim # a token is multiplied with; the head included

    def kv_bytes(self, positions):
        return 2 * 2 * positions * self.layers * self.kv_heads * self.head_dim # K and V in f16

    def prefill_flops(self, n):
        """Causal attention; the head for the last token only."""
        return 2 * n * (self.matrices - self.vocab * self.dim) + 2 * self.vocab * self.dim + 2 * n * n * self.heads * self.head_dim * self.layers


class Speed:
    """The table of the issue. What cannot be measured is said to be not measured."""
    ROWS = {"decode1-BF16": ("decode, batch 1, Llama-3-8B shape, bf16, 1k context", 0.85), "decode1-Q8_0": ("the same, Q8_0", 0.80), "decode1-Q4_K": ("the same, Q4_K", 0.70),
            "decode64": ("decode, batch 64, 1k context each, bf16", 0.70), "prefill": ("prefill, 4k prompt, bf16", 0.65),
            "host": ("host work between two decode steps of a batch of 64", None), "transformers": ("against transformers (static cache, CUDA graph), batch 1 decode", 1.5),
            "load": ("load of a 16 GB model from page cache", 4.0)}

    def __init__(self, c, made):
        self.c, self.made, self.said, self.ceiling, self.steps, self.shape = c, made, set(), None, {}, Shape8B()

    def say(self, key, ok, text):
        self.said.add(key)
        name = self.ROWS[key][0]
        self.c.table.append((name, text if ok is None else ("PASS " if ok else "BELOW ") + text))
        if ok is None:
            self.c.row("SKIP", "speed: " + name, "not measured: " + text)
        else:
            self.c.row("PASS" if ok else "FAIL", "speed: " + name, ("" if ok else "BELOW ") + text)

    def guard(self, keys, fn, *args):
        try:
            fn(*args)
        except Exception as e: # noqa: BLE001
            for k in keys:
                if k not in self.said:
                    self.say(k, None, f"{type(e).__name__}: {e}")

    def bytes_of(self, kind):
        """What a token reads of the file: all but an untied embedding."""
        path = self.made[kind]
        return path.stat().st_size * self.shape.matrices / (self.shape.matrices + self.shape.vocab * self.shape.dim)

    def decode1(self, s, kind):
        r = s.bench(1, 3, 1024, 128)
        step = r["itl_ms"]["p50"] / 1e3
        self.steps[kind] = step
        if not self.ceiling:
            raise Skip(f"no ceiling measured; a step took {step * 1e3:.3f} ms")
        rate = (self.bytes_of(kind) + self.shape.kv_bytes(1024 + 64)) / step
        share = rate / self.ceiling["copy"]
        self.say(f"decode1-{kind}", share >= self.ROWS[f"decode1-{kind}"][1], f"{share:.1%} of copy bandwidth ({rate / 1e9:.0f} of {self.ceiling['copy'] / 1e9:.0f} GB/s; {1 / step:.1f} tokens/s)")

    def decode64(self, s):
        r = s.bench(64, 64, 1024, 256)
        step = r["itl_ms"]["p50"] / 1e3
        if not self.ceiling:
            raise Skip(f"no ceiling measured; a step took {step * 1e3:.3f} ms")
        best = max((self.bytes_of("BF16") + 64 * self.shape.kv_bytes(1024 + 128)) / self.ceiling["copy"], 2 * 64 * self.shape.matrices / self.ceiling["gemm"])
        self.say("decode64", best / step >= 0.70, f"{best / step:.1%} of the roofline ({step * 1e3:.2f} ms a step, {best * 1e3:.2f} at best; {64 / step:.0f} tokens/s)")

    def prefill(self, s):
        r = s.bench(1, 5, 4096, 2)
        t = r["ttft_ms"]["p50"] / 1e3
        if not self.ceiling:
            raise Skip(f"no ceiling measured; the first token took {t * 1e3:.1f} ms")
        rate = self.shape.prefill_flops(4096) / t
        self.say("prefill", rate >= 0.65 * self.ceiling["gemm"], f"{rate / self.ceiling['gemm']:.1%} of the GEMM rate ({rate / 1e12:.0f} of {self.ceiling['gemm'] / 1e12:.0f} TFLOP/s; "
                 f"{4096 / t:.0f} tokens/s)")

    def of_model(self, kind):
        keys = [f"decode1-{kind}"] + (["load", "decode64", "prefill"] if kind == "BF16" else [])

        def all_of():
            if kind not in self.made:
                raise Skip("the model was not made in time")
            subprocess.run(["cat", self.made[kind]], stdout=subprocess.DEVNULL, check=True) # into the page cache
            with Server(self.c, self.made[kind], "--ctx", "5120", "--max-seqs", "64", "--prefill-chunk", "4096", *self.c.a.serve_args) as s:
                if kind == "BF16":
                    size = self.made[kind].stat().st_size / 1e9
                    self.say("load", s.load_s() * 16 / size < 4, f"{s.load_s():.2f} s for {size:.1f} GB from the worker's start to ready")
                s.bench(2, 2, 64, 8) # warm
                self.guard([f"decode1-{kind}"], self.decode1, s, kind)
                if kind == "BF16":
                    self.guard(["prefill"], self.prefill, s)
                    self.guard(["decode64"], self.decode64, s)
        self.guard(keys, all_of)

    def run(self):
        def ceilings():
            out = self.c.run([self.c.a.torch, "-c", CEILINGS], 60, LD_LIBRARY_PATH=os.environ.get("LD_LIBRARY_PATH", ""))
            self.ceiling = json.loads(out.strip().splitlines()[-1])
            print(f"ceilings of {self.ceiling['device']} in this run: copy {self.ceiling['copy'] / 1e9:.0f} GB/s, 8192^3 bf16 GEMM {self.ceiling['gemm'] / 1e12:.0f} TFLOP/s")

        def peer():
            if "BF16" not in self.steps:
                raise Skip("our own step was not measured")
            out = self.c.run([self.c.a.torch, "-c", TRANSFORMERS_DECODE.replace("LAYERS", str(self.shape.layers))], 100, LD_LIBRARY_PATH=os.environ.get("LD_LIBRARY_PATH", ""))
            theirs = json.loads(out.strip().splitlines()[-1])["step_s"]
            self.say("transformers", theirs / self.steps["BF16"] >= 1.5, f"{theirs / self.steps['BF16']:.2f}x ({theirs * 1e3:.2f} ms against {self.steps['BF16'] * 1e3:.2f} ms a token)")
        if self.c.a.torch:
            self.guard([], ceilings)
        for kind in ("BF16", "Q8_0", "Q4_K"):
            self.of_model(kind)
        if self.c.a.torch:
            self.guard(["transformers"], peer)
        else:
            self.say("transformers", None, "no torch and transformers here")
        self.say("host", None, "the worker has no clock of its own between steps; see its trace")


def make_big(c, made):
    """The models of the speed table, while correctness is checked."""
    for kind in ("BF16", "Q8_0", "Q4_K"):
        path = c.tmp / f"llama-3-8b-{kind}.gguf"
        try:
            c.run([c.bin / "mkmodel", "llama-3-8b", kind, path, "--threads", max(2, (os.cpu_count() or 4) // 3)], 200)
            made[kind] = path
        except Exception as e: # noqa: BLE001
            print(f"mkmodel {kind}: {e}", flush=True)
            path.unlink(missing_ok=True)


def correctness(c, pool):
    short = c.a.short
    shapes, quants = list(c.models.SHAPES), [q for q in c.models.QUANTS if q not in ("BF16", "Q8_0")]
    cases = [(s, q) for s in shapes for q in ("BF16", "Q8_0")] + [("llama", q) for q in quants]
    if short:
        cases = [("llama", "Q8_0"), ("qwen3-qk-norm", "BF16"), ("llama", "Q4_K")]
    programs = [c.tests / n for n in c.a.programs]
    jobs = [pool.submit(c.check, f"kernels: {p.name}", kernel_test, c, p) for p in programs]
    paths = []
    try:
        paths = [random_model(c, *case) for case in cases]
    except Exception as e: # noqa: BLE001
        c.row("SKIP", "logits of random models", f"they cannot be made: {type(e).__name__}: {e}")
    first = [pool.submit(c.check, f"logits: {p.stem}", logits, c, p) for p in [DEMO, *paths]]
    if paths:
        jobs.append(pool.submit(c.check, f"deterministic: {paths[0].stem}", deterministic, c, paths[0]))
        for tp, pp in ((2, 1),) if short else ((2, 1), (4, 1), (1, 2), (2, 2)):
            jobs.append(pool.submit(c.check, f"group on one GPU: tp {tp}, pp {pp}", nccl_group, c, paths[0], tp, pp))
    jobs.append(pool.submit(c.check, "serve: the demo model", serves, c, DEMO))
    if not short:
        jobs += [pool.submit(c.check, f"{tool}: {p.name}", sanitizer, c, p, tool) for tool in ("memcheck", "racecheck", "synccheck") for p in programs]
    for j in first:
        j.result()
    c.check("transformers", against_transformers, c, paths)
    for j in jobs:
        j.result()


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--bin", type=Path, required=True, help="racklm, racklm-coordinator, racklm-worker, mkmodel")
    p.add_argument("--tests", type=Path, required=True, help="test programs and racklm-logits")
    p.add_argument("--libs", action="append", default=[], help="folders for LD_LIBRARY_PATH of our programs")
    p.add_argument("--programs", type=lambda s: s.split(), default=[], help="names of kernel tests")
    p.add_argument("--torch", help="a Python that has torch and transformers")
    p.add_argument("--nccl", help="where libnccl.so.2 was found")
    p.add_argument("--sanitizer", help="compute-sanitizer")
    p.add_argument("--python-extra", help="folder with the package gguf")
    p.add_argument("--scratch", help="where models go (36 GB)")
    p.add_argument("--minutes", type=float, default=9)
    p.add_argument("--jobs", type=int, default=max(2, (os.cpu_count() or 2) // 3))
    p.add_argument("--emulated", action="store_true")
    p.add_argument("--short", action="store_true")
    p.add_argument("--no-speed", action="store_true")
    p.add_argument("--serve-arg", dest="serve_args", action="append", default=[])
    return p.parse_args()


def main():
    a = arguments()
    if a.python_extra:
        sys.path.insert(0, a.python_extra)
    c = Checks(a)
    c.gpu_logits = a.tests / ("racklm-logits-emu" if a.emulated else "racklm-logits-cuda")
    c.rank = a.tests / ("racklm-rank-emu" if a.emulated else "racklm-rank")
    made = {}
    try:
        c.hf = module("against_transformers", HERE / "against_transformers.py")
        c.models = module("random_models", TOP / "tests/oracle/models.py")
        speed = not (a.emulated or a.no_speed)
        maker = threading.Thread(target=make_big, args=(c, made))
        if speed:
            c.until *= 0.6
            maker.start()
        with ThreadPoolExecutor(a.jobs) as pool:
            correctness(c, pool)
        if speed:
            maker.join()
            c.until = a.minutes * 60
            Speed(c, made).run()
        elif a.emulated:
            for name, _ in Speed.ROWS.values():
                c.row("SKIP", "speed: " + name, "not measured: emulated")
    finally:
        shutil.rmtree(c.tmp, ignore_errors=True)
    if c.table:
        print("\n| | |\n|---|---|")
        for name, text in c.table:
            print(f"| {name} | {text} |")
    n = c.counts
    print(f"{time.monotonic() - c.begin:.0f} s" + ("; failed: " + ", ".join(c.failures) if c.failures else ""))
    print(f"{n['PASS']} passed, {n['FAIL']} failed, {n['SKIP']} skipped")
    sys.exit(1 if n["FAIL"] else 0)


if __name__ == "__main__":
    main()
