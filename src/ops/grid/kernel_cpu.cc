// The gating matrix row by row: two numbers for every source travel along the edges, lanes are sources.
#include "ops/grid/kernel.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/grid/kernel_cpu.cc"
#include "ops/simd/targets.h"

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = simd::HWY_NAMESPACE;
using sv::Floats;
using sv::VecF;

// The cell that is visited at step (i, j) of a way, and the sources that can reach its row: whole rows, so that
// they are a range in the order of the grid whichever way the columns go.
struct Visit {
  int64_t row, column, cell, first, last;
};
HWY_INLINE Visit visit(const GridMatrix& p, int64_t way, int64_t i, int64_t j) {
  Visit v;
  v.row = p.up[way] ? p.rows - 1 - i : i;
  v.column = p.left[way] ? p.columns - 1 - j : j;
  v.cell = v.row * p.columns + v.column;
  v.first = p.up[way] ? v.row * p.columns : 0;
  v.last = p.up[way] ? p.rows * p.columns : (v.row + 1) * p.columns;
  return v;
}

struct Gates {
  VecF rl, ru, dl, du, ml, mu;
  float sr, sd;
  Gates(Floats d, const float* g)
      : rl(hn::Set(d, g[0])),
        ru(hn::Set(d, g[1])),
        dl(hn::Set(d, g[2])),
        du(hn::Set(d, g[3])),
        ml(hn::Set(d, g[6])),
        mu(hn::Set(d, g[7])),
        sr(g[4]),
        sd(g[5]) {}
};

// out = a x + b y over [first, last); out may be x or y.
HWY_INLINE VecF mix(VecF a, VecF x, VecF b, VecF y) { return hn::MulAdd(a, x, hn::Mul(b, y)); }

void grid_matrix_forward(const GridMatrix& p, float* matrix, float* scratch) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t cells = p.rows * p.columns;
  float *const right = scratch, *const downs = scratch + cells;  // [N], [columns, N]
  std::fill_n(matrix, cells * cells, 0.0f);
  for (int64_t way = 0; way < p.ways; ++way) {
    std::fill_n(downs, p.columns * cells, 0.0f);
    for (int64_t i = 0; i < p.rows; ++i) {
      std::fill_n(right, cells, 0.0f);
      for (int64_t j = 0; j < p.columns; ++j) {
        const Visit at = visit(p, way, i, j);
        const Gates g(d, p.gates + (way * cells + at.cell) * kGridGates);
        float *const down = downs + at.column * cells, *const row = matrix + at.cell * cells;
        for (int64_t s = at.first; s < at.last; s += lanes) {
          const int64_t left = at.last - s;
          const VecF r = sv::load_part(d, right + s, left), u = sv::load_part(d, down + s, left);
          const VecF sum = sv::load_part(d, row + s, left);
          sv::store_part(hn::MulAdd(g.ml, r, hn::MulAdd(g.mu, u, sum)), d, row + s, left);
          sv::store_part(mix(g.rl, r, g.ru, u), d, right + s, left);
          sv::store_part(mix(g.dl, r, g.du, u), d, down + s, left);
        }
        right[at.cell] += g.sr;
        down[at.cell] += g.sd;
      }
    }
  }
}

// States of all edges of one way, by the cell they leave: rights, downs [N, N].
void grid_states(const GridMatrix& p, int64_t way, float* rights, float* downs, const float* zeros) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t cells = p.rows * p.columns;
  const int64_t before = p.left[way] ? 1 : -1, above = p.up[way] ? p.columns : -p.columns;
  std::fill_n(rights, cells * cells, 0.0f);
  std::fill_n(downs, cells * cells, 0.0f);
  for (int64_t i = 0; i < p.rows; ++i)
    for (int64_t j = 0; j < p.columns; ++j) {
      const Visit at = visit(p, way, i, j);
      const Gates g(d, p.gates + (way * cells + at.cell) * kGridGates);
      const float* from_left = j > 0 ? rights + (at.cell + before) * cells : zeros;
      const float* from_above = i > 0 ? downs + (at.cell + above) * cells : zeros;
      float *const right = rights + at.cell * cells, *const down = downs + at.cell * cells;
      for (int64_t s = at.first; s < at.last; s += lanes) {
        const int64_t left = at.last - s;
        const VecF r = sv::load_part(d, from_left + s, left), u = sv::load_part(d, from_above + s, left);
        sv::store_part(mix(g.rl, r, g.ru, u), d, right + s, left);
        sv::store_part(mix(g.dl, r, g.du, u), d, down + s, left);
      }
      right[at.cell] += g.sr;
      down[at.cell] += g.sd;
    }
}

