#include "ops/grid/dag.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>

#include "base/error.h"
#include "ops/shape.h"

namespace weft::ops {
namespace {

// Indices of what each of `count` owners has, in order: those of the edges that leave each node, and so on.
template <class Owner>
std::vector<std::vector<int64_t>> grouped(int64_t count, int64_t items, const Owner& owner) {
  std::vector<std::vector<int64_t>> groups(static_cast<size_t>(count));
  for (int64_t i = 0; i < items; ++i) groups[static_cast<size_t>(owner(static_cast<size_t>(i)))].push_back(i);
  return groups;
}

int64_t count(const std::vector<std::pair<int64_t, int64_t>>& pairs) {
  return static_cast<int64_t>(pairs.size());
}

void check_edges(const Dag& dag) {
  for (size_t e = 0; e < dag.edges.size(); ++e) {
    const auto [from, to] = dag.edges[e];
    require(from >= 0 && from < to && to < dag.nodes,
            "dag: edge {} goes from {} to {}, expected 0 <= from < to < {}; sort the nodes topologically", e,
            from, to, dag.nodes);
  }
  for (const auto& [in, out] : dag.turns)
    require(in >= 0 && out >= 0 && in < count(dag.edges) && out < count(dag.edges) &&
                dag.edges[static_cast<size_t>(in)].second == dag.edges[static_cast<size_t>(out)].first,
            "dag: no state can turn from edge {} to edge {}; the first must end where the second begins", in,
            out);
}

}  // namespace

Dag Dag::with_all_turns(int64_t nodes, std::vector<std::pair<int64_t, int64_t>> edges) {
  Dag dag{nodes, std::move(edges), {}};
  check_edges(dag);
  const auto entering = grouped(nodes, count(dag.edges), [&](size_t e) { return dag.edges[e].second; });
  for (int64_t out = 0; out < count(dag.edges); ++out)
    for (const int64_t in : entering[static_cast<size_t>(dag.edges[static_cast<size_t>(out)].first)])
      dag.turns.emplace_back(in, out);
  return dag;
}

Dag Dag::multitree() const {
  check_edges(*this);
  Dag pruned{nodes, edges, {}};
  const auto into = grouped(count(edges), count(turns), [&](size_t t) { return turns[t].second; });
  const auto leaving = grouped(nodes, count(edges), [&](size_t e) { return edges[e].first; });
  std::vector<std::vector<bool>> reached_by(edges.size(),
                                            std::vector<bool>(edges.size(), false));  // itself too
  for (const auto& of_node : leaving)
    for (const int64_t e : of_node) {
      auto& before = reached_by[static_cast<size_t>(e)];
      before[static_cast<size_t>(e)] = true;
      for (const int64_t t : into[static_cast<size_t>(e)]) {
        const auto& more = reached_by[static_cast<size_t>(turns[static_cast<size_t>(t)].first)];
        bool twice = false;
        for (size_t i = 0; i < edges.size(); ++i) twice = twice || (more[i] && before[i]);
        if (twice) continue;
        pruned.turns.push_back(turns[static_cast<size_t>(t)]);
        for (size_t i = 0; i < edges.size(); ++i) before[i] = before[i] || more[i];
      }
    }
  return pruned;
}

at::Tensor dag_linear_attention(const Dag& dag, const DagLinearAttention& in) {
  constexpr const char* kOp = "dag_linear_attention";
  check_edges(dag);
  require_like(kOp, "v", in.v, in.v);
  require_like(kOp, "q", in.q, in.v);
  require_like(kOp, "k", in.k, in.v);
  require_shape(kOp, "v", in.v, {-1, dag.nodes, -1, -1});
  const int64_t batch = in.v.size(0), heads = in.v.size(2);
  require_shape(kOp, "q", in.q, {batch, dag.nodes, heads, -1});
  require_shape(kOp, "k", in.k, in.q.sizes());
  require_shape(kOp, "transition", in.transition, {batch, count(dag.turns), heads});
  require_shape(kOp, "source", in.source, {batch, count(dag.edges), heads});
  require_shape(kOp, "mark", in.mark, {batch, count(dag.edges), heads});
  if (in.direct.defined()) require_shape(kOp, "direct", in.direct, {batch, dag.nodes, heads});

  const auto type = accumulate_type(in.v);
  const double scale = in.scale != 0 ? in.scale : 1 / std::sqrt(static_cast<double>(in.k.size(-1)));
  const auto q = in.q.to(type) * scale, k = in.k.to(type), v = in.v.to(type);
  const auto gate = [&](const at::Tensor& x, int64_t i) {
    return x.select(1, i).to(type).unsqueeze(-1).unsqueeze(-1);  // [B, H, 1, 1]
  };
  const auto entering = grouped(dag.nodes, count(dag.edges), [&](size_t e) { return dag.edges[e].second; });
  const auto leaving = grouped(dag.nodes, count(dag.edges), [&](size_t e) { return dag.edges[e].first; });
  const auto into =
      grouped(count(dag.edges), count(dag.turns), [&](size_t t) { return dag.turns[t].second; });
  std::vector<at::Tensor> state(dag.edges.size()), y;  // [B, H, K, V]
  for (int64_t n = 0; n < dag.nodes; ++n) {
    const auto write = k.select(1, n).unsqueeze(-1) * v.select(1, n).unsqueeze(-2);
    for (const int64_t e : leaving[static_cast<size_t>(n)]) {
      auto& c = state[static_cast<size_t>(e)];
      c = gate(in.source, e) * write;
      for (const int64_t t : into[static_cast<size_t>(e)])
        c = c + gate(in.transition, t) * state[static_cast<size_t>(dag.turns[static_cast<size_t>(t)].first)];
    }
    auto read = in.direct.defined() ? gate(in.direct, n) * write : at::zeros_like(write);
    for (const int64_t e : entering[static_cast<size_t>(n)])
      read = read + gate(in.mark, e) * state[static_cast<size_t>(e)];
    y.push_back(at::matmul(q.select(1, n).unsqueeze(-2), read).squeeze(-2));
  }
  return y.empty() ? at::zeros_like(in.v) : at::stack(y, 1).to(in.v.scalar_type());
}

}  // namespace weft::ops
