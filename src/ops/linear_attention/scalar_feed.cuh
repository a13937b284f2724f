// The sweep of the scalar form: which work a block does, its shared memory, and the warp that feeds it.
#pragma once

#include "ops/cuda/hopper.cuh"
#include "ops/linear_attention/kernel_cuda_scalar.cuh"

namespace weft::kernels::scalar {
namespace {

constexpr int kGroupThreads = 128;
// A decay of less than e^-120 is zero in fp32; so bounded, sums of logarithms stay finite.
constexpr float kSmallestLog = -120;

// Which part of the work a block does.
struct Place {
  int role, group, batch, segment, begin, end;  // chunks [begin, end)
  __device__ Place(const Sweep& p, int block) {
    const auto blocks = [&](int r) { return p.roles[r].groups * p.batch * p.segments; };
    role = 0;
    if (p.interleaved && block < 2 * blocks(0)) {
      role = block % 2, block /= 2;
    } else {
      while (block >= blocks(role)) block -= blocks(role++);
    }
    group = block % p.roles[role].groups, block /= p.roles[role].groups;
    batch = block % p.batch, segment = block / p.batch + p.first_segment;
    begin = segment * p.segment_chunks;
    end = min(begin + p.segment_chunks, p.chunks);
  }
  // Without outputs from the other end, so that a sweep with outputs finds its first chunks in the second-level cache.
  __device__ int chunk(const Sweep& p, const Role& role, int step) const {
    return role.reverse == p.outputs ? end - 1 - step : begin + step;
  }
};

__device__ __forceinline__ float load(const CudaRows& x, int batch, int token, int head) {
  const int64_t at = batch * x.batch + token * x.token + head * x.head;
  if (x.type == CudaType::fp32) return static_cast<const float*>(x.data)[at];
  if (x.type == CudaType::bf16) return to_float(static_cast<const bf16*>(x.data)[at]);
  return to_float(static_cast<const fp16*>(x.data)[at]);
}

// What a lane of the feeding warp knows of its two tokens of a chunk.
struct TokenPair {
  float log_decay[2], write[2];
  int start[2];
};

__device__ TokenPair load_tokens(const Sweep& p, int batch, int head, int token) {
  TokenPair x;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const bool valid = token + i < p.tokens;
    x.log_decay[i] = valid && p.log_decay.data ? load(p.log_decay, batch, token + i, head) : 0;
    x.write[i] = valid && p.write.data ? load(p.write, batch, token + i, head) : 1;
    x.start[i] = valid && p.starts ? p.starts[static_cast<int64_t>(batch) * p.tokens + token + i] : 0;
  }
  return x;
}

// Two factors as 16-bit numbers, and what is missing, as 16-bit numbers too.
template <class T>
__device__ __forceinline__ uint2 split(float low, float high) {
  const uint32_t coarse = pack<T>(low, high);
  const float2 x = unpack<T>(coarse);
  return {coarse, pack<T>(low - x.x, high - x.y)};
}

// `behind`: what the state is multiplied with after the chunk. Returns what it is in the chunk.
template <class T>
__device__ float fill_gates(const Sweep& p, bool reverse, const TokenPair& x, float behind, Gates& gates) {
  const int lane = threadIdx.x % 32;
  float log_decay[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)  // what a document start drops has decayed to zero
    log_decay[i] = (x.start[i] ? kSmallestLog : fmaxf(x.log_decay[i], kSmallestLog)) * kLog2e;
  const float own = log_decay[0] + log_decay[1];
  float sum = own;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const float other = __shfl_up_sync(0xffffffff, sum, step);
    if (lane >= step) sum += other;
  }
  const float total = __shfl_sync(0xffffffff, sum, 31);
  sum -= own;
  float exponent[2], in[2], out[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    sum += log_decay[i];
    exponent[i] = reverse ? -sum : sum;
    in[i] = fast_exp2(sum), out[i] = fast_exp2(total - sum);
  }
  const float2 write = {x.write[0], x.write[1]}, scale = {p.scale, p.scale};
  const float2 weight = reverse ? scale : write;
  gates.pairs[lane] = {exponent[0], exponent[1], weight.x, weight.y};
  reinterpret_cast<float2*>(gates.row)[lane] = reverse ? float2{out[0], out[1]} : float2{in[0], in[1]};
  reinterpret_cast<float2*>(gates.out)[lane] = reverse ? write : scale;
  gates.columns[lane] = split<T>((reverse ? in[0] : out[0]) * weight.x * behind,
                                 (reverse ? in[1] : out[1]) * weight.y * behind);
  const float pass = fast_exp2(total);
  if (lane == 0) gates.pass = pass;
  return pass;
}

