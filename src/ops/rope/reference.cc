#include <cmath>

#include "ops/rope/rope.h"
#include "ops/shape.h"

namespace weft::ops::reference {

at::Tensor rope(const at::Tensor& x, const at::Tensor& positions, const Rope& options) {
  const int64_t dim = options.dim ? options.dim : x.size(-1);
  const auto type = accumulate_type(x);
  const auto pair = at::arange(dim / 2, positions.options().dtype(at::kDouble));
  const auto frequency = options.frequencies.defined()
                             ? options.frequencies.to(positions.device())
                             : at::exp(pair * (-2.0 * std::log(options.theta) / static_cast<double>(dim)));
  const auto angle = (positions.to(at::kDouble).unsqueeze(-1) * frequency).unsqueeze(2);  // [B, T, 1, dim/2]
  const auto c = (at::cos(angle) * options.magnitude).to(type);
  const auto s = (at::sin(angle) * options.magnitude).to(type);

  const auto turned = x.narrow(-1, 0, dim).to(type);
  const auto pairs = options.interleaved
                         ? turned.unflatten(-1, {dim / 2, 2}).movedim(-1, 0)
                         : turned.unflatten(-1, {2, dim / 2}).movedim(-2, 0);  // [2, B, T, H, dim/2]
  const auto first = pairs[0] * c - pairs[1] * s;
  const auto second = pairs[1] * c + pairs[0] * s;
  const auto y =
      options.interleaved ? at::stack({first, second}, -1).flatten(-2) : at::cat({first, second}, -1);
  return at::cat({y.to(x.scalar_type()), x.narrow(-1, dim, x.size(-1) - dim)}, -1);
}

}  // namespace weft::ops::reference
