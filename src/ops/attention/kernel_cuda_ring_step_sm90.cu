// A token of windowed attention. A cluster takes a key head of a sequence, each of its blocks some columns of the ring and
// each warp some keys at a time, whose scores and values it adds up in one pass; the first block joins what the others
// found, in their order, and writes the token's own key and value into the ring, which all have read by then.
#include <algorithm>

#include "ops/attention/kernel_cuda_ring_step.h"
#include "ops/cuda/cluster.cuh"
#include "ops/cuda/early.cuh"
#include "ops/cuda/vector.cuh"
#include "ops/rope/angle.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kPack = 8;
constexpr int kMostCluster = 8;
constexpr int kAhead = 2;  // keys that a lane waits for together
constexpr float kMinusInfinity = -__builtin_huge_valf();

// exp2(from - to), 0 where there was nothing yet.
__device__ __forceinline__ float factor(float from, float to) {
  return from == kMinusInfinity ? 0.0f : fast_exp2(from - to);
}

// A softmax under way: the largest score so far, in base 2, and what was added up relative to it.
template <int kWidth>
struct Partial {
  float largest = kMinusInfinity, total = 0, sum[kWidth] = {};

  __device__ __forceinline__ void add(float score, const float (&values)[kWidth]) {
    const float high = fmaxf(largest, score);
    const float before = factor(largest, high), now = factor(score, high);
    largest = high, total = total * before + now;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum[i] = sum[i] * before + (now == 0 ? 0 : now * values[i]);
  }
  // What lane ^ step has.
  __device__ __forceinline__ void join(int step) {
    const float other = __shfl_xor_sync(0xffffffff, largest, step), high = fmaxf(largest, other);
    const float mine = factor(largest, high), theirs = factor(other, high);
    largest = high;
    total = total * mine + __shfl_xor_sync(0xffffffff, total, step) * theirs;
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      sum[i] = sum[i] * mine + __shfl_xor_sync(0xffffffff, sum[i], step) * theirs;
  }
};

// A row of q or k as it meets others: normed and rotated; by one warp.
template <class T, int kWidth>
__device__ void prepare(const CudaRingStep& p, float* to, const T* from, const float* weight,
                        int64_t position) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float square = 0;
#pragma unroll
  for (int i = 0; i < kWidth; i += 32) {
    const float x = to_float(from[i + lane]);
    to[i + lane] = x, square += x * x;
  }
  if (weight) {
    const float inverse = rsqrtf(warp_sum(square) / kWidth + p.norm_eps);
#pragma unroll
    for (int i = 0; i < kWidth; i += 32) to[i + lane] *= inverse * weight[i + lane];
  }
  __syncwarp();
  for (int i = lane; i < p.pairs; i += 32) {
    float cosine, sine;
    rope_angle(static_cast<double>(position),
               p.frequencies ? p.frequencies[i] : rope_frequency(p.log2_theta, i, p.pairs), cosine, sine);
    cosine *= static_cast<float>(p.magnitude), sine *= static_cast<float>(p.magnitude);
    float& first = to[p.interleaved ? 2 * i : i];
    float& second = to[p.interleaved ? 2 * i + 1 : i + p.pairs];
    const float turned = first * cosine - second * sine;
    second = second * cosine + first * sine;
    first = turned;
  }
  __syncwarp();
}

template <int kWidth>
struct Memory {
  float q[kWidth], k[kWidth];
  float sums[kWarps][kWidth], largest[kWarps], totals[kWarps];  // of the warps
  float all_sums[kMostCluster][kWidth], all_largest[kMostCluster],
      all_totals[kMostCluster];  // in the first block
};

