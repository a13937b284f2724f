// The sweep of a low rank erase whose warps own value channels. The pairs of a chunk are the matrices QK, QB (with the
// diagonal), AK, AB (without); its inverse (I - AB)^-1 is formed beside them. With S before the chunk,
//   c = (I - AB)^-1 (in_a S + AK v),   y = in_q S + QK v + QB c,   S' = D S + out_k' v + out_b' c
// and in reverse, with the gradient dS of the state behind it,
//   e = (I - AB)^-1' (out_b dS + QB' dy),   dv = out_k dS + QK' dy + AK' e,   dS' = D dS + in_q' dy + in_a' e.
// Shared memory holds what three steps work on: of chunk c results, of c + 1 pairs, of c + 2 decayed tiles.
#pragma once

#include "ops/linear_attention/dplr_tiles.cuh"

namespace weft::kernels::low_rank {

constexpr int kInverseRow = 20;
enum PairKind { kPairsQK, kPairsQB, kPairsAK, kInverse, kPairKinds };

// Offsets in bytes.
struct ValuesLayout {
  int key_bytes, gate_bytes, value_bytes, level_bytes, end_bytes;
  int keys, gates, values, levels, ends, diagonal, pairs, system, scalars, out, sums, bytes;
};
__host__ __device__ inline ValuesLayout values_layout(int key_width, int value_width, bool vector,
                                                      bool gate_fp32, bool both_values) {
  ValuesLayout l{};
  const int key_tile = kChunk * key_width * 2, value_tile = kChunk * value_width * 2;
  int at = 0;
  const auto take = [&](int bytes) { return at += bytes, at - bytes; };
  l.key_bytes = 4 * key_tile, l.keys = take(2 * l.key_bytes);
  l.value_bytes = both_values ? 2 * value_tile : value_tile, l.values = take(4 * l.value_bytes);
  l.level_bytes = 2 * kLevels * key_tile, l.levels = take(2 * l.level_bytes);
  l.end_bytes = 4 * key_tile + key_width * 4, l.ends = take(3 * l.end_bytes);
  l.diagonal = take(2 * key_width / 16 * 2 * kChunk * 4);
  l.pairs = take(2 * kPairKinds * kChunk * kPairRow * 2);
  l.system = take(2 * kChunk * kInverseRow * 4);
  l.scalars = take(4 * static_cast<int>(sizeof(TokenScalars)));
  l.out = take(value_tile);
  l.sums = take(2 * value_width / 16 * kChunk * 4);
  l.gate_bytes = decay_bytes(key_width, vector, gate_fp32), l.gates = take(2 * l.gate_bytes);
  l.bytes = at;
  return l;
}

// sums += rows of a tile with columns of another, of one level; `corner`: only rows 8 to 15 with columns 0 to 7.
template <class T>
__device__ __forceinline__ void multiply_tiles(const uint32_t (&a)[4], const uint32_t (&b)[4], bool corner,
                                               float (&sums)[2][4]) {
  multiply_add<T>(sums[0], a, b[0], b[2]);
  if (!corner) multiply_add<T>(sums[1], a, b[1], b[3]);
}

// body(row, column, n, i) for the pairs of a level that a lane has in sums[n][i].
template <class Body>
__device__ __forceinline__ void for_each_of_level(int level, const Body& body) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = n * 8 + lane % 4 * 2 + i % 2;
      if (level_of(row, column) == level) body(row, column, n, i);
    }
}

