// Delta rule, backward on Hopper, with a vector decay. In a gentle chunk rows have their decays from the chunk's middle on,
// columns the inverse, and states and their gradients meet them there: products are as without a vector decay. In others
// products go between blocks of 16 tokens as in delta_vector.cuh, and what goes through the states carries on through the
// blocks like the pairs: acc = passes acc + pairs of the next block.
#include "ops/linear_attention/delta_backward_vector_sm90.cuh"

namespace weft::kernels::delta {
namespace {

template <int K>
struct Backward : DecayedBackward<K> {
  using T = bf16;
  using Base = DecayedBackward<K>;
  using Base::first, Base::head_row, Base::pair_of, Base::store_row_sums;
  using Base::kh, Base::kThreads, Base::kGroups, Base::kStride, Base::kWide, Base::p, Base::g, Base::work,
      Base::s, Base::h, Base::b, Base::begin, Base::end;
  using Base::load_inputs, Base::decay_blocks, Base::decay_rows;
  using Base::multiply_gradient_gently, Base::multiply_gradient, Base::step_gradient,
      Base::multiply_states_themselves;
  using Base::warp, Base::lane, Base::group, Base::column, Base::channel, Base::row, Base::lane_column,
      Base::block;

  // What goes through the states and stays within documents; sums of K_out dK_out.
  __device__ __forceinline__ void mask_products(float (&dq)[32], float (&erased)[32], float (&dk)[32],
                                                const Tokens& tokens) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = row + 8 * i;
      const float before = tokens.from_before(t), after = tokens.to_after(t);
#pragma unroll
      for (int j = 0; j < 8; ++j)
#pragma unroll
        for (int n = 4 * j + 2 * i; n < 4 * j + 2 * i + 2; ++n)
          dq[n] *= p.scale * before, erased[n] *= -before, dk[n] *= after;
    }
    float x[16];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 first = pair_of(s.columns, row, j), last = pair_of(s.columns, row + 8, j);
      x[2 * j] = dk[4 * j] * first.x + dk[4 * j + 2] * last.x;
      x[2 * j + 1] = dk[4 * j + 1] * first.y + dk[4 * j + 3] * last.y;
    }
    // Sums over the lanes' rows; a lane keeps the two channels whose j is its row's number.
#pragma unroll
    for (int width = 8; width > 1; width /= 2) {
      const bool upper = lane & (2 * width);
#pragma unroll
      for (int i = 0; i < width; ++i) {
        const float mine = upper ? x[i + width] : x[i], other = upper ? x[i] : x[i + width];
        x[i] = mine + __shfl_xor_sync(0xffffffff, other, 2 * width);
      }
    }
    *reinterpret_cast<float2*>(s.written[block] + channel + lane / 4 * 8 + lane_column) =
        make_float2(x[0], x[1]);
  }
  __device__ __forceinline__ void scale_channels(float (&x)[32], const float* scale) const {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 by = *reinterpret_cast<const float2*>(scale + channel + 8 * j + lane_column);
      x[4 * j] *= by.x, x[4 * j + 1] *= by.y, x[4 * j + 2] *= by.x, x[4 * j + 3] *= by.y;
    }
  }
  // Adds the products of a gentle chunk's pairs.
  __device__ __forceinline__ void multiply_pairs_gently(float (&dq)[32], float (&erased)[32],
                                                        float (&dk)[32]) const {
    pin(dq), pin(erased), pin(dk);
    products_begin();
#pragma unroll
    for (int j = 0; j < kChunk; j += 16) {
      const uint64_t column = wide<kSpreadRows>(s.columns, j, channel);
      multiply_shared<T, false, true>(dq, deep<kChunk>(s.pairs.dreads, j), column);
      multiply_shared<T, false, true>(erased, deep<kChunk>(s.pairs.dsystem, j), column);
      multiply_shared<T, true, true>(dk, wide<kChunk>(s.pairs.dreads, j, 0),
                                     wide<kSpreadRows>(s.queries, j, channel));
      multiply_shared<T, true, true>(dk, wide<kChunk>(s.pairs.dsystem_beta, j, 0),
                                     wide<kSpreadRows>(s.keys, j, channel));
    }
    products_commit();
    products_wait<0>();
    pin(dq), pin(erased), pin(dk);
  }
  // Goes on through the blocks with the products of pairs: of rows from the chunk's start, of columns from its end. `apart`:
  // without those within the warp's block.
  __device__ __forceinline__ void multiply_pairs(float (&dq)[32], float (&erased)[32], float (&dk)[32],
                                                 bool apart) const {
#pragma unroll
    for (int n = 0; n < kBlocks; ++n) {
      const int before = n, behind = kBlocks - 1 - n;
      uint32_t query[4] = {}, erase[4] = {}, read[4] = {}, key[4] = {};
      if (apart ? before < block : before <= block) {
        scale_channels(dq, s.passes[before]);
        scale_channels(erased, s.passes[before]);
        left<kChunk>(query, s.pairs.dreads, kBlock * block, kBlock * before);
        left<kChunk>(erase, s.pairs.dsystem, kBlock * block, kBlock * before);
      }
      if (apart ? behind > block : behind >= block) {
        scale_channels(dk, s.passes[behind]);
        left_transposed<kChunk>(read, s.pairs.dreads, kBlock * behind, kBlock * block);
        left_transposed<kChunk>(key, s.pairs.dsystem_beta, kBlock * behind, kBlock * block);
      }
      const uint64_t columns = wide<kSpreadRows>(s.columns, kBlock * before, channel);
      pin(dq), pin(erased), pin(dk);
      products_begin();
      multiply_rows<T, true>(dq, query, columns);
      multiply_rows<T, true>(erased, erase, columns);
      multiply_rows<T, true>(dk, read, wide<kSpreadRows>(s.queries, kBlock * behind, channel));
      multiply_rows<T, true>(dk, key, wide<kSpreadRows>(s.keys, kBlock * behind, channel));
      products_commit();
      products_wait<0>();
      pin(dq), pin(erased), pin(dk);
    }
  }
  // What the pairs of token t within its block give, pair by pair: channels d and d + 1. Rows are without their decays.
  struct Sums {
    float2 query, erased, key;
  };
  static __device__ __noinline__ Sums multiply_pairs_apart(const VectorShared<K>& s, int t, int d) {
    Sums x = {};
    const auto pair = [](const T* tile, int r, int i) {
      return to_float(piece<kChunk>(tile, r, i / 8)[i % 8]);
    };
    const auto numbers = [&](const T* tile, int r) {
      return unpack<T>(*reinterpret_cast<const uint32_t*>(piece<kSpreadRows>(tile, r, d / 8) + d % 8));
    };
    const auto add = [](float2& to, float by, float2 y) {
      to.x = fmaf(by, y.x, to.x), to.y = fmaf(by, y.y, to.y);
    };
    const int start = t / kBlock * kBlock;
    const float2 here = *reinterpret_cast<const float2*>(s.sums + t * kStride + d);
    for (int r = start; r < start + kBlock; ++r) {
      const float2 there = *reinterpret_cast<const float2*>(s.sums + r * kStride + d), k = numbers(s.keys, r);
      const float2 apart = {fast_exp2(-fabsf(here.x - there.x)), fast_exp2(-fabsf(here.y - there.y))};
      const float2 key = {apart.x * k.x, apart.y * k.y};
      if (r <= t) {
        add(x.query, pair(s.pairs.dreads, t, r), key);
        add(x.erased, pair(s.pairs.dsystem, t, r), key);
      }
      if (r >= t) {
        const float2 q = numbers(s.queries, r);
        add(x.key, pair(s.pairs.dreads, r, t), {apart.x * q.x, apart.y * q.y});
        add(x.key, pair(s.pairs.dsystem_beta, r, t), key);
      }
    }
    return x;
  }
  // The decays within the warp's block.
  template <bool kApart>
  __device__ __forceinline__ void decay_products(float (&dq)[32], float (&erased)[32],
                                                 float (&dk)[32]) const {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int d = channel + 8 * j + lane_column;
      const float2 total = *reinterpret_cast<const float2*>(s.totals[block] + d);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 sum = *reinterpret_cast<const float2*>(s.sums + (row + 8 * i) * kStride + d);
        const int n = 4 * j + 2 * i;
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float x = e ? sum.y : sum.x, whole = e ? total.y : total.x;
          const float by = fast_exp2(kApart ? x : x - whole);
          dq[n + e] *= by, erased[n + e] *= by, dk[n + e] *= fast_exp2(kApart ? whole - x : -x);
        }
        if constexpr (!kApart) continue;
        const Sums pairs = multiply_pairs_apart(s, row + 8 * i, d);
        dq[n] += pairs.query.x, erased[n] += pairs.erased.x, dk[n] += pairs.key.x;
        dq[n + 1] += pairs.query.y, erased[n + 1] += pairs.erased.y, dk[n + 1] += pairs.key.y;
      }
    }
  }
  __device__ __forceinline__ float* sums_of(int t, int j) const {
    return s.sums + t * kStride + channel + 8 * j + lane_column;
  }
  // dq and dk to the places of rows, gradients of the sums of decays to that of the sums. A gentle chunk's products lack
  // the decays of rows and columns, which cancel in the dots.
  template <bool kGroup>
  __device__ __forceinline__ void finish_gently(int c, const float (&dq)[32], const float (&erased)[32],
                                                const float (&dk)[32], const Tokens& tokens) const {
    float dbeta[2] = {};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 offset =
          *reinterpret_cast<const float2*>(s.offsets[block] + channel + 8 * j + lane_column);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int t = row + 8 * i, n = 4 * j + 2 * i;
        const float beta = tokens.beta[t];
        auto* sum = reinterpret_cast<float2*>(sums_of(t, j));
        const float2 e = {sum->x + offset.x, sum->y + offset.y};
        const float2 by = {fast_exp2(e.x), fast_exp2(e.y)}, back = {fast_exp2(-e.x), fast_exp2(-e.y)};
        const float2 q = pair_of(s.queries, t, j), k = pair_of(s.keys, t, j), x = pair_of(s.columns, t, j);
        const float2 recall = {erased[n] * k.x, erased[n + 1] * k.y};
        dbeta[i] += recall.x + recall.y;
        *sum = make_float2(q.x * dq[n] + beta * recall.x - x.x * dk[n],
                           q.y * dq[n + 1] + beta * recall.y - x.y * dk[n + 1]);
        this->template put_pair<kGroup>(g.dq, s.queries, c, t, j, by.x * dq[n], by.y * dq[n + 1]);
        this->template put_pair<kGroup>(g.dk, s.keys, c, t, j, back.x * dk[n] + beta * (by.x * erased[n]),
                                        back.y * dk[n + 1] + beta * (by.y * erased[n + 1]));
      }
    }
    store_row_sums(s.dbeta[group], dbeta);
  }
  template <bool kGroup>
  __device__ __forceinline__ void finish_keys(int c, const float (&dq)[32], const float (&erased)[32],
                                              float (&dk)[32], const Tokens& tokens) const {
    float dbeta[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = row + 8 * i;
      const float beta = tokens.beta[t];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int n = 4 * j + 2 * i;
        const float2 k = pair_of(s.keys, t, j), q = pair_of(s.queries, t, j);
        dk[n] += beta * erased[n], dk[n + 1] += beta * erased[n + 1];
        const float2 recall = {erased[n] * k.x, erased[n + 1] * k.y};
        dbeta[i] += recall.x + recall.y;
        *reinterpret_cast<float2*>(sums_of(t, j)) =
            make_float2(q.x * dq[n] + 2 * beta * recall.x - k.x * dk[n],
                        q.y * dq[n + 1] + 2 * beta * recall.y - k.y * dk[n + 1]);
        this->template put_pair<kGroup>(g.dq, s.queries, c, t, j, dq[n], dq[n + 1]);
        this->template put_pair<kGroup>(g.dk, s.keys, c, t, j, dk[n], dk[n + 1]);
      }
    }
    store_row_sums(s.dbeta[group], dbeta);
  }
  // dlog_decay from the gradients of the decays' sums, dbeta.
  __device__ __forceinline__ void store_decay_gradients(int c, const Tokens& tokens) const {
    const int valid = valid_tokens(p, first(c)), t = threadIdx.x;
    if (g.dbeta && t < valid)
      g.dbeta[head_row(c) + t * p.heads] = s.dbeta[0][t] + (kGroups > 1 ? s.dbeta[1][t] : 0.f);
    if (!g.dlog_decay) return;
#pragma unroll 1
    for (int n = threadIdx.x; n < kBlocks * K; n += kThreads) {
      const float* x = s.sums + n / K * kBlock * kStride + n % K;
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kBlock; ++i) sum += x[i * kStride];
      s.totals[n / K][n % K] = sum;
    }
    __syncthreads();
