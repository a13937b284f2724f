#!/usr/bin/env python3
"""How closely weft's logits agree with stored ones, for each model and form, as a Markdown table.

    agreement_table.py [FOLDER] --weft build/release/weft

FOLDER (tests/data/hf_tiny) holds model directories with the logits that transformers gives in fp64 (reference.json,
logits_0.f32, logits_1.f32). Each cell is the largest difference over the largest logit of both texts (7 and 37 ids),
computed all at once, token by token and in chunks of 5; fp64 of weft is rounded to fp32 in files, so 6e-8 is exact.
`greedy` compares 24 ids drawn after the first text. Exit code 1 when fp64 is off by more than 1e-5, fp32 by more than
1e-4, or an id differs. Needs Python only.
"""
import argparse
import array
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import tempfile

FORMS = {"whole": [], "step": ["--step"], "chunks": ["--chunk", "5"]}
BOUNDS = {"fp64": 1e-5, "fp32": 1e-4}


def run(weft, *arguments):
    done = subprocess.run([weft, *arguments], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(done.stderr.strip())
    return done.stdout


def numbers(path):
    return array.array("f", pathlib.Path(path).read_bytes())


def errors_of(weft, folder):
    """{(dtype, form): error}, and whether the greedy ids are those of the reference."""
    reference = json.loads((folder / "reference.json").read_text())
    errors = {}
    with tempfile.TemporaryDirectory() as scratch:
        for dtype in BOUNDS:
            for form, flags in FORMS.items():
                worst = 0.0
                for i, ids in enumerate(reference["input_ids"]):
                    run(weft, "logits", str(folder), "--ids", ",".join(map(str, ids)), "--dtype", dtype, *flags, "--out",
                        f"{scratch}/out", "--quiet", "--device", "cpu")
                    ours, theirs = numbers(f"{scratch}/out"), numbers(folder / f"logits_{i}.f32")
                    if len(ours) != len(theirs):
                        raise RuntimeError(f"{folder}: {len(ours)} logits, expected {len(theirs)}")
                    worst = max(worst, max(abs(a - b) for a, b in zip(ours, theirs)) / max(map(abs, theirs)))
                errors[dtype, form] = worst
    expected = reference["greedy_ids"]
    drawn = run(weft, "generate", str(folder), "--ids", ",".join(map(str, reference["input_ids"][0])), "-n",
                str(len(expected)), "-t", "0", "--dtype", "fp64", "--ignore-end", "--quiet", "--device", "cpu")
    return errors, [int(word) for word in drawn.strip().split(",")] == expected


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="tests/data/hf_tiny", type=pathlib.Path)
    parser.add_argument("--weft", default="build/release/weft")
    args = parser.parse_args()
    models = sorted(path.parent for path in args.folder.glob("*/reference.json"))
    if not models:
        sys.exit(f"{args.folder}: no folder in it holds a reference.json")
    columns = [(dtype, form) for dtype in BOUNDS for form in FORMS]
    print("| model type | " + " | ".join(f"{dtype} {form}" for dtype, form in columns) + " | greedy |")
    print("|---" * (len(columns) + 2) + "|")
    wrong = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for model, (errors, equal) in zip(models, pool.map(lambda folder: errors_of(args.weft, folder), models)):
            cells = " | ".join(f"{errors[column]:.0e}" for column in columns)
            print(f"| {model.name} | {cells} | {'equal' if equal else 'differs'} |", flush=True)
            if not equal or any(errors[dtype, form] > BOUNDS[dtype] for dtype, form in columns):
                wrong.append(model.name)
    print(f"\n{len(models) - len(wrong)} of {len(models)} agree" + (f"; not {', '.join(wrong)}" if wrong else ""))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
