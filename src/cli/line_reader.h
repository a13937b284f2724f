// Messages that a user types or pipes in: lines with editing and history on a terminal, plain lines elsewhere. A line
// that ends in \ goes on in the next one; between two lines """ all lines belong together.
#pragma once

#include <optional>
#include <string>

namespace weft::cli {

class LineReader {
 public:
  LineReader();  // edits and prompts when standard input is a terminal
  bool interactive() const { return interactive_; }
  // The next message, without the line end; empty at the end of the input. UTF-8 whatever was typed.
  std::optional<std::string> message();

 private:
  std::optional<std::string> line(const char* prompt);
  bool interactive_;
};

}  // namespace weft::cli
