#include "io/tokenizers/token_model.h"

#include "base/error.h"
#include "io/tokenizers/bpe_model.h"
#include "io/tokenizers/byte_letters.h"
#include "io/tokenizers/unigram_model.h"
#include "io/tokenizers/word_models.h"

namespace weft {

void Vocabulary::add(const std::string& spelling, int64_t id, const std::string& where) {
  require(id >= 0 && id < kMaxId, "{}: '{}' has the id {}, expected a whole number from 0 to {}", where,
          spelling, id, kMaxId - 1);
  if (id >= size()) entries_.resize(static_cast<size_t>(id) + 1);
  Entry& entry = entries_[static_cast<size_t>(id)];
  require(!entry.present, "{}: '{}' and '{}' have the same id {}", where, entry.spelling, spelling, id);
  entry = {true, spelling};
  ids_[spelling] = static_cast<int32_t>(id);
}

Vocabulary Vocabulary::read(const JsonPlace& place) {
  require(place.json().is_object(), "{}: expected an object of tokens and ids", place.where());
  Vocabulary vocabulary;
  vocabulary.ids_.reserve(place.json().size());
  for (const auto& [spelling, value] : place.json().items()) {
    const bool valid = value.is_number_integer() && value >= 0 && value < kMaxId;
    require(valid, "{}: '{}' has the id {}, expected a whole number from 0 to {}", place.where(), spelling,
            value.dump(), kMaxId - 1);
    vocabulary.add(spelling, value.get<int64_t>(), place.where());
  }
  require(vocabulary.size() > 0, "{}: is empty", place.where());
  return vocabulary;
}

int64_t Vocabulary::find(const std::string& spelling) const {
  const auto found = ids_.find(spelling);
  return found == ids_.end() ? -1 : found->second;
}

int64_t Vocabulary::at(const std::string& spelling, const std::string& where) const {
  const int64_t id = find(spelling);
  require(id >= 0, "{}: '{}' is not in the vocabulary", where, spelling);
  return id;
}

void TokenModel::encode_bytes(const std::string& piece, std::vector<int64_t>& ids) const {
  encode(bytes_to_letters(piece), ids);
}

bool TokenModel::has_byte(unsigned char byte) const {
  return vocabulary().find(bytes_to_letters(std::string(1, static_cast<char>(byte)))) >= 0;
}

std::unique_ptr<const TokenModel> read_token_model(const JsonPlace& place) {
  std::string type;
  if (place.has("type"))
    type = place.at("type").text();
  else
    type = place.has("merges")                      ? "BPE"
           : place.has("continuing_subword_prefix") ? "WordPiece"
           : place.at("vocab").json().is_array()    ? "Unigram"
                                                    : "WordLevel";
  if (type == "BPE") return std::make_unique<BpeModel>(place);
  if (type == "Unigram") return std::make_unique<UnigramModel>(place);
  if (type == "WordPiece") return std::make_unique<WordPieceModel>(place);
  if (type == "WordLevel") return std::make_unique<WordLevelModel>(place);
  throw Unsupported(
      fmt::format("{}: the model '{}' is not supported; supported are BPE, Unigram, WordPiece, "
                  "WordLevel",
                  place.where(), type));
}

uint64_t stable_hash(std::string_view bytes, uint64_t seed) {
  for (const char byte : bytes) seed = (seed ^ static_cast<unsigned char>(byte)) * 0x100000001B3u;
  return seed;
}

uint64_t stable_hash(const Vocabulary& vocabulary, uint64_t seed) {
  for (int64_t id = 0; id < vocabulary.size(); ++id)
    if (vocabulary.has(id)) seed = stable_hash(fmt::format("{} {}\n", id, vocabulary.spelling(id)), seed);
  return seed;
}

}  // namespace weft