// Adds up partial results in their order; what thread `column` has of them.
template <int kCount, int kWidth>
__device__ __forceinline__ void add_up(const float (&sums)[kCount][kWidth], const float (&largest)[kCount],
                                       const float (&totals)[kCount], int count, int column, float& high,
                                       float& total, float& sum) {
  high = kMinusInfinity, total = sum = 0;
  for (int i = 0; i < count; ++i) high = fmaxf(high, largest[i]);
  for (int i = 0; i < count; ++i) {
    const float weight = factor(largest[i], high);
    total += weight * totals[i], sum += weight * sums[i][column];
  }
}

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    ring_step_kernel(const __grid_constant__ CudaRingStep p, int cluster) {
  constexpr int kLanes = kWidth / kPack, kTogether = 32 / kLanes;  // of a key; keys of a warp
  __shared__ Memory<kWidth> m;
  const int rank = static_cast<int>(blockIdx.x) % cluster, place = static_cast<int>(blockIdx.x) / cluster,
            key_head = place % p.key_heads, batch = place / p.key_heads, group = p.heads / p.key_heads;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32,
            first = lane % kLanes * kPack;
  const int begin = p.columns * rank / cluster, end = p.columns * (rank + 1) / cluster;
  const auto ring_at = [&](int column) {
    return ((int64_t{batch} * p.columns + column) * p.key_heads + key_head) * kWidth;
  };
  T *const keys = static_cast<T*>(p.ring_k), *const values = static_cast<T*>(p.ring_v);
  for (int column = begin + thread; column < end; column += kThreads)
#pragma unroll
    for (int i = 0; i < kWidth; i += 64)
      prefetch(keys + ring_at(column) + i), prefetch(values + ring_at(column) + i);
  prefetch_all(p.q_norm, kWidth * sizeof(float));
  prefetch_all(p.k_norm, kWidth * sizeof(float));
  let_next_start();
  wait_for_last();
  cluster_arrive();

  const int64_t position = p.positions[batch], own = (int64_t{batch} * p.key_heads + key_head) * kWidth;
  const T *const fresh_k = static_cast<const T*>(p.k) + own, *const fresh_v =
                                                                 static_cast<const T*>(p.v) + own;
  const int64_t* const slots = p.slots + int64_t{batch} * p.columns;
  for (int r = 0; r < group; ++r) {
    const int64_t head = int64_t{batch} * p.heads + key_head * group + r;
    if (r > 0) cluster_barrier();
    if (warp == 0) prepare<T, kWidth>(p, m.q, static_cast<const T*>(p.q) + head * kWidth, p.q_norm, position);
    if (warp == 1 && r == 0) prepare<T, kWidth>(p, m.k, fresh_k, p.k_norm, position);
    __syncthreads();
    float q[kPack];
#pragma unroll
    for (int j = 0; j < kPack; ++j) q[j] = m.q[first + j] * p.scale * kLog2e;
    const auto score_of = [&](const float(&k)[kPack]) {
      float score = 0;
#pragma unroll
      for (int j = 0; j < kPack; ++j) score = fmaf(q[j], k[j], score);
      return warp_sum<kLanes>(score);
    };
    Partial<kPack> partial;
    for (int base = begin + warp * kTogether; base < end; base += kAhead * kWarps * kTogether) {
      Pack<T, kPack> k[kAhead], v[kAhead];
      bool seen[kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int column = min(base + i * kWarps * kTogether + lane / kLanes, end - 1);
        const int64_t slot = slots[column];
        k[i] = load_pack<kPack>(keys + ring_at(column) + first);
        v[i] = load_pack<kPack>(values + ring_at(column) + first);
        seen[i] = base + i * kWarps * kTogether + lane / kLanes < end && slot >= 0 && slot <= position &&
                  (slot > position - p.window || slot < p.sinks);
      }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        float key[kPack], value[kPack];
        widen(key, k[i]);
        widen(value, v[i]);
        const float score = score_of(key);
        partial.add(seen[i] ? score : kMinusInfinity, value);
      }
    }
    if (rank == 0 && warp == 0) {  // the token's own
      float key[kPack], value[kPack];
#pragma unroll
      for (int j = 0; j < kPack; ++j) key[j] = to_float(from_float<T>(m.k[first + j]));
      load_floats(value, fresh_v + first);
      const float score = score_of(key);
      partial.add(lane < kLanes ? score : kMinusInfinity, value);
    }
#pragma unroll
    for (int step = kLanes; step < 32; step *= 2) partial.join(step);
    if (lane < kLanes)
#pragma unroll
      for (int j = 0; j < kPack; ++j) m.sums[warp][first + j] = partial.sum[j];
    if (lane == 0) m.largest[warp] = partial.largest, m.totals[warp] = partial.total;
    __syncthreads();
    if (r == 0) cluster_wait();
    float high, total, sum;
    if (thread < kWidth) {
      add_up(m.sums, m.largest, m.totals, kWarps, thread, high, total, sum);
      store_in_cluster(address_in(shared_address(&m.all_sums[rank][thread]), 0), sum);
      if (thread == 0) {
        store_in_cluster(address_in(shared_address(&m.all_largest[rank]), 0), high);
        store_in_cluster(address_in(shared_address(&m.all_totals[rank]), 0), total);
      }
    }
    cluster_barrier();
    if (rank == 0 && thread < kWidth) {
      add_up(m.all_sums, m.all_largest, m.all_totals, cluster, thread, high, total, sum);
      static_cast<T*>(p.y)[head * kWidth + thread] = from_float<T>(sum / total);
    }
  }
  if (rank > 0 || thread >= kWidth || position < 0) return;
  const int64_t turning = p.columns - p.sinks;
  const auto column = static_cast<int>(position < p.sinks ? position : p.sinks + position % turning);
  keys[ring_at(column) + thread] = from_float<T>(m.k[thread]);
  values[ring_at(column) + thread] = fresh_v[thread];
}

