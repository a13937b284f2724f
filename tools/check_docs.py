#!/usr/bin/env python3
"""Checks that README.md, CONTRIBUTING.md and docs/ say what is so.

Without the program: links lead to files and headings that exist; paths in code are there; docs/performance.md is as
tools/performance_page.py made it; a code block below
`<!-- from: PATH -->` is a run of lines of that file; the blocks below `<!-- layers -->` and `<!-- ops -->` name the folders
of src (top to bottom, as tools/check_layers.py ranks them) and of src/ops.
With --weft PROGRAM: every command line `weft ...` names a command and flags that exist, also those in bootstrap; every mixer
named exists; docs/reference holds what the program prints.
With --run as well: blocks below `<!-- file: NAME -->` become files of a scratch folder in which recipes, tests, examples and
the like are seen; blocks below `<!-- run -->` must succeed there, README first; every line of the block below
`<!-- output -->` that follows must occur in what was printed.

    tools/check_docs.py [--weft PROGRAM [--run | --write]]   --write brings docs/reference up to date
    tools/check_docs.py --self-test                          plants mistakes and expects each to be found
"""
import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from check_layers import RANKS  # noqa: E402
from performance_page import is_generated, is_unchanged, signed  # noqa: E402

REFERENCE = {"docs/reference/mixers.md": ["mixers", "--markdown"], "docs/reference/recipe.md": ["recipe", "--markdown"],
             "docs/reference/tasks.md": ["tasks", "--markdown"]}
GENERATED = {"docs/performance.md": "tools/performance_page.py", "docs/performance-gpu.md": "tools/performance_page.py",
             "docs/claims.md": "tools/claims_page.py"}
SECONDS = 300  # for one block; all of them take far less
MARKER = re.compile(r"^<!-- (from|file|run|output|layers|ops)(?:: (\S+))? -->$")
COMMAND = re.compile(r'(?:^|[\s(&|;])(?:[\w./$"{}]*/)?weft"?((?: +[^`#|>&;\n]+)?)')
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w/$.<-])(?:src|docs|tests|tools|recipes|examples|cmake)/[\w./<>*-]+")
MIXER = re.compile(r"\bmixer: ([a-z][a-z0-9_]*)")


class Block:
    def __init__(self, line, marker, argument, text):
        self.line, self.marker, self.argument, self.text = line, marker, argument, text


class Page:
    """A Markdown file: its code blocks, and the rest with the blocks' lines left empty."""

    def __init__(self, root, path):
        self.name = path.relative_to(root).as_posix()
        self.folder = path.parent
        self.lines = path.read_text(encoding="utf-8").splitlines()
        self.blocks, self.prose = [], []
        start, marker = None, (None, None)
        for number, line in enumerate(self.lines, 1):
            if line.startswith("```"):
                if start is None:
                    start = number
                else:
                    self.blocks.append(Block(start, *marker, "\n".join(self.lines[start : number - 1])))
                    start, marker = None, (None, None)
            elif start is None:
                match = MARKER.match(line)
                marker = match.groups() if match else marker if not line else (None, None)
            self.prose.append(line if start is None and not line.startswith("```") else "")

    def headings(self):
        titles = (line.lstrip("#").strip().lower() for line in self.prose if line.startswith("#"))
        return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}

    def code(self):
        """(line number, text) of everything set as code: lines of blocks and spans between backquotes."""
        for block in self.blocks:
            for offset, line in enumerate(block.text.splitlines(), 1):
                yield block.line + offset, line
        for number, line in enumerate(self.prose, 1):
            for span in re.findall(r"`([^`]+)`", line):
                yield number, span


class Program:
    """Commands, flags and mixers of the built program."""

    def __init__(self, path):
        self.path = Path(path).resolve()
        listed = self.print("--help").split("commands:")[1]
        self.flags = {name: self.flags_of(name) for name in re.findall(r"^  (\w+)  ", listed, re.MULTILINE)}
        self.mixers = set(re.findall(r"^  (\w+)  ", self.print("mixers"), re.MULTILINE))

    def print(self, *arguments):
        return subprocess.run([self.path, *arguments], check=True, capture_output=True, text=True).stdout

    def flags_of(self, command):
        help_lines = re.findall(r"^ +(-\S+)", self.print(command, "--help"), re.MULTILINE)
        return {flag for line in help_lines for flag in line.split(",")}


