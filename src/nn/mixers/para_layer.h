// What the mixers of ParaRNN share: a nonlinear cell whose channels do not meet, in a gated block. Danieli et al.
// 2025, arXiv:2510.21450.
//   u, z = W x;  u = silu(conv(u));  wx = W_cell u      block-diagonal, one block for each of G groups
//   s_t = cell(s_{t-1}, wx_t + b; a)                    token by token, or all tokens by Newton's method
//   y = W_out (norm(h) * silu(z))
// Without a convolution and a gate the cell reads x itself and W_out reads h.
//
// E channels, J gates, S states, P parameters of the cell; W width of the convolution.
// State: cells [B, S, 1, E] fp32; conv [B, W - 1, E] in the activation type.
#pragma once

#include <cmath>

#include "base/error.h"
#include "nn/mixers/rnn_layer.h"
#include "ops/conv/conv.h"
#include "ops/norm/norm.h"
#include "ops/rnn/rnn_parallel.h"

namespace weft {

// Kind::name is that of the cell.
template <class Kind>
class ParaMixer final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 2, inner = 0, conv = 4;
    bool gate = true;
    double bound = 0;
    std::string solver = "auto";
    int64_t iterations = 3;
    double tolerance = 1e-5;
    void fields(Fields& f) {
      f("heads", heads, "G, groups of channels that W_cell does not mix", at_least(1));
      f("inner", inner, "E, channels of the cell; 0 means the model width", at_least(0));
      f("conv", conv, "W, width of the short convolution; 0 means none", at_least(0), at_most(16));
      f("gate", gate, "norm the read-out and multiply it by silu(z)");
      f("bound", bound,
        "weights a of the state stay within it, as bound tanh(a / bound); 0 means free. Newton's method "
        "needs "
        "them below about 1",
        at_least(0));
      f("solver", solver,
        "sequential: token by token; newton: all tokens at once; auto: sequential on the CPU, where it is "
        "faster, and for one token, newton elsewhere",
        one_of({"auto", "sequential", "newton"}));
      f("iterations", iterations, "of Newton's method", at_least(0));
      f("tolerance", tolerance,
        "channels whose residual is larger after the iterations are done again token by token", at_least(0));
    }
  };

  ParaMixer(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        cell_(ops::find_cell(Kind::name)),
        block_(o_.conv > 0 || o_.gate),
        out_(linear("out", o_.inner, site.width, {.scale = site.residual_init()})) {
    const int64_t inputs = block_ ? o_.inner : site.width;
    if (block_) in_ = linear("in", site.width, (o_.gate ? 2 : 1) * o_.inner);
    if (o_.conv > 0) {
      const double reach = 1.0 / std::sqrt(static_cast<double>(o_.conv));
      conv_ = vector_parameter("conv.weight", {o_.inner, o_.conv}, init::uniform(-reach, reach));
      conv_bias_ = vector_parameter("conv.bias", {o_.inner}, init::constant(0));
    }
    const double fans = static_cast<double>(inputs + o_.inner) / static_cast<double>(o_.heads);
    const double reach = std::sqrt(6.0 / fans);
    const int64_t rows = cell_.input_gates * o_.inner / o_.heads;
    cell_in_ = parameter("cell.weight", {o_.heads, rows, inputs / o_.heads}, init::uniform(-reach, reach));
    parameters_ = vector_parameter("cell.parameters", {cell_.parameters, 1, o_.inner},
                                   init::normal(2.0 / std::sqrt(5.0 * static_cast<double>(o_.inner))));
    bias_ = vector_parameter("cell.bias", {cell_.gates, 1, o_.inner}, [](at::Tensor& value, at::Generator&) {
      value.zero_();
      value[0][0].copy_(-at::linspace(0, 1, value.size(2)));
    });
    if (o_.gate) norm_ = norm("norm", Norm::Kind::rms, o_.inner, site.norm_eps);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    if (!block_) return out_(cells(x, state, context));
    const auto parts = in_(x).chunk(o_.gate ? 2 : 1, -1);
    const auto h = cells(convolved(parts[0], state, context), state, context);
    if (!o_.gate) return out_(h);
    return out_(ops::gated_rms_norm(h, parts[1], norm_.weight(), norm_.eps(), /*norm_before_gate=*/true));
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("cells", at::zeros({batch, cell_.states, 1, o_.inner}, state_options(options)));
    if (conv_) state.set("conv", at::zeros({batch, o_.conv - 1, o_.inner}, options));
    return state;
  }

  Summary summary(const at::Tensor&, const State&, const Context&) override { no_affine_summary(Kind::name); }

  double op_flops(int64_t) const override {
    return 2.0 * static_cast<double>(o_.inner * (o_.conv + cell_.parameters));
  }
  std::vector<std::string> ops() const override {
    std::vector<std::string> used{"rnn"};
    if (conv_) used.insert(used.begin(), "conv");
    if (o_.gate) used.push_back("norm");
    return used;
  }

 private:
  static Options resolved(Options o, const Site& site) {
    if (o.inner == 0) o.inner = site.width;
    require(o.inner % o.heads == 0 && (o.conv > 0 || o.gate || site.width % o.heads == 0),
            "{}: heads {} does not divide inner {} or the width {}", site.where, o.heads, o.inner,
            site.width);
    require(o.conv != 1, "{}: conv is 1, which is no convolution; give 0 or at least 2", site.where);
    return o;
  }

  at::Tensor convolved(const at::Tensor& u, State& state, const Context& context) const {
    if (!conv_) return u;
    const auto conv = ops::short_conv({.x = u,
                                       .weight = conv_->value,
                                       .bias = conv_bias_->value,
                                       .silu = true,
                                       .initial_state = state.at("conv"),
                                       .starts = context.starts});
    state.set("conv", conv.state);
    return conv.y;
  }

  // [B, T, E]
  at::Tensor cells(const at::Tensor& u, State& state, const Context& context) const {
    const auto grouped = block_linear(u, cell_in_->value);  // [B, T, G, J E / G]
    const auto wx = grouped.unflatten(-1, {cell_.input_gates, o_.inner / o_.heads}).transpose(2, 3);
    const auto& a = parameters_->value;
    ops::Rnn in{.cell = Kind::name,
                .wx = wx.flatten(3).unsqueeze(3),  // [B, T, J, 1, E]
                .bias = bias_->value,
                .parameters = o_.bound > 0 ? o_.bound * at::tanh(a / o_.bound) : a};
    const bool newton = o_.solver == "newton" || (o_.solver == "auto" && !u.is_cpu() && u.size(1) > 1);
    if (!newton) return run_cell(in, state, context).flatten(2);
    in.initial_state = state.at("cells").transpose(0, 1);
    in.starts = context.starts;
    const auto result = ops::rnn_parallel(in, {.iterations = o_.iterations, .tolerance = o_.tolerance});
    state.set("cells", result.state.transpose(0, 1));
    return result.h.flatten(2);
  }

  Options o_;
  const ops::Cell cell_;
  bool block_;
  Linear in_, out_;
  std::shared_ptr<Parameter> conv_, conv_bias_, cell_in_, parameters_, bias_;
  Norm norm_;
};

}  // namespace weft
