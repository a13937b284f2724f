#include "nn/mixers/rotary.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "ops/reference_check.h"

namespace weft {
namespace {

Rotary rotary(const std::string& scaling, int64_t dim, double theta = 10000) {
  return {{.theta = theta, .scaling = Node::parse(scaling, "test")}, dim, "here"};
}

// What the pairs of a head of ones at `position` are turned by and multiplied with, [pairs] each.
std::pair<at::Tensor, at::Tensor> turns(const Rotary& rotary, int64_t dim, int64_t length,
                                        int64_t position = 1) {
  const auto x =
      at::cat({at::ones({dim / 2}, at::kDouble), at::zeros({dim / 2}, at::kDouble)}).view({1, 1, 1, dim});
  const auto y =
      rotary(x, at::full({1, 1}, position, at::kLong), at::full({1, 1}, length, at::kLong)).flatten();
  const auto cosine = y.slice(0, 0, dim / 2), sine = y.slice(0, dim / 2);
  return {at::atan2(sine, cosine), at::hypot(sine, cosine)};
}

void expect_turns(const Rotary& rotary, int64_t length, const std::vector<double>& expected,
                  double magnitude = 1) {
  const auto [angle, size] = turns(rotary, static_cast<int64_t>(2 * expected.size()), length);
  EXPECT_LE(relative_error(angle, at::tensor(expected, at::kDouble)), 1e-12);
  EXPECT_LE(relative_error(size, at::full_like(size, magnitude)), 1e-12);
}

TEST(Rotary, FrequenciesAreTheDocumentedOnes) {
  // theta 256 and 8 channels: 1, 1/4, 1/16, 1/64.
  expect_turns(rotary("{linear: {factor: 2}}", 8, 256), 1, {0.5, 0.125, 0.03125, 0.0078125});
  expect_turns(rotary("{proportional: {share: 0.6, factor: 2}}", 8, 256), 1, {0.5, 0.125, 0, 0});
  // Within 16 tokens they turn 2.5, 0.64, 0.16 and 0.04 times; halfway between 0.32 and 0.96 is 0.64 (16 / 8 pi).
  const double turns = 2 / M_PI;
  expect_turns(
      rotary(fmt::format("{{llama3: {{factor: 3, length: 16, low_frequency: {}, high_frequency: {}}}}}",
                         turns / 2, turns * 3 / 2),
             8, 256),
      1, {1, 0.25 * (0.5 / 3 + 0.5), 0.0625 / 3, 0.015625 / 3});
  // Pairs 1 and 3 turn 16 / 8 pi and 1 / 8 pi times: pair 2 stands in the middle.
  expect_turns(
      rotary(fmt::format("{{yarn: {{factor: 3, length: 16, truncate: false, beta_fast: {}, beta_slow: {}}}}}",
                         turns, turns / 16),
             8, 256),
      1, {1, 0.25, 0.0625 * (0.5 / 3 + 0.5), 0.015625 / 3}, 0.1 * std::log(3) + 1);
}

TEST(Rotary, FrequenciesOfLengths) {
  const auto dynamic = rotary("{dynamic: {factor: 3, length: 10}}", 6, 64);  // exponent 6 / 4
  expect_turns(dynamic, 10, {1, 0.25, 0.0625});
  const double theta = 64 * std::pow(3.0 * 20 / 10 - 2, 1.5);  // 512
  expect_turns(dynamic, 20, {1, std::pow(theta, -1.0 / 3), std::pow(theta, -2.0 / 3)});
  const auto longrope = rotary("{longrope: {short: [1, 2], long: [4, 8], length: 10, factor: 10}}", 4, 4);
  expect_turns(longrope, 10, {1, 0.25}, std::sqrt(2));
  expect_turns(longrope, 11, {0.25, 0.0625}, std::sqrt(2));
}

TEST(Rotary, MagnitudesOfYarn) {
  const auto magnitude = [](const std::string& more) {
    return turns(rotary("{yarn: {factor: 10, length: 64" + more + "}}", 8), 8, 1).second[0].item<double>();
  };
  const double ln = std::log(10.0);
  EXPECT_NEAR(magnitude(""), 0.1 * ln + 1, 1e-12);
  EXPECT_NEAR(magnitude(", mscale: 0.5"), 0.1 * ln + 1, 1e-12);
  EXPECT_NEAR(magnitude(", mscale: 0.5, mscale_all_dim: 2"), (0.05 * ln + 1) / (0.2 * ln + 1), 1e-12);
  EXPECT_NEAR(magnitude(", attention_factor: 1.25, mscale: 0.5, mscale_all_dim: 2"), 1.25, 1e-12);
}

// Beyond the length the frequencies change with every token: each call must give what a run over all tokens up to its
// last one gives, so keys of earlier calls have to turn anew.
TEST(Rotary, CachedRunsEqualTheWholeAtEveryLength) {
  const at::NoGradGuard no_grad;
  for (const char* more : {"", ", window: 5, sinks: 1"})
    for (const char* scaling :
         {"{dynamic: {factor: 4, length: 6}}", "{longrope: {short: [1, 1.5], long: [2, 5], length: 6}}"}) {
      const auto mixer = make_mixer(
          Node::parse(
              fmt::format("{{mixer: attention, heads: 2, head_dim: 4, rope_scaling: {}{}}}", scaling, more),
              "test"),
          {.width = 8});
      mixer->initialize(1);
      mixer->to(at::kDouble);
      const auto x = normal({2, 14, 8}, 3);
      const auto run = [&](int64_t begin, int64_t end, State& state) {
        return mixer->run(x.slice(1, begin, end), state,
                          Context::at_positions(at::full({2}, begin, at::kLong), end - begin));
      };
      auto state = mixer->initial_state(2, x.options());
      int64_t done = 0;
      for (const int64_t tokens : {3, 1, 4, 1, 1, 4}) {
        auto fresh = mixer->initial_state(2, x.options());
        const auto expected = run(0, done + tokens, fresh).slice(1, done);
        EXPECT_LE(relative_error(run(done, done + tokens, state), expected), 1e-12)
            << scaling << " at " << done;
        done += tokens;
      }
    }
}

TEST(Rotary, LengthsAreOfDocuments) {
  auto starts = at::zeros({2, 5}, at::kBool);
  starts[0][3].fill_(true);
  const auto context = Context::at_positions(at::tensor({4, 0}, at::kLong), 5, starts);
  const auto lengths = document_lengths(context.positions, context.segments, context);
  EXPECT_TRUE(lengths.equal(at::tensor({7, 7, 7, 2, 2, 5, 5, 5, 5, 5}, at::kLong).view({2, 5}))) << lengths;
}

TEST(Rotary, ErrorsNameWhatIsWrong) {
  const auto error = [](const std::string& scaling) { return error_text([&] { rotary(scaling, 8); }); };
  EXPECT_EQ(error("{ntk: {factor: 2}}"),
            "here: rope_scaling: 'ntk': expected one of linear, dynamic, yarn, longrope, llama3, "
            "proportional with its "
            "options");
  EXPECT_EQ(error("{yarn: {factor: 2}}"), "test:1: yarn: yarn needs a length");
  EXPECT_EQ(error("{longrope: {short: [1], long: [1, 2], length: 8}}"),
            "here: rope_scaling: 1 short and 2 long factors for 4 pairs of channels");
  EXPECT_EQ(
      error_text([] { Rotary({.dim = 3}, 8, "here"); }),
      "here: the rotary embedding turns pairs of channels: rope_dim 3 must be even and at most head_dim 8");
}

}  // namespace
}  // namespace weft
