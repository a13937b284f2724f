#include "ops/grid/grid.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "base/error.h"
#include "ops/gradient_check.h"
#include "ops/grid/dag.h"
#include "ops/grid/grid_cases.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/recurrence_check.h"

namespace weft::ops {
namespace {

using Tensors = std::vector<at::Tensor>;
const auto kWide = at::TensorOptions().dtype(at::kDouble);

// Gates that are the same at every cell, one head, one way: T_rl, T_ru, T_dl, T_du, S_r, S_d, M_l, M_u.
GridGates constant_gates(int64_t rows, int64_t columns, const std::array<double, 8>& gate) {
  const auto all = at::tensor(at::ArrayRef<double>(gate), kWide).expand({1, rows, columns, 1, 1, 8});
  return {all.slice(-1, 0, 4).reshape({1, rows, columns, 1, 1, 2, 2}), all.slice(-1, 4, 6),
          all.slice(-1, 6, 8)};
}

// G from cell (0, 0) as a grid [rows, columns].
at::Tensor from_corner(const at::Tensor& matrix, int64_t rows, int64_t columns) {
  return matrix[0][0].select(1, 0).view({rows, columns});
}

double at_cell(const at::Tensor& grid, int64_t i, int64_t j) { return grid[i][j].item<double>(); }

// --- definitions against each other ------------------------------------------------------------------------

// Every cell's sums in plain loops over scalars: way by way, states of [K, V].
at::Tensor plain(const GridLinearAttention& in) {
  const int64_t rows = in.v.size(1), columns = in.v.size(2), k = in.k.size(4), v = in.v.size(4);
  const auto y = at::zeros(in.v.sizes(), kWide);
  auto out = y.accessor<double, 5>();
  const auto q = in.q.accessor<double, 5>(), key = in.k.accessor<double, 5>(),
             val = in.v.accessor<double, 5>();
  const auto t = in.gates.transition.accessor<double, 7>();
  const auto s = in.gates.source.accessor<double, 6>(), m = in.gates.mark.accessor<double, 6>();
  const auto direct = in.gates.direct.accessor<double, 4>();
  for (int64_t b = 0; b < in.v.size(0); ++b)
    for (int64_t h = 0; h < in.v.size(3); ++h)
      for (int64_t c = 0; c < k; ++c)
        for (int64_t d = 0; d < v; ++d) {
          for (int64_t w = 0; w < static_cast<int64_t>(in.gates.ways.size()); ++w) {
            const auto way = in.gates.ways[static_cast<size_t>(w)];
            std::vector<double> down(static_cast<size_t>(columns), 0.0);
            for (int64_t i = 0; i < rows; ++i) {
              double right = 0;
              for (int64_t j = 0; j < columns; ++j) {
                const int64_t r = way.up ? rows - 1 - i : i, x = way.left ? columns - 1 - j : j;
                const double left = right, above = down[static_cast<size_t>(j)];
                out[b][r][x][h][d] +=
                    q[b][r][x][h][c] * (m[b][r][x][w][h][0] * left + m[b][r][x][w][h][1] * above);
                const double write = key[b][r][x][h][c] * val[b][r][x][h][d];
                const auto g = t[b][r][x][w][h];
                right = g[0][0] * left + g[0][1] * above + s[b][r][x][w][h][0] * write;
                down[static_cast<size_t>(j)] = g[1][0] * left + g[1][1] * above + s[b][r][x][w][h][1] * write;
              }
            }
          }
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t x = 0; x < columns; ++x)
              out[b][r][x][h][d] +=
                  direct[b][r][x][h] * q[b][r][x][h][c] * key[b][r][x][h][c] * val[b][r][x][h][d];
        }
  return y / std::sqrt(static_cast<double>(k));
}

TEST(Grid, ReferenceIsTheDefinition) {
  for (const auto& c : grid_cases()) {
    const auto in = grid_of(make_grid_inputs(c, 3), c.ways);
    expect_close(fmt::format("{}x{}", c.rows, c.columns), reference::grid_linear_attention(in), plain(in),
                 1e-13);
  }
}

TEST(Grid, MatrixAttentionAndMergingAreTheDefinition) {
  for (const auto& c : grid_cases()) {
    const auto x = make_grid_inputs(c, 4);
    const auto what = fmt::format("{}x{}", c.rows, c.columns);
    const auto g = reference::grid_gating_matrix(gates_of(x, c.ways));
    expect_close(what + " merged", merged_gating_matrix(gates_of(x, c.ways)), g, 4e-15);
    const auto heads = [](const at::Tensor& y) { return y.flatten(1, 2).transpose(1, 2); };
    const auto scores =
        at::matmul(heads(x[0]), heads(x[1]).transpose(-1, -2)) / std::sqrt(static_cast<double>(c.k));
    const auto y = at::matmul(g * scores, heads(x[2])).transpose(1, 2).reshape(x[2].sizes());
    expect_close(what + " attention", y, reference::grid_linear_attention(grid_of(x, c.ways)), 1e-13);
  }
}

TEST(Grid, MergingOnRandomGrids) {
  for (uint64_t seed = 0; seed < 5; ++seed)
    for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{8, 8}, {16, 4}, {13, 6}}) {
      const GridCase c{1, rows, columns, 1, 1, 1, {{}}};
      const auto gates = gates_of(make_grid_inputs(c, 100 + seed), c.ways);
      expect_close("merged", merged_gating_matrix(gates), reference::grid_gating_matrix(gates), 4e-15);
    }
}