#pragma unroll 1
    for (int n = threadIdx.x; n < kBlocks * K; n += kThreads) {
      const int of = n / K, d = n % K;
      const float* x = s.sums + of * kBlock * kStride + d;
      float* to = g.dlog_decay + (head_row(c) + of * kBlock * p.heads) * K + d;
      // What the last token's sum of decays is in: the writes' decays to the chunk's end and the state's.
      float end = 1, rest = 0;
#pragma unroll
      for (int i = kBlocks - 1; i >= 0; --i) {
        rest += end * s.written[i][d];
        end *= s.passes[i][d];
        if (i > of) rest += s.totals[i][d];
      }
      if (tokens.document[kChunk - 1] == 0) rest += end * s.through[d];
#pragma unroll
      for (int i = kBlock - 1; i >= 0; --i) {
        rest += x[i * kStride];
        if (of * kBlock + i < valid) to[i * p.heads * K] = rest;
      }
    }
  }

  // All gradients of the keys and decays from what came through the states and the pairs, where a chunk is gentle or not.
  __device__ __forceinline__ void finish(int c, float (&dq)[32], float (&erased)[32], float (&dk)[32],
                                         bool gentle, const Tokens& tokens) {
    if (gentle) {
      multiply_pairs_gently(dq, erased, dk);
    } else {
      const bool apart = __any_sync(0xffffffff, fminf(s.totals[block][channel + lane],
                                                      s.totals[block][channel + 32 + lane]) < -kMostRange);
      multiply_pairs(dq, erased, dk, apart);
      __syncthreads();  // rows with their decays have been read
      this->load_rows(s.queries, p.q, kh, c);
      this->load_rows(s.keys, p.k, kh, c);
      copy_async_commit();
      copy_async_wait<0>();
      __syncthreads();
      if (apart)
        decay_products<true>(dq, erased, dk);
      else
        decay_products<false>(dq, erased, dk);
    }
    async_fence();
    __syncthreads();  // pairs, sums, rows and columns have been read
    if (c > begin) this->load_states(c - 1);
    if (gentle && g.group_fp32)
      finish_gently<true>(c, dq, erased, dk, tokens);
    else if (gentle)
      finish_gently<false>(c, dq, erased, dk, tokens);
    else if (g.group_fp32)
      finish_keys<true>(c, dq, erased, dk, tokens);
    else
      finish_keys<false>(c, dq, erased, dk, tokens);
  }

  __device__ __forceinline__ void run() {
    this->set_up();
    load_inputs(end - 1);
    this->load_upstream(end - 1);
    this->load_states(end - 1);
    copy_async_commit();
    float ds[K / 8][4];
    this->load_gradient(ds);
    for (int c = end - 1; c >= begin; --c) {
      const Facts<K>& facts = s.facts[c % 2];
      const Tokens& tokens = facts.tokens;
      copy_async_wait<0>();
      __syncthreads();
      this->prefetch_chunk(c - 1);
      this->add_decays();
      __syncthreads();
      const bool gentle = decay_blocks();
      decay_rows(gentle);
      async_fence();
      __syncthreads();
      this->load_values(c);
      uint32_t read[4][4], erase[4][4];
      if (gentle) {
        float source[8][4] = {};
        multiply_gradient_gently(source, ds);
        this->solve(source, facts, read, erase);
      } else {
        float source[8][4] = {};
        multiply_gradient(source, ds);
        this->solve(source, facts, read, erase);
      }
      barrier_wait(&s.barrier, (end - 1 - c) % 2);
      async_fence();
      __syncthreads();  // N, dR and dS' are there

      if (tokens.document[kChunk - 1] != 0)
#pragma unroll
        for (int j = 0; j < K / 8; ++j)
#pragma unroll
          for (int i = 0; i < 4; ++i) ds[j][i] = 0;
      if (gentle)
        this->step_gradient_gently(ds, read, erase);
      else
        step_gradient(ds, read, erase);
      float pairs[3 - kGroups][32], dq[32], erased[32], dk[32];
      products_begin();
      this->multiply_values(pairs[0], group > 0);
      if constexpr (kGroups == 1) this->multiply_values(pairs[1], true);
      this->multiply_states(dq, erased, dk);
      products_commit();
      const int valid = valid_tokens(p, first(c));
      this->store_values(c, tokens.write, [&](int t, int at) {
        return t < valid ? *reinterpret_cast<const uint4*>(row_at<T>(p.v, b, first(c) + t, h) + 8 * at)
                         : make_uint4(0, 0, 0, 0);
      });
      if (g.dlog_decay) multiply_states_themselves(gentle);
      products_wait<0>();
#pragma unroll
      for (int i = 0; i < 3 - kGroups; ++i) pin(pairs[i]);
      pin(dq), pin(erased), pin(dk);
      if (gentle) scale_channels(dq, s.half), scale_channels(erased, s.half);
      __syncthreads();  // states and values have been read
      if constexpr (kWide) load_inputs(c - 1);
      if (c > begin) this->load_upstream(c - 1);
      copy_async_commit();
#pragma unroll
      for (int i = 0; i < 3 - kGroups; ++i)
        this->store_pairs(pairs[i], tokens, kGroups == 1 ? i > 0 : group > 0);
      mask_products(dq, erased, dk, tokens);
      async_fence();
      __syncthreads();  // the pairs are there
      finish(c, dq, erased, dk, gentle, tokens);
      __syncthreads();
      this->store_keys(c, s.keys);
      store_decay_gradients(c, tokens);
      if constexpr (!kWide) {
        __syncthreads();
        load_inputs(c - 1);
        copy_async_commit();
      }
    }
    copy_async_wait<0>();
    this->store_gradient(ds);
  }
};

