// RWKV-6 (Finch), and RWKV-5 (Eagle) with data_dependent: false: a matrix state read before it is written, with a
// bonus for the current token. Peng et al. 2024, arXiv:2404.05892.
//   d_t = x_{t-1} - x_t;  m = x + d * mu_x
//   x_c = x + d * (mu_c + B_c tanh(A_c m))                      for c = r, w, k, v, g
//   r = W_r x_r;  k = W_k x_k;  v = W_v x_v
//   w = -exp(w0 + B tanh(A x_w))                                log decay, fp32
//   o_t = (S_{t-1} + diag(u) k_t v_t')' r_t;  S_t = diag(e^{w_t}) S_{t-1} + k_t v_t'
//   y_t = W_o (head_norm(o_t) * silu(W_g x_g))
// RWKV-5 has x_c = x + d * mu_c (mix_current: d * (1 - mu_c)) and w = -exp(w0); its first version has no gate.
//
// H = D / K heads of width K. State: shift [B, 1, D] in the activation type, S [B, H, K, K] fp32.
#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/linear_state.h"
#include "nn/mixers/rwkv.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Rwkv6 final : public SequenceMixer {
 public:
  struct Options {
    int64_t head_dim = 64, mix_rank = 32, decay_rank = 64;
    bool data_dependent = true, output_gate = true, mix_current = false;
    double head_norm_eps = kRwkvNormEps;
    void fields(Fields& f) {
      f("head_dim", head_dim, "K, width of a head; it divides the model width", at_least(1), at_most(256));
      f("mix_rank", mix_rank, "rank of the token-dependent part of each token shift", at_least(1));
      f("decay_rank", decay_rank, "rank of the token-dependent part of the decay", at_least(1));
      f("data_dependent", data_dependent, "token shift and decay depend on the token; false: RWKV-5");
      f("output_gate", output_gate, "multiply the normed read-out by silu(W_g x_g)");
      f("mix_current", mix_current, kMixCurrent);
      f("head_norm_eps", head_norm_eps, "of the norm of each head, added to the variance", above(0));
    }
  };

  Rwkv6(const Options& options, const Site& site)
      : o_(options),
        width_(site.width),
        heads_(site.width / options.head_dim),
        r_(linear("r", width_, width_)),
        k_(linear("k", width_, width_)),
        v_(linear("v", width_, width_)),
        out_(linear("out", width_, width_, {.scale = site.residual_init()})) {
    require(width_ % o_.head_dim == 0, "{}: head_dim {} does not divide width {}", site.where, o_.head_dim,
            width_);
    require(!o_.data_dependent || (o_.output_gate && !o_.mix_current),
            "{}: output_gate: false and mix_current: true are of RWKV-5; they need data_dependent: false",
            site.where);
    if (o_.output_gate) gate_ = linear("gate", width_, width_);
    const Height height(site);
    const auto mix = [&](const char* name, double power, double less = 0) {
      return vector_parameter(name, {width_}, init_mix(power * height.left, less, o_.mix_current));
    };
    mix_[kR] = mix("mix_r", 0.5);
    if (o_.data_dependent) mix_[kW] = mix("mix_w", 1);
    mix_[kK] = mix("mix_k", 1);
    mix_[kV] = mix("mix_v", 1, 0.3 * height.depth);
    if (o_.output_gate) mix_[kG] = mix("mix_g", 0.5);
    decay_ = vector_parameter("decay", {width_}, init_ramp([height](const at::Tensor& ramp) {
                                return -6 + 5 * ramp.pow(0.7 + 1.3 * height.depth);
                              }));
    bonus_ = vector_parameter("bonus", {width_}, init_ramp([height](const at::Tensor& ramp) {
                                const auto zigzag = (at::arange(1, ramp.size(0) + 1) % 3 - 1) * 0.1;
                                return height.depth * (1 - ramp) + zigzag;
                              }));
    norm_weight_ = vector_parameter("norm.weight", {width_}, init::constant(1));
    norm_bias_ = vector_parameter("norm.bias", {width_}, init::constant(0));
    if (!o_.data_dependent) return;
    mix_x_ = mix("mix_x", 1);
    mix_in_ = linear("mix_in", width_, kParts * o_.mix_rank, {.scale = 0});
    mix_out_ = parameter("mix_out", {kParts, o_.mix_rank, width_}, init::uniform(-0.01, 0.01));
    decay_in_ = linear("decay_in", width_, o_.decay_rank, {.scale = 0});
    decay_out_ =
        Linear(parameter("decay_out.weight", {width_, o_.decay_rank}, init::uniform(-0.01, 0.01)), {});
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

  double op_flops(int64_t) const override { return static_cast<double>(4 * width_ * o_.head_dim); }
  std::vector<std::string> ops() const override { return {"linear_attention", "norm"}; }

 private:
  enum Part { kR, kW, kK, kV, kG, kParts };
  struct Inputs {
    ops::LinearAttention problem;  // without the initial state
    at::Tensor gate, last;         // gate: undefined without output_gate
  };

  // What each part sees of x and the token before it, [B, T, D]; undefined for parts that are not there.
  std::vector<at::Tensor> mixed_tokens(const at::Tensor& x, const TokenShift& shift) const {
    if (!o_.data_dependent) {
      std::vector<at::Tensor> parts;
      for (const auto& mix : mix_)
        parts.push_back(mix ? mix_tokens(x, shift, mix->value, o_.mix_current) : at::Tensor());
      return parts;
    }
    const auto cast = [&](const std::shared_ptr<Parameter>& p) { return p->value.to(x.scalar_type()); };
    std::vector<at::Tensor> fixed;
    for (const auto& mix : mix_) fixed.push_back(cast(mix).view({1, 1, width_}));
    const auto hidden =
        at::tanh(mix_in_(x + shift.delta * cast(mix_x_))).unflatten(-1, {kParts, o_.mix_rank});
    const auto mix = at::stack(fixed) + at::einsum("btpr,prd->pbtd", {hidden, cast(mix_out_)});
    return (x + shift.delta * mix).unbind(0);
  }

  Inputs inputs(const at::Tensor& x, const State& state, const Context& context) const {
    const auto shift = token_shift(x, state.at("shift"), context.starts);
    const auto mixed = mixed_tokens(x, shift);
    const auto split = [&](const at::Tensor& y) { return y.unflatten(-1, {heads_, o_.head_dim}); };
    const auto wide = accumulate_type(x);
    auto decay = decay_->value.to(wide).expand({x.size(0), x.size(1), width_});
    if (o_.data_dependent) decay = decay + decay_out_(at::tanh(decay_in_(mixed[kW]))).to(wide);
    return {{.q = split(r_(mixed[kR])),
             .k = split(k_(mixed[kK])),
             .v = split(v_(mixed[kV])),
             .log_decay = split(-decay.exp()),
             .bonus = split(bonus_->value),
             .scale = 1,
             .starts = context.starts},
            o_.output_gate ? at::silu(gate_(mixed[kG])) : at::Tensor(),
            shift.last};
  }

  at::Tensor forward(const at::Tensor& x, State& state, const Context& context, Attend form) const {
    const auto in = inputs(x, state, context);
    state.set("shift", in.last);
    const auto read = form(in.problem, state);
    const auto normed = head_norm(read, norm_weight_->value, norm_bias_->value, o_.head_norm_eps);
    return out_(in.gate.defined() ? normed * in.gate : normed);
  }

  Options o_;
  int64_t width_, heads_;
  Linear r_, k_, v_, gate_, out_, mix_in_, decay_in_, decay_out_;
  std::shared_ptr<Parameter> mix_[kParts], mix_x_, mix_out_, decay_, bonus_, norm_weight_, norm_bias_;
};
const Register<Rwkv6> register_rwkv6{
    "rwkv6",
    "RWKV-6, or RWKV-5 as an option: matrix state with a decay for each key channel and token shift; use it "
    "with rwkv_channel_mix for recurrent language models without attention"};

}  // namespace
}  // namespace weft
