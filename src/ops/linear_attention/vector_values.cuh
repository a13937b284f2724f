// The sweep whose warps own value channels: y forward, dv in reverse. Forward, with S before a chunk,
//   y = in S + A v,   S' = D S + out' v
// and in reverse, with the gradient dS of the state behind it,
//   dv = out dS + A' dy,   dS' = D dS + in' dy
// where A has the pairs of the chunk, `in` the rows q and `out` the columns k of vector_tiles.cuh.
//
// A head of more than 128 key channels is a cluster of two blocks, each with half of them. All of y and dv is then a sum
// of two parts: a block sends its part of the other's half of the value channels, and stores its own half.
#pragma once

#include "ops/cuda/cluster.cuh"
#include "ops/linear_attention/vector_decay.cuh"
#include "ops/linear_attention/vector_pairs.cuh"
#include "ops/linear_attention/vector_state.cuh"

namespace weft::kernels::vector_decay {

// Value channels of a warp.
constexpr int value_span(int value_width) { return value_width > 128 ? 32 : 16; }
// Elements from row to row of a warp's tile of results.
constexpr int out_stride(int value_width) { return value_span(value_width) + 8; }

// What a block gets of the other half of the key channels, for two steps: results of half its warps as they hold them.
struct Received {
  uint4 parts[2][4][4][32];
  uint64_t full[2];
};

// Bytes of shared memory beside those of every sweep: for every warp a tile of results, for two chunks and every warp
// a token's part of dwrite, and what is received.
__host__ __device__ inline Needs values_needs(bool reverse, const Sweep& s, int value_width) {
  const int warps = value_width / value_span(value_width);
  const int out_warps = s.key_blocks > 1 ? warps / 2 : warps;
  return {.q = true,
          .k = true,
          .v = !reverse || s.dwrite,
          .dy = reverse,
          .read_gate = false,
          .ring = value_width > 128 ? 4 : 5,
          .pair_stages = 2,
          .extra = out_warps * kChunk * out_stride(value_width) * 2 + 2 * warps * kChunk * 4 +
                   (s.key_blocks > 1 ? static_cast<int>(sizeof(Received)) : 0)};
}

// Stores results of a warp, [kTiles times 16 values, 16 tokens], chunk after chunk, by way of a tile of its own.
template <class T, int kTiles>
struct ResultStore {
  static constexpr int kStride = kTiles * 16 + 8, kPieces = kTiles * 2, kRows = 32 / kPieces;
  T *tile, *to;          // the lane's place in the tile, and of its first row in device memory
  int64_t rows, chunks;  // elements from a lane's row to its next, and from chunk to chunk
  int left, left_step;   // tokens from the lane's first row to the end of the sequence
  bool wanted;

