#include "io/tokenizers/bpe_model.h"

#include <algorithm>

#include "base/error.h"
#include "io/tokenizers/byte_letters.h"
#include "io/tokenizers/characters.h"

namespace weft {

namespace {

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

std::string text_or(const JsonPlace& place, const char* key) {
  return place.has(key) ? place.at(key).text() : "";
}

}  // namespace

// Symbols of a piece as they are found, with unknown ones held back while they may still be fused.
class BpeModel::Symbols {
 public:
  Symbols(const BpeModel& model, size_t size) : model_(model) { ids_.reserve(size); }

  void add(int32_t id, std::string_view bytes) {
    if (id >= 0) {
      settle();
      ids_.push_back(id);
    } else if (!spell(bytes) && model_.unknown_ >= 0) {
      if (!model_.fuse_unknown_) settle();
      waiting_ = true;
    }
  }

  std::vector<int32_t> finish() {
    settle();
    return std::move(ids_);
  }

 private:
  void settle() {
    if (waiting_) ids_.push_back(model_.unknown_);
    waiting_ = false;
  }

  // As bytes, if all of them have tokens.
  bool spell(std::string_view bytes) {
    const auto id = [&](char c) { return model_.fallback_ids_[static_cast<unsigned char>(c)]; };
    if (!std::all_of(bytes.begin(), bytes.end(), [&](char c) { return id(c) >= 0; })) return false;
    for (const char c : bytes) ids_.push_back(id(c));
    return true;
  }

