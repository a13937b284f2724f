// Selective scan, forward, and the scan of its gradients alone that several segments need. Lanes of a warp that are
// neighbours share a channel, each with kStates states in registers; time is serial. B and C come through shared memory,
// where a block of tokens lies in fp32; the next block is on its way meanwhile.
#include <algorithm>

#include "ops/scan/selective.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 128, kStates = 8, kGroup = 8;

// kLanes of a channel.
template <int kLanes>
struct Shape {
  static constexpr int kChannels = kThreads / kLanes, kRow = kLanes * kStates;
  static constexpr int kStage = 1024 / kRow;  // tokens of B and C in shared memory
};

// B and C of some tokens, [which][token][state].
template <int kLanes>
struct Maps {
  using S = Shape<kLanes>;
  static constexpr int kEach = S::kStage * S::kRow / kThreads;
  float next[2][kEach];

  __device__ __forceinline__ void load(const CudaSelectiveScan& p, int64_t sequence, int64_t t, int64_t end) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x), n = index % S::kRow;
      const int64_t token = t + index / S::kRow;
      const bool there = token >= 0 && token < end && n < p.states;
      const int64_t at = (sequence * p.tokens + token) * p.states + n;
      next[0][i] = there ? element(p.b, p.map_type, at) : 0.0f;
      next[1][i] = there ? element(p.c, p.map_type, at) : 0.0f;
    }
  }
  __device__ __forceinline__ void store(float (&shared)[2][S::kStage][S::kRow]) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int index = i * kThreads + static_cast<int>(threadIdx.x);
      shared[0][index / S::kRow][index % S::kRow] = next[0][i];
      shared[1][index / S::kRow][index % S::kRow] = next[1][i];
    }
  }
};

__device__ __forceinline__ void read_states(float (&x)[kStates], const float* row) {
#pragma unroll
  for (int i = 0; i < kStates; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(row + i);
    x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
  }
}

// A thread's channel and states, and its part of the sequence.
template <int kLanes>
struct Thread {
  int64_t sequence, segment, begin, end, channel;  // the last channel for those behind it
  int first, count;                                // states
  bool there;

  __device__ Thread(const CudaSelectiveScan& p, int64_t segments) {
    const int64_t groups = (p.channels + Shape<kLanes>::kChannels - 1) / Shape<kLanes>::kChannels;
    const Segment part = segment_of(p, blockIdx.x / groups % segments, segments);
    sequence = blockIdx.x / groups / segments;
    segment = part.index, begin = part.begin, end = part.end;
    channel = blockIdx.x % groups * Shape<kLanes>::kChannels + threadIdx.x / kLanes;
    there = channel < p.channels;
    channel = min(channel, p.channels - 1);
    first = static_cast<int>(threadIdx.x) % kLanes * kStates;
    count = there ? max(0, min(kStates, static_cast<int>(p.states) - first)) : 0;
  }
  // Offset of the states in [rows, E, N].
  __device__ int64_t at(const CudaSelectiveScan& p, int64_t row) const {
    return (row * p.channels + channel) * p.states + first;
  }
  __device__ void load(float (&x)[kStates], const float* from) const {
#pragma unroll
    for (int i = 0; i < kStates; ++i) x[i] = from && i < count ? from[i] : 0.0f;
  }
  __device__ void store(float* to, const float (&x)[kStates]) const {
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      if (i < count) to[i] = x[i];
  }
};

