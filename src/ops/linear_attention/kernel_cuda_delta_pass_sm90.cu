// Delta rule: the passes over the chunks with products of warpgroups, which read their right operands in shared memory.
#include "ops/linear_attention/delta_sm90.cuh"

namespace weft::kernels::delta {
namespace {

// Zeros in all square tiles, once: copies leave what is above the diagonal's blocks.
template <class T, int K>
__device__ __forceinline__ void clear_squares(const Block<T, K, kSquare>& at) {
  for (int stage = 0; stage < at.stages; ++stage) {
    auto& to = at.stage(stage);
    for (int i = threadIdx.x; i < 2 * kSquare / 8; i += blockDim.x)
      reinterpret_cast<uint4*>(to.solve)[i] = make_uint4(0, 0, 0, 0);
    for (int i = threadIdx.x; i < kSquare / 8; i += blockDim.x)
      reinterpret_cast<uint4*>(to.reads)[i] = make_uint4(0, 0, 0, 0);
  }
  __syncthreads();
}

__device__ __forceinline__ void wait_for_operands(int stages) {
  if (stages == 3)
    copy_async_wait<1>();
  else
    copy_async_wait<0>();
  async_fence();
  __syncthreads();
}

// Summary: as in the pass of single warps, whose equations these are.
template <class T, int K, bool kSummary>
__global__ __launch_bounds__(32 * kMaxWarps,
                             1) void forward_kernel_sm90(const __grid_constant__ CudaLinearAttention p,
                                                         const __grid_constant__ Work work, int stages) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Block<T, K, kSquare> at{p, work, shared, stages};
  const bool maps = at.has_maps(kSummary);
  const auto load = [&](int step) {
    const int c = at.begin + step;
    if (c < at.end) {
      auto& to = at.stage(step);
      const int64_t first = static_cast<int64_t>(c) * kChunk, chunk = work.chunk(p, at.b, at.h, c);
      const T* solve = tile_at<T>(work.solve, chunk, 2 * kPairs);
      at.load(to, c);
      copy_lower(to.solve, solve);
      copy_lower(to.solve + kSquare, solve + kPairs);
      if (!kSummary) copy_lower(to.reads, tile_at<T>(work.reads, chunk, kPairs));
      if (!maps)
        copy_rows(to.values, row_at<T>(p.v, at.b, first, at.h) + at.block_column, p.v.token,
                  valid_tokens(p, first), 16 * at.warps);
    }
    copy_async_commit();
  };

