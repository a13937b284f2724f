// One token for decoding, with the state read once and written once. A block takes some columns of one head; their rows lie in
// registers while the recalled values and the output are summed over them.
#include "ops/cuda/early.cuh"
#include "ops/linear_attention/columns.cuh"
#include "ops/linear_attention/plain.cuh"

namespace weft::kernels {
namespace plain {
namespace {

// What a thread, then a warp, then the block has summed over rows, for four columns: S' q, S' of what the erase reads
// with, and the products of the token's rows with q.
struct Sums {
  float4 out, recall;
  float key, erase;
};

// Blocks on a multiprocessor when the state leaves a thread 48 registers for the rest.
constexpr int blocks_for(int threads, int rows) { return 65536 / (threads * (4 * rows + 48)); }

template <int kThreads, int kColumnLanes, int kRows, Form kForm>
__global__ void __launch_bounds__(kThreads, blocks_for(kThreads, kRows))
    step_kernel(const __grid_constant__ CudaLinearAttention p, bool aligned) {
  constexpr bool kErases = kForm == Form::delta || kForm == Form::low_rank;
  constexpr int kWarps = kThreads / 32, kColumns = 4 * kColumnLanes, kRowGroups = kThreads / kColumnLanes,
                kKeys = kRows * kRowGroups;
  __shared__ float q[kKeys], k[kKeys], decay[kKeys], read[kErases ? kKeys : 1], write[kErases ? kKeys : 1];
  __shared__ alignas(16) Sums sums[kWarps][kColumnLanes];
  const auto slices = static_cast<unsigned>((p.value_width + kColumns - 1) / kColumns);
  const int first = static_cast<int>(blockIdx.x % slices) * kColumns;
  const Head head(p, blockIdx.x / slices);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kColumnLanes,
            group = thread / kColumnLanes;
  const int column = first + 4 * lane, left = static_cast<int>(p.value_width) - column,
            width = static_cast<int>(p.value_width), rows = static_cast<int>(p.key_width) - group;
  float* state = p.state + (head.index(p) * p.key_width + group) * p.value_width + column;

  let_next_start();
  wait_for_last();

  float4 s[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int d = i * kRowGroups;
    s[i] = d < rows && left > 0 ? load4_once(state + d * width, left, aligned) : float4{};
  }
  const bool fresh = starts_at(p, head, 0);
  const float strength = write_of(p, head, 0), beta = beta_of(p, head, 0);
  float value[4];
#pragma unroll
  for (int c = 0; c < 4; ++c) value[c] = c < left ? load(p.v, head.b, 0, head.h, column + c) : 0;
  for (int d = thread; d < kKeys; d += kThreads) {
    const bool inside = d < p.key_width;
    q[d] = inside ? p.scale * load(p.q, head.b, 0, head.key, d) : 0;
    k[d] = inside ? load(p.k, head.b, 0, head.key, d) : 0;
    decay[d] = inside ? decay_of(p, head, 0, d) : 0;
    if constexpr (kForm == Form::low_rank) {
      read[d] = inside ? load(p.erase_read, head.b, 0, head.erase, d) : 0;
      write[d] = inside ? load(p.erase_write, head.b, 0, head.erase, d) : 0;
    }
  }
  __syncthreads();

  Sums sum{};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int d = group + i * kRowGroups;
    if (fresh) s[i] = {};
    const float4 after = decay[d] * s[i];
    sum.out = sum.out + q[d] * (kForm == Form::bonus ? s[i] : after);
    if constexpr (kForm == Form::delta) sum.recall = sum.recall + k[d] * after;
    if constexpr (kForm == Form::low_rank)
      sum.recall = sum.recall + read[d] * s[i], sum.erase += q[d] * write[d];
    if constexpr (kForm == Form::bonus)
      sum.key += d < p.key_width ? q[d] * k[d] * p.bonus[head.h * p.key_width + d] : 0;
    else
      sum.key += q[d] * k[d];
    s[i] = after;
  }
#pragma unroll
  for (int step = kColumnLanes; step < 32; step *= 2) {
    sum.out = sum.out + exchange(sum.out, step);
    sum.key += __shfl_xor_sync(0xffffffff, sum.key, step);
    if constexpr (kErases) sum.recall = sum.recall + exchange(sum.recall, step);
    if constexpr (kForm == Form::low_rank) sum.erase += __shfl_xor_sync(0xffffffff, sum.erase, step);
  }
  if (thread % 32 < kColumnLanes) sums[thread / 32][lane] = sum;
  __syncthreads();
  const bool outputs = thread < kColumnLanes;
  sum = {};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    if constexpr (kErases) sum.recall = sum.recall + sums[w][lane].recall;
    if (!outputs) continue;
    sum.out = sum.out + sums[w][lane].out, sum.key += sums[w][lane].key;
    if constexpr (kForm == Form::low_rank) sum.erase += sums[w][lane].erase;
  }
  float4 written{strength * value[0], strength * value[1], strength * value[2], strength * value[3]};
  if constexpr (kForm == Form::delta) written = written + -beta * sum.recall;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int d = group + i * kRowGroups;
    s[i] = s[i] + k[d] * written;
    if constexpr (kForm == Form::low_rank) s[i] = s[i] + write[d] * sum.recall;
    if (d - group < rows && left > 0) store4_once(state + (d - group) * width, s[i], left, aligned);
  }
  if (!outputs) return;
  const float4 own = kForm == Form::bonus ? float4{value[0], value[1], value[2], value[3]} : written;
  float4 y = sum.out + sum.key * own;
  if constexpr (kForm == Form::low_rank) y = y + sum.erase * sum.recall;
#pragma unroll
  for (int c = 0; c < 4; ++c)
    if (c < left) store(p.v.type, p.y, head.index(p) * p.value_width + column + c, part(y, c));
}

