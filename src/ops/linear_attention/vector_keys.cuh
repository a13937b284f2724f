// The sweep whose warps own key channels: dq forward, dk and the decay's gradient in reverse. With P[r, i] = dy_r . v_i,
// the state S [K, V] before the chunk and the gradient dS of the state behind it,
//   dq_r = scale (prior_r (S dy_r) + sum_{i<=r} P[r, i] decay(i, r] w_i k_i)
//   dk_i = w_i (later_i (dS v_i) + sum_{r>=i} P[r, i] decay(i, r] scale q_r)
// where `prior` and `later` are the decays from the chunk's begin and up to its end. The pairs go through the levels of
// vector_tiles.cuh, a tile of which has one side times its decay and the other side's decays alone.
//
// The decay's gradient: every pair r > i has the decays of the tokens in (i, r], so that
//   dlog_decay_t = sum over r >= t > i of its share = carried + sum_{s>=t} (q_s dq_s - k_s dk_s), diagonal left out,
// where `carried`, S dS summed over V, stands for what comes after a segment. It is known to be 0 where a decay is, which
// also ends the sum.
#pragma once

#include "ops/linear_attention/vector_tiles.cuh"

namespace weft::kernels::vector_decay {

__host__ __device__ inline Needs keys_needs(bool reverse, const Sweep& s) {
  return {.q = true, .k = true, .v = true, .dy = true, .read_gate = reverse, .extra = 0};
}

// P by one warp.
template <class T, int kValue>
__device__ __forceinline__ void form_value_pairs(const T* dy, const T* v, Pairs<T> to) {
  constexpr int width = kValue;
  const int lane = threadIdx.x % 32;
  const int2 at = rows_first(lane);
  float sums[2][4] = {};
#pragma unroll
  for (int i = 0; i < width; i += 16) {
    uint32_t a[4], b[4];
    load_matrices(a, dy + at16(width, at.x, i + at.y));
    load_matrices(b, v + at16(width, at.x, i + at.y));
    multiply_add<T>(sums[0], a, b[0], b[2]);
    multiply_add<T>(sums[1], a, b[1], b[3]);
  }
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = n * 8 + lane % 4 * 2 + i % 2;
      to.matrix[row * kPairRow + column] = from_float<T>(sums[n][i]);
      if (to.diagonal && row == column) to.diagonal[row] = sums[n][i];
    }
}

// The bits of a register of pairs (of an 8 by 8 block on the diagonal) that belong to a level below 3.
__device__ __forceinline__ uint32_t level_mask(int level, bool reverse) {
  const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  uint32_t mask = 0;
  for (int e = 0; e < 2; ++e)
    if (level_of(reverse ? column + e : row, reverse ? row : column + e) == level)
      mask |= 0xffffu << (16 * e);
  return mask;
}

// sums [16 tokens, 16 key channels of the warp] += fac (tile of pairs' products): the chunk's own pairs.
template <class T, int kKey, bool kReverse>
__device__ __forceinline__ void add_pairs(const T* matrix, const T* tiles, float (&sums)[2][4]) {
  constexpr int width = kKey;
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16;
  const int2 by_row = rows_first(lane), by_column = columns_first(lane);
  uint32_t pairs[4];
  if (kReverse) {
    load_matrices_transposed(pairs, matrix + by_column.x * kPairRow + by_column.y);
  } else {
    load_matrices(pairs, matrix + by_row.x * kPairRow + by_row.y);
  }
#pragma unroll
  for (int level = 0; level < kLevels; ++level) {
    const T* tile = tiles + level * kChunk * kKey;
    uint32_t a[4] = {}, b[4];
    if (level == 3) {
      a[kReverse ? 2 : 1] = pairs[kReverse ? 2 : 1];
    } else {
      const uint32_t mask = level_mask(level, kReverse);
      a[0] = pairs[0] & mask, a[3] = pairs[3] & mask;
    }
    load_matrices_transposed(b, tile + at16(width, by_row.x, first + by_row.y));
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float part[4] = {};
      multiply_add<T>(part, a, b[2 * n], b[2 * n + 1]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = at16(width, lane / 4 + half * 8, first + n * 8 + lane % 4 * 2);
        const float2 decay = unpack<T>(*reinterpret_cast<const uint32_t*>(tile + at));
        sums[n][2 * half] += part[2 * half] * decay.x, sums[n][2 * half + 1] += part[2 * half + 1] * decay.y;
      }
    }
  }
}

