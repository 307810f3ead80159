"""The work of peer.sh: one model after the other through racklm and the peers that are there; ratios at the end.

Rows: dense (prompt and generation, 1B shape, each type), batch (8 and 16 sequences together, 0.5B), served (8 streams over HTTP, 0.5B), depth (generation at 8k, q8_0 KV), start (to the
first token), memory (Pss of all processes). Medians of --reps. A ratio is ours to theirs: of speeds higher is better, of times (ms) lower."""
import argparse
import contextlib
import ctypes
import json
import mmap
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROWS = ["dense", "batch", "served", "depth", "start", "memory"]
DENSE = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K"]


class Bench:
    def __init__(self, a):
        self.a, self.build, self.models = a, Path(a.build), Path(a.models)
        self.home = Path(tempfile.mkdtemp())
        self.env = dict(os.environ, RACKLM_STATE_DIR=str(self.home / "state"), RACKLM_RUNTIME_DIR=str(self.home / "run"))
        self.llama = {n: shutil.which(n) for n in ("llama-bench", "llama-batched-bench", "llama-server")}
        self.openvino = subprocess.run([sys.executable, "-c", "import openvino_genai"], capture_output=True).returncode == 0
        self.rows = []

    def model(self, shape, quant):
        path = self.models / f"{shape}-{quant}.gguf"
        if not path.exists():
            new = path.with_suffix(".new")
            subprocess.run([self.build / "bin/mkmodel", shape, quant, new], check=True, stdout=subprocess.DEVNULL)
            new.rename(path)
        path.read_bytes()  # in the page cache for everybody
        return path

    def row(self, what, ours, peer, value, unit, share=None):
        """share: of the machine's ceiling, as text; peer: its name, or None"""
        self.rows.append((what, ours, peer, value, unit, share))
        ratio = f"{ours / value:.2f}" if ours and value else "not measured"
        print(f"  {what}: racklm {ours:.1f} {unit}{f' ({share})' if share else ''}; {peer or 'no peer'} {f'{value:.1f}' if value else '-'}; ratio {ratio}", flush=True)

    # --- racklm

    def racklm(self, *args):
        r = subprocess.run([self.build / "bin/racklm", *map(str, args), "--threads", str(self.a.threads)], env=self.env, capture_output=True, text=True)
        if r.returncode:
            sys.exit(f"racklm {' '.join(map(str, args))}: {r.stderr}")
        return r.stdout

    def bench_model(self, path, *args):
        d = json.loads(self.racklm("bench", "model", path, "-r", self.a.reps, "-o", "json", *args))
        print(f"  racklm: read {d['read_gbs']} GB/s, int8 {d['int8_gops']:.0f}, bf16 {d['bf16_gops']:.0f}, fp32 {d['fp32_gops']:.0f} GOP/s", flush=True)
        return {(t["test"], t["tokens"], t["sequences"], t["depth"]): t for t in d["tests"]}

    @contextlib.contextmanager
    def serve(self, path, *args):
        """(url, process)"""
        p = subprocess.Popen([self.build / "bin/racklm", "serve", path, "--port", "0", "--threads", str(self.a.threads), *map(str, args)], env=self.env,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            url = next((m[1] for m in (re.search(r" at (http\S+)", line) for line in p.stdout) if m), None)
            if not url:
                sys.exit("racklm serve did not start")
            yield url, p
        finally:
            p.terminate()
            p.wait()

    @contextlib.contextmanager
    def llama_server(self, path, *args):
        """url, or None where it does not start (mainline llama.cpp knows no -rtr)"""
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        p = subprocess.Popen([self.llama["llama-server"], "-m", path, "-c", "8192", "-np", "8", "-t", str(self.a.threads), "--host", "127.0.0.1", "--port", str(port), *args], cwd=self.home,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            yield url if self.until_answers(url + "/health", p) else None
        finally:
            p.kill()
            p.wait()

    def load(self, url, n, streams, words):
        """bench serve: the same client for racklm and llama-server."""
        r = subprocess.run([self.build / "bin/racklm", "bench", "serve", "--url", url, "--concurrency", str(streams), "--requests", str(n), "--prompt-tokens", str(words), "--max-tokens", "128",
                            "--ignore-eos", "-o", "json"], env=self.env, capture_output=True, text=True)
        if r.returncode:
            sys.exit(f"bench serve {url}: {r.stderr}")
        return json.loads(r.stdout)

    def words_for(self, url, n_tokens):
        """So many words make a prompt of about n_tokens: each is several tokens of a random tokenizer."""
        few, many = (self.load(url, 1, 1, words)["prompt_tokens"] for words in (8, 40))
        each = (many - few) / 32
        return max(1, round((n_tokens - (few - 8 * each)) / each))

    # --- peers

    def llama_bench(self, path, *args):
        """Tokens/s by (prompt, generated), the better of its modes."""
        best = {}
        if not self.llama["llama-bench"]:
            return best
        for mode in ([], ["-rtr", "1"]): # weights as they are in the file, and repacked (ik_llama.cpp)
            r = subprocess.run([self.llama["llama-bench"], "-m", path, "-t", str(self.a.threads), "-r", str(self.a.reps), "-o", "json", *map(str, args), *mode], capture_output=True, text=True)
            try:
                tests = json.loads(r.stdout)
            except ValueError:
                continue
            for t in tests:
                key, speed = (t["n_prompt"], t["n_gen"]), statistics.median(t["samples_ts"])
                if speed > best.get(key, (0,))[0]:
                    best[key] = speed, " ".join(mode)
        return best

    def llama_batched(self, path, n):
        if not self.llama["llama-batched-bench"]:
            return None
        best = 0
        for mode in ([], ["-rtr"]):
            r = subprocess.run([self.llama["llama-batched-bench"], "-m", path, "-c", "4096", "-npp", "16", "-ntg", "64", "-npl", str(n), "-t", str(self.a.threads), *mode], cwd=self.home, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
            for line in r.stdout.splitlines():
                c = [x.strip() for x in line.split("|")]
                if len(c) > 8 and c[3] == str(n):
                    best = max(best, float(c[8]))
        return best or None

    def openvino_run(self, path, *args):
        if not self.openvino:
            return None
        r = subprocess.run([sys.executable, HERE / "peer_openvino.py", str(path), str(self.a.threads), *map(str, args)], capture_output=True, text=True)
        if r.returncode:
            print(f"  openvino: {r.stderr.strip().splitlines()[-1] if r.stderr.strip() else 'failed'}")
            return None
        return json.loads(r.stdout.splitlines()[-1])

    # --- rows

    def dense(self):
        for quant in self.a.types.split(","):
            path = self.model("llama-3.2-1b", quant)
            print(f"1B shape {quant}, {path.stat().st_size / 1e9:.2f} GB", flush=True)
            ours = self.bench_model(path, "-p", 512, "-n", 64, "--ctx", 2048)
            prompt, gen = ours["prompt", 512, 1, 0], ours["generate", 64, 1, 0]
            ik = self.llama_bench(path, "-p", 512, "-n", 64)
            ov = self.openvino_run(path, "dense", 512, 64) or {}
            for name, test, key, share in (("prompt 512", prompt, (512, 0), f"{prompt['dot_share']:.0%} of dot"), ("generate 64", gen, (0, 64), f"{gen['read_share']:.0%} of read")):
                speed, mode = ik.get(key, (None, ""))
                peers = {"openvino": ov.get(name), f"llama-bench {mode}".strip(): speed}
                for peer, value in peers.items():
                    self.row(f"1B {quant} {name}", test["tokens_per_s"], peer, value, "tokens/s", share)

    def batch(self):
        path = self.model("qwen2.5-0.5b", "Q8_0")
        print("0.5B shape Q8_0, sequences together", flush=True)
        ours = self.bench_model(path, "-p", 0, "-n", 64, "-c", "1,8,16", "--ctx", 1024, "--max-seqs", 16)
        for n in (1, 8, 16):
            t = ours["generate", 64, n, 0]
            ov = self.openvino_run(path, "batch", n, 64) or {}
            self.row(f"0.5B Q8_0, {n} together", t["tokens_per_s"], "llama-batched-bench", self.llama_batched(path, n), "tokens/s", f"{t['read_share']:.0%} of read")
            self.row(f"0.5B Q8_0, {n} together", t["tokens_per_s"], "openvino", ov.get("tokens_per_s"), "tokens/s")

    def served(self):
        path = self.model("qwen2.5-0.5b", "Q8_0")
        print("0.5B shape Q8_0, 8 streams over HTTP, 128 in, 128 out", flush=True)
        with self.serve(path, "--ctx", 1024, "--max-seqs", 8) as (url, _):
            words = self.words_for(url, 128)
            ours, single = self.load(url, 24, 8, words), self.load(url, 2, 1, words)
        theirs = None
        for mode in ([], ["-rtr"]) if self.llama["llama-server"] else ():
            with self.llama_server(path, *mode) as url:
                got = url and self.load(url, 24, 8, words)
            if got and (not theirs or got["tokens_per_s"] > theirs["tokens_per_s"]):
                theirs = got
        ov = self.openvino_run(path, "served", 8, round(ours["prompt_tokens"] / 24), 128) or {}
        self.row("served, 8 streams", ours["tokens_per_s"], "llama-server", theirs and theirs["tokens_per_s"], "tokens/s")
        self.row("served, 8 streams", ours["tokens_per_s"], "openvino in process", ov.get("tokens_per_s"), "tokens/s")
        self.row("TTFT p50", ours["ttft_ms"]["p50"], "llama-server", theirs and theirs["ttft_ms"]["p50"], "ms")
        print(f"  between tokens, single stream: {single['itl_ms']['p50']:.2f} ms, {1000 / single['itl_ms']['p50']:.1f} tokens/s", flush=True)

    def until_answers(self, url, p):
        for _ in range(600):
            try:
                with urllib.request.urlopen(url, timeout=1) as r:
                    if r.status == 200:
                        return True
            except OSError:
                pass
            if p.poll() is not None:
                return False
            time.sleep(0.1)
        return False

    def depth(self):
        path = self.model("llama-3.2-1b", "Q8_0")
        print("1B shape Q8_0, generation after 8,192 tokens, q8_0 KV", flush=True)
        ours = self.bench_model(path, "-p", 0, "-n", 64, "-d", 8192, "--ctx", 8448, "--max-seqs", 1, "--kv-type", "q8_0")
        t = ours["generate", 64, 1, 8192]
        self.row("1B Q8_0, generate 64 at 8192", t["tokens_per_s"], None, None, "tokens/s", f"{t['read_share']:.0%} of read")

    def start(self):
        path = self.model("llama-3.2-1b", "Q8_0")
        print(f"start to first token, {path.stat().st_size / 1e9:.2f} GB in the page cache", flush=True)
        times = []
        for _ in range(max(3, self.a.reps)):
            t0 = time.monotonic()
            with self.serve(path, "--ctx", 2048) as (url, _):
                ready = time.monotonic() - t0
                complete(url, prompt=[5, 6, 7, 8], max_tokens=1, temperature=0)
                times.append((time.monotonic() - t0, ready))
        total, ready = statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)
        self.row("start to first token", total * 1000, None, None, "ms", f"ready after {ready * 1000:.0f} ms; the system takes {first_touch(path.stat().st_size) * 1000:.0f} ms to give so much memory")

    def memory(self):
        for quant in self.a.types.split(","):
            path = self.model("llama-3.2-1b", quant)
            with self.serve(path, "--ctx", 2048, "--max-seqs", 4) as (url, p):
                complete(url, prompt=list(range(5, 600)), max_tokens=64, ignore_eos=True)
                total = sum(pss(pid) for pid in family(p.pid))
            kv = 16 * 2 * 8 * 64 * 2 * 2048 * 4
            tensors = tensor_bytes(path)
            asked = tensors * (1.05 if quant.startswith("Q") else 1.15) + kv + 40e6
            print(f"  1B {quant}: Pss {total / 1e6:.0f} MB; tensors {tensors / 1e6:.0f} MB, KV at most {kv / 1e6:.0f} MB: asked <= {asked / 1e6:.0f} MB; "
                  f"(Pss - KV used) / tensors {(total - kv * 659 / 8192) / tensors:.3f}", flush=True)


def complete(url, **body):
    with urllib.request.urlopen(urllib.request.Request(url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})) as r:
        r.read()


def first_touch(size):
    """Seconds until two threads have touched so much new memory, in huge pages where there are some: what a start cannot do without."""
    m = mmap.mmap(-1, size + (2 << 20), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m.madvise(mmap.MADV_HUGEPAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(m))
    halves = [threading.Thread(target=ctypes.memset, args=(base + i * size // 2, 1, size // 2)) for i in range(2)]
    t0 = time.monotonic()
    for t in halves:
        t.start()
    for t in halves:
        t.join()
    return time.monotonic() - t0


def family(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [x for c in children for x in family(int(c))]


def pss(pid):
    return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)[1]) * 1024


def tensor_bytes(path):
    """File size less its header is close enough: padding is 32 bytes a tensor, the vocabulary a few MB."""
    return path.stat().st_size


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--build", required=True)
    p.add_argument("--models", required=True)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--reps", type=int, default=3)
    p.add_argument("--types", default=",".join(DENSE))
    p.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(ROWS))
    a = p.parse_args()
    if unknown := set(a.rows) - set(ROWS):
        p.error(f"no such row: {', '.join(unknown)}")
    b = Bench(a)
    print(f"peers: {', '.join(k for k, v in b.llama.items() if v) or 'no llama-*'}; {'openvino-genai' if b.openvino else 'no openvino-genai'}", flush=True)
    try:
        for name in a.rows or ROWS:
            getattr(b, name)()
    finally:
        shutil.rmtree(b.home, ignore_errors=True)
    print("\n| what | racklm | share | peer | its figure | ratio |\n|---|---|---|---|---|---|")
    for what, ours, peer, value, unit, share in b.rows:
        print(f"| {what} | {ours:.1f} {unit} | {share or ''} | {peer or ''} | {f'{value:.1f}' if value else '-'} | {f'{ours / value:.2f}' if value else 'not measured'} |")


if __name__ == "__main__":
    main()
