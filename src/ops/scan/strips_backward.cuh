// Gradients of h_t = a_t h_{t-1} + b_t by strips of channels.
#pragma once

#include "ops/scan/strips.cuh"

namespace weft::kernels::strips {

template <class Algebra>
struct BackwardRows {
  static constexpr int kTokens = Algebra::kTokens;
  typename Algebra::RowA a[kTokens];
  typename Algebra::RowH dh[kTokens], before[kTokens];  // before: h of the token before

  __device__ __forceinline__ void load(const CudaScanGradient& g, const Place& x, int64_t t, bool states) {
    const CudaScan& p = g.forward;
    const bool there = x.channel < p.channels;
#pragma unroll
    for (int i = 0; i < kTokens; ++i)
      if (there && t + i < x.end) {
        a[i] = Algebra::load_a(p.a, p.channels, x.sequence * p.a.batch + (t + i) * p.a.token + x.channel);
        dh[i] = Algebra::load_h(g.dh, p.b.type, p.channels, row_of<Algebra>(p, x, t + i));
        if (states && t + i > 0)
          before[i] = Algebra::load_h(p.h, p.b.type, p.channels, row_of<Algebra>(p, x, t + i - 1));
      }
  }
};

// Adds up what the warps hold, in order, and writes it as a row of da_sums.
template <class Algebra, Pass kPass>
__device__ void write_coefficient_sums(const CudaScanGradient& g, const Place& x,
                                       Exchange<Algebra, kPass>& exchange,
                                       const float (&sums)[Algebra::kCoefficients]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Algebra::kCoefficients; ++i) exchange.warps[0][warp].numbers[i][lane] = sums[i];
  __syncthreads();
  if (warp != 0 || x.channel >= g.forward.channels) return;
  constexpr int kPer = Algebra::kCoefficients / Algebra::kChannels;
  float* const to =
      g.da_sums + ((x.sequence * x.segments + x.segment) * g.forward.channels + x.channel) * kPer;
#pragma unroll
  for (int i = 0; i < Algebra::kCoefficients; ++i) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += exchange.warps[0][w].numbers[i][lane];
    to[i] = sum;
  }
}

// With q_t = a*_t g_t, what token t hands to the one before: g_t = dh_t + q_{t+1}, db_t = g_t, da_t = g_t h*_{t-1}.
template <class Algebra, Pass kPass>
__global__ void __launch_bounds__(kThreads) backward_kernel(const CudaScanGradient g, int segments) {
  constexpr int kStates = Algebra::kStates, kCoefficients = Algebra::kCoefficients,
                kTokens = Algebra::kTokens;
  __shared__ Exchange<Algebra, kPass> exchange;
  const CudaScan& p = g.forward;
  const Place x = place_of<Algebra, kPass>(p, segments);
  constexpr bool kMaps = kPass == Pass::maps;
  const int warp = threadIdx.x / 32;
  const bool there = x.channel < p.channels, states = !kMaps && (g.da || g.da_sums);
  float carry[kStates] = {}, sums[kCoefficients] = {};
  if (there && !kMaps) {
    read_state<Algebra>(carry, g.dstate, p, x);
    if constexpr (kPass != Pass::cluster)
      for (int s = x.segments - 1; s > x.segment; --s)
        read_map<Algebra>(segment_map<Algebra>(p, x, s)).template apply<true>(carry);
  }
  Map<Algebra> whole;
  BackwardRows<Algebra> next;
  const auto begin_of = [&](int step) { return x.begin + (x.count - 1 - step) * x.stride + warp * kTokens; };
  uint32_t start_flag = 0;
  const auto fetch = [&](int64_t t) {
    next.load(g, x, t, states);
    start_flag = start_at<kTokens>(p, x, t);
  };
  if (x.count > 0) fetch(begin_of(0));
  if constexpr (kPass == Pass::cluster) cluster_barrier();  // no block writes to one that does not run yet
  for (int step = 0; step < x.count; ++step) {
    const int64_t t = begin_of(step);
    const BackwardRows<Algebra> rows = next;
    const unsigned starts = starts_of(start_flag);
    if (step + 1 < x.count) fetch(t - x.stride);
    Map<Algebra> map;
#pragma unroll
    for (int i = kTokens - 1; i >= 0; --i) {
      if (t + i >= x.end) continue;
      float a[kCoefficients], dh[kStates];
      widen(a, rows.a[i]);
      widen(dh, rows.dh[i]);
#pragma unroll
      for (int j = 0; j < kStates; ++j) map.h[j] += dh[j];
      Algebra::multiply_adjoint(map.h, a, map.h);
      Algebra::compose(map.a, map.a, a);
      if (starts >> i & 1) {
#pragma unroll
        for (float& value : map.h) value = 0.0f;
        map.fresh = true;
      }
    }
    if constexpr (kMaps) {
      exchange.template gather<true>(step, map, whole);
      continue;
    }
    float q[kStates];
    exchange.template pass<true>(step, x, map, carry, q);
    if (!there) continue;
#pragma unroll
    for (int i = kTokens - 1; i >= 0; --i) {
      if (t + i >= x.end) continue;
      float a[kCoefficients], dh[kStates];
      widen(a, rows.a[i]);
      widen(dh, rows.dh[i]);
#pragma unroll
      for (int j = 0; j < kStates; ++j) q[j] += dh[j];
      const int64_t row = row_of<Algebra>(p, x, t + i);
      Algebra::store_h(g.db, p.b.type, p.channels, row, q);
      const bool start = starts >> i & 1;
      if (states) {
        float h[kStates], da[kCoefficients];
        if (t + i > 0)
          widen(h, rows.before[i]);
        else
          read_state<Algebra>(h, p.initial, p, x);
        Algebra::outer(da, q, h);
        if (start)
#pragma unroll
          for (float& value : da) value = 0.0f;
        if (g.da)
          Algebra::store_a(g.da, p.a.type, p.channels,
                           row + (p.kind == CudaScanKind::matrix ? row - x.channel : int64_t{0}), da);
#pragma unroll
        for (int j = 0; j < kCoefficients; ++j) sums[j] += da[j];
      }
      Algebra::multiply_adjoint(q, a, q);
      if (start)
#pragma unroll
        for (float& value : q) value = 0.0f;
    }
  }
  if (there && warp == 0) {
    if constexpr (kMaps)
      write_map(segment_map<Algebra>(p, x, x.segment), whole);
    else if (x.segment == 0 && g.dinitial)
      write_state<Algebra>(g.dinitial, carry, p, x);
  }
  if (g.da_sums && !kMaps) write_coefficient_sums<Algebra, kPass>(g, x, exchange, sums);
}

}  // namespace weft::kernels::strips