TEST(Grid, KernelsMatchTheReference) {
  for (const auto& c : grid_cases())
    for (const auto& [type, bound] :
         {std::pair{at::kFloat, 1e-5}, {at::kBFloat16, 2e-2}, {at::kHalf, 2e-2}}) {
      auto inputs = make_grid_inputs(c, 5);
      for (size_t i = 0; i < inputs.size(); ++i)
        inputs[i] = inputs[i].to(type).to(i < 3 ? type : at::kFloat);  // gates stay fp32
      expect_kernels_match(
          fmt::format("{}x{} {}", c.rows, c.columns, c10::toString(type)),
          [&](const Tensors& x) { return Tensors{grid_linear_attention(grid_of(x, c.ways))}; },
          [&](const Tensors& x) { return Tensors{reference::grid_linear_attention(grid_of(x, c.ways))}; },
          inputs, bound);
    }
}

TEST(Grid, MatrixKernelsMatchTheReference) {
  for (const auto& c : grid_cases()) {
    auto inputs = make_grid_inputs(c, 6);
    inputs.erase(inputs.begin(), inputs.begin() + 3);
    for (auto& x : inputs) x = x.to(at::kFloat);
    const auto gates = [&](const Tensors& x) { return GridGates{x[0], x[1], x[2], x[3], c.ways}; };
    expect_kernels_match(
        fmt::format("{}x{}", c.rows, c.columns),
        [&](const Tensors& x) { return Tensors{grid_gating_matrix(gates(x))}; },
        [&](const Tensors& x) { return Tensors{reference::grid_gating_matrix(gates(x))}; }, inputs, 1e-5);
  }
}

TEST(Grid, ReferenceAndMergingGradientsAreTheDerivatives) {
  const GridCase c{1, 3, 4, 1, 2, 2, {{}, {.up = true, .left = true}}};
  const auto inputs = make_grid_inputs(c, 7);
  expect_gradients([&](const Tensors& x) { return Tensors{grid_linear_attention(grid_of(x, c.ways))}; },
                   inputs);
  expect_gradients([&](const Tensors& x) { return Tensors{merged_gating_matrix(gates_of(x, c.ways))}; },
                   inputs);
}

TEST(Grid, ThreadsDoNotChangeResults) {
  const GridCase c{3, 7, 9, 4, 8, 8, all_grid_ways()};
  auto inputs = make_grid_inputs(c, 8);
  for (auto& x : inputs) x = x.to(at::kFloat);
  inputs.erase(inputs.begin(), inputs.begin() + 3);
  expect_thread_independent(
      [&](const Tensors& x) {
        return Tensors{grid_gating_matrix({x[0], x[1], x[2], x[3], c.ways})};
      },
      inputs);
}

// --- orientations -------------------------------------------------------------------------------------------

