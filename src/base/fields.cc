#include "base/fields.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;  // clang 16 does not deduce it by itself

Check numeric(std::string symbol, std::string words, double bound, bool (*holds)(double, double)) {
  return {
      .number =
          [=](double value) { return holds(value, bound) ? "" : fmt::format("must be {} {}", words, bound); },
      .text = nullptr,
      .summary = fmt::format("{} {}", symbol, bound)};
}

Node number_node(double value) { return Node::scalar(fmt::format("{}", value)); }

template <class T, class Write>
Node list_node(const std::vector<T>& values, Write write) {
  Node node = Node::list();
  for (const auto& value : values) node.push_back(write(value));
  return node;
}

Node to_node(const FieldValue& value) {
  return std::visit(Overloaded{[](int64_t* v) { return Node::scalar(fmt::format("{}", *v)); },
                               [](double* v) { return number_node(*v); },
                               [](bool* v) { return Node::scalar(*v ? "true" : "false"); },
                               [](std::string* v) { return Node::scalar(*v); },
                               [](std::vector<int64_t>* v) {
                                 return list_node(
                                     *v, [](int64_t i) { return Node::scalar(fmt::format("{}", i)); });
                               },
                               [](std::vector<double>* v) { return list_node(*v, number_node); },
                               [](std::vector<std::string>* v) {
                                 return list_node(*v, [](const std::string& s) { return Node::scalar(s); });
                               },
                               [](Node* v) { return *v; }},
                    value);
}

const char* type_name(const FieldValue& value) {
  static constexpr const char* names[] = {"int",         "float",         "bool",         "text",
                                          "list of int", "list of float", "list of text", "YAML"};
  return names[value.index()];
}

}  // namespace

Check at_least(double bound) {
  return numeric(">=", "at least", bound, [](double v, double b) { return v >= b; });
}
Check above(double bound) {
  return numeric(">", "above", bound, [](double v, double b) { return v > b; });
}
Check at_most(double bound) {
  return numeric("<=", "at most", bound, [](double v, double b) { return v <= b; });
}
Check below(double bound) {
  return numeric("<", "below", bound, [](double v, double b) { return v < b; });
}

Check one_of(std::vector<std::string> names) {
  const std::string summary = join(names, " | ");
  return {.number = nullptr,
          .text = [names = std::move(names)](const std::string& value) -> std::string {
            if (std::find(names.begin(), names.end(), value) != names.end()) return "";
            return "must be one of " + join(names);
          },
          .summary = summary};
}

FieldReader::FieldReader(const Node& node, std::string owner, std::vector<std::string> ignore)
    : node_(node), owner_(std::move(owner)), ignore_(std::move(ignore)) {
  require(node.is_map() || node.is_null(), "{}: {} expects fields (name: value)", node.where(), owner_);
}

std::string FieldReader::where(std::string_view name) const {
  if (const Node* child = node_.find(name)) return child->where();
  return fmt::format("{}.{}", node_.where(), name);
}

void FieldReader::visit(const Field& field) {
  known_.push_back(field.name);
  const Node* node = node_.find(field.name);
  if (!node) return;
  const auto check_number = [&](double value) {
    for (const auto& check : field.checks)
      if (check.number) {
        const std::string problem = check.number(value);
        require(problem.empty(), "{}: {} {}", node->where(), node->is_scalar() ? node->as_string() : "value",
                problem);
      }
  };
  const auto check_text = [&](const std::string& value) {
    for (const auto& check : field.checks)
      if (check.text) {
        const std::string problem = check.text(value);
        require(problem.empty(), "{}: '{}' {}", node->where(), value, problem);
      }
  };
  std::visit(Overloaded{[&](int64_t* v) { check_number(static_cast<double>(*v = node->as_int())); },
                        [&](double* v) { check_number(*v = node->as_double()); },
                        [&](bool* v) { *v = node->as_bool(); },
                        [&](std::string* v) { check_text(*v = node->as_string()); },
                        [&](std::vector<int64_t>* v) {
                          v->clear();
                          for (const auto& item : node->items())
                            check_number(static_cast<double>(v->emplace_back(item.as_int())));
                        },
                        [&](std::vector<double>* v) {
                          v->clear();
                          for (const auto& item : node->items())
                            check_number(v->emplace_back(item.as_double()));
                        },
                        [&](std::vector<std::string>* v) {
                          v->clear();
                          if (node->is_scalar()) {
                            check_text(v->emplace_back(node->as_string()));
                          } else {
                            for (const auto& item : node->items())
                              check_text(v->emplace_back(item.as_string()));
                          }
                        },
                        [&](Node* v) { *v = *node; }},
             field.value);
}

void FieldReader::finish() const {
  for (const auto& key : node_.keys()) {
    const auto is = [&](const std::string& name) { return name == key; };
    if (std::any_of(known_.begin(), known_.end(), is) || std::any_of(ignore_.begin(), ignore_.end(), is))
      continue;
    const std::string guess = nearest_word(key, known_);
    throw InputError(fmt::format("{}: unknown field{}; {} has {}", node_.find(key)->where(),
                                 guess.empty() ? "" : fmt::format(", did you mean '{}'?", guess), owner_,
                                 known_.empty() ? "no fields" : join(known_)));
  }
}

void FieldLister::visit(const Field& field) {
  std::vector<std::string> limits;
  for (const auto& check : field.checks) limits.push_back(check.summary);
  const Node value = to_node(field.value);
  std::string text = value.is_scalar()                          ? value.as_string()
                     : value.is_list() && value.items().empty() ? "[]"
                                                                : "";
  if (text.empty() && !value.is_null()) {
    text = value.dump();
    while (!text.empty() && text.back() == '\n') text.pop_back();
  }
  fields.push_back({field.name, type_name(field.value), text, join(limits), field.help});
}

void FieldWriter::visit(const Field& field) { node.set_child(field.name, to_node(field.value)); }

}  // namespace weft
