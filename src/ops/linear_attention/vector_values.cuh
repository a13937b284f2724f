// The sweep whose warps own value channels: y forward, dv in reverse, or only the state. Forward, with S before a chunk,
//   y = in S + A v,   S' = D S + out' v
// and in reverse, with the gradient dS of the state behind it,
//   dv = out dS + A' dy,   dS' = D dS + in' dy
// where A has the pairs of the chunk, `in` the rows q and `out` the columns k of vector_tiles.cuh.
#pragma once

#include "ops/linear_attention/vector_tiles.cuh"

namespace weft::kernels::vector_decay {

// Bytes of shared memory beside those of every sweep: a tile of results, and for every stage and warp a token's
// part of dwrite.
__host__ __device__ inline Needs values_needs(bool reverse, const Sweep& s) {
  const int warps = s.value_width / 16;
  return {.q = reverse || !s.only_state,
          .k = !reverse || !s.only_state,
          .v = !reverse || s.dwrite,
          .dy = reverse,
          .read_gate = false,
          .extra = kChunk * s.value_width * 2 + kStages * warps * kChunk * 4};
}

// The pairs of one level by one warp.
template <class T, int kKey>
__device__ __forceinline__ void form_level(const T* tile, int level, T* to) {
  const int lane = threadIdx.x % 32;
  const int2 at = rows_first(lane);
  float sums[2][4] = {};
#pragma unroll
  for (int k = 0; k < kKey; k += 16) {
    uint32_t x[4];
    load_matrices(x, tile + at16(kKey, at.x, k + at.y));
    multiply_add<T>(sums[0], x, x[0], x[2]);
    multiply_add<T>(sums[1], x, x[1], x[3]);
  }
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = n * 8 + lane % 4 * 2 + i % 2;
      if (level_of(row, column) == level) to[row * kPairRow + column] = from_float<T>(sums[n][i]);
    }
}

// q . k of every token by one warp, weighed by `bonus` if that is given.
template <class T, int kKey, bool kBonus>
__device__ __forceinline__ void form_diagonal(const T* q, const T* k, const float* bonus, float scale,
                                              float* diagonal) {
  const int lane = threadIdx.x % 32;
  const int2 at = rows_first(lane);
  float sums[2][4] = {};
#pragma unroll
  for (int i = 0; i < kKey; i += 16) {
    uint32_t a[4], b[4];
    load_matrices(a, q + at16(kKey, at.x, i + at.y));
    load_matrices(b, k + at16(kKey, at.x, i + at.y));
    if (kBonus) {
      const float* u = bonus + i + lane % 4 * 2;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 x = unpack<T>(a[j]);
        a[j] = pack<T>(x.x * u[j / 2 * 8], x.y * u[j / 2 * 8 + 1]);
      }
    }
    multiply_add<T>(sums[0], a, b[0], b[2]);
    multiply_add<T>(sums[1], a, b[1], b[3]);
  }
  const int column = lane % 4 * 2;
  if (lane / 4 == column) diagonal[column] = scale * sums[0][0], diagonal[column + 8] = scale * sums[1][2];
  if (lane / 4 == column + 1)
    diagonal[column + 1] = scale * sums[0][1], diagonal[column + 9] = scale * sums[1][3];
}

// Reads or writes a warp's part of a state [K, V].
template <int kWidth, class Body>
__device__ __forceinline__ void for_each_entry(int value_width, const Body& body) {
  const int lane = threadIdx.x % 32, v = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) body(n, i, (n * 8 + lane % 4 * 2 + i % 2) * value_width + v + i / 2 * 8);
}

// result += the state's reads by the rows of a tile.
template <class T, int kWidth>
__device__ __forceinline__ void read_state(const float (&state)[kWidth / 8][4], const T* tile,
                                           float (&result)[2][4]) {
  const int2 at = columns_first(threadIdx.x % 32);
  float second[2][4] = {};
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    const uint32_t a[4] = {pack<T>(state[n][0], state[n][1]), pack<T>(state[n][2], state[n][3]),
                           pack<T>(state[n + 1][0], state[n + 1][1]),
                           pack<T>(state[n + 1][2], state[n + 1][3])};
    uint32_t b[4];
    load_matrices(b, tile + at16(kWidth, at.x, n * 8 + at.y));
    auto& sums = n % 4 ? second : result;
    multiply_add<T>(sums[0], a, b[0], b[1]);
    multiply_add<T>(sums[1], a, b[2], b[3]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) result[i / 4][i % 4] += second[i / 4][i % 4];
}

