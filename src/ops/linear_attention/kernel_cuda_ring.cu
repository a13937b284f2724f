// One token with a state that is only read, and the fold of the ring into it. A block takes one head, so that it may move
// entries while it has them to itself; each warp takes some rows, each lane four columns.
//
// With F_e the product of the decays behind entry e, elementwise, the state that a ring stands for is
//   F_{-1} S + sum_e (F_e keys_e)' values_e,
// so that reading it with x is reading S with F_{-1} x, and values_e weighted with keys_e . (F_e x).
#include "ops/cuda/early.cuh"
#include "ops/linear_attention/columns.cuh"
#include "ops/linear_attention/plain.cuh"

namespace weft::kernels {
namespace plain {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32, kColumns = 128;

constexpr int kMostRows = 64;  // of all entries

// Shared memory: this, then keys and values of all entries, their decays, and [N + 1, kKeys] factors: F_{e - 1} at e.
template <int kRows>
struct alignas(16) RingMemory {
  static constexpr int kKeys = kRows * kWarps;
  float sums[kWarps][2][kColumns];
  float q[kKeys], k[kKeys], decay[kKeys], read[kKeys],
      write[kKeys];                           // of the token; read: what the erase reads S with
  float dots[kMostRows], weights[kMostRows];  // keys_e . F_e x, for what the erase reads with and for q
  float own[2];                               // k . q and erase_write . q

  static __host__ __device__ int round(int64_t n) { return static_cast<int>((n + 3) / 4 * 4); }
  static size_t bytes(const CudaRing& p) {
    const int64_t floats = round(p.capacity * p.rows * p.key_width) +
                           round(p.capacity * p.rows * p.value_width) + round(p.capacity * p.decay_width) +
                           (p.capacity + 1) * kKeys;
    return sizeof(RingMemory) + static_cast<size_t>(floats) * sizeof(float);
  }
};

// The ring of one head, by a whole block.
template <int kRows>
struct Ring {
  static constexpr int kKeys = RingMemory<kRows>::kKeys;

  const CudaRing& p;
  const int64_t head;  // b H + h
  const bool aligned;
  const int thread, rows, key_width, value_width, decay_width, capacity;
  float *keys, *values, *decays, *factors;  // in shared memory

  __device__ Ring(const CudaRing& problem, RingMemory<kRows>* memory, bool is_aligned)
      : p(problem),
        head(blockIdx.x),
        aligned(is_aligned),
        thread(static_cast<int>(threadIdx.x)),
        rows(static_cast<int>(p.rows)),
        key_width(static_cast<int>(p.key_width)),
        value_width(static_cast<int>(p.value_width)),
        decay_width(static_cast<int>(p.decay_width)),
        capacity(static_cast<int>(p.capacity)) {
    keys = reinterpret_cast<float*>(memory + 1);
    values = keys + RingMemory<kRows>::round(capacity * rows * key_width);
    decays = values + RingMemory<kRows>::round(capacity * rows * value_width);
    factors = decays + RingMemory<kRows>::round(capacity * decay_width);
  }

  // Where entry e lies in device memory.
  __device__ float* key(int e) const { return p.keys + (head * capacity + e) * rows * key_width; }
  __device__ float* value(int e) const { return p.values + (head * capacity + e) * rows * value_width; }
  __device__ float* decay(int e) const { return p.decays + (head * capacity + e) * decay_width; }

  // Row i of this thread in the state, and the first of its columns.
  __device__ int row(int i) const { return thread / 32 * kRows + i; }
  __device__ int column(int first) const { return first + 4 * (thread % 32); }

  __device__ void load_state(float4 (&s)[kRows], int first) const {
    const int left = value_width - column(first), count = key_width - row(0);
    const float* from = p.state + (head * key_width + row(0)) * value_width + column(first);
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      s[i] = i < count && left > 0 ? load4(from + i * value_width, left, aligned) : float4{};
  }
  __device__ void store_state(const float4 (&s)[kRows], int first) const {
    const int left = value_width - column(first), count = key_width - row(0);
    float* to = p.state + (head * key_width + row(0)) * value_width + column(first);
#pragma unroll
    for (int i = 0; i < kRows; ++i)
      if (i < count && left > 0) store4(to + i * value_width, s[i], left, aligned);
  }

