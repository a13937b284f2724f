#include "nn/mixers/conv_window.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>

namespace weft {

int64_t ConvWindow::past() const { return std::max<int64_t>(weight->value.size(1) - 1, 1); }

ops::ShortConvResult ConvWindow::run(const at::Tensor& x, const at::Tensor& past,
                                     const Context& context) const {
  const auto& taps = weight->value;
  const bool fused = activation == ops::Activation::silu;
  auto result = ops::short_conv({.x = x,
                                 .weight = taps.size(1) == 1 ? at::constant_pad_nd(taps, {1, 0}) : taps,
                                 .bias = bias ? bias->value : at::Tensor(),
                                 .silu = fused,
                                 .initial_state = past,
                                 .starts = context.starts});
  if (!fused) result.y = ops::activate(activation, result.y);
  return result;
}

Init conv_window_init(int64_t width) {
  const double bound = 1.0 / std::sqrt(static_cast<double>(width));
  return init::uniform(-bound, bound);
}

}  // namespace weft
