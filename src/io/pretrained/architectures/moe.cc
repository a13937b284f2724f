#include "io/pretrained/architectures/moe.h"

#include <fmt/format.h>

#include "base/error.h"

namespace weft {

void take_experts(Blueprint& out, const TensorNames& tensors, const std::string& to, const std::string& from,
                  const ExpertSizes& sizes, const MlpNames& names) {
  const bool gated = *names.gate;
  const auto stack = from + (gated ? "gate_up_proj" : "up_proj");
  if (tensors.has(stack, sizes.stacked)) {
    out.take(to + "up", stack);
    out.take(to + "down", from + "down_proj");
    return;
  }
  std::vector<Piece> up, down;
  for (int64_t e = 0; e < sizes.experts; ++e) {
    const auto named = [&](const char* name) { return fmt::format("{}{}.{}.weight", from, e, name); };
    if (gated) up.push_back({.tensor = named(names.gate), .shape = {sizes.hidden, sizes.width}});
    up.push_back({.tensor = named(names.up), .shape = {sizes.hidden, sizes.width}});
    down.push_back({.tensor = named(names.down), .shape = {sizes.width, sizes.hidden}});
  }
  out.take(to + "up", std::move(up));
  out.take(to + "down", std::move(down));
}

Node mixtral_experts(const ConfigReader& config, int64_t hidden, const std::string& activation) {
  config.ignore({"router_jitter_noise"});  // of training
  return fields("moe",
                fields("hidden", hidden, "experts", config.integer({"num_local_experts", "num_experts"}, 8),
                       "top_k", config.integer("num_experts_per_tok", 2), "activation", activation));
}

void take_mixtral_experts(Blueprint& out, const TensorNames& tensors, const std::string& to,
                          const std::string& from, const ExpertSizes& sizes) {
  const auto gate = tensors.pick({from + "block_sparse_moe.gate.weight", from + "mlp.gate.weight"});
  out.take(to + "ffn.router.weight", gate);
  const auto block = gate.substr(0, gate.size() - std::string("gate.weight").size());
  take_experts(out, tensors, to + "ffn.", block + "experts.", sizes, {"w1", "w3", "w2"});
}

void GroupedExperts::read(const ConfigReader& config) {
  experts = config.integer({"num_experts", "n_routed_experts", "num_local_experts"}, experts);
  top_k = config.integer({"num_experts_per_token", "num_experts_per_tok"}, top_k);
  hidden = config.integer("moe_intermediate_size", hidden);
  shared = config.integer({"num_shared_experts", "n_shared_experts"}, shared);
  groups = config.integer({"num_expert_group", "n_group"}, groups);
  top_groups = config.integer("topk_group", top_groups);
  const ConfigKey normalises{"moe_renormalize", "norm_topk_prob"};
  normalise = config.flag(normalises, normalise);
  scale = config.number("routed_scaling_factor", scale);
  config.need(experts % groups == 0 && (groups == 1 || experts / groups > 1), {"num_expert_group", "n_group"},
              "expected a number of groups that share the experts equally, two or more in each");
}

Node GroupedExperts::node(const std::string& activation) const {
  return fields(
      "moe", fields("hidden", hidden, "experts", experts, "top_k", top_k, "activation", activation, "router",
                    "sigmoid", "choice_bias", true, "normalise", normalise, "normalise_eps", 1e-20, "scale",
                    scale, "groups", groups, "top_groups", top_groups, "shared", shared * hidden));
}

void take_grouped_experts(Blueprint& out, const TensorNames& tensors, const std::string& to,
                          const std::string& from, const GroupedExperts& experts, int64_t width,
                          const MlpNames& names, const char* bias) {
  out.take(to + "router.weight", from + "gate.weight");
  out.take(to + "choice_bias", tensors.pick({from + bias, from + "gate.e_score_correction_bias"}));
  take_experts(out, tensors, to, from + "experts.", {experts.experts, experts.hidden, width}, names);
  if (experts.shared > 0) take_mlp(out, to + "shared.", from + "shared_experts.");
}

std::vector<bool> read_sparse_layers(const ConfigReader& config, int64_t layers, int64_t first_dense) {
  first_dense = config.integer("first_k_dense_replace", first_dense);
  const auto types = config.texts("mlp_layer_types");
  require(types.empty() || static_cast<int64_t>(types.size()) == layers, "{}: {} types for {} layers",
          config.where("mlp_layer_types"), types.size(), layers);
  std::vector<bool> sparse;
  for (int64_t i = 0; i < layers; ++i)
    sparse.push_back(types.empty() ? i >= first_dense : types[static_cast<size_t>(i)] == "sparse");
  return sparse;
}

}  // namespace weft
