// The scalar form's small kernels around its sweeps: states of segments, gradients of gates, sums of groups.
#pragma once

#include "ops/cuda/device.cuh"
#include "ops/linear_attention/kernel_cuda_scalar.cuh"

namespace weft::kernels::scalar {
namespace {

// A window between two checkpoints has at most this many tokens, a thread each.
constexpr int kMaxCheckpointShift = 3, kMaxWindow = kChunk << kMaxCheckpointShift;

// In `states` those that every segment but the last makes on its own, to what it begins with; `reverse`: the last one is
// the first. Four numbers a thread.
__global__ void scan_states(float* states, const float* passes, const float* initial, int segments,
                            int64_t size, bool reverse) {
  constexpr int kAhead = 4;  // segments that are on their way at a time
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 4, head = blockIdx.y;
  if (i >= size) return;
  float4 state = initial ? *reinterpret_cast<const float4*>(initial + head * size + i) : float4{};
  for (int first = 0; first < segments; first += kAhead) {
    float4 local[kAhead];
    float pass[kAhead];
    const auto segment = [&](int step) {
      return head * segments + (reverse ? segments - 1 - first - step : first + step);
    };
#pragma unroll
    for (int step = 0; step < kAhead; ++step)
      if (first + step + 1 < segments)
        local[step] = *reinterpret_cast<const float4*>(states + segment(step) * size + i),
        pass[step] = passes[segment(step)];
#pragma unroll
    for (int step = 0; step < kAhead; ++step) {
      if (first + step < segments) *reinterpret_cast<float4*>(states + segment(step) * size + i) = state;
      if (first + step + 1 < segments)
        state = {pass[step] * state.x + local[step].x, pass[step] * state.y + local[step].y,
                 pass[step] * state.z + local[step].z, pass[step] * state.w + local[step].w};
    }
  }
}

// dlog_decay and dwrite of a window of tokens from the dots q . dq and v . dv (before the write strength): a decay is in
// all pairs that straddle it; of those that begin or end between it and a border of the window, all others cancel.
struct GateGradients {
  const float *key_dots, *value_dots, *dwrite_dots, *products;
  int key_slices, value_slices, tokens, heads, checkpoints;
  CudaRows log_decay, write;
  const uint8_t* starts;
  bool initial;  // there is a state before the first token
  float *dlog_decay, *dwrite;
};

// Of at most kMaxSlices slices, all on their way at once.
constexpr int kMaxSlices = 4;
__device__ __forceinline__ float sum_slices(const float* dots, int slices, int64_t stride) {
  float sum = 0, x[kMaxSlices];
#pragma unroll
  for (int s = 0; s < kMaxSlices; ++s) x[s] = s < slices ? dots[s * stride] : 0;
#pragma unroll
  for (int s = 0; s < kMaxSlices; ++s) sum += x[s];
  return sum;
}

// A block has a window of kGateHeads heads, whose gates are neighbours in memory.
constexpr int kGateHeads = 4, kGatePitch = kMaxWindow + 8;

// The gates that a thread brings in, of a window of `size` tokens and as many threads: token(i) and head(i), i below
// kGateHeads.
struct GateShare {
  int first, size;
  __device__ int head(int i) const { return (first + i * size) % kGateHeads; }
  __device__ int token(int i) const { return (first + i * size) / kGateHeads; }
};

// Those of the first `heads` heads and `tokens` tokens at `x`; all are on their way before one is used.
template <class T>
__device__ __forceinline__ void load_gates(const GateShare& share, const CudaRows& x, int64_t at, int heads,
                                           int tokens, float (&to)[kGateHeads]) {
  const T* from = static_cast<const T*>(x.data) + at;
  T y[kGateHeads] = {};
#pragma unroll
  for (int i = 0; i < kGateHeads; ++i)
    if (share.head(i) < heads && share.token(i) < tokens)
      y[i] = from[share.token(i) * x.token + share.head(i) * x.head];
#pragma unroll
  for (int i = 0; i < kGateHeads; ++i) to[i] = to_float(y[i]);
}
__device__ __forceinline__ void load_gates(const GateShare& share, const CudaRows& x, int64_t at, int heads,
                                           int tokens, float (&to)[kGateHeads]) {
  if (x.type == CudaType::fp32)
    load_gates<float>(share, x, at, heads, tokens, to);
  else if (x.type == CudaType::bf16)
    load_gates<bf16>(share, x, at, heads, tokens, to);
  else
    load_gates<fp16>(share, x, at, heads, tokens, to);
}

__global__ void __launch_bounds__(kMaxWindow) gate_gradients(const __grid_constant__ GateGradients g) {
  __shared__ float decays[kGateHeads][kGatePitch], writes[kGateHeads][kGatePitch];
  __shared__ float sums[kGateHeads][kMaxWindow / 32], borders[kGateHeads][2];
  const int groups = (g.heads + kGateHeads - 1) / kGateHeads, window = static_cast<int>(blockIdx.x);
  const int64_t batch = blockIdx.y / groups;
  const int first_head = static_cast<int>(blockIdx.y) % groups * kGateHeads;
  const int heads = min(kGateHeads, g.heads - first_head), size = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int first_token = window * size, tokens = min(size, g.tokens - first_token);
  const GateShare share{thread, size};
  const auto first_of = [&](const CudaRows& x) {
    return batch * x.batch + first_token * x.token + first_head * x.head;
  };
  float own_decays[kGateHeads], own_writes[kGateHeads];
#pragma unroll
  for (int i = 0; i < kGateHeads; ++i) own_writes[i] = 1;
  if (g.dlog_decay) load_gates(share, g.log_decay, first_of(g.log_decay), heads, tokens, own_decays);
  if (g.write.data) load_gates(share, g.write, first_of(g.write), heads, tokens, own_writes);
#pragma unroll
  for (int i = 0; i < kGateHeads; ++i) {
    if (g.dlog_decay) decays[share.head(i)][share.token(i)] = own_decays[i];
    writes[share.head(i)][share.token(i)] = own_writes[i];
  }
  // The products of the states behind this window and the one before.
  if (g.dlog_decay && thread < 2 * heads) {
    const int j = thread / 2, of = window - thread % 2;
    const int64_t from = ((batch * g.heads + first_head + j) * g.value_slices * g.checkpoints + of) * 4;
    float sum = 0;
#pragma unroll
    for (int warp_of = 0; warp_of < 4; ++warp_of)
      if (of >= 0) sum += sum_slices(g.products + from + warp_of, g.value_slices, 4 * int64_t{g.checkpoints});
    borders[j][thread % 2] = sum;
  }
  __syncthreads();

  // Threads go backward in time.
  const int own = size - 1 - thread, token = first_token + own;
  const bool valid = own < tokens;
  float terms[kGateHeads], dwrites[kGateHeads];
#pragma unroll
  for (int j = 0; j < kGateHeads; ++j) {
    const bool wanted = valid && j < heads;
    const int64_t head = batch * g.heads + first_head + j;
    const auto dots_of = [&](const float* dots, int slices) {
      return sum_slices(dots + head * slices * g.tokens + token, wanted && dots ? slices : 0, g.tokens);
    };
    terms[j] = g.dlog_decay ? dots_of(g.key_dots, g.key_slices) : 0;
    if (g.dlog_decay) terms[j] -= dots_of(g.value_dots, g.value_slices) * (wanted ? writes[j][own] : 0);
    dwrites[j] = g.dwrite ? dots_of(g.dwrite_dots, g.value_slices) : 0;
  }
#pragma unroll
  for (int j = 0; j < kGateHeads; ++j)
    if (g.dwrite && valid && j < heads) writes[j][own] = dwrites[j];
  if (g.dlog_decay) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
#pragma unroll
      for (int j = 0; j < kGateHeads; ++j) {
        const float other = __shfl_up_sync(0xffffffff, terms[j], step);
        if (lane >= step) terms[j] += other;
      }
    }
#pragma unroll
    for (int j = 0; j < kGateHeads; ++j)
      if (lane == 31) sums[j][warp] = terms[j];
    __syncthreads();
    const bool begins = valid && g.starts && g.starts[batch * g.tokens + token];
#pragma unroll
    for (int j = 0; j < kGateHeads; ++j) {
      if (!valid || j >= heads) continue;
      float before = 0, total = 0;
      for (int w = 0; w < size / 32; ++w) {
        if (w == warp) before = total;
        total += sums[j][w];
      }
      // The border in front is nearer to the first half.
      const bool behind = thread < size / 2 || (window == 0 && g.initial);
      const float term = terms[j] + before + (behind ? borders[j][0] : borders[j][1] - total);
      decays[j][own] = begins || decays[j][own] < -100 ? 0 : term;
    }
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kGateHeads; ++i) {
    const int j = share.head(i), t = share.token(i);
    const int64_t at = (batch * g.tokens + first_token + t) * g.heads + first_head + j;
    if (j >= heads || t >= tokens) continue;
    if (g.dlog_decay) g.dlog_decay[at] = decays[j][t];
    if (g.dwrite) g.dwrite[at] = writes[j][t];
  }
}

// [rows, heads, width] to [rows, heads / group, width]: sums in order, eight numbers a thread.
template <class T>
__global__ void sum_groups(const T* from, T* to, int64_t count, int group, int64_t width) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (at >= count) return;
  from += at / width * width * group + at % width;
  float sum[8] = {};
  for (int i = 0; i < group; ++i) {
    const uint4 x = *reinterpret_cast<const uint4*>(from + i * width);
    const uint32_t pairs[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 y = unpack<T>(pairs[j]);
      sum[2 * j] += y.x, sum[2 * j + 1] += y.y;
    }
  }
  *reinterpret_cast<uint4*>(to + at) = {pack<T>(sum[0], sum[1]), pack<T>(sum[2], sum[3]),
                                        pack<T>(sum[4], sum[5]), pack<T>(sum[6], sum[7])};
}

}  // namespace
}  // namespace weft::kernels::scalar
