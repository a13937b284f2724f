#include "ops/conv/conv.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "base/error.h"
#include "ops/conv/cuda.h"
#include "ops/conv/kernel.h"
#include "ops/kernel_choice.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

void check(const char* op, const ShortConv& in) {
  require(in.x.defined() && in.x.dim() == 3, "{}: x is {}, expected [batch, tokens, channels]", op,
          shape_text(in.x));
  require_like(op, "x", in.x, in.x);
  const int64_t batch = in.x.size(0), tokens = in.x.size(1), channels = in.x.size(2);
  require_like(op, "weight", in.weight, in.x);
  require_shape(op, "weight", in.weight, {channels, -1});
  const int64_t width = in.weight.size(1);
  require(width >= 2 && width <= 16, "{}: weight is {}: width {}, expected 2 to 16", op,
          shape_text(in.weight), width);
  if (in.bias.defined()) {
    require_like(op, "bias", in.bias, in.x);
    require_shape(op, "bias", in.bias, {channels});
  }
  if (in.initial_state.defined()) {
    require_like(op, "initial_state", in.initial_state, in.x);
    require_shape(op, "initial_state", in.initial_state, {batch, width - 1, channels});
  }
  check_starts(op, in.starts, in.x, batch, tokens);
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

at::Tensor tensor(const Optional& x) { return x.value_or(at::Tensor()); }

// Tokens of a task: many enough that each task's share of the taps' gradient is small beside its inputs.
constexpr int64_t kTile = 256;

// What the kernels read: x of any float type with contiguous rows, the others contiguous and in fp32.
struct Inputs {
  at::Tensor x, weight, bias, before, starts;
};

simd::FloatType float_type(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat      ? simd::FloatType::fp32
         : x.scalar_type() == at::kBFloat16 ? simd::FloatType::bf16
                                            : simd::FloatType::fp16;
}

kernels::ShortConvProblem problem_of(const Inputs& in, bool silu) {
  kernels::ShortConvProblem p;
  p.batch = in.x.size(0), p.tokens = in.x.size(1), p.channels = in.x.size(2), p.width = in.weight.size(1);
  p.tile = kTile, p.silu = silu, p.type = float_type(in.x);
  p.x = in.x.const_data_ptr(), p.x_batch = in.x.stride(0), p.x_token = in.x.stride(1);
  p.weight = in.weight.const_data_ptr<float>();
  if (in.bias.defined()) p.bias = in.bias.const_data_ptr<float>();
  if (in.before.defined()) p.before = in.before.const_data_ptr<float>();
  if (in.starts.defined()) p.starts = reinterpret_cast<const uint8_t*>(in.starts.const_data_ptr<bool>());
  return p;
}

// Memory for y or dx.
at::Tensor output_of(const at::Tensor& x) { return at::empty(x.sizes(), x.options()); }

// Tasks that a thread should have at least, about 16 thousand outputs.
int64_t grain(const kernels::ShortConvProblem& p) {
  const int64_t outputs =
      std::min(p.tile, p.tokens) * std::min(kernels::short_conv_block(p.width), p.channels);
  return std::max<int64_t>(1, (1 << 14) / (outputs + 1));
}

at::Tensor run_forward(const Inputs& in, bool silu, simd::Isa isa) {
  auto p = problem_of(in, silu);
  const auto y = output_of(in.x);
  p.y = y.mutable_data_ptr();
  parallel_for(p.tasks(), grain(p),
               [&](int64_t begin, int64_t end) { kernels::short_conv_forward(isa, p, begin, end); });
  return y;
}

class ShortConvFunction final : public torch::autograd::Function<ShortConvFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                            const Optional& bias, const Optional& before, const Optional& starts, bool silu,
                            int64_t isa) {
    const Inputs in{x, weight, tensor(bias), tensor(before), tensor(starts)};
    ctx->save_for_backward({x, weight, in.bias, in.before, in.starts});
    ctx->saved_data["silu"] = silu;
    ctx->saved_data["isa"] = isa;
    return run_forward(in, silu, static_cast<simd::Isa>(isa));
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    require_first_order("short_conv");
    const auto saved = ctx->get_saved_variables();
    const Inputs in{saved[0], saved[1], saved[2], saved[3], saved[4]};
    auto p = problem_of(in, ctx->saved_data["silu"].toBool());
    size_t edge = 2;  // only tensors that were given have one
    const bool wants_bias = in.bias.defined() && ctx->needs_input_grad(edge++);
    const bool wants_before = in.before.defined() && ctx->needs_input_grad(edge);
    const bool wants_taps = ctx->needs_input_grad(1) || wants_bias;

    const auto dy = upstream[0].contiguous();
    at::Tensor dx, dbefore, dtaps;
    p.dy = dy.const_data_ptr();
    if (ctx->needs_input_grad(0)) {
      dx = output_of(in.x);
      p.dx = dx.mutable_data_ptr();
    }
    if (wants_before) {
      dbefore = at::empty({p.batch, p.width - 1, p.channels}, at::kFloat);
      p.dbefore = dbefore.mutable_data_ptr<float>();
    }
    if (wants_taps) {
      dtaps = at::empty({p.batch * p.tiles(), p.width + 1, p.channels}, at::kFloat);
      p.dtaps = dtaps.mutable_data_ptr<float>();
    }
    const auto isa = static_cast<simd::Isa>(ctx->saved_data["isa"].toInt());
    parallel_for(p.tasks(), grain(p),
                 [&](int64_t begin, int64_t end) { kernels::short_conv_backward(isa, p, begin, end); });

    at::Tensor dweight, dbias;
    if (wants_taps) {
      const auto sums = dtaps.sum(0);  // [W + 1, C]
      dweight = sums.narrow(0, 0, p.width).t();
      if (wants_bias) dbias = sums.select(0, p.width);
    }
    return {dx, dweight, dbias, dbefore, {}, {}, {}};  // starts, silu, isa
  }
};

