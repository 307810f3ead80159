"""Logits of emulated-GPU workers against the mathematics (`ref_f32`: fp32 weights and activations, sums in double), teacher-forced on the same ids.

At every position the relative L2 distance is within 2e-2, and the best token is the same wherever the oracle's margin exceeds 4 times the deviation (root of the
mean square) of that position's logits. Both sides are seen to be able to fail: another model's logits are not within it."""
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "tests/oracle"))
import models  # noqa: E402

BUILD = Path(os.environ.get("RACKLM_BUILD", TOP / "build"))
FULL = os.environ.get("RACKLM_FULL", "0") == "1"
DEMO = TOP / "deploy/demo/grimm-6m-Q8_0.gguf"
EMU = BUILD / "tests/racklm-logits-emu"
pytestmark = pytest.mark.skipif(not EMU.exists(), reason="skipped: no emulator in this build (CUDA toolkit headers, libboost-context-dev)")
WITHIN, MARGINS = 2e-2, 4
SEEDS = (1, 2, 3) if FULL else (int(os.environ.get("RACKLM_EMU_SEED", "1")),)


def run(program, path, ids, tmp, *args, seed=1):
    np.asarray(ids, dtype=np.uint32).tofile(tmp / "ids.bin")
    env = {**os.environ, "RACKLM_EMU_DEVICES": "4", "RACKLM_EMU_SEED": str(seed)}
    p = subprocess.run([BUILD / "tests" / program, path, tmp / "ids.bin", tmp / "out.f32", *map(str, args)], capture_output=True, text=True, timeout=600, env=env)
    assert p.returncode == 0, p.stderr[-4000:]
    return np.fromfile(tmp / "out.f32", dtype=np.float32).reshape(len(ids), -1).astype(np.float64)


def oracle(path, ids, tmp):
    return run("racklm-logits", path, ids, tmp, "--backend", "ref_f32", "--kv-type", "f32")


def compare(got, right):
    """What is wrong, or None."""
    assert np.isfinite(right).all() and right.std() > 0.1
    if not np.isfinite(got).all():
        return "not finite"
    distance = np.linalg.norm(got - right, axis=1) / np.linalg.norm(right, axis=1)
    if distance.max() > WITHIN:
        return f"distance {distance.max():.2e} at position {distance.argmax()}"
    top2 = np.sort(right, axis=1)[:, -2:]
    sure = top2[:, 1] - top2[:, 0] > MARGINS * np.sqrt(((got - right) ** 2).mean(axis=1))
    other = (got.argmax(axis=1) != right.argmax(axis=1)) & sure
    if other.any():
        return f"another token at position {other.argmax()}, whose margin is {(top2[:, 1] - top2[:, 0])[other.argmax()]:.3f}"
    print(f"distance {distance.max():.2e}, {sure.sum()} of {len(sure)} positions sure")
    return None


def ids_for(vocab, n=40, seed=3):
    return np.random.default_rng(seed).integers(0, vocab, n)


SPLITS = {"tp 1": (1, 1), "tp 2": (2, 1), "tp 3": (3, 1), "pp 2": (1, 2), "2 x 2": (2, 2)}
WAYS = {"whole": (), "chunks of 7": ("--chunk", 7), "tokens alone": ("--decode",)}
SHAPES = list(models.SHAPES)
# Every split with the demo model, every way of feeding it; every shape and every quantisation of a small random model with some split.
CASES = [("demo", "Q8_0", s, w) for s in SPLITS for w in (WAYS if s == "tp 1" or FULL else ["chunks of 7"])]
CASES += [(shape, "Q8_0" if i % 2 else "BF16", list(SPLITS)[i % len(SPLITS)], list(WAYS)[i % len(WAYS)]) for i, shape in enumerate(SHAPES)]
CASES += [("llama", q, list(SPLITS)[i % len(SPLITS)], list(WAYS)[(i + 1) % len(WAYS)]) for i, q in enumerate(models.QUANTS)]
if FULL:
    # 384 columns of o are no whole K blocks.
    CASES += [(shape, q, s, "chunks of 7") for shape in SHAPES for q in ("F16", "Q5_1" if shape == "llama-mha-head-dim" else "Q4_K") for s in SPLITS]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, files = tmp_path_factory.mktemp("models"), {}

    def get(shape, kind):
        if (shape, kind) not in files:
            path = DEMO
            if shape != "demo":
                path = folder / f"{shape}-{kind}.gguf"
                models.write(path, kind=kind, seed=int(hashlib.sha256(f"{shape}{kind}".encode()).hexdigest()[:6], 16), **models.SHAPES[shape])
            files[shape, kind] = path
        return files[shape, kind]
    return get