// A warp's rows of a state [K, V], two columns at a time.
template <int kWidth, class Body>
__device__ __forceinline__ void for_each_pair(const Body& body) {
  const int lane = threadIdx.x % 32, k = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) body(n, half, (k + half * 8) * kWidth + n * 8 + lane % 4 * 2);
}

template <class T, int kWidth>
__device__ __forceinline__ void read_rows(const float (&state)[kWidth / 8][4], const T* values,
                                          float (&sums)[2][4]) {
  const int2 at = rows_first(threadIdx.x % 32);
  float second[2][4] = {};
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    uint32_t a[4];
    load_matrices(a, values + at16(kWidth, at.x, n * 8 + at.y));
    auto& to = n % 4 ? second : sums;
    multiply_add<T>(to[0], a, pack<T>(state[n][0], state[n][1]), pack<T>(state[n + 1][0], state[n + 1][1]));
    multiply_add<T>(to[1], a, pack<T>(state[n][2], state[n][3]), pack<T>(state[n + 1][2], state[n + 1][3]));
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[i / 4][i % 4] += second[i / 4][i % 4];
}

template <class T, int kKey, int kWidth>
__device__ __forceinline__ void update_rows(float (&state)[kWidth / 8][4], const T* tile, const T* values,
                                            const float* decay) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16;
  const int2 by_column = columns_first(lane), by_row = rows_first(lane);
  uint32_t a[4];
  load_matrices_transposed(a, tile + at16(kKey, by_column.x, first + by_column.y));
  const float d[2] = {decay[first + lane / 4], decay[first + lane / 4 + 8]};
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    uint32_t b[4];
    load_matrices_transposed(b, values + at16(kWidth, by_row.x, n * 8 + by_row.y));
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      auto& x = state[n + m];
      x[0] *= d[0], x[1] *= d[0], x[2] *= d[1], x[3] *= d[1];
      multiply_add<T>(x, a, b[2 * m], b[2 * m + 1]);
    }
  }
}

template <class T>
__device__ __forceinline__ void store_pair(void* to, bool fp32, int64_t at, float2 x) {
  if (fp32) {
    *reinterpret_cast<float2*>(static_cast<float*>(to) + at) = x;
  } else {
    *reinterpret_cast<uint32_t*>(static_cast<T*>(to) + at) = pack<T>(x.x, x.y);
  }
}

// Where k dk without the diagonal is kept: over a warp's own columns of the first two levels, once they are used.
template <class T, int kKey>
__device__ __forceinline__ float* written_at(char* stage, int t, int channel) {
  T* tile = reinterpret_cast<T*>(stage) + channel / 8 % 2 * kChunk * kKey;
  return reinterpret_cast<float*>(tile + at16(kKey, t, channel / 16 * 16 + channel / 4 % 2 * 8)) +
         channel % 4;
}

// The gradient of a chunk's decays for a warp's 16 channels: sums from the last token on of `read_gates` less what
// written_at has, ended where a decay vanished. Half a warp has 8 tokens. `before`: a token's read gate counts for the tokens
// before it. `carried` is the sum of what comes behind, and then with the chunk.
template <class T, int kKey>
__device__ __forceinline__ void sum_gates(const Sweep& s, const Place& p, const bf16* read_gates,
                                          const uint16_t* vanished, bool before, int64_t token, char* tiles,
                                          float& carried) {
  constexpr int kHalf = kChunk / 2;
  const int lane = threadIdx.x % 32, channel = threadIdx.x / 32 * 16 + lane % 16, first = lane / 16 * kHalf;
  const uint32_t ends = vanished[channel] >> first & 0xff;
  float sums[kHalf], sum = first ? carried : 0.f;
#pragma unroll
  for (int t = kHalf - 1; t >= 0; --t) {
    const float read = to_float(read_gates[at16(kKey, first + t, channel)]);
    sums[t] = sum + (before ? 0.f : read) - *written_at<T, kKey>(tiles, first + t, channel);
    if (ends >> t & 1) sums[t] = 0;
    sum = before ? sums[t] + read : sums[t];
  }
  const float later = __shfl_sync(0xffffffff, sum, lane % 16 + 16);
  const int64_t stride = int64_t{s.heads} * kKey;
  float* to = s.dlog_decay + p.row(s, token + first) * kKey + channel;
#pragma unroll
  for (int t = 0; t < kHalf; ++t) {
    if (!first && !(ends >> t)) sums[t] += later;
    if (token + first + t < s.tokens) to[t * stride] = sums[t];
  }
  if (!first && !ends) sum += later;
  carried = __shfl_sync(0xffffffff, sum, lane % 16);
}

