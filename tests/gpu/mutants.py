#!/usr/bin/env python3
"""Shows that the emulated tests can fail: weakens one barrier, wait, bound, predicate or zero fill of the kernels at a time and runs the tests that come by it.

  mutants.py [--only FILE] [--sample N [--seed S]] [--seeds 3] [--jobs 2] [--list] [--listed] [--tests a,b] [--no-build] [--verbose]

A copy of the tree in build/mutants gets a switch at every place (mutant.h), so that one build, with the race checker (emu/races.h; it knows bounds to the byte, too)
and checked indices of arrays (registers on a GPU), holds all mutants. First each cmocka test runs alone, to know its time and which places it comes by; then each
mutant meets those tests, the quickest first, until one fails, does not end, or none is left.

Where a bound may be weaker by one and nothing is wrong (both sides are right when the two are equal, another bound stands behind it), the place is tried with the comparison
turned round, so that each bound is shown to matter. Both that and what nothing catches must be listed in mutants.txt with the reason. An error: one that is not listed, an
entry whose mutants are caught, or less than 95% of the places caught."""
import argparse
import json
import os
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]
WORK = TOP / "build/mutants"
LISTED = TOP / "tests/gpu/mutants.txt"
SHARE = 0.95
NOT_KERNELS = {"ptx.cuh", "launch.cuh"}
WHOLE = {"test_device_cuda_emu", "test_comm_nccl_emu", "test_comm_nccl_faults_emu"} # long ones, about what is around the kernels: for places where no other comes by
KINDS = ["barrier", "fence", "wait", "commit", "bound", "step", "guard", "min", "mask", "zero fill"]


@dataclass
class Mutant:
    id: int
    file: str   # under kernels/cuda
    line: int
    kind: str
    text: str   # the line as it would read


# --- the source: what is code of the device, and where it can be weakened

def blanked(text):
    """The same length, with comments, strings and preprocessor lines as spaces."""
    def spaces(m):
        return re.sub(r"[^\n]", " ", m[0])
    text = re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', spaces, text, flags=re.S)
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", spaces, text, flags=re.M)


def matching(code, at):
    """The position of what closes the bracket at `at`."""
    pairs, depth = {"(": ")", "{": "}", "[": "]"}, 0
    for i in range(at, len(code)):
        if code[i] == code[at]:
            depth += 1
        elif code[i] == pairs[code[at]]:
            depth -= 1
            if depth == 0:
                return i
    raise ValueError("unbalanced brackets")


def device_bodies(code):
    spans, done = [], 0
    for m in re.finditer(r"\b__(?:global|device)__\b", code):
        if m.start() < done:
            continue
        i = m.end()
        while i < len(code) and code[i] not in ";{":
            i = matching(code, i) + 1 if code[i] == "(" else i + 1
        if i < len(code) and code[i] == "{":
            done = matching(code, i)
            spans.append((i, done))
    return spans


def left_out(code):
    """Constant expressions and checks: nothing there is a bound of the kernel."""
    spans = []
    for m in re.finditer(r"\b(?:static_assert|ASSERT|if constexpr)\s*\(", code):
        spans.append((m.start(), matching(code, m.end() - 1)))
    for m in re.finditer(r"\bconstexpr\b", code):
        end = re.compile(r"[;{]").search(code, m.end())
        spans.append((m.start(), end.start() if end else len(code)))
    return spans


def arguments(code, at):
    """Spans of the arguments of the call whose ( stands at `at`."""
    end, spans, start, i = matching(code, at), [], at + 1, at + 1
    while i < end:
        if code[i] in "({[":
            i = matching(code, i)
        elif code[i] == ",":
            spans.append((start, i))
            start = i + 1
        i += 1
    return spans + [(start, end)]


