// Escapes in string literals of templates, as in Python: \n \t \\ \' \" \a \b \f \v \r, \ooo, \xhh, \uhhhh, \Uhhhhhhhh,
// \N{NAME}, a line end that is dropped; others stand for themselves.
#pragma once

#include <string>
#include <string_view>

namespace weft::jinja {

std::string unescape(std::string_view literal, int line);

}  // namespace weft::jinja
