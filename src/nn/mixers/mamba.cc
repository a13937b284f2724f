// Mamba: a diagonal state for every channel whose step size, input and output maps depend on the token.
// Gu and Dao 2023, arXiv:2312.00752.
//   u, z = W_in x;  u = silu(conv(u));  d, b, c = W_x u
//   delta = softplus(W_dt d + dt_bias);  A = -exp(A_log)
//   h_t = exp(delta_t A) * h_{t-1} + delta_t u_t b_t';  m_t = h_t c_t + skip * u_t
//   y_t = W_out (m_t * silu(z_t))
//
// E inner width, N states of a channel, W width of the convolution.
// State: conv [B, W - 1, E] in the activation type, h [B, E, N] fp32.
#include <cmath>

#include "nn/mixer.h"
#include "nn/mixers/step_size.h"
#include "ops/activation/activation.h"
#include "ops/conv/conv.h"
#include "ops/scan/scan.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Mamba final : public SequenceMixer {
 public:
  struct Options {
    int64_t inner = 0, states = 16, conv = 4, dt_rank = 0;
    void fields(Fields& f) {
      f("inner", inner, "E, inner width; 0 means twice the model width", at_least(0));
      f("states", states, "N, states of a channel", at_least(1), at_most(256));
      f("conv", conv, "W, width of the short convolution", at_least(2), at_most(16));
      f("dt_rank", dt_rank, "rank of the step size projection; 0 means width / 16, rounded up", at_least(0));
    }
  };

  Mamba(const Options& options, const Site& site)
      : inner_(options.inner > 0 ? options.inner : 2 * site.width),
        states_(options.states),
        window_(options.conv),
        rank_(options.dt_rank > 0 ? options.dt_rank : (site.width + 15) / 16),
        in_(linear("in", site.width, 2 * inner_)),
        x_(linear("x", inner_, rank_ + 2 * states_)),
        out_(linear("out", inner_, site.width, {.scale = site.residual_init()})) {
    const double conv_bound = 1.0 / std::sqrt(static_cast<double>(window_));
    const double dt_bound = 1.0 / std::sqrt(static_cast<double>(rank_));
    conv_ = vector_parameter("conv.weight", {inner_, window_}, init::uniform(-conv_bound, conv_bound));
    conv_bias_ = vector_parameter("conv.bias", {inner_}, init::constant(0));
    dt_ = parameter("dt.weight", {inner_, rank_}, init::uniform(-dt_bound, dt_bound));
    dt_bias_ = vector_parameter("dt.bias", {inner_}, init_step_size(1e-3, 0.1));
    a_log_ = vector_parameter("A_log", {inner_, states_}, [](at::Tensor& value, at::Generator&) {
      value.copy_(at::arange(1, value.size(1) + 1).log());  // S4D-Real
    });
    skip_ = vector_parameter("skip", {inner_}, init::constant(1));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    auto in = inputs(x, state, context);
    in.problem.initial_state = state.at("h");
    auto result = ops::selective_scan(in.problem);
    state.set("conv", in.conv_state);
    state.set("h", result.state);
    return finish(result.y, in.z, context);
  }

  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    auto in = inputs(x, state, context);
    state.set("conv", in.conv_state);
    in.problem.initial_state = state.writable("h");
    return finish(ops::selective_scan_step(in.problem).y, in.z, context);
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    const auto in = inputs(x, state, context);
    const auto steps = in.problem.delta.to(in.problem.a.scalar_type()).sum(1);  // [B, E]
    auto factor = at::exp(steps.unsqueeze(-1) * in.problem.a);                  // [B, E, N]
    if (context.starts.defined())
      factor = at::where(context.starts.any(1).view({-1, 1, 1}), at::zeros_like(factor), factor);
    Summary summary;
    summary.maps["h"] = {factor, ops::selective_scan(in.problem).state};
    summary.rest.set("conv", in.conv_state);
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("conv", at::zeros({batch, window_ - 1, inner_}, options));
    state.set("h", at::zeros({batch, inner_, states_}, state_options(options)));
    return state;
  }

  std::vector<std::string> export_ports() const override { return {"memory"}; }
  double op_flops(int64_t) const override {
    return static_cast<double>(inner_ * (9 * states_ + 2 * window_));
  }
  std::vector<std::string> ops() const override { return {"conv", "scan"}; }

 private:
  struct Inputs {
    ops::SelectiveScan problem;  // without the initial state
    at::Tensor z, conv_state;
  };

  Inputs inputs(const at::Tensor& x, const State& state, const Context& context) const {
    const auto uz = in_(x).chunk(2, -1);
    auto conv = ops::short_conv({.x = uz[0],
                                 .weight = conv_->value,
                                 .bias = conv_bias_->value,
                                 .silu = true,
                                 .initial_state = state.at("conv"),
                                 .starts = context.starts});
    const auto parts = x_(conv.y).split_with_sizes({rank_, states_, states_}, -1);
    const auto wide = accumulate_type(x);
    const auto delta =
        at::softplus(at::linear(parts[0], dt_->value.to(x.scalar_type())).to(wide) + dt_bias_->value);
    return {{.u = conv.y,
             .delta = delta,
             .a = -a_log_->value.exp(),
             .b = parts[1],
             .c = parts[2],
             .skip = skip_->value,
             .starts = context.starts},
            uz[1],
            conv.state};
  }

  at::Tensor finish(const at::Tensor& memory, const at::Tensor& z, const Context& context) const {
    if (context.wants("memory")) (*context.exports)["memory"] = {.tensors = {{"memory", memory}}};
    return out_(ops::silu_mul(z, memory));
  }

  int64_t inner_, states_, window_, rank_;
  Linear in_, x_, out_;
  std::shared_ptr<Parameter> conv_, conv_bias_, dt_, dt_bias_, a_log_, skip_;
};
const Register<Mamba> register_mamba{"mamba", "selective state space layer (Mamba-1)"};

}  // namespace
}  // namespace weft
