#include "io/tokenizers/added_tokens.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

// Unicode's definition of a word character (UTS 18, annex C).
bool is_word(uint32_t code) {
  const auto c = static_cast<UChar32>(code);
  const uint32_t marks = U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK;
  return u_hasBinaryProperty(c, UCHAR_ALPHABETIC) || (U_GET_GC_MASK(c) & marks) != 0 ||
         u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL);
}

bool is_space(uint32_t code) { return u_isUWhiteSpace(static_cast<UChar32>(code)); }

// The begin of the character that ends at `end` > 0.
size_t last_character(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

size_t spaces_before(std::string_view text, size_t end) {
  while (end > 0) {
    const size_t at = last_character(text, end);
    if (!is_space(utf8_step(text, at).code)) break;
    end = at;
  }
  return end;
}

size_t spaces_after(std::string_view text, size_t begin) {
  while (begin < text.size()) {
    const Utf8Step step = utf8_step(text, begin);
    if (!is_space(step.code)) break;
    begin += step.bytes;
  }
  return begin;
}

bool stands_alone(std::string_view text, size_t begin, size_t end) {
  const bool left = begin == 0 || !is_word(utf8_step(text, last_character(text, begin)).code);
  const bool right = end == text.size() || !is_word(utf8_step(text, end).code);
  return left && right;
}

AddedToken read_token(const JsonPlace& place) {
  place.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
  AddedToken token{.id = place.at("id").integer(),
                   .content = place.at("content").text(),
                   .single_word = place.boolean_or("single_word", false),
                   .lstrip = place.boolean_or("lstrip", false),
                   .rstrip = place.boolean_or("rstrip", false)};
  token.special = place.boolean_or("special", false);
  token.normalized = place.boolean_or("normalized", !token.special);
  require(!token.content.empty(), "{}: is empty", place.at("content").where());
  return token;
}

}  // namespace

void Trie::insert(std::string_view text, size_t value) {
  size_t at = 0;
  for (const char c : text) {
    const auto [found, fresh] = nodes_[at].next.emplace(static_cast<unsigned char>(c), nodes_.size());
    at = found->second;
    if (fresh) nodes_.emplace_back();
  }
  nodes_[at].value = value;
}

std::pair<size_t, size_t> Trie::longest(std::string_view text, size_t at) const {
  size_t node = 0, value = SIZE_MAX, length = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto found = nodes_[node].next.find(static_cast<unsigned char>(text[i]));
    if (found == nodes_[node].next.end()) break;
    node = found->second;
    if (nodes_[node].value == SIZE_MAX) continue;
    value = nodes_[node].value;
    length = i + 1 - at;
  }
  return {value, length};
}

AddedTokens::AddedTokens(const JsonPlace& place, const Normalizer& normalizer) {
  std::set<std::string> contents;
  for (const auto& item : place.items()) {
    const AddedToken token = read_token(item);
    require(contents.insert(token.content).second, "{}: '{}' is there twice", item.where(), token.content);
    if (token.normalized)
      normalized_.insert(normalizer.apply(token.content), tokens_.size());
    else
      raw_.insert(token.content, tokens_.size());
    tokens_.push_back(token);
  }
}

std::vector<TextPart> AddedTokens::split(std::string_view text, const Normalizer& normalizer,
                                         bool parse_special) const {
  std::vector<TextPart> raw, parts;
  cut(text, raw_, parse_special, raw);
  for (TextPart& part : raw) {
    if (part.id >= 0)
      parts.push_back(std::move(part));
    else
      cut(normalizer.apply(std::move(part.text)), normalized_, parse_special, parts);
  }
  return parts;
}

void AddedTokens::cut(std::string_view text, const Trie& trie, bool parse_special,
                      std::vector<TextPart>& parts) const {
  size_t done = 0;
  const auto push_text = [&](size_t begin, size_t end) {
    if (begin < end) parts.push_back({-1, std::string(text.substr(begin, end - begin))});
  };
  for (size_t at = 0; at < text.size() && !trie.empty();) {
    const auto [index, length] = trie.longest(text, at);
    if (length == 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = at, end = at + length;
    at = end;  // the search goes on behind the token itself, whatever it takes with it
    if (token.special && !parse_special) continue;
    if (token.single_word && !stands_alone(text, begin, end)) continue;
    if (token.lstrip) begin = std::max(spaces_before(text, begin), done);
    if (token.rstrip) end = spaces_after(text, end);
    push_text(done, begin);
    parts.push_back({token.id, {}});
    done = end;
  }
  push_text(done, text.size());
}

}  // namespace weft
