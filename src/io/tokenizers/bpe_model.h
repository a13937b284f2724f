// Byte-pair encoding. Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units",
// arXiv:1508.07909.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/tokenizers/merge_table.h"
#include "io/tokenizers/piece_cache.h"
#include "io/tokenizers/token_model.h"

namespace weft {

// The symbols of a piece are its characters, with `continuing_subword_prefix` in front of all but the first
// and `end_of_word_suffix` behind the last. A symbol without a token becomes its bytes ("<0x41>") with
// byte_fallback, else unk_token (several in a row one, with fuse_unk), else nothing. With ignore_merges a
// piece that is a token is that token. `dropout` belongs to training and is not applied.
class BpeModel final : public TokenModel {
 public:
  // `place` is "model" of a tokenizer.json.
  explicit BpeModel(const JsonPlace& place);
  // Tokens that are ranked byte strings, as in tiktoken's files: any two neighbours whose bytes together are
  // a token merge, the lowest rank first. "" is a gap. InputError unless every single byte is a token.
  BpeModel(const std::vector<std::string>& bytes_by_rank, const std::string& source);

  void encode(const std::string& piece, std::vector<int64_t>& ids) const override;
  void encode_bytes(const std::string& piece, std::vector<int64_t>& ids) const override;
  bool has_byte(unsigned char byte) const override { return byte_ids_[byte] >= 0; }
  bool prefers_bytes() const override { return affixes_empty(); }
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  uint64_t hash(uint64_t seed) const override;

 private:
  class Symbols;
  bool affixes_empty() const { return prefix_.empty() && suffix_.empty(); }
  void read_merges(const JsonPlace& place);
  void read_bytes();
  void encode_symbols(const std::string& piece, bool bytes, std::vector<int64_t>& ids) const;
  std::vector<int32_t> symbols_of_text(const std::string& piece) const;
  std::vector<int32_t> symbols_of_bytes(const std::string& piece) const;

  Vocabulary vocabulary_;
  MergeTable merges_;
  std::string prefix_, suffix_;
  int32_t byte_ids_[256];      // of the letter of a byte
  int32_t fallback_ids_[256];  // of "<0x00>".."<0xFF>"; -1 also without byte_fallback
  int32_t unknown_ = -1;
  bool fuse_unknown_ = false, ignore_merges_ = false;
  PieceCache text_cache_, bytes_cache_;
};

}  // namespace weft
