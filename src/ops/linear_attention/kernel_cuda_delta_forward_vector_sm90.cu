// Delta rule, forward on Hopper with a vector decay and heads of 64, in one kernel: one warpgroup of a block prepares chunks,
// the other passes over them with 64 columns of the state.
#include "ops/linear_attention/delta_prepare_vector_sm90.cuh"

namespace weft::kernels::delta {
namespace {

// A block shares a multiprocessor with another: two places for rows, one for what is prepared.
template <int K>
struct Shared {
  using T = bf16;  // rows and columns need its range
  struct Rows {
    T keys[kSpreadRows * K], queries[kSpreadRows * K];  // first without their decays
    T columns[kSpreadRows * K];
    T values[kSpreadRows * 64];
  };
  Rows rows[2];
  T solve[2 * kSquare], reads[kSquare];  // T in two parts, P
  Facts<K> facts[2];
  float before[2][K];  // decays of the state before the rows read it; facts.through: after that, but
  int gentle[2];       // in gentle chunks only behind the columns, which lack that decay
  float system[kChunk * kTriangularStride];
  float totals[kBlocks][K];  // log2 decay of a block of tokens
  // A chunk's rows have been copied, all is prepared, passed.
  uint64_t loaded[2], prepared[2], passed;
};

// Counts this thread's arrival when its copies so far have landed.
__device__ __forceinline__ void barrier_arrive_copied(uint64_t* barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
               : "memory");
}

template <int K, class Number>
struct Forward : ChunkPairs<K, Shared<K>, Number> {
  using T = bf16;
  using Shared = delta::Shared<K>;
  using Base = ChunkPairs<K, Shared, Number>;
  using Base::p, Base::work, Base::s, Base::h, Base::b, Base::kh, Base::block, Base::lane, Base::thread;
  static constexpr int kPreparing = 128, kPassing = 128;
  int block_column = blockIdx.x * 64;

  __device__ static uint32_t parity(int c) { return c / 2 % 2; }
  __device__ bool keeps() const { return work.values && blockIdx.x == 0; }

  // Starts to copy, by those who pass, and asks for the chunk behind.
  __device__ __forceinline__ void load(int c) const {
    if (c >= work.chunks) return;
    const int64_t first = static_cast<int64_t>(c) * kChunk;
    const int valid = valid_tokens(p, first), by = threadIdx.x - kPreparing;
    auto& to = s.rows[c % 2];
    copy_rows<true>(to.keys, row_at<T>(p.k, b, first, kh), p.k.token, valid, K, by, kPassing);
    copy_rows<true>(to.queries, row_at<T>(p.q, b, first, kh), p.q.token, valid, K, by, kPassing);
    copy_rows<true>(to.values, row_at<T>(p.v, b, first, h) + block_column, p.v.token, valid, 64, by,
                    kPassing);
    barrier_arrive_copied(&s.loaded[c % 2]);
    prefetch_rows<T>(p.k, kh, first + kChunk, K, by);
    prefetch_rows<T>(p.q, kh, first + kChunk, K, by);
    prefetch_rows<Number>(p.log_decay, h, first, K, by);
    prefetch_rows<Number>(p.log_decay, h, first + kChunk, K, by);
    prefetch_rows<T>(p.v, h, first + kChunk, block_column + 64, by);
  }
  template <class X>
  __device__ __forceinline__ void prefetch_rows(const CudaRows& rows, int head, int64_t first, int width,
                                                int by) const {
    const int lines = (width * static_cast<int>(sizeof(X)) + 127) / 128, valid = valid_tokens(p, first);
#pragma unroll 1
    for (int i = by; i < valid * lines; i += kPassing)
      prefetch(reinterpret_cast<const char*>(row_at<X>(rows, b, first + i / lines, head)) + i % lines * 128);
  }

  __device__ __forceinline__ void prepare_pairs(int c, TokenPair& pair,
                                                typename Base::Packed (&raw)[kBlock]) const {
    const int stage = c % 2;
    auto& rows = s.rows[stage];
    auto& facts = s.facts[stage];
    const int64_t chunk = work.chunk(p, b, h, c);
    T* kept = keeps() ? tile_at<T>(work.reads, chunk, kPairs) : nullptr;
    barrier_wait(&s.loaded[stage], parity(c));
    Base::synchronise();  // the system before has been read
    if (block == 0) {
      store_tokens(facts.tokens, pair);
      pair = load_token_pair<T>(p, b, h, static_cast<int64_t>(c + 1) * kChunk);
    }
    const bool gentle = this->decay_rows(rows, facts, s.before[stage], s.system, raw, c, c + 1);
    if (thread == 0) s.gentle[stage] = gentle;
    if (c > 0) barrier_wait(&s.passed, (c - 1) % 2);
    if (gentle)
      Base::make_pairs(rows, facts, s.system, s.reads, kept);
    else
      this->make_strong_pairs(c, rows, facts, s.before[stage], s.system, s.reads, kept);
    async_fence();
    Base::synchronise();
    if (!keeps()) return;
    const auto* from = reinterpret_cast<const uint4*>(&facts);
    auto* to = reinterpret_cast<uint4*>(tile_at<Facts<K>>(work.facts, chunk, 1));
    for (int i = thread; i < sizeof(Facts<K>) / 16; i += 128) to[i] = from[i];
  }

