// rnn on CUDA: which kernel takes a case, what it is given, and the gradients that are large products.
#include "ops/rnn/cuda.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/cuda_kernels.h"
#include "ops/recurrence.h"
#include "ops/rnn/checks.h"
#include "ops/rnn/cuda_arguments.h"

namespace weft::ops {
namespace {

using kernels::RnnCuda;
using kernels::RnnCudaGradient;
using kernels::RnnCudaKernels;

// As named in kernel_cuda.h; each saves for its own backward pass.
enum Path : int64_t { kAny, kFused, kWide };

struct Inputs {
  at::Tensor wx, recurrent, bias, parameters, initial, starts;  // as in Rnn, contiguous, types of RnnCuda
};

// Fused and wide kernels fetch R before they begin, which a few tokens do not pay.
Path path_of(const Cell& cell, const at::Tensor& wx, const CudaLaunch& launch) {
  constexpr int64_t kFewTokens = 4;
  const int64_t width = wx.size(4);
  if (!cell.recurrent_gates || wx.scalar_type() == at::kFloat || width % 8 || wx.size(1) < kFewTokens)
    return kAny;
  // The backward pass of wide heads of four states needs 114 KiB of shared memory, of which 8.6, 8.9 and 12.0 have 99.
  const int chip = launch.capability();
  const bool small = chip == 86 || chip == 89 || chip >= 120;
  if (width <= (small && cell.states > 2 ? 64 : kernels::kMostFusedWidth)) return kFused;
  return width <= kernels::kMostWideWidth && launch.capability() == 90 ? kWide : kAny;
}

RnnCuda problem(const Cell& cell, const Inputs& in) {
  RnnCuda p;
  p.cell = *cuda_cell(cell);
  p.type = cuda_type(in.wx);
  p.batch = in.wx.size(0);
  p.tokens = in.wx.size(1);
  p.heads = in.wx.size(3);
  p.width = in.wx.size(4);
  p.wx = in.wx.const_data_ptr();
  p.bias = data<float>(in.bias);
  p.parameter = data<float>(in.parameters);
  p.initial = data<float>(in.initial);
  p.starts = data<bool>(in.starts);
  return p;
}

// sum over sequences and tokens of dg h', [J_r, H, out, in]; before [B T, H, D], h before each token.
at::Tensor matrix_gradient(const Cell& cell, const at::Tensor& dgates, const at::Tensor& before) {
  const int64_t heads = before.size(1), width = before.size(2), gates = cell.recurrent_gates;
  const auto of_gates = dgates.view({before.size(0), cell.gates, heads, width}).narrow(1, 0, gates);
  if (heads == 1)
    return at::mm(of_gates.reshape({before.size(0), gates * width}).t(), before.squeeze(1))
        .view({gates, 1, width, width});
  const auto by_head = before.transpose(0, 1);  // [H, B T, in]
  std::vector<at::Tensor> products;
  for (int64_t j = 0; j < gates; ++j)
    products.push_back(at::bmm(of_gates.select(1, j).permute({1, 2, 0}), by_head));
  return at::stack(products);
}

class RnnCudaFunction : public torch::autograd::Function<RnnCudaFunction> {
 public:
  // keep: a backward pass may follow
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& wx,
                                                const std::optional<at::Tensor>& recurrent,
                                                const std::optional<at::Tensor>& bias,
                                                const std::optional<at::Tensor>& parameters,
                                                const std::optional<at::Tensor>& initial,
                                                const std::optional<at::Tensor>& starts, const Cell* cell,
                                                bool keep) {
    const auto value = [](const std::optional<at::Tensor>& x) { return x.value_or(at::Tensor()); };
    const Inputs in{wx, value(recurrent), value(bias), value(parameters), value(initial), value(starts)};
    const int64_t batch = wx.size(0), tokens = wx.size(1), heads = wx.size(3), width = wx.size(4);
    const CudaLaunch launch(wx);
    const Path path = path_of(*cell, wx, launch);
    const auto floats = wx.options().dtype(at::kFloat);
    const auto h = at::empty({batch, tokens, heads, width}, wx.options());
    const auto state = at::empty({cell->states, batch, heads, width}, floats);
    at::Tensor states, gates;
    if (path == kAny) {
      states = at::empty({keep ? tokens : 2, cell->states, batch, heads, width}, floats);
      if (keep) gates = at::empty({tokens, cell->gates, batch, heads, width}, floats);
    } else if (keep && path == kFused) {
      const int64_t places = kernels::rnn_fused_places(batch, tokens, heads, width);
      states = at::empty({places, cell->states - 1, 4}, floats);
      gates = at::empty({places, cell->gates, 4}, wx.options());
    } else if (keep) {
      states = at::empty({batch, tokens, cell->states - 1, heads, width}, floats);
      gates = at::empty({batch, tokens, cell->gates, heads, width}, wx.options());
    }
    auto p = problem(*cell, in);
    p.keep = keep;
    p.recurrent = in.recurrent.defined() ? in.recurrent.const_data_ptr() : nullptr;
    p.h = h.mutable_data_ptr();
    p.state = state.mutable_data_ptr<float>();
    p.states = mutable_data<float>(states);
    p.gates = gates.defined() ? gates.mutable_data_ptr() : nullptr;
    const auto& table = *CudaKernels<RnnCudaKernels>::get();
    const auto run = path == kAny     ? table.forward_any
                     : path == kFused ? table.forward_fused
                                      : table.forward_wide;
    check_launch("rnn", run(p, launch.stream()));
    if (keep)
      ctx->save_for_backward({in.wx, in.recurrent, in.parameters, in.initial, in.starts, h, states, gates});
    ctx->saved_data["cell"] = cell->name;
    ctx->saved_data["wanted"] =
        std::vector<int64_t>{requires_gradient(in.recurrent), requires_gradient(in.bias),
                             requires_gradient(in.parameters), requires_gradient(in.initial)};
    return {h, state};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    require_first_order("rnn");
    const auto saved = ctx->get_saved_variables();
    const Inputs in{saved[0], saved[1], {}, saved[2], saved[3], saved[4]};
    const auto &h = saved[5], &states = saved[6], &gates = saved[7];
    const Cell& cell = find_cell(ctx->saved_data["cell"].toStringRef());
    const auto wanted = ctx->saved_data["wanted"].toIntVector();
    const int64_t batch = h.size(0), tokens = h.size(1), heads = h.size(2), width = h.size(3);
    const CudaLaunch launch(h);
    const Path path = path_of(cell, in.wx, launch);
    const auto dh = aligned(upstream[0]), dstate = aligned(upstream[1]);
    const auto dgates = at::empty({batch, tokens, cell.gates, heads, width}, h.options());
    const auto dinitial = at::empty_like(dstate);
    const auto dparameters = at::empty({batch, cell.parameters, heads, width}, dstate.options());
    at::Tensor transposed, carried;
    if (in.recurrent.defined()) transposed = in.recurrent.transpose(2, 3).contiguous();
    if (path == kAny) carried = at::empty_like(dstate);
    RnnCudaGradient g{.forward = problem(cell, in)};
    g.forward.keep = true;
    g.forward.recurrent = transposed.defined() ? transposed.const_data_ptr() : nullptr;
    g.forward.h = h.data_ptr();
    g.forward.states = static_cast<float*>(states.data_ptr());
    g.forward.gates = gates.data_ptr();
    g.dh = dh.const_data_ptr();
    g.dstate = dstate.const_data_ptr<float>();
    g.dgates = dgates.mutable_data_ptr();
    g.carried = mutable_data<float>(carried);
    g.dparameter = dparameters.mutable_data_ptr<float>();
    g.dinitial = dinitial.mutable_data_ptr<float>();
    const auto& table = *CudaKernels<RnnCudaKernels>::get();
    const auto run = path == kAny     ? table.backward_any
                     : path == kFused ? table.backward_fused
                                      : table.backward_wide;
    check_launch("rnn", run(g, launch.stream()));
    const at::Tensor none;
    at::Tensor drecurrent;
    if (wanted[0]) {
      const auto before = at::empty({batch * tokens, heads, width}, h.options());
      check_launch("rnn", table.h_before(g.forward, before.mutable_data_ptr(), launch.stream()));
      drecurrent = matrix_gradient(cell, dgates, before);
    }
    return {dgates.narrow(2, cell.gates - cell.input_gates, cell.input_gates),
            drecurrent,
            wanted[1] ? dgates.sum(at::IntArrayRef{0, 1}, false, at::kFloat) : none,
            wanted[2] ? dparameters.sum(0) : none,
            wanted[3] ? dinitial : none,
            none,
            none,
            none};
  }
};

}  // namespace

std::optional<RnnResult> rnn_cuda(const Rnn& in) {
  const Cell& cell = find_cell(in.cell);
  if (!CudaKernels<RnnCudaKernels>::get() || !cuda_cell(cell) || in.wx.numel() == 0) return std::nullopt;
  const auto as = [](const at::Tensor& x, at::ScalarType type) {
    return x.defined() ? std::optional<at::Tensor>(aligned(x.to(type))) : std::nullopt;
  };
  const auto result =
      RnnCudaFunction::apply(aligned(in.wx), as(in.recurrent, in.wx.scalar_type()), as(in.bias, at::kFloat),
                             as(in.parameters, at::kFloat), as(in.initial_state, at::kFloat),
                             as(in.starts, at::kBool), &cell, needs_gradient(in));
  return RnnResult{result[0], result[1]};
}

}  // namespace weft::ops
