"""Compares tokenizer.json files with the PyPI package tokenizers, and unigram GGUF files with the package sentencepiece.

usage: tokenizer_json_oracle.py TOKENIZE [FOLDER]

TOKENIZE is tests/tools/tokenize.c. Small tokenizers of every kind that the package can train (models, normalizers, pre-tokenizers, decoders,
post-processors, added tokens with each flag) are saved as tokenizer.json and compared on the texts of texts.py: ids with and without special tokens, the
text of the ids, and bytes that are no UTF-8. RACKLM_FULL=1 adds more texts, and some of 10 MB. FOLDER: every *.json there is compared as well. Exit 77 when a package is missing.
"""
import json
import os
import random
import subprocess
import sys
import tempfile

try:
    import gguf
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
except ImportError as e:
    print(f"skipped: a PyPI package is not installed ({e})")
    sys.exit(77)
try:
    import sentencepiece
except ImportError:
    sentencepiece = None

from texts import SCRIPTS, junk, long_text, texts

N, P, D = normalizers, pre_tokenizers, decoders
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CON = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CON + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + TAIL
# Oniguruma's own: sets inside sets, && between them, a repeated repetition, \w, \h, \b, POSIX classes.
KIMI = (rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]+{CON}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}&&[^\p{{Han}}]]*{CON}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*" + TAIL)
ODD = r"[a-c[x-z\d]&&[^b]]+|\h{2}+|\bq\w*\b|[[:upper:]]+|(?<=\s)\p{Nd}+|[^\W\d_]+|\S|\s++"


def level(regex=False, prefix=False):
    return P.ByteLevel(add_prefix_space=prefix, use_regex=regex)


def by(pattern, behavior="isolated", invert=False):
    return P.Split(pattern if isinstance(pattern, str) else Regex(pattern[0]), behavior=behavior, invert=invert)


def seq(*steps):
    return P.Sequence(list(steps))


