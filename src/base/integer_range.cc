#include "base/integer_range.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace weft {
namespace {

constexpr int64_t kMostListed = 2048;         // values that are kept one by one
constexpr int64_t kMostPairs = 1 << 16;       // of values that are looked at in one operation
constexpr int64_t kMostDivided = 16;          // values whose divisors are listed
constexpr int64_t kLargestDivided = 1 << 30;  // takes 2^15 trials

int64_t capped_sum(int64_t a, int64_t b) { return std::min(a + b, kLargestTerm + 1); }

IntegerRange nothing() { return {.lower = 1, .upper = 0}; }

int64_t common_multiple(int64_t a, int64_t b) { return capped_product(a / std::gcd(a, b), b); }

int64_t pairs(const IntegerRange& a, const IntegerRange& b) {
  return a.listed && b.listed ? static_cast<int64_t>(a.values.size() * b.values.size()) : kMostPairs + 1;
}

template <class Keep>
IntegerRange kept(const IntegerRange& a, const Keep& keep) {
  std::vector<int64_t> values;
  std::copy_if(a.values.begin(), a.values.end(), std::back_inserter(values), keep);
  return range_of(std::move(values));
}

// Largest x with x^n <= value.
int64_t root(int64_t value, int64_t exponent) {
  auto x = static_cast<int64_t>(std::pow(static_cast<double>(value), 1.0 / static_cast<double>(exponent)));
  while (x > 0 && capped_power(x, exponent) > value) --x;
  while (capped_power(x + 1, exponent) <= value) ++x;
  return x;
}

// Whether the divisors of all values can be listed.
bool divisible_values(const IntegerRange& a) {
  return a.listed && static_cast<int64_t>(a.values.size()) <= kMostDivided && a.upper <= kLargestDivided;
}

std::vector<int64_t> all_divisors(const IntegerRange& a) {
  std::vector<int64_t> found;
  for (const int64_t value : a.values)
    for (int64_t d = 1; d * d <= value; ++d)
      if (value % d == 0) {
        found.push_back(d);
        found.push_back(value / d);
      }
  return found;
}

}  // namespace

bool IntegerRange::contains(int64_t value) const {
  if (listed) return std::binary_search(values.begin(), values.end(), value);
  return value >= lower && value <= upper && value % factor == 0;
}

int64_t capped_product(int64_t a, int64_t b) {
  return a != 0 && b > kLargestTerm / a ? kLargestTerm + 1 : a * b;
}

int64_t capped_power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  for (int64_t i = 0; i < exponent && result <= kLargestTerm; ++i) {
    if (base <= 1) return base;
    result = capped_product(result, base);
  }
  return result;
}

IntegerRange range_of(int64_t lower, int64_t upper, int64_t factor) {
  lower = std::max<int64_t>(lower, 1);
  upper = std::min(upper, kLargestTerm);
  if (lower > upper || factor > upper) return nothing();
  IntegerRange range{
      .lower = (lower + factor - 1) / factor * factor, .upper = upper / factor * factor, .factor = factor};
  if (range.empty()) return nothing();
  if ((range.upper - range.lower) / factor >= kMostListed) return range;
  range.listed = true;
  for (int64_t value = range.lower; value <= range.upper; value += factor) range.values.push_back(value);
  return range;
}

IntegerRange range_of(std::vector<int64_t> values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
  if (values.empty()) return nothing();
  IntegerRange range{.lower = values.front(), .upper = values.back(), .factor = 0};
  for (const int64_t value : values) range.factor = std::gcd(range.factor, value);
  if (static_cast<int64_t>(values.size()) <= kMostListed) {
    range.listed = true;
    range.values = std::move(values);
  }
  return range;
}

IntegerRange intersection(const IntegerRange& a, const IntegerRange& b) {
  if (a.empty() || b.empty()) return nothing();
  if (a.listed) return kept(a, [&](int64_t value) { return b.contains(value); });
  if (b.listed) return kept(b, [&](int64_t value) { return a.contains(value); });
  return range_of(std::max(a.lower, b.lower), std::min(a.upper, b.upper),
                  common_multiple(a.factor, b.factor));
}

IntegerRange hull(const IntegerRange& a, const IntegerRange& b) {
  if (a.empty()) return b;
  if (b.empty()) return a;
  if (a.listed && b.listed) {
    auto values = a.values;
    values.insert(values.end(), b.values.begin(), b.values.end());
    return range_of(std::move(values));
  }
  return range_of(std::min(a.lower, b.lower), std::max(a.upper, b.upper), std::gcd(a.factor, b.factor));
}

