"""Writes tests/data/tokenizers/cases.json: small tokenizer definitions, texts and the ids that Hugging Face's library
gives. Needs `pip install tokenizers` (made with 0.23.3). Run from the top of the repository:
    python tools/make_tokenizer_cases.py
"""

import json
import random

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BARE = BYTE_LEVEL | {"use_regex": False}

CORPUS = [
    "The little river ran past the mill, and the miller's daughter sang there in the evening.",
    "We'll see whether they've come; it's said that he'd rather wait until 1905 or 1923.",
    "Über die Brücke läuft ein Mädchen, naïve café façade, señor, прогулка по городу, 東京の川。",
    "def count(values):\n    total = 0\n    for value in values:\n        total += value\n    return total\n",
    "aaaa aaaaaaaa the the the there then them these those thousands of hands and sands",
] * 4

FIXED = [
    "", " ", "  ", "   a", "a   ", "\n", "\n\n\n", "\r\n", " \n \n", "\t\tx\n\t", "a\n b", "Hello world", " Hello",
    "it's IT'S we'LL I'D they've 'tis 's", "3.14159 and 1234567890 12 1", "x=1;y=[2,3];// ok!!!", "naïve café",
    "cafe\u0301 nai\u0308ve A\u030a", "\u212b\u2126\ufb01", "Straße \u1e9e \u017f's 's\u017f '\u017f K\u212a",
    "東京の川。漢字かなカナ", "한국어 \u1112\u1161\u11ab", "прогулка ПО городу", "مرحبا ١٢٣ ४५६ \u00b2\u00bd\u2167",
    "🙂👩‍👩‍👧 🇫🇷 x🙂y", "a\u00a0b\u2003c\u3000d\u2028e\u0085f\u200bg\u180eh", "\u0000\u0001\u007f\u00ad",
    "thethethethethethethethethethethethethethethe", "a" * 60, "ab" * 30, " " * 30 + "x", "!" * 40,
    "<|end|>", "a<|end|>b", "a <|end|>  b", "<|end|><|end|>", "<|en<|end|>", "say word, words, sword word", "word", " word ",
    "x <left> y <left>", "x<right>   y", "  <left>  <right>  z", "Cafe\u0301! cafe\u0301", "Café! a Café!b", "<|end|", "Ġx Ċ",
    "aĠb", "one,two;three", "a-b--c---d", "a b  c", "12ab345cd6", "über ÜBER", "\ufeffbom", "a\u0301\u0302b",
]


def random_texts(count):
    rng = random.Random(11)
    alphabet = list("aetn  \n'\u2019sd1,.-<|>") + ["é", "e\u0301", "東", "🙂", "\u00a0", "ſ", "<|end|>", "the", " word",
                                                  "<left>", "<right>", "\r\n", "½", "Café"]
    return ["".join(rng.choice(alphabet) for _ in range(rng.randint(1, 30))) for _ in range(count)]


