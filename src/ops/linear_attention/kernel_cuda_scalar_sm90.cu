// The sweep of the scalar form. A block takes one or two value heads or slices of one. Some of its warps feed it with chunks
// of 64 tokens, a warpgroup each keeps a [K, 64] state in registers and a 16-bit copy of it in shared memory.
#include <algorithm>

#include "ops/linear_attention/scalar_split.cuh"

namespace weft::kernels::scalar {
namespace {

constexpr int kShortChunks = 16;

// A warpgroup that carries the state and computes outputs.
template <class T, class Block>
__device__ void compute(const Sweep& p, const Role& role, const Place& place, const Shared& shared,
                        Turn& turn) {
  constexpr int kPanels = Block::kPanels, kSlices = Block::kSlices, kStates = Block::kStates;
  const int group = threadIdx.x / kGroupThreads;
  const Part part(role, (place.group * Block::kWarpgroups + group) * kSlices);
  const int set = kSlices == 1 && role.slices > 1 ? 0 : group;
  const int64_t head_block = static_cast<int64_t>(place.batch) * p.heads + part.head;
  const int64_t checkpoint_block = (head_block * role.slices + part.slice) * p.num_checkpoints;
  const auto state_block = [&](const States& x) {
    return head_block * x.segments + (x.segments > 1 ? place.segment : 0);
  };
  // The state of slice n, rounded, is at panels n * kPanels on.
  char* const rounded = shared.state(group);
  float state[kStates][32] = {};
  const auto store_state = [&] {
#pragma unroll
    for (int m = 0; m < kStates; ++m)
      store_rounded<T>(part, state[m], rounded + (m % kSlices * kPanels + m / kSlices) * kPanelBytes);
  };

  if (role.initial.data) load_state<Block>(role, part, state_block(role.initial), state);
  store_state();
  async_fence();
  part.sync();

  // A wide state leaves no registers to multiply while others are decayed or stored.
  constexpr bool kEarly = kPanels < 4;
  float pairs[32];
  const auto multiply_pairs = [&](const Turn& at) {
    barrier_wait(shared.full(at.stage), at.parity);
    products_begin();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k) {
      const uint32_t step = k / 4 * kPanelStep + k % 4 * kDeepStep;
      multiply_panels<T, false>(pairs, panel_operand(shared.a(at.stage, group)) + step,
                                panel_operand(shared.b(at.stage, group)) + step, k > 0);
    }
    products_commit();
  };
  const int steps = place.end - place.begin;
  if constexpr (kEarly) multiply_pairs(turn);
  for (int step = 0; step < steps; ++step, turn.next(p.stages)) {
    const int stage = turn.stage, chunk = place.chunk(p, role, step), token = chunk * kChunk;
    const int64_t checkpoint_at = checkpoint_block + (chunk >> p.checkpoint_shift);
    const bool checkpoint = p.ends_window(chunk);
    const auto checkpoint_data = [&] {
      return static_cast<char*>(role.checkpoints) + checkpoint_at * (kPanels * kPanelBytes);
    };

    if constexpr (!kEarly) multiply_pairs(turn);
    products_wait<0>();
    pin(pairs);
    const Gates& gates = shared.gates(stage, set);
    const uint32_t c = panel_operand(shared.c(stage, group));

    float out[kSlices][32];
    const auto read_state = [&] {
      products_begin();
#pragma unroll
      for (int k = 0; k < 4 * kPanels; ++k) {
        const uint32_t a = panel_operand(shared.a(stage, group)) + k / 4 * kPanelStep + k % 4 * kDeepStep;
#pragma unroll
        for (int n = 0; n < kSlices; ++n)
          multiply_panels<T, true>(out[n], a,
                                   panel_operand(rounded) + n * kPanels * kPanelStep + k * kWideStep, k > 0);
      }
      products_commit();
    };
    if constexpr (kEarly) read_state();
    uint32_t packed[4][4];
    float diagonal[2] = {};
    decay_pairs<T>(part, gates, role.reverse, pairs, packed, diagonal);
    if constexpr (!kEarly) read_state();
    products_wait<0>();
#pragma unroll
    for (int n = 0; n < kSlices; ++n) {
      pin(out[n]);
#pragma unroll
      for (int i = 0; i < 32; ++i) out[n][i] *= gates.row[part.row + (i & 2) * 4];
    }
    if constexpr (kSlices == 1)
      if (role.products && checkpoint)
        multiply_checkpoint<T>(part, state, checkpoint_data(), role.products + checkpoint_at * 4);
    products_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int n = 0; n < kSlices; ++n)
        multiply_rows<T, true>(out[n], packed[k], c + n * kPanelStep + k * kWideStep);
    }
    products_commit();

