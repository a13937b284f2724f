"""RWKV-4, 5.1, 5.2, 6 and 7 from ggml files: tools/convert_rwkv.py, then `weft logits` against the logits of the
reference code. Usage: rwkv_tiny_test.py WEFT.

tests/data/rwkv_tiny has the smallest files; with WEFT_RWKV_TINY=FOLDER every tiny-rwkv-*.bin of the folder is taken that
has its expected-logits-*.bin there.
"""

import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
IDS = "34,105,110"

# Largest difference of a logit from those of the unquantized model. Full precision: 1e-5;
# fp16 weights of RWKV-7: 1e-5. Quantized: what dequantized weights give in double precision, and a twentieth more.
QUANTIZED = {("4v0", "Q5_0"): 0.123, ("4v0", "Q5_1"): 0.0962, ("5v1", "Q5_0"): 1.744, ("5v1", "Q5_1"): 0.279,
             ("5v2", "Q5_0"): 0.510, ("5v2", "Q5_1"): 0.371, ("6v0", "Q5_0"): 0.157, ("6v0", "Q5_1"): 0.0757,
             ("7v0", "Q5_0"): 0.00372, ("7v0", "Q5_1"): 0.00416}


def bound_of(generation, numbers):
    return 1.05 * QUANTIZED[generation, numbers] if (generation, numbers) in QUANTIZED else 1e-5


def floats(file):
    data = file.read_bytes()
    return struct.unpack(f"<{len(data) // 4}f", data)


def last_logits(weft, model, scratch, form):
    out = scratch / "logits.f32"
    subprocess.run([weft, "logits", model, "--ids", IDS, "--out", out, "--quiet", *form], check=True)
    return floats(out)[-256:]


def check(weft, file, scratch):
    """Messages about what does not agree."""
    name, generation, numbers = re.fullmatch(r"tiny-rwkv-((\dv\d)-\w+)-(\w+)\.bin", file.name).groups()
    expected = floats(file.parent / f"expected-logits-{name}.bin")
    model = scratch / file.stem
    subprocess.run([sys.executable, ROOT / "tools/convert_rwkv.py", file, model], check=True, stdout=subprocess.DEVNULL)
    bound, problems = bound_of(generation, numbers), []
    for form in ([], ["--step"], ["--chunk", "2"], ["--dtype", "fp64"]):
        error = max(abs(ours - theirs) for ours, theirs in zip(last_logits(weft, model, scratch, form), expected))
        print(f"{file.name} {' '.join(form) or 'whole'}: {error:.3g}, bound {bound:.3g}")
        if not error <= bound:
            problems.append(f"{file.name} {form}: off by {error:.3g}, at most {bound:.3g} is expected")
    return problems


def broken_files(scratch):
    """Files that the converter must refuse."""
    whole = (ROOT / "tests/data/rwkv_tiny/tiny-rwkv-5v1-730K-Q5_0.bin").read_bytes()
    problems = []
    for name, data in (("empty", b""), ("other", b"GGUF" + whole[4:]), ("cut", whole[:5000]), ("long", whole + b"12345"),
                       ("type", whole[:32] + b"\x05" + whole[33:])):
        file = scratch / f"{name}.bin"
        file.write_bytes(data)
        result = subprocess.run([sys.executable, ROOT / "tools/convert_rwkv.py", file, scratch / name],
                                capture_output=True, text=True)
        if result.returncode == 0 or str(file) not in result.stderr or (scratch / name).exists():
            problems.append(f"{name}: not refused by name: {result.stderr}")
    return problems


def main():
    weft = sys.argv[1]
    folder = os.environ.get("WEFT_RWKV_TINY")
    if not folder:
        print("WEFT_RWKV_TINY is not set: only the models in tests/data/rwkv_tiny, RWKV-6 is not among them")
    files = sorted(pathlib.Path(folder or ROOT / "tests/data/rwkv_tiny").glob("tiny-rwkv-*.bin"))
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        problems = broken_files(scratch) + [p for file in files for p in check(weft, file, scratch)]
    print("\n".join(problems) or f"{len(files)} models agree")
    return 1 if problems or not files else 0


if __name__ == "__main__":
    sys.exit(main())
