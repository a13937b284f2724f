// Newton's method along time, channels in lanes. Within a chunk the cell sees all tokens at once, as one long row;
// only the linear recurrence goes token by token.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rnn/kernel_cpu_parallel.cc"
#include "ops/simd/targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
//
#include "ops/rnn/cell_rows-inl.h"
#include "ops/rnn/kernel_parallel.h"
#include "ops/rnn/task-inl.h"
#include "ops/simd/aligned.h"

#include <limits>

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {
namespace {

// One sequence, `width` channels from `first`; chunks of `length` tokens.
struct Channels {
  int64_t sequence, first, width, length;

  Channels(const RnnParallelProblem& p, int64_t task) {
    const int64_t blocks = rnn_parallel_blocks(p.channels);
    sequence = task / blocks;
    first = task % blocks * kParallelChannels;
    width = p.channels - first < kParallelChannels ? p.channels - first : kParallelChannels;
    length = kParallelChunk / width;
    if (length > p.tokens) length = p.tokens;
  }
  // Row of a tensor [B, T, rows, E], and of [rows, B, E].
  int64_t at(const RnnParallelProblem& p, int64_t t, int64_t rows, int64_t row) const {
    return ((sequence * p.tokens + t) * rows + row) * p.channels + first;
  }
  int64_t state_at(const RnnParallelProblem& p, int64_t s) const {
    return (s * p.batch + sequence) * p.channels + first;
  }
  bool starts(const RnnParallelProblem& p, int64_t t) const {
    return p.starts && p.starts[sequence * p.tokens + t];
  }
};

// `count` rows of [tokens][width] floats, one behind the other.
struct Rows {
  float* row[kMostRnnRows];
  Rows(float*& memory, int64_t count, int64_t size) {
    set_rows(row, count, memory, size);
    memory += count * size;
  }
  operator float* const*() const { return row; }
  operator const float* const*() const { return row; }
};

// What every chunk needs; the memory is used from task to task.
struct Chunk {
  int64_t size;  // of a row
  Rows gates, saved, parameters, before, value, jacobian;
  Chunk(const RnnParallelProblem& p, int64_t row_size, float*& memory)
      : size(row_size),
        gates(memory, p.gates, size),
        saved(memory, p.gates, size),
        parameters(memory, p.parameters, size),
        before(memory, p.states, size),
        value(memory, p.states, size),
        jacobian(memory, p.states * p.states, size) {}

  static int64_t floats(const RnnParallelProblem& p, int64_t size) {
    return (2 * p.gates + p.parameters + 2 * p.states + p.states * p.states) * size;
  }
  ops::CellStep step(int64_t n, float* const* after) const {
    return {n, gates, before, parameters, saved, after, jacobian};
  }
};

void load_gates(const RnnParallelProblem& p, const Channels& c, int64_t t, int64_t tokens,
                const Chunk& chunk) {
  for (int64_t j = 0; j < p.gates; ++j) {
    const float* const bias = p.bias ? p.bias + j * p.channels + c.first : nullptr;
    for (int64_t i = 0; i < tokens; ++i) {
      const float* const wx = p.wx + c.at(p, t + i, p.gates, j);
      float* const to = chunk.gates.row[j] + i * c.width;
      if (bias)
        for (int64_t k = 0; k < c.width; ++k) to[k] = wx[k] + bias[k];
      else
        copy_row(to, wx, c.width);
    }
  }
}

void load_parameters(const RnnParallelProblem& p, const Channels& c, const Chunk& chunk) {
  for (int64_t j = 0; j < p.parameters; ++j)
    for (int64_t i = 0; i < c.length; ++i)
      copy_row(chunk.parameters.row[j] + i * c.width, p.parameter + j * p.channels + c.first, c.width);
}

void copy_or_zero(float* to, const float* from, int64_t count) {
  if (from)
    copy_row(to, from, count);
  else
    zero_row(to, count);
}

// State s before the first token of all, or null when it is zero.
const float* initial_of(const RnnParallelProblem& p, const Channels& c, int64_t s) {
  return p.initial && !c.starts(p, 0) ? p.initial + c.state_at(p, s) : nullptr;
}

// before_t = states_{t-1}, that before the chunk from `carried`; zeros where a document begins.
void shift(const RnnParallelProblem& p, const Channels& c, int64_t t, int64_t tokens,
           const float* const* states, const float* carried, const Chunk& chunk) {
  for (int64_t s = 0; s < p.states; ++s) {
    float* const to = chunk.before.row[s];
    copy_or_zero(to, t ? carried + s * c.width : initial_of(p, c, s), c.width);
    copy_row(to + c.width, states[s], (tokens - 1) * c.width);
    for (int64_t i = 0; i < tokens; ++i)
      if (c.starts(p, t + i)) zero_row(to + i * c.width, c.width);
  }
}

// out = J d for one token, or J' d
template <int kStates, bool kTransposed>
HWY_INLINE void apply(const Chunk& chunk, int64_t at, int64_t width, const float* HWY_RESTRICT d,
                      float* HWY_RESTRICT out) {
  const float* HWY_RESTRICT const j0 = chunk.jacobian.row[0] + at;
  if (kStates == 1) {
    for (int64_t k = 0; k < width; ++k) out[k] = j0[k] * d[k];
    return;
  }
  const float* HWY_RESTRICT const j1 = chunk.jacobian.row[kTransposed ? 2 : 1] + at;
  const float* HWY_RESTRICT const j2 = chunk.jacobian.row[kTransposed ? 1 : 2] + at;
  const float* HWY_RESTRICT const j3 = chunk.jacobian.row[3] + at;
  for (int64_t k = 0; k < width; ++k) {
    const float d0 = d[k], d1 = d[width + k];
    out[k] = j0[k] * d0 + j1[k] * d1;
    out[width + k] = j2[k] * d0 + j3[k] * d1;
  }
}

// states_t += d_t,  d_t = J_t d_{t-1} + value_t - states_t, from d before the chunk
template <int kStates>
void update(const RnnParallelProblem& p, const Channels& c, int64_t t, int64_t tokens, const Chunk& chunk,
            float* const* states, float* d) {
  float moved[kStates * kParallelChannels];
  for (int64_t i = 0; i < tokens; ++i) {
    const int64_t at = i * c.width;
    if (c.starts(p, t + i)) zero_row(d, kStates * c.width);
    apply<kStates, false>(chunk, at, c.width, d, moved);
    for (int s = 0; s < kStates; ++s) {
      const float* HWY_RESTRICT const value = chunk.value.row[s] + at;
      float* HWY_RESTRICT const state = states[s] + at;
      float* HWY_RESTRICT const step = d + s * c.width;
      for (int64_t k = 0; k < c.width; ++k) {
        step[k] = moved[s * c.width + k] + (value[k] - state[k]);
        state[k] += step[k];
      }
    }
  }
}

struct LargestDifference {
  const float *a, *b;
  V* worst;
  template <class At>
  HWY_INLINE void operator()(const At& at) const {
    const D d;
    const V difference = hn::Abs(hn::Sub(at.load(a), at.load(b)));
    const V infinite = hn::Set(d, std::numeric_limits<float>::infinity());
    *worst = hn::Max(*worst, hn::IfThenElse(hn::Lt(difference, infinite), difference, infinite));  // NaN too
  }
};

template <int kStates>
float residual(const Channels& c, int64_t tokens, const Chunk& chunk, float* const* states) {
  V worst = hn::Zero(D());
  for (int s = 0; s < kStates; ++s)
    for_each_vector(tokens * c.width, LargestDifference{chunk.value.row[s], states[s], &worst});
  return hn::GetLane(hn::MaxOfLanes(D(), worst));
}

// States behind the last token of a chunk.
void copy_last(const Channels& c, int64_t states, int64_t tokens, const float* const* from, float* to) {
  for (int64_t s = 0; s < states; ++s) copy_row(to + s * c.width, from[s] + (tokens - 1) * c.width, c.width);
}

void store_states(const RnnParallelProblem& p, const Channels& c, int64_t t, int64_t tokens,
                  const float* const* states) {
  for (int64_t i = 0; i < tokens; ++i)
    for (int64_t s = 0; s < p.states; ++s)
      copy_row(p.trajectory + c.at(p, t + i, p.states, s), states[s] + i * c.width, c.width);
  if (t + tokens == p.tokens)
    for (int64_t s = 0; s < p.states; ++s)
      copy_row(p.state + c.state_at(p, s), states[s] + (tokens - 1) * c.width, c.width);
}

// `carried` and `next`: [iterations + 1][S][width], iterates behind the chunk before and behind this one.
template <int kStates>
float solve_chunk(const RnnParallelProblem& p, const Channels& c, int64_t t, int64_t tokens, CellForward step,
                  CellForward linearize, const Chunk& chunk, float* const* states, const float* carried,
                  float* next) {
  const int64_t n = tokens * c.width, row = kStates * c.width;
  load_gates(p, c, t, tokens, chunk);
  for (int s = 0; s < kStates; ++s) {
    zero_row(chunk.before.row[s], n);
    if (t == 0) copy_or_zero(chunk.before.row[s], initial_of(p, c, s), c.width);
  }
  step(chunk.step(n, states));
  float d[kStates * kParallelChannels];
  for (int64_t k = 0; k < p.iterations; ++k) {
    const float* const old = carried + k * row;
    shift(p, c, t, tokens, states, old, chunk);
    linearize(chunk.step(n, chunk.value));
    copy_last(c, kStates, tokens, states, next + k * row);
    for (int64_t i = 0; i < row; ++i) d[i] = t ? old[row + i] - old[i] : 0.0f;
    update<kStates>(p, c, t, tokens, chunk, states, d);
  }
  copy_last(c, kStates, tokens, states, next + p.iterations * row);
  shift(p, c, t, tokens, states, carried + p.iterations * row, chunk);
  step(chunk.step(n, chunk.value));
  store_states(p, c, t, tokens, states);
  return residual<kStates>(c, tokens, chunk, states);
}

void step_by_step(const RnnParallelProblem& p, const Channels& c, CellForward step, const Chunk& chunk,
                  float* const* states) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t s = 0; s < p.states; ++s)
      copy_or_zero(chunk.before.row[s],
                   c.starts(p, t) ? nullptr
                   : t            ? states[s]
                                  : initial_of(p, c, s),
                   c.width);
    load_gates(p, c, t, 1, chunk);
    step(chunk.step(c.width, states));
    store_states(p, c, t, 1, states);
  }
}