def places(code):
    """(start, end, kind, how the span reads weakened, what is written before it, what behind it): {} is the number. A span of nothing but MIN( goes."""
    gone = "(mutant::on({}) ? (void)0 : (void)"
    for m in re.finditer(r"\b(__syncthreads|__syncwarp|__threadfence(?:_block|_system)?|ptx_\w*(?:fence|barrier|bar_sync)\w*)(?:<[^<>()]*>)?\s*\(", code):
        yield m.start(), matching(code, m.end() - 1) + 1, "fence" if "fence" in m[1] else "barrier", "", gone, ")"
    for m in re.finditer(r"\bptx_cp_async_wait<([^;]+?)>\s*\(\)|\bptx_cp_async_wait_all\s*\(\)", code):
        weaker = f"ptx_cp_async_wait<{m[1]} + 1>()" if m[1] else "ptx_cp_async_wait<1>()"
        yield m.start(), m.end(), "wait", "", gone, ")"
        yield m.start(), m.end(), "wait", weaker, "(mutant::on({}) ? " + weaker + " : ", ")"
    for m in re.finditer(r"\bptx_\w*commit\w*\s*\(\)", code):
        yield m.start(), m.end(), "commit", "", gone, ")"
    for m in re.finditer(r"(?<= )(<=?|>=?)(?= )", code):
        op, before, after = m[1], code[:m.start()].rstrip(), code[m.end():].lstrip()
        left, right = re.search(r"([\w.\[\]]+)$", before), re.match(r"([\w.\[\]]+) \? ([\w.\[\]]+) : ([\w.\[\]]+)", after)
        if re.search(r"\b[A-Z][A-Z0-9_]*$", before):
            continue # a constant: chooses code, bounds nothing
        if left and right and {left[1], right[1]} == {right[2], right[3]}:
            continue # a maximum or minimum: no difference where both are equal
        if op == ">" and re.match(r"0; \w+ (?:/=|>>=)", after):
            yield m.start(), m.end(), "step", "> 1 +", "", " mutant::more{{{}}} >"
        else:
            name, weak = {"<": ("lt", "<="), "<=": ("le", "<= 1 +"), ">": ("gt", ">="), ">=": ("ge", ">")}[op]
            yield m.start(), m.end(), "bound", weak, "", f" mutant::{name}{{{{{{}}}}}} {op}"
    for m in re.finditer(r"(?<= )(==|!=)(?= (?:UINT32_MAX|nullptr|NULL)\b)", code):
        name, weak = ("eq", "/* never */ ==") if m[1] == "==" else ("ne", "/* always */ !=")
        yield m.start(), m.end(), "guard", weak, "", f" mutant::{name}{{{{{{}}}}}} {m[1]}"
    for m in re.finditer(r"\b(?:MIN|min)\(", code):
        yield m.start(), m.end(), "min", "MAX(", "mutant::min({}, ", None
    for m in re.finditer(r"\b__(?:shfl\w*|ballot|any|all|reduce_\w+|match_\w+)_sync(\()", code):
        s, e = arguments(code, m.start(1))[0]
        yield s, e, "mask", "~1u & (" + code[s:e] + ")", "mutant::mask({}, ", ")"
    for m in re.finditer(r"\bptx_cp_async_(\d+)(\()", code):
        args = arguments(code, m.start(2))
        if len(args) == 3 and code[slice(*args[2])].strip() != m[1]:
            s, e = args[2]
            yield s, e, "zero fill", " " + m[1], " mutant::full({}, ", f", {m[1]})"


