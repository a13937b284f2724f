#include "nn/channel.h"

#include <map>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

std::map<std::string, ChannelEntry>& channel_registry() {
  static std::map<std::string, ChannelEntry> entries;
  return entries;
}

// {swiglu: 1408} -> the options {hidden: 1408}; {swiglu: {hidden: 1408}} -> as it is.
Node options_of(const ChannelEntry& entry, const Node& value) {
  if (!value.is_scalar()) return value;
  Node options = Node::map();
  options.set_child(entry.fields.front().name, value);
  return options;
}

}  // namespace

void register_channel_mixer(ChannelEntry entry) {
  const auto name = entry.name;
  require(channel_registry().emplace(name, std::move(entry)).second,
          "a channel mixer called '{}' is registered already", name);
}

std::vector<std::string> channel_mixer_names() {
  std::vector<std::string> names;
  for (const auto& [name, entry] : channel_registry()) names.push_back(name);
  return names;
}

const ChannelEntry& find_channel_mixer(const Node& node) {
  require(node.is_map() && node.entries().size() == 1,
          "{}: expected one channel mixer, such as {{swiglu: 1408}}; known: {}", node.where(),
          join(channel_mixer_names()));
  const auto& [name, options] = node.entries().front();
  const auto found = channel_registry().find(name);
  if (found != channel_registry().end()) return found->second;
  const auto guess = nearest_word(name, channel_mixer_names());
  throw InputError(fmt::format("{}: '{}' is not a channel mixer{}; known: {}", options.where(), name,
                               guess.empty() ? "" : ", did you mean '" + guess + "'?",
                               join(channel_mixer_names())));
}

std::unique_ptr<ChannelMixer> make_channel_mixer(const Node& node, const Site& site) {
  const auto& entry = find_channel_mixer(node);
  return entry.make(options_of(entry, node.entries().front().second), site);
}

Node resolve_channel_mixer(const Node& node) {
  const auto& entry = find_channel_mixer(node);
  Node result = Node::map();
  result.set_child(entry.name, entry.resolve(options_of(entry, node.entries().front().second)));
  return result;
}

}  // namespace weft
