// The recurrent product and the walk through time, for any cell. All gates of the sequences of a task are one
// contiguous row each, so that the cell works on long rows; the head's matrices stay in the cache over all
// tokens.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rnn/kernel_cpu.cc"
#include "ops/simd/targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/rnn/kernel.h"
#include "ops/simd/aligned.h"

#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(D())); }

// out += left right for m x k times k x n. left has strides in both directions, rows of right and out are
// contiguous.
struct Product {
  int64_t m, n, k;
  const float* left;
  int64_t left_row, left_column;
  const float* right;
  int64_t right_row;
  float* out;
  int64_t out_row;
};

// Rows [row, row + R), whole vectors at [column, column + 2 lanes).
template <int R>
HWY_INLINE void product_tile(const Product& p, int64_t row, int64_t column) {
  const D d;
  V sum0[R], sum1[R];
  for (int r = 0; r < R; ++r) {
    const float* out = p.out + (row + r) * p.out_row + column;
    sum0[r] = hn::LoadU(d, out);
    sum1[r] = hn::LoadU(d, out + lanes());
  }
  for (int64_t k = 0; k < p.k; ++k) {
    const float* right = p.right + k * p.right_row + column;
    const V right0 = hn::LoadU(d, right), right1 = hn::LoadU(d, right + lanes());
    for (int r = 0; r < R; ++r) {
      const V left = hn::Set(d, p.left[(row + r) * p.left_row + k * p.left_column]);
      sum0[r] = hn::MulAdd(left, right0, sum0[r]);
      sum1[r] = hn::MulAdd(left, right1, sum1[r]);
    }
  }
  for (int r = 0; r < R; ++r) {
    float* out = p.out + (row + r) * p.out_row + column;
    hn::StoreU(sum0[r], d, out);
    hn::StoreU(sum1[r], d, out + lanes());
  }
}

// As product_tile for the first `count` lanes of one vector.
template <int R>
HWY_INLINE void product_edge(const Product& p, int64_t row, int64_t column, int64_t count) {
  const D d;
  const auto mask = hn::FirstN(d, static_cast<size_t>(count));
  V sum[R];
  for (int r = 0; r < R; ++r) sum[r] = hn::MaskedLoad(mask, d, p.out + (row + r) * p.out_row + column);
  for (int64_t k = 0; k < p.k; ++k) {
    const V right = hn::MaskedLoad(mask, d, p.right + k * p.right_row + column);
    for (int r = 0; r < R; ++r)
      sum[r] = hn::MulAdd(hn::Set(d, p.left[(row + r) * p.left_row + k * p.left_column]), right, sum[r]);
  }
  for (int r = 0; r < R; ++r) hn::BlendedStore(sum[r], mask, d, p.out + (row + r) * p.out_row + column);
}

template <int R>
HWY_INLINE void product_rows(const Product& p, int64_t row) {
  int64_t column = 0;
  for (; column + 2 * lanes() <= p.n; column += 2 * lanes()) product_tile<R>(p, row, column);
  for (; column < p.n; column += lanes())
    product_edge<R>(p, row, column, p.n - column < lanes() ? p.n - column : lanes());
}

// Every element is summed in the order of k, however rows are grouped.
void add_product(const Product& p) {
  constexpr int kRows = HWY_TARGET == HWY_AVX3 ? 8 : 4;  // as many as leave registers for the operands
  int64_t row = 0;
  for (; row + kRows <= p.m; row += kRows) product_rows<kRows>(p, row);
  for (; row + 2 <= p.m; row += 2) product_rows<2>(p, row);
  for (; row < p.m; ++row) product_rows<1>(p, row);
}

// Rows of a task: count sequences from `first`, of one head; `size` floats hold one gate of all of them.
struct Task {
  int64_t head, first, count, size;
  float* saved;  // of this task, or null
  Task(const RnnProblem& p, int64_t task) {
    const int64_t blocks = (p.batch + p.rows - 1) / p.rows;
    head = task / blocks;
    first = task % blocks * p.rows;
    count = p.batch - first < p.rows ? p.batch - first : p.rows;
    size = count * p.width;
    saved =
        p.saved ? p.saved + (head * p.batch + first) * p.tokens * (p.gates + p.states) * p.width : nullptr;
  }
  float* saved_at(const RnnProblem& p, int64_t t) const { return saved + t * (p.gates + p.states) * size; }
};

void set_rows(float** rows, int64_t count, float* memory, int64_t size) {
  for (int64_t i = 0; i < count; ++i) rows[i] = memory + i * size;
}

void copy_row(float* to, const float* from, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}

// Rows of one state of this task in [S, B, H, D].
int64_t state_at(const RnnProblem& p, const Task& task, int64_t state, int64_t row) {
  return ((state * p.batch + task.first + row) * p.heads + task.head) * p.width;
}

