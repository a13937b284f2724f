// Say how often a kind of card has been dealt: every step shows a card and a question, and the answer is how
// many cards of the asked kind came so far, the one in view included. POPGym, Morad et al. 2023,
// arXiv:2303.01859.
//   N cards, N - 1 steps, each answer earns +-1 / (N - 1)
// The best policy earns 1. (popjaxrl offers two answers only; here every count that can occur is one, as in
// POPGym.)
#include "apps/rl/environments/decks.h"
#include "apps/rl/environments/environment.h"

namespace weft::rl {
namespace {

class CountRecall {
 public:
  struct Options {
    Difficulty difficulty;
    int64_t decks = 0, kinds = 0;
    void fields(Fields& f) {
      difficulty.fields(f);
      f("decks", decks, "packs of 52 cards; 0: 1, 2, 4 by difficulty", at_least(0));
      f("kinds", kinds, "2 colours, 4 suits or 13 ranks; 0: by difficulty", at_least(0), at_most(13));
    }
  };

  CountRecall(const Options& o, int64_t n)
      : values_(n, o.decks > 0 ? o.decks : o.difficulty.pick(1, 2, 4)),
        questions_(n, values_.size() / Decks::kCards),
        kinds_(o.kinds > 0 ? o.kinds : o.difficulty.pick(Decks::kColors, Decks::kSuits, Decks::kRanks)),
        shown_(static_cast<size_t>(n)),
        counts_(static_cast<size_t>(n * kinds_)) {
    require(kinds_ == Decks::kColors || kinds_ == Decks::kSuits || kinds_ == Decks::kRanks,
            "count_recall: kinds is {}; choose 2 (colours), 4 (suits) or 13 (ranks)", kinds_);
  }

  EnvironmentShape shape() const {
    return {.observation = 2 * kinds_, .actions = values_.size() / kinds_ + 1, .longest = values_.size() - 1};
  }

  void begin(int64_t i, ExampleRandom& random) {
    values_.shuffle(i, random);
    questions_.shuffle(i, random);
    std::fill_n(&counts_[static_cast<size_t>(i * kinds_)], kinds_, 0);
    shown_[static_cast<size_t>(i)] = 0;
    deal(i);
  }

  Reward act(int64_t i, int64_t action, ExampleRandom&) {
    const double unit = 1.0 / static_cast<double>(values_.size() - 1);
    const bool right = action == counts_[static_cast<size_t>(i * kinds_ + face(questions_, i))];
    deal(i);
    return {right ? unit : -unit, shown_[static_cast<size_t>(i)] == values_.size()};
  }

  void observe(int64_t i, float* out) const {
    out[face(values_, i)] = 1;
    out[kinds_ + face(questions_, i)] = 1;
  }

 private:
  int64_t face(const Decks& decks, int64_t i) const {
    return decks.face(i, shown_[static_cast<size_t>(i)] - 1, kinds_);
  }
  void deal(int64_t i) {
    ++shown_[static_cast<size_t>(i)];
    ++counts_[static_cast<size_t>(i * kinds_ + face(values_, i))];
  }

  Decks values_, questions_;
  int64_t kinds_;
  std::vector<int64_t> shown_;   // cards so far
  std::vector<int64_t> counts_;  // [n, kinds] of the cards so far
};
const RegisterEnvironment<CountRecall> register_count_recall{
    "count_recall", "say how often a kind of card has been dealt (a memory without order)"};

}  // namespace
}  // namespace weft::rl