def mutate(file, text, first_id):
    """The text with its switches, and the mutants there."""
    code = blanked(text)
    inside, outside = device_bodies(code), left_out(code)
    inserts, cuts, mutants = [], {}, []
    # Wider ones first, so that they end outside of what is in them.
    for start, end, kind, weak, before, behind in sorted(places(code), key=lambda p: (p[0], -p[1])):
        if not any(a < start < b for a, b in inside) or any(a <= start < b for a, b in outside):
            continue
        line_start, line_end = text.rfind("\n", 0, start) + 1, text.find("\n", start)
        shown = " ".join((text[line_start:start] + weak + text[end:max(end, line_end)]).split())
        shown = re.sub(r"\s*/\*(?! never| always).*", "", shown)
        if shown in ("", ";"): # what is gone is told by what comes next
            shown = "(gone) " + next((" ".join(s.split()) for s in code[max(end, line_end):].split("\n") if s.strip()), "")
        m = Mutant(first_id + len(mutants), file, text.count("\n", 0, start) + 1, kind, shown)
        mutants.append(m)
        if behind is None:
            cuts[start] = end
            behind = ""
        inserts.append((start, 1, len(inserts), before.format(m.id)))
        inserts.append((end, 0, -len(inserts), behind.format(m.id)))
    out, at = [], 0
    for where, _, _, new in sorted(inserts):
        out.append(text[at:where])
        out.append(new)
        at = cuts.get(where, where) if new.startswith("mutant::min") else where
    return "".join(out) + text[at:], mutants


# --- the copy and its build

def put(path, data):
    if not path.exists() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def copy_tree():
    """The tree as it is, with switches in the kernels. Files that did not change keep their time, so that ninja builds what is new only."""
    names = subprocess.run(["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=TOP, capture_output=True, check=True).stdout.decode().split("\0")
    here, mutants = set(), []
    for name in sorted(filter(None, names)):
        source = TOP / name
        if not source.is_file() or name.startswith(("tests/fuzz/", "tests/data/")) and not name.endswith("CMakeLists.txt"):
            continue
        data = source.read_bytes()
        if source.parent == TOP / "kernels/cuda" and source.suffix in (".cu", ".cuh") and source.name not in NOT_KERNELS:
            text, found = mutate(source.name, data.decode(), len(mutants) + 1)
            mutants += found
            head = '#include "tests/gpu/mutant.h"\n#line 1\n' if source.suffix == ".cu" else ""
            data = (head + text).encode()
        put(WORK / "src" / name, data)
        here.add(WORK / "src" / name)
    for path in (WORK / "src").rglob("*"):
        if path.is_file() and path not in here:
            path.unlink()
    (WORK / "list.json").write_text(json.dumps([vars(m) for m in mutants]))
    return mutants


def build(jobs, targets):
    out = WORK / "out"
    if not (out / "build.ninja").exists():
        run_or_die(["cmake", "-S", WORK / "src", "-B", out, "-G", "Ninja", "-DRACKLM_CUDA=AUTO", "-DRACKLM_EMU_RACES=ON", "-DCMAKE_CXX_FLAGS=-w", "-DCMAKE_C_FLAGS=-w",
                    "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -g1", "-DCMAKE_C_FLAGS_RELEASE=-O1 -g1"])
    run_or_die(["ninja", "-C", out, f"-j{jobs}", *targets])
    return out


def run_or_die(command):
    r = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if r.returncode:
        print(r.stdout[-6000:])
        sys.exit(f"mutants: {command[0]} failed")


# --- running

@dataclass
class Test:
    program: Path
    name: str
    seconds: float
    seen: bytes


def environment(**more):
    env = dict(os.environ, UCX_MEM_EVENTS="n", UCX_MEM_MALLOC_HOOKS="n", UCX_MEM_MMAP_HOOK_MODE="none", RACKLM_EMU_SPIN_S="20")
    env.update({k: str(v) for k, v in more.items()})
    return env


def run(test, seed, **env):
    """(passed, output). The limit is one of CPU time, for the machine may be busy; what sleeps for ever is ended much later."""
    cpu = int(5 + 6 * test.seconds) if test.seen else 3600
    r = subprocess.Popen([test.program], cwd=TOP, env=environment(RACKLM_EMU_SEED=seed, RACKLM_MUTANT_TEST=test.name, **env), stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                         preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1)))
    try:
        out, _ = r.communicate(timeout=60 + 20 * cpu)
    except subprocess.TimeoutExpired:
        os.killpg(r.pid, 9)
        r.communicate()
        return False, b"did not end"
    return r.returncode == 0, b"did not end" if r.returncode in (-signal.SIGXCPU, -signal.SIGKILL) else out


