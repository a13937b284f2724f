// Data files that may be compressed.
#pragma once

#include <string>

namespace weft {

// The content of a file, uncompressed when it is gzip (by its first two bytes, whatever its name). InputError names the
// file when it is absent, followed by `hint`; when the gzip data is cut short or damaged; and when there is more than
// `limit` bytes.
std::string read_data_file(const std::string& path, const std::string& hint = "",
                           size_t limit = size_t{4} << 30);

}  // namespace weft
