#include "io/tokenizers/rwkv_vocabulary.h"

#include <charconv>
#include <unordered_map>

#include "base/error.h"
#include "io/tokenizers/token_model.h"
#include "io/tokenizers/trie.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

constexpr const char* kRwkvEnd = "<|endoftext|>";

// A Python literal of text or bytes.
class Literal {
 public:
  Literal(std::string_view text, const std::string& where) : in_(text), where_(where) {}

  std::string read() {
    const bool bytes = in_.starts_with('b');
    if (bytes) in_.remove_prefix(1);
    require(in_.size() >= 2 && (in_[0] == '\'' || in_[0] == '"') && in_.back() == in_[0],
            "{}: expected a Python literal in quotes, found {}", where_, in_);
    in_ = in_.substr(1, in_.size() - 2);
    return read_inside(bytes);
  }

  // Without quotes.
  std::string read_inside(bool bytes) {
    std::string result;
    for (size_t at = 0; at < in_.size();) {
      if (in_[at] == '\\')
        escape(at, bytes, result);
      else
        result += in_[at++];
    }
    return result;
  }

 private:
  void escape(size_t& at, bool bytes, std::string& result) {
    require(at + 1 < in_.size(), "{}: the literal ends in a backslash", where_);
    const char c = in_[at + 1];
    at += 2;
    switch (c) {
      case 'n':
        result += '\n';
        return;
      case 't':
        result += '\t';
        return;
      case 'r':
        result += '\r';
        return;
      case '\\':
      case '\'':
      case '"':
        result += c;
        return;
      case 'x':
      case 'u':
      case 'U': {
        const uint32_t code = digits(at, c == 'x' ? 2 : c == 'u' ? 4 : 8);
        if (bytes && c == 'x')
          result += static_cast<char>(code);
        else
          append_code(code, result);
        return;
      }
      default:
        throw InputError(fmt::format("{}: the literal has the unknown escape \\{}", where_, c));
    }
  }

  void append_code(uint32_t code, std::string& result) const {
    require(code < 0x110000 && (code < 0xD800 || code > 0xDFFF),
            "{}: the literal has U+{:X}, which is no character", where_, code);
    append_utf8(result, code);
  }

  uint32_t digits(size_t& at, size_t count) const {
    const std::string_view text = in_.substr(std::min(at, in_.size()), count);
    uint32_t code = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), code, 16);
    require(text.size() == count && error == std::errc() && end == text.data() + count,
            "{}: the literal has an escape without {} hexadecimal digits", where_, count);
    at += count;
    return code;
  }

  std::string_view in_;
  const std::string& where_;
};

size_t read_line_number(std::string_view text, size_t bound, const std::string& where, const char* what) {
  size_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  require(error == std::errc() && end == text.data() + text.size() && value < bound,
          "{}: the {} is not a whole number below {}", where, what, bound);
  return value;
}

void read_vocabulary_line(std::string_view line, const std::string& where, std::vector<std::string>& tokens) {
  const size_t first = line.find(' '), last = line.rfind(' ');
  require(first != std::string_view::npos && last > first, "{}: expected id, literal and length", where);
  const size_t id = read_line_number(line.substr(0, first), kMaxId, where, "id");
  require(id > 0, "{}: the id 0 is kept for the end of a document", where);
  const std::string token = Literal(line.substr(first + 1, last - first - 1), where).read();
  const size_t length = read_line_number(line.substr(last + 1), SIZE_MAX, where, "length");
  require(token.size() == length && length > 0, "{}: the token has {} bytes, but the line says {}", where,
          token.size(), length);
  if (id >= tokens.size()) tokens.resize(id + 1);
  require(tokens[id].empty(), "{}: the id {} is there twice", where, id);
  tokens[id] = token;
}

std::string literal_of(std::string_view token) {
  std::string text = "b'";
  for (const char c : token) {
    if (c >= ' ' && c <= '~' && c != '\'' && c != '\\')
      text += c;
    else
      text += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
  }
  return text + "'";
}

