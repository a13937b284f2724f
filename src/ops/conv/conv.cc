#include "ops/conv/conv.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "base/error.h"
#include "ops/conv/kernel.h"
#include "ops/kernel_choice.h"
#include "ops/parallel.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

void check(const ShortConv& in) {
  require(in.x.defined() && in.x.dim() == 3, "short_conv: x is {}, expected [batch, tokens, channels]",
          shape_text(in.x));
  require_like("short_conv", "x", in.x, in.x);
  const int64_t batch = in.x.size(0), tokens = in.x.size(1), channels = in.x.size(2);
  require_like("short_conv", "weight", in.weight, in.x);
  require_shape("short_conv", "weight", in.weight, {channels, -1});
  const int64_t width = in.weight.size(1);
  require(width >= 2 && width <= 16, "short_conv: weight is {}: width {}, expected 2 to 16",
          shape_text(in.weight), width);
  if (in.bias.defined()) {
    require_like("short_conv", "bias", in.bias, in.x);
    require_shape("short_conv", "bias", in.bias, {channels});
  }
  if (in.initial_state.defined()) {
    require_like("short_conv", "initial_state", in.initial_state, in.x);
    require_shape("short_conv", "initial_state", in.initial_state, {batch, width - 1, channels});
  }
  if (in.starts.defined()) {
    require_shape("short_conv", "starts", in.starts, {batch, tokens});
    require(in.starts.scalar_type() == at::kBool, "short_conv: starts has type {}, expected bool",
            c10::toString(in.starts.scalar_type()));
  }
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

at::Tensor tensor(const Optional& x) { return x.value_or(at::Tensor()); }
Optional optional(const at::Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; }

// Tokens of a task: many enough that each task's share of the taps' gradient is small beside its inputs.
constexpr int64_t kTile = 128;

// What the kernels read, in fp32; `taps` is the weight transposed.
struct Inputs {
  at::Tensor x, taps, bias, before, starts;
};

kernels::ShortConvProblem problem_of(const Inputs& in, bool silu) {
  kernels::ShortConvProblem p;
  p.batch = in.x.size(0), p.tokens = in.x.size(1), p.channels = in.x.size(2), p.width = in.taps.size(0);
  p.tile = kTile, p.silu = silu;
  p.x = in.x.const_data_ptr<float>(), p.x_batch = in.x.stride(0), p.x_token = in.x.stride(1);
  p.taps = in.taps.const_data_ptr<float>();
  if (in.bias.defined()) p.bias = in.bias.const_data_ptr<float>();
  if (in.before.defined()) p.before = in.before.const_data_ptr<float>();
  if (in.starts.defined()) p.starts = reinterpret_cast<const uint8_t*>(in.starts.const_data_ptr<bool>());
  return p;
}

// Tiles that a thread should have at least, about 16 thousand outputs.
int64_t grain(const kernels::ShortConvProblem& p) {
  return std::max<int64_t>(1, (1 << 14) / (std::min(p.tile, p.tokens + 1) * p.channels + 1));
}

at::Tensor run_forward(const Inputs& in, bool silu, simd::Isa isa) {
  auto p = problem_of(in, silu);
  const auto y = at::empty({p.batch, p.tokens, p.channels}, at::kFloat);
  p.y = y.mutable_data_ptr<float>();
  parallel_for(p.tasks(), grain(p),
               [&](int64_t begin, int64_t end) { kernels::short_conv_forward(isa, p, begin, end); });
  return y;
}

class ShortConvFunction final : public torch::autograd::Function<ShortConvFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& taps,
                            const Optional& bias, const Optional& before, const Optional& starts, bool silu,
                            int64_t isa) {
    const Inputs in{x, taps, tensor(bias), tensor(before), tensor(starts)};
    ctx->save_for_backward({x, taps, in.bias, in.before, in.starts});
    ctx->saved_data["silu"] = silu;
    ctx->saved_data["isa"] = isa;
    return run_forward(in, silu, static_cast<simd::Isa>(isa));
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    supported(!at::GradMode::is_enabled(),
              "short_conv: the kernels have no second derivative; WEFT_KERNEL=reference has");
    const auto saved = ctx->get_saved_variables();
    const Inputs in{saved[0], saved[1], saved[2], saved[3], saved[4]};
    auto p = problem_of(in, ctx->saved_data["silu"].toBool());
    size_t edge = 2;  // only tensors that were given have one
    const bool wants_bias = in.bias.defined() && ctx->needs_input_grad(edge++);
    const bool wants_before = in.before.defined() && ctx->needs_input_grad(edge);
    const bool wants_taps = ctx->needs_input_grad(1) || wants_bias;

    const auto dy = upstream[0].contiguous();
    at::Tensor dx, dbefore, dtaps;
    p.dy = dy.const_data_ptr<float>();
    if (ctx->needs_input_grad(0)) {
      dx = at::empty({p.batch, p.tokens, p.channels}, at::kFloat);
      p.dx = dx.mutable_data_ptr<float>();
    }
    if (wants_before) {
      dbefore = at::empty({p.batch, p.width - 1, p.channels}, at::kFloat);
      p.dbefore = dbefore.mutable_data_ptr<float>();
    }
    if (wants_taps) {
      dtaps = at::empty({p.tasks(), p.width + 1, p.channels}, at::kFloat);
      p.dtaps = dtaps.mutable_data_ptr<float>();
    }
    const auto isa = static_cast<simd::Isa>(ctx->saved_data["isa"].toInt());
    parallel_for(p.tasks(), grain(p),
                 [&](int64_t begin, int64_t end) { kernels::short_conv_backward(isa, p, begin, end); });

    at::Tensor dweight, dbias;
    if (wants_taps) {
      const auto sums = dtaps.sum(0);  // [W + 1, C]
      dweight = sums.narrow(0, 0, p.width);
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

}  // namespace

ShortConvResult short_conv(const ShortConv& in) {
  check(in);
  const Kernel kernel = choose_kernel(in.x);
  if (kernel == Kernel::reference || kernel == Kernel::cuda) return reference::short_conv(in);
  if (in.x.size(1) == 0) return {at::zeros_like(in.x), state_after(in)};
  const auto x = in.x.to(at::kFloat);
  const Inputs inputs{x.stride(2) == 1 || x.size(2) == 1 ? x : x.contiguous(),
                      in.weight.to(at::kFloat).t().contiguous(), fp32(in.bias), fp32(in.initial_state),
                      in.starts.defined() ? in.starts.contiguous() : in.starts};
  const auto isa = isa_of(kernel);
  const auto y =
      wants_gradient(in)
          ? ShortConvFunction::apply(inputs.x, inputs.taps, optional(inputs.bias), optional(inputs.before),
                                     optional(inputs.starts), in.silu, static_cast<int64_t>(isa))
          : run_forward(inputs, in.silu, isa);
  return {y.to(in.x.scalar_type()), state_after(in)};
}

namespace {

std::tuple<at::Tensor, at::Tensor> short_conv_operator(const at::Tensor& x, const at::Tensor& weight,
                                                       const Optional& bias, bool silu,
                                                       const Optional& initial_state,
                                                       const Optional& starts) {
  const auto out = short_conv({x, weight, tensor(bias), silu, tensor(initial_state), tensor(starts)});
  return {out.y, out.state};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def(
      "short_conv(Tensor x, Tensor weight, Tensor? bias=None, bool silu=False, Tensor? initial_state=None, "
      "Tensor? starts=None) -> (Tensor, Tensor)",
      short_conv_operator);
}

}  // namespace weft::ops
