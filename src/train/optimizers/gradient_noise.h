// Annealed gradient noise: before every update of any optimizer each gradient gets normal noise whose variance
// falls with the steps. Neelakantan et al. 2015, arXiv:1511.06807.
//   g = g + N(0, eta / (1 + t)^gamma)        eta is a variance, not a deviation; t counts from start_step
// It comes behind clipping, so it is not clipped. Adam divides by the size of what it gets: with gradients near zero
// its updates are lr large whatever eta is. Numbers are a function of seed, step, the parameter's name and the
// element's place, so that neither threads nor a resumed run change them.
#pragma once

#include <memory>

#include "train/optimizers/optimizer.h"

namespace weft {

struct GradientNoiseOptions {
  double eta = 0;
  double gamma = 0.55;
  int64_t start_step = 0, stop_step = 0;
  int64_t seed = 1;
  void fields(Fields& f);
  double deviation(int64_t step) const;  // 0 outside of [start_step, stop_step)
};

// Adds the noise of update number `step` (from 0) to all gradients.
void add_gradient_noise(const std::vector<NamedParameter>& parameters, const GradientNoiseOptions& options,
                        int64_t step);

class NoisyOptimizer final : public Optimizer {
 public:
  NoisyOptimizer(std::unique_ptr<Optimizer> inner, const GradientNoiseOptions& options,
                 std::vector<NamedParameter> parameters);

  void step(double factor) override;
  NamedTensors state() const override;  // gradient_noise.step and those of the inner optimizer
  double learning_rate() const override { return inner_->learning_rate(); }

 private:
  std::unique_ptr<Optimizer> inner_;
  GradientNoiseOptions options_;
  std::vector<NamedParameter> parameters_;
  at::Tensor steps_;  // [] int64, updates done
};

}  // namespace weft
