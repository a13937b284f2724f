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

#include "ops/linear_attention/vector_decay.cuh"
#include "ops/linear_attention/vector_gates.cuh"
#include "ops/linear_attention/vector_pairs.cuh"
#include "ops/linear_attention/vector_state.cuh"

namespace weft::kernels::vector_decay {

__host__ __device__ inline Needs keys_needs(bool reverse, int value_width) {
  return {.q = true,
          .k = true,
          .v = true,
          .dy = true,
          .read_gate = reverse,
          .ring = value_width > 128 ? 4 : 5,
          .pair_stages = 2,
          .extra = 0};
}

template <class T, int kKey, int kValue, bool kReverse>
__global__ void __launch_bounds__(kKey * 4, kKey + kValue == 128 ? 2 : 1)
    sweep_keys(const __grid_constant__ FedSweep fed) {
  extern __shared__ __align__(1024) char shared[];
  const Sweep& s = fed.sweep;
  constexpr int kWarps = kKey / 16, kTile = kChunk * kKey;
  // A state wider than usual needs more registers.
  constexpr bool kMoves = kKey >= kValue || kValue > 128;
  constexpr int kHelperRegisters = kValue <= 128 ? 104 : kReverse ? 88 : 80;
  const Place p = place_of(s);
  const Needs needs = keys_needs(kReverse, kValue);
  const int keys = keys_of(s, p);
  const int64_t state_size = int64_t{s.key_width} * s.value_width;
  const Layout l = layout_of(kKey, kValue, s.log_decay.type == CudaType::fp32, needs);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = warp * 16;
  const bool helps = warp >= kWarps;
  const int64_t place = (p.batch * s.heads + p.head) * s.segments + p.segment;
  const auto chunk_of = [&](int step) { return p.first + (kReverse ? p.chunks - 1 - step : step); };
  const bool sums_gate = kReverse && s.dlog_decay;
  if (threadIdx.x == 0) init_feed(l, shared);
  __syncthreads();
  const auto form_pairs = [&](int step) {
    const char* raw = slot_at(l, shared, step);
    form_value_pairs<T, kValue, Panels<>>(reinterpret_cast<const T*>(raw + l.dy),
                                          reinterpret_cast<const T*>(raw + l.v),
                                          pairs_at<T>(l, shared, step));
  };
  if (helps) {
    share_registers<kMoves, true, kHelperRegisters>();
    const int channels = (warp - kWarps) * 16;
    const auto feed = [&](int step) {
      feed_chunk<kKey, kValue>(fed, l, p, needs, chunk_of(step) * kChunk, slot_at(l, shared, step),
                               full_at(l, shared, step));
    };
    const auto decay = [&](int step) {
      decay_chunk<T, kKey, kReverse ? Rows::queries : Rows::ones,
                  kReverse ? Columns::ones : Columns::written_keys, kReverse, false>(
          s, l, slot_at(l, shared, step), scalars_at(l, shared, step), warp - kWarps,
          stage_at(l, shared, step));
    };
    const auto pair = [&](int step) {
      if (step % kWarps == warp - kWarps) form_pairs(step);
    };
    float carried = 0;
    if (sums_gate && channels + lane % 16 < keys)
      carried = s.carried_gate[place * s.key_width + p.first_key + channels + lane % 16];
    const auto close = [&](int step) {
      if (!sums_gate) return;
      sum_parts<T, kKey>(s, p, channels, chunk_of(step) * kChunk, stage_at(l, shared, step), carried);
      __syncwarp();
    };
    run_helping_steps(l, shared, static_cast<int>(p.chunks), threadIdx.x == blockDim.x - 32, feed, decay,
                      pair, close);
    return;
  }

  share_registers<kMoves, false, kHelperRegisters>();
  float state[kValue / 8][4] = {};
  if (s.begin)
    for_each_stored_pair<kValue>(s, p, [&](int n, int half, int at) {
      const float2 x = *reinterpret_cast<const float2*>(s.begin + place * state_size + at);
      state[n][2 * half] = x.x, state[n][2 * half + 1] = x.y;
    });
  float bonus[2][2] = {}, bonus_sum[2][2] = {};
  if (s.bonus)
    for (int i = 0; i < 4; ++i) {
      const int channel = first + i / 2 * 8 + lane % 4 * 2 + i % 2;
      if (channel < keys) bonus[i / 2][i % 2] = s.bonus[p.head * s.key_width + p.first_key + channel];
    }

  constexpr bool kHold = kValue <= 128;  // else registers are short
  const int2 by_row = rows_first(lane);
  Blocks<Panels<>> blocks;
  blocks.template find<kHold>(by_row);
  uint32_t strict = 0, pairs_from = 2 * at16(kKey, by_row.x, first + by_row.y);
  for (int level = 0; level < 3; ++level) strict |= level_mask(level, kReverse);
  if (kHold) hold(strict), hold(pairs_from);
  // Bytes to the lane's two channels of tokens lane / 4 and 8 further, and to those 8 further: inputs, decayed tiles, parts.
  uint32_t input_at[2][2], tile_at[2][2], part_places[2][2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int t = lane / 4 + i % 2 * 8, channel = first + i / 2 * 8 + lane % 4 * 2;
    input_at[i / 2][i % 2] = 2 * Panels<>::at(t, channel);
    tile_at[i / 2][i % 2] = 2 * at16(kKey, t, channel);
    part_places[i / 2][i % 2] = static_cast<uint32_t>(
        reinterpret_cast<char*>(part_at<T, kKey>(shared, kWritten, t, channel)) - shared);
    if (kHold) hold(input_at[i / 2][i % 2]), hold(tile_at[i / 2][i % 2]), hold(part_places[i / 2][i % 2]);
  }
  // What leaves in 16 bits goes by way of a tile that is done with; of its rows of the warp's channels, half of one by each
  // lane: its place in a tile and in device memory, and tokens from it up to the sequence's end.
  uint32_t row_at = 2 * at16(kKey, lane / 2, first + lane % 2 * 8);
  if (kHold) hold(row_at);
  const int64_t chunk_step = (kReverse ? -kChunk : kChunk) * int64_t{s.heads} * s.key_width;
  int64_t to = p.row(s, chunk_of(0) * kChunk + lane / 2) * s.key_width + p.first_key + first + lane % 2 * 8;
  int left = static_cast<int>(s.tokens - chunk_of(0) * kChunk) - lane / 2;
  const bool exists = first + lane % 2 * 8 < keys;
  const auto store_row = [&](void* rows, const char* tile) {
    if (left > 0 && exists)
      *reinterpret_cast<uint4*>(static_cast<T*>(rows) + to) = *reinterpret_cast<const uint4*>(tile + row_at);
  };
  const auto store_wide = [&](int step, int t, int channel, float2 x) {
    const int64_t token = chunk_of(step) * kChunk + t;
    if (token < s.tokens && channel < keys)
      *reinterpret_cast<float2*>(static_cast<float*>(s.out) + p.row(s, token) * s.key_width + p.first_key +
                                 channel) = x;
  };
  const bool with_bonus = s.bonus != nullptr;
  int slot = 0, stage = 0;  // of the step
  const auto main = [&](int step) {
    const char* raw = shared + slot * l.slot;
    char* tiles = shared + l.stages + stage * l.stage;
    char *in = tiles + kLevels * kTile * 2, *out = in + kTile * 2;
    char *results = kReverse ? out : tiles + kTile * 2, *gates = tiles + 2 * kTile * 2;
    const uint32_t v = shared_address(raw) + l.v, dy = shared_address(raw) + l.dy;
    const Pairs<T> pairs = pairs_at<T>(l, shared, step);
    const Scalars& scalars = reinterpret_cast<const Scalars*>(shared + l.scalars)[slot];
    if (++slot == l.ring) slot = 0;
    if (++stage == kStages) stage = 0;
    float sums[2][4] = {};
    read_row_blocks<T, kValue>(state, kReverse ? v : dy, blocks, sums);
    const bool gentle = *gentle_at<kKey>(tiles, warp);
    float part[2][4] = {};  // of a gentle chunk's pairs
    if (gentle) {
      uint32_t a[4], b[4];
      load_gentle<T, kReverse>(a, pairs.matrix, strict);
      load_matrices_transposed(b, shared_address(kReverse ? in : tiles) + pairs_from);
      for (int n = 0; n < 2; ++n) multiply_add<T>(part[n], a, b[2 * n], b[2 * n + 1]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float *sum = sums[i / 2] + i % 2 * 2, *pair = part[i / 2] + i % 2 * 2;
      const uint32_t at = tile_at[i / 2][i % 2];
      const float2 x = unpack<T>(*reinterpret_cast<const uint32_t*>((kReverse ? out : in) + at));
      const float2 y = kReverse ? unpack<T>(*reinterpret_cast<const uint32_t*>(tiles + at)) : x;
      sum[0] *= x.x, sum[1] *= x.y;
      if (gentle) sum[0] += pair[0] * y.x, sum[1] += pair[1] * y.y;
    }
    if (!gentle) sum_pairs<T, kKey, kReverse>(pairs.matrix, tiles, first, tile_at, sums);
    __syncwarp();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float w = scalars.write[lane / 4 + half * 8], diagonal = pairs.diagonal[lane / 4 + half * 8];
      const float factor = kReverse ? w : s.scale, own_factor = s.scale * diagonal,
                  own_written = own_factor * w;
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        const float2 q = unpack<T>(*reinterpret_cast<const uint32_t*>(raw + l.q + input_at[n][half]));
        const float2 k = unpack<T>(*reinterpret_cast<const uint32_t*>(raw + l.k + input_at[n][half]));
        const float2 own = with_bonus ? float2{own_factor * bonus[n][0], own_factor * bonus[n][1]}
                                      : float2{own_written, own_written};
        // Without the diagonal, then with it.
        const float2 sum{factor * sums[n][2 * half], factor * sums[n][2 * half + 1]};
        const float2 other = kReverse ? q : k;
        const float2 all{sum.x + own.x * other.x, sum.y + own.y * other.y};
        if (s.out_fp32) {
          if (s.out) store_wide(step, lane / 4 + half * 8, first + n * 8 + lane % 4 * 2, all);
        } else {
          *reinterpret_cast<uint32_t*>(results + tile_at[n][half]) = pack<T>(all.x, all.y);
        }
        if (kReverse) {
          if (!sums_gate) continue;
          char* part = tiles + part_places[n][half];
          *reinterpret_cast<float2*>(part) = {k.x * sum.x, k.y * sum.y};
          *reinterpret_cast<float2*>(part + 2 * kTile * 2) =
              unpack<bf16>(*reinterpret_cast<const uint32_t*>(raw + l.read_gate + input_at[n][half]));
        } else {
          if (with_bonus)
            bonus_sum[n][0] += own_factor * q.x * k.x, bonus_sum[n][1] += own_factor * q.y * k.y;
          *reinterpret_cast<uint32_t*>(gates + tile_at[n][half]) = pack<bf16>(q.x * sum.x, q.y * sum.y);
        }
      }
    }
    __syncwarp();
    if (s.out && !s.out_fp32) store_row(s.out, results);
    if (!kReverse && s.read_gate) store_row(s.read_gate, gates);
    to += chunk_step, left += kReverse ? kChunk : -kChunk;
    update_row_blocks<T, kKey, kValue>(state, kReverse ? in : out, kReverse ? dy : v, blocks,
                                       reinterpret_cast<const float*>(tiles + (kLevels + 2) * kTile * 2));
  };
  run_main_steps(
      s, l, p, shared, chunk_of, false, [](int) {}, [](int) {}, main);

