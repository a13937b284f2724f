// Delta rule, forward on Hopper, without vector decay: one warpgroup of a block prepares chunks, the others, each with 64
// columns of the state, pass over them a chunk or two behind.
#include "ops/linear_attention/delta_sm90.cuh"
#include "ops/linear_attention/triangular.cuh"

namespace weft::kernels::delta {
namespace {

constexpr int kPrepareThreads = 128;

// With two places for what is prepared, a chunk is prepared while the one before is passed. A narrow block has one: it shares a
// multiprocessor with another block, and works on one side at a time.
template <class T, int K, int kGroups>
struct Shared {
  static constexpr bool kNarrow = K == 64 && kGroups == 1;
  static constexpr int kSolved = kNarrow ? 1 : 2, kStages = kSolved + 1;
  struct Rows {
    T keys[kSpreadRows * K], queries[kSpreadRows * K], values[kSpreadRows * 64 * kGroups];
  };
  struct Solved {
    T solve[2 * kSquare], reads[kSquare];  // T in two parts, P
  };
  Rows rows[kStages];
  Solved solved[kSolved];
  Facts<K> facts[kSolved];
  float system[kChunk * kTriangularStride];
};

// What forward_chunk reads.
template <class T, int K>
struct View {
  const T *keys, *queries, *values, *solve, *reads;
  const Facts<K>& facts;
};

template <class T, int K, int kGroups>
struct Forward {
  using Shared = delta::Shared<T, K, kGroups>;
  static constexpr int kSolved = Shared::kSolved, kStages = Shared::kStages;
  static constexpr int kThreads = kPrepareThreads + 128 * kGroups;
  const CudaLinearAttention& p;
  const Work& work;
  Shared& s;
  int h = blockIdx.y, b = blockIdx.z, block_column = blockIdx.x * 64 * kGroups;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  // Barriers between those who prepare and those who pass: a chunk is there and what its place was for is done, it is
  // prepared. Those who pass also copy: they have time.
  __device__ static void arrive_loaded() { named_barrier_arrive(2, kThreads); }
  __device__ static void wait_for_loaded() { named_barrier(2, kThreads); }
  __device__ static void arrive_prepared() { named_barrier_arrive(3, kThreads); }
  __device__ static void wait_for_prepared() { named_barrier(3, kThreads); }
  __device__ static void synchronise() { named_barrier(1, kPrepareThreads); }

