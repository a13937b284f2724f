#include "io/tokenizers/bpe_model.h"

#include <algorithm>
#include <queue>

#include "base/error.h"
#include "io/tokenizers/byte_letters.h"

namespace weft {

namespace {

constexpr size_t kShortPiece = 24;  // up to here looking at all pairs is faster than a queue
constexpr size_t kCachedBytes = 64, kCachedPieces = 1 << 16;

// "a b" or ["a", "b"].
std::pair<std::string, std::string> read_pair(const JsonPlace& place) {
  if (place.json().is_array()) {
    const auto both = place.items();
    require(both.size() == 2, "{}: expected two tokens, found {}", place.where(), place.shown());
    return {both[0].text(), both[1].text()};
  }
  const std::string text = place.text();
  const size_t space = text.find(' ');
  require(space != std::string::npos && text.find(' ', space + 1) == std::string::npos,
          "{}: expected two tokens with one space between them, found '{}'", place.where(), text);
  return {text.substr(0, space), text.substr(space + 1)};
}

}  // namespace

uint64_t stable_hash(std::string_view bytes, uint64_t seed) {
  for (const char byte : bytes) seed = (seed ^ static_cast<unsigned char>(byte)) * 0x100000001B3u;
  return seed;
}

BpeModel::BpeModel(const JsonPlace& place) : where_(place.where()) {
  place.only({"type", "vocab", "merges", "dropout", "unk_token", "continuing_subword_prefix",
              "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges"});
  if (place.has("type")) {
    const std::string type = place.at("type").text();
    supported(type == "BPE", "{}: the model '{}' is not supported; supported is BPE",
              place.at("type").where(), type);
  }
  if (place.has("dropout"))
    supported(place.at("dropout").json() == 0.0, "{}: merging at random is not supported, found {}",
              place.at("dropout").where(), place.at("dropout").shown());
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (place.has(affix))
      supported(place.at(affix).text().empty(), "{}: '{}' is not supported", place.at(affix).where(),
                place.at(affix).text());
  ignore_merges_ = place.boolean_or("ignore_merges", false);
  fuse_unknown_ = place.boolean_or("fuse_unk", false);
  read_vocabulary(place.at("vocab"));
  read_symbols(place);
  read_merges(place.at("merges"));
}

void BpeModel::read_vocabulary(const JsonPlace& place) {
  require(place.json().is_object(), "{}: expected an object of tokens and ids", place.where());
  for (const auto& [spelling, value] : place.json().items()) {
    const bool valid = value.is_number_integer() && value >= 0 && value < kMaxId;
    require(valid, "{}: '{}' has the id {}, expected a whole number from 0 to {}", place.where(), spelling,
            value.dump(), kMaxId - 1);
    const auto id = value.get<size_t>();
    if (id >= vocabulary_.size()) vocabulary_.resize(id + 1);
    VocabularyEntry& entry = vocabulary_[id];
    require(!entry.present, "{}: '{}' and '{}' have the same id {}", place.where(), entry.spelling, spelling,
            id);
    entry = {true, spelling, letters_to_bytes(spelling).value_or(spelling)};
    by_spelling_.emplace(spelling, static_cast<int32_t>(id));
  }
  require(!vocabulary_.empty(), "{}: is empty", place.where());
}

void BpeModel::read_symbols(const JsonPlace& place) {
  const bool fallback = place.boolean_or("byte_fallback", false);
  fallback_.resize(256);
  for (int byte = 0; byte < 256; ++byte) {
    const std::string letter = bytes_to_letters(std::string(1, static_cast<char>(byte)));
    byte_ids_[byte] = static_cast<int32_t>(find(letter));
    if (byte_ids_[byte] >= 0 || !fallback) continue;
    std::vector<int32_t> spelled;
    for (const char part : letter)
      spelled.push_back(
          static_cast<int32_t>(find(fmt::format("<0x{:02X}>", static_cast<unsigned char>(part)))));
    if (std::find(spelled.begin(), spelled.end(), -1) == spelled.end()) fallback_[byte] = spelled;
  }
  if (!place.has("unk_token")) return;
  unknown_ = static_cast<int32_t>(find(place.at("unk_token").text()));
  require(unknown_ >= 0, "{}: '{}' is not in the vocabulary", place.at("unk_token").where(),
          place.at("unk_token").text());
}

void BpeModel::read_merges(const JsonPlace& place) {
  require(place.json().is_array(), "{}: expected a list", place.where());
  merges_.reserve(place.json().size());
  int32_t rank = 0;
  for (const auto& item : place.items()) {
    const auto [left, right] = read_pair(item);
    const int64_t a = find(left), b = find(right), result = find(left + right);
    for (const auto& [id, spelling] :
         {std::pair(a, left), std::pair(b, right), std::pair(result, left + right)})
      require(id >= 0, "{}: '{}' is not in the vocabulary", item.where(), spelling);
    merges_[pair_key(static_cast<int32_t>(a), static_cast<int32_t>(b))] = {rank++,
                                                                           static_cast<int32_t>(result)};
  }
}

int64_t BpeModel::find(const std::string& spelling) const {
  const auto found = by_spelling_.find(spelling);
  return found == by_spelling_.end() ? -1 : found->second;
}

const BpeModel::Merge* BpeModel::find_merge(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BpeModel::encode(const std::string& piece, std::vector<int64_t>& ids) const {
  const bool keep = piece.size() <= kCachedBytes;
  if (keep) {
    const std::lock_guard lock(cache_mutex_);
    const auto found = cache_.find(piece);
    if (found != cache_.end()) {
      ids.insert(ids.end(), found->second.begin(), found->second.end());
      return;
    }
  }
  std::vector<int32_t> symbols;
  const int64_t whole = ignore_merges_ ? find(bytes_to_letters(piece)) : -1;
  if (whole >= 0) {
    symbols.push_back(static_cast<int32_t>(whole));
  } else {
    symbols = symbols_of(piece);
    merge(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
  if (!keep) return;
  const std::lock_guard lock(cache_mutex_);
  if (cache_.size() < kCachedPieces) cache_.emplace(piece, std::move(symbols));
}

std::vector<int32_t> BpeModel::symbols_of(const std::string& piece) const {
  std::vector<int32_t> symbols;
  symbols.reserve(piece.size());
  bool after_unknown = false;
  for (const char c : piece) {
    const auto byte = static_cast<unsigned char>(c);
    const bool unknown = byte_ids_[byte] < 0 && fallback_[byte].empty();
    require(!unknown || unknown_ >= 0,
            "{}: the vocabulary has no token for the byte 0x{:02X} and no unk_token", where_, byte);
    if (byte_ids_[byte] >= 0)
      symbols.push_back(byte_ids_[byte]);
    else if (!unknown)
      symbols.insert(symbols.end(), fallback_[byte].begin(), fallback_[byte].end());
    else if (!(fuse_unknown_ && after_unknown))
      symbols.push_back(unknown_);
    after_unknown = unknown;
  }
  return symbols;
}

void BpeModel::merge(std::vector<int32_t>& symbols) const {
  symbols.size() <= kShortPiece ? merge_short(symbols) : merge_long(symbols);
}

// The pair of lowest rank first, of equal ones the leftmost, until none is left.
void BpeModel::merge_short(std::vector<int32_t>& symbols) const {
  Merge pairs[kShortPiece];  // rank INT32_MAX: no merge of symbols i and i + 1
  const auto look = [&](size_t i) {
    const Merge* found = i + 1 < symbols.size() ? find_merge(symbols[i], symbols[i + 1]) : nullptr;
    pairs[i] = found ? *found : Merge{INT32_MAX, -1};
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

// The same with a queue of candidate pairs, n log n.
void BpeModel::merge_long(std::vector<int32_t>& symbols) const {
  struct Candidate {
    int32_t rank, at, result;
    bool operator<(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : at > other.at;
    }
  };
  const auto size = static_cast<int32_t>(symbols.size());
  std::vector<int32_t> next(symbols.size()), previous(symbols.size());
  std::priority_queue<Candidate> queue;
  const auto offer = [&](int32_t at) {
    if (at < 0 || next[at] >= size) return;
    if (const Merge* found = find_merge(symbols[at], symbols[next[at]]))
      queue.push({found->rank, at, found->result});
  };
  for (int32_t i = 0; i < size; ++i) next[i] = i + 1, previous[i] = i - 1;
  for (int32_t i = 0; i < size; ++i) offer(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    if (symbols[top.at] < 0 || next[top.at] >= size) continue;
    const int32_t right = next[top.at];
    const Merge* now = find_merge(symbols[top.at], symbols[right]);
    if (!now || now->rank != top.rank) continue;  // one of the two was merged away since
    symbols[top.at] = top.result;
    symbols[right] = -1;
    next[top.at] = next[right];
    if (next[right] < size) previous[next[right]] = top.at;
    offer(previous[top.at]);
    offer(top.at);
  }
  std::erase(symbols, -1);
}

uint64_t BpeModel::hash(uint64_t seed) const {
  for (size_t id = 0; id < vocabulary_.size(); ++id)
    if (vocabulary_[id].present)
      seed = stable_hash(fmt::format("{} {}\n", id, vocabulary_[id].spelling), seed);
  std::vector<std::pair<int32_t, uint64_t>> order;
  for (const auto& [key, merge] : merges_) order.emplace_back(merge.rank, key);
  std::sort(order.begin(), order.end());
  for (const auto& [rank, key] : order) seed = stable_hash(fmt::format("{:x}\n", key), seed);
  return stable_hash(fmt::format("{} {} {}", unknown_, fuse_unknown_, ignore_merges_), seed);
}

}  // namespace weft
