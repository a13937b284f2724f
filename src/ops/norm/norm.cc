#include "ops/norm/norm.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "base/error.h"
#include "ops/norm/cuda.h"
#include "ops/norm/kernel.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using kernels::Gating;
using kernels::NormProblem;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

constexpr int64_t kMaxBlocks = 64;  // partial sums of dweight; fixed so that results do not depend on threads
constexpr int64_t kMinBlockRows = 16;
constexpr int64_t kGrainFloats = 16384;  // less work than this is not worth a thread

// What tells the four norms apart for the kernel.
struct Kind {
  bool centre = false;
  bool sum = false;  // divide by the root of the sum of squares, not of their mean
  Gating gating = Gating::none;
  double eps = 0;
};

at::Tensor rows_of(const at::Tensor& x) { return x.defined() ? x.to(at::kFloat).contiguous() : x; }
const float* data_of(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

// x, gate, weight and bias must be contiguous fp32 and outlive the problem.
NormProblem problem_of(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight,
                       const at::Tensor& bias, const Kind& kind) {
  NormProblem p;
  p.x = data_of(x);
  p.gate = data_of(gate);
  p.weight = data_of(weight);
  p.bias = data_of(bias);
  p.width = x.size(-1);
  p.rows = x.numel() / p.width;
  p.block_rows = std::max(kMinBlockRows, (p.rows + kMaxBlocks - 1) / kMaxBlocks);
  p.eps = static_cast<float>(kind.eps);
  p.inverse_count = kind.sum ? 1.0f : 1.0f / static_cast<float>(p.width);
  p.centre = kind.centre;
  p.gating = kind.gating;
  return p;
}

int64_t blocks_of(const NormProblem& p) { return (p.rows + p.block_rows - 1) / p.block_rows; }
int64_t grain_of(const NormProblem& p) {
  return std::max<int64_t>(1, kGrainFloats / (p.block_rows * p.width));
}

at::Tensor run_forward(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight,
                       const at::Tensor& bias, const Kind& kind) {
  const auto isa = isa_of(choose_kernel(x));
  const auto wide = rows_of(x), wide_gate = rows_of(gate), w = rows_of(weight), b = rows_of(bias);
  NormProblem p = problem_of(wide, wide_gate, w, b, kind);
  const auto y = at::empty(x.sizes(), wide.options());
  p.y = y.mutable_data_ptr<float>();
  parallel_for(blocks_of(p), grain_of(p),
               [&](int64_t begin, int64_t end) { kernels::norm_forward(isa, p, begin, end); });
  return y.to(x.scalar_type());
}

// The sum is formed from what both round to in its own type, as by the reference.
AddNormResult run_add_forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                              double eps) {
  const auto type = at::promote_types(x.scalar_type(), residual.scalar_type());
  const auto isa = isa_of(choose_kernel(x));
  if (type != at::kFloat) {  // the norm reads the rounded sum
    const auto sum = at::add(x, residual);
    return {sum, run_forward(sum, {}, weight, {}, {.eps = eps})};
  }
  const auto wide = rows_of(x), wide_residual = rows_of(residual), w = rows_of(weight);
  NormProblem p = problem_of(wide, {}, w, {}, {.eps = eps});
  const auto sum = at::empty(x.sizes(), wide.options()), y = at::empty(x.sizes(), wide.options());
  p.residual = data_of(wide_residual);
  p.sum = sum.mutable_data_ptr<float>();
  p.y = y.mutable_data_ptr<float>();
  parallel_for(blocks_of(p), grain_of(p),
               [&](int64_t begin, int64_t end) { kernels::norm_forward(isa, p, begin, end); });
  return {sum, y};
}

