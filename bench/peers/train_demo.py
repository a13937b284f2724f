#!/usr/bin/env python3
"""The demo model (recipes/demo/recipe.yaml) in plain PyTorch, eager: what weft's training speed is compared with.

One file, no compilation, no kernels of its own, but no straw man: Gated DeltaNet runs in chunks of 64 with batched
products and a triangular solve, attention through scaled_dot_product_attention, AdamW is the fused one. Reads a recipe
whose layers are gated_delta_net and attention with swiglu, and its batch, length and optimizer. Ids are random, as they
are in `weft bench model`: what a token is does not change how long it takes.

    python3 bench/peers/train_demo.py recipes/demo/recipe.yaml --steps 5 [--json]
    python3 bench/peers/train_demo.py recipes/demo/gpu_130m.yaml --device cuda --dtype bf16 --only train

With --dtype bf16 it runs under autocast with fp32 weights; the triangular solve, which has no 16-bit form, is in fp32.

Needs torch, numpy and pyyaml. Prints tokens/s (median and best over steps) of training, and of generation in step form.
"""
import argparse
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
import yaml
from torch import nn

CHUNK = 64


def chunked_gated_delta_rule(q, k, v, log_decay, beta):
    """q, k, v [B, H, T, K], log_decay, beta [B, H, T] -> y [B, H, T, K]. Yang et al. 2024, arXiv:2412.06464.

    S_t = e^{g_t} (I - beta_t k_t k_t') S_{t-1} + beta_t k_t v_t',  y_t = S_t' q_t / sqrt(K)
    """
    tokens = q.shape[2]
    missing = -tokens % CHUNK
    if missing:
        q, k, v = (F.pad(x, (0, 0, 0, missing)) for x in (q, k, v))
        log_decay, beta = (F.pad(x, (0, missing)) for x in (log_decay, beta))
    q, k, v, log_decay, beta = (x.unflatten(2, (-1, CHUNK)) for x in (q, k, v, log_decay, beta))
    q = q * q.shape[-1] ** -0.5
    sums = log_decay.cumsum(-1)  # [B, H, N, C]
    decay = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).tril().exp()  # [B, H, N, C, C]
    k_beta = k * beta.unsqueeze(-1)
    erased = (k_beta @ k.mT * decay).tril(-1)
    right = torch.cat([v * beta.unsqueeze(-1), k_beta * sums.exp().unsqueeze(-1)], -1)
    with torch.autocast(q.device.type, enabled=False):
        solved = torch.linalg.solve_triangular(erased.float(), right.float(), upper=False, unitriangular=True)
    solved = solved.to(right.dtype)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], -1)
    inside = (q @ k.mT * decay).tril()
    q_start = q * sums.exp().unsqueeze(-1)
    k_end = k * (sums[..., -1:] - sums).exp().unsqueeze(-1)
    forget = sums[..., -1].exp()[..., None, None]
    state = q.new_zeros(q.shape[0], q.shape[1], k.shape[-1], v.shape[-1])
    y = []
    for n in range(q.shape[2]):
        value = values[:, :, n] - keys[:, :, n] @ state
        y.append(q_start[:, :, n] @ state + inside[:, :, n] @ value)
        state = state * forget[:, :, n] + k_end[:, :, n].mT @ value
    return torch.cat(y, 2)[:, :, :tokens]


