#include "base/config.h"

#include <fmt/format.h>
#include <yaml-cpp/yaml.h>

#include <charconv>
#include <cmath>
#include <fstream>
#include <sstream>

#include "base/error.h"
#include "base/text.h"

namespace weft {

struct NodeBuilder {
  static Node convert(const YAML::Node& yaml, const std::string& source, const std::string& path) {
    Node node;
    node.place(source, yaml.Mark().line + 1, path);
    if (yaml.IsScalar()) {
      node.kind_ = Node::Kind::scalar;
      node.text_ = yaml.Scalar();
      node.quoted_ = yaml.Tag() == "!";
    } else if (yaml.IsSequence()) {
      node.kind_ = Node::Kind::list;
      for (size_t i = 0; i < yaml.size(); ++i)
        node.items_.push_back(convert(yaml[i], source, fmt::format("{}[{}]", path, i)));
    } else if (yaml.IsMap()) {
      node.kind_ = Node::Kind::map;
      for (const auto& entry : yaml) {
        require(entry.first.IsScalar(), "{}:{}: {}: keys must be plain words", source,
                entry.first.Mark().line + 1, path);
        const auto& key = entry.first.Scalar();
        require(!node.find(key), "{}:{}: {}: '{}' is given twice", source, entry.first.Mark().line + 1, path,
                key);
        node.entries_.emplace_back(key, convert(entry.second, source, path.empty() ? key : path + "." + key));
      }
    }
    return node;
  }
};

Node Node::parse(const std::string& text, const std::string& source) {
  try {
    return NodeBuilder::convert(YAML::Load(text), source, "");
  } catch (const YAML::Exception& error) {
    throw InputError(fmt::format("{}:{}: {}", source, error.mark.line + 1, error.msg));
  }
}

Node Node::load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  require(file.good(), "{}: cannot open this file", path);
  std::stringstream text;
  text << file.rdbuf();
  require(!file.bad(), "{}: cannot read this file", path);
  return parse(text.str(), path);
}

Node Node::scalar(std::string text) {
  Node node;
  node.kind_ = Kind::scalar;
  node.text_ = std::move(text);
  return node;
}

Node Node::map() {
  Node node;
  node.kind_ = Kind::map;
  return node;
}

Node Node::list() {
  Node node;
  node.kind_ = Kind::list;
  return node;
}

void Node::place(const std::string& source, int line, const std::string& path) {
  source_ = source;
  line_ = line;
  path_ = path;
}

std::string Node::where() const {
  const std::string path = path_.empty() ? "(top level)" : path_;
  return source_.empty() ? path
         : line_ > 0     ? fmt::format("{}:{}: {}", source_, line_, path)
                         : source_ + ": " + path;
}

void Node::require_kind(Kind kind, const char* expected) const {
  static constexpr const char* names[] = {"nothing", "a single value", "a list", "a map"};
  require(kind_ == kind, "{}: expected {}, found {}{}", where(), expected, names[static_cast<int>(kind_)],
          kind_ == Kind::scalar ? " '" + text_ + "'" : "");
}

int64_t Node::as_int() const {
  require_kind(Kind::scalar, "a whole number");
  int64_t value = 0;
  const char* end = text_.data() + text_.size();
  const auto [stop, error] = std::from_chars(text_.data(), end, value);
  require(error == std::errc() && stop == end && !quoted_, "{}: expected a whole number, found '{}'", where(),
          text_);
  return value;
}

double Node::as_double() const {
  require_kind(Kind::scalar, "a number");
  double value = 0;
  const char* end = text_.data() + text_.size();
  const auto [stop, error] = std::from_chars(text_.data(), end, value);
  require(error == std::errc() && stop == end && !quoted_ && std::isfinite(value),
          "{}: expected a number, found '{}'", where(), text_);
  return value;
}

bool Node::as_bool() const {
  require_kind(Kind::scalar, "true or false");
  require(text_ == "true" || text_ == "false", "{}: expected true or false, found '{}'", where(), text_);
  return text_ == "true";
}

