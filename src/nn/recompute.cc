#include "nn/recompute.h"

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace weft {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Body = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

struct BodyHolder : torch::CustomClassHolder {
  explicit BodyHolder(Body f) : body(std::move(f)) {}
  Body body;
};

struct Recompute : torch::autograd::Function<Recompute> {
  // `anchor` requires grad, so that backward runs even when only parameters inside the body do.
  static variable_list forward(AutogradContext* ctx, const at::Tensor& anchor, at::TensorList inputs,
                               Body body) {
    (void)anchor;
    variable_list saved(inputs.begin(), inputs.end());
    auto outputs = body(saved);
    ctx->save_for_backward(saved);
    ctx->saved_data["body"] = c10::IValue::make_capsule(c10::make_intrusive<BodyHolder>(std::move(body)));
    return outputs;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const auto holder = c10::dynamic_intrusive_pointer_cast<BodyHolder>(ctx->saved_data["body"].toCapsule());
    variable_list inputs;
    for (const auto& x : saved) {
      const bool float_like = x.defined() && (x.is_floating_point() || x.is_complex());
      inputs.push_back(float_like ? x.detach().requires_grad_(x.requires_grad()) : x);
    }
    {
      at::AutoGradMode record(true);
      const auto outputs = holder->body(inputs);
      variable_list roots, root_grads;
      for (size_t i = 0; i < outputs.size(); ++i)
        if (grads[i].defined() && outputs[i].requires_grad()) {
          roots.push_back(outputs[i]);
          root_grads.push_back(grads[i]);
        }
      torch::autograd::backward(roots, root_grads);
    }
    variable_list result(saved.size() + 2);  // anchor, inputs, body
    for (size_t i = 0; i < inputs.size(); ++i)
      if (inputs[i].defined() && inputs[i].requires_grad()) result[i + 1] = inputs[i].grad();
    return result;
  }
};

}  // namespace

std::vector<at::Tensor> recompute(const std::vector<at::Tensor>& inputs, Body f) {
  if (!at::GradMode::is_enabled()) return f(inputs);
  const auto anchor = at::empty({0}).requires_grad_(true);
  return Recompute::apply(anchor, at::TensorList(inputs), std::move(f));
}

}  // namespace weft
