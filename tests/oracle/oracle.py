"""An independent model of what racklm computes: numpy in float64, weights read and dequantised by the PyPI package `gguf`.

Written from the papers and the GGUF documents, not from racklm's code. `forward(ids, broken={...})` also computes wrong answers on purpose, one
feature at a time: the suite must tell each of them from the right one (test_logits.py), so that it is known to be able to fail.
"""
import math

import gguf
import numpy as np

BROKEN = ["rope_layout", "qkv_bias", "qk_norm", "rope_freqs", "rope_scaling", "head_swap", "sub_block"]


def dequantize(tensor):
    """The tensor as float64 [rows][cols] (numpy order)."""
    t = gguf.GGMLQuantizationType(tensor.tensor_type)
    data = gguf.dequantize(tensor.data, t).astype(np.float64)
    return data.reshape(tuple(int(n) for n in reversed(tensor.shape)))


class Model:
    def __init__(self, path):
        self.reader = gguf.GGUFReader(path)
        self.kv = {k: f.contents() for k, f in self.reader.fields.items() if not k.startswith("tokenizer.ggml.")}
        self.tensors = {t.name: t for t in self.reader.tensors}
        a = self.arch = self.kv["general.architecture"]
        get = lambda k, d=None: self.kv.get(f"{a}.{k}", d)
        self.n_layers, self.dim = get("block_count"), get("embedding_length")
        self.n_heads = get("attention.head_count")
        self.n_kv = get("attention.head_count_kv", self.n_heads)
        self.head_dim = get("attention.key_length", self.dim // self.n_heads)
        self.eps = get("attention.layer_norm_rms_epsilon")
        self.rope_dims = get("rope.dimension_count", self.head_dim)
        self.base = get("rope.freq_base", 10000.0)
        self.scaling = get("rope.scaling.type", "none")
        self.factor = get("rope.scaling.factor", 1.0)
        self.ctx_orig = get("rope.scaling.original_context_length", get("context_length"))
        self.neox = a != "llama"
        self.cache = {}

    def w(self, name):
        if name not in self.cache:
            t = self.tensors.get(name)
            self.cache[name] = None if t is None else dequantize(t)
        return self.cache[name]

    def break_sub_block(self, name):
        """One scale (and minimum, where there is one) of one sub-block of a tensor's every block is wrong: what a decoder that
        reads the packed 6-bit or 4-bit scales at a wrong place would give."""
        t = self.tensors[name]
        kind = gguf.GGMLQuantizationType(t.tensor_type)
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        w = self.w(name).copy()
        if block == 1:
            w[::3] *= 1.5
        else:
            blocks = w.reshape(w.shape[0], -1, block)
            sub = min(block, 16 if kind.name in ("Q2_K", "Q3_K", "Q6_K") else 32)
            blocks[:, :, :sub] *= 1.5
        self.cache[name] = w

    def inv_freq(self, broken):
        n = self.rope_dims // 2
        inv = self.base ** (-2.0 * np.arange(n) / self.rope_dims)
        magnitude = 1.0
        factors = self.w("rope_freqs.weight")
        if factors is not None and "rope_freqs" not in broken:
            inv = inv / factors.reshape(-1)
        if "rope_scaling" in broken:
            return inv, magnitude
        if self.scaling == "linear":
            inv = inv / self.factor
        elif self.scaling == "yarn":
            # Peng et al. 2023: ramp between interpolated and extrapolated frequencies over the number of turns in the original context.
            turns = lambda beta: self.rope_dims * math.log(self.ctx_orig / (beta * 2 * math.pi)) / (2 * math.log(self.base))
            low, high = math.floor(turns(32.0)), math.ceil(turns(1.0))
            low, high = max(low, 0), min(high, self.rope_dims - 1)
            ramp = np.clip((np.arange(n) - low) / max(high - low, 0.001), 0, 1)
            inv = inv / self.factor * ramp + inv * (1 - ramp)
            magnitude = 0.1 * math.log(self.factor) + 1.0
        return inv, magnitude

    def rope(self, x, broken):
        """x [tokens][heads][head_dim]"""
        inv, magnitude = self.inv_freq(broken)
        angle = np.arange(x.shape[0])[:, None] * inv[None, :]
        cos, sin = np.cos(angle)[:, None, :] * magnitude, np.sin(angle)[:, None, :] * magnitude
        out, n = x.copy(), self.rope_dims
        neox = self.neox != ("rope_layout" in broken)
        i0, i1 = (slice(0, n // 2), slice(n // 2, n)) if neox else (slice(0, n, 2), slice(1, n, 2))
        a, b = x[..., i0], x[..., i1]
        out[..., i0], out[..., i1] = a * cos - b * sin, a * sin + b * cos
        return out

    def norm(self, x, w):
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.eps) * w

    def hidden(self, ids, broken=()):
        """States after the final norm [len(ids)][dim] in float64."""
        if "sub_block" in broken:
            self.break_sub_block("blk.0.ffn_down.weight")
        embd = self.w("token_embd.weight")
        x = embd[np.asarray(ids)]
        n, group = len(ids), self.n_heads // self.n_kv
        mask = np.triu(np.full((n, n), -np.inf), 1)
        for i in range(self.n_layers):
            w = lambda s: self.w(f"blk.{i}.{s}")
            h = self.norm(x, w("attn_norm.weight"))
            q, k, v = (h @ w(f"attn_{s}.weight").T for s in "qkv")
            if w("attn_q.bias") is not None and "qkv_bias" not in broken:
                q, k, v = q + w("attn_q.bias"), k + w("attn_k.bias"), v + w("attn_v.bias")
            q, k, v = (t.reshape(n, -1, self.head_dim) for t in (q, k, v))
            if w("attn_q_norm.weight") is not None and "qk_norm" not in broken:
                q, k = self.norm(q, w("attn_q_norm.weight")), self.norm(k, w("attn_k_norm.weight"))
            q, k = self.rope(q, broken), self.rope(k, broken)
            out = np.empty((n, self.n_heads, self.head_dim))
            for head in range(self.n_heads):
                s = q[:, head] @ k[:, head // group].T / math.sqrt(self.head_dim) + mask
                p = np.exp(s - s.max(axis=1, keepdims=True))
                out[:, head] = p / p.sum(axis=1, keepdims=True) @ v[:, head // group]
            if "head_swap" in broken and i == 0:
                out[:, [0, self.n_heads - 1]] = out[:, [self.n_heads - 1, 0]]
            x = x + out.reshape(n, -1) @ w("attn_output.weight").T
            h = self.norm(x, w("ffn_norm.weight"))
            g, u = h @ w("ffn_gate.weight").T, h @ w("ffn_up.weight").T
            x = x + (g / (1 + np.exp(-g)) * u) @ w("ffn_down.weight").T
        return self.norm(x, self.w("output_norm.weight"))

    def forward(self, ids, broken=()):
        """Logits [len(ids)][vocab] in float64."""
        x, head = self.hidden(ids, broken), self.w("output.weight")
        return x @ (self.w("token_embd.weight") if head is None else head).T


def log_softmax(logits):
    m = logits.max(axis=-1, keepdims=True)
    return logits - m - np.log(np.exp(logits - m).sum(axis=-1, keepdims=True))


def distance(a, b):
    """Relative L2 of two sets of logits."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
