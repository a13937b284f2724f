// Cosine and sine of a rotary angle, which is reduced to less than half a turn in fp64.
#pragma once

#include <cuda_runtime.h>

namespace weft::kernels {

// A pair that turns by `frequency` radians a position.
__device__ __forceinline__ void rope_angle(double position, double frequency, float& cosine, float& sine) {
  constexpr double kTurnsPerRadian = 0.15915494309189535;
  const double turns = position * frequency * kTurnsPerRadian;
  sincospif(2.0f * static_cast<float>(turns - rint(turns)), &sine, &cosine);
}

// Of pair `pair` of `pairs`: theta^(-pair / pairs).
__device__ __forceinline__ double rope_frequency(double log2_theta, int64_t pair, int64_t pairs) {
  return exp2(-log2_theta * static_cast<double>(pair) / static_cast<double>(pairs));
}

}  // namespace weft::kernels
