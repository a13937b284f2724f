// The mixers of the linear attention family against their layer definitions, written out token by token in fp64
// with the mixer's own parameters. One sequence; vectors are [D] or [H, K], the state [H, K, V].
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "nn/mixer.h"
#include "ops/kernel_choice.h"

namespace weft {
namespace {

using Tensors = std::vector<at::Tensor>;
constexpr int64_t kWidth = 16, kTokens = 11;
constexpr double kEps = 1e-5;

class Probe {
 public:
  explicit Probe(const std::string& yaml)
      : mixer(make_mixer(Node::parse(yaml, "test"), {.width = kWidth, .layer = 1, .num_layers = 3})) {
    mixer->initialize(3);
    auto random = at::make_generator<at::CPUGeneratorImpl>(4);
    const at::NoGradGuard no_grad;
    for (const auto& [name, parameter] : mixer->parameters())
      parameter->value.add_(0.3 * at::randn(parameter->value.sizes(), random));
    mixer->to(at::kDouble);
    x = at::randn({kTokens, kWidth}, random, at::TensorOptions(at::kDouble));
  }

  at::Tensor operator[](const std::string& name) const {
    for (const auto& [known, parameter] : mixer->parameters())
      if (known == name) return parameter->value;
    ADD_FAILURE() << "no parameter " << name;
    return {};
  }
  // W z of the projection `name`, without its bias.
  at::Tensor map(const std::string& name, const at::Tensor& z) const {
    return at::matmul((*this)[name + ".weight"], z);
  }
  at::Tensor token(int64_t t) const { return t < 0 ? at::zeros_like(x[0]) : x[t]; }

  at::Tensor run(at::ScalarType type = at::kDouble, const Strands& imports = {}) const {
    mixer->to(type);
    State state = mixer->initial_state(1, at::TensorOptions(type));
    auto context = Context::at_positions(at::zeros({1}, at::kLong), kTokens);
    context.imports = imports;
    const auto y = mixer->run(x.to(type).unsqueeze(0), state, context).squeeze(0).to(at::kDouble);
    mixer->to(at::kDouble);
    return y;
  }

  std::unique_ptr<SequenceMixer> mixer;
  at::Tensor x;
};

void expect_tokens(const at::Tensor& found, const Tensors& expected, double bound = 1e-10) {
  const auto y = at::stack(expected);
  ASSERT_EQ(found.sizes(), y.sizes());
  const double scale = y.abs().max().item<double>(), error = (found - y).abs().max().item<double>();
  EXPECT_GT(scale, 1e-3);
  EXPECT_TRUE(error <= bound * scale) << error / scale;  // false for NaN
}

at::Tensor heads(const at::Tensor& z, int64_t count) { return z.view({count, -1}); }
at::Tensor product(const at::Tensor& k, const at::Tensor& v) { return k.unsqueeze(2) * v.unsqueeze(1); }
at::Tensor read(const at::Tensor& s, const at::Tensor& q) { return (s * q.unsqueeze(2)).sum(1); }  // [H, V]
at::Tensor rms(const at::Tensor& z) { return z / (z.square().mean(-1, true) + kEps).sqrt(); }
at::Tensor unit(const at::Tensor& z, double eps) { return z / (z.square().sum(-1, true) + eps).sqrt(); }
at::Tensor centred(const at::Tensor& z, double eps) {
  const auto d = z - z.mean(-1, true);
  return d / (d.square().mean(-1, true) + eps).sqrt();
}
at::Tensor logistic(const at::Tensor& z) { return 1 / (1 + at::exp(-z)); }
at::Tensor swish(const at::Tensor& z) { return z * logistic(z); }
at::Tensor soft_plus(const at::Tensor& z) { return at::log1p(at::exp(z)); }

// The causal convolution of z, T tensors [C], with weight [C, W] at token t.
at::Tensor convolved(const Tensors& z, int64_t t, const at::Tensor& weight) {
  auto sum = at::zeros_like(z[0]);
  const int64_t width = weight.size(1);
  for (int64_t j = 0; j < width; ++j)
    if (t - j >= 0) sum = sum + weight.select(1, width - 1 - j) * z[static_cast<size_t>(t - j)];
  return sum;
}

at::Tensor rotated(const at::Tensor& z, int64_t position) {  // [H, K]
  const int64_t half = z.size(1) / 2;
  const auto angle = static_cast<double>(position) *
                     at::pow(10000.0, -at::arange(half, at::kDouble) / static_cast<double>(half));
  const auto a = z.slice(1, 0, half), b = z.slice(1, half);
  return at::cat({a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()}, 1);
}

TEST(LinearMixers, RetNetIsItsDefinition) {
  const at::NoGradGuard no_grad;
  const Probe p("{mixer: retnet, heads: 2}");
  const auto keep = at::tensor({31.0 / 32, 63.0 / 64}, at::kDouble).view({2, 1, 1});
  auto s = at::zeros({2, 8, 16}, at::kDouble);
  Tensors y;
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto x = p.token(t);
    const auto q = rotated(heads(p.map("q", x), 2), t), k = rotated(heads(p.map("k", x), 2), t);
    s = keep * s + product(k, heads(p.map("v", x), 2));
    const auto normed = rms(read(s, q) / std::sqrt(8.0)) * p["norm.weight"];
    y.push_back(p.map("out", (normed * swish(heads(p.map("gate", x), 2))).flatten()));
  }
  expect_tokens(p.run(), y);
}

TEST(LinearMixers, GlaIsItsDefinition) {
  const at::NoGradGuard no_grad;
  const Probe p("{mixer: gla, heads: 2, gate_rank: 3}");
  auto s = at::zeros({2, 4, 8}, at::kDouble);
  Tensors y;
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto x = p.token(t);
    const auto z = p.map("decay_out", p.map("decay_in", x)) + p["decay_bias"];
    s = heads(logistic(z).pow(1.0 / 16), 2).unsqueeze(2) * s +
        product(heads(p.map("k", x), 2), heads(p.map("v", x), 2));
    const auto normed = rms(read(s, heads(p.map("q", x), 2)) / 2) * p["norm.weight"];
    y.push_back(p.map("out", (normed * swish(heads(p.map("gate", x), 2))).flatten()));
  }
  expect_tokens(p.run(), y);
}

