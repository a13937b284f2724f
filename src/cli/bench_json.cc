#include "cli/bench_json.h"

#include <ATen/Parallel.h>
#include <torch/version.h>

#include <ctime>
#include <fstream>

#include "base/version.h"

namespace weft::cli {
namespace {

using nlohmann::json;

#ifdef __clang__
constexpr const char* kCompiler = __VERSION__;
#else
constexpr const char* kCompiler = "g++ " __VERSION__;
#endif

double ms(double seconds) { return 1e3 * seconds; }

json json_of(const bench::Timing& timing) {
  return {{"median_s", timing.median_s},
          {"best_s", timing.best_s},
          {"spread", timing.spread},
          {"samples", timing.samples}};
}

std::string today() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  return fmt::format("{:04}-{:02}-{:02}", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday);
}

// As it was typed, each argument in quotes where it holds more than a word.
std::string command_line() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::string text, word;
  while (std::getline(file, word, '\0')) {
    const bool plain =
        !word.empty() && word.find_first_of(" \t\n\"'\\$`|&;()<>*?[]{}!#~") == std::string::npos;
    std::string quoted;
    for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
    text += (text.empty() ? "" : " ") + (plain ? word : "'" + quoted + "'");
  }
  return text;
}

}  // namespace

json json_of(const bench::Machine& machine) {
  return {{"name", machine.name},
          {"load", machine.load},
          {"threads", at::get_num_threads()},
          {"openmp", bench::openmp_settings()},
          {"command", command_line()},
          {"weft", kHeaderVersion},
          {"torch", TORCH_VERSION},
          {"compiler", kCompiler},
          {"date", today()},
          {"copy_bytes_per_s", machine.rates.copy},
          {"flops_per_s", machine.rates.flops},
          {"product", machine.product}};
}

json json_of(const bench::Row& row, const json& machine) {
  json result{{"kind", "time"},
              {"name", row.op + ", " + row.shape + ", " + row.pass},
              {"family", row.family},
              {"op", row.op},
              {"shape", row.shape},
              {"pass", row.pass},
              {"dtype", row.dtype},
              {"kernel", row.kernel},
              {"ms", nullptr},
              {"floor_ms", ms(row.floor_s)},
              {"percent_of_floor", row.percent()},
              {"bytes", row.work.bytes},
              {"flops", row.work.flops},
              {"wrong", row.weft_wrong},
              {"peer", nullptr},
              {"peer_ms", nullptr},
              {"speedup", row.speedup()},
              {"peers", json::array()},
              {"machine", machine}};
  if (row.weft) {
    result["ms"] = ms(row.weft->median_s);
    result["best_ms"] = ms(row.weft->best_s);
    result["spread"] = row.weft->spread;
    result["samples"] = row.weft->samples;
  }
  if (const auto* best = row.best_peer()) {
    result["peer"] = best->name;
    result["peer_ms"] = ms(best->timing->median_s);
  }
  for (const auto& peer : row.peers) {
    json entry{{"name", peer.name}, {"wrong", peer.wrong}, {"ms", nullptr}};
    if (peer.timing)
      entry.update({{"ms", ms(peer.timing->median_s)},
                    {"best_ms", ms(peer.timing->best_s)},
                    {"spread", peer.timing->spread}});
    result["peers"].push_back(entry);
  }
  return result;
}

json json_of(const bench::BusyRow& row, size_t competitors, const json& machine) {
  json result{{"kind", "busy"},
              {"name", row.op + ", " + row.shape + ", " + row.pass},
              {"family", row.family},
              {"op", row.op},
              {"shape", row.shape},
              {"pass", row.pass},
              {"competitors", competitors},
              {"wrong", row.wrong},
              {"ms", nullptr},
              {"busy_ms", nullptr},
              {"slowdown", row.slowdown()},
              {"machine", machine}};
  if (row.wrong.empty())
    result.update({{"ms", ms(row.free.median_s)},
                   {"busy_ms", ms(row.busy.median_s)},
                   {"spread", row.free.spread},
                   {"busy_spread", row.busy.spread},
                   {"samples", row.free.samples}});
  return result;
}

json json_of(const bench::OpCase& subject, const bench::FirstCall& call, const json& machine) {
  return {{"kind", "first call"},           {"name", subject.op + ", " + subject.shape + ", " + call.pass},
          {"family", subject.family},       {"op", subject.op},
          {"shape", subject.shape},         {"pass", call.pass},
          {"ms", ms(call.start_s)},         {"call_ms", ms(call.call_s)},
          {"inputs_ms", ms(call.inputs_s)}, {"machine", machine}};
}

json json_of(const bench::MixerRow& row, const json& machine) {
  json result{{"kind", "mixer"},
              {"mixer", row.mixer},
              {"shape", row.shape},
              {"parameters", row.parameters},
              {"state_bytes", row.state_bytes},
              {"train_tokens_per_s", row.train_tokens / row.train.median_s},
              {"train_speedup", row.train_reference.median_s / row.train.median_s},
              {"machine", machine}};
  if (row.step.samples > 0)
    result.update({{"steps_per_s", 1 / row.step.median_s},
                   {"step_speedup", row.step_reference.median_s / row.step.median_s}});
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

}  // namespace weft::cli
