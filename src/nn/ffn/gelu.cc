// Plain MLP with GELU: y = W_down gelu(W_up x). Hendrycks and Gimpel 2016, arXiv:1606.08415.
#include "nn/channel.h"

namespace weft {
namespace {

class GeluMlp final : public ChannelMixer {
 public:
  struct Options {
    int64_t hidden = 0;
    bool bias = true;
    bool tanh = false;
    void fields(Fields& f) {
      f("hidden", hidden, "width of the hidden layer; 0 means 4 times the model width", at_least(0));
      f("bias", bias, "add biases");
      f("tanh", tanh, "use the tanh approximation of GELU");
    }
  };
  GeluMlp(const Options& options, const Site& site)
      : hidden_(options.hidden > 0 ? options.hidden : 4 * site.width),
        approximation_(options.tanh ? "tanh" : "none"),
        up_(linear("up", site.width, hidden_, {.bias = options.bias})),
        down_(linear("down", hidden_, site.width, {.bias = options.bias, .scale = site.residual_init()})) {}

  at::Tensor run(const at::Tensor& x, const Context&) override {
    return down_(at::gelu(up_(x), approximation_));
  }

 private:
  int64_t hidden_;
  const char* approximation_;
  Linear up_, down_;
};
const RegisterChannel<GeluMlp> register_gelu{"gelu", "MLP with GELU"};

}  // namespace
}  // namespace weft