  // Starts to copy, by those who pass.
  __device__ __forceinline__ void load(int c) const {
    if (c < work.chunks) {
      const int64_t first = static_cast<int64_t>(c) * kChunk;
      const int valid = valid_tokens(p, first), kh = key_head(p, h);
      auto& to = s.rows[c % kStages];
      const int thread = threadIdx.x - kPrepareThreads, threads = kThreads - kPrepareThreads;
      copy_rows(to.keys, row_at<T>(p.k, b, first, kh), p.k.token, valid, K, thread, threads);
      copy_rows(to.queries, row_at<T>(p.q, b, first, kh), p.q.token, valid, K, thread, threads);
      copy_rows(to.values, row_at<T>(p.v, b, first, h) + block_column, p.v.token, valid, 64 * kGroups, thread,
                threads);
    }
    copy_async_commit();
  }
  __device__ __forceinline__ void store_factors(Facts<K>& facts) const {
    const Tokens& tokens = facts.tokens;
    if (const int t = threadIdx.x; t < kChunk) {
      facts.read[t] = p.scale * tokens.from_before(t);
      facts.keep[t] = tokens.to_after(t);
      facts.erase[t] = tokens.beta[t] * tokens.from_before(t);
    }
    if (threadIdx.x < K) facts.through[threadIdx.x] = tokens.through();
  }
  // Of the tokens' pairs whose products are in `x`, body(r, t, n, decays of (r, t) and (r, t + 1)), n the place in `x`.
  template <class Body>
  __device__ __forceinline__ void for_pairs(const Tokens& tokens, const Body& body) const {
    const int row = 16 * warp + lane / 4;
    const float decay[2] = {tokens.decay[row], tokens.decay[row + 8]};
    const int document[2] = {tokens.document[row], tokens.document[row + 8]};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j / 2 > warp) continue;
      const int t = 8 * j + lane % 4 * 2;
      const float2 from = *reinterpret_cast<const float2*>(tokens.decay + t);
      const int2 of = *reinterpret_cast<const int2*>(tokens.document + t);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = row + 8 * i;
        body(r, t, 4 * j + 2 * i,
             make_float2(t <= r && of.x == document[i] ? fast_exp2(decay[i] - from.x) : 0.f,
                         t < r && of.y == document[i] ? fast_exp2(decay[i] - from.y) : 0.f));
      }
    }
  }
  // X K' of the warpgroup's 64 rows.
  __device__ __forceinline__ void multiply_keys(float (&pairs)[32], const T* x, const T* keys) const {
    products_begin();
#pragma unroll
    for (int d = 0; d < K; d += 16)
      multiply_shared<T, false, false>(pairs, deep<kSpreadRows>(x, d), deep<kSpreadRows>(keys, d), d > 0);
    products_commit();
  }
  // P to its tile, and to device memory if `kept`.
  __device__ __forceinline__ void store_reads(const float (&pairs)[32], const Tokens& tokens, T* tile,
                                              T* kept) const {
    for_pairs(tokens, [&](int r, int t, int n, float2 decays) {
      const uint32_t read = pack<T>(p.scale * decays.x * pairs[n], p.scale * decays.y * pairs[n + 1]);
      *reinterpret_cast<uint32_t*>(piece<kChunk>(tile, r, t / 8) + t % 8) = read;
      if (kept)
        *reinterpret_cast<uint32_t*>(piece<16>(lower_block(kept, warp, t / 16), r % 16, t / 8 % 2) + t % 8) =
            read;
    });
  }
  __device__ __forceinline__ void store_system(const float (&pairs)[32], const Tokens& tokens) const {
    for_pairs(tokens, [&](int r, int t, int n, float2 decays) {
      const float beta = tokens.beta[r];
      *reinterpret_cast<float2*>(s.system + r * kTriangularStride + t) = make_float2(
          t < r ? beta * decays.x * pairs[n] : 0.f, t + 1 < r ? beta * decays.y * pairs[n + 1] : 0.f);
    });
  }
  // T in two parts to its tiles, the first to device memory if `kept`.
  __device__ __forceinline__ void store_solve(T* tile, T* kept) const {
#pragma unroll
    for (int block = 0; block < 10; ++block) {
      const int row = block < 1 ? 0 : block < 3 ? 1 : block < 6 ? 2 : 3, column = block - row * (row + 1) / 2;
      const int r = 16 * row + threadIdx.x / 4 % 16, c = threadIdx.x / 64 * 8 + threadIdx.x % 4 * 2;
      const float2 x = *reinterpret_cast<const float2*>(s.system + r * kTriangularStride + 16 * column + c);
      uint32_t high, low;
      split<T>(high, low, x.x, x.y);
      auto* to = reinterpret_cast<uint32_t*>(piece<kChunk>(tile, r, 2 * column + c / 8) + c % 8);
      to[0] = high, to[kSquare / 2] = low;
      if (kept) reinterpret_cast<uint32_t*>(kept)[block * 128 + threadIdx.x] = high;
    }
  }

  __device__ __forceinline__ void prepare() const {
    const bool keep = work.values && blockIdx.x == 0;
    TokenPair pair;
    if (warp == 0) pair = load_token_pair<T>(p, b, h, 0);
    for (int c = 0; c < work.chunks; ++c) {
      const int64_t chunk = work.chunk(p, b, h, c);
      const auto& rows = s.rows[c % kStages];
      auto& solved = s.solved[c % kSolved];
      auto& facts = s.facts[c % kSolved];
      wait_for_loaded();
      if (warp == 0) {
        store_tokens(facts.tokens, pair);
        pair = load_token_pair<T>(p, b, h, static_cast<int64_t>(c + 1) * kChunk);
      }
      synchronise();
      float pairs[32];
      multiply_keys(pairs, rows.keys, rows.keys);
      store_factors(facts);
      products_wait<0>();
      pin(pairs);
      store_system(pairs, facts.tokens);
      multiply_keys(pairs, rows.queries, rows.keys);
      products_wait<0>();
      pin(pairs);
      store_reads(pairs, facts.tokens, solved.reads, keep ? tile_at<T>(work.reads, chunk, kPairs) : nullptr);
      invert_unit_lower<T>(s.system, synchronise);
      synchronise();
      store_solve(solved.solve, keep ? tile_at<T>(work.solve, chunk, 2 * kPairs) : nullptr);
      async_fence();
      arrive_prepared();
      if (keep) {
        const auto* from = reinterpret_cast<const uint4*>(&facts);
        auto* to = reinterpret_cast<uint4*>(tile_at<Facts<K>>(work.facts, chunk, 1));
        for (int i = threadIdx.x; i < sizeof(Facts<K>) / 16; i += kPrepareThreads) to[i] = from[i];
      }
    }
  }

  __device__ __forceinline__ void pass() const {
    const int strip = warp - kPrepareThreads / 32, column = block_column + 16 * strip;
    const int V = static_cast<int>(p.value_width);
    const int64_t state = (static_cast<int64_t>(b) * p.heads + h) * K * V;
    load(0);
    if constexpr (kSolved > 1) load(1);
    copy_async_wait<kSolved - 1>();
    async_fence();
    arrive_loaded();
    float x[K / 8][4];
    load_state<K>(x, p.initial_state ? p.initial_state + state : nullptr, V, column);
    for (int c = 0; c < work.chunks; ++c) {
      const auto& rows = s.rows[c % kStages];
      const auto& solved = s.solved[c % kSolved];
      const auto go_on = [&] {
        copy_async_wait<0>();
        async_fence();
        if (c + 1 < work.chunks) arrive_loaded();
      };
      wait_for_prepared();  // so the chunk before has been passed by all
      if constexpr (kSolved > 1) go_on();
      load(c + kSolved);
      const View<T, K> in = {rows.keys,    rows.queries, rows.values,
                             solved.solve, solved.reads, s.facts[c % kSolved]};
      forward_chunk<T, K, true>(x, in, in.keys, strip, Outputs<T>(p, work, b, h, c, column), [] {});
      if constexpr (kSolved == 1) go_on();
    }
    store_state<K>(x, p.state + state, V, column);
  }
};