def pages_of(root):
    root = Path(root)
    paths = [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").rglob("*.md"))]
    return [Page(root, path) for path in paths if path.exists()]


def wrong_links(root, page):
    for number, line in enumerate(page.prose, 1):
        for target in LINK.findall(line):
            if re.match(r"\w+:", target):
                continue
            file, _, heading = target.partition("#")
            path = page.folder / file if file else Path(root) / page.name
            if not path.exists():
                yield number, f"the link to {target} leads nowhere"
            elif heading and heading not in Page(Path(root).resolve(), path.resolve()).headings():
                yield number, f"{file or page.name} has no heading #{heading}"


def wrong_paths(root, page):
    for number, text in page.code():
        for path in PATH.findall(text):
            made_up = re.search(r"[<>*]|[A-Z]{4}", path)  # src/ops/<op>, src/nn/mixers/NAME.cc
            if not made_up and not (Path(root) / path.rstrip(".")).exists():
                yield number, f"{path} does not exist"


def wrong_quotes(root, page):
    for block in page.blocks:
        if block.marker != "from":
            continue
        path = Path(root) / block.argument
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        indents = {line[: len(line) - len(line.lstrip())] for line in text.splitlines()}
        indented = ("\n".join(i + line if line else line for line in block.text.splitlines()) for i in indents)
        if not any(f"\n{quote}\n" in f"\n{text}\n" for quote in indented):
            yield block.line, f"this block is not in {block.argument}"


def wrong_folders(root, page):
    src = Path(root) / "src"
    layers = sorted((p.name for p in src.iterdir() if p.name in RANKS), key=lambda name: (-RANKS[name], name))
    families = sorted(p.name for p in (src / "ops").iterdir() if (p / f"{p.name}.h").exists())
    for block in page.blocks:
        named = [word for words in re.findall(r"^\w+(?:, \w+)*", block.text, re.MULTILINE) for word in words.split(", ")]
        if block.marker == "layers" and named != layers:
            yield block.line, f"names the layers {', '.join(named)}, but src has, from the top, {', '.join(layers)}"
        if block.marker == "ops" and sorted(named) != families:
            yield block.line, f"names the families {', '.join(named)}, but src/ops has {', '.join(families)}"


def wrong_command(arguments, program):
    """What is wrong with the words after `weft`, or None."""
    try:
        words = shlex.split(arguments)
    except ValueError:
        words = arguments.split()
    if not words or words[0] in ("--help", "--version") or not re.fullmatch(r"[a-z]+", words[0]):
        return None
    if words[0] not in program.flags:
        return f"weft has no command '{words[0]}'"
    for word in words[1:]:
        flag = word.split("=")[0]
        if re.fullmatch(r"--?[a-z][\w-]*", flag) and flag not in program.flags[words[0]]:
            return f"weft {words[0]} has no flag {flag}"
    return None


def command_lines(page):
    """(line, words after `weft`) in what is set as code, but not in comments there."""
    for block in page.blocks:
        if block.marker in ("from", "output", "file"):
            continue
        joined = re.sub(r"(^|[ \t])#.*", "", block.text.replace("\\\n", " "), flags=re.MULTILINE)
        for match in COMMAND.finditer(joined):
            yield block.line + 1 + joined[: match.start()].count("\n"), match.group(1)
    for number, line in enumerate(page.prose, 1):
        for span in re.findall(r"`([^`]+)`", line):
            if span.startswith("weft "):
                yield number, span[len("weft") :]


def wrong_commands(page, program):
    for number, words in command_lines(page):
        problem = wrong_command(words.replace("[", "").replace("]", ""), program)
        if problem:
            yield number, problem
    for number, text in page.code():
        for mixer in MIXER.findall(text):
            if mixer not in program.mixers | {"leaky_average"}:
                yield number, f"there is no mixer {mixer}"


def wrong_bootstrap(root, program):
    path = Path(root) / "bootstrap"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else [], 1):
        match = re.search(r'"\$build/weft" (\w.*)', line)
        problem = wrong_command(match.group(1), program) if match else None
        if problem:
            yield f"bootstrap:{number}: {problem}"


def wrong_digest(_, page):
    text = "\n".join(page.lines) + "\n"
    if page.name in GENERATED and not is_generated(text, GENERATED[page.name]):
        yield 1, f"is not what {GENERATED[page.name]} makes"
    for tool in sorted(set(GENERATED.values())):
        if is_generated(text, tool) and not is_unchanged(text, tool):
            yield 1, f"was changed by hand; make it anew with {tool}"


def static_problems(root):
    for page in pages_of(root):
        for check in (wrong_links, wrong_paths, wrong_quotes, wrong_folders, wrong_digest):
            yield from (f"{page.name}:{number}: {message}" for number, message in check(root, page))


def program_problems(root, program):
    for page in pages_of(root):
        yield from (f"{page.name}:{number}: {message}" for number, message in wrong_commands(page, program))
    yield from wrong_bootstrap(root, program)


def reference_problems(root, program, write):
    for name, arguments in REFERENCE.items():
        path, text = Path(root) / name, program.print(*arguments)
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            yield f"{name}: not what `weft {' '.join(arguments)}` prints; run tools/check_docs.py --weft PROGRAM --write"


