#!/usr/bin/env python3
"""Compiles every kernels/cuda/*.cu for the architectures given and prints what ptxas says of each kernel. Fails on a warning, on a kernel that spills or on
one whose comment does not say what is expected of it.

  ptxas.py [--archs 90a,120] [--today] [--ptx] [--jobs 2] [--only fused.cu] [--expected]

--archs: default those of RACKLM_CUDA_ARCHS (cmake/cuda.cmake); --today: one of them, another each day. --ptx: the last one's PTX too.
--expected: nothing is compiled; the expected share of the roofline of each kernel, from the comment above it ("Expected: ..."), as a markdown table."""
import argparse
import datetime
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
CUDA = TOP / "kernels/cuda"
FLAGS = ["-std=c++17", "--fmad=false", "-Werror=all-warnings", "-Xcompiler=-Wall", f"-I{TOP}"] # as kernels/cuda/CMakeLists.txt has them


def default_archs():
    text = (TOP / "cmake/cuda.cmake").read_text()
    return re.search(r'RACKLM_CUDA_ARCHS "([^"]+)"', text)[1].split(";")


def find_nvcc():
    for p in [os.environ.get("RACKLM_NVCC"), "/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc"]:
        if p and Path(p).exists():
            return p
    return "nvcc"


def compile_one(nvcc, source, arch, ptx, out):
    """(source, arch, kernels, complaints, seconds); out: a folder for what nobody needs."""
    start = time.monotonic()
    target = out / f"{source.stem}.{arch}.{'ptx' if ptx else 'cubin'}"
    code = f"compute_{arch}" if ptx else f"sm_{arch}"
    kind = ["-ptx"] if ptx else ["-cubin", "-Xptxas", "-v,-warn-spills"]
    r = subprocess.run([nvcc, *FLAGS, *kind, f"-gencode=arch=compute_{arch},code={code}", "-o", target, source], capture_output=True, text=True)
    text = r.stdout + r.stderr
    complaints = [line for line in text.splitlines() if re.search(r"\b(warning|error)\b", line, re.I)]
    if r.returncode and not complaints:
        complaints = text.splitlines()[-5:] or [f"nvcc exited with {r.returncode}"]
    return source, arch + (" ptx" if ptx else ""), [] if ptx else parse(text), complaints, time.monotonic() - start


def parse(text):
    """What -Xptxas -v prints of each entry function, [name, registers, smem, stack, spill stores, spill loads]; names still mangled."""
    kernels, now = {}, None
    for line in text.splitlines():
        if m := re.search(r"Compiling entry function '(\w+)'", line):
            now = kernels.setdefault(m[1], [m[1], 0, 0, 0, 0, 0])
        elif m := re.search(r"Function properties for (\w+)", line):
            now = kernels.get(m[1])
        elif now and (m := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)):
            now[3:] = map(int, m.groups())
        elif now and (m := re.search(r"Used (\d+) registers", line)):
            now[1] = int(m[1])
            now[2] = int(m[1]) if (m := re.search(r"(\d+) bytes smem", line)) else 0
    return list(kernels.values())


def demangle(names):
    """As short as they can be told apart by: no return type, namespace, parameters."""
    if not names:
        return []
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.splitlines()
    short = []
    for name in out:
        name = re.sub(r"\(anonymous namespace\)::|^void ", "", name)
        name = re.sub(r"\((?:unsigned )?(?:int|char|bool|long)\)|\(enum \w+\)|\((?:quant|cuda_type|kv_type|layout_kind)\)", "", name)
        depth, at = 0, len(name)
        for i, c in enumerate(name):
            depth += (c == "<") - (c == ">")
            if c == "(" and depth == 0:
                at = i
                break
        short.append(name[:at])
    return short


def comment_above(text, at):
    """The comment that ends right above position `at` (a template line may stand between)."""
    head = re.sub(r"(?:^template\s*<[^\n]*>\s*\n)?[^\n]*\Z", "", text[:at], flags=re.M).rstrip()
    if not head.endswith("*/"):
        return ""
    return re.sub(r"\s*\n\s*\*\s?", " ", head[head.rfind("/*") + 2:-2])


def expected_of(source):
    """[(kernel, what its comment expects or None)] in the order of the file."""
    text = source.read_text()
    found = []
    for m in re.finditer(r"__global__\s+void\s+(?:__launch_bounds__\((?:[^()]|\([^()]*\))*\)\s+)?(\w+)\s*\(", text):
        comment = comment_above(text, m.start())
        e = re.search(r"\bexpected:?\s+(.+?)(?:\.(?=\s|$)|;|$)", comment, re.I)
        found.append((m[1], e[1].strip() if e else None))
    return found


def expected_table(sources):
    missing = 0
    print("| file | kernel | expected share of the roofline |\n|---|---|---|")
    for s in sources:
        for kernel, text in expected_of(s):
            missing += text is None
            print(f"| `{s.name}` | `{kernel}` | {text or '**not said**'} |")
    return missing


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--archs", default=",".join(default_archs()))
    p.add_argument("--today", action="store_true")
    p.add_argument("--ptx", action="store_true")
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--only", action="append", default=[])
    p.add_argument("--expected", action="store_true")
    a = p.parse_args()
    archs = a.archs.split(",")
    last = archs[-1]
    if a.today:
        archs = [archs[datetime.date.today().toordinal() % len(archs)]]
    sources = sorted(s for s in CUDA.glob("*.cu") if not a.only or s.name in a.only)
    if not sources:
        sys.exit("ptxas: no such source")
    if a.expected:
        sys.exit(1 if expected_table(sources) else 0)

    failed, n_jobs, n_kernels, start = {}, 0, 0, time.monotonic()

    def fail(job, what):
        failed.setdefault(job, []).append(what)
    with tempfile.TemporaryDirectory() as out, ThreadPoolExecutor(a.jobs) as pool:
        jobs = [pool.submit(compile_one, find_nvcc(), s, arch, False, Path(out)) for arch in archs for s in sources]
        if a.ptx:
            jobs += [pool.submit(compile_one, find_nvcc(), s, last, True, Path(out)) for s in sources]
        print(f"{'file':24} {'arch':8} {'regs':>4} {'smem':>6} {'stack':>5} {'spills':>11}  kernel")
        for job in jobs:
            source, arch, kernels, complaints, seconds = job.result()
            n_jobs += 1
            for name, k in zip(demangle([k[0] for k in kernels]), kernels):
                n_kernels += 1
                print(f"{source.name:24} {arch:8} {k[1]:4} {k[2]:6} {k[3]:5} {k[4]:5}/{k[5]:<5}  {name}{'  SPILLS' if k[4] or k[5] else ''}")
                if k[4] or k[5]:
                    fail((source.name, arch), f"{name} spills {k[4]} bytes")
            print(f"{source.name:24} {arch:8} {seconds:.1f} s", flush=True)
            for c in complaints:
                fail((source.name, arch), c)
    for s in sources:
        for kernel, text in expected_of(s):
            if text is None:
                fail((s.name, archs[0]), f"{kernel}: its comment does not say what is expected of it")
    for (name, arch), what in failed.items():
        for w in what:
            print(f"FAILED: {name} {arch}: {w}")
    print(f"{len(sources)} files, {n_kernels} kernels, {time.monotonic() - start:.0f} s")
    print(f"{n_jobs - len(failed)} passed, {len(failed)} failed, 0 skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