template <int K>
__global__ __launch_bounds__(2 * K, K > 64 ? 1 : 2) void backward_gradients_vector_kernel(
    const __grid_constant__ CudaLinearAttention p, const __grid_constant__ CudaLinearAttentionGradients g,
    const __grid_constant__ Work work) {
  extern __shared__ __align__(128) unsigned char shared[];
  Backward<K>{{{p, g, work, *reinterpret_cast<VectorShared<K>*>(shared)}}}.run();
}

}  // namespace

static_assert(sizeof(VectorShared<64>) <= 115712 && sizeof(VectorShared<128>) <= 232448);

CudaStatus backward_gradients_vector_sm90(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                                          const Work& work, void* stream) {
  const auto run = [&](auto width) -> CudaStatus {
    constexpr int K = width();
    const auto kernel = backward_gradients_vector_kernel<K>;
    if (const auto error = allow_shared(kernel, sizeof(VectorShared<K>))) return status_of(error);
    const dim3 grid(static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch * work.segments));
    kernel<<<grid, 2 * K, sizeof(VectorShared<K>), static_cast<cudaStream_t>(stream)>>>(p, g, work);
    return last_status();
  };
  return p.key_width == 64 ? run(std::integral_constant<int, 64>{}) : run(std::integral_constant<int, 128>{});
}

}  // namespace weft::kernels::delta
