#include "ops/rope/cuda.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/recurrence.h"
#include "ops/rope/kernel_cuda.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

const kernels::RopeCuda& table() { return *CudaKernels<kernels::RopeCuda>::get(); }

struct Turn {
  at::Tensor positions, frequencies;
  int64_t dim = 0;
  double theta = 1, magnitude = 1;
  bool interleaved = false, backwards = false;
};

at::Tensor run(const at::Tensor& given, const Turn& turn) {
  const auto x = given.stride(3) == 1 ? given : given.contiguous(), places = turn.positions.contiguous();
  const auto frequencies = turn.frequencies.defined() ? turn.frequencies.contiguous() : at::Tensor();
  const CudaLaunch launch(x);
  const auto y = at::empty(x.sizes(), x.options());
  kernels::CudaRope p;
  p.batch = x.size(0), p.tokens = x.size(1), p.heads = x.size(2), p.width = x.size(3), p.pairs = turn.dim / 2;
  p.type = cuda_type(x), p.positions = places.const_data_ptr<int64_t>();
  if (frequencies.defined()) {
    p.frequencies = frequencies.const_data_ptr<double>();
    p.frequency_stride = frequencies.dim() == 1 ? 0 : p.pairs;
  }
  p.log2_theta = std::log2(turn.theta), p.magnitude = turn.magnitude;
  p.interleaved = turn.interleaved, p.backwards = turn.backwards;
  p.x = data_of(x), p.x_batch = x.stride(0), p.x_token = x.stride(1), p.x_head = x.stride(2);
  p.y = y.mutable_data_ptr();
  check_launch("rope", table().turn(p, launch.stream()));
  return y;
}

// Linear in x, so its own gradient with the angle turned round: differentiable any number of times.
class CudaRopeFunction : public torch::autograd::Function<CudaRopeFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& positions,
                            const Optional& frequencies, int64_t dim, double theta, double magnitude,
                            bool interleaved, bool backwards) {
    const auto list = frequencies.value_or(at::Tensor());
    ctx->save_for_backward({positions, list});
    ctx->saved_data["dim"] = dim;
    ctx->saved_data["theta"] = theta;
    ctx->saved_data["magnitude"] = magnitude;
    ctx->saved_data["interleaved"] = interleaved;
    ctx->saved_data["backwards"] = backwards;
    return run(x, {positions, list, dim, theta, magnitude, interleaved, backwards});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    const auto& data = ctx->saved_data;
    const auto saved = ctx->get_saved_variables();
    auto dx = CudaRopeFunction::apply(upstream[0], saved[0], optional_of(saved[1]), data.at("dim").toInt(),
                                      data.at("theta").toDouble(), data.at("magnitude").toDouble(),
                                      data.at("interleaved").toBool(), !data.at("backwards").toBool());
    return {std::move(dx), {}, {}, {}, {}, {}, {}, {}};
  }
};

}  // namespace

bool has_cuda_rope(const at::Tensor& x, int64_t dim) {
  return choose_kernel(x) == Kernel::cuda && dim / 2 <= kernels::kCudaRopePairs &&
         CudaKernels<kernels::RopeCuda>::get();
}

at::Tensor cuda_rope(const at::Tensor& x, const at::Tensor& positions, const Rope& options, int64_t dim) {
  const auto& list = options.frequencies;
  return CudaRopeFunction::apply(x, positions, optional_of(list.defined() ? list.to(x.device()) : list), dim,
                                 options.theta, options.magnitude, options.interleaved, false);
}

}  // namespace weft::ops
