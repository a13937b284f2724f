#include <unistd.h>

#include <climits>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "cli/command.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "study/reproduce.h"

namespace weft::cli {
namespace {

constexpr int kRefuted = 3;

struct ReproduceFlags {
  std::string recipe, size = "cpu", folder, json, run;
  std::vector<std::string> set;
  bool list = false;
  int64_t jobs = 0;
  void flags(Flags& f) {
    f.argument("recipe", recipe, "recipe file, its folder, or a name from ./recipes", false);
    f("--list", list, "all recipes in ./recipes: sizes, arms, claims");
    f("--size", size, "smoke, cpu or h100, as far as the recipe has it");
    f("--set", set, "changes one field of every arm, as run.steps=200; may be given several times");
    f("--jobs", jobs, "runs at a time; 0: one for each core");
    f("--folder", folder, "where the runs go; empty: runs/reproduce/SYSTEM-SIZE");
    f("--json", json, "writes the results to this file as well");
    f("--run", run, "one run only, ARM:SEED, in this process");
  }
};

std::string own_path() {
  char path[PATH_MAX];
  const auto length = readlink("/proc/self/exe", path, sizeof path);
  require(length > 0, "reproduce: /proc/self/exe cannot be read");
  return {path, static_cast<size_t>(length)};
}

int list_recipes() {
  std::vector<std::vector<std::string>> rows = {{"recipe", "sizes", "arms", "claims", "what"}};
  for (const auto& file : find_studies("recipes")) {
    const auto sizes = study_sizes(file);
    const auto study = load_study(file, "cpu");
    if (study.claims.empty()) continue;
    rows.push_back({study.system, join(sizes, " "), std::to_string(study.arms.size()),
                    std::to_string(study.claims.size()), study.title});
  }
  require(rows.size() > 1, "recipes/: no recipes with claims below the current folder");
  print("{}", table(rows, {2, 3}));
  return 0;
}

std::string measured_text(const Verdict& verdict) {
  if (verdict.seeds == 0) return "-";
  if (verdict.seeds == 1) return fmt::format("{:.4g}", verdict.mean);
  return fmt::format("{:.4g} ({:.4g} to {:.4g})", verdict.mean, verdict.low, verdict.high);
}

void print_arms(const Study& study, const std::vector<RunResult>& results) {
  const auto metrics = shown_metrics(study);
  std::vector<std::vector<std::string>> rows = {{"arm"}};
  std::vector<size_t> right;
  for (const auto& metric : metrics) {
    rows[0].push_back(metric);
    right.push_back(rows[0].size() - 1);
  }
  for (const auto& arm : study.arms) {
    rows.push_back({arm.name});
    for (const auto& metric : metrics) {
      Claim all;
      all.metric = metric;
      all.arm = arm.name;
      rows.back().push_back(measured_text(judge(all, results, "smoke")));
    }
  }
  print("{}\n", table(rows, right));
}

// Prints the claims; true when none is refuted.
bool print_claims(const Study& study, const std::vector<RunResult>& results) {
  bool good = true;
  std::vector<std::vector<std::string>> rows = {{"claim", "published", "measured", "needed", "verdict"}};
  for (const auto& claim : study.claims) {
    const auto verdict = judge(claim, results, study.size);
    good = good && verdict.kind != Verdict::Kind::refuted;
    rows.push_back({claim.name, claim.published.empty() ? "-" : claim.published, measured_text(verdict),
                    fmt::format("{} ({})", bound_text(claim), claim.threshold), verdict_text(verdict.kind)});
  }
  print("{}", table(rows));
  return good;
}

std::string command_text(const ReproduceFlags& flags) {
  auto text = fmt::format("weft reproduce {} --size {}", flags.recipe, flags.size);
  for (const auto& set : flags.set) text += " --set " + set;
  if (flags.jobs > 0) text += fmt::format(" --jobs {}", flags.jobs);
  return text;
}

int run_one(const ReproduceFlags& flags, const Study& study, const Session& session) {
  const auto colon = flags.run.rfind(':');
  require(colon != std::string::npos && colon > 0 && !flags.folder.empty(),
          "--run {}: expected ARM:SEED, with --folder", flags.run);
  const auto digits = flags.run.substr(colon + 1);
  require(
      !digits.empty() && digits.size() < 18 && digits.find_first_not_of("0123456789") == std::string::npos,
      "--run {}: expected ARM:SEED", flags.run);
  const StopSignals signals;
  const bool done = run_arm(study, flags.run.substr(0, colon), std::stoll(digits), flags.folder,
                            session_device(session), [&] { return signals.received(); });
  return done ? 0 : signals.exit_code();
}

int run(const ReproduceFlags& flags, const Session& session) {
  if (flags.list) return list_recipes();
  require(!flags.recipe.empty(), "reproduce: give a recipe; weft reproduce --list shows them");
  const auto study = load_study(flags.recipe, flags.size, flags.set);
  if (!flags.run.empty()) return run_one(flags, study, session);
  require(flags.jobs >= 0, "--jobs {}: expected the number of runs at a time, or 0", flags.jobs);
  const auto device = session_device(session);
  const auto folder =
      flags.folder.empty() ? fmt::format("runs/reproduce/{}-{}", study.system, study.size) : flags.folder;
  require(!std::filesystem::exists(folder) || std::filesystem::is_directory(folder),
          "--folder {}: is not a folder", folder);
  ReproduceOptions options{
      .folder = folder, .jobs = flags.jobs, .threads = session.threads, .command = {}, .out = nullptr};
  options.command = {own_path(), "reproduce", study.path, "--size", flags.size, "--device", device.str()};
  for (const auto& set : flags.set) options.command.insert(options.command.end(), {"--set", set});
  for (const auto& plugin : session.plugins)
    options.command.insert(options.command.end(), {"--plugin", plugin});
  auto lines = LineOutput::to(stderr, session.quiet);
  lines.line(fmt::format("{}: {} ({} arms, {} seeds, size {}) in {}", study.system, study.title,
                         study.arms.size(), study.seeds.size(), study.size, folder));
  const StopSignals signals;
  options.out = &lines;
  options.stop = [&] { return signals.received(); };
  auto from = provenance_now(device.str(), study.folder, command_text(flags));
  const auto result = reproduce(study, options);
  if (result.stopped) {
    note(fmt::format("stopped; the same command goes on, in {}", folder));
    return signals.exit_code();
  }
  for (const auto& one : result.results)
    if (const auto seconds = one.metrics.find("seconds"); seconds != one.metrics.end())
      from.seconds += seconds->second;
  print_arms(study, result.results);
  const bool good = print_claims(study, result.results);
  const auto text = results_json(study, result.results, from);
  write_atomically(folder + "/results.json", text);
  if (!flags.json.empty()) write_atomically(flags.json, text);
  write_atomically(folder + "/results.svg", results_svg(study, result.results));
  note(fmt::format("{0}/results.json  {0}/results.svg", folder));
  if (!result.failures.empty()) throw InputError("runs that failed:\n  " + join(result.failures, "\n  "));
  std::string unjudged;
  for (const auto& claim : study.claims)
    if (judge(claim, result.results, study.size).kind == Verdict::Kind::not_run)
      unjudged += fmt::format("\n  {}: {}", claim.name, quantity_text(claim));
  require(unjudged.empty(), "claims that could not be judged, since a number is missing or not finite:{}",
          unjudged);
  return good ? 0 : kRefuted;
}

const Command register_reproduce{"reproduce", "run a recipe's arms and judge its claims", run};

}  // namespace
}  // namespace weft::cli
