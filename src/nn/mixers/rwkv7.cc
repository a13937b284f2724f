// RWKV-7 (Goose): a matrix state with a diagonal plus rank one transition, a generalised delta rule. Peng et al.
// 2025, arXiv:2503.14456.
//   d_t = x_{t-1} - x_t;  x_c = x + d * mu_c                    for c = r, w, k, v, a, g
//   r = W_r x_r;  k = W_k x_k;  v = W_v x_v
//   w = -e^{-1/2} sigmoid(w0 + W_2 tanh(W_1 x_w))               log decay, fp32
//   a = sigmoid(a0 + A_2 A_1 x_a);  g = G_2 sigmoid(G_1 x_g)
//   kappa = k * k_k to unit length per head;  k <- k * (1 + (a - 1) * k_a)
//   v <- v + (v_first - v) * sigmoid(v0 + V_2 V_1 x_v)          with value_residual: v of the first layer, imported
//   S_t = (diag(e^{w_t}) - (kappa_t * a_t) kappa_t') S_{t-1} + k_t v_t'
//   y_t = W_o ((head_norm(S_t' r_t) + (r_t . (k_t * r_k)) v_t) * g_t)
//
// H = D / K heads of width K. State: shift [B, 1, D] in the activation type, S [B, H, K, K] fp32.
#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/linear_state.h"
#include "nn/mixers/rwkv.h"
#include "ops/norm/norm.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Rwkv7 final : public SequenceMixer {
 public:
  struct Options {
    int64_t head_dim = 64, decay_rank = 0, rate_rank = 0, value_rank = 0, gate_rank = 0;
    bool value_residual = false;
    void fields(Fields& f) {
      f("head_dim", head_dim, "K, width of a head; it divides the model width", at_least(1), at_most(256));
      f("decay_rank", decay_rank, "rank of W_1; 0 means 2.5 sqrt(D) in multiples of 32", at_least(0));
      f("rate_rank", rate_rank, "rank of A_1; 0 means 2.5 sqrt(D) in multiples of 32", at_least(0));
      f("value_rank", value_rank, "rank of V_1; 0 means 1.7 sqrt(D) in multiples of 32", at_least(0));
      f("gate_rank", gate_rank, "rank of G_1; 0 means 5 sqrt(D) in multiples of 32", at_least(0));
      f("value_residual", value_residual,
        "mix the values with those of the first layer: export: {v_first: NAME} there, import: {v_first: "
        "NAME} here");
    }
  };

  Rwkv7(const Options& options, const Site& site)
      : o_(resolved(options, site)), width_(site.width), heads_(site.width / options.head_dim) {
    const Height height(site);
    constexpr std::pair<const char*, double> kMixes[kParts] = {
        {"mix_r", 0.2}, {"mix_w", 0.9}, {"mix_k", 0.7}, {"mix_v", 0.7}, {"mix_a", 0.9}, {"mix_g", 0.2}};
    for (size_t part = 0; part < kParts; ++part)
      mix_[part] =
          vector_parameter(kMixes[part].first, {width_}, init_mix(kMixes[part].second * height.left));
    const double bound = 0.5 / std::sqrt(static_cast<double>(width_));
    r_ = square("r", init::uniform(-bound, bound));
    k_ = square("k", init_orthogonal(0.1));
    v_ = square("v", init::uniform(-bound, bound));
    out_ = square("out", init::constant(0));

    const double steep = 1 + std::pow(height.depth, 0.3);
    decay_ = low_rank("decay", o_.decay_rank, [steep, this](const at::Tensor& ramp) {
      return -5.5 + 6 * ramp.pow(steep) + 2.5 * zigzag();
    });
    rate_ = low_rank("rate", o_.rate_rank,
                     [this](const at::Tensor& ramp) { return -0.19 + 0.3 * zigzag() + 0.4 * (ramp - 0.5); });
    gate_ = low_rank("gate", o_.gate_rank, {});
    if (o_.value_residual)
      value_ =
          low_rank("value", o_.value_rank, [](const at::Tensor& ramp) { return 0.73 - 0.4 * (ramp - 0.5); });

    k_k_ = vector_parameter("k_k", {width_},
                            init_ramp([](const at::Tensor& ramp) { return 0.71 - 0.1 * (ramp - 0.5); }));
    k_a_ = vector_parameter("k_a", {width_}, init::constant(1.02));
    r_k_ = vector_parameter("r_k", {heads_, o_.head_dim}, init::constant(-0.04));
    norm_weight_ = vector_parameter("norm.weight", {width_}, init::constant(1));
    norm_bias_ = vector_parameter("norm.bias", {width_}, init::constant(0));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return forward(x, state, context, attend);
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    return forward(x, state, context, attend_step);
  }
  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    const auto in = inputs(x, state, context);
    Summary summary;
    summary.maps["S"] = attend_summary(in.problem);
    summary.rest.set("shift", in.last);
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("shift", at::zeros({batch, 1, width_}, options));
    state.set("S", matrix_state(batch, heads_, o_.head_dim, o_.head_dim, options));
    return state;
  }

  std::vector<std::string> import_ports() const override {
    return o_.value_residual ? std::vector<std::string>{"v_first"} : std::vector<std::string>{};
  }
  std::vector<std::string> export_ports() const override { return {"v_first"}; }
  double op_flops(int64_t) const override { return static_cast<double>(8 * width_ * o_.head_dim); }
  std::vector<std::string> ops() const override { return {"linear_attention", "norm"}; }

 private:
  enum Part { kR, kW, kK, kV, kA, kG, kParts };
  struct LowRank {  // bias + out(f(in(x)))
    Linear in, out;
    std::shared_ptr<Parameter> bias;
    at::Tensor operator()(const at::Tensor& x, at::Tensor (*f)(const at::Tensor&)) const {
      const auto hidden = in(x);
      const auto y = out(f ? f(hidden) : hidden);
      return bias ? y.to(accumulate_type(x)) + bias->value : y;
    }
  };
  struct Inputs {
    ops::LinearAttention problem;  // without the initial state
    at::Tensor gate, last;
  };

  static Options resolved(Options o, const Site& site) {
    require(site.width % o.head_dim == 0, "{}: head_dim {} does not divide width {}", site.where, o.head_dim,
            site.width);
    const double root = std::sqrt(static_cast<double>(site.width));
    const auto rank = [&](int64_t& given, double factor) {
      if (given == 0) given = std::max<int64_t>(32, 32 * std::llround(factor * root / 32));
    };
    rank(o.decay_rank, 2.5);
    rank(o.rate_rank, 2.5);
    rank(o.value_rank, 1.7);
    rank(o.gate_rank, 5);
    return o;
  }

  // Over the channels of a head, from -1 to 1, bent towards 0.
  at::Tensor zigzag() const {
    const double half = static_cast<double>(std::max<int64_t>(1, o_.head_dim - 1)) / 2;
    const auto slope =
        (at::arange(width_, at::kFloat).remainder(static_cast<double>(o_.head_dim)) - half) / half;
    return slope * slope.abs();
  }

  Linear square(const std::string& name, Init init) {
    return {parameter(name + ".weight", {width_, width_}, std::move(init)), {}};
  }

  LowRank low_rank(const std::string& name, int64_t rank, std::function<at::Tensor(const at::Tensor&)> bias) {
    LowRank result;
    result.in = linear(name + "_in", width_, rank, {.scale = 0});
    result.out = Linear(parameter(name + "_out.weight", {width_, rank}, init_orthogonal(0.1)), {});
    if (bias) result.bias = vector_parameter(name + "_bias", {width_}, init_ramp(std::move(bias)));
    return result;
  }

  Inputs inputs(const at::Tensor& x, const State& state, const Context& context) const {
    const auto type = x.scalar_type();
    const auto shift = token_shift(x, state.at("shift"), context.starts);
    const auto mixed = [&](Part part) { return x + shift.delta * mix_[part]->value.to(type); };
    const auto split = [&](const at::Tensor& y) { return y.unflatten(-1, {heads_, o_.head_dim}); };
    auto v = v_(mixed(kV));
    if (context.wants("v_first")) (*context.exports)["v_first"] = {.tensors = {{"v", v}}};
    if (o_.value_residual) {
      const auto& first = context.import("v_first").at("v");
      require_shape("rwkv7", "the imported v_first", first, v.sizes());
      v = v + (first - v) * at::sigmoid(value_(mixed(kV), nullptr)).to(type);
    }
    const auto rate = at::sigmoid(rate_(mixed(kA), nullptr));  // [B, T, D] wide
    const auto k = k_(mixed(kK));
    const auto kappa = ops::l2_norm(split(k * k_k_->value.to(type)), 1e-12);
    const auto decay = at::sigmoid(decay_(mixed(kW), bend)) * -std::exp(-0.5);
    return {{.q = split(r_(mixed(kR))),
             .k = split((k * (1 + (rate - 1) * k_a_->value)).to(type)),
             .v = split(v),
             .log_decay = split(decay),
             .erase_read = -kappa,
             .erase_write = (kappa * split(rate)).to(type),
             .scale = 1,
             .starts = context.starts},
            gate_(mixed(kG), squash),
            shift.last};
  }

  static at::Tensor bend(const at::Tensor& x) { return at::tanh(x); }
  static at::Tensor squash(const at::Tensor& x) { return at::sigmoid(x); }

  at::Tensor forward(const at::Tensor& x, State& state, const Context& context, Attend form) const {
    const auto in = inputs(x, state, context);
    state.set("shift", in.last);
    const auto& p = in.problem;
    const auto read = head_norm(form(p, state), norm_weight_->value, norm_bias_->value, kRwkvNormEps);
    const auto own = (p.q * p.k * r_k_->value.to(x.scalar_type())).sum(-1, true) * p.v;  // [B, T, H, K]
    return out_((read + own.flatten(2)) * in.gate);
  }

  Options o_;
  int64_t width_, heads_;
  Linear r_, k_, v_, out_;
  LowRank decay_, rate_, gate_, value_;
  std::shared_ptr<Parameter> mix_[kParts], k_k_, k_a_, r_k_, norm_weight_, norm_bias_;
};
const Register<Rwkv7> register_rwkv7{
    "rwkv7",
    "RWKV-7: matrix state with a generalised delta rule and token shift; use it with rwkv_channel_mix for "
    "recurrent models that must track state without attention"};

}  // namespace
}  // namespace weft
