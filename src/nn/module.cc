#include "nn/module.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <unordered_set>

#include "base/error.h"
#include "ops/linear/linear.h"
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

thread_local bool deferred = false;

// Of the modules that are being made on this thread; null: they share nothing.
thread_local ParameterShare* active_share = nullptr;

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

DeferredParameters::DeferredParameters() : before_(deferred) { deferred = true; }
DeferredParameters::~DeferredParameters() { deferred = before_; }

at::Tensor Linear::operator()(const at::Tensor& x) const {
  const auto y = ops::linear(x, weight_->value, bias_ ? bias_->value : at::Tensor());
  if (!down_) return y;
  return y + ops::linear(ops::linear(x, down_->value, {}), up_->value, {});
}

at::Tensor Norm::operator()(const at::Tensor& x) const {
  switch (kind_) {
    case Kind::rms:
    case Kind::rms_zero_centered:
      return ops::rms_norm(x, weight(), eps_);
    case Kind::rms_bias:
      return ops::rms_norm(x, weight(), eps_) + cast(bias_->value, x);
    case Kind::layer:
      return ops::layer_norm(x, weight_->value, bias_->value, eps_);
    case Kind::none:
      break;
  }
  return x;
}

std::pair<at::Tensor, at::Tensor> Norm::add(const at::Tensor& x, const at::Tensor& branch) const {
  if (kind_ == Kind::rms || kind_ == Kind::rms_zero_centered) {
    const auto result = ops::add_rms_norm(x, branch, weight(), eps_);
    return {result.sum, result.y};
  }
  const auto sum = x + branch;
  return {sum, (*this)(sum)};
}

at::Tensor Norm::weight() const {
  if (!weight_) return {};
  return kind_ == Kind::rms_zero_centered ? weight_->value + offset_ : weight_->value;
}

Norm::Kind norm_kind(const std::string& name) {
  if (name == "rms") return Norm::Kind::rms;
  if (name == "rms_zero_centered") return Norm::Kind::rms_zero_centered;
  if (name == "rms_bias") return Norm::Kind::rms_bias;
  return name == "layer" ? Norm::Kind::layer : Norm::Kind::none;
}

void ParameterShare::make(const std::string& where, const std::function<void()>& body) {
  struct Active {
    ParameterShare* before;
    explicit Active(ParameterShare* share) : before(active_share) { active_share = share; }
    ~Active() { active_share = before; }
  };
  where_ = where;
  next_ = 0;
  {
    const Active active(this);
    body();
  }
  require(next_ == parameters_.size(), "{}: shares {} of the {} parameters of {}; both need the same options",
          where, next_, parameters_.size(), first_);
  if (!filled_) first_ = where;
  filled_ = true;
}

std::shared_ptr<Parameter> ParameterShare::next(const std::string& name, std::shared_ptr<Parameter> fresh) {
  if (!filled_) parameters_.emplace_back(name, std::move(fresh));
  const size_t index = next_++;
  if (!filled_) return parameters_[index].second;
  require(index < parameters_.size(),
          "{}: has the parameter {}, which {} has not; both need the same options to share", where_, name,
          first_);
  const auto& [shared_name, shared] = parameters_[index];
  require(shared_name == name && shared->value.sizes() == fresh->value.sizes(),
          "{}: its parameter {} of shape {} is to be shared with {} of shape {} in {}; both need the same "
          "options",
          where_, name, c10::str(fresh->value.sizes()), shared_name, c10::str(shared->value.sizes()), first_);
  return shared;
}

const std::vector<std::string>& norm_names() {
  static const std::vector<std::string> names{"rms", "rms_zero_centered", "rms_bias", "layer", "none"};
  return names;
}

std::vector<NamedParameter> Module::parameters() const {
  std::vector<NamedParameter> all;
  collect("", all);
  std::unordered_set<const Parameter*> seen;
  std::erase_if(all, [&](const auto& item) { return !seen.insert(item.parameter).second; });
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
  std::vector<NamedParameter> uses;
  collect("", uses);
  for (const auto& [name, parameter] : uses)
    if (parameter->rules.role == ParameterRules::Role::matrix)
      count += std::llround(parameter->rules.share * static_cast<double>(parameter->value.numel()));
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
  const auto options = at::TensorOptions(at::kFloat);
  auto value = deferred ? at::empty(sizes, options.device(at::kMeta)) : at::zeros(sizes, options);
  auto made = std::make_shared<Parameter>(Parameter{std::move(value), rules, std::move(init)});
  if (active_share && !rules.own) made = active_share->next(name, std::move(made));
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
  if (options.adapter_rank == 0) return {weight, bias};
  auto rules = options.rules;
  rules.own = true;
  const auto down = parameter(name + ".adapter_down.weight", {options.adapter_rank, in},
                              init::normal(1 / std::sqrt(3.0 * static_cast<double>(in))), rules);
  return {weight, bias, down,
          parameter(name + ".adapter_up.weight", {out, options.adapter_rank}, init::constant(0), rules)};
}

Norm Module::norm(const std::string& name, Norm::Kind kind, int64_t size, double eps, double offset) {
  if (kind == Norm::Kind::none) return {};
  std::shared_ptr<Parameter> bias;
  const double start = kind == Norm::Kind::rms_zero_centered ? 0 : 1;
  auto weight = vector_parameter(name + ".weight", {size}, init::constant(start));
  if (kind == Norm::Kind::layer || kind == Norm::Kind::rms_bias)
    bias = vector_parameter(name + ".bias", {size}, init::constant(0));
  return {kind, weight, bias, eps, offset};
}

void Module::add_child(const std::string& name, Module& child) { children_.emplace_back(name, &child); }

}  // namespace weft
