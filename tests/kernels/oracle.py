#!/usr/bin/env python3
"""The independent judge of the reference kernels: numpy in float64, weights dequantised by the PyPI package gguf.

    oracle.py KERNELS_DUMP [SEED]

Runs the helper program for ref_f32 (the mathematics), ref (the exact form, judged on the quantised activations it is given) and cpu, compares
every op, and then runs every mutant of the helper, each of which must be rejected. Exit 0: all as it should be; 77: numpy or gguf missing.
"""
import subprocess
import sys

try:
    import gguf
    import numpy as np
    from gguf import quants
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)

# Relative L2 distance that an op may have. ref_f32 sums in double: what is left is the rounding of outputs (and in dequantised weights, one
# rounding where a minimum is added). The exact form has fp32 chains and an exp of 2 ulp.
LIMIT = {"ref_f32": 3e-7, "ref": 6e-6, "cpu": 6e-6}


def records(data):
    at = 0
    while at < len(data):
        end = data.index(b"\n", at)
        head, arrays = data[at:end].decode().split("|")
        at = end + 1
        op, *pairs = head.split()
        rec = dict(p.split("=") for p in pairs)
        for spec in arrays.split():
            name, kind, count = spec.split(":")
            dt = np.dtype("<" + kind)
            rec[name] = np.frombuffer(data, dt, int(count), at)
            at += dt.itemsize * int(count)
        yield op, rec


def weights(rec):
    kind = getattr(gguf.GGMLQuantizationType, rec["type"])
    rows, cols = int(rec["rows"]), int(rec["cols"])
    raw = rec["w"]
    if rec["type"] == "F32":
        w = raw.view(np.float32)
    elif rec["type"] == "F16":
        w = raw.view(np.float16)
    else:
        w = quants.dequantize(raw.reshape(rows, -1), kind)
    return w.reshape(rows, cols).astype(np.float64)


def matmul(rec):
    w = weights(rec)
    x = rec["x"].reshape(int(rec["n"]), -1).astype(np.float64)
    return [("y", x @ w.T), ("row", w)]


def rmsnorm(rec):
    x = rec["x"].astype(np.float64)
    return [("y", x / np.sqrt(np.mean(x * x) + float(rec["eps"])) * rec["w"])]


def swiglu(rec):
    g = rec["gate"].astype(np.float64)
    return [("y", g / (1 + np.exp(-g)) * rec["up"])]


def add(rec):
    return [("y", rec["a"].astype(np.float64) + rec["b"])]


def quantize(rec):
    """Every value is within half a step, the largest of a block is +-127, d is largest / 127."""
    x, q, d = rec["x"].reshape(-1, 32).astype(np.float64), rec["q"].reshape(-1, 32).astype(np.float64), rec["d"].astype(np.float64)
    top = np.abs(x).max(axis=1)
    live = top >= 2.0**-120
    assert np.all(q[~live] == 0) and np.all(d[~live] == 0), "a block without values"
    assert np.all(np.abs(q[live]).max(axis=1) == 127), "the largest value of a block is not 127"
    assert np.all(np.abs(q - x / np.where(live, d, 1)[:, None])[live] <= 0.5 + 1e-4), "a quant further than half a step"
    return [("d", np.where(live, top / 127, 0))]


