// Watch N cards, then say their suits in reverse order. POPGym, Morad et al. 2023, arXiv:2303.01859.
//   N - 1 steps to watch, which earn nothing, then N answers of +-1 / N
// The last card is shown together with the sign that it is time to play; after it no card is shown. The best
// policy earns 1; a random one about -1/2. (popjaxrl shows cards while playing and hides them while watching;
// this is POPGym's game.)
#include "apps/rl/environments/decks.h"
#include "apps/rl/environments/environment.h"

namespace weft::rl {
namespace {

class Autoencode {
 public:
  struct Options {
    Difficulty difficulty;
    int64_t decks = 0, cards = 0;
    void fields(Fields& f) {
      difficulty.fields(f);
      f("decks", decks, "packs of 52 cards; 0: 1, 2, 3 by difficulty", at_least(0));
      f("cards", cards, "N, how many of them are dealt; 0: all", at_least(0));
    }
  };

  Autoencode(const Options& o, int64_t n)
      : decks_(n, o.decks > 0 ? o.decks : o.difficulty.pick(1, 2, 3)),
        cards_(o.cards > 0 ? o.cards : decks_.size()),
        shown_(static_cast<size_t>(n)),
        answered_(static_cast<size_t>(n)) {
    require(cards_ >= 2 && cards_ <= decks_.size(), "autoencode: cards is {}, the game has 2 to {}", cards_,
            decks_.size());
  }

  // Features: playing, watching, one for each suit.
  EnvironmentShape shape() const {
    return {.observation = 2 + Decks::kSuits, .actions = Decks::kSuits, .longest = 2 * cards_ - 1};
  }

  void begin(int64_t i, ExampleRandom& random) {
    decks_.shuffle(i, random);
    shown_[static_cast<size_t>(i)] = 1;
    answered_[static_cast<size_t>(i)] = 0;
  }

  Reward act(int64_t i, int64_t action, ExampleRandom&) {
    auto& shown = shown_[static_cast<size_t>(i)];
    if (shown < cards_) {
      ++shown;
      return {};
    }
    auto& answered = answered_[static_cast<size_t>(i)];
    const double unit = 1.0 / static_cast<double>(cards_);
    const bool right = action == decks_.suit(i, cards_ - 1 - answered);
    return {right ? unit : -unit, ++answered == cards_};
  }

  void observe(int64_t i, float* out) const {
    const auto shown = shown_[static_cast<size_t>(i)];
    out[shown == cards_ ? 0 : 1] = 1;
    if (answered_[static_cast<size_t>(i)] == 0) out[2 + decks_.suit(i, shown - 1)] = 1;
  }

 private:
  Decks decks_;
  int64_t cards_;
  std::vector<int64_t> shown_, answered_;
};
const RegisterEnvironment<Autoencode> register_autoencode{
    "autoencode", "watch cards, then say them in reverse order (a memory with an order)"};

}  // namespace
}  // namespace weft::rl
