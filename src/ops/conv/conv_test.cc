#include "ops/conv/conv.h"

#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/conv/conv_cases.h"
#include "ops/kernel_choice.h"
#include "ops/recurrence_check.h"

namespace weft::ops {
namespace {

class ShortConvTest : public RecurrenceTest {};

std::vector<std::pair<const char*, at::Tensor ShortConv::*>> differentiable() {
  return {{"x", &ShortConv::x},
          {"weight", &ShortConv::weight},
          {"bias", &ShortConv::bias},
          {"initial_state", &ShortConv::initial_state}};
}

ShortConv leaves(ShortConv in, at::ScalarType type) {
  for (const auto& [name, member] : differentiable())
    if ((in.*member).defined()) in.*member = (in.*member).detach().to(type).clone().set_requires_grad(true);
  return in;
}

// The same tensors where `kernel` wants them.
ShortConv on_device_of(Kernel kernel, ShortConv in) {
  for (const auto member :
       {&ShortConv::x, &ShortConv::weight, &ShortConv::bias, &ShortConv::initial_state, &ShortConv::starts})
    if ((in.*member).defined()) in.*member = (in.*member).to(device_of(kernel));
  return in;
}

void expect_close(const at::Tensor& x, const at::Tensor& expected, double bound, const std::string& what) {
  ASSERT_EQ(x.sizes(), expected.sizes()) << what;
  if (x.numel() == 0) return;
  const double scale = std::max(expected.abs().max().item<double>(), 1e-30);
  const double error =
      (x.to(at::kCPU, at::kDouble) - expected.to(at::kCPU, at::kDouble)).abs().max().item<double>() / scale;
  EXPECT_TRUE(error <= bound) << what << ": error " << error << ", bound " << bound;
}

// Outputs of a run and the gradients for fixed random upstream gradients.
struct Run {
  ShortConv in;
  ShortConvResult out;
};

Run run(const ShortConv& given, at::ScalarType type, ShortConvResult (*op)(const ShortConv&)) {
  Run r{leaves(given, type), {}};
  r.out = op(r.in);
  at::manual_seed(7);
  const auto dy = at::randn(r.out.y.sizes(), at::kDouble).to(r.out.y.device()),
             dstate = at::randn(r.out.state.sizes(), at::kDouble).to(r.out.y.device());
  ((r.out.y * dy).sum() + (r.out.state * dstate).sum()).backward();
  return r;
}

void expect_same(const Run& x, const Run& expected, const ShortConvBounds& bounds, const std::string& where) {
  expect_close(x.out.y, expected.out.y, bounds.y, where + " y");
  expect_close(x.out.state, expected.out.state, 0, where + " state");  // copies
  for (const auto& [name, member] : differentiable()) {
    if (!(x.in.*member).defined()) continue;
    const auto& wanted = (expected.in.*member).grad();
    if (!wanted.defined() || wanted.abs().sum().item<double>() == 0) continue;
    ASSERT_TRUE((x.in.*member).grad().defined()) << where << " no gradient of " << name;
    expect_close((x.in.*member).grad(), wanted, bounds.gradient, where + " gradient of " + name);
  }
}

TEST_F(ShortConvTest, KernelsEqualReference) {
  for (const auto& c : short_conv_cases()) {
    const auto in = short_conv_inputs(c, at::kFloat);
    const auto expected = run(in, at::kDouble, reference::short_conv);
    for (const Kernel kernel : runnable_kernels()) {
      const ForceKernel force(kernel);
      expect_same(run(on_device_of(kernel, in), at::kFloat, short_conv), expected,
                  short_conv_bounds(at::kFloat), c.name + " " + std::string(kernel_name(kernel)));
    }
  }
}

TEST_F(ShortConvTest, LowPrecision) {
  for (const auto type : {at::kBFloat16, at::kHalf})
    for (const auto& c : short_conv_cases()) {
      const auto in = short_conv_inputs(c, type);
      const auto expected = run(in, at::kDouble, reference::short_conv);
      for (const Kernel kernel : runnable_kernels()) {
        const ForceKernel force(kernel);
        const auto found = run(on_device_of(kernel, in), type, short_conv);
        EXPECT_EQ(found.out.y.scalar_type(), type);
        EXPECT_EQ(found.out.state.scalar_type(), type);
        expect_same(found, expected, short_conv_bounds(type),
                    c.name + " " + c10::toString(type) + " " + std::string(kernel_name(kernel)));
      }
    }
}

// A filter that doubles and adds: every 16-bit number goes in, every way of rounding comes out as torch rounds.
TEST_F(ShortConvTest, SixteenBitNumbersRoundToNearest) {
  const auto bits = at::arange(-32768, 32768, at::TensorOptions(at::kShort));
  for (const auto type : {at::kBFloat16, at::kHalf})
    for (const float factor : {1.0f, 1.00390625f, 0.50048828125f, 3.0f, 0x1p-12f}) {
      ShortConv in;
      in.x = bits.view(type).view({1, 64, 1024});
      in.weight = at::cat({at::zeros({1024, 1}), at::full({1024, 1}, factor)}, 1);
      in.initial_state = at::zeros({1, 1, 1024}, type);
      // The tap of the token before is 0 but would carry its infinities over; documents of one token do not see it.
      in.starts = at::ones({1, 64}, at::kBool);
      const auto expected = (in.x.to(at::kFloat) * factor).to(type);
      for (const Kernel kernel : runnable_kernels()) {
        const ForceKernel force(kernel);
        const auto y = short_conv(on_device_of(kernel, in)).y.to(at::kCPU);
        const auto same = (y.view(at::kShort) == expected.view(at::kShort)) | (y.isnan() & expected.isnan()) |
                          ((y == 0) & (expected == 0));  // 0 + -0 is 0
        EXPECT_TRUE(same.all().item<bool>())
            << kernel_name(kernel) << " " << c10::toString(type) << " " << factor;
      }
    }
}

TEST_F(ShortConvTest, StepsAreTheWhole) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf})
    for (auto c : short_conv_cases()) {
      if (c.tokens < 15 || c.tokens > 80) continue;
      c.starts = 0;
      const auto in = short_conv_inputs(c, type);
      const auto whole = short_conv(in);
      for (const Kernel kernel : runnable_kernels()) {
        const ForceKernel force(kernel);
        const auto where = c.name + " " + c10::toString(type) + " " + std::string(kernel_name(kernel));
        const auto there = on_device_of(kernel, in);
        auto one = there;
        one.initial_state = there.initial_state.defined()
                                ? there.initial_state.clone()
                                : at::zeros({c.batch, c.width - 1, c.channels}, there.x.options());
        std::vector<at::Tensor> y;
        for (int64_t t = 0; t < c.tokens; ++t) {
          one.x = there.x.narrow(1, t, 1);
          y.push_back(short_conv_step(one));
        }
        expect_close(at::cat(y, 1), whole.y, type == at::kFloat ? 1e-6 : 1e-2, where);
        EXPECT_TRUE(at::equal(one.initial_state.to(at::kCPU), whole.state)) << where;
      }
    }
}

