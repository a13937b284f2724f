#!/usr/bin/env python3
"""Checks what may include what. A layer includes only itself and layers below it:

    cli > apps, bench > study, serve, search > sim, train, infer > parallel > io > nn > ops > base

Layers of one rank do not include each other. `cuda` (libweft_cuda.so) sees ops and base; nobody sees `cuda` or `cli`.
Beside that: kernel files (kernel*.h, kernel_cpu*.cc, *.cu), src/ops/simd and src/base include nothing of torch, and no
header includes <iostream>.

    tools/check_layers.py [ROOT]        prints file:line: message for each violation; exit status 1 if there is one
    tools/check_layers.py --self-test   plants violations in a temporary folder and expects each to be found
"""
import re
import sys
import tempfile
from pathlib import Path

RANKS = {"base": 0, "ops": 1, "nn": 2, "io": 3, "parallel": 4, "sim": 5, "train": 5, "infer": 5, "study": 6, "serve": 6, "search": 6,
         "apps": 7, "bench": 7, "cli": 8}
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^">]+)[">]')
TORCH = re.compile(r"^(ATen|c10|torch|caffe2)/")
KERNEL = re.compile(r"^ops/(.*/)?(kernel[a-z0-9_]*\.h|kernel_cpu[a-z0-9_]*\.cc)$|^(ops|cuda)/.*\.cu$|^ops/simd/|^base/")
NOT_KERNELS = {"ops/kernel_choice.h", "ops/simd/dispatch.h"}  # the host side, which chooses a kernel for a tensor
SUFFIXES = {".h", ".cc", ".cu", ".cuh"}


def may_include(layer, other):
    """Whether a file of `layer` may include a header of `other`."""
    if layer == other:
        return True
    if layer == "cuda":
        return other in ("base", "ops")
    return other in RANKS and RANKS[other] < RANKS[layer]


def violations_of(path, src):
    """Yields (line number, message) for one file."""
    name = path.relative_to(src).as_posix()
    layer = name.split("/")[0]
    kernel = bool(KERNEL.match(name)) and name not in NOT_KERNELS
    if layer not in RANKS and layer != "cuda":
        yield 1, f"folder {layer} has no rank; add it to RANKS in tools/check_layers.py"
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        included = match.group(1)
        other = included.split("/")[0]
        if "/" in included and (other in RANKS or other == "cuda") and not may_include(layer, other):
            yield number, f"{layer} must not include {included}: {other} is not below it"
        if kernel and TORCH.match(included):
            yield number, f"{included}: kernels, simd and base are free of torch"
        if path.suffix in (".h", ".cuh") and included == "iostream":
            yield number, "<iostream> in a header; <iosfwd> will do, or move the output to a .cc"


def check(root):
    """All violations below root/src as texts."""
    src = Path(root) / "src"
    files = sorted(p for p in src.rglob("*") if p.suffix in SUFFIXES)
    return [f"{path}:{number}: {message}" for path in files for number, message in violations_of(path, src)], len(files)


PLANTED = [  # file, include, expected in the message; None: allowed
    ("src/base/a.h", '"ops/shape.h"', "base must not include ops/shape.h"),
    ("src/ops/scan/scan.cc", '"nn/mixer.h"', "ops must not include nn/mixer.h"),
    ("src/infer/a.cc", '"train/loop.h"', "infer must not include train/loop.h"),
    ("src/train/a.cc", '"infer/decode.h"', "train must not include infer/decode.h"),
    ("src/nn/a.cc", '"io/safetensors.h"', "nn must not include io/safetensors.h"),
    ("src/cuda/a.cc", '"nn/mixer.h"', "cuda must not include nn/mixer.h"),
    ("src/ops/b.cc", '"cuda/copy.h"', "ops must not include cuda/copy.h"),
    ("src/search/a.h", '"serve/server.h"', "search must not include serve/server.h"),
    ("src/ops/scan/kernel.h", "<ATen/core/Tensor.h>", "free of torch"),
    ("src/ops/scan/kernel_cpu_wide.cc", "<c10/util/BFloat16.h>", "free of torch"),
    ("src/ops/scan/kernel_sm90.cu", "<torch/library.h>", "free of torch"),
    ("src/ops/simd/a.h", "<ATen/core/Tensor.h>", "free of torch"),
    ("src/base/b.cc", "<ATen/core/Tensor.h>", "free of torch"),
    ("src/nn/b.h", "<iostream>", "<iostream> in a header"),
    ("src/other/a.cc", "<vector>", "has no rank"),
    ("src/cli/a.cc", '"infer/decode.h"', None),
    ("src/train/b.cc", '"io/safetensors.h"', None),
    ("src/cuda/glue.cc", "<c10/cuda/CUDAStream.h>", None),
    ("src/ops/kernel_choice.h", "<ATen/core/Tensor.h>", None),
    ("src/nn/c.cc", "<iostream>", None),
]


def self_test():
    """Each planted line is found, or let through, alone in a tree."""
    wrong = []
    for name, include, expected in PLANTED:
        with tempfile.TemporaryDirectory() as root:
            path = Path(root) / name
            path.parent.mkdir(parents=True)
            path.write_text(f"// planted\n#include {include}\n", encoding="utf-8")
            found, _ = check(root)
        good = not found if expected is None else len(found) == 1 and expected in found[0]
        if not good:
            wrong.append(f"{name} with {include}: expected {expected or 'nothing'}, found {found or 'nothing'}")
    return wrong


def main(arguments):
    if arguments == ["--self-test"]:
        wrong = self_test()
        print("\n".join(wrong) if wrong else f"self-test: {len(PLANTED)} planted includes judged rightly")
        return 1 if wrong else 0
    found, files = check(arguments[0] if arguments else Path(__file__).resolve().parent.parent)
    print("\n".join(found) if found else f"{files} files, every include points down")
    return 1 if found or not files else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
