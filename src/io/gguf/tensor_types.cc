#include "io/gguf/tensor_types.h"

#include <ATen/Parallel.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

constexpr GgmlTypeInfo kGgmlTypes[] = {
    {GgmlType::F32, "F32", 1, 4, at::kFloat, nullptr},
    {GgmlType::F16, "F16", 1, 2, at::kHalf, nullptr},
    {GgmlType::BF16, "BF16", 1, 2, at::kBFloat16, nullptr},
    {GgmlType::F64, "F64", 1, 8, at::kDouble, nullptr},
    {GgmlType::I8, "I8", 1, 1, at::kChar, nullptr},
    {GgmlType::I16, "I16", 1, 2, at::kShort, nullptr},
    {GgmlType::I32, "I32", 1, 4, at::kInt, nullptr},
    {GgmlType::I64, "I64", 1, 8, at::kLong, nullptr},
    {GgmlType::Q4_0, "Q4_0", 32, 18, at::kFloat, ggml_blocks::q4_0},
    {GgmlType::Q4_1, "Q4_1", 32, 20, at::kFloat, ggml_blocks::q4_1},
    {GgmlType::Q5_0, "Q5_0", 32, 22, at::kFloat, ggml_blocks::q5_0},
    {GgmlType::Q5_1, "Q5_1", 32, 24, at::kFloat, ggml_blocks::q5_1},
    {GgmlType::Q8_0, "Q8_0", 32, 34, at::kFloat, ggml_blocks::q8_0},
    {GgmlType::Q2_K, "Q2_K", 256, 84, at::kFloat, ggml_blocks::q2_k},
    {GgmlType::Q3_K, "Q3_K", 256, 110, at::kFloat, ggml_blocks::q3_k},
    {GgmlType::Q4_K, "Q4_K", 256, 144, at::kFloat, ggml_blocks::q4_k},
    {GgmlType::Q5_K, "Q5_K", 256, 176, at::kFloat, ggml_blocks::q5_k},
    {GgmlType::Q6_K, "Q6_K", 256, 210, at::kFloat, ggml_blocks::q6_k},
    {GgmlType::IQ4_NL, "IQ4_NL", 32, 18, at::kFloat, ggml_blocks::iq4_nl},
    {GgmlType::IQ4_XS, "IQ4_XS", 256, 136, at::kFloat, ggml_blocks::iq4_xs},
    {GgmlType::TQ1_0, "TQ1_0", 256, 54, at::kFloat, ggml_blocks::tq1_0},
    {GgmlType::TQ2_0, "TQ2_0", 256, 66, at::kFloat, ggml_blocks::tq2_0},
    {GgmlType::MXFP4, "MXFP4", 32, 17, at::kFloat, ggml_blocks::mxfp4},
    // Known by size only: the first two are types of activations, the others look numbers up in large tables.
    {GgmlType::Q8_1, "Q8_1", 32, 36, at::kFloat, nullptr},
    {GgmlType::Q8_K, "Q8_K", 256, 292, at::kFloat, nullptr},
    {GgmlType::IQ2_XXS, "IQ2_XXS", 256, 66, at::kFloat, nullptr},
    {GgmlType::IQ2_XS, "IQ2_XS", 256, 74, at::kFloat, nullptr},
    {GgmlType::IQ2_S, "IQ2_S", 256, 82, at::kFloat, nullptr},
    {GgmlType::IQ3_XXS, "IQ3_XXS", 256, 98, at::kFloat, nullptr},
    {GgmlType::IQ3_S, "IQ3_S", 256, 110, at::kFloat, nullptr},
    {GgmlType::IQ1_S, "IQ1_S", 256, 50, at::kFloat, nullptr},
    {GgmlType::IQ1_M, "IQ1_M", 256, 56, at::kFloat, nullptr},
};

}  // namespace

const GgmlTypeInfo* ggml_type_info(uint32_t type) {
  for (const auto& info : kGgmlTypes)
    if (static_cast<uint32_t>(info.type) == type) return &info;
  return nullptr;
}

const GgmlTypeInfo& ggml_type_info(GgmlType type) { return *ggml_type_info(static_cast<uint32_t>(type)); }

std::string readable_ggml_types() {
  std::vector<std::string> names;
  for (const auto& info : kGgmlTypes)
    if (info.plain() || info.decode) names.emplace_back(info.name);
  return join(names);
}

void dequantize(const GgmlTypeInfo& type, const std::byte* from, int64_t count, float* to) {
  invariant(type.decode, "{} is not dequantized", type.name);
  const auto* bytes = reinterpret_cast<const uint8_t*>(from);
  constexpr int64_t kBlocksATask = 2048;
  at::parallel_for(0, count, kBlocksATask, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) type.decode(bytes + i * type.bytes, to + i * type.block);
  });
}

void quantize_q8_0(const float* from, int64_t count, std::byte* to) {
  constexpr int64_t kBlock = 32;
  invariant(count % kBlock == 0, "{} numbers are no blocks of Q8_0", count);
  for (int64_t i = 0; i < count; i += kBlock, to += 34) {
    float largest = 0;
    for (int64_t j = 0; j < kBlock; ++j) largest = std::max(largest, std::abs(from[i + j]));
    const float scale = largest / 127.0f;
    const float inverse = scale != 0 ? 1.0f / scale : 0.0f;
    const at::Half stored(scale);
    std::memcpy(to, &stored.x, 2);
    for (int64_t j = 0; j < kBlock; ++j)
      to[2 + j] = static_cast<std::byte>(static_cast<int8_t>(std::round(from[i + j] * inverse)));
  }
}

}  // namespace weft
