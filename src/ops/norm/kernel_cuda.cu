// Normalisations of rows. A group of threads, part of a warp or several warps, has a row in registers: every tensor is read
// once. Blocks walk over rows, so that gradients of the weight add up in registers; what the blocks have is added in order
// by a second kernel.
#include "ops/norm/kernel_cuda.h"

#include <algorithm>
#include <initializer_list>

#include "ops/cuda/early.cuh"
#include "ops/cuda/vector.cuh"

namespace weft::kernels {
namespace {

constexpr int kElements = 16;  // of a row, in a thread
constexpr int kThreads = 128;  // of a block, more for wide rows
constexpr int kMaxThreads = static_cast<int>(kCudaNormWidth) / kElements, kMaxWarps = kMaxThreads / 32;

// Threads of a group: a power of two up to a warp, or whole warps.
__host__ __device__ inline int lanes_of(int64_t width) {
  const int64_t wanted = (width + kElements - 1) / kElements;
  if (wanted > 32) return static_cast<int>((wanted + 31) / 32 * 32);
  int lanes = 1;
  while (lanes < wanted) lanes *= 2;
  return lanes;
}
__host__ __device__ inline int groups_of(int lanes) { return lanes < kThreads ? kThreads / lanes : 1; }

// The columns of a thread: packs of kVector, `lanes` packs apart.
template <int kVector>
struct Columns {
  static constexpr int kPacks = kElements / kVector;
  int lanes, lane, group, groups;
  int64_t width;

  __device__ explicit Columns(int64_t row_width) : width(row_width) {
    lanes = lanes_of(width);
    lane = static_cast<int>(threadIdx.x) % lanes, group = static_cast<int>(threadIdx.x) / lanes;
    groups = groups_of(lanes);
  }
  __device__ __forceinline__ int64_t at(int pack) const { return (int64_t{pack} * lanes + lane) * kVector; }
  __device__ __forceinline__ bool has(int pack) const { return at(pack) < width; }

  template <class T>
  __device__ __forceinline__ void load(Pack<T, kVector> (&to)[kPacks], const void* row) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i)
      to[i] = has(i) ? load_pack<kVector>(static_cast<const T*>(row) + at(i)) : no_pack<T, kVector>();
  }
  template <class T>
  __device__ __forceinline__ void store(void* row, int pack, const float (&x)[kVector]) const {
    if (has(pack)) store_pack(static_cast<T*>(row) + at(pack), x);
  }
  // A weight or bias; `otherwise` where there is none.
  __device__ __forceinline__ void load_weight(float (&to)[kPacks][kVector], const void* from, CudaType type,
                                              float otherwise) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) to[i][j] = otherwise;
      if (from && has(i)) load_elements(to[i], from, type, at(i));
    }
  }
};

// Sums of kCount numbers over the threads of a group; every thread of the block must come along.
template <int kCount>
struct GroupSum {
  float (*shared)[kMaxWarps][kCount];  // two sets, so that one barrier is enough
  int set = 0;

  __device__ __forceinline__ void operator()(float (&x)[kCount], int lanes) {
    for (int step = min(lanes, 32) / 2; step > 0; step /= 2)
#pragma unroll
      for (float& value : x) value += __shfl_xor_sync(0xffffffff, value, step);
    if (lanes <= 32) return;
    const int warp = static_cast<int>(threadIdx.x) / 32, warps = lanes / 32, first = warp / warps * warps;
    if (threadIdx.x % 32 == 0)
#pragma unroll
      for (int i = 0; i < kCount; ++i) shared[set][warp][i] = x[i];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      x[i] = 0.0f;
      for (int w = 0; w < warps; ++w) x[i] += shared[set][first + w][i];
    }
    set ^= 1;
  }
};

template <class T>
__device__ __forceinline__ float rounded(float x) {
  return to_float(from_float<T>(x));
}

