// The table of a SentencePiece normalizer (`precompiled_charsmap`): byte strings and what they become.
//   uint32 bytes of the trie | trie: uint32 units of a double array (darts-clone) | texts, each ended by NUL
// A unit holds the label of the edge to it (low byte), whether a value hangs below (bit 8), the XOR distance to
// its children (bits 10 to 30, times 256 if bit 9 is set), or, with bit 31, a value: the offset of a text.
// Every index is checked when it is used, so a table that lies gives wrong text but reads nothing else.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

class CharsMap {
 public:
  // InputError, naming `where`, when the sizes in the table do not fit its length.
  CharsMap(std::string_view table, const std::string& where);

  struct Match {
    size_t length;          // bytes of the text that it replaces
    std::string_view text;  // valid UTF-8
  };
  // The shortest or longest entry that `text` begins with.
  std::optional<Match> shortest(std::string_view text) const { return find(text, true); }
  std::optional<Match> longest(std::string_view text) const { return find(text, false); }

 private:
  std::optional<Match> find(std::string_view text, bool first) const;
  uint32_t unit(uint32_t at) const { return at < units_.size() ? units_[at] : 0; }
  std::vector<uint32_t> units_;
  std::string texts_;
};

}  // namespace weft
