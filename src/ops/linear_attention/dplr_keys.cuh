// The sweep of a low rank erase whose warps own key channels: dq and da forward, dk, db and the decay's gradient in
// reverse. What a recalls, c, and its gradient e are known, so the state is a sum of k v' and b c' that q reads for dy and a
// for e; with P the products of a chunk's dy and e with its v and c,
//   dq_r = scale (prior_r (S dy_r) + sum_{i<=r} decay(i, r] (dy_r.v_i w_i k_i + dy_r.c_i b_i))
//   da_r = prior_r (S e_r) + sum_{i<r} decay(i, r) (e_r.v_i w_i k_i + e_r.c_i b_i)
//   dk_i = w_i (later_i (dS v_i) + sum_{r>=i} decay(i, r] dy_r.v_i scale q_r + sum_{r>i} decay(i, r) e_r.v_i a_r)
//   db_i = later_i (dS c_i) + the same with c_i
// The decay's gradient is that of vector_keys.cuh; a_t da_t has no decay of t and counts for the tokens before it.
#pragma once

#include "ops/linear_attention/dplr_products.cuh"

namespace weft::kernels::low_rank {

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

// state += tile' values, of the tokens that reach it
template <class T, int kKey, int kWidth>
__device__ __forceinline__ void add_to_rows(float (&state)[kWidth / 8][4], const T* tile, const T* values,
                                            const TokenMasks& reaching) {
  const int lane = threadIdx.x % 32;
  const int2 by_column = columns_first(lane), by_row = rows_first(lane);
  uint32_t a[4];
  load_matrices_transposed(a, tile + at16(kKey, by_column.x, threadIdx.x / 32 * 16 + by_column.y));
  reaching.keep(a);
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    uint32_t b[4];
    load_matrices_transposed(b, values + at16(kWidth, by_row.x, n * 8 + by_row.y));
    multiply_add<T>(state[n], a, b[0], b[1]);
    multiply_add<T>(state[n + 1], a, b[2], b[3]);
  }
}

// state = decay state
template <int kWidth>
__device__ __forceinline__ void scale_rows(float (&state)[kWidth / 8][4], const float* decay) {
  const float* own = decay + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  const float d[2] = {own[0], own[8]};
#pragma unroll
  for (int n = 0; n < kWidth / 8; ++n)
    state[n][0] *= d[0], state[n][1] *= d[0], state[n][2] *= d[1], state[n][3] *= d[1];
}

// Of x [16 tokens, .] only the tokens with a bit.
__device__ __forceinline__ void keep_rows(uint32_t bits, float (&x)[2][4]) {
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (!(bits >> (threadIdx.x % 32 / 4 + i / 2 % 2 * 8) & 1)) x[i / 4][i % 4] = 0;
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

// Leaves in the row of read gates before every token's what q_t dq_t of that row and a_{t+1} da_{t+1} of the token give;
// `q` and `a` are those products of a lane's two tokens in one pair of channels, `last` the first of the chunk before's last
// token, which this chunk's first completes. `to` is the lane's place in the row before its first token's.
__device__ __forceinline__ void store_read_gate(bf16* to, int64_t eight_tokens, bool has_before, int left,
                                                const float2 (&q)[2], const float2 (&a)[2], float2& last) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int t = lane / 4 + half * 8;
    float2 before{__shfl_up_sync(0xffffffff, q[half].x, 4), __shfl_up_sync(0xffffffff, q[half].y, 4)};
    const float2 carried = half == 0 ? last : q[0];
    const float2 previous{__shfl_sync(0xffffffff, carried.x, 28 + lane % 4),
                          __shfl_sync(0xffffffff, carried.y, 28 + lane % 4)};
    if (lane < 4) before = previous;
    if ((t > 0 || has_before) && t <= left)
      store_pair<bf16>(to, false, half * eight_tokens, {before.x + a[half].x, before.y + a[half].y});
  }
  last = q[1];
}