def run_block(block, folder, environment):
    """Returns (what was printed, whether it succeeded)."""
    with subprocess.Popen(["bash", "-euo", "pipefail", "-c", block.text], cwd=folder, env=environment, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          start_new_session=True) as process:
        try:
            printed, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.communicate()[0] + f"\nstill running after {SECONDS} s", False
    return printed, process.returncode == 0


def run_pages(root, program):
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for entry in Path(root).resolve().iterdir():
            if entry.name not in ("build", "runs", ".git"):
                (folder / entry.name).symlink_to(entry)
        # Threads that wait must not spin: other tests may run beside this one.
        environment = os.environ | {"PATH": f"{program.path.parent}:{os.environ['PATH']}", "OMP_WAIT_POLICY": "passive"}
        for page in pages_of(root):
            printed = ""
            for block in page.blocks:
                place = f"{page.name}:{block.line}"
                if block.marker == "file":
                    (folder / block.argument).write_text(block.text + "\n", encoding="utf-8")
                elif block.marker == "run":
                    printed, good = run_block(block, folder, environment)
                    if not good:
                        yield f"{place}: this block fails:\n{printed}"
                elif block.marker == "output":
                    missing = [line for line in block.text.splitlines() if line.strip() not in printed]
                    if missing:
                        yield f"{place}: not printed: {missing[0]}\nbut this was:\n{printed}"


class FakeProgram:
    flags = {"train": {"--set", "--resume"}, "generate": {"--tokens", "-n"}}
    mixers = {"attention"}


PLANTED = [  # text of README.md, expected in the message; None: nothing is wrong
    ("[a](b.md)", "leads nowhere"),
    ("[a](README.md#nowhere)", "no heading"),
    ("# Some Title!\n[a](#some-title)", None),
    ("`src/ops/b.h`", "src/ops/b.h does not exist"),
    ("`src/nn/mixers/NAME.cc` and `src/base/<file>.h`", None),
    ("<!-- from: code.cc -->\n```\nint a;\nint c;\n```", "not in code.cc"),
    ("<!-- from: code.cc -->\n```cpp\nint a;\n  int b;\n```", None),
    ("<!-- from: code.cc -->\n```cpp\nint b;\n```", None),
    ("<!-- layers -->\n```\nbase  below\nnn  above\n```", "names the layers base, nn"),
    ("<!-- layers -->\n```\nnn    above\nops   kernels\nbase  below\n```", None),
    ("<!-- ops -->\n```\nscan, conv  both\n```", "names the families scan, conv"),
    ("<!-- ops -->\n```\nscan  one\n```", None),
    ("`weft tarin`", "no command 'tarin'"),
    ("```\nweft train a.yaml --sets b=1\n```", "no flag --sets"),
    ("```\nbuild/release/weft generate runs/a \"x\" --prompt y\n```", "no flag --prompt"),
    ("```\nweft generate runs/a \"x - y\" -n 20 2>/dev/null | head -c 3   # weft is quiet\n```", None),
    ("`{mixer: atention}`", "no mixer atention"),
    (signed("# Performance\n").rstrip("\n"), None),
    (signed("# Performance\n") + "fast", "changed by hand"),
]


def self_test():
    wrong = []
    for text, expected in PLANTED:
        with tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch)
            for folder in ("src/base", "src/nn", "src/ops/scan"):
                (root / folder).mkdir(parents=True)
            (root / "src/ops/scan/scan.h").write_text("")
            (root / "code.cc").write_text("int a;\n  int b;\n")
            (root / "README.md").write_text(text + "\n")
            found = [*static_problems(root), *program_problems(root, FakeProgram)]
        if (found if expected is None else len(found) != 1 or expected not in found[0]):
            wrong.append(f"{text!r}: expected {expected or 'nothing'}, found {found or 'nothing'}")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weft", metavar="PROGRAM")
    for flag in ("--run", "--write", "--self-test"):
        parser.add_argument(flag, action="store_true")
    given = parser.parse_args()
    if given.self_test:
        wrong = self_test()
        print("\n".join(wrong) if wrong else f"self-test: {len(PLANTED)} planted pages judged rightly")
        return 1 if wrong else 0
    root = Path(__file__).resolve().parent.parent
    if (given.run or given.write) and not given.weft:
        parser.error("--run and --write need --weft PROGRAM")
    program = Program(given.weft) if given.weft else None
    found = list(reference_problems(root, program, given.write)) if program else []
    found += static_problems(root)
    if program:
        found += program_problems(root, program)
    if given.run:
        found += run_pages(root, program)
    print("\n".join(found) if found else f"{len(pages_of(root))} pages, all that was checked holds")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
