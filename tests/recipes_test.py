#!/usr/bin/env python3
"""Runs every recipe that has a smoke size, and expects of each arm a result, and a loss that has fallen where it trains on
a loss.

    tests/recipes_test.py PROGRAM      exit status 1, with what went wrong, if anything did
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def problems(program, recipe, folder):
    """What is wrong with one recipe's smoke run, as texts."""
    command = [program, "reproduce", str(recipe), "--size", "smoke", "--device", "cpu", "--folder", str(folder), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        yield f"exit status {done.returncode}: {done.stderr.strip()[-500:]}"
        return
    result = json.loads((folder / "results.json").read_text())
    if not result["runs"]:
        yield "no runs"
    for run in result["runs"]:
        metrics = run["metrics"]
        if not metrics:
            yield f"{run['arm']}: no finite metrics"
        if "train_loss" in metrics and not metrics["train_loss"] < metrics["first_loss"]:
            yield f"{run['arm']}: the loss went from {metrics['first_loss']:.4f} to {metrics['train_loss']:.4f}"
    if not (folder / "results.svg").read_text().startswith("<svg"):
        yield "results.svg is not an SVG"


def main(program):
    recipes = [path for path in sorted((ROOT / "recipes").glob("*/recipe.yaml")) if "\n  smoke:" in path.read_text()]
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in recipes:
            found = list(problems(program, recipe, Path(scratch) / recipe.parent.name))
            wrong += len(found)
            print(f"{recipe.parent.name}: {'; '.join(found) if found else 'good'}", flush=True)
    return 1 if wrong or not recipes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
