#include "ops/linear_attention/delta_step.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <optional>

#include "base/error.h"
#include "ops/conv/conv.h"
#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/kernel_choice.h"
#include "ops/linear_attention/kernel_cuda_delta_step.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/norm/norm.h"
#include "ops/shape.h"

namespace weft::ops {
namespace {

constexpr auto kOp = "delta_step";

void check(const DeltaStep& in) {
  require(in.x.defined() && in.x.dim() == 3 && in.x.size(1) == 1,
          "{}: x is {}, expected [batch, 1, channels]", kOp, shape_text(in.x));
  for (const auto& [name, x] : {std::pair{"conv_weight", &in.conv_weight},
                                {"conv_state", &in.conv_state},
                                {"beta", &in.beta},
                                {"decay", &in.decay},
                                {"A_log", &in.a_log},
                                {"dt_bias", &in.dt_bias},
                                {"state", &in.state},
                                {"norm_weight", &in.norm_weight}})
    require_like(kOp, name, *x, in.x);
  if (in.gate.defined()) require_like(kOp, "gate", in.gate, in.x);
  require(in.state.defined() && in.state.dim() == 4 && in.state.is_contiguous(),
          "{}: state is {}, expected a contiguous [batch, heads, key width, value width]", kOp,
          shape_text(in.state));
  const int64_t batch = in.x.size(0), heads = in.state.size(1), value_width = in.state.size(3);
  require(in.key_heads > 0 && heads % in.key_heads == 0, "{}: {} heads for {} key heads", kOp, heads,
          in.key_heads);
  const int64_t channels = 2 * in.key_heads * in.state.size(2) + heads * value_width;
  require_shape(kOp, "x", in.x, {batch, 1, channels});
  require_shape(kOp, "conv_weight", in.conv_weight, {channels, -1});
  require_shape(kOp, "conv_state", in.conv_state, {batch, in.conv_weight.size(1) - 1, channels});
  require_shape(kOp, "state", in.state, {batch, -1, -1, -1});
  for (const auto& [name, gate] : {std::pair{"beta", &in.beta}, {"decay", &in.decay}})
    require_shape(kOp, name, *gate, {batch, 1, heads});
  for (const auto& [name, x] : {std::pair{"A_log", &in.a_log}, {"dt_bias", &in.dt_bias}})
    require_shape(kOp, name, *x, {heads});
  require_shape(kOp, "norm_weight", in.norm_weight, {value_width});
  if (in.gate.defined()) require_shape(kOp, "gate", in.gate, {batch, 1, heads * value_width});
}

// By the kernel; nothing where it does not take it.
std::optional<at::Tensor> cuda_delta_step(const DeltaStep& in) {
  const auto* table = CudaKernels<kernels::DeltaStepCuda>::get();
  const auto type = in.x.scalar_type();
  if (!table || in.x.numel() == 0 || in.conv_state.scalar_type() != type || !in.conv_state.is_contiguous() ||
      in.state.scalar_type() != at::kFloat || choose_kernel(in.x) != Kernel::cuda)
    return std::nullopt;
  const CudaLaunch launch(in.x);
  const auto wide = [](const at::Tensor& x) { return x.to(at::kFloat).contiguous(); };
  const auto narrow = [&](const at::Tensor& x) { return x.defined() ? x.to(type).contiguous() : x; };
  const auto x = in.x.contiguous(), taps = in_kernel_type(in.conv_weight).contiguous(),
             beta = narrow(in.beta), decay = narrow(in.decay), gate = narrow(in.gate), a_log = wide(in.a_log),
             bias = wide(in.dt_bias), weight = wide(in.norm_weight);
  kernels::CudaDeltaStep p;
  p.batch = x.size(0), p.key_heads = in.key_heads, p.heads = in.state.size(1);
  p.key_width = in.state.size(2), p.value_width = in.state.size(3), p.taps = taps.size(1);
  p.type = cuda_type(x), p.x = data_of(x), p.conv_weight = data_of(taps), p.conv_type = cuda_type(taps);
  p.conv_state = in.conv_state.mutable_data_ptr();
  p.beta = data_of(beta), p.decay = data_of(decay), p.a_log = floats_of(a_log), p.dt_bias = floats_of(bias);
  p.beta_scale = static_cast<float>(in.beta_scale);
  p.scale = static_cast<float>(1 / std::sqrt(static_cast<double>(p.key_width)));
  p.key_eps = static_cast<float>(in.key_eps), p.norm_eps = static_cast<float>(in.norm_eps);
  p.state = in.state.mutable_data_ptr<float>(), p.norm_weight = floats_of(weight), p.gate = data_of(gate);
  p.multiprocessors = launch.multiprocessors(), p.capability = launch.capability();
  if (!table->takes(p)) return std::nullopt;
  const auto y = at::empty({p.batch, 1, p.heads * p.value_width}, x.options());
  p.y = y.mutable_data_ptr();
  check_launch(kOp, table->step(p, launch.stream()));
  return y;
}

at::Tensor by_ops(const DeltaStep& in) {
  const int64_t heads = in.state.size(1), key_width = in.state.size(2), value_width = in.state.size(3),
                keys = in.key_heads * key_width;
  const auto wide = accumulate_type(in.x);
  const auto rows =
      short_conv_step({.x = in.x, .weight = in.conv_weight, .silu = true, .initial_state = in.conv_state});
  const auto parts = rows.split_with_sizes({keys, keys, heads * value_width}, -1);
  const auto unit = [&](const at::Tensor& x) {
    return l2_norm(x.unflatten(-1, {in.key_heads, key_width}), in.key_eps);
  };
  auto beta = at::sigmoid(in.beta.to(wide));
  if (in.beta_scale != 1) beta = in.beta_scale * beta;
  const auto decay = -in.a_log.exp() * at::softplus(in.decay.to(wide) + in.dt_bias);
  const auto y = linear_attention_step({.q = unit(parts[0]),
                                        .k = unit(parts[1]),
                                        .v = parts[2].unflatten(-1, {heads, value_width}),
                                        .log_decay = decay,
                                        .beta = beta,
                                        .initial_state = in.state})
                     .y;
  if (!in.gate.defined()) return rms_norm(y, in.norm_weight, in.norm_eps).flatten(2);
  return gated_rms_norm(y, in.gate.unflatten(-1, {heads, value_width}), in.norm_weight, in.norm_eps,
                        /*norm_before_gate=*/true)
      .flatten(2);
}

}  // namespace

at::Tensor delta_step(const DeltaStep& in) {
  check(in);
  const at::NoGradGuard no_grad;
  if (in.x.is_cuda())
    if (const auto y = cuda_delta_step(in)) return *y;
  return by_ops(in);
}

}  // namespace weft::ops
