#include "nn/mixers/legendre.h"

namespace weft {

LegendreMemory legendre_memory(int64_t order, double window) {
  const auto a = at::zeros({order, order}, at::kDouble), b = at::zeros({order}, at::kDouble);
  auto a_at = a.accessor<double, 2>();
  auto b_at = b.accessor<double, 1>();
  for (int64_t i = 0; i < order; ++i) {
    const double scale = static_cast<double>(2 * i + 1) / window;
    for (int64_t j = 0; j < order; ++j) a_at[i][j] = i < j || (i - j) % 2 == 0 ? -scale : scale;
    b_at[i] = i % 2 == 0 ? scale : -scale;
  }
  return {a, b};
}

LegendreMemory discretised(const LegendreMemory& memory) {
  const int64_t order = memory.b.size(0);
  // e^[[A, B], [0, 0]] = [[e^A, A^-1 (e^A - I) B], [0, 1]]: no inverse needed.
  const auto both = at::zeros({order + 1, order + 1}, at::kDouble);
  both.slice(0, 0, order).slice(1, 0, order).copy_(memory.a);
  both.slice(0, 0, order).select(1, order).copy_(memory.b);
  const auto power = at::linalg_matrix_exp(both).slice(0, 0, order);
  return {power.slice(1, 0, order).contiguous(), power.select(1, order).contiguous()};
}

LegendreTables legendre_tables(const LegendreMemory& memory, int64_t span) {
  std::vector<at::Tensor> powers;
  auto response = memory.b.unsqueeze(1);  // [N, 1]
  auto power = memory.a;
  for (int64_t length = 1; length < span; length *= 2) {
    powers.push_back(power);
    response = at::cat({response, at::matmul(power, response)}, 1);
    power = at::matmul(power, power);
  }
  powers.push_back(power);
  return {at::stack(powers), response.contiguous()};
}

}  // namespace weft
