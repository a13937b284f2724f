// Adam with decoupled weight decay. Kingma and Ba 2014, arXiv:1412.6980; Loshchilov and Hutter 2017,
// arXiv:1711.05101.
//   m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
//   w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
#pragma once

#include <map>
#include <utility>

#include "train/optimizers/optimizer.h"

namespace weft {

class AdamW final : public Optimizer {
 public:
  struct Options {
    double lr = 1e-3;
    double beta1 = 0.9, beta2 = 0.95;
    double eps = 1e-8;
    double weight_decay = 0.1;  // of parameters whose rules allow it; vectors never decay
    void fields(Fields& f);
  };
  AdamW(const Options& options, std::vector<NamedParameter> parameters);

  void step(double factor) override;
  NamedTensors state() const override;  // adamw.step, adamw.m.NAME, adamw.v.NAME
  double learning_rate() const override { return options_.lr; }

 private:
  struct Slot {
    NamedParameter parameter;
    at::Tensor m, v;  // like the parameter
  };
  Options options_;
  at::Tensor steps_;                                               // [] fp32 on the CPU
  std::map<std::pair<double, double>, std::vector<Slot>> groups_;  // by lr_scale and weight decay
};

}  // namespace weft
