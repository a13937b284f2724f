#include "nn/residual.h"

#include <map>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

std::map<std::string, ResidualEntry>& residual_registry() {
  static std::map<std::string, ResidualEntry> entries;
  return entries;
}

Node plain_node() {
  Node node = Node::map();
  node.set_child("plain", Node::map());
  return node;
}

}  // namespace

void Stream::settle() {
  if (!pending.defined()) return;
  x = x + pending;
  pending = at::Tensor();
}

Stream Stream::of(const std::vector<at::Tensor>& tensors) {
  return {tensors.at(0), tensors.at(1), tensors.at(2), tensors.at(3)};
}

Stream Residual::begin(const at::Tensor& x) { return {.x = x, .pending = {}, .blocks = {}, .messages = {}}; }

at::Tensor Residual::end(Stream& stream) {
  stream.settle();
  return stream.x;
}

Stream Residual::next_pass(const Stream&, Stream after) const { return after; }

void register_residual(ResidualEntry entry) {
  const auto name = entry.name;
  require(residual_registry().emplace(name, std::move(entry)).second,
          "a residual stream called '{}' is registered already", name);
}

std::vector<std::string> residual_names() {
  std::vector<std::string> names;
  for (const auto& [name, entry] : residual_registry()) names.push_back(name);
  return names;
}

const ResidualEntry& find_residual(const Node& node) {
  if (node.is_null()) return residual_registry().at("plain");
  require(node.is_map() && node.entries().size() == 1,
          "{}: expected one kind of residual stream, such as {{scaled: {{}}}}; known: {}", node.where(),
          join(residual_names()));
  const auto& [name, options] = node.entries().front();
  const auto found = residual_registry().find(name);
  if (found != residual_registry().end()) return found->second;
  const auto guess = nearest_word(name, residual_names());
  throw InputError(fmt::format("{}: '{}' is not a kind of residual stream{}; known: {}", options.where(),
                               name, guess.empty() ? "" : ", did you mean '" + guess + "'?",
                               join(residual_names())));
}

std::unique_ptr<Residual> make_residual(const Node& node, int64_t width) {
  const auto& entry = find_residual(node);
  return entry.make(node.is_null() ? Node::map() : node.entries().front().second, width);
}

Node resolve_residual(const Node& node) {
  const auto& entry = find_residual(node);
  if (node.is_null()) return plain_node();
  Node result = Node::map();
  result.set_child(entry.name, entry.resolve(node.entries().front().second));
  return result;
}

}  // namespace weft
