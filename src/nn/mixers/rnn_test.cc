// Mixers on recurrent cells against plain fp64 computations and torch's own layers.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/rnn_layer.h"

namespace weft {
namespace {

constexpr int64_t kWidth = 12;

at::Tensor normal(at::IntArrayRef sizes, uint64_t seed) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(sizes, random, at::TensorOptions(at::kDouble));
}

// A mixer in fp64 with all parameters random, so that nothing is tested at zero.
struct Fixture {
  std::unique_ptr<SequenceMixer> mixer;
  std::map<std::string, at::Tensor> p;

  explicit Fixture(const std::string& yaml, double scale = 0.4) {
    mixer = make_mixer(Node::parse(yaml, "case.yaml"), {.width = kWidth});
    mixer->initialize(7);
    mixer->to(at::kDouble);
    uint64_t seed = 100;
    for (auto& [name, parameter] : mixer->parameters()) {
      if (name != "norm.weight") parameter->value.copy_(scale * normal(parameter->value.sizes(), ++seed));
      p[name] = parameter->value;
    }
  }
  at::Tensor run(const at::Tensor& x) const {
    auto state = mixer->initial_state(x.size(0), x.options());
    return mixer->run(x, state, Context::at_positions(at::zeros({x.size(0)}, at::kLong), x.size(1)));
  }
};

void expect_near(const at::Tensor& a, const at::Tensor& b, double bound) {
  ASSERT_EQ(a.sizes(), b.sizes());
  EXPECT_LT((a - b).abs().max().item<double>(), bound);
}

class RnnMixers : public testing::Test {
  const at::NoGradGuard no_grad_;
};

TEST_F(RnnMixers, LstmEqualsTorch) {
  const Fixture f("{mixer: lstm}");
  const auto x = normal({2, 9, kWidth}, 1), zeros = at::zeros({1, 2, kWidth}, x.options());
  const auto bias = f.p.at("bias").flatten();
  const auto [h, last, c] =
      at::lstm(x, {zeros, zeros},
               {f.p.at("in.weight"), f.p.at("recurrent").reshape({-1, kWidth}), bias * 0.25, bias * 0.75},
               true, 1, 0.0, false, false, true);
  expect_near(f.run(x), at::linear(h, f.p.at("out.weight")), 1e-13);
}

TEST_F(RnnMixers, GruEqualsTorch) {
  const Fixture f("{mixer: gru}");
  const auto x = normal({2, 9, kWidth}, 1), zeros = at::zeros({1, 2, kWidth}, x.options());
  const auto r = f.p.at("recurrent").squeeze(1), b = f.p.at("bias").squeeze(1);  // m, r, u(, n)
  const auto none = at::zeros({2 * kWidth}, x.options());
  const auto [h, last] = at::gru(
      x, zeros,
      {f.p.at("in.weight"), at::cat({r[1], r[2], r[0]}), at::cat({none, b[3]}), at::cat({b[1], b[2], b[0]})},
      true, 1, 0.0, false, false, true);
  expect_near(f.run(x), at::linear(h, f.p.at("out.weight")), 1e-13);
}

TEST_F(RnnMixers, ElmanEqualsItsDefinition) {
  const Fixture f("{mixer: elman}");
  const auto x = normal({2, 9, kWidth}, 1);
  auto h = at::zeros({2, kWidth}, x.options());
  std::vector<at::Tensor> all;
  for (int64_t t = 0; t < 9; ++t) {
    h = at::tanh(at::linear(x.select(1, t), f.p.at("in.weight")) + at::linear(h, f.p.at("recurrent")[0][0]) +
                 f.p.at("bias").flatten());
    all.push_back(at::linear(h, f.p.at("out.weight")));
  }
  expect_near(f.run(x), at::stack(all, 1), 1e-13);
}

// H heads are one head whose recurrent matrices are block-diagonal.
TEST_F(RnnMixers, HeadsEqualABlockDiagonalMatrix) {
  for (const char* name : {"lstm", "gru", "elman"}) {
    const Fixture heads(fmt::format("{{mixer: {}, heads: 3}}", name)),
        dense(fmt::format("{{mixer: {}}}", name));
    for (const char* same : {"in.weight", "out.weight", "bias"})
      dense.p.at(same).copy_(heads.p.at(same).reshape(dense.p.at(same).sizes()));
    const auto& r = heads.p.at("recurrent");
    for (int64_t gate = 0; gate < r.size(0); ++gate)
      dense.p.at("recurrent")[gate][0].copy_(at::block_diag(r[gate].unbind(0)));
    const auto x = normal({2, 9, kWidth}, 1);
    expect_near(heads.run(x), dense.run(x), 1e-13);
  }
}

TEST_F(RnnMixers, HeadNormEqualsGroupNorm) {
  const auto h = normal({3, 5, 4, 3}, 1), weight = normal({12}, 2);
  const auto expected = at::group_norm(h.reshape({15, 12}), 4, weight, {}, 1e-5).reshape({3, 5, 12});
  expect_near(head_norm(h, weight, 1e-5), expected, 1e-13);
}

TEST_F(RnnMixers, BlockLinearEqualsABlockDiagonalMatrix) {
  const auto x = normal({3, 5, 12}, 1), weight = normal({4, 2, 3}, 2);
  expect_near(block_linear(x, weight).flatten(2), at::linear(x, at::block_diag(weight.unbind(0))), 1e-13);
}

// Without a stabiliser, in the order of the block: convolution, gates of each head, cell, norm, projection.
TEST_F(RnnMixers, SlstmEqualsItsUnstabilisedForm) {
  const Fixture f("{mixer: slstm, heads: 3}");
  const int64_t tokens = 10;
  const auto x = normal({2, tokens, kWidth}, 1);
  const auto padded = at::cat({at::zeros({2, 3, kWidth}, x.options()), x}, 1);
  auto u = f.p.at("conv.bias").expand({2, tokens, kWidth});
  for (int64_t j = 0; j < 4; ++j) u = u + padded.slice(1, j, j + tokens) * f.p.at("conv.weight").select(1, j);
  u = at::silu(u);
  const auto gate = [&](const char* weight, const at::Tensor& from, int64_t index) {  // [B, T, H, K]
    return at::einsum("bthi,hki->bthk",
                      {from.unflatten(-1, {3, 4}), f.p.at(weight).slice(1, 4 * index, 4 * index + 4)});
  };
  const auto wx = at::stack({gate("in_if.weight", u, 0), gate("in_if.weight", u, 1),
                             gate("in_zo.weight", x, 0), gate("in_zo.weight", x, 1)});
  auto h = at::zeros({2, 3, 4}, x.options()), c = h, n = h;
  std::vector<at::Tensor> all;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto g = wx.select(2, t) + at::einsum("jhoi,bhi->jbho", {f.p.at("recurrent"), h}) +
                   f.p.at("bias").unsqueeze(1);
    c = at::sigmoid(g[1]) * c + at::exp(g[0]) * at::tanh(g[2]);
    n = at::sigmoid(g[1]) * n + at::exp(g[0]);
    h = at::sigmoid(g[3]) * c / n;
    all.push_back(h);
  }
  const auto normed = at::layer_norm(at::stack(all, 1), {4}, {}, {}, 1e-5).flatten(2);
  expect_near(f.run(x), at::linear(normed, f.p.at("out.weight")), 1e-11);
}

