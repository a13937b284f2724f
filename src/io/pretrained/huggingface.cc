#include "io/pretrained/huggingface.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <new>
#include <stdexcept>

#include "base/error.h"
#include "base/text.h"
#include "io/json_place.h"
#include "io/pretrained/architecture.h"
#include "io/safetensors.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigFile = "config.json";

class SafeTensorsSource final : public TensorSource {
 public:
  explicit SafeTensorsSource(const std::string& path) : file_(path) {}
  std::vector<std::string> names() const override { return file_.names(); }
  bool contains(const std::string& name) const override { return file_.contains(name); }
  std::vector<int64_t> shape(const std::string& name) const override { return file_.entry(name).shape; }
  at::ScalarType dtype(const std::string& name) const override { return file_.entry(name).dtype; }
  at::Tensor view(const std::string& name) const override { return file_.view(name); }
  const std::string& path() const override { return file_.path(); }

 private:
  SafeTensors file_;
};

// The content of a file that may be absent: "" then.
std::string text_of(const std::string& path) { return fs::exists(path) ? read_text(path) : std::string(); }

// The model that a config describes, without memory for parameters, which the file has: sizes that a config invents cost
// nothing. Whatever is wrong with it is said with the config's name: options of mixers know their own names only.
std::pair<Blueprint, std::unique_ptr<Model>> describe_model(const ConfigReader& config,
                                                            const std::string& config_path,
                                                            const TensorSource& file) {
  const DeferredParameters deferred;
  try {
    auto blueprint = describe_pretrained(config, &file);
    auto model = std::make_unique<Model>(blueprint.options());
    return {std::move(blueprint), std::move(model)};
  } catch (const InputError& error) {
    const std::string_view message = error.what();
    if (message.find(config_path) != std::string_view::npos) throw;
    throw InputError(fmt::format("{}: the model that it describes cannot be: {}", config_path, message));
  } catch (const Error&) {
    throw;
  } catch (const c10::Error& error) {
    throw InputError(
        fmt::format("{}: no model has these sizes: {}", config_path, error.what_without_backtrace()));
  } catch (const std::logic_error&) {  // a list is shorter than others say, a size too large for a list
    throw InputError(fmt::format("{}: its sizes and lists contradict each other", config_path));
  } catch (const std::bad_alloc&) {
    throw InputError(fmt::format("{}: no model has these sizes", config_path));
  }
}

}  // namespace

bool is_huggingface_directory(const std::string& path) {
  return fs::is_directory(path) && fs::exists(path + "/" + kConfigFile);
}

std::string config_as_json(const std::string& text) {
  std::string out;
  out.reserve(text.size());
  const auto word_at = [&](size_t at, std::string_view word) {
    if (text.compare(at, word.size(), word) != 0) return false;
    const size_t end = at + word.size();
    return end == text.size() || !std::isalnum(static_cast<unsigned char>(text[end]));
  };
  bool quoted = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (quoted && text[i] == '\\' && i + 1 < text.size()) {
      out += text[i++];
    } else if (text[i] == '"') {
      quoted = !quoted;
    } else if (!quoted) {
      bool rewritten = false;
      for (const std::string_view word : {"-Infinity", "Infinity", "NaN"})
        if (!rewritten && word_at(i, word)) {
          out += fmt::format(R"({{"__float__": "{}"}})", word);
          i += word.size() - 1;
          rewritten = true;
        }
      if (rewritten) continue;
    }
    out += text[i];
  }
  return out;
}

LoadedModel make_pretrained(const std::string& config_text, const std::string& config_path,
                            const TensorSource& file) {
  LoadedModel loaded;
  const auto json = parse_json(config_text, config_path);
  const JsonPlace place(json, config_path);
  const ConfigReader config(place);
  auto [blueprint, model] = describe_model(config, config_path, file);
  loaded.model = std::move(model);
  for (const auto& name : blueprint.fill(*loaded.model, file))
    loaded.notes.push_back(fmt::format("{}: tensor '{}' is not used", file.path(), name));
  loaded.config_text = config_text;
  loaded.model->set_compute_dtype(compute_type(*loaded.model));
  return loaded;
}

LoadedModel load_huggingface(const std::string& path, const std::string& config_name) {
  const auto config_path = path + "/" + config_name;
  const SafeTensorsSource file(path);
  auto loaded = make_pretrained(config_as_json(read_text(config_path)), config_path, file);
  loaded.path = path;
  loaded.generation = read_generation_defaults(path);
  loaded.chat = read_chat_files(path);
  if (holds_tokenizer(path)) {
    loaded.tokenizer = load_tokenizer(path);
    loaded.tokenizer_folder = path;
  }
  return loaded;
}

void save_huggingface(const std::string& path, const LoadedModel& loaded, uint64_t shard_bytes) {
  require(!loaded.config_text.empty(),
          "{}: this model has no config.json: it did not come from a pretrained checkpoint, and transformers "
          "has no "
          "architecture for it",
          loaded.path);
  const auto json = parse_json(loaded.config_text, loaded.path + "/" + kConfigFile);
  const JsonPlace place(json, loaded.path + "/" + kConfigFile);
  auto tensors = describe_pretrained(ConfigReader(place), nullptr).tensors(*loaded.model);

  StagedDirectory staged(path, StagedDirectory::Existing::refuse);
  write_atomically(staged.file(kConfigFile), json.dump(2) + "\n");
  uint64_t total = 0;
  std::vector<NamedTensors> shards(1);
  uint64_t in_shard = 0;
  for (auto& [name, tensor] : tensors) {
    if (in_shard > 0 && in_shard + tensor.nbytes() > shard_bytes) {
      shards.emplace_back();
      in_shard = 0;
    }
    in_shard += tensor.nbytes();
    total += tensor.nbytes();
    shards.back().emplace_back(name, tensor);
  }
  if (shards.size() == 1) {
    write_safetensors(staged.file("model.safetensors"), std::move(shards[0]), {{"format", "pt"}});
  } else {
    nlohmann::json index = {{"metadata", {{"total_size", total}}}, {"weight_map", nlohmann::json::object()}};
    for (size_t i = 0; i < shards.size(); ++i) {
      const auto name = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
      for (const auto& [tensor, value] : shards[i]) index["weight_map"][tensor] = name;
      write_safetensors(staged.file(name), std::move(shards[i]), {{"format", "pt"}});
    }
    write_atomically(staged.file("model.safetensors.index.json"), index.dump(2) + "\n");
  }
  write_tokenizer_companions(loaded, staged);
  if (const auto text = text_of(loaded.tokenizer_folder + "/tokenizer.json");
      !loaded.tokenizer_folder.empty() && !text.empty())
    write_atomically(staged.file("tokenizer.json"), text);
  else if (loaded.tokenizer_folder.empty() && loaded.tokenizer)
    loaded.tokenizer->save(staged.file("tokenizer.json"));
  staged.commit();
}

}  // namespace weft