  // T in two parts to its tiles, the first to device memory if `kept`.
  __device__ __forceinline__ void store_solve(const float* system, T* tile, T* kept) const {
#pragma unroll
    for (int n = 0; n < 10; ++n) {
      const int row = n < 1 ? 0 : n < 3 ? 1 : n < 6 ? 2 : 3, column = n - row * (row + 1) / 2;
      const int r = 16 * row + thread / 4 % 16, c = thread / 64 * 8 + thread % 4 * 2;
      const float2 x = *reinterpret_cast<const float2*>(system + r * kTriangularStride + 16 * column + c);
      uint32_t high, low;
      split<T>(high, low, x.x, x.y);
      auto* to = reinterpret_cast<uint32_t*>(piece<kChunk>(tile, r, 2 * column + c / 8) + c % 8);
      to[0] = high, to[kSquare / 2] = low;
      if (kept) reinterpret_cast<uint32_t*>(kept)[n * 128 + thread] = high;
    }
  }
  __device__ __forceinline__ void solve(int c) const {
    const auto synchronise = [] { Base::synchronise(); };
    invert_unit_lower<T>(s.system, synchronise);
    synchronise();
    store_solve(s.system, s.solve,
                keeps() ? tile_at<T>(work.solve, work.chunk(p, b, h, c), 2 * kPairs) : nullptr);
    async_fence();
    barrier_arrive(&s.prepared[c % 2]);
  }

  __device__ __forceinline__ void prepare() const {
    typename Base::Packed raw[kBlock];
    TokenPair pair;
    if (block == 0) pair = load_token_pair<T>(p, b, h, 0);
    this->load_decays(raw, 0, 0);
    for (int c = 0; c < work.chunks; ++c) {
      prepare_pairs(c, pair, raw);
      solve(c);
    }
  }