bool wants_gradient(const ShortConv& in) {
  if (!at::GradMode::is_enabled()) return false;
  for (const auto* x : {&in.x, &in.weight, &in.bias, &in.initial_state})
    if (x->defined() && x->requires_grad()) return true;
  return false;
}

// The last W - 1 inputs of the last document of every sequence; plain tensor code, differentiable.
at::Tensor state_after(const ShortConv& in) {
  const int64_t batch = in.x.size(0), tokens = in.x.size(1), channels = in.x.size(2),
                past = in.weight.size(1) - 1;
  auto state = in.x.narrow(1, std::max<int64_t>(0, tokens - past), std::min(tokens, past));
  if (tokens < past) {
    const auto old = in.initial_state.defined()
                         ? in.initial_state.narrow(1, tokens, past - tokens).to(in.x.scalar_type())
                         : at::zeros({batch, past - tokens, channels}, in.x.options());
    state = at::cat({old, state}, 1);
  }
  if (!in.starts.defined() || tokens == 0) return state.clone();
  // A row is out of sight when a document starts between it and the end.
  const auto later = in.starts.narrow(1, std::max<int64_t>(0, tokens - past), std::min(tokens, past))
                         .to(at::kInt)
                         .flip(1)
                         .cumsum(1)
                         .flip(1);  // starts at a row or behind it
  auto behind = at::cat({later.narrow(1, 1, later.size(1) - 1), at::zeros({batch, 1}, later.options())}, 1);
  if (tokens < past) behind = at::cat({later.narrow(1, 0, 1).expand({batch, past - tokens}), behind}, 1);
  return at::where((behind > 0).unsqueeze(-1), at::zeros({}, in.x.options()), state);
}

at::Tensor fp32(const at::Tensor& x) { return x.defined() ? x.to(at::kFloat).contiguous() : x; }

