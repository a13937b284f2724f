#!/usr/bin/env python3
"""Makes tests/data/hf_tiny/plamo2 and plamo2_window: tiny PLaMo 2 models with random weights, and their logits.

    make_plamo2_fixture.py [OUT]

No library of models has this architecture, so the logits are computed here: in fp64 with NumPy, token by token, from the
equations of the model (arXiv:2509.04897) as its makers' ports to MLX, vLLM and llama.cpp have them, and with nothing
of weft's. Needs numpy and safetensors. The same files come out every time.

One block is h = x + N(mixer(N(x)); 1/5), then h + N(mlp(N(h)); 5^-1.5), with N(x; o) = x / rms(x) * (o + w), o = 1 where
not said. The mixer of block i is attention where i mod step = step // 2, else Mamba.
"""
import json
import pathlib
import sys

import numpy as np
from safetensors.numpy import save_file

COMMON = {"architectures": ["Plamo2ForCausalLM"], "model_type": "plamo2", "bos_token_id": 1, "eos_token_id": 2,
          "pad_token_id": 3, "hidden_size": 32, "num_attention_heads": 4, "hidden_size_per_head": 8,
          "mamba_enabled": True, "mamba_chunk_size": 256, "linear_type": "normal", "fp8_accum_dtype": None,
          "eval_attention_n_bit": None, "eval_mlp_n_bit": None, "image_token_id": None, "image_feature_size": None,
          "image_proj_type": "linear", "tokenizer_class": "Plamo2Tokenizer", "use_cache": True,
          "max_position_embeddings": 10485760, "torch_dtype": "float32"}
CONFIGS = {
    # As the first published models: all attention has a window, which is longer than the texts.
    "plamo2": {"num_hidden_layers": 4, "rms_norm_eps": 1e-6, "num_key_value_heads": 2, "attention_window_size": 2048,
               "sliding_window": 2048, "full_attention_idx": [], "mamba_d_state": 8, "mamba_d_conv": 4,
               "mamba_num_heads": 4, "mamba_step": 2, "intermediate_size": 48, "vocab_size": 128,
               "tie_word_embeddings": True, "seed": 31},
    # As later ones: full attention in some layers, rotary bases of both kinds. Everything else differs too.
    "plamo2_window": {"num_hidden_layers": 5, "rms_norm_eps": 1e-2, "num_key_value_heads": 1,
                      "attention_window_size": 5, "sliding_window": 5, "full_attention_idx": [4], "rope_theta": 500.0,
                      "rope_local_theta": 60.0, "mamba_d_state": 6, "mamba_d_conv": 3, "mamba_num_heads": 3,
                      "mamba_step": 3, "intermediate_size": 40, "vocab_size": 64, "tie_word_embeddings": False,
                      "seed": 12},
}


def is_mamba(config, i):
    middle = config["mamba_step"] // 2
    if config["num_hidden_layers"] <= middle:
        return i != config["num_hidden_layers"] - 1
    return i % config["mamba_step"] != middle


