#include "train/optimizers/optimizer.h"

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <map>

#include "base/error.h"
#include "base/text.h"
#include "train/optimizers/gradient_noise.h"

namespace weft {
namespace {

std::map<std::string, OptimizerEntry>& registry() {
  static std::map<std::string, OptimizerEntry> entries;
  return entries;
}

const OptimizerEntry& find_optimizer(const Node& node) {
  require(node.is_map() && node.entries().size() == 1,
          "{}: expected one optimizer, such as {{adamw: {{lr: 0.001}}}}; known: {}", node.where(),
          join(optimizer_names()));
  const auto& [name, options] = node.entries().front();
  const auto found = registry().find(name);
  if (found != registry().end()) return found->second;
  const auto guess = nearest_word(name, optimizer_names());
  throw InputError(fmt::format("{}: '{}' is not an optimizer{}; known: {}", options.where(), name,
                               guess.empty() ? "" : ", did you mean '" + guess + "'?",
                               join(optimizer_names())));
}

// Of the options of any optimizer; eta 0 when they have none.
GradientNoiseOptions noise_of(const Node& options) {
  const Node* const node = options.is_map() ? options.find("gradient_noise") : nullptr;
  return node ? read_options<GradientNoiseOptions>(*node, "gradient_noise") : GradientNoiseOptions();
}

// {adamw: 0.001} -> {lr: 0.001}
Node options_of(const Node& node) {
  const Node& value = node.entries().front().second;
  if (!value.is_scalar()) return value;
  Node options = Node::map();
  options.set_child("lr", value);
  return options;
}

}  // namespace

void Optimizer::load(const SafeTensors& file) {
  at::NoGradGuard no_grad;
  for (auto& [name, tensor] : state()) {
    require(file.contains(name),
            "{}: tensor '{}' of the optimizer is missing; was it saved by another optimizer?", file.path(),
            name);
    const auto saved = file.view(name);
    require(saved.sizes() == tensor.sizes() && saved.scalar_type() == tensor.scalar_type(),
            "{}: tensor '{}' is {} {} but {} {} is expected", file.path(), name,
            c10::toString(saved.scalar_type()), saved.sizes(), c10::toString(tensor.scalar_type()),
            tensor.sizes());
    tensor.copy_(saved);
  }
}

void register_optimizer(OptimizerEntry entry) {
  const auto name = entry.name;
  require(registry().emplace(name, std::move(entry)).second, "an optimizer called '{}' is registered already",
          name);
}

std::vector<std::string> optimizer_names() {
  std::vector<std::string> names;
  for (const auto& [name, entry] : registry()) names.push_back(name);
  return names;
}

const OptimizerEntry& optimizer_entry(const std::string& name) {
  const auto found = registry().find(name);
  invariant(found != registry().end(), "no optimizer is called '{}'", name);
  return found->second;
}

std::unique_ptr<Optimizer> make_optimizer(const Node& node, std::vector<NamedParameter> parameters) {
  const auto options = options_of(node);
  const auto noise = noise_of(options);
  auto optimizer = find_optimizer(node).make(options, parameters);
  if (noise.eta == 0) return optimizer;
  return std::make_unique<NoisyOptimizer>(std::move(optimizer), noise, std::move(parameters));
}

Node resolve_optimizer(const Node& node) {
  const auto& entry = find_optimizer(node);
  const auto options = options_of(node);
  auto resolved = entry.resolve(options);
  if (const auto noise = noise_of(options); noise.eta > 0)
    resolved.set_child("gradient_noise", write_options(noise));
  Node result = Node::map();
  result.set_child(entry.name, std::move(resolved));
  return result;
}

double clip_gradients(const std::vector<NamedParameter>& parameters, double bound) {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const auto& [name, parameter] : parameters)
    if (parameter->value.grad().defined()) gradients.push_back(parameter->value.grad());
  if (gradients.empty()) return 0;
  const double norm = at::stack(at::_foreach_norm(gradients)).to(at::kDouble).norm().item<double>();
  if (bound > 0 && std::isfinite(norm) && norm > bound) at::_foreach_mul_(gradients, bound / norm);
  return norm;
}

}  // namespace weft