LLAMA2_DECODER = D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)])
# name: (model, normalizer, pre-tokenizer, decoder). Model: "level" byte-level BPE; "chars" BPE over characters; "bytes" that with byte fallback;
# "fuse" and "unk" with an unknown token; "uni" Unigram; "uni-bytes" with byte fallback.
KINDS = {
    "llama3": ("level ignore", None, seq(by([LLAMA3]), level()), D.ByteLevel()),
    "qwen2": ("level", N.NFC(), seq(by([LLAMA3.replace("{1,3}", "")]), level()), D.ByteLevel()),
    "gpt-4o": ("level", None, seq(by([rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+{CON}?|[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*{CON}?|\p{{N}}{{1,3}}"
                                      rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*" + TAIL]), level()), D.ByteLevel()),
    "kimi": ("level", None, seq(by([KIMI]), level()), D.ByteLevel()),
    "odd regex": ("level", None, seq(by([ODD]), level()), D.ByteLevel()),
    "gpt-2 prefix": ("level", None, level(True, True), D.ByteLevel()),
    "starcoder": ("level", None, seq(P.Digits(individual_digits=True), level(True)), D.ByteLevel()),
    "deepseek": ("level", None, seq(by([r"\p{N}{1,3}"]), by(["[一-龥\u3040-ゟ゠-ヿ]+"]), by(["[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+"
                 "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]), level()), D.ByteLevel()),
    "falcon": ("level", None, seq(P.Punctuation("contiguous"), level(True), P.Digits(individual_digits=False), by(["[0-9][0-9][0-9]"])), D.ByteLevel()),
    "bloom": ("level", None, seq(by([r" ?[^(\s|[.,!?…。，、।۔،])]+"]), level()), D.ByteLevel()),
    "llama2": ("bytes", N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]), None, LLAMA2_DECODER),
    "gemma": ("bytes fuse", N.Replace(" ", "▁"), by(" ", "merged_with_previous"), D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse()])),
    "mistral": ("bytes fuse ignore", None, P.Metaspace("▁", "first", split=False), LLAMA2_DECODER),
    "metaspace": ("unk", None, P.Metaspace("▁", "always", split=True), D.Metaspace()),
    "metaspace never": ("fuse", None, P.Metaspace("▁", "never", split=True), D.Metaspace("▁", "never")),
    "whitespace": ("unk", N.NFKC(), P.Whitespace(), None),
    "whitespace split": ("fuse", N.Sequence([N.NFD(), N.StripAccents(), N.Lowercase()]), P.WhitespaceSplit(), None),
    "punctuation": ("unk", N.NFKD(), seq(P.CharDelimiterSplit("e"), P.Punctuation("merged_with_next"), P.Digits(True)), None),
    "behaviours": ("chars", N.Strip(left=True, right=False), seq(by([r"[aeiouа]+"], "merged_with_previous"), by([r"\s"], "merged_with_next"), by([r"\p{L}+"], "contiguous"),
                                                               by([r"[\p{L}\p{N}\s]+"], "removed", True), by("  ", "contiguous")), None),
    "replace": ("unk", N.Sequence([N.Replace(Regex(r"\s+"), " "), N.Replace("the", "THE"), N.Nmt(), N.Strip()]), P.Metaspace(), D.Metaspace()),
    "byte-level normalizer": ("chars", N.ByteLevel(), None, D.ByteLevel()),
    "unigram": ("uni", N.Sequence([N.Nmt(), N.NFKC(), N.Replace(Regex(" {2,}"), " ")]), P.Metaspace(), D.Metaspace()),
    "unigram t5": ("uni", "charsmap", seq(P.WhitespaceSplit(), P.Metaspace()), D.Metaspace()),
    "unigram bytes": ("uni-bytes", N.NFC(), P.Metaspace("▁", "first", split=True), D.Sequence([D.ByteFallback(), D.Metaspace()])),
    "unigram whole": ("uni", "charsmap", P.Metaspace("▁", "always", split=False), D.Metaspace()),
}


LONG = {"llama3", "llama2", "mistral", "unigram t5", "unigram whole"}  # also with texts of 10 MB


def corpus():
    all_scripts = [t.replace("\0", "\2") for t in SCRIPTS.values()]  # a key of a JSON object holds no NUL (jansson)
    return all_scripts * 3 + [a + b for a in all_scripts for b in all_scripts[::4]]


def charsmap(folder):
    """SentencePiece's own nmt_nfkc rules: normalizer_spec (field 3) . precompiled_charsmap (field 2) of a model that the package trains."""
    if sentencepiece is None:
        return None
    data = open(train_spm(folder, "charsmap", vocab_size=400), "rb").read()

    def fields(b):
        i = 0

        def varint():
            nonlocal i
            v = s = 0
            while True:
                v |= (b[i] & 127) << s
                s += 7
                i += 1
                if b[i - 1] < 128:
                    return v
        while i < len(b):
            key = varint()
            if key & 7 == 2:
                n = varint()
                i += n
                yield key >> 3, b[i - n:i]
            elif key & 7 == 0:
                varint()
            else:
                i += 8 if key & 7 == 1 else 4
    spec = [v for k, v in fields(data) if k == 3][0]
    return [v for k, v in fields(spec) if k == 2][0]


def train_spm(folder, name, **options):
    prefix = os.path.join(folder, name)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter([line for t in corpus() for line in t.split("\n") if line.strip()]), model_prefix=prefix,
                                             hard_vocab_limit=False, minloglevel=2, character_coverage=0.995, **{"vocab_size": 1500, **options})
    return prefix + ".model"


def train(kind, rules):
    model, norm, pre, dec = KINDS[kind]
    flags = model.split()
    special = ["<unk>", "<s>", "</s>"]
    if flags[0].startswith("uni"):
        tok = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=1500, special_tokens=special, unk_token="<unk>", show_progress=False)
    else:
        unk = None if flags[0] in ("level", "chars") else "<unk>"
        tok = Tokenizer(models.BPE(unk_token=unk, fuse_unk="fuse" in flags, byte_fallback="bytes" in flags, ignore_merges="ignore" in flags))
        if "bytes" in flags:
            special += [f"<0x{b:02X}>" for b in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=2200, special_tokens=special, show_progress=False, limit_alphabet=250,
                                      initial_alphabet=P.ByteLevel.alphabet() if flags[0] == "level" else [])
    if norm == "charsmap":
        norm = N.Precompiled(rules)
    if norm is not None:
        tok.normalizer = norm
    if pre is not None:
        tok.pre_tokenizer = pre
    if dec is not None:
        tok.decoder = dec
    tok.train_from_iterator([t for t in corpus()], trainer)
    as_json = json.loads(tok.to_str())
    if flags[0] == "uni-bytes":  # the trainer knows no byte tokens
        as_json["model"]["byte_fallback"] = True
        as_json["model"]["vocab"] += [[f"<0x{b:02X}>", -30.0] for b in range(256)]
    as_json["added_tokens"] = [t for t in as_json["added_tokens"] if not t["content"].startswith("<0x")]
    as_json["post_processor"] = None
    tok = Tokenizer.from_str(json.dumps(as_json))
    tok.add_special_tokens(["<|begin|>", "<|end|>", "<|end|>x"])
    tok.add_special_tokens([AddedToken("[L]", lstrip=True, special=True), AddedToken("[R]", rstrip=True, special=True)])
    tok.add_tokens([AddedToken("[user]", normalized=False), AddedToken("Wort", single_word=True, normalized=False), AddedToken("   ", normalized=False),
                    AddedToken("Straße", normalized=True), AddedToken("two  three", normalized=True), AddedToken("[B]", lstrip=True, rstrip=True, normalized=False)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", tok.token_to_id("<s>")), ("</s>", tok.token_to_id("</s>"))])
    return tok


def special_texts(all_texts):
    out = ["Wort Worte xWort Wort-Wort Wort", "a [L] b[L]c [R] d[R] e  [B]  f[B]\n\n[B][L] [R] [R][L]", " [R]   ", "[L]", "  Straße", "Straße<s>", "x two  three",
           "<unk>", "<unk><unk> <0x41>", "<|end|>", "<|end|", "<|end|>xx", "a    b   c  d", "<s>a</s>", "▁▁a▁ b", "é e\u0301 \u1e9b\u0323 ﬁ Å \ud7a3"]
    return out + [t + "<|begin|>x<|end|><|end|>x [user]" + t[::-1] for t in all_texts[:40]]


def run(tool, path, group, *flags):
    p = subprocess.run([tool, path, *flags], input=b"".join((t if isinstance(t, bytes) else t.encode()) + b"\0" for t in group), capture_output=True)
    if p.returncode != 0:
        raise RuntimeError(p.stderr.decode())
    return p.stdout


def ids(tool, path, group, *flags):
    return [[int(x) for x in line.split()] for line in run(tool, path, group, *flags).decode().split("\n")[:-1]]


def differences(tool, path, tok, group, flags=(), **options):
    bad = 0
    got, want = ids(tool, path, group, *flags), [e.ids for e in tok.encode_batch([t.decode("utf-8", "replace") if isinstance(t, bytes) else t for t in group], **options)]
    assert len(got) == len(want), (len(got), len(want))
    for t, g, w in zip(group, got, want):
        if g != w:
            bad += 1
            if bad <= 3:
                k = next((i for i, (a, b) in enumerate(zip(g, w)) if a != b), min(len(g), len(w)))
                show = lambda x: [tok.id_to_token(i) for i in x[max(0, k - 3):k + 12]]
                print(f"   {t[:90]!r} {' '.join(flags)} at {k}\n     tokenizers {show(w)}\n     racklm     {show(g)}")
    return bad


def compare(tool, name, tok, path, all_texts, long):
    specials = special_texts(all_texts)
    bad = differences(tool, path, tok, all_texts, ["--parse"], add_special_tokens=False)
    bad += differences(tool, path, tok, specials, ["--parse", "--special"])
    bad += differences(tool, path, tok, junk(), ["--parse"], add_special_tokens=False)
    tok.encode_special_tokens = True
    bad += differences(tool, path, tok, specials, add_special_tokens=False)
    tok.encode_special_tokens = False
    lost, added = 0, set(tok.get_added_tokens_decoder())
    if tok.decoder is not None:
        group = all_texts[:400] + specials
        for t, b in zip(group, run(tool, path, group, "--parse", "--back").decode().split("\0")):
            e = tok.encode(t, add_special_tokens=False)
            # Added tokens are given back as they are written; the package runs them through the decoder as well. Its decoder Metaspace loses all
            # spaces of the first token, not only the one that was put there.
            if added & set(e.ids) or (type(tok.decoder) is D.Metaspace and e.ids and tok.id_to_token(e.ids[0]).count("▁") > 1):
                continue
            want = tok.decode(e.ids, skip_special_tokens=False)
            if want != b:
                lost += 1
                if lost <= 3:
                    k = next((i for i, (x, y) in enumerate(zip(want, b)) if x != y), min(len(want), len(b)))
                    print(f"   back: {t[:60]!r} at {k}\n     tokenizers {want[max(0, k - 5):k + 60]!r}\n     racklm     {b[max(0, k - 5):k + 60]!r}")
    for t in long:
        bad += differences(tool, path, tok, [t], ["--parse"], add_special_tokens=False)
    print(f"{'FAIL' if bad or lost else 'ok'} {name}: {bad} of {len(all_texts) + 2 * len(specials) + 400} different, {lost} not back")
    return bad + lost == 0


def compare_characters(tool, folder):
    """Every character of Unicode 3.2 (the package's own tables end near Unicode 9, ours do not), alone and in a row, through each normalizer: byte-level
    tokens without merges show the text itself."""
    import unicodedata

    chars = [chr(c) for c in range(1, 0x110000) if unicodedata.ucd_3_2_0.category(chr(c)) not in ("Cn", "Cs", "Co")]
    rng = random.Random(11)
    group = ["".join(chars[i:i + 48]) for i in range(0, len(chars), 48)]
    marks = [c for c in chars if unicodedata.combining(c)]
    group += ["".join(rng.choice(chars if rng.random() < 0.3 else marks) for _ in range(40)) for _ in range(500)]
    group += ["".join(rng.choice(marks) for _ in range(1000)) for _ in range(5)] + [c + "\u0301" for c in chars[:3000]]
    results = []
    for norm in (N.NFC(), N.NFD(), N.NFKC(), N.NFKD(), N.Lowercase(), N.StripAccents(), N.Nmt(), N.Strip()):
        tok = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(P.ByteLevel.alphabet())}, merges=[]))
        tok.normalizer, tok.pre_tokenizer, tok.decoder = norm, level(), D.ByteLevel()
        path = os.path.join(folder, "characters.json")
        tok.save(path)
        bad = differences(tool, path, tok, group)
        print(f"{'FAIL' if bad else 'ok'} all characters through {type(norm).__name__}: {bad} of {len(group)} texts different")
        results.append(bad == 0)
    return results


# Unigram in GGUF: (name, options of SentencePiece's trainer)
SPM = {
    "nmt_nfkc": {}, "identity": {"normalization_rule_name": "identity"}, "keep spaces": {"remove_extra_whitespaces": False},
    "no prefix": {"add_dummy_prefix": False}, "suffix": {"treat_whitespace_as_suffix": True}, "bytes": {"byte_fallback": True},
    "symbols": {"user_defined_symbols": ["[sep]", "  "], "control_symbols": ["<c>"]},
}


def compare_spm(tool, name, folder, all_texts, rules):
    options = SPM[name]
    sp = sentencepiece.SentencePieceProcessor(model_file=train_spm(folder, "spm", **options))
    n = sp.get_piece_size()
    kind = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 5 if sp.is_unused(i) else 1 for i in range(n)]
    for i in range(n):
        if sp.id_to_piece(i) in options.get("user_defined_symbols", []):
            kind[i] = 4
    path = os.path.join(folder, "spm.gguf")
    w = gguf.GGUFWriter(path, "t5")
    w.add_tokenizer_model("t5")
    w.add_token_list([sp.id_to_piece(i) for i in range(n)])
    w.add_token_scores([sp.get_score(i) for i in range(n)])
    w.add_token_types(kind)
    w.add_unk_token_id(sp.unk_id())
    w.add_add_space_prefix(options.get("add_dummy_prefix", True))
    w.add_remove_extra_whitespaces(options.get("remove_extra_whitespaces", True))
    if options.get("treat_whitespace_as_suffix"):
        w.add_bool("tokenizer.ggml.treat_whitespace_as_suffix", True)
    if options.get("normalization_rule_name") != "identity":
        w.add_precompiled_charsmap(rules)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    # A user-defined symbol begins a text of its own in a GGUF file: such texts are compared by what they are made of.
    group = [t for t in all_texts if len(t) < 4000 and not any(s in t for s in options.get("user_defined_symbols", []))]
    bad = 0
    for t, got in zip(group, ids(tool, path, group)):
        want = sp.encode(t)
        if got != want and abs(sum(map(sp.get_score, got)) - sum(map(sp.get_score, want))) > 1e-3 * len(want):  # ties that float sums decide
            bad += 1
            if bad <= 3:
                print(f"   {t[:80]!r}\n     sentencepiece {[sp.id_to_piece(i) for i in want][:30]}\n     racklm        {[sp.id_to_piece(i) for i in got][:30]}")
    ties = sum(g != sp.encode(t) for t, g in zip(group, ids(tool, path, group))) - bad
    ok = bad == 0 and ties <= len(group) // 50
    print(f"{'ok' if ok else 'FAIL'} GGUF unigram {name}: {bad} of {len(group)} different, {ties} ties decided otherwise")
    return ok


def main():
    full = os.environ.get("RACKLM_FULL") == "1"
    all_texts = texts() if full else [*texts()[:64], *texts()[64::3]]
    results = []
    with tempfile.TemporaryDirectory() as folder:
        rules = charsmap(folder)
        long = []
        if full:
            long = [long_text(10 << 20).replace("\0", "\2"), "ab " * (10 << 18), "a" * (1 << 20), " " * (1 << 20) + "x", "e\u0301\u0316" * (1 << 18)]
        for kind in KINDS:
            if rules is None and "charsmap" in KINDS[kind]:
                print(f"skipped {kind}: the PyPI package sentencepiece is not installed")
                continue
            tok = train(kind, rules)
            path = os.path.join(folder, "tokenizer.json")
            tok.save(path, pretty=random.Random(kind).random() < 0.5)
            results.append(compare(sys.argv[1], kind, tok, path, all_texts, long if kind in LONG else []))
        wrong = json.loads(tok.to_str())  # the comparison can fail
        wrong["normalizer"] = None
        with open(os.path.join(folder, "wrong.json"), "w") as f:
            json.dump(wrong, f)
        sys.stdout, out = open(os.devnull, "w"), sys.stdout
        told = not compare(sys.argv[1], "wrong", tok, f.name, all_texts, [])
        sys.stdout = out
        print("ok a missing normalizer is told apart" if told else "FAIL a missing normalizer is not told apart")
        results.append(told)
        results += compare_characters(sys.argv[1], folder)
        for name in SPM if sentencepiece is not None else []:
            results.append(compare_spm(sys.argv[1], name, folder, all_texts, rules))
        for where in sys.argv[2:]:
            for name in sorted(os.listdir(where)) if os.path.isdir(where) else []:
                if name.endswith(".json"):
                    path = os.path.join(where, name)
                    results.append(compare(sys.argv[1], name, Tokenizer.from_file(path), path, all_texts, long))
    print(f"{sum(results)} of {len(results)} tokenizers equal")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