  clear_squares(at);
  for (int step = 0; step < stages - 1; ++step) load(step);
  float s[K / 8][4];
  at.load_first(s, kSummary);
  for (int c = at.begin; c < at.end; ++c) {
    const int step = c - at.begin;
    wait_for_operands(stages);
    const auto& in = at.stage(step);
    Outputs<T> out;
    if (!kSummary) out = Outputs<T>(p, work, at.b, at.h, c, at.column);
    forward_chunk<T, K, !kSummary>(s, in, in.keys_in(at.warps, at.vector), at.warp, out,
                                   [&] { load(step + stages - 1); });
  }
  at.store_last(s, kSummary);
}

template <class T, int K>
__global__ __launch_bounds__(32 * kMaxWarps, 1) void backward_kernel_sm90(
    const __grid_constant__ CudaLinearAttention p, const __grid_constant__ CudaLinearAttentionGradients g,
    const __grid_constant__ Work work, bool summary, int stages) {
  extern __shared__ __align__(128) unsigned char shared[];
  const Block<T, K, kSquare> at{p, work, shared, stages};
  const auto load = [&](int step) {
    const int c = at.end - 1 - step;
    if (c >= at.begin) {
      auto& to = at.stage(step);
      const int64_t first = static_cast<int64_t>(c) * kChunk, chunk = work.chunk(p, at.b, at.h, c);
      at.load(to, c);
      copy_lower(to.solve, tile_at<T>(work.solve, chunk, 2 * kPairs));
      copy_lower(to.reads, tile_at<T>(work.reads, chunk, kPairs));
      copy_rows(
          to.values,
          static_cast<const T*>(g.dy) + ((at.b * p.tokens + first) * p.heads + at.h) * at.V + at.block_column,
          p.heads * at.V, valid_tokens(p, first), 16 * at.warps);
    }
    copy_async_commit();
  };

  clear_squares(at);
  for (int step = 0; step < stages - 1; ++step) load(step);
  float ds[K / 8][4];
  at.load_gradient(ds, g.dstate, summary);
  for (int step = 0; step < at.end - at.begin; ++step) {
    wait_for_operands(stages);
    const auto& in = at.stage(step);
    const int64_t chunk = work.chunk(p, at.b, at.h, at.end - 1 - step);

    float source[8][4] = {};
    uint32_t packed[K / 16][4];
    pack_state<T, K>(packed, ds, summary ? nullptr : tile_at<T>(work.dstates, chunk, K * at.V), at.V,
                     at.column);
    pin_columns<kChunk>(source);
    products_begin();
    multiply_state<T, K>(source, packed, in.keys);
    load(step + stages - 1);
    uint32_t dy[4][4], read[4][4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      left_transposed<kSpreadRows>(dy[r], in.values, 16 * r, 16 * at.warp);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 x = unpack<T>(dy[r][i]);
        const float2 by =
            *reinterpret_cast<const float2*>(in.facts.read + 16 * r + i / 2 * 8 + threadIdx.x % 4 * 2);
        read[r][i] = pack<T>(x.x * by.x, x.y * by.y);
      }
    }
    products_wait<0>();
    pin_columns<kChunk>(source);
    scale_columns<kChunk>(source, in.facts.keep);
    scale_columns<K>(ds, in.facts.through);
    pin_columns<kChunk>(source);
    pin_columns<K>(ds);
    products_begin();
    multiply(source, dy, in.reads);
    products_commit();
    add_outer<T, K>(ds, read, in.queries);
    products_commit();
    products_wait<1>();
    pin_columns<kChunk>(source);
    uint32_t a[4][4];
    pack_tokens<T>(a, source);
    float solved[8][4] = {};
    pin_columns<kChunk>(solved);
    products_begin();
    multiply(solved, a, in.solve);
    products_commit();
    products_wait<0>();
    pin_columns<kChunk>(solved);
    pin_columns<K>(ds);
    uint32_t sources[4][4];
    pack_tokens<T>(sources, solved);
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) solved[j][i] = -solved[j][i];
    scale_columns<kChunk>(solved, in.facts.erase);
    uint32_t erase[4][4];
    pack_tokens<T>(erase, solved);
    pin_columns<K>(ds);
    products_begin();
    add_outer<T, K>(ds, erase, in.keys_in(at.warps, at.vector));
    products_commit();
    if (!summary) store_transposed(sources, tile_at<T>(work.sources, chunk, kChunk * at.V), at.column);
    products_wait<0>();
    pin_columns<K>(ds);
  }
  at.store_gradient(ds, g.dinitial, summary);
}

// Calls body(T{}, integral constant of K) for widths whose passes keep their registers.
template <class Body>
CudaStatus with_narrow_width(const CudaLinearAttention& p, const Body& body) {
  const auto with_width = [&](auto type) -> CudaStatus {
    if (p.key_width == 64) return body(type, std::integral_constant<int, 64>{});
    return body(type, std::integral_constant<int, 128>{});
  };
  return p.v.type == CudaType::bf16 ? with_width(bf16{}) : with_width(fp16{});
}

}  // namespace

CudaStatus forward_pass_sm90(const CudaLinearAttention& p, const Work& work, void* stream) {
  return with_narrow_width(p, [&](auto type, auto width) -> CudaStatus {
    using T = decltype(type);
    constexpr int K = width();
    using Tiles = Stage<T, K, kSquare>;
    if (work.segments > 1) {
      if (const CudaStatus failed = launch<Tiles>(&forward_kernel_sm90<T, K, true>, p, work,
                                                  p.value_width + K, summary_warps(p), stream, p, work))
        return failed;
      if (const CudaStatus failed = join_segments(p, work, 0, stream)) return failed;
    }
    return launch<Tiles>(&forward_kernel_sm90<T, K, false>, p, work, p.value_width, pass_warps(p, work, 4),
                         stream, p, work);
  });
}
CudaStatus backward_pass_sm90(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                              const Work& work, void* stream) {
  return with_narrow_width(p, [&](auto type, auto width) -> CudaStatus {
    using T = decltype(type);
    constexpr int K = width();
    const auto run = [&](bool summary) {
      return launch<Stage<T, K, kSquare>>(&backward_kernel_sm90<T, K>, p, work, p.value_width,
                                          pass_warps(p, work, 4), stream, p, g, work, summary);
    };
    if (work.segments > 1) {
      if (const CudaStatus failed = run(true)) return failed;
      if (const CudaStatus failed = join_segments_backward(p, g, work, stream)) return failed;
    }
    if (!has_backward_sm90(p)) return run(false);
    return p.decay == Decay::vector ? backward_gradients_vector_sm90(p, g, work, stream)
                                    : backward_gradients_sm90(p, g, work, stream);
  });
}

}  // namespace weft::kernels::delta
