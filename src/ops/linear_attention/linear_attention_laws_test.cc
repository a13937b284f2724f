// What must hold whatever the implementation: golden values, identities between variants, and the forms
// (whole, chunked, stepped, packed, summed up) against each other. Run for the reference and every kernel of the
// machine.
#include <gtest/gtest.h>

#include "ops/kernel_choice.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/linear_attention/linear_attention_cases.h"
#include "ops/test_scopes.h"

namespace weft::ops {
namespace {

std::vector<Kernel> kernels_to_test() {
  auto list = runnable_kernels();
  list.push_back(Kernel::reference);
  return list;
}

class LinearAttentionLaws : public testing::TestWithParam<Kernel> {
  ForceKernel force_{GetParam()};
  Threads one_thread_{1};
};

INSTANTIATE_TEST_SUITE_P(Kernels, LinearAttentionLaws, testing::ValuesIn(kernels_to_test()),
                         [](const auto& info) { return std::string(kernel_name(info.param)); });

// The op where the kernel under test wants its tensors; what it gives, on the CPU.
c10::DeviceType device_under_test() { return device_of(forced_kernel().value()); }
LinearAttentionResult run(const LinearAttention& in) {
  const auto out = linear_attention(on_device(in, device_under_test()));
  return {out.y.cpu(), out.state.cpu()};
}
LinearAttentionResult run_step(const LinearAttention& in) {
  const auto out = linear_attention_step(on_device(in, device_under_test()));
  if (!in.initial_state.is_alias_of(out.state)) in.initial_state.copy_(out.state);
  return {out.y.cpu(), in.initial_state};
}
LinearAttentionSummary run_summary(const LinearAttention& in) {
  auto map = linear_attention_summary(on_device(in, device_under_test()));
  map.factor = map.factor.cpu(), map.offset = map.offset.cpu();
  return map;
}

void expect_near(const at::Tensor& x, const at::Tensor& expected, double bound, const std::string& what) {
  ASSERT_EQ(x.sizes(), expected.sizes()) << what;
  if (x.numel() == 0) return;
  const double error = (x.to(at::kDouble) - expected.to(at::kDouble)).abs().max().item<double>();
  EXPECT_TRUE(error <= bound * std::max(1.0, expected.abs().max().item<double>()))
      << what << ": error " << error;
}

// The tokens [begin, end) of every input.
LinearAttention cut(LinearAttention in, int64_t begin, int64_t end) {
  const auto part = [&](const at::Tensor& x) { return x.defined() ? x.narrow(1, begin, end - begin) : x; };
  for (auto* x : {&in.q, &in.k, &in.v, &in.beta, &in.erase_read, &in.erase_write, &in.write, &in.starts})
    *x = part(*x);
  if (in.log_decay.defined() && in.log_decay.dim() > 1) in.log_decay = part(in.log_decay);
  return in;
}

// Six tokens with K = V = 2 made of sines, as the golden values were computed.
struct Golden {
  at::Tensor q, k, v, vector_decay, scalar_decay, beta;
  Golden() {
    const auto t = at::arange(6, at::kDouble).view({1, 6, 1, 1}),
               d = at::arange(2, at::kDouble).view({1, 1, 1, 2});
    const auto phase = 0.9 * t + 1.7 * d;
    q = phase.sin(), k = (phase + 1).sin(), v = (phase + 2).sin();
    vector_decay = -0.1 * (1 + (t + d).remainder(3));
    scalar_decay = -0.1 * (1 + t.remainder(3)).squeeze(-1);
    beta = 0.5 + 0.1 * t.remainder(4).squeeze(-1);
    k = k / k.norm(2, {-1}, true);
  }
  LinearAttention with(const at::Tensor& log_decay, bool erase) const {
    const auto type = at::kFloat;
    LinearAttention in;
    in.q = q.to(type), in.k = k.to(type), in.v = v.to(type);
    in.scale = 1;
    if (log_decay.defined()) in.log_decay = log_decay.to(type);
    if (erase) in.beta = beta.to(type);
    return in;
  }
};

void expect_last(const LinearAttention& in, double y0, double y1, const char* what) {
  const auto y = run(in).y.select(1, 5).flatten();
  EXPECT_NEAR(y[0].item<double>(), y0, 2e-6) << what;
  EXPECT_NEAR(y[1].item<double>(), y1, 2e-6) << what;
}

TEST_P(LinearAttentionLaws, GoldenValues) {
  const Golden g;
  expect_last(g.with({}, false), -1.995362, 2.949757, "linear");
  expect_last(g.with(at::full({1}, std::log(31.0 / 32)), false), -1.805521, 2.732612, "RetNet");
  expect_last(g.with(g.vector_decay, false), -0.989430, 1.805369, "GLA");
  expect_last(g.with({}, true), -0.609741, 0.799071, "DeltaNet");
  expect_last(g.with(g.scalar_decay, true), -0.356003, 0.635761, "Gated DeltaNet");
  expect_last(g.with(g.vector_decay, true), -0.372983, 0.629377, "KDA");
  auto rwkv = g.with(g.vector_decay, false);
  rwkv.bonus = at::full({1, 2}, 0.3);
  expect_last(rwkv, -1.448687, 1.865748, "RWKV-6");
  auto hgrn = g.with(g.vector_decay, false);
  hgrn.k = (1 - g.vector_decay.exp()).to(at::kFloat);
  expect_last(hgrn, 0.140219, -0.179020, "HGRN-2");
  expect_near(run(g.with(g.scalar_decay, true)).state.flatten(),
              at::tensor({0.318927, -0.683751, 0.532461, 0.392660}), 2e-6, "state of Gated DeltaNet");
}

const LinearAttentionCase kWide{.name = "",
                                .batch = 2,
                                .tokens = 75,
                                .heads = 2,
                                .key_heads = 2,
                                .key_width = 16,
                                .value_width = 12,
                                .decay = LinearAttentionCase::Decay::scalar,
                                .erase = true};

// Linear attention without decay is the masked product (Q K') V.
TEST_P(LinearAttentionLaws, WithoutDecayIsMaskedAttention) {
  auto c = kWide;
  c.decay = LinearAttentionCase::Decay::none, c.erase = false;
  const auto in = linear_attention_inputs(c, at::kFloat);
  const auto q = in.q.transpose(1, 2), k = in.k.transpose(1, 2), v = in.v.transpose(1, 2);
  const auto y = at::matmul(at::matmul(q, k.transpose(2, 3)).tril(), v) / 4;
  expect_near(run(in).y, y.transpose(1, 2), 1e-5, "y");
}

TEST_P(LinearAttentionLaws, EqualDecaysAreOneDecay) {
  for (const bool erase : {false, true}) {
    auto c = kWide;
    c.erase = erase;
    const auto scalar = linear_attention_inputs(c, at::kFloat);
    auto vector = scalar;
    vector.log_decay = scalar.log_decay.unsqueeze(-1).expand({-1, -1, -1, c.key_width});
    const auto a = run(scalar), b = run(vector);
    expect_near(b.y, a.y, 1e-5, "y");
    expect_near(b.state, a.state, 1e-5, "state");
  }
}

TEST_P(LinearAttentionLaws, ConstantAndZeroAreSpecialScalars) {
  auto constant = linear_attention_inputs(kWide, at::kFloat);
  constant.log_decay = at::tensor({-0.03f, -0.2f});
  auto scalar = constant;
  scalar.log_decay = constant.log_decay.expand({2, 75, 2});
  expect_near(run(scalar).y, run(constant).y, 1e-6, "constant decay");
  auto zero = constant, none = constant;
  zero.log_decay = at::zeros({2, 75, 2}), none.log_decay = at::Tensor();
  expect_near(run(zero).y, run(none).y, 1e-6, "no decay");
  none.write = none.beta, none.beta = at::Tensor();
  auto no_erase = none;
  no_erase.beta = at::zeros({2, 75, 2});
  expect_near(run(no_erase).y, run(none).y, 1e-6, "no erase");
}

TEST_P(LinearAttentionLaws, GroupedKeysAreRepeatedKeys) {
  auto c = kWide;
  c.heads = 6;
  const auto grouped = linear_attention_inputs(c, at::kFloat);
  auto repeated = grouped;
  repeated.q = grouped.q.repeat_interleave(3, 2), repeated.k = grouped.k.repeat_interleave(3, 2);
  EXPECT_TRUE(at::equal(run(grouped).y, run(repeated).y));
}

// With orthonormal keys and full erase a key reads back exactly the value last written to it.
TEST_P(LinearAttentionLaws, DeltaRuleStoresAndReplaces) {
  const int64_t n = 8;
  const auto keys = at::eye(n).view({1, n, 1, n}), values = at::randn({1, n, 1, 5}),
             again = at::randn({1, n, 1, 5});
  const auto k = at::cat({keys, keys}, 1);
  LinearAttention in;
  in.q = k, in.k = k, in.v = at::cat({values, again}, 1);
  in.beta = at::ones({1, 2 * n, 1}), in.scale = 1;
  expect_near(run(in).y, in.v, 1e-6, "y");
  expect_near(run(in).state.view({n, 5}), again.view({n, 5}), 1e-6, "state");
  in.v = at::cat({values, values}, 1);  // writing the same twice changes nothing, without erase it doubles
  expect_near(run(in).state.view({n, 5}), values.view({n, 5}), 1e-6, "written twice");
  in.beta = at::Tensor();
  expect_near(run(in).state.view({n, 5}), 2 * values.view({n, 5}), 1e-6, "doubled");
}

// The delta rule erases along the decayed key, the low rank erase reads the state before its decay: with
// a = exp(g) k and b = -beta k they are the same.
TEST_P(LinearAttentionLaws, DeltaRuleIsALowRankErase) {
  using Decay = LinearAttentionCase::Decay;
  for (const auto decay : {Decay::none, Decay::constant, Decay::scalar, Decay::vector}) {
    auto c = kWide;
    c.heads = 4, c.decay = decay, c.state = true, c.starts = 0.05;
    const auto delta = linear_attention_inputs(c, at::kFloat);
    auto low_rank = delta;
    const auto k = delta.k.repeat_interleave(2, 2);
    auto factor = delta.log_decay.defined() ? delta.log_decay.exp() : at::ones({1});
    if (factor.dim() < 4) factor = factor.unsqueeze(-1);
    low_rank.erase_read = (factor * k).contiguous(), low_rank.erase_write = -delta.beta.unsqueeze(-1) * k;
    low_rank.write = delta.beta, low_rank.beta = at::Tensor();
    const auto a = run(delta), b = run(low_rank);
    expect_near(b.y, a.y, 1e-5, "y");
    expect_near(b.state, a.state, 1e-5, "state");
  }
}

TEST_P(LinearAttentionLaws, ZeroLowRankErasesNothing) {
  auto c = kWide;
  c.erase = false, c.decay = LinearAttentionCase::Decay::vector, c.state = true;
  const auto none = linear_attention_inputs(c, at::kFloat);
  auto zero = none;
  zero.erase_read = none.k, zero.erase_write = at::zeros_like(none.k);
  expect_near(run(zero).y, run(none).y, 1e-5, "nothing written back");
  zero.erase_write = none.k, zero.erase_read = at::zeros_like(none.k);
  expect_near(run(zero).y, run(none).y, 1e-5, "nothing read");
}

// With a = -k, b = k of length one, no decay and orthonormal keys, writing again replaces.
TEST_P(LinearAttentionLaws, LowRankEraseReplaces) {
  const int64_t n = 8;
  const auto keys = at::eye(n).view({1, n, 1, n}).repeat({1, 2, 1, 1});
  LinearAttention in;
  in.q = in.k = in.erase_write = keys, in.erase_read = -keys;
  in.v = at::randn({1, 2 * n, 1, 5}), in.scale = 1;
  const auto out = run(in);
  expect_near(out.y, in.v, 1e-6, "y");
  expect_near(out.state.view({n, 5}), in.v.narrow(1, n, n).reshape({n, 5}), 1e-6, "state");
}

// Any cut into pieces, the state passed on, is the whole.
TEST_P(LinearAttentionLaws, PiecesAreTheWhole) {
  for (const auto& c : linear_attention_cases()) {
    if (c.tokens < 30 || c.key_width > 100) continue;
    const auto in = linear_attention_inputs(c, at::kFloat);
    const auto whole = run(in);
    std::vector<at::Tensor> y;
    auto state = in.initial_state;
    for (int64_t begin = 0; begin < c.tokens;) {
      const int64_t end = std::min(c.tokens, begin + 1 + at::randint(0, 40, {1}).item<int64_t>());
      auto part = cut(in, begin, end);
      part.initial_state = state;
      const auto out = run(part);
      y.push_back(out.y), state = out.state, begin = end;
    }
    expect_near(at::cat(y, 1), whole.y, 1e-5, c.name + " y");
    expect_near(state, whole.state, 1e-5, c.name + " state");
  }
}

TEST_P(LinearAttentionLaws, StepsAreTheWhole) {
  for (const auto& c : linear_attention_cases()) {
    if (c.tokens < 30 || c.tokens > 100) continue;
    const auto in = linear_attention_inputs(c, at::kFloat);
    const auto whole = run(in);
    std::vector<at::Tensor> y;
    const auto state = c.state ? in.initial_state.clone()
                               : at::zeros({c.batch, c.heads, c.key_width, c.value_width}, at::kFloat);
    for (int64_t t = 0; t < c.tokens; ++t) {
      auto token = cut(in, t, t + 1);
      token.initial_state = state;
      const auto out = run_step(token);
      ASSERT_EQ(out.state.data_ptr(), state.data_ptr());
      y.push_back(out.y);
    }
    expect_near(at::cat(y, 1), whole.y, 1e-5, c.name + " y");
    expect_near(state, whole.state, 1e-5, c.name + " state");
  }
}

// Documents packed into one sequence are the documents one by one; the state is that of the last.
TEST_P(LinearAttentionLaws, PackedIsSeparate) {
  using Decay = LinearAttentionCase::Decay;
  const std::vector<int64_t> lengths = {3, 1, 33, 1, 1, 40};
  for (const auto decay : {Decay::none, Decay::constant, Decay::scalar, Decay::vector})
    for (const bool erase : {false, true}) {
      auto c = kWide;
      c.batch = 1, c.tokens = 79, c.decay = decay, c.erase = erase, c.state = true, c.bonus = !erase;
      auto in = linear_attention_inputs(c, at::kFloat);
      in.starts = at::zeros({1, 79}, at::kBool);
      std::vector<at::Tensor> y;
      at::Tensor state;
      int64_t begin = 0;
      for (const int64_t length : lengths) {
        auto document = cut(in, begin, begin + length);
        document.starts = document.initial_state = at::Tensor();
        const auto out = run(document);
        y.push_back(out.y), state = out.state;
        in.starts.select(1, begin).fill_(true);
        begin += length;
      }
      const auto packed = run(in);
      expect_near(packed.y, at::cat(y, 1), 1e-5, "y");
      expect_near(packed.state, state, 1e-5, "state");
    }
}

TEST_P(LinearAttentionLaws, LaterTokensDoNotChangeEarlierOutputs) {
  for (const auto& c : linear_attention_cases()) {
    if (c.tokens < 30 || c.tokens > 100) continue;
    const auto in = linear_attention_inputs(c, at::kFloat);
    auto changed = in;
    const int64_t from = c.tokens / 2;
    for (auto* x : {&changed.q, &changed.k, &changed.v, &changed.log_decay, &changed.beta,
                    &changed.erase_read, &changed.erase_write, &changed.write}) {
      if (!x->defined() || x->dim() < 3) continue;
      *x = x->clone();
      x->narrow(1, from, c.tokens - from).mul_(0.7);
    }
    const auto a = run(in).y, b = run(changed).y;
    EXPECT_TRUE(at::equal(a.narrow(1, 0, from), b.narrow(1, 0, from))) << c.name;
    EXPECT_FALSE(at::equal(a.select(1, from), b.select(1, from))) << c.name;
  }
}

TEST_P(LinearAttentionLaws, SummaryIsTheMapOfTheState) {
  for (const auto& c : linear_attention_cases()) {
    if (c.key_width > 100 || c.tokens > 100) continue;
    auto in = linear_attention_inputs(c, at::kFloat);
    const auto state =
        c.state ? in.initial_state : at::randn({c.batch, c.heads, c.key_width, c.value_width}, at::kFloat);
    in.initial_state = state;
    const auto after = run(in).state;
    in.initial_state = at::Tensor();
    const auto map = run_summary(in);
    EXPECT_EQ(map.matrix, c.erase || c.erase_heads > 0);
    const auto mapped = map.matrix ? at::matmul(map.factor, state) : map.factor * state;
    expect_near(mapped + map.offset, after, 1e-5, c.name);
  }
}

}  // namespace
}  // namespace weft::ops
