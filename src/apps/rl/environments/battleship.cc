// Sink ships on a board that is never shown, only whether the last shot hit. POPGym, Morad et al. 2023,
// arXiv:2303.01859.
//   ships of 2, 3, 3, 4 squares (12 in all) on n x n squares, at most n^2 shots; a hit earns 1 / 12, a miss
//   or a square shot at before costs 1 / (n^2 - 12)
// Shooting at every square once earns at least 0, hits only 1; repeating misses to the end costs more than 1.
#include "apps/rl/environments/environment.h"

namespace weft::rl {
namespace {

class Battleship {
 public:
  struct Options {
    Difficulty difficulty;
    int64_t board = 0;
    void fields(Fields& f) {
      difficulty.fields(f);
      f("board", board, "n, squares a side; 0: 8, 10, 12 by difficulty", at_least(0), at_most(64));
    }
  };

  Battleship(const Options& o, int64_t n)
      : side_(o.board > 0 ? o.board : o.difficulty.pick(8, 10, 12)),
        squares_(side_ * side_),
        board_(static_cast<size_t>(n * squares_)),
        shots_(static_cast<size_t>(n)),
        hits_(static_cast<size_t>(n)),
        hit_(static_cast<size_t>(n)) {
    require(side_ >= 6, "battleship: board is {}; four ships need at least 6", side_);
  }

  // Features: missed (also before the first shot), hit. Actions: row * n + column.
  EnvironmentShape shape() const { return {.observation = 2, .actions = squares_, .longest = squares_}; }

  void begin(int64_t i, ExampleRandom& random) {
    std::fill_n(board_.begin() + i * squares_, squares_, kWater);
    for (const int64_t length : kShips)
      while (!place(i, length, random)) {
      }
    shots_[static_cast<size_t>(i)] = hits_[static_cast<size_t>(i)] = 0;
    hit_[static_cast<size_t>(i)] = 0;
  }

  Reward act(int64_t i, int64_t action, ExampleRandom&) {
    auto& square = board_[static_cast<size_t>(i * squares_ + action)];
    const bool hit = square == kShip;
    square = kShot;
    hit_[static_cast<size_t>(i)] = hit;
    const auto hits = hits_[static_cast<size_t>(i)] += hit;
    const auto shots = ++shots_[static_cast<size_t>(i)];
    return {hit ? 1.0 / kShipSquares : -1.0 / static_cast<double>(squares_ - kShipSquares),
            hits == kShipSquares || shots == squares_};
  }

  void observe(int64_t i, float* out) const { out[hit_[static_cast<size_t>(i)]] = 1; }

 private:
  static constexpr int64_t kShips[] = {2, 3, 3, 4};
  static constexpr int64_t kShipSquares = 12;
  static constexpr uint8_t kWater = 0, kShip = 1, kShot = 2;

  // A ship at a random place in a random direction; false when it leaves the board or meets another.
  bool place(int64_t i, int64_t length, ExampleRandom& random) {
    const int64_t row = random.below(side_), column = random.below(side_);
    const bool down = random.below(2) == 1;
    if ((down ? row : column) + length > side_) return false;
    const int64_t stride = down ? side_ : 1;
    auto* first = &board_[static_cast<size_t>(i * squares_ + row * side_ + column)];
    for (int64_t s = 0; s < length; ++s)
      if (first[s * stride] != kWater) return false;
    for (int64_t s = 0; s < length; ++s) first[s * stride] = kShip;
    return true;
  }

  int64_t side_, squares_;
  std::vector<uint8_t> board_;  // [n, side, side]
  std::vector<int64_t> shots_, hits_;
  std::vector<uint8_t> hit_;
};
const RegisterEnvironment<Battleship> register_battleship{
    "battleship", "sink ships on a board that is never shown (memory of own actions)"};

}  // namespace
}  // namespace weft::rl
