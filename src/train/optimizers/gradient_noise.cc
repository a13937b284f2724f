#include "train/optimizers/gradient_noise.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "base/philox.h"
#include "ops/parallel.h"

namespace weft {

void GradientNoiseOptions::fields(Fields& f) {
  f("eta", eta, "variance of the noise at the first step; the paper takes 0.01, 0.3 or 1; 0: none",
    at_least(0));
  f("gamma", gamma, "the variance falls as (1 + t)^-gamma", at_least(0));
  f("start_step", start_step, "first update with noise; t counts from it", at_least(0));
  f("stop_step", stop_step, "first update without noise again; 0: never", at_least(0));
  f("seed", seed, "of the noise", at_least(0));
}

double GradientNoiseOptions::deviation(int64_t step) const {
  if (step < start_step || (stop_step > 0 && step >= stop_step)) return 0;
  return std::sqrt(eta) * std::pow(1.0 + static_cast<double>(step - start_step), -gamma / 2);
}

void add_gradient_noise(const std::vector<NamedParameter>& parameters, const GradientNoiseOptions& options,
                        int64_t step) {
  const double deviation = options.deviation(step);
  if (deviation == 0) return;
  const at::NoGradGuard no_grad;
  for (const auto& [name, parameter] : parameters) {
    auto& gradient = parameter->value.mutable_grad();
    if (!gradient.defined()) continue;
    const uint64_t key = stream_key(static_cast<uint64_t>(options.seed), name);
    const auto noise = at::empty(gradient.sizes(), at::kFloat);
    float* const out = noise.mutable_data_ptr<float>();
    parallel_for(noise.numel(), 4096, [&](int64_t begin, int64_t end) {
      normal_numbers(key, static_cast<uint64_t>(step), begin, end - begin, out + begin);
    });
    gradient.add_(noise.to(gradient.options()), deviation);
  }
}

NoisyOptimizer::NoisyOptimizer(std::unique_ptr<Optimizer> inner, const GradientNoiseOptions& options,
                               std::vector<NamedParameter> parameters)
    : inner_(std::move(inner)),
      options_(options),
      parameters_(std::move(parameters)),
      steps_(at::zeros({}, at::kLong)) {}

void NoisyOptimizer::step(double factor) {
  add_gradient_noise(parameters_, options_, steps_.item<int64_t>());
  steps_ += 1;
  inner_->step(factor);
}

NamedTensors NoisyOptimizer::state() const {
  auto tensors = inner_->state();
  tensors.emplace_back("gradient_noise.step", steps_);
  return tensors;
}

}  // namespace weft