// One level of the pairs of q, or of a with k.
template <class T, int kKey>
__device__ __forceinline__ void form_level(const T* levels, int level, bool of_q, T* pairs) {
  const int2 at = rows_first(threadIdx.x % 32);
  constexpr int width = kKey, tile = kChunk * kKey;
  const T *qk = levels + (kQK + level) * tile, *ab = levels + (kAB + level) * tile;
  float with_k[2][4] = {}, with_b[2][4] = {};
#pragma unroll
  for (int i = 0; i < width; i += 16) {
    uint32_t x[4], y[4];
    load_matrices(x, qk + at16(width, at.x, i + at.y));
    load_matrices(y, ab + at16(width, at.x, i + at.y));
    if (of_q) {
      multiply_tiles<T>(x, x, level == 3, with_k);
      multiply_tiles<T>(x, y, level == 3, with_b);
    } else {
      multiply_tiles<T>(y, x, level == 3, with_k);
    }
  }
  T* to = pairs + (of_q ? kPairsQK : kPairsAK) * kChunk * kPairRow;
  T* to_b = pairs + kPairsQB * kChunk * kPairRow;
  for_each_of_level(level, [&](int row, int column, int n, int i) {
    to[row * kPairRow + column] = from_float<T>(with_k[n][i]);
    if (of_q) to_b[row * kPairRow + column] = from_float<T>(with_b[n][i]);
  });
}

// The inverse (I - AB)^-1 by one warp: of its two 8 by 8 blocks on the diagonal, a column a lane, then of the one below
// them. `system` has AB in its first 16 rows; 16 more are scratch.
template <class T>
__device__ __forceinline__ void invert(float* system, T* inverse) {
  constexpr int kHalf = kChunk / 2;
  const int lane = threadIdx.x % 32, column = lane % kHalf, group = lane / kHalf, block = group % 2 * kHalf;
  float* solved = system + kChunk * kInverseRow;
  float x[kHalf];
#pragma unroll
  for (int row = 0; row < kHalf; ++row) {
    x[row] = row == column ? 1.f : 0.f;
#pragma unroll
    for (int i = 0; i < row; ++i) x[row] += system[(block + row) * kInverseRow + block + i] * x[i];
    if (group < 2) {
      solved[(block + row) * kInverseRow + column] = x[row];
      inverse[(block + row) * kPairRow + block + column] = from_float<T>(x[row]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int row = 2 * group + j;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i)
      sum += system[(kHalf + row) * kInverseRow + i] * solved[i * kInverseRow + column];
    solved[row * kInverseRow + kHalf + column] = sum;
  }
  __syncwarp();
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const int row = 2 * group + j;
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i)
      sum += solved[(kHalf + row) * kInverseRow + i] * solved[i * kInverseRow + kHalf + column];
    inverse[(kHalf + row) * kPairRow + column] = from_float<T>(sum);
  }
}

// AB of all levels and its inverse, by one warp.
template <class T, int kKey>
__device__ __forceinline__ void form_inverse(const T* levels, float* system, T* inverse) {
  const int2 at = rows_first(threadIdx.x % 32);
  constexpr int width = kKey, tile = kChunk * kKey;
#pragma unroll
  for (int level = 0; level < kLevels; ++level) {
    const T* ab = levels + (kAB + level) * tile;
    float sums[2][4] = {};
#pragma unroll
    for (int i = 0; i < width; i += 16) {
      uint32_t y[4];
      load_matrices(y, ab + at16(width, at.x, i + at.y));
      multiply_tiles<T>(y, y, level == 3, sums);
    }
    for_each_of_level(
        level, [&](int row, int column, int n, int i) { system[row * kInverseRow + column] = sums[n][i]; });
  }
  __syncwarp();
  invert<T>(system, inverse);
}

// The diagonals of QK and QB from the parts of every 16 channels, by one warp.
template <class T, int kKey>
__device__ __forceinline__ void form_diagonal(const float* parts, T* pairs) {
  const int lane = threadIdx.x % 32, token = lane % kChunk;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kKey / 16; ++i) sum += parts[i * 2 * kChunk + lane];
  pairs[(lane < kChunk ? kPairsQK : kPairsQB) * kChunk * kPairRow + token * kPairRow + token] =
      from_float<T>(sum);
}

