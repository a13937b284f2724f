#include <algorithm>
#include <nlohmann/json.hpp>

#include "io/chat_template/evaluator.h"
#include "io/chat_template/objects.h"

namespace weft::jinja {

const Value* Scope::find(const std::string& name) const {
  for (const Scope* scope = this; scope; scope = scope->outer.get())
    for (const auto& [known, value] : scope->names)
      if (known == name) return &value;
  return nullptr;
}

void Scope::set(const std::string& name, Value value) {
  for (auto& [known, held] : names)
    if (known == name) {
      held = std::move(value);
      return;
    }
  names.emplace_back(name, std::move(value));
}

struct Evaluator::Inside {
  Inside(Evaluator& e, std::shared_ptr<Scope> scope)
      : evaluator(e), before(std::exchange(e.scope_, std::move(scope))) {}
  explicit Inside(Evaluator& e) : Inside(e, std::make_shared<Scope>(e.scope_)) {}
  ~Inside() { evaluator.scope_ = std::move(before); }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;
  Evaluator& evaluator;
  std::shared_ptr<Scope> before;
};

struct Evaluator::Capture {
  explicit Capture(Evaluator& e) : evaluator(e), before(std::exchange(e.out_, &text)) {}
  ~Capture() {
    evaluator.out_ = before;
    evaluator.budget_.give_back(static_cast<int64_t>(text.size()));
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  std::string text;
  Evaluator& evaluator;
  std::string* before;
};

// The filter of a loop sees the item by the loop's own name, and nothing of the loop's body. Items are looked at one by
// one, so that what the body does to a namespace counts.
class Evaluator::Source {
 public:
  Source(Evaluator& e, const Node& loop, const Value& iterable)
      : evaluator_(e), loop_(loop), scope_(e.scope_), cursor_(iterable) {}
  bool next(Value& item) {
    while (cursor_.next(item)) {
      if (!loop_.of[2]) return true;
      const Inside inside(evaluator_, std::make_shared<Scope>(scope_));
      evaluator_.assign(*loop_.of[0], item);
      if (truth(evaluator_.evaluate(*loop_.of[2]))) return true;
    }
    return false;
  }
  std::optional<int64_t> size() const { return loop_.of[2] ? std::nullopt : cursor_.length(); }

