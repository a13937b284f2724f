#!/usr/bin/env python3
"""torch.ops.weft.* from Python: the lines of docs/python.md, and ops against the same written in torch, with gradients.

    tests/python_ops_test.py LIBRARY     LIBRARY: build/release/libweft.so

Exit status 77 (skipped) where Python has no torch, or another version than the one that weft was built with.
"""
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = 77


def skip(why):
    print(f"skipped: {why}")
    sys.exit(SKIPPED)


def built_with(library):
    text = subprocess.run([library.parent / "weft", "version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"torch +(\d+\.\d+)", text).group(1)


def run_page(library):
    """The code of docs/python.md as it stands, with this build's library."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/python.md").read_text(), re.S).group(1)
    names = {}
    exec(code.replace("build/release/libweft.so", str(library)), names)  # pylint: disable=exec-used
    assert names["b"].grad is not None and names["h"].shape == names["b"].shape


def check(name, weft, plain, inputs):
    """Values, and gradients of a weighted sum, of two functions of the same inputs."""
    results = []
    for function in (weft, plain):
        leaves = [x.clone().requires_grad_() for x in inputs]
        y = function(*leaves)
        torch.manual_seed(5)
        (y * torch.randn_like(y)).sum().backward()
        results.append([y.detach()] + [x.grad for x in leaves])
    for place, (ours, theirs) in enumerate(zip(*results)):
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        assert error < 2e-5, f"{name}: {'output' if place == 0 else f'gradient {place - 1}'} differs by {error}"
    print(f"{name}: same values and gradients")


def loop_scan(a, b):
    h, rows = torch.zeros_like(b[:, 0]), []
    for t in range(b.shape[1]):
        h = a[:, t] * h + b[:, t]
        rows.append(h)
    return torch.stack(rows, 1)


def loop_linear_attention(q, k, v, log_decay, beta):
    state, rows = torch.zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3]), []
    for t in range(q.shape[1]):
        state = state * log_decay[:, t, :, None, None].exp()
        error = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], state)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, t], error * beta[:, t, :, None])
        rows.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state) / q.shape[3] ** 0.5)
    return torch.stack(rows, 1)


def sdpa(q, k, v):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def main(library):
    ops = torch.ops.weft
    n = torch.randn
    check("scan", lambda a, b: ops.scan(a, b)[0], loop_scan, [torch.rand(2, 70, 5), n(2, 70, 5)])
    k = torch.nn.functional.normalize(n(2, 70, 3, 16), dim=-1)
    check("linear_attention", lambda *x: ops.linear_attention(*x)[0], loop_linear_attention,
          [n(2, 70, 3, 16), k, n(2, 70, 3, 8), -torch.rand(2, 70, 3), torch.rand(2, 70, 3)])
    check("attention", lambda q, k, v: ops.attention(q, k, v)[0], sdpa,
          [n(2, 70, 4, 16), n(2, 70, 2, 16), n(2, 70, 2, 16)])
    check("rms_norm", lambda x, w: ops.rms_norm(x, w, 1e-5),
          lambda x, w: torch.nn.functional.rms_norm(x, (x.shape[-1],), w, 1e-5), [n(9, 33), n(33)])
    try:
        ops.scan(torch.rand(3), n(2, 70, 5))
    except RuntimeError as error:
        assert "scan" in str(error), error
    else:
        raise AssertionError("scan took an `a` of the wrong width")


if __name__ == "__main__":
    LIBRARY = Path(sys.argv[1]).resolve()
    try:
        import torch
    except ImportError as missing:
        skip(f"{sys.executable} cannot import torch: {missing}")
    wanted, found = built_with(LIBRARY), ".".join(torch.__version__.split(".")[:2])
    if wanted != found:
        skip(f"weft was built with torch {wanted}, this Python has {found}")
    torch.manual_seed(1)
    run_page(LIBRARY)
    main(LIBRARY)
