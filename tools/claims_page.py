#!/usr/bin/env python3
"""Makes docs/claims.md of what `weft reproduce --json FILE` wrote.

    tools/claims_page.py FILE.json... > docs/claims.md        usually recipes/*/results/*.json
    tools/claims_page.py --self-test

Every verdict on the page is that of the file, with machine, date, commit and command. Recipes that have no file are listed
as not run. The page's first line holds a digest of the rest, by which tools/check_docs.py finds changes by hand.
"""
import json
import sys
from pathlib import Path

from performance_page import in_words, number, signed, table

ROOT = Path(__file__).resolve().parent.parent
TOOL = "tools/claims_page.py"


def measured(claim):
    if "mean" not in claim:
        return ""
    text = f"{claim['mean']:.4g}"
    return text if claim["seeds"] == 1 else f"{text} ({claim['low']:.4g} to {claim['high']:.4g})"


def arms_table(result):
    """Arms against the metrics the recipe reports; the mean over seeds."""
    names = [name for name in result["report"]
             if any(name in run["metrics"] for run in result["runs"])]
    arms = []
    for run in result["runs"]:
        if run["arm"] not in arms:
            arms.append(run["arm"])
    rows = []
    for arm in arms:
        row = [arm]
        for name in names:
            values = [run["metrics"][name] for run in result["runs"] if run["arm"] == arm and name in run["metrics"]]
            row.append(f"{sum(values) / len(values):.4g}" if values else "")
        rows.append(row)
    return table(["arm", *names], rows)


def section(result):
    seeds = len({run["seed"] for run in result["runs"]})
    text = f"\n## {result['system']}, size {result['size']}\n\n{result['title']}. {result['paper']}.\n"
    if result["note"]:
        text += f"\n{result['note'].strip()}\n"
    text += "\n" + table(["claim", "published", "measured", "needed", "bound", "verdict"],
                         [[c["name"], c["published"], measured(c), c["bound"], c["threshold"], f"**{c['verdict']}**"]
                          for c in result["claims"]], left=9)
    text += "\n" + arms_table(result)
    text += (f"\n{seeds} seed{'s' if seeds != 1 else ''}, {number(result['seconds'])} s of training in all. "
             f"{result['machine']}; {result['date']}, commit {result['commit'] or 'unknown'}; "
             f"`{in_words(result['command'])}`\n")
    return text


def page(results, recipes, large=()):
    """The page's text; `recipes` are the names of all recipes with claims, `large` those that have a size h100."""
    results = sorted(results, key=lambda r: (r["system"], r["size"]))
    verdicts = [c["verdict"] for r in results for c in r["claims"] if c["verdict"] in ("holds", "refuted")]
    body = ("# Claims\n\nWhat papers say and what came out here, by `weft reproduce`; see [reproducing](reproducing.md). A claim "
            "whose bound is *ours* was made fit for small machines, *published* bounds are the paper's. Refuted "
            "claims are results too: mostly of small models and short training.\n\n"
            f"{verdicts.count('holds')} claims hold, {verdicts.count('refuted')} are refuted.\n")
    missing = sorted(set(recipes) - {r["system"] for r in results})
    if missing:
        body += f"\nNot run: {', '.join(missing)}.\n"
    missing = sorted(set(large) - {r["system"] for r in results if r["size"] == "h100"})
    if missing:
        body += f"\nNot run at size h100: {', '.join(missing)}.\n"
    return signed(body + "".join(section(r) for r in results), TOOL)


def recipes_with_claims():
    return [path.parent.name for path in sorted((ROOT / "recipes").glob("*/recipe.yaml")) if "\nclaims:" in path.read_text()]


def recipes_with_large_size():
    return [path.parent.name for path in sorted((ROOT / "recipes").glob("*/recipe.yaml")) if "\n  h100:" in path.read_text()]


def self_test():
    """A page of two made-up results says what they say and nothing else."""
    result = {"system": "a", "title": "A", "paper": "P", "note": "", "size": "cpu", "machine": "M", "date": "2026-01-01",
              "commit": "abc", "command": "weft reproduce a", "version": "0", "seconds": 12.0, "report": ["accuracy"],
              "claims": [{"name": "c1", "published": "0.9, t 1", "bound": "at least 0.8", "threshold": "ours",
                          "verdict": "holds", "mean": 0.85, "low": 0.8, "high": 0.9, "seeds": 2},
                         {"name": "c2", "published": "", "bound": "at most 0.1", "threshold": "ours", "verdict": "refuted",
                          "mean": 0.2, "low": 0.2, "high": 0.2, "seeds": 1}],
              "runs": [{"arm": "x", "seed": 1, "metrics": {"accuracy": 0.8}}, {"arm": "x", "seed": 2, "metrics": {"accuracy": 0.9}},
                       {"arm": "y", "seed": 1, "metrics": {}}]}
    text = page([result], ["a", "b"], ["a"])
    wanted = ["1 claims hold, 1 are refuted.", "Not run: b.", "Not run at size h100: a.", "| c1 | 0.9, t 1 | 0.85 (0.8 to 0.9) | at least 0.8 | ours | **holds** |",
              "| x | 0.85 |", "| y |  |", "commit abc", "2 seeds, 12.0 s"]
    wrong = [want for want in wanted if want not in text]
    if "nan" in text:
        wrong.append("no nan")
    return wrong


def main(arguments):
    if arguments == ["--self-test"]:
        wrong = self_test()
        print("\n".join(f"missing: {want}" for want in wrong) if wrong else "self-test: the page says what the results say")
        return 1 if wrong else 0
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    print(page([json.loads(Path(path).read_text()) for path in arguments], recipes_with_claims(),
               recipes_with_large_size()), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
