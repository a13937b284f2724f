// The decays' gradient in the sweep for dk, from what it leaves of every token.
#pragma once

#include "ops/linear_attention/vector_tiles.cuh"

namespace weft::kernels::vector_decay {

// Where k dk without the diagonal is kept: over a warp's own columns of the first two levels, once they are used.
template <class T, int kKey>
__device__ __forceinline__ float* written_at(char* stage, int t, int channel) {
  T* tile = reinterpret_cast<T*>(stage) + channel / 8 % 2 * kChunk * kKey;
  return reinterpret_cast<float*>(tile + at16(kKey, t, channel / 16 * 16 + channel / 4 % 2 * 8)) +
         channel % 4;
}

// The parts of a decay's gradient for each token and channel, over the levels of a chunk once they are used.
enum GatePart { kWritten, kRead };
template <class T, int kKey>
__device__ __forceinline__ float* part_at(char* stage, GatePart part, int t, int channel) {
  T* tile = reinterpret_cast<T*>(stage) + (2 * part + channel / 8 % 2) * kChunk * kKey;
  return reinterpret_cast<float*>(tile + at16(kKey, t, channel / 16 * 16 + channel / 4 % 2 * 8)) +
         channel % 4;
}

// The gradient of a chunk's decays for 16 channels of a block from `first_channel` on: sums from the last token on of the read
// parts less the written ones, ended where a decay vanished. Half a warp has 8 tokens. With a bonus a token's read part counts
// for the tokens before it. `carried` is the sum of what comes behind, and then with the chunk.
template <class T, int kKey>
__device__ __forceinline__ void sum_parts(const Sweep& s, const Place& p, int first_channel, int64_t token,
                                          char* stage, float& carried) {
  constexpr int kHalf = kChunk / 2;
  const int lane = threadIdx.x % 32, channel = first_channel + lane % 16, first = lane / 16 * kHalf;
  const auto* whole = reinterpret_cast<const float*>(stage + (kLevels + 2) * kChunk * kKey * 2);
  const uint32_t ends = reinterpret_cast<const uint16_t*>(whole + kKey)[channel] >> first & 0xff;
  const bool before = s.bonus != nullptr;
  float sums[kHalf], sum = first ? carried : 0.f;
  const auto part = [&](GatePart of, int t) { return *part_at<T, kKey>(stage, of, first + t, channel); };
  if (before || __any_sync(0xffffffff, ends != 0)) {
#pragma unroll
    for (int t = kHalf - 1; t >= 0; --t) {
      const float read = part(kRead, t);
      sums[t] = sum + (before ? 0.f : read) - part(kWritten, t);
      if (ends >> t & 1) sums[t] = 0;
      sum = before ? sums[t] + read : sums[t];
    }
    const float later = __shfl_sync(0xffffffff, sum, lane % 16 + 16);
#pragma unroll
    for (int t = 0; t < kHalf; ++t)
      if (!first && !(ends >> t)) sums[t] += later;
    if (!first && !ends) sum += later;
  } else {
#pragma unroll
    for (int t = kHalf - 1; t >= 0; --t) sums[t] = sum += part(kRead, t) - part(kWritten, t);
    const float later = __shfl_sync(0xffffffff, sum, lane % 16 + 16), added = first ? 0.f : later;
#pragma unroll
    for (int t = 0; t < kHalf; ++t) sums[t] += added;
    sum += added;
  }
  carried = __shfl_sync(0xffffffff, sum, lane % 16);
  if (channel >= keys_of(s, p)) return;
  const int64_t stride = int64_t{s.heads} * s.key_width;
  const int left = static_cast<int>(min(int64_t{kChunk}, s.tokens - token)) - first;
  float* to = s.dlog_decay + p.row(s, token + first) * s.key_width + p.first_key + channel;
#pragma unroll
  for (int t = 0; t < kHalf; ++t, to += stride)
    if (t < left) *to = sums[t];
}

}  // namespace weft::kernels::vector_decay
