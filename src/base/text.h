// Words, lists and quantities as messages and tables show them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

// The candidate closest to `word` by edit distance, or "" when none is within a third of its length (at least
// 2).
std::string nearest_word(std::string_view word, const std::vector<std::string>& candidates);

// "a, b, c"
std::string join(const std::vector<std::string>& parts, std::string_view separator = ", ");

// 1536 -> "1.5 KiB"; units are powers of 1024.
std::string bytes_text(int64_t bytes);

// 1234567 -> "1.23M"; units are powers of 1000.
std::string count_text(double count);

// 3725 -> "1:02:05", 65 -> "1:05"
std::string duration_text(double seconds);

}  // namespace weft
