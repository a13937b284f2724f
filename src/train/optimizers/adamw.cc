#include "train/optimizers/adamw.h"

#include <ATen/core/grad_mode.h>

#include "base/error.h"

namespace weft {
namespace {

const RegisterOptimizer<AdamW> register_adamw{"adamw", "Adam with decoupled weight decay"};

bool decays(const ParameterRules& rules) {
  return rules.weight_decay && rules.role != ParameterRules::Role::vector;
}

}  // namespace

void AdamW::Options::fields(Fields& f) {
  f("lr", lr, "learning rate", above(0));
  f("beta1", beta1, "decay of the mean of gradients", at_least(0), below(1));
  f("beta2", beta2, "decay of the mean of their squares", at_least(0), below(1));
  f("eps", eps, "added to the root of the mean square", above(0));
  f("weight_decay", weight_decay, "of matrices and embeddings, times the learning rate", at_least(0));
}

AdamW::AdamW(const Options& options, std::vector<NamedParameter> parameters)
    : options_(options), steps_(at::zeros({}, at::kFloat)) {
  for (auto& named : parameters) {
    const auto& value = named.parameter->value;
    invariant(value.is_floating_point(), "parameter {} is not of a float type", named.name);
    const auto& rules = named.parameter->rules;
    groups_[{rules.lr_scale, decays(rules) ? options.weight_decay : 0.0}].push_back(
        {named, at::zeros_like(value).detach(), at::zeros_like(value).detach()});
  }
}

void AdamW::step(double factor) {
  at::NoGradGuard no_grad;
  steps_ += 1;
  for (auto& [group, slots] : groups_) {
    std::vector<at::Tensor> values, gradients, m, v, steps;
    at::Tensor steps_there;  // on the parameters' device: one copy, not one for each
    for (auto& slot : slots) {
      const auto& value = slot.parameter.parameter->value;
      if (!value.grad().defined()) continue;
      values.push_back(value.detach());
      gradients.push_back(value.grad().contiguous());
      m.push_back(slot.m);
      v.push_back(slot.v);
      if (!steps_there.defined() || steps_there.device() != value.device())
        steps_there = steps_.to(value.device());
      steps.push_back(steps_there);
    }
    if (values.empty()) continue;
    at::_fused_adamw_(values, gradients, m, v, {}, steps, options_.lr * group.first * factor, options_.beta1,
                      options_.beta2, group.second, options_.eps, false, false);
  }
}

NamedTensors AdamW::state() const {
  NamedTensors tensors{{"adamw.step", steps_}};
  for (const auto& [group, slots] : groups_)
    for (const auto& slot : slots) {
      tensors.emplace_back("adamw.m." + slot.parameter.name, slot.m);
      tensors.emplace_back("adamw.v." + slot.parameter.name, slot.v);
    }
  return tensors;
}

}  // namespace weft
