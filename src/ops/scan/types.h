// Types of the results of `scan`. Internal to the family.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

struct ScanTypes {
  at::ScalarType state;   // fp32, fp64, complex64 or complex128
  at::ScalarType output;  // the type of b; the state's when the result is complex
};

inline ScanTypes scan_types(const at::Tensor& a, const at::Tensor& b) {
  const bool wide = c10::toRealValueType(a.scalar_type()) == at::kDouble ||
                    c10::toRealValueType(b.scalar_type()) == at::kDouble;
  if (!a.is_complex() && !b.is_complex()) return {wide ? at::kDouble : at::kFloat, b.scalar_type()};
  const auto type = wide ? at::kComplexDouble : at::kComplexFloat;
  return {type, type};
}

}  // namespace weft::ops
