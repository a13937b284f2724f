// The sweep of a low rank erase whose warps own key channels: dq and da forward, dk, db and the decay's gradient in
// reverse. What a recalls, c, and its gradient e are known, so the state is a sum of k v' and b c' that q reads for dy and a
// for e; with P the products of a chunk's dy and e with its v and c,
//   dq_r = scale (prior_r (S dy_r) + sum_{i<=r} decay(i, r] (dy_r.v_i w_i k_i + dy_r.c_i b_i))
//   da_r = prior_r (S e_r) + sum_{i<r} decay(i, r) (e_r.v_i w_i k_i + e_r.c_i b_i)
//   dk_i = w_i (later_i (dS v_i) + sum_{r>=i} decay(i, r] dy_r.v_i scale q_r + sum_{r>i} decay(i, r) e_r.v_i a_r)
//   db_i = later_i (dS c_i) + the same with c_i
// The decay's gradient is that of vector_keys.cuh; a_t da_t has no decay of t and counts for the tokens before it.
#pragma once

#include "ops/linear_attention/dplr_tiles.cuh"

namespace weft::kernels::low_rank {

// Products of values, named by what is read and what is written.
enum ValuePair { kDyV, kDyC, kEV, kEC, kValuePairs };

// Offsets in bytes. Chunks of `inputs` (tiles of q, k, a, b, then of v, c, dy, e) are used by three steps, the rest by two.
struct KeysLayout {
  int input_bytes, gate_bytes, read_gate_bytes, tile_bytes, pair_bytes;
  int inputs, gates, read_gates, tiles, pairs, scalars, bytes;
};
__host__ __device__ inline KeysLayout keys_layout(int key_width, int value_width, bool vector, bool gate_fp32,
                                                  bool reverse) {
  KeysLayout l{};
  int at = 0;
  const auto take = [&](int bytes) { return at += bytes, at - bytes; };
  l.input_bytes = 4 * kChunk * (key_width + value_width) * 2, l.inputs = take(3 * l.input_bytes);
  l.tile_bytes = (reverse ? kTiles - 1 : kTiles) * kChunk * key_width * 2 + key_width * 6,
  l.tiles = take(2 * l.tile_bytes);
  l.read_gate_bytes = reverse ? kChunk * key_width * 2 : 0, l.read_gates = take(2 * l.read_gate_bytes);
  l.pair_bytes = kValuePairs * kChunk * kPairRow * 2 + 2 * kChunk * 4, l.pairs = take(2 * l.pair_bytes);
  l.scalars = take(4 * static_cast<int>(sizeof(TokenScalars)));
  l.gate_bytes = decay_bytes(key_width, vector, gate_fp32), l.gates = take(2 * l.gate_bytes);
  l.bytes = at;
  return l;
}

// first, second [16 tokens, 16 channels of the warp] += decays (tiles of pairs' products): the chunk's own pairs. Forward
// they are dq and da; in reverse dk and db.
template <class T, int kKey, bool kReverse>
__device__ __forceinline__ void add_value_pairs(const T* pairs, const T* tiles, float (&first)[2][4],
                                                float (&second)[2][4]) {
  constexpr int kTile = kChunk * kKey, kPairSize = kChunk * kPairRow;
  const int lane = threadIdx.x % 32, channels = threadIdx.x / 32 * 16;
  const int2 by_row = rows_first(lane), by_column = columns_first(lane);
  uint32_t p[kValuePairs][4];
#pragma unroll
  for (int i = 0; i < kValuePairs; ++i) {
    if (kReverse) {
      load_matrices_transposed(p[i], pairs + i * kPairSize + by_column.x * kPairRow + by_column.y);
    } else {
      load_matrices(p[i], pairs + i * kPairSize + by_row.x * kPairRow + by_row.y);
    }
  }
#pragma unroll
  for (int level = 0; level < kLevels; ++level) {
    const T *qk = tiles + (kQK + level) * kTile, *ab = tiles + (kAB + level) * kTile;
    const uint32_t mask = level_mask(level, kReverse);
    uint32_t of_qk[4], of_ab[4];
    load_matrices_transposed(of_qk, qk + at16(kKey, by_row.x, channels + by_row.y));
    load_matrices_transposed(of_ab, ab + at16(kKey, by_row.x, channels + by_row.y));
    const auto add = [&](int pair, int n, const uint32_t(&tile)[4], float(&part)[4]) {
      uint32_t a[4] = {};
      if (level == 3) {
        a[kReverse ? 2 : 1] = p[pair][kReverse ? 2 : 1];
      } else {
        a[0] = p[pair][0] & mask, a[3] = p[pair][3] & mask;
      }
      multiply_add<T>(part, a, tile[2 * n], tile[2 * n + 1]);
    };
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float parts[2][4] = {};
      add(kDyV, n, of_qk, parts[0]);
      add(kReverse ? kEV : kDyC, n, of_ab, parts[0]);
      add(kReverse ? kDyC : kEV, n, of_qk, parts[1]);
      add(kEC, n, of_ab, parts[1]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int at = at16(kKey, lane / 4 + half * 8, channels + n * 8 + lane % 4 * 2);
        const float2 x = pair_at<T>(qk, at), y = kReverse ? x : pair_at<T>(ab, at);
        first[n][2 * half] += parts[0][2 * half] * x.x,
            first[n][2 * half + 1] += parts[0][2 * half + 1] * x.y;
        second[n][2 * half] += parts[1][2 * half] * y.x,
            second[n][2 * half + 1] += parts[1][2 * half + 1] * y.y;
      }
    }
  }
}

