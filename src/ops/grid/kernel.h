// CPU kernels of the gating matrix of a grid, over contiguous fp32.
#pragma once

#include <cstdint>

#include "ops/simd/isa.h"

namespace weft::kernels {

constexpr int64_t kGridGates = 8;  // of a cell: T_rl T_ru T_dl T_du S_r S_d M_l M_u

// One head of one sequence.
struct GridMatrix {
  int64_t rows = 0, columns = 0, ways = 0;
  const bool* up = nullptr;      // [ways]
  const bool* left = nullptr;    // [ways]
  const float* gates = nullptr;  // [ways, rows * columns, 8]
};

int64_t grid_forward_scratch(const GridMatrix& p);   // floats
int64_t grid_backward_scratch(const GridMatrix& p);  // floats

// Writes matrix [N, N], N = rows * columns, with a diagonal of zeros.
void grid_matrix_forward(simd::Isa isa, const GridMatrix& p, float* matrix, float* scratch);
// Writes the gradient of the gates, like them, for that of the matrix.
void grid_matrix_backward(simd::Isa isa, const GridMatrix& p, const float* dmatrix, float* dgates,
                          float* scratch);

}  // namespace weft::kernels
