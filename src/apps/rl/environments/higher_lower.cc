// Guess whether the next card ranks higher or lower than the one in view. POPGym, Morad et al. 2023,
// arXiv:2303.01859.
//   N cards, N - 1 steps; action 0 says higher, 1 lower; +-1 / N, and 0 when the ranks are equal
#include "apps/rl/environments/decks.h"
#include "apps/rl/environments/environment.h"

namespace weft::rl {
namespace {

class HigherLower {
 public:
  struct Options {
    Difficulty difficulty;
    int64_t decks = 0;
    void fields(Fields& f) {
      difficulty.fields(f);
      f("decks", decks, "packs of 52 cards; 0: 1, 2, 3 by difficulty", at_least(0));
    }
  };

  HigherLower(const Options& o, int64_t n)
      : decks_(n, o.decks > 0 ? o.decks : o.difficulty.pick(1, 2, 3)), shown_(static_cast<size_t>(n)) {}

  EnvironmentShape shape() const {
    return {.observation = Decks::kRanks, .actions = 2, .longest = decks_.size() - 1};
  }

  void begin(int64_t i, ExampleRandom& random) {
    decks_.shuffle(i, random);
    shown_[static_cast<size_t>(i)] = 1;
  }

  Reward act(int64_t i, int64_t action, ExampleRandom&) {
    auto& shown = shown_[static_cast<size_t>(i)];
    const auto before = decks_.rank(i, shown - 1), after = decks_.rank(i, shown);
    Reward reward{0, ++shown == decks_.size()};
    if (after != before)
      reward.value = ((after > before) == (action == 0) ? 1.0 : -1.0) / static_cast<double>(decks_.size());
    return reward;
  }

  void observe(int64_t i, float* out) const { out[decks_.rank(i, shown_[static_cast<size_t>(i)] - 1)] = 1; }

 private:
  Decks decks_;
  std::vector<int64_t> shown_;  // cards so far
};
const RegisterEnvironment<HigherLower> register_higher_lower{
    "higher_lower", "guess whether the next card is higher or lower (counting cards helps)"};

}  // namespace
}  // namespace weft::rl
