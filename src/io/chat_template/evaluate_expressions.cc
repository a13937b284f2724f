#include "base/text.h"
#include "io/chat_template/evaluator.h"
#include "io/chat_template/operators.h"

namespace weft::jinja {

Value Evaluator::evaluate(const Node& node) {
  const Level level(budget_);
  budget_.step();
  const int line = std::exchange(line_, node.line);
  auto value = compute(node);
  line_ = line;
  return value;
}

Value Evaluator::compute(const Node& node) {
  const auto part = [&](size_t i) { return node.of[i] ? evaluate(*node.of[i]) : Value(); };
  switch (node.kind) {
    case NodeKind::constant:
      return node.value;
    case NodeKind::name:
      return resolve(node);
    case NodeKind::tuple:
    case NodeKind::list:
    case NodeKind::dict:
      return compute_items(node);
    case NodeKind::attribute:
      return attribute_of(part(0), node.name);
    case NodeKind::item: {
      const auto value = part(0);
      const auto& key = *node.of[1];
      if (key.kind != NodeKind::slice) return item_of(value, part(1));
      const auto bound = [&](size_t i) { return key.of[i] ? evaluate(*key.of[i]) : Value(); };
      const auto begin = bound(0), end = bound(1), step = bound(2);
      return slice_of(value, begin, end, step);
    }
    case NodeKind::slice:
      fail("a slice cannot stand among other subscripts");
    case NodeKind::call:
      return compute_call(node);
    case NodeKind::filter:
      return filtered(node, std::nullopt);
    case NodeKind::test: {
      const auto value = part(0);
      auto arguments = arguments_of(node.arguments);
      return test(node.name, value, arguments);
    }
    case NodeKind::negative:
      return negative(part(0));
    case NodeKind::positive: {
      const auto value = part(0);
      require_defined(value);
      if (!as_number(value)) fail("bad operand type for unary +: '{}'", type_name(value));
      return value.boolean() ? Value(*as_integer(value)) : value;
    }
    case NodeKind::no:
      return !truth(part(0));
    case NodeKind::binary: {
      const auto left = part(0), right = part(1);
      return binary_operation(node.name, left, right);
    }
    case NodeKind::both: {
      auto left = part(0);
      return truth(left) ? part(1) : left;
    }
    case NodeKind::either: {
      auto left = part(0);
      return truth(left) ? left : part(1);
    }
    case NodeKind::concat:
      return concatenate(node);
    case NodeKind::compare:
      return compute_compare(node);
    case NodeKind::condition:
      if (truth(part(1))) return part(0);
      if (node.of[2]) return part(2);
      return make_undefined(
          fmt::format("the inline if-expression in line {} is false and has no else", node.line));
    default:
      break;
  }
  fail("a statement stands where a value is expected");
}

Value Evaluator::concatenate(const Node& node) {
  std::string text;
  for (const auto& part : node.of) {
    const auto piece = str(evaluate(*part));
    expect_bytes(static_cast<int64_t>(text.size() + piece.size()));
    text += piece;
  }
  return text;
}

Value Evaluator::compute_items(const Node& node) {
  if (node.kind == NodeKind::dict) {
    Dict::Entries entries;
    for (size_t i = 0; i < node.of.size(); i += 2) {
      auto key = evaluate(*node.of[i]);
      entries.emplace_back(std::move(key), evaluate(*node.of[i + 1]));
    }
    return make_dict(std::move(entries));
  }
  Values items;
  for (const auto& part : node.of) items.push_back(evaluate(*part));
  return make_sequence(std::move(items), node.kind == NodeKind::list ? Form::list : Form::tuple);
}

Value Evaluator::compute_compare(const Node& node) {
  auto left = evaluate(*node.of[0]);
  for (size_t i = 0; i < node.ops.size(); ++i) {
    const auto& op = node.ops[i];
    auto right = evaluate(*node.of[i + 1]);
    bool holds = false;
    if (op == "==" || op == "!=") {
      holds = equal(left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      holds = contains(right, left) == (op == "in");
    } else {
      const int order = compare(left, right, op.c_str());
      const bool less = order<0, same = order == 0, more = order> 0 && order != 2;
      holds = op == "<" ? less : op == "<=" ? less || same : op == ">" ? more : more || same;
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Value Evaluator::resolve(const Node& node) const {
  if (const auto* value = scope_->find(node.name)) return *value;
  if (auto function = global_function(node.name)) return *function;
  return make_undefined(fmt::format("'{}' is undefined", node.name));
}

Arguments Evaluator::arguments_of(const CallArguments& given) {
  Arguments out;
  for (const auto& part : given.positional) out.positional.push_back(evaluate(*part));
  for (const auto& [name, part] : given.named) {
    for (const auto& [known, value] : out.named)
      if (known == name) fail("the keyword argument '{}' is given twice", name);
    out.named.emplace_back(name, evaluate(*part));
  }
  if (given.list) {
    const auto more = evaluate(*given.list);
    require_defined(more);
    for (auto& value : items_of(more)) out.positional.push_back(std::move(value));
  }
  if (!given.map) return out;
  const auto more = evaluate(*given.map);
  require_defined(more);
  if (!more.dict()) fail("the argument after ** must be a mapping, not {}", type_name(more));
  for (const auto& [key, value] : more.dict()->entries) {
    if (!key.text()) fail("keywords must be texts, not {}", type_name(key));
    out.named.emplace_back(key.text()->bytes, value);
  }
  return out;
}

Value Evaluator::compute_call(const Node& node) {
  const auto function = evaluate(*node.of[0]);
  auto arguments = arguments_of(node.arguments);
  return call(function, arguments);
}

Value Evaluator::call(const Value& function, Arguments& arguments) {
  const Level level(budget_);
  require_defined(function);
  auto* object = function.object();
  if (!object || !object->callable()) fail("'{}' object is not callable", type_name(function));
  return object->call(*this, arguments);
}

// The chain of filters `node` on what they are given: their own operand, or the text of a block, which the innermost takes.
Value Evaluator::filtered(const Node& node, const std::optional<Value>& block) {
  const auto input = node.of[0] ? (block ? filtered(*node.of[0], block) : evaluate(*node.of[0])) : *block;
  auto arguments = arguments_of(node.arguments);
  return filter(node.name, input, arguments);
}

Value Evaluator::filter(const std::string& name, const Value& input, Arguments& arguments) {
  const auto run = find_filter(name);
  if (!run) {
    const auto guess = nearest_word(name, filter_names());
    fail("there is no filter '{}'{}", name, guess.empty() ? "" : "; did you mean '" + guess + "'?");
  }
  if (input.text()) spend(input.text()->bytes.size() / 16);
  return run(*this, input, arguments);
}

bool Evaluator::test(const std::string& name, const Value& value, Arguments& arguments) {
  if (name == "filter" || name == "test") {
    const auto* asked = text_of(value);
    return asked && (name == "filter" ? find_filter(*asked) != nullptr : find_test(*asked) != nullptr);
  }
  const auto run = find_test(name);
  if (!run) {
    const auto guess = nearest_word(name, test_names());
    fail("there is no test '{}'{}", name, guess.empty() ? "" : "; did you mean '" + guess + "'?");
  }
  if (value.text()) spend(value.text()->bytes.size() / 16);
  return run(value, arguments);
}

}  // namespace weft::jinja
