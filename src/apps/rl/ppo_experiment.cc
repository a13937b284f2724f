// The experiment `ppo`: an agent with a memory learns a game. Metrics:
//   return         mean over the last episodes that ended (at most 256)
//   best_return    the best such mean after any rollout, once 64 episodes have ended
//   env_steps, parameters, seconds (of playing and learning, over all runs)
//   ratio_error    largest |ratio - 1| before a rollout's first update: acting against learning
//   env_steps_per_second       while acting, the agent's own time included
//   learner_tokens_per_second  steps a second while learning, every epoch counted
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <numeric>

#include "apps/rl/ppo.h"
#include "study/experiment.h"

namespace weft::rl {
namespace {

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

struct RolloutOptions {
  int64_t games = 64, steps = 1024;
  void fields(Fields& f) {
    f("games", games, "n, played at once", at_least(1));
    f("steps", steps, "T, of each game between two updates", at_least(1));
  }
};

class Ppo final : public Experiment {
 public:
  struct Options {
    Node environment, agent, rollout, ppo;
    bool reset = true;
    int64_t total_steps = 15'000'000;
    double save_every_s = 60;
    void fields(Fields& f) {
      f("environment", environment, "the game, {name: ..., difficulty: ...}");
      f("agent", agent, "encoder, memory, heads, norm");
      f("rollout", rollout, "games, steps");
      f("ppo", ppo, "lr, epochs, minibatches, gamma, lambda, clip, ...");
      f("reset", reset, "the memory is told where episodes begin; false: an ablation");
      f("total_steps", total_steps, "steps of all games together", at_least(1));
      f("save_every_s", save_every_s, "seconds between checkpoints", above(0));
    }
  };

  explicit Ppo(const Options& options)
      : o_(options),
        agent_options_(part<AgentOptions>(options.agent, "agent")),
        rollout_(part<RolloutOptions>(options.rollout, "rollout")),
        ppo_(part<PpoOptions>(options.ppo, "ppo")) {}

  Outcome run(const ExperimentContext& context) override;

 private:
  template <class T>
  static T part(const Node& node, const char* name) {
    return node.is_null() ? T() : read_options<T>(node, name);
  }

  // What a checkpoint holds beside weights and moments.
  struct Counts {
    double rollouts = 0, steps = 0, acting = 0, learning = 0, tokens = 0, best = -HUGE_VAL, ratio_error = 0;
    double recent = 0;
  };

  void save(const std::string& path, const Agent& agent, const Optimizer& optimizer, const Counts& c) const;
  bool load(const std::string& path, Agent& agent, Optimizer& optimizer, Counts& c) const;
  std::string identity() const;

  Options o_;
  AgentOptions agent_options_;
  RolloutOptions rollout_;
  PpoOptions ppo_;
};

// A checkpoint of another configuration is not this experiment's.
std::string Ppo::identity() const {
  auto node = write_options(o_);
  node.erase("total_steps");
  node.erase("save_every_s");
  return node.dump();
}

template <class C>
std::vector<std::pair<const char*, double*>> entries(C& c) {
  return {
      {"rollouts", &c.rollouts}, {"steps", &c.steps}, {"acting", &c.acting}, {"learning", &c.learning},
      {"tokens", &c.tokens},     {"best", &c.best},   {"recent", &c.recent}, {"ratio_error", &c.ratio_error}};
}

void Ppo::save(const std::string& path, const Agent& agent, const Optimizer& optimizer,
               const Counts& c) const {
  auto tensors = optimizer.state();
  for (const auto& [name, parameter] : agent.parameters())
    tensors.emplace_back("agent." + name, parameter->value);
  Counts copy = c;
  for (const auto& [name, value] : entries(copy))
    tensors.emplace_back("count." + std::string(name), at::full({1}, *value, at::kDouble));
  write_safetensors(path, tensors, {{"configuration", identity()}});
}

bool Ppo::load(const std::string& path, Agent& agent, Optimizer& optimizer, Counts& c) const {
  if (!std::filesystem::exists(path)) return false;
  const SafeTensors file(path);
  const auto found = file.metadata().find("configuration");
  require(found != file.metadata().end() && found->second == identity(),
          "{}: this checkpoint is of another configuration; remove it to begin anew", path);
  at::NoGradGuard no_grad;
  for (const auto& [name, parameter] : agent.parameters()) parameter->value.copy_(file.load("agent." + name));
  optimizer.load(file);
  for (const auto& [name, value] : entries(c))
    *value = file.load("count." + std::string(name)).item<double>();
  return true;
}

Outcome Ppo::run(const ExperimentContext& context) {
  require(!o_.environment.is_null(), "the experiment ppo needs environment: {{name: ...}}; known: {}",
          fmt::join(environment_names(), ", "));
  const auto path = context.folder + "/checkpoint.safetensors";
  Agent agent(agent_options_, make_environments(o_.environment, 1, 0)->shape());
  agent.initialize(context.seed);
  agent.to(context.device);
  agent.requires_grad(true);
  PpoLearner learner(agent, ppo_, rollout_.games, context.seed);
  Counts c;
  load(path, agent, learner.optimizer(), c);
  learner.set_updates(static_cast<int64_t>(c.rollouts));
  // After a stop the games begin anew, with other cards than before.
  const uint64_t seed = context.seed * 1'000'003 + static_cast<uint64_t>(c.rollouts);
  Player player(agent, make_environments(o_.environment, rollout_.games, seed), o_.reset, seed,
                context.device);

  Outcome outcome;
  const auto per_rollout = static_cast<double>(rollout_.games * rollout_.steps);
  const auto total = static_cast<double>(o_.total_steps);
  auto saved = std::chrono::steady_clock::now();
  while (c.steps < total) {
    auto begin = std::chrono::steady_clock::now();
    const auto rollout = player.play(rollout_.steps);
    c.acting += seconds_since(begin);
    begin = std::chrono::steady_clock::now();
    const auto report = learner.update(rollout, context.stop);
    if (report.stopped) {
      // The half-learned rollout is dropped: the last checkpoint stands, or none.
      outcome.stopped = true;
      return outcome;
    }
    c.learning += seconds_since(begin);
    c.tokens += static_cast<double>(report.tokens);
    c.ratio_error = std::max(c.ratio_error, report.first_ratio_error);
    c.rollouts += 1;
    c.steps += per_rollout;
    const auto& returns = player.returns();
    if (!returns.empty())
      c.recent = std::accumulate(returns.begin(), returns.end(), 0.0) / static_cast<double>(returns.size());
    if (player.episodes() >= 64) c.best = std::max(c.best, c.recent);
    context.progress(std::min(1.0, c.steps / total), fmt::format("return {:.3f}", c.recent));
    const bool stop = c.steps < total && context.stop();
    if (stop || c.steps >= total || seconds_since(saved) >= o_.save_every_s) {
      save(path, agent, learner.optimizer(), c);
      saved = std::chrono::steady_clock::now();
    }
    if (stop) {
      outcome.stopped = true;
      return outcome;
    }
  }
  outcome.metrics = {{"return", c.recent},
                     {"best_return", std::max(c.best, c.recent)},
                     {"env_steps", c.steps},
                     {"parameters", static_cast<double>(agent.parameter_count())},
                     {"seconds", c.acting + c.learning},
                     {"ratio_error", c.ratio_error},
                     {"env_steps_per_second", c.steps / c.acting},
                     {"learner_tokens_per_second", c.tokens / c.learning}};
  return outcome;
}

const RegisterExperiment<Ppo> register_ppo{
    "ppo", "an agent with a memory learns a game by proximal policy optimisation"};

}  // namespace
}  // namespace weft::rl
