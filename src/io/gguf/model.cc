#include "io/gguf/model.h"

#include <set>

#include "base/error.h"
#include "base/text.h"
#include "io/gguf/architecture.h"
#include "io/gguf/source.h"
#include "io/gguf/tokenizer.h"
#include "io/json_place.h"
#include "io/pretrained/architecture.h"
#include "io/pretrained/huggingface.h"

namespace weft {
namespace {

// general.file_type, which says what most matrices are.
int64_t file_type_of(GgmlType type) {
  switch (type) {
    case GgmlType::F16:
      return 1;
    case GgmlType::Q8_0:
      return 7;
    case GgmlType::BF16:
      return 32;
    default:
      return 0;
  }
}

const GgufArchitecture& architecture_of(const GgufFile& file) {
  const auto name = file.metadata().text("general.architecture");
  return find_gguf_architecture(name, file.metadata().where("general.architecture"));
}

// The tokenizer's part of the metadata: copied from the GGUF file that the model came from, or made from the
// tokenizer.json beside it; "none" when there is neither, or GGUF has no such tokenizer.
void add_tokenizer(const LoadedModel& loaded, GgufMetadata& metadata) {
  if (!is_gguf_file(loaded.path)) {
    const auto vocab = loaded.model->options().vocab;
    if (!loaded.tokenizer ||
        !write_gguf_tokenizer(loaded.tokenizer_folder, *loaded.tokenizer, vocab, metadata))
      metadata.set_text("tokenizer.ggml.model", "none");
    return;
  }
  const GgufFile file(loaded.path);
  for (const auto& [key, value] : file.metadata().items())
    if (key.starts_with("tokenizer.")) metadata.set(key, value);
}

// Templates: "tokenizer.chat_template" and named ones behind another dot; the texts of the ids that they may name.
ChatFiles chat_of(const GgufMetadata& metadata) {
  ChatFiles chat{.templates = {}, .special_tokens = {}, .source = metadata.where("tokenizer.chat_template")};
  constexpr std::string_view key = "tokenizer.chat_template";
  for (const auto& [name, value] : metadata.items())
    if (name == key || name.starts_with(std::string(key) + "."))
      chat.templates[name == key ? "default" : name.substr(key.size() + 1)] = metadata.text(name);
  const auto tokens = metadata.texts("tokenizer.ggml.tokens");
  for (const auto& [ours, theirs] : {std::pair{"bos_token", "bos"},
                                     {"eos_token", "eos"},
                                     {"unk_token", "unknown"},
                                     {"pad_token", "padding"}}) {
    const auto id = metadata.integer(fmt::format("tokenizer.ggml.{}_token_id", theirs), -1);
    if (id >= 0 && id < static_cast<int64_t>(tokens.size()))
      chat.special_tokens[ours] = tokens[static_cast<size_t>(id)];
  }
  return chat;
}

}  // namespace

std::string gguf_config_text(const GgufFile& file) {
  auto config = nlohmann::json::object();
  architecture_of(file).read_config(file, config);
  return config.dump(2);
}

LoadedModel load_gguf(const std::string& path) {
  const GgufFile file(path);
  const auto text = gguf_config_text(file);
  const auto json = parse_json(text, path);
  const JsonPlace place(json, path);
  GgufNames names(file);
  architecture_of(file).name_tensors(ConfigReader(place), names);
  auto loaded = make_pretrained(text, path, *gguf_tensor_source(file, names));
  loaded.path = path;
  loaded.chat = chat_of(file.metadata());
  try {
    loaded.tokenizer = read_gguf_tokenizer(file.metadata());
  } catch (const Unsupported& error) {
    loaded.notes.push_back(fmt::format("{}; the model is opened without a tokenizer", error.what()));
  }
  return loaded;
}

void save_gguf(const std::string& path, const LoadedModel& loaded, GgmlType type) {
  require(!loaded.config_text.empty(),
          "{}: this model did not come from a pretrained checkpoint: GGUF has no architecture for it",
          loaded.path);
  const auto where = loaded.path + ": its config";
  const auto json = parse_json(loaded.config_text, where);
  const JsonPlace place(json, where);
  const ConfigReader config(place);
  const auto model_type = config.text("model_type");
  const auto* architecture = gguf_architecture_for(model_type);
  require(architecture, "{}: GGUF has no architecture for '{}' models that weft writes; it writes {}",
          loaded.path, model_type, join(gguf_writable_model_types()));

  GgufMetadata metadata(path);
  metadata.set_text("general.architecture", architecture->name);
  metadata.set_text("general.type", "model");
  metadata.set_u32("general.file_type", file_type_of(type));
  metadata.set_u32("general.quantization_version", 2);
  architecture->write_metadata(config, metadata);
  add_tokenizer(loaded, metadata);

  auto tensors = describe_pretrained(config, nullptr).tensors(*loaded.model);
  std::set<std::string> present;
  for (const auto& [name, unused] : tensors) present.insert(name);
  GgufNames names([&](const std::string& name) { return present.count(name) > 0; });
  architecture->name_tensors(config, names);
  write_gguf(path, metadata, gguf_outputs(names, std::move(tensors), type, loaded.path));
}

}  // namespace weft
