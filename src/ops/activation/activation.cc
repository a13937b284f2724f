#include "ops/activation/activation.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/activation/cuda.h"
#include "ops/activation/kernel.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kGrain = 16384;  // elements; less work than this is not worth a thread

at::Tensor flat(const at::Tensor& x) { return x.to(at::kFloat).contiguous(); }

at::Tensor run_forward(const at::Tensor& gate, const at::Tensor& x) {
  const auto isa = isa_of(choose_kernel(x));
  const auto wide_gate = flat(gate), wide = flat(x), y = at::empty(x.sizes(), wide.options());
  parallel_for(x.numel(), kGrain, [&, out = y.mutable_data_ptr<float>()](int64_t begin, int64_t end) {
    kernels::silu_mul_forward(isa, wide_gate.const_data_ptr<float>(), wide.const_data_ptr<float>(), out,
                              begin, end);
  });
  return y.to(at::promote_types(gate.scalar_type(), x.scalar_type()));
}

class SiluMulFunction : public torch::autograd::Function<SiluMulFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate, const at::Tensor& x) {
    ctx->save_for_backward({gate, x});
    return run_forward(gate, x);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order("silu_mul");
    const auto saved = ctx->get_saved_variables();
    const auto isa = isa_of(choose_kernel(saved[1]));
    const auto gate = flat(saved[0]), x = flat(saved[1]), dy = flat(upstream[0]);
    const auto dgate = at::empty(x.sizes(), x.options()), dx = at::empty(x.sizes(), x.options());
    parallel_for(x.numel(), kGrain, [&](int64_t begin, int64_t end) {
      kernels::silu_mul_backward(isa, gate.const_data_ptr<float>(), x.const_data_ptr<float>(),
                                 dy.const_data_ptr<float>(), dgate.mutable_data_ptr<float>(),
                                 dx.mutable_data_ptr<float>(), begin, end);
    });
    return {dgate.to(saved[0].scalar_type()), dx.to(saved[1].scalar_type())};
  }
};

}  // namespace

at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& x) {
  require_like("silu_mul", "x", x, x);
  require_like("silu_mul", "gate", gate, x);
  require_shape("silu_mul", "gate", gate, x.sizes());
  if (has_cuda_silu_mul(gate, x)) return cuda_silu_mul(gate, x);
  if (!is_cpu_kernel(choose_kernel(x)) || gate.scalar_type() == at::kDouble)
    return reference::silu_mul(gate, x);
  return SiluMulFunction::apply(gate, x);
}

TORCH_LIBRARY_FRAGMENT(weft, m) { m.def("silu_mul(Tensor gate, Tensor x) -> Tensor", &silu_mul); }

}  // namespace weft::ops