def names_of(program):
    """Of the cmocka tests of a program, by its source, or else by what a run prints."""
    source = WORK / "src/tests/gpu" / (program.name.removesuffix("_emu") + ".c")
    names = re.findall(r"\bcmocka_unit_test(?:_\w+)?\(\s*(\w+)", source.read_text()) if source.exists() else []
    if not names:
        r = subprocess.run([program], cwd=TOP, env=environment(), capture_output=True, timeout=1800)
        names = re.findall(r"\[ RUN      \] (\w+)", (r.stdout + r.stderr).decode(errors="replace"))
    return list(dict.fromkeys(names))


def baseline(test):
    """The test alone, without a mutant: its time, and which places it comes by (seen stays empty when it runs no kernel of kernels/cuda). None when it fails."""
    seen = WORK / f"seen.{test.program.name}.{test.name}"
    seen.unlink(missing_ok=True)
    ok, out = run(test, 1, RACKLM_MUTANT_SEEN=seen)
    if ok and not seen.exists():
        return test
    if not ok:
        print(f"{test.program.name} {test.name} FAILS WITHOUT A MUTANT\n" + out.decode(errors="replace")[-2000:])
        return None
    data = seen.read_bytes()
    (test.seconds,), test.seen = struct.unpack("d", data[:8]), data[8:]
    seen.unlink()
    return test


def first_to_fail(tests, seeds, **env):
    """"which test, after how long", or None"""
    start = time.monotonic()
    for seed in range(1, seeds + 1):
        for t in tests:
            ok, out = run(t, seed, **env)
            if not ok:
                return f"{t.program.name} {t.name}, seed {seed}{', did not end' if out == b'did not end' else ''}, {time.monotonic() - start:.1f} s"
    return None


def try_mutant(m, tests, seeds, weakened):
    """("caught", "turned" or "not", by what). weakened: False: that nothing shows it is known, only the comparison turned round is tried."""
    mine = sorted((t for t in tests if t.seen[m.id]), key=lambda t: t.seconds)
    mine = [t for t in mine if t.program.name not in WHOLE] or mine
    if not mine:
        return "not", "no test comes by"
    failed = first_to_fail(mine, seeds, RACKLM_MUTANT=m.id) if weakened else None
    if failed:
        return "caught", failed
    failed = first_to_fail(mine, seeds, RACKLM_MUTANT=m.id, RACKLM_MUTANT_TURNED=1) if m.kind == "bound" else None
    return ("turned", failed) if failed else ("not", f"{len(mine)} tests x {seeds} seeds pass" if weakened else "as listed")


# --- what is listed: file | kind | text | reason