TEST_F(ShortConvTest, StepOfTheReference) {
  auto in = short_conv_inputs(
      {.name = "", .batch = 2, .channels = 5, .bias = true, .silu = true, .state = true}, at::kDouble);
  const auto whole = reference::short_conv(in);
  EXPECT_TRUE(at::equal(short_conv_step(in), whole.y));
  EXPECT_TRUE(at::equal(in.initial_state, whole.state));
}

TEST_F(ShortConvTest, ThreadsDoNotChangeResults) {
  for (const auto& c : short_conv_cases()) {
    const auto in = short_conv_inputs(c, at::kFloat);
    at::set_num_threads(1);
    const auto one = run(in, at::kFloat, short_conv);
    at::set_num_threads(2);
    expect_same(run(in, at::kFloat, short_conv), one, {0, 0}, c.name);
  }
}

// Three taps worked out by hand, with a state and a document start.
TEST_F(ShortConvTest, ByHand) {
  ShortConv in;
  in.x = at::tensor({1.f, 2.f, 3.f, 4.f}).view({1, 4, 1});
  in.weight = at::tensor({100.f, 10.f, 1.f}).view({1, 3});
  in.bias = at::tensor({0.5f});
  in.initial_state = at::tensor({8.f, 9.f}).view({1, 2, 1});
  for (const auto op : {short_conv, reference::short_conv}) {
    in.starts = at::Tensor();
    EXPECT_TRUE(at::equal(op(in).y.flatten(), at::tensor({891.5f, 912.5f, 123.5f, 234.5f})));
    EXPECT_TRUE(at::equal(op(in).state.flatten(), at::tensor({3.f, 4.f})));
    in.starts = at::tensor({0, 0, 0, 1}).to(at::kBool).view({1, 4});
    EXPECT_TRUE(at::equal(op(in).y.flatten(), at::tensor({891.5f, 912.5f, 123.5f, 4.5f})));
    EXPECT_TRUE(at::equal(op(in).state.flatten(), at::tensor({0.f, 4.f})));
  }
}