// The second of three layers: the bound of a table of equal rows is 1/3.
TEST(LinearMixers, HgrnIsItsDefinition) {
  const at::NoGradGuard no_grad;
  const Probe p("{mixer: hgrn, inner: 24}");
  auto h = at::zeros({24}, at::kDouble);
  Tensors y;
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto x = p.token(t), f = 1.0 / 3 + 2.0 / 3 * logistic(p.map("forget", x));
    h = f * h + swish(p.map("in", x)) * (1 - f);
    y.push_back(p.map("out", rms(h) * p["norm.weight"] * swish(p.map("gate", x))));
  }
  expect_tokens(p.run(), y);
}

TEST(LinearMixers, Hgrn2IsItsDefinition) {
  const at::NoGradGuard no_grad;
  for (const auto& [option, bound] :
       {std::pair("", 1.0 / 3), {", lower_bound: 0.8", 0.8}, {", lower_bound: 0", 0.0}}) {
    const Probe p(std::string("{mixer: hgrn2, head_dim: 8") + option + "}");
    auto s = at::zeros({2, 8, 8}, at::kDouble);
    Tensors y;
    for (int64_t t = 0; t < kTokens; ++t) {
      const auto x = p.token(t), f = heads(bound + (1 - bound) * logistic(p.map("forget", x)), 2);
      s = f.unsqueeze(2) * s + product(1 - f, heads(p.map("in", x), 2));
      const auto o = read(s, heads(swish(p.map("q", x)), 2)) / std::sqrt(8.0);
      y.push_back(p.map("out", rms(o.flatten()) * p["norm.weight"]));
    }
    expect_tokens(p.run(), y);
  }
}

