// What the forward and backward of the plain form share: token by token in fp32, the state in registers. A warp keeps
// all K rows of a few columns of the state: lane l the rows from l kRows on. Columns of V are independent, so warps only
// meet to load tokens, and in the backward to add up what belongs to rows.
#pragma once

#include <cstdint>

#include "ops/cuda/device.cuh"
#include "ops/linear_attention/kernel_cuda.h"

namespace weft::kernels::plain {

enum class Form { none, bonus, delta, low_rank };

constexpr int kInterval = 64;  // tokens between saved states

template <int kRows>
struct Sizes {
  static constexpr int kKeys = 32 * kRows;             // K, filled up with zeros
  static constexpr int kColumns = kRows == 8 ? 4 : 8;  // of a warp
  static constexpr int kTokens = kRows == 8 ? 4 : 8;   // loaded together
  static constexpr int kLanes = 32 / kColumns;         // that hold a column's sum
};

// One head of one sequence.
struct Head {
  int b, h, key, erase;  // key, erase: which head of q and k, and of erase_read and erase_write
  __device__ Head(const CudaLinearAttention& p, unsigned index) {
    const unsigned heads = static_cast<unsigned>(p.heads), keys = static_cast<unsigned>(p.key_heads);
    b = static_cast<int>(index / heads), h = static_cast<int>(index % heads);
    key = keys == heads ? h : static_cast<int>(static_cast<unsigned>(h) / (heads / keys));
    erase = p.erase_heads == p.heads ? h : key;
  }
  __device__ int64_t index(const CudaLinearAttention& p) const { return b * p.heads + h; }
  // [B, T, H, .]
  __device__ int64_t row(const CudaLinearAttention& p, int64_t t) const {
    return (b * p.tokens + t) * p.heads + h;
  }
};

__device__ __forceinline__ float load(CudaType type, const void* data, int64_t at) {
  if (type == CudaType::bf16) return to_float(static_cast<const bf16*>(data)[at]);
  if (type == CudaType::fp16) return to_float(static_cast<const fp16*>(data)[at]);
  return static_cast<const float*>(data)[at];
}
__device__ __forceinline__ float load(const CudaRows& x, int64_t b, int64_t t, int64_t h, int64_t at = 0) {
  return load(x.type, x.data, b * x.batch + t * x.token + h * x.head + at);
}
__device__ __forceinline__ void store(CudaType type, void* data, int64_t at, float x) {
  if (type == CudaType::bf16)
    static_cast<bf16*>(data)[at] = from_float<bf16>(x);
  else if (type == CudaType::fp16)
    static_cast<fp16*>(data)[at] = from_float<fp16>(x);
  else
    static_cast<float*>(data)[at] = x;
}

__device__ __forceinline__ bool starts_at(const CudaLinearAttention& p, const Head& head, int64_t t) {
  return p.starts && p.starts[head.b * p.tokens + t];
}
__device__ __forceinline__ float write_of(const CudaLinearAttention& p, const Head& head, int64_t t) {
  return p.write.data ? load(p.write, head.b, t, head.h) : 1;
}
__device__ __forceinline__ float beta_of(const CudaLinearAttention& p, const Head& head, int64_t t) {
  return p.beta.data ? load(p.beta, head.b, t, head.h) : 0;
}
// Factor of row d of the state.
__device__ __forceinline__ float decay_of(const CudaLinearAttention& p, const Head& head, int64_t t,
                                          int64_t d) {
  if (p.decay == Decay::none) return 1;
  return expf(load(p.log_decay, head.b, t, head.h, p.decay == Decay::vector ? d : 0));
}

// Calls body(data as T*) for the type of the rows, at those of one head from token `begin` on.
template <class Body>
__device__ __forceinline__ void with_rows(const CudaRows& x, int64_t b, int64_t begin, int64_t h,
                                          const Body& body) {
  const int64_t at = b * x.batch + begin * x.token + h * x.head;
  if (x.type == CudaType::bf16) return body(static_cast<const bf16*>(x.data) + at);
  if (x.type == CudaType::fp16) return body(static_cast<const fp16*>(x.data) + at);
  body(static_cast<const float*>(x.data) + at);
}

// to [count, kWidth] = map(t, from [count, width]), `stride` apart, zeros beyond `width`; by all kThreads of a block.
template <int kTokens, int kWidth, int kThreads, class T, class Map>
__device__ __forceinline__ void fill(float* to, const T* from, int64_t stride, int count, int64_t width,
                                     const Map& map) {
  constexpr int kStep = kThreads > kWidth ? kThreads / kWidth : 1, kRounds = (kTokens + kStep - 1) / kStep;
  const int first = static_cast<int>(threadIdx.x) / kWidth;
  for (int d = static_cast<int>(threadIdx.x) % kWidth; d < kWidth; d += kThreads) {
    const int t0 = kThreads > kWidth ? first : 0;
    T x[kRounds];
#pragma unroll
    for (int i = 0; i < kRounds; ++i)
      x[i] = t0 + i * kStep < count && d < width ? from[(t0 + i * kStep) * stride + d] : from_float<T>(0);
#pragma unroll
    for (int i = 0; i < kRounds; ++i)
      if (const int t = t0 + i * kStep; t < count)
        to[t * kWidth + d] = d < width ? map(t, to_float(x[i])) : 0;
  }
}

// The rows of some tokens in shared memory, [kTokens, kKeys] each: scale q, k, factors, erase_read, erase_write.
template <int kRows, Form kForm, int kThreads>
struct Keys {
  using S = Sizes<kRows>;
  static constexpr int kMatrix = S::kTokens * S::kKeys;
  static constexpr int kFloats = (kForm == Form::low_rank ? 5 : 3) * kMatrix;
  float* memory;
  __device__ float* q() const { return memory; }
  __device__ float* k() const { return memory + kMatrix; }
  __device__ float* decay() const { return memory + 2 * kMatrix; }
  __device__ float* read() const { return memory + 3 * kMatrix; }
  __device__ float* write() const { return memory + 4 * kMatrix; }