// What the state reads for two rows of values, its fragments packed once.
template <class T, int kWidth>
__device__ __forceinline__ void read_rows_twice(const float (&state)[kWidth / 8][4], const T* values,
                                                const T* others, float (&first)[2][4],
                                                float (&second)[2][4]) {
  const int2 at = rows_first(threadIdx.x % 32);
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    const uint32_t b[4] = {pack<T>(state[n][0], state[n][1]), pack<T>(state[n + 1][0], state[n + 1][1]),
                           pack<T>(state[n][2], state[n][3]), pack<T>(state[n + 1][2], state[n + 1][3])};
    uint32_t a[4], c[4];
    load_matrices(a, values + at16(kWidth, at.x, n * 8 + at.y));
    load_matrices(c, others + at16(kWidth, at.x, n * 8 + at.y));
    multiply_add<T>(first[0], a, b[0], b[1]);
    multiply_add<T>(first[1], a, b[2], b[3]);
    multiply_add<T>(second[0], c, b[0], b[1]);
    multiply_add<T>(second[1], c, b[2], b[3]);
  }
}

// state += tile' values
template <class T, int kKey, int kWidth>
__device__ __forceinline__ void add_to_rows(float (&state)[kWidth / 8][4], const T* tile, const T* values) {
  const int lane = threadIdx.x % 32;
  const int2 by_column = columns_first(lane), by_row = rows_first(lane);
  uint32_t a[4];
  load_matrices_transposed(a, tile + at16(kKey, by_column.x, threadIdx.x / 32 * 16 + by_column.y));
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    uint32_t b[4];
    load_matrices_transposed(b, values + at16(kWidth, by_row.x, n * 8 + by_row.y));
    multiply_add<T>(state[n], a, b[0], b[1]);
    multiply_add<T>(state[n + 1], a, b[2], b[3]);
  }
}

template <class T, int kKey>
__device__ __forceinline__ void scale_by_tile(const T* tile, float (&x)[2][4]) {
  const int lane = threadIdx.x % 32, channels = threadIdx.x / 32 * 16;
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 d = pair_at<T>(tile, at16(kKey, lane / 4 + half * 8, channels + n * 8 + lane % 4 * 2));
      x[n][2 * half] *= d.x, x[n][2 * half + 1] *= d.y;
    }
}