// The gradient of a chunk's decays for a warp's 16 channels, as sum_parts has it: half a warp has 8 tokens, the first of
// them at `to`, rows `stride` apart, of which `left` of the chunk are there.
template <class T, int kKey>
__device__ __forceinline__ void sum_read_gates(const bf16* read_gates, const uint16_t* vanished,
                                               const T* written, float* to, int64_t stride, int left,
                                               float& carried) {
  constexpr int kHalf = kChunk / 2;
  const int lane = threadIdx.x % 32, channel = threadIdx.x / 32 * 16 + lane % 16, first = lane / 16 * kHalf;
  const uint32_t ends = vanished[channel] >> first & 0xff;
  // at16 and written_at, whose last three bits of a row are those of t
  const int piece = channel / 8 ^ first / 4, written_piece = channel / 16 * 2 + channel / 4 % 2 ^ first / 4;
  read_gates += first * kKey + channel % 8;
  written += (channel / 8 % 2 * kChunk + first) * kKey + channel % 4 * 2;
  float sums[kHalf], sum = first ? carried : 0.f;
#pragma unroll
  for (int t = kHalf - 1; t >= 0; --t) {
    sum += to_float(read_gates[t * kKey + (piece ^ t) * 8]) -
           *reinterpret_cast<const float*>(written + t * kKey + (written_piece ^ t) * 8);
    if (ends >> t & 1) sum = 0;
    sums[t] = sum;
  }
  const float later = __shfl_sync(0xffffffff, sum, lane % 16 + 16);
#pragma unroll
  for (int t = 0; t < kHalf; ++t, to += stride) {
    if (!first && !(ends >> t)) sums[t] += later;
    if (first + t < left) *to = sums[t];
  }
  if (!first && !ends) sum += later;
  carried = __shfl_sync(0xffffffff, sum, lane % 16);
}