    uint2 factors[4][2];
#pragma unroll
    for (int k = 0; k < 4; ++k) load_factors(part, gates, k, factors[k]);
#pragma unroll
    for (int m = 0; m < kPanels; ++m) {
      uint32_t columns[4][4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        load_columns<T>(part, factors[k], shared.b(stage, group) + m * kPanelBytes, k, columns[k]);
#pragma unroll
      for (int n = 0; n < kSlices; ++n)
#pragma unroll
        for (int i = 0; i < 32; ++i) state[m * kSlices + n][i] *= gates.pass;
      products_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
#pragma unroll
        for (int n = 0; n < kSlices; ++n)
          multiply_rows<T, true>(state[m * kSlices + n], columns[k], c + n * kPanelStep + k * kWideStep);
      }
      products_commit();
      if constexpr (!kEarly) products_wait<1>();
    }
    if constexpr (kEarly) {
      // The next chunk's pairs; after the last chunk its own once more, so that every turn waits alike.
      Turn next = turn;
      if (step + 1 < steps) next.next(p.stages);
      multiply_pairs(next);
      products_wait<kPanels + 1>();
    } else {
      products_wait<1>();
    }
#pragma unroll
    for (int n = 0; n < kSlices; ++n) {
      pin(out[n]);
      if (role.has_dots()) {
        uint32_t extra[16];
        load_panel(part, shared.extra(stage, group) + n * kPanelBytes, extra);
        store_dots<T>(p, role, part, part.head, part.slice + n, place.batch, token, out[n], diagonal, extra,
                      shared.c(stage, group) + n * kPanelBytes);
      }
#pragma unroll
      for (int i = 0; i < 32; ++i) out[n][i] *= gates.out[part.row + (i & 2) * 4];
    }
    if (part.thread == 0) store_wait_read();
    part.sync();  // the last chunk's outputs have left, and all warps have read the state
    if constexpr (kSlices > 1)
      if (role.store) sum_heads<T>(part, group, step > 0, shared, out);
#pragma unroll
    for (int n = 0; n < kSlices; ++n)
      if (kSlices == 1 || group == 0) store_rounded<T>(part, out[n], shared.out(group) + n * kPanelBytes);
    products_wait<kEarly ? 1 : 0>();
#pragma unroll
    for (int m = 0; m < kStates; ++m) pin(state[m]);
    store_state();
    async_fence();
    if constexpr (kSlices == 1)
      if (role.checkpoints && !role.products && checkpoint)
        save_checkpoint<T>(part, state, checkpoint_data());
    part.sync();
    if (part.thread == 0) {
      if (role.store && (kSlices == 1 || group == 0))
#pragma unroll
        for (int n = 0; n < kSlices; ++n)
          store_panel(&role.out, shared.out(group) + n * kPanelBytes, (part.slice + n) * kSlice,
                      part.head / kSlices, token, place.batch);
      store_commit();
      barrier_arrive(shared.empty(stage));
    }
  }
  products_wait<0>();
  if (kSlices > 1 && role.store && group == 1) named_barrier(kTaken, 2 * kGroupThreads);
  if (role.final.data && place.segment == (role.reverse ? 0 : p.segments - 1))
    save_state<Block>(role, part, state_block(role.final), state);
  if (part.thread == 0) store_wait_read();
}