// state = decay state + values' tile
template <class T, int kWidth>
__device__ __forceinline__ void update_state(float (&state)[kWidth / 8][4], const uint32_t (&values)[4],
                                             const T* tile, const float* decay) {
  const int lane = threadIdx.x % 32;
  const int2 at = rows_first(lane);
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    uint32_t b[4];
    load_matrices_transposed(b, tile + at16(kWidth, at.x, n * 8 + at.y));
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const float2 d = *reinterpret_cast<const float2*>(decay + (n + m) * 8 + lane % 4 * 2);
      auto& x = state[n + m];
      x[0] *= d.x, x[1] *= d.y, x[2] *= d.x, x[3] *= d.y;
      multiply_add<T>(x, values, b[2 * m], b[2 * m + 1]);
    }
  }
}

// Results [V of the warp, 16 tokens] to their rows in device memory, by way of the warp's columns of `tile`.
template <class T, int kValue>
__device__ __forceinline__ void store_values(const Sweep& s, const Place& p, int64_t token,
                                             const float (&x)[2][4], T* tile, void* to) {
  constexpr int width = kValue;
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16;
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      tile[at16(width, n * 8 + lane % 4 * 2 + i % 2, first + lane / 4 + i / 2 * 8)] = from_float<T>(x[n][i]);
  __syncwarp();
  const int row = lane / 2, column = first + lane % 2 * 8;
  if (token + row >= s.tokens) return;
  *reinterpret_cast<uint4*>(static_cast<T*>(to) + p.row(s, token + row) * width + column) =
      *reinterpret_cast<const uint4*>(tile + at16(width, row, column));
}

// Adds what needs no state: dv's write strength and the bonus; leaves the warp's part of dwrite in `sums`.
template <class T, int kValue, bool kReverse>
__device__ __forceinline__ void finish_values(const Sweep& s, const Layout& l, const char* raw,
                                              const T* values, const Scalars& scalars, const float* diagonal,
                                              float (&x)[2][4], float* sums) {
  constexpr int width = kValue;
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16;
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int t = n * 8 + lane % 4 * 2 + e,
                at[2] = {at16(width, t, first + lane / 4), at16(width, t, first + lane / 4 + 8)};
      if (kReverse && s.dwrite) {
        const T* v = reinterpret_cast<const T*>(raw + l.v);
        float sum = x[n][e] * to_float(v[at[0]]) + x[n][e + 2] * to_float(v[at[1]]);
        for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
        if (lane < 4) sums[threadIdx.x / 32 * kChunk + t] = sum;
      }
      if (kReverse) x[n][e] *= scalars.write[t], x[n][e + 2] *= scalars.write[t];
      if (s.bonus) {
        x[n][e] += diagonal[t] * to_float(values[at[0]]);
        x[n][e + 2] += diagonal[t] * to_float(values[at[1]]);
      }
    }
}

