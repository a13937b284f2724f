#include "io/tokenizers/merge_table.h"

#include <algorithm>
#include <bit>
#include <queue>

namespace weft {

namespace {

constexpr size_t kShort = 24;  // up to here looking at all pairs is faster than a queue

}  // namespace

MergeTable::MergeTable(const std::vector<Merge>& merges) {
  if (merges.empty()) return;
  slots_.assign(std::bit_ceil(2 * merges.size()), Merge{0, INT32_MAX, -1});
  shift_ = 64 - std::countr_zero(slots_.size());
  for (const Merge& merge : merges) {
    size_t i = place_of(merge.key);
    while (slots_[i].result >= 0 && slots_[i].key != merge.key) i = (i + 1) & (slots_.size() - 1);
    slots_[i] = merge;
  }
}

const MergeTable::Merge* MergeTable::find(int32_t left, int32_t right) const {
  if (slots_.empty()) return nullptr;
  const uint64_t key = pair_key(left, right);
  for (size_t i = place_of(key); slots_[i].result >= 0; i = (i + 1) & (slots_.size() - 1))
    if (slots_[i].key == key) return &slots_[i];
  return nullptr;
}

void MergeTable::apply(std::vector<int32_t>& symbols) const {
  symbols.size() <= kShort ? apply_short(symbols) : apply_long(symbols, nullptr);
}

void MergeTable::apply_short(std::vector<int32_t>& symbols) const {
  struct Pair {
    int32_t rank, result;
  };
  Pair pairs[kShort];  // rank INT32_MAX: no merge of symbols i and i + 1
  const auto look = [&](size_t i) {
    const Merge* found = i + 1 < symbols.size() ? find(symbols[i], symbols[i + 1]) : nullptr;
    pairs[i] = found ? Pair{found->rank, found->result} : Pair{INT32_MAX, -1};
  };
  for (size_t i = 0; i < symbols.size(); ++i) look(i);
  while (symbols.size() > 1) {
    size_t best = 0;
    for (size_t i = 1; i < symbols.size(); ++i)
      if (pairs[i].rank < pairs[best].rank) best = i;
    if (pairs[best].rank == INT32_MAX) return;
    symbols[best] = pairs[best].result;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    for (size_t i = best + 1; i < symbols.size(); ++i) pairs[i] = pairs[i + 1];
    look(best);
    if (best > 0) look(best - 1);
  }
}

void MergeTable::apply_long(std::vector<int32_t>& symbols, Origins* seen) const {
  struct Candidate {
    int32_t rank, at, right, result;  // right: the symbol at the right when the candidate was made
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  const auto size = static_cast<int32_t>(symbols.size());
  std::vector<int32_t> next(symbols.size()), previous(symbols.size());
  std::priority_queue<Candidate> queue;
  const auto offer = [&](int32_t at) {
    if (at < 0 || next[at] >= size) return;
    const Merge* found = find(symbols[at], symbols[next[at]]);
    if (!found) return;
    queue.push({found->rank, at, next[at], found->result});
    if (seen) (*seen)[found->result] = {symbols[at], symbols[next[at]]};
  };
  for (int32_t i = 0; i < size; ++i) next[i] = i + 1, previous[i] = i - 1;
  for (int32_t i = 0; i < size; ++i) offer(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    if (symbols[top.at] < 0 || next[top.at] != top.right) continue;
    const Merge* now = find(symbols[top.at], symbols[top.right]);
    if (!now || now->rank != top.rank || now->result != top.result) continue;  // merged away since
    symbols[top.at] = top.result;
    symbols[top.right] = -1;
    next[top.at] = next[top.right];
    if (next[top.right] < size) previous[next[top.right]] = top.at;
    offer(previous[top.at]);
    offer(top.at);
  }
  std::erase(symbols, -1);
}

std::vector<MergeTable::Merge> MergeTable::sorted() const {
  std::vector<Merge> merges;
  for (const Merge& merge : slots_)
    if (merge.result >= 0) merges.push_back(merge);
  std::sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    return a.rank != b.rank ? a.rank < b.rank : a.key < b.key;
  });
  return merges;
}

}  // namespace weft
