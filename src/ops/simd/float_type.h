// The float types that CPU kernels read and write. No torch.
#pragma once

#include <cstdint>

namespace weft::simd {

enum class FloatType : int8_t { fp32, bf16, fp16 };

constexpr int64_t bytes_of(FloatType type) { return type == FloatType::fp32 ? 4 : 2; }

}  // namespace weft::simd
