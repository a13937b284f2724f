// Delta rule, backward on Hopper, without vector decay.
#include "ops/linear_attention/delta_backward_sm90.cuh"

namespace weft::kernels::delta {
namespace {

// What is loaded, then what the products of a chunk leave for one another.
template <class T, int K>
struct Shared {
  T keys[2][kSpreadRows * K], queries[kSpreadRows * K];  // of this chunk and the next; later dk, dq
  T dy[kSpreadRows * K], v[kSpreadRows * K];
  T values[kChunk * K], states[K * K];    // N, S' before the chunk
  T solve[kSquare], reads[kSquare];       // T, P
  Facts<K> facts[2];                      // of this chunk and the next
  T sources[kChunk * K], dstates[K * K];  // dR, dS' after the chunk
  PairTiles<T> pairs;
  float dbeta[2][kChunk], ddecay[2][kChunk], written[2][kChunk];  // by warpgroups, which share the channels
  uint64_t barrier;                                               // of values and states
  float through[8];                                               // by warps
};

template <class T, int K>
struct Backward : BackwardBlock<T, K, Shared<T, K>> {
  using Base = BackwardBlock<T, K, Shared<T, K>>;
  using Base::chunk, Base::first, Base::head_row, Base::pair_of, Base::store_row_sums;
  using Base::kThreads, Base::kGroups, Base::p, Base::g, Base::work, Base::s, Base::h, Base::b, Base::begin,
      Base::end;
  using Base::warp, Base::lane, Base::group, Base::column, Base::channel, Base::row, Base::lane_column;

  // Copies, each as early as there is room; a thread itself has read what load_values and load_queries replace.
  __device__ __forceinline__ void load_keys(int c, int stage) {
    if (c >= begin) {
      this->load_rows(s.keys[stage], p.k, key_head(p, h), c);
      this->load_facts(s.facts[stage], c);
    }
    copy_async_commit();
  }
  __device__ __forceinline__ void load_values(int c) {
    if (c >= begin) this->load_rows(s.v, p.v, h, c);
    copy_async_commit();
  }
  __device__ __forceinline__ void load_rest(int c) {
    if (c >= begin) {
      this->load_states(c);
      Base::load_values(c);
      this->load_upstream(c);
    }
    copy_async_commit();
  }
  __device__ __forceinline__ void load_queries(int c) {
    if (c >= begin) this->load_rows(s.queries, p.q, key_head(p, h), c);
    copy_async_commit();
  }

