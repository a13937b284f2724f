// Balance a pole on a cart while part of the state is hidden or noisy. POPGym, Morad et al. 2023,
// arXiv:2303.01859 (its position-only, velocity-only and noisy cart poles).
//   every step earns 1 / T; the episode ends after T steps, or when the pole falls or the cart leaves the track
// Noise is added to what is shown, which is then clipped to twice the bounds.
#include "apps/rl/environments/cart.h"
#include "apps/rl/environments/environment.h"

namespace weft::rl {
namespace {

class CartPole {
 public:
  struct Options {
    Difficulty difficulty;
    std::string observe = "positions";
    bool noisy = false;
    int64_t steps = 0;
    double noise = 0;
    void fields(Fields& f) {
      difficulty.fields(f);
      f("observe", observe, "what is shown: positions, velocities or all",
        one_of({"positions", "velocities", "all"}));
      f("noisy", noisy, "noise of 0.1, 0.2, 0.3 by difficulty, in episodes of 200 steps");
      f("steps", steps, "T, steps of an episode; 0: 200, 400, 600 by difficulty, 200 with noise",
        at_least(0));
      f("noise", noise, "standard deviation added to what is shown; 0: by difficulty when noisy",
        at_least(0));
    }
  };

  CartPole(const Options& o, int64_t n)
      : positions_(o.observe != "velocities"),
        velocities_(o.observe != "positions"),
        steps_(o.steps > 0 ? o.steps
               : o.noisy   ? 200
                           : o.difficulty.pick(200, 400, 600)),
        noise_(o.noise > 0 ? o.noise
               : o.noisy   ? o.difficulty.pick(0.1, 0.2, 0.3)
                           : 0.0),
        carts_(static_cast<size_t>(n)),
        shown_(static_cast<size_t>(n * features())),
        taken_(static_cast<size_t>(n)) {}

  // x, angle, then speed, turn. Actions: 0 left, 1 right.
  EnvironmentShape shape() const { return {.observation = features(), .actions = 2, .longest = steps_}; }

  void begin(int64_t i, ExampleRandom& random) {
    carts_[static_cast<size_t>(i)] = Cart::random(random);
    taken_[static_cast<size_t>(i)] = 0;
    look(i, random);
  }

  Reward act(int64_t i, int64_t action, ExampleRandom& random) {
    auto& cart = carts_[static_cast<size_t>(i)];
    cart.push(action == 1);
    look(i, random);
    return {1.0 / static_cast<double>(steps_), cart.fallen() || ++taken_[static_cast<size_t>(i)] == steps_};
  }

  void observe(int64_t i, float* out) const { std::copy_n(shown_.begin() + i * features(), features(), out); }

 private:
  int64_t features() const { return (positions_ ? 2 : 0) + (velocities_ ? 2 : 0); }

  void look(int64_t i, ExampleRandom& random) {
    const auto& cart = carts_[static_cast<size_t>(i)];
    float* out = &shown_[static_cast<size_t>(i * features())];
    const auto show = [&](double value, double bound) {
      if (noise_ > 0) value = std::clamp(value + noise_ * random.normal(), -bound, bound);
      *out++ = static_cast<float>(value);
    };
    if (positions_) {
      show(cart.x, 2 * Cart::kTrack);
      show(cart.angle, 2 * Cart::kLean);
    }
    if (velocities_) {
      show(cart.speed, HUGE_VAL);
      show(cart.turn, HUGE_VAL);
    }
  }

  bool positions_, velocities_;
  int64_t steps_;
  double noise_;
  std::vector<Cart> carts_;
  std::vector<float> shown_;  // [n, features]
  std::vector<int64_t> taken_;
};
const RegisterEnvironment<CartPole> register_cartpole{
    "cartpole", "balance a pole without seeing velocities, or through noise (memory as an observer)"};

}  // namespace
}  // namespace weft::rl