// Gradients of x, gate, weight and bias; undefined where not wanted. `dsum`, if there is one, joins that of x.
variable_list run_backward(const variable_list& saved, const at::Tensor& upstream, const Kind& kind,
                           bool weight_wanted, bool bias_wanted, const at::Tensor& dsum = {}) {
  const auto &x = saved[0], &gate = saved[1], &weight = saved[2], &bias = saved[3];
  const auto isa = isa_of(choose_kernel(x));
  const auto wide = rows_of(x), wide_gate = rows_of(gate), w = rows_of(weight), dy = rows_of(upstream),
             wide_dsum = rows_of(dsum);
  NormProblem p = problem_of(wide, wide_gate, w, {}, kind);
  const auto partials = [&](bool wanted) {
    return wanted ? at::empty({blocks_of(p), p.width}, wide.options()) : at::Tensor();
  };
  const auto dx = at::empty(x.sizes(), wide.options());
  const auto dgate = gate.defined() ? at::empty(x.sizes(), wide.options()) : at::Tensor();
  const auto dweight = partials(weight_wanted), dbias = partials(bias_wanted);
  const auto out_of = [](const at::Tensor& t) { return t.defined() ? t.mutable_data_ptr<float>() : nullptr; };
  p.dy = data_of(dy);
  p.dsum = data_of(wide_dsum);
  p.dx = out_of(dx);
  p.dgate = out_of(dgate);
  p.dweight_partial = out_of(dweight);
  p.dbias_partial = out_of(dbias);
  parallel_for(blocks_of(p), grain_of(p),
               [&](int64_t begin, int64_t end) { kernels::norm_backward(isa, p, begin, end); });

  const auto total = [&](const at::Tensor& partial, const at::Tensor& like) {
    if (!partial.defined()) return at::Tensor();
    const auto sum = at::empty({p.width}, partial.options());
    kernels::norm_sum_partials(isa, data_of(partial), partial.size(0), p.width,
                               sum.mutable_data_ptr<float>());
    return sum.to(like.scalar_type());
  };
  return {dx.to(x.scalar_type()), dgate.defined() ? dgate.to(gate.scalar_type()) : dgate,
          total(dweight, weight), total(dbias, bias)};
}

class NormFunction : public torch::autograd::Function<NormFunction> {
 public:
  // Missing tensors must come as empty optionals: Function cannot take undefined ones.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const Optional& maybe_gate,
                            const Optional& maybe_weight, const Optional& maybe_bias, bool centre, bool sum,
                            int64_t gating, double eps) {
    const auto gate = maybe_gate.value_or(at::Tensor()), weight = maybe_weight.value_or(at::Tensor()),
               bias = maybe_bias.value_or(at::Tensor());
    ctx->save_for_backward({x, gate, weight, bias});
    for (const auto& [name, value] : {std::pair{"centre", centre}, std::pair{"sum", sum}})
      ctx->saved_data[name] = value;
    ctx->saved_data["gating"] = gating;
    ctx->saved_data["eps"] = eps;
    return run_forward(x, gate, weight, bias, {centre, sum, static_cast<Gating>(gating), eps});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order("norm");
    const Kind kind{ctx->saved_data["centre"].toBool(), ctx->saved_data["sum"].toBool(),
                    static_cast<Gating>(ctx->saved_data["gating"].toInt()),
                    ctx->saved_data["eps"].toDouble()};
    const auto saved = ctx->get_saved_variables();
    size_t edge = 1;  // only the tensors that are there have an edge
    if (saved[1].defined()) ++edge;
    const bool weight_wanted = saved[2].defined() && ctx->needs_input_grad(edge++);
    const bool bias_wanted = saved[3].defined() && ctx->needs_input_grad(edge);
    auto gradients = run_backward(saved, upstream[0], kind, weight_wanted, bias_wanted);
    gradients.resize(8);
    return gradients;
  }
};

at::Tensor apply(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight,
                 const at::Tensor& bias, const Kind& kind) {
  return NormFunction::apply(x, optional_of(gate), optional_of(weight), optional_of(bias), kind.centre,
                             kind.sum, static_cast<int64_t>(kind.gating), kind.eps);
}

class AddNormFunction : public torch::autograd::Function<AddNormFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& residual,
                               const Optional& weight, double eps) {
    const auto result = run_add_forward(x, residual, weight.value_or(at::Tensor()), eps);
    ctx->save_for_backward({result.sum, weight.value_or(at::Tensor())});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["x_type"] = static_cast<int64_t>(x.scalar_type());
    ctx->saved_data["residual_type"] = static_cast<int64_t>(residual.scalar_type());
    ctx->set_materialize_grads(false);
    return {result.sum, result.y};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order("add_rms_norm");
    const auto saved = ctx->get_saved_variables();
    const bool weight_wanted = saved[1].defined() && ctx->needs_input_grad(2);
    at::Tensor dsum = upstream[0], dweight;
    if (upstream[1].defined()) {
      const auto gradients =
          run_backward({saved[0], {}, saved[1], {}}, upstream[1], {.eps = ctx->saved_data["eps"].toDouble()},
                       weight_wanted, false, dsum);
      dsum = gradients[0], dweight = gradients[2];
    }
    const auto as = [&](const char* key) {
      return dsum.defined() ? dsum.to(static_cast<at::ScalarType>(ctx->saved_data[key].toInt())) : dsum;
    };
    return {as("x_type"), as("residual_type"), dweight, {}};
  }
};

