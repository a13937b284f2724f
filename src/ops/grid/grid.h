// Linear attention on a grid: matrix states that live on the edges between neighbouring cells. pLSTM, Poppel et
// al. 2025, arXiv:2506.11997. Each cell (i, j) passes on what enters from the left and from above, to the right
// and down, adds its own key and value, and reads what entered:
//   R(i,j) = T_rl R(i,j-1) + T_ru D(i-1,j) + S_r k v'        right edge, [K, V]
//   D(i,j) = T_dl R(i,j-1) + T_du D(i-1,j) + S_d k v'        down edge
//   y(i,j) = scale ([M_l R(i,j-1) + M_u D(i-1,j)]' q + direct (q.k) v)
// All gates are scalars of cell (i, j); edges from outside the grid carry zeros. Equal to
// y_n = scale sum_m G[n, m] (q_n.k_m) v_m, where G[n, m] adds up, over all ways from cell m to cell n, the product
// of a source, transitions and a mark, and G[n, n] = direct.
//
// B batch, R rows, C columns, N = R C cells in row-major order, H heads, K and V widths of a key and a value head,
// W orientations.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace weft::ops {

// Which way the states travel; the gates always stand at their cell, in the order of the grid.
struct GridWay {
  bool up = false;    // rows from the last to the first: "down" edges lead to the row before
  bool left = false;  // columns from the last to the first
};
// Right and down, left and down, right and up, left and up.
std::vector<GridWay> all_grid_ways();

struct GridGates {
  // [B, R, C, W, H, 2, 2]: [to the right, down][from the left, from above]
  at::Tensor transition;
  at::Tensor source;  // [B, R, C, W, H, 2]: to the right, down
  at::Tensor mark;    // [B, R, C, W, H, 2]: from the left, from above
  at::Tensor direct;  // [B, R, C, H]; undefined: zeros
  std::vector<GridWay> ways{GridWay{}};
};

struct GridLinearAttention {
  at::Tensor q, k;   // [B, R, C, H, K] any float type
  at::Tensor v;      // [B, R, C, H, V] same type
  GridGates gates;   // fp32 or the input type
  double scale = 0;  // 0 means 1 / sqrt(K)
};

// y [B, R, C, H, V] in the type of v: the sum over all ways. Differentiable in all tensors; second derivatives by
// the reference. R or C may be 0.
// Error against fp64 relative to max|y|, while sums of gates stay of order one: fp32 1e-5, bf16 and fp16 2e-2.
// Work: B H N^2 (6 W + 2 K + 2 V) flops by way of G, which takes B H N^2 numbers.
at::Tensor grid_linear_attention(const GridLinearAttention& in);

// G [B, H, N, N], row n reads column m; fp32 (fp64 for fp64).
at::Tensor grid_gating_matrix(const GridGates& gates);

// The same from smaller blocks: neighbouring blocks are merged, along the columns and along the rows, until one
// is left: log2 R + log2 C steps of batched products, for devices that are fast at those. README.md derives the
// rules. Any device and float type; differentiable.
at::Tensor merged_gating_matrix(const GridGates& gates);

namespace reference {
// State by state along the anti-diagonals.
at::Tensor grid_linear_attention(const GridLinearAttention& in);
at::Tensor grid_gating_matrix(const GridGates& gates);
}  // namespace reference

}  // namespace weft::ops