// [S][rows][D] <- [S, B, H, D] or zeros
void load_states(const RnnProblem& p, const Task& task, const float* source, float* out) {
  for (int64_t s = 0; s < p.states; ++s)
    for (int64_t row = 0; row < task.count; ++row) {
      float* const to = out + s * task.size + row * p.width;
      if (source)
        copy_row(to, source + state_at(p, task, s, row), p.width);
      else
        for (int64_t i = 0; i < p.width; ++i) to[i] = 0;
    }
}

void store_states(const RnnProblem& p, const Task& task, const float* source, float* out) {
  for (int64_t s = 0; s < p.states; ++s)
    for (int64_t row = 0; row < task.count; ++row)
      copy_row(out + state_at(p, task, s, row), source + s * task.size + row * p.width, p.width);
}

bool any_start(const RnnProblem& p, const Task& task, int64_t t) {
  if (!p.starts) return false;
  for (int64_t row = 0; row < task.count; ++row)
    if (p.starts[(task.first + row) * p.tokens + t]) return true;
  return false;
}

// Zeroes all [states][rows][D] of the sequences that begin a document at t.
void reset_rows(const RnnProblem& p, const Task& task, int64_t t, float* states) {
  for (int64_t row = 0; row < task.count; ++row)
    if (p.starts[(task.first + row) * p.tokens + t])
      for (int64_t s = 0; s < p.states; ++s)
        for (int64_t i = 0; i < p.width; ++i) states[s * task.size + row * p.width + i] = 0;
}

// The state that token t starts from: `states`, or a copy in `scratch` with the sequences reset that begin
// there.
const float* state_before(const RnnProblem& p, const Task& task, int64_t t, const float* states,
                          float* scratch) {
  if (!any_start(p, task, t)) return states;
  copy_row(scratch, states, p.states * task.size);
  reset_rows(p, task, t, scratch);
  return scratch;
}

// gates [J][rows][D] = wx_t + bias + R h
void compute_gates(const RnnProblem& p, const Task& task, int64_t t, const float* h, float* gates) {
  for (int64_t j = 0; j < p.gates; ++j) {
    for (int64_t row = 0; row < task.count; ++row) {
      const float* const wx =
          p.wx + ((((task.first + row) * p.tokens + t) * p.gates + j) * p.heads + task.head) * p.width;
      const float* const bias = p.bias ? p.bias + (j * p.heads + task.head) * p.width : nullptr;
      float* const to = gates + j * task.size + row * p.width;
      for (int64_t i = 0; i < p.width; ++i) to[i] = bias ? wx[i] + bias[i] : wx[i];
    }
    const float* const matrix = p.matrix + (j * p.heads + task.head) * p.width * p.width;
    add_product(
        {task.count, p.width, p.width, h, p.width, 1, matrix, p.width, gates + j * task.size, p.width});
  }
}

void forward_task(const RnnProblem& p, CellForward cell, const Task& task, float* scratch) {
  // scratch: initial state, state with resets, and without `saved` two steps of gates and new states
  const int64_t states_size = p.states * task.size, step_size = (p.gates + p.states) * task.size;
  float *const initial = scratch, *const reset = initial + states_size, *const steps = reset + states_size;
  load_states(p, task, p.initial, initial);
  const float* states = initial;
  float *gates[kMostRnnRows], *before[kMostRnnRows], *after[kMostRnnRows];
  for (int64_t t = 0; t < p.tokens; ++t) {
    float* const step = task.saved ? task.saved_at(p, t) : steps + t % 2 * step_size;
    const float* const from = state_before(p, task, t, states, reset);
    set_rows(gates, p.gates, step, task.size);
    set_rows(before, p.states, const_cast<float*>(from), task.size);
    set_rows(after, p.states, step + p.gates * task.size, task.size);
    compute_gates(p, task, t, from, step);
    cell(task.size, gates, before, after);
    states = after[0];
    for (int64_t row = 0; row < task.count; ++row)
      copy_row(p.h + (((task.first + row) * p.tokens + t) * p.heads + task.head) * p.width,
               states + row * p.width, p.width);
  }
  store_states(p, task, states, p.state);
}

void rnn_forward(const RnnProblem& p, CellForward cell, int64_t begin, int64_t end) {
  const int64_t size = p.rows * p.width;
  const simd::AlignedFloats scratch(static_cast<size_t>((4 * p.states + 2 * p.gates) * size));
  for (int64_t i = begin; i < end; ++i) forward_task(p, cell, Task(p, i), scratch.get());
}

// Writes the gradients of the gates of token t to dwx, and adds what they send through R to d_h.
void backward_gates(const RnnGradient& g, const Task& task, int64_t t, const float* d_gates, float* d_h) {
  const RnnProblem& p = g.forward;
  for (int64_t j = 0; j < p.gates; ++j) {
    const float* const matrix = p.matrix + (j * p.heads + task.head) * p.width * p.width;
    add_product(
        {task.count, p.width, p.width, d_gates + j * task.size, p.width, 1, matrix, p.width, d_h, p.width});
    for (int64_t row = 0; row < task.count; ++row)
      copy_row(g.dwx + ((((task.first + row) * p.tokens + t) * p.gates + j) * p.heads + task.head) * p.width,
               d_gates + j * task.size + row * p.width, p.width);
  }
}

