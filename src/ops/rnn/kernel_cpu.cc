// The walk through time, for any cell. All gates of the sequences of a task are one contiguous row each, so that
// the cell works on long rows.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rnn/kernel_cpu.cc"
#include "ops/simd/targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
//
#include "ops/rnn/kernel.h"
#include "ops/rnn/pack-inl.h"
#include "ops/rnn/panel-inl.h"
#include "ops/rnn/task-inl.h"
#include "ops/simd/aligned.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {
namespace {

constexpr int64_t kLine = 64 / sizeof(float);  // floats of a cache line

// wx of gate j, which has one, for a sequence and token.
const float* input_row(const RnnProblem& p, const Task& task, int64_t row, int64_t t, int64_t j) {
  return p.wx + task.at(p, task.token(p, row, t) * p.input_gates + j - (p.gates - p.input_gates));
}

// The rows of wx lie far apart, so that the processor does not see them coming.
void fetch_inputs(const RnnProblem& p, const Task& task, int64_t t) {
  for (int64_t j = p.gates - p.input_gates; j < p.gates; ++j)
    for (int64_t row = 0; row < task.count; ++row) {
      const float* const wx = input_row(p, task, row, t, j);
      for (int64_t i = 0; i < task.width; i += kLine) __builtin_prefetch(wx + i, 0, 2);
    }
}

// gates [J][count][width] = wx_t + bias
void load_gates(const RnnProblem& p, const Task& task, int64_t t, float* gates) {
  for (int64_t j = 0; j < p.gates; ++j) {
    const float* const bias = p.bias ? p.bias + task.at(p, j) : nullptr;
    for (int64_t row = 0; row < task.count; ++row) {
      float* const to = gates + j * task.size + row * task.width;
      const float* const wx = j >= p.gates - p.input_gates ? input_row(p, task, row, t, j) : nullptr;
      if (wx && bias)
        for (int64_t i = 0; i < task.width; ++i) to[i] = wx[i] + bias[i];
      else if (wx || bias)
        copy_row(to, wx ? wx : bias, task.width);
      else
        zero_row(to, task.width);
    }
  }
}

// gates += R h_{t-1}. `scratch` takes a panel when R has not been packed.
void add_feedback(const RnnProblem& p, const Task& task, int64_t t, float* gates, float* scratch) {
  const float* const h = task.exchange(p, t - 1, 0, p.width);
  for (int64_t j = 0; j < p.recurrent_gates; ++j)
    for (int64_t column = 0; column < task.width; column += kRnnPanel) {
      const int64_t columns = task.width - column < kRnnPanel ? task.width - column : kRnnPanel;
      const int64_t panel = (task.column + column) / kRnnPanel;
      const int64_t panels = rnn_panels(p.width), size = p.width * kRnnPanel;
      const float *from = scratch, *next = scratch;
      if (p.packed) {
        from = p.packed + ((j * p.heads + task.head) * panels + panel) * size;
        next = column + kRnnPanel < task.width ? from + size : from + p.heads * panels * size;
      } else {
        pack_panel_transposed(p, j, task.head, panel, scratch);
      }
      panel_product(task.count, columns, p.width, {h, p.width, 1}, from, next, gates + j * task.size + column,
                    task.width);
    }
}

// Hands h of token t to all tasks of the head; zeros where a document begins behind it.
void share_h(const RnnProblem& p, const Task& task, int64_t t, const float* h) {
  if (!p.recurrent_gates) return;
  for (int64_t row = 0; row < task.count; ++row) {
    float* const to = task.exchange(p, t, row, p.width) + task.column;
    if (task.starts(p, row, t + 1))
      zero_row(to, task.width);
    else
      copy_row(to, h + row * task.width, task.width);
  }
}

void forward_token(const RnnProblem& p, CellForward cell, const Task& task, int64_t t, float* panel) {
  float *const reset = task.work, *const parameters = reset + p.states * task.size;
  float* const states = task.states_at(p, t);
  if (t < 0) {
    load_states(p, task, p.initial, states);
    load_parameters(p, task, parameters);
  } else {
    float* const gates = task.gates_at(p, t);
    load_gates(p, task, t, gates);
    if (t + 1 < p.tokens) fetch_inputs(p, task, t + 1);
    add_feedback(p, task, t, gates, panel);
    float *gate_rows[kMostRnnRows], *before[kMostRnnRows], *after[kMostRnnRows], *fixed[kMostRnnRows];
    set_rows(gate_rows, p.gates, gates, task.size);
    set_rows(before, p.states, state_before(p, task, t, reset), task.size);
    set_rows(after, p.states, states, task.size);
    set_rows(fixed, p.parameters, parameters, task.size);
    cell({.n = task.size,
          .gates = gate_rows,
          .states = before,
          .parameters = fixed,
          .saved = gate_rows,
          .new_states = after});
    for (int64_t row = 0; row < task.count; ++row)
      copy_row(p.h + task.at(p, task.token(p, row, t)), states + row * task.width, task.width);
  }
  share_h(p, task, t, states);
  if (t + 1 == p.tokens) store_states(p, task, states, p.state);
}

void rnn_forward(const RnnProblem& p, CellForward cell, int64_t first, int64_t last, int64_t begin,
                 int64_t end) {
  const simd::AlignedFloats panel(static_cast<size_t>(p.packed ? 0 : p.width * kRnnPanel));
  for (int64_t i = begin; i < end; ++i) {
    const Task task(p, i);
    for (int64_t t = first; t < last; ++t) forward_token(p, cell, task, t, panel.get());
  }
}

// d_h += what the gates of token t send back through R
void add_backward_feedback(const RnnProblem& p, const Task& task, int64_t t, float* d_h) {
  const int64_t depth = p.recurrent_gates * p.width;
  const float* const d_gates = task.exchange(p, t, 0, depth);
  for (int64_t column = 0; column < task.width; column += kRnnPanel) {
    const int64_t panel = task.head * rnn_panels(p.width) + (task.column + column) / kRnnPanel;
    const float* const from = p.packed + panel * depth * kRnnPanel;
    panel_product(task.count, task.width - column < kRnnPanel ? task.width - column : kRnnPanel, depth,
                  {d_gates, depth, 1}, from, from + depth * kRnnPanel, d_h + column, task.width);
  }
}

// Writes the gradients of the gates of token t, and hands them to all tasks of the head.
void share_gates(const RnnGradient& g, const Task& task, int64_t t, const float* d_gates) {
  const RnnProblem& p = g.forward;
  for (int64_t j = 0; j < p.gates; ++j)
    for (int64_t row = 0; row < task.count; ++row) {
      const float* const from = d_gates + j * task.size + row * task.width;
      copy_row(g.dgates + task.at(p, task.token(p, row, t) * p.gates + j), from, task.width);
      if (j < p.recurrent_gates)
        copy_row(task.exchange(p, t, row, p.recurrent_gates * p.width) + j * p.width + task.column, from,
                 task.width);
    }
}

void store_parameters(const RnnGradient& g, const Task& task, const float* sums) {
  const RnnProblem& p = g.forward;
  for (int64_t row = 0; row < task.count; ++row)
    for (int64_t i = 0; i < p.parameters; ++i)
      copy_row(g.dparameter + task.at(p, (task.first + row) * p.parameters + i),
               sums + i * task.size + row * task.width, task.width);
}

// Memory of a task of the backward pass, kept from token to token.
struct BackwardMemory {
  float *reset, *parameters, *d_gates, *d_parameters;
  float* d_states[2];  // behind even and odd tokens
  BackwardMemory(const RnnProblem& p, const Task& task) {
    const int64_t states = p.states * task.size;
    reset = task.work;
    d_states[0] = reset + states;
    d_states[1] = d_states[0] + states;
    parameters = d_states[1] + states;
    d_parameters = parameters + p.parameters * task.size;
    d_gates = d_parameters + p.parameters * task.size;
  }
};

void backward_token(const RnnGradient& g, CellBackward cell, const Task& task, int64_t t) {
  const RnnProblem& p = g.forward;
  const BackwardMemory memory(p, task);
  float *const d_new = memory.d_states[t & 1], *const d_before = memory.d_states[(t + 1) & 1];
  if (t + 1 == p.tokens) {
    load_states(p, task, g.dstate, d_new);
    load_parameters(p, task, memory.parameters);
    zero_row(memory.d_parameters, p.parameters * task.size);
  } else {
    add_backward_feedback(p, task, t + 1, d_new);
    reset_rows(p, task, t + 1, d_new);
  }
  if (t < 0) {
    store_states(p, task, d_new, g.dinitial);
    store_parameters(g, task, memory.d_parameters);
    return;
  }
  for (int64_t row = 0; row < task.count; ++row) {
    const float* const dh = g.dh + task.at(p, task.token(p, row, t));
    for (int64_t i = 0; i < task.width; ++i) d_new[row * task.width + i] += dh[i];
  }
  float *saved[kMostRnnRows], *before[kMostRnnRows], *after[kMostRnnRows], *fixed[kMostRnnRows],
      *d_new_rows[kMostRnnRows], *d_gate_rows[kMostRnnRows], *d_before_rows[kMostRnnRows],
      *d_fixed[kMostRnnRows];
  set_rows(saved, p.gates, task.gates_at(p, t), task.size);
  set_rows(before, p.states, state_before(p, task, t, memory.reset), task.size);
  set_rows(after, p.states, task.states_at(p, t), task.size);
  set_rows(fixed, p.parameters, memory.parameters, task.size);
  set_rows(d_new_rows, p.states, d_new, task.size);
  set_rows(d_gate_rows, p.gates, memory.d_gates, task.size);
  set_rows(d_before_rows, p.states, d_before, task.size);
  set_rows(d_fixed, p.parameters, memory.d_parameters, task.size);
  cell({task.size, saved, before, fixed, after, d_new_rows, d_gate_rows, d_before_rows, d_fixed});
  share_gates(g, task, t, memory.d_gates);
}

void rnn_backward(const RnnGradient& g, CellBackward cell, int64_t first, int64_t last, int64_t begin,
                  int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const Task task(g.forward, i);
    for (int64_t t = last - 1; t >= first; --t) backward_token(g, cell, task, t);
  }
}

}  // namespace
}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(rnn_forward,
                   (const RnnProblem& p, CellForward cell, int64_t first, int64_t last, int64_t begin,
                    int64_t end),
                   (p, cell, first, last, begin, end))
WEFT_SIMD_DISPATCH(rnn_backward,
                   (const RnnGradient& p, CellBackward cell, int64_t first, int64_t last, int64_t begin,
                    int64_t end),
                   (p, cell, first, last, begin, end))
}  // namespace weft::kernels
#endif