template <class T, int K, int kGroups>
__global__ __launch_bounds__(
    128 + 128 * kGroups, Shared<T, K, kGroups>::kNarrow
                             ? 2
                             : 1) void forward_prepare_kernel(const __grid_constant__ CudaLinearAttention p,
                                                              const __grid_constant__ Work work) {
  extern __shared__ __align__(128) unsigned char shared[];
  auto& s = *reinterpret_cast<Shared<T, K, kGroups>*>(shared);
  // Zeros above the diagonals' blocks, which nobody writes.
  for (int i = threadIdx.x; i < sizeof(s.solved) / 16; i += 128 + 128 * kGroups)
    reinterpret_cast<uint4*>(s.solved)[i] = make_uint4(0, 0, 0, 0);
  __syncthreads();
  const Forward<T, K, kGroups> block{p, work, s};
  constexpr bool kMoves =
      Shared<T, K, kGroups>::kNarrow || kGroups == 2;  // else a thread has all it can name
  if (threadIdx.x < kPrepareThreads) {
    if constexpr (kMoves) shrink_registers<88>();
    block.prepare();
  } else {
    if constexpr (kMoves) grow_registers<kGroups == 2 ? 208 : 168>();
    block.pass();
  }
}

}  // namespace

CudaStatus forward_sm90(const CudaLinearAttention& p, const Work& work, void* stream) {
  const auto run = [&](auto type, auto width, auto groups) -> CudaStatus {
    using T = decltype(type);
    constexpr int K = width(), kGroups = groups();
    const auto kernel = forward_prepare_kernel<T, K, kGroups>;
    constexpr size_t kBytes = sizeof(Shared<T, K, kGroups>);
    if (const auto error = allow_shared(kernel, kBytes)) return status_of(error);
    const dim3 grid(static_cast<unsigned>(p.value_width / 64 / kGroups), static_cast<unsigned>(p.heads),
                    static_cast<unsigned>(p.batch));
    kernel<<<grid, 128 + 128 * kGroups, kBytes, static_cast<cudaStream_t>(stream)>>>(p, work);
    return last_status();
  };
  const auto with_width = [&](auto type) -> CudaStatus {
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    if (p.key_width == 64) return run(type, std::integral_constant<int, 64>{}, One{});
    const std::integral_constant<int, 128> width;
    // Half of the columns where that fills the device.
    const bool wide = p.value_width == 128 && p.batch * p.heads * 2 > p.multiprocessors;
    return wide ? run(type, width, Two{}) : run(type, width, One{});
  };
  return p.v.type == CudaType::bf16 ? with_width(bf16{}) : with_width(fp16{});
}

}  // namespace weft::kernels::delta