// result += values of the warp [V, 16] times pairs, or in reverse their transpose.
template <class T, bool kReverse>
__device__ __forceinline__ void apply_pairs(const T* pairs, const uint32_t (&values)[4],
                                            float (&result)[2][4]) {
  const int lane = threadIdx.x % 32;
  uint32_t b[4];
  if (kReverse) {
    const int2 at = rows_first(lane);
    load_matrices_transposed(b, pairs + at.x * kPairRow + at.y);
  } else {
    const int2 at = columns_first(lane);
    load_matrices(b, pairs + at.x * kPairRow + at.y);
  }
  multiply_add<T>(result[0], values, b[0], b[1]);
  multiply_add<T>(result[1], values, b[2], b[3]);
}

// A product's [V, 16] as the first factor of the next.
template <class T>
__device__ __forceinline__ void as_factor(const float (&x)[2][4], uint32_t (&a)[4]) {
  a[0] = pack<T>(x[0][0], x[0][1]), a[1] = pack<T>(x[0][2], x[0][3]);
  a[2] = pack<T>(x[1][0], x[1][1]), a[3] = pack<T>(x[1][2], x[1][3]);
}

// The state's reads by two tiles, its fragments packed once.
template <class T, int kWidth>
__device__ __forceinline__ void read_twice(const float (&state)[kWidth / 8][4], const T* tile, const T* other,
                                           float (&result)[2][4], float (&other_result)[2][4]) {
  const int2 at = columns_first(threadIdx.x % 32);
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    const uint32_t a[4] = {pack<T>(state[n][0], state[n][1]), pack<T>(state[n][2], state[n][3]),
                           pack<T>(state[n + 1][0], state[n + 1][1]),
                           pack<T>(state[n + 1][2], state[n + 1][3])};
    uint32_t b[4], c[4];
    load_matrices(b, tile + at16(kWidth, at.x, n * 8 + at.y));
    load_matrices(c, other + at16(kWidth, at.x, n * 8 + at.y));
    multiply_add<T>(result[0], a, b[0], b[1]);
    multiply_add<T>(result[1], a, b[2], b[3]);
    multiply_add<T>(other_result[0], a, c[0], c[1]);
    multiply_add<T>(other_result[1], a, c[2], c[3]);
  }
}

// state += values' tile
template <class T, int kWidth>
__device__ __forceinline__ void add_to_state(float (&state)[kWidth / 8][4], const uint32_t (&values)[4],
                                             const T* tile) {
  const int2 at = rows_first(threadIdx.x % 32);
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    uint32_t b[4];
    load_matrices_transposed(b, tile + at16(kWidth, at.x, n * 8 + at.y));
    multiply_add<T>(state[n], values, b[0], b[1]);
    multiply_add<T>(state[n + 1], values, b[2], b[3]);
  }
}

// dwrite's part of a warp, and dv's write strength.
template <class T, int kValue>
__device__ __forceinline__ void finish_dvalues(const Sweep& s, const T* v, const TokenScalars& scalars,
                                               float (&x)[2][4], float* sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, column = warp * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = n * 8 + lane % 4 * 2 + i;
      if (s.dwrite) {
        float sum = x[n][i] * to_float(v[at16(kValue, t, column)]) +
                    x[n][i + 2] * to_float(v[at16(kValue, t, column + 8)]);
        for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
        if (lane < 4) sums[warp * kChunk + t] = sum;
      }
      x[n][i] *= scalars.write[t], x[n][i + 2] *= scalars.write[t];
    }
}

