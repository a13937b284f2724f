// Tiles of linear attention with a diagonal plus low rank erase, in chunks of 16 tokens: vector_tiles.cuh with a second
// pair of rows and columns. Beside q, read after the token's own decay and writes, a token has the row a, read before
// them; beside k it has the column b. So q meets columns i <= r over the decays in (i, r], a meets i < r over (i, r).
#pragma once

#include <type_traits>

#include "ops/cuda/hopper.cuh"
#include "ops/linear_attention/dplr_documents.cuh"
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

// state = 0
template <int kSize>
__device__ __forceinline__ void clear_state(float (&state)[kSize][4]) {
#pragma unroll
  for (int n = 0; n < kSize; ++n) state[n][0] = state[n][1] = state[n][2] = state[n][3] = 0;
}

// Which side of the tiles has its inputs; the other has the decays alone.
enum class Sides { both, columns, rows };

// A chunk is gentle when the inverse of its decays can be had too. Its rows then have the decay from a token of reference on,
// its columns the inverse of that, and one product of tiles has all pairs; the other chunks have their pairs by levels. The
// reference is the chunk's begin or, where decays are too strong for that, its middle. The state takes the decay up to the
// reference before it meets the tiles and the rest behind. Documents are masks then, and their first tokens decay nothing.
// Behind what the state takes last, `whole` [K], lies what it takes first [K] (only with kFromMiddle) and the chunk's mark.
constexpr int kMarkFloats = 4;
template <int kKey>
__device__ __forceinline__ uint32_t* mark_at(float* whole) {
  return reinterpret_cast<uint32_t*>(whole + 2 * kKey);
}
template <int kKey>
__device__ __forceinline__ uint32_t mark_of(const float* whole) {
  return *reinterpret_cast<const uint32_t*>(whole + 2 * kKey);
}

// Log2 of the least decay of a gentle chunk, and of its halves where the middle is the reference. With fp16 what is divided by
// it has to stay in range, too.
template <class T>
constexpr float kLeastLog2 = std::is_same_v<T, fp16> ? -12.f : -60.f;
template <class T>
constexpr float kLeastHalfLog2 = std::is_same_v<T, fp16> ? -12.f : -90.f;
constexpr float kLargest = 32768;

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
__device__ __forceinline__ bool stays(float2 x) { return fmaxf(fabsf(x.x), fabsf(x.y)) < kLargest; }

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
  // Of the four tokens; a document's first token decays nothing.
  __device__ __forceinline__ void log2_decays(float2 (&g)[4]) const {
    if (e.decay != Decay::vector) {
#pragma unroll
      for (int j = 0; j < 4; ++j) g[j].x = g[j].y = scalars.gate[4 * part + j];
    } else if (s.log_decay.type == CudaType::fp32) {
#pragma unroll
      for (int j = 0; j < 4; ++j)
        g[j] = *reinterpret_cast<const float2*>(gates + at32(kKey, 4 * part + j, channel) * 4);
    } else {
#pragma unroll
      for (int j = 0; j < 4; ++j) g[j] = pair_at<T>(gates, at(j));
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) g[j].x *= kLog2e, g[j].y *= kLog2e;
    if (!s.starts) return;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (starts(j)) g[j] = {0, 0};
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
    const float2 k = pair_at<T>(raw + kChunk * kKey, at(j));
    if (!written) return k;
    const float w = scalars.write[4 * part + j];
    return times(k, {w, w});
  }
  __device__ __forceinline__ float2 b(int j) const {
    return kSides == Sides::rows ? float2{1, 1} : pair_at<T>(raw + 3 * kChunk * kKey, at(j));
  }
  __device__ __forceinline__ void put(T* tile, int j, float2 x) const {
    *reinterpret_cast<uint32_t*>(tile + at(j)) = pack<T>(x.x, x.y);
  }
  __device__ __forceinline__ Products products() const {
    Products d;
    float2 g[4];
    log2_decays(g);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float keep = starts(j) ? 0.f : 1.f;
      d.kept[j] = {keep, keep}, d.decay[j] = times(d.kept[j], exp2_of(g[j]));
    }
    d.multiply();
    return d;
  }
};

// Sums of log2 decays from the chunk's first token on: up to the four of a lane, up to each of them, and of all.
struct LogSums {
  float2 before, up[4], all;

