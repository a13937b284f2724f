#include "apps/rl/ppo.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>

namespace weft::rl {

void PpoOptions::fields(Fields& f) {
  f("lr", lr, "learning rate of Adam (eps 1e-5), constant", above(0));
  f("epochs", epochs, "times a rollout is learned from", at_least(1));
  f("minibatches", minibatches, "parts of a rollout, by games; one update each", at_least(1));
  f("gamma", gamma, "discount of rewards a step later", at_least(0), at_most(1));
  f("lambda", lambda, "discount of later temporal differences in the advantage", at_least(0), at_most(1));
  f("clip", clip, "c, range of the ratio and of the value's change", above(0));
  f("value_weight", value_weight, "w, weight of the critic's loss", at_least(0));
  f("entropy_weight", entropy_weight, "e, weight of the policy's entropy", at_least(0));
  f("max_norm", max_norm, "gradients longer than this are shortened; 0: never", at_least(0));
}

at::Tensor advantages(const at::Tensor& rewards, const at::Tensor& values, const at::Tensor& ended,
                      double gamma, double lambda) {
  const int64_t n = rewards.size(0), steps = rewards.size(1);
  invariant(values.size(0) == n && values.size(1) == steps + 1 && ended.sizes() == rewards.sizes(),
            "advantages of rewards {}, values {}, ends {}", rewards.sizes(), values.sizes(), ended.sizes());
  const auto r = rewards.contiguous(), v = values.contiguous(), e = ended.contiguous();
  auto result = at::empty({n, steps});
  const float* reward = r.const_data_ptr<float>();
  const float* value = v.const_data_ptr<float>();
  const bool* over = e.const_data_ptr<bool>();
  float* out = result.mutable_data_ptr<float>();
  for (int64_t i = 0; i < n; ++i) {
    double next = 0;  // A_{t+1}
    for (int64_t t = steps - 1; t >= 0; --t) {
      const int64_t at = i * steps + t;
      const double on = over[at] ? 0 : 1;
      const double v0 = static_cast<double>(value[i * (steps + 1) + t]);
      const double v1 = static_cast<double>(value[i * (steps + 1) + t + 1]);
      next = static_cast<double>(reward[at]) + gamma * v1 * on - v0 + gamma * lambda * on * next;
      out[at] = static_cast<float>(next);
    }
  }
  return result;
}

PpoLoss ppo_loss(Agent& agent, const Rollout& rollout, const at::Tensor& advantage,
                 const PpoOptions& options) {
  State state = rollout.carry;
  const auto out = agent.run(rollout.inputs, state, rollout.context());
  const auto log_ratio = agent.log_probability(out.policy, rollout.actions) - rollout.log_prob;
  const auto ratio = log_ratio.exp();
  const auto low = 1 - options.clip, high = 1 + options.clip;

  const auto scaled = (advantage - advantage.mean()) / (advantage.std(false) + 1e-8);
  const auto policy = -at::minimum(ratio * scaled, ratio.clamp(low, high) * scaled).mean();

  const auto before = rollout.values.slice(1, 0, rollout.steps());
  const auto target = advantage + before;
  const auto near = before + (out.value - before).clamp(-options.clip, options.clip);
  const auto value = 0.5 * at::maximum((out.value - target).square(), (near - target).square()).mean();

  const auto entropy = agent.entropy(out.policy).mean();
  PpoLoss loss;
  loss.total = policy + options.value_weight * value - options.entropy_weight * entropy;
  const auto off = (ratio.detach() - 1).abs();
  // One transfer for all numbers.
  const auto numbers = at::stack({policy.detach(), value.detach(), entropy.detach(), off.max(),
                                  (off > options.clip).to(at::kFloat).mean()})
                           .to(at::kCPU, at::kDouble);
  const double* number = numbers.const_data_ptr<double>();
  loss.policy = number[0];
  loss.value = number[1];
  loss.entropy = number[2];
  loss.ratio_error = number[3];
  loss.clipped = number[4];
  return loss;
}

PpoLearner::PpoLearner(Agent& agent, const PpoOptions& options, int64_t games, uint64_t seed)
    : agent_(agent), options_(options), seed_(seed), parameters_(agent.parameters()) {
  require(
      games % options.minibatches == 0,
      "ppo.minibatches is {}, which does not divide {} games (rollout.games): minibatches are sets of games",
      options.minibatches, games);
  auto adam = Node::map();
  adam.set("adamw.lr", fmt::format("{}", options.lr));
  adam.set("adamw.beta2", "0.999");
  adam.set("adamw.eps", "1e-5");
  adam.set("adamw.weight_decay", "0");
  optimizer_ = make_optimizer(adam, parameters_);
}

PpoLearner::Report PpoLearner::update(const Rollout& rollout, const std::function<bool()>& stop) {
  const int64_t games = rollout.games(), part = games / options_.minibatches;
  const auto device = parameters_.front().parameter->value.device();
  const auto advantage =
      advantages(rollout.rewards, rollout.values, rollout.ended, options_.gamma, options_.lambda).to(device);
  const auto whole = rollout.to(device);
  ExampleRandom random(seed_, Split::train, updates_);
  Report report;
  int64_t batches = 0;
  for (int64_t epoch = 0; epoch < options_.epochs && !report.stopped; ++epoch) {
    const auto order = at::tensor(random.permutation(games)).to(device);
    for (int64_t m = 0; m < options_.minibatches; ++m) {
      if (stop()) {
        report.stopped = true;
        break;
      }
      const auto rows = order.slice(0, m * part, (m + 1) * part);
      const auto loss = ppo_loss(agent_, whole.select(rows), advantage.index_select(0, rows), options_);
      require(std::isfinite(loss.value) && std::isfinite(loss.policy),
              "the loss is no longer finite after {} rollouts; try a smaller ppo.lr", updates_);
      for (const auto& [name, parameter] : parameters_) parameter->value.mutable_grad().reset();
      loss.total.backward();
      clip_gradients(parameters_, options_.max_norm);
      optimizer_->step(1);
      if (batches++ == 0) report.first_ratio_error = loss.ratio_error;
      report.policy += loss.policy;
      report.value += loss.value;
      report.entropy += loss.entropy;
      report.clipped += loss.clipped;
      report.tokens += part * rollout.steps();
    }
  }
  for (double* mean : {&report.policy, &report.value, &report.entropy, &report.clipped})
    *mean /= static_cast<double>(std::max<int64_t>(batches, 1));
  if (!report.stopped) ++updates_;
  return report;
}

}  // namespace weft::rl
