// What segments of a sequence leave behind when each begins with a state of zero: with k' (v in reverse order: q' and dy)
//   S = sum_i decay(i, end] w_i k_i v_i',   in reverse   dS = sum_r decay(begin, r] scale q_r dy_r'
// and the decay of the whole segment. Chunks have 64 tokens here: there are no pairs to form, and memory sets the pace.
#pragma once

#include "ops/linear_attention/vector_keys.cuh"

namespace weft::kernels::vector_decay {

constexpr int kStateChunk = 64, kStateParts = 4;
using StatePanels = Panels<kStateChunk>;

// Shared memory, offsets in bytes. Keys and decays have a ring of slots, values another with one more.
struct StatesLayout {
  int keys, gates, key_slot, key_slots, values, value_slot, value_slots;
  int tile, products, whole, scalars, full, bytes;
};
__host__ __device__ inline StatesLayout states_layout(int key_width, int value_width, bool gate_fp32) {
  StatesLayout l{};
  int at = 0;
  const auto take = [&](int bytes) { return at += bytes, at - bytes; };
  const int key_tile = kStateChunk * key_width * 2;
  l.keys = 0, l.gates = key_tile, l.key_slot = (gate_fp32 ? 3 : 2) * key_tile;
  l.key_slots = 2, l.value_slots = 3;
  take(l.key_slots * l.key_slot);
  l.value_slot = kStateChunk * value_width * 2;
  l.values = take(l.value_slots * l.value_slot);
  l.tile = take(key_tile);
  l.products = take(kStateParts * key_width * 4);
  l.whole = take(key_width * 4);
  l.scalars = take(kStateChunk * 8);
  l.full = take((l.key_slots + l.value_slots) * 8);
  l.bytes = at;
  return l;
}

__host__ __device__ inline Needs states_needs(bool reverse) {
  return {.q = reverse,
          .k = !reverse,
          .v = !reverse,
          .dy = reverse,
          .read_gate = false,
          .ring = 0,
          .pair_stages = 0,
          .extra = 0};
}

// A warp takes 64 key channels of 16 of a chunk's tokens, a lane two channels: x = rows or columns times the decays
// within the 16 tokens; returns the decay of all of them.
template <class T, bool kReverse, bool kPlain>
__device__ __forceinline__ float2 decay_part(const Sweep& s, const char* keys, const char* gates,
                                             const float2* scalars, int part, int channel,
                                             float2 (&x)[kStateChunk / kStateParts]) {
  constexpr int kTokens = kStateChunk / kStateParts;
  const bool fp32 = s.log_decay.type == CudaType::fp32, bonus = !kPlain && s.bonus;
  float2 run{1, 1};
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const int j = kReverse ? i : kTokens - 1 - i, t = part * kTokens + j, at = StatePanels::at(t, channel);
    const float2 g = fp32 ? *reinterpret_cast<const float2*>(gates + StatePanels::at_fp32(t, channel) * 4)
                          : pair_at<T>(gates, at);
    float2 decay{fast_exp2(g.x * kLog2e), fast_exp2(g.y * kLog2e)}, kept{1, 1};
    float factor = kReverse ? s.scale : 1.f;
    if (!kPlain) {
      const float2 scalar = scalars[t];
      if (scalar.y != 0) decay = kept = {0, 0};
      if (!kReverse) factor = scalar.x;
    }
    const float2 before = run;
    run = times(run, decay);
    const float2 reach = !kReverse ? before : bonus ? times(before, kept) : run;
    x[j] = times(times(pair_at<T>(keys, at), {factor, factor}), reach);
  }
  return run;
}

