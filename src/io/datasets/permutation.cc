#include "io/datasets/permutation.h"

#include <bit>

#include "base/error.h"

namespace weft {

uint64_t mix_bits(uint64_t value) {
  value += 0x9E3779B97F4A7C15u;
  value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
  value = (value ^ value >> 27) * 0x94D049BB133111EBu;
  return value ^ value >> 31;
}

Permutation::Permutation(int64_t n, uint64_t seed) : n_(static_cast<uint64_t>(n)) {
  invariant(n >= 1, "a permutation of {} numbers", n);
  // The smallest domain of an even number of bits that holds n: at most 4 n values, so 4 rounds of mapping on
  // average.
  half_bits_ = (std::bit_width(n_ - 1) + 1) / 2;
  for (uint64_t& key : keys_) key = seed = mix_bits(seed);
}

uint64_t Permutation::once(uint64_t value) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  uint64_t left = value >> half_bits_, right = value & mask;
  for (const uint64_t key : keys_) {
    const uint64_t next = left ^ (mix_bits(right ^ key) & mask);
    left = right;
    right = next;
  }
  return left << half_bits_ | right;
}

int64_t Permutation::at(int64_t i) const {
  invariant(i >= 0 && static_cast<uint64_t>(i) < n_, "number {} of a permutation of {}", i, n_);
  uint64_t value = static_cast<uint64_t>(i);
  do value = once(value);
  while (value >= n_);
  return static_cast<int64_t>(value);
}

}  // namespace weft
