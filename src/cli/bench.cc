// `weft bench`: machine, floor and percentage beside every time, all measured in one run.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "bench/machine.h"
#include "bench/model.h"
#include "bench/ops.h"
#include "cli/command.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "cli/signals.h"

namespace weft::cli {
namespace {

using nlohmann::json;

struct BenchFlags {
  std::string what, subject, filter, dtype = "fp32", json_file;
  bool quick = false;
  int64_t steps = 5, prompt = 512, tokens = 64;
  std::vector<std::string> only, set;
  void flags(Flags& f) {
    f.argument("what", what, "ops, or model");
    f.argument("subject", subject, "with model: a recipe (training, prompt, generation) or a model directory",
               false);
    f("--filter", filter, "ops: only those with this in their name or shape");
    f("--dtype", dtype, "fp32, bf16 or fp16");
    f("--quick", quick, "ops: fewer samples");
    f("--steps", steps, "model: training steps to time");
    f("--prompt", prompt, "model: tokens of the prompt");
    f("--tokens", tokens, "model: tokens to generate");
    f("--only", only, "model: train, prefill or generate; may be given several times");
    f("--set", set, "model: changes one field of the recipe, as run.batch=4; may be given several times");
    f("--json", json_file, "also write everything to this file");
  }
};

// Three significant digits or so, without exponents.
std::string number(double value) {
  const int digits = value >= 100 ? 0 : value >= 10 ? 1 : value >= 1 ? 2 : value >= 0.1 ? 3 : 4;
  return fmt::format("{:.{}f}", value, digits);
}

std::string head(const bench::Machine& machine) {
  return fmt::format(
      "machine  {}\nload     {}\ncopy     {:.1f} GB/s (read + written)\nproduct  {:.0f} GFLOP/s ({})\n",
      machine.name, machine.load.empty() ? "unknown" : machine.load, machine.rates.copy / 1e9,
      machine.rates.flops / 1e9, machine.product);
}

json json_of(const bench::Timing& timing) {
  return {{"median_s", timing.median_s},
          {"best_s", timing.best_s},
          {"spread", timing.spread},
          {"samples", timing.samples}};
}

json json_of(const bench::Machine& machine) {
  return {{"name", machine.name},
          {"load", machine.load},
          {"copy_bytes_per_s", machine.rates.copy},
          {"flops_per_s", machine.rates.flops},
          {"product", machine.product}};
}

json json_of(const bench::Row& row) {
  json result{{"op", row.op},
              {"shape", row.shape},
              {"pass", row.pass},
              {"dtype", row.dtype},
              {"kernel", row.kernel},
              {"bytes", row.work.bytes},
              {"flops", row.work.flops},
              {"floor_s", row.floor_s},
              {"percent_of_floor", row.percent()},
              {"peer_name", row.peer_name},
              {"wrong", row.weft_wrong},
              {"peer_wrong", row.peer_wrong}};
  if (row.weft) result["weft"] = json_of(*row.weft);
  if (row.peer) result["peer"] = json_of(*row.peer);
  return result;
}

json json_of(const bench::ModelRow& row) {
  return {{"part", row.part},
          {"shape", row.shape},
          {"tokens_per_s", row.tokens_per_second()},
          {"tokens_per_s_best", row.tokens / row.timing.best_s},
          {"timing", json_of(row.timing)},
          {"bytes", row.work.bytes},
          {"flops", row.work.flops},
          {"floor_s", row.floor_s},
          {"percent_of_floor", row.percent()}};
}

void save(const BenchFlags& flags, const json& report) {
  if (!flags.json_file.empty()) write_atomically(flags.json_file, report.dump(1) + "\n");
}

constexpr const char* kColumns =
    "{:<20} {:<24} {:<4} {:>8} {:>8} {:>5} {:>7} {:>8} {:>8} {:>4} {:>8} {:>5}\n";

std::string ops_line(const bench::Row& row) {
  if (!row.weft)
    return fmt::format("{:<20} {:<24} {:<4} WRONG: {}\n", row.op, row.shape, row.pass, row.weft_wrong);
  const auto ms = [](double seconds) { return number(1e3 * seconds); };
  return fmt::format(kColumns, row.op, row.shape, row.pass, ms(row.weft->median_s), ms(row.weft->best_s),
                     fmt::format("{:.0f}%", 100 * row.weft->spread), number(row.work.bytes / 1e6),
                     number(row.work.flops / 1e6), ms(row.floor_s), fmt::format("{:.0f}", row.percent()),
                     row.peer ? ms(row.peer->median_s) : "WRONG", row.peer ? number(row.speedup()) : "");
}

// Peers by name, with the ops they stand beside; and what is wrong with any.
std::string footnotes(const std::vector<bench::Row>& rows) {
  std::string text = "\npeers, in the same run and in turns:\n";
  std::vector<std::string> seen;
  for (const auto& row : rows) {
    const auto line = fmt::format("  {}: {}\n", row.op, row.peer_name);
    if (std::find(seen.begin(), seen.end(), line) != seen.end()) continue;
    seen.push_back(line);
    text += line;
    if (!row.peer_wrong.empty()) text += fmt::format("    WRONG: {}\n", row.peer_wrong);
  }
  return text;
}

int bench_ops(const BenchFlags& flags, const Session& session) {
  require(flags.subject.empty(), "bench ops takes no '{}'; choose ops with --filter", flags.subject);
  const auto dtype = dtype_named(flags.dtype);
  require(dtype != at::kDouble,
          "--dtype fp64: fp64 runs the reference, which is not timed; give fp32, bf16 or fp16");
  const auto device = session_device(session);
  const StopSignals signals;
  const auto machine = bench::look_at_machine(device, dtype);
  print("{}\n", head(machine));
  print(kColumns, "op (" + flags.dtype + ")", "shape", "", "ms", "best", "+-", "MB", "MFLOP", "floor", "%",
        "peer ms", "x");
  bench::OpsOptions options{.device = device, .timing = {}};
  if (flags.quick) options.timing.samples = 3, options.timing.minimum_s = 0.05, options.timing.warm_up = 1;
  std::vector<bench::Row> rows;
  bool wrong = false;
  for (const auto& subject : bench::op_cases(dtype, device)) {
    if ((subject.op + " " + subject.shape).find(flags.filter) == std::string::npos) continue;
    signals.check();
    for (const auto& row : bench::run_op(subject, machine.rates, options)) {
      write_output(ops_line(row), true);
      wrong = wrong || !row.weft_wrong.empty() || !row.peer_wrong.empty();
      rows.push_back(row);
    }
  }
  require(!rows.empty(), "--filter {}: no op has this in its name or shape", flags.filter);
  write_output(footnotes(rows));
  json report{{"machine", json_of(machine)}, {"rows", json::array()}};
  for (const auto& row : rows) report["rows"].push_back(json_of(row));
  save(flags, report);
  return wrong ? 1 : 0;
}

bench::ModelSubject open_subject(const BenchFlags& flags, at::ScalarType dtype, const Session& session) {
  const bool recipe = std::filesystem::is_regular_file(flags.subject);
  if (recipe)
    return bench::subject_of_recipe(load_recipe(flags.subject, flags.set), session_device(session), dtype);
  require(flags.set.empty(), "--set changes a recipe, but {} is not a file", flags.subject);
  auto loaded = open_model(flags.subject, flags.dtype, session);
  return {.name = loaded.model->options().name, .model = std::move(loaded.model), .optimizer = {}};
}

int bench_model(const BenchFlags& flags, const Session& session) {
  require(!flags.subject.empty(), "bench model: give a recipe or a model directory");
  require(flags.steps >= 1 && flags.prompt >= 1 && flags.tokens >= 1,
          "--steps, --prompt and --tokens must be at least 1");
  const auto dtype = dtype_named(flags.dtype);
  auto subject = open_subject(flags, dtype, session);
  const auto machine = bench::look_at_machine(session_device(session), dtype);
  const double parameters = static_cast<double>(subject.model->parameter_count());
  print("{}model    {}, {} parameters, {}\n\n", head(machine), subject.name, count_text(parameters),
        flags.dtype);
  bench::ModelBench options{.steps = flags.steps, .prompt = flags.prompt, .generate = flags.tokens};
  if (!flags.only.empty()) options.parts = flags.only;
  if (flags.only.empty() && subject.optimizer.is_null()) options.parts = {"prefill", "generate"};
  const auto rows = bench::run_model(subject, machine.rates, options);
  std::vector<std::vector<std::string>> lines{
      {"part", "shape", "tokens/s", "best", "+-", "ms", "MB", "GFLOP", "floor ms", "%"}};
  json report{{"machine", json_of(machine)},
              {"model", subject.name},
              {"parameters", parameters},
              {"rows", json::array()}};
  for (const auto& row : rows) {
    report["rows"].push_back(json_of(row));
    lines.push_back({row.part, row.shape, number(row.tokens_per_second()),
                     number(row.tokens / row.timing.best_s), fmt::format("{:.0f}%", 100 * row.timing.spread),
                     number(1e3 * row.timing.median_s), number(row.work.bytes / 1e6),
                     number(row.work.flops / 1e9), number(1e3 * row.floor_s),
                     fmt::format("{:.0f}", row.percent())});
  }
  write_output(table(lines, {2, 3, 4, 5, 6, 7, 8, 9}));
  save(flags, report);
  return 0;
}

int run(const BenchFlags& flags, const Session& session) {
  if (flags.what == "ops") return bench_ops(flags, session);
  require(flags.what == "model", "bench {}: expected ops or model", flags.what);
  return bench_model(flags, session);
}

const Command register_bench{"bench", "times of ops and models against what the machine allows", run};

}  // namespace
}  // namespace weft::cli
