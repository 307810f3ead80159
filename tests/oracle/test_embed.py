"""Pooled states and scores of target ids against the numpy oracle, with the bounds of test_logits.py: `ref_f32` within 1e-4, `cpu` within 1.5 times the distance
of the exact quantised form. With RACKLM_FULL and where torch and transformers can be imported, against transformers on the same random weights, too."""
import os
import subprocess
from pathlib import Path

import models
import numpy as np
import pytest
from oracle import Model, distance, log_softmax

TOP = Path(__file__).resolve().parents[2]
BUILD = Path(os.environ.get("RACKLM_BUILD", TOP / "build"))
FULL = os.environ.get("RACKLM_FULL", "0") == "1"
SHAPES = ["llama", "qwen3-qk-norm"]
TARGETS = [17, 900, 3]
F32 = ["--backend", "ref_f32", "--kv-type", "f32"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, shape in enumerate(SHAPES):
        for kind in ("F32", "Q8_0"):
            models.write(folder / f"{shape}-{kind}.gguf", kind=kind, seed=50 + seed, **models.SHAPES[shape])
    return folder


def ids_for(n, seed=3):
    return np.random.default_rng(seed).integers(0, 1024, n)


def values(path, ids, tmp, *args):
    np.asarray(ids, dtype=np.uint32).tofile(tmp / "ids.bin")
    subprocess.run([BUILD / "tests/racklm-logits", path, tmp / "ids.bin", tmp / "out.f32", *map(str, args)], check=True, capture_output=True, timeout=600)
    return np.fromfile(tmp / "out.f32", dtype=np.float32).astype(np.float64)


def pooled(hidden, how):
    return hidden.mean(axis=0) if how == "mean" else hidden[-1]


@pytest.mark.parametrize("how", ["mean", "last"])
@pytest.mark.parametrize("shape", SHAPES)
def test_pooled_states_match_the_oracle(made, tmp_path, shape, how):
    ids = ids_for(45)
    right = pooled(Model(made / f"{shape}-F32.gguf").hidden(ids), how)
    assert right.std() > 0.1
    for chunk in (45, 7):
        assert distance(values(made / f"{shape}-F32.gguf", ids, tmp_path, *F32, "--pool", how, "--chunk", chunk), right) < 1e-4
    right = pooled(Model(made / f"{shape}-Q8_0.gguf").hidden(ids), how)
    exact, cpu = (values(made / f"{shape}-Q8_0.gguf", ids, tmp_path, "--backend", b, "--kv-type", "f32", "--pool", how) for b in ("ref", "cpu"))
    assert distance(cpu, right) <= 1.5 * distance(exact, right) + 1e-6
    assert distance(exact, right) < 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_a_wrong_pooling_is_seen(made, tmp_path, shape):
    """One position too few, the other pooling, the state before the final norm: each is far from what racklm gives."""
    ids, m = ids_for(45), Model(made / f"{shape}-F32.gguf")
    hidden = m.hidden(ids)
    for how in ("mean", "last"):
        got = values(made / f"{shape}-F32.gguf", ids, tmp_path, *F32, "--pool", how)
        assert distance(got, pooled(hidden[:-1], how)) > 5e-3
        assert distance(got, pooled(hidden, "last" if how == "mean" else "mean")) > 0.1
        assert distance(got, pooled(hidden / m.w("output_norm.weight"), how)) > 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_scores_of_ids_match_the_oracle(made, tmp_path, shape):
    """The difference of two is what a reranker's softmax over "yes" and "no" is made of."""
    ids = ids_for(33, seed=4)
    args = ["--targets", ",".join(map(str, TARGETS))]
    right = log_softmax(Model(made / f"{shape}-F32.gguf").forward(ids))[-1, TARGETS]
    assert np.ptp(right) > 0.5
    f32 = values(made / f"{shape}-F32.gguf", ids, tmp_path, *F32, *args, "--chunk", 16)
    assert np.abs(f32 - right).max() < 1e-3
    right = log_softmax(Model(made / f"{shape}-Q8_0.gguf").forward(ids))[-1, TARGETS]
    exact, cpu = (values(made / f"{shape}-Q8_0.gguf", ids, tmp_path, "--backend", b, "--kv-type", "f32", *args) for b in ("ref", "cpu"))
    assert np.abs(cpu - right).max() <= 1.5 * np.abs(exact - right).max() + 0.02


def test_transformers_gives_the_same_vectors_and_scores(tmp_path):
    """Random Qwen 3 weights: written as GGUF, read by racklm; loaded into Qwen3ForCausalLM from the same file's tensors."""
    if not FULL:
        pytest.skip("skipped: the long form only")
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    path, shape = tmp_path / "q.gguf", models.SHAPES["qwen3-qk-norm"]
    models.write(path, kind="F32", seed=77, tied=True, **shape)
    m = Model(path)
    config = transformers.Qwen3Config(vocab_size=1024, hidden_size=m.dim, intermediate_size=512, num_hidden_layers=m.n_layers, num_attention_heads=m.n_heads,
                                      num_key_value_heads=m.n_kv, head_dim=m.head_dim, rms_norm_eps=m.eps, rope_theta=m.base, tie_word_embeddings=True,
                                      max_position_embeddings=512, attention_bias=False, use_sliding_window=False)
    net = transformers.Qwen3ForCausalLM(config).to(torch.float32).eval()
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
             "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    state = {}
    for name in m.tensors:
        parts = name.split(".")
        prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        state[f"{prefix}{names[parts[-2]]}.weight"] = torch.tensor(m.w(name).squeeze(), dtype=torch.float32)
    missing, unexpected = net.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    net.tie_weights()
    for n in (1, 9, 60):
        ids = ids_for(n, seed=n)
        with torch.no_grad():
            out = net(torch.tensor(ids)[None], output_hidden_states=True)
        hidden = net.model(torch.tensor(ids)[None]).last_hidden_state[0].detach().numpy().astype(np.float64)
        for how in ("mean", "last"):
            d = distance(values(path, ids, tmp_path, *F32, "--pool", how), pooled(hidden, how))
            print(f"{n} tokens, {how}: distance to transformers {d:.2e}")
            assert d < 1e-4
        logits = out.logits[0, -1].numpy().astype(np.float64)
        lp = values(path, ids, tmp_path, *F32, "--targets", "17,900")
        score, expected = 1 / (1 + np.exp(lp[1] - lp[0])), 1 / (1 + np.exp(logits[900] - logits[17]))
        print(f"{n} tokens: score {score:.8f}, transformers {expected:.8f}")
        assert abs(score - expected) < 1e-4