class GatedDeltaNet(nn.Module):
    def __init__(self, width, heads, head_dim, conv=4):
        super().__init__()
        self.heads, self.dim, self.taps, size = heads, head_dim, conv, heads * head_dim
        self.qkv = nn.Linear(width, 3 * size, bias=False)
        self.beta = nn.Linear(width, heads, bias=False)
        self.decay = nn.Linear(width, heads, bias=False)
        self.gate = nn.Linear(width, size, bias=False)
        self.out = nn.Linear(size, width, bias=False)
        self.conv = nn.Parameter(torch.empty(3 * size, 1, conv).uniform_(-0.5, 0.5))
        self.a_log = nn.Parameter(torch.empty(heads).uniform_(0.1, 16).log())
        step = torch.empty(heads).uniform_(math.log(1e-3), math.log(0.1)).exp()
        self.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))
        self.norm = nn.RMSNorm(head_dim, eps=1e-5)

    def inputs(self, x, conv):
        """q, k, v [B, T, H, K]; log decay and beta [B, T, H]."""
        q, k, v = (part.unflatten(-1, (self.heads, self.dim)) for part in F.silu(conv).chunk(3, -1))
        log_decay = -self.a_log.exp() * F.softplus(self.decay(x) + self.dt_bias)
        return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, log_decay, torch.sigmoid(self.beta(x))

    def finish(self, y, x):
        gate = F.silu(self.gate(x)).unflatten(-1, (self.heads, self.dim))
        return self.out((self.norm(y) * gate).flatten(2))

    def forward(self, x):
        mixed = self.qkv(x).mT  # [B, 3 H K, T]
        conv = F.conv1d(mixed, self.conv, padding=self.taps - 1, groups=mixed.shape[1])[..., : x.shape[1]].mT
        y = chunked_gated_delta_rule(*(part.transpose(1, 2) for part in self.inputs(x, conv)))
        return self.finish(y.transpose(1, 2), x)

    def fresh(self, batch, prompt):
        del prompt
        return {"conv": torch.zeros(batch, self.taps, self.conv.shape[0]),
                "S": torch.zeros(batch, self.heads, self.dim, self.dim)}

    def step(self, x, state):
        state["conv"] = torch.cat([state["conv"][:, 1:], self.qkv(x)], 1)  # [B, W, 3 H K]
        conv = torch.einsum("bwc,cw->bc", state["conv"], self.conv.squeeze(1)).unsqueeze(1)
        q, k, v, log_decay, beta = (part.squeeze(1) for part in self.inputs(x, conv))
        s = state["S"].mul_(log_decay.exp()[..., None, None])
        value = (v - (k.unsqueeze(-2) @ s).squeeze(-2)) * beta.unsqueeze(-1)
        s.add_(k.unsqueeze(-1) * value.unsqueeze(-2))
        y = (q.unsqueeze(-2) @ s).squeeze(-2) * self.dim ** -0.5
        return self.finish(y.unsqueeze(1), x)


def rotate(x, table):
    """x [B, H, T, K], table (cosine, sine) [T, K / 2]."""
    a, b = x.chunk(2, -1)
    cosine, sine = table
    return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1)


class Attention(nn.Module):
    def __init__(self, width, heads, window, qk_norm, length):
        super().__init__()
        self.heads, self.dim, self.window = heads, width // heads, window
        self.q, self.k, self.v, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.q_norm, self.k_norm = ((nn.RMSNorm(self.dim, eps=1e-5) if qk_norm else nn.Identity()) for _ in range(2))
        frequencies = 10000.0 ** (-torch.arange(0, self.dim, 2).double() / self.dim)
        angles = torch.outer(torch.arange(length).double(), frequencies)
        self.register_buffer("cosine", angles.cos().float(), persistent=False)
        self.register_buffer("sine", angles.sin().float(), persistent=False)
        place = torch.arange(length)
        seen = place[None, :] <= place[:, None]
        if window:
            seen &= place[None, :] > place[:, None] - window
        self.register_buffer("mask", seen, persistent=False)

    def inputs(self, x, begin):
        q, k, v = (f(x).unflatten(-1, (self.heads, self.dim)) for f in (self.q, self.k, self.v))
        table = self.cosine[begin : begin + x.shape[1]], self.sine[begin : begin + x.shape[1]]
        turn = lambda y: rotate(y.transpose(1, 2), table)
        return turn(self.q_norm(q)), turn(self.k_norm(k)), v.transpose(1, 2)

    def forward(self, x):
        q, k, v = self.inputs(x, 0)
        tokens = x.shape[1]
        if self.window and self.window < tokens:
            y = F.scaled_dot_product_attention(q, k, v, self.mask[:tokens, :tokens])
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).flatten(2))

    def fresh(self, batch, prompt):
        shape = batch, self.heads, self.window or prompt, self.dim
        return {"k": torch.zeros(shape), "v": torch.zeros(shape), "at": prompt}

    def step(self, x, state):
        """A full cache: every slot holds a key; the oldest one makes room when there is a window."""
        q, k, v = self.inputs(x, state["at"])
        keep = 1 if self.window else 0
        state["k"] = torch.cat([state["k"][:, :, keep:], k], 2)
        state["v"] = torch.cat([state["v"][:, :, keep:], v], 2)
        state["at"] += 1
        return self.out(F.scaled_dot_product_attention(q, state["k"], state["v"]).transpose(1, 2).flatten(2))