  __device__ __forceinline__ float2 first_half() const {
    const int lane = threadIdx.x % 8 + 16;
    return {__shfl_sync(0xffffffff, before.x, lane), __shfl_sync(0xffffffff, before.y, lane)};
  }

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

__device__ __forceinline__ bool is_above(float least, float2 x) { return x.x > least && x.y > least; }

// Whether a lane's channels let the chunk be gentle, with all log2 decays from its begin on,
template <class T, int kKey, Sides kSides>
__device__ __forceinline__ bool lets_be_gentle(const LaneInputs<T, kKey, kSides>& in, float2 all) {
  bool gentle = is_above(kLeastLog2<T>, all);
  if constexpr (std::is_same_v<T, fp16> && kSides != Sides::rows) {
    const float2 inverse = exp2_of({-all.x, -all.y});
#pragma unroll
    for (int j = 0; j < 4; ++j)
      gentle = gentle && stays(times(in.k(j), inverse)) && stays(times(in.b(j), inverse));
  }
  return gentle;
}
// or those of its halves.
template <class T, int kKey, Sides kSides>
__device__ __forceinline__ bool lets_halves_be_gentle(const LaneInputs<T, kKey, kSides>& in, float2 all,
                                                      float2 half) {
  const float2 other{all.x - half.x, all.y - half.y};
  bool gentle = is_above(kLeastHalfLog2<T>, half) && is_above(kLeastHalfLog2<T>, other);
  if constexpr (std::is_same_v<T, fp16>) {
    const float2 of_rows = exp2_of({-half.x, -half.y}), of_columns = exp2_of({-other.x, -other.y});
#pragma unroll
    for (int j = 0; j < 4; ++j)
      gentle = gentle && stays(times(in.q(j), of_rows)) && stays(times(in.a(j), of_rows)) &&
               stays(times(in.k(j), of_columns)) && stays(times(in.b(j), of_columns));
  }
  return gentle;
}

// What a lane decays of a gentle chunk with its mark; `half`: the sums of log2 decays up to the reference.
template <class T, int kKey, Sides kSides>
__device__ __forceinline__ void decay_gently(const LaneInputs<T, kKey, kSides>& in, const LogSums& sums,
                                             float2 half, uint32_t mark, T* ends, float* whole,
                                             uint16_t* vanished) {
  constexpr int kTile = kChunk * kKey;
  const auto decay = [&](float2 sum) { return exp2_of({sum.x - half.x, sum.y - half.y}); };
  float2 before = decay(sums.before);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 up = decay(sums.up[j]), inverse = exp2_of({half.x - sums.up[j].x, half.y - sums.up[j].y});
    in.put(ends, j, times(in.q(j), up));
    in.put(ends + kTile, j, times(in.a(j), before));
    in.put(ends + 2 * kTile, j, times(in.k(j), inverse));
    if (kSides != Sides::rows) in.put(ends + 3 * kTile, j, times(in.b(j), inverse));
    before = up;
  }
  if (in.part != 0) return;
  *reinterpret_cast<float2*>(whole + in.channel) = decay(sums.all);
  if (mark & kFromMiddle) *reinterpret_cast<float2*>(whole + kKey + in.channel) = exp2_of(half);
  if (vanished) *reinterpret_cast<uint32_t*>(vanished + in.channel) = starts_of(mark) * 0x10001u;
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
// tile for both), `whole` [2 K] the decays that the state takes, and the mark. Not wanted when null: `vanished` [K] a bit for
// every token whose decay is zero, `diagonal` [K / 16, 2, 16] the parts of scale q.k and scale q.b, which a gentle chunk
// has not. They meet at `barrier`.
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
  // A bit for every token that begins a document.
  __device__ __forceinline__ uint32_t starts() const {
    return s.starts ? __ballot_sync(0xffffffff, scalars.start[threadIdx.x % kChunk] != 0) & 0xffff : 0;
  }
  // Decays slices from kBegin up to kEnd as those of a gentle chunk; tells whether they let it have that mark.
  template <int kBegin = 0, int kEnd = kSlices>
  __device__ __forceinline__ bool try_gently(uint32_t mark, T* ends, float* whole, uint16_t* vanished) const {
    constexpr int kTogether = kEnd - kBegin <= 2 ? kEnd - kBegin : 1;  // else registers are short
    bool gentle = true;
#pragma unroll(kTogether)
    for (int slice = kBegin; slice < kEnd; ++slice) {
      const auto in = inputs(slice);
      LogSums sums;
      in.log2_decays(sums.up);
      sums.add();
      const float2 half = mark & kFromMiddle ? sums.first_half() : float2{0, 0};
      const bool fits =
          mark & kFromMiddle ? lets_halves_be_gentle(in, sums.all, half) : lets_be_gentle(in, sums.all);
      gentle = gentle && fits;
      decay_gently(in, sums, half, mark, ends, whole, vanished);
    }
    return gentle;
  }
  __device__ __forceinline__ void ends(int barrier, T* ends, float* whole, uint16_t* vanished,
                                       float* diagonal) const {
    const uint32_t gentle = kGentle | starts();
    if (any_helper<kWarps * 32>(barrier, !try_gently(gentle, ends, whole, vanished))) {
      ends_of_strong(barrier, ends, whole, vanished, diagonal);
    } else {
      set_mark(whole, gentle);
    }
  }
  // Of a chunk whose decays are too strong for the begin to be the reference.
  __device__ __forceinline__ void ends_of_strong(int barrier, T* ends, float* whole, uint16_t* vanished,
                                                 float* diagonal) const {
    const uint32_t gentle = kGentle | kFromMiddle | starts();
    if (!any_helper<kWarps * 32>(barrier, !try_gently(gentle, ends, whole, vanished))) {
      set_mark(whole, gentle);
      return;
    }
    set_mark(whole, 0);
#pragma unroll 1
    for (int slice = 0; slice < kSlices; ++slice)
      decay_ends(inputs(slice), ends, whole, vanished,
                 diagonal ? diagonal + (helper + slice * kWarps) * 2 * kChunk : nullptr);
  }
  __device__ __forceinline__ void set_mark(float* whole, uint32_t mark) const {
    if (helper == 0 && threadIdx.x % 32 == 0) *mark_at<kKey>(whole) = mark;
  }
  // The tiles of a level of q with k and of a with b.
  __device__ __forceinline__ void level(int level, T* qk, T* ab) const {
#pragma unroll 1
    for (int slice = 0; slice < kSlices; ++slice) decay_level(inputs(slice), level, qk, ab);
  }
};

}  // namespace weft::kernels::low_rank
