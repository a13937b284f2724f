// RWKV-4: an average of all values so far, weighted by e^k and a decay in time, gated by the receptance. Peng et al.
// 2023, arXiv:2305.13048.
//   d_t = x_{t-1} - x_t;  x_c = x + d * mu_c                    for c = r, k, v; mix_current: d * (1 - mu_c)
//   r = W_r x_r;  k = W_k x_k;  v = W_v x_v;  w = -exp(decay)
//   wkv_t = (sum_{i<t} e^{(t-1-i) w + k_i} v_i + e^{u + k_t} v_t) / (the same without v)
//   y_t = W_o (sigmoid(r) * wkv)
//
// E inner width. State: shift [B, 1, D] in the activation type; sums [B, 3, E] fp32: numerator, denominator and the
// exponent that both are divided by (ops/scan/wkv.h).
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/rwkv.h"
#include "nn/mixers/step_size.h"
#include "ops/scan/wkv.h"

namespace weft {
namespace {

class Rwkv4 final : public SequenceMixer {
 public:
  struct Options {
    int64_t inner = 0;
    bool mix_current = false;
    void fields(Fields& f) {
      f("inner", inner, "E, channels of the state; 0 means the model width", at_least(0));
      f("mix_current", mix_current, kMixCurrent);
    }
  };

  Rwkv4(const Options& options, const Site& site)
      : width_(site.width),
        inner_(options.inner > 0 ? options.inner : site.width),
        mix_current_(options.mix_current),
        r_(linear("r", width_, inner_)),
        k_(linear("k", width_, inner_)),
        v_(linear("v", width_, inner_)),
        out_(linear("out", inner_, width_, {.scale = site.residual_init()})) {
    const Height height(site);
    mix_r_ = vector_parameter("mix_r", {width_}, init_mix(0.5 * height.left, 0, mix_current_));
    mix_k_ = vector_parameter("mix_k", {width_}, init_mix(height.left, 0, mix_current_));
    mix_v_ = vector_parameter("mix_v", {width_}, init_mix(height.left, 0.3 * height.depth, mix_current_));
    decay_ = vector_parameter("decay", {inner_}, init_ramp([height](const at::Tensor& ramp) {
                                return -5 + 8 * ramp.pow(0.7 + 1.3 * height.depth);
                              }));
    bonus_ = vector_parameter("bonus", {inner_}, init_ramp([](const at::Tensor& ramp) {
                                const auto zigzag = (at::arange(1, ramp.size(0) + 1) % 3 - 1) * 0.5;
                                return zigzag + std::log(0.3);
                              }));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto shift = token_shift(x, state.at("shift"), context.starts);
    const auto mixed = [&](const std::shared_ptr<Parameter>& mix) {
      return mix_tokens(x, shift, mix->value, mix_current_);
    };
    const auto result = ops::wkv({.k = k_(mixed(mix_k_)),
                                  .v = v_(mixed(mix_v_)),
                                  .log_decay = -decay_->value.exp(),
                                  .bonus = bonus_->value,
                                  .initial_state = state.at("sums"),
                                  .starts = context.starts});
    state.set("shift", shift.last);
    state.set("sums", result.state);
    return out_(at::sigmoid(r_(mixed(mix_r_))) * result.y);
  }

  Summary summary(const at::Tensor&, const State&, const Context&) override {
    throw Unsupported(
        "rwkv4 has no affine summary: its state is scaled by a running maximum, which is not an affine map; "
        "run "
        "spans in order");
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("shift", at::zeros({batch, 1, width_}, options));
    const auto sums = at::zeros({batch, 3, inner_}, state_options(options));
    sums.select(1, 2).fill_(ops::kWkvNothing);
    state.set("sums", sums);
    return state;
  }

  double op_flops(int64_t) const override { return static_cast<double>(10 * inner_); }
  std::vector<std::string> ops() const override { return {"scan"}; }

 private:
  int64_t width_, inner_;
  bool mix_current_;
  Linear r_, k_, v_, out_;
  std::shared_ptr<Parameter> mix_r_, mix_k_, mix_v_, decay_, bonus_;
};
const Register<Rwkv4> register_rwkv4{
    "rwkv4",
    "RWKV-4: decaying average weighted by e^k, two numbers a channel; use it with rwkv_channel_mix where the "
    "state must be tiny, otherwise prefer rwkv6 or rwkv7"};

}  // namespace
}  // namespace weft