// Input flipped and way flipped: output flipped. Each of the four ways alone, so that none may stand for another.
TEST(Grid, FlippedInputWithFlippedWayIsFlippedOutput) {
  const GridCase c{2, 5, 3, 2, 4, 3, {{}}};
  const auto x = make_grid_inputs(c, 9);
  const auto plain_way = reference::grid_linear_attention(grid_of(x, {{}}));
  std::vector<at::Tensor> seen;
  for (const auto& way : all_grid_ways()) {
    std::vector<int64_t> dims;
    if (way.up) dims.push_back(1);
    if (way.left) dims.push_back(2);
    Tensors flipped;
    for (const auto& t : x) flipped.push_back(t.flip(dims));
    expect_close("reference", reference::grid_linear_attention(grid_of(flipped, {way})), plain_way.flip(dims),
                 1e-14);
    for (auto& t : flipped) t = t.to(at::kFloat);
    expect_close("kernel", grid_linear_attention(grid_of(flipped, {way})), plain_way.flip(dims), 1e-5);
    // On one input the ways differ: one that was ignored would show here.
    const auto y = reference::grid_linear_attention(grid_of(x, {way}));
    for (const auto& other : seen) EXPECT_GT((y - other).abs().max().item<double>(), 1e-2);
    seen.push_back(y);
  }
}

// What each way reaches: the quadrant that it travels to.
TEST(Grid, WaysReachTheirQuadrants) {
  for (const auto& way : all_grid_ways()) {
    auto gates = constant_gates(5, 6, {1, 1, 0, 1, 1, 1, 1, 1});
    gates.ways = {way};
    for (const bool kernel : {false, true}) {
      auto g = kernel ? grid_gating_matrix({gates.transition.to(at::kFloat),
                                            gates.source.to(at::kFloat),
                                            gates.mark.to(at::kFloat),
                                            {},
                                            gates.ways})
                      : reference::grid_gating_matrix(gates);
      const auto grid = g[0][0].view({5, 6, 5, 6});
      for (int64_t i = 0; i < 5; ++i)
        for (int64_t j = 0; j < 6; ++j) {
          const bool reached =
              (way.up ? i <= 2 : i >= 2) && (way.left ? j <= 3 : j >= 3) && !(i == 2 && j == 3);
          EXPECT_EQ(grid[i][j][2][3].item<double>(), reached ? 1 : 0) << i << " " << j;
        }
    }
  }
}

// --- golden numbers and stability ---------------------------------------------------------------------------

double binomial(int64_t n, int64_t k) {
  double value = 1;
  for (int64_t i = 1; i <= k; ++i) value = value * static_cast<double>(n - k + i) / static_cast<double>(i);
  return value;
}

TEST(Grid, PropagationIsBinomialAndKeepsItsMass) {
  const auto grid = from_corner(grid_gating_matrix(constant_gates(8, 8, {.5, .5, .5, .5, 1, 1, 1, 1})), 8, 8);
  EXPECT_DOUBLE_EQ(at_cell(grid, 1, 1), 1);
  EXPECT_DOUBLE_EQ(at_cell(grid, 2, 2), .75);
  EXPECT_DOUBLE_EQ(at_cell(grid, 3, 3), .625);
  EXPECT_NEAR(at_cell(grid, 7, 7), .4189, 5e-5);
  EXPECT_DOUBLE_EQ(at_cell(grid, 0, 3), .25);
  EXPECT_DOUBLE_EQ(at_cell(grid, 3, 0), .25);
  for (int64_t distance = 1; distance < 8; ++distance) {
    double sum = 0;
    for (int64_t i = 0; i <= distance; ++i) {
      EXPECT_NEAR(at_cell(grid, i, distance - i), binomial(distance, i) * std::pow(2.0, 1 - distance), 1e-14);
      sum += at_cell(grid, i, distance - i);
    }
    EXPECT_NEAR(sum, 2, 1e-14) << distance;
  }
  // A leaning direction: g^D binom(D, dx) a^dx (1 - a)^dy, from sources a and 1 - a.
  const double a = .7, g = .9;
  const auto leaning = from_corner(
      grid_gating_matrix(constant_gates(6, 6, {g * a, g * a, g * (1 - a), g * (1 - a), a, 1 - a, 1, 1})), 6,
      6);
  for (int64_t i = 0; i < 6; ++i)
    for (int64_t j = i == 0 ? 1 : 0; j < 6; ++j)
      EXPECT_NEAR(at_cell(leaning, i, j),
                  std::pow(g, i + j - 1) * binomial(i + j, i) * std::pow(a, j) * std::pow(1 - a, i), 1e-14);
}

