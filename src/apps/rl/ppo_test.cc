#include "apps/rl/ppo.h"

#include <gtest/gtest.h>

#include <ATen/core/grad_mode.h>

#include "base/scratch_folder.h"
#include "study/experiment.h"

namespace weft::rl {
namespace {

std::unique_ptr<Agent> make_agent(const std::string& memory, const EnvironmentShape& shape) {
  AgentOptions options;
  options.encoder = {24, 16};
  options.heads = {16};
  options.memory = Node::parse(memory, "test");
  auto agent = std::make_unique<Agent>(options, shape);
  agent->initialize(3);
  agent->requires_grad(true);
  return agent;
}

std::unique_ptr<Environments> games(const std::string& yaml, int64_t n, uint64_t seed = 1) {
  return make_environments(Node::parse(yaml, "test"), n, seed);
}

// Makes the policy far from uniform, so that log-probabilities have something to disagree about.
void sharpen(Agent& agent) {
  at::NoGradGuard no_grad;
  for (const auto& [name, parameter] : agent.parameters())
    if (name == "policy.weight") parameter->value.mul_(200);
}

TEST(Advantages, ByHand) {
  // gamma 0.5, lambda 0.5; the episode ends with step 1, so the value of step 2 must not leak into it.
  const auto rewards = at::tensor({1.0f, 2.0f, 3.0f, 4.0f}).view({1, 4});
  const auto values = at::tensor({10.0f, 20.0f, 30.0f, 40.0f, 50.0f}).view({1, 5});
  const auto ended = at::tensor({0, 1, 0, 0}).to(at::kBool).view({1, 4});
  // d3 = 4 + 25 - 40 = -11;  d2 = 3 + 20 - 30 = -7, A2 = -7 - 11 / 4;  d1 = 2 - 20;  d0 = 1 + 10 - 10, A0 = 1 - 18 / 4
  const auto expected = at::tensor({-3.5f, -18.0f, -9.75f, -11.0f}).view({1, 4});
  EXPECT_TRUE(at::allclose(advantages(rewards, values, ended, 0.5, 0.5), expected));
}

// With lambda 1 an advantage is the discounted sum of rewards to the end of the episode (or of the rollout,
// where the last value stands for the rest) less the value.
TEST(Advantages, LambdaOneIsReturnLessValue) {
  const int64_t n = 3, steps = 40;
  const auto rewards = at::randn({n, steps}), values = at::randn({n, steps + 1});
  const auto ended = at::rand({n, steps}) < 0.15;
  const auto result = advantages(rewards, values, ended, 0.9, 1.0);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t t = 0; t < steps; ++t) {
      double sum = 0, discount = 1;
      int64_t s = t;
      for (; s < steps; ++s) {
        sum += discount * rewards[i][s].item<double>();
        discount *= 0.9;
        if (ended[i][s].item<bool>()) break;
      }
      if (s == steps) sum += discount * values[i][steps].item<double>();
      EXPECT_NEAR(result[i][t].item<double>(), sum - values[i][t].item<double>(), 1e-5);
    }
}

const char* const kMemories[] = {
    "[{mixer: lstm}, {mixer: lstm, heads: 2}]",
    "[{mixer: mamba, states: 4, ffn: {gelu: 32}}, {mixer: mamba, states: 4}]",
    "[{repeat: 2, pattern: [{mixer: s5, states: 8}]}]",
    "[{mixer: gru}]",
    "[{mixer: gated_delta_net, heads: 2, head_dim: 8}]",
    "[{mixer: attention, heads: 2, rope: 10000}]",
    "[{ffn: {gelu: 32}}]",
    "[]",
};

// The best single test of a recurrent agent: what was chosen step by step has the same probability when the
// whole rollout is evaluated at once, with episodes that end within it and a second rollout that begins in
// the middle of one.
TEST(Ppo, RatioIsOneBeforeTheFirstUpdate) {
  for (const std::string memory : kMemories)
    for (const bool reset : {true, false}) {
      auto agent = make_agent(memory, games("{name: repeat_first, cards: 10}", 4)->shape());
      sharpen(*agent);
      Player player(*agent, games("{name: repeat_first, cards: 10}", 4), reset, 5, at::kCPU);
      for (const int64_t steps : {13, 25}) {
        const auto rollout = player.play(steps);
        ASSERT_TRUE(rollout.ended.any().item<bool>());
        ASSERT_EQ(rollout.starts.any().item<bool>(), reset);
        const auto advantage = advantages(rollout.rewards, rollout.values, rollout.ended, 0.99, 1.0);
        const auto loss = ppo_loss(*agent, rollout, advantage, {});
        EXPECT_LT(loss.ratio_error, 1e-5) << memory << " reset " << reset;
        // The same of some games.
        const auto rows = at::tensor({int64_t{2}, int64_t{0}});
        EXPECT_LT(ppo_loss(*agent, rollout.select(rows), advantage.index_select(0, rows), {}).ratio_error,
                  1e-5);
        // Values too: with V = V_old the loss of the critic is half the mean square of the advantage.
        EXPECT_NEAR(loss.value, 0.5 * advantage.square().mean().item<double>(), 1e-5) << memory;
      }
    }
}

// The test above must notice a reset in the wrong place: starts one step late give other probabilities.
TEST(Ppo, RatioSeesAResetThatIsLate) {
  auto agent = make_agent("[{mixer: lstm}]", games("{name: repeat_first, cards: 10}", 4)->shape());
  sharpen(*agent);
  Player player(*agent, games("{name: repeat_first, cards: 10}", 4), true, 5, at::kCPU);
  auto rollout = player.play(25);
  rollout.starts = rollout.starts.roll(1, 1);
  EXPECT_GT(ppo_loss(*agent, rollout, at::zeros({4, 25}), {}).ratio_error, 1e-3);
}

TEST(Ppo, ContinuousActions) {
  auto agent = make_agent("[{mixer: lstm}]", games("{name: pendulum, steps: 9}", 4)->shape());
  sharpen(*agent);
  Player player(*agent, games("{name: pendulum, steps: 9}", 4), true, 5, at::kCPU);
  const auto rollout = player.play(20);
  EXPECT_EQ(rollout.actions.sizes(), (std::vector<int64_t>{4, 20, 1}));
  const auto loss = ppo_loss(*agent, rollout, at::zeros({4, 20}), {});
  EXPECT_LT(loss.ratio_error, 1e-5);
  EXPECT_NEAR(loss.entropy, 0.5 * std::log(2 * 3.14159265358979 * 2.71828182845905), 1e-5);  // sigma = 1
}

TEST(Agent, InputsShowThePastActionExceptAtAStart) {
  auto agent = make_agent("[]", games("{name: repeat_first}", 1)->shape());
  const auto input = agent->input(at::tensor({0.0f, 1.0f, 0.0f, 0.0f}).repeat({2, 1}),
                                  at::tensor({int64_t{2}, int64_t{2}}), at::tensor({0, 1}).to(at::kBool));
  EXPECT_TRUE(input.equal(
      at::tensor({0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1}).view({2, 9}).to(at::kFloat)));
}

TEST(Agent, OrthogonalLayers) {
  auto agent = make_agent("[]", games("{name: repeat_first}", 1)->shape());
  for (const auto& [name, parameter] : agent->parameters()) {
    if (name != "encoder.0.weight" && name != "encoder.1.weight") continue;
    const auto w = parameter->value.detach().to(at::kDouble);  // [24, 9], [16, 24]
    const auto gram = w.size(0) < w.size(1) ? w.mm(w.t()) : w.t().mm(w);
    EXPECT_LT((gram - 2 * at::eye(gram.size(0), at::kDouble)).abs().max().item<double>(), 1e-5) << name;
  }
}

// The log-probabilities, entropy and gradient of a known case: one step, two actions.
TEST(Ppo, ClipStopsTheGradient) {
  auto agent = make_agent("[]", games("{name: higher_lower}", 2)->shape());
  Player player(*agent, games("{name: higher_lower}", 2), true, 5, at::kCPU);
  auto rollout = player.play(6);
  const auto advantage = at::randn({2, 6});
  const auto gradient = [&](const Rollout& r) {
    for (const auto& [name, parameter] : agent->parameters()) parameter->value.mutable_grad().reset();
    ppo_loss(*agent, r, advantage, {.value_weight = 0}).total.backward();
    double sum = 0;
    for (const auto& [name, parameter] : agent->parameters())
      if (name == "policy.weight") sum = parameter->value.grad().abs().sum().item<double>();
    return sum;
  };
  EXPECT_GT(gradient(rollout), 1e-4);
  // Old probabilities twice as small where the advantage is above the mean, twice as large below: all ratios
  // are out of range on the side where the clipped term is smaller, and nothing pulls any more.
  const auto sign = (advantage - advantage.mean()).sign();
  rollout.log_prob = rollout.log_prob - sign * std::log(2.0);
  EXPECT_EQ(gradient(rollout), 0);
}

TEST(Ppo, LearnsToRemember) {
  const std::string game = "{name: repeat_first, cards: 5}";
  auto agent = make_agent("[{mixer: lstm}]", games(game, 16)->shape());
  Player player(*agent, games(game, 16), true, 5, at::kCPU);
  PpoLearner learner(*agent, {.lr = 3e-3, .epochs = 4, .minibatches = 4}, 16, 1);
  const auto mean = [&] {
    double sum = 0;
    for (const double value : player.returns()) sum += value;
    return sum / static_cast<double>(player.returns().size());
  };
  player.play(32);
  EXPECT_LT(mean(), -0.2);
  for (int64_t i = 0; i < 30; ++i) learner.update(player.play(32));
  EXPECT_GT(mean(), 0.5);
}

TEST(PpoExperiment, RunsStopsAndGoesOn) {
  const auto arm = Node::parse(
      "{experiment: ppo, environment: {name: repeat_first, cards: 5}, total_steps: 640, rollout: {games: 4, "
      "steps: 32},"
      " agent: {encoder: [8], heads: [8], memory: [{mixer: lstm}]}, ppo: {epochs: 2, minibatches: 2, lr: "
      "0.001}}",
      "test");
  const ScratchFolder folder;
  ExperimentContext context;
  context.folder = folder.path();
  int64_t asked = 0;
  double share = 0;
  context.progress = [&](double done, const std::string&) { share = done; };
  context.stop = [&] { return ++asked == 10; };  // between two rollouts: four questions within each, then one
  const auto& entry = find_experiment(Node::scalar("ppo"));
  EXPECT_TRUE(entry.make(arm)->run(context).stopped);
  EXPECT_NEAR(share, 0.4, 1e-9);
  context.stop = [] { return false; };
  const auto outcome = entry.make(arm)->run(context);
  EXPECT_FALSE(outcome.stopped);
  EXPECT_EQ(share, 1);
  EXPECT_EQ(outcome.metrics.at("env_steps"), 640);
  EXPECT_LT(outcome.metrics.at("ratio_error"), 1e-5);
  EXPECT_GE(outcome.metrics.at("return"), -1);
  EXPECT_LE(outcome.metrics.at("return"), 1);
  EXPECT_GT(outcome.metrics.at("learner_tokens_per_second"), 0);
  // Done already: the same answer again.
  EXPECT_EQ(entry.make(arm)->run(context).metrics, outcome.metrics);
  auto other = arm;
  other.set("reset", "false");
  EXPECT_THROW(entry.make(other)->run(context), InputError);
  auto uneven = arm;
  uneven.set("ppo.minibatches", "3");
  EXPECT_THROW(entry.make(uneven)->run(context), InputError);
}

}  // namespace
}  // namespace weft::rl
