// The syntax tree of a template.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "io/chat_template/value.h"

namespace weft::jinja {

enum class NodeKind {
  // expressions; `of` are the operands
  constant,   // value
  name,       // name
  tuple,      // of; also as a target
  list,       // of
  dict,       // of: key, value, key, value...
  attribute,  // of[0].name
  item,       // of[0][of[1]]
  slice,      // of: begin, end, step; each may be null
  call,       // of[0](arguments)
  filter,     // of[0] | name(arguments); of[0] is null for the body of a block
  test,       // of[0] is name(arguments)
  negative,
  positive,
  no,         // not of[0]
  binary,     // of[0] name of[1]: + - * / // % **
  both,       // of[0] and of[1]
  either,     // of[0] or of[1]
  concat,     // of joined as texts
  compare,    // of[0] ops[0] of[1] ops[1] of[2]...
  condition,  // of: value, condition, otherwise (may be null)
  // statements
  data,          // name is the text
  print,         // of, one after another
  branch,        // of: conditions; bodies, with one more for else
  loop,          // of: target, iterable, filter (may be null); bodies: body, else; flag: recursive
  set,           // of: target, value
  set_block,     // of: target, filter (may be null); bodies[0]
  macro,         // name, parameters, of: defaults of the last ones; bodies[0]
  call_block,    // as macro, and the call is of[0] with the defaults behind it
  filter_block,  // of[0]; bodies[0]
  with,          // of: target, value, target, value...; bodies[0]
  scope,         // bodies[0]: a generation or named block
  stop,          // break
  skip,          // continue
};

struct Node;
using NodePtr = std::unique_ptr<Node>;
using Body = std::vector<NodePtr>;

struct CallArguments {
  std::vector<NodePtr> positional;
  std::vector<std::pair<std::string, NodePtr>> named;
  NodePtr list, map;  // *list, **map
};

struct Node {
  NodeKind kind;
  int line;
  std::string name = {};
  Value value = {};
  std::vector<NodePtr> of = {};
  std::vector<std::string> ops = {};
  std::vector<Body> bodies = {};
  std::vector<std::string> parameters = {};
  CallArguments arguments = {};
  bool flag = false;
  // Of a macro: whether its body names these.
  bool names_caller = false, names_varargs = false, names_kwargs = false;
  int depth = 1;
};

// Throws SyntaxError.
Body parse(std::string_view source);

}  // namespace weft::jinja