// Shared memory, as Layout has it.
struct Shared {
  char* base;
  Layout layout;
  Shape shape;
  int stages;
  __device__ char* panel(int stage, int part, int index) const {
    return base + stage * layout.stage + part + index * layout.panel_bytes;
  }
  __device__ int own(int group) const { return shape.slices > 1 ? group : 0; }
  __device__ char* a(int stage, int group) const { return panel(stage, layout.a, own(group) * shape.panels); }
  __device__ char* b(int stage, int group) const { return panel(stage, layout.b, own(group) * shape.panels); }
  __device__ char* c(int stage, int group) const { return panel(stage, layout.c, group - own(group)); }
  __device__ char* extra(int stage, int group) const {
    return panel(stage, layout.extra, group - own(group));
  }
  __device__ char* state(int group) const {
    return panel(0, layout.state, group * shape.slices * shape.panels);
  }
  // Of a reader, or of a warpgroup that does all.
  __device__ char* out(int group) const {
    return panel(0, layout.out,
                 group * (shape.slices > 1 ? shape.slices
                          : shape.split()  ? shape.warpgroups
                                           : 1));
  }
  __device__ Gates& gates(int stage, int set) const {
    return reinterpret_cast<Gates*>(base + layout.gates)[stage * layout.gate_sets + set];
  }
  __device__ uint64_t* full(int stage) const {
    return reinterpret_cast<uint64_t*>(base + layout.barriers) + 2 * stage;
  }
  __device__ uint64_t* empty(int stage) const { return full(stage) + 1; }
  // The rounded state of a warpgroup has been read, and is there for a reader.
  __device__ uint64_t* taken(int group) const { return full(stages) + group; }
  __device__ uint64_t* ready(int group, int reader) const {
    return taken(shape.warpgroups) + group * shape.readers() + reader;
  }
  // Extra is there, in the panels of a reader's outputs.
  __device__ uint64_t* extra_full(int reader) const { return ready(shape.warpgroups, reader); }
};

// The stage of a step, and the parity of how often it has been used before.
struct Turn {
  int stage = 0, parity = 0;
  bool fresh = true;     // it has not been used
  uint32_t count = 0;    // of steps before
  int extra_parity = 0;  // of how often a reader has had extra before
  __device__ void next(int stages) {
    ++count;
    if (++stage == stages) stage = 0, parity ^= 1, fresh = false;
  }
};

// The feeding warps: copies and gates of every chunk, as stages become empty. Each has the gates of one warpgroup's head, the
// first of them also copies.
template <class T, class Block>
__device__ void feed(const Sweep& p, const Role& role, const Place& place, const Shared& shared, Turn& turn,
                     int set) {
  constexpr int kPanels = Block::kPanels, kWarpgroups = Block::kWarpgroups, kSlices = Block::kSlices;
  constexpr int kRows = kSlices > 1 ? kWarpgroups : 1, kColumns = kSlices > 1 ? kSlices : kWarpgroups;
  const int lane = threadIdx.x % 32, bytes_of_panel = shared.layout.panel_bytes;
  const int first = place.group * kWarpgroups * kSlices, head = first / role.slices;
  const bool idle = kSlices == 1 && role.slices > 1 && set > 0;  // slices of one head have the same gates
  const bool extra = role.has_dots(), copies_extra = extra && !Block::kSplit;
  const int bytes = (2 * kPanels * kRows + (copies_extra ? 2 : 1) * kColumns) * bytes_of_panel;
  const int steps = place.end - place.begin;
  const auto token_of = [&](int step) { return place.chunk(p, role, step) * kChunk; };
  const auto load_step = [&](int step) {
    return load_tokens(p, place.batch, head + set, token_of(step) + 2 * lane);
  };
  TokenPair next{};
  if (!idle) next = load_step(0);
  for (int step = 0; step < steps; ++step, turn.next(p.stages)) {
    const int stage = turn.stage, token = token_of(step);
    const TokenPair x = next;
    if (!turn.fresh) barrier_wait(shared.empty(stage), turn.parity ^ 1);
    uint64_t* full = shared.full(stage);
    if (set == 0 && lane == 0) {
      barrier_expect(full, bytes);
      const auto copy = [&](char* to, const CUtensorMap& map, int from_column, int from_head) {
        copy_panel(to, &map, full, from_column, from_head, token, place.batch);
      };
#pragma unroll
      for (int i = 0; i < kRows * kPanels; ++i) {
        const int of = head + i / kPanels, from = i % kPanels * kPanelColumns;
        copy(shared.panel(stage, shared.layout.a, i), role.a, from, of / role.a_group);
        copy(shared.panel(stage, shared.layout.b, i), role.b, from, of / role.b_group);
      }
#pragma unroll
      for (int i = 0; i < kColumns; ++i) {
        const int column = (first + i) % role.slices * kSlice, of = (first + i) / role.slices;
        copy(shared.panel(stage, shared.layout.c, i), role.c, column, of / role.c_group);
        if (copies_extra)
          copy(shared.panel(stage, shared.layout.extra, i), role.extra, column, of / role.extra_group);
        else if (extra)
          prefetch_panel(&role.extra, column, of / role.extra_group, token, place.batch);
      }
    }
    if (!idle) {
      if (step + 1 < steps) next = load_step(step + 1);
      fill_gates<T>(p, role.reverse, x, 1, shared.gates(stage, set));
    }
    __syncwarp();
    if (lane == 0) barrier_arrive(full);
  }
}

