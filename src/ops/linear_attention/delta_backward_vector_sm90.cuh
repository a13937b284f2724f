// Delta rule, backward on Hopper with a vector decay: rows and columns with their decays, and the state's gradient, which goes
// from block to block of tokens.
#pragma once

#include "ops/linear_attention/delta_backward_sm90.cuh"
#include "ops/linear_attention/delta_vector.cuh"

namespace weft::kernels::delta {

// Tiles whose places serve for more than one thing: N and dR, before q and k; S' before the chunk; pairs, which come last. Wide
// blocks have a multiprocessor each and copy the next chunk while pairs are there, two narrow ones share it.
template <int K, bool kWide>
struct VectorTiles {
  bf16 values[kChunk * K], sources[kChunk * K], more[2 * K];
  union {
    bf16 states[K * K];
    PairTiles<bf16> pairs;
  };
  union {
    bf16 dstates[K * K];           // dS' after the chunk
    float log_decays[kChunk * K];  // or in the type of v
  };
};
template <int K>
struct VectorTiles<K, false> {
  union {
    struct {
      bf16 values[kChunk * K], sources[kChunk * K], more[2 * K], states[K * K];
    };
    PairTiles<bf16> pairs;
  };
  bf16 dstates[K * K];
};

template <int K>
struct VectorShared : VectorTiles<K, (K > 64)> {
  using T = bf16;  // rows and columns need its range
  static constexpr bool kWide = K > 64;
  static constexpr int kStride = K + 8;  // floats of a row of sums
  T queries[kSpreadRows * K],
      keys[kSpreadRows * K];   // with their decays; plain again where a chunk is not gentle; later dq, dk
  T columns[kSpreadRows * K];  // likewise
  T dy[kSpreadRows * K];
  float
      sums[kChunk * kStride];  // log2 decays from the start of a token's block; after: gradients of the sums
  T solve[kSquare], reads[kSquare];  // T, P
  Facts<K> facts[2];                 // of this chunk and the next
  float totals[kBlocks][K];          // log2 decay of a block of tokens
  float passes[kBlocks][K];          // what states are decayed by from block to block; gentle chunks: ones
  float offsets[kBlocks][K];         // of a row's exponents from its sum
  float half[K];                     // decay over half of a gentle chunk
  float written[kBlocks][K];         // sums of K_out dK_out over a block, decayed to its end
  float through[K];                  // sum over the values of S dS
  uint64_t barrier;                  // of values and states
  float dbeta[2][kChunk];            // by warpgroups
};

template <int K>
struct DecayedBackward : BackwardBlock<bf16, K, VectorShared<K>> {
  using T = bf16;
  using Base = BackwardBlock<T, K, VectorShared<K>>;
  using Base::chunk, Base::first, Base::head_row, Base::pair_of, Base::store_row_sums;
  using Base::kThreads, Base::kGroups, Base::p, Base::g, Base::work, Base::s, Base::h, Base::b, Base::begin,
      Base::end;
  using Base::warp, Base::lane, Base::group, Base::column, Base::channel, Base::row, Base::lane_column;
  static constexpr int kStride = VectorShared<K>::kStride;
  static constexpr bool kWide = VectorShared<K>::kWide;
  int block = warp % kBlocks;  // of the warp's rows
  int kh = key_head(p, h);

  __device__ T* inputs(bool keys) const { return s.values + (keys ? kSpreadRows * K : 0); }

