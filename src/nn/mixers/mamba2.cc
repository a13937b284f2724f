// Mamba-2: state space duality, a matrix state with one decay for each head. Dao and Gu 2024,
// arXiv:2405.21060.
//   z, u, b, c, d = W_in x;  u, b, c = silu(conv(u, b, c));  dt = softplus(d + dt_bias);  A = -exp(A_log)
//   S_t = exp(dt_t A) S_{t-1} + dt_t b_t u_t';  m_t = S_t' c_t + skip u_t
//   y_t = W_out RMSNorm(m_t * silu(z_t))
//
// H heads of width P, G groups that share b and c (H is a multiple of G), N states.
// State: conv [B, W - 1, H P + 2 G N] in the activation type, S [B, H, N, P] fp32.
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/step_size.h"
#include "ops/conv/conv.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/norm/norm.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Mamba2 final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 0, head_dim = 64, states = 128, groups = 1, conv = 4;
    void fields(Fields& f) {
      f("heads", heads, "H, heads; 0 means 2 * width / head_dim", at_least(0));
      f("head_dim", head_dim, "P, width of a head", at_least(1), at_most(256));
      f("states", states, "N, states of a head", at_least(1), at_most(256));
      f("groups", groups, "G, groups of heads that share b and c", at_least(1));
      f("conv", conv, "W, width of the short convolution", at_least(2), at_most(16));
    }
  };

  Mamba2(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        inner_(o_.heads * o_.head_dim),
        shared_(o_.groups * o_.states),
        in_(linear("in", site.width, 2 * inner_ + 2 * shared_ + o_.heads)),
        out_(linear("out", inner_, site.width, {.scale = site.residual_init()})) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(o_.conv));
    conv_ = vector_parameter("conv.weight", {inner_ + 2 * shared_, o_.conv}, init::uniform(-bound, bound));
    conv_bias_ = vector_parameter("conv.bias", {inner_ + 2 * shared_}, init::constant(0));
    dt_bias_ = vector_parameter("dt_bias", {o_.heads}, init_step_size(1e-3, 0.1));
    a_log_ = vector_parameter("A_log", {o_.heads}, init_log_uniform(1, 16));
    skip_ = vector_parameter("skip", {o_.heads}, init::constant(1));
    norm_ = norm("norm", Norm::Kind::rms, inner_, site.norm_eps);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    auto in = inputs(x, state, context);
    in.problem.initial_state = state.at("S");
    auto result = ops::linear_attention(in.problem);
    state.set("conv", in.conv_state);
    state.set("S", result.state);
    return finish(result.y, in, context);
  }

  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    auto in = inputs(x, state, context);
    state.set("conv", in.conv_state);
    in.problem.initial_state = state.writable("S");
    return finish(ops::linear_attention_step(in.problem).y, in, context);
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    const auto in = inputs(x, state, context);
    const auto span = ops::linear_attention_summary(in.problem);
    Summary summary;
    summary.maps["S"] = {span.factor, span.offset, span.matrix};
    summary.rest.set("conv", in.conv_state);
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("conv", at::zeros({batch, o_.conv - 1, inner_ + 2 * shared_}, options));
    state.set("S", at::zeros({batch, o_.heads, o_.states, o_.head_dim}, state_options(options)));
    return state;
  }

  std::vector<std::string> export_ports() const override { return {"memory"}; }
  double op_flops(int64_t) const override {
    return static_cast<double>(4 * o_.heads * o_.states * o_.head_dim + 2 * (inner_ + 2 * shared_) * o_.conv);
  }
  std::vector<std::string> ops() const override { return {"conv", "linear_attention", "norm"}; }

 private:
  struct Inputs {
    ops::LinearAttention problem;  // without the initial state
    at::Tensor z, conv_state;
  };

  static Options resolved(Options o, const Site& site) {
    if (o.heads == 0) {
      require(2 * site.width % o.head_dim == 0,
              "{}: head_dim {} does not divide twice the width {}; give heads", site.where, o.head_dim,
              site.width);
      o.heads = 2 * site.width / o.head_dim;
    }
    require(o.heads % o.groups == 0, "{}: heads {} is not a multiple of groups {}", site.where, o.heads,
            o.groups);
    return o;
  }

  Inputs inputs(const at::Tensor& x, const State& state, const Context& context) const {
    const auto parts = in_(x).split_with_sizes({inner_, inner_ + 2 * shared_, o_.heads}, -1);
    auto conv = ops::short_conv({.x = parts[1],
                                 .weight = conv_->value,
                                 .bias = conv_bias_->value,
                                 .silu = true,
                                 .initial_state = state.at("conv"),
                                 .starts = context.starts});
    const auto ubc = conv.y.split_with_sizes({inner_, shared_, shared_}, -1);
    const auto dt = at::softplus(parts[2].to(accumulate_type(x)) + dt_bias_->value);  // [B, T, H]
    return {{.q = ubc[2].unflatten(-1, {o_.groups, o_.states}),
             .k = ubc[1].unflatten(-1, {o_.groups, o_.states}),
             .v = ubc[0].unflatten(-1, {o_.heads, o_.head_dim}),
             .log_decay = -a_log_->value.exp() * dt,
             .write = dt,
             .scale = 1.0,
             .starts = context.starts},
            parts[0],
            conv.state};
  }

  at::Tensor finish(const at::Tensor& read, const Inputs& in, const Context& context) const {
    const auto memory = (read + skip_->value.to(read.scalar_type()).unsqueeze(-1) * in.problem.v).flatten(2);
    if (context.wants("memory")) (*context.exports)["memory"] = {.tensors = {{"memory", memory}}};
    return out_(ops::gated_rms_norm(memory, in.z, norm_.weight(), norm_.eps(), /*norm_before_gate=*/false));
  }

  Options o_;
  int64_t inner_, shared_;
  Linear in_, out_;
  std::shared_ptr<Parameter> conv_, conv_bias_, dt_bias_, a_log_, skip_;
  Norm norm_;
};
const Register<Mamba2> register_mamba2{"mamba2", "state space duality layer (Mamba-2)"};

}  // namespace
}  // namespace weft
