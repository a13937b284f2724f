// The sweep whose warps own value channels (dplr_values.cuh): its block, and the pairs of a chunk that helping warps form.
#pragma once

#include "ops/linear_attention/dplr_tiles.cuh"

namespace weft::kernels::low_rank {

// Where those that help and the others meet, beside those that help alone.
constexpr int kSharedBarrier = kHelpersBarrier + 2;
constexpr int kInverseRow = 20;
enum PairKind { kPairsQK, kPairsQB, kPairsAK, kInverse, kPairKinds };

// Warps of a block: those that own values and groups of those that help. One group makes the decayed tiles of a chunk and
// its pairs while the others are at the chunk before; two take turns, one at the tiles of a chunk, one at the pairs of
// the chunk before that: for blocks that have a multiprocessor for themselves. With transitions as many warps as key
// channels ask for follow a segment's transition. Registers move between the warps.
template <int kKey, int kValue, int kHelpingGroups, bool kHasTransitions = false>
struct ValueWarps {
  static constexpr bool kTransitions = kHasTransitions;
  // Most registers are for the state; those that own values make half of the decayed tiles.
  static constexpr bool kShares = kKey == 256 && kValue == 128;
  static constexpr int kGroups = kHelpingGroups, kOwn = (kValue + (kTransitions ? kKey : 0)) / 16,
                       kHelp = kShares         ? 4
                               : kKey / 16 < 8 ? kKey / 16
                                               : 8;
  static constexpr int kThreads = 32 * (kOwn + kGroups * kHelp), kBlocks = kGroups == 1 && kKey == 64 ? 2 : 1;
  static constexpr bool kMoves = kGroups == 1 || kKey == 128;
  static constexpr int kOwnRegisters = kShares ? 216 : kKey == 256 ? 232 : 152;
  static constexpr int kHelpRegisters = kShares ? 72 : kKey == 256 ? 136 : kGroups == 1 ? 104 : 80;
};

// Offsets in bytes. Inputs of chunks come kAhead steps before helping warps read them.
template <class Warps, int kKey, int kValue, bool kReverse>
struct ValuesLayout {
  static constexpr int kKeyTile = kChunk * kKey * 2, kValueTile = kChunk * kValue * 2, kOwn = kValue / 16,
                       kGroups = Warps::kGroups, kAhead = kKey == 256 ? 1 : 2, kKeyRing = kGroups + kAhead,
                       kEndRing = kGroups + 1, kValueRing = kGroups + kAhead + 1;
  static constexpr int kKeyBytes = 4 * kKeyTile, kGateBytes = 2 * kKeyTile,
                       kEndBytes = 4 * kKeyTile + kKey * 8 + 256,
                       kValueBytes = (kReverse ? 2 : 1) * kValueTile,
                       kPairBytes = kPairKinds * kChunk * kPairRow * 2,
                       kSystemBytes = 2 * kChunk * kInverseRow * 4,
                       kDiagonalBytes = kKey / 16 * 2 * kChunk * 4;
  static constexpr int kKeys = 0, kGates = kKeys + kKeyRing * kKeyBytes,
                       kEnds = kGates + kKeyRing * kGateBytes, kLevelTiles = kEnds + kEndRing * kEndBytes,
                       kValues = kLevelTiles + kGroups * 2 * kKeyTile,
                       kPairs = kValues + kValueRing * kValueBytes, kSystem = kPairs + 2 * kPairBytes,
                       kDiagonal = kSystem + kGroups * kSystemBytes,
                       kOut = kDiagonal + kGroups * kDiagonalBytes, kSums = kOut + Warps::kOwn * 512,
                       kScalars = kSums + 2 * kOwn * kChunk * 4,
                       kVotes = kScalars + kNumberRing * static_cast<int>(sizeof(TokenScalars)),
                       kBytes = kVotes + (Warps::kShares ? 64 : 0);
};

// sums += rows of a tile with columns of another, of one level; `corner`: only rows 8 to 15 with columns 0 to 7.
template <class T>
__device__ __forceinline__ void multiply_tiles(const uint32_t (&a)[4], const uint32_t (&b)[4], bool corner,
                                               float (&sums)[2][4]) {
  multiply_add<T>(sums[0], a, b[0], b[2]);
  if (!corner) multiply_add<T>(sums[1], a, b[1], b[3]);
}

// body(row, column, n, i) for the pairs of a level that a lane has in sums[n][i].
template <class Body>
__device__ __forceinline__ void for_each_of_level(int level, const Body& body) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = n * 8 + lane % 4 * 2 + i % 2;
      if (level_of(row, column) == level) body(row, column, n, i);
    }
}

