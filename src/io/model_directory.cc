#include "io/model_directory.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/text.h"
#include "io/gguf/model.h"
#include "io/pretrained/huggingface.h"
#include "io/safetensors.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kFormat = 1;
constexpr const char* kConfig = "model.yaml";
constexpr const char* kWeights = "weights.safetensors";
constexpr const char* kTokenizer = "tokenizer.json";
constexpr const char* kPretrained = "pretrained.json";

Node config_of(const Model& model, const Tokenizer* tokenizer) {
  Node config = Node::map();
  config.set_child("format", Node::scalar(fmt::format("{}", kFormat)));
  config.set_child("model", model.describe());
  if (!tokenizer) return config;
  Node about = Node::map();
  about.set_child("file", Node::scalar(kTokenizer));
  about.set_child("vocab", Node::scalar(fmt::format("{}", tokenizer->vocab_size())));
  about.set_child("fingerprint", Node::scalar(tokenizer->fingerprint()));
  config.set_child("tokenizer", std::move(about));
  return config;
}

void require_replaceable(const std::string& path) {
  require(!fs::exists(path) || fs::exists(path + "/" + kConfig),
          "{}: exists and is not a model folder; give another path or remove it", path);
}

// Gives take(name, parameter) every parameter, once the file is known to hold exactly those tensors.
template <class Take>
void match(const SafeTensors& file, Model& model, Take take) {
  const auto parameters = model.parameters();
  std::vector<std::string> missing, unexpected;
  std::map<std::string, Parameter*> wanted;
  for (const auto& [name, parameter] : parameters) {
    wanted.emplace(name, parameter);
    if (!file.contains(name)) missing.push_back(name);
  }
  for (const auto& name : file.names())
    if (!wanted.count(name)) unexpected.push_back(name);
  const auto shown = [](std::vector<std::string> names) {
    const auto count = names.size();
    if (count > 5) names.resize(5);
    return join(names) + (count > 5 ? fmt::format(" and {} more", count - 5) : "");
  };
  require(missing.empty() && unexpected.empty(), "{}: the weights do not fit the model:{}{}{}", file.path(),
          missing.empty() ? "" : " missing " + shown(missing),
          missing.empty() || unexpected.empty() ? "" : ";",
          unexpected.empty() ? "" : " unexpected " + shown(unexpected));
  for (const auto& [name, parameter] : wanted) {
    const auto& entry = file.entry(name);
    require(at::IntArrayRef(entry.shape) == parameter->value.sizes(),
            "{}: tensor '{}' is [{}] but the model has [{}]", file.path(), name, fmt::join(entry.shape, ", "),
            fmt::join(parameter->value.sizes(), ", "));
    require(at::isFloatingType(entry.dtype), "{}: tensor '{}' is {}, expected a float type", file.path(),
            name, c10::toString(entry.dtype));
    take(name, *parameter);
  }
}

void require_fitting(const Tokenizer& tokenizer, const Node& about, const std::string& path) {
  const auto& expected = about.at("fingerprint").as_string();
  require(tokenizer.fingerprint() == expected,
          "{}: this is not the tokenizer that the model was made for (fingerprint {}, expected {})", path,
          tokenizer.fingerprint(), expected);
}

int64_t checkpoint_step(const std::string& name) {
  constexpr std::string_view prefix = "step-";
  if (!name.starts_with(prefix)) return -1;
  int64_t step = -1;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + prefix.size(), end, step);
  return error == std::errc() && stop == end ? step : -1;
}

std::string best_checkpoint(const std::string& run, const CheckpointFolder& latest) {
  const Node trainer = Node::load(latest.path + "/trainer.yaml");
  const Node* best = trainer.find("best_step");
  require(best, "{}: no validation has been run yet, so there is no best checkpoint; use {}/latest", run,
          run);
  return checkpoint_path(run, best->as_int());
}

}  // namespace

at::ScalarType compute_type(Model& model) {
  for (const auto& [name, parameter] : model.parameters())
    if (parameter->rules.role != ParameterRules::Role::vector) return parameter->value.scalar_type();
  return at::kFloat;
}

const std::vector<std::string>& tokenizer_companions() {
  static const std::vector<std::string> names = {"tokenizer_config.json", "special_tokens_map.json",
                                                 "generation_config.json", "chat_template.jinja",
                                                 "tokenizer.model"};
  return names;
}

void write_tokenizer_companions(const LoadedModel& loaded, const StagedDirectory& to) {
  const auto& from = loaded.tokenizer_folder;
  if (!from.empty()) {
    for (const auto& name : tokenizer_companions())
      if (fs::exists(from + "/" + name)) write_atomically(to.file(name), read_text(from + "/" + name));
    return;
  }
  if (!loaded.chat.special_tokens.empty()) {
    nlohmann::json about(loaded.chat.special_tokens);
    about["tokenizer_class"] = "PreTrainedTokenizerFast";
    write_atomically(to.file("tokenizer_config.json"), about.dump(2) + "\n");
  }
  if (const auto found = loaded.chat.templates.find("default"); found != loaded.chat.templates.end())
    write_atomically(to.file("chat_template.jinja"), found->second);
}

