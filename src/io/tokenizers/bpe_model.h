// The merges of a byte-level BPE vocabulary: from the bytes of a piece to ids.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/tokenizers/json_place.h"

namespace weft {

constexpr int64_t kMaxId = int64_t{1} << 24;  // ids are below this

// Two neighbouring symbols as one number, the left one above the right one.
inline uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

// One entry of the vocabulary.
struct VocabularyEntry {
  bool present = false;
  std::string spelling;  // as in the file: letters
  std::string bytes;     // what it stands for; the spelling itself where that is not all letters
};

class BpeModel {
 public:
  // `place` is "model" of a tokenizer.json.
  explicit BpeModel(const JsonPlace& place);

  // Appends the ids of a piece. Thread-safe. InputError for a byte that the vocabulary cannot express.
  void encode(const std::string& piece, std::vector<int64_t>& ids) const;
  bool has_byte(unsigned char byte) const { return byte_ids_[byte] >= 0; }

  // By id, with gaps.
  const std::vector<VocabularyEntry>& vocabulary() const { return vocabulary_; }
  // The id of a spelling, or -1.
  int64_t find(const std::string& spelling) const;
  // A hash over all that decides ids.
  uint64_t hash(uint64_t seed) const;

 private:
  struct Merge {
    int32_t rank, result;
  };
  void read_vocabulary(const JsonPlace& place);
  void read_merges(const JsonPlace& place);
  void read_symbols(const JsonPlace& place);
  std::vector<int32_t> symbols_of(const std::string& piece) const;
  void merge(std::vector<int32_t>& symbols) const;
  void merge_short(std::vector<int32_t>& symbols) const;
  void merge_long(std::vector<int32_t>& symbols) const;
  const Merge* find_merge(int32_t left, int32_t right) const;

  std::string where_;
  std::vector<VocabularyEntry> vocabulary_;
  std::unordered_map<std::string, int32_t> by_spelling_;
  std::unordered_map<uint64_t, Merge> merges_;  // key: left id, right id
  int32_t byte_ids_[256];
  std::vector<std::vector<int32_t>> fallback_;  // by byte, when byte_fallback spells it; else empty
  int32_t unknown_ = -1;
  bool fuse_unknown_ = false, ignore_merges_ = false;

  // Words come again and again; their ids are kept up to a bound.
  mutable std::mutex cache_mutex_;
  mutable std::unordered_map<std::string, std::vector<int32_t>> cache_;
};

// FNV-1a: small, and the same on every machine.
uint64_t stable_hash(std::string_view bytes, uint64_t seed = 0xCBF29CE484222325u);

}  // namespace weft
