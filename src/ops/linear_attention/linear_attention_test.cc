// Kernels against the fp64 reference, forward and every gradient.
#include "ops/linear_attention/linear_attention_test.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include "base/error.h"

namespace weft::ops {
namespace {

TEST_F(LinearAttentionTest, KernelsEqualReference) {
  for (const auto& c : linear_attention_cases()) {
    const auto in = linear_attention_inputs(c, at::kFloat);
    const auto expected = run(in, at::kDouble, reference::linear_attention);
    for (const Kernel kernel : runnable_kernels()) {
      const ForceKernel force(kernel);
      const auto found = run(on_device(in, device_of(kernel)), at::kFloat, linear_attention);
      expect_same(found, expected, linear_attention_bounds(at::kFloat),
                  c.name + " " + std::string(kernel_name(kernel)));
    }
  }
}

TEST_F(LinearAttentionTest, LowPrecision) {
  for (const auto& c : linear_attention_cases()) {
    if (c.name != "gdn" && c.name != "rwkv6" && c.name != "mamba2" && c.name != "kda_1" && c.name != "rwkv7")
      continue;
    for (const auto type : {at::kBFloat16, at::kHalf}) {
      const auto in = linear_attention_inputs(c, type);
      const auto expected = run(in, at::kDouble, reference::linear_attention);
      for (const Kernel kernel : first_choices()) {
        const ForceKernel force(kernel);
        const auto found = run(on_device(in, device_of(kernel)), type, linear_attention);
        EXPECT_EQ(found.out.y.scalar_type(), type);
        EXPECT_EQ(found.out.state.scalar_type(), at::kFloat);
        EXPECT_EQ(found.in.q.grad().scalar_type(), type);
        expect_same(found, expected, linear_attention_bounds(type),
                    c.name + " " + c10::toString(type) + " " + std::string(kernel_name(kernel)));
      }
    }
  }
}

TEST_F(LinearAttentionTest, StridedInputsAndPartOfTheGradients) {
  LinearAttentionCase c{.name = "",
                        .batch = 2,
                        .tokens = 37,
                        .heads = 2,
                        .key_heads = 2,
                        .key_width = 8,
                        .value_width = 8,
                        .decay = LinearAttentionCase::Decay::scalar,
                        .erase = true};
  for (const Kernel kernel : first_choices()) {
    const ForceKernel force(kernel);
    auto in = on_device(linear_attention_inputs(c, at::kFloat), device_of(kernel));
    const auto fused = at::cat({in.q, in.k, in.v}, 2);  // one projection for all three, [B, T, 3 H, K]
    auto strided = in;
    strided.q = fused.narrow(2, 0, 2), strided.k = fused.narrow(2, 2, 2), strided.v = fused.narrow(2, 4, 2);
    strided.beta = in.beta.transpose(1, 2).contiguous().transpose(1, 2);
    strided.k.set_requires_grad(true), in.k.set_requires_grad(true);
    const auto a = linear_attention(in), b = linear_attention(strided);
    EXPECT_TRUE(at::equal(a.y, b.y));
    a.y.sum().backward(), b.y.sum().backward();  // state is not used, only k wants a gradient
    EXPECT_TRUE(at::equal(in.k.grad(), strided.k.grad()));
    EXPECT_FALSE(in.q.grad().defined());
  }
}

TEST_F(LinearAttentionTest, ThreadsDoNotChangeResults) {
  for (const auto& c : linear_attention_cases()) {
    if (c.name != "gdn" && c.name != "rwkv6" && c.name != "mamba2" && c.name != "rwkv7_grouped") continue;
    const auto in = on_device(linear_attention_inputs(c, at::kFloat), device_of(runnable_kernels().front()));
    const auto with_threads = [&](int count) {
      const Threads limit(count);
      return run(in, at::kFloat, linear_attention);
    };
    const auto one = with_threads(1), two = with_threads(2);
    expect_same(two, one, {0, 0, 0}, c.name);
  }
}

TEST_F(LinearAttentionTest, NoGraphWithoutGradients) {
  for (const Kernel kernel : first_choices()) {
    const ForceKernel force(kernel);
    auto in =
        on_device(linear_attention_inputs(linear_attention_cases().front(), at::kFloat), device_of(kernel));
    EXPECT_EQ(linear_attention(in).y.grad_fn(), nullptr);
    in.q.set_requires_grad(true);
    EXPECT_NE(linear_attention(in).y.grad_fn(), nullptr);
    const at::NoGradGuard no_grad;
    EXPECT_EQ(linear_attention(in).y.grad_fn(), nullptr);
  }
}

// With many heads a step may be cut differently.
TEST_F(LinearAttentionTest, StepOfManyHeads) {
  const std::pair<int64_t, int64_t> widths[] = {{64, 64}, {40, 100}, {100, 48}, {128, 128}, {130, 70}};
  for (const auto& [key_width, value_width] : widths)
    for (const char* form : {"none", "delta", "low rank", "bonus"}) {
      const std::string name = form;
      const LinearAttentionCase c{.name = name,
                                  .batch = 150,
                                  .tokens = 1,
                                  .heads = 2,
                                  .key_width = key_width,
                                  .value_width = value_width,
                                  .decay = LinearAttentionCase::Decay::vector,
                                  .erase = name == "delta",
                                  .bonus = name == "bonus",
                                  .state = true,
                                  .erase_heads = name == "low rank" ? 1 : 0};
      const auto in = linear_attention_inputs(c, at::kFloat);
      const auto expected = reference::linear_attention(leaves(in, at::kDouble));
      for (const Kernel kernel : runnable_kernels()) {
        const ForceKernel force(kernel);
        auto token = on_device(in, device_of(kernel));
        token.initial_state = token.initial_state.clone();
        const auto found = linear_attention_step(token);
        const auto where = name + " " + std::string(kernel_name(kernel));
        expect_close(found.y, expected.y.detach(), 1e-5, where + " y");
        expect_close(found.state, expected.state.detach(), 1e-5, where + " state");
      }
    }
}

// A gate may be closed: log 0 is minus infinity, and nothing before it is left.
TEST_F(LinearAttentionTest, MinusInfinityForgets) {
  const LinearAttentionCase c{.name = "",
                              .tokens = 50,
                              .key_width = 8,
                              .value_width = 8,
                              .decay = LinearAttentionCase::Decay::vector};
  auto in = linear_attention_inputs(c, at::kFloat);
  in.log_decay.select(1, 20).fill_(-INFINITY);
  auto cut = in;
  cut.starts = at::zeros({1, 50}, at::kBool);
  cut.starts.select(1, 20).fill_(true);
  for (const Kernel kernel : first_choices()) {
    const ForceKernel force(kernel);
    const auto a = run(on_device(in, device_of(kernel)), at::kFloat, linear_attention),
               b = run(on_device(cut, device_of(kernel)), at::kFloat, linear_attention);
    expect_close(a.out.y, b.out.y, 1e-6, "y");
    expect_close(a.in.k.grad(), b.in.k.grad(), 1e-6, "gradient of k");
    EXPECT_TRUE(a.in.log_decay.grad().isfinite().all().item<bool>());
  }
}

TEST_F(LinearAttentionTest, Errors) {
  const LinearAttentionCase c{
      .name = "", .batch = 2, .tokens = 4, .heads = 4, .key_heads = 2, .key_width = 3, .value_width = 5};
  const auto good = linear_attention_inputs(c, at::kFloat);
  const auto message = [](const LinearAttention& in) -> std::string {
    try {
      linear_attention(in);
    } catch (const InputError& error) {
      return error.what();
    }
    return "no error";
  };
  auto in = good;
  in.q = at::zeros({2, 4, 2, 7});
  EXPECT_EQ(message(in), "linear_attention: q is [2, 4, 2, 7], expected [2, 4, 2, 3]");
  in = good, in.k = at::zeros({2, 4, 3, 3});
  EXPECT_EQ(message(in),
            "linear_attention: v has 4 heads and k has 3; the first must be a multiple of the second");
  in = good, in.log_decay = at::zeros({2, 4, 2});
  EXPECT_EQ(message(in),
            "linear_attention: log_decay is [2, 4, 2], expected [4] (constant), [2, 4, 4] (scalar) or [2, 4, "
            "4, 3] (vector)");
  in = good, in.beta = at::zeros({2, 4, 4}), in.bonus = at::zeros({4, 3});
  EXPECT_EQ(message(in), "linear_attention: bonus and beta are both given; there is no erase with a bonus");
  in = good, in.erase_read = at::zeros({2, 4, 2, 3});
  EXPECT_EQ(
      message(in),
      "linear_attention: erase_read is [2, 4, 2, 3] and erase_write is undefined; they are given together");
  in.erase_write = at::zeros({2, 4, 4, 3});
  EXPECT_EQ(message(in), "linear_attention: erase_write is [2, 4, 4, 3], expected [2, 4, 2, 3]");
  in.erase_write = in.erase_read, in.beta = at::zeros({2, 4, 4});
  EXPECT_EQ(message(in), "linear_attention: beta and erase_read are both given; there is one erase");
  in.beta = at::Tensor(), in.bonus = at::zeros({4, 3});
  EXPECT_EQ(message(in),
            "linear_attention: bonus and erase_read are both given; there is no erase with a bonus");
  in.bonus = at::Tensor(), in.erase_read = in.erase_write = at::zeros({2, 4, 3, 3});
  EXPECT_EQ(message(in), "linear_attention: erase_read has 3 heads, expected 2 as k or 4 as v");
  in = good, in.starts = at::zeros({2, 4});
  EXPECT_EQ(message(in), "linear_attention: starts has type Float, expected bool");
  in = good, in.initial_state = at::zeros({2, 4, 5, 3});
  EXPECT_EQ(message(in), "linear_attention: initial_state is [2, 4, 5, 3], expected [2, 4, 3, 5]");
  in = good, in.v = in.v.to(at::kHalf);
  EXPECT_EQ(message(in), "linear_attention: q or k has type Float but v has Half; they must agree");
  in = good, in.q = at::Tensor();
  EXPECT_EQ(message(in), "linear_attention: q is missing");
  EXPECT_THROW(linear_attention_step(good), InputError);  // four tokens
}

TEST_F(LinearAttentionTest, IsATorchOperator) {
  EXPECT_TRUE(c10::Dispatcher::singleton().findSchema({"weft::linear_attention", ""}).has_value());
}

// Gradients of the reference against central differences along random directions.
TEST_F(LinearAttentionTest, ReferenceGradients) {
  for (auto c : linear_attention_cases()) {
    if (c.name != "kda" && c.name != "rwkv6" && c.name != "mamba2" && c.name != "deltanet_constant" &&
        c.name != "rwkv7_grouped" && c.name != "dplr_scalar")
      continue;
    c.tokens = 7, c.key_width = 3, c.value_width = 2, c.batch = 2, c.starts = c.starts > 0 ? 0.2 : 0;
    const auto in = linear_attention_inputs(c, at::kDouble);
    const auto loss = [](const LinearAttention& x) {
      const auto out = reference::linear_attention(x);
      return (out.y.sin().sum() + (out.state * out.state).sum());
    };
    const auto x = leaves(in, at::kDouble);
    loss(x).backward();
    for (const auto& [name, member] : differentiable()) {
      if (!(in.*member).defined()) continue;
      const auto direction = at::randn_like(in.*member);
      auto up = in, down = in;
      const double step = 1e-6;
      up.*member = in.*member + step * direction, down.*member = in.*member - step * direction;
      const double numeric = (loss(up) - loss(down)).item<double>() / (2 * step);
      const double found = ((x.*member).grad() * direction).sum().item<double>();
      EXPECT_NEAR(found, numeric, 1e-6 * std::max(1.0, std::abs(numeric)))
          << c.name << " gradient of " << name;
    }
  }
}

}  // namespace
}  // namespace weft::ops
