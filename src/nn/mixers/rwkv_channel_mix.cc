// The channel mixer of RWKV. It sees the token before, so it has a state and stands in a layer as a mixer of its own,
// without ffn: layers: [{mixer: rwkv7}, {mixer: rwkv_channel_mix}]. Peng et al. 2023, arXiv:2305.13048 (with gate,
// RWKV-4 to 6); 2025, arXiv:2503.14456 (without, RWKV-7).
//   d_t = x_{t-1} - x_t
//   y_t = sigmoid(W_r (x + d * mu_r)) * W_v relu(W_k (x + d * mu_k))^2
//
// F hidden width. State: shift [B, 1, D] in the activation type.
#include "nn/mixer.h"
#include "nn/mixers/rwkv.h"

namespace weft {
namespace {

class RwkvChannelMix final : public SequenceMixer {
 public:
  struct Options {
    int64_t hidden = 0;
    bool gate = true, mix_current = false;
    void fields(Fields& f) {
      f("hidden", hidden, "F, hidden width; 0 means 4 D", at_least(0));
      f("gate", gate, "multiply by sigmoid(W_r x); false: RWKV-7");
      f("mix_current", mix_current, kMixCurrent);
    }
  };

  RwkvChannelMix(const Options& options, const Site& site)
      : gated_(options.gate),
        mix_current_(options.mix_current),
        width_(site.width),
        hidden_(options.hidden > 0 ? options.hidden : 4 * width_),
        k_(linear("k", width_, hidden_)),
        v_(linear("v", hidden_, width_, {.scale = site.residual_init()})) {
    const Height height(site);
    mix_k_ = vector_parameter("mix_k", {width_}, init_mix(height.left, 0, mix_current_));
    if (!gated_) return;
    mix_r_ = vector_parameter("mix_r", {width_}, init_mix(height.left, 0, mix_current_));
    r_ = linear("r", width_, width_);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto shift = token_shift(x, state.at("shift"), context.starts);
    state.set("shift", shift.last);
    const auto mixed = [&](const std::shared_ptr<Parameter>& mix) {
      return mix_tokens(x, shift, mix->value, mix_current_);
    };
    const auto y = v_(at::relu(k_(mixed(mix_k_))).square());
    return gated_ ? at::sigmoid(r_(mixed(mix_r_))) * y : y;
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    Summary summary;
    summary.rest.set("shift", token_shift(x, state.at("shift"), context.starts).last);
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("shift", at::zeros({batch, 1, width_}, options));
    return state;
  }

 private:
  bool gated_, mix_current_;
  int64_t width_, hidden_;
  Linear k_, v_, r_;
  std::shared_ptr<Parameter> mix_k_, mix_r_;
};
const Register<RwkvChannelMix> register_rwkv_channel_mix{
    "rwkv_channel_mix",
    "the channel mixer of RWKV, squared relu with token shift; use it as a layer of its own after "
    "each RWKV mixer"};

}  // namespace
}  // namespace weft
