#include "ops/scan/wkv.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/recurrence_check.h"

namespace weft::ops {
namespace {

struct Case {
  const char* name;
  int64_t batch, tokens, channels;
  bool initial, starts;
};
constexpr Case kCases[] = {
    {"one", 1, 1, 1, false, false},      {"empty", 2, 0, 5, true, false},  {"odd", 3, 37, 21, true, true},
    {"blocks", 2, 19, 131, false, true}, {"long", 1, 500, 3, true, false},
};

// k, v, w, u, initial state, starts.
std::vector<at::Tensor> make_inputs(const Case& c) {
  auto generator = seeded(5);
  const auto normal = [&](at::IntArrayRef sizes) { return at::randn(sizes, generator); };
  at::Tensor initial, starts;
  if (c.initial) {
    const auto m = normal({c.batch, c.channels});
    initial = at::stack({normal({c.batch, c.channels}), normal({c.batch, c.channels}).abs() + 0.1, m}, 1);
  }
  if (c.starts) starts = at::rand({c.batch, c.tokens}, generator) < 0.15;
  return {2 * normal({c.batch, c.tokens, c.channels}),
          normal({c.batch, c.tokens, c.channels}),
          -normal({c.channels}).exp(),
          normal({c.channels}),
          initial,
          starts};
}

std::vector<at::Tensor> whole(const std::vector<at::Tensor>& x) {
  const auto out = wkv({x[0], x[1], x[2], x[3], x[4], x[5]});
  return {out.y, out.state};
}

TEST(Wkv, KernelsMatchTheReference) {
  for (const auto& c : kCases) expect_kernels_match(c.name, whole, whole, make_inputs(c), 1e-5);
}

TEST(Wkv, HalfPrecisionInputs) {
  auto x = make_inputs(kCases[2]);
  for (const auto type : {at::kBFloat16, at::kHalf}) {
    x[0] = x[0].to(type), x[1] = x[1].to(type);
    expect_kernels_match("half", whole, whole, x, 2e-2);
  }
}

TEST(Wkv, MisalignedInputs) {
  const auto run_misaligned = [](const std::vector<at::Tensor>& x) { return whole(misaligned(x)); };
  auto x = make_inputs({"misaligned", 2, 19, 64, true, true});
  expect_kernels_match("fp32", run_misaligned, whole, x, 1e-5);
  x[0] = x[0].to(at::kBFloat16), x[1] = x[1].to(at::kBFloat16);
  expect_kernels_match("bf16", run_misaligned, whole, x, 2e-2);
}

TEST(Wkv, GradientsAreFiniteDifferences) {
  auto x = make_inputs({"small", 2, 5, 3, true, true});
  for (auto& y : x) y = wide(y);
  expect_gradients(whole, x);
}

TEST(Wkv, OneThreadOrTwo) { expect_thread_independent(whole, make_inputs(kCases[3])); }

// The sums of the definition, without any scaling.
at::Tensor from_definition(const at::Tensor& k, const at::Tensor& v, const at::Tensor& w,
                           const at::Tensor& u) {
  std::vector<at::Tensor> y;
  for (int64_t t = 0; t < k.size(1); ++t) {
    auto above = at::exp(u + k.select(1, t)) * v.select(1, t), below = at::exp(u + k.select(1, t));
    for (int64_t i = 0; i < t; ++i) {
      const auto weight = at::exp(static_cast<double>(t - 1 - i) * w + k.select(1, i));
      above = above + weight * v.select(1, i), below = below + weight;
    }
    y.push_back(above / below);
  }
  return at::stack(y, 1);
}

class WkvLaws : public testing::TestWithParam<Kernel> {
  ForceKernel force_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Kernels, WkvLaws, testing::ValuesIn([] {
                           auto list = cpu_kernels();
                           list.push_back(Kernel::reference);
                           return list;
                         }()),
                         [](const auto& info) { return std::string(kernel_name(info.param)); });

TEST_P(WkvLaws, IsTheDefinition) {
  const auto x = make_inputs({"", 2, 23, 19, false, false});
  expect_close("y", wkv({x[0], x[1], x[2], x[3], {}, {}}).y,
               from_definition(wide(x[0]), wide(x[1]), wide(x[2]), wide(x[3])), 1e-5);
}

TEST_P(WkvLaws, AConstantAddedToAllKeysChangesNothing) {
  const auto x = make_inputs({"", 2, 23, 19, false, false});
  const auto k = (x[0] * 8).round() / 8;  // so that adding 16 rounds nothing
  expect_close("y", wkv({k + 16, x[1], x[2], x[3], {}, {}}).y, wkv({k, x[1], x[2], x[3], {}, {}}).y, 1e-5);
}

TEST_P(WkvLaws, LargeKeysDoNotOverflow) {
  const auto x = make_inputs({"", 1, 40, 19, false, false});
  const auto k = 100 * x[0].sign();
  const auto y = wkv({k, x[1], x[2], x[3], {}, {}}).y;
  EXPECT_TRUE(at::isfinite(y).all().item<bool>());
  expect_close("y", y, from_definition(wide(k), wide(x[1]), wide(x[2]), wide(x[3])), 1e-4);
  const auto gradients = evaluate(whole, {k, x[1], x[2], x[3], {}, {}}).gradients;
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(at::isfinite(gradients[i]).all().item<bool>()) << i;
}

TEST_P(WkvLaws, OnesAverageToOne) {
  const auto x = make_inputs({"", 2, 60, 19, false, true});
  const auto ones = at::ones_like(x[1]);
  EXPECT_LE((wkv({x[0], ones, x[2], x[3], {}, x[5]}).y - 1).abs().max().item<double>(), 2.5e-7);
}

// A decay without bounds leaves the token before, whose weight has not decayed yet, and the current one.
TEST_P(WkvLaws, CompleteDecayKeepsTwoTokens) {
  const auto x = make_inputs({"", 2, 23, 19, false, false});
  const auto now = at::exp(x[3] + x[0]);
  const auto before = at::exp(at::constant_pad_nd(x[0].slice(1, 0, 22), {0, 0, 1, 0}, -1e30));
  const auto value = at::constant_pad_nd(x[1].slice(1, 0, 22), {0, 0, 1, 0});
  expect_close("y", wkv({x[0], x[1], at::full({19}, -1e4f), x[3], {}, {}}).y,
               (before * value + now * x[1]) / (before + now), 1e-5);
}

TEST_P(WkvLaws, PiecesAreTheWhole) {
  const auto x = make_inputs({"", 3, 37, 21, true, true});
  const auto all = whole(x);
  std::vector<at::Tensor> y;
  auto state = x[4];
  for (int64_t begin = 0; begin < 37; begin += 5) {
    const auto part = [&](const at::Tensor& z) { return z.slice(1, begin, begin + 5); };
    const auto out = wkv({part(x[0]), part(x[1]), x[2], x[3], state, part(x[5])});
    y.push_back(out.y), state = out.state;
  }
  expect_close("y", at::cat(y, 1), all[0], 1e-6);
  expect_close("state", state, all[1], 1e-6);
}

TEST(Wkv, SaysWhatIsWrong) {
  auto x = make_inputs(kCases[0]);
  const auto error = error_of<InputError>([&] { wkv({x[0], x[1], at::zeros({7}), x[3], {}, {}}); });
  EXPECT_NE(error.find("log_decay is [7], expected [1]"), std::string::npos) << error;
}

}  // namespace
}  // namespace weft::ops
