// Sets of positive integers that a variable or a term may take: bounds, a common factor and, while they are few, the
// values themselves. Operations may keep more than the exact set, never less.
#pragma once

#include <cstdint>
#include <vector>

namespace weft {

inline constexpr int64_t kLargestTerm = (int64_t{1} << 62) - 1;

struct IntegerRange {
  int64_t lower = 1, upper = kLargestTerm;  // empty when lower > upper
  int64_t factor = 1;                       // of every value
  bool listed = false;                      // the values are `values`, sorted
  std::vector<int64_t> values = {};

  bool empty() const { return lower > upper; }
  bool single() const { return lower == upper; }
  bool contains(int64_t value) const;
  bool operator==(const IntegerRange&) const = default;
};

// a b and a^n, or kLargestTerm + 1 when that is exceeded.
int64_t capped_product(int64_t a, int64_t b);
int64_t capped_power(int64_t base, int64_t exponent);

IntegerRange range_of(int64_t lower, int64_t upper, int64_t factor = 1);
IntegerRange range_of(std::vector<int64_t> values);
IntegerRange intersection(const IntegerRange& a, const IntegerRange& b);
IntegerRange hull(const IntegerRange& a, const IntegerRange& b);  // of their union

// Of terms, from their parts.
IntegerRange sum_range(const IntegerRange& a, const IntegerRange& b);
IntegerRange product_range(const IntegerRange& a, const IntegerRange& b);
IntegerRange power_range(const IntegerRange& a, int64_t exponent);

// Of a part, from the term and the other part: what of `a` can give a value of `whole`.
IntegerRange addends(const IntegerRange& a, const IntegerRange& b, const IntegerRange& whole);
IntegerRange factors(const IntegerRange& a, const IntegerRange& b, const IntegerRange& whole);
IntegerRange bases(const IntegerRange& a, int64_t exponent, const IntegerRange& whole);

// What of `a` some value of `b` divides, and what of `b` divides some value of `a`.
IntegerRange multiples(const IntegerRange& a, const IntegerRange& b);
IntegerRange divisors(const IntegerRange& b, const IntegerRange& a);

}  // namespace weft
