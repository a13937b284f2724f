// Swing a pendulum up and hold it, seeing its position only. POPGym, Morad et al. 2023, arXiv:2303.01859;
// dynamics as in Gymnasium's Pendulum-v1.
//   torque u in [-2, 2]; cost c = angle^2 + 0.1 turn^2 + 0.001 u^2, at most m = 16.2736044
//   each of the T steps earns (1 - 2 c / m) / T
#include <cmath>
#include <numbers>

#include "apps/rl/environments/environment.h"

namespace weft::rl {
namespace {

class Pendulum {
 public:
  struct Options {
    Difficulty difficulty;
    bool noisy = false, all = false;
    int64_t steps = 0;
    double noise = 0;
    void fields(Fields& f) {
      difficulty.fields(f);
      f("noisy", noisy, "noise of 0.1, 0.2, 0.3 by difficulty, in episodes of 200 steps");
      f("all", all, "shows the angular velocity too");
      f("steps", steps, "T, steps of an episode; 0: 200, 150, 100 by difficulty, 200 with noise",
        at_least(0));
      f("noise", noise, "standard deviation added to what is shown; 0: by difficulty when noisy",
        at_least(0));
    }
  };

  Pendulum(const Options& o, int64_t n)
      : features_(o.all ? 3 : 2),
        steps_(o.steps > 0 ? o.steps
               : o.noisy   ? 200
                           : o.difficulty.pick(200, 150, 100)),
        noise_(o.noise > 0 ? o.noise
               : o.noisy   ? o.difficulty.pick(0.1, 0.2, 0.3)
                           : 0.0),
        angle_(static_cast<size_t>(n)),
        turn_(static_cast<size_t>(n)),
        shown_(static_cast<size_t>(n * features_)),
        taken_(static_cast<size_t>(n)) {}

  EnvironmentShape shape() const { return {.observation = features_, .action_size = 1, .longest = steps_}; }

  void begin(int64_t i, ExampleRandom& random) {
    angle_[static_cast<size_t>(i)] = (2 * random.uniform() - 1) * std::numbers::pi;
    turn_[static_cast<size_t>(i)] = 2 * random.uniform() - 1;
    taken_[static_cast<size_t>(i)] = 0;
    look(i, random);
  }

  Reward act(int64_t i, const float* action, ExampleRandom& random) {
    constexpr double kGravity = 10, kTime = 0.05, kFastest = 8, kTorque = 2, kMostCost = 16.2736044;
    double &angle = angle_[static_cast<size_t>(i)], &turn = turn_[static_cast<size_t>(i)];
    const double torque = std::clamp(static_cast<double>(*action), -kTorque, kTorque);
    const double off = std::remainder(angle, 2 * std::numbers::pi);
    const double cost = off * off + 0.1 * turn * turn + 0.001 * torque * torque;
    // A rod of 1 kg and 1 m: 3 g / (2 l) sin(angle) + 3 / (m l^2) u.
    turn = std::clamp(turn + (1.5 * kGravity * std::sin(angle) + 3 * torque) * kTime, -kFastest, kFastest);
    angle += turn * kTime;
    look(i, random);
    return {(1 - 2 * cost / kMostCost) / static_cast<double>(steps_),
            ++taken_[static_cast<size_t>(i)] == steps_};
  }

  void observe(int64_t i, float* out) const { std::copy_n(shown_.begin() + i * features_, features_, out); }

 private:
  void look(int64_t i, ExampleRandom& random) {
    const double angle = angle_[static_cast<size_t>(i)];
    const double values[] = {std::cos(angle), std::sin(angle), turn_[static_cast<size_t>(i)]};
    for (int64_t f = 0; f < features_; ++f) {
      const double bound = f < 2 ? 1.0 : HUGE_VAL;
      const double seen =
          noise_ > 0 ? std::clamp(values[f] + noise_ * random.normal(), -bound, bound) : values[f];
      shown_[static_cast<size_t>(i * features_ + f)] = static_cast<float>(seen);
    }
  }

  int64_t features_, steps_;
  double noise_;
  std::vector<double> angle_, turn_;
  std::vector<float> shown_;  // [n, features]
  std::vector<int64_t> taken_;
};
const RegisterEnvironment<Pendulum> register_pendulum{
    "pendulum", "swing a pendulum up, seeing its position only (continuous actions)"};

}  // namespace
}  // namespace weft::rl
