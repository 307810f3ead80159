#!/usr/bin/env python3
"""Writes the seed corpus of the fuzz target tokenizer_json: small valid files with every component, in the forms of old and new versions.

The files are committed; run this again only when a seed is added.
"""
import base64
import json
import os
import struct

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus")
CHARS = "abdehlorsuw421▁ <>[]éĠ漢"
BYTES = [f"<0x{b:02X}>" for b in (0x0A, 0xE5, 0xAD, 0x97, 0xEF, 0xBF, 0xBD)]


def added(i, text, **flags):
    return {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **flags}


def bpe(merges, extra=(), **options):
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *CHARS, *["".join(m).replace(" ", "") for m in merges], *extra]
    return {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": False, "vocab": {t: i for i, t in enumerate(dict.fromkeys(tokens))}, "merges": merges, **options}


def unigram(**options):
    tokens = ["<unk>", "<s>", "</s>", *CHARS, "▁w", "or", "ld", "▁world", "ell", *BYTES]
    return {"type": "Unigram", "unk_id": 0, "vocab": [[t, -0.5 * i] for i, t in enumerate(tokens)], "byte_fallback": False, **options}


def template(bos="<s>", eos="</s>"):
    return {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                                                     {"SpecialToken": {"id": eos, "type_id": 0}}],
            "pair": [], "special_tokens": {bos: {"id": bos, "ids": [1], "tokens": [bos]}, eos: {"id": eos, "ids": [2], "tokens": [eos]}}}


def file(model, normalizer=None, pre=None, decoder=None, post=None, tokens=()):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), *tokens],
            "normalizer": normalizer, "pre_tokenizer": pre, "post_processor": post, "decoder": decoder, "model": model}


def seq(key, *steps):
    return {"type": "Sequence", key: list(steps)}


def split(pattern, behavior="Isolated", invert=False, regex=True):
    return {"type": "Split", "pattern": {"Regex" if regex else "String": pattern}, "behavior": behavior, "invert": invert}


# A charsmap with one rule: "A" becomes "a". Root at 0 (offset 1): unit 1 ^ 0x41 = 64 has the label 0x41, a leaf, and its child's value at 64 ^ 1 = 65.
units = [0] * 128
units[0] = 1 << 10
units[64] = 0x41 | 1 << 8 | 1 << 10
units[65] = 0x80000000
CHARSMAP = base64.b64encode(struct.pack("<I", len(units) * 4) + struct.pack("<128I", *units) + b"a\0").decode()

LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
META = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
FILES = {
    "level": file(bpe([["l", "l"], ["e", "ll"]], byte_fallback=False, ignore_merges=True), {"type": "NFC"},
                  seq("pretokenizers", split(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+"), {**LEVEL, "use_regex": False}),
                  {"type": "ByteLevel"}, seq("processors", {"type": "ByteLevel"}, template()), [added(60, "[user]", special=False, normalized=True)]),
    "llama2": file(bpe(["w o", "wo r", "▁ wor"]), seq("normalizers", {"type": "Prepend", "prepend": "▁"},
                   {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}), None,
                   seq("decoders", {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
                       {"type": "Strip", "content": " ", "start": 1, "stop": 0}), template(), [added(50, "<|x|>", lstrip=True, rstrip=True)]),
    "unigram": file(unigram(), seq("normalizers", {"type": "Precompiled", "precompiled_charsmap": CHARSMAP}, {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}),
                    seq("pretokenizers", {"type": "WhitespaceSplit"}, META), {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}, template()),
    "unigram-bytes": file(unigram(byte_fallback=True), seq("normalizers", {"type": "Nmt"}, {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "StripAccents"}), META,
                          seq("decoders", {"type": "ByteFallback"}, META), {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}),
    "words": file(bpe([], fuse_unk=False, byte_fallback=False), seq("normalizers", {"type": "NFD"}, {"type": "NFKD"}, {"type": "Strip", "strip_left": True, "strip_right": True}),
                  seq("pretokenizers", {"type": "Whitespace"}, {"type": "Punctuation", "behavior": "Contiguous"}, {"type": "Digits", "individual_digits": True},
                      {"type": "CharDelimiterSplit", "delimiter": "e"}), None, None, [added(50, "or", special=False, single_word=True)]),
    "splits": file(bpe([]), {"type": "ByteLevel"}, seq("pretokenizers", split(r"[a-c[x-z\d]&&[^b]]+|\h{2}+|\bq\w*\b|[[:upper:]]+|\p{Han}", "MergedWithPrevious"),
                   split(" ", "MergedWithNext", regex=False), split(r"\S", "Contiguous", True), split(r"[^\W\d_]", "Removed"), LEVEL)),
}
os.makedirs(HERE, exist_ok=True)
for name, content in FILES.items():
    with open(os.path.join(HERE, name + ".json"), "w") as f:
        if name == "level":
            f.write('#{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": [{"name": "default", "template": "{{ x }}"}]}\n')
        json.dump(content, f, ensure_ascii=False, separators=(",", ":"))
for flags in (1, 7, 15):
    rules = base64.b64decode(CHARSMAP)
    with open(os.path.join(HERE, f"gguf-{flags}"), "wb") as f:
        f.write(b"!" + struct.pack("<BH", flags, len(rules)) + rules + " Aa  aab [u] b\u6f22\xff ".encode("latin-1", "ignore") + b"\xe6\xbc ")
