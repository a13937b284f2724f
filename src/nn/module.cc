#include "nn/module.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

#include "base/error.h"
#include "ops/norm/norm.h"

namespace weft {
namespace {

// FNV-1a with a final mix: the seed of one parameter's generator.
uint64_t seed_of(uint64_t seed, const std::string& name) {
  uint64_t hash = 1469598103934665603ull ^ seed;
  for (const unsigned char c : name) hash = (hash ^ c) * 1099511628211ull;
  hash = (hash ^ (hash >> 31)) * 0x9e3779b97f4a7c15ull;
  return hash ^ (hash >> 29);
}

at::Tensor cast(const at::Tensor& value, const at::Tensor& like) {
  return value.scalar_type() == like.scalar_type() ? value : value.to(like.scalar_type());
}

}  // namespace

namespace init {

Init normal(double std) {
  return [std](at::Tensor& value, at::Generator& random) { value.normal_(0, std, random); };
}
Init uniform(double low, double high) {
  return [low, high](at::Tensor& value, at::Generator& random) { value.uniform_(low, high, random); };
}
Init constant(double number) {
  return [number](at::Tensor& value, at::Generator&) { value.fill_(number); };
}

}  // namespace init

at::Tensor Linear::operator()(const at::Tensor& x) const {
  return at::linear(x, cast(weight_->value, x), bias_ ? cast(bias_->value, x) : at::Tensor());
}

at::Tensor Norm::operator()(const at::Tensor& x) const {
  switch (kind_) {
    case Kind::rms:
      return ops::rms_norm(x, weight_->value, eps_);
    case Kind::layer:
      return ops::layer_norm(x, weight_->value, bias_->value, eps_);
    case Kind::none:
      break;
  }
  return x;
}

std::pair<at::Tensor, at::Tensor> Norm::add(const at::Tensor& x, const at::Tensor& branch) const {
  if (kind_ == Kind::rms) {
    const auto result = ops::add_rms_norm(x, branch, weight_->value, eps_);
    return {result.sum, result.y};
  }
  const auto sum = x + branch;
  return {sum, (*this)(sum)};
}

Norm::Kind norm_kind(const std::string& name) {
  return name == "rms" ? Norm::Kind::rms : name == "layer" ? Norm::Kind::layer : Norm::Kind::none;
}

std::vector<NamedParameter> Module::parameters() const {
  std::vector<NamedParameter> all;
  collect("", all);
  return all;
}

void Module::collect(const std::string& prefix, std::vector<NamedParameter>& out) const {
  for (const auto& [name, parameter] : own_) out.push_back({prefix + name, parameter.get()});
  for (const auto& [name, child] : children_) child->collect(prefix + name + ".", out);
}

int64_t Module::parameter_count() const {
  int64_t count = 0;
  for (const auto& [name, parameter] : parameters()) count += parameter->value.numel();
  return count;
}

int64_t Module::matrix_weights() const {
  int64_t count = 0;
  for (const auto& [name, parameter] : parameters())
    if (parameter->rules.role == ParameterRules::Role::matrix) count += parameter->value.numel();
  return count;
}

void Module::initialize(uint64_t seed) {
  at::NoGradGuard no_grad;
  for (const auto& [name, parameter] : parameters()) {
    auto random = at::make_generator<at::CPUGeneratorImpl>(seed_of(seed, name));
    auto fresh = at::empty(parameter->value.sizes(), at::kFloat);
    parameter->init(fresh, random);
    parameter->value.copy_(fresh);
  }
}

void Module::to(at::ScalarType dtype) {
  for (const auto& [name, parameter] : parameters()) {
    const bool keep = parameter->rules.keep_float && dtype != at::kDouble;
    auto& value = parameter->value;
    value = value.detach().to(keep ? at::kFloat : dtype).requires_grad_(value.requires_grad());
  }
}

void Module::to(at::Device device) {
  for (const auto& [name, parameter] : parameters()) {
    auto& value = parameter->value;
    value = value.detach().to(device).requires_grad_(value.requires_grad());
  }
}

void Module::requires_grad(bool on) {
  for (const auto& [name, parameter] : parameters()) parameter->value.requires_grad_(on);
}

std::shared_ptr<Parameter> Module::parameter(const std::string& name, at::IntArrayRef sizes, Init init,
                                             ParameterRules rules) {
  for (const auto& [other, existing] : own_) invariant(other != name, "parameter {} is made twice", name);
  auto made = std::make_shared<Parameter>(Parameter{at::zeros(sizes, at::kFloat), rules, std::move(init)});
  own_.emplace_back(name, made);
  return made;
}

std::shared_ptr<Parameter> Module::vector_parameter(const std::string& name, at::IntArrayRef sizes,
                                                    Init init) {
  return parameter(name, sizes, std::move(init), {.role = ParameterRules::Role::vector, .keep_float = true});
}

Linear Module::linear(const std::string& name, int64_t in, int64_t out, const LinearOptions& options) {
  auto weight =
      parameter(name + ".weight", {out, in},
                init::normal(options.scale / std::sqrt(3.0 * static_cast<double>(in))), options.rules);
  std::shared_ptr<Parameter> bias;
  if (options.bias)
    bias = parameter(name + ".bias", {out}, init::constant(0), {.role = ParameterRules::Role::vector});
  return {weight, bias};
}

Norm Module::norm(const std::string& name, Norm::Kind kind, int64_t size, double eps) {
  if (kind == Norm::Kind::none) return {};
  std::shared_ptr<Parameter> bias;
  auto weight = vector_parameter(name + ".weight", {size}, init::constant(1));
  if (kind == Norm::Kind::layer) bias = vector_parameter(name + ".bias", {size}, init::constant(0));
  return {kind, weight, bias, eps};
}

void Module::add_child(const std::string& name, Module& child) { children_.emplace_back(name, &child); }

}  // namespace weft
