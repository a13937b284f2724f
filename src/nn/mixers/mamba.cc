// Mamba: a diagonal state for every channel whose step size, input and output maps depend on the token.
// Gu and Dao 2023, arXiv:2312.00752; norms of the maps: Lieber et al. 2024 (Jamba), arXiv:2403.19887, Zuo et al. 2024
// (Falcon Mamba), arXiv:2410.05355; heads: Glorioso et al. 2024 (Zamba), arXiv:2405.16712.
//   u, z = W_in x;  u = f(conv(u));  d, b, c = W_x u, normed where the options say so
//   delta = softplus(W_dt d + dt_bias);  A = -exp(A_log)
//   h_t = exp(delta_t A) * h_{t-1} + delta_t u_t b_t';  m_t = h_t c_t + skip * u_t
//   y_t = W_out (m_t * silu(z_t))
// With H heads every E / H channels have a W_x, W_dt, b and c of their own.
//
// E inner width, N states of a channel, W width of the convolution.
// State: conv [B, max(W - 1, 1), E] in the activation type, h [B, E, N] fp32.
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/conv_window.h"
#include "nn/mixers/step_size.h"
#include "ops/activation/activation.h"
#include "ops/activation/named.h"
#include "ops/norm/norm.h"
#include "ops/scan/scan.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Mamba final : public SequenceMixer {
 public:
  struct Options {
    int64_t inner = 0, states = 16, conv = 4, dt_rank = 0, heads = 1;
    bool bias = false, output_bias = false, conv_bias = true;
    std::string activation = "silu", map_norm = "none";
    double map_norm_eps = 0;
    void fields(Fields& f) {
      f("inner", inner, "E, inner width; 0 means twice the model width", at_least(0));
      f("states", states, "N, states of a channel", at_least(1), at_most(256));
      f("conv", conv, "W, width of the short convolution", at_least(1), at_most(16));
      f("dt_rank", dt_rank, "rank of the step size projection; 0 means width / 16, rounded up", at_least(0));
      f("heads", heads, "H, blocks of channels with their own maps", at_least(1));
      f("bias", bias, "bias of the input projection");
      f("output_bias", output_bias, "bias of the output projection");
      f("conv_bias", conv_bias, "bias of the convolution");
      f("activation", activation, "of the convolution's output", one_of(ops::activation_names()));
      f("map_norm", map_norm, "RMS norm of d, b and c: none, without weights (unit), with them (rms)",
        one_of({"none", "unit", "rms"}));
      f("map_norm_eps", map_norm_eps, "of that norm; 0: the layer's norm_eps", at_least(0));
    }
  };

  Mamba(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        in_(linear("in", site.width, 2 * o_.inner, {.bias = o_.bias})),
        x_(linear("x", o_.inner / o_.heads, o_.heads * map_width())),
        out_(linear("out", o_.inner, site.width, {.bias = o_.output_bias, .scale = site.residual_init()})) {
    const double dt_bound = 1.0 / std::sqrt(static_cast<double>(o_.dt_rank));
    const auto conv_init = conv_window_init(o_.conv);
    conv_.weight = vector_parameter("conv.weight", {o_.inner, o_.conv}, conv_init);
    if (o_.conv_bias) conv_.bias = vector_parameter("conv.bias", {o_.inner}, init::constant(0));
    conv_.activation = ops::activation_of(o_.activation);
    dt_ = parameter("dt.weight", {o_.inner, o_.dt_rank}, init::uniform(-dt_bound, dt_bound));
    dt_bias_ = vector_parameter("dt.bias", {o_.inner}, init_step_size(1e-3, 0.1));
    a_log_ = vector_parameter("A_log", {o_.inner, o_.states}, [](at::Tensor& value, at::Generator&) {
      value.copy_(at::arange(1, value.size(1) + 1).log());  // S4D-Real
    });
    skip_ = vector_parameter("skip", {o_.inner}, init::constant(1));
    if (o_.map_norm == "rms") {
      dt_norm_ = vector_parameter("dt_norm.weight", {o_.dt_rank}, init::constant(1));
      b_norm_ = vector_parameter("b_norm.weight", {o_.states}, init::constant(1));
      c_norm_ = vector_parameter("c_norm.weight", {o_.states}, init::constant(1));
    }
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    auto in = inputs(x, state, context);
    in.problem.initial_state = state.at("h");
    auto result = scan(in.problem);
    state.set("conv", in.conv_state);
    state.set("h", result.state);
    return finish(result.y, in.z, context);
  }

  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    if (o_.heads > 1) return run(x, state, context);
    auto in = inputs(x, state, context);
    state.set("conv", in.conv_state);
    in.problem.initial_state = state.writable("h");
    in.problem.b = in.problem.b.squeeze(2);
    in.problem.c = in.problem.c.squeeze(2);
    return finish(ops::selective_scan_step(in.problem).y, in.z, context);
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    const auto in = inputs(x, state, context);
    const auto steps = in.problem.delta.to(in.problem.a.scalar_type()).sum(1);  // [B, E]
    auto factor = at::exp(steps.unsqueeze(-1) * in.problem.a);                  // [B, E, N]
    if (context.starts.defined())
      factor = at::where(context.starts.any(1).view({-1, 1, 1}), at::zeros_like(factor), factor);
    Summary summary;
    summary.maps["h"] = {factor, scan(in.problem).state};
    summary.rest.set("conv", in.conv_state);
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("conv", at::zeros({batch, conv_.past(), o_.inner}, options));
    state.set("h", at::zeros({batch, o_.inner, o_.states}, state_options(options)));
    return state;
  }

  std::vector<std::string> export_ports() const override { return {"memory"}; }
  double op_flops(int64_t) const override {
    return static_cast<double>(o_.inner * (9 * o_.states + 2 * o_.conv));
  }
  std::vector<std::string> ops() const override {
    std::vector<std::string> names{"conv", "scan"};
    if (o_.map_norm != "none") names.push_back("norm");
    return names;
  }

 private:
  struct Inputs {
    ops::SelectiveScan problem;  // without the initial state; b and c are [B, T, H, N]
    at::Tensor z, conv_state;
  };

  static Options resolved(Options o, const Site& site) {
    if (o.inner == 0) o.inner = 2 * site.width;
    if (o.dt_rank == 0) o.dt_rank = (site.width + 15) / 16;
    if (o.map_norm_eps == 0) o.map_norm_eps = site.norm_eps;
    require(o.inner % o.heads == 0, "{}: the inner width {} is not a multiple of heads {}", site.where,
            o.inner, o.heads);
    return o;
  }
  int64_t map_width() const { return o_.dt_rank + 2 * o_.states; }

  // y [..., H R] = x [..., H P] times a block for each head, weight [H R, P].
  at::Tensor by_head(const at::Tensor& x, const at::Tensor& weight) const {
    if (o_.heads == 1) return at::linear(x, weight);
    const auto blocks = weight.view({o_.heads, -1, weight.size(1)});
    return at::einsum("bthp,hrp->bthr", {x.unflatten(-1, {o_.heads, -1}), blocks}).flatten(2);
  }

  at::Tensor map_norm(const at::Tensor& x, const std::shared_ptr<Parameter>& weight) const {
    if (o_.map_norm == "none") return x;
    return ops::rms_norm(x, weight ? weight->value : at::Tensor(), o_.map_norm_eps);
  }

  Inputs inputs(const at::Tensor& x, const State& state, const Context& context) const {
    const auto uz = in_(x).chunk(2, -1);
    auto conv = conv_.run(uz[0], state.at("conv"), context);
    const auto type = x.scalar_type();
    const auto parts = by_head(conv.y, x_.weight().to(type))
                           .unflatten(-1, {o_.heads, map_width()})
                           .split_with_sizes({o_.dt_rank, o_.states, o_.states}, -1);  // [B, T, H, ...]
    const auto step = by_head(map_norm(parts[0], dt_norm_).flatten(2), dt_->value.to(type));
    return {{.u = conv.y,
             .delta = at::softplus(step.to(accumulate_type(x)) + dt_bias_->value),
             .a = -a_log_->value.exp(),
             .b = map_norm(parts[1], b_norm_),
             .c = map_norm(parts[2], c_norm_),
             .skip = skip_->value,
             .starts = context.starts},
            uz[1],
            conv.state};
  }

  // The scans of all heads: the operator's b and c are [B, T, N].
  ops::SelectiveScanResult scan(const ops::SelectiveScan& all) const {
    std::vector<at::Tensor> y, state;
    const int64_t size = o_.inner / o_.heads;
    for (int64_t h = 0; h < o_.heads; ++h) {
      const auto part = [&](const at::Tensor& x, int64_t dim) {
        return x.defined() ? x.narrow(dim, h * size, size) : x;
      };
      auto result = ops::selective_scan({.u = part(all.u, 2),
                                         .delta = part(all.delta, 2),
                                         .a = part(all.a, 0),
                                         .b = all.b.select(2, h),
                                         .c = all.c.select(2, h),
                                         .skip = part(all.skip, 0),
                                         .initial_state = part(all.initial_state, 1),
                                         .starts = all.starts});
      if (o_.heads == 1) return result;
      y.push_back(result.y);
      state.push_back(result.state);
    }
    return {at::cat(y, 2), at::cat(state, 1)};
  }

  at::Tensor finish(const at::Tensor& memory, const at::Tensor& z, const Context& context) const {
    if (context.wants("memory")) (*context.exports)["memory"] = {.tensors = {{"memory", memory}}};
    return out_(ops::silu_mul(z, memory));
  }

  Options o_;
  Linear in_, x_, out_;
  ConvWindow conv_;
  std::shared_ptr<Parameter> dt_, dt_bias_, a_log_, skip_, dt_norm_, b_norm_, c_norm_;
};
const Register<Mamba> register_mamba{"mamba", "selective state space layer (Mamba-1)"};

}  // namespace
}  // namespace weft