def read_listed():
    entries = {}
    if LISTED.exists():
        for n, line in enumerate(LISTED.read_text().splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            parts = [p.strip() for p in re.split(r" \| ", line)]
            if len(parts) < 4 or parts[1] not in KINDS:
                sys.exit(f"mutants.txt:{n}: file | kind | text | reason")
            entries[parts[0], parts[1], " | ".join(parts[2:-1])] = parts[-1]
    return entries


def table(title, rows):
    print(f"{title:24} {'places':>8} {'weakened':>9} {'turned':>7} {'not caught':>11}")
    for name, c in rows:
        print(f"{name:24} {c['all']:8} {c['caught']:9} {c['turned']:7} {c['not']:11}")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--jobs", type=int, default=2)
    p.add_argument("--only", action="append", default=[], help="a file of kernels/cuda")
    p.add_argument("--kind", action="append", default=[], choices=KINDS)
    p.add_argument("--sample", type=int)
    p.add_argument("--seed", type=int, default=time.localtime().tm_yday)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--list", action="store_true")
    p.add_argument("--tests", help="names of test programs; default: all with the label gpu")
    p.add_argument("--no-build", action="store_true", help="the programs as they are in build/mutants")
    p.add_argument("--listed", action="store_true", help="weakens the listed ones, too, which takes every test they come by: is one caught by now?")
    p.add_argument("--verbose", action="store_true")
    a = p.parse_args()

    all_mutants = [Mutant(**m) for m in json.loads((WORK / "list.json").read_text())] if a.no_build else copy_tree()
    mutants = [m for m in all_mutants if (not a.only or m.file in a.only) and (not a.kind or m.kind in a.kind)]
    if a.list:
        for m in mutants:
            print(f"{m.file}:{m.line} {m.kind}: {m.text}")
        for kind, n in Counter(m.kind for m in mutants).items():
            print(f"{kind}: {n}")
        return
    targets = a.tests.split(",") if a.tests else ["tests_gpu"]
    start = time.monotonic()
    out = WORK / "out" if a.no_build else build(a.jobs, targets)
    programs = sorted(out / "tests" / t for t in targets) if a.tests else sorted((out / "tests").glob("test_*_emu"))
    print(f"built in {time.monotonic() - start:.0f} s")
    start = time.monotonic()
    with ThreadPoolExecutor(a.jobs) as pool:
        tried = list(pool.map(baseline, [Test(p, name, 0, b"") for p in programs for name in names_of(p)]))
    tests, n_broken = [t for t in tried if t and any(t.seen)], tried.count(None)
    print(f"{len(tests)} tests of {len(programs)} programs come by kernels, {sum(t.seconds for t in tests):.0f} s of CPU; {len(mutants)} mutants", flush=True)
    if a.sample and a.sample < len(mutants):
        mutants = random.Random(a.seed).sample(mutants, a.sample)
        print(f"{a.sample} of them, --seed {a.seed}")

    start, listed, kept, unlisted = time.monotonic(), read_listed(), set(), 0
    by_kind, by_file, total = defaultdict(Counter), defaultdict(Counter), Counter()
    key = lambda m: (m.file, m.kind, m.text)
    with ThreadPoolExecutor(a.jobs) as pool:
        for m, (what, why) in zip(mutants, pool.map(lambda m: try_mutant(m, tests, a.seeds, a.listed or key(m) not in listed), mutants)):
            for c in (by_kind[m.kind], by_file[m.file], total):
                c[what] += 1
                c["all"] += 1
            if what != "caught":
                kept.add(key(m))
                unlisted += key(m) not in listed
            if a.verbose or (what != "caught" and key(m) not in listed):
                print(f"{ {'caught': 'caught  ', 'turned': 'TURNED  ', 'not': 'SURVIVED'}[what]} {m.file}:{m.line} {m.kind}: {m.text}   ({why})", flush=True)
    # An entry is stale when its mutants were tried and caught, or there are none any more.
    stale = [k for k in listed if k not in set(map(key, all_mutants)) or (k in set(map(key, mutants)) and k not in kept)]
    table("kind", [(k, by_kind[k]) for k in KINDS if k in by_kind])
    table("file", sorted(by_file.items()))
    for k in stale:
        print(f"mutants.txt: stale: {' | '.join(k)}")
    share = (total["caught"] + total["turned"]) / total["all"] if mutants else 1
    print(f"{share:.1%} of {total['all']} places caught: {total['caught']} weakened, {total['turned']} turned round only; {total['not']} not; {unlisted} of those not in mutants.txt; "
          f"{time.monotonic() - start:.0f} s")
    failed = (share < SHARE and not (a.sample or a.only or a.kind)) or unlisted or stale or n_broken
    print(f"{0 if failed else 1} passed, {1 if failed else 0} failed, 0 skipped")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
