"""Writes tests/data/tokenizers/components.json: small tokenizers of every model, normalizer, pre-tokenizer and decoder
of Hugging Face's library, and the ids and texts that it gives. Needs `pip install tokenizers` (made with 0.23.3). Run from
the top of the repository:
    python tools/make_tokenizer_components.py
"""

import base64
import json
import struct

import tokenizers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

OUTPUT = "tests/data/tokenizers/components.json"
TEXTS = ["", "  two  spaces ", "Héllo, wörld! it's 12 345 cats.", "naïve cafe\u0301 Å ﬁne ½ Ⅷ", "東京の川。漢字かなカナ한국어 Привет",
         "tab\tnew\nline\r\nend\n", "a<s>b </s> <mask>  c <|x|> d", "say word words The word", "🙂👩‍👩‍👧 z\u0000\u00ad\u200b\ufeffx",
         "do not can't I'm you're . a.b,c!d 'f' ' g", "THE ΣΑΣ İstanbul ab abc aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "▁under▁ x-y_z|w  |", "the them theme 12ab34"]
CORPUS = ["the quick brown fox jumps over the lazy dog and the cat sat on the mat.", "Hello world, hello there; it's a naïve café.",
          "numbers 12 345 1999 and words word theme them", "東京の川 漢字 한국어 Привет мир"] * 5
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def trained(tokenizer, trainer, pre_tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    return json.loads(tokenizer.to_str())["model"]


def bpe(size, pre_tokenizer, special=(), trainer=None, **options):
    settings = {"vocab_size": size, "special_tokens": list(special), "show_progress": False} | (trainer or {})
    return trained(Tokenizer(models.BPE(**options)), trainers.BpeTrainer(**settings), pre_tokenizer)


def all_models():
    words, meta = pre_tokenizers.Whitespace(), pre_tokenizers.Metaspace()
    alphabet = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    unigram = lambda special: trained(Tokenizer(models.Unigram()), trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", *special], unk_token="<unk>", show_progress=False), meta)
    few_merges = bpe(200, words, ["<unk>"], unk_token="<unk>", ignore_merges=True)
    few_merges["merges"] = few_merges["merges"][:20]
    return {
        "bytes": bpe(380, pre_tokenizers.ByteLevel(False), trainer=alphabet),
        "bpe": bpe(200, words, ["<unk>"], unk_token="<unk>"),
        "fuse": bpe(200, words, ["<unk>"], unk_token="<unk>", fuse_unk=True),
        "no_unknown": bpe(200, words),
        "ignore_merges": few_merges,
        "prefix": bpe(220, words, ["<unk>"], {"continuing_subword_prefix": "##"}, unk_token="<unk>"),
        "suffix": bpe(220, words, ["<unk>"], {"end_of_word_suffix": "</w>"}, unk_token="<unk>"),
        "byte_fallback": bpe(420, meta, ["<unk>", *BYTES], unk_token="<unk>", byte_fallback=True, fuse_unk=True),
        "unigram": unigram([]),
        "unigram_bytes": unigram(BYTES) | {"byte_fallback": True},
        "wordpiece": trained(Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20)), trainers.WordPieceTrainer(
            vocab_size=180, special_tokens=["[UNK]"], show_progress=False), pre_tokenizers.BertPreTokenizer()),
        "words": trained(Tokenizer(models.WordLevel(unk_token="[UNK]")), trainers.WordLevelTrainer(
            special_tokens=["[UNK]"], show_progress=False), words),
    }


def charsmap(entries):
    """The table of a Precompiled normalizer: a double array, built by trying one place after another."""
    texts, trie, units, used = b"", {}, {0: 0}, {0}
    for text, becomes in entries.items():
        node = trie
        for byte in text.encode():
            node = node.setdefault(byte, {})
        node["value"] = len(texts)
        texts += becomes.encode() + b"\0"

    def place(node, at):
        labels = [label for label in node if label != "value"]
        offset = 1
        while any(at ^ offset ^ child in used for child in [*labels, *([0] if "value" in node else [])]):
            offset += 1
        base = at ^ offset
        units[at] = units[at] & 0xFF | offset << 10 | (0x100 if "value" in node else 0)
        if "value" in node:
            units[base] = 0x80000000 | node["value"]
            used.add(base)
        for label in labels:
            units[base ^ label] = label
            used.add(base ^ label)
        for label in labels:
            place(node[label], base ^ label)

    place(trie, 0)
    array = b"".join(struct.pack("<I", units.get(i, 0)) for i in range((max(units) + 256) // 256 * 256))
    return base64.b64encode(struct.pack("<I", len(array)) + array + texts).decode()


def state(component):
    return json.loads(component.__getstate__()) if component is not None and not isinstance(component, dict) else component


def added_tokens(model):
    vocab = model["vocab"] if isinstance(model["vocab"], dict) else {piece: i for i, (piece, _) in enumerate(model["vocab"])}
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tokens, following = [], len(vocab)
    for content, flags in [("<s>", {"special": True}), ("</s>", {"special": True, "lstrip": True}),
                           ("<mask>", {"special": True, "lstrip": True, "rstrip": True}), ("word", {"single_word": True}),
                           ("The", {"normalized": True}), ("<|x|>", {"rstrip": True}), ("Å", {"normalized": True})]:
        known = content in vocab
        tokens.append({"id": vocab[content] if known else following, "content": content} | base | flags)
        following += not known
    return tokens


def definitions(all_of):
    """Yields name, model, normalizer, pre-tokenizer, decoder and whether there are added tokens."""
    N, P, D = normalizers, pre_tokenizers, decoders
    usual = {"bytes": P.ByteLevel(False), "byte_fallback": P.Metaspace(), "unigram": P.Metaspace(), "unigram_bytes": P.Metaspace(),
             "wordpiece": P.BertPreTokenizer()}
    llama = D.Sequence([D.Replace("▁", " "), D.ByteFallback(), D.Fuse(), D.Strip(" ", 1, 0)])
    ends = {"bytes": D.ByteLevel(), "byte_fallback": llama, "unigram": D.Metaspace(), "unigram_bytes": llama, "wordpiece": D.WordPiece(),
            "suffix": D.BPEDecoder()}
    for name in all_of:
        yield "model " + name, name, None, usual.get(name, P.Whitespace()), ends.get(name), True
    table = charsmap({"a": "b", "é": "e", "ﬁ": "fi", "e\u0301": "é", "\u200b": "", "ab": "X", "漢": "汉", "  ": " ", "½": "1⁄2", "abc": "Y"})
    forms = {"NFC": N.NFC(), "NFD": N.NFD(), "NFKC": N.NFKC(), "NFKD": N.NFKD(), "Lowercase": N.Lowercase(), "Strip": N.Strip(),
             "Strip left": N.Strip(True, False), "StripAccents": N.Sequence([N.NFD(), N.StripAccents()]), "Replace": N.Replace("e", "<E>"),
             "Replace regex": N.Replace(Regex(r"\s{2,}|[aeiou]+(?=n)"), "_"), "Prepend": N.Prepend("▁"), "Bert": N.BertNormalizer(),
             "Bert cased": N.BertNormalizer(True, True, False, False), "Nmt": N.Nmt(), "ByteLevel": N.ByteLevel(),
             "Precompiled": {"type": "Precompiled", "precompiled_charsmap": table}}
    for name, form in forms.items():
        yield "normalizer " + name, "bytes", form, P.ByteLevel(False, use_regex=name != "ByteLevel"), D.ByteLevel(), name != "ByteLevel"
        yield "normalizer " + name + " unigram", "unigram", form, P.Metaspace("▁", "first"), D.Metaspace(), False
    cuts = {"ByteLevel prefix": P.ByteLevel(True), "Whitespace": P.Whitespace(), "WhitespaceSplit": P.WhitespaceSplit(),
            "Metaspace first": P.Metaspace("▁", "first"), "Metaspace never": P.Metaspace("▁", "never"), "Metaspace whole": P.Metaspace("▁", "always", False),
            "words, Metaspace": P.Sequence([P.WhitespaceSplit(), P.Metaspace("▁", "first")]), "CharDelimiterSplit": P.CharDelimiterSplit("|"),
            "Punctuation": P.Punctuation("contiguous"), "Digits": P.Digits(), "Digits single": P.Digits(True), "UnicodeScripts": P.UnicodeScripts(),
            "FixedLength": P.FixedLength(3), "boundaries": P.Split(Regex(r"\b"), "isolated"),
            "classes": P.Split(Regex(r"[\p{L}&&[^\p{Han}]]+|[[a-f]\d]"), "isolated"), "repeats": P.Split(Regex(r"\p{N}{1,2}+|\w+?"), "merged_with_next"),
            "bytes, Metaspace": P.Sequence([P.ByteLevel(False), P.Metaspace()])}
    for behavior in ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous"):
        for invert in (False, True):
            cuts[f"Split {behavior} {invert}"] = P.Split(Regex(r"\s+|[,.]"), behavior, invert)
    for name, cut in cuts.items():
        yield "pre-tokenizer " + name, "no_unknown" if "Byte" not in name else "bytes", None, cut, None, True
    for name, end in {"none": None, "WordPiece": D.WordPiece("@@", False), "ByteFallback": D.ByteFallback(), "Strip": D.Strip("e", 1, 0),
                      "CTC": D.CTC(), "Replace": D.Replace("e", "_E_"), "Replace regex": D.Replace(Regex("[aeiou]+"), "-"),
                      "fused": D.Sequence([D.Fuse(), D.Replace("he", "HE"), D.Strip("s", 0, 1)]), "words": D.Sequence([D.WordPiece(), D.Fuse(), D.Metaspace()])}.items():
        yield "decoder " + name, "bpe", None, P.Whitespace(), end, True


def cases_of(tokenizer):
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if not ids:  # the library fails on some decoders without tokens
            yield {"ids": [], "decoded": ""}
            continue
        decoded, kept = tokenizer.decode(ids, skip_special_tokens=False), tokenizer.decode(ids, skip_special_tokens=True)
        yield {"ids": ids, "decoded": decoded} | ({} if kept == decoded else {"decoded_skip": kept})


def main():
    all_of = all_models()
    result = {"tokenizers_version": tokenizers.__version__, "texts": TEXTS, "models": all_of, "tokenizers": []}
    for name, model, normalizer, pre_tokenizer, decoder, added in definitions(all_of):
        definition = {"version": "1.0", "added_tokens": added_tokens(all_of[model]) if added else [], "normalizer": state(normalizer),
                      "pre_tokenizer": state(pre_tokenizer), "post_processor": None, "decoder": state(decoder)}
        tokenizer = Tokenizer.from_str(json.dumps(definition | {"model": all_of[model], "truncation": None, "padding": None}))
        result["tokenizers"].append({"name": name, "definition": definition | {"model": model}, "cases": list(cases_of(tokenizer))})
    with open(OUTPUT, "w", encoding="utf-8") as file:
        json.dump(result, file, ensure_ascii=True, separators=(",", ":"))


main()
