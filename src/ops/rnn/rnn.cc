#include "ops/rnn/rnn.h"

#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/rnn/kernel.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

void check_rnn(const Rnn& in, const Cell& cell) {
  require_like("rnn", "wx", in.wx, in.wx);
  require_shape("rnn", "wx", in.wx, {-1, -1, -1, -1, -1});
  require(in.wx.size(2) == cell.gates, "rnn: wx is {}, but cell {} has {} gates (dimension 2)",
          shape_text(in.wx), cell.name, cell.gates);
  const int64_t batch = in.wx.size(0), tokens = in.wx.size(1), heads = in.wx.size(3), width = in.wx.size(4);
  require_like("rnn", "recurrent", in.recurrent, in.wx);
  require_shape("rnn", "recurrent", in.recurrent, {cell.gates, heads, width, width});
  if (in.bias.defined()) {
    require_like("rnn", "bias", in.bias, in.wx);
    require_shape("rnn", "bias", in.bias, {cell.gates, heads, width});
  }
  if (in.initial_state.defined()) {
    require_like("rnn", "initial_state", in.initial_state, in.wx);
    require_shape("rnn", "initial_state", in.initial_state, {cell.states, batch, heads, width});
  }
  check_starts("rnn", in.starts, in.wx, batch, tokens);
}

// Sequences of a task: many share what is read of R, fewer keep every thread busy. Results do not depend on
// it.
int64_t rows_of_task(int64_t batch, int64_t heads) {
  int64_t rows = 16;
  while (rows > 4 && heads * ((batch + rows - 1) / rows) < at::get_num_threads()) rows /= 2;
  return std::min(rows, std::max<int64_t>(batch, 1));
}

// Tasks that are worth a thread, given the multiplications of one.
int64_t grain(int64_t work) { return 1 + 100000 / std::max<int64_t>(work, 1); }

int64_t task_work(const kernels::RnnProblem& p) { return p.tokens * p.rows * p.gates * p.width * p.width; }

const float* floats(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

// wx [B, T, J, H, D] or anything of its shape.
kernels::RnnProblem problem(const at::Tensor& wx, const at::Tensor& initial, const at::Tensor& starts,
                            int64_t states, int64_t rows) {
  kernels::RnnProblem p;
  p.batch = wx.size(0);
  p.tokens = wx.size(1);
  p.gates = wx.size(2);
  p.heads = wx.size(3);
  p.width = wx.size(4);
  p.states = states;
  p.rows = rows;
  p.initial = floats(initial);
  p.starts = starts.defined() ? starts.const_data_ptr<bool>() : nullptr;
  return p;
}

class RnnFunction : public torch::autograd::Function<RnnFunction> {
 public:
  // keep: a backward pass may follow
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& wx,
                                                const at::Tensor& recurrent,
                                                const std::optional<at::Tensor>& optional_bias,
                                                const std::optional<at::Tensor>& optional_initial,
                                                const std::optional<at::Tensor>& optional_starts,
                                                const Cell* cell, bool keep, int64_t isa) {
    const auto bias = optional_bias.value_or(at::Tensor()), initial = optional_initial.value_or(at::Tensor()),
               starts = optional_starts.value_or(at::Tensor());
    auto p = problem(wx, initial, starts, cell->states, rows_of_task(wx.size(0), wx.size(3)));
    const auto matrix = recurrent.transpose(2, 3).contiguous();  // [J, H, in, out]
    const auto h = at::empty({p.batch, p.tokens, p.heads, p.width}, wx.options());
    const auto state = at::empty({p.states, p.batch, p.heads, p.width}, wx.options());
    at::Tensor steps;
    if (keep) steps = at::empty({p.tokens, p.gates + p.states, p.batch, p.heads, p.width}, wx.options());
    p.wx = floats(wx);
    p.matrix = floats(matrix);
    p.bias = floats(bias);
    p.h = h.mutable_data_ptr<float>();
    p.state = state.mutable_data_ptr<float>();
    p.saved = keep ? steps.mutable_data_ptr<float>() : nullptr;
    parallel_for(kernels::rnn_tasks(p), grain(task_work(p)), [&](int64_t begin, int64_t end) {
      kernels::rnn_forward(static_cast<simd::Isa>(isa), p, cell->forward, begin, end);
    });
    if (keep) ctx->save_for_backward({recurrent, initial, starts, h, steps});
    ctx->saved_data["cell"] = cell->name;
    ctx->saved_data["rows"] = p.rows;
    ctx->saved_data["isa"] = isa;
    ctx->saved_data["bias_gradient"] = requires_gradient(bias);
    ctx->saved_data["initial_gradient"] = requires_gradient(initial);
    return {h, state};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    require_first_order("rnn");
    const auto saved = ctx->get_saved_variables();
    const auto &recurrent = saved[0], &h = saved[3];
    const Cell& cell = find_cell(ctx->saved_data["cell"].toStringRef());
    const auto dwx = at::empty({h.size(0), h.size(1), cell.gates, h.size(2), h.size(3)}, h.options());
    const auto dh = upstream[0].contiguous(), dstate = upstream[1].contiguous();
    const auto dinitial = at::empty_like(dstate), drecurrent = at::empty_like(recurrent);
    kernels::RnnGradient g{
        .forward = problem(dwx, saved[1], saved[2], cell.states, ctx->saved_data["rows"].toInt())};
    auto& p = g.forward;
    p.matrix = floats(recurrent);
    p.h = static_cast<float*>(h.data_ptr());
    p.saved = static_cast<float*>(saved[4].data_ptr());
    g.dh = floats(dh);
    g.dstate = floats(dstate);
    g.dwx = dwx.mutable_data_ptr<float>();
    g.dinitial = dinitial.mutable_data_ptr<float>();
    g.drecurrent = drecurrent.mutable_data_ptr<float>();
    const auto isa = static_cast<simd::Isa>(ctx->saved_data["isa"].toInt());
    parallel_for(kernels::rnn_tasks(p), grain(task_work(p)), [&](int64_t begin, int64_t end) {
      kernels::rnn_backward(isa, g, cell.backward, begin, end);
    });
    if (ctx->needs_input_grad(1))
      parallel_for(p.gates * p.heads, grain(p.batch * p.tokens * p.width * p.width),
                   [&](int64_t begin, int64_t end) { kernels::rnn_backward_matrix(isa, g, begin, end); });
    return {dwx,
            ctx->needs_input_grad(1) ? drecurrent : at::Tensor(),
            ctx->saved_data["bias_gradient"].toBool() ? dwx.sum(at::IntArrayRef{0, 1}) : at::Tensor(),
            ctx->saved_data["initial_gradient"].toBool() ? dinitial : at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor()};
  }
};

