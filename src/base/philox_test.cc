#include "base/philox.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

namespace weft {
namespace {

// Known answers published with the generator (Random123, kat_vectors).
TEST(Philox, KnownAnswers) {
  using Words = std::array<uint32_t, 4>;
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  const uint32_t all = 0xffffffff;
  EXPECT_EQ(philox({all, all, all, all}, {all, all}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

std::vector<float> numbers(uint64_t key, uint64_t draw, int64_t first, int64_t count) {
  std::vector<float> out(static_cast<size_t>(count));
  normal_numbers(key, draw, first, count, out.data());
  return out;
}

TEST(NormalNumbers, PiecesEqualTheWhole) {
  const auto whole = numbers(3, 9, 0, 103);
  for (const auto& [first, count] : {std::pair<int64_t, int64_t>{0, 1}, {1, 7}, {6, 50}, {99, 4}, {50, 0}}) {
    const auto piece = numbers(3, 9, first, count);
    EXPECT_TRUE(std::equal(piece.begin(), piece.end(), whole.begin() + first)) << first;
  }
}

// Kolmogorov and Smirnov's statistic of a million numbers; it exceeds 1.95 / sqrt(n) once in a thousand seeds.
TEST(NormalNumbers, AreNormal) {
  const int64_t n = 1'000'000;
  auto x = numbers(stream_key(1, "weight"), 4, 0, n);
  double sum = 0, squares = 0;
  for (const float v : x) {
    sum += v;
    squares += static_cast<double>(v) * v;
  }
  EXPECT_LT(std::abs(sum / n), 4 / std::sqrt(n));
  EXPECT_NEAR(squares / n, 1, 0.01);
  std::sort(x.begin(), x.end());
  double worst = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double normal = 0.5 * std::erfc(-x[static_cast<size_t>(i)] / std::sqrt(2.0));
    worst = std::max({worst, std::abs(normal - static_cast<double>(i) / n),
                      std::abs(static_cast<double>(i + 1) / n - normal)});
  }
  EXPECT_LT(worst, 1.95 / std::sqrt(n));
}

double correlation(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * b[i];
  return sum / static_cast<double>(a.size());
}

TEST(NormalNumbers, DrawsStreamsAndNeighboursAreIndependent) {
  const int64_t n = 200'000;
  const double bound = 4 / std::sqrt(n);
  const auto base = numbers(stream_key(1, "a"), 0, 0, n);
  EXPECT_LT(std::abs(correlation(base, numbers(stream_key(1, "a"), 1, 0, n))), bound);
  EXPECT_LT(std::abs(correlation(base, numbers(stream_key(1, "b"), 0, 0, n))), bound);
  EXPECT_LT(std::abs(correlation(base, numbers(stream_key(2, "a"), 0, 0, n))), bound);
  for (const int64_t shift : {1, 2, 3, 4})
    EXPECT_LT(std::abs(correlation(base, numbers(stream_key(1, "a"), 0, shift, n))), bound);
}

}  // namespace
}  // namespace weft
