// Gated state space: a diagonal state space of few channels between wide gates. Mehta et al. 2022, arXiv:2206.13947.
//   u = GELU(W_u x), v = GELU(W_v x);  s = DSS(LayerNorm(v));  y = W_o ((W_g s) * u)
//   lambda = -exp(a) + i exp(b), the same for all channels, step size 1:
//   s_t = Re sum_n C_n h_t,n + D v_t,  h_t = e^lambda h_{t-1} + (e^lambda - 1) / lambda v_t
//
// F width of the gate, E channels, N complex states. State: h [B, E, N, 2, 1] fp32.
#include "nn/mixers/ssm.h"

namespace weft {
namespace {

class Gss final : public SequenceMixer {
 public:
  struct Options {
    int64_t inner = 0, channels = 0, states = 512;
    bool gate = true;
    double lr_scale = 0.1;
    void fields(Fields& f) {
      f("inner", inner, "F, width of the gate; 0 means four times the model width", at_least(0));
      f("channels", channels, "E, channels of the state space; 0 means a quarter of the model width",
        at_least(0));
      f("states", states, "N, complex states of a channel", at_least(1));
      f("gate", gate, "false: y = W_o W_g s, a plain diagonal state space");
      f("ssm_lr_scale", lr_scale, "rate of the state matrix relative to the rest", above(0));
    }
  };

  Gss(const Options& options, const Site& site)
      : o_(options),
        inner_(options.inner > 0 ? options.inner : 4 * site.width),
        channels_(options.channels > 0 ? options.channels : std::max<int64_t>(1, site.width / 4)),
        in_(linear("in", site.width, channels_)),
        back_(linear("gate", channels_, inner_)),
        out_(linear("out", inner_, site.width, {.scale = site.residual_init()})),
        norm_(norm("norm", Norm::Kind::layer, channels_, site.norm_eps)) {
    if (o_.gate) up_ = linear("up", site.width, inner_);
    rate_ = parameter("lambda_re_log", {o_.states}, init::normal(1), ssm_rules(o_.lr_scale));
    frequency_ = parameter("lambda_im_log", {o_.states}, init::normal(1), ssm_rules(o_.lr_scale));
    c_ = parameter("C", {channels_, o_.states, 2}, init_complex_normal(1), ssm_rules(1));
    skip_ = vector_parameter("D", {channels_}, init::normal(1));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return finish(run_bank(bank(), inputs(x), state, context), x);
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context&) override {
    return finish(step_bank(bank(), inputs(x), state), x);
  }
  Summary summary(const at::Tensor& x, const State&, const Context& context) override {
    Summary summary;
    summary.maps["h"] = bank_map(bank(), inputs(x), context);
    return summary;
  }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("h", bank_state(batch, channels_, o_.states, true, options));
    return state;
  }
  double op_flops(int64_t) const override { return static_cast<double>(channels_ * o_.states * 12); }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  at::Tensor inputs(const at::Tensor& x) const { return norm_(at::gelu(in_(x))); }
  at::Tensor finish(const at::Tensor& s, const at::Tensor& x) const {
    const auto back = back_(s.to(x.scalar_type()));
    return out_(o_.gate ? back * at::gelu(up_(x)) : back);
  }
  DiagonalBank bank() const {
    const auto lambda =
        at::complex(-at::exp(rate_->value.to(at::kDouble)), at::exp(frequency_->value.to(at::kDouble)));
    const auto a = at::exp(lambda), b = (a - 1) / lambda;
    return {a.expand({channels_, o_.states}), b.expand({channels_, o_.states}), complex_of(c_), skip_->value};
  }

  Options o_;
  int64_t inner_, channels_;
  Linear in_, back_, out_, up_;
  Norm norm_;
  std::shared_ptr<Parameter> rate_, frequency_, c_, skip_;
};
const Register<Gss> register_gss{
    "gss",
    "diagonal state space of few channels between wide gates (GSS); cheap long memory for language models"};

}  // namespace
}  // namespace weft