TEST_F(RnnMixers, SlstmForgetGatesFollowThePowerLaw) {
  const auto bias_of = [](int64_t layer) {
    const auto mixer = make_mixer(Node::parse("{mixer: slstm, heads: 1}", "c"),
                                  {.width = 5, .layer = layer, .num_layers = 3});
    mixer->initialize(1);
    for (auto& [name, parameter] : mixer->parameters())
      if (name == "bias") return parameter->value[1][0].clone();
    return at::Tensor();
  };
  for (const int64_t layer : {0, 1, 2})
    for (int64_t k = 0; k < 5; ++k) {
      const double power = 0.3 + 1.3 * static_cast<double>(layer) / 2;
      EXPECT_NEAR(bias_of(layer)[k].item<double>(), 5 - 12 * std::pow(static_cast<double>(k) / 4, power),
                  1e-5);
    }
}

TEST_F(RnnMixers, TheMixerOfACellEqualsItsOwn) {
  const Fixture named("{mixer: lstm, heads: 2}"), chosen("{mixer: rnn, cell: lstm, heads: 2}");
  for (const auto& [name, value] : named.p) chosen.p.at(name).copy_(value);
  const auto x = normal({2, 9, kWidth}, 1);
  EXPECT_TRUE(at::equal(named.run(x), chosen.run(x)));
  try {
    Fixture("{mixer: rnn, cell: lstn}");
    FAIL() << "no error";
  } catch (const InputError& error) {
    EXPECT_NE(std::string(error.what()).find("no cell 'lstn'; registered: elman, gru"), std::string::npos)
        << error.what();
  }
}