def token(identity, content, **flags):
    base = {"id": identity, "content": content, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": False}
    return base | flags


def split(pattern, behavior, invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": list(steps)}


def template(before, after):
    special = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    single = [special(n) for n in before] + [{"Sequence": {"id": "A", "type_id": 0}}] + [special(n) for n in after]
    names = {n: {"id": n, "ids": [400], "tokens": [n]} for n in before + after}
    return {"type": "TemplateProcessing", "single": single, "pair": single + [{"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": names}


def train():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return json.loads(tokenizer.to_str())


def definitions(base):
    """name -> the members in which a definition differs from the base."""
    end = token(400, "<|end|>", special=True)
    flags = [end, token(401, "word", single_word=True, normalized=True), token(402, "<left>", lstrip=True),
             token(403, "<right>", rstrip=True), token(404, "Café!", normalized=True), token(405, "<|end|>\n")]
    letters = lambda text: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text)[0][0]
    small = {c: i for i, c in enumerate("<unk> abcdehnrtw".replace("<unk> ", ""))}
    small = {"<unk>": 20, letters(" "): 21} | small | {"th": 22, "the": 23}
    byte_tokens = {f"<0x{b:02X}>": 30 + i for i, b in enumerate(range(256))}
    merges = [["t", "h"], ["th", "e"]]
    model = lambda vocab, **more: base["model"] | {"vocab": vocab, "merges": merges} | more
    yield "gpt2", {}
    yield "prefix_space", {"pre_tokenizer": BYTE_LEVEL | {"add_prefix_space": True}, "added_tokens": [end]}
    yield "legacy_merges", {"model": base["model"] | {"merges": [" ".join(m) for m in base["model"]["merges"]]}}
    yield "llama3", {"pre_tokenizer": sequence(split(LLAMA3, "Isolated"), BARE), "added_tokens": [end],
                     "model": base["model"] | {"ignore_merges": True},
                     "post_processor": {"type": "Sequence", "processors": [BYTE_LEVEL, template(["<|end|>"], ["<|end|>"])]}}
    yield "o200k", {"pre_tokenizer": sequence(split(O200K, "Isolated"), BARE)}
    yield "deepseek", {"pre_tokenizer": sequence(
        split(r"[\r\n]", "Isolated"), split(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ]+", "Isolated"),
        split(r"\s?[!-/:-~！-／：-～‘-‟　-。]+", "Isolated"), split(r"\s+$", "Isolated"),
        split("[一-龥ࠀ-一가-퟿]+", "Isolated"), {"type": "Digits", "individual_digits": True}, BARE)}
    yield "scripts", {"pre_tokenizer": sequence(split(r"\p{Han}+|\p{Hiragana}|\p{Cyrillic}+", "Isolated"), BYTE_LEVEL)}
    yield "falcon", {"pre_tokenizer": sequence(
        {"type": "Punctuation", "behavior": "Contiguous"}, BYTE_LEVEL, {"type": "Digits", "individual_digits": False},
        split("[0-9][0-9][0-9]", "Isolated"))}
    for behavior in ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]:
        for invert in [False, True]:
            yield f"{behavior}_{invert}", {"pre_tokenizer": sequence(split(r"[-, ]|the", behavior, invert), BARE)}
    yield "literal", {"pre_tokenizer": sequence(split("a.b|-", "Removed", kind="String"), split("-", "Removed", kind="String"), BARE)}
    yield "flags", {"added_tokens": flags}
    yield "flags_nfc", {"added_tokens": flags, "normalizer": {"type": "NFC"}}
    yield "flags_nfkd", {"added_tokens": flags, "normalizer": {"type": "Sequence", "normalizers": [
        {"type": "NFKD"}, {"type": "Replace", "pattern": {"String": "the"}, "content": "and"}]}}
    yield "prepend", {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "ab"}, {"type": "NFD"}]},
                      "added_tokens": [end]}
    yield "nfkc", {"normalizer": {"type": "NFKC"}}
    yield "roberta", {"added_tokens": [end, token(401, "<s>", special=True)], "post_processor": {
        "type": "RobertaProcessing", "sep": ["<|end|>", 400], "cls": ["<s>", 401], "trim_offsets": True, "add_prefix_space": True}}
    yield "unknown", {"model": model(small, unk_token="<unk>")}
    yield "unknown_fused", {"model": model(small, unk_token="<unk>", fuse_unk=True)}
    yield "byte_fallback", {"model": model(small | byte_tokens, unk_token="<unk>", byte_fallback=True)}


def main():
    base = train()
    texts = FIXED + random_texts(25)
    variants = []
    for name, changes in definitions(base):
        tokenizer = Tokenizer.from_str(json.dumps(base | changes))
        encode = lambda special: [tokenizer.encode(t, add_special_tokens=special).ids for t in texts]
        decode = lambda skip: [tokenizer.decode(ids, skip_special_tokens=skip) for ids in plain]
        # Of all but `ids` only what differs from the line above it is kept, as {index of the text: value}.
        changed = lambda new, old: {str(i): x for i, (x, y) in enumerate(zip(new, old)) if x != y}
        plain = encode(False)
        decoded = decode(False)
        variant = {"name": name, "changes": changes, "ids": plain, "decoded": changed(decoded, texts),
                   "decoded_skip": changed(decode(True), decoded), "ids_with_special": changed(encode(True), plain)}
        tokenizer.encode_special_tokens = True
        variant["ids_special_as_text"] = changed(encode(False), plain)
        variants.append(variant)
    result = {"made_with": f"tokenizers {tokenizers.__version__}", "base": base, "texts": texts, "variants": variants}
    text = json.dumps(result, ensure_ascii=True, separators=(",", ":")).replace('{"name":', '\n{"name":')
    with open("tests/data/tokenizers/cases.json", "w") as out:
        out.write(text + "\n")


main()
