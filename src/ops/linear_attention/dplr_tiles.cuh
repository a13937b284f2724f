// Tiles of linear attention with a diagonal plus low rank erase, in chunks of 16 tokens: vector_tiles.cuh with a second
// pair of rows and columns. Beside q, read after the token's own decay and writes, a token has the row a, read before
// them; beside k it has the column b. So q meets columns i <= r over the decays in (i, r], a meets i < r over (i, r).
#pragma once

#include <type_traits>

#include "ops/cuda/hopper.cuh"
#include "ops/linear_attention/dplr_sweep.cuh"

namespace weft::kernels::low_rank {

// Sums of x[0..7] over eight neighbouring lanes: lane l gets that of x[l % 8].
__device__ __forceinline__ float sum_of_eight(const float (&x)[8]) {
  const int lane = threadIdx.x;
  float half[4], quarter[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float mine = lane & 4 ? x[i + 4] : x[i], theirs = lane & 4 ? x[i] : x[i + 4];
    half[i] = mine + __shfl_xor_sync(0xffffffff, theirs, 4);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float mine = lane & 2 ? half[i + 2] : half[i], theirs = lane & 2 ? half[i] : half[i + 2];
    quarter[i] = mine + __shfl_xor_sync(0xffffffff, theirs, 2);
  }
  const float mine = lane & 1 ? quarter[1] : quarter[0], theirs = lane & 1 ? quarter[0] : quarter[1];
  return mine + __shfl_xor_sync(0xffffffff, theirs, 1);
}

// Which side of the tiles has its inputs; the other has the decays alone.
enum class Sides { both, columns, rows };

// A chunk is gentle when the inverse of its decays can be had too. Its rows then have the decay from the chunk's begin on,
// its columns the inverse of that, and one product of tiles has all pairs; the other chunks have their pairs by levels.
// Behind `whole` [K] lies 1 for a gentle chunk, else 0.
constexpr int kKindFloats = 4;
template <int kKey>
__device__ __forceinline__ bool is_gentle(const float* whole) {
  return whole[kKey] != 0;
}

// Log2 of the least decay of a gentle chunk. With fp16 what is divided by it has to stay in range, too.
template <class T>
constexpr float kLeastLog2 = std::is_same_v<T, fp16> ? -12.f : -60.f;
constexpr float kLargestColumn = 32768;

// Barriers of the helping warps, from this number on, and one that tells whether `x` holds for any of their threads.
constexpr int kHelpersBarrier = 1;
template <int kThreads>
__device__ __forceinline__ bool any_helper(int barrier, bool x) {
  uint32_t any;
  asm volatile(
      "{\n.reg .pred p, q;\nsetp.ne.u32 p, %1, 0;\nbar.red.or.pred q, %2, %3, p;\nselp.u32 %0, 1, 0, q;\n}"
      : "=r"(any)
      : "r"(static_cast<uint32_t>(x)), "r"(barrier), "n"(kThreads)
      : "memory");
  return any != 0;
}

__device__ __forceinline__ float2 exp2_of(float2 x) { return {fast_exp2(x.x), fast_exp2(x.y)}; }

// A chunk's inputs as a lane of ChunkDecays has them: two channels of four tokens.
template <class T, int kKey, Sides kSides>
struct LaneInputs {
  const Sweep& s;
  const Erase& e;
  const T* raw;
  const char* gates;
  const TokenScalars& scalars;
  bool written;
  int part, channel;

  __device__ __forceinline__ int at(int j) const { return at16(kKey, 4 * part + j, channel); }
  __device__ __forceinline__ bool starts(int j) const { return scalars.start[4 * part + j] != 0; }
  __device__ __forceinline__ float2 log2_decay(int j) const {
    const int t = 4 * part + j;
    float2 g{scalars.gate[t], scalars.gate[t]};
    if (e.decay == Decay::vector)
      g = s.log_decay.type == CudaType::fp32
              ? *reinterpret_cast<const float2*>(gates + at32(kKey, t, channel) * 4)
              : pair_at<T>(gates, at(j));
    return {g.x * kLog2e, g.y * kLog2e};
  }
  __device__ __forceinline__ float2 q(int j) const {
    if (kSides == Sides::columns) return {1, 1};
    return times(pair_at<T>(raw, at(j)), {s.scale, s.scale});
  }
  __device__ __forceinline__ float2 a(int j) const {
    return kSides == Sides::columns ? float2{1, 1} : pair_at<T>(raw + 2 * kChunk * kKey, at(j));
  }
  __device__ __forceinline__ float2 k(int j) const {
    if (kSides == Sides::rows) return {1, 1};
    const float w = written ? scalars.write[4 * part + j] : 1.f;
    return times(pair_at<T>(raw + kChunk * kKey, at(j)), {w, w});
  }
  __device__ __forceinline__ float2 b(int j) const {
    return kSides == Sides::rows ? float2{1, 1} : pair_at<T>(raw + 3 * kChunk * kKey, at(j));
  }
  __device__ __forceinline__ void put(T* tile, int j, float2 x) const {
    *reinterpret_cast<uint32_t*>(tile + at(j)) = pack<T>(x.x, x.y);
  }
  __device__ __forceinline__ Products products() const {
    Products d;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float keep = starts(j) ? 0.f : 1.f;
      d.kept[j] = {keep, keep}, d.decay[j] = times(d.kept[j], exp2_of(log2_decay(j)));
    }
    d.multiply();
    return d;
  }
};

