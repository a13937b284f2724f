#!/usr/bin/env python3
"""How fast weft encodes a text with a tokenizer.json, beside Hugging Face's library where that is installed.

    tools/bench_tokenizer.py build/release/weft tokenizer.json text.txt
"""
import os
import subprocess
import sys
import time


def peer(definition, text):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        import tokenizers
    except ImportError:
        return "tokenizers: not installed"
    tokenizer = tokenizers.Tokenizer.from_file(definition)
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        count = len(tokenizer.encode(text, add_special_tokens=False).ids)
        best = min(best, time.perf_counter() - start)
    size = len(text.encode())
    return f"tokenizers {tokenizers.__version__}: {size} bytes, {count} ids, {size / 1e6 / best:.2f} MB/s"


def main():
    program, definition, path = sys.argv[1:]
    ours = subprocess.run([program, "tokenizer", definition, "--file", path, "--speed"], capture_output=True, text=True, check=True)
    print("weft:", ours.stdout.strip())
    with open(path, encoding="utf-8", newline="") as file:
        print(peer(definition, file.read()))


main()
