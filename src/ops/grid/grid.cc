#include "ops/grid/grid.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>
#include <memory>

#include "ops/grid/kernel.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

void check_gates(const char* op, const GridGates& gates) {
  const auto& s = gates.source;
  require_like(op, "source", s, s);
  const auto ways = static_cast<int64_t>(gates.ways.size());
  require_shape(op, "source", s, {-1, -1, -1, ways, -1, 2});
  require_like(op, "mark", gates.mark, s);
  require_shape(op, "mark", gates.mark, s.sizes());
  require_like(op, "transition", gates.transition, s);
  require_shape(op, "transition", gates.transition, {s.size(0), s.size(1), s.size(2), ways, s.size(4), 2, 2});
  if (!gates.direct.defined()) return;
  require_like(op, "direct", gates.direct, s);
  require_shape(op, "direct", gates.direct, {s.size(0), s.size(1), s.size(2), s.size(4)});
}

// A way is bit 0: left, bit 1: up.
std::vector<int64_t> codes_of(const std::vector<GridWay>& ways) {
  std::vector<int64_t> codes;
  for (const auto& way : ways) codes.push_back((way.left ? 1 : 0) + (way.up ? 2 : 0));
  return codes;
}

std::vector<GridWay> ways_of(at::IntArrayRef codes) {
  std::vector<GridWay> ways;
  for (const auto code : codes) {
    require(code >= 0 && code < 4, "grid_linear_attention: way {} is not one of 0, 1, 2, 3", code);
    ways.push_back({.up = (code & 2) != 0, .left = (code & 1) != 0});
  }
  return ways;
}

// Calls body(problem, index) for every head of every sequence in parallel; gates [B, H, W, R, C, 8].
template <class Body>
void for_heads(const at::Tensor& gates, at::IntArrayRef codes, const Body& body) {
  constexpr size_t kMaxWays = 16;
  require(codes.size() <= kMaxWays, "grid_linear_attention: {} ways, at most {}", codes.size(), kMaxWays);
  bool up[kMaxWays], left[kMaxWays];
  for (size_t w = 0; w < codes.size(); ++w) up[w] = codes[w] & 2, left[w] = codes[w] & 1;
  kernels::GridMatrix problem{
      .rows = gates.size(3), .columns = gates.size(4), .ways = gates.size(2), .up = up, .left = left};
  const int64_t one = gates.size(2) * gates.size(3) * gates.size(4) * kernels::kGridGates;
  const auto* data = gates.const_data_ptr<float>();
  parallel_for(gates.size(0) * gates.size(1), 1, [&](int64_t begin, int64_t end) {
    auto mine = problem;
    for (int64_t i = begin; i < end; ++i) {
      mine.gates = data + i * one;
      body(mine, i);
    }
  });
}

class GatingMatrixFunction : public torch::autograd::Function<GatingMatrixFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gates, std::vector<int64_t> codes,
                            int64_t isa) {
    ctx->save_for_backward({gates});
    const int64_t cells = gates.size(3) * gates.size(4);
    const auto matrix = at::empty({gates.size(0), gates.size(1), cells, cells}, gates.options());
    auto* out = matrix.mutable_data_ptr<float>();
    for_heads(gates, codes, [&](const kernels::GridMatrix& p, int64_t i) {
      const std::unique_ptr<float[]> scratch(
          new float[static_cast<size_t>(kernels::grid_forward_scratch(p))]);
      kernels::grid_matrix_forward(static_cast<simd::Isa>(isa), p, out + i * cells * cells, scratch.get());
    });
    ctx->saved_data["codes"] = std::move(codes);
    ctx->saved_data["isa"] = isa;
    return matrix;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order("grid_gating_matrix");
    const auto gates = ctx->get_saved_variables()[0], dmatrix = upstream[0].contiguous();
    const auto dgates = at::empty_like(gates);
    const auto isa = static_cast<simd::Isa>(ctx->saved_data["isa"].toInt());
    const auto* from = dmatrix.const_data_ptr<float>();
    auto* out = dgates.mutable_data_ptr<float>();
    const auto codes = ctx->saved_data["codes"].toIntVector();
    for_heads(gates, codes, [&](const kernels::GridMatrix& p, int64_t i) {
      const int64_t cells = p.rows * p.columns;
      const std::unique_ptr<float[]> scratch(
          new float[static_cast<size_t>(kernels::grid_backward_scratch(p))]);
      kernels::grid_matrix_backward(isa, p, from + i * cells * cells,
                                    out + i * p.ways * cells * kernels::kGridGates, scratch.get());
    });
    return {dgates, at::Tensor(), at::Tensor()};
  }
};

