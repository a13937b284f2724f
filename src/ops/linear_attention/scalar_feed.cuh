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
  __device__ int chunk(const Role& role, int step) const {
    return role.reverse ? end - 1 - step : begin + step;
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

template <class T>
__device__ void fill_gates(const Sweep& p, bool reverse, const TokenPair& x, Gates& gates) {
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
  gates.columns[lane] =
      split<T>((reverse ? in[0] : out[0]) * weight.x, (reverse ? in[1] : out[1]) * weight.y);
  if (lane == 0) gates.pass = fast_exp2(total);
}

// Shared memory, as Layout has it.
struct Shared {
  char* base;
  Layout layout;
  int warpgroups;
  __device__ char* a(int stage) const { return base + stage * layout.stage + layout.a; }
  __device__ char* b(int stage) const { return base + stage * layout.stage + layout.b; }
  __device__ char* c(int stage, int group) const {
    return base + stage * layout.stage + layout.c + group * layout.panel_bytes;
  }
  __device__ char* extra(int stage, int group) const {
    return base + stage * layout.stage + layout.extra + group * layout.panel_bytes;
  }
  __device__ char* state(int group, int panels) const {
    return base + layout.state + group * panels * layout.panel_bytes;
  }
  __device__ char* out(int group) const { return base + layout.out + group * layout.panel_bytes; }
  __device__ Gates& gates(int stage, int set) const {
    return reinterpret_cast<Gates*>(base + layout.gates)[stage * warpgroups + set];
  }
  __device__ uint64_t* full(int stage) const {
    return reinterpret_cast<uint64_t*>(base + layout.barriers) + 2 * stage;
  }
  __device__ uint64_t* empty(int stage) const { return full(stage) + 1; }
};

// The stage of a step, and the parity of how often it has been used before.
struct Turn {
  int stage = 0, parity = 0;
  bool fresh = true;  // it has not been used
  __device__ void next(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1, fresh = false;
  }
};

// The feeding warp: copies and gates of every chunk, as stages become empty.
template <class T, int kPanels, int kWarpgroups, bool kOutputs>
__device__ void feed(const Sweep& p, const Role& role, const Place& place, const Shared& shared, Turn& turn) {
  const int lane = threadIdx.x % 32, panel = shared.layout.panel_bytes;
  const int first = place.group * kWarpgroups, head = first / role.slices;
  const int sets = role.slices > 1 ? 1 : kWarpgroups;  // slices of one head have the same gates
  const bool extra = kOutputs && (role.dots || role.off_diagonal);
  const int bytes = ((kOutputs ? 2 : 1) * kPanels + (extra ? 2 : 1) * kWarpgroups) * panel;
  for (int step = 0; step < place.end - place.begin; ++step, turn.next(p.stages)) {
    const int stage = turn.stage, token = place.chunk(role, step) * kChunk;
    TokenPair x[kWarpgroups];
#pragma unroll
    for (int set = 0; set < kWarpgroups; ++set)
      if (set < sets) x[set] = load_tokens(p, place.batch, head + set, token + 2 * lane);
    if (!turn.fresh) barrier_wait(shared.empty(stage), turn.parity ^ 1);
    uint64_t* full = shared.full(stage);
    if (lane == 0) {
      barrier_expect(full, bytes);
#pragma unroll
      for (int i = 0; i < kPanels; ++i) {
        if (kOutputs)
          copy_panel(shared.a(stage) + i * panel, &role.a, full, i * kPanelColumns, head / role.a_group,
                     token, place.batch);
        copy_panel(shared.b(stage) + i * panel, &role.b, full, i * kPanelColumns, head / role.b_group, token,
                   place.batch);
      }
#pragma unroll
      for (int i = 0; i < kWarpgroups; ++i) {
        const int column = (first + i) % role.slices * kSlice, of = (first + i) / role.slices;
        copy_panel(shared.c(stage, i), &role.c, full, column, of / role.c_group, token, place.batch);
        if (extra)
          copy_panel(shared.extra(stage, i), &role.extra, full, column, of / role.extra_group, token,
                     place.batch);
      }
    }
#pragma unroll
    for (int set = 0; set < kWarpgroups; ++set)
      if (set < sets) fill_gates<T>(p, role.reverse, x[set], shared.gates(stage, set));
    __syncwarp();
    if (lane == 0) barrier_arrive(full);
  }
}

}  // namespace
}  // namespace weft::kernels::scalar
