// What the mixers on recurrent cells share: a cell between two projections.
//   wx = W x;  s_t = cell(s_{t-1}, wx_t + R h_{t-1} + b);  y = W_out h
//
// B batch, T tokens, D model width, H heads of width K, J gates and S states of the cell (ops/rnn/rnn.h).
#pragma once

#include <cmath>
#include <string>

#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/step_size.h"
#include "ops/rnn/rnn.h"

namespace weft {

// Linear maps that stay inside a block: x [B, T, G I] in G blocks, weight [G, O, I] -> [B, T, G, O].
at::Tensor block_linear(const at::Tensor& x, const at::Tensor& weight);

// Layer norm of each head, then one scale a channel; xLSTM's group norm. h [B, T, H, K], weight [H K] ->
// [B, T, H K]. An undefined weight leaves h as it is.
at::Tensor head_norm(const at::Tensor& h, const at::Tensor& weight, double eps);

// The cell over T tokens, from and to state "cells" [B, S, H, K]. `in` has all but initial state and starts.
at::Tensor run_cell(ops::Rnn in, State& state, const Context& context);

// Throws Unsupported: why a mixer whose cell is nonlinear has no summary.
[[noreturn]] void no_affine_summary(const std::string& mixer);

// Standard deviation with which recurrent matrices begin: rows of length 1 / sqrt(3).
inline double recurrent_std(int64_t head_dim) { return 1.0 / std::sqrt(3.0 * static_cast<double>(head_dim)); }

// Options that all of them have.
struct RnnSizes {
  int64_t heads = 1, head_dim = 0;
  bool head_norm = false;
  void fields(Fields& f) {
    f("heads", heads, "H, heads with recurrent weights of their own", at_least(1));
    f("head_dim", head_dim, "K, width of one head; 0 means width / heads", at_least(0));
    f("head_norm", head_norm, "layer norm of each head behind the cell");
  }
};

// The mixer of a cell that is one projection, the cell, and one projection. O, its options, has
//   RnnSizes sizes;  void fields(Fields&);
//   std::string cell(const Site&) const;            a registered cell
//   void initialize_bias(at::Tensor& bias) const;   [J, H, K], zeros before
template <class O>
class RnnMixer final : public SequenceMixer {
 public:
  using Options = O;

  RnnMixer(const O& options, const Site& site)
      : cell_(ops::find_cell(options.cell(site))),
        heads_(options.sizes.heads),
        head_dim_(head_dim_of(options.sizes.head_dim, heads_, site)),
        eps_(site.norm_eps),
        in_(linear("in", site.width, cell_.input_gates * heads_ * head_dim_)),
        out_(linear("out", heads_ * head_dim_, site.width, {.scale = site.residual_init()})) {
    if (cell_.recurrent_gates)
      recurrent_ = parameter("recurrent", {cell_.recurrent_gates, heads_, head_dim_, head_dim_},
                             init::normal(recurrent_std(head_dim_)));
    bias_ = vector_parameter("bias", {cell_.gates, heads_, head_dim_},
                             [options](at::Tensor& value, at::Generator&) {
                               value.zero_();
                               options.initialize_bias(value);
                             });
    if (cell_.parameters)
      parameters_ = vector_parameter("parameters", {cell_.parameters, heads_, head_dim_},
                                     init::normal(recurrent_std(head_dim_)));
    if (options.sizes.head_norm)
      norm_ = vector_parameter("norm.weight", {heads_ * head_dim_}, init::constant(1));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto value = [](const auto& p) { return p ? p->value : at::Tensor(); };
    const auto h = run_cell({.cell = cell_.name,
                             .wx = in_(x).unflatten(-1, {cell_.input_gates, heads_, head_dim_}),
                             .recurrent = value(recurrent_),
                             .bias = bias_->value,
                             .parameters = value(parameters_)},
                            state, context);
    return out_(head_norm(h, value(norm_), eps_));
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("cells", at::zeros({batch, cell_.states, heads_, head_dim_}, state_options(options)));
    return state;
  }

  Summary summary(const at::Tensor&, const State&, const Context&) override { no_affine_summary(cell_.name); }

  double op_flops(int64_t) const override { return 0; }  // the recurrent weights count as matrices
  std::vector<std::string> ops() const override { return {"rnn"}; }

 private:
  const ops::Cell cell_;
  int64_t heads_, head_dim_;
  double eps_;
  Linear in_, out_;
  std::shared_ptr<Parameter> recurrent_, bias_, parameters_, norm_;
};

}  // namespace weft
