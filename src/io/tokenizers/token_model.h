// The model of a tokenizer: from one piece of text to ids.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/json_place.h"

namespace weft {

constexpr int64_t kMaxId = int64_t{1} << 24;  // ids are below this

// Spellings and ids, with gaps.
class Vocabulary {
 public:
  // InputError, naming `where`, for an id that is negative, too large or taken.
  void add(const std::string& spelling, int64_t id, const std::string& where);
  // "vocab" as an object of spellings and ids; InputError when it is none or empty.
  static Vocabulary read(const JsonPlace& place);

  // One more than the largest id.
  int64_t size() const { return static_cast<int64_t>(entries_.size()); }
  bool has(int64_t id) const { return id >= 0 && id < size() && entries_[static_cast<size_t>(id)].present; }
  // Of an id that it has.
  const std::string& spelling(int64_t id) const { return entries_[static_cast<size_t>(id)].spelling; }
  // The id of a spelling, or -1.
  int64_t find(const std::string& spelling) const;
  // As find, but InputError when it is not there.
  int64_t at(const std::string& spelling, const std::string& where) const;

 private:
  struct Entry {
    bool present = false;
    std::string spelling;
  };
  std::vector<Entry> entries_;
  std::unordered_map<std::string, int32_t> ids_;
};

// Immutable and safe to use from several threads at once.
class TokenModel {
 public:
  virtual ~TokenModel() = default;
  // Appends the ids of a piece, valid UTF-8.
  virtual void encode(const std::string& piece, std::vector<int64_t>& ids) const = 0;
  // The same for a piece of bytes whose spelling in the vocabulary is in byte letters.
  virtual void encode_bytes(const std::string& piece, std::vector<int64_t>& ids) const;
  // Whether encode_bytes has a token for this byte.
  virtual bool has_byte(unsigned char byte) const;
  // Whether encode_bytes is the form in which it is fastest.
  virtual bool prefers_bytes() const { return false; }
  virtual const Vocabulary& vocabulary() const = 0;
  // A hash over all that decides ids.
  virtual uint64_t hash(uint64_t seed) const = 0;
};

// "model" of a tokenizer.json: BPE, Unigram, WordPiece or WordLevel. A model without a type is recognised by
// its members, as older files need it.
std::unique_ptr<const TokenModel> read_token_model(const JsonPlace& place);

// FNV-1a: small, and the same on every machine.
uint64_t stable_hash(std::string_view bytes, uint64_t seed = 0xCBF29CE484222325u);
uint64_t stable_hash(const Vocabulary& vocabulary, uint64_t seed);

}  // namespace weft
