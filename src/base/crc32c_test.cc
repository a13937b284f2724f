#include "base/crc32c.h"

#include <gtest/gtest.h>

#include <string>

namespace weft {
namespace {

TEST(Crc32c, ValuesOfRfc3720) {
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  std::string rising;
  for (char c = 0; c < 32; ++c) rising += c;
  EXPECT_EQ(crc32c(rising), 0x46dd794eu);
}

TEST(Crc32c, EveryBitCounts) {
  std::string text(37, 'w');
  const auto sum = crc32c(text);
  for (auto& c : text)
    for (int bit = 0; bit < 8; ++bit) {
      c = static_cast<char>(c ^ (1 << bit));
      EXPECT_NE(crc32c(text), sum);
      c = static_cast<char>(c ^ (1 << bit));
    }
}

}  // namespace
}  // namespace weft
