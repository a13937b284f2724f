// Attention for any types and widths: products in fp32 without tensor cores, tiles of kTile queries by kTile keys in
// shared memory. Backward in two passes, one for dq and one for dk and dv, so that each sum has one owner.
#include <type_traits>

#include "ops/attention/kernel_cuda_mask.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// Odd, so that the rows of a column lie in different banks.
__host__ __device__ constexpr int padded(int width) { return width | 1; }

__device__ float load(const AttentionRows& x, int batch, int token, int head, int column) {
  const int64_t at = batch * x.batch + token * x.token + head * x.head + column;
  if (x.scale) {
    const int64_t scale = batch * x.scale_batch + token * x.scale_token + head * x.scale_head;
    return static_cast<float>(static_cast<const int8_t*>(x.data)[at]) * x.scale[scale + column / x.group];
  }
  if (x.type == CudaType::bf16) return to_float(static_cast<const bf16*>(x.data)[at]);
  if (x.type == CudaType::fp16) return to_float(static_cast<const fp16*>(x.data)[at]);
  return static_cast<const float*>(x.data)[at];
}

__device__ void store(const AttentionOut& x, int64_t at, float value) {
  if (x.type == CudaType::bf16)
    static_cast<bf16*>(x.data)[at] = from_float<bf16>(value);
  else if (x.type == CudaType::fp16)
    static_cast<fp16*>(x.data)[at] = from_float<fp16>(value);
  else
    static_cast<float*>(x.data)[at] = value;
}

// `rows` rows from `first` on of one head into to[row][padded(width)], zeros past `end`.
__device__ void load_rows(float* to, const AttentionRows& x, int batch, int head, int first, int end,
                          int rows, int width) {
  for (int i = threadIdx.x; i < rows * width; i += kThreads) {
    const int row = i / width, column = i % width;
    to[row * padded(width) + column] = first + row < end ? load(x, batch, first + row, head, column) : 0.0f;
  }
}

__device__ float dot(const float* a, const float* b, int width) {
  float sum = 0;
  for (int d = 0; d < width; ++d) sum += a[d] * b[d];
  return sum;
}

// The score of a pair with product x; slope gets its derivative by scale x.
__device__ float score_of(const AttentionCuda& p, float x, int head, int32_t distance, float& slope) {
  float score = p.scale * x;
  slope = 1;
  if (p.softcap > 0) {
    const float t = fast_tanh(score / p.softcap);
    score = p.softcap * t;
    slope = 1 - t * t;
  }
  return p.slopes ? score + p.slopes[head] * static_cast<float>(distance) : score;
}

// The parts of shared memory, in floats.
extern __shared__ float shared_floats[];
struct Shared {
  float* next = shared_floats;
  __device__ float* take(int floats) {
    float* part = next;
    next += floats;
    return part;
  }
};
int forward_floats(const AttentionCuda& p, int tile) {
  return 2 * tile * (padded(p.key_width) + padded(p.value_width)) + tile * padded(tile) + 3 * tile;
}
int backward_floats(const AttentionCuda& p, int tile) {
  return 3 * tile * (padded(p.key_width) + padded(p.value_width)) + 2 * tile * padded(tile) + 3 * tile;
}

// One step of the online softmax for the rows of s[kTile][padded(kTile)], which become exponentials.
template <int kTile>
__device__ void softmax_step(float* s, float* largest, float* sum, float* shrink) {
  for (int row = threadIdx.x / 32; row < kTile; row += kWarps) {
    const int lane = threadIdx.x % 32;
    float* cell = s + row * padded(kTile) + lane;
    const float x = lane < kTile ? *cell : kMinusInfinity;
    float high = x;
    for (int step = 16; step > 0; step /= 2) high = fmaxf(high, __shfl_xor_sync(0xffffffff, high, step));
    const float before = largest[row], now = fmaxf(before, high), base = now == kMinusInfinity ? 0 : now;
    const float e = fast_exp2((x - base) * kLog2e), total = warp_sum(e);
    if (lane < kTile) *cell = e;
    __syncwarp();
    if (lane == 0) {
      shrink[row] = fast_exp2((before - base) * kLog2e);
      sum[row] = sum[row] * shrink[row] + total;
      largest[row] = now;
    }
  }
}

