// Say the suit of the first card, at every step. POPGym, Morad et al. 2023, arXiv:2303.01859.
//   N cards in all, N - 1 steps, each answer earns +-1 / (N - 1)
// The best policy earns 1; a random one about -1/2.
#include "apps/rl/environments/decks.h"
#include "apps/rl/environments/environment.h"

namespace weft::rl {
namespace {

class RepeatFirst {
 public:
  struct Options {
    Difficulty difficulty;
    int64_t decks = 0, cards = 0;
    void fields(Fields& f) {
      difficulty.fields(f);
      f("decks", decks, "packs of 52 cards; 0: 1, 8, 16 by difficulty", at_least(0));
      f("cards", cards, "N, how many of them are dealt; 0: all", at_least(0));
    }
  };

  RepeatFirst(const Options& o, int64_t n)
      : decks_(n, o.decks > 0 ? o.decks : o.difficulty.pick(1, 8, 16)),
        cards_(o.cards > 0 ? o.cards : decks_.size()),
        shown_(static_cast<size_t>(n)) {
    require(cards_ >= 2 && cards_ <= decks_.size(), "repeat_first: cards is {}, the game has 2 to {}", cards_,
            decks_.size());
  }

  EnvironmentShape shape() const {
    return {.observation = Decks::kSuits, .actions = Decks::kSuits, .longest = cards_ - 1};
  }

  void begin(int64_t i, ExampleRandom& random) {
    decks_.shuffle(i, random);
    shown_[static_cast<size_t>(i)] = 1;
  }

  Reward act(int64_t i, int64_t action, ExampleRandom&) {
    const double unit = 1.0 / static_cast<double>(cards_ - 1);
    const bool ended = ++shown_[static_cast<size_t>(i)] == cards_;
    return {action == decks_.suit(i, 0) ? unit : -unit, ended};
  }

  void observe(int64_t i, float* out) const { out[decks_.suit(i, shown_[static_cast<size_t>(i)] - 1)] = 1; }

 private:
  Decks decks_;
  int64_t cards_;
  std::vector<int64_t> shown_;  // cards so far
};
const RegisterEnvironment<RepeatFirst> register_repeat_first{
    "repeat_first", "say the suit of the first card (memory of one event)"};

}  // namespace
}  // namespace weft::rl
