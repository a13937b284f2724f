// Mamba-2: state space duality, a matrix state with one decay for each head. Dao and Gu 2024,
// arXiv:2405.21060; factors of the projections (muP): Zuo et al. 2025 (Falcon-H1), arXiv:2507.22448; maps of the
// convolved u, normed: Preferred Networks 2025 (PLaMo 2), arXiv:2509.04897.
//   z, u, b, c, d = W_in x;  u, b, c = f(conv(u, b, c));  dt = softplus(d + dt_bias), limited;  A = -exp(A_log)
//   or, with a dt_rank r:  z, u = W_in x;  u = f(conv(u));  b, c, e = W_x u, normed;  d = W_dt e
//   S_t = exp(dt_t A) S_{t-1} + dt_t b_t u_t';  m_t = S_t' c_t + skip u_t
//   y_t = W_out RMSNorm(m_t * silu(z_t)), or W_out (RMSNorm(m_t) * silu(z_t)), or W_out (m_t * silu(z_t))
//
// H heads of width P, G groups that share b and c (H is a multiple of G), N states.
// State: conv [B, max(W - 1, 1), H P + 2 G N] in the activation type, with a dt_rank [B, max(W - 1, 1), H P];
// S [B, H, N, P] fp32.
#include <string>
#include <vector>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/conv_window.h"
#include "nn/mixers/step_size.h"
#include "ops/activation/activation.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/norm/norm.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Mamba2 final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 0, head_dim = 64, states = 128, groups = 1, conv = 4, norm_groups = 1, dt_rank = 0;
    bool bias = false, output_bias = false, conv_bias = true;
    std::string activation = "silu", gate_norm = "after", map_norm = "none";
    double gate_norm_eps = 0, map_norm_eps = 0, dt_min = 0, dt_max = 0;
    std::vector<double> scales;
    void fields(Fields& f) {
      f("heads", heads, "H, heads; 0 means 2 * width / head_dim", at_least(0));
      f("head_dim", head_dim, "P, width of a head", at_least(1), at_most(256));
      f("states", states, "N, states of a head", at_least(1), at_most(256));
      f("groups", groups, "G, groups of heads that share b and c", at_least(1));
      f("conv", conv, "W, width of the short convolution", at_least(1), at_most(16));
      f("dt_rank", dt_rank,
        "r: b, c and the step size are projections of the convolved u as in Mamba-1, the step size by way of "
        "r channels; 0: all come from the input projection",
        at_least(0));
      f("map_norm", map_norm,
        "RMS norm of the r channels, b and c: none, without weights (unit), with them (rms)",
        one_of({"none", "unit", "rms"}));
      f("map_norm_eps", map_norm_eps, "of that norm; 0: the layer's norm_eps", at_least(0));
      f("bias", bias, "bias of the input projection");
      f("output_bias", output_bias, "bias of the output projection");
      f("conv_bias", conv_bias, "bias of the convolution");
      f("activation", activation, "of the convolution's output", one_of(ops::activation_names()));
      f("gate_norm", gate_norm, "RMS norm after the gate, before it, or none",
        one_of({"after", "before", "none"}));
      f("norm_groups", norm_groups, "equal parts of the inner width that are normed apart", at_least(1));
      f("gate_norm_eps", gate_norm_eps, "of that norm; 0: the layer's norm_eps", at_least(0));
      f("dt_min", dt_min, "least step size: limits dt after the softplus", at_least(0));
      f("dt_max", dt_max, "largest step size; 0: no limit", at_least(0));
      f("scales", scales, "multiply z, u, b, c and d; empty means 1");
    }
  };

  Mamba2(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        inner_(o_.heads * o_.head_dim),
        shared_(o_.groups * o_.states),
        channels_(o_.dt_rank > 0 ? inner_ : inner_ + 2 * shared_),
        in_(linear("in", site.width, inner_ + channels_ + (o_.dt_rank > 0 ? 0 : o_.heads),
                   {.bias = o_.bias})),
        out_(linear("out", inner_, site.width, {.bias = o_.output_bias, .scale = site.residual_init()})) {
    conv_.weight = vector_parameter("conv.weight", {channels_, o_.conv}, conv_window_init(o_.conv));
    if (o_.conv_bias) conv_.bias = vector_parameter("conv.bias", {channels_}, init::constant(0));
    conv_.activation = ops::activation_of(o_.activation);
    dt_bias_ = vector_parameter("dt_bias", {o_.heads}, init_step_size(1e-3, 0.1));
    a_log_ = vector_parameter("A_log", {o_.heads}, init_log_uniform(1, 16));
    skip_ = vector_parameter("skip", {o_.heads}, init::constant(1));
    if (o_.gate_norm != "none") norm_ = norm("norm", Norm::Kind::rms, inner_, o_.gate_norm_eps);
    if (!o_.scales.empty()) scales_ = row_scales();
    if (o_.dt_rank > 0) make_maps();
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
    state.set("conv", at::zeros({batch, conv_.past(), channels_}, options));
    state.set("S", at::zeros({batch, o_.heads, o_.states, o_.head_dim}, state_options(options)));
    return state;
  }

  std::vector<std::string> export_ports() const override { return {"memory"}; }
  double op_flops(int64_t) const override {
    return static_cast<double>(4 * o_.heads * o_.states * o_.head_dim + 2 * channels_ * o_.conv);
  }
  std::vector<std::string> ops() const override {
    std::vector<std::string> names{"conv", "linear_attention"};
    if (o_.gate_norm != "none" || o_.map_norm != "none") names.push_back("norm");
    return names;
  }

 private:
  struct Inputs {
    ops::LinearAttention problem;  // without the initial state
    at::Tensor z, conv_state;
  };
  struct Maps {
    at::Tensor u, b, c, d;  // [B, T, H P], [B, T, G N] twice, [B, T, H]
  };

  static Options resolved(Options o, const Site& site) {
    if (o.heads == 0) {
      require(2 * site.width % o.head_dim == 0,
              "{}: head_dim {} does not divide twice the width {}; give heads", site.where, o.head_dim,
              site.width);
      o.heads = 2 * site.width / o.head_dim;
    }
    if (o.gate_norm_eps == 0) o.gate_norm_eps = site.norm_eps;
    if (o.map_norm_eps == 0) o.map_norm_eps = site.norm_eps;
    require(o.map_norm == "none" || o.dt_rank > 0, "{}: map_norm {} needs a dt_rank", site.where, o.map_norm);
    require(o.scales.empty() || o.dt_rank == 0,
            "{}: scales are of the input projection; with a dt_rank there are none", site.where);
    require(o.scales.empty() || o.scales.size() == 5, "{}: {} scales, expected 5: of z, u, b, c and d",
            site.where, o.scales.size());
    require(o.heads * o.head_dim % o.norm_groups == 0,
            "{}: the inner width {} is not a multiple of norm_groups {}", site.where, o.heads * o.head_dim,
            o.norm_groups);
    require(o.dt_max == 0 || o.dt_max >= o.dt_min, "{}: dt_max {} is below dt_min {}", site.where, o.dt_max,
            o.dt_min);
    require(o.heads % o.groups == 0, "{}: heads {} is not a multiple of groups {}", site.where, o.heads,
            o.groups);
    return o;
  }

  void make_maps() {
    x_ = linear("x", inner_, 2 * shared_ + o_.dt_rank);
    dt_ = linear("dt", o_.dt_rank, o_.heads);
    if (o_.map_norm != "rms") return;
    dt_norm_ = vector_parameter("dt_norm.weight", {o_.dt_rank}, init::constant(1));
    b_norm_ = vector_parameter("b_norm.weight", {o_.states}, init::constant(1));
    c_norm_ = vector_parameter("c_norm.weight", {o_.states}, init::constant(1));
  }

  at::Tensor map_norm(const at::Tensor& x, const std::shared_ptr<Parameter>& weight) const {
    if (o_.map_norm == "none") return x;
    return ops::rms_norm(x, weight ? weight->value : at::Tensor(), o_.map_norm_eps);
  }

  // The rows of W_in x behind z, [B, T, channels + H] or [B, T, channels], and what the convolution made of them.
  Maps maps(const at::Tensor& rows, const at::Tensor& convolved) const {
    if (o_.dt_rank == 0) {
      const auto ubc = convolved.split_with_sizes({inner_, shared_, shared_}, -1);
      return {ubc[0], ubc[1], ubc[2], rows.narrow(-1, channels_, o_.heads)};
    }
    const auto bce = x_(convolved).split_with_sizes({shared_, shared_, o_.dt_rank}, -1);
    return {convolved, bce[0], bce[1], dt_(map_norm(bce[2], dt_norm_))};
  }

  // Factors of the rows of W_in x, [2 H P + 2 G N + H].
  at::Tensor row_scales() const {
    std::vector<at::Tensor> parts;
    const int64_t sizes[] = {inner_, inner_, shared_, shared_, o_.heads};
    for (size_t i = 0; i < 5; ++i) parts.push_back(at::full({sizes[i]}, o_.scales[i], at::kDouble));
    return at::cat(parts);
  }

  Inputs inputs(const at::Tensor& x, const State& state, const Context& context) const {
    auto rows = in_(x);
    if (scales_.defined()) rows = rows * scales_.to(rows.options());
    const auto parts = rows.split_with_sizes({inner_, rows.size(-1) - inner_}, -1);
    auto conv = conv_.run(parts[1].narrow(-1, 0, channels_), state.at("conv"), context);
    const auto maps = this->maps(parts[1], conv.y);
    auto dt = at::softplus(maps.d.to(accumulate_type(x)) + dt_bias_->value);  // [B, T, H]
    if (o_.dt_min > 0) dt = dt.clamp_min(o_.dt_min);
    if (o_.dt_max > 0) dt = dt.clamp_max(o_.dt_max);
    return {{.q = map_norm(maps.c.unflatten(-1, {o_.groups, o_.states}), c_norm_),
             .k = map_norm(maps.b.unflatten(-1, {o_.groups, o_.states}), b_norm_),
             .v = maps.u.unflatten(-1, {o_.heads, o_.head_dim}),
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
    return out_(gated(memory, in.z));
  }

  at::Tensor gated(const at::Tensor& memory, const at::Tensor& z) const {
    if (o_.gate_norm == "none") return ops::silu_mul(z, memory);
    const bool before = o_.gate_norm == "before";
    if (o_.norm_groups == 1) return ops::gated_rms_norm(memory, z, norm_.weight(), norm_.eps(), before);
    const auto grouped = [&](const at::Tensor& x) { return x.unflatten(-1, {o_.norm_groups, -1}); };
    const auto y = ops::gated_rms_norm(grouped(memory), grouped(z), {}, norm_.eps(), before).flatten(2);
    return y * norm_.weight().to(y.scalar_type());
  }

  Options o_;
  int64_t inner_, shared_, channels_;
  Linear in_, out_, x_, dt_;
  ConvWindow conv_;
  std::shared_ptr<Parameter> dt_bias_, a_log_, skip_, dt_norm_, b_norm_, c_norm_;
  Norm norm_;
  at::Tensor scales_;  // undefined: 1
};
const Register<Mamba2> register_mamba2{"mamba2", "state space duality layer (Mamba-2)"};

}  // namespace
}  // namespace weft