// Sums of log2 decays from the chunk's first token on: up to the four of a lane, up to each of them, and of all.
struct LogSums {
  float2 before, up[4], all;

  __device__ __forceinline__ void add() {
    const int lane = threadIdx.x % 32, part = lane / 8;
#pragma unroll
    for (int j = 1; j < 4; ++j) up[j].x += up[j - 1].x, up[j].y += up[j - 1].y;
    before.x = scan(up[3].x, part, all.x), before.y = scan(up[3].y, part, all.y);
#pragma unroll
    for (int j = 0; j < 4; ++j) up[j].x += before.x, up[j].y += before.y;
  }

 private:
  __device__ __forceinline__ static float scan(float x, int part, float& all) {
#pragma unroll
    for (int step = 8; step < 32; step *= 2) {
      const float other = __shfl_up_sync(0xffffffff, x, step);
      if (part * 8 >= step) x += other;
    }
    all = __shfl_sync(0xffffffff, x, 24 + threadIdx.x % 8);
    const float other = __shfl_up_sync(0xffffffff, x, 8);
    return part ? other : 0.f;
  }
};

// Whether a lane's channels let the chunk be gentle.
template <class T, int kKey, Sides kSides>
__device__ __forceinline__ bool lets_be_gentle(const LaneInputs<T, kKey, kSides>& in, float2 all) {
  bool gentle = all.x > kLeastLog2<T> && all.y > kLeastLog2<T>;
#pragma unroll
  for (int j = 0; j < 4; ++j) gentle = gentle && !in.starts(j);
  if constexpr (std::is_same_v<T, fp16> && kSides != Sides::rows) {
    const float2 inverse = exp2_of({-all.x, -all.y});
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 k = times(in.k(j), inverse), b = times(in.b(j), inverse);
      gentle = gentle && fmaxf(fabsf(k.x), fabsf(k.y)) < kLargestColumn &&
               fmaxf(fabsf(b.x), fabsf(b.y)) < kLargestColumn;
    }
  }
  return gentle;
}

// What a lane decays of a gentle chunk.
template <class T, int kKey, Sides kSides>
__device__ __forceinline__ void decay_gently(const LaneInputs<T, kKey, kSides>& in, const LogSums& sums,
                                             T* ends, float* whole, uint16_t* vanished) {
  constexpr int kTile = kChunk * kKey;
  float2 before = exp2_of(sums.before);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 up = exp2_of(sums.up[j]), inverse = exp2_of({-sums.up[j].x, -sums.up[j].y});
    in.put(ends, j, times(in.q(j), up));
    in.put(ends + kTile, j, times(in.a(j), before));
    in.put(ends + 2 * kTile, j, times(in.k(j), inverse));
    if (kSides != Sides::rows) in.put(ends + 3 * kTile, j, times(in.b(j), inverse));
    before = up;
  }
  if (in.part != 0) return;
  *reinterpret_cast<float2*>(whole + in.channel) = exp2_of(sums.all);
  if (vanished) *reinterpret_cast<uint32_t*>(vanished + in.channel) = 0;
}

