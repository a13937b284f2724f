// Gated MLP: y = W_down (silu(W_gate x) * W_up x). Shazeer 2020, "GLU Variants Improve Transformer",
// arXiv:2002.05202.
#include "nn/channel.h"
#include "ops/activation/activation.h"

namespace weft {
namespace {

class SwiGlu final : public ChannelMixer {
 public:
  struct Options {
    int64_t hidden = 0;
    void fields(Fields& f) {
      f("hidden", hidden, "width of the hidden layer; 0 means 8/3 of the model width, rounded up to 64",
        at_least(0));
    }
  };
  SwiGlu(const Options& options, const Site& site)
      : hidden_(options.hidden > 0 ? options.hidden : (site.width * 8 / 3 + 63) / 64 * 64),
        gate_(linear("gate", site.width, hidden_)),
        up_(linear("up", site.width, hidden_)),
        down_(linear("down", hidden_, site.width, {.scale = site.residual_init()})) {}

  at::Tensor run(const at::Tensor& x, const Context&) override {
    return down_(ops::silu_mul(gate_(x), up_(x)));
  }

 private:
  int64_t hidden_;
  Linear gate_, up_, down_;
};
const RegisterChannel<SwiGlu> register_swiglu{"swiglu", "gated MLP with SiLU"};

}  // namespace
}  // namespace weft
