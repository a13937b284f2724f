#!/usr/bin/env python3
"""Greedy continuations of 20 prompts by weft and by llama.cpp from the same GGUF file, both computing in fp32.

    compare_llama_cpp.py MODEL.gguf --weft build/release/weft [--tokens 32]

llama.cpp multiplies quantized weights with quantized activations; so that both compute the same thing, the file is
first written in fp32 by `weft convert MODEL.gguf FP32.gguf --to gguf --dtype fp32` (in a temporary folder), and
llama.cpp is run with an fp32 cache, without flash attention, on the CPU. Prints for each prompt whether the ids agree,
and where they do not, the two best logits of either at the first difference. Exit code 1 when a prompt differs by more
than rounding: the gap between the two best logits is above --margin. Needs llama-cpp-python and numpy.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

PROMPTS = [
    "The capital of France is", "Water boils at a temperature of", "Once upon a time, in a small village,",
    "def fibonacci(n):", "The three primary colours are", "In 1969, for the first time,",
    "The quick brown fox", "A recipe for pancakes: first,", "The derivative of x squared is",
    "Dear Sir or Madam,", "Photosynthesis is the process by which", "My favourite season is autumn because",
    "SELECT name FROM users WHERE", "The largest planet in the solar system", "To be, or not to be,",
    "Two plus two equals", "The mitochondria is", "It was a dark and stormy night;",
    "import numpy as np\n", "Shakespeare wrote",
]


def llama_logits(model, ids):
    """The logits behind the last of the ids."""
    model.reset()
    model.eval(ids)
    return np.array(model.scores[len(ids) - 1], dtype=np.float64)


def llama_greedy(model, ids, count):
    """`count` ids, each the most likely."""
    drawn = []
    model.reset()
    model.eval(ids)
    for _ in range(count):
        drawn.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval([drawn[-1]])
    return drawn


def weft_logits(weft, path, ids, scratch):
    """The logits behind every one of the ids."""
    out = pathlib.Path(scratch) / "logits.f32"
    out.unlink(missing_ok=True)
    subprocess.run([weft, "logits", path, "--ids", ",".join(map(str, ids)), "--out", str(out), "--quiet"], check=True)
    return np.fromfile(out, dtype=np.float32).reshape(len(ids), -1).astype(np.float64)


def best_two(logits):
    """Text of the two largest."""
    order = np.argsort(-logits)[:2]
    return ", ".join(f"{int(i)}: {logits[i]:.5f}" for i in order)


def compare(args, model, path, prompt, scratch):
    """Whether one prompt agrees; the ids of llama.cpp are given to weft at once, and each must be weft's choice too."""
    ids = model.tokenize(prompt.encode(), add_bos=False, special=False)
    drawn = llama_greedy(model, ids, args.tokens)
    logits = weft_logits(args.weft, path, ids + drawn[:-1], scratch)[len(ids) - 1:]
    chosen = [int(i) for i in logits.argmax(axis=1)]
    for at, (ours, theirs) in enumerate(zip(chosen, drawn)):
        if ours != theirs:
            reference = llama_logits(model, ids + drawn[:at])
            gap = float(np.diff(np.sort(reference)[-2:])[0])
            print(f"{prompt!r}: differs at token {at}: weft {best_two(logits[at])}; llama.cpp {best_two(reference)}; "
                  f"largest difference {np.abs(reference - logits[at]).max():.2g}")
            return gap <= args.margin, False
    reference = llama_logits(model, ids + drawn[:-1])
    error = np.abs(reference - logits[-1]).max() / np.abs(reference).max()
    print(f"{prompt!r}: {args.tokens} ids agree; logits of the last within {error:.1e}")
    return True, True


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--weft", default="build/release/weft")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--margin", type=float, default=1e-3)
    args = parser.parse_args()
    import llama_cpp

    with tempfile.TemporaryDirectory() as scratch:
        path = str(pathlib.Path(scratch) / "fp32.gguf")
        subprocess.run([args.weft, "convert", args.model, path, "--to", "gguf", "--dtype", "fp32", "--quiet"], check=True)
        model = llama_cpp.Llama(path, n_ctx=1024, logits_all=True, verbose=False, n_gpu_layers=0, flash_attn=False,
                                type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
        results = [compare(args, model, path, prompt, scratch) for prompt in PROMPTS]
    print(f"{sum(same for _, same in results)} of {len(results)} prompts agree in all ids")
    sys.exit(0 if all(fine for fine, _ in results) else 1)


if __name__ == "__main__":
    main()
