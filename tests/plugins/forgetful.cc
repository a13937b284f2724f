// A mixer that breaks the contract, for `weft check`: it sums all inputs of a call but keeps nothing for the
// next call.
#include "nn/mixer.h"

namespace {

using namespace weft;

class Forgetful final : public SequenceMixer {
 public:
  struct Options {
    void fields(Fields&) {}
  };
  Forgetful(const Options&, const Site& site) : out_(linear("out", site.width, site.width)) {}
  at::Tensor run(const at::Tensor& x, State&, const Context&) override { return out_(x.cumsum(1)); }
  State initial_state(int64_t, const at::TensorOptions&) const override { return {}; }
  double op_flops(int64_t) const override { return 0; }
  std::vector<std::string> ops() const override { return {}; }

 private:
  Linear out_;
};
const Register<Forgetful> register_forgetful{"forgetful", "sums the inputs of one call; a broken plug-in"};

}  // namespace