template <class T, int kKey, int kValue, bool kReverse>
__global__ void __launch_bounds__((kKey + kValue) * 2, kKey + kValue == 128 ? 2 : 1)
    sweep_erased_values(const Sweep s, const Erase e) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kWarps = kValue / 16, kHelpers = kKey / 16, kTile = kChunk * kKey, kStateSize = kKey * kValue;
  constexpr int kPairs = kChunk * kPairRow;
  const Place p = place_of(s);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, helper = warp - kWarps;
  const ValuesLayout l = values_layout(kKey, kValue, e.decay == Decay::vector,
                                       s.log_decay.type == CudaType::fp32, kReverse && s.dwrite);
  const int64_t place = (p.batch * s.heads + p.head) * s.segments + p.segment;
  const bool last = p.segment == (kReverse ? 0 : s.segments - 1), identity = blockIdx.y > 0;
  if (s.only_state && last && !identity) return;  // nobody asks
  T* all_pairs = reinterpret_cast<T*>(shared + l.pairs);
  for (int i = threadIdx.x; i < 2 * kPairKinds * kPairs; i += blockDim.x) all_pairs[i] = from_float<T>(0.f);

  const int chunks = static_cast<int>(p.chunks);
  const auto token_of = [&](int step) { return (p.first + (kReverse ? chunks - 1 - step : step)) * kChunk; };
  const auto pairs_of = [&](int step) { return all_pairs + step % 2 * kPairKinds * kPairs; };
  const auto levels_of = [&](int step) {
    return reinterpret_cast<T*>(shared + l.levels + step % 2 * l.level_bytes);
  };
  const auto ends_of = [&](int step) {
    return reinterpret_cast<T*>(shared + l.ends + step % 3 * l.end_bytes);
  };
  const auto values_of = [&](int step) { return shared + l.values + step % 4 * l.value_bytes; };
  const auto scalars_of = [&](int step) -> TokenScalars& {
    return reinterpret_cast<TokenScalars*>(shared + l.scalars)[step % 4];
  };
  const auto diagonal_of = [&](int step) {
    return reinterpret_cast<float*>(shared + l.diagonal) + step % 2 * (kHelpers * 2 * kChunk);
  };
  const auto sums_of = [&](int step) {
    return reinterpret_cast<float*>(shared + l.sums) + step % 2 * kWarps * kChunk;
  };

  const auto load = [&](int step) {
    if (step < chunks) {
      const int64_t token = token_of(step);
      constexpr int kThreads = kWarps * 32;
      load_keys<kKey, kThreads>(s, e, p, token, shared + l.keys + step % 2 * l.key_bytes);
      load_decays<kKey, kThreads>(s, e, p, token, shared + l.gates + step % 2 * l.gate_bytes);
      if (kReverse) load_contiguous<kValue, kThreads>(s, p, s.dy, token, values_of(step));
      if (!kReverse || s.dwrite)
        load_rows<kValue, kThreads, false>(values_of(step) + (kReverse ? kChunk * kValue * 2 : 0),
                                           head_of(s.v, p, p.head), s.v.token * 2, token, s.tokens);
    }
    copy_async_commit();
  };
  const auto read_scalars = [&](int step) {
    return step < chunks ? token_scalars(s, e, p, token_of(step) + threadIdx.x) : float3{};
  };
  if (helper >= 0) {
    share_registers<kKey == kValue, true, 104>();
    const auto decay = [&](int step) {
      decay_keys<T, kKey, Sides::both>(s, e, shared + l.keys + step % 2 * l.key_bytes,
                                       shared + l.gates + step % 2 * l.gate_bytes, scalars_of(step),
                                       !kReverse, helper * 16, levels_of(step), ends_of(step),
                                       reinterpret_cast<float*>(ends_of(step) + 4 * kTile), nullptr,
                                       diagonal_of(step) + helper * 2 * kChunk);
    };
    const auto pair = [&](int step) {
      T* pairs = pairs_of(step);
      if (helper == 0) {
        form_inverse<T, kKey>(levels_of(step), reinterpret_cast<float*>(shared + l.system),
                              pairs + kInverse * kPairs);
        return;
      }
      for (int task = helper - 1 + (s.only_state && !kReverse ? kLevels : 0); task < 2 * kLevels;
           task += kHelpers - 1)
        form_level<T, kKey>(levels_of(step), task % kLevels, task < kLevels, pairs);
      if (helper == kHelpers - 1) form_diagonal<T, kKey>(diagonal_of(step), pairs);
    };
    run_helping_steps(chunks, decay, pair);
    return;
  }

  share_registers<kKey == kValue, false, 104>();
  float state[kKey / 8][4];
  for_each_entry<kKey>(kValue, [&](int n, int i, int at) {
    state[n][i] = s.begin                                  ? s.begin[place * kStateSize + at]
                  : identity && at / kValue == at % kValue ? 1.f
                                                           : 0.f;
  });
  const auto sum_write = [&](int step) {
    const int64_t token = token_of(step) + threadIdx.x;
    if (!s.dwrite || threadIdx.x >= kChunk || token >= s.tokens) return;
    float sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += sums_of(step)[i * kChunk + threadIdx.x];
    s.dwrite[p.row(s, token)] = sum;
  };
  const auto store = [&](int step, void* to, const float(&x)[2][4]) {
    if (!to) return;
    __syncwarp();
    store_values<T, kValue>(s, p, token_of(step), x, reinterpret_cast<T*>(shared + l.out), to);
  };
  const auto main = [&](int step) {
    if (step > 0) sum_write(step - 1);
    const T *values = reinterpret_cast<const T*>(values_of(step)), *ends = ends_of(step),
            *pairs = pairs_of(step);
    const T *in_q = ends, *in_a = ends + kTile, *out_k = ends + 2 * kTile, *out_b = ends + 3 * kTile;
    const int2 at = columns_first(lane);
    uint32_t x[4], y[4];
    load_matrices_transposed(x, values + at16(kValue, at.x, warp * 16 + at.y));
    if (identity) x[0] = x[1] = x[2] = x[3] = 0;
    float result[2][4] = {}, right[2][4] = {}, solved[2][4] = {};
    apply_pairs<T, kReverse>(pairs + (kReverse ? kPairsQB : kPairsAK) * kPairs, x, right);
    if (s.only_state) {
      read_state<T, kKey>(state, kReverse ? out_b : in_a, right);
    } else {
      apply_pairs<T, kReverse>(pairs + kPairsQK * kPairs, x, result);
      read_twice<T, kKey>(state, kReverse ? out_k : in_q, kReverse ? out_b : in_a, result, right);
    }
    as_factor<T>(right, y);
    apply_pairs<T, kReverse>(pairs + kInverse * kPairs, y, solved);
    as_factor<T>(solved, y);
    apply_pairs<T, kReverse>(pairs + (kReverse ? kPairsAK : kPairsQB) * kPairs, y, result);
    update_state<T, kKey>(state, x, kReverse ? in_q : out_k,
                          reinterpret_cast<const float*>(ends + 4 * kTile));
    add_to_state<T, kKey>(state, y, kReverse ? in_a : out_b);
    if (kReverse)
      finish_dvalues<T, kValue>(s, values + kChunk * kValue, scalars_of(step), result, sums_of(step));
    store(step, s.out, result);
    store(step, kReverse ? e.drecalled : e.recalled, solved);
  };

  load(0), keep_scalars(scalars_of(0), read_scalars(0));
  copy_async_wait<0>();
  __syncthreads();
  for (int step = -2; step < chunks; ++step) {
    load(step + 3);
    const float3 ahead = read_scalars(step + 3);
    if (step >= 0) main(step);
    keep_scalars(scalars_of(step + 3), ahead);
    copy_async_wait<0>();
    __syncthreads();
  }
  if (chunks > 0) sum_write(chunks - 1);
  if (!s.end || (!s.end_of_all && !last)) return;
  float* end =
      (identity ? e.transition : s.end) + (s.end_of_all ? place : p.batch * s.heads + p.head) * kStateSize;
  for_each_entry<kKey>(kValue, [&](int n, int i, int at) { end[at] = state[n][i]; });
}

}  // namespace weft::kernels::low_rank