  // Tokens [begin, begin + count), by the whole block.
  __device__ void fill_all(const CudaLinearAttention& p, const Head& head, int64_t begin, int count) const {
    const float scale = p.scale;
    rows(q(), p, p.q, head.b, head.key, begin, count, [=](int, float x) { return scale * x; });
    const auto same = [](int, float x) { return x; };
    rows(k(), p, p.k, head.b, head.key, begin, count, same);
    if constexpr (kForm == Form::low_rank) {
      rows(read(), p, p.erase_read, head.b, head.erase, begin, count, same);
      rows(write(), p, p.erase_write, head.b, head.erase, begin, count, same);
    }
    if (p.decay == Decay::vector)
      return rows(decay(), p, p.log_decay, head.b, head.h, begin, count,
                  [](int, float x) { return expf(x); });
    for (int i = static_cast<int>(threadIdx.x); i < count * S::kKeys; i += kThreads)
      decay()[i] = decay_of(p, head, begin + i / S::kKeys, 0);
  }
  template <class Map>
  static __device__ __forceinline__ void rows(float* to, const CudaLinearAttention& p, const CudaRows& from,
                                              int64_t b, int64_t h, int64_t begin, int count,
                                              const Map& map) {
    with_rows(from, b, begin, h, [&](const auto* data) {
      fill<S::kTokens, S::kKeys, kThreads>(to, data, from.token, count, p.key_width, map);
    });
  }
};

// n numbers that lie side by side, 8 to 32 bytes aligned to 8 or 16.
template <int n>
__device__ __forceinline__ void read_floats(float (&x)[n], const float* from) {
  if constexpr (n % 4 == 0) {
#pragma unroll
    for (int i = 0; i < n; i += 4) {
      const float4 y = *reinterpret_cast<const float4*>(from + i);
      x[i] = y.x, x[i + 1] = y.y, x[i + 2] = y.z, x[i + 3] = y.w;
    }
  } else {
    static_assert(n == 2);
    const float2 y = *reinterpret_cast<const float2*>(from);
    x[0] = y.x, x[1] = y.y;
  }
}
template <int n>
__device__ __forceinline__ void write_floats(float* to, const float (&x)[n]) {
  if constexpr (n % 4 == 0) {
#pragma unroll
    for (int i = 0; i < n; i += 4)
      *reinterpret_cast<float4*>(to + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
  } else {
    static_assert(n == 2);
    *reinterpret_cast<float2*>(to) = make_float2(x[0], x[1]);
  }
}

// The sum over all lanes of x[c], in the lanes from c (32 / n) on; x is used up.
template <int n>
__device__ __forceinline__ float sum_columns(float (&x)[n]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int step = 16;
#pragma unroll
  for (int left = n / 2; left > 0; left /= 2, step /= 2) {
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int j = 0; j < left; ++j) {
      const float sent = upper ? x[j] : x[j + left], kept = upper ? x[j + left] : x[j];
      x[j] = kept + __shfl_xor_sync(0xffffffff, sent, step);
    }
  }
#pragma unroll
  for (; step > 0; step /= 2) x[0] += __shfl_xor_sync(0xffffffff, x[0], step);
  return x[0];
}
// The other way: what the first lane of each column has, to all lanes.
template <int n>
__device__ __forceinline__ void spread_columns(float (&x)[n], float own) {
#pragma unroll
  for (int c = 0; c < n; ++c) x[c] = __shfl_sync(0xffffffff, own, c * (32 / n));
}

// Some columns of a state in a warp's registers.
template <int kRows>
struct State {
  static constexpr int kColumns = Sizes<kRows>::kColumns;
  float at[kColumns][kRows];

