// What a block of the scan works on, and how its warps pass on what they know. A block has a strip of channels and walks
// over tokens; in each step every warp holds a few tokens in registers, reduces them to one map h -> A h + H, and reads
// those of the other warps from shared memory.
#pragma once

#include <algorithm>

#include "ops/cuda/cluster.cuh"
#include "ops/scan/algebra.cuh"

namespace weft::kernels::strips {

constexpr int kWarps = 16, kThreads = 32 * kWarps;
// Tokens that a block takes in one step.
template <class Algebra>
constexpr int64_t kStep = int64_t{kWarps} * Algebra::kTokens;

// What a kernel does. Several blocks may share a sequence: in segments, one behind the other, of which a first kernel leaves
// the maps and a second starts from those before it; or in turns, step by step, as the blocks of a cluster.
enum class Pass { whole, maps, cluster };
constexpr int64_t kMostBlocks = 8;  // of a cluster

// A block's part of a sequence, `count` steps `stride` tokens apart, and the thread's channels.
struct Place {
  int64_t sequence, begin, end, stride, channel;
  int segment, segments, count;
};

template <class Algebra, Pass kPass>
__device__ __forceinline__ Place place_of(const CudaScan& p, int segments) {
  constexpr int64_t kLength = kStep<Algebra>;
  const int64_t strips = (p.channels + 32 * Algebra::kChannels - 1) / (32 * Algebra::kChannels);
  Place x;
  x.segments = segments;
  int64_t strip;
  if constexpr (kPass == Pass::cluster) {  // neighbouring blocks
    x.segment = static_cast<int>(blockIdx.x) % segments;
    strip = blockIdx.x / segments % strips;
    x.begin = x.segment * kLength, x.end = p.tokens, x.stride = segments * kLength;
    x.count = static_cast<int>((p.tokens + x.stride - 1) / x.stride);
  } else {
    strip = blockIdx.x % strips;
    x.segment = static_cast<int>(blockIdx.x / strips % segments);
    const int64_t steps = (p.tokens + kLength - 1) / kLength,
                  each = (steps + segments - 1) / segments * kLength;
    x.begin = min(x.segment * each, p.tokens), x.end = min(x.begin + each, p.tokens), x.stride = kLength;
    x.count = static_cast<int>((x.end - x.begin + kLength - 1) / kLength);
  }
  x.sequence = blockIdx.x / strips / segments;
  x.channel = (strip * 32 + threadIdx.x % 32) * Algebra::kChannels;
  return x;
}

// h -> A h + H, or H alone when a document starts inside.
template <class Algebra>
struct Map {
  float a[Algebra::kCoefficients], h[Algebra::kStates];
  bool fresh = false;

  __device__ Map() {
    Algebra::identity(a);
#pragma unroll
    for (float& x : h) x = 0.0f;
  }
  template <bool kAdjoint>
  __device__ __forceinline__ void apply(float (&carry)[Algebra::kStates]) const {
    float product[Algebra::kStates];
    if constexpr (kAdjoint)
      Algebra::multiply_adjoint(product, a, carry);
    else
      Algebra::multiply(product, a, carry);
#pragma unroll
    for (int i = 0; i < Algebra::kStates; ++i) carry[i] = fresh ? h[i] : product[i] + h[i];
  }
  // This map, then `next`.
  template <bool kAdjoint>
  __device__ __forceinline__ void append(const Map& next) {
    next.template apply<kAdjoint>(h);
    if constexpr (kAdjoint)
      Algebra::compose(a, a, next.a);
    else
      Algebra::compose(a, next.a, a);
    fresh = fresh || next.fresh;
  }
};

// A map of each lane in shared memory, a row a number.
template <class Algebra>
struct Slot {
  static constexpr int kNumbers = Algebra::kCoefficients + Algebra::kStates;
  float numbers[kNumbers][32];
  float fresh;

