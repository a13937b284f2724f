#include "io/tokenizers/added_tokens.h"

#include <algorithm>
#include <set>

#include "base/error.h"
#include "io/tokenizers/characters.h"

namespace weft {

namespace {

size_t spaces_before(std::string_view text, size_t end) {
  while (end > 0) {
    const size_t at = previous_character(text, end);
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
  const bool left = begin == 0 || !is_word(utf8_step(text, previous_character(text, begin)).code);
  const bool right = end == text.size() || !is_word(utf8_step(text, end).code);
  return left && right;
}

}  // namespace

AddedToken read_added_token(const JsonPlace& place) {
  place.only({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type"});
  AddedToken token{.content = place.at("content").text(),
                   .single_word = place.boolean_or("single_word", false),
                   .lstrip = place.boolean_or("lstrip", false),
                   .rstrip = place.boolean_or("rstrip", false)};
  token.special = place.boolean_or("special", false);
  token.normalized = place.boolean_or("normalized", !token.special);
  require(!token.content.empty(), "{}: is empty", place.at("content").where());
  return token;
}

std::vector<AddedToken> read_added_tokens(const JsonPlace& place) {
  std::vector<AddedToken> tokens;
  std::set<std::string> contents;
  for (const auto& item : place.items()) {
    tokens.push_back(read_added_token(item));
    tokens.back().id = item.at("id").integer();
    require(contents.insert(tokens.back().content).second, "{}: '{}' is there twice", item.where(),
            tokens.back().content);
  }
  return tokens;
}

AddedTokens::AddedTokens(std::vector<AddedToken> tokens, const Normalizer& normalizer)
    : tokens_(std::move(tokens)) {
  for (size_t i = 0; i < tokens_.size(); ++i)
    if (tokens_[i].normalized)
      normalized_.insert(normalizer.apply(tokens_[i].content), i);
    else
      raw_.insert(tokens_[i].content, i);
}

std::vector<TextPart> AddedTokens::split(std::string_view text, const Normalizer& normalizer,
                                         bool parse_special, bool begins) const {
  std::vector<TextPart> raw, parts;
  cut({std::string(text), begins}, raw_, parse_special, raw);
  for (TextPart& part : raw) {
    if (part.id >= 0)
      parts.push_back(std::move(part));
    else
      cut(normalizer.run(std::move(part.text)), normalized_, parse_special, parts);
  }
  return parts;
}

void AddedTokens::cut(const NormalizedText& whole, const Trie& trie, bool parse_special,
                      std::vector<TextPart>& parts) const {
  const std::string_view text = whole.text;
  size_t done = 0;
  const auto push_text = [&](size_t begin, size_t end) {
    if (begin < end)
      parts.push_back(
          {-1, {std::string(text.substr(begin, end - begin)), begin == 0 && whole.begins_original}});
  };
  for (size_t at = 0; at < text.size() && !trie.empty();) {
    if (!trie.starts_with(static_cast<unsigned char>(text[at]))) {
      ++at;
      continue;
    }
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
    if (token.lstrip) begin = std::max(spaces_before(text, begin), std::min(done, begin));
    if (token.rstrip) end = spaces_after(text, end);
    push_text(done, begin);
    parts.push_back({token.id, {}});
    done = end;
  }
  push_text(done, text.size());
}

}  // namespace weft
