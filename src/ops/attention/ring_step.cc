#include "ops/attention/ring_step.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "base/error.h"
#include "ops/attention/attention.h"
#include "ops/attention/kernel_cuda_ring_step.h"
#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/kernel_choice.h"
#include "ops/norm/norm.h"
#include "ops/shape.h"

namespace weft::ops {
namespace {

constexpr auto kOp = "attention_ring_step";

void check(const RingStep& in) {
  for (const auto& [name, x] : {std::pair{"q", &in.q}, {"k", &in.k}, {"v", &in.v}})
    require(x->defined() && x->dim() == 4 && x->size(1) == 1,
            "{}: {} is {}, expected [batch, 1, heads, width]", kOp, name, shape_text(*x));
  for (const auto& [name, x] :
       {std::pair{"k", &in.k}, {"v", &in.v}, {"ring_k", &in.ring_k}, {"ring_v", &in.ring_v}})
    require_like(kOp, name, *x, in.q);
  const int64_t batch = in.q.size(0), heads = in.k.size(2), width = in.q.size(3);
  require_shape(kOp, "k", in.k, {batch, 1, -1, width});
  require_shape(kOp, "v", in.v, {batch, 1, heads, -1});
  require(heads > 0 && in.q.size(2) % heads == 0, "{}: {} heads for {} key heads", kOp, in.q.size(2), heads);
  require_shape(kOp, "positions", in.positions, {batch, 1});
  require_shape(kOp, "ring_k", in.ring_k, {batch, -1, heads, width});
  const int64_t columns = in.ring_k.size(1);
  require_shape(kOp, "ring_v", in.ring_v, {batch, columns, heads, in.v.size(3)});
  require_shape(kOp, "slots", in.slots, {batch, columns});
  require(in.window > 0 && in.sinks >= 0 && columns - in.sinks >= std::max<int64_t>(in.window - 1, 1),
          "{}: a ring of {} columns, {} of them for sinks, cannot hold a window of {}", kOp, columns,
          in.sinks, in.window);
  for (const auto& [name, norm] : {std::pair{"q_norm", &in.q_norm}, {"k_norm", &in.k_norm}}) {
    if (!norm->defined()) continue;
    require_like(kOp, name, *norm, in.q);
    require_shape(kOp, name, *norm, {width});
  }
  for (const auto& [name, ring, fresh] :
       {std::tuple{"ring_k", &in.ring_k, &in.k}, {"ring_v", &in.ring_v, &in.v}})
    require(ring->scalar_type() == fresh->scalar_type(), "{}: {} is {}, expected {} as its new row", kOp,
            name, c10::toString(ring->scalar_type()), c10::toString(fresh->scalar_type()));
  for (const auto& [name, x] : {std::pair{"positions", &in.positions}, {"slots", &in.slots}})
    require(x->scalar_type() == at::kLong && x->device() == in.q.device(),
            "{}: {} is {} on {}, expected int64 on {}", kOp, name, c10::toString(x->scalar_type()),
            x->device().str(), in.q.device().str());
  for (const auto& [name, x] :
       {std::pair{"ring_k", &in.ring_k}, {"ring_v", &in.ring_v}, {"slots", &in.slots}})
    require(x->is_contiguous(), "{}: {} is not contiguous", kOp, name);
}

int64_t rotated(const RingStep& in) { return in.rope.dim > 0 ? in.rope.dim : in.q.size(3); }

// One set of frequencies for all; what else is wrong with a rotation the op for it says.
bool plain_rotation(const RingStep& in) {
  const auto& frequencies = in.rope.frequencies;
  return rotated(in) % 2 == 0 &&
         (!frequencies.defined() || (frequencies.dim() == 1 && frequencies.size(0) == rotated(in) / 2 &&
                                     frequencies.scalar_type() == at::kDouble && frequencies.is_cuda()));
}

// By the kernel; nothing where it does not take it.
std::optional<at::Tensor> cuda_ring_step(const RingStep& in) {
  const auto* table = CudaKernels<kernels::RingStepCuda>::get();
  const auto type = in.q.scalar_type();
  bool fits = table && in.q.numel() > 0 && in.softcap == 0 && in.scale >= 0 && type != at::kDouble &&
              (!in.rotates || plain_rotation(in)) && choose_kernel(in.q) == Kernel::cuda;
  for (const auto* x : {&in.k, &in.v, &in.ring_k, &in.ring_v}) fits = fits && x->scalar_type() == type;
  if (!fits) return std::nullopt;
  const CudaLaunch launch(in.q);
  const auto wide = [](const at::Tensor& x) { return x.defined() ? x.to(at::kFloat).contiguous() : x; };
  const auto q = in.q.contiguous(), k = in.k.contiguous(), v = in.v.contiguous(),
             positions = in.positions.contiguous(), q_norm = wide(in.q_norm), k_norm = wide(in.k_norm),
             frequencies = in.rope.frequencies.defined() ? in.rope.frequencies.contiguous() : at::Tensor();
  kernels::CudaRingStep p;
  p.batch = static_cast<int>(q.size(0)), p.heads = static_cast<int>(q.size(2));
  p.key_heads = static_cast<int>(k.size(2)), p.key_width = static_cast<int>(q.size(3));
  p.value_width = static_cast<int>(v.size(3)), p.columns = static_cast<int>(in.ring_k.size(1));
  p.type = cuda_type(q), p.q = data_of(q), p.k = data_of(k), p.v = data_of(v);
  p.positions = positions.const_data_ptr<int64_t>();
  p.q_norm = floats_of(q_norm), p.k_norm = floats_of(k_norm), p.norm_eps = static_cast<float>(in.norm_eps);
  p.scale = static_cast<float>(in.scale > 0 ? in.scale : 1 / std::sqrt(static_cast<double>(p.key_width)));
  if (in.rotates) {
    p.pairs = static_cast<int>(rotated(in) / 2);
    if (frequencies.defined()) p.frequencies = frequencies.const_data_ptr<double>();
    p.log2_theta = std::log2(in.rope.theta), p.magnitude = in.rope.magnitude;
    p.interleaved = in.rope.interleaved;
  }
  p.window = in.window, p.sinks = in.sinks;
  p.ring_k = in.ring_k.mutable_data_ptr(), p.ring_v = in.ring_v.mutable_data_ptr();
  p.slots = in.slots.mutable_data_ptr<int64_t>();
  p.multiprocessors = launch.multiprocessors(), p.capability = launch.capability();
  if (!table->takes(p)) return std::nullopt;
  const auto y = at::empty({q.size(0), 1, q.size(2), v.size(3)}, q.options());
  p.y = y.mutable_data_ptr();
  check_launch(kOp, table->step(p, launch.stream()));
  return y;
}

at::Tensor by_ops(const RingStep& in) {
  const auto turned = [&](const at::Tensor& x, const at::Tensor& weight) {
    const auto normed = weight.defined() ? rms_norm(x, weight, in.norm_eps) : x;
    return in.rotates ? rope(normed, in.positions, in.rope) : normed;
  };
  const auto k = turned(in.k, in.k_norm);
  const auto y = attention(turned(in.q, in.q_norm), at::cat({in.ring_k, k}, 1), at::cat({in.ring_v, in.v}, 1),
                           {.window = in.window,
                            .sinks = in.sinks,
                            .q_positions = in.positions,
                            .k_positions = at::cat({in.slots, in.positions}, 1)},
                           {.scale = in.scale, .softcap = in.softcap})
                     .out;
  const auto turning = in.sinks + in.positions % (in.ring_k.size(1) - in.sinks);
  const auto column = at::where(in.positions < in.sinks, in.positions, turning);  // [B, 1]
  const auto store = [&](at::Tensor ring, const at::Tensor& fresh) {
    auto index = column;
    while (index.dim() < fresh.dim()) index = index.unsqueeze(-1);
    ring.scatter_(1, index.expand_as(fresh), fresh);
  };
  store(in.ring_k, k);
  store(in.ring_v, in.v);
  store(in.slots, in.positions);
  return y;
}

}  // namespace

at::Tensor attention_ring_step(const RingStep& in) {
  check(in);
  const at::NoGradGuard no_grad;
  if (in.q.is_cuda())
    if (const auto y = cuda_ring_step(in)) return *y;
  return by_ops(in);
}

}  // namespace weft::ops
