#include "cli/output.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/error.h"

namespace weft::cli {
namespace {

size_t characters(std::string_view text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

}  // namespace

void write_output(std::string_view text, bool flush) {
  const size_t written = std::fwrite(text.data(), 1, text.size(), stdout);
  require(written == text.size(), "standard output: {}", std::strerror(errno));
  if (flush) flush_output();
}

void flush_output() {
  const bool flushed = std::fflush(stdout) == 0;  // before errno is read: arguments have no order
  require(flushed, "standard output: {}", std::strerror(errno));
}

void note(std::string_view line) {
  std::string whole(line);
  whole += '\n';
  std::fwrite(whole.data(), 1, whole.size(), stderr);
}

std::string table(const std::vector<std::vector<std::string>>& rows, const std::vector<size_t>& right) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], characters(row[i]));
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string space(widths[i] - characters(row[i]), ' ');
      const bool to_right = std::find(right.begin(), right.end(), i) != right.end();
      line += (i ? "  " : "") + (to_right ? space + row[i] : row[i] + space);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

std::string markdown_table(const std::vector<std::vector<std::string>>& rows) {
  std::string out;
  for (size_t i = 0; i < rows.size(); ++i) {
    for (const auto& cell : rows[i]) {
      out += "| ";
      for (const char c : cell) out += c == '|' ? "\\|" : std::string(1, c);
      out += cell.empty() ? "" : " ";
    }
    out += "|\n";
    if (i > 0) continue;
    for (size_t column = 0; column < rows[i].size(); ++column) out += "|---";
    out += "|\n";
  }
  return out;
}

std::string option_table(const std::vector<FieldInfo>& fields, bool markdown) {
  if (fields.empty()) return "no options\n";
  std::vector<std::vector<std::string>> rows = {{"option", "type", "default", "limits", "meaning"}};
  for (const auto& field : fields)
    rows.push_back({field.name, field.type, field.default_value, field.limits, field.help});
  return markdown ? markdown_table(rows) : table(rows);
}

}  // namespace weft::cli