// The block of ParaRNN in plain operations, token by token.
at::Tensor para_block(const Fixture& f, const at::Tensor& x, const std::string& cell, int64_t groups) {
  const int64_t batch = x.size(0), tokens = x.size(1), part = kWidth / groups;
  const auto uz = at::linear(x, f.p.at("in.weight"));
  const auto padded = at::cat({at::zeros({batch, 3, kWidth}, x.options()), uz.slice(2, 0, kWidth)}, 1);
  auto u = f.p.at("conv.bias").expand({batch, tokens, kWidth});
  for (int64_t j = 0; j < 4; ++j) u = u + padded.slice(1, j, j + tokens) * f.p.at("conv.weight").select(1, j);
  u = at::silu(u);
  const auto weight = f.p.at("cell.weight").unflatten(1, {3, part});  // [G, J, E / G, E / G]
  const auto wx = at::einsum("btgi,gjoi->jbtgo", {u.unflatten(-1, {groups, part}), weight}).flatten(3) +
                  f.p.at("cell.bias").unsqueeze(1);  // [J, B, T, E]
  const auto a = f.p.at("cell.parameters").squeeze(1);
  auto h = at::zeros({batch, kWidth}, x.options()), c = h;
  std::vector<at::Tensor> all;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto g = wx.select(2, t);
    if (cell == "para_gru") {
      const auto z = at::sigmoid(g[0] + a[0] * h), r = at::sigmoid(g[1] + a[1] * h);
      h = (1 - z) * h + z * at::tanh(g[2] + a[2] * h * r);
    } else {
      const auto forget = at::sigmoid(g[0] + a[0] * h + a[3] * c);
      c = forget * c + (1 - forget) * at::tanh(g[2] + a[2] * h);
      h = at::sigmoid(g[1] + a[1] * h + a[4] * c) * at::tanh(c);
    }
    all.push_back(h);
  }
  const auto y = at::stack(all, 1);
  const auto normed = y / at::sqrt(y.square().mean(-1, true) + 1e-5) * f.p.at("norm.weight");
  return at::linear(normed * at::silu(uz.slice(2, kWidth)), f.p.at("out.weight"));
}

TEST_F(RnnMixers, ParaBlocksEqualTheirDefinition) {
  const auto x = normal({2, 9, kWidth}, 1);
  for (const std::string cell : {"para_gru", "para_lstm"})
    for (const int64_t groups : {1, 3}) {
      const Fixture f(fmt::format("{{mixer: {}, heads: {}}}", cell, groups));
      expect_near(f.run(x), para_block(f, x, cell, groups), 1e-12);
    }
}

TEST_F(RnnMixers, NewtonEqualsTokenByToken) {
  const auto x = normal({2, 40, kWidth}, 1);
  for (const char* cell : {"para_gru", "para_lstm"}) {
    const Fixture sequential(fmt::format("{{mixer: {}, solver: sequential}}", cell));
    const auto expected = sequential.run(x);
    const auto error = [&](const char* options) {
      const Fixture newton(fmt::format("{{mixer: {}, solver: newton, {}}}", cell, options));
      return (newton.run(x) - expected).abs().max().item<double>();
    };
    EXPECT_LT(error("iterations: 7, tolerance: 1"), 1e-12) << cell;
    EXPECT_GT(error("iterations: 0, tolerance: 100"), 1e-3) << cell;  // it is Newton's method that runs
    EXPECT_LT(error("iterations: 0, tolerance: 0"), 1e-12) << cell;   // its check sends all channels back
  }
}

TEST_F(RnnMixers, ABoundHoldsTheWeightsOfTheState) {
  const Fixture bounded("{mixer: para_gru, bound: 0.5}", 2), free("{mixer: para_gru}", 2);
  for (const auto& [name, value] : bounded.p)
    free.p.at(name).copy_(name == "cell.parameters" ? 0.5 * at::tanh(value / 0.5) : value);
  const auto x = normal({2, 9, kWidth}, 1);
  expect_near(bounded.run(x), free.run(x), 1e-13);
  EXPECT_GT(bounded.p.at("cell.parameters").abs().max().item<double>(), 0.5);
}

