#include "infer/tasks/task_file.h"

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "io/json_place.h"

namespace weft {
namespace {

std::vector<std::string> texts_of(const JsonPlace& place) {
  std::vector<std::string> out;
  if (place.json().is_string()) return {place.text()};
  for (const auto& each : place.items()) out.push_back(each.text());
  return out;
}

std::string text_or(const JsonPlace& line, const char* key, const char* otherwise) {
  return line.has(key) ? line.at(key).text() : otherwise;
}

TaskKind kind_of(const JsonPlace& line) {
  if (line.has("text")) return TaskKind::rolling;
  if (line.has("choices")) return TaskKind::choice;
  if (line.has("until") || line.has("max_tokens") || line.has("targets")) return TaskKind::generate;
  require(line.has("target"), "{}: expected one of the fields text, choices, target, targets, until",
          line.where());
  return TaskKind::likelihood;
}

// The examples before the question, each followed by a separator.
std::string shots_of(const JsonPlace& line, const std::string& delimiter, int64_t shots) {
  if (!line.has("shots")) {
    require(shots <= 0, "{}: has no field 'shots', but {} are asked for", line.where(), shots);
    return "";
  }
  const auto all = line.at("shots").items();
  const auto separator = text_or(line, "separator", "\n\n");
  const auto count = shots < 0 ? static_cast<int64_t>(all.size()) : shots;
  require(count <= static_cast<int64_t>(all.size()), "{}: has {} shots, but {} are asked for",
          line.at("shots").where(), all.size(), count);
  std::string out;
  for (int64_t i = 0; i < count; ++i) {
    const auto& shot = all[static_cast<size_t>(i)];
    if (shot.json().is_string()) {
      out += shot.text() + separator;
    } else {
      shot.only({"context", "target"});
      out += shot.at("context").text() + delimiter + shot.at("target").text() + separator;
    }
  }
  return out;
}

TaskItem item_of(const JsonPlace& line, TaskKind kind, int64_t shots) {
  TaskItem item;
  if (kind == TaskKind::rolling) {
    line.only({"id", "text"});
    item.context = line.at("text").text();
    require(!item.context.empty(), "{}: is empty, there is nothing to predict", line.at("text").where());
    return item;
  }
  const auto delimiter = text_or(line, "delimiter", " ");
  item.context = shots_of(line, delimiter, shots) + line.at("context").text();
  if (kind == TaskKind::choice) {
    line.only({"id", "context", "choices", "answer", "delimiter", "shots", "separator"});
    item.choices = texts_of(line.at("choices"));
    item.answer = line.at("answer").integer();
    const auto count = static_cast<int64_t>(item.choices.size());
    require(count >= 2, "{}: expected two choices at least", line.at("choices").where());
    require(item.answer >= 0 && item.answer < count, "{}: is {}, expected 0 to {}", line.at("answer").where(),
            item.answer, count - 1);
  } else if (kind == TaskKind::likelihood) {
    line.only({"id", "context", "target", "delimiter", "shots", "separator"});
    item.choices = {line.at("target").text()};
  } else {
    line.only(
        {"id", "context", "target", "targets", "until", "max_tokens", "delimiter", "shots", "separator"});
    require(line.has("target") != line.has("targets"), "{}: expected either 'target' or 'targets'",
            line.where());
    const auto targets = line.at(line.has("target") ? "target" : "targets");
    item.targets = texts_of(targets);
    require(!item.targets.empty(), "{}: is empty", targets.where());
    if (line.has("until")) item.until = texts_of(line.at("until"));
    if (line.has("max_tokens")) item.max_tokens = line.at("max_tokens").integer();
    require(item.max_tokens >= 1, "{}: is {}, expected 1 at least", line.where() + " max_tokens",
            item.max_tokens);
  }
  for (const auto& choice : item.choices) {
    item.continuations.push_back(delimiter + choice);
    require(!item.continuations.back().empty(), "{}: an empty continuation has no likelihood", line.where());
  }
  return item;
}

}  // namespace

std::string_view task_kind_name(TaskKind kind) {
  constexpr std::string_view names[] = {"choice", "likelihood", "generate", "rolling"};
  return names[static_cast<size_t>(kind)];
}

TaskFile read_task_file(const std::string& path, int64_t shots, int64_t limit) {
  std::ifstream file(path);
  require(file.is_open() && !std::filesystem::is_directory(path), "{}: cannot be read as a file of tasks",
          path);
  TaskFile out;
  out.name = std::filesystem::path(path).stem().string();
  int64_t number = 0;
  for (std::string text;
       (limit <= 0 || static_cast<int64_t>(out.items.size()) < limit) && std::getline(file, text);) {
    ++number;
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto where = fmt::format("{}:{}", path, number);
    const auto json = parse_json(text, where);
    const JsonPlace line(json, where);
    require(json.is_object(), "{}: expected an object, got {}", where, line.shown());
    const auto kind = kind_of(line);
    if (out.items.empty()) out.kind = kind;
    require(kind == out.kind, "{}: is of the kind {}, but the lines before are {}: a file is one task", where,
            task_kind_name(kind), task_kind_name(out.kind));
    out.items.push_back(item_of(line, kind, shots));
  }
  require(!out.items.empty(), "{}: has no lines", path);
  return out;
}

}  // namespace weft
