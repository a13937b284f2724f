// The gating matrix from blocks: two neighbours become one, see README.md.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <bit>

#include "ops/grid/grid.h"
#include "ops/shape.h"

namespace weft::ops {
namespace {

using at::cat;
using at::matmul;

// All blocks of one size, batched: [B, H, block rows, block columns, ...]. A block of r rows and c columns has r
// edges on its left and right, c above and below, and P = r c cells, in the order in which it was merged.
struct Blocks {
  at::Tensor rl, ru, dl, du;  // [.., r, r], [.., r, c], [.., c, r], [.., c, c]: leaving edge, entering edge
  at::Tensor sr, sd;          // [.., r, P], [.., c, P]: leaving edge, cell
  at::Tensor ml, mu;          // [.., P, r], [.., P, c]: cell, entering edge
  at::Tensor g;               // [.., P, P]
};

template <class F>
Blocks each(const Blocks& b, const F& f) {
  return {f(b.rl), f(b.ru), f(b.dl), f(b.du), f(b.sr), f(b.sd), f(b.ml), f(b.mu), f(b.g)};
}

// Rows and columns exchanged: what enters from above enters from the left, and so on.
Blocks transposed(const Blocks& b) { return {b.du, b.dl, b.ru, b.rl, b.sd, b.sr, b.mu, b.ml, b.g}; }

at::Tensor beside(const at::Tensor& a, const at::Tensor& b) { return cat({a, b}, -1); }
at::Tensor below(const at::Tensor& a, const at::Tensor& b) { return cat({a, b}, -2); }
at::Tensor zeros(const at::Tensor& rows_of, const at::Tensor& columns_of) {
  auto sizes = rows_of.sizes().vec();
  sizes.back() = columns_of.size(-1);
  return at::zeros(sizes, rows_of.options());
}

// Blocks a with the blocks b to their right. Cells: those of a, then those of b.
Blocks merge(const Blocks& a, const Blocks& b) {
  return {.rl = matmul(b.rl, a.rl),
          .ru = beside(matmul(b.rl, a.ru), b.ru),
          .dl = below(a.dl, matmul(b.dl, a.rl)),
          .du = below(beside(a.du, zeros(a.du, b.du)), beside(matmul(b.dl, a.ru), b.du)),
          .sr = beside(matmul(b.rl, a.sr), b.sr),
          .sd = below(beside(a.sd, zeros(a.sd, b.sd)), beside(matmul(b.dl, a.sr), b.sd)),
          .ml = below(a.ml, matmul(b.ml, a.rl)),
          .mu = below(beside(a.mu, zeros(a.mu, b.mu)), beside(matmul(b.ml, a.ru), b.mu)),
          .g = below(beside(a.g, zeros(a.g, b.g)), beside(matmul(b.ml, a.sr), b.g))};
}

// Every second block along `dim`, from the first or the second on.
Blocks half(const Blocks& b, int64_t dim, int64_t from) {
  return each(b, [&](const at::Tensor& x) { return x.slice(dim, from, std::nullopt, 2); });
}

int64_t padded(int64_t size) { return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(size))); }

// Where each cell of an R by C grid stands among the cells of the merged block: [R * C].
at::Tensor merged_places(int64_t rows, int64_t columns, const at::TensorOptions& options) {
  auto cells = at::arange(rows * columns, options.dtype(at::kLong)).view({rows, columns, 1});
  while (cells.size(0) > 1 || cells.size(1) > 1) {
    for (const int64_t dim : {1, 0})
      if (cells.size(dim) > 1)
        cells = cat({cells.slice(dim, 0, std::nullopt, 2), cells.slice(dim, 1, std::nullopt, 2)}, -1);
  }
  return std::get<1>(cells.flatten().sort());
}

// One way, right and down: transition [B, R, C, H, 2, 2], source and mark [B, R, C, H, 2] -> [B, H, N, N].
at::Tensor merge_all(const at::Tensor& transition, const at::Tensor& source, const at::Tensor& mark) {
  const int64_t rows = source.size(1), columns = source.size(2);
  const int64_t all_rows = padded(rows), all_columns = padded(columns);
  const auto cells = [&](const at::Tensor& x) {  // padded with gates of zero: [B, H, R, C, ...]
    std::vector<int64_t> pad(static_cast<size_t>(2 * (x.dim() - 3)), 0);
    pad.insert(pad.end(), {0, all_columns - columns, 0, all_rows - rows});
    return at::constant_pad_nd(x, pad).movedim(3, 1);
  };
  const auto t = cells(transition), s = cells(source), m = cells(mark);
  const auto one = [](const at::Tensor& x) { return x.unsqueeze(-1).unsqueeze(-1); };
  const auto turn = [&](int64_t to, int64_t from) { return one(t.select(-2, to).select(-1, from)); };
  Blocks blocks{turn(0, 0),           turn(0, 1),           turn(1, 0),
                turn(1, 1),           one(s.select(-1, 0)), one(s.select(-1, 1)),
                one(m.select(-1, 0)), one(m.select(-1, 1)), one(at::zeros_like(s.select(-1, 0)))};
  while (blocks.g.size(2) > 1 || blocks.g.size(3) > 1) {
    if (blocks.g.size(3) > 1) blocks = merge(half(blocks, 3, 0), half(blocks, 3, 1));
    if (blocks.g.size(2) > 1)
      blocks = transposed(merge(transposed(half(blocks, 2, 0)), transposed(half(blocks, 2, 1))));
  }
  const auto places = merged_places(all_rows, all_columns, source.options())
                          .view({all_rows, all_columns})
                          .slice(0, 0, rows)
                          .slice(1, 0, columns)
                          .flatten();
  return blocks.g.flatten(2, 3).squeeze(2).index_select(2, places).index_select(3, places);
}

}  // namespace

at::Tensor merged_gating_matrix(const GridGates& gates) {
  const auto& s = gates.source;
  const int64_t rows = s.size(1), columns = s.size(2), heads = s.size(4);
  const auto type = accumulate_type(s);
  auto sum = at::zeros({s.size(0), heads, rows * columns, rows * columns}, s.options().dtype(type));
  if (sum.numel() == 0) return sum;
  for (size_t w = 0; w < gates.ways.size(); ++w) {
    std::vector<int64_t> dims;
    if (gates.ways[w].up) dims.push_back(1);
    if (gates.ways[w].left) dims.push_back(2);
    const auto of_way = [&](const at::Tensor& x) {
      return x.select(3, static_cast<int64_t>(w)).to(type).flip(dims);
    };
    const auto g = merge_all(of_way(gates.transition), of_way(gates.source), of_way(gates.mark));
    const auto cells = at::arange(rows * columns, s.options().dtype(at::kLong)).view({1, rows, columns});
    const auto places = cells.flip(dims).flatten();  // its own inverse
    sum = sum + g.index_select(2, places).index_select(3, places);
  }
  if (gates.direct.defined()) sum = sum + at::diag_embed(gates.direct.to(type).flatten(1, 2).transpose(1, 2));
  return sum;
}

}  // namespace weft::ops
