#include "io/chat_template/lexer.h"

#include <algorithm>
#include <array>
#include <cctype>

#include "io/chat_template/string_literal.h"
#include "io/chat_template/unicode.h"

namespace weft::jinja {
namespace {

bool blank(char c) { return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 28 && c <= 31); }
bool digit(char c) { return c >= '0' && c <= '9'; }

std::string with_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r' && i + 1 < source.size() && source[i + 1] == '\n') continue;
    out += source[i] == '\r' ? '\n' : source[i];
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : text_(with_newlines(source)) {}

  std::vector<Token> run() {
    while (at_ < text_.size()) data();
    add(TokenKind::end, "end of template");
    return std::move(tokens_);
  }

 private:
  void add(TokenKind kind, std::string value) { tokens_.push_back({kind, std::move(value), line_}); }
  bool here(std::string_view what) const { return std::string_view(text_).substr(at_).starts_with(what); }
  char peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : '\0'; }
  void advance(size_t count) {
    line_ += static_cast<int>(std::count(text_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         text_.begin() + static_cast<std::ptrdiff_t>(at_ + count), '\n'));
    at_ += count;
  }
  void skip_blanks() {
    size_t count = 0;
    while (at_ + count < text_.size() && blank(text_[at_ + count])) ++count;
    advance(count);
  }

  size_t next_tag(size_t from) const {
    for (size_t open = text_.find('{', from); open != std::string::npos; open = text_.find('{', open + 1))
      if (open + 1 < text_.size() &&
          (text_[open + 1] == '{' || text_[open + 1] == '%' || text_[open + 1] == '#'))
        return open;
    return std::string::npos;
  }

  // The text up to a tag that begins with `sign` behind it, less what the tag strips from it.
  static std::string_view stripped(std::string_view text, char sign, bool whole_line_tag,
                                   bool at_line_start) {
    if (sign == '-') {
      while (!text.empty() && blank(text.back())) text.remove_suffix(1);
    } else if (sign != '+' && whole_line_tag) {
      const size_t line_begin = text.rfind('\n') + 1;
      const auto tail = text.substr(line_begin);
      if ((line_begin > 0 || at_line_start) && std::all_of(tail.begin(), tail.end(), blank))
        text = text.substr(0, line_begin);
    }
    return text;
  }

  void add_data(size_t end, char sign, bool whole_line_tag) {
    const auto text =
        stripped(std::string_view(text_).substr(at_, end - at_), sign, whole_line_tag, line_start_);
    if (!text.empty()) add(TokenKind::data, std::string(text));
    advance(end - at_);
  }

  char sign_at(size_t at) const {
    return at < text_.size() && (text_[at] == '-' || text_[at] == '+') ? text_[at] : '\0';
  }

  // What follows the closing delimiter of a block or comment.
  void after_tag(char sign, bool trims_line) {
    const size_t begin = at_;
    if (sign == '-')
      skip_blanks();
    else if (sign != '+' && trims_line && peek() == '\n')
      advance(1);
    line_start_ = at_ > begin && text_[at_ - 1] == '\n';
  }

  void data() {
    const size_t tag = next_tag(at_);
    if (tag == std::string::npos) {
      add(TokenKind::data, text_.substr(at_));
      advance(text_.size() - at_);
      return;
    }
    const char kind = text_[tag + 1], sign = sign_at(tag + 2);
    add_data(tag, sign, kind != '{');
    advance(sign ? 3 : 2);
    if (kind == '#') return comment();
    if (kind == '%' && raw_begins()) return raw();
    add(kind == '{' ? TokenKind::print_begin : TokenKind::block_begin, kind == '{' ? "{{" : "{%");
    expression(kind == '{' ? "}}" : "%}", kind);
  }

  void comment() {
    const int begun = line_;
    const size_t end = text_.find("#}", at_);
    if (end == std::string::npos) throw SyntaxError(begun, "this comment has no end: expected '#}'");
    const char sign = end > at_ ? sign_at(end - 1) : '\0';
    advance(end + 2 - at_);
    after_tag(sign, true);
  }

  bool raw_begins() const {
    size_t at = at_;
    while (at < text_.size() && blank(text_[at])) ++at;
    if (text_.compare(at, 3, "raw") != 0) return false;
    at += 3;
    while (at < text_.size() && blank(text_[at])) ++at;
    return text_.compare(at, 2, "%}") == 0 || text_.compare(at, 3, "-%}") == 0;
  }

  void raw() {
    const int begun = line_;
    const size_t close = text_.find("%}", at_);
    const char begin_sign = sign_at(close - 1);
    advance(close + 2 - at_);
    if (begin_sign == '-') skip_blanks();
    line_start_ = text_[at_ - 1] == '\n';
    for (size_t open = text_.find("{%", at_); open != std::string::npos; open = text_.find("{%", open + 1)) {
      size_t at = open + 2;
      const char sign = sign_at(at);
      at += sign ? 1 : 0;
      while (at < text_.size() && blank(text_[at])) ++at;
      if (text_.compare(at, 6, "endraw") != 0) continue;
      at += 6;
      while (at < text_.size() && blank(text_[at])) ++at;
      const char end_sign = sign_at(at);
      at += end_sign ? 1 : 0;
      if (text_.compare(at, 2, "%}") != 0) continue;
      add_data(open, sign, true);
      advance(at + 2 - at_);
      return after_tag(end_sign, true);
    }
    throw SyntaxError(begun, "this raw block has no end: expected '{% endraw %}'");
  }

  void expression(std::string_view close, char kind) {
    std::string open;  // brackets that wait for their end
    const int begun = line_;
    while (true) {
      skip_blanks();
      if (at_ >= text_.size())
        throw SyntaxError(begun, fmt::format("this tag has no end: expected '{}'", close));
      const bool signed_end = (peek() == '-' || (peek() == '+' && kind == '%')) &&
                              std::string_view(text_).substr(at_ + 1).starts_with(close);
      if (open.empty() && (signed_end || here(close))) {
        const char sign = signed_end ? peek() : '\0';
        add(kind == '{' ? TokenKind::print_end : TokenKind::block_end, std::string(close));
        advance(close.size() + (signed_end ? 1 : 0));
        return after_tag(sign, kind == '%');
      }
      token(open);
    }
  }

  void token(std::string& open) {
    if (digit(peek())) return number();
    if (peek() == '"' || peek() == '\'') return literal();
    size_t end = at_;
    for (size_t ahead = at_; ahead < text_.size() && is_word(next_point(text_, ahead));) end = ahead;
    if (end > at_) {
      add(TokenKind::name, text_.substr(at_, end - at_));
      return advance(end - at_);
    }
    constexpr std::array<std::string_view, 27> ops = {"//", "**", "==", "!=", ">=", "<=", "+", "-", "/",
                                                      "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                                      ">",  "<",  "=",  ".",  ":",  "|",  ",", ";", "!"};
    const auto found =
        std::find_if(ops.begin(), ops.end() - 1, [&](std::string_view op) { return here(op); });
    if (found == ops.end() - 1) {
      size_t next = at_;
      next_point(text_, next);
      throw SyntaxError(line_, fmt::format("unexpected character '{}'", text_.substr(at_, next - at_)));
    }
    balance(*found, open);
    add(TokenKind::op, std::string(*found));
    advance(found->size());
  }

  void balance(std::string_view op, std::string& open) const {
    const char c = op[0];
    if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c != ')' && c != ']' && c != '}') return;
    if (open.empty()) throw SyntaxError(line_, fmt::format("unexpected '{}'", c));
    if (open.back() != c)
      throw SyntaxError(line_, fmt::format("unexpected '{}', expected '{}'", c, open.back()));
    open.pop_back();
  }

  // Digits with single underscores between them, from `from` on; where they end.
  template <class IsDigit>
  size_t digits(size_t from, IsDigit is_digit) const {
    size_t at = from;
    while (at < text_.size() && (is_digit(text_[at]) || (text_[at] == '_' && at > from &&
                                                         at + 1 < text_.size() && is_digit(text_[at + 1]))))
      ++at;
    return at;
  }

  void number() {
    const char base = static_cast<char>(std::tolower(static_cast<unsigned char>(peek(1))));
    if (peek() == '0' && (base == 'x' || base == 'o' || base == 'b')) {
      const size_t end =
          digits(at_ + 2, [](char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; });
      return add_number(TokenKind::integer, end);
    }
    size_t end = digits(at_, digit);
    bool real = false;
    if (end + 1 < text_.size() && text_[end] == '.' && digit(text_[end + 1])) {
      real = true;
      end = digits(end + 1, digit);
    }
    if (end < text_.size() && (text_[end] == 'e' || text_[end] == 'E')) {
      size_t exponent = end + 1;
      if (exponent < text_.size() && (text_[exponent] == '+' || text_[exponent] == '-')) ++exponent;
      if (exponent < text_.size() && digit(text_[exponent])) {
        real = true;
        end = digits(exponent, digit);
      }
    }
    add_number(real ? TokenKind::real : TokenKind::integer, end);
  }

  void add_number(TokenKind kind, size_t end) {
    std::string value = text_.substr(at_, end - at_);
    std::erase(value, '_');
    add(kind, std::move(value));
    advance(end - at_);
  }

  void literal() {
    const char quote = peek();
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != quote) end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) throw SyntaxError(line_, "this string has no end");
    add(TokenKind::text, unescape(std::string_view(text_).substr(at_ + 1, end - at_ - 1), line_));
    advance(end + 1 - at_);
  }

  std::string text_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_start_ = true;  // the tag before ended a line
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> lex(std::string_view source) { return Lexer(source).run(); }

}  // namespace weft::jinja
