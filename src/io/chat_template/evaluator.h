// Runs a parsed template. Statements are in evaluate_statements.cc, expressions in evaluate_expressions.cc, loops,
// macros and namespaces in objects.cc.
#pragma once

#include <functional>

#include "io/chat_template/syntax.h"
#include "io/chat_template/value.h"

namespace weft::jinja {

// The names known at a place: those of this scope, then those of the scopes around it.
struct Scope {
  explicit Scope(std::shared_ptr<Scope> around) : outer(std::move(around)) {}
  const Value* find(const std::string& name) const;
  void set(const std::string& name, Value value);
  std::shared_ptr<Scope> outer;
  std::vector<std::pair<std::string, Value>> names;
};

class Evaluator {
 public:
  // `now` gives strftime_now its text for a format.
  Evaluator(const Limits& limits, std::function<std::string(const std::string&)> now);
  ~Evaluator();
  // The output of a template with these variables. Throws TemplateError; line() is then where.
  std::string render(const Body& body, const nlohmann::ordered_json& variables);
  int line() const { return line_; }

  // For functions, filters and tests.
  Value call(const Value& function, Arguments& arguments);
  Value filter(const std::string& name, const Value& input, Arguments& arguments);
  bool test(const std::string& name, const Value& value, Arguments& arguments);
  Value call_macro(const Node& macro, const std::shared_ptr<Scope>& scope, Arguments& arguments);
  Value run_loop(const Node& loop, const std::shared_ptr<Scope>& scope, const Value& iterable, int64_t depth);
  std::string time_text(const std::string& format) const { return now_(format); }
  void keep(const std::shared_ptr<Object>& object) { kept_.push_back(object); }
  Budget& budget() { return budget_; }

 private:
  enum class Flow { on, stop, skip };
  struct Inside;   // a scope for as long as it lives
  struct Capture;  // output into a text of its own for as long as it lives
  class Source;    // the items of a loop that its filter lets through

  Value evaluate(const Node& node);
  Value compute(const Node& node);
  Value compute_call(const Node& node);
  Value compute_compare(const Node& node);
  Value compute_items(const Node& node);
  Value concatenate(const Node& node);
  Value resolve(const Node& node) const;
  Arguments arguments_of(const CallArguments& given);
  Value filtered(const Node& node, const std::optional<Value>& block);

  Flow run(const Body& body);
  Flow run(const Node& node);
  Flow run_branch(const Node& node);
  Flow run_loop_statement(const Node& node, const Value& iterable, int64_t depth);
  void run_scope(const Body& body);
  std::string captured(const Body& body);
  void write(std::string_view text);
  void assign(const Node& target, const Value& value);
  void define(const Node& macro);
  Value macro_value(const Node& macro);
  void bind_macro(const Node& macro, const std::string& name, Arguments& arguments);

  Budget budget_;  // first, since it outlives all values
  std::function<std::string(const std::string&)> now_;
  std::shared_ptr<Scope> scope_;
  std::vector<std::shared_ptr<Scope>> scopes_;  // that macros hold, which may hold them
  std::vector<std::shared_ptr<Object>> kept_;   // namespaces, which may hold themselves
  std::string* out_ = nullptr;
  int line_ = 1;
};

// Filters, tests and functions by name; null where there is none.
using FilterFunction = Value (*)(Evaluator&, const Value&, Arguments&);
using TestFunction = bool (*)(const Value&, Arguments&);
struct FilterTable {
  const char* name;
  FilterFunction run;
};
FilterFunction find_filter(const std::string& name);
TestFunction find_test(const std::string& name);
std::vector<std::string> filter_names();
std::vector<std::string> test_names();
const std::vector<FilterTable>& text_filters();
const std::vector<FilterTable>& sequence_filters();
const std::vector<FilterTable>& choice_filters();
const std::vector<FilterTable>& value_filters();
// range, dict, namespace, cycler, joiner, raise_exception, strftime_now.
std::optional<Value> global_function(const std::string& name);

}  // namespace weft::jinja
