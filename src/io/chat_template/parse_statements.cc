#include "base/text.h"
#include "io/chat_template/parser.h"

namespace weft::jinja {

Body parse(std::string_view source) { return Parser(lex(source)).run(); }

Body Parser::run() { return body({}); }

void Parser::expect_block_end() {
  if (now().kind != TokenKind::block_end) wrong("'%}'");
  take();
}

Body Parser::body(Ends ends) {
  const Nest nest(*this);
  Body out;
  while (now().kind != TokenKind::end) {
    const auto token = take();
    if (token.kind == TokenKind::data) {
      auto node = make(NodeKind::data, token.line);
      node->name = token.value;
      out.push_back(std::move(node));
    } else if (token.kind == TokenKind::print_begin) {
      std::vector<NodePtr> of;
      of.push_back(tuple());
      out.push_back(make(NodeKind::print, token.line, std::move(of)));
      if (now().kind != TokenKind::print_end) wrong("'}}'");
      take();
    } else {
      for (const char* end : ends)
        if (now().is_name(end)) return out;
      out.push_back(statement());
      expect_block_end();
    }
  }
  if (ends.size() > 0) {
    std::vector<std::string> names;
    for (const char* end : ends) names.push_back("'{% " + std::string(end) + " %}'");
    wrong(join(names, " or "));
  }
  return out;
}

Body Parser::block(Ends ends) {
  take_op(":");
  expect_block_end();
  return body(ends);
}

Body Parser::closed_block(const char* end) {
  auto out = block({end});
  take();
  return out;
}

NodePtr Parser::statement() {
  const auto name = now().kind == TokenKind::name ? now().value : std::string();
  if (name == "if") return if_statement();
  if (name == "for") return for_statement();
  if (name == "set") return set_statement();
  if (name == "macro") return macro_statement();
  if (name == "call") return call_statement();
  if (name == "filter") return filter_statement();
  if (name == "with") return with_statement();
  if (name == "block") return block_statement();
  if (name == "generation") return generation_statement();
  if (name == "print") {
    const int line = take().line;
    std::vector<NodePtr> of;
    do of.push_back(expression());
    while (take_op(","));
    return make(NodeKind::print, line, std::move(of));
  }
  if (name == "break" || name == "continue") {
    if (loops_ == 0) wrong(fmt::format("a loop around '{}'", name));
    return make(name == "break" ? NodeKind::stop : NodeKind::skip, take().line);
  }
  for (const char* other : {"include", "import", "from", "extends", "autoescape"})
    if (name == other)
      throw SyntaxError(
          now().line, fmt::format("'{}' is not for chat templates, which are one file of plain text", name));
  wrong(
      "a statement (if, for, set, macro, call, filter, with, block, generation, break, continue, print) that "
      "is open here");
}

NodePtr Parser::if_statement() {
  auto node = make(NodeKind::branch, now().line);
  while (true) {
    take();
    node->of.push_back(tuple(false));
    node->bodies.push_back(block({"elif", "else", "endif"}));
    if (!now().is_name("elif")) break;
  }
  if (take().value == "else") node->bodies.push_back(closed_block("endif"));
  settle(*node);
  return node;
}

NodePtr Parser::for_statement() {
  auto node = make(NodeKind::loop, take().line);
  node->of.push_back(target("in", false));
  if (!take_name("in")) wrong("'in'");
  node->of.push_back(tuple(false, "recursive"));
  node->of.push_back(take_name("if") ? expression() : nullptr);
  node->flag = take_name("recursive");
  ++loops_;
  node->bodies.push_back(block({"endfor", "else"}));
  --loops_;
  node->bodies.emplace_back();
  if (take().value == "else") node->bodies[1] = closed_block("endfor");
  settle(*node);
  return node;
}

NodePtr Parser::single_target(bool may_be_attribute) {
  const int line = now().line;
  if (take_op("(")) {
    auto inner = target(nullptr, false);
    expect_op(")");
    return inner;
  }
  auto node = make(NodeKind::name, line);
  node->name = expect_name("a name to assign to");
  for (const char* word : {"true", "false", "none", "True", "False", "None"})
    if (node->name == word)
      throw SyntaxError(line, fmt::format("nothing can be assigned to '{}'", node->name));
  if (!now().is(".") || !may_be_attribute) return node;
  take();
  std::vector<NodePtr> of;
  names_.insert(node->name);
  of.push_back(std::move(node));
  auto place = make(NodeKind::attribute, line, std::move(of));
  place->name = expect_name("the name of a namespace's attribute");
  return place;
}

NodePtr Parser::target(const char* stop, bool may_be_attribute) {
  const Nest nest(*this);
  const int line = now().line;
  std::vector<NodePtr> parts;
  bool is_tuple = false;
  while (true) {
    parts.push_back(single_target(may_be_attribute));
    if (!take_op(",")) break;
    is_tuple = true;
    if ((stop && now().is_name(stop)) || now().is("=") || now().is(")")) break;
  }
  return is_tuple ? make(NodeKind::tuple, line, std::move(parts)) : std::move(parts[0]);
}

NodePtr Parser::set_statement() {
  const int line = take().line;
  std::vector<NodePtr> of;
  of.push_back(target(nullptr, true));
  if (take_op("=")) {
    of.push_back(tuple());
    return make(NodeKind::set, line, std::move(of));
  }
  of.push_back(filter(nullptr));
  auto node = make(NodeKind::set_block, line, std::move(of));
  node->bodies.push_back(closed_block("endset"));
  settle(*node);
  return node;
}

void Parser::signature(Node& macro) {
  expect_op("(");
  bool defaults = false;
  while (!now().is(")")) {
    if (!macro.parameters.empty()) expect_op(",");
    macro.parameters.push_back(expect_name("the name of a parameter"));
    if (take_op("=")) {
      defaults = true;
      macro.of.push_back(expression());
    } else if (defaults) {
      throw SyntaxError(now().line, fmt::format("parameter '{}' needs a default, as one before it has",
                                                macro.parameters.back()));
    }
  }
  expect_op(")");
}

void Parser::macro_body(Node& macro, const char* end) {
  auto outer = std::exchange(names_, {});
  const int loops = std::exchange(loops_, 0);
  macro.bodies.push_back(closed_block(end));
  loops_ = loops;
  macro.names_caller = names_.count("caller") > 0;
  macro.names_varargs = names_.count("varargs") > 0;
  macro.names_kwargs = names_.count("kwargs") > 0;
  names_.merge(outer);
  settle(macro);
}

NodePtr Parser::macro_statement() {
  auto node = make(NodeKind::macro, take().line);
  node->name = expect_name("the name of the macro");
  signature(*node);
  macro_body(*node, "endmacro");
  return node;
}

NodePtr Parser::call_statement() {
  auto node = make(NodeKind::call_block, take().line);
  node->name = "caller";
  node->of.emplace_back();
  if (now().is("(")) signature(*node);
  node->of[0] = expression();
  if (node->of[0]->kind != NodeKind::call)
    throw SyntaxError(node->line, "expected a call of a macro behind 'call'");
  macro_body(*node, "endcall");
  return node;
}

NodePtr Parser::filter_statement() {
  const int line = take().line;
  std::vector<NodePtr> of;
  of.push_back(filter(nullptr, true));
  auto node = make(NodeKind::filter_block, line, std::move(of));
  node->bodies.push_back(closed_block("endfilter"));
  settle(*node);
  return node;
}

NodePtr Parser::with_statement() {
  auto node = make(NodeKind::with, take().line);
  while (now().kind != TokenKind::block_end) {
    if (!node->of.empty()) expect_op(",");
    node->of.push_back(single_target(false));
    expect_op("=");
    node->of.push_back(expression());
  }
  node->bodies.push_back(closed_block("endwith"));
  settle(*node);
  return node;
}

NodePtr Parser::block_statement() {
  auto node = make(NodeKind::scope, take().line);
  const auto name = expect_name("the name of the block");
  take_name("scoped");
  take_name("required");
  const int loops = std::exchange(loops_, 0);
  node->bodies.push_back(closed_block("endblock"));
  loops_ = loops;
  if (now().kind == TokenKind::name && !take_name(name))
    wrong(fmt::format("'{}', the name of the block", name));
  settle(*node);
  return node;
}

NodePtr Parser::generation_statement() {
  auto node = make(NodeKind::scope, take().line);
  const int loops = std::exchange(loops_, 0);
  node->bodies.push_back(closed_block("endgeneration"));
  loops_ = loops;
  settle(*node);
  return node;
}

}  // namespace weft::jinja
