#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "nn/conformance.h"

namespace weft::cli {
namespace {

struct CheckFlags {
  std::string name, cases;
  std::vector<std::string> one;
  int64_t seed = 1;
  void flags(Flags& f) {
    f.argument("name", name, "mixer to check; without it all are checked", false);
    f("--case", one, "a case of your own, as \"{mixer: NAME, heads: 2}\"; may be given several times");
    f("--cases", cases, "YAML file with a list of cases");
    f("--seed", seed, "of the random inputs");
  }
};

Node list_of(const std::vector<std::string>& cases) {
  Node list = Node::list();
  for (const auto& text : cases) list.push_back(Node::parse(text, "--case"));
  return list;
}

// The default options of a mixer that nobody wrote a case for, as plug-ins have none.
CheckCase default_case(const std::string& name) {
  Node node = Node::map();
  node.set_child("mixer", Node::scalar(name));
  return {.covers = name, .node = node};
}

std::vector<CheckCase> chosen_cases(const CheckFlags& flags) {
  if (!flags.one.empty() || !flags.cases.empty()) {
    require(flags.name.empty(), "{}: give the name of a mixer, or --case and --cases, not both", flags.name);
    auto cases = read_check_cases(list_of(flags.one));
    if (!flags.cases.empty())
      for (auto& subject : read_check_cases(Node::load(flags.cases))) cases.push_back(std::move(subject));
    return cases;
  }
  auto cases = builtin_check_cases();
  const auto covered = [&](const std::string& name) {
    return std::any_of(cases.begin(), cases.end(),
                       [&](const auto& subject) { return subject.covers == name; });
  };
  if (!flags.name.empty() && !covered(flags.name))
    find_mixer(Node::scalar(flags.name));  // InputError with the nearest name
  for (const auto& name : mixer_names())
    if (!covered(name)) cases.push_back(default_case(name));
  if (!flags.name.empty())
    std::erase_if(cases, [&](const auto& subject) { return subject.covers != flags.name; });
  return cases;
}

std::vector<std::string> row_of(const CheckResult& result) {
  if (result.verdict == CheckResult::Verdict::not_applicable)
    return {"  -", result.form, "", "", result.detail};
  return {result.verdict == CheckResult::Verdict::pass ? "  ok" : "  FAIL", result.form,
          fmt::format("{:.1e}", result.error), fmt::format("{:.1e}", result.bound), result.detail};
}

std::string one_line(std::string text) {
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text;
}

int run(const CheckFlags& flags, const Session& session) {
  const StopSignals signals;
  const auto device = session_device(session);
  int64_t failed = 0, passed = 0;
  for (const auto& subject : chosen_cases(flags)) {
    signals.check();
    std::vector<std::vector<std::string>> rows;
    for (const auto& result : check_mixer(subject, static_cast<uint64_t>(flags.seed), device)) {
      failed += result.verdict == CheckResult::Verdict::fail;
      passed += result.verdict == CheckResult::Verdict::pass;
      if (!session.quiet || result.verdict == CheckResult::Verdict::fail) rows.push_back(row_of(result));
    }
    if (!rows.empty())
      print("{}: {}\n{}", subject.covers, one_line(subject.node.dump()), table(rows, {2, 3}));
    flush_output();
  }
  print("{} checks passed, {} failed\n", passed, failed);
  return failed > 0 ? 1 : 0;
}

const Command register_check{"check", "prove that all forms of a mixer agree, also of a plug-in's", run};

}  // namespace
}  // namespace weft::cli