Inputs inputs_of(const ShortConv& in) {
  return {in.x.stride(2) == 1 || in.x.size(2) == 1 ? in.x : in.x.contiguous(), fp32(in.weight), fp32(in.bias),
          fp32(in.initial_state), in.starts.defined() ? in.starts.contiguous() : in.starts};
}

}  // namespace

ShortConvResult short_conv(const ShortConv& in) {
  check("short_conv", in);
  const Kernel kernel = choose_kernel(in.x);
  const bool cuda = kernel == Kernel::cuda && has_cuda_short_conv();
  if (!is_cpu_kernel(kernel) && !cuda) return reference::short_conv(in);
  if (in.x.numel() == 0) return {at::zeros_like(in.x), state_after(in)};
  if (cuda) return cuda_short_conv(in);
  const auto inputs = inputs_of(in);
  const auto isa = isa_of(kernel);
  const auto y = wants_gradient(in)
                     ? ShortConvFunction::apply(inputs.x, inputs.weight, optional_of(inputs.bias),
                                                optional_of(inputs.before), optional_of(inputs.starts),
                                                in.silu, static_cast<int64_t>(isa))
                     : run_forward(inputs, in.silu, isa);
  return {y, state_after(in)};
}

at::Tensor short_conv_step(const ShortConv& in) {
  const char* const op = "short_conv_step";
  check(op, in);
  require(in.x.size(1) == 1, "{}: x is {}, expected one token", op, shape_text(in.x));
  const auto& state = in.initial_state;
  const auto found =
      state.defined() ? shape_text(state) + " " + c10::toString(state.scalar_type()) : "missing";
  require(state.defined() && state.is_contiguous() && state.scalar_type() == in.x.scalar_type(),
          "{}: initial_state is {}, expected contiguous {}", op, found, c10::toString(in.x.scalar_type()));
  require(!in.starts.defined(), "{}: starts is given; clear the state instead", op);
  const at::NoGradGuard no_grad;
  const Kernel kernel = choose_kernel(in.x);
  if (kernel == Kernel::cuda && has_cuda_short_conv() && in.x.numel() > 0) return cuda_short_conv_step(in);
  if (!is_cpu_kernel(kernel)) {
    const auto out = reference::short_conv(in);
    state.copy_(out.state);
    return out.y;
  }
  const auto y = output_of(in.x);
  if (in.x.numel() == 0) return y;
  auto inputs = inputs_of(in);
  inputs.before = at::Tensor();
  auto p = problem_of(inputs, in.silu);
  p.y = y.mutable_data_ptr(), p.state = state.mutable_data_ptr();
  parallel_for(p.step_tasks(), grain(p),
               [&](int64_t begin, int64_t end) { kernels::short_conv_step(isa_of(kernel), p, begin, end); });
  return y;
}

namespace {

std::tuple<at::Tensor, at::Tensor> short_conv_operator(const at::Tensor& x, const at::Tensor& weight,
                                                       const Optional& bias, bool silu,
                                                       const Optional& initial_state,
                                                       const Optional& starts) {
  const auto out = short_conv({x, weight, tensor(bias), silu, tensor(initial_state), tensor(starts)});
  return {out.y, out.state};
}

at::Tensor short_conv_step_operator(const at::Tensor& x, const at::Tensor& weight, const Optional& bias,
                                    bool silu, const at::Tensor& state) {
  return short_conv_step({x, weight, tensor(bias), silu, state, {}});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def(
      "short_conv(Tensor x, Tensor weight, Tensor? bias=None, bool silu=False, Tensor? initial_state=None, "
      "Tensor? starts=None) -> (Tensor, Tensor)",
      short_conv_operator);
  m.def("short_conv_step(Tensor x, Tensor weight, Tensor? bias, bool silu, Tensor(a!) state) -> Tensor",
        short_conv_step_operator);
}

}  // namespace weft::ops
