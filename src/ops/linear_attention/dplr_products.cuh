// The sweep whose warps own key channels (dplr_keys.cuh): its block, and the products of values of a chunk.
#pragma once

#include "ops/linear_attention/dplr_tiles.cuh"

namespace weft::kernels::low_rank {

// Products of values, named by what is read and what is written.
enum ValuePair { kDyV, kDyC, kEV, kEC, kValuePairs };

// Offsets in bytes. Chunks of inputs (tiles of q, k, a, b, then of v, c, dy, e) come kAhead - 1 steps before helping warps
// read them, one more before the others do.
template <int kKey, int kValue, bool kReverse>
struct KeysLayout {
  static constexpr int kWholeAt = (kReverse ? 3 : 4) * kChunk * kKey, kRing = kKey + kValue > 320 ? 3 : 4,
                       kAhead = kRing - 1, kReadGateRing = 3;
  static constexpr int kInputBytes = 4 * kChunk * (kKey + kValue) * 2, kGateBytes = kChunk * kKey * 4,
                       kReadGateBytes = kReverse ? kChunk * kKey * 2 : 0,
                       kEndBytes = kWholeAt * 2 + kKey * 10 + kMarkFloats * 4,
                       kPairBytes = kValuePairs * kChunk * kPairRow * 2 + 2 * kChunk * 4;
  static constexpr int kInputs = 0, kGates = kInputs + kRing * kInputBytes,
                       kEnds = kGates + kRing * kGateBytes, kLevelTiles = kEnds + 2 * kEndBytes,
                       kReadGates = kLevelTiles + 4 * kChunk * kKey,
                       kPairs = kReadGates + kReadGateRing * kReadGateBytes,
                       kScalars = kPairs + 2 * kPairBytes,
                       kBytes = kScalars + kNumberRing * static_cast<int>(sizeof(TokenScalars));
};

// The products of values that a warp multiplies with, in reverse transposed.
template <class T, bool kReverse>
__device__ __forceinline__ void load_value_pairs(const T* pairs, uint32_t (&p)[kValuePairs][4]) {
  const int2 at = kReverse ? columns_first(threadIdx.x % 32) : rows_first(threadIdx.x % 32);
#pragma unroll
  for (int i = 0; i < kValuePairs; ++i) {
    const T* from = pairs + i * kChunk * kPairRow + at.x * kPairRow + at.y;
    kReverse ? load_matrices_transposed(p[i], from) : load_matrices(p[i], from);
  }
}

// first, second [16 tokens, 16 channels of the warp] += tiles of a gentle chunk's pairs' products: its own pairs.
template <class T, int kKey, bool kReverse>
__device__ __forceinline__ void add_gentle_pairs(const T* pairs, uint32_t starts, const T* tile,
                                                 const T* other, float (&first)[2][4],
                                                 float (&second)[2][4]) {
  const int lane = threadIdx.x % 32, channels = threadIdx.x / 32 * 16;
  const int2 at = rows_first(lane);
  uint32_t p[kValuePairs][4], x[4], y[4];
  load_value_pairs<T, kReverse>(pairs, p);
  const int row = lane / 4, column = lane % 4 * 2;
  const uint32_t mask = kReverse ? (column > row ? 0xffffu : 0u) | (column + 1 > row ? 0xffff0000u : 0u)
                                 : (row > column ? 0xffffu : 0u) | (row > column + 1 ? 0xffff0000u : 0u);
#pragma unroll
  for (int i = 0; i < kValuePairs; ++i) p[i][0] &= mask, p[i][3] &= mask, p[i][kReverse ? 1 : 2] = 0;
  load_matrices_transposed(x, tile + at16(kKey, at.x, channels + at.y));
  load_matrices_transposed(y, other + at16(kKey, at.x, channels + at.y));
  if (starts)
#pragma unroll
    for (int i = 0; i < kValuePairs; ++i) keep_documents(starts, p[i]);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    multiply_add<T>(first[n], p[kDyV], x[2 * n], x[2 * n + 1]);
    multiply_add<T>(second[n], p[kReverse ? kDyC : kEV], x[2 * n], x[2 * n + 1]);
    multiply_add<T>(first[n], p[kReverse ? kEV : kDyC], y[2 * n], y[2 * n + 1]);
    multiply_add<T>(second[n], p[kEC], y[2 * n], y[2 * n + 1]);
  }
}

