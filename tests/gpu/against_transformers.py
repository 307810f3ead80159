#!/usr/bin/env python3
"""Logits of ours against those of transformers in fp32, of the same GGUF file.

  against_transformers.py [--device cuda:0] NAME.gguf IDS.bin LOGITS.f32 ...   triples of files

The weights are taken from the GGUF file as the package `gguf` dequantises them, so that every quantisation can be compared. Q and K of llama files stand in the order of
interleaved rotation (llama.cpp's converter permutes them); transformers rotates halves, so they are put back."""
import argparse
import sys
from pathlib import Path

import numpy as np

TOP = Path(__file__).resolve().parents[2]
WITHIN, MARGINS = 2e-2, 4 # the tolerance of the issue: relative L2 at every position; the best token where the margin is so many times the error


def compare(got, right):
    """(what is wrong or None, largest relative L2 distance of a position, positions whose best token had to agree)"""
    if not np.isfinite(right).all() or right.std() < 0.1:
        return "the reference is nothing to compare with", 0, 0
    if not np.isfinite(got).all():
        return "not finite", np.inf, 0
    distance = np.linalg.norm(got - right, axis=1) / np.linalg.norm(right, axis=1)
    if distance.max() > WITHIN:
        return f"relative L2 {distance.max():.2e} at position {distance.argmax()}", distance.max(), 0
    top2 = np.sort(right, axis=1)[:, -2:]
    sure = top2[:, 1] - top2[:, 0] > MARGINS * np.sqrt(((got - right) ** 2).mean(axis=1))
    other = (got.argmax(axis=1) != right.argmax(axis=1)) & sure
    if other.any():
        return f"another token at position {other.argmax()}", distance.max(), sure.sum()
    return None, distance.max(), sure.sum()


def fields(reader):
    """The keys of a GGUF file without the name of the architecture."""
    arch = reader.fields["general.architecture"].contents()
    return arch, {k.removeprefix(arch + "."): f.contents() for k, f in reader.fields.items() if not k.startswith("tokenizer.ggml.")}


def config(transformers, arch, k, tensors, vocab):
    classes = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    dim, heads = k["embedding_length"], k["attention.head_count"]
    rope = {"rope_type": "default", "rope_theta": float(k["rope.freq_base"])}
    if kind := k.get("rope.scaling.type"):
        rope |= {"rope_type": kind, "factor": float(k["rope.scaling.factor"])}
        if kind == "yarn":
            rope |= {"original_max_position_embeddings": int(k["rope.scaling.original_context_length"])}
    args = dict(hidden_size=dim, intermediate_size=k["feed_forward_length"], num_hidden_layers=k["block_count"], num_attention_heads=heads,
                num_key_value_heads=k["attention.head_count_kv"], head_dim=k.get("attention.key_length", dim // heads), vocab_size=vocab,
                rms_norm_eps=float(k["attention.layer_norm_rms_epsilon"]), max_position_embeddings=k["context_length"],
                tie_word_embeddings="output.weight" not in tensors, attn_implementation="eager", use_cache=False)
    if int(transformers.__version__.split(".")[0]) >= 5:
        args["rope_parameters"] = rope
    else:
        args["rope_theta"] = rope.pop("rope_theta")
        args["rope_scaling"] = rope if kind else None
    name = classes[arch]
    return getattr(transformers, name + "ForCausalLM"), getattr(transformers, name + "Config")(**args)


def to_transformers(path, device="cpu"):
    import gguf
    import torch
    import transformers
    reader = gguf.GGUFReader(path)
    arch, k = fields(reader)
    tensors = {t.name: np.array(gguf.dequantize(t.data, t.tensor_type), dtype=np.float32) for t in reader.tensors}
    cls, cfg = config(transformers, arch, k, tensors, tensors["token_embd.weight"].shape[0])
    model = cls(cfg).to(torch.float32).eval()

    def halves(w, heads): # llama.cpp's order: pairs side by side
        return w.reshape(heads, -1, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape) if arch == "llama" else w
    state = {"model.embed_tokens.weight": tensors["token_embd.weight"], "model.norm.weight": tensors["output_norm.weight"],
             "lm_head.weight": tensors.get("output.weight", tensors["token_embd.weight"])}
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    for name, w in tensors.items():
        if name.startswith("blk."):
            _, layer, part, what = name.split(".")
            if part in ("attn_q", "attn_k"):
                w = halves(w, cfg.num_attention_heads if part == "attn_q" else cfg.num_key_value_heads)
            state[f"model.layers.{layer}.{names[part]}.{what}"] = w
    missing, unexpected = model.load_state_dict({n: torch.from_numpy(np.ascontiguousarray(w)) for n, w in state.items()}, strict=False)
    left = [n for n in missing if not n.endswith(("inv_freq",)) and not (arch == "llama" and n.endswith(".bias"))]
    if left or unexpected:
        raise ValueError(f"{path}: {left or unexpected}")
    if "rope_freqs.weight" in tensors:
        model.model.rotary_emb.inv_freq /= torch.from_numpy(tensors["rope_freqs.weight"])
    return model.to(device)


def transformers_logits(path, ids, device="cpu"):
    import torch
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    with torch.inference_mode():
        return to_transformers(path, device)(torch.tensor([list(map(int, ids))], device=device)).logits[0].double().cpu().numpy()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cpu")
    p.add_argument("files", nargs="+")
    a = p.parse_args()
    failed = 0
    for path, ids_file, logits_file in zip(*[iter(a.files)] * 3):
        ids = np.fromfile(ids_file, dtype=np.uint32)
        got = np.fromfile(logits_file, dtype=np.float32).reshape(len(ids), -1).astype(np.float64)
        wrong, distance, sure = compare(got, transformers_logits(path, ids, a.device))
        failed += wrong is not None
        print(f"{'FAILED' if wrong else 'ok'} {Path(path).stem}: {wrong or f'relative L2 {distance:.1e}, {sure} of {len(ids)} positions sure'}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
