// Proximal policy optimisation with a memory. Schulman et al. 2017, arXiv:1707.06347; with recurrent memories
// that start from the rollout's own carry, as in Lu et al. 2023, arXiv:2303.03982.
//   ratio = exp(log p - log p_old)
//   loss = -mean min(ratio A, clip(ratio, 1 - c, 1 + c) A)
//          + w mean max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2) / 2  -  e mean entropy
// Minibatches are sets of games with all their steps: sequences are not cut, and every epoch starts them from
// the memory that the player had, stale as it becomes.
#pragma once

#include <memory>
#include <vector>

#include "apps/rl/rollout.h"
#include "train/optimizers/optimizer.h"

namespace weft::rl {

struct PpoOptions {
  double lr = 5e-5;
  int64_t epochs = 30;
  int64_t minibatches = 8;
  double gamma = 0.99;
  double lambda = 1.0;
  double clip = 0.2;
  double value_weight = 1.0;
  double entropy_weight = 0.0;
  double max_norm = 0.5;
  void fields(Fields& f);
};

// Generalised advantage estimates, Schulman et al. 2015, arXiv:1506.02438.
//   d_t = r_t + gamma V_{t+1} (1 - ended_t) - V_t;   A_t = d_t + gamma lambda (1 - ended_t) A_{t+1}
// rewards [n, T], values [n, T + 1], ended [n, T] bool: the episode ended with the action of step t. On the
// CPU; returns [n, T] fp32.
at::Tensor advantages(const at::Tensor& rewards, const at::Tensor& values, const at::Tensor& ended,
                      double gamma, double lambda);

struct PpoLoss {
  at::Tensor total;  // [] with its history
  double policy = 0, value = 0, entropy = 0;
  double ratio_error = 0;  // largest |ratio - 1|: 0 but for rounding before the first update
  double clipped = 0;      // share of steps whose ratio left the range
};

// Of some games (or all) of a rollout on the agent's device; `advantage` [n, T] unnormalised.
PpoLoss ppo_loss(Agent& agent, const Rollout& rollout, const at::Tensor& advantage,
                 const PpoOptions& options);

class PpoLearner {
 public:
  // InputError when `games` do not fall into the minibatches evenly.
  PpoLearner(Agent& agent, const PpoOptions& options, int64_t games, uint64_t seed);

  struct Report {
    double policy = 0, value = 0, entropy = 0, clipped = 0;  // means over the minibatches
    double first_ratio_error = 0;  // of the first minibatch: how far learning and acting disagree
    int64_t tokens = 0;            // steps that were learned from, each epoch counted
    bool stopped = false;          // by `stop`, between minibatches
  };
  Report update(
      const Rollout& rollout, const std::function<bool()>& stop = [] { return false; });

  Optimizer& optimizer() { return *optimizer_; }
  int64_t updates() const { return updates_; }
  void set_updates(int64_t updates) { updates_ = updates; }

 private:
  Agent& agent_;
  PpoOptions options_;
  uint64_t seed_;
  std::vector<NamedParameter> parameters_;
  std::unique_ptr<Optimizer> optimizer_;
  int64_t updates_ = 0;  // rollouts learned from; decides the order of games
};

}  // namespace weft::rl