IntegerRange sum_range(const IntegerRange& a, const IntegerRange& b) {
  if (a.empty() || b.empty()) return nothing();
  if (pairs(a, b) <= kMostPairs) {
    std::vector<int64_t> values;
    for (const int64_t x : a.values)
      for (const int64_t y : b.values)
        if (x + y <= kLargestTerm) values.push_back(x + y);
    return range_of(std::move(values));
  }
  return range_of(capped_sum(a.lower, b.lower), capped_sum(a.upper, b.upper), std::gcd(a.factor, b.factor));
}

IntegerRange product_range(const IntegerRange& a, const IntegerRange& b) {
  if (a.empty() || b.empty()) return nothing();
  if (pairs(a, b) <= kMostPairs) {
    std::vector<int64_t> values;
    for (const int64_t x : a.values)
      for (const int64_t y : b.values)
        if (capped_product(x, y) <= kLargestTerm) values.push_back(x * y);
    return range_of(std::move(values));
  }
  return range_of(capped_product(a.lower, b.lower), capped_product(a.upper, b.upper),
                  capped_product(a.factor, b.factor));
}

IntegerRange power_range(const IntegerRange& a, int64_t exponent) {
  if (a.empty()) return nothing();
  if (a.listed) {
    std::vector<int64_t> values;
    for (const int64_t x : a.values)
      if (capped_power(x, exponent) <= kLargestTerm) values.push_back(capped_power(x, exponent));
    return range_of(std::move(values));
  }
  return range_of(capped_power(a.lower, exponent), capped_power(a.upper, exponent),
                  capped_power(a.factor, exponent));
}

IntegerRange addends(const IntegerRange& a, const IntegerRange& b, const IntegerRange& whole) {
  if (a.empty() || b.empty() || whole.empty()) return nothing();
  if (pairs(a, b) <= kMostPairs)
    return kept(a, [&](int64_t x) {
      return std::any_of(b.values.begin(), b.values.end(), [&](int64_t y) { return whole.contains(x + y); });
    });
  return intersection(
      a, range_of(whole.lower - b.upper, whole.upper - b.lower, std::gcd(whole.factor, b.factor)));
}

IntegerRange factors(const IntegerRange& a, const IntegerRange& b, const IntegerRange& whole) {
  if (a.empty() || b.empty() || whole.empty()) return nothing();
  if (pairs(a, b) <= kMostPairs)
    return kept(a, [&](int64_t x) {
      return std::any_of(b.values.begin(), b.values.end(), [&](int64_t y) {
        const int64_t product = capped_product(x, y);
        return product <= kLargestTerm && whole.contains(product);
      });
    });
  auto range = intersection(a, range_of((whole.lower - 1) / b.upper + 1, whole.upper / b.lower));
  if (!divisible_values(whole)) return range;
  if (!range.listed) range = intersection(range, range_of(all_divisors(whole)));
  return kept(range, [&](int64_t x) {
    return std::any_of(whole.values.begin(), whole.values.end(),
                       [&](int64_t value) { return value % x == 0 && b.contains(value / x); });
  });
}

IntegerRange bases(const IntegerRange& a, int64_t exponent, const IntegerRange& whole) {
  if (a.empty() || whole.empty()) return nothing();
  if (a.listed)
    return kept(a, [&](int64_t x) {
      const int64_t value = capped_power(x, exponent);
      return value <= kLargestTerm && whole.contains(value);
    });
  return intersection(a, range_of(root(whole.lower - 1, exponent) + 1, root(whole.upper, exponent)));
}

IntegerRange multiples(const IntegerRange& a, const IntegerRange& b) {
  if (a.empty() || b.empty()) return nothing();
  if (pairs(a, b) <= kMostPairs)
    return kept(a, [&](int64_t x) {
      return std::any_of(b.values.begin(), b.values.end(), [&](int64_t y) { return x % y == 0; });
    });
  return intersection(a, range_of(b.lower, kLargestTerm, b.factor));
}

IntegerRange divisors(const IntegerRange& b, const IntegerRange& a) {
  if (a.empty() || b.empty()) return nothing();
  if (pairs(a, b) <= kMostPairs)
    return kept(b, [&](int64_t y) {
      return std::any_of(a.values.begin(), a.values.end(), [&](int64_t x) { return x % y == 0; });
    });
  if (divisible_values(a)) return intersection(b, range_of(all_divisors(a)));
  return intersection(b, range_of(1, a.upper));
}

}  // namespace weft