// Added: the type of what is added to x.
template <class T, class Added, int kVector>
__global__ void __launch_bounds__(kMaxThreads) forward_kernel(const __grid_constant__ CudaNorm p) {
  using C = Columns<kVector>;
  __shared__ float shared[2][kMaxWarps][1];
  GroupSum<1> sum{shared};
  const C columns(p.width);
  prefetch_all(p.weight, p.width * (p.weight_type == CudaType::fp32 ? 4 : 2));
  let_next_start();
  wait_for_last();
  float weight[C::kPacks][kVector], bias[C::kPacks][kVector];
  columns.load_weight(weight, p.weight, p.weight_type, 1.0f);
  columns.load_weight(bias, p.bias, p.bias_type, 0.0f);
  const float inverse = 1.0f / static_cast<float>(p.width);
  for (int64_t first = int64_t{blockIdx.x} * columns.groups; first < p.rows;
       first += int64_t{gridDim.x} * columns.groups) {
    const int64_t row = min(first + columns.group, p.rows - 1);
    const bool there = first + columns.group < p.rows;
    Pack<T, kVector> packs[C::kPacks], gates[C::kPacks];
    Pack<Added, kVector> added[C::kPacks];
    columns.load(packs, static_cast<const T*>(p.x) + row * p.x_row);
    if (p.gate) columns.load(gates, static_cast<const T*>(p.gate) + row * p.gate_row);
    if (p.added) columns.load(added, static_cast<const Added*>(p.added) + row * p.width);
    float v[C::kPacks][kVector], squares[1] = {};
#pragma unroll
    for (int i = 0; i < C::kPacks; ++i) {
      widen(v[i], packs[i]);
      if (p.added) {
        float more[kVector];
        widen(more, added[i]);
#pragma unroll
        for (int j = 0; j < kVector; ++j) v[i][j] = rounded<T>(v[i][j] + more[j]);
        if (there) columns.template store<T>(static_cast<T*>(p.sum) + row * p.width, i, v[i]);
      }
      if (p.gating == CudaGating::before) {
        float gate[kVector];
        widen(gate, gates[i]);
#pragma unroll
        for (int j = 0; j < kVector; ++j) v[i][j] *= gate[j] * sigmoid(gate[j]);
      }
    }
    if (p.centre) {
      float mean[1] = {};
#pragma unroll
      for (int i = 0; i < C::kPacks; ++i)
#pragma unroll
        for (int j = 0; j < kVector; ++j) mean[0] += v[i][j];
      sum(mean, columns.lanes);
#pragma unroll
      for (int i = 0; i < C::kPacks; ++i)
#pragma unroll
        for (int j = 0; j < kVector; ++j) v[i][j] = columns.has(i) ? v[i][j] - mean[0] * inverse : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < C::kPacks; ++i)
#pragma unroll
      for (int j = 0; j < kVector; ++j) squares[0] = fmaf(v[i][j], v[i][j], squares[0]);
    sum(squares, columns.lanes);
    const float scale = rsqrtf((p.sum_of_squares ? squares[0] : squares[0] * inverse) + p.eps);
#pragma unroll
    for (int i = 0; i < C::kPacks; ++i) {
#pragma unroll
      for (int j = 0; j < kVector; ++j) v[i][j] = fmaf(v[i][j] * scale, weight[i][j], bias[i][j]);
      if (p.gating == CudaGating::after) {
        float gate[kVector];
        widen(gate, gates[i]);
#pragma unroll
        for (int j = 0; j < kVector; ++j) v[i][j] *= gate[j] * sigmoid(gate[j]);
      }
      if (there) columns.template store<T>(static_cast<T*>(p.y) + row * p.width, i, v[i]);
    }
  }
}

// Sums over the groups of a block, in order, as row blockIdx.x of `to`.
template <int kVector>
__device__ void write_partial(float* to, const Columns<kVector>& columns,
                              const float (&sums)[kElements / kVector][kVector], float* shared) {
  __syncthreads();
  if (columns.groups > 1) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) shared[threadIdx.x * kElements + i] = sums[i / kVector][i % kVector];
    __syncthreads();
  }
  if (columns.group != 0) return;
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const int64_t at = columns.at(i / kVector) + i % kVector;
    float sum = sums[i / kVector][i % kVector];
    for (int g = 1; g < columns.groups; ++g)
      sum += shared[(g * columns.lanes + columns.lane) * kElements + i];
    if (at < columns.width) to[blockIdx.x * columns.width + at] = sum;
  }
}