 private:
  Evaluator& evaluator_;
  const Node& loop_;
  std::shared_ptr<Scope> scope_;
  Cursor cursor_;
};

Evaluator::Evaluator(const Limits& limits, std::function<std::string(const std::string&)> now)
    : budget_(limits), now_(std::move(now)) {}

Evaluator::~Evaluator() {
  for (const auto& scope : scopes_) scope->names.clear();
  for (const auto& object : kept_) static_cast<Namespace*>(object.get())->clear();
}

std::string Evaluator::render(const Body& body, const nlohmann::ordered_json& variables) {
  scope_ = std::make_shared<Scope>(nullptr);
  for (const auto& [name, value] : variables.items()) scope_->set(name, from_json(value));
  const Capture capture(*this);
  const Inside inside(*this);
  run(body);
  return capture.text;
}

void Evaluator::write(std::string_view text) {
  budget_.take(static_cast<int64_t>(text.size()));
  *out_ += text;
}

std::string Evaluator::captured(const Body& body) {
  const Capture capture(*this);
  run(body);
  return capture.text;
}

void Evaluator::run_scope(const Body& body) {
  const Inside inside(*this);
  run(body);
}

Evaluator::Flow Evaluator::run(const Body& body) {
  const Level level(budget_);
  for (const auto& node : body)
    if (const auto flow = run(*node); flow != Flow::on) return flow;
  return Flow::on;
}

Evaluator::Flow Evaluator::run(const Node& node) {
  budget_.step();
  line_ = node.line;
  switch (node.kind) {
    case NodeKind::data:
      write(node.name);
      break;
    case NodeKind::print: {
      for (const auto& part : node.of) {
        const auto value = evaluate(*part);
        if (const auto* text = text_of(value))
          write(*text);
        else
          write(str(value));
      }
      break;
    }
    case NodeKind::branch:
      return run_branch(node);
    case NodeKind::loop:
      return run_loop_statement(node, evaluate(*node.of[1]), 0);
    case NodeKind::set:
      assign(*node.of[0], evaluate(*node.of[1]));
      break;
    case NodeKind::set_block: {
      std::optional<Value> text;
      {
        const Inside inside(*this);
        text = Value(captured(node.bodies[0]));
        if (node.of[1]) text = filtered(*node.of[1], text);
      }
      assign(*node.of[0], *text);
      break;
    }
    case NodeKind::macro:
      scope_->set(node.name, macro_value(node));
      break;
    case NodeKind::call_block: {
      const auto& made = *node.of[0];
      const auto function = evaluate(*made.of[0]);
      auto arguments = arguments_of(made.arguments);
      arguments.named.emplace_back("caller", macro_value(node));
      write(str(call(function, arguments)));
      break;
    }
    case NodeKind::filter_block: {
      const Inside inside(*this);
      write(str(filtered(*node.of[0], Value(captured(node.bodies[0])))));
      break;
    }
    case NodeKind::with: {
      const auto scope = std::make_shared<Scope>(scope_);
      for (size_t i = 0; i < node.of.size(); i += 2) scope->set(node.of[i]->name, evaluate(*node.of[i + 1]));
      const Inside inside(*this, scope);
      return run(node.bodies[0]);
    }
    case NodeKind::scope:
      run_scope(node.bodies[0]);
      break;
    case NodeKind::stop:
      return Flow::stop;
    case NodeKind::skip:
      return Flow::skip;
    default:
      fail("a value stands where a statement is expected");
  }
  return Flow::on;
}

Evaluator::Flow Evaluator::run_branch(const Node& node) {
  for (size_t i = 0; i < node.of.size(); ++i)
    if (truth(evaluate(*node.of[i]))) return run(node.bodies[i]);
  return node.bodies.size() > node.of.size() ? run(node.bodies.back()) : Flow::on;
}

Evaluator::Flow Evaluator::run_loop_statement(const Node& node, const Value& iterable, int64_t depth) {
  Source source(*this, node, iterable);
  const auto loop = std::make_shared<Loop>(
      node, scope_, [&source](Value& item) { return source.next(item); }, source.size(), depth);
  struct Finish {
    Loop& loop;
    ~Finish() { loop.finish(); }
  } const finish{*loop};
  bool any = false;  // whether a body has run to its end
  for (Value item; loop->next(item);) {
    const Inside inside(*this);
    scope_->set("loop", std::static_pointer_cast<Object>(loop));
    assign(*node.of[0], item);
    const auto flow = run(node.bodies[0]);
    if (flow == Flow::stop) break;
    any |= flow == Flow::on;
  }
  if (any) return Flow::on;
  const Inside inside(*this);
  return run(node.bodies[1]);
}

Value Evaluator::run_loop(const Node& loop, const std::shared_ptr<Scope>& scope, const Value& iterable,
                          int64_t depth) {
  const Inside inside(*this, scope);
  const Capture capture(*this);
  run_loop_statement(loop, iterable, depth);
  return capture.text;
}

void Evaluator::assign(const Node& target, const Value& value) {
  if (target.kind == NodeKind::name) return scope_->set(target.name, value);
  if (target.kind == NodeKind::attribute) {
    const auto place = evaluate(*target.of[0]);
    auto* names = dynamic_cast<Namespace*>(place.object());
    if (!names) fail("cannot assign attribute '{}' on a non-namespace object", target.name);
    return names->set(target.name, value);
  }
  require_defined(value);
  const auto items = items_of(value);
  if (items.size() != target.of.size())
    fail("{} values cannot be assigned to {} names", items.size(), target.of.size());
  for (size_t i = 0; i < items.size(); ++i) assign(*target.of[i], items[i]);
}

Value Evaluator::macro_value(const Node& macro) {
  if (scopes_.empty() || scopes_.back() != scope_) {
    budget_.take(sizeof(scope_));
    scopes_.push_back(scope_);
  }
  return std::static_pointer_cast<Object>(std::make_shared<Macro>(macro, scope_));
}

Value Evaluator::call_macro(const Node& macro, const std::shared_ptr<Scope>& scope, Arguments& arguments) {
  const int line = line_;
  const Inside inside(*this, std::make_shared<Scope>(scope));
  bind_macro(macro, macro.name, arguments);
  auto text = captured(macro.bodies[0]);
  line_ = line;
  return text;
}

// Parameters, then what else the body may name: caller, varargs, kwargs.
void Evaluator::bind_macro(const Node& macro, const std::string& name, Arguments& arguments) {
  const size_t count = macro.parameters.size(), first_default = macro.kind == NodeKind::call_block ? 1 : 0,
               defaults = macro.of.size() - first_default;
  auto named = std::move(arguments.named);
  const auto take = [&](const std::string& wanted) -> std::optional<Value> {
    const auto at =
        std::find_if(named.begin(), named.end(), [&](const auto& entry) { return entry.first == wanted; });
    if (at == named.end()) return std::nullopt;
    auto value = std::move(at->second);
    named.erase(at);
    return value;
  };
  bool has_caller = false;
  for (size_t i = 0; i < count; ++i) {
    const auto& parameter = macro.parameters[i];
    has_caller |= parameter == "caller";
    if (i < arguments.positional.size()) {
      scope_->set(parameter, arguments.positional[i]);
    } else if (auto value = take(parameter)) {
      scope_->set(parameter, std::move(*value));
    } else if (i + defaults >= count) {
      scope_->set(parameter, evaluate(*macro.of[first_default + i + defaults - count]));
    } else {
      scope_->set(parameter, make_undefined(fmt::format("parameter '{}' was not provided", parameter)));
    }
  }
  if (macro.names_caller && !has_caller)
    scope_->set("caller", take("caller").value_or(make_undefined("No caller defined")));
  if (macro.names_kwargs) {
    Dict::Entries entries;
    for (auto& [key, value] : named) entries.emplace_back(Value(key), std::move(value));
    named.clear();
    scope_->set("kwargs", make_dict(std::move(entries)));
  }
  if (!named.empty()) fail("macro '{}' takes no keyword argument '{}'", name, named.front().first);
  Values rest;
  for (size_t i = count; i < arguments.positional.size(); ++i) rest.push_back(arguments.positional[i]);
  if (macro.names_varargs)
    scope_->set("varargs", make_tuple(std::move(rest)));
  else if (!rest.empty())
    fail("macro '{}' takes not more than {} argument(s)", name, count);
}

}  // namespace weft::jinja
