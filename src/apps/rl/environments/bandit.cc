// Slot machines whose odds are drawn anew for each episode. POPGym, Morad et al. 2023, arXiv:2303.01859.
//   arm a pays with probability p_a ~ U(0, 1); each of the T pulls earns +1 / T or -1 / T
// The observation is whether the last pull paid. Random pulls earn 2 mean(p) - 1, about 0.
#include "apps/rl/environments/environment.h"

namespace weft::rl {
namespace {

class Bandit {
 public:
  struct Options {
    Difficulty difficulty;
    int64_t arms = 0, steps = 0;
    void fields(Fields& f) {
      difficulty.fields(f);
      f("arms", arms, "slot machines; 0: 10, 20, 30 by difficulty", at_least(0));
      f("steps", steps, "T, pulls of an episode; 0: 200, 400, 600 by difficulty", at_least(0));
    }
  };

  Bandit(const Options& o, int64_t n)
      : arms_(o.arms > 0 ? o.arms : o.difficulty.pick(10, 20, 30)),
        steps_(o.steps > 0 ? o.steps : o.difficulty.pick(200, 400, 600)),
        odds_(static_cast<size_t>(n * arms_)),
        pulls_(static_cast<size_t>(n)),
        paid_(static_cast<size_t>(n)) {}

  // Features: did not pay (also before the first pull), paid.
  EnvironmentShape shape() const { return {.observation = 2, .actions = arms_, .longest = steps_}; }

  void begin(int64_t i, ExampleRandom& random) {
    for (int64_t a = 0; a < arms_; ++a) odds_[static_cast<size_t>(i * arms_ + a)] = random.uniform();
    pulls_[static_cast<size_t>(i)] = 0;
    paid_[static_cast<size_t>(i)] = 0;
  }

  Reward act(int64_t i, int64_t action, ExampleRandom& random) {
    const bool paid = random.uniform() < odds_[static_cast<size_t>(i * arms_ + action)];
    paid_[static_cast<size_t>(i)] = paid;
    const double unit = 1.0 / static_cast<double>(steps_);
    return {paid ? unit : -unit, ++pulls_[static_cast<size_t>(i)] == steps_};
  }

  void observe(int64_t i, float* out) const { out[paid_[static_cast<size_t>(i)]] = 1; }

 private:
  int64_t arms_, steps_;
  std::vector<double> odds_;  // [n, arms]
  std::vector<int64_t> pulls_;
  std::vector<uint8_t> paid_;
};
const RegisterEnvironment<Bandit> register_bandit{
    "bandit", "pull the arm that pays best, odds change with each episode (exploration and statistics)"};

}  // namespace
}  // namespace weft::rl
