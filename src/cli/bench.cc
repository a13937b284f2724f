// `weft bench`: machine, floor and percentage beside every time, all measured in one run.
#include <ATen/Parallel.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <regex>

#include "base/error.h"
#include "base/files.h"
#include "base/text.h"
#include "bench/busy.h"
#include "bench/first_call.h"
#include "bench/machine.h"
#include "bench/mixers.h"
#include "bench/model.h"
#include "bench/ops.h"
#include "cli/bench_json.h"
#include "cli/command.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "cli/signals.h"

namespace weft::cli {
namespace {

using nlohmann::json;

struct BenchFlags {
  std::string what, subject, filter, once, dtype = "fp32", json_file;
  bool quick = false, busy = false, first_call = false;
  int64_t steps = 5, prompt = 512, tokens = 64;
  std::vector<std::string> only, set, peers;
  void flags(Flags& f) {
    f.argument("what", what, "ops, mixers, or model");
    f.argument("subject", subject, "with model: a recipe (training, prompt, generation) or a model directory",
               false);
    f("--filter", filter, "ops, mixers: only those whose name (and shape) match this regular expression");
    f("--peer", peers, "ops: command of a peer with a process of its own, as bench/peers/README.md says");
    f("--dtype", dtype, "fp32, bf16 or fp16");
    f("--quick", quick, "ops, mixers: fewer samples");
    f("--busy", busy, "ops: instead, how much slower when each core has a process that competes for it");
    f("--first-call", first_call,
      "ops: instead, how long after the start of a process the first result is there");
    f("--once", once, "ops: call the op of this name and shape once, unchecked, and say when it is done");
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
      "machine  {}\nload     {}\nopenmp   {}\ncopy     {:.1f} GB/s (read + written)\nproduct  {:.0f} GFLOP/s "
      "({})\n",
      machine.name, machine.load.empty() ? "unknown" : machine.load, bench::openmp_settings(),
      machine.rates.copy / 1e9, machine.rates.flops / 1e9, machine.product);
}

// Called at first and after each op, so that a run that is stopped leaves what it measured.
void save(const BenchFlags& flags, const json& report) {
  if (!flags.json_file.empty()) write_atomically(flags.json_file, report.dump(1) + "\n");
}

constexpr const char* kColumns =
    "{:<28} {:<24} {:<4} {:>8} {:>8} {:>5} {:>7} {:>8} {:>8} {:>4} {:>8} {:>5}  {}\n";

std::string ops_line(const bench::Row& row) {
  if (!row.weft)
    return fmt::format("{:<28} {:<24} {:<4} WRONG: {}\n", row.op, row.shape, row.pass, row.weft_wrong);
  const auto ms = [](double seconds) { return number(1e3 * seconds); };
  const auto* peer = row.best_peer();
  return fmt::format(kColumns, row.op, row.shape, row.pass, ms(row.weft->median_s), ms(row.weft->best_s),
                     fmt::format("{:.0f}%", 100 * row.weft->spread), number(row.work.bytes / 1e6),
                     number(row.work.flops / 1e6), ms(row.floor_s), fmt::format("{:.0f}", row.percent()),
                     peer                ? ms(peer->timing->median_s)
                     : row.peers.empty() ? "-"
                                         : "failed",
                     peer ? number(row.speedup()) : "", peer ? peer->name : "");
}

// What is wrong with any peer, each once.
std::string footnotes(const std::vector<bench::Row>& rows) {
  std::string text;
  std::vector<std::string> seen;
  for (const auto& row : rows)
    for (const auto& peer : row.peers) {
      const auto line = fmt::format("  {}: {}: {}\n", row.op, peer.name, peer.wrong);
      if (peer.wrong.empty() || std::find(seen.begin(), seen.end(), line) != seen.end()) continue;
      if (seen.empty()) text = "\npeers that were not timed:\n";
      seen.push_back(line);
      text += line;
    }
  return text + "\npeer: the fastest of those timed in the same run, in turns\n";
}

bool has_wrong(const bench::Row& row) {
  return !row.weft_wrong.empty() || std::any_of(row.peers.begin(), row.peers.end(),
                                                [](const auto& peer) { return !peer.wrong.empty(); });
}

std::regex filter_of(const std::string& pattern) {
  try {
    return std::regex(pattern, std::regex::ECMAScript | std::regex::icase);
  } catch (const std::regex_error&) {
    throw InputError("--filter " + pattern + " is no regular expression");
  }
}

std::string name_of(const bench::OpCase& subject) { return subject.op + " " + subject.shape; }

std::vector<bench::OpCase> chosen_cases(const BenchFlags& flags, at::ScalarType dtype, at::Device device) {
  const auto filter = filter_of(flags.filter);
  std::vector<bench::OpCase> cases;
  for (auto& subject : bench::op_cases(dtype, device))
    if (std::regex_search(name_of(subject), filter)) cases.push_back(std::move(subject));
  require(!cases.empty(), "--filter {}: no op has this in its name or shape", flags.filter);
  return cases;
}

int bench_times(const BenchFlags& flags, at::ScalarType dtype, at::Device device) {
  bench::OpsOptions options{.device = device, .timing = {}, .peers = {}};
  double patience_s = 120;
  if (device.is_cuda()) {
    options.timing = {.warm_up = 3, .samples = 20, .minimum_s = 0.02, .sample_s = 1e-3};
    patience_s = 600;  // Triton's kernels are tuned at their first call
  } else if (at::get_num_threads() > 1) {
    // libgomp's threads look for work for some milliseconds after torch's operations, ours and ggml's for less.
    options.timing.rest_s = 0.02, options.timing.sample_s = 5e-3;
  }
  if (flags.quick && device.is_cpu())
    options.timing.samples = 3, options.timing.minimum_s = 0.05, options.timing.warm_up = 1;
  const auto cases = chosen_cases(flags, dtype, device);
  for (const auto& command : flags.peers)
    options.peers.push_back(std::make_shared<bench::ExternalPeer>(command, patience_s));
  const StopSignals signals;
  const auto machine = bench::look_at_machine(device, dtype);
  const auto machine_json = json_of(machine);
  print("{}\n", head(machine));
  print(kColumns, "op (" + flags.dtype + ")", "shape", "", "ms", "best", "+-", "MB", "MFLOP", "floor", "%",
        "peer ms", "x", "peer");
  std::vector<bench::Row> rows;
  json report = json::array();
  save(flags, report);
  bool wrong = false;
  for (const auto& subject : cases) {
    signals.check();
    for (const auto& row : bench::run_op(subject, machine.rates, options)) {
      write_output(ops_line(row), true);
      wrong = wrong || has_wrong(row);
      report.push_back(json_of(row, machine_json));
      rows.push_back(row);
    }
    save(flags, report);
  }
  write_output(footnotes(rows));
  return wrong ? 1 : 0;
}

int bench_busy(const BenchFlags& flags, at::ScalarType dtype, at::Device device) {
  supported(device.is_cpu(), "--busy: competes for the cores of the CPU; give --device cpu");
  constexpr const char* columns = "{:<28} {:<24} {:<4} {:>8} {:>5} {:>8} {:>5} {:>6}\n";
  const auto cases = chosen_cases(flags, dtype, device);
  const StopSignals signals;
  bench::Competitors competitors;
  const auto machine = bench::look_at_machine(device, dtype);
  const auto machine_json = json_of(machine);
  print("{}busy     {} processes, one on each core\n\n", head(machine), competitors.count());
  print(columns, "op (" + flags.dtype + ")", "shape", "", "ms", "+-", "busy ms", "+-", "x");
  bench::BusyOptions options;
  if (flags.quick) options.timing.samples = 3, options.timing.minimum_s = 0, options.timing.sample_s = 0.05;
  json report = json::array();
  save(flags, report);
  bool wrong = false;
  double worst = 0;
  for (const auto& subject : cases) {
    signals.check();
    for (const auto& row : bench::run_busy(subject, competitors, options)) {
      const auto spread = [](const bench::Timing& t) { return fmt::format("{:.0f}%", 100 * t.spread); };
      if (row.wrong.empty())
        print(columns, row.op, row.shape, row.pass, number(1e3 * row.free.median_s), spread(row.free),
              number(1e3 * row.busy.median_s), spread(row.busy), number(row.slowdown()));
      else
        print("{:<28} {:<24} {:<4} WRONG: {}\n", row.op, row.shape, row.pass, row.wrong);
      flush_output();
      wrong = wrong || !row.wrong.empty();
      worst = std::max(worst, row.slowdown());
      report.push_back(json_of(row, competitors.count(), machine_json));
    }
    save(flags, report);
  }
  print("\nlargest slowdown {}; two is a fair share of each core\n", number(worst));
  return wrong ? 1 : 0;
}

int bench_first_call(const BenchFlags& flags, const Session& session, at::ScalarType dtype,
                     at::Device device) {
  const auto program = std::filesystem::read_symlink("/proc/self/exe").string();
  const auto machine = bench::look_at_machine(device, dtype);
  const auto machine_json = json_of(machine);
  constexpr const char* columns = "{:<28} {:<24} {:<4} {:>12} {:>8} {:>12}\n";
  print("{}\n", head(machine));
  print(columns, "op (" + flags.dtype + ")", "shape", "", "from start s", "call s", "and inputs s");
  const StopSignals signals;
  json report = json::array();
  save(flags, report);
  for (const auto& subject : chosen_cases(flags, dtype, device)) {
    signals.check();
    const auto command =
        fmt::format("'{}' bench ops --once '{}' --dtype {} --threads {} --device '{}'", program,
                    name_of(subject), flags.dtype, at::get_num_threads(), session.device);
    for (const auto& call : bench::first_calls(command)) {
      const auto seconds = [](double value) { return fmt::format("{:.3f}", value); };
      print(columns, subject.op, subject.shape, call.pass, seconds(call.start_s), seconds(call.call_s),
            seconds(call.inputs_s));
      flush_output();
      report.push_back(json_of(subject, call, machine_json));
    }
    save(flags, report);
  }
  return 0;
}

int bench_once(const BenchFlags& flags, at::ScalarType dtype, at::Device device) {
  double case_s = 0;
  for (const auto& family : bench::op_families(device)) {
    std::vector<bench::OpCase> cases;
    case_s += bench::sampler_of([&] { cases = family.cases(dtype, device); })(1);
    for (const auto& subject : cases)
      if (name_of(subject) == flags.once) {
        bench::call_once(subject, case_s, [](std::string_view line) { write_output(line, true); });
        return 0;
      }
  }
  throw InputError("--once " + flags.once + ": no op has this name and shape");
}

int bench_ops(const BenchFlags& flags, const Session& session) {
  require(flags.subject.empty(), "bench ops takes no '{}'; choose ops with --filter", flags.subject);
  require(flags.only.empty(), "--only chooses parts of bench model; choose ops with --filter");
  require(flags.busy + flags.first_call + !flags.once.empty() <= 1,
          "give one of --busy, --first-call and --once");
  const auto dtype = dtype_named(flags.dtype);
  require(dtype != at::kDouble,
          "--dtype fp64: fp64 runs the reference, which is not timed; give fp32, bf16 or fp16");
  const auto device = session_device(session);
  if (!flags.once.empty()) return bench_once(flags, dtype, device);
  if (flags.first_call) return bench_first_call(flags, session, dtype, device);
  return flags.busy ? bench_busy(flags, dtype, device) : bench_times(flags, dtype, device);
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

// Every mixer on its kernels and on the plain references of its ops, in turns.
int bench_mixers(const BenchFlags& flags, const Session& session) {
  require(flags.subject.empty(), "bench mixers takes no '{}'; choose mixers with --filter", flags.subject);
  require(session_device(session).is_cpu(), "bench mixers: the CPU only; give --device cpu");
  const auto filter = filter_of(flags.filter);
  const auto machine = bench::look_at_machine(at::kCPU, at::kFloat);
  const auto machine_json = json_of(machine);
  print("{}\n", head(machine));
  constexpr const char* columns = "{:<18} {:>9} {:>12} {:>9} {:>10} {:>9} {:>11}\n";
  print(columns, "mixer", "params", "train tok/s", "x plain", "steps/s", "x plain", "state B");
  const StopSignals signals;
  json report = json::array();
  save(flags, report);
  std::string left_out;
  for (const auto& name : mixer_names()) {
    signals.check();
    if (!std::regex_search(name, filter)) continue;
    Node node = Node::map();
    node.set_child("mixer", Node::scalar(name));
    const auto row = bench::time_mixer(node, {.quick = flags.quick});
    if (!row.left_out.empty()) {
      left_out += fmt::format("  {}: {}\n", name, row.left_out);
      continue;
    }
    const bool steps = row.step.samples > 0;
    print(columns, name, count_text(static_cast<double>(row.parameters)),
          number(row.train_tokens / row.train.median_s),
          number(row.train_reference.median_s / row.train.median_s),
          steps ? number(1 / row.step.median_s) : "-",
          steps ? number(row.step_reference.median_s / row.step.median_s) : "-", row.state_bytes);
    flush_output();
    report.push_back(json_of(row, machine_json));
    save(flags, report);
  }
  if (!left_out.empty()) print("\nleft out:\n{}", left_out);
  return 0;
}

int run(const BenchFlags& flags, const Session& session) {
  if (flags.what == "ops") return bench_ops(flags, session);
  if (flags.what == "mixers") return bench_mixers(flags, session);
  require(flags.what == "model", "bench {}: expected ops, mixers or model", flags.what);
  return bench_model(flags, session);
}

const Command register_bench{"bench", "times of ops and models against what the machine allows", run};

}  // namespace
}  // namespace weft::cli