void backward_task(const RnnGradient& g, CellBackward cell, const Task& task, float* scratch) {
  const RnnProblem& p = g.forward;
  const int64_t states_size = p.states * task.size;
  float *const initial = scratch, *const reset = initial + states_size, *const d_gates = reset + states_size;
  float *d_new = d_gates + p.gates * task.size, *d_before = d_new + states_size;
  load_states(p, task, p.initial, initial);
  load_states(p, task, g.dstate, d_new);
  float *saved[kMostRnnRows], *before[kMostRnnRows], *after[kMostRnnRows], *d_new_rows[kMostRnnRows],
      *d_gate_rows[kMostRnnRows], *d_before_rows[kMostRnnRows];
  set_rows(d_gate_rows, p.gates, d_gates, task.size);
  for (int64_t t = p.tokens - 1; t >= 0; --t) {
    for (int64_t row = 0; row < task.count; ++row) {
      const float* const dh = g.dh + (((task.first + row) * p.tokens + t) * p.heads + task.head) * p.width;
      for (int64_t i = 0; i < p.width; ++i) d_new[row * p.width + i] += dh[i];
    }
    float* const step = task.saved_at(p, t);
    const float* const states = t ? task.saved_at(p, t - 1) + p.gates * task.size : initial;
    set_rows(saved, p.gates, step, task.size);
    set_rows(after, p.states, step + p.gates * task.size, task.size);
    set_rows(before, p.states, const_cast<float*>(state_before(p, task, t, states, reset)), task.size);
    set_rows(d_new_rows, p.states, d_new, task.size);
    set_rows(d_before_rows, p.states, d_before, task.size);
    cell(task.size, saved, before, after, d_new_rows, d_gate_rows, d_before_rows);
    backward_gates(g, task, t, d_gates, d_before);
    if (any_start(p, task, t)) reset_rows(p, task, t, d_before);
    float* const swapped = d_new;
    d_new = d_before;
    d_before = swapped;
  }
  store_states(p, task, d_new, g.dinitial);
}

void rnn_backward(const RnnGradient& g, CellBackward cell, int64_t begin, int64_t end) {
  const RnnProblem& p = g.forward;
  const simd::AlignedFloats scratch(static_cast<size_t>((4 * p.states + p.gates) * p.rows * p.width));
  for (int64_t i = begin; i < end; ++i) backward_task(g, cell, Task(p, i), scratch.get());
}

// h before token t of sequence b, of one head; null when it is zero.
const float* h_before(const RnnProblem& p, int64_t head, int64_t b, int64_t t) {
  if (p.starts && p.starts[b * p.tokens + t]) return nullptr;
  if (t) return p.h + ((b * p.tokens + t - 1) * p.heads + head) * p.width;
  return p.initial ? p.initial + (b * p.heads + head) * p.width : nullptr;
}

void rnn_backward_matrix(const RnnGradient& g, int64_t begin, int64_t end) {
  constexpr int64_t kPanel = 64;  // tokens whose rows are brought together for one product
  const RnnProblem& p = g.forward;
  const simd::AlignedFloats memory(static_cast<size_t>(2 * kPanel * p.width));
  float *const left = memory.get(), *const right = left + kPanel * p.width;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t gate = task / p.heads, head = task % p.heads;
    float* const out = g.drecurrent + task * p.width * p.width;
    for (int64_t i = 0; i < p.width * p.width; ++i) out[i] = 0;
    int64_t filled = 0;
    const int64_t rows = p.batch * p.tokens;
    for (int64_t i = 0; i < rows; ++i) {
      if (const float* const h = h_before(p, head, i / p.tokens, i % p.tokens)) {
        copy_row(left + filled * p.width, g.dwx + ((i * p.gates + gate) * p.heads + head) * p.width, p.width);
        copy_row(right + filled++ * p.width, h, p.width);
      }
      if (filled == kPanel || i + 1 == rows) {
        add_product({p.width, p.width, filled, left, 1, p.width, right, p.width, out, p.width});
        filled = 0;
      }
    }
  }
}

}  // namespace
}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(rnn_forward, (const RnnProblem& p, CellForward cell, int64_t begin, int64_t end),
                   (p, cell, begin, end))
WEFT_SIMD_DISPATCH(rnn_backward, (const RnnGradient& p, CellBackward cell, int64_t begin, int64_t end),
                   (p, cell, begin, end))
WEFT_SIMD_DISPATCH(rnn_backward_matrix, (const RnnGradient& p, int64_t begin, int64_t end), (p, begin, end))
}  // namespace weft::kernels
#endif
