#include "io/generation_defaults.h"

#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "io/json_place.h"
#include "io/pretrained/huggingface.h"

namespace weft {
namespace {

std::vector<int64_t> ids_of(const JsonPlace& place) {
  if (!place.has("eos_token_id")) return {};
  const auto given = place.at("eos_token_id");
  if (!given.json().is_array()) return {given.integer()};
  std::vector<int64_t> ids;
  for (const auto& each : given.items()) ids.push_back(each.integer());
  return ids;
}

std::optional<double> number_of(const JsonPlace& place, const char* key) {
  if (!place.has(key)) return std::nullopt;
  const auto given = place.at(key);
  require(given.json().is_number(), "{}: expected a number, got {}", given.where(), given.shown());
  return given.json().get<double>();
}

}  // namespace

GenerationDefaults read_generation_defaults(const std::string& folder) {
  GenerationDefaults out;
  const auto path = folder + "/generation_config.json", config_path = folder + "/config.json";
  if (std::filesystem::exists(path)) {
    const auto json = parse_json(config_as_json(read_text(path)), path);
    const JsonPlace place(json, path);
    out.end_ids = ids_of(place);
    out.temperature = number_of(place, "temperature");
    out.top_p = number_of(place, "top_p");
    out.min_p = number_of(place, "min_p");
    out.repetition_penalty = number_of(place, "repetition_penalty");
    if (place.has("top_k")) out.top_k = place.at("top_k").integer();
    if (place.has("do_sample") && !place.at("do_sample").boolean()) out.temperature = 0;
  }
  if (out.end_ids.empty() && std::filesystem::exists(config_path)) {
    const auto json = parse_json(config_as_json(read_text(config_path)), config_path);
    out.end_ids = ids_of(JsonPlace(json, config_path));
  }
  return out;
}

}  // namespace weft
