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
#include "ops/rnn/checks.h"
#include "ops/rnn/cuda.h"
#include "ops/rnn/kernel.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

// Tasks that are worth a thread, given the multiplications of one.
int64_t grain(int64_t work) { return 1 + 100000 / std::max<int64_t>(work, 1); }

const float* floats(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

// A head whose matrices stay in the second-level cache is a task of its own through all tokens, for as many
// sequences as share what is read of R and leave no thread idle. Larger matrices are cut by columns, and all
// tasks go token by token. Results do not depend on it.
void choose_tasks(kernels::RnnProblem& p) {
  constexpr int64_t kCached = 256 * 1024 / sizeof(float), kMostRows = 64;
  if (p.recurrent_gates * p.width * p.width > kCached) {
    p.columns = 2 * kernels::kRnnPanel;
    p.rows = kMostRows;
  } else {
    p.columns = std::max<int64_t>(p.width, 1);
    p.rows = 16;
    while (p.rows > 4 && p.heads * ((p.batch + p.rows - 1) / p.rows) < at::get_num_threads()) p.rows /= 2;
  }
  p.rows = std::min(p.rows, std::max<int64_t>(p.batch, 1));
}

kernels::RnnProblem problem(const Cell& cell, const at::Tensor& h, const at::Tensor& recurrent,
                            const at::Tensor& parameters, const at::Tensor& initial,
                            const at::Tensor& starts) {
  kernels::RnnProblem p;
  p.batch = h.size(0);
  p.tokens = h.size(1);
  p.heads = h.size(2);
  p.width = h.size(3);
  p.gates = cell.gates;
  p.recurrent_gates = cell.recurrent_gates;
  p.input_gates = cell.input_gates;
  p.states = cell.states;
  p.parameters = cell.parameters;
  p.recurrent = floats(recurrent);
  p.parameter = floats(parameters);
  p.initial = floats(initial);
  p.starts = starts.defined() ? starts.const_data_ptr<bool>() : nullptr;
  p.h = const_cast<float*>(floats(h));
  constexpr int64_t kChannels = 64;  // of a task, where channels do not meet
  if (p.recurrent_gates == 0 && p.heads * p.width % kChannels == 0) {
    p.heads = p.heads * p.width / kChannels;
    p.width = kChannels;
  }
  choose_tasks(p);
  return p;
}

// Runs pass(first token, last token, first task, last task) over all tokens, -1 included, and tasks.
template <class Pass>
void for_each_task(const kernels::RnnProblem& p, bool backwards, const Pass& pass) {
  const int64_t token_work = p.rows * p.columns * std::max(p.recurrent_gates * p.width, p.gates * 16);
  const int64_t tasks = kernels::rnn_tasks(p);
  if (p.columns >= p.width) {
    parallel_for(tasks, grain(token_work * p.tokens),
                 [&](int64_t begin, int64_t end) { pass(-1, p.tokens, begin, end); });
    return;
  }
  for (int64_t i = -1; i < p.tokens; ++i) {
    const int64_t t = backwards ? p.tokens - 2 - i : i;
    parallel_for(tasks, grain(token_work), [&](int64_t begin, int64_t end) { pass(t, t + 1, begin, end); });
  }
}

class RnnFunction : public torch::autograd::Function<RnnFunction> {
 public:
  // keep: a backward pass may follow
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& wx,
                                                const std::optional<at::Tensor>& optional_recurrent,
                                                const std::optional<at::Tensor>& optional_bias,
                                                const std::optional<at::Tensor>& optional_parameters,
                                                const std::optional<at::Tensor>& optional_initial,
                                                const std::optional<at::Tensor>& optional_starts,
                                                const Cell* cell, bool keep, int64_t isa_number) {
    const auto recurrent = optional_recurrent.value_or(at::Tensor()),
               bias = optional_bias.value_or(at::Tensor()),
               parameters = optional_parameters.value_or(at::Tensor()),
               initial = optional_initial.value_or(at::Tensor()),
               starts = optional_starts.value_or(at::Tensor());
    const auto isa = static_cast<simd::Isa>(isa_number);
    const int64_t batch = wx.size(0), tokens = wx.size(1), heads = wx.size(3), width = wx.size(4);
    const auto memory = [&](at::IntArrayRef sizes) { return at::empty(sizes, wx.options()); };
    const auto h = memory({batch, tokens, heads, width});
    const auto state = memory({cell->states, batch, heads, width});
    auto p = problem(*cell, h, recurrent, parameters, initial, starts);
    if (keep) p.slots = tokens + 1;
    const auto steps = memory({p.slots, cell->gates + cell->states, state.numel() / cell->states});
    const auto work = memory({kernels::rnn_work(p), state.numel() / cell->states});
    at::Tensor exchange, packed;
    if (p.recurrent_gates) exchange = memory({2, heads, batch, width});
    if (p.recurrent_gates && tokens > 1) {  // for one token the copy costs more than it saves
      const int64_t panels = p.recurrent_gates * heads * kernels::rnn_panels(width);
      packed = memory({panels, width, kernels::kRnnPanel});
      parallel_for(panels, grain(width * kernels::kRnnPanel), [&](int64_t begin, int64_t end) {
        kernels::rnn_pack_forward(isa, p, packed.mutable_data_ptr<float>(), begin, end);
      });
    }
    p.wx = floats(wx);
    p.packed = floats(packed);
    p.bias = floats(bias);
    p.state = state.mutable_data_ptr<float>();
    p.steps = steps.mutable_data_ptr<float>();
    p.work = work.mutable_data_ptr<float>();
    p.exchange = const_cast<float*>(floats(exchange));
    for_each_task(p, false, [&](int64_t first, int64_t last, int64_t begin, int64_t end) {
      kernels::rnn_forward(isa, p, cell->forward, first, last, begin, end);
    });
    if (keep) ctx->save_for_backward({recurrent, parameters, initial, starts, h, steps});
    ctx->saved_data["cell"] = cell->name;
    ctx->saved_data["tasks"] = std::vector<int64_t>{p.rows, p.columns};
    ctx->saved_data["isa"] = isa_number;
    ctx->saved_data["wanted"] =
        std::vector<int64_t>{requires_gradient(recurrent), requires_gradient(bias),
                             requires_gradient(parameters), requires_gradient(initial)};
    return {h, state};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    require_first_order("rnn");
    const auto saved = ctx->get_saved_variables();
    const auto &recurrent = saved[0], &parameters = saved[1], &h = saved[4], &steps = saved[5];
    const Cell& cell = find_cell(ctx->saved_data["cell"].toStringRef());
    const auto tasks = ctx->saved_data["tasks"].toIntVector();
    const auto wanted = ctx->saved_data["wanted"].toIntVector();
    const auto isa = static_cast<simd::Isa>(ctx->saved_data["isa"].toInt());
    const int64_t batch = h.size(0), tokens = h.size(1), heads = h.size(2), width = h.size(3);
    const auto memory = [&](at::IntArrayRef sizes) { return at::empty(sizes, h.options()); };
    const auto dgates = memory({batch, tokens, cell.gates, heads, width});
    const auto dh = upstream[0].contiguous(), dstate = upstream[1].contiguous();
    const auto dinitial = at::empty_like(dstate);
    const auto dparameters = memory({batch, cell.parameters, heads, width});
    kernels::RnnGradient g{.forward = problem(cell, h, recurrent, parameters, saved[2], saved[3])};
    auto& p = g.forward;
    p.rows = tasks[0];
    p.columns = tasks[1];
    p.slots = tokens + 1;
    const auto work = memory({kernels::rnn_work(p), dstate.numel() / cell.states});
    at::Tensor exchange, packed;
    if (p.recurrent_gates) {
      exchange = memory({2, heads, batch, p.recurrent_gates * width});
      const int64_t panels = heads * kernels::rnn_panels(width);
      packed = memory({panels, p.recurrent_gates * width, kernels::kRnnPanel});
      parallel_for(panels, grain(p.recurrent_gates * width * kernels::kRnnPanel),
                   [&](int64_t begin, int64_t end) {
                     kernels::rnn_pack_backward(isa, p, packed.mutable_data_ptr<float>(), begin, end);
                   });
    }
    p.packed = floats(packed);
    p.steps = static_cast<float*>(steps.data_ptr());
    p.work = work.mutable_data_ptr<float>();
    p.exchange = const_cast<float*>(floats(exchange));
    g.dh = floats(dh);
    g.dstate = floats(dstate);
    g.dgates = dgates.mutable_data_ptr<float>();
    g.dparameter = dparameters.mutable_data_ptr<float>();
    g.dinitial = dinitial.mutable_data_ptr<float>();
    for_each_task(p, true, [&](int64_t first, int64_t last, int64_t begin, int64_t end) {
      kernels::rnn_backward(isa, g, cell.backward, first, last, begin, end);
    });
    return {dgates.narrow(2, cell.gates - cell.input_gates, cell.input_gates),
            wanted[0] ? matrix_gradient(isa, g, recurrent) : at::Tensor(),
            wanted[1] ? dgates.sum(at::IntArrayRef{0, 1}) : at::Tensor(),
            wanted[2] ? dparameters.sum(0) : at::Tensor(),
            wanted[3] ? dinitial : at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor()};
  }

 private:
  static at::Tensor matrix_gradient(simd::Isa isa, const kernels::RnnGradient& gradient,
                                    const at::Tensor& recurrent) {
    const auto& p = gradient.forward;
    const auto drecurrent = at::empty_like(recurrent);
    const int64_t blocks = p.heads * kernels::rnn_token_blocks(p), panels = kernels::rnn_panels(p.width);
    const auto before =
        at::empty({blocks, panels, kernels::kRnnTokens, kernels::kRnnPanel}, recurrent.options());
    const kernels::RnnMatrixGradient g{&gradient, before.mutable_data_ptr<float>(),
                                       drecurrent.mutable_data_ptr<float>()};
    parallel_for(blocks, grain(kernels::kRnnTokens * p.width),
                 [&](int64_t begin, int64_t end) { kernels::rnn_pack_before(isa, g, begin, end); });
    parallel_for(p.recurrent_gates * p.heads * kernels::rnn_output_blocks(p),
                 grain(p.batch * p.tokens * p.width * kernels::kRnnOutputs),
                 [&](int64_t begin, int64_t end) { kernels::rnn_backward_matrix(isa, g, begin, end); });
    return drecurrent;
  }
};