// A warpgroup that only makes the state, chunk by chunk from the end; the factors of columns have what follows in them.
template <class T, class Block>
__device__ void make_state(const Sweep& p, const Role& role, const Place& place, const Shared& shared,
                           Turn& turn) {
  const int group = threadIdx.x / kGroupThreads;
  const Part part(role, place.group * Block::kWarpgroups + group);
  const int set = role.slices > 1 ? 0 : group;
  const int64_t block =
      (static_cast<int64_t>(place.batch) * p.heads + part.head) * role.final.segments + place.segment;
  float state[Block::kStates][32] = {};
  float pass = 1;
  for (int step = 0; step < place.end - place.begin; ++step, turn.next(p.stages)) {
    const int stage = turn.stage;
    barrier_wait(shared.full(stage), turn.parity);
    const Gates& gates = shared.gates(stage, set);
    pass *= gates.pass;
    add_transposed<T, Block>(part, gates, shared.b(stage, group), shared.c(stage, group), false, state);
    part.arrive(shared.empty(stage));
  }
  save_state<Block>(role, part, block, state);
  if (part.thread == 0 && part.slice == 0) p.passes[block] = pass;
}

// Of a thread that feeds, carries the state, or reads, in all not more than threads begin with; zeros: as many as these.
struct Registers {
  int feeds = 0, carries = 0, reads = 0;
};

// A Shape at compile time. Warps of the last warpgroup feed, ahead into the next piece of work.
template <int kPanels_, int kWarpgroups_, int kSlices_, bool kOutputs_>
struct BlockShape {
  static constexpr int kPanels = kPanels_, kWarpgroups = kWarpgroups_, kSlices = kSlices_;
  static constexpr bool kOutputs = kOutputs_;
  static constexpr Shape kShape{kPanels, kWarpgroups, kSlices};
  static constexpr bool kSplit = kOutputs && kShape.split(), kWide = kOutputs && kShape.wide();
  static constexpr bool kTransposed = !kOutputs || kWide;  // the state, in registers
  static constexpr int kStates = kPanels * kSlices, kReaders = kSplit ? kShape.readers() : 0;
  static constexpr int kComputing = (kWarpgroups + kReaders) * kGroupThreads;
  static constexpr int kThreads = kComputing + kGroupThreads;
  static constexpr int kFeeders = kSlices > 1 ? 1 : kWarpgroups;        // warps that feed
  static constexpr int kResident = kWarpgroups * kStates == 1 ? 2 : 1;  // blocks on a multiprocessor
  static constexpr Registers kRegisters = kWide                           ? Registers{40, 176, 120}
                                          : kSplit                        ? Registers{32, 104, 120}
                                          : kWarpgroups == 2 && !kOutputs ? Registers{104, 200, 0}
                                          : kWarpgroups == 2              ? Registers{40, 232, 0}
                                          : kOutputs && kResident == 2    ? Registers{40, 216, 0}
                                                                          : Registers{};
};