// One level of the pairs of q, or of a with k, by one warp.
template <class T, int kKey>
__device__ __forceinline__ void form_level(const T* qk, const T* ab, int level, bool of_q, T* pairs) {
  const int2 at = rows_first(threadIdx.x % 32);
  float with_k[2][4] = {}, with_b[2][4] = {};
#pragma unroll
  for (int i = 0; i < kKey; i += 16) {
    uint32_t x[4], y[4];
    load_matrices(x, qk + at16(kKey, at.x, i + at.y));
    load_matrices(y, ab + at16(kKey, at.x, i + at.y));
    if (of_q) {
      multiply_tiles<T>(x, x, level == 3, with_k);
      multiply_tiles<T>(x, y, level == 3, with_b);
    } else {
      multiply_tiles<T>(y, x, level == 3, with_k);
    }
  }
  T* to = pairs + (of_q ? kPairsQK : kPairsAK) * kChunk * kPairRow;
  T* to_b = pairs + kPairsQB * kChunk * kPairRow;
  for_each_of_level(level, [&](int row, int column, int n, int i) {
    to[row * kPairRow + column] = from_float<T>(with_k[n][i]);
    if (of_q) to_b[row * kPairRow + column] = from_float<T>(with_b[n][i]);
  });
}

// The inverse (I - AB)^-1 by one warp: of its two 8 by 8 blocks on the diagonal, a column a lane, then of the one below
// them. `system` has AB in its first 16 rows; 16 more are scratch.
template <class T>
__device__ __forceinline__ void invert(float* system, T* inverse) {
  constexpr int kHalf = kChunk / 2;
  const int lane = threadIdx.x % 32, column = lane % kHalf, group = lane / kHalf, block = group % 2 * kHalf;
  float* solved = system + kChunk * kInverseRow;
  const auto four = [](const float* from) { return *reinterpret_cast<const float4*>(from); };
  float x[kHalf];
#pragma unroll
  for (int row = 0; row < kHalf; ++row) {
    const float* ab = system + (block + row) * kInverseRow + block;
    const float4 low = four(ab), high = four(ab + 4);
    const float entries[] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    x[row] = row == column ? 1.f : 0.f;
#pragma unroll
    for (int i = 0; i < row; ++i) x[row] += entries[i] * x[i];
    if (group < 2) {
      solved[(block + row) * kInverseRow + column] = x[row];
      inverse[(block + row) * kPairRow + block + column] = from_float<T>(x[row]);
    }
  }
  __syncwarp();
  // Two rows of left [8, 8] times right [8, 8].
  const auto multiply = [&](const float* left, const float* right, float(&sums)[2]) {
    float entries[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) entries[i] = right[i * kInverseRow + column];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float4 low = four(left + (2 * group + j) * kInverseRow),
                   high = four(left + (2 * group + j) * kInverseRow + 4);
      sums[j] = (low.x * entries[0] + low.y * entries[1]) + (low.z * entries[2] + low.w * entries[3]) +
                ((high.x * entries[4] + high.y * entries[5]) + (high.z * entries[6] + high.w * entries[7]));
    }
  };
  float sums[2];
  multiply(system + kHalf * kInverseRow, solved, sums);
#pragma unroll
  for (int j = 0; j < 2; ++j) solved[(2 * group + j) * kInverseRow + kHalf + column] = sums[j];
  __syncwarp();
  multiply(solved + kHalf * kInverseRow, solved + kHalf, sums);
#pragma unroll
  for (int j = 0; j < 2; ++j) inverse[(kHalf + 2 * group + j) * kPairRow + column] = from_float<T>(sums[j]);
}

