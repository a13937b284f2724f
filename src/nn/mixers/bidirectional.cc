// Two causal mixers, one left to right and one right to left, added: for encoders, DNA and vision. With
// `tied` both directions share one mixer's weights, as in Caduceus (Schiff et al. 2024, arXiv:2403.03234).
// Not causal: it has the whole form only, and no state.
#include "base/error.h"
#include "nn/mixer.h"

namespace weft {
namespace {

class Bidirectional final : public SequenceMixer {
 public:
  struct Options {
    Node inner;
    bool tied = false;
    void fields(Fields& f) {
      f("inner", inner, "the causal mixer, {mixer: NAME, ...}");
      f("tied", tied, "one set of weights for both directions");
    }
  };

  Bidirectional(const Options& options, const Site& site) {
    require(!options.inner.is_null(), "{}: bidirectional needs inner: {{mixer: NAME, ...}}", site.where);
    forward_ = make_mixer(options.inner, site);
    require(forward_->causal(), "{}: the inner mixer looks ahead already", options.inner.where());
    require(forward_->import_ports().empty(), "{}: a mixer that imports cannot run right to left",
            options.inner.where());
    add_child("forward", *forward_);
    if (options.tied) return;
    backward_ = make_mixer(options.inner, site);
    add_child("backward", *backward_);
  }

  at::Tensor run(const at::Tensor& x, State&, const Context& context) override {
    Context inner = context;
    inner.exports = nullptr;
    inner.keep_state = false;
    State fresh = forward_->initial_state(x.size(0), x.options());
    auto& mirror = backward_ ? *backward_ : *forward_;
    return forward_->run(x, fresh, inner) + mirror.run_reversed(x, inner);
  }

  State initial_state(int64_t, const at::TensorOptions&) const override { return {}; }
  bool causal() const override { return false; }
  Summary summary(const at::Tensor&, const State&, const Context&) override {
    throw Unsupported(
        "bidirectional has no summary: it reads the tokens that follow, so it has the whole form only");
  }
  double op_flops(int64_t context) const override { return 2 * forward_->op_flops(context); }
  std::vector<std::string> ops() const override { return forward_->ops(); }

 private:
  std::unique_ptr<SequenceMixer> forward_, backward_;
};
const Register<Bidirectional> register_bidirectional{"bidirectional",
                                                     "a mixer left to right plus one right to left"};

}  // namespace
}  // namespace weft