template <class T, int kKey, int kValue, bool kReverse>
__global__ void __launch_bounds__((kKey + kValue) * 2, kKey + kValue == 128 ? 2 : 1)
    sweep_values(const Sweep s) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kWarps = kValue / 16, kTile = kChunk * kKey, kStateSize = kKey * kValue;
  constexpr bool kMoves = kKey == kValue;
  const Place p = place_of(s);
  const Needs needs = values_needs(kReverse, s);
  const Layout l = layout_of(kKey, kValue, s.log_decay.type == CudaType::fp32, needs);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool helps = warp >= kWarps, last = p.segment == (kReverse ? 0 : s.segments - 1);
  if (s.only_state && last) return;  // nobody asks
  T* out_tile = reinterpret_cast<T*>(shared + l.extra);
  float* write_sums = reinterpret_cast<float*>(shared + l.extra + kChunk * kValue * 2);
  const int64_t place = (p.batch * s.heads + p.head) * s.segments + p.segment;
  for (int i = threadIdx.x; i < kStages * kChunk * kPairRow; i += blockDim.x)
    pairs_at<T>(l, shared, i / (kChunk * kPairRow)).matrix[i % (kChunk * kPairRow)] = from_float<T>(0.f);
  float* total = nullptr;
  if (s.total_decay) {
    total = write_sums;  // no results are stored
    for (int i = threadIdx.x; i < kKey; i += blockDim.x) total[i] = 1;
  }

  const auto chunk_of = [&](int step) { return p.first + (kReverse ? p.chunks - 1 - step : step); };
  const auto load = [&](int step) {
    load_chunk<kKey, kValue, kWarps * 32>(s, l, p, needs, chunk_of(step) * kChunk, slot_at(l, shared, step));
  };
  if (helps) {
    share_registers<kMoves, true, 104>();
    const auto decay = [&](int step) {
      decay_chunk<T, kKey, Rows::queries, kReverse ? Columns::keys : Columns::written_keys>(
          s, l, slot_at(l, shared, step), scalars_at(l, shared, step), warp - kWarps,
          stage_at(l, shared, step), total);
    };
    const auto pair = [&](int step) {
      if (s.only_state) return;
      const Pairs<T> pairs = pairs_at<T>(l, shared, step);
      const T* tiles = reinterpret_cast<const T*>(stage_at(l, shared, step));
      for (int task = warp - kWarps; task <= kLevels; task += kKey / 16) {
        if (task < kLevels) {
          form_level<T, kKey>(tiles + task * kTile, task, pairs.matrix);
          continue;
        }
        const char* raw = slot_at(l, shared, step);
        const T *q = reinterpret_cast<const T*>(raw + l.q), *k = reinterpret_cast<const T*>(raw + l.k);
        if (s.bonus) {
          form_diagonal<T, kKey, true>(q, k, s.bonus + p.head * kKey, s.scale, pairs.diagonal);
          continue;
        }
        form_diagonal<T, kKey, false>(q, k, nullptr, s.scale, pairs.diagonal);
        __syncwarp();
        if (lane < kChunk)
          pairs.matrix[lane * kPairRow + lane] = from_float<T>(
              pairs.diagonal[lane] * (kReverse ? 1.f : scalars_at(l, shared, step).write[lane]));
      }
    };
    run_helping_steps(static_cast<int>(p.chunks), decay, pair);
    if (total)
      for (int i = threadIdx.x - kWarps * 32; i < kKey; i += kKey * 2)
        s.total_decay[place * kKey + i] = total[i];
    return;
  }

  share_registers<kMoves, false, 104>();
  float state[kKey / 8][4];
  for_each_entry<kKey>(
      kValue, [&](int n, int i, int at) { state[n][i] = s.begin ? s.begin[place * kStateSize + at] : 0.f; });
  const auto sum_write = [&](int step) {
    const int64_t token = chunk_of(step) * kChunk + threadIdx.x;
    if (!s.dwrite || threadIdx.x >= kChunk || token >= s.tokens) return;
    float sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += write_sums[(step % kStages * kWarps + i) * kChunk + threadIdx.x];
    s.dwrite[p.row(s, token)] = sum;
  };
  const auto main = [&](int step) {
    const char *raw = slot_at(l, shared, step), *stage = stage_at(l, shared, step);
    const T *in = reinterpret_cast<const T*>(stage) + kLevels * kTile, *out = in + kTile;
    const T* values = reinterpret_cast<const T*>(raw + (kReverse ? l.dy : l.v));
    const int2 by_column = columns_first(lane), by_row = rows_first(lane);
    uint32_t x[4];
    load_matrices_transposed(x, values + at16(kValue, by_column.x, warp * 16 + by_column.y));
    if (!s.only_state) {
      if (step > 0) sum_write(step - 1);
      const Pairs<T> pairs = pairs_at<T>(l, shared, step);
      uint32_t b[4];
      if (kReverse) {
        load_matrices_transposed(b, pairs.matrix + by_row.x * kPairRow + by_row.y);
      } else {
        load_matrices(b, pairs.matrix + by_column.x * kPairRow + by_column.y);
      }
      float result[2][4] = {};
      multiply_add<T>(result[0], x, b[0], b[1]);
      multiply_add<T>(result[1], x, b[2], b[3]);
      read_state<T, kKey>(state, kReverse ? out : in, result);
      finish_values<T, kValue, kReverse>(s, l, raw, values, scalars_at(l, shared, step), pairs.diagonal,
                                         result, write_sums + step % kStages * kWarps * kChunk);
      if (s.out) store_values<T, kValue>(s, p, chunk_of(step) * kChunk, result, out_tile, s.out);
    }
    update_state<T, kKey>(state, x, kReverse ? in : out,
                          reinterpret_cast<const float*>(stage + (kLevels + 2) * kTile * 2));
  };
  run_main_steps(s, l, p, shared, chunk_of, load, main);

  if (!s.only_state && p.chunks > 0) sum_write(static_cast<int>(p.chunks) - 1);
  if (!s.end || (!s.end_of_all && !last)) return;
  float* end = s.end + (s.end_of_all ? place : p.batch * s.heads + p.head) * kStateSize;
  for_each_entry<kKey>(kValue, [&](int n, int i, int at) { end[at] = state[n][i]; });
}

}  // namespace weft::kernels::vector_decay