// The pairs of a gentle chunk's rows and columns by one warp: body(row, column, x), x of that column and the next, zero
// where the column does not come before the row (or is it, with the diagonal) or is of another document.
template <class T, int kKey, class Body>
__device__ __forceinline__ void for_gentle_pairs(const T* rows, const T* columns, uint32_t starts,
                                                 bool diagonal, const Body& body) {
  const int lane = threadIdx.x % 32;
  const int2 at = rows_first(lane);
  float sums[2][4] = {}, second[2][4] = {};  // two chains
#pragma unroll
  for (int i = 0; i < kKey; i += 16) {
    uint32_t a[4], b[4];
    load_matrices(a, rows + at16(kKey, at.x, i + at.y));
    load_matrices(b, columns + at16(kKey, at.x, i + at.y));
    multiply_tiles<T>(a, b, false, i % 32 ? second : sums);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[i / 4][i % 4] += second[i / 4][i % 4];
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int half = n; half < 2; ++half) {
      const int row = lane / 4 + half * 8, column = n * 8 + lane % 4 * 2, last = diagonal ? row : row - 1;
      const int begin = starts ? begin_of(starts, row) : 0;
      body(row, column,
           float2{column >= begin && column <= last ? sums[n][2 * half] : 0.f,
                  column + 1 >= begin && column < last ? sums[n][2 * half + 1] : 0.f});
    }
}
template <class T, int kKey>
__device__ __forceinline__ void form_gentle(const T* rows, const T* columns, uint32_t starts, bool diagonal,
                                            T* pairs) {
  for_gentle_pairs<T, kKey>(rows, columns, starts, diagonal, [&](int row, int column, float2 x) {
    *reinterpret_cast<uint32_t*>(pairs + row * kPairRow + column) = pack<T>(x.x, x.y);
  });
}
template <class T, int kKey>
__device__ __forceinline__ void form_gentle_inverse(const T* ends, uint32_t starts, float* system,
                                                    T* inverse) {
  constexpr int kTile = kChunk * kKey;
  for_gentle_pairs<T, kKey>(ends + kTile, ends + 3 * kTile, starts, false,
                            [&](int row, int column, float2 x) {
                              *reinterpret_cast<float2*>(system + row * kInverseRow + column) = x;
                            });
  __syncwarp();
  invert<T>(system, inverse);
}

// A level of AB, by one warp.
template <class T, int kKey>
__device__ __forceinline__ void form_system(const T* ab, int level, float* system) {
  const int2 at = rows_first(threadIdx.x % 32);
  float sums[2][4] = {};
#pragma unroll
  for (int i = 0; i < kKey; i += 16) {
    uint32_t y[4];
    load_matrices(y, ab + at16(kKey, at.x, i + at.y));
    multiply_tiles<T>(y, y, level == 3, sums);
  }
  for_each_of_level(
      level, [&](int row, int column, int n, int i) { system[row * kInverseRow + column] = sums[n][i]; });
}

// The diagonals of QK and QB from the parts of every 16 channels, by one warp.
template <class T, int kKey>
__device__ __forceinline__ void form_diagonal(const float* parts, T* pairs) {
  const int lane = threadIdx.x % 32, token = lane % kChunk;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kKey / 16; ++i) sum += parts[i * 2 * kChunk + lane];
  pairs[(lane < kChunk ? kPairsQK : kPairsQB) * kChunk * kPairRow + token * kPairRow + token] =
      from_float<T>(sum);
}

// What helping warps make of a chunk.
template <class T, int kKey, int kValue, bool kReverse, class Warps>
struct ValuePreparation {
  using L = ValuesLayout<Warps, kKey, kValue, kReverse>;
  static constexpr int kTile = kChunk * kKey, kPairs = kChunk * kPairRow, kThreads = Warps::kHelp * 32;
  const Sweep& s;
  const Erase& e;
  char* shared;
  bool only_state;
  int step, group, helper;

  __device__ __forceinline__ ChunkDecays<T, kKey, Warps::kHelp, Sides::both> decays() const {
    return {s,
            e,
            shared + L::kKeys + step % L::kKeyRing * L::kKeyBytes,
            shared + L::kGates + step % L::kKeyRing * L::kGateBytes,
            reinterpret_cast<const TokenScalars*>(shared + L::kScalars)[step % kNumberRing],
            !kReverse && s.write.data,
            helper};
  }
  __device__ __forceinline__ T* ends() const {
    return reinterpret_cast<T*>(shared + L::kEnds + step % L::kEndRing * L::kEndBytes);
  }
  __device__ __forceinline__ float* whole() const { return reinterpret_cast<float*>(ends() + 4 * kTile); }
  __device__ __forceinline__ float* diagonal() const {
    return reinterpret_cast<float*>(shared + L::kDiagonal + group * L::kDiagonalBytes);
  }
  __device__ __forceinline__ void meet() const { named_barrier(kHelpersBarrier + group, kThreads); }

