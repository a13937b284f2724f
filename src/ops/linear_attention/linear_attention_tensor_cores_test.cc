// The forms of linear attention that a GPU computes on tensor cores: widths, strengths of decay, segments, many heads.
#include "ops/linear_attention/linear_attention_test.h"

#include <ATen/core/grad_mode.h>

namespace weft::ops {
namespace {

// The forms that kernels for tensor cores take: decay, erase, low rank erase.
std::vector<LinearAttentionCase> wide_cases(int64_t batch, int64_t tokens, int64_t heads, int64_t width) {
  using Decay = LinearAttentionCase::Decay;
  struct Form {
    const char* name;
    Decay decay;
    bool erase, low_rank;
  };
  std::vector<LinearAttentionCase> cases;
  for (const auto& form :
       {Form{"none", Decay::none, false, false}, Form{"constant", Decay::constant, false, false},
        Form{"scalar", Decay::scalar, false, false}, Form{"vector", Decay::vector, false, false},
        Form{"delta", Decay::none, true, false}, Form{"gdn", Decay::scalar, true, false},
        Form{"kda", Decay::vector, true, false}, Form{"dplr", Decay::vector, false, true}})
    cases.push_back({.name = fmt::format("{} {}", form.name, width),
                     .batch = batch,
                     .tokens = tokens,
                     .heads = heads,
                     .key_heads = heads,
                     .key_width = width,
                     .value_width = width,
                     .decay = form.decay,
                     .erase = form.erase,
                     .state = true,
                     .erase_heads = form.low_rank ? heads : 0});
  return cases;
}

void expect_low_precision(const LinearAttentionCase& c, at::ScalarType type = at::kBFloat16) {
  const auto in = linear_attention_inputs(c, type);
  const auto expected = run(in, at::kDouble, reference::linear_attention);
  for (const Kernel kernel : first_choices()) {
    const ForceKernel force(kernel);
    const auto found = run(on_device(in, device_of(kernel)), type, linear_attention);
    const std::string where = c.name + " " + std::string(kernel_name(kernel));
    const auto bounds = linear_attention_bounds(type);
    expect_same(found, expected, bounds, where);
    // Kernels may be others when no backward follows.
    const at::NoGradGuard no_grad;
    const auto out = linear_attention(on_device(in, device_of(kernel)));
    expect_close(out.y, expected.out.y, bounds.y, where + " y alone");
    expect_close(out.state, expected.out.state, bounds.state, where + " state alone");
  }
}

// Weak decays, those that are weak in some chunks only, and strong ones take different ways, and so do segments.
TEST_F(LinearAttentionTest, LowRankEraseOnTensorCores) {
  struct Size {
    int64_t tokens, key_width, value_width;
  };
  for (const auto& [tokens, key_width, value_width] :
       {Size{77, 64, 64}, Size{77, 64, 128}, Size{77, 128, 64}, Size{77, 128, 128}, Size{50, 256, 256},
        Size{1100, 64, 64}, Size{700, 128, 128}})
    for (const double strength : {0.6, 6.0, 60.0})
      for (const auto type : {at::kBFloat16, at::kHalf})
        expect_low_precision({.name = fmt::format("{} {}x{} {}", tokens, key_width, value_width, strength),
                              .batch = 1,
                              .tokens = tokens,
                              .heads = 2,
                              .key_heads = 2,
                              .key_width = key_width,
                              .value_width = value_width,
                              .decay = LinearAttentionCase::Decay::vector,
                              .write = true,
                              .state = true,
                              .erase_heads = 2,
                              .strength = strength,
                              .starts = tokens > 500 ? 0.004 : 0.02},
                             type);
}

TEST_F(LinearAttentionTest, WidthsOfTensorCores) {
  for (const int64_t width : {64, 128})
    for (auto c : wide_cases(2, 141, 2, width)) {
      expect_low_precision(c);
      c.heads = 4, c.starts = 0.03;  // two value heads a key head, documents
      expect_low_precision(c);
    }
}

// Weak decays, strong ones and those that are strong in some chunks only take different ways, as do wide heads and segments.
TEST_F(LinearAttentionTest, VectorDecayOnTensorCores) {
  struct Size {
    int64_t tokens, key_width, value_width;
  };
  for (const auto& [tokens, key_width, value_width] :
       {Size{77, 64, 64}, Size{77, 64, 128}, Size{77, 128, 64}, Size{50, 96, 40}, Size{50, 256, 256},
        Size{50, 200, 136}, Size{50, 64, 256}, Size{520, 64, 64}, Size{520, 256, 64}})
    for (const double strength : {0.6, 6.0, 60.0})
      for (const auto type : {at::kBFloat16, at::kHalf}) {
        if (tokens > 500 && (strength != 6.0 || type != at::kBFloat16)) continue;  // slow
        LinearAttentionCase c{
            .name = fmt::format("vector {} {}x{} {}", tokens, key_width, value_width, strength),
            .batch = 1,
            .tokens = tokens,
            .heads = 2,
            .key_heads = 2,
            .key_width = key_width,
            .value_width = value_width,
            .decay = LinearAttentionCase::Decay::vector,
            .state = true,
            .strength = strength};
        expect_low_precision(c, type);
        c.name += " bonus", c.bonus = c.write = true, c.starts = tokens > 500 ? 0.004 : 0.02;
        expect_low_precision(c, type);
      }
}

// Weak decays, strong ones, those that are strong in some chunks only and those that forget at once take different ways.
TEST_F(LinearAttentionTest, DeltaRuleWithVectorDecayOnTensorCores) {
  for (const auto& [key_width, value_width] :
       {std::pair{64, 64}, {64, 128}, {128, 64}, {128, 128}, {256, 256}})
    for (const double strength : {1.2, 2.2, 6.0, 60.0}) {
      const bool wide = key_width == 256;
      LinearAttentionCase c{.name = fmt::format("kda {}x{} {}", key_width, value_width, strength),
                            .batch = 1,
                            .tokens = wide ? 70 : 100,
                            .heads = 2,
                            .key_heads = 2,
                            .key_width = key_width,
                            .value_width = value_width,
                            .decay = LinearAttentionCase::Decay::vector,
                            .erase = true,
                            .state = true,
                            .strength = strength};
      if (!wide) expect_low_precision(c);
      c.name += " documents", c.write = true, c.key_heads = 1, c.starts = 0.01;
      expect_low_precision(c);
      if (key_width == value_width && strength == 6.0) expect_low_precision(c, at::kHalf);
    }
}

// On a GPU such sequences are cut into segments.
TEST_F(LinearAttentionTest, LongSequencesOfFewHeads) {
  for (const auto& c : wide_cases(1, 2100, 1, 64)) {
    expect_low_precision(c);
    if (c.erase && c.decay == LinearAttentionCase::Decay::scalar) expect_low_precision(c, at::kHalf);
  }
}

// A GPU's blocks take more columns of a state when there are many heads.
TEST_F(LinearAttentionTest, ManyHeadsAreFewAtATime) {
  for (const auto& c : wide_cases(1, 130, 70, 128)) {
    if (!c.erase) continue;
    const auto in = linear_attention_inputs(c, at::kBFloat16);
    auto part = in;
    for (auto* x : {&part.q, &part.k, &part.v, &part.log_decay, &part.beta})
      if (x->defined()) *x = x->narrow(2, 8, 4);
    part.initial_state = in.initial_state.narrow(1, 8, 4);
    for (const Kernel kernel : first_choices()) {
      const ForceKernel force(kernel);
      const auto device = device_of(kernel);
      const auto whole = linear_attention(on_device(in, device)),
                 few = linear_attention(on_device(part, device));
      const auto bounds = linear_attention_bounds(at::kBFloat16);
      const std::string where = c.name + " " + std::string(kernel_name(kernel));
      expect_close(whole.y.narrow(2, 8, 4), few.y, bounds.y, where + " y");
      expect_close(whole.state.narrow(1, 8, 4), few.state, bounds.state, where + " state");
    }
  }
}

}  // namespace
}  // namespace weft::ops