  __device__ void copy(float* to, const float* from, int count) const {
    const int fast = reinterpret_cast<uintptr_t>(from) % 16 == 0 ? count / 4 * 4 : 0;
    for (int i = 4 * thread; i < fast; i += 4 * kThreads) copy_async16(to + i, from + i);
    for (int i = fast + thread; i < count; i += kThreads) to[i] = from[i];
  }
  // Entries [0, count) into shared memory; to be waited for by finish_loading.
  __device__ void start_loading(int count) const {
    copy(keys, key(0), count * rows * key_width);
    copy(values, value(0), count * rows * value_width);
    copy(decays, decay(0), count * decay_width);
    copy_async_commit();
  }
  __device__ void finish_loading(int count) const {
    copy_async_wait<0>();
    __syncthreads();
    for (int d = thread; d < kKeys; d += kThreads) {
      float f = d < key_width ? 1 : 0;
      for (int e = count; e > 0; --e) {
        factors[e * kKeys + d] = f;
        if (decay_width > 0 && d < key_width) f *= decays[(e - 1) * decay_width + (decay_width == 1 ? 0 : d)];
      }
      factors[d] = f;
    }
    __syncthreads();
  }

  // The oldest `count` entries into the state; the `left` behind them move to the front.
  __device__ void fold(int count, int left) const {
    start_loading(count);
    finish_loading(count);
    for (int i = thread; i < count * rows * key_width; i += kThreads)
      keys[i] *= factors[(i / key_width / rows + 1) * kKeys + i % key_width];
    __syncthreads();
    for (int first = 0; first < value_width; first += kColumns) {
      float4 s[kRows];
      load_state(s, first);
#pragma unroll
      for (int i = 0; i < kRows; ++i) s[i] = factors[row(i)] * s[i];
      const int width = value_width - column(first), last = key_width - 1;
      for (int e = 0; width > 0 && e < count * rows; ++e) {
        const float4 v = load4(values + e * value_width + column(first), width, aligned);
#pragma unroll
        for (int i = 0; i < kRows; ++i) s[i] = s[i] + keys[e * key_width + min(row(i), last)] * v;
      }
      store_state(s, first);
    }
    __syncthreads();
    move(key(0), rows * key_width, count, left);
    move(value(0), rows * value_width, count, left);
    move(decay(0), decay_width, count, left);
    __syncthreads();
  }
  __device__ void move(float* entries, int width, int count, int left) const {
    for (int i = thread; i < width; i += kThreads)
      for (int e = 0; e < left; ++e) entries[e * width + i] = entries[(e + count) * width + i];
  }
};

template <int kRows, Form kForm>
__global__ void __launch_bounds__(kThreads, kRows == 16 ? 2 : 1)
    ring_step_kernel(const __grid_constant__ CudaRing p, bool aligned) {
  constexpr bool kErases = kForm == Form::delta || kForm == Form::low_rank;
  constexpr int kKeys = kRows * kWarps, kParts = kThreads / kColumns;
  extern __shared__ __align__(16) unsigned char memory[];
  auto& m = *reinterpret_cast<RingMemory<kRows>*>(memory);
  const Ring<kRows> ring(p, &m, aligned);
  const Head head(p, blockIdx.x);
  const int thread = ring.thread, warp = thread / 32, lane = thread % 32;
  let_next_start();
  wait_for_last();
  float4 s[kRows];
  ring.load_state(s, 0);  // before it is known whether it is wanted
  const bool fresh = starts_at(p, head, 0);
  int length = fresh ? 0 : static_cast<int>(p.length[head.b]);
  if (const int keep = static_cast<int>(p.keep); length == ring.capacity) {
    ring.fold(length - keep, keep), length = keep;
    ring.load_state(s, 0);
  }
  ring.start_loading(length);
  for (int d = thread; d < kKeys; d += kThreads) {
    const bool inside = d < ring.key_width;
    const float decay = inside ? decay_of(p, head, 0, d) : 0;
    m.decay[d] = decay;
    m.q[d] = inside ? p.scale * load(p.q, head.b, 0, head.key, d) : 0;
    m.k[d] = inside ? load(p.k, head.b, 0, head.key, d) : 0;
    if constexpr (kForm == Form::delta) m.read[d] = decay * m.k[d];
    if constexpr (kForm == Form::low_rank) {
      m.read[d] = inside ? load(p.erase_read, head.b, 0, head.erase, d) : 0;
      m.write[d] = inside ? load(p.erase_write, head.b, 0, head.erase, d) : 0;
    }
  }
  const float strength = write_of(p, head, 0), beta = beta_of(p, head, 0);
  ring.finish_loading(length);
  // One dot product a warp: of the entries' rows with q and what the erase reads with, then of the token's own with q.
  const int rows = length * ring.rows, own = kForm == Form::low_rank ? 2 : 1;
  for (int e = warp; e < rows + own; e += kWarps) {
    float with_q = 0, with_read = 0;
    for (int d = lane; d < ring.key_width; d += 32) {
      const float q = m.q[d];
      if (e >= rows) {
        const float u = kForm == Form::bonus ? p.bonus[head.h * p.key_width + d] : 1;
        with_q += q * u * (e == rows ? m.k : m.write)[d];
        continue;
      }
      const float key = ring.factors[(kForm == Form::low_rank ? e / 2 + 1 : e + 1) * kKeys + d] *
                        ring.keys[e * ring.key_width + d];
      with_q += key * (kForm == Form::bonus ? q : q * m.decay[d]);
      if constexpr (kErases) with_read += key * m.read[d];
    }
    with_q = warp_sum(with_q);
    if constexpr (kErases) with_read = warp_sum(with_read);
    if (lane != 0) continue;
    if (e >= rows)
      m.own[e - rows] = with_q;
    else
      m.weights[e] = with_q, m.dots[e] = with_read;
  }

  for (int first = 0; first < ring.value_width; first += kColumns) {
    if (fresh) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) s[i] = {};
      ring.store_state(s, first);
    } else if (first > 0) {
      ring.load_state(s, first);
    }
    float4 out{}, recall{};
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int d = ring.row(i);
      const float factor = ring.factors[d], q = m.q[d] * factor;
      out = out + (kForm == Form::bonus ? q : q * m.decay[d]) * s[i];
      if constexpr (kErases) recall = recall + m.read[d] * factor * s[i];
    }
    *reinterpret_cast<float4*>(m.sums[warp][0] + 4 * lane) = out;
    if constexpr (kErases) *reinterpret_cast<float4*>(m.sums[warp][1] + 4 * lane) = recall;
    __syncthreads();
    // Each half of the threads adds half of the warps and entries up, the first half what they found.
    const int c = thread % kColumns, half = thread / kColumns;
    const bool inside = first + c < ring.value_width;
    float y = 0, recalled = 0;
#pragma unroll
    for (int w = half; w < kWarps; w += kParts) {
      y += m.sums[w][0][c];
      if constexpr (kErases) recalled += m.sums[w][1][c];
    }
    for (int e = half; inside && e < rows; e += kParts) {
      const float v = ring.values[e * ring.value_width + first + c];
      y += m.weights[e] * v;
      if constexpr (kErases) recalled += m.dots[e] * v;
    }
    // Only this thread has read these two.
    m.sums[half][0][c] = y, m.sums[half][1][c] = recalled;
    __syncthreads();
    if (half == 0 && inside) {
#pragma unroll
      for (int part = 1; part < kParts; ++part) y += m.sums[part][0][c], recalled += m.sums[part][1][c];
      const float v = load(p.v, head.b, 0, head.h, first + c);
      const float written = strength * v - (kForm == Form::delta ? beta * recalled : 0);
      y += m.own[0] * (kForm == Form::bonus ? v : written);
      float* to = ring.value(length) + first + c;
      if constexpr (kForm == Form::low_rank) {
        y += m.own[1] * recalled;
        *to = recalled, to += ring.value_width;
      }
      *to = written;
      store(p.v.type, p.y, ring.head * p.value_width + first + c, y);
    }
    __syncthreads();
  }
  for (int d = thread; d < ring.key_width; d += kThreads) {
    float* to = ring.key(length) + d;
    if constexpr (kForm == Form::low_rank) *to = m.write[d], to += ring.key_width;
    *to = m.k[d];
    if (d < ring.decay_width) ring.decay(length)[d] = m.decay[d];
  }
}

