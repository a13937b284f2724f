#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "base/error.h"
#include "ops/attention/attention.h"
#include "ops/shape.h"

namespace weft::ops {

QuantizedRows quantize_rows(const at::Tensor& x, int64_t group) {
  require_like("quantize_rows", "x", x, x);
  require(x.dim() >= 1 && x.size(-1) >= 1, "quantize_rows: x is {}, expected at least one channel",
          shape_text(x));
  const int64_t width = x.size(-1), run = group == 0 ? width : group;
  require(run > 0 && width % run == 0, "quantize_rows: group is {}, expected a divisor of the width {}",
          group, width);
  auto shape = x.sizes().vec();
  shape.back() = width / run;
  shape.push_back(run);
  const auto runs = x.to(accumulate_type(x)).reshape(shape);
  const auto scale = runs.abs().amax(-1, true) / 127;
  const auto values = (runs / at::where(scale > 0, scale, 1)).round().to(at::kChar);
  return {values.reshape(x.sizes()), scale.squeeze(-1).to(at::kFloat)};
}

at::Tensor dequantize_rows(const QuantizedRows& x, at::ScalarType type) {
  auto shape = x.scale.sizes().vec();
  shape.push_back(x.values.size(-1) / x.scale.size(-1));
  return (x.values.reshape(shape).to(type) * x.scale.to(type).unsqueeze(-1)).reshape(x.values.sizes());
}

}  // namespace weft::ops
