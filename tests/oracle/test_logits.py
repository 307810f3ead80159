"""End-to-end logits against the numpy oracle: `ref_f32` within 1e-4 relative L2; `cpu` within 1.5 times the distance that the exact
quantised form (`ref`) shows on the same model; and every broken oracle is rejected. All teacher-forced on given ids."""
import hashlib
import json
import os
import subprocess
from pathlib import Path

import models
import numpy as np
import pytest
from oracle import Model, distance, log_softmax

TOP = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("RACKLM_BUILD", TOP / "build"))
SHARED = Path(os.environ.get("RACKLM_TEST_SHARED", TOP / "../shared"))
FULL = os.environ.get("RACKLM_FULL", "0") == "1"
DEMO = TOP / "deploy/demo/grimm-6m-Q8_0.gguf"
REFERENCE = json.loads((TOP / "deploy/demo/reference.json").read_text())
N_IDS = 40


def logits(path, ids, tmp, *args):
    np.asarray(ids, dtype=np.uint32).tofile(tmp / "ids.bin")
    subprocess.run([BUILD / "tests/racklm-logits", path, tmp / "ids.bin", tmp / "out.f32", *map(str, args)], check=True, capture_output=True, timeout=600)
    return np.fromfile(tmp / "out.f32", dtype=np.float32).reshape(len(ids), -1).astype(np.float64)


def ids_for(vocab, n=N_IDS, seed=3):
    return np.random.default_rng(seed).integers(0, vocab, n)


# Every shape in Q8_0 and F32, every quantisation in the plain shape.
CASES = [(s, q) for s in models.SHAPES for q in ("F32", "Q8_0")] + [("llama", q) for q in models.QUANTS if q not in ("F32", "Q8_0")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder, files = tmp_path_factory.mktemp("models"), {}

    def get(shape, kind):
        if (shape, kind) not in files:
            path = folder / f"{shape}-{kind}.gguf"
            models.write(path, kind=kind, seed=int(hashlib.sha256(f"{shape}{kind}".encode()).hexdigest()[:6], 16), **models.SHAPES[shape])
            files[shape, kind] = path
        return files[shape, kind]
    return get


@pytest.mark.parametrize("shape,kind", CASES)
def test_logits_match_the_oracle(made, tmp_path, shape, kind):
    path = made(shape, kind)
    ids = ids_for(1024)
    right = Model(path).forward(ids)
    assert np.isfinite(right).all() and right.std() > 0.1
    f32 = logits(path, ids, tmp_path, "--backend", "ref_f32", "--kv-type", "f32")
    assert distance(f32, right) < 1e-4
    exact, cpu = (logits(path, ids, tmp_path, "--backend", b, "--kv-type", "f32") for b in ("ref", "cpu"))
    assert distance(cpu, right) <= 1.5 * distance(exact, right) + 1e-6
    assert distance(exact, right) < 0.35


@pytest.mark.parametrize("shape", models.SHAPES)
def test_a_broken_feature_is_seen(made, tmp_path, shape):
    path = made(shape, "F32")
    ids = ids_for(1024)
    f32 = logits(path, ids, tmp_path, "--backend", "ref_f32", "--kv-type", "f32")
    for feature in ["rope_layout", "head_swap", "sub_block", *models.FEATURES[shape]]:
        wrong = distance(f32, Model(path).forward(ids, broken={feature}))
        assert wrong > 1e-2, f"{shape}: the comparison does not see a broken {feature} ({wrong:.2e})"


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_1", "Q5_1"])
def test_a_broken_sub_block_is_seen(made, tmp_path, kind):
    path = made("llama", kind)
    ids = ids_for(1024)
    f32 = logits(path, ids, tmp_path, "--backend", "ref_f32", "--kv-type", "f32")
    assert distance(f32, Model(path).forward(ids, broken={"sub_block"})) > 1e-2


def windows():
    """The held-out windows as reference.json defines them, by racklm's tokenizer; its ids must have the reference's digest."""
    text = (TOP / "deploy/demo/heldout.txt").read_bytes()
    out = subprocess.run([BUILD / "tests/racklm-tokenize", DEMO], input=text, capture_output=True, check=True).stdout
    ids = [int(x) for x in out.split()]
    assert hashlib.sha256(np.asarray(ids, dtype="<u4").tobytes()).hexdigest() == REFERENCE["heldout_ids_sha256"]
    return [ids[i:i + 511] for i in range(0, len(ids) - 510, 511)]


def demo_files():
    yield "grimm-6m-Q8_0.gguf", DEMO
    f16 = SHARED / "data/demo/grimm-6m-F16.gguf"
    yield pytest.param("grimm-6m-F16.gguf", f16, marks=[] if f16.exists() else pytest.mark.skip(reason="skipped: ../shared is not there"))


@pytest.mark.parametrize("name,path", list(demo_files()))
def test_the_demo_model_on_held_out_text(tmp_path, name, path):
    """Top-1 equal at >= 98% of the positions whose margin exceeds 0.1; perplexity within 1% (0.1% for F16) of transformers'."""
    model, agree, sure, nll, count = Model(path), 0, 0, 0.0, 0
    all_windows = windows()
    for n, w in enumerate(all_windows):
        ids = [2032, *w]
        cpu = logits(path, ids, tmp_path, "--backend", "cpu")
        lp = log_softmax(cpu)
        nll -= lp[np.arange(511), w].sum()
        count += 511
        if n < (len(all_windows) if FULL else 6):
            right = model.forward(ids)
            top2 = np.sort(log_softmax(right), axis=1)[:, -2:]
            margin = top2[:, 1] - top2[:, 0] > 0.1
            sure += margin.sum()
            agree += (right.argmax(axis=1) == cpu.argmax(axis=1))[margin].sum()
    perplexity, expected = float(np.exp(nll / count)), REFERENCE["files"][name]["perplexity"]
    print(f"{name}: top-1 {agree}/{sure} = {agree / sure:.4f}; perplexity {perplexity:.4f}, reference {expected}")
    assert count == REFERENCE["files"][name]["positions"]
    assert agree / sure >= 0.98
    assert abs(perplexity / expected - 1) < (0.001 if "F16" in name else 0.01)