  __device__ ResultStore(const Sweep& s, const Place& p, int64_t token, bool reverse, int first,
                         T* warp_tile) {
    const int lane = threadIdx.x % 32, row = lane / kPieces, column = lane % kPieces * 8;
    const int64_t stride = int64_t{s.heads} * s.value_width;
    tile = warp_tile;
    rows = kRows * stride, chunks = (reverse ? -kChunk : kChunk) * stride;
    to = static_cast<T*>(s.out) + p.row(s, token + row) * s.value_width + first + column;
    left = static_cast<int>(s.tokens - token) - row, left_step = reverse ? kChunk : -kChunk;
    wanted = s.out && first + column < s.value_width;
  }
  __device__ __forceinline__ void store(const float (&x)[kTiles][2][4]) {
    const int lane = threadIdx.x % 32, part = lane / 8;
    T* put = tile + (part / 2 * 8 + lane % 8) * kStride + part % 2 * 8;
    const T* get = tile + lane / kPieces * kStride + lane % kPieces * 8;
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
      store_matrices_transposed(put + i * 16, pack<T>(x[i][0][0], x[i][0][1]),
                                pack<T>(x[i][0][2], x[i][0][3]), pack<T>(x[i][1][0], x[i][1][1]),
                                pack<T>(x[i][1][2], x[i][1][3]));
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
      if (wanted && i * kRows < left)
        *reinterpret_cast<uint4*>(to + i * rows) = *reinterpret_cast<const uint4*>(get + i * kRows * kStride);
    to += chunks, left += left_step;
  }
};

// Adds what needs no state: dv's write strength and the bonus; leaves the warp's part of dwrite in `sums`.
template <class T, bool kReverse, int kTiles>
__device__ __forceinline__ void finish_values(const Sweep& s, const Layout& l, const char* raw,
                                              const T* values, const Scalars& scalars, const float* diagonal,
                                              float (&x)[kTiles][2][4], float* sums) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * kTiles * 16 + lane / 4;
  const auto value_at = [&](const T* tile, int t, int i, int half) {
    return to_float(tile[Panels<>::at(t, first + i * 16 + half * 8)]);
  };
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int t = n * 8 + lane % 4 * 2 + e;
      if (kReverse && s.dwrite) {
        const T* v = reinterpret_cast<const T*>(raw + l.v);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < kTiles; ++i)
          sum += x[i][n][e] * value_at(v, t, i, 0) + x[i][n][e + 2] * value_at(v, t, i, 1);
        for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
        if (lane < 4) sums[threadIdx.x / 32 * kChunk + t] = sum;
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if (kReverse) x[i][n][e] *= scalars.write[t], x[i][n][e + 2] *= scalars.write[t];
        if (s.bonus) {
          x[i][n][e] += diagonal[t] * value_at(values, t, i, 0);
          x[i][n][e + 2] += diagonal[t] * value_at(values, t, i, 1);
        }
      }
    }
}

