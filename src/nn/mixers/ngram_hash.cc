#include "nn/mixers/ngram_hash.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <limits>

namespace weft {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15ull;  // 2^64 over the golden ratio
constexpr uint64_t kStride = 10007;                  // between the seeds of two tables

// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
uint64_t splitmix(uint64_t value) {
  value += kGolden;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
  return value ^ (value >> 31);
}

bool is_prime(int64_t value) {
  if (value < 2) return false;
  if (value % 2 == 0) return value == 2;
  for (int64_t divisor = 3; divisor * divisor <= value; divisor += 2)
    if (value % divisor == 0) return false;
  return true;
}

int64_t prime_after(int64_t value) {
  do ++value;
  while (!is_prime(value));
  return value;
}

}  // namespace

NgramHash ngram_hash(const NgramOptions& o) {
  NgramHash hash;
  const int64_t most = std::numeric_limits<int64_t>::max() / std::max<int64_t>(o.vocab, 1);
  const auto half = static_cast<uint64_t>(std::max<int64_t>(1, most / 2));
  const uint64_t seed = static_cast<uint64_t>(o.seed) + kStride * static_cast<uint64_t>(o.index);
  for (int64_t i = 0; i < o.longest; ++i)
    hash.multipliers.push_back(
        static_cast<int64_t>(2 * (splitmix(seed + kGolden * static_cast<uint64_t>(i + 1)) % half) + 1));
  const int64_t heads = (o.longest - 1) * o.heads;
  int64_t prime = o.base - 1;
  for (int64_t head = 0; head < o.index * heads; ++head) prime = prime_after(prime);
  for (int64_t head = 0; head < heads; ++head) {
    prime = prime_after(prime);
    hash.sizes.push_back(prime);
    hash.offsets.push_back(hash.rows);
    hash.rows += prime;
  }
  hash.rows = (hash.rows + o.multiple - 1) / o.multiple * o.multiple;
  return hash;
}

at::Tensor ngram_rows(const NgramHash& hash, const std::vector<at::Tensor>& x) {
  const auto heads = static_cast<int64_t>(hash.sizes.size() / (hash.multipliers.size() - 1));
  const auto numbers = [&](const std::vector<int64_t>& all) { return at::tensor(all, x[0].options()); };
  const auto sizes = numbers(hash.sizes), offsets = numbers(hash.offsets);
  std::vector<at::Tensor> rows;
  auto mixed = x[0] * hash.multipliers[0];
  for (size_t n = 1; n < hash.multipliers.size(); ++n) {
    mixed = at::bitwise_xor(mixed, x[n] * hash.multipliers[n]);
    const auto first = static_cast<int64_t>(n - 1) * heads;
    rows.push_back(at::remainder(mixed.unsqueeze(-1), sizes.narrow(0, first, heads)) +
                   offsets.narrow(0, first, heads));
  }
  return at::cat(rows, -1);
}

}  // namespace weft
