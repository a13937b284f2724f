// Stochastic gradient descent. Robbins and Monro 1951; momentum of Polyak 1964, Nesterov 1983.
//   m = mu m + g;  u = m, or g + mu m with nesterov, or g without momentum
//   w = w (1 - lr decay) - lr u
#pragma once

#include "train/optimizers/optimizer.h"

namespace weft {

class Sgd final : public Optimizer {
 public:
  struct Options {
    double lr = 0.1;
    double momentum = 0;
    bool nesterov = false;
    double weight_decay = 0;  // of parameters whose rules allow it; vectors never decay
    void fields(Fields& f);
  };
  Sgd(const Options& options, std::vector<NamedParameter> parameters);

  void step(double factor) override;
  NamedTensors state() const override;  // sgd.m.NAME; nothing without momentum
  double learning_rate() const override { return options_.lr; }

 private:
  struct Slot {
    NamedParameter parameter;
    at::Tensor m;  // like the parameter; undefined without momentum
  };
  Options options_;
  std::vector<Slot> slots_;
};

}  // namespace weft
