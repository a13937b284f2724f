#include "io/pretrained/config_reader.h"

#include <cmath>
#include <limits>
#include <map>
#include <set>

#include "base/error.h"

namespace weft {

struct ConfigReader::Node {
  explicit Node(const JsonPlace& object) : place(object) {
    for (auto& [key, value] : object.members())
      if (!value.is_null()) members.emplace(key, value);
  }
  JsonPlace place;
  std::map<std::string, JsonPlace> members;
  std::set<std::string> used;
  std::map<std::string, std::shared_ptr<Node>> children;
};

namespace {

double as_number(const JsonPlace& place) {
  const auto& json = place.json();
  if (json.is_number()) return json.get<double>();
  if (json.is_object() && json.size() == 1 && json.contains("__float__")) {
    const auto word = place.at("__float__").text();
    if (word == "Infinity") return std::numeric_limits<double>::infinity();
    if (word == "-Infinity") return -std::numeric_limits<double>::infinity();
    if (word == "NaN") return std::numeric_limits<double>::quiet_NaN();
  }
  throw InputError(fmt::format("{}: expected a number, found {}", place.where(), place.shown()));
}

// What a model cannot have none of, and what is divided by.
const std::set<std::string> kAtLeastOne = {"hidden_size",
                                           "d_model",
                                           "n_embd",
                                           "embedding_dim",
                                           "num_attention_heads",
                                           "num_key_value_heads",
                                           "n_head",
                                           "num_heads",
                                           "n_mamba_heads",
                                           "mamba_n_heads",
                                           "mamba_num_heads",
                                           "mamba_n_groups",
                                           "n_groups",
                                           "mamba_ngroups",
                                           "linear_num_key_heads",
                                           "linear_num_value_heads",
                                           "linear_num_heads",
                                           "linear_key_head_dim",
                                           "linear_value_head_dim",
                                           "vocab_size",
                                           "head_dim",
                                           "num_hidden_layers",
                                           "n_layer",
                                           "n_group",
                                           "num_expert_group",
                                           "topk_group",
                                           "num_mem_blocks",
                                           "n_layers_per_attn_res_block",
                                           "block_multiple_of",
                                           "decoder_sparse_step",
                                           "loop_gate_rank",
                                           "loop_num_passes",
                                           "n_positions",
                                           "hc_count",
                                           "hc_lowrank",
                                           "indexer_compress_ratio",
                                           "conv_kernel",
                                           "conv_kernel_size",
                                           "conv_L_cache",
                                           "conv1d_width",
                                           "mamba_d_conv",
                                           "linear_conv_kernel_dim",
                                           "attn_layer_period",
                                           "expert_layer_period",
                                           "ffn_round_up_to_multiple_of",
                                           "state_size",
                                           "ssm_state_size",
                                           "mamba_d_state",
                                           "mamba_step"};

// Sizes and counts of a model. The bounds are far above any that exists and keep what is built from them small: counts
// (num_experts, n_layer) are looped over.
int64_t as_size(const std::string& key, const JsonPlace& place) {
  const auto value = place.integer();
  const int64_t most = key.starts_with("num_") || key.starts_with("n_") ? int64_t{1} << 20 : int64_t{1} << 31;
  require(value < most, "{}: {} is out of range, expected less than {}", place.where(), value, most);
  require(value >= 0, "{}: {} must be at least 0", place.where(), value);
  require(value >= 1 || (!kAtLeastOne.count(key) && !key.ends_with("intermediate_size")),
          "{}: {} must be at least 1", place.where(), value);
  return value;
}

}  // namespace

ConfigReader::ConfigReader(const JsonPlace& object) : node_(std::make_shared<Node>(object)) {}
ConfigReader::ConfigReader(std::shared_ptr<Node> node) : node_(std::move(node)) {}

bool ConfigReader::has(const ConfigKey& key) const {
  for (const auto& name : key.names)
    if (node_->members.count(name)) return true;
  return false;
}

bool ConfigReader::is_null(const std::string& key) const {
  const auto& json = node_->place.json();
  return json.contains(key) && json.at(key).is_null();
}

bool ConfigReader::is_text(const ConfigKey& key) const {
  for (const auto& name : key.names)
    if (const auto found = node_->members.find(name); found != node_->members.end())
      return found->second.json().is_string();
  return false;
}

const JsonPlace* ConfigReader::take(const ConfigKey& key) const {
  const JsonPlace* first = nullptr;
  for (const auto& name : key.names) {
    node_->used.insert(name);
    const auto found = node_->members.find(name);
    if (!first && found != node_->members.end()) first = &found->second;
  }
  return first;
}

const JsonPlace& ConfigReader::need_key(const ConfigKey& key) const {
  const auto* place = take(key);
  require(place != nullptr, "{}: '{}' is missing", node_->place.where(), key.names.front());
  return *place;
}

int64_t ConfigReader::integer(const ConfigKey& key) const {
  return as_size(key.names.front(), need_key(key));
}
int64_t ConfigReader::integer(const ConfigKey& key, int64_t otherwise) const {
  const auto* place = take(key);
  return place ? as_size(key.names.front(), *place) : otherwise;
}

double ConfigReader::number(const ConfigKey& key) const { return as_number(need_key(key)); }
double ConfigReader::number(const ConfigKey& key, double otherwise) const {
  const auto* place = take(key);
  return place ? as_number(*place) : otherwise;
}

bool ConfigReader::flag(const ConfigKey& key, bool otherwise) const {
  const auto* place = take(key);
  return place ? place->boolean() : otherwise;
}

std::string ConfigReader::text(const ConfigKey& key) const { return need_key(key).text(); }
std::string ConfigReader::text(const ConfigKey& key, const std::string& otherwise) const {
  const auto* place = take(key);
  return place ? place->text() : otherwise;
}

std::vector<int64_t> ConfigReader::integers(const ConfigKey& key) const {
  std::vector<int64_t> values;
  const auto* place = take(key);
  if (!place) return values;
  if (place->json().is_number_integer()) return {place->integer()};
  for (const auto& item : place->items()) values.push_back(item.integer());
  return values;
}

std::vector<double> ConfigReader::numbers(const ConfigKey& key) const {
  std::vector<double> values;
  if (const auto* place = take(key))
    for (const auto& item : place->items()) values.push_back(as_number(item));
  return values;
}

std::vector<std::string> ConfigReader::texts(const ConfigKey& key) const {
  std::vector<std::string> values;
  if (const auto* place = take(key))
    for (const auto& item : place->items()) values.push_back(item.text());
  return values;
}

std::optional<ConfigReader> ConfigReader::child(const ConfigKey& key) const {
  take(key);
  for (const auto& name : key.names) {
    const auto found = node_->members.find(name);
    if (found == node_->members.end()) continue;
    auto& child = node_->children[name];
    if (!child) child = std::make_shared<Node>(found->second);
    return ConfigReader(child);
  }
  return std::nullopt;
}

void ConfigReader::ignore(std::initializer_list<const char*> keys) const {
  for (const char* key : keys) node_->used.insert(key);
}

void ConfigReader::forget(std::initializer_list<const char*> keys) const {
  for (const char* key : keys) node_->used.erase(key);
}

void ConfigReader::unsupported(const ConfigKey& key, const std::string& expected) const {
  for (const auto& name : key.names)
    if (const auto found = node_->members.find(name); found != node_->members.end())
      throw Unsupported(
          fmt::format("{}: {} is not supported; {}", found->second.where(), found->second.shown(), expected));
  throw Unsupported(fmt::format("{}: its absence is not supported; {}", where(key), expected));
}

std::string ConfigReader::where(const ConfigKey& key) const {
  for (const auto& name : key.names)
    if (const auto found = node_->members.find(name); found != node_->members.end())
      return found->second.where();
  return node_->place.where() + ": " + key.names.front();
}

void ConfigReader::finish() const {
  for (const auto& [key, value] : node_->members) {
    if (!node_->used.count(key))
      throw InputError(
          fmt::format("{}: {}: this version of weft does not know the key, so the model would not be "
                      "computed as its config says",
                      value.where(), value.shown()));
    if (const auto child = node_->children.find(key); child != node_->children.end())
      ConfigReader(child->second).finish();
  }
}

}  // namespace weft
