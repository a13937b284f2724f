// The definition: states along the anti-diagonals, whose cells depend on the diagonal before only.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>

#include "ops/grid/grid.h"
#include "ops/shape.h"

namespace weft::ops::reference {
namespace {

at::Tensor flipped(const at::Tensor& x, const GridWay& way) {  // [B, R, C, ...]
  std::vector<int64_t> dims;
  if (way.up) dims.push_back(1);
  if (way.left) dims.push_back(2);
  return dims.empty() ? x : x.flip(dims);
}

// What the cells of one way, right and down, read when each writes P numbers: writes [B, R, C, H, P] -> the same.
at::Tensor propagate(const at::Tensor& transition, const at::Tensor& source, const at::Tensor& mark,
                     const at::Tensor& writes) {
  const int64_t rows = writes.size(1), columns = writes.size(2);
  if (writes.numel() == 0 || rows * columns == 1) return at::zeros_like(writes);  // no edges
  auto edge_shape = writes.sizes().vec();
  edge_shape.erase(edge_shape.begin() + 2);
  auto right = at::zeros(edge_shape, writes.options());  // [B, R, H, P]: by row, what enters it from the left
  auto down = right;                                     // by row, what enters the row below from above
  const auto flat = [](const at::Tensor& x) { return x.flatten(1, 2); };
  std::vector<at::Tensor> reads;
  std::vector<int64_t> order;  // the cell of each read
  for (int64_t diagonal = 0; diagonal < rows + columns - 1; ++diagonal) {
    const int64_t first = std::max<int64_t>(0, diagonal - columns + 1), last = std::min(rows - 1, diagonal);
    const int64_t count = last - first + 1;
    std::vector<int64_t> cells;
    for (int64_t i = first; i <= last; ++i) cells.push_back(i * columns + diagonal - i);
    const auto index = at::tensor(cells, writes.options().dtype(at::kLong));
    const auto at_cells = [&](const at::Tensor& x) { return flat(x).index_select(1, index); };
    const auto t = at_cells(transition).unsqueeze(-1), s = at_cells(source).unsqueeze(-1),
               m = at_cells(mark).unsqueeze(-1);  // [B, cells, H, 2, (2,) 1]
    const auto from_left = right.narrow(1, first, count);
    const auto from_above =
        first > 0 ? down.narrow(1, first - 1, count)
                  : at::cat({at::zeros_like(down.narrow(1, 0, 1)), down.narrow(1, 0, count - 1)}, 1);
    reads.push_back(m.select(3, 0) * from_left + m.select(3, 1) * from_above);
    order.insert(order.end(), cells.begin(), cells.end());
    const auto write = at_cells(writes);
    const auto leaving = [&](int64_t edge) {
      const auto to = t.select(3, edge);
      const auto state =
          to.select(3, 0) * from_left + to.select(3, 1) * from_above + s.select(3, edge) * write;
      return at::constant_pad_nd(state, {0, 0, 0, 0, first, rows - 1 - last});
    };
    const auto next = leaving(0);
    down = leaving(1);
    right = next;
  }
  const auto inverse = std::get<1>(at::tensor(order, writes.options().dtype(at::kLong)).sort());
  return at::cat(reads, 1).index_select(1, inverse).unflatten(1, {rows, columns});
}

at::Tensor propagate_all(const GridGates& gates, const at::Tensor& writes) {
  auto sum = at::zeros_like(writes);
  for (size_t w = 0; w < gates.ways.size(); ++w) {
    const auto of_way = [&](const at::Tensor& x) {
      return flipped(x.select(3, static_cast<int64_t>(w)).to(writes.scalar_type()), gates.ways[w]);
    };
    const auto reads = propagate(of_way(gates.transition), of_way(gates.source), of_way(gates.mark),
                                 flipped(writes, gates.ways[w]));
    sum = sum + flipped(reads, gates.ways[w]);
  }
  return sum;
}

}  // namespace

at::Tensor grid_linear_attention(const GridLinearAttention& in) {
  const auto type = accumulate_type(in.v);
  const double scale = in.scale != 0 ? in.scale : 1 / std::sqrt(static_cast<double>(in.k.size(-1)));
  const auto q = in.q.to(type) * scale, k = in.k.to(type), v = in.v.to(type);
  const auto outer = k.unsqueeze(-1) * v.unsqueeze(-2);  // [B, R, C, H, K, V]
  const auto states = propagate_all(in.gates, outer.flatten(-2)).view(outer.sizes());
  auto y = (q.unsqueeze(-1) * states).sum(-2);
  if (in.gates.direct.defined()) y = y + in.gates.direct.to(type).unsqueeze(-1) * (q * k).sum(-1, true) * v;
  return y.to(in.v.scalar_type());
}

at::Tensor grid_gating_matrix(const GridGates& gates) {
  const auto& s = gates.source;
  const int64_t rows = s.size(1), columns = s.size(2), cells = rows * columns;
  const auto own = at::eye(cells, s.options().dtype(accumulate_type(s))).view({1, rows, columns, 1, cells});
  const auto reads =
      propagate_all(gates, own.expand({s.size(0), rows, columns, s.size(4), cells}).contiguous());
  auto matrix = reads.permute({0, 3, 1, 2, 4}).reshape({s.size(0), s.size(4), cells, cells});
  if (gates.direct.defined())
    matrix = matrix + at::diag_embed(gates.direct.to(matrix.scalar_type()).flatten(1, 2).transpose(1, 2));
  return matrix;
}

}  // namespace weft::ops::reference
