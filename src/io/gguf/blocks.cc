// The quantized blocks of ggml. A block begins or ends with its scale (half precision, little-endian); low and high
// nibbles of a byte hold numbers half a block apart. Layouts as in the format's description and in gguf-py.
#include <c10/util/Half.h>

#include <bit>
#include <cstring>

#include "io/gguf/tensor_types.h"

namespace weft::ggml_blocks {
namespace {

float half_at(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return static_cast<float>(at::Half(bits, at::Half::from_bits()));
}

uint32_t word_at(const uint8_t* from) {
  uint32_t bits;
  std::memcpy(&bits, from, 4);
  return bits;
}

constexpr int kSmall = 32;   // numbers in a small block
constexpr int kLarge = 256;  // in a super-block

// The values of IQ4 codes.
constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// E2M1 numbers, doubled.
constexpr int8_t kE2m1Values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Gives put(index, nibble) the 32 nibbles of 16 bytes: low ones first.
template <class Put>
void each_nibble(const uint8_t* from, Put put) {
  for (int j = 0; j < kSmall / 2; ++j) {
    put(j, from[j] & 15);
    put(j + kSmall / 2, from[j] >> 4);
  }
}

// Scale and minimum j of the eight 6-bit pairs that Q4_K and Q5_K pack into 12 bytes.
struct ScaleMin {
  uint8_t scale, min;
};
ScaleMin scale_min(const uint8_t* packed, int j) {
  if (j < 4) return {static_cast<uint8_t>(packed[j] & 63), static_cast<uint8_t>(packed[j + 4] & 63)};
  return {static_cast<uint8_t>((packed[j + 4] & 15) | (packed[j - 4] >> 6 << 4)),
          static_cast<uint8_t>((packed[j + 4] >> 4) | (packed[j] >> 6 << 4))};
}

}  // namespace

// half d; 16 bytes.  d (q - 8)
void q4_0(const uint8_t* from, float* to) {
  const float d = half_at(from);
  each_nibble(from + 2, [&](int j, int q) { to[j] = d * static_cast<float>(q - 8); });
}

// half d, m; 16 bytes.  d q + m
void q4_1(const uint8_t* from, float* to) {
  const float d = half_at(from), m = half_at(from + 2);
  each_nibble(from + 4, [&](int j, int q) { to[j] = d * static_cast<float>(q) + m; });
}

// half d; 32 fifth bits; 16 bytes.  d (q - 16)
void q5_0(const uint8_t* from, float* to) {
  const float d = half_at(from);
  const uint32_t high = word_at(from + 2);
  each_nibble(from + 6, [&](int j, int q) {
    to[j] = d * static_cast<float>((q | static_cast<int>((high >> j) & 1) << 4) - 16);
  });
}

// half d, m; 32 fifth bits; 16 bytes.  d q + m
void q5_1(const uint8_t* from, float* to) {
  const float d = half_at(from), m = half_at(from + 2);
  const uint32_t high = word_at(from + 4);
  each_nibble(from + 8, [&](int j, int q) {
    to[j] = d * static_cast<float>(q | static_cast<int>((high >> j) & 1) << 4) + m;
  });
}

// half d; 32 signed bytes.  d q
void q8_0(const uint8_t* from, float* to) {
  const float d = half_at(from);
  for (int j = 0; j < kSmall; ++j) to[j] = static_cast<float>(static_cast<int8_t>(from[2 + j])) * d;
}

// 16 bytes of 4-bit scale and minimum; 64 bytes of 2-bit numbers; half d, dmin.  Groups of 16.
void q2_k(const uint8_t* from, float* to) {
  const uint8_t *scales = from, *q = from + 16;
  const float d = half_at(from + 80), dmin = half_at(from + 82);
  for (int i = 0; i < kLarge; ++i) {
    const int group = i / 16, half = i / 128, shift = i % 128 / 32 * 2;
    const float scale = d * static_cast<float>(scales[group] & 15),
                min = dmin * static_cast<float>(scales[group] >> 4);
    to[i] = scale * static_cast<float>((q[half * 32 + i % 32] >> shift) & 3) - min;
  }
}

// 32 bytes of third bits (0: subtract 4); 64 bytes of 2-bit numbers; 12 bytes of 6-bit scales; half d.  Groups of 16.
void q3_k(const uint8_t* from, float* to) {
  const uint8_t *high = from, *q = from + 32, *packed = from + 96;
  const float d = half_at(from + 108);
  float scales[16];
  for (int j = 0; j < 16; ++j) {
    const int low = (packed[j % 8] >> (j / 8 * 4)) & 15, top = (packed[8 + j % 4] >> (j / 4 * 2)) & 3;
    scales[j] = d * static_cast<float>((low | top << 4) - 32);
  }
  for (int i = 0; i < kLarge; ++i) {
    const int half = i / 128, shift = i % 128 / 32 * 2;
    const int low = (q[half * 32 + i % 32] >> shift) & 3, top = (high[i % 32] >> (i / 32)) & 1;
    to[i] = scales[i / 16] * static_cast<float>(low - (top ? 0 : 4));
  }
}

// half d, dmin; 12 bytes of scales and minima; 128 bytes, 64 numbers in 32 of them.  Groups of 32.
void q4_k(const uint8_t* from, float* to) {
  const float d = half_at(from), dmin = half_at(from + 2);
  for (int group = 0; group < 8; ++group) {
    const auto [scale, min] = scale_min(from + 4, group);
    const float step = d * static_cast<float>(scale), shift = dmin * static_cast<float>(min);
    const uint8_t* q = from + 16 + group / 2 * 32;
    for (int j = 0; j < 32; ++j)
      to[group * 32 + j] = step * static_cast<float>(group % 2 ? q[j] >> 4 : q[j] & 15) - shift;
  }
}

// As q4_k with 32 bytes of fifth bits before the nibbles: bit g for group g.
void q5_k(const uint8_t* from, float* to) {
  const float d = half_at(from), dmin = half_at(from + 2);
  const uint8_t* high = from + 16;
  for (int group = 0; group < 8; ++group) {
    const auto [scale, min] = scale_min(from + 4, group);
    const float step = d * static_cast<float>(scale), shift = dmin * static_cast<float>(min);
    const uint8_t* q = from + 48 + group / 2 * 32;
    for (int j = 0; j < 32; ++j) {
      const int low = group % 2 ? q[j] >> 4 : q[j] & 15;
      to[group * 32 + j] = step * static_cast<float>(low | ((high[j] >> group) & 1) << 4) - shift;
    }
  }
}

// 128 bytes of low nibbles; 64 bytes of 2 high bits; 16 signed scales; half d.  Groups of 16, d s (q - 32)
void q6_k(const uint8_t* from, float* to) {
  const uint8_t *low = from, *high = from + 128, *scales = from + 192;
  const float d = half_at(from + 208);
  for (int i = 0; i < kLarge; ++i) {
    const int half = i / 128, part = i % 128 / 32, j = i % 32;
    const uint8_t nibbles = low[half * 64 + part % 2 * 32 + j];
    const int q = (part < 2 ? nibbles & 15 : nibbles >> 4) | ((high[half * 32 + j] >> (part * 2)) & 3) << 4;
    to[i] = d * static_cast<float>(static_cast<int8_t>(scales[i / 16])) * static_cast<float>(q - 32);
  }
}

// half d; 16 bytes of codes.
void iq4_nl(const uint8_t* from, float* to) {
  const float d = half_at(from);
  each_nibble(from + 2, [&](int j, int q) { to[j] = d * static_cast<float>(kIq4Values[q]); });
}

// half d; 16 bits of high scale bits; 4 bytes of low scale nibbles; 128 bytes of codes.  Groups of 32.
void iq4_xs(const uint8_t* from, float* to) {
  const float d = half_at(from);
  const int high = from[2] | from[3] << 8;
  for (int group = 0; group < 8; ++group) {
    const int low = (from[4 + group / 2] >> (group % 2 * 4)) & 15;
    const float step = d * static_cast<float>((low | ((high >> (2 * group)) & 3) << 4) - 32);
    each_nibble(from + 8 + group * 16,
                [&](int j, int q) { to[group * 32 + j] = step * static_cast<float>(kIq4Values[q]); });
  }
}

// 48 bytes of five and 4 bytes of four ternary digits, as fractions of 256; half d.  d (digit - 1)
void tq1_0(const uint8_t* from, float* to) {
  constexpr uint8_t kPowers[5] = {1, 3, 9, 27, 81};
  const float d = half_at(from + 52);
  const auto digits = [&](const uint8_t* bytes, int count, int powers) {
    for (int p = 0; p < powers; ++p)
      for (int j = 0; j < count; ++j) {
        const auto shifted = static_cast<uint8_t>(bytes[j] * kPowers[p]);
        *to++ = d * static_cast<float>((shifted * 3 >> 8) - 1);
      }
  };
  digits(from, 32, 5);
  digits(from + 32, 16, 5);
  digits(from + 48, 4, 4);
}

// 64 bytes of 2-bit numbers; half d.  d (q - 1)
void tq2_0(const uint8_t* from, float* to) {
  const float d = half_at(from + 64);
  for (int i = 0; i < kLarge; ++i)
    to[i] = d * static_cast<float>(((from[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3) - 1);
}

// One exponent byte e; 16 bytes of E2M1 codes.  2^(e - 127) times the code's value.
void mxfp4(const uint8_t* from, float* to) {
  const uint32_t e = from[0];
  const float half = std::bit_cast<float>(e < 2 ? 0x00200000u << e : (e - 1) << 23);
  each_nibble(from + 1, [&](int j, int q) { to[j] = half * static_cast<float>(kE2m1Values[q]); });
}

}  // namespace weft::ggml_blocks
