#include "apps/rl/environments/environment.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>

#include "base/error.h"

namespace weft::rl {
namespace {

// n games with their last step.
class Table {
 public:
  Table(const std::string& yaml, int64_t n, uint64_t seed = 7, int64_t first = 0)
      : games_(make_environments(Node::parse(yaml, "test"), n, seed, first)),
        shape(games_->shape()),
        seen(at::empty({n, shape.observation})),
        earned(at::zeros({n})),
        ended(at::ones({n}, at::kBool)) {
    games_->reset(seen);
  }
  void step(const at::Tensor& actions) { games_->step(actions, seen, earned, ended); }
  int64_t count() const { return games_->count(); }
  // The class of features [from, from + kinds) of game i; kinds when none is set.
  int64_t category(int64_t i, int64_t from, int64_t kinds) const {
    const auto row = seen.accessor<float, 2>()[i];
    for (int64_t k = 0; k < kinds; ++k)
      if (row[from + k] == 1) return k;
    return kinds;
  }

 private:
  std::unique_ptr<Environments> games_;

 public:
  EnvironmentShape shape;
  at::Tensor seen, earned, ended;
};

// Actions that depend on (seed, game, step) only.
at::Tensor random_actions(const Table& table, uint64_t seed, int64_t step, int64_t first = 0) {
  auto actions = table.shape.discrete() ? at::empty({table.count()}, at::kLong)
                                        : at::empty({table.count(), table.shape.action_size});
  for (int64_t i = 0; i < table.count(); ++i) {
    ExampleRandom random(seed, Split::test, ((first + i) << 32) + step);
    if (table.shape.discrete())
      actions[i] = random.below(table.shape.actions);
    else
      actions[i].fill_(4 * random.uniform() - 2);
  }
  return actions;
}

struct Episodes {
  std::vector<double> returns;
  std::vector<int64_t> lengths;
  double mean() const {
    return std::accumulate(returns.begin(), returns.end(), 0.0) / static_cast<double>(returns.size());
  }
};

using Policy = std::function<int64_t(int64_t game, const Table&)>;

// Plays until `wanted` episodes are over; each game sees policy(i) once before each of its actions.
Episodes play(Table& table, const Policy& policy, size_t wanted) {
  Episodes episodes;
  std::vector<double> sums(static_cast<size_t>(table.count()), 0);
  std::vector<int64_t> lengths(sums.size(), 0);
  auto actions = at::empty({table.count()}, at::kLong);
  while (episodes.returns.size() < wanted) {
    for (int64_t i = 0; i < table.count(); ++i) actions[i] = policy(i, table);
    table.step(actions);
    for (size_t i = 0; i < sums.size(); ++i) {
      const auto index = static_cast<int64_t>(i);
      sums[i] += table.earned[index].item<double>();
      ++lengths[i];
      if (!table.ended[index].item<bool>()) continue;
      episodes.returns.push_back(sums[i]);
      episodes.lengths.push_back(lengths[i]);
      sums[i] = 0;
      lengths[i] = 0;
    }
  }
  return episodes;
}

void expect_all(const Episodes& episodes, double value) {
  for (const double sum : episodes.returns) EXPECT_NEAR(sum, value, 1e-5);
}

bool began(const Table& table, int64_t game) { return table.ended[game].item<bool>(); }

const std::vector<std::string>& all_kinds() {
  static const std::vector<std::string> kinds = {
      "{name: repeat_previous}",
      "{name: repeat_first}",
      "{name: autoencode}",
      "{name: count_recall}",
      "{name: higher_lower}",
      "{name: concentration}",
      "{name: bandit}",
      "{name: battleship}",
      "{name: mine_sweeper}",
      "{name: cartpole}",
      "{name: cartpole, noisy: true, difficulty: hard}",
      "{name: pendulum}",
      "{name: pendulum, noisy: true}",
      "{name: meta_cartpole, trials: 3}",
  };
  return kinds;
}

TEST(Environments, EveryRegisteredOneIsTested) {
  for (const auto& name : environment_names()) {
    bool found = false;
    for (const auto& kind : all_kinds()) found |= Node::parse(kind, "test").at("name").as_string() == name;
    EXPECT_TRUE(found) << name;
  }
}

TEST(Environments, TogetherAsAlone) {
  for (const auto& kind : all_kinds()) {
    Table together(kind, 3);
    std::vector<std::unique_ptr<Table>> alone;
    for (int64_t i = 0; i < 3; ++i) alone.push_back(std::make_unique<Table>(kind, 1, 7, i));
    for (int64_t t = 0; t < 300; ++t) {
      for (int64_t i = 0; i < 3; ++i) {
        ASSERT_TRUE(together.seen[i].equal(alone[static_cast<size_t>(i)]->seen[0])) << kind << " step " << t;
        ASSERT_EQ(together.earned[i].item<float>(), alone[static_cast<size_t>(i)]->earned[0].item<float>());
      }
      together.step(random_actions(together, 5, t));
      for (int64_t i = 0; i < 3; ++i)
        alone[static_cast<size_t>(i)]->step(random_actions(*alone[static_cast<size_t>(i)], 5, t, i));
    }
  }
}

TEST(Environments, SeedsDecideEverything) {
  for (const auto& kind : all_kinds()) {
    Table a(kind, 2, 7), b(kind, 2, 7), other(kind, 2, 8);
    bool differs = false;
    for (int64_t t = 0; t < 300; ++t) {
      const auto actions = random_actions(a, 5, t);
      a.step(actions);
      b.step(actions);
      other.step(actions);
      ASSERT_TRUE(a.seen.equal(b.seen) && a.earned.equal(b.earned) && a.ended.equal(b.ended)) << kind;
      differs |= !a.seen.equal(other.seen);
    }
    EXPECT_TRUE(differs) << kind;
  }
}

// With random actions; repeated misses make battleship the only game below -1, as in POPGym.
TEST(Environments, RewardsSumToAtMostOneAndEpisodesEnd) {
  for (const auto& kind : all_kinds())
    for (const std::string level : {"easy", "medium", "hard"}) {
      auto node = Node::parse(kind, "test");
      const bool battleship = node.at("name").as_string() == "battleship";
      if (node.at("name").as_string() != "meta_cartpole") node.set("difficulty", level);
      Table table(node.dump(), 2);
      double sums[2] = {0, 0};
      int64_t lengths[2] = {0, 0}, episodes = 0;
      for (int64_t t = 0; t < 2 * table.shape.longest + 2; ++t) {
        table.step(random_actions(table, 5, t));
        for (int64_t i = 0; i < 2; ++i) {
          sums[i] += table.earned[i].item<double>();
          ASSERT_LE(++lengths[i], table.shape.longest) << kind;
          if (!began(table, i)) continue;
          EXPECT_LE(sums[i], 1 + 1e-5) << kind << level;
          EXPECT_GE(sums[i], (battleship ? -1.25 : -1) - 1e-5) << kind << level;
          sums[i] = 0;
          lengths[i] = 0;
          ++episodes;
        }
      }
      EXPECT_GE(episodes, 4) << kind << level;
    }
}

// Suits seen so far in the present episode of each game; the policies below read it.
struct Memory {
  std::vector<std::vector<int64_t>> suits;
  explicit Memory(int64_t n) : suits(static_cast<size_t>(n)) {}
  std::vector<int64_t>& look(int64_t i, const Table& table, int64_t from, int64_t kinds) {
    auto& mine = suits[static_cast<size_t>(i)];
    if (began(table, i)) mine.clear();
    mine.push_back(table.category(i, from, kinds));
    return mine;
  }
};

TEST(RepeatPrevious, MemoryEarnsOneAndGuessesEarnMinusAHalf) {
  for (const auto& [level, back] : std::vector<std::pair<std::string, size_t>>{{"easy", 4}, {"medium", 32}}) {
    Table table("{name: repeat_previous, difficulty: " + level + "}", 4);
    Memory memory(4);
    const size_t k = back;
    const auto oracle = [&](int64_t i, const Table& t) {
      const auto& suits = memory.look(i, t, 0, 4);
      return suits.size() >= k ? suits[suits.size() - k] : 0;
    };
    const auto episodes = play(table, oracle, 8);
    expect_all(episodes, 1);
    EXPECT_EQ(episodes.lengths[0], level == "easy" ? 51 : 103);
  }
  Table table("{name: repeat_previous}", 16);
  ExampleRandom random(3, Split::test, 0);
  // The standard error of the mean over 1024 episodes of 49 answers is 0.004.
  EXPECT_NEAR(play(
                  table, [&](int64_t, const Table&) { return random.below(4); }, 1024)
                  .mean(),
              -0.5, 0.02);
}

TEST(RepeatFirst, MemoryEarnsOne) {
  Table table("{name: repeat_first, difficulty: medium}", 3);
  Memory memory(3);
  expect_all(play(
                 table, [&](int64_t i, const Table& t) { return memory.look(i, t, 0, 4)[0]; }, 6),
             1);
}

TEST(Autoencode, ReverseOrderEarnsOne) {
  Table table("{name: autoencode}", 3);
  Memory memory(3);
  const auto oracle = [&](int64_t i, const Table& t) {
    auto& suits = memory.look(i, t, 2, 4);
    const bool playing = t.seen[i][0].item<float>() == 1;
    if (!playing) return int64_t{0};
    if (suits.back() == 4) suits.pop_back();  // no card in view
    const auto answer = suits.back();
    suits.pop_back();
    return answer;
  };
  const auto episodes = play(table, oracle, 6);
  expect_all(episodes, 1);
  EXPECT_EQ(episodes.lengths[0], 103);
}

TEST(CountRecall, CountingEarnsOne) {
  for (const auto& [level, kinds] : std::vector<std::pair<std::string, int64_t>>{{"easy", 2}, {"hard", 13}}) {
    Table table("{name: count_recall, difficulty: " + level + "}", 3);
    Memory memory(3);
    const int64_t k = kinds;
    const auto oracle = [&](int64_t i, const Table& t) -> int64_t {
      const auto& cards = memory.look(i, t, 0, k);
      return std::count(cards.begin(), cards.end(), t.category(i, k, k));
    };
    expect_all(play(table, oracle, 6), 1);
    EXPECT_EQ(table.shape.actions, level == "easy" ? 27 : 17);
  }
}

TEST(HigherLower, GuessingByRankBeatsChance) {
  Table table("{name: higher_lower}", 8);
  const auto by_rank = [](int64_t i, const Table& t) -> int64_t { return t.category(i, 0, 13) < 6 ? 0 : 1; };
  const auto good = play(table, by_rank, 200);
  const auto bad = play(
      table, [&](int64_t i, const Table& t) { return 1 - by_rank(i, t); }, 200);
  EXPECT_GT(good.mean(), 0.35);
  EXPECT_LT(bad.mean(), -0.35);
}

TEST(Concentration, PerfectMemoryFindsAllPairs) {
  Table table("{name: concentration, difficulty: hard}", 1);
  std::vector<int64_t> faces(52, 13);  // 13: not seen yet
  int64_t flipped = -1;
  const auto oracle = [&](int64_t, const Table& t) -> int64_t {
    if (began(t, 0)) {
      faces.assign(52, 13);
      flipped = -1;
    }
    std::vector<bool> open(52);
    for (int64_t c = 0; c < 52; ++c) {
      const auto face = t.category(0, c * 14, 14);
      if (face < 13) faces[static_cast<size_t>(c)] = face;
      open[static_cast<size_t>(c)] = face < 13;
    }
    const auto partner = [&](int64_t card) -> int64_t {
      for (int64_t c = 0; c < 52; ++c)
        if (c != card && faces[static_cast<size_t>(c)] < 13 &&
            faces[static_cast<size_t>(c)] == faces[static_cast<size_t>(card)] &&
            !open[static_cast<size_t>(c)])
          return c;
      return -1;
    };
    const auto unseen = [&] {
      for (int64_t c = 0; c < 52; ++c)
        if (faces[static_cast<size_t>(c)] == 13) return c;
      return int64_t{-1};
    };
    if (flipped >= 0) {
      const auto first = std::exchange(flipped, -1);
      const auto match = partner(first);
      if (match >= 0) return match;
      const auto other = unseen();
      return other >= 0 ? other : first;
    }
    for (int64_t c = 0; c < 52; ++c)  // a pair that is known
      if (!open[static_cast<size_t>(c)] && faces[static_cast<size_t>(c)] < 13 && partner(c) >= 0)
        return flipped = c;
    return flipped = unseen();
  };
  // The cards of a missed pair stay in view for one more observation, so a pair found there waits a turn; still every
  // pair is found with fewer than half of the flips.
  const auto episodes = play(table, oracle, 4);
  for (size_t e = 0; e < episodes.returns.size(); ++e) {
    EXPECT_GT(episodes.returns[e], 0.3);
    EXPECT_LT(episodes.lengths[e], 104);
  }
}

TEST(Concentration, FirstPairOfOpenCardsCosts) {
  Table table("{name: concentration}", 1);
  const auto unit = 1.0 / 104;  // ceil(104 - 52 / 103) flips
  table.step(at::tensor(int64_t{0}).view({1}));
  EXPECT_EQ(table.earned[0].item<double>(), 0);
  table.step(at::tensor(int64_t{0}).view({1}));  // the same card
  EXPECT_NEAR(table.earned[0].item<double>(), -2 * unit, 1e-7);
  int64_t partner = 0;
  double earned = 0;
  while (earned <= 0) {
    table.step(at::tensor(int64_t{0}).view({1}));
    table.step(at::tensor(++partner).view({1}));
    earned = table.earned[0].item<double>();
  }
  EXPECT_NEAR(earned, 1.0 / 26, 1e-7);
  table.step(at::tensor(partner).view({1}));  // open already: the turn is over at once
  EXPECT_NEAR(table.earned[0].item<double>(), -unit, 1e-7);
  table.step(at::tensor(partner).view({1}));
  EXPECT_NEAR(table.earned[0].item<double>(), -unit, 1e-7);
}

// An arm keeps its odds within an episode and loses them with it; a random policy earns nothing on average.
TEST(Bandit, OddsLastAnEpisode) {
  Table table("{name: bandit, steps: 4000, arms: 3}", 4);
  const auto pays = [&] {  // share of 2000 pulls of arm 1, for each game
    auto paid = at::zeros({4});
    for (int64_t t = 0; t < 2000; ++t) {
      table.step(at::ones({4}, at::kLong));
      paid += (table.earned > 0).to(at::kFloat);
    }
    return paid / 2000;
  };
  const auto early = pays(), late = pays(), next = pays();
  EXPECT_LT((early - late).abs().max().item<double>(), 0.06);  // four standard errors
  EXPECT_GT((late - next).abs().max().item<double>(), 0.06);
  Table many("{name: bandit}", 16);
  ExampleRandom random(3, Split::test, 0);
  EXPECT_NEAR(play(
                  many, [&](int64_t, const Table&) { return random.below(10); }, 512)
                  .mean(),
              0, 0.03);
}

TEST(Battleship, ShootingEverywhereHitsTwelveTimes) {
  Table table("{name: battleship, difficulty: hard}", 2);
  std::vector<int64_t> next(2, 0);
  const auto sweep = [&](int64_t i, const Table& t) {
    auto& place = next[static_cast<size_t>(i)];
    if (began(t, i)) place = 0;
    return place++;
  };
  const auto episodes = play(table, sweep, 20);
  for (size_t e = 0; e < 20; ++e)  // 12 hits, the rest of the shots missed
    EXPECT_NEAR(episodes.returns[e], 1 - static_cast<double>(episodes.lengths[e] - 12) / (144 - 12), 1e-5);
}

// The board of the first episode, found by opening one square of it again and again, against the counts shown.
TEST(MineSweeper, CountsOfMinesAreTrue) {
  const std::string game = "{name: mine_sweeper, difficulty: medium}";
  std::vector<bool> mine(36);
  std::vector<int64_t> shown(36);
  for (int64_t square = 0; square < 36; ++square) {
    Table table(game, 1);
    table.step(at::full({1}, square, at::kLong));
    const double earned = table.earned[0].item<double>();
    mine[static_cast<size_t>(square)] = earned < 0;
    EXPECT_EQ(began(table, 0), earned < 0);
    EXPECT_NEAR(earned, earned < 0 ? -0.5 - 1.0 / 30 : 1.0 / 30, 1e-6);
    shown[static_cast<size_t>(square)] = table.category(0, 0, 7);
  }
  EXPECT_EQ(std::count(mine.begin(), mine.end(), true), 6);
  for (int64_t square = 0; square < 36; ++square) {
    if (mine[static_cast<size_t>(square)]) continue;  // the count of a mine is never seen
    int64_t around = 0;
    for (int64_t other = 0; other < 36; ++other)
      around += mine[static_cast<size_t>(other)] && std::abs(other / 6 - square / 6) <= 1 &&
                std::abs(other % 6 - square % 6) <= 1;
    EXPECT_EQ(shown[static_cast<size_t>(square)], around) << "square " << square;
  }
  // All free squares are worth 1; the first one again half a point shared by 28 steps.
  Table table(game, 1);
  double sum = 0;
  for (int64_t square = 0; square < 36; ++square) {
    if (mine[static_cast<size_t>(square)]) continue;
    EXPECT_FALSE(began(table, 0) && sum > 0);
    table.step(at::full({1}, square, at::kLong));
    sum += table.earned[0].item<double>();
  }
  EXPECT_NEAR(sum, 1, 1e-5);
  EXPECT_TRUE(began(table, 0));
  Table again(game, 1);
  const auto square = std::find(mine.begin(), mine.end(), false) - mine.begin();
  again.step(at::full({1}, square, at::kLong));
  again.step(at::full({1}, square, at::kLong));
  EXPECT_NEAR(again.earned[0].item<double>(), -0.5 / 28, 1e-6);
}

// A controller that sees everything holds the pole; the same one blind to velocities does not.
TEST(CartPole, ControlNeedsVelocities) {
  Table whole("{name: cartpole, observe: all}", 4);
  const auto lean = [](const Table& t, int64_t i, int64_t angle, int64_t turn) -> int64_t {
    const auto seen = t.seen[i];
    const double push = seen[angle].item<double>() + (turn >= 0 ? 0.3 * seen[turn].item<double>() : 0) +
                        0.02 * seen[0].item<double>();
    return push > 0 ? 1 : 0;
  };
  expect_all(play(
                 whole, [&](int64_t i, const Table& t) { return lean(t, i, 1, 3); }, 8),
             1);
  Table part("{name: cartpole}", 4);
  EXPECT_LT(play(
                part, [&](int64_t i, const Table& t) { return lean(t, i, 1, -1); }, 8)
                .mean(),
            0.7);
}

TEST(Pendulum, RestUprightIsWorthOne) {
  Table table("{name: pendulum, all: true}", 1);
  // Swing up by energy, hold by a linear controller.
  double last = 0;
  for (int64_t t = 0; t < 199; ++t) {
    const double cosine = table.seen[0][0].item<double>(), sine = table.seen[0][1].item<double>(),
                 turn = table.seen[0][2].item<double>();
    const double energy = turn * turn / 6 + 5 * (cosine - 1);
    const double push =
        cosine > 0.9 ? -12 * sine - 3 * turn : (energy < 0 ? 2.0 : -2.0) * (turn > 0 ? 1 : -1);
    table.step(at::full({1, 1}, push));
    last = table.earned[0].item<double>();
  }
  EXPECT_NEAR(last * 200, 1, 0.05);
}

TEST(MetaCartPole, OneMapAndOneStartForAllTrials) {
  Table table("{name: meta_cartpole, trials: 4, steps: 6}", 1);
  const auto start = table.seen[0].slice(0, 0, 4).clone();
  for (int64_t trial = 1; trial <= 4; ++trial)
    for (int64_t t = 1; t <= 6; ++t) {
      EXPECT_FALSE(table.ended[0].item<bool>() && !(trial == 1 && t == 1));
      table.step(at::ones({1}, at::kLong));
      EXPECT_EQ(table.seen[0][4].item<float>(), t == 6 && trial < 4 ? 1 : 0);
      if (t == 6 && trial < 4) {
        EXPECT_TRUE(table.seen[0].slice(0, 0, 4).equal(start));
      }
    }
  EXPECT_TRUE(table.ended[0].item<bool>());
  EXPECT_FALSE(table.seen[0].slice(0, 0, 4).equal(start));
}

TEST(Environments, UnknownNamesAndActions) {
  EXPECT_THROW(make_environments(Node::parse("{name: repeat_frist}", "test"), 1, 1), InputError);
  EXPECT_THROW(make_environments(Node::parse("{name: repeat_first, cards: 1}", "test"), 1, 1), InputError);
  EXPECT_THROW(make_environments(Node::parse("{name: count_recall, kinds: 3}", "test"), 1, 1), InputError);
  Table table("{name: repeat_first}", 1);
  EXPECT_THROW(table.step(at::full({1}, 4, at::kLong)), InputError);
}

}  // namespace
}  // namespace weft::rl