// kMaps: only the state that each segment adds to what it was given, and its sum of steps.
template <class T, int kLanes, bool kMaps>
__global__ void __launch_bounds__(kThreads) forward_kernel(const CudaSelectiveScan p, int64_t segments) {
  using S = Shape<kLanes>;
  __shared__ __align__(16) float shared[2][S::kStage][S::kRow];
  const Thread<kLanes> x(p, segments);
  const int64_t rows = x.sequence * p.tokens;
  const T* const u = static_cast<const T*>(p.u) + rows * p.channels + x.channel;
  const T* const delta = static_cast<const T*>(p.delta) + rows * p.channels + x.channel;
  T* const y = static_cast<T*>(p.y) + rows * p.channels + x.channel;
  float a[kStates], h[kStates] = {};
  x.load(a, p.a + x.at(p, 0));
#pragma unroll
  for (float& value : a) value *= kLog2e;
  if constexpr (!kMaps) {
    x.load(h, p.initial ? p.initial + x.at(p, x.sequence) : nullptr);
    for (int64_t s = 0; s < x.segment; ++s) {
      const int64_t row = x.sequence * segments + s;
      const float steps = x.there ? segment_steps(p, segments)[row * p.channels + x.channel] : 0.0f;
      float more[kStates];
      x.load(more, p.segments + x.at(p, row));
#pragma unroll
      for (int i = 0; i < kStates; ++i)
        h[i] = steps < 0 ? more[i] : fmaf(fast_exp2(steps * a[i]), h[i], more[i]);
    }
  }
  const float skip = p.skip && x.there ? p.skip[x.channel] : 0.0f;
  const bool writes = x.there && x.first == 0;
  float steps = 0.0f;  // negative: a document started
  Maps<kLanes> staged;
  staged.load(p, x.sequence, x.begin, x.end);
  T input[kGroup], step[kGroup];
  // Behind the last token it is loaded again: a condition on what was loaded would wait for it.
  const auto fetch = [&](int64_t t) {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const int64_t at = min(t + j, x.end - 1) * p.channels;
      input[j] = u[at], step[j] = delta[at];
    }
  };
  if (x.begin < x.end) fetch(x.begin);
  for (int64_t stage = x.begin; stage < x.end; stage += S::kStage) {
    __syncthreads();
    staged.store(shared);
    __syncthreads();
    if (stage + S::kStage < x.end) staged.load(p, x.sequence, stage + S::kStage, x.end);
    for (int group = 0; group < S::kStage && stage + group < x.end; group += kGroup) {
      const int64_t t = stage + group;
      const int count = static_cast<int>(min(x.end - t, int64_t{kGroup}));
      float now[kGroup], width[kGroup];
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        now[j] = to_float(input[j]), width[j] = to_float(step[j]);
        if (j >= count) now[j] = width[j] = 0.0f;
      }
      fetch(t + kGroup);
      if (p.saved && !kMaps && t % kCudaSelectiveChunk == 0) {
        const int64_t chunks = (p.tokens + kCudaSelectiveChunk - 1) / kCudaSelectiveChunk;
        x.store(p.saved + x.at(p, x.sequence * chunks + t / kCudaSelectiveChunk), h);
      }
      const unsigned starts = starts_at<kGroup>(p, rows, t, x.end);
      const auto tokens = [&]<bool kStarts>() {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          const bool start = kStarts && (starts >> j & 1);
          if constexpr (kMaps) steps = start || steps < 0 ? -1.0f : steps + width[j];
          float b[kStates];
          read_states(b, &shared[0][group + j][x.first]);
          const float scaled = width[j] * now[j];
#pragma unroll
          for (int i = 0; i < kStates; ++i)
            h[i] = fmaf(fast_exp2(width[j] * a[i]), start ? 0.0f : h[i], scaled * b[i]);
          if constexpr (!kMaps) {
            float c[kStates], sums[2] = {};
            read_states(c, &shared[1][group + j][x.first]);
#pragma unroll
            for (int i = 0; i < kStates; ++i) sums[i % 2] = fmaf(h[i], c[i], sums[i % 2]);
            const float sum = warp_sum<kLanes>(sums[0] + sums[1]);
            if (writes && j < count) y[(t + j) * p.channels] = from_float<T>(fmaf(skip, now[j], sum));
          }
        }
      };
      if (starts)
        tokens.template operator()<true>();
      else
        tokens.template operator()<false>();
    }
  }
  if constexpr (kMaps) {
    const int64_t row = x.sequence * segments + x.segment;
    x.store(p.segments + x.at(p, row), h);
    if (writes) segment_steps(p, segments)[row * p.channels + x.channel] = steps;
  } else if (x.segment + 1 == segments) {
    x.store(p.state + x.at(p, x.sequence), h);
  }
}