// Leaves in read_gate[t] what q_t dq_t and a_{t+1} da_{t+1} give; `q` and `a` are those products of a lane's two tokens in
// one pair of channels, `last` the first of the chunk before's last token, which this chunk's first completes.
__device__ __forceinline__ void store_read_gate(const Sweep& s, const Erase& e, const Place& p, int64_t token,
                                                int channel, const float2 (&q)[2], const float2 (&a)[2],
                                                float2& last) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int64_t to = token + lane / 4 + half * 8 - 1;
    float2 before{__shfl_up_sync(0xffffffff, q[half].x, 4), __shfl_up_sync(0xffffffff, q[half].y, 4)};
    const float2 carried = half == 0 ? last : q[0];
    const float2 previous{__shfl_sync(0xffffffff, carried.x, 28 + lane % 4),
                          __shfl_sync(0xffffffff, carried.y, 28 + lane % 4)};
    if (lane < 4) before = previous;
    if (to >= p.first * kChunk && to < s.tokens)
      store_pair<bf16>(e.read_gate, false, p.row(s, to) * s.key_width + channel,
                       {before.x + a[half].x, before.y + a[half].y});
  }
  last = q[1];
}

template <class T, int kKey, int kValue, bool kReverse>
__global__ void __launch_bounds__(kKey * 4, kKey + kValue == 128 ? 2 : 1)
    sweep_erased_keys(const Sweep s, const Erase e) {
  extern __shared__ __align__(128) char shared[];
  constexpr int kWholeAt = (kReverse ? kTiles - 1 : kTiles) * kChunk * kKey;
  constexpr int kWarps = kKey / 16, kTile = kChunk * kKey, kStateSize = kKey * kValue,
                kPairSize = kChunk * kPairRow;
  const Place p = place_of(s);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = warp * 16, helper = warp - kWarps;
  const bool vector = e.decay == Decay::vector;
  const KeysLayout l = keys_layout(kKey, kValue, vector, s.log_decay.type == CudaType::fp32, kReverse);
  const int64_t place = (p.batch * s.heads + p.head) * s.segments + p.segment;
  const int chunks = static_cast<int>(p.chunks);
  const auto token_of = [&](int step) { return (p.first + (kReverse ? chunks - 1 - step : step)) * kChunk; };
  const auto inputs_of = [&](int step) { return shared + l.inputs + step % 3 * l.input_bytes; };
  const auto gates_of = [&](int step) { return shared + l.gates + step % 2 * l.gate_bytes; };
  const auto read_gates_of = [&](int step) { return shared + l.read_gates + step % 2 * l.read_gate_bytes; };
  const auto tiles_of = [&](int step) {
    return reinterpret_cast<T*>(shared + l.tiles + step % 2 * l.tile_bytes);
  };
  const auto whole_of = [&](int step) { return reinterpret_cast<float*>(tiles_of(step) + kWholeAt); };
  const auto vanished_of = [&](int step) { return reinterpret_cast<uint16_t*>(whole_of(step) + kKey); };
  const auto pairs_of = [&](int step) {
    return reinterpret_cast<T*>(shared + l.pairs + step % 2 * l.pair_bytes);
  };
  const auto diagonal_of = [&](int step) {
    return reinterpret_cast<float*>(pairs_of(step) + kValuePairs * kPairSize);
  };
  const auto values_of = [&](int step, int which) {
    return reinterpret_cast<const T*>(inputs_of(step)) + 4 * kTile + which * kChunk * kValue;
  };
  const auto scalars_of = [&](int step) -> TokenScalars& {
    return reinterpret_cast<TokenScalars*>(shared + l.scalars)[step % 4];
  };

  const auto load = [&](int step) {
    constexpr int kThreads = kWarps * 32, kValueBytes = kChunk * kValue * 2;
    if (step < chunks) {
      const int64_t token = token_of(step);
      char* values = inputs_of(step) + 4 * kTile * 2;
      load_keys<kKey, kThreads>(s, e, p, token, inputs_of(step));
      load_decays<kKey, kThreads>(s, e, p, token, gates_of(step));
      load_rows<kValue, kThreads, false>(values, head_of(s.v, p, p.head), s.v.token * 2, token, s.tokens);
      load_contiguous<kValue, kThreads>(s, p, e.recalled, token, values + kValueBytes);
      load_contiguous<kValue, kThreads>(s, p, s.dy, token, values + 2 * kValueBytes);
      load_contiguous<kValue, kThreads>(s, p, e.drecalled, token, values + 3 * kValueBytes);
    }
    if (kReverse && step - 1 >= 0 && step - 1 < chunks)
      load_contiguous<kKey, kThreads>(s, p, e.read_gate, token_of(step - 1), read_gates_of(step - 1));
    copy_async_commit();
  };
  const auto read_scalars = [&](int step) {
    return step < chunks ? token_scalars(s, e, p, token_of(step) + threadIdx.x) : float3{};
  };
  if (helper >= 0) {
    share_registers<kKey >= kValue, true, 88>();
    const auto decay = [&](int step) {
      decay_keys<T, kKey, kReverse ? Sides::rows : Sides::columns>(
          s, e, inputs_of(step), gates_of(step), scalars_of(step), true, helper * 16, tiles_of(step),
          tiles_of(step) + kInQ * kTile, whole_of(step), kReverse ? vanished_of(step) : nullptr, nullptr);
    };
    const auto pair = [&](int step) {
      if (helper >= kValuePairs) return;
      const bool of_dy = helper == kDyV || helper == kDyC, of_v = helper == kDyV || helper == kEV;
      float* diagonal = of_dy ? diagonal_of(step) + helper * kChunk : nullptr;
      form_value_pairs<T, kValue>(values_of(step, of_dy ? 2 : 3), values_of(step, of_v ? 0 : 1),
                                  Pairs<T>{pairs_of(step) + helper * kPairSize, diagonal});
    };
    __syncthreads();
    for (int step = 0; step < chunks; ++step) {
      decay(step), pair(step);
      __syncthreads();
    }
    __syncthreads();
    return;
  }

  share_registers<kKey >= kValue, false, 88>();
  float state[kValue / 8][4];
  for_each_pair<kValue>([&](int n, int half, int at) {
    const float2 x =
        s.begin ? *reinterpret_cast<const float2*>(s.begin + place * kStateSize + at) : float2{0, 0};
    state[n][2 * half] = x.x, state[n][2 * half + 1] = x.y;
  });
  float carried = kReverse && s.dlog_decay ? s.carried_gate[place * kKey + first + lane % 16] : 0.f;
  float2 last[2] = {{0, 0}, {0, 0}};

  // Two channels of a lane's two tokens, from the sums without the diagonal, scale or write strength.
  const auto finish = [&](int step, int n, const float(&x)[4], const float(&y)[4]) {
    const int channel = first + n * 8 + lane % 4 * 2;
    const T* inputs = reinterpret_cast<const T*>(inputs_of(step));
    float2 of_q[2], of_a[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = lane / 4 + half * 8, at = at16(kKey, t, channel);
      const int64_t token = token_of(step) + t, to = p.row(s, token) * kKey + channel;
      const float2 q = pair_at<T>(inputs, at), k = pair_at<T>(inputs + kTile, at),
                   b = pair_at<T>(inputs + 3 * kTile, at);
      const float w = scalars_of(step).write[t];
      const float with_v = s.scale * diagonal_of(step)[t], with_c = s.scale * diagonal_of(step)[kChunk + t];
      float2 sum{x[2 * half], x[2 * half + 1]}, other{y[2 * half], y[2 * half + 1]}, all;
      if (kReverse) {
        sum = times(sum, {w, w});
        all = {sum.x + w * with_v * q.x, sum.y + w * with_v * q.y};
        *reinterpret_cast<float2*>(
            written_at<T, kKey>(reinterpret_cast<char*>(tiles_of(step)), t, channel)) = {
            k.x * sum.x + b.x * other.x, k.y * sum.y + b.y * other.y};
        other = {other.x + with_c * q.x, other.y + with_c * q.y};
      } else {
        const float2 a = pair_at<T>(inputs + 2 * kTile, at);
        sum = times(sum, {s.scale, s.scale});
        all = {sum.x + with_v * w * k.x + with_c * b.x, sum.y + with_v * w * k.y + with_c * b.y};
        of_q[half] = times(q, sum), of_a[half] = times(a, other);
      }
      if (token >= s.tokens) continue;
      if (s.out) store_pair<T>(s.out, s.out_fp32, to, all);
      if (e.out) store_pair<T>(e.out, e.out_fp32, to, other);
    }
    if (!kReverse) store_read_gate(s, e, p, token_of(step), channel, of_q, of_a, last[n]);
  };
  const auto main = [&](int step) {
    T* tiles = tiles_of(step);
    const T *ends = tiles + kInQ * kTile, *v = values_of(step, 0), *c = values_of(step, 1),
            *dy = values_of(step, 2), *drecalled = values_of(step, 3);
    float x[2][4] = {}, y[2][4] = {};
    read_rows_twice<T, kValue>(state, kReverse ? v : dy, kReverse ? c : drecalled, x, y);
    scale_by_tile<T, kKey>(kReverse ? ends + 2 * kTile : ends, x);
    scale_by_tile<T, kKey>(kReverse ? ends + 2 * kTile : ends + kTile, y);
    add_value_pairs<T, kKey, kReverse>(pairs_of(step), tiles, x, y);
    __syncwarp();
#pragma unroll
    for (int n = 0; n < 2; ++n) finish(step, n, x[n], y[n]);
    update_rows<T, kKey, kValue>(state, kReverse ? ends : ends + 2 * kTile, kReverse ? dy : v,
                                 whole_of(step));
    add_to_rows<T, kKey, kValue>(state, kReverse ? ends + kTile : ends + 3 * kTile, kReverse ? drecalled : c);
    if (!kReverse || !s.dlog_decay) return;
    __syncwarp();
    sum_gates<T, kKey>(s, p, reinterpret_cast<const bf16*>(read_gates_of(step)), vanished_of(step), false,
                       token_of(step), reinterpret_cast<char*>(tiles), carried);
  };

  load(0), keep_scalars(scalars_of(0), read_scalars(0));
  copy_async_wait<0>();
  __syncthreads();
  for (int step = -1; step < chunks; ++step) {
    load(step + 2);
    const float3 ahead = read_scalars(step + 2);
    if (step >= 0) main(step);
    keep_scalars(scalars_of(step + 2), ahead);
    copy_async_wait<0>();
    __syncthreads();
  }
  if (!kReverse) {
    const int64_t after = (p.first + chunks) * kChunk;
    if (chunks > 0 && lane >= 28 && after <= s.tokens)
      for (int n = 0; n < 2; ++n)
        store_pair<bf16>(e.read_gate, false, p.row(s, after - 1) * kKey + first + n * 8 + lane % 4 * 2,
                         last[n]);
    float sums[2] = {};
    if (s.opposite)
      for_each_pair<kValue>([&](int n, int half, int at) {
        const float2 x = *reinterpret_cast<const float2*>(s.opposite + place * kStateSize + at);
        sums[half] += state[n][2 * half] * x.x + state[n][2 * half + 1] * x.y;
      });
    for (int half = 0; half < 2; ++half) {
      const float sum = warp_sum<4>(sums[half]);
      if (lane % 4 == 0) s.carried_gate[place * kKey + first + lane / 4 + half * 8] = sum;
    }
  }
  if (kReverse && s.end && p.segment == 0)
    for_each_pair<kValue>([&](int n, int half, int at) {
      *reinterpret_cast<float2*>(s.end + (p.batch * s.heads + p.head) * kStateSize + at) = {
          state[n][2 * half], state[n][2 * half + 1]};
    });
}

}  // namespace weft::kernels::low_rank
