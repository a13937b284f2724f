#include "train/optimizers/muon.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace weft {
namespace {

const RegisterOptimizer<Muon> register_muon{"muon",
                                            "orthogonalised momentum for matrices, AdamW for the rest"};

bool is_hidden_matrix(const NamedParameter& named) {
  return named.parameter->rules.role == ParameterRules::Role::matrix && named.parameter->value.dim() == 2;
}

}  // namespace

at::Tensor orthogonalize(const at::Tensor& x, int64_t steps) {
  constexpr double a = 3.4445, b = -4.7750, c = 2.0315;
  const bool tall = x.size(-2) > x.size(-1);
  auto y = (tall ? x.mT() : x).to(x.is_cpu() ? at::kFloat : at::kBFloat16);  // [..., M, N], M <= N
  y = y / (at::linalg_vector_norm(y, 2, at::IntArrayRef{-2, -1}, true) + 1e-7);
  for (int64_t i = 0; i < steps; ++i) {
    const auto gram = at::matmul(y, y.mT());  // [..., M, M]
    const auto polynomial = b * gram + c * at::matmul(gram, gram);
    y = a * y + at::matmul(polynomial, y);
  }
  return (tall ? y.mT() : y).to(at::kFloat);
}

void Muon::Options::fields(Fields& f) {
  f("lr", lr, "learning rate of the matrices", above(0));
  f("momentum", momentum, "mu, decay of the sum of gradients", at_least(0), below(1));
  f("nesterov", nesterov, "look one step ahead");
  f("iterations", iterations, "Newton-Schulz iterations", at_least(1));
  f("weight_decay", weight_decay, "of the matrices, times the learning rate", at_least(0));
  f("adamw", adamw, "options of AdamW for embeddings, norms, gates and biases");
  adamw = write_options(
      read_options<AdamW::Options>(adamw, "adamw"));  // so that a resolved recipe shows them all
}

Muon::Muon(const Options& options, std::vector<NamedParameter> parameters) : options_(options) {
  std::vector<NamedParameter> others;
  for (auto& named : parameters) {
    if (!is_hidden_matrix(named)) {
      others.push_back(named);
      continue;
    }
    const auto& value = named.parameter->value;
    const auto same_shape = [&](const auto& slots) { return slots[0].m.sizes() == value.sizes(); };
    auto found = std::find_if(shapes_.begin(), shapes_.end(), same_shape);
    if (found == shapes_.end()) found = shapes_.emplace(shapes_.end());
    found->push_back({named, at::zeros_like(value).detach()});
  }
  rest_ = std::make_unique<AdamW>(read_options<AdamW::Options>(options.adamw, "adamw"), std::move(others));
}

at::Tensor Muon::direction(Slot& slot) const {
  const auto& gradient = slot.parameter.parameter->value.grad();
  slot.m.mul_(options_.momentum).add_(gradient);
  return options_.nesterov ? gradient + options_.momentum * slot.m : slot.m;
}

void Muon::step(double factor) {
  at::NoGradGuard no_grad;
  for (auto& slots : shapes_) {
    std::vector<Parameter*> updated;
    std::vector<at::Tensor> directions;
    for (auto& slot : slots) {
      if (!slot.parameter.parameter->value.grad().defined()) continue;
      updated.push_back(slot.parameter.parameter);
      directions.push_back(direction(slot));
    }
    if (updated.empty()) continue;
    const auto updates = orthogonalize(at::stack(directions), options_.iterations);  // [n, M, N]
    const double shape_scale =
        std::sqrt(std::max(1.0, static_cast<double>(updates.size(1)) / updates.size(2)));
    for (size_t i = 0; i < updated.size(); ++i) {
      auto value = updated[i]->value.detach();
      const double lr = options_.lr * updated[i]->rules.lr_scale * factor;
      if (updated[i]->rules.weight_decay) value.mul_(1 - lr * options_.weight_decay);
      value.sub_(updates[static_cast<int64_t>(i)], lr * shape_scale);
    }
  }
  rest_->step(factor);
}

NamedTensors Muon::state() const {
  auto tensors = rest_->state();
  for (const auto& slots : shapes_)
    for (const auto& slot : slots) tensors.emplace_back("muon.m." + slot.parameter.name, slot.m);
  return tensors;
}

}  // namespace weft
