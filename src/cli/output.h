// What commands print. Results go to standard output, everything about the run itself to standard error.
#pragma once

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <vector>

#include "base/fields.h"

namespace weft::cli {

// Writes to standard output, at once when `flush`. InputError, with the operating system's reason, when it
// cannot be written.
void write_output(std::string_view text, bool flush = false);
template <class... Args>
void print(fmt::format_string<Args...> text, Args&&... args) {
  write_output(fmt::format(text, std::forward<Args>(args)...));
}
// Writes out what is buffered; errors as above.
void flush_output();

// One line on standard error; the newline is added.
void note(std::string_view line);

// Rows as lines with aligned columns, two spaces apart; widths count characters, not bytes. `right` names
// columns that are aligned to the right.
std::string table(const std::vector<std::vector<std::string>>& rows, const std::vector<size_t>& right = {});

// The same as a Markdown table, the first row as its heading.
std::string markdown_table(const std::vector<std::vector<std::string>>& rows);

// Options with type, default, limits and meaning, one a row below a heading; "no options" when there are
// none.
std::string option_table(const std::vector<FieldInfo>& fields, bool markdown = false);

}  // namespace weft::cli