def make_weights(config, random):
    width, head = config["hidden_size"], config["hidden_size_per_head"]
    heads, groups, hidden = config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]
    mamba_heads, states = config["mamba_num_heads"], config["mamba_d_state"]
    inner, rank = mamba_heads * head, max(64, width // 16)
    weights = {}

    def add(name, values):
        weights[name] = np.asarray(values, dtype=np.float32)

    def matrix(name, rows, columns, gain=1.5):
        add(name, random.normal(0, gain / np.sqrt(columns), (rows, columns)))

    add("model.embed_tokens.weight", random.normal(0, 0.1, (config["vocab_size"], width)))
    add("model.norm.weight", random.normal(0, 0.3, width))
    if not config["tie_word_embeddings"]:
        matrix("lm_head.weight", config["vocab_size"], width)
    for i in range(config["num_hidden_layers"]):
        block = f"model.layers.layers.{i}."
        for norm in ("pre_mixer", "post_mixer", "pre_mlp", "post_mlp"):
            add(f"{block}{norm}_norm.weight", random.normal(0, 0.3, width))
        matrix(block + "mlp.gate_up_proj.weight", 2 * hidden, width)
        matrix(block + "mlp.down_proj.weight", width, hidden)
        mixer = block + "mixer."
        if is_mamba(config, i):
            matrix(mixer + "in_proj.weight", 2 * inner, width)
            add(mixer + "conv1d.weight", random.normal(0, 0.6, (inner, 1, config["mamba_d_conv"])))
            matrix(mixer + "bcdt_proj.weight", 2 * states + rank, inner)
            matrix(mixer + "dt_proj.weight", mamba_heads, rank)
            add(mixer + "dt_bias", random.normal(-1, 1, mamba_heads))
            add(mixer + "A_log", random.normal(-0.5, 1, mamba_heads))
            add(mixer + "D", random.normal(0.5, 0.7, mamba_heads))
            for name, size in (("dt", rank), ("B", states), ("C", states)):
                add(f"{mixer}{name}_norm_weight", random.normal(1, 0.3, size))
            matrix(mixer + "out_proj.weight", width, inner)
        else:
            matrix(mixer + "qkv_proj.weight", (heads + 2 * groups) * head, width)
            add(mixer + "q_weight", random.normal(1.5, 0.5, (heads, head)))
            add(mixer + "k_weight", random.normal(1.5, 0.5, (groups, head)))
            matrix(mixer + "o_proj.weight", width, heads * head)
    return weights


def silu(x):
    return x / (1 + np.exp(-x))


def normed(x, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def rotated(x, position, base):
    """x [heads, K]: channel i turns with channel i + K / 2."""
    half = x.shape[-1] // 2
    angle = position * base ** (-np.arange(half) / half)
    a, b = x[:, :half], x[:, half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], axis=-1)


class Attention:
    def __init__(self, config, weights, prefix, layer):
        self.head, self.groups = config["hidden_size_per_head"], config["num_key_value_heads"]
        self.heads = config["num_attention_heads"]
        self.full = layer in config["full_attention_idx"]
        self.window = config["attention_window_size"]
        self.base = config.get("rope_theta" if self.full else "rope_local_theta", 10000.0)
        self.qkv, self.out = weights[prefix + "qkv_proj.weight"], weights[prefix + "o_proj.weight"]
        self.q_weight, self.k_weight = weights[prefix + "q_weight"], weights[prefix + "k_weight"]
        self.keys, self.values = [], []

    def __call__(self, x):
        now, share = len(self.keys), self.heads // self.groups
        q, k, v = np.split((self.qkv @ x).reshape(-1, self.head), [self.heads, self.heads + self.groups])
        q = rotated(normed(q, 1e-6) * self.q_weight, now, self.base)
        self.keys.append(rotated(normed(k, 1e-6) * self.k_weight, now, self.base))
        self.values.append(v)
        first = 0 if self.full else max(0, now - self.window)
        read = []
        for h in range(self.heads):
            scores = np.array([q[h] @ key[h // share] for key in self.keys[first:]]) / np.sqrt(self.head)
            share_of = np.exp(scores - scores.max())
            share_of /= share_of.sum()
            read.append(sum(p * value[h // share] for p, value in zip(share_of, self.values[first:])))
        return self.out @ np.concatenate(read)


class Mamba:
    def __init__(self, config, weights, prefix):
        self.w = {name[len(prefix):]: value for name, value in weights.items() if name.startswith(prefix)}
        self.heads, self.head = config["mamba_num_heads"], config["hidden_size_per_head"]
        self.states, self.eps = config["mamba_d_state"], config["rms_norm_eps"]
        self.past = [np.zeros(self.heads * self.head)] * (config["mamba_d_conv"] - 1)
        self.state = np.zeros((self.heads, self.head, self.states))

    def __call__(self, x):
        w, n = self.w, self.states
        zu = (w["in_proj.weight"] @ x).reshape(self.heads, 2, self.head)
        z, u = zu[:, 0], zu[:, 1].reshape(-1)
        self.past.append(u)
        u = silu(sum(w["conv1d.weight"][:, 0, j] * past for j, past in enumerate(self.past)))
        self.past.pop(0)
        b, c, e = np.split(w["bcdt_proj.weight"] @ u, [n, 2 * n])
        b, c = normed(b, self.eps) * w["B_norm_weight"], normed(c, self.eps) * w["C_norm_weight"]
        d = w["dt_proj.weight"] @ (normed(e, self.eps) * w["dt_norm_weight"]) + w["dt_bias"]
        dt = np.log1p(np.exp(d))
        u = u.reshape(self.heads, self.head)
        decay = np.exp(-np.exp(w["A_log"]) * dt)
        self.state = decay[:, None, None] * self.state + (dt[:, None] * u)[:, :, None] * b
        y = self.state @ c + w["D"][:, None] * u
        return w["out_proj.weight"] @ (y * silu(z)).reshape(-1)


class Model:
    def __init__(self, config, weights):
        self.config, self.eps = config, config["rms_norm_eps"]
        self.w = {name: value.astype(np.float64) for name, value in weights.items()}
        self.mixers = []
        for i in range(config["num_hidden_layers"]):
            prefix = f"model.layers.layers.{i}.mixer."
            self.mixers.append(Mamba(config, self.w, prefix) if is_mamba(config, i) else
                               Attention(config, self.w, prefix, i))

    def norm(self, x, name, offset=1.0):
        return normed(x, self.eps) * (offset + self.w[name + ".weight"])

    def mlp(self, x, block):
        gate, up = np.split(self.w[block + "mlp.gate_up_proj.weight"] @ x, 2)
        return self.w[block + "mlp.down_proj.weight"] @ (silu(gate) * up)

    def __call__(self, token):
        """The logits behind the next token."""
        x = self.w["model.embed_tokens.weight"][token]
        for i, mixer in enumerate(self.mixers):
            block = f"model.layers.layers.{i}."
            y = mixer(self.norm(x, block + "pre_mixer_norm"))
            x = x + self.norm(y, block + "post_mixer_norm", 1 / 5)
            y = self.mlp(self.norm(x, block + "pre_mlp_norm"), block)
            x = x + self.norm(y, block + "post_mlp_norm", 1 / 5**1.5)
        head = "model.embed_tokens.weight" if self.config["tie_word_embeddings"] else "lm_head.weight"
        return self.w[head] @ self.norm(x, "model.norm")


def greedy(config, weights, prompt, count):
    model, drawn, margin = Model(config, weights), [], np.inf
    for token in prompt[:-1]:
        model(token)
    token = prompt[-1]
    for _ in range(count):
        logits = model(token)
        second, first = np.sort(logits)[-2:]
        margin = min(margin, first - second)
        token = int(np.argmax(logits))
        drawn.append(token)
    return drawn, float(margin)


def make(name, folder):
    config = {**COMMON, **CONFIGS[name]}
    random = np.random.default_rng(config.pop("seed"))
    weights = make_weights(config, random)
    ids = [random.integers(0, config["vocab_size"], length).tolist() for length in (7, 37)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    for number, row in enumerate(ids):
        model = Model(config, weights)
        logits = np.stack([model(token) for token in row]).astype("<f4")
        (folder / f"logits_{number}.f32").write_bytes(logits.tobytes())
    drawn, margin = greedy(config, weights, ids[0], 24)
    reference = {"fixture": name,
                 "source": "tools/make_plamo2_fixture.py: fp64, from the equations, token by token",
                 "dtype": "float64", "input_ids": ids, "greedy_ids": drawn, "greedy_min_margin": margin,
                 "logits_shape": [[len(row), config["vocab_size"]] for row in ids]}
    (folder / "reference.json").write_text(json.dumps(reference) + "\n")
    print(f"{name}: largest logit {np.abs(logits).max():.3g}, least margin {margin:.3g}")


def main():
    data = pathlib.Path(__file__).resolve().parent.parent / "tests/data/hf_tiny"
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else data
    for name in CONFIGS:
        make(name, out / name)


if __name__ == "__main__":
    main()
