#include "ops/linear/linear.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

#include <optional>

#include "base/error.h"
#include "ops/activation/activation.h"
#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/kernel_choice.h"
#include "ops/linear/kernel_cuda.h"
#include "ops/shape.h"

namespace weft::ops {
namespace {

at::Tensor cast(const at::Tensor& x, const at::Tensor& like) {
  return !x.defined() || x.scalar_type() == like.scalar_type() ? x : x.to(like.scalar_type());
}

std::vector<at::Tensor> checked(const at::Tensor& x, const std::vector<at::Tensor>& weights) {
  require(x.defined() && x.dim() >= 1, "linear: x is {}, expected [..., width]", shape_text(x));
  std::vector<at::Tensor> all;
  for (const auto& weight : weights) {
    require_like("linear", "weight", weight, x);
    require_shape("linear", "weight", weight, {-1, x.size(-1)});
    all.push_back(cast(weight, x));
  }
  return all;
}

bool wants_gradient(const at::Tensor& x, const std::vector<at::Tensor>& weights, const at::Tensor& bias) {
  if (!at::GradMode::is_enabled()) return false;
  for (const auto& weight : weights)
    if (weight.requires_grad()) return true;
  return x.requires_grad() || (bias.defined() && bias.requires_grad());
}

// By the kernel for few rows; nothing where there is none.
std::optional<std::vector<at::Tensor>> few_rows(const at::Tensor& given,
                                                const std::vector<at::Tensor>& weights,
                                                const at::Tensor& bias, bool swiglu) {
  const auto* table = CudaKernels<kernels::LinearCuda>::get();
  const int64_t width = given.size(-1), rows = width > 0 ? given.numel() / width : 0;
  if (!table || !given.is_cuda() || rows > kernels::kCudaLinearRows ||
      weights.size() > kernels::kCudaLinearMaps || choose_kernel(given) != Kernel::cuda ||
      wants_gradient(given, weights, bias))
    return std::nullopt;
  const CudaLaunch launch(given);
  const auto x = given.contiguous(), shift = bias.defined() ? bias.contiguous() : bias;
  kernels::CudaLinear p{.type = cuda_type(x), .rows = rows, .width = width, .x = data_of(x)};
  p.swiglu = swiglu, p.capability = launch.capability();
  std::vector<at::Tensor> held;
  for (const auto& weight : weights) {
    held.push_back(weight.contiguous());
    p.map[p.maps++] = {data_of(held.back()), data_of(shift), nullptr, weight.size(0)};
  }
  if (!table->takes(p)) return std::nullopt;
  std::vector<at::Tensor> out;
  auto sizes = x.sizes().vec();
  for (int i = 0; i < (swiglu ? 1 : p.maps); ++i) {
    sizes.back() = p.map[i].count;
    out.push_back(at::empty(sizes, x.options()));
    p.map[i].y = out.back().mutable_data_ptr();
  }
  check_launch("linear", table->products(p, launch.stream()));
  return out;
}

}  // namespace

std::vector<at::Tensor> linear(const at::Tensor& x, const std::vector<at::Tensor>& weights) {
  const auto all = checked(x, weights);
  if (const auto out = few_rows(x, all, {}, false)) return *out;
  std::vector<at::Tensor> out;
  for (const auto& weight : all) out.push_back(at::linear(x, weight));
  return out;
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  const auto all = checked(x, {weight});
  if (bias.defined()) {
    require_like("linear", "bias", bias, x);
    require_shape("linear", "bias", bias, {weight.size(0)});
  }
  const auto shift = cast(bias, x);
  if (const auto out = few_rows(x, all, shift, false)) return out->front();
  return at::linear(x, all.front(), shift);
}

at::Tensor swiglu(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& up) {
  const auto all = checked(x, {gate, up});
  require_shape("swiglu", "up", up, {gate.size(0), x.size(-1)});
  if (const auto out = few_rows(x, all, {}, true)) return out->front();
  return silu_mul(at::linear(x, all[0]), at::linear(x, all[1]));
}

}  // namespace weft::ops