  // The thread's share of the sum of S dS.
  __device__ __forceinline__ float state_product() const {
    float sum = 0;
#pragma unroll 4
    for (int i = threadIdx.x; i < K * K / 8; i += kThreads) {
      const uint4 x = *reinterpret_cast<const uint4*>(s.states + 8 * i),
                  y = *reinterpret_cast<const uint4*>(s.dstates + 8 * i);
      const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 u = unpack<T>(xs[j]), w = unpack<T>(ys[j]);
        sum += u.x * w.x + u.y * w.y;
      }
    }
    return sum;
  }
  // The decays of what goes through the states; sums of K_out dK_out over a token's channels.
  __device__ __forceinline__ void decay_products(float (&dq)[32], float (&erased)[32], float (&dk)[32],
                                                 const T* keys, const Tokens& tokens) {
    float written[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = row + 8 * i;
      const float before = tokens.from_before(t), after = tokens.to_after(t);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float2 k = pair_of(keys, t, j);
#pragma unroll
        for (int n = 4 * j + 2 * i; n < 4 * j + 2 * i + 2; ++n)
          dq[n] *= p.scale * before, erased[n] *= -before, dk[n] *= after;
        written[i] += dk[4 * j + 2 * i] * k.x + dk[4 * j + 2 * i + 1] * k.y;
      }
    }
    store_row_sums(s.written[group], written);
  }
  // Adds the products of the chunk's pairs.
  __device__ __forceinline__ void multiply_pairs(float (&dq)[32], float (&erased)[32], float (&dk)[32],
                                                 const T* keys) {
#pragma unroll
    for (int j = 0; j < kChunk; j += 16) {
      const uint64_t key = wide<kSpreadRows>(keys, j, channel),
                     query = wide<kSpreadRows>(s.queries, j, channel);
      multiply_shared<T, false, true>(dq, deep<kChunk>(s.pairs.dreads, j), key);
      multiply_shared<T, false, true>(erased, deep<kChunk>(s.pairs.dsystem, j), key);
      multiply_shared<T, true, true>(dk, wide<kChunk>(s.pairs.dreads, j, 0), query);
      multiply_shared<T, true, true>(dk, wide<kChunk>(s.pairs.dsystem_beta, j, 0), key);
    }
  }
  // dq and dk to the places of q and k, or in fp32 to device memory; sums over the warpgroup's channels.
  template <bool kGroup>
  __device__ __forceinline__ void finish_keys(int c, const float (&dq)[32], const float (&erased)[32],
                                              float (&dk)[32], T* keys, const Tokens& tokens) {
    float dbeta[2] = {}, ddecay[2] = {};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = row + 8 * i;
      const float beta = tokens.beta[t];
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const int n = 4 * j + 2 * i;
        const float2 k = pair_of(keys, t, j), q = pair_of(s.queries, t, j);
        dk[n] += beta * erased[n], dk[n + 1] += beta * erased[n + 1];
        const float recall = erased[n] * k.x + erased[n + 1] * k.y;
        dbeta[i] += recall;
        ddecay[i] += q.x * dq[n] + q.y * dq[n + 1] + 2 * beta * recall - (k.x * dk[n] + k.y * dk[n + 1]);
        this->template put_pair<kGroup>(g.dq, s.queries, c, t, j, dq[n], dq[n + 1]);
        this->template put_pair<kGroup>(g.dk, keys, c, t, j, dk[n], dk[n + 1]);
      }
    }
    store_row_sums(s.dbeta[group], dbeta);
    store_row_sums(s.ddecay[group], ddecay);
  }
  // dlog_decay from the gradients of the decays' sums, and dbeta; by one warp.
  __device__ __forceinline__ void store_token_gradients(int c, const Tokens& tokens) {
    const int valid = valid_tokens(p, first(c));
    float decay[2] = {}, written = 0;
    const auto at = [&](float* to, int t) -> float& { return to[head_row(c) + t * p.heads]; };
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = 2 * lane + i;
      float dbeta = 0;
#pragma unroll
      for (int n = 0; n < kGroups; ++n)
        decay[i] += s.ddecay[n][t], written += s.written[n][t], dbeta += s.dbeta[n][t];
      if (g.dbeta && t < valid) at(g.dbeta, t) = dbeta;
    }
    if (!g.dlog_decay) return;
    // What the last token's sum of decays is in: the writes' decays to the chunk's end and the state's.
    float end = warp_sum(written);
    for (int i = 0; i < kThreads / 32; ++i) end += tokens.through() * s.through[i];
    float sum = decay[0] + decay[1];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float behind = __shfl_down_sync(0xffffffff, sum, step);
      if (lane + step < 32) sum += behind;
    }
    if (2 * lane < valid) at(g.dlog_decay, 2 * lane) = sum + end;
    if (2 * lane + 1 < valid) at(g.dlog_decay, 2 * lane + 1) = sum - decay[0] + end;
  }

  __device__ __forceinline__ void run() {
    this->set_up();
    load_keys(end - 1, 0);
    load_values(end - 1);
    load_rest(end - 1);
    load_queries(end - 1);
    float ds[K / 8][4];
    this->load_gradient(ds);
    for (int c = end - 1; c >= begin; --c) {
      const int stage = (end - 1 - c) % 2;
      T* keys = s.keys[stage];
      const Facts<K>& facts = s.facts[stage];
      copy_async_wait<1>();
      async_fence();
      __syncthreads();
      uint32_t read[4][4], erase[4][4];
      {
        float source[8][4] = {};
        uint32_t packed[K / 16][4];
        pack_state<T, K>(packed, ds, s.dstates, K, column);
        pin_columns<kChunk>(source);
        products_begin();
        multiply_state<T, K>(source, packed, keys);
        products_wait<0>();
        pin_columns<kChunk>(source);
        this->solve(source, facts, read, erase);
      }
      scale_columns<K>(ds, facts.through);
      copy_async_wait<0>();
      barrier_wait(&s.barrier, (end - 1 - c) % 2);
      async_fence();
      __syncthreads();  // all of the chunk is there, dR and dS' too

      float pairs[3 - kGroups][32], dq[32], erased[32], dk[32];
      pin_columns<K>(ds);
      products_begin();
      add_outer<T, K>(ds, read, s.queries);
      add_outer<T, K>(ds, erase, keys);
      products_commit();
      this->multiply_values(pairs[0], group > 0);
      if constexpr (kGroups == 1) this->multiply_values(pairs[1], true);
      products_commit();
      this->multiply_states(dq, erased, dk);
      products_commit();
      load_keys(c - 1, stage ^ 1);
      this->store_values(c, facts.tokens.write, [&](int t, int at) {
        return *reinterpret_cast<const uint4*>(piece<kSpreadRows>(s.v, t, at));
      });
      load_values(c - 1);
      if (g.dlog_decay)
        if (const float sum = warp_sum(state_product()); lane == 0) s.through[warp] = sum;
      products_wait<1>();
      pin_columns<K>(ds);
#pragma unroll
      for (int i = 0; i < 3 - kGroups; ++i) {
        pin(pairs[i]);
        this->store_pairs(pairs[i], facts.tokens, kGroups == 1 ? i > 0 : group > 0);
      }
      products_wait<0>();
      pin(dq), pin(erased), pin(dk);
      decay_products(dq, erased, dk, keys, facts.tokens);
      async_fence();
      __syncthreads();  // pairs are there; values and states have been read
      load_rest(c - 1);
      pin(dq), pin(erased), pin(dk);
      products_begin();
      multiply_pairs(dq, erased, dk, keys);
      products_commit();
      products_wait<0>();
      pin(dq), pin(erased), pin(dk);
      __syncthreads();  // queries and keys have been read
      if (g.group_fp32)
        finish_keys<true>(c, dq, erased, dk, keys, facts.tokens);
      else
        finish_keys<false>(c, dq, erased, dk, keys, facts.tokens);
      __syncthreads();
      this->store_keys(c, keys);
      load_queries(c - 1);
      if (warp == 0) store_token_gradients(c, facts.tokens);
    }
    copy_async_wait<0>();
    this->store_gradient(ds);
  }
};

