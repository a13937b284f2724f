// From the chosen kernel to the instruction set that a CPU kernel function takes.
#pragma once

#include "ops/kernel_choice.h"
#include "ops/simd/isa.h"

namespace weft {

// Kernel must be one of scalar, avx2, avx512.
inline simd::Isa isa_of(Kernel kernel) {
  return kernel == Kernel::avx512 ? simd::Isa::avx512
         : kernel == Kernel::avx2 ? simd::Isa::avx2
                                  : simd::Isa::scalar;
}

}  // namespace weft
