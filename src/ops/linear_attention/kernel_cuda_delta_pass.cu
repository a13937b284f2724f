// Delta rule: the passes over the chunks with products of single warps, which need no other warp.
#include "ops/linear_attention/delta_pass.cuh"

namespace weft::kernels::delta {
namespace {

// Right operands that are loaded ahead of their use.
template <int K>
constexpr int kAhead = K == 256 ? 1 : 4;

// s [16, K] += a [16, 64] x, x a tile [64, K].
template <class T, int K>
__device__ __forceinline__ void add_outer(float (&s)[K / 8][4], const uint32_t (&a)[4][4], const T* x) {
  load_ahead<K / 4, kAhead<K>>(
      [&](uint32_t(&b)[4], int n) { right<kSpreadRows>(b, x, n / (K / 16) * 16, n % (K / 16) * 16); },
      [&](const uint32_t(&b)[4], int n) {
        const int d = n % (K / 16) * 2;
        multiply_add_pair<T>(s[d], s[d + 1], a[n / (K / 16)], b);
      });
}

// erased = K_in' S' and, if kRead, read = Q_in' S', both [16, 64]; the packed state to device memory if `states`.
template <class T, int K, bool kRead>
__device__ __forceinline__ void read_state(float (&erased)[8][4], float (&read)[8][4],
                                           const float (&s)[K / 8][4], const T* keys, const T* queries,
                                           T* states, int V, int column) {
  uint32_t a[4];
  constexpr int kEach = kRead ? 2 : 1;  // products with a part of the state
  load_ahead<K / 4 * kEach, kAhead<K>>(
      [&](uint32_t(&b)[4], int n) {
        right_transposed<kSpreadRows>(b, n % kEach ? queries : keys, n / kEach % 4 * 16, n / kEach / 4 * 16);
      },
      [&](const uint32_t(&b)[4], int n) {
        const int d = n / kEach / 4 * 2, j = n / kEach % 4 * 2;
        if (n % (4 * kEach) == 0) {
          pack_left<T>(a, s[d], s[d + 1]);
          if (states) store_packed_state(a, states, V, column, 8 * d);
        }
        auto& c = n % kEach ? read : erased;
        multiply_add_pair<T>(c[j], c[j + 1], a, b);
      });
}

// The row of the n-th block of a lower triangle.
__device__ __forceinline__ constexpr int lower_row(int n) { return n < 1 ? 0 : n < 3 ? 1 : n < 6 ? 2 : 3; }
__device__ __forceinline__ constexpr int lower_column(int n) {
  return n - lower_row(n) * (lower_row(n) + 1) / 2;
}

// c [16, 64] += a m' for a lower triangular m.
template <class T>
__device__ __forceinline__ void add_lower_transposed(float (&c)[8][4], const uint32_t (&a)[4][4],
                                                     const T* m) {
  load_ahead<10, 3>([&](uint32_t(&b)[4], int n) { right_transposed<16>(b, m + n * 256, 0, 0); },
                    [&](const uint32_t(&b)[4], int n) {
                      const int r = 2 * lower_row(n);
                      multiply_add_pair<T>(c[r], c[r + 1], a[lower_column(n)], b);
                    });
}
// c [16, 64] += a m.
template <class T>
__device__ __forceinline__ void add_lower(float (&c)[8][4], const uint32_t (&a)[4][4], const T* m) {
  load_ahead<10, 3>([&](uint32_t(&b)[4], int n) { right<16>(b, m + n * 256, 0, 0); },
                    [&](const uint32_t(&b)[4], int n) {
                      const int i = 2 * lower_column(n);
                      multiply_add_pair<T>(c[i], c[i + 1], a[lower_row(n)], b);
                    });
}

// Summary: no outputs; what the segments do to the states before them, E in V columns and M in K more.
template <class T, int K, bool kSummary>
__global__ __launch_bounds__(32 * kMaxWarps,
                             1) void forward_kernel(const __grid_constant__ CudaLinearAttention p,
                                                    const __grid_constant__ Work work, int stages) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Block<T, K, kPairs> at{p, work, shared, stages};
  const bool maps = at.has_maps(kSummary);
  const auto load = [&](int step) {
    const int c = at.begin + step;
    if (c < at.end) {
      auto& to = at.stage(step);
      const int64_t first = static_cast<int64_t>(c) * kChunk, chunk = work.chunk(p, at.b, at.h, c);
      at.load(to, c);
      copy_block(to.solve, tile_at<T>(work.solve, chunk, 2 * kPairs), 2 * kPairs);
      if (!kSummary) copy_block(to.reads, tile_at<T>(work.reads, chunk, kPairs), kPairs);
      if (!maps)
        copy_rows(to.values, row_at<T>(p.v, at.b, first, at.h) + at.block_column, p.v.token,
                  valid_tokens(p, first), 16 * at.warps);
    }
    copy_async_commit();
  };

