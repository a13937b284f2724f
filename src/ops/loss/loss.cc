#include "ops/loss/loss.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "base/error.h"
#include "ops/loss/cuda.h"
#include "ops/loss/kernel.h"
#include "ops/parallel.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kOp = "linear_cross_entropy";
constexpr int64_t kBlockFloats = int64_t{2} << 20;  // logits alive at a time: 8 MiB in fp32
constexpr int64_t kMinBlockTokens =
    128;  // fewer, and reading and writing dweight costs more than the products
constexpr int64_t kGrainFloats = 16384;  // less work than this is not worth a thread

// Walks over the tokens in blocks whose logits share one buffer. The products are computed in the type of
// `hidden`, what stands between them in fp32.
class Blocks {
 public:
  Blocks(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, double scale)
      : isa_(isa_of(choose_kernel(hidden))),
        hidden_(hidden.contiguous()),
        weight_(weight.to(hidden.scalar_type())),
        targets_(targets.contiguous()),
        tokens_(std::min(hidden.size(0), std::max(kMinBlockTokens, kBlockFloats / weight.size(0)))),
        logits_(at::empty({tokens_, weight.size(0)}, hidden.options().dtype(at::kFloat))),
        narrow_(hidden.scalar_type() == at::kFloat ? logits_ : at::empty(logits_.sizes(), hidden.options())) {
    problem_.logits = logits_.mutable_data_ptr<float>();
    problem_.vocabulary = weight.size(0);
    problem_.ignore = kIgnoreTarget;
    problem_.scale = static_cast<float>(scale);
  }

  // losses, lse [N] fp32 are written.
  void forward(const at::Tensor& losses, const at::Tensor& lse) {
    each([&](int64_t first, int64_t count) {
      logits(first, count);
      problem_.lse = lse.mutable_data_ptr<float>() + first;
      problem_.losses = losses.mutable_data_ptr<float>() + first;
      rows(count, kernels::loss_rows);
    });
  }

  // dhidden [N, D] in the type of hidden and dweight [V, D] fp32 are written; undefined ones are left out.
  void backward(const at::Tensor& lse, const at::Tensor& upstream, const at::Tensor& dhidden,
                const at::Tensor& dweight) {
    if (dweight.defined()) dweight.zero_();
    const auto product = dweight.defined() && narrow_.scalar_type() != at::kFloat
                             ? at::empty(dweight.sizes(), narrow_.options())
                             : at::Tensor();
    each([&](int64_t first, int64_t count) {
      logits(first, count);
      problem_.lse = lse.mutable_data_ptr<float>() + first;
      problem_.upstream = upstream.const_data_ptr<float>() + first;
      rows(count, kernels::loss_gradient);
      const auto slope = narrow_.narrow(0, 0, count);
      if (!narrow_.is_same(logits_)) slope.copy_(logits_.narrow(0, 0, count));
      if (dhidden.defined()) {
        auto part = dhidden.narrow(0, first, count);
        at::mm_out(part, slope, weight_);
      }
      if (product.defined()) {
        auto out = product;
        dweight.add_(at::mm_out(out, slope.t(), hidden_.narrow(0, first, count)));
      } else if (dweight.defined()) {
        dweight.addmm_(slope.t(), hidden_.narrow(0, first, count));
      }
    });
  }

 private:
  template <class Body>
  void each(const Body& body) {
    for (int64_t first = 0; first < hidden_.size(0); first += tokens_) {
      problem_.targets = targets_.const_data_ptr<int64_t>() + first;
      body(first, std::min(tokens_, hidden_.size(0) - first));
    }
  }

  void logits(int64_t first, int64_t count) {
    auto out = narrow_.narrow(0, 0, count);
    at::mm_out(out, hidden_.narrow(0, first, count), weight_.t());
    if (!narrow_.is_same(logits_)) logits_.narrow(0, 0, count).copy_(out);
  }

