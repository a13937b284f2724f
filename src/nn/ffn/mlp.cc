#include "nn/ffn/mlp.h"

#include "ops/linear/linear.h"

namespace weft {
namespace {

Mlp::Options resolved(Mlp::Options o, const Site& site) {
  if (o.hidden == 0) o.hidden = default_hidden(site.width, o.gated);
  return o;
}

at::Tensor scaled(const at::Tensor& x, double factor) { return factor == 1.0 ? x : x * factor; }

// Short names of two MLPs.
struct SwiGlu final : Mlp {
  struct Options {
    int64_t hidden = 0;
    void fields(Fields& f) {
      f("hidden", hidden, "width of the hidden layer; 0 means 8/3 of the model width, rounded up to 64",
        at_least(0));
    }
  };
  SwiGlu(const Options& o, const Site& site) : Mlp({.hidden = o.hidden}, site) {}
};

struct GeluMlp final : Mlp {
  struct Options {
    int64_t hidden = 0;
    bool bias = true, tanh = false;
    void fields(Fields& f) {
      f("hidden", hidden, "width of the hidden layer; 0 means 4 times the model width", at_least(0));
      f("bias", bias, "add biases");
      f("tanh", tanh, "use the tanh approximation of GELU");
    }
  };
  GeluMlp(const Options& o, const Site& site)
      : Mlp({.hidden = o.hidden, .activation = o.tanh ? "gelu_tanh" : "gelu", .gated = false, .bias = o.bias},
            site) {}
};

const RegisterChannel<Mlp> register_mlp{"mlp", "MLP with any activation, gated or not"};
const RegisterChannel<SwiGlu> register_swiglu{"swiglu", "gated MLP with SiLU, mlp in short"};
const RegisterChannel<GeluMlp> register_gelu{"gelu", "MLP with GELU, mlp in short"};

}  // namespace

int64_t default_hidden(int64_t width, bool gated) {
  return gated ? (width * 8 / 3 + 63) / 64 * 64 : 4 * width;
}

void Mlp::Options::fields(Fields& f) {
  f("hidden", hidden,
    "width of the hidden layer; 0 means 8/3 of the model width rounded up to 64, or 4 times the width "
    "without a gate",
    at_least(0));
  f("activation", activation, "of the gate, or of the hidden layer without one",
    one_of(ops::activation_names()));
  f("gated", gated, "multiply the activation of the gate by a second projection");
  f("bias", bias, "add biases");
  f("gate_scale", gate_scale, "multiplies what the activation is taken of");
  f("output_scale", output_scale, "multiplies the output");
  f("gain", gain, "a learned factor on the output");
  f("adapter_rank", adapter_rank,
    "r, of low-rank additions to gate and up that a layer has for itself where it shares the others; 0: none",
    at_least(0));
}

Mlp::Mlp(const Options& options, const Site& site)
    : o_(resolved(options, site)), f_(ops::activation_of(o_.activation)) {
  if (o_.gated) gate_ = linear("gate", site.width, o_.hidden, {.bias = o_.bias});
  up_ = linear("up", site.width, o_.hidden, {.bias = o_.bias});
  down_ = linear("down", o_.hidden, site.width, {.bias = o_.bias, .scale = site.residual_init()});
  if (o_.gain) gain_ = vector_parameter("gain", {1}, init::constant(1));
  if (o_.adapter_rank == 0) return;
  const LinearOptions up{.scale = 0, .rules = {.own = true}};
  adapter_down_ = linear("adapter_down", site.width, o_.adapter_rank, {.rules = {.own = true}});
  if (o_.gated) gate_adapter_up_ = linear("gate_adapter_up", o_.adapter_rank, o_.hidden, up);
  up_adapter_up_ = linear("up_adapter_up", o_.adapter_rank, o_.hidden, up);
}

at::Tensor Mlp::run(const at::Tensor& x, const Context&) {
  if (o_.gated && f_ == ops::Activation::silu && !o_.bias && o_.adapter_rank == 0 && o_.gate_scale == 1.0)
    return finish(ops::swiglu(x, gate_.weight(), up_.weight()));
  auto up = up_(x), gate = o_.gated ? gate_(x) : at::Tensor();
  if (o_.adapter_rank > 0) {
    const auto low = adapter_down_(x);
    up = up + up_adapter_up_(low);
    if (o_.gated) gate = gate + gate_adapter_up_(low);
  }
  return finish(o_.gated ? ops::activate_mul(f_, scaled(gate, o_.gate_scale), up)
                         : ops::activate(f_, scaled(up, o_.gate_scale)));
}

at::Tensor Mlp::finish(const at::Tensor& hidden) const {
  const auto y = down_(hidden);
  return scaled(gain_ ? y * gain_->value.to(y.scalar_type()) : y, o_.output_scale);
}

}  // namespace weft