// The CPU kernels compute in fp32: with an fp64 weight the reference must do it.
bool by_reference(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight) {
  const auto kernel = choose_kernel(x);
  const auto is_double = [](const at::Tensor& t) { return t.defined() && t.scalar_type() == at::kDouble; };
  return kernel == Kernel::reference || kernel == Kernel::cuda || is_double(gate) || is_double(weight);
}

void check(const char* op, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  require_like(op, "x", x, x);
  require(x.dim() >= 1 && x.size(-1) >= 1, "{}: x is {}, expected at least one channel", op, shape_text(x));
  for (const auto& [name, w] : {std::pair{"weight", &weight}, std::pair{"bias", &bias}}) {
    if (!w->defined()) continue;
    require_like(op, name, *w, x);
    require_shape(op, name, *w, {x.size(-1)});
  }
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  check("rms_norm", x, weight, {});
  if (has_cuda_norm(x, {}, weight, {})) return cuda_norm(x, {}, weight, {}, {.eps = eps});
  if (by_reference(x, {}, weight)) return reference::rms_norm(x, weight, eps);
  return apply(x, {}, weight, {}, {.eps = eps});
}

AddNormResult add_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                           double eps) {
  check("add_rms_norm", x, weight, {});
  require_like("add_rms_norm", "residual", residual, x);
  require_shape("add_rms_norm", "residual", residual, x.sizes());
  if (has_cuda_norm(x, residual, weight, {})) return cuda_add_rms_norm(x, residual, weight, eps);
  if (by_reference(x, residual, weight)) return reference::add_rms_norm(x, residual, weight, eps);
  const auto results = AddNormFunction::apply(x, residual, optional_of(weight), eps);
  return {results[0], results[1]};
}

at::Tensor gated_rms_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight, double eps,
                          bool norm_before_gate) {
  check("gated_rms_norm", x, weight, {});
  require_like("gated_rms_norm", "gate", gate, x);
  require_shape("gated_rms_norm", "gate", gate, x.sizes());
  if (has_cuda_norm(x, gate, weight, {}))
    return cuda_norm(x, gate, weight, {},
                     {.before = !norm_before_gate, .after = norm_before_gate, .eps = eps});
  if (by_reference(x, gate, weight)) return reference::gated_rms_norm(x, gate, weight, eps, norm_before_gate);
  return apply(x, gate, weight, {},
               {.gating = norm_before_gate ? Gating::after : Gating::before, .eps = eps});
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  check("layer_norm", x, weight, bias);
  if (has_cuda_norm(x, {}, weight, bias)) return cuda_norm(x, {}, weight, bias, {.centre = true, .eps = eps});
  if (by_reference(x, bias, weight)) return reference::layer_norm(x, weight, bias, eps);
  return apply(x, {}, weight, bias, {.centre = true, .eps = eps});
}

at::Tensor l2_norm(const at::Tensor& x, double eps) {
  check("l2_norm", x, {}, {});
  if (has_cuda_norm(x, {}, {}, {})) return cuda_norm(x, {}, {}, {}, {.sum = true, .eps = eps});
  if (by_reference(x, {}, {})) return reference::l2_norm(x, eps);
  return apply(x, {}, {}, {}, {.sum = true, .eps = eps});
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def("rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor",
        [](const at::Tensor& x, const Optional& weight, double eps) {
          return rms_norm(x, weight.value_or(at::Tensor()), eps);
        });
  m.def("add_rms_norm(Tensor x, Tensor residual, Tensor? weight, float eps) -> (Tensor, Tensor)",
        [](const at::Tensor& x, const at::Tensor& residual, const Optional& weight, double eps) {
          auto result = add_rms_norm(x, residual, weight.value_or(at::Tensor()), eps);
          return std::make_tuple(std::move(result.sum), std::move(result.y));
        });
  m.def("gated_rms_norm(Tensor x, Tensor gate, Tensor? weight, float eps, bool norm_before_gate) -> Tensor",
        [](const at::Tensor& x, const at::Tensor& gate, const Optional& weight, double eps,
           bool norm_before_gate) {
          return gated_rms_norm(x, gate, weight.value_or(at::Tensor()), eps, norm_before_gate);
        });
  m.def("layer_norm(Tensor x, Tensor? weight, Tensor? bias, float eps) -> Tensor",
        [](const at::Tensor& x, const Optional& weight, const Optional& bias, double eps) {
          return layer_norm(x, weight.value_or(at::Tensor()), bias.value_or(at::Tensor()), eps);
        });
  m.def("l2_norm(Tensor x, float eps) -> Tensor", &l2_norm);
}

}  // namespace weft::ops