// DeltaNet, Gated DeltaNet and KDA: two heads of key width 8 and value width 6.
void expect_delta(const std::string& mixer) {
  const at::NoGradGuard no_grad;
  const bool gated = mixer == "gated_delta_net", kimi = mixer == "kda";
  const Probe p("{mixer: " + mixer + ", heads: 2, head_dim: 8, value_dim: 6" +
                (kimi ? "}" : ", negative_eigenvalues: true}"));
  auto s = at::zeros({2, 8, 6}, at::kDouble);
  Tensors y, rows;
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto x = p.token(t);
    rows.push_back(p.map("qkv", x));
    const auto qkv = swish(convolved(rows, t, p["conv.weight"])).split_with_sizes({16, 16, 12});
    const auto q = unit(heads(qkv[0], 2), 1e-6), k = unit(heads(qkv[1], 2), 1e-6), v = heads(qkv[2], 2);
    const auto beta = (kimi ? 1 : 2) * logistic(p.map("beta", x)).view({2, 1});
    if (gated)
      s = s * at::exp(-p["A_log"].exp() * soft_plus(p.map("decay", x) + p["dt_bias"])).view({2, 1, 1});
    if (kimi) {
      const auto pace = soft_plus(p.map("decay_out", p.map("decay_in", x)) + p["dt_bias"]);
      s = s * at::exp(-p["A_log"].exp().view({2, 1}) * heads(pace, 2)).unsqueeze(2);
    }
    s = s + product(k, beta * (v - read(s, k)));
    auto o = (rms(read(s, q) / std::sqrt(8.0)) * p["norm.weight"]).flatten();
    if (gated) o = o * swish(p.map("gate", x));
    if (kimi) o = o * logistic(p.map("gate_out", p.map("gate_in", x)) + p["gate_out.bias"]);
    y.push_back(p.map("out", o));
  }
  expect_tokens(p.run(), y);
}
TEST(LinearMixers, DeltaNetIsItsDefinition) { expect_delta("delta_net"); }
TEST(LinearMixers, GatedDeltaNetIsItsDefinition) { expect_delta("gated_delta_net"); }
TEST(LinearMixers, KdaIsItsDefinition) { expect_delta("kda"); }

// `first`: RWKV-5 before it had a gate.
void expect_rwkv6(bool data_dependent, bool first = false) {
  const at::NoGradGuard no_grad;
  const Probe p(
      data_dependent ? "{mixer: rwkv6, head_dim: 8, mix_rank: 3, decay_rank: 5}"
      : first ? "{mixer: rwkv6, head_dim: 8, data_dependent: false, output_gate: false, mix_current: true, "
                "head_norm_eps: 0.00001}"
              : "{mixer: rwkv6, head_dim: 8, data_dependent: false}");
  auto s = at::zeros({2, 8, 8}, at::kDouble);
  const char* parts[] = {"r", "w", "k", "v", "g"};
  Tensors y;
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto x = p.token(t), d = p.token(t - 1) - x;
    std::map<std::string, at::Tensor> in;
    for (int64_t i = 0; i < 5; ++i) {
      if (!data_dependent && i == 1) continue;  // the decay of RWKV-5 does not see the token
      if (first && i == 4) continue;
      auto mu = p[std::string("mix_") + parts[i]];
      if (data_dependent) {
        const auto a = p["mix_in.weight"].slice(0, 3 * i, 3 * i + 3);
        mu = mu + at::matmul(p["mix_out"][i].t(), at::tanh(at::matmul(a, x + d * p["mix_x"])));
      }
      in[parts[i]] = x + d * (first ? 1 - mu : mu);
    }
    auto w = p["decay"];
    if (data_dependent) w = w + p.map("decay_out", at::tanh(p.map("decay_in", in["w"])));
    const auto r = heads(p.map("r", in["r"]), 2),
               kv = product(heads(p.map("k", in["k"]), 2), heads(p.map("v", in["v"]), 2));
    const auto o = read(s + heads(p["bonus"], 2).unsqueeze(2) * kv, r);
    s = at::exp(-at::exp(heads(w, 2))).unsqueeze(2) * s + kv;
    const auto normed = centred(o, first ? 1e-5 : 64e-5).flatten() * p["norm.weight"] + p["norm.bias"];
    y.push_back(p.map("out", first ? normed : normed * swish(p.map("gate", in["g"]))));
  }
  expect_tokens(p.run(), y);
}
TEST(LinearMixers, Rwkv6IsItsDefinition) { expect_rwkv6(true); }
TEST(LinearMixers, Rwkv5IsItsDefinition) { expect_rwkv6(false); }
TEST(LinearMixers, FirstRwkv5IsItsDefinition) { expect_rwkv6(false, true); }

