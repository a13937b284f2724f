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

at::ScalarType working_type(at::Device device) { return device.is_cpu() ? at::kFloat : at::kBFloat16; }

// Of y [n, M, N] in the working type. The polynomial is taken of the smaller of y y^T and y^T y and multiplies y from
// that side, so that no transposed copy is made.
at::Tensor newton_schulz(at::Tensor y, int64_t steps) {
  constexpr double a = 3.4445, b = -4.7750, c = 2.0315;
  const bool tall = y.size(1) > y.size(2);
  y = y / (at::linalg_vector_norm(y, 2, at::IntArrayRef{1, 2}, true) + 1e-7);
  for (int64_t i = 0; i < steps; ++i) {
    const auto gram = tall ? at::bmm(y.mT(), y) : at::bmm(y, y.mT());
    const auto polynomial = at::baddbmm(gram, gram, gram, b, c);
    y = tall ? at::baddbmm(y, y, polynomial, a) : at::baddbmm(y, polynomial, y, a);
  }
  return y;
}

}  // namespace

at::Tensor orthogonalize(const at::Tensor& x, int64_t steps) {
  const auto y = x.reshape({-1, x.size(-2), x.size(-1)}).to(working_type(x.device()));
  return newton_schulz(y, steps).view(x.sizes()).to(at::kFloat);
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

void Muon::write_direction(Slot& slot, const at::Tensor& out) const {
  const auto& gradient = slot.parameter.parameter->value.grad();
  auto destination = out;
  at::add_out(slot.m, gradient, slot.m, options_.momentum);
  if (options_.nesterov)
    at::add_out(destination, gradient, slot.m, options_.momentum);
  else
    destination.copy_(slot.m);
}

void Muon::step(double factor) {
  at::NoGradGuard no_grad;
  for (auto& slots : shapes_) {
    std::vector<Slot*> updated;
    for (auto& slot : slots)
      if (slot.parameter.parameter->value.grad().defined()) updated.push_back(&slot);
    if (updated.empty()) continue;
    const auto& m = updated[0]->m;
    const auto directions = at::empty({static_cast<int64_t>(updated.size()), m.size(0), m.size(1)},
                                      m.options().dtype(working_type(m.device())));
    for (size_t i = 0; i < updated.size(); ++i)
      write_direction(*updated[i], directions[static_cast<int64_t>(i)]);
    const auto updates = newton_schulz(directions, options_.iterations);
    const double shape_scale = std::sqrt(std::max(1.0, static_cast<double>(m.size(0)) / m.size(1)));
    for (size_t i = 0; i < updated.size(); ++i) {
      const auto& parameter = *updated[i]->parameter.parameter;
      auto value = parameter.value.detach();
      const double lr = options_.lr * parameter.rules.lr_scale * factor;
      if (parameter.rules.weight_decay) value.mul_(1 - lr * options_.weight_decay);
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
