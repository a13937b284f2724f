// Leaky average: each channel averages what it has seen and forgets at a pace that it learns; a gate decides
// how much of the average is read.
//   h_t = a h_{t-1} + (1 - a) u_t,  u = W_in x        a = sigmoid(p), one number a channel
//   y_t = W_out (silu(W_gate x_t) * h_t)
//
// B batch, T tokens, D model width, E channels. State: h [B, E], fp32.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>

#include "nn/mixer.h"
#include "ops/scan/scan.h"

namespace {

using namespace weft;

class LeakyAverage final : public SequenceMixer {
 public:
  struct Options {
    int64_t channels = 0;
    double span = 64;
    void fields(Fields& f) {
      f("channels", channels, "E, channels that are averaged; 0 means the model width", at_least(0));
      f("span", span, "tokens that the slowest channel reaches back before training", at_least(2));
    }
  };

  LeakyAverage(const Options& options, const Site& site)
      : channels_(options.channels > 0 ? options.channels : site.width),
        in_(linear("in", site.width, channels_)),
        gate_(linear("gate", site.width, channels_)),
        out_(linear("out", channels_, site.width, {.scale = site.residual_init()})) {
    const double longest = std::log(options.span);
    pace_ = vector_parameter("pace", {channels_}, [longest](at::Tensor& p, at::Generator&) {
      const auto spans = at::linspace(std::log(2.0), longest, p.size(0)).exp();  // from 2 tokens to `span`
      p.copy_((spans - 1).log());                                                // sigmoid(p) = 1 - 1 / span
    });
  }

  // x [B, T, D] -> [B, T, D]; h moves on by T tokens.
  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto average = averages(x, state.at("h"), context);
    state.set("h", average.state);
    return out_(at::silu(gate_(x)) * average.h.to(x.scalar_type()));
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    const auto wide = at::promote_types(c10::typeMetaToScalarType(options.dtype()), at::kFloat);
    State state;
    state.set("h", at::zeros({batch, channels_}, options.dtype(wide)));
    return state;
  }

  // T tokens take h to a^T h + what they add to a state of zeros; a document that begins among them drops h.
  Summary summary(const at::Tensor& x, const State&, const Context& context) override {
    auto factor = at::sigmoid(pace_->value).pow(x.size(1)).expand({x.size(0), channels_});  // [B, E]
    if (context.starts.defined())
      factor = at::where(context.starts.any(1).unsqueeze(1), at::zeros_like(factor), factor);
    Summary summary;
    summary.maps["h"] = {factor, averages(x, at::Tensor(), context).state};
    return summary;
  }

  double op_flops(int64_t) const override { return 4.0 * static_cast<double>(channels_); }
  std::vector<std::string> ops() const override { return {"scan"}; }

 private:
  ops::ScanResult averages(const at::Tensor& x, const at::Tensor& before, const Context& context) const {
    const auto a = at::sigmoid(pace_->value);  // [E], fp32
    return ops::scan(a, (1 - a) * in_(x), before, context.starts);
  }

  int64_t channels_;
  Linear in_, gate_, out_;
  std::shared_ptr<Parameter> pace_;
};
const Register<LeakyAverage> register_leaky_average{"leaky_average",
                                                    "gated averages that forget at a learned pace"};

}  // namespace
