#!/usr/bin/env python3
"""Writes the seed corpus of the fuzz target gguf and the files of tests/data/gguf with the PyPI package `gguf`.

The files are committed; run this again only when a seed is added. Every file is valid and small. Needs: pip install gguf numpy
"""
import os
import struct
import sys

import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf import GGUFEndian, GGUFValueType, GGUFWriter
from gguf.constants import GGML_QUANT_SIZES

HERE = os.path.dirname(os.path.abspath(__file__))
CORPUS = os.path.join(HERE, "corpus")
DATA = os.path.join(HERE, "..", "..", "data", "gguf")
rng = np.random.default_rng(1)


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def tokenizer(w, kind, n, pre=None):
    tokens = [f"t{i}" for i in range(n)]
    tokens[:4] = ["<unk>", "<s>", "</s>", "<|eot_id|>"]
    w.add_tokenizer_model(kind)
    if pre:
        w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types([2, 3, 3, 3] + [1] * (n - 4))
    if kind == "llama":
        w.add_token_scores([-float(i) for i in range(n)])
        w.add_add_space_prefix(False)
    else:
        w.add_token_merges(["t 1", "t1 2"])
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    w.add_add_bos_token(True)
    w.add_chat_template("{{ messages[0]['content'] }}")


def model(path, arch, kind, bias=False, qk_norm=False, tied=True, freqs=False, scaling=None, align=None, quant=None, n_vocab=40,
          per_layer=False):
    layers, dim, heads, kv, hd, ffn = (2, 32, 4, 2, 8, 64) if quant else (2, 8, 4, 2, 4, 12)
    w = GGUFWriter(path, arch)
    if align:
        w.add_custom_alignment(align)
    w.add_name("seed")
    w.add_block_count(layers)
    w.add_context_length(128)
    w.add_embedding_length(dim)
    w.add_feed_forward_length([ffn] * layers if per_layer else ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    w.add_key_length(hd)
    w.add_value_length(hd)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(hd)
    if scaling == "yarn":
        w.add_string(f"{arch}.rope.scaling.type", "yarn")
        w.add_float32(f"{arch}.rope.scaling.factor", 4.0)
        w.add_uint32(f"{arch}.rope.scaling.original_context_length", 32)
        w.add_float32(f"{arch}.rope.scaling.attn_factor", 1.0)
    if scaling == "linear":
        w.add_float32(f"{arch}.rope.scale_linear", 2.0)
    tokenizer(w, kind, n_vocab, "qwen2" if kind == "gpt2" else None)

    def f32(name, *shape):
        w.add_tensor(name, np.ones(shape, dtype=np.float32))

    def mat(name, rows, cols):
        if quant is None:
            f32(name, rows, cols)
            return
        elems, nbytes = GGML_QUANT_SIZES[quant]
        raw = rng.integers(0, 60, size=(rows, cols // elems * nbytes), dtype=np.uint8)
        w.add_tensor(name, raw, raw_dtype=quant)

    mat("token_embd.weight", n_vocab, dim)
    for i in range(layers):
        b = f"blk.{i}."
        f32(b + "attn_norm.weight", dim)
        mat(b + "attn_q.weight", heads * hd, dim)
        mat(b + "attn_k.weight", kv * hd, dim)
        mat(b + "attn_v.weight", kv * hd, dim)
        if bias:
            f32(b + "attn_q.bias", heads * hd)
            f32(b + "attn_k.bias", kv * hd)
            f32(b + "attn_v.bias", kv * hd)
        if qk_norm:
            f32(b + "attn_q_norm.weight", hd)
            f32(b + "attn_k_norm.weight", hd)
        mat(b + "attn_output.weight", dim, heads * hd)
        f32(b + "ffn_norm.weight", dim)
        mat(b + "ffn_gate.weight", ffn, dim)
        mat(b + "ffn_up.weight", ffn, dim)
        mat(b + "ffn_down.weight", dim, ffn)
    f32("output_norm.weight", dim)
    if not tied:
        mat("output.weight", n_vocab, dim)
    if freqs:
        f32("rope_freqs.weight", hd // 2)
    finish(w)


def types(path):
    """One key of every value type, at the ends of its range; arrays of each kind that models use."""
    w = GGUFWriter(path, "llama")
    w.add_uint8("t.u8", 255)
    w.add_int8("t.i8", -128)
    w.add_uint16("t.u16", 65535)
    w.add_int16("t.i16", -32768)
    w.add_uint32("t.u32", 4294967295)
    w.add_int32("t.i32", -2147483648)
    w.add_uint64("t.u64", 18446744073709551615)
    w.add_int64("t.i64", -9223372036854775808)
    w.add_uint64("t.u64_small", 77)
    w.add_float32("t.f32", 1.5)
    w.add_float64("t.f64", 2.5)
    w.add_bool("t.true", True)
    w.add_bool("t.false", False)
    w.add_string("t.str", "gr\u00fcn \u2713")
    w.add_array("t.ints", [-1, 0, 7])
    w.add_array("t.floats", [0.5, -2.0])
    w.add_array("t.bools", [True, False])
    w.add_array("t.strs", ["a", "", "ccc"])
    w.add_key_value("t.u16s", np.array([1, 65535], dtype=np.uint16).tolist(), GGUFValueType.ARRAY, sub_type=GGUFValueType.UINT16)
    finish(w)


def quants(path):
    w = GGUFWriter(path, "llama")
    for q in (Q.F16, Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K):
        elems, nbytes = GGML_QUANT_SIZES[q]
        w.add_tensor(q.name, np.zeros((3, 256 // elems * nbytes), dtype=np.uint8), raw_dtype=q)
    w.add_tensor("F32", np.zeros((3, 256), dtype=np.float32))
    w.add_tensor("four_dims", np.zeros((2, 3, 4, 5), dtype=np.float32))
    finish(w)


def patched(src, dst, offset, value):
    data = bytearray(open(src, "rb").read())
    data[offset : offset + len(value)] = value
    open(dst, "wb").write(data)


def main():
    os.makedirs(CORPUS, exist_ok=True)
    os.makedirs(DATA, exist_ok=True)
    c = lambda n: os.path.join(CORPUS, n + ".gguf")
    types(c("types"))
    quants(c("quants"))
    model(c("llama-spm"), "llama", "llama", tied=False, freqs=True)
    model(c("llama-linear"), "llama", "gpt2", scaling="linear", align=64)
    model(c("qwen2-bias"), "qwen2", "gpt2", bias=True, scaling="yarn")
    model(c("qwen3-norm"), "qwen3", "gpt2", qk_norm=True, per_layer=True)
    model(c("llama-q8_0"), "llama", "llama", quant=Q.Q8_0)
    patched(c("llama-spm"), c("llama-v2"), 4, struct.pack("<I", 2))
    # Three parts with the tensors shared out, as gguf-split does.
    w = GGUFWriter(os.path.join(DATA, "split.gguf"), "llama", split_max_tensors=2)
    w.add_name("split")
    for i in range(5):
        w.add_tensor(f"tensor.{4 - i}", np.full((2, 4), i, dtype=np.float32))
    finish(w)
    w = GGUFWriter(os.path.join(DATA, "big-endian.gguf"), "llama", endianess=GGUFEndian.BIG)
    w.add_name("big")
    finish(w)


if __name__ == "__main__":
    sys.exit(main())
