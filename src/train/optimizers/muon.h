// Muon: momentum whose direction is made orthogonal. Jordan et al. 2024, "Muon: An optimizer for hidden
// layers in neural networks", kellerjordan.github.io/posts/muon.
//   m = mu m + g;  u = g + mu m (Nesterov);  w = w (1 - lr decay) - lr sqrt(max(1, rows / columns))
//   orthogonalize(u)
// It is for matrices of hidden projections (Role::matrix with two dimensions); all other parameters go to
// AdamW.
#pragma once

#include "train/optimizers/adamw.h"

namespace weft {

// A matrix [M, N] with the singular vectors of `x` and singular values near 1: `steps` Newton-Schulz
// iterations with the quintic a s + b s^3 + c s^5, whose coefficients trade exactness for speed. Singular
// values of x that are above about 1e-2 of its Frobenius norm end up in [0.68, 1.203] after five steps, the
// quintic's extremes;
// smaller ones may be less. Leading dimensions of `x` are a batch. Computes in fp32 on the CPU and in bf16
// elsewhere; returns fp32.
at::Tensor orthogonalize(const at::Tensor& x, int64_t steps = 5);

class Muon final : public Optimizer {
 public:
  struct Options {
    double lr = 0.02;
    double momentum = 0.95;
    bool nesterov = true;
    int64_t iterations = 5;      // of Newton-Schulz
    double weight_decay = 0.01;  // of the matrices
    Node adamw;                  // options of AdamW for the other parameters
    void fields(Fields& f);
  };
  Muon(const Options& options, std::vector<NamedParameter> parameters);

  void step(double factor) override;
  NamedTensors state() const override;  // muon.m.NAME and those of AdamW
  double learning_rate() const override { return options_.lr; }

 private:
  struct Slot {
    NamedParameter parameter;
    at::Tensor m;  // like the parameter
  };
  // Adds the gradient to m and writes the direction of the step to `out` [M, N].
  void write_direction(Slot& slot, const at::Tensor& out) const;
  Options options_;
  std::vector<std::vector<Slot>> shapes_;  // parameters of equal shape, which are orthogonalised together
  std::unique_ptr<AdamW> rest_;
};

}  // namespace weft
