// How far Newton's iterates of a recurrence without matrices are from the recurrence itself. Danieli et al. 2025,
// arXiv:2510.21450 (ParaRNN).
//   error_k = max over rows, tokens and channels of |h after k iterations - h token by token|
// Inputs x ~ N(0, 1) pass a projection of two groups, uniform within sqrt(6 / (fan in + fan out)); the first gate has a
// bias from 0 to -1. The weights of the state are those of the paper, normal with deviation 2 / sqrt(5 D), or uniform in
// [-u, u], which shows when the method stops to converge.
#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "ops/rnn/rnn_parallel.h"
#include "study/experiment.h"

namespace weft {
namespace {

class NewtonError final : public Experiment {
 public:
  struct Options {
    std::string cell = "para_gru", dtype = "fp64";
    int64_t length = 512, batch = 4, channels = 256, iterations = 4;
    double uniform = 0;
    void fields(Fields& f) {
      f("cell", cell, "the cell", one_of({"para_gru", "para_lstm"}));
      f("dtype", dtype, "of Newton's iterates; the recurrence they are compared with is in fp64",
        one_of({"fp64", "fp32"}));
      f("length", length, "T, tokens of a row", at_least(1));
      f("batch", batch, "B, rows", at_least(1));
      f("channels", channels, "D", at_least(2));
      f("iterations", iterations, "errors of 0 .. iterations are reported", at_least(0));
      f("uniform", uniform, "u, the state's weights are uniform in [-u, u]; 0: normal as in the paper",
        at_least(0));
    }
  };
  explicit NewtonError(const Options& options) : o_(options) {
    require(o_.channels % 2 == 0, "newton_error: channels is {}, expected an even number", o_.channels);
  }

  Outcome run(const ExperimentContext& context) override {
    const at::NoGradGuard no_grad;
    const auto in = inputs(context);
    auto wide = in;
    for (auto* x : {&wide.wx, &wide.bias, &wide.parameters}) *x = x->to(at::kDouble);
    const auto exact = ops::rnn(wide).h;
    Outcome outcome;
    for (int64_t k = 0; k <= o_.iterations; ++k) {
      if (context.stop()) return {.stopped = true, .metrics = {}};
      const auto found =
          ops::rnn_parallel(in, {.iterations = k, .tolerance = std::numeric_limits<double>::infinity()});
      outcome.metrics[fmt::format("error_{}", k)] =
          (found.h.to(at::kDouble) - exact).abs().max().item<double>();
      context.progress(static_cast<double>(k + 1) / static_cast<double>(o_.iterations + 2), "");
    }
    outcome.metrics["max_jacobian"] = largest_derivative(wide);
    return outcome;
  }

 private:
  ops::Rnn inputs(const ExperimentContext& context) const {
    const auto& cell = ops::find_cell(o_.cell);
    auto random = at::make_generator<at::CPUGeneratorImpl>(context.seed);
    const auto wide = at::TensorOptions(at::kDouble);
    const int64_t width = o_.channels, half = width / 2;
    const auto uniform = [&](at::IntArrayRef shape, double reach) {
      return (2 * at::rand(shape, random, wide) - 1) * reach;
    };
    const auto x = at::randn({o_.batch, o_.length, 2, half}, random, wide);
    const auto weights = uniform({2, half, cell.gates, half}, std::sqrt(6.0 / static_cast<double>(width)));
    ops::Rnn in;
    in.cell = o_.cell;
    in.wx = at::einsum("btgi,gijo->btjgo", {x, weights}).flatten(3).unsqueeze(3);  // [B, T, J, 1, D]
    in.parameters = o_.uniform > 0 ? uniform({cell.parameters, 1, width}, o_.uniform)
                                   : at::randn({cell.parameters, 1, width}, random, wide) *
                                         (2 / std::sqrt(5.0 * static_cast<double>(width)));
    in.bias = at::zeros({cell.gates, 1, width}, wide);
    in.bias[0][0].copy_(-at::linspace(0, 1, width, wide));
    const auto type = o_.dtype == "fp32" ? at::kFloat : at::kDouble;
    for (auto* tensor : {&in.wx, &in.bias, &in.parameters}) *tensor = tensor->to(context.device, type);
    return in;
  }

  // The largest |d new state i / d state j| of a channel along the sequence.
  static double largest_derivative(const ops::Rnn& in) {
    const auto& cell = ops::find_cell(in.cell);
    std::vector<at::Tensor> before;  // T times [S, B, 1, D]
    auto state = at::zeros({cell.states, in.wx.size(0), 1, in.wx.size(4)}, in.wx.options());
    for (int64_t t = 0; t < in.wx.size(1); ++t) {
      before.push_back(state);
      auto token = in;
      token.wx = in.wx.slice(1, t, t + 1);
      token.initial_state = state;
      state = ops::rnn(token).state;
    }
    const at::AutoGradMode with_gradient(true);
    const auto gates = (in.wx + in.bias).movedim(2, 0);                      // [J, B, T, 1, D]
    const auto states = at::stack(before, 2).detach().requires_grad_(true);  // [S, B, T, 1, D]
    const auto after = cell.reference(gates, states, in.parameters);
    double largest = 0;
    for (int64_t i = 0; i < cell.states; ++i) {
      states.mutable_grad() = at::Tensor();
      after[i].sum().backward({}, /*retain_graph=*/true);
      largest = std::max(largest, states.grad().abs().max().item<double>());
    }
    return largest;
  }

  Options o_;
};
const RegisterExperiment<NewtonError> register_newton_error{
    "newton_error", "how far Newton's iterates of a nonlinear recurrence are from it (ParaRNN)"};

}  // namespace
}  // namespace weft