  for (int step = 0; step < stages - 1; ++step) load(step);
  float s[K / 8][4];
  at.load_first(s, kSummary);
  for (int c = at.begin; c < at.end; ++c) {
    const int step = c - at.begin;
    if (stages == 1) {
      __syncthreads();
      load(step);
    }
    wait_for_chunk(stages);
    if (stages > 1) load(step + stages - 1);
    const auto& in = at.stage(step);
    const int64_t chunk = work.chunk(p, at.b, at.h, c), first = static_cast<int64_t>(c) * kChunk;

    float values[8][4] = {}, read[8][4] = {};
    uint32_t a[4][4];
    {
      float erased[8][4] = {};
      T* states = !kSummary && work.states ? tile_at<T>(work.states, chunk, K * at.V) : nullptr;
      read_state<T, K, !kSummary>(erased, read, s, in.keys_in(at.warps, at.vector), in.queries, states, at.V,
                                  at.column);
      subtract_erased<T>(a, erased, in, at.warp);
    }
    add_lower_transposed(values, a, in.solve + kPairs);
    add_lower_transposed(values, a, in.solve);
    if (!kSummary) {
      scale_columns<kChunk>(read, in.facts.read);
      pack_tokens<T>(a, values);
      if (work.values) store_transposed(a, tile_at<T>(work.values, chunk, kChunk * at.V), at.column);
      add_lower_transposed(read, a, in.reads);
    }
    scale_columns<kChunk>(values, in.facts.keep);
    pack_tokens<T>(a, values);
    scale_columns<K>(s, in.facts.through);
    add_outer<T, K>(s, a, in.keys);
    if constexpr (!kSummary) {
      pack_tokens<T>(a, read);
      store_rows(a, static_cast<T*>(p.y) + ((at.b * p.tokens + first) * p.heads + at.h) * at.V + at.column,
                 p.heads * at.V, valid_tokens(p, first));
    }
  }
  at.store_last(s, kSummary);
}

// dR of a chunk and dS, the gradient of the state before it, from the one of the state after it:
// Summary: only what a segment adds to the gradient of the state before it.
//   dN = P' dY + keep K_out dS,   dR = T' dN,   dS = through dS + (read Q_in)' dY - (erase K_in)' dR
template <class T, int K>
__global__ __launch_bounds__(32 * kMaxWarps,
                             1) void backward_kernel(const __grid_constant__ CudaLinearAttention p,
                                                     const CudaLinearAttentionGradients g,
                                                     const __grid_constant__ Work work, bool summary,
                                                     int stages) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Block<T, K, kPairs> at{p, work, shared, stages};
  const auto load = [&](int step) {
    const int c = at.end - 1 - step;
    if (c >= at.begin) {
      auto& to = at.stage(step);
      const int64_t first = static_cast<int64_t>(c) * kChunk, chunk = work.chunk(p, at.b, at.h, c);
      at.load(to, c);
      copy_block(to.solve, tile_at<T>(work.solve, chunk, 2 * kPairs), kPairs);
      copy_block(to.reads, tile_at<T>(work.reads, chunk, kPairs), kPairs);
      copy_rows(
          to.values,
          static_cast<const T*>(g.dy) + ((at.b * p.tokens + first) * p.heads + at.h) * at.V + at.block_column,
          p.heads * at.V, valid_tokens(p, first), 16 * at.warps);
    }
    copy_async_commit();
  };

