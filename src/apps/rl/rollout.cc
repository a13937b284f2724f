#include "apps/rl/rollout.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

namespace weft::rl {
namespace {

constexpr size_t kKept = 256;

// The layers of one step of a few games are too small to be shared by threads: with two the steps took 1.6
// times as long as with one (16 games, width 64).
class OneThread {
 public:
  explicit OneThread(bool on) : before_(at::get_num_threads()), on_(on && before_ > 1) {
    if (on_) at::set_num_threads(1);
  }
  ~OneThread() {
    if (on_) at::set_num_threads(before_);
  }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
  bool on_;
};

template <class F>
Rollout map_rollout(const Rollout& from, F&& change, const State& carry) {
  Rollout to = from;
  for (auto* tensor :
       {&to.inputs, &to.starts, &to.actions, &to.log_prob, &to.values, &to.rewards, &to.ended, &to.position})
    *tensor = change(*tensor);
  to.carry = carry;
  return to;
}

}  // namespace

Rollout Rollout::to(at::Device device) const {
  return map_rollout(
      *this, [&](const at::Tensor& x) { return x.to(device); }, carry);
}

Rollout Rollout::select(const at::Tensor& games) const {
  return map_rollout(
      *this, [&](const at::Tensor& x) { return x.index_select(0, games); }, carry.select(games));
}

Context Rollout::context() const {
  auto context = Context::at_positions(position, steps(), starts.any().item<bool>() ? starts : at::Tensor());
  context.training = true;
  context.keep_state = false;
  return context;
}

Player::Player(Agent& agent, std::unique_ptr<Environments> games, bool reset, uint64_t seed,
               at::Device device)
    : agent_(agent),
      games_(std::move(games)),
      reset_(reset),
      device_(device),
      random_(at::make_generator<at::CPUGeneratorImpl>(seed)),
      fresh_(agent.initial_state(games_->count(), at::TensorOptions(at::kFloat).device(device))),
      state_(fresh_),
      position_(at::zeros({games_->count()}, at::kLong)),
      observation_(at::empty({games_->count(), games_->shape().observation})),
      starts_(at::ones({games_->count()}, at::kBool)),
      action_(games_->shape().discrete() ? at::zeros({games_->count()}, at::kLong)
                                         : at::zeros({games_->count(), games_->shape().action_size})),
      sums_(static_cast<size_t>(games_->count()), 0) {
  games_->reset(observation_);
}

// A step has no Context::starts: a mixer's step form need not look at them, and the memory of few games is
// replaced.
void Player::forget() {
  if (!reset_ || !starts_.any().item<bool>()) return;
  const auto rows = starts_.nonzero().flatten();
  state_.assign(rows.to(device_), fresh_.select(rows.to(device_)));
  position_ = at::where(starts_, at::zeros_like(position_), position_);
}

Player::Choice Player::choose(const at::Tensor& input) {
  const auto out =
      agent_.step(input.to(device_).unsqueeze(1), state_, Context::at_positions(position_.to(device_), 1));
  const auto policy = out.policy.squeeze(1).to(at::kCPU);
  const auto actions = agent_.sample(policy, random_);
  // On the device, where the parameters of continuous policies are.
  const auto log_prob = agent_.log_probability(out.policy.squeeze(1), actions.to(device_)).to(at::kCPU);
  return {actions, log_prob, out.value.squeeze(1).to(at::kCPU)};
}

Rollout Player::play(int64_t steps) {
  at::NoGradGuard no_grad;
  const int64_t n = games();
  const OneThread alone(device_.is_cpu() && n <= 32);
  const auto by_time = [&](std::vector<int64_t> rest, at::ScalarType type) {
    rest.insert(rest.begin(), {steps, n});
    return at::empty(rest, type);
  };
  const bool discrete = agent_.discrete();
  Rollout r{.inputs = by_time({agent_.inputs()}, at::kFloat),
            .starts = by_time({}, at::kBool),
            .actions = discrete ? by_time({}, at::kLong) : by_time({action_.size(1)}, at::kFloat),
            .log_prob = by_time({}, at::kFloat),
            .values = at::empty({steps + 1, n}),
            .rewards = by_time({}, at::kFloat),
            .ended = by_time({}, at::kBool)};
  for (int64_t t = 0; t < steps; ++t) {
    // Before the first step the memory forgets too: then the carry is what that step continues, whether or
    // not the learner is told of a start there.
    forget();
    if (t == 0) {
      r.carry = state_;
      r.position = position_.clone();
    }
    r.inputs[t].copy_(agent_.input(observation_, action_, starts_));
    r.starts[t].copy_(reset_ ? starts_ : at::zeros_like(starts_));
    const auto choice = choose(r.inputs[t]);
    r.actions[t].copy_(choice.actions);
    r.log_prob[t].copy_(choice.log_prob);
    r.values[t].copy_(choice.value);
    games_->step(choice.actions.contiguous(), observation_, r.rewards[t], r.ended[t]);
    count_episodes(r.rewards[t], r.ended[t]);
    action_ = choice.actions;
    starts_ = r.ended[t].clone();
    position_ = position_ + 1;
  }
  // The value of what comes after, without moving the memory on.
  forget();
  State scratch = state_;
  const auto after = agent_.step(agent_.input(observation_, action_, starts_).to(device_).unsqueeze(1),
                                 scratch, Context::at_positions(position_.to(device_), 1));
  r.values[steps].copy_(after.value.squeeze(1));
  for (auto* tensor : {&r.inputs, &r.starts, &r.actions, &r.log_prob, &r.values, &r.rewards, &r.ended})
    *tensor = tensor->transpose(0, 1).contiguous();
  return r;
}

void Player::count_episodes(const at::Tensor& rewards, const at::Tensor& ended) {
  const float* earned = rewards.const_data_ptr<float>();
  const bool* over = ended.const_data_ptr<bool>();
  for (size_t i = 0; i < sums_.size(); ++i) {
    sums_[i] += static_cast<double>(earned[i]);
    if (!over[i]) continue;
    returns_.push_back(sums_[i]);
    if (returns_.size() > kKept) returns_.pop_front();
    sums_[i] = 0;
    ++episodes_;
  }
}

}  // namespace weft::rl