@pytest.fixture(scope="module")
def rights(made, tmp_path_factory):
    tmp, cache = tmp_path_factory.mktemp("oracle"), {}

    def get(shape, kind, ids):
        if (shape, kind) not in cache:
            cache[shape, kind] = oracle(made(shape, kind), ids, tmp)
        return cache[shape, kind]
    return get


@pytest.mark.parametrize("shape,kind,split,way", CASES)
def test_logits_of_gpu_workers_are_those_of_the_mathematics(made, rights, tmp_path, shape, kind, split, way):
    ids = ids_for(1024)
    right = rights(shape, kind, ids)
    tp, pp = SPLITS[split]
    for seed in SEEDS:
        got = run("racklm-logits-emu", made(shape, kind), ids, tmp_path, "--gpus", 4, "--kv-type", "f16", "--tp", tp, "--pp", pp, *WAYS[way], seed=seed)
        wrong = compare(got, right)
        assert wrong is None, f"seed {seed}: {wrong}"


def test_more_rows_than_go_through_the_head_together(made, tmp_path):
    """290 positions of one batch: more rows than a head takes, more often than a block has lists for them, and more tokens than the kernels for few take."""
    ids = ids_for(1024, 300)
    got = run("racklm-logits-emu", made("demo", "Q8_0"), ids, tmp_path, "--gpus", 1, "--kv-type", "f16", "--chunk", 290)
    assert compare(got, oracle(made("demo", "Q8_0"), ids, tmp_path)) is None


def test_the_comparison_sees_another_model(made, rights, tmp_path):
    ids = ids_for(1024)
    got = run("racklm-logits-emu", made("llama", "Q4_K"), ids, tmp_path, "--gpus", 1, "--kv-type", "f16")
    assert compare(got, rights("llama", "Q5_K", ids)) is not None


@pytest.mark.parametrize("kv", ["f16", "bf16", "q8_0", "fp8"])
def test_every_kv_type(made, rights, tmp_path, kv):
    """bf16, q8_0 and fp8 lose more than the general tolerance allows: their own noise, seen on the CPU with the same type, bounds them."""
    ids = ids_for(1024)
    right = rights("demo", "Q8_0", ids)
    cpu = run("racklm-logits", DEMO, ids, tmp_path, "--backend", "ref_f32", "--kv-type", kv)
    got = run("racklm-logits-emu", DEMO, ids, tmp_path, "--gpus", 1, "--kv-type", kv, "--chunk", 9)
    noise = np.linalg.norm(cpu - right) / np.linalg.norm(right)
    assert np.linalg.norm(got - right) / np.linalg.norm(right) < max(WITHIN, 1.5 * noise)
    assert np.linalg.norm(got - cpu) / np.linalg.norm(right) < max(WITHIN, 1.5 * noise)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_K", "BF16"])
def test_deterministic_bits_do_not_depend_on_chunks(made, tmp_path, kind):
    ids = ids_for(1024)
    runs = [run("racklm-logits-emu", made("llama", kind), ids, tmp_path, "--gpus", 1, "--kv-type", "f16", "--deterministic", *w) for w in WAYS.values()]
    for other in runs[1:]:
        assert (runs[0] == other).all()
