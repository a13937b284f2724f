// Models that look words up: WordPiece (Wu et al. 2016, "Google's Neural Machine Translation System",
// arXiv:1609.08144, as BERT has it) and WordLevel.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "io/tokenizers/token_model.h"
#include "io/tokenizers/trie.h"

namespace weft {

// The longest token that begins the piece, then again and again the longest one that goes on, which is spelled
// with continuing_subword_prefix. A piece that cannot be cut so, or has more than max_input_chars_per_word
// characters, is unk_token.
class WordPieceModel final : public TokenModel {
 public:
  explicit WordPieceModel(const JsonPlace& place);
  void encode(const std::string& piece, std::vector<int64_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  uint64_t hash(uint64_t seed) const override;

 private:
  Vocabulary vocabulary_;
  Trie first_, others_;
  std::string unknown_name_, prefix_, where_;
  int64_t unknown_ = -1, longest_word_ = 100;
};

// A piece is a token or unk_token.
class WordLevelModel final : public TokenModel {
 public:
  explicit WordLevelModel(const JsonPlace& place);
  void encode(const std::string& piece, std::vector<int64_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  uint64_t hash(uint64_t seed) const override;

 private:
  Vocabulary vocabulary_;
  std::string unknown_name_, where_;
  int64_t unknown_ = -1;
};

}  // namespace weft
