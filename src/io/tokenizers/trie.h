// A set of byte strings with a number each, for finding all that begin at a place in a text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace weft {

// Edges lie in one open-addressed table, so a step costs one look-up however many children a node has.
class Trie {
 public:
  static constexpr size_t kNone = SIZE_MAX;

  Trie();
  // Later entries of the same text replace earlier ones. The empty text is left out.
  void insert(std::string_view text, size_t value);
  bool empty() const { return values_.size() <= 1; }
  // Whether an entry begins with this byte.
  bool starts_with(unsigned char byte) const { return roots_[byte] != 0; }

  // Calls found(value, length) for every entry that `text` has at `at`, the shortest first.
  template <class Found>
  void for_each_prefix(std::string_view text, size_t at, Found found) const {
    uint32_t node = 0;
    for (size_t i = at; i < text.size(); ++i) {
      node = child(node, static_cast<unsigned char>(text[i]));
      if (node == 0) return;
      if (values_[node] != kNone) found(values_[node], i + 1 - at);
    }
  }

  // Value and length of the longest entry that `text` has at `at`; length 0 when there is none.
  std::pair<size_t, size_t> longest(std::string_view text, size_t at) const {
    std::pair<size_t, size_t> best{kNone, 0};
    for_each_prefix(text, at, [&](size_t value, size_t length) { best = {value, length}; });
    return best;
  }

 private:
  struct Edge {
    uint64_t key = 0;  // node and byte, plus one; 0: a free place
    uint32_t node = 0;
  };
  static uint64_t key_of(uint32_t node, unsigned char byte) { return (uint64_t{node} << 8 | byte) + 1; }
  size_t place_of(uint64_t key) const { return static_cast<size_t>(key * 0x9E3779B97F4A7C15u >> shift_); }
  uint32_t child(uint32_t node, unsigned char byte) const {
    if (node == 0) return roots_[byte];
    const uint64_t key = key_of(node, byte);
    for (size_t i = place_of(key);; i = (i + 1) & (edges_.size() - 1)) {
      if (edges_[i].key == key) return edges_[i].node;
      if (edges_[i].key == 0) return 0;
    }
  }
  void add_edge(uint64_t key, uint32_t node);
  void grow();

  std::vector<Edge> edges_;  // a power of two, at most half full
  std::vector<size_t> values_;
  std::vector<uint32_t> roots_;  // by first byte
  size_t used_ = 0;
  int shift_;
};

}  // namespace weft
