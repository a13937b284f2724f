// Merging neighbouring symbols by rank, the heart of byte-pair encoding.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace weft {

// Two neighbouring symbols as one number, the left one above the right one.
inline uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

class MergeTable {
 public:
  struct Merge {
    uint64_t key;
    int32_t rank, result;
  };

  MergeTable() = default;
  // Of several merges of one pair the last one counts, as in a map that is filled in order.
  explicit MergeTable(const std::vector<Merge>& merges);

  // Merges the pair of lowest rank, of equal ones the leftmost, until none is left. n log n for n symbols.
  void apply(std::vector<int32_t>& symbols) const;
  // The same; `seen` gets, by result, the last pair that could have been merged into it.
  using Origins = std::unordered_map<int32_t, std::pair<int32_t, int32_t>>;
  void apply(std::vector<int32_t>& symbols, Origins& seen) const { apply_long(symbols, &seen); }
  // Ascending by rank, then by key.
  std::vector<Merge> sorted() const;

 private:
  const Merge* find(int32_t left, int32_t right) const;
  void apply_short(std::vector<int32_t>& symbols) const;
  void apply_long(std::vector<int32_t>& symbols, Origins* seen) const;
  size_t place_of(uint64_t key) const { return static_cast<size_t>(key * 0x9E3779B97F4A7C15u >> shift_); }

  std::vector<Merge> slots_;  // open addressing, a power of two, at most half full; result < 0: free
  int shift_ = 64;
};

}  // namespace weft