TEST_F(RnnMixers, MinGruAndMinLstmEqualTheirDefinition) {
  const auto x = normal({2, 12, kWidth}, 1);
  for (const std::string name : {"min_gru", "min_lstm"}) {
    const Fixture f(fmt::format("{{mixer: {}}}", name), 1.5);
    const int64_t gates = name == "min_gru" ? 1 : 2;
    const auto sums = at::linear(x, f.p.at("in.weight")) + f.p.at("bias").flatten();
    const auto gate = [&](int64_t i) { return at::sigmoid(sums.slice(2, i * kWidth, (i + 1) * kWidth)); };
    const auto v = sums.slice(2, gates * kWidth);
    const auto candidate = at::where(v >= 0, v + 0.5, at::sigmoid(v));
    auto h = at::zeros({2, kWidth}, x.options());
    std::vector<at::Tensor> all;
    for (int64_t t = 0; t < 12; ++t) {
      const auto at_t = [t](const at::Tensor& s) { return s.select(1, t); };
      if (gates == 1)
        h = (1 - at_t(gate(0))) * h + at_t(gate(0)) * at_t(candidate);
      else
        h = (at_t(gate(0)) * h + at_t(gate(1)) * at_t(candidate)) / (at_t(gate(0)) + at_t(gate(1)));
      all.push_back(h);
    }
    EXPECT_GT(at::stack(all).min().item<double>(), 0);
    expect_near(f.run(x), at::linear(at::stack(all, 1), f.p.at("out.weight")), 1e-12);
  }
}

// Both gates of minLSTM closed beyond what fp32 can hold: the ratio is still that of the sums.
TEST_F(RnnMixers, MinLstmKeepsTheRatioOfClosedGates) {
  Fixture f("{mixer: min_lstm, positive: false}");
  f.mixer->to(at::kFloat);
  for (auto& [name, parameter] : f.mixer->parameters()) f.p[name] = parameter->value;
  f.p.at("in.weight").zero_();
  f.p.at("bias").copy_(at::tensor({-200.0f, -201.0f, 1.0f}).unsqueeze(1));
  f.p.at("out.weight").copy_(at::eye(kWidth));
  const auto y = f.run(at::zeros({1, 2, kWidth}, at::kFloat));
  const double keep = 1 / (1 + std::exp(-1.0));
  EXPECT_NEAR(y[0][1][0].item<double>(), (1 - keep) * (1 + keep), 1e-5);
}

TEST_F(RnnMixers, RgLruEqualsItsDefinition) {
  const Fixture f("{mixer: rg_lru, heads: 3}");
  const int64_t tokens = 11;
  const auto x = normal({2, tokens, kWidth}, 1);
  const auto both = at::linear(x, f.p.at("in.weight"), f.p.at("in.bias"));
  const auto padded = at::cat({at::zeros({2, 3, kWidth}, x.options()), both.slice(2, 0, kWidth)}, 1);
  auto u = f.p.at("conv.bias").expand({2, tokens, kWidth});
  for (int64_t j = 0; j < 4; ++j) u = u + padded.slice(1, j, j + tokens) * f.p.at("conv.weight").select(1, j);
  const auto open = [&](int64_t gate) {
    const auto blocks = f.p.at("gates.weight").slice(1, 4 * gate, 4 * gate + 4);  // [3, 4, 4]
    return at::sigmoid(at::linear(u, at::block_diag(blocks.unbind(0)), f.p.at("gates.bias")[gate]));
  };
  const auto a = at::exp(-8 * at::log1p(at::exp(f.p.at("lambda"))) * open(0));
  auto h = at::zeros({2, kWidth}, x.options());
  std::vector<at::Tensor> all;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto at_t = [t](const at::Tensor& s) { return s.select(1, t); };
    h = at_t(a) * h + at::sqrt(1 - at_t(a).square()) * at_t(open(1)) * at_t(u);
    all.push_back(h);
  }
  const auto gate = at::gelu(both.slice(2, kWidth), "tanh");
  expect_near(f.run(x), at::linear(at::stack(all, 1) * gate, f.p.at("out.weight"), f.p.at("out.bias")),
              1e-12);
}

TEST_F(RnnMixers, RgLruBeginsWithDecaysNearOne) {
  const auto mixer = make_mixer(Node::parse("{mixer: rg_lru, inner: 4000}", "c"), {.width = 4});
  mixer->initialize(1);
  for (auto& [name, parameter] : mixer->parameters()) {
    if (name != "lambda") continue;
    const auto kept = at::exp(-8 * at::softplus(parameter->value.to(at::kDouble)));
    EXPECT_GT(kept.min().item<double>(), 0.9 - 1e-4);
    EXPECT_LT(kept.max().item<double>(), 0.999 + 1e-4);
    EXPECT_NEAR(kept.mean().item<double>(), 0.9495, 2e-3);
  }
}

}  // namespace
}  // namespace weft
