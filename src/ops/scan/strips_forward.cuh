// h_t = a_t h_{t-1} + b_t by strips of channels.
#pragma once

#include "ops/scan/strips.cuh"

namespace weft::kernels::strips {

template <class Algebra>
struct ForwardRows {
  static constexpr int kTokens = Algebra::kTokens;
  typename Algebra::RowA a[kTokens];
  typename Algebra::RowH b[kTokens];

  __device__ __forceinline__ void load(const CudaScan& p, const Place& x, int64_t t) {
    const bool there = x.channel < p.channels;
#pragma unroll
    for (int i = 0; i < kTokens; ++i)
      if (there && t + i < x.end) {
        a[i] = Algebra::load_a(p.a, p.channels, x.sequence * p.a.batch + (t + i) * p.a.token + x.channel);
        b[i] = Algebra::load_h(p.b.data, p.b.type, p.channels,
                               x.sequence * p.b.batch + (t + i) * p.b.token + x.channel);
      }
  }
};

template <class Algebra, Pass kPass>
__global__ void __launch_bounds__(kThreads) forward_kernel(const CudaScan p, int segments) {
  constexpr int kStates = Algebra::kStates, kTokens = Algebra::kTokens;
  __shared__ Exchange<Algebra, kPass> exchange;
  const Place x = place_of<Algebra, kPass>(p, segments);
  constexpr bool kMaps = kPass == Pass::maps;
  const int warp = threadIdx.x / 32;
  const bool there = x.channel < p.channels;
  float carry[kStates] = {};
  if (there && !kMaps) {
    read_state<Algebra>(carry, p.initial, p, x);
    if constexpr (kPass != Pass::cluster)
      for (int s = 0; s < x.segment; ++s)
        read_map<Algebra>(segment_map<Algebra>(p, x, s)).template apply<false>(carry);
  }
  Map<Algebra> whole;
  ForwardRows<Algebra> next;
  next.load(p, x, x.begin + warp * kTokens);
  uint32_t start_flag = start_at<kTokens>(p, x, x.begin + warp * kTokens);
  if constexpr (kPass == Pass::cluster) cluster_barrier();  // no block writes to one that does not run yet
  for (int step = 0; step < x.count; ++step) {
    const int64_t t = x.begin + step * x.stride + warp * kTokens;
    const ForwardRows<Algebra> rows = next;
    const unsigned starts = starts_of(start_flag);
    if (step + 1 < x.count) {
      next.load(p, x, t + x.stride);
      start_flag = start_at<kTokens>(p, x, t + x.stride);
    }
    Map<Algebra> map;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      if (t + i >= x.end) break;
      float a[Algebra::kCoefficients], b[kStates];
      widen(a, rows.a[i]);
      widen(b, rows.b[i]);
      if (starts >> i & 1) {
#pragma unroll
        for (int j = 0; j < kStates; ++j) map.h[j] = b[j];
        map.fresh = true;
        continue;
      }
      Algebra::compose(map.a, a, map.a);
      Algebra::multiply(map.h, a, map.h);
#pragma unroll
      for (int j = 0; j < kStates; ++j) map.h[j] += b[j];
    }
    if constexpr (kMaps) {
      exchange.template gather<false>(step, map, whole);
      continue;
    }
    float state[kStates];
    exchange.template pass<false>(step, x, map, carry, state);
    if (!there) continue;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      if (t + i >= x.end) break;
      float a[Algebra::kCoefficients], b[kStates];
      widen(a, rows.a[i]);
      widen(b, rows.b[i]);
      Algebra::multiply(state, a, state);
#pragma unroll
      for (int j = 0; j < kStates; ++j) state[j] = starts >> i & 1 ? b[j] : state[j] + b[j];
      Algebra::store_h(p.h, p.b.type, p.channels, row_of<Algebra>(p, x, t + i), state);
    }
  }
  if (!there || warp != 0) return;
  if constexpr (kMaps)
    write_map(segment_map<Algebra>(p, x, x.segment), whole);
  else if (x.segment + 1 == x.segments)
    write_state<Algebra>(p.state, carry, p, x);
}

}  // namespace weft::kernels::strips
