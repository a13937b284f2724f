// The sweep of the scalar form, split: warpgroups that carry the state, and readers that compute outputs.
#pragma once

#include "ops/linear_attention/scalar_chunk.cuh"

namespace weft::kernels::scalar {
namespace {

// Adds what a chunk writes to the state, times what the chunk multiplies it with.
template <class T, class Block>
__device__ __forceinline__ void add_chunk(const Part& part, const Gates& gates, const char* b, uint32_t c,
                                          float (&state)[Block::kPanels][32]) {
  constexpr int kPanels = Block::kPanels;
#pragma unroll
  for (int m = 0; m < kPanels; ++m)
#pragma unroll
    for (int i = 0; i < 32; ++i) state[m][i] *= gates.pass;
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
    products_wait<0>();  // there are no registers for more
  }
  products_wait<0>();
#pragma unroll
  for (int m = 0; m < kPanels; ++m) pin(state[m]);
}

// The same to the transposed state: what is multiplied with the factors of tokens is one operand for all its columns.
template <class T, class Block>
__device__ __forceinline__ void add_transposed(const Part& part, const Gates& gates, const char* b,
                                               const char* c, bool decays,
                                               float (&state)[Block::kPanels][32]) {
  constexpr int kPanels = Block::kPanels;
  if (decays && gates.pass != 1) {
#pragma unroll
    for (int m = 0; m < kPanels; ++m)
#pragma unroll
      for (int i = 0; i < 32; ++i) state[m][i] *= gates.pass;
  }
  uint32_t columns[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    uint2 factors[2];
    load_factors(part, gates, k, factors);
    load_columns<T>(part, factors, c, k, columns[k]);
    products_begin();
#pragma unroll
    for (int m = 0; m < kPanels; ++m)
      multiply_rows<T, true>(state[m], columns[k], panel_operand(b + m * kPanelBytes) + k * kWideStep);
    products_commit();
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
    const Gates& gates = shared.gates(stage, set);
    const char *const b = shared.b(stage, group), *const c = shared.c(stage, group);
    if constexpr (Block::kTransposed)
      add_transposed<T, Block>(part, gates, b, c, true, state);
    else
      add_chunk<T, Block>(part, gates, b, panel_operand(c), state);
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
// What rows read of the rounded state.
template <class T, class Block>
__device__ __forceinline__ void multiply_state(const char* a, const char* rounded, float (&out)[32]) {
  const uint32_t state = Block::kTransposed ? here(panel_operand(rounded)) : panel_operand(rounded);
  products_begin();
#pragma unroll
  for (int k = 0; k < 4 * Block::kPanels; ++k) {
    const uint32_t at = k / 4 * kPanelStep + k % 4 * kDeepStep;
    multiply_panels<T, !Block::kTransposed>(out, panel_operand(a) + at,
                                            state + (Block::kTransposed ? at : k * kWideStep), k > 0);
  }
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

// Two warpgroups of readers, each with every second chunk, one slice after the other.
template <class T, class Block>
__device__ void read(const Sweep& p, const Role& role, const Place& place, const Shared& shared, Turn& turn) {
  constexpr int kPanels = Block::kPanels, kSlices = Block::kWarpgroups;  // these may be of two heads
  const int reader = threadIdx.x / kGroupThreads - Block::kWarpgroups;
  const Part part(role, place.group * kSlices);
  const bool same_head = role.slices > 1, dots = role.has_dots();
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
        if (i == 0) {
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
      multiply_state<T, Block>(a, shared.state(i), out);
      products_wait<0>();
      pin(out);
      part.arrive(shared.taken(i));
      scale_rows(part, gates.row, out);
      multiply_columns<T>(packed, c, out);
      products_wait<0>();
      pin(out);
      if (dots) {
        uint32_t extra[16];
        if (i == 0) barrier_wait(shared.extra_full(reader), turn.extra_parity);
        load_panel(part, panel, extra);
        store_dots<T>(p, role, part, head, slice, place.batch, token, out, diagonal, extra, c);
      }
      scale_rows(part, gates.out, out);
      __syncwarp();  // all lanes have their part of extra
      store_rounded<T>(part, out, panel);
    }
    if (dots) turn.extra_parity ^= 1;
    part.arrive(shared.empty(stage));
    async_fence();
    part.sync();
    if (part.thread == 0 && role.store) {
#pragma unroll
      for (int i = 0; i < kSlices; ++i)
        store_panel(&role.out, outs + i * kPanelBytes, slice_of(i) * kSlice, head_of(i), token, place.batch);
      store_commit();
    }
  }
  if (part.thread == 0) store_wait_read();
}

// One warpgroup that reads for two slices of a head: the products of one run beside the arithmetic of the other.
template <class T, class Block>
__device__ void read_wide(const Sweep& p, const Role& role, const Place& place, const Shared& shared,
                          Turn& turn) {
  constexpr int kPanels = Block::kPanels, kSlices = Block::kWarpgroups;
  const Part part(role, place.group * kSlices);
  const bool dots = role.has_dots();
  for (int step = 0; step < place.end - place.begin; ++step, turn.next(p.stages)) {
    const int stage = turn.stage, token = place.chunk(p, role, step) * kChunk;
    const char* const a = shared.a(stage, 0);
    const Gates& gates = shared.gates(stage, 0);
    float pairs[32], out[kSlices][32];
    uint32_t packed[4][4], extra[16];
    float diagonal[2] = {};
    const auto load_extra = [&](int i) {
      if (dots)
        load_rows<T>(part, role.extra_rows, role.width, p.tokens, place.batch, token,
                     part.head / role.extra_group, part.slice + i, extra);
    };
    const auto read_state = [&](int i) {
      barrier_wait(shared.ready(i, 0), turn.count & 1);
      multiply_state<T, Block>(a, shared.state(i), out[i]);
    };
    barrier_wait(shared.full(stage), turn.parity);
    multiply_pairs<T, kPanels>(a, shared.b(stage, 0), pairs);
    read_state(0);
    products_wait<1>();
    pin(pairs);
    decay_pairs<T>(part, gates, role.reverse, pairs, packed, diagonal);
    load_extra(0);
#pragma unroll
    for (int i = 0; i < kSlices; ++i) {
      products_wait<0>();
      pin(out[i]);
      part.arrive(shared.taken(i));
      scale_rows(part, gates.row, out[i]);
      multiply_columns<T>(packed, shared.c(stage, i), out[i]);
      if (i + 1 < kSlices) {
        read_state(i + 1);
        products_wait<1>();
      } else {
        products_wait<0>();
      }
      pin(out[i]);
      if (dots)
        store_dots<T>(p, role, part, part.head, part.slice + i, place.batch, token, out[i], diagonal, extra,
                      shared.c(stage, i));
      if (i + 1 < kSlices) load_extra(i + 1);
      scale_rows(part, gates.out, out[i]);
      if (role.store) store_outputs<T>(p, role, part, part.head, part.slice + i, place.batch, token, out[i]);
    }
    part.arrive(shared.empty(stage));
  }
}

}  // namespace
}  // namespace weft::kernels::scalar
