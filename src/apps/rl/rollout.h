// Playing: an agent acts in n games for T steps. A rollout begins and ends in the middle of episodes; what the
// memory held when it began is kept with it, for the learner to start from.
//
// n games, T steps, I input features, A numbers of a continuous action.
#pragma once

#include <deque>
#include <memory>

#include "apps/rl/agent.h"

namespace weft::rl {

struct Rollout {
  at::Tensor inputs;    // [n, T, I]
  at::Tensor starts;    // [n, T] bool: an episode began at this step, as the memory was told
  at::Tensor actions;   // [n, T] int64, or [n, T, A]
  at::Tensor log_prob;  // [n, T] of the actions when they were chosen
  at::Tensor values;    // [n, T + 1] as the critic saw them; the last is of the state after the rollout
  at::Tensor rewards;   // [n, T]
  at::Tensor ended;     // [n, T] bool: the episode ended with this step's action
  State carry;          // of the memory before the first step
  at::Tensor position;  // [n] int64 place of the first step in its episode
  int64_t steps() const { return rewards.size(1); }
  int64_t games() const { return rewards.size(0); }
  Rollout to(at::Device device) const;
  // Some of the games.
  Rollout select(const at::Tensor& games) const;
  // Of the T steps as one call of the agent.
  Context context() const;
};

class Player {
 public:
  // `reset` false: the memory is never told that an episode began (an ablation).
  Player(Agent& agent, std::unique_ptr<Environments> games, bool reset, uint64_t seed, at::Device device);

  // Plays `steps` steps in each game. The weights must not change in between.
  Rollout play(int64_t steps);

  // Sums of rewards of the last episodes that ended, oldest first, at most `kept` (256).
  const std::deque<double>& returns() const { return returns_; }
  int64_t episodes() const { return episodes_; }  // ended so far
  int64_t games() const { return games_->count(); }

 private:
  struct Choice {
    at::Tensor actions, log_prob, value;  // [n] on the CPU
  };
  void forget();  // resets the memory of games whose episode begins
  Choice choose(const at::Tensor& input);
  void count_episodes(const at::Tensor& rewards, const at::Tensor& ended);

  Agent& agent_;
  std::unique_ptr<Environments> games_;
  bool reset_;
  at::Device device_;
  at::Generator random_;
  State fresh_, state_;
  at::Tensor position_;                       // [n] of the next step in its episode
  at::Tensor observation_, starts_, action_;  // what the next step sees; action_ is the one before
  std::vector<double> sums_;                  // of each game's present episode
  std::deque<double> returns_;
  int64_t episodes_ = 0;
};

}  // namespace weft::rl