  if (!kReverse && s.carried_gate) {
    float sums[2] = {};
    if (s.opposite)
      for_each_stored_pair<kValue>(s, p, [&](int n, int half, int at) {
        const float2 x = *reinterpret_cast<const float2*>(s.opposite + place * state_size + at);
        sums[half] += state[n][2 * half] * x.x + state[n][2 * half + 1] * x.y;
      });
    for (int half = 0; half < 2; ++half) {
      const float sum = warp_sum<4>(sums[half]);
      const int channel = first + lane / 4 + half * 8;
      if (lane % 4 == 0 && channel < keys) s.carried_gate[place * s.key_width + p.first_key + channel] = sum;
    }
  }
  if (!kReverse && s.dbonus)
    for (int i = 0; i < 4; ++i) {
      float sum = bonus_sum[i / 2][i % 2];
      for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
      const int channel = first + i / 2 * 8 + lane * 2 + i % 2;
      if (lane < 4 && channel < keys) s.dbonus[place * s.key_width + p.first_key + channel] = sum;
    }
  if (kReverse && s.end && p.segment == 0)
    for_each_stored_pair<kValue>(s, p, [&](int n, int half, int at) {
      *reinterpret_cast<float2*>(s.end + (p.batch * s.heads + p.head) * state_size + at) = {
          state[n][2 * half], state[n][2 * half + 1]};
    });
}

}  // namespace weft::kernels::vector_decay
