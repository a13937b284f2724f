// Optimizers: how gradients become updates. What each parameter is (matrix, vector, embedding), its share of
// the learning rate and whether it decays stand in the ParameterRules that its module declared.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/fields.h"
#include "io/safetensors.h"
#include "nn/module.h"

namespace weft {

class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  // One update of all parameters that have a gradient. The learning rate is the optimizer's own times
  // `factor` times the parameter's lr_scale.
  virtual void step(double factor) = 0;
  // Everything that later updates depend on, by name; the tensors share memory with the optimizer.
  virtual NamedTensors state() const = 0;
  // The learning rate at factor 1.
  virtual double learning_rate() const = 0;

  // Copies what state() names from `file`, which may hold more. InputError for a tensor that is missing or
  // misshapen.
  void load(const SafeTensors& file);
};

struct OptimizerEntry {
  std::string name, summary;
  std::vector<FieldInfo> fields;
  std::function<std::unique_ptr<Optimizer>(const Node& options, std::vector<NamedParameter> parameters)> make;
  std::function<Node(const Node& options)> resolve;  // all options written out
};

void register_optimizer(OptimizerEntry entry);
std::vector<std::string> optimizer_names();
const OptimizerEntry& optimizer_entry(const std::string& name);  // Bug when there is none

// `node` is one optimizer with its options, {adamw: {lr: 0.001}}, or {adamw: 0.001} for the learning rate
// alone. Options of every optimizer may hold gradient_noise: {eta: 0.3} (gradient_noise.h). Parameters must be fp32 and outlive the optimizer.
std::unique_ptr<Optimizer> make_optimizer(const Node& node, std::vector<NamedParameter> parameters);
Node resolve_optimizer(const Node& node);

// An optimizer O has struct O::Options { ...; void fields(Fields&); } and O(const O::Options&, parameters);
// one line `const RegisterOptimizer<O> register_o{"name", "one sentence"};` makes it known.
template <class O>
struct RegisterOptimizer {
  RegisterOptimizer(const char* name, const char* summary) {
    register_optimizer(
        {.name = name,
         .summary = summary,
         .fields = list_options<typename O::Options>(),
         .make = [name = std::string(name)](const Node& options, std::vector<NamedParameter> parameters)
             -> std::unique_ptr<Optimizer> {
           return std::make_unique<O>(read_options<typename O::Options>(options, name, {"gradient_noise"}),
                                      std::move(parameters));
         },
         .resolve =
             [name = std::string(name)](const Node& options) {
               return write_options(read_options<typename O::Options>(options, name, {"gradient_noise"}));
             }});
  }
};

// Scales all gradients so that their norm together is at most `bound` (0: leaves them). Returns the norm
// before; a norm that is not finite leaves the gradients as they are.
double clip_gradients(const std::vector<NamedParameter>& parameters, double bound);

}  // namespace weft