bool needs_gradient(const Rnn& in) {
  if (!c10::GradMode::is_enabled()) return false;
  for (const at::Tensor* x : {&in.wx, &in.recurrent, &in.bias, &in.initial_state})
    if (requires_gradient(*x)) return true;
  return false;
}

bool has_kernel(const Cell& cell) {
  return cell.forward && cell.backward && std::max(cell.gates, cell.states) <= kernels::kMostRnnRows;
}

}  // namespace

RnnResult rnn(const Rnn& in) {
  const Cell& cell = find_cell(in.cell);
  check_rnn(in, cell);
  const auto kernel = choose_kernel(in.wx);
  if (!is_cpu_kernel(kernel) || !has_kernel(cell)) return reference::rnn(in);
  const auto prepared = [](const at::Tensor& x) { return x.defined() ? x.to(at::kFloat).contiguous() : x; };
  const auto starts = in.starts.defined() ? in.starts.contiguous() : in.starts;
  const auto result =
      RnnFunction::apply(prepared(in.wx), prepared(in.recurrent), optional_of(prepared(in.bias)),
                         optional_of(prepared(in.initial_state)), optional_of(starts), &cell,
                         needs_gradient(in), static_cast<int64_t>(isa_of(kernel)));
  return {result[0].to(in.wx.scalar_type()), result[1]};
}

namespace {

std::tuple<at::Tensor, at::Tensor> rnn_operator(std::string cell, const at::Tensor& wx,
                                                const at::Tensor& recurrent,
                                                const std::optional<at::Tensor>& bias,
                                                const std::optional<at::Tensor>& initial_state,
                                                const std::optional<at::Tensor>& starts) {
  const auto result = rnn({std::move(cell), wx, recurrent, bias.value_or(at::Tensor()),
                           initial_state.value_or(at::Tensor()), starts.value_or(at::Tensor())});
  return {result.h, result.state};
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def(
      "rnn(str cell, Tensor wx, Tensor recurrent, Tensor? bias=None, Tensor? initial_state=None, "
      "Tensor? starts=None) -> (Tensor h, Tensor state)",
      rnn_operator);
}

}  // namespace
}  // namespace weft::ops