  const BpeModel& model_;
  std::vector<int32_t> ids_;
  bool waiting_ = false;
};

BpeModel::BpeModel(const JsonPlace& place) : vocabulary_(Vocabulary::read(place.at("vocab"))) {
  place.only({"type", "vocab", "merges", "dropout", "unk_token", "continuing_subword_prefix",
              "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges"});
  if (place.has("dropout"))
    require(place.at("dropout").json().is_number(), "{}: expected a number, found {}",
            place.at("dropout").where(), place.at("dropout").shown());
  prefix_ = text_or(place, "continuing_subword_prefix");
  suffix_ = text_or(place, "end_of_word_suffix");
  ignore_merges_ = place.boolean_or("ignore_merges", false);
  fuse_unknown_ = place.boolean_or("fuse_unk", false);
  if (place.has("unk_token"))
    unknown_ =
        static_cast<int32_t>(vocabulary_.at(place.at("unk_token").text(), place.at("unk_token").where()));
  read_bytes();
  if (!place.boolean_or("byte_fallback", false)) std::fill_n(fallback_ids_, 256, -1);
  read_merges(place.at("merges"));
}

BpeModel::BpeModel(const std::vector<std::string>& bytes_by_rank, const std::string& source)
    : ignore_merges_(true) {
  for (size_t rank = 0; rank < bytes_by_rank.size(); ++rank)
    if (!bytes_by_rank[rank].empty())
      vocabulary_.add(bytes_to_letters(bytes_by_rank[rank]), static_cast<int64_t>(rank), source);
  read_bytes();
  std::fill_n(fallback_ids_, 256, -1);
  for (int byte = 0; byte < 256; ++byte)
    require(byte_ids_[byte] >= 0, "{}: the byte 0x{:02X} has no token of its own", source, byte);
  std::unordered_map<std::string_view, int32_t> by_bytes;
  for (size_t rank = 0; rank < bytes_by_rank.size(); ++rank) {
    if (bytes_by_rank[rank].empty()) continue;
    const auto [same, fresh] = by_bytes.emplace(bytes_by_rank[rank], static_cast<int32_t>(rank));
    require(fresh, "{}: the ranks {} and {} have the same token", source, same->second, rank);
  }
  std::vector<MergeTable::Merge> merges;
  for (const auto& [bytes, rank] : by_bytes)
    for (size_t cut = 1; cut < bytes.size(); ++cut) {
      const auto left = by_bytes.find(bytes.substr(0, cut));
      const auto right = left == by_bytes.end() ? left : by_bytes.find(bytes.substr(cut));
      if (right != by_bytes.end()) merges.push_back({pair_key(left->second, right->second), rank, rank});
    }
  merges_ = MergeTable(merges);
}

void BpeModel::read_bytes() {
  for (int byte = 0; byte < 256; ++byte) {
    const std::string letter = bytes_to_letters(std::string(1, static_cast<char>(byte)));
    byte_ids_[byte] = static_cast<int32_t>(vocabulary_.find(letter));
    fallback_ids_[byte] = static_cast<int32_t>(vocabulary_.find(fmt::format("<0x{:02X}>", byte)));
  }
}

void BpeModel::read_merges(const JsonPlace& place) {
  require(place.json().is_array(), "{}: expected a list", place.where());
  std::vector<MergeTable::Merge> merges;
  merges.reserve(place.json().size());
  for (const auto& item : place.items()) {
    const auto [left, right] = read_pair(item);
    require(right.starts_with(prefix_), "{}: '{}' does not begin with '{}'", item.where(), right, prefix_);
    const auto id = [&](const std::string& spelling) {
      return static_cast<int32_t>(vocabulary_.at(spelling, item.where()));
    };
    const int32_t a = id(left), b = id(right), whole = id(left + right.substr(prefix_.size()));
    merges.push_back({pair_key(a, b), static_cast<int32_t>(merges.size()), whole});
  }
  merges_ = MergeTable(merges);
}

void BpeModel::encode(const std::string& piece, std::vector<int64_t>& ids) const {
  encode_symbols(piece, false, ids);
}

void BpeModel::encode_bytes(const std::string& piece, std::vector<int64_t>& ids) const {
  if (affixes_empty())
    encode_symbols(piece, true, ids);
  else
    encode_symbols(bytes_to_letters(piece), false, ids);
}

void BpeModel::encode_symbols(const std::string& piece, bool bytes, std::vector<int64_t>& ids) const {
  if (piece.empty()) return;
  const PieceCache& cache = bytes ? bytes_cache_ : text_cache_;
  if (cache.find(piece, ids)) return;
  const int64_t whole = !ignore_merges_ ? -1 : vocabulary_.find(bytes ? bytes_to_letters(piece) : piece);
  std::vector<int32_t> symbols{static_cast<int32_t>(whole)};
  if (whole < 0) {
    symbols = bytes ? symbols_of_bytes(piece) : symbols_of_text(piece);
    merges_.apply(symbols);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
  cache.keep(piece, symbols);
}

std::vector<int32_t> BpeModel::symbols_of_bytes(const std::string& piece) const {
  Symbols symbols(*this, piece.size());
  for (const char c : piece) {
    const int32_t id = byte_ids_[static_cast<unsigned char>(c)];
    symbols.add(id, id >= 0 ? std::string() : bytes_to_letters(std::string(1, c)));
  }
  return symbols.finish();
}

std::vector<int32_t> BpeModel::symbols_of_text(const std::string& piece) const {
  Symbols symbols(*this, piece.size());
  for_each_character(piece, [&](uint32_t, size_t begin, size_t end) {
    std::string symbol = piece.substr(begin, end - begin);
    if (begin > 0) symbol.insert(0, prefix_);
    if (end == piece.size()) symbol += suffix_;
    symbols.add(static_cast<int32_t>(vocabulary_.find(symbol)), symbol);
  });
  return symbols.finish();
}

uint64_t BpeModel::hash(uint64_t seed) const {
  seed = stable_hash(vocabulary_, seed);
  for (const auto& merge : merges_.sorted()) seed = stable_hash(fmt::format("{:x}\n", merge.key), seed);
  if (!affixes_empty()) seed = stable_hash(fmt::format("{} {}", prefix_, suffix_), seed);
  if (std::any_of(fallback_ids_, fallback_ids_ + 256, [](int32_t id) { return id >= 0; }))
    seed = stable_hash("byte fallback", seed);
  return stable_hash(fmt::format("{} {} {}", unknown_, fuse_unknown_, ignore_merges_), seed);
}

}  // namespace weft
