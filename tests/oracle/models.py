"""Small random models as GGUF files, written with the PyPI package `gguf`: every architecture and quantisation, weights scaled so that every
feature matters (biases, norms, frequency factors far from neutral). K-quant blocks are random bytes with sane super-block scales."""
import gguf
import numpy as np

QUANTS = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
# Byte offsets of the fp16 super-block scales (d, then dmin) in a K-quant block; from the ggml format document.
# dmin as a multiple of d that makes the mean of random blocks zero: mean quant times mean scale over mean minimum.
MIN_RATIO = {"Q2_K": 1.5, "Q4_K": 7.5, "Q5_K": 15.5}
SCALES = {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_k(rng, kind, rows, cols, std):
    """Random valid blocks, scaled so that the dequantised weights have the deviation `std`."""
    t = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[t]
    raw = rng.integers(0, 256, (rows, cols // block * size), dtype=np.uint8)
    view = raw.reshape(-1, size)

    def put(scale):
        for k, off in enumerate(SCALES[kind]):
            d = (scale * (0.75 + 0.5 * rng.random(view.shape[0])) * (1.0 if k == 0 else MIN_RATIO[kind])).astype(np.float16)
            view[:, off:off + 2] = d.view(np.uint8).reshape(-1, 2)
    put(1e-2)
    put(1e-2 * std / float(np.std(gguf.dequantize(raw, t))))
    return raw


def matrix(rng, kind, rows, cols, gain=1.0):
    std = gain / np.sqrt(cols)
    t = gguf.GGMLQuantizationType[kind]
    if kind in SCALES:
        return random_k(rng, kind, rows, cols, std), t
    w = (rng.standard_normal((rows, cols)) * std).astype(np.float32)
    return (w, t) if kind == "F32" else (gguf.quantize(w, t), t)


def vocabulary(alphabet, words, special, n):
    tokens, merges = [*alphabet, alphabet[0] + alphabet[1]], [f"{alphabet[0]} {alphabet[1]}"]
    for word in words:
        for i in range(2, len(word) + 1):
            tokens.append(word[:i])
            merges.append(f"{word[:i - 1]} {word[i - 1]}")
    tokens += [f"t{i}" for i in range(len(tokens), 300)] if special else []
    tokens += special
    return tokens + [f"t{i}" for i in range(len(tokens), n)], merges


def write(path, arch="llama", kind="Q8_0", seed=1, layers=2, dim=256, heads=8, kv_heads=4, head_dim=None, ffn=512, vocab=1024, tied=False,
          bias=False, qk_norm=False, rope_freqs=False, scaling=None, ctx=512, pre="llama-bpe", words=(), special=(), eos=1, pooling=None, cls=False):
    """words: texts that are one token each; special: control tokens, from id 300 on; pooling: pooling_type, with EOS added to every text; cls: a reranker's head and prompt."""
    rng = np.random.default_rng(seed)
    hd = head_dim or dim // heads
    w = gguf.GGUFWriter(path, arch)
    w.add_context_length(ctx)
    w.add_embedding_length(dim)
    w.add_block_count(layers)
    w.add_feed_forward_length(ffn)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    if head_dim:
        w.add_key_length(hd)
        w.add_value_length(hd)
    w.add_rope_dimension_count(hd)
    if scaling:
        w.add_rope_scaling_type(gguf.RopeScalingType(scaling[0]))
        w.add_rope_scaling_factor(scaling[1])
        w.add_rope_scaling_orig_ctx_len(scaling[2])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]  # GPT-2's alphabet of bytes: the others stand from U+0100 on
    alphabet = [chr(b) for b in visible] + [chr(0x100 + i) for i in range(256 - len(visible))]
    tokens, merges = vocabulary(alphabet, words, special, vocab)
    w.add_token_list(tokens)
    w.add_token_types([3 if t in special else 1 for t in tokens])
    w.add_token_merges(merges)
    w.add_bos_token_id(0)
    w.add_eos_token_id(eos)
    if pooling is not None:
        w.add_pooling_type(gguf.PoolingType(pooling))
        w.add_add_eos_token(True)
        w.add_add_bos_token(False)
    if cls:
        w.add_classifier_output_labels(["yes", "no"])
        w.add_chat_template([{"name": "rerank", "template": "<|im_start|>Is it yes or no?\nQ: {query}\nD: {document}<|im_end|>\n"}])

    def add(name, rows, cols, gain=1.0):
        data, t = matrix(rng, kind, rows, cols, gain)
        w.add_tensor(name, data, raw_dtype=t)

    def vector(name, n, centre=1.0, spread=0.3):
        w.add_tensor(name, (centre + spread * rng.standard_normal(n)).astype(np.float32))

    add("token_embd.weight", vocab, dim, gain=np.sqrt(dim))
    for i in range(layers):
        p = f"blk.{i}."
        vector(p + "attn_norm.weight", dim)
        add(p + "attn_q.weight", heads * hd, dim, 2.0)
        add(p + "attn_k.weight", kv_heads * hd, dim, 2.0)
        add(p + "attn_v.weight", kv_heads * hd, dim)
        add(p + "attn_output.weight", dim, heads * hd)
        if bias:
            vector(p + "attn_q.bias", heads * hd, 0.0, 1.0)
            vector(p + "attn_k.bias", kv_heads * hd, 0.0, 1.0)
            vector(p + "attn_v.bias", kv_heads * hd, 0.0, 1.0)
        if qk_norm:
            vector(p + "attn_q_norm.weight", hd, 1.0, 0.5)
            vector(p + "attn_k_norm.weight", hd, 1.0, 0.5)
        vector(p + "ffn_norm.weight", dim)
        add(p + "ffn_gate.weight", ffn, dim)
        add(p + "ffn_up.weight", ffn, dim)
        add(p + "ffn_down.weight", dim, ffn)
    vector("output_norm.weight", dim)
    if not tied:
        add("output.weight", vocab, dim, 2.0)
    if cls:
        add("cls.output.weight", 2, dim, 2.0)
    if rope_freqs:
        w.add_tensor("rope_freqs.weight", np.geomspace(1.0, 8.0, hd // 2).astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


# name -> arguments of write(): every architecture, every feature once at least.
SHAPES = {
    "llama": dict(arch="llama"),
    "llama-rope-freqs-tied": dict(arch="llama", rope_freqs=True, tied=True),
    "llama-linear": dict(arch="llama", scaling=("linear", 4.0, 128)),
    "llama-yarn": dict(arch="llama", scaling=("yarn", 4.0, 128)),
    "llama-mha-head-dim": dict(arch="llama", heads=4, kv_heads=4, head_dim=96),
    "qwen2-bias-tied": dict(arch="qwen2", bias=True, tied=True, heads=8, kv_heads=2),
    "qwen2-yarn": dict(arch="qwen2", bias=True, scaling=("yarn", 4.0, 128)),
    "qwen3-qk-norm": dict(arch="qwen3", qk_norm=True, heads=4, kv_heads=2, head_dim=128),
}
FEATURES = {"llama": [], "llama-rope-freqs-tied": ["rope_freqs"], "llama-linear": ["rope_scaling"], "llama-yarn": ["rope_scaling"],
            "llama-mha-head-dim": [], "qwen2-bias-tied": ["qkv_bias"], "qwen2-yarn": ["qkv_bias", "rope_scaling"], "qwen3-qk-norm": ["qk_norm"]}
