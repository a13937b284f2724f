#!/usr/bin/env python3
"""Public GPU kernels as a peer of `weft bench ops --device cuda`: one library a process.

    gpu_ops.py fla | mamba_ssm | torch [--compile]

It speaks the protocol that README.md describes. Shapes are the headline shapes of src/bench/cases/gpu.h; a case KEY is
the forward pass, KEY.backward the forward and backward pass. The libraries must be importable; mamba_ssm's and
causal_conv1d's compiled parts (selective_scan_cuda, causal_conv1d_cuda) too where a case needs them. What a library raises
is the answer to its case. First calls tune for minutes: the first `run` of a case includes that. Nearly all of it is
compiling: --compile lets every case run once, several at a time in processes of their own, which fills Triton's cache;
what is chosen then, on a busy GPU, is not kept (FLA_CACHE_RESULTS=0).
"""
import concurrent.futures
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import time
import types
import warnings

if len(sys.argv) < 2 or sys.argv[1] not in ("fla", "mamba_ssm", "torch") or sys.argv[2:3] not in ([], ["--compile"]):
    sys.exit(__doc__)
try:
    import torch
except ImportError:
    sys.exit("gpu_ops.py: this Python has no torch; name one that has: --peer 'PYTHON bench/peers/gpu_ops.py LIBRARY'")
if not torch.cuda.is_available():
    sys.exit("gpu_ops.py: torch finds no GPU")

warnings.filterwarnings("ignore")
BATCH, TOKENS, HEADS, WIDTH = 8, 2048, 16, 128
DEVICE, TYPE = "cuda", torch.bfloat16
CACHE_BYTES = 67e6  # sets of inputs fill more than the second-level cache holds
CYCLES_PER_S, LONGEST_DELAY_S = 1.7e9, 0.02


def normal(*sizes, scale=1.0):
    return (torch.randn(*sizes, device=DEVICE) * scale).to(TYPE)


def uniform(sizes, low, high, dtype=torch.float32):
    return (torch.rand(*sizes, device=DEVICE) * (high - low) + low).to(dtype)


def unit(x):
    return torch.nn.functional.normalize(x.float(), dim=-1).to(x.dtype)


def heads(batch=BATCH, tokens=TOKENS, count=HEADS, width=WIDTH):
    return normal(batch, tokens, count, width)


def gates(low=-0.3, high=0.0, dtype=torch.float32, count=HEADS):
    return uniform((BATCH, TOKENS, count), low, high, dtype)


class Case:
    """`make` gives the inputs; those in floating point get gradients. `call` gives the output."""

    def __init__(self, make, call, backward=True):
        self.make, self.call, self.backward = make, call, backward
        self.sets, self.used, self.queueing_s = [], 0, 0.0

    def inputs(self):
        if not self.sets:
            first = self.make()
            size = sum(x.nbytes for x in first)
            count = max(2, min(64, int(CACHE_BYTES / size) + 1))
            self.sets = [[x.clone() for x in first] for _ in range(count)]
        self.used += 1
        return self.sets[self.used % len(self.sets)]

    def once(self, backward):
        inputs = self.inputs()
        for x in inputs:
            if x.is_floating_point():
                x.requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            y = self.call(*inputs)
        if backward:
            if not hasattr(self, "upstream"):
                self.upstream = torch.randn_like(y)
            torch.autograd.grad(y, [x for x in inputs if x.requires_grad], self.upstream, allow_unused=True)

    def run(self, calls, backward):
        """Seconds on the device, which is kept busy until the calls are queued."""
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(int(CYCLES_PER_S * min(1.5 * self.queueing_s * calls + 1e-5, LONGEST_DELAY_S)))
        start.record()
        begin = time.perf_counter()
        for _ in range(calls):
            self.once(backward)
        self.queueing_s = (time.perf_counter() - begin) / calls
        stop.record()
        stop.synchronize()
        return 1e-3 * start.elapsed_time(stop)


