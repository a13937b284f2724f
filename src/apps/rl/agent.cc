#include "apps/rl/agent.h"

#include <ATen/core/grad_mode.h>

#include <cmath>
#include <numbers>

namespace weft::rl {
namespace {

constexpr double kSlope = 0.01;  // of the leaky ReLU

// Rows (or columns, whichever are fewer) of length `gain` at right angles, uniform over all such matrices.
Init orthogonal(double gain) {
  return [gain](at::Tensor& value, at::Generator& random) {
    const bool wide = value.size(0) < value.size(1);
    auto normal = at::empty(value.sizes(), at::kDouble).normal_(0, 1, random);
    auto [q, r] = at::linalg_qr(wide ? normal.t() : normal);
    q = q * r.diagonal().sign();  // without this the factorisation's signs would show
    value.copy_((wide ? q.t() : q) * gain);
  };
}

at::Tensor leaky(const at::Tensor& x, const std::vector<Linear>& layers) {
  auto y = x;
  for (const auto& layer : layers) y = at::leaky_relu(layer(y), kSlope);
  return y;
}

}  // namespace

void AgentOptions::fields(Fields& f) {
  f("encoder", encoder, "widths of the layers before the memory; the last is the width of the memory");
  f("heads", heads, "widths of the hidden layers of actor and critic");
  f("norm", norm, "norm of the memory's layers, where they do not say otherwise",
    one_of({"rms", "layer", "none"}));
  f("memory", memory, "list of layers, [{mixer: ...}, ...]; empty: none");
}

Agent::Agent(const AgentOptions& options, const EnvironmentShape& environment)
    : environment_(environment),
      inputs_(environment.observation +
              (environment.discrete() ? environment.actions : environment.action_size) + 1) {
  require(!options.encoder.empty(), "agent.encoder is empty; it needs at least the width of the memory");
  for (const auto* sizes : {&options.encoder, &options.heads})
    for (const int64_t size : *sizes) require(size >= 1, "agent: a layer of width {}", size);
  width_ = options.encoder.back();
  encoder_ = mlp("encoder", inputs_, options.encoder, std::numbers::sqrt2);
  if (options.memory.is_list() && !options.memory.items().empty()) {
    memory_ = std::make_unique<LayerStack>(options.memory, LayerOptions{.norm = options.norm}, width_);
    require(memory_->causal(), "{}: the memory of an agent must not look ahead", options.memory.where());
    add_child("memory", *memory_);
  } else {
    require(options.memory.is_null() || options.memory.is_list(), "{}: expected a list of layers",
            options.memory.where());
  }
  const int64_t last = options.heads.empty() ? width_ : options.heads.back();
  actor_ = mlp("actor", width_, options.heads, 2);
  policy_ = dense("policy", last, discrete() ? environment.actions : environment.action_size, 0.01);
  critic_ = mlp("critic", width_, options.heads, 2);
  value_ = dense("value", last, 1, 1);
  if (!discrete()) log_std_ = vector_parameter("log_std", {environment.action_size}, init::constant(0));
}

Linear Agent::dense(const std::string& name, int64_t in, int64_t out, double gain) {
  auto weight = parameter(name + ".weight", {out, in}, orthogonal(gain));
  auto bias = parameter(name + ".bias", {out}, init::constant(0), {.role = ParameterRules::Role::vector});
  return {weight, bias};
}

Agent::Mlp Agent::mlp(const std::string& name, int64_t in, const std::vector<int64_t>& sizes, double gain) {
  Mlp layers;
  for (const int64_t size : sizes) {
    layers.push_back(dense(name + "." + std::to_string(layers.size()), in, size, gain));
    in = size;
  }
  return layers;
}

at::Tensor Agent::encode(const at::Tensor& x) const { return leaky(x, encoder_); }

Agent::Output Agent::heads(const at::Tensor& h) const {
  return {policy_(leaky(h, actor_)), value_(leaky(h, critic_)).squeeze(-1)};
}

Agent::Output Agent::run(const at::Tensor& x, State& state, const Context& context) {
  const auto u = encode(x);
  return heads(memory_ ? memory_->run(u, state, context) : u);
}

Agent::Output Agent::step(const at::Tensor& x, State& state, const Context& context) {
  at::NoGradGuard no_grad;
  const auto u = encode(x);
  return heads(memory_ ? memory_->step(u, state, context) : u);
}

State Agent::initial_state(int64_t batch, const at::TensorOptions& options) const {
  return memory_ ? memory_->initial_state(batch, options) : State();
}

at::Tensor Agent::input(const at::Tensor& observation, const at::Tensor& action,
                        const at::Tensor& starts) const {
  const auto start = starts.unsqueeze(-1).to(at::kFloat);
  const auto shown = discrete() ? at::one_hot(action, environment_.actions).to(at::kFloat) : action;
  return at::cat({observation, shown * (1 - start), start}, -1);
}

at::Tensor Agent::sample(const at::Tensor& policy, at::Generator& random) const {
  at::NoGradGuard no_grad;
  if (discrete()) return at::multinomial(at::softmax(policy, -1), 1, false, random).squeeze(-1);
  return policy + at::empty_like(policy).normal_(0, 1, random) * log_std_->value.to(at::kCPU).exp();
}

at::Tensor Agent::log_probability(const at::Tensor& policy, const at::Tensor& actions) const {
  if (discrete()) return at::log_softmax(policy, -1).gather(-1, actions.unsqueeze(-1)).squeeze(-1);
  const auto off = (actions - policy) * (-log_std_->value).exp();
  return (-0.5 * off.square() - log_std_->value - 0.5 * std::log(2 * std::numbers::pi)).sum(-1);
}

at::Tensor Agent::entropy(const at::Tensor& policy) const {
  if (!discrete())
    return (log_std_->value + 0.5 * std::log(2 * std::numbers::pi * std::numbers::e))
        .sum()
        .expand(policy.sizes().slice(0, static_cast<size_t>(policy.dim() - 1)));
  const auto log_p = at::log_softmax(policy, -1);
  return -(log_p.exp() * log_p).sum(-1);
}

}  // namespace weft::rl
