// Options, declared once. A struct of options has
//     void fields(Fields& f) { f("heads", heads, "H, number of heads", at_least(1)); ... }
// and from that come the YAML reader, its error messages, the resolved configuration, `weft mixers NAME` and
// the tables in docs. Member initialisers are the defaults.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/config.h"

namespace weft {

// A condition on a value: returns "" when it holds, else what was expected ("must be at least 1").
struct Check {
  std::function<std::string(double)> number;
  std::function<std::string(const std::string&)> text;
  std::string summary;  // for tables: ">= 1"
};
Check at_least(double bound);
Check above(double bound);
Check at_most(double bound);
Check below(double bound);
Check one_of(std::vector<std::string> names);

using FieldValue = std::variant<int64_t*, double*, bool*, std::string*, std::vector<int64_t>*,
                                std::vector<double>*, std::vector<std::string>*, Node*>;

struct Field {
  std::string name;
  FieldValue value;
  std::string help;
  std::vector<Check> checks;
};

// Receives one call for each option. Subclasses read, write or list.
class Fields {
 public:
  virtual ~Fields() = default;
  template <class T, class... Checks>
  void operator()(const char* name, T& value, const char* help, Checks... checks) {
    visit(Field{name, &value, help, {std::move(checks)...}});
  }
  // "file:line: path.name" of a field while reading; for checks between fields inside fields().
  virtual std::string where(std::string_view name) const { return std::string(name); }

 protected:
  virtual void visit(const Field& field) = 0;
};

struct FieldInfo {
  std::string name, type, default_value, limits, help;
};

// Reads one field after another from a map node; `finish` rejects keys that no field asked for.
class FieldReader final : public Fields {
 public:
  // `owner` names the thing configured in messages ("gated_delta_net"); `ignore` are keys that others read.
  FieldReader(const Node& node, std::string owner, std::vector<std::string> ignore = {});
  std::string where(std::string_view name) const override;
  void finish() const;

 protected:
  void visit(const Field& field) override;

 private:
  const Node& node_;
  std::string owner_;
  std::vector<std::string> ignore_, known_;
};

template <class Options>
Options read_options(const Node& node, const std::string& owner, std::vector<std::string> ignore = {}) {
  Options options;
  FieldReader reader(node, owner, std::move(ignore));
  options.fields(reader);
  reader.finish();
  return options;
}

class FieldLister final : public Fields {
 public:
  std::vector<FieldInfo> fields;

 protected:
  void visit(const Field& field) override;
};

// Name, type, default, limits and meaning of every option: for help and docs.
template <class Options>
std::vector<FieldInfo> list_options() {
  Options options;
  FieldLister lister;
  options.fields(lister);
  return std::move(lister.fields);
}

class FieldWriter final : public Fields {
 public:
  Node node = Node::map();

 protected:
  void visit(const Field& field) override;
};

// The options as a map node, every field written out: for the resolved configuration.
template <class Options>
Node write_options(Options options) {
  FieldWriter writer;
  options.fields(writer);
  return std::move(writer.node);
}

}  // namespace weft
