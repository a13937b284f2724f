#include "ops/loss/loss.h"
#include "ops/shape.h"

namespace weft::ops::reference {

at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                                double scale) {
  const auto type = accumulate_type(hidden);
  const auto logits = at::mm(hidden.to(type), weight.to(type).t()) * scale;  // [N, V]
  const auto counted = targets != kIgnoreTarget;
  const auto index = at::where(counted, targets, 0).unsqueeze(-1);
  const auto loss = -at::log_softmax(logits, -1).gather(-1, index).squeeze(-1);
  return at::where(counted, loss, at::zeros({}, loss.options()));
}

}  // namespace weft::ops::reference
