// Cart pole as a problem of learning within an episode: several trials from the same start, the whole state
// seen through a random orthogonal map that is drawn anew for every episode. Lu et al. 2023,
// arXiv:2303.03982.
//   every step earns 1 / (trials T); a trial ends after T steps or when the pole falls
// The map has the gain sqrt(2). The observation is the mapped state and the sign that a trial has just ended;
// the last action and the sign of a new episode are added for every environment alike. (popjaxrl's rewards
// are not divided by the number of trials.)
#include <array>
#include <cmath>

#include "apps/rl/environments/cart.h"
#include "apps/rl/environments/environment.h"

namespace weft::rl {
namespace {

class MetaCartPole {
 public:
  struct Options {
    int64_t trials = 16, steps = 200;
    void fields(Fields& f) {
      f("trials", trials, "trials of an episode", at_least(1));
      f("steps", steps, "T, steps of a trial at most", at_least(1));
    }
  };

  MetaCartPole(const Options& o, int64_t n) : o_(o), games_(static_cast<size_t>(n)) {}

  EnvironmentShape shape() const { return {.observation = 5, .actions = 2, .longest = o_.trials * o_.steps}; }

  void begin(int64_t i, ExampleRandom& random) {
    auto& game = games_[static_cast<size_t>(i)];
    game = {};
    game.start = game.cart = Cart::random(random);
    game.map = orthogonal_map(random);
  }

  Reward act(int64_t i, int64_t action, ExampleRandom&) {
    auto& game = games_[static_cast<size_t>(i)];
    game.cart.push(action == 1);
    game.trial_ended = game.cart.fallen() || ++game.taken == o_.steps;
    if (game.trial_ended) {
      game.cart = game.start;
      game.taken = 0;
      ++game.trial;
    }
    return {1.0 / static_cast<double>(o_.trials * o_.steps), game.trial == o_.trials};
  }

  void observe(int64_t i, float* out) const {
    const auto& game = games_[static_cast<size_t>(i)];
    const double state[] = {game.cart.x, game.cart.speed, game.cart.angle, game.cart.turn};
    for (size_t r = 0; r < 4; ++r)
      for (size_t c = 0; c < 4; ++c) out[r] += static_cast<float>(game.map[r][c] * state[c]);
    out[4] = game.trial_ended ? 1 : 0;
  }

 private:
  using Map = std::array<std::array<double, 4>, 4>;
  struct Game {
    Cart start, cart;
    Map map{};
    int64_t taken = 0, trial = 0;
    bool trial_ended = false;
  };

  // Gram-Schmidt on normal numbers: uniform over all rotations and reflections; times sqrt(2).
  static Map orthogonal_map(ExampleRandom& random) {
    Map map{};
    for (size_t r = 0; r < 4; ++r) {
      auto& row = map[r];
      for (double& value : row) value = random.normal();
      for (size_t p = 0; p < r; ++p) {
        double along = 0;
        for (size_t c = 0; c < 4; ++c) along += row[c] * map[p][c];
        for (size_t c = 0; c < 4; ++c) row[c] -= along * map[p][c];
      }
      double square = 0;
      for (const double value : row) square += value * value;
      for (double& value : row) value /= std::sqrt(square);
    }
    for (auto& row : map)
      for (double& value : row) value *= std::sqrt(2.0);
    return map;
  }

  Options o_;
  std::vector<Game> games_;
};
const RegisterEnvironment<MetaCartPole> register_meta_cartpole{
    "meta_cartpole", "cart pole through an unknown map, in several trials (learning within an episode)"};

}  // namespace
}  // namespace weft::rl
