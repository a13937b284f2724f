#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "ops/activation/activation.h"
#include "ops/shape.h"

namespace weft::ops::reference {

at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& x) {
  const auto y = at::silu(gate.to(accumulate_type(gate))) * x.to(accumulate_type(x));
  return y.to(at::promote_types(gate.scalar_type(), x.scalar_type()));
}

}  // namespace weft::ops::reference
