// Checks and conversions that rnn and rnn_parallel share.
#pragma once

#include "base/error.h"
#include "ops/recurrence.h"
#include "ops/rnn/rnn.h"
#include "ops/shape.h"

namespace weft::ops {

// InputError.
inline void check_rnn(const char* op, const Rnn& in, const Cell& cell) {
  require_like(op, "wx", in.wx, in.wx);
  require_shape(op, "wx", in.wx, {-1, -1, -1, -1, -1});
  require(in.wx.size(2) == cell.input_gates,
          "{}: wx is {}, but cell {} has {} gates with inputs (dimension 2)", op, shape_text(in.wx),
          cell.name, cell.input_gates);
  const int64_t batch = in.wx.size(0), tokens = in.wx.size(1), heads = in.wx.size(3), width = in.wx.size(4);
  const auto check = [&](const char* name, const at::Tensor& x, at::IntArrayRef shape) {
    require_like(op, name, x, in.wx);
    require_shape(op, name, x, shape);
  };
  if (cell.recurrent_gates) check("recurrent", in.recurrent, {cell.recurrent_gates, heads, width, width});
  require(cell.recurrent_gates || !in.recurrent.defined(), "{}: cell {} has no recurrent matrix", op,
          cell.name);
  if (cell.parameters) check("parameters", in.parameters, {cell.parameters, heads, width});
  require(cell.parameters || !in.parameters.defined(), "{}: cell {} has no parameters", op, cell.name);
  if (in.bias.defined()) check("bias", in.bias, {cell.gates, heads, width});
  if (in.initial_state.defined())
    check("initial_state", in.initial_state, {cell.states, batch, heads, width});
  check_starts(op, in.starts, in.wx, batch, tokens);
}

inline bool needs_gradient(const Rnn& in) {
  if (!c10::GradMode::is_enabled()) return false;
  for (const at::Tensor* x : {&in.wx, &in.recurrent, &in.bias, &in.parameters, &in.initial_state})
    if (requires_gradient(*x)) return true;
  return false;
}

// As the kernels take it: contiguous fp32, or bool.
inline at::Tensor prepared(const at::Tensor& x) {
  if (!x.defined()) return x;
  return (x.scalar_type() == at::kBool ? x : x.to(at::kFloat)).contiguous();
}

}  // namespace weft::ops