const std::string& Node::as_string() const {
  require_kind(Kind::scalar, "text");
  return text_;
}

const Node* Node::find(std::string_view key) const {
  for (const auto& [name, node] : entries_)
    if (name == key) return &node;
  return nullptr;
}

Node* Node::find(std::string_view key) { return const_cast<Node*>(std::as_const(*this).find(key)); }

const Node& Node::at(std::string_view key) const {
  require_kind(Kind::map, "a map");
  const Node* child = find(key);
  require(child, "{}: '{}' is missing", where(), key);
  return *child;
}

std::vector<std::string> Node::keys() const {
  std::vector<std::string> names;
  for (const auto& [name, node] : entries_) names.push_back(name);
  return names;
}

const std::vector<std::pair<std::string, Node>>& Node::entries() const {
  require_kind(Kind::map, "a map");
  return entries_;
}

const std::vector<Node>& Node::items() const {
  require_kind(Kind::list, "a list");
  return items_;
}

void Node::set(std::string_view dotted, const std::string& value) {
  const std::string source = "--set";
  Node* node = this;
  std::string path;
  size_t at = 0;
  while (at < dotted.size()) {
    if (dotted[at] == '[') {
      const size_t close = dotted.find(']', at);
      require(close != std::string_view::npos && node->is_list(), "{}: {} is not a list", source, path);
      size_t index = 0;
      const auto [stop, error] = std::from_chars(dotted.data() + at + 1, dotted.data() + close, index);
      require(error == std::errc() && stop == dotted.data() + close && index < node->items_.size(),
              "{}: {} has {} items", source, path, node->items_.size());
      node = &node->items_[index];
      path += dotted.substr(at, close + 1 - at);
      at = close + 1;
    } else {
      if (dotted[at] == '.') ++at;
      const size_t end = std::min(dotted.find_first_of(".[", at), dotted.size());
      const std::string key(dotted.substr(at, end - at));
      require(!key.empty(), "{}: expected a field name such as run.steps", source);
      require(node->is_map() || node->is_null(), "{}: {} is not a map", source, path);
      node->kind_ = Kind::map;
      path += (path.empty() ? "" : ".") + key;
      Node* child = node->find(key);
      if (!child) {
        node->entries_.emplace_back(key, Node());
        child = &node->entries_.back().second;
        child->place(source, 0, path);
      }
      node = child;
      at = end;
    }
  }
  require(node != this, "{}: expected a field name such as run.steps", source);
  Node replacement = parse(value, source);
  *node = NodeBuilder::convert(YAML::Load(value), source, path);
  node->line_ = 0;
}

void Node::set_child(const std::string& key, Node value) {
  require_kind(Kind::map, "a map");
  if (Node* child = find(key))
    *child = std::move(value);
  else
    entries_.emplace_back(key, std::move(value));
}

void Node::push_back(Node value) {
  require_kind(Kind::list, "a list");
  items_.push_back(std::move(value));
}

bool Node::erase(std::string_view key) {
  return std::erase_if(entries_, [&](const auto& entry) { return entry.first == key; }) > 0;
}

namespace {

void emit(YAML::Emitter& out, const Node& node);

void emit_map(YAML::Emitter& out, const Node& node) {
  out << YAML::BeginMap;
  for (const auto& [key, child] : node.entries()) {
    out << YAML::Key << key << YAML::Value;
    emit(out, child);
  }
  out << YAML::EndMap;
}

void emit(YAML::Emitter& out, const Node& node) {
  if (node.is_null()) {
    out << YAML::Null;
  } else if (node.is_scalar()) {
    out << node.as_string();
  } else if (node.is_list()) {
    out << YAML::Flow << YAML::BeginSeq;
    for (const auto& item : node.items()) emit(out, item);
    out << YAML::EndSeq;
  } else {
    emit_map(out, node);
  }
}

}  // namespace

std::string Node::dump() const {
  YAML::Emitter out;
  emit(out, *this);
  return std::string(out.c_str()) + "\n";
}

}  // namespace weft