template <int kThreads, int kColumnLanes, int kRows>
CudaStatus launch(const CudaLinearAttention& p, cudaStream_t stream) {
  constexpr int kColumns = 4 * kColumnLanes;
  const bool aligned = p.value_width % 4 == 0 && reinterpret_cast<uintptr_t>(p.state) % 16 == 0;
  const auto blocks = static_cast<unsigned>(p.batch * p.heads * ((p.value_width + kColumns - 1) / kColumns));
  const auto start = [&]<Form kForm>() {
    return launch_early(step_kernel<kThreads, kColumnLanes, kRows, kForm>, blocks, kThreads, 0, stream,
                        p.capability, 1, p, aligned);
  };
  switch (form_of(p)) {
    case Form::none:
      return start.template operator()<Form::none>();
    case Form::bonus:
      return start.template operator()<Form::bonus>();
    case Form::delta:
      return start.template operator()<Form::delta>();
    default:
      return start.template operator()<Form::low_rank>();
  }
}

}  // namespace
}  // namespace plain

bool cuda_takes_step(const CudaLinearAttention& p) { return p.key_width <= 512; }

CudaStatus cuda_step(const CudaLinearAttention& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  // With many heads few large blocks keep the memory busiest; with few, many small ones answer soonest.
  const bool many = p.batch * p.heads >= 2 * p.multiprocessors, wide = p.value_width > 64;
  if (many && p.key_width <= 64)
    return wide ? plain::launch<128, 32, 16>(p, on) : plain::launch<128, 16, 8>(p, on);
  if (many && p.key_width <= 128)
    return wide ? plain::launch<256, 32, 16>(p, on) : plain::launch<256, 16, 8>(p, on);
  const int64_t rows = (p.key_width + 31) / 32;
  if (rows <= 2) return plain::launch<256, 8, 2>(p, on);
  if (rows <= 4) return plain::launch<256, 8, 4>(p, on);
  return rows <= 8 ? plain::launch<256, 8, 8>(p, on) : plain::launch<256, 8, 16>(p, on);
}

}  // namespace weft::kernels
