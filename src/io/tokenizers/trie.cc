#include "io/tokenizers/trie.h"

#include <bit>

namespace weft {

Trie::Trie() : edges_(16), values_(1, kNone), roots_(256, 0), shift_(60) {}

void Trie::insert(std::string_view text, size_t value) {
  if (text.empty()) return;
  uint32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    uint32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<uint32_t>(values_.size());
      values_.push_back(kNone);
      if (node == 0)
        roots_[byte] = next;
      else
        add_edge(key_of(node, byte), next);
    }
    node = next;
  }
  values_[node] = value;
}

void Trie::add_edge(uint64_t key, uint32_t node) {
  if (2 * (used_ + 1) > edges_.size()) grow();
  size_t i = place_of(key);
  while (edges_[i].key != 0) i = (i + 1) & (edges_.size() - 1);
  edges_[i] = {key, node};
  ++used_;
}

void Trie::grow() {
  std::vector<Edge> old(2 * edges_.size());
  old.swap(edges_);
  shift_ = 64 - std::countr_zero(edges_.size());
  used_ = 0;
  for (const Edge& edge : old)
    if (edge.key != 0) add_edge(edge.key, edge.node);
}

}  // namespace weft
