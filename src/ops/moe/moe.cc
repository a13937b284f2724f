#include "ops/moe/moe.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/shape.h"

namespace weft::ops {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

void check_router(const Router& r, int64_t routed) {
  require(r.always >= 0 && routed >= 1 && r.groups >= 1 && routed % r.groups == 0,
          "route: {} experts do not fall into {} equal groups", routed, r.groups);
  require(r.top_groups >= 1 && r.top_groups <= r.groups && r.group_best >= 1,
          "route: the best {} of {} groups are to be taken", r.top_groups, r.groups);
  const int64_t open = routed / r.groups * r.top_groups;
  require(r.top_k >= 1 && r.top_k <= open, "route: {} experts are to be chosen from {}", r.top_k, open);
}

// The scores [N, E] of the experts in the groups that count, minus infinity elsewhere.
at::Tensor in_best_groups(const at::Tensor& scores, const Router& r) {
  if (r.top_groups == r.groups) return scores;
  const auto by_group = scores.unflatten(-1, {r.groups, -1});  // [N, G, E / G]
  const auto best = std::get<0>(by_group.topk(std::min(r.group_best, by_group.size(-1)), -1));
  const auto taken = std::get<1>(best.sum(-1).topk(r.top_groups, -1));
  const auto open =
      at::zeros({scores.size(0), r.groups}, scores.options().dtype(at::kBool)).scatter(1, taken, true);
  return by_group.masked_fill(open.logical_not().unsqueeze(-1), kNever).flatten(1);
}

void check_experts(const at::Tensor& x, const Routes& routes, const Experts& w) {
  require_like("mix_experts", "x", x, x);
  require_shape("mix_experts", "x", x, {-1, -1});
  require_like("mix_experts", "up", w.up, x);
  require_shape("mix_experts", "up", w.up, {-1, -1, x.size(1)});
  require_like("mix_experts", "down", w.down, x);
  const int64_t hidden = w.gated ? w.up.size(1) / 2 : w.up.size(1);
  require(!w.gated || w.up.size(1) % 2 == 0,
          "mix_experts: up is {}, expected an even number of rows for gate and up", shape_text(w.up));
  require_shape("mix_experts", "down", w.down, {w.up.size(0), -1, hidden});
  require_shape("mix_experts", "experts", routes.experts, {x.size(0), -1});
  require_shape("mix_experts", "weights", routes.weights, routes.experts.sizes());
}

// The matrices [rows, columns] of a stack, in the type of x. Unbound at once where gradients flow, so that the gradient
// of the stack is put together once.
class Stack {
 public:
  Stack(const at::Tensor& stack, const at::Tensor& x) : stack_(stack), type_(x.scalar_type()) {
    if (c10::GradMode::is_enabled() && stack.requires_grad()) matrices_ = stack.unbind(0);
  }
  at::Tensor operator[](int64_t e) const {
    return (matrices_.empty() ? stack_.select(0, e) : matrices_[static_cast<size_t>(e)]).to(type_);
  }

 private:
  const at::Tensor& stack_;
  at::ScalarType type_;
  std::vector<at::Tensor> matrices_;
};

at::Tensor hidden_layer(const at::Tensor& h, const Experts& w) {
  if (!w.gated) return activate(w.activation, h);
  const int64_t hidden = h.size(1) / 2;
  return gated_hidden(w, h.narrow(1, 0, hidden), h.narrow(1, hidden, hidden));
}

// Scores [N, E] for the choice.
at::Tensor biased(const at::Tensor& scores, const Router& r, int64_t routed) {
  if (!r.choice_bias.defined()) return scores;
  require_shape("route", "choice_bias", r.choice_bias, {routed});
  return scores + r.choice_bias.detach().to(scores.scalar_type());
}

// Chosen experts [N, K], and those that every token takes.
at::Tensor with_always(const at::Tensor& chosen, int64_t routed, int64_t all) {
  if (all == routed) return chosen;
  return at::cat({chosen, at::arange(routed, all, chosen.options()).expand({chosen.size(0), -1})}, 1);
}

Routes route_by_activation(const at::Tensor& logits, const Router& r, int64_t routed) {
  const auto scores = activate(r.activation, logits);
  const auto open = in_best_groups(biased(scores.detach().narrow(1, 0, routed), r, routed), r);
  const auto chosen = with_always(std::get<1>(open.topk(r.top_k, -1)), routed, logits.size(1));
  auto weights = scores.gather(1, chosen);
  if (r.normalise) weights = weights / (weights.sum(-1, true) + r.normalise_eps);
  return {chosen, weights * r.scale};
}

}  // namespace

