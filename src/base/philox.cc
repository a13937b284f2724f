#include "base/philox.h"

#include <cmath>

namespace weft {
namespace {

constexpr float kStep = 0x1p-32f;
constexpr float kTurn = 6.28318530717958647692f;

// Words 0, 1 and 2, 3 of a block give two numbers each.
std::array<float, 4> normal_block(uint64_t key, uint64_t draw, uint64_t block) {
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
  const auto words = philox({low(block), high(block), low(draw), high(draw)}, {low(key), high(key)});
  std::array<float, 4> out{};
  for (size_t i = 0; i < 4; i += 2) {
    const float radius = std::sqrt(-2 * std::log((static_cast<float>(words[i]) + 0.5f) * kStep));
    const float angle = kTurn * kStep * static_cast<float>(words[i + 1]);
    out[i] = radius * std::cos(angle);
    out[i + 1] = radius * std::sin(angle);
  }
  return out;
}

}  // namespace

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> c, std::array<uint32_t, 2> k) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * c[0], b = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(b >> 32) ^ c[1] ^ k[0], static_cast<uint32_t>(b),
         static_cast<uint32_t>(a >> 32) ^ c[3] ^ k[1], static_cast<uint32_t>(a)};
    k = {k[0] + 0x9E3779B9u, k[1] + 0xBB67AE85u};
  }
  return c;
}

uint64_t stream_key(uint64_t seed, std::string_view name) {
  uint64_t hash = 1469598103934665603ull ^ (seed * 0x9e3779b97f4a7c15ull);
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211ull;
  hash = (hash ^ (hash >> 31)) * 0x9e3779b97f4a7c15ull;
  return hash ^ (hash >> 29);
}

void normal_numbers(uint64_t key, uint64_t draw, int64_t first, int64_t count, float* out) {
  for (int64_t i = 0; i < count;) {
    const auto place = static_cast<uint64_t>(first + i);
    const auto block = normal_block(key, draw, place / 4);
    for (size_t lane = place % 4; lane < 4 && i < count; ++lane) out[i++] = block[lane];
  }
}

}  // namespace weft
