#include "io/pretrained/architectures/rope_config.h"

#include <cmath>

namespace weft {
namespace {

Node list_of(const std::vector<double>& values) {
  Node list = Node::list();
  for (const double value : values) list.push_back(node_of(value));
  return list;
}

// rope_parameters or rope_scaling and the type of rope that it names.
struct Parameters {
  ConfigReader config;  // around it
  ConfigReader rope;
  bool nested = false;  // one of several, for a type of layers
  std::string type = "default";
  int64_t positions = 0;            // max_position_embeddings
  std::optional<int64_t> original;  // RopeDefaults::original_positions

  // The length that the model was trained on before it was stretched.
  int64_t original_length() const {
    const char* key = "original_max_position_embeddings";
    const int64_t within = rope.integer(key, positions);
    return nested ? within : config.integer(key, original.value_or(within));
  }
  double factor() const {
    return rope.number("factor", static_cast<double>(positions) / static_cast<double>(original_length()));
  }
};

Node yarn(const Parameters& p) {
  Node options = fields("factor", p.factor(), "length", p.original_length());
  const auto copy = [&](const char* key, double absent) {
    if (const double value = p.rope.number(key, absent); value != absent)
      options.set_child(key, node_of(value));
  };
  for (const char* key : {"attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow"})
    copy(key, 0);
  // transformers looks for it beside the types of layers, where it never stands.
  options.set_child("truncate", node_of(p.nested || p.rope.flag("truncate", true)));
  return fields("yarn", options);
}

Node longrope(const Parameters& p) {
  Node options =
      fields("short", list_of(p.rope.numbers("short_factor")), "long", list_of(p.rope.numbers("long_factor")),
             "length", p.original_length(), "factor", p.factor());
  options.set_child("attention_factor", node_of(p.rope.number("attention_factor", 0)));
  return fields("longrope", options);
}

Node llama3(const Parameters& p) {
  return fields("llama3", fields("factor", p.rope.number("factor"), "length", p.original_length(),
                                 "low_frequency", p.rope.number("low_freq_factor"), "high_frequency",
                                 p.rope.number("high_freq_factor")));
}

Node scaling_of(const Parameters& p, double partial) {
  if (p.type == "linear") return fields("linear", fields("factor", p.rope.number("factor")));
  if (p.type == "dynamic")
    return fields("dynamic", fields("factor", p.rope.number("factor"), "length", p.positions));
  if (p.type == "yarn") return yarn(p);
  if (p.type == "longrope" || p.type == "su") return longrope(p);
  if (p.type == "llama3") return llama3(p);
  if (p.type == "proportional")
    return fields("proportional", fields("share", partial, "factor", p.rope.number("factor", 1.0)));
  // Sections of pairs turn with positions in time, height and width, which are equal in text.
  if (p.type == "default" || p.type == "mrope") return {};
  p.rope.unsupported({"rope_type", "type"},
                     "expected default, linear, dynamic, yarn, longrope, llama3 or proportional");
}

// Keys that do not matter to the type that is named.
void ignore_rest(const ConfigReader& rope) {
  rope.ignore({"type", "rope_type", "factor", "original_max_position_embeddings", "attention_factor",
               "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "short_factor",
               "long_factor", "low_freq_factor", "high_freq_factor", "short_mscale", "long_mscale",
               "mrope_section", "mrope_interleaved", "finetuned"});
}

// The channels that turn. An odd number n has (n + 1) / 2 pairs with frequencies theta^(-2 i / n); weft's own for n + 1
// channels are these with another theta.
void set_width(RopeSettings& out, const Parameters& p, int64_t head_dim, double partial) {
  out.dim = static_cast<int64_t>(static_cast<double>(head_dim) * partial);
  if (out.dim % 2 == 0) return;
  p.rope.need(p.type != "yarn" && p.type != "dynamic", "rope_type",
              "expected another one for an odd number of rotated channels");
  const auto odd = static_cast<double>(out.dim++);
  out.theta = std::pow(out.theta, (odd + 1) / odd);
}

RopeSettings settings_of(const Parameters& p, int64_t head_dim, const RopeDefaults& defaults) {
  RopeSettings out;
  out.theta = p.rope.number("rope_theta", p.config.number(defaults.theta_key, defaults.theta));
  p.rope.need(!p.rope.has("rope_theta") || (std::isfinite(out.theta) && out.theta > 0), "rope_theta",
              "expected a number above 0");
  const double given = p.rope.number("partial_rotary_factor",
                                     p.config.number(defaults.partial_key, defaults.partial.value_or(1.0)));
  out.scaling = scaling_of(p, given);
  if (p.type == "yarn" || p.rope.has("mscale_all_dim")) {
    const double weight = p.rope.number("mscale_all_dim", 0), factor = p.rope.number("factor", 1);
    if (p.type != "default" && weight != 0 && factor > 1) out.mscale = 0.1 * weight * std::log(factor) + 1;
  }
  ignore_rest(p.rope);
  if (p.type == "proportional") return out;
  if (defaults.partial)
    set_width(out, p, head_dim, given);
  else
    p.rope.need(out.scaling.is_null() || given == 1, "partial_rotary_factor",
                "expected 1 with this rope_type");
  return out;
}

}  // namespace

void RopeSettings::set(Node& mixer) const {
  mixer.set_child("rope", node_of(theta));
  if (theta == 0) return;
  if (dim != 0) mixer.set_child("rope_dim", node_of(dim));
  if (!scaling.is_null()) mixer.set_child("rope_scaling", scaling);
}

RopeSettings read_rope(const ConfigReader& config, int64_t head_dim, const RopeDefaults& defaults,
                       const std::string& layer_type) {
  const int64_t positions = config.integer("max_position_embeddings", defaults.positions);
  // An empty or absent object says no more than the keys beside it.
  static const nlohmann::json nothing = nlohmann::json::object();
  Parameters p{config,    ConfigReader(JsonPlace(nothing, "")), false, "default",
               positions, defaults.original_positions};
  config.ignore({"original_max_position_embeddings", "rope_scaling", "rope_parameters"});
  if (const auto rope = config.child(config.has("rope_scaling") ? "rope_scaling" : "rope_parameters")) {
    p.rope = *rope;
    for (const auto& type : defaults.layer_types) p.nested = p.nested || rope->has(type);
    if (p.nested) {
      const auto own = rope->child(layer_type);
      if (!own) return {};
      p.rope = *own;
    }
    p.type = p.rope.text({"rope_type", "type"}, "default");
    if (defaults.yarn_is_longrope && p.type == "yarn") p.type = "longrope";
  }
  return settings_of(p, head_dim, defaults);
}

}  // namespace weft
