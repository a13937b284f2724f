// Structured global convolution: a filter in pieces, each twice as long as the one before, stretched from the same few
// numbers and weaker by `decay`. Li et al. 2022, arXiv:2210.09298.
//   k = [w_0, decay stretch_1(w_1), decay^2 stretch_2(w_2), decay^3 stretch_4(w_3), ...];  m = k * x + D x
//   y = GLU(W GELU(m))
// The paper divides by the norm of the first filter; here the weights start so that this norm is about 1. Tokens more than
// `length` back are not seen.
//
// E = D channels, L taps. State: inputs [B, L - 1, E] in the activation type.
#include <cmath>

#include "nn/mixers/long_filter.h"
#include "nn/mixers/ssm.h"

namespace weft {
namespace {

class SgConv final : public SequenceMixer {
 public:
  struct Options {
    int64_t length = 1024, piece = 16;
    double decay = 0.5;
    std::string activation = "glu";
    void fields(Fields& f) {
      f("length", length, "L, taps; tokens further back are not seen", at_least(1));
      f("piece", piece, "numbers of a piece, and taps of the first two", at_least(2));
      f("decay", decay, "how much weaker each piece is than the one before", above(0), at_most(1));
      f("activation", activation, "what follows the convolution", ssm_activation());
    }
  };

  SgConv(const Options& options, const Site& site)
      : o_(options), width_(site.width), out_(options.activation, width_, site) {
    add_child("output", out_);
    double power = 0;  // squared norm of a filter whose numbers have variance 1, stretching left out
    for (int64_t covered = 0; covered < o_.length; covered += taps_of(pieces_++))
      power += std::pow(o_.decay, 2.0 * static_cast<double>(pieces_)) * static_cast<double>(taps_of(pieces_));
    weights_ = vector_parameter("weights", {pieces_, width_, o_.piece}, init::normal(1 / std::sqrt(power)));
    skip_ = vector_parameter("D", {width_}, init::normal(1));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return finish(run_filter(kernel(), x, state, context), x);
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context&) override {
    return finish(step_filter(kernel(), x, state), x);
  }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    add_filter_state(state, batch, width_, o_.length, options);
    return state;
  }
  double op_flops(int64_t) const override { return 2.0 * static_cast<double>(width_ * o_.length); }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  int64_t taps_of(int64_t piece) const { return o_.piece << std::max<int64_t>(piece - 1, 0); }
  at::Tensor kernel() const {
    std::vector<at::Tensor> parts;
    for (int64_t i = 0; i < pieces_; ++i) {
      const auto stretched = at::upsample_linear1d(weights_->value.select(0, i).unsqueeze(0), {taps_of(i)},
                                                   /*align_corners=*/false);
      parts.push_back(std::pow(o_.decay, static_cast<double>(i)) * stretched.squeeze(0));
    }
    return at::cat(parts, 1).slice(1, 0, o_.length);
  }
  at::Tensor finish(const at::Tensor& y, const at::Tensor& x) const {
    return out_(y + skip_->value.to(y.scalar_type()) * x, x);
  }

  Options o_;
  int64_t width_, pieces_ = 0;
  SsmOutput out_;
  std::shared_ptr<Parameter> weights_, skip_;
};
const Register<SgConv> register_sgconv{
    "sgconv", "long convolution from pieces of growing length (SGConv); few parameters for a long filter"};

}  // namespace
}  // namespace weft
