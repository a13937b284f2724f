// An actor and critic with a memory that they share. Lu et al. 2023, "Structured State Space Models for
// In-Context Reinforcement Learning", arXiv:2303.03982.
//   u = observation, previous action, start flag -> dense layers (leaky ReLU) -> memory: a stack of layers
//   policy and value = dense layers (leaky ReLU) and a projection, one set of weights for each
// The memory is any list of layers of weft. It is reset where an episode begins: Context::starts while
// learning whole sequences, the initial state while acting one step at a time.
//
// B games, T steps, I input features, D width of the memory, A actions (or numbers of a continuous action).
#pragma once

#include <memory>
#include <vector>

#include "apps/rl/environments/environment.h"
#include "nn/stack.h"

namespace weft::rl {

struct AgentOptions {
  std::vector<int64_t> encoder = {128, 256};  // the last is D
  std::vector<int64_t> heads = {128, 128};
  std::string norm = "none";
  Node memory;
  void fields(Fields& f);
};

class Agent final : public Module {
 public:
  // `memory` with no layers, or layers of channel mixers only, makes an agent that forgets.
  Agent(const AgentOptions& options, const EnvironmentShape& environment);

  struct Output {
    at::Tensor policy;  // [B, T, A] log weights of the actions, or means
    at::Tensor value;   // [B, T]
  };
  // x [B, T, I]; moves the state on by T steps.
  Output run(const at::Tensor& x, State& state, const Context& context);
  // The same for T = 1, without gradients.
  Output step(const at::Tensor& x, State& state, const Context& context);
  State initial_state(int64_t batch, const at::TensorOptions& options) const;

  int64_t inputs() const { return inputs_; }  // I
  // [n, I] from observations [n, O], the actions before them ([n] int64 or [n, A] fp32) and starts [n] bool,
  // where the action is left out.
  at::Tensor input(const at::Tensor& observation, const at::Tensor& action, const at::Tensor& starts) const;

  // Actions drawn from policies [n, A] on the CPU: [n] int64, or [n, A] fp32.
  at::Tensor sample(const at::Tensor& policy, at::Generator& random) const;
  // Logarithm of the probability (density) of actions [...] int64 or [..., A], and the entropy: [...].
  at::Tensor log_probability(const at::Tensor& policy, const at::Tensor& actions) const;
  at::Tensor entropy(const at::Tensor& policy) const;

  bool discrete() const { return environment_.discrete(); }

 private:
  using Mlp = std::vector<Linear>;
  // Layers in -> sizes..., initialised to orthogonal matrices times `gain`, without biases.
  Mlp mlp(const std::string& name, int64_t in, const std::vector<int64_t>& sizes, double gain);
  Linear dense(const std::string& name, int64_t in, int64_t out, double gain);
  Output heads(const at::Tensor& h) const;
  at::Tensor encode(const at::Tensor& x) const;

  EnvironmentShape environment_;
  int64_t inputs_, width_;
  Mlp encoder_, actor_, critic_;
  Linear policy_, value_;
  std::shared_ptr<Parameter> log_std_;  // [A] of continuous actions
  std::unique_ptr<LayerStack> memory_;  // null: none
};

}  // namespace weft::rl
