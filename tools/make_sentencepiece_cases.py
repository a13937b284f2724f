"""Writes tests/data/tokenizers/sentencepiece.json: small SentencePiece models in base64, and the ids and texts that the
library gives. Needs `pip install sentencepiece` (made with 0.2.3). Run from the top of the repository:
    python tools/make_sentencepiece_cases.py
"""

import base64
import io
import json
import random
import tempfile

import sentencepiece

OUTPUT = "tests/data/tokenizers/sentencepiece.json"
CORPUS = ["the quick brown fox jumps over the lazy dog and the cat sat on the mat.", "Hello world, hello there; it's a naïve café.",
          "numbers 12 345 1999 and words word theme them", "東京の川 漢字 한국어 Привет мир"] * 20
TEXTS = ["", " ", "  two  spaces ", "Héllo, wörld! it's 12 345 cats.", "naïve cafe\u0301 ﬁne", "東京の川。漢字 한국어 Привет", "tab\tnew\nline\r\nend\n",
         "<ctl> x <|x|>y <s>", "the the<|x|>  the", " ▁x ▁▁ y", "🙂👩‍👩‍👧 z\u200bx", "a\u3000b", "the them theme 12ab34", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]
MODELS = {
    "unigram": {"model_type": "unigram", "vocab_size": 110},
    "bpe": {"model_type": "bpe", "vocab_size": 150},
    "bpe_bytes": {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "remove_extra_whitespaces": False},
    "unigram_bytes": {"model_type": "unigram", "vocab_size": 370, "byte_fallback": True},
    "word": {"model_type": "word", "vocab_size": 40},
    "char": {"model_type": "char", "vocab_size": 80},
    "bpe_user": {"model_type": "bpe", "vocab_size": 160, "user_defined_symbols": ["<|x|>", "the", "▁▁", "12"], "control_symbols": ["<ctl>"]},
    "unigram_user": {"model_type": "unigram", "vocab_size": 120, "user_defined_symbols": ["<|x|>", "he", "12"]},
    "suffix": {"model_type": "unigram", "vocab_size": 110, "treat_whitespace_as_suffix": True},
    "no_prefix": {"model_type": "bpe", "vocab_size": 150, "add_dummy_prefix": False, "remove_extra_whitespaces": False},
}
# Code points and what they become; the other models leave characters alone.
RULES = {"unigram": "FB01\t66 69\n65 301\tE9\n48\t68\n3000\t20\n9\t20\nA\t20\n200B\t\n"}


def main():
    rng = random.Random(3)
    result = {"sentencepiece_version": sentencepiece.__version__, "texts": TEXTS, "models": []}
    for name, options in MODELS.items():
        model = io.BytesIO()
        with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
            rules.write(RULES.get(name, ""))
            rules.flush()
            normal = {"normalization_rule_tsv": rules.name} if name in RULES else {"normalization_rule_name": "identity"}
            sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(CORPUS), model_writer=model, minloglevel=2, num_threads=1,
                                                     hard_vocab_limit=False, **normal, **options)
        library = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        random_ids = [[rng.randrange(library.get_piece_size()) for _ in range(30)] for _ in range(5)]
        result["models"].append({
            "name": name, "model": base64.b64encode(model.getvalue()).decode(),
            "cases": [{"ids": library.encode(text), "decoded": library.decode(library.encode(text))} for text in TEXTS],
            "decode_cases": [{"ids": ids, "decoded": library.decode(ids)} for ids in random_ids]})
    with open(OUTPUT, "w", encoding="utf-8") as file:
        json.dump(result, file, ensure_ascii=True, separators=(",", ":"))


main()