  template <class Kernel>
  void rows(int64_t count, const Kernel& kernel) {
    const int64_t grain = std::max<int64_t>(1, kGrainFloats / problem_.vocabulary);
    parallel_for(count, grain, [&](int64_t begin, int64_t end) { kernel(isa_, problem_, begin, end); });
  }

  simd::Isa isa_;
  at::Tensor hidden_, weight_, targets_;
  int64_t tokens_;     // of a block
  at::Tensor logits_;  // [tokens, V] fp32
  at::Tensor narrow_;  // the same in the type of hidden; logits_ itself for fp32
  kernels::LossProblem problem_;
};

class LossFunction : public torch::autograd::Function<LossFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& hidden, const at::Tensor& weight,
                            const at::Tensor& targets, double scale) {
    const auto losses = at::empty(targets.sizes(), hidden.options().dtype(at::kFloat));
    const auto lse = at::empty_like(losses);
    Blocks(hidden, weight, targets, scale).forward(losses, lse);
    ctx->save_for_backward({hidden, weight, targets, lse});
    ctx->saved_data["scale"] = scale;
    return losses;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    supported(!at::GradMode::is_enabled(),
              "{}: second derivatives need the reference; set WEFT_KERNEL=reference", kOp);
    const auto saved = ctx->get_saved_variables();
    const auto &hidden = saved[0], &weight = saved[1], &targets = saved[2], &lse = saved[3];
    at::Tensor dhidden, dweight;
    if (ctx->needs_input_grad(0)) dhidden = at::empty(hidden.sizes(), hidden.options());
    if (ctx->needs_input_grad(1)) dweight = at::empty(weight.sizes(), weight.options().dtype(at::kFloat));
    Blocks(hidden, weight, targets, ctx->saved_data["scale"].toDouble())
        .backward(lse, upstream[0].contiguous(), dhidden, dweight);
    return {dhidden, dweight.defined() ? dweight.to(weight.scalar_type()) : dweight, {}, {}};
  }
};

void check_targets(const at::Tensor& targets, int64_t vocabulary) {
  const auto wrong = ((targets < 0) & (targets != kIgnoreTarget)) | (targets >= vocabulary);
  if (!wrong.any().item<bool>()) return;
  const int64_t place = wrong.nonzero()[0].item<int64_t>();
  require(
      false,
      "{}: target {} at token {} is outside the vocabulary of V = {}; expected 0 to {}, or {} for no loss",
      kOp, targets[place].item<int64_t>(), place, vocabulary, vocabulary - 1, kIgnoreTarget);
}

void check(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets) {
  require_like(kOp, "hidden", hidden, hidden);
  require_like(kOp, "weight", weight, hidden);
  require_shape(kOp, "hidden", hidden, {-1, -1});
  require_shape(kOp, "weight", weight, {-1, hidden.size(1)});
  require_shape(kOp, "targets", targets, {hidden.size(0)});
  require(weight.size(0) >= 1, "{}: weight is {}, expected at least one row", kOp, shape_text(weight));
  require(targets.scalar_type() == at::kLong, "{}: targets have type {}, expected int64", kOp,
          c10::toString(targets.scalar_type()));
  require(targets.device() == hidden.device(), "{}: targets are on {}, expected {}", kOp,
          targets.device().str(), hidden.device().str());
}

}  // namespace

at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                                double scale) {
  check(hidden, weight, targets);
  if (has_cuda_loss(hidden, weight)) return cuda_linear_cross_entropy(hidden, weight, targets, scale);
  check_targets(targets, weight.size(0));
  const auto kernel = choose_kernel(hidden);
  if (kernel != Kernel::reference && kernel != Kernel::cuda)
    return LossFunction::apply(hidden, weight, targets, scale);
  return reference::linear_cross_entropy(hidden, weight, targets, scale);
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def("linear_cross_entropy(Tensor hidden, Tensor weight, Tensor targets, float scale=1.0) -> Tensor",
        &linear_cross_entropy);
}

}  // namespace weft::ops