void expect_rwkv7(bool value_residual) {
  const at::NoGradGuard no_grad;
  const Probe p(
      std::string("{mixer: rwkv7, head_dim: 8, decay_rank: 3, rate_rank: 4, gate_rank: 5, value_rank: 2") +
      (value_residual ? ", value_residual: true}" : "}"));
  const auto first = at::cos(at::arange(kTokens * kWidth, at::kDouble)).view({1, kTokens, kWidth});
  auto s = at::zeros({2, 8, 8}, at::kDouble);
  Tensors y;
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto x = p.token(t), d = p.token(t - 1) - x;
    const auto in = [&](const char* part) { return x + d * p[std::string("mix_") + part]; };
    const auto r = p.map("r", in("r")), k0 = p.map("k", in("k"));
    auto v = p.map("v", in("v"));
    if (value_residual) {
      const auto to = logistic(p["value_bias"] + p.map("value_out", p.map("value_in", in("v"))));
      v = v + (first[0][t] - v) * to;
    }
    const auto decay =
        at::exp(-std::exp(-0.5) *
                logistic(p["decay_bias"] + p.map("decay_out", at::tanh(p.map("decay_in", in("w"))))));
    const auto a = logistic(p["rate_bias"] + p.map("rate_out", p.map("rate_in", in("a"))));
    const auto g = p.map("gate_out", logistic(p.map("gate_in", in("g"))));
    const auto kappa = unit(heads(k0 * p["k_k"], 2), 1e-12);
    const auto k = heads(k0 * (1 + (a - 1) * p["k_a"]), 2), values = heads(v, 2);
    s = heads(decay, 2).unsqueeze(2) * s - product(kappa * heads(a, 2), read(s, kappa)) + product(k, values);
    const auto normed = centred(read(s, heads(r, 2)), 64e-5).flatten() * p["norm.weight"] + p["norm.bias"];
    const auto own = (heads(r, 2) * k * p["r_k"]).sum(1, true) * values;
    y.push_back(p.map("out", (normed + own.flatten()) * g));
  }
  Strands imports;
  if (value_residual) imports["v_first"] = {.tensors = {{"v", first}}};
  expect_tokens(p.run(at::kDouble, imports), y);
}
TEST(LinearMixers, Rwkv7IsItsDefinition) { expect_rwkv7(false); }
TEST(LinearMixers, Rwkv7MixesTheFirstValues) { expect_rwkv7(true); }