  // What subtract_erased reads.
  struct View {
    const T* values;
    const Facts<K>& facts;
  };
  // As multiply_state, multiply_transposed and add_outer, without committing.
  template <int kSteps, int kRows>
  __device__ static void multiply_deep(float (&to)[8][4], const uint32_t (&a)[kSteps][4],
                                       const DeepTile<kRows>& tile) {
#pragma unroll
    for (int n = 0; n < kSteps; ++n) multiply_rows<T, false>(flat(to[0]), a[n], tile.at(16 * n));
  }
  __device__ static void multiply_wide(float (&to)[K / 8][4], const uint32_t (&a)[4][4],
                                       const WideTile<kSpreadRows>& tile) {
#pragma unroll
    for (int n = 0; n < 4; ++n)
#pragma unroll
      for (int d = 0; d < K; d += 64) multiply_rows<T, true>(flat(to[d / 8]), a[n], tile.at(16 * n, d));
  }
  // c [64, 64] = a' x for the state and a tile.
  __device__ __forceinline__ void multiply_state(float (&to)[8][4], const float (&x)[K / 8][4],
                                                 const T* tile) const {
    uint32_t packed[K / 16][4];
    pack_state<T, K>(packed, x, static_cast<T*>(nullptr), 0, 0);
    pin_columns<kChunk>(to);
    products_begin();
    multiply_deep(to, packed, DeepTile<kSpreadRows>(tile));
    products_commit();
    products_wait<0>();
    pin_columns<kChunk>(to);
  }
  // Without the tokens that no token behind the chunk sees.
  __device__ __forceinline__ void mask_values(uint32_t (&a)[4][4], const float* keep) const {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 x = *reinterpret_cast<const float2*>(keep + 8 * j + lane % 4 * 2);
      const uint32_t mask = (x.x > 0 ? 0xffffu : 0u) | (x.y > 0 ? 0xffff0000u : 0u);
      a[j / 2][j % 2 * 2] &= mask, a[j / 2][j % 2 * 2 + 1] &= mask;
    }
  }
  // In an order that needs few registers at a time.
  __device__ __forceinline__ void pass_chunk(float (&x)[K / 8][4], int c, int strip) const {
    const auto& rows = s.rows[c % 2];
    const auto& facts = s.facts[c % 2];
    const int column = block_column + 16 * strip, V = static_cast<int>(p.value_width);
    if (work.states) {
      uint32_t packed[K / 16][4];
      pack_state<T, K>(packed, x, tile_at<T>(work.states, work.chunk(p, b, h, c), K * V), V, column);
    }
    scale_columns<K>(x, s.before[c % 2]);
    uint32_t a[4][4];
    {
      float erased[8][4] = {};
      multiply_state(erased, x, rows.keys);
      subtract_erased<T>(a, erased, View{rows.values, facts}, strip);
    }
    {
      float values[8][4] = {};
      pin_columns<kChunk>(values);
      products_begin();
      multiply_deep(values, a, DeepTile<kChunk>(s.solve + kSquare));
      multiply_deep(values, a, DeepTile<kChunk>(s.solve));
      products_commit();
      products_wait<0>();
      pin_columns<kChunk>(values);
      pack_tokens<T>(a, values);
    }
    float read[8][4] = {};
    multiply_state(read, x, rows.queries);
    scale_columns<kChunk>(read, facts.read);
    pin_columns<kChunk>(read);
    products_begin();
    multiply_deep(read, a, DeepTile<kChunk>(s.reads));
    products_commit();
    const bool gentle = s.gentle[c % 2];
    if (facts.tokens.document[kChunk - 1] != 0) {
#pragma unroll
      for (int j = 0; j < K / 8; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i) x[j][i] = 0;
    } else if (!gentle) {
      scale_columns<K>(x, facts.through);
    }
    if (work.values) store_transposed(a, tile_at<T>(work.values, work.chunk(p, b, h, c), kChunk * V), column);
    products_wait<0>();
    pin_columns<kChunk>(read);
    mask_values(a, facts.keep);
    pin_columns<K>(x);
    products_begin();
    multiply_wide(x, a, WideTile<kSpreadRows>(rows.columns));
    products_commit();
    uint32_t y[4][4];
    pack_tokens<T>(y, read);
    const int64_t first = static_cast<int64_t>(c) * kChunk;
    store_rows(y, static_cast<T*>(p.y) + ((b * p.tokens + first) * p.heads + h) * V + column, p.heads * V,
               valid_tokens(p, first));
    products_wait<0>();
    pin_columns<K>(x);
    if (gentle) scale_columns<K>(x, facts.through);
  }
  __device__ __forceinline__ void pass() const {
    const int strip = (threadIdx.x - kPreparing) / 32, V = static_cast<int>(p.value_width);
    const int64_t state = (static_cast<int64_t>(b) * p.heads + h) * K * V;
    load(0), load(1);
    float x[K / 8][4];
    load_state<K>(x, p.initial_state ? p.initial_state + state : nullptr, V, block_column + 16 * strip);
    for (int c = 0; c < work.chunks; ++c) {
      barrier_wait(&s.prepared[c % 2], parity(c));
      pass_chunk(x, c, strip);
      barrier_arrive(&s.passed);
      named_barrier(3, kPassing);
      load(c + 2);
    }
    store_state<K>(x, p.state + state, V, block_column + 16 * strip);
  }

  __device__ __forceinline__ void set_up() const {
    for (int i = threadIdx.x; i < 3 * kSquare / 8; i += kPreparing + kPassing)
      reinterpret_cast<uint4*>(s.solve)[i] = make_uint4(0, 0, 0, 0);  // above the diagonals nobody writes
    if (threadIdx.x == 0) {
      for (int i = 0; i < 2; ++i) {
        barrier_init(&s.loaded[i], kPassing);
        barrier_init(&s.prepared[i], kPreparing);
      }
      barrier_init(&s.passed, kPassing);
      barrier_init_fence();
    }
    async_fence();
    __syncthreads();
  }
};

template <int K, class Number>
__global__ __launch_bounds__(256, 2) void forward_vector_kernel(const __grid_constant__ CudaLinearAttention p,
                                                                const __grid_constant__ Work work) {
  extern __shared__ __align__(128) unsigned char shared[];
  using Form = Forward<K, Number>;
  const Form at{{p, work, *reinterpret_cast<Shared<K>*>(shared)}};
  at.set_up();
  if (threadIdx.x < Form::kPreparing) {
    shrink_registers<88>();
    at.prepare();
  } else {
    grow_registers<168>();
    at.pass();
  }
}

}  // namespace

static_assert(sizeof(Shared<64>) <= 115712, "two blocks a multiprocessor");

CudaStatus forward_vector_sm90(const CudaLinearAttention& p, const Work& work, void* stream) {
  const auto run = [&](auto number) -> CudaStatus {
    const auto kernel = forward_vector_kernel<64, decltype(number)>;
    if (const auto error = allow_shared(kernel, sizeof(Shared<64>))) return status_of(error);
    const dim3 grid(static_cast<unsigned>(p.value_width / 64), static_cast<unsigned>(p.heads),
                    static_cast<unsigned>(p.batch));
    kernel<<<grid, 256, sizeof(Shared<64>), static_cast<cudaStream_t>(stream)>>>(p, work);
    return last_status();
  };
  return p.log_decay.type == CudaType::fp32 ? run(float{}) : run(bf16{});
}

}  // namespace weft::kernels::delta
