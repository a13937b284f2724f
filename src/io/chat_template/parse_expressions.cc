// Expressions, from the loosest binding to the tightest: a if b else c, or, and, not, comparisons, + -, ~, * / // %, **,
// signs, then attributes, subscripts, calls, filters and tests.
#include <charconv>
#include <limits>

#include "io/chat_template/parser.h"

namespace weft::jinja {

Parser::Nest::Nest(Parser& p) : parser(p) {
  if (++parser.nesting_ > kNesting)
    throw SyntaxError(parser.now().line, fmt::format("the template is nested more than {} deep", kNesting));
}

std::string Parser::shown(const Token& token) {
  if (token.kind == TokenKind::end) return "the end of the template";
  if (token.kind == TokenKind::data) return "text";
  return "'" + token.value.substr(0, 40) + "'";
}

void Parser::wrong(const std::string& expected) const {
  throw SyntaxError(now().line, fmt::format("expected {}, found {}", expected, shown(now())));
}

bool Parser::take_op(std::string_view op) {
  if (!now().is(op)) return false;
  take();
  return true;
}

bool Parser::take_name(std::string_view name) {
  if (!now().is_name(name)) return false;
  take();
  return true;
}

void Parser::expect_op(std::string_view op) {
  if (!take_op(op)) wrong(fmt::format("'{}'", op));
}

std::string Parser::expect_name(std::string_view what) {
  if (now().kind != TokenKind::name) wrong(std::string(what));
  return take().value;
}

void Parser::settle(Node& node) const {
  int depth = 0;
  const auto look = [&](const NodePtr& part) {
    if (part) depth = std::max(depth, part->depth);
  };
  for (const auto& part : node.of) look(part);
  for (const auto& each : node.bodies)
    for (const auto& part : each) look(part);
  for (const auto& part : node.arguments.positional) look(part);
  for (const auto& [name, part] : node.arguments.named) look(part);
  look(node.arguments.list);
  look(node.arguments.map);
  node.depth = depth + 1;
  if (node.depth > kNesting)
    throw SyntaxError(node.line, fmt::format("the template is nested more than {} deep", kNesting));
}

NodePtr Parser::make(NodeKind kind, int line, std::vector<NodePtr> of) const {
  auto node = std::make_unique<Node>(Node{.kind = kind, .line = line, .of = std::move(of)});
  settle(*node);
  return node;
}

template <class... Parts>
std::vector<NodePtr> parts_of(Parts... parts) {
  std::vector<NodePtr> list;
  (list.push_back(std::move(parts)), ...);
  return list;
}

NodePtr Parser::binary(NodePtr left, const std::string& op, NodePtr right, int line) {
  auto node = make(NodeKind::binary, line, parts_of(std::move(left), std::move(right)));
  node->name = op;
  return node;
}

bool Parser::tuple_ends(const char* end_name) const {
  const auto kind = now().kind;
  return kind == TokenKind::print_end || kind == TokenKind::block_end || now().is(")") ||
         (end_name && now().is_name(end_name));
}

NodePtr Parser::tuple(bool with_condition, const char* end_name, bool in_parentheses) {
  const Nest nest(*this);
  const int line = now().line;
  std::vector<NodePtr> parts;
  bool is_tuple = false;
  while (true) {
    if (!parts.empty()) expect_op(",");
    if (tuple_ends(end_name)) break;
    parts.push_back(expression(with_condition));
    if (!now().is(",")) break;
    is_tuple = true;
  }
  if (!is_tuple && !parts.empty()) return std::move(parts[0]);
  if (!is_tuple && !in_parentheses) wrong("an expression");
  return make(NodeKind::tuple, line, std::move(parts));
}

NodePtr Parser::expression(bool with_condition) {
  const Nest nest(*this);
  if (!with_condition) return either();
  int line = now().line;
  auto value = either();
  while (take_name("if")) {
    auto condition = either();
    auto otherwise = take_name("else") ? expression() : nullptr;
    value = make(NodeKind::condition, line,
                 parts_of(std::move(value), std::move(condition), std::move(otherwise)));
    line = now().line;
  }
  return value;
}

NodePtr Parser::either() {
  const int line = now().line;
  auto left = both();
  while (take_name("or")) left = make(NodeKind::either, line, parts_of(std::move(left), both()));
  return left;
}

NodePtr Parser::both() {
  const int line = now().line;
  auto left = negation();
  while (take_name("and")) left = make(NodeKind::both, line, parts_of(std::move(left), negation()));
  return left;
}

NodePtr Parser::negation() {
  const Nest nest(*this);
  const int line = now().line;
  if (take_name("not")) return make(NodeKind::no, line, parts_of(negation()));
  return comparison();
}

NodePtr Parser::comparison() {
  const int line = now().line;
  std::vector<NodePtr> of;
  std::vector<std::string> ops;
  of.push_back(sum());
  while (true) {
    bool found = false;
    for (const char* op : {"==", "!=", "<=", ">=", "<", ">"})
      if (!found && take_op(op)) {
        ops.emplace_back(op);
        found = true;
      }
    if (!found && take_name("in")) {
      ops.emplace_back("in");
      found = true;
    }
    if (!found && now().is_name("not") && ahead().is_name("in")) {
      take(), take();
      ops.emplace_back("not in");
      found = true;
    }
    if (!found) break;
    of.push_back(sum());
  }
  if (ops.empty()) return std::move(of[0]);
  auto node = make(NodeKind::compare, line, std::move(of));
  node->ops = std::move(ops);
  return node;
}

NodePtr Parser::sum() {
  auto left = concatenation();
  while (now().is("+") || now().is("-")) {
    const auto op = take();
    left = binary(std::move(left), op.value, concatenation(), op.line);
  }
  return left;
}

NodePtr Parser::concatenation() {
  const int line = now().line;
  std::vector<NodePtr> of;
  of.push_back(product());
  while (take_op("~")) of.push_back(product());
  return of.size() == 1 ? std::move(of[0]) : make(NodeKind::concat, line, std::move(of));
}

NodePtr Parser::product() {
  auto left = power();
  while (now().is("*") || now().is("/") || now().is("//") || now().is("%")) {
    const auto op = take();
    left = binary(std::move(left), op.value, power(), op.line);
  }
  return left;
}

NodePtr Parser::power() {
  auto left = unary();
  while (now().is("**")) {
    const auto op = take();
    left = binary(std::move(left), op.value, unary(), op.line);
  }
  return left;
}

NodePtr Parser::unary(bool with_filters) {
  const Nest nest(*this);
  const int line = now().line;
  NodePtr node;
  if (take_op("-"))
    node = make(NodeKind::negative, line, parts_of(unary(false)));
  else if (take_op("+"))
    node = make(NodeKind::positive, line, parts_of(unary(false)));
  else
    node = primary();
  node = postfix(std::move(node));
  return with_filters ? filters(std::move(node)) : std::move(node);
}

NodePtr Parser::primary() {
  const auto& token = now();
  const int line = token.line;
  const auto constant = [&](Value value) {
    auto node = make(NodeKind::constant, line);
    node->value = std::move(value);
    return node;
  };
  if (token.kind == TokenKind::name) {
    const auto name = take().value;
    if (name == "true" || name == "True") return constant(true);
    if (name == "false" || name == "False") return constant(false);
    if (name == "none" || name == "None") return constant({});
    names_.insert(name);
    auto node = make(NodeKind::name, line);
    node->name = name;
    return node;
  }
  if (token.kind == TokenKind::text) {
    std::string text;
    while (now().kind == TokenKind::text) text += take().value;
    return constant(std::move(text));
  }
  if (token.kind == TokenKind::integer || token.kind == TokenKind::real) return constant(number()->value);
  if (take_op("(")) {
    auto node = tuple(true, nullptr, true);
    expect_op(")");
    return node;
  }
  if (token.is("[")) return list_literal();
  if (token.is("{")) return dict_literal();
  wrong("an expression");
}

NodePtr Parser::number() {
  const auto token = take();
  auto node = make(NodeKind::constant, token.line);
  const char *begin = token.value.data(), *end = begin + token.value.size();
  if (token.kind == TokenKind::real) {
    double value = 0;
    const auto [stop, error] = std::from_chars(begin, end, value);
    if (error == std::errc::result_out_of_range)
      value = token.value.find("e-") == std::string::npos ? std::numeric_limits<double>::infinity() : 0.0;
    node->value = value;
    return node;
  }
  int base = 10;
  if (token.value.size() > 1 && token.value[0] == '0') {
    const char letter = static_cast<char>(token.value[1] | 0x20);
    base = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 10;
    if (base != 10) begin += 2;
    if (base == 10 && token.value.find_first_not_of('0') != std::string::npos)
      throw SyntaxError(token.line, fmt::format("'{}' is no number: it begins with 0", token.value));
  }
  int64_t value = 0;
  const auto [stop, error] = std::from_chars(begin, end, value, base);
  if (error != std::errc() || stop != end)
    throw SyntaxError(token.line, fmt::format("'{}' is no number of 64 bits", token.value));
  node->value = value;
  return node;
}

NodePtr Parser::list_literal() {
  const int line = take().line;
  std::vector<NodePtr> of;
  while (!now().is("]")) {
    if (!of.empty()) expect_op(",");
    if (now().is("]")) break;
    of.push_back(expression());
  }
  expect_op("]");
  return make(NodeKind::list, line, std::move(of));
}

NodePtr Parser::dict_literal() {
  const int line = take().line;
  std::vector<NodePtr> of;
  while (!now().is("}")) {
    if (!of.empty()) expect_op(",");
    if (now().is("}")) break;
    of.push_back(expression());
    expect_op(":");
    of.push_back(expression());
  }
  expect_op("}");
  return make(NodeKind::dict, line, std::move(of));
}

NodePtr Parser::postfix(NodePtr node) {
  while (true) {
    if (now().is(".") || now().is("["))
      node = subscript(std::move(node));
    else if (now().is("("))
      node = call(std::move(node));
    else
      return node;
  }
}

NodePtr Parser::subscript(NodePtr node) {
  const auto token = take();
  if (token.value == ".") {
    if (now().kind == TokenKind::integer)
      return make(NodeKind::item, token.line, parts_of(std::move(node), number()));
    auto found = make(NodeKind::attribute, token.line, parts_of(std::move(node)));
    found->name = expect_name("a name or number behind '.'");
    return found;
  }
  std::vector<NodePtr> keys;
  while (!now().is("]")) {
    if (!keys.empty()) expect_op(",");
    keys.push_back(subscripted());
  }
  expect_op("]");
  auto key = keys.size() == 1 ? std::move(keys[0]) : make(NodeKind::tuple, token.line, std::move(keys));
  return make(NodeKind::item, token.line, parts_of(std::move(node), std::move(key)));
}

NodePtr Parser::subscripted() {
  const int line = now().line;
  const auto ends = [&] { return now().is("]") || now().is(","); };
  NodePtr begin, end, step;
  if (!now().is(":")) begin = expression();
  if (begin && !now().is(":")) return begin;
  expect_op(":");
  if (!now().is(":") && !ends()) end = expression();
  if (take_op(":") && !ends()) step = expression();
  return make(NodeKind::slice, line, parts_of(std::move(begin), std::move(end), std::move(step)));
}

NodePtr Parser::filters(NodePtr node) {
  while (true) {
    if (now().is("|"))
      node = filter(std::move(node));
    else if (now().is_name("is"))
      node = test(std::move(node));
    else if (now().is("("))
      node = call(std::move(node));
    else
      return node;
  }
}

NodePtr Parser::filter(NodePtr node, bool first_named) {
  while (first_named || now().is("|")) {
    if (!first_named) take();
    first_named = false;
    const int line = now().line;
    auto name = expect_name("the name of a filter");
    while (take_op(".")) name += "." + expect_name("the name of a filter");
    auto found = make(NodeKind::filter, line, parts_of(std::move(node)));
    found->name = std::move(name);
    if (now().is("(")) found->arguments = call_arguments();
    settle(*found);
    node = std::move(found);
  }
  return node;
}

NodePtr Parser::test(NodePtr node) {
  const int line = take().line;
  const bool negated = take_name("not");
  auto found = make(NodeKind::test, line, parts_of(std::move(node)));
  found->name = expect_name("the name of a test");
  while (take_op(".")) found->name += "." + expect_name("the name of a test");
  const auto kind = now().kind;
  if (now().is("(")) {
    found->arguments = call_arguments();
  } else if ((kind == TokenKind::name || kind == TokenKind::text || kind == TokenKind::integer ||
              kind == TokenKind::real || now().is("[") || now().is("{")) &&
             !now().is_name("else") && !now().is_name("or") && !now().is_name("and")) {
    if (now().is_name("is")) wrong("no second 'is' behind a test");
    found->arguments.positional.push_back(postfix(primary()));
  }
  settle(*found);
  return negated ? make(NodeKind::no, line, parts_of(std::move(found))) : std::move(found);
}

NodePtr Parser::call(NodePtr node) {
  auto found = make(NodeKind::call, now().line, parts_of(std::move(node)));
  found->arguments = call_arguments();
  settle(*found);
  return found;
}

CallArguments Parser::call_arguments() {
  const Nest nest(*this);
  CallArguments out;
  expect_op("(");
  bool more = false;
  while (!now().is(")")) {
    if (more) {
      expect_op(",");
      if (now().is(")")) break;
    }
    more = true;
    const bool plain = !out.list && !out.map;
    if (take_op("*")) {
      if (!plain) wrong("one *list at most, before **dict");
      out.list = expression();
    } else if (take_op("**")) {
      if (out.map) wrong("one **dict at most");
      out.map = expression();
    } else if (now().kind == TokenKind::name && ahead().is("=")) {
      if (out.map) wrong("keyword arguments before **dict");
      const auto name = take().value;
      take();
      out.named.emplace_back(name, expression());
    } else {
      if (!plain || !out.named.empty()) wrong("positional arguments before the others");
      out.positional.push_back(expression());
    }
  }
  expect_op(")");
  return out;
}

}  // namespace weft::jinja