TEST(Grid, DistributionReachesEveryCellOnce) {
  for (const bool turn_down : {false, true}) {
    const double ru = turn_down ? 0 : 1, dl = turn_down ? 1 : 0;
    const auto g =
        grid_gating_matrix(constant_gates(7, 9, {1, ru, dl, 1, 1, 1, 1, 1}))[0][0].view({7, 9, 7, 9});
    for (int64_t i = 0; i < 7; ++i)
      for (int64_t j = 0; j < 9; ++j)
        for (int64_t r = 0; r < 7; ++r)
          for (int64_t c = 0; c < 9; ++c)
            ASSERT_EQ(g[i][j][r][c].item<double>(), i >= r && j >= c && (i > r || j > c) ? 1 : 0);
  }
}

TEST(Grid, AllTransitionsOneCountPaths) {
  const auto gates = constant_gates(8, 8, {1, 1, 1, 1, 1, 1, 1, 1});
  EXPECT_EQ(at_cell(from_corner(grid_gating_matrix(gates), 8, 8), 7, 7), 3432);
  EXPECT_EQ(at_cell(from_corner(merged_gating_matrix(gates), 8, 8), 7, 7), 3432);
}

// With |T| summing to at most one over the leaving edges, nothing exceeds the largest source times mark: what a
// source sends to both edges adds up to at most twice it.
TEST(Grid, PropagationModeIsBounded) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const GridCase c{1, 24, 24, 1, 1, 1, {{}}};
    const auto x = make_grid_inputs(c, 200 + seed);  // |T| sums to one, of either sign
    const auto one = at::ones_like(x[4]);
    const auto g = grid_gating_matrix({x[3], one * .5, one, {}, c.ways});
    EXPECT_LE(g.abs().max().item<double>(), 1 + 1e-12);
  }
}

// The form of the paper's code, T_dl = T_du = 1 - a tau, is not: the note that this bound is about the gates.
TEST(Grid, UnboundedWhereTransitionsDoNotSumToOne) {
  const auto largest = [](double a, double tau) {
    const double t = a * tau;
    return grid_gating_matrix(constant_gates(8, 8, {t, t, 1 - t, 1 - t, 1, 1, 1, 1}))
        .abs()
        .max()
        .item<double>();
  };
  EXPECT_GT(largest(.5, -.5), 3);
  EXPECT_GT(largest(.7, -.9), 500);
  EXPECT_LE(largest(.7, .9), 2);
}

// --- one row, and graphs -----------------------------------------------------------------------------------

// One row: C_t = T C_{t-1} + S k v', y = M C_{t-1}' q + direct (q.k) v, as linear attention that reads before.
TEST(Grid, OneRowIsLinearAttention) {
  const GridCase c{2, 1, 21, 3, 4, 5, {{}}};
  auto x = make_grid_inputs(c, 11);
  x[3] = at::rand_like(x[3]) * .9 + .05;
  const auto flat = [](const at::Tensor& t) { return t.squeeze(1); };
  const auto t = flat(x[3]).select(2, 0).select(-1, 0).select(-1, 0);  // [B, T, H]
  const auto s = flat(x[4]).select(2, 0).select(-1, 0), m = flat(x[5]).select(2, 0).select(-1, 0);
  const auto before = linear_attention({.q = flat(x[0]) * m.unsqueeze(-1),
                                        .k = flat(x[1]),
                                        .v = flat(x[2]),
                                        .log_decay = t.log(),
                                        .write = s,
                                        .bonus = at::zeros({3, 4}, kWide)});
  const auto own = flat(x[6]).unsqueeze(-1) * (flat(x[0]) * flat(x[1])).sum(-1, true) * flat(x[2]) / 2;
  expect_close("y", flat(grid_linear_attention(grid_of(x, c.ways))), before.y + own, 1e-12);
}