template <class T, int K>
__global__ __launch_bounds__(2 * K, 1) void backward_gradients_kernel(
    const __grid_constant__ CudaLinearAttention p, const __grid_constant__ CudaLinearAttentionGradients g,
    const __grid_constant__ Work work) {
  extern __shared__ __align__(128) unsigned char shared[];
  Backward<T, K>{{p, g, work, *reinterpret_cast<Shared<T, K>*>(shared)}}.run();
}

}  // namespace

CudaStatus backward_gradients_sm90(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                                   const Work& work, void* stream) {
  const auto run = [&](auto type, auto width) -> CudaStatus {
    using T = decltype(type);
    constexpr int K = width();
    const auto kernel = backward_gradients_kernel<T, K>;
    if (const auto error = allow_shared(kernel, sizeof(Shared<T, K>))) return status_of(error);
    const dim3 grid(static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch * work.segments));
    kernel<<<grid, 2 * K, sizeof(Shared<T, K>), static_cast<cudaStream_t>(stream)>>>(p, g, work);
    return last_status();
  };
  const auto with_width = [&](auto type) -> CudaStatus {
    return p.key_width == 64 ? run(type, std::integral_constant<int, 64>{})
                             : run(type, std::integral_constant<int, 128>{});
  };
  return p.v.type == CudaType::bf16 ? with_width(bf16{}) : with_width(fp16{});
}

}  // namespace weft::kernels::delta