// Lengths after the step; other blocks of the step read those before.
__global__ void advance_kernel(const __grid_constant__ CudaRing p) {
  let_next_start();
  wait_for_last();
  const int64_t b = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (b >= p.batch) return;
  const int64_t length = p.length[b];
  p.length[b] = (p.starts && p.starts[b] ? 0 : length == p.capacity ? p.keep : length) + 1;
}

template <int kRows>
__global__ void __launch_bounds__(kThreads, kRows == 16 ? 2 : 1) ring_fold_kernel(CudaRing p, bool aligned) {
  extern __shared__ __align__(16) unsigned char memory[];
  wait_for_last();
  const Ring<kRows> ring(p, reinterpret_cast<RingMemory<kRows>*>(memory), aligned);
  const int length = static_cast<int>(p.length[blockIdx.x / static_cast<unsigned>(p.heads)]);
  if (length > 0) ring.fold(length, 0);
}

__global__ void empty_kernel(CudaRing p) {
  const int64_t b = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (b < p.batch) p.length[b] = 0;
}

bool is_aligned(const CudaRing& p) {
  return p.value_width % 4 == 0 && reinterpret_cast<uintptr_t>(p.state) % 16 == 0 &&
         reinterpret_cast<uintptr_t>(p.values) % 16 == 0;
}

