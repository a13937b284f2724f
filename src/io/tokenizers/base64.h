// Base64 as in RFC 4648, with or without padding.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace weft {

// Nothing when the text is not base64.
std::optional<std::string> from_base64(std::string_view text);
std::string to_base64(std::string_view bytes);

}  // namespace weft
