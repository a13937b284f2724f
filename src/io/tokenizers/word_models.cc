#include "io/tokenizers/word_models.h"

#include "base/error.h"
#include "io/tokenizers/characters.h"

namespace weft {

namespace {

std::string text_member(const JsonPlace& place, const char* key, const char* otherwise) {
  return place.has(key) ? place.at(key).text() : otherwise;
}

// A text without a token needs unk_token, which may be missing as long as it is not needed.
void push_unknown(int64_t id, const std::string& where, const std::string& name, std::vector<int64_t>& ids) {
  require(id >= 0, "{}: the text has a word without a token, and unk_token '{}' is not in the vocabulary",
          where, name);
  ids.push_back(id);
}

}  // namespace

WordPieceModel::WordPieceModel(const JsonPlace& place)
    : vocabulary_(Vocabulary::read(place.at("vocab"))), where_(place.where()) {
  place.only({"type", "vocab", "unk_token", "continuing_subword_prefix", "max_input_chars_per_word"});
  unknown_name_ = text_member(place, "unk_token", "[UNK]");
  prefix_ = text_member(place, "continuing_subword_prefix", "##");
  unknown_ = vocabulary_.find(unknown_name_);
  if (place.has("max_input_chars_per_word")) {
    const JsonPlace given = place.at("max_input_chars_per_word");
    longest_word_ = given.integer();
    require(longest_word_ >= 0, "{}: {} is negative", given.where(), longest_word_);
  }
  for (int64_t id = 0; id < vocabulary_.size(); ++id) {
    if (!vocabulary_.has(id)) continue;
    const std::string_view spelling = vocabulary_.spelling(id);
    first_.insert(spelling, static_cast<size_t>(id));
    if (spelling.starts_with(prefix_))
      others_.insert(spelling.substr(prefix_.size()), static_cast<size_t>(id));
  }
}

void WordPieceModel::encode(const std::string& piece, std::vector<int64_t>& ids) const {
  int64_t characters = 0;
  for (const char c : piece) characters += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  const size_t before = ids.size();
  bool good = characters <= longest_word_;
  for (size_t at = 0; good && at < piece.size();) {
    const auto [id, length] = (at == 0 ? first_ : others_).longest(piece, at);
    good = length > 0;
    at += length;
    if (good) ids.push_back(static_cast<int64_t>(id));
  }
  if (good) return;
  ids.resize(before);
  push_unknown(unknown_, where_, unknown_name_, ids);
}

uint64_t WordPieceModel::hash(uint64_t seed) const {
  seed = stable_hash(vocabulary_, seed);
  return stable_hash(fmt::format("wordpiece {} {} {}", unknown_, prefix_, longest_word_), seed);
}

WordLevelModel::WordLevelModel(const JsonPlace& place)
    : vocabulary_(Vocabulary::read(place.at("vocab"))), where_(place.where()) {
  place.only({"type", "vocab", "unk_token"});
  unknown_name_ = text_member(place, "unk_token", "<unk>");
  unknown_ = vocabulary_.find(unknown_name_);
}

void WordLevelModel::encode(const std::string& piece, std::vector<int64_t>& ids) const {
  const int64_t id = vocabulary_.find(piece);
  if (id >= 0)
    ids.push_back(id);
  else
    push_unknown(unknown_, where_, unknown_name_, ids);
}

uint64_t WordLevelModel::hash(uint64_t seed) const {
  return stable_hash(fmt::format("words {}", unknown_), stable_hash(vocabulary_, seed));
}

}  // namespace weft
