// A token of Gated DeltaNet between its projections. A cluster takes a key head with its value heads, a block some columns
// of one: its rows of the state lie in registers while the recalled values and the output are summed over them, as in
// kernel_cuda_step.cu. Blocks meet once, for the norm over the columns of a head, and behind it the convolution's state
// moves on, which they all have read by then.
#include "ops/cuda/cluster.cuh"
#include "ops/cuda/early.cuh"
#include "ops/cuda/vector.cuh"
#include "ops/linear_attention/columns.cuh"
#include "ops/linear_attention/kernel_cuda_delta_step.h"

namespace weft::kernels {
namespace {

using namespace plain;

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMostCluster = 8, kMostTaps = 4;

// What a thread, then a warp, has summed over rows for four columns: S' q, S' k, and q k.
struct Sums {
  float4 out, recall;
  float key;
};

// The convolution of one sequence.
template <class T>
struct Convolution {
  const CudaDeltaStep& p;
  const T* x;
  T* past;

  __device__ Convolution(const CudaDeltaStep& problem, int batch) : p(problem) {
    x = static_cast<const T*>(p.x) + batch * p.channels();
    past = static_cast<T*>(p.conv_state) + batch * (p.taps - 1) * p.channels();
  }
  // silu of the sum over a channel's last inputs.
  __device__ __forceinline__ float at(int64_t channel) const {
    const int before = static_cast<int>(p.taps) - 1;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kMostTaps - 1; ++i)
      if (i < before)
        sum = fmaf(element(p.conv_weight, p.conv_type, channel * p.taps + i),
                   to_float(past[i * p.channels() + channel]), sum);
    sum = fmaf(element(p.conv_weight, p.conv_type, channel * p.taps + before), to_float(x[channel]), sum);
    return sum * sigmoid(sum);
  }
  __device__ __forceinline__ void move_on(int64_t channel) const {
    const int before = static_cast<int>(p.taps) - 1;
    T rows[kMostTaps];
#pragma unroll
    for (int i = 1; i < kMostTaps; ++i)
      if (i <= before) rows[i] = i < before ? past[i * p.channels() + channel] : x[channel];
#pragma unroll
    for (int i = 1; i < kMostTaps; ++i)
      if (i <= before) past[(i - 1) * p.channels() + channel] = rows[i];
  }
};

template <class T, int kColumnLanes, int kRows>
__global__ void __launch_bounds__(kThreads, 2) delta_step_kernel(const __grid_constant__ CudaDeltaStep p) {
  constexpr int kColumns = 4 * kColumnLanes, kRowGroups = kThreads / kColumnLanes, kKeys = kRows * kRowGroups;
  __shared__ alignas(16) float value[kColumns];
  __shared__ float q[kKeys], k[kKeys], lengths[kWarps][2], squares[kMostCluster];
  __shared__ alignas(16) Sums sums[kWarps][kColumnLanes];
  const int key_width = static_cast<int>(p.key_width), width = static_cast<int>(p.value_width),
            key_heads = static_cast<int>(p.key_heads), group = static_cast<int>(p.heads) / key_heads,
            slices = width / kColumns, cluster = group * slices;
  const int rank = static_cast<int>(blockIdx.x) % cluster, place = static_cast<int>(blockIdx.x) / cluster,
            batch = place / key_heads, key_head = place % key_heads, head = key_head * group + rank / slices,
            slice = rank % slices;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kColumnLanes, row = thread / kColumnLanes;
  const int64_t index = batch * p.heads + head;
  float* const state = p.state + (index * key_width + row) * width + slice * kColumns + 4 * lane;
  const int64_t keys = p.key_heads * p.key_width,
                values = 2 * keys + int64_t{head} * width + slice * kColumns;
  const auto near_taps = [&](int64_t channel, int64_t count) {
    const int64_t bytes = p.taps * (p.conv_type == CudaType::fp32 ? 4 : 2);
    prefetch_all(static_cast<const char*>(p.conv_weight) + channel * bytes, count * bytes);
  };
  near_taps(int64_t{key_head} * key_width, key_width);
  near_taps(keys + int64_t{key_head} * key_width, key_width);
  near_taps(values, kColumns);
  prefetch_all(p.norm_weight + slice * kColumns, kColumns * sizeof(float));
  if (lane % 8 == 0)
#pragma unroll
    for (int i = 0; i < kRows; ++i) prefetch(state + i * kRowGroups * width);
  let_next_start();
  wait_for_last();
  cluster_arrive();

  float4 s[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) s[i] = load4_once(state + i * kRowGroups * width, 4, true);
  const float beta = p.beta_scale * sigmoid(element(p.beta, p.type, index)),
              pace = element(p.decay, p.type, index) + p.dt_bias[head];
  const float soft = pace > 20 ? pace : log1pf(expf(pace)), decay = expf(-expf(p.a_log[head]) * soft);
  const Convolution<T> conv(p, batch);
  float length[2] = {};
  for (int d = thread; d < 2 * key_width; d += kThreads) {
    const bool second = d >= key_width;
    const int at = second ? d - key_width : d;
    const float x = conv.at((second ? keys : 0) + int64_t{key_head} * key_width + at);
    (second ? k : q)[at] = x;
    length[0] += second ? 0 : x * x;
    length[1] += second ? x * x : 0;
  }
  for (int c = thread; c < kColumns; c += kThreads) value[c] = conv.at(values + c);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    length[i] = warp_sum(length[i]);
    if (thread % 32 == 0) lengths[thread / 32][i] = length[i];
  }
  __syncthreads();
  float unit[2] = {p.key_eps, p.key_eps};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) unit[0] += lengths[w][0], unit[1] += lengths[w][1];
  const float q_unit = p.scale * rsqrtf(unit[0]), k_unit = rsqrtf(unit[1]);

  Sums sum{};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int d = row + i * kRowGroups;
    s[i] = decay * s[i];
    sum.out = sum.out + q[d] * s[i];
    sum.recall = sum.recall + k[d] * s[i];
    sum.key += q[d] * k[d];
  }
