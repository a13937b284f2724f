// The decayed tiles of a chunk from its inputs, what helping warps do first.
#pragma once

#include <type_traits>

#include "ops/linear_attention/vector_feed.cuh"

namespace weft::kernels::vector_decay {

// A token's q and k, or ones where only the decays are wanted, as rows and columns of tiles.
enum class Rows { queries, ones };
enum class Columns { written_keys, keys, ones };

// The chunk's decayed tiles, 16 key channels by each helping warp: levels, then `in` = rows times the decay from the
// chunk's first token on, then `out` = columns times the decay up to its last, the decay of the whole chunk, and if
// wanted a bit for every token and channel whose decay is zero. With a bonus a row is read before its own decay. kPlain:
// without starts, write strengths and bonus.
template <class T, int kWidth, Rows kRows, Columns kColumns, bool kVanished, bool kPlain>
__device__ __forceinline__ void decay_channels(const Sweep& s, const Layout& l, const char* raw,
                                               const Scalars& scalars, int helper, char* stage) {
  constexpr int kTile = kChunk * kWidth;
  const int lane = threadIdx.x % 32, part = lane / 8, channel = 16 * helper + 2 * (lane % 8);
  const bool bonus = !kPlain && s.bonus != nullptr, fp32 = s.log_decay.type == CudaType::fp32;
  T* tiles = reinterpret_cast<T*>(stage);
  Products d;
  float2 rows[4], columns[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int t = 4 * part + j, at = Panels<>::at(t, channel);
    const float2 g = fp32 ? *reinterpret_cast<const float2*>(raw + l.gate + Panels<>::at_fp32(t, channel) * 4)
                          : pair_at<T>(raw + l.gate, at);
    d.decay[j] = {fast_exp2(g.x * kLog2e), fast_exp2(g.y * kLog2e)};
    d.kept[j] = rows[j] = columns[j] = {1, 1};
    if (!kPlain && scalars.start[t] != 0) d.kept[j] = d.decay[j] = {0, 0};
    if (kRows == Rows::queries) rows[j] = times(pair_at<T>(raw + l.q, at), {s.scale, s.scale});
    if (kColumns != Columns::ones) columns[j] = pair_at<T>(raw + l.k, at);
    if (!kPlain && kColumns == Columns::written_keys)
      columns[j] = times(columns[j], {scalars.write[t], scalars.write[t]});
  }
  d.multiply();
  const bool upper = part & 2, odd = part & 1;
  const auto put = [&](int tile, int j, float2 x) {
    *reinterpret_cast<uint32_t*>(tiles + tile * kTile + at16(kWidth, 4 * part + j, channel)) =
        pack<T>(x.x, x.y);
  };
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    d.up[j] = select(bonus, d.before[j], d.up[j]);
    put(kLevels, j, times(rows[j], times(d.up[j], d.prior)));
    put(kLevels + 1, j, times(columns[j], times(d.down[j], d.later)));
  }
  const float2 one{1, 1};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 own = select(bonus, d.kept[j], d.decay[j]);
    put(3, j, times(select(upper, rows[j], columns[j]), times(select(upper, d.up[j], d.down[j]), d.edge)));
    put(2, j, times(select(odd, rows[j], columns[j]), select(odd, d.up[j], d.down[j])));
    const float2 of_one = j == 0 ? d.decay[1] : j == 1 ? one : j == 2 ? own : times(d.decay[2], own);
    put(1, j, times(j & 2 ? rows[j] : columns[j], of_one));
    put(0, j, j & 1 ? times(rows[j], own) : columns[j]);
  }
  const uint32_t vanished = kVanished ? d.vanished() : 0;
  if (part != 0) return;
  float* whole = reinterpret_cast<float*>(stage + (kLevels + 2) * kTile * 2);
  *reinterpret_cast<float2*>(whole + channel) = d.all;
  if (kVanished)
    *reinterpret_cast<uint32_t*>(reinterpret_cast<uint16_t*>(whole + kWidth) + channel) = vanished;
}

// Whether all of the helping warps' threads say so.
template <int kThreads>
__device__ __forceinline__ bool all_agree(bool x) {
  int all;
  asm volatile(
      "{\n.reg .pred p, q;\nsetp.ne.b32 p, %1, 0;\nbarrier.cta.red.and.pred.aligned q, 1, %2, p;\n"
      "selp.b32 %0, 1, 0, q;\n}"
      : "=r"(all)
      : "r"(static_cast<int>(x)), "n"(kThreads)
      : "memory");
  return all;
}

