#include "io/tokenizers/byte_tokenizer.h"

#include <array>

#include "base/error.h"
#include "base/files.h"

namespace weft {

namespace {

constexpr std::string_view kEndName = "<|endoftext|>";

const std::array<char, 256>& all_bytes() {
  static const auto bytes = [] {
    std::array<char, 256> values;
    for (int i = 0; i < 256; ++i) values[static_cast<size_t>(i)] = static_cast<char>(i);
    return values;
  }();
  return bytes;
}

}  // namespace

std::vector<int64_t> ByteTokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<int64_t> ids;
  ids.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const bool end = options.parse_special && text[at] == '<' && text.substr(at).starts_with(kEndName);
    ids.push_back(end ? kEndOfText : static_cast<unsigned char>(text[at]));
    at += end ? kEndName.size() : 1;
  }
  return ids;
}

std::string_view ByteTokenizer::token_bytes(int64_t id) const {
  require(is_token(id), "the id {} is not in the vocabulary of {} ids", id, vocab_size());
  return id == kEndOfText ? std::string_view() : std::string_view(&all_bytes()[static_cast<size_t>(id)], 1);
}

std::optional<int64_t> ByteTokenizer::find(std::string_view token) const {
  if (token == kEndName) return kEndOfText;
  if (token.size() == 1) return static_cast<unsigned char>(token[0]);
  return std::nullopt;
}

void ByteTokenizer::save(const std::string& path) const {
  write_atomically(path, "{\"weft_tokenizer\": \"bytes\"}\n");
}

}  // namespace weft