  __device__ void put(const Map<Algebra>& map) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < Algebra::kCoefficients; ++i) numbers[i][lane] = map.a[i];
#pragma unroll
    for (int i = 0; i < Algebra::kStates; ++i) numbers[Algebra::kCoefficients + i][lane] = map.h[i];
    if (lane == 0) fresh = map.fresh ? 1.0f : 0.0f;
  }
  // The same into the shared memory of block `rank` of the cluster.
  __device__ void send(const Map<Algebra>& map, uint32_t rank) {
    const int lane = threadIdx.x % 32;
    const uint32_t there = address_in(shared_address(&numbers[0][lane]), rank);
#pragma unroll
    for (int i = 0; i < Algebra::kCoefficients; ++i) store_in_cluster(there + i * 128, map.a[i]);
#pragma unroll
    for (int i = 0; i < Algebra::kStates; ++i)
      store_in_cluster(there + (Algebra::kCoefficients + i) * 128, map.h[i]);
    if (lane == 0) store_in_cluster(address_in(shared_address(&fresh), rank), map.fresh ? 1.0f : 0.0f);
  }
  __device__ Map<Algebra> get() const {
    const int lane = threadIdx.x % 32;
    Map<Algebra> map;
#pragma unroll
    for (int i = 0; i < Algebra::kCoefficients; ++i) map.a[i] = numbers[i][lane];
#pragma unroll
    for (int i = 0; i < Algebra::kStates; ++i) map.h[i] = numbers[Algebra::kCoefficients + i][lane];
    map.fresh = fresh != 0.0f;
    return map;
  }
};

// The maps of the warps of a block, and in a cluster of groups of them and of its blocks. One set of the first is enough when
// a barrier of the cluster lies between two steps.
template <class Algebra, Pass kPass>
struct Exchange {
  static constexpr bool kCluster = kPass == Pass::cluster;
  static constexpr int kGroup = 4, kGroups = kWarps / kGroup;
  Slot<Algebra> warps[kCluster ? 1 : 2][kWarps];
  Slot<Algebra> groups[kCluster ? kGroups : 1];
  Slot<Algebra> blocks[2][kCluster ? kMostBlocks : 1];

  // Of `count`, the one that comes i-th.
  template <bool kAdjoint>
  static __device__ __forceinline__ int nth(int i, int count) {
    return kAdjoint ? count - 1 - i : i;
  }
  // The map of the block, and of what comes before the warp in it.
  template <bool kAdjoint>
  __device__ __forceinline__ void join(Map<Algebra>& before, Map<Algebra>& block) {
    const int warp = threadIdx.x / 32, group = warp / kGroup;
    const auto near = [&](int i) { return warps[0][group * kGroup + nth<kAdjoint>(i, kGroup)].get(); };
    if (warp % kGroup == 0) {
      Map<Algebra> all;
#pragma unroll 1
      for (int i = 0; i < kGroup; ++i) all.template append<kAdjoint>(near(i));
      groups[group].put(all);
    }
    __syncthreads();
#pragma unroll 1
    for (int i = 0; i < kGroups; ++i) {
      const int of = nth<kAdjoint>(i, kGroups);
      if (of == group) before = block;
      block.template append<kAdjoint>(groups[of].get());
    }
#pragma unroll 1
    for (int i = 0; i < nth<kAdjoint>(warp % kGroup, kGroup); ++i) before.template append<kAdjoint>(near(i));
  }
  // With `map` of the warp's tokens, the state that they start from; `carry`, what the step starts from, moves to its end.
  template <bool kAdjoint>
  __device__ __forceinline__ void pass(int step, const Place& x, const Map<Algebra>& map,
                                       float (&carry)[Algebra::kStates], float (&state)[Algebra::kStates]) {
    const int warp = threadIdx.x / 32;
    auto& all = warps[kCluster ? 0 : step % 2];
    all[warp].put(map);
    __syncthreads();
    const auto copy = [&] {
#pragma unroll
      for (int j = 0; j < Algebra::kStates; ++j) state[j] = carry[j];
    };
    if constexpr (kCluster) {
      Map<Algebra> before, block;
      join<kAdjoint>(before, block);
      if (warp < x.segments) blocks[step % 2][x.segment].send(block, warp);
      cluster_barrier();
      for (int i = 0; i < x.segments; ++i) {
        const int rank = nth<kAdjoint>(i, x.segments);
        if (rank == x.segment) copy();
        blocks[step % 2][rank].get().template apply<kAdjoint>(carry);
      }
      before.template apply<kAdjoint>(state);
    } else {
#pragma unroll 4
      for (int i = 0; i < kWarps; ++i) {
        const int w = nth<kAdjoint>(i, kWarps);
        if (w == warp) copy();
        all[w].get().template apply<kAdjoint>(carry);
      }
    }
  }
  // Only the map of the whole block for this step, behind `whole`.
  template <bool kAdjoint>
  __device__ __forceinline__ void gather(int step, const Map<Algebra>& map, Map<Algebra>& whole) {
    auto& all = warps[kCluster ? 0 : step % 2];
    all[threadIdx.x / 32].put(map);
    __syncthreads();
#pragma unroll 4
    for (int i = 0; i < kWarps; ++i) whole.template append<kAdjoint>(all[nth<kAdjoint>(i, kWarps)].get());
  }
};