// The same in a gentle chunk: without a start and with decays of more than 2^-60 from its begin to its end, so that columns
// may have the inverse of the decay from the begin on. The first tile then has those, and is all that pairs need beside `in`;
// both are as exact as levels are, as bf16 has exponents to spare. Returns whether the chunk is gentle, for these 16
// channels or, with kTogether, all. Nothing is written else.
template <class T, int kWidth, Rows kRows, Columns kColumns, bool kVanished, bool kTogether>
__device__ __forceinline__ bool decay_gently(const Sweep& s, const Layout& l, const char* raw,
                                             const Scalars& scalars, int helper, char* stage) {
  constexpr int kTile = kChunk * kWidth;
  constexpr float kLeast = -60;
  const int lane = threadIdx.x % 32, part = lane / 8, channel = 16 * helper + 2 * (lane % 8);
  const bool fp32 = s.log_decay.type == CudaType::fp32;
  float2 sums[4];  // log2 decays: of the lane's tokens up to this one, later from the chunk's begin on
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int t = 4 * part + j;
    const float2 g = fp32 ? *reinterpret_cast<const float2*>(raw + l.gate + Panels<>::at_fp32(t, channel) * 4)
                          : pair_at<T>(raw + l.gate, Panels<>::at(t, channel));
    sums[j] = {g.x * kLog2e, g.y * kLog2e};
    if (j > 0) sums[j] = {sums[j].x + sums[j - 1].x, sums[j].y + sums[j - 1].y};
  }
  float2 whole = sums[3];
#pragma unroll
  for (int step = 8; step < 32; step *= 2) {
    const float2 other{__shfl_up_sync(0xffffffff, whole.x, step), __shfl_up_sync(0xffffffff, whole.y, step)};
    if (lane >= step) whole = {whole.x + other.x, whole.y + other.y};
  }
  const float2 prior{whole.x - sums[3].x, whole.y - sums[3].y};
  whole = {__shfl_sync(0xffffffff, whole.x, 24 + lane % 8), __shfl_sync(0xffffffff, whole.y, 24 + lane % 8)};
  bool gentle = whole.x > kLeast && whole.y > kLeast;
  if (s.starts) {
    const float4 starts = *reinterpret_cast<const float4*>(scalars.start + 4 * part);
    gentle = gentle && starts.x == 0 && starts.y == 0 && starts.z == 0 && starts.w == 0;
  }
  gentle = kTogether ? all_agree<kWidth * 2>(gentle) : __all_sync(0xffffffff, gentle);
  if (lane == 0) *gentle_at<kWidth>(stage, helper) = gentle;
  if (!gentle) return false;

  const float2 all{fast_exp2(whole.x), fast_exp2(whole.y)};
  T* tiles = reinterpret_cast<T*>(stage);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int t = 4 * part + j, at = Panels<>::at(t, channel);
    const float2 sum{prior.x + sums[j].x, prior.y + sums[j].y};
    const float2 read = !s.bonus ? sum
                        : j > 0  ? float2{prior.x + sums[j - 1].x, prior.y + sums[j - 1].y}
                                 : prior;
    float2 row{fast_exp2(read.x), fast_exp2(read.y)}, column{fast_exp2(-sum.x), fast_exp2(-sum.y)};
    if (kRows == Rows::queries) row = times(row, times(pair_at<T>(raw + l.q, at), {s.scale, s.scale}));
    if (kColumns != Columns::ones) column = times(column, pair_at<T>(raw + l.k, at));
    if (kColumns == Columns::written_keys && s.write.data)
      column = times(column, {scalars.write[t], scalars.write[t]});
    const auto put = [&](int tile, float2 x) {
      *reinterpret_cast<uint32_t*>(tiles + tile * kTile + at16(kWidth, t, channel)) = pack<T>(x.x, x.y);
    };
    put(0, column);
    put(kLevels, row);
    put(kLevels + 1, times(column, all));
  }
  if (part == 0) {
    float* decays = reinterpret_cast<float*>(stage + (kLevels + 2) * kTile * 2);
    *reinterpret_cast<float2*>(decays + channel) = all;
    if (kVanished) *reinterpret_cast<uint32_t*>(reinterpret_cast<uint16_t*>(decays + kWidth) + channel) = 0;
  }
  return true;
}

// kTogether: channels are gentle only if all are.
template <class T, int kWidth, Rows kRows, Columns kColumns, bool kVanished, bool kTogether>
__device__ __forceinline__ void decay_chunk(const Sweep& s, const Layout& l, const char* raw,
                                            const Scalars& scalars, int helper, char* stage) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (decay_gently<T, kWidth, kRows, kColumns, kVanished, kTogether>(s, l, raw, scalars, helper, stage))
      return;
  } else {
    if (threadIdx.x % 32 == 0) *gentle_at<kWidth>(stage, helper) = 0;
  }
  if (s.starts || s.write.data || s.bonus) {
    decay_channels<T, kWidth, kRows, kColumns, kVanished, false>(s, l, raw, scalars, helper, stage);
  } else {
    decay_channels<T, kWidth, kRows, kColumns, kVanished, true>(s, l, raw, scalars, helper, stage);
  }
}

}  // namespace weft::kernels::vector_decay