  __device__ __forceinline__ void make_tiles() const {
    if constexpr (!Warps::kShares) {
      decays().ends(kHelpersBarrier + group, ends(), whole(), nullptr, diagonal());
    } else {
      const auto decay = decays();
      const uint32_t mark = kGentle | decay.starts();
      vote(Warps::kOwn + helper,
           decay.template try_gently<0, decay.kSlices / 2>(mark, ends(), whole(), nullptr));
      named_barrier(kSharedBarrier, Warps::kThreads);
      const int lane = threadIdx.x % 32;
      if (__all_sync(0xffffffff, lane >= Warps::kThreads / 32 || votes()[lane])) {
        decay.set_mark(whole(), mark);
      } else {
        decay.ends_of_strong(kHelpersBarrier + group, ends(), whole(), nullptr, diagonal());
      }
    }
  }
  // The tiles' other half, 16 channels by each warp that owns values, which then does not wait for the others.
  // `helper` is kKey / 32 more than the warp.
  __device__ __forceinline__ void share_tiles() const {
    const auto decay = decays();
    vote(helper - kKey / 32,
         decay.template try_gently<0, 1>(kGentle | decay.starts(), ends(), whole(), nullptr));
    named_barrier_arrive(kSharedBarrier, Warps::kThreads);
  }
  // After a barrier.
  __device__ __forceinline__ void make_pairs() const {
    T* pairs = reinterpret_cast<T*>(shared + L::kPairs + step % 2 * L::kPairBytes);
    auto* system = reinterpret_cast<float*>(shared + L::kSystem + group * L::kSystemBytes);
    const bool of_q = !only_state || kReverse;
    if (const uint32_t mark = mark_of<kKey>(whole())) {
      const T* tiles = ends();
      const uint32_t starts = starts_of(mark);
      if (helper == 0) form_gentle_inverse<T, kKey>(tiles, starts, system, pairs + kInverse * kPairs);
      if (helper == 1)
        form_gentle<T, kKey>(tiles + kTile, tiles + 2 * kTile, starts, false, pairs + kPairsAK * kPairs);
      if ((helper == 2 || helper == 3) && of_q)
        form_gentle<T, kKey>(tiles, tiles + helper * kTile, starts, true,
                             pairs + (helper == 2 ? kPairsQK : kPairsQB) * kPairs);
      return;
    }
    T *qk = reinterpret_cast<T*>(shared + L::kLevelTiles + group * 2 * L::kKeyTile), *ab = qk + kTile;
#pragma unroll 1
    for (int level = 0; level < kLevels; ++level) {
      decays().level(level, qk, ab);
      meet();
      if (helper == 0) form_system<T, kKey>(ab, level, system);
      if (helper == 1) form_level<T, kKey>(qk, ab, level, false, pairs);
      if (helper == 2 && of_q) form_level<T, kKey>(qk, ab, level, true, pairs);
      meet();
    }
    if (helper == 0) invert<T>(system, pairs + kInverse * kPairs);
    if (helper == 3) form_diagonal<T, kKey>(diagonal(), pairs);
  }

 private:
  // Of every warp: whether its channels let the chunk be gentle.
  __device__ __forceinline__ uint32_t* votes() const {
    return reinterpret_cast<uint32_t*>(shared + L::kVotes);
  }
  __device__ __forceinline__ void vote(int warp, bool gentle) const {
    gentle = __all_sync(0xffffffff, gentle);
    if (threadIdx.x % 32 == 0) votes()[warp] = gentle;
    __syncwarp();
  }
};

template <class T, int kKey, int kValue, bool kReverse, class Warps>
__device__ __forceinline__ void help_with_values(const Sweep& s, const Erase& e, char* shared,
                                                 bool only_state, int chunks, int helper) {
  using Preparation = ValuePreparation<T, kKey, kValue, kReverse, Warps>;
  const int group = helper / Warps::kHelp;
  helper %= Warps::kHelp;
  __syncthreads();
  for (int step = -Warps::kGroups; step < chunks; ++step) {
    if constexpr (Warps::kGroups == 1) {
      const Preparation next{s, e, shared, only_state, step + 1, group, helper};
      if (step + 1 < chunks) next.make_tiles(), next.meet(), next.make_pairs();
    } else {
      const bool tiles = step % 2 == group || step % 2 + 2 == group;
      const int at = tiles ? step + 2 : step + 1;
      const Preparation next{s, e, shared, only_state, at, group, helper};
      if (tiles && at < chunks) next.make_tiles();
      if (!tiles && at >= 0 && at < chunks) next.make_pairs();
    }
    __syncthreads();
  }
}

}  // namespace weft::kernels::low_rank