// Of any other chunk: rows times the decay from its begin on and columns times the decay up to its end,
template <class T, int kKey, Sides kSides>
__device__ __forceinline__ void decay_ends(const LaneInputs<T, kKey, kSides>& in, T* ends, float* whole,
                                           uint16_t* vanished, float* diagonal) {
  constexpr int kTile = kChunk * kKey;
  const Products d = in.products();
  float dots[8];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 q = in.q(j), k = in.k(j), b = in.b(j);
    in.put(ends, j, times(q, times(d.up[j], d.prior)));
    in.put(ends + kTile, j, times(in.a(j), times(d.before[j], d.prior)));
    in.put(ends + 2 * kTile, j, times(k, times(d.down[j], d.later)));
    if (kSides != Sides::rows) in.put(ends + 3 * kTile, j, times(b, times(d.down[j], d.later)));
    dots[j] = q.x * k.x + q.y * k.y, dots[j + 4] = q.x * b.x + q.y * b.y;
  }
  if (in.part == 0) *reinterpret_cast<float2*>(whole + in.channel) = d.all;
  if (vanished) {
    const uint32_t bits = d.vanished();
    if (in.part == 0) *reinterpret_cast<uint32_t*>(vanished + in.channel) = bits;
  }
  const int lane = threadIdx.x % 32;
  if (diagonal) diagonal[lane / 4 % 2 * kChunk + 4 * in.part + lane % 4] = sum_of_eight(dots);
}

// and a level of its pairs.
template <class T, int kKey, Sides kSides>
__device__ __forceinline__ void decay_level(const LaneInputs<T, kKey, kSides>& in, int level, T* qk, T* ab) {
  const Products d = in.products();
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const auto put = [&](T* tile, float2 row, float2 column, float2 up, float2 own, float2 both) {
      float2 of_row = own, of_column{1, 1};
      bool is_row = j & 1;
      if (level == 1)
        of_row = j == 3 ? both : own, of_column = j == 0 ? d.decay[1] : of_column, is_row = j & 2;
      if (level == 2) of_row = up, of_column = d.down[j], is_row = in.part & 1;
      if (level == 3) of_row = times(up, d.edge), of_column = times(d.down[j], d.edge), is_row = in.part & 2;
      in.put(tile, j, times(select(is_row, row, column), select(is_row, of_row, of_column)));
    };
    put(qk, in.q(j), in.k(j), d.up[j], d.decay[j], times(d.decay[2], d.decay[3]));
    put(ab, in.a(j), in.b(j), d.before[j], d.kept[j], times(d.decay[2], d.kept[3]));
  }
}

// Decays a chunk by kWarps helping warps, `helper` one of them, each 16 channels at a time; lanes 8 apart have the next
// four tokens. `keys` has tiles of q, k, a, b. `ends` gets rows of q and a, then columns of k and b (with Sides::rows one
// tile for both), `whole` [K] the decay of the whole chunk. Not wanted when null: `vanished` [K] a bit for every token
// whose decay is zero, `diagonal` [K / 16, 2, 16] the parts of scale q.k and scale q.b, which a gentle chunk has not.
// They meet at `barrier`.
template <class T, int kKey, int kWarps, Sides kSides>
struct ChunkDecays {
  const Sweep& s;
  const Erase& e;
  const char *keys, *gates;
  const TokenScalars& scalars;
  bool written;
  int helper;

  static constexpr int kSlices = kKey / 16 / kWarps;
  __device__ __forceinline__ LaneInputs<T, kKey, kSides> inputs(int slice) const {
    const int lane = threadIdx.x % 32, channel = (helper + slice * kWarps) * 16 + 2 * (lane % 8);
    return {s, e, reinterpret_cast<const T*>(keys), gates, scalars, written, lane / 8, channel};
  }
  // Tells whether the chunk is gentle.
  __device__ __forceinline__ bool ends(int barrier, T* ends, float* whole, uint16_t* vanished,
                                       float* diagonal) const {
    LogSums sums[kSlices];
    bool gentle = true;
#pragma unroll
    for (int slice = 0; slice < kSlices; ++slice) {
      const auto in = inputs(slice);
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[slice].up[j] = in.log2_decay(j);
      sums[slice].add();
      gentle = gentle && lets_be_gentle(in, sums[slice].all);
    }
    gentle = !any_helper<kWarps * 32>(barrier, !gentle);
    if (helper == 0 && threadIdx.x % 32 == 0) whole[kKey] = gentle ? 1.f : 0.f;
    if (gentle) {
#pragma unroll
      for (int slice = 0; slice < kSlices; ++slice)
        decay_gently(inputs(slice), sums[slice], ends, whole, vanished);
      return true;
    }
#pragma unroll 1
    for (int slice = 0; slice < kSlices; ++slice)
      decay_ends(inputs(slice), ends, whole, vanished,
                 diagonal ? diagonal + (helper + slice * kWarps) * 2 * kChunk : nullptr);
    return false;
  }
  // The tiles of a level of q with k and of a with b.
  __device__ __forceinline__ void level(int level, T* qk, T* ab) const {
#pragma unroll 1
    for (int slice = 0; slice < kSlices; ++slice) decay_level(inputs(slice), level, qk, ab);
  }
};

}  // namespace weft::kernels::low_rank