int64_t row_size(const RnnParallelProblem& p) {
  const int64_t width = p.channels < kParallelChannels ? p.channels : kParallelChannels;
  return p.tokens * width < kParallelChunk ? p.tokens * width : kParallelChunk;
}

template <int kStates>
void forward_tasks(const RnnParallelProblem& p, CellForward step, CellForward linearize, int64_t begin,
                   int64_t end) {
  const int64_t size = row_size(p), carried = (p.iterations + 1) * kStates * kParallelChannels;
  const simd::AlignedFloats scratch(
      static_cast<size_t>(Chunk::floats(p, size) + kStates * size + 2 * carried));
  float* memory = scratch.get();
  const Chunk chunk(p, size, memory);
  const Rows states(memory, kStates, size);
  float* const iterates[2] = {memory, memory + carried};
  for (int64_t task = begin; task < end; ++task) {
    const Channels c(p, task);
    load_parameters(p, c, chunk);
    float worst = 0;
    for (int64_t t = 0, part = 0; t < p.tokens; t += c.length, ++part) {
      const int64_t tokens = p.tokens - t < c.length ? p.tokens - t : c.length;
      const float found = solve_chunk<kStates>(p, c, t, tokens, step, linearize, chunk, states,
                                               iterates[part % 2], iterates[(part + 1) % 2]);
      if (found > worst) worst = found;
    }
    p.residual[task] = worst;
    if (!(worst <= p.tolerance)) step_by_step(p, c, step, chunk, states);
  }
}