// The same without outputs, whose chunks are short: the gates of several are on their way.
template <class T, class Block>
__device__ void feed_states(const Sweep& p, const Role& role, const Place& place, const Shared& shared,
                            Turn& turn, int set) {
  constexpr int kPanels = Block::kPanels, kColumns = Block::kWarpgroups, kAhead = 4;
  const int lane = threadIdx.x % 32, first = place.group * kColumns, head = first / role.slices;
  const bool idle = role.slices > 1 && set > 0;  // slices of one head have the same gates
  const int steps = place.end - place.begin;
  const auto token_of = [&](int step) { return place.chunk(p, role, step) * kChunk; };
  TokenPair gates[kAhead] = {};
  const auto load_step = [&](int i, int step) {
    if (!idle && step < steps) gates[i] = load_tokens(p, place.batch, head + set, token_of(step) + 2 * lane);
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) load_step(i, i);
  float behind = 1;  // from the end on, what the chunks so far multiply the state with
  for (int ahead = 0; ahead < steps; ahead += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i, turn.next(p.stages)) {
      const int step = ahead + i, stage = turn.stage, token = token_of(step);
      if (step == steps) return;
      const TokenPair x = gates[i];
      if (!turn.fresh) barrier_wait(shared.empty(stage), turn.parity ^ 1);
      uint64_t* const full = shared.full(stage);
      if (set == 0 && lane == 0) {
        barrier_expect(full, (kPanels + kColumns) * shared.layout.panel_bytes);
#pragma unroll
        for (int j = 0; j < kPanels; ++j)
          copy_panel(shared.panel(stage, shared.layout.b, j), &role.b, full, j * kPanelColumns,
                     head / role.b_group, token, place.batch);
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          copy_panel(shared.panel(stage, shared.layout.c, j), &role.c, full,
                     (first + j) % role.slices * kSlice, (first + j) / role.slices / role.c_group, token,
                     place.batch);
      }
      load_step(i, step + kAhead);
      if (!idle) behind *= fill_gates<T>(p, role.reverse, x, behind, shared.gates(stage, set));
      __syncwarp();
      if (lane == 0) barrier_arrive(full);
    }
  }
}

// The same by one warp for two heads that share c. Their blocks have two stages only: gates that are loaded behind the
// copies would come late.
template <class T, class Block>
__device__ void feed_heads(const Sweep& p, const Role& role, const Place& place, const Shared& shared,
                           Turn& turn) {
  constexpr int kPanels = Block::kPanels, kHeads = Block::kWarpgroups, kSlices = Block::kSlices;
  const int lane = threadIdx.x % 32;
  const int first = place.group * kHeads * kSlices, head = first / role.slices;
  const bool extra = role.has_dots();
  const int bytes = (2 * kPanels * kHeads + (extra ? 2 : 1) * kSlices) * shared.layout.panel_bytes;
  int column[kSlices], c_head[kSlices], extra_head[kSlices];
#pragma unroll
  for (int i = 0; i < kSlices; ++i) {
    column[i] = (first + i) % role.slices * kSlice;
    c_head[i] = (first + i) / role.slices / role.c_group;
    extra_head[i] = (first + i) / role.slices / role.extra_group;
  }
  for (int step = 0; step < place.end - place.begin; ++step, turn.next(p.stages)) {
    const int stage = turn.stage, token = place.chunk(p, role, step) * kChunk;
    TokenPair x[kHeads];
#pragma unroll
    for (int set = 0; set < kHeads; ++set) x[set] = load_tokens(p, place.batch, head + set, token + 2 * lane);
    if (!turn.fresh) barrier_wait(shared.empty(stage), turn.parity ^ 1);
    uint64_t* full = shared.full(stage);
    if (lane == 0) {
      barrier_expect(full, bytes);
      const auto copy = [&](char* to, const CUtensorMap& map, int from_column, int from_head) {
        copy_panel(to, &map, full, from_column, from_head, token, place.batch);
      };
#pragma unroll
      for (int i = 0; i < kHeads * kPanels; ++i) {
        const int of = head + i / kPanels, from = i % kPanels * kPanelColumns;
        copy(shared.panel(stage, shared.layout.a, i), role.a, from, of / role.a_group);
        copy(shared.panel(stage, shared.layout.b, i), role.b, from, of / role.b_group);
      }
#pragma unroll
      for (int i = 0; i < kSlices; ++i) {
        copy(shared.panel(stage, shared.layout.c, i), role.c, column[i], c_head[i]);
        if (extra) copy(shared.panel(stage, shared.layout.extra, i), role.extra, column[i], extra_head[i]);
      }
    }
#pragma unroll
    for (int set = 0; set < kHeads; ++set)
      fill_gates<T>(p, role.reverse, x[set], 1, shared.gates(stage, set));
    __syncwarp();
    if (lane == 0) barrier_arrive(full);
  }
}

}  // namespace
}  // namespace weft::kernels::scalar
