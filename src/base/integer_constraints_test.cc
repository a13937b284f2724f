#include "base/integer_constraints.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <functional>

#include "base/error.h"

namespace weft {
namespace {

using Order = IntegerProblem::Order;
using Row = std::vector<int64_t>;
using Rows = std::vector<Row>;

Rows rows_of(const std::vector<IntegerAssignment>& solutions, const std::vector<std::string>& names) {
  Rows rows;
  for (const auto& solution : solutions) {
    Row row;
    for (const auto& name : names) row.push_back(solution.at(name));
    rows.push_back(row);
  }
  return rows;
}

TEST(IntegerProblem, ListsValuesInOrder) {
  IntegerProblem p;
  p.add({.name = "a", .values = {1, 2}});
  p.add({.name = "b", .values = {3, 4}});
  EXPECT_EQ(rows_of(p.solve({.count = 0}), {"a", "b"}), (Rows{{1, 3}, {1, 4}, {2, 3}, {2, 4}}));
  EXPECT_EQ(rows_of(p.solve({.choices = {{"b", Order::largest_first}, {"a"}}, .count = 3}), {"a", "b"}),
            (Rows{{1, 4}, {2, 4}, {1, 3}}));
  EXPECT_EQ(rows_of(p.solve({.choices = {{"a"}, {"b"}}, .count = 2, .excluded = {{{"a", 1}, {"b", 3}}}}),
                    {"a", "b"}),
            (Rows{{1, 4}, {2, 3}}));
}

TEST(IntegerProblem, DivisorsOfAPowerOfTwo) {
  IntegerProblem p;
  const auto a = p.add({.name = "a", .values = {512}}), b = p.add({.name = "b"});
  p.constrain(divisible(a, b));
  EXPECT_EQ(p.propagate().at("b").values, (Row{1, 2, 4, 8, 16, 32, 64, 128, 256, 512}));
  EXPECT_EQ(rows_of(p.solve({.choices = {{"b", Order::largest_first}}, .count = 0}), {"b"}),
            (Rows{{512}, {256}, {128}, {64}, {32}, {16}, {8}, {4}, {2}, {1}}));
}

TEST(IntegerProblem, PropagationReachesBothWays) {
  IntegerProblem p;
  const auto a = p.add({.name = "a", .upper = 1000}), b = p.add({.name = "b", .lower = 10});
  const auto c = p.add({.name = "c", .values = {3, 5, 50}});
  p.constrain(equal(a, b * c));
  p.constrain(at_most(power(c, 2) + 7, 40));
  auto ranges = p.propagate();
  EXPECT_EQ(ranges.at("c").values, (Row{3, 5}));
  EXPECT_EQ(ranges.at("a").lower, 30);
  EXPECT_EQ(ranges.at("b").upper, 333);
  p.constrain(at_most(b + b, 19));
  for (const auto& [name, range] : p.propagate()) EXPECT_TRUE(range.empty()) << name;
  EXPECT_TRUE(p.solve({}).empty());
}

TEST(IntegerProblem, FactorsAndPrimes) {
  IntegerProblem p;
  const auto a = p.add({.name = "a", .upper = 100, .factor = 6, .primes = {2, 3}});
  p.add({.name = "wide", .lower = int64_t{1} << 20, .factor = 1024});
  EXPECT_EQ(p.propagate().at("a").values, (Row{6, 12, 18, 24, 36, 48, 54, 72, 96}));
  EXPECT_EQ(p.solve({.choices = {{"wide", Order::largest_first}}})[0].at("wide"), int64_t{1} << 30);
  p.constrain(any_of({equal(a, 13), all_of({at_most(30, a), at_most(a, 40)})}));
  EXPECT_EQ(rows_of(p.solve({.choices = {{"a"}}, .count = 0}), {"a"}), Rows{{36}});
}

// Every solution among all assignments of three variables from 1 to `upper`, in order.
Rows brute_force(int64_t upper, const std::function<bool(int64_t, int64_t, int64_t)>& holds) {
  Rows rows;
  for (int64_t a = 1; a <= upper; ++a)
    for (int64_t b = 1; b <= upper; ++b)
      for (int64_t c = 1; c <= upper; ++c)
        if (holds(a, b, c)) rows.push_back({a, b, c});
  return rows;
}

TEST(IntegerProblem, SameSolutionsAsBruteForce) {
  using Terms = std::array<IntegerTerm, 3>;
  struct Case {
    const char* name;
    std::function<std::vector<IntegerConstraint>(const Terms&)> constraints;
    std::function<bool(int64_t, int64_t, int64_t)> holds;
  };
  const std::vector<Case> cases = {
      {"sum", [](const Terms& t) { return std::vector{equal(t[0] + t[1], t[2])}; },
       [](int64_t a, int64_t b, int64_t c) { return a + b == c; }},
      {"triples",
       [](const Terms& t) {
         return std::vector{equal(power(t[0], 2) + power(t[1], 2), power(t[2], 2)), at_most(t[0], t[1])};
       },
       [](int64_t a, int64_t b, int64_t c) { return a * a + b * b == c * c && a <= b; }},
      {"divisible",
       [](const Terms& t) {
         return std::vector{divisible(t[0] * t[1], t[2] + 3), at_most(2 * t[2], t[0] + t[1])};
       },
       [](int64_t a, int64_t b, int64_t c) { return a * b % (c + 3) == 0 && 2 * c <= a + b; }},
      {"or",
       [](const Terms& t) {
         return std::vector{
             any_of({equal(t[0] * t[0], t[1] + 1), all_of({divisible(t[2], t[0]), equal(t[1], 5)}),
                     equal(power(t[2], 3), 27)}),
             at_most(t[0] * t[1] * t[2], 100)};
       },
       [](int64_t a, int64_t b, int64_t c) {
         return (a * a == b + 1 || (c % a == 0 && b == 5) || c * c * c == 27) && a * b * c <= 100;
       }},
      {"twice",
       [](const Terms& t) { return std::vector{equal(t[0] * (t[1] + t[0]), 4 * t[2] + t[1] * t[1])}; },
       [](int64_t a, int64_t b, int64_t c) { return a * (b + a) == 4 * c + b * b; }},
      {"none",
       [](const Terms& t) {
         return std::vector{equal(2 * t[0], 2 * t[1] + 1), at_most(t[2], 3)};
       },
       [](int64_t, int64_t, int64_t) { return false; }},
      {"free", [](const Terms&) { return std::vector<IntegerConstraint>{}; },
       [](int64_t, int64_t, int64_t) { return true; }},
  };
  for (const auto& c : cases) {
    const int64_t upper = 17;
    IntegerProblem p;
    const Terms terms = {p.add({.name = "a", .upper = upper}), p.add({.name = "b", .upper = upper}),
                         p.add({.name = "c", .upper = upper})};
    for (const auto& constraint : c.constraints(terms)) p.constrain(constraint);
    auto expected = brute_force(upper, c.holds);
    EXPECT_EQ(rows_of(p.solve({.count = 0}), {"a", "b", "c"}), expected) << c.name;
    for (const auto& row : expected)
      EXPECT_TRUE(p.holds({{"a", row[0]}, {"b", row[1]}, {"c", row[2]}})) << c.name;
    std::reverse(expected.begin(), expected.end());
    EXPECT_EQ(rows_of(p.solve({.choices = {{"a", Order::largest_first},
                                           {"b", Order::largest_first},
                                           {"c", Order::largest_first}},
                               .count = 0}),
                      {"a", "b", "c"}),
              expected)
        << c.name;
  }
}

// Choices of the first two variables only: each pair once, the third as small as can be.
TEST(IntegerProblem, OtherVariablesNeedOneValue) {
  IntegerProblem p;
  const auto a = p.add({.name = "a", .upper = 9}), b = p.add({.name = "b", .upper = 9});
  const auto c = p.add({.name = "c"});
  p.constrain(divisible(c, a * b + 1));
  p.constrain(at_most(60, c));
  Rows expected;
  for (int64_t x = 1; x <= 9; ++x)
    for (int64_t y = 1; y <= 9; ++y) {
      const int64_t step = x * y + 1;
      expected.push_back({x, y, (60 + step - 1) / step * step});
    }
  EXPECT_EQ(rows_of(p.solve({.choices = {{"a"}, {"b"}}, .count = 0}), {"a", "b", "c"}), expected);
}

// Intervals too wide to list; a term beyond 62 bits is no solution. 2^40 + 4 = 4 * 5 * 229 * 457 * 525313, a is at least 1024
// because b ends at 2^30, and below 2048 because of its cube.
TEST(IntegerProblem, LargeNumbers) {
  IntegerProblem p;
  const auto a = p.add({.name = "a"}), b = p.add({.name = "b", .lower = 2});
  p.constrain(equal(a * b, (int64_t{1} << 40) + 4));
  p.constrain(at_most(power(a, 3) * b, kLargestTerm));
  EXPECT_EQ(rows_of(p.solve({.choices = {{"b"}, {"a"}}, .count = 0}), {"a"}), (Rows{{4 * 457}, {5 * 229}}));
}

TEST(IntegerProblem, MistakesAreNamed) {
  IntegerProblem p;
  p.add({.name = "a"});
  EXPECT_THROW(p.add({.name = "a"}), InputError);
  EXPECT_THROW(p.add({.name = "b", .lower = 0}), InputError);
  EXPECT_THROW(p.add({.name = "b", .values = {0}}), InputError);
  EXPECT_THROW(IntegerTerm(0), InputError);
  EXPECT_THROW(power(IntegerTerm(2), 0), InputError);
  EXPECT_THROW(p.solve({.choices = {{"c"}}}), InputError);
  EXPECT_THROW(p.solve({.choices = {{"a"}, {"a"}}}), InputError);
  EXPECT_THROW(p.solve({.excluded = {{{"b", 1}}}}), InputError);
  EXPECT_THROW(p.holds({}), InputError);
  EXPECT_THROW(p.solve({.count = 0, .most_steps = 1000}), Unsupported);
}

// Tiles of FlashRNN's fused forward kernel: 16-bit values, 12 heads of 64, LSTM, batch 16 on an H100.
TEST(IntegerProblem, FlashRnnTilesOfAnH100) {
  const int64_t D = 64, H = 12, B = 16, G = 4, s = 2, a = 4, th = 16, pad = 8;
  const int64_t threads = 1024, blocks = 132, registers = 65536, shared = std::min(232448 - 1024, 227000);
  IntegerProblem p;
  const auto var = [&](const char* name, std::vector<int64_t> values = {}) {
    return p.add({.name = name, .values = std::move(values)});
  };
  const auto tb = var("tb", {8, 16, 32}), tg = var("tg", {8, 16, 32});
  const auto Rg = var("Rg"), Rh = var("Rh"), Bb = var("Bb"), Wb = var("Wb"), Lb = var("Lb", {1, 2, 3, 4});
  const auto Wh = var("Wh"), Lg = var("Lg"), Mh = var("Mh"), Ch = var("Ch"), NW = var("NW");
  const auto Mreg = var("Mreg"), Msh = var("Msh"), Mst = var("Mst"), Nblk = var("Nblk");
  const auto FB = Bb * Wb * Lb;
  p.constrain(equal(tb * tg, 256));
  p.constrain(equal(Wh * Wb * (D * G), NW * Rg * Lg * tg));
  p.constrain(divisible(D, Rh * Wh * th));
  p.constrain(divisible(G * D, Lg * Rg * tg));
  p.constrain(at_most(32 * NW, threads / 4));
  p.constrain(divisible(B, FB * tb));
  p.constrain(divisible(H, Mh));
  p.constrain(equal(Nblk, Rg * Rh * Bb * Mh));
  p.constrain(at_most(Nblk, blocks));
  p.constrain(equal(th * tg * Ch * NW, Mreg * Wb));
  p.constrain(at_most(Rh * Ch * Wh * th, D));
  p.constrain(at_most(Mreg + NW * tb * tg * Lb * (a / s) + NW * tb * th, registers * 2));
  p.constrain(equal(Bb * (s * G * D * D) + Bb * (s * D * G * pad) + 64, Msh + s * Mreg * Bb * Rg * Rh));
  p.constrain(equal(a * Wh * Rh * G * FB * tb * D + a * Wh * Rg * Rh * FB * tb * pad, Mst));
  p.constrain(at_most(Mh * (Msh + Mst), shared * Nblk));
  const std::vector<IntegerProblem::Choice> choices = {
      {"Mh", Order::largest_first}, {"Rg", Order::largest_first}, {"Rh"},
      {"Bb", Order::largest_first}, {"Lb", Order::largest_first}, {"Lg"},
      {"NW", Order::largest_first}, {"Ch", Order::largest_first}, {"tb"}};
  const auto solutions = p.solve({.choices = choices, .count = 12});
  ASSERT_EQ(solutions.size(), 12u);
  for (const auto& x : solutions) {
    const auto v = [&](const char* name) { return x.at(name); };
    const int64_t batches = v("Bb") * v("Wb") * v("Lb");
    EXPECT_EQ(v("tb") * v("tg"), 256);
    EXPECT_EQ(v("Wh") * v("Wb") * D * G, v("NW") * v("Rg") * v("Lg") * v("tg"));
    EXPECT_EQ(D % (v("Rh") * v("Wh") * th), 0);
    EXPECT_EQ(G * D % (v("Lg") * v("Rg") * v("tg")), 0);
    EXPECT_LE(32 * v("NW"), threads / 4);
    EXPECT_EQ(B % (batches * v("tb")), 0);
    EXPECT_EQ(H % v("Mh"), 0);
    EXPECT_EQ(v("Nblk"), v("Rg") * v("Rh") * v("Bb") * v("Mh"));
    EXPECT_LE(v("Nblk"), blocks);
    EXPECT_EQ(th * v("tg") * v("Ch") * v("NW"), v("Mreg") * v("Wb"));
    EXPECT_LE(v("Rh") * v("Ch") * v("Wh") * th, D);
    EXPECT_LE(v("Mreg") + v("NW") * 256 * v("Lb") * 2 + v("NW") * v("tb") * th, registers * 2);
    EXPECT_EQ(s * G * v("Bb") * D * D + s * D * G * pad * v("Bb") + 64,
              v("Msh") + s * v("Mreg") * v("Bb") * v("Rg") * v("Rh"));
    EXPECT_EQ(v("Mst"), a * v("Wh") * v("Rh") * batches * v("tb") * (G * D + v("Rg") * pad));
    EXPECT_LE(v("Mh") * (v("Msh") + v("Mst")), shared * v("Nblk"));
    EXPECT_TRUE(p.holds(x));
    auto other = x;
    ++other["Msh"];
    EXPECT_FALSE(p.holds(other));
  }
  EXPECT_EQ(solutions[0].at("Mh"), 12) << "all heads at once fit";
  const auto next = p.solve({.choices = choices, .excluded = {solutions[0]}});
  ASSERT_EQ(next.size(), 1u);
  EXPECT_EQ(next[0], solutions[1]);
}

}  // namespace
}  // namespace weft
