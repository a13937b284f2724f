// Where heads are many, kernels of a GPU give blocks wider slices of them than where they are few. Either way a head is
// what it is alone, forward and every gradient.
#include <gtest/gtest.h>

#include "ops/kernel_choice.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/linear_attention/linear_attention_cases.h"

namespace weft::ops {
namespace {

constexpr at::Tensor LinearAttention::*kInputs[] = {
    &LinearAttention::q,          &LinearAttention::k,           &LinearAttention::v,
    &LinearAttention::log_decay,  &LinearAttention::beta,        &LinearAttention::write,
    &LinearAttention::erase_read, &LinearAttention::erase_write, &LinearAttention::initial_state,
    &LinearAttention::starts};

// y, the state and the gradients of the first and the last sequence, or of those two alone.
std::vector<at::Tensor> results(const LinearAttention& all, const at::Tensor& dy, bool alone) {
  const auto last = all.q.size(0) - 1;
  const auto ends = [&](const at::Tensor& x) { return at::stack({x.select(0, 0), x.select(0, last)}); };
  auto in = all;
  for (const auto member : kInputs) {
    auto& x = in.*member;
    if (!x.defined()) continue;
    if (alone) x = ends(x);
    if (x.is_floating_point()) x = x.detach().clone().set_requires_grad(true);
  }
  const auto out = linear_attention(in);
  ((out.y * (alone ? ends(dy) : dy)).sum() + out.state.sum()).backward();
  std::vector<at::Tensor> results{out.y.detach(), out.state.detach()};
  for (const auto member : kInputs)
    if ((in.*member).defined() && (in.*member).requires_grad()) results.push_back((in.*member).grad());
  if (!alone)
    for (auto& x : results) x = ends(x);
  return results;
}

TEST(LinearAttentionHeads, ManyAreEachAsAlone) {
  const auto kernel = runnable_kernels().back();
  if (kernel != Kernel::cuda) GTEST_SKIP() << "for a GPU";
  const ForceKernel force(kernel);
  struct Size {
    int64_t batch, width;
    bool low_rank;
  };
  for (const auto& [batch, width, low_rank] :
       {Size{140, 64, true}, Size{70, 128, true}, Size{36, 256, true}, Size{70, 256, false}})
    for (const double strength : {0.6, 12.0, 60.0}) {
      const LinearAttentionCase c{.batch = batch,
                                  .tokens = 83,
                                  .heads = 2,
                                  .key_heads = 2,
                                  .key_width = width,
                                  .value_width = width,
                                  .decay = LinearAttentionCase::Decay::vector,
                                  .write = true,
                                  .state = true,
                                  .erase_heads = low_rank ? 2 : 0,
                                  .strength = strength,
                                  .starts = 0.03};
      const auto in = on_device(linear_attention_inputs(c, at::kBFloat16), device_of(kernel));
      const auto dy = at::randn_like(in.v);
      const auto many = results(in, dy, false), few = results(in, dy, true);
      const auto bounds = linear_attention_bounds(at::kBFloat16);
      ASSERT_EQ(many.size(), few.size());
      for (size_t i = 0; i < many.size(); ++i) {
        const auto wanted = few[i].to(at::kDouble), error = (many[i].to(at::kDouble) - wanted).abs().max();
        EXPECT_LE(error.item<double>(), bounds.gradient * wanted.abs().max().item<double>())
            << width << ", " << strength << (low_rank ? ", low rank" : "") << ", result " << i;
      }
    }
}

}  // namespace
}  // namespace weft::ops
