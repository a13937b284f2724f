// From text to ids as the sentencepiece library does it: normalize, then segment by the model's kind.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/tokenizers/charsmap.h"
#include "io/tokenizers/merge_table.h"
#include "io/tokenizers/sentencepiece_model.h"
#include "io/tokenizers/trie.h"

namespace weft {

constexpr std::string_view kSpaceSymbol = "\xE2\x96\x81";  // U+2581, how a space is written in pieces

// The byte of a piece such as "<0x41>".
char piece_byte(std::string_view piece);

class SentencePieceEncoder {
 public:
  // Keeps a reference to `model`.
  SentencePieceEncoder(const SentencePieceModel& model, const std::string& source);
  // Appends the ids of a text, which may be any bytes: those that are not UTF-8 count as U+FFFD each.
  void encode(std::string_view text, std::vector<int64_t>& ids) const;
  std::string normalize(std::string_view text) const;

 private:
  struct Span {
    std::string_view text;
    int64_t id;  // -1: unknown
  };
  void add_merges();
  int32_t symbol(std::string_view text, bool frozen) const;
  std::pair<std::string_view, size_t> normalize_prefix(std::string_view text) const;
  std::vector<Span> unigram(std::string_view text) const;
  std::vector<Span> bpe(std::string_view text) const;
  std::vector<Span> words(std::string_view text) const;
  std::vector<Span> characters(std::string_view text) const;
  void resegment(int32_t symbol, const MergeTable::Origins& origins, std::vector<int32_t>& out,
                 int depth) const;
  // The id of a piece that text may become, or -1.
  int64_t find(std::string_view text) const;
  size_t symbol_length(std::string_view text, bool& user_defined) const;

  const SentencePieceModel& model_;
  std::optional<CharsMap> charsmap_;
  Trie pieces_, user_defined_;
  std::unordered_map<std::string_view, int32_t> ids_;  // normal, user defined and unused pieces
  std::unordered_map<std::string_view, int32_t>
      letters_;  // BPE: characters in pieces that are none themselves
  std::vector<std::string> letter_texts_;
  MergeTable merges_;
  std::vector<int64_t> byte_ids_;
  int64_t unknown_ = 0;
  float lowest_ = 0, highest_ = 0;  // scores of normal pieces
  bool has_unused_ = false;
};

}  // namespace weft
