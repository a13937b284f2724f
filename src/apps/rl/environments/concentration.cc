// Memory with cards that lie face down: two are flipped, and stay open when they match. POPGym, Morad et al.
// 2023, arXiv:2303.01859.
//   N cards, at most L = ceil(2 N - N / (2 N - 1)) flips; a pair earns 2 / N; two cards that do not match, or
//   the same card twice, cost 2 / L; a try at an open card ends the turn and costs 1 / L for each flip of it
// The observation shows all open cards and those of the present turn; the best possible episode earns 1.
#include "apps/rl/environments/decks.h"
#include "apps/rl/environments/environment.h"

namespace weft::rl {
namespace {

class Concentration {
 public:
  struct Options {
    Difficulty difficulty;
    int64_t decks = 0, kinds = 0;
    void fields(Fields& f) {
      difficulty.fields(f);
      f("decks", decks, "packs of 52 cards; 0: 1, 2, 1 by difficulty", at_least(0));
      f("kinds", kinds, "what must match: 2 colours or 13 ranks; 0: 2, 2, 13 by difficulty", at_least(0),
        at_most(13));
    }
  };

  Concentration(const Options& o, int64_t n)
      : decks_(n, o.decks > 0 ? o.decks : o.difficulty.pick(1, 2, 1)),
        kinds_(o.kinds > 0 ? o.kinds : o.difficulty.pick(Decks::kColors, Decks::kColors, Decks::kRanks)),
        flips_(2 * decks_.size() - decks_.size() / (2 * decks_.size() - 1)),
        open_(static_cast<size_t>(n * decks_.size())),
        games_(static_cast<size_t>(n)) {
    require(kinds_ == Decks::kColors || kinds_ == Decks::kRanks,
            "concentration: kinds is {}; choose 2 (colours) or 13 (ranks)", kinds_);
  }

  // For each card one feature for each kind, and one for face down.
  EnvironmentShape shape() const {
    return {.observation = decks_.size() * (kinds_ + 1), .actions = decks_.size(), .longest = flips_};
  }

  void begin(int64_t i, ExampleRandom& random) {
    decks_.shuffle(i, random);
    std::fill_n(open_.begin() + i * decks_.size(), decks_.size(), uint8_t{0});
    games_[static_cast<size_t>(i)] = {};
  }

  Reward act(int64_t i, int64_t action, ExampleRandom&) {
    auto& game = games_[static_cast<size_t>(i)];
    if (game.turn_over) game.first = game.second = -1;
    game.turn_over = false;
    const bool second = game.first >= 0;
    (second ? game.second : game.first) = action;
    const double failure = -1.0 / static_cast<double>(flips_);
    Reward reward;
    if (open(i, action)) {
      reward.value = failure * (second ? 2 : 1);
      game.turn_over = true;
    } else if (second) {
      const bool pair =
          game.first != action && decks_.face(i, game.first, kinds_) == decks_.face(i, action, kinds_);
      reward.value = pair ? 2.0 / static_cast<double>(decks_.size()) : 2 * failure;
      game.turn_over = true;
      if (pair) {
        open(i, game.first) = open(i, action) = 1;
        game.opened += 2;
      }
    }
    reward.ended = ++game.steps == flips_ || game.opened == decks_.size();
    return reward;
  }

  void observe(int64_t i, float* out) const {
    const auto& game = games_[static_cast<size_t>(i)];
    for (int64_t c = 0; c < decks_.size(); ++c) {
      const bool seen =
          open_[static_cast<size_t>(i * decks_.size() + c)] || c == game.first || c == game.second;
      out[c * (kinds_ + 1) + (seen ? decks_.face(i, c, kinds_) : kinds_)] = 1;
    }
  }

 private:
  struct Game {
    int64_t first = -1, second = -1;  // cards of this turn, of the last one when it is over
    bool turn_over = false;
    int64_t steps = 0, opened = 0;
  };
  uint8_t& open(int64_t i, int64_t card) { return open_[static_cast<size_t>(i * decks_.size() + card)]; }

  Decks decks_;
  int64_t kinds_, flips_;
  std::vector<uint8_t> open_;  // [n, N]
  std::vector<Game> games_;
};
const RegisterEnvironment<Concentration> register_concentration{
    "concentration", "find pairs of cards that lie face down (memory of places)"};

}  // namespace
}  // namespace weft::rl