  // q, k, log decays and facts.
  __device__ __forceinline__ void load_inputs(int c) const {
    if (c < begin) return;
    this->load_rows(inputs(false), p.q, kh, c);
    this->load_rows(inputs(true), p.k, kh, c);
    if constexpr (kWide)
      copy_log_decays(c);
    else
      load_decays<T, kStride, true>(s.sums, p, b, h, first(c), 0, K);
    this->load_facts(s.facts[c % 2], c);
  }
  // In their own type.
  __device__ __forceinline__ void copy_log_decays(int c) const {
    const int valid = valid_tokens(p, first(c));
    const bool fp32 = p.log_decay.type == CudaType::fp32;
    const int shift = fp32 ? 29 - __clz(K) : 28 - __clz(K), size = fp32 ? 4 : 2;  // copies in a row
    const char* rows = static_cast<const char*>(p.log_decay.data) +
                       (b * p.log_decay.batch + first(c) * p.log_decay.token + h * p.log_decay.head) * size;
#pragma unroll 1
    for (int i = threadIdx.x; i < kChunk << shift; i += kThreads) {
      const int t = i >> shift;
      copy_async16(reinterpret_cast<char*>(s.log_decays) + 16 * i,
                   rows + (t < valid ? t * p.log_decay.token * size : 0) + (i & ((1 << shift) - 1)) * 16,
                   t < valid);
    }
  }
  // A thread sums the decays of a channel over blocks of tokens.
  template <int kFromStride, class Number>
  __device__ __forceinline__ void sum_decays(const Number* log_decays) const {
#pragma unroll 1
    for (int n = threadIdx.x; n < kBlocks * K; n += kThreads) {
      const int t = n / K * kBlock, d = n % K;
      float x[kBlock], sum = 0;
#pragma unroll
      for (int i = 0; i < kBlock; ++i) x[i] = bounded_log2(to_float(log_decays[(t + i) * kFromStride + d]));
#pragma unroll
      for (int i = 0; i < kBlock; ++i) s.sums[(t + i) * kStride + d] = sum += x[i];
      s.totals[n / K][d] = sum;
    }
  }
  __device__ __forceinline__ void add_decays() const {
    if constexpr (!kWide)
      sum_decays<kStride>(s.sums);
    else if (p.log_decay.type == CudaType::fp32)
      sum_decays<K>(s.log_decays);
    else
      sum_decays<K>(reinterpret_cast<const T*>(s.log_decays));
  }
  // Whether no channel decays too much over the chunk for rows and columns that meet in its middle. Offsets, passes, half.
  __device__ __forceinline__ bool decay_blocks() const {
    constexpr float kMost = 120;
    float sum = 0;
    if (threadIdx.x < K) {
      float x[kBlocks];
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) x[i] = sum, sum += s.totals[i][threadIdx.x];
#pragma unroll
      for (int i = 0; i < kBlocks; ++i)
        s.offsets[i][threadIdx.x] = x[i] - 0.5f * sum, s.passes[i][threadIdx.x] = 1;
      s.half[threadIdx.x] = fast_exp2(0.5f * sum);
    }
    if (__syncthreads_and(sum > -kMost)) return true;
#pragma unroll 1
    for (int n = threadIdx.x; n < kBlocks * K; n += kThreads)
      s.offsets[n / K][n % K] = 0, s.passes[n / K][n % K] = fast_exp2(s.totals[n / K][n % K]);
    __syncthreads();
    return false;
  }
  // Rows, and columns with the inverse of a row's decay, times that of a block unless the chunk is gentle.
  __device__ __forceinline__ void decay_rows(bool gentle) const {
#pragma unroll 1
    for (int n = threadIdx.x; n < kChunk * K / 8; n += kThreads) {
      const int t = n % kChunk, at = n / kChunk;
      float sum[8], x[8], query[8], key[8];
      load_floats(sum, s.sums + t * kStride + 8 * at);
      load_numbers(query, piece<kSpreadRows>(inputs(false), t, at));
      load_numbers(key, piece<kSpreadRows>(inputs(true), t, at));
      load_floats(x, s.offsets[t / kBlock] + 8 * at);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        sum[i] += x[i];
        x[i] = fast_exp2(sum[i]);
      }
      multiply_floats(query, query, x);
      multiply_floats(x, key, x);
      store_numbers(piece<kSpreadRows>(s.queries, t, at), query);
      store_numbers(piece<kSpreadRows>(s.keys, t, at), x);
      if (!gentle) {
        load_floats(x, s.totals[t / kBlock] + 8 * at);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[i] -= x[i];
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) key[i] *= fast_exp2(-sum[i]);
      store_numbers(piece<kSpreadRows>(s.columns, t, at), key);
    }
  }
  // Where a chunk is gentle: K_out dS from the gradient decayed to the chunk's middle, which stays so.
  __device__ __forceinline__ void multiply_gradient_gently(float (&source)[8][4],
                                                           float (&ds)[K / 8][4]) const {
    uint32_t packed[K / 16][4];
    scale_columns<K>(ds, s.half);
    pack_state<T, K>(packed, ds, s.dstates, K, column);
    pin_columns<kChunk>(source);
    products_begin();
    multiply_state<T, K>(source, packed, s.columns);
    products_wait<0>();
    pin_columns<kChunk>(source);
  }

  // K_out dS, a block of tokens at a time, with the state's gradient decayed to the block's end.
  __device__ __forceinline__ void multiply_gradient(float (&source)[8][4],
                                                    const float (&ds)[K / 8][4]) const {
    float decayed[K / 8][4];
#pragma unroll
    for (int j = 0; j < K / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) decayed[j][i] = ds[j][i];
#pragma unroll
    for (int of = kBlocks - 1; of >= 0; --of) {
      uint32_t packed[K / 16][4];
      pack_state<T, K>(packed, decayed, of == kBlocks - 1 ? s.dstates : nullptr, K, column);
      pin(source[2 * of]), pin(source[2 * of + 1]);
      products_begin();
#pragma unroll
      for (int d = 0; d < K; d += 16)
        multiply_rows<T, false>(source[2 * of], source[2 * of + 1], packed[d / 16],
                                operand(piece<kSpreadRows>(s.columns, kBlock * of, d / 8), kSpreadRows, 8));
      products_commit();
      products_wait<0>();
      pin(source[2 * of]), pin(source[2 * of + 1]);
      if (of > 0) scale_columns<K>(decayed, s.passes[of]);
    }
  }
  // The state's gradient before the chunk; in a gentle one from that in its middle.
  __device__ __forceinline__ void step_gradient_gently(float (&ds)[K / 8][4], const uint32_t (&read)[4][4],
                                                       const uint32_t (&erase)[4][4]) const {
    pin_columns<K>(ds);
    products_begin();
    add_outer<T, K>(ds, read, s.queries);
    add_outer<T, K>(ds, erase, s.keys);
    products_commit();
    products_wait<0>();
    pin_columns<K>(ds);
    scale_columns<K>(ds, s.half);
  }
  __device__ __forceinline__ void step_gradient(float (&ds)[K / 8][4], const uint32_t (&read)[4][4],
                                                const uint32_t (&erase)[4][4]) const {
#pragma unroll
    for (int of = kBlocks - 1; of >= 0; --of) {
      scale_columns<K>(ds, s.passes[of]);
      pin_columns<K>(ds);
      products_begin();
#pragma unroll
      for (int d = 0; d < K; d += 64) {
        multiply_rows<T, true>(flat(ds[d / 8]), read[of], wide<kSpreadRows>(s.queries, kBlock * of, d));
        multiply_rows<T, true>(flat(ds[d / 8]), erase[of], wide<kSpreadRows>(s.keys, kBlock * of, d));
      }
      products_commit();
      products_wait<0>();
      pin_columns<K>(ds);
    }
  }
  // Sums over the values of S dS for every channel: a thread has 8 channels of every 16th value.
  __device__ __forceinline__ void multiply_states_themselves(bool gentle) const {
    float x[8] = {};
#pragma unroll 1
    for (int n = 0; n < K / 16; ++n) {
      const int at = (threadIdx.x / 16 * K + threadIdx.x % 16 + 16 * n) * 8;
      const uint4 u = *reinterpret_cast<const uint4*>(s.states + at),
                  w = *reinterpret_cast<const uint4*>(s.dstates + at);
      const uint32_t us[4] = {u.x, u.y, u.z, u.w}, ws[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 a = unpack<T>(us[j]), c = unpack<T>(ws[j]);
        x[2 * j] += a.x * c.x, x[2 * j + 1] += a.y * c.y;
      }
    }
#pragma unroll
    for (int width = 4; width > 0; width /= 2) {
      const bool upper = lane & (2 * width);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float mine = upper ? x[i + width] : x[i], other = upper ? x[i] : x[i + width];
        x[i] = mine + __shfl_xor_sync(0xffffffff, other, 2 * width);
      }
    }
    x[0] += __shfl_xor_sync(0xffffffff, x[0], 1);
    const int d = threadIdx.x / 16 * 8 + lane / 2 % 8;
    if (lane % 2 == 0) s.through[d] = gentle ? x[0] * s.half[d] : x[0];
  }
};

}  // namespace weft::kernels::delta