template <class T, class Block>
__global__ void __launch_bounds__(Block::kThreads, Block::kResident)
    sweep_kernel(const __grid_constant__ Sweep p) {
  extern __shared__ __align__(1024) char memory[];
  const Shared shared{memory + (-shared_address(memory) & 1023),
                      Layout(Block::kShape, p.stages, Block::kOutputs, p.extra), Block::kShape, p.stages};
  if (threadIdx.x == 0) {
    constexpr int kWarps = kGroupThreads / 32;
    constexpr int kUsers = Block::kSplit     ? kWarps * (Block::kWarpgroups + 1)
                           : Block::kOutputs ? Block::kWarpgroups
                                             : kWarps * Block::kWarpgroups;
    for (int stage = 0; stage < p.stages; ++stage)
      barrier_init(shared.full(stage), Block::kFeeders), barrier_init(shared.empty(stage), kUsers);
    for (int group = 0; group < Block::kWarpgroups; ++group) {
      barrier_init(shared.taken(group), kWarps);
      for (int reader = 0; reader < Block::kReaders; ++reader)
        barrier_init(shared.ready(group, reader), kWarps);
    }
    for (int reader = 0; reader < Block::kReaders; ++reader) barrier_init(shared.extra_full(reader), 1);
    barrier_init_fence();
  }
  __syncthreads();
  Turn turn;
  const auto for_places = [&](const auto& body) {
    for (int block = blockIdx.x; block < p.blocks; block += gridDim.x) {
      const Place place(p, block);
      body(p.roles[place.role], place);
    }
  };
  if (threadIdx.x >= Block::kComputing) {
    if constexpr (Block::kRegisters.feeds > 0) shrink_registers<Block::kRegisters.feeds>();
    const int set = (threadIdx.x - Block::kComputing) / 32;
    if (set < Block::kFeeders)
      for_places([&](const Role& role, const Place& place) {
        if constexpr (Block::kSlices > 1)
          feed_heads<T, Block>(p, role, place, shared, turn);
        else if constexpr (!Block::kOutputs)
          feed_states<T, Block>(p, role, place, shared, turn, set);
        else
          feed<T, Block>(p, role, place, shared, turn, set);
      });
  } else if (threadIdx.x < Block::kWarpgroups * kGroupThreads) {
    if constexpr (Block::kRegisters.carries > 0) grow_registers<Block::kRegisters.carries>();
    for_places([&](const Role& role, const Place& place) {
      if constexpr (Block::kSplit)
        carry<T, Block>(p, role, place, shared, turn);
      else if constexpr (Block::kOutputs)
        compute<T, Block>(p, role, place, shared, turn);
      else
        make_state<T, Block>(p, role, place, shared, turn);
    });
  } else if constexpr (Block::kSplit) {
    if constexpr (Block::kWide)
      shrink_registers<Block::kRegisters.reads>();
    else
      grow_registers<Block::kRegisters.reads>();
    for_places([&](const Role& role, const Place& place) {
      if constexpr (Block::kWide)
        read_wide<T, Block>(p, role, place, shared, turn);
      else
        read<T, Block>(p, role, place, shared, turn);
    });
  }
}

template <class T, class Block>
CudaStatus launch(const Sweep& p, void* stream) {
  const auto kernel = sweep_kernel<T, Block>;
  const int bytes = Layout(p.shape, p.stages, Block::kOutputs, p.extra).bytes;
  if (const auto error = allow_shared(kernel, static_cast<size_t>(bytes))) return status_of(error);
  // Short pieces are dealt out in advance, so that the next one's first chunks are on their way in time.
  const int resident = p.multiprocessors * Block::kResident;
  const int blocks = p.segment_chunks < kShortChunks ? std::min(p.blocks, resident) : p.blocks;
  kernel<<<blocks, Block::kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(p);
  return last_status();
}

template <class T, int kPanels, int kWarpgroups>
CudaStatus launch(const Sweep& p, void* stream) {
  return p.outputs ? launch<T, BlockShape<kPanels, kWarpgroups, 1, true>>(p, stream)
                   : launch<T, BlockShape<kPanels, kWarpgroups, 1, false>>(p, stream);
}

template <class T>
CudaStatus launch(const Sweep& p, void* stream) {
  const Shape& shape = p.shape;
  if (shape.slices == 2) return launch<T, BlockShape<1, 2, 2, true>>(p, stream);
  if (shape.panels == 1)
    return shape.warpgroups == 1 ? launch<T, 1, 1>(p, stream) : launch<T, 1, 2>(p, stream);
  if (shape.panels == 2)
    return shape.warpgroups == 1 ? launch<T, 2, 1>(p, stream) : launch<T, 2, 2>(p, stream);
  return shape.warpgroups == 1 ? launch<T, 4, 1>(p, stream) : launch<T, 4, 2>(p, stream);
}

}  // namespace

CudaStatus launch_sweep(const Sweep& p, void* stream) {
  return p.type == CudaType::bf16 ? launch<bf16>(p, stream) : launch<fp16>(p, stream);
}

}  // namespace weft::kernels::scalar