template <int kTile>
__global__ void __launch_bounds__(kThreads) forward_kernel(AttentionCuda p) {
  const int first = blockIdx.x * kTile, head = blockIdx.y, batch = blockIdx.z, key_head = head / p.group();
  const int kw = padded(p.key_width), vw = padded(p.value_width);
  Shared shared{shared_floats};
  float *q = shared.take(kTile * kw), *k = shared.take(kTile * kw), *v = shared.take(kTile * vw),
        *out = shared.take(kTile * vw), *s = shared.take(kTile * padded(kTile)),
        *largest = shared.take(kTile), *sum = shared.take(kTile), *shrink = shared.take(kTile);
  load_rows(q, p.q, batch, head, first, p.queries, kTile, p.key_width);
  for (int i = threadIdx.x; i < kTile * vw; i += kThreads) out[i] = 0;
  if (threadIdx.x < kTile) largest[threadIdx.x] = kMinusInfinity, sum[threadIdx.x] = 0;
  const KeySlots slots = key_slots(p.mask, batch);
  Walk<kMaskTile / kTile> walk(p.mask, true, batch, first / kMaskTile, head, 1);
  for (; !walk.done(); walk.next()) {
    const int slot = walk.first();
    if (slot >= p.keys) break;
    __syncthreads();
    load_rows(k, p.k, batch, key_head, slot, p.keys, kTile, p.key_width);
    load_rows(v, p.v, batch, key_head, slot, p.keys, kTile, p.value_width);
    __syncthreads();
    for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
      const int row = i / kTile, column = i % kTile;
      const QueryLimits limits = query_limits(p.mask, batch, first + row, head);
      float slope;
      s[row * padded(kTile) + column] =
          sees(p.mask, batch, limits, slots, slot + column)
              ? score_of(p, dot(q + row * kw, k + column * kw, p.key_width), head,
                         slots.position(slot + column) - limits.position, slope)
              : kMinusInfinity;
    }
    __syncthreads();
    softmax_step<kTile>(s, largest, sum, shrink);
    __syncthreads();
    for (int i = threadIdx.x; i < kTile * p.value_width; i += kThreads) {
      const int row = i / p.value_width, column = i % p.value_width;
      float x = out[row * vw + column] * shrink[row];
      for (int j = 0; j < kTile; ++j) x += s[row * padded(kTile) + j] * v[j * vw + column];
      out[row * vw + column] = x;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTile * p.value_width; i += kThreads) {
    const int row = i / p.value_width, column = i % p.value_width;
    if (first + row >= p.queries) break;
    const int64_t at = (int64_t{batch} * p.queries + first + row) * p.heads + head;
    store(p.out, at * p.value_width + column, sum[row] == 0 ? 0 : out[row * vw + column] / sum[row]);
    if (column == 0) p.lse[at] = sum[row] == 0 ? kMinusInfinity : largest[row] + logf(sum[row]);
  }
}

// probability[q][k] and its gradient by the score's product, dscore[q][k] (both of padded(kTile) columns), from q, k,
// v and dout rows in shared memory. `by_slope`: the sum over keys of the gradient by the row's slope is added there.
template <int kTile>
__device__ void gradients_of_scores(const AttentionCuda& p, int batch, int head, int row0, int slot0,
                                    const float* q, const float* k, const float* v, const float* dout,
                                    const KeySlots& slots, float* probability, float* dscore, float* biased) {
  const int kw = padded(p.key_width), vw = padded(p.value_width);
  const int64_t statistics = statistics_at(p, batch, head) + row0;
  for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
    const int row = i / kTile, column = i % kTile;
    const QueryLimits limits = query_limits(p.mask, batch, row0 + row, head);
    float e = 0, ds = 0;
    const int32_t distance = slots.position(slot0 + column) - limits.position;
    if (sees(p.mask, batch, limits, slots, slot0 + column)) {
      float slope;
      const float score = score_of(p, dot(q + row * kw, k + column * kw, p.key_width), head, distance, slope);
      e = fast_exp2(fmaf(score, kLog2e, -p.lse2[statistics + row]));
      ds = e * (dot(dout + row * vw, v + column * vw, p.value_width) - p.delta[statistics + row]);
      if (biased) biased[row * padded(kTile) + column] = ds * static_cast<float>(distance);
      ds *= slope;
    } else if (biased) {
      biased[row * padded(kTile) + column] = 0;
    }
    if (probability) probability[row * padded(kTile) + column] = e;
    dscore[row * padded(kTile) + column] = ds;
  }
}

