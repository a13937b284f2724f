// Say the suit of an earlier card: at every step a card is shown, and the answer is the suit of the k-th card
// back, where the card in view is the first. POPGym, Morad et al. 2023, arXiv:2303.01859.
//   N cards in all, N - 1 steps; from the step on that shows card k, each answer earns +-1 / (N - k)
// The best policy earns 1; a random one about -1/2.
#include "apps/rl/environments/decks.h"
#include "apps/rl/environments/environment.h"

namespace weft::rl {
namespace {

class RepeatPrevious {
 public:
  struct Options {
    Difficulty difficulty;
    int64_t decks = 0, back = 0;
    void fields(Fields& f) {
      difficulty.fields(f);
      f("decks", decks, "packs of 52 cards; 0: 1, 2, 3 by difficulty", at_least(0));
      f("back", back, "k, which card counted backwards is asked for; 0: 4, 32, 64 by difficulty", at_least(0),
        at_most(51));
    }
  };

  RepeatPrevious(const Options& o, int64_t n)
      : decks_(n, o.decks > 0 ? o.decks : o.difficulty.pick(1, 2, 3)),
        back_(o.back > 0 ? o.back : o.difficulty.pick(4, 32, 64)),
        shown_(static_cast<size_t>(n)) {}

  EnvironmentShape shape() const {
    return {.observation = Decks::kSuits, .actions = Decks::kSuits, .longest = decks_.size() - 1};
  }

  void begin(int64_t i, ExampleRandom& random) {
    decks_.shuffle(i, random);
    shown_[static_cast<size_t>(i)] = 1;
  }

  Reward act(int64_t i, int64_t action, ExampleRandom&) {
    auto& shown = shown_[static_cast<size_t>(i)];
    Reward reward;
    if (shown >= back_) {
      const double unit = 1.0 / static_cast<double>(decks_.size() - back_);
      reward.value = action == decks_.suit(i, shown - back_) ? unit : -unit;
    }
    reward.ended = ++shown == decks_.size();
    return reward;
  }

  void observe(int64_t i, float* out) const { out[decks_.suit(i, shown_[static_cast<size_t>(i)] - 1)] = 1; }

 private:
  Decks decks_;
  int64_t back_;
  std::vector<int64_t> shown_;  // cards so far
};
const RegisterEnvironment<RepeatPrevious> register_repeat_previous{
    "repeat_previous", "say the suit of the k-th card back (short memory that slides)"};

}  // namespace
}  // namespace weft::rl
