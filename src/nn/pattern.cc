#include "nn/pattern.h"

#include "base/error.h"

namespace weft {
namespace {

constexpr int64_t kMostLayers = 10000;

void expand(const Node& layers, std::vector<Node>& out);

void apply_overrides(const Node& overrides, std::vector<Node>& group) {
  for (const auto& item : overrides.items()) {
    const Node& set = item.at("set");
    for (const auto& index : item.at("layers").items()) {
      const int64_t layer = index.as_int();
      require(layer >= 0 && layer < static_cast<int64_t>(group.size()),
              "{}: layer {} does not exist; the group has {}", index.where(), layer, group.size());
      for (const auto& [key, value] : set.entries()) group[static_cast<size_t>(layer)].set_child(key, value);
    }
    for (const auto& key : item.keys())
      require(key == "set" || key == "layers", "{}: unknown field; an override has layers and set",
              item.at(key).where());
  }
}

void expand_group(const Node& group, std::vector<Node>& out) {
  for (const auto& key : group.keys())
    require(key == "repeat" || key == "pattern" || key == "override",
            "{}: unknown field; a group has repeat, pattern and override", group.at(key).where());
  const int64_t repeat = group.find("repeat") ? group.at("repeat").as_int() : 1;
  require(repeat >= 1, "{}: {} must be at least 1", group.at("repeat").where(), repeat);
  std::vector<Node> once, all;
  expand(group.at("pattern"), once);
  require(static_cast<int64_t>(once.size()) * repeat <= kMostLayers, "{}: more than {} layers", group.where(),
          kMostLayers);
  for (int64_t i = 0; i < repeat; ++i) all.insert(all.end(), once.begin(), once.end());
  if (const Node* overrides = group.find("override")) apply_overrides(*overrides, all);
  out.insert(out.end(), all.begin(), all.end());
}

void expand(const Node& layers, std::vector<Node>& out) {
  require(layers.is_list() && !layers.items().empty(), "{}: expected a list of layers", layers.where());
  for (const auto& item : layers.items()) {
    require(item.is_map(),
            "{}: expected a layer ({{mixer: ...}}) or a group ({{repeat: ..., pattern: [...]}})",
            item.where());
    if (item.find("pattern"))
      expand_group(item, out);
    else
      out.push_back(item);
  }
}

}  // namespace

std::vector<Node> expand_pattern(const Node& layers) {
  std::vector<Node> out;
  expand(layers, out);
  return out;
}

}  // namespace weft