void write_model_files(const StagedDirectory& folder, const Model& model, const Tokenizer* tokenizer,
                       const std::string& config_text) {
  NamedTensors tensors;
  for (const auto& [name, parameter] : model.parameters())
    tensors.emplace_back(name, parameter->value.detach());
  write_safetensors(folder.file(kWeights), std::move(tensors), {{"format", "pt"}});
  write_atomically(folder.file(kConfig), config_of(model, tokenizer).dump());
  if (tokenizer) tokenizer->save(folder.file(kTokenizer));
  if (!config_text.empty()) write_atomically(folder.file(kPretrained), config_text);
}

void save_model(const std::string& path, const Model& model, const Tokenizer* tokenizer,
                const std::string& config_text) {
  require_replaceable(path);
  StagedDirectory staged(path, StagedDirectory::Existing::replace);
  write_model_files(staged, model, tokenizer, config_text);
  staged.commit();
}

void save_model(const std::string& path, const LoadedModel& loaded) {
  require_replaceable(path);
  StagedDirectory staged(path, StagedDirectory::Existing::replace);
  write_model_files(staged, *loaded.model, loaded.tokenizer.get(), loaded.config_text);
  write_tokenizer_companions(loaded, staged);
  staged.commit();
}

void load_weights(const std::string& path, Model& model) {
  const SafeTensors file(path);
  at::NoGradGuard no_grad;
  match(file, model,
        [&](const std::string& name, Parameter& parameter) { parameter.value.copy_(file.view(name)); });
}

LoadedModel load_model(const std::string& path) {
  if (is_pretrained(path)) return is_gguf_file(path) ? load_gguf(path) : load_huggingface(path);
  LoadedModel loaded;
  loaded.path = find_model_folder(path);
  const std::string config_path = loaded.path + "/" + kConfig;
  loaded.config = Node::load(config_path);
  const auto format = loaded.config.at("format").as_int();
  require(format == kFormat, "{}: format {} is unknown; this version of weft reads format {}", config_path,
          format, kFormat);
  loaded.model = std::make_unique<Model>(read_options<ModelOptions>(loaded.config.at("model"), "model"));
  if (fs::exists(loaded.path + "/" + kPretrained))
    loaded.config_text = read_text(loaded.path + "/" + kPretrained);
  const bool pretrained = !loaded.config_text.empty();
  // Only what came from a pretrained checkpoint may be without a tokenizer.
  if (const Node& config = loaded.config; !pretrained || config.find("tokenizer")) {
    const Node& about = loaded.config.at("tokenizer");
    const std::string tokenizer_path = loaded.path + "/" + kTokenizer;
    loaded.tokenizer = load_tokenizer(tokenizer_path);
    require_fitting(*loaded.tokenizer, about, tokenizer_path);
    require(pretrained || loaded.model->options().vocab >= loaded.tokenizer->vocab_size(),
            "{}: vocabulary of {} but the tokenizer has {}", config_path, loaded.model->options().vocab,
            loaded.tokenizer->vocab_size());
    loaded.tokenizer_folder = loaded.path;
  }
  const SafeTensors file(loaded.path + "/" + kWeights);
  match(file, *loaded.model,
        [&](const std::string& name, Parameter& parameter) { parameter.value = file.load(name); });
  loaded.model->set_compute_dtype(compute_type(*loaded.model));
  loaded.generation = read_generation_defaults(loaded.path);
  loaded.chat = read_chat_files(loaded.path);
  return loaded;
}

bool is_pretrained(const std::string& path) {
  return is_gguf_file(path) || (is_huggingface_directory(path) && !fs::exists(path + "/" + kConfig));
}

std::string find_model_folder(const std::string& path) {
  const auto holds_model = [](const std::string& folder) { return fs::exists(folder + "/" + kConfig); };
  if (holds_model(path)) return path;
  if (holds_model(path + "/model")) return path + "/model";
  const fs::path given(path);
  const auto name = given.filename().string();
  const bool chosen = !fs::exists(given) && (name == "latest" || name == "best");
  const std::string run = chosen ? given.parent_path().string() : path;
  const auto checkpoints = list_checkpoints(run);
  require(
      !checkpoints.empty(),
      "{}: {}; expected a GGUF file, a folder of the Hugging Face hub (with config.json), a model folder of "
      "weft's (with {}), or the folder of a run that has a model or a checkpoint",
      path, fs::exists(given) ? "is no model" : "does not exist", kConfig);
  return chosen && name == "best" ? best_checkpoint(run, checkpoints.back()) : checkpoints.back().path;
}

std::vector<CheckpointFolder> list_checkpoints(const std::string& run_folder) {
  std::vector<CheckpointFolder> found;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(run_folder + "/checkpoints", none)) {
    const auto step = checkpoint_step(entry.path().filename().string());
    if (step >= 0 && entry.is_directory()) found.push_back({step, entry.path().string()});
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.step < b.step; });
  return found;
}

std::string checkpoint_path(const std::string& run_folder, int64_t step) {
  return fmt::format("{}/checkpoints/step-{:08}", run_folder, step);
}

}  // namespace weft
