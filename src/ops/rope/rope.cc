#include "ops/rope/rope.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "base/error.h"
#include "ops/parallel.h"
#include "ops/rope/kernel.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrainFloats = 16384;  // less work than this is not worth a thread

std::vector<double> frequencies(int64_t dim, double theta) {
  std::vector<double> list(static_cast<size_t>(dim / 2));
  for (size_t i = 0; i < list.size(); ++i)
    list[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
  return list;
}

at::Tensor run(const at::Tensor& x, const at::Tensor& positions, const Rope& options, bool backwards) {
  const auto isa = isa_of(choose_kernel(x));
  const auto wide = x.to(at::kFloat).contiguous(), places = positions.contiguous();
  const int64_t dim = options.dim ? options.dim : x.size(3), tokens = x.size(0) * x.size(1);
  const auto turns = frequencies(dim, options.theta);
  const auto table = at::empty({2, tokens, dim / 2}, wide.options());
  const auto y = at::empty(x.sizes(), wide.options());
  const kernels::RopeProblem p{.positions = places.const_data_ptr<int64_t>(),
                               .frequencies = turns.data(),
                               .cosines = table.mutable_data_ptr<float>(),
                               .sines = table.mutable_data_ptr<float>() + tokens * (dim / 2),
                               .x = wide.const_data_ptr<float>(),
                               .y = y.mutable_data_ptr<float>(),
                               .tokens = tokens,
                               .heads = x.size(2),
                               .width = x.size(3),
                               .pairs = dim / 2,
                               .interleaved = options.interleaved,
                               .backwards = backwards};
  const int64_t grain = std::max<int64_t>(1, kGrainFloats / std::max<int64_t>(1, p.heads * p.width));
  parallel_for(tokens, grain, [&](int64_t begin, int64_t end) {
    kernels::rope_table(isa, p, begin, end);
    kernels::rope_turn(isa, p, begin, end);
  });
  return y.to(x.scalar_type());
}

// Linear in x, so its own gradient with the angle turned round: differentiable any number of times.
class RopeFunction : public torch::autograd::Function<RopeFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& positions,
                            int64_t dim, double theta, bool interleaved, bool backwards) {
    ctx->save_for_backward({positions});
    ctx->saved_data["dim"] = dim;
    ctx->saved_data["theta"] = theta;
    ctx->saved_data["interleaved"] = interleaved;
    ctx->saved_data["backwards"] = backwards;
    return run(x, positions, {dim, theta, interleaved}, backwards);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const auto& data = ctx->saved_data;
    auto dx = RopeFunction::apply(upstream[0], ctx->get_saved_variables()[0], data.at("dim").toInt(),
                                  data.at("theta").toDouble(), data.at("interleaved").toBool(),
                                  !data.at("backwards").toBool());
    return {std::move(dx), {}, {}, {}, {}, {}};
  }
};

void check(const at::Tensor& x, const at::Tensor& positions, const Rope& options) {
  require_like("rope", "x", x, x);
  require_shape("rope", "x", x, {-1, -1, -1, -1});
  require_shape("rope", "positions", positions, {x.size(0), x.size(1)});
  require(positions.scalar_type() == at::kLong, "rope: positions have type {}, expected int64",
          c10::toString(positions.scalar_type()));
  require(positions.device() == x.device(), "rope: positions are on {}, expected {}",
          positions.device().str(), x.device().str());
  const int64_t dim = options.dim ? options.dim : x.size(3);
  require(dim > 0 && dim % 2 == 0 && dim <= x.size(3),
          "rope: {} channels are to be rotated; expected an even number from 2 to the head width {}", dim,
          x.size(3));
  require(options.theta > 0, "rope: theta is {}, expected a positive number", options.theta);
}

}  // namespace

at::Tensor rope(const at::Tensor& x, const at::Tensor& positions, const Rope& options) {
  check(x, positions, options);
  const auto kernel = choose_kernel(x);
  if (kernel == Kernel::reference || kernel == Kernel::cuda) return reference::rope(x, positions, options);
  return RopeFunction::apply(x, positions, options.dim, options.theta, options.interleaved, false);
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def("rope(Tensor x, Tensor positions, int dim=0, float theta=10000.0, bool interleaved=False) -> Tensor",
        [](const at::Tensor& x, const at::Tensor& positions, int64_t dim, double theta, bool interleaved) {
          return rope(x, positions, {.dim = dim, .theta = theta, .interleaved = interleaved});
        });
}

}  // namespace weft::ops
