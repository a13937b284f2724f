#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "ops/lif/lif.h"
#include "ops/shape.h"

namespace weft::ops::reference {

LifResult lif(const Lif& in) {
  const auto wide = accumulate_type(in.x);
  const auto x = in.x.to(wide);
  auto v = in.initial_state.defined() ? in.initial_state.to(wide)
                                      : at::zeros({x.size(0), x.size(2)}, x.options());  // [B, E]
  std::vector<at::Tensor> spikes;
  for (int64_t t = 0; t < x.size(1); ++t) {
    if (in.starts.defined()) v = at::where(in.starts.select(1, t).unsqueeze(1), at::zeros_like(v), v);
    const auto charged = v + (x.select(1, t) - v) / in.tau;
    const auto fires = (charged.detach() >= in.threshold).to(wide);
    const auto soft = at::sigmoid(in.alpha * (charged - in.threshold));
    spikes.push_back(fires + (soft - soft.detach()));  // the value of one, the slope of the other
    v = charged * (1 - fires);
  }
  return {spikes.empty() ? at::zeros_like(in.x) : at::stack(spikes, 1).to(in.x.scalar_type()), v};
}

}  // namespace weft::ops::reference
