#include "ops/conv/long_conv.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/reference_check.h"

namespace weft::ops {
namespace {

constexpr double kBound = 1e-5, kHalfBound = 2e-2;

struct LongConvCase {
  int64_t batch, tokens, channels, taps;
  double starts = 0;  // chance that a document starts at a token
};

const std::vector<LongConvCase>& cases() {
  static const std::vector<LongConvCase> list = {
      {2, 0, 3, 5},     {1, 1, 1, 1},      {1, 2, 3, 2},         {2, 3, 5, 9},
      {3, 16, 17, 16},  {1, 17, 8, 33},    {2, 63, 33, 10},      {1, 64, 16, 64},
      {1, 127, 3, 200}, {1, 500, 20, 499}, {2, 90, 19, 40, 0.1}, {1, 300, 7, 300, 0.02}};
  return list;
}

at::Tensor starts_of(const LongConvCase& c) {
  if (c.starts == 0) return {};
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  auto starts = at::rand({c.batch, c.tokens}, generator) < c.starts;
  starts.slice(1, 4, 6).fill_(true);  // a document of one token
  return starts;
}

TensorList inputs_of(const LongConvCase& c) {
  return {normal({c.batch, c.tokens, c.channels}, 1), normal({c.channels, c.taps}, 2)};
}

TEST(LongConv, MatchesReference) {
  for (const auto& c : cases()) {
    SCOPED_TRACE(
        fmt::format("{} x {}, {} channels, {} taps, {}", c.batch, c.tokens, c.channels, c.taps, c.starts));
    const auto starts = starts_of(c);
    const auto fn = [&](const TensorList& t) {
      return TensorList{long_conv(t[0], t[1], starts.defined() ? starts.to(t[0].device()) : starts)};
    };
    expect_matches_reference(fn, inputs_of(c), at::kFloat, kBound);
    expect_matches_reference(fn, inputs_of(c), at::kBFloat16, kHalfBound);
    expect_matches_reference(fn, inputs_of(c), at::kHalf, kHalfBound);
  }
}

TEST(LongConv, ReferenceIsTheDefinitionInWords) {
  const auto in = inputs_of({1, 6, 2, 4});
  const auto starts = at::tensor({0, 0, 0, 1, 0, 0}).to(at::kBool).unsqueeze(0);
  const auto y = reference::long_conv(in[0], in[1], starts);
  for (int64_t e = 0; e < 2; ++e)
    for (int64_t t = 0; t < 6; ++t) {
      double sum = 0;
      for (int64_t s = 0; s < 4 && s <= t - (t >= 3 ? 3 : 0); ++s)
        sum += in[1][e][s].item<double>() * in[0][0][t - s][e].item<double>();
      EXPECT_NEAR(y[0][t][e].item<double>(), sum, 1e-12);
    }
}

TEST(LongConv, ReferenceGradients) {
  const auto starts = at::tensor({0, 0, 1, 0, 0}).to(at::kBool).unsqueeze(0);
  expect_finite_differences([&](const TensorList& t) { return TensorList{long_conv(t[0], t[1], starts)}; },
                            inputs_of({1, 5, 2, 4}));
}

TEST(LongConv, SameForAnyNumberOfThreads) {
  TensorList inputs;
  for (const auto& x : inputs_of({2, 130, 70, 130})) inputs.push_back(x.to(at::kFloat));
  expect_same_for_threads([](const TensorList& t) { return TensorList{long_conv(t[0], t[1])}; }, inputs);
}

// Long enough that rounding in the passes would show: kernels that ring for a long time, as those of S4 do.
TEST(LongConv, LongSequencesKeepTheBound) {
  const int64_t tokens = 16384;
  const auto t = at::arange(tokens, at::kDouble);
  const auto kernel = at::stack({at::exp(t * -1e-4) * at::cos(t * 0.01), at::exp(t * -1e-2)});
  const auto u = normal({1, tokens, 2}, 3);
  const int64_t n = 2 * tokens;
  const auto exact =
      at::fft_irfft(at::fft_rfft(u[0].t(), n) * at::fft_rfft(kernel, n), n).narrow(1, 0, tokens).t();
  for (const Kernel choice : cpu_kernels()) {
    const ForceKernel force(choice);
    EXPECT_LE(relative_error(long_conv(u.to(at::kFloat), kernel.to(at::kFloat))[0], exact), kBound)
        << kernel_name(choice);
  }
}

TEST(LongConv, StreamEqualsTheWhole) {
  for (const auto& c :
       {LongConvCase{2, 200, 19, 70}, {1, 150, 5, 150}, {1, 300, 33, 16}, {2, 40, 3, 1}, {1, 90, 2, 500}}) {
    auto in = inputs_of(c);
    for (auto& x : in) x = x.to(at::kFloat);
    const auto whole = reference::long_conv(in[0].to(at::kDouble), in[1].to(at::kDouble));
    const LongConvStream stream(in[1]);
    for (const auto& chunks :
         std::vector<std::vector<int64_t>>{{c.tokens}, {1}, {7}, {64, 1, 3}, {5, 0, 32, 2}})
      for (const Kernel choice : cpu_kernels()) {
        SCOPED_TRACE(fmt::format("{} taps, chunks of {}, {}", c.taps, chunks[0], kernel_name(choice)));
        const ForceKernel force(choice);
        auto state = stream.initial_state(c.batch);
        TensorList pieces;
        int64_t done = 0;
        for (size_t i = 0; done < c.tokens; ++i) {
          const int64_t count = std::min(chunks[i % chunks.size()], c.tokens - done);
          pieces.push_back(stream.run(in[0].narrow(1, done, count), state));
          done += count;
        }
        EXPECT_EQ(state.tokens, c.tokens);
        EXPECT_LE(relative_error(at::cat(pieces, 1), whole), kBound);
      }
  }
}

TEST(LongConv, StatesForkAndGoBack) {
  auto in = inputs_of({1, 60, 4, 30});
  for (auto& x : in) x = x.to(at::kFloat);
  const LongConvStream stream(in[1]);
  auto state = stream.initial_state(1);
  stream.run(in[0].narrow(1, 0, 37), state);
  LongConvState fork{state.inputs.clone(), state.pending.clone(), state.tokens};
  stream.run(at::ones({1, 9, 4}), fork);
  const auto y = stream.run(in[0].narrow(1, 37, 23), state);
  EXPECT_LE(relative_error(y, long_conv(in[0], in[1]).narrow(1, 37, 23)), kBound);
}

TEST(LongConv, ErrorsNameWhatIsWrong) {
  const auto u = at::zeros({1, 5, 4});
  EXPECT_EQ(error_text([&] {
              long_conv(u, at::zeros({3, 5}));
            }),
            "long_conv: kernel is [3, 5], expected [4, -1]");
  EXPECT_EQ(error_text([&] {
              long_conv(u, at::zeros({4, 0}));
            }),
            "long_conv: kernel is [4, 0], expected at least one tap");
  EXPECT_EQ(error_text([&] {
              long_conv(u, at::zeros({4, 5}), at::zeros({1, 4}, at::kBool));
            }),
            "long_conv: starts is [1, 4], expected [1, 5]");
  const LongConvStream stream(at::ones({4, 6}));
  auto state = stream.initial_state(2);
  EXPECT_EQ(error_text([&] { stream.run(u, state); }),
            "LongConvStream: state.inputs is [2, 8, 4], expected [1, 8, 4]");
}

}  // namespace
}  // namespace weft::ops