// Without the diagonal.
at::Tensor kernel_matrix(const GridGates& gates, simd::Isa isa) {
  const auto& s = gates.source;
  if (s.size(1) * s.size(2) == 1)  // no edges: the gates have no part in it, and no gradient
    return at::zeros({s.size(0), s.size(4), 1, 1}, s.options().dtype(at::kFloat));
  const auto wide = [](const at::Tensor& x) { return x.to(at::kFloat); };
  const auto packed = at::cat({wide(gates.transition).flatten(-2), wide(gates.source), wide(gates.mark)}, -1)
                          .permute({0, 4, 3, 1, 2, 5})
                          .contiguous();  // [B, H, W, R, C, 8]
  return GatingMatrixFunction::apply(packed, codes_of(gates.ways), static_cast<int64_t>(isa));
}

at::Tensor with_diagonal(const at::Tensor& matrix, const at::Tensor& direct) {
  if (!direct.defined()) return matrix;
  return matrix + at::diag_embed(direct.to(matrix.scalar_type()).flatten(1, 2).transpose(1, 2));
}

// y = scale (G o q k') v in the type of q; direct apart, as it touches the diagonal only.
at::Tensor attend(const at::Tensor& matrix, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                  const at::Tensor& direct, double scale) {
  const auto heads = [](const at::Tensor& x) { return x.flatten(1, 2).transpose(1, 2); };  // [B, H, N, K]
  const auto scores = at::matmul(heads(q) * scale, heads(k).transpose(-1, -2));
  auto y = at::matmul(scores * matrix.to(scores.scalar_type()), heads(v)).transpose(1, 2).reshape(v.sizes());
  if (direct.defined()) y = y + (direct.to(q.scalar_type()) * scale * (q * k).sum(-1)).unsqueeze(-1) * v;
  return y;
}

at::Tensor grid_operator(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                         const at::Tensor& transition, const at::Tensor& source, const at::Tensor& mark,
                         const std::optional<at::Tensor>& direct, at::IntArrayRef ways, double scale) {
  return grid_linear_attention(
      {q, k, v, {transition, source, mark, direct.value_or(at::Tensor()), ways_of(ways)}, scale});
}

}  // namespace

std::vector<GridWay> all_grid_ways() { return ways_of({0, 1, 2, 3}); }

at::Tensor grid_gating_matrix(const GridGates& gates) {
  check_gates("grid_gating_matrix", gates);
  const auto kernel = choose_kernel(gates.source);
  if (is_cpu_kernel(kernel) && gates.transition.scalar_type() != at::kDouble)
    return with_diagonal(kernel_matrix(gates, isa_of(kernel)), gates.direct);
  return gates.source.is_cpu() ? reference::grid_gating_matrix(gates) : merged_gating_matrix(gates);
}

at::Tensor grid_linear_attention(const GridLinearAttention& in) {
  constexpr const char* kOp = "grid_linear_attention";
  check_gates(kOp, in.gates);
  const auto& s = in.gates.source;
  require_like(kOp, "q", in.q, s);
  require_like(kOp, "k", in.k, in.q);
  require_like(kOp, "v", in.v, in.q);
  require_shape(kOp, "q", in.q, {s.size(0), s.size(1), s.size(2), s.size(4), -1});
  require_shape(kOp, "k", in.k, in.q.sizes());
  require_shape(kOp, "v", in.v, {s.size(0), s.size(1), s.size(2), s.size(4), -1});
  const auto kernel = choose_kernel(in.v);
  const double scale = in.scale != 0 ? in.scale : 1 / std::sqrt(static_cast<double>(in.k.size(-1)));
  if (is_cpu_kernel(kernel) && s.scalar_type() != at::kDouble) {
    const auto wide = [](const at::Tensor& x) { return x.to(at::kFloat); };
    return attend(kernel_matrix(in.gates, isa_of(kernel)), wide(in.q), wide(in.k), wide(in.v),
                  in.gates.direct, scale)
        .to(in.v.scalar_type());
  }
  if (in.v.is_cpu()) return reference::grid_linear_attention(in);
  auto gates = in.gates;
  gates.direct = at::Tensor();
  return attend(merged_gating_matrix(gates), in.q, in.k, in.v, in.gates.direct, scale);
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def(
      "grid_linear_attention(Tensor q, Tensor k, Tensor v, Tensor transition, Tensor source, Tensor mark, "
      "Tensor? direct, int[] ways, float scale=0.0) -> Tensor",
      &grid_operator);
}

}  // namespace weft::ops