def fla_cases():
    from fla.modules.causal_conv1d import causal_conv1d
    from fla.ops.delta_rule import chunk_delta_rule
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
    from fla.ops.gla import chunk_gla
    from fla.ops.hgrn import chunk_hgrn
    from fla.ops.kda import chunk_kda
    from fla.ops.linear_attn import chunk_linear_attn
    from fla.ops.retention import chunk_retention
    from fla.ops.rwkv7 import chunk_rwkv7
    from fla.ops.simple_gla import chunk_simple_gla

    def qkv():
        return [heads(), heads(), heads()]

    def erasing(*more):
        return [heads(), unit(heads()), heads(), *more, gates(0, 1, TYPE)]

    def vector_gate():
        return -torch.rand(BATCH, TOKENS, HEADS, WIDTH, device=DEVICE).mul(0.3).to(TYPE)

    def low_rank():
        sizes = (BATCH, TOKENS, 32, 64)
        direction = unit(normal(*sizes))
        gate = -uniform(sizes, 0, 0.3, TYPE)
        return [normal(*sizes), gate, normal(*sizes), normal(*sizes), -direction,
                direction * uniform(sizes, 0, 1, TYPE)]  # fmt: skip

    def step(batch):
        sizes = (batch, 1, HEADS, WIDTH)
        return [normal(*sizes), unit(normal(*sizes)), normal(*sizes), uniform((batch, 1, HEADS), -0.3, 0),
                uniform((batch, 1, HEADS), 0, 1, TYPE),
                torch.randn(batch, HEADS, WIDTH, WIDTH, device=DEVICE)]  # fmt: skip

    def one_step(q, k, v, g, beta, state):
        return fused_recurrent_gated_delta_rule(q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True)[0]

    cases = {
        "gpu_none": Case(qkv, lambda q, k, v: chunk_linear_attn(q, k, v, normalize=False)[0]),
        "gpu_constant": Case(qkv, lambda q, k, v: chunk_retention(q, k, v)[0]),
        "gpu_scalar": Case(lambda: [*qkv(), gates()], lambda q, k, v, g: chunk_simple_gla(q, k, v, g=g)[0]),
        "gpu_vector": Case(lambda: [*qkv(), vector_gate()], lambda q, k, v, g: chunk_gla(q, k, v, g)[0]),
        "gpu_delta": Case(lambda: erasing(), lambda q, k, v, b: chunk_delta_rule(q, k, v, b)[0]),
        "gpu_gdn": Case(lambda: erasing(gates()), lambda q, k, v, g, b: chunk_gated_delta_rule(q, k, v, g, b)[0]),
        "gpu_kda": Case(lambda: erasing(vector_gate()), lambda q, k, v, g, b: chunk_kda(q, k, v, g, b)[0]),
        "gpu_rwkv7": Case(low_rank, lambda r, w, k, v, a, b: chunk_rwkv7(r, w, k, v, a, b)[0]),
        "gpu_scan": Case(lambda: [normal(BATCH, TOKENS, 2048), uniform((BATCH, TOKENS, 2048), -0.3, 0, TYPE)],
                         lambda x, g: chunk_hgrn(x, g)[0]),
        "gpu_conv": Case(lambda: [normal(BATCH, TOKENS, 2048), normal(2048, 4, scale=0.5)],
                         lambda x, w: causal_conv1d(x, w, activation="silu")[0]),
    }  # fmt: skip
    for batch in (1, 32, 256):
        cases[f"gpu_gdn_step_{batch}"] = Case(lambda batch=batch: step(batch), one_step, backward=False)
    return cases


def mamba_cases():
    # Without the package's __init__, which imports models and what they need.
    package = types.ModuleType("mamba_ssm")
    spec = importlib.util.find_spec("mamba_ssm") if "mamba_ssm" not in sys.modules else None
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["mamba_ssm"] = package
    cases = {}

    def ssd():
        return [normal(BATCH, TOKENS, 32, 64), gates(0.5, 1.5, TYPE, 32), uniform((32,), -0.3, -0.01),
                normal(BATCH, TOKENS, 1, 128), normal(BATCH, TOKENS, 1, 128)]  # fmt: skip

    try:
        from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

        cases["gpu_mamba2"] = Case(ssd, lambda x, dt, a, b, c: mamba_chunk_scan_combined(x, dt, a, b, c, 256))
    except ImportError as error:
        print(f"mamba_ssm ssd: {error}", file=sys.stderr)
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_cuda, selective_scan_fn

        if selective_scan_cuda is None:
            raise ImportError("selective_scan_cuda is not there")

        def selective():
            rows = (BATCH, 2048, TOKENS)  # channels first
            return [normal(*rows), uniform(rows, 0.001, 0.1, TYPE), -uniform((2048, 16), 0.5, 16),
                    normal(BATCH, 16, TOKENS), normal(BATCH, 16, TOKENS), uniform((2048,), 0.5, 1.5)]  # fmt: skip

        cases["gpu_selective"] = Case(selective, lambda u, d, a, b, c, skip: selective_scan_fn(u, d, a, b, c, skip))
    except ImportError as error:
        print(f"mamba_ssm selective scan: {error}", file=sys.stderr)
    try:
        from causal_conv1d import causal_conv1d_fn

        cases["gpu_conv"] = Case(
            lambda: [normal(BATCH, TOKENS, 2048), normal(2048, 4, scale=0.5)],
            lambda x, w: causal_conv1d_fn(x.transpose(1, 2), w, activation="silu").transpose(1, 2),
        )
    except ImportError as error:
        print(f"causal_conv1d: {error}", file=sys.stderr)
    return cases