  for (int step = 0; step < stages - 1; ++step) load(step);
  float ds[K / 8][4];
  at.load_gradient(ds, g.dstate, summary);
  for (int step = 0; step < at.end - at.begin; ++step) {
    if (stages == 1) {
      __syncthreads();
      load(step);
    }
    wait_for_chunk(stages);
    if (stages > 1) load(step + stages - 1);
    const auto& in = at.stage(step);
    const int64_t chunk = work.chunk(p, at.b, at.h, at.end - 1 - step);

    float source[8][4] = {};
    T* dstates = tile_at<T>(work.dstates, chunk, K * at.V);
    uint32_t packed[4];
    load_ahead<K / 4, kAhead<K>>(
        [&](uint32_t(&b)[4], int n) { right_transposed<kSpreadRows>(b, in.keys, n % 4 * 16, n / 4 * 16); },
        [&](const uint32_t(&b)[4], int n) {
          const int d = n / 4 * 2, j = n % 4 * 2;
          if (n % 4 == 0) {
            pack_left<T>(packed, ds[d], ds[d + 1]);
            if (!summary) store_packed_state(packed, dstates, at.V, at.column, 8 * d);
          }
          multiply_add_pair<T>(source[j], source[j + 1], packed, b);
        });
    scale_columns<kChunk>(source, in.facts.keep);
    scale_columns<K>(ds, in.facts.through);
    uint32_t a[4][4];
#pragma unroll
    for (int r = 0; r < 4; ++r) left_transposed<kSpreadRows>(a[r], in.values, 16 * r, 16 * at.warp);
    add_lower(source, a, in.reads);
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 dy = unpack<T>(a[r][i]);
        const float2 by =
            *reinterpret_cast<const float2*>(in.facts.read + 16 * r + i / 2 * 8 + threadIdx.x % 4 * 2);
        a[r][i] = pack<T>(dy.x * by.x, dy.y * by.y);
      }
    add_outer<T, K>(ds, a, in.queries);
    pack_tokens<T>(a, source);
    float solved[8][4] = {};
    add_lower(solved, a, in.solve);
    pack_tokens<T>(a, solved);
    if (!summary) store_transposed(a, tile_at<T>(work.sources, chunk, kChunk * at.V), at.column);
    float negative[8][4];
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) negative[j][i] = -solved[j][i];
    scale_columns<kChunk>(negative, in.facts.erase);
    pack_tokens<T>(a, negative);
    add_outer<T, K>(ds, a, in.keys_in(at.warps, at.vector));
  }
  at.store_gradient(ds, g.dinitial, summary);
}

}  // namespace

CudaStatus forward_pass(const CudaLinearAttention& p, const Work& work, void* stream) {
  return with_type_and_width(p, [&](auto type, auto width) -> CudaStatus {
    using T = decltype(type);
    constexpr int K = width();
    if (work.segments > 1) {
      if (const CudaStatus failed = launch<Stage<T, K, kPairs>>(
              &forward_kernel<T, K, true>, p, work, p.value_width + K, summary_warps(p), stream, p, work))
        return failed;
      if (const CudaStatus failed = join_segments(p, work, 0, stream)) return failed;
    }
    return launch<Stage<T, K, kPairs>>(&forward_kernel<T, K, false>, p, work, p.value_width,
                                       pass_warps(p, work, 2), stream, p, work);
  });
}
CudaStatus backward_pass(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                         const Work& work, void* stream) {
  return with_type_and_width(p, [&](auto type, auto width) -> CudaStatus {
    using T = decltype(type);
    constexpr int K = width();
    const auto run = [&](bool summary) {
      return launch<Stage<T, K, kPairs>>(&backward_kernel<T, K>, p, work, p.value_width,
                                         pass_warps(p, work, 2), stream, p, g, work, summary);
    };
    if (work.segments > 1) {
      if (const CudaStatus failed = run(true)) return failed;
      if (const CudaStatus failed = join_segments_backward(p, g, work, stream)) return failed;
    }
    return run(false);
  });
}

}  // namespace weft::kernels::delta
