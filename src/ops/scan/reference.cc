// The recurrences token by token, in plain ATen.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <vector>

#include "ops/scan/scan.h"
#include "ops/scan/types.h"
#include "ops/shape.h"

namespace weft::ops::reference {
namespace {

// The state that token t starts from: zero where a document begins.
at::Tensor carried(const at::Tensor& h, const at::Tensor& starts, int64_t t) {
  if (!starts.defined()) return h;
  std::vector<int64_t> shape(static_cast<size_t>(h.dim()), 1);
  shape[0] = -1;
  return h.masked_fill(starts.select(1, t).reshape(shape), 0);
}

}  // namespace

ScanResult scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                const at::Tensor& starts) {
  const auto types = scan_types(a, b);
  const auto x = b.to(types.state);
  const auto decay = a.to(types.state).expand(x.sizes());
  auto h =
      initial.defined() ? initial.to(types.state) : at::zeros({x.size(0), x.size(2)}, x.options());  // [B, E]
  std::vector<at::Tensor> tokens;
  for (int64_t t = 0; t < x.size(1); ++t) {
    h = decay.select(1, t) * carried(h, starts, t) + x.select(1, t);
    tokens.push_back(h);
  }
  return {(tokens.empty() ? x : at::stack(tokens, 1)).to(types.output), h};
}

ScanResult matrix_scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                       const at::Tensor& starts) {
  const auto types = scan_types(a, b);
  const auto matrix = a.to(types.state), x = b.to(types.state);
  auto h = initial.defined() ? initial.to(types.state)
                             : at::zeros({x.size(0), 2, x.size(3)}, x.options());  // [B, 2, E]
  std::vector<at::Tensor> tokens;
  for (int64_t t = 0; t < x.size(1); ++t) {
    h = (matrix.select(1, t) * carried(h, starts, t).unsqueeze(1)).sum(2) + x.select(1, t);
    tokens.push_back(h);
  }
  return {(tokens.empty() ? x : at::stack(tokens, 1)).to(types.output), h};
}

SelectiveScanResult selective_scan(const SelectiveScan& in) {
  const auto type = accumulate_type(in.u);
  const auto u = in.u.to(type), delta = in.delta.to(type), a = in.a.to(type), b = in.b.to(type),
             c = in.c.to(type);
  auto h = in.initial_state.defined()
               ? in.initial_state.to(type)
               : at::zeros({u.size(0), u.size(2), a.size(1)}, u.options());  // [B, E, N]
  std::vector<at::Tensor> tokens;
  for (int64_t t = 0; t < u.size(1); ++t) {
    const auto step = delta.select(1, t).unsqueeze(2), input = u.select(1, t).unsqueeze(2);  // [B, E, 1]
    h = at::exp(step * a) * carried(h, in.starts, t) + step * input * b.select(1, t).unsqueeze(1);
    tokens.push_back((h * c.select(1, t).unsqueeze(1)).sum(2));
  }
  auto y = tokens.empty() ? u : at::stack(tokens, 1);  // [B, T, E]
  if (in.skip.defined()) y = y + in.skip.to(type) * u;
  return {y.to(in.u.scalar_type()), h};
}

}  // namespace weft::ops::reference