def torch_cases():
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    flex = torch.compile(flex_attention)

    def rows(batch, tokens):
        return [normal(batch, HEADS, tokens, WIDTH) for _ in range(3)]

    def masked(name, batch, tokens):
        def sees(b, h, q, k):
            if name == "window":
                return (q >= k) & (q - k < 512)
            half = tokens // 2
            clean_q, clean_k = q < half, k < half
            block = (q - half) // 16
            return torch.where(clean_q, clean_k & (q >= k),
                               torch.where(clean_k, k < block * 16, (k - half) // 16 == block))  # fmt: skip

        mask = create_block_mask(sees, None, None, tokens, tokens, device=DEVICE)
        return Case(lambda: rows(batch, tokens), lambda q, k, v: flex(q, k, v, block_mask=mask))

    def causal(q, k, v):
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    # cuDNN's layer has one head; the same layer stands beside several heads, whose matrices are smaller. In fp16: cuDNN
    # has no persistent kernel in bf16 and takes several times as long there.
    lstm = torch.nn.LSTM(768, 768, batch_first=True, bias=False, device=DEVICE, dtype=torch.float16)
    layer = Case(lambda: [normal(16, 1024, 768).half()], lambda x: lstm(x)[0])
    conv = torch.nn.functional.conv1d

    def short_conv(x, w):
        y = conv(x.transpose(1, 2), w.unsqueeze(1), padding=3, groups=w.size(0))[..., : x.size(1)]
        return torch.nn.functional.silu(y).transpose(1, 2)

    return {
        "gpu_causal": Case(lambda: rows(BATCH, TOKENS), causal),
        "gpu_tidar": masked("tidar", 2, 4096),
        "gpu_window": masked("window", 2, 4096),
        "gpu_lstm_1": layer,
        "gpu_lstm_6": layer,
        "gpu_lstm_12": layer,
        "gpu_conv": Case(lambda: [normal(BATCH, TOKENS, 2048), normal(2048, 4, scale=0.5)], short_conv),
    }


LIBRARIES = {
    "fla": (fla_cases, "flash-linear-attention"),
    "mamba_ssm": (mamba_cases, "mamba-ssm"),
    "torch": (torch_cases, "torch"),
}


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of unknown version"


def compile_cases(cases):
    def one(name):
        start = time.time()
        run = subprocess.run([sys.executable, __file__, sys.argv[1], "--compile", name], capture_output=True, text=True,
                             env={**os.environ, "FLA_CACHE_RESULTS": "0"}, check=False)  # fmt: skip
        result = "done" if run.returncode == 0 else run.stderr.strip().rpartition("\n")[2][:200]
        print(f"{name:20} {time.time() - start:6.0f} s  {result}", flush=True)
        return run.returncode

    # Each process holds inputs on the GPU.
    with concurrent.futures.ThreadPoolExecutor(max(1, min(8, (os.cpu_count() or 2) // 2))) as pool:
        return any(list(pool.map(one, cases)))


def main():
    make_cases, package = LIBRARIES[sys.argv[1]]
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    torch.manual_seed(1)
    cases = make_cases()
    if len(sys.argv) == 3:
        sys.stdout = answers
        return compile_cases(cases)
    if len(sys.argv) == 4:
        case = cases[sys.argv[3]]
        case.once(case.backward)
        return torch.cuda.synchronize()

    def answer(text):
        print(text, file=answers, flush=True)

    answer(f"peer {package} {version(package)}")
    for key, case in cases.items():
        answer(f"case {key}")
        if case.backward:
            answer(f"case {key}.backward")
    answer("ready")
    for line in sys.stdin:
        _, key, calls = line.split()
        name, _, backward = key.partition(".")
        try:
            answer(f"time {cases[name].run(int(calls), bool(backward)):.9f}")
        except Exception as error:  # noqa: BLE001 - whatever a library raises is its answer
            answer("error " + " ".join(str(error).split())[:300])
            cases[name].sets = []


if __name__ == "__main__":
    sys.exit(main())