class SwiGlu(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    def __init__(self, options, width, length):
        super().__init__()
        kind = options["mixer"]
        if kind == "gated_delta_net":
            self.mixer = GatedDeltaNet(width, options["heads"], options["head_dim"])
        elif kind == "attention":
            window, qk_norm = options.get("window", 0), options.get("qk_norm", False)
            self.mixer = Attention(width, options["heads"], window, qk_norm, length)
        else:
            raise SystemExit(f"train_demo.py knows gated_delta_net and attention, not {kind}")
        self.ffn = SwiGlu(width, options["ffn"]["swiglu"])
        self.mixer_norm, self.ffn_norm = (nn.RMSNorm(width, eps=1e-5) for _ in range(2))

    def forward(self, x):
        x = x + self.mixer(self.mixer_norm(x))
        return x + self.ffn(self.ffn_norm(x))

    def step(self, x, state):
        x = x + self.mixer.step(self.mixer_norm(x), state)
        return x + self.ffn(self.ffn_norm(x))


def flatten(pattern):
    for entry in pattern:
        if "repeat" in entry:
            for _ in range(entry["repeat"]):
                yield from flatten(entry["pattern"])
        else:
            yield entry


class Model(nn.Module):
    def __init__(self, options, vocab, length):
        super().__init__()
        self.embedding = nn.Embedding(vocab, options["width"])  # tied
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.layers = nn.ModuleList(Layer(o, options["width"], length) for o in flatten(options["layers"]))
        self.norm = nn.RMSNorm(options["width"], eps=1e-5)

    def head(self, x):
        return F.linear(self.norm(x), self.embedding.weight)

    def forward(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def step(self, ids, states):
        x = self.embedding(ids)
        for layer, state in zip(self.layers, states):
            x = layer.step(x, state)
        return self.head(x)


def optimizers_of(recipe, model):
    """Matrices of the layers to Muon when the recipe says so; everything else to AdamW."""
    (kind, options), = recipe["optimizer"].items()
    options = options if isinstance(options, dict) else {"lr": options}
    fused = dict(fused=True, betas=(0.9, 0.95), weight_decay=0.0)
    if kind == "adamw":
        return [torch.optim.AdamW(model.parameters(), lr=options["lr"], **fused)]
    if kind != "muon":
        raise SystemExit(f"train_demo.py knows adamw and muon, not {kind}")
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in taken]
    inner = options.get("adamw", {"lr": options["lr"]})
    return [torch.optim.Muon(matrices, lr=options["lr"], weight_decay=0.0),
            torch.optim.AdamW(rest, lr=inner["lr"] if isinstance(inner, dict) else inner, **fused)]


def timed(function, count, warm_up):
    for _ in range(warm_up):
        function()
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return seconds


def train(model, recipe, vocab, steps, device, dtype):
    batch, length = recipe["run"]["batch"], recipe["data"]["length"]
    ids = torch.randint(vocab, (batch, length + 1), device=device)
    optimizers = optimizers_of(recipe, model)
    for optimizer in optimizers:  # as weft's: random targets must not drive the weights away
        for group in optimizer.param_groups:
            group["lr"] *= 1e-3

    def step():
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            logits = model(ids[:, :-1])
        F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe["run"].get("clip", 1.0))
        for optimizer in optimizers:
            optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()

    return batch * length, timed(step, steps, 2)


@torch.inference_mode()
def generate(model, vocab, prompt, tokens, samples):
    def text():
        states = [layer.mixer.fresh(1, prompt) for layer in model.layers]
        ids = torch.randint(vocab, (1, 1))
        for _ in range(tokens):
            ids = model.step(ids, states).argmax(-1)

    return tokens, timed(text, samples, 1)


def report(part, tokens, seconds):
    return {"part": part, "tokens_per_s": tokens / statistics.median(seconds),
            "tokens_per_s_best": tokens / min(seconds), "samples": len(seconds)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core")
    parser.add_argument("--only", choices=["train", "generate"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="generation is timed on the CPU only")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    flags = parser.parse_args()
    if flags.threads:
        torch.set_num_threads(flags.threads)
    torch.manual_seed(1)
    with open(flags.recipe, encoding="utf-8") as file:
        recipe = yaml.safe_load(file)
    vocab = recipe["model"].get("vocab") or recipe["tokenizer"]["bpe"]["vocab"]
    model = Model(recipe["model"], vocab, max(recipe["data"]["length"], flags.prompt + flags.tokens + 1))
    if flags.device != "cpu" and flags.only != "train":
        parser.error("--device cuda needs --only train")
    model.to(flags.device)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[flags.dtype]
    rows = []
    if flags.only != "generate":
        rows.append(report("train", *train(model, recipe, vocab, flags.steps, flags.device, dtype)))
    if flags.only != "train":
        rows.append(report("generate", *generate(model, vocab, flags.prompt, flags.tokens, 5)))
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(),
              "parameters": sum(p.numel() for p in model.parameters()), "rows": rows}
    if flags.json:
        print(json.dumps(result))
        return
    print(f"PyTorch {result['torch']}, eager, {result['threads']} threads, {result['parameters']} parameters")
    for row in rows:
        print(f"{row['part']:9} {row['tokens_per_s']:9.1f} tokens/s (best {row['tokens_per_s_best']:.1f})")


if __name__ == "__main__":
    main()
