#include "ops/shape.h"

#include "base/error.h"

namespace weft {

std::string shape_text(at::IntArrayRef sizes) {
  return fmt::format("[{}]", fmt::join(sizes.begin(), sizes.end(), ", "));
}

std::string shape_text(const at::Tensor& x) { return x.defined() ? shape_text(x.sizes()) : "undefined"; }

void require_shape(const char* op, const char* name, const at::Tensor& x, at::IntArrayRef expected) {
  bool same = x.defined() && x.dim() == static_cast<int64_t>(expected.size());
  for (size_t i = 0; same && i < expected.size(); ++i) same = expected[i] == -1 || x.size(i) == expected[i];
  require(same, "{}: {} is {}, expected {}", op, name, shape_text(x), shape_text(expected));
}

void require_like(const char* op, const char* name, const at::Tensor& x, const at::Tensor& like) {
  require(x.defined(), "{}: {} is missing", op, name);
  require(x.is_floating_point() || x.is_complex(), "{}: {} has type {}, expected a floating type", op, name,
          c10::toString(x.scalar_type()));
  require(x.device() == like.device(), "{}: {} is on {}, expected {}", op, name, x.device().str(),
          like.device().str());
}

at::ScalarType accumulate_type(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace weft