  __device__ void clear() {
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
#pragma unroll
      for (int i = 0; i < kRows; ++i) at[c][i] = 0;
  }
  // From and to [K, V] of one head; `column` is the warp's first.
  __device__ void load_matrix(const float* from, int64_t key_width, int64_t value_width, int64_t column) {
    const int64_t row = static_cast<int64_t>(threadIdx.x % 32) * kRows;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        at[c][i] =
            row + i < key_width && column + c < value_width ? from[(row + i) * value_width + column + c] : 0;
  }
  __device__ void store_matrix(float* to, int64_t key_width, int64_t value_width, int64_t column) const {
    const int64_t row = static_cast<int64_t>(threadIdx.x % 32) * kRows;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int c = 0; c < kColumns; ++c)
        if (row + i < key_width && column + c < value_width)
          to[(row + i) * value_width + column + c] = at[c][i];
  }
  // From and to [V, kKeys], as states are saved for the backward.
  __device__ void load_saved(const float* from, int64_t value_width, int64_t column) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (column + c < value_width)
        read_floats(at[c], from + (column + c) * Sizes<kRows>::kKeys + threadIdx.x % 32 * kRows);
      else
#pragma unroll
        for (int i = 0; i < kRows; ++i) at[c][i] = 0;
    }
  }
  __device__ void store_saved(float* to, int64_t value_width, int64_t column) const {
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      if (column + c < value_width)
        write_floats(to + (column + c) * Sizes<kRows>::kKeys + threadIdx.x % 32 * kRows, at[c]);
  }
};

inline Form form_of(const CudaLinearAttention& p) {
  if (p.bonus) return Form::bonus;
  return p.beta.data ? Form::delta : p.erase_read.data ? Form::low_rank : Form::none;
}
inline int rows_of(const CudaLinearAttention& p) {
  return p.key_width <= 64 ? 2 : p.key_width <= 128 ? 4 : 8;
}
inline int64_t intervals_of(const CudaLinearAttention& p) { return (p.tokens + kInterval - 1) / kInterval; }

// Calls body.operator()<kRows, kForm>().
template <class Body>
CudaStatus with_form(const CudaLinearAttention& p, const Body& body) {
  const auto rows = [&]<int kRows>() {
    switch (form_of(p)) {
      case Form::none:
        return body.template operator()<kRows, Form::none>();
      case Form::bonus:
        return body.template operator()<kRows, Form::bonus>();
      case Form::delta:
        return body.template operator()<kRows, Form::delta>();
      default:
        return body.template operator()<kRows, Form::low_rank>();
    }
  };
  switch (rows_of(p)) {
    case 2:
      return rows.template operator()<2>();
    case 4:
      return rows.template operator()<4>();
    default:
      return rows.template operator()<8>();
  }
}

// What the forward leaves for the backward.
struct Saved {
  float* states = nullptr;    // [B H, intervals, V, kKeys]: before each interval
  float* recalled = nullptr;  // [B, T, H, V]: what an erase reads
  int64_t floats = 0;

  Saved(const CudaLinearAttention& p, void* memory) {
    const auto take = [&](int64_t n) {
      float* at = memory ? static_cast<float*>(memory) + floats : nullptr;
      floats += (n + 3) / 4 * 4;
      return at;
    };
    states = take(p.batch * p.heads * intervals_of(p) * p.value_width * 32 * rows_of(p));
    if (p.beta.data || p.erase_read.data) recalled = take(p.batch * p.tokens * p.heads * p.value_width);
  }
};

int64_t backward_scratch(const CudaLinearAttention& p);
CudaStatus backward(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const void* saved,
                    void* scratch, void* stream);

}  // namespace weft::kernels::plain
