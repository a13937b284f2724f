// Delta rule, forward on Hopper, without vector decay: one warpgroup of a block prepares chunks, the others, each with 64
// columns of the state, pass over them a chunk or two behind.
#include "ops/linear_attention/delta_forward_sm90.cuh"

namespace weft::kernels::delta {
namespace {

// Summary: segments but the first have no outputs, but what they do to the state before them, E and M.
template <class T, int K, int kGroups, bool kSummary>
struct Forward {
  using Shared = delta::Shared<T, K, kGroups>;
  static constexpr int kSolved = Shared::kSolved, kStages = Shared::kStages;
  static constexpr int kThreads = kPrepareThreads + 128 * kGroups;
  const CudaLinearAttention& p;
  const Work& work;
  Shared& s;
  const Inputs& inputs;
  Segments segments;
  int h = blockIdx.y, b = blockIdx.z / segments.count, segment = segments.first + blockIdx.z % segments.count;
  int begin = segment * work.segment_chunks, end = min(begin + work.segment_chunks, work.chunks);
  int block_column = blockIdx.x * 64 * kGroups;
  bool maps = kSummary && segment > 0;
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  // Barriers between those who prepare and those who pass: what a chunk's place was for is done, a chunk is prepared.
  __device__ static void arrive_done() { named_barrier_arrive(2, kThreads); }
  __device__ static void wait_for_place() { named_barrier(2, kThreads); }
  __device__ static void arrive_prepared() { named_barrier_arrive(3, kThreads); }
  __device__ static void wait_for_prepared() { named_barrier(3, kThreads); }
  __device__ static void synchronise() { named_barrier(1, kPrepareThreads); }

