// What the tests of linear attention share: runs with gradients, and how far they may be from the reference.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "ops/kernel_choice.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/linear_attention/linear_attention_cases.h"
#include "ops/recurrence_check.h"

namespace weft::ops {

class LinearAttentionTest : public RecurrenceTest {};

inline std::vector<std::pair<const char*, at::Tensor LinearAttention::*>> differentiable() {
  return {{"q", &LinearAttention::q},
          {"k", &LinearAttention::k},
          {"v", &LinearAttention::v},
          {"log_decay", &LinearAttention::log_decay},
          {"beta", &LinearAttention::beta},
          {"write", &LinearAttention::write},
          {"erase_read", &LinearAttention::erase_read},
          {"erase_write", &LinearAttention::erase_write},
          {"bonus", &LinearAttention::bonus},
          {"initial_state", &LinearAttention::initial_state}};
}

inline LinearAttention leaves(LinearAttention in, at::ScalarType type) {
  for (const auto& [name, member] : differentiable())
    if ((in.*member).defined())
      in.*member = (in.*member)
                       .detach()
                       .to(type == at::kDouble ? at::kDouble : (in.*member).scalar_type())
                       .clone()
                       .set_requires_grad(true);
  return in;
}

inline void expect_close(const at::Tensor& x, const at::Tensor& expected, double bound,
                         const std::string& what) {
  ASSERT_EQ(x.sizes(), expected.sizes()) << what;
  if (x.numel() == 0) return;
  const double scale = std::max(expected.abs().max().item<double>(), 1e-30);
  const auto wide = [](const at::Tensor& a) { return a.to(at::kCPU, at::kDouble); };
  const double error = (wide(x) - wide(expected)).abs().max().item<double>() / scale;
  EXPECT_TRUE(error <= bound) << what << ": error " << error << ", bound " << bound;
}

// Outputs of a run and the gradients for fixed random upstream gradients.
struct Run {
  LinearAttention in;
  LinearAttentionResult out;
};

inline Run run(const LinearAttention& given, at::ScalarType type,
               LinearAttentionResult (*op)(const LinearAttention&)) {
  Run r{leaves(given, type), {}};
  r.out = op(r.in);
  at::manual_seed(7);
  const auto dy = at::randn(r.out.y.sizes(), at::kDouble),
             dstate = at::randn(r.out.state.sizes(), at::kDouble);
  const auto device = r.out.y.device();
  ((r.out.y * dy.to(device)).sum() + (r.out.state * dstate.to(device)).sum()).backward();
  return r;
}

// The kernel that would be chosen, and that of a GPU where there is one.
inline std::vector<Kernel> first_choices() {
  const auto kernels = runnable_kernels();
  if (kernels.size() > 1 && kernels.back() == Kernel::cuda) return {kernels.front(), Kernel::cuda};
  return {kernels.front()};
}

inline void expect_same(const Run& x, const Run& expected, const LinearAttentionBounds& bounds,
                        const std::string& where) {
  expect_close(x.out.y, expected.out.y, bounds.y, where + " y");
  expect_close(x.out.state, expected.out.state, bounds.state, where + " state");
  for (const auto& [name, member] : differentiable()) {
    if (!(x.in.*member).defined()) continue;
    const auto& wanted = (expected.in.*member).grad();
    if (!wanted.defined() || wanted.numel() == 0) continue;
    ASSERT_TRUE((x.in.*member).grad().defined()) << where << " no gradient of " << name;
    expect_close((x.in.*member).grad(), wanted, bounds.gradient, where + " gradient of " + name);
  }
}

}  // namespace weft::ops