template <class T, int kKey, int kValue, bool kReverse>
__global__ void __launch_bounds__(kKey * 4, kKey + kValue == 128 ? 2 : 1) sweep_keys(const Sweep s) {
  extern __shared__ __align__(128) char shared[];
  constexpr int width = kKey, kWarps = kKey / 16, kTile = kChunk * kKey, kStateSize = kKey * kValue;
  const Place p = place_of(s);
  const Needs needs = keys_needs(kReverse, s);
  const Layout l = layout_of(kKey, kValue, s.log_decay.type == CudaType::fp32, needs);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = warp * 16;
  const bool helps = warp >= kWarps;
  const int64_t place = (p.batch * s.heads + p.head) * s.segments + p.segment;
  const auto chunk_of = [&](int step) { return p.first + (kReverse ? p.chunks - 1 - step : step); };
  const auto load = [&](int step) {
    load_chunk<kKey, kValue, kWarps * 32>(s, l, p, needs, chunk_of(step) * kChunk, slot_at(l, shared, step));
  };
  if (helps) {
    share_registers<kKey >= kValue, true, 88>();
    const auto decay = [&](int step) {
      decay_chunk<T, kKey, kReverse ? Rows::queries : Rows::ones,
                  kReverse ? Columns::ones : Columns::written_keys>(
          s, l, slot_at(l, shared, step), scalars_at(l, shared, step), warp - kWarps,
          stage_at(l, shared, step), nullptr);
    };
    const auto pair = [&](int step) {
      const char* raw = slot_at(l, shared, step);
      if (step % kWarps == warp - kWarps)
        form_value_pairs<T, kValue>(reinterpret_cast<const T*>(raw + l.dy),
                                    reinterpret_cast<const T*>(raw + l.v), pairs_at<T>(l, shared, step));
    };
    run_helping_steps(static_cast<int>(p.chunks), decay, pair);
    return;
  }

  share_registers<kKey >= kValue, false, 88>();
  float state[kValue / 8][4];
  for_each_pair<kValue>([&](int n, int half, int at) {
    const float2 x =
        s.begin ? *reinterpret_cast<const float2*>(s.begin + place * kStateSize + at) : float2{0, 0};
    state[n][2 * half] = x.x, state[n][2 * half + 1] = x.y;
  });
  const bool sums_gate = kReverse && s.dlog_decay;
  float carried = sums_gate ? s.carried_gate[place * width + first + lane % 16] : 0.f;
  float bonus[2][2] = {}, bonus_sum[2][2] = {};
  if (s.bonus)
    for (int i = 0; i < 4; ++i)
      bonus[i / 2][i % 2] = s.bonus[p.head * width + first + i / 2 * 8 + lane % 4 * 2 + i % 2];

  // One token's two channels, from `sum`, its gradient without the diagonal and before scale or write strength.
  const auto finish = [&](int step, int t, int n, float2 sum) {
    const char* raw = slot_at(l, shared, step);
    const int channel = first + n * 8 + lane % 4 * 2, at = at16(width, t, channel);
    const float w = scalars_at(l, shared, step).write[t], diagonal = pairs_at<T>(l, shared, step).diagonal[t];
    const float2 own = s.bonus ? float2{bonus[n][0], bonus[n][1]} : float2{w, w};
    const float2 q = unpack<T>(*reinterpret_cast<const uint32_t*>(raw + l.q + at * 2));
    const float2 k = unpack<T>(*reinterpret_cast<const uint32_t*>(raw + l.k + at * 2));
    const int64_t token = chunk_of(step) * kChunk + t, to = p.row(s, token) * width + channel;
    const float factor = kReverse ? w : s.scale, own_factor = s.scale * diagonal;
    sum = {factor * sum.x, factor * sum.y};
    const float2 other = kReverse ? q : k;
    const float2 all{sum.x + own_factor * own.x * other.x, sum.y + own_factor * own.y * other.y};
    if (s.out && token < s.tokens) store_pair<T>(s.out, s.out_fp32, to, all);
    if (kReverse) {
      *reinterpret_cast<float2*>(written_at<T, kKey>(stage_at(l, shared, step), t, channel)) = {k.x * sum.x,
                                                                                                k.y * sum.y};
    } else {
      bonus_sum[n][0] += own_factor * q.x * k.x, bonus_sum[n][1] += own_factor * q.y * k.y;
      if (s.read_gate && token < s.tokens)
        store_pair<bf16>(s.read_gate, false, to, {q.x * sum.x, q.y * sum.y});
    }
  };
  const auto main = [&](int step) {
    const char *raw = slot_at(l, shared, step), *stage = stage_at(l, shared, step);
    const T* tiles = reinterpret_cast<const T*>(stage);
    const T *in = tiles + kLevels * kTile, *out = in + kTile;
    const T *v = reinterpret_cast<const T*>(raw + l.v), *dy = reinterpret_cast<const T*>(raw + l.dy);
    float sums[2][4] = {};
    read_rows<T, kValue>(state, kReverse ? v : dy, sums);
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = at16(width, lane / 4 + half * 8, first + n * 8 + lane % 4 * 2);
        const float2 x = unpack<T>(*reinterpret_cast<const uint32_t*>((kReverse ? out : in) + at));
        sums[n][2 * half] *= x.x, sums[n][2 * half + 1] *= x.y;
      }
    add_pairs<T, kKey, kReverse>(pairs_at<T>(l, shared, step).matrix, tiles, sums);
    __syncwarp();
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        finish(step, lane / 4 + half * 8, n, {sums[n][2 * half], sums[n][2 * half + 1]});
    update_rows<T, kKey, kValue>(state, kReverse ? in : out, kReverse ? dy : v,
                                 reinterpret_cast<const float*>(stage + (kLevels + 2) * kTile * 2));
    if (kReverse && s.dlog_decay) {
      __syncwarp();
      char* tiles_at = stage_at(l, shared, step);
      const auto* whole = reinterpret_cast<const float*>(tiles_at + (kLevels + 2) * kTile * 2);
      sum_gates<T, kKey>(s, p, reinterpret_cast<const bf16*>(raw + l.read_gate),
                         reinterpret_cast<const uint16_t*>(whole + kKey), s.bonus != nullptr,
                         chunk_of(step) * kChunk, tiles_at, carried);
      __syncwarp();
    }
  };
  run_main_steps(s, l, p, shared, chunk_of, load, main);

  if (!kReverse && s.carried_gate) {
    float sums[2] = {};
    if (s.opposite)
      for_each_pair<kValue>([&](int n, int half, int at) {
        const float2 x = *reinterpret_cast<const float2*>(s.opposite + place * kStateSize + at);
        sums[half] += state[n][2 * half] * x.x + state[n][2 * half + 1] * x.y;
      });
    for (int half = 0; half < 2; ++half) {
      const float sum = warp_sum<4>(sums[half]);
      if (lane % 4 == 0) s.carried_gate[place * width + first + lane / 4 + half * 8] = sum;
    }
  }
  if (!kReverse && s.dbonus)
    for (int i = 0; i < 4; ++i) {
      float sum = bonus_sum[i / 2][i % 2];
      for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
      if (lane < 4) s.dbonus[place * width + first + i / 2 * 8 + lane * 2 + i % 2] = sum;
    }
  if (kReverse && s.end && p.segment == 0)
    for_each_pair<kValue>([&](int n, int half, int at) {
      *reinterpret_cast<float2*>(s.end + (p.batch * s.heads + p.head) * kStateSize + at) = {
          state[n][2 * half], state[n][2 * half + 1]};
    });
}

}  // namespace weft::kernels::vector_decay
