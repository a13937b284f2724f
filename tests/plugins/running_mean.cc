// A mixer as a plug-in: y_t = W (x_1 + ... + x_t) / t, built against installed headers and loaded with
// --plugin.
#include "nn/mixer.h"

namespace {

using namespace weft;

class RunningMean final : public SequenceMixer {
 public:
  struct Options {
    bool bias = false;
    void fields(Fields& f) { f("bias", bias, "bias on the output projection"); }
  };
  RunningMean(const Options& options, const Site& site)
      : width_(site.width),
        out_(linear("out", site.width, site.width, {.bias = options.bias, .scale = site.residual_init()})) {}

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto wide = at::promote_types(x.scalar_type(), at::kFloat);
    std::vector<at::Tensor> rows;
    at::Tensor sum = state.at("sum");                     // [B, D]
    const auto count = (context.positions + 1).to(wide);  // [B, T]
    for (int64_t t = 0; t < x.size(1); ++t) {
      if (context.starts.defined())
        sum = at::where(context.starts.select(1, t).unsqueeze(1), at::zeros_like(sum), sum);
      sum = sum + x.select(1, t).to(wide);
      rows.push_back(sum / count.select(1, t).unsqueeze(1));
    }
    state.set("sum", sum);
    return rows.empty() ? out_(x) : out_(at::stack(rows, 1).to(x.scalar_type()));
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    const auto dtype = at::promote_types(c10::typeMetaToScalarType(options.dtype()), at::kFloat);
    state.set("sum", at::zeros({batch, width_}, options.dtype(dtype)));
    return state;
  }

  double op_flops(int64_t) const override { return 2.0 * static_cast<double>(width_); }
  std::vector<std::string> ops() const override { return {}; }

 private:
  int64_t width_;
  Linear out_;
};
const Register<RunningMean> register_running_mean{"running_mean", "mean of all inputs so far; a plug-in"};

}  // namespace