void grid_matrix_backward(const GridMatrix& p, const float* dmatrix, float* dgates, float* scratch) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t cells = p.rows * p.columns;
  float *const rights = scratch, *const downs = rights + cells * cells, *const zeros = downs + cells * cells;
  float *const dright = zeros + cells, *const ddowns = dright + cells;  // [N], [columns, N]
  std::fill_n(zeros, cells, 0.0f);
  for (int64_t way = 0; way < p.ways; ++way) {
    const int64_t before = p.left[way] ? 1 : -1, above = p.up[way] ? p.columns : -p.columns;
    grid_states(p, way, rights, downs, zeros);
    std::fill_n(ddowns, p.columns * cells, 0.0f);
    for (int64_t i = p.rows - 1; i >= 0; --i) {
      std::fill_n(dright, cells, 0.0f);
      for (int64_t j = p.columns - 1; j >= 0; --j) {
        const Visit at = visit(p, way, i, j);
        const Gates g(d, p.gates + (way * cells + at.cell) * kGridGates);
        float* const dg = dgates + (way * cells + at.cell) * kGridGates;
        const float* from_left = j > 0 ? rights + (at.cell + before) * cells : zeros;
        const float* from_above = i > 0 ? downs + (at.cell + above) * cells : zeros;
        const float* const drow = dmatrix + at.cell * cells;
        float* const ddown = ddowns + at.column * cells;
        dg[4] = dright[at.cell];
        dg[5] = ddown[at.cell];
        VecF rl = hn::Zero(d), ru = rl, dl = rl, du = rl, ml = rl, mu = rl;
        for (int64_t s = at.first; s < at.last; s += lanes) {
          const int64_t left = at.last - s;
          const VecF r = sv::load_part(d, from_left + s, left), u = sv::load_part(d, from_above + s, left);
          const VecF to_right = sv::load_part(d, dright + s, left),
                     to_down = sv::load_part(d, ddown + s, left);
          const VecF dy = sv::load_part(d, drow + s, left);
          rl = hn::MulAdd(to_right, r, rl);
          ru = hn::MulAdd(to_right, u, ru);
          dl = hn::MulAdd(to_down, r, dl);
          du = hn::MulAdd(to_down, u, du);
          ml = hn::MulAdd(dy, r, ml);
          mu = hn::MulAdd(dy, u, mu);
          sv::store_part(hn::MulAdd(g.ml, dy, mix(g.rl, to_right, g.dl, to_down)), d, dright + s, left);
          sv::store_part(hn::MulAdd(g.mu, dy, mix(g.ru, to_right, g.du, to_down)), d, ddown + s, left);
        }
        dg[0] = sv::sum_lanes(d, rl);
        dg[1] = sv::sum_lanes(d, ru);
        dg[2] = sv::sum_lanes(d, dl);
        dg[3] = sv::sum_lanes(d, du);
        dg[6] = sv::sum_lanes(d, ml);
        dg[7] = sv::sum_lanes(d, mu);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {

int64_t grid_forward_scratch(const GridMatrix& p) { return (1 + p.columns) * p.rows * p.columns; }
int64_t grid_backward_scratch(const GridMatrix& p) {
  const int64_t cells = p.rows * p.columns;
  return (2 * cells + 2 + p.columns) * cells;
}

WEFT_SIMD_DISPATCH(grid_matrix_forward, (const GridMatrix& p, float* matrix, float* scratch),
                   (p, matrix, scratch))
WEFT_SIMD_DISPATCH(grid_matrix_backward,
                   (const GridMatrix& p, const float* dmatrix, float* dgates, float* scratch),
                   (p, dmatrix, dgates, scratch))
}  // namespace weft::kernels
#endif
