// The sweep of the scalar form. A block takes one or two value heads or slices of one; a warp feeds it with chunks of 64
// tokens, each of its warpgroups keeps a [K, 64] state in registers, a 16-bit copy of it in shared memory.
#include <algorithm>

#include "ops/linear_attention/scalar_chunk.cuh"

namespace weft::kernels::scalar {
namespace {

constexpr int kShortChunks = 16;

// A warpgroup that computes outputs.
template <class T, int kPanels, int kWarpgroups>
__device__ void compute(const Sweep& p, const Role& role, const Place& place, const Shared& shared,
                        Turn& turn) {
  const int group = threadIdx.x / kGroupThreads;
  const Part part(role, place.group * kWarpgroups + group);
  const int set = role.slices > 1 ? 0 : group;
  const int64_t head_block = static_cast<int64_t>(place.batch) * p.heads + part.head;
  const int64_t checkpoint_block = (head_block * role.slices + part.slice) * p.num_checkpoints;
  const auto state_block = [&](const States& x) {
    return head_block * x.segments + (x.segments > 1 ? place.segment : 0);
  };
  char* const rounded = shared.state(group, kPanels);
  constexpr int kPanelBytes = kChunk * kPanelRowBytes;

  float state[kPanels][32] = {};
  if (role.initial.data)
    for_state(role, role.initial, part, state_block(role.initial), state,
              [](float from, float& to) { to = from; });
  part.sync();  // a checkpoint of the work before has left
#pragma unroll
  for (int m = 0; m < kPanels; ++m) store_rounded<T>(part, state[m], rounded + m * kPanelBytes);
  async_fence();
  part.sync();

  for (int step = 0; step < place.end - place.begin; ++step, turn.next(p.stages)) {
    const int stage = turn.stage, chunk = place.chunk(role, step), token = chunk * kChunk;
    const bool checkpoint = (chunk + 1) % p.checkpoint_chunks == 0 || chunk == p.chunks - 1;
    const int64_t checkpoint_at = checkpoint_block + chunk / p.checkpoint_chunks;
    const auto checkpoint_data = [&] {
      return static_cast<char*>(role.checkpoints) + checkpoint_at * (kPanels * kPanelBytes);
    };
    if (role.products && checkpoint)
      multiply_checkpoint<T>(part, state, checkpoint_data(), role.products + checkpoint_at * 4);

    barrier_wait(shared.full(stage), turn.parity);
    const Gates& gates = shared.gates(stage, set);
    const uint32_t c = panel_operand(shared.c(stage, group));

    float pairs[32], out[32];
    products_begin();
#pragma unroll
    for (int k = 0; k < 4 * kPanels; ++k)
      multiply_panels<T, false>(
          pairs, panel_operand(shared.a(stage) + k / 4 * kPanelBytes) + k % 4 * kDeepStep,
          panel_operand(shared.b(stage) + k / 4 * kPanelBytes) + k % 4 * kDeepStep, k > 0);
    products_commit();
    // A wide state leaves no registers to do this while the pairs are decayed.
    constexpr bool kEarly = kPanels < 4;
    const auto read_state = [&] {
#pragma unroll
      for (int k = 0; k < 4 * kPanels; ++k)
        multiply_panels<T, true>(out,
                                 panel_operand(shared.a(stage) + k / 4 * kPanelBytes) + k % 4 * kDeepStep,
                                 panel_operand(rounded) + k * kWideStep, k > 0);
      products_commit();
    };
    if constexpr (kEarly) read_state();
    products_wait<kEarly ? 1 : 0>();
    pin(pairs);
    uint32_t packed[4][4];
    float diagonal[2] = {};
    decay_pairs<T>(part, gates, role.reverse, pairs, packed, diagonal);
    if constexpr (!kEarly) products_begin(), read_state();
    products_wait<0>();
    pin(out);
#pragma unroll
    for (int i = 0; i < 32; ++i) out[i] *= gates.row[part.row + (i & 2) * 4];
    products_begin();
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply_rows<T, true>(out, packed[k], c + k * kWideStep);
    products_commit();

    uint2 factors[4][2];
    load_factors(part, gates, factors);
#pragma unroll
    for (int m = 0; m < kPanels; ++m) {
      uint32_t columns[4][4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        load_columns<T>(part, factors, shared.b(stage) + m * kPanelBytes, k, columns[k]);
#pragma unroll
      for (int i = 0; i < 32; ++i) state[m][i] *= gates.pass;
      products_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k) multiply_rows<T, true>(state[m], columns[k], c + k * kWideStep);
      products_commit();
      if constexpr (!kEarly) products_wait<1>();
    }
    products_wait<kEarly ? kPanels : 1>();
    pin(out);
    if (role.dots || role.off_diagonal)
      store_dots<T>(p, role, part, place.batch, token, out, diagonal, shared.extra(stage, group),
                    shared.c(stage, group));
#pragma unroll
    for (int i = 0; i < 32; ++i) out[i] *= gates.out[part.row + (i & 2) * 4];
    if (part.thread == 0) store_wait_read();
    part.sync();  // the last chunk's outputs have left, and all warps have read the state
    store_rounded<T>(part, out, shared.out(group));
    products_wait<0>();
#pragma unroll
    for (int m = 0; m < kPanels; ++m) {
      pin(state[m]);
      store_rounded<T>(part, state[m], rounded + m * kPanelBytes);
    }
    async_fence();
    part.sync();
    if (part.thread == 0) {
      if (role.store)
        store_panel(&role.out, shared.out(group), part.slice * kSlice, part.head, token, place.batch);
      if (role.checkpoints && !role.products && checkpoint)
        store_bytes(checkpoint_data(), rounded, kPanels * kPanelBytes);
      store_commit();
      barrier_arrive(shared.empty(stage));
    }
  }
  if (role.final.data && place.segment == (role.reverse ? 0 : p.segments - 1))
    for_state(role, role.final, part, state_block(role.final), state,
              [](float& to, float from) { to = from; });
  if (part.thread == 0) store_wait_read();
}

// A warpgroup that only moves the state.
template <class T, int kPanels, int kWarpgroups>
__device__ void compute_state(const Sweep& p, const Role& role, const Place& place, const Shared& shared,
                              Turn& turn) {
  const int group = threadIdx.x / kGroupThreads;
  const Part part(role, place.group * kWarpgroups + group);
  const int set = role.slices > 1 ? 0 : group;
  const int64_t block =
      (static_cast<int64_t>(place.batch) * p.heads + part.head) * role.final.segments + place.segment;
  constexpr int kPanelBytes = kChunk * kPanelRowBytes;
  float state[kPanels][32] = {};
  float pass = 1;
  for (int step = 0; step < place.end - place.begin; ++step, turn.next(p.stages)) {
    const int stage = turn.stage;
    barrier_wait(shared.full(stage), turn.parity);
    const Gates& gates = shared.gates(stage, set);
    const uint32_t c = panel_operand(shared.c(stage, group));
    pass *= gates.pass;
    uint2 factors[4][2];
    load_factors(part, gates, factors);
#pragma unroll
    for (int m = 0; m < kPanels; ++m)
#pragma unroll
      for (int i = 0; i < 32; ++i) state[m][i] *= gates.pass;
#pragma unroll
    for (int m = 0; m < kPanels; ++m) {
      uint32_t columns[4][4];
#pragma unroll
      for (int k = 0; k < 4; ++k)
        load_columns<T>(part, factors, shared.b(stage) + m * kPanelBytes, k, columns[k]);
      products_begin();
#pragma unroll
      for (int k = 0; k < 4; ++k) multiply_rows<T, true>(state[m], columns[k], c + k * kWideStep);
      products_commit();
    }
    products_wait<0>();
#pragma unroll
    for (int m = 0; m < kPanels; ++m) pin(state[m]);
    part.sync();
    if (part.thread == 0) barrier_arrive(shared.empty(stage));
  }
  for_state(role, role.final, part, block, state, [](float& to, float from) { to = from; });
  if (part.thread == 0 && part.slice == 0) p.passes[block] = pass;
}

// One more warpgroup, of which one warp feeds, ahead into the next piece of work. Two small blocks share a
// multiprocessor.
template <class T, int kPanels, int kWarpgroups, bool kOutputs>
__global__ void __launch_bounds__((kWarpgroups + 1) * kGroupThreads, kWarpgroups* kPanels == 1 ? 2 : 1)
    sweep_kernel(const __grid_constant__ Sweep p) {
  constexpr bool kMoves = kWarpgroups == 2 || kPanels == 1;  // else a thread has all it can name
  extern __shared__ char memory[];
  const Shared shared{memory + (-shared_address(memory) & 1023),
                      Layout(kPanels, kWarpgroups, p.stages, kOutputs, p.extra), kWarpgroups};
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < p.stages; ++stage)
      barrier_init(shared.full(stage), 1), barrier_init(shared.empty(stage), kWarpgroups);
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
  if (threadIdx.x >= kWarpgroups * kGroupThreads) {
    if constexpr (kMoves) shrink_registers<40>();
    if (threadIdx.x < kWarpgroups * kGroupThreads + 32)
      for_places([&](const Role& role, const Place& place) {
        feed<T, kPanels, kWarpgroups, kOutputs>(p, role, place, shared, turn);
      });
  } else {
    if constexpr (kMoves) grow_registers<kWarpgroups == 2 ? 232 : 216>();
    for_places([&](const Role& role, const Place& place) {
      if constexpr (kOutputs)
        compute<T, kPanels, kWarpgroups>(p, role, place, shared, turn);
      else
        compute_state<T, kPanels, kWarpgroups>(p, role, place, shared, turn);
    });
  }
}

template <class T, int kPanels, int kWarpgroups, bool kOutputs>
CudaStatus launch(const Sweep& p, void* stream) {
  const auto kernel = sweep_kernel<T, kPanels, kWarpgroups, kOutputs>;
  const int bytes = Layout(kPanels, kWarpgroups, p.stages, kOutputs, p.extra).bytes;
  if (const auto error = allow_shared(kernel, static_cast<size_t>(bytes))) return status_of(error);
  // Short pieces are dealt out in advance, so that the next one's first chunks are on their way in time.
  const int resident = p.multiprocessors * (kWarpgroups * kPanels == 1 ? 2 : 1);
  const int blocks = p.segment_chunks < kShortChunks ? std::min(p.blocks, resident) : p.blocks;
  kernel<<<blocks, (kWarpgroups + 1) * kGroupThreads, bytes, static_cast<cudaStream_t>(stream)>>>(p);
  return last_status();
}

template <class T, int kPanels, int kWarpgroups>
CudaStatus launch(const Sweep& p, void* stream) {
  return p.outputs ? launch<T, kPanels, kWarpgroups, true>(p, stream)
                   : launch<T, kPanels, kWarpgroups, false>(p, stream);
}

template <class T>
CudaStatus launch(const Sweep& p, void* stream) {
  if (p.panels == 1) return p.warpgroups == 1 ? launch<T, 1, 1>(p, stream) : launch<T, 1, 2>(p, stream);
  if (p.panels == 2) return p.warpgroups == 1 ? launch<T, 2, 1>(p, stream) : launch<T, 2, 2>(p, stream);
  return launch<T, 4, 1>(p, stream);
}

}  // namespace

CudaStatus launch_sweep(const Sweep& p, void* stream) {
  return p.type == CudaType::bf16 ? launch<bf16>(p, stream) : launch<fp16>(p, stream);
}

}  // namespace weft::kernels::scalar
