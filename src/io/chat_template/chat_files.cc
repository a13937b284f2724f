#include "io/chat_template/chat_files.h"

#include <filesystem>
#include <optional>

#include "base/files.h"
#include "io/json_place.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

std::optional<nlohmann::json> json_of(const std::string& path) {
  if (!fs::exists(path)) return std::nullopt;
  return parse_json(read_text(path), path);
}

// Tokens are texts, or objects with a "content".
void add_special_tokens(const JsonPlace& place, std::map<std::string, std::string>& tokens) {
  for (const auto& [name, value] : place.members()) {
    if (!name.ends_with("_token") || name.starts_with("add_")) continue;
    if (value.json().is_string()) tokens[name] = value.text();
    if (value.json().is_object() && value.has("content")) tokens[name] = value.at("content").text();
  }
}

void add_templates(const JsonPlace& place, ChatFiles& files, const std::string& path) {
  if (!place.has("chat_template")) return;
  const auto given = place.at("chat_template");
  files.source = path + ": chat_template";
  if (given.json().is_string()) {
    files.templates["default"] = given.text();
    return;
  }
  for (const auto& each : given.items()) files.templates[each.at("name").text()] = each.at("template").text();
}

}  // namespace

ChatFiles read_chat_files(const std::string& folder) {
  ChatFiles files;
  const auto special_path = folder + "/special_tokens_map.json",
             config_path = folder + "/tokenizer_config.json";
  if (const auto json = json_of(special_path))
    add_special_tokens(JsonPlace(*json, special_path), files.special_tokens);
  if (const auto json = json_of(config_path)) {
    const JsonPlace place(*json, config_path);
    add_special_tokens(place, files.special_tokens);
    add_templates(place, files, config_path);
  }
  const auto processor_path = folder + "/chat_template.json";
  if (const auto json = json_of(processor_path))
    add_templates(JsonPlace(*json, processor_path), files, processor_path);
  if (const auto path = folder + "/chat_template.jinja"; fs::exists(path)) {
    files.templates["default"] = read_text(path);
    files.source = path;
  }
  if (const auto more = folder + "/additional_chat_templates"; fs::is_directory(more))
    for (const auto& entry : fs::directory_iterator(more))
      if (entry.path().extension() == ".jinja")
        files.templates[entry.path().stem().string()] = read_text(entry.path().string());
  return files;
}

}  // namespace weft