// With n the normalised row and g = weight times the gradient that reaches it:
// dv = scale (g - n sum(g n) / count - mean(g)), the last term only with a mean.
template <class T, int kVector>
__global__ void __launch_bounds__(kMaxThreads) backward_kernel(const CudaNormGradient g) {
  using C = Columns<kVector>;
  __shared__ float shared[2][kMaxWarps][3], mean_shared[2][kMaxWarps][1];
  extern __shared__ float combined[];
  const CudaNorm& p = g.forward;
  GroupSum<3> sum{shared};
  GroupSum<1> mean_sum{mean_shared};
  const C columns(p.width);
  float weight[C::kPacks][kVector], dweight[C::kPacks][kVector] = {}, dbias[C::kPacks][kVector] = {};
  columns.load_weight(weight, p.weight, p.weight_type, 1.0f);
  const float inverse = 1.0f / static_cast<float>(p.width), count = p.sum_of_squares ? 1.0f : inverse;
  for (int64_t first = int64_t{blockIdx.x} * columns.groups; first < p.rows;
       first += int64_t{gridDim.x} * columns.groups) {
    const int64_t row = min(first + columns.group, p.rows - 1);
    const bool there = first + columns.group < p.rows;
    Pack<T, kVector> packs[C::kPacks], ups[C::kPacks], gates[C::kPacks], more[C::kPacks];
    columns.load(packs, static_cast<const T*>(p.x) + row * p.x_row);
    columns.load(ups, static_cast<const T*>(g.dy) + row * p.width);
    if (p.gate) columns.load(gates, static_cast<const T*>(p.gate) + row * p.gate_row);
    if (g.dsum) columns.load(more, static_cast<const T*>(g.dsum) + row * p.width);
    float mean = 0.0f;
    const auto values = [&](int i, float(&v)[kVector]) {
      widen(v, packs[i]);
      if (p.gating == CudaGating::before) {
        float gate[kVector];
        widen(gate, gates[i]);
#pragma unroll
        for (int j = 0; j < kVector; ++j) v[j] *= gate[j] * sigmoid(gate[j]);
      }
      if (p.centre)
#pragma unroll
        for (int j = 0; j < kVector; ++j) v[j] = columns.has(i) ? v[j] - mean : 0.0f;
    };
    // What reaches the weighted normalised row.
    const auto upstream = [&](int i, float(&up)[kVector]) {
      widen(up, ups[i]);
      if (p.gating == CudaGating::after) {
        float gate[kVector];
        widen(gate, gates[i]);
#pragma unroll
        for (int j = 0; j < kVector; ++j) up[j] *= gate[j] * sigmoid(gate[j]);
      }
    };
    if (p.centre) {
      float total[1] = {};
#pragma unroll
      for (int i = 0; i < C::kPacks; ++i) {
        float v[kVector];
        widen(v, packs[i]);
#pragma unroll
        for (int j = 0; j < kVector; ++j) total[0] += v[j];
      }
      mean_sum(total, columns.lanes);
      mean = total[0] * inverse;
    }
    float sums[3] = {};  // of v^2, g v, g
#pragma unroll
    for (int i = 0; i < C::kPacks; ++i) {
      float v[kVector], up[kVector];
      values(i, v);
      upstream(i, up);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const float gradient = up[j] * weight[i][j];
        sums[0] = fmaf(v[j], v[j], sums[0]);
        sums[1] = fmaf(gradient, v[j], sums[1]);
        sums[2] += gradient;
      }
    }
    sum(sums, columns.lanes);
    const float scale = rsqrtf(sums[0] * count + p.eps);
    const float along = scale * scale * sums[1] * count, shift = p.centre ? sums[2] * inverse : 0.0f;
    if (!there) continue;
#pragma unroll
    for (int i = 0; i < C::kPacks; ++i) {
      float v[kVector], up[kVector], dx[kVector], dgate[kVector];
      values(i, v);
      upstream(i, up);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        dweight[i][j] = fmaf(up[j], v[j] * scale, dweight[i][j]);
        dbias[i][j] += up[j];
        dx[j] = scale * (up[j] * weight[i][j] - v[j] * along - shift);
      }
      if (p.gating != CudaGating::none) {
        float gate[kVector], x[kVector], dy[kVector];
        widen(gate, gates[i]);
        widen(x, packs[i]);
        widen(dy, ups[i]);
#pragma unroll
        for (int j = 0; j < kVector; ++j) {
          const float open = sigmoid(gate[j]), slope = open * fmaf(gate[j], 1.0f - open, 1.0f);
          if (p.gating == CudaGating::after) {
            dgate[j] = dy[j] * v[j] * scale * weight[i][j] * slope;
          } else {
            dgate[j] = dx[j] * x[j] * slope;
            dx[j] *= gate[j] * open;
          }
        }
        if (g.dgate) columns.template store<T>(static_cast<T*>(g.dgate) + row * p.width, i, dgate);
      }
      if (g.dsum) {
        float add[kVector];
        widen(add, more[i]);
#pragma unroll
        for (int j = 0; j < kVector; ++j) dx[j] += add[j];
      }
      columns.template store<T>(static_cast<T*>(g.dx) + row * p.width, i, dx);
    }
  }
  if (g.dweight) write_partial<kVector>(g.partial, columns, dweight, combined);
  if (g.dbias) write_partial<kVector>(g.partial + gridDim.x * p.width, columns, dbias, combined);
}

