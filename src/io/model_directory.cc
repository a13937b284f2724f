#include "io/model_directory.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <map>

#include "base/error.h"
#include "base/text.h"
#include "io/safetensors.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kFormat = 1;
constexpr const char* kConfig = "model.yaml";
constexpr const char* kWeights = "weights.safetensors";
constexpr const char* kTokenizer = "tokenizer.json";

Node config_of(const Model& model, const Tokenizer& tokenizer) {
  Node about = Node::map();
  about.set_child("file", Node::scalar(kTokenizer));
  about.set_child("vocab", Node::scalar(fmt::format("{}", tokenizer.vocab_size())));
  about.set_child("fingerprint", Node::scalar(tokenizer.fingerprint()));
  Node config = Node::map();
  config.set_child("format", Node::scalar(fmt::format("{}", kFormat)));
  config.set_child("model", model.describe());
  config.set_child("tokenizer", std::move(about));
  return config;
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

// Activations have the type of the matrices.
at::ScalarType compute_type(Model& model) {
  for (const auto& [name, parameter] : model.parameters())
    if (parameter->rules.role != ParameterRules::Role::vector) return parameter->value.scalar_type();
  return at::kFloat;
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

void write_model_files(const StagedDirectory& folder, const Model& model, const Tokenizer& tokenizer) {
  NamedTensors tensors;
  for (const auto& [name, parameter] : model.parameters())
    tensors.emplace_back(name, parameter->value.detach());
  write_safetensors(folder.file(kWeights), std::move(tensors), {{"format", "pt"}});
  write_atomically(folder.file(kConfig), config_of(model, tokenizer).dump());
  tokenizer.save(folder.file(kTokenizer));
}

void save_model(const std::string& path, const Model& model, const Tokenizer& tokenizer) {
  require(!fs::exists(path) || fs::exists(path + "/" + kConfig),
          "{}: exists and is not a model folder; give another path or remove it", path);
  StagedDirectory staged(path, StagedDirectory::Existing::replace);
  write_model_files(staged, model, tokenizer);
  staged.commit();
}

void load_weights(const std::string& path, Model& model) {
  const SafeTensors file(path);
  at::NoGradGuard no_grad;
  match(file, model,
        [&](const std::string& name, Parameter& parameter) { parameter.value.copy_(file.view(name)); });
}

LoadedModel load_model(const std::string& path) {
  LoadedModel loaded;
  loaded.path = find_model_folder(path);
  const std::string config_path = loaded.path + "/" + kConfig;
  loaded.config = Node::load(config_path);
  const auto format = loaded.config.at("format").as_int();
  require(format == kFormat, "{}: format {} is unknown; this version of weft reads format {}", config_path,
          format, kFormat);
  const Node& about = loaded.config.at("tokenizer");
  const std::string tokenizer_path = loaded.path + "/" + kTokenizer;
  loaded.tokenizer = load_tokenizer(tokenizer_path);
  require_fitting(*loaded.tokenizer, about, tokenizer_path);
  loaded.model = std::make_unique<Model>(read_options<ModelOptions>(loaded.config.at("model"), "model"));
  require(loaded.model->options().vocab >= loaded.tokenizer->vocab_size(),
          "{}: vocabulary of {} but the tokenizer has {}", config_path, loaded.model->options().vocab,
          loaded.tokenizer->vocab_size());
  const SafeTensors file(loaded.path + "/" + kWeights);
  match(file, *loaded.model,
        [&](const std::string& name, Parameter& parameter) { parameter.value = file.load(name); });
  loaded.model->set_compute_dtype(compute_type(*loaded.model));
  return loaded;
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
  require(!checkpoints.empty(),
          "{}: expected a model folder (with {}) or the folder of a run that has a model or a checkpoint",
          path, kConfig);
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
