// Gradients of a function of several tensors, checked element by element against central finite differences
// in fp64. Only for tests.
//
//   expect_gradients([&](const std::vector<at::Tensor>& x) { return std::vector{x[0] * x[1]}; }, {a, b});
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

namespace weft {

using TensorFunction = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

struct GradientCheck {
  double step = 1e-5;       // of the differences; inputs should be of order one
  double tolerance = 1e-6;  // allowed difference, relative to max(1, the largest gradient of that input)
  uint64_t seed = 7;        // of the upstream gradients
  int64_t reports = 3;      // failures shown for each input
};

// `fn` maps fp64 or complex128 tensors to outputs of those types. Inputs of other types and undefined ones
// are passed on as they are and not differentiated. Every output gets a random upstream gradient; undefined
// outputs are ignored. A failure names the input, the flat element (of a complex input: real and imaginary
// parts alternate), and both values.
inline void expect_gradients(const TensorFunction& fn, const std::vector<at::Tensor>& inputs,
                             const GradientCheck& check = {}) {
  const auto differentiated = [](const at::Tensor& x) {
    return x.defined() && (x.scalar_type() == at::kDouble || x.scalar_type() == at::kComplexDouble);
  };
  const auto flat = [](const at::Tensor& x) { return x.is_complex() ? at::view_as_real(x) : x; };

  std::vector<at::Tensor> leaves = inputs;
  for (size_t i = 0; i < inputs.size(); ++i)
    if (differentiated(inputs[i]))
      leaves[i] = inputs[i].detach().clone(at::MemoryFormat::Contiguous).requires_grad_(true);

  std::vector<at::Tensor> weights;
  const auto loss = [&](const std::vector<at::Tensor>& x) {
    const auto outputs = fn(x);
    if (weights.empty()) {
      auto generator = at::detail::createCPUGenerator(check.seed);
      for (const auto& y : outputs)
        weights.push_back(y.defined() ? at::randn(flat(y).sizes(), generator, at::TensorOptions(at::kDouble))
                                      : y);
    }
    auto sum = at::zeros({}, at::TensorOptions(at::kDouble));
    for (size_t i = 0; i < outputs.size(); ++i)
      if (outputs[i].defined()) sum = sum + (flat(outputs[i]) * weights[i]).sum();
    return sum;
  };
  loss(leaves).backward();

  for (size_t i = 0; i < leaves.size(); ++i) {
    if (!differentiated(inputs[i])) continue;
    const at::Tensor gradient = leaves[i].grad();
    const auto analytic = gradient.defined() ? flat(gradient).contiguous() : at::zeros_like(flat(inputs[i]));
    const auto probe_values = flat(inputs[i]).detach().clone(at::MemoryFormat::Contiguous);
    auto probe = inputs;
    for (auto& x : probe)
      if (x.defined()) x = x.detach();
    probe[i] = inputs[i].is_complex() ? at::view_as_complex(probe_values) : probe_values;
    const double scale = analytic.numel() ? std::max(1.0, analytic.abs().max().item<double>()) : 1.0;
    double* const values = probe_values.data_ptr<double>();
    int64_t failures = 0;
    for (int64_t k = 0; k < probe_values.numel(); ++k) {
      const double value = values[k];
      values[k] = value + check.step;
      const double above = loss(probe).item<double>();
      values[k] = value - check.step;
      const double below = loss(probe).item<double>();
      values[k] = value;
      const double numeric = (above - below) / (2 * check.step);
      const double found = analytic.data_ptr<double>()[k];
      const bool close = std::abs(found - numeric) <= check.tolerance * scale;  // false for NaN
      if (!close && failures++ < check.reports)
        ADD_FAILURE() << fmt::format("input {}, element {}: autograd gives {:.9g}, finite differences {:.9g}",
                                     i, k, found, numeric);
    }
    EXPECT_EQ(failures, 0) << fmt::format("input {}: {} of {} gradients are wrong", i, failures,
                                          probe_values.numel());
  }
}

}  // namespace weft