#pragma unroll
  for (int step = kColumnLanes; step < 32; step *= 2) {
    sum.out = sum.out + exchange(sum.out, step);
    sum.recall = sum.recall + exchange(sum.recall, step);
    sum.key += __shfl_xor_sync(0xffffffff, sum.key, step);
  }
  if (thread % 32 < kColumnLanes) sums[thread / 32][lane] = sum;
  __syncthreads();
  sum = {};
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    sum.out = sum.out + sums[w][lane].out;
    sum.recall = sum.recall + sums[w][lane].recall;
    sum.key += sums[w][lane].key;
  }
  float4 written = *reinterpret_cast<const float4*>(value + 4 * lane);
  written = beta * (written + -k_unit * sum.recall);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    s[i] = s[i] + (k_unit * k[row + i * kRowGroups]) * written;
    store4_once(state + i * kRowGroups * width, s[i], 4, true);
  }

  const float4 y = q_unit * (sum.out + (k_unit * sum.key) * written);
  float square = y.x * y.x + y.y * y.y + y.z * y.z + y.w * y.w;
  cluster_wait();
  if (thread < 32) {
    square = warp_sum<kColumnLanes>(square);
    if (thread < slices) {
      const uint32_t to = shared_address(squares + slice);
      store_in_cluster(address_in(to, static_cast<uint32_t>(rank - slice + thread)), square);
    }
  }
  cluster_barrier();
  if (thread < kColumnLanes) {
    float total = 0;
    for (int i = 0; i < slices; ++i) total += squares[i];
    const float inverse = rsqrtf(total / static_cast<float>(width) + p.norm_eps);
    const int column = slice * kColumns + 4 * lane;
    const int64_t at = index * width + column;
    float result[4], gate[4];
    if (p.gate) load_floats(gate, static_cast<const T*>(p.gate) + at);
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      result[c] = part(y, c) * inverse * p.norm_weight[column + c];
      if (p.gate) result[c] *= gate[c] * sigmoid(gate[c]);
    }
    store_pack(static_cast<T*>(p.y) + at, result);
  }
  for (int c = thread; c < kColumns; c += kThreads) conv.move_on(values + c);
  if (rank == 0)
    for (int d = thread; d < 2 * key_width; d += kThreads)
      conv.move_on((d < key_width ? 0 : keys - key_width) + int64_t{key_head} * key_width + d);
}

// With many heads few large blocks keep the memory busiest; with few, many small ones answer soonest.
bool has_many(const CudaDeltaStep& p) { return p.batch * p.heads >= 2 * p.multiprocessors; }

int columns_of(const CudaDeltaStep& p) {
  return has_many(p) && p.value_width % 128 == 0 ? 128 : has_many(p) && p.value_width % 64 == 0 ? 64 : 32;
}
int64_t cluster_of(const CudaDeltaStep& p) { return p.heads / p.key_heads * (p.value_width / columns_of(p)); }

template <int kColumnLanes, int kRows>
CudaStatus launch(const CudaDeltaStep& p, void* stream) {
  const auto cluster = static_cast<unsigned>(cluster_of(p));
  const auto blocks = static_cast<unsigned>(p.batch * p.key_heads) * cluster;
  return with_type(p.type, [&]<class T>(T) {
    return launch_early(delta_step_kernel<T, kColumnLanes, kRows>, blocks, kThreads, 0, stream, p.capability,
                        cluster, p);
  });
}

bool takes(const CudaDeltaStep& p) {
  return p.capability == 90 && (p.key_width == 64 || p.key_width == 128) && p.value_width % 32 == 0 &&
         p.value_width > 0 && p.taps >= 2 && p.taps <= kMostTaps && cluster_of(p) <= kMostCluster &&
         packs(p.state, 0, 4, 4) && packs(p.gate, 0, 4, p.type == CudaType::fp32 ? 4 : 2);
}

CudaStatus step(const CudaDeltaStep& p, void* stream) {
  const bool wide = p.key_width == 128;
  switch (columns_of(p)) {
    case 128:
      return wide ? launch<32, 16>(p, stream) : launch<32, 8>(p, stream);
    case 64:
      return wide ? launch<16, 8>(p, stream) : launch<16, 4>(p, stream);
    default:
      return wide ? launch<8, 4>(p, stream) : launch<8, 2>(p, stream);
  }
}

constexpr DeltaStepCuda kTable = {takes, step};

}  // namespace

const DeltaStepCuda& delta_step_cuda() { return kTable; }

}  // namespace weft::kernels
