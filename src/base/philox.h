// Random numbers that are a function of what they are for: counter-based generator Philox 4x32-10, Salmon et al.
// 2011, "Parallel random numbers: as easy as 1, 2, 3". No state, so results depend neither on threads nor on
// shards nor on what was drawn before.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace weft {

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A key from a seed and a name (FNV-1a with a final mix).
uint64_t stream_key(uint64_t seed, std::string_view name);

// out[i] = standard normal number `first + i` of draw `draw` of stream `key`, by Box and Muller 1958. Of one block of
// four 32-bit words come four numbers; |value| < 6.8.
void normal_numbers(uint64_t key, uint64_t draw, int64_t first, int64_t count, float* out);

}  // namespace weft