// Sources and marks of a block, merged: the paper's code documents these numbers for one dimension.
TEST(Grid, OneRowGoldenNumbers) {
  const auto column = [](std::vector<double> x) { return at::tensor(x, kWide).view({1, 1, 4, 1, 1, 1}); };
  const auto zero = at::zeros({1, 1, 4, 1, 1, 1}, kWide);
  const auto transition = at::zeros({1, 1, 4, 1, 1, 2, 2}, kWide);
  transition.select(-1, 0).select(-1, 0).fill_(.5);
  const auto source = at::cat({column({1, 2, 3, 4}), zero}, -1),
             mark = at::cat({column({4, 3, 2, 1}), zero}, -1);
  const auto expected =
      at::tensor({0., 0., 0., 0., 3., 0., 0., 0., 1., 4., 0., 0., .25, 1., 3., 0.}, kWide).view({4, 4});
  for (const auto& g : {merged_gating_matrix({transition, source, mark}),
                        reference::grid_gating_matrix({transition, source, mark})})
    expect_close("G", g[0][0], expected, 1e-15);
  // A fifth cell that only reads shows the merged sources of the four: .125, .5, 1.5, 4.
  const auto longer = [](const at::Tensor& x, double value) {
    return at::cat({x, at::full_like(x.slice(2, 0, 1), value)}, 2);
  };
  const auto g = merged_gating_matrix({longer(transition, .5), longer(source, 0), longer(mark, 1)});
  expect_close("S", g[0][0][4].slice(0, 0, 4), at::tensor({.125, .5, 1.5, 4.}, kWide), 1e-15);
}

// The grid as a graph: nodes in row-major order, two edges from each where there is a neighbour.
TEST(Dag, OnAGridIsTheGrid) {
  const GridCase c{2, 4, 5, 2, 3, 4, {{}}};
  const auto x = make_grid_inputs(c, 12);
  std::vector<std::pair<int64_t, int64_t>> edges;
  for (int64_t n = 0; n < 20; ++n) {
    if (n % 5 < 4) edges.emplace_back(n, n + 1);
    if (n / 5 < 3) edges.emplace_back(n, n + 5);
  }
  const auto dag = Dag::with_all_turns(20, edges);
  const auto flat = [](const at::Tensor& t) { return t.flatten(1, 2); };
  const auto t = flat(x[3]).select(2, 0), s = flat(x[4]).select(2, 0), m = flat(x[5]).select(2, 0);
  const auto is_down = [&](int64_t e) {
    const auto [from, to] = dag.edges[static_cast<size_t>(e)];
    return to - from == 5 ? 1 : 0;
  };
  Tensors transition, source, mark;
  for (const auto& [in, out] : dag.turns) {
    const int64_t node = dag.edges[static_cast<size_t>(out)].first;
    transition.push_back(t.select(1, node).select(-2, is_down(out)).select(-1, is_down(in)));
  }
  for (int64_t e = 0; e < static_cast<int64_t>(dag.edges.size()); ++e) {
    source.push_back(s.select(1, dag.edges[static_cast<size_t>(e)].first).select(-1, is_down(e)));
    mark.push_back(m.select(1, dag.edges[static_cast<size_t>(e)].second).select(-1, is_down(e)));
  }
  const auto y = dag_linear_attention(dag, {flat(x[0]), flat(x[1]), flat(x[2]), at::stack(transition, 1),
                                            at::stack(source, 1), at::stack(mark, 1), flat(x[6])});
  expect_close("y", y, flat(grid_linear_attention(grid_of(x, c.ways))), 1e-13);
}

// Two edges from node 0 to node 3, by 1 and by 2: y_3 by hand.
TEST(Dag, DiamondByHand) {
  const auto dag = Dag::with_all_turns(4, {{0, 1}, {0, 2}, {1, 3}, {2, 3}});
  ASSERT_EQ(dag.turns, (std::vector<std::pair<int64_t, int64_t>>{{0, 2}, {1, 3}}));
  const auto column = [](std::vector<double> x) {
    return at::tensor(x, kWide).view({1, static_cast<int64_t>(x.size()), 1});
  };
  const auto v = column({1, 10, 100, 1000}).unsqueeze(-1);
  const auto one = at::ones_like(v);
  const auto y = dag_linear_attention(dag, {one, one, v, column({.5, .25}), column({2, 3, 5, 7}),
                                            column({1, 1, 11, 13}), column({0, 0, 0, 17})});
  const double left = .5 * 2 * 1 + 5 * 10, right = .25 * 3 * 1 + 7 * 100;
  expect_close("y", y.flatten(), at::tensor({0., 2., 3., 11 * left + 13 * right + 17 * 1000}, kWide), 1e-15);
}

