// What the backward kernels for Hopper share.
#pragma once

#include "ops/attention/kernel_cuda_hopper.cuh"

namespace weft::kernels {

constexpr int kThreads = 384;

// What passes by in a stage: the first row + 2 if no other follows + 1 if all pairs are seen, and the head of queries.
struct PassingStep {
  int32_t what, head;

  __device__ __forceinline__ int first() const { return what & ~3; }
  __device__ __forceinline__ bool last() const { return what & 2; }
  __device__ __forceinline__ bool full() const { return what & 1; }
};

// Calls fill(n, step) for the steps of a walk, or for a single step of hidden pairs if it has none.
template <int kParts, class Fill>
__device__ __forceinline__ void for_each_step(Walk<kParts>& walk, int head, const Fill& fill) {
  for (int n = 0; n == 0 || !walk.done(); ++n) {
    PassingStep step{0, head};
    if (!walk.done()) {
      step = {walk.first() + walk.full(), walk.head};
      walk.next();
    }
    if (walk.done()) step.what |= 2;
    fill(n, step);
  }
}

template <int kStages>
struct Barriers {
  uint64_t own, full[kStages], empty[kStages];
  PassingStep steps[kStages];  // written before a stage is full

  // `users`: warpgroups that use every stage.
  __device__ __forceinline__ void init(int users) {
    barrier_init(&own, 1);
    for (int i = 0; i < kStages; ++i) barrier_init(&full[i], 1), barrier_init(&empty[i], users);
    barrier_init_fence();
  }
};

__device__ __forceinline__ void expect(uint64_t* barrier, int bytes) {
  barrier_expect(barrier, bytes);
  barrier_arrive(barrier);
}

struct Maps {
  CUtensorMap own_first, own_second, first, second, out_first, out_second;
};

// Two tiles that stay, and stages of two tiles that pass by, each with kMore bytes of what is known of its rows.
template <int kRows, int kWidth, int kStep, int kStages, int kMore>
struct Layout {
  using Own = Tile<kRows, kWidth>;
  using Passing = Tile<kStep, kWidth>;
  static constexpr int kStageBytes = 2 * Passing::kBytes + kMore;
  static constexpr int kBytes = 2 * Own::kBytes + kStages * kStageBytes + 1024;  // and alignment
  char* memory;

  __device__ Own own_first() const { return {memory}; }
  __device__ Own own_second() const { return {memory + Own::kBytes}; }
  __device__ Passing first(int stage) const {
    return {memory + 2 * Own::kBytes + 2 * stage * Passing::kBytes};
  }
  __device__ Passing second(int stage) const { return {first(stage).data + Passing::kBytes}; }
  __device__ char* more(int stage) const {
    return memory + 2 * Own::kBytes + 2 * kStages * Passing::kBytes + stage * kMore;
  }
};

// c, times factor, to device memory by way of rows [row, row + 64) of a tile that this warpgroup alone still uses. The
// tile's first row is row `first` of the head.
template <class T, int kRows, int kWidth>
__device__ __forceinline__ void store_tile(const Tile<kRows, kWidth>& by, int row,
                                           const float (&c)[kWidth / 8][4], float factor,
                                           const CUtensorMap& map, int head, int first, int batch,
                                           int width) {
  const float factors[2] = {factor, factor};
  write_rows<T>(by, row + threadIdx.x % 128 / 32 * 16, c, factors);
  async_fence();
  named_barrier(threadIdx.x / 128, 128);
  if (threadIdx.x % 128 != 0) return;
#pragma unroll
  for (int column = 0; column < kWidth; column += 64)
    if (column < width)
      store_panel(&map, by.data + column / 64 * by.kPanelBytes + row * 128, column, head, first + row, batch);
  store_commit();
}

inline CudaRows rows_of(const AttentionOut& x, int64_t tokens, int64_t heads, int64_t width) {
  return {x.data, x.type, tokens * heads * width, heads * width, width};
}

template <class Kernel>
CudaStatus launch(Kernel* kernel, const AttentionCuda& p, const Maps& maps, int bytes, dim3 grid,
                  void* stream) {
  if (const auto error = allow_shared(kernel, bytes)) return status_of(error);
  kernel<<<grid, kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(p, maps);
  return last_status();
}

// Of panels of `rows` rows of a tensor of queries, or of keys.
inline CudaStatus backward_map(CUtensorMap& to, const AttentionCuda& p, const CudaRows& x, bool of_queries,
                               int width, int rows) {
  return make_tensor_map(&to, x, width, of_queries ? p.heads : p.key_heads, of_queries ? p.queries : p.keys,
                         p.batch, rows);
}

// Widths from 129 to 256.
CudaStatus attention_backward_wide(const AttentionCuda& p, void* stream);

}  // namespace weft::kernels
