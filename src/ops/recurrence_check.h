// Comparisons that the tests of the recurrent op families (scan, rnn) share. Only for tests.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "ops/gradient_check.h"
#include "ops/kernel_choice.h"
#include "ops/test_scopes.h"

namespace weft {

inline at::Generator seeded(uint64_t seed) { return at::detail::createCPUGenerator(seed); }

// One thread, for speed on a busy machine, and memory from at::empty filled with NaN, so that outputs not
// written show.
class RecurrenceTest : public testing::Test {
  PoisonedMemory poisoned_;
  Threads one_thread_{1};
};

inline at::Tensor wide(const at::Tensor& x) {
  if (!x.defined()) return x;
  if (!x.is_floating_point() && !x.is_complex()) return x.to(at::kCPU);
  return x.detach().to(at::kCPU, x.is_complex() ? at::kComplexDouble : at::kDouble);
}

// Equal values in memory that begins one element behind where vectors may be loaded.
inline at::Tensor misaligned(const at::Tensor& x) {
  if (!x.defined() || x.numel() == 0) return x;
  const auto flat = x.reshape({-1});
  return at::cat({flat.slice(0, 0, 1), flat}).slice(0, 1).view(x.sizes());
}
inline std::vector<at::Tensor> misaligned(std::vector<at::Tensor> tensors) {
  for (auto& x : tensors) x = misaligned(x);
  return tensors;
}

// max |found - expected| <= bound max |expected|; NaN fails.
inline void expect_close(const std::string& what, const at::Tensor& found, const at::Tensor& expected,
                         double bound) {
  ASSERT_TRUE(found.defined() && expected.defined()) << what << " is undefined";
  ASSERT_EQ(found.sizes(), expected.sizes()) << what;
  if (expected.numel() == 0) return;
  const double scale = wide(expected).abs().max().item<double>();
  const double error = (wide(found) - wide(expected)).abs().max().item<double>();
  EXPECT_TRUE(error <= bound * scale)
      << fmt::format("{}: error {:.3g} where the largest value is {:.3g}, relative {:.3g} > {:.3g}", what,
                     error, scale, error / scale, bound);
}

struct Evaluation {
  std::vector<at::Tensor> outputs, gradients;  // gradients: one for each input, undefined for those without
};

// Outputs of `fn`, and gradients of its differentiable inputs for upstream gradients drawn from `seed`.
inline Evaluation evaluate(const TensorFunction& fn, const std::vector<at::Tensor>& inputs,
                           uint64_t seed = 11) {
  std::vector<at::Tensor> leaves;
  for (const auto& x : inputs)
    leaves.push_back(x.defined() && (x.is_floating_point() || x.is_complex())
                         ? x.detach().clone().requires_grad_(true)
                         : x);
  Evaluation result{fn(leaves), {}};
  auto generator = seeded(seed);
  at::Tensor loss = at::zeros({}, at::TensorOptions(at::kDouble));
  for (const auto& y : result.outputs) {
    const auto flat = y.is_complex() ? at::view_as_real(y) : y;
    const auto upstream = at::randn(flat.sizes(), generator, at::TensorOptions(at::kFloat)).to(at::kBFloat16);
    // bf16: equal in every type
    loss = loss + (flat.to(at::kCPU, at::kDouble) * upstream.to(at::kDouble)).sum();
  }
  if (loss.requires_grad()) loss.backward();  // it does not when no output depends on an input
  for (const auto& x : leaves)
    result.gradients.push_back(x.defined() && x.requires_grad()
                                   ? (x.grad().defined() ? x.grad() : at::zeros_like(x))
                                   : at::Tensor());
  return result;
}

inline void expect_evaluation(const std::string& what, const Evaluation& found, const Evaluation& expected,
                              double bound) {
  for (size_t i = 0; i < expected.outputs.size(); ++i)
    expect_close(fmt::format("{}: output {}", what, i), found.outputs[i], expected.outputs[i], bound);
  for (size_t i = 0; i < expected.gradients.size(); ++i)
    if (expected.gradients[i].defined())
      expect_close(fmt::format("{}: gradient of input {}", what, i), found.gradients[i],
                   expected.gradients[i], bound);
}

// Outputs and gradients of `reference` on the values of `inputs` in fp64.
inline Evaluation evaluate_wide(const TensorFunction& reference, const std::vector<at::Tensor>& inputs) {
  const Threads one(1);  // many small operators
  std::vector<at::Tensor> wide_inputs;
  for (const auto& x : inputs) wide_inputs.push_back(wide(x));
  return evaluate(reference, wide_inputs);
}

// Outputs and gradients of `fn` on `inputs` against those of `reference` in fp64.
inline void expect_matches(const std::string& what, const TensorFunction& fn, const TensorFunction& reference,
                           const std::vector<at::Tensor>& inputs, double bound) {
  const auto expected = evaluate_wide(reference, inputs);
  const PoisonedMemory poisoned;
  expect_evaluation(what, evaluate(fn, inputs), expected, bound);
}

inline std::vector<at::Tensor> on_device(const std::vector<at::Tensor>& inputs, c10::DeviceType device) {
  std::vector<at::Tensor> moved;
  for (const auto& x : inputs) moved.push_back(x.defined() ? x.to(device) : x);
  return moved;
}

// As expect_matches, with each kernel of runnable_kernels(), inputs on its device.
inline void expect_kernels_match(const std::string& what, const TensorFunction& fn,
                                 const TensorFunction& reference, const std::vector<at::Tensor>& inputs,
                                 double bound) {
  const auto expected = evaluate_wide(reference, inputs);
  const PoisonedMemory poisoned;
  for (const Kernel kernel : runnable_kernels()) {
    const ForceKernel force(kernel);
    expect_evaluation(fmt::format("{} {}", what, kernel_name(kernel)),
                      evaluate(fn, on_device(inputs, device_of(kernel))), expected, bound);
  }
}

inline void expect_equal(const std::string& what, const std::vector<at::Tensor>& found,
                         const std::vector<at::Tensor>& expected) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_EQ(found[i].defined(), expected[i].defined()) << what << " " << i;
    if (!found[i].defined()) continue;
    EXPECT_TRUE(at::equal(found[i], expected[i])) << what << " " << i << " differs";
  }
}

// One thread and two give the same bits.
inline void expect_thread_independent(const TensorFunction& fn, const std::vector<at::Tensor>& inputs) {
  const auto with_threads = [&](int count) {
    const Threads limit(count);
    return evaluate(fn, inputs);
  };
  const auto one = with_threads(1), two = with_threads(2);
  expect_equal("outputs", two.outputs, one.outputs);
  expect_equal("gradients", two.gradients, one.gradients);
}

// The message of the Error that `call` throws; empty when it throws none.
template <class E, class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const E& error) {
    return error.what();
  }
  return "";
}

}  // namespace weft