// Where the map of a segment lies between the two passes.
template <class Algebra>
__device__ __forceinline__ float* segment_map(const CudaScan& p, const Place& x, int segment) {
  const int64_t lanes = (p.channels + Algebra::kChannels - 1) / Algebra::kChannels;
  return p.segments + ((x.sequence * x.segments + segment) * lanes + x.channel / Algebra::kChannels) *
                          (Slot<Algebra>::kNumbers + 1);
}

template <class Algebra>
__device__ void write_map(float* to, const Map<Algebra>& map) {
#pragma unroll
  for (int i = 0; i < Algebra::kCoefficients; ++i) to[i] = map.a[i];
#pragma unroll
  for (int i = 0; i < Algebra::kStates; ++i) to[Algebra::kCoefficients + i] = map.h[i];
  to[Algebra::kCoefficients + Algebra::kStates] = map.fresh ? 1.0f : 0.0f;
}

template <class Algebra>
__device__ Map<Algebra> read_map(const float* from) {
  Map<Algebra> map;
#pragma unroll
  for (int i = 0; i < Algebra::kCoefficients; ++i) map.a[i] = from[i];
#pragma unroll
  for (int i = 0; i < Algebra::kStates; ++i) map.h[i] = from[Algebra::kCoefficients + i];
  map.fresh = from[Algebra::kCoefficients + Algebra::kStates] != 0.0f;
  return map;
}

// The state [B, states, E] of the thread's channels; null: zeros.
template <class Algebra>
__device__ void read_state(float (&state)[Algebra::kStates], const float* from, const CudaScan& p,
                           const Place& x) {
  if (!from) {
#pragma unroll
    for (float& value : state) value = 0.0f;
    return;
  }
  if constexpr (Algebra::kChannels == Algebra::kStates) {
#pragma unroll
    for (int i = 0; i < Algebra::kStates; ++i) state[i] = from[x.sequence * p.channels + x.channel + i];
  } else {
    constexpr int64_t kRows = Algebra::kStates / Algebra::kChannels;
    const int64_t scale = p.kind == CudaScanKind::matrix ? 1 : kRows;
    widen(state, Algebra::load_h(from, CudaType::fp32, p.channels,
                                 (x.sequence * p.channels * kRows) / scale + x.channel));
  }
}

template <class Algebra>
__device__ void write_state(float* to, const float (&state)[Algebra::kStates], const CudaScan& p,
                            const Place& x) {
  if constexpr (Algebra::kChannels == Algebra::kStates) {
#pragma unroll
    for (int i = 0; i < Algebra::kStates; ++i) to[x.sequence * p.channels + x.channel + i] = state[i];
  } else {
    constexpr int64_t kRows = Algebra::kStates / Algebra::kChannels;
    const int64_t scale = p.kind == CudaScanKind::matrix ? 1 : kRows;
    Algebra::store_h(to, CudaType::fp32, p.channels, (x.sequence * p.channels * kRows) / scale + x.channel,
                     state);
  }
}

// Offset of a row of h in channels; a pair of a matrix scan takes two rows.
template <class Algebra>
__device__ __forceinline__ int64_t row_of(const CudaScan& p, const Place& x, int64_t t) {
  return (x.sequence * p.tokens + t) * p.channels * (p.kind == CudaScanKind::matrix ? 2 : 1) + x.channel;
}

// Whether a document starts at token t + lane, of kTokens tokens from t on; as it was loaded, for starts_of later.
template <int kTokens>
__device__ __forceinline__ uint32_t start_at(const CudaScan& p, const Place& x, int64_t t) {
  const int lane = threadIdx.x % 32;
  return p.starts && lane < kTokens && t + lane < x.end ? p.starts[x.sequence * p.tokens + t + lane] : 0;
}
// Bit i: at token t + i.
__device__ __forceinline__ unsigned starts_of(uint32_t flag) { return __ballot_sync(0xffffffff, flag != 0); }

}  // namespace weft::kernels::strips
