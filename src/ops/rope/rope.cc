#include "ops/rope/rope.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "base/error.h"
#include "ops/parallel.h"
#include "ops/rope/cuda.h"
#include "ops/rope/kernel.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrainFloats = 16384;  // less work than this is not worth a thread

// [dim / 2] fp64
at::Tensor frequencies_of(int64_t dim, double theta) {
  const auto list = at::empty({dim / 2}, at::kDouble);
  auto* values = list.mutable_data_ptr<double>();
  for (int64_t i = 0; i < dim / 2; ++i)
    values[i] = std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
  return list;
}

struct Turn {
  at::Tensor positions, frequencies;
  double magnitude = 1;
  bool interleaved = false, backwards = false;
};

at::Tensor run(const at::Tensor& x, const Turn& turn) {
  const auto isa = isa_of(choose_kernel(x));
  const auto wide = x.to(at::kFloat).contiguous(), places = turn.positions.contiguous();
  const auto frequencies = turn.frequencies.contiguous();
  const int64_t pairs = frequencies.size(-1), tokens = x.size(0) * x.size(1);
  const auto table = at::empty({2, tokens, pairs}, wide.options());
  const auto y = at::empty(x.sizes(), wide.options());
  const kernels::RopeProblem p{.positions = places.const_data_ptr<int64_t>(),
                               .frequencies = frequencies.const_data_ptr<double>(),
                               .cosines = table.mutable_data_ptr<float>(),
                               .sines = table.mutable_data_ptr<float>() + tokens * pairs,
                               .x = wide.const_data_ptr<float>(),
                               .y = y.mutable_data_ptr<float>(),
                               .tokens = tokens,
                               .heads = x.size(2),
                               .width = x.size(3),
                               .pairs = pairs,
                               .frequency_stride = frequencies.dim() == 1 ? 0 : pairs,
                               .magnitude = turn.magnitude,
                               .interleaved = turn.interleaved,
                               .backwards = turn.backwards};
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
                            const at::Tensor& frequencies, double magnitude, bool interleaved,
                            bool backwards) {
    ctx->save_for_backward({positions, frequencies});
    ctx->saved_data["magnitude"] = magnitude;
    ctx->saved_data["interleaved"] = interleaved;
    ctx->saved_data["backwards"] = backwards;
    return run(x, {positions, frequencies, magnitude, interleaved, backwards});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const auto& data = ctx->saved_data;
    const auto saved = ctx->get_saved_variables();
    auto dx = RopeFunction::apply(upstream[0], saved[0], saved[1], data.at("magnitude").toDouble(),
                                  data.at("interleaved").toBool(), !data.at("backwards").toBool());
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
  const auto& list = options.frequencies;
  if (!list.defined()) return;
  require(list.scalar_type() == at::kDouble, "rope: frequencies have type {}, expected fp64",
          c10::toString(list.scalar_type()));
  if (list.dim() == 1)
    require_shape("rope", "frequencies", list, {dim / 2});
  else
    require_shape("rope", "frequencies", list, {x.size(0), x.size(1), dim / 2});
}

}  // namespace

at::Tensor rope(const at::Tensor& x, const at::Tensor& positions, const Rope& options) {
  check(x, positions, options);
  const int64_t dim = options.dim ? options.dim : x.size(3);
  if (has_cuda_rope(x, dim)) return cuda_rope(x, positions, options, dim);
  const auto kernel = choose_kernel(x);
  if (kernel == Kernel::reference || kernel == Kernel::cuda) return reference::rope(x, positions, options);
  const auto frequencies =
      options.frequencies.defined() ? options.frequencies : frequencies_of(dim, options.theta);
  return RopeFunction::apply(x, positions, frequencies, options.magnitude, options.interleaved, false);
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def(
      "rope(Tensor x, Tensor positions, int dim=0, float theta=10000.0, bool interleaved=False, "
      "Tensor? frequencies=None, float magnitude=1.0) -> Tensor",
      [](const at::Tensor& x, const at::Tensor& positions, int64_t dim, double theta, bool interleaved,
         const std::optional<at::Tensor>& frequencies, double magnitude) {
        return rope(x, positions, {dim, theta, interleaved, frequencies.value_or(at::Tensor()), magnitude});
      });
}

}  // namespace weft::ops
