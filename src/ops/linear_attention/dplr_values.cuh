// The sweep of a low rank erase whose warps own value channels. The pairs of a chunk are the matrices QK, QB (with the
// diagonal), AK, AB (without); its inverse (I - AB)^-1 is formed beside them. With S before the chunk,
//   c = (I - AB)^-1 (in_a S + AK v),   y = in_q S + QK v + QB c,   S' = D S + out_k' v + out_b' c
// and in reverse, with the gradient dS of the state behind it,
//   e = (I - AB)^-1' (out_b dS + QB' dy),   dv = out_k dS + QK' dy + AK' e,   dS' = D dS + in_q' dy + in_a' e.
// While some warps are at chunk c, helping warps make the decayed tiles and the pairs of c + 1, and c + 2 is on its way.
// A wide V is cut into slices, each with a block of its own, that all do the latter.
#pragma once

#include "ops/linear_attention/dplr_pairs.cuh"

namespace weft::kernels::low_rank {

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

// The state's reads by two tiles, its fragments packed once. kSome: only those for the tokens with a bit.
template <class T, int kWidth, bool kSome = false>
__device__ __forceinline__ void read_twice(const float (&state)[kWidth / 8][4], const T* tile, const T* other,
                                           float (&result)[2][4], float (&other_result)[2][4],
                                           uint32_t bits = 0) {
  const int2 at = columns_first(threadIdx.x % 32);
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    const uint32_t a[4] = {pack<T>(state[n][0], state[n][1]), pack<T>(state[n][2], state[n][3]),
                           pack<T>(state[n + 1][0], state[n + 1][1]),
                           pack<T>(state[n + 1][2], state[n + 1][3])};
    uint32_t b[4], c[4];
    load_matrices(b, tile + at16(kWidth, at.x, n * 8 + at.y));
    load_matrices(c, other + at16(kWidth, at.x, n * 8 + at.y));
    if (kSome)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (!(bits >> (i / 2 * 8 + threadIdx.x % 32 / 4) & 1)) b[i] = c[i] = 0;
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

// state = decay state
template <int kWidth>
__device__ __forceinline__ void scale_state(float (&state)[kWidth / 8][4], const float* decay) {
#pragma unroll
  for (int n = 0; n < kWidth / 8; ++n) {
    const float2 d = *reinterpret_cast<const float2*>(decay + n * 8 + threadIdx.x % 4 * 2);
    state[n][0] *= d.x, state[n][1] *= d.y, state[n][2] *= d.x, state[n][3] *= d.y;
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

// Stores a warp's [16 values, 16 tokens], packed as a factor, as rows of values at `to`, which is the lane's: of token
// lane / 2 the eight values from lane % 2 * 8 on. `tile` is 512 bytes of the warp.
__device__ __forceinline__ void store_factor(const uint32_t (&x)[4], char* tile, void* to, bool valid) {
  const auto at = [](int token, int half) { return token * 32 + ((half ^ (token >> 2 & 1)) << 4); };
  const int lane = threadIdx.x % 32;
  __syncwarp();
  store_matrices_transposed(tile + at(lane / 16 * 8 + lane % 8, lane / 8 % 2), x[0], x[1], x[2], x[3]);
  __syncwarp();
  if (valid) *static_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(tile + at(lane / 2, lane % 2));
}

template <class T, int kKey, int kValue, bool kReverse, class Warps>
__global__ void __launch_bounds__(Warps::kThreads, Warps::kBlocks)
    sweep_erased_values(const Sweep s, const Erase e) {
  extern __shared__ __align__(1024) char shared[];
  using L = ValuesLayout<Warps, kKey, kValue, kReverse>;
  constexpr int kWarps = Warps::kOwn, kTile = kChunk * kKey, kPairs = kChunk * kPairRow,
                kThreads = kWarps * 32;
  const Place p = place_of(s);
  const int lane = threadIdx.x % 32, warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0);
  const bool first = p.segment == (kReverse ? s.segments - 1 : 0),
             last = p.segment == (kReverse ? 0 : s.segments - 1);
  if (e.phase == Phase::states && (last || (first && blockIdx.z > 0))) return;
  if (e.phase == Phase::rest && first) return;
  const bool only_state = e.phase == Phase::states && !first,
             identity = blockIdx.z > 0 || (Warps::kTransitions && warp >= kValue / 16);
  for (int i = threadIdx.x; i < 2 * L::kPairBytes / 4; i += blockDim.x)
    reinterpret_cast<uint32_t*>(shared + L::kPairs)[i] = 0;
  const int chunks = static_cast<int>(p.chunks);
  if (warp >= kWarps) {
    if constexpr (Warps::kMoves) shrink_registers<Warps::kHelpRegisters>();
    help_with_values<T, kKey, kValue, kReverse, Warps>(s, e, shared, only_state, chunks, warp - kWarps);
    return;
  }

  if constexpr (Warps::kMoves) grow_registers<Warps::kOwnRegisters>();
  const Slice slice(s, e, p);
  const int own = warp % (kValue / 16) * 16,
            first_value = static_cast<int>(blockIdx.y) * kValue + own + lane / 4,
            state_size = kKey * s.value_width;
  const int64_t head = p.batch * s.heads + p.head, place = head * s.segments + p.segment;
  float state[kKey / 8][4];
  // body(entry, where it lies in a state [K, V])
  const auto for_each_state = [&](const auto& body) {
#pragma unroll
    for (int n = 0; n < kKey / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        body(state[n][i], (n * 8 + lane % 4 * 2 + i % 2) * s.value_width + first_value + i / 2 * 8);
  };
  const float* begin = e.phase == Phase::rest     ? s.begin + place * state_size
                       : !only_state && e.initial ? e.initial + head * state_size
                                                  : nullptr;
  for_each_state([&](float& x, int at) {
    x = begin && !identity ? begin[at] : identity && at / s.value_width == at % s.value_width ? 1.f : 0.f;
  });
  const auto store_border = [&](int64_t border) {
    if (!e.borders || only_state || identity || border < 0 || border >= e.border_count) return;
    float* border_state = e.borders + (head * e.border_count + border) * state_size;
    for_each_state([&](float& x, int at) { border_state[at] = x; });
  };
  if (first) store_border(kReverse ? e.border_count - 1 : 0);
  int until_border = 0;  // chunks
  if (e.borders && kReverse) {
    until_border = static_cast<int>((p.first + chunks - 1) % e.border_chunks) + 1;
  } else if (e.borders) {
    until_border = e.border_chunks - static_cast<int>(p.first % e.border_chunks);
  }

  constexpr int kForward = kReverse ? -kChunk : kChunk;
  const auto token_of = [&](int step) { return (p.first + (kReverse ? chunks - 1 - step : step)) * kChunk; };
  const auto scalars_of = [&](int step) -> TokenScalars& {
    return reinterpret_cast<TokenScalars*>(shared + L::kScalars)[step % kNumberRing];
  };
  const auto sums_of = [&](int step) {
    return reinterpret_cast<float*>(shared + L::kSums) + step % 2 * (kValue / 16) * kChunk;
  };
  KeyCopies<kKey, kThreads> keys(s, e, p, 0, token_of(0));
  RowCopies<kValue, kThreads> values(head_of(s.v, p, p.head) + blockIdx.y * (kValue * 2), CudaType::bf16,
                                     s.v.token, token_of(0));
  auto upstream = contiguous_copies<kValue, kThreads>(slice.s, slice.p, s.dy, token_of(0));
  const auto load = [&](int step) {
    if (step < chunks) {
      const int left = static_cast<int>(min(int64_t{kChunk}, s.tokens - token_of(step)));
      char* to = shared + L::kValues + step % L::kValueRing * L::kValueBytes;
      keys.start(shared + L::kKeys + step % L::kKeyRing * L::kKeyBytes,
                 shared + L::kGates + step % L::kKeyRing * L::kGateBytes, left, kForward);
      if (kReverse) upstream.start(to, left, kForward);
      if (!kReverse || s.dwrite) values.start(to + (kReverse ? L::kValueTile : 0), left, kForward);
    }
    copy_async_commit();
  };
  const auto read_scalars = [&](int step) {
    return step < chunks ? token_scalars(s, e, p, token_of(step) + threadIdx.x) : float3{};
  };
  const auto sum_write = [&](int step) {
    const int64_t token = token_of(step) + threadIdx.x;
    if (!s.dwrite || only_state || threadIdx.x >= kChunk || token >= s.tokens) return;
    float sum = 0;
    for (int i = 0; i < kValue / 16; ++i) sum += sums_of(step)[i * kChunk + threadIdx.x];
    s.dwrite[slice.p.row(slice.s, token)] = sum;
  };
  int64_t to = slice.p.row(slice.s, token_of(0) + lane / 2) * kValue + own + lane % 2 * 8;
  const auto main = [&](int step) {
    if (kReverse && step > 0) sum_write(step - 1);
    const char* stage = shared + L::kEnds + step % L::kEndRing * L::kEndBytes;
    const T *values = reinterpret_cast<const T*>(shared + L::kValues + step % L::kValueRing * L::kValueBytes),
            *pairs = reinterpret_cast<const T*>(shared + L::kPairs + step % 2 * L::kPairBytes),
            *in_q = reinterpret_cast<const T*>(stage), *in_a = in_q + kTile, *out_k = in_q + 2 * kTile,
            *out_b = in_q + 3 * kTile;
    const auto* whole = reinterpret_cast<const float*>(in_q + 4 * kTile);
    const uint32_t mark = mark_of<kKey>(whole), starts = starts_of(mark);
    const int2 at = columns_first(lane);
    uint32_t x[4], y[4];
    if (kReverse && mark) scale_state<kKey>(state, whole);
    if (!kReverse && mark & kFromMiddle) scale_state<kKey>(state, whole + kKey);
    load_matrices_transposed(x, values + at16(kValue, at.x, own + at.y));
    if (identity) x[0] = x[1] = x[2] = x[3] = 0;
    const TokenMasks reaching(kReverse ? before_starts(starts) : behind_starts(starts));
    float result[2][4] = {}, right[2][4] = {}, solved[2][4] = {};
    apply_pairs<T, kReverse>(pairs + (kReverse ? kPairsQB : kPairsAK) * kPairs, x, right);
    if (!only_state) apply_pairs<T, kReverse>(pairs + kPairsQK * kPairs, x, result);
    if (starts) {
      read_twice<T, kKey, true>(state, kReverse ? out_k : in_q, kReverse ? out_b : in_a, result, right,
                                kReverse ? behind_starts(starts) : before_starts(starts));
      clear_state(state);
    } else if (only_state) {
      read_state<T, kKey>(state, kReverse ? out_b : in_a, right);
    } else {
      read_twice<T, kKey>(state, kReverse ? out_k : in_q, kReverse ? out_b : in_a, result, right);
    }
    as_factor<T>(right, y);
    apply_pairs<T, kReverse>(pairs + kInverse * kPairs, y, solved);
    as_factor<T>(solved, y);
    if (!mark) scale_state<kKey>(state, whole);
    uint32_t left[4] = {y[0], y[1], y[2], y[3]};
    reaching.keep(x), reaching.keep(left);
    add_to_state<T, kKey>(state, x, kReverse ? in_q : out_k);
    add_to_state<T, kKey>(state, left, kReverse ? in_a : out_b);
    if (!kReverse && mark) scale_state<kKey>(state, whole);
    if (kReverse && mark & kFromMiddle) scale_state<kKey>(state, whole + kKey);
    if (only_state || identity) return;
    if (e.borders && --until_border == 0) {
      const int64_t chunk = token_of(step) / kChunk;
      store_border(kReverse ? chunk / e.border_chunks - 1 : (chunk + 1) / e.border_chunks);
      until_border = e.border_chunks;
    }
    apply_pairs<T, kReverse>(pairs + (kReverse ? kPairsAK : kPairsQB) * kPairs, y, result);
    if (kReverse)
      finish_dvalues<T, kValue>(s, values + kChunk * kValue, scalars_of(step), result, sums_of(step));
    char* tile = shared + L::kOut + warp * 512;
    const bool valid = token_of(step) + lane / 2 < s.tokens;
    void* recalled = kReverse ? e.drecalled : e.recalled;
    if (recalled) store_factor(y, tile, static_cast<T*>(recalled) + to, valid);
    as_factor<T>(result, y);
    if (s.out) store_factor(y, tile, static_cast<T*>(s.out) + to, valid);
    to += int64_t{kForward} * slice.s.heads * kValue;
  };

  for (int step = 0; step < L::kAhead; ++step) load(step);
  keep_scalars(scalars_of(0), read_scalars(0));
  float3 numbers = read_scalars(1);  // on their way for a step
  copy_async_wait<L::kAhead - 1>();
  __syncthreads();
  for (int step = -L::kGroups; step < chunks; ++step) {
    load(step + L::kGroups + L::kAhead);
    const float3 ahead = read_scalars(step + L::kGroups + 2);
    if constexpr (Warps::kShares)
      if (step + 1 < chunks)
        ValuePreparation<T, kKey, kValue, kReverse, Warps>{s,        e, shared,          only_state,
                                                           step + 1, 0, kKey / 32 + warp}
            .share_tiles();
    if (step >= 0) main(step);
    keep_scalars(scalars_of(step + L::kGroups + 1), numbers), numbers = ahead;
    copy_async_wait<L::kAhead - 1>();
    __syncthreads();
  }
  if (kReverse && chunks > 0) sum_write(chunks - 1);
  float* end = e.phase != Phase::states ? (s.end && last ? s.end + head * state_size : nullptr)
               : identity               ? (first ? nullptr : e.transition + place * state_size)
                                        : s.end + place * state_size;
  if (end) for_each_state([&](float& x, int at) { end[at] = x; });
}

}  // namespace weft::kernels::low_rank
