#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>

#include <gtest/gtest.h>

#include "base/error.h"
#include "nn/mixer.h"

namespace weft {
namespace {

std::unique_ptr<SequenceMixer> mixer_of(const std::string& options, int64_t width) {
  auto mixer = make_mixer(Node::parse("{mixer: dense, " + options + "}", "test"), Site{.width = width});
  mixer->initialize(3);
  mixer->to(at::kDouble);
  return mixer;
}

at::Tensor random(at::IntArrayRef sizes, uint64_t seed = 1) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(sizes, generator, at::TensorOptions().dtype(at::kDouble));
}

at::Tensor run(SequenceMixer& mixer, const at::Tensor& x) {
  State state = mixer.initial_state(x.size(0), x.options());
  return mixer.run(x, state, Context::at_positions(at::zeros({x.size(0)}, at::kLong), x.size(1)));
}

at::Tensor& weight(SequenceMixer& mixer, size_t index = 0) {
  return mixer.parameters()[index].parameter->value;
}

TEST(Dense, MatrixOfZerosPassesTheInputOn) {
  auto mixer = mixer_of("length: 6, heads: 2", 4);
  weight(*mixer).zero_();
  const auto x = random({2, 6, 4});
  EXPECT_TRUE(at::equal(run(*mixer, x), x));
}

TEST(Dense, IsTheMergedMatrix) {
  for (const bool causal : {false, true}) {
    auto mixer = mixer_of(causal ? "length: 6, heads: 2, causal: true" : "length: 6, heads: 2", 4);
    EXPECT_EQ(mixer->parameter_count(), 2 * 6 * 6);
    auto& m = weight(*mixer);
    m.copy_(random(m.sizes(), 2));
    const auto x = random({2, 6, 4}), y = run(*mixer, x);
    for (int64_t h = 0; h < 2; ++h) {
      auto merged = m[h] / std::sqrt(6.0) + at::eye(6, at::kDouble);
      if (causal) merged = merged.tril();
      for (int64_t row = 0; row < 2; ++row)
        EXPECT_TRUE(at::allclose(y[row].slice(1, 2 * h, 2 * h + 2),
                                 at::matmul(merged, x[row].slice(1, 2 * h, 2 * h + 2)), 0, 1e-13));
    }
  }
}

TEST(Dense, CausalToeplitzIsAConvolution) {
  auto mixer = mixer_of("length: 8, kind: toeplitz, causal: true", 3);
  auto& taps = weight(*mixer);
  ASSERT_EQ(taps.sizes(), (std::vector<int64_t>{1, 8}));
  taps.copy_(random(taps.sizes(), 2));
  const auto x = random({1, 8, 3}), y = run(*mixer, x);
  for (int64_t t = 0; t < 8; ++t) {
    auto expected = x[0][t].clone();
    for (int64_t s = 0; s <= t; ++s) expected += taps[0][s].item<double>() / std::sqrt(8.0) * x[0][t - s];
    EXPECT_TRUE(at::allclose(y[0][t], expected, 0, 1e-13)) << t;
  }
}

TEST(Dense, ToeplitzLooksBothWays) {
  auto mixer = mixer_of("length: 5, kind: toeplitz", 1);
  auto& taps = weight(*mixer);  // [1, 9]; the middle is the token itself
  taps.zero_();
  taps[0][4 + 2].fill_(1);  // two tokens back
  taps[0][4 - 1].fill_(3);  // the next one
  const auto x = random({1, 5, 1}), y = run(*mixer, x) - x;
  for (int64_t t = 0; t < 5; ++t) {
    const double expected =
        (t >= 2 ? x[0][t - 2][0].item<double>() : 0) + (t + 1 < 5 ? 3 * x[0][t + 1][0].item<double>() : 0);
    EXPECT_NEAR(y[0][t][0].item<double>(), expected / std::sqrt(5.0), 1e-14) << t;
  }
}

TEST(Dense, LowRankIsAProduct) {
  auto low = mixer_of("length: 7, heads: 2, kind: low_rank, rank: 3", 4),
       full = mixer_of("length: 7, heads: 2", 4);
  weight(*full).copy_(at::matmul(weight(*low, 0), weight(*low, 1).transpose(1, 2)));
  const auto x = random({2, 7, 4});
  EXPECT_TRUE(at::allclose(run(*low, x), run(*full, x), 0, 1e-14));
}

TEST(Dense, PermutedTokensPermuteTheOutput) {
  auto mixer = mixer_of("length: 6, heads: 2", 4), permuted = mixer_of("length: 6, heads: 2", 4);
  const auto order = at::tensor({3, 0, 5, 1, 4, 2}, at::kLong);
  weight(*mixer).mul_(20);
  weight(*permuted).copy_(weight(*mixer).index_select(1, order).index_select(2, order));
  const auto x = random({2, 6, 4});
  EXPECT_TRUE(at::allclose(run(*permuted, x.index_select(1, order)), run(*mixer, x).index_select(1, order), 0,
                           1e-13));
  EXPECT_FALSE(
      at::allclose(run(*mixer, x.index_select(1, order)), run(*mixer, x).index_select(1, order), 0, 1e-3));
}

TEST(Dense, HeadsDoNotMix) {
  auto mixer = mixer_of("length: 6, heads: 2", 4);
  weight(*mixer).mul_(20);
  const auto x = random({1, 6, 4});
  auto changed = x.clone();
  changed.slice(2, 2).add_(1);  // the second head's channels
  const auto before = run(*mixer, x), after = run(*mixer, changed);
  EXPECT_TRUE(at::equal(before.slice(2, 0, 2), after.slice(2, 0, 2)));
  EXPECT_FALSE(at::allclose(before.slice(2, 2), after.slice(2, 2)));
}

TEST(Dense, InitialisationIsXavierOnThreeAxes) {
  auto mixer = mixer_of("length: 64, heads: 4", 4);
  const double expected = std::sqrt(2.0 / (64 * 64 + 4 * 64));
  EXPECT_NEAR(weight(*mixer).std().item<double>(), expected, expected * 0.05);
}

TEST(Dense, LongerDocumentsAreRefused) {
  auto mixer = mixer_of("length: 6", 4);
  try {
    run(*mixer, random({1, 7, 4}));
    FAIL();
  } catch (const InputError& error) {
    EXPECT_STREQ(error.what(), "dense: a document has 7 tokens, but length is 6");
  }
}

}  // namespace
}  // namespace weft