template <class Kernel>
CudaStatus launch(Kernel* kernel, const CudaRing& p, size_t bytes, void* stream) {
  if (const auto failed = allow_shared(kernel, bytes)) return status_of(failed);
  return launch_early(kernel, static_cast<unsigned>(p.batch * p.heads), kThreads, bytes, stream, p.capability,
                      1, p, is_aligned(p));
}

template <int kRows>
CudaStatus ring_step(const CudaRing& p, cudaStream_t stream) {
  const size_t bytes = RingMemory<kRows>::bytes(p);
  switch (form_of(p)) {
    case Form::none:
      return launch(ring_step_kernel<kRows, Form::none>, p, bytes, stream);
    case Form::bonus:
      return launch(ring_step_kernel<kRows, Form::bonus>, p, bytes, stream);
    case Form::delta:
      return launch(ring_step_kernel<kRows, Form::delta>, p, bytes, stream);
    default:
      return launch(ring_step_kernel<kRows, Form::low_rank>, p, bytes, stream);
  }
}

}  // namespace
}  // namespace plain

bool cuda_takes_ring(const CudaRing& p) {
  const bool small = p.capability == 86 || p.capability == 89 || p.capability >= 120;
  const size_t room = (small ? 99 : 160) * 1024;  // of shared memory
  if (p.capacity * p.rows > plain::kMostRows || p.key_width > 256) return false;
  return (p.key_width <= 128 ? plain::RingMemory<16>::bytes(p) : plain::RingMemory<32>::bytes(p)) <= room;
}

CudaStatus cuda_ring_step(const CudaRing& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const auto failed = p.key_width <= 128 ? plain::ring_step<16>(p, on) : plain::ring_step<32>(p, on);
  if (failed) return failed;
  return launch_early(plain::advance_kernel, static_cast<unsigned>((p.batch + 127) / 128), 128, 0, stream,
                      p.capability, 1, p);
}

CudaStatus cuda_ring_fold(const CudaRing& p, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  const auto failed =
      p.key_width <= 128 ? plain::launch(plain::ring_fold_kernel<16>, p, plain::RingMemory<16>::bytes(p), on)
                         : plain::launch(plain::ring_fold_kernel<32>, p, plain::RingMemory<32>::bytes(p), on);
  if (failed) return failed;
  plain::empty_kernel<<<static_cast<unsigned>((p.batch + 127) / 128), 128, 0, on>>>(p);
  return last_status();
}

}  // namespace weft::kernels