// The recurrence without its stabiliser, which fp64 can hold up to gates of some hundred.
void expect_mlstm(const std::string& forget_gate, double gate_size) {
  const at::NoGradGuard no_grad;
  const Probe p("{mixer: mlstm, heads: 2, forget_gate: " + forget_gate + "}");
  if (gate_size > 0) {  // input gates of about this size and either sign, and two that are exactly so
    p["input_gate.weight"].mul_(gate_size);
    p.x.select(1, 0).fill_(1);
    const auto w = p["input_gate.weight"];
    for (const int64_t t : {2, 6}) {
      const auto rest = at::matmul(w, p.x[t]) + p["input_bias"];
      const auto step = at::linalg_lstsq(w, ((t == 2 ? gate_size : -gate_size) - rest).unsqueeze(1));
      p.x[t].add_(std::get<0>(step).squeeze(1));
    }
  }
  auto c = at::zeros({2, 8, 8}, at::kDouble), n = at::zeros({2, 8}, at::kDouble);
  double largest = 0, least = 0;
  Tensors y, rows;
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto x = p.token(t);
    rows.push_back(x);
    const auto u = swish(convolved(rows, t, p["conv.weight"]) + p["conv.bias"]);
    const auto q = heads(p.map("q", u), 2), k = heads(p.map("k", u), 2) / std::sqrt(8.0),
               v = heads(p.map("v", x), 2);
    const auto i = p.map("input_gate", x) + p["input_bias"], z = p.map("forget_gate", x) + p["forget_bias"];
    largest = std::max(largest, i.max().item<double>()), least = std::min(least, i.min().item<double>());
    const auto f = forget_gate == "exp" ? at::exp(z) : logistic(z);
    c = f.view({2, 1, 1}) * c + i.exp().view({2, 1, 1}) * product(k, v);
    n = f.view({2, 1}) * n + i.exp().view({2, 1}) * k;
    const auto h = read(c, q) / (n * q).sum(1, true).abs().clamp_min(1);
    const auto normed = centred(h, kEps).flatten() * p["norm.weight"];
    y.push_back(p.map("out", normed * logistic(p.map("gate", x) + p["gate.bias"])));
  }
  if (gate_size > 0) {
    EXPECT_GE(largest, gate_size - 1e-6);
    EXPECT_LE(least, -gate_size + 1e-6);
  }
  expect_tokens(p.run(), y, 1e-8);
  for (const Kernel kernel : cpu_kernels()) {
    const ForceKernel force(kernel);
    expect_tokens(p.run(at::kFloat), y, 1e-3);
  }
}
// Capped gates, values of another width, and a divisor with eps, which depends on m: xLSTM 7B.
TEST(LinearMixers, CappedMlstmIsItsDefinition) {
  const at::NoGradGuard no_grad;
  const Probe p(
      "{mixer: mlstm, heads: 2, head_dim: 6, value_dim: 10, conv: 0, gate_cap: 0.5, eps: 0.1, bias: true}");
  const auto cap = [](const at::Tensor& z) { return at::tanh(z / 0.5) * 0.5; };
  auto c = at::zeros({2, 6, 10}, at::kDouble), n = at::zeros({2, 6}, at::kDouble),
       m = at::zeros({2}, at::kDouble);
  Tensors y;
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto x = p.token(t);
    const auto with_bias = [&](const std::string& name) {
      return heads(p.map(name, x) + p[name + ".bias"], 2);
    };
    const auto q = with_bias("q"), k = with_bias("k") / std::sqrt(6.0), v = with_bias("v");
    const auto i = cap(p.map("input_gate", x) + p["input_bias"]);
    const auto f = at::log_sigmoid(cap(p.map("forget_gate", x) + p["forget_bias"]));
    const auto next = at::maximum(f + m, i);
    const auto keep = at::exp(f + m - next), write = at::exp(i - next);
    c = keep.view({2, 1, 1}) * c + write.view({2, 1, 1}) * product(k, v);
    n = keep.view({2, 1}) * n + write.view({2, 1}) * k;
    m = next;
    const auto size = at::maximum((n * q).sum(1, true).abs(), at::exp(-m).unsqueeze(1)) + 0.1;
    const auto normed = centred(read(c, q) / size, kEps).flatten() * p["norm.weight"] + p["norm.bias"];
    y.push_back(p.map("out", normed * logistic(p.map("gate", x) + p["gate.bias"])) + p["out.bias"]);
  }
  expect_tokens(p.run(), y, 1e-8);
}
TEST(LinearMixers, MlstmIsItsDefinition) {
  expect_mlstm("sigmoid", 0);
  expect_mlstm("exp", 0);
}
TEST(LinearMixers, MlstmHoldsInputGatesOfFifty) {
  expect_mlstm("sigmoid", 50);
  expect_mlstm("exp", 50);
}

TEST(LinearMixers, Rwkv4IsItsDefinition) {
  const at::NoGradGuard no_grad;
  const Probe p("{mixer: rwkv4}");
  const auto w = at::exp(-p["decay"].exp());
  auto a = at::zeros({kWidth}, at::kDouble), b = a;
  Tensors y;
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto x = p.token(t), d = p.token(t - 1) - x;
    const auto r = p.map("r", x + d * p["mix_r"]), v = p.map("v", x + d * p["mix_v"]);
    const auto k = p.map("k", x + d * p["mix_k"]), own = at::exp(p["bonus"] + k);
    y.push_back(p.map("out", logistic(r) * (a + own * v) / (b + own)));
    a = w * a + k.exp() * v, b = w * b + k.exp();
  }
  expect_tokens(p.run(), y);
}

TEST(LinearMixers, RwkvChannelMixIsItsDefinition) {
  const at::NoGradGuard no_grad;
  for (const bool gate : {true, false}) {
    const Probe p(std::string("{mixer: rwkv_channel_mix, hidden: 24, gate: ") + (gate ? "true}" : "false}"));
    Tensors y;
    for (int64_t t = 0; t < kTokens; ++t) {
      const auto x = p.token(t), d = p.token(t - 1) - x;
      const auto hidden = p.map("v", p.map("k", x + d * p["mix_k"]).clamp_min(0).square());
      y.push_back(gate ? logistic(p.map("r", x + d * p["mix_r"])) * hidden : hidden);
    }
    expect_tokens(p.run(), y);
  }
}

}  // namespace
}  // namespace weft
