// A template as tokens: text between tags, and what stands inside of tags.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/chat_template/budget.h"

namespace weft::jinja {

enum class TokenKind {
  data,
  print_begin,
  print_end,
  block_begin,
  block_end,
  name,
  text,
  integer,
  real,
  op,
  end
};

struct Token {
  TokenKind kind;
  std::string value;  // of `text` with its escapes resolved, of numbers without "_"
  int line;
  bool is(std::string_view op) const { return kind == TokenKind::op && value == op; }
  bool is_name(std::string_view name) const { return kind == TokenKind::name && value == name; }
};

// An error in the template's syntax; the message begins with "line N: ".
class SyntaxError : public InputError {
 public:
  SyntaxError(int line, const std::string& message) : InputError(fmt::format("line {}: {}", line, message)) {}
};

// Line ends are \n whatever they were; one at the very end is dropped; blocks and comments take the line end behind
// them and the blanks before them on their line (trim_blocks and lstrip_blocks). Ends with a token `end`.
std::vector<Token> lex(std::string_view source);

}  // namespace weft::jinja
