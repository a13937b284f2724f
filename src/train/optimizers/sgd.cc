#include "train/optimizers/sgd.h"

#include <ATen/Functions.h>
#include <ATen/core/grad_mode.h>

namespace weft {
namespace {

const RegisterOptimizer<Sgd> register_sgd{"sgd", "stochastic gradient descent, with or without momentum"};

}  // namespace

void Sgd::Options::fields(Fields& f) {
  f("lr", lr, "learning rate", above(0));
  f("momentum", momentum, "mu, decay of the sum of gradients; 0: none", at_least(0), below(1));
  f("nesterov", nesterov, "look one step ahead");
  f("weight_decay", weight_decay, "of matrices and embeddings, times the learning rate", at_least(0));
}

Sgd::Sgd(const Options& options, std::vector<NamedParameter> parameters) : options_(options) {
  for (auto& named : parameters)
    slots_.push_back(
        {named, options.momentum > 0 ? at::zeros_like(named.parameter->value).detach() : at::Tensor()});
}

void Sgd::step(double factor) {
  const at::NoGradGuard no_grad;
  for (auto& [named, m] : slots_) {
    const auto& rules = named.parameter->rules;
    const auto& gradient = named.parameter->value.grad();
    if (!gradient.defined()) continue;
    auto value = named.parameter->value.detach();
    const double lr = options_.lr * rules.lr_scale * factor;
    if (options_.weight_decay > 0 && rules.weight_decay && rules.role != ParameterRules::Role::vector)
      value.mul_(1 - lr * options_.weight_decay);
    if (!m.defined()) {
      value.sub_(gradient, lr);
      continue;
    }
    m.mul_(options_.momentum).add_(gradient);
    value.sub_(options_.nesterov ? gradient + options_.momentum * m : m, lr);
  }
}

NamedTensors Sgd::state() const {
  NamedTensors tensors;
  for (const auto& [named, m] : slots_)
    if (m.defined()) tensors.emplace_back("sgd.m." + named.name, m);
  return tensors;
}

}  // namespace weft
