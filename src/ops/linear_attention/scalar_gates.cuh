// The scalar form's small kernels around its sweeps: states of segments, gradients of gates, sums of groups.
#pragma once

#include "ops/cuda/device.cuh"
#include "ops/linear_attention/kernel_cuda_scalar.cuh"

namespace weft::kernels::scalar {
namespace {

// A window between two checkpoints has at most this many tokens, a thread each.
constexpr int kMaxWindow = 4 * kChunk;

// In `states` those that every segment but the last makes on its own, to what it begins with; `reverse`: the last one is
// the first.
__global__ void scan_states(float* states, const float* passes, const float* initial, int segments,
                            int64_t size, bool reverse) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, head = blockIdx.y;
  if (i >= size) return;
  float state = initial ? initial[head * size + i] : 0;
  for (int step = 0; step < segments; ++step) {
    const int64_t segment = head * segments + (reverse ? segments - 1 - step : step);
    float* at = states + segment * size + i;
    const float local = step + 1 < segments ? *at : 0;
    *at = state;
    if (step + 1 < segments) state = passes[segment] * state + local;
  }
}

// dlog_decay and dwrite of a window of tokens from the dots q . dq and v . dv (before the write strength): a decay is in
// all pairs that straddle it; of those that begin or end in the rest of the window, all others cancel.
struct GateGradients {
  const float *key_dots, *value_dots, *dwrite_dots, *products;
  int key_slices, value_slices, tokens, heads, checkpoints;
  CudaRows log_decay, write;
  const uint8_t* starts;
  float *dlog_decay, *dwrite;
};

__device__ float sum_slices(const float* dots, int slices, int tokens) {
  float sum = 0;
  for (int s = 0; s < slices; ++s) sum += dots[static_cast<int64_t>(s) * tokens];
  return sum;
}

__device__ float gate(const CudaRows& x, int64_t batch, int64_t token, int64_t head) {
  const int64_t at = batch * x.batch + token * x.token + head * x.head;
  if (x.type == CudaType::fp32) return static_cast<const float*>(x.data)[at];
  if (x.type == CudaType::bf16) return to_float(static_cast<const bf16*>(x.data)[at]);
  return to_float(static_cast<const fp16*>(x.data)[at]);
}

__global__ void __launch_bounds__(kMaxWindow) gate_gradients(const __grid_constant__ GateGradients g) {
  __shared__ float sums[kMaxWindow / 32];
  const int64_t head = blockIdx.y, batch = head / g.heads, h = head % g.heads;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  // Threads go backward in time.
  const int token = static_cast<int>((blockIdx.x + 1) * blockDim.x) - 1 - thread;
  const bool valid = token < g.tokens;
  float term = 0;
  const int64_t at = (batch * g.tokens + token) * g.heads + h;
  const auto dots_of = [&](const float* dots, int slices) {
    return sum_slices(dots + head * slices * g.tokens + token, slices, g.tokens);
  };
  if (valid && g.dwrite) g.dwrite[at] = dots_of(g.dwrite_dots, g.value_slices);
  if (valid && g.dlog_decay)
    term = dots_of(g.key_dots, g.key_slices) -
           dots_of(g.value_dots, g.value_slices) * (g.write.data ? gate(g.write, batch, token, h) : 1);
  if (!g.dlog_decay) return;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const float other = __shfl_up_sync(0xffffffff, term, step);
    if (lane >= step) term += other;
  }
  if (lane == 31) sums[warp] = term;
  __syncthreads();
  for (int w = 0; w < warp; ++w) term += sums[w];
  for (int s = 0; s < g.value_slices * 4; ++s)
    term += g.products[((head * g.value_slices + s / 4) * g.checkpoints + blockIdx.x) * 4 + s % 4];
  if (!valid) return;
  const bool begins = g.starts && g.starts[batch * g.tokens + token];
  g.dlog_decay[at] = begins || gate(g.log_decay, batch, token, h) < -100 ? 0 : term;
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
