// A YAML document as a tree of nodes that know where they came from, so that every message can say
// "tiny.yaml:14: layers[2].mixer.heads: ...".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft {

class Node {
 public:
  enum class Kind { null, scalar, list, map };

  Node() = default;
  // Parses text; `source` stands for the file name in messages. Throws InputError with file and line.
  static Node parse(const std::string& text, const std::string& source);
  static Node load(const std::string& path);
  static Node scalar(std::string text);
  static Node map();
  static Node list();

  Kind kind() const { return kind_; }
  bool is_map() const { return kind_ == Kind::map; }
  bool is_list() const { return kind_ == Kind::list; }
  bool is_scalar() const { return kind_ == Kind::scalar; }
  bool is_null() const { return kind_ == Kind::null; }

  // "file:line: path", or "path" for nodes that were made in code.
  std::string where() const;
  const std::string& path() const { return path_; }
  const std::string& source() const { return source_; }

  // Typed values; InputError names the place, the text found and the type expected.
  int64_t as_int() const;
  double as_double() const;
  bool as_bool() const;
  const std::string& as_string() const;

  // Maps. `find` gives nullptr for an absent key, `at` throws InputError.
  const Node* find(std::string_view key) const;
  const Node& at(std::string_view key) const;
  std::vector<std::string> keys() const;
  const std::vector<std::pair<std::string, Node>>& entries() const;  // of a map, in file order
  const std::vector<Node>& items() const;                            // of a list

  // Sets or replaces; creates maps on the way. `dotted` is like "run.steps" or "model.layers[0].repeat"; the
  // value is parsed as YAML. This is what --set does.
  void set(std::string_view dotted, const std::string& value);
  void set_child(const std::string& key, Node value);
  void push_back(Node value);
  bool erase(std::string_view key);

  // The tree as YAML text that parses back to the same tree.
  std::string dump() const;

 private:
  friend struct NodeBuilder;
  Node* find(std::string_view key);
  void place(const std::string& source, int line, const std::string& path);
  void require_kind(Kind kind, const char* expected) const;

  Kind kind_ = Kind::null;
  std::string text_;
  bool quoted_ = false;
  std::vector<Node> items_;
  std::vector<std::pair<std::string, Node>> entries_;
  std::string source_, path_;
  int line_ = 0;
};

}  // namespace weft
