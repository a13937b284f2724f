#include "cli/line_reader.h"

#include <unistd.h>

#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include <editline/readline.h>

#include "io/tokenizers/utf8.h"

namespace weft::cli {
namespace {

constexpr const char* kQuotes = "\"\"\"";

std::optional<std::string> plain_line() {
  std::string text;
  for (int c; (c = std::getchar()) != EOF;) {
    if (c == '\n') return text;
    text += static_cast<char>(c);
  }
  return text.empty() ? std::nullopt : std::optional(text);
}

volatile std::sig_atomic_t interrupted = 0;

std::optional<std::string> edited_line(const char* prompt) {
  std::signal(SIGINT, [](int) { interrupted = 1; });
  char* typed = nullptr;
  do {  // Ctrl-C empties the line; there is no answer to stop
    if (interrupted) std::fputs("\n", stdout);
    interrupted = 0;
    typed = ::readline(prompt);
  } while (!typed && interrupted);
  std::signal(SIGINT, SIG_DFL);
  if (!typed) return std::nullopt;
  std::string text(typed);
  std::free(typed);
  if (!text.empty()) ::add_history(text.c_str());
  return text;
}

}  // namespace

LineReader::LineReader() : interactive_(::isatty(STDIN_FILENO) == 1 && ::isatty(STDOUT_FILENO) == 1) {
  if (!interactive_) return;
  std::setlocale(LC_CTYPE, "");  // what a character is, for the editor
  ::rl_initialize();
  ::using_history();
  ::stifle_history(1000);
}

std::optional<std::string> LineReader::line(const char* prompt) {
  auto text = interactive_ ? edited_line(prompt) : plain_line();
  if (text && text->ends_with('\r')) text->pop_back();
  return text;
}

std::optional<std::string> LineReader::message() {
  auto first = line("> ");
  if (!first) return std::nullopt;
  std::string text;
  if (*first == kQuotes) {
    bool begun = false;
    for (auto more = line(". "); more && *more != kQuotes; more = line(". "), begun = true)
      text += (begun ? "\n" : "") + *more;
    return to_utf8(text);
  }
  auto current = first;
  while (current && current->ends_with('\\')) {
    text += current->substr(0, current->size() - 1) + "\n";
    current = line(". ");
  }
  return to_utf8(text + current.value_or(""));
}

}  // namespace weft::cli