template <int kTile>
__global__ void __launch_bounds__(kThreads) queries_kernel(AttentionCuda p) {
  const int first = blockIdx.x * kTile, head = blockIdx.y, batch = blockIdx.z, key_head = head / p.group();
  const int kw = padded(p.key_width), vw = padded(p.value_width);
  Shared shared{shared_floats};
  float *q = shared.take(kTile * kw), *k = shared.take(kTile * kw), *v = shared.take(kTile * vw),
        *dout = shared.take(kTile * vw), *dq = shared.take(kTile * kw),
        *ds = shared.take(kTile * padded(kTile)),
        *biased = p.dslopes ? shared.take(kTile * padded(kTile)) : nullptr;
  load_rows(q, p.q, batch, head, first, p.queries, kTile, p.key_width);
  load_rows(dout, p.dout, batch, head, first, p.queries, kTile, p.value_width);
  for (int i = threadIdx.x; i < kTile * kw; i += kThreads) dq[i] = 0;
  float dslope = 0;  // of row threadIdx.x
  const KeySlots slots = key_slots(p.mask, batch);
  Walk<kMaskTile / kTile> walk(p.mask, true, batch, first / kMaskTile, head, 1);
  for (; !walk.done(); walk.next()) {
    const int slot = walk.first();
    if (slot >= p.keys) break;
    __syncthreads();
    load_rows(k, p.k, batch, key_head, slot, p.keys, kTile, p.key_width);
    load_rows(v, p.v, batch, key_head, slot, p.keys, kTile, p.value_width);
    __syncthreads();
    gradients_of_scores<kTile>(p, batch, head, first, slot, q, k, v, dout, slots, nullptr, ds, biased);
    __syncthreads();
    if (biased && threadIdx.x < kTile)
      for (int j = 0; j < kTile; ++j) dslope += biased[threadIdx.x * padded(kTile) + j];
    for (int i = threadIdx.x; i < kTile * p.key_width; i += kThreads) {
      const int row = i / p.key_width, column = i % p.key_width;
      float x = 0;
      for (int j = 0; j < kTile; ++j) x += ds[row * padded(kTile) + j] * k[j * kw + column];
      dq[row * kw + column] += x;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTile * p.key_width; i += kThreads) {
    const int row = i / p.key_width, column = i % p.key_width;
    if (first + row >= p.queries) break;
    const int64_t at = (int64_t{batch} * p.queries + first + row) * p.heads + head;
    store(p.dq, at * p.key_width + column, p.scale * dq[row * kw + column]);
  }
  if (p.dslopes && threadIdx.x < kTile && first + threadIdx.x < p.queries)
    p.dslopes[(int64_t{batch} * p.queries + first + threadIdx.x) * p.heads + head] = dslope;
}

template <int kTile>
__global__ void __launch_bounds__(kThreads) keys_kernel(AttentionCuda p) {
  const int first = blockIdx.x * kTile, key_head = blockIdx.y, batch = blockIdx.z;
  const int kw = padded(p.key_width), vw = padded(p.value_width);
  Shared shared{shared_floats};
  float *k = shared.take(kTile * kw), *v = shared.take(kTile * vw), *q = shared.take(kTile * kw),
        *dout = shared.take(kTile * vw), *dk = shared.take(kTile * kw), *dv = shared.take(kTile * vw),
        *e = shared.take(kTile * padded(kTile)), *ds = shared.take(kTile * padded(kTile));
  load_rows(k, p.k, batch, key_head, first, p.keys, kTile, p.key_width);
  load_rows(v, p.v, batch, key_head, first, p.keys, kTile, p.value_width);
  for (int i = threadIdx.x; i < kTile * kw; i += kThreads) dk[i] = 0;
  for (int i = threadIdx.x; i < kTile * vw; i += kThreads) dv[i] = 0;
  const KeySlots slots = key_slots(p.mask, batch);
  Walk<kMaskTile / kTile> walk(p.mask, false, batch, first / kMaskTile, key_head * p.group(), p.group());
  for (; !walk.done(); walk.next()) {
    const int row = walk.first(), head = walk.head;
    if (row >= p.queries) continue;
    __syncthreads();
    load_rows(q, p.q, batch, head, row, p.queries, kTile, p.key_width);
    load_rows(dout, p.dout, batch, head, row, p.queries, kTile, p.value_width);
    __syncthreads();
    gradients_of_scores<kTile>(p, batch, head, row, first, q, k, v, dout, slots, e, ds, nullptr);
    __syncthreads();
    for (int i = threadIdx.x; i < kTile * p.key_width; i += kThreads) {
      const int slot = i / p.key_width, column = i % p.key_width;
      float x = 0;
      for (int j = 0; j < kTile; ++j) x += ds[j * padded(kTile) + slot] * q[j * kw + column];
      dk[slot * kw + column] += x;
    }
    for (int i = threadIdx.x; i < kTile * p.value_width; i += kThreads) {
      const int slot = i / p.value_width, column = i % p.value_width;
      float x = 0;
      for (int j = 0; j < kTile; ++j) x += e[j * padded(kTile) + slot] * dout[j * vw + column];
      dv[slot * vw + column] += x;
    }
  }
  __syncthreads();
  const int64_t base = (int64_t{batch} * p.keys + first) * p.key_heads + key_head;
  for (int i = threadIdx.x; p.dk.data && i < kTile * p.key_width; i += kThreads) {
    const int slot = i / p.key_width, column = i % p.key_width;
    if (first + slot >= p.keys) break;
    store(p.dk, (base + int64_t{slot} * p.key_heads) * p.key_width + column,
          p.scale * dk[slot * kw + column]);
  }
  for (int i = threadIdx.x; p.dv.data && i < kTile * p.value_width; i += kThreads) {
    const int slot = i / p.value_width, column = i % p.value_width;
    if (first + slot >= p.keys) break;
    store(p.dv, (base + int64_t{slot} * p.key_heads) * p.value_width + column, dv[slot * vw + column]);
  }
}

// lse2 and delta, one warp a row.
__global__ void __launch_bounds__(kThreads) statistics_kernel(AttentionCuda p) {
  const int rows = p.mask.query_tiles * kMaskTile, lane = threadIdx.x % 32;
  const int64_t item = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;  // of [B, rows, H]
  if (item >= int64_t{p.batch} * rows * p.heads) return;
  const int head = static_cast<int>(item % p.heads), row = static_cast<int>(item / p.heads % rows),
            batch = static_cast<int>(item / p.heads / rows);
  const int64_t to = statistics_at(p, batch, head) + row;
  if (row >= p.queries) {
    if (lane == 0) p.lse2[to] = -kMinusInfinity, p.delta[to] = 0;
    return;
  }
  const int64_t at = (int64_t{batch} * p.queries + row) * p.heads + head;
  AttentionRows out;
  out.data = p.out.data, out.type = p.out.type;
  out.batch = int64_t{p.queries} * p.heads * p.value_width;
  out.token = int64_t{p.heads} * p.value_width;
  out.head = p.value_width;
  float sum = 0;
  for (int d = lane; d < p.value_width; d += 32)
    sum += load(out, batch, row, head, d) * load(p.dout, batch, row, head, d);
  sum = warp_sum(sum);
  if (lane > 0) return;
  const float lse = p.lse[at];
  p.lse2[to] = lse == kMinusInfinity ? -kMinusInfinity : lse * kLog2e;
  p.delta[to] = sum - (p.dlse ? p.dlse[at] : 0);
}

// The same for contiguous rows of a 16-bit type, 8 numbers a lane; `lanes`, a power of 2, share a row.
template <class T>
__global__ void __launch_bounds__(kThreads) statistics_fast_kernel(AttentionCuda p, int lanes) {
  const int rows = p.mask.query_tiles * kMaskTile, lane = threadIdx.x % lanes;
  const int64_t item = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / lanes;  // of [B, rows, H]
  const bool there = item < int64_t{p.batch} * rows * p.heads;
  const int head = static_cast<int>(item % p.heads), row = static_cast<int>(item / p.heads % rows),
            batch = static_cast<int>(item / p.heads / rows);
  const int64_t at = (int64_t{batch} * p.queries + row) * p.heads + head;
  const bool valid = there && row < p.queries;
  float sum = 0;
  if (valid && 8 * lane < p.value_width) {
    const uint4 x =
        *reinterpret_cast<const uint4*>(static_cast<const T*>(p.out.data) + at * p.value_width + 8 * lane);
    const uint4 y =
        *reinterpret_cast<const uint4*>(static_cast<const T*>(p.dout.data) + batch * p.dout.batch +
                                        row * p.dout.token + head * p.dout.head + 8 * lane);
    const auto add = [&](uint32_t a, uint32_t b) {
      const float2 u = unpack<T>(a), v = unpack<T>(b);
      sum += u.x * v.x + u.y * v.y;
    };
    add(x.x, y.x), add(x.y, y.y), add(x.z, y.z), add(x.w, y.w);
  }
  for (int step = lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  if (lane > 0 || !there) return;
  const int64_t to = statistics_at(p, batch, head) + row;
  const float lse = valid ? p.lse[at] : kMinusInfinity;
  p.lse2[to] = lse == kMinusInfinity ? -kMinusInfinity : lse * kLog2e;
  p.delta[to] = valid ? sum - (p.dlse ? p.dlse[at] : 0) : 0;
}

// Calls body with the largest tile whose `floats` fit in shared memory.
template <class Floats, class Body>
CudaStatus with_tile(const Floats& floats, const Body& body) {
  const int most = shared_limit();
  const auto fits = [&](int tile) { return floats(tile) * static_cast<int>(sizeof(float)) <= most; };
  if (fits(32)) return body(std::integral_constant<int, 32>());
  if (fits(16)) return body(std::integral_constant<int, 16>());
  if (fits(4)) return body(std::integral_constant<int, 4>());
  return "heads are too wide";
}

template <class Kernel>
CudaStatus launch(Kernel* kernel, const AttentionCuda& p, int floats, dim3 grid, void* stream) {
  const size_t bytes = floats * sizeof(float);
  if (const auto error = allow_shared(kernel, bytes)) return status_of(error);
  kernel<<<grid, kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(p);
  return last_status();
}

unsigned tiles_of(int count, int tile) { return static_cast<unsigned>((count + tile - 1) / tile); }

}  // namespace

CudaStatus attention_forward_plain(const AttentionCuda& p, void* stream) {
  return with_tile([&](int tile) { return forward_floats(p, tile); },
                   [&]<int kTile>(std::integral_constant<int, kTile>) {
                     const dim3 grid(tiles_of(p.queries, kTile), p.heads, p.batch);
                     return launch(forward_kernel<kTile>, p, forward_floats(p, kTile), grid, stream);
                   });
}

CudaStatus attention_statistics(const AttentionCuda& p, void* stream) {
  if (p.mask.query_tiles == 0) return nullptr;
  const int64_t rows = int64_t{p.batch} * p.mask.query_tiles * kMaskTile * p.heads;
  const auto stream_of = static_cast<cudaStream_t>(stream);
  const auto aligned = [](const void* x) { return reinterpret_cast<uintptr_t>(x) % 16 == 0; };
  const auto whole = [](int64_t stride) { return stride % 8 == 0; };
  const bool fast = p.out.type != CudaType::fp32 && p.dout.type == p.out.type && whole(p.value_width) &&
                    p.value_width <= 256 && whole(p.dout.batch) && whole(p.dout.token) &&
                    whole(p.dout.head) && aligned(p.out.data) && aligned(p.dout.data);
  if (!fast) {
    statistics_kernel<<<static_cast<unsigned>((rows + kWarps - 1) / kWarps), kThreads, 0, stream_of>>>(p);
    return last_status();
  }
  int lanes = 1;
  while (8 * lanes < p.value_width) lanes *= 2;
  const auto kernel =
      p.out.type == CudaType::bf16 ? statistics_fast_kernel<bf16> : statistics_fast_kernel<fp16>;
  kernel<<<static_cast<unsigned>((rows * lanes + kThreads - 1) / kThreads), kThreads, 0, stream_of>>>(p,
                                                                                                      lanes);
  return last_status();
}

CudaStatus attention_backward_plain(const AttentionCuda& p, void* stream) {
  return with_tile([&](int tile) { return backward_floats(p, tile); },
                   [&]<int kTile>(std::integral_constant<int, kTile>) -> CudaStatus {
                     const int floats = backward_floats(p, kTile);
                     if (p.queries > 0) {
                       const dim3 grid(tiles_of(p.queries, kTile), p.heads, p.batch);
                       if (const auto failed = launch(queries_kernel<kTile>, p, floats, grid, stream))
                         return failed;
                     }
                     if (p.keys == 0 || (!p.dk.data && !p.dv.data)) return nullptr;
                     const dim3 grid(tiles_of(p.keys, kTile), p.key_heads, p.batch);
                     return launch(keys_kernel<kTile>, p, floats, grid, stream);
                   });
}

}  // namespace weft::kernels