template <class T, int kKey, int kValue, bool kReverse, class Warps>
__global__ void __launch_bounds__(Warps::kThreads, Warps::kBlocks)
    sweep_erased_keys(const Sweep s, const Erase e) {
  extern __shared__ __align__(1024) char shared[];
  using L = KeysLayout<kKey, kValue, kReverse>;
  constexpr int kWarps = Warps::kOwn, kTile = kChunk * kKey, kThreads = kWarps * 32;
  const Place p = place_of(s);
  const int lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), first = warp * 16;
  const int chunks = static_cast<int>(p.chunks);
  if (warp >= kWarps) {
    shrink_registers<Warps::kHelpRegisters>();
    const int helper = warp - kWarps, pair = Warps::kApart ? helper - Warps::kHelp : helper;
    __syncthreads();
    for (int step = 0; step < chunks; ++step) {
      if (helper < Warps::kHelp)
        decay_one_side<T, kKey, kValue, kReverse, Warps::kHelp>(s, e, shared, step, helper);
      if (pair >= 0 && pair < kValuePairs) pair_values<T, kKey, kValue, kReverse>(shared, step, pair);
      __syncthreads();
    }
    __syncthreads();
    return;
  }

  grow_registers<Warps::kOwnRegisters>();
  const Slice slice(s, e, p);
  const int first_key = static_cast<int>(blockIdx.y) * kKey;
  const int64_t head = p.batch * s.heads + p.head, place = head * s.segments + p.segment,
                state_at = (place * s.key_width + first_key) * kValue;
  float state[kValue / 8][4];
  for_each_pair<kValue>([&](int n, int half, int at) {
    const float2 x = s.begin ? *reinterpret_cast<const float2*>(s.begin + state_at + at) : float2{0, 0};
    state[n][2 * half] = x.x, state[n][2 * half + 1] = x.y;
  });
  float* carried_gate = s.carried_gate + place * s.key_width + first_key + first;
  float carried = kReverse && s.dlog_decay ? carried_gate[lane % 16] : 0.f;
  float2 last[2] = {{0, 0}, {0, 0}};

  constexpr int kForward = kReverse ? -kChunk : kChunk;
  const auto token_of = [&](int step) { return (p.first + (kReverse ? chunks - 1 - step : step)) * kChunk; };
  const auto inputs_of = [&](int step) { return shared + L::kInputs + step % L::kRing * L::kInputBytes; };
  const auto pairs_of = [&](int step) {
    return reinterpret_cast<const T*>(shared + L::kPairs + step % 2 * L::kPairBytes);
  };
  const auto read_gates_of = [&](int step) {
    return shared + L::kReadGates + step % L::kReadGateRing * L::kReadGateBytes;
  };
  const auto scalars_of = [&](int step) -> TokenScalars& {
    return reinterpret_cast<TokenScalars*>(shared + L::kScalars)[step % kNumberRing];
  };
  KeyCopies<kKey, kThreads> keys(s, e, p, first_key, token_of(0));
  RowCopies<kValue, kThreads> values(head_of(s.v, p, p.head), CudaType::bf16, s.v.token, token_of(0));
  auto recalled = contiguous_copies<kValue, kThreads>(s, p, e.recalled, token_of(0)),
       upstream = contiguous_copies<kValue, kThreads>(s, p, s.dy, token_of(0)),
       drecalled = contiguous_copies<kValue, kThreads>(s, p, e.drecalled, token_of(0));
  auto read_gates = contiguous_copies<kKey, kThreads>(slice.s, slice.p, e.read_gate, token_of(0));
  const auto left = [&](int step) {
    return static_cast<int>(min(int64_t{kChunk}, s.tokens - token_of(step)));
  };
  const auto load = [&](int step) {
    constexpr int kValueBytes = kChunk * kValue * 2;
    if (step < chunks) {
      char* to = inputs_of(step) + 4 * kTile * 2;
      keys.start(inputs_of(step), shared + L::kGates + step % L::kRing * L::kGateBytes, left(step), kForward);
      values.start(to, left(step), kForward), recalled.start(to + kValueBytes, left(step), kForward);
      upstream.start(to + 2 * kValueBytes, left(step), kForward);
      drecalled.start(to + 3 * kValueBytes, left(step), kForward);
    }
    if (kReverse && step - 1 >= 0 && step - 1 < chunks)
      read_gates.start(read_gates_of(step - 1), left(step - 1), kForward);
    copy_async_commit();
  };
  const auto read_scalars = [&](int step) {
    return step < chunks ? token_scalars(s, e, p, token_of(step) + threadIdx.x) : float3{};
  };

  // Two channels of a lane's two tokens, from the sums without the diagonal, scale or write strength; `to` is where the
  // first of the tokens has its first channel.
  int64_t to = slice.p.row(slice.s, token_of(0) + lane / 4) * kKey + first + lane % 4 * 2;
  const int64_t eight_tokens = int64_t{8} * slice.s.heads * kKey;
  const auto finish = [&](int step, T* products, int n, const float(&x)[4], const float(&y)[4]) {
    const int channel = first + n * 8 + lane % 4 * 2;
    const T* inputs = reinterpret_cast<const T*>(inputs_of(step));
    const auto* diagonal = reinterpret_cast<const float*>(pairs_of(step) + kValuePairs * kChunk * kPairRow);
    float2 of_q[2], of_a[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = lane / 4 + half * 8, at = at16(kKey, t, channel);
      const float2 q = pair_at<T>(inputs, at), k = pair_at<T>(inputs + kTile, at),
                   b = pair_at<T>(inputs + 3 * kTile, at);
      const float w = scalars_of(step).write[t];
      const float with_v = s.scale * diagonal[t], with_c = s.scale * diagonal[kChunk + t];
      float2 sum{x[2 * half], x[2 * half + 1]}, other{y[2 * half], y[2 * half + 1]}, all;
      if (kReverse) {
        sum = times(sum, {w, w});
        all = {sum.x + w * with_v * q.x, sum.y + w * with_v * q.y};
        *reinterpret_cast<float2*>(written_at<T, kKey>(reinterpret_cast<char*>(products), t, channel)) = {
            k.x * sum.x + b.x * other.x, k.y * sum.y + b.y * other.y};
        other = {other.x + with_c * q.x, other.y + with_c * q.y};
      } else {
        const float2 a = pair_at<T>(inputs + 2 * kTile, at);
        sum = times(sum, {s.scale, s.scale});
        all = {sum.x + with_v * w * k.x + with_c * b.x, sum.y + with_v * w * k.y + with_c * b.y};
        of_q[half] = times(q, sum), of_a[half] = times(a, other);
      }
      if (t >= left(step)) continue;
      if (s.out) store_pair<T>(s.out, s.out_fp32, to + half * eight_tokens + n * 8, all);
      if (e.out) store_pair<T>(e.out, e.out_fp32, to + half * eight_tokens + n * 8, other);
    }
    if (!kReverse)
      store_read_gate(e.read_gate + to - eight_tokens / 8 + n * 8, eight_tokens, step > 0, left(step), of_q,
                      of_a, last[n]);
  };
  const auto main = [&](int step) {
    T* levels = reinterpret_cast<T*>(shared + L::kLevelTiles);
    const T *ends = reinterpret_cast<const T*>(shared + L::kEnds + step % 2 * L::kEndBytes),
            *v = reinterpret_cast<const T*>(inputs_of(step)) + 4 * kTile, *c = v + kChunk * kValue,
            *dy = c + kChunk * kValue, *de = dy + kChunk * kValue;
    const auto* whole = reinterpret_cast<const float*>(ends + L::kWholeAt);
    const uint32_t mark = mark_of<kKey>(whole), starts = starts_of(mark);
    const auto scale = [&](float(&x)[2][4], float(&y)[2][4]) {
      scale_by_tile<T, kKey>(kReverse ? ends + 2 * kTile : ends, x);
      scale_by_tile<T, kKey>(kReverse ? ends + 2 * kTile : ends + kTile, y);
    };
    float x[2][4] = {}, y[2][4] = {};
    if (kReverse && mark) scale_rows<kValue>(state, whole);
    if (!kReverse && mark & kFromMiddle) scale_rows<kValue>(state, whole + kKey);
    read_rows_twice<T, kValue>(state, kReverse ? v : dy, kReverse ? c : de, x, y);
    if (starts) {
      const uint32_t reached = kReverse ? behind_starts(starts) : before_starts(starts);
      keep_rows(reached, x), keep_rows(reached, y), clear_state(state);
    }
    if (mark) {
      add_gentle_pairs<T, kKey, kReverse>(pairs_of(step), starts, kReverse ? ends : ends + 2 * kTile,
                                          kReverse ? ends + kTile : ends + 3 * kTile, x, y);
      scale(x, y);
    } else {
      scale(x, y);
      const auto decays = one_side<T, kKey, kValue, kReverse, kWarps>(s, e, shared, step, warp);
      add_value_pairs<T, kKey, kReverse>(
          pairs_of(step), levels, levels + kTile,
          [&](int level) { decays.level(level, levels, levels + kTile); }, x, y);
    }
    __syncwarp();
#pragma unroll
    for (int n = 0; n < 2; ++n) finish(step, levels, n, x[n], y[n]);
    if (!mark) scale_rows<kValue>(state, whole);
    const TokenMasks reaching(kReverse ? before_starts(starts) : behind_starts(starts));
    add_to_rows<T, kKey, kValue>(state, kReverse ? ends : ends + 2 * kTile, kReverse ? dy : v, reaching);
    add_to_rows<T, kKey, kValue>(state, kReverse ? ends + kTile : ends + 3 * kTile, kReverse ? de : c,
                                 reaching);
    if (!kReverse && mark) scale_rows<kValue>(state, whole);
    if (kReverse && mark & kFromMiddle) scale_rows<kValue>(state, whole + kKey);
    if (kReverse && s.dlog_decay) {
      __syncwarp();
      float* decays =
          s.dlog_decay + slice.p.row(slice.s, token_of(step) + lane / 16 * 8) * kKey + first + lane % 16;
      sum_read_gates<T, kKey>(reinterpret_cast<const bf16*>(read_gates_of(step)),
                              reinterpret_cast<const uint16_t*>(whole + 2 * kKey + kMarkFloats), levels,
                              decays, eight_tokens / 8, left(step), carried);
    }
    to += 2 * (kReverse ? -eight_tokens : eight_tokens);
  };

  for (int step = 0; step + 1 < L::kAhead; ++step) load(step);
  keep_scalars(scalars_of(0), read_scalars(0));
  float3 numbers = read_scalars(1);  // on their way for a step
  copy_async_wait<L::kAhead - 2>();
  __syncthreads();
  for (int step = -1; step < chunks; ++step) {
    load(step + L::kAhead);
    const float3 ahead = read_scalars(step + 3);
    if (step >= 0) main(step);
    keep_scalars(scalars_of(step + 2), numbers), numbers = ahead;
    copy_async_wait<L::kAhead - 2>();
    __syncthreads();
  }
  if (!kReverse) {
    const int64_t after = (p.first + chunks) * kChunk;
    if (chunks > 0 && lane >= 28 && after <= s.tokens)
      for (int n = 0; n < 2; ++n)
        store_pair<bf16>(e.read_gate, false,
                         slice.p.row(slice.s, after - 1) * kKey + first + n * 8 + lane % 4 * 2, last[n]);
    float sums[2] = {};
    if (s.opposite)
      for_each_pair<kValue>([&](int n, int half, int at) {
        const float2 x = *reinterpret_cast<const float2*>(s.opposite + state_at + at);
        sums[half] += state[n][2 * half] * x.x + state[n][2 * half + 1] * x.y;
      });
    for (int half = 0; half < 2; ++half) {
      const float sum = warp_sum<4>(sums[half]);
      if (lane % 4 == 0) carried_gate[lane / 4 + half * 8] = sum;
    }
  }
  if (kReverse && s.end && p.segment == 0)
    for_each_pair<kValue>([&](int n, int half, int at) {
      *reinterpret_cast<float2*>(s.end + (head * s.key_width + first_key) * kValue + at) = {
          state[n][2 * half], state[n][2 * half + 1]};
    });
}

}  // namespace weft::kernels::low_rank
