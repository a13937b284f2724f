// Open all squares without a mine; only the number of mines around the last square is shown. POPGym, Morad et
// al. 2023, arXiv:2303.01859.
//   C squares of which M are mines, F = C - M, at most F steps; a new square earns 1 / F, one opened before
//   costs 0.5 / (F - 2), a mine ends the game and costs 0.5 + 1 / F
#include "apps/rl/environments/environment.h"

namespace weft::rl {
namespace {

class MineSweeper {
 public:
  struct Options {
    Difficulty difficulty;
    int64_t board = 0, mines = 0;
    void fields(Fields& f) {
      difficulty.fields(f);
      f("board", board, "squares a side; 0: 4, 6, 8 by difficulty", at_least(0), at_most(64));
      f("mines", mines, "M, mines; 0: 2, 6, 10 by difficulty", at_least(0));
    }
  };

  MineSweeper(const Options& o, int64_t n)
      : side_(o.board > 0 ? o.board : o.difficulty.pick(4, 6, 8)),
        squares_(side_ * side_),
        mines_(o.mines > 0 ? o.mines : o.difficulty.pick(2, 6, 10)),
        free_(squares_ - mines_),
        board_(static_cast<size_t>(n * squares_)),
        steps_(static_cast<size_t>(n)),
        opened_(static_cast<size_t>(n)),
        around_(static_cast<size_t>(n)) {
    require(free_ >= 3, "mine_sweeper: {} mines on {} squares leave less than 3 free", mines_, squares_);
  }

  // One feature for each number of mines around the last square, itself included. Actions: row * side + column.
  EnvironmentShape shape() const {
    return {.observation = std::min<int64_t>(mines_ + 1, 10), .actions = squares_, .longest = free_};
  }

  void begin(int64_t i, ExampleRandom& random) {
    std::fill_n(board_.begin() + i * squares_, squares_, kClear);
    for (const int64_t square : random.choose(squares_, mines_)) at(i, square) = kMine;
    steps_[static_cast<size_t>(i)] = opened_[static_cast<size_t>(i)] = around_[static_cast<size_t>(i)] = 0;
  }

  Reward act(int64_t i, int64_t action, ExampleRandom&) {
    const double unit = 1.0 / static_cast<double>(free_);
    auto& square = at(i, action);
    auto& opened = opened_[static_cast<size_t>(i)];
    Reward reward;
    if (square == kMine) {
      reward = {-0.5 - unit, true};
    } else if (square == kOpened) {
      reward.value = -0.5 / static_cast<double>(free_ - 2);
    } else {
      square = kOpened;
      reward = {unit, ++opened == free_};
    }
    around_[static_cast<size_t>(i)] = mines_around(i, action);
    reward.ended |= ++steps_[static_cast<size_t>(i)] == free_;
    return reward;
  }

  void observe(int64_t i, float* out) const { out[around_[static_cast<size_t>(i)]] = 1; }

 private:
  static constexpr uint8_t kClear = 0, kMine = 1, kOpened = 2;

  uint8_t& at(int64_t i, int64_t square) { return board_[static_cast<size_t>(i * squares_ + square)]; }

  int64_t mines_around(int64_t i, int64_t square) {
    const int64_t row = square / side_, column = square % side_;
    int64_t count = 0;
    for (int64_t r = std::max<int64_t>(row - 1, 0); r <= std::min(row + 1, side_ - 1); ++r)
      for (int64_t c = std::max<int64_t>(column - 1, 0); c <= std::min(column + 1, side_ - 1); ++c)
        count += at(i, r * side_ + c) == kMine;
    return count;
  }

  int64_t side_, squares_, mines_, free_;
  std::vector<uint8_t> board_;  // [n, side, side]
  std::vector<int64_t> steps_, opened_, around_;
};
const RegisterEnvironment<MineSweeper> register_mine_sweeper{
    "mine_sweeper", "open squares without mines on a board that is never shown (memory and inference)"};

}  // namespace
}  // namespace weft::rl
