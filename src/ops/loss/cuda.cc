#include "ops/loss/cuda.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/loss/kernel_cuda.h"
#include "ops/loss/loss.h"
#include "ops/recurrence.h"

namespace weft::ops {
namespace {

constexpr const char* kOp = "linear_cross_entropy";
constexpr int64_t kBlockElements = int64_t{128} << 20;  // logits alive at a time
constexpr int64_t kMinBlockTokens = 128;
constexpr int64_t kRowElements = 8;  // rows of logits begin at multiples, for accesses of 16 bytes

const kernels::LossCuda& table() { return *CudaKernels<kernels::LossCuda>::get(); }

// Walks over the tokens in blocks whose logits share one buffer.
class CudaBlocks {
 public:
  CudaBlocks(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, double scale)
      : launch_(hidden),
        hidden_(hidden.contiguous()),
        weight_(weight.to(hidden.scalar_type())),
        targets_(targets.contiguous()),
        tokens_(std::min(hidden.size(0), std::max(kMinBlockTokens, kBlockElements / weight.size(0)))) {
    const int64_t vocabulary = weight.size(0);
    problem_.row = (vocabulary + kRowElements - 1) / kRowElements * kRowElements;
    logits_ = at::empty({tokens_, problem_.row}, hidden.options());
    problem_.logits = logits_.mutable_data_ptr();
    problem_.vocabulary = vocabulary, problem_.type = cuda_type(hidden);
    problem_.ignore = kIgnoreTarget, problem_.scale = static_cast<float>(scale);
  }

  // losses, lse [N] fp32 are written.
  void forward(const at::Tensor& losses, const at::Tensor& lse) {
    each([&](int64_t first, int64_t count) {
      logits(first, count);
      problem_.lse = mutable_floats_of(lse) + first;
      problem_.losses = mutable_floats_of(losses) + first;
      check_launch(kOp, table().losses(problem_, launch_.stream()));
    });
  }

  // dhidden [N, D] in the type of hidden and dweight [V, D] fp32 are written; undefined ones are left out.
  void backward(const at::Tensor& lse, const at::Tensor& upstream, const at::Tensor& dhidden,
                const at::Tensor& dweight) {
    if (dweight.defined()) dweight.zero_();
    each([&](int64_t first, int64_t count) {
      auto slope = logits(first, count);
      problem_.lse = mutable_floats_of(lse) + first;
      problem_.upstream = floats_of(upstream) + first;
      check_launch(kOp, table().gradient(problem_, launch_.stream()));
      if (dhidden.defined()) {
        auto part = dhidden.narrow(0, first, count);
        at::mm_out(part, slope, weight_);
      }
      if (!dweight.defined()) return;
      const auto rows = hidden_.narrow(0, first, count);
      if (slope.scalar_type() == at::kFloat)
        dweight.addmm_(slope.t(), rows);
      else
        dweight.add_(at::mm(slope.t(), rows));
    });
  }

 private:
  template <class Body>
  void each(const Body& body) {
    for (int64_t first = 0; first < hidden_.size(0); first += tokens_) {
      problem_.targets = targets_.const_data_ptr<int64_t>() + first;
      problem_.rows = std::min(tokens_, hidden_.size(0) - first);
      body(first, problem_.rows);
    }
  }

  // [count, V] of the tokens from `first` on.
  at::Tensor logits(int64_t first, int64_t count) {
    auto out = logits_.narrow(0, 0, count).narrow(1, 0, problem_.vocabulary);
    at::mm_out(out, hidden_.narrow(0, first, count), weight_.t());
    return out;
  }

  CudaLaunch launch_;
  at::Tensor hidden_, weight_, targets_;
  int64_t tokens_;  // of a block
  at::Tensor logits_;
  kernels::CudaLoss problem_;
};

class CudaLossFunction : public torch::autograd::Function<CudaLossFunction> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& hidden,
                            const at::Tensor& weight, const at::Tensor& targets, double scale) {
    const auto losses = at::empty(targets.sizes(), hidden.options().dtype(at::kFloat));
    const auto lse = at::empty_like(losses);
    CudaBlocks(hidden, weight, targets, scale).forward(losses, lse);
    ctx->save_for_backward({hidden, weight, targets, lse});
    ctx->saved_data["scale"] = scale;
    return losses;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& upstream) {
    require_first_order(kOp);
    const auto saved = ctx->get_saved_variables();
    const auto &hidden = saved[0], &weight = saved[1];
    at::Tensor dhidden, dweight;
    if (ctx->needs_input_grad(0)) dhidden = at::empty(hidden.sizes(), hidden.options());
    if (ctx->needs_input_grad(1)) dweight = at::empty(weight.sizes(), weight.options().dtype(at::kFloat));
    CudaBlocks(hidden, weight, saved[2], ctx->saved_data["scale"].toDouble())
        .backward(saved[3], upstream[0].contiguous(), dhidden, dweight);
    return {dhidden, dweight.defined() ? dweight.to(weight.scalar_type()) : dweight, {}, {}};
  }
};

}  // namespace

bool has_cuda_loss(const at::Tensor& hidden, const at::Tensor& weight) {
  return choose_kernel(hidden) == Kernel::cuda && weight.scalar_type() != at::kDouble &&
         CudaKernels<kernels::LossCuda>::get();
}

at::Tensor cuda_linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                     const at::Tensor& targets, double scale) {
  return CudaLossFunction::apply(hidden, weight, targets, scale);
}

}  // namespace weft::ops