// The positions of the columns after the step; all heads read those before.
__global__ void slots_kernel(const __grid_constant__ CudaRingStep p) {
  let_next_start();
  wait_for_last();
  const int batch = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (batch >= p.batch) return;
  const int64_t position = p.positions[batch], turning = p.columns - p.sinks;
  if (position < 0) return;
  p.slots[int64_t{batch} * p.columns + (position < p.sinks ? position : p.sinks + position % turning)] =
      position;
}

int cluster_of(const CudaRingStep& p) {
  constexpr int kFewest = 2 * kWarps;  // columns of a block
  const int wanted = std::min(p.multiprocessors / std::max(p.batch * p.key_heads, 1), p.columns / kFewest);
  int cluster = 1;
  while (2 * cluster <= std::min(wanted, kMostCluster)) cluster *= 2;
  return cluster;
}

template <class T, int kWidth>
CudaStatus launch(const CudaRingStep& p, void* stream) {
  const int cluster = cluster_of(p);
  const auto failed =
      launch_early(ring_step_kernel<T, kWidth>, static_cast<unsigned>(p.batch * p.key_heads * cluster),
                   kThreads, 0, stream, p.capability, static_cast<unsigned>(cluster), p, cluster);
  if (failed) return failed;
  constexpr int kSlotThreads = 128;
  return launch_early(slots_kernel, static_cast<unsigned>((p.batch + kSlotThreads - 1) / kSlotThreads),
                      kSlotThreads, 0, stream, p.capability, 1, p);
}

bool takes(const CudaRingStep& p) {
  constexpr int kMostColumns = 4096;  // beyond which tensor cores pay
  bool fits = p.capability == 90 && p.type != CudaType::fp32 && p.key_width == p.value_width &&
              (p.key_width == 64 || p.key_width == 128) && 2 * p.pairs <= p.key_width && p.columns > 0 &&
              p.columns <= kMostColumns;
  for (const void* x : {p.v, static_cast<const void*>(p.ring_k), static_cast<const void*>(p.ring_v)})
    fits = fits && packs(x, 0, kPack, 2);
  return fits;
}

CudaStatus step(const CudaRingStep& p, void* stream) {
  const auto with_width = [&]<class T>() {
    return p.key_width == 64 ? launch<T, 64>(p, stream) : launch<T, 128>(p, stream);
  };
  return p.type == CudaType::bf16 ? with_width.template operator()<bf16>()
                                  : with_width.template operator()<fp16>();
}

constexpr RingStepCuda kTable = {takes, step};

}  // namespace

const RingStepCuda& ring_step_cuda() { return kTable; }

}  // namespace weft::kernels