template <class T, int kKey, int kValue, bool kReverse>
__global__ void __launch_bounds__(kKey * 2) find_states(const __grid_constant__ FedSweep fed) {
  extern __shared__ __align__(1024) char shared[];
  constexpr int kTokens = kStateChunk / kStateParts;
  const Sweep& s = fed.sweep;
  const Place p = place_of(s);
  if (p.segment == (kReverse ? 0 : s.segments - 1)) return;  // nobody asks
  const bool fp32 = s.log_decay.type == CudaType::fp32, plain = !s.starts && !s.write.data && !s.bonus;
  const StatesLayout l = states_layout(kKey, kValue, fp32);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int part = warp % kStateParts, channel = warp / kStateParts * 64 + lane * 2;
  const int chunks = static_cast<int>((p.chunks * kChunk + kStateChunk - 1) / kStateChunk);
  auto* full = reinterpret_cast<uint64_t*>(shared + l.full);
  auto* products = reinterpret_cast<float*>(shared + l.products);
  auto* whole = reinterpret_cast<float*>(shared + l.whole);
  auto* scalars = reinterpret_cast<float2*>(shared + l.scalars);
  T* tile = reinterpret_cast<T*>(shared + l.tile);
  const auto token_of = [&](int step) {
    return p.first * kChunk + (kReverse ? chunks - 1 - step : step) * kStateChunk;
  };
  const auto feed_keys = [&](int step) {
    uint64_t* barrier = full + step % l.key_slots;
    char* to = shared + step % l.key_slots * l.key_slot;
    const int token = static_cast<int>(token_of(step)), batch = static_cast<int>(p.batch);
    barrier_expect(barrier, l.key_slot);
    barrier_arrive(barrier);
    feed_rows<kStateChunk, kKey>(fed.gate, fed.stacked, fp32, to + l.gates, barrier, p.first_key, p.head,
                                 token, batch);
    feed_rows<kStateChunk, kKey>(kReverse ? fed.q : fed.k, fed.stacked, false, to + l.keys, barrier,
                                 p.first_key, p.key_head, token, batch);
  };
  const auto feed_values = [&](int step) {
    uint64_t* barrier = full + l.key_slots + step % l.value_slots;
    barrier_expect(barrier, l.value_slot);
    barrier_arrive(barrier);
    feed_rows<kStateChunk, kValue>(kReverse ? fed.dy : fed.v, fed.stacked, false,
                                   shared + l.values + step % l.value_slots * l.value_slot, barrier, 0,
                                   p.head, static_cast<int>(token_of(step)), static_cast<int>(p.batch));
  };
  if (threadIdx.x == 0) {
    for (int i = 0; i < l.key_slots + l.value_slots; ++i) barrier_init(full + i, 1);
    barrier_init_fence();
    for (int step = 0; step < l.key_slots && step < chunks; ++step) feed_keys(step), feed_values(step);
  }
  __syncthreads();

  float state[kValue / 8][4] = {};
  float2 total{1, 1};
  for (int step = 0; step < chunks; ++step) {
    const char* keys = shared + step % l.key_slots * l.key_slot;
    if (!plain) {
      const int64_t token = token_of(step) + threadIdx.x;
      if (threadIdx.x < kStateChunk) {
        float2 x{1, 0};
        if (token < s.tokens && s.write.data)
          x.x = *reinterpret_cast<const float*>(head_of(s.write, p, p.head) + token * s.write.token * 4);
        if (token < s.tokens && s.starts) x.y = s.starts[p.batch * s.tokens + token];
        scalars[threadIdx.x] = x;
      }
      __syncthreads();
    }
    barrier_wait(full + step % l.key_slots, step / l.key_slots & 1);
    float2 x[kTokens];
    const float2 all =
        plain ? decay_part<T, kReverse, true>(s, keys + l.keys, keys + l.gates, scalars, part, channel, x)
              : decay_part<T, kReverse, false>(s, keys + l.keys, keys + l.gates, scalars, part, channel, x);
    *reinterpret_cast<float2*>(products + part * kKey + channel) = all;
    __syncthreads();
    if (threadIdx.x == 0) {
      if (step + l.key_slots < chunks) feed_keys(step + l.key_slots), feed_values(step + l.key_slots);
    }
    __syncwarp();
    float2 beyond{1, 1}, product{1, 1};
#pragma unroll
    for (int i = 0; i < kStateParts; ++i) {
      const float2 other = *reinterpret_cast<const float2*>(products + i * kKey + channel);
      product = times(product, other);
      if (kReverse ? i < part : i > part) beyond = times(beyond, other);
    }
#pragma unroll
    for (int j = 0; j < kTokens; ++j) {
      const float2 y = times(x[j], beyond);
      *reinterpret_cast<uint32_t*>(tile + StatePanels::at(part * kTokens + j, channel)) = pack<T>(y.x, y.y);
    }
    total = times(total, product);
    if (part == 0) *reinterpret_cast<float2*>(whole + channel) = product;
    barrier_wait(full + l.key_slots + step % l.value_slots, step / l.value_slots & 1);
    __syncthreads();
    const T* values = reinterpret_cast<const T*>(shared + l.values + step % l.value_slots * l.value_slot);
    const int2 by_column = columns_first(lane), by_row = rows_first(lane);
    const float d[2] = {whole[warp * 16 + lane / 4], whole[warp * 16 + lane / 4 + 8]};
#pragma unroll
    for (int n = 0; n < kValue / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) state[n][i] *= d[i / 2];
#pragma unroll
    for (int k = 0; k < kStateChunk; k += 16) {
      uint32_t a[4];
      load_matrices_transposed(a, tile + StatePanels::at(k + by_column.x, warp * 16 + by_column.y));
#pragma unroll
      for (int n = 0; n < kValue / 8; n += 2) {
        uint32_t b[4];
        load_matrices_transposed(b, values + StatePanels::at(k + by_row.x, n * 8 + by_row.y));
        multiply_add<T>(state[n], a, b[0], b[1]);
        multiply_add<T>(state[n + 1], a, b[2], b[3]);
      }
    }
  }
  const int64_t place = (p.batch * s.heads + p.head) * s.segments + p.segment,
                state_size = int64_t{s.key_width} * s.value_width;
  for_each_stored_pair<kValue>(s, p, [&](int n, int half, int at) {
    *reinterpret_cast<float2*>(s.end + place * state_size + at) = {state[n][2 * half],
                                                                   state[n][2 * half + 1]};
  });
  if (part == 0 && channel < keys_of(s, p))
    *reinterpret_cast<float2*>(s.total_decay + place * s.key_width + p.first_key + channel) = total;
}

}  // namespace weft::kernels::vector_decay
