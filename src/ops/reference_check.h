// For tests: an op under every kernel of this machine, on a GPU too where there is one, against its fp64 reference, values and gradients.
#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/autograd.h>

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "ops/kernel_choice.h"
#include "ops/test_scopes.h"

namespace weft {

using TensorList = std::vector<at::Tensor>;
using TensorFunction = std::function<TensorList(const TensorList&)>;  // from float inputs to float outputs

// max|a - e| / max|e| over the finite entries of e; infinite if the others differ or a NaN stands anywhere in
// `actual`.
inline double relative_error(const at::Tensor& actual, const at::Tensor& expected) {
  const auto a = actual.detach().to(at::kCPU, at::kDouble).reshape({-1}),
             e = expected.detach().to(at::kCPU, at::kDouble).reshape({-1});
  constexpr double kInfinite = std::numeric_limits<double>::infinity();
  if (a.numel() != e.numel()) return kInfinite;
  if (a.numel() == 0) return 0;
  const auto finite = at::isfinite(e);
  if (a.isnan().any().item<bool>() || !at::equal(a.masked_select(~finite), e.masked_select(~finite)))
    return kInfinite;
  const auto difference = at::where(finite, a - e, 0.0).abs().max().item<double>();
  const auto scale = at::where(finite, e, 0.0).abs().max().item<double>();
  return difference == 0 ? 0 : difference / std::max(scale, 1e-30);
}

// Outputs of fn, then the gradients of sum(output * upstream) for every input; undefined gradients become
// zeros. The upstream values are random but the same for every call with outputs of these shapes.
inline TensorList outputs_and_gradients(const TensorFunction& fn, const TensorList& inputs) {
  TensorList leaves, result, roots, upstreams;
  for (const auto& x : inputs) leaves.push_back(x.detach().clone().requires_grad_());
  auto generator = at::make_generator<at::CPUGeneratorImpl>(7);
  for (const auto& out : fn(leaves)) {
    result.push_back(out.detach());
    if (!out.requires_grad()) continue;
    const auto up = at::randn(out.sizes(), generator, at::TensorOptions().dtype(at::kDouble));
    roots.push_back(out);
    upstreams.push_back(up.to(out.options()));
  }
  const auto gradients = torch::autograd::grad(roots, leaves, upstreams, std::nullopt, false, true);
  for (size_t i = 0; i < leaves.size(); ++i)
    result.push_back(gradients[i].defined() ? gradients[i] : at::zeros_like(leaves[i]));
  return result;
}

// Compares fn for `inputs` (fp64) cast to `type` under every kernel of runnable_kernels() with fn in fp64; `bound` is
// relative to the largest entry of each output and gradient. Tensors that fn captures must follow its inputs' device.
inline void expect_matches_reference(const TensorFunction& fn, const TensorList& inputs, at::ScalarType type,
                                     double bound) {
  TensorList narrow, wide;
  for (const auto& x : inputs) {
    narrow.push_back(x.to(type));
    wide.push_back(narrow.back().to(at::kDouble));
  }
  const auto expected = outputs_and_gradients(fn, wide);
  for (const Kernel kernel : runnable_kernels()) {
    const ForceKernel force(kernel);
    const PoisonedMemory poisoned;
    TensorList there;
    for (const auto& x : narrow) there.push_back(x.to(device_of(kernel)));
    const auto actual = outputs_and_gradients(fn, there);
    ASSERT_EQ(actual.size(), expected.size());
    const size_t outputs = actual.size() - inputs.size();
    for (size_t i = 0; i < actual.size(); ++i)
      EXPECT_LE(relative_error(actual[i], expected[i]), bound)
          << kernel_name(kernel) << ", " << c10::toString(type) << ", "
          << (i < outputs ? "output " : "gradient of input ") << (i < outputs ? i : i - outputs);
  }
}

// Outputs and gradients must be the same bits for 1, 2 and 3 threads.
inline void expect_same_for_threads(const TensorFunction& fn, const TensorList& inputs) {
  const auto with_threads = [&](int count) {
    const Threads limit(count);
    return outputs_and_gradients(fn, inputs);
  };
  const auto expected = with_threads(1);
  for (const int threads : {2, 3}) {
    const auto actual = with_threads(threads);
    for (size_t i = 0; i < actual.size(); ++i)
      EXPECT_TRUE(at::equal(actual[i], expected[i])) << threads << " threads, result " << i;
  }
}

// The gradients that autograd finds for fn (fp64) against central differences along random directions.
inline void expect_finite_differences(const TensorFunction& fn, const TensorList& inputs) {
  constexpr double kStep = 1e-5;
  auto generator = at::make_generator<at::CPUGeneratorImpl>(11);
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const auto value = [&](const TensorList& at_inputs) {
    auto same = at::make_generator<at::CPUGeneratorImpl>(7);  // the upstream values of outputs_and_gradients
    double sum = 0;
    for (const auto& out : fn(at_inputs))
      sum += (out * at::randn(out.sizes(), same, options)).sum().item<double>();
    return sum;
  };
  const auto all = outputs_and_gradients(fn, inputs);
  const TensorList gradients(all.end() - static_cast<std::ptrdiff_t>(inputs.size()), all.end());
  for (size_t i = 0; i < inputs.size(); ++i)
    for (int trial = 0; trial < 3; ++trial) {
      const auto direction = at::randn(inputs[i].sizes(), generator, options);
      TensorList up = inputs, down = inputs;
      up[i] = inputs[i] + kStep * direction;
      down[i] = inputs[i] - kStep * direction;
      const double slope = (value(up) - value(down)) / (2 * kStep);
      const double expected = (gradients[i] * direction).sum().item<double>();
      EXPECT_NEAR(slope, expected, 1e-6 * std::max(1.0, std::abs(expected))) << "input " << i;
    }
}

// The text of the error that `call` throws; empty if it throws none.
inline std::string error_text(const std::function<void()>& call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

// Seeded normal numbers in fp64.
inline at::Tensor normal(at::IntArrayRef shape, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(shape, generator, at::TensorOptions().dtype(at::kDouble));
}

}  // namespace weft
