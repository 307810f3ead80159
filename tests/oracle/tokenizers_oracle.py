"""Compares the byte-level BPE with the PyPI package tokenizers, for the pre-tokenisers whose real vocabularies are not at hand.

usage: tokenizers_oracle.py TOKENIZE

TOKENIZE is tests/tools/tokenize.c. For each pre-tokeniser a small BPE is trained with the regular expression of the model's own tokenizer.json (Split,
isolated, then ByteLevel without a regular expression of its own), written as GGUF with its tokenizer.ggml.pre name, and both tokenise the same texts:
many scripts, code, emoji, control characters, digits, runs of white space, and random mixtures of all. Ids must be equal. Exit 77 when a package is missing.
"""
import os
import subprocess
import sys
import tempfile

try:
    import gguf
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
except ImportError as e:
    print(f"skipped: a PyPI package is not installed ({e})")
    sys.exit(77)

from texts import SCRIPTS, junk, texts

UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CON = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CON + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
QWEN2 = CON + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
GPT4O = (rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+{CON}?|[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*{CON}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*" + TAIL)
TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+|[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*" + TAIL)


def split(*patterns):
    return [pre_tokenizers.Split(Regex(p), behavior="isolated") for p in patterns]


# name in GGUF: the pieces of the pre-tokeniser before ByteLevel; whether ByteLevel splits in GPT-2's way; ignore_merges
KINDS = {
    "llama-bpe": (split(LLAMA3), False, True),
    "qwen2": (split(QWEN2), False, False),
    "gpt-4o": (split(GPT4O), False, False),
    "tekken": (split(TEKKEN), False, True),
    "gpt-2": ([], True, False),
    "starcoder": ([pre_tokenizers.Digits(individual_digits=True)], True, False),
    "deepseek-v3": (split(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
                          "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*"
                          "|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"), False, False),
    "qwen35": (split(QWEN2.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")), False, False),
    "minicpm5": (split(r"\p{N}{1,3}", LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}+")), False, True),
    "jais-2": (split(LLAMA3.replace(r"|\s+(?!\S)|\s+", "".join(rf"|\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)) + r"|\s{1,2}(?!\S)|\s{1}")), False, False),
    "exaone-moe": (split(CON + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"), False, False),
    "bailingmoe": (split(r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"), False, False),
    "seed-coder": (split(CON + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + TAIL), False, False),
    "superbpe": (split(r"\p{N}+", r"(?=(\d{3})+(?!\d))"), False, False),
    "tiny_aya": (split(r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O), False, False),
    "spark2_5": (split(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
                       "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+|[\r\n]|\\s+(?!\\S)|\\s+", r"\p{N}"),
                 False, False),
    "laguna": (split(r"[^\n]+|[\n]+", QWEN2), False, False),
    "ufakzeka": (split(QWEN2.removeprefix(CON + "|")), False, False),
    "granite-embed-multi-97m": (split(GPT4O), False, True),
}

def train(kind):
    pieces, by_level, ignore = KINDS[kind]
    tok = Tokenizer(models.BPE(ignore_merges=ignore))
    tok.pre_tokenizer = pre_tokenizers.Sequence([*pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=by_level)])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2200, special_tokens=["<|begin|>", "<|end|>", "<|end|>x"], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(list(SCRIPTS.values()) * 3 + [a + b for a in SCRIPTS.values() for b in list(SCRIPTS.values())[::4]], trainer)
    tok.add_tokens([AddedToken("[user]", normalized=False), AddedToken("   ", normalized=False)])
    return tok


def write_gguf(tok, kind, path):
    import json

    model = json.loads(tok.to_str())
    n = tok.get_vocab_size()
    added = {t["id"]: t["special"] for t in model["added_tokens"]}
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(kind)
    w.add_token_list([tok.id_to_token(i) for i in range(n)])
    w.add_token_types([gguf.TokenType.CONTROL if added.get(i) else gguf.TokenType.USER_DEFINED if i in added else gguf.TokenType.NORMAL for i in range(n)])
    w.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["model"]["merges"]])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def compare(tool, kind, all_texts, name=None):
    """name: the pre-tokeniser to write into the file, when it shall be a wrong one."""
    tok = train(kind)
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, kind + ".gguf")
        write_gguf(tok, name or kind, path)
        special = [t + "<|begin|>x<|end|><|end|>x [user]" + t[::-1] for t in all_texts[:40]]
        bad = 0
        for group, parse in ((all_texts, []), (special, ["--parse"])):
            p = subprocess.run([tool, path, *parse], input="".join(t + "\0" for t in group).encode(), capture_output=True)
            if p.returncode != 0:
                sys.exit(f"FAIL {kind}: {p.stderr.decode()}")
            got = [[int(x) for x in line.split()] for line in p.stdout.decode().split("\n")[:-1]]
            want = [e.ids for e in tok.encode_batch(group)]
            assert len(got) == len(want), (len(got), len(want))
            for t, g, w in zip(group, got, want):
                if g != w:
                    bad += 1
                    if bad <= 3 and name is None:
                        print(f"   {t[:100]!r}\n     tokenizers {[tok.id_to_token(i) for i in w][:40]}\n     racklm     {[tok.id_to_token(i) for i in g][:40]}")
            back = subprocess.run([tool, path, "--back", *parse], input="".join(t + "\0" for t in group).encode(), capture_output=True).stdout
            if back != "".join(t + "\0" for t in group).encode():
                bad += 1
                print("   the texts do not come back as they were")
        # bytes that are no UTF-8 come back as U+FFFD, whatever stands around them, and never end the program
        lost_texts = junk()
        back = subprocess.run([tool, path, "--back"], input=b"".join(t + b"\0" for t in lost_texts), capture_output=True).stdout.split(b"\0")[:-1]
        lost = sum(a.decode("utf-8", "replace") != b.decode() for a, b in zip(lost_texts, back))
        if name is not None:
            return bad == 0
        print(f"{'FAIL' if bad or lost or len(back) != len(lost_texts) else 'ok'} {kind}: {len(all_texts) + len(special)} texts, {bad} different; "
              f"{len(lost_texts)} texts of random bytes, {lost} not back")
        return bad == 0 and lost == 0 and len(back) == len(lost_texts)


def main():
    all_texts = texts()
    results = [compare(sys.argv[1], kind, all_texts) for kind in KINDS]
    for kind, wrong in (("llama-bpe", "qwen2"), ("gpt-4o", "llama-bpe"), ("qwen2", "gpt-2")):  # the comparison can fail
        if compare(sys.argv[1], kind, all_texts, wrong):
            print(f"FAIL {kind} named {wrong} is not told apart")
            results.append(False)
    print(f"{sum(results)} of {len(results)} pre-tokenisers equal tokenizers")
    return 0 if all(results) else 1


sys.exit(main())