// The gradient that each segment hands to the one before, when it gets none from the one behind: with
// q_t = exp(delta_t a) (c_t dy_t + q_{t+1}).
template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const CudaSelectiveGradient g, int64_t segments) {
  using S = Shape<kLanes>;
  __shared__ __align__(16) float shared[2][S::kStage][S::kRow];
  const CudaSelectiveScan& p = g.forward;
  const Thread<kLanes> x(p, segments);
  const int64_t rows = x.sequence * p.tokens;
  const T* const dy = static_cast<const T*>(g.dy) + rows * p.channels + x.channel;
  const T* const delta = static_cast<const T*>(p.delta) + rows * p.channels + x.channel;
  float a[kStates], q[kStates] = {}, steps = 0.0f;
  x.load(a, p.a + x.at(p, 0));
#pragma unroll
  for (float& value : a) value *= kLog2e;
  Maps<kLanes> staged;
  const int64_t stages = (x.end - x.begin + S::kStage - 1) / S::kStage;
  for (int64_t stage = x.begin + (stages - 1) * S::kStage; stage >= x.begin; stage -= S::kStage) {
    staged.load(p, x.sequence, stage, x.end);
    __syncthreads();
    staged.store(shared);
    __syncthreads();
    for (int group = S::kStage - kGroup; group >= 0; group -= kGroup) {
      const int64_t t = stage + group;
      float up[kGroup], width[kGroup];
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        const bool there = x.there && t + j < x.end;
        up[j] = there ? to_float(dy[(t + j) * p.channels]) : 0.0f;
        width[j] = there ? to_float(delta[(t + j) * p.channels]) : 0.0f;
      }
      const unsigned starts = starts_at<kGroup>(p, rows, t, x.end);
#pragma unroll
      for (int j = kGroup - 1; j >= 0; --j) {
        float c[kStates];
        read_states(c, &shared[1][group + j][x.first]);
        const bool start = starts >> j & 1;
        steps = start || steps < 0 ? -1.0f : steps + width[j];
#pragma unroll
        for (int i = 0; i < kStates; ++i) {
          const float next = fast_exp2(width[j] * a[i]) * fmaf(c[i], up[j], q[i]);
          q[i] = start ? 0.0f : next;
        }
      }
    }
  }
  const int64_t row = x.sequence * segments + x.segment;
  x.store(p.segments + x.at(p, row), q);
  if (x.there && x.first == 0) segment_steps(p, segments)[row * p.channels + x.channel] = steps;
}

template <int kLanes>
unsigned grid_of(const CudaSelectiveScan& p, int64_t segments) {
  constexpr int64_t kChannels = Shape<kLanes>::kChannels;
  return static_cast<unsigned>(p.batch * segments * ((p.channels + kChannels - 1) / kChannels));
}

// Calls body.run<T, lanes>().
template <class Body>
CudaStatus with_shape(const CudaSelectiveScan& p, const Body& body) {
  return with_type(p.type, [&]<class T>(T) {
    return p.states <= 2 * kStates ? body.template operator()<T, 2>() : body.template operator()<T, 8>();
  });
}

// As many as give every scheduler two warps, but none shorter than 256 tokens.
int64_t segments(const CudaSelectiveScan& p) {
  const int64_t warps = p.batch * p.channels * (p.states <= 2 * kStates ? 2 : 8) / 32;
  return std::max<int64_t>(1, std::min(p.multiprocessors * 8 / std::max<int64_t>(warps, 1), p.tokens / 256));
}

int64_t scratch(const CudaSelectiveScan& p) { return p.batch * segments(p) * p.channels * (p.states + 1); }

CudaStatus forward(const CudaSelectiveScan& p, void* stream) {
  if (p.batch * p.channels == 0) return nullptr;
  const int64_t parts = segments(p);
  const auto s = static_cast<cudaStream_t>(stream);
  return with_shape(p, [&]<class T, int kLanes>() {
    const unsigned grid = grid_of<kLanes>(p, parts);
    if (parts > 1) forward_kernel<T, kLanes, true><<<grid, kThreads, 0, s>>>(p, parts);
    forward_kernel<T, kLanes, false><<<grid, kThreads, 0, s>>>(p, parts);
    return last_status();
  });
}

CudaStatus backward(const CudaSelectiveGradient& g, void* stream) {
  const auto& p = g.forward;
  if (p.batch * p.channels == 0) return nullptr;
  const int64_t parts = segments(p);
  if (parts > 1)
    with_shape(p, [&]<class T, int kLanes>() {
      gradient_kernel<T, kLanes>
          <<<grid_of<kLanes>(p, parts), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(g, parts);
      return CudaStatus{};
    });
  return selective_backward(g, parts, stream);
}

constexpr SelectiveScanCuda kTable = {forward, backward, segments, scratch, selective_channel_blocks};

}  // namespace

const SelectiveScanCuda& selective_scan_cuda() { return kTable; }

}  // namespace weft::kernels