TEST(Dag, GradientsAreTheDerivatives) {
  const auto dag = Dag::with_all_turns(5, {{0, 1}, {0, 2}, {1, 3}, {2, 3}, {1, 2}, {3, 4}, {0, 4}});
  const auto turns = static_cast<int64_t>(dag.turns.size());
  auto random = seeded(13);
  const auto normal = [&](at::IntArrayRef shape) { return at::randn(shape, random, kWide); };
  expect_gradients(
      [&](const Tensors& x) {
        return Tensors{dag_linear_attention(dag, {x[0], x[1], x[2], x[3], x[4], x[5], x[6]})};
      },
      {normal({2, 5, 1, 2}), normal({2, 5, 1, 2}), normal({2, 5, 1, 3}), normal({2, turns, 1}),
       normal({2, 7, 1}), normal({2, 7, 1}), normal({2, 5, 1})});
}

// Number of paths between edges: at most one in the pruned graph, and every turn that it lost would make a second.
TEST(Dag, MultitreeHasSinglePathsAndNoTurnToAdd) {
  std::vector<std::pair<int64_t, int64_t>> edges;
  auto random = seeded(14);
  const auto pick = at::rand({12, 12}, random, kWide);
  for (int64_t from = 0; from < 12; ++from)
    for (int64_t to = from + 1; to < 12; ++to)
      if (pick[from][to].item<double>() < .35) edges.emplace_back(from, to);
  const auto most_paths = [](const Dag& dag) {
    const auto size = static_cast<int64_t>(dag.edges.size());
    const auto step = at::zeros({size, size}, kWide);
    for (const auto& [in, out] : dag.turns) step[in][out] = 1;
    auto power = at::eye(size, kWide), sum = power;
    for (int64_t i = 0; i < dag.nodes; ++i) {
      power = at::matmul(power, step);
      sum = sum + power;
    }
    return sum.max().item<double>();
  };
  const auto whole = Dag::with_all_turns(12, edges), pruned = whole.multitree();
  ASSERT_GT(most_paths(whole), 1);
  EXPECT_EQ(most_paths(pruned), 1);
  int64_t lost = 0;
  for (const auto& turn : whole.turns) {
    if (std::count(pruned.turns.begin(), pruned.turns.end(), turn) > 0) continue;
    auto more = pruned;
    more.turns.push_back(turn);
    EXPECT_GT(most_paths(more), 1);
    ++lost;
  }
  EXPECT_GT(lost, 0);
}

// --- errors ------------------------------------------------------------------------------------------------

TEST(Grid, ErrorsNameTheTensor) {
  const GridCase c{1, 2, 3, 1, 2, 2, {{}}};
  const auto x = make_grid_inputs(c, 15);
  auto in = grid_of(x, c.ways);
  in.gates.ways = all_grid_ways();
  EXPECT_EQ(error_of<InputError>([&] { grid_linear_attention(in); }),
            "grid_linear_attention: source is [1, 2, 3, 1, 1, 2], expected [-1, -1, -1, 4, -1, 2]");
  in = grid_of(x, c.ways);
  in.k = in.k.slice(-1, 0, 1);
  EXPECT_EQ(error_of<InputError>([&] { grid_linear_attention(in); }),
            "grid_linear_attention: k is [1, 2, 3, 1, 1], expected [1, 2, 3, 1, 2]");
  EXPECT_EQ(error_of<InputError>([] {
              Dag::with_all_turns(3, {{0, 1}, {2, 1}});
            }),
            "dag: edge 1 goes from 2 to 1, expected 0 <= from < to < 3; sort the nodes topologically");
}

}  // namespace
}  // namespace weft::ops
