// CRC-32C (Castagnoli), as in RFC 3720: guards files against damage, not against malice. About 1 GB/s.
#pragma once

#include <cstdint>
#include <string_view>

namespace weft {

uint32_t crc32c(std::string_view bytes);
// The masked form of the TFRecord framing, for sums of data that hold sums: rotated right by 15 bits, plus
// 0xa282ead8.
uint32_t masked_crc32c(std::string_view bytes);

}  // namespace weft