TEST_F(ShortConvTest, PiecesAreTheWhole) {
  for (const auto& c : short_conv_cases()) {
    const auto in = short_conv_inputs(c, at::kFloat);
    const auto whole = short_conv(in);
    std::vector<at::Tensor> y;
    auto state = in.initial_state;
    for (int64_t begin = 0; begin < c.tokens;) {
      const int64_t length = std::min(c.tokens - begin, 1 + at::randint(0, 9, {1}).item<int64_t>());
      auto part = in;
      part.x = in.x.narrow(1, begin, length), part.initial_state = state;
      if (in.starts.defined()) part.starts = in.starts.narrow(1, begin, length);
      const auto out = short_conv(part);
      y.push_back(out.y), state = out.state, begin += length;
    }
    if (y.empty()) continue;
    expect_close(at::cat(y, 1), whole.y, 1e-6, c.name + " y");
    EXPECT_TRUE(at::equal(state, whole.state)) << c.name;
  }
}

TEST_F(ShortConvTest, PackedIsSeparate) {
  for (const int64_t width : {2, 4, 7}) {
    const ShortConvCase c{
        .name = "", .tokens = 79, .channels = 20, .width = width, .silu = true, .state = true};
    auto in = short_conv_inputs(c, at::kFloat);
    in.starts = at::zeros({1, 79}, at::kBool);
    std::vector<at::Tensor> y;
    at::Tensor state;
    int64_t begin = 0;
    for (const int64_t length : {3, 1, 61, 1, 10, 3}) {
      auto document = in;
      document.x = in.x.narrow(1, begin, length), document.starts = document.initial_state = at::Tensor();
      const auto out = short_conv(document);
      y.push_back(out.y), state = out.state;
      in.starts.select(1, begin).fill_(true);
      begin += length;
    }
    expect_close(short_conv(in).y, at::cat(y, 1), 1e-6, "y");
    EXPECT_TRUE(at::equal(short_conv(in).state, state));
  }
}

TEST_F(ShortConvTest, LaterTokensDoNotChangeEarlierOutputs) {
  for (const auto& c : short_conv_cases()) {
    if (c.tokens < 30) continue;
    const auto in = short_conv_inputs(c, at::kFloat);
    auto changed = in;
    changed.x = in.x.clone();
    changed.x.narrow(1, 20, c.tokens - 20).add_(1);
    const auto a = short_conv(in).y, b = short_conv(changed).y;
    EXPECT_TRUE(at::equal(a.narrow(1, 0, 20), b.narrow(1, 0, 20))) << c.name;
    EXPECT_FALSE(at::equal(a.select(1, 20), b.select(1, 20))) << c.name;
  }
}

// Rows of a wider tensor are read in place, and only wanted gradients appear.
TEST_F(ShortConvTest, StridedInputAndPartOfTheGradients) {
  const auto in = short_conv_inputs(short_conv_cases().front(), at::kFloat);
  auto strided = in, plain = in;
  strided.x = at::cat({in.x, in.x}, 2).narrow(2, 3, 40);
  plain.x = strided.x.contiguous();
  for (auto* x : {&strided, &plain}) x->bias = in.bias.clone().set_requires_grad(true);
  const auto a = short_conv(strided).y, b = short_conv(plain).y;
  EXPECT_TRUE(at::equal(a, b));
  a.sum().backward(), b.sum().backward();
  EXPECT_TRUE(at::equal(strided.bias.grad(), plain.bias.grad()));
  EXPECT_FALSE(strided.weight.grad().defined());
}

