// Mixture of experts: a router sends each token to a few of many small MLPs. Shazeer et al. 2017, arXiv:1701.06538;
// top-k of a softmax: Fedus et al. 2021, arXiv:2101.03961; choice bias: Wang et al. 2024, arXiv:2408.15664; groups of
// experts: DeepSeek-AI 2024, arXiv:2412.19437.
//
// N tokens, E experts, K of them for each token, D width of a token, I hidden width of an expert.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/activation/named.h"

namespace weft::ops {

// How logits become experts and weights:
//   s = softmax(logits), sigmoid(logits), or another activation of the logits
//   chosen = the top_k experts by s + choice_bias, from the best `top_groups` of `groups` equal runs of experts only; a
//            group is as good as the sum of its `group_best` best experts
//   w = scale * s_chosen, or scale * s_chosen / (eps + sum of s_chosen)
// A softmax over the chosen logits alone is a softmax with `normalise`.
struct Router {
  enum class Scores { softmax, sigmoid, activation };
  Scores scores = Scores::softmax;
  Activation activation = Activation::sigmoid;  // with Scores::activation
  int64_t top_k = 2;
  int64_t always =
      0;  // the last so many experts are chosen for every token beside the top_k (they are not in groups)
  bool normalise = true;  // weights of a token (with those of `always`) add up to `scale`
  double normalise_eps = 0;
  double scale = 1;
  int64_t groups = 1, top_groups = 1, group_best = 2;
  at::Tensor choice_bias = {};  // [E - always] fp32 or fp64, for the choice only; undefined: none
};

struct Routes {
  at::Tensor experts;  // [N, K] int64; K = top_k + always
  at::Tensor weights;  // [N, K] fp32, or fp64 beside fp64
};

// logits [N, E] of any float type. Differentiable in the logits through the weights; the choice has no gradient.
// InputError where E, groups and top_k do not fit.
Routes route(const at::Tensor& logits, const Router& router);

// The experts: f(x) = W_down (act(W_gate x) * W_up x), or W_down act(W_up x) without a gate.
struct Experts {
  at::Tensor up;    // [E, 2 I, D], the rows of W_gate and then those of W_up; [E, I, D] without a gate
  at::Tensor down;  // [E, D, I]
  Activation activation = Activation::silu;
  bool gated = true;
  // Soft caps c > 0 of gated SiLU experts (Inkling-2): c tanh(g / c) sigmoid(g) for g sigmoid(g), c tanh(u / c) for u.
  double gate_cap = 0, up_cap = 0;
};

// y[n] = sum over k of weights[n, k] f_experts[n, k](x[n]); x [N, D] of any float type, in which the products are
// computed; the sum over k in fp32 (fp64 for fp64). Tokens are sorted by expert, and each expert that has any is one
// product over its tokens: work 2 N K (size of an expert) flops. Differentiable in x, weights, up and down.
// Error against fp64 relative to max|y|: fp32 1e-5, bf16 and fp16 2e-2.
at::Tensor mix_experts(const at::Tensor& x, const Routes& routes, const Experts& experts);

// The hidden layer: act(gate) * up, capped as the experts say; gate and up of one shape.
at::Tensor gated_hidden(const Experts& experts, const at::Tensor& gate, const at::Tensor& up);

namespace reference {
// Every expert on every token.
at::Tensor mix_experts(const at::Tensor& x, const Routes& routes, const Experts& experts);
}  // namespace reference

}  // namespace weft::ops