  // Starts to copy a chunk, by one of those who pass.
  __device__ __forceinline__ void load(int c) const {
    if (c >= end || threadIdx.x != kPrepareThreads) return;
    const int first = c * kChunk, kh = key_head(p, h), stage = (c - begin) % kStages;
    auto& to = s.rows[stage];
    uint64_t* loaded = &s.loaded[stage];
    barrier_expect(loaded, maps ? sizeof(to.keys) + sizeof(to.values) : sizeof(to));
    copy_panels(to.keys, &inputs.keys, loaded, 0, kh, first, b);
    if (!maps) copy_panels(to.queries, &inputs.queries, loaded, 0, kh, first, b);
    copy_panels(to.values, &inputs.values, loaded, block_column / kPanelColumns, h, first, b);
    barrier_arrive(loaded);
  }
  __device__ __forceinline__ void wait_for_rows(int c) const {
    barrier_wait(&s.loaded[(c - begin) % kStages], (c - begin) / kStages % 2);
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
  // X K' of the warpgroup's 64 rows.
  __device__ __forceinline__ void multiply_keys(float (&pairs)[32], Panels<T> x, Panels<T> keys) const {
    products_begin();
#pragma unroll
    for (int d = 0; d < K; d += 16)
      multiply_shared<T, false, false>(pairs, deep_rows(x, d), deep_rows(keys, d), d > 0);
    products_commit();
  }
  // Of the warp's rows of pairs, 16 columns at a time up to the diagonal, body(block, whether it is that on the diagonal,
  // decays, products). At 4 j + 2 i + n: row lane / 4 + 8 i, column 8 j + lane % 4 * 2 + n. Left of the diagonal decays are
  // products of what a row and a column have to the end of the column's block.
  template <class Body>
  __device__ __forceinline__ void for_blocks(const Tokens& tokens, const float (&pairs)[32],
                                             const Body& body) const {
    const int row = 16 * warp + lane / 4, column = lane % 4 * 2;
    const float decay[2] = {tokens.decay[row], tokens.decay[row + 8]};
    const int document[2] = {tokens.document[row], tokens.document[row + 8]};
    float decays[8], products[8];
#pragma unroll
    for (int block = 0; block < 3; ++block) {
      if (block >= warp) break;
      const float end = tokens.decay[16 * block + 15];
      const float by[2] = {fast_exp2(decay[0] - end), fast_exp2(decay[1] - end)};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int t = 16 * block + 8 * j + column;
        const int2 of = *reinterpret_cast<const int2*>(tokens.document + t);
        const float2 from = *reinterpret_cast<const float2*>(s.to_end + t);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          decays[4 * j + 2 * i] = of.x == document[i] ? by[i] * from.x : 0.f;
          decays[4 * j + 2 * i + 1] = of.y == document[i] ? by[i] * from.y : 0.f;
        }
      }
#pragma unroll
      for (int n = 0; n < 8; ++n) products[n] = pairs[8 * block + n];
      body(block, std::false_type{}, decays, products);
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int t = 16 * warp + 8 * j + column;
      const int2 of = *reinterpret_cast<const int2*>(tokens.document + t);
      const float2 from = *reinterpret_cast<const float2*>(tokens.decay + t);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = row + 8 * i;
        const float x = fast_exp2(decay[i] - from.x), y = fast_exp2(decay[i] - from.y);
        decays[4 * j + 2 * i] = t <= r && of.x == document[i] ? x : 0.f;
        decays[4 * j + 2 * i + 1] = t < r && of.y == document[i] ? y : 0.f;
      }
    }
#pragma unroll
    for (int n = 0; n < 8; ++n)
      products[n] = warp == 0   ? pairs[n]
                    : warp == 1 ? pairs[8 + n]
                    : warp == 2 ? pairs[16 + n]
                                : pairs[24 + n];
    body(warp, std::true_type{}, decays, products);
  }
  // P to its tile, and to device memory if `kept`.
  __device__ __forceinline__ void store_reads(const float (&pairs)[32], const Tokens& tokens, T* tile,
                                              T* kept) const {
    const int row = lane / 4, column = lane % 4 * 2;
    for_blocks(tokens, pairs, [&](int block, auto, const float(&decays)[8], const float(&products)[8]) {
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        const int r = row + n / 2 % 2 * 8, j = n / 4;
        const uint32_t read =
            pack<T>(p.scale * decays[n] * products[n], p.scale * decays[n + 1] * products[n + 1]);
        *reinterpret_cast<uint32_t*>(piece<kChunk>(tile, 16 * warp + r, 2 * block + j) + column) = read;
        if (kept)
          *reinterpret_cast<uint32_t*>(piece<16>(lower_block(kept, warp, block), r, j) + column) = read;
      }
    });
  }
  __device__ __forceinline__ void store_system(const float (&pairs)[32], const Tokens& tokens) const {
    const int row = lane / 4, column = lane % 4 * 2;
    const float beta[2] = {tokens.beta[16 * warp + row], tokens.beta[16 * warp + row + 8]};
    for_blocks(tokens, pairs,
               [&](int block, auto diagonal, const float(&decays)[8], const float(&products)[8]) {
#pragma unroll
                 for (int n = 0; n < 8; n += 2) {
                   const float by = beta[n / 2 % 2];
                   const int r = row + n / 2 % 2 * 8, c = n / 4 * 8 + column;
                   const float x = by * decays[n] * products[n], y = by * decays[n + 1] * products[n + 1];
                   if constexpr (diagonal())
                     s.inverse.put_diagonal(warp, r, c, x, y);
                   else
                     s.inverse.put_below(warp, block, r, c, x, y);
                 }
               });
  }
  // The warp's rows of T in two parts to its tiles, the first part to device memory if `kept`.
  __device__ __forceinline__ void store_solve(T* tile, T* kept) const {
    invert_rows<T>(s.inverse, warp, [&](int column, const SplitOperand& x) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = i % 2 * 8 + lane / 4;
        auto* to =
            reinterpret_cast<uint32_t*>(piece<kChunk>(tile, 16 * warp + r, 2 * column + i / 2)) + lane % 4;
        to[0] = x.high[i], to[kSquare / 2] = x.low[i];
        if (kept)
          reinterpret_cast<uint32_t*>(piece<16>(lower_block(kept, warp, column), r, i / 2))[lane % 4] =
              x.high[i];
      }
    });
  }

  __device__ __forceinline__ void prepare() const {
    const bool keep = work.values && blockIdx.x == 0 && !maps;
    TokenBits bits;
    if (warp == 0) bits = load_token_bits(p, b, h, begin);
    for (int c = begin; c < end; ++c) {
      const int64_t chunk = work.chunk(p, b, h, c);
      const auto& rows = s.rows[(c - begin) % kStages];
      const Panels<T> keys{rows.keys}, queries{rows.queries};
      auto& solved = s.solved[c % kSolved];
      auto& facts = s.facts[c % kSolved];
      wait_for_place();
      wait_for_rows(c);
      float pairs[32];
      if (!maps) multiply_keys(pairs, queries, keys);
      if (warp == 0) {
        store_tokens(facts.tokens, token_pair(p, bits, c));
        __syncwarp();
        const float end = facts.tokens.decay[lane / 8 * 16 + 15];
#pragma unroll
        for (int t = 2 * lane; t < 2 * lane + 2; ++t) s.to_end[t] = fast_exp2(end - facts.tokens.decay[t]);
        if (c + 1 < this->end) bits = load_token_bits(p, b, h, c + 1);
      }
      synchronise();
      if (!maps) {
        products_wait<0>();
        pin(pairs);
        store_reads(pairs, facts.tokens, solved.reads,
                    keep ? tile_at<T>(work.reads, chunk, kPairs) : nullptr);
        pin(pairs);
      }
      multiply_keys(pairs, keys, keys);
      store_factors(facts);
      products_wait<0>();
      pin(pairs);
      store_system(pairs, facts.tokens);
      __syncwarp();
      invert_diagonal(s.inverse, warp);
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

  // body(c, what is there of the chunk), chunk after chunk, by those who pass.
  template <class Body>
  __device__ __forceinline__ void for_chunks(const Body& body) const {
    for (int c = begin; c < end; ++c) {
      const auto& rows = s.rows[(c - begin) % kStages];
      const auto& solved = s.solved[c % kSolved];
      wait_for_prepared();  // so the chunk before has been passed by all
      if (kSolved > 1 && c + 1 < end) arrive_done();
      load(c + 2);
      __syncwarp();
      wait_for_rows(c);
      body(c,
           View<T, K>{
               {rows.keys}, {rows.queries}, {rows.values}, solved.solve, solved.reads, s.facts[c % kSolved]});
      if (kSolved == 1 && c + 1 < end) arrive_done();
    }
  }
  __device__ __forceinline__ void pass() const {
    const int strip = warp - kPrepareThreads / 32, column = block_column + 16 * strip;
    const int V = static_cast<int>(p.value_width);
    const int64_t head = static_cast<int64_t>(b) * p.heads + h, edge = head * work.segments + segment;
    load(begin), load(begin + 1);
    arrive_done();
    float x[K / 8][4];
    if (maps) {
      if constexpr (kSummary) {
        float m[K / 8][4];
        load_state<K>(x, nullptr, V, column);
        load_identity<K>(m, column);
        for_chunks([&](int, const View<T, K>& in) {
          forward_chunk<T, K, false, true, true>(x, in, in.keys, strip, Outputs<T>(), [] {});
          forward_chunk<T, K, false, false, true>(m, in, in.keys, strip, Outputs<T>(), [] {});
        });
        store_state<K>(m, work.maps + edge * K * K, K, column);
      }
    } else {
      const float* initial = p.initial_state ? p.initial_state + head * K * V : nullptr;
      load_state<K>(x, segment > 0 ? work.edges + edge * K * V : initial, V, column);
      for_chunks([&](int c, const View<T, K>& in) {
        forward_chunk<T, K, true>(x, in, in.keys, strip, Outputs<T>(p, work, b, h, c, column), [] {});
      });
    }
    if (segment == work.segments - 1 && !maps)
      store_state<K>(x, p.state + head * K * V, V, column);
    else if (kSummary)
      store_state<K>(x, work.edges + edge * K * V, V, column);
  }
};

template <class T, int K, int kGroups, bool kSummary>
__global__ __launch_bounds__(
    128 + 128 * kGroups, Shared<T, K, kGroups>::kNarrow
                             ? 2
                             : 1) void forward_prepare_kernel(const __grid_constant__ CudaLinearAttention p,
                                                              const __grid_constant__ Work work,
                                                              const __grid_constant__ Inputs inputs,
                                                              Segments segments) {
  extern __shared__ __align__(1024) unsigned char shared[];
  auto& s = *reinterpret_cast<Shared<T, K, kGroups>*>(shared + (-shared_address(shared) & 1023));
  // Zeros above the diagonals' blocks, which nobody writes.
  for (int i = threadIdx.x; i < sizeof(s.solved) / 16; i += 128 + 128 * kGroups)
    reinterpret_cast<uint4*>(s.solved)[i] = make_uint4(0, 0, 0, 0);
  async_fence();
  if (threadIdx.x == 0) {
    for (uint64_t& loaded : s.loaded) barrier_init(&loaded, 1);
    barrier_init_fence();
  }
  __syncthreads();
  const Forward<T, K, kGroups, kSummary> block{p, work, s, inputs, segments};
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

template <class T, int K, int kGroups, bool kSummary>
CudaStatus launch(const CudaLinearAttention& p, const Work& work, Segments segments, void* stream) {
  const auto kernel = forward_prepare_kernel<T, K, kGroups, kSummary>;
  constexpr size_t kBytes = sizeof(Shared<T, K, kGroups>) + 1024;
  Inputs inputs;
  const auto failed = [&](CUtensorMap& map, const CudaRows& x, int64_t width, int64_t heads, int panels) {
    return make_panels_map(&map, x, width, heads, p.tokens, p.batch, kChunk, panels);
  };
  if (const CudaStatus status = failed(inputs.keys, p.k, K, p.key_heads, K / kPanelColumns)) return status;
  if (const CudaStatus status = failed(inputs.queries, p.q, K, p.key_heads, K / kPanelColumns)) return status;
  if (const CudaStatus status = failed(inputs.values, p.v, p.value_width, p.heads, kGroups)) return status;
  if (const auto error = allow_shared(kernel, kBytes)) return status_of(error);
  const dim3 grid(static_cast<unsigned>(p.value_width / 64 / kGroups), static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(p.batch * segments.count));
  kernel<<<grid, 128 + 128 * kGroups, kBytes, static_cast<cudaStream_t>(stream)>>>(p, work, inputs, segments);
  return last_status();
}

}  // namespace

CudaStatus forward_sm90(const CudaLinearAttention& p, const Work& work, void* stream) {
  const auto run = [&](auto type, auto width, auto groups) -> CudaStatus {
    using T = decltype(type);
    constexpr int K = width(), kGroups = groups();
    if (work.segments == 1) return launch<T, K, kGroups, false>(p, work, {0, 1}, stream);
    if constexpr (K == 64 * kGroups) {
      // The first segment has its results at once. For a backward, the last one's map is needed too.
      const int count = work.values ? work.segments : work.segments - 1;
      if (const CudaStatus failed = launch<T, K, kGroups, true>(p, work, {0, count}, stream)) return failed;
      if (const CudaStatus failed = join_segments(p, work, 1, stream)) return failed;
      return launch<T, K, kGroups, false>(p, work, {1, work.segments - 1}, stream);
    }
    return "not reached";
  };
  const auto with_width = [&](auto type) -> CudaStatus {
    using One = std::integral_constant<int, 1>;
    using Two = std::integral_constant<int, 2>;
    if (p.key_width == 64) return run(type, std::integral_constant<int, 64>{}, One{});
    const std::integral_constant<int, 128> width;
    // Half of the columns where that fills the device.
    const bool wide =
        p.value_width == 128 && (work.segments > 1 || p.batch * p.heads * 2 > p.multiprocessors);
    return wide ? run(type, width, Two{}) : run(type, width, One{});
  };
  return p.v.type == CudaType::bf16 ? with_width(bf16{}) : with_width(fp16{});
}

}  // namespace weft::kernels::delta