constexpr int kSumLanes = 16;

// to[c] = sum of partial[.., c], in order.
__global__ void __launch_bounds__(32 * kSumLanes)
    sum_kernel(const float* partial, int64_t rows, int64_t width, void* to, CudaType type) {
  __shared__ float shared[kSumLanes][32];
  const int64_t column = int64_t{blockIdx.x} * 32 + threadIdx.x;
  float sum = 0.0f;
  if (column < width)
#pragma unroll 8
    for (int64_t i = threadIdx.y; i < rows; i += kSumLanes) sum += partial[i * width + column];
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || column >= width) return;
  for (int i = 1; i < kSumLanes; ++i) sum += shared[i][threadIdx.x];
  set_element(to, type, column, sum);
}

int64_t blocks(const CudaNorm& p) {
  const int64_t groups = groups_of(lanes_of(p.width)), threads = lanes_of(p.width) * groups;
  const int64_t resident = std::max<int64_t>(1, 768 / threads);  // of a multiprocessor
  return std::max<int64_t>(1, std::min((p.rows + groups - 1) / groups, p.multiprocessors * resident));
}

unsigned threads_of(const CudaNorm& p) {
  const int lanes = lanes_of(p.width);
  return static_cast<unsigned>(lanes * groups_of(lanes));
}

int64_t bytes_of(CudaType type) { return type == CudaType::fp32 ? 4 : 2; }

// Elements of an access: 16 bytes when every row allows it.
int vector_of(const CudaNorm& p, std::initializer_list<const void*> like_x) {
  const auto element = bytes_of(p.type);
  const int wanted = static_cast<int>(16 / element);
  bool fits =
      p.width % wanted == 0 && packs(p.x, p.x_row, wanted, element) &&
      packs(p.gate, p.gate_row, wanted, element) && packs(p.added, 0, wanted, bytes_of(p.added_type)) &&
      packs(p.weight, 0, wanted, bytes_of(p.weight_type)) && packs(p.bias, 0, wanted, bytes_of(p.bias_type));
  for (const void* data : like_x) fits = fits && packs(data, 0, wanted, element);
  return fits ? wanted : 1;
}

// Calls body.run<vector>() with 16 bytes of T, or one element.
template <class T, class Body>
CudaStatus with_vector(int vector, const Body& body) {
  return vector > 1 ? body.template operator()<static_cast<int>(16 / sizeof(T))>()
                    : body.template operator()<1>();
}

CudaStatus forward(const CudaNorm& p, void* stream) {
  if (p.rows == 0) return nullptr;
  const auto grid = static_cast<unsigned>(blocks(p));
  return with_type(p.type, [&]<class T>(T) {
    return with_vector<T>(vector_of(p, {p.y, p.sum}), [&]<int kVector>() {
      const auto run = [&]<class Added>(Added) {
        return launch_early(forward_kernel<T, Added, kVector>, grid, threads_of(p), 0, stream, p.capability,
                            1, p);
      };
      if constexpr (sizeof(T) == 4)
        return with_type(p.added ? p.added_type : p.type, run);
      else
        return run(T{});
    });
  });
}

CudaStatus backward(const CudaNormGradient& g, void* stream) {
  const auto& p = g.forward;
  const auto s = static_cast<cudaStream_t>(stream);
  const int vector = vector_of(p, {g.dy, g.dsum, g.dx, g.dgate});
  const auto grid = static_cast<unsigned>(blocks(p));
  return with_type(p.type, [&]<class T>(T) {
    const auto failed = with_vector<T>(vector, [&]<int kVector>() {
      backward_kernel<T, kVector><<<grid, threads_of(p), kThreads * kElements * sizeof(float), s>>>(g);
      return last_status();
    });
    if (failed) return failed;
    const dim3 columns(static_cast<unsigned>((p.width + 31) / 32)), block(32, kSumLanes);
    if (g.dweight) sum_kernel<<<columns, block, 0, s>>>(g.partial, grid, p.width, g.dweight, p.weight_type);
    if (g.dbias)
      sum_kernel<<<columns, block, 0, s>>>(g.partial + grid * p.width, grid, p.width, g.dbias, p.bias_type);
    return last_status();
  });
}

constexpr NormCuda kTable = {forward, backward, blocks};

}  // namespace

const NormCuda& norm_cuda() { return kTable; }

}  // namespace weft::kernels
