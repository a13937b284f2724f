// The sweep of the scalar form, split: warpgroups that carry the state, and readers that compute outputs.
#pragma once

#include "ops/linear_attention/scalar_chunk.cuh"

namespace weft::kernels::scalar {
namespace {

// Adds what a chunk writes to the state, times what the chunk multiplies it with if `decays`.
template <class T, class Block>
__device__ __forceinline__ void add_chunk(const Part& part, const Gates& gates, const char* b, uint32_t c,
                                          bool decays, float (&state)[Block::kPanels][32]) {
  constexpr int kPanels = Block::kPanels;
  if (decays) {
#pragma unroll
    for (int m = 0; m < kPanels; ++m)
#pragma unroll
      for (int i = 0; i < 32; ++i) state[m][i] *= gates.pass;
  }
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint2 factors[2];
    load_factors(part, gates, k, factors);
    uint32_t columns[kPanels][4];
#pragma unroll
    for (int m = 0; m < kPanels; ++m) load_columns<T>(part, factors, b + m * kPanelBytes, k, columns[m]);
    products_begin();
#pragma unroll
    for (int m = 0; m < kPanels; ++m) multiply_rows<T, true>(state[m], columns[m], c + k * kWideStep);
    products_commit();
    products_wait<Block::kOutputs ? 0 : 1>();  // with outputs there are no registers for more
  }
  products_wait<0>();
#pragma unroll
  for (int m = 0; m < kPanels; ++m) pin(state[m]);
}

// A warpgroup that carries the state from chunk to chunk.
template <class T, class Block>
__device__ void carry(const Sweep& p, const Role& role, const Place& place, const Shared& shared,
                      Turn& turn) {
  constexpr int kPanels = Block::kPanels;
  const int group = threadIdx.x / kGroupThreads;
  const Part part(role, place.group * Block::kWarpgroups + group);
  const int set = role.slices > 1 ? 0 : group;
  const int64_t head_block = static_cast<int64_t>(place.batch) * p.heads + part.head;
  const int64_t checkpoint_block = (head_block * role.slices + part.slice) * p.num_checkpoints;
  const auto state_block = [&](const States& x) {
    return head_block * x.segments + (x.segments > 1 ? place.segment : 0);
  };
  char* const rounded = shared.state(group);
  float state[kPanels][32] = {};
  if (role.initial.data) load_state<Block>(role, part, state_block(role.initial), state);

  for (int step = 0; step < place.end - place.begin; ++step, turn.next(p.stages)) {
    const int stage = turn.stage, chunk = place.chunk(p, role, step);
    const bool checkpoint = p.ends_window(chunk);
    const int64_t checkpoint_at = checkpoint_block + (chunk >> p.checkpoint_shift);
    char* const checkpoint_data =
        static_cast<char*>(role.checkpoints) + checkpoint_at * (kPanels * kPanelBytes);
    if (role.products && checkpoint)
      multiply_checkpoint<T>(part, state, checkpoint_data, role.products + checkpoint_at * 4);

    if (turn.count > 0) barrier_wait(shared.taken(group), (turn.count - 1) & 1);
#pragma unroll
    for (int m = 0; m < kPanels; ++m) store_rounded<T>(part, state[m], rounded + m * kPanelBytes);
    async_fence();
    part.arrive(shared.ready(group, turn.count % Block::kReaders));

    barrier_wait(shared.full(stage), turn.parity);
    add_chunk<T, Block>(part, shared.gates(stage, set), shared.b(stage, group),
                        panel_operand(shared.c(stage, group)), true, state);
    part.arrive(shared.empty(stage));
    if (role.checkpoints && !role.products && checkpoint) save_checkpoint<T>(part, state, checkpoint_data);
  }
  if (role.final.data && place.segment == (role.reverse ? 0 : p.segments - 1))
    save_state<Block>(role, part, state_block(role.final), state);
}

// The pairs a_r . b_i of a chunk.
template <class T, int kPanels>
__device__ __forceinline__ void multiply_pairs(const char* a, const char* b, float (&pairs)[32]) {
  products_begin();
#pragma unroll
  for (int k = 0; k < 4 * kPanels; ++k) {
    const uint32_t at = k / 4 * kPanelStep + k % 4 * kDeepStep;
    multiply_panels<T, false>(pairs, panel_operand(a) + at, panel_operand(b) + at, k > 0);
  }
  products_commit();
}
// What rows read of the state.
template <class T, int kPanels>
__device__ __forceinline__ void multiply_state(const char* a, const char* rounded, float (&out)[32]) {
  products_begin();
#pragma unroll
  for (int k = 0; k < 4 * kPanels; ++k)
    multiply_panels<T, true>(out, panel_operand(a) + k / 4 * kPanelStep + k % 4 * kDeepStep,
                             panel_operand(rounded) + k * kWideStep, k > 0);
  products_commit();
}
// Adds the product of the packed pairs and c.
template <class T>
__device__ __forceinline__ void multiply_columns(const uint32_t (&packed)[4][4], const char* c,
                                                 float (&out)[32]) {
  products_begin();
#pragma unroll
  for (int k = 0; k < 4; ++k) multiply_rows<T, true>(out, packed[k], panel_operand(c) + k * kWideStep);
  products_commit();
}

// A warpgroup that computes outputs of every chunk or of every second one, one slice after the other.
template <class T, class Block>
__device__ void read(const Sweep& p, const Role& role, const Place& place, const Shared& shared, Turn& turn) {
  constexpr int kPanels = Block::kPanels, kSlices = Block::kWarpgroups;  // these may be of two heads
  const int reader = threadIdx.x / kGroupThreads - Block::kWarpgroups;
  const Part part(role, place.group * kSlices);
  const bool same_head = Block::kWide || role.slices > 1, dots = role.has_dots();
  const auto head_of = [&](int i) { return part.head + (same_head ? 0 : i); };
  const auto slice_of = [&](int i) { return part.slice + (same_head ? i : 0); };
  // Extra comes in where the outputs leave.
  char* const outs = shared.out(reader);

  for (int step = 0; step < place.end - place.begin; ++step, turn.next(p.stages)) {
    if (turn.count % Block::kReaders != reader) continue;
    const int stage = turn.stage, token = place.chunk(p, role, step) * kChunk;
    const char *const a = shared.a(stage, 0), *const b = shared.b(stage, 0);
    barrier_wait(shared.full(stage), turn.parity);
    uint32_t packed[4][4];
    float diagonal[2] = {};
#pragma unroll 1  // registers are scarce
    for (int i = 0; i < kSlices; ++i) {
      const Gates& gates = shared.gates(stage, same_head ? 0 : i);
      if (i == 0 || !same_head) {
        float pairs[32];
        multiply_pairs<T, kPanels>(a, b, pairs);
        if (!Block::kWide && i == 0) {
          if (part.thread == 0) {
            store_wait_read();  // the outputs before have left
            if (dots) {
              barrier_expect(shared.extra_full(reader), kSlices * kPanelBytes);
#pragma unroll
              for (int j = 0; j < kSlices; ++j)
                copy_panel(outs + j * kPanelBytes, &role.extra, shared.extra_full(reader),
                           slice_of(j) * kSlice, head_of(j) / role.extra_group, token, place.batch);
              barrier_arrive(shared.extra_full(reader));
            }
          }
          part.sync();
        }
        products_wait<0>();
        pin(pairs);
        decay_pairs<T>(part, gates, role.reverse, pairs, packed, diagonal);
      }
      const int head = head_of(i), slice = slice_of(i);
      const char* const c = shared.c(stage, i);
      char* const panel = outs + i * kPanelBytes;
      float out[32];
      barrier_wait(shared.ready(i, reader), turn.count / Block::kReaders & 1);
      multiply_state<T, kPanels>(a, shared.state(i), out);
      products_wait<0>();
      pin(out);
      part.arrive(shared.taken(i));
#pragma unroll
      for (int j = 0; j < 32; ++j) out[j] *= gates.row[part.row + (j & 2) * 4];
      multiply_columns<T>(packed, c, out);
      uint32_t extra[16];
      if (Block::kWide && dots)
        load_rows<T>(part, role.extra_rows, role.width, p.tokens, place.batch, token, head / role.extra_group,
                     slice, extra);
      products_wait<0>();
      pin(out);
      if (dots) {
        if constexpr (!Block::kWide) {
          if (i == 0) barrier_wait(shared.extra_full(reader), turn.extra_parity);
          load_panel(part, panel, extra);
        }
        store_dots<T>(p, role, part, head, slice, place.batch, token, out, diagonal, extra, c);
      }
#pragma unroll
      for (int j = 0; j < 32; ++j) out[j] *= gates.out[part.row + (j & 2) * 4];
      if constexpr (Block::kWide) {
        if (role.store) store_outputs<T>(p, role, part, head, slice, place.batch, token, out);
      } else {
        __syncwarp();  // all lanes have their part of extra
        store_rounded<T>(part, out, panel);
      }
    }
    if (dots) turn.extra_parity ^= 1;
    part.arrive(shared.empty(stage));
    if constexpr (!Block::kWide) {
      async_fence();
      part.sync();
      if (part.thread == 0 && role.store) {
#pragma unroll
        for (int i = 0; i < kSlices; ++i)
          store_panel(&role.out, outs + i * kPanelBytes, slice_of(i) * kSlice, head_of(i), token,
                      place.batch);
        store_commit();
      }
    }
  }
  if (part.thread == 0) store_wait_read();
}

}  // namespace
}  // namespace weft::kernels::scalar