// Large sums saturate the gate; nothing overflows on the way.
TEST_F(ShortConvTest, SiluOfLargeValues) {
  ShortConv in;
  in.x = at::tensor({-1e30f, -200.f, 0.f, 200.f, 1e30f}).view({1, 5, 1}).set_requires_grad(true);
  in.weight = at::tensor({0.f, 1.f}).view({1, 2});
  in.silu = true;
  const auto y = short_conv(in).y.flatten();
  EXPECT_TRUE(at::allclose(y, at::tensor({0.f, 0.f, 0.f, 200.f, 1e30f}), 1e-6, 1e-3));
  y.sum().backward();
  EXPECT_TRUE(at::allclose(in.x.grad().flatten(), at::tensor({0.f, 0.f, 0.5f, 1.f, 1.f}), 1e-6, 1e-6));
}

TEST_F(ShortConvTest, Errors) {
  const auto good =
      short_conv_inputs({.name = "", .batch = 2, .tokens = 4, .channels = 3, .width = 4}, at::kFloat);
  const auto message = [](const ShortConv& in) -> std::string {
    try {
      short_conv(in);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  };
  auto in = good;
  in.weight = at::zeros({5, 4});
  EXPECT_EQ(message(in), "short_conv: weight is [5, 4], expected [3, -1]");
  in = good, in.weight = at::zeros({3, 17});
  EXPECT_EQ(message(in), "short_conv: weight is [3, 17]: width 17, expected 2 to 16");
  in = good, in.initial_state = at::zeros({2, 4, 3});
  EXPECT_EQ(message(in), "short_conv: initial_state is [2, 4, 3], expected [2, 3, 3]");
  in = good, in.starts = at::zeros({2, 4});
  EXPECT_EQ(message(in), "short_conv: starts has type Float, expected Bool");
  in = good, in.x = at::zeros({4, 3});
  EXPECT_EQ(message(in), "short_conv: x is [4, 3], expected [batch, tokens, channels]");
}

TEST_F(ShortConvTest, StepErrors) {
  const auto good =
      short_conv_inputs({.name = "", .batch = 2, .channels = 3, .width = 4, .state = true}, at::kFloat);
  const auto message = [](const ShortConv& in) -> std::string {
    try {
      short_conv_step(in);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  };
  auto in = good;
  in.x = at::zeros({2, 2, 3});
  EXPECT_EQ(message(in), "short_conv_step: x is [2, 2, 3], expected one token");
  in = good, in.initial_state = at::Tensor();
  EXPECT_EQ(message(in), "short_conv_step: initial_state is missing, expected contiguous Float");
  in = good, in.initial_state = good.initial_state.to(at::kHalf);
  EXPECT_EQ(message(in), "short_conv_step: initial_state is [2, 3, 3] Half, expected contiguous Float");
  in = good, in.starts = at::ones({2, 1}, at::kBool);
  EXPECT_EQ(message(in), "short_conv_step: starts is given; clear the state instead");
}

TEST_F(ShortConvTest, IsATorchOperator) {
  EXPECT_TRUE(c10::Dispatcher::singleton().findSchema({"weft::short_conv_step", ""}).has_value());
  EXPECT_TRUE(c10::Dispatcher::singleton().findSchema({"weft::short_conv", ""}).has_value());
}

// Gradients of the reference against central differences along random directions.
TEST_F(ShortConvTest, ReferenceGradients) {
  const ShortConvCase c{.name = "",
                        .batch = 2,
                        .tokens = 7,
                        .channels = 3,
                        .width = 4,
                        .bias = true,
                        .silu = true,
                        .state = true};
  auto in = short_conv_inputs(c, at::kDouble);
  in.starts = at::zeros({2, 7}, at::kBool);
  in.starts.select(1, 2).fill_(true);
  const auto loss = [](const ShortConv& x) {
    const auto out = reference::short_conv(x);
    return out.y.sin().sum() + (out.state * out.state).sum();
  };
  const auto x = leaves(in, at::kDouble);
  loss(x).backward();
  for (const auto& [name, member] : differentiable()) {
    const auto direction = at::randn_like(in.*member);
    auto up = in, down = in;
    const double step = 1e-6;
    up.*member = in.*member + step * direction, down.*member = in.*member - step * direction;
    const double numeric = (loss(up) - loss(down)).item<double>() / (2 * step);
    const double found = ((x.*member).grad() * direction).sum().item<double>();
    EXPECT_NEAR(found, numeric, 1e-6 * std::max(1.0, std::abs(numeric))) << "gradient of " << name;
  }
}

}  // namespace
}  // namespace weft::ops
