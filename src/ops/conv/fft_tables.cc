#include <cmath>
#include <map>
#include <memory>
#include <mutex>

#include "base/error.h"
#include "ops/conv/fft_kernel.h"

namespace weft::kernels {
namespace {

constexpr double kTurn = 2 * 3.14159265358979323846;

void push_angle(std::vector<float>& to, double angle) {
  to.push_back(static_cast<float>(std::cos(angle)));
  to.push_back(static_cast<float>(std::sin(angle)));
}

// Frequency at each position after the passes of fft-inl.h: a pass of two for an odd power, then passes of four.
void fill_order(std::vector<int64_t>& order, int64_t at, int64_t size, int64_t first, int64_t step,
                bool two) {
  if (size == 1) {
    order[static_cast<size_t>(at)] = first;
    return;
  }
  const int64_t parts = two ? 2 : 4, part = size / parts;
  for (int64_t r = 0; r < parts; ++r)
    fill_order(order, at + r * part, part, first + r * step, step * parts, false);
}

bool odd_power(int64_t size) {
  bool odd = false;
  for (; size > 1; size /= 2) odd = !odd;
  return odd;
}

std::unique_ptr<FftTables> make_tables(int64_t size) {
  auto tables = std::make_unique<FftTables>();
  tables->size = size;
  int64_t n = size;
  const bool two = odd_power(size);
  if (two) {
    for (int64_t j = 0; j < n / 2; ++j)
      push_angle(tables->twiddles, -kTurn * static_cast<double>(j) / static_cast<double>(n));
    n /= 2;
  }
  for (; n > 1; n /= 4)
    for (int64_t j = 0; j < n / 4; ++j)
      for (int64_t r = 1; r <= 3; ++r)
        push_angle(tables->twiddles, -kTurn * static_cast<double>(r * j) / static_cast<double>(n));

  std::vector<int64_t> order(static_cast<size_t>(size)), position(static_cast<size_t>(size));
  fill_order(order, 0, size, 0, 1, two);
  for (size_t i = 0; i < order.size(); ++i) position[static_cast<size_t>(order[i])] = static_cast<int64_t>(i);
  for (int64_t k = 1; k <= size / 2; ++k) {
    tables->pairs.push_back(static_cast<int32_t>(position[static_cast<size_t>(k)]));
    tables->pairs.push_back(static_cast<int32_t>(position[static_cast<size_t>(size - k)]));
    push_angle(tables->rotations, -kTurn * static_cast<double>(k) / static_cast<double>(2 * size));
  }
  return tables;
}

}  // namespace

const FftTables& fft_tables(int64_t size) {
  invariant(size >= 2 && (size & (size - 1)) == 0 && size <= int64_t{1} << 30, "FFT of {} numbers", size);
  static std::mutex mutex;
  static std::map<int64_t, std::unique_ptr<FftTables>> known;  // at most 30
  const std::lock_guard lock(mutex);
  auto& tables = known[size];
  if (!tables) tables = make_tables(size);
  return *tables;
}

}  // namespace weft::kernels
