// A task of the recurrence with matrices: where its rows are, in memory of its own and in the tensors. Included
// by the kernel files for each instruction set.
#if defined(WEFT_OPS_RNN_TASK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_RNN_TASK_INL_H_
#undef WEFT_OPS_RNN_TASK_INL_H_
#else
#define WEFT_OPS_RNN_TASK_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "ops/rnn/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {

inline void copy_row(float* to, const float* from, int64_t count) {
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}
inline void zero_row(float* to, int64_t count) {
  std::memset(to, 0, static_cast<size_t>(count) * sizeof(float));
}

inline void set_rows(float** rows, int64_t count, float* memory, int64_t size) {
  for (int64_t i = 0; i < count; ++i) rows[i] = memory + i * size;
}

// `count` sequences from `first`, `width` columns from `column` of one head; `size` floats, [count][width], hold
// one gate or state.
struct Task {
  int64_t head, first, count, column, width, size;
  float *steps, *work;

  Task(const RnnProblem& p, int64_t task) {
    const int64_t blocks = (p.width + p.columns - 1) / p.columns, groups = (p.batch + p.rows - 1) / p.rows;
    head = task / (blocks * groups);
    first = task / blocks % groups * p.rows;
    column = task % blocks * p.columns;
    count = p.batch - first < p.rows ? p.batch - first : p.rows;
    width = p.width - column < p.columns ? p.width - column : p.columns;
    size = count * width;
    const int64_t before = (head * p.batch + first) * p.width + count * column;  // of the tasks so far
    steps = p.steps + before * p.slots * (p.gates + p.states);
    work = p.work + before * rnn_work(p);
  }

  // The gates of token t, then the states behind it; t = -1: the initial state. Overwritten by token t + slots.
  float* gates_at(const RnnProblem& p, int64_t t) const {
    return steps + (t + 1) % p.slots * (p.gates + p.states) * size;
  }
  float* states_at(const RnnProblem& p, int64_t t) const { return gates_at(p, t) + p.gates * size; }

  // Row of a tensor [.., H, D] whose leading dimensions have been flattened to `index`.
  int64_t at(const RnnProblem& p, int64_t index) const { return (index * p.heads + head) * p.width + column; }
  int64_t token(const RnnProblem& p, int64_t row, int64_t t) const { return (first + row) * p.tokens + t; }
  bool starts(const RnnProblem& p, int64_t row, int64_t t) const {
    return p.starts && t < p.tokens && p.starts[token(p, row, t)];
  }
  // Row of `exchange`, whose rows have `floats` values, for what token t leaves.
  float* exchange(const RnnProblem& p, int64_t t, int64_t row, int64_t floats) const {
    return p.exchange + (((t & 1) * p.heads + head) * p.batch + first + row) * floats;
  }
};

// [S][count][width] <- [S, B, H, D], or zeros
inline void load_states(const RnnProblem& p, const Task& task, const float* source, float* out) {
  for (int64_t s = 0; s < p.states; ++s)
    for (int64_t row = 0; row < task.count; ++row) {
      float* const to = out + s * task.size + row * task.width;
      if (source)
        copy_row(to, source + task.at(p, s * p.batch + task.first + row), task.width);
      else
        zero_row(to, task.width);
    }
}

inline void store_states(const RnnProblem& p, const Task& task, const float* source, float* out) {
  for (int64_t s = 0; s < p.states; ++s)
    for (int64_t row = 0; row < task.count; ++row)
      copy_row(out + task.at(p, s * p.batch + task.first + row), source + s * task.size + row * task.width,
               task.width);
}

// Zeroes the states of the sequences that begin a document at t.
inline void reset_rows(const RnnProblem& p, const Task& task, int64_t t, float* states) {
  if (!p.starts) return;
  for (int64_t row = 0; row < task.count; ++row)
    if (task.starts(p, row, t))
      for (int64_t s = 0; s < p.states; ++s) zero_row(states + s * task.size + row * task.width, task.width);
}

// The state that token t starts from: that of t - 1, or a copy in `scratch` when documents begin.
inline float* state_before(const RnnProblem& p, const Task& task, int64_t t, float* scratch) {
  float* const states = task.states_at(p, t - 1);
  bool any = false;
  for (int64_t row = 0; row < task.count; ++row) any |= task.starts(p, row, t);
  if (!any) return states;
  copy_row(scratch, states, p.states * task.size);
  reset_rows(p, task, t, scratch);
  return scratch;
}

// [P][count][width], each row the parameters
inline void load_parameters(const RnnProblem& p, const Task& task, float* out) {
  for (int64_t i = 0; i < p.parameters; ++i)
    for (int64_t row = 0; row < task.count; ++row)
      copy_row(out + i * task.size + row * task.width, p.parameter + task.at(p, i), task.width);
}

}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