// first, second [16 tokens, 16 channels of the warp] += decays (tiles of pairs' products): the chunk's own pairs. Forward
// they are dq and da; in reverse dk and db. decay(level) makes the warp's part of a level's tiles, of q with k and of a
// with b.
template <class T, int kKey, bool kReverse, class Decay>
__device__ __forceinline__ void add_value_pairs(const T* pairs, const T* qk, const T* ab, const Decay& decay,
                                                float (&first)[2][4], float (&second)[2][4]) {
  const int lane = threadIdx.x % 32, channels = threadIdx.x / 32 * 16;
  const int2 by_row = rows_first(lane);
  uint32_t p[kValuePairs][4];
  load_value_pairs<T, kReverse>(pairs, p);
#pragma unroll 1
  for (int level = 0; level < kLevels; ++level) {
    __syncwarp();
    decay(level);
    __syncwarp();
    const uint32_t mask = level_mask(level, kReverse);
    uint32_t of_qk[4], of_ab[4];
    load_matrices_transposed(of_qk, qk + at16(kKey, by_row.x, channels + by_row.y));
    load_matrices_transposed(of_ab, ab + at16(kKey, by_row.x, channels + by_row.y));
    const auto add = [&](int pair, int n, const uint32_t(&tile)[4], float(&part)[4]) {
      uint32_t a[4] = {};
      if (level == 3) {
        a[kReverse ? 2 : 1] = p[pair][kReverse ? 2 : 1];
      } else {
        a[0] = p[pair][0] & mask, a[3] = p[pair][3] & mask;
      }
      multiply_add<T>(part, a, tile[2 * n], tile[2 * n + 1]);
    };
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float parts[2][4] = {};
      add(kDyV, n, of_qk, parts[0]);
      add(kReverse ? kEV : kDyC, n, of_ab, parts[0]);
      add(kReverse ? kDyC : kEV, n, of_qk, parts[1]);
      add(kEC, n, of_ab, parts[1]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = at16(kKey, lane / 4 + half * 8, channels + n * 8 + lane % 4 * 2);
        const float2 x = pair_at<T>(qk, at), y = kReverse ? x : pair_at<T>(ab, at);
        first[n][2 * half] += parts[0][2 * half] * x.x,
            first[n][2 * half + 1] += parts[0][2 * half + 1] * x.y;
        second[n][2 * half] += parts[1][2 * half] * y.x,
            second[n][2 * half + 1] += parts[1][2 * half + 1] * y.y;
      }
    }
  }
}

// Warps of a block: those that own keys, those that decay them, and, for blocks that have a multiprocessor for themselves,
// others that form the pairs of values, else done by the latter. Registers move between the warps.
template <int kKey, int kValue, bool kPairWarps>
struct KeyWarps {
  static constexpr bool kApart = kPairWarps, kWide = kKey == 128 && kValue == 256;
  static constexpr int kOwn = kKey / 16, kHelp = kWide ? 4 : kOwn,
                       kThreads = 32 * (kOwn + kHelp + (kApart ? kValuePairs : 0)),
                       kBlocks = !kApart && kKey + kValue == 128 ? 2 : 1;
  static constexpr int kOwnRegisters = kApart ? 232 : kWide ? 216 : 184, kHelpRegisters = kApart ? 136 : 72;
};

// The channels of a chunk that are those of warp `helper` of kWarps.
template <class T, int kKey, int kValue, bool kReverse, int kWarps>
__device__ __forceinline__ ChunkDecays<T, kKey, kWarps, kReverse ? Sides::rows : Sides::columns> one_side(
    const Sweep& s, const Erase& e, const char* shared, int step, int helper) {
  using L = KeysLayout<kKey, kValue, kReverse>;
  return {s,
          e,
          shared + L::kInputs + step % L::kRing * L::kInputBytes,
          shared + L::kGates + step % L::kRing * L::kGateBytes,
          reinterpret_cast<const TokenScalars*>(shared + L::kScalars)[step % kNumberRing],
          s.write.data != nullptr,
          helper};
}
template <class T, int kKey, int kValue, bool kReverse, int kWarps>
__device__ __forceinline__ void decay_one_side(const Sweep& s, const Erase& e, char* shared, int step,
                                               int helper) {
  using L = KeysLayout<kKey, kValue, kReverse>;
  T* ends = reinterpret_cast<T*>(shared + L::kEnds + step % 2 * L::kEndBytes);
  auto* whole = reinterpret_cast<float*>(ends + L::kWholeAt);
  auto* vanished = reinterpret_cast<uint16_t*>(whole + 2 * kKey + kMarkFloats);
  one_side<T, kKey, kValue, kReverse, kWarps>(s, e, shared, step, helper)
      .ends(kHelpersBarrier, ends, whole, kReverse ? vanished : nullptr, nullptr);
}
template <class T, int kKey, int kValue, bool kReverse>
__device__ __forceinline__ void pair_values(char* shared, int step, int pair) {
  using L = KeysLayout<kKey, kValue, kReverse>;
  T* pairs = reinterpret_cast<T*>(shared + L::kPairs + step % 2 * L::kPairBytes);
  const T* values =
      reinterpret_cast<const T*>(shared + L::kInputs + step % L::kRing * L::kInputBytes) + 4 * kChunk * kKey;
  const bool of_dy = pair == kDyV || pair == kDyC, of_v = pair == kDyV || pair == kEV;
  auto* diagonal = reinterpret_cast<float*>(pairs + kValuePairs * kChunk * kPairRow) + pair * kChunk;
  form_value_pairs<T, kValue, Swizzled<kValue>, kValue / 128>(
      values + (of_dy ? 2 : 3) * kChunk * kValue, values + (of_v ? 0 : 1) * kChunk * kValue,
      Pairs<T>{pairs + pair * kChunk * kPairRow, of_dy ? diagonal : nullptr});
}

}  // namespace weft::kernels::low_rank
