// A single projection: y = W x.
#include "nn/channel.h"

namespace weft {
namespace {

class LinearMap final : public ChannelMixer {
 public:
  struct Options {
    bool bias = false;
    void fields(Fields& f) { f("bias", bias, "add a bias"); }
  };
  LinearMap(const Options& options, const Site& site)
      : map_(linear("map", site.width, site.width, {.bias = options.bias, .scale = site.residual_init()})) {}

  at::Tensor run(const at::Tensor& x, const Context&) override { return map_(x); }

 private:
  Linear map_;
};
const RegisterChannel<LinearMap> register_linear{"linear", "a single projection"};

}  // namespace
}  // namespace weft