def rope(rec):
    heads, dim, dims = (int(rec[k]) for k in ("heads", "dim", "dims"))
    x = rec["x"].reshape(heads, dim).astype(np.float64)
    angle = float(rec["position"]) * 10000.0 ** (-np.arange(0, dims, 2) / dims)
    turn = np.cos(angle) + 1j * np.sin(angle)
    y = x.copy()
    if rec["layout"] == "normal":
        z = (x[:, 0:dims:2] + 1j * x[:, 1:dims:2]) * turn
        y[:, 0:dims:2], y[:, 1:dims:2] = z.real, z.imag
    else:
        z = (x[:, : dims // 2] + 1j * x[:, dims // 2 : dims]) * turn
        y[:, : dims // 2], y[:, dims // 2 : dims] = z.real, z.imag
    return [("y", y)]


def kv_rows(kind, raw, dim):
    if kind == "f32":
        v = raw.view(np.float32)
    elif kind == "f16":
        v = raw.view(np.float16)
    elif kind == "bf16":
        v = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    elif kind == "fp8":  # OCP e4m3: sign, 4 bits of exponent (bias 7; 0: denormal), 3 of fraction
        s, e, m = raw >> 7, (raw >> 3 & 15).astype(int), (raw & 7).astype(float)
        v = np.where(s, -1.0, 1.0) * np.where(e > 0, (8 + m) * 2.0 ** (e - 10), m * 2.0**-9)
    else:
        b = raw.reshape(-1, 34)
        v = b[:, :2].copy().view(np.float16).astype(np.float64) * b[:, 2:].copy().view(np.int8)
    return v.reshape(-1, dim).astype(np.float64)


def attention(rec):
    n = {k: int(rec[k]) for k in "dim dim_v heads group head0 kv_heads kv_head0 pos0 tok q_stride out_stride".split()}
    blocks = rec["blocks"]
    pool = rec["kv"].reshape(len(blocks), -1)[blocks]
    size = {"f32": lambda d: 4 * d, "f16": lambda d: 2 * d, "bf16": lambda d: 2 * d, "q8_0": lambda d: 34 * d // 32, "fp8": lambda d: d}[rec["type"]]
    k_bytes, v_bytes = 16 * size(n["dim"]), 16 * size(n["dim_v"])
    out = np.zeros((n["tok"], n["out_stride"]))
    q = rec["q"].reshape(n["tok"], n["q_stride"]).astype(np.float64)
    for h in range(n["heads"]):
        kv = (n["head0"] + h) // n["group"] - n["kv_head0"]
        at = n["kv_heads"] * k_bytes
        keys = kv_rows(rec["type"], np.ascontiguousarray(pool[:, kv * k_bytes : (kv + 1) * k_bytes]).reshape(-1), n["dim"])
        vals = kv_rows(rec["type"], np.ascontiguousarray(pool[:, at + kv * v_bytes : at + (kv + 1) * v_bytes]).reshape(-1), n["dim_v"])
        for t in range(n["tok"]):
            see = n["pos0"] + t + 1
            s = keys[:see] @ q[t, h * n["dim"] : (h + 1) * n["dim"]] * float(rec["scale"])
            p = np.exp(s - s.max())
            out[t, h * n["dim_v"] : (h + 1) * n["dim_v"]] = p / p.sum() @ vals[:see]
    return [("out", out)]


def judge(helper, backend, seed, mutant=""):
    """Runs the helper; returns the records, what is wrong with each rejected one by index, and the worst distance."""
    run = subprocess.run([helper, backend, seed] + ([mutant] if mutant else []), stdout=subprocess.PIPE, check=True)
    recs, bad, worst = list(records(run.stdout)), {}, 0.0
    for i, (op, rec) in enumerate(recs):
        what = op + " " + " ".join(f"{k}={v}" for k, v in rec.items() if isinstance(v, str))
        try:
            for name, want in globals()[op](rec):
                got = rec[name].astype(np.float64)
                want = np.ravel(want)
                if name == "out":  # only the heads' columns are written
                    width = int(rec["heads"]) * int(rec["dim_v"])
                    got, want = (a.reshape(int(rec["tok"]), -1)[:, :width].ravel() for a in (got, want))
                far = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
                worst = max(worst, far)
                if not far <= (1e-7 if name == "row" else LIMIT[backend]):
                    bad[i] = f"{what}: {name}: relative distance {far:.2e}"
        except AssertionError as e:
            bad[i] = f"{what}: {e}"
    return recs, bad, worst


QUANTISED = "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K".split()
WITH_MIN = "Q4_1 Q5_1 Q2_K Q4_K Q5_K".split()
# Which records a mutant breaks, and the share of them that must be rejected (blocks of extreme scales may hide a broken one; the position that
# is missed may have no weight). No other record may be.
MUTANTS = {
    "scale": (lambda op, r: op == "matmul" and r["type"] in QUANTISED and r["extreme"] == "0", 1.0),
    "min": (lambda op, r: op == "matmul" and r["type"] in WITH_MIN and r["extreme"] == "0", 1.0),
    "rope": (lambda op, r: op == "rope", 1.0),
    "heads": (lambda op, r: op == "attention" and int(r["heads"]) > 1 and int(r["pos0"]) + int(r["tok"]) > 1, 1.0),
    "kvhead": (lambda op, r: op == "attention" and int(r["kv_heads"]) > 1, 1.0),
    "position": (lambda op, r: op == "attention" and int(r["pos0"]) > 0, 0.8),
    "weight": (lambda op, r: op == "rmsnorm", 1.0),
}


def main():
    helper, seed = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "1"
    failed = 0
    for backend in ("ref_f32", "ref", "cpu"):
        recs, bad, worst = judge(helper, backend, seed)
        print(f"{backend}: {len(recs)} records, worst relative distance {worst:.2e}, {len(bad)} rejected")
        for text in list(bad.values())[:20]:
            print("  " + text)
        failed += len(bad) + (len(recs) < 90)
    for backend in ("ref_f32", "ref"):
        for mutant, (breaks, share) in MUTANTS.items():
            recs, bad, _ = judge(helper, backend, seed, mutant)
            broken = {i for i, (op, r) in enumerate(recs) if breaks(op, r)}
            others = {i for i in bad if recs[i][0] not in {recs[j][0] for j in broken}}
            ok = broken and len(broken & bad.keys()) >= share * len(broken) and not others
            print(f"{backend} with {mutant} broken: {len(broken & bad.keys())} of {len(broken)} rejected{'' if ok else ': NOT as it should be'}")
            failed += not ok
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
