#include "io/tokenizers/charsmap.h"

#include <cstring>

#include "base/error.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

uint32_t distance(uint32_t unit) { return (unit >> 10) << ((unit & 0x200) >> 6); }

}  // namespace

CharsMap::CharsMap(std::string_view table, const std::string& where) {
  uint32_t bytes = 0;
  require(table.size() >= sizeof bytes, "{}: has {} bytes, too few for the size of its trie", where,
          table.size());
  std::memcpy(&bytes, table.data(), sizeof bytes);
  require(bytes % 4 == 0 && bytes >= 4 && bytes <= table.size() - sizeof bytes,
          "{}: says that its trie has {} bytes, expected a multiple of 4 up to {}", where, bytes,
          table.size() - sizeof bytes);
  units_.resize(bytes / 4);
  std::memcpy(units_.data(), table.data() + sizeof bytes, bytes);
  texts_ = table.substr(sizeof bytes + bytes);
  require(texts_.empty() || texts_.back() == '\0', "{}: its last text is not ended by NUL", where);
  for (size_t at = 0; at < texts_.size(); at = texts_.find('\0', at) + 1)
    require(is_utf8(texts_.c_str() + at), "{}: the text at byte {} is not UTF-8", where, at);
}

std::optional<CharsMap::Match> CharsMap::find(std::string_view text, bool first) const {
  std::optional<Match> best;
  uint32_t node = distance(units_[0]);
  for (size_t i = 0; i < text.size() && text[i] != '\0'; ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    node ^= byte;
    const uint32_t here = unit(node);
    if ((here & 0x800000FFu) != byte) break;
    node ^= distance(here);
    if ((here & 0x100u) == 0) continue;
    const uint32_t offset = unit(node) & 0x7FFFFFFFu;
    // An offset into the middle of a character would give half of it.
    if (offset >= texts_.size() || (static_cast<unsigned char>(texts_[offset]) & 0xC0) == 0x80) continue;
    best = Match{i + 1, std::string_view(texts_.c_str() + offset)};
    if (first) break;
  }
  return best;
}

}  // namespace weft
