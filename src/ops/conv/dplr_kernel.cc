// The Cauchy form of S4's kernel, and the discrete system that it stands for.
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <vector>

#include "base/error.h"
#include "ops/conv/ssm_kernels.h"
#include "ops/recurrence.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kFrequencies = 8192;  // at a time, for one channel and state

// K^ at the frequencies [first, first + count) of L: [E, count].
//   lambda [E, M] with both of each pair, numerators [E, M, (1 + R)^2], rate [E] = 2 / dt
// The sums over the states are divided by 1 + w, w the root of unity, so that nothing is singular at w = -1:
//   1 / (z - lambda) = (1 + w) / (rate (1 - w) - lambda (1 + w)),   z = rate (1 - w) / (1 + w)
at::Tensor generating_function(const at::Tensor& lambda, const at::Tensor& numerators, const at::Tensor& rate,
                               int64_t length, int64_t first, int64_t count) {
  const auto angle = at::arange(first, first + count, lambda.options().dtype(at::kDouble)) *
                     (-2 * M_PI / static_cast<double>(length));
  const auto w = at::complex(angle.cos(), angle.sin());  // [F]
  const auto minus = (1 - w).to(lambda.scalar_type()), plus = (1 + w).to(lambda.scalar_type());
  const auto inverse = at::reciprocal((rate.unsqueeze(1) * minus).unsqueeze(2) -
                                      lambda.unsqueeze(1) * plus.unsqueeze(1));  // [E, F, M]
  const auto side = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(numerators.size(2)))));
  const auto sums = at::bmm(inverse, numerators).unflatten(2, {side, side});  // rows c, p*; columns b, p
  const auto cb = sums.select(2, 0).select(2, 0);                             // [E, F]
  if (side == 1) return 2 * cb;
  const auto cp = sums.select(2, 0).slice(2, 1), pb = sums.slice(2, 1).select(3, 0);
  const auto pp = sums.slice(2, 1).slice(3, 1) * plus.view({1, -1, 1, 1}) +
                  at::eye(side - 1, lambda.options());  // [E, F, R, R]
  const auto solved = side == 2 ? pb / pp.squeeze(-1) : at::linalg_solve(pp, pb.unsqueeze(-1)).squeeze(-1);
  return 2 * (cb - plus * (cp * solved).sum(-1));
}

// All frequencies in turns; backward computes each turn again instead of keeping it.
class GeneratingFunction : public torch::autograd::Function<GeneratingFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& lambda, const at::Tensor& numerators,
                            const at::Tensor& rate, int64_t length) {
    ctx->save_for_backward({lambda, numerators, rate});
    ctx->saved_data["length"] = length;
    std::vector<at::Tensor> turns;
    const int64_t all = length / 2 + 1, turn = turn_of(lambda);
    for (int64_t first = 0; first < all; first += turn)
      turns.push_back(
          generating_function(lambda, numerators, rate, length, first, std::min(turn, all - first)));
    return at::cat(turns, 1);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order("dplr_kernel");
    const auto saved = ctx->get_saved_variables();
    const int64_t length = ctx->saved_data["length"].toInt(), all = length / 2 + 1, turn = turn_of(saved[0]);
    variable_list sums;
    for (const auto& x : saved) sums.push_back(at::zeros_like(x));
    for (int64_t first = 0; first < all; first += turn) {
      const int64_t count = std::min(turn, all - first);
      variable_list leaves;
      for (const auto& x : saved) leaves.push_back(x.detach().requires_grad_());
      at::Tensor value;
      {
        const at::AutoGradMode on(true);
        value = generating_function(leaves[0], leaves[1], leaves[2], length, first, count);
      }
      const auto gradients = torch::autograd::grad({value}, leaves, {upstream[0].narrow(1, first, count)});
      for (size_t i = 0; i < sums.size(); ++i) sums[i].add_(gradients[i]);
    }
    return {sums[0], sums[1], sums[2], {}};
  }

 private:
  static int64_t turn_of(const at::Tensor& lambda) {
    return std::max<int64_t>(1, kFrequencies / std::max<int64_t>(1, lambda.size(1)));
  }
};

}  // namespace

DenseSystem dplr_bilinear(const Dplr& system) {
  const auto lambda = system.lambda.to(at::kComplexDouble), p = system.p.to(at::kComplexDouble),
             b = system.b.to(at::kComplexDouble);
  const auto re = at::diag_embed(at::real(lambda)), im = at::diag_embed(at::imag(lambda));
  const auto diagonal = at::cat({at::cat({re, -im}, 2), at::cat({im, re}, 2)}, 1);  // [E, N, N]
  const auto columns = at::cat({at::real(p), at::imag(p)}, 2).transpose(1, 2);      // [E, N, R]
  // P*x over both of each pair is 2 Re of the sum over one: twice the product of real vectors.
  const auto a = diagonal - 2 * at::matmul(columns, columns.transpose(1, 2));
  const auto half = (system.dt.to(at::kDouble) / 2).view({-1, 1, 1});
  const auto unit = at::eye(a.size(-1), a.options());
  const auto input = 2 * half * at::cat({at::real(b), at::imag(b)}, 1).unsqueeze(-1);  // [E, N, 1]
  const auto solved = at::linalg_solve(unit - half * a, at::cat({unit + half * a, input}, 2));
  return {solved.slice(2, 0, -1), solved.select(2, -1)};
}

at::Tensor dplr_kernel(const Dplr& system, const at::Tensor& c, int64_t length) {
  require(length >= 2 && length % 2 == 0, "dplr_kernel: length {} must be even", length);
  const auto type = c.scalar_type();
  const auto both = [&](const at::Tensor& x) { return at::cat({x, at::conj(x)}, -1); };
  const auto lambda = both(system.lambda.to(type));
  const auto b = both(system.b.to(type)).unsqueeze(1), p = both(system.p.to(type));
  const auto rows = at::cat({both(c).unsqueeze(1), at::conj(p)}, 1);  // [E, 1 + R, M]
  const auto columns = at::cat({b, p}, 1);                            // [E, 1 + R, M]
  const auto numerators = (rows.unsqueeze(2) * columns.unsqueeze(1)).flatten(1, 2).transpose(1, 2);
  const auto rate = (2 / system.dt.to(c10::toRealValueType(type))).to(type);
  const auto values = GeneratingFunction::apply(lambda, numerators.contiguous(), rate, length);
  return at::fft_irfft(values, length, 1);
}

}  // namespace weft::ops