Routes route(const at::Tensor& logits, const Router& router) {
  require_like("route", "logits", logits, logits);
  require_shape("route", "logits", logits, {-1, -1});
  const int64_t routed = logits.size(1) - router.always;
  check_router(router, routed);
  const auto wide = logits.to(accumulate_type(logits));
  if (router.scores == Router::Scores::activation) return route_by_activation(wide, router, routed);
  // Logarithms: a token whose scores are all tiny still has weights that add up.
  const auto log_scores =
      router.scores == Router::Scores::softmax ? at::log_softmax(wide, -1) : at::log_sigmoid(wide);
  at::Tensor chosen;
  {
    auto scores = log_scores.detach().narrow(1, 0, routed);
    if (router.choice_bias.defined()) {
      scores = biased(scores.exp(), router, routed);
    } else if (router.top_groups < router.groups) {
      scores = scores.exp();
    }
    chosen = std::get<1>(in_best_groups(scores, router).topk(router.top_k, -1));
  }
  chosen = with_always(chosen, routed, logits.size(1));
  auto log_weights = log_scores.gather(1, chosen);
  if (router.normalise && router.normalise_eps == 0) log_weights = at::log_softmax(log_weights, -1);
  auto weights = log_weights.exp();
  if (router.normalise && router.normalise_eps > 0)
    weights = weights / (weights.sum(-1, true) + router.normalise_eps);
  return {chosen, router.scale == 1 ? weights : weights * router.scale};
}

at::Tensor gated_hidden(const Experts& experts, const at::Tensor& gate, const at::Tensor& up) {
  if (experts.gate_cap == 0 && experts.up_cap == 0) return activate_mul(experts.activation, gate, up);
  require(experts.activation == Activation::silu, "mix_experts: soft caps need the activation silu");
  const auto capped = [](const at::Tensor& x, double cap) { return cap > 0 ? at::tanh(x / cap) * cap : x; };
  const auto wide = accumulate_type(gate);
  const auto g = gate.to(wide);
  return (capped(g, experts.gate_cap) * at::sigmoid(g) * capped(up.to(wide), experts.up_cap))
      .to(gate.scalar_type());
}

at::Tensor mix_experts(const at::Tensor& x, const Routes& routes, const Experts& w) {
  check_experts(x, routes, w);
  if (forced_kernel() == Kernel::reference) return reference::mix_experts(x, routes, w);
  const int64_t per_token = routes.experts.size(1);
  if (x.size(0) == 0 || per_token == 0) return at::zeros({x.size(0), w.down.size(1)}, x.options());
  const auto flat = routes.experts.reshape({-1});  // [N K]
  const auto order = flat.argsort(/*stable=*/true, 0, false);
  const auto counts = at::bincount(flat, {}, w.up.size(0)).to(at::kCPU);
  const auto* sizes = counts.const_data_ptr<int64_t>();
  const auto rows = x.index({order.floor_divide(per_token)});  // [N K, D], those of one expert side by side
  const auto parts = rows.split_with_sizes({sizes, static_cast<size_t>(counts.numel())}, 0);
  const Stack up(w.up, x), down(w.down, x);
  std::vector<at::Tensor> results;
  for (int64_t e = 0; e < counts.numel(); ++e)
    if (sizes[e] > 0)
      results.push_back(
          at::linear(hidden_layer(at::linear(parts[static_cast<size_t>(e)], up[e]), w), down[e]));
  const auto back = at::empty_like(order).scatter_(0, order, at::arange(order.numel(), order.options()));
  const auto by_token = at::cat(results, 0).index({back}).unflatten(0, {-1, per_token});  // [N, K, D]
  const auto wide = accumulate_type(x);
  return at::matmul(routes.weights.to(wide).unsqueeze(1), by_token.to(wide)).squeeze(1).to(x.scalar_type());
}

}  // namespace weft::ops
