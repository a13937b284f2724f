// The types that tensors of a GGUF file may have, and how their blocks turn into numbers.
#pragma once

#include <c10/core/ScalarType.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace weft {

// The numbers are those of the file format.
enum class GgmlType : uint32_t {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q8_1 = 9,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  Q8_K = 15,
  IQ2_XXS = 16,
  IQ2_XS = 17,
  IQ3_XXS = 18,
  IQ1_S = 19,
  IQ4_NL = 20,
  IQ3_S = 21,
  IQ2_S = 22,
  IQ4_XS = 23,
  I8 = 24,
  I16 = 25,
  I32 = 26,
  I64 = 27,
  F64 = 28,
  IQ1_M = 29,
  BF16 = 30,
  TQ1_0 = 34,
  TQ2_0 = 35,
  MXFP4 = 39,
};

struct GgmlTypeInfo {
  GgmlType type;
  std::string_view name;
  int64_t block;  // numbers in one block
  int64_t bytes;  // of one block
  // The type that tensors are read as: their own for plain types, F32 for blocks.
  at::ScalarType dtype;
  // Turns one block into `block` floats, in the order of operations that ggml's reference has, so that the floats are
  // equal bit for bit. Null for plain types, and for block types that weft does not read.
  void (*decode)(const uint8_t* from, float* to);
  bool plain() const { return block == 1; }
};

// Null for numbers that are no type.
const GgmlTypeInfo* ggml_type_info(uint32_t type);
const GgmlTypeInfo& ggml_type_info(GgmlType type);
// "F32, F16, Q4_0, ...": the types that can be read.
std::string readable_ggml_types();

// `count` blocks of `from` as floats, over several threads. Only for types with `decode`.
void dequantize(const GgmlTypeInfo& type, const std::byte* from, int64_t count, float* to);

// Blocks of Q8_0 from floats: the scale is max|x| / 127 rounded to half, and the numbers are rounded half away from
// zero after division by the scale that is not rounded. `count` is a multiple of 32.
void quantize_q8_0(const float* from, int64_t count, std::byte* to);

namespace ggml_blocks {
// One block each; see tensor_types.cc for sizes.
void q4_0(const uint8_t* from, float* to);
void q4_1(const uint8_t* from, float* to);
void q5_0(const uint8_t* from, float* to);
void q5_1(const uint8_t* from, float* to);
void q8_0(const uint8_t* from, float* to);
void q2_k(const uint8_t* from, float* to);
void q3_k(const uint8_t* from, float* to);
void q4_k(const uint8_t* from, float* to);
void q5_k(const uint8_t* from, float* to);
void q6_k(const uint8_t* from, float* to);
void iq4_nl(const uint8_t* from, float* to);
void iq4_xs(const uint8_t* from, float* to);
void tq1_0(const uint8_t* from, float* to);
void tq2_0(const uint8_t* from, float* to);
void mxfp4(const uint8_t* from, float* to);
}  // namespace ggml_blocks

}  // namespace weft