void rnn_parallel_forward(const RnnParallelProblem& p, CellForward step, CellForward linearize, int64_t begin,
                          int64_t end) {
  (p.states == 1 ? forward_tasks<1> : forward_tasks<2>)(p, step, linearize, begin, end);
}

// What the backward pass needs beside a chunk.
struct GradientChunk {
  Rows d_states, d_before, d_gates, d_parameters;
  GradientChunk(const RnnParallelProblem& p, int64_t size, float*& memory)
      : d_states(memory, p.states, size),
        d_before(memory, p.states, size),
        d_gates(memory, p.gates, size),
        d_parameters(memory, p.parameters, size) {}
  static int64_t floats(const RnnParallelProblem& p, int64_t size) {
    return (2 * p.states + p.gates + p.parameters) * size;
  }
};

// d_states_t = (dh_t, 0) + d, then d = J_t' d_states_t, from the last token of the chunk to the first
template <int kStates>
void adjoint(const RnnParallelGradient& g, const Channels& c, int64_t t, int64_t tokens, const Chunk& chunk,
             const GradientChunk& gradient, float* d) {
  const RnnParallelProblem& p = g.forward;
  float total[kStates * kParallelChannels];
  for (int64_t i = tokens - 1; i >= 0; --i) {
    const float* HWY_RESTRICT const dh = g.dh + c.at(p, t + i, 1, 0);
    copy_row(total, d, kStates * c.width);
    for (int64_t k = 0; k < c.width; ++k) total[k] += dh[k];
    for (int s = 0; s < kStates; ++s)
      copy_row(gradient.d_states.row[s] + i * c.width, total + s * c.width, c.width);
    if (c.starts(p, t + i))
      zero_row(d, kStates * c.width);
    else
      apply<kStates, true>(chunk, i * c.width, c.width, total, d);
  }
}

