#include "cli/model_report.h"

#include <algorithm>

#include "base/text.h"
#include "cli/output.h"
#include "ops/kernel_choice.h"

namespace weft::cli {
namespace {

// Neighbours that are written alike.
struct Group {
  size_t first = 0, count = 1;
  std::string name() const {
    return count == 1 ? fmt::format("{}", first) : fmt::format("{}-{}", first, first + count - 1);
  }
};

std::vector<Group> groups_of(const LayerStack& stack) {
  std::vector<Group> groups;
  std::string previous;
  for (size_t i = 0; i < stack.layers().size(); ++i) {
    const auto text = stack.layers()[i]->node().dump();
    if (!groups.empty() && text == previous && stack.layers()[i]->exports().empty())
      ++groups.back().count;
    else
      groups.push_back({i, 1});
    previous = text;
  }
  return groups;
}

// A value on one line.
std::string inline_text(const Node& node) {
  if (node.is_scalar()) return node.as_string();
  std::vector<std::string> parts;
  if (node.is_list())
    for (const auto& item : node.items()) parts.push_back(inline_text(item));
  if (node.is_map())
    for (const auto& [key, value] : node.entries()) parts.push_back(key + ": " + inline_text(value));
  return node.is_list() ? "[" + join(parts) + "]" : node.is_map() ? "{" + join(parts) + "}" : "null";
}

// "heads 4, head_dim 128": those of `fields` that differ from their defaults in `node`.
std::string changed_options(const Node& node, const std::vector<FieldInfo>& fields) {
  std::vector<std::string> parts;
  for (const auto& field : fields) {
    const Node* value = node.find(field.name);
    if (!value || value->is_null()) continue;
    const auto text = inline_text(*value);
    if (text != field.default_value) parts.push_back(field.name + " " + text);
  }
  return join(parts);
}

std::string mixer_name(const Layer& layer) {
  return layer.mixer() ? layer.node().at("mixer").as_string() : "-";
}

const Node* ffn_of(const Layer& layer) {
  const Node* ffn = layer.node().find("ffn");
  return ffn && ffn->is_map() && !ffn->entries().empty() ? ffn : nullptr;
}

// Layers that a strand exported by layer `from` reaches: those below that import the name before it is
// exported anew.
std::string importers(const LayerStack& stack, size_t from, const std::string& strand) {
  std::vector<std::string> names;
  for (size_t i = from + 1; i < stack.layers().size(); ++i) {
    const auto& layer = *stack.layers()[i];
    for (const auto& [port, name] : layer.imports())
      if (name == strand) names.push_back(fmt::format("{}", i));
    for (const auto& [port, name] : layer.exports())
      if (name == strand) return join(names);
  }
  return names.empty() ? "nobody" : join(names);
}

std::string exporter(const LayerStack& stack, size_t of, const std::string& strand) {
  for (size_t i = of; i-- > 0;)
    for (const auto& [port, name] : stack.layers()[i]->exports())
      if (name == strand) return fmt::format("layer {}", i);
  return "the model";
}

// The lines of one group: what a layer does, one thing a line.
std::vector<std::pair<std::string, std::string>> group_lines(const LayerStack& stack, const Group& group) {
  const Layer& layer = *stack.layers()[group.first];
  std::vector<std::pair<std::string, std::string>> lines;
  if (layer.mixer())
    lines.push_back(
        {mixer_name(layer), changed_options(layer.node(), find_mixer(layer.node().at("mixer")).fields)});
  if (const Node* ffn = ffn_of(layer)) {
    const auto& [name, options] = ffn->entries().front();
    lines.push_back({name, changed_options(options, find_channel_mixer(*ffn).fields)});
  }
  auto others = list_options<LayerOptions>();
  std::erase_if(others,
                [](const auto& f) { return f.name == "ffn" || f.name == "export" || f.name == "import"; });
  if (const auto text = changed_options(layer.node(), others); !text.empty())
    lines.push_back({"layer", text});
  for (const auto& [port, strand] : layer.imports())
    lines.push_back({"◀── " + port, fmt::format("'{}' of {}", strand, exporter(stack, group.first, strand))});
  for (const auto& [port, strand] : layer.exports())
    lines.push_back(
        {"──▶ " + port, fmt::format("'{}' for {}", strand, importers(stack, group.first, strand))});
  return lines;
}

struct Cost {
  int64_t parameters = 0, matrix_weights = 0, state_fixed = 0, state_per_token = 0;
  double flops = 0;
};

Cost cost_of(const Layer& layer, const ReportOptions& options) {
  Cost cost{layer.parameter_count(), layer.matrix_weights(), 0, 0, 0};
  cost.flops = 2.0 * static_cast<double>(cost.matrix_weights);
  if (const auto* mixer = layer.mixer()) {
    cost.flops += mixer->op_flops(options.context);
    const int64_t here = mixer->state_bytes(options.context, options.dtype);
    cost.state_per_token = mixer->state_bytes(options.context + 1, options.dtype) - here;
    cost.state_fixed = here - cost.state_per_token * options.context;
  }
  return cost;
}

std::string kernel_of(const ReportOptions& options) {
  return std::string(kernel_name(choose_kernel(options.device.type(), options.dtype)));
}

std::string kernels_text(const Layer& layer, const ReportOptions& options) {
  std::vector<std::string> parts;
  if (layer.mixer())
    for (const auto& op : layer.mixer()->ops()) parts.push_back(op + " " + kernel_of(options));
  return join(parts);
}

std::vector<std::string> cost_row(const std::string& layers, const std::string& what, const Cost& cost,
                                  const std::string& kernels) {
  return {layers,
          what,
          count_text(static_cast<double>(cost.parameters)),
          count_text(cost.flops),
          bytes_text(cost.state_fixed),
          bytes_text(cost.state_per_token),
          kernels};
}

}  // namespace

std::string draw_stack(const Model& model) {
  const auto& options = model.options();
  const auto& stack = model.stack();
  std::vector<std::vector<std::string>> rows;
  for (const auto& group : groups_of(stack)) {
    bool first = true;
    for (const auto& [what, details] : group_lines(stack, group)) {
      const auto label = group.name() + (group.count > 1 ? fmt::format(" (x{})", group.count) : "");
      rows.push_back({first ? "├─ " + label : "│", what, details});
      first = false;
    }
  }
  return fmt::format("embedding {} x {}\n│\n{}│\n▼ norm {}, head {} x {}{}\n", options.vocab, options.width,
                     table(rows), options.norm, options.width, options.vocab,
                     options.tie ? " (the embedding's weights)" : "");
}

std::string cost_report(const Model& model, const ReportOptions& options) {
  std::vector<std::vector<std::string>> rows = {
      {"layers", "mixer", "parameters", "flops/token", "state", "state/token", "kernels"}};
  Cost all;
  for (const auto& group : groups_of(model.stack())) {
    const Layer& layer = *model.stack().layers()[group.first];
    const Cost one = cost_of(layer, options);
    const auto count = static_cast<int64_t>(group.count);
    rows.push_back(cost_row(group.name(), mixer_name(layer) + (count > 1 ? ", each" : ""), one,
                            kernels_text(layer, options)));
    all.state_fixed += count * one.state_fixed;
    all.state_per_token += count * one.state_per_token;
  }
  all.parameters = model.parameter_count();
  all.flops = model.flops_per_token(options.context);
  rows.push_back(cost_row("model", "with embedding and head", all,
                          "norm " + kernel_of(options) + ", loss " + kernel_of(options)));
  const int64_t at_context = all.state_fixed + options.context * all.state_per_token;
  return table(rows, {2, 3, 4, 5}) +
         fmt::format("one sequence of {} tokens has {} of state\n", options.context, bytes_text(at_context));
}

}  // namespace weft::cli
