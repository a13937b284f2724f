#include "study/verdict.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/text.h"
#include "base/version.h"
#include "ops/devices.h"

namespace weft {
namespace {

const double* find_metric(const std::vector<RunResult>& results, const std::string& arm, int64_t seed,
                          const std::string& metric) {
  for (const auto& result : results) {
    if (result.arm != arm || result.seed != seed) continue;
    const auto found = result.metrics.find(metric);
    return found == result.metrics.end() ? nullptr : &found->second;
  }
  return nullptr;
}

// The claim's number for one seed; NaN when a part of it is missing.
double number_of(const Claim& claim, const std::vector<RunResult>& results, int64_t seed) {
  const auto* value = find_metric(results, claim.arm, seed, claim.metric);
  if (!value) return NAN;
  const auto other_metric = claim.other.empty() ? claim.metric : claim.other;
  if (claim.minus.empty() && claim.over.empty()) return *value;
  const auto* other =
      find_metric(results, claim.minus.empty() ? claim.over : claim.minus, seed, other_metric);
  if (!other) return NAN;
  return claim.minus.empty() ? *value / *other : *value - *other;
}

bool within(const Claim& claim, double value) {
  return (!claim.at_least || value >= *claim.at_least) && (!claim.at_most || value <= *claim.at_most);
}

// How far inside its bounds a value is: for the best and the worst of seeds.
double margin(const Claim& claim, double value) {
  double least = INFINITY;
  if (claim.at_least) least = std::min(least, value - *claim.at_least);
  if (claim.at_most) least = std::min(least, *claim.at_most - value);
  return least;
}

std::string output_of(const std::string& command) {
  std::string text;
  if (std::FILE* pipe = popen(command.c_str(), "r")) {
    std::array<char, 256> buffer;
    while (std::fgets(buffer.data(), buffer.size(), pipe)) text += buffer.data();
    pclose(pipe);
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::string shell_quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text)
    result += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : std::string(1, c);
  return result;
}

// One panel: a metric of all arms.
struct Panel {
  std::string metric;
  double low = INFINITY, high = -INFINITY;
  std::vector<double> bounds;
};

}  // namespace

const char* verdict_text(Verdict::Kind kind) {
  switch (kind) {
    case Verdict::Kind::holds:
      return "holds";
    case Verdict::Kind::refuted:
      return "refuted";
    case Verdict::Kind::not_judged:
      return "not judged";
    case Verdict::Kind::not_run:
      return "not run";
  }
  return "";
}

Verdict judge(const Claim& claim, const std::vector<RunResult>& results, const std::string& size) {
  std::vector<double> values;
  std::vector<int64_t> seeds;
  for (const auto& result : results)
    if (std::find(seeds.begin(), seeds.end(), result.seed) == seeds.end()) seeds.push_back(result.seed);
  for (const auto seed : seeds)
    if (const double value = number_of(claim, results, seed); !std::isnan(value)) values.push_back(value);
  const bool wanted = claim.sizes.empty()
                          ? size != "smoke"
                          : std::find(claim.sizes.begin(), claim.sizes.end(), size) != claim.sizes.end();
  Verdict verdict;
  if (values.size() < seeds.size() ||
      values.empty()) {  // a seed that is missing or not finite is no evidence
    if (!wanted) verdict.kind = Verdict::Kind::not_judged;
    return verdict;
  }
  verdict.seeds = static_cast<int64_t>(values.size());
  verdict.low = *std::min_element(values.begin(), values.end());
  verdict.high = *std::max_element(values.begin(), values.end());
  for (const double value : values) verdict.mean += value / static_cast<double>(values.size());
  if (!wanted) {
    verdict.kind = Verdict::Kind::not_judged;
    return verdict;
  }
  const auto by_margin = [&](double a, double b) { return margin(claim, a) < margin(claim, b); };
  const double judged = claim.judge == "best"    ? *std::max_element(values.begin(), values.end(), by_margin)
                        : claim.judge == "worst" ? *std::min_element(values.begin(), values.end(), by_margin)
                                                 : verdict.mean;
  verdict.kind = within(claim, judged) ? Verdict::Kind::holds : Verdict::Kind::refuted;
  return verdict;
}

std::string bound_text(const Claim& claim) {
  if (claim.at_least && claim.at_most) return fmt::format("{:g} to {:g}", *claim.at_least, *claim.at_most);
  return claim.at_least ? fmt::format("at least {:g}", *claim.at_least)
                        : fmt::format("at most {:g}", *claim.at_most);
}

std::string quantity_text(const Claim& claim) {
  auto text = fmt::format("{} of {}", claim.metric, claim.arm);
  const auto other = [&](const std::string& arm) {
    return claim.other.empty() ? "that of " + arm : claim.other + " of " + arm;
  };
  if (!claim.minus.empty()) text += " minus " + other(claim.minus);
  if (!claim.over.empty()) text += " over " + other(claim.over);
  return text;
}

Provenance provenance_now(const std::string& device, const std::string& folder, const std::string& command) {
  Provenance from{.machine = {}, .date = {}, .commit = {}, .command = command, .version = kHeaderVersion};
  std::string cpu;
  for (const auto& found : devices()) {
    const auto text = fmt::format("{}, {}; {}", found.name, bytes_text(found.memory_bytes), found.details);
    if (found.kind == "cpu") cpu = text;
    if (found.kind == device && device != "cpu") from.machine = text;
  }
  from.machine += (from.machine.empty() ? "" : " in ") + cpu;
  const std::time_t now = std::time(nullptr);
  std::array<char, 32> date;
  std::strftime(date.data(), date.size(), "%Y-%m-%d", std::gmtime(&now));
  from.date = date.data();
  const auto git = "git -C " + shell_quoted(folder) + " ";
  if (const char* given = std::getenv("WEFT_COMMIT")) {  // sources without their history, as in a container
    from.commit = given;
    return from;
  }
  from.commit = output_of(git + "rev-parse --short=12 HEAD 2>/dev/null");
  if (!from.commit.empty() && !output_of(git + "status --porcelain --untracked-files=no 2>/dev/null").empty())
    from.commit += " with changes";
  return from;
}

std::string results_json(const Study& study, const std::vector<RunResult>& results, const Provenance& from) {
  using json = nlohmann::ordered_json;
  json root = {{"system", study.system},  {"title", study.title},    {"paper", study.paper},
               {"note", study.note},      {"size", study.size},      {"machine", from.machine},
               {"date", from.date},       {"commit", from.commit},   {"command", from.command},
               {"version", from.version}, {"seconds", from.seconds}, {"report", shown_metrics(study)},
               {"claims", json::array()}, {"runs", json::array()}};
  for (const auto& claim : study.claims) {
    const auto verdict = judge(claim, results, study.size);
    json node = {{"name", claim.name},           {"quantity", quantity_text(claim)},
                 {"bound", bound_text(claim)},   {"threshold", claim.threshold},
                 {"published", claim.published}, {"verdict", verdict_text(verdict.kind)}};
    if (verdict.seeds > 0) {
      node["mean"] = verdict.mean;
      node["low"] = verdict.low;
      node["high"] = verdict.high;
      node["seeds"] = verdict.seeds;
    }
    root["claims"].push_back(node);
  }
  for (const auto& result : results) {
    json metrics = json::object();
    for (const auto& [name, value] : result.metrics)
      if (std::isfinite(value)) metrics[name] = value;
    root["runs"].push_back({{"arm", result.arm}, {"seed", result.seed}, {"metrics", metrics}});
  }
  return root.dump(1) + "\n";
}

std::vector<std::string> shown_metrics(const Study& study) {
  auto names = study.report;
  if (!names.empty()) return names;
  for (const auto& claim : study.claims)
    for (const auto& name : {claim.metric, claim.other})
      if (!name.empty() && std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
  return names;
}

std::string results_svg(const Study& study, const std::vector<RunResult>& results) {
  std::vector<Panel> panels;
  for (const auto& metric : shown_metrics(study)) {
    Panel panel{.metric = metric, .bounds = {}};
    const auto see = [&](double value) {
      panel.low = std::min(panel.low, value);
      panel.high = std::max(panel.high, value);
    };
    for (const auto& result : results)
      if (const auto found = result.metrics.find(metric);
          found != result.metrics.end() && std::isfinite(found->second))
        see(found->second);
    if (panel.low > panel.high) continue;
    for (const auto& claim : study.claims)
      if (claim.metric == metric && claim.minus.empty() && claim.over.empty())
        for (const auto& bound : {claim.at_least, claim.at_most})
          if (bound) panel.bounds.push_back(*bound), see(*bound);
    if (panel.low >= 0 && panel.high <= 1) panel.low = 0, panel.high = 1;
    if (panel.high <= panel.low) panel.high = panel.low + std::max(1e-9, std::abs(panel.low));
    panels.push_back(panel);
  }
  constexpr double label = 190, panel_width = 260, gap = 30, row = 20, top = 64;
  const double width = label + static_cast<double>(panels.size()) * (panel_width + gap);
  const double height = top + row * static_cast<double>(study.arms.size()) + 40;
  auto svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:g} {1:g}\" width=\"{0:g}\" "
      "height=\"{1:g}\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
      "<text x=\"12\" y=\"22\" font-size=\"15\">{2}</text>\n",
      width, height, escaped(study.title));
  const auto y_of = [&](size_t arm) { return top + row * (static_cast<double>(arm) + 0.5); };
  for (size_t arm = 0; arm < study.arms.size(); ++arm)
    svg += fmt::format("<text x=\"{:g}\" y=\"{:g}\" text-anchor=\"end\">{}</text>\n", label - 12,
                       y_of(arm) + 4, escaped(study.arms[arm].name));
  for (size_t p = 0; p < panels.size(); ++p) {
    const auto& panel = panels[p];
    const double left = label + static_cast<double>(p) * (panel_width + gap);
    const auto x_of = [&](double value) {
      return left + panel_width * (value - panel.low) / (panel.high - panel.low);
    };
    const double bottom = top + row * static_cast<double>(study.arms.size());
    svg += fmt::format(
        "<text x=\"{:g}\" y=\"{:g}\">{}</text>\n<rect x=\"{:g}\" y=\"{:g}\" width=\"{:g}\" height=\"{:g}\" "
        "fill=\"none\" stroke=\"#bbb\"/>\n",
        left, top - 10, escaped(panel.metric), left, top, panel_width, bottom - top);
    for (const double value : {panel.low, (panel.low + panel.high) / 2, panel.high})
      svg += fmt::format("<text x=\"{:g}\" y=\"{:g}\" text-anchor=\"middle\" fill=\"#555\">{:.3g}</text>\n",
                         x_of(value), bottom + 16, value);
    for (const double bound : panel.bounds)
      svg += fmt::format(
          "<line x1=\"{0:g}\" x2=\"{0:g}\" y1=\"{1:g}\" y2=\"{2:g}\" stroke=\"#d94801\" "
          "stroke-dasharray=\"4 3\"/>\n",
          x_of(bound), top, bottom);
    for (const auto& result : results) {
      const auto found = result.metrics.find(panel.metric);
      if (found == result.metrics.end() || !std::isfinite(found->second)) continue;
      for (size_t arm = 0; arm < study.arms.size(); ++arm)
        if (study.arms[arm].name == result.arm)
          svg += fmt::format(
              "<circle cx=\"{:.1f}\" cy=\"{:g}\" r=\"4\" fill=\"#08519c\" fill-opacity=\"0.6\"/>\n",
              x_of(found->second), y_of(arm));
    }
  }
  return svg + "</svg>\n";
}

}  // namespace weft