class RwkvTokenizer final : public Tokenizer {
 public:
  RwkvTokenizer(const std::vector<std::string>& tokens, const std::string& source,
                const TokenizerConfig& config)
      : tokens_(tokens), config_(config) {
    require(!tokens_.empty(), "{}: has no tokens", source);
    for (size_t id = 1; id < tokens_.size(); ++id) {
      if (tokens_[id].empty()) continue;
      const auto [same, fresh] = ids_.emplace(tokens_[id], static_cast<int64_t>(id));
      require(fresh, "{}: the ids {} and {} have the same token", source, same->second, id);
      trie_.insert(tokens_[id], id);
    }
    for (int byte = 0; byte < 256; ++byte)
      require(ids_.count(std::string(1, static_cast<char>(byte))) == 1,
              "{}: the byte 0x{:02X} has no token of its own", source, byte);
    tokens_[0].clear();
  }

  int64_t vocab_size() const override { return static_cast<int64_t>(tokens_.size()); }

  std::vector<int64_t> encode(std::string_view text, const EncodeOptions&) const override {
    std::vector<int64_t> ids;
    for (size_t at = 0; at < text.size();) {
      const auto [id, length] = trie_.longest(text, at);
      ids.push_back(static_cast<int64_t>(id));
      at += length;
    }
    return ids;
  }

  std::string_view token_bytes(int64_t id) const override {
    require(is_token(id), "the id {} is not in the vocabulary of {} ids", id, vocab_size());
    return tokens_[static_cast<size_t>(id)];
  }

  bool is_token(int64_t id) const override {
    return id == 0 || (id > 0 && id < vocab_size() && !tokens_[static_cast<size_t>(id)].empty());
  }
  bool is_special(int64_t id) const override { return id == 0; }

  std::optional<int64_t> find(std::string_view token) const override {
    const auto found = ids_.find(std::string(token));
    if (found != ids_.end()) return found->second;
    return token == kRwkvEnd ? std::optional<int64_t>(0) : std::nullopt;
  }

  std::optional<int64_t> end_of_text() const override { return 0; }
  std::string fingerprint() const override {
    return fmt::format("rwkv-{:016x}", stable_hash(write_rwkv_vocabulary(tokens_)));
  }
  void save(const std::string& path) const override {
    save_with_config(path, write_rwkv_vocabulary(tokens_), config_);
  }

 private:
  std::vector<std::string> tokens_;
  TokenizerConfig config_;
  std::unordered_map<std::string, int64_t> ids_;
  Trie trie_;
};

}  // namespace

std::shared_ptr<const Tokenizer> make_rwkv_tokenizer(const std::vector<std::string>& tokens,
                                                     const std::string& source,
                                                     const TokenizerConfig& config) {
  return std::make_shared<RwkvTokenizer>(tokens, source, config);
}

std::vector<std::string> read_rwkv_vocabulary(std::string_view text, const std::string& source) {
  std::vector<std::string> tokens(1);
  size_t number = 0;
  for (size_t at = 0; at < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) read_vocabulary_line(line, fmt::format("{}:{}", source, number + 1), tokens);
    at = end + 1;
  }
  return tokens;
}

std::string read_rwkv_literal(std::string_view inside, const std::string& where) {
  return Literal(inside, where).read_inside(true);
}

std::string write_rwkv_vocabulary(const std::vector<std::string>& tokens) {
  std::string text;
  for (size_t id = 1; id < tokens.size(); ++id)
    if (!tokens[id].empty()) text += fmt::format("{} {} {}\n", id, literal_of(tokens[id]), tokens[id].size());
  return text;
}

bool is_rwkv_vocabulary(std::string_view text) {
  const size_t space = text.find_first_not_of("0123456789");
  if (space == std::string_view::npos || space == 0 || text[space] != ' ') return false;
  const std::string_view rest = text.substr(space + 1, 2);
  return rest.starts_with('\'') || rest.starts_with('"') || rest == "b'" || rest == "b\"";
}

}  // namespace weft
