// A random order of 0 .. n-1 that needs no table: a Feistel network whose values outside the range are mapped
// again. Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains".
#pragma once

#include <cstdint>

namespace weft {

class Permutation {
 public:
  // n >= 1; equal seeds give equal orders on every machine.
  Permutation(int64_t n, uint64_t seed);
  // The i-th of the order, 0 <= i < n.
  int64_t at(int64_t i) const;

 private:
  uint64_t once(uint64_t value) const;
  uint64_t n_, keys_[6];
  int half_bits_;
};

// Mixes all bits (the finaliser of SplitMix64): equal inputs give equal outputs on every machine.
uint64_t mix_bits(uint64_t value);

}  // namespace weft
