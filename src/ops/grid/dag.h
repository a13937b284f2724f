// Linear attention on a directed acyclic graph: matrix states live on edges. Poppel et al. 2025, arXiv:2506.11997.
// Node n, with e' an edge that enters and e one that leaves:
//   C_e = sum_{e'} T[e', e] C_{e'} + S[e] k_n v_n'
//   y_n = scale ( [sum_{e'} M[e'] C_{e'}]' q_n + direct_n (q_n.k_n) v_n )
// A sequence is the path graph, a grid the graph whose nodes have edges to the right and down (grid.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace weft::ops {

struct Dag {
  int64_t nodes = 0;
  std::vector<std::pair<int64_t, int64_t>>
      edges;  // from, to, with from < to: nodes stand in topological order
  std::vector<std::pair<int64_t, int64_t>>
      turns;  // pairs of edges: from the first a state passes to the second

  // With the turns of every node from each edge that enters to each that leaves. InputError for an edge that is
  // not between two nodes, first the earlier.
  static Dag with_all_turns(int64_t nodes, std::vector<std::pair<int64_t, int64_t>> edges);
  // Only those turns, taken in order, that leave at most one path between any two edges; some edges may no longer
  // reach each other. Gates up to one are stable then, whatever the length (the paper's D-mode).
  Dag multitree() const;
};

struct DagLinearAttention {
  at::Tensor q, k;        // [B, N, H, K] any float type
  at::Tensor v;           // [B, N, H, V] same type
  at::Tensor transition;  // [B, turns, H]
  at::Tensor source;      // [B, edges, H]: what the node that the edge leaves writes
  at::Tensor mark;        // [B, edges, H]: what the node that it enters reads
  at::Tensor direct;      // [B, N, H]; undefined: zeros
  double scale = 0;       // 0 means 1 / sqrt(K)
};

// y [B, N, H, V] in the type of v. Differentiable. Node after node in plain ATen, in fp32 (fp64 for fp64):
// 2 K V (edges + turns) flops a head.
at::Tensor dag_linear_attention(const Dag& dag, const DagLinearAttention& in);

}  // namespace weft::ops
