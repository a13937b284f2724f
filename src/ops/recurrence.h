// What the recurrent op families (scan, rnn) have in common around their kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <optional>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/shape.h"

namespace weft {

// Document starts are [B, T] bool on the device of `like`, or undefined. InputError.
inline void check_starts(const char* op, const at::Tensor& starts, const at::Tensor& like, int64_t batch,
                         int64_t tokens) {
  if (!starts.defined()) return;
  require_shape(op, "starts", starts, {batch, tokens});
  require(starts.scalar_type() == at::kBool, "{}: starts has type {}, expected Bool", op,
          c10::toString(starts.scalar_type()));
  require(starts.device() == like.device(), "{}: starts is on {}, expected {}", op, starts.device().str(),
          like.device().str());
}

// torch::autograd::Function takes an undefined tensor only as an empty optional. It does not count as an
// input then: needs_input_grad(i) skips it.
inline std::optional<at::Tensor> optional_of(const at::Tensor& x) {
  return x.defined() ? std::optional<at::Tensor>(x) : std::nullopt;
}

inline bool requires_gradient(const at::Tensor& x) { return x.defined() && x.requires_grad(); }

inline bool is_cpu_kernel(Kernel kernel) { return kernel != Kernel::reference && kernel != Kernel::cuda; }

// Hand-written backward passes are not differentiable themselves; without this their second derivatives would
// be zero.
inline void require_first_order(const char* op) {
  supported(!c10::GradMode::is_enabled(),
            "{}: the kernels have no second derivatives; use fp64 or WEFT_KERNEL=reference for create_graph",
            op);
}

}  // namespace weft
