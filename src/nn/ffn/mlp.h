// MLPs: y = c W_down f(W_up x), and gated (Shazeer 2020, "GLU Variants Improve Transformer", arXiv:2002.05202)
//   y = c W_down (f(s W_gate x) * W_up x)
// with an activation f of ops/activation/named.h and fixed factors s and c (muP multipliers, as of Falcon-H1); with
// `gain` the output has a learned factor too. Gate and up may have low-rank additions B A x with a common A.
#pragma once

#include "nn/channel.h"
#include "ops/activation/named.h"

namespace weft {

class Mlp : public ChannelMixer {
 public:
  struct Options {
    int64_t hidden = 0;
    std::string activation = "silu";
    bool gated = true, bias = false, gain = false;
    int64_t adapter_rank = 0;
    double gate_scale = 1.0, output_scale = 1.0;
    void fields(Fields& f);
  };
  Mlp(const Options& options, const Site& site);
  at::Tensor run(const at::Tensor& x, const Context& context) override;

 private:
  at::Tensor finish(const at::Tensor& hidden) const;  // from the hidden layer on

  Options o_;
  ops::Activation f_;
  Linear gate_, up_, down_, adapter_down_, gate_adapter_up_, up_adapter_up_;
  std::shared_ptr<Parameter> gain_;
};

// The hidden width where none is given: 8/3 of the width rounded up to 64, or 4 times it without a gate.
int64_t default_hidden(int64_t width, bool gated);

}  // namespace weft
