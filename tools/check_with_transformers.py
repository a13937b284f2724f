#!/usr/bin/env python3
"""Opens a Hugging Face folder that weft wrote with transformers, and compares its logits with weft's.

    check_with_transformers.py FOLDER [MODEL] --weft build/release/weft [--length 24]

FOLDER is what `weft convert MODEL FOLDER --to hf` wrote. transformers must load it without a missing or unexpected
tensor; its logits of random ids, in fp64, are compared with those that weft computes from MODEL (FOLDER when it is not
given). Exit code 1 when they differ by more than 1e-4 of the largest. Needs torch, transformers and numpy.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--weft", default="build/release/weft")
    parser.add_argument("--length", type=int, default=24)
    args = parser.parse_args()
    import torch
    import transformers

    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        args.folder, dtype=torch.float64, output_loading_info=True)
    problems = {name: list(names) for name, names in info.items() if names}
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, args.length).tolist()
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([ids])).logits[0].double().numpy()
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch) / "logits.f32"
        subprocess.run([args.weft, "logits", args.model or args.folder, "--ids", ",".join(map(str, ids)), "--dtype",
                        "fp64", "--out", str(out), "--quiet"], check=True)
        ours = np.fromfile(out, dtype=np.float32).reshape(len(ids), -1)
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{args.folder}: {type(model).__name__}, loading {problems or 'without remarks'}, largest error {error:.1e}")
    sys.exit(0 if not problems and error <= 1e-4 else 1)


if __name__ == "__main__":
    main()