// Sums the parameters' gradients of all tokens' places in a chunk.
void store_parameters(const RnnParallelGradient& g, const Channels& c, const GradientChunk& gradient) {
  const RnnParallelProblem& p = g.forward;
  for (int64_t j = 0; j < p.parameters; ++j) {
    float* const to = g.dparameter + (c.sequence * p.parameters + j) * p.channels + c.first;
    zero_row(to, c.width);
    for (int64_t i = 0; i < c.length; ++i)
      for (int64_t k = 0; k < c.width; ++k) to[k] += gradient.d_parameters.row[j][i * c.width + k];
  }
}

template <int kStates>
void backward_task(const RnnParallelGradient& g, CellForward linearize, CellBackward backward,
                   const Channels& c, const Chunk& chunk, const GradientChunk& gradient, const Rows& states) {
  const RnnParallelProblem& p = g.forward;
  float d[kStates * kParallelChannels], carried[kStates * kParallelChannels];
  for (int s = 0; s < kStates; ++s) copy_row(d + s * c.width, g.dstate + c.state_at(p, s), c.width);
  load_parameters(p, c, chunk);
  for (int64_t j = 0; j < p.parameters; ++j) zero_row(gradient.d_parameters.row[j], c.length * c.width);
  for (int64_t end = p.tokens; end > 0;) {
    const int64_t t = (end - 1) / c.length * c.length, tokens = end - t, n = tokens * c.width;
    load_gates(p, c, t, tokens, chunk);
    for (int s = 0; s < kStates; ++s) {
      for (int64_t i = 0; i < tokens; ++i)
        copy_row(states.row[s] + i * c.width, p.trajectory + c.at(p, t + i, kStates, s), c.width);
      if (t) copy_row(carried + s * c.width, p.trajectory + c.at(p, t - 1, kStates, s), c.width);
    }
    shift(p, c, t, tokens, states, carried, chunk);
    linearize(chunk.step(n, chunk.value));
    adjoint<kStates>(g, c, t, tokens, chunk, gradient, d);
    backward({n, chunk.saved, chunk.before, chunk.parameters, chunk.value, gradient.d_states,
              gradient.d_gates, gradient.d_before, gradient.d_parameters});
    for (int64_t j = 0; j < p.gates; ++j)
      for (int64_t i = 0; i < tokens; ++i)
        copy_row(g.dwx + c.at(p, t + i, p.gates, j), gradient.d_gates.row[j] + i * c.width, c.width);
    end = t;
  }
  for (int s = 0; s < kStates; ++s) copy_row(g.dinitial + c.state_at(p, s), d + s * c.width, c.width);
  store_parameters(g, c, gradient);
}

template <int kStates>
void backward_tasks(const RnnParallelGradient& g, CellForward linearize, CellBackward backward, int64_t begin,
                    int64_t end) {
  const RnnParallelProblem& p = g.forward;
  const int64_t size = row_size(p);
  const simd::AlignedFloats scratch(
      static_cast<size_t>(Chunk::floats(p, size) + GradientChunk::floats(p, size) + kStates * size));
  float* memory = scratch.get();
  const Chunk chunk(p, size, memory);
  const GradientChunk gradient(p, size, memory);
  const Rows states(memory, kStates, size);
  for (int64_t task = begin; task < end; ++task)
    backward_task<kStates>(g, linearize, backward, Channels(p, task), chunk, gradient, states);
}

void rnn_parallel_backward(const RnnParallelGradient& g, CellForward linearize, CellBackward backward,
                           int64_t begin, int64_t end) {
  (g.forward.states == 1 ? backward_tasks<1> : backward_tasks<2>)(g, linearize, backward, begin, end);
}

}  // namespace
}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(rnn_parallel_forward,
                   (const RnnParallelProblem& p, CellForward step, CellForward linearize, int64_t begin,
                    int64_t end),
                   (p, step, linearize, begin, end))
WEFT_SIMD_DISPATCH(rnn_parallel_backward,
                   (const RnnParallelGradient& p, CellForward linearize, CellBackward backward, int64_t begin,
                    int64_t end),
                   (p, linearize, backward, begin, end))
}  // namespace weft::kernels
#endif