bool has_kernel(const Cell& cell) {
  return cell.forward && cell.backward &&
         std::max({cell.gates, cell.states, cell.parameters}) <= kernels::kMostRnnRows;
}

}  // namespace

RnnResult rnn(const Rnn& in) {
  const Cell& cell = find_cell(in.cell);
  check_rnn("rnn", in, cell);
  const auto kernel = choose_kernel(in.wx);
  if (kernel == Kernel::cuda)
    if (const auto result = rnn_cuda(in)) return *result;
  if (!is_cpu_kernel(kernel) || !has_kernel(cell)) return reference::rnn(in);
  const auto result = RnnFunction::apply(
      prepared(in.wx), optional_of(prepared(in.recurrent)), optional_of(prepared(in.bias)),
      optional_of(prepared(in.parameters)), optional_of(prepared(in.initial_state)),
      optional_of(prepared(in.starts)), &cell, needs_gradient(in), static_cast<int64_t>(isa_of(kernel)));
  return {result[0].to(in.wx.scalar_type()), result[1]};
}

namespace {

std::tuple<at::Tensor, at::Tensor> rnn_operator(std::string cell, const at::Tensor& wx,
                                                const std::optional<at::Tensor>& recurrent,
                                                const std::optional<at::Tensor>& bias,
                                                const std::optional<at::Tensor>& parameters,
                                                const std::optional<at::Tensor>& initial_state,
                                                const std::optional<at::Tensor>& starts) {
  const auto value = [](const std::optional<at::Tensor>& x) { return x.value_or(at::Tensor()); };
  const auto result = rnn({std::move(cell), wx, value(recurrent), value(bias), value(parameters),
                           value(initial_state), value(starts)});
  return {result.h, result.state};
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def(
      "rnn(str cell, Tensor wx, Tensor? recurrent=None, Tensor? bias=None, Tensor? parameters=None, "
      "Tensor? initial_state=None, Tensor? starts=None) -> (Tensor h, Tensor state)",
      rnn_operator);
}

}  // namespace
}  // namespace weft::ops