template <class T, int kKey, int kValue, bool kReverse>
__global__ void __launch_bounds__((kKey / 16 + kValue / value_span(kValue)) * 32,
                                  kKey + kValue == 128 ? 2 : 1)
    sweep_values(const __grid_constant__ FedSweep fed) {
  extern __shared__ __align__(1024) char shared[];
  const Sweep& s = fed.sweep;
  constexpr int kSpan = value_span(kValue), kTiles = kSpan / 16, kWarps = kValue / kSpan,
                kHelpers = kKey / 16, kTile = kChunk * kKey;
  constexpr bool kMoves = kWarps == kHelpers;
  constexpr int kHelperRegisters = kTiles == 1 ? 104 : 88;
  const Place p = place_of(s);
  const Needs needs = values_needs(kReverse, s, kValue);
  const Layout l = layout_of(kKey, kValue, s.log_decay.type == CudaType::fp32, needs);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const bool helps = warp >= kWarps, last = p.segment == (kReverse ? 0 : s.segments - 1);
  // Of two blocks that share a head's keys, one has the results of the first half of the warps.
  const bool shares = kValue > 128 && s.key_blocks > 1;
  const int64_t place = (p.batch * s.heads + p.head) * s.segments + p.segment;
  const int64_t state_size = int64_t{s.key_width} * s.value_width;
  auto* received = reinterpret_cast<Received*>(shared + l.extra);
  T* out_tiles = reinterpret_cast<T*>(shared + l.extra + (s.key_blocks > 1 ? sizeof(Received) : 0));
  const int out_warps = s.key_blocks > 1 ? kWarps / 2 : kWarps;
  auto* write_sums = reinterpret_cast<float*>(out_tiles + out_warps * kChunk * out_stride(kValue));
  for (int i = threadIdx.x; i < l.pair_stages * kChunk * kPairRow; i += blockDim.x)
    pairs_at<T>(l, shared, i / (kChunk * kPairRow)).matrix[i % (kChunk * kPairRow)] = from_float<T>(0.f);
  if (threadIdx.x == 0) {
    if (shares) arrival_init(&received->full[0]), arrival_init(&received->full[1]);
    init_feed(l, shared);
  }
  if (shares) cluster_barrier();
  __syncthreads();

  const auto chunk_of = [&](int step) { return p.first + (kReverse ? p.chunks - 1 - step : step); };
  constexpr bool kMainHelps = kTiles == 1;  // balances warps
  const auto feed = [&](int step) {
    feed_chunk<kKey, kValue>(fed, l, p, needs, chunk_of(step) * kChunk, slot_at(l, shared, step),
                             full_at(l, shared, step));
  };
  const auto pair = [&](int step) {
    const Pairs<T> pairs = pairs_at<T>(l, shared, step);
    const T* tiles = reinterpret_cast<const T*>(stage_at(l, shared, step));
    const bool gentle = *gentle_at<kKey>(stage_at(l, shared, step), 0);
    for (int task = kMainHelps ? warp : warp - kWarps; task <= kLevels;
         task += kMainHelps ? kWarps : kHelpers) {
      if (gentle && task < kLevels) {
        if (task < 2) form_gentle<T, kKey>(tiles + kLevels * kTile, tiles, task, !s.bonus, pairs.matrix);
        continue;
      }
      if (gentle && !s.bonus) continue;
      if (task < kLevels) {
        form_level<T, kKey>(tiles + task * kTile, task, pairs.matrix);
        continue;
      }
      const char* raw = slot_at(l, shared, step);
      const T *q = reinterpret_cast<const T*>(raw + l.q), *k = reinterpret_cast<const T*>(raw + l.k);
      if (s.bonus) {
        form_diagonal<T, kKey, true>(q, k, s.bonus + p.head * s.key_width + p.first_key, keys_of(s, p),
                                     s.scale, pairs.diagonal);
        continue;
      }
      form_diagonal<T, kKey, false>(q, k, nullptr, 0, s.scale, pairs.diagonal);
      __syncwarp();
      if (lane < kChunk)
        pairs.matrix[lane * kPairRow + lane] =
            from_float<T>(pairs.diagonal[lane] * (kReverse ? 1.f : scalars_at(l, shared, step).write[lane]));
    }
  };
  const auto nothing = [](int) {};
  if (helps) {
    share_registers<kMoves, true, kHelperRegisters>();
    const auto decay = [&](int step) {
      decay_chunk<T, kKey, Rows::queries, kReverse ? Columns::keys : Columns::written_keys, false, true>(
          s, l, slot_at(l, shared, step), scalars_at(l, shared, step), warp - kWarps,
          stage_at(l, shared, step));
    };
    run_helping_steps(
        l, shared, static_cast<int>(p.chunks), !kMainHelps && threadIdx.x == blockDim.x - 32, feed, decay,
        [&](int step) {
          if constexpr (!kMainHelps) pair(step);
        },
        nothing);
    if (shares) cluster_barrier();
    return;
  }

  share_registers<kMoves, false, kHelperRegisters>();
  float state[kTiles][kKey / 8][4];
  for_each_state<kKey, kTiles>(s, p, [&](int i, int n, int j, int at, bool valid) {
    state[i][n][j] = s.begin && valid ? s.begin[place * state_size + at] : 0.f;
  });
  const auto sum_write = [&](int step) {
    const int64_t token = chunk_of(step) * kChunk + threadIdx.x;
    if (!s.dwrite || threadIdx.x >= kChunk || token >= s.tokens) return;
    float sum = 0;
    for (int i = 0; i < kWarps; ++i) sum += write_sums[(step % 2 * kWarps + i) * kChunk + threadIdx.x];
    s.dwrite[p.row(s, token) * s.key_blocks + p.key_block] = sum;
  };
  constexpr int kHalf = kWarps / 2;
  const bool stores = !shares || warp / kHalf == p.key_block;
  const auto send = [&](int step, const float(&x)[kTiles][2][4]) {
    const uint32_t other = p.key_block ^ 1,
                   full = address_in(shared_address(&received->full[step % 2]), other);
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const auto& from = x[i / 2][i % 2];
      const uint32_t words[4] = {__float_as_uint(from[0]), __float_as_uint(from[1]), __float_as_uint(from[2]),
                                 __float_as_uint(from[3])};
      send16(address_in(shared_address(&received->parts[step % 2][warp % kHalf][i][lane]), other), full,
             words);
    }
  };
  const auto receive = [&](int step, float(&x)[kTiles][2][4]) {
    arrival_wait(&received->full[step % 2], step / 2 % 2);
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) {
      const uint4 part = received->parts[step % 2][warp % kHalf][i][lane];
      auto& to = x[i / 2][i % 2];
      to[0] += __uint_as_float(part.x), to[1] += __uint_as_float(part.y);
      to[2] += __uint_as_float(part.z), to[3] += __uint_as_float(part.w);
    }
  };
  const int2 by_column = columns_first(lane), by_row = rows_first(lane);
  constexpr bool kHold = kTiles == 1;  // else registers are short
  Blocks<Swizzled<kKey>> reads, updates;
  reads.template find<kHold>(by_column), updates.template find<kHold>(by_row);
  uint32_t values_at[kTiles], pairs_place = 2 * ((kReverse ? by_row.x : by_column.x) * kPairRow +
                                                 (kReverse ? by_row.y : by_column.y));
  hold(pairs_place);
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    values_at[i] = 2 * Panels<>::at(by_column.x, warp * kSpan + i * 16 + by_column.y);
    hold(values_at[i]);
  }
  ResultStore<T, kTiles> results(s, p, chunk_of(0) * kChunk, kReverse, warp * kSpan,
                                 out_tiles + (shares ? warp % kHalf : warp) * kChunk * out_stride(kValue));
  const bool more = s.bonus || (kReverse && (s.dwrite || s.write.data));
  int slot = 0, stage = 0;  // of the step
  const auto main = [&](int step) {
    const char *raw = shared + slot * l.slot, *tiles = shared + l.stages + stage * l.stage;
    const uint32_t in = shared_address(tiles) + kLevels * kTile * 2, out = in + kTile * 2;
    const uint32_t values = shared_address(raw) + (kReverse ? l.dy : l.v);
    if (++slot == l.ring) slot = 0;
    if (++stage == kStages) stage = 0;
    uint32_t x[kTiles][4], b[4];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) load_matrices_transposed(x[i], values + values_at[i]);
    const Pairs<T> pairs = pairs_at<T>(l, shared, step);
    if (kReverse) {
      load_matrices_transposed(b, shared_address(pairs.matrix) + pairs_place);
    } else {
      load_matrices(b, shared_address(pairs.matrix) + pairs_place);
    }
    float result[kTiles][2][4] = {};
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      multiply_add<T>(result[i][0], x[i], b[0], b[1]);
      multiply_add<T>(result[i][1], x[i], b[2], b[3]);
    }
    read_states<T, kKey, kTiles>(state, kReverse ? out : in, reads, result);
    if (more) {
      if (step > 0) sum_write(step - 1);
      finish_values<T, kReverse>(s, l, raw, reinterpret_cast<const T*>(raw + (kReverse ? l.dy : l.v)),
                                 scalars_at(l, shared, step), pairs.diagonal, result,
                                 write_sums + step % 2 * kWarps * kChunk);
    }
    if (shares && threadIdx.x == 0) arrival_expect(&received->full[step % 2], sizeof(Received::parts) / 2);
    if (!stores) send(step, result);
    update_states<T, kKey, kTiles>(
        state, x, kReverse ? in : out, updates,
        reinterpret_cast<const float*>(tiles + (kLevels + 2) * kTile * 2) + lane % 4 * 2);
    if (!stores) return;
    if (shares) receive(step, result);
    results.store(result);
  };
  const auto pair_ahead = [&](int step) {
    if (kMainHelps && step + 1 >= 0 && step + 1 < p.chunks) pair(step + 1);
  };
  run_main_steps(s, l, p, shared, chunk_of, kMainHelps && threadIdx.x == kWarps * 32 - 32, feed, pair_ahead,
                 main);

  if (p.chunks > 0) sum_write(static_cast<int>(p.chunks) - 1);
  if (shares) cluster_barrier();
  if (!s.end || !last) return;
  float* end = s.end + (p.batch * s.heads + p.head) * state_size;
  for_each_state<kKey, kTiles>(s, p, [&](int i, int n, int j, int at, bool valid) {
    if (valid) end[at] = state[i][n][j];
  });
}

}  // namespace weft::kernels::vector_decay
