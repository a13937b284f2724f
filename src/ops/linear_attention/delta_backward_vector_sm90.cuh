// Delta rule, backward on Hopper with a vector decay: rows and columns with their decays, and the state's gradient, which goes
// from block to block of tokens.
#pragma once

#include "ops/linear_attention/delta_backward_sm90.cuh"
#include "ops/linear_attention/delta_vector.cuh"

namespace weft::kernels::delta {

template <int K>
struct VectorShared {
  using T = bf16;                                                          // rows and columns need its range
  static constexpr int kStride = K + 8;                                    // floats of a row of decays
  T keys[kSpreadRows * K], queries[kSpreadRows * K], dy[kSpreadRows * K];  // later dk, dq
  // N and dR. Before and after: log decays, their log2 sums from the start of a token's block, gradients of the sums.
  T values[kChunk * K], sources[kChunk * K];
  float more_sums[kChunk * 8];
  union {
    T states[K * K];  // S' before the chunk
    PairTiles<T> pairs;
  };
  T dstates[K * K];                                                                     // dS' after the chunk
  T solve[kSquare], reads[kSquare];                                                     // T, P
  T row_queries[kSpreadRows * K], row_keys[kSpreadRows * K], columns[kSpreadRows * K];  // with their decays
  Facts<K> facts;
  float totals[kBlocks][K], passes[kBlocks][K];  // log2 decay of a block of tokens, and decay
  float written[kBlocks][K];                     // sums of K_out dK_out over a block, decayed to its end
  float through[K];                              // sum over the values of S dS
  uint64_t barrier;                              // of values and states
  float dbeta[2][kChunk];                        // by warpgroups
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
  int block = warp % kBlocks;  // of the warp's rows

  __device__ float* sums() const { return reinterpret_cast<float*>(s.values); }

  __device__ __forceinline__ void load_log_decays(int c) const {
    load_decays<T, kStride, true>(sums(), p, b, h, first(c), 0, K);
  }
  __device__ __forceinline__ void load_inputs(int c) const {
    if (c >= begin) {
      this->load_rows(s.keys, p.k, key_head(p, h), c);
      this->load_rows(s.queries, p.q, key_head(p, h), c);
      load_log_decays(c);
      this->load_facts(s.facts, c);
    }
    copy_async_commit();
  }
  // A thread sums the decays of a channel over blocks of tokens.
  __device__ __forceinline__ void add_decays() const {
#pragma unroll 1
    for (int n = threadIdx.x; n < kBlocks * K; n += kThreads) {
      float* x = sums() + n / K * kBlock * kStride + n % K;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kBlock; ++i) x[i * kStride] = sum += bounded_log2(x[i * kStride]);
      s.totals[n / K][n % K] = sum;
      s.passes[n / K][n % K] = fast_exp2(sum);
    }
  }
  __device__ __forceinline__ void decay_rows() const {
#pragma unroll 1
    for (int n = threadIdx.x; n < kChunk * K / 8; n += kThreads) {
      const int t = n % kChunk, at = n / kChunk;
      const DecayedRow x(piece<kSpreadRows>(s.queries, t, at), piece<kSpreadRows>(s.keys, t, at),
                         sums() + t * kStride + 8 * at, s.totals[t / kBlock] + 8 * at);
      store_numbers(piece<kSpreadRows>(s.row_queries, t, at), x.query);
      store_numbers(piece<kSpreadRows>(s.row_keys, t, at), x.key);
      store_numbers(piece<kSpreadRows>(s.columns, t, at), x.column);
    }
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
  // The state's gradient before the chunk.
  __device__ __forceinline__ void step_gradient(float (&ds)[K / 8][4], const uint32_t (&read)[4][4],
                                                const uint32_t (&erase)[4][4]) const {
    if (s.facts.tokens.document[kChunk - 1] != 0)
#pragma unroll
      for (int j = 0; j < K / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) ds[j][i] = 0;
#pragma unroll
    for (int of = kBlocks - 1; of >= 0; --of) {
      scale_columns<K>(ds, s.passes[of]);
      pin_columns<K>(ds);
      products_begin();
#pragma unroll
      for (int d = 0; d < K; d += 64) {
        multiply_rows<T, true>(flat(ds[d / 8]), read[of], wide<kSpreadRows>(s.row_queries, kBlock * of, d));
        multiply_rows<T, true>(flat(ds[d / 8]), erase[of], wide<kSpreadRows>(s.row_keys, kBlock * of, d));
      }
      products_commit();
      products_wait<0>();
      pin_columns<K>(ds);
    }
  }
  // Sums over the values of S dS for every channel: a thread has 8 channels of every 16th value.
  __device__ __forceinline__ void multiply_states_themselves() const {
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
    if (lane % 2 == 0) s.through[threadIdx.x / 16 * 8 + lane / 2 % 8] = x[0];
  }
};

}  // namespace weft::kernels::delta
