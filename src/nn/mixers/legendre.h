// The fixed linear memory of a Legendre Memory Unit. Voelker, Kajic and Eliasmith 2019 (NeurIPS): the first N
// coefficients, in Legendre polynomials, of the last `window` inputs.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft {

struct LegendreMemory {
  at::Tensor a;  // [N, N] fp64
  at::Tensor b;  // [N] fp64
};

// In continuous time, dm/dt = A m + B u, t in steps:
//   A_ij = (2 i + 1) / window * (-1 if i < j, else (-1)^(i - j + 1));  B_i = (2 i + 1) (-1)^i / window
LegendreMemory legendre_memory(int64_t order, double window);

// For steps of one, the input held between them: A <- e^A, B <- A^-1 (e^A - I) B.
LegendreMemory discretised(const LegendreMemory& memory);

// Powers of A that work on many tokens by doubling, and the response to one input.
struct LegendreTables {
  at::Tensor powers;    // [log2(span), N, N]: A^(2^j)
  at::Tensor response;  // [N, span]: A^t B
};
// `span` is a power of two.
LegendreTables legendre_tables(const LegendreMemory& memory, int64_t span);

}  // namespace weft
