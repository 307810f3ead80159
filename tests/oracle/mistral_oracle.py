"""Compares with the PyPI package mistral-common on the tokenizer files that it ships: tekken (byte-level BPE) and SentencePiece, as GGUF files.

usage: mistral_oracle.py TOKENIZE

RACKLM_FULL=1: every file of the package, and a text of 10 MB. TOKENIZE is tests/tools/tokenize.c. A tekken file lists tokens by rank; the merges that a GGUF file needs are found by cutting each token with the tokens
of lower rank. Exit 77 when the package is missing.
"""
import base64
import glob
import json
import os
import subprocess
import sys
import tempfile

try:
    import gguf
    import mistral_common
    import sentencepiece
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer
except ImportError as e:
    print(f"skipped: a PyPI package is not installed ({e})")
    sys.exit(77)

from texts import junk, long_text, texts

LONG = os.environ.get("RACKLM_FULL") == "1"
DATA = os.path.join(os.path.dirname(mistral_common.__file__), "data")
VISIBLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
HIDDEN = [b for b in range(256) if b not in VISIBLE]
CHAR = {**{b: chr(b) for b in VISIBLE}, **{b: chr(256 + i) for i, b in enumerate(HIDDEN)}}


def written(token):
    return "".join(CHAR[b] for b in token)


def split(token, ranks):
    """The two parts whose merge makes the token: what merging by rank leaves before it."""
    parts = [token[i:i + 1] for i in range(len(token))]
    limit = ranks[token]
    while len(parts) > 2:
        best, at = min(((ranks.get(a + b, limit), i) for i, (a, b) in enumerate(zip(parts, parts[1:]))), default=(limit, 0))
        if best >= limit:
            return None
        parts[at:at + 2] = [parts[at] + parts[at + 1]]
    return parts


def write(path, model, tokens, types, **more):
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model(model)
    w.add_token_list(tokens)
    w.add_token_types(types)
    if "merges" in more:
        w.add_tokenizer_pre("tekken")
        w.add_token_merges(more["merges"])
    else:
        w.add_token_scores(more["scores"])
        w.add_unk_token_id(0)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_add_bos_token(True)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def compare(tool, name, path, encode, group, *flags):
    data = [t if isinstance(t, bytes) else t.encode() for t in group]
    p = subprocess.run([tool, path, *flags], input=b"".join(t + b"\0" for t in data), capture_output=True)
    assert p.returncode == 0, p.stderr
    bad = 0
    for t, line in zip(data, p.stdout.decode().split("\n")[:-1], strict=True):
        got, want = [int(x) for x in line.split()], encode(t.decode("utf-8", "replace"))
        if got != want:
            bad += 1
            if bad <= 3:
                k = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
                print(f"   {t[:80]!r} at {k}\n     mistral-common {want[max(0, k - 2):k + 10]}\n     racklm         {got[max(0, k - 2):k + 10]}")
    print(f"{'FAIL' if bad else 'ok'} {name}: {bad} of {len(group)} texts different")
    return bad == 0


def tekken(tool, path, folder, group):
    with open(path) as f:
        size = json.load(f)["config"]
    tok = Tekkenizer.from_file(path)
    n_special = size["default_num_special_tokens"]
    n = size["default_vocab_size"] - n_special
    with open(path) as f:
        ordered = [base64.b64decode(t["token_bytes"]) for t in json.load(f)["vocab"][:n]]
    ranks = {t: i for i, t in enumerate(ordered)}
    merges = [p for p in (split(t, ranks) for t in ordered if len(t) > 1) if p]
    special = [tok.id_to_piece(i) for i in range(n_special)]
    out = os.path.join(folder, "tekken.gguf")
    write(out, "gpt2", special + [written(t) for t in ordered], [3] * n_special + [1] * n, merges=[f"{written(a)} {written(b)}" for a, b in merges])
    ok = compare(tool, os.path.basename(path), out, lambda t: tok.encode(t, bos=True, eos=False), group, "--special")
    if LONG:  # the same as a tokenizer.json
        up, low = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
        words = (rf"[^\r\n\p{{L}}\p{{N}}]?{up}*{low}+|[^\r\n\p{{L}}\p{{N}}]?{up}+{low}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*"
                 r"|\s*[\r\n]+|\s+(?!\S)|\s+")
        cut = [{"type": "Split", "pattern": {"Regex": words}, "behavior": "Isolated", "invert": False},
               {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
        model = {"type": "BPE", "ignore_merges": True, "vocab": {written(t): i + n_special for i, t in enumerate(ordered)},
                 "merges": [[written(a), written(b)] for a, b in merges]}
        out = os.path.join(folder, "tokenizer.json")
        with open(out, "w") as f:
            json.dump({"added_tokens": [{"id": i, "content": s, "special": True} for i, s in enumerate(special)], "normalizer": None, "decoder": {"type": "ByteLevel"},
                       "pre_tokenizer": {"type": "Sequence", "pretokenizers": cut}, "post_processor": None, "model": model}, f)
        ok &= compare(tool, os.path.basename(path) + " as tokenizer.json", out, lambda t: tok.encode(t, bos=False, eos=False), group)
    return ok


def spm(tool, path, folder, group):
    sp = sentencepiece.SentencePieceProcessor(model_file=path)
    n = sp.get_piece_size()
    kind = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in range(n)]
    out = os.path.join(folder, "spm.gguf")
    write(out, "llama", [sp.id_to_piece(i) for i in range(n)], kind, scores=[sp.get_score(i) for i in range(n)])
    return compare(tool, os.path.basename(path), out, lambda t: [1, *sp.encode(t)], [t for t in group if isinstance(t, str)], "--special")


def main():
    group = [*texts(), *[t.decode("utf-8", "replace") for t in junk()]]
    if LONG:
        group.append(long_text(10 << 20).replace("\0", "\2"))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for path in sorted(glob.glob(os.path.join(DATA, "tekken*.json")))[0 if LONG else -1:]:
            results.append(tekken(sys.argv[1], path, folder, group))
        for path in sorted(glob.glob(os.path.join(DATA, "*.model.v*")))[:None if LONG else 1]:
            results.append(spm(sys.argv[1], path, folder, group))
    print(f"{sum(results)} of {len(results)} tokenizers equal")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
